"""Positions beyond 2^24, where float32 and 24-bit arithmetic on indices would fail."""

from __future__ import annotations

import numpy as np
import pytest
from support import POLICIES, SAMPLERS, assert_log_propensities, assert_well_formed

import fastrank as fr
from fastrank.policies import Sampler

pytestmark = pytest.mark.large

N = 2**24 + 100
LAST = np.array([2**24 - 1, 2**24, 2**24 + 1, 2**24 + 50, 2**24 + 98, N - 1])


@pytest.fixture(scope="module")
def catalog() -> fr.Catalog:
    """About 130 MB of ids and 65 MB of vectors; the last items score highest."""
    values = np.zeros((N, 1), np.float32)
    values[LAST, 0] = [10.0, 20.0, 15.0, 30.0, 25.0, 28.0]
    return fr.Catalog(np.arange(N), values)


QUERY = np.ones(1, np.float32)
BEST = LAST[[3, 5, 4, 1, 2, 0]].tolist()


@pytest.mark.slow
@pytest.mark.sampled
def test_deterministic_finds_them_in_order(isa: str, catalog: fr.Catalog) -> None:
    ranking = catalog.rank(QUERY, 8, policy=fr.Deterministic())
    assert ranking.item_ids.tolist() == [*BEST, 0, 1]


@pytest.mark.sampled
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_plackett_luce_finds_them_in_order(catalog: fr.Catalog, sampler: Sampler) -> None:
    """At T = 1/50 another order has a probability below e^-50."""
    policy = fr.PlackettLuce(0.02, sampler=sampler)
    ranking = catalog.rank(QUERY, 6, policy=policy, seed=1)
    assert ranking.item_ids.tolist() == BEST
    assert ranking.log_propensity == pytest.approx(0.0, abs=1e-5)
    logs = catalog.log_propensities(QUERY, BEST, policy=policy)
    np.testing.assert_allclose(logs, ranking.log_propensities, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_filters_reach_them(catalog: fr.Catalog, policy: str) -> None:
    eligible = np.zeros(N, np.bool_)
    eligible[LAST[1:]] = True
    scores = catalog.scores(QUERY)
    ranking = catalog.rank(QUERY, 9, policy=POLICIES[policy], seed=2, allow=LAST, exclude=LAST[:1])
    assert_well_formed(ranking.item_ids, N, 9, eligible)
    # The oracle over the eligible items alone: the others play no part.
    few = LAST[1:]
    order = np.searchsorted(few, ranking.item_ids)
    assert_log_propensities(ranking.log_propensities, scores[few], order, POLICIES[policy])


def test_uniform_reaches_the_end(catalog: fr.Catalog) -> None:
    """40 draws of 50 items: the chance that none lies in the last sixteenth is 1e-56."""
    batch = catalog.rank_batch(
        np.ones((40, 1), np.float32), 50, policy=fr.Uniform(), seeds=range(40)
    )
    assert (batch.item_ids >= N - N // 16).any()
    assert batch.n_eligible.tolist() == [N] * 40
