"""The plan as a web page: one file that loads nothing, in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import Any

from fastrank.cli.planwords import (
    KINDS,
    WORDS,
    describe,
    parameter,
    question,
    share_text,
    solution_text,
)
from fastrank.page import render
from fastrank.plan import Plan, Point, Share, Solution

__all__ = ["page"]

_DECADES = 6  # ESS shares below 1e-6 are drawn at the bottom
_Place = Callable[[float], float]


def page(found: Plan, solutions: Sequence[Solution], model: str) -> str:
    """Render a plan as HTML.

    Parameters
    ----------
    found : Plan
    solutions : sequence of Solution
    model : str
        The model's name on the page.

    Returns
    -------
    str
    """
    return render(
        "plan.html",
        model=model,
        plan=found,
        described=describe(found),
        words=WORDS,
        kinds=[(kind, name) for kind, (name, _, _) in KINDS.items() if found.of_kind(kind)],
        short=_in_short(found),
        answers=[
            (asked, [solution_text(found, solution) for solution in group])
            for asked, group in groupby(
                sorted(solutions, key=lambda each: (each.figure == "ess", question(each))),
                key=question,
            )
        ],
        trade_off=_trade_off(found),
        panels=[
            (label, [(prefix, _shares(found, label, prefix)) for prefix in found.prefixes])
            for label in found.targets
        ],
        tables=[_table(found, point_kind) for point_kind in KINDS if found.of_kind(point_kind)],
    )


def _in_short(found: Plan) -> list[str]:
    """The cost of each kind of policy where about four fifths of the ranking are kept."""
    lines = []
    for kind, (name, _, _) in KINDS.items():
        points = found.of_kind(kind)
        if points:
            point = min(points, key=lambda each: abs(each.overlap - 0.8))
            lines.append(
                f"{name}, {KINDS[kind][1]} {parameter(point)}: keeps {point.overlap:.0%} of the"
                f" ranking ({point.overlap_low:.0%} to {point.overlap_high:.0%} for the middle four"
                f" fifths of the users) and loses {point.relative_loss:.1%} of the score"
            )
    return lines


def _table(found: Plan, kind: Any) -> dict[str, Any]:
    points = found.of_kind(kind)
    labels = [label for label in found.targets if points[0].share(label, found.prefixes[0])]
    return {
        "name": KINDS[kind][0],
        "noun": KINDS[kind][1],
        "labels": labels,
        "rows": [
            [
                parameter(point),
                f"{point.overlap:.1%}",
                f"{point.overlap_low:.0%} to {point.overlap_high:.0%}",
                f"{point.relative_loss:.2%}",
                f"{point.perplexity:,.1f}",
                *(
                    share_text(point.share(label, prefix))
                    for label in labels
                    for prefix in found.prefixes
                ),
            ]
            for point in points
        ],
    }


# ---- Pictures -------------------------------------------------------------------------------


def _trade_off(found: Plan) -> str:
    """Loss over overlap."""

    def tip(point: Point) -> str:
        name, noun, _ = KINDS[point.kind]
        return (
            f"{name}, {noun} {parameter(point)}: overlap {point.overlap:.1%},"
            f" loss {point.relative_loss:.2%}, perplexity {point.perplexity:,.1f}"
        )

    box = _Box(660, 340, left=52, bottom=44)
    parts = box.axes(
        [(i / 5, f"{100 - 20 * i} %") for i in range(6)],
        [(i / 4, f"{25 * i} %") for i in range(5)],
        "overlap with the deterministic ranking",
        "loss of score",
    )
    for kind in KINDS:
        dots = [
            (1.0 - point.overlap, min(max(point.relative_loss, 0.0), 1.0), tip(point), True)
            for point in found.of_kind(kind)
        ]
        parts += box.series(kind, dots)
    return box.svg(parts, "Loss of score over overlap, for each kind of policy")


def _shares(found: Plan, label: str, prefix: int) -> str:
    """ESS share over overlap, in decades."""

    def height(share: Share) -> float:
        decades = -math.log10(share.share) if share.share > 0.0 else math.inf
        return 1.0 - min(decades, _DECADES) / _DECADES

    def tip(point: Point, share: Share) -> str:
        name, noun, _ = KINDS[point.kind]
        return (
            f"{name}, {noun} {parameter(point)}: overlap {point.overlap:.1%},"
            f" ESS share {share_text(share)}"
        )

    box = _Box(236, 170, left=44, bottom=24)
    parts = box.axes(
        [(0.0, "100 %"), (0.5, "50 %"), (1.0, "0 %")],
        [(1.0 - d / _DECADES, text) for d, text in ((0, "100 %"), (2, "1 %"), (4, "0.01 %"))]
        + [(0.0, f"< 1e-{_DECADES}")],
    )
    for kind in KINDS:
        pairs = [(point, point.share(label, prefix)) for point in found.of_kind(kind)]
        dots = [
            (1.0 - point.overlap, height(share), tip(point, share), share.trusted)
            for point, share in pairs
            if share is not None
        ]
        parts += box.series(kind, dots)
    return box.svg(parts, f"ESS share for {label} at {prefix} places, over overlap")


class _Box:
    """A plot of the unit square, as SVG in the page's colours."""

    def __init__(self, width: int, height: int, left: int, bottom: int) -> None:
        self.width, self.height, self.left, self.bottom = width, height, left, bottom
        self.right, self.top = 14, 12

    def x(self, share: float) -> float:
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: float) -> float:
        return self.height - self.bottom - share * (self.height - self.bottom - self.top)

    def axes(
        self,
        ticks_x: Sequence[tuple[float, str]],
        ticks_y: Sequence[tuple[float, str]],
        title_x: str = "",
        title_y: str = "",
    ) -> list[str]:
        left, right, low, high = self.x(0), self.x(1), self.y(0), self.y(1)
        parts = []
        for at, text in ticks_y:
            y = self.y(at)
            parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
            parts.append(
                f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
            )
        for at, text in ticks_x:
            x = self.x(at)
            parts.append(f'<path class="grid" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
            anchor = "start" if at == 0.0 else "end" if at == 1.0 else "middle"
            parts.append(
                f'<text x="{x:.1f}" y="{low + 16:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
            )
        if title_x:
            middle = (left + right) / 2
            parts.append(
                f'<text x="{middle:.1f}" y="{self.height - 6}" text-anchor="middle">'
                f"{escape(title_x)}</text>"
            )
        if title_y:
            parts.append(f'<text x="{left + 6:.1f}" y="{high + 14:.1f}">{escape(title_y)}</text>')
        return parts

    def series(self, kind: str, dots: Sequence[tuple[float, float, str, bool]]) -> list[str]:
        """A line with dots (x, y, tooltip, whether the figure is reliable)."""
        if not dots:
            return []
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y, _, _ in dots)
        parts = [f'<path class="line {kind}" d="M{path}"/>']
        for x, y, text, trusted in dots:
            parts.append(
                f'<circle class="{kind}{"" if trusted else " open"}" cx="{self.x(x):.1f}"'
                f' cy="{self.y(y):.1f}" r="3.2"><title>{escape(text)}</title></circle>'
            )
        return parts

    def svg(self, parts: Sequence[str], title: str) -> str:
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img"'
            f' aria-label="{escape(title)}">{"".join(parts)}</svg>'
        )
