"""Results for each policy, overall and by stratum, from the sums of a log."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any, TypeVar

import numpy as np

from fastrank.arraytypes import FloatArray
from fastrank.eventlog import ReadReport, Stratum
from fastrank.frames import (
    as_arrow,
    as_html,
    as_pandas,
    bracketed,
    floats,
    number,
    plain,
    said_in_a_line,
)
from fastrank.ope.behaviour import contradicted, leading, unchecked
from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.estimators import ESTIMATORS, Avg, Estimator
from fastrank.ope.question import LOGGING, Question
from fastrank.ope.results import (
    Difference,
    Estimate,
    Status,
    against_propensities,
    difference,
    estimate,
    missing_weight,
    worst,
)
from fastrank.ope.spread import spread_of
from fastrank.ope.sums import LogSums, StratumSums
from fastrank.ope.verdict import verdict

__all__ = [
    *("IN_BRACKETS", "Evaluation", "PolicyResult", "StratumResult", "against_report"),
    "summarise",
]

IN_BRACKETS = "In brackets: no result, for the reason that its status and the verdict give."
_POLICIES_SAID = 3  # most policies in a repr
_POLICIES_TOLD, _ESTIMATES_SHOWN = 10, 40  # most of each in a notebook


@dataclass(frozen=True, slots=True, repr=False)
class StratumResult:
    """Rows of one logging policy, model and catalog.

    Attributes
    ----------
    stratum : Stratum
    rows : int
        Rows used.
    share : float
        Share of all rows used.
    uncovered : dict of str to float
        For each evaluation policy, the probability of what could not be shown here.
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

    def __repr__(self) -> str:
        of = self.stratum
        params = "".join(f", {name}={value:g}" for name, value in of.params)
        return f"StratumResult({said_in_a_line(of.law)}{params}, {self.rows} rows)"


@dataclass(frozen=True, slots=True, repr=False)
class PolicyResult:
    """Results for one evaluation policy.

    Attributes
    ----------
    label, description : str
    status : {"ok", "biased", "low_overlap", "malformed_log", "unsupported"}
        Status of the leading estimator.
    reasons : tuple of str
    verdict : str
        The result in plain language.
    lead : str
        Name of the leading estimator.
    estimates, differences : dict of str to Estimate, Difference
        By estimator; differences are to the reference.
    uncovered : float
        Over all strata: the policy's probability of what could not be shown, as far as it is known
        or the mean weight shows it.
    rows : int
        Rows that the estimates rest on.
    histogram : list of (float, int, float)
        Lower end, rows and weight of each non-empty bin of whole rankings' weights; bins are a
        quarter of a doubling wide, and the first may be (0, rows, 0).
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
    histogram: list[tuple[float, int, float]]

    def __repr__(self) -> str:
        return f"PolicyResult({said_in_a_line(self.label)}, {self.estimates[self.lead]!r})"

    @property
    def listed(self) -> dict[str, Estimate]:
        """Estimates to show to a reader.

        The log's own average is left out, unless the verdict rests on it or the log is the policy's
        own.
        """
        return {
            name: estimate
            for name, estimate in self.estimates.items()
            if name != "avg" or name == self.lead or estimate.status == "ok"
        }


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation:
    """All results of one reading of a log.

    Attributes
    ----------
    policies : tuple of PolicyResult
    strata : tuple of StratumResult
    reference : str
        "logging", or the label of a policy.
    level, difference_level : float
        Levels of intervals, and of intervals of differences, which are stricter (Bonferroni).
    clustered : bool
        Whether errors allow for dependence between rows of one user.
    user_effect : float or None
        If they do not, but rows of one user depend on each other: the design effect by user of what
        was earned. Intervals should then be wider by about its square root. None if rows may be
        taken as independent, as far as the log shows.
    thresholds : Thresholds
        The thresholds of the statuses.
    places : int
        k.
    rows, rows_used : int
        Valid rows read, and rows used for estimates.
    rows_without_user : int
        Rows used that name no user: each counts as a user of its own.
    logged : Estimate
        What the logging policy earned, from all rows used.
    span : (str, str) or None
        When the first and the last valid row were served, in ISO 8601, UTC; None without rows.
    set_aside : dict of str to int
        Rows not used, by reason.
    log : dict
        The reader's report.
    """

    policies: tuple[PolicyResult, ...]
    strata: tuple[StratumResult, ...]
    reference: str
    level: float
    difference_level: float
    clustered: bool
    user_effect: float | None
    thresholds: Thresholds
    places: int
    rows: int
    rows_used: int
    rows_without_user: int
    logged: Estimate
    span: tuple[str, str] | None
    set_aside: Mapping[str, int]
    log: Mapping[str, Any]

    @property
    def next_step(self) -> str | None:
        """What to do if nothing could be estimated for lack of rows or rewards; otherwise None."""
        if self.rows_used:
            return None
        if not self.rows:
            if not self.log["set_aside"]:
                return "There is no row in the files read: name files with rows."
            return (
                "No row is valid: all were set aside, and the first of each reason are named."
                " Repair the program that writes them, or correct what their columns, or the files,"
                " are said to be."
            )
        if not self.set_aside.get("reward_not_observed"):
            return None
        if self.log["joins"]:
            return (
                "Rewards were joined, and no ranking has all of its own: their windows may have"
                " been open (--as-of), or no window was given, or rows of 0 are missing (--kind"
                " complete)."
            )
        return (
            "No ranking has its rewards yet. Bring them into a log of fastrank's by: fastrank join"
            " LOGS REWARDS --window 24h --kind positives -o OUT, and evaluate OUT. In a table of"
            " another making they are a column, where null is not observed."
        )

    def __repr__(self) -> str:
        leads = [(each, each.estimates[each.lead]) for each in self.policies[:_POLICIES_SAID]]
        found = [
            f"{said_in_a_line(each.label)} {bracketed(number(lead.value), lead.status == 'ok')}"
            f" {each.status}"
            for each, lead in leads
        ]
        more = ["..."] if len(self.policies) > _POLICIES_SAID else []
        return (
            f"Evaluation({'; '.join([*found, *more])}; {self.rows_used} of {self.rows} rows used)"
        )

    def _repr_html_(self) -> str:
        reference = "logging" if self.reference == LOGGING else self.reference
        named = [(policy, name) for policy in self.policies for name in policy.listed]
        logged = bracketed(number(self.logged.value), self.logged.status == "ok")
        notes = [each.verdict for each in self.policies[:_POLICIES_TOLD]]
        notes += [] if self.next_step is None else [self.next_step]
        rows = [_row(policy, name) for policy, name in named[:_ESTIMATES_SHOWN]]
        if any(cell.startswith("(") for row in rows for cell in row[2:5]) or logged[0] == "(":
            notes.append(IN_BRACKETS)
        return as_html(
            f"{self.rows_used:,} of {self.rows:,} rows used; the logging policy earned {logged} a"
            " ranking",
            [
                *("policy", "estimator", "estimate", f"{100 * self.level:.4g} % interval"),
                *(f"less {reference}", "ESS", "status"),
            ],
            rows,
            len(named),
            figures=("estimate", f"{100 * self.level:.4g} % interval", f"less {reference}", "ESS"),
            unit="estimates",
            most=_ESTIMATES_SHOWN,
            notes=notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation in JSON's types; a value that is not finite is None."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each policy and estimator.

        Its columns: `policy`, a label; `estimator`; `is_lead`, whether the verdict rests on it;
        `value`, `standard_error`, `low` and `high`, the ends of the interval, as in `Estimate`;
        `difference` to the reference, with `difference_standard_error`, `difference_low`,
        `difference_high` and `difference_status` as in `Difference`; `ess`, `rows` and `status`;
        and `reasons`, keys of `REASONS` separated by commas. Absent values are missing.

        Raises
        ------
        ModuleNotFoundError
            Without pandas, saying what to install.

        Examples
        --------
        >>> from fastrank.ope import evaluate_table
        >>> data = {"shown": [0, 1] * 500, "p": [0.5] * 1000, "new": [0.2, 0.8] * 500,
        ...         "clicked": [0, 0, 0, 1] * 250}
        >>> found = evaluate_table(
        ...     data, {"more of 1": "new"}, item="shown", propensity="p", reward="clicked")
        >>> rows = found.to_pandas()
        >>> rows[rows["estimator"] == "ips"][["policy", "value", "status"]].round(2).values.tolist()
        [['more of 1', 0.4, 'ok']]
        """
        return as_pandas(self._columns())

    def to_arrow(self) -> Any:
        """Return a pyarrow.Table with the columns of `to_pandas`.

        Examples
        --------
        >>> from fastrank.ope import evaluate_table
        >>> data = {"shown": [0, 1] * 500, "p": [0.5] * 1000, "new": [0.2, 0.8] * 500,
        ...         "clicked": [0, 0, 0, 1] * 250}
        >>> found = evaluate_table(
        ...     data, {"more of 1": "new"}, item="shown", propensity="p", reward="clicked")
        >>> found.to_arrow()["policy"].unique().to_pylist()
        ['more of 1']
        """
        return as_arrow(self._columns())

    def plot(self, ax: Any = None) -> Any:
        """Draw each policy's estimate with its interval, beside what the logging policy earned.

        An estimate that is not `ok` is drawn hollow and pale, with its status, and does not set the
        scale.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            By default the axes of a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ModuleNotFoundError
            Without matplotlib, saying what to install.

        Examples
        --------
        >>> from fastrank.ope import evaluate_table
        >>> data = {"shown": [0, 1] * 500, "p": [0.5] * 1000, "new": [0.2, 0.8] * 500,
        ...         "clicked": [0, 0, 0, 1] * 250}
        >>> found = evaluate_table(
        ...     data, {"more of 1": "new"}, item="shown", propensity="p", reward="clicked")
        >>> [each.get_text() for each in found.plot().get_yticklabels()]
        ['more of 1']
        """
        from fastrank.ope.plots import forest

        leads = [(policy.label, policy.estimates[policy.lead]) for policy in self.policies]
        return forest(leads, self.logged, ax)

    def _columns(self) -> dict[str, Any]:
        pairs = [
            (policy, name, estimate, policy.differences.get(name))
            for policy in self.policies
            for name, estimate in policy.estimates.items()
        ]
        estimates = [estimate for _, _, estimate, _ in pairs]
        differences = [difference for *_, difference in pairs]
        return {
            "policy": [policy.label for policy, *_ in pairs],
            "estimator": [name for _, name, *_ in pairs],
            "is_lead": np.array([policy.lead == name for policy, name, *_ in pairs], np.bool_),
            "value": floats(each.value for each in estimates),
            **_with_errors("", estimates),
            "difference": floats(None if each is None else each.value for each in differences),
            **_with_errors("difference_", differences),
            "difference_status": [None if each is None else each.status for each in differences],
            "ess": floats(
                None if each.diagnostics is None else each.diagnostics.ess for each in estimates
            ),
            "rows": np.array([each.rows for each in estimates], np.int64),
            "status": [each.status for each in estimates],
            "reasons": [", ".join(each.reasons) for each in estimates],
        }


def _with_errors(
    prefix: str, found: Sequence[Estimate | Difference | None]
) -> dict[str, FloatArray]:
    intervals = [(None, None) if each is None else each.interval or (None, None) for each in found]
    return {
        f"{prefix}standard_error": floats(
            None if each is None else each.standard_error for each in found
        ),
        f"{prefix}low": floats(low for low, _ in intervals),
        f"{prefix}high": floats(high for _, high in intervals),
    }


def _row(policy: PolicyResult, name: str) -> list[str]:
    estimate, difference = policy.estimates[name], policy.differences.get(name)

    is_result = estimate.status == "ok"
    compared = difference is None or difference.status == "ok"
    ends = estimate.interval
    between = number(None) if ends is None else f"{number(ends[0])} to {number(ends[1])}"
    return [
        policy.label,
        f"{name} (leads)" if name == policy.lead else name,
        bracketed(number(estimate.value), is_result),
        bracketed(between, is_result),
        bracketed(number(None if difference is None else difference.value, "+"), compared),
        number(None) if estimate.diagnostics is None else f"{estimate.diagnostics.ess:,.0f}",
        estimate.status,
    ]


def summarise(
    question: Question, sums: LogSums, report: ReadReport, reasons: Sequence[str]
) -> Evaluation:
    """Build the evaluation from sums.

    Parameters
    ----------
    question : Question
    sums : LogSums
        Sums of a log that was read to its end.
    report : ReadReport
        The report of the reader.
    reasons : sequence of str
        Other known problems of the log.

    Raises
    ------
    ValueError
        If a model refused every row.
    """
    if sums.refusal is not None and sums.all_refused:
        raise ValueError(sums.refusal)
    against = [*reasons, *_against_log(report, sums, question.thresholds)]
    strata = sums.strata
    used = sum(each.rows for each in strata)
    lacks_rewards = not used and bool(sums.set_aside["reward_not_observed"])
    summary = _Summary(question, strata, against, _outside(strata), lacks_rewards)
    return Evaluation(
        policies=summary.policies(),
        strata=tuple(summary.stratum(each, used) for each in strata),
        reference=question.reference,
        level=question.level,
        difference_level=question.difference_level,
        clustered=question.cluster,
        user_effect=_user_effect(sums.by_user),
        thresholds=question.thresholds,
        places=question.places,
        rows=sums.rows,
        rows_used=used,
        rows_without_user=sums.without_user,
        logged=summary.logged(),
        span=sums.span,
        set_aside={reason: count for reason, count in sums.set_aside.items() if count},
        log=report.to_dict(),
    )


def _user_effect(by_user: Avg) -> float | None:
    """The design effect of users, if it exceeds chance and is large enough to matter."""
    spread = (
        spread_of(by_user.without_each, by_user.effective_clusters) if by_user.rows > 1 else None
    )
    effect = estimate(by_user, bootstrap=False).design_effect
    if spread is None or effect is None:
        return None
    # In the variance between users, `bearing` is one over the relative variance.
    chance = _EFFECT_ERRORS / sqrt(spread.bearing)
    return effect if effect > 1.0 + max(chance, _EFFECT) else None


T = TypeVar("T", Estimate, Difference)
_EFFECT, _EFFECT_ERRORS = 0.2, 4.0  # excess over 1, absolute and in standard errors


def _doubted(
    found: T, of_all: Sequence[str], refuted: Collection[str], untold: Collection[str]
) -> T:
    """Add contradictions between estimates, and that assumptions of `untold` are unchecked."""
    cls = ESTIMATORS[found.estimator]
    more: list[str] = list(of_all) if cls.by_propensities else []
    if cls.behaviour in refuted:
        more.append("behaviour")
    elif found.estimator in untold:
        more.append("unchecked")
    reasons = tuple(dict.fromkeys([*found.reasons, *more]))
    return (
        found
        if reasons == found.reasons
        else replace(found, reasons=reasons, status=worst(reasons))
    )


def against_report(report: ReadReport, thresholds: Thresholds) -> list[str]:
    """Reasons against a log, from the reader's report."""
    found = []
    if report.malformed_share > thresholds.malformed:
        found.append("malformed_rows")
    unknown = any(set(join) == {"id"} for join in report.joins)  # their join.json is lost
    if report.unreadable_files or unknown:
        found.append("unreadable_files")
    if report.rewards_dropped_share > thresholds.set_aside:
        found.append("rewards_dropped")
    if report.impressions_dropped_share > thresholds.set_aside:
        found.append("impressions_dropped")
    return found


def _against_log(report: ReadReport, sums: LogSums, thresholds: Thresholds) -> list[str]:
    found = []
    # Rows left out without anyone's choice may differ from those that stay.
    chosen = ("fallback", "caller_seed", "not_shown")
    left = sum(count for reason, count in sums.set_aside.items() if reason not in chosen)
    wanted = sums.rows - sum(sums.set_aside[reason] for reason in chosen)
    if wanted and left > thresholds.set_aside * wanted:
        found.append("set_aside")
    found += against_report(report, thresholds)
    used = sum(each.rows for each in sums.strata)
    if used and sums.seeds.shared > thresholds.malformed * used:
        found.append("repeated_seeds")
    return found


def _outside(strata: Sequence[StratumSums]) -> dict[str | None, tuple[FloatArray, float]]:
    """By catalog, over strata that ranked all of it: small strata have too few draws."""
    sums: dict[str | None, tuple[FloatArray, float]] = {}
    for each in strata:
        if not each.of_candidates:
            version = each.stratum.catalog_version
            outside, mass = sums.get(version, (np.zeros_like(each.outside), 0.0))
            sums[version] = outside + each.outside, mass + each.mass
    return sums


@dataclass(frozen=True, slots=True)
class _Found:
    """Results of one policy, before policies are compared."""

    strata: Sequence[StratumSums]
    reasons: Sequence[str]
    estimators: Mapping[str, Estimator]
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class _Summary:
    """Policies go by their numbers, p; `reasons` are against the log as a whole.

    `outside` has, by catalog, the sums that `StratumSums` calls so, and their mass. `lacks_rewards`
    says whether every row lacks rewards.
    """

    question: Question
    strata: Sequence[StratumSums]
    reasons: Sequence[str]
    outside: Mapping[str | None, tuple[FloatArray, float]]
    lacks_rewards: bool

    def policies(self) -> tuple[PolicyResult, ...]:
        """All results; what one shows about behaviour or propensities counts for all."""
        asked, limits = self.question, self.question.thresholds
        found = [self._found(p) for p in range(len(asked.labels))]
        sound = [(each.estimators, self._of_their_own(each.estimates)) for each in found]
        refuted: set[str] = set()
        for each in sound:
            refuted |= contradicted(*each, limits.behaviour)
        lead = asked.lead if asked.is_lead_asked else leading(asked.lead, sound, limits)
        of_all = [against_propensities(each.estimates, limits) for each in found]
        untold = [unchecked(*each, limits.behaviour_error) for each in sound]
        return tuple(
            self._policy(p, each, lead, refuted, of_all, untold) for p, each in enumerate(found)
        )

    def _found(self, p: int) -> _Found:
        strata, reasons = self._supported(p)
        merged = {name: self._merged(strata, p, name) for name in self.question.names}
        estimates = {name: self._estimate(each, reasons) for name, each in merged.items()}
        return _Found(strata, reasons, merged, estimates)

    def _of_their_own(self, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """The estimates with the reasons that they would have if the log as a whole had none."""
        found = {}
        for name, each in estimates.items():
            reasons = tuple(one for one in each.reasons if one not in self.reasons)
            found[name] = replace(each, reasons=reasons, status=worst(reasons))
        return found

    def _policy(
        self,
        p: int,
        found: _Found,
        lead: str,
        refuted: Collection[str],
        of_all: Sequence[Sequence[str]],
        untold: Sequence[Collection[str]],
    ) -> PolicyResult:
        asked = self.question
        label, strata = asked.labels[p], found.strata
        differences = self._differences(p, strata, found.estimators, found.reasons)
        missing = [
            missing_weight(each, asked.thresholds)
            for each in found.estimates.values()
            if "uncovered" in each.reasons
        ]
        of_both, of_either = [*of_all[p]], {*untold[p]}
        if asked.reference != LOGGING:
            other = asked.labels.index(asked.reference)
            of_both += of_all[other]
            of_either |= {*untold[other]}
        estimates = {
            name: _doubted(each, of_all[p], refuted, untold[p])
            for name, each in found.estimates.items()
        }
        differences = {
            name: _doubted(each, of_both, refuted, of_either) for name, each in differences.items()
        }
        rows = sum(each.rows for each in strata)
        total = sum(each.rows for each in self.strata)
        beyond = sum(each.certain[p] + each.outside[p] for each in self.strata)
        uncovered = float(beyond / sum(each.mass for each in self.strata)) if total else 0.0
        uncovered = min(1.0, max([uncovered, *missing]))
        best = estimates[lead]
        return PolicyResult(
            label=label,
            description=asked.descriptions[p],
            status=best.status,
            reasons=best.reasons,
            verdict=verdict(
                label,
                best,
                differences.get(lead),
                uncovered,
                asked.reference_name,
                asked.thresholds,
                left_out=1.0 - rows / total if total else 0.0,
                unit=asked.unit,
                lacks_rewards=self.lacks_rewards,
            ),
            lead=lead,
            estimates=estimates,
            differences=differences,
            uncovered=uncovered,
            rows=rows,
            histogram=found.estimators["ips"].weights.histogram()
            if "ips" in found.estimators
            else [],
        )

    def stratum(self, each: StratumSums, used: int) -> StratumResult:
        asked = self.question
        uncovered, estimates, dropped = {}, {}, []
        for p, label in enumerate(asked.labels):
            against = self._against(each, p)
            uncovered[label] = self._uncovered(each, p)
            estimates[label] = {
                name: self._estimate(
                    each.estimators[p][name], [*self.reasons, *against], bootstrap=False
                )
                for name in asked.names
            }
            if against:
                dropped.append(label)
        return StratumResult(
            each.stratum, each.rows, each.rows / used, uncovered, estimates, tuple(dropped)
        )

    def logged(self) -> Estimate:
        found = self._estimate(self._merged(self.strata, 0, "avg"), self.reasons)
        reasons = tuple(reason for reason in found.reasons if reason != "logging_value")
        return replace(found, status=worst(reasons), reasons=reasons)

    def _differences(
        self,
        p: int,
        strata: Sequence[StratumSums],
        merged: Mapping[str, Estimator],
        reasons: Sequence[str],
    ) -> dict[str, Difference]:
        """Differences to the reference, by estimator; none for the reference itself."""
        asked = self.question
        if asked.labels[p] == asked.reference:
            return {}
        other_p = None if asked.reference == LOGGING else asked.labels.index(asked.reference)
        if other_p is not None:
            against = [reason for each in strata for reason in self._against(each, other_p)]
            reasons = [*reasons, *against]
        return {
            name: difference(
                each,
                merged["avg"] if other_p is None else self._merged(strata, other_p, name),
                cluster=asked.cluster,
                level=asked.difference_level,
                thresholds=asked.thresholds,
                reasons=tuple(reasons),
            )
            for name, each in merged.items()
        }

    def _supported(self, p: int) -> tuple[Sequence[StratumSums], list[str]]:
        """The strata that a policy can be evaluated on, and the reasons against their estimates.

        If there are none, all strata, with the reasons against each.
        """
        against = [self._against(each, p) for each in self.strata]
        fine = [each for each, reasons in zip(self.strata, against, strict=True) if not reasons]
        if fine:
            return fine, [*self.reasons]
        return self.strata, [*self.reasons, *(reason for each in against for reason in each)]

    def _against(self, each: StratumSums, p: int) -> list[str]:
        """Why the rows of a stratum cannot be used for a policy."""
        found = []
        if self._uncovered(each, p) > self.question.thresholds.uncovered:
            found.append("uncovered")
        if each.support_unknown[p]:
            found.append("uncovered_unknown")
        if each.fewer_places:
            found.append("more_places")
        return found

    def _uncovered(self, each: StratumSums, p: int) -> float:
        """A policy's probability of what the logging policy of a stratum could not show.

        The part due to missing items is the same in all strata of one catalog, so those are pooled:
        it is estimated by draws, of which a small stratum has too few.
        """
        if each.of_candidates:
            outside, mass = each.outside, each.mass
        else:
            outside, mass = self.outside[each.stratum.catalog_version]
        return float(each.certain[p] / each.mass + outside[p] / mass)

    @staticmethod
    def _merged(strata: Sequence[StratumSums], p: int, name: str) -> Estimator:
        if not strata:
            return ESTIMATORS[name](1)
        first = strata[0].estimators[p][name]
        result = type(first)(first.places, first.clip)
        for each in strata:
            result.merge(each.estimators[p][name])
        return result

    def _estimate(
        self, estimator: Estimator, reasons: Sequence[str], bootstrap: bool = True
    ) -> Estimate:
        return estimate(
            estimator,
            cluster=self.question.cluster,
            level=self.question.level,
            thresholds=self.question.thresholds,
            reward_range=self.question.reward_range,
            reasons=tuple(reasons),
            bootstrap=bootstrap,
        )
