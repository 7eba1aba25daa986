"""What one call returns: exact properties of rankings and propensities, without statistics."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from support import (
    MANY,
    POLICIES,
    SAMPLERS,
    SPREAD,
    Scored,
    assert_log_propensities,
    assert_well_formed,
    random_scored,
    same_ranking,
    scored,
)

import fastrank as fr
from fastrank import _native, _probes, reference
from fastrank.policies import Sampler

SIZES = [1, 2, 15, 16, 17, 33, 100, 1_000, 5_000]
STOCHASTIC = [name for name in POLICIES if name != "deterministic"]


# The record


@pytest.mark.parametrize("policy", POLICIES)
def test_a_ranking_says_all_about_itself(isa: str, policy: str) -> None:
    item = random_scored(100, 8, seed=1, bias=True)
    exclude = item.ids([3, 5])
    ranking = item.catalog.rank(item.query, k=7, policy=POLICIES[policy], seed=99, exclude=exclude)
    positions = item.positions(ranking.item_ids)
    assert len(ranking) == 7
    assert ranking.item_ids.dtype == np.int64
    assert ranking.scores.dtype == np.float32
    assert ranking.log_propensities.dtype == np.float64
    np.testing.assert_array_equal(ranking.scores, item.scores[positions])
    assert ranking.log_propensity == pytest.approx(ranking.log_propensities.sum(), rel=1e-15)
    assert ranking.seed == 99
    assert ranking.policy == POLICIES[policy]
    assert ranking.n_eligible == 98
    assert ranking.catalog_version == item.catalog.version
    assert ranking.propensity_kind == "exact"
    assert ranking.log_norm_error == 0.0
    if isinstance(ranking.policy, fr.PlackettLuce):
        expected = reference.log_norm(
            item.scores, ranking.policy.temperature, item.eligible(exclude=[3, 5])
        )
        assert ranking.log_norm == pytest.approx(expected, abs=1e-5)
    elif isinstance(ranking.policy, fr.FlatTail):
        left = item.eligible(exclude=[3, 5])
        changed = reference.flat_tail_scores(item.scores, ranking.policy, None, left)
        expected = reference.log_norm(changed, ranking.policy.temperature, left)
        assert ranking.log_norm == pytest.approx(expected, abs=1e-9)
    else:
        assert ranking.log_norm is None


@pytest.mark.parametrize("n", SIZES)
def test_scores_are_the_dot_products(isa: str, n: int) -> None:
    """Within the rounding of 64 fused steps and two additions on terms of this size."""
    rng = np.random.default_rng(n)
    vectors = rng.standard_normal((n, 64)).astype(np.float32)
    query = rng.standard_normal(64).astype(np.float32)
    own, call = rng.standard_normal((2, n)).astype(np.float32)
    catalog = fr.Catalog(np.arange(n), vectors, bias=own)
    size = np.abs(vectors) @ np.abs(query) + np.abs(own) + np.abs(call)
    for bias in (None, call):
        got = catalog.scores(query, bias=bias)
        assert got.shape == (n,)
        assert got.dtype == np.float32
        exact = reference.scores(vectors, query, own) + (0.0 if bias is None else bias)
        assert (np.abs(got - exact) <= 66 * 2.0**-24 * size).all()


# Determinism


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_call_gives_the_same_bits(isa: str, chunk_panels: int, policy: str) -> None:
    item = random_scored(500, 5, seed=2)
    first = item.catalog.rank(item.query, policy=POLICIES[policy], seed=7)
    again = item.catalog.rank(item.query, policy=POLICIES[policy], seed=7)
    assert same_ranking(first, again)


@pytest.mark.parametrize("policy", STOCHASTIC)
def test_other_seeds_give_other_rankings(isa: str, policy: str) -> None:
    item = random_scored(500, 5, seed=2)
    drawn = {
        tuple(item.catalog.rank(item.query, policy=POLICIES[policy], seed=seed).item_ids.tolist())
        for seed in range(20)
    }
    assert len(drawn) > 15


@pytest.mark.skipif(
    not {"v3", "v4"} <= set(_probes.isa_names()), reason="this CPU does not run both builds"
)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n", [*SIZES, 40_000])
def test_avx2_and_avx512_agree_bit_for_bit(policy: str, n: int) -> None:
    results = []
    before = _native.set_isa("v3")
    try:
        for name in ("v3", "v4"):
            _native.set_isa(name)
            # A catalog for each: a table in the cache of one would serve the other, too.
            item = random_scored(n, 13, seed=n, scale=3.0, bias=True)
            exclude = item.ids(np.arange(0, n, 7)) if n > 1 else None
            rankings = [
                item.catalog.rank(item.query, policy=POLICIES[policy], seed=seed, exclude=exclude)
                for seed in range(20)
            ]
            given = item.catalog.log_propensities(
                item.query, rankings[0].item_ids[::-1], policy=POLICIES[policy], exclude=exclude
            )
            results.append((item.scores.tobytes(), rankings, given.tobytes()))
    finally:
        _native.set_isa(before)
    (scores3, rankings3, given3), (scores4, rankings4, given4) = results
    assert scores3 == scores4
    assert given3 == given4
    assert all(same_ranking(a, b) for a, b in zip(rankings3, rankings4, strict=True))


# Deterministic


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("k", [1, 10, 200])
def test_deterministic_is_the_sorted_catalog(isa: str, chunk_panels: int, n: int, k: int) -> None:
    """Scores rounded to quarters: many ties, which go to the earlier position."""
    values = (np.random.default_rng(n).standard_normal(n) * 4).round() / 4
    item = scored(values)
    ranking = item.catalog.rank(item.query, k=k, policy=fr.Deterministic())
    expected = np.lexsort((np.arange(n), -values))[:k]
    assert item.positions(ranking.item_ids).tolist() == expected.tolist()
    assert ranking.log_propensities.tolist() == [0.0] * min(k, n)
    assert ranking.log_propensity == 0.0


@pytest.mark.parametrize("n", [1_000, 5_000, 40_000])
def test_sparse_ties_go_to_the_earlier_item(isa: str, chunk_panels: int, n: int) -> None:
    """Some twenty items share the best score: the pass, which does not visit items in the order
    of their positions, meets ties that must displace what it already holds."""
    for seed in range(20):
        values = (np.random.default_rng(seed).random(n) < 20 / n).astype(np.float32)
        item = scored(values)
        for k in (3, 10, 30):
            ranking = item.catalog.rank(item.query, k=k, policy=fr.Deterministic())
            expected = np.lexsort((np.arange(n), -values))[:k]
            assert item.positions(ranking.item_ids).tolist() == expected.tolist()


@pytest.mark.parametrize("score", [0.0, -0.0, -1e30, 1e30, 1e-40])
def test_all_tied_in_catalog_order(isa: str, chunk_panels: int, score: float) -> None:
    item = scored(np.full(70, score))
    ranking = item.catalog.rank(item.query, k=20, policy=fr.Deterministic())
    assert item.positions(ranking.item_ids).tolist() == list(range(20))


def test_zero_and_minus_zero_tie(isa: str) -> None:
    item = scored([-0.0, 0.0, -0.0, 0.0])
    ranking = item.catalog.rank(item.query, k=4, policy=fr.Deterministic())
    assert item.positions(ranking.item_ids).tolist() == [0, 1, 2, 3]


# Counts: shorter where there is less, never padded


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n", [1, 2, 16, 17, 31])
def test_k_beyond_the_catalog_gives_all_of_it(isa: str, policy: str, n: int) -> None:
    """Padding lanes score 0 here and every item -50: one of them let in would come first."""
    item = scored(np.full(n, -50.0))
    for seed in range(20):
        ranking = item.catalog.rank(item.query, k=100, policy=POLICIES[policy], seed=seed)
        positions = item.positions(ranking.item_ids)
        assert_well_formed(positions, n, 100)
        assert_log_propensities(ranking.log_propensities, item.scores, positions, POLICIES[policy])
        if isinstance(ranking.policy, fr.PlackettLuce):
            assert ranking.log_norm == pytest.approx(-50.0 / 0.8 + np.log(n), abs=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_eligible_gives_nothing(isa: str, policy: str) -> None:
    item = scored(MANY)
    none_left: list[dict[str, Any]] = [
        {"allow": []},
        {"exclude": item.catalog.item_ids},
        {"allow": [-99]},
    ]
    for filters in none_left:
        ranking = item.catalog.rank(item.query, k=5, policy=POLICIES[policy], seed=1, **filters)
        assert ranking.item_ids.shape == (0,)
        assert ranking.item_ids.dtype == np.int64
        assert ranking.scores.shape == (0,)
        assert ranking.log_propensities.shape == (0,)
        assert ranking.log_propensity == 0.0
        assert ranking.n_eligible == 0


@pytest.fixture(scope="module")
def a_million() -> Scored:
    return scored(np.random.default_rng(4).standard_normal(1_000_000))


@pytest.mark.sampled
@pytest.mark.large
@pytest.mark.parametrize("policy", POLICIES)
def test_ten_allowed_of_a_million(a_million: Scored, policy: str) -> None:
    item, n = a_million, len(a_million.catalog)
    allow = np.array([0, 5, 16, 31, 4_096, 77_777, 500_000, 500_001, 999_998, 999_999])
    eligible, values = item.eligible(allow=allow), item.scores
    for k in (1, 10, 20):
        for seed in range(3):
            ranking = item.catalog.rank(
                item.query, k=k, policy=POLICIES[policy], seed=seed, allow=item.ids(allow)
            )
            positions = item.positions(ranking.item_ids)
            assert ranking.n_eligible == 10
            assert_well_formed(positions, n, k, eligible)
            assert_log_propensities(
                ranking.log_propensities, values, positions, POLICIES[policy], eligible
            )


@pytest.mark.parametrize("policy", POLICIES)
def test_all_but_ten_of_many_excluded(isa: str, policy: str) -> None:
    n, kept = 3_000, np.array([2, 17, 400, 401, 402, 1_500, 2_047, 2_048, 2_990, 2_999])
    item = random_scored(n, 4, seed=6)
    exclude = np.setdiff1d(np.arange(n), kept)
    eligible = item.eligible(allow=kept)
    for seed in range(10):
        ranking = item.catalog.rank(
            item.query, k=12, policy=POLICIES[policy], seed=seed, exclude=item.ids(exclude)
        )
        positions = item.positions(ranking.item_ids)
        assert_well_formed(positions, n, 12, eligible)
        assert_log_propensities(
            ranking.log_propensities, item.scores, positions, POLICIES[policy], eligible
        )


# Propensities against the oracle


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n", SIZES)
def test_propensities_are_the_oracles(isa: str, chunk_panels: int, policy: str, n: int) -> None:
    """1e-5 with the kernel's own scores; with float64 dots, what the scores' error adds."""
    rng = np.random.default_rng(n)
    vectors = (rng.standard_normal((n, 32)) / np.sqrt(32)).astype(np.float32)
    query = (3 * rng.standard_normal(32)).astype(np.float32)
    catalog = fr.Catalog(np.arange(n), vectors)
    own, exact = catalog.scores(query), reference.scores(vectors, query)
    error = float(np.abs(own - exact).max())
    for k in (1, 10, 60):
        if n == 5_000 and k == 60 and policy == "sequential":
            continue  # slow, and says nothing new
        ranking = catalog.rank(query, k=k, policy=POLICIES[policy], seed=k)
        assert_well_formed(ranking.item_ids, n, k)
        logs = ranking.log_propensities
        assert_log_propensities(logs, own, ranking.item_ids, POLICIES[policy])
        if isinstance(ranking.policy, fr.PlackettLuce):
            assert ranking.log_norm == pytest.approx(reference.log_norm(own, 0.8), abs=1e-5)
            assert_log_propensities(
                logs, exact, ranking.item_ids, POLICIES[policy], tolerance=1e-5 + 2 * error / 0.8
            )


@pytest.mark.large
def test_propensities_of_a_million_items_are_the_oracles() -> None:
    """float32 partial sums over a million weights must not drift."""
    item = random_scored(1_000_000, 4, seed=1, scale=2.0)
    scores = item.scores
    for temperature in (0.05, 1.0, 1e3):
        expected = reference.log_norm(scores, temperature)
        for sampler in SAMPLERS:
            policy = fr.PlackettLuce(temperature, sampler=sampler)
            ranking = item.catalog.rank(item.query, k=5, policy=policy, seed=2)
            positions = item.positions(ranking.item_ids)
            assert_log_propensities(ranking.log_propensities, scores, positions, policy)
            assert ranking.log_norm == pytest.approx(expected, abs=1e-5)
        given = item.catalog.log_propensities(item.query, ranking.item_ids[::-1], policy=policy)
        assert_log_propensities(given, scores, positions[::-1], policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_given_rankings_have_the_propensities_that_rank_reported(
    isa: str, chunk_panels: int, policy: str
) -> None:
    item = random_scored(700, 6, seed=3, scale=2.0, bias=True)
    bias = np.random.default_rng(9).standard_normal(700).astype(np.float32)
    exclude, allow = item.ids(np.arange(0, 700, 9)), item.ids(np.arange(600))
    for filters in ({}, {"exclude": exclude}, {"allow": allow, "exclude": exclude}, {"bias": bias}):
        for seed in range(10):
            ranking = item.catalog.rank(
                item.query, k=12, policy=POLICIES[policy], seed=seed, **filters
            )
            given = item.catalog.log_propensities(
                item.query, ranking.item_ids, policy=POLICIES[policy], **filters
            )
            np.testing.assert_allclose(given, ranking.log_propensities, rtol=1e-12, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_probabilities_of_all_rankings_sum_to_one(isa: str, policy: str) -> None:
    item = scored(SPREAD)
    total = 0.0
    for order in permutations([0, 1, 2, 4, 5], 3):
        logs = item.catalog.log_propensities(
            item.query, item.ids(order), policy=POLICIES[policy], exclude=item.ids([3])
        )
        total += float(np.exp(logs.sum()))
    assert total == pytest.approx(1.0, abs=1e-6)


def test_plackett_luce_by_hand(isa: str) -> None:
    """Weights 1, 2, 3, 4: P(3, 1, 0) = 4/10 * 2/6 * 1/4."""
    item = scored(np.log([1.0, 2.0, 3.0, 4.0]) * 0.5)
    for sampler in SAMPLERS:
        logs = item.catalog.log_propensities(
            item.query, item.ids([3, 1, 0]), policy=fr.PlackettLuce(0.5, sampler=sampler)
        )
        assert np.exp(logs) == pytest.approx([4 / 10, 2 / 6, 1 / 4], rel=1e-6)


def test_epsilon_greedy_by_hand(isa: str) -> None:
    """Four items, k = 2, epsilon = 1/5: the best is shown first with 17/20, then 13/15."""
    item, policy = scored([4.0, 3.0, 2.0, 1.0]), fr.EpsilonGreedy(0.2)
    expected = {
        (0, 1): 221 / 300,
        (0, 3): 17 / 20 * 1 / 15,
        (2, 0): 1 / 20 * 13 / 15,
        (2, 3): 1 / 20 * 1 / 15,
    }
    for order, probability in expected.items():
        logs = item.catalog.log_propensities(item.query, item.ids(order), policy=policy)
        assert np.exp(logs.sum()) == pytest.approx(probability, rel=1e-12)
    reported = {}
    for seed in range(400):
        ranking = item.catalog.rank(item.query, k=2, policy=policy, seed=seed)
        order = tuple(item.positions(ranking.item_ids).tolist())
        reported[order] = np.exp(ranking.log_propensity)
    assert reported[0, 1] == pytest.approx(221 / 300, rel=1e-12)
    assert reported[0, 3] == pytest.approx(17 / 20 * 1 / 15, rel=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_unknown_ineligible_and_repeated_items_remove_nothing(isa: str, policy: str) -> None:
    item = random_scored(50, 3, seed=5)
    order = np.argsort(-item.scores)[[0, 3, 1, 7]]
    excluded = next(i for i in range(50) if i not in order)
    plain = item.catalog.log_propensities(
        item.query, item.ids(order), policy=POLICIES[policy], exclude=item.ids([excluded])
    )
    a, b, c, d = item.ids(order)
    mixed = item.catalog.log_propensities(
        item.query,
        [a, item.ids([excluded])[0], b, a, -1, c, 2**62, d, d],
        policy=POLICIES[policy],
        exclude=item.ids([excluded]),
    )
    assert np.isneginf(mixed[[1, 3, 4, 6, 8]]).all()
    np.testing.assert_allclose(mixed[[0, 2, 5, 7]], plain, rtol=1e-12, atol=1e-12)
    assert_log_propensities(
        plain, item.scores, order, POLICIES[policy], item.eligible(exclude=[excluded])
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("empty", [[], np.empty(0), np.empty(0, np.int64), np.empty(0, "U3")])
def test_an_empty_ranking_has_no_propensities(policy: str, empty: list[int]) -> None:
    item = scored(MANY)
    logs = item.catalog.log_propensities(item.query, empty, policy=POLICIES[policy])
    assert logs.shape == (0,)
    assert logs.dtype == np.float64


@pytest.mark.parametrize("policy", POLICIES)
def test_a_ranking_of_the_whole_catalog_ends_in_certainty(isa: str, policy: str) -> None:
    item = scored(MANY)
    ranking = item.catalog.rank(item.query, k=len(MANY), policy=POLICIES[policy], seed=3)
    assert ranking.log_propensities[-1] == 0.0
    given = item.catalog.log_propensities(item.query, ranking.item_ids, policy=POLICIES[policy])
    assert given[-1] == 0.0


# Extremes


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("temperature", [1e-6, 1e-4, 1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e-3, 1.0, 1e3, 1e10, 1e30])
def test_extremes_stay_log_probabilities(
    isa: str, sampler: Sampler, temperature: float, scale: float
) -> None:
    """Never nan, +inf or above 0, and the oracle's, over everything a caller may ask for."""
    rng = np.random.default_rng(12)
    policy = fr.PlackettLuce(temperature, sampler=sampler)
    values = (rng.standard_normal(40) * scale).astype(np.float32)
    for scores in (values, np.abs(values), -np.abs(values), np.sort(values)):
        item = scored(scores)
        own = item.scores
        for k in (1, 10, 40):
            ranking = item.catalog.rank(item.query, k=k, policy=policy, seed=k)
            positions = item.positions(ranking.item_ids)
            assert_well_formed(positions, 40, k)
            assert_log_propensities(ranking.log_propensities, own, positions, policy)
            assert ranking.log_norm is not None
            assert np.isfinite(ranking.log_norm)
            expected = reference.log_norm(own, temperature)
            assert ranking.log_norm == pytest.approx(expected, rel=1e-12, abs=1e-5)
            # The reverse of a likely ranking is about as unlikely as rankings get.
            given = item.catalog.log_propensities(item.query, ranking.item_ids[::-1], policy=policy)
            assert_log_propensities(given, own, positions[::-1], policy)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_item_with_all_the_mass(isa: str, sampler: Sampler) -> None:
    """log P of the certain item is a tiny negative number or 0, not a rounding above it."""
    scores = np.append(np.zeros(999), 30.0)
    item, policy = scored(scores), fr.PlackettLuce(1.0, sampler=sampler)
    ranking = item.catalog.rank(item.query, k=1, policy=policy, seed=0)
    assert item.positions(ranking.item_ids).tolist() == [999]
    # log(1 + 999 e^-30), to full relative precision: sums from the small end do not cancel.
    assert ranking.log_propensities[0] == pytest.approx(-np.log1p(999 * np.exp(-30.0)), rel=1e-5)


def test_bias_moves_the_law_as_vectors_would(isa: str) -> None:
    """A bias given to the call, to the catalog, or as one more dimension: one law."""
    rng = np.random.default_rng(2)
    vectors, query = rng.standard_normal((300, 5)).astype(np.float32), np.ones(5, np.float32)
    bias = rng.standard_normal(300).astype(np.float32)
    plain = fr.Catalog(np.arange(300), vectors)
    biased = fr.Catalog(np.arange(300), vectors, bias=bias)
    wider = fr.Catalog(np.arange(300), np.column_stack([vectors, bias]))
    order, policy = np.arange(0, 300, 20), fr.PlackettLuce(0.7)
    by_call = plain.log_propensities(query, order, policy=policy, bias=bias)
    by_catalog = biased.log_propensities(query, order, policy=policy)
    by_vector = wider.log_propensities(np.append(query, np.float32(1)), order, policy=policy)
    np.testing.assert_allclose(by_call, by_catalog, atol=1e-5)
    np.testing.assert_allclose(by_call, by_vector, atol=1e-5)


@pytest.mark.parametrize(("low", "temperature"), [(-1e6, 1e-6), (-1e8, 1e-6), (-1e30, 1.0)])
def test_an_unlikely_item_in_front_does_not_blur_the_places_before_it(
    isa: str, low: float, temperature: float
) -> None:
    """Its log-weight, -1e12 or less, must not be added to the mass and taken off again."""
    item = scored([0.0] * 5 + [low])
    policy = fr.PlackettLuce(temperature)
    order = np.array([0, 5, 1])
    given = item.catalog.log_propensities(item.query, item.ids(order), policy=policy)
    assert_log_propensities(given, item.scores, order, policy)
    assert given[0] == pytest.approx(-np.log(5.0), abs=1e-12)


@pytest.mark.parametrize("policy", [fr.Deterministic(), fr.EpsilonGreedy(0.0)], ids=repr)
def test_ties_beyond_one_heap_go_to_the_earlier_item(isa: str, policy: fr.Policy) -> None:
    """5,000 of 50,000 items tie for 25 places: the pilot, which looks ahead, keeps none of them."""
    values = np.where(np.random.default_rng(6).random(50_000) < 0.1, 0.0, -1.0)
    item = scored(values)
    ranking = item.catalog.rank(item.query, k=25, policy=policy)
    assert item.positions(ranking.item_ids).tolist() == np.flatnonzero(values == 0.0)[:25].tolist()
