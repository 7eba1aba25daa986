"""Conditional expectations against sums over every ranking.

Handed all rankings instead of drawn ones, each weighed by its probability, the figures must be the
exact ones: an expectation of conditional expectations is the expectation. No statistics here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from support import Array, Positions, scored

import fastrank as fr
from fastrank import expectations, reference
from fastrank.expectations import Audience, Draws

SPREAD = (0.3, -1.2, 0.9, -0.4, 1.4, 0.0, 0.3)
# Each with its own temperatures: mild ones, and ones at which single items hold all the mass.
CASES: dict[str, tuple[tuple[float, ...], int]] = {
    "spread": (SPREAD, 3),
    "k = n": (SPREAD[:4], 4),
    "one item": ((2.0,), 1),
    "ties": ((0.5, 0.5, 0.0, 0.0, 0.0, -1.0), 2),
    "all equal": ((0.0,) * 6, 3),
    "far apart": ((900.0, 40.0, 0.0, -40.0, -900.0, 1.0), 3),
    "many": (tuple(np.random.default_rng(5).standard_normal(70).round(3).tolist()), 2),
}
POLICIES: dict[str, fr.Policy] = {
    "deterministic": fr.Deterministic(),
    "cold": fr.PlackettLuce(0.3),
    "warm": fr.PlackettLuce(0.7),
    "hot": fr.PlackettLuce(2.5),
    "greedy": fr.EpsilonGreedy(0.1),
    "less greedy": fr.EpsilonGreedy(0.6),
    "random": fr.EpsilonGreedy(1.0),
    "uniform": fr.Uniform(),
    "head": fr.BestFirst(1, fr.PlackettLuce(0.7)),
    "longer head": fr.BestFirst(2, fr.EpsilonGreedy(0.4)),
}


@dataclass(frozen=True)
class Exact:
    """One user, and every ranking as if it had been drawn."""

    audience: Audience
    scores: Array
    rankings: Positions
    draws: Draws
    k: int

    def law(self, policy: fr.Policy) -> Array:
        return reference.ranking_law(self.scores, self.k, policy)[1]

    def at(self, probabilities: Array) -> tuple[npt.NDArray[np.bool_], Array]:
        """Rankings that occur, and how often."""
        occurs = probabilities > 0.0
        return occurs, probabilities[occurs]


def exact(case: str, spare: int | None, monkeypatch: pytest.MonkeyPatch) -> Exact:
    if spare is not None:  # so that a small catalog has items that are only summed up
        monkeypatch.setattr(expectations, "_SPARE", spare)
    values, k = CASES[case]
    world = scored(values)
    audience = Audience(world.catalog, world.query[None], k)
    scores = world.scores.astype(np.float64)
    rankings, _ = reference.ranking_law(scores, k, fr.Uniform())
    ids = world.ids(np.arange(len(scores)))
    slot_of = np.full(len(scores), -1)
    for slot, item in enumerate(audience.kept_ids[0].tolist()):
        slot_of[int(np.flatnonzero(ids == item)[0])] = slot
    draws = Draws(slot_of[rankings][None], (scores - scores.max())[rankings][None])
    return Exact(audience, scores, rankings, draws, k)


SPARES = [None, 1]


@pytest.mark.parametrize("spare", SPARES)
@pytest.mark.parametrize("case", CASES)
def test_slots_are_in_the_order_of_the_deterministic_policy(
    case: str, spare: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = exact(case, spare, monkeypatch)
    heads = min(e.k + (expectations._SPARE), len(e.scores))
    order = np.argsort(-e.scores, kind="stable")[:heads]
    world = scored(CASES[case][0])
    assert e.audience.kept_ids[0, :heads].tolist() == world.ids(order).tolist()
    assert len(set(e.audience.kept_ids[0].tolist())) == e.audience.kept_ids.shape[1]
    if spare == 1 and case == "many":
        assert len(e.audience.others[0]) > 0  # what this variant is for


@pytest.mark.parametrize("spare", SPARES)
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("case", CASES)
def test_overlap_score_and_entropy(
    case: str, name: str, spare: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = exact(case, spare, monkeypatch)
    policy = POLICIES[name]
    p = e.law(policy)
    overlap, gap, entropy = e.audience.kept_and_lost(e.audience.law([policy]), e.draws)
    top = np.argsort(-e.scores, kind="stable")[: e.k]
    occurs, weight = e.at(p)
    expected = float(p @ np.isin(e.rankings, top).mean(axis=1))
    assert float(weight @ overlap[0, occurs]) == pytest.approx(expected, abs=1e-6)
    score = float(p @ e.scores[e.rankings].mean(axis=1))
    scale = max(1.0, float(np.ptp(e.scores)))
    actual = float(e.audience.best[0] - weight @ gap[0, occurs])
    assert actual == pytest.approx(score, abs=1e-6 * scale)
    first = np.bincount(e.rankings[:, 0], p, len(e.scores))
    first = first[first > 0.0]
    assert entropy[0] == pytest.approx(-float(first @ np.log(first)), abs=1e-6)
    assert float(e.audience.best[0] - e.audience.top_gap[0]) == pytest.approx(
        e.scores[top].mean(), abs=1e-6 * scale
    )
    assert float(e.audience.best[0] - e.audience.mean_gap[0]) == pytest.approx(
        e.scores.mean(), abs=1e-6 * scale
    )


@cache
def probabilities(scores: tuple[float, ...], prefix: int, policy: fr.Policy) -> Array:
    return reference.ranking_law(scores, prefix, policy)[1]


def exact_square(e: Exact, logging: fr.Policy, target: fr.Policy, prefix: int) -> float:
    """E[w^2] of a prefix, from the laws of prefixes."""
    p0, p1 = (probabilities(tuple(e.scores), prefix, policy) for policy in (logging, target))
    shown = p1 > 0.0
    if (p0[shown] == 0.0).any():
        return math.inf
    return float((p1[shown] ** 2 / p0[shown]).sum())


@pytest.mark.sampled
@pytest.mark.parametrize("spare", SPARES)
@pytest.mark.parametrize("target", POLICIES)
@pytest.mark.parametrize("case", [case for case in CASES if case != "far apart"])
def test_squared_weights(
    case: str, target: str, spare: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = exact(case, spare, monkeypatch)
    evaluated = POLICIES[target]
    occurs, weight = e.at(e.law(evaluated))
    for logging in POLICIES.values():
        law0, law1 = (e.audience.law([policy]) for policy in (logging, evaluated))
        log_squares = e.audience.log_squares(law0, law1, e.draws)[0]
        for prefix in range(1, e.k + 1):
            expected = exact_square(e, logging, evaluated, prefix)
            actual = float(weight @ np.exp(log_squares[occurs, prefix - 1]))
            assert actual == pytest.approx(expected, rel=1e-5)


def test_far_apart_scores_do_not_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    e = exact("far apart", None, monkeypatch)
    for factor in (0.5, 0.8, 1.0):
        law0 = e.audience.law([fr.PlackettLuce(1.0)])
        law1 = e.audience.law([fr.PlackettLuce(factor)])
        log_squares = e.audience.log_squares(law0, law1, e.draws)[0]
        best = np.flatnonzero((e.rankings == np.argsort(-e.scores)[:3]).all(axis=1))
        # All mass of two places is on one order: it weighs 1.
        assert np.exp(log_squares[best[0], :2]) == pytest.approx(np.ones(2), abs=1e-6)
    law = e.audience.law([fr.Uniform()])
    square = e.audience.log_squares(e.audience.law([fr.PlackettLuce(1.0)]), law, e.draws)[0, 0, 0]
    # sum over a of (1/6)^2 / p0(a): the worst item, 1,800 below the best, carries it.
    assert square == pytest.approx(1800.0 + 2 * math.log(1 / 6), rel=1e-9)


def test_a_wrong_law_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons above fail by far for a temperature that is 2 % off."""
    e = exact("spread", None, monkeypatch)
    wrong = e.audience.law([fr.PlackettLuce(0.7 * 1.02)])
    overlap, _, _ = e.audience.kept_and_lost(wrong, e.draws)
    p = e.law(fr.PlackettLuce(0.7))
    expected = float(p @ np.isin(e.rankings, np.argsort(-e.scores, kind="stable")[:3]).mean(axis=1))
    assert abs(float(p @ overlap[0]) - expected) > 1e-4


def test_users_may_differ_in_temperature_alone() -> None:
    world = scored(SPREAD)
    audience = Audience(world.catalog, np.repeat(world.query[None], 2, 0), 2)
    law = audience.law([fr.PlackettLuce(0.5), fr.PlackettLuce(0.25)])
    assert law.steepness.tolist() == [2.0, 4.0]
    with pytest.raises(ValueError, match="may differ only in temperature"):
        audience.law([fr.PlackettLuce(0.5), fr.BestFirst(1, fr.PlackettLuce(0.5))])
    with pytest.raises(ValueError, match="may differ only in temperature"):
        audience.law([fr.EpsilonGreedy(0.5), fr.EpsilonGreedy(0.4)])


def test_the_order_of_storage_does_not_matter() -> None:
    """A prior moves items about, equal ones too; slots and draws go by id."""
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((300, 4))
    vectors[50:120] = 0.0  # ties
    queries = rng.standard_normal((3, 4)).astype(np.float32)
    plain, sorted_ = (
        Audience(fr.Catalog(np.arange(300) + 9, vectors, prior=prior), queries, 6)
        for prior in (None, rng.standard_normal(300))
    )
    heads = 6 + expectations._SPARE
    np.testing.assert_array_equal(plain.kept_ids[:, :heads], sorted_.kept_ids[:, :heads])
    np.testing.assert_array_equal(plain.kept, sorted_.kept)
    policies = [fr.Deterministic()] * 3
    seeds = np.zeros((3, 2), np.uint64)
    for audience in (plain, sorted_):
        draws = audience.draw(policies, seeds)
        assert draws.slots.tolist() == [[[0, 1, 2, 3, 4, 5]]] * 3
        np.testing.assert_array_equal(draws.scores[:, 0], audience.kept[:, :6])
