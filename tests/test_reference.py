"""The oracle against truths worked out by hand, and the textbook procedures against the oracle."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import N_DRAWS, SPREAD, assert_ordered_law, assert_well_formed

import fastrank as fr
from fastrank import reference

ANY_POLICY = [fr.Deterministic(), fr.PlackettLuce(0.7), fr.EpsilonGreedy(0.3), fr.Uniform()]


# The oracle


def test_plackett_luce_by_hand() -> None:
    """Weights 1, 2, 3, 4: P(3, 1, 0) = 4/10 * 2/6 * 1/4."""
    scores = np.log([1.0, 2.0, 3.0, 4.0]) * 0.5
    got = reference.log_propensities(scores, [3, 1, 0], fr.PlackettLuce(0.5))
    assert np.exp(got) == pytest.approx([4 / 10, 2 / 6, 1 / 4], rel=1e-14)
    assert reference.log_norm(scores, 0.5) == pytest.approx(np.log(10.0), rel=1e-14)


def test_epsilon_greedy_by_hand() -> None:
    """Four items, k = 2, epsilon = 1/5: the best is shown first with 17/20, then 13/15."""
    scores = [4.0, 3.0, 2.0, 1.0]
    rankings, p = reference.ranking_law(scores, 2, fr.EpsilonGreedy(0.2))
    law = {tuple(row): value for row, value in zip(rankings.tolist(), p.tolist(), strict=True)}
    assert law[0, 1] == pytest.approx(float(Fraction(221, 300)), rel=1e-14)
    assert law[0, 3] == pytest.approx(float(Fraction(17, 20) * Fraction(1, 15)), rel=1e-14)
    assert law[2, 0] == pytest.approx(float(Fraction(1, 20) * Fraction(13, 15)), rel=1e-14)
    assert law[2, 3] == pytest.approx(float(Fraction(1, 20) * Fraction(1, 15)), rel=1e-14)


def test_uniform_and_deterministic_by_hand() -> None:
    scores = [1.0, 3.0, 3.0, 2.0]
    uniform = reference.log_propensities(scores, [3, 0, 1], fr.Uniform())
    assert np.exp(uniform) == pytest.approx([1 / 4, 1 / 3, 1 / 2], rel=1e-14)
    # Ties go to the earlier item; what the policy never shows is removed all the same.
    best_first = reference.log_propensities(scores, [1, 3, 2, 0], fr.Deterministic())
    assert best_first.tolist() == [0.0, -np.inf, 0.0, 0.0]


@pytest.mark.parametrize("policy", ANY_POLICY, ids=repr)
def test_the_law_sums_to_one(policy: fr.Policy) -> None:
    eligible = np.array([True, True, False, True, True, True])
    for k in (0, 1, 3, 9):
        rankings, p = reference.ranking_law(SPREAD, k, policy, eligible)
        assert p.sum() == pytest.approx(1.0, rel=1e-12)
        assert_well_formed(rankings, len(SPREAD), k, eligible)
        for ranking, probability in zip(rankings[:20], p[:20], strict=True):
            logs = reference.log_propensities(SPREAD, ranking, policy, eligible)
            assert np.exp(logs.sum()) == pytest.approx(probability, rel=1e-12)


@pytest.mark.parametrize("policy", ANY_POLICY, ids=repr)
def test_unknown_ineligible_and_repeated_remove_nothing(policy: fr.Policy) -> None:
    eligible = np.array([True, True, True, False, True, True])
    plain = reference.log_propensities(SPREAD, [4, 2], policy, eligible)
    mixed = reference.log_propensities(SPREAD, [4, 3, -1, 4, 6, 2], policy, eligible)
    assert np.isneginf(mixed[[1, 2, 3, 4]]).all()
    assert mixed[[0, 5]].tolist() == plain.tolist()


@pytest.mark.parametrize("policy", ANY_POLICY, ids=repr)
def test_an_empty_ranking_has_no_propensities(policy: fr.Policy) -> None:
    assert reference.log_propensities(SPREAD, [], policy).shape == (0,)


@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1000.0, 1e30])
def test_extremes_stay_log_probabilities(temperature: float, scale: float) -> None:
    scores = np.array([1.0, -1.0, 0.0, 0.0]) * scale
    policy = fr.PlackettLuce(temperature)
    logs = reference.log_propensities(scores, [1, 2, 0, 3], policy)
    assert (logs <= 0.0).all()
    assert logs[3] == 0.0
    # Once the head and the bottom are gone two ties are left: one half each, whatever the scale.
    tail = reference.log_propensities(scores, [0, 1, 2, 3], policy)
    assert tail[2] == pytest.approx(np.log(0.5), rel=1e-14)


def test_log_norm_of_nothing_eligible() -> None:
    assert reference.log_norm(SPREAD, 1.0, np.zeros(len(SPREAD), bool)) == -np.inf


def test_scores_add_the_bias() -> None:
    rng = np.random.default_rng(0)
    vectors, query, bias = rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=5)
    expected = [sum(v * q for v, q in zip(row, query, strict=True)) for row in vectors]
    np.testing.assert_allclose(reference.scores(vectors, query), expected, rtol=1e-13)
    np.testing.assert_allclose(reference.scores(vectors, query, bias), expected + bias, rtol=1e-13)


# The textbook procedures: same law as the oracle's (error budget: see support.py)


TEXTBOOK: dict[str, tuple[Callable[..., list[str]], fr.Policy, tuple[float, ...]]] = {
    "softmax": (reference.textbook_softmax, fr.PlackettLuce(0.7), (0.7,)),
    "softmax_removal": (reference.textbook_softmax_removal, fr.PlackettLuce(0.7), (0.7,)),
    "gumbel": (reference.textbook_gumbel, fr.PlackettLuce(0.7), (0.7,)),
    "epsilon_greedy": (reference.textbook_epsilon_greedy, fr.EpsilonGreedy(0.3), (0.3,)),
}


@pytest.mark.parametrize("name", TEXTBOOK)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_textbook_procedures_follow_the_law(name: str, k: int) -> None:
    procedure, policy, arguments = TEXTBOOK[name]
    values = SPREAD[:5]
    scores = {f"item {i}": s for i, s in enumerate(values)}
    rng = random.Random(7)
    orders = np.array(
        [
            [int(item.split()[1]) for item in procedure(scores, k, *arguments, rng)]
            for _ in range(N_DRAWS)
        ]
    )
    assert_well_formed(orders, len(values), k)
    assert_ordered_law(orders, values, k, policy)
    assert len(scores) == 5  # the caller's dictionary is left as it was


def test_textbook_deterministic_sorts() -> None:
    scores = {"a": 1.0, "b": 3.0, "c": 3.0, "d": -1.0}
    assert reference.textbook_deterministic(scores, 3) == ["b", "c", "a"]
    assert reference.textbook_deterministic(scores, 9) == ["b", "c", "a", "d"]


def test_textbook_softmax_holds_beyond_any_gap() -> None:
    scores = (1000.0, 0.0, 0.0, 0.0)
    rng = random.Random(7)
    items = dict(enumerate(scores))
    orders = np.array([reference.textbook_softmax(items, 2, 1.0, rng) for _ in range(N_DRAWS)])
    assert_ordered_law(orders, scores, 2, fr.PlackettLuce(1.0))


def test_textbook_softmax_removal_stops_where_it_says() -> None:
    """The documented limit: weights that underflowed are no law at all."""
    items = dict(enumerate((1000.0, 0.0, 0.0, 0.0)))
    rng = random.Random(7)
    drawn = [reference.textbook_softmax_removal(items, 2, 1.0, rng) for _ in range(100)]
    assert all(order == [0, 3] for order in drawn)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("procedure", "dtype", "k"),
    [  # every two of them together
        (reference.numpy_choice, np.float32, 1),
        (reference.numpy_choice, np.float64, 3),
        (reference.numpy_choice, np.float32, 5),
        (reference.numpy_gumbel, np.float64, 1),
        (reference.numpy_gumbel, np.float32, 3),
        (reference.numpy_gumbel, np.float64, 5),
    ],
)
def test_numpys_best_follows_the_law_in_order(
    procedure: Callable[..., npt.NDArray[np.int64]], dtype: type, k: int
) -> None:
    values = SPREAD[:5]
    vectors: npt.NDArray[Any] = np.array(values)[:, None].astype(dtype)
    query: npt.NDArray[Any] = np.ones(1).astype(dtype)
    rng = np.random.default_rng(7)
    orders = np.array([procedure(vectors, query, k, 0.7, rng) for _ in range(N_DRAWS)])
    assert orders.dtype == np.int64
    assert_ordered_law(orders, values, k, fr.PlackettLuce(0.7))


@pytest.mark.parametrize("procedure", [reference.numpy_choice, reference.numpy_gumbel])
def test_numpys_best_never_pads(procedure: Callable[..., npt.NDArray[np.int64]]) -> None:
    vectors = np.array(SPREAD, np.float32)[:, None]
    order = procedure(vectors, np.ones(1, np.float32), 10, 1.0, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(len(SPREAD)))


def test_numpy_choice_needs_k_probabilities_above_zero() -> None:
    vectors = np.array([[1000.0], [0.0], [0.0]], np.float32)
    with pytest.raises(ValueError, match="Fewer non-zero entries"):
        reference.numpy_choice(vectors, np.ones(1, np.float32), 2, 1.0, np.random.default_rng(0))
