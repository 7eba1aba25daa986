"""Logs of flat tails: what rows say, what audit finds, what evaluations make of them.

Error budget of the statistical ones: each fails a right library with a probability below 1e-9 over
its seeds, which are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import fastrank as fr
from fastrank import expectations, marginals, reference
from fastrank.eventlog import LogReader, LogWriter
from fastrank.ope import ByModel, audit, evaluate
from fastrank.ope.queries import logging_policy
from fastrank.plan import explore
from fastrank.policies import law_of
from fastrank.policies.relative import RelativeTemperature
from fastrank.policies.spec import parse_policy
from fastrank.retrieval import FaissIndex

N, DIM, USERS = 60, 5, 4
POLICY = fr.FlatTail(0.7, m=12, factor=0.3)


def model_of(*, temperatures: Sequence[float] | None = None, seed: int = 0) -> fr.Model:
    rng = np.random.default_rng(seed)
    catalog = fr.Catalog(np.arange(N) + 100, rng.standard_normal((N, DIM)))
    users = rng.standard_normal((USERS, DIM))
    return fr.Model(catalog, np.arange(USERS), users, user_temperatures=temperatures)


def indexed(model: fr.Model, keep: int = N) -> fr.Model:
    """With an exact index of the first so many items."""
    index = faiss.IndexFlatIP(DIM)
    index.add(model.catalog._vectors(0, keep))
    return model.with_index(FaissIndex(index))


def write(
    folder: Path,
    model: fr.Model,
    rows: int,
    k: int = 3,
    policy: fr.Policy = POLICY,
    rewards: Callable[[npt.NDArray[np.int64]], Any] | None = None,
) -> LogReader:
    exclude = [None, [100, 101], list(range(100, 130))]
    with LogWriter(folder) as log:
        for seed in range(rows):
            user = seed % USERS
            ranking = model.recommend(
                user, k, policy=policy, seed=seed, exclude=exclude[seed % len(exclude)]
            )
            shown = None if rewards is None else rewards(ranking.item_ids)
            log.append(ranking, user_id=user, rewards=shown)
    return LogReader(folder)


# Rows


@pytest.mark.parametrize("with_index", [False, True])
def test_a_row_says_what_it_was_drawn_from(tmp_path: Path, with_index: bool) -> None:
    model = model_of(temperatures=[0.5, 1.0, 2.0, 1.5])
    if with_index:
        model = indexed(model)
    (batch,) = write(tmp_path, model, 24)
    for i in range(24):
        ranking = model.recommend(
            i % USERS, 3, policy=POLICY, seed=i, exclude=[None, [100, 101], range(100, 130)][i % 3]
        )
        said = ranking.candidates
        assert said is not None
        assert batch.value("policy_name", i) == "stochastic_flat_tail"
        assert batch.value("law", i) == "flat_tail"
        assert batch.value("sampler", i) is None
        assert batch.value("is_candidate", i) == said.is_candidate.tolist()
        assert batch.value("tail_log_weight", i) == said.tail_log_weight
        assert batch.value("n_candidates", i) == said.n_found
        assert batch.value("candidate_set_id", i) is None
        assert batch.value("n_probes", i) is None
        assert batch.value("made_by", i) == ("index" if with_index else "pass")
        retrieval = batch.value("retrieval", i)
        if with_index:
            assert model.catalog.index is not None
            version = model.catalog.index.version
            assert retrieval == {"name": "faiss", "version": version, "params": None}
        else:
            assert retrieval is None
        own = POLICY.scaled(model.temperature_at(i % USERS))
        assert logging_policy(batch, i) == own


def test_rows_that_cannot_be_are_set_aside(tmp_path: Path) -> None:
    write(tmp_path / "log", model_of(), 4)
    (batch,) = LogReader(tmp_path / "log")
    table = pa.Table.from_batches([batch.table])
    kind = table.schema.field("is_candidate").type

    def with_column(name: str, values: list[Any], wanted: pa.DataType) -> pa.Table:
        at = table.schema.get_field_index(name)
        return table.set_column(at, table.schema.field(name), pa.array(values, wanted))

    short = [[True, False], *table.column("is_candidate").to_pylist()[1:]]
    weights = [np.inf, *table.column("tail_log_weight").to_pylist()[1:]]
    for changed, reason in (
        (with_column("is_candidate", short, kind), "list lengths differ"),
        (with_column("tail_log_weight", weights, pa.float64()), "tail_log_weight"),
    ):
        reader = LogReader.of_tables([changed])
        assert sum(len(each) for each in reader) == 3
        assert reader.report.set_aside == {reason: 1}


def test_a_made_up_ranking_is_refused(tmp_path: Path) -> None:
    ranking = model_of().recommend(0, 3, policy=POLICY, seed=1)
    said = ranking.candidates
    assert said is not None
    for wrong in (
        said._replace(is_candidate=said.is_candidate[:2]),
        said._replace(tail_log_weight=np.nan),
    ):
        made_up = fr.Ranking(
            ranking.item_ids,
            ranking.scores,
            ranking.log_propensities,
            ranking.log_propensity,
            ranking.seed,
            ranking.policy,
            ranking.log_norm,
            ranking.n_eligible,
            ranking.catalog_version,
            candidates=wrong,
        )
        with (
            LogWriter(tmp_path / "log") as log,
            pytest.raises(ValueError, match="ranking: candidates: expected a tail_log_weight"),
        ):
            log.append(made_up, k=3)


# Audit


def checks_of(reader: LogReader, model: fr.Model) -> dict[str, Any]:
    return {check.name: check for check in audit(reader, [model]).checks}


@pytest.mark.parametrize("with_index", [False, True])
def test_audit_finds_nothing_wrong(tmp_path: Path, with_index: bool) -> None:
    model = model_of(temperatures=[0.5, 1.0, 2.0, 1.5])
    if with_index:
        model = indexed(model)
    found = checks_of(write(tmp_path, model, 300), model)
    for name in ("propensities", "flat tails", "seeds draw", "mean weight"):
        assert found[name].outcome == "passed", found[name]
        assert found[name].rows == 300
    assert found["first place"].outcome == "not done"


def test_audit_reports_other_candidates_and_calls_it_no_forgery(tmp_path: Path) -> None:
    """The log was written with an index that had half of the items."""
    model = model_of()
    reader = write(tmp_path, indexed(model, keep=N // 2), 120)
    found = checks_of(reader, model)
    assert found["propensities"].outcome == "warning"
    assert "other candidates are found now" in found["propensities"].message
    assert found["flat tails"].outcome == "passed"
    own = checks_of(reader, indexed(model, keep=N // 2))
    assert own["propensities"].outcome == "passed"


def forged(reader: LogReader, change: Callable[[dict[str, Any]], None]) -> LogReader:
    rows = [row for batch in reader for row in batch.table.to_pylist()]
    for row in rows:
        change(row)
    (batch,) = reader
    return LogReader.of_tables([pa.Table.from_pylist(rows, batch.table.schema)])


def halves_the_second_place(row: dict[str, Any]) -> None:
    row["log_propensities"][1] -= 0.7
    row["log_propensity"] -= 0.7


def calls_a_candidate_tail(row: dict[str, Any]) -> None:
    row["is_candidate"] = [not each for each in row["is_candidate"]]


def moves_the_tail(row: dict[str, Any]) -> None:
    row["tail_log_weight"] += 0.1


def loses_its_flags(row: dict[str, Any]) -> None:
    row["is_candidate"] = None


@pytest.mark.parametrize(
    "change", [halves_the_second_place, calls_a_candidate_tail, moves_the_tail, loses_its_flags]
)
def test_audit_sees_a_row_that_contradicts_itself(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    model = model_of()
    found = checks_of(forged(write(tmp_path, model, 60), change), model)
    assert found["flat tails"].outcome == "failed"
    if change is halves_the_second_place:
        assert found["propensities"].outcome == "failed"


# Evaluation


def test_another_policy_is_evaluated_without_bias(tmp_path: Path) -> None:
    """Clicks are certain functions of item and place: the truth is a sum over all rankings."""
    model = model_of()
    worth = np.random.default_rng(3).random(N) < 0.3
    reader = write(
        tmp_path, model, 6000, k=2, rewards=lambda ids: worth[ids - 100].astype(float).tolist()
    )
    target = fr.PlackettLuce(1.0)
    truths = []
    for row in range(12):
        query = model.user_vectors[row % USERS]
        exclude = [None, [100, 101], list(range(100, 130))][row % 3]
        left = np.ones(N, np.bool_)
        left[[each - 100 for each in exclude or ()]] = False
        scores = model.catalog.scores(query)
        rankings, p = reference.ranking_law(scores, 2, target, left)
        truths.append(float(p @ worth[rankings].sum(axis=1)))
    truth = float(np.mean(truths))
    found = evaluate(
        reader, [ByModel("new", target, model)], logging=[model], estimators=["ips", "snips"]
    )
    for name in ("ips", "snips"):
        estimate = found.policies[0].estimates[name]
        assert estimate.value is not None
        assert estimate.standard_error is not None
        assert abs(estimate.value - truth) < 6.5 * estimate.standard_error, (name, estimate, truth)
        assert estimate.standard_error < 0.2 * truth


def test_a_flat_tail_can_be_the_target(tmp_path: Path) -> None:
    """Of a log by the policy itself each weight is 1."""
    model = model_of()
    reader = write(tmp_path, model, 200, k=2, rewards=lambda ids: (ids % 2).astype(float).tolist())
    found = evaluate(reader, [ByModel("same", POLICY, model)], estimators=["ips"])
    own = found.policies[0].estimates
    assert own["ips"].value == pytest.approx(own["avg"].value, rel=1e-12)


def test_weights_of_a_flat_tail_have_a_mean_of_one(tmp_path: Path) -> None:
    model = model_of()
    reader = write(
        tmp_path,
        model,
        4000,
        k=2,
        policy=fr.PlackettLuce(0.7),
        rewards=lambda ids: np.ones(len(ids)).tolist(),
    )
    found = evaluate(reader, [ByModel("flat", POLICY, model)], estimators=["ips"])
    estimate = found.policies[0].estimates["ips"]
    assert estimate.value is not None
    assert estimate.standard_error_iid is not None
    assert abs(estimate.value - 2.0) < 6.5 * estimate.standard_error_iid


@pytest.mark.parametrize("name", ["iips", "pi"])
def test_what_wants_a_law_refuses_it_by_name(tmp_path: Path, name: str) -> None:
    model = model_of()
    rewards = np.zeros(2).tolist()
    reader = write(tmp_path, model, 8, k=2, rewards=lambda ids: rewards)
    target, other = ByModel("flat", POLICY, model), ByModel("new", fr.PlackettLuce(), model)
    message = "estimators: .* of flat: knows laws of the scores alone, not FlatTail"
    with pytest.raises(ValueError, match=message):
        evaluate(reader, [target], logging=[model], estimators=[name])
    message = "logging: request .*: its policy has no law of the scores alone: FlatTail"
    with pytest.raises(ValueError, match=message):
        evaluate(reader, [other], logging=[model], estimators=[name])


@pytest.mark.parametrize(
    "use",
    [
        lambda model: law_of(POLICY),
        lambda model: marginals.position_marginals(np.zeros(N), POLICY, 2),
        lambda model: marginals.next_law(np.zeros((1, N)), POLICY),
        lambda model: marginals.slate_inverse(np.zeros(5), POLICY, 2),
        lambda model: marginals.ranking_law(np.zeros(5), 2, POLICY),
        lambda model: expectations.Audience(model.catalog, model.user_vectors, 2).law([POLICY]),
        lambda model: explore(model, k=2, targets={"flat": POLICY}),
        lambda model: RelativeTemperature(2.0)(POLICY),
        lambda model: parse_policy("stochastic_flat_tail:temperature=x2"),
        lambda model: model.with_tables(POLICY),
    ],
)
def test_what_computes_with_laws_refuses_it_by_name(use: Callable[[fr.Model], Any]) -> None:
    with pytest.raises(ValueError, match=r"laws of the scores alone|relative|FlatTail"):
        use(model_of())
