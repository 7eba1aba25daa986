"""How pictures of measurements look, those of docs/speed.md and of others."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["FONT", "STYLE", "canvas"]

FONT = 11.0  # points
_WIDTH = 7.2  # inches

STYLE: dict[Any, Any] = {
    "font.size": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "axes.titlesize": FONT + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "svg.hashsalt": "fastrank",  # the same data draw the same file
}


def canvas(height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Panels one above the other: pictures are to be read at half the width of a page, too."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(panels, 1, squeeze=False)[:, 0])
