"""Convert results to tables of pandas and Arrow, to JSON's types, and to HTML for notebooks.

Results import this module on demand, and it imports libraries on demand, so that `import fastrank`
loads neither.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray
from fastrank.extras import named_if_missing
from fastrank.visible import visible

__all__ = [
    *("Columns", "as_arrow", "as_html", "as_pandas", "bracketed", "cut", "floats", "number"),
    *("plain", "said_in_a_line"),
]

Columns: TypeAlias = Mapping[str, npt.NDArray[Any] | Sequence[Any]]

_MOST_ROWS = 20  # of a table in a notebook
_MOST_TEXT = 60  # characters of a text in such a table: an id may have 1,024
_MOST_NOTE = 1000
_MOST_LINE = 100  # of a part of a repr
# Colours are inherited from the page, so that tables are readable in light and dark themes.
_STYLE = (
    ".fastrank table{border-collapse:collapse;margin:.3em 0}"
    ".fastrank caption{caption-side:top;text-align:left;color:inherit;padding:0 0 .4em}"
    ".fastrank th,.fastrank td{padding:.2em .8em;text-align:left;white-space:nowrap;"
    "unicode-bidi:isolate}"
    ".fastrank thead th{border-bottom:1px solid currentColor}"
    ".fastrank .n{text-align:right;font-variant-numeric:tabular-nums}"
    ".fastrank p{margin:.3em 0;max-width:60em;opacity:.75}"
)


def as_pandas(columns: Columns) -> Any:
    """Make a pandas.DataFrame; a ModuleNotFoundError says what to install."""
    with named_if_missing():
        import pandas as pd
    return pd.DataFrame({name: _texts(values) for name, values in columns.items()})


def as_arrow(columns: Columns) -> Any:
    """Make a pyarrow.Table, with null for NaN; a ModuleNotFoundError says what to install."""
    with named_if_missing():
        import pyarrow as pa
    return pa.table(
        {name: pa.array(_texts(values), from_pandas=True) for name, values in columns.items()}
    )


def _texts(values: npt.NDArray[Any] | Sequence[Any]) -> npt.NDArray[Any] | Sequence[Any]:
    """Convert NumPy's text to plain str, which every library accepts and stores compactly."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        texts: list[str] = values.tolist()
        return texts
    return values


def floats(values: Iterable[float | None]) -> FloatArray:
    """Make a column of numbers, with NaN for None."""
    return np.array([math.nan if value is None else value for value in values], np.float64)


def plain(value: Any) -> Any:
    """Convert a value to JSON's types: lists, dicts by str, and Python's own numbers.

    NaN and infinity, which JSON lacks, become None.

    Examples
    --------
    >>> plain({"a": (np.float32(0.5), np.nan), 1: np.arange(2)})
    {'a': [0.5, None], '1': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def as_html(
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    n_rows: int,
    *,
    figures: Collection[str] = (),
    unit: str = "rows",
    most: int = _MOST_ROWS,
    notes: Sequence[str] = (),
) -> str:
    """Make an HTML table for a notebook: escaped, and of bounded size for results of any length.

    Parameters
    ----------
    title : str
    head : sequence of str
    rows : iterable of sequence of str
        Cells; at most `most` rows are used.
    n_rows : int
        Number of all rows.
    figures : collection of str
        Columns of numbers, which are aligned to the right.
    unit : str
        What a row is, for the line with the number of further rows.
    most : int
    notes : sequence of str
        Paragraphs below the table.

    Examples
    --------
    >>> as_html("<ids>", ["id"], [["a&b"]], 1).partition("<caption>")[2]
    '&lt;ids&gt;</caption><thead><tr><th>id</th></tr></thead><tbody><tr><td>a&amp;b</td></tr></tbody></table></div>'
    """
    classes = [' class="n"' if name in figures else "" for name in head]

    def line(tag: str, cells: Sequence[str]) -> str:
        inner = (
            f"<{tag}{kind}>{_shown(cell)}</{tag}>"
            for kind, cell in zip(classes, cells, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line("td", row) for row in islice(rows, most))
    left = [f"{n_rows - most:,} more {unit}"] if n_rows > most else []
    below = "".join(f"<p>{escape(visible(cut(note, _MOST_NOTE)))}</p>" for note in [*left, *notes])
    return (
        f'<div class="fastrank"><style>{_STYLE}</style><table><caption>{escape(visible(title))}'
        f"</caption><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>{below}</div>"
    )


def _shown(text: str) -> str:
    return escape(visible(cut(text, _MOST_TEXT)))


def cut(text: str, most: int = _MOST_LINE) -> str:
    """Cut a text to at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def said_in_a_line(value: object) -> str:
    """Return the repr of any value, such as a user's own policy, cut to one line."""
    return cut(" ".join(repr(value).split()))


def bracketed(text: str, is_result: bool) -> str:
    """Put a figure that is not a result into brackets.

    Examples
    --------
    >>> bracketed("0.31", True), bracketed("0.31", False), bracketed(number(None), False)
    ('0.31', '(0.31)', '–')
    """
    return text if is_result or text in ("", number(None)) else f"({text})"


def number(value: float | None, sign: str = "") -> str:
    """Format a figure for reading; a dash for None.

    Examples
    --------
    >>> number(0.0512345), number(None), number(0.2, "+")
    ('0.05123', '–', '+0.2')
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:{sign}.4g}"
