"""Plans against exact laws, and what they say at the edges."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from support import Array

import fastrank as fr
from fastrank import marginals, reference
from fastrank import plan as planning
from fastrank.expectations import Audience
from fastrank.plan import Kind, Plan, RelativeTemperature, Target
from fastrank.plan.arguments import user_count

KINDS: tuple[Kind, ...] = get_args(Kind)
ANIME = Path(__file__).resolve().parents[2] / "shared" / "data" / "anime"
# Six standard errors: a right plan fails one comparison with probability 2e-9, and there are about
# a hundred of them; seeds are fixed. The errors are estimates, from 4 x 2,000 draws: good to 2 %.
SIGMAS = 6.0
DRAWS = 2000

TARGETS: dict[str, Target] = {
    "deterministic": fr.Deterministic(),
    "warm": fr.PlackettLuce(0.7),
    "cooler": RelativeTemperature(0.8),
    "greedy": fr.EpsilonGreedy(0.3),
    "uniform": fr.Uniform(),
}


def small_model(factors: npt.ArrayLike | None = None) -> fr.Model:
    rng = np.random.default_rng(3)
    catalog = fr.Catalog(rng.permutation(8) + 50, rng.standard_normal((8, 3)))
    vectors = rng.standard_normal((4, 3)) * np.array([[0.5], [1.0], [2.0], [1.0]])
    return fr.Model(catalog, list("abcd"), vectors, user_temperatures=factors)


def user_scores(model: fr.Model) -> list[Array]:
    users = model.user_ids.tolist()
    return [model.catalog.scores(model.user_vector(u)).astype(np.float64) for u in users]


def expected(model: fr.Model, policies: list[fr.Policy], k: int) -> dict[str, float]:
    """Overlap, loss and perplexity by summing over every ranking of every user."""
    overlaps, losses, uniform, entropies = [], [], [], []
    for scores, policy in zip(user_scores(model), policies, strict=True):
        rankings, p = reference.ranking_law(scores, k, policy)
        top = np.argsort(-scores, kind="stable")[:k]
        overlaps.append(p @ np.isin(rankings, top).mean(axis=1))
        losses.append(scores[top].mean() - p @ scores[rankings].mean(axis=1))
        uniform.append(scores[top].mean() - scores.mean())
        first = np.bincount(rankings[:, 0], p)
        entropies.append(-(first[first > 0] @ np.log(first[first > 0])))
    return {
        "overlap": float(np.mean(overlaps)),
        "loss": float(np.mean(losses)),
        "relative_loss": float(np.mean(losses) / np.mean(uniform)),
        "perplexity": math.exp(float(np.mean(entropies))),
    }


def expected_share(
    model: fr.Model, logging: list[fr.Policy], evaluated: list[fr.Policy], prefix: int
) -> float:
    squares = []
    for scores, old, new in zip(user_scores(model), logging, evaluated, strict=True):
        _, p0 = reference.ranking_law(scores, prefix, old)
        _, p1 = reference.ranking_law(scores, prefix, new)
        squares.append((p1**2 / p0).sum())
    return 1.0 / float(np.mean(squares))


FACTORS = [0.3, 0.5, 1.1, 0.8]


@pytest.fixture(scope="module", params=[None, FACTORS], ids=["plain", "user temperatures"])
def explored(request: pytest.FixtureRequest) -> tuple[fr.Model, Array, Plan]:
    model = small_model(request.param)
    plan = planning.explore(
        model,
        k=3,
        targets=TARGETS,
        prefixes=[1, 2, 3],
        temperatures=[0.4, 1.0, 2.5],
        overlaps=[0.7],
        epsilons=[0.2, 0.6],
        draws=DRAWS,
    )
    return model, np.array([1.0] * 4 if request.param is None else request.param), plan


def logging_policies(plan: Plan, point: planning.Point, factors: Array) -> list[fr.Policy]:
    if point.kind == "epsilon":
        return [fr.EpsilonGreedy(point.parameter)] * 4
    if point.kind == "temperature":
        return [fr.PlackettLuce(point.parameter * factor) for factor in factors.tolist()]
    return plan._sample.policies(point.kind, point.parameter)


def test_overlap_loss_and_perplexity(explored: tuple[fr.Model, Array, Plan]) -> None:
    model, factors, plan = explored
    assert len(plan.points) == 6
    for point in plan.points:
        exact = expected(model, logging_policies(plan, point, factors), 3)
        assert abs(point.overlap - exact["overlap"]) <= SIGMAS * point.overlap_error + 1e-6
        assert abs(point.loss - exact["loss"]) <= SIGMAS * point.loss_error + 1e-6
        scale = exact["relative_loss"] / exact["loss"]
        error = abs(point.relative_loss - exact["relative_loss"])
        assert error <= scale * SIGMAS * point.loss_error + 1e-6
        assert point.perplexity == pytest.approx(exact["perplexity"], rel=1e-6)  # no draws in it
        assert 0.0 < point.overlap_error < 2e-3


def test_shares(explored: tuple[fr.Model, Array, Plan]) -> None:
    model, factors, plan = explored
    compared = 0
    for point in plan.points:
        logging = logging_policies(plan, point, factors)
        for share in point.shares:
            target = TARGETS[share.target]
            evaluated: list[fr.Policy]
            if isinstance(target, fr.PlackettLuce):
                evaluated = [fr.PlackettLuce(target.temperature * f) for f in factors.tolist()]
            elif callable(target):
                evaluated = [target(policy) for policy in logging]
            else:
                evaluated = [target] * 4
            exact = expected_share(model, logging, evaluated, share.prefix)
            if share.exact:
                assert share.share == pytest.approx(exact, rel=1e-5)
                assert share.error == 0.0
            else:
                assert abs(share.share / exact - 1.0) <= SIGMAS * share.error + 1e-5
                compared += 1
            if share.prefix == 1 or share.target == "deterministic":
                assert share.exact
    assert compared > 20


def test_a_wrong_sampler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rankings drawn 30 % hotter than the law says: the comparison above fails."""
    model = small_model()
    drawn = Audience.draw

    def hotter(self: Any, policies: Any, seeds: Any) -> Any:
        return drawn(self, [fr.PlackettLuce(p.temperature * 1.3) for p in policies], seeds)

    monkeypatch.setattr(Audience, "draw", hotter)
    plan = planning.explore(
        model, k=3, targets={}, temperatures=[0.6], overlaps=[], epsilons=[], draws=DRAWS
    )
    exact = expected(model, [fr.PlackettLuce(0.6)] * 4, 3)
    [point] = plan.points
    assert abs(point.overlap - exact["overlap"]) > SIGMAS * point.overlap_error


def test_relative_targets_are_left_out_where_there_is_no_temperature(
    explored: tuple[fr.Model, Array, Plan],
) -> None:
    _, _, plan = explored
    for point in plan.points:
        assert (point.share("cooler", 1) is None) == (point.kind == "epsilon")
        assert point.share("warm", 1) is not None
    with pytest.raises(ValueError, match="has none"):
        RelativeTemperature(0.8)(fr.EpsilonGreedy(0.1))
    for factor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="factor"):
            RelativeTemperature(factor)


def test_a_log_that_cannot_show_the_target_is_worth_nothing() -> None:
    plan = planning.explore(
        small_model(), k=2, targets=TARGETS, temperatures=[], overlaps=[], epsilons=[0.0]
    )
    [point] = plan.points
    assert point.overlap == 1.0
    assert point.perplexity == 1.0
    for label in ("warm", "greedy", "uniform"):
        share = point.share(label, 1)
        assert share is not None
        assert share.share == 0.0
    same = point.share("deterministic", 2)
    assert same is not None
    assert same.share == 1.0


def test_heavy_tails_are_flagged() -> None:
    """A uniform target from a cold log: E[w^2] depends on the worst items, which draws rarely meet
    in the first places; exact shares never are flagged."""
    rng = np.random.default_rng(0)
    catalog = fr.Catalog(range(3000), rng.standard_normal((3000, 4)))
    plan = planning.explore(
        catalog,
        rng.standard_normal((5, 4)),
        k=5,
        targets={"uniform": fr.Uniform()},
        prefixes=[1, 5],
        temperatures=[0.4],
        overlaps=[],
        epsilons=[],
    )
    first, whole = plan.points[0].shares
    assert first.exact
    assert first.trusted
    assert not whole.trusted
    assert whole.heaviest_draw > 0.1 or whole.error > 0.2


def test_grid_goes_from_nearly_deterministic_to_nearly_uniform() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 50.0):
        catalog = fr.Catalog(range(500), rng.standard_normal((500, 8)))
        plan = planning.explore(catalog, scale * rng.standard_normal((20, 8)), targets={}, k=10)
        assert len(plan.of_kind("temperature")) == 16
        for kind in KINDS:
            overlaps = [point.overlap for point in plan.of_kind(kind)]
            assert all(np.diff(overlaps) < 0)
            assert overlaps[0] > 0.98
        assert plan.of_kind("temperature")[-1].overlap < plan.uniform_overlap + 0.03
        last = plan.of_kind("epsilon")[-1]
        assert abs(last.overlap - 0.02) <= SIGMAS * last.overlap_error
        for point in plan.of_kind("user_temperature"):
            assert point.overlap == pytest.approx(point.parameter, abs=0.03)
        assert plan.deterministic_score > plan.uniform_score


def medium_plan(**arguments: Any) -> Plan:
    """Users whose scores differ sixfold."""
    rng = np.random.default_rng(1)
    catalog = fr.Catalog(range(400), rng.standard_normal((400, 8)))
    vectors = rng.standard_normal((60, 8)) * np.geomspace(0.4, 2.4, 60)[:, None]
    return planning.explore(fr.Model(catalog, range(60), vectors), k=5, **arguments)


@pytest.fixture(scope="module")
def plan() -> Plan:
    targets = {"deterministic": fr.Deterministic(), "cooler": RelativeTemperature(0.8)}
    return medium_plan(targets=targets)


@pytest.fixture(scope="module")
def other_draws() -> Plan:
    return medium_plan(targets={}, seed=9)


class TestSolving:
    @pytest.mark.sampled
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("overlap", [pytest.param(0.3, marks=pytest.mark.slow), 0.8, 0.95])
    def test_overlap(self, plan: Plan, other_draws: Plan, kind: Kind, overlap: float) -> None:
        solution = planning.solve_overlap(plan, overlap, kind)
        assert solution.reachable
        assert solution.bound == "equal"
        assert solution.value == pytest.approx(overlap, abs=1e-3)
        # Other draws, other error: both are within six standard errors of the same expectation.
        again = other_draws._sample.point(kind, solution.point.parameter)
        error = math.hypot(again.overlap_error, solution.point.overlap_error)
        assert abs(again.overlap - overlap) <= SIGMAS * error + 1e-3

    def test_own_temperatures_give_everyone_the_same(self, plan: Plan) -> None:
        shared = planning.solve_overlap(plan, 0.7, "temperature").point
        own = planning.solve_overlap(plan, 0.7, "user_temperature").point
        assert shared.overlap_high - shared.overlap_low > 0.3
        assert own.overlap_high - own.overlap_low < 0.06

    @pytest.mark.parametrize("kind", KINDS)
    def test_overlaps_out_of_reach(self, plan: Plan, kind: Kind) -> None:
        solution = planning.solve_overlap(plan, 0.001, kind)
        assert not solution.reachable
        assert solution.bound == "none"
        assert solution.value == pytest.approx(5 / 400, abs=2e-3)  # uniform: the nearest there is

    @pytest.mark.sampled
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("prefix", [1, 5])
    def test_ess(self, plan: Plan, kind: Kind, prefix: int) -> None:
        solution = planning.solve_ess(plan, 0.2, kind, prefix)
        assert solution.bound == "at most"
        assert 0.2 <= solution.value <= 0.2 * 1.03
        shares = [s.share for s in solution.point.shares if s.prefix == prefix]
        assert solution.value == min(shares)
        labels = {"deterministic"} if kind == "epsilon" else {"deterministic", "cooler"}
        assert set(solution.targets) == labels

    def test_ess_of_exploring_targets_needs_exploring(self) -> None:
        plan = medium_plan(targets={"uniform": fr.Uniform()}, overlaps=[], epsilons=[])
        solution = planning.solve_ess(plan, 0.5, "temperature", 1)
        assert solution.bound == "at least"
        assert solution.value >= 0.5
        colder = plan._sample.point("temperature", solution.point.parameter * 0.97).shares[0]
        assert colder.share < 0.5

    def test_ess_of_one_temperature_wants_a_temperature_near_it(self) -> None:
        plan = medium_plan(targets={"warm": fr.PlackettLuce(1.0)}, overlaps=[], epsilons=[])
        solution = planning.solve_ess(plan, 0.5, "temperature", 1)
        assert solution.bound == "at most"
        assert solution.start is not None
        assert solution.start < 1.0 < solution.point.parameter
        for outside in (solution.start * 0.97, solution.point.parameter * 1.03):
            assert plan._sample.point("temperature", outside).shares[0].share < 0.5
        inside = plan._sample.point("temperature", 1.0).shares[0]
        assert inside.share == pytest.approx(1.0, abs=1e-6)

    def test_ess_anywhere_and_nowhere(self) -> None:
        plan = medium_plan(
            targets={"same": RelativeTemperature(1.0)}, overlaps=[], epsilons=[], temperatures=[1.0]
        )
        assert planning.solve_ess(plan, 0.9).bound == "any"
        plan = medium_plan(
            targets={"a": fr.PlackettLuce(0.1), "b": fr.Uniform()}, overlaps=[], epsilons=[]
        )
        solution = planning.solve_ess(plan, 0.9)
        assert solution.bound == "none"
        assert solution.value == max(
            min(s.share for s in point.shares if s.prefix == 5)
            for point in (*plan.of_kind("temperature"), solution.point)
        )

    def test_bad_questions(self, plan: Plan) -> None:
        for value in (0.0, 1.0, -1.0, math.nan, True):
            with pytest.raises(ValueError, match="overlap: must lie between 0 and 1"):
                planning.solve_overlap(plan, value)
            with pytest.raises(ValueError, match="share: must lie between 0 and 1"):
                planning.solve_ess(plan, value)
        with pytest.raises(ValueError, match=r"prefix: expected one of the plan's 1, 3, 5; got 4"):
            planning.solve_ess(plan, 0.1, prefix=4)
        wrong: Any = "heat"
        with pytest.raises(ValueError, match="kind: expected one of"):
            planning.solve_overlap(plan, 0.5, wrong)
        relative = medium_plan(targets={"cooler": RelativeTemperature(0.8)}, epsilons=[0.1])
        with pytest.raises(ValueError, match="none of cooler is defined for epsilon"):
            planning.solve_ess(relative, 0.1, "epsilon")


class TestOwnTemperatures:
    def test_every_user_has_the_overlap(self) -> None:
        model = small_model()
        own = planning.own_temperatures(model, 3, 0.8)
        assert own.reached.all()
        for scores, temperature in zip(user_scores(model), own.temperatures.tolist(), strict=True):
            rankings, p = reference.ranking_law(scores, 3, fr.PlackettLuce(temperature))
            top = np.argsort(-scores)[:3]
            # Calibration replaces a random time by its mean: off by 0.03 with 8 items.
            assert p @ np.isin(rankings, top).mean(axis=1) == pytest.approx(0.8, abs=0.03)

    def test_it_goes_into_the_model(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        catalog = fr.Catalog(range(400), rng.standard_normal((400, 8)))
        vectors = rng.standard_normal((300, 8)) * np.geomspace(0.4, 2.4, 300)[:, None]
        model = fr.Model(catalog, range(300), vectors)
        seen: list[tuple[int, int]] = []
        own = planning.own_temperatures(
            model, 5, 0.6, lambda _, done, all_: seen.append((done, all_))
        )
        assert seen == [(0, 300), (256, 300), (300, 300)]
        model.with_user_temperatures(own.temperatures).save(tmp_path / "m")
        opened = fr.Model.open(tmp_path / "m", verify=True)
        served = planning.explore(
            opened, k=5, targets={}, temperatures=[1.0], overlaps=[], epsilons=[]
        )
        assert served.has_user_temperatures
        [point] = served.points
        assert point.overlap == pytest.approx(0.6, abs=0.02)
        assert point.overlap_high - point.overlap_low < 0.06

    def test_equal_scores(self) -> None:
        catalog = fr.Catalog(range(40), np.r_[np.ones((3, 1)), np.zeros((37, 1))])
        model = fr.Model(catalog, ["nobody", "ann"], [[0.0], [1.0]])
        own = planning.own_temperatures(model, 10, 0.8)
        assert own.temperatures[0] == 1.0
        # Three stand out, seven are drawn of 37 equal ones: at most (3 + 49 / 37) / 10.
        assert own.reached.tolist() == [False, False]
        assert own.temperatures[1] > 0.0

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="k: expected 1 to 8"):
            planning.own_temperatures(small_model(), 9, 0.5)
        with pytest.raises(ValueError, match="overlap: must lie between 0 and 1"):
            planning.own_temperatures(small_model(), 3, 1.5)


class TestEdges:
    @pytest.mark.parametrize(
        ("vectors", "queries", "k"),
        [
            ([[1.0]], [[1.0]], 1),
            ([[1.0], [2.0]], [[1.0]], 1),
            ([[1.0], [2.0]], [[1.0], [0.0]], 2),
            ([[0.0]] * 5, [[1.0]], 2),
            ([[0.0], [0.0], [0.0], [1.0], [-1.0]], [[0.0], [1.0], [1e-30], [1e10]], 3),
        ],
        ids=["one item", "two items", "k = n", "all equal", "zero and huge users"],
    )
    def test_every_figure_is_a_number(self, vectors: Any, queries: Any, k: int) -> None:
        plan = planning.explore(fr.Catalog(range(len(vectors)), vectors), queries, k=k)
        record = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
        assert record["k"] == k
        assert len(record["points"]) == len(plan.points) > 0
        for point in plan.points:
            slack = SIGMAS * point.overlap_error + 1e-9
            assert k / len(vectors) - slack <= point.overlap <= 1.0 + 1e-9
            assert point.perplexity >= 1.0
            for share in point.shares:
                assert 0.0 <= share.share <= 1.0
        for kind in KINDS:
            solution = planning.solve_overlap(plan, 0.9, kind)
            json.dumps(solution.to_dict(), allow_nan=False)
            assert solution.reachable == (abs(solution.value - 0.9) < 1e-2)

    @pytest.mark.slow
    def test_same_seed_same_plan(self) -> None:
        first, again, other = (medium_plan(users=20, seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first.points != other.points

    def test_users_are_subsampled(self) -> None:
        plan = medium_plan(users=7)
        assert (plan.users, plan.n_users) == (7, 60)
        assert user_count(None, 7_390, 5_000) == 200
        assert user_count(None, 1_000_000, 5_000) == 20
        assert user_count(None, 7_390, 50) == 50

    def test_progress_and_time(self) -> None:
        told: list[tuple[str, int, int]] = []
        medium_plan(users=3, advance=lambda *facts: told.append(facts))
        assert told[-1] == ("looking at policies", 40, 40)
        assert ("scoring users", 3, 3) in told
        assert planning.estimated_seconds(small_model(), k=3) > 0.0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"k": 0}, "k: must be at least 1"),
            ({"k": 9}, "k: expected 1 to 8, the number of items; got 9"),
            ({"k": 2.5}, "k: expected an integer"),
            ({"users": 0}, "users: must be at least 1"),
            ({"draws": 1}, "draws: must be at least 2"),
            ({"seed": -1}, "seed: must be at least 0"),
            ({"prefixes": [4]}, "prefixes: expected places from 1 to 3"),
            ({"prefixes": []}, "prefixes: expected places from 1 to 3"),
            ({"prefixes": [0]}, "prefixes: must be at least 1"),
            ({"temperatures": [0.0]}, "temperature: must lie in"),
            ({"temperatures": [math.nan]}, "temperature: must lie in"),
            ({"overlaps": [1.0]}, "overlaps: must lie between 0 and 1"),
            ({"epsilons": [1.5]}, "epsilon: must lie in"),
            ({"temperatures": [], "overlaps": [], "epsilons": []}, "expected at least one policy"),
            ({"targets": {"x": "deterministic"}}, r"targets: x: expected .* makes one"),
            ({"queries": [[1.0, 2.0]]}, r"queries: expected shape \(q, 3\)"),
            ({"queries": np.zeros((0, 3))}, r"queries: expected shape \(q, 3\) with q >= 1"),
            ({"queries": [[1.0, math.inf, 0.0]]}, "queries: row 0, column 1: must be finite"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            planning.explore(small_model(), **{"k": 3, **arguments})

    def test_a_catalog_has_no_users(self) -> None:
        with pytest.raises(ValueError, match="queries: expected the users' vectors"):
            planning.explore(small_model().catalog)
        wrong: Any = "model/"
        with pytest.raises(ValueError, match="model: expected a Model, Catalog or Scorer"):
            planning.explore(wrong)


@pytest.fixture(scope="module")
def anime() -> Plan:
    items, users = (np.load(ANIME / f"{side}_factors.npy") for side in ("item", "user"))
    model = fr.Model(fr.Catalog(np.arange(len(items)), items), np.arange(len(users)), users)
    return planning.explore(
        model, k=10, temperatures=[0.03], overlaps=[0.817], epsilons=[], users=200
    )


@pytest.mark.skipif(not ANIME.is_dir(), reason=f"the anime data are not at {ANIME}")
class TestAnime:
    """Real scores: at an overlap of .82 a log is worth nothing for the whole deterministic list,
    and a lot for a policy with 0.8 times its temperature."""

    def test_overlap(self, anime: Plan) -> None:
        shared, own = anime.points
        assert shared.overlap == pytest.approx(0.82, abs=0.01)
        assert own.overlap == pytest.approx(0.82, abs=0.01)
        assert shared.overlap_high - shared.overlap_low > 0.12
        assert own.overlap_high - own.overlap_low < 0.04

    def test_deterministic_list(self, anime: Plan) -> None:
        shared, own = (point.share("deterministic", 10) for point in anime.points)
        assert shared is not None
        assert own is not None
        # One temperature: the users whom it makes explore most carry the weight of all.
        assert shared.share < 1e-12
        assert shared.heaviest_user > 0.9
        assert 1e-6 < shared.median < 1e-4
        # Each user's own: no such users.
        assert 1e-6 < own.share < 1e-5
        assert own.heaviest_user < 0.25

    def test_a_slightly_colder_policy(self, anime: Plan) -> None:
        shared, own = (point.share("temperature x0.8", 10) for point in anime.points)
        assert shared is not None
        assert own is not None
        assert own.trusted
        assert own.share == pytest.approx(0.53, abs=0.05)
        assert shared.median == pytest.approx(0.57, abs=0.05)


# Positions by themselves.


@pytest.mark.parametrize("kind", KINDS)
def test_iips_shares_are_those_of_the_enumerated_laws(kind: Kind) -> None:
    model = small_model([1.0, 0.5, 2.0, 1.0])
    found = planning.explore(
        model, k=3, targets=TARGETS, temperatures=[0.8], overlaps=[0.6], epsilons=[0.4], draws=2
    )
    (point,) = found.of_kind(kind)
    shares = {(s.target, s.prefix): s for s in planning.iips_shares(found, point)}
    logging = found._sample.policies(kind, point.parameter)
    for label, target in TARGETS.items():
        if callable(target) and kind == "epsilon":
            assert not any(name == label for name, _ in shares)
            continue
        squares = []
        for user, policy in enumerate(logging):
            scores = model.catalog.scores(model.user_vectors[user]).astype(np.float64)
            asked = target(policy) if callable(target) else target
            if not callable(target) and isinstance(target, fr.PlackettLuce):
                own = model.user_temperature(model.user_ids[user].item())
                asked = fr.PlackettLuce(target.temperature * own)
            laws = [positions(scores, each) for each in (policy, asked)]
            squares.append((laws[1] ** 2 / laws[0]).sum(axis=0))
        for place in found.prefixes:
            share = shares[label, place]
            assert share.exact
            assert share.share == pytest.approx(1.0 / np.mean(squares, axis=0)[place - 1], rel=1e-9)


def positions(scores: Array, policy: fr.Policy) -> Array:
    """P(item at place), (n, 3), by adding up all rankings."""
    rankings, p = marginals.ranking_law(scores, 3, policy)
    law = np.zeros((len(scores), 3))
    for place in range(3):
        np.add.at(law[:, place], rankings[:, place], p)
    return law


def test_iips_wants_catalogs_whose_positions_can_be_computed() -> None:
    n = marginals.MAX_ITEMS + 1
    catalog = fr.Catalog(np.arange(n), np.arange(n, dtype=float)[:, None] / n)
    found = planning.explore(catalog, [[1.0]], k=1, temperatures=[1.0], overlaps=[], epsilons=[])
    with pytest.raises(
        ValueError, match="got 10001 items; marginals of positions take at most 10000"
    ):
        planning.iips_shares(found, found.points[0])
