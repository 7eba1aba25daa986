"""The picture of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrank.extras import named_if_missing
from fastrank.frames import cut
from fastrank.plan.points import Kind, Point
from fastrank.visible import visible

__all__ = ["trade_off"]

_LEAST = 1e-6  # smaller ESS shares are drawn at this value
_LABEL = 40  # characters
_KINDS: dict[Kind, str] = {
    "temperature": "one temperature for all",
    "user_temperature": "each user's own temperature",
    "epsilon": "epsilon-greedy",
}
_STYLES = ("-", "--", ":", "-.")


def trade_off(points: Sequence[Point], targets: Sequence[str], k: int, axes: Any) -> Any:
    """Plot what policies cost and what their logs are worth, for `Plan.plot`."""
    if axes is None:
        with named_if_missing():
            import matplotlib.pyplot as plt
        _, axes = plt.subplots(1, 2, figsize=(10.0, 4.2), layout="constrained")
    cost, worth = axes
    for number, (kind, name) in enumerate(_KINDS.items()):
        mine = sorted((p for p in points if p.kind == kind), key=lambda point: -point.overlap)
        if not mine:
            continue
        colour = f"C{number}"
        overlaps = [point.overlap for point in mine]
        losses = [point.relative_loss for point in mine]
        cost.plot(overlaps, losses, "o-", color=colour, markersize=4, label=name)
        for target, style in zip(targets, _STYLES * len(targets), strict=False):
            pairs = [(point.overlap, point.share(target, k)) for point in mine]
            known = [(overlap, share) for overlap, share in pairs if share is not None]
            if not known:
                continue
            x = [overlap for overlap, _ in known]
            y = [max(share.share, _LEAST) for _, share in known]
            worth.plot(x, y, style, color=colour, linewidth=1.2)
            for trusted in (True, False):
                at = [i for i, (_, share) in enumerate(known) if share.trusted == trusted]
                fill = colour if trusted else worth.get_facecolor()
                worth.plot(
                    *([x[i] for i in at], [y[i] for i in at], "o"),
                    **{"color": colour, "markerfacecolor": fill, "markersize": 4},
                )
    for target, style in zip(targets, _STYLES * len(targets), strict=False):
        worth.plot([], [], style, color="C7", label=f" {visible(cut(target, _LABEL))}")
    cost.set_ylabel("loss of score")
    cost.yaxis.set_major_formatter("{x:.0%}")
    worth.set_yscale("log")
    worth.set_ylim(_LEAST / 1.5, 1.5)
    worth.set_ylabel(f"ESS share by {k} places")
    for each in (cost, worth):
        each.set_xlim(1.02, -0.02)  # the more it explores, the further to the right
        each.xaxis.set_major_formatter("{x:.0%}")
        each.set_xlabel("overlap with the deterministic ranking")
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
        if each.get_legend_handles_labels()[1]:
            for text in each.legend(frameon=False, fontsize="small").get_texts():
                text.set_parse_math(False)  # names of targets may contain any characters
    return axes
