"""The policies of an experiment's arms, and their propensities for the rows of all arms.

An experiment's rows were drawn by a mixture: first an arm by its share, then a ranking by the arm's
policy. A weight under the mixture never exceeds one over the share of the arm most similar to the
evaluation policy (Veach and Guibas 1995, "Optimally combining sampling techniques for Monte Carlo
rendering": the balance heuristic).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastrank.arraytypes import FloatArray, IntArray, Mask
from fastrank.eventlog import LogBatch, Stratum
from fastrank.model import Model, scorer_of
from fastrank.ope.experimentlog import MOST_STRATA, Cell, ExperimentLog
from fastrank.ope.propensities import ByModel, EvaluationPolicy, Judged, describe
from fastrank.policies import inference_type_of, policy
from fastrank.scorer import Scorer

__all__ = ["ArmPolicies"]

_EXACT = 1e-3  # largest error in logged log-propensities that does not affect weights


class ArmPolicies:
    """The policies that drew the rows of each arm, by period, as evaluation policies.

    Parameters
    ----------
    log : ExperimentLog
    given : mapping of str to EvaluationPolicy
        By arm; the policies of the other arms are those that their rows state, on a model of
        `logging`.
    logging : sequence of Model or Catalog

    Attributes
    ----------
    why_not : dict of str to str
        For arms with an unknown policy, the reason.
    """

    def __init__(
        self,
        log: ExperimentLog,
        given: Mapping[str, EvaluationPolicy],
        logging: Sequence[Model | Scorer],
    ) -> None:
        self._log = log
        self._arms = log.arms
        self._checked = dict.fromkeys(log.arms, 0)
        self._off = dict.fromkeys(log.arms, 0)
        self.why_not: dict[str, str] = {}
        self._groups: list[_Group] = []
        for j, period in enumerate(log.periods):
            rules = {frozenset(cell.rules) for cell in period.arms.values()}
            versions = [{each.model_version for each in c.strata} for c in period.arms.values()]
            # If models were replaced while shares were constant, all arms used each of them in
            # turn. If each arm had one model, they may be the same or different ones.
            has_several = max(map(len, versions)) > 1
            for version in sorted(set().union(*versions), key=str) if has_several else [None]:
                group = _Group(j, has_several, version, {})
                for arm in sorted(period.arms.keys() | (period.shares or {}).keys()):
                    policy, cell = given.get(arm), period.arms.get(arm)
                    if policy is None:
                        if cell is None:
                            continue
                        try:
                            policy = _policy_of(arm, cell, group, logging)
                            if len(rules) > 1:
                                raise ValueError("arms are under different rules")
                        except ValueError as error:
                            self.why_not.setdefault(arm, str(error))
                            continue
                    group.policies[arm] = replace(policy, label=arm)
                self._groups.append(group)

    def described(self, arm: str) -> str | None:
        """Describe an arm's policies, in the order of the periods; None if they are unknown."""
        if arm in self.why_not:
            return None
        said = [describe(g.policies[arm]) for g in self._groups if arm in g.policies]
        return "; then ".join(dict.fromkeys(said)) or None

    def any_of(self, arm: str) -> EvaluationPolicy | None:
        """An arm's policy in the first period that has one; None if some policy is unknown."""
        if arm in self.why_not:
            return None
        return next((g.policies[arm] for g in self._groups if arm in g.policies), None)

    @property
    def why_no_mixture(self) -> str | None:
        """Why rows cannot be weighed by the mixture; None if they can."""
        for group in self._groups:
            period = self._log.periods[group.period]
            if period.shares is None:
                return "shares are not given"
            catalogs = {
                each.catalog_version for c in period.arms.values() for each in group.strata(c)
            }
            if len(catalogs) > 1:
                return f"arms have different catalogs ({period.name})"
            for arm in period.arms:
                if arm in self.why_not:
                    return f"the policy of arm {arm} is unknown: {self.why_not[arm]}"
            for arm, share in period.shares.items():
                if share and arm not in group.policies:
                    return f"arm {arm} has no rows that state its policy ({period.name})"
        return None

    def false(self, most: float) -> list[str]:
        """Arms whose rows, in more than this share, were not drawn by their policy."""
        return [arm for arm in self._arms if self._off[arm] > most * self._checked[arm]]

    def judged(
        self,
        batch: LogBatch,
        rows: Mask,
        judge: Callable[[LogBatch, IntArray, Sequence[EvaluationPolicy]], list[Judged]],
    ) -> dict[str, Judged]:
        """Propensities of `rows` (n,) under each arm's policy in the row's period, by arm."""
        groups, arms = self._groups_of(batch)
        empty = np.zeros(len(batch), np.bool_)
        found: dict[str, Judged] = {}
        for j in np.unique(groups[rows & (groups >= 0)]).tolist():
            of_group = rows & (groups == j)
            policies = {
                arm: each
                for arm, each in self._groups[j].policies.items()
                if arm not in self.why_not
            }
            if not policies:
                continue
            each_judged = judge(batch, np.flatnonzero(of_group), [*policies.values()])
            for arm, each in zip(policies, each_judged, strict=True):
                found[arm] = _joined(found.get(arm), each, of_group, empty)
        nowhere = rows & (groups < 0)
        for arm, each in found.items():
            if nowhere.any():
                given = each.unknown.get("no_propensity", empty)
                unknown = {**each.unknown, "no_propensity": given | nowhere}
                found[arm] = each = replace(each, unknown=unknown)
            own = rows & (arms == self._arms.index(arm)) & each.known
            error = np.nan_to_num(batch.numbers("log_norm_error")[own])
            between = np.abs(each.log_propensities[own] - batch.log_propensities[own])
            self._checked[arm] += int(np.count_nonzero(own))
            self._off[arm] += int(
                np.count_nonzero(between.max(axis=1, initial=0.0) > _EXACT + error)
            )
        return found

    def mixed(
        self, batch: LogBatch, rows: Mask, judged: Mapping[str, Judged]
    ) -> tuple[LogBatch, dict[str, Mask]]:
        """The batch as drawn by the mixture, and the rows (n,) that cannot be, by reason.

        Its strata are `laws`. For a row's own arm the logged propensity is used.
        """
        groups, arms = self._groups_of(batch)
        nothing = np.zeros(len(batch), np.bool_)
        unknown: dict[str, Mask] = {}
        prefixes = np.full(batch.log_propensities.shape, -np.inf)
        logged = np.cumsum(batch.log_propensities, axis=1)
        unknown["no_propensity"] = rows & (groups < 0)
        for j in np.unique(groups[rows & (groups >= 0)]).tolist():
            of_group = rows & (groups == j)
            for arm, share in (self._log.periods[self._groups[j].period].shares or {}).items():
                if not share:
                    continue
                own = of_group & (arms == self._arms.index(arm))
                others = of_group & ~own
                prefixes[own] = np.logaddexp(prefixes[own], np.log(share) + logged[own])
                each = judged[arm]
                theirs = np.cumsum(each.log_propensities[others], axis=1)
                prefixes[others] = np.logaddexp(prefixes[others], np.log(share) + theirs)
                for reason, which in each.unknown.items():
                    unknown[reason] = unknown.get(reason, nothing) | (which & of_group)
        prefixes = np.where((rows & (groups >= 0))[:, None], prefixes, logged)
        # Apart from rounding, a longer prefix is never more likely.
        mixture = np.minimum(np.diff(prefixes, axis=1, prepend=0.0), 0.0)
        return replace(
            batch, log_propensities=mixture, stratum=groups.astype(np.int32), _values={}
        ), unknown

    @property
    def laws(self) -> list[Stratum]:
        """Mixtures as strata, one for each period and each model used in it."""
        found = []
        for group in self._groups:
            period = self._log.periods[group.period]
            found.append(
                Stratum(
                    policy_name="mixture",
                    params=tuple((f"share {arm}", s) for arm, s in (period.shares or {}).items()),
                    model_version=group.version,
                    catalog_version=_catalog(next(iter(period.arms.values())), group),
                    is_fallback=False,
                    law=f"mixture of arms, {period.name}",
                )
            )
        return found

    def _groups_of(self, batch: LogBatch) -> tuple[IntArray, IntArray]:
        """For each row, its index into `_groups` and into the log's arms; (n,) each.

        -1 for a row of the fallback whose model ranked nothing else.
        """
        periods, arms = self._log.cells(batch)
        codes, versions = batch.texts("model_version")
        found = np.full(len(batch), -1, np.int64)
        for j, group in enumerate(self._groups):
            of_group = periods == group.period
            if group.has_several:
                number = {None: -1} | {name: code for code, name in enumerate(versions)}
                of_group &= codes == number.get(group.version, -2)
            found[of_group] = j
        return found, arms


class _Group(NamedTuple):
    """Rows of a period that one policy per arm drew, and those policies."""

    period: int
    has_several: bool  # models in the period, of which these rows have one
    version: str | None  # of that model
    policies: dict[str, EvaluationPolicy]

    def strata(self, cell: Cell) -> list[Stratum]:
        """The strata of an arm that belong to this group."""
        return [
            each
            for each in cell.strata
            if not self.has_several or each.model_version == self.version
        ]


def _policy_of(
    arm: str, cell: Cell, group: _Group, logging: Sequence[Model | Scorer]
) -> EvaluationPolicy:
    """The policy that drew an arm's rows in a group; a ValueError says why it is unknown."""
    if not logging:
        raise ValueError("no model is given that its rows could come from")
    if cell.has_candidates:
        raise ValueError("its rows ranked only candidates")
    strata = group.strata(cell)
    if not cell.strata:
        raise ValueError("all of its rows were ranked by the fallback")
    if not strata:
        raise ValueError(f"it has no rows of the model {str(group.version)[:12]}, as others have")
    if len(strata) > 1 or len(cell.strata) > MOST_STRATA:
        raise ValueError("its rows have several policies or catalogs while shares were constant")
    (stratum,) = strata
    try:
        inference_type = inference_type_of(stratum.policy_name)
    except ValueError:
        raise ValueError(f"fastrank has no policy {stratum.policy_name!r}") from None
    try:
        drawn_by = policy(inference_type, **dict(stratum.params))
    except TypeError as error:
        raise ValueError(f"{stratum.policy_name}: {error}") from None
    for each in logging:
        scorer = scorer_of("logging", each)
        version = each.version if isinstance(each, Model) else None
        if (
            version == stratum.model_version
            and scorer.version == stratum.catalog_version
            and stratum.features_version in (None, scorer.features_version)
        ):
            return ByModel(arm, drawn_by, each)
    raise ValueError("its model is not among those given")


def _catalog(cell: Cell, group: _Group) -> str | None:
    return next((each.catalog_version for each in group.strata(cell)), None)


def _joined(before: Judged | None, new: Judged, rows: Mask, nothing: Mask) -> Judged:
    """An earlier result, with the `rows` (n,) of a new one."""

    def of(old: FloatArray | None, each: FloatArray) -> FloatArray:
        mask = rows if each.ndim == 1 else rows[:, None]
        return np.where(mask, each, 0.0 if old is None else old)

    reasons = {*new.unknown, *(() if before is None else before.unknown)}
    old = {} if before is None else before.unknown
    return Judged(
        of(None if before is None else before.log_propensities, new.log_propensities),
        {
            reason: (new.unknown.get(reason, nothing) & rows) | old.get(reason, nothing)
            for reason in reasons
        },
        of(None if before is None else before.certain, new.certain),
        of(None if before is None else before.outside, new.outside),
        (new.support_unknown & rows) | (nothing if before is None else before.support_unknown),
        new.refusal if before is None else before.refusal or new.refusal,
    )
