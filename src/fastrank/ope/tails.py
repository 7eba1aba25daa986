"""Effective rewarded rows expected from rewards' sizes: a log without the largest looks good.

Few logs of long-tailed revenue contain the purchases that decide its mean. Then the counted
effective number of rewarded rows is too high, and highest if the estimate is too low. The bulk of
the sizes shows what to expect, whether or not the largest are in the log.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from fastrank.arraytypes import FloatArray, IntArray

__all__ = ["BINS", "expected_ess", "size_counts"]

# Sizes of rewards are counted in sixteenths of a doubling, over this range of log2; other sizes are
# in the last bin on their side.
_PER_OCTAVE, _LOWEST, _HIGHEST = 16, -20, 40
BINS = (_HIGHEST - _LOWEST) * _PER_OCTAVE
_FEW = 10  # rewarded rows; the spread of fewer is not informative
_HIGH = 5  # most logs contain a size as large as the fifth largest


def size_counts(values: FloatArray) -> IntArray:
    """Numbers of non-zero rewards by absolute value, shape (BINS,). O(n)."""
    sizes = np.abs(values[values != 0.0])
    bins = (np.log2(sizes) - _LOWEST) * _PER_OCTAVE
    return np.bincount(np.clip(bins, 0.0, BINS - 1.0).astype(np.int64), minlength=BINS)


def expected_ess(counts: IntArray) -> float:
    """``n exp(-s^2)``: effective rewarded rows of n lognormal sizes whose logs have the sd s.

    s is computed from the upper half, which determines the mean: the root mean square above the
    median, or the value implied by the fifth largest if that is less, as it is for bounded sizes.
    The result is at least the number of sizes within a factor of two of the largest: prices have
    many there, long tails one or two. With fewer than ten rewards it is n.
    """
    n = int(counts.sum())
    if n < _FEW:
        return float(n)
    logs = np.arange(BINS) * (np.log(2.0) / _PER_OCTAVE)
    up_to = np.cumsum(counts)
    median = logs[np.searchsorted(up_to, (n + 1) // 2)]
    above = np.clip(up_to - n / 2, 0.0, counts)  # the part of each bin in the upper half
    variance = float(above @ np.square(logs - median)) / (n / 2)
    reach = logs[np.searchsorted(up_to, n - _HIGH + 1)] - median
    deviates = NormalDist().inv_cdf(1.0 - (_HIGH - 0.5) / n)
    expected = float(n * np.exp(-min(variance, (reach / deviates) ** 2)))
    largest = int(np.flatnonzero(counts)[-1])
    return max(expected, float(counts[max(largest - _PER_OCTAVE, 0) + 1 : largest + 1].sum()))
