"""Lists from thousands of items, whose masses are not added up item by item: by group, of the few
that are allowed, from scores that are kept. Each propensity is the oracle's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from support import Array

import fastrank as fr
from fastrank import reference, rulemass
from fastrank.reference import RuleMasks

N = 3_000
K = 8
RNG = np.random.default_rng(11)
SCORES = RNG.standard_normal((N, 1)).astype(np.float32)
COLUMNS = {
    **{f"g{count}": RNG.integers(count, size=N) for count in (3, 16, 150)},
    "large": np.where(np.arange(N) % 1000 < 997, 0, 1 + np.arange(N)),  # and 9 of their own
    "new": np.arange(N) % 50 == 0,
}
CATALOG = fr.Catalog(np.arange(N), SCORES, features=COLUMNS)
STEEP, FLAT = fr.PlackettLuce(0.2), fr.PlackettLuce(3.0)
CASES: dict[str, dict[str, Any]] = {
    **{f"cap {name}": {"cap": {name: 2}} for name in ("g3", "g16", "g150", "large")},
    **{f"window {name}": {"window": {name: (1, 4)}} for name in ("g16", "g150", "large")},
    "two columns": {"cap": {"g16": 1}, "window": {"large": (2, 5)}},
    "share": {"cap": {"g16": 2}, "at_least": {"new": 4}},
    "set": {"window": {"g16": (1, 3)}, "pin_where": {2: "new", 5: "new"}},
    "pin": {"cap": {"g16": 1}, "pin": {4: 17}},
    "decay": {"decay": {"g16": 0.01}},
}


@cache
def groups(name: str) -> list[set[int]]:
    """Of each item."""
    return [{value} for value in COLUMNS[name].tolist()]


def oracle(rules: dict[str, Any], order: Array, policy: fr.Policy, after: list[int]) -> Array:
    """By masks alone."""
    new = COLUMNS["new"].astype(bool)
    named = {name for kind in ("cap", "window", "decay") for name in rules.get(kind, ())}
    masks = RuleMasks(
        groups={name: groups(name) for name in named},
        cap=rules.get("cap", {}),
        window=rules.get("window", {}),
        decay=rules.get("decay", {}),
        at_least=[(new, count) for count in rules.get("at_least", {}).values()],
        pin={place - 1: item for place, item in rules.get("pin", {}).items()},
        pin_where=dict.fromkeys([place - 1 for place in rules.get("pin_where", {})], new),
        after=after,
    )
    return reference.log_propensities(CATALOG.scores([1.0]), order, policy, None, masks, K)


def off(name: str, policy: fr.Policy, seeds: range) -> float:
    """By how much propensities of lists and of their second pages miss the oracle's at most."""
    worst = 0.0
    for seed in seeds:
        shown: list[int] = []
        for page in (1, 2):
            rules = CASES[name]
            own: dict[str, Any] = {
                "rules": fr.Rules(**rules),
                "policy": policy,
                "after": shown or None,
            }
            if page == 2 and any(item in shown for item in rules.get("pin", {}).values()):
                break
            ranking = CATALOG.rank([1.0], K, seed=100 * page + seed, **own)
            if not len(ranking):
                break
            exact = oracle(rules, ranking.item_ids, policy, shown)
            judged = CATALOG.log_propensities([1.0], ranking.item_ids, **own)
            for found in (ranking.log_propensities, judged):
                worst = float(np.max([worst, np.abs(found - exact).max()]))
            shown = ranking.item_ids.tolist()
    return worst


@pytest.mark.sampled
@pytest.mark.parametrize("policy", [STEEP, FLAT, fr.BestFirst(2, STEEP)], ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_propensities_are_those_of_the_oracle(name: str, policy: fr.Policy) -> None:
    assert off(name, policy, range(2)) < 5e-6


def forgets_known(blocked: rulemass.Blocked, *args: Any) -> float:
    """Items of the order are blocked with their groups, too."""
    blocked._known = {}
    return LOG_REST(blocked, *args)


def forgets_the_rest(blocked: rulemass.Blocked, *args: Any) -> float:
    blocked._masses = np.zeros_like(blocked._masses)
    return LOG_REST(blocked, *args)


def of_all(masks: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the last one allows, for all."""
    return lambda regimes: masks(regimes[-1:])


LOG_REST = rulemass.Blocked.log_rest
BROKEN: dict[str, tuple[Any, str, Any, str, fr.Policy]] = {
    "known": (rulemass.Blocked, "log_rest", forgets_known, "window g16", STEEP),
    "rest": (rulemass.Blocked, "log_rest", forgets_the_rest, "window g16", FLAT),
    "allowed": (rulemass, "_allowed_by", of_all(rulemass._allowed_by), "window g16", FLAT),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_masses_that_lack_something_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, attribute, broken, name, policy = BROKEN[fault]
    assert off(name, policy, range(2)) < 5e-6
    monkeypatch.setattr(where, attribute, broken)
    assert not off(name, policy, range(2)) < 1e-3


class TestPasses:
    @pytest.mark.parametrize(
        "policy", [STEEP, fr.BestFirst(60, STEEP), fr.EpsilonGreedy(0.5)], ids=repr
    )
    def test_however_often_an_order_is_drawn_anew(self, policy: fr.Policy) -> None:
        """One pass over vectors, and one more whose scores are kept."""
        rules = fr.Rules(window={"g3": (1, 3)})
        ranking = CATALOG.rank([1.0], 120, policy=policy, rules=rules, seed=3)
        assert len(ranking) == 120
        assert ranking.n_scored is not None
        assert ranking.n_scored <= 2.5 * N

    def test_long_lists_of_what_decays(self) -> None:
        """Orders of decayed weights take over where others bring what is hardly ever accepted."""
        rules = fr.Rules(decay={"large": 1e-6})
        ranking = CATALOG.rank([1.0], 400, policy=FLAT, rules=rules, seed=3)
        assert len(ranking) == 400

    def test_few_that_are_left_are_scored_by_themselves(self) -> None:
        rules = fr.Rules(cap={"large": 1})
        ranking = CATALOG.rank([1.0], K, policy=STEEP, rules=rules, seed=3)
        assert ranking.n_scored is not None
        assert ranking.n_scored <= N + 300
