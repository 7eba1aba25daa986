"""Samplers that are wrong on purpose, each with a mistake that recommenders were seen to make.

All take (rng, scores, k, n_draws) and return positions of shape (n_draws, places); the
temperature is 1. Two right ones stand first, as controls: the guards must let them pass.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from support import Array, Positions


def _best(keys: Array, k: int) -> Positions:
    return np.argsort(-keys, axis=1, kind="stable")[:, :k]


def _by_running_sums(rng: np.random.Generator, weights: Array, k: int, n_draws: int) -> Positions:
    """k draws, each by inverting the running sums of the weights that are left."""
    left = np.tile(weights, (n_draws, 1))
    orders = np.empty((n_draws, k), np.int64)
    for place in range(k):
        running = np.cumsum(left, axis=1)
        threshold = rng.random((n_draws, 1)) * running[:, -1:]
        drawn = np.minimum((running <= threshold).sum(axis=1), len(weights) - 1)
        orders[:, place] = drawn
        left[np.arange(n_draws), drawn] = 0.0
    return orders


def _jumps(
    rng: np.random.Generator, scores: Array, k: int, n_draws: int, *, conditional: bool
) -> Positions:
    """Exponential jumps; entrants' keys are Gumbel given that they exceed the threshold, or not."""
    rows = np.arange(n_draws)
    kept = np.tile(np.arange(k), (n_draws, 1))
    keys = scores[:k] + rng.gumbel(size=(n_draws, k))
    budget = rng.exponential(size=n_draws)
    for item in range(k, len(scores)):
        threshold = keys.min(axis=1)
        rate = np.exp(scores[item] - threshold)
        budget -= rate
        enters = budget <= 0
        uniform = rng.random(n_draws)
        given = scores[item] - np.log(-np.log1p(uniform * np.expm1(-rate)))
        key = given if conditional else scores[item] + rng.gumbel(size=n_draws)
        worst = keys.argmin(axis=1)
        kept[rows[enters], worst[enters]] = item
        keys[rows[enters], worst[enters]] = key[enters]
        budget = np.where(enters, rng.exponential(size=n_draws), budget)
    return np.take_along_axis(kept, np.argsort(-keys, axis=1), axis=1)


# Controls: right


def gumbel_sort(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """Right: Gumbel noise on every item."""
    return _best(scores + rng.gumbel(size=(n_draws, len(scores))), k)


def jumps(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """Right: exponential jumps with the conditional key."""
    return _jumps(rng, scores, k, n_draws, conditional=True)


# Wrong laws


def hotter(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """A temperature 10 % too high."""
    return gumbel_sort(rng, scores / 1.1, k, n_draws)


def plain_key_for_entrants(
    rng: np.random.Generator, scores: Array, k: int, n_draws: int
) -> Positions:
    """Jumps whose entrants get a plain Gumbel key, as if they had not just beaten the threshold."""
    return _jumps(rng, scores, k, n_draws, conditional=False)


def first_k_stay(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """The first k items fill the heap and are never replaced."""
    return _best(scores[:k] + rng.gumbel(size=(n_draws, k)), k)


def best_score_first(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """The right set, shown in the order of the scores."""
    drawn = gumbel_sort(rng, scores, k, n_draws)
    return np.take_along_axis(drawn, np.argsort(-scores[drawn], axis=1, kind="stable"), axis=1)


def with_replacement(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """Items may come twice."""
    return np.hstack([gumbel_sort(rng, scores, 1, n_draws) for _ in range(k)])


def shares_of_scores(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """Probability = score / sum of scores: when all are negative, the worst item leads."""
    return _by_running_sums(rng, scores / scores.sum(), k, n_draws)


def running_sums_float64(
    rng: np.random.Generator, scores: Array, k: int, n_draws: int
) -> Positions:
    """Running sums of exp, relative to the best: a head 40 above the rest rounds it to nothing."""
    weights = np.cumsum(np.exp(scores - scores.max()))
    return _by_running_sums(rng, np.diff(weights, prepend=0.0), k, n_draws)


def weights_float32(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """float32 weights relative to the best, kept after it left: 0 beyond a gap of 104."""
    weights = np.exp((scores - scores.max()).astype(np.float32)).astype(np.float64)
    return _by_running_sums(rng, weights, k, n_draws)


def later_of_ties(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """Deterministic, ties to the later item."""
    order = np.lexsort((-np.arange(len(scores)), -scores))[:k]
    return np.tile(order, (n_draws, 1))


def exploring_spares_the_best(
    rng: np.random.Generator, scores: Array, k: int, n_draws: int, epsilon: float
) -> Positions:
    """Epsilon-greedy whose exploring draw never hits the best item."""
    orders = np.empty((n_draws, k), np.int64)
    for row in orders:
        left = np.argsort(-scores, kind="stable").tolist()
        for place in range(k):
            explores = rng.random() < epsilon and len(left) > 1
            row[place] = left.pop(int(rng.integers(1, len(left))) if explores else 0)
    return orders


def capped_gumbel_winners(
    rng: np.random.Generator, head: float, n_tail: int, n_draws: int
) -> npt.NDArray[np.bool_]:
    """Whether one of n_tail items of score 0 beats the head, with Gumbels from float32 uniforms.

    Such a uniform is a multiple of 2^-24, so no Gumbel exceeds 24 log 2 = 16.6. The largest
    of n uniforms is distributed as U^(1/n), here rounded as each of them would have been.
    """
    largest = np.floor(rng.random(n_draws) ** (1.0 / n_tail) * 2.0**24) / 2.0**24
    return np.asarray(-np.log(-np.log(largest)) > head + rng.gumbel(size=n_draws))


# Wrong shapes and filters


def ignores_the_filter(
    rng: np.random.Generator,
    scores: Array,
    k: int,
    n_draws: int,
    eligible: npt.NDArray[np.bool_],
) -> Positions:
    """Draw from the whole catalog."""
    return gumbel_sort(rng, scores, k, n_draws)


def pads_with_item_zero(rng: np.random.Generator, scores: Array, k: int, n_draws: int) -> Positions:
    """Fill up to k places with the first item when the catalog has fewer."""
    drawn = gumbel_sort(rng, scores, min(k, len(scores)), n_draws)
    return np.pad(drawn, ((0, 0), (0, k - drawn.shape[1])))


def one_noise_for_two_users(
    rng: np.random.Generator, scores: Array, k: int, n_draws: int
) -> tuple[Positions, Positions]:
    """Two users of one batch see the same Gumbels."""
    noise = rng.gumbel(size=(n_draws, len(scores)))
    return _best(scores + noise, k), _best(scores + noise, k)


# Jumps over bounds


def _bounded_jumps(
    rng: np.random.Generator, scores: Array, uppers: Array, k: int, n_draws: int, *, thinned: bool
) -> Positions:
    """Exponential jumps whose budgets are spent on upper bounds, with or without a second look."""
    rows = np.arange(n_draws)
    kept = np.tile(np.arange(k), (n_draws, 1))
    keys = scores[:k] + rng.gumbel(size=(n_draws, k))
    budget = rng.exponential(size=n_draws)
    for item in range(k, len(scores)):
        threshold = keys.min(axis=1)
        fires = budget < np.exp(uppers[item] - threshold)
        enters = fires & (budget < np.exp(scores[item] - threshold)) if thinned else fires
        key = scores[item] - threshold - np.log(budget)
        worst = keys.argmin(axis=1)
        kept[rows[enters], worst[enters]] = item
        keys[rows[enters], worst[enters]] = (threshold + key)[enters]
        spent = budget - np.exp(uppers[item] - threshold)
        budget = np.where(fires, rng.exponential(size=n_draws), spent)
    return np.take_along_axis(kept, np.argsort(-keys, axis=1), axis=1)


def thinned_jumps(
    rng: np.random.Generator, scores: Array, uppers: Array, k: int, n_draws: int
) -> Positions:
    """Right: an item on whose bound the budget runs out enters if it does on its weight, too."""
    return _bounded_jumps(rng, scores, uppers, k, n_draws, thinned=True)


def unthinned_jumps(
    rng: np.random.Generator, scores: Array, uppers: Array, k: int, n_draws: int
) -> Positions:
    """Whoever passes by its bound enters."""
    return _bounded_jumps(rng, scores, uppers, k, n_draws, thinned=False)
