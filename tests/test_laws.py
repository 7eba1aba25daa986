"""Rankings follow their laws: every policy, sampler, instruction set, filter and chunking.

Error budget: see support.py. Each comparison fails a right library with probability 1e-9
over the choice of its seeds, which are fixed. `test_support.py` shows which mistakes each
guard used here detects at these numbers of draws.
"""

from __future__ import annotations

import numpy as np
import pytest
from support import (
    LAW_CASES,
    LIMIT,
    N_DRAWS,
    PANEL_CASES,
    POLICIES,
    SAMPLERS,
    SPREAD,
    LawCase,
    Scored,
    assert_first_position_law,
    assert_independent,
    assert_ordered_law,
    assert_well_formed,
    chi_square_p_value,
    heavy_tailed_scores,
    random_scored,
    scored,
)

import fastrank as fr
from fastrank import reference
from fastrank.policies import Sampler

PLACKETT_LUCE = {sampler: fr.PlackettLuce(1.0, sampler=sampler) for sampler in SAMPLERS}


def check_case(case: LawCase, policy: fr.Policy, n_draws: int = N_DRAWS) -> None:
    """Draw the case from a catalog and hold it against the oracle's law."""
    item = scored(case.scores)
    if isinstance(policy, fr.FlatTail):  # a call each, and test_flat_tail.py has all draws of it
        n_draws //= 3
    orders = item.draw(
        case.k,
        policy,
        100 if isinstance(policy, fr.Deterministic) else n_draws,
        exclude=case.exclude,
        allow=case.allow,
        bias=case.bias,
    )
    # The scores as the kernel has them: float32, with the call's bias added.
    scores = item.catalog.scores(item.query, bias=case.bias)
    eligible = item.eligible(case.exclude, case.allow)
    assert_well_formed(orders, len(scores), case.k, eligible)
    assert_ordered_law(orders, scores, case.k, policy, eligible)


# Small catalogs: every ordered ranking is a cell


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", LAW_CASES, ids=lambda case: case.name)
def test_ordered_law(isa: str, case: LawCase, policy: str) -> None:
    check_case(case, POLICIES[policy])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", PANEL_CASES, ids=lambda case: case.name)
def test_ordered_law_over_panels(isa: str, chunk_panels: int, case: LawCase, policy: str) -> None:
    """37 items: three panels, the last one not full, and three partials to merge."""
    check_case(case, POLICIES[policy])


@pytest.mark.parametrize("policy", POLICIES)
def test_the_catalogs_bias_and_the_calls_add_up(isa: str, policy: str) -> None:
    own, call = (0.5, -1.0, 0.0, 1.0, -0.5, 0.25), (1.0, 2.0, -1.0, 0.0, -2.0, 0.5)
    item = scored(SPREAD, bias=own)
    orders = item.draw(2, POLICIES[policy], N_DRAWS, bias=call)
    assert_ordered_law(orders, np.array(SPREAD) + own + call, 2, POLICIES[policy])


@pytest.mark.parametrize("policy", POLICIES)
def test_law_of_wide_vectors(isa: str, policy: str) -> None:
    """Scores from dot products of 19 dimensions instead of one."""
    item = random_scored(6, 19, seed=11)
    orders = item.draw(3, POLICIES[policy], N_DRAWS)
    assert_ordered_law(orders, item.scores, 3, POLICIES[policy])


@pytest.mark.parametrize("temperature", [0.05, 0.3, 5.0, 1e6])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_law_at_other_temperatures(sampler: Sampler, temperature: float) -> None:
    check_case(LawCase("spread", SPREAD, 2), fr.PlackettLuce(temperature, sampler=sampler))


@pytest.mark.parametrize("epsilon", [0.0, 0.02, 1.0])
def test_law_of_epsilon_greedy_at_its_ends(isa: str, epsilon: float) -> None:
    check_case(LawCase("spread", SPREAD, 3), fr.EpsilonGreedy(epsilon))


# Gaps: what is left after a head far above the rest is drawn by its own law


@pytest.mark.parametrize("gap", [40.0, 87.0, 104.0, 1000.0])
@pytest.mark.parametrize("head_at", [0, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tails_are_uniform_beyond_any_gap(
    isa: str, sampler: Sampler, head_at: int, gap: float
) -> None:
    scores = np.zeros(5)
    scores[head_at] = gap
    check_case(LawCase("gap", tuple(scores), 3), PLACKETT_LUCE[sampler])


@pytest.mark.sampled
@pytest.mark.parametrize("gap", [40.0, 87.0, 1000.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tails_keep_their_spread_beyond_any_gap(
    isa: str, chunk_panels: int, sampler: Sampler, gap: float
) -> None:
    """Two heads, each in a panel of its own, above 38 items that are not tied."""
    scores = np.random.default_rng(8).standard_normal(40).round(3)
    scores[[20, 39]] += gap
    item = scored(scores)
    orders = item.draw(4, PLACKETT_LUCE[sampler], N_DRAWS)
    assert set(orders[:, :2].ravel().tolist()) == {20, 39}
    tail = np.ones(40, np.bool_)
    tail[[20, 39]] = False
    assert_ordered_law(orders[:, 2:], item.scores, 2, PLACKETT_LUCE[sampler], tail)


@pytest.mark.sampled
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("score", "temperature"), [(1e30, 1e-6), (-1e30, 1e-6), (1e30, 1e6), (1e-30, 1e-6)]
)
def test_exact_ties_are_uniform_at_extreme_scores(
    isa: str, chunk_panels: int, sampler: Sampler, score: float, temperature: float
) -> None:
    """s / T = 1e36 swallows any Gumbel in float64, unless scores are compared before noise."""
    policy = fr.PlackettLuce(temperature, sampler=sampler)
    check_case(LawCase("ties", (score,) * 5, 2), policy)
    check_case(LawCase("ties over panels", (score,) * 34, 2), policy)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_small_gaps_at_large_scores(isa: str, sampler: Sampler) -> None:
    """Neighbouring float32 near 2^20 are 1/8 apart: their law is not that of ties."""
    scores = 2.0**20 + np.array([0.0, 0.5, 1.0, 0.125, 0.25])
    check_case(LawCase("large", tuple(scores), 2), PLACKETT_LUCE[sampler])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_small_gaps_at_small_temperatures(isa: str, sampler: Sampler) -> None:
    """Gaps of some T = 1e-4 at scores near 1: s / T must not be rounded to float32."""
    scores = 1.0 + np.array([0.0, 1e-4, 2e-4, -1e-4, 5e-5])
    check_case(LawCase("fine", tuple(scores), 2), fr.PlackettLuce(1e-4, sampler=sampler))


# Large catalogs: the first place

# It scans for every place, and its laws over small catalogs are held to everywhere else.
SLOW_SEQUENTIAL = [
    pytest.param(name, marks=pytest.mark.slow) if name == "sequential" else name
    for name in SAMPLERS
]


@pytest.fixture(scope="module")
def heavy_tailed() -> Scored:
    return scored(heavy_tailed_scores(20_000))


@pytest.mark.law
@pytest.mark.parametrize("sampler", SLOW_SEQUENTIAL)
@pytest.mark.parametrize("k", [1, 10])
def test_first_position_law(isa: str, heavy_tailed: Scored, sampler: Sampler, k: int) -> None:
    scores = heavy_tailed.scores
    n_draws = 1_000 if sampler == "sequential" else N_DRAWS  # O(kn) each
    orders = heavy_tailed.draw(k, PLACKETT_LUCE[sampler], n_draws)
    assert_well_formed(orders, len(scores), k)
    p = np.exp(scores.astype(np.float64) - reference.log_norm(scores, 1.0))
    assert_first_position_law(orders[:, 0], p)


@pytest.mark.law
@pytest.mark.parametrize("sampler", SLOW_SEQUENTIAL)
def test_first_position_law_of_a_filtered_catalog(
    isa: str, heavy_tailed: Scored, sampler: Sampler
) -> None:
    """The 200 likeliest items and a stretch of the catalog are excluded."""
    scores = heavy_tailed.scores
    exclude = np.union1d(np.argsort(-scores)[:200], np.arange(5_000, 5_500))
    k = 1 if sampler == "sequential" else 5
    orders = heavy_tailed.draw(k, PLACKETT_LUCE[sampler], N_DRAWS // 3, exclude=exclude)
    eligible = heavy_tailed.eligible(exclude=exclude)
    assert_well_formed(orders, len(scores), k, eligible)
    logs = scores.astype(np.float64) - reference.log_norm(scores, 1.0, eligible)
    assert_first_position_law(orders[:, 0], np.where(eligible, np.exp(logs), 0.0))


@pytest.mark.law
@pytest.mark.parametrize("direction", [1, -1], ids=["ascending", "descending"])
def test_first_position_law_of_a_sorted_catalog(isa: str, direction: int) -> None:
    """Sorted catalogs drive the threshold: many entries where scores ascend, few where not."""
    scores = np.sort(heavy_tailed_scores(5_000))[::direction]
    orders = scored(scores).draw(10, fr.PlackettLuce(0.5), N_DRAWS)
    p = np.exp(scores.astype(np.float64) / 0.5 - reference.log_norm(scores, 0.5))
    assert_first_position_law(orders[:, 0], p)


@pytest.mark.law
@pytest.mark.parametrize("policy", [fr.Uniform(), fr.EpsilonGreedy(1.0)], ids=repr)
def test_exploring_reaches_the_whole_catalog(isa: str, policy: fr.Policy) -> None:
    """20,000 items uniformly; also where most of them are excluded, which is drawn differently."""
    item = scored(heavy_tailed_scores(20_000))
    everywhere = item.draw(3, policy, N_DRAWS)
    for place in range(3):
        assert_first_position_law(everywhere[:, place], np.full(20_000, 1 / 20_000))
    exclude = np.flatnonzero(np.random.default_rng(1).random(20_000) < 0.8)
    eligible = item.eligible(exclude=exclude)
    orders = item.draw(3, policy, N_DRAWS // 12, exclude=exclude)
    assert_well_formed(orders, 20_000, 3, eligible)
    for place in range(3):
        assert_first_position_law(orders[:, place], eligible / eligible.sum())


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.large
@pytest.mark.parametrize("sampler", SLOW_SEQUENTIAL)
def test_a_million_small_items_beat_a_head_as_often_as_they_should(sampler: Sampler) -> None:
    """The winner among a million Gumbels lies where float32 uniforms end: 24 log 2 = 16.6.

    A head of 17.5 leaves a million items of score 0 a share of 2.4 %; with capped noise they
    win a third of that (`test_support.test_capped_gumbels_fail_the_tail_share`).
    """
    n_tail, head, n_draws = 1_000_000, 17.5, 5_000
    if sampler == "sequential":  # slow, and it draws no Gumbels: the same share with fewer items
        n_tail, head, n_draws = n_tail // 20, head - np.log(20.0), 3_000
    item = scored(np.append(np.zeros(n_tail), head))
    first = item.draw(1, PLACKETT_LUCE[sampler], n_draws)[:, 0]
    share = 1.0 / (1.0 + np.exp(head) / n_tail)
    wins = int((first != n_tail).sum())
    assert chi_square_p_value([wins, len(first) - wins], [share, 1.0 - share]) >= LIMIT


# Users of one batch, and neighbouring seeds


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "deterministic"])
def test_seeds_do_not_share_their_noise(policy: str) -> None:
    """Seeds 2i and 2i + 1, as neighbours of a batch, draw independently for equal users."""
    item = scored(SPREAD)
    first = item.draw(2, POLICIES[policy], 2 * N_DRAWS)[:, 0]
    law = reference.ranking_law(item.scores, 1, POLICIES[policy])
    assert_independent(first[0::2], first[1::2], law)


@pytest.mark.parametrize("bit", [16, 31, 32, 52, 63])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_bit_of_the_seed_counts(sampler: Sampler, bit: int) -> None:
    """Seeds that differ in one high bit draw independently."""
    item, n_draws = scored(SPREAD), N_DRAWS // 2
    policy = PLACKETT_LUCE[sampler]
    low = item.draw(1, policy, n_draws)[:, 0]
    high = item.draw(1, policy, n_draws, first_seed=1 << bit)[:, 0]
    assert_independent(low, high, reference.ranking_law(item.scores, 1, policy))
