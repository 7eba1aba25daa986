"""What only some estimators want of a row: marginals, a reward model's word, slate weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fastrank.catalog import Catalog
from fastrank.eventlog import LogBatch
from fastrank.marginals import (
    MAX_ITEMS,
    next_law,
    position_marginals,
    pseudo_inverse_weights,
    slate_inverse,
)
from fastrank.model import Model
from fastrank.ope.estimators import ESTIMATORS
from fastrank.ope.propensities import (
    ByModel,
    EvaluationPolicy,
    Newer,
    Queries,
    Query,
    Writers,
    catalog_of,
    logging_policy,
    shown,
)
from fastrank.policies import Policy

__all__ = ["OptionalArrays", "RewardModel"]

Array: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.int64]
RewardModel: TypeAlias = Callable[[npt.NDArray[np.float32], npt.NDArray[Any]], npt.ArrayLike]
T = TypeVar("T")

_MARGINALS = ("marginals_logged", "marginals_evaluated")
_CACHED = 10_000  # results; each is of the size of a ranking or, for few items, of its square


class OptionalArrays:
    """The optional arrays of a batch, as far as the estimators want them.

    Parameters
    ----------
    names : sequence of str
        Estimators.
    policies : sequence of EvaluationPolicy
    logging : sequence of Model or Catalog
        What wrote the log.
    places : int
    reward_model : callable, optional
    restrict : bool
        Whether evaluation policies are held to the logged catalog.

    Raises
    ------
    ValueError
        Naming the estimator and what it lacks.
    """

    def __init__(
        self,
        names: Sequence[str],
        policies: Sequence[EvaluationPolicy],
        logging: Sequence[Model | Catalog],
        places: int,
        reward_model: RewardModel | None,
        restrict: bool = False,
    ) -> None:
        self._restrict = restrict
        self._catalogs = {catalog_of(each).version: catalog_of(each) for each in logging}
        self._writers = Writers(logging)
        self._places = places
        self._reward_model = reward_model
        self._wanted = {need for name in names for need in ESTIMATORS[name].needs}
        self._cache: OrderedDict[Any, Any] = OrderedDict()
        for name in names:
            for policy in policies:
                for need in ESTIMATORS[name].needs:
                    if need not in policy.arrays:
                        self._check(name, need, policy)

    def _check(self, name: str, need: str, policy: EvaluationPolicy) -> None:
        def refuse(why: str) -> None:
            raise ValueError(f"estimators: {name} of {policy.label}: {why}, or a column of {need}")

        if self._places == 1 and (need in _MARGINALS or need == "slate_weights"):
            return  # with one place they are the propensities and their ratio
        by_model = isinstance(policy, ByModel)
        if need in _MARGINALS or need == "slate_weights":
            if not by_model or not self._writers.models:
                refuse("wants a policy on a model, and the model that wrote the log")
            assert isinstance(policy, ByModel)
            sizes = [len(catalog_of(each)) for each in (policy.model, *self._writers.models)]
            if need in _MARGINALS and max(sizes) > MAX_ITEMS:
                refuse(f"takes at most {MAX_ITEMS} items, got {max(sizes)}")
        elif need.startswith("cascade"):
            refuse("wants a column of the reward model's values")
        elif not by_model or self._reward_model is None:
            refuse("wants a reward model and a policy on a model")

    def arrays(
        self,
        policy: EvaluationPolicy,
        batch: LogBatch,
        rows: Rows,
        logged: Array,
        evaluated: Array,
    ) -> dict[str, Array]:
        """The arrays for these rows, (len(rows), places) or (len(rows),)."""
        result = {
            need: self._column(batch.columns[policy.arrays[need]], policy.arrays[need], rows)
            for need in self._wanted
            if need in policy.arrays
        }
        missing = self._wanted - result.keys()
        if not missing:
            return result
        if self._places == 1:
            result |= {
                "marginals_logged": np.exp(logged),
                "marginals_evaluated": np.exp(evaluated),
                "slate_weights": np.exp(evaluated - logged)[:, 0],
            }
            missing -= result.keys()
        if missing:
            assert isinstance(policy, ByModel)
            result |= self._by_model(policy, batch, rows, missing)
        return {name: array for name, array in result.items() if name in self._wanted}

    def _column(self, values: Array, name: str, rows: Rows) -> Array:
        array = np.array(values[rows], np.float64)
        if array.ndim == 2:
            array = array[:, : self._places]
            array = np.pad(array, [(0, 0), (0, self._places - array.shape[1])])
            array[np.isnan(array)] = 0.0  # past a row's length
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            raise ValueError(
                f"{name}: row {rows[bad[0][0]]}: must be finite, got {array[tuple(bad[0])]}"
            )
        return array

    def _by_model(
        self, policy: ByModel, batch: LogBatch, rows: Rows, wanted: set[str]
    ) -> dict[str, Array]:
        shape = (len(rows), self._places)
        result = {
            name: np.zeros(len(rows) if name in ("q_direct", "slate_weights") else shape)
            for name in wanted
        }
        catalog = catalog_of(policy.model)
        barred = Newer(catalog, self._catalogs) if self._restrict else None
        asked = Queries(policy.model, batch, barred=barred)
        logged = self._writers.queries(batch)
        for j, i in enumerate(rows.tolist()):
            query = asked.row(i)
            assert isinstance(query, Query)  # rows that cannot be judged are left out before
            items = shown(batch, i)[: self._places]
            chosen = query.policy(policy.policy)
            if wanted & {*_MARGINALS, "slate_weights"}:
                self._logged_law(result, j, batch, i, items, logged, catalog, query, chosen)
            if wanted & {"q_logged", "q_expected", "q_direct"}:
                self._rewards(
                    result, j, int(batch.request_hash[i, 0]), items, catalog, query, chosen
                )
        return result

    # ---- Marginals --------------------------------------------------------------------------

    def _logged_law(
        self,
        result: Mapping[str, Array],
        j: int,
        batch: LogBatch,
        i: int,
        items: npt.NDArray[Any],
        asked: Sequence[Queries],
        catalog: Catalog,
        query: Query,
        chosen: Policy,
    ) -> None:
        writer = self._writers.of(batch, i)
        policy = logging_policy(batch, i)
        if writer is None or policy is None:
            raise ValueError(
                f"logging: request {batch.value('request_id', i)}: its model is not among those"
                " given, and iips and pi want the logging policy's law"
            )
        logged_query = asked[writer].row(i)
        if isinstance(logged_query, str):
            raise ValueError(
                f"logging: request {batch.value('request_id', i)}: {logged_query}:"
                " iips and pi want the logging policy's law"
            )
        m, places = len(items), self._places  # what stands below does not matter
        at = np.arange(m)
        logging = catalog_of(self._writers.models[writer])
        if "marginals_logged" in result:
            result["marginals_logged"][j, :m] = self._marginals(
                logging, logged_query, policy, items, places
            )[at, at]
        if "marginals_evaluated" in result:
            result["marginals_evaluated"][j, :m] = self._marginals(
                catalog, query, chosen, items, places
            )[at, at]
        if "slate_weights" in result:
            if not np.array_equal(logging.item_ids, catalog.item_ids):
                raise ValueError("estimators: pi wants both models to have the same items")
            key = (logging.version, *_key(logged_query), policy, places)
            mask = _eligible(logging, logged_query)
            try:
                inverse = self._cached(
                    key, lambda: slate_inverse(_scores(logging, logged_query), policy, places, mask)
                )
                result["slate_weights"][j] = pseudo_inverse_weights(
                    logging._rows_of(items)[None], inverse, _scores(catalog, query), chosen
                )[0]
            except ValueError as error:
                name = batch.value("request_id", i)
                raise ValueError(f"estimators: pi: request {name}: {error}") from None

    def _marginals(
        self, catalog: Catalog, query: Query, policy: Policy, items: npt.NDArray[Any], places: int
    ) -> Array:
        key = (catalog.version, *_key(query), policy, places, items.tobytes())
        return self._cached(
            key,
            lambda: position_marginals(
                _scores(catalog, query),
                policy,
                places,
                catalog._rows_of(items),
                _eligible(catalog, query),
            ),
        )

    def _cached(self, key: Any, compute: Callable[[], T]) -> T:
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            self._cache[key] = compute()
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        found: T = self._cache[key]
        return found

    # ---- Reward models ----------------------------------------------------------------------

    def _rewards(
        self,
        result: Mapping[str, Array],
        j: int,
        seed: int,
        items: npt.NDArray[Any],
        catalog: Catalog,
        query: Query,
        policy: Policy,
    ) -> None:
        assert self._reward_model is not None
        ids = catalog.item_ids
        q = np.asarray(self._reward_model(query.vector, ids), np.float64)
        if q.shape == (len(ids),):
            q = np.broadcast_to(q[:, None], (len(ids), self._places))
        if q.shape != (len(ids), self._places) or not np.isfinite(q).all():
            raise ValueError(
                f"reward_model: expected {len(ids)} finite numbers, or {self._places} for each;"
                f" got shape {q.shape}"
            )
        m = len(items)
        at = catalog._rows_of(items)
        if "q_logged" in result:
            # An item that the model has not weighs nothing, whatever is said of it.
            known = np.where(at >= 0, q[np.maximum(at, 0), np.arange(m)], 0.0)
            result["q_logged"][j, :m] = known
        if "q_expected" in result:
            left = _eligible(catalog, query)
            scores = _scores(catalog, query).astype(np.float64)
            for place in range(m):
                rows = np.flatnonzero(left)
                order = rows[np.argsort(-scores[rows], kind="stable")]
                law = next_law(scores[order][None], policy)[0]
                result["q_expected"][j, place] = law @ q[order, place]
                if at[place] >= 0:
                    left[at[place]] = False
        if "q_direct" in result:
            ranking = catalog.rank(
                query.vector,
                max(m, 1),
                policy=policy,
                seed=seed,
                exclude=query.exclude,
                allow=query.allow,
                bias=query.bias,
            )
            drawn = catalog._rows_of(ranking.item_ids)
            result["q_direct"][j] = q[drawn, np.arange(len(drawn))].sum()


def _scores(catalog: Catalog, query: Query) -> npt.NDArray[np.float32]:
    return catalog.scores(query.vector, query.bias)


def _eligible(catalog: Catalog, query: Query) -> npt.NDArray[np.bool_]:
    mask = np.full(len(catalog), query.allow is None)
    for ids, value in ((query.allow, True), (query.exclude, False)):
        if ids is not None:
            rows = catalog._rows_of(ids)
            mask[rows[rows >= 0]] = value
    return mask


def _key(query: Query) -> tuple[Any, ...]:
    parts = (query.vector, query.exclude, query.allow, query.bias)
    return tuple(None if part is None else part.tobytes() for part in parts)
