"""Logs against the truth: real ones with published figures, simulated ones, and broken ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import fastrank as fr
from fastrank import obd, ope, reference, simulate
from fastrank.eventlog import LogReader, LogWriter, from_obd, schema
from fastrank.ope import report
from fastrank.ope.forecast import forecast
from fastrank.policies import Law

EXACT = 1e-9
T = 0.5


@pytest.fixture(scope="module")
def world() -> simulate.World:
    clicks = simulate.PositionBased([1.0, 0.8, 0.6])
    return simulate.World.synthetic(150, 60, clicks, dim=6, seed=1, typical_rate=0.1)


@pytest.fixture(scope="module")
def model(world: simulate.World) -> fr.Model:
    return world.model(noise=0.3, seed=2)


def written(
    directory: Path,
    world: simulate.World,
    ranker: fr.Model,
    policy: fr.Policy,
    rows: int = 6000,
    seed: int = 3,
    k: int = 3,
) -> LogReader:
    with LogWriter(directory) as log:
        simulate.write_log(world, ranker, policy, k, rows, log, seed=seed)
    return LogReader(directory)


@pytest.fixture(scope="module")
def stochastic(
    tmp_path_factory: pytest.TempPathFactory, world: simulate.World, model: fr.Model
) -> LogReader:
    """20,000 rankings of 3 by Plackett-Luce."""
    return written(tmp_path_factory.mktemp("log"), world, model, fr.PlackettLuce(T), 20_000)


@pytest.fixture(scope="module")
def short(
    tmp_path_factory: pytest.TempPathFactory, world: simulate.World, model: fr.Model
) -> LogReader:
    """2,000 of them, for what is exact whatever their number."""
    return written(tmp_path_factory.mktemp("log"), world, model, fr.PlackettLuce(T), 2000)


@pytest.fixture(scope="module")
def deterministic(
    tmp_path_factory: pytest.TempPathFactory, world: simulate.World, model: fr.Model
) -> LogReader:
    return written(tmp_path_factory.mktemp("log"), world, model, fr.Deterministic(), 3000)


def by_model(model: fr.Model | fr.Catalog, **policies: fr.Policy) -> list[ope.ByModel]:
    return [ope.ByModel(label, policy, model) for label, policy in policies.items()]


# Real logs, with the figures that obp gives.


def of_obd(campaign: obd.Campaign, logged: obd.LoggingPolicy) -> LogReader:
    return LogReader.of_tables(list(from_obd(campaign, logged)), columns=["position"])


def frozen(campaign: obd.Campaign) -> Callable[[Any], Any]:
    law = np.log(obd.action_distribution(campaign))
    return lambda batch: law[batch.item_ids[:, 0], batch.columns["position"].astype(int) - 1][
        :, None
    ]


def test_random_to_bts() -> None:
    found = ope.evaluate(
        of_obd("all", "random"), [ope.ByFunction("bts", frozen("all"))], cluster=False
    )
    ips, snips = (found.policies[0].estimates[name] for name in ("ips", "snips"))
    assert ips.value == pytest.approx(0.00455288, abs=5e-9)
    assert ips.value is not None
    assert ips.value / 0.0038 == pytest.approx(1.1981263, abs=5e-8)
    assert snips.value == pytest.approx(0.0047758330812, abs=5e-14)
    assert ips.diagnostics is not None
    assert ips.diagnostics.ess == pytest.approx(1639.50187, abs=5e-6)
    share = ips.diagnostics.max_weight_share * ips.diagnostics.mean_weight * 10_000
    assert share == pytest.approx(19.5984, abs=5e-5)
    assert found.policies[0].estimates["avg"].value == pytest.approx(0.0038, abs=EXACT)


@pytest.mark.parametrize(
    ("campaign", "items", "ips", "snips", "ess", "heaviest"),
    [
        ("all", 80, 0.00235963952, 0.00233371389, 340.378, 277.78),
        ("men", 34, 0.00300862633, 0.00318942316, 655.710, 178.25),
    ],
)
def test_bts_to_uniform(
    campaign: obd.Campaign, items: int, ips: float, snips: float, ess: float, heaviest: float
) -> None:
    uniform = ope.ByFunction("uniform", lambda batch: np.full((len(batch), 1), -np.log(items)))
    found = ope.evaluate(of_obd(campaign, "bts"), [uniform], cluster=False).policies[0]
    assert found.estimates["ips"].value == pytest.approx(ips, abs=5e-12)
    assert found.estimates["snips"].value == pytest.approx(snips, abs=5e-12)
    diagnostics = found.estimates["ips"].diagnostics
    assert diagnostics is not None
    assert diagnostics.ess == pytest.approx(ess, abs=5e-4)
    largest = diagnostics.max_weight_share * diagnostics.mean_weight * 10_000
    assert largest == pytest.approx(heaviest, abs=5e-3)
    assert found.status == "low_overlap"  # 42 and 69 clicks
    assert found.lead == "snips"
    assert "rips" not in found.estimates


# Simulated logs, whose truth is known.


def test_other_temperatures_are_estimated(
    stochastic: LogReader, world: simulate.World, model: fr.Model
) -> None:
    """Error budget: 5.5 clustered standard errors, each estimator and policy: 4e-8 a comparison."""
    policies = {"colder": fr.PlackettLuce(0.4), "hotter": fr.PlackettLuce(0.65)}
    found = ope.evaluate(stochastic, by_model(model, **policies), logging=[model])
    for result in found.policies:
        truth = simulate.true_value(world, model, policies[result.label], 3, n_draws=200, seed=4)
        assert result.status == "ok"
        assert result.uncovered == 0.0
        for name in ("ips", "snips", "rips", "snrips"):
            estimate = result.estimates[name]
            error = np.hypot(estimate.standard_error or 0.0, truth.standard_error)
            assert abs((estimate.value or 0.0) - truth.value) < 5.5 * error, name
        # The comparison with the log cancels most of what both depend on.
        difference, estimate = result.differences["snrips"], result.estimates["snrips"]
        assert (difference.standard_error or 1.0) < (estimate.standard_error or 0.0) / 2
        logged = simulate.true_value(world, model, fr.PlackettLuce(T), 3, n_draws=200, seed=5)
        error = np.hypot(difference.standard_error or 0.0, 2 * truth.standard_error)
        assert abs((difference.value or 0.0) - (truth.value - logged.value)) < 5.5 * error


def test_the_policy_that_logged_is_worth_its_average(
    stochastic: LogReader, model: fr.Model
) -> None:
    found = ope.evaluate(stochastic, by_model(model, same=fr.PlackettLuce(T)), logging=[model])
    estimates = found.policies[0].estimates
    for name in ("ips", "snips", "rips", "snrips", "clipped-ips"):
        assert estimates[name].value == pytest.approx(estimates["avg"].value or 0.0, rel=1e-6)
        diagnostics = estimates[name].diagnostics
        assert diagnostics is not None
        assert diagnostics.ess_share == pytest.approx(1.0, rel=1e-6)
        assert diagnostics.mean_weight_z == pytest.approx(0.0, abs=3.0)
    assert found.policies[0].verdict.endswith("a ranking, the same as the logging policy.")


def test_a_deterministic_log_can_evaluate_nothing_else(
    deterministic: LogReader, model: fr.Model
) -> None:
    policies = by_model(model, warm=fr.PlackettLuce(T), same=fr.Deterministic())
    warm, same = ope.evaluate(deterministic, policies, logging=[model]).policies
    assert (warm.status, warm.reasons[0]) == ("unsupported", "uncovered")
    # 1 - P(the logged ranking), exactly, over rows.
    batch = next(iter(deterministic))
    lp = [
        model.catalog.log_propensities(
            model.user_vectors[user], items, policy=fr.PlackettLuce(T)
        ).sum()
        for user, items in zip(model.find_users(batch.user_ids), batch.item_ids, strict=True)
    ]
    assert warm.uncovered == pytest.approx(1.0 - np.exp(lp).mean(), abs=EXACT)
    assert warm.verdict.startswith("This log cannot evaluate warm: the evaluation policy shows")
    assert (same.status, same.uncovered) == ("ok", 0.0)
    assert same.estimates["ips"].value == same.estimates["avg"].value


def test_a_deterministic_target_of_one_place_can_be_reached(
    tmp_path: Path, world: simulate.World, model: fr.Model
) -> None:
    log = written(tmp_path, world, model, fr.PlackettLuce(0.3), 20_000, k=1)
    found = ope.evaluate(log, by_model(model, best=fr.Deterministic()), logging=[model])
    result = found.policies[0]
    truth = simulate.true_value(world, model, fr.Deterministic(), 1, seed=6)
    estimate = result.estimates["snips"]
    assert result.status == "ok"
    assert abs((estimate.value or 0.0) - truth.value) < 5.5 * (estimate.standard_error or 0.0)


def test_another_model(stochastic: LogReader, world: simulate.World, model: fr.Model) -> None:
    """The same items and users with other vectors; who logged must be given."""
    other = world.model(noise=0.35, seed=2)
    policy = by_model(other, other=fr.PlackettLuce(0.8))
    result = ope.evaluate(stochastic, policy, logging=[model]).policies[0]
    assert result.uncovered == 0.0
    truth = simulate.true_value(world, other, fr.PlackettLuce(0.8), 3, n_draws=100, seed=7)
    estimate = result.estimates["rips"]
    assert abs((estimate.value or 0.0) - truth.value) < 5.5 * (estimate.standard_error or 0.0)
    unknown = ope.evaluate(stochastic, policy).policies[0]
    assert (unknown.status, unknown.reasons[0]) == ("unsupported", "uncovered_unknown")


def test_several_policies_are_as_one_each(short: LogReader, model: fr.Model) -> None:
    policies = by_model(model, a=fr.PlackettLuce(0.4), b=fr.PlackettLuce(0.65), c=fr.Uniform())
    together = ope.evaluate(short, policies, logging=[model])
    for policy, result in zip(policies, together.policies, strict=True):
        alone = ope.evaluate(short, [policy], logging=[model]).policies[0]
        assert alone.estimates == result.estimates
        assert alone.differences["ips"].value == result.differences["ips"].value
    assert together.difference_level == pytest.approx(1.0 - 0.05 / 3)


def test_batches_do_not_matter(short: LogReader, model: fr.Model) -> None:
    policy = by_model(model, a=fr.PlackettLuce(0.4))
    one = ope.evaluate(short, policy, logging=[model]).policies[0]
    small = LogReader(short.files, batch_rows=777)
    other = ope.evaluate(small, policy, logging=[model]).policies[0]
    for name, estimate in one.estimates.items():
        assert other.estimates[name].value == pytest.approx(estimate.value, rel=1e-12)
        assert other.estimates[name].standard_error == pytest.approx(
            estimate.standard_error, rel=1e-9
        )
        assert other.estimates[name].bootstrap == pytest.approx(estimate.bootstrap, rel=1e-9)


def test_a_policy_may_be_the_reference(short: LogReader, model: fr.Model) -> None:
    policies = by_model(model, a=fr.PlackettLuce(0.4), b=fr.PlackettLuce(0.65))
    found = ope.evaluate(short, policies, logging=[model], reference="b")
    a, b = found.policies
    difference = a.differences["ips"]
    assert difference.value == pytest.approx(
        (a.estimates["ips"].value or 0.0) - (b.estimates["ips"].value or 0.0), abs=1e-12
    )
    assert b.differences == {}
    assert found.difference_level == 0.95
    assert "than b" in a.verdict or "difference to b" in a.verdict


def test_the_first_places_alone(short: LogReader, model: fr.Model) -> None:
    policy = by_model(model, a=fr.PlackettLuce(0.4))
    first = ope.evaluate(short, policy, logging=[model], places=1).policies[0]
    clicks = np.concatenate([batch.rewards[:, 0] for batch in short])
    assert first.estimates["avg"].value == pytest.approx(clicks.mean())
    for places in (4, 10**9):
        more = ope.evaluate(short, policy, logging=[model], places=places).policies[0]
        assert (more.status, more.reasons[0]) == ("unsupported", "more_places")


# The estimators that want more than propensities.


def test_marginals_and_slates_come_from_the_models(tmp_path: Path, world: simulate.World) -> None:
    small = simulate.World.synthetic(
        20, 7, simulate.PositionBased([1.0, 0.7]), dim=3, seed=8, typical_rate=0.2
    )
    ranker = small.model()
    log = written(tmp_path, small, ranker, fr.PlackettLuce(2.0), 3000, k=2)
    policies: dict[str, fr.Policy] = {"a": fr.PlackettLuce(1.0), "b": fr.EpsilonGreedy(0.3)}
    names = ["ips", "iips", "pi", "dm", "dr-position"]
    rates = small.rates(np.arange(20))
    by_query = {ranker.user_vector(u).tobytes(): rates[i] for i, u in enumerate(small.user_ids)}

    def q(query: Any, item_ids: Any) -> Any:
        return by_query[query.tobytes()][small.item_rows(item_ids), None] * [1.0, 0.7]

    found = ope.evaluate(
        log, by_model(ranker, **policies), logging=[ranker], estimators=names, reward_model=q
    )
    for result in found.policies:
        truth = simulate.true_value(small, ranker, policies[result.label], 2, seed=9).value
        for name in names:
            estimate = result.estimates[name]
            assert abs((estimate.value or 0.0) - truth) < 5.5 * (estimate.standard_error or 0.0)
        errors = [result.estimates[name].standard_error_iid or 0.0 for name in names]
        assert errors[1] < errors[0]  # rewards depend on item and place alone here, as iips assumes
        assert errors[4] < errors[0]


FOUR = fr.Catalog(np.arange(4), np.log([[1.0], [2.0], [3.0], [4.0]]))


def slates(directory: Path, logging: fr.Policy, rows: int = 400) -> LogReader:
    """Rankings of 2 of four items, of fewer where no more are eligible, or displayed."""
    query = np.array([1.0], np.float32)
    with LogWriter(directory) as log:
        for i in range(rows):
            allow = [2] if i % 8 == 1 else [] if i % 16 == 3 else None
            ranking = FOUR.rank(query, 2, policy=logging, seed=i, allow=allow)
            log.append(
                ranking,
                k=2,
                request_id=f"r{i}",
                user_id=f"u{i}",
                query=query,
                allow=allow,
                displayed=1 if i % 4 == 2 else None,
                rewards=[1.0] * len(ranking),
            )
    return LogReader(directory)


def slate_weight(
    items: Sequence[int], eligible: Sequence[int], logging: fr.Policy, evaluated: fr.Policy
) -> float:
    """q_1' Gamma_0^+ 1_s by enumeration, of a slate of as many places as were shown."""
    m = len(items)
    mask = np.isin(np.arange(4), eligible)
    scores = FOUR.scores([1.0]).astype(float)

    def indicators(rankings: Any) -> Any:
        result = np.zeros((len(rankings), m, 4))
        for place in range(m):
            result[np.arange(len(rankings)), place, np.asarray(rankings)[:, place]] = 1.0
        return result.reshape(len(rankings), m * 4)

    if m == 0:
        return 1.0
    rankings, p = reference.ranking_law(scores, m, logging, mask)
    _, q = reference.ranking_law(scores, m, evaluated, mask)
    shown = indicators(rankings)
    gamma = shown.T @ (p[:, None] * shown)
    return float((q @ shown) @ np.linalg.pinv(gamma) @ indicators([items])[0])


@pytest.mark.parametrize("logging", [fr.PlackettLuce(1.0), fr.Uniform()])
@pytest.mark.parametrize("places", [None, 1])
def test_slates_are_as_long_as_they_were_shown(
    tmp_path: Path, logging: fr.Policy, places: int | None
) -> None:
    log = slates(tmp_path, logging)
    evaluated = fr.PlackettLuce(0.4)
    (batch,) = log
    lengths = np.minimum(batch.lengths, places or 2)
    assert set(lengths.tolist()) == set(range((places or 2) + 1))
    exact = np.array(
        [
            slate_weight(
                batch.item_ids[i, :length].tolist(),
                [0, 1, 2, 3] if batch.allow(i) is None else [2],
                logging,
                evaluated,
            )
            for i, length in enumerate(lengths.tolist())
        ]
    )
    (found,) = ope.evaluate(
        log,
        [ope.ByModel("p", evaluated, FOUR)],
        logging=[FOUR],
        estimators=["pi"],
        places=places,
        cluster=False,
    ).policies
    estimate = found.estimates["pi"]
    diagnostics = estimate.diagnostics
    assert estimate.value == pytest.approx((exact * lengths).mean(), rel=1e-7)
    assert diagnostics is not None
    assert diagnostics.mean_weight == pytest.approx(exact.mean(), rel=1e-7)
    assert diagnostics.negative_share == np.mean(exact < -1e-12)
    assert (places == 1) == (diagnostics.negative_share == 0.0)
    assert diagnostics.ess == pytest.approx(exact.sum() ** 2 / (exact**2).sum(), rel=1e-7)
    largest = np.abs(exact).max() / np.abs(exact).sum()
    assert diagnostics.max_weight_share == pytest.approx(largest, rel=1e-7)


def test_weights_of_slates_have_the_mean_1(tmp_path: Path) -> None:
    """Error budget: 6 standard errors, 2e-9."""
    log = slates(tmp_path, fr.PlackettLuce(1.0), 4000)
    (found,) = ope.evaluate(
        log, [ope.ByModel("p", fr.PlackettLuce(0.6), FOUR)], logging=[FOUR], estimators=["pi"]
    ).policies
    diagnostics = found.estimates["pi"].diagnostics
    assert diagnostics is not None
    assert diagnostics.mean_weight_z is not None
    assert abs(diagnostics.mean_weight_z) < 6.0
    assert "mean_weight" not in found.estimates["pi"].reasons


def test_the_page_tells_of_weights_below_0(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    log = slates(tmp_path, fr.Uniform())
    policy = ope.ByModel("p", fr.PlackettLuce(0.6), FOUR)
    for lead, times in (("pi", 2), ("ips", 1)):  # beside the estimate, and in the table of overlap
        found = ope.evaluate(log, [policy], logging=[FOUR], estimators=["ips", "pi"], lead=lead)
        share = found.policies[0].estimates["pi"].diagnostics.negative_share  # type: ignore[union-attr]
        assert share > 0.0
        page = report.render([report.Section("log", found, None)])
        assert page.count(f"below 0 in {report._percent(share)} of rows") == times


@pytest.mark.parametrize(
    ("names", "logging", "message"),
    [
        (["iips"], False, "iips of a: needs a policy on a model, and the model that wrote the log"),
        (["pi"], False, "pi of a: needs a policy on a model"),
        (["dm"], True, "dm of a: needs a reward model and a policy on a model, or a column of q_"),
        (["cascade-dr"], True, "cascade-dr of a: needs a column of cascade_q_logged"),
    ],
)
def test_what_an_estimator_lacks_is_named(
    short: LogReader, model: fr.Model, names: Sequence[str], logging: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ope.evaluate(
            short,
            by_model(model, a=fr.Uniform()),
            logging=[model] if logging else [],
            estimators=names,
        )


def test_an_array_that_nothing_computes_is_a_column(
    short: LogReader, model: fr.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not 0 in all rows, whatever else is given."""
    monkeypatch.setattr(ope.ESTIMATORS["dm"], "needs", ("new_array",))
    with pytest.raises(ValueError, match="dm of a: needs a column of new_array"):
        ope.evaluate(
            short,
            by_model(model, a=fr.Uniform()),
            logging=[model],
            estimators=["dm"],
            reward_model=lambda query, item_ids: np.zeros(len(item_ids)),
        )


@pytest.mark.parametrize("names", [["iips"], ["ips", "iips", "pi"]])
def test_who_wants_the_logging_law_is_named(tmp_path: Path, names: Sequence[str]) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 10, fr.PlackettLuce(1.0))
    other = fr.Catalog(np.arange(20), np.ones((20, 1)))
    wanted = " and ".join(name for name in names if name != "ips")
    with pytest.raises(ValueError, match=f"the logging policy's law is needed for {wanted}$"):
        ope.evaluate(
            LogReader(tmp_path),
            [ope.ByModel("a", fr.PlackettLuce(0.9), CATALOG)],
            logging=[other],
            estimators=names,
        )


@dataclass(frozen=True)
class Coin(fr.Policy):
    """The best item left or any, by a coin: a log has its name, which nothing turns back."""

    law = Law(explore=0.5)
    sampler = "epsilon_greedy"
    inference_type = "coin"

    @property
    def params(self) -> dict[str, float]:
        return {}


def test_a_logging_policy_that_is_not_known_is_named(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 10, Coin())
    evaluated = [ope.ByModel("a", fr.PlackettLuce(0.9), CATALOG)]
    with pytest.raises(ValueError, match=r"its policy 'coin' is none .* is needed for iips$"):
        ope.evaluate(LogReader(tmp_path), evaluated, logging=[CATALOG], estimators=["iips"])


# What a row is made of.


CATALOG = fr.Catalog(np.arange(20), np.linspace(-1.0, 1.0, 20)[:, None])


def serve(
    log: LogWriter,
    rows: int,
    policy: fr.Policy,
    *,
    first: int = 0,
    catalog: fr.Catalog = CATALOG,
    rewards: Callable[[fr.Ranking], Any] = lambda ranking: [1.0] * len(ranking),
    k: int = 2,
    **options: Any,
) -> None:
    query = np.array([1.0], np.float32)
    own = {key: options[key] for key in ("exclude", "allow", "bias") if key in options}
    for i in range(first, first + rows):
        ranking = catalog.rank(query, k, policy=policy, seed=i, **own)
        log.append(
            ranking,
            k=k,
            request_id=f"r{i}",
            user_id=f"u{i}",
            query=query,
            rewards=rewards(ranking),
            **options,
        )


def evaluate(directory: Path, *policies: fr.Policy, **options: Any) -> ope.Evaluation:
    labelled = [ope.ByModel(f"p{j}", policy, CATALOG) for j, policy in enumerate(policies)]
    return ope.evaluate(LogReader(directory), labelled, logging=[CATALOG], **options)


def first_is(item: int) -> Callable[[fr.Ranking], list[float]]:
    return lambda ranking: [float(ranking.item_ids[0] == item), 0.0]


@pytest.mark.parametrize("long", [False, True])
def test_filters_are_part_of_the_law(tmp_path: Path, long: bool) -> None:
    """A forgotten exclude list makes weights wrong, and self-normalising hides it."""
    exclude = [14, 15, 16, 17, 18, 19]
    with LogWriter(tmp_path, inline_ids=2 if long else 64) as log:
        serve(log, 8000, fr.Uniform(), exclude=exclude, rewards=first_is(13))
    found = evaluate(tmp_path, fr.PlackettLuce(1.0)).policies[0].estimates["ips"]
    weights = np.exp(CATALOG.scores([1.0])[:14].astype(float))
    truth = weights[13] / weights.sum()
    assert abs((found.value or 0.0) - truth) < 5.5 * (found.standard_error or 0.0)
    forgotten = np.exp(CATALOG.scores([1.0]).astype(float))
    wrong = forgotten[13] / forgotten.sum()
    assert abs(truth - wrong) > 10 * (found.standard_error or 0.0)


def test_biases_and_allow_lists_are_part_of_the_law(tmp_path: Path) -> None:
    bias = np.where(np.arange(20) == 3, 2.0, 0.0)
    with LogWriter(tmp_path) as log:
        serve(log, 8000, fr.Uniform(), allow=[1, 2, 3, 4], bias=bias, rewards=first_is(3))
    found = evaluate(tmp_path, fr.PlackettLuce(1.0)).policies[0].estimates["ips"]
    weights = np.exp((CATALOG.scores([1.0]) + bias)[1:5].astype(float))
    truth = weights[2] / weights.sum()
    assert abs((found.value or 0.0) - truth) < 5.5 * (found.standard_error or 0.0)


def test_rankings_that_a_policy_cannot_show_stay(tmp_path: Path) -> None:
    """With weight 0: to set them aside would select on the action."""
    with LogWriter(tmp_path) as log:
        serve(log, 6000, fr.Uniform(), k=1, rewards=lambda ranking: [0.5])
    found = evaluate(tmp_path, fr.Deterministic())
    assert found.rows_used == 6000
    estimate = found.policies[0].estimates["ips"]
    assert abs((estimate.value or 0.0) - 0.5) < 5.5 * (estimate.standard_error or 0.0)
    assert estimate.matched is None
    assert found.policies[0].histogram[0][1] > 5000


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 500, fr.PlackettLuce(1.0))
        serve(log, 30, fr.PlackettLuce(1.0), first=500, seed_source="caller")
        serve(log, 20, fr.PlackettLuce(1.0), first=530, is_fallback=True)
        serve(log, 10, fr.PlackettLuce(1.0), first=550, rewards=lambda ranking: [1.0, None])
        serve(log, 5, fr.PlackettLuce(1.0), first=560, rewards=lambda ranking: None)
        serve(log, 200, fr.PlackettLuce(1.0), first=565, displayed=0)
    found = evaluate(tmp_path, fr.PlackettLuce(0.9))
    assert (found.rows, found.rows_used) == (765, 500)
    assert found.set_aside == {
        "caller_seed": 30, "fallback": 20, "not_shown": 200, "reward_not_observed": 15,
    }  # fmt: skip
    assert "set_aside" not in found.policies[0].reasons  # it is no flaw
    more = evaluate(
        tmp_path, fr.PlackettLuce(0.9), include_fallback=True, include_caller_seeds=True
    )
    assert more.rows_used == 550
    assert {each.stratum.is_fallback for each in more.strata} == {False, True}
    # A reward that is not known at a place that is not evaluated does not matter.
    assert evaluate(tmp_path, fr.PlackettLuce(0.9), places=1).rows_used == 510


def test_strata_without_support_are_dropped_whole(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 4000, fr.PlackettLuce(1.0), rewards=lambda ranking: [1.0, 0.0])
        serve(log, 1000, fr.Deterministic(), first=4000, rewards=lambda ranking: [0.0, 0.0])
    found = evaluate(tmp_path, fr.PlackettLuce(0.9), fr.Deterministic())
    warm, best = found.policies
    assert (warm.status, warm.rows) == ("ok", 4000)
    assert warm.estimates["avg"].value == 1.0
    assert "20 % of the rows are left out" in warm.verdict
    names = {each.stratum.policy_name: each for each in found.strata}
    assert names["deterministic"].dropped == ("p0",)
    assert names["deterministic"].share == 0.2
    assert names["deterministic"].uncovered["p0"] > 0.9
    assert names["deterministic"].estimates["p0"]["ips"].status == "unsupported"
    assert best.rows == 5000


def test_policies_are_compared_on_the_same_rows(tmp_path: Path) -> None:
    """The reference covers more of the log than the policy does."""
    with LogWriter(tmp_path) as log:
        serve(log, 3000, fr.PlackettLuce(1.0), rewards=lambda ranking: [1.0, 0.0])
        serve(log, 1000, fr.Deterministic(), first=3000, rewards=lambda ranking: [0.0, 0.0])
    found = evaluate(tmp_path, fr.PlackettLuce(1.0), fr.Deterministic(), reference="p1")
    difference = found.policies[0].differences["ips"]
    alone = evaluate(tmp_path, fr.PlackettLuce(1.0))
    assert alone.policies[0].rows == 3000
    assert difference.value is not None


NEWER = fr.Catalog(np.arange(22), np.linspace(-1.0, 1.2, 22)[:, None])


def test_newer_items_are_uncovered(tmp_path: Path) -> None:
    """Error budget: 4,000 draws of a probability near .2: sd .0063, 6 of them."""
    with LogWriter(tmp_path) as log:
        serve(log, 4000, fr.PlackettLuce(1.0))
    policy = fr.PlackettLuce(1.0)
    log_reader = LogReader(tmp_path)
    result = ope.evaluate(
        log_reader, [ope.ByModel("new", policy, Renamed(NEWER))], logging=[CATALOG]
    ).policies[0]
    weights = np.exp(NEWER.scores([1.0]).astype(float))
    p = weights / weights.sum()
    shows_none = sum(
        p[i] * (weights[:20].sum() - weights[i]) / (weights.sum() - weights[i]) for i in range(20)
    )
    assert result.uncovered == pytest.approx(1.0 - shows_none, abs=6 * 0.0063)
    assert (result.status, result.reasons[0]) == ("unsupported", "uncovered")
    restricted = ope.evaluate(
        log_reader,
        [ope.ByModel("new", policy, Renamed(NEWER))],
        logging=[CATALOG],
        restrict_to_logged_catalog=True,
    ).policies[0]
    assert (restricted.status, restricted.uncovered) == ("ok", 0.0)


def Renamed(catalog: fr.Catalog) -> fr.Model:  # noqa: N802  # as a model with the log's users
    users = [f"u{i}" for i in range(4000)]
    return fr.Model(catalog, users, np.ones((4000, 1)))


def test_unknown_users_are_set_aside_for_all_policies(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 1000, fr.PlackettLuce(1.0))
    few = fr.Model(NEWER, [f"u{i}" for i in range(900)], np.ones((900, 1)))
    found = ope.evaluate(
        LogReader(tmp_path),
        [ope.ByModel("a", fr.Uniform(), CATALOG), ope.ByModel("b", fr.Uniform(), few)],
        logging=[CATALOG],
    )
    assert found.set_aside == {"unknown_user": 100}
    assert {each.rows for each in found.policies} == {900}
    # More than one in twenty: they may differ from those that stayed.
    assert all("set_aside" in each.reasons for each in found.policies)


def test_candidates_are_not_the_catalog(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 300, fr.PlackettLuce(1.0), candidate_set_id="top", n_candidates=5)
    result = evaluate(tmp_path, fr.PlackettLuce(0.9)).policies[0]
    assert (result.status, result.reasons[0]) == ("unsupported", "uncovered_unknown")


def inside(scores: Any, candidates: Any) -> float:
    """P(a Plackett-Luce ranking of two has candidates alone), scores over the temperature."""
    p = np.exp(scores) / np.exp(scores).sum()
    kept = p[candidates]
    return float(sum(one * (kept.sum() - one) / (1.0 - one) for one in kept))


def test_what_is_no_candidate_is_uncovered(tmp_path: Path) -> None:
    """Error budget: 4,000 draws of a probability: sd .008 at most, 5.5 of them."""
    candidates = np.arange(10, 20)
    with LogWriter(tmp_path, inline_ids=5) as log:
        serve(
            log, 4000, fr.PlackettLuce(1.0), allow=candidates, candidate_set_id="top",
            rewards=first_is(19),
        )  # fmt: skip
    scores = CATALOG.scores([1.0]).astype(float)
    names = ["snrips", "iips"]
    wide, narrow = evaluate(
        tmp_path, fr.PlackettLuce(1.0), fr.PlackettLuce(0.1), estimators=names
    ).policies
    assert wide.uncovered == pytest.approx(1.0 - inside(scores, candidates), abs=0.044)
    assert (wide.status, wide.reasons[0]) == ("unsupported", "uncovered")
    # Its weights are those of a policy that ranks everything.
    diagnostics = wide.estimates["iips"].diagnostics
    assert diagnostics is not None
    first = np.exp(scores[candidates]).sum() / np.exp(scores).sum()
    assert diagnostics.by_place[0]["mean_weight"] == pytest.approx(first, rel=1e-6)
    assert narrow.uncovered == pytest.approx(1.0 - inside(scores / 0.1, candidates), abs=0.005)
    assert "uncovered" not in narrow.reasons
    # Held to the candidates, it is what the same filter without a name is.
    (kept,) = evaluate(
        tmp_path, fr.PlackettLuce(0.9), estimators=names, keep_candidates=True
    ).policies
    assert (kept.status, kept.uncovered) == ("ok", 0.0)
    other = tmp_path / "filtered"
    with LogWriter(other) as log:
        serve(log, 4000, fr.PlackettLuce(1.0), allow=candidates, rewards=first_is(19))
    filtered = evaluate(other, fr.PlackettLuce(0.9), estimators=names).policies[0]
    for name in names:
        assert kept.estimates[name].value == filtered.estimates[name].value


@pytest.mark.parametrize(("mass", "dropped"), [(0.006, False), (0.03, True)])
def test_small_strata_are_not_dropped_by_noise(tmp_path: Path, mass: float, dropped: bool) -> None:
    """2,400 draws of a probability of .6 % have an sd of .16 %, and 60 of 1 %: 2.5 from the limit.

    With 60 each, about a third of 40 strata saw none, and a third too many.
    """
    # One more item, which is in the first two places with a probability of about `mass`.
    score = np.log(mass / 2 * np.exp(np.linspace(-1.0, 1.0, 20)).sum())
    newer = fr.Catalog(np.arange(21), np.append(np.linspace(-1.0, 1.0, 20), score)[:, None])
    with LogWriter(tmp_path) as log:
        for j in range(40):
            serve(log, 60, fr.PlackettLuce(1.0 + j / 1000), first=60 * j)
    found = ope.evaluate(
        LogReader(tmp_path),
        [ope.ByModel("new", fr.PlackettLuce(1.0), Renamed(newer))],
        logging=[CATALOG],
    )
    assert len(found.strata) == 40
    assert {each.dropped for each in found.strata} == {("new",) if dropped else ()}
    assert found.policies[0].rows == 2400
    assert ("uncovered" in found.policies[0].reasons) == dropped


@pytest.mark.parametrize("logged", [1, 6])
def test_what_is_uncovered_is_so_in_the_places_that_are_asked_about(
    tmp_path: Path, logged: int
) -> None:
    """Error budget: 3,000 draws of a probability of .5 %: sd .13 %, 6 of them."""
    score = np.log(0.005 * np.exp(np.linspace(-1.0, 1.0, 20)).sum())
    newer = fr.Catalog(np.arange(21), np.append(np.linspace(-1.0, 1.0, 20), score)[:, None])
    with LogWriter(tmp_path) as log:
        serve(log, 3000, fr.PlackettLuce(1.0), k=logged)
    new = ope.ByModel("new", fr.PlackettLuce(1.0), Renamed(newer))
    (found,) = ope.evaluate(LogReader(tmp_path), [new], logging=[CATALOG], places=1).policies
    assert found.uncovered == pytest.approx(0.005, abs=0.008)
    assert "uncovered" not in found.reasons
    if logged == 6:
        (whole,) = ope.evaluate(LogReader(tmp_path), [new], logging=[CATALOG]).policies
        assert whole.uncovered > 0.02
        assert "uncovered" in whole.reasons


def test_a_certain_place_matters_where_it_is_asked_about(tmp_path: Path) -> None:
    """One item is left for the second place, whatever the policy."""
    with LogWriter(tmp_path) as log:
        serve(log, 1000, fr.Deterministic())
    best = evaluate(tmp_path, fr.PlackettLuce(0.5)).policies[0]
    first = evaluate(tmp_path, fr.PlackettLuce(0.5), places=1).policies[0]
    p = np.exp(CATALOG.scores([1.0]).astype(float) / 0.5)
    assert first.uncovered == pytest.approx(1.0 - p[19] / p.sum(), rel=1e-5)
    assert best.uncovered > first.uncovered


def test_candidates_are_of_their_own_stratum(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 2000, fr.PlackettLuce(1.0))
        serve(
            log, 2000, fr.PlackettLuce(0.8), first=2000, allow=np.arange(10, 20),
            candidate_set_id="top",
        )  # fmt: skip
    found = evaluate(tmp_path, fr.PlackettLuce(0.9))
    scores = CATALOG.scores([1.0]).astype(float)
    full, top = sorted(found.strata, key=lambda each: each.uncovered["p0"])
    assert (full.uncovered["p0"], full.dropped) == (0.0, ())
    truth = 1.0 - inside(scores / 0.9, np.arange(10, 20))
    assert top.uncovered["p0"] == pytest.approx(truth, abs=0.06)
    assert (found.policies[0].status, found.policies[0].rows) == ("ok", 2000)


def test_a_row_that_cannot_be_computed_keeps_no_other_back(tmp_path: Path) -> None:
    """Its query fits the file's float32, and no score would."""
    with LogWriter(tmp_path) as log:
        serve(log, 1000, fr.PlackettLuce(1.0))
        ranking = CATALOG.rank([1.0], 2, policy=fr.PlackettLuce(1.0), seed=1)
        log.append(ranking, k=2, user_id="v", query=[3e38], rewards=[1.0, 0.0])
    found = evaluate(tmp_path, fr.PlackettLuce(0.9), fr.Uniform())
    assert found.set_aside == {"not_computable": 1}
    assert [each.rows for each in found.policies] == [1000, 1000]


class Counted(fr.Catalog):
    """Counts the rows of each call that judges rankings."""

    calls: list[int]

    def log_propensities_batch(self, queries: Any, *args: Any, **options: Any) -> Any:
        self.calls.append(len(queries))
        return super().log_propensities_batch(queries, *args, **options)


@pytest.mark.parametrize("bad", [[0], [2047], [1, 2, 700], list(range(0, 2048, 64))])
def test_rows_that_are_refused_are_found_by_halves(tmp_path: Path, bad: list[int]) -> None:
    """One by one, each with the whole batch's arrays, they took the square of the rows."""
    with LogWriter(tmp_path) as log:
        for i in range(2048):
            ranking = CATALOG.rank([1.0], 1, policy=fr.PlackettLuce(1.0), seed=i)
            query = [3e38] if i in bad else [1.0]
            log.append(ranking, k=1, user_id=f"u{i}", query=query, rewards=[1.0])
    catalog = Counted(np.arange(20), np.linspace(-1.0, 1.0, 20)[:, None])
    catalog.calls = []
    colder = ope.ByModel("colder", fr.PlackettLuce(0.9), catalog)
    found = ope.evaluate(LogReader(tmp_path), [colder], estimators=["snips"])
    assert found.set_aside == {"not_computable": len(bad)}
    assert found.rows_used == 2048 - len(bad)
    halvings = 11  # of 2,048
    assert len(catalog.calls) <= 1 + 2 * halvings * len(bad)
    assert sum(catalog.calls) <= 2048 * (halvings + 1)


def test_what_a_model_refuses_as_a_whole_is_its_error(tmp_path: Path) -> None:
    def write(folder: str, query: float, rows: int) -> None:
        with LogWriter(tmp_path / folder) as log:
            for i in range(rows):
                ranking = CATALOG.rank([1.0], 1, policy=fr.PlackettLuce(1.0), seed=i)
                log.append(ranking, k=1, user_id=f"u{i}", query=[query], rewards=[1.0])

    write("bad", 3e38, 40)
    colder = [ope.ByModel("colder", fr.PlackettLuce(0.9), CATALOG)]
    with pytest.raises(ValueError, match=r"^queries: row 0: .*"):
        ope.evaluate(LogReader(tmp_path / "bad"), colder)
    # A file of such rows alone is no more than these rows.
    write("good", 1.0, 200)
    found = ope.evaluate(LogReader(tmp_path), colder)
    assert (found.set_aside, found.rows_used) == ({"not_computable": 40}, 200)


@pytest.mark.parametrize("text", [True, False])
def test_ids_of_another_kind_are_refused_at_once(tmp_path: Path, text: bool) -> None:
    """Numbers in a log and the same numbers as text in a model have no item in common."""
    ids: list[Any] = [np.arange(20), [str(i) for i in range(20)]]
    vectors = np.linspace(-1.0, 1.0, 20)[:, None]
    logged, judged = (Counted(each, vectors) for each in (ids if text else ids[::-1]))
    with LogWriter(tmp_path) as log:
        for i in range(50):
            ranking = logged.rank([1.0], 1, policy=fr.PlackettLuce(1.0), seed=i)
            log.append(ranking, k=1, user_id=f"u{i}", query=[1.0], rewards=[1.0])
    judged.calls = []
    new = ope.ByModel("new", fr.PlackettLuce(0.9), judged)
    kinds = ("text", "numbers") if text else ("numbers", "text")
    said = f"policies: new: the item ids of its model are {kinds[0]}, those of the log {kinds[1]}"
    with pytest.raises(ValueError, match=f"^{said}$"):
        ope.evaluate(LogReader(tmp_path), [new], logging=[logged])
    assert judged.calls == []


@pytest.mark.parametrize("absent", [["n_eligible"], ["k"], ["k", "n_eligible"]])
def test_all_places_count_of_a_table_that_does_not_say_how_many(
    tmp_path: Path, absent: list[str]
) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 400, fr.PlackettLuce(1.0), k=3)
    whole = pa.Table.from_batches([batch.table for batch in LogReader(tmp_path)])
    policies = [ope.ByModel("colder", fr.PlackettLuce(0.9), CATALOG)]
    expected = ope.evaluate(LogReader.of_tables([whole]), policies)
    assert expected.places == 3
    found = ope.evaluate(LogReader.of_tables([whole.drop_columns(absent)]), policies)
    assert found.places == 3
    assert found.logged == expected.logged
    assert found.policies[0].estimates == expected.policies[0].estimates


def test_a_log_that_an_iterator_gives(tmp_path: Path) -> None:
    """The first look at it must not use it up."""
    policies = [ope.ByFunction("same", lambda batch: batch.log_propensities)]
    log = LogReader.of_tables(iter(from_obd("all", "random")), columns=["position"])
    found = ope.evaluate(log, policies)
    listed = ope.evaluate(of_obd("all", "random"), policies)
    assert (found.rows, found.rows_used) == (10_000, 10_000)
    assert found.policies[0].estimates == listed.policies[0].estimates


def test_log_propensities_above_0_by_what_float32_rounds(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 100, fr.PlackettLuce(1.0), k=1)

    def of(value: float) -> ope.Evaluation:
        policy = ope.ByFunction("own", lambda batch: np.full((len(batch), 1), value))
        return ope.evaluate(LogReader(tmp_path), [policy])

    assert of(float(np.float32(1e-7))).rows_used == 100
    with pytest.raises(ValueError, match="a log-propensity must not be above 0"):
        of(1e-7)


def test_what_no_row_can_show_is_biased(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 4000, fr.PlackettLuce(1.0), rewards=first_is(19))
    found = evaluate(
        tmp_path,
        fr.PlackettLuce(1.0),
        fr.PlackettLuce(0.6),
        estimators=["snips", "clipped-ips", "dm"],
        reward_model=lambda query, items: np.zeros(len(items)),
        clip=1.2,
        lead="dm",
    )
    assert (found.logged.status, found.logged.reasons) == ("ok", ())
    same, other = (each.estimates for each in found.policies)
    assert same["avg"].status == "ok"
    assert same["avg"].value == found.logged.value
    assert (other["avg"].status, other["avg"].reasons) == ("biased", ("logging_value",))
    assert set(other["clipped-ips"].reasons) == {"clipped", "mean_weight"}
    weights = other["clipped-ips"].parameters
    assert other["snips"].value is not None
    assert other["clipped-ips"].value == pytest.approx(
        other["snips"].value * (1.0 - weights["cut_off"]), rel=0.1
    )
    assert (other["dm"].status, other["dm"].reasons) == ("biased", ("reward_model_alone",))
    # The average is what the others are compared with, which takes nothing from them.
    assert found.policies[1].differences["snips"].status == "ok"
    assert found.policies[1].differences["avg"].status == "biased"
    assert "dm is no estimate of p1" in found.policies[1].verdict
    rare = evaluate(tmp_path, fr.PlackettLuce(0.9), clip=20.0).policies[0]
    assert rare.estimates["clipped-ips"].status == "ok"


def test_independent_rows_are_not_counted_as_users(tmp_path: Path) -> None:
    query = np.array([1.0], np.float32)
    with LogWriter(tmp_path) as log:
        for i in range(3000):
            ranking = CATALOG.rank(query, 2, policy=fr.PlackettLuce(1.0), seed=i)
            log.append(ranking, k=2, user_id=i % 10, query=query, rewards=[1.0, 0.0])
    for cluster in (True, False):
        found = evaluate(tmp_path, fr.PlackettLuce(0.9), cluster=cluster).policies[0]
        for each in (found.estimates["snrips"], found.differences["snrips"]):
            assert ("few_clusters" in each.reasons) == cluster


def test_rows_that_name_no_user_are_counted(tmp_path: Path) -> None:
    query = np.array([1.0], np.float32)
    with LogWriter(tmp_path) as log:
        for i in range(300):
            ranking = CATALOG.rank(query, 2, policy=fr.PlackettLuce(1.0), seed=i)
            user = None if i % 3 else i
            log.append(ranking, k=2, user_id=user, query=query, rewards=[1.0, 0.0])
    found = evaluate(tmp_path, fr.PlackettLuce(0.9))
    assert found.rows_without_user == 200
    assert found.logged.effective_clusters > 100  # a user each


def test_a_verdict_says_what_earns(stochastic: LogReader, model: fr.Model) -> None:
    colder = by_model(model, colder=fr.PlackettLuce(0.45))
    for places, unit in ((None, "a ranking"), (2, "by the first 2 places"), (1, "by the first")):
        found = ope.evaluate(stochastic, colder, logging=[model], places=places).policies[0]
        assert unit in found.verdict


def test_malformed_logs_are_said_to_be(tmp_path: Path) -> None:
    good = tmp_path / "good"
    with LogWriter(good) as log:
        serve(log, 1000, fr.PlackettLuce(1.0))
    table = next(iter(LogReader(good))).table.to_pydict()
    rows = 3
    table["log_propensity"][:rows] = [0.5] * rows
    from fastrank.eventlog import schema

    broken = pa.Table.from_pydict(table, schema=schema("int64"))
    found = ope.evaluate(
        LogReader.of_tables(broken),
        [ope.ByModel("p", fr.PlackettLuce(0.9), CATALOG)],
        logging=[CATALOG],
    )
    assert found.rows_used == 997
    assert found.policies[0].status == "malformed_log"
    assert "too many rows of the log are malformed" in found.policies[0].verdict
    assert found.log["set_aside"] == {"sum of log-propensities": 3}


# Propensities from elsewhere.


def test_columns_and_functions_and_models_agree(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 2000, fr.PlackettLuce(1.0))
    policy = fr.PlackettLuce(0.8)
    batch = next(iter(LogReader(tmp_path)))
    lp = [CATALOG.log_propensities([1.0], items, policy=policy) for items in batch.item_ids]
    table = pa.Table.from_batches([batch.table])
    table = table.append_column("lp1", pa.array([each.tolist() for each in lp]))
    found = ope.evaluate(
        LogReader.of_tables(table, columns=["lp1"]),
        [
            ope.ByModel("model", policy, CATALOG),
            ope.FromColumn("column", "lp1"),
            ope.ByFunction("function", lambda batch: np.array(lp)),
        ],
        logging=[CATALOG],
    )
    first, *others = (result.estimates for result in found.policies)
    for other in others:
        for name, estimate in first.items():
            assert other[name].value == pytest.approx(estimate.value, rel=1e-12)


def test_rows_without_a_propensity_are_set_aside(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 400, fr.PlackettLuce(1.0))

    def function(batch: Any) -> Any:
        lp = np.full(batch.log_propensities.shape, -1.0)
        lp[:50, 1] = np.nan
        return lp

    found = ope.evaluate(LogReader(tmp_path), [ope.ByFunction("f", function)])
    assert found.set_aside == {"no_propensity": 50}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: np.zeros((3, 2)), r"f: expected log-propensities of shape \(400, 2\), got"),
        (
            lambda batch: np.full((400, 2), 0.1),
            "f: request r0, place 1: a log-propensity must not be above 0, got 0.1",
        ),
    ],
)
def test_what_a_function_gives_is_checked(tmp_path: Path, function: Any, message: str) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 400, fr.PlackettLuce(1.0))
    with pytest.raises(ValueError, match=message):
        ope.evaluate(LogReader(tmp_path), [ope.ByFunction("f", function)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": []}, "policies: expected at least one"),
        ({"estimators": ["best"]}, "estimators: expected some of avg, .* got 'best'"),
        ({"reference": "p9"}, "reference: expected logging or a policy's label, got 'p9'"),
        ({"level": "a"}, "level: expected .001 to .999999, got 'a'"),
        ({"level": 1.0}, "level: expected .001 to .999999, got 1.0"),
        ({"level": np.nan}, "level: expected .001 to .999999, got nan"),
        *(
            ({"clip": clip}, f"clip: expected a finite number above 0, got {clip!r}")
            for clip in (np.nan, np.inf, 0.0, -1.0, True, "20")
        ),
        ({"places": 0}, "places: expected an integer of at least 1, got 0"),
        ({"policies": ope.ByFunction("f", len)}, "policies: expected a sequence of evaluation"),
        (
            {"policies": iter(())},
            "policies: expected a sequence of .*, which can be read only once",
        ),
        ({"policies": {"a": fr.Uniform()}}, r"pass a list of ByModel\(label, policy, model\)"),
        (
            {"policies": [fr.Uniform()]},
            r"policies: row 0: expected a ByModel.* pass ByModel\(label, Uniform\(\), model\)",
        ),
        ({"policies": ["uniform"]}, "policies: row 0: expected a ByModel, .* got 'uniform'; pass"),
        ({"logging": fr.Catalog([1], [[1.0]])}, "logging: expected a sequence of models or"),
        ({"estimators": "snips"}, "estimators: expected a sequence of names, got 'snips'"),
    ],
)
def test_bad_arguments_are_named(
    short: LogReader, model: fr.Model, options: dict[str, Any], message: str
) -> None:
    policies = options.pop("policies", by_model(model, a=fr.Uniform()))
    with pytest.raises(ValueError, match=message):
        ope.evaluate(short, policies, **options)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("log/", r"log: expected a LogReader, got 'log/'; hand in LogReader\('log/'\)"),
        (Path("log"), r"log: expected a LogReader, got .*'log'.*; hand in LogReader\("),
        ({"item": [1]}, "log: expected a LogReader, got .* a dict; tables .* for evaluate_table"),
    ],
)
def test_what_is_no_log_is_refused(log: Any, message: str, model: fr.Model) -> None:
    asked = by_model(model, a=fr.Uniform())
    for refuses in (
        lambda: ope.evaluate(log, asked),
        lambda: ope.evaluate_arms(log, asked, shares={"a": 1.0}),
        lambda: ope.audit(log, [model]),
    ):
        with pytest.raises(ValueError, match=message):
            refuses()


def test_labels_are_unique(short: LogReader, model: fr.Model) -> None:
    twice = [*by_model(model, a=fr.Uniform()), *by_model(model, a=fr.Deterministic())]
    named = by_model(model, logging=fr.Uniform())
    with pytest.raises(ValueError, match="called 'logging', which is the name of the reference"):
        ope.evaluate(short, named, logging=[model])
    with pytest.raises(ValueError, match="policies: two of them are called 'a'"):
        ope.evaluate(short, twice)


def test_evaluations_are_json(short: LogReader, model: fr.Model) -> None:
    import json

    policies = by_model(model, a=fr.Deterministic(), b=fr.PlackettLuce(0.4))
    found = ope.evaluate(short, policies, logging=[model], places=1)
    loaded = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    estimate = loaded["policies"][1]["estimates"]["ips"]
    assert estimate["status"] == "ok"
    assert estimate["value"] == found.policies[1].estimates["ips"].value


def test_a_join_of_clicks_alone_is_no_ok(tmp_path: Path) -> None:
    """Rows without a reward were left out by their reward."""
    with LogWriter(tmp_path) as log:
        serve(log, 1000, fr.PlackettLuce(1.0), rewards=lambda ranking: None)
        serve(log, 1000, fr.PlackettLuce(1.0), first=1000)
    found = evaluate(tmp_path, fr.PlackettLuce(0.95)).policies[0]
    assert found.status == "low_overlap"
    assert "set_aside" in found.reasons
    assert "left out" in found.verdict


def test_retrained_users_are_another_model(tmp_path: Path) -> None:
    """The same items, and the logged query beside the user: it speaks for the model that logged."""
    rng = np.random.default_rng(3)
    users = [f"u{i}" for i in range(50)]
    first = fr.Model(CATALOG, users, rng.normal(1.0, 0.5, (50, 1)))
    second = fr.Model(CATALOG, users, rng.normal(-1.0, 0.5, (50, 1)))
    models = {"first": first, "second": second}
    with LogWriter(tmp_path) as log:
        for i in range(2000):
            model = first if i % 2 else second
            user = users[i // 2 % 50]
            log.append(
                model.recommend(user, 2, policy=fr.PlackettLuce(1.0), seed=i),
                k=2,
                request_id=f"r{i}",
                user_id=user,
                query=model.user_vector(user),
                model_version=model.version,
                rewards=[1.0, 0.0],
            )
    reader = LogReader(tmp_path)
    assert ope.audit(reader, [first, second], sample=5000).passed
    assert ope.audit(reader, [second, first], sample=5000).passed
    policies = [ope.ByModel(name, fr.PlackettLuce(1.0), each) for name, each in models.items()]
    found = ope.evaluate(reader, policies, logging=[first, second])
    for each in found.strata:
        for name, model in models.items():
            diagnostics = each.estimates[name]["ips"].diagnostics
            assert diagnostics is not None
            if each.stratum.model_version == model.version:
                assert diagnostics.ess_share == pytest.approx(1.0, abs=1e-9)
            else:
                assert diagnostics.ess_share < 0.9


def test_every_estimator_is_held_to_the_logged_catalog(tmp_path: Path) -> None:
    few = fr.Catalog(np.arange(6), np.linspace(-1.0, 1.0, 6)[:, None])
    more = fr.Model(
        fr.Catalog(np.arange(8), np.linspace(-1.0, 1.8, 8)[:, None]),
        [f"u{i}" for i in range(3000)],
        np.ones((3000, 1)),
    )
    with LogWriter(tmp_path) as log:
        serve(log, 3000, fr.Uniform(), catalog=few, rewards=lambda ranking: [1.0, 1.0])
    names = ["ips", "snips", "rips", "iips", "dm", "dr-position"]
    result = ope.evaluate(
        LogReader(tmp_path),
        [ope.ByModel("p", fr.PlackettLuce(1.0), more)],
        logging=[few],
        estimators=names,
        reward_model=lambda query, items: np.ones(len(items)) * (items < 6),
        restrict_to_logged_catalog=True,
    ).policies[0]
    for name in names:
        estimate = result.estimates[name]
        error = max(estimate.standard_error or 0.0, 1e-9)
        assert abs((estimate.value or 0.0) - 2.0) < 5.5 * error, name


def test_an_asked_number_of_places_is_not_believed(tmp_path: Path) -> None:
    """k = 10**9 with who knows how many eligible items: the longest ranking there is decides."""
    with LogWriter(tmp_path) as log:
        serve(log, 100, fr.PlackettLuce(1.0))
    rows = next(iter(LogReader(tmp_path))).table.to_pydict()
    rows["k"][0], rows["n_eligible"][0] = 10**9, None
    reader = LogReader.of_tables(pa.Table.from_pydict(rows, schema=schema("int64")))
    assert reader.survey() == (100, 2)


@pytest.mark.parametrize("limits", [(1.0, 0.0), (0.0, np.inf), (np.nan, 1.0)])
def test_ranges_of_rewards_are_checked(
    short: LogReader, model: fr.Model, limits: tuple[float, float]
) -> None:
    with pytest.raises(ValueError, match="reward_range: expected low < high"):
        ope.evaluate(short, by_model(model, a=fr.Uniform()), reward_range=limits)


# How long it takes.


def test_progress_is_told_within_a_batch(tmp_path: Path) -> None:
    log = slates(tmp_path, fr.PlackettLuce(1.0), 400)
    policies = [ope.ByModel(f"p{t}", fr.PlackettLuce(t), FOUR) for t in (0.5, 0.8)]
    told: list[int] = []
    options: Any = {"logging": [FOUR], "advance": told.append}
    ope.evaluate(log, policies, estimators=["iips", "pi"], **options)
    assert told == sorted(told)
    assert told[-1] == 400
    # Two policies, two estimators, and four laws with rankings of two lengths, all in one batch.
    assert len(set(told)) > 8
    assert max(np.diff([0, *told])) <= 200
    told.clear()
    small = LogReader(log.files, batch_rows=100)
    ope.evaluate(small, policies, estimators=["ips"], **options)
    assert set(told) >= {100, 200, 300, 400}
    assert told == sorted(told)


def test_what_estimators_want_besides_is_part_of_the_forecast(
    short: LogReader, model: fr.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In seconds of this process, which do not depend on who else is busy."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    policies = by_model(model, a=fr.PlackettLuce(0.4), b=fr.Uniform())
    judged = forecast(short, policies, logging=[model])
    assert 0.0 < judged < 60.0
    with_marginals = forecast(short, policies, logging=[model], estimators=["iips"])
    assert with_marginals > 2.0 * judged
    start = time.perf_counter()
    ope.evaluate(short, policies, logging=[model], estimators=["iips"])
    taken = time.perf_counter() - start
    assert taken / 10 < with_marginals < 10 * taken  # of the right order
    column = [ope.FromColumn("c", "lp1")]
    assert forecast(short, column) == 0.0
    with pytest.raises(ValueError, match="iips of a: needs a policy on a model"):
        forecast(short, policies, estimators=["iips"])


def test_a_forecast_asks_nothing_of_rows_that_are_left_out(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        serve(log, 300, fr.PlackettLuce(1.0), rewards=lambda ranking: [1.0, 1.0])
        serve(log, 300, fr.Uniform(), first=300, is_fallback=True, model_version="x")
    policies = [ope.ByModel("p", fr.PlackettLuce(0.5), CATALOG)]
    assert forecast(LogReader(tmp_path), policies, logging=[CATALOG], estimators=["iips"]) > 0.0
