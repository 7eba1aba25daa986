"""The rows of a batch of the log that are used, and their arrays for estimators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray, Hashes, IntArray, Mask
from fastrank.eventlog import LogBatch
from fastrank.ope.batch import GROUPS, Batch

__all__ = ["Part", "Used", "cut"]


class Used:
    """The rows of a batch that are used, and the number of others, by reason.

    Attributes
    ----------
    batch : LogBatch
    mask : ndarray of bool, shape (n,)
    set_aside : Counter of str
        A row counts under the first reason that it was left out for.
    """

    def __init__(self, batch: LogBatch) -> None:
        self.batch = batch
        self.mask = np.ones(len(batch), np.bool_)
        self.set_aside: Counter[str] = Counter()

    def leave(self, reason: str, which: Mask) -> None:
        """Leave out the marked rows."""
        self.set_aside[reason] += int(np.count_nonzero(self.mask & which))
        self.mask &= ~which

    @property
    def rows(self) -> IntArray:
        """The indices of the rows used."""
        return np.flatnonzero(self.mask)

    @property
    def count(self) -> int:
        """The number of rows used."""
        return int(np.count_nonzero(self.mask))

    @property
    def without_user(self) -> int:
        """How many of the rows used name no user."""
        return int(np.count_nonzero(self.mask & ~self.batch.is_given("user_id")))

    def parts(
        self, places: int, cluster: bool, drawn: LogBatch | None = None
    ) -> Iterator[tuple[int, Part]]:
        """The rows of each stratum, with its number; `drawn` may group them by other laws."""
        batch = self.batch if drawn is None else drawn
        stratum = batch.stratum
        for index in np.unique(stratum[self.mask]).tolist():
            rows = np.flatnonzero(self.mask & (stratum == index))
            yield index, Part(batch, rows, places, cluster)


class Part:
    """Rows of a batch from one stratum, as rankings with a fixed number of places.

    Attributes
    ----------
    batch : LogBatch
    rows : ndarray of int64
        Their indices in the batch.
    logged, rewards : ndarray of float64, shape (len(rows), places)
    row_weights : ndarray of float64, shape (len(rows),), or None
    """

    def __init__(self, batch: LogBatch, rows: IntArray, places: int, cluster: bool) -> None:
        self.batch = batch
        self.rows = rows
        self._places = places
        self._whole = len(rows) == len(batch)
        self._groups = self._groups_of(batch.user_hash if cluster else batch.request_hash[:, 0])
        self._lengths = np.minimum(self.of(batch.lengths), places)
        self._uniform, self._n_eligible = self.of(batch.uniform), self.of(batch.n_eligible)
        self.row_weights = None if batch.row_weights is None else self.of(batch.row_weights)
        self.logged = self.matrix(batch.log_propensities)
        self.rewards = self.matrix(batch.rewards)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The entries of these rows, from an array with one entry per row of the batch."""
        return array if self._whole else array[self.rows]

    def matrix(self, array: FloatArray) -> FloatArray:
        """The same, cut or padded to the number of places that are evaluated."""
        return cut(self.of(array), self._places)

    def arrays(self, evaluated: FloatArray, optional: Mapping[str, FloatArray]) -> Batch:
        """The batch for estimators, for one evaluation policy."""
        return Batch(
            logged=self.logged,
            evaluated=evaluated,
            rewards=self.rewards,
            lengths=self._lengths,
            groups=self._groups,
            uniform=self._uniform,
            n_eligible=self._n_eligible,
            row_weights=self.row_weights,
            **optional,
        )

    def by_user(self) -> Batch:
        """The batch for the logging policy, with users as groups in any case."""
        groups = self._groups_of(self.batch.user_hash)
        return replace(self.arrays(self.logged, {}), groups=groups)

    def _groups_of(self, hashes: Hashes) -> IntArray:
        return (self.of(hashes) % np.uint64(GROUPS)).astype(np.int64)


def cut(array: FloatArray, places: int) -> FloatArray:
    """Keep the first `places` places, or pad with 0."""
    if array.shape[1] < places:
        return np.pad(array, [(0, 0), (0, places - array.shape[1])])
    return array[:, :places]
