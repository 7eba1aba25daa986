"""Propensities of an evaluation policy: from a model, a column of the log, or a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, IdArray, Mask, Rows
from fastrank.eventlog import LogBatch
from fastrank.eventlog.checks import above_0
from fastrank.expressions import Param, as_params
from fastrank.inputs import shown
from fastrank.model import Model
from fastrank.ope.queries import (
    Newer,
    Queries,
    Query,
    SeenThen,
    catalog_of,
    displayed_items,
    ranked_candidates,
)
from fastrank.policies import PlackettLuce, Policy, short_name
from fastrank.ruled import check_columns
from fastrank.rules import Rules
from fastrank.scorer import Scorer

__all__ = [
    "ByFunction",
    "ByModel",
    "EvaluationPolicy",
    "FromColumn",
    "FromRows",
    "Judged",
    "describe",
    "judge",
]


# A place whose item had a probability within this of 1 could not have shown anything else.
_CERTAIN = -1e-12
_BIASES = 1 << 22  # values for all rows judged together: 16 MB


@dataclass(frozen=True, slots=True)
class ByModel:
    """A fastrank policy on a model, which may differ from the model that wrote the log.

    Attributes
    ----------
    label : str
    policy : Policy
    model : Model or Catalog
        Its users' vectors and temperatures are used. With a catalog alone, the log must have
        queries.
    arrays : mapping of str to str
        Columns of the log, by the array's name in `Batch`, such as ``q_logged``.
    rules : Rules, optional
        Rules in place of those that each row was logged under; ``Rules()`` for none. By default the
        row's own.
    params : mapping of str to (float, bool or str)
        Parameters of these rules, which override the row's own parameters of the same name.

    Raises
    ------
    ValueError
        If `rules` are not valid, or have no such parameters.

    Notes
    -----
    A row's earlier pages, its filters and its number of places are always used. So the value of a
    next page is its value given the earlier page, as the logging policy showed it.
    """

    label: str
    policy: Policy
    model: Model | Scorer
    arrays: Mapping[str, str] = field(default_factory=dict)
    rules: Rules | None = None
    params: Mapping[str, Param] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rules is not None and not isinstance(self.rules, Rules):
            raise ValueError(f"rules: {self.label}: expected Rules, got {shown(self.rules)}")
        if self.rules is not None:
            catalog = self.model.catalog if isinstance(self.model, Model) else self.model
            try:
                check_columns(self.rules, getattr(catalog, "features", None))
            except ValueError as error:
                raise ValueError(f"rules: {self.label}: {error}") from None
        given = as_params(self.params)
        names = frozenset() if self.rules is None else self.rules.names
        unknown = sorted(given.keys() - names)
        if unknown:
            raise ValueError(
                f"params: {self.label}: {unknown[0]!r} is no parameter of the policy's own rules"
            )
        object.__setattr__(self, "params", given)

    @property
    def ranks_by(self) -> tuple[int, Rules | None, str]:
        """A key that is equal for policies that rank by the same queries."""
        return id(self.model), self.rules, json.dumps(self.params, sort_keys=True)


@dataclass(frozen=True, slots=True)
class FromColumn:
    """Conditional log-propensities in a column of the log, list<float64> per row.

    Attributes
    ----------
    label : str
    column : str
    arrays : mapping of str to str
        As in `ByModel`.
    """

    label: str
    column: str
    arrays: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ByFunction:
    """Conditional log-propensities computed by a function of a batch of the log.

    Attributes
    ----------
    label : str
    function : callable
        ``function(batch: LogBatch) -> (n, k)`` float64; NaN where it cannot judge a row. Places
        past a row's length are ignored.
    arrays : mapping of str to str
        As in `ByModel`.
    """

    label: str
    function: Callable[[LogBatch], npt.ArrayLike]
    arrays: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FromRows:
    """Conditional log-propensities that the rows contain, as ``serve --also`` logs them.

    Attributes
    ----------
    label : str
    name : str
        Name of the policy in ``evaluation_log_propensities``. Rows without it cannot be judged.
    arrays : mapping of str to str
        As in `ByModel`.
    """

    label: str
    name: str
    arrays: Mapping[str, str] = field(default_factory=dict)


EvaluationPolicy: TypeAlias = ByModel | FromColumn | FromRows | ByFunction
"""What can be evaluated: where the log-propensities of the logged rankings come from."""


def describe(policy: EvaluationPolicy) -> str:
    """Describe a policy in a few words."""
    if isinstance(policy, FromColumn):
        return f"log-propensities of column {policy.column}"
    if isinstance(policy, FromRows):
        return f"log-propensities that rows have, {policy.name}"
    if isinstance(policy, ByFunction):
        return "log-propensities of a function"
    params = [f"{name} {value:.6g}" for name, value in policy.policy.params.items()]
    if policy.rules is not None:
        is_none = policy.rules == Rules()
        params.append("without rules" if is_none else f"rules {policy.rules.id[:12]}")
    kind = "model" if isinstance(policy.model, Model) else "catalog"
    named = f"{kind} {policy.model.version[:12]}"
    return ", ".join([short_name(policy.policy.inference_type), *params, named])


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What one evaluation policy gives for a batch of the log.

    Attributes
    ----------
    log_propensities : ndarray of float64, shape (n, k)
        0 past a row's length.
    unknown : dict of str to ndarray of bool (n,)
        Rows that could not be judged, by reason.
    certain : ndarray of float64, shape (n,)
        An unbiased estimate of the policy's probability of leaving what the logging policy was
        certain to show.
    outside : ndarray of float64, shape (n,)
        1 if a ranking drawn from the policy has an item that the logging policy could not show
        there: one that its catalog lacked, that was not a candidate, or that its rules did not
        allow; or if, under other rules, it ends before the row's ranking would. 0 if `certain`
        counts that ranking.
    support_unknown : ndarray of bool, shape (n,)
        Rows for which it is unknown what the logging policy could show.
    refusal : ValueError or None
        Why the model refused the first of the rows that are ``not_computable``.
    """

    log_propensities: FloatArray
    unknown: Mapping[str, Mask]
    certain: FloatArray
    outside: FloatArray
    support_unknown: Mask
    refusal: ValueError | None = None

    @property
    def known(self) -> Mask:
        """Rows (n,) that could be judged."""
        found = np.ones(len(self.certain), np.bool_)
        for which in self.unknown.values():
            found &= ~which
        return found

    def where(self, rows: Mask) -> Judged:
        """The results of the marked rows (n,)."""
        return Judged(
            self.log_propensities[rows],
            {reason: which[rows] for reason, which in self.unknown.items()},
            self.certain[rows],
            self.outside[rows],
            self.support_unknown[rows],
            self.refusal,
        )


def judge(
    batch: LogBatch,
    policies: Sequence[EvaluationPolicy],
    rows: Rows,
    *,
    logging: Mapping[str, Scorer],
    restrict: bool = False,
    keep_candidates: bool = False,
    places: int | None = None,
    models: Sequence[Model | Scorer] = (),
) -> list[Judged]:
    """Compute each policy's conditional log-propensities of the logged rankings.

    Parameters
    ----------
    batch : LogBatch
    policies : sequence of EvaluationPolicy
    rows : ndarray of int64
        The rows to judge; the results for other rows are undefined.
    logging : mapping of str to Catalog
        Catalogs that the log was written from, by version.
    restrict : bool
        Whether evaluation policies are limited to items of the logged catalog. If not, other items
        that they show are uncovered.
    keep_candidates : bool
        Whether evaluation policies choose from the candidates that the logging policy saw. If not,
        other items that they show are uncovered.
    places : int, optional
        Consider only these first places when finding what could not have been shown; by default
        all.
    models : sequence of Model or Catalog
        Models that store what users had seen when a row was drawn, in addition to those of the
        policies.

    Raises
    ------
    ValueError
        If a model's item ids are numbers and the log's are text, or the reverse; or if it is
        damaged.

    Notes
    -----
    A row that a model refuses is ``not_computable``, and does not affect the others. Such rows are
    found by bisection: with n rows, O(log n) calls for each, and 2 n if all are refused.
    """
    of_policies = [each.model for each in policies if isinstance(each, ByModel)]
    seen = SeenThen([*of_policies, *models], batch)
    support = _Support(logging, restrict, keep_candidates, places, seen)
    result: dict[int, Judged] = {}
    # Policies with the same model and rules are judged together.
    by_model: dict[tuple[int, Rules | None, str], dict[int, ByModel]] = {}
    for j, each in enumerate(policies):
        if isinstance(each, ByModel):
            by_model.setdefault(each.ranks_by, {})[j] = each
    for own in by_model.values():
        first = next(iter(own.values()))
        _check_ids(batch, first.label, catalog_of(first.model))
        judged = _by_model(batch, first, [each.policy for each in own.values()], rows, support)
        result.update(zip(own, judged, strict=True))
    for j, each in enumerate(policies):
        if isinstance(each, FromColumn):
            result[j] = _given(batch, batch.columns[each.column], each.column, support)
        elif isinstance(each, FromRows):
            result[j] = _given(batch, batch.evaluated(each.name), each.label, support)
        elif isinstance(each, ByFunction):
            result[j] = _given(batch, each.function(batch), each.label, support)
    return [result[j] for j in range(len(policies))]


@dataclass(frozen=True, slots=True)
class _Support:
    """What could be shown, as passed to `judge`."""

    logging: Mapping[str, Scorer]
    restrict: bool
    keep_candidates: bool
    places: int | None
    seen: SeenThen


def _check_ids(batch: LogBatch, label: str, catalog: Scorer) -> None:
    """Raise ValueError if no item of a catalog can be one of the log's: 42 is not "42"."""
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
    first: ByModel,
    policies: Sequence[Policy],
    wanted: Rows,
    support: _Support,
) -> list[Judged]:
    """Judge by a model; rows that it cannot rank for are unknown."""
    asked = _ask(batch, first, policies, wanted, support)
    result = []
    values = _log_propensities(batch, asked, len(policies))
    for p, of_policy in enumerate(values):
        certain = _certain_mass(batch, of_policy, support.places)
        outside = _outside(batch, asked, p, support)
        result.append((of_policy, certain, outside))
    unknown = dict(asked.unknown)
    if asked.refused.first is not None:
        unknown["not_computable"] = asked.refused.rows
    return [
        Judged(of_policy, unknown, certain, outside, asked.support_unknown, asked.refused.first)
        for of_policy, certain, outside in result
    ]


class _Refused:
    """Rows (n,) that a model refused, and the reason for the first one."""

    def __init__(self, n: int) -> None:
        self.rows = np.zeros(n, np.bool_)
        self.first: ValueError | None = None

    def add(self, i: int, error: ValueError) -> None:
        if str(error).startswith("damaged: "):  # that concerns the model, not the rows
            raise error
        self.rows[i] = True
        self.first = self.first or error


@dataclass(frozen=True, slots=True)
class _Asked:
    """The rows of a batch that a model can rank for, and what it would rank by.

    `drawn_by` are the policies to rank by, with the user's temperature. `to_draw` are those, by
    their index, that could show what the logging policy could not. `candidates` has the items that
    were ranked, by row, if these were not the whole catalog.
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
    first: ByModel,
    policies: Sequence[Policy],
    wanted: Rows,
    support: _Support,
) -> _Asked:
    n, has_candidates, model = len(batch), ranked_candidates(batch), first.model
    newer = Newer(catalog_of(model), support.logging)
    queries = Queries(
        model,
        batch,
        seen=support.seen,
        barred=newer if support.restrict else None,
        keep_candidates=support.keep_candidates,
        rules=first.rules,
        params=first.params,
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
                asked.support_unknown[i] = True  # the log does not say which they were
            elif not support.keep_candidates:
                asked.candidates[i] = given
        if new is None:
            asked.support_unknown[i] = True
        elif i in asked.candidates or (len(new) and not support.restrict) or query.is_other:
            asked.to_draw.append(len(asked.rows))
        asked.rows.append(i)
        asked.queries.append(query)
        asked.drawn_by.append(drawn_by)
    return asked


def _log_propensities(batch: LogBatch, asked: _Asked, n_policies: int) -> FloatArray:
    """Log-propensities of the rankings, (policies, n, k); 0 in rows not asked for, or refused."""
    queries, n_items = asked.queries, len(asked.catalog)
    values = np.zeros((n_policies, *batch.log_propensities.shape))
    by_query = sorted(
        range(len(queries)),
        key=lambda j: (queries[j].vector.tobytes(), str(queries[j].call.get("params"))),
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
                **_calls([queries[j] for j in order], batch.k[rows].tolist()),
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


def _calls(queries: Sequence[Query], ks: Sequence[int]) -> dict[str, Any]:
    """Combined arguments of calls for some rows: scores, rules and earlier pages."""
    calls = [query.call for query in queries]
    found: dict[str, Any] = {}
    if any(calls):
        found["params"] = [call.get("params") for call in calls]
    if any(query.is_ruled for query in queries):
        found["rules"] = [query.rules for query in queries]
        found["after"] = [query.after for query in queries]
        found["k"] = ks
    return found


def _stacked(biases: Sequence[Float32Array | None], n_items: int) -> Float32Array | None:
    if all(bias is None for bias in biases):
        return None
    nothing = np.zeros(n_items, np.float32)
    return np.stack([nothing if bias is None else bias for bias in biases])


def _outside(batch: LogBatch, asked: _Asked, p: int, support: _Support) -> FloatArray:
    """1 in rows whose drawn ranking the logging policy could not show.

    Except rankings that leave a place where it was certain: `_certain_mass` counts these.
    """
    result = np.zeros(len(batch))
    is_certain = batch.log_propensities[:, : support.places] > _CERTAIN
    for j in asked.to_draw:
        i, query = asked.rows[j], asked.queries[j]
        k = int(batch.k[i])  # rules may depend on it
        places = k if support.places is None else min(k, support.places)
        if asked.refused.rows[i] or (batch.lengths[i] >= places and is_certain[i].all()):
            continue
        try:
            ranking = asked.catalog.rank(
                query.vector,
                k if query.is_ruled else places,
                policy=asked.drawn_by[j][p],
                seed=int(batch.request_hash[i, 0]),
                exclude=query.exclude,
                allow=query.allow,
                bias=query.bias,
                **query.call,
            )
        except ValueError as error:
            asked.refused.add(i, error)
            continue
        shown = int(batch.lengths[i])
        if shown < len(batch.ranked(i)[0]):  # places that nobody saw do not matter
            places = min(places, shown)
        items = ranking.item_ids[:places]
        beyond = np.zeros(len(items) + 1, np.bool_)  # the last entry: the list ends there
        beyond[:-1] = asked.newer.among(batch.value("catalog_version", i), items)
        if i in asked.candidates:
            beyond[:-1] |= ~np.isin(items, asked.candidates[i])
        try:
            row = _LoggedRow(batch, i, asked.catalog, support)
            if query.is_other:
                beyond[:-1] |= row.barred(items)
                beyond[-1] = len(items) < places and row.n_left(items) > 0
            if beyond.any():
                at = int(beyond.argmax())
                result[i] = not row.was_certain(items, at)
        except ValueError:
            asked.support_unknown[i] = True
    return result


class _LoggedRow:
    """What the logging policy of a row could show.

    Computed from its rules if the catalog that logged it is given with its columns of that time;
    otherwise the mean weight must show what the rules barred.
    """

    def __init__(self, batch: LogBatch, i: int, catalog: Scorer, support: _Support) -> None:
        self._batch, self._i = batch, i
        self._rules = batch.rules(i)
        version, columns = batch.value("catalog_version", i), batch.value("features_version", i)
        self._catalog: Scorer | None = None
        for each in (support.logging.get(version), catalog):
            if each is None or each.version != version:
                continue
            if columns in (None, each.features_version):
                self._catalog = each

    def barred(self, items: IdArray) -> Mask:
        """Which of a ranking's items (m,) its rules do not allow at their places."""
        if self._rules is None or self._catalog is None:
            return np.zeros(len(items), np.bool_)
        batch, i = self._batch, self._i
        found = self._catalog.log_propensities(
            np.zeros(self._catalog.dim, np.float32),
            items,
            policy=PlackettLuce(),  # the rules allow the same under any law
            exclude=batch.exclude(i),
            allow=batch.allow(i),
            **Query.of_rules(self._rules, batch.after(i), int(batch.k[i])),
        )
        return np.isneginf(found)

    def n_left(self, items: IdArray) -> int:
        """How many items it could have shown after these; 0 if the list ended there."""
        batch, i = self._batch, self._i
        k = int(batch.k[i])
        if self._rules is None or self._catalog is None:
            left = int(batch.n_eligible[i]) - len(items)
            may_end = self._rules is not None and self._rules.rules.may_end_early
            return 0 if len(items) >= k or may_end else max(0, left)
        return self._catalog._n_allowed(
            *(items, self._rules),
            exclude=batch.exclude(i),
            allow=batch.allow(i),
            after=batch.after(i),
            k=k,
        )

    def was_certain(self, items: IdArray, at: int) -> bool:
        """Whether the items first deviate from what it was certain to show: at this place, where it
        had no choice, or at an earlier one."""
        own = self._batch.item_ids[self._i, : self._batch.lengths[self._i]]
        certain = self._batch.log_propensities[self._i] > _CERTAIN
        for place in range(min(at + 1, len(own))):
            if place == len(items) or items[place] != own[place]:
                if certain[place]:
                    return True
                break
        return self.n_left(items[:at]) == 1


def _given(batch: LogBatch, values: npt.ArrayLike, name: str, support: _Support) -> Judged:
    """Check log-propensities that were passed in."""
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
    np.minimum(array, 0.0, out=array)  # rounding may exceed 0
    missing = np.isnan(array @ np.ones(shape[1]))
    array[missing] = 0.0
    return Judged(
        array,
        {"no_propensity": missing},
        _certain_mass(batch, array, support.places),
        np.zeros(len(array)),
        np.zeros(len(array), np.bool_) if support.keep_candidates else ranked_candidates(batch),
    )


def _certain_mass(batch: LogBatch, log_propensities: FloatArray, places: int | None) -> FloatArray:
    """The evaluation policy's probability of leaving what the logging policy was certain to show.

    At a place with only one possible item, all others are out of reach. The probability of reaching
    that place under the evaluation policy is the mean weight of the places above it, so the
    estimate is unbiased. Under a deterministic log it is exactly 1 - P(the logged ranking).
    """
    logged, evaluated = batch.log_propensities[:, :places], log_propensities[:, :places]
    certain = logged > _CERTAIN
    if not certain.any():
        return np.zeros(len(logged))
    above = np.zeros_like(logged)
    np.cumsum((evaluated - logged)[:, :-1], axis=1, out=above[:, 1:])
    leaving = np.where(certain, np.exp(np.minimum(above, 345.0)) * -np.expm1(evaluated), 0.0)
    return np.asarray(leaving.sum(axis=1))
