"""Compute exact laws of whole rankings, in the two forms that off-policy estimators need.

- *Position marginals*: the probability of an item at a place, whatever stands before it. Estimators
  that assume rewards to depend only on item and place use ratios of marginals as weights. Marginals
  are sums over all prefixes, so they do not follow from the conditional propensities of a log.
- *Pseudo-inverse weights*: the weight of a ranking if rewards add up over places, from the second
  moments of the logging law.

All functions are pure functions of one score vector; callers may cache results per (query, filters,
policy). Items are positions 0..n-1 of that vector, ``eligible`` is a mask of those that the filters
left, and a ranking has ``min(k, eligible items)`` places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray, Mask, Positions
from fastrank.inputs import as_count, as_finite
from fastrank.policies import Law, Policy, law_of

__all__ = [
    "MAX_CELLS",
    "MAX_ITEMS",
    "MAX_RANKINGS",
    "SlateInverse",
    "next_law",
    "position_marginals",
    "prefix_tree",
    "pseudo_inverse_weights",
    "ranking_law",
    "slate_inverse",
]

MAX_ITEMS = 10_000  # for position marginals of Plackett-Luce
MAX_RANKINGS = 1_000_000  # for enumeration
MAX_CELLS = 1_000  # items x places, for pseudo-inverses without a closed form


# Difference of log-weights: a clock so much slower rings first with probability e^-70 = 4e-31.
_NEVER = 70.0
_CERTAIN = math.log(800.0)  # log of the expected rings at which exp(-rings) is 0 in float64
_TAIL = 45.0  # the parts beyond the ends of an integral are e^-45 = 3e-20 of it
_FEW_CELLS = 1 << 17  # float64 of one coefficient for all items and current nodes: 1 MB
_LIGHT = 2.0  # expected rings up to which an item may count as light
_SMALL = 0.25  # expected rings up to which an item's odds are computed by a series
_LIGHT_SHARE = 0.1  # of light items: largest (heaviest odds x places to come) / sum of odds
_LIGHT_GROWTH = 6.0  # log of the largest growth of rounding errors over all places: 400 x 1e-16
_LIGHT_DEGREE = 128  # with more places, no items count as light
_LIGHT_TERMS = 20  # power sums of odds: each is at most `_LIGHT_SHARE` of the one before
_LIGHT_MORE = 14  # terms of their series after the first: 0.25^14 / 15! is 3e-21
_MANY = 5  # coefficients from which on a product of polynomials is one call
_STRETCH = 8.0  # length of log time per batch of nodes, so that far items stay out of it
_STEP = 0.25  # first step in log time; peaks of the k-th ring are narrower by sqrt(k)
_CHANGE = 1e-7  # between two step lengths; the error of the shorter one is about its square
_EIGENVALUE = 1e-13  # relative to the largest: smaller ones are rounding noise of a 0
_NOTHING = 1e-145  # root of a probability that counts as 0: its inverse squared is finite
_LOST = 1e-6  # part of a marginal that pseudo-inverse weights may lose


def position_marginals(
    scores: npt.ArrayLike,
    policy: Policy,
    k: int,
    items: npt.ArrayLike | None = None,
    eligible: npt.ArrayLike | None = None,
) -> FloatArray:
    """Compute P(item at place l), for some items and k places, whatever other places show.

    Parameters
    ----------
    scores : array_like of real numbers, shape (n,)
        Finite.
    policy : Policy
    k : int
        Places, at least 1; places beyond a ranking of all eligible items get 0.
    items : array_like of int, shape (m,), optional
        Positions in `scores`; by default all, in order. -1, which look-ups return for unknown ids,
        and ineligible items get probability 0. Repeats are allowed.
    eligible : array_like of bool, shape (n,), optional
        By default all items.

    Returns
    -------
    ndarray of float64, shape (m, k)

    Raises
    ------
    ValueError
        If an argument is invalid, or, under Plackett-Luce, more than `MAX_ITEMS` items are
        eligible; the message names the argument and the value.

    Notes
    -----
    `Uniform`, `Deterministic`: closed forms, O(n + m k). `EpsilonGreedy`: a recursion over places
    and the number of better items already shown, O(n log n + m k^2).

    `PlackettLuce`: a ranking is the order in which exponential clocks of rates w = exp(score / T)
    ring (Yellott 1977). Given the time t at which item a rings, the other clocks have rung or not
    independently of each other:

        P(a at place l) = integral of w_a exp(-w_a t) P(exactly l - 1 of the others rang by t) dt.

    The integrand is analytic in log t, where the trapezoidal rule converges exponentially; below
    the first ring the nodes thin out double-exponentially (Takahasi and Mori 1974). The step is
    halved until no value changes by more than a relative 1e-7; the error of the last result is
    then about the square of that.

    The number of rings has a Poisson binomial distribution: a product of linear polynomials, cut at
    degree k. The factors of heavy items are multiplied in a tree, which also gives, for each item
    asked for, the product without its own factor. Light items each have a small share of the odds
    of all light items. Their product is a series in power sums of their weights, and an item's own
    factor is removed by division. The terms of both series alternate, but each is a small part of
    the one before.

    Compared with enumeration, the error is a relative 1e-12 for values above 1e-18; values below
    about 1e-22 may be returned as 0. There are about 75 nodes for k = 10 and 170 for k = 100, and
    more if scores lie many T apart. A node takes O((h + m log k) k) for h heavy items; in addition
    there are about 30 passes over all items. With k = 10, one core takes about 4 ms for n = 10,000
    and m = 10, and 60 to 130 ms for m = n; with n = 1,000, 2 ms and 5 to 16 ms.

    Examples
    --------
    >>> from fastrank import PlackettLuce
    >>> scores = np.log([1.0, 2.0, 3.0, 4.0])
    >>> position_marginals(scores, PlackettLuce(), k=2, items=[0, 3]).round(4)
    array([[0.1   , 0.1345],
           [0.4   , 0.3159]])
    """
    values, left = _start(scores, eligible)
    places = as_count("k", k)
    asked = _as_items("items", items, len(values))
    rows = np.flatnonzero(left)
    n_eligible = len(rows)
    result = np.zeros((len(asked), places))
    if n_eligible == 0 or len(asked) == 0:
        return result
    # Each eligible item once, as its index among the eligible.
    found = np.flatnonzero((asked >= 0) & left[asked])
    unique, again = np.unique(np.searchsorted(rows, asked[found]), return_inverse=True)
    reached = min(places, n_eligible)
    of_eligible = values[rows]
    law = _marginals(law_of(policy), of_eligible, unique, reached)
    result[found, :reached] = law[again.reshape(-1)]
    return result


def _marginals(law: Law, scores: FloatArray, asked: Positions, places: int) -> FloatArray:
    """Compute marginals (m, places) of some of n eligible items; places are at most n."""
    n = len(scores)
    if law.head or law.is_certain:
        head = places if law.is_certain else min(law.head, places)
        ranks = _ranks(scores)
        result = np.zeros((len(asked), places))
        result[:, :head] = ranks[asked, None] == np.arange(head)
        if head < places:  # below the head, the law among the items that the head leaves
            left = np.flatnonzero(ranks >= head)
            below = np.flatnonzero(ranks[asked] >= head)
            result[below, head:] = _marginals(
                replace(law, head=0),
                scores[left],
                np.searchsorted(left, asked[below]),
                places - head,
            )
        return result
    if law.is_uniform:
        return np.full((len(asked), places), 1.0 / n)
    if law.temperature == math.inf:
        return _epsilon_greedy(_ranks(scores)[asked], n, places, law.explore)
    if law.explore < 1.0:
        raise ValueError(f"policy: position marginals are not implemented for {law}")
    if n > MAX_ITEMS:
        raise ValueError(
            f"scores: got {n} eligible items; position marginals of Plackett-Luce take at most"
            f" {MAX_ITEMS}"
        )
    return _plackett_luce((scores - scores.max()) / law.temperature, asked, places)


def ranking_law(
    scores: npt.ArrayLike, k: int, policy: Policy, eligible: npt.ArrayLike | None = None
) -> tuple[Positions, FloatArray]:
    """Enumerate all ordered rankings with their probabilities.

    Parameters
    ----------
    scores : array_like of real numbers, shape (n,)
    k : int
    policy : Policy
    eligible : array_like of bool, shape (n,), optional

    Returns
    -------
    rankings : ndarray of int64, shape (r, min(k, eligible items))
        Positions; the deterministic ranking first. Rankings of probability 0 are included.
    probabilities : ndarray of float64, shape (r,)

    Raises
    ------
    ValueError
        If an argument is invalid, or there are more than `MAX_RANKINGS` rankings: n! / (n - k)!
        for n eligible items.

    Examples
    --------
    >>> from fastrank import PlackettLuce
    >>> rankings, p = ranking_law(np.log([1.0, 3.0]), 2, PlackettLuce())
    >>> rankings.tolist(), p.round(12).tolist()
    ([[1, 0], [0, 1]], [0.75, 0.25])
    """
    values, mask = _start(scores, eligible)
    rows = np.flatnonzero(mask)
    best_first = rows[np.argsort(-values[rows], kind="stable")]
    ordered = values[best_first]
    n, places = len(rows), min(as_count("k", k), len(rows))
    _check_rankings(n, places)
    p = np.ones(1)
    prefixes = np.zeros((1, 0), np.int64)
    for prefixes, law in prefix_tree(ordered, places, policy):  # noqa: B007
        p = (p[:, None] * law).ravel()
    return best_first[prefixes], p


def prefix_tree(
    scores: FloatArray, places: int, policy: Policy
) -> Iterator[tuple[Positions, FloatArray]]:
    """Yield all prefixes of rankings, level by level, with the law of their last item.

    Parameters
    ----------
    scores : ndarray of float64, shape (n,)
        Best first.
    places : int
        From 0 to n.
    policy : Policy

    Yields
    ------
    prefixes : ndarray of int64, shape (r, l)
        Prefixes of l = 1, 2, ... `places` items: the children of the previous level's prefixes in
        their order; each parent's children are in the order of the items left, best first.
    law : ndarray of float64, shape (r / width, width)
        P(l-th item | items before it): one row per parent, with width = n - l + 1 children.

    Examples
    --------
    >>> from fastrank import Uniform
    >>> for prefixes, law in prefix_tree(np.array([1.0, 0.0]), 2, Uniform()):
    ...     print(prefixes.tolist(), law.tolist())
    [[0], [1]] [[0.5, 0.5]]
    [[0, 1], [1, 0]] [[1.0], [1.0]]
    """
    n = len(scores)
    prefixes = np.zeros((1, 0), np.int64)
    left = np.arange(n, dtype=np.int64).reshape(1, n)  # for each prefix, best first
    for place in range(places):
        law = next_law(scores[left], policy, place)
        width = n - place
        prefixes = np.column_stack([np.repeat(prefixes, width, axis=0), left.ravel()])
        yield prefixes, law
        if place + 1 < places:
            others = np.array([np.delete(np.arange(width), j) for j in range(width)], np.int64)
            left = left[:, others].reshape(-1, width - 1)


def next_law(scores: FloatArray, policy: Policy, place: int = 0) -> FloatArray:
    """Compute P(the next item is i), for r sets of m items left.

    Parameters
    ----------
    scores : ndarray of float64, shape (r, m)
        Best first in each row; m >= 1.
    policy : Policy
    place : int
        The place, from 0.

    Returns
    -------
    ndarray of float64, shape (r, m)
        Each row sums to 1.

    Examples
    --------
    >>> from fastrank import EpsilonGreedy
    >>> next_law(np.array([[3.0, 2.0]]), EpsilonGreedy(0.5)).tolist()
    [[0.75, 0.25]]
    """
    law = law_of(policy)
    explore = law.explore_at(place)
    weights = np.exp((scores - scores[:, :1]) / law.temperature)
    result = np.asarray(explore * (weights / weights.sum(axis=1, keepdims=True)), np.float64)
    result[:, 0] += 1.0 - explore
    return result


# The pseudo-inverse estimator


@dataclass(frozen=True, slots=True, eq=False)
class SlateInverse:
    """Pseudo-inverse of a logging law's second moments, returned by `slate_inverse`.

    Attributes
    ----------
    positions : ndarray of int64, shape (e,)
        The eligible items, ascending.
    places : int
        min(k, e).
    moments, matrix : ndarray of float64, shape (places * e, places * e), or None
        Gamma and its inverse; rows and columns are place * e + index in `positions`. None under
        uniform logging, which has a closed form.
    """

    positions: Positions
    places: int
    moments: FloatArray | None = None
    matrix: FloatArray | None = None


def slate_inverse(
    scores: npt.ArrayLike, policy: Policy, k: int, eligible: npt.ArrayLike | None = None
) -> SlateInverse:
    """Invert Gamma = E[1_s 1_s'], where 1_s are the (place, item) indicators of a ranking s.

    Parameters
    ----------
    scores : array_like of real numbers, shape (n,)
        Scores of the logging model.
    policy : Policy
        The logging policy.
    k : int
        Number of places shown.
    eligible : array_like of bool, shape (n,), optional

    Returns
    -------
    SlateInverse
        For `pseudo_inverse_weights`; it may be reused for the same query, filters and policy.

    Raises
    ------
    ValueError
        If an argument is invalid. Also, unless logging is uniform, if there are more than
        `MAX_CELLS` items x places, or more than `MAX_RANKINGS` rankings.

    Notes
    -----
    O(r k^2 + (e k)^3) for r rankings: about 0.5 s for 1,000 cells or a million rankings. Gamma is
    inverted after scaling its diagonal to 1, since otherwise rounding errors of frequent pairs
    would hide rare ones. Any generalised inverse gives the same results as the pseudo-inverse for
    vectors in Gamma's range, which includes the indicators of all logged rankings.

    Examples
    --------
    >>> from fastrank import EpsilonGreedy
    >>> slate_inverse([0.0, 0.0], EpsilonGreedy(0.5), k=1).matrix.round(6).tolist()
    [[1.333333, 0.0], [0.0, 4.0]]
    """
    values, mask = _start(scores, eligible)
    positions = np.flatnonzero(mask)
    n, places = len(positions), min(as_count("k", k), len(positions))
    if n == 0:
        raise ValueError("eligible: expected at least one eligible item, got none")
    if law_of(policy).is_uniform:
        return SlateInverse(positions, places)
    if n * places > MAX_CELLS:
        raise ValueError(
            f"k: got {n} eligible items x {places} places; unless logging is uniform, the"
            f" pseudo-inverse takes at most {MAX_CELLS}"
        )
    rankings, p = ranking_law(values[positions], places, policy)
    gamma = np.zeros((places, n, places, n))
    for first in range(places):
        for second in range(first, places):
            pairs = rankings[:, first] * n + rankings[:, second]
            joint = np.bincount(pairs, weights=p, minlength=n * n).reshape(n, n)
            gamma[first, :, second] = joint
            gamma[second, :, first] = joint.T
    moments = gamma.reshape(places * n, places * n)
    root = np.sqrt(moments.diagonal())
    scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > _NOTHING)
    both = np.outer(scale, scale)
    matrix = np.asarray(both * np.linalg.pinv(both * moments, _EIGENVALUE, hermitian=True))
    return SlateInverse(positions, places, moments, matrix)


def pseudo_inverse_weights(
    orders: npt.ArrayLike, inverse: SlateInverse, scores: npt.ArrayLike, policy: Policy
) -> FloatArray:
    """Compute weights of logged rankings for the ``pi`` estimator: mean of weight x sum of rewards.

    Parameters
    ----------
    orders : array_like of int, shape (b, places)
        Logged rankings for one query and one set of filters, as positions.
    inverse : SlateInverse
        Of the logging law, for the same filters.
    scores : array_like of real numbers, shape (n,)
        Scores of the evaluation model.
    policy : Policy
        The evaluation policy, which chooses from the items that were eligible when logging.

    Returns
    -------
    ndarray of float64, shape (b,)
        Some weights may be negative, since they are not importance weights. Their mean over the
        log is about 1.

    Raises
    ------
    ValueError
        If a shape is wrong, a row has an ineligible or a repeated item, or there are too many items
        for marginals (see `position_marginals`). Also if the weights would not reproduce the
        evaluation policy's marginals to 1e-6: the logging law never shows some of them, or so
        rarely (scores some 15 to 30 T apart) that float64 loses them.

    Notes
    -----
    Swaminathan et al. (2017), "Off-policy evaluation for slate recommendation": q' Gamma^+ 1_s with
    q the evaluation policy's position marginals. It is unbiased if the expected reward of a ranking
    is a sum over its (place, item) pairs and the logging policy shows every pair.

    Under uniform logging, Gamma's eigenspaces are known. They consist of vectors over (place, item)
    that are constant, or sum to 0, along each axis. The eigenvalues are 1/(n-1) if both axes sum to
    0, (n-k)/(n(n-1)) for item vectors of sum 0 that are the same at all places, k/n for constants,
    and 0. Only the marginals of logged items are then needed, and only their limits apply.

    Examples
    --------
    >>> from fastrank import PlackettLuce, Uniform
    >>> logging = slate_inverse(np.zeros(3), Uniform(), k=1)
    >>> pseudo_inverse_weights([[0], [1], [2]], logging, np.log([1.0, 1.0, 2.0]), PlackettLuce())
    array([0.75, 0.75, 1.5 ])
    """
    values, _ = _start(scores, None)
    positions, places, n = inverse.positions, inverse.places, len(inverse.positions)
    if positions[-1] >= len(values):
        raise ValueError(
            f"scores: expected at least {positions[-1] + 1}, as for the logging model, got"
            f" {len(values)}"
        )
    rows = np.asarray(orders)
    if rows.ndim != 2 or rows.shape[1] != places:
        raise ValueError(f"orders: expected shape (b, {places}), got {rows.shape}")
    rows = _as_items("orders", rows.ravel(), len(values)).reshape(rows.shape)
    index = np.minimum(np.searchsorted(positions, rows), n - 1)
    bad = np.argwhere(positions[index] != rows)
    if len(bad):
        row, place = bad[0]
        raise ValueError(f"orders: row {row}: item {rows[row, place]} was not eligible")
    in_order = np.sort(index, axis=1)
    twice = np.flatnonzero((in_order[:, 1:] == in_order[:, :-1]).any(axis=1))
    if len(twice):
        raise ValueError(f"orders: row {twice[0]}: got an item twice, {rows[twice[0]].tolist()}")
    of_eligible = values[positions]
    if inverse.moments is not None and inverse.matrix is not None:
        cells = position_marginals(of_eligible, policy, places).T.ravel()
        by_cell = inverse.matrix @ cells
        lost = float(np.abs(inverse.moments @ by_cell - cells).max())
        if lost > _LOST:
            raise ValueError(
                "policy: shows items at places where the logging law never or hardly ever shows"
                f" them; the weights would miss a probability of {lost:.2g}"
            )
        by_place = by_cell.reshape(places, n)
        return np.asarray(by_place[np.arange(places), index].sum(axis=1), np.float64)
    shown, again = np.unique(index, return_inverse=True)
    marginals = position_marginals(of_eligible, policy, places, shown)
    again = again.reshape(index.shape)
    here = marginals[again, np.arange(places)].sum(axis=1)
    anywhere = marginals.sum(axis=1)[again].sum(axis=1)  # inclusion probabilities
    weights = 1.0 + (n - 1) * (here - anywhere / places)
    if places < n:
        weights += n * (n - 1) / (n - places) * (anywhere - places**2 / n) / places
    return np.asarray(weights, np.float64)


# Arguments


def _start(scores: npt.ArrayLike, eligible: npt.ArrayLike | None) -> tuple[FloatArray, Mask]:
    values = as_finite("scores", scores, (np.size(scores),))
    if eligible is None:
        return values, np.ones(len(values), np.bool_)
    mask = np.asarray(eligible)
    if mask.dtype != np.bool_ or mask.shape != values.shape:
        raise ValueError(
            f"eligible: expected bool of shape {values.shape}, got {mask.dtype} of {mask.shape}"
        )
    return values, mask


def _as_items(name: str, items: npt.ArrayLike | None, n: int) -> Positions:
    if items is None:
        return np.arange(n, dtype=np.int64)
    array = np.asarray(items)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(
            f"{name}: expected integers along one dimension, got {array.dtype} of {array.shape}"
        )
    bad = np.flatnonzero((array < -1) | (array >= n))
    if len(bad):
        raise ValueError(
            f"{name}: row {bad[0]}: expected a position below {n}, or -1, got {array[bad[0]]}"
        )
    return array.astype(np.int64)


def _check_rankings(n: int, places: int) -> None:
    count = math.perm(n, places)
    if count > MAX_RANKINGS:
        raise ValueError(
            f"k: got {count} rankings of {places} out of {n} eligible items; expected at most"
            f" {MAX_RANKINGS} rankings"
        )


# Laws


def _ranks(values: FloatArray) -> Positions:
    """Count the items that are better than each; ties go to the earlier item."""
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return ranks


def _epsilon_greedy(rank: Positions, n: int, places: int, epsilon: float) -> FloatArray:
    """Compute marginals (m, places) of items that have `rank` better ones among n."""
    law = np.empty((len(rank), places))
    better_gone = np.arange(places)
    better_left = np.maximum(rank[:, None] - better_gone, 0)
    is_best = better_left == 0
    # P(not shown yet, and so many better items shown), which is 0 beyond the number of these.
    state = np.zeros((len(rank), places))
    state[:, 0] = 1.0
    for place in range(places):
        explores = epsilon / (n - place)
        law[:, place] = (state * (explores + (1.0 - epsilon) * is_best)).sum(axis=1)
        worse_gone = place - better_gone
        worse_left = np.maximum((n - 1 - rank)[:, None] - worse_gone, 0)
        goes = state * (explores * better_left + (1.0 - epsilon) * ~is_best)
        state = state * (explores * worse_left)
        state[:, 1:] += goes[:, :-1]
    return law


def _plackett_luce(log_weights: FloatArray, items: Positions, places: int) -> FloatArray:
    """Compute marginals (m, places) of distinct `items`.

    Items behind a gap of `_NEVER` always come after all items before it. The catalog thus falls
    into blocks that are ranked one after another, each with its own time scale.
    """
    best_first = np.argsort(-log_weights, kind="stable")
    ordered = log_weights[best_first]
    rank = np.empty(len(ordered), np.int64)
    rank[best_first] = np.arange(len(ordered))
    asked = rank[items]
    law = np.zeros((len(items), places))
    starts = [0, *(np.flatnonzero(ordered[:-1] - ordered[1:] > _NEVER) + 1).tolist()]
    for start, stop in zip(starts, [*starts[1:], len(ordered)], strict=True):
        if start >= places:
            break
        here = np.flatnonzero((asked >= start) & (asked < stop))
        if len(here):
            end = min(places, stop)
            law[here, start:end] = _block(
                ordered[start:stop] - ordered[start], asked[here] - start, end - start
            )
    return law


def _block(log_weights: FloatArray, asked: Positions, places: int) -> FloatArray:
    """Compute marginals (m, places) of items of a descending block without wide gaps."""
    n = len(log_weights)
    if n == 1:
        return np.ones((1, 1))
    wanted, again = np.unique(asked, return_inverse=True)
    first = -math.log(float(np.exp(log_weights).sum()))  # log time at which one ring is expected
    last = _log_time_of_all(log_weights, places, first)
    low = -3.65  # y - exp(-y) is -42 there
    step = _STEP * min(1.0, 3.2 / math.sqrt(places))
    count = math.ceil((last - first + 1.0 - low) / step)

    def at(steps: FloatArray) -> FloatArray:
        nodes = np.asarray(low + step * steps, np.float64)
        return _sum_over(nodes, first, log_weights, wanted, places)

    total = at(np.arange(count + 1, dtype=np.float64))
    while True:
        coarse = total * step
        total = total + at(np.arange(count, dtype=np.float64) + 0.5)
        step, count = step / 2, 2 * count
        fine = total * step
        # Values below 1e-30 do not count, and a step of 1e-3 resolves all that float64 can.
        if step < 1e-3 or bool((np.abs(fine - coarse) <= _CHANGE * fine + 1e-30).all()):
            return np.asarray(fine[again.reshape(-1)], np.float64)


def _log_time_of_all(log_weights: FloatArray, places: int, first: float) -> float:
    """Return the log time by which `places` items have rung, up to e^-_TAIL of any marginal.

    The integrand at log time x is at most exp(x - first) P(fewer than `places` rang by x). The
    number of rings, and that of items left, obeys Chernoff's bound for sums of independent bits.
    Weights are rounded down by up to a tenth, so that few differ; this only makes the time later.
    """
    n, fewer = len(log_weights), places - 1
    rounded, counts = np.unique(np.floor(10.0 * log_weights), return_counts=True)
    rounded /= 10.0

    def log_chance(x: float) -> float:
        left = float(counts @ np.exp(-np.exp(rounded + x)))
        rung = n - left
        by_rings = by_left = 0.0
        if rung > fewer:
            by_rings = fewer - rung + (fewer * math.log(rung / fewer) if fewer else 0.0)
        if left < n - fewer:
            least = n - fewer
            by_left = least - left + least * math.log(left / least) if left else -math.inf
        return min(by_rings, by_left)

    low, high = first, math.log(4 * _TAIL) - float(rounded[0])
    high += math.log1p(high - low)
    with np.errstate(over="ignore", under="ignore"):
        while high - low > 0.25:
            middle = (low + high) / 2
            if log_chance(middle) < first - middle - _TAIL:
                high = middle
            else:
                low = middle
    return high


def _sum_over(
    nodes: FloatArray, first: float, log_weights: FloatArray, asked: Positions, places: int
) -> FloatArray:
    """Sum the integrand, (m, places), over nodes y, with log time first + y - exp(-y).

    `log_weights` are descending, `asked` ascending positions among them.
    """
    total = np.zeros((len(asked), places))
    stretch = math.ceil(_STRETCH / float(nodes[1] - nodes[0])) if len(nodes) > 1 else 1
    start = 0
    while start < len(nodes):
        y = nodes[start : start + stretch]
        parts = _parts(log_weights, first + y - np.exp(-y), places)
        # Large blocks use fewer nodes at a time. Earlier nodes never have more active items.
        heavy = max(parts.light - parts.certain, places * len(asked))
        if len(y) > 1 and len(y) * heavy > _FEW_CELLS:
            y = y[: max(1, _FEW_CELLS // heavy)]
            parts = _parts(log_weights, first + y - np.exp(-y), places)
        start += len(y)
        _add(total, y, first + y - np.exp(-y), log_weights, asked, places, parts)
    return total


@dataclass(frozen=True, slots=True)
class _Parts:
    """The ends of the parts of a descending block, at some nodes.

    The parts are: items that have certainly rung; items multiplied one by one; light items (see
    `_light_ones`); and items that never ring at these nodes.
    """

    certain: int
    light: int
    end: int


def _parts(log_weights: FloatArray, log_time: FloatArray, places: int) -> _Parts:
    latest = log_time[-1]
    certain, light, end = np.searchsorted(
        -log_weights, [log_time[0] - _CERTAIN, latest - math.log(_LIGHT), latest + _NEVER]
    ).tolist()
    degree = places - 1 - certain
    light = max(certain, light)
    if 0 < degree <= _LIGHT_DEGREE and light < end:
        # The light items' series loses no digits if the heaviest is a small part of their sum.
        odds = np.expm1(np.exp(log_weights[light:end] + latest))
        together = np.cumsum(odds[::-1])[::-1]
        fine = odds * degree <= min(_LIGHT_SHARE, _LIGHT_GROWTH / degree) * together
        light += int(np.argmax(fine)) if fine.any() else end - light
    elif degree != 0:
        light = end
    return _Parts(certain, light, end)


def _add(
    total: FloatArray,
    y: FloatArray,
    log_time: FloatArray,
    log_weights: FloatArray,
    asked: Positions,
    places: int,
    parts: _Parts,
) -> None:
    """Add the integrand at these nodes to `total`."""
    certain, light, end = parts.certain, parts.light, parts.end
    edges = np.searchsorted(asked, [certain, light, end]).tolist()
    if certain >= places or edges[0] == edges[2]:
        return
    degree = places - 1 - certain
    is_asked = np.zeros(light - certain, np.bool_)
    is_asked[asked[edges[0] : edges[1]] - certain] = True
    heavy = log_weights[certain:light]
    _, theirs = _factors(heavy[~is_asked], log_time)
    base = _product(theirs, degree)
    latest = log_time[-1]
    ratio = np.exp(log_time - latest)
    if light < end:
        base = _times(base, _light_ones(log_weights[light:end], latest, ratio, degree), degree)
    slowing = 1.0 + np.exp(-y)  # d log time / dy
    own: FloatArray | None = None
    if edges[0] < edges[1]:
        in_play = heavy[is_asked]
        # Padded to a power of two with items of weight 0, whose factor is 1.
        filled = np.full(1 << (len(in_play) - 1).bit_length(), -np.inf)
        filled[: len(in_play)] = in_play
        expected, own = _factors(filled, log_time)
        counts = _all_but_each(own, base, degree)[:, : len(in_play)]
        expected = expected[: len(in_play)]
        density = expected * np.exp(-expected) * slowing
        reached = certain + len(counts)
        total[edges[0] : edges[1], certain:reached] += np.einsum("jan,an->aj", counts, density)
    if edges[1] < edges[2]:
        every = base if own is None else _times(_product(own, degree), base, degree)
        # The product is divided by a light item's own factor q + p z. As in the series, the terms
        # subtracted are small. The density's factor q and the 1 / q of the division cancel.
        expected = np.multiply.outer(
            np.exp(log_weights[asked[edges[1] : edges[2]]] + latest), ratio
        )
        odds = np.expm1(expected)
        density = expected * slowing
        others = np.zeros_like(odds)
        for j, coefficients in enumerate(every):
            others = coefficients - odds * others
            total[edges[1] : edges[2], certain + j] += np.einsum("an,an->a", others, density)


def _light_ones(
    log_weights: FloatArray, latest: float, ratio: FloatArray, degree: int
) -> FloatArray:
    """Multiply factors of many light items, (coefficient, 1, t), without a loop over items per t.

    With u = w t, prod (e^-u + (1 - e^-u) z) is exp(-sum u) times the sum over j of E_j z^j, where
    E_j are the elementary symmetric polynomials of the odds e^u - 1. They follow from the power
    sums P_i of the odds by Newton's identities, j E_j = P_1 E_(j-1) - P_2 E_(j-2) + .... If u is
    small, as for nearly all items, (e^u - 1)^i is a series in u. The share of these items in P_i
    thus follows from power sums of their weights, which are the same at all nodes.
    """
    u = np.exp(log_weights + latest)
    still = np.exp(-u.sum() * ratio)
    if degree == 0:
        return np.asarray(still[None, None])
    small = int(np.searchsorted(-u, -_SMALL))
    series = _powers_of_odds(min(degree, _LIGHT_TERMS))
    sums = np.empty(series.shape[1])
    power = u[small:].copy()
    for m in range(len(sums)):
        sums[m] = power.sum()
        power *= u[small:]
    exponents = np.arange(1, len(sums) + 1)[:, None]
    odds = (series * sums) @ ratio**exponents  # (i, t): P_i, up to its sign
    if small:
        each = np.expm1(np.multiply.outer(u[:small], ratio))
        powers = each.copy()
        for i in range(len(odds)):
            odds[i] += powers.sum(axis=0)
            powers *= each
    odds[1::2] *= -1.0
    result = np.empty((degree + 1, 1, len(ratio)))
    result[0, 0] = still
    for j in range(1, degree + 1):
        reach = min(j, len(odds))
        result[j, 0] = (odds[:reach] * result[j - 1 :: -1, 0][:reach]).sum(axis=0) / j
    return result


@cache
def _powers_of_odds(powers: int) -> FloatArray:
    """Return coefficients (powers, terms) of u, u^2, ... in (e^u - 1)^i, i = 1, 2, ..."""
    terms = powers + _LIGHT_MORE
    result = np.zeros((powers, terms))
    result[0] = np.cumprod(1.0 / np.arange(1, terms + 1))
    for i in range(1, powers):
        result[i, i:] = np.convolve(result[i - 1, i - 1 :], result[0])[: terms - i]
    return result


def _factors(log_weights: FloatArray, log_time: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return expected rings (i, t), and polynomials (2, i, t) of P(not rung) and P(rung)."""
    expected = np.exp(np.add.outer(log_weights, log_time))
    factors = np.empty((2, *expected.shape))
    np.exp(-expected, out=factors[0])
    np.negative(np.expm1(-expected), out=factors[1])
    return expected, factors


def _times(a: FloatArray, b: FloatArray, degree: int) -> FloatArray:
    """Multiply polynomials (coefficient, i, t), without terms above the degree."""
    if len(a) > len(b):
        a, b = b, a
    size = min(len(a) + len(b) - 1, degree + 1)
    reach = min(len(b), size)
    if len(a) >= _MANY:  # one sum over windows of b instead of a product for each coefficient
        zeros = len(a) - 1
        padded = np.zeros((zeros + size, *b.shape[1:]))
        padded[zeros : zeros + reach] = b[:reach]
        step, *others = padded.strides
        windows = np.ndarray(
            (size, len(a), *b.shape[1:]), np.float64, padded, 0, (step, step, *others)
        )
        return np.asarray(np.einsum("cpit,pit->cit", windows, a[::-1]))
    result = np.zeros((size, max(a.shape[1], b.shape[1]), a.shape[2]))
    for power in range(min(len(a), size)):
        reach = min(len(b), size - power)
        result[power : power + reach] += a[power] * b[:reach]
    return result


def _product(factors: FloatArray, degree: int) -> FloatArray:
    """Multiply the factors of all items, (coefficient, 1, t)."""
    rest = np.ones((1, 1, factors.shape[2]))
    while (count := factors.shape[1]) > 1:
        if count % 2:
            rest = _times(rest, factors[:, -1:], degree)
        half = count // 2
        factors = _times(factors[:, :half], factors[:, half : 2 * half], degree)
    return _times(rest, factors, degree) if count else rest


def _all_but_each(factors: FloatArray, base: FloatArray, degree: int) -> FloatArray:
    """Multiply, for each of 2^j items, base and all other items: (coefficient, 2^j, t)."""
    levels = [factors]
    while (half := levels[-1].shape[1] // 2) > 0:
        levels.append(_times(levels[-1][:, :half], levels[-1][:, half:], degree))
    result = base
    for level in reversed(levels[:-1]):
        half = level.shape[1] // 2
        both = _times(result, level[:, half:], degree), _times(result, level[:, :half], degree)
        result = np.concatenate(both, axis=1)
    return result
