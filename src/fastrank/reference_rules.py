"""Rules as the oracle has them: which items may stand at a place, by masks, afresh at every place.

`reference` makes laws of these masks. Items are positions 0..n-1, places count from 0, and a prefix
has None at a place that shows no item. Nothing is kept from one place to the next: all follows from
what stands on earlier pages, on this page so far, and on the places that named pins still hold.
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
    """What rules say about n items.

    What they filter is in the mask of eligible items that laws take, what they boost in the scores.

    Parameters
    ----------
    groups : mapping of str to sequence of n collections
        Of the columns that `cap`, `window` and `decay` name: the groups that each item is in, each
        once.
    cap : mapping of str to int
        How many items of a group the list may have, those of earlier pages included.
    window : mapping of str to (int, int)
        (c, w): at most c items of a group among any w places in a row.
    at_least : sequence of (mask, int)
        A set of items, and how many of the page's places it is owed. No two sets share an item.
    decay : mapping of str to float
        What an item's weight is multiplied by, for each group that it shares with an item shown.
    pin : mapping of int to int
        Which item stands at a place.
    pin_where : mapping of int to mask
        Of which set a place shows an item.
    on_empty : {"stop", "relax"}
        What happens at a place where no item is allowed.
    after : sequence of int
        What earlier pages showed, first place first.

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
        """Eligible items: what filters left, without what earlier pages showed.

        Raises
        ------
        ValueError
            If they left a pinned item out.
        """
        for place, item in self.pin.items():
            if not filters[item]:
                raise ValueError(f"pin: the item at place {place} is not eligible: {item}")
        return _without(filters, self.after)

    def left(self, prefix: Line, k: int, eligible: Mask) -> tuple[Mask, FloatArray]:
        """Which items may stand behind a prefix, and the logs of what their weights decay by.

        Parameters
        ----------
        prefix : sequence of int or None
            What the page's places show so far, whether or not the rules allowed it.
        k : int
            Places asked for. Behind the last one that there are items for, places have no pins, and
            nothing is owed to them.
        eligible : mask, shape (n,)
            What filters left.

        Returns
        -------
        mask, shape (n,)
            Empty where the list ends.
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
        # A set pin gets here where it is dropped, and the shares with it.
        mask = spaced if here in sets else spaced & self._of_sets_owed(shown, to_come, free)
        if self.on_empty == "relax":
            mask = next((each for each in (mask, spaced, capped) if each.any()), left)
        return mask, self._log_decay([*self.after, *shown], len(left))

    def _have_room(self, standing: Line) -> Mask | bool:
        """Items whose groups all have fewer than their caps let them have."""
        room: Mask | bool = True
        for column, most in self.cap.items():
            room = room & self._in_no_group_of(column, most, standing)
        return room

    def _keep_apart(self, prefix: Line, to_come: Mapping[int, int]) -> Mask | bool:
        """Items that find room in each window that holds the place."""
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
        """Items of which no group has `most` items, or more, among those that stand somewhere."""
        count = self._count(column, standing)
        return np.array([all(count[g] < most for g in groups) for groups in self.groups[column]])

    def _count(self, column: str, standing: Line) -> Counter[Hashable]:
        return Counter(
            group for item in standing if item is not None for group in self.groups[column][item]
        )

    def _of_sets_owed(
        self, shown: Sequence[int], to_come: Mapping[int, int], free: int
    ) -> Mask | bool:
        """All items; where what is owed takes all free places left, those of the sets owed."""
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
