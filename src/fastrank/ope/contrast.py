"""The difference of two estimates from different rows, period by period, clustered by user.

If shares change, arms differ in when their rows were served. So arms are compared within each
period of constant shares, and these differences are weighted by the rows of both arms. A user may
be on both sides, and in several periods: the jackknife leaves out all rows of a user at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastrank.arraytypes import FloatArray
from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.estimators import Estimator
from fastrank.ope.results import Difference, estimate, percentiles, resamples, worst
from fastrank.ope.spread import Spread, spread_of

__all__ = ["Contrast", "contrast", "merged"]


@dataclass(frozen=True, slots=True)
class Contrast:
    """A difference and its variation.

    Attributes
    ----------
    difference : Difference
    spread : Spread or None
    periods : int
        Periods in which both sides have rows.
    """

    difference: Difference
    spread: Spread | None
    periods: int

    @property
    def z(self) -> float | None:
        """The difference in standard errors."""
        value = self.difference.value
        if value is None or self.spread is None or not self.spread.error > 0.0:
            return None
        return value / self.spread.error

    def is_beyond(self, errors: float) -> bool:
        """Whether it differs from 0 by this many standard errors, allowing for skewness."""
        value = self.difference.value
        if value is None or self.spread is None:
            return False
        low, high = self.spread.interval(value, math.erf(errors / math.sqrt(2.0)))
        return low > 0.0 or high < 0.0


def contrast(
    sides: Sequence[tuple[Estimator, Estimator]],
    *,
    cluster: bool = True,
    level: float = 0.95,
    thresholds: Thresholds | None = None,
    reasons: Sequence[str] = (),
    bootstrap: bool = True,
) -> Contrast:
    """Compute first minus second.

    Parameters
    ----------
    sides : sequence of (Estimator, Estimator)
        For each period; all estimators of one side are of one kind.
    cluster, level, thresholds, reasons, bootstrap
        As in `estimate`.
    """
    thresholds = thresholds or Thresholds()
    both = [each for each in sides if each[0].rows and each[1].rows]
    if not both:
        first, second = (each.name for each in sides[0])
        nothing = Difference(
            first, second, None, None, None, None, level, worst(["no_rows"]), ("no_rows",)
        )
        return Contrast(nothing, None, 0)
    whole = [merged([pair[j] for pair in both]) for j in range(2)]
    found = [
        reason
        for each in whole
        for reason in estimate(
            each, cluster=cluster, thresholds=thresholds, reasons=tuple(reasons), bootstrap=False
        ).reasons
        if reason not in ("logging_value", "no_interval")
    ]
    groups = np.sum([each.counts for each in whole], axis=0) > 0
    value = _value(both, lambda sums: sums.sum(axis=0))
    spread = spread_of(
        np.asarray(_value(both, lambda sums: sums.sum(axis=0) - sums[groups])),
        min(each.effective_clusters for each in whole),
    )
    known = bool(np.isfinite(value))
    interval = resampled = None
    if known and spread is not None:
        interval = spread.interval(float(value), level)
        if bootstrap:
            resampled = percentiles(_value(both, lambda sums: resamples() @ sums), level)
        rewarded = [each.weights.result() for each in whole]
        least = min(each.reward_ess for each in rewarded if each is not None)
        if least < thresholds.difference_reward_ess:
            found.append("reward_ess")
        elif min(each.expected_reward_ess for each in whole) < thresholds.difference_reward_ess:
            found.append("long_tail")
    else:
        found.append("no_interval")
    difference = Difference(
        estimator=whole[0].name,
        reference_estimator=whole[1].name,
        value=float(value) if known else None,
        standard_error=spread.error if known and spread is not None else None,
        interval=interval,
        bootstrap=resampled,
        level=level,
        status=worst(found),
        reasons=tuple(dict.fromkeys(found)),
    )
    return Contrast(difference, spread if known else None, len(both))


def merged(estimators: Sequence[Estimator]) -> Estimator:
    """An estimator with the sums of all of these, which are of one kind."""
    result = type(estimators[0])(estimators[0].places, estimators[0].clip)
    for each in estimators:
        result.merge(each)
    return result


def _value(
    sides: Sequence[tuple[Estimator, Estimator]], total: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """The weighted mean of the periods' differences, from `total`s of sums (GROUPS, ...).

    A period does not count if a side has no rows left in it.
    """
    weighed = differences = np.zeros(())
    for first, second in sides:
        between = first.value(total(first.sums)) - second.value(total(second.sums))
        mass = total((first.mass + second.mass)[:, None])[..., 0]
        fine = np.isfinite(between)
        differences = differences + np.where(fine, mass * np.where(fine, between, 0.0), 0.0)
        weighed = weighed + np.where(fine, mass, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(differences / weighed)
