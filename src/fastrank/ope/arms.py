"""Compare the arms of an experiment: whether that is valid, what each earned, what all show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fastrank.arraytypes import IntArray, Mask
from fastrank.eventlog import LogBatch, LogReader, Stratum
from fastrank.model import Model
from fastrank.ope.armpolicies import ArmPolicies
from fastrank.ope.armsresults import ArmResult, ArmsEvaluation, Compared, Crossed
from fastrank.ope.arrays import RewardModel
from fastrank.ope.contrast import contrast
from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.estimators import ESTIMATORS, Avg, Estimator
from fastrank.ope.experimentlog import ExperimentLog, check_log
from fastrank.ope.progress import Progress
from fastrank.ope.propensities import EvaluationPolicy, Judged
from fastrank.ope.question import LOGGING, Question, question
from fastrank.ope.ratio import SampleRatio
from fastrank.ope.reading import Choice, Reading
from fastrank.ope.results import Difference, estimate, worst
from fastrank.ope.rows import Part
from fastrank.ope.seeds import SharedSeeds
from fastrank.ope.shares import SharesGiven
from fastrank.ope.summary import against_report
from fastrank.scorer import Scorer

__all__ = ["evaluate_arms"]

_ABOUT_PROPENSITIES = ("audit_failed", "arms_contradict")
_OF_LAWS = ("iips", "pi")  # they need marginals under the logging law; a mixture has none


def evaluate_arms(
    log: LogReader | ExperimentLog,
    policies: Sequence[EvaluationPolicy] = (),
    *,
    experiment: str | None = None,
    shares: SharesGiven | None = None,
    control: str | None = None,
    logging: Sequence[Model | Scorer] = (),
    places: int | None = None,
    estimators: Sequence[str] | None = None,
    lead: str | None = None,
    reference: str = LOGGING,
    cluster: bool = True,
    level: float = 0.95,
    thresholds: Thresholds | None = None,
    clip: float = 20.0,
    reward_range: tuple[float, float] | None = None,
    reward_model: RewardModel | None = None,
    include_fallback: bool = False,
    include_caller_seeds: bool = False,
    restrict_to_logged_catalog: bool = False,
    keep_candidates: bool = False,
    reasons: Sequence[str] = (),
    advance: Callable[[int], None] | None = None,
) -> ArmsEvaluation:
    """Compare the arms of an experiment, and estimate policies from all of their rows.

    Parameters
    ----------
    log : LogReader or ExperimentLog
        The latter states its `experiment` and `shares`.
    policies : sequence of EvaluationPolicy
        Policies to estimate from all arms' rows; may be empty. A policy whose label is an arm's
        name is that arm's policy. The policies of other arms are those that their rows state, on a
        model of `logging`.
    experiment : str, optional
        By default the only experiment of the log.
    shares : mapping, optional
        As in `ExperimentLog`: the shares that arms should have had, for the whole log, or by
        revision or time.
    control : str, optional
        The arm that the others are compared with; by default the one named "control", or else the
        first.
    logging, places, estimators, lead, reference, cluster, level, thresholds, clip
        As in `evaluate`.
    reward_range, reward_model, include_fallback, include_caller_seeds
        As in `evaluate`.
    restrict_to_logged_catalog, keep_candidates, reasons, advance
        As in `evaluate`.

    Returns
    -------
    ArmsEvaluation

    Raises
    ------
    ValueError
        As in `ExperimentLog` and `evaluate`; if there is no such arm.

    Notes
    -----
    The log is read twice: to find arms and their periods, and to sum. Arms' policies are computed
    for all rows, and each costs as much as an evaluation policy.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank.eventlog import LogWriter
    >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
    >>> model = fr.Model(catalog, [f"u{i}" for i in range(100)], [[1.0, 0.0]] * 100)
    >>> arms, folder = {"control": fr.PlackettLuce(0.5), "new": fr.Uniform()}, tempfile.mkdtemp()
    >>> with LogWriter(folder) as log:
    ...     for i in range(600):
    ...         user, arm = i % 100, ("control", "new")[i % 2]
    ...         ranking = model.recommend(f"u{user}", 1, policy=arms[arm], seed=i)
    ...         clicked = [float(i % 3 == 0 and ranking.item_ids[0] == 20)]
    ...         _ = log.append(ranking, user_id=f"u{user}", experiment="e", arm=arm,
    ...                        rewards=clicked)
    >>> found = evaluate_arms(LogReader(folder), shares={"control": 1, "new": 1}, logging=[model])
    >>> found.status, found.sample_ratio.p_value, found.weighed_by
    ('ok', 1.0, 'mixture')
    """
    check_log(log)
    if not isinstance(log, ExperimentLog):
        log = ExperimentLog(log, experiment, shares=shares)
    elif experiment not in (None, log.name) or shares is not None:
        raise ValueError("log: states its experiment and its shares; give neither")
    if control is None:
        control = "control" if "control" in log.arms else log.arms[0]
    if control not in log.arms:
        raise ValueError(f"control: expected an arm, one of {', '.join(log.arms)}; got {control!r}")
    asked = question(
        log,
        policies,
        logging=logging,
        places=places,
        estimators=estimators,
        lead=lead,
        reference=reference,
        cluster=cluster,
        level=level,
        thresholds=thresholds,
        clip=clip,
        reward_range=reward_range,
    )
    choice = Choice(
        include_fallback, include_caller_seeds, restrict_to_logged_catalog, keep_candidates
    )
    arms = _Arms(log, control, asked, choice, reward_model)
    progress = Progress(advance)
    for batch in log:
        arms.take(batch)
        progress.begin(len(batch), 1)
        progress.end()
    return arms.result(reasons)


class _Arms:
    """Running sums over the batches of an experiment."""

    def __init__(
        self,
        log: ExperimentLog,
        control: str,
        asked: Question,
        choice: Choice,
        reward_model: RewardModel | None,
    ) -> None:
        self._log, self._control, self._asked, self._choice = log, control, asked, choice
        self._others = [arm for arm in log.arms if arm != control]
        given = {each.label: each for each in asked.policies if each.label in log.arms}
        self._policies = ArmPolicies(log, given, asked.logging)
        self._earned = {arm: Avg(asked.places) for arm in log.arms}
        self._set_aside = {arm: Counter[str]() for arm in log.arms}
        self._rows = dict.fromkeys(log.arms, 0)
        self._seeds = SharedSeeds()
        # By other arm and period: the estimators of the other arm and of the control.
        self._pairs: dict[tuple[str, int], tuple[Avg, Avg]] = {}
        self._crossings = []
        for other in self._others:
            for arm, source in ((control, other), (other, control)):
                policy = self._policies.any_of(arm)
                if policy is not None:
                    own = replace(
                        asked.about([policy]),
                        reference=LOGGING,
                        names=_without_laws(asked),
                        lead="snips" if ESTIMATORS[asked.lead].needs else asked.lead,
                    )
                    self._crossings.append(_Crossing(arm, source, log, Reading(own, choice)))
        self._why_no_mixture = self._policies.why_no_mixture
        if self._why_no_mixture is None and asked.places > 1:
            of_laws = [name for name in asked.names if name in _OF_LAWS]
            if of_laws:
                self._why_no_mixture = f"{of_laws[0]} needs marginals under one logging policy"
        self._pooled = Reading(asked, choice, reward_model) if asked.policies else None

    def take(self, batch: LogBatch) -> None:
        asked, log = self._asked, self._log
        used = self._choice.used(batch, asked.places)
        periods, arms = log.cells(batch)
        kept = used.mask.copy()
        for j, arm in enumerate(log.arms):
            of_arm = self._choice.used(batch.where(arms == j), asked.places)
            self._rows[arm] += len(of_arm.batch)
            self._set_aside[arm].update(of_arm.set_aside)
            self._update(self._earned[arm], batch, kept & (arms == j))
        self._seeds.update(batch, log.strata, kept, by_user=asked.cluster)
        number = {arm: j for j, arm in enumerate(log.arms)}
        for other in self._others:
            both = kept & log.both_ran(batch, periods, self._control, other)
            for j in np.unique(periods[both]).tolist():
                sides = self._pairs.setdefault((other, j), (Avg(asked.places), Avg(asked.places)))
                for side, arm in zip(sides, (other, self._control), strict=True):
                    rows = both & (periods == j) & (arms == number[arm])
                    self._update(side, batch, rows)
        judged = {}
        if self._crossings or (self._pooled is not None and self._why_no_mixture is None):
            judge = Reading(asked.about([]), self._choice).judge
            judged = self._policies.judged(batch, kept, judge)
        for each in self._crossings:
            if each.arm in judged:
                each.take(batch, kept, periods, arms, judged[each.arm], self._choice)
        if self._pooled is None:
            return
        if self._why_no_mixture is not None:
            self._pooled.take(used, log.strata)
            return
        drawn, unknown = self._policies.mixed(batch, kept, judged)
        for reason, which in unknown.items():
            used.leave(reason, which)
        self._pooled.take(used, log.strata, drawn=drawn, laws=self._policies.laws)

    def _update(self, estimator: Estimator, batch: LogBatch, rows: Mask) -> None:
        if rows.any():
            part = Part(batch, np.flatnonzero(rows), self._asked.places, self._asked.cluster)
            estimator.update(part.arrays(part.logged, {}))

    def result(self, reasons: Sequence[str]) -> ArmsEvaluation:
        asked, log, limits = self._asked, self._log, self._asked.thresholds
        ratio = log.sample_ratio(asked.cluster)
        against = [*reasons, *against_report(log.report, limits), *self._against(ratio)]
        false = self._policies.false(limits.malformed)
        crossed = []
        for each in self._crossings:
            mine = [*against, *(["audit_failed"] if each.arm in false else [])]
            crossed.append(each.result(mine))
        if any("arms_contradict" in each.difference.reasons for each in crossed):
            against.append("arms_contradict")
        level = 1.0 - (1.0 - asked.level) / max(len(self._others), 1)
        # Arms' own rewards do not depend on propensities.
        of_rows = [each for each in against if each not in _ABOUT_PROPENSITIES]
        compared = [self._compared(other, level, of_rows) for other in self._others]
        pooled = None
        if self._pooled is not None:
            mine = [*against, *(["audit_failed"] if false and self._mixes else [])]
            pooled = self._pooled.result(log, mine)
        return ArmsEvaluation(
            experiment=log.name,
            control=self._control,
            status=worst(against),
            reasons=tuple(dict.fromkeys(against)),
            sample_ratio=ratio,
            periods=tuple(
                {
                    "name": each.name,
                    "shares": each.shares,
                    "first": _time(min(cell.first for cell in each.arms.values())),
                    "last": _time(max(cell.last for cell in each.arms.values())),
                    "rows": {arm: cell.rows for arm, cell in each.arms.items()},
                }
                for each in log.periods
            ),
            arms=tuple(self._arm(arm, of_rows, false) for arm in log.arms),
            compared=tuple(compared),
            crossed=tuple(crossed),
            weighed_by="mixture" if self._mixes else "arm",
            why_no_mixture=self._why_no_mixture,
            pooled=pooled,
            rows_without_arm=log.rows_without_arm,
            thresholds=limits,
            level=asked.level,
            difference_level=level,
            log=log.report.to_dict(),
        )

    @property
    def _mixes(self) -> bool:
        return self._why_no_mixture is None

    def _against(self, ratio: SampleRatio) -> list[str]:
        """Reasons against the arms' rows."""
        limits, found = self._asked.thresholds, []
        if not ratio.fits:
            found.append("sample_ratio")
        if ratio.users_in_two_arms > limits.set_aside * ratio.counted:
            found.append("users_in_two_arms")
        # If more rows are left out of one arm than of another, that may depend on what was shown.
        left = [self._set_aside[arm].total() / rows for arm, rows in self._rows.items() if rows]
        unknown = [
            self._set_aside[arm]["reward_not_observed"] / rows
            for arm, rows in self._rows.items()
            if rows
        ]
        if max([max(left) - min(left), *unknown]) > limits.set_aside:
            found.append("set_aside")
        used = sum(each.rows for each in self._earned.values())
        if used and self._seeds.shared > limits.malformed * used:
            found.append("repeated_seeds")
        return found

    def _arm(self, arm: str, against: Sequence[str], false: Sequence[str]) -> ArmResult:
        earned = self._earned[arm]
        why_not = self._policies.why_not.get(arm)
        if arm in false:
            why_not = "its rows were not drawn by the policy that it is said to have"
        return ArmResult(
            arm=arm,
            policy=self._policies.described(arm),
            why_not_known=why_not,
            rows=self._rows[arm],
            rows_used=earned.rows,
            set_aside={name: count for name, count in self._set_aside[arm].items() if count},
            earned=estimate(
                earned,
                cluster=self._asked.cluster,
                level=self._asked.level,
                thresholds=self._asked.thresholds,
                reasons=tuple(against),
            ),
        )

    def _compared(self, other: str, level: float, against: Sequence[str]) -> Compared:
        asked = self._asked
        sides = [pair for (arm, _), pair in self._pairs.items() if arm == other]
        found = contrast(
            sides or [(Avg(asked.places), Avg(asked.places))],
            cluster=asked.cluster,
            level=level,
            thresholds=asked.thresholds,
            reasons=against,
        )
        rows = {
            arm: sum(pair[j].rows for pair in sides) for j, arm in enumerate((other, self._control))
        }
        return Compared(other, self._control, rows, found.periods, found.difference)


class _Crossing:
    """One arm, estimated from another arm's rows and from its own, by period."""

    def __init__(self, arm: str, source: str, log: ExperimentLog, reading: Reading) -> None:
        self.arm = arm
        self._source, self._log, self._reading = source, log, reading
        self._earned: dict[int, Avg] = {}
        self._laws = [
            next(iter(each.arms[source].strata), _UNKNOWN) if source in each.arms else _UNKNOWN
            for each in log.periods
        ]

    def take(
        self,
        batch: LogBatch,
        kept: Mask,
        periods: IntArray,
        arms: IntArray,
        judged: Judged,
        choice: Choice,
    ) -> None:
        log, asked = self._log, self._reading.asked
        ran = kept & log.both_ran(batch, periods, self.arm, self._source)
        rows = ran & (arms == log.arms.index(self._source))
        if rows.any():
            part = batch.where(rows)
            drawn = replace(part, stratum=periods[rows].astype(np.int32), _values={})
            self._reading.take(
                choice.used(part, asked.places),
                log.strata,
                drawn=drawn,
                laws=self._laws,
                judged=[judged.where(rows)],
            )
        # Of its own rows, those that another arm's rows could estimate.
        own = ran & (arms == log.arms.index(self.arm)) & judged.known
        for j in np.unique(periods[own]).tolist():
            of_period = Part(
                batch, np.flatnonzero(own & (periods == j)), asked.places, asked.cluster
            )
            earned = self._earned.setdefault(j, Avg(asked.places))
            earned.update(of_period.arrays(of_period.logged, {}))

    def result(self, reasons: Sequence[str]) -> Crossed:
        asked, sums = self._reading.asked, self._reading.sums
        evaluation = self._reading.result(self._log, reasons)
        (estimated,) = evaluation.policies
        strata = [*zip(sums.numbers, sums.strata, evaluation.strata, strict=True)]
        fine = [each for each in strata if self.arm not in each[2].dropped]
        nothing = Avg(asked.places)
        sides = [
            (each.estimators[0][estimated.lead], self._earned.get(j, nothing))
            for j, each, _ in fine or strata
        ]
        found = contrast(
            sides or [(nothing, nothing)],
            cluster=asked.cluster,
            level=asked.level,
            thresholds=asked.thresholds,
            reasons=reasons,
        )
        difference, z = found.difference, None
        if estimated.status == "ok":
            z = found.z
            if found.is_beyond(asked.thresholds.mean_weight_z):
                difference = _with(difference, "arms_contradict")
        else:
            for reason in estimated.reasons:
                difference = _with(difference, reason)
        return Crossed(self.arm, self._source, estimated, difference, z)


_UNKNOWN = Stratum("unknown", (), None, None, False, law="unknown")


def _with(difference: Difference, reason: str) -> Difference:
    reasons = tuple(dict.fromkeys([*difference.reasons, reason]))
    return replace(difference, reasons=reasons, status=worst(reasons))


def _without_laws(asked: Question) -> list[str]:
    return [name for name in asked.names if not ESTIMATORS[name].needs]


def _time(at: np.datetime64) -> str:
    return f"{np.datetime_as_string(at, unit='s')}Z"
