"""Estimates with their errors, and their statuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from numbers import Real
from typing import Any, Literal

import numpy as np

from fastrank.arraytypes import FloatArray
from fastrank.frames import number, plain
from fastrank.ope.batch import GROUPS
from fastrank.ope.diagnostics import Diagnostics, Thresholds
from fastrank.ope.estimators import ESTIMATORS, Avg, ClippedIps, Estimator
from fastrank.ope.spread import Interval, spread_of

__all__ = [
    "REASONS",
    "Difference",
    "Estimate",
    "Status",
    "against_propensities",
    "difference",
    "estimate",
    "missing_weight",
    "percentiles",
    "resamples",
    "worst",
]

Status = Literal["ok", "biased", "low_overlap", "malformed_log", "unsupported"]
"""Whether an estimate can be relied on; "ok" is the only one that can."""

# Reasons for a status, in words for people.
REASONS: Mapping[str, str] = {
    "no_rows": "no rows are left to estimate from",
    "uncovered": "the evaluation policy shows rankings that the logging policy could not show",
    "uncovered_unknown": "it is unknown what the logging policy could show",
    "audit_failed": "this model did not write this log",
    "weight_overflow": "weights are too large to be summed",
    "no_overlap": "no logged ranking could have come from the evaluation policy",
    "more_places": "the evaluation policy shows more places than the log has",
    "malformed_rows": "too many rows of the log are malformed",
    "unreadable_files": "files of the log cannot be read",
    "rewards_dropped": "many rewards could not be joined to their rankings, and are missing",
    "impressions_dropped": "many impressions could not be joined to their rankings, which count as"
    " never shown",
    "sample_ratio": "arms do not have their intended shares of users: rows are lost, or users are"
    " sent elsewhere, possibly depending on what was shown",
    "users_in_two_arms": "too many users are in several arms at once",
    "arms_contradict": "what an arm earned contradicts what another arm's rows say of it:"
    " propensities are wrong",
    "repeated_seeds": "rows of different users share their seed, and with it their noise",
    "set_aside": "too many rows had to be left out, and may differ from those that stayed",
    "reward_ess": "too few rewarded rows carry the estimate",
    "long_tail": "rewards vary so much in size that the log may lack the largest",
    "max_weight_share": "one row carries too much of the weight",
    "heaviest_share": "the heaviest 1 % of rows carry too much of the weight",
    "mean_weight": "the mean weight is too far from 1: propensities of one side are not true",
    "match_not_constant": "a match is not equally likely for all rows, as replay wants",
    "few_clusters": "too few users, or a few with most of the rows, for an interval",
    "no_interval": "rows or users are too few for any interval",
    "logging_value": "it is what the logging policy earned, and no estimate of another one",
    "reward_model_alone": "it is the reward model's word, which no reward of the log has checked",
    "reward_model": "the reward model's values of what was shown contradict its means",
    "clipped": "what clipping cuts off is not small beside the error",
    "unchecked": "the log cannot tell whether people behave as it takes for granted",
    "behaviour": "the log refutes what it takes for granted of how people behave",
}
"""By name: what a status rests on, in words."""
_UNSUPPORTED = {
    "no_rows",
    "uncovered",
    "uncovered_unknown",
    "audit_failed",
    "weight_overflow",
    "more_places",
}
_MALFORMED = {
    *("malformed_rows", "unreadable_files", "repeated_seeds"),
    *("sample_ratio", "users_in_two_arms", "arms_contradict"),
    *("rewards_dropped", "impressions_dropped"),
}
_BIASED = {"logging_value", "reward_model_alone", "reward_model", "clipped", "behaviour"}
_ABOUT_USERS = {"few_clusters", "no_interval"}
_ABOUT_SUPPORT = {"uncovered", "uncovered_unknown", "more_places"}
_EXACT = 1e-3  # of a mean weight: what is nearer to 1 may be the rounding of propensities
_BOOTSTRAPS = 1000
_BOOTSTRAP_KEY = 0x6661_7374_7261_6E6B


@dataclass(frozen=True, slots=True, repr=False)
class Estimate:
    """An estimator's result for one policy.

    Attributes
    ----------
    estimator : str
    value : float or None
        None if there is no estimate, or if a weight was too large to be summed.
    standard_error : float or None
        Clustered by user, or iid if requested.
    standard_error_iid : float or None
        As if rows were independent; ddof 1. Not available from snrips above 64 places, nor from
        iips above 127.
    design_effect : float or None
        Square of the ratio of the two errors: how many rows are worth one independent row.
    interval : (float, float) or None
        From the standard error, Student's t and the skewness; see Notes.
    bootstrap : (float, float) or None
        Percentiles of the Poisson bootstrap of users.
    bernstein : (float, float) or None
        Empirical Bernstein bound on the mean of the clipped estimator, with rows taken as
        independent; only with a given range of rewards, and without row weights.
    level : float
        Confidence level of the intervals.
    rows, clusters : int
        Rankings used, and groups of users that they belong to.
    effective_clusters : float
        The number of users with equally many rows that would be worth as much; at most 1,024,
        because users are hashed into that many groups.
    skewness : float or None
        Skewness of the estimate, by the jackknife of users.
    diagnostics : Diagnostics or None
        None if nothing is weighted.
    matched : int or None
        Rows that replay matched.
    status : {"ok", "biased", "low_overlap", "malformed_log", "unsupported"}
    reasons : tuple of str
        Keys of `REASONS`.
    parameters : dict of str to float
        Parameters of the estimator, such as the largest weight of clipped-ips.

    Notes
    -----
    A few clicks make a skewed estimate: 5 of them may occur by chance where 2, or 12, are expected.
    The interval is Student's, corrected for skewness as by Hall (1992, "On the removal of skewness
    by transformation"). With rare clicks of equal weight it is close to that of a Poisson count.
    Degrees of freedom are the effective clusters less one, or half the number that the kurtosis of
    the users' influences supports (Satterthwaite), if that is smaller.
    """

    estimator: str
    value: float | None
    standard_error: float | None
    standard_error_iid: float | None
    design_effect: float | None
    interval: Interval | None
    bootstrap: Interval | None
    bernstein: Interval | None
    level: float
    rows: int
    clusters: int
    effective_clusters: float
    skewness: float | None
    diagnostics: Diagnostics | None
    matched: int | None
    status: Status
    reasons: tuple[str, ...]
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Estimate({self.estimator} {_said(self)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate in JSON's types; a value that is not finite is None."""
        found: dict[str, Any] = plain(asdict(self))
        return found


@dataclass(frozen=True, slots=True, repr=False)
class Difference:
    """The difference of two policies' values, from the same log, row by row.

    Attributes
    ----------
    estimator, reference_estimator : str
        The estimators of the policy and of the reference.
    value : float or None
    standard_error : float or None
        Paired: what both have in common cancels.
    interval, bootstrap : (float, float) or None
        At `level`, which is stricter if several policies are compared.
    level : float
    status, reasons
        The worse of both sides.
    """

    estimator: str
    reference_estimator: str
    value: float | None
    standard_error: float | None
    interval: Interval | None
    bootstrap: Interval | None
    level: float
    status: Status
    reasons: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Difference({self.estimator} - {self.reference_estimator} {_said(self)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the difference in JSON's types; a value that is not finite is None."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def _said(found: Estimate | Difference) -> str:
    """A figure, its interval and its status, in one line."""
    words = number(found.value)
    if found.interval is not None:
        low, high = map(number, found.interval)
        words += f", {100 * found.level:.4g} % interval {low} to {high}"
    why = f" ({', '.join(found.reasons)})" if found.reasons else ""
    return f"{words}, {found.status}{why}"


def estimate(
    estimator: Estimator,
    *,
    cluster: bool = True,
    level: float = 0.95,
    thresholds: Thresholds | None = None,
    reward_range: Interval | None = None,
    reasons: tuple[str, ...] = (),
    bootstrap: bool = True,
) -> Estimate:
    """Compute an estimate from an estimator's sums.

    Parameters
    ----------
    estimator : Estimator
    cluster : bool
        Whether the error is clustered by user. If not, it is iid, and the bootstrap resamples rows.
    level : float
        Of the intervals, in [.001, .999999].
    thresholds : Thresholds, optional
    reward_range : (float, float), optional
        Smallest and largest reward of a whole ranking, for the Bernstein bound.
    reasons : tuple of str
        Other known problems of the log: keys of `REASONS`.
    bootstrap : bool
        Whether to make bootstrap intervals, which take most of the time here: 2 ms.

    Returns
    -------
    Estimate

    Examples
    --------
    >>> from fastrank.ope import ESTIMATORS, Batch, estimate
    >>> sums = ESTIMATORS["ips"](1)
    >>> sums.update(Batch.of([[-0.7]] * 400, [[-0.7]] * 400, [[1.0], [0.0]] * 200))
    >>> found = estimate(sums)
    >>> found.value, found.rows, found.status
    (0.5, 400, 'ok')
    """
    check_level(level)
    totals = estimator.sums.sum(axis=0)
    n = estimator.rows
    value = float(estimator.value(totals))
    gradient = estimator.gradient(totals)
    diagnostics = estimator.weights.result()
    known = np.isfinite(value) and np.isfinite(gradient).all()
    spread = (
        spread_of(estimator.without_each, estimator.effective_clusters) if known and n > 1 else None
    )
    clustered = None if spread is None else spread.error
    iid = None
    if known and n > 1 and estimator.products is not None:
        variance = float(gradient @ estimator.products @ gradient)
        iid = math.sqrt(max(variance, 0.0) * n / (n - 1))
    # Without products: if rows are taken as independent, groups of rows work as well.
    error = clustered if cluster or iid is None else iid
    interval = resampled = bernstein = None
    if error is not None and spread is not None:
        by_rows = replace(spread, error=error, clusters=float(n))
        interval = (spread if cluster else by_rows).interval(value, level)
        resampled = percentiles(_replicates(estimator), level) if bootstrap else None
    alike = np.array_equal(estimator.mass, estimator.counts)
    if isinstance(estimator, ClippedIps) and reward_range is not None and n > 1 and alike:
        bound = _bernstein(estimator, reward_range, level)
        bernstein = bound if all(map(math.isfinite, bound)) else None
    thresholds = thresholds or Thresholds()
    given = [
        reason for reason in reasons if estimator.needs_support or reason not in _ABOUT_SUPPORT
    ]
    found = given + _reasons(estimator, diagnostics, thresholds)
    effective = estimator.effective_clusters
    if cluster and n and effective < thresholds.clusters:
        found.append("few_clusters")
    if n and interval is None and (known or not found):
        found.append("no_interval")
    found += _about_bias(estimator.bias, error, thresholds)
    if diagnostics is not None and diagnostics.overflows:
        known = False
        interval = resampled = bernstein = iid = clustered = error = None
    return Estimate(
        estimator=estimator.name,
        value=value if known else None,
        standard_error=error,
        standard_error_iid=iid,
        design_effect=(clustered / iid) ** 2 if clustered and iid else None,
        interval=interval,
        bootstrap=resampled,
        bernstein=bernstein,
        level=level,
        rows=n,
        clusters=int(np.count_nonzero(estimator.counts)),
        effective_clusters=effective if math.isfinite(effective) else 0.0,
        skewness=None if spread is None else spread.skewness,
        diagnostics=diagnostics,
        matched=estimator.matched,
        status=worst(found),
        reasons=tuple(dict.fromkeys(found)),
        parameters=estimator.parameters,
    )


def difference(
    estimator: Estimator,
    reference: Estimator,
    *,
    cluster: bool = True,
    level: float = 0.95,
    thresholds: Thresholds | None = None,
    reasons: tuple[str, ...] = (),
) -> Difference:
    """Compute policy minus reference, from sums over the same rows.

    The reference may be the log's own average (`Avg`), or the same estimator of another policy. If
    rows are taken as independent, their groups are independent too, and the error is still computed
    by groups.

    Parameters
    ----------
    estimator, reference : Estimator
        Sums over the same rows, of the same number of places.
    cluster, level, thresholds, reasons
        As in `estimate`.

    Examples
    --------
    >>> from fastrank.ope import ESTIMATORS, Batch, difference
    >>> batch = Batch.of([[-0.7]] * 400, [[-0.7]] * 400, [[1.0], [0.0]] * 200)
    >>> policy, logged = ESTIMATORS["ips"](1), ESTIMATORS["avg"](1)
    >>> policy.update(batch)
    >>> logged.update(batch)
    >>> difference(policy, logged).value
    0.0
    """
    if not np.array_equal(estimator.counts, reference.counts):
        raise ValueError("reference: sums over other rows")
    thresholds = thresholds or Thresholds()
    sides = [
        estimate(each, cluster=cluster, thresholds=thresholds, reasons=reasons, bootstrap=False)
        for each in (estimator, reference)
    ]
    # There may be too few users for either side but enough for the difference, or the reverse.
    theirs = set(_ABOUT_USERS)
    if isinstance(reference, Avg) and not isinstance(estimator, Avg):
        theirs.add("logging_value")  # here this is the value that is needed
    found = [
        *(reason for reason in sides[0].reasons if reason not in _ABOUT_USERS),
        *(reason for reason in sides[1].reasons if reason not in theirs),
    ]
    value = error = interval = bootstrap = spread = None
    if all(side.value is not None for side in sides):
        value = sides[0].value - sides[1].value  # type: ignore[operator]  # neither is None
        spread = spread_of(
            estimator.without_each - reference.without_each, estimator.effective_clusters
        )
        if spread is None:
            found.append("no_interval")
    if value is not None and spread is not None:
        error = spread.error
        interval = spread.interval(value, level)
        if cluster and estimator.effective_clusters < thresholds.clusters:
            found.append("few_clusters")
        found += _about_bias(estimator.bias + reference.bias, error, thresholds)
        bootstrap = percentiles(_replicates(estimator) - _replicates(reference), level)
        rewarded = [side.diagnostics.reward_ess for side in sides if side.diagnostics is not None]
        if min(rewarded, default=math.inf) < thresholds.difference_reward_ess:
            found.append("reward_ess")
        elif estimator.expected_reward_ess < thresholds.difference_reward_ess:
            found.append("long_tail")
    return Difference(
        estimator=estimator.name,
        reference_estimator=reference.name,
        value=value,
        standard_error=error,
        interval=interval,
        bootstrap=bootstrap,
        level=level,
        status=worst(found),
        reasons=tuple(dict.fromkeys(found)),
    )


def worst(reasons: list[str] | tuple[str, ...]) -> Status:
    """The status that follows from reasons."""
    unknown = [reason for reason in reasons if reason not in REASONS]
    if unknown:
        raise ValueError(f"reasons: expected one of {', '.join(REASONS)}; got {unknown[0]!r}")
    if any(reason in _UNSUPPORTED for reason in reasons):
        return "unsupported"
    if any(reason in _MALFORMED for reason in reasons):
        return "malformed_log"
    if any(reason not in _BIASED for reason in reasons):
        return "low_overlap"
    return "biased" if reasons else "ok"


def _reasons(
    estimator: Estimator, diagnostics: Diagnostics | None, thresholds: Thresholds
) -> list[str]:
    if estimator.rows == 0:
        return ["no_rows"]
    found = estimator.doubts()
    if diagnostics is not None:
        if diagnostics.overflows:
            found.append("weight_overflow")
        if diagnostics.ess == 0.0:
            found.append("no_overlap")
        if diagnostics.reward_ess < thresholds.reward_ess:
            found.append("reward_ess")
        if diagnostics.max_weight_share > thresholds.max_weight_share:
            found.append("max_weight_share")
        if diagnostics.heaviest_share > thresholds.heaviest_share:
            found.append("heaviest_share")
        if estimator.unit_mean:
            strayed = _strayed(diagnostics, thresholds) if estimator.is_whole else []
            if strayed or abs(diagnostics.mean_weight - 1.0) > thresholds.mean_weight:
                found.append("mean_weight")
            # The mean of heavy weights is often too low, because the heaviest are missing.
            steady = not {"max_weight_share", "heaviest_share", "no_overlap"} & {*found}
            if steady and 1.0 - min([1.0, *strayed]) > thresholds.uncovered:
                found.append("uncovered")
        believed = not {"mean_weight", "uncovered"} & {*found}
        if believed and abs(estimator.model_z) > thresholds.reward_model:
            found.append("reward_model")
    return found


def against_propensities(estimates: Mapping[str, Estimate], thresholds: Thresholds) -> list[str]:
    """Reasons from the weights of some estimates that concern everything based on propensities.

    If a mean weight is off by more than chance, propensities are wrong, or the logging policy could
    not show everything, whatever an estimator makes of that.
    """
    found = []
    for name, each in estimates.items():
        if _has_true_mean(name) and each.diagnostics is not None:
            strayed = _strayed(each.diagnostics, thresholds)
            reasons = ("mean_weight", "uncovered") if strayed else ()
            found += [reason for reason in reasons if reason in each.reasons]
    return list(dict.fromkeys(found))


def missing_weight(estimate: Estimate, thresholds: Thresholds) -> float:
    """How far the mean weight is below 1, at the worst place, by more than chance; 0 if nowhere.
    Also 0 for weights whose mean need not be 1: clipped weights lack what was cut off."""
    if not _has_true_mean(estimate.estimator) or estimate.diagnostics is None:
        return 0.0
    return 1.0 - min([1.0, *_strayed(estimate.diagnostics, thresholds)])


def _has_true_mean(name: str) -> bool:
    """Whether the mean weight of an estimator is 1 whenever propensities are right."""
    cls = ESTIMATORS[name]
    return cls.by_propensities and cls.unit_mean and cls.is_whole


def _strayed(diagnostics: Diagnostics, thresholds: Thresholds) -> list[float]:
    """Mean weights that differ from 1 by more than chance and rounding."""
    return [
        mean
        for place in diagnostics.by_place
        if abs((mean := place["mean_weight"]) - 1.0) > _EXACT
        and abs(place["mean_weight_z"] or 0.0) > thresholds.mean_weight_z
    ]


def check_level(level: float) -> None:
    """Raise ValueError if intervals cannot have this level."""
    if isinstance(level, bool) or not isinstance(level, Real) or not 0.001 <= level <= 0.999999:
        raise ValueError(f"level: expected .001 to .999999, got {level!r}")


def _about_bias(bias: float, error: float | None, thresholds: Thresholds) -> list[str]:
    return ["clipped"] if bias > thresholds.clipped * (error or 0.0) else []


def percentiles(replicates: FloatArray, level: float) -> Interval | None:
    """The bootstrap interval; None if many replicates have no value."""
    fine = replicates[np.isfinite(replicates)]
    if len(fine) < 0.9 * len(replicates):
        return None  # replicates often contain no weight at all
    low, high = np.quantile(fine, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def _replicates(estimator: Estimator) -> FloatArray:
    """Estimates from resampled groups, each drawn a Poisson(1) number of times."""
    if estimator.replicates is None:
        estimator.replicates = estimator.value(resamples() @ estimator.sums)
    return estimator.replicates


@cache
def resamples() -> FloatArray:
    """How often each group is in each replicate, (B, GROUPS): the same for all logs and policies.

    A group is a fixed hash of users, so the order and the parts of the log do not matter.
    """
    rng = np.random.Generator(np.random.Philox(key=_BOOTSTRAP_KEY))
    return rng.poisson(1.0, (_BOOTSTRAPS, GROUPS)).astype(np.float64)


def _bernstein(estimator: ClippedIps, reward_range: Interval, level: float) -> Interval:
    """Maurer and Pontil (2009), theorem 4, on both sides."""
    low, high = reward_range
    n = estimator.rows
    width = estimator.clip * (max(high, 0.0) - min(low, 0.0))
    total, _ = estimator.sums.sum(axis=0)
    mean = total / n
    assert estimator.products is not None  # of two summands
    variance = max(estimator.products[0, 0] / n - mean**2, 0.0) * n / (n - 1)
    log_term = np.log(4.0 / (1.0 - level))
    half = np.sqrt(2.0 * variance * log_term / n) + 7.0 * width * log_term / (3.0 * (n - 1))
    return float(mean - half), float(mean + half)
