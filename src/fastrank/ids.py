"""Identifiers, int64 or str: checks, and look-up by a sorted permutation.

A permutation can be saved and mapped; a dict of a million ids would cost 106 MB in each process.
Many ids at once are looked up by one pass over all of them instead, against a table of the wanted.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank import _native

__all__ = [
    "IdIndex",
    "Ids",
    "as_ids",
    "as_written",
    "id_from_text",
    "ids_from_text",
    "integer",
    "split_ids",
]

IdArray: TypeAlias = npt.NDArray[Any]  # int64 or fixed-width str
Ids: TypeAlias = Iterable[int] | Iterable[str] | npt.NDArray[Any]  # what callers may hand in
Positions: TypeAlias = npt.NDArray[np.int64]

# A binary search among n ids costs about what n / 100 steps of a pass over them do.
_SEARCHES = 100
# What begins an integer, as it is written.
_BEGINS = re.compile(r"-?([1-9][0-9]{0,18})?|0", re.ASCII)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
# So that nobody can choose ids that collide in the hash table of a look-up.
_HASH_KEY = secrets.randbits(64)


def as_ids(name: str, values: Ids) -> IdArray:
    """A 1-d array of int64 or str; bool, float, bytes and mixed ids are refused."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name}: masked arrays are not taken: the mask would be lost")
    if isinstance(values, np.ndarray):
        array = values
    else:
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise ValueError(f"{name}: expected an array of ids, got {values!r}")
        items = list(values)
        array = np.empty(len(items), dtype=object)
        array[:] = items
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    if array.dtype.kind == "O":
        array = _from_objects(name, array)
    if array.dtype.kind == "u":
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            row = int(array.argmax())
            raise ValueError(f"{name}: row {row}: must fit int64, got {array[row]}")
        return array.astype(np.int64)
    if array.dtype.kind == "i":
        return np.ascontiguousarray(array, dtype=np.int64)
    if array.dtype.kind == "U":
        # One dtype for one content, whatever width or byte order it came in.
        width = max(1, int(np.strings.str_len(array).max(initial=1)))
        return np.ascontiguousarray(array, dtype=f"U{width}")
    raise ValueError(f"{name}: expected int64 or str ids, got dtype {array.dtype}")


class IdIndex:
    """Ids and where each one stands.

    Parameters
    ----------
    name : str
        The argument the ids came from, for errors.
    ids : ndarray of int64 or str, shape (n,)
        Unique; checked here unless `order` is given.
    order : ndarray of int64, shape (n,), optional
        The permutation that sorts `ids`, if it is known.
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
                    f"{ids[first].item()!r}"
                )
            order.flags.writeable = False
        self.ids = ids
        self.order = order  # if it was given it may be a damaged file's: nothing in it is trusted
        self._order_name = name.replace("ids", "order")

    def find(self, name: str, values: Ids) -> Positions:
        """Positions (m,) of ids, -1 where there is no such id.

        O(m) where the catalog's own are integers without gaps. Otherwise O(m log n) for few ids,
        and O(n + m) with 20 m bytes besides for many.
        """
        if isinstance(values, np.ndarray) and values.size == 0 and values.ndim == 1:
            return np.empty(0, np.int64)  # of any dtype: an empty list has none of its own
        wanted = as_ids(name, values)
        if wanted.size == 0:
            return np.empty(0, np.int64)
        if (wanted.dtype.kind == "U") != (self.ids.dtype.kind == "U"):
            kind = "str" if self.ids.dtype.kind == "U" else "int64"
            raise ValueError(f"{name}: the ids here are {kind}, got {wanted[0].item()!r}")
        # Searching with a wider dtype would make NumPy copy all ids into it.
        narrow = wanted.astype(self.ids.dtype)
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
        if self.ids.dtype.kind != "U":
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
        if self.ids.dtype.kind == "U":
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


def _integers(name: str, items: list[Any]) -> IdArray:
    for row, item in enumerate(items):
        if isinstance(item, bool):
            raise ValueError(f"{name}: row {row}: expected int64 or str ids, got {item!r}")
        if not -(2**63) <= item < 2**63:
            raise ValueError(f"{name}: row {row}: must fit int64, got {item}")
    return np.array(items, dtype=np.int64)


def _from_objects(name: str, array: npt.NDArray[Any]) -> IdArray:
    items = array.tolist()
    if not items:
        return np.empty(0, np.int64)
    if all(isinstance(item, int | np.integer) for item in items):
        return _integers(name, items)
    for row, item in enumerate(items):
        if not isinstance(item, str):
            raise ValueError(f"{name}: row {row}: expected int64 or str ids, got {item!r}")
        if item.endswith("\0"):
            raise ValueError(f"{name}: row {row}: must not end in NUL, got {item!r}")
    return np.array(items, dtype=np.str_)


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
    """How ids of the kind of `like` come as text, for errors."""
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
        got = repr(words[row])
        got = got if len(got) <= _SHOWN else f"{got[:_SHOWN]}..."
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
