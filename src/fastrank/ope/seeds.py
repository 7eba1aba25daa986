"""Rows that share their seed, and so their noise, with another user's: they are not independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrank.arraytypes import AnyArray, Hashes, IntArray, Mask
from fastrank.eventlog import LogBatch, Stratum

__all__ = ["SharedSeeds"]

_MOST = 1 << 15  # seeds that stand for all
_ALL = 2**64 - 1


class SharedSeeds:
    """Rows whose seed also came with somebody else's row.

    Attributes
    ----------
    rows : int
        Looked at: those whose seed a server chose, under a law that draws.

    Notes
    -----
    Of a seed are kept its rows and those of one of its holders, the one of the least hash; the rows
    of all others share it. Up to 32,768 seeds that is exact. Beyond, those that a hash chooses are
    kept, ever fewer, and stand for all; and besides those with the most rows, which no chance may
    leave out. 2 MB at most. Sums over parts of a log are merged. Which seeds stand for all does not
    depend on the parts, or their order; which of the others are kept besides may. Batches without
    seeds cost nothing.

    Examples
    --------
    >>> seeds = SharedSeeds()
    >>> seeds.add(np.array([7, 7, 7, 8], np.uint64), np.array([1, 1, 2, 2], np.uint64))
    >>> seeds.rows, seeds.shared, seeds.commonest
    (4, 1.0, (7, 3))
    """

    def __init__(self) -> None:
        self.rows = 0
        self._limit = _ALL  # of the hashes of seeds that stand for all
        self._kept = _Seeds.none()
        self._waiting: list[_Seeds] = []

    def update(
        self, batch: LogBatch, strata: Sequence[Stratum], rows: Mask, *, by_user: bool = True
    ) -> None:
        """Those of a batch's `rows` (n,) that a server's seed drew.

        Parameters
        ----------
        batch : LogBatch
        strata : sequence of Stratum
            That its rows are of.
        rows : ndarray of bool, shape (n,)
        by_user : bool
            Whether a user's own rows may share a seed; if not, no two rows may.
        """
        draws = np.array([each.law != "deterministic" for each in strata])
        rows = rows & ~batch.caller_seed & draws[batch.stratum] & batch.is_given("seed")
        if rows.any():
            column = batch.column("seed").fill_null(0)
            seeds = column.to_numpy(zero_copy_only=False).astype(np.uint64)
            holders = batch.user_hash if by_user else batch.request_hash[:, 0]
            self.add(seeds[rows], holders[rows])

    def add(self, seeds: Hashes, holders: Hashes) -> None:
        """Rows by their seeds and by whoever they are of, both uint64 (m,)."""
        self.rows += len(seeds)
        chosen = _mixed(seeds) <= np.uint64(self._limit)
        if not chosen.all():
            chosen |= _repeated(seeds, ~chosen)
        one = np.ones(np.count_nonzero(chosen), np.int64)
        self._wait(_Seeds(seeds[chosen], holders[chosen], one, one))

    def merge(self, other: SharedSeeds) -> None:
        """Take in what another part of the log has; `other` stays as it is."""
        self.rows += other.rows
        self._limit = min(self._limit, other._limit)
        for part in (other._kept, *other._waiting):
            self._wait(part)
        self._settle()

    @property
    def shared(self) -> float:
        """Rows whose seed is also another's, but for those of one holder of each seed."""
        self._settle()
        besides = self._kept.rows - self._kept.own
        chosen = _mixed(self._kept.seeds) <= np.uint64(self._limit)
        share = (self._limit + 1) / (_ALL + 1)
        # What was seen is there for certain; what stands for all may miss a seed with many rows.
        return max(float(besides.sum()), float(besides[chosen].sum()) / share)

    @property
    def commonest(self) -> tuple[int, int] | None:
        """The seed with the most rows of others, and how many rows have it; None if none is."""
        self._settle()
        besides = self._kept.rows - self._kept.own
        if not besides.any():
            return None
        at = int(besides.argmax())
        return int(self._kept.seeds[at]), int(self._kept.rows[at])

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return vars(self)

    def _wait(self, part: _Seeds) -> None:
        self._waiting.append(part)
        if sum(map(len, self._waiting)) > _MOST // 2:
            self._settle()

    def _settle(self) -> None:
        """Put together what came, and leave seeds out if they are too many."""
        if not self._waiting:
            return
        kept = _Seeds.together([self._kept, *self._waiting])
        self._waiting = []
        mixed = _mixed(kept.seeds)
        while np.count_nonzero(mixed <= np.uint64(self._limit)) > _MOST:
            self._limit //= 2
        chosen = mixed <= np.uint64(self._limit)
        if not chosen.all():
            others = np.flatnonzero(~chosen & (kept.rows > kept.own))
            most = np.argsort(kept.rows[others], kind="stable")[-(_MOST // 4) :]
            chosen[others[most]] = True
        self._kept = kept.of(chosen)


class _Seeds:
    """Different seeds, the holder of the least hash of each, and the rows of all and of that one.

    Each of shape (m,); before they are put `together`, seeds may repeat.
    """

    def __init__(self, seeds: Hashes, holders: Hashes, rows: IntArray, own: IntArray) -> None:
        self.seeds, self.holders, self.rows, self.own = seeds, holders, rows, own

    @classmethod
    def none(cls) -> _Seeds:
        no_words, no_rows = np.empty(0, np.uint64), np.empty(0, np.int64)
        return cls(no_words, no_words, no_rows, no_rows)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getstate__(self) -> dict[str, AnyArray]:
        """With counts in as few bytes as they take: most are 1."""
        counts = {name: getattr(self, name) for name in ("rows", "own")}
        small = {
            name: each.astype(np.min_scalar_type(each.max(initial=0)))
            for name, each in counts.items()
        }
        return {"seeds": self.seeds, "holders": self.holders, **small}

    def __setstate__(self, state: Mapping[str, AnyArray]) -> None:
        self.seeds, self.holders = state["seeds"], state["holders"]
        self.rows, self.own = (state[name].astype(np.int64) for name in ("rows", "own"))

    def of(self, which: Mask) -> _Seeds:
        return _Seeds(self.seeds[which], self.holders[which], self.rows[which], self.own[which])

    @classmethod
    def together(cls, parts: Sequence[_Seeds]) -> _Seeds:
        seeds, holders, rows, own = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("seeds", "holders", "rows", "own")
        )
        if not len(seeds):
            return cls.none()
        order = np.argsort(seeds)
        seeds, holders, rows, own = seeds[order], holders[order], rows[order], own[order]
        begins = np.flatnonzero(np.concatenate([[True], seeds[1:] != seeds[:-1]]))
        least = np.minimum.reduceat(holders, begins)
        lengths = np.diff(np.append(begins, len(seeds)))
        own = np.where(holders == np.repeat(least, lengths), own, 0)
        return cls(
            seeds[begins], least, np.add.reduceat(rows, begins), np.add.reduceat(own, begins)
        )


def _repeated(seeds: Hashes, among: Mask) -> Mask:
    """Rows, of those marked, whose seed another of them has."""
    ordered = np.sort(seeds[among])
    again = ordered[1:] == ordered[:-1]
    if not again.any():
        return np.zeros(len(seeds), np.bool_)
    return among & np.isin(seeds, ordered[1:][again])


def _mixed(seeds: Hashes) -> Hashes:
    """A fixed scrambling (the finaliser of SplitMix64)."""
    x = seeds.copy()
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
