"""Identifiers, int64 or str: what counts as one, wherever ids are taken, and looking them up.

docs/reference/ids.md has the table of what is taken. Look-up is by a sorted permutation, which can
be saved and mapped; a dict of a million ids would cost 106 MB in each process. Many ids at once are
looked up by one pass over all of them instead, against a table of the wanted.
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

Ids: TypeAlias = Iterable[int] | Iterable[str] | npt.NDArray[Any]  # what callers may hand in
Listed: TypeAlias = IdArray | list[str]  # as `listed` gives them

# Characters of an id. Of a UUID it has 36, of a SHA-512 128, of an S3 key up to 1,024.
MAX_LENGTH = 1_024
# Text is kept at the width of the longest, so that one long id is paid for by all. Up to so many
# bytes nobody minds; beyond them it may take so many times what the ids themselves hold.
_ALLOWANCE = 64 << 20
PADDING = 16
# A binary search among n ids costs about what n / 100 steps of a pass over them do.
_SEARCHES = 100
# What begins an integer, as it is written.
_BEGINS = re.compile(r"-?([1-9][0-9]{0,18})?|0", re.ASCII)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
# So that nobody can choose ids that collide in the hash table of a look-up.
_HASH_KEY = int.from_bytes(os.urandom(8), "little")


# ---- What counts as ids ---------------------------------------------------------------------


def as_id(name: str, value: object) -> int | str:
    """One id as a plain int or str; enums and other subclasses of these give their value.

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
    """Ids as they were handed in: an array of int64, an array of str, or a list of plain str.

    Text is not made an array here: its width, and with it the cost, would be that of the longest.
    With `ordered`, what has no order is refused.

    Parameters
    ----------
    name : str
        The argument they came from, for errors.
    values : array_like of ids
    ordered : bool
        Whether their order counts.

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
            f"{name}: expected an array of ids, got a {what}; hand in its {own[0]}"
        ) from None
    if not isinstance(column, np.ndarray):
        return _of_list(name, column)
    if column.ndim > 1:
        raise ValueError(
            f"{name}: expected one dimension, got shape {column.shape}; hand in one column of it"
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
    if kind == "f" and np.isnan(column).any():  # what integers become where some are missing
        row = int(np.flatnonzero(np.isnan(column))[0])
        raise ValueError(
            f"{name}: row {row}: expected int64 or str ids, got NaN in a column of {column.dtype};"
            " hand in the rows that have one, as integers"
        )
    instead = _INSTEAD.get(kind, "integers, or texts")
    raise ValueError(
        f"{name}: expected int64 or str ids, got dtype {column.dtype}; hand in {instead}"
    )


def as_ids(name: str, values: Ids) -> IdArray:
    """Ids in order, to be kept: a 1-d array of int64, or of str at the width of the longest.

    Raises
    ------
    ValueError
        Naming the row, for an id that cannot be kept: longer than `MAX_LENGTH`, so much longer
        than the others that all of them would take 16 times their own bytes (and more than 64 MiB),
        with a NUL at the end, which NumPy drops, or with half a surrogate pair, which no encoding
        has.

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
                f" {4 * width * len(ids) >> 20} MiB, over {PADDING} times what they hold;"
                " shorten it"
            )
        raise ValueError(f"{name}: row {row}: {why}: {shown(str(ids[row]))}")
    if not isinstance(ids, np.ndarray):
        row = _ending_in_nul(ids)
        if row >= 0:
            raise ValueError(f"{name}: row {row}: must not end in NUL, got {shown(ids[row])}")
    # One dtype for one content, whatever width or byte order it came in.
    array = np.ascontiguousarray(ids, dtype=f"U{width}")
    halves = (array.view(np.uint32) - np.uint32(0xD800) < 0x800).reshape(len(array), width)
    if halves.any():
        row = int(np.flatnonzero(halves.any(axis=1))[0])
        raise ValueError(
            f"{name}: row {row}: must be text that UTF-8 can hold, got {shown(ids[row])}"
        )
    return array


def text_array(texts: list[str]) -> IdArray:
    """Any texts as an array that costs what they hold: of fixed width, or else of objects.

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
    """Whether so many texts may be kept at one width, given how long they are in all.

    Parameters
    ----------
    count : int
        How many texts.
    width : int
        Characters of the longest.
    characters : int
        Of all together.

    Examples
    --------
    >>> is_compact(10, width=5, characters=40)
    True
    """
    return 4 * width * count <= max(_ALLOWANCE, PADDING * 4 * characters)


def _lengths(texts: list[str]) -> IntArray:
    return np.fromiter(map(len, texts), np.int64, len(texts))


def _ending_in_nul(texts: list[str]) -> int:
    """The first row that does; -1 if none does."""
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
                    f"{name}: row {row}: the ids above are {kind}, got {got}; hand in all of them"
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


# What to hand in instead of an array of that kind.
_INSTEAD = {
    "f": 'integers, by .astype("int64"), or texts',
    "S": 'texts, by np.strings.decode(..., "utf-8")',
    "b": "integers, or texts",
}


def _no_id(item: object) -> str:
    """What a value is that is no id, and what to hand in."""
    kind = type(item).__name__
    if _is_missing(item):
        instead = "leave out what has no id"
    elif isinstance(item, bytes | bytearray):
        instead = "hand in text, by .decode()"
    elif isinstance(item, Set | Sequence | np.ndarray):
        instead = "hand in one id"
    else:
        instead = "hand in an integer, or text"
    return f"expected int64 or str ids, got {shown(item)}, a {kind}; {instead}"


def _too_large(item: object) -> str:
    return f"must fit int64, got {shown(item)}; hand in all of them as texts"


def plain_id(item: object) -> int | str | None:
    """An int or str and nothing more; None for what is neither.

    By the methods of int and str: an enum's own would give its name.

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
    """Different ids, and where each one stands; subclasses say how it is found."""

    def __init__(self, ids: IdArray) -> None:
        self.ids = ids
        self.is_text = ids.dtype.kind == "U"

    def find(self, name: str, values: Ids, *, ordered: bool = False) -> Positions:
        """Positions (m,) of ids, -1 where there is no such id.

        O(m) where the ids here are integers without gaps. Otherwise O(m log n) for few of them in a
        known order, and O(n + m) with 20 m bytes besides for others. With `ordered`, what has no
        order is refused.
        """
        return self.find_listed(name, listed(name, values, ordered=ordered))

    def find_listed(self, name: str, wanted: IdArray | list[str]) -> Positions:
        """As `find`, of ids as `listed` gives them."""
        if len(wanted) == 0:
            return np.empty(0, np.int64)
        if (not isinstance(wanted, np.ndarray) or wanted.dtype.kind == "U") != self.is_text:
            kind = "str" if self.is_text else "int64"
            first = wanted[0].item() if isinstance(wanted, np.ndarray) else wanted[0]
            instead = "texts" if self.is_text else "integers"
            raise ValueError(
                f"{name}: the ids here are {kind}, got {shown(first)}; hand in {instead}"
            )
        if isinstance(wanted, np.ndarray):
            return self._find(wanted)
        # Texts that no id here can be are left out, before an array becomes as wide as they are.
        width = self.ids.dtype.itemsize // 4
        if max(map(len, wanted)) <= width and _ending_in_nul(wanted) < 0:
            return self._find(np.array(wanted, self.ids.dtype))
        can_be = [len(text) <= width and not text.endswith("\0") for text in wanted]
        narrow = [text if fits else "" for text, fits in zip(wanted, can_be, strict=True)]
        return np.where(can_be, self._find(np.array(narrow, self.ids.dtype)), -1)

    @abstractmethod
    def _find(self, wanted: IdArray) -> Positions:
        """Positions of ids of the same kind, an array of any width."""


class IdIndex(Lookup):
    """Ids and where each one stands.

    Parameters
    ----------
    name : str
        The argument the ids came from, for errors.
    ids : ndarray of int64 or str, shape (n,)
        Unique; checked here unless `order` is given.
    order : ndarray of int64, shape (n,), optional
        The permutation that sorts `ids`, if it is known.

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
        self.order = order  # one that was given may be a damaged file's: nothing in it is trusted
        self._order_name = name.replace("ids", "order")

    def find_one(self, name: str, value: object) -> int:
        """Position of one id; -1 if there is no such id."""
        plain = as_id(name, value)
        if isinstance(plain, int) and not _LOWEST <= plain <= _HIGHEST:
            return -1
        one: list[Any] = [plain]
        return int(self.find(name, one)[0])

    def holds(self, name: str, value: object) -> bool:
        """Whether this is one of the ids; what is no id, or of the other kind, is none of them."""
        try:
            return self.find_one(name, value) >= 0
        except ValueError as error:
            if str(error).startswith("damaged: "):  # that says nothing of this one
                raise
            return False

    def find_logged(self, name: str, values: Ids) -> Positions:
        """As `find`, of ids as logs have them: integers may be text; -1 also for a missing one."""
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
        """Positions of the first `limit` ids, in their order, that begin with a text.

        Integers begin as they are written in decimal, short ones first. O(log n + limit): a search
        for text, and for integers one for every number of digits.
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
        # Searching with a wider dtype would make NumPy copy all ids into it; and it takes a NUL
        # at the end for no character.
        if 4 * len(prefix) > self.ids.dtype.itemsize or prefix.endswith("\0"):
            return np.empty(0, np.int64)
        narrow = np.array(prefix, self.ids.dtype)
        start = int(self._search(narrow))
        rows = self._rows_at(np.arange(start, min(start + limit, len(self.ids))))
        # Those that begin with it stand together, at the start.
        return rows[np.strings.startswith(self.ids[rows], prefix)]

    def taken(self, rows: Positions) -> IdIndex:
        """The index of ``ids[rows]``, for a permutation."""
        position = np.empty_like(rows)
        position[rows] = np.arange(len(rows))
        ids, order = self.ids[rows], position[self.order]
        ids.flags.writeable = order.flags.writeable = False
        return IdIndex("", ids, order)

    @cached_property
    def _first(self) -> int | None:
        """The lowest id if the ids are the integers from it to the highest, without gaps.

        Then an id is found without a search, and one that is not in its place is no unknown one.
        """
        if self.is_text:
            return None
        first, last = self.ids[self._rows_at(np.array([0, len(self.ids) - 1]))].tolist()
        return first if last - first + 1 == len(self.ids) else None

    def _search(self, wanted: Any, side: Literal["left", "right"] = "left") -> Any:
        """The places of ids in their order, by bisection."""
        try:
            return np.searchsorted(self.ids, wanted, side, sorter=self.order)
        except ValueError:  # NumPy came by an entry that is no row
            raise ValueError(
                f"damaged: {self._order_name}: an entry is not one of {len(self.ids)} rows"
            ) from None

    def _rows_at(self, places: Any) -> Positions:
        """The rows at places of the order, or at its last one; checked to be rows."""
        return _native.rows_at(self._order_name, self.order, places.view(np.uint64))


class UniqueIds(Lookup):
    """Ids as one call has them: checked to be unique, never sorted, and not copied.

    O(n): a quick pass over integers that ascend, a hash table of any others.
    """

    def __init__(self, name: str, ids: IdArray) -> None:
        super().__init__(ids)
        self._ascend = not self.is_text and _native.ascends(ids)
        if not self._ascend and len(ids):
            rows = self._rows_of(ids)  # of a repeated one the last
            if (rows[:-1] >= rows[1:]).any():
                IdIndex(name, ids)  # names it

    def _find(self, wanted: IdArray) -> Positions:
        narrow = np.ascontiguousarray(wanted.astype(self.ids.dtype, copy=False))
        last = len(self.ids) - 1
        if self._ascend and int(self.ids[last]) - int(self.ids[0]) == last:  # without gaps
            distance = narrow - self.ids[0]  # modulo 2**64: below the first is large
            return np.where(distance.view(np.uint64) <= np.uint64(last), distance, -1)
        if self._ascend and len(wanted) * _SEARCHES <= last:
            found = np.minimum(np.searchsorted(self.ids, narrow), last)
            return np.where(self.ids[found] == narrow, found, -1)
        rows = self._rows_of(narrow)
        return rows if wanted.dtype == narrow.dtype else np.where(narrow == wanted, rows, -1)

    def _rows_of(self, wanted: IdArray) -> Positions:
        return _native.find_rows(_as_bytes(self.ids), _as_bytes(wanted), _HASH_KEY)


class ItemIds:
    """Ids of items, checked and sorted once for calls that would do it again each time.

    Taken wherever `item_ids` of all items are: by `rank_scores` and its like, and by `Catalog`.

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
    O(n log n), and 8 n bytes beside the ids.

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
    """As `as_ids`, and what looks them up where that is there already.

    Examples
    --------
    >>> ids_of("item_ids", [3, 1])
    (array([3, 1]), None)
    """
    if isinstance(values, ItemIds):
        return values._index.ids, values._index
    return as_ids(name, values), None


def _is_missing(item: object) -> bool:
    """Of a column with holes: None, NaN, or pandas' NA, which equals nothing."""
    if item is None or type(item).__name__ == "NAType":
        return True
    return isinstance(item, float) and item != item


def _intervals(prefix: str) -> Iterator[tuple[int, int]]:
    """The int64 that begin with a text: from where to where, for each number of digits."""
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
    """The same memory, a row an id."""
    return ids.view(np.uint8).reshape(len(ids), ids.dtype.itemsize)


# ---- Ids as text ----------------------------------------------------------------------------

_WRITTEN = re.compile(r"0|-?[1-9][0-9]{0,99}")
_SHOWN = 80  # characters of a word that an error repeats
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')


def integer(text: str) -> int | None:
    """What a text says that is an integer in decimal, as `str` writes it; None for any other text.

    Signs +, zeros ahead, underscores, spaces and the digits of other scripts make another text, and
    of one id there must not be two.

    Examples
    --------
    >>> [integer(text) for text in ("42", "-7", "042", "4_2", " 42", "+42", "-0")]
    [42, -7, None, None, None, None, None]
    """
    return int(text) if _WRITTEN.fullmatch(text) else None


def id_from_text(word: str | int, like: IdArray) -> int | str | None:
    """The id that a word says, where ids are of the kind of `like`; None if it can be none of them.

    Examples
    --------
    >>> id_from_text("42", np.array([1, 2])), id_from_text("042", np.array([1, 2]))
    (42, None)
    >>> id_from_text(" 042", np.array(["a", "b"]))
    ' 042'
    """
    if like.dtype.kind == "U":  # NumPy takes a NUL at the end for no character
        return None if not isinstance(word, str) or word.endswith("\0") else word
    number = integer(word) if isinstance(word, str) else word
    return number if number is not None and _LOWEST <= number <= _HIGHEST else None


def as_written(like: IdArray) -> str:
    """How ids of the kind of `like` come as text, for errors.

    Examples
    --------
    >>> as_written(np.array([1, 2])) != as_written(np.array(["a"]))
    True
    """
    if like.dtype.kind == "U":
        return "text, without NUL at its end"
    return "integers of 64 bits, written as in 0, 42 or -7"


def ids_from_text(name: str, words: Sequence[str | int], like: IdArray) -> IdArray | list[str]:
    """Ids that came as text, for look-ups among ids of the kind of `like`; O(characters).

    Parameters
    ----------
    name : str
        The argument they came from, for errors.
    words : sequence of str, or of int where some came as numbers
    like : ndarray of int64 or str

    Returns
    -------
    ndarray of int64, or list of str
        Text is not made an array: its width would be that of the longest.

    Raises
    ------
    ValueError
        Naming the row and the word: for what is no integer of 64 bits, or no text, where that is
        what ids are.

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
            pass  # named below
    found = [id_from_text(word, like) for word in words]
    if None in found:
        row = found.index(None)
        got = shown(words[row])
        raise ValueError(f"{name}: row {row}: the ids here are {as_written(like)}; got {got}")
    return [str(one) for one in found] if is_text else np.array(found, np.int64)


def split_ids(name: str, text: str) -> list[str]:
    """The words of a list with commas, as a line of CSV has them; nothing is stripped.

    A word that holds a comma, or begins with a quote, stands in double quotes, quotes within it
    doubled. Nothing between two commas is no word, and ``""`` the empty one. O(length).

    Raises
    ------
    ValueError
        For a quote that is not closed, or after which the word goes on.

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
