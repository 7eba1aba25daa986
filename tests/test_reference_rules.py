"""The oracle's rules against what follows from them by hand.

Four items of weights 1, 2, 3 and 4; two of brand a, two of brand b. Places count from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from ruleworlds import KINDS, PAIRS, SINGLES, Kinds, World, triples, worlds

import fastrank as fr
from fastrank import reference
from fastrank.reference import RuleMasks

SCORES = np.log([1.0, 2.0, 3.0, 4.0])
SOFTMAX = fr.PlackettLuce()
ANY_POLICY = [
    fr.Deterministic(),
    SOFTMAX,
    fr.EpsilonGreedy(0.3),
    fr.Uniform(),
    fr.FlatTail(1.0, m=2, factor=0.5),
    fr.BestFirst(1, SOFTMAX),
    fr.BestFirst(1, fr.Uniform()),
]
NONE = 9  # a position that no item has


def each(texts: str) -> list[set[str]]:
    """The groups of items that are in one each."""
    return [{text} for text in texts.split()]


BRANDS = {"brand": each("a a b b")}


def of(*items: int, n: int = 4) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(n), items)


def law(
    rules: RuleMasks | None,
    k: int,
    policy: fr.Policy = SOFTMAX,
    eligible: npt.ArrayLike | None = None,
    scores: npt.ArrayLike = SCORES,
) -> dict[tuple[int, ...], float]:
    """Probabilities of the rankings that occur, each without the places that it does not reach."""
    rankings, p = reference.ranking_law(scores, k, policy, eligible, rules)
    found = {
        tuple(i for i in ranking if i >= 0): value
        for ranking, value in zip(rankings.tolist(), p.tolist(), strict=True)
    }
    assert len(found) == len(p)
    assert sum(found.values()) == pytest.approx(1.0, rel=1e-12)
    return {ranking: value for ranking, value in found.items() if value > 0.0}


def p_of(order: Sequence[int], rules: RuleMasks, k: int | None = None, **more: Any) -> list[float]:
    more = {"scores": SCORES, "policy": SOFTMAX, **more}
    logs = reference.log_propensities(order=order, rules=rules, k=k, **more)
    return [round(p, 12) for p in np.exp(logs).tolist()]


def close(expected: dict[tuple[int, ...], float]) -> Any:
    return pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("policy", ANY_POLICY, ids=repr)
def test_no_rules_change_nothing(policy: fr.Policy) -> None:
    eligible = of(0, 1, 2, 3, 4, n=6)
    scores = [0.5, 2.0, 2.0, -1.0, 0.0, 3.0]
    for k in (0, 1, 3, 9):
        plain, ruled = (
            reference.ranking_law(scores, k, policy, eligible, rules)
            for rules in (None, RuleMasks())
        )
        assert plain[0].tolist() == ruled[0].tolist()
        assert plain[1].tolist() == ruled[1].tolist()
        drawn, alike = (
            reference.rank(scores, k, policy, np.random.default_rng(k), eligible, rules)
            for rules in (None, RuleMasks())
        )
        assert drawn.tolist() == alike.tolist()
    # Eight places of five items: the last one is behind those that there are items for.
    order = [4, 5, -1, 4, NONE, 2, NONE, 0]
    assert (
        reference.log_propensities(scores, order, policy, eligible).tolist()
        == reference.log_propensities(scores, order, policy, eligible, RuleMasks(), 8).tolist()
    )


# Caps


def test_a_cap_leaves_what_has_room() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1})
    assert law(rules, 2) == close(
        {
            (0, 2): 1 / 10 * 3 / 7,
            (0, 3): 1 / 10 * 4 / 7,
            (1, 2): 2 / 10 * 3 / 7,
            (1, 3): 2 / 10 * 4 / 7,
            (2, 0): 3 / 10 * 1 / 3,
            (2, 1): 3 / 10 * 2 / 3,
            (3, 0): 4 / 10 * 1 / 3,
            (3, 1): 4 / 10 * 2 / 3,
        }
    )
    assert law(rules, 4) == law(rules, 2)  # the list ends where nothing has room


def test_an_item_in_several_groups_needs_room_in_each_and_one_in_none_needs_none() -> None:
    groups: dict[str, Any] = {"genres": [{"x", "y"}, {"x"}, {"y"}, ()]}
    rules = RuleMasks(groups=groups, cap={"genres": 1})
    found = law(rules, 4)
    assert set(found) == {
        *((0, 3), (3, 0)),
        *((1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)),
    }
    assert found[1, 2, 3] == pytest.approx(2 / 10 * 3 / 7, rel=1e-12)


def test_two_caps_hold_at_once() -> None:
    groups = {**BRANDS, "colour": each("red blue red blue")}
    rules = RuleMasks(groups=groups, cap={"brand": 1, "colour": 1})
    assert set(law(rules, 4)) == {(0, 3), (3, 0), (1, 2), (2, 1)}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (fr.Deterministic(), {(3, 1): 1.0}),
        (
            fr.Uniform(),
            dict.fromkeys(((0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (3, 0), (2, 1), (3, 1)), 1 / 8),
        ),
        (
            fr.EpsilonGreedy(0.4),
            {
                (3, 1): 0.7 * 0.8,
                (3, 0): 0.7 * 0.2,
                (2, 1): 0.1 * 0.8,
                (2, 0): 0.1 * 0.2,
                (1, 3): 0.1 * 0.8,
                (1, 2): 0.1 * 0.2,
                (0, 3): 0.1 * 0.8,
                (0, 2): 0.1 * 0.2,
            },
        ),
        (fr.BestFirst(1, SOFTMAX), {(3, 0): 1 / 3, (3, 1): 2 / 3}),
    ],
    ids=repr,
)
def test_every_policy_draws_among_what_is_left(
    policy: fr.Policy, expected: dict[tuple[int, ...], float]
) -> None:
    assert law(RuleMasks(groups=BRANDS, cap={"brand": 1}), 2, policy) == close(expected)


def test_the_best_left_is_the_earlier_of_ties() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1})
    assert law(rules, 2, fr.Deterministic(), scores=[1.0] * 4) == {(0, 2): 1.0}


def test_a_flat_tail_has_its_candidates_from_all_that_is_eligible() -> None:
    """Weights 8 and 4 of the candidates, 2 of the others; item 0 was shown, item 1 is capped."""
    rules = RuleMasks(groups={"brand": each("a a b c d")}, cap={"brand": 1}, after=[0], pin={1: 4})
    scores = np.log([16.0, 8.0, 4.0, 3.0, 1.0])
    found = law(rules, 2, fr.FlatTail(1.0, m=2, factor=0.5), scores=scores)
    assert found == close({(2, 4): 4 / 6, (3, 4): 2 / 6})


# Windows


def test_a_window_lets_a_group_come_again() -> None:
    rules = RuleMasks(groups=BRANDS, window={"brand": (1, 2)})
    found = law(rules, 4)
    assert found[0, 2, 1, 3] == pytest.approx(1 / 10 * 3 / 7, rel=1e-12)
    assert len(found) == 8
    wide = law(RuleMasks(groups=BRANDS, window={"brand": (1, 3)}), 4)
    assert {len(ranking) for ranking in wide} == {2}


def test_two_in_three_places_in_a_row() -> None:
    groups = {"brand": each("a a a a b")}
    found = law(RuleMasks(groups=groups, window={"brand": (2, 3)}), 5, scores=[0.0] * 5)
    # a a is followed by b; and then two more can be a, since a b a has two.
    assert {tuple("aaaab"[i] for i in ranking) for ranking in found} == {
        *(("a", "a", "b", "a", "a"), ("a", "b", "a", "a"), ("b", "a", "a")),
    }


def test_windows_look_ahead_to_named_pins() -> None:
    """Item 1, of brand a, is pinned to the third place: so no a at the second."""
    rules: dict[str, Any] = {"groups": BRANDS, "window": {"brand": (1, 2)}, "pin": {2: 1}}
    stopped = law(RuleMasks(**rules), 3)
    assert stopped == close(
        {
            (0, 2, 1): 1 / 8 * 3 / 7,
            (0, 3, 1): 1 / 8 * 4 / 7,
            (2,): 3 / 8,  # 3 is of its brand, 0 of the pin's
            (3,): 4 / 8,
        }
    )
    relaxed = law(RuleMasks(**rules, on_empty="relax"), 3)
    assert relaxed[2, 0, 1] == pytest.approx(3 / 8 * 1 / 5, rel=1e-12)
    assert relaxed[2, 3, 1] == pytest.approx(3 / 8 * 4 / 5, rel=1e-12)


def test_windows_look_to_both_sides_at_once() -> None:
    """a, then a place, then a pinned: a third a there would make three in a row."""
    groups = {"brand": each("a a a b")}
    rules = RuleMasks(groups=groups, window={"brand": (2, 3)}, pin={2: 0})
    found = law(rules, 3)
    assert set(found) == {(1, 3, 0), (2, 3, 0), (3, 1, 0), (3, 2, 0)}
    assert found[1, 3, 0] == pytest.approx(2 / 9, rel=1e-12)


def test_windows_do_not_look_ahead_to_set_pins() -> None:
    rules = RuleMasks(groups=BRANDS, window={"brand": (1, 2)}, pin_where={1: of(0, 1)})
    found = law(rules, 2)
    assert found[0, 1] == pytest.approx(1 / 10, rel=1e-12)  # which overrule them, too
    assert found[2, 0] == pytest.approx(3 / 10 * 1 / 3, rel=1e-12)


# Shares


def test_a_share_takes_the_last_places_that_it_needs() -> None:
    found = law(RuleMasks(at_least=[(of(0), 1)]), 2)
    assert found[3, 0] == pytest.approx(4 / 10, rel=1e-12)
    assert found[0, 3] == pytest.approx(1 / 10 * 4 / 9, rel=1e-12)
    assert set(found) == {(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)}


def test_two_shares_take_places_together() -> None:
    both = law(RuleMasks(at_least=[(of(0), 1), (of(1), 1)]), 2)
    assert both == close({(0, 1): 1 / 3, (1, 0): 2 / 3})
    three = law(RuleMasks(at_least=[(of(0), 1), (of(1), 1)]), 3)
    assert three[3, 1, 0] == pytest.approx(4 / 10 * 2 / 3, rel=1e-12)
    assert three[0, 3, 1] == pytest.approx(1 / 10 * 4 / 9, rel=1e-12)


def test_a_share_of_the_places_that_there_are_items_for() -> None:
    rules = RuleMasks(at_least=[(of(0, 1), 1)])
    assert law(rules, 9, eligible=of(0, 3)) == close({(0, 3): 1 / 5, (3, 0): 4 / 5})
    # Of two places with three owed, none of which is there: nothing may stand.
    greedy = RuleMasks(at_least=[(of(0, 1), 3)])
    assert law(greedy, 3, eligible=of(2, 3)) == {(): 1.0}
    assert law(greedy, 3, eligible=of(1, 2, 3)) == {(1,): 1.0}


def test_named_pins_of_a_set_are_not_owed() -> None:
    found = law(RuleMasks(at_least=[(of(0), 1)], pin={1: 0}), 2)
    assert found == close({(1, 0): 2 / 9, (2, 0): 3 / 9, (3, 0): 4 / 9})


def test_the_places_of_pins_are_not_free() -> None:
    found = law(RuleMasks(at_least=[(of(0, 1), 1)], pin={1: 3}), 2)
    assert found == close({(0, 3): 1 / 3, (1, 3): 2 / 3})


def test_items_at_set_pins_count_once_shown() -> None:
    first = law(RuleMasks(at_least=[(of(0, 1), 1)], pin_where={0: of(1, 2)}), 2)
    assert first[1, 3] == pytest.approx(2 / 5 * 4 / 8, rel=1e-12)
    assert first[2, 0] == pytest.approx(3 / 5 * 1 / 3, rel=1e-12)
    assert (2, 3) not in first
    # To come they do not, and their place is not free: one more is shown before it.
    later = law(RuleMasks(at_least=[(of(0, 1), 1)], pin_where={1: of(0, 1)}), 2)
    assert later == close({(0, 1): 1 / 3, (1, 0): 2 / 3})


def test_a_share_and_a_cap() -> None:
    """Item 3 at the first place leaves no b for the share, and item 0 is all that it lacks."""
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1}, at_least=[(of(0, 2), 1)])
    found = law(rules, 2)
    assert found[3, 0] == pytest.approx(4 / 10, rel=1e-12)
    assert found[0, 3] == pytest.approx(1 / 10 * 4 / 7, rel=1e-12)
    assert law(rules, 2, eligible=of(1, 2, 3))[3,] == pytest.approx(4 / 9, rel=1e-12)


# Pins


@pytest.mark.parametrize("policy", ANY_POLICY, ids=repr)
def test_a_pinned_item_is_certain_and_stands_nowhere_else(policy: fr.Policy) -> None:
    rules = RuleMasks(pin={0: 1, 2: 0})
    found = law(rules, 3, policy)
    assert {(ranking[0], ranking[2]) for ranking in found} == {(1, 0)}
    logs = reference.log_propensities(SCORES, [1, 2, 0], policy, rules=rules)
    assert logs[[0, 2]].tolist() == [0.0, 0.0]


def test_pins_beyond_the_places_play_no_part() -> None:
    assert law(RuleMasks(pin={2: 0}), 2) == law(None, 2)
    assert law(RuleMasks(pin={2: 0}), 9, eligible=of(0, 3)) == law(None, 9, eligible=of(0, 3))
    later = RuleMasks(pin={3: 1}, after=[0])  # three items are left for the page
    assert law(later, 9) == close(law(None, 9, eligible=of(1, 2, 3)))
    capped = RuleMasks(groups=BRANDS, cap={"brand": 1}, pin={3: 0}, pin_where={3: of(0)})
    assert law(capped, 2) == law(RuleMasks(groups=BRANDS, cap={"brand": 1}), 2)


def test_a_pin_that_an_earlier_page_showed_plays_no_part() -> None:
    rules = RuleMasks(pin={1: 0}, after=[0])
    assert law(rules, 2) == close(law(None, 2, eligible=of(1, 2, 3)))
    # Its place is free: of two places owed one, the first need not be of the set.
    share = RuleMasks(pin={1: 0}, after=[0], at_least=[(of(1), 1)])
    assert law(share, 2)[3, 1] == pytest.approx(4 / 9, rel=1e-12)


@pytest.mark.parametrize("after", [[], [0]])
def test_a_pinned_item_that_filters_leave_out_is_refused(after: list[int]) -> None:
    rules = RuleMasks(pin={7: 0}, after=after)
    with pytest.raises(ValueError, match=r"^pin: .* place 7 is not eligible: 0$"):
        reference.ranking_law(SCORES, 2, SOFTMAX, of(1, 2, 3), rules)
    with pytest.raises(ValueError, match=r"^pin: "):
        reference.log_propensities(SCORES, [], SOFTMAX, of(1, 2, 3), rules)


def test_named_pins_count_for_caps_from_the_start_and_overrule_them() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1}, pin={1: 3})
    assert law(rules, 2) == close({(0, 3): 1 / 3, (1, 3): 2 / 3})
    both = RuleMasks(groups=BRANDS, cap={"brand": 1}, pin={1: 3, 2: 2})
    assert law(both, 3) == close({(0, 3, 2): 1 / 3, (1, 3, 2): 2 / 3})
    assert law(both, 4) == law(both, 3)


def test_a_set_pin_draws_among_its_set_by_weights_as_ever() -> None:
    found = law(RuleMasks(pin_where={1: of(0, 1, 3)}), 2)
    assert found[2, 0] == pytest.approx(3 / 10 * 1 / 7, rel=1e-12)
    assert found[3, 1] == pytest.approx(4 / 10 * 2 / 3, rel=1e-12)
    assert law(RuleMasks(pin_where={0: of(0, 1)}), 1, fr.EpsilonGreedy(0.4)) == close(
        {(0,): 0.2, (1,): 0.8}
    )


def test_set_pins_overrule_caps_shares_and_decay() -> None:
    rules = RuleMasks(
        groups={**BRANDS, "colour": [{"red"}, {"red"}, (), ()]},
        cap={"brand": 1},
        decay={"colour": 0.5},
        at_least=[(of(2), 1)],
        pin={0: 0},
        pin_where={1: of(1, 3)},
    )
    assert law(rules, 3) == close({(0, 1, 2): 2 / 6, (0, 3): 4 / 6})


def test_reserved_items_are_of_no_set_pin() -> None:
    assert law(RuleMasks(pin={1: 3}, pin_where={0: of(2, 3)}), 2) == {(2, 3): 1.0}
    assert law(RuleMasks(pin={1: 3}, pin_where={0: of(3)}), 2) == {(): 1.0}
    relaxed = law(RuleMasks(pin={1: 3}, pin_where={0: of(3)}, on_empty="relax"), 2)
    assert relaxed == close({(0, 3): 1 / 6, (1, 3): 2 / 6, (2, 3): 3 / 6})


# Where nothing is allowed


def test_a_list_that_ends_keeps_the_pins_that_it_reaches() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1}, pin={0: 3, 3: 2}, at_least=[(of(1), 1)])
    # Both b are pinned: an a comes second, and nothing third; the pin below is not reached.
    assert law(rules, 4) == close({(3, 0): 1 / 3, (3, 1): 2 / 3})


def test_shares_are_dropped_first() -> None:
    rules: dict[str, Any] = {"groups": BRANDS, "cap": {"brand": 1}, "at_least": [(of(0), 1)]}
    assert law(RuleMasks(**rules), 2, eligible=of(1, 2, 3)) == close(
        {(1,): 2 / 9, (2,): 3 / 9, (3,): 4 / 9}
    )
    assert law(RuleMasks(**rules, on_empty="relax"), 2, eligible=of(1, 2, 3)) == close(
        {
            (1, 2): 2 / 9 * 3 / 7,
            (1, 3): 2 / 9 * 4 / 7,
            (2, 1): 3 / 9,  # the cap holds
            (3, 1): 4 / 9,
        }
    )


def test_windows_hold_where_shares_alone_are_in_the_way() -> None:
    rules = RuleMasks(
        groups=BRANDS, window={"brand": (1, 2)}, at_least=[(of(1), 1)], on_empty="relax"
    )
    found = law(rules, 2, eligible=of(0, 2, 3))
    assert found[0, 2] == pytest.approx(1 / 8 * 3 / 7, rel=1e-12)
    assert found[2, 0] == pytest.approx(3 / 8, rel=1e-12)


def test_then_windows_then_caps() -> None:
    groups = {"brand": each("a a a a"), "colour": each("red blue red blue")}
    rules = RuleMasks(groups=groups, window={"brand": (1, 2)}, cap={"colour": 1}, on_empty="relax")
    found = law(rules, 4)
    # After red, by the colours' cap a blue, whatever the window; then anything.
    assert found[0, 1, 2, 3] == pytest.approx(1 / 10 * 2 / 6 * 3 / 7, rel=1e-12)
    assert found[2, 3, 1, 0] == pytest.approx(3 / 10 * 4 / 6 * 2 / 3, rel=1e-12)
    assert (0, 2, 1, 3) not in found


def test_a_set_pin_goes_with_the_shares_and_caps_hold_there() -> None:
    rules: dict[str, Any] = {
        "groups": BRANDS,
        "cap": {"brand": 1},
        "pin_where": {1: of()},
        "at_least": [(of(0, 1), 1)],
        "on_empty": "relax",
    }
    found = law(RuleMasks(**rules), 3)
    # 3 at the first place, owed one in two free places; at the second the set is empty, and so
    # no pin and no share, but the cap: an a. At the third nothing has room, so that caps go.
    assert found[3, 1, 0] == pytest.approx(4 / 10 * 2 / 3 * 1 / 4, rel=1e-12)
    assert found[3, 1, 2] == pytest.approx(4 / 10 * 2 / 3 * 3 / 4, rel=1e-12)
    assert (3, 2, 0) not in found
    # The share is off at that place alone: with c and d to fill it, the third is of the set.
    groups = {"brand": each("a a b c d")}
    rules = {**rules, "groups": groups, "pin_where": {1: of(n=5)}}
    found = law(
        RuleMasks(**{**rules, "at_least": [(of(0, 1, n=5), 1)]}),
        3,
        scores=np.log([1.0, 2.0, 3.0, 4.0, 5.0]),
    )
    assert found[2, 3, 0] == pytest.approx(3 / 15 * 4 / 12 * 1 / 3, rel=1e-12)
    assert (2, 3, 4) not in found


def test_rules_hold_again_from_the_next_place_on() -> None:
    """Between an a and a pinned b nothing is allowed; behind the b an a is, and no b."""
    rules = RuleMasks(
        groups={"brand": each("a a a b b")},
        window={"brand": (1, 2)},
        pin={2: 4},
        on_empty="relax",
    )
    found = law(rules, 4, scores=np.log([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found[0, 1, 4, 2] == pytest.approx(1 / 10 * 2 / 9, rel=1e-12)
    assert (0, 1, 4, 3) not in found


def test_filters_are_never_dropped() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1}, on_empty="relax", after=[1])
    assert set(law(rules, 9, eligible=of(0, 1, 2))) == {(2, 0)}


# Pages


def test_pages_carry_caps() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1}, after=[0])
    assert law(rules, 9) == close({(2,): 3 / 7, (3,): 4 / 7})
    two = RuleMasks(groups=BRANDS, cap={"brand": 2}, after=[0])
    assert law(two, 9) == close(law(None, 9, eligible=of(1, 2, 3)))


def test_windows_reach_back_into_earlier_pages() -> None:
    two = RuleMasks(groups=BRANDS, window={"brand": (1, 2)}, after=[0])
    assert law(two, 3) == close({(2, 1, 3): 3 / 7, (3, 1, 2): 4 / 7})
    # One place of another brand between them is not enough for three in a row.
    groups = {"brand": each("a a b c")}
    three = RuleMasks(groups=groups, window={"brand": (1, 3)}, after=[0, 2])
    assert law(three, 1) == {(3,): 1.0}
    assert law(RuleMasks(groups=groups, window={"brand": (1, 2)}, after=[0, 2]), 1) == close(
        {(1,): 2 / 6, (3,): 4 / 6}
    )
    # Their last places, by the order in which they were shown.
    assert law(RuleMasks(groups=groups, window={"brand": (1, 2)}, after=[2, 0]), 1) == {(3,): 1.0}


def test_a_window_goes_from_an_earlier_page_to_a_pin() -> None:
    groups = {"brand": each("a a a b")}
    rules = RuleMasks(groups=groups, window={"brand": (2, 3)}, after=[0], pin={1: 1})
    assert law(rules, 2) == {(3, 1): 1.0}


def test_shares_and_pins_are_the_pages_own() -> None:
    rules = RuleMasks(at_least=[(of(0, 1), 1)], pin={0: 3}, after=[0])
    assert law(rules, 2) == {(3, 1): 1.0}


def test_what_was_shown_and_filtered_out_counts_for_caps_and_windows() -> None:
    capped = RuleMasks(groups=BRANDS, cap={"brand": 1}, after=[0])
    apart = RuleMasks(groups=BRANDS, window={"brand": (1, 2)}, after=[0])
    for rules in (capped, apart):
        assert law(rules, 1, eligible=of(1, 2)) == {(2,): 1.0}


@pytest.mark.parametrize("policy", [fr.BestFirst(1, SOFTMAX), fr.BestFirst(1, fr.Uniform())])
def test_a_head_is_the_pages_own(policy: fr.Policy) -> None:
    assert {ranking[0] for ranking in law(RuleMasks(after=[3]), 2, policy)} == {2}


# Decay


def test_decay_by_what_was_shown() -> None:
    rules = RuleMasks(groups=BRANDS, decay={"brand": 0.5})
    found = law(rules, 3)
    assert found[0, 1, 2] == pytest.approx(1 / 10 * 1 / 8 * 3 / 7, rel=1e-12)
    assert found[0, 2, 1] == pytest.approx(1 / 10 * 3 / 8 * 1 / 3, rel=1e-12)
    assert len(found) == 24  # it forbids nothing


def test_decay_by_each_text_that_is_shared_with_each_item_shown() -> None:
    """Item 3 shares x and y with 0, and x with 1; item 2 shares nothing."""
    groups: dict[str, Any] = {"genres": [{"x", "y"}, {"x", "z"}, set(), {"x", "y"}]}
    rules = RuleMasks(groups=groups, decay={"genres": 0.1})
    assert p_of([0, 1, 3], rules) == pytest.approx([0.1, 0.2 / 3.24, 0.004 / 3.004], rel=1e-9)


def test_decays_multiply_and_earlier_pages_count() -> None:
    groups: dict[str, Any] = {**BRANDS, "colour": [{"red"}, {"red"}, {"red"}, ()]}
    rules = RuleMasks(groups=groups, decay={"brand": 0.5, "colour": 0.1}, after=[0])
    assert law(rules, 1) == close({(1,): 0.1 / 4.4, (2,): 0.3 / 4.4, (3,): 4 / 4.4})


def test_decay_is_of_what_was_shown_and_not_of_pins_to_come() -> None:
    rules = RuleMasks(groups=BRANDS, decay={"brand": 0.5}, pin={1: 0})
    found = law(rules, 3)
    assert found[1, 0, 2] == pytest.approx(2 / 9 * 3 / 7, rel=1e-12)
    assert found[2, 0, 1] == pytest.approx(3 / 9 * 1 / 3, rel=1e-12)  # 1 halved, 3 halved


def test_decay_holds_where_other_rules_are_dropped() -> None:
    rules = RuleMasks(
        groups={**BRANDS, "all": each("one one one one")},
        cap={"all": 1},
        decay={"brand": 0.5},
        pin_where={1: of()},
        on_empty="relax",
    )
    assert law(rules, 2)[0, 1] == pytest.approx(1 / 10 * 1 / 8, rel=1e-12)


def test_a_head_ranks_by_the_score_and_what_it_decays_by() -> None:
    """At T = 2 a shared brand costs 2 log 2: from 2.0 to 0.61, below 0.7, and not below 0.5."""
    rules = RuleMasks(groups=BRANDS, decay={"brand": 0.5})
    policy = fr.BestFirst(2, fr.PlackettLuce(2.0))
    assert law(rules, 2, policy, scores=[3.0, 2.0, 0.7, 0.0]) == {(0, 2): 1.0}
    assert law(rules, 2, policy, scores=[3.0, 2.0, 0.5, 0.0]) == {(0, 1): 1.0}


@pytest.mark.parametrize(
    "policy",
    [fr.Deterministic(), fr.Uniform(), fr.EpsilonGreedy(0.1), fr.BestFirst(1, fr.Uniform())],
)
def test_decay_is_refused_where_weights_are_not_of_scores(policy: fr.Policy) -> None:
    with pytest.raises(ValueError, match=r"^rules: decay .*" + type(policy).__name__):
        law(RuleMasks(groups=BRANDS, decay={"brand": 0.5}), 2, policy)


# Any ranking's propensities


def test_what_no_rule_allows_is_never_and_is_shown() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1})
    assert p_of([0, 1, 2, 3], rules) == pytest.approx([0.1, 0.0, 3 / 7, 0.0], abs=1e-12)
    decayed = RuleMasks(groups=BRANDS, cap={"brand": 1}, decay={"brand": 0.5})
    assert p_of([0, 1, 2], decayed)[2] == pytest.approx(3 / 7, rel=1e-9)


def test_a_place_without_an_item_is_a_place() -> None:
    apart = RuleMasks(groups=BRANDS, window={"brand": (1, 2)})
    assert p_of([0, 1], apart)[1] == 0.0
    for nothing in (NONE, -1, 0):  # unknown, unknown, repeated
        assert p_of([0, nothing, 1], apart) == pytest.approx([0.1, 0.0, 2 / 9], rel=1e-9)
    assert p_of([0, 3, 1], apart, eligible=of(0, 1, 2)) == pytest.approx(
        [1 / 6, 0.0, 2 / 5], rel=1e-9
    )
    shown = RuleMasks(groups=BRANDS, window={"brand": (1, 2)}, after=[3])
    assert p_of([3, 2], shown) == pytest.approx([0.0, 3 / 6], rel=1e-9)
    # Pins stay where they are, and what stands in their stead changes nothing else.
    assert p_of([NONE, 3, 2], RuleMasks(pin={1: 3})) == pytest.approx([0.0, 1.0, 3 / 6], rel=1e-9)


def test_a_pinned_item_elsewhere_is_never_and_its_place_has_none() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 2}, pin={2: 0})
    # Shown early it counts once: so there is room for the other a.
    assert p_of([0, 1, 2, 3], rules) == pytest.approx([0.0, 2 / 9, 0.0, 1.0], abs=1e-12)
    # Nor has another place the item that the pin's own did not show.
    assert p_of([1, 2, 3, 0], rules) == pytest.approx([2 / 9, 3 / 7, 0.0, 0.0], abs=1e-12)
    assert p_of([1, 2, 0], RuleMasks(pin={2: 0}, on_empty="relax"))[2] == 1.0
    assert p_of([0, 1, 2], RuleMasks(pin={2: 0}, on_empty="relax"))[2] == 0.0
    # Nor does it take room of a window, or pay what is owed.
    apart = RuleMasks(groups=BRANDS, window={"brand": (1, 2)}, pin={3: 0})
    assert p_of([0, 2, 1], apart, k=4)[2] == 1.0
    share = RuleMasks(at_least=[(of(0, 1), 2)], pin={2: 0})
    assert p_of([0, 1], share, k=3)[1] == 1.0


def test_a_pin_that_its_place_did_not_show_is_owed_no_more_room() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1}, pin={0: 3})
    assert p_of([NONE, 2], rules) == pytest.approx([0.0, 3 / 6], abs=1e-12)


def test_the_places_asked_for_say_what_is_still_to_come() -> None:
    rules = RuleMasks(at_least=[(of(0), 1)], pin={2: 1})
    assert p_of([3, 2], rules) == pytest.approx([4 / 10, 0.0], abs=1e-12)
    assert p_of([3, 2], rules, k=3) == pytest.approx([4 / 8, 0.0], abs=1e-12)
    assert p_of([3, 2], rules, k=4) == pytest.approx([4 / 8, 3 / 4], abs=1e-12)
    # More than there are items for: three places, and so as with k = 3.
    assert p_of([3, 0], rules, k=9, eligible=of(0, 1, 3)) == pytest.approx([4 / 5, 1.0], rel=1e-9)
    with pytest.raises(ValueError, match=r"^k: expected at least 2, the ranking's length, got 1$"):
        p_of([3, 2], rules, k=1)


def test_behind_the_last_place_nothing_is_owed_and_nothing_pinned() -> None:
    """Two eligible items, so two places: the third entry is behind them."""
    rules = RuleMasks(
        groups=BRANDS,
        window={"brand": (1, 2)},
        at_least=[(of(0), 1)],
        pin={3: 1},
        pin_where={2: of(0)},
    )
    found = p_of([NONE, NONE, 1], rules, eligible=of(0, 1))
    assert found == pytest.approx([0.0, 0.0, 2 / 3], abs=1e-12)
    assert p_of([NONE, 0, 1], rules, eligible=of(0, 1)) == [0.0, 1.0, 0.0]  # the window holds


def test_a_draw_follows_its_law() -> None:
    rules = RuleMasks(groups=BRANDS, cap={"brand": 1}, pin={1: 3})
    rng = np.random.default_rng(0)
    drawn = {tuple(reference.rank(SCORES, 3, SOFTMAX, rng, rules=rules)) for _ in range(50)}
    assert drawn == {(0, 3), (1, 3)}


# Random worlds


@pytest.mark.sampled
@pytest.mark.parametrize("kinds", [*SINGLES, *PAIRS, *triples(30), KINDS[2:6]], ids="+".join)
def test_laws_sum_to_one_and_propensities_are_of_them(kinds: Kinds) -> None:
    for world in worlds(kinds, 2):
        rankings, p = world.law()
        assert p.sum() == pytest.approx(1.0, rel=1e-12)
        places = min(world.k, world.n_eligible)
        assert rankings.shape[1] == places
        for prefix in {tuple(row[:end]) for row in rankings.tolist() for end in range(places + 1)}:
            if -1 not in prefix:
                starts = (rankings[:, : len(prefix)] == prefix).all(axis=1)
                logs = world.log_propensities(prefix, world.k)
                assert (logs <= 0.0).all()
                assert np.exp(logs.sum()) == pytest.approx(p[starts].sum(), rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("kinds", [("cap",), ("cap", "after"), ("cap", "decay"), ("cap", "where")])
def test_no_list_has_more_of_a_group_than_its_cap(kinds: Kinds) -> None:
    for world in (each for each in worlds(kinds, 40) if each.masks.on_empty == "stop"):
        for ranking in _lists(world):
            for column, most in world.masks.cap.items():
                groups = world.masks.groups[column]
                for group in {group for item in ranking for group in groups[item]}:
                    whole = [*world.masks.after, *ranking]
                    assert sum(group in groups[item] for item in whole) <= most


@pytest.mark.parametrize("kinds", [("window",), ("window", "after"), ("window", "cap")])
def test_no_window_has_more_of_a_group_than_it_may(kinds: Kinds) -> None:
    for world in (each for each in worlds(kinds, 40) if each.masks.on_empty == "stop"):
        for ranking in _lists(world):
            for column, (most, width) in world.masks.window.items():
                groups = world.masks.groups[column]
                whole = [*world.masks.after, *ranking]
                for at, item in enumerate(ranking, len(world.masks.after)):
                    row = whole[max(0, at - width + 1) : at + 1]
                    for group in groups[item]:
                        assert sum(group in groups[each] for each in row) <= most


@pytest.mark.parametrize("kinds", [("at_least",), ("at_least", "cap"), ("at_least", "where")])
def test_a_list_of_all_places_has_its_shares(kinds: Kinds) -> None:
    for world in (each for each in worlds(kinds, 40) if each.masks.on_empty == "stop"):
        places = min(world.k, world.n_eligible)
        if sum(share for _, share in world.masks.at_least) <= places:
            for ranking in _lists(world):
                for mask, share in world.masks.at_least:
                    assert len(ranking) < places or mask[ranking].sum() >= share


def _lists(world: World) -> list[list[int]]:
    return [[i for i in row if i >= 0] for row in world.law()[0].tolist()]
