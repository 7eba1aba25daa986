"""A histogram of durations: three digits from nanoseconds to hours, and sums that merge.

locust records whole milliseconds; a ranking takes less than one. Buckets are those of HdrHistogram
(Tene): 1,024 equal ones for each power of two, so that a bucket is never wider than a thousandth of
what it holds. Only those that were hit take memory, and histograms of several load generators, or
of several types of request, add up to that of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Histogram"]

_BITS = 10
_HALF = 1 << _BITS  # buckets for each power of two; below twice as many, a bucket is a nanosecond
_NANO = 1e9
_Z = 1.959964  # of a 95 % interval


class Histogram:
    """Counts of durations in seconds.

    Examples
    --------
    >>> times = Histogram([0.001, 0.002, 0.004])
    >>> round(1e3 * times.percentile(50), 2)
    2.0
    """

    def __init__(self, seconds: Iterable[float] = ()) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.most = 0.0
        for each in seconds:
            self.record(each)

    def record(self, seconds: float) -> None:
        """Count a duration; one below 0, which clocks can give, counts as 0."""
        seconds = max(seconds, 0.0)
        index = _index(int(seconds * _NANO))
        self.counts[index] = self.counts.get(index, 0) + 1
        self.count += 1
        self.total += seconds
        self.least = min(self.least, seconds)
        self.most = max(self.most, seconds)

    def merge(self, other: Histogram) -> None:
        """Add what another one counted."""
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)

    @property
    def mean(self) -> float:
        """Seconds; NaN if nothing was counted."""
        return self.total / self.count if self.count else math.nan

    def percentile(self, percent: float) -> float:
        """The least duration that so many percent did not exceed, from above: at most 0.1 % more.

        NaN if nothing was counted.
        """
        if not 0.0 <= percent <= 100.0:
            raise ValueError(f"percent: expected 0 to 100, got {percent!r}")
        # 99.9 % of 1,000 are 999, and not 1,000, though 99.9 is a little more in binary.
        return self._of_rank(math.ceil(round(percent / 100.0 * self.count, 6)))

    def interval(self, percent: float) -> tuple[float, float]:
        """A 95 % interval for a percentile, from order statistics; takes requests for independent.

        Its ends are infinite or 0 where there are too few of them.
        """
        share = percent / 100.0
        middle, half = share * self.count, _Z * math.sqrt(self.count * share * (1.0 - share))
        low, high = math.floor(middle - half), math.ceil(middle + half) + 1
        return (
            self._of_rank(low) if low >= 1 else 0.0,
            self._of_rank(high) if high <= self.count else math.inf,
        )

    def _of_rank(self, rank: int) -> float:
        """The rank-th smallest, from 1 on."""
        if not self.count:
            return math.nan
        if rank >= self.count:
            return self.most
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= rank:
                return min(max(_above(index) / _NANO, self.least), self.most)
        raise AssertionError("counts and their sum differ")

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for what load generators send each other."""
        return {
            "counts": {str(index): self.counts[index] for index in sorted(self.counts)},
            "total": self.total,
            "least": self.least if self.count else None,
            "most": self.most,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histogram:
        made = cls()
        made.counts = {int(index): int(count) for index, count in data["counts"].items()}
        made.count = sum(made.counts.values())
        made.total = float(data["total"])
        made.least = math.inf if data["least"] is None else float(data["least"])
        made.most = float(data["most"])
        return made


def _index(nanoseconds: int) -> int:
    """The bucket of a duration."""
    shift = max(nanoseconds.bit_length() - _BITS - 1, 0)
    return (shift << _BITS) + (nanoseconds >> shift)


def _above(index: int) -> int:
    """Where a bucket ends: the least number of nanoseconds that it does not hold."""
    if index < 2 * _HALF:
        return index + 1
    shift = (index >> _BITS) - 1
    return ((index & (_HALF - 1)) + _HALF + 1) << shift
