"""Where an evaluation policy's propensities come from: a model, a column of the log, a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank.catalog import Catalog
from fastrank.eventlog import LogBatch
from fastrank.model import Model
from fastrank.policies import INFERENCE_TYPES, Policy, parameters_of, policy

__all__ = [
    "ByFunction",
    "ByModel",
    "EvaluationPolicy",
    "FromColumn",
    "Judged",
    "Newer",
    "Queries",
    "Query",
    "Writers",
    "catalog_of",
    "judge",
    "logging_policy",
    "shown",
]

Array: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Ids: TypeAlias = npt.NDArray[Any]

# A place shown with a probability within this of 1 could not have shown anything else.
_CERTAIN = -1e-12
_BIASES = 1 << 22  # of all rows that are judged together: 16 MB


@dataclass(frozen=True, slots=True)
class ByModel:
    """A fastrank policy on a model, which need not be the one that wrote the log.

    Attributes
    ----------
    label : str
    policy : Policy
    model : Model or Catalog
        Whose users' vectors, and temperatures, are taken. A catalog alone wants logged queries.
    arrays : mapping of str to str
        Columns of the log, by the name that `Batch` knows them by: ``q_logged``, for one.
    """

    label: str
    policy: Policy
    model: Model | Catalog
    arrays: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FromColumn:
    """Conditional log-propensities that somebody put into the log, list<float64> a row.

    Attributes
    ----------
    label : str
    column : str
    arrays : mapping of str to str
        As of `ByModel`.
    """

    label: str
    column: str
    arrays: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ByFunction:
    """Conditional log-propensities by a function of a batch of the log.

    Attributes
    ----------
    label : str
    function : callable
        ``function(batch: LogBatch) -> (n, k)`` float64; NaN where it cannot judge a row. Places
        past a row's length are not looked at.
    arrays : mapping of str to str
        As of `ByModel`.
    """

    label: str
    function: Callable[[LogBatch], npt.ArrayLike]
    arrays: Mapping[str, str] = field(default_factory=dict)


EvaluationPolicy: TypeAlias = ByModel | FromColumn | ByFunction


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A batch of the log as one evaluation policy sees it.

    Attributes
    ----------
    log_propensities : ndarray of float64, shape (n, k)
        0 past a row's length.
    unknown : dict of str to ndarray of bool (n,)
        Rows that could not be judged, by the reason.
    certain : ndarray of float64, shape (n,)
        An unbiased guess at the policy's probability of leaving what the logging policy was certain
        to show.
    outside : ndarray of float64, shape (n,)
        1 where a ranking drawn from the policy has an item that the logging policy could not show:
        one that its catalog lacked, or that was no candidate. 0 where `certain` is not.
    support_unknown : ndarray of bool, shape (n,)
        Rows for which it is not known what the logging policy could show.
    """

    log_propensities: Array
    unknown: Mapping[str, Mask]
    certain: Array
    outside: Array
    support_unknown: Mask


def catalog_of(model: Model | Catalog) -> Catalog:
    """A model's catalog."""
    return model.catalog if isinstance(model, Model) else model


class Writers:
    """The models that wrote a log, by the versions that its rows name."""

    def __init__(self, models: Sequence[Model | Catalog]) -> None:
        self.models = list(models)
        self._by_model = {
            each.version: j for j, each in enumerate(models) if isinstance(each, Model)
        }
        self._by_catalog: dict[str, int] = {}
        for j, each in enumerate(models):
            self._by_catalog.setdefault(catalog_of(each).version, j)

    def of(self, batch: LogBatch, i: int) -> int | None:
        """Number of the model of row i, by its users where it names them; None: not among them."""
        found = self._by_model.get(batch.value("model_version", i))
        if found is None:
            found = self._by_catalog.get(batch.value("catalog_version", i))
        return found

    def queries(self, batch: LogBatch) -> list[Queries]:
        """What each of them ranked by."""
        return [Queries(model, batch, as_logged=True) for model in self.models]


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What a model needs to rank for one logged row.

    Attributes
    ----------
    vector : ndarray of float32, shape (d,)
    exclude, allow : ndarray of ids or None
    bias : ndarray of float32 or None, shape (n,)
    temperature : float
        The user's factor of temperatures.
    """

    vector: npt.NDArray[np.float32]
    exclude: Ids | None
    allow: Ids | None
    bias: npt.NDArray[np.float32] | None
    temperature: float = 1.0

    def policy(self, policy: Policy) -> Policy:
        """The policy with the user's temperature."""
        return policy if self.temperature == 1.0 else policy.scaled(self.temperature)


class Queries:
    """What a model ranks by for the rows of a batch.

    A logged query speaks for the model that logged it: another one, if only of users' vectors,
    looks its own user up. `as_logged` asks for what the log itself was ranked by; `barred` knows
    the items that the model must not show where it is held to the logged catalog. Without
    `keep_candidates` a model ranks everything where the logging policy saw no more than candidates.
    """

    def __init__(
        self,
        model: Model | Catalog,
        batch: LogBatch,
        *,
        as_logged: bool = False,
        barred: Newer | None = None,
        keep_candidates: bool = False,
    ) -> None:
        self._has_candidates = _has_candidates(batch) & ~(as_logged or keep_candidates)
        self._model = model
        self._as_logged = as_logged
        self._barred = barred
        self._batch = batch
        self._catalog = catalog_of(model)
        self._positions: npt.NDArray[np.int64] | None = None
        if isinstance(model, Model):
            self._positions = model.find_users(batch.user_ids)

    def row(self, i: int) -> Query | str:
        """For row i; or why there is none: ``unknown_user``, ``no_query``, ..."""
        batch, model = self._batch, self._model
        own = batch.value("catalog_version", i) == self._catalog.version
        temperature = 1.0
        vector = None
        if isinstance(model, Model) and self._positions is not None and self._positions[i] >= 0:
            position = int(self._positions[i])
            vector, temperature = model.user_vectors[position], model.temperature_at(position)
        if own and batch.has_query[i] and (vector is None or self._logged_by_it(i)):
            vector = batch.query(i)
        if vector is None:
            return "unknown_user" if isinstance(model, Model) else "no_query"
        if vector.shape != (self._catalog.dim,):
            return "query_of_other_length"
        bias = batch.bias(i)
        if bias is not None and not own:
            return "bias_of_another_catalog"
        exclude = batch.exclude(i)
        if self._barred is not None:
            new = self._barred.items(batch.value("catalog_version", i))
            if new is not None and len(new):
                exclude = new if exclude is None else np.concatenate([exclude, new])
        allow = None if self._has_candidates[i] else batch.allow(i)
        return Query(vector, exclude, allow, bias, temperature)

    def _logged_by_it(self, i: int) -> bool:
        version = self._batch.value("model_version", i)
        return self._as_logged or (
            isinstance(self._model, Model) and version == self._model.version
        )


def logging_policy(batch: LogBatch, i: int) -> Policy | None:
    """The policy that drew row i; None where fastrank has none of that name."""
    name, params = batch.value("policy_name", i), batch.params(i)
    if name not in INFERENCE_TYPES or not set(INFERENCE_TYPES[name][2]) <= set(params):
        return None
    if not set(params) <= set(parameters_of(name)):  # without one it would be another law
        return None
    return policy(name, **params)


def shown(batch: LogBatch, i: int) -> Ids:
    """The items of row i that were displayed."""
    return np.asarray(batch.item_ids[i, : batch.lengths[i]])


def _has_candidates(batch: LogBatch) -> Mask:
    """Rows whose logging policy saw no more than some candidates."""
    return batch.is_given("candidate_set_id")


def judge(
    batch: LogBatch,
    policies: Sequence[EvaluationPolicy],
    rows: npt.NDArray[np.int64],
    *,
    logging: Mapping[str, Catalog],
    restrict: bool = False,
    keep_candidates: bool = False,
    places: int | None = None,
) -> list[Judged]:
    """Each policy's conditional log-propensities of the logged rankings.

    Parameters
    ----------
    batch : LogBatch
    policies : sequence of EvaluationPolicy
    rows : ndarray of int64
        The rows that are wanted; of others nothing is said.
    logging : mapping of str to Catalog
        Catalogs that the log was written from, by version.
    restrict : bool
        Whether evaluation policies may only show items of the logged catalog. If not, what they
        show besides is uncovered.
    keep_candidates : bool
        Whether evaluation policies choose from the candidates that the logging policy saw. If not,
        what they show besides is uncovered.
    places : int, optional
        Of these first places alone it is asked what could not have been shown; by default of all.
    """
    places = batch.log_propensities.shape[1] if places is None else places
    result: dict[int, Judged] = {}
    for model in {
        id(each.model): each.model for each in policies if isinstance(each, ByModel)
    }.values():
        own = {
            j: each
            for j, each in enumerate(policies)
            if isinstance(each, ByModel) and each.model is model
        }
        judged = _by_model(
            batch,
            model,
            [each.policy for each in own.values()],
            rows,
            logging,
            restrict,
            keep_candidates,
            places,
        )
        result.update(zip(own, judged, strict=True))
    for j, each in enumerate(policies):
        if isinstance(each, FromColumn):
            given: npt.ArrayLike = batch.columns[each.column]
            result[j] = _given(batch, given, each.column, keep_candidates, places)
        elif isinstance(each, ByFunction):
            given = each.function(batch)
            result[j] = _given(batch, given, each.label, keep_candidates, places)
    return [result[j] for j in range(len(policies))]


def _given(
    batch: LogBatch, values: npt.ArrayLike, name: str, keep_candidates: bool, places: int
) -> Judged:
    """Log-propensities that were handed in."""
    shape = batch.log_propensities.shape
    array = np.array(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"{name}: expected log-propensities of shape {shape}, got {array.shape}")
    there = _there(batch)
    array[~there] = 0.0
    if (array > 1e-9).any():
        row, place = np.argwhere(array > 1e-9)[0].tolist()
        raise ValueError(
            f"{name}: request {batch.value('request_id', row)}, place {place + 1}: a log-propensity"
            f" must not be above 0, got {array[row, place]}; of probabilities give the logarithms"
        )
    np.minimum(array, 0.0, out=array)  # a rounding above it
    missing = np.isnan(array @ np.ones(shape[1]))
    array[missing] = 0.0
    return Judged(
        array,
        {"no_propensity": missing},
        certain_mass(batch.log_propensities[:, :places], array[:, :places]),
        np.zeros(len(array)),
        np.zeros(len(array), np.bool_) if keep_candidates else _has_candidates(batch),
    )


def _there(batch: LogBatch) -> Mask:
    return np.asarray(np.arange(batch.log_propensities.shape[1]) < batch.lengths[:, None])


def certain_mass(logged: Array, evaluated: Array) -> Array:
    """The evaluation policy's probability of leaving what the logging policy was certain to show.

    At a place that had but one possible item, all else is out of reach. The probability of getting
    to that place under the evaluation policy is 1 in the mean of the weight of the places above, so
    the guess is unbiased; under a deterministic log it is 1 - P(the logged ranking), exactly.
    """
    certain = logged > _CERTAIN
    if not certain.any():
        return np.zeros(len(logged))
    above = np.zeros_like(logged)
    np.cumsum((evaluated - logged)[:, :-1], axis=1, out=above[:, 1:])
    leaving = np.where(certain, np.exp(np.minimum(above, 345.0)) * -np.expm1(evaluated), 0.0)
    return np.asarray(leaving.sum(axis=1))


def _by_model(
    batch: LogBatch,
    model: Model | Catalog,
    policies: list[Policy],
    wanted: npt.NDArray[np.int64],
    *settings: Any,
) -> list[Judged]:
    """By what the model says; rows that it cannot rank for are unknown, and keep no other back."""
    try:
        return _by_ranking(batch, model, policies, wanted, *settings)
    except ValueError as error:
        if str(error).startswith("damaged: "):  # the model is, whatever the rows are
            raise
        refused = np.zeros(len(batch), np.bool_)
        for i in wanted.tolist():
            try:
                _by_ranking(batch, model, policies, np.array([i]), *settings)
            except ValueError:
                refused[i] = True
        if refused[wanted].all():
            raise
        judged = _by_ranking(batch, model, policies, wanted[~refused[wanted]], *settings)
        return [
            replace(each, unknown={**each.unknown, "not_computable": refused}) for each in judged
        ]


def _by_ranking(
    batch: LogBatch,
    model: Model | Catalog,
    policies: Sequence[Policy],
    wanted: npt.NDArray[np.int64],
    logging: Mapping[str, Catalog],
    restrict: bool,
    keep_candidates: bool,
    places: int,
) -> list[Judged]:
    catalog = catalog_of(model)
    n, width = batch.log_propensities.shape
    unknown: dict[str, Mask] = {}
    has_candidates = _has_candidates(batch)
    support_unknown = np.zeros(n, np.bool_)
    rows: list[int] = []
    queries: list[Query] = []
    newer = Newer(catalog, logging)
    asked = Queries(
        model, batch, barred=newer if restrict else None, keep_candidates=keep_candidates
    )
    drawn: list[int] = []  # rows in which it could show what the logging policy could not
    candidates: dict[int, Ids] = {}
    for i in wanted.tolist():
        query = asked.row(i)
        if isinstance(query, str):
            unknown.setdefault(query, np.zeros(n, np.bool_))[i] = True
            continue
        new = newer.items(batch.value("catalog_version", i))
        if has_candidates[i]:
            given = batch.allow(i)
            if given is None:
                support_unknown[i] = True  # which they were was not logged
            elif not keep_candidates:
                candidates[i] = given
        if new is None:
            support_unknown[i] = True
        elif i in candidates or (len(new) and not restrict):
            drawn.append(len(rows))
        rows.append(i)
        queries.append(query)
    index = np.array(rows, np.int64)
    values = np.zeros((len(policies), n, width))
    certain, outside = np.zeros((2, len(policies), n))
    if rows:
        by_query = sorted(range(len(rows)), key=lambda j: queries[j].vector.tobytes())
        of_rows = [[query.policy(policy) for query in queries] for policy in policies]
        biased = any(query.bias is not None for query in queries)
        part = max(1, _BIASES // len(catalog)) if biased else len(rows)
        for first in range(0, len(rows), part):
            order = by_query[first : first + part]
            found = catalog.log_propensities_batch(
                np.stack([queries[j].vector for j in order]),
                [shown(batch, rows[j]) for j in order],
                policies=[[per_row[j] for j in order] for per_row in of_rows],
                exclude=[queries[j].exclude for j in order],
                allow=[queries[j].allow for j in order],
                bias=_stacked([queries[j].bias for j in order], len(catalog)),
            )
            width = found.shape[2]
            values[:, index[order], :width] = np.where(np.isnan(found), 0.0, found)
        for p, per_row in enumerate(of_rows):
            certain[p] = certain_mass(batch.log_propensities[:, :places], values[p, :, :places])
            for j in drawn:
                i, query = rows[j], queries[j]
                if certain[p, i] > 0.0:  # these items are in it
                    continue
                ranking = catalog.rank(
                    query.vector,
                    min(int(batch.k[i]), places),
                    policy=per_row[j],
                    seed=int(batch.request_hash[i, 0]),
                    exclude=query.exclude,
                    allow=query.allow,
                    bias=query.bias,
                )
                items = ranking.item_ids
                beyond = newer.shows(batch.value("catalog_version", i), items)
                if beyond or not np.isin(items, candidates.get(i, items)).all():
                    outside[p, i] = 1.0
    return [
        Judged(values[p], unknown, certain[p], outside[p], support_unknown)
        for p in range(len(policies))
    ]


def _stacked(
    biases: Iterable[npt.NDArray[np.float32] | None], n_items: int
) -> npt.NDArray[np.float32] | None:
    listed = list(biases)
    if all(bias is None for bias in listed):
        return None
    nothing = np.zeros(n_items, np.float32)
    return np.stack([nothing if bias is None else bias for bias in listed])


class Newer:
    """Items that a catalog has and the one that a row was logged from had not."""

    def __init__(self, catalog: Catalog, logging: Mapping[str, Catalog]) -> None:
        self._catalog = catalog
        self._logging = logging
        self._found: dict[str, Ids | None] = {catalog.version: catalog.item_ids[:0]}

    def items(self, version: str) -> Ids | None:
        """None where the catalog of that version is not at hand."""
        if version not in self._found:
            logged = self._logging.get(version)
            self._found[version] = (
                None if logged is None else np.setdiff1d(self._catalog.item_ids, logged.item_ids)
            )
        return self._found[version]

    def shows(self, version: str, item_ids: Ids) -> bool:
        new = self.items(version)
        return new is not None and bool(np.isin(item_ids, new).any())
