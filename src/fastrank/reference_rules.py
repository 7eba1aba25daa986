"""The oracle's rules: masks of the items that may stand at a place, computed anew at every place.

`reference` derives laws from these masks. Items are positions 0..n-1, places count from 0, and a
prefix has None at a place without an item. No state is kept between places: all follows from the
items on earlier pages, on this page so far, and at the places of pins to come.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from fastrank.arraytypes import FloatArray, Mask

__all__ = ["RuleMasks"]

Groups: TypeAlias = Sequence[Collection[Hashable]]
Line: TypeAlias = Sequence[int | None]  # items, place by place


@dataclass(frozen=True, eq=False)
class RuleMasks:
    """Rules about n items.

    Filters are not among them, since laws take a mask of eligible items; boosts are in the scores.

    Parameters
    ----------
    groups : mapping of str to sequence of n collections
        For each column of `cap`, `window` and `decay`: the groups of each item, without repeats.
    cap : mapping of str to int
        How many items of a group the list may have, including those of earlier pages.
    window : mapping of str to (int, int)
        (c, w): at most c items of a group among any w places in a row.
    at_least : sequence of (mask, int)
        A set of items, and the number of places of the page that it must have. Sets are disjoint.
    decay : mapping of str to float
        Factor on an item's weight, for each group that it shares with an item shown.
    pin : mapping of int to int
        The item that must stand at a place.
    pin_where : mapping of int to mask
        The set of items from which a place must show one.
    on_empty : {"stop", "relax"}
        What to do at a place where no item is allowed.
    after : sequence of int
        The items of earlier pages, first place first.

    Examples
    --------
    At most one of each group, and item 3 at the second place, so that item 2 cannot stand at all:

    >>> rules = RuleMasks(groups={"brand": [{1}, {1}, {2}, {2}]}, cap={"brand": 1}, pin={1: 3})
    >>> rules.left([], k=3, eligible=np.ones(4, bool))[0].tolist()
    [True, True, False, False]
    """

    groups: Mapping[str, Groups] = field(default_factory=dict)
    cap: Mapping[str, int] = field(default_factory=dict)
    window: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    at_least: Sequence[tuple[Mask, int]] = ()
    decay: Mapping[str, float] = field(default_factory=dict)
    pin: Mapping[int, int] = field(default_factory=dict)
    pin_where: Mapping[int, Mask] = field(default_factory=dict)
    on_empty: str = "stop"
    after: Sequence[int] = ()

    def eligible(self, filters: Mask) -> Mask:
        """Return the eligible items: those that filters left, without those of earlier pages.

        Raises
        ------
        ValueError
            If filters removed a pinned item.
        """
        for place, item in self.pin.items():
            if not filters[item]:
                raise ValueError(f"pin: the item at place {place} is not eligible: {item}")
        return _without(filters, self.after)

    def left(self, prefix: Line, k: int, eligible: Mask) -> tuple[Mask, FloatArray]:
        """Return the items allowed after a prefix, and log-factors by which their weights decay.

        Parameters
        ----------
        prefix : sequence of int or None
            The items of the page so far, whether or not the rules allow them.
        k : int
            Number of places asked for. Places beyond the number of items have no pins and no
            shares.
        eligible : mask, shape (n,)
            The items that filters left.

        Returns
        -------
        mask, shape (n,)
            Empty if the list ends.
        ndarray of float64, shape (n,)
        """
        here = len(prefix)
        shown = [item for item in prefix if item is not None]
        everyone = self.eligible(eligible)
        places = min(k, int(everyone.sum()))
        left = _without(everyone, shown)
        undecayed = np.zeros(len(left))

        pins = {at: item for at, item in self.pin.items() if at < places}
        pins = {at: item for at, item in pins.items() if item not in self.after}
        sets = {at: mask for at, mask in self.pin_where.items() if at < places}
        if here in pins:
            return left & _only([pins[here]], len(left)), undecayed
        left = _without(left, pins.values())
        if here in sets and ((left & sets[here]).any() or self.on_empty == "stop"):
            return left & sets[here], undecayed

        to_come = {at: item for at, item in pins.items() if at > here and item not in shown}
        free = sum(at not in pins and at not in sets for at in range(here, places))
        capped = left & self._have_room([*self.after, *shown, *to_come.values()])
        spaced = capped & self._keep_apart(prefix, to_come)
        # A pin of a set is only reached here if it is dropped, and the shares with it.
        mask = spaced if here in sets else spaced & self._of_sets_owed(shown, to_come, free)
        if self.on_empty == "relax":
            mask = next((each for each in (mask, spaced, capped) if each.any()), left)
        return mask, self._log_decay([*self.after, *shown], len(left))

    def _have_room(self, standing: Line) -> Mask | bool:
        """Return the items whose groups are all below their caps."""
        room: Mask | bool = True
        for column, most in self.cap.items():
            room = room & self._in_no_group_of(column, most, standing)
        return room

    def _keep_apart(self, prefix: Line, to_come: Mapping[int, int]) -> Mask | bool:
        """Return the items that are allowed by every window with this place."""
        last = max(to_come, default=len(prefix))
        to_the_right = [to_come.get(at) for at in range(len(prefix), last + 1)]
        line = [*self.after, *prefix, *to_the_right]
        here = len(self.after) + len(prefix)
        apart: Mask | bool = True
        for column, (most, width) in self.window.items():
            for start in range(here - width + 1, here + 1):
                standing = line[max(start, 0) : start + width]
                apart = apart & self._in_no_group_of(column, most, standing)
        return apart

    def _in_no_group_of(self, column: str, most: int, standing: Line) -> Mask:
        """Return the items none of whose groups has `most` or more of the items in `standing`."""
        count = self._count(column, standing)
        return np.array([all(count[g] < most for g in groups) for groups in self.groups[column]])

    def _count(self, column: str, standing: Line) -> Counter[Hashable]:
        return Counter(
            group for item in standing if item is not None for group in self.groups[column][item]
        )

    def _of_sets_owed(
        self, shown: Sequence[int], to_come: Mapping[int, int], free: int
    ) -> Mask | bool:
        """Return all items, or, if shares need all free places left, only those of their sets."""
        placed = [*shown, *to_come.values()]
        owed = [max(0, share - sum(bool(s[i]) for i in placed)) for s, share in self.at_least]
        if free == 0 or sum(owed) == 0 or sum(owed) < free:
            return True
        sets = [s for (s, _), still in zip(self.at_least, owed, strict=True) if still > 0]
        return np.asarray(np.any(sets, axis=0), np.bool_)

    def _log_decay(self, shown: Line, n: int) -> FloatArray:
        log_factor = np.zeros(n)
        for column, factor in self.decay.items():
            count = self._count(column, shown)
            times = [sum(count[group] for group in groups) for groups in self.groups[column]]
            log_factor += math.log(factor) * np.array(times)
        return log_factor


def _only(items: Iterable[int], n: int) -> Mask:
    mask = np.zeros(n, np.bool_)
    mask[list(items)] = True
    return mask


def _without(mask: Mask, items: Iterable[int]) -> Mask:
    return mask & ~_only(items, len(mask))
