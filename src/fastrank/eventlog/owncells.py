"""Cells of a foreign table as texts, numbers and times, with the invalid ones marked."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.arraytypes import FloatArray, Mask
from fastrank.eventlog.columns import floats, is_valid

__all__ = ["TIME", "as_numbers", "as_texts", "as_times", "is_whole"]

TIME = pa.timestamp("us", tz="UTC")

_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity|nan)$"
_MONTHS = (
    r"(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])",
    r"(?:0[469]|11)-(?:0[1-9]|[12]\d|30)",
    r"02-(?:0[1-9]|1\d|2[0-8])",
)
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DAY = rf"(?:\d{{4}}-(?:{'|'.join(_MONTHS)})|{_LEAP_YEAR}-02-29)"
_CLOCK = r"(?:[01]\d|2[0-3])(?::[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?)?"
_ZONE = r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_TIME = rf"^{_DAY}(?:[T ]{_CLOCK}{_ZONE}?)?$"
_ZONED = rf"[T ]{_CLOCK}{_ZONE}$"
_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# In seconds since 1970: the range of Python's calendar.
_FIRST = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_END = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) + 86_400


def is_whole(numbers: FloatArray) -> Mask:
    """Which numbers are integers that float64 represents exactly."""
    inside = np.abs(numbers) < 2.0**53
    return np.asarray(inside & (np.floor(np.where(inside, numbers, 0.0)) == numbers))


def as_texts(values: pa.Array) -> pa.Array:
    """Ids as texts; floats that are whole, as integers with missing values become, as integers."""
    if pa.types.is_list(values.type):
        mask = values.is_null() if values.null_count else None
        texts = as_texts(values.flatten())
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), texts, mask=mask)
    if pa.types.is_floating(values.type):
        numbers = floats(values)
        plain = is_whole(numbers)
        whole = pa.array(np.where(plain, numbers, 0.0).astype(np.int64)).cast(pa.string())
        text = pa.array(numbers, from_pandas=True).cast(pa.string())
        return pc.if_else(pa.array(plain), whole, text)
    return values.cast(pa.string())


def as_numbers(texts: pa.Array) -> tuple[pa.Array, Mask]:
    """Texts as float64, and which of them are not numbers, and null here.

    ``true`` and ``false``, in any case, are 1 and 0, as other programs write booleans.
    """
    plain = pc.utf8_trim_whitespace(texts)
    words = pc.utf8_lower(plain)
    for word, number in (("true", "1"), ("false", "0")):
        plain = pc.if_else(pc.equal(words, word), number, plain)
    right = pc.match_substring_regex(plain, _NUMBER)
    numbers = pc.if_else(right, plain, None).cast(pa.float64())
    return numbers, np.asarray(is_valid(texts) & ~is_valid(numbers))


def as_times(values: pa.Array) -> tuple[pa.Array, Mask, int]:
    """Times in UTC, from timestamps, dates or ISO 8601 texts; those without a zone are UTC.

    Returns
    -------
    times : pyarrow.Array of timestamp[us, tz=UTC]
        Null for null, '', and values that are not times or outside of the years 1 to 9999.
    wrong : ndarray of bool
        Which of the values are not times.
    unzoned : int
        How many times have no zone.
    """
    kind = values.type
    if pa.types.is_null(kind):
        return values.cast(TIME), np.zeros(len(values), np.bool_), 0
    if pa.types.is_string(kind):
        there = pc.fill_null(pc.not_equal(values, ""), False).to_numpy(zero_copy_only=False)
        times, unzoned = _of_texts(values)
    else:
        there = is_valid(values)
        if pa.types.is_date(kind):
            values = values.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms"))
        unzoned = len(values) - values.null_count if values.type.tz is None else 0
        times = values
    numbers, second = times.cast(pa.int64()), _SECOND[times.type.unit]
    low, end = max(_FIRST * second, -(2**63)), min(_END * second, 2**63)
    inside = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, end - 1))
    numbers = pc.if_else(inside, numbers, None)
    times = numbers.cast(pa.timestamp(times.type.unit, tz="UTC")).cast(TIME, safe=False)
    return times, np.asarray(there & ~is_valid(times)), unzoned


def _of_texts(texts: pa.Array) -> tuple[pa.Array, int]:
    """Times, and how many have no zone."""
    # As BigQuery writes them; and nanoseconds, as pyarrow does. Microseconds are kept.
    texts = pc.replace_substring_regex(texts, r" ?UTC$", "Z")
    texts = pc.if_else(pc.match_substring_regex(texts, _TIME), texts, None)
    texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d{1,3}", r"\1")
    zoned = pc.match_substring_regex(texts, _ZONED)
    unzoned = int(pc.sum(pc.invert(zoned)).as_py() or 0)
    naive = pc.if_else(zoned, None, texts).cast(pa.timestamp("us")).cast(pa.int64())
    aware = pc.if_else(zoned, texts, None).cast(TIME).cast(pa.int64())
    return pc.coalesce(aware, naive).cast(TIME), unzoned
