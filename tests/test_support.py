"""The guards reject what is broken and pass what is right.

Without this a guard that compares nothing, or merges all its cells into one, would let
every sampler through unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, product

import broken
import numpy as np
import pytest
from support import (
    LAW_CASES,
    LIMIT,
    MANY,
    MIN_EXPECTED,
    N_DRAWS,
    SPREAD,
    Array,
    LawCase,
    Positions,
    assert_first_position_law,
    assert_independent,
    assert_law,
    assert_log_propensities,
    assert_ordered_law,
    assert_well_formed,
    chi_square_p_value,
    cover,
    heavy_tailed_scores,
    merge_small,
    order_counts,
)

import fastrank as fr
from fastrank import reference

Sampler = Callable[[np.random.Generator, Array, int, int], Positions]

PLACKETT_LUCE = fr.PlackettLuce(1.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_240_229)


# The chi-square itself


def test_p_values_are_uniform_under_the_law(rng: np.random.Generator) -> None:
    """2,000 multinomial samples: the 1 %, 10 %, 50 % quantiles of p within 5 standard errors.

    Chance of failing for a right helper: 6 one-sided tails at 5 sigma, 2e-6.
    """
    law = np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.009, 0.001])
    p_values = np.array(
        [chi_square_p_value(rng.multinomial(5_000, law), law) for _ in range(2_000)]
    )
    for level in (0.01, 0.1, 0.5):
        share = (p_values < level).mean()
        assert abs(share - level) < 5 * np.sqrt(level * (1 - level) / 2_000)


def test_p_value_of_a_known_table() -> None:
    # Two cells of 50 expected, 60 and 40 seen: chi-square 4 on 1 degree of freedom.
    assert chi_square_p_value([60, 40], [0.5, 0.5]) == pytest.approx(0.04550026, rel=1e-6)


def test_an_impossible_event_is_rejected_outright() -> None:
    assert chi_square_p_value([9_999, 1], [1.0, 0.0]) < LIMIT
    assert chi_square_p_value([9_999, 1], [1.0, 1e-20]) < LIMIT
    assert chi_square_p_value([10_000, 0], [1.0, 1e-20]) == 1.0


def test_small_cells_are_pooled_and_nothing_is_lost(rng: np.random.Generator) -> None:
    expected = rng.exponential(8.0, size=200)
    counts = rng.poisson(expected).astype(np.float64)
    cells, means = merge_small(counts, expected)
    assert cells.sum() == counts.sum()
    assert means.sum() == pytest.approx(expected.sum())
    assert (means >= MIN_EXPECTED).all()
    assert len(cells) > 20


def test_a_law_that_does_not_sum_to_one_is_no_law() -> None:
    with pytest.raises(AssertionError, match="sums to"):
        chi_square_p_value([1, 1], [0.5, 0.4])


def test_order_counts_finds_every_ranking() -> None:
    law = reference.ranking_law(SPREAD, 2, PLACKETT_LUCE)
    counts = order_counts(np.array([[3, 0], [5, 4], [3, 0]]), law)
    assert counts.sum() == 3
    assert counts[law[0].tolist().index([3, 0])] == 2
    assert counts[law[0].tolist().index([5, 4])] == 1
    with pytest.raises(AssertionError, match="impossible"):
        order_counts(np.array([[3, 3]]), law)
    with pytest.raises(AssertionError, match="3 places instead of 2"):
        order_counts(np.array([[3, 2, 1]]), law)


# Ordered laws


@pytest.mark.parametrize("sampler", [broken.gumbel_sort, broken.jumps])
@pytest.mark.parametrize("scores", [SPREAD, MANY, (-1.0, -3.0, -2.0, -5.0), (0.5,) * 5])
def test_right_samplers_pass(
    rng: np.random.Generator, sampler: Sampler, scores: tuple[float, ...]
) -> None:
    orders = sampler(rng, np.array(scores), 2, N_DRAWS)
    assert_well_formed(orders, len(scores), 2)
    assert_ordered_law(orders, scores, 2, PLACKETT_LUCE)


@pytest.mark.sampled
@pytest.mark.parametrize("case", LAW_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "policy", [fr.Deterministic(), PLACKETT_LUCE, fr.EpsilonGreedy(0.3), fr.Uniform()], ids=repr
)
def test_the_oracles_own_samplers_pass(
    rng: np.random.Generator, case: LawCase, policy: fr.Policy
) -> None:
    eligible = np.full(len(case.scores), case.allow is None)
    eligible[list(case.allow or ())] = True
    eligible[list(case.exclude or ())] = False
    scores = np.array(case.scores) + np.array(case.bias or 0.0)
    orders = np.array([reference.rank(scores, case.k, policy, rng, eligible) for _ in range(1_000)])
    assert_well_formed(orders, len(scores), case.k, eligible)
    assert_ordered_law(orders, scores, case.k, policy, eligible)


@pytest.mark.parametrize(
    ("sampler", "scores", "k"),
    [
        (broken.hotter, SPREAD, 3),
        (broken.plain_key_for_entrants, SPREAD, 3),
        (broken.plain_key_for_entrants, tuple(sorted(MANY)), 2),
        (broken.first_k_stay, SPREAD, 3),
        (broken.best_score_first, SPREAD, 3),
        (broken.with_replacement, SPREAD, 3),
        (broken.shares_of_scores, (-1.0, -3.0, -2.0, -5.0, -1.5), 3),
        (broken.running_sums_float64, (40.0, 0.0, 0.0, 0.0, 0.0), 2),
        (broken.running_sums_float64, (1000.0, 0.0, 0.0, 0.0, 0.0), 2),
        (broken.weights_float32, (110.0, 0.0, 0.0, 0.0, 0.0), 2),
        (broken.weights_float32, (1000.0, 0.0, 0.0, 0.0, 0.0), 2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_wrong_samplers_fail_the_ordered_law(
    rng: np.random.Generator, sampler: Sampler, scores: tuple[float, ...], k: int
) -> None:
    orders = sampler(rng, np.array(scores), k, N_DRAWS)
    with pytest.raises(AssertionError, match=r"p = |impossible"):
        assert_ordered_law(orders, scores, k, PLACKETT_LUCE)


def test_ties_to_the_later_item_fail(rng: np.random.Generator) -> None:
    scores = (0.5, 0.5, 0.1)
    with pytest.raises(AssertionError, match="p = "):
        assert_ordered_law(
            broken.later_of_ties(rng, np.array(scores), 2, 100), scores, 2, fr.Deterministic()
        )


def test_exploring_that_spares_the_best_item_fails(rng: np.random.Generator) -> None:
    policy = fr.EpsilonGreedy(0.35)
    orders = broken.exploring_spares_the_best(rng, np.array(SPREAD), 3, N_DRAWS, policy.epsilon)
    with pytest.raises(AssertionError, match="p = "):
        assert_ordered_law(orders, SPREAD, 3, policy)


# Tails and large catalogs


def first_by_gumbel(
    rng: np.random.Generator, scores: Array, temperature: float, n_draws: int
) -> Positions:
    return np.array(
        [np.argmax(scores / temperature + rng.gumbel(size=len(scores))) for _ in range(n_draws)]
    )


@pytest.mark.parametrize(("temperature", "right"), [(1.0, True), (1.1, False)])
def test_first_position_guard(rng: np.random.Generator, temperature: float, *, right: bool) -> None:
    scores = heavy_tailed_scores(2_000).astype(np.float64)
    p = np.exp(scores - reference.log_norm(scores, 1.0))
    first = first_by_gumbel(rng, scores, temperature, N_DRAWS)
    if right:
        assert_first_position_law(first, p)
    else:
        with pytest.raises(AssertionError, match="mass deciles"):
            assert_first_position_law(first, p)


def test_first_position_guard_sees_a_stretch_that_is_missed(rng: np.random.Generator) -> None:
    scores = np.zeros(2_000)
    first = rng.integers(0, 1_900, size=N_DRAWS)  # the last chunk never enters
    with pytest.raises(AssertionError, match=r"mass deciles|catalog stretches"):
        assert_first_position_law(first, np.exp(scores - reference.log_norm(scores, 1.0)))


def test_capped_gumbels_fail_the_tail_share(rng: np.random.Generator) -> None:
    """The head of `test_laws.test_a_million_small_items_beat_a_head_as_often_as_they_should`."""
    head, n_tail, n_draws = 17.5, 1_000_000, 5_000
    share = 1.0 / (1.0 + np.exp(head) / n_tail)
    right = rng.random(n_draws) < share
    assert chi_square_p_value([right.sum(), (~right).sum()], [share, 1 - share]) >= LIMIT
    wrong = broken.capped_gumbel_winners(rng, head, n_tail, n_draws)
    assert chi_square_p_value([wrong.sum(), (~wrong).sum()], [share, 1 - share]) < LIMIT


# Users, filters, shapes


def test_one_noise_for_two_users_fails(rng: np.random.Generator) -> None:
    scores = np.array(SPREAD)
    law = reference.ranking_law(scores, 2, PLACKETT_LUCE)
    first = broken.gumbel_sort(rng, scores, 2, N_DRAWS)
    second = broken.gumbel_sort(rng, scores, 2, N_DRAWS)
    assert_independent(first[:, 0], second[:, 0], law)
    shared = broken.one_noise_for_two_users(rng, scores, 2, N_DRAWS)
    for orders in shared:
        assert_law(orders, law)  # each user on its own looks right
    with pytest.raises(AssertionError, match="independent"):
        assert_independent(shared[0][:, 0], shared[1][:, 0], law)


def test_ignoring_the_filter_fails(rng: np.random.Generator) -> None:
    scores = np.array(SPREAD)
    eligible = np.array([True, True, True, True, False, True])
    orders = broken.ignores_the_filter(rng, scores, 3, N_DRAWS, eligible)
    with pytest.raises(AssertionError, match="ineligible"):
        assert_well_formed(orders, len(scores), 3, eligible)
    with pytest.raises(AssertionError, match="impossible"):
        assert_ordered_law(orders, scores, 3, PLACKETT_LUCE, eligible)


def test_padding_fails(rng: np.random.Generator) -> None:
    scores = np.array(SPREAD[:4])
    orders = broken.pads_with_item_zero(rng, scores, 9, 10)
    with pytest.raises(AssertionError, match="9 places instead of 4"):
        assert_well_formed(orders, 4, 9)
    with pytest.raises(AssertionError, match="9 places instead of 4"):
        assert_ordered_law(orders, scores, 9, PLACKETT_LUCE)


def test_repeated_and_unknown_positions_fail() -> None:
    with pytest.raises(AssertionError, match="twice"):
        assert_well_formed([[0, 1, 0]], 4, 3)
    with pytest.raises(AssertionError, match="outside"):
        assert_well_formed([[0, -1, 2]], 4, 3)


# Propensities


def wrong_propensities() -> Iterator[tuple[str, Array]]:
    """Log-propensities of the order (4, 0, 2) where item 1 is excluded, each wrong in its way."""
    scores = np.array(SPREAD)
    order = [4, 0, 2]
    eligible = np.arange(len(scores)) != 1
    right = reference.log_propensities(scores, order, PLACKETT_LUCE, eligible)
    yield "of the unfiltered law", reference.log_propensities(scores, order, PLACKETT_LUCE)
    yield (
        "of another temperature",
        reference.log_propensities(scores, order, fr.PlackettLuce(1.1), eligible),
    )
    yield (
        "not conditional",
        scores[order] - reference.log_norm(scores, 1.0, eligible),
    )
    yield "an evicted item's weight lost", right + np.array([0.0, 0.0, 2e-5])
    yield "a rounding above 0", np.array([1e-17, right[1], right[2]])
    yield "nan", np.array([np.nan, right[1], right[2]])
    yield "never", np.array([right[0], right[1], -np.inf])
    yield "probabilities", np.exp(right)
    yield "of the sorted ranking", right[[1, 0, 2]]


@pytest.mark.parametrize(
    "wrong", [pytest.param(values, id=name) for name, values in wrong_propensities()]
)
def test_wrong_propensities_fail(wrong: Array) -> None:
    eligible = np.arange(len(SPREAD)) != 1
    with pytest.raises(AssertionError):
        assert_log_propensities(wrong, SPREAD, [4, 0, 2], PLACKETT_LUCE, eligible)


def test_right_propensities_pass() -> None:
    eligible = np.arange(len(SPREAD)) != 1
    right = reference.log_propensities(SPREAD, [4, 1, 2], PLACKETT_LUCE, eligible)
    assert np.isneginf(right[1])  # ineligible
    assert_log_propensities(right - 1e-6, SPREAD, [4, 1, 2], PLACKETT_LUCE, eligible)


# What `make test` runs of a product


@pytest.mark.parametrize(("strength", "fewest"), [(1, 5), (2, 20)])
def test_a_cover_has_what_the_product_has(strength: int, fewest: int) -> None:
    cells = [*product("abcd", (0, 1, 2), (True, False), "xyzuv")]
    holed = [cell for cell in cells if cell[:2] != ("a", 0)]  # a pair that no cell has
    for each in (cells, holed):
        chosen = cover(each, strength)
        parts = [{*combinations(enumerate(cell), strength)} for cell in each]
        assert set.union(*parts) == set.union(*(parts[at] for at in chosen))
        assert fewest <= len(chosen) < 1.5 * fewest, "of 120"


@pytest.mark.parametrize("cells", [[], [(), ()], [(1,), (2,), (2,)], [*product((1, 2), (3, 4))]])
def test_all_pairs_of_two_factors_are_all_cells(cells: list[tuple[int, ...]]) -> None:
    assert cover(cells) == {*range(len(cells))}


def test_a_cell_that_alone_has_a_pair_is_in_the_cover() -> None:
    cells = [*product((0, 1), (0, 1), (0, 1)), (2, 0, 0)]
    assert 8 in cover(cells)
    assert len(cover(cells)) == 5
