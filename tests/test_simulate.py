"""The simulator against exact laws, against itself in pieces, and against known truths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2
from support import LIMIT, chi_square_p_value

import fastrank as fr
from fastrank import reference, simulate
from fastrank.marginals import position_marginals, pseudo_inverse_weights, slate_inverse
from fastrank.simulate import Cascade, PositionBased, World, q_columns, true_value, write_log

Array: TypeAlias = npt.NDArray[np.float64]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "anime"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real factors are not at {DATA}")

RATES = np.array([0.1, 0.2, 0.3, 0.4])
# A normal variable lies beyond 6 standard deviations with a chance of 2e-9. The suite asks so about
# 20 times, on fixed seeds.
SIX = 6.0


class Record:
    """Keeps what a LogWriter would write."""

    def __init__(self) -> None:
        self.rankings: list[fr.Ranking] = []
        self.rows: list[dict[str, Any]] = []

    def append(self, ranking: fr.Ranking, **row: Any) -> str:
        self.rankings.append(ranking)
        self.rows.append(row)
        request_id: str = row["request_id"]
        return request_id

    def rewards(self) -> Array:
        return np.array([row["rewards"].sum() for row in self.rows])


def four_items(*click_models: simulate.ClickModel) -> tuple[list[World], fr.Catalog, Array]:
    """Worlds of one user, and a catalog whose query (1, 0) gives weights 1, 2, 3, 4.

    The query (0, 1) gives 4, 3, 2, 1.
    """
    w = np.log([1.0, 2.0, 3.0, 4.0])
    worlds = [World.from_rates(RATES[None], model, item_ids=[7, 5, 3, 1]) for model in click_models]
    return worlds, fr.Catalog([7, 5, 3, 1], np.stack([w, w[::-1]], axis=1)), np.array([[0.0, 1.0]])


# Clicks


def click_law(model: simulate.ClickModel, rates: Array) -> Array:
    """P(pattern) of all 2^k click patterns, first place most significant, from the definition."""
    law = []
    for pattern in itertools.product([0, 1], repeat=len(rates)):
        if isinstance(model, PositionBased):
            p = np.array(model.examination[: len(rates)]) * rates
            law.append(float(np.prod(np.where(pattern, p, 1 - p))))
            continue
        looking, stopped = 1.0, 0.0  # P(pattern so far, and still looking or not)
        for rate, click in zip(rates.tolist(), pattern, strict=True):
            here = looking * (rate if click else 1 - rate)
            goes_on = model.after_click if click else model.continuation
            stopped = (0.0 if click else stopped) + here * (1 - goes_on)
            looking = here * goes_on
        law.append(looking + stopped)
    return np.array(law)


MODELS: tuple[simulate.ClickModel, ...] = (
    PositionBased((1.0, 0.6, 0.3)),
    Cascade(),
    Cascade(continuation=0.8, after_click=0.4),
)
LIKED = np.array([[0.5, 0.2, 0.7]])
N_CLICKS = 40_000


def pattern_p_value(model: simulate.ClickModel, law: Array) -> float:
    world = World.from_rates(LIKED, model)
    clicks = world.clicks(
        np.zeros(N_CLICKS, np.int64), np.tile(np.arange(3), (N_CLICKS, 1)), seed=3
    )
    patterns = clicks.astype(np.int64) @ [4, 2, 1]
    return chi_square_p_value(np.bincount(patterns, minlength=8), law)


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_click_patterns_follow_the_model(model: simulate.ClickModel) -> None:
    """Error budget: one chi-square over at most 8 patterns, below `LIMIT` with chance 1e-9."""
    assert pattern_p_value(model, click_law(model, LIKED[0])) >= LIMIT


@pytest.mark.parametrize(
    ("model", "other"),
    [
        *itertools.permutations(MODELS, 2),
        (MODELS[0], PositionBased((1.0, 0.5, 0.3))),
        (MODELS[2], Cascade(continuation=0.75, after_click=0.4)),
        (MODELS[2], Cascade(continuation=0.8, after_click=0.45)),
    ],
)
def test_click_patterns_do_not_follow_another_model(
    model: simulate.ClickModel, other: simulate.ClickModel
) -> None:
    assert pattern_p_value(model, click_law(other, LIKED[0])) < LIMIT


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_expected_clicks_are_those_of_the_law(model: simulate.ClickModel) -> None:
    patterns = np.array(list(itertools.product([0, 1], repeat=3)))
    world = World.from_rates(LIKED, model)
    for order in itertools.permutations(range(3)):
        law = click_law(model, LIKED[0, list(order)])
        assert law.sum() == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_allclose(world.expected([0], [order])[0], law @ patterns, atol=1e-12)


def test_places_past_the_length_are_not_read_and_earn_nothing() -> None:
    for model in MODELS:
        world = World.from_rates([[0.9, 0.9, 0.9]], model)
        items = np.array([[0, 1, 2], [0, -1, 99], [-1, -1, -1]])
        expected = world.expected([0, 0, 0], items, [3, 1, 0])
        assert (expected[0] > 0).all()
        assert (expected[1] > 0).tolist() == [True, False, False]
        assert not expected[2].any()
        clicks = world.clicks([0, 0, 0], items, [3, 1, 0], seed=1)
        assert not clicks[np.arange(3) >= np.array([[3], [1], [0]])].any()


def test_clicks_in_pieces_are_the_clicks_at_once() -> None:
    world = World.synthetic(20, 30, Cascade(0.9, 0.5), seed=1, best_rate=0.8, typical_rate=0.4)
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20, 100), rng.integers(0, 30, (100, 5))
    whole = world.clicks(users, items, seed=5)
    pieces = [
        world.clicks(users[a:b], items[a:b], seed=5, first_row=a)
        for a, b in [(0, 1), (1, 40), (40, 100)]
    ]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    assert (whole != world.clicks(users, items, seed=6)).any()
    assert (whole[1:] != world.clicks(users[1:], items[1:], seed=5)).any()


# True values


def test_truth_of_four_items() -> None:
    """V = 151/360 where rewards add up, 91/240 under a cascade; scores are float32."""
    (additive, cascade), catalog, queries = four_items(PositionBased((1.0, 1.0)), Cascade())
    for world, exact in ((additive, 151 / 360), (cascade, 91 / 240)):
        value, error = true_value(world, catalog, fr.PlackettLuce(), 2, queries=queries)
        assert value == pytest.approx(exact, abs=1e-7)
        assert error == 0.0


def assert_exact(actual: simulate.TrueValue, value: float) -> None:
    assert actual.value == pytest.approx(value, rel=1e-10)
    assert actual.standard_error == 0.0


def test_deterministic_and_uniform_values() -> None:
    (world,), catalog, queries = four_items(PositionBased((1.0, 0.5)))
    best = true_value(world, catalog, fr.Deterministic(), 2, queries=queries)
    assert_exact(best, 0.1 + 0.5 * 0.2)
    uniform = true_value(world, catalog, fr.Uniform(), 9, queries=queries, exclude=[[7, 5]])
    assert_exact(uniform, 0.35 * 1.5)


@pytest.fixture(scope="module")
def small() -> World:
    return World.synthetic(6, 12, PositionBased((1.0, 0.7, 0.4)), seed=2, typical_rate=0.1)


POLICIES = (fr.PlackettLuce(0.7), fr.EpsilonGreedy(0.4), fr.Uniform())


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_marginals_give_the_enumerated_value(
    small: World, policy: fr.Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    exclude = [[1, 2], None, [], [3], None, [11]]
    by_rankings = true_value(small, small.model(), policy, 3, exclude=exclude)
    monkeypatch.setattr(simulate, "_CHEAP_RANKINGS", 0)
    by_marginals = true_value(small, small.model(), policy, 3, exclude=exclude)
    assert_exact(by_marginals, by_rankings.value)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_drawn_values_and_their_errors(
    small: World, policy: fr.Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squared z-scores of 60 seeds are chi-square with 60 degrees of freedom; both tails 1e-9.

    Each standard error comes from 6 x 100 draws, so a z-score is normal to a few percent, which
    moves these limits by less than their distance from what is seen with an error off by half.
    """
    world, model = small, small.model(noise=0.5, seed=1)
    exact = true_value(world, model, policy, 3).value
    monkeypatch.setattr(simulate, "_CHEAP_RANKINGS", 0)
    monkeypatch.setattr(simulate, "_CHEAP_MARGINALS", 0)
    drawn = [true_value(world, model, policy, 3, n_draws=100, seed=seed) for seed in range(60)]
    z = np.array([(value - exact) / error for value, error in drawn])

    def fits(scores: Array) -> bool:
        tail = chi2.sf((scores**2).sum(), len(scores))
        return bool(LIMIT < tail < 1 - LIMIT)

    assert fits(z)
    assert not fits(z * 2.5)
    assert not fits(z / 2.5)
    assert abs(z.sum()) < SIX * math.sqrt(60)
    assert len({value for value, _ in drawn}) == 60


def test_drawn_values_do_not_hang_on_the_batch(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "_CHEAP_RANKINGS", 0)
    monkeypatch.setattr(simulate, "_CHEAP_MARGINALS", 0)
    values = set()
    for batch in (7, 2048):
        monkeypatch.setattr(simulate, "_BATCH", batch)
        values.add(true_value(small, small.model(), fr.PlackettLuce(), 3, n_draws=20, seed=4))
    assert len(values) == 1


# Doubly robust columns


def population(catalog: fr.Catalog) -> tuple[Array, npt.NDArray[np.int64], Array, Array]:
    """All rankings of two, their probability under (1, 2, 3, 4), and both laws' cumulated ratio."""
    orders = np.array(list(itertools.permutations([7, 5, 3, 1], 2)))
    lp0, lp1 = (
        np.array(
            [catalog.log_propensities(query, order, policy=fr.PlackettLuce()) for order in orders]
        )
        for query in ([1.0, 0.0], [0.0, 1.0])
    )
    return np.exp(lp0.sum(axis=1)), orders, np.exp(np.cumsum(lp1 - lp0, axis=1)), np.exp(lp0)


def doubly_robust(weights: Array, rewards: Array, q_logged: Array, q_expected: Array) -> Array:
    before = np.column_stack([np.ones(len(weights)), weights[:, :-1]])
    return np.asarray((weights * (rewards - q_logged) + before * q_expected).sum(axis=1))


def test_true_q_gives_the_known_variances() -> None:
    """dr-position .088495370 where rewards add up; cascade-dr 0 under either click model."""
    worlds, catalog, queries = four_items(PositionBased((1.0, 1.0)), Cascade())
    p, orders, weights, _ = population(catalog)
    users = np.zeros(len(orders), np.int64)

    def moments(values: Array) -> tuple[float, float]:
        mean = float(p @ values)
        return mean, float(p @ (values - mean) ** 2)

    for world, exact in zip(worlds, (151 / 360, 91 / 240), strict=True):
        rewards = world.expected(users, world.item_rows(orders.ravel()).reshape(orders.shape))
        arguments = (world, catalog, fr.PlackettLuce(), users, orders)
        by_place = doubly_robust(weights, rewards, *q_columns(*arguments, queries=queries))
        mean, variance = moments(by_place)
        assert mean == pytest.approx(exact, abs=1e-6)
        if world is worlds[0]:
            assert variance == pytest.approx(0.088495370, abs=1e-6)
        to_go = q_columns(*arguments, kind="value_to_go", queries=queries)
        mean, variance = moments(doubly_robust(weights, rewards, *to_go))
        assert mean == pytest.approx(exact, abs=1e-6)
        assert variance < 1e-12
        wrong = doubly_robust(weights, rewards, to_go[0][:, ::-1], to_go[1])
        assert moments(wrong)[1] > 1e-3


@pytest.mark.sampled
@pytest.mark.parametrize("model", [PositionBased((0.9, 0.5, 0.2)), Cascade(0.9, 0.3)], ids=repr)
@pytest.mark.parametrize("policy", [*POLICIES, fr.Deterministic()], ids=repr)
def test_q_columns_equal_their_definition(model: simulate.ClickModel, policy: fr.Policy) -> None:
    world = World.synthetic(2, 5, model, seed=9, typical_rate=0.3, best_rate=0.7)
    ranker = world.model(noise=0.5)
    exclude = [[4], None]
    rng = np.random.default_rng(1)
    users = np.array([0, 1, 1, 0])
    orders = np.array([rng.permutation(4)[:3] for _ in users])
    here = q_columns(world, ranker, policy, users, orders, exclude=exclude)
    to_go = q_columns(world, ranker, policy, users, orders, exclude=exclude, kind="value_to_go")
    for i, user in enumerate(users.tolist()):
        scores = ranker.catalog.scores(ranker.user_vector(user))
        eligible = np.arange(5) != 4 if user == 0 else np.ones(5, np.bool_)

        def mean_after(
            prefix: tuple[int, ...],
            place: int,
            user: int = user,
            scores: Any = scores,
            eligible: Any = eligible,
        ) -> float:
            """Expected reward from a place on, given what stands above it."""
            if place == 3:
                return 0.0
            total = 0.0
            for item in map(int, np.flatnonzero(eligible)):
                lp = reference.log_propensities(scores, [*prefix, item], policy, eligible)[-1]
                if lp > -np.inf:
                    longer = (*prefix, item)
                    reward = float(world.expected([user], [longer])[0, -1])
                    total += math.exp(lp) * (reward + mean_after(longer, place + 1))
            return total

        for place in range(3):
            above = tuple(orders[i, :place].tolist())
            shown = tuple(orders[i, : place + 1].tolist())
            reward = world.expected([user], [shown])[0, -1]
            assert here[0][i, place] == pytest.approx(reward, rel=1e-9)
            assert to_go[0][i, place] == pytest.approx(
                reward + mean_after(shown, place + 1), rel=1e-9
            )
            assert to_go[1][i, place] == pytest.approx(mean_after(above, place), rel=1e-9)
            immediate = mean_after(above, place) - sum(
                math.exp(reference.log_propensities(scores, [*above, j], policy, eligible)[-1])
                * mean_after((*above, j), place + 1)
                for j in map(int, np.flatnonzero(eligible))
                if j not in above
            )
            assert here[1][i, place] == pytest.approx(immediate, rel=1e-9, abs=1e-12)


# Logs


def test_a_log_says_what_was_served(small: World) -> None:
    model, record = small.model(noise=0.3), Record()
    exclude = [[0, 1], None, None, list(range(10)), [], None]
    write_log(
        small, model, fr.PlackettLuce(0.5), 3, 200, record, seed=6, first_row=50, exclude=exclude
    )
    assert len(record.rows) == 200
    for i, (ranking, row) in enumerate(zip(record.rankings, record.rows, strict=True)):
        user = row["user_id"]
        again = model.recommend(
            user, 3, policy=fr.PlackettLuce(0.5), seed=ranking.seed, exclude=exclude[user]
        )
        assert again.item_ids.tolist() == ranking.item_ids.tolist()
        assert again.log_propensities.tolist() == ranking.log_propensities.tolist()
        assert len(ranking) == (2 if user == 3 else 3)
        assert row["rewards"].shape == (len(ranking),)
        assert set(row["rewards"].tolist()) <= {0.0, 1.0}
        assert row["exclude"] is exclude[user]
        assert row["request_id"] == f"simulated-6-{50 + i}"
        assert row["ts"] == datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=50 + i)
        assert (row["k"], row["reward_kind"], row["query"]) == (3, "complete", None)
        assert row["model_version"] == model.version
    seeds = [ranking.seed for ranking in record.rankings]
    assert len(set(seeds)) == 200
    assert max(seeds) < 2**53


def test_a_catalogs_log_carries_the_queries(small: World) -> None:
    catalog, record = small.model().catalog, Record()
    assert small.user_vectors is not None
    write_log(small, catalog, fr.Uniform(), 2, 10, record, seed=1, users=[4, 2])
    assert {row["user_id"] for row in record.rows} == {2, 4}
    for ranking, row in zip(record.rankings, record.rows, strict=True):
        assert row["model_version"] is None
        np.testing.assert_array_equal(
            row["query"], small.user_vectors[row["user_id"]].astype(np.float32)
        )
        again = catalog.rank(row["query"], 2, policy=fr.Uniform(), seed=ranking.seed)
        assert again.item_ids.tolist() == ranking.item_ids.tolist()


def test_a_log_in_pieces_is_the_log_at_once(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def logged(*pieces: tuple[int, int]) -> list[tuple[Any, ...]]:
        record = Record()
        for first, count in pieces:
            write_log(small, small.model(), POLICIES[0], 3, count, record, seed=2, first_row=first)
        return [
            (row["user_id"], ranking.item_ids.tolist(), row["rewards"].tolist(), row["request_id"])
            for ranking, row in zip(record.rankings, record.rows, strict=True)
        ]

    whole = logged((0, 120))
    assert logged((0, 1), (1, 50), (51, 69)) == whole
    monkeypatch.setattr(simulate, "_BATCH", 11)
    assert logged((0, 120)) == whole
    assert logged((1, 119)) == whole[1:]


def test_users_come_equally_often(small: World) -> None:
    """Error budget: one chi-square over 6 users, below `LIMIT` with chance 1e-9."""
    record = Record()
    write_log(small, small.model(), fr.Deterministic(), 1, 6_000, record, seed=11)
    counts = np.bincount([row["user_id"] for row in record.rows], minlength=6)
    assert chi_square_p_value(counts, np.full(6, 1 / 6)) >= LIMIT
    halved = np.array([0.5, 1, 1, 1, 1, 1]) / 5.5
    assert chi_square_p_value(counts, halved) < LIMIT


@pytest.mark.sampled
@pytest.mark.parametrize("model", [PositionBased((1.0, 0.6, 0.3)), Cascade(0.9, 0.2)], ids=repr)
def test_a_log_is_worth_what_is_true(model: simulate.ClickModel) -> None:
    """Its mean, and its inverse-propensity weighted mean, within 6 standard errors: chance 2e-9.

    Leaving one of the exclusions out of the weights, or the weights as a whole, is seen.
    """
    world = World.synthetic(5, 8, model, seed=3, typical_rate=0.3, best_rate=0.8)
    ranker = world.model(noise=0.3)
    exclude = [[0, 1, 2], None, [7], None, [1, 3]]
    old, new, record = fr.PlackettLuce(4.0), fr.PlackettLuce(1.0), Record()
    write_log(world, ranker, old, 3, 20_000, record, seed=8, exclude=exclude)
    of_old, of_new = (
        true_value(world, ranker, policy, 3, exclude=exclude) for policy in (old, new)
    )
    assert of_old.standard_error == of_new.standard_error == 0.0

    users = [row["user_id"] for row in record.rows]

    def weigh(excluded: list[Any] | None) -> Array:
        lp = ranker.catalog.log_propensities_batch(
            np.stack([ranker.user_vector(user) for user in range(5)])[users],
            [ranking.item_ids for ranking in record.rankings],
            policies=[new],
            exclude=excluded,
        )[0]
        logged = [ranking.log_propensity for ranking in record.rankings]
        return np.asarray(np.exp(lp.sum(axis=1) - logged))

    weights, forgetful = weigh([exclude[user] for user in users]), weigh(None)

    def errors_off(rewards: Array, truth: float) -> float:
        return float(abs(rewards.mean() - truth) / (rewards.std() / math.sqrt(len(rewards))))

    rewards = record.rewards()
    assert errors_off(rewards, of_old.value) < SIX
    assert errors_off(weights * rewards, of_new.value) < SIX
    assert errors_off(rewards, of_new.value) > SIX
    assert errors_off(forgetful * rewards, of_new.value) > SIX


@pytest.mark.sampled
@pytest.mark.parametrize("old", [fr.Uniform(), fr.PlackettLuce(4.0)], ids=repr)
def test_marginals_and_pseudo_inverse_estimate_additive_rewards(old: fr.Policy) -> None:
    """Within 6 standard errors of the truth, chance 2e-9; unweighted rewards are not.

    The item-wise estimator divides marginals, place by place, and is wrong under a cascade; the
    pseudo-inverse one weights sums.
    """
    rates = np.random.default_rng(4).uniform(0.2, 0.9, (4, 6))
    new, off = fr.PlackettLuce(0.5), {}
    for model in (PositionBased((1.0, 0.6, 0.3)), Cascade()):
        world, record = World.from_rates(rates, model), Record()
        # Scores of user u are coordinate u of the items' vectors.
        catalog, queries = fr.Catalog(np.arange(6), np.log(rates).T * 1.5), np.eye(4)
        write_log(world, catalog, old, 3, 20_000, record, seed=4, queries=queries)
        users = np.array([row["user_id"] for row in record.rows])
        shown = np.array([ranking.item_ids for ranking in record.rankings])
        rewards = np.array([row["rewards"] for row in record.rows])
        truth = true_value(world, catalog, new, 3, queries=queries).value
        itemwise, weights = np.empty(len(users)), np.empty(len(users))
        for user in range(4):
            mine = users == user
            scores = catalog.scores(queries[user])
            ratio = position_marginals(scores, new, 3) / position_marginals(scores, old, 3)
            itemwise[mine] = (ratio[shown[mine], np.arange(3)] * rewards[mine]).sum(axis=1)
            inverse = slate_inverse(scores, old, 3)
            weights[mine] = pseudo_inverse_weights(shown[mine], inverse, scores, new)
        totals = rewards.sum(axis=1)
        for name, values in (("items", itemwise), ("pi", weights * totals), ("none", totals)):
            error = values.std() / math.sqrt(len(values))
            off[name, type(model)] = abs(values.mean() - truth) / error
    assert off["items", PositionBased] < SIX
    assert off["pi", PositionBased] < SIX
    assert off["items", Cascade] > SIX
    assert off["none", PositionBased] > SIX


# Under rules


def of_sellers() -> tuple[World, fr.Catalog, reference.RuleMasks]:
    """Six items of three sellers, of which two are in front; at most one of each is shown."""
    rates = np.random.default_rng(5).uniform(0.1, 0.9, (3, 6))
    sellers = ["a", "a", "a", "b", "b", "c"]
    catalog = fr.Catalog(
        np.arange(6), np.log(rates).T * 2.0, features={"seller": sellers, "price": np.arange(6.0)}
    )
    groups = {"seller": [{each} for each in sellers]}
    world = World.from_rates(rates, Cascade(0.9, 0.5))
    return world, catalog, reference.RuleMasks(groups=groups, cap={"seller": 1})


CAP = fr.Rules(where="price < most", cap={"seller": 1})


@pytest.mark.sampled
@pytest.mark.parametrize("policy", [fr.PlackettLuce(0.7), fr.Deterministic()], ids=repr)
def test_values_under_rules_are_those_of_the_enumerated_law(policy: fr.Policy) -> None:
    """Within 6 standard errors: chance 2e-9. Lists are shorter than k, for want of sellers."""
    world, catalog, masks = of_sellers()
    eligible = np.arange(6) < 5
    queries, expected = np.eye(3), []
    for user in range(3):
        scores = catalog.scores(queries[user])
        rankings, p = reference.ranking_law(scores, 4, policy, eligible, masks)
        lengths = (rankings >= 0).sum(axis=1)
        users = np.full(len(p), user)
        expected.append(float(p @ world.expected(users, rankings, lengths).sum(axis=1)))
        assert set(lengths) == {2}
    found = true_value(
        world, catalog, policy, 4, queries=queries, n_draws=4000, rules=CAP, params={"most": 5.0}
    )
    truth = float(np.mean(expected))
    assert abs(found.value - truth) <= SIX * found.standard_error + 1e-9
    plain = true_value(world, catalog, policy, 4, queries=queries).value
    assert abs(plain - truth) > 0.1


@pytest.mark.slow
def test_a_log_under_rules_says_so_and_is_worth_what_is_true(tmp_path: Path) -> None:
    """Within 6 standard errors of the truth of another temperature under these rules."""
    pytest.importorskip("pyarrow")
    from fastrank.eventlog import LogReader, LogWriter

    world, catalog, _ = of_sellers()
    old, new, queries = fr.PlackettLuce(4.0), fr.PlackettLuce(0.5), np.eye(3)
    call: dict[str, Any] = {"queries": queries, "rules": CAP, "params": {"most": 6.0}}
    record = Record()
    write_log(world, catalog, old, 3, 2500, record, seed=1, **call)
    with LogWriter(tmp_path / "log") as log:
        write_log(world, catalog, old, 3, 500, log, seed=1, **call)
    rows = [row for batch in LogReader(tmp_path / "log") for row in batch.table.to_pylist()]
    assert [row["item_ids"] for row in rows] == [
        ranking.item_ids.tolist() for ranking in record.rankings[:500]
    ]
    assert {row["rules"]["id"] for row in rows} == {CAP.id}

    users = np.array([row["user_id"] for row in record.rows])
    weights = np.exp(
        catalog.log_propensities_batch(
            queries[users],
            [ranking.item_ids for ranking in record.rankings],
            policies=[new],
            rules=CAP,
            params={"most": 6.0},
        )[0].sum(axis=1)
        - [ranking.log_propensity for ranking in record.rankings]
    )
    values = weights * record.rewards()
    truth = true_value(world, catalog, new, 3, n_draws=2000, **call)
    error = math.hypot(values.std() / math.sqrt(len(values)), truth.standard_error)
    assert abs(values.mean() - truth.value) < SIX * error
    plain = record.rewards().std() / math.sqrt(len(values))
    assert abs(record.rewards().mean() - truth.value) > SIX * plain


# Worlds


def test_vectors_are_scaled_to_the_rates_asked_for() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.standard_normal((150, 8)), rng.standard_normal((200, 8))
    worlds = [
        World.from_vectors(
            users * scale, items * scale, Cascade(), typical_rate=0.05, best_rate=0.6
        )
        for scale in (1.0, 1e-3, 300.0)
    ]
    rates = worlds[0].rates(np.arange(150))
    assert np.median(rates) == pytest.approx(0.05, rel=1e-6)
    assert np.median(rates.max(axis=1)) == pytest.approx(0.6, rel=1e-6)
    for world in worlds[1:]:
        np.testing.assert_allclose(world.rates(np.arange(150)), rates, rtol=1e-9)
    some = rng.integers(0, 200, (150, 4))
    np.testing.assert_allclose(
        worlds[0].rates(np.arange(150), some),
        np.take_along_axis(rates, some, axis=1),
        rtol=1e-12,
    )


def test_equal_vectors_give_the_typical_rate() -> None:
    world = World.from_vectors(np.ones((2, 3)), np.ones((4, 3)), Cascade(), typical_rate=0.1)
    np.testing.assert_allclose(world.rates([0, 1]), 0.1, rtol=1e-12)


def test_worlds_and_models_hang_on_their_seeds() -> None:
    one, two, other = (World.synthetic(4, 9, Cascade(), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.rates([0, 3]), two.rates([0, 3]))
    assert (one.rates([0]) != other.rates([0])).all()
    versions = [world.model(0.5, seed).version for world, seed in ((one, 1), (two, 1), (one, 2))]
    assert versions[0] == versions[1] != versions[2]
    assert one.model().version == two.model().version != versions[0]


def test_a_models_noise_is_not_the_world_again() -> None:
    """Same seed, same shapes: correlations below 6 / sqrt(3,500), exceeded with chance 2e-9."""
    world = World.synthetic(500, 500, Cascade(), dim=8, seed=3)
    assert world.user_vectors is not None
    model = world.model(noise=1.0, seed=3)
    vectors = np.array([model.user_vector(user) for user in range(500)])
    noise = (vectors - world.user_vectors) / world.user_vectors.std()
    assert noise.std() == pytest.approx(1.0, abs=0.1)
    items = np.stack([model.catalog.scores(row) for row in np.eye(8)], axis=1)
    for one, other in itertools.combinations((noise, items, world.user_vectors), 2):
        correlation = np.corrcoef(one[:, 1:].ravel(), other[:, 1:].ravel())[0, 1]
        assert abs(correlation) < SIX / math.sqrt(3_500)


@needs_data
def test_real_factors_tell_a_plausible_story() -> None:
    """Knowing users better, and exploring less, earns more; all by far more than drawing errors."""
    users = np.load(DATA / "user_factors.npy")[::25]
    world = World.from_vectors(
        users, np.load(DATA / "item_factors.npy"), PositionBased(tuple(1 / np.arange(1, 11) ** 0.5))
    )
    truth, blurred = world.model(), world.model(noise=1.0)
    greedy = true_value(world, truth, fr.Deterministic())
    worse = true_value(world, blurred, fr.Deterministic())
    assert greedy.standard_error == worse.standard_error == 0.0
    sampled = true_value(world, truth, fr.PlackettLuce(0.05), n_draws=4)
    uniform = true_value(world, truth, fr.Uniform(), n_draws=4)
    assert greedy.value > worse.value > uniform.value + SIX * uniform.standard_error
    assert greedy.value > sampled.value + SIX * sampled.standard_error
    margin = SIX * math.hypot(sampled.standard_error, uniform.standard_error)
    assert sampled.value > uniform.value + margin


# What is refused

WORLD = World.from_rates([[0.1, 0.2]], PositionBased((1.0, 1.0)))
CATALOG = fr.Catalog([0, 1], [[1.0], [2.0]])
ONE: dict[str, Any] = {"queries": [[1.0]]}
NO_MODEL: Any = None
NO_KIND: Any = "slate"
NO_LOG: Any = None
NO_CHANCES: Any = ["high"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PositionBased(()), "examination: expected a probability for each"),
        (lambda: PositionBased(NO_CHANCES), r"examination\[0\]: must lie in \[0, 1\], got 'high'"),
        (lambda: PositionBased((0.5, 1.5)), r"examination\[1\]: must lie in \[0, 1\], got 1.5"),
        (lambda: Cascade(math.nan), "continuation: must lie"),
        (lambda: Cascade(after_click=-1), "after_click: must lie"),
        (lambda: World.from_rates([0.1], Cascade()), r"rates: expected shape \(u, n\)"),
        (lambda: World.from_rates([[0.1, 2.0]], Cascade()), "rates: row 0, column 1: .* got 2.0"),
        (lambda: World.from_rates([[0.1]], NO_MODEL), "click_model: expected PositionBased or Ca"),
        (lambda: World.from_rates([[0.1]], Cascade(), item_ids=[1, 2]), "item_ids: expected 1, go"),
        (
            lambda: World.from_rates([[0.1, 0.1]], Cascade(), item_ids=[3, 3]),
            "item_ids: must be unique",
        ),
        (
            lambda: World.from_vectors([[1.0]], [[1.0, 2.0]], Cascade()),
            "item_vectors: got 2 columns; expected 1",
        ),
        (lambda: World.from_vectors([[np.nan]], [[1.0]], Cascade()), "user_vectors: row 0, column"),
        (
            lambda: World.from_vectors([[1.0]], [[1.0]], Cascade(), best_rate=1.0),
            "typical_rate, best_rate: expected 0 < typ",
        ),
        (lambda: WORLD.model(), "model: this world was made from rates"),
        (lambda: WORLD.item_rows([1, 5]), "item_ids: row 1: 5 is not in this world"),
        (lambda: WORLD.rates([1]), "users: row 0: .* from 0 to 0, got 1"),
        (lambda: WORLD.rates([0.0]), "users: expected integers"),
        (lambda: WORLD.expected([0], [[0, 2]]), "items: row 0: .* from 0 to 1, got 2"),
        (lambda: WORLD.expected([0], [0, 1]), r"items: expected shape \(1, k\)"),
        (lambda: WORLD.expected([0], [[0]], [2]), "lengths: row 0"),
        (lambda: WORLD.expected([0], [[0]], [1, 1]), r"lengths: expected shape \(1,\)"),
        (lambda: WORLD.expected([0], [[0, 1, 0]]), "examination: has 2 places, the ranking 3"),
        (lambda: WORLD.clicks([0], [[0]], seed=-1), "seed: must be at least 0"),
        (lambda: true_value(WORLD, CATALOG, fr.Uniform(), 1), "queries: expected vectors of users"),
        (
            lambda: true_value(WORLD, CATALOG, fr.Uniform(), 1, queries=[[1.0, 2.0]]),
            r"queries: expected shape \(1, 1\)",
        ),
        (
            lambda: true_value(WORLD, fr.Catalog([0, 9], [[1.0], [2.0]]), fr.Uniform(), 1, **ONE),
            "item_ids: row 1: 9 is not in this world",
        ),
        (
            lambda: true_value(WORLD, CATALOG, fr.Uniform(), 1, users=[], **ONE),
            "users: expected",
        ),
        (lambda: true_value(WORLD, CATALOG, fr.Uniform(), 0, **ONE), "k: must be at least 1"),
        (
            lambda: true_value(WORLD, CATALOG, fr.Uniform(), 1, exclude=[None] * 2, **ONE),
            "exclude: expected 1 entries",
        ),
        (
            lambda: true_value(WORLD, CATALOG, fr.Uniform(), 1, params={"most": 1.0}, **ONE),
            "params: expected none without rules",
        ),
        (
            lambda: true_value(WORLD, CATALOG, fr.Uniform(), 1, rules=CAP, n_draws=0, **ONE),
            "n_draws: got 0; expected at least 2, since rankings under rules",
        ),
        (
            lambda: true_value(WORLD, CATALOG, fr.Uniform(), 1, rules=CAP, **ONE),
            "rules: cap: there is no column 'seller'",
        ),
        (
            lambda: write_log(WORLD, CATALOG, fr.Uniform(), 1, -1, NO_LOG, seed=1, **ONE),
            "n_rows: must be at least 0",
        ),
        (
            lambda: q_columns(
                WORLD, CATALOG, fr.Uniform(), [0], np.array([[0]]), kind=NO_KIND, **ONE
            ),
            "kind: expected place or value_to_go",
        ),
        (
            lambda: q_columns(WORLD, CATALOG, fr.Uniform(), [0], np.array([0]), **ONE),
            r"item_ids: expected shape \(1, k\)",
        ),
        (
            lambda: q_columns(
                *(WORLD, CATALOG, fr.Uniform(), [0], np.array([[0]])),
                kind="value_to_go",
                exclude=[[0]],
                **ONE,
            ),
            "item_ids: a logged item is not eligible",
        ),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_cannot_be_summed_up_must_be_drawn() -> None:
    world = World.synthetic(3, 200, Cascade(), seed=1)
    with pytest.raises(
        ValueError,
        match="n_draws: got 0; expected at least 2, since 200 items in 4 places for 3 users",
    ):
        true_value(world, world.model(), fr.Uniform(), 4, n_draws=0)
    with pytest.raises(ValueError, match="kind: value_to_go enumerates all rankings"):
        q_columns(
            *(world, world.model(), fr.Uniform(), [0], np.arange(4)[None]), kind="value_to_go"
        )
