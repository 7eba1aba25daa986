"""What estimators take for granted of how people behave, where the log itself contradicts it.

Two estimators that are both right differ by chance. From the same rows that is little, since they
share most of their noise: their paired difference shows a wrong assumption long before the estimate
is off by as much as its own error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.estimators import ADDITIVE, CASCADE, ESTIMATORS, INDEPENDENT, Estimator
from fastrank.ope.results import Estimate
from fastrank.ope.spread import spread_of

__all__ = ["contradicted", "leading"]

# Of each kind of behaviour: estimators that are right under it, and such as assume less.
_PAIRS = {
    CASCADE: (("snrips", "snips"),),
    INDEPENDENT: (("iips", "snrips"), ("iips", "snips"), ("snrips", "snips")),
    ADDITIVE: (("pi", "snips"),),
}
_DOUBT = 2.0 / 3.0  # of `Thresholds.behaviour`: enough to let snips lead
_AS_EXACT = 1.25  # times the error


def contradicted(
    estimators: Mapping[str, Estimator], estimates: Mapping[str, Estimate], errors: float
) -> set[str]:
    """Kinds of behaviour (`Estimator.behaviour`) that the log contradicts.

    Parameters
    ----------
    estimators, estimates : mapping of str to Estimator, Estimate
        By name, of one policy and the same rows.
    errors : float
        Paired standard errors, beyond which two estimates contradict each other. That counts where
        the one that assumes less is ``ok``: of heavy weights a mean is low more often than not.
    """
    return {
        behaviour
        for behaviour, pairs in _PAIRS.items()
        for name, other in pairs
        if {name, other} <= estimators.keys()
        and estimates[other].status == "ok"
        and _differ(estimators[name], estimators[other], errors)
    }


def leading(
    lead: str,
    policies: Sequence[tuple[Mapping[str, Estimator], Mapping[str, Estimate]]],
    thresholds: Thresholds,
) -> str:
    """`lead`, or snips, which assumes nothing, where that costs little or is called for.

    It costs little where the error of the difference to avg is at most 1.25 times that of `lead`,
    for every policy. It is called for where, for one of them, the log casts doubt on what `lead`
    takes for granted, at two thirds of `Thresholds.behaviour`: short of contradiction, but a bias
    of as much would spoil the interval. What people do is no matter of the policy that is asked
    about, and two policies are compared by one estimator.

    Parameters
    ----------
    lead : str
    policies : sequence of (mapping of str to Estimator, mapping of str to Estimate)
        Of each policy, by name; avg among them.
    thresholds : Thresholds
    """
    behaviour = ESTIMATORS[lead].behaviour
    if behaviour is None:
        return lead
    doubt = _DOUBT * thresholds.behaviour
    doubted = any(behaviour in contradicted(*each, doubt) for each in policies)
    return "snips" if doubted or all(_is_as_exact(lead, *each) for each in policies) else lead


def _is_as_exact(
    lead: str, estimators: Mapping[str, Estimator], estimates: Mapping[str, Estimate]
) -> bool:
    if "snips" not in estimators or estimates["snips"].status != "ok":
        return False
    error, of_lead = (_error(estimators[name], estimators["avg"]) for name in ("snips", lead))
    return error is not None and of_lead is not None and error <= _AS_EXACT * of_lead


def _error(estimator: Estimator, reference: Estimator) -> float | None:
    spread = spread_of(estimator.without_each - reference.without_each, estimator)
    return None if spread is None else spread.error


def _differ(estimator: Estimator, other: Estimator, errors: float) -> bool:
    value = float(estimator.value(estimator.sums.sum(axis=0)))
    between = value - float(other.value(other.sums.sum(axis=0)))
    if not abs(between) > 1e-9 * abs(value):  # rounding, or unknown
        return False
    spread = spread_of(estimator.without_each - other.without_each, estimator)
    if spread is None:
        return False
    low, high = spread.interval(between, math.erf(errors / math.sqrt(2.0)))
    return low > 0.0 or high < 0.0
