"""Arrow columns as NumPy arrays, without a Python object for each value."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.arraytypes import AnyArray, FloatArray, Hashes, IntArray, Mask
from fastrank.eventlog.hashing import text_hashes
from fastrank.eventlog.schema import IdKind, cast_column
from fastrank.ids import is_compact, text_array

__all__ = [
    "CODED",
    "MAX_PARAMETERS",
    "Lists",
    "Parameters",
    "among",
    "as_utc",
    "booleans",
    "coded",
    "codes_of",
    "floats",
    "integers",
    "is_empty",
    "is_valid",
    "lengths_of",
    "padded_numbers",
    "plain",
    "repeats",
    "rounded",
    "undictionaried",
]


# Columns of a few repeated strings are read as dictionaries, which saves copying hashes of 64
# letters.
CODED = (
    *("writer_id", "policy_name", "seed_source", "model_version", "catalog_version"),
    *("candidate_set_id", "propensity_kind", "reward_kind", "law", "sampler", "item_kind"),
)
MAX_PARAMETERS = 32  # of one law
_MAX_COLUMN_SORT = 16  # places up to which comparing all pairs is faster than sorting


class Lists:
    """A column of lists: all values in one array, and the position of each list in it."""

    def __init__(self, column: pa.ListArray) -> None:
        offsets = column.offsets.to_numpy().astype(np.int64)
        self.n = len(column)
        self.lengths = np.diff(offsets)
        values = column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        self._starts = offsets[:-1] - offsets[0]
        self.is_dense = True
        if column.null_count:
            valid = is_valid(column)
            # The values under a null list are arbitrary.
            self.is_dense = not self.lengths[~valid].any()
            self.lengths = np.where(valid, self.lengths, 0)
        self.values = values
        self.is_null: Mask | None = None
        if values.null_count:
            self.is_null = ~is_valid(values)

    @cached_property
    def flat(self) -> AnyArray:
        """The numbers; null is NaN for floats, -1 for integers."""
        values = self.values
        if values.null_count and pa.types.is_integer(values.type):
            values = values.fill_null(-1)
        flat: AnyArray = values.to_numpy(zero_copy_only=False)
        return flat

    def padded(self, width: int, fill: Any, flat: AnyArray | None = None) -> AnyArray:
        """The lists as rows of (n, width)."""
        flat = self.flat if flat is None else flat
        if self.is_dense and len(flat) == self.n * width and (self.lengths == width).all():
            return flat.reshape(self.n, width)
        out = np.full((self.n, width), fill, flat.dtype)
        inside = np.arange(width) < self.lengths[:, None]
        if self.is_dense:
            out[inside] = flat
        else:
            out[inside] = flat[(self._starts[:, None] + np.arange(width))[inside]]
        return out

    def padded_ids(self, kind: IdKind, width: int) -> tuple[AnyArray, AnyArray, Hashes]:
        """Ids as (n, width), codes that are equal for equal ids, and words.

        A word is the same for an id in every batch, and 0 past the end of a list.

        Text has a fixed width, unless one long id would multiply the memory of all others.
        """
        if kind == "int64":
            ids = self.padded(width, -1)
            words = ids if (self.lengths == width).all() else self.padded(width, 0)
            return ids, ids, words.view(np.uint64)
        encoded = self.values.fill_null("").dictionary_encode()
        names = text_array([*encoded.dictionary.to_pylist(), ""])
        codes = self.padded(width, len(names) - 1, encoded.indices.to_numpy())
        if names.dtype.kind == "U":
            lengths = np.strings.str_len(names)
            widest = int(lengths.max())
            if not is_compact(codes.size, widest, 0) and not is_compact(
                codes.size, widest, int(lengths[codes].sum())
            ):
                names = names.astype(object)
        words = np.append(text_hashes(encoded.dictionary)[:, 0], np.uint64(0))
        return names[codes], codes, words[codes]

    def any_of(self, wrong: Mask | None) -> Mask:
        """Rows whose list has a marked value; `wrong` is as long as `values`."""
        marked = np.zeros(self.n, np.bool_)
        if wrong is not None and self.n:
            places = np.flatnonzero(wrong)
            rows = np.searchsorted(self._starts, places, side="right") - 1
            inside = places < self._starts[rows] + self.lengths[rows]
            marked[rows[inside]] = True
        return marked


class Parameters:
    """A column of laws' parameters: one entry per parameter, ordered by row and name.

    Attributes
    ----------
    rows, places : ndarray of int64, shape (m,)
        Each entry's row, and its index among that row's entries, from 0.
    codes : ndarray of int64, shape (m,)
        Index of its name, -1 without a name.
    names : list of str
        Sorted.
    values : ndarray of float64, shape (m,)
        NaN for null.
    """

    def __init__(self, column: pa.ListArray) -> None:
        lists = Lists(column)
        lengths = lists.lengths
        entries = lists.values
        if not lists.is_dense:
            entries = pc.list_flatten(column)
        codes, names = codes_of(pc.struct_field(entries, "name"))
        values = floats(pc.struct_field(entries, "value"))
        rows = np.repeat(np.arange(len(column)), lengths)
        order = sorted(range(len(names)), key=lambda code: names[code] or "")
        rank = np.empty(len(names) + 1, np.int64)
        rank[order], rank[-1] = np.arange(len(names)), -1
        codes = rank[codes]
        if len(rows) and ((rows[1:] == rows[:-1]) & (codes[1:] < codes[:-1])).any():
            by_name = np.lexsort((codes, rows))
            codes, values = codes[by_name], values[by_name]
        self.rows, self.codes, self.values = rows, codes, values
        self.names = [names[code] or "" for code in order]
        self.places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        self._n = len(column)

    @property
    def repeated(self) -> Mask:
        """Entries (m,) whose name occurred earlier in the row."""
        again = np.zeros(len(self.rows), np.bool_)
        same = (self.rows[1:] == self.rows[:-1]) & (self.codes[1:] == self.codes[:-1])
        again[1:] = same
        return again

    def of(self, name: str) -> FloatArray:
        """The parameter of that name in each row, (n,); NaN in rows without it."""
        result = np.full(self._n, np.nan)
        if name in self.names:
            mine = self.codes == self.names.index(name)
            result[self.rows[mine]] = self.values[mine]
        return result


def repeats(codes: AnyArray, lengths: IntArray, width: int) -> Mask:
    """Rows in which an item is repeated."""
    n = len(codes)
    repeated = np.zeros(n, np.bool_)
    if width <= _MAX_COLUMN_SORT:
        columns = np.ascontiguousarray(codes.T)
        ragged = bool((lengths < width).any())
        for later in range(1, width):
            for earlier in range(later):
                same = columns[later] == columns[earlier]
                if ragged:
                    same &= lengths > later
                repeated |= same
        return repeated
    order = np.sort(codes, axis=1)
    suspects = np.flatnonzero((order[:, 1:] == order[:, :-1]).any(axis=1))
    for row in suspects.tolist():  # padding repeats too
        own = codes[row, : lengths[row]]
        repeated[row] = len(np.unique(own)) < len(own)
    return repeated


def is_valid(column: pa.Array) -> Mask:
    """Whether each value is not null."""
    if not column.null_count:
        return np.ones(len(column), np.bool_)
    valid: Mask = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def is_empty(column: pa.StringArray | pa.DictionaryArray) -> Mask:
    """Whether a text is null or ''."""
    if pa.types.is_dictionary(column.type):
        codes, names = codes_of(column)
        return np.array([not name for name in names] + [True], np.bool_)[codes]
    sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    return np.asarray(sizes == 0, np.bool_)


def lengths_of(column: pa.Array) -> IntArray:
    """Length of each list; 0 for null."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, np.int64)


def as_utc(column: pa.Array) -> pa.Array:
    """Times in microseconds, from timestamps or ISO 8601 text; without a zone if none is stated.

    Raises
    ------
    pyarrow.ArrowInvalid
        If a text is not a time; quotes the text.
    """
    if pa.types.is_string(column.type):
        # Nanoseconds, as pyarrow writes them from a Parquet file to CSV, are cut to microseconds.
        column = pc.replace_substring_regex(column, r"(\.\d{6})\d{1,3}", r"\1")
        zoned = pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")
        if pc.all(zoned).as_py():
            column = column.cast(pa.timestamp("us", tz="UTC"))
        else:
            column = column.cast(pa.timestamp("us"))
    return column.cast(pa.timestamp("us", tz=column.type.tz), safe=False)


def integers(column: pa.Array, null: int = -1) -> IntArray:
    """Int64, `null` for null."""
    if column.null_count:
        column = pc.fill_null(column.cast(pa.int64()), null)
    return np.asarray(column.to_numpy(zero_copy_only=False), np.int64)


def floats(column: pa.Array) -> FloatArray:
    """Float64, NaN for null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def booleans(column: pa.BooleanArray) -> Mask:
    """Bool, False for null."""
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), np.bool_)


def among(column: pa.StringArray | pa.DictionaryArray, words: Sequence[str]) -> Mask:
    """Whether each text is one of the words; null is not."""
    codes, names = codes_of(column)
    return np.array([name in words for name in names] + [False], np.bool_)[codes]


def codes_of(
    column: pa.StringArray | pa.DictionaryArray,
) -> tuple[IntArray, list[str]]:
    """A number for each distinct text, -1 for null, and the texts."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes, names = integers(encoded.indices), encoded.dictionary.to_pylist()
    if None in names:
        codes = np.where(codes == names.index(None), -1, codes)
    return codes, names


def coded(name: str, column: pa.Array) -> pa.DictionaryArray:
    """A column of repetitive strings as a dictionary; ValueError for another type."""
    if not pa.types.is_dictionary(column.type):
        column = cast_column(name, column, pa.string()).dictionary_encode()
    column.validate(full=True)  # UTF-8 and indices, which Parquet promises but does not check
    texts = column.dictionary
    if not pa.types.is_string(texts.type):
        column = pa.DictionaryArray.from_arrays(
            column.indices, cast_column(name, texts, pa.string())
        )
    return column


def undictionaried(column: pa.Array) -> pa.Array:
    """A column with its dictionary, if any, expanded."""
    is_coded = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if is_coded else column


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with its dictionaries expanded."""
    columns = [undictionaried(column) for column in batch.columns]
    fields = [
        pa.field(own.name, column.type) for own, column in zip(batch.schema, columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(
        columns, schema=pa.schema(fields, metadata=batch.schema.metadata)
    )


def rounded(values: FloatArray) -> FloatArray:
    """Round to about 12 significant digits, so that t * u / u equals t."""
    bits = values.view(np.int64)
    if len(values) > 1 and (bits == bits[0]).all():
        return np.repeat(rounded(values[:1]), len(values))
    with np.errstate(all="ignore"):
        scale = 10.0 ** (11 - np.floor(np.log10(np.abs(values))))
        near = np.round(values * scale) / scale
    return np.where(np.isfinite(near), near, values) + 0.0


def padded_numbers(column: pa.Array, width: int, beyond: Mask | None) -> FloatArray:
    """Numbers as (n,), or lists of numbers as (n, width), 0 where `beyond`; NaN for null."""
    if not pa.types.is_nested(column.type):
        return floats(column)
    wanted = pa.list_(pa.float64())
    lists = Lists(column if column.type.equals(wanted) else column.cast(wanted))
    values: FloatArray = lists.padded(width, np.nan)
    return values if beyond is None else np.where(beyond, 0.0, values)
