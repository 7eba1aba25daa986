"""The requests of parts of a log, and those that two parts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrank.arraytypes import Hashes
from fastrank.eventlog.report import ReadReport

__all__ = ["Requests", "in_common"]

_ALL = 2**64 - 1
_WOULD_SHOW = 40.0  # expected kept requests in common: none is kept once in 10^17 times


class Requests:
    """Hashes of the requests of a part: all of them, or a sample that represents all.

    Parameters
    ----------
    most : int or None
        If there are more, only hashes below a limit are kept, which is halved until they fit; so
        either all parts keep a request, or none. None: no limit.

    Examples
    --------
    >>> requests = Requests(2)
    >>> requests.add(np.array([5, 2**63, 2**63 + 1], np.uint64))
    >>> requests.hashes.tolist(), requests.are_all
    ([5], False)
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._limit = _ALL if most != 0 else -1
        self._sorted = np.empty(0, np.uint64)
        self._waiting: list[Hashes] = []

    @property
    def are_all(self) -> bool:
        """Whether all requests are kept."""
        self._settle()
        return self._limit == _ALL

    @property
    def hashes(self) -> Hashes:
        """The kept hashes, in their order."""
        self._settle()
        return self._sorted

    def add(self, hashes: Hashes) -> None:
        """Add hashes (m,) of requests."""
        if self._limit < 0:
            return
        self._waiting.append(hashes[hashes <= np.uint64(self._limit)])
        if sum(map(len, self._waiting)) > max(self.most or 0, len(self._sorted)):
            self._settle()

    def merge(self, other: Requests) -> None:
        """Add those of another part; `other` stays as it is."""
        self._limit = min(self._limit, other._limit)
        self.add(other.hashes)
        self._settle()

    def up_to(self, limit: int) -> Hashes:
        """The hashes within a limit."""
        return self.hashes[: np.searchsorted(self.hashes, np.uint64(limit), side="right")]

    @property
    def limit(self) -> int:
        """The limit of the kept hashes; -1 if none is kept."""
        self._settle()
        return self._limit

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return vars(self)

    def _settle(self) -> None:
        if self._waiting:
            self._sorted = np.sort(np.concatenate([self._sorted, *self._waiting]))
            self._waiting = []
        kept = self._within()
        while self.most and kept > self.most:
            self._limit //= 2
            kept = self._within()
        if kept < len(self._sorted):
            self._sorted = self._sorted[:kept].copy()

    def _within(self) -> int:
        if self._limit < 0:
            return 0
        return int(np.searchsorted(self._sorted, np.uint64(self._limit), side="right"))


def in_common(
    requests: Sequence[Requests], reports: Sequence[ReadReport]
) -> Mapping[tuple[int, int], str]:
    """Pairs of parts, by index, that have rows in common, with a description of these.

    Found by their requests, as far as they are kept; otherwise also by writers' sequences. An
    overlap of sequences so long that some of its requests would be kept is no overlap of rows:
    different rows have been numbered alike.
    """
    found: dict[tuple[int, int], str] = {}
    limit = min((each.limit for each in requests), default=_ALL)
    share = (limit + 1) / (_ALL + 1)
    if limit >= 0:
        kept = [each.up_to(limit) for each in requests]
        hashes = np.concatenate([np.empty(0, np.uint64), *kept])
        part_of = np.repeat(np.arange(len(kept)), [len(each) for each in kept])
        order = np.argsort(hashes, kind="stable")
        hashes, part_of = hashes[order], part_of[order]
        again = np.flatnonzero(hashes[1:] == hashes[:-1])
        both = np.stack([part_of[again], part_of[again + 1]], axis=1)
        about = "" if limit == _ALL else "about "
        pairs, counts = np.unique(both[both[:, 0] < both[:, 1]], axis=0, return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            found[tuple(pair)] = f"{about}{round(count / share):,} requests"
    for pair, (count, what) in _overlaps(reports).items():
        all_known = all(requests[part].are_all for part in pair)
        if not all_known and count * share < _WOULD_SHOW:
            found.setdefault(pair, what)
    return found


def _overlaps(reports: Sequence[ReadReport]) -> dict[tuple[int, int], tuple[int, str]]:
    """Parts with the same numbers of a writer's sequence: how many in one range, and which."""
    found: dict[tuple[int, int], tuple[int, str]] = {}
    of_writers: dict[str, list[tuple[int, int, int]]] = {}
    for part, report in enumerate(reports):
        for writer, sequence in report.sequences.items():
            ranges = [(max(a, 0), b, part) for a, b in sequence.ranges if b >= 0]
            of_writers.setdefault(writer, []).extend(ranges)
    for writer, ranges in of_writers.items():
        reached, by = -1, -1
        for first, last, part in sorted(ranges):
            if first <= reached:
                pair = (min(part, by), max(part, by))
                end = min(last, reached)
                what = f"the numbers {first:,} to {end:,} of writer {writer}"
                found[pair] = max(found.get(pair, (0, "")), (end - first + 1, what))
            if last > reached:
                reached, by = last, part
    return found
