"""Choose temperatures by a measure that means the same on every model.

Scores of one model lie within 0.02 of each other, those of another within 20, so a temperature
that explores well on one gives uniform noise or no exploration at all on another. A measure that
does carry over is the overlap: the share of the deterministic top k that a sampled ranking keeps.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray
from fastrank.catalog import Catalog
from fastrank.policies import MAX_TEMPERATURE, MIN_TEMPERATURE, Deterministic, PlackettLuce

__all__ = [
    "common_temperature",
    "condense",
    "drawn_overlap",
    "expected_overlap",
    "expected_overlaps",
    "temperature_for_overlap",
    "temperatures_for_overlap",
]


_NEVER = 1e-200  # a rate so low that a clock does not ring
_AT_ONCE = 40.0  # log of a relative weight whose clock rings long before the k-th one can
_CELLS = 256
_OFF = 0.05  # tolerance of an overlap o, relative to o or to 1 - o
_PLACES_DRAWN = 4000  # places of all rankings together that estimate an overlap


def expected_overlap(scores: npt.ArrayLike, temperature: float, k: int) -> float:
    """Compute the mean share of the deterministic top k in a Plackett-Luce ranking of k items.

    Parameters
    ----------
    scores : array_like of float, shape (n,)
        All eligible items' scores.
    temperature : float
    k : int
        From 1 to n.

    Returns
    -------
    float
        From about k / n (uniform) to 1 (deterministic).

    Notes
    -----
    A Plackett-Luce ranking is the order in which independent exponential clocks of rates
    w = exp(score / T) ring. Let t be the time by which k clocks are expected to have rung: item i
    has then rung with probability 1 - exp(-t w_i). This replaces the random time of the k-th ring
    by a constant; on heavy-tailed scores with k = 10, the result was within 0.01 of simulation.
    O(n) for each of a few Newton steps.

    Examples
    --------
    >>> round(expected_overlap([3.0, 2.0, 1.0, 0.0], temperature=1.0, k=2), 2)
    0.78
    """
    values = np.asarray(scores, dtype=np.float64)
    _check_places(k, values.size)
    return float(expected_overlaps(values[None], np.array([temperature], np.float64), k)[0])


def expected_overlaps(
    scores: FloatArray, temperatures: FloatArray, k: int, counts: FloatArray | None = None
) -> FloatArray:
    """Compute `expected_overlap` for many users at once.

    Parameters
    ----------
    scores : ndarray of float64, shape (u, m)
        One row per user.
    temperatures : ndarray of float64, shape (u,)
    k : int
    counts : ndarray of float64, shape (u, m), optional
        How many items have each score, as `condense` returns it: 1 for the k highest of a row.

    Returns
    -------
    ndarray of float64, shape (u,)

    Examples
    --------
    >>> scores = np.array([[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    >>> expected_overlaps(scores, np.array([1.0, 1.0]), k=2).round(2)
    array([0.78, 0.5 ])
    """
    if counts is None:
        counts = np.ones_like(scores)
    if k == counts.sum(axis=1).max():
        return np.ones(len(scores))
    top = np.argpartition(-np.where(counts > 0.0, scores, -np.inf), k - 1, axis=1)[:, :k]
    top_scores = np.take_along_axis(scores, top, axis=1)
    # Scores are relative to the k-th: items far above it ring at once, whatever their rate, and
    # items so far below that their rate is 0 do not ring before k others have.
    kth = top_scores.min(axis=1, keepdims=True)
    per_temperature = 1.0 / temperatures[:, None]
    rates = np.exp(np.minimum((scores - kth) * per_temperature, _AT_ONCE))
    top_rates = np.exp(np.minimum((top_scores - kth) * per_temperature, _AT_ONCE))
    # Newton's method from the left on a concave rising function: no step overshoots. At the start,
    # the expected rings of all items but the k - 1 best (whose rates are 1 or more) are at most 1.
    time = 1.0 / ((counts * np.minimum(rates, 1.0)).sum(axis=1) - (k - 1))
    for _ in range(200):
        missing_rings = counts * np.exp(-time[:, None] * rates)
        missing = k - (counts.sum(axis=1) - missing_rings.sum(axis=1))
        step = missing / np.maximum((rates * missing_rings).sum(axis=1), _NEVER)
        time = time + step
        if (step <= 1e-6 * time).all():
            break
    return np.asarray(-np.expm1(-time[:, None] * top_rates).sum(axis=1) / k)


def drawn_overlap(scores: npt.ArrayLike, temperature: float, k: int) -> float:
    """Estimate the overlap by drawing rankings, without the approximation of `expected_overlap`.

    Use it to report what a chosen temperature does, in particular where no temperature reaches the
    overlap asked for.

    Parameters
    ----------
    scores : array_like of real numbers, shape (n,)
        All eligible items' scores.
    temperature : float
    k : int
        Places. If there are fewer items, all are ranked.

    Returns
    -------
    float
        Its standard error is at most 0.015 for k = 1, and 0.008 for k > 1. Each call returns the
        same value.

    Notes
    -----
    O(n) to make the table that rankings are drawn from, then 20 to 1,000 rankings of k places.

    Examples
    --------
    >>> drawn_overlap([1.0, 1.0, 1.0, 1.0], temperature=1.0, k=4)
    1.0
    >>> round(drawn_overlap([3.0, 2.0, 1.0, 0.0], temperature=1.0, k=2), 1)
    0.8
    """
    values = np.asarray(scores)
    # A catalog of one dimension, whose scores these are.
    catalog = Catalog(np.arange(len(values)), values[:, None])
    query = np.ones(1)
    best = catalog.rank(query, k, policy=Deterministic(), seed=0).item_ids
    policy = PlackettLuce(temperature, sampler="cached")
    drawn = [
        catalog.rank(query, k, policy=policy, seed=seed).item_ids
        for seed in range(min(max(_PLACES_DRAWN // k, 20), 1000))
    ]
    return float(np.isin(drawn, best).mean())


def temperature_for_overlap(scores: npt.ArrayLike, k: int, overlap: float = 0.7) -> float:
    """Find the temperature at which `expected_overlap` is `overlap`, to three digits.

    Parameters
    ----------
    scores : array_like of float, shape (n,)
        All eligible items' scores for a typical query.
    k : int
        From 1 to n.
    overlap : float
        Between 0 and 1. For an overlap that no temperature reaches (below that of a uniform draw,
        or any overlap if all scores are equal), the result is the nearest end of the range
        searched.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores = rng.standard_normal(1000)
    >>> low, high = temperature_for_overlap(scores, 10), temperature_for_overlap(100 * scores, 10)
    >>> round(high / low)
    100
    """
    values = np.asarray(scores, dtype=np.float64)
    return float(temperatures_for_overlap(values[None], k, overlap)[0])


def temperatures_for_overlap(
    scores: npt.ArrayLike, k: int, overlap: float = 0.7, counts: npt.ArrayLike | None = None
) -> FloatArray:
    """Find `temperature_for_overlap` for many users at once.

    Parameters
    ----------
    scores : array_like of float, shape (u, m)
        One row per user.
    k : int
    overlap : float
    counts : array_like of float, shape (u, m), optional
        How many items have each score, as `condense` returns it: 1 for the k highest of a row.

    Returns
    -------
    ndarray of float64, shape (u,)
        1 for users whose scores are all equal, since every temperature gives the same law.

    Notes
    -----
    Bisection on log T: 16 steps, each of a few passes over the scores.

    Examples
    --------
    >>> temperatures_for_overlap([[0.0, 1.0, 2.0], [0.0, 10.0, 20.0], [5.0, 5.0, 5.0]], 1).round(2)
    array([0.68, 6.75, 1.  ])
    """
    if not 0.0 < overlap < 1.0:
        raise ValueError(f"overlap: must lie between 0 and 1, got {overlap!r}")
    values = np.asarray(scores, dtype=np.float64)
    items = np.ones_like(values) if counts is None else np.asarray(counts, dtype=np.float64)
    _check_places(k, values.shape[1])
    spread = np.where(items > 0.0, values, -np.inf).max(axis=1)
    spread -= np.where(items > 0.0, values, np.inf).min(axis=1)
    equal = spread == 0.0
    middle = np.log(np.where(equal, 1.0, spread)) - 4.5
    half = 9.5  # from a spread of 1.2 million temperatures to one of 0.007
    while half > 2.5e-4:
        half /= 2.0
        above = expected_overlaps(values, np.exp(middle), k, items) > overlap
        middle += np.where(above, half, -half)
    found = np.clip(np.exp(middle), MIN_TEMPERATURE, MAX_TEMPERATURE)
    return np.where(equal, 1.0, found)


def common_temperature(
    scores: FloatArray, k: int, overlap: float, factors: FloatArray, counts: FloatArray
) -> float:
    """Find the common temperature at which the mean of `expected_overlaps` is `overlap`.

    Parameters
    ----------
    scores : ndarray of float64, shape (u, m)
        One row per user.
    k : int
    overlap : float
        Between 0 and 1.
    factors : ndarray of float64, shape (u,)
        Factors by which users' own temperatures differ from the common one.
    counts : ndarray of float64, shape (u, m)
        How many items have each score, as `condense` returns it.

    Raises
    ------
    ValueError
        If no temperature reaches the overlap.

    Notes
    -----
    Bisection on log T: 24 steps, each of a few passes over the scores.

    Examples
    --------
    >>> scores = np.array([[0.0, 1.0, 2.0], [0.0, 10.0, 20.0]])
    >>> round(common_temperature(scores, 1, 0.7, np.ones(2), np.ones_like(scores)), 2)
    2.41
    """
    _check_places(k, scores.shape[1])
    own = temperatures_for_overlap(scores, k, overlap, counts) / factors

    def kept(log_temperature: float) -> float:
        temperatures = np.exp(log_temperature) * factors
        temperatures = np.clip(temperatures, MIN_TEMPERATURE, MAX_TEMPERATURE)
        return float(expected_overlaps(scores, temperatures, k, counts).mean())

    low, high = math.log(own.min()), math.log(own.max())
    for _ in range(24):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kept(middle) > overlap else (low, middle)
    found = 0.5 * (low + high)
    if abs(kept(found) - overlap) > _OFF * min(overlap, 1.0 - overlap):
        raise ValueError(
            f"overlap: got {overlap:g}; no temperature keeps so much of the deterministic ranking"
            f" at k = {k}"
        )
    return math.exp(found)


def condense(scores: npt.ArrayLike, k: int) -> tuple[FloatArray, FloatArray]:
    """Condense scores to fewer with nearly the same overlaps: the highest, and cells of the rest.

    Parameters
    ----------
    scores : array_like of float, shape (n,)
    k : int

    Returns
    -------
    values : ndarray of float64, shape (min(n, k + 32 + 256),)
        The k + 32 highest scores, then the mean score of each of 256 cells of equal width.
    counts : ndarray of float64, of the same shape
        Number of items that each value stands for: 1, and then the number of items in the cell,
        which may be 0.

    Notes
    -----
    O(n). A cell's width is 1/256 of the range of the rest. Replacing its items' scores by their
    mean changes their weight by a share of (width / T)^2 / 24, which matters only if the rest has
    noticeable weight.

    Examples
    --------
    >>> values, counts = condense(np.arange(1000.0), k=5)
    >>> values[:3].tolist(), counts.sum()
    ([999.0, 998.0, 997.0], np.float64(1000.0))
    """
    values = np.asarray(scores, dtype=np.float64)
    heads = k + 32
    if values.size <= heads + _CELLS:
        return np.sort(values)[::-1], np.ones(values.size)
    ordered = np.partition(values, values.size - heads)
    rest, head = ordered[:-heads], ordered[-heads:]
    low, width = rest.min(), np.ptp(rest) / _CELLS
    scale = 1.0 / width if width > 0.0 else 0.0
    cell = np.minimum(((rest - low) * scale).astype(np.int64), _CELLS - 1)
    counts = np.bincount(cell, minlength=_CELLS).astype(np.float64)
    means = low + np.bincount(cell, rest - low, minlength=_CELLS) / np.maximum(counts, 1.0)
    return np.concatenate([np.sort(head)[::-1], means]), np.concatenate([np.ones(heads), counts])


def _check_places(k: int, n_scores: int) -> None:
    if not 1 <= k <= n_scores:
        raise ValueError(f"k: expected 1 to {n_scores}, the number of scores; got {k!r}")
