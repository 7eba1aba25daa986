"""Arms of an experiment: by enumeration, against the truth, and broken."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from commands import run
from scipy.stats import binom, multinomial

import fastrank as fr
from fastrank import ope, simulate
from fastrank.eventlog import LogReader, LogWriter
from fastrank.ope import ratio
from fastrank.ope.armpolicies import ArmPolicies
from fastrank.ope.contrast import Contrast, contrast
from fastrank.ope.estimators import Avg
from fastrank.ope.propensities import judge
from fastrank.ope.ratio import LEAST_P, ratio_p_value

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVEN = {"control": 0.5, "explore": 0.5}


def table(
    arms: Sequence[str],
    items: Any,
    logged: Any,
    rewards: Any,
    *,
    users: Any = None,
    revisions: Any = None,
    times: Any = None,
    **columns: Any,
) -> pa.Table:
    """A log: item ids, conditional propensities and rewards (n,) or (n, k); columns likewise."""
    n = len(arms)

    def lists(values: Any, kind: Any) -> pa.Array:
        return pa.array(np.asarray(values).reshape(n, -1).tolist(), pa.list_(kind))

    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(logged, np.float64).reshape(n, -1))
        more = {name: lists(np.log(values), pa.float64()) for name, values in columns.items()}
    seconds = range(n) if times is None else times
    return pa.table(
        {
            "request_id": [f"r{i}" for i in range(n)],
            "ts": pa.array(
                [NOON + timedelta(seconds=s) for s in seconds], pa.timestamp("us", "UTC")
            ),
            "user_id": [f"u{i}" for i in (range(n) if users is None else users)],
            "experiment": ["e"] * n,
            "arm": pa.array([*arms], pa.string()),
            "revision": pa.array([None] * n if revisions is None else [*revisions], pa.string()),
            "policy_name": ["uniform"] * n,
            "propensity_kind": ["exact"] * n,
            "item_ids": lists(items, pa.int64()),
            "log_propensities": lists(logs, pa.float64()),
            "log_propensity": logs.sum(axis=1),
            "rewards": lists(rewards, pa.float64()),
            **more,
        }
    )


def reader(made: pa.Table) -> LogReader:
    own = [name for name in made.column_names if name.startswith("p_")]
    return LogReader.of_tables([made], columns=own)


# ---- The sample-ratio test ------------------------------------------------------------------


def size(n: int, share: float, level: float) -> float:
    """How often the test rejects at a level where nothing is wrong, exactly."""
    shares = {"a": share, "b": 1.0 - share}
    counts = np.arange(n + 1)
    p = [ratio_p_value({"a": int(k), "b": n - int(k)}, shares) for k in counts]
    return float(binom.pmf(counts, n, share)[np.array(p) < level].sum())


@pytest.mark.parametrize(("n", "share"), [(8, 0.5), (40, 0.3), (300, 0.02), (300, 0.5)])
def test_sample_ratio_by_enumeration(n: int, share: float) -> None:
    """Exact below a hundred expected; with chi-square within a fifth of its level."""
    for level in (0.05, LEAST_P):
        assert size(n, share, level) <= level * (1.0 if n * min(share, 1 - share) < 100 else 1.2)


def test_chi_square_of_small_counts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratio, "_FEW", 5.0)
    assert size(300, 0.02, LEAST_P) > 3 * LEAST_P


def test_sample_ratio_of_three_arms_by_enumeration() -> None:
    shares, n = {"a": 0.2, "b": 0.3, "c": 0.5}, 12
    law, found = multinomial(n, [*shares.values()]), 0.0
    for a, b in product(range(n + 1), repeat=2):
        if a + b <= n:
            counts = {"a": a, "b": b, "c": n - a - b}
            found += law.pmf([*counts.values()]) * (ratio_p_value(counts, shares) < 0.05)
    assert 0.005 < found <= 0.05


def test_sample_ratio_has_power_and_arms_of_no_share() -> None:
    assert ratio_p_value({"a": 5000, "b": 5000}, {"a": 0.48, "b": 0.52}) < LEAST_P
    assert ratio_p_value({"a": 100, "b": 1}, {"a": 1.0, "b": 0.0}) == 0.0
    assert ratio_p_value({"a": 100, "b": 0}, {"a": 1.0, "b": 0.0}) == 1.0


# ---- Differences ----------------------------------------------------------------------------

TRUTH = -0.05


def shares_that_change(
    seed: int, *, periods: bool = True, clustered: bool = True, users: int = 400
) -> Contrast:
    """200 users a period, of whom each clicks as they are; explore is busier when all click less.

    Explore costs .05; pooled over both times it looks better, since it has most of the good days.
    """
    rng = np.random.default_rng(seed)
    tastes = rng.normal(0.0, 0.12, users)
    sides: list[tuple[Any, ...]] = []
    for explore, rate in ((0.2, 0.3), (0.8, 0.6)):
        arm = rng.random(users) < explore  # a user has one arm at a time
        who = np.repeat(np.arange(users), rng.integers(1, 40, users))
        clicked = rng.random(len(who)) < rate + tastes[who] + np.where(arm[who], TRUTH, 0.0)
        sides.append((who, arm[who], clicked.astype(np.float64)))
    if not periods:
        sides = [tuple(np.concatenate(each) for each in zip(*sides, strict=True))]
    pairs = []
    for who, arm, clicked in sides:
        pair = []
        for of_arm in (True, False):
            rows = arm == of_arm
            m = int(rows.sum())
            groups = who[rows] if clustered else rng.integers(0, 2**40, m)
            each = Avg(1)
            each.update(ope.Batch.of(np.zeros(m), np.zeros(m), clicked[rows], groups=groups))
            pair.append(each)
        pairs.append((pair[0], pair[1]))
    return contrast(pairs, bootstrap=False)


def missed(logs: int, **how: Any) -> int:
    found = 0
    for seed in range(logs):
        interval = shares_that_change(seed, **how).difference.interval
        assert interval is not None
        found += not interval[0] <= TRUTH <= interval[1]
    return found


def test_intervals_of_differences_hold() -> None:
    """Of 200 intervals 10 should miss; 20 or more have the probability .002."""
    assert binom.sf(19, 200, 0.05) < 0.003
    assert 1 <= missed(200) < 20


def test_ignoring_that_shares_changed_is_caught() -> None:
    assert missed(20, periods=False) == 20


def test_errors_that_are_not_clustered_are_caught() -> None:
    assert missed(200, clustered=False) >= 20


def simpson() -> pa.Table:
    """Explore is worse by exactly .1 in either revision, and better in all."""
    arms, revisions, rewards = [], [], []
    for revision, arm, rows, clicks in (
        ("r1", "control", 800, 240), ("r1", "explore", 200, 40),
        ("r2", "control", 200, 160), ("r2", "explore", 800, 560),
    ):  # fmt: skip
        arms += [arm] * rows
        revisions += [revision] * rows
        rewards += [1.0] * clicks + [0.0] * (rows - clicks)
    # Arms take turns; the second revision begins when the first has ended.
    times = [(i % 200) + 1000 * (revision == "r2") for i, revision in enumerate(revisions)]
    return table(
        arms, np.ones(2000), np.ones(2000), rewards, revisions=revisions, times=times,
        users=np.arange(2000) % 1000,
    )  # fmt: skip


SHARES = {"r1": {"control": 8, "explore": 2}, "r2": {"control": 2, "explore": 8}}


def test_a_worked_example() -> None:
    found = ope.evaluate_arms(reader(simpson()), shares=SHARES, cluster=False)
    assert (found.status, found.experiment, found.control) == ("ok", "e", "control")
    (compared,) = found.compared
    assert compared.periods == 2
    assert compared.difference.value == pytest.approx(-0.1, abs=1e-12)
    assert compared.difference.interval is not None
    assert compared.difference.interval[1] < 0.0
    assert {each.arm: each.earned.value for each in found.arms} == {"control": 0.4, "explore": 0.6}
    assert found.verdict[1].startswith("explore earned 0.1 less a ranking than control")
    assert found.sample_ratio.p_value == 1.0
    assert found.sample_ratio.unit == "requests"
    json.dumps(found.to_dict())
    # Without revisions all is one time, whose shares are not these.
    pooled = simpson().drop_columns(["revision"])
    found = ope.evaluate_arms(reader(pooled), shares=EVEN, cluster=False)
    assert found.compared[0].difference.value == pytest.approx(0.2)
    # Times do as well as revisions.
    times = {NOON: SHARES["r1"], NOON + timedelta(seconds=900): SHARES["r2"]}
    found = ope.evaluate_arms(reader(pooled), shares=times, cluster=False)
    assert found.compared[0].difference.value == pytest.approx(-0.1, abs=1e-12)
    assert [each["name"] for each in found.periods] == [
        "from 2026-03-01T12:00:00Z", "from 2026-03-01T12:15:00Z"
    ]  # fmt: skip


def test_only_the_times_that_both_ran_count() -> None:
    """Control earns more before explore begins, and after it ends."""
    arms = ["control"] * 100 + ["control", "explore"] * 200 + ["control"] * 100
    rewards = [1.0] * 100 + [1.0, 0.0, 0.0, 1.0] * 100 + [1.0] * 100
    found = ope.evaluate_arms(reader(table(arms, np.ones(600), np.ones(600), rewards)))
    (compared,) = found.compared
    assert compared.rows == {"explore": 200, "control": 199}  # up to explore's last
    assert compared.difference.value == pytest.approx(0.5 - 99 / 199)
    assert found.sample_ratio.p_value is None
    assert "was not tested: shares are not given" in found.verdict[0]
    # Shares that are said to hold all the time do not fit.
    found = ope.evaluate_arms(reader(table(arms, np.ones(600), np.ones(600), rewards)), shares=EVEN)
    assert found.reasons == ("sample_ratio",)
    assert found.compared[0].difference.status == "malformed_log"
    assert "The comparison of the arms is not reliable: shares of users" in found.verdict[0]
    assert "explore 200 of 300 expected" in found.verdict[0]
    apart = table(["control"] * 50 + ["explore"] * 50, np.ones(100), np.ones(100), np.ones(100))
    found = ope.evaluate_arms(reader(apart))
    assert found.compared[0].difference.reasons == ("no_rows",)
    assert "no period in which both ran" in found.verdict[1]


def test_users_in_two_arms_are_counted() -> None:
    arms = ["control", "explore"] * 500
    users = [*range(1000)]
    rewards = [1.0, 0.0, 0.0, 1.0] * 250
    users[1], users[3] = 0, 2  # two of explore are of control, too
    found = ope.evaluate_arms(
        reader(table(arms, np.ones(1000), np.ones(1000), rewards, users=users)), shares=EVEN
    )
    ratio = found.sample_ratio
    assert (ratio.users_in_two_arms, ratio.users_moved, ratio.counted) == (2, 0, 998)
    assert ratio.periods[0].counts == {"control": 498, "explore": 498}
    assert found.status == "ok"
    assert "2 users are in several arms at once" in found.verdict[0]
    # By requests, as if nobody were known.
    users = [i // 2 for i in range(1000)]
    made = table(arms, np.ones(1000), np.ones(1000), rewards, users=users)
    assert ope.evaluate_arms(reader(made), shares=EVEN).reasons == ("users_in_two_arms",)
    by_request = ope.evaluate_arms(reader(made), shares=EVEN, cluster=False)
    assert (by_request.status, by_request.sample_ratio.unit) == ("ok", "requests")
    nobody = made.set_column(2, "user_id", pa.nulls(1000, pa.string()))
    assert ope.evaluate_arms(reader(nobody), shares=EVEN).sample_ratio.unit == "requests"
    # Who changes arms with the shares is in one at a time.
    moved = table(arms, np.ones(1000), np.ones(1000), rewards, users=users,
                  revisions=["r1", "r2"] * 500)  # fmt: skip
    found = ope.evaluate_arms(reader(moved))
    assert (found.sample_ratio.users_in_two_arms, found.sample_ratio.users_moved) == (0, 500)


def test_rows_that_one_arm_lacks_are_said() -> None:
    """Rewards that are not observed go by what was shown, for all that is known."""
    arms, rewards = ["control", "explore"] * 300, np.tile([1.0, 0.0, 0.0, 1.0], 150)
    made = table(arms, np.ones(600), np.ones(600), rewards)
    listed = made.column("rewards").to_pylist()
    for i in range(1, 100, 2):
        listed[i] = [None]
    lacking = made.set_column(
        made.column_names.index("rewards"), "rewards", pa.array(listed, pa.list_(pa.float64()))
    )
    found = ope.evaluate_arms(reader(lacking), shares=EVEN)
    assert found.reasons == ("set_aside",)
    assert {each.arm: dict(each.set_aside) for each in found.arms} == {
        "control": {}, "explore": {"reward_not_observed": 50}
    }  # fmt: skip


# ---- Propensities ---------------------------------------------------------------------------

LAWS = {"control": np.array([0.7, 0.2, 0.1]), "explore": np.array([0.2, 0.3, 0.5])}
RATES = np.array([0.1, 0.2, 0.4])
NEW = np.array([0.1, 0.4, 0.5])


def population(
    shares: Mapping[str, float],
    laws: Mapping[str, np.ndarray[Any, Any]] = LAWS,
    n: int = 2000,
    logged: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> pa.Table:
    """Each arm, item and reward exactly as often as they are likely."""
    rows: list[tuple[str, int, float]] = []
    for arm, item in product(laws, range(3)):
        m = round(n * shares[arm] * laws[arm][item])
        clicks = round(m * RATES[item])
        rows += [(arm, item, 1.0)] * clicks + [(arm, item, 0.0)] * (m - clicks)
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    arms, items, rewards = (list(each) for each in zip(*rows, strict=True))
    p = [(logged or laws)[arm][item] for arm, item in zip(arms, items, strict=True)]
    columns = {f"p_{arm}": law[items] for arm, law in laws.items()}
    return table(arms, items, p, rewards, times=[0] * len(arms), p_new=NEW[items], **columns)


def columns(*labels: str) -> list[ope.FromColumn]:
    return [ope.FromColumn(label, f"p_{label}") for label in labels]


def test_each_arm_is_told_from_the_others_rows_exactly() -> None:
    found = ope.evaluate_arms(reader(population(EVEN)), columns("control", "explore"), shares=EVEN)
    assert [(each.arm, each.source) for each in found.crossed] == [
        ("control", "explore"), ("explore", "control")
    ]  # fmt: skip
    for each in found.crossed:
        estimated = each.estimated.estimates["ips"].value
        assert estimated == pytest.approx(LAWS[each.arm] @ RATES, abs=1e-9)
        assert each.estimated.status == "ok"
        assert each.z is not None
        assert abs(each.z) < 1e-6
    assert found.status == "ok"
    assert "rows estimate control at 0.15, in agreement with its own rows" in " ".join(
        found.verdict
    )


def test_a_deterministic_arm_tells_nothing_of_others() -> None:
    laws = LAWS | {"control": np.array([1.0, 0.0, 0.0])}
    found = ope.evaluate_arms(
        reader(population(EVEN, laws)), columns("control", "explore", "new"), shares=EVEN
    )
    of_control, of_explore = found.crossed
    assert (of_control.estimated.status, of_control.z is not None) == ("ok", True)
    assert of_explore.source == "control"
    assert (of_explore.estimated.status, of_explore.z) == ("unsupported", None)
    assert "uncovered" in of_explore.estimated.reasons
    assert (
        "explore cannot be estimated from control's rows: the evaluation policy shows"
        in (found.verdict[-1])
    )
    # All arms together can tell of it.
    assert found.pooled is not None
    new = found.pooled.policies[2]
    assert new.status == "ok"
    assert new.estimates["ips"].value == pytest.approx(NEW @ RATES, abs=1e-9)
    assert new.rows == 2000


@pytest.mark.slow
def test_propensities_that_are_not_true_are_caught() -> None:
    """Explore logs propensities of another law, which its own mean cannot show."""
    lies = LAWS | {"explore": np.array([0.32, 0.3, 0.38])}
    made = population(EVEN, n=20_000, logged=lies)
    for thresholds in (None, ope.Thresholds(mean_weight=9.0, mean_weight_z=4.0, uncovered=1.0)):
        found = ope.evaluate_arms(
            reader(made), columns("control"), shares=EVEN, thresholds=thresholds
        )
        assert found.crossed[0].estimated.status != "ok"
    # Such as leave the mean weight at 1: 0.2 * 0.7 / 0.28 + 0.3 * 0.2 / 0.6 + 0.5 * 0.1 / 0.125.
    lies = LAWS | {"explore": np.array([0.28, 0.6, 0.125])}
    made = population(EVEN, n=20_000, logged=lies)
    found = ope.evaluate_arms(reader(made), columns("control", "new"), shares=EVEN)
    (crossed,) = found.crossed
    assert crossed.estimated.status == "ok"
    assert crossed.z is not None
    assert crossed.z > 4.0
    assert found.reasons == ("arms_contradict",)
    assert found.pooled is not None
    assert {each.status for each in found.pooled.policies} == {"malformed_log"}
    assert found.compared[0].difference.status == "ok"  # which rests on no propensity


def test_another_arms_propensities_are_caught() -> None:
    """A policy that did not draw its arm's rows is no part of a mixture."""
    made = population(EVEN)
    wrong = [ope.FromColumn("control", "p_explore"), ope.FromColumn("explore", "p_control")]
    found = ope.evaluate_arms(reader(made), [*wrong, *columns("new")], shares=EVEN)
    for each in found.crossed:
        assert "audit_failed" in each.estimated.reasons
        assert each.z is None
    assert found.pooled is not None
    assert found.pooled.policies[2].status == "unsupported"
    assert "were not drawn by the policy" in (found.arms[0].why_not_known or "")


def test_pooled_estimates_weigh_by_the_mixture() -> None:
    """Exactly as by hand, and never above one over a share."""
    shares = {"control": 0.75, "explore": 0.25}
    made = population(shares, n=4000)
    found = ope.evaluate_arms(
        reader(made), columns("control", "explore", "new"), shares=shares, estimators=["ips"]
    )
    assert (found.weighed_by, found.why_no_mixture) == ("mixture", None)
    assert found.pooled is not None
    for policy, law in zip(found.pooled.policies, [*LAWS.values(), NEW], strict=True):
        assert policy.estimates["ips"].value == pytest.approx(law @ RATES, abs=1e-9)
    explore, new = found.pooled.policies[1:]
    assert all(low < 4.0 for low, _, _ in explore.histogram)
    (stratum,) = found.pooled.strata
    assert stratum.stratum.law == "mixture of arms, all the time"
    items = np.array(made.column("item_ids").to_pylist())[:, 0]
    mixture = sum(shares[arm] * LAWS[arm][items] for arm in shares)
    earned = np.array(made.column("rewards").to_pylist())[:, 0]
    by_hand = (NEW[items] / mixture * earned).mean()
    assert new.estimates["ips"].value == pytest.approx(by_hand, rel=1e-12)
    # By the arms' own propensities it is the same in the mean, and varies more.
    own = ope.evaluate_arms(reader(made), columns("new"), shares=shares, estimators=["ips"])
    assert own.weighed_by == "arm"
    assert own.pooled is not None
    theirs = own.pooled.policies[0].estimates["ips"]
    assert theirs.value == pytest.approx(NEW @ RATES, abs=1e-9)
    assert new.estimates["ips"].standard_error is not None
    assert theirs.standard_error is not None
    assert new.estimates["ips"].standard_error < 0.85 * theirs.standard_error
    assert "no model is given" in (own.why_no_mixture or "")
    untold = ope.evaluate_arms(reader(made), columns("control", "explore", "new"))
    assert untold.why_no_mixture == "shares are not given"


def test_the_mixture_of_rankings_is_that_of_prefixes() -> None:
    """Of two places and shares that change: log-propensities by hand."""
    laws = {"control": [[0.6, 0.5], [0.3, 0.9]], "explore": [[0.2, 0.4], [0.5, 0.25]]}
    arms, revisions = ["control", "explore"], ["r1", "r2"]
    p = {arm: np.array(law) for arm, law in laws.items()}
    logged = np.array([p[arm][i] for i, arm in enumerate(arms)])
    made = table(arms, [[1, 2], [2, 1]], logged, [[0, 1], [1, 0]], revisions=revisions,
                 p_control=p["control"], p_explore=p["explore"])  # fmt: skip
    log = ope.ExperimentLog(reader(made), shares=SHARES)
    (batch,) = log
    given = {each.label: each for each in columns("control", "explore")}
    policies = ArmPolicies(log, given, [])
    rows = np.ones(2, np.bool_)
    judged = policies.judged(
        batch, rows, lambda batch, rows, asked: judge(batch, asked, rows, logging={})
    )
    drawn, unknown = policies.mixed(batch, rows, judged)
    assert not any(which.any() for which in unknown.values())
    for i, shares in enumerate(
        ({"control": 0.8, "explore": 0.2}, {"control": 0.2, "explore": 0.8})
    ):
        first = sum(share * p[arm][i, 0] for arm, share in shares.items())
        both = sum(share * p[arm][i].prod() for arm, share in shares.items())
        assert np.exp(drawn.log_propensities[i]).tolist() == pytest.approx([first, both / first])
    assert drawn.stratum.tolist() == [0, 1]


# ---- With models ----------------------------------------------------------------------------

K = 2
POLICIES = {"control": fr.PlackettLuce(2.0), "explore": fr.PlackettLuce(2.5)}


@pytest.fixture(scope="module")
def world() -> simulate.World:
    clicks = simulate.PositionBased([1.0, 0.6])
    return simulate.World.synthetic(200, 30, clicks, dim=4, seed=1, typical_rate=0.2)


@pytest.fixture(scope="module")
def model(world: simulate.World) -> fr.Model:
    return world.model(noise=0.3, seed=2)


def serve(
    folder: Path,
    world: simulate.World,
    model: fr.Model,
    rows: int = 4000,
    policies: Mapping[str, Mapping[str, fr.Policy]] | None = None,
    rules: Mapping[str, fr.Rules] | None = None,
) -> LogReader:
    """Users by turns are of control, or of explore: three in ten at first, seven later."""
    rng = np.random.default_rng(5)
    with LogWriter(folder) as log:
        for i, user in enumerate(rng.integers(0, 200, rows).tolist()):
            revision, explored = ("r1", 3) if i < rows // 2 else ("r2", 7)
            arm = "explore" if user % 10 < explored else "control"
            drawn_by = (policies or {}).get(revision, POLICIES)[arm]
            ranking = model.recommend(
                world.user_ids[user].item(), K, policy=drawn_by, seed=i,
                rules=(rules or {}).get(arm),
            )  # fmt: skip
            clicks = world.clicks([user], [ranking.item_ids], np.array([K]), seed=9, first_row=i)
            log.append(
                ranking, request_id=f"r{i}", user_id=world.user_ids[user].item(), experiment="warm",
                arm=arm, revision=revision, rewards=clicks[0], ts=NOON + timedelta(seconds=i),
            )  # fmt: skip
    return LogReader(folder)


USERS = {"r1": {"control": 7, "explore": 3}, "r2": {"control": 3, "explore": 7}}


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, world: simulate.World, model: fr.Model
) -> Path:
    folder = tmp_path_factory.mktemp("arms")
    model.save(folder / "model")
    serve(folder / "logs", world, model)
    return folder


def test_arms_policies_are_what_their_rows_say(
    served: Path, world: simulate.World, model: fr.Model
) -> None:
    """True values lie within four standard errors: 1 in 16,000 for each of four."""
    asked = [ope.ByModel("between", fr.PlackettLuce(2.2), model)]
    found = ope.evaluate_arms(LogReader(served / "logs"), asked, shares=USERS, logging=[model])
    assert (found.experiment, found.status, found.weighed_by) == ("warm", "ok", "mixture")
    assert [each.policy for each in found.arms] == [
        f"plackett_luce, temperature {t}, model {model.version[:12]}" for t in ("2", "2.5")
    ]
    truth = {
        arm: simulate.true_value(world, model, policy, K).value for arm, policy in POLICIES.items()
    }
    (compared,) = found.compared
    assert compared.periods == 2
    error = compared.difference.standard_error
    assert error is not None
    assert compared.difference.value == pytest.approx(
        truth["explore"] - truth["control"], abs=4 * error
    )
    for each in found.crossed:
        best = each.estimated.estimates[each.estimated.lead]
        assert best.standard_error is not None
        assert best.value == pytest.approx(truth[each.arm], abs=4 * best.standard_error)
        assert each.estimated.reasons == ()
        assert each.z is not None
        assert abs(each.z) < 4.0
    assert found.pooled is not None
    (pooled,) = found.pooled.policies
    best = pooled.estimates[pooled.lead]
    between = simulate.true_value(world, model, fr.PlackettLuce(2.2), K).value
    assert (pooled.status, pooled.rows) == ("ok", 4000)
    assert best.standard_error is not None
    assert best.value == pytest.approx(between, abs=4 * best.standard_error)
    # A policy of an arm in only one of its periods is not what drew its rows.
    wrong = [ope.ByModel("explore", fr.PlackettLuce(2.4), model)]
    found = ope.evaluate_arms(LogReader(served / "logs"), wrong, shares=USERS, logging=[model])
    assert found.pooled is not None
    assert "audit_failed" in found.pooled.policies[0].reasons
    assert "audit_failed" not in found.crossed[0].estimated.reasons


@pytest.mark.slow
def test_what_no_mixture_is_known_of(
    tmp_path: Path, served: Path, world: simulate.World, model: fr.Model
) -> None:
    asked = [ope.ByModel("colder", fr.PlackettLuce(1.8), model)]
    found = ope.evaluate_arms(LogReader(served / "logs"), asked, shares=USERS)
    assert found.why_no_mixture == (
        "the policy of arm control is unknown: no model is given that its rows could come from"
    )
    other = world.model(noise=0.6, seed=3)
    found = ope.evaluate_arms(LogReader(served / "logs"), asked, shares=USERS, logging=[other])
    assert "its model is not among those given" in (found.why_no_mixture or "")
    assert found.crossed == ()
    found = ope.evaluate_arms(
        LogReader(served / "logs"), asked, shares=USERS, logging=[model], estimators=["iips"]
    )
    assert found.why_no_mixture == "iips needs marginals under one logging policy"
    assert len(found.crossed) == 2
    # Policies may change with shares; within one time each arm has one.
    changing = {"r2": POLICIES | {"explore": fr.Uniform()}}
    made = serve(tmp_path / "a", world, model, 400, changing)
    found = ope.evaluate_arms(made, asked, shares=USERS, logging=[model])
    assert found.weighed_by == "mixture"
    assert "; then uniform" in (found.arms[1].policy or "")
    always = {"control": 5, "explore": 5}
    one_time = {NOON - timedelta(days=1): always}
    found = ope.evaluate_arms(made, asked, shares=one_time, logging=[model])
    assert found.periods[0]["name"] == "revision r1, from 2026-02-28T12:00:00Z"
    # Rows' own rules would be taken for the other arm's.
    pinned = {"explore": fr.Rules(pin={1: world.item_ids[0].item()})}
    made = serve(tmp_path / "b", world, model, 100, rules=pinned)
    found = ope.evaluate_arms(made, asked, shares=USERS, logging=[model])
    assert "arms are under different rules" in (found.why_no_mixture or "")


# ---- What is refused, and the command -------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"experiment": "f"}, "experiment: the log has none called 'f'; it has only 'e'"),
        ({"experiment": ""}, "experiment: expected a name, got ''"),
        ({"control": "c"}, "control: expected an arm, one of control, explore; got 'c'"),
        ({"shares": {"control": 1.0}}, "shares: the log has an arm 'explore' (all the time), and"),
        ({"shares": {"r1": EVEN}}, "shares: the log has rows without a revision, and they are of"),
        (
            {"shares": {NOON + timedelta(days=1): EVEN}},
            "shares: they say nothing of the time befor",
        ),
        ({"shares": {NOON.replace(tzinfo=None): EVEN}}, "shares: 2026-03-01T12:00:00 says no time"),
        ({"shares": {"control": -1.0, "explore": 1.0}}, "shares: control: expected a number of at"),
        (
            {"shares": {"control": math.nan}},
            "shares: control: expected a number of at least 0, got",
        ),
        ({"shares": {"control": 0, "explore": 0}}, "shares: expected a sum above 0, got 0"),
        ({"shares": {"control": 1, "r1": EVEN}}, "shares: some are of arms, and some of revisions"),
        ({"shares": {NOON: EVEN, "r1": EVEN}}, "shares: expected either revisions or datetimes to"),
        ({"shares": {}}, "shares: expected a mapping of arms to shares, got {}"),
        ({"places": 0}, "places: expected an integer of at least 1, got 0"),
    ],
)
def test_what_is_refused(options: Any, said: str) -> None:
    made = table(["control", "explore"] * 5, np.ones(10), np.ones(10), np.ones(10))
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        ope.evaluate_arms(reader(made), **options)


def test_which_experiment() -> None:
    made = table(["control", "explore"] * 5, np.ones(10), np.ones(10), np.ones(10))
    at = made.column_names.index("experiment")
    none = made.set_column(at, "experiment", pa.nulls(10, pa.string()))
    with pytest.raises(ValueError, match=r"experiment: the log has none$"):
        ope.ExperimentLog(reader(none))
    two = made.set_column(at, "experiment", pa.array([*"eeeeeeeeff"]))
    with pytest.raises(ValueError, match=r"experiment: the log has several, 'e', 'f': name one"):
        ope.ExperimentLog(reader(two))
    arms = made.column("arm").to_pylist()
    lacking = two.set_column(
        made.column_names.index("arm"), "arm", pa.array([None, *arms[1:]], pa.string())
    )
    log = ope.ExperimentLog(reader(lacking), "e")
    assert (log.rows, log.rows_without_arm) == (7, 1)
    assert sum(len(batch) for batch in log) == 7
    nobody = made.set_column(made.column_names.index("arm"), "arm", pa.nulls(10, pa.string()))
    with pytest.raises(ValueError, match="experiment: 'e': no row says which arm it is of"):
        ope.ExperimentLog(reader(nobody))


def test_rows_kept_with_different_probabilities_are_not_tested() -> None:
    made = table(["control", "explore"] * 5, np.ones(10), np.ones(10), np.ones(10))
    weighed = made.append_column("row_weight", pa.array([10.0, *np.ones(9)]))
    found = ope.evaluate_arms(reader(weighed), shares=EVEN)
    assert found.sample_ratio.p_value is None
    assert "rows were kept with different probabilities" in found.verdict[0]


class TestWriting:
    @pytest.fixture
    def ranking(self) -> fr.Ranking:
        return fr.Catalog([1, 2], [[1.0], [2.0]]).rank([1.0], 1, policy=fr.Uniform(), seed=1)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"arm": "a"}, "experiment: required, since arm is 'a'"),
            ({"experiment": "e"}, "arm: required, since experiment is 'e'"),
            ({"revision": "1", "arm": "a"}, "experiment: required, since arm is 'a'"),
            ({"revision": ""}, "revision: must not be empty"),
            ({"experiment": "e", "arm": ""}, "arm: must not be empty"),
            ({"experiment": 1, "arm": "a"}, "experiment: expected a str, got 1"),
        ],
    )
    def test_what_is_refused(
        self, tmp_path: Path, ranking: fr.Ranking, given: Any, said: str
    ) -> None:
        with LogWriter(tmp_path) as log, pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            log.append(ranking, query=[1.0], **given)

    def test_a_revision_may_be_of_no_experiment(self, tmp_path: Path, ranking: fr.Ranking) -> None:
        with LogWriter(tmp_path) as log:
            log.append(ranking, query=[1.0], revision="r1")
        (batch,) = LogReader(tmp_path)
        assert [batch.value(name, 0) for name in ("experiment", "arm", "revision")] == [
            None,
            None,
            "r1",
        ]

    def test_rows_that_came_twice_in_two_arms_contradict(
        self, tmp_path: Path, ranking: fr.Ranking
    ) -> None:
        with LogWriter(tmp_path) as log:
            for name, arm in (("a", "x"), ("a", "x"), ("b", "x"), ("b", "y")):
                log.append(ranking, request_id=name, query=[1.0], experiment="e", arm=arm)
        log_again = LogReader(tmp_path)
        (batch,) = log_again
        rows = [*zip(batch.values("request_id"), batch.values("arm"), strict=True)]
        assert rows == [("a", "x"), ("b", "x")]
        assert log_again.report.equal_duplicates == 1
        assert log_again.report.rows_set_aside == 1


def test_the_command(served: Path, tmp_path: Path) -> None:
    arguments = [
        "evaluate", served / "logs", "--model", served / "model", "--experiment", "warm",
        "--shares", "r1:control=7,explore=3", "--shares", "r2:control=3,explore=7",
    ]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "Audit: The log agrees with the model." in said
    assert "ok Shares of users are as intended (p = 1)." in said
    assert "over 2 periods of constant shares" in said
    assert "explore's rows estimate" in said
    policy = ["--policy", "between=plackett_luce:temperature=2.2", "--report", tmp_path / "a.html"]
    result = run(*arguments, *policy)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "Rows of all arms are weighed by the mixture" in said
    assert "between would earn" in said
    page = " ".join((tmp_path / "a.html").read_text().split())
    assert "Shares of users are as intended" in page
    found = json.loads(run(*arguments, "--json").stdout)
    assert (found["experiment"], found["status"], found["pooled"]) == ("warm", "ok", None)
    assert found["audit"]["passed"] is True
    # The only experiment need not be named.
    again = json.loads(run("evaluate", served / "logs", "--control", "explore", "--json").stdout)
    assert again["compared"][0]["arm"] == "control"
    assert again["why_no_mixture"] == "shares are not given"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shares", "control"], "--shares: expected [FROM:]ARM=SHARE,...; got 'control'"),
        (["--shares", "a=1,a=2"], "--shares: a=1,a=2: a is given twice"),
        (["--shares", "a=x"], "--shares: a=x: expected a number; got 'x'"),
        (
            ["--shares", "a=1", "--shares", "b=1"],
            "--shares: b=1: this start is given twice",
        ),
        (["--shares", "a=1", "--shares", "r:b=1"], "--shares: some have a start"),
        (["--experiment", "cold"], "experiment: the log has none called 'cold'"),
        (["--experiment", "warm", "--report", "x.html"], "--report: shows policies: name at"),
        (["--experiment", "warm", "--format", "obd"], "--experiment: needs --format log"),
    ],
)
def test_what_the_command_refuses(served: Path, arguments: list[str], said: str) -> None:
    result = run("evaluate", served / "logs", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_times_on_the_command_line(served: Path) -> None:
    shares = [
        "2026-03-01T12:00:00Z:control=7,explore=3",
        "2026-03-01T13:00:00+00:00:control=1,explore=1",
    ]
    given = [word for each in shares for word in ("--shares", each)]
    found = json.loads(run("evaluate", served / "logs", *given, "--json").stdout)
    assert [each["name"] for each in found["periods"]] == [
        "revision r1, from 2026-03-01T12:00:00Z",
        "revision r2, from 2026-03-01T12:00:00Z",
        "revision r2, from 2026-03-01T13:00:00Z",
    ]


@pytest.fixture(scope="module")
def models() -> list[fr.Model]:
    rng = np.random.default_rng(5)
    users = [f"u{j}" for j in range(300)]
    return [
        fr.Model(
            fr.Catalog(np.arange(12), rng.standard_normal((12, 3))),
            users,
            rng.standard_normal((300, 3)),
        )
        for _ in range(2)
    ]


class TestModelsThatWereExchanged:
    """While shares, and the revision, stay: each row was drawn by the mixture of its own model."""

    SHARES: ClassVar = {"control": 0.7, "explore": 0.3}
    ARMS: ClassVar = {"control": fr.PlackettLuce(1.0), "explore": fr.PlackettLuce(1.6)}

    def log(self, folder: Path, models: Sequence[fr.Model], revisions: Sequence[str],
            only: Mapping[int, str] | None = None) -> LogReader:  # fmt: skip
        rng = np.random.default_rng(6)
        with LogWriter(folder) as log:
            for i in range(2400):
                user, m = int(rng.integers(300)), i // 1200
                arm = "explore" if user % 10 < 3 else "control"
                seed, clicks = int(rng.integers(2**50)), rng.random(2)
                if (only or {}).get(m, arm) != arm:
                    continue
                ranking = models[m].recommend(f"u{user}", 2, policy=self.ARMS[arm], seed=seed)
                log.append(
                    ranking,
                    user_id=f"u{user}",
                    experiment="e",
                    arm=arm,
                    revision=revisions[m],
                    request_id=f"r{i}",
                    ts=NOON + timedelta(seconds=i),
                    rewards=(clicks < 0.1 + 0.02 * ranking.item_ids).astype(float).tolist(),
                )
        return LogReader(folder)

    def found(self, log: LogReader, models: Sequence[fr.Model], **options: Any) -> Any:
        asked = [ope.ByModel("colder", fr.PlackettLuce(0.9), models[1])]
        return ope.evaluate_arms(log, asked, shares=self.SHARES, logging=models, **options)

    def test_they_are_weighed_as_if_each_had_a_revision(
        self, models: list[fr.Model], tmp_path: Path
    ) -> None:
        one = self.found(self.log(tmp_path / "one", models, ["r", "r"]), models)
        two = self.found(self.log(tmp_path / "two", models, ["r1", "r2"]), models)
        assert (one.weighed_by, one.why_no_mixture) == ("mixture", None)
        assert one.arms[0].why_not_known is None
        assert {each.z is None for each in one.crossed} == {False}
        estimates = [each.pooled.policies[0].estimates["snrips"] for each in (one, two)]
        assert estimates[0].value == pytest.approx(estimates[1].value, rel=1e-12)
        assert estimates[0].standard_error == pytest.approx(estimates[1].standard_error, rel=1e-9)
        versions = [each.stratum.model_version for each in one.pooled.strata]
        assert versions == sorted(each.version for each in models)

    def test_an_arm_without_rows_of_one_is_not_known(
        self, models: list[fr.Model], tmp_path: Path
    ) -> None:
        log = self.log(tmp_path, models, ["r", "r"], only={1: "control"})
        found = self.found(log, models)
        assert found.weighed_by == "arm"
        assert "explore is unknown: it has no rows of the model" in found.why_no_mixture
