"""Audits: a sound log passes, and each way of being broken is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogReader, LogWriter, ReadReport, schema

RNG = np.random.default_rng(1)
CATALOG = fr.Catalog(np.arange(40), RNG.standard_normal((40, 4)))
USERS = RNG.standard_normal((30, 4))
MODEL = fr.Model(CATALOG, np.arange(30), USERS)
WARMER = fr.Model(CATALOG, np.arange(30), USERS, user_temperatures=np.linspace(0.5, 2.0, 30))
ROWS = 1200


def write(
    directory: Path,
    policy: fr.Policy,
    model: fr.Model = MODEL,
    seed: Callable[[int], int] = lambda row: 1000 + row,
    **options: Any,
) -> LogReader:
    with LogWriter(directory) as log:
        for row in range(ROWS):
            user = row % 30
            ranking = model.recommend(user, 3, policy=policy, seed=seed(row))
            log.append(
                ranking,
                k=3,
                request_id=f"r{row}",
                user_id=user,
                model_version=model.version,
                user_temperature=model.user_temperature(user),
                rewards=[0.0, 0.0, 1.0],
                **options,
            )
    return LogReader(directory)


def altered(log: LogReader, change: Callable[[dict[str, list[Any]]], None]) -> LogReader:
    """The same log with its columns changed."""
    rows: dict[str, list[Any]] = {}
    for batch in log:
        for name, values in batch.table.to_pydict().items():
            rows.setdefault(name, []).extend(values)
    change(rows)
    return LogReader.of_tables(pa.Table.from_pydict(rows, schema=schema("int64")))


def outcomes(found: ope.Audit) -> dict[str, str]:
    return {check.name: check.outcome for check in found.checks}


@pytest.mark.sampled
@pytest.mark.parametrize(
    "policy",
    [
        fr.PlackettLuce(0.7),
        fr.PlackettLuce(0.7, sampler="sequential"),
        fr.PlackettLuce(0.7, sampler="cached"),
        fr.EpsilonGreedy(0.3),
        fr.Uniform(),
        fr.Deterministic(),
    ],
    ids=str,
)
def test_sound_logs_pass(tmp_path: Path, policy: fr.Policy) -> None:
    found = ope.audit(write(tmp_path, policy), [MODEL], sample=10_000)
    assert found.passed
    assert (found.rows, found.sampled) == (ROWS, ROWS)
    expected = dict.fromkeys(outcomes(found), "passed")
    if not isinstance(policy, fr.PlackettLuce):
        expected |= {"mean weight": "not done", "first place": "not done"}
    if isinstance(policy, fr.Deterministic):
        expected["repeated seeds"] = "not done"
    assert outcomes(found) == expected


@pytest.mark.parametrize("head", [0, 1])
def test_each_row_is_drawn_again_by_its_own_sampler(tmp_path: Path, head: int) -> None:
    """Rows of one law, and so of one stratum; a seed draws another ranking by another sampler."""
    names = [
        *("stochastic_gumbel_softmax_trick", "stochastic_plackett_luce"),
        "stochastic_plackett_luce_cached",
    ]
    with LogWriter(tmp_path) as writer:
        for row in range(300):
            policy = fr.policy(names[row % 3], temperature=0.7, head=head)
            ranking = MODEL.recommend(row % 30, 3, policy=policy, seed=row)
            writer.append(ranking, user_id=row % 30)
    log = LogReader(tmp_path)
    drawn = {each.name: each for each in ope.audit(log, [MODEL]).checks}["seeds draw"]
    assert (drawn.outcome, drawn.rows, drawn.failures) == ("passed", 300, 0)
    assert len(log.strata) == 1

    def swap(rows: dict[str, list[Any]]) -> None:
        rows["policy_name"] = [names[(names.index(each) + 1) % 3] for each in rows["policy_name"]]

    checks = {each.name: each for each in ope.audit(altered(log, swap), [MODEL]).checks}
    assert checks["propensities"].outcome == "passed"  # the law is the same
    assert checks["seeds draw"].outcome == "warning"
    assert checks["seeds draw"].failures > 100


def test_users_temperatures_are_part_of_the_law(tmp_path: Path) -> None:
    found = ope.audit(write(tmp_path, fr.PlackettLuce(0.7), WARMER), [WARMER], sample=10_000)
    assert found.passed
    policy = ope.ByModel("same", fr.PlackettLuce(0.7), WARMER)
    result = ope.evaluate(LogReader(tmp_path), [policy], logging=[WARMER])
    assert len(result.strata) == 1
    weights = result.policies[0].estimates["ips"].diagnostics
    assert weights is not None
    assert weights.ess_share == pytest.approx(1.0, abs=1e-9)


def test_a_sample_is_a_sample(tmp_path: Path) -> None:
    found = ope.audit(write(tmp_path, fr.PlackettLuce(0.7)), [MODEL], sample=300)
    assert found.passed
    assert 200 < found.sampled < 400  # by a fixed hash


def test_another_model_did_not_write_it(tmp_path: Path) -> None:
    other = fr.Model(fr.Catalog(np.arange(40), RNG.standard_normal((40, 4))), np.arange(30), USERS)
    log = write(tmp_path, fr.PlackettLuce(0.7))
    found = ope.audit(log, [other])
    assert not found.passed
    check = found.checks[0]
    assert (check.name, check.outcome) == ("model", "failed")
    assert "written by another model" in check.message
    assert len(check.examples) == 5
    assert ope.audit(log, [other, MODEL]).passed


def test_a_catalog_that_was_not_given_is_found(tmp_path: Path) -> None:
    """Also where the rows name a model that was."""

    def another(rows: dict[str, list[Any]]) -> None:
        rows["catalog_version"] = ["gone"] * ROWS

    found = ope.audit(altered(write(tmp_path, fr.PlackettLuce(0.7)), another), [MODEL])
    assert outcomes(found)["model"] == "failed"
    assert not found.passed


@pytest.mark.parametrize("given", [3, 30, 300])
def test_scores_that_were_given_cannot_be_judged(tmp_path: Path, given: int) -> None:
    """They are counted by name, and not taken for another model's; nothing else is said of them."""
    with LogWriter(tmp_path) as log:
        for row in range(300):
            policy, scores = fr.PlackettLuce(0.7), CATALOG.scores(USERS[row % 30])
            if row < given:
                ranking = fr.rank_scores(CATALOG.item_ids, scores, 3, policy=policy, seed=row)
            else:
                ranking = MODEL.recommend(row % 30, 3, policy=policy, seed=row)
            log.append(ranking, user_id=row % 30)
    found = ope.audit(LogReader(tmp_path), [MODEL])
    checks = {check.name: check for check in found.checks}
    assert found.sampled == 300 - given
    outcome = {3: "passed", 30: "warning", 300: "failed"}[given]
    assert checks["propensities"].outcome == outcome
    said = f"{given} not judged: scores that were given, of no catalog"
    assert said in checks["propensities"].message
    assert checks["model"].outcome == ("not done" if given == 300 else "passed")
    assert checks["first place"].outcome == "passed"
    if given == 300:
        assert checks["model"].message == "no sampled row names a catalog"
    result = ope.evaluate(LogReader(tmp_path), [ope.ByModel("same", fr.PlackettLuce(0.7), MODEL)])
    assert {s.stratum.catalog_version for s in result.strata} <= {"", CATALOG.version}


def scale_temperature(rows: dict[str, list[Any]]) -> None:
    for params in rows["law_params"]:
        params[0]["value"] = 0.8


def swap_places(rows: dict[str, list[Any]]) -> None:
    """Somebody re-ordered what was drawn."""
    for items in rows["item_ids"]:
        items[0], items[1] = items[1], items[0]


def another_user(rows: dict[str, list[Any]]) -> None:
    rows["user_id"] = [str((int(user) + 1) % 30) for user in rows["user_id"]]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (scale_temperature, {"propensities", "first place"}),
        (swap_places, {"propensities"}),
        (another_user, {"propensities"}),
    ],
)
def test_wrong_rows_are_found(
    tmp_path: Path, change: Callable[[dict[str, list[Any]]], None], failed: set[str]
) -> None:
    log = altered(write(tmp_path, fr.PlackettLuce(0.7)), change)
    found = ope.audit(log, [MODEL])
    assert failed <= {name for name, outcome in outcomes(found).items() if outcome == "failed"}
    check = next(check for check in found.checks if check.name == "propensities")
    assert "computed" in check.examples[0]


def test_a_forgotten_filter_is_found(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        for row in range(300):
            ranking = MODEL.recommend(1, 3, policy=fr.Uniform(), seed=row, exclude=[1, 2, 3, 4])
            log.append(ranking, k=3, user_id=1, model_version=MODEL.version, exclude=[1, 2, 3, 4])
    assert ope.audit(LogReader(tmp_path), [MODEL]).passed
    broken = altered(LogReader(tmp_path), lambda rows: rows.update(exclude=[None] * 300))
    assert outcomes(ope.audit(broken, [MODEL]))["propensities"] == "failed"


def test_rows_that_were_chosen_by_their_items_are_found(tmp_path: Path) -> None:
    """Each row is right by itself; those that show a popular item are missing."""
    log = write(tmp_path, fr.PlackettLuce(0.7))
    batch = next(iter(log))
    keep = np.flatnonzero(np.exp(batch.log_propensities[:, 0]) < 0.3)
    table = pa.Table.from_batches([batch.table]).take(keep)
    found = ope.audit(LogReader.of_tables(table), [MODEL])
    assert outcomes(found)["propensities"] == "passed"
    assert outcomes(found)["mean weight"] == "failed"
    assert outcomes(found)["gaps"] == "warning"


def test_callers_who_choose_their_seeds_spoil_no_check(tmp_path: Path) -> None:
    """Their rows were not drawn by the law; the others were."""
    write(tmp_path, fr.PlackettLuce(0.7))
    with LogWriter(tmp_path) as log:
        for row in range(ROWS):
            user = row % 30
            ranking = MODEL.recommend(user, 3, policy=fr.PlackettLuce(0.7), seed=1)
            log.append(ranking, k=3, user_id=user, model_version=MODEL.version,
                       seed_source="caller")  # fmt: skip
    found = ope.audit(LogReader(tmp_path), [MODEL], sample=10_000)
    assert found.sampled == 2 * ROWS
    assert found.passed, outcomes(found)
    assert outcomes(found)["mean weight"] == "passed"
    assert outcomes(found)["first place"] == "passed"


def test_shared_noise_is_found(tmp_path: Path) -> None:
    log = write(tmp_path, fr.PlackettLuce(0.7), seed=lambda row: row // 2)
    found = ope.audit(log, [MODEL])
    check = next(check for check in found.checks if check.name == "repeated seeds")
    assert (check.outcome, check.failures) == ("warning", ROWS // 2)
    assert found.passed


def test_a_user_may_have_one_seed(tmp_path: Path) -> None:
    """Its rows are one cluster, whatever they share."""
    log = write(tmp_path, fr.PlackettLuce(0.7), seed=lambda row: row % 30)
    assert outcomes(ope.audit(log, [MODEL]))["repeated seeds"] == "passed"


def test_rows_that_came_twice_are_said(tmp_path: Path) -> None:
    write(tmp_path, fr.PlackettLuce(0.7))
    (file,) = tmp_path.glob("*.parquet")
    (tmp_path / "again.parquet").write_bytes(file.read_bytes())
    found = ope.audit(LogReader(tmp_path), [MODEL])
    check = next(check for check in found.checks if check.name == "malformed rows")
    assert check.outcome == "passed"
    assert check.message == (
        f"no malformed rows; {ROWS:,} came twice, say the same, and count once"
    )
    assert found.rows == ROWS


def test_ids_that_clients_chose_and_that_came_again_are_counted(tmp_path: Path) -> None:
    log = write(tmp_path / "log", fr.PlackettLuce(0.7))

    def again(rows: dict[str, list[Any]]) -> None:
        for values in rows.values():
            values += [values[0], *values[:4]]
        # The first came three times; of what came again nobody chose the ids of two.
        rows["request_id_source"] = ["body", "header", "gateway", "server"] * (ROWS // 4)
        rows["request_id_source"] += ["body", "body", "header", "gateway", "server"]

    found = ope.audit(altered(log, again), [MODEL])
    (check,) = (check for check in found.checks if check.name == "request ids")
    assert (check.outcome, check.failures) == ("passed", 0)
    assert check.message == (
        "3 rows came again under a request id that a client chose, and say the same"
    )

    def otherwise(rows: dict[str, list[Any]]) -> None:
        again(rows)
        for at in (ROWS, ROWS + 4):
            rows["seed"][at] += 1

    changed = altered(log, otherwise)
    found = ope.audit(changed, [MODEL])
    (check,) = (check for check in found.checks if check.name == "request ids")
    assert (check.outcome, check.failures) == ("warning", 1)
    assert "3 rows came again" in check.message
    assert "1 of them say something else" in check.message
    said = changed.report.to_dict()
    assert (said["client_ids_repeated"], said["client_ids_contradicted"]) == (3, 1)
    joined = ReadReport(client_ids_repeated=1, joins=[{"source": said}, {}])
    assert joined.repeats_by_clients == (4, 1)


def test_seeds_that_draw_something_else_are_named(tmp_path: Path) -> None:
    log = altered(
        write(tmp_path, fr.PlackettLuce(0.7)),
        lambda rows: rows.update(seed=[seed + 1 for seed in rows["seed"]]),
    )
    found = ope.audit(log, [MODEL])
    assert outcomes(found)["seeds draw"] == "warning"
    assert found.passed


def of_version_1(rows: dict[str, Any]) -> None:
    rows["rng_version"] = [1] * len(rows["seed"])


@pytest.mark.parametrize(
    "policy", [fr.PlackettLuce(0.7), fr.PlackettLuce(0.7, "sequential"), fr.EpsilonGreedy(0.2)]
)
def test_rows_of_an_older_version_whose_sampler_is_the_same_are_drawn_again(
    policy: fr.Policy, tmp_path: Path
) -> None:
    found = ope.audit(altered(write(tmp_path, policy), of_version_1), [MODEL])
    assert outcomes(found)["seeds draw"] == "passed"


@pytest.mark.parametrize("policy", [fr.PlackettLuce(0.7, "cached"), fr.Uniform()])
def test_why_rows_of_an_older_version_are_not_drawn_again(
    policy: fr.Policy, tmp_path: Path
) -> None:
    found = ope.audit(altered(write(tmp_path, policy), of_version_1), [MODEL])
    assert found.passed
    [check] = [check for check in found.checks if check.name == "seeds draw"]
    assert check.outcome == "not done"
    assert check.message.startswith("no sampled row could be drawn again; ")
    assert check.message.endswith(" were drawn by rng_version 1: this fastrank draws by 2")


def test_unknown_policies_cannot_be_judged(tmp_path: Path) -> None:
    log = altered(
        write(tmp_path, fr.PlackettLuce(0.7)),
        lambda rows: rows.update(policy_name=["own"] * ROWS),
    )
    found = ope.audit(log, [MODEL])
    assert not found.passed
    check = next(check for check in found.checks if check.name == "propensities")
    assert "policy that fastrank does not know" in check.message


def test_a_failed_audit_makes_every_status_unsupported(tmp_path: Path) -> None:
    log = write(tmp_path, fr.PlackettLuce(0.7))
    policies = [ope.ByModel("a", fr.PlackettLuce(0.8), MODEL)]
    found = ope.evaluate(log, policies, logging=[MODEL], reasons=["audit_failed"])
    statuses = {estimate.status for estimate in found.policies[0].estimates.values()}
    assert statuses == {"unsupported"}
    assert "this model did not write this log" in found.policies[0].verdict


def test_bounded_propensities_are_within_their_bound(tmp_path: Path) -> None:
    """int8 storage states its error in each row."""
    from fastrank import packing

    n = packing.CODED_FROM
    catalog = fr.Catalog(
        np.arange(n), np.random.default_rng(2).standard_normal((n, 16)), storage="int8"
    )
    query = np.full(16, 0.25, np.float32)
    with LogWriter(tmp_path) as log:
        for row in range(150):
            ranking = catalog.rank(query, 5, policy=fr.PlackettLuce(0.2), seed=row)
            log.append(ranking, k=5, query=query)
    batch = next(iter(LogReader(tmp_path)))
    assert "bounded" in batch.values("propensity_kind")
    assert ope.audit(LogReader(tmp_path), [catalog]).passed


def test_what_are_no_models_is_named(tmp_path: Path) -> None:
    with LogWriter(tmp_path, kind="int64"):
        pass
    one: Any = fr.Catalog([1], [[1.0]])
    with pytest.raises(ValueError, match="models: expected a sequence of models or catalogs, got"):
        ope.audit(LogReader.of_tables([]), one)
