"""What estimators take for granted of how people behave, where the log itself contradicts it.

Two estimators that are both right differ by chance. From the same rows that is little, since they
share most of their noise: their paired difference shows a wrong assumption long before the estimate
is off by as much as its own error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

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
_DOUBT = 2.0 / 3.0  # of `Thresholds.behaviour`: enough to let another estimator lead


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
    estimators: Mapping[str, Estimator],
    estimates: Mapping[str, Estimate],
    thresholds: Thresholds,
) -> str:
    """`lead`, or snips if the log casts doubt on what `lead` takes for granted.

    Doubt comes earlier than contradiction, at two thirds of `Thresholds.behaviour`: where there was
    no reason for it, snips is as right, and hardly less exact.
    """
    doubted = contradicted(estimators, estimates, _DOUBT * thresholds.behaviour)
    return "snips" if ESTIMATORS[lead].behaviour in doubted else lead


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
