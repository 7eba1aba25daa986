"""What rules cost: no more for windows that are wide, or pages that are long, than they hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import same_ranking

import fastrank as fr
from fastrank import reference, walk
from fastrank.reference import RuleMasks

N = 40_000
RNG = np.random.default_rng(0)
CATALOG = fr.Catalog(
    np.arange(N),
    RNG.standard_normal((N, 4)),
    features={"brand": [f"b{i % 40}" for i in range(N)]},
)
QUERY = RNG.standard_normal(4)


def cost(work: Callable[[], object]) -> float:
    """Processor time, the least of three."""
    found = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return max(min(found), 0.002)


@pytest.mark.parametrize("pins", [{}, {place: place for place in range(40, 90)}], ids=len)
def test_a_window_costs_what_is_in_it(pins: dict[int, int]) -> None:
    """Beyond the list there is nothing to look at."""

    def ranked(row: int) -> fr.Ranking:
        rules = fr.Rules(window={"brand": (3, row)}, pin=pins, on_empty="relax")
        return CATALOG.rank(QUERY, 60, policy=fr.PlackettLuce(), rules=rules, seed=1)

    assert same_ranking(ranked(1_000_000), ranked(200))
    assert cost(lambda: ranked(1_000_000)) < 5 * cost(lambda: ranked(200))


def test_a_repeated_item_of_pages_before_is_found_in_one_look() -> None:
    def refused(n: int) -> None:
        with pytest.raises(ValueError, match=f"after: {n - 1} is there twice"):
            CATALOG.rank(QUERY, 1, policy=fr.PlackettLuce(), after=[*range(n), n - 1])

    assert cost(lambda: refused(N)) < 16 * cost(lambda: refused(N // 8))


@pytest.mark.parametrize(("share", "most"), [(0.5, 60), (0.998, 100)])
def test_an_order_that_cannot_fill_the_places_is_short(share: float, most: int) -> None:
    """Of a group that has nearly all items one may be shown: what is left is drawn anew then."""
    features = {"group": np.arange(N) < share * N}
    catalog = fr.Catalog(range(N), RNG.standard_normal((N, 4)), features=features)
    ruled = catalog._bind_rules(fr.Rules(cap={"group": 1}), None, {}, catalog.features)
    assert ruled is not None
    assert 20 <= walk.ahead(10, ruled.bound) <= most


@pytest.mark.parametrize(
    ("said", "k", "least", "most"),
    [
        ({"window": {"large": (1, 2)}}, 10, 500, 1000),  # each comes again
        ({"window": {"large": (1, 40)}}, 10, 20, 100),
        ({"window": {"large": (1, 2)}, "cap": {"half": 2}}, 10, 500, 1000),
        ({"cap": {"half": 2, "other": 2}}, 10, 70, 100),  # one of four is in neither
        ({"decay": {"half": 0.5, "other": 0.5}}, 10, 70, 100),
    ],
)
def test_an_order_is_long_where_it_will_be_walked(
    said: dict[str, Any], k: int, least: int, most: int
) -> None:
    at = np.arange(N)
    features = {"large": at < 0.998 * N, "half": at % 2 == 0, "other": at % 4 < 2}
    catalog = fr.Catalog(range(N), RNG.standard_normal((N, 4)), features=features)
    ruled = catalog._bind_rules(fr.Rules(**said), None, {}, catalog.features)
    assert ruled is not None
    assert least <= walk.ahead(k, ruled.bound) <= most


def test_rules_of_many_small_groups_beside_others_take_one_pass() -> None:
    """Pairs of groups are too many to be summed up: items of the small ones are looked at alone."""
    features = {"seller": np.arange(N) % 800, "brand": np.arange(N) // 7 % 40}
    catalog = fr.Catalog(range(N), RNG.standard_normal((N, 4)), features=features)
    rules = fr.Rules(cap={"seller": 2}, window={"brand": (1, 5)})
    policy = fr.PlackettLuce(sampler="gumbel")
    scored = []
    for seed in range(20):
        n_scored = catalog.rank(QUERY, 10, policy=policy, rules=rules, seed=seed).n_scored
        assert n_scored is not None
        scored.append(n_scored)
    assert float(np.median(scored)) < 1.1 * N


@pytest.mark.parametrize(("groups", "summed"), [(400, True), (4_000, False)])
def test_a_pass_sums_up_groups_of_many_items_alone(groups: int, summed: bool) -> None:
    """If five of the groups have no more than n / 500 items, scoring these costs less."""
    catalog = fr.Catalog(
        range(N), RNG.standard_normal((N, 4)), features={"seller": np.arange(N) % groups}
    )
    ruled = catalog._bind_rules(fr.Rules(cap={"seller": 2}), None, {}, catalog.features)
    assert ruled is not None
    assert (ruled.bound.joint(10) is not None) == summed


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.05])
def test_small_groups_that_hold_nearly_all_of_the_mass(temperature: float) -> None:
    """No digits are lost where what their items leave is summed up by a pass of its own."""
    n = 20_000
    vectors = np.sort(RNG.standard_normal((n, 1)), axis=0)[::-1].astype(np.float32)
    catalog = fr.Catalog(range(n), vectors, features={"seller": np.arange(n) // 8})
    policy, rules = fr.PlackettLuce(temperature, sampler="gumbel"), fr.Rules(cap={"seller": 2})
    masks = RuleMasks(groups={"seller": [{at // 8} for at in range(n)]}, cap={"seller": 2})
    scores = catalog.scores(np.ones(1)).astype(np.float64)
    for seed in range(5):
        ranking = catalog.rank(np.ones(1), 10, policy=policy, rules=rules, seed=seed)
        true = reference.log_propensities(scores, ranking.item_ids, policy, None, masks, 10)
        np.testing.assert_allclose(ranking.log_propensities, true, rtol=1e-6, atol=1e-6)


def test_a_batch_costs_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what is drawn, which is made once here: no row looks at all others."""
    catalog = fr.Catalog(range(10), np.ones((10, 1)), features={"brand": [*"aabbccddee"]})
    rules, draw, made = fr.Rules(cap={"brand": 1}), walk.draw, list[Any]()

    def once(*given: Any) -> Any:
        if not made:
            made.append(draw(*given))
        return made[0]

    monkeypatch.setattr(walk, "draw", once)

    def ranked(b: int) -> None:
        seeds = range(b)
        catalog.rank_batch(np.ones((b, 1)), 1, policy=fr.PlackettLuce(), rules=rules, seeds=seeds)

    assert cost(lambda: ranked(8_000)) < 36 * cost(lambda: ranked(500))  # 16 times the rows
