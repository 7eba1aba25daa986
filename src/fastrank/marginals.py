"""Exact laws of whole rankings, in the two forms that off-policy estimators need.

- *Position marginals*: how probable an item is at a place, whatever stands before it. Estimators
  that let a reward depend on the item alone weight with their ratio. They do not follow from
  conditional propensities, which a log holds: they are sums over all prefixes.
- *Pseudo-inverse weights*: how much a ranking counts when rewards add up over places, from the
  second moments of the logging law.

Everything here is a pure function of one score vector; callers keep results per (query, filters,
policy). Items are positions 0..n-1 of that vector, ``eligible`` a mask of those that the filters
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

MAX_ITEMS = 10_000  # Plackett-Luce's position marginals
MAX_RANKINGS = 1_000_000  # enumerated rankings
MAX_CELLS = 1_000  # items x places of a pseudo-inverse that has no closed form


# Log-weights apart: a clock this much slower rings first with a probability of e^-70 = 4e-31.
_NEVER = 70.0
_CERTAIN = math.log(800.0)  # log of the expected rings at which exp(-rings) is 0 in float64
_TAIL = 45.0  # what lies beyond the ends of an integral is e^-45 = 3e-20 of it
_FEW_CELLS = 1 << 17  # float64 of one coefficient for all items and nodes at hand: 1 MB
_LIGHT = 2.0  # expected rings, up to which an item may be one of many light ones
_SMALL = 0.25  # expected rings, up to which an item's odds are a series
_LIGHT_SHARE = 0.1  # of all of them together that the heaviest's odds may be, by the places to come
_LIGHT_GROWTH = 6.0  # log of what rounding errors grow by at most over all places: 400 x 1e-16
_LIGHT_DEGREE = 128  # more places are multiplied out
_LIGHT_TERMS = 20  # power sums of odds: each is at most `_LIGHT_SHARE` of the one before
_LIGHT_MORE = 14  # terms of their series after the first: 0.25^14 / 15! is 3e-21
_MANY = 5  # coefficients, from which on a product of polynomials is one call
_STRETCH = 8.0  # of log time that is worked on at once, lest far items be taken along
_STEP = 0.25  # of log time, to start with; peaks of the k-th ring are narrower by sqrt(k)
_CHANGE = 1e-7  # between two step lengths; the shorter one's error is about the square of it
_EIGENVALUE = 1e-13  # of the largest, below which one is rounding noise of a 0
_NOTHING = 1e-145  # root of a probability that is as good as 0: its inverse squared is finite
_LOST = 1e-6  # of a marginal that pseudo-inverse weights may fail to give back


def position_marginals(
    scores: npt.ArrayLike,
    policy: Policy,
    k: int,
    items: npt.ArrayLike | None = None,
    eligible: npt.ArrayLike | None = None,
) -> FloatArray:
    """P(item at place l) for some items and each of k places, whatever the other places show.

    Parameters
    ----------
    scores : array_like of real numbers, shape (n,)
        Finite.
    policy : Policy
    k : int
        Places, at least 1; those that a ranking of all eligible items does not reach get 0.
    items : array_like of int, shape (m,), optional
        Positions in `scores`, by default all of them in order. -1 is an item that is not there
        (as look-ups by id have it): probability 0, like an ineligible one. Repeats are fine.
    eligible : array_like of bool, shape (n,), optional
        By default all items.

    Returns
    -------
    ndarray of float64, shape (m, k)

    Raises
    ------
    ValueError
        Naming the argument and the value; under Plackett-Luce also for more than
        `MAX_ITEMS` eligible items.

    Notes
    -----
    `Uniform`, `Deterministic`: closed forms, O(n + m k). `EpsilonGreedy`: a recursion over places
    and the number of better items that are gone, O(n log n + m k^2).

    `PlackettLuce` is the order in which exponential clocks of rates w = exp(score / T) ring
    (Yellott 1977), and given the time t at which item a rings the others have rung or not
    independently of each other:

        P(a at place l) = integral of w_a exp(-w_a t) P(exactly l - 1 of the others rang by t) dt.

    The integrand is analytic in log t, where the trapezoidal rule converges exponentially; below
    the first ring the nodes thin out double-exponentially (Takahasi and Mori 1974). The step is
    halved until that changes no value by more than 1e-7 of it, whereby the last result's error is
    about the square. The number of rings is a Poisson binomial: a product of linear polynomials,
    cut at degree k. Heavy items are multiplied in a tree, and each asked one's own factor is left
    out by multiplying all but it. Of light ones, each little beside all that are light together,
    the product is a series in power sums of their weights, and an asked one's own factor is
    divided by: terms alternate there, but each is a small part of the one before. Checked against
    enumeration: 1e-12 of the value, for values above 1e-18; those below about 1e-22 may be given
    as 0. Some 75 nodes for k = 10 and 170 for k = 100, more where scores lie many T apart;
    O((h + m log k) k) a node, h the heavy items, besides some 30 passes over all of them. For
    k = 10 on one core about 4 ms for n = 10,000, m = 10 and 60 to 130 for m = n; for n = 1,000 2
    and 5 to 16.

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
    """Of some of n items that are all eligible, (m, places); places are at most n."""
    n = len(scores)
    if law.head or law.is_certain:
        head = places if law.is_certain else min(law.head, places)
        ranks = _ranks(scores)
        result = np.zeros((len(asked), places))
        result[:, :head] = ranks[asked, None] == np.arange(head)
        if head < places:  # the law of what the head leaves, among what it leaves
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
        raise ValueError(f"policy: position marginals of a mixture are not known: {law}")
    if n > MAX_ITEMS:
        raise ValueError(
            f"scores: Plackett-Luce's position marginals take at most {MAX_ITEMS} eligible "
            f"items, got {n}"
        )
    return _plackett_luce((scores - scores.max()) / law.temperature, asked, places)


def ranking_law(
    scores: npt.ArrayLike, k: int, policy: Policy, eligible: npt.ArrayLike | None = None
) -> tuple[Positions, FloatArray]:
    """Every ordered ranking, with its probability.

    Parameters
    ----------
    scores : array_like of real numbers, shape (n,)
    k : int
    policy : Policy
    eligible : array_like of bool, shape (n,), optional

    Returns
    -------
    rankings : ndarray of int64, shape (r, min(k, eligible items))
        Positions; the deterministic ranking first. Rankings that never occur are listed, too.
    probabilities : ndarray of float64, shape (r,)

    Raises
    ------
    ValueError
        Also where there are more than `MAX_RANKINGS`: n! / (n - k)! for n eligible items.

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
    """All beginnings of rankings, one level after another, with the law of their last item.

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
        Those of l = 1, 2, ... `places` items: the children of the level before in its order,
        each parent's items left best first.
    law : ndarray of float64, shape (r / width, width)
        P(the l-th item | the items before it), a row a parent of width = n - l + 1 children.

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
    """P(the next item is i), for r sets of m items that are left to choose from.

    Parameters
    ----------
    scores : ndarray of float64, shape (r, m)
        Best first in each row; m >= 1.
    policy : Policy
    place : int
        For which place, from 0.

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
    """Pseudo-inverse of a logging law's second moments; what `slate_inverse` returns.

    Attributes
    ----------
    positions : ndarray of int64, shape (e,)
        The eligible items, ascending.
    places : int
        min(k, e).
    moments, matrix : ndarray of float64, shape (places * e, places * e), or None
        Gamma and its inverse; rows and columns are place * e + index in `positions`. None under
        uniform logging, where a closed form takes their place.
    """

    positions: Positions
    places: int
    moments: FloatArray | None = None
    matrix: FloatArray | None = None


def slate_inverse(
    scores: npt.ArrayLike, policy: Policy, k: int, eligible: npt.ArrayLike | None = None
) -> SlateInverse:
    """Pseudo-inverse of Gamma = E[1_s 1_s'], 1_s the (place, item) indicators of a ranking s.

    Parameters
    ----------
    scores : array_like of real numbers, shape (n,)
        The logging model's.
    policy : Policy
        The logging policy.
    k : int
        Places that were shown.
    eligible : array_like of bool, shape (n,), optional

    Returns
    -------
    SlateInverse
        For `pseudo_inverse_weights`; keep it per (query, filters, policy).

    Raises
    ------
    ValueError
        Unless logging is uniform: for more than `MAX_CELLS` items x places, or more than
        `MAX_RANKINGS` rankings.

    Notes
    -----
    O(r k^2 + (e k)^3) for r rankings: about 0.5 s for 1,000 cells or a million rankings. What is
    inverted is Gamma scaled to a diagonal of 1, or a rare pair would drown in the rounding of a
    frequent one. Between vectors in Gamma's range, as all rankings that are logged and what they
    span, any generalised inverse is as good as the pseudo-inverse.

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
        raise ValueError("eligible: no item is, so there is no ranking to weight")
    if law_of(policy).is_uniform:
        return SlateInverse(positions, places)
    if n * places > MAX_CELLS:
        raise ValueError(
            f"k: the pseudo-inverse takes at most {MAX_CELLS} items x places unless logging is "
            f"uniform, got {n} eligible items x {places}"
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
    """Weight of each logged ranking for the ``pi`` estimator: mean of weight x sum of rewards.

    Parameters
    ----------
    orders : array_like of int, shape (b, places)
        Logged rankings for one query and one set of filters, as positions.
    inverse : SlateInverse
        Of the logging law, for the same filters.
    scores : array_like of real numbers, shape (n,)
        The evaluation model's.
    policy : Policy
        The evaluation policy, choosing from the items that were eligible when logging.

    Returns
    -------
    ndarray of float64, shape (b,)
        Below 0 for some rankings: this is no importance weight. Its mean over the log is about 1.

    Raises
    ------
    ValueError
        For shapes that do not fit, an item that was not eligible, one twice in a row, or
        marginals out of reach (see `position_marginals`). Also where the weights would not give the
        evaluation policy's marginals back, to 1e-6: the logging law never shows some of them, or
        so rarely (scores some 15 to 30 T apart) that float64 loses them.

    Notes
    -----
    Swaminathan et al. (2017), "Off-policy evaluation for slate recommendation": q' Gamma^+ 1_s with
    q the evaluation policy's position marginals. Unbiased where the expected reward of a ranking is
    a sum over its (place, item) pairs and the logging policy shows every pair.

    Under uniform logging Gamma's eigenspaces are known: vectors over (place, item) that are
    constant or sum to 0 along either, with eigenvalues 1/(n-1) where both sum to 0,
    (n-k)/(n(n-1)) for zero-sum item vectors alike at all places, k/n for constants, and 0. So the
    logged items' marginals do, and there is no limit but theirs.

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
            f"scores: expected at least {positions[-1] + 1}, as the logging model has, "
            f"got {len(values)}"
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
        raise ValueError(f"orders: row {twice[0]}: an item twice, {rows[twice[0]].tolist()}")
    of_eligible = values[positions]
    if inverse.moments is not None and inverse.matrix is not None:
        cells = position_marginals(of_eligible, policy, places).T.ravel()
        by_cell = inverse.matrix @ cells
        lost = float(np.abs(inverse.moments @ by_cell - cells).max())
        if lost > _LOST:
            raise ValueError(
                "policy: it shows items at places where the logging law never or hardly does; the "
                f"weights would miss a probability of {lost:.2g}"
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
            f"k: at most {MAX_RANKINGS} rankings are enumerated, got {count} of {places} out of "
            f"{n} eligible items"
        )


# Laws


def _ranks(values: FloatArray) -> Positions:
    """How many items are better than each; ties go to the earlier."""
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return ranks


def _epsilon_greedy(rank: Positions, n: int, places: int, epsilon: float) -> FloatArray:
    """Marginals (m, places) of the items that `rank` of n others are better than."""
    law = np.empty((len(rank), places))
    better_gone = np.arange(places)
    better_left = np.maximum(rank[:, None] - better_gone, 0)
    is_best = better_left == 0
    # P(not shown yet, and so many better items gone); more than there are of them never occurs.
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
    """Marginals (m, places) of distinct `items`.

    Items that lie beyond a gap of `_NEVER` come after all before it: the catalog falls into blocks
    that are ranked one after another, each with a time scale of its own.
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
    """Marginals (m, places) of items of a descending block without wide gaps."""
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
        # Below 1e-30 there is nothing to keep; a step of 1e-3 resolves whatever float64 does.
        if step < 1e-3 or bool((np.abs(fine - coarse) <= _CHANGE * fine + 1e-30).all()):
            return np.asarray(fine[again.reshape(-1)], np.float64)


def _log_time_of_all(log_weights: FloatArray, places: int, first: float) -> float:
    """Log time by which `places` items have rung, but for e^-_TAIL of the rarest marginal.

    The integrand at log time x is at most exp(x - first) P(fewer than `places` rang by x), and the
    number of rings, as that of the items left, obeys Chernoff's bound for sums of independent bits.
    Weights are rounded down by up to a tenth, which only makes it later: few differ then.
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
    """Sum (m, places) of the integrand over nodes y, where log time is first + y - exp(-y).

    `log_weights` are descending, `asked` ascending positions among them.
    """
    total = np.zeros((len(asked), places))
    stretch = math.ceil(_STRETCH / float(nodes[1] - nodes[0])) if len(nodes) > 1 else 1
    start = 0
    while start < len(nodes):
        y = nodes[start : start + stretch]
        parts = _parts(log_weights, first + y - np.exp(-y), places)
        # Large blocks: fewer nodes at once. Earlier nodes never have more in play.
        heavy = max(parts.light - parts.certain, places * len(asked))
        if len(y) > 1 and len(y) * heavy > _FEW_CELLS:
            y = y[: max(1, _FEW_CELLS // heavy)]
            parts = _parts(log_weights, first + y - np.exp(-y), places)
        start += len(y)
        _add(total, y, first + y - np.exp(-y), log_weights, asked, places, parts)
    return total


@dataclass(frozen=True, slots=True)
class _Parts:
    """A descending block at some nodes: where each part of it ends.

    First come items that have rung for certain, then those that are multiplied one by one, then
    the light ones (see `_light_ones`); the rest never ring here.
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
        # Nothing cancels in the light ones' series where the heaviest is little beside all.
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
        # Filled up with items of weight 0, whose factor is 1, to halve and halve again.
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
        # A light one's own factor q + p z is divided by: what is taken off is little beside what
        # stays, as in its series. Both q of the density and 1 / q are left out.
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
    """Product of many light items' factors, (coefficient, 1, t), without touching each at each t.

    With u = w t, prod (e^-u + (1 - e^-u) z) is exp(-sum u) times the sum over j of E_j z^j, E_j the
    elementary symmetric polynomials of the odds e^u - 1. They follow from the odds' power sums P_i
    by Newton's identities, j E_j = P_1 E_(j-1) - P_2 E_(j-2) + .... Where u is small, as of nearly
    all items, (e^u - 1)^i is a series in u, so that their part of P_i follows from power sums of
    the weights, which are the same at all nodes.
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
    """Coefficients (powers, terms) of u, u^2, ... in (e^u - 1)^i, i = 1, 2, ..."""
    terms = powers + _LIGHT_MORE
    result = np.zeros((powers, terms))
    result[0] = np.cumprod(1.0 / np.arange(1, terms + 1))
    for i in range(1, powers):
        result[i, i:] = np.convolve(result[i - 1, i - 1 :], result[0])[: terms - i]
    return result


def _factors(log_weights: FloatArray, log_time: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Expected rings (i, t), and P(has not rung), P(has rung) as polynomials (2, i, t)."""
    expected = np.exp(np.add.outer(log_weights, log_time))
    factors = np.empty((2, *expected.shape))
    np.exp(-expected, out=factors[0])
    np.negative(np.expm1(-expected), out=factors[1])
    return expected, factors


def _times(a: FloatArray, b: FloatArray, degree: int) -> FloatArray:
    """Products of polynomials (coefficient, i, t), without what is above the degree."""
    if len(a) > len(b):
        a, b = b, a
    size = min(len(a) + len(b) - 1, degree + 1)
    reach = min(len(b), size)
    if len(a) >= _MANY:  # one sum over windows of b in place of a product a coefficient
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
    """Product over the items, (coefficient, 1, t)."""
    rest = np.ones((1, 1, factors.shape[2]))
    while (count := factors.shape[1]) > 1:
        if count % 2:
            rest = _times(rest, factors[:, -1:], degree)
        half = count // 2
        factors = _times(factors[:, :half], factors[:, half : 2 * half], degree)
    return _times(rest, factors, degree) if count else rest


def _all_but_each(factors: FloatArray, base: FloatArray, degree: int) -> FloatArray:
    """For each of 2^j items base times the product of all other items, (coefficient, 2^j, t)."""
    levels = [factors]
    while (half := levels[-1].shape[1] // 2) > 0:
        levels.append(_times(levels[-1][:, :half], levels[-1][:, half:], degree))
    result = base
    for level in reversed(levels[:-1]):
        half = level.shape[1] // 2
        both = _times(result, level[:, half:], degree), _times(result, level[:, :half], degree)
        result = np.concatenate(both, axis=1)
    return result
