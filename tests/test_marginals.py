"""Position marginals and pseudo-inverse weights against enumeration, identities and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from support import LIMIT, MIN_EXPECTED, Scored, chi_square_p_value, heavy_tailed_scores, scored

import fastrank as fr
from fastrank import marginals, reference
from fastrank.marginals import (
    position_marginals,
    pseudo_inverse_weights,
    ranking_law,
    slate_inverse,
)

Array: TypeAlias = npt.NDArray[np.float64]
Positions: TypeAlias = npt.NDArray[np.int64]

W1234 = np.log([1.0, 2.0, 3.0, 4.0])
POLICIES = (
    fr.Deterministic(),
    fr.PlackettLuce(0.8),
    fr.EpsilonGreedy(0.35),
    fr.Uniform(),
    fr.BestFirst(1, fr.PlackettLuce(0.8)),
    fr.BestFirst(2, fr.EpsilonGreedy(0.35)),
)
SPREAD = np.array([0.3, -1.2, 0.9, -0.4, 1.4, 0.0])


def enumerated(
    scores: npt.ArrayLike, policy: fr.Policy, k: int, eligible: npt.ArrayLike | None = None
) -> Array:
    """Marginals (n, k) of all items, summed up over the slow twin's law."""
    rankings, p = reference.ranking_law(scores, k, policy, eligible)
    result = np.zeros((np.size(scores), k))
    for place in range(rankings.shape[1]):
        np.add.at(result[:, place], rankings[:, place], p)
    return result


def assert_marginals(actual: Array, exact: Array) -> None:
    """1e-12 of the value where that is above 1e-18; below, one part in a million, or 0 for 1e-22.

    Enumeration itself, a product of softmaxes, is good to some 1e-15.
    """
    large = exact > 1e-18
    np.testing.assert_allclose(actual[large], exact[large], rtol=1e-12, atol=0)
    np.testing.assert_allclose(actual[~large], exact[~large], rtol=1e-6, atol=1e-22)


# Known values


def test_marginals_of_weights_1_2_3_4() -> None:
    for place, exact in (
        (0, [1 / 10, 2 / 10, 3 / 10, 4 / 10]),
        (1, [113 / 840, 76 / 315, 37 / 120, 199 / 630]),
    ):
        actual = position_marginals(W1234, fr.PlackettLuce(), 2)[:, place]
        np.testing.assert_allclose(actual, exact, rtol=1e-13)


@pytest.mark.parametrize(
    ("k", "exact"),
    [
        (2, [197 / 840, 139 / 315, 73 / 120, 451 / 630]),
        (3, [377 / 840, 239 / 315, 731 / 840, 83 / 90]),
        (4, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_inclusion_of_weights_1_2_3_4(k: int, exact: list[float]) -> None:
    included = position_marginals(W1234, fr.PlackettLuce(), k).sum(axis=1)
    np.testing.assert_allclose(included, exact, rtol=1e-13)


def test_marginals_of_epsilon_greedy() -> None:
    """From P(0,1) = 221/300, P(0,2) = P(0,3) = 17/300, P(i,0) = 13/300, every other pair 1/300."""
    actual = position_marginals([4.0, 3.0, 2.0, 1.0], fr.EpsilonGreedy(0.2), 2)
    exact = np.array([[255, 39], [15, 223], [15, 19], [15, 19]]) / 300
    np.testing.assert_allclose(actual, exact, rtol=1e-13)


def test_equal_weights_are_uniform() -> None:
    actual = position_marginals(np.full(10_000, 3.0), fr.PlackettLuce(), 10, [0, 77, 9_999])
    np.testing.assert_allclose(actual, 1e-4, rtol=1e-12)


# Against enumeration


@pytest.mark.sampled
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 20.0, 60.0, 1000.0])
def test_marginals_equal_enumeration(spread: float) -> None:
    rng = np.random.default_rng(int(spread * 10))
    for _ in range(60):
        n = int(rng.integers(1, 7))
        k = int(rng.integers(1, n + 3))
        scores = rng.standard_normal(n) * spread
        if rng.random() < 0.3:
            scores = np.round(scores / spread) * spread  # ties
        eligible = rng.random(n) < 0.8
        items = rng.integers(0, n, 4)
        for policy in (*POLICIES, fr.PlackettLuce(), fr.EpsilonGreedy(float(rng.random()))):
            exact = enumerated(scores, policy, k, eligible)
            assert_marginals(position_marginals(scores, policy, k, items, eligible), exact[items])


@pytest.mark.parametrize(
    "broken", [{"_TAIL": 0.01}, {"_NEVER": 3.0}, {"_CERTAIN": 1.0}, {"_STEP": 2.0, "_CHANGE": 9.0}]
)
def test_the_comparison_sees_a_poor_quadrature(
    monkeypatch: pytest.MonkeyPatch, broken: dict[str, float]
) -> None:
    scores, policy = SPREAD * 5, fr.PlackettLuce()
    exact = enumerated(scores, policy, 6)
    assert_marginals(position_marginals(scores, policy, 6), exact)
    for name, value in broken.items():
        monkeypatch.setattr(marginals, name, value)
    with pytest.raises(AssertionError):
        assert_marginals(position_marginals(scores, policy, 6), exact)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_extremes(temperature: float, scale: float) -> None:
    policy = fr.PlackettLuce(temperature)
    actual = position_marginals(SPREAD * scale, policy, 6)
    np.testing.assert_allclose(actual, enumerated(SPREAD * scale, policy, 6), rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize("gap", [40.0, 69.0, 71.0, 1000.0])
def test_items_that_never_come_first_come_last(gap: float) -> None:
    scores = np.array([0.0, -gap, 0.5, -gap - 1.0, -3 * gap])
    actual = position_marginals(scores, fr.PlackettLuce(), 5)
    assert_marginals(actual, enumerated(scores, fr.PlackettLuce(), 5))
    first = math.exp(0.5) / (1 + math.exp(0.5))
    np.testing.assert_allclose(actual[[2, 0], [0, 0]], [first, 1 - first], rtol=1e-12)
    later = math.e / (1 + math.e)
    np.testing.assert_allclose(actual[[1, 3], [2, 2]], [later, 1 - later], rtol=1e-12)
    assert actual[4, 4] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_law_equals_its_slow_twin(n: int, policy: fr.Policy) -> None:
    eligible = np.arange(6) % 4 != 1
    for scores in (SPREAD[:n], np.round(SPREAD[:n]), SPREAD[:n] * 500):
        for k in range(1, n + 2):
            rankings, p = ranking_law(scores, k, policy, eligible[:n])
            slow, slow_p = reference.ranking_law(scores, k, policy, eligible[:n])
            order = np.lexsort(rankings.T[::-1])
            assert rankings[order].tolist() == slow.tolist()
            np.testing.assert_allclose(p[order], slow_p, rtol=1e-12, atol=1e-300)


# Identities that hold for any size


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 7), (150, 150), (2000, 12)])
def test_each_place_shows_one_item_and_each_item_has_one_place(
    n: int, k: int, policy: fr.Policy
) -> None:
    scores = np.random.default_rng(n).standard_normal(n)
    law = position_marginals(scores, policy, k)
    assert (law >= 0).all()
    np.testing.assert_allclose(law.sum(axis=0), 1.0, rtol=1e-12)
    included = law.sum(axis=1)
    if k == n:
        np.testing.assert_allclose(included, 1.0, rtol=1e-12)
    else:
        assert (included <= 1 + 1e-12).all()


@pytest.mark.parametrize("shape", ["normal", "heavy", "ascending", "two levels"])
def test_first_and_second_place_of_many_items(shape: str) -> None:
    """P(a first) = p_a and P(a second) = sum over b of p_b p_a / (1 - p_b), p the softmax."""
    n = 3000
    scores = {
        "normal": np.random.default_rng(1).standard_normal(n) * 3,
        "heavy": heavy_tailed_scores(n).astype(np.float64),
        "ascending": np.linspace(0.0, 2000.0, n),
        "two levels": np.where(np.arange(n) < 5, 40.0, 0.0),
    }[shape]
    p = np.exp(scores - scores.max())
    others = np.array([p[:i].sum() + p[i + 1 :].sum() for i in range(n)])
    p, rest = p / p.sum(), others / p.sum()  # 1 - p cancels where one item holds all the mass
    to_second = p / rest
    second = p * np.array([to_second[:i].sum() + to_second[i + 1 :].sum() for i in range(n)])
    items = np.r_[np.argsort(-scores)[:20], 0, n // 2, n - 1]
    actual = position_marginals(scores, fr.PlackettLuce(), 10, items)
    assert_marginals(actual[:, :2], np.stack([p, second], axis=1)[items])


MANY: dict[str, Array] = {
    "equal": np.zeros(400),
    "normal": np.random.default_rng(5).standard_normal(2000),
    "spread": np.random.default_rng(6).standard_normal(1000) * 6,
    "heavy": heavy_tailed_scores(3000).astype(np.float64),
    "two levels": np.where(np.arange(500) < 5, 20.0, 0.0),
    "ascending": np.linspace(0.0, 200.0, 300),
}


def one_by_one(monkeypatch: pytest.MonkeyPatch, scores: Array, k: int, items: Positions) -> Array:
    with monkeypatch.context() as patch:
        patch.setattr(marginals, "_LIGHT_DEGREE", -1)
        return position_marginals(scores, fr.PlackettLuce(), k, items)


@pytest.mark.parametrize("shape", MANY)
@pytest.mark.parametrize("k", [1, 2, 10, 60])
def test_light_items_together_are_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, shape: str, k: int
) -> None:
    scores = MANY[shape]
    items = np.r_[np.argsort(-scores)[:12], 0, len(scores) // 2, np.argsort(scores)[:12]]
    together = position_marginals(scores, fr.PlackettLuce(), k, items)
    each = one_by_one(monkeypatch, scores, k, items)
    large = each > 1e-18
    np.testing.assert_allclose(together[large], each[large], rtol=3e-13, atol=0)
    np.testing.assert_allclose(together[~large], each[~large], rtol=1e-9, atol=1e-22)


@pytest.mark.parametrize(
    ("shape", "k", "broken"),
    [
        ("equal", 2, {"_LIGHT_MORE": 2}),
        ("equal", 30, {"_LIGHT_TERMS": 1}),
        ("spread", 30, {"_LIGHT_SHARE": 99.0, "_LIGHT_GROWTH": 1e9}),
    ],
)
def test_the_comparison_sees_a_poor_series(
    monkeypatch: pytest.MonkeyPatch, shape: str, k: int, broken: dict[str, float]
) -> None:
    scores = MANY[shape]
    items = np.argsort(-scores)[:20]
    each = one_by_one(monkeypatch, scores, k, items)
    for name, value in broken.items():
        monkeypatch.setattr(marginals, name, value)
    marginals._powers_of_odds.cache_clear()
    try:
        together = position_marginals(scores, fr.PlackettLuce(), k, items)
    finally:
        marginals._powers_of_odds.cache_clear()
    large = each > 1e-18
    assert np.abs(together[large] / each[large] - 1.0).max() > 3e-13


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_what_else_is_asked_does_not_matter(policy: fr.Policy) -> None:
    scores = np.random.default_rng(8).standard_normal(400) * 4
    eligible = np.arange(400) % 7 != 3
    every = position_marginals(scores, policy, 9, eligible=eligible)
    some = position_marginals(scores, policy, 9, [5, 399, -1, 5, 3, 0], eligible)
    np.testing.assert_allclose(some[[0, 1, 3, 5]], every[[5, 399, 5, 0]], rtol=1e-12, atol=1e-25)
    assert not some[[2, 4]].any()  # not there, ineligible
    assert not every[~eligible].any()
    left = position_marginals(scores[eligible], policy, 9)
    np.testing.assert_allclose(every[eligible], left, rtol=1e-12, atol=1e-25)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_places_past_the_eligible_are_empty(policy: fr.Policy) -> None:
    eligible = np.array([True, False, True, False, False, False])
    law = position_marginals(SPREAD, policy, 5, eligible=eligible)
    assert law.shape == (6, 5)
    np.testing.assert_allclose(law.sum(axis=0), [1, 1, 0, 0, 0], rtol=1e-12)
    nobody = np.zeros(6, np.bool_)
    assert not position_marginals(SPREAD, policy, 2, eligible=nobody).any()
    assert position_marginals(SPREAD, policy, 2, []).shape == (0, 2)


# Against draws

N_DRAWS = 8_000


def place_p_value(orders: Positions, items: Positions, law: Array) -> float:
    """Smallest p-value over places: counts of some items there, and of all others together."""
    values = []
    for place in range(orders.shape[1]):
        counts = np.array([(orders[:, place] == item).sum() for item in items])
        p = law[:, place]
        values.append(
            chi_square_p_value([*counts, len(orders) - counts.sum()], [*p, max(1 - p.sum(), 0.0)])
        )
    return min(values)


@pytest.fixture(scope="module")
def many() -> tuple[Scored, Positions, Positions]:
    """A large catalog, its 40 best items, and rankings drawn from it."""
    catalog = scored(heavy_tailed_scores(5_000) * 1.5)
    orders = catalog.draw(10, fr.PlackettLuce(), N_DRAWS)
    return catalog, np.argsort(-catalog.scores)[:40], orders


def test_marginals_are_those_of_the_sampler(
    many: tuple[Scored, Positions, Positions],
) -> None:
    """Error budget: 10 chi-squares of up to 41 cells, each below `LIMIT` with chance 1e-9."""
    catalog, items, orders = many
    law = position_marginals(catalog.scores, fr.PlackettLuce(), 10, items)
    assert (law * N_DRAWS > MIN_EXPECTED).sum() > 50, "too few cells to say anything"
    assert place_p_value(orders, items, law) >= LIMIT


@pytest.mark.parametrize("broken", ["softmax at all places", "another temperature", "shifted"])
def test_wrong_marginals_are_not_those_of_the_sampler(
    many: tuple[Scored, Positions, Positions], broken: str
) -> None:
    catalog, items, orders = many
    law = position_marginals(catalog.scores, fr.PlackettLuce(), 10, items)
    law = {
        "softmax at all places": np.repeat(law[:, :1], 10, axis=1),
        "another temperature": position_marginals(catalog.scores, fr.PlackettLuce(1.1), 10, items),
        "shifted": np.roll(law, 1, axis=1),
    }[broken]
    assert place_p_value(orders, items, law) < LIMIT


# The pseudo-inverse


def test_truth_of_the_pseudo_inverse_estimator() -> None:
    """A population log of 2,520 rankings by w = (1, 2, 3, 4), evaluated under w = (4, 3, 2, 1)."""
    counts = np.array([56, 84, 112, 63, 189, 252, 108, 216, 432, 168, 336, 504])
    orders = np.array(list(itertools.permutations(range(4), 2)))
    rates = np.array([0.1, 0.2, 0.3, 0.4])
    inverse = slate_inverse(W1234, fr.PlackettLuce(), 2)
    weights = pseudo_inverse_weights(orders, inverse, W1234[::-1], fr.PlackettLuce())

    def mean(values: Array) -> float:
        return float(np.average(values, weights=counts))

    assert mean(weights) == pytest.approx(1.0, abs=1e-12)
    additive = weights * rates[orders].sum(axis=1)
    assert mean(additive) == pytest.approx(151 / 360, abs=1e-12)
    assert mean((additive - 151 / 360) ** 2) == pytest.approx(0.382742685, abs=1e-9)
    shown, then = rates[orders].T
    cascade = weights * (shown + (1 - shown) * then)  # not a sum over items: off from 91/240
    assert mean(cascade) == pytest.approx(0.385362504, abs=1e-9)


def additive_error(weights: Array, orders: Positions, p: Array, exact: Array) -> float:
    """How far E[weight 1(item at place)] is from the evaluation policy's marginals, (n, k)."""
    estimate = np.zeros_like(exact)
    for place in range(orders.shape[1]):
        np.add.at(estimate[:, place], orders[:, place], p * weights)
    return float(np.abs(estimate - exact).max())


@pytest.mark.parametrize("logging", [fr.Uniform(), fr.PlackettLuce(2.0), fr.EpsilonGreedy(0.5)])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (4, 2), (5, 3), (5, 5), (6, 4)])
def test_weights_give_every_additive_reward_back(logging: fr.Policy, n: int, k: int) -> None:
    rng = np.random.default_rng(n * 10 + k)
    old, new = rng.standard_normal(n), rng.standard_normal(n)
    orders, p = ranking_law(old, k, logging)
    inverse = slate_inverse(old, logging, k)
    for policy in POLICIES:
        weights = pseudo_inverse_weights(orders, inverse, new, policy)
        exact = enumerated(new, policy, k)
        assert additive_error(weights, orders, p, exact) < 1e-10
        if n > 2:  # the wrong policy's weights do not
            other = pseudo_inverse_weights(orders, inverse, -new, fr.PlackettLuce(0.5))
            assert additive_error(other, orders, p, exact) > 1e-3


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (3, 1), (5, 2), (6, 3), (5, 5), (25, 2)])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_closed_form_equals_the_numeric_one(n: int, k: int, policy: fr.Policy) -> None:
    """Epsilon-greedy that always explores is uniform, and is inverted numerically."""
    scores = np.random.default_rng(n).standard_normal(n)
    orders, _ = ranking_law(scores, k, fr.Uniform())
    closed = pseudo_inverse_weights(orders, slate_inverse(scores, fr.Uniform(), k), scores, policy)
    explores = slate_inverse(scores, fr.EpsilonGreedy(1.0 - 2.0**-53), k)
    assert explores.matrix is not None
    np.testing.assert_allclose(
        closed, pseudo_inverse_weights(orders, explores, scores, policy), atol=1e-9
    )


@pytest.mark.parametrize("spread", [2.0, 6.0, 10.0])
def test_weights_of_a_peaked_logging_law(spread: float) -> None:
    """The evaluation policy wants exactly what logging hardly shows: weights reach 1e9."""
    old = np.array([0.0, 0.1, 0.45, 0.8, 1.0]) * spread
    orders, p = ranking_law(old, 2, fr.PlackettLuce())
    inverse = slate_inverse(old, fr.PlackettLuce(), 2)
    weights = pseudo_inverse_weights(orders, inverse, -old, fr.PlackettLuce())
    exact = enumerated(-old, fr.PlackettLuce(), 2)
    assert additive_error(weights, orders, p, exact) < 1e-8


@pytest.mark.parametrize("spread", [1.0, 8.0, 9.1, 20.0, 1e6])
def test_a_logging_law_too_peaked_for_float64_is_refused(spread: float) -> None:
    scores = np.array([0.0, 4.0, 18.0, 32.0, 40.0]) * spread
    inverse = slate_inverse(scores, fr.PlackettLuce(), 2)
    assert inverse.matrix is not None
    with pytest.raises(ValueError, match="policy: shows items at places where the logging law"):
        pseudo_inverse_weights([[0, 1]], inverse, -scores, fr.PlackettLuce())
    weights = pseudo_inverse_weights([[4, 3]], inverse, scores, fr.PlackettLuce())
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_what_logging_never_shows_cannot_be_weighted() -> None:
    inverse = slate_inverse(SPREAD, fr.Deterministic(), 2)
    best = [np.argsort(-SPREAD)[:2]]
    same = pseudo_inverse_weights(best, inverse, SPREAD, fr.Deterministic())
    np.testing.assert_allclose(same, 1.0, rtol=1e-12)
    for policy in (fr.Uniform(), fr.EpsilonGreedy(0.1)):
        with pytest.raises(ValueError, match="policy: shows items at places where the logging"):
            pseudo_inverse_weights(best, inverse, SPREAD, policy)


@pytest.mark.parametrize("logging", [fr.Uniform(), fr.PlackettLuce(2.0)])
def test_filters_and_short_rankings(logging: fr.Policy) -> None:
    eligible = np.array([True, False, True, True, False, True])
    left = np.flatnonzero(eligible)
    for k in (2, 4, 9):
        inverse = slate_inverse(SPREAD, logging, k, eligible)
        assert inverse.places == min(k, 4)
        orders, _ = ranking_law(SPREAD, k, logging, eligible)
        weights = pseudo_inverse_weights(orders, inverse, -SPREAD, fr.PlackettLuce())
        without = slate_inverse(SPREAD[left], logging, k)
        np.testing.assert_allclose(
            weights,
            pseudo_inverse_weights(
                np.searchsorted(left, orders), without, -SPREAD[left], fr.PlackettLuce()
            ),
            rtol=1e-9,
            atol=1e-12,
        )


def test_uniform_logging_has_no_limit_but_that_of_the_marginals() -> None:
    """The mean weight over the log is 1: within 6 standard errors, missed with chance 2e-9."""
    n, k = 3000, 10
    scores = np.random.default_rng(0).standard_normal(n)
    inverse = slate_inverse(scores, fr.Uniform(), k)
    orders = np.array([np.random.default_rng(i).permutation(n)[:k] for i in range(300)])
    for policy in (fr.PlackettLuce(), fr.EpsilonGreedy(0.9)):
        weights = pseudo_inverse_weights(orders, inverse, scores, policy)
        assert abs(weights.mean() - 1) < 6 * weights.std() / math.sqrt(len(weights))


# What is refused

NO_POLICY: Any = "uniform"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: position_marginals(np.zeros(10_001), fr.PlackettLuce(), 1),
            "scores: got 10001 eligible",
        ),
        (lambda: position_marginals([[0.0]], fr.Uniform(), 1), r"scores: expected shape \(1,\)"),
        (lambda: position_marginals([0.0, np.nan], fr.Uniform(), 1), "scores: row 1: must be fin"),
        (lambda: position_marginals([True], fr.Uniform(), 1), "scores: expected real numbers"),
        (lambda: position_marginals([0.0], fr.Uniform(), 0), "k: must be at least 1, got 0"),
        (lambda: position_marginals([0.0], NO_POLICY, 1), "policy: expected one of fastrank's"),
        (lambda: position_marginals([0.0], fr.Uniform(), 1, [0, 1]), "items: row 1: .* got 1"),
        (lambda: position_marginals([0.0], fr.Uniform(), 1, [-2]), "items: row 0: .* got -2"),
        (lambda: position_marginals([0.0], fr.Uniform(), 1, [0.5]), "items: expected integers"),
        (lambda: position_marginals([0.0], fr.Uniform(), 1, [0], [1]), "eligible: expected bool"),
        (
            lambda: position_marginals([0.0], fr.Uniform(), 1, [0], [True, True]),
            "eligible: expected bool",
        ),
        (lambda: ranking_law(np.zeros(1001), 2, fr.Uniform()), "k: got .* rankings of"),
        (lambda: ranking_law(np.zeros(2), 2, NO_POLICY), "policy: expected one of fastrank's"),
        (
            lambda: slate_inverse(np.zeros(501), fr.PlackettLuce(), 2),
            "501 eligible items x 2 places",
        ),
        (lambda: slate_inverse(np.zeros(13), fr.PlackettLuce(), 6), "at most 1000000 rankings"),
        (lambda: slate_inverse([0.0], fr.Uniform(), 1, [False]), "eligible: expected at least one"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("orders", "scores", "message"),
    [
        ([[0, 1]], SPREAD, r"orders: expected shape \(b, 3\), got \(1, 2\)"),
        ([[0, 2, 4], [0, 1, 4]], SPREAD, "orders: row 1: item 1 was not eligible"),
        ([[0, 2, 4], [4, 2, 4]], SPREAD, r"orders: row 1: got an item twice, \[4, 2, 4\]"),
        ([[0, 2, 4]], SPREAD[:5], "scores: expected at least 6"),
        ([[0.0, 2.0, 4.0]], SPREAD, "orders: expected integers"),
    ],
)
def test_refused_weights(orders: list[list[int]], scores: Array, message: str) -> None:
    inverse = slate_inverse(SPREAD, fr.Uniform(), 3, np.arange(6) != 1)
    with pytest.raises(ValueError, match=message):
        pseudo_inverse_weights(orders, inverse, scores, fr.Uniform())


def test_a_million_items_are_no_limit_where_there_is_a_closed_form() -> None:
    scores = np.zeros(20_000)
    scores[7] = 1.0
    assert position_marginals(scores, fr.Uniform(), 1, [0])[0, 0] == 1 / 20_000
    assert position_marginals(scores, fr.Deterministic(), 2, [7, 0]).tolist() == [[1, 0], [0, 1]]
    few = np.arange(20_000) < 50
    assert position_marginals(scores, fr.PlackettLuce(), 1, [7], few)[0, 0] > 1 / 50
