"""From a log and some policies to estimates: one reading of the log, however many policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank.catalog import Catalog
from fastrank.eventlog import LogBatch, LogReader, Stratum
from fastrank.inputs import as_column
from fastrank.model import Model
from fastrank.ope.arrays import OptionalArrays
from fastrank.ope.batch import GROUPS, Batch
from fastrank.ope.diagnostics import BINS_PER_OCTAVE, LOWEST_OCTAVE, Thresholds
from fastrank.ope.estimators import ESTIMATORS, Estimator
from fastrank.ope.propensities import (
    ByFunction,
    EvaluationPolicy,
    FromColumn,
    Judged,
    catalog_of,
    judge,
)
from fastrank.ope.results import (
    Difference,
    Estimate,
    Status,
    check_level,
    difference,
    estimate,
    worst,
)
from fastrank.ope.verdict import verdict

__all__ = ["DEFAULT_ESTIMATORS", "Evaluation", "PolicyResult", "StratumResult", "evaluate"]

Array: TypeAlias = npt.NDArray[np.float64]

DEFAULT_ESTIMATORS = (
    "avg", "ips", "snips", "rips", "snrips", "clipped-ips", "replay", "replay-weighted",
)  # fmt: skip
_BY_PREFIX = ("rips", "snrips")  # with one place, they are ips and snips
LOGGING = "logging"  # the reference that is the log's own average


@dataclass(frozen=True, slots=True)
class StratumResult:
    """Rows of one logging policy, model and catalog.

    Attributes
    ----------
    stratum : Stratum
    rows : int
        Used.
    share : float
        Of all rows used.
    uncovered : dict of str to float
        For each evaluation policy, its probability of what could not be shown here.
    estimates : dict of str to dict of str to Estimate
        By policy and estimator.
    dropped : tuple of str
        Policies for which these rows are left out.
    """

    stratum: Stratum
    rows: int
    share: float
    uncovered: Mapping[str, float]
    estimates: Mapping[str, Mapping[str, Estimate]]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """What the log says about one evaluation policy.

    Attributes
    ----------
    label, description : str
    status : {"ok", "biased", "low_overlap", "malformed_log", "unsupported"}
        Of the leading estimator.
    reasons : tuple of str
    verdict : str
        In plain language.
    lead : str
        Name of the leading estimator.
    estimates, differences : dict of str to Estimate, Difference
        By estimator; differences are to the reference.
    uncovered : float
        Over all strata.
    rows : int
        That the estimates rest on.
    histogram : list of (float, int, float)
        Lower end, rows and weight of each bin of whole rankings' weights that is not empty; bins
        are a quarter of a doubling wide, and the first may be (0, rows, 0).
    """

    label: str
    description: str
    status: Status
    reasons: tuple[str, ...]
    verdict: str
    lead: str
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Difference]
    uncovered: float
    rows: int
    histogram: list[tuple[float, int, float]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that one reading of a log gave.

    Attributes
    ----------
    policies : tuple of PolicyResult
    strata : tuple of StratumResult
    reference : str
        "logging", or the label of a policy.
    level, difference_level : float
        Of intervals, and of those of differences, which are stricter (Bonferroni).
    clustered : bool
        Whether errors take it that rows of one user hang together.
    thresholds : Thresholds
        That statuses were judged by.
    places : int
        k.
    rows, rows_used : int
        Valid rows read, and rows that estimates rest on.
    rows_without_user : int
        Of those used: each is taken as a user of its own.
    logged : Estimate
        What the logging policy earned, on all rows used.
    span : (str, str) or None
        When the first and the last valid row were served, ISO 8601, UTC; None without rows.
    set_aside : dict of str to int
        Rows not used, by reason.
    log : dict
        What the reader found.
    """

    policies: tuple[PolicyResult, ...]
    strata: tuple[StratumResult, ...]
    reference: str
    level: float
    difference_level: float
    clustered: bool
    thresholds: Thresholds
    places: int
    rows: int
    rows_used: int
    rows_without_user: int
    logged: Estimate
    span: tuple[str, str] | None
    set_aside: Mapping[str, int]
    log: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate(
    log: LogReader,
    policies: Sequence[EvaluationPolicy],
    *,
    logging: Sequence[Model | Catalog] = (),
    places: int | None = None,
    estimators: Sequence[str] | None = None,
    lead: str | None = None,
    reference: str = LOGGING,
    cluster: bool = True,
    level: float = 0.95,
    thresholds: Thresholds | None = None,
    clip: float = 20.0,
    reward_range: tuple[float, float] | None = None,
    reward_model: Callable[..., npt.ArrayLike] | None = None,
    include_fallback: bool = False,
    include_caller_seeds: bool = False,
    restrict_to_logged_catalog: bool = False,
    keep_candidates: bool = False,
    reasons: Sequence[str] = (),
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Estimate policies' values from a log, reading it once.

    Parameters
    ----------
    log : LogReader
    policies : sequence of EvaluationPolicy
        With labels of their own.
    logging : sequence of Model or Catalog
        What wrote the log. Wanted where an evaluation policy has another catalog, to know what
        could not have been shown, and by iips and pi.
    places : int, optional
        Evaluate a policy that shows so many. By default each row's own number; if some rows asked
        for fewer than are given here, the log cannot say what the rest would have earned.
    estimators : sequence of str
        Keys of `ESTIMATORS`; by default `DEFAULT_ESTIMATORS`. avg is always among them.
    lead : str, optional
        Which estimator the verdict rests on; by default snrips, or snips with one place, where
        they are the same.
    reference : str
        What differences are to: ``"logging"``, or a policy's label.
    cluster : bool
        Whether rows of one user hang together.
    level : float
        Of the intervals.
    thresholds : Thresholds, optional
    clip : float
        Largest weight of clipped-ips; above 0 and finite, for without a limit it is ips.
    reward_range : (float, float), optional
        Least and largest reward of a ranking, for the Bernstein bound of clipped-ips.
    reward_model : callable, optional
        ``q(query (d,), item_ids (m,)) -> (m,)`` or ``(m, k)``: expected rewards. For dm and
        dr-position.
    include_fallback, include_caller_seeds : bool
        Use rows that are left out by default.
    restrict_to_logged_catalog : bool
        Evaluate policies that never show what the logged catalog had not.
    keep_candidates : bool
        Where only candidates were ranked (`candidate_set_id`), evaluate policies that rank the
        same candidates, which the row's allow list holds. By default they rank everything, and what
        they show that was no candidate is uncovered.
    reasons : sequence of str
        What is known against the log: keys of `REASONS`, ``"audit_failed"`` for one.
    advance : callable, optional
        Told how many rows of the log are done: after each batch and, where what iips, pi or a
        reward model want of it takes long, between.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        Naming the argument and the value; before the log is read where it can be known.

    Notes
    -----
    Memory is bounded by a batch and, for each stratum and policy, sums whose size hangs on the
    places and estimators alone: with the default ones 0.3 MB for one place and 0.7 MB for ten; iips
    and pi keep up to 128 MiB of laws besides. Each row costs one scan of the catalog for its scores
    and one pass over them for each policy. iips computes two Plackett-Luce laws for every query,
    set of filters and policy of a batch: a few milliseconds each.
    """
    policies = list(as_column("policies", policies, "a sequence of evaluation policies"))
    logging = list(as_column("logging", logging, "a sequence of models or catalogs"))
    labels = [policy.label for policy in policies]
    thresholds = thresholds or Thresholds()
    catalogs = {catalog_of(model).version: catalog_of(model) for model in logging}
    asked = places
    if isinstance(clip, bool) or not isinstance(clip, Real) or not 0.0 < clip < np.inf:
        raise ValueError(f"clip: expected a finite number above 0, got {clip!r}")
    places, names, lead = settled(log, places, estimators, lead)
    if reward_range is not None and not -np.inf < reward_range[0] < reward_range[1] < np.inf:
        raise ValueError(f"reward_range: expected low < high, both finite, got {reward_range}")
    _check(labels, reference, level)
    optional = OptionalArrays(
        names,
        policies,
        logging,
        places,
        reward_model,
        restrict_to_logged_catalog,
        keep_candidates,
    )
    strata: dict[int, _StratumSums] = {}
    set_aside: Counter[str] = Counter()
    rows, without_user, span, progress = 0, 0, _Span(), _Progress(advance)
    for batch in log:
        rows += len(batch)
        span.update(batch)
        used = np.ones(len(batch), np.bool_)

        def leave(
            reason: str, which: npt.NDArray[np.bool_], used: npt.NDArray[np.bool_] = used
        ) -> None:
            set_aside[reason] += int(np.count_nonzero(used & which))
            used &= ~which

        if not include_fallback:
            leave("fallback", batch.is_fallback)
        if not include_caller_seeds:
            leave("caller_seed", batch.caller_seed)
        leave("reward_not_observed", np.isnan(batch.rewards[:, :places].sum(axis=1)))
        judged = judge(
            batch,
            policies,
            np.flatnonzero(used),
            logging=catalogs,
            restrict=restrict_to_logged_catalog,
            keep_candidates=keep_candidates,
            places=places,
        )
        for each in judged:
            for reason, which in each.unknown.items():
                leave(reason, which)
        without_user += int(np.count_nonzero(used & ~batch.is_given("user_id")))
        progress.begin(len(batch), int(used.sum()) * len(policies))
        for index in np.unique(batch.stratum[used]).tolist():
            rows_of_it = np.flatnonzero(used & (batch.stratum == index))
            sums = strata.get(index)
            if sums is None:
                sums = strata[index] = _StratumSums(
                    log.strata[index], labels, names, places, clip, asked
                )
            sums.update(batch, rows_of_it, policies, judged, optional, cluster, progress.step)
        progress.end()
    _check_set_aside(set_aside, rows, thresholds, found := [*reasons])
    found += _log_reasons(log, thresholds)
    unit = "a ranking"
    if places < max(1, log.survey()[1]):
        unit = "by the first place" if places == 1 else f"by the first {places} places"
    summary = _Summary(
        [strata[index] for index in sorted(strata)],
        policies, names, lead, reference, cluster, level, thresholds, reward_range, found, unit,
    )  # fmt: skip
    counts = rows, without_user
    return summary.evaluation(places, counts, span.result(), dict(set_aside), log.report.to_dict())


def settled(
    log: LogReader, places: int | None, estimators: Sequence[str] | None, lead: str | None
) -> tuple[int, list[str], str]:
    """The places, estimators and leading estimator that these arguments of `evaluate` mean."""
    if places is not None and (type(places) is not int or places < 1):
        raise ValueError(f"places: expected an integer of at least 1, got {places!r}")
    longest = max(1, log.survey()[1])
    places = longest if places is None else min(places, longest)
    if estimators is None:
        estimators = [name for name in DEFAULT_ESTIMATORS if places > 1 or name not in _BY_PREFIX]
    estimators = list(as_column("estimators", estimators, "a sequence of names"))
    lead = lead or ("snrips" if places > 1 else "snips")
    for name in (*estimators, lead):
        if name not in ESTIMATORS:
            raise ValueError(f"estimators: expected some of {', '.join(ESTIMATORS)}; got {name!r}")
    return places, [*dict.fromkeys(["avg", *estimators, lead])], lead


def _check(labels: Sequence[str], reference: str, level: float) -> None:
    if not labels:
        raise ValueError("policies: expected at least one")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if LOGGING in labels:
        raise ValueError(
            f"policies: one is called {LOGGING!r}, which is the name of the reference that stands"
            " for the log's own average; give it another label"
        )
    if repeated:
        raise ValueError(f"policies: two of them are called {repeated[0]!r}")
    if reference != LOGGING and reference not in labels:
        raise ValueError(f"reference: expected {LOGGING} or a policy's label, got {reference!r}")
    check_level(level)


def _check_set_aside(
    set_aside: Mapping[str, int], rows: int, thresholds: Thresholds, found: list[str]
) -> None:
    """Rows that nobody chose to leave out may differ from those that stay."""
    chosen = ("fallback", "caller_seed")
    left = sum(count for reason, count in set_aside.items() if reason not in chosen)
    wanted = rows - sum(set_aside.get(reason, 0) for reason in chosen)
    if wanted and left > thresholds.set_aside * wanted:
        found.append("set_aside")


def _log_reasons(log: LogReader, thresholds: Thresholds) -> list[str]:
    found = []
    if log.report.malformed_share > thresholds.malformed:
        found.append("malformed_rows")
    if log.report.unreadable_files:
        found.append("unreadable_files")
    return found


class _Span:
    """The first and the last time of a log."""

    def __init__(self) -> None:
        self._ends: list[np.datetime64] = []

    def update(self, batch: LogBatch) -> None:
        if len(batch):
            times = batch.table.column("ts").to_numpy(zero_copy_only=False)
            ends = [*self._ends, times.min(), times.max()]
            self._ends = [min(ends), max(ends)]

    def result(self) -> tuple[str, str] | None:
        if not self._ends:
            return None
        first, last = (f"{np.datetime_as_string(end, unit='s')}Z" for end in self._ends)
        return first, last


class _Progress:
    """Tells how many rows are done, within a batch by hundredths of it."""

    def __init__(self, advance: Callable[[int], None] | None) -> None:
        self._advance = advance
        self._before = self._told = self._rows = 0
        self._steps = self._done = 0.0

    def begin(self, rows: int, steps: int) -> None:
        """A batch of so many rows, which are done after so many steps."""
        self._rows, self._steps, self._done = rows, float(max(steps, 1)), 0.0

    def step(self, steps: float) -> None:
        self._done += steps
        done = self._before + int(self._rows * min(self._done / self._steps, 1.0))
        if self._advance is not None and done - self._told > self._rows / 100:
            self._told = done
            self._advance(done)

    def end(self) -> None:
        self._before += self._rows
        if self._advance is not None:
            self._told = self._before
            self._advance(self._before)


def _estimators(names: Sequence[str], places: int, clip: float) -> dict[str, Estimator]:
    """One of each; those that weigh alike keep the sums about their weights once."""
    made: dict[str, Estimator] = {name: ESTIMATORS[name](places, clip) for name in names}
    keepers: dict[str, Estimator] = {}
    for each in made.values():
        if each.kind_of_weights is not None:
            keeper = keepers.setdefault(each.kind_of_weights, each)
            if keeper is not each:
                each.share_weights(keeper)
    return made


class _StratumSums:
    """The sums of one stratum, for all policies."""

    def __init__(
        self,
        stratum: Stratum,
        labels: Sequence[str],
        names: Sequence[str],
        places: int,
        clip: float,
        asked: int | None,
    ) -> None:
        self.stratum = stratum
        self._asked = asked or 0
        self.rows = 0
        self.fewer_places = 0
        self.certain, self.outside = np.zeros((2, len(labels)))
        self.of_candidates = False  # they are this stratum's own
        self.support_unknown = np.zeros(len(labels), np.int64)
        self.estimators = [_estimators(names, places, clip) for _ in labels]
        self._places = places

    def update(
        self,
        batch: LogBatch,
        which: npt.NDArray[np.int64],
        policies: Sequence[EvaluationPolicy],
        judged: Sequence[Judged],
        optional: OptionalArrays,
        cluster: bool,
        step: Callable[[float], None],
    ) -> None:
        whole = len(which) == len(batch)
        places = self._places

        def rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return array if whole else array[which]

        def matrix(array: Array) -> Array:
            array = rows(array)
            if array.shape[1] < places:
                return np.pad(array, [(0, 0), (0, places - array.shape[1])])
            return array[:, :places]

        self.rows += len(which)
        self.of_candidates |= bool(rows(batch.is_given("candidate_set_id")).any())
        self.fewer_places += int(np.count_nonzero(rows(batch.k) < self._asked))
        hashes = rows(batch.user_hash) if cluster else rows(batch.request_hash)[:, 0]
        logged, rewards = matrix(batch.log_propensities), matrix(batch.rewards)
        for p, each in enumerate(judged):
            evaluated = matrix(each.log_propensities)
            self.certain[p] += rows(each.certain).sum()
            self.outside[p] += rows(each.outside).sum()
            self.support_unknown[p] += np.count_nonzero(rows(each.support_unknown))
            arrays = optional.arrays(policies[p], batch, which, logged, evaluated, step)
            prepared = Batch(
                logged=logged,
                evaluated=evaluated,
                rewards=rewards,
                lengths=np.minimum(rows(batch.lengths), places),
                groups=(hashes % np.uint64(GROUPS)).astype(np.int64),
                uniform=rows(batch.uniform),
                n_eligible=rows(batch.n_eligible),
                **arrays,
            )
            for estimator in self.estimators[p].values():
                estimator.update(prepared)


@dataclass(frozen=True, slots=True)
class _Summary:
    strata: Sequence[_StratumSums]
    policies: Sequence[EvaluationPolicy]
    names: Sequence[str]
    lead: str
    reference: str
    cluster: bool
    level: float
    thresholds: Thresholds
    reward_range: tuple[float, float] | None
    reasons: Sequence[str]
    unit: str

    @property
    def difference_level(self) -> float:
        """Bonferroni, over the policies that are compared with the reference."""
        compared = len(self.policies) - (self.reference != LOGGING)
        return 1.0 - (1.0 - self.level) / max(compared, 1)

    def evaluation(
        self,
        places: int,
        counts: tuple[int, int],
        span: tuple[str, str] | None,
        set_aside: dict[str, int],
        log: dict[str, Any],
    ) -> Evaluation:
        used = sum(each.rows for each in self.strata)
        return Evaluation(
            policies=tuple(self._policy(p) for p in range(len(self.policies))),
            strata=tuple(self._stratum(each, used) for each in self.strata),
            reference=self.reference,
            level=self.level,
            difference_level=self.difference_level,
            clustered=self.cluster,
            thresholds=self.thresholds,
            places=places,
            rows=counts[0],
            rows_used=used,
            rows_without_user=counts[1],
            logged=self._logged(),
            span=span,
            set_aside={reason: count for reason, count in set_aside.items() if count},
            log=log,
        )

    def _estimate(
        self, estimator: Estimator, reasons: Sequence[str], bootstrap: bool = True
    ) -> Estimate:
        return estimate(
            estimator,
            cluster=self.cluster,
            level=self.level,
            thresholds=self.thresholds,
            reward_range=self.reward_range,
            reasons=tuple(reasons),
            bootstrap=bootstrap,
        )

    def _logged(self) -> Estimate:
        found = self._estimate(self._merged(self.strata, 0, "avg"), self.reasons)
        reasons = tuple(reason for reason in found.reasons if reason != "logging_value")
        return replace(found, status=worst(reasons), reasons=reasons)

    def _uncovered(self, each: _StratumSums, p: int) -> float:
        """A policy's probability of what the logging policy of a stratum could not show.

        What could not be shown for want of items is the same for all policies that ranked one
        catalog, and known by draws, of which a small stratum has too few.
        """
        alike = [
            other
            for other in self.strata
            if other is each
            or (
                other.stratum.catalog_version == each.stratum.catalog_version
                and not (each.of_candidates or other.of_candidates)
            )
        ]
        outside = sum(other.outside[p] for other in alike) / sum(other.rows for other in alike)
        return float(each.certain[p] / each.rows + outside)

    def _against(self, each: _StratumSums, p: int) -> list[str]:
        """Why the rows of a stratum cannot say anything about a policy."""
        found = []
        if self._uncovered(each, p) > self.thresholds.uncovered:
            found.append("uncovered")
        if each.support_unknown[p]:
            found.append("uncovered_unknown")
        if each.fewer_places:
            found.append("more_places")
        return found

    def _supported(self, p: int) -> tuple[list[_StratumSums], list[str]]:
        """The strata that a policy can be evaluated on; what is against it if there are none."""
        fine = [each for each in self.strata if not self._against(each, p)]
        if fine or not self.strata:
            return fine, list(self.reasons)
        against = [reason for each in self.strata for reason in self._against(each, p)]
        return list(self.strata), [*self.reasons, *against]

    def _merged(self, strata: Sequence[_StratumSums], p: int, name: str) -> Estimator:
        if not strata:
            return ESTIMATORS[name](1)
        first = strata[0].estimators[p][name]
        result = type(first)(first.places, first.clip)
        for each in strata:
            result.merge(each.estimators[p][name])
        return result

    def _stratum(self, each: _StratumSums, used: int) -> StratumResult:
        return StratumResult(
            stratum=each.stratum,
            rows=each.rows,
            share=each.rows / used,
            uncovered={
                policy.label: self._uncovered(each, p) for p, policy in enumerate(self.policies)
            },
            estimates={
                policy.label: {
                    name: self._estimate(
                        each.estimators[p][name],
                        [*self.reasons, *self._against(each, p)],
                        bootstrap=False,
                    )
                    for name in self.names
                }
                for p, policy in enumerate(self.policies)
            },
            dropped=tuple(
                policy.label for p, policy in enumerate(self.policies) if self._against(each, p)
            ),
        )

    def _policy(self, p: int) -> PolicyResult:
        policy = self.policies[p]
        strata, against = self._supported(p)
        merged = {name: self._merged(strata, p, name) for name in self.names}
        estimates = {name: self._estimate(each, against) for name, each in merged.items()}
        differences = {}
        if policy.label != self.reference:
            labels = [each.label for each in self.policies]
            against_both = list(against)
            if self.reference != LOGGING:
                other_p = labels.index(self.reference)
                for stratum in strata:
                    against_both += self._against(stratum, other_p)
            for name, each in merged.items():
                if self.reference == LOGGING:
                    other = merged["avg"]
                else:
                    other = self._merged(strata, other_p, name)
                differences[name] = difference(
                    each,
                    other,
                    cluster=self.cluster,
                    level=self.difference_level,
                    thresholds=self.thresholds,
                    reasons=tuple(against_both),
                )
        rows = sum(each.rows for each in strata)
        total = sum(each.rows for each in self.strata)
        beyond = sum(each.certain[p] + each.outside[p] for each in self.strata)
        uncovered = beyond / total if total else 0.0
        leading = estimates[self.lead]
        return PolicyResult(
            label=policy.label,
            description=describe(policy),
            status=leading.status,
            reasons=leading.reasons,
            verdict=verdict(
                policy.label,
                leading,
                differences.get(self.lead),
                float(uncovered),
                "the logging policy" if self.reference == LOGGING else self.reference,
                self.thresholds,
                left_out=1.0 - rows / total if total else 0.0,
                unit=self.unit,
            ),
            lead=self.lead,
            estimates=estimates,
            differences=differences,
            uncovered=float(uncovered),
            rows=rows,
            histogram=_histogram(merged),
        )


def describe(policy: EvaluationPolicy) -> str:
    """A policy in a few words."""
    if isinstance(policy, FromColumn):
        return f"log-propensities of column {policy.column}"
    if isinstance(policy, ByFunction):
        return "log-propensities of a function"
    params = [f"{name} {value:.6g}" for name, value in policy.policy.params.items()]
    return ", ".join([policy.policy.inference_type, *params, _named(policy.model)])


def _named(model: Model | Catalog) -> str:
    kind = "model" if isinstance(model, Model) else "catalog"
    return f"{kind} {model.version[:12]}"


def _histogram(merged: Mapping[str, Estimator]) -> list[tuple[float, int, float]]:
    weights = merged["ips"].weights if "ips" in merged else None
    if weights is None or not weights.places:
        return []
    counts, sums = weights.histogram_counts[:, 0], weights.histogram_sums[:, 0]
    result = [(0.0, int(weights.zeros[0]), 0.0)] if weights.zeros[0] else []
    for j in np.flatnonzero(counts).tolist():
        low = 2.0 ** (LOWEST_OCTAVE + j / BINS_PER_OCTAVE)
        result.append((low, int(counts[j]), float(sums[j])))
    return result
