"""What people do with a ranking, and which estimators are right then: populations, enumerated.

A population has a row for every ranking and everything that may come of it, with the probability of
both as its row weight: an estimator that is right gives the evaluation policy's value exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import permutations, product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from logs import of_batch

from fastrank import ope
from fastrank.eventlog import LogReader
from fastrank.ope import sums
from fastrank.ope.behaviour import contradicted, leading, unchecked

Array: TypeAlias = npt.NDArray[np.float64]
Ranking: TypeAlias = tuple[int, ...]
Scores: TypeAlias = tuple[float, ...]
# Of a ranking: probabilities of what may come of it, the places displayed, and their rewards.
Outcome: TypeAlias = tuple[float, int, list[float]]
Behaviour: TypeAlias = Callable[[Ranking], Iterator[Outcome]]

K = 3
W0, W1 = np.array([1.0, 2.0, 3.0, 4.0]), (5.0, 3.0, 2.0, 0.5)
# Other evaluation policies: one whose weights of rankings are uneven, one near to the log's.
FAR, NEAR = (25.0, 6.0, 1.0, 0.1), (1.5, 2.0, 3.0, 3.0)
CLICKS = np.array([0.5, 0.2, 0.3, 0.1])
GOES_ON = np.array([0.4, 0.9, 0.7, 0.95])


def clicks_on(ranking: Ranking, depth: int) -> Iterator[tuple[float, list[float]]]:
    """Independent clicks on the first places."""
    for clicked in product([0.0, 1.0], repeat=depth):
        chances = [
            CLICKS[item] if click else 1.0 - CLICKS[item]
            for item, click in zip(ranking[:depth], clicked, strict=True)
        ]
        yield float(np.prod(chances)), list(clicked)


def looks_at_all(ranking: Ranking) -> Iterator[Outcome]:
    for chance, clicked in clicks_on(ranking, K):
        yield chance, K, clicked


def leaves_after_a_click(ranking: Ranking) -> Iterator[Outcome]:
    """Displayed is what was looked at: a cascade."""
    reached = 1.0
    for above, item in enumerate(ranking):
        yield reached * CLICKS[item], above + 1, [0.0] * above + [1.0]
        reached *= 1.0 - CLICKS[item]
    yield reached, K, [0.0] * K


def scrolls_on_by_what_is_there(ranking: Ranking) -> Iterator[Outcome]:
    """Whether the next place is displayed depends on the item above it, clicks on their own."""
    reached = 1.0
    for depth in range(1, K + 1):
        stays = 1.0 if depth == K else 1.0 - GOES_ON[ranking[depth - 1]]
        for chance, clicked in clicks_on(ranking, depth):
            yield reached * stays * chance, depth, clicked
        reached *= GOES_ON[ranking[depth - 1]]


def gives_up_at_once(ranking: Ranking) -> Iterator[Outcome]:
    """A third never sees it; the others scroll by what is there."""
    yield 1.0 / 3.0, 0, []
    for chance, depth, clicked in scrolls_on_by_what_is_there(ranking):
        yield 2.0 / 3.0 * chance, depth, clicked


def has_a_small_screen(ranking: Ranking) -> Iterator[Outcome]:
    """Depths are of the user, whatever is there."""
    for depth, share in ((1, 0.5), (2, 0.2), (3, 0.3)):
        for chance, clicked in clicks_on(ranking, depth):
            yield share * chance, depth, clicked


def buys_one_at_most(ranking: Ranking) -> Iterator[Outcome]:
    """Multinomial choice, which looks at all of them before: no cascade."""
    worth = np.exp(4.0 * CLICKS[list(ranking)])
    chances = worth / (worth.sum() + 3.0)
    for place in range(K):
        yield float(chances[place]), K, [float(j == place) for j in range(K)]
    yield 1.0 - float(chances.sum()), K, [0.0] * K


def conditionals(weights: Array, ranking: Ranking) -> list[float]:
    left, result = weights.sum(), []
    for item in ranking:
        result.append(float(np.log(weights[item] / left)))
        left -= weights[item]
    return result


def marginals(weights: Array) -> Array:
    """P(item at place), (4, K)."""
    result = np.zeros((len(weights), K))
    for ranking in permutations(range(len(weights)), K):
        result[list(ranking), np.arange(K)] += np.exp(sum(conditionals(weights, ranking)))
    return result


@cache
def population(behaviour: Behaviour, asked: Scores = W1) -> tuple[ope.Batch, float]:
    """Every row that there may be, weighted by its probability, and the truth."""
    w1 = np.array(asked)
    rows: dict[str, list[Any]] = {
        name: []
        for name in (
            *("logged", "evaluated", "rewards", "lengths", "row_weights"),
            *("marginals_logged", "marginals_evaluated", "q_logged", "q_expected"),
        )
    }
    value, of_items = 0.0, (marginals(W0), marginals(w1))
    places = np.arange(K)
    for ranking in permutations(range(4), K):
        logged, evaluated = conditionals(W0, ranking), conditionals(w1, ranking)
        q = np.sqrt(CLICKS)  # a reward model that is wrong
        expected, left = [], w1.copy()
        for item in ranking:
            expected.append(float(left @ q / left.sum()))
            left[item] = 0.0
        for chance, depth, clicked in behaviour(ranking):
            value += np.exp(sum(evaluated)) * chance * sum(clicked)
            rows["logged"].append(logged)
            rows["evaluated"].append(evaluated)
            rows["rewards"].append(clicked + [0.0] * (K - depth))
            rows["lengths"].append(depth)
            rows["row_weights"].append(np.exp(sum(logged)) * chance)
            for name, of_item in zip(
                ("marginals_logged", "marginals_evaluated"), of_items, strict=True
            ):
                rows[name].append(of_item[list(ranking), places])
            rows["q_logged"].append(q[list(ranking)])
            rows["q_expected"].append(expected)
    return ope.Batch.of(**rows), value


def value_of(name: str, batch: ope.Batch) -> float:
    estimator = ope.ESTIMATORS[name](batch.places)
    estimator.update(batch)
    found = ope.estimate(estimator, bootstrap=False).value
    assert found is not None
    return found


BEHAVIOURS: dict[Behaviour, tuple[str, ...]] = {
    # Those that are right: all take no more for granted than holds.
    looks_at_all: ("ips", "snips", "rips", "snrips", "iips", "dr-position"),
    leaves_after_a_click: ("ips", "snips", "rips", "snrips", "dr-position"),
    scrolls_on_by_what_is_there: ("ips", "snips", "rips", "snrips", "dr-position"),
    gives_up_at_once: ("ips", "snips", "rips", "snrips", "dr-position"),
    has_a_small_screen: ("ips", "snips", "rips", "snrips", "iips", "dr-position"),
    buys_one_at_most: ("ips", "snips"),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
def test_who_is_right_is_exact(behaviour: Behaviour) -> None:
    batch, truth = population(behaviour)
    assert batch.row_weights is not None
    assert batch.row_weights.sum() == pytest.approx(1.0, abs=1e-12)
    for name in ("ips", "snips", "rips", "snrips", "iips", "dr-position"):
        off = abs(value_of(name, batch) - truth)
        if name in BEHAVIOURS[behaviour]:
            assert off < 1e-12, name
        else:  # or nothing were shown
            assert off > 0.01, name


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
def test_a_wrong_reward_model_does_not_contradict_itself(behaviour: Behaviour) -> None:
    """Its weighted values have the mean of its means, whatever people do; other means do not."""
    batch, _ = population(behaviour)
    estimator, other = (ope.ESTIMATORS["dr-position"](K) for _ in range(2))
    estimator.update(batch)
    assert estimator.model_z == 0.0
    assert abs(estimator.sums[:, 1].sum()) < 1e-12
    assert batch.q_expected is not None
    other.update(replace(batch, q_expected=1.01 * batch.q_expected))
    assert other.model_z > 0.0
    assert abs(other.sums[:, 1].sum()) > 0.001


@pytest.mark.parametrize(
    "behaviour", [leaves_after_a_click, scrolls_on_by_what_is_there], ids=lambda b: b.__name__
)
def test_counting_who_got_to_a_place_is_another_value(behaviour: Behaviour) -> None:
    """As the logging policy's users got there; those of the evaluation policy do otherwise."""
    batch, truth = population(behaviour)
    own = batch.row_weights
    assert own is not None
    there = np.arange(K) < batch.lengths[:, None]
    weights = batch.prefix_weights * there
    counted = (own @ batch.weighted_rewards) / (own @ weights) * (own @ there)
    assert abs(counted.sum() - truth) > 0.03


def draws(behaviour: Behaviour, n: int, seed: int, asked: Scores = W1) -> ope.Batch:
    """n rows of the population, each of a user."""
    whole, _ = population(behaviour, asked)
    assert whole.row_weights is not None
    rows = np.random.default_rng(seed).choice(len(whole), n, p=whole.row_weights)
    names = ("logged", "evaluated", "rewards", "lengths", "marginals_logged", "marginals_evaluated")
    return ope.Batch.of(**{name: getattr(whole, name)[rows] for name in names})


Sums: TypeAlias = tuple[dict[str, ope.Estimator], dict[str, ope.Estimate]]


def estimated(batch: ope.Batch) -> Sums:
    estimators = {
        name: ope.ESTIMATORS[name](batch.places) for name in ("avg", "snips", "snrips", "iips")
    }
    for estimator in estimators.values():
        estimator.update(batch)
    return estimators, {
        name: ope.estimate(each, bootstrap=False) for name, each in estimators.items()
    }


def judged(batch: ope.Batch, lead: str = "snrips") -> tuple[set[str], str]:
    """Kinds of behaviour that it contradicts, and what leads."""
    estimators, estimates = estimated(batch)
    limits = ope.Thresholds()
    found = contradicted(estimators, estimates, limits.behaviour)
    return found, leading(lead, [(estimators, estimates)], limits)


@pytest.mark.parametrize(
    ("behaviour", "kinds"),
    [
        (looks_at_all, set[str]()),
        (has_a_small_screen, set[str]()),
        (leaves_after_a_click, {"independent"}),
        (scrolls_on_by_what_is_there, {"independent"}),
        (buys_one_at_most, {"cascade", "independent"}),
    ],
    ids=lambda given: getattr(given, "__name__", None),
)
def test_a_long_log_contradicts_what_does_not_hold(behaviour: Behaviour, kinds: set[str]) -> None:
    """Of 40,000 rows: a wrong kind lies some 10 paired errors off, a right one within 3.

    A right kind is contradicted by 3 in 1,000 logs; none of these, whose seed is fixed, is.
    """
    found, lead = judged(draws(behaviour, 40_000, seed=1))
    assert found == kinds
    # Who leaves after a click sees few places: snips is nearly as exact there.
    as_exact = behaviour is leaves_after_a_click
    assert lead == ("snips" if "cascade" in kinds or as_exact else "snrips")


def test_doubt_comes_before_contradiction() -> None:
    """Of 50 logs of 5,000 people who buy one at most, snips leads in more than contradict."""
    found = [judged(draws(buys_one_at_most, 5000, seed)) for seed in range(50)]
    contradicted_by = sum("cascade" in kinds for kinds, _ in found)
    doubted = sum(lead == "snips" for _, lead in found)
    assert 0 < contradicted_by < doubted < 50
    assert all(lead == "snips" for kinds, lead in found if "cascade" in kinds)


@pytest.mark.slow
def test_a_right_assumption_is_seldom_doubted() -> None:
    """2 errors: .046 of the logs. Of 200 binomial draws: a mean of 9, sd 3; 5 sd more are 24.

    Contradicted, at 3 errors, .0027 of them: 6 or more of 200 has a probability of 3e-5.
    """
    found = [judged(draws(looks_at_all, 4000, seed)) for seed in range(200)]
    assert sum(lead == "snips" for _, lead in found) < 24
    assert sum("cascade" in kinds for kinds, _ in found) < 6


@pytest.mark.sampled
@pytest.mark.parametrize("n", [4000, 20_000])
def test_uneven_weights_refute_no_right_assumption(n: int) -> None:
    """Of 100 logs a mean of .3 for each pair; 4 or more would have a probability of 3e-4."""
    found = [judged(draws(looks_at_all, n, seed, FAR)) for seed in range(100)]
    for kind in ("cascade", "independent"):
        assert sum(kind in kinds for kinds, _ in found) < 4
    assert {lead for _, lead in found} == {"snrips"}  # snips, which is not ok, cannot lead


@pytest.mark.sampled
@pytest.mark.parametrize(
    "behaviour",
    [leaves_after_a_click, scrolls_on_by_what_is_there, buys_one_at_most],
    ids=lambda given: given.__name__,
)
def test_uneven_weights_do_not_hide_a_wrong_one(behaviour: Behaviour) -> None:
    """Of 20,000 rows iips is many errors off, and no weight of its own says so.

    In 30 logs of each the paired difference shows it in 18 to 25, though snrips and snips are
    flagged; where it does not, the log could not have told.
    """
    _, truth = population(behaviour, FAR)
    refuted = 0
    for seed in range(30):
        estimators, estimates = estimated(draws(behaviour, 20_000, seed, FAR))
        found = estimates["iips"]
        assert found.interval is not None
        assert not found.interval[0] <= truth <= found.interval[1]
        assert estimates["snips"].status != "ok"
        limits = ope.Thresholds()
        kinds = contradicted(estimators, estimates, limits.behaviour)
        refuted += "independent" in kinds
        assert kinds or unchecked(estimators, estimates, limits.behaviour_error) == {"iips"}
    assert refuted >= 15


def test_what_the_log_can_tell_is_checked() -> None:
    """Of a policy near to the log's: the paired error is half of that of iips."""
    near = draws(looks_at_all, 5000, 1, NEAR)
    sums = estimated(near)
    assert sums[1]["iips"].status == "ok"
    assert unchecked(*sums, 0.5) == set()
    assert unchecked(*sums, 0.2) == {"iips"}
    one = ope.Batch.of(
        near.logged[:, 0],
        near.evaluated[:, 0],
        near.rewards[:, 0],
        marginals_logged=np.exp(near.logged[:, 0]),
        marginals_evaluated=np.exp(near.evaluated[:, 0]),
    )
    assert unchecked(*estimated(one), 0.0) == set()  # of one place there is nothing to assume


def test_what_is_held_against_iips_has_no_noise_of_weights() -> None:
    """Of rewards that are all alike: 3 for three places, whatever the weights were."""
    batch = replace(draws(looks_at_all, 500, 1, FAR), rewards=np.ones((500, K)))
    estimator = ope.ESTIMATORS["iips"](K)
    estimator.update(batch)
    totals = estimator.sums.sum(axis=0)
    assert estimator.compared(totals) == pytest.approx(3.0, abs=1e-12)
    assert abs(estimator.value(totals) - 3.0) > 0.01


def test_heavy_weights_contradict_nothing() -> None:
    """Their mean strays as well, and then a paired difference says nothing."""
    rng = np.random.default_rng(3)
    n = 4000
    logged = np.full((n, 2), -1.5)
    evaluated = logged + rng.normal(-2.0, 2.0, (n, 2)) * [0.02, 1.0]
    batch = ope.Batch.of(
        logged,
        np.minimum(evaluated, 0.0),
        (rng.random((n, 2)) < 0.3).astype(float),
        marginals_logged=np.exp(logged),
        marginals_evaluated=np.exp(np.minimum(evaluated, 0.0)),
    )
    estimator = ope.ESTIMATORS["snips"](2)
    estimator.update(batch)
    assert ope.estimate(estimator).status != "ok"
    assert judged(batch) == (set(), "snrips")


def evaluated(batch: ope.Batch, **options: Any) -> ope.PolicyResult:
    log = LogReader.of_tables(of_batch(batch), columns=["evaluated"])
    found = ope.evaluate(log, [ope.FromColumn("new", "evaluated")], **options)
    assert found.rows_used == np.count_nonzero(batch.lengths)
    assert found.set_aside.get("not_shown", 0) == np.count_nonzero(batch.lengths == 0)
    return found.policies[0]


def test_an_evaluation_takes_the_lead_that_the_log_bears_out() -> None:
    batch = draws(buys_one_at_most, 20_000, seed=1)
    found = evaluated(batch, estimators=["rips", "snrips", "ips"])
    assert list(found.estimates) == ["avg", "rips", "snrips", "ips", "snips"]
    assert (found.lead, found.status) == ("snips", "ok")
    for name in ("rips", "snrips"):
        assert found.estimates[name].status == found.differences[name].status == "biased"
        assert found.estimates[name].reasons == found.differences[name].reasons == ("behaviour",)
    asked = evaluated(batch, lead="snrips")
    assert (asked.lead, asked.status, asked.reasons) == ("snrips", "biased", ("behaviour",))
    assert "the log refutes what it takes for granted of how people behave" in asked.verdict
    lenient = ope.Thresholds(behaviour=1000.0)
    assert evaluated(batch, lead="snrips", thresholds=lenient).status == "ok"


def test_snips_leads_where_it_is_as_exact() -> None:
    """Who leaves after a click looks at few places: the weights of all vary little more."""
    for behaviour, lead in ((leaves_after_a_click, "snips"), (looks_at_all, "snrips")):
        found = evaluated(draws(behaviour, 20_000, seed=1))
        errors = [found.differences[name].standard_error for name in ("snips", "snrips")]
        assert errors[0] is not None
        assert errors[1] is not None
        assert (errors[0] <= 1.25 * errors[1]) == (lead == "snips")
        assert found.lead == lead


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
def test_an_evaluation_has_the_population_exactly(behaviour: Behaviour) -> None:
    """Displayed places and row weights, from a log to its estimates: a ranking that was shown."""
    batch, truth = population(behaviour)
    assert batch.row_weights is not None
    truth /= batch.row_weights[batch.lengths > 0].sum()
    found = evaluated(batch)
    for name, estimate in found.estimates.items():
        if name in BEHAVIOURS[behaviour]:
            assert estimate.value == pytest.approx(truth, abs=1e-12), name


def test_uncovered_mass_counts_rows_as_often_as_they_say() -> None:
    """Of two rows one was certain; it stands for three."""
    certain, open_ = np.log([1.0, 1.0, 1.0]), np.log([0.5, 0.5, 0.5])
    batch = ope.Batch.of(
        [certain, open_], [np.log([0.4, 1.0, 1.0]), open_], np.ones((2, 3)), row_weights=[3.0, 1.0]
    )
    assert evaluated(batch).uncovered == pytest.approx(0.6 * 3.0 / 4.0)
    assert evaluated(replace(batch, row_weights=None)).uncovered == pytest.approx(0.6 / 2.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_row_weights_that_cannot_be_are_malformed(weight: float) -> None:
    table = of_batch(draws(looks_at_all, 3, seed=1))
    spoiled = table.set_column(
        table.schema.get_field_index("row_weight"), "row_weight", pa.array([1.0, weight, None])
    )
    log = LogReader.of_tables(spoiled)
    (batch,) = log
    assert log.report.set_aside == {"row_weight": 1}
    assert log.report.places["row_weight"] == [("table 0", 1, repr(weight))]
    assert batch.row_weights is not None
    assert batch.row_weights.tolist() == [1.0, 1.0]


def test_weights_that_stray_are_said_of_all_that_rest_on_propensities() -> None:
    """Replay weighs by the logging policy alone, and clipped weights have no mean to judge."""
    batch = draws(looks_at_all, 20_000, seed=1)
    lacking = replace(batch, evaluated=0.9 * batch.logged + 0.1 * batch.evaluated)
    found = evaluated(lacking)
    assert found.status == "unsupported"
    assert found.uncovered > 0.1
    for name, estimate in found.estimates.items():
        of_log = name == "avg"
        assert ("uncovered" in estimate.reasons) == ("mean_weight" in estimate.reasons) != of_log
        assert ("uncovered" in found.differences[name].reasons) != of_log
    assert "%" in found.verdict
    fine = evaluated(batch)
    assert all("mean_weight" not in each.reasons for each in fine.estimates.values())
    assert fine.uncovered == 0.0


def test_rewards_are_no_reward_model() -> None:
    """They leave nothing that a reward could check, and an interval without a width."""
    batch = draws(looks_at_all, 2000, seed=1)
    expected = np.full((2000, K), batch.rewards.mean())
    told = replace(batch, q_logged=batch.rewards, q_expected=expected)
    halves = [ope.ESTIMATORS["dr-position"](K) for _ in range(2)]
    halves[0].update(told)
    assert "reward_model_alone" in ope.estimate(halves[0]).reasons
    halves[1].update(replace(told, q_logged=0.5 * batch.rewards))
    assert "reward_model_alone" not in ope.estimate(halves[1]).reasons
    halves[0].merge(halves[1])
    assert "reward_model_alone" not in ope.estimate(halves[0]).reasons


def test_an_evaluation_says_what_the_log_cannot_tell() -> None:
    batch = draws(looks_at_all, 20_000, 1, FAR)
    table, wide = of_batch(batch), np.arange(len(batch) + 1) * K
    for name in ("marginals_logged", "marginals_evaluated"):
        lists = pa.ListArray.from_arrays(wide, getattr(batch, name).ravel())
        table = table.append_column(name, lists)
    names = ["evaluated", "marginals_logged", "marginals_evaluated"]
    policy = ope.FromColumn("new", "evaluated", {name: name for name in names[1:]})

    def policies(**limits: float) -> ope.PolicyResult:
        log = LogReader.of_tables(table, columns=names)
        thresholds = ope.Thresholds(**limits)
        return ope.evaluate(
            log, [policy], estimators=["iips"], lead="iips", thresholds=thresholds
        ).policies[0]

    found = policies()
    assert set(found.estimates) == {"avg", "iips", "snrips", "snips"}
    assert (found.status, found.reasons) == ("low_overlap", ("unchecked",))
    assert found.differences["iips"].reasons == ("unchecked",)
    assert "the log cannot tell whether people behave as it takes for granted" in found.verdict
    trusted = policies(behaviour_error=math.inf)
    assert trusted.status == "ok"
    assert trusted.estimates["iips"].value == found.estimates["iips"].value


def two_policies(behaviour: Behaviour, **options: Any) -> dict[str, ope.PolicyResult]:
    """The evaluation policy, and the logging policy under another name."""
    batch = draws(behaviour, 20_000, seed=1)
    table = of_batch(batch)
    same = table["log_propensities"]
    log = LogReader.of_tables(table.append_column("same", same), columns=["evaluated", "same"])
    asked = [ope.FromColumn("new", "evaluated"), ope.FromColumn("same", "same")]
    found = ope.evaluate(log, asked, **options)
    return {policy.label: policy for policy in found.policies}


def test_what_one_policy_shows_of_people_holds_for_all() -> None:
    """Of the logging policy itself both estimates are the same, whatever people do."""
    found = two_policies(buys_one_at_most)
    assert {policy.lead for policy in found.values()} == {"snips"}
    for policy in found.values():
        assert policy.status == "ok"
        assert policy.estimates["snrips"].reasons == ("behaviour",)
    fine = two_policies(looks_at_all)
    assert {policy.lead for policy in fine.values()} == {"snrips"}
    assert fine["same"].estimates["snips"].status == "ok"


def test_a_reference_that_is_refuted_spoils_the_difference() -> None:
    found = two_policies(buys_one_at_most, reference="new", lead="snrips")
    assert found["same"].differences["snrips"].status == "biased"
    assert "behaviour" in found["same"].differences["snrips"].reasons
    assert found["same"].differences["snips"].status == "ok"


def test_what_is_against_the_whole_log_does_not_move_the_lead() -> None:
    found = two_policies(buys_one_at_most, reasons=["malformed_rows"])
    for policy in found.values():
        assert policy.lead == "snips"
        assert policy.status == "malformed_log"
        assert policy.estimates["snrips"].reasons == ("malformed_rows", "behaviour")


def test_a_log_of_too_many_laws_or_places_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request id in the place of a policy's name costs a stratum a row."""
    assert sums.MOST_STRATA == 2000
    monkeypatch.setattr(sums, "MOST_STRATA", 200)
    table = of_batch(draws(looks_at_all, 250, seed=1))
    names = pa.array([f"policy {i}" for i in range(250)])
    laws = table.set_column(table.schema.get_field_index("policy_name"), "policy_name", names)
    asked = [ope.FromColumn("new", "evaluated")]
    with pytest.raises(ValueError, match=r"strata: the log has more than 200 logging policies"):
        ope.evaluate(LogReader.of_tables(laws, columns=["evaluated"]), asked)
    few = laws.slice(0, 200)
    found = ope.evaluate(LogReader.of_tables(few, columns=["evaluated"]), asked)
    assert len(found.strata) == 200
    wide = ope.Batch.of(np.zeros((2, 1001)), np.zeros((2, 1001)), np.ones((2, 1001)))
    log = LogReader.of_tables(of_batch(wide), columns=["evaluated"])
    with pytest.raises(ValueError, match=r"places: the longest ranking has 1,001 places"):
        ope.evaluate(log, asked)
    assert ope.evaluate(log, asked, places=3).places == 3
