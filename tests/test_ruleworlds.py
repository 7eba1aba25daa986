"""The worlds of rules: that they are what they say, and that their rules matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ruleworlds import KINDS, PAIRS, SINGLES, Kinds, World, world, worlds
from support import Law

from fastrank import reference
from fastrank.reference import RuleMasks


def test_a_world_is_the_same_for_the_same_seed() -> None:
    kinds = ("cap", "pin", "at_least")
    assert repr(world(kinds, 3)) == repr(world(kinds, 3))
    assert len({repr(each) for each in worlds(kinds, 20)}) == 20


def test_a_world_has_the_rules_that_it_is_drawn_for_and_no_others() -> None:
    for kinds in [(), *SINGLES, *PAIRS]:
        for each in worlds(kinds, 3):
            has = {*each.rules, *each.call} & set(KINDS)
            assert has == set(kinds)
            assert all({**each.rules, **each.call}[kind] for kind in kinds)
            said = str(each.rules)
            assert all(name in said for name in [*each.sets, *each.call.get("params", ())])


@pytest.mark.parametrize("kinds", [*SINGLES, KINDS[:6], ("pin_where", "at_least", "boost")])
def test_sets_are_what_the_language_says(kinds: Kinds) -> None:
    for each in worlds(kinds, 20):
        for text, mask in each.sets.items():
            said = reference.expression_scores(
                text, np.zeros(len(mask)), each.features, each.call.get("params")
            )
            assert (said != 0.0).tolist() == mask.tolist(), text


def test_shares_are_apart_and_of_no_capped_column() -> None:
    for each in worlds(("cap", "at_least"), 40):
        sets = [mask for mask, _ in each.masks.at_least]
        assert (np.sum(sets, axis=0) <= 1).all()
        assert sum(each.rules["at_least"].values()) <= each.k
        for text in each.rules["at_least"]:
            assert not any(column in text for column in each.rules["cap"])


def test_the_catalog_is_the_oracles_where_there_are_no_rules() -> None:
    for each in worlds((), 60):
        given = {name: each.call.get(name) for name in ("exclude", "allow")}
        got = each.catalog().log_propensities([1.0], each.ids, policy=each.policy, **given)
        expected = each.log_propensities(range(len(each.ids)))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=str(each))


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_rules_matter(kind: str) -> None:
    """Most worlds have another law without the rule."""
    drawn = list(worlds((kind,), 40))
    other = [each for each in drawn if not _alike(each.law(), _without(each, kind).law())]
    assert len(other) > 20


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["cap", "window", "at_least", "pin_where"])
def test_places_come_out_empty(kind: str) -> None:
    drawn = list(worlds((kind,), 80))
    short = [each for each in drawn if (each.law()[0] < 0).any()]
    relaxed = [
        each
        for each in drawn
        if each.masks.on_empty == "relax"
        and (replace(each, masks=replace(each.masks, on_empty="stop")).law()[0] < 0).any()
    ]
    assert len(short) >= 3
    assert len(relaxed) >= 5


def _without(each: World, kind: str) -> World:
    match kind:
        case "where":
            return replace(each, eligible=np.ones(len(each.ids), np.bool_))
        case "boost" | "boost_score":
            return replace(each, boosted=each.scores)
    nothing: dict[str, Any] = {kind: getattr(RuleMasks(), kind)}
    return replace(each, masks=replace(each.masks, **nothing))


def _alike(one: Law, other: Law) -> bool:
    return one[0].tolist() == other[0].tolist() and np.allclose(one[1], other[1], rtol=1e-9)
