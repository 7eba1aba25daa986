"""What ranks its items for a query: what evaluation, plans and simulations ask for rankings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, IdArray, Positions
from fastrank.ids import Ids
from fastrank.policies import Policy
from fastrank.ranker import Ranker
from fastrank.ranking import Ranking, RankingBatch, Score

__all__ = ["Scorer"]


class Scorer(Ranker, ABC):
    """A source of scores that gives them for a query: `Catalog`, which documents the calls.

    Rows, and values a row, are in the order of `item_ids`. Where a source takes no bias it refuses
    one by name.
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

    def _rows_of(self, item_ids: Ids) -> Positions:
        """Rows (m,) of ids, -1 where there is no such id."""
        return self._index.find("item_ids", item_ids, ordered=True)
