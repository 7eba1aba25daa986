"""Rows that share their seed, and so their noise, with another user's row: not independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrank.arraytypes import AnyArray, Hashes, IntArray, Mask
from fastrank.eventlog import LogBatch, Stratum

__all__ = ["SharedSeeds"]

_MOST = 1 << 15  # sampled seeds, which represent all
_ALL = 2**64 - 1


class SharedSeeds:
    """Counts rows whose seed also occurs with another user.

    Attributes
    ----------
    rows : int
        Rows looked at: those whose seed a server chose, under a law that draws.

    Notes
    -----
    For each seed, the number of its rows is kept, and the number of rows of one holder, the one
    with the smallest hash; the rows of all other holders share the seed. This is exact for up to
    32,768 seeds. Beyond that, a hash selects the seeds that are kept, fewer and fewer, to represent
    all; seeds with the most rows are kept in addition, so that they are never missed by chance. At
    most 2 MB. Parts of a log can be merged. The selected seeds do not depend on the parts, or their
    order; the additional ones may. Batches without seeds cost nothing.

    Examples
    --------
    >>> seeds = SharedSeeds()
    >>> seeds.add(np.array([7, 7, 7, 8], np.uint64), np.array([1, 1, 2, 2], np.uint64))
    >>> seeds.rows, seeds.shared, seeds.commonest
    (4, 1.0, (7, 3))
    """

    def __init__(self) -> None:
        self.rows = 0
        self._limit = _ALL  # of the hashes of the seeds that are selected
        self._kept = _Seeds.none()
        self._waiting: list[_Seeds] = []

    def update(
        self, batch: LogBatch, strata: Sequence[Stratum], rows: Mask, *, by_user: bool = True
    ) -> None:
        """Add those of a batch's `rows` (n,) that a server's seed drew.

        Parameters
        ----------
        batch : LogBatch
        strata : sequence of Stratum
            The strata of its rows.
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
        """Add rows by their seeds and their holders, both uint64 (m,)."""
        self.rows += len(seeds)
        chosen = _mixed(seeds) <= np.uint64(self._limit)
        if not chosen.all():
            chosen |= _repeated(seeds, ~chosen)
        one = np.ones(np.count_nonzero(chosen), np.int64)
        self._wait(_Seeds(seeds[chosen], holders[chosen], one, one))

    def merge(self, other: SharedSeeds) -> None:
        """Add the counts of another part of the log; `other` stays as it is."""
        self.rows += other.rows
        self._limit = min(self._limit, other._limit)
        for part in (other._kept, *other._waiting):
            self._wait(part)
        self._settle()

    @property
    def shared(self) -> float:
        """Rows whose seed is shared, except those of one holder of each seed."""
        self._settle()
        besides = self._kept.rows - self._kept.own
        chosen = _mixed(self._kept.seeds) <= np.uint64(self._limit)
        share = (self._limit + 1) / (_ALL + 1)
        # Seeds seen are certain; the selected seeds may miss one with many rows.
        return max(float(besides.sum()), float(besides[chosen].sum()) / share)

    @property
    def commonest(self) -> tuple[int, int] | None:
        """The seed with the most rows of others, and its number of rows; None if there is none."""
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
        """Combine the new counts, and drop seeds if there are too many."""
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
    """Distinct seeds, each with the holder of smallest hash, and the rows of all and of it.

    Each of shape (m,); before `together`, seeds may repeat.
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
        """Store counts in as few bytes as possible: most are 1."""
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
    """Marked rows whose seed another marked row has too."""
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
