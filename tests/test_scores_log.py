"""Scores in logs: rows say which, audits rank by them, evaluations by the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("scipy")

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogReader, LogWriter

N, USERS = 200, 12
RNG = np.random.default_rng(3)
VECTORS, QUERIES = RNG.standard_normal((N, 4)), RNG.standard_normal((USERS, 4))
OWN = "w * dot - age / 30"


def columns(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"age": rng.integers(0, 60, N).astype(float), "kind": ["a", "b"] * (N // 2)}


def some_model(features: Any = None) -> fr.Model:
    catalog = fr.Catalog(np.arange(N), VECTORS, features=features or columns())
    return fr.Model(catalog, [f"u{i}" for i in range(USERS)], QUERIES)


# What calls say of their score, in turn.
CALLS: list[dict[str, Any]] = [
    {},
    {"params": {"w": 2.0}},
    {"score": "dot"},
    {"score": "dot if kind == k else -1", "params": {"k": "a"}},
    {"score": "sigmoid(dot)"},
]


def write(folder: Path, model: fr.Model, rows: int = 200, **options: Any) -> None:
    rng = np.random.default_rng(1)
    with LogWriter(folder) as log:
        for i in range(rows):
            user = f"u{i % USERS}"
            call = CALLS[i % len(CALLS)]
            ranking = model.recommend(
                user, 4, policy=fr.PlackettLuce(0.7), seed=i, exclude=[i], **call
            )
            rewards = (rng.random(4) < 0.2).astype(float)
            log.append(ranking, user_id=user, rewards=rewards, **options)


@pytest.fixture
def model() -> fr.Model:
    return some_model().with_score(OWN, {"w": 1.0})


def check_of(log: LogReader, models: list[fr.Model], name: str = "propensities") -> ope.Check:
    (found,) = (each for each in ope.audit(log, models).checks if each.name == name)
    return found


def test_a_row_says_its_score(model: fr.Model, tmp_path: Path) -> None:
    write(tmp_path, model, rows=5)
    (batch,) = LogReader(tmp_path)
    said = batch.values("score")
    assert [row and row["name"] for row in said] == [
        *(OWN, OWN, None, "dot if kind == k else -1", "sigmoid(dot)"),
    ]
    assert [row and row["params"] for row in said] == [
        *('{"w": 1.0}', '{"w": 2.0}', None, '{"k": "a"}', "{}"),
    ]
    version = model.catalog.features_version
    assert batch.values("features_version") == [version, version, None, version, None]
    assert len({stratum.score for stratum in batch_strata(tmp_path)}) == 4


def batch_strata(folder: Path) -> list[Any]:
    reader = LogReader(folder)
    list(reader)
    return reader.strata


def test_an_audit_ranks_by_what_each_row_says(model: fr.Model, tmp_path: Path) -> None:
    write(tmp_path, model)
    log = LogReader(tmp_path)
    for each in (model, some_model(), some_model().with_score("dot * 3")):
        assert check_of(log, [each]).outcome == "passed"
        assert check_of(log, [each], "seeds draw").outcome == "passed"


def test_a_false_score_is_found(model: fr.Model, tmp_path: Path) -> None:
    """The row's law is that of its own score, whatever else would be likely."""
    for i, (name, params) in enumerate((("dot", {}), (OWN, {"w": 1.5}))):
        with LogWriter(tmp_path / str(i)) as log:
            for seed in range(20):
                drawn = model.recommend("u1", 4, policy=fr.PlackettLuce(0.7), seed=seed)
                other = model.recommend(
                    "u1", 4, policy=fr.PlackettLuce(0.7), seed=seed, score=name, params=params
                )
                fields = {each: getattr(drawn, each) for each in drawn.__slots__}
                lie = fr.Ranking(**{**fields, "score": other.score})
                log.append(lie, user_id="u1")
        found = check_of(LogReader(tmp_path / str(i)), [model])
        assert (found.outcome, found.failures) == ("failed", 20)


def test_other_columns_are_not_judged(model: fr.Model, tmp_path: Path) -> None:
    write(tmp_path, model)
    found = check_of(LogReader(tmp_path), [model.with_features(columns(seed=9))])
    assert found.message.startswith("80 sampled rows have the propensities that the model gives;")
    assert found.message.endswith("120 not judged: features of another version")


@pytest.mark.parametrize("newest_first", [False, True])
def test_rows_are_judged_by_the_model_that_has_their_columns(
    model: fr.Model, tmp_path: Path, newest_first: bool
) -> None:
    """A new `age` every day, and the same vectors: the models have one version."""
    days = [model, model.with_features(columns(seed=9))]
    for day in days:
        write(tmp_path, day)
    models = days[::-1] if newest_first else days
    assert check_of(LogReader(tmp_path), models).message.startswith("400 sampled rows have")


def test_parameters_that_do_not_fit_are_not_judged(model: fr.Model, tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        of_others: list[Any] = [{"w": "much"}, {"w": 1.0, "v": 2.0}]
        for seed, params in enumerate(of_others):
            drawn = model.recommend("u1", 4, policy=fr.PlackettLuce(0.7), seed=seed)
            assert drawn.score is not None
            said = fr.ranking.Score(drawn.score.name, drawn.score.hash, params)
            fields = {each: getattr(drawn, each) for each in drawn.__slots__}
            log.append(fr.Ranking(**{**fields, "score": said}), user_id="u1", rewards=np.zeros(4))
    found = check_of(LogReader(tmp_path), [model])
    assert found.outcome == "failed"
    assert found.message == (
        "no sampled row could be judged; 2 not judged: params of another score"
    )
    evaluated = ope.evaluate(
        LogReader(tmp_path), [ope.ByModel("new", fr.PlackettLuce(0.9), model)], logging=[model]
    )
    assert evaluated.set_aside == {"params_of_another_score": 2}


def test_an_evaluation_ranks_by_the_models_own_score(model: fr.Model, tmp_path: Path) -> None:
    """With the row's parameters where it was the row's score, too: as by hand, row by row."""
    write(tmp_path, model)
    policy = fr.PlackettLuce(0.9)
    (batch,) = LogReader(tmp_path)
    for target in (model, model.with_score("dot"), model.with_score("dot + age / 50")):
        weights = []
        for i in range(len(batch)):
            said = batch.value("score", i)
            mine = target.catalog.score
            is_own = mine is not None and said is not None and said["hash"] == mine.hash
            lp = target.catalog.log_propensities(
                target.user_vector(batch.user_ids[i]),
                batch.item_ids[i],
                policy=policy,
                exclude=batch.exclude(i),
                params=CALLS[i % len(CALLS)].get("params") if is_own else None,
            )
            weights.append(np.exp(lp.sum() - batch.log_propensities[i].sum()))
        right = float(np.mean(np.array(weights) * batch.rewards.sum(axis=1)))
        evaluated = ope.evaluate(
            LogReader(tmp_path), [ope.ByModel("new", policy, target)], logging=[model]
        )
        (found,) = evaluated.policies
        assert found.estimates["ips"].value == pytest.approx(right, rel=1e-4)


def test_rows_of_another_score_take_the_models_own_parameters(
    model: fr.Model, tmp_path: Path
) -> None:
    write(tmp_path, model, rows=10)
    target = some_model().with_score("1 / (w - 2) + dot", {"w": 1.0})
    (batch,) = LogReader(tmp_path)
    assert len(batch) == 10
    evaluated = ope.evaluate(
        LogReader(tmp_path),
        [ope.ByModel("new", fr.PlackettLuce(1.0), target)],
        logging=[model],
    )
    assert evaluated.policies[0].estimates["ips"].rows == 10  # none was logged by that score


def test_simulated_logs_and_plans_take_the_score(model: fr.Model) -> None:
    from fastrank import plan

    plain = some_model()
    explored = [
        plan.explore(each, k=4, users=6, draws=4, seed=1, temperatures=[0.5])
        for each in (model, plain)
    ]
    assert explored[0] != explored[1]
