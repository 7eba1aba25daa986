"""Assumptions of estimators about how people behave, and contradictions to them in the log.

Two correct estimators differ only by chance. From the same rows that difference is small, since
they share most of their noise: the paired difference shows a wrong assumption long before the
estimate is off by as much as its own error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.estimators import ADDITIVE, CASCADE, ESTIMATORS, INDEPENDENT, Estimator
from fastrank.ope.results import Estimate
from fastrank.ope.spread import Spread, spread_of

__all__ = ["contradicted", "leading", "unchecked"]

# For each kind of behaviour: estimators that assume it, and estimators that assume less.
_PAIRS = {
    CASCADE: (("snrips", "snips"),),
    INDEPENDENT: (("iips", "snrips"), ("iips", "snips"), ("snrips", "snips")),
    ADDITIVE: (("pi", "snips"),),
}
_CHECKED = (INDEPENDENT, ADDITIVE)  # assumptions so strong that the log must confirm them
# Uneven weights also widen the paired interval; a mean weight far from 1 invalidates it.
_UNEVEN = {"max_weight_share", "heaviest_share"}
_DOUBT = 2.0 / 3.0  # of `Thresholds.behaviour`: enough to let snips lead
_AS_EXACT = 1.25  # ratio of errors


def contradicted(
    estimators: Mapping[str, Estimator], estimates: Mapping[str, Estimate], errors: float
) -> set[str]:
    """Kinds of behaviour (`Estimator.behaviour`) that the log contradicts.

    Parameters
    ----------
    estimators, estimates : mapping of str to Estimator, Estimate
        By name, of one policy and the same rows.
    errors : float
        Paired standard errors from which two estimates contradict each other. That counts only if
        nothing is against the one that assumes less, or only that its weights are uneven.
    """
    return {
        behaviour
        for behaviour, pairs in _PAIRS.items()
        for name, other in pairs
        if _can_tell(name, other, estimates)
        and _differ(estimators[name], estimators[other], errors)
    }


def unchecked(
    estimators: Mapping[str, Estimator], estimates: Mapping[str, Estimate], most: float
) -> set[str]:
    """Names of estimators with strong assumptions that the log could not contradict.

    Those whose paired error with snips, which assumes nothing, exceeds `most` times their own: a
    bias that ruins the interval would not show. With one place there is nothing to assume.
    """
    found = set()
    for name, estimator in estimators.items():
        if estimator.behaviour in _CHECKED and estimator.places > 1:
            own, paired = estimates[name].standard_error, None
            if _can_tell(name, "snips", estimates):
                paired = _between(estimator, estimators["snips"])
            if own is not None and (paired.error if paired else math.inf) > most * own:
                found.add(name)
    return found


def leading(
    lead: str,
    policies: Sequence[tuple[Mapping[str, Estimator], Mapping[str, Estimate]]],
    thresholds: Thresholds,
) -> str:
    """`lead`, or snips, which assumes nothing, if that costs little or is necessary.

    It costs little if the error of the difference to avg is at most 1.25 times that of `lead`, for
    every policy. It is necessary if, for one of them, the log casts doubt on the assumption of
    `lead`, at two thirds of `Thresholds.behaviour`: not yet a contradiction, but a bias of that
    size would spoil the interval. Behaviour does not depend on the evaluated policy, and two
    policies are compared by one estimator.

    Parameters
    ----------
    lead : str
    policies : sequence of (mapping of str to Estimator, mapping of str to Estimate)
        For each policy, by name; including avg.
    thresholds : Thresholds
    """
    behaviour = ESTIMATORS[lead].behaviour
    if behaviour is None:
        return lead
    doubt = _DOUBT * thresholds.behaviour
    doubted = any(
        each[1]["snips"].status == "ok" and behaviour in contradicted(*each, doubt)
        for each in policies
        if "snips" in each[1]
    )
    return "snips" if doubted or all(_is_as_exact(lead, *each) for each in policies) else lead


def _is_as_exact(
    lead: str, estimators: Mapping[str, Estimator], estimates: Mapping[str, Estimate]
) -> bool:
    if "snips" not in estimators or estimates["snips"].status != "ok":
        return False
    error, of_lead = (_error(estimators[name], estimators["avg"]) for name in ("snips", lead))
    return error is not None and of_lead is not None and error <= _AS_EXACT * of_lead


def _error(estimator: Estimator, reference: Estimator) -> float | None:
    spread = spread_of(
        estimator.without_each - reference.without_each, estimator.effective_clusters
    )
    return None if spread is None else spread.error


def _can_tell(name: str, other: str, estimates: Mapping[str, Estimate]) -> bool:
    """Whether both exist, and the second is suitable for comparison with the first."""
    return {name, other} <= estimates.keys() and {*estimates[other].reasons} <= _UNEVEN


def _differ(estimator: Estimator, other: Estimator, errors: float) -> bool:
    value, less = (float(each.compared(each.sums.sum(axis=0))) for each in (estimator, other))
    between = value - less
    if not abs(between) > 1e-9 * abs(value):  # rounding, or unknown
        return False
    spread = _between(estimator, other)
    if spread is None:
        return False
    low, high = spread.interval(between, math.erf(errors / math.sqrt(2.0)))
    return low > 0.0 or high < 0.0


def _between(estimator: Estimator, other: Estimator) -> Spread | None:
    """The variation of the difference of two estimates."""
    own, others = (
        each.compared(each.sums.sum(axis=0) - each.sums[each.counts > 0])
        for each in (estimator, other)
    )
    return spread_of(own - others, estimator.effective_clusters)
