"""Features: columns of item attributes, for expressions, rules and score functions.

A column holds for each item a number, a boolean, a category (a text or None), or a list of texts.
Single values are stored as float32; a category as the rank of its text among the column's sorted
texts, or -1 for None. Columns are in the order in which their catalog stores items.
"""

from __future__ import annotations

import keyword
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from fastrank import _native, store
from fastrank.arraytypes import AnyArray, Float32Array, IntArray, Mask, Positions
from fastrank.inputs import as_column, shown
from fastrank.lru import LRU

__all__ = ["RESERVED", "Column", "Features", "Groups", "Joint", "as_features", "told_apart"]

# Names that an expression does not read as columns or parameters.
RESERVED = frozenset(
    ("dot", "exp", "log", "log1p", "sqrt", "abs", "sigmoid", "min", "max", "clip", "pi", "e")
)
_MOST = 1 << 24  # categories: float32 cannot number more
_FLAG_BYTES = 64 << 20  # of cached memberships
_LABEL_BYTES = 64 << 20  # of cached labels
_MOST_LABELS = 1 << 16  # beyond this, labels are renumbered without gaps, which sorts them
_FEW_SUMMED, _MOST_SUMMED = 1 << 10, 1 << 14
_COUNTED = 1 << 22
_BITS = 30  # groups of list columns that one integer tells apart
_MOST_AT_ONCE = 1 << 20  # entries of a matrix computed at a time, but at least a row
_NO_CATEGORY, _UNKNOWN = -1, -2

_KINDS = ("number", "boolean", "category", "categories")


class Column(NamedTuple):
    """The name and kind of a column, and where its data lies.

    Attributes
    ----------
    name : str
    kind : {"number", "boolean", "category", "categories"}
    place : int
        Index among the columns of single values, or among those of lists.
    first, last : int
        Its texts are ``texts[first:last]`` among the texts of all columns.
    """

    name: str
    kind: str
    place: int
    first: int = 0
    last: int = 0


class Features:
    """Columns of a catalog's items: `Catalog.features`.

    Attributes
    ----------
    version : str
        Content hash of the columns, which does not depend on their order.
    n_items : int
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        arrays: Mapping[str, AnyArray],
        digests: Mapping[str, str],
        version: str,
        n_items: int,
    ) -> None:
        self._columns = dict(columns)
        self._arrays = dict(arrays)
        self._digests = dict(digests)
        self.version = version
        self.n_items = self._n_items = n_items
        self._flags = LRU[tuple[str, int], npt.NDArray[np.uint16]](_FLAG_BYTES)
        self._groups: dict[str, Groups] = {}
        self._joints = LRU[tuple[tuple[str, ...], int], tuple[AnyArray, int]](_LABEL_BYTES)

    def __repr__(self) -> str:
        names = ", ".join(f"{each.name}: {each.kind}" for each in self._columns.values())
        return f"Features({names}; version {self.version[:12]})"

    @property
    def columns(self) -> dict[str, str]:
        """The kind of each column, by name: "number", "boolean", "category" or "categories"."""
        return {name: column.kind for name, column in self._columns.items()}

    def kind(self, name: str) -> str | None:
        """Return the kind of a column; None if there is no column of this name."""
        column = self._columns.get(name)
        return None if column is None else column.kind

    def values(self, name: str) -> Float32Array:
        """Return a column of single values, by position, float32 (16 * n_panels,)."""
        values: Float32Array = self._arrays["feature_values"][self._columns[name].place]
        return values

    def code(self, name: str, text: str) -> int:
        """Return the number of a text in a column; a number of no item if no item has the text."""
        column = self._columns[name]
        low, high, wanted = column.first, column.last, text.encode("utf-8", "surrogatepass")
        while low < high:
            middle = (low + high) // 2
            if self._text(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        found = low < column.last and self._text(low) == wanted
        return low - column.first if found else _UNKNOWN

    def categories(self, name: str) -> list[str]:
        """Return all texts of a column, sorted. O(number of texts)."""
        column = self._columns[name]
        return [self._text(i).decode("utf-8", "replace") for i in range(column.first, column.last)]

    def entries(self, name: str, positions: Positions) -> list[Any]:
        """Return the values of some items: numbers, booleans, texts or None, or lists of texts."""
        column = self._columns[name]
        if column.kind == "categories":
            offsets, members = self.lists(name)
            return [
                [self._decoded(column, code) for code in members[start:end].tolist()]
                for start, end in zip(offsets[positions], offsets[positions + 1], strict=True)
            ]
        values: list[float] = self.values(name)[positions].tolist()
        match column.kind:
            case "boolean":
                return [value != 0.0 for value in values]
            case "category":
                return [None if value < 0 else self._decoded(column, value) for value in values]
        return values

    def _decoded(self, column: Column, code: float) -> str:
        if not 0 <= code < column.last - column.first:
            raise ValueError(f"damaged: features: {column.name!r} has no text {code:g}")
        return self._text(column.first + int(code)).decode("utf-8", "replace")

    def lists(self, name: str) -> tuple[IntArray, npt.NDArray[np.int32]]:
        """Return offsets (n + 1,), and the numbers of all items' texts, by position."""
        offsets: IntArray = self._arrays["feature_offsets"][self._columns[name].place]
        return offsets, self._arrays["feature_members"]

    def flags(self, name: str, code: int) -> npt.NDArray[np.uint16]:
        """Return which items' lists hold a text: a word per panel, a bit per item.

        O(length of all lists).
        """
        key = name, code
        kept = self._flags.get(key)
        if kept is not None:
            return kept
        bits = np.zeros(-(-self._n_items // _native.LANES) * _native.LANES, np.uint8)
        offsets, members = self.lists(name)
        first, last = int(offsets[0]), int(offsets[-1])
        if not 0 <= first <= last <= len(members):
            raise ValueError(f"damaged: feature_offsets: {name!r} has offsets {first} to {last}")
        hits = first + np.flatnonzero(members[first:last] == code)
        items = np.searchsorted(offsets, hits, side="right") - 1
        bits[items[(items >= 0) & (items < self._n_items)]] = 1
        words = np.packbits(bits, bitorder="little").view("<u2").astype(np.uint16, copy=False)
        self._flags.put(key, words, words.nbytes)
        return words

    def groups(self, name: str) -> Groups:
        """Return the groups of items that share a value of a column. O(n log n) the first time.

        Raises
        ------
        ValueError
            If a column of numbers has a value so large that float32 may have merged several
            numbers into it; the message names the value.
        """
        kept = self._groups.get(name)
        if kept is None:
            kept = self._groups[name] = _groups(self, name, self._n_items)
        return kept

    def joint(self, names: tuple[str, ...], least: int) -> tuple[AnyArray, int]:
        """Return labels (n,) of items, and their number. Items have the same label if they are in
        the same groups, counting groups of at least `least` items in several columns."""
        kept = self._joints.get((names, least))
        if kept is None:
            labels, n_labels = np.zeros(self._n_items, np.int64), 1
            for name in names:
                groups = self.groups(name)
                labels, n_labels = groups.told_apart(
                    labels, n_labels, groups.of_size(least), _MOST_SUMMED
                )
            kept = labels, n_labels
            self._joints.put((names, least), kept, labels.nbytes)
        return kept

    def _text(self, place: int) -> bytes:
        start, end = self._arrays["feature_text_offsets"][place : place + 2].tolist()
        text = self._arrays["feature_text"]
        if not 0 <= start <= end <= len(text):
            raise ValueError(f"damaged: feature_text_offsets: text {place} is [{start}, {end})")
        return bytes(text[start:end])

    # ---- Files ------------------------------------------------------------------------------

    def content(self, of: str) -> tuple[dict[str, Any], dict[str, AnyArray], dict[str, str]]:
        """Return the manifest's entry, arrays and digests; `of` is the catalog's version."""
        columns = [
            {"name": each.name, "kind": each.kind, "texts": each.last - each.first}
            for each in self._columns.values()
        ]
        meta = {"of": of, "version": self.version, "columns": columns}
        return meta, dict(self._arrays), dict(self._digests)

    @classmethod
    def mapped(
        cls,
        meta: Any,
        arrays: Mapping[str, AnyArray],
        digests: Mapping[str, str],
        of: str,
        n_items: int,
    ) -> Features:
        """Restore what `content` returned, from files; a ValueError if parts do not match."""
        if meta["of"] != of:
            raise ValueError("features belong to another catalog")
        if not isinstance(meta["version"], str) or not isinstance(meta["columns"], list):
            raise ValueError(f"features is {shown(meta)}")
        columns: dict[str, Column] = {}
        counts = {"values": 0, "lists": 0, "texts": 0}
        for each in meta["columns"]:
            name, kind, texts = each["name"], each["kind"], each["texts"]
            if (
                kind not in _KINDS
                or type(texts) is not int
                or not 0 <= texts <= (_MOST if kind in ("category", "categories") else 0)
                or name in columns
            ):
                raise ValueError(f"a column of features is {shown(each)}")
            _check_name(name)
            place = "lists" if kind == "categories" else "values"
            first = counts["texts"]
            columns[name] = Column(name, kind, counts[place], first, first + texts)
            counts[place] += 1
            counts["texts"] += texts
        lanes = -(-n_items // _native.LANES) * _native.LANES
        own = {name: arrays[name] for name in _ARRAYS if name in arrays}
        expected = {
            "feature_values": ((counts["values"], lanes), "<f4", counts["values"]),
            "feature_offsets": ((counts["lists"], n_items + 1), "<i8", counts["lists"]),
            "feature_members": (None, "<i4", counts["lists"]),
            "feature_text_offsets": ((counts["texts"] + 1,), "<i8", counts["texts"]),
            "feature_text": (None, "|u1", counts["texts"]),
        }
        for name, (shape, dtype, count) in expected.items():
            if (name in own) != (count > 0):
                raise ValueError(f"{name} is {'missing' if count else 'not of any column'}")
            if count and (
                own[name].dtype.str != dtype
                or (own[name].ndim != 1 if shape is None else own[name].shape != shape)
            ):
                raise ValueError(f"{name} has shape {own[name].shape}, dtype {own[name].dtype}")
        return cls(columns, own, digests, meta["version"], n_items)

    @property
    def arrays(self) -> dict[str, AnyArray]:
        """The arrays to save, by name."""
        return dict(self._arrays)

    def check(self) -> None:
        """Read and check all columns; a ValueError for the first invalid value."""
        for column in self._columns.values():
            try:
                self._check_column(column)
            except ValueError as error:
                raise ValueError(f"damaged: features: {column.name!r}: {error}") from None

    def _check_column(self, column: Column) -> None:
        texts = [self._text(i) for i in range(column.first, column.last)]
        if any(a >= b for a, b in pairwise(texts)):
            raise ValueError("texts do not ascend")
        if column.kind == "categories":
            offsets, members = self.lists(column.name)
            if (np.diff(offsets) < 0).any() or not 0 <= offsets[0] <= offsets[-1] <= len(members):
                raise ValueError("offsets do not ascend")
            codes: AnyArray = members[offsets[0] : offsets[-1]]
            low = 0
        else:
            codes = self.values(column.name)[: self._n_items]
            if not np.isfinite(codes).all():
                raise ValueError("a value is not finite")
            if column.kind == "number":
                return
            low = 0 if column.kind == "boolean" else _NO_CATEGORY
        if (codes != np.floor(codes)).any():
            raise ValueError("a value is not an integer")
        most = 1 if column.kind == "boolean" else len(texts) - 1
        if codes.size and not (low <= codes.min() and codes.max() <= most):
            raise ValueError(f"a value is not one of {low}, ..., {most}")


_ARRAYS = (
    "feature_values",
    "feature_offsets",
    "feature_members",
    "feature_text_offsets",
    "feature_text",
)


# ---- Groups ----------------------------------------------------------------------------------


class Groups:
    """Items grouped by the values of one column; groups are numbered from 0.

    Attributes
    ----------
    codes : ndarray of int32, shape (n,), or None
        Each item's group, -1 for none. None if items can be in several groups.
    offsets, members : ndarray of int64, shape (n + 1,) and of int32, or None
        For a column of lists, item i is in the groups ``members[offsets[i] : offsets[i + 1]]``.
    n_groups : int
    """

    def __init__(
        self,
        n_items: int,
        codes: npt.NDArray[np.int32] | None,
        offsets: IntArray | None,
        members: npt.NDArray[np.int32] | None,
        n_groups: int,
    ) -> None:
        self.codes = codes
        self.offsets = offsets
        self.members = members
        self.n_groups = n_groups
        self._n_items = n_items
        self._by_group: tuple[npt.NDArray[np.int32], IntArray] | None = None
        self._sums: IntArray | None = None  # running sums of group sizes, largest first

    def of(self, position: int) -> tuple[int, ...]:
        """Return the groups of one item."""
        if self.codes is not None:
            code = int(self.codes[position])
            return () if code < 0 else (code,)
        assert self.offsets is not None
        assert self.members is not None
        start, end = self.offsets[position : position + 2].tolist()
        return tuple(self.members[start:end].tolist())

    def items(self, group: int) -> npt.NDArray[np.int32]:
        """Return the positions of a group's items, ascending."""
        items, starts = self._sorted()
        return items[starts[group] : starts[group + 1]]

    def strike(self, groups: Collection[int], mask: Mask) -> None:
        """Clear the items of some groups in a mask (n,)."""
        if self.codes is None:
            for group in groups:
                mask[self.items(group)] = False
            return
        kept = np.ones(self.n_groups + 1, np.bool_)  # the last entry: items without a group
        kept[list(groups)] = False
        mask &= kept[self.codes]

    def size(self, group: int) -> int:
        """Return the number of items in a group."""
        starts = self._sorted()[1]
        return int(starts[group + 1] - starts[group])

    def sizes_among(self, mask: Mask) -> IntArray | None:
        """Count the items of a mask (n,) in each group that has any; None if an item has no
        group."""
        if self.codes is not None:
            own = self.codes[mask]
            found: IntArray = np.unique(own, return_counts=True)[1].astype(np.int64)
            return None if (own < 0).any() else found
        assert self.offsets is not None
        assert self.members is not None
        lengths = np.diff(self.offsets)
        if not lengths[mask].all():
            return None
        own = self.members[np.repeat(mask, lengths)]
        return np.unique(own, return_counts=True)[1].astype(np.int64)

    def sums(self, groups: list[int], values: IntArray, positions: Positions) -> IntArray:
        """Sum values of groups for each of m items, in r rows at once: (r, m).

        `values` (r, g) are those of `groups`, which ascend; all other groups have 0.
        """
        wanted = np.array(groups, np.int64)
        if self.codes is not None:
            found: IntArray = self._of_groups(wanted, values, self.codes[positions])
            return found
        assert self.offsets is not None
        assert self.members is not None
        starts = self.offsets[positions]
        lengths = self.offsets[positions + 1] - starts
        ends = np.zeros(len(positions) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        codes = self.members[np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])]
        sums = np.empty((len(values), len(positions)), np.int64)
        step = max(1, _MOST_AT_ONCE // max(1, len(codes)))
        for first in range(0, len(values), step):
            own = values[first : first + step]
            running = np.zeros((len(own), len(codes) + 1), np.int64)
            np.cumsum(self._of_groups(wanted, own, codes), axis=1, out=running[:, 1:])
            sums[first : first + step] = running[:, ends[1:]] - running[:, ends[:-1]]
        return sums

    def _of_groups(self, wanted: IntArray, values: IntArray, codes: AnyArray) -> IntArray:
        """Return the values (r, m) of the groups with these codes; 0 for -1 and groups without."""
        if len(codes) < self.n_groups:
            at = np.minimum(np.searchsorted(wanted, codes), len(wanted) - 1)
            found: IntArray = values[:, at] * (wanted[at] == codes)
            return found
        by_group = np.zeros((len(values), self.n_groups + 1), np.int64)
        by_group[:, wanted] = values
        taken: IntArray = np.take(by_group, codes, axis=1)
        return taken

    def told_apart(
        self, labels: AnyArray, n_labels: int, groups: list[int], most: int = _MOST
    ) -> tuple[AnyArray, int]:
        """Refine labels (n,) of items so that items in different ones of `groups` differ, too.

        Returns the labels and their number. If there are more than `most`, refining may stop early.
        """
        if self.codes is not None:
            numbers = np.zeros(self.n_groups + 1, np.int64)
            numbers[groups] = np.arange(1, len(groups) + 1)
            return told_apart(labels, n_labels, numbers[self.codes], len(groups) + 1)
        if len(groups) <= _BITS:
            bits = np.zeros(self._n_items, np.int64)
            for place, group in enumerate(groups):
                bits[self.items(group)] |= 1 << place
            return told_apart(labels, n_labels, bits, 1 << len(groups))
        return self._lists_told_apart(labels, n_labels, groups, most)

    def _lists_told_apart(
        self, labels: AnyArray, n_labels: int, groups: list[int], most: int
    ) -> tuple[AnyArray, int]:
        """Refine by the first group that each item is in, then by the second, and so on.

        O(e log e) for e memberships; less if `most` is soon exceeded.
        """
        assert self.offsets is not None
        assert self.members is not None
        numbers = np.full(self.n_groups, -1, np.int64)
        numbers[groups] = np.arange(len(groups))
        codes = numbers[self.members[int(self.offsets[0]) : int(self.offsets[-1])]]
        among = np.flatnonzero(codes >= 0)
        owners = np.repeat(np.arange(self._n_items, dtype=np.int32), np.diff(self.offsets))[among]
        codes = codes[among]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        lengths = np.diff(np.append(starts, len(owners)))
        labels = labels.astype(np.int64)
        for rank in range(int(lengths.max(initial=0))):
            entries = starts[lengths > rank] + rank
            own = owners[entries]
            found, places = np.unique(
                labels[own] * len(groups) + codes[entries], return_inverse=True
            )
            labels[own] = n_labels + places
            n_labels += len(found)
            if len(found) > most:
                break
        return _condensed(labels, n_labels)

    def labels_of(self, one_of: Positions) -> IntArray | None:
        """Return the label of each group, and of no group: (n_groups + 1,).

        Labels stand for groups, and `one_of` has an item of each label. None if items have several
        groups.
        """
        if self.codes is None:
            return None
        found = np.full(self.n_groups + 1, -1, np.int64)
        found[self.codes[one_of]] = np.arange(len(one_of))
        return found

    def sizes(self) -> IntArray:
        """Return the number of items in each group."""
        return np.diff(self._sorted()[1])

    def of_size(self, least: int) -> list[int]:
        """Return the groups of at least `least` items."""
        found: list[int] = np.flatnonzero(self.sizes() >= least).tolist()
        return found

    def largest(self, count: int) -> int:
        """Return the number of items in the `count` largest groups together."""
        if self._sums is None:
            self._sums = np.cumsum(np.sort(self.sizes())[::-1])
        return int(self._sums[min(count, len(self._sums)) - 1]) if len(self._sums) else 0

    def _sorted(self) -> tuple[npt.NDArray[np.int32], IntArray]:
        """Return items sorted by group, and where each group begins."""
        if self._by_group is None:
            if self.codes is not None:
                codes, owners = self.codes, None
            else:
                assert self.offsets is not None
                assert self.members is not None
                first, last = int(self.offsets[0]), int(self.offsets[-1])
                codes = self.members[first:last]
                owners = np.repeat(np.arange(self._n_items, dtype=np.int32), np.diff(self.offsets))
            order = np.argsort(codes, kind="stable").astype(np.int32, copy=False)
            order = order[int((codes < 0).sum()) :]
            sizes = np.bincount(codes[order], minlength=self.n_groups)
            starts = np.zeros(self.n_groups + 1, np.int64)
            np.cumsum(sizes, out=starts[1:])
            self._by_group = order if owners is None else owners[order], starts
        return self._by_group


class Joint(NamedTuple):
    """Labels of items by which a pass sums masses: so few that the pass hardly takes longer.

    Attributes
    ----------
    labels : ndarray of uint16, shape (16 * n_panels,)
    n_labels : int
    one_of : ndarray of int64, shape (n_labels,)
        An item of each label.
    told : dict from a column of the rules to a set of groups, or None
        The groups that labels tell apart; None for all groups. Labels also tell apart all sets of
        items in the rules.
    label_of : ndarray of int64, shape (n_groups + 1,), or None
        If labels are the groups of one column of single values: the label of each group, and of
        no group; -1 for groups without a label.
    """

    labels: npt.NDArray[np.uint16]
    n_labels: int
    one_of: Positions
    told: Mapping[int, Collection[int] | None] = MappingProxyType({})
    label_of: IntArray | None = None

    @classmethod
    def of(cls, labels: AnyArray, n_labels: int) -> Joint | None:
        """Make it from labels (n,) of items; None if there are too many labels."""
        n_items = len(labels)
        most = min(_MOST_SUMMED, max(_FEW_SUMMED, n_items // 32))
        if n_labels > most:
            labels, n_labels = _condensed(labels, n_labels)
        if n_labels > most:
            return None
        padded = np.zeros(-(-n_items // _native.LANES) * _native.LANES, np.uint16)
        padded[:n_items] = labels
        one_of = np.zeros(n_labels, np.int64)
        one_of[labels] = np.arange(n_items)
        return cls(padded, n_labels, one_of)


def told_apart(labels: AnyArray, n_labels: int, own: AnyArray, n_own: int) -> tuple[AnyArray, int]:
    """Combine two labels of each item into one; also return an upper bound of the labels' number.

    If there are many, they are renumbered without gaps.
    """
    if n_own > _MOST_LABELS:
        own, n_own = _condensed(own, n_own)
    if n_labels * n_own > _MOST_LABELS:
        labels, n_labels = _condensed(labels, n_labels)
    labels, n_labels = labels * n_own + own, n_labels * n_own
    return (labels, n_labels) if n_labels <= _MOST_LABELS else _condensed(labels, n_labels)


def _condensed(labels: AnyArray, n_labels: int) -> tuple[AnyArray, int]:
    """Renumber labels from 0 without gaps; 0 stays 0."""
    if n_labels <= _COUNTED:
        is_there = np.bincount(labels, minlength=n_labels) > 0
        is_there[0] = True
        numbers = np.cumsum(is_there) - 1
        return numbers[labels], int(numbers[-1]) + 1
    others = np.flatnonzero(labels)
    own, places = np.unique(labels[others], return_inverse=True)
    found = np.zeros(len(labels), np.int64)
    found[others] = places + 1
    return found, len(own) + 1


def _groups(features: Features, name: str, n_items: int) -> Groups:
    kind = features.kind(name)
    if kind == "categories":
        offsets, members = features.lists(name)
        n_groups = len(features.categories(name))
        found = members[int(offsets[0]) : int(offsets[-1])]
        if found.size and not (found.min() >= 0 and found.max() < n_groups):
            raise ValueError(f"damaged: features: {name!r} has no text {found.max()}")
        return Groups(n_items, None, offsets, members, n_groups)
    values = features.values(name)[:n_items]
    if kind == "boolean":
        codes = np.where(values != 0.0, 0, -1).astype(np.int32)
        return Groups(n_items, codes, None, None, 1)
    if kind == "category":
        codes = values.astype(np.int32)
        n_groups = len(features.categories(name))
        if not (codes.min() >= -1 and codes.max() < n_groups):
            raise ValueError(f"damaged: features: {name!r} has no text {codes.max()}")
        return Groups(n_items, codes, None, None, n_groups)
    merged = np.flatnonzero(np.abs(values) >= _MOST)
    if merged.size:
        raise ValueError(
            f"features[{name!r}]: got {values[merged[0]]:g}, which in float32 may stand for several"
            " numbers, so it cannot name a group; pass texts"
        )
    own, places = np.unique(values, return_inverse=True)
    return Groups(n_items, places.astype(np.int32), None, None, len(own))


# ---- Reading callers' columns ----------------------------------------------------------------


def as_features(given: Any, n_items: int, order: Positions | None) -> Features:
    """Read columns by name, with values in the order of rows; `order` is the row at each position.

    Raises
    ------
    ValueError
        If a column is invalid; the message names the column, the row and the value.
    """
    named = _named(given)
    columns: dict[str, Column] = {}
    values: list[Float32Array] = []
    lists: list[tuple[IntArray, npt.NDArray[np.int32]]] = []
    texts: list[list[bytes]] = []
    digests: dict[str, Any] = {}
    n_texts = 0
    for name in sorted(named):
        _check_name(name)
        where = f"features[{name!r}]"
        column = as_column(where, named[name], f"{n_items} values, one for each item")
        if len(column) != n_items:
            raise ValueError(
                f"{where}: expected {n_items} values, one for each item, got {len(column)}"
            )
        kind, found, own = _column(where, column)
        first = n_texts
        n_texts += len(own)
        if kind == "categories":
            place = len(lists)
            lists.append(found)
            hashed = [store.array_digest(each) for each in found]
        else:
            place = len(values)
            values.append(found)
            hashed = [store.array_digest(found)]
        columns[name] = Column(name, kind, place, first, n_texts)
        texts.append(own)
        digests[name] = [kind, hashed, [_said(text) for text in own]]
    arrays = _arrays(values, lists, texts, n_items, order)
    return Features(
        columns,
        arrays,
        {name: store.array_digest(array) for name, array in arrays.items()},
        store.content_hash({"n_items": n_items, "columns": digests}),
        n_items,
    )


def _named(given: Any) -> dict[str, Any]:
    """Return columns by name, from a mapping or a table of another library."""
    if isinstance(given, Mapping):
        named = dict(given)
    else:
        own = [each for each in ("column_names", "columns") if hasattr(type(given), each)]
        if not own:
            raise ValueError(
                "features: expected a mapping of names to columns, or a table of them, got"
                f" {shown(given)}"
            )
        try:
            named = {name: given[name] for name in getattr(given, own[0])}
        except MemoryError:
            raise
        except Exception as error:  # raised by the table's library: a repeated name
            raise ValueError(f"features: not a table of columns: {shown(error)}") from None
    if not named:
        raise ValueError("features: expected at least one column")
    found: dict[str, Any] = {}
    for name, column in named.items():
        if isinstance(name, str):
            name = normalize("NFKC", name)  # as Python reads names: a micro sign is a mu
        if name in found:
            raise ValueError(f"features: two columns have the name {shown(name)}")
        found[name] = column
    return found


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(
            f"features: expected column names that are valid as Python variables, got {shown(name)}"
        )
    if name in RESERVED:
        raise ValueError(f"features: {name!r} has another meaning in expressions; rename it")


def _column(where: str, column: Sequence[Any] | AnyArray) -> tuple[str, Any, list[bytes]]:
    """Read a column: its kind, values and texts."""
    if isinstance(column, np.ndarray) and column.dtype.kind != "O":
        if column.ndim != 1:
            raise ValueError(f"{where}: expected one value per item, got shape {column.shape}")
        match column.dtype.kind:
            case "b":
                return "boolean", column.astype(np.float32), []
            case "i" | "u" | "f":
                return "number", _numbers(where, column), []
            case "U" | "T":
                return _categories(where, column.tolist())
        raise ValueError(f"{where}: expected numbers, booleans or texts, got {column.dtype}")
    entries = column.tolist() if isinstance(column, np.ndarray) else list(column)
    sample = next((each for each in entries if not _is_missing(each)), None)
    if isinstance(sample, str | list | tuple | set | frozenset | np.ndarray):
        entries = [None if _is_missing(each) else each for each in entries]
    if isinstance(sample, str):
        return _categories(where, entries)
    if isinstance(sample, bool | np.bool_):
        for row, each in enumerate(entries):
            if not isinstance(each, bool | np.bool_):
                _refuse(where, row, each, "True or False")
        return "boolean", np.array(entries, np.float32), []
    if isinstance(sample, list | tuple | set | frozenset | np.ndarray):
        return _lists(where, entries)
    if sample is None:
        raise ValueError(f"{where}: all {len(entries)} values are missing")
    for row, each in enumerate(entries):
        if isinstance(each, bool | np.bool_) or not isinstance(
            each, int | float | np.integer | np.floating
        ):
            _refuse(where, row, each, "a number")
    for row, each in enumerate(entries):  # NumPy would make them objects or, silently, floats
        if isinstance(each, int) and not -(2**63) <= each < 2**63:
            _refuse(where, row, each, "an integer of at most 64 bits, or a float")
    return "number", _numbers(where, np.array(entries)), []


def _is_missing(value: Any) -> bool:
    """Whether a value is None, or what pandas uses for a missing one."""
    is_nan = isinstance(value, float | np.floating) and value != value
    return value is None or is_nan or type(value).__name__ == "NAType"


def _refuse(where: str, row: int, value: Any, expected: str) -> None:
    missing = " (a missing value: fill it in)" if value is None else ""
    raise ValueError(f"{where}: row {row}: expected {expected}, got {shown(value)}{missing}")


def _numbers(where: str, values: AnyArray) -> Float32Array:
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{where}: expected numbers, got {values.dtype}")
    with np.errstate(over="ignore"):
        cast = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(cast))
    if bad.size:
        _refuse(where, int(bad[0]), values[bad[0]].item(), "a number that is finite in float32")
    if values.dtype.kind in "iu":
        # Rounding must not be silent: seconds since 1970 are minutes apart in float32.
        with np.errstate(invalid="ignore"):  # 2**63, as float32, is cast back to -2**63
            lost = np.flatnonzero(cast.astype(values.dtype) != values)
        if lost.size:
            row = int(lost[0])
            raise ValueError(
                f"{where}: row {row}: the integer {values[row].item()} is not exact in float32,"
                " which keeps 24 bits; subtract an origin, scale the column down, or pass floats to"
                " have them rounded"
            )
    return np.ascontiguousarray(cast)


def _categories(where: str, entries: list[Any]) -> tuple[str, Float32Array, list[bytes]]:
    for row, each in enumerate(entries):
        if each is not None and not isinstance(each, str):
            _refuse(where, row, each, "a text, or None")
    known = sorted({each for each in entries if each is not None}, key=_encoded)
    _check_count(where, len(known))
    code = {text: float(place) for place, text in enumerate(known)}
    code[None] = float(_NO_CATEGORY)
    values = np.array([code[each] for each in entries], np.float32)
    return "category", values, [_encoded(text) for text in known]


def _lists(where: str, entries: list[Any]) -> tuple[str, Any, list[bytes]]:
    rows: list[list[str]] = []
    for row, each in enumerate(entries):
        if each is None:
            rows.append([])
            continue
        if not isinstance(each, list | tuple | set | frozenset | np.ndarray):
            _refuse(where, row, each, "a list of texts, or None")
        own = each.tolist() if isinstance(each, np.ndarray) else list(each)
        for text in own if isinstance(own, list) else [own]:
            if not isinstance(text, str):
                _refuse(where, row, each, "a list of texts")
        rows.append(sorted(set(own), key=_encoded))
    known = sorted(set(chain.from_iterable(rows)), key=_encoded)
    _check_count(where, len(known))
    code = {text: place for place, text in enumerate(known)}
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(each) for each in rows], out=offsets[1:])
    members = np.array([code[text] for each in rows for text in each], np.int32)
    return "categories", (offsets, members), [_encoded(text) for text in known]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _said(text: bytes) -> str:
    """A text for JSON, unique to the bytes: lone surrogates and backslashes are escaped."""
    return text.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _check_count(where: str, count: int) -> None:
    if count > _MOST:
        raise ValueError(f"{where}: got {count:,} different texts; expected at most {_MOST:,}")


def _arrays(
    values: list[Float32Array],
    lists: list[tuple[IntArray, npt.NDArray[np.int32]]],
    texts: list[list[bytes]],
    n_items: int,
    order: Positions | None,
) -> dict[str, AnyArray]:
    """Make the arrays to save: by position, with the columns of a kind together."""
    arrays: dict[str, AnyArray] = {}
    if values:
        lanes = -(-n_items // _native.LANES) * _native.LANES
        matrix = np.zeros((len(values), lanes), np.float32)
        for place, column in enumerate(values):
            matrix[place, :n_items] = column if order is None else column[order]
        arrays["feature_values"] = matrix
    if lists:
        all_offsets = np.empty((len(lists), n_items + 1), np.int64)
        parts, start = [], 0
        for row, (offsets, members) in zip(all_offsets, lists, strict=True):
            if order is not None:
                offsets, members = _taken(offsets, members, order)
            row[:] = offsets + start
            parts.append(members)
            start += len(members)
        arrays["feature_offsets"] = all_offsets
        arrays["feature_members"] = np.concatenate([*parts, np.zeros(int(not start), np.int32)])
    flat = list(chain.from_iterable(texts))
    if flat:
        ends = np.zeros(len(flat) + 1, np.int64)
        np.cumsum([len(text) for text in flat], out=ends[1:])
        arrays["feature_text_offsets"] = ends
        arrays["feature_text"] = np.frombuffer(b"".join(flat) or b"\0", np.uint8)
    return arrays


def _taken(
    offsets: IntArray, members: npt.NDArray[np.int32], order: Positions
) -> tuple[IntArray, npt.NDArray[np.int32]]:
    lengths = np.diff(offsets)[order]
    taken = np.zeros(len(order) + 1, np.int64)
    np.cumsum(lengths, out=taken[1:])
    places = np.arange(taken[-1]) + np.repeat(offsets[:-1][order] - taken[:-1], lengths)
    return taken, members[places]
