"""The variation of estimates, from sums of groups of users: the jackknife and its intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fastrank.arraytypes import FloatArray

__all__ = ["Interval", "Spread", "spread_of"]

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """How an estimate would vary, from the estimates without each one of the groups of users.

    `error` is that of the jackknife (Efron and Stein 1981). A group with many rows pulls the
    estimate towards itself; leaving it out shows how far, which its residual does not.
    """

    error: float
    skewness: float
    clusters: float  # effective
    bearing: float  # degrees of freedom that the groups' influences support

    def interval(self, value: float, level: float) -> Interval:
        """Student's interval, corrected for skewness (Hall 1992)."""
        from scipy.special import stdtrit

        freedom = max(min(self.clusters - 1.0, self.bearing), 1.0)
        quantile = float(stdtrit(freedom, 0.5 + level / 2))
        return value - self.error * self._bent(quantile), value - self.error * self._bent(-quantile)

    def _bent(self, quantile: float) -> float:
        """The quantile of a studentised estimate of this skewness, from that of a symmetric one."""
        skewness = self.skewness
        if abs(skewness) < 1e-6:
            return quantile
        root = math.cbrt(1.0 + skewness * (quantile - skewness / 6.0))
        return 3.0 / skewness * (root - 1.0)


def spread_of(without_each: FloatArray, clusters: float) -> Spread | None:
    """For a number of effective groups; None with fewer than two, or if one has everything."""
    groups = len(without_each)
    if groups < 2 or not np.isfinite(without_each).all():
        return None
    influence = without_each.mean() - without_each
    scale = math.sqrt(float(np.square(influence).sum()))
    error, effective = scale * math.sqrt((groups - 1) / groups), clusters
    if not scale > 0.0:
        return Spread(error, 0.0, effective, math.inf)
    influence /= scale
    # The relative variance of the variance, beyond that of equal groups. Satterthwaite has twice as
    # many degrees of freedom; but few logs show all of a heavy tail.
    excess = float((influence**4).sum()) - 1.0 / groups
    return Spread(
        error, float((influence**3).sum()), effective, 1.0 / excess if excess > 0.0 else math.inf
    )
