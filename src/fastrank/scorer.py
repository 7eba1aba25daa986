"""Scorer: a source that ranks its items for a query, for evaluation, plans and simulations.

`eligible_of` makes one whose filters are the same for all users.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, IdArray, Mask, Positions
from fastrank.ids import Ids
from fastrank.policies import Deterministic, Policy
from fastrank.ranker import Ranker
from fastrank.ranking import Ranking, RankingBatch, Score
from fastrank.rules import AppliedRules

__all__ = ["Eligible", "Scorer", "eligible_of"]


class Scorer(Ranker, ABC):
    """A source that scores items for a query; `Catalog` is one, and documents the calls.

    Rows, and arrays with one value per row, follow the order of `item_ids`. A source that takes no
    bias refuses one with an error that names it.
    """

    def __len__(self) -> int:
        return self._n_items

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of coordinates of a query."""

    @property
    @abstractmethod
    def item_ids(self) -> IdArray:
        """ndarray of int64 or str, shape (n,)."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Identifies the items and their scores: logs and caches use it to tell what ranked."""

    @abstractmethod
    def scores(self, query: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Float32Array:
        """Return the raw scores (n,), exactly as in rankings."""

    @abstractmethod
    def rank(
        self,
        query: npt.ArrayLike,
        k: int = 10,
        *,
        policy: Policy,
        seed: int | None = None,
        exclude: Ids | None = None,
        allow: Ids | None = None,
        bias: npt.ArrayLike | None = None,
        threads: int = 1,
    ) -> Ranking:
        """Draw one ranking."""

    @abstractmethod
    def rank_batch(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        policy: Policy | Sequence[Policy],
        seeds: Sequence[int] | npt.NDArray[Any] | None = None,
        exclude: Sequence[Ids | None] | None = None,
        allow: Sequence[Ids | None] | None = None,
        bias: npt.ArrayLike | None = None,
        threads: int = 1,
    ) -> RankingBatch:
        """Draw one ranking for each of b users."""

    @abstractmethod
    def log_propensities(
        self,
        query: npt.ArrayLike,
        item_ids: Ids,
        *,
        policy: Policy,
        exclude: Ids | None = None,
        allow: Ids | None = None,
        bias: npt.ArrayLike | None = None,
    ) -> FloatArray:
        """Compute how probable any ranking is under a policy, place by place."""

    @abstractmethod
    def log_propensities_batch(
        self,
        queries: npt.ArrayLike,
        item_ids: Sequence[Ids],
        *,
        policies: Sequence[Policy | Sequence[Policy]],
        exclude: Sequence[Ids | None] | None = None,
        allow: Sequence[Ids | None] | None = None,
        bias: npt.ArrayLike | None = None,
    ) -> FloatArray:
        """Compute how probable b rankings are under each of p policies."""

    @property
    def score(self) -> Score | None:
        """Its default score, as `Catalog.score`; None for dot products."""
        return None

    @property
    def features_version(self) -> str | None:
        """Version of the columns that its scores may use, as `Catalog.features_version`."""
        return None

    def score_of(
        self, logged: Score, features_version: str | None, any_version: bool = False
    ) -> dict[str, Any] | str:
        """The arguments of calls that rank by a logged score, or why that is impossible."""
        return "score_not_at_hand"

    def _n_allowed(
        self,
        item_ids: Ids,
        applied: AppliedRules,
        *,
        exclude: Ids | None,
        allow: Ids | None,
        after: Ids | None,
        k: int,
    ) -> int:
        """Count the items that rules allow after these, the first items of a list of k places."""
        raise ValueError("rules: expected none, since this source of scores has no rules")

    def _rows_of(self, item_ids: Ids) -> Positions:
        """Rows (m,) of ids, -1 for unknown ids."""
        return self._index.find("item_ids", item_ids, ordered=True)

    def _by_row(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values by position, reordered by row."""
        return values

    def _left(self, exclude: Ids | None, allow: Ids | None) -> Mask:
        """Which rows (n,) the filters leave; ids are accepted as in `rank`."""
        excluded, allowed = self._find("exclude", exclude), self._find("allow", allow)
        left = np.full(self._n_items, allowed is None)
        if allowed is not None:
            left[allowed] = True
        if excluded is not None:
            left[excluded] = False
        return self._by_row(left)


class Eligible:
    """The items of a source that filters leave, as if there were no others.

    Parameters
    ----------
    scorer : Scorer
    left : ndarray of bool, shape (n,)
        Which rows these are.
    """

    def __init__(self, scorer: Scorer, left: Mask) -> None:
        self._scorer = scorer
        self._rows = np.flatnonzero(left)
        self.item_ids = scorer.item_ids[self._rows]
        # The shorter of the two lists, since every ranking reads it.
        few = 2 * len(self._rows) <= len(left)
        self._filter = ("allow", self.item_ids) if few else ("exclude", scorer.item_ids[~left])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def version(self) -> str:
        """Version of the source."""
        return self._scorer.version

    def scores(self, query: npt.ArrayLike) -> Float32Array:
        """Return the raw scores (m,), exactly as in rankings."""
        try:
            return self._scorer.scores(query)[self._rows]
        except ValueError:  # an item that is left out may have no score
            name, ids = self._filter
            only: dict[str, Any] = {name: ids}
            ranking = self._scorer.rank(query, len(self), policy=Deterministic(), **only)
            scores = np.empty(len(self._scorer), np.float32)
            scores[self._scorer._rows_of(ranking.item_ids)] = ranking.scores
            return scores[self._rows]

    def rank_batch(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        policy: Policy | Sequence[Policy],
        seeds: Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> RankingBatch:
        """Draw one ranking for each of b users."""
        name, ids = self._filter
        same: dict[str, Any] = {name: [ids] * np.shape(queries)[0]}
        return self._scorer.rank_batch(queries, k, policy=policy, seeds=seeds, **same)


def eligible_of(scorer: Scorer, exclude: Ids | None, allow: Ids | None) -> Scorer | Eligible:
    """Restrict a source to what filters leave; return the source itself if they leave all of it.

    Raises
    ------
    ValueError
        If a filter is invalid, or leaves no item.

    Notes
    -----
    O(n), and the time to look up the ids.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog(["a", "b", "c"], [[1.0], [2.0], [3.0]])
    >>> eligible_of(catalog, ["b"], None).scores([1.0]).tolist()
    [1.0, 3.0]
    >>> eligible_of(catalog, ["d"], None) is catalog
    True
    """
    if exclude is None and allow is None:
        return scorer
    left = scorer._left(exclude, allow)
    if left.all():
        return scorer
    if not left.any():
        raise ValueError("exclude, allow: no item is eligible")
    return Eligible(scorer, left)
