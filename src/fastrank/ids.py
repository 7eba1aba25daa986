"""Identifiers, int64 or str: which values are accepted as ids, and how ids are looked up.

docs/reference/ids.md has the table of what is accepted. Look-up uses a sorted permutation, which
can be saved and mapped; a dict of a million ids would take 106 MB in each process. Many ids at once
are looked up instead by one pass over all ids, against a hash table of those wanted.
"""

from __future__ import annotations

import operator
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import IdArray, IntArray, Positions
from fastrank.inputs import as_column, shown

__all__ = [
    "MAX_LENGTH",
    "PADDING",
    "IdIndex",
    "Ids",
    "ItemIds",
    "Listed",
    "Lookup",
    "UniqueIds",
    "as_id",
    "as_ids",
    "as_written",
    "id_from_text",
    "ids_from_text",
    "ids_of",
    "integer",
    "is_compact",
    "listed",
    "plain_id",
    "split_ids",
    "text_array",
]

Ids: TypeAlias = Iterable[int] | Iterable[str] | npt.NDArray[Any]  # what callers may pass
Listed: TypeAlias = IdArray | list[str]  # what `listed` returns

# Characters of an id. A UUID has 36, a SHA-512 in hex 128, an S3 key up to 1,024.
MAX_LENGTH = 1_024
# Texts are stored at the width of the longest, so one long id makes all of them wider. Up to
# _ALLOWANCE bytes this is accepted; beyond it, up to PADDING times the bytes of the ids themselves.
_ALLOWANCE = 64 << 20
PADDING = 16
# A pass over n ids costs about as much as n / 100 binary searches among them.
_SEARCHES = 100
# Texts that an integer in decimal can begin with.
_BEGINS = re.compile(r"-?([1-9][0-9]{0,18})?|0", re.ASCII)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
# The key is random, so that nobody can choose ids that collide in the hash table of a look-up.
_HASH_KEY = int.from_bytes(os.urandom(8), "little")


# ---- Which values are ids -------------------------------------------------------------------


def as_id(name: str, value: object) -> int | str:
    """Return one id as a plain int or str; enums and other subclasses of these give their value.

    Examples
    --------
    >>> as_id("user_id", np.int32(7)), as_id("user_id", np.str_("ann"))
    (7, 'ann')
    """
    plain = plain_id(value)
    if plain is None:
        raise ValueError(f"{name}: {_no_id(value)}")
    return plain


def listed(name: str, values: Ids, *, ordered: bool = False) -> IdArray | list[str]:
    """Check ids and return them as an array of int64, an array of str, or a list of plain str.

    A list of str stays a list: an array would be as wide as the longest text, which may be costly.
    With `ordered`, containers without an order, such as sets, are refused.

    Parameters
    ----------
    name : str
        The argument they came from, for errors.
    values : array_like of ids
    ordered : bool
        Whether the order of the ids matters to the caller.

    Examples
    --------
    >>> listed("exclude", [3, 1]), listed("exclude", ["b", "ann"])
    (array([3, 1]), ['b', 'ann'])
    """
    try:
        column = as_column(name, values, "an array of ids", ordered=ordered)
    except ValueError:
        own = [each for each in ("user_ids", "item_ids") if hasattr(type(values), each)]
        if not own:
            raise
        what = type(values).__name__
        raise ValueError(
            f"{name}: expected an array of ids, got a {what}; pass its {own[0]}"
        ) from None
    if not isinstance(column, np.ndarray):
        return _of_list(name, column)
    if column.ndim > 1:
        raise ValueError(
            f"{name}: expected one dimension, got shape {column.shape}; pass one column of it"
        )
    kind = column.dtype.kind
    if column.size == 0 and kind not in "iU":  # an empty list has no dtype of its own
        return np.empty(0, np.int64)
    if kind in "OT":
        return _of_list(name, column.tolist())
    if kind == "u":
        if int(column.max()) > _HIGHEST:
            row = int(np.flatnonzero(column > _HIGHEST)[0])
            raise ValueError(f"{name}: row {row}: {_too_large(column[row])}")
        return column.astype(np.int64)
    if kind == "i":
        return np.ascontiguousarray(column, dtype=np.int64)
    if kind == "U":
        return column
    if kind == "f" and np.isnan(column).any():  # integers with missing values become floats
        row = int(np.flatnonzero(np.isnan(column))[0])
        raise ValueError(
            f"{name}: row {row}: expected int64 or str ids, got NaN in a column of {column.dtype};"
            " pass only the rows that have an id, as integers"
        )
    instead = _INSTEAD.get(kind, "integers, or texts")
    raise ValueError(f"{name}: expected int64 or str ids, got dtype {column.dtype}; pass {instead}")


def as_ids(name: str, values: Ids) -> IdArray:
    """Return ids as an array to store: 1-d, of int64, or of str at the width of the longest.

    Raises
    ------
    ValueError
        If an id cannot be stored; the message names its row. That is an id longer than
        `MAX_LENGTH`; one so much longer than the others that the array would take 16 times the
        bytes of the ids (and more than 64 MiB); one that ends in NUL, which NumPy drops; or one
        with half a surrogate pair, which UTF-8 cannot encode.

    Examples
    --------
    >>> as_ids("item_ids", [3, 1]).dtype, as_ids("item_ids", ["b", "ann"]).dtype
    (dtype('int64'), dtype('<U3'))
    """
    ids = listed(name, values, ordered=True)
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "i":
        return ids
    lengths = np.strings.str_len(ids) if isinstance(ids, np.ndarray) else _lengths(ids)
    width = max(1, int(lengths.max(initial=1)))
    if width > MAX_LENGTH or not is_compact(len(ids), width, int(lengths.sum())):
        row = int(lengths.argmax())
        why = f"expected at most {MAX_LENGTH} characters, got {width}"
        if width <= MAX_LENGTH:
            why = (
                f"its {width} characters make all {len(ids)} ids take"
                f" {4 * width * len(ids) >> 20} MiB, over {PADDING} times their own size;"
                " shorten it"
            )
        raise ValueError(f"{name}: row {row}: {why}: {shown(str(ids[row]))}")
    if not isinstance(ids, np.ndarray):
        row = _ending_in_nul(ids)
        if row >= 0:
            raise ValueError(f"{name}: row {row}: must not end in NUL, got {shown(ids[row])}")
    # The same ids always get the same dtype, whatever width or byte order they came in.
    array = np.ascontiguousarray(ids, dtype=f"U{width}")
    halves = (array.view(np.uint32) - np.uint32(0xD800) < 0x800).reshape(len(array), width)
    if halves.any():
        row = int(np.flatnonzero(halves.any(axis=1))[0])
        raise ValueError(
            f"{name}: row {row}: must be text that UTF-8 can hold, got {shown(ids[row])}"
        )
    return array


def text_array(texts: list[str]) -> IdArray:
    """Return texts as an array: of fixed width if that is compact, otherwise of objects.

    Examples
    --------
    >>> text_array(["b", "ann"]).tolist()
    ['b', 'ann']
    """
    lengths = _lengths(texts)
    compact = is_compact(len(texts), int(lengths.max(initial=1)), int(lengths.sum()))
    if compact and _ending_in_nul(texts) < 0:
        return np.array(texts, np.str_)
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def is_compact(count: int, width: int, characters: int) -> bool:
    """Say whether texts may be stored at one width without wasting much memory.

    Parameters
    ----------
    count : int
        Number of texts.
    width : int
        Characters of the longest text.
    characters : int
        Characters of all texts together.

    Examples
    --------
    >>> is_compact(10, width=5, characters=40)
    True
    """
    return 4 * width * count <= max(_ALLOWANCE, PADDING * 4 * characters)


def _lengths(texts: list[str]) -> IntArray:
    return np.fromiter(map(len, texts), np.int64, len(texts))


def _ending_in_nul(texts: list[str]) -> int:
    """The first row whose text ends in NUL; -1 if none does."""
    if "\0" not in "".join(texts):
        return -1
    return next((row for row, text in enumerate(texts) if text.endswith("\0")), -1)


def _of_list(name: str, items: list[Any] | tuple[Any, ...]) -> IdArray | list[str]:
    kinds = set(map(type, items))
    if kinds == {str}:
        return items if type(items) is list else list(items)
    if kinds - {int}:
        plain = [plain_id(item) for item in items]
        expected = type(plain[0]) if plain[0] is not None else None
        for row, item in enumerate(plain):
            if item is None:
                raise ValueError(f"{name}: row {row}: {_no_id(items[row])}")
            if type(item) is not expected:
                kind = "int64" if expected is int else "str"
                got = shown(items[row])
                raise ValueError(
                    f"{name}: row {row}: the ids above are {kind}, got {got}; pass all of them"
                    " as integers, or all as texts"
                )
        if expected is str:
            return plain  # type: ignore[return-value]
        items = plain
    try:
        return np.array(items, np.int64)
    except OverflowError:
        row = next(row for row, item in enumerate(items) if not _LOWEST <= item <= _HIGHEST)
        raise ValueError(f"{name}: row {row}: {_too_large(items[row])}") from None


# What to pass instead of an array of a dtype's kind.
_INSTEAD = {
    "f": 'integers, by .astype("int64"), or texts',
    "S": 'texts, by np.strings.decode(..., "utf-8")',
    "b": "integers, or texts",
}


def _no_id(item: object) -> str:
    """The message for a value that is not an id: what it is, and what to pass instead."""
    kind = type(item).__name__
    if _is_missing(item):
        instead = "leave out rows without an id"
    elif isinstance(item, bytes | bytearray):
        instead = "pass text, by .decode()"
    elif isinstance(item, Set | Sequence | np.ndarray):
        instead = "pass one id"
    else:
        instead = "pass an integer, or text"
    return f"expected int64 or str ids, got {shown(item)}, a {kind}; {instead}"


def _too_large(item: object) -> str:
    return f"must fit int64, got {shown(item)}; pass all of them as texts"


def plain_id(item: object) -> int | str | None:
    """Return an id as a plain int or str; None for any other value.

    Uses the methods of int and str themselves: those of an enum would give its name.

    Examples
    --------
    >>> plain_id(np.int32(7)), plain_id("ann"), plain_id(0.5)
    (7, 'ann', None)
    """
    if isinstance(item, str):
        return str.__str__(item)
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        return operator.index(item)
    return None


# ---- Look-up --------------------------------------------------------------------------------


class Lookup(ABC):
    """Unique ids and their positions; subclasses implement the search."""

    def __init__(self, ids: IdArray) -> None:
        self.ids = ids
        self.is_text = ids.dtype.kind == "U"

    def find(self, name: str, values: Ids, *, ordered: bool = False) -> Positions:
        """Find the positions (m,) of ids; -1 for unknown ids.

        O(m) if the ids here are integers without gaps. Otherwise O(m log n) for few `values` if a
        sorted order is known, and O(n + m) time with 20 m bytes of memory in other cases. With
        `ordered`, containers without an order are refused.
        """
        return self.find_listed(name, listed(name, values, ordered=ordered))

    def find_listed(self, name: str, wanted: IdArray | list[str]) -> Positions:
        """Do as `find` for ids that `listed` returned."""
        if len(wanted) == 0:
            return np.empty(0, np.int64)
        if (not isinstance(wanted, np.ndarray) or wanted.dtype.kind == "U") != self.is_text:
            kind = "str" if self.is_text else "int64"
            first = wanted[0].item() if isinstance(wanted, np.ndarray) else wanted[0]
            instead = "texts" if self.is_text else "integers"
            raise ValueError(f"{name}: the ids here are {kind}, got {shown(first)}; pass {instead}")
        if isinstance(wanted, np.ndarray):
            return self._find(wanted)
        # Texts too long to equal any id here are left out first: they would widen the array.
        width = self.ids.dtype.itemsize // 4
        if max(map(len, wanted)) <= width and _ending_in_nul(wanted) < 0:
            return self._find(np.array(wanted, self.ids.dtype))
        can_be = [len(text) <= width and not text.endswith("\0") for text in wanted]
        narrow = [text if fits else "" for text, fits in zip(wanted, can_be, strict=True)]
        return np.where(can_be, self._find(np.array(narrow, self.ids.dtype)), -1)

    @abstractmethod
    def _find(self, wanted: IdArray) -> Positions:
        """Find the positions of ids of the same kind as `ids`, in an array of any width."""


class IdIndex(Lookup):
    """Ids and the position of each.

    Parameters
    ----------
    name : str
        The argument the ids came from, for errors.
    ids : ndarray of int64 or str, shape (n,)
        Unique; checked here unless `order` is given.
    order : ndarray of int64, shape (n,), optional
        The permutation that sorts `ids`, if known.

    Examples
    --------
    >>> index = IdIndex("item_ids", np.array(["b", "a"]))
    >>> index.find("exclude", ["a", "c"]).tolist(), index.holds("item_id", "b")
    ([1, -1], True)
    """

    def __init__(self, name: str, ids: IdArray, order: Positions | None = None) -> None:
        if order is None:
            ids = ids.copy()  # not the caller's array
            ids.flags.writeable = False
            order = np.argsort(ids, kind="stable").astype(np.int64, copy=False)
            ordered = ids[order]
            repeats = np.flatnonzero(ordered[1:] == ordered[:-1])
            if repeats.size:
                first, second = order[repeats[0]], order[repeats[0] + 1]
                raise ValueError(
                    f"{name}: must be unique; rows {first} and {second} are both "
                    f"{shown(ids[first].item())}"
                )
            order.flags.writeable = False
        super().__init__(ids)
        self.order = order  # if given, it may come from a damaged file: its entries are checked
        self._order_name = name.replace("ids", "order")

    def find_one(self, name: str, value: object) -> int:
        """Find the position of one id; -1 if it is unknown."""
        plain = as_id(name, value)
        if isinstance(plain, int) and not _LOWEST <= plain <= _HIGHEST:
            return -1
        one: list[Any] = [plain]
        return int(self.find(name, one)[0])

    def holds(self, name: str, value: object) -> bool:
        """Say whether a value is one of the ids; False for values that are no id of this kind."""
        try:
            return self.find_one(name, value) >= 0
        except ValueError as error:
            if str(error).startswith("damaged: "):  # the index is broken, not the value
                raise
            return False

    def find_logged(self, name: str, values: Ids) -> Positions:
        """Do as `find` for ids from logs: integers may be text, and missing ids give -1."""
        column = as_column(name, values, "an array of ids")
        items = column.tolist() if isinstance(column, np.ndarray) else column
        rows: list[int] = []
        wanted: list[Any] = []  # all of one kind
        for row, item in enumerate(items):
            key = plain_id(item)
            if key is None:
                if _is_missing(item):
                    continue
                raise ValueError(f"{name}: row {row}: {_no_id(item)}")
            if self.is_text:
                can_be = isinstance(key, str)
            else:
                if isinstance(key, str):
                    key = integer(key)
                can_be = key is not None and _LOWEST <= key <= _HIGHEST
            if can_be:
                rows.append(row)
                wanted.append(key)
        found = np.full(len(items), -1, np.int64)
        if rows:
            found[rows] = self.find(name, wanted)
        return found

    def _find(self, wanted: IdArray) -> Positions:
        narrow = wanted
        if self.is_text:  # searching with a wider dtype would make NumPy copy all ids into it
            narrow = np.ascontiguousarray(wanted.astype(self.ids.dtype, copy=False))
        last = len(self.ids) - 1
        if self._first is not None:
            return _native.find_consecutive(
                self._order_name, self.ids, self.order, self._first, narrow
            )
        if len(wanted) * _SEARCHES > last:
            rows = _native.find_rows(_as_bytes(self.ids), _as_bytes(narrow), _HASH_KEY)
            return rows if wanted.dtype == narrow.dtype else np.where(narrow == wanted, rows, -1)
        found = self._rows_at(self._search(narrow))
        return np.where(self.ids[found] == wanted, found, -1)

    def starting_with(self, prefix: str, limit: int) -> Positions:
        """Find the positions of the first `limit` ids, in sorted order, that begin with a prefix.

        Integers are compared in decimal, short ones first. O(log n + limit): one search for text,
        and one search for each number of digits for integers.
        """
        if not isinstance(prefix, str):
            raise ValueError(f"prefix: expected a str, got {shown(prefix)}")
        prefix = str.__str__(prefix)
        if not self.is_text:
            found: list[int] = []
            for low, high in _intervals(prefix):
                first = int(self._search(np.int64(low)))
                end = min(int(self._search(np.int64(high), "right")), first + limit - len(found))
                rows = self._rows_at(np.arange(first, end))
                if not ((self.ids[rows] >= low) & (self.ids[rows] <= high)).all():
                    raise ValueError(f"damaged: {self._order_name}: does not sort the ids")
                found += rows.tolist()
                if len(found) >= limit:
                    break
            return np.array(found, np.int64)
        # Searching with a wider dtype would make NumPy copy all ids into it; and NumPy drops a NUL
        # at the end.
        if 4 * len(prefix) > self.ids.dtype.itemsize or prefix.endswith("\0"):
            return np.empty(0, np.int64)
        narrow = np.array(prefix, self.ids.dtype)
        start = int(self._search(narrow))
        rows = self._rows_at(np.arange(start, min(start + limit, len(self.ids))))
        # From `start` on, the ids with this prefix are adjacent.
        return rows[np.strings.startswith(self.ids[rows], prefix)]

    def taken(self, rows: Positions) -> IdIndex:
        """Return the index of ``ids[rows]``, for a permutation `rows`."""
        position = np.empty_like(rows)
        position[rows] = np.arange(len(rows))
        ids, order = self.ids[rows], position[self.order]
        ids.flags.writeable = order.flags.writeable = False
        return IdIndex("", ids, order)

    @cached_property
    def _first(self) -> int | None:
        """The lowest id if the ids are the integers from it to the highest, without gaps.

        Then an id's position follows from the id, without a search.
        """
        if self.is_text:
            return None
        first, last = self.ids[self._rows_at(np.array([0, len(self.ids) - 1]))].tolist()
        return first if last - first + 1 == len(self.ids) else None

    def _search(self, wanted: Any, side: Literal["left", "right"] = "left") -> Any:
        """Find the places of ids in sorted order, by bisection."""
        try:
            return np.searchsorted(self.ids, wanted, side, sorter=self.order)
        except ValueError:  # NumPy met an entry that is not a row
            raise ValueError(
                f"damaged: {self._order_name}: an entry is not one of {len(self.ids)} rows"
            ) from None

    def _rows_at(self, places: Any) -> Positions:
        """Return the rows at places of the sorted order (clipped to its end), after a check."""
        return _native.rows_at(self._order_name, self.order, places.view(np.uint64))


class UniqueIds(Lookup):
    """Ids of a single call: checked to be unique, but neither sorted nor copied.

    O(n): one quick pass for ascending integers, a hash table for all others.
    """

    def __init__(self, name: str, ids: IdArray) -> None:
        super().__init__(ids)
        self._ascend = not self.is_text and _native.ascends(ids)
        if not self._ascend and len(ids):
            rows = self._rows_of(ids)  # a repeated id gets its last row
            if (rows[:-1] >= rows[1:]).any():
                IdIndex(name, ids)  # raises, naming the repeated id

    def _find(self, wanted: IdArray) -> Positions:
        narrow = np.ascontiguousarray(wanted.astype(self.ids.dtype, copy=False))
        last = len(self.ids) - 1
        if self._ascend and int(self.ids[last]) - int(self.ids[0]) == last:  # without gaps
            distance = narrow - self.ids[0]  # modulo 2**64: large for ids below the first
            return np.where(distance.view(np.uint64) <= np.uint64(last), distance, -1)
        if self._ascend and len(wanted) * _SEARCHES <= last:
            found = np.minimum(np.searchsorted(self.ids, narrow), last)
            return np.where(self.ids[found] == narrow, found, -1)
        rows = self._rows_of(narrow)
        return rows if wanted.dtype == narrow.dtype else np.where(narrow == wanted, rows, -1)

    def _rows_of(self, wanted: IdArray) -> Positions:
        return _native.find_rows(_as_bytes(self.ids), _as_bytes(wanted), _HASH_KEY)


class ItemIds:
    """Item ids, checked and sorted once for many calls that would each do it again.

    Pass it as `item_ids` to `rank_scores`, its relatives, or `Catalog`.

    Parameters
    ----------
    item_ids : array_like of int or str, shape (n,)
        Unique; copied.

    Raises
    ------
    ValueError
        If an id is invalid; the message names the row and the value.

    Notes
    -----
    O(n log n) time, and 8 n bytes of memory in addition to the ids.

    Examples
    --------
    >>> items = ItemIds(["b", "c", "a"])
    >>> len(items), np.asarray(items).tolist()
    (3, ['b', 'c', 'a'])
    """

    def __init__(self, item_ids: Ids) -> None:
        self._index = IdIndex("item_ids", as_ids("item_ids", item_ids))

    def __len__(self) -> int:
        return len(self._index.ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> IdArray:
        return np.array(self._index.ids, dtype, copy=copy)

    def __repr__(self) -> str:
        return f"ItemIds({len(self)} {'str' if self._index.is_text else 'int64'} ids)"


def ids_of(name: str, values: Ids | ItemIds) -> tuple[IdArray, IdIndex | None]:
    """Return what `as_ids` does, and the index of the ids if `values` is an `ItemIds`.

    Examples
    --------
    >>> ids_of("item_ids", [3, 1])
    (array([3, 1]), None)
    """
    if isinstance(values, ItemIds):
        return values._index.ids, values._index
    return as_ids(name, values), None


def _is_missing(item: object) -> bool:
    """Whether a value stands for a missing one: None, NaN, or pandas' NA (unequal to itself)."""
    if item is None or type(item).__name__ == "NAType":
        return True
    return isinstance(item, float) and item != item


def _intervals(prefix: str) -> Iterator[tuple[int, int]]:
    """The ranges (low, high) of int64 that begin with a text, one for each number of digits."""
    if not _BEGINS.fullmatch(prefix):
        return
    if prefix in ("", "-"):
        yield _LOWEST, _HIGHEST if prefix == "" else -1
        return
    first = int(prefix)
    for digits in range(19 if first else 1):
        power = 10**digits
        low, high = first * power, first * power + power - 1
        if first < 0:
            low, high = first * power - power + 1, first * power
        if low > _HIGHEST or high < _LOWEST:
            return
        yield max(low, _LOWEST), min(high, _HIGHEST)


def _as_bytes(ids: IdArray) -> npt.NDArray[np.uint8]:
    """The same memory as bytes, one row per id."""
    return ids.view(np.uint8).reshape(len(ids), ids.dtype.itemsize)


# ---- Ids as text ----------------------------------------------------------------------------

_WRITTEN = re.compile(r"0|-?[1-9][0-9]{0,99}")
_SHOWN = 80  # characters of a word that an error message quotes
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')


def integer(text: str) -> int | None:
    """Read an integer in decimal, as `str` writes it; None for any other text.

    A plus sign, leading zeros, underscores, spaces and digits of other scripts are refused, so
    that every integer id has exactly one spelling.

    Examples
    --------
    >>> [integer(text) for text in ("42", "-7", "042", "4_2", " 42", "+42", "-0")]
    [42, -7, None, None, None, None, None]
    """
    return int(text) if _WRITTEN.fullmatch(text) else None


def id_from_text(word: str | int, like: IdArray) -> int | str | None:
    """Read an id of the kind (int64 or str) of `like` from a word; None if it cannot be one.

    Examples
    --------
    >>> id_from_text("42", np.array([1, 2])), id_from_text("042", np.array([1, 2]))
    (42, None)
    >>> id_from_text(" 042", np.array(["a", "b"]))
    ' 042'
    """
    if like.dtype.kind == "U":  # NumPy drops a NUL at the end
        return None if not isinstance(word, str) or word.endswith("\0") else word
    number = integer(word) if isinstance(word, str) else word
    return number if number is not None and _LOWEST <= number <= _HIGHEST else None


def as_written(like: IdArray) -> str:
    """Describe how ids of the kind of `like` are written as text, for error messages.

    Examples
    --------
    >>> as_written(np.array([1, 2])) != as_written(np.array(["a"]))
    True
    """
    if like.dtype.kind == "U":
        return "text, without NUL at its end"
    return "integers of 64 bits, written as in 0, 42 or -7"


def ids_from_text(name: str, words: Sequence[str | int], like: IdArray) -> IdArray | list[str]:
    """Read ids from text, for look-ups among ids of the kind of `like`; O(characters).

    Parameters
    ----------
    name : str
        The argument they came from, for errors.
    words : sequence of str or int
    like : ndarray of int64 or str

    Returns
    -------
    ndarray of int64, or list of str
        Texts stay a list: an array would be as wide as the longest.

    Raises
    ------
    ValueError
        If a word is not an id of the kind of `like`; the message names the row and the word.

    Examples
    --------
    >>> ids_from_text("exclude", ["17", "-3"], np.array([1, 2]))
    array([17, -3])
    """
    is_text = like.dtype.kind == "U"
    if not is_text and set(map(type, words)) == {int}:
        try:
            return np.array(words, np.int64)
        except OverflowError:
            pass  # the error below names the word
    found = [id_from_text(word, like) for word in words]
    if None in found:
        row = found.index(None)
        got = shown(words[row])
        raise ValueError(f"{name}: row {row}: the ids here are {as_written(like)}; got {got}")
    return [str(one) for one in found] if is_text else np.array(found, np.int64)


def split_ids(name: str, text: str) -> list[str]:
    """Split a list with commas into words, as a line of CSV; spaces are kept.

    A word that contains a comma, or begins with a quote, must stand in double quotes, with quotes
    inside it doubled. Nothing between two commas is skipped, and ``""`` is the empty word.
    O(length).

    Raises
    ------
    ValueError
        If a quote is not closed, or more text follows the closing quote.

    Examples
    --------
    >>> split_ids("exclude", '17,"a, b",, c,"say ""x\"""')
    ['17', 'a, b', ' c', 'say "x"']
    """
    if '"' not in text:
        return [word for word in text.split(",") if word]
    words = []
    start = 0
    while start < len(text):
        if text[start] == '"':
            quoted = _QUOTED.match(text, start)
            if quoted is None or text[quoted.end() : quoted.end() + 1] not in ("", ","):
                raise ValueError(
                    f"{name}: expected a comma or the end after a word in double quotes, quotes"
                    f" within it doubled; got {text[start : start + _SHOWN]!r}"
                )
            words.append(quoted[1].replace('""', '"'))
            start = quoted.end() + 1
        else:
            end = text.find(",", start)
            end = len(text) if end < 0 else end
            if end > start:
                words.append(text[start:end])
            start = end + 1
    return words
