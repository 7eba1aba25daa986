"""What an evaluation means, in plain language."""

from __future__ import annotations

from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.results import REASONS, Difference, Estimate, missing_weight

__all__ = ["explain", "verdict"]

_UNTOLD = (
    "the mean weight is too far from 1, as it is where too few rows are like the policy's, or where"
    " propensities of one side are not true"
)

# The mean of heavy weights is mostly too low, because the heaviest are missing, even if
# propensities are right.
_HEAVY = {"max_weight_share", "heaviest_share", "no_overlap"}


def verdict(
    label: str,
    estimate: Estimate,
    difference: Difference | None,
    uncovered: float,
    reference: str,
    thresholds: Thresholds,
    left_out: float = 0.0,
    unit: str = "a ranking",
    lacks_rewards: bool = False,
) -> str:
    """Describe a policy's result in a few sentences, for the person who has to decide.

    Parameters
    ----------
    label : str
    estimate : Estimate
        From the leading estimator.
    difference : Difference or None
        To the reference; None for the reference itself.
    uncovered : float
        The policy's probability of what the logging policy could not show.
    reference : str
        Name of the reference, for people.
    thresholds : Thresholds
    left_out : float
        Share of the rows whose logging policy could not show what this policy shows.
    unit : str
        The unit that earns the reward.
    lacks_rewards : bool
        Whether no ranking has its rewards.
    """
    if lacks_rewards:
        return f"This log cannot evaluate {label}: no ranking has its rewards yet."
    said = _said(label, estimate, difference, uncovered, reference, thresholds, unit)
    if left_out == 0.0:
        return said
    return (
        f"{said} {_percent(left_out)} of the rows are left out: their logging policy could not show"
        " what this one shows."
    )


def _said(
    label: str,
    estimate: Estimate,
    difference: Difference | None,
    uncovered: float,
    reference: str,
    thresholds: Thresholds,
    unit: str,
) -> str:
    if estimate.status == "unsupported":
        return f"This log cannot evaluate {label}: {_why(estimate, uncovered, thresholds)}."
    if estimate.status == "malformed_log":
        return (
            f"Nothing should be decided on {label} from this log as it is:"
            f" {_why(estimate, uncovered, thresholds)}."
        )
    if estimate.reasons == ("mean_weight",):
        return (
            f"What this log says about {label} cannot be relied on:"
            f" {_why(estimate, uncovered, thresholds)}."
        )
    if estimate.status == "low_overlap":
        return (
            f"This log says too little about {label} to rely on:"
            f" {_why(estimate, uncovered, thresholds)}."
        )
    if estimate.status == "biased":
        return (
            f"{estimate.estimator} is no estimate of {label} to rely on:"
            f" {_why(estimate, uncovered, thresholds)}."
        )
    earns = f"{label} would earn {_number(estimate.value)} {unit}"
    if difference is None or difference.value is None or difference.interval is None:
        return f"{earns}."
    low, high = difference.interval
    if difference.status != "ok":
        return (
            f"{earns}. A comparison with {reference} cannot be relied on:"
            f" {'; '.join(REASONS[reason] for reason in difference.reasons)}."
        )
    if max(abs(low), abs(high)) <= 1e-6 * abs(estimate.value or 0.0):
        return f"{earns}, the same as {reference}."
    between = f"{100 * difference.level:.4g} % interval: {_signed(low)} to {_signed(high)}"
    if low > 0.0 or high < 0.0:
        which = "more" if low > 0.0 else "less"
        amount = _number(abs(difference.value))
        return f"{earns}, {amount} {which} than {reference} ({between})."
    return f"{earns}; no difference to {reference} can be seen ({between})."


def _why(estimate: Estimate, uncovered: float, thresholds: Thresholds) -> str:
    return "; ".join(
        explain(reason, estimate, uncovered, thresholds) for reason in estimate.reasons
    )


def explain(reason: str, estimate: Estimate, uncovered: float, thresholds: Thresholds) -> str:
    """One of an estimate's reasons, with its figure and the limit."""
    words, found = REASONS[reason], estimate.diagnostics
    if reason == "uncovered":
        uncovered = max(uncovered, missing_weight(estimate, thresholds))
        return (
            f"{words} in {_percent(uncovered)} of cases (at most {_percent(thresholds.uncovered)})"
        )
    if reason == "few_clusters":
        users = f"{estimate.effective_clusters:.3g}"
        return f"{words}: as much as {users} equal ones (at least {thresholds.clusters:g})"
    if reason == "clipped" and "cut_off" in estimate.parameters:
        return f"{words}: {_percent(estimate.parameters['cut_off'])} of the reward"
    if found is None:
        return words
    if reason == "reward_ess":
        ess = f"{found.reward_ess:.3g}"
        return f"{words}: as much as {ess} equal ones (at least {thresholds.reward_ess:g})"
    if reason == "max_weight_share":
        limit = thresholds.max_weight_share
        return f"{words}: {_percent(found.max_weight_share)} (at most {_percent(limit)})"
    if reason == "heaviest_share":
        limit = thresholds.heaviest_share
        return f"{words}: {_percent(found.heaviest_share)} (at most {_percent(limit)})"
    is_missing = abs(found.mean_weight - (1.0 - uncovered)) <= thresholds.mean_weight
    if reason == "mean_weight" and uncovered > thresholds.uncovered and is_missing:
        return f"so the mean weight is {found.mean_weight:.3g}, as far below 1"
    if reason == "mean_weight":
        worst = max(found.by_place, key=lambda place: abs(place["mean_weight_z"] or 0.0))
        z = worst["mean_weight_z"] or 0.0
        if found.mean_weight < 1.0 and _HEAVY & {*estimate.reasons}:
            words = _UNTOLD
        if abs(found.mean_weight - 1.0) > thresholds.mean_weight or not z:
            if abs(z) <= thresholds.mean_weight_z:
                words = _UNTOLD
            return f"{words}: {found.mean_weight:.3g} (within {thresholds.mean_weight:g})"
        most = f"at most {thresholds.mean_weight_z:g}"
        return f"{words}: {worst['mean_weight']:.4g}, {abs(z):.3g} standard errors off ({most})"
    return words


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}"
