"""Where an evaluation policy's propensities come from: a model, a column of the log, a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, IdArray, Mask, Rows
from fastrank.eventlog import LogBatch
from fastrank.eventlog.checks import above_0
from fastrank.model import Model
from fastrank.ope.queries import (
    Newer,
    Queries,
    Query,
    catalog_of,
    displayed_items,
    ranked_candidates,
)
from fastrank.policies import Policy
from fastrank.scorer import Scorer

__all__ = [
    "ByFunction",
    "ByModel",
    "EvaluationPolicy",
    "FromColumn",
    "Judged",
    "describe",
    "judge",
]


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
    model: Model | Scorer
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


def describe(policy: EvaluationPolicy) -> str:
    """A policy in a few words."""
    if isinstance(policy, FromColumn):
        return f"log-propensities of column {policy.column}"
    if isinstance(policy, ByFunction):
        return "log-propensities of a function"
    params = [f"{name} {value:.6g}" for name, value in policy.policy.params.items()]
    kind = "model" if isinstance(policy.model, Model) else "catalog"
    named = f"{kind} {policy.model.version[:12]}"
    return ", ".join([policy.policy.inference_type, *params, named])


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
    refusal : ValueError or None
        Why the model refused the first of those that are ``not_computable``.
    """

    log_propensities: FloatArray
    unknown: Mapping[str, Mask]
    certain: FloatArray
    outside: FloatArray
    support_unknown: Mask
    refusal: ValueError | None = None


def judge(
    batch: LogBatch,
    policies: Sequence[EvaluationPolicy],
    rows: Rows,
    *,
    logging: Mapping[str, Scorer],
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

    Raises
    ------
    ValueError
        If a model's item ids are numbers and the log's text, or the reverse; or it is damaged.

    Notes
    -----
    A row that a model refuses is ``not_computable``, and keeps no other back. Such rows are found
    by halves: with n rows, O(log n) calls for each, and 2 n where all are.
    """
    support = _Support(
        logging,
        restrict,
        keep_candidates,
        batch.log_propensities.shape[1] if places is None else places,
    )
    result: dict[int, Judged] = {}
    by_model: dict[int, dict[int, ByModel]] = {}  # those of one model together
    for j, each in enumerate(policies):
        if isinstance(each, ByModel):
            by_model.setdefault(id(each.model), {})[j] = each
    for own in by_model.values():
        first = next(iter(own.values()))
        model = first.model
        _check_ids(batch, first.label, catalog_of(model))
        judged = _by_model(batch, model, [each.policy for each in own.values()], rows, support)
        result.update(zip(own, judged, strict=True))
    for j, each in enumerate(policies):
        if isinstance(each, FromColumn):
            result[j] = _given(batch, batch.columns[each.column], each.column, support)
        elif isinstance(each, ByFunction):
            result[j] = _given(batch, each.function(batch), each.label, support)
    return [result[j] for j in range(len(policies))]


@dataclass(frozen=True, slots=True)
class _Support:
    """What could be shown, as `judge` takes it."""

    logging: Mapping[str, Scorer]
    restrict: bool
    keep_candidates: bool
    places: int


def _check_ids(batch: LogBatch, label: str, catalog: Scorer) -> None:
    """A ValueError where no item of a catalog can be one of the log: 42 is not "42"."""
    kinds = [
        "numbers" if ids.dtype.kind == "i" else "text" for ids in (batch.item_ids, catalog.item_ids)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"policies: {label}: the item ids of its model are {kinds[1]}, those of the log"
            f" {kinds[0]}"
        )


def _by_model(
    batch: LogBatch,
    model: Model | Scorer,
    policies: Sequence[Policy],
    wanted: Rows,
    support: _Support,
) -> list[Judged]:
    """By what the model says; rows that it cannot rank for are unknown."""
    asked = _ask(batch, model, policies, wanted, support)
    result = []
    values = _log_propensities(batch, asked, len(policies))
    for p, of_policy in enumerate(values):
        certain = _certain_mass(batch, of_policy, support.places)
        outside = _outside(batch, asked, p, certain, support.places)
        result.append((of_policy, certain, outside))
    unknown = dict(asked.unknown)
    if asked.refused.first is not None:
        unknown["not_computable"] = asked.refused.rows
    return [
        Judged(of_policy, unknown, certain, outside, asked.support_unknown, asked.refused.first)
        for of_policy, certain, outside in result
    ]


class _Refused:
    """Rows (n,) that a model refused, and why the first of them."""

    def __init__(self, n: int) -> None:
        self.rows = np.zeros(n, np.bool_)
        self.first: ValueError | None = None

    def add(self, i: int, error: ValueError) -> None:
        if str(error).startswith("damaged: "):  # the model is, whatever the rows are
            raise error
        self.rows[i] = True
        self.first = self.first or error


@dataclass(frozen=True, slots=True)
class _Asked:
    """The rows of a batch that a model can rank for, and what it would rank by.

    `drawn_by` are the policies, with the user's temperature, that it would rank by; `to_draw` are
    those, by their number among them, in which it could show what the logging policy could not;
    `candidates` has what was ranked, by row, where that was not the whole catalog.
    """

    catalog: Scorer
    newer: Newer
    support_unknown: Mask
    refused: _Refused
    unknown: dict[str, Mask] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    drawn_by: list[list[Policy]] = field(default_factory=list)
    to_draw: list[int] = field(default_factory=list)
    candidates: dict[int, IdArray] = field(default_factory=dict)


def _ask(
    batch: LogBatch,
    model: Model | Scorer,
    policies: Sequence[Policy],
    wanted: Rows,
    support: _Support,
) -> _Asked:
    n, has_candidates = len(batch), ranked_candidates(batch)
    newer = Newer(catalog_of(model), support.logging)
    queries = Queries(
        model,
        batch,
        barred=newer if support.restrict else None,
        keep_candidates=support.keep_candidates,
    )
    asked = _Asked(catalog_of(model), newer, np.zeros(n, np.bool_), _Refused(n))
    for i in wanted.tolist():
        try:
            query = queries.row(i)
            if isinstance(query, str):
                asked.unknown.setdefault(query, np.zeros(n, np.bool_))[i] = True
                continue
            drawn_by = [query.policy(policy) for policy in policies]
        except ValueError as error:
            asked.refused.add(i, error)
            continue
        new = newer.items(batch.value("catalog_version", i))
        if has_candidates[i]:
            given = batch.allow(i)
            if given is None:
                asked.support_unknown[i] = True  # which they were was not logged
            elif not support.keep_candidates:
                asked.candidates[i] = given
        if new is None:
            asked.support_unknown[i] = True
        elif i in asked.candidates or (len(new) and not support.restrict):
            asked.to_draw.append(len(asked.rows))
        asked.rows.append(i)
        asked.queries.append(query)
        asked.drawn_by.append(drawn_by)
    return asked


def _log_propensities(batch: LogBatch, asked: _Asked, n_policies: int) -> FloatArray:
    """Of the logged rankings, (policies, n, k); 0 in rows that are not asked about, or refused."""
    queries, n_items = asked.queries, len(asked.catalog)
    values = np.zeros((n_policies, *batch.log_propensities.shape))
    by_query = sorted(
        range(len(queries)),
        key=lambda j: (queries[j].vector.tobytes(), str(queries[j].score.get("params"))),
    )
    biased = any(query.bias is not None for query in queries)
    part = max(1, _BIASES // n_items if biased else len(queries))
    waiting = [by_query[first : first + part] for first in range(0, len(queries), part)][::-1]
    while waiting:
        order = waiting.pop()
        rows = [asked.rows[j] for j in order]
        try:
            found = asked.catalog.log_propensities_batch(
                np.stack([queries[j].vector for j in order]),
                [displayed_items(batch, i) for i in rows],
                policies=[[asked.drawn_by[j][p] for j in order] for p in range(n_policies)],
                exclude=[queries[j].exclude for j in order],
                allow=[queries[j].allow for j in order],
                bias=_stacked([queries[j].bias for j in order], n_items),
                **_scores([queries[j] for j in order]),
            )
        except ValueError as error:
            if len(order) == 1:
                asked.refused.add(rows[0], error)
            else:
                half = len(order) // 2
                waiting += [order[half:], order[:half]]
            continue
        values[:, rows, : found.shape[2]] = np.where(np.isnan(found), 0.0, found)
    return values


def _scores(queries: Sequence[Query]) -> dict[str, Any]:
    """What calls for some rows say of their scores, as one."""
    if not any(query.score for query in queries):
        return {}
    return {"params": [query.score.get("params") for query in queries]}


def _stacked(biases: Sequence[Float32Array | None], n_items: int) -> Float32Array | None:
    if all(bias is None for bias in biases):
        return None
    nothing = np.zeros(n_items, np.float32)
    return np.stack([nothing if bias is None else bias for bias in biases])


def _outside(
    batch: LogBatch, asked: _Asked, p: int, certain: FloatArray, places: int
) -> FloatArray:
    """1 in rows whose drawn ranking has what the logging policy could not show."""
    result = np.zeros(len(batch))
    for j in asked.to_draw:
        i, query = asked.rows[j], asked.queries[j]
        if certain[i] > 0.0 or asked.refused.rows[i]:  # these items are in it; nobody knows
            continue
        try:
            ranking = asked.catalog.rank(
                query.vector,
                min(int(batch.k[i]), places),
                policy=asked.drawn_by[j][p],
                seed=int(batch.request_hash[i, 0]),
                exclude=query.exclude,
                allow=query.allow,
                bias=query.bias,
                **query.score,
            )
        except ValueError as error:
            asked.refused.add(i, error)
            continue
        items = ranking.item_ids
        beyond = asked.newer.shows(batch.value("catalog_version", i), items)
        if beyond or not np.isin(items, asked.candidates.get(i, items)).all():
            result[i] = 1.0
    return result


def _given(batch: LogBatch, values: npt.ArrayLike, name: str, support: _Support) -> Judged:
    """Log-propensities that were handed in."""
    shape = batch.log_propensities.shape
    array = np.array(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"{name}: expected log-propensities of shape {shape}, got {array.shape}")
    array[np.arange(shape[1]) >= batch.lengths[:, None]] = 0.0
    above = above_0(array)
    if above.any():
        row, place = np.argwhere(above)[0].tolist()
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
        _certain_mass(batch, array, support.places),
        np.zeros(len(array)),
        np.zeros(len(array), np.bool_) if support.keep_candidates else ranked_candidates(batch),
    )


def _certain_mass(batch: LogBatch, log_propensities: FloatArray, places: int) -> FloatArray:
    """The evaluation policy's probability of leaving what the logging policy was certain to show.

    At a place that had but one possible item, all else is out of reach. The probability of getting
    to that place under the evaluation policy is 1 in the mean of the weight of the places above, so
    the guess is unbiased; under a deterministic log it is 1 - P(the logged ranking), exactly.
    """
    logged, evaluated = batch.log_propensities[:, :places], log_propensities[:, :places]
    certain = logged > _CERTAIN
    if not certain.any():
        return np.zeros(len(logged))
    above = np.zeros_like(logged)
    np.cumsum((evaluated - logged)[:, :-1], axis=1, out=above[:, 1:])
    leaving = np.where(certain, np.exp(np.minimum(above, 345.0)) * -np.expm1(evaluated), 0.0)
    return np.asarray(leaving.sum(axis=1))
