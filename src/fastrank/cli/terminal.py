"""Printing that commands share: consoles, progress, numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastrank.visible import UNSEEN, visible

__all__ = [
    *("PLAIN_WIDTH", "chance", "json_text", "percent", "progress", "say", "for_terminal"),
    "standard_output",
]

PLAIN_WIDTH = 100  # columns if the output is a file or a pipe


def standard_output(record: bool = False) -> Console:
    """The console for results: as wide as the terminal, or `PLAIN_WIDTH` if there is none."""
    console = Console(record=record, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(record=record, highlight=False, emoji=False, width=PLAIN_WIDTH)
    return console


def for_terminal(text: object) -> str:
    """Foreign text (ids, titles, file names) as rich markup that shows exactly that text.

    Brackets are not read as markup, and control characters are escaped.
    """
    return escape(visible(str(text)))


def json_text(value: Any) -> str:
    """JSON in one line; control characters are escaped as JSON does."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(console: Console, paragraph: str) -> None:
    """Print one paragraph with rich's markup; line breaks in the text are ignored."""
    console.print(" ".join(paragraph.split()))
    console.print()


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar on stderr; silent unless stderr is a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        yield bar


def percent(log_probability: float) -> str:
    """Format a probability: 12.3 %, 0.046 %, 3.1e-09."""
    probability = math.exp(log_probability)
    if probability >= 0.1:
        return f"{100 * probability:.1f} %"
    if probability >= 1e-5:
        return f"{100 * probability:.2g} %"
    exponent = log_probability / math.log(10)  # exp() may underflow to 0
    if log_probability == -math.inf:
        return "0"
    return f"{10 ** (exponent - math.floor(exponent)):.1f}e{math.floor(exponent)}"


def chance(log_probability: float) -> str:
    """Format a small probability: 12.3 %, 1 in 9,100, 1 in 2.9e+15."""
    if log_probability > math.log(0.01):
        return percent(log_probability)
    digits = -log_probability / math.log(10)
    if digits > 300:
        return "never" if log_probability == -math.inf else f"1 in 10^{digits:.0f}"
    odds = float(f"{10**digits:.2g}")
    return f"1 in {odds:,.0f}" if odds < 1e9 else f"1 in {odds:.2g}"
