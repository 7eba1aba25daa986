"""The picture of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrank.extras import named_if_missing
from fastrank.frames import cut
from fastrank.ope.results import Estimate
from fastrank.visible import visible

__all__ = ["forest"]

_LABEL = 40  # characters
_DOUBTED = "0.6"  # a grey


def forest(found: Sequence[tuple[str, Estimate]], logged: Estimate, ax: Any) -> Any:
    """Plot policies' estimates beside what the logging policy earned, for `Evaluation.plot`."""
    if ax is None:
        with named_if_missing():
            import matplotlib.pyplot as plt
        height = 1.3 + 0.45 * len(found)
        _, ax = plt.subplots(figsize=(7.0, height), layout="constrained")
    if logged.value is not None:
        ax.axvline(logged.value, color="C7", linewidth=1.0, zorder=1)
        if logged.interval is not None:
            ax.axvspan(*logged.interval, color="C7", alpha=0.15, linewidth=0, zorder=0)
    for y, (_, estimate) in enumerate(found):
        good = estimate.status == "ok"
        colour = "C0" if good else _DOUBTED
        if estimate.interval is not None:
            ax.hlines(y, *estimate.interval, color=colour, linewidth=2.0, zorder=2)
        if estimate.value is not None:
            fill = colour if good else ax.get_facecolor()
            ax.plot(
                *([estimate.value], [y], "o"),
                **{"color": colour, "markerfacecolor": fill, "markersize": 7, "zorder": 3},
            )
        if not good:
            ax.annotate(
                estimate.status.replace("_", " "),
                (1.0, y),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=_DOUBTED,
            )
    _set_scale(ax, [estimate for _, estimate in found], logged)
    labels = [visible(cut(label, _LABEL)) for label, _ in found]
    ax.set_yticks(range(len(labels)), labels, parse_math=False)  # labels may contain anything
    ax.set_ylim(len(labels) - 0.4, -0.6)  # the first at the top
    ax.set_xlabel(
        f"reward of a ranking, with {100 * logged.level:.4g} % intervals; line: what the"
        " logging policy earned"
    )
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _set_scale(ax: Any, found: Sequence[Estimate], logged: Estimate) -> None:
    """Scale by the reliable estimates; by all, if none is reliable."""
    scaled = [each for each in found if each.status == "ok"] or found
    ends = [
        end
        for each in [*scaled, logged]
        for end in (each.value, *(each.interval or ()))
        if end is not None
    ]
    if ends:
        low, high = min(ends), max(ends)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_xlim(low - margin, high + margin)
