"""By what each arm of an experiment ranks, and what its policies say of all arms' rows.

An experiment's rows were drawn by a mixture: an arm is drawn by its share, and a ranking by the
arm's policy. Weights under the mixture are never above one over the share of the arm that is most
like the policy that is asked about (Veach and Guibas 1995, "Optimally combining sampling techniques
for Monte Carlo rendering": the balance heuristic).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastrank.arraytypes import FloatArray, IntArray, Mask
from fastrank.eventlog import LogBatch, Stratum
from fastrank.model import Model, scorer_of
from fastrank.ope.experimentlog import Cell, ExperimentLog
from fastrank.ope.propensities import ByModel, EvaluationPolicy, Judged, describe
from fastrank.policies import INFERENCE_TYPES, policy
from fastrank.scorer import Scorer

__all__ = ["ArmPolicies"]

_EXACT = 1e-3  # what an arm's policy may be off the logged log-propensities by: no weight shows it


class ArmPolicies:
    """What drew the rows of each arm, in each period, as evaluation policies.

    Parameters
    ----------
    log : ExperimentLog
    given : mapping of str to EvaluationPolicy
        By arm; of the others the policy is what their rows say, on a model of `logging`.
    logging : sequence of Model or Catalog

    Attributes
    ----------
    why_not : dict of str to str
        Of arms whose policy is not known, why.
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
        self._policies: list[dict[str, EvaluationPolicy]] = []
        for period in log.periods:
            found = {}
            rules = {frozenset(cell.rules) for cell in period.arms.values()}
            for arm in sorted(period.arms.keys() | (period.shares or {}).keys()):
                policy, cell = given.get(arm), period.arms.get(arm)
                if policy is None:
                    if cell is None:
                        continue
                    try:
                        policy = _policy_of(arm, cell, logging)
                        if len(rules) > 1:
                            raise ValueError("arms are under different rules")
                    except ValueError as error:
                        self.why_not.setdefault(arm, str(error))
                        continue
                found[arm] = replace(policy, label=arm)
            self._policies.append(found)

    def described(self, arm: str) -> str | None:
        """An arm's policies in a few words, in the order of the periods; None: not known."""
        if arm in self.why_not:
            return None
        said = [describe(found[arm]) for found in self._policies if arm in found]
        return "; then ".join(dict.fromkeys(said)) or None

    def any_of(self, arm: str) -> EvaluationPolicy | None:
        """An arm's policy of the first period that has it; None where some is not known."""
        if arm in self.why_not:
            return None
        return next((found[arm] for found in self._policies if arm in found), None)

    @property
    def why_no_mixture(self) -> str | None:
        """Why rows cannot be weighed by the mixture; None: they can."""
        for period, found in zip(self._log.periods, self._policies, strict=True):
            if period.shares is None:
                return "shares are not given"
            if len({_catalog(cell) for cell in period.arms.values()}) > 1:
                return f"arms have different catalogs ({period.name})"
            for arm in period.arms:
                if arm in self.why_not:
                    return f"the policy of arm {arm} is not known: {self.why_not[arm]}"
            for arm, share in period.shares.items():
                if share and arm not in found:
                    return f"arm {arm} has no rows that say its policy ({period.name})"
        return None

    def false(self, most: float) -> list[str]:
        """Arms that were not drawn by their policy, in more than this share of their rows."""
        return [arm for arm in self._arms if self._off[arm] > most * self._checked[arm]]

    def judged(
        self,
        batch: LogBatch,
        rows: Mask,
        judge: Callable[[LogBatch, IntArray, Sequence[EvaluationPolicy]], list[Judged]],
    ) -> dict[str, Judged]:
        """What each arm's policy, as of the row's period, says of `rows` (n,), by arm."""
        periods, arms = self._log.cells(batch)
        empty = np.zeros(len(batch), np.bool_)
        found: dict[str, Judged] = {}
        for j in np.unique(periods[rows]).tolist():
            of_period = rows & (periods == j)
            policies = {
                arm: each for arm, each in self._policies[j].items() if arm not in self.why_not
            }
            if not policies:
                continue
            each_judged = judge(batch, np.flatnonzero(of_period), [*policies.values()])
            for arm, each in zip(policies, each_judged, strict=True):
                found[arm] = _joined(found.get(arm), each, of_period, empty)
        for arm, each in found.items():
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
        """The batch as the mixture drew it, and rows (n,) that cannot be so, by the reason.

        Its strata are the periods. A row's own arm counts with the propensity that was logged.
        """
        periods, arms = self._log.cells(batch)
        nothing = np.zeros(len(batch), np.bool_)
        unknown: dict[str, Mask] = {}
        prefixes = np.full(batch.log_propensities.shape, -np.inf)
        logged = np.cumsum(batch.log_propensities, axis=1)
        for j in np.unique(periods[rows]).tolist():
            of_period = rows & (periods == j)
            for arm, share in (self._log.periods[j].shares or {}).items():
                if not share:
                    continue
                own = of_period & (arms == self._arms.index(arm))
                others = of_period & ~own
                prefixes[own] = np.logaddexp(prefixes[own], np.log(share) + logged[own])
                each = judged[arm]
                theirs = np.cumsum(each.log_propensities[others], axis=1)
                prefixes[others] = np.logaddexp(prefixes[others], np.log(share) + theirs)
                for reason, which in each.unknown.items():
                    unknown[reason] = unknown.get(reason, nothing) | (which & of_period)
        prefixes = np.where(rows[:, None], prefixes, logged)
        # Rounding aside, a longer prefix is no likelier.
        mixture = np.minimum(np.diff(prefixes, axis=1, prepend=0.0), 0.0)
        return replace(
            batch, log_propensities=mixture, stratum=periods.astype(np.int32), _values={}
        ), unknown

    @property
    def laws(self) -> list[Stratum]:
        """The mixtures, of the periods, as strata."""
        return [
            Stratum(
                policy_name="mixture",
                params=tuple((f"share {arm}", share) for arm, share in (each.shares or {}).items()),
                model_version=None,
                catalog_version=_catalog(next(iter(each.arms.values()))),
                is_fallback=False,
                law=f"mixture of arms, {each.name}",
            )
            for each in self._log.periods
        ]


def _policy_of(arm: str, cell: Cell, logging: Sequence[Model | Scorer]) -> EvaluationPolicy:
    """What drew the rows of an arm in a period; a ValueError says why that is not known."""
    if not logging:
        raise ValueError("no model is given that its rows could be of")
    if cell.has_candidates:
        raise ValueError("its rows ranked candidates alone")
    if len(cell.strata) != 1:
        raise ValueError(
            "its rows are of several policies, models or catalogs while shares were constant"
            if cell.strata
            else "all of its rows are of the fallback"
        )
    (stratum,) = cell.strata
    if stratum.policy_name not in INFERENCE_TYPES:
        raise ValueError(f"fastrank has no policy {stratum.policy_name!r}")
    try:
        drawn_by = policy(stratum.policy_name, **dict(stratum.params))
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


def _catalog(cell: Cell) -> str | None:
    return next((each.catalog_version for each in cell.strata), None)


def _joined(before: Judged | None, new: Judged, rows: Mask, nothing: Mask) -> Judged:
    """One with the `rows` (n,) of a new one."""

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
