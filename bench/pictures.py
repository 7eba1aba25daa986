"""The pictures of docs/speed.md, drawn by matplotlib from a `Growth`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from benchmarks import calls
from growth import BATCHED, FLAT, LINES, OURS, PEERS, SCANNED, STEEP, Growth
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from style import FONT, STYLE, canvas

__all__ = ["draw"]


def draw(growth: Growth, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "speed-n": by_size_picture,
        "speed-floor": floor_picture,
        "speed-k": k_picture,
        "speed-d": dim_picture,
        "speed-batch": batch_picture,
        "speed-textbook": textbook_picture,
    }
    with matplotlib.rc_context(STYLE):
        for name, picture in pictures.items():
            picture(growth).savefig(folder / f"{name}.svg", metadata={"Date": None})


def plot(
    axes: Axes,
    growth: Growth,
    patterns: Mapping[str, str],
    cases: Sequence[int],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Lines by contender, logarithmic both ways, each named at its end, with a note."""
    ends = []
    for name, pattern in patterns.items():
        x, y = growth.series(pattern, cases)
        if not x:
            continue
        line = LINES[name]
        axes.plot(
            x,
            y,
            line.style,
            color=line.colour,
            marker=line.marker,
            markersize=5,
            linewidth=line.width,
        )
        ends.append((x[-1], y[-1], line.text + (notes or {}).get(name, ""), line.colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(cases, [short(case) for case in cases])
    low, high = axes.get_ylim()
    steps = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.minorticks_off()
    axes.set_ylabel("milliseconds")
    name_ends(axes, ends)


def name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside the lines' ends (x, y, text, colour), moved apart where they would touch."""
    ends = sorted(ends, key=lambda end: end[1])
    low, high = (math.log(limit) for limit in axes.get_ylim())
    places = np.array([(math.log(y) - low) / (high - low) for _, y, _, _ in ends])
    figure = axes.get_figure(root=True)
    assert figure is not None
    line = 1.5 * FONT / 72 / (figure.get_figheight() / len(figure.axes) - 0.9)
    lines = np.array([1 + text.count("\n") for _, _, text, _ in ends])
    gaps = line * (lines[1:] + lines[:-1]) / 2
    for _ in range(1000):
        overlaps = np.maximum(gaps - np.diff(places), 0.0) / 2
        places[:-1] -= overlaps
        places[1:] += overlaps
        places = np.clip(places, 0.0, 1.0)
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.05, place),
            textcoords="axes fraction",
            color=colour,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def short(number: int) -> str:
    """1,000 as 1k."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{letter}"
    return f"{number}"


def by_size_picture(growth: Growth) -> Figure:
    figure, (axes,) = canvas(5.2)
    # Of NumPy's and XLA's the better sampler; the table has the others.
    names = [*OURS, *calls.FAISS, "numpy gumbel", "jax gumbel", *calls.READS]
    plot(axes, growth, {name: f"{{}}: {name}" for name in names}, growth.sizes)
    axes.set_title("One ranking of 10 items, one core")
    axes.set_xlabel("items in the catalog, d = 64")
    return figure


def floor_picture(growth: Growth) -> Figure:
    """A row for each contender: its time over that of reading the float32 matrix."""
    names = dict.fromkeys([*SCANNED, *PEERS])
    found = [(growth.value(f"{growth.large}: {name} / read"), name) for name in names]
    rows = sorted(((value, name) for value, name in found if value is not None), reverse=True)
    figure, (axes,) = canvas(1.3 + 0.34 * len(rows))
    quarter = growth.value(f"{growth.large}: read int8 / read")
    for name, at in (("read", 1.0), ("read int8", quarter)):
        if at is not None:
            axes.axvline(at, color=LINES[name].colour, linestyle=":", linewidth=1.2)
            axes.annotate(LINES[name].text, (at, len(rows) - 0.4), ha="center", va="bottom")
    for y, (value, name) in enumerate(rows):
        colour = LINES[name].colour
        axes.plot(value, y, marker="o", color=colour, markersize=9)
        axes.annotate(
            f"{value:.2f}",
            (value, y),
            xytext=(9, -0.5),
            textcoords="offset points",
            va="center",
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    ticks = [0.25, 0.5, 1, 2, 4, 8]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.18, max([6.0, *[2.0 * value for value, _ in rows]]))
    axes.set_yticks(range(len(rows)), [LINES[name].text for _, name in rows])
    for label, (_, name) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(LINES[name].colour)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_title(f"One ranking of 10 items, n = {growth.large:,}", pad=24)
    axes.set_xlabel("time / that of reading the float32 matrix")
    return figure


def k_picture(growth: Growth) -> Figure:
    figure, (axes,) = canvas(4.2)
    patterns = {name: f"{growth.middle}, k = {{}}: {name}" for name in SCANNED}
    plot(axes, growth, patterns, growth.ks)
    axes.set_title(f"One ranking of k items, n = {growth.middle:,}")
    axes.set_xlabel("k, items in the ranking")
    return figure


def dim_picture(growth: Growth) -> Figure:
    figure, (axes,) = canvas(4.2)
    names = [*OURS, "faiss flat", *calls.READS]
    patterns = {name: f"{growth.middle}, d = {{}}: {name}" for name in names}
    plot(axes, growth, patterns, growth.dims)
    axes.set_title(f"One ranking of 10 items, n = {growth.middle:,}")
    axes.set_xlabel("d, length of a vector")
    return figure


def batch_picture(growth: Growth) -> Figure:
    sizes = list(dict.fromkeys((growth.middle, growth.large)))
    figure, panels = canvas(3.8 * len(sizes), panels=len(sizes))
    for axes, n in zip(panels, sizes, strict=True):
        patterns = {name: f"{n}, batch {{}}: {name}" for name in BATCHED}
        plot(axes, growth, patterns, growth.users, {"faiss flat": "\nas installed"})
        axes.set_title(f"Each user's ranking in a batch, n = {n:,}")
        axes.set_xlabel("users in the batch")
    return figure


def textbook_picture(growth: Growth) -> Figure:
    """Growth with n, and with k: the fitted powers beside the names."""
    figure, (upper, lower) = canvas(7.6, panels=2)
    sweeps = [
        (upper, "{}: ", growth.usual, growth.scans(), "n"),
        (lower, f"{growth.small}, k = {{}}: ", growth.ks, growth.ks, "k"),
    ]
    for axes, where, cases, fitted, letter in sweeps:
        patterns = {name: where + name for name in ["gumbel", "sequential", *STEEP]}
        slopes = {name: growth.slope(pattern, fitted) for name, pattern in patterns.items()}
        notes = {
            name: f"\n$\\propto\\,{letter}^{{{slope:.2f}}}$" if abs(slope) >= FLAT else "\nflat"
            for name, slope in slopes.items()
            if slope is not None
        }
        plot(axes, growth, patterns, cases, notes)
    upper.set_title("One ranking of 10 items")
    upper.set_xlabel("items in the catalog")
    lower.set_title(f"One ranking of k items, n = {growth.small:,}")
    lower.set_xlabel("k, items in the ranking")
    return figure
