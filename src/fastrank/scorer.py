"""Sources that rank their items for a query: evaluation, plans and simulations call them.

`eligible_of` is such a source under filters that are the same for all of its users.
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
    """A source of scores that gives them for a query: `Catalog`, which documents the calls.

    Rows, and values a row, are in the order of `item_ids`. A source that takes no bias refuses one
    by name.
    """

    def __len__(self) -> int:
        return self._n_items

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a query."""

    @property
    @abstractmethod
    def item_ids(self) -> IdArray:
        """ndarray of int64 or str, shape (n,)."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Another one for other items or scores: logs and caches know by it what ranked."""

    @abstractmethod
    def scores(self, query: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Float32Array:
        """Raw scores (n,), to the bit as rankings have them."""

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
        """Draws one ranking."""

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
        """Draws one ranking for each of b users."""

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
        """How probable any ranking is under a policy, place by place."""

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
        """How probable b rankings are under each of p policies."""

    @property
    def score(self) -> Score | None:
        """What makes its scores of dot products, where it says so itself, as `Catalog.score`."""
        return None

    @property
    def features_version(self) -> str | None:
        """Of the columns that its scores may have, as `Catalog.features_version`."""
        return None

    def score_of(
        self, logged: Score, features_version: str | None, any_version: bool = False
    ) -> dict[str, Any] | str:
        """Arguments of calls that rank by a logged score; or why there are none."""
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
        """How many items rules allow behind these, the first ones of a list of k places."""
        raise ValueError("rules: scores that a function gives take none")

    def _rows_of(self, item_ids: Ids) -> Positions:
        """Rows (m,) of ids, -1 where there is no such id."""
        return self._index.find("item_ids", item_ids, ordered=True)

    def _by_row(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values by position, in the order of rows."""
        return values

    def _left(self, exclude: Ids | None, allow: Ids | None) -> Mask:
        """Which rows (n,) filters leave; ids are taken as `rank` takes them."""
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
        Which rows those are.
    """

    def __init__(self, scorer: Scorer, left: Mask) -> None:
        self._scorer = scorer
        self._rows = np.flatnonzero(left)
        self.item_ids = scorer.item_ids[self._rows]
        # The shorter list: every ranking reads it.
        few = 2 * len(self._rows) <= len(left)
        self._filter = ("allow", self.item_ids) if few else ("exclude", scorer.item_ids[~left])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def version(self) -> str:
        """That of the source."""
        return self._scorer.version

    def scores(self, query: npt.ArrayLike) -> Float32Array:
        """Raw scores (m,), to the bit as rankings have them."""
        try:
            return self._scorer.scores(query)[self._rows]
        except ValueError:  # an item that is left out may have none
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
        """Draws one ranking for each of b users."""
        name, ids = self._filter
        same: dict[str, Any] = {name: [ids] * np.shape(queries)[0]}
        return self._scorer.rank_batch(queries, k, policy=policy, seeds=seeds, **same)


def eligible_of(scorer: Scorer, exclude: Ids | None, allow: Ids | None) -> Scorer | Eligible:
    """What filters leave of a source; the source itself where they leave everything.

    Raises
    ------
    ValueError
        For what is no filter; where no item is left.

    Notes
    -----
    O(n), and what a look-up of the ids takes.

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
