"""The queries that rows of a log were ranked for, and those that a model would rank for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastrank.arraytypes import Float32Array, IdArray, IntArray, Mask
from fastrank.eventlog import LogBatch
from fastrank.expressions import Param, as_params
from fastrank.model import Model, scorer_of
from fastrank.policies import INFERENCE_TYPES, Policy, inference_type_of, parameters_of, policy
from fastrank.ranking import Score
from fastrank.rules import AppliedRules, Rules
from fastrank.scorer import Scorer

__all__ = [
    "Newer",
    "Queries",
    "Query",
    "SeenThen",
    "Writers",
    "catalog_of",
    "catalogs_of",
    "displayed_items",
    "logging_policy",
    "ranked_candidates",
]

_NO_RULES = Rules()
_NOT_AT_HAND = "seen_not_at_hand"


class Writers:
    """The models that wrote a log, by the versions in its rows."""

    def __init__(self, models: Sequence[Model | Scorer]) -> None:
        self.models = list(models)
        self._by_model: dict[str, list[int]] = {}
        self._by_catalog: dict[str, list[int]] = {}
        self._features: list[str | None] = []
        for j, each in enumerate(models):
            if isinstance(each, Model):
                self._by_model.setdefault(each.version, []).append(j)
            scorer = scorer_of(f"models[{j}]", each)
            self._by_catalog.setdefault(scorer.version, []).append(j)
            self._features.append(scorer.features_version)

    def of(self, batch: LogBatch, i: int) -> int | None:
        """Index of the model of row i, by its users if the row names them; None if there is none.

        If models differ only in their columns, the one with the row's columns is chosen.
        """
        found = self._by_model.get(batch.value("model_version", i))
        if found is None:
            found = self._by_catalog.get(batch.value("catalog_version", i))
        if found is None or len(found) == 1:
            return None if found is None else found[0]
        version = batch.value("features_version", i)
        return next((j for j in found if self._features[j] == version), found[0])

    def queries(self, batch: LogBatch) -> list[Queries]:
        """The queries of each model."""
        seen = SeenThen(self.models, batch)
        return [Queries(model, batch, seen=seen, as_logged=True) for model in self.models]


class SeenThen:
    """What users of a batch had seen when they were ranked for, from the models that store it.

    A row names the lists by their hash, and the user. Another model's lists are of another time:
    they may contain what this very row showed.
    """

    def __init__(self, models: Sequence[Model | Scorer], batch: LogBatch) -> None:
        self._batch = batch
        self._given = batch.is_given("seen_id")
        self._keepers = {
            each.seen_id: each
            for each in models
            if isinstance(each, Model) and each.seen_id is not None
        }
        self._rows: dict[str, IntArray] = {}

    def items(self, i: int) -> IdArray | None:
        """Ids (m,) that row i left out because of them; ValueError if no model has the lists."""
        name = self._batch.value("seen_id", i) if self._given[i] else None
        if not isinstance(name, str):  # a log of version 1 may have its own column of this name
            return None
        keeper = self._keepers.get(name)
        if keeper is None:
            raise ValueError(_NOT_AT_HAND)
        if name not in self._rows:
            self._rows[name] = keeper.find_users(self._batch.user_ids)
        row = int(self._rows[name][i])
        if row < 0:
            raise ValueError(_NOT_AT_HAND)
        return keeper.seen_item_ids(keeper.user_ids[row])


class Queries:
    """What a model ranks by for the rows of a batch.

    A logged query belongs to the model that logged it: another model, even if it differs only in
    users' vectors, looks up its own user. `as_logged` asks for what the log itself was ranked by.
    `barred` knows the items that the model must not show if it is limited to the logged catalog.
    Without `keep_candidates` a model ranks everything, even if the logging policy saw only
    candidates.

    A row's own rules apply, unless others are given; those take the row's parameters unless
    `params` gives others. The earlier pages are always the row's, and so is what the user had seen.
    """

    def __init__(
        self,
        model: Model | Scorer,
        batch: LogBatch,
        *,
        seen: SeenThen,
        as_logged: bool = False,
        barred: Newer | None = None,
        keep_candidates: bool = False,
        rules: Rules | None = None,
        params: Mapping[str, Param] | None = None,
    ) -> None:
        self._has_candidates = ranked_candidates(batch) & ~(as_logged or keep_candidates)
        self._model = model
        self._seen = seen
        self._as_logged = as_logged
        self._barred = barred
        self._batch = batch
        self._catalog = catalog_of(model)
        self._has_scores = batch.is_given("score")
        self._rules = rules
        self._params = params or {}
        self._positions: IntArray | None = None
        if isinstance(model, Model):
            self._positions = model.find_users(batch.user_ids)

    def row(self, i: int) -> Query | str:
        """The query for row i, or why there is none: ``unknown_user``, ``no_query``, ..."""
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
        try:
            before = self._seen.items(i)
        except ValueError as error:
            if str(error) != _NOT_AT_HAND:
                raise
            return _NOT_AT_HAND
        if before is not None:
            exclude = before if exclude is None else np.concatenate([exclude, before])
        if self._barred is not None:
            new = self._barred.items(batch.value("catalog_version", i))
            if new is not None and len(new):
                exclude = new if exclude is None else np.concatenate([exclude, new])
        score = self._score_of(i)
        if isinstance(score, str):
            return score
        allow = None if self._has_candidates[i] else batch.allow(i)
        query = Query(vector, exclude, allow, bias, temperature, score)
        if self._rules is None and not batch.has_rules[i]:
            return query
        return self._under_rules(query, i)

    def _under_rules(self, query: Query, i: int) -> Query | str:
        """The query with rules and earlier pages, or why that is impossible."""
        catalog, logged, after = self._catalog, self._batch.rules(i), self._batch.after(i)
        version = self._batch.value("features_version", i)
        other_columns = logged is not None and version not in (None, catalog.features_version)
        if self._as_logged and other_columns:
            return "features_of_another_version"
        rules, params = (None, {}) if logged is None else logged
        is_other = other_columns
        if self._rules is not None:
            own = {name: value for name, value in params.items() if name in self._rules.names}
            own |= self._params
            is_other |= (self._rules, own) != (rules or _NO_RULES, params)
            rules, params = self._rules, own
        if after is not None:
            known = catalog._rows_of(after) >= 0
            if not known.all():
                # It does not know the groups of items that it lacks.
                if rules is not None and rules.is_sequential:
                    return "after_of_another_catalog"
                after = after[known]
        return replace(
            query,
            rules=None if rules == _NO_RULES else rules,
            params=params,
            after=after,
            is_other=is_other,
        )

    def _score_of(self, i: int) -> dict[str, Any] | str:
        """The arguments of a call for row i about its score, or why there are none.

        As logged: those of the row. Another policy ranks by its model's score, with the row's
        parameters if that was also the row's score.
        """
        own, logged = self._catalog.score, None
        said = self._batch.value("score", i) if self._has_scores[i] else None
        if isinstance(said, dict):  # a log of version 1 may have its own column of this name
            try:
                logged = Score(said["name"], said["hash"], as_params(json.loads(said["params"])))
            except (TypeError, ValueError):
                return "score_not_at_hand"
        if self._as_logged:
            if logged is not None:
                version = self._batch.value("features_version", i)
                return self._catalog.score_of(logged, version)
            return {} if own is None else {"score": "dot"}
        if own is None or logged is None or own.hash != logged.hash:
            return {}
        found = self._catalog.score_of(logged, None, any_version=True)
        return found if isinstance(found, str) else {"params": logged.params}

    def _logged_by_it(self, i: int) -> bool:
        version = self._batch.value("model_version", i)
        return self._as_logged or (
            isinstance(self._model, Model) and version == self._model.version
        )


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What a model needs to rank for one logged row.

    Attributes
    ----------
    vector : ndarray of float32, shape (d,)
    exclude, allow : ndarray of ids or None
    bias : ndarray of float32 or None, shape (n,)
    temperature : float
        The user's temperature factor.
    score : dict
        Arguments of the call about its score.
    rules : Rules or None
    params : dict
        Parameters of the rules.
    after : ndarray of ids or None
        What earlier pages showed.
    is_other : bool
        Whether the rules, or the columns that they use, differ from those of the log.
    """

    vector: Float32Array
    exclude: IdArray | None
    allow: IdArray | None
    bias: Float32Array | None
    temperature: float = 1.0
    score: dict[str, Any] = field(default_factory=dict)
    rules: Rules | None = None
    params: dict[str, Param] = field(default_factory=dict)
    after: IdArray | None = None
    is_other: bool = False

    @property
    def is_ruled(self) -> bool:
        """Whether the call has rules or earlier pages."""
        return self.rules is not None or self.after is not None

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of the call about its score, its rules and earlier pages."""
        if not self.is_ruled:
            return self.score
        found = {**self.score, "rules": self.rules, "after": self.after}
        if self.params:
            found["params"] = {**(self.score.get("params") or {}), **self.params}
        return found

    @staticmethod
    def of_rules(applied: AppliedRules, after: IdArray | None, k: int) -> dict[str, Any]:
        """Arguments of a call about rules only."""
        return {
            "score": "dot",
            "rules": applied.rules,
            "params": applied.params,
            "after": after,
            "k": k,
        }

    def judged(self, k: int) -> dict[str, Any]:
        """The same for judging a ranking made for k places."""
        return {**self.call, "k": k} if self.is_ruled else self.call

    def policy(self, policy: Policy) -> Policy:
        """The policy at the user's temperature."""
        return policy if self.temperature == 1.0 else policy.scaled(self.temperature)


class Newer:
    """Items of a catalog that are not in the catalog that a row was logged from."""

    def __init__(self, catalog: Scorer, logging: Mapping[str, Scorer]) -> None:
        self._catalog = catalog
        self._logging = logging
        self._found: dict[str, IdArray | None] = {catalog.version: catalog.item_ids[:0]}

    def items(self, version: str) -> IdArray | None:
        """The items; None if the catalog of that version is not available."""
        if version not in self._found:
            logged = self._logging.get(version)
            self._found[version] = (
                None if logged is None else np.setdiff1d(self._catalog.item_ids, logged.item_ids)
            )
        return self._found[version]

    def among(self, version: str, item_ids: IdArray) -> Mask:
        """Which items (m,) are newer; none if that is unknown."""
        new = self.items(version)
        if new is None:
            return np.zeros(len(item_ids), np.bool_)
        return np.isin(item_ids, new)


def logging_policy(batch: LogBatch, i: int) -> Policy | None:
    """The policy that drew row i; None if fastrank has none of that name."""
    name, params = batch.value("policy_name", i), batch.params(i)
    try:
        _, _, own = INFERENCE_TYPES[inference_type_of(name)]
    except ValueError:
        return None
    if not set(own) <= set(params):
        return None
    if not set(params) <= set(parameters_of(name)):  # dropping one would change the law
        return None
    return policy(name, **params)


def displayed_items(batch: LogBatch, i: int) -> IdArray:
    """The items of row i that were displayed."""
    return np.asarray(batch.item_ids[i, : batch.lengths[i]])


def ranked_candidates(batch: LogBatch) -> Mask:
    """Rows whose logging policy saw only some candidates."""
    return batch.is_given("candidate_set_id")


def catalogs_of(models: Sequence[Model | Scorer]) -> dict[str, Scorer]:
    """Models' catalogs by their versions."""
    catalogs = [scorer_of(f"logging[{j}]", each) for j, each in enumerate(models)]
    return {each.version: each for each in catalogs}


def catalog_of(model: Model | Scorer) -> Scorer:
    """A model's catalog."""
    return scorer_of("model", model)
