"""Results as tables of pandas and Arrow, in JSON's types, and as a notebook shows them.

Results import this when they are asked for one of these, and it imports a library when that is what
is wanted: `import fastrank` loads neither.
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
_MOST_TEXT = 60  # characters of a text there: an id may have 1,024
_MOST_NOTE = 1000
_MOST_LINE = 100  # of a part of a repr
# Colours are those of the page around it, so that it is read in light and in dark.
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
    """A pandas.DataFrame; a ModuleNotFoundError says what to install."""
    with named_if_missing():
        import pandas as pd
    return pd.DataFrame({name: _texts(values) for name, values in columns.items()})


def as_arrow(columns: Columns) -> Any:
    """A pyarrow.Table, where NaN is null; a ModuleNotFoundError says what to install."""
    with named_if_missing():
        import pyarrow as pa
    return pa.table(
        {name: pa.array(_texts(values), from_pandas=True) for name, values in columns.items()}
    )


def _texts(values: npt.NDArray[Any] | Sequence[Any]) -> npt.NDArray[Any] | Sequence[Any]:
    """Text of NumPy's as plain str: every library takes those, and at their own length."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        texts: list[str] = values.tolist()
        return texts
    return values


def floats(values: Iterable[float | None]) -> FloatArray:
    """A column of numbers, NaN for None."""
    return np.array([math.nan if value is None else value for value in values], np.float64)


def plain(value: Any) -> Any:
    """A value in JSON's types: lists, dicts by str, Python's own numbers; None for NaN and
    infinity, which JSON has not.

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
    """A table for a notebook: escaped, and of bounded size however long the result is.

    Parameters
    ----------
    title : str
    head : sequence of str
    rows : iterable of sequence of str
        Cells, of which no more than `most` rows are taken.
    n_rows : int
        How many there are.
    figures : collection of str
        Columns of numbers, which stand at the right.
    unit : str
        What a row is, for the line that says how many more there are.
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
    """A text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def said_in_a_line(value: object) -> str:
    """The repr of a stranger's value, of a policy of their own say, in a line and cut."""
    return cut(" ".join(repr(value).split()))


def bracketed(text: str, is_result: bool) -> str:
    """A figure that is no result does not look like one.

    Examples
    --------
    >>> bracketed("0.31", True), bracketed("0.31", False), bracketed(number(None), False)
    ('0.31', '(0.31)', '–')
    """
    return text if is_result or text in ("", number(None)) else f"({text})"


def number(value: float | None, sign: str = "") -> str:
    """A figure for reading; a dash where there is none.

    Examples
    --------
    >>> number(0.0512345), number(None), number(0.2, "+")
    ('0.05123', '–', '+0.2')
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:{sign}.4g}"
