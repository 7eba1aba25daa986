"""A server of a model with columns: scores in requests, answers, logs, limits, shared passes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from commands import process
from served import ask, call, make_model, with_app

pytest.importorskip("numba")

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogReader
from fastrank.scoring import exp
from fastrank_serving.app import App

N = 300
TEXT = "dot + w * exp(-age / half_life)"
PARAMS = {"w": 0.5, "half_life": 30.0}


@fr.score_function
def fresh(dot, age, half_life=30.0):  # type: ignore[no-untyped-def]  # a score function has no types
    """Newer first."""
    return dot + exp(-age / half_life)


def columns(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "age": rng.exponential(60, N),
        "stock": rng.integers(0, 3, N).astype(float),
        "seller": rng.choice(["acme", "bob"], N).tolist(),
    }


@pytest.fixture
def model(tmp_path: Path) -> fr.Model:
    factors = np.linspace(0.5, 2.0, 20)
    return make_model(tmp_path / "model", n=N, features=columns(), user_temperatures=factors)


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """This file's, by the name under which a server can import it."""
    monkeypatch.setitem(sys.modules, "own_scores", sys.modules[__name__])
    return ("own_scores:fresh",)


def test_a_request_says_its_score(
    tmp_path: Path, model: fr.Model, functions: tuple[str, ...]
) -> None:
    known = model.with_functions(fresh)
    cases: list[dict[str, Any]] = [
        {},
        {"score": TEXT, "params": PARAMS},
        {"score": "dot if seller == shop else -9", "params": {"shop": "acme"}},
        {"score": "fresh", "params": {"half_life": 5}},
        {"score": "dot"},
    ]

    async def work(app: App) -> list[dict[str, Any]]:
        rows = []
        for i, case in enumerate(cases):
            found = await ask(app, user_id="u3", k=5, seed=i, **case)
            assert found.status == 200, found.body
            rows.append(found.json())
        query = urlencode({"k": 5, "seed": 1, "score": TEXT, "params": json.dumps(PARAMS)})
        by_url = await call(app, "GET", "/1/recommended-items/u3", query=query)
        assert by_url.json()["item_ids"] == rows[1]["item_ids"]
        version = (await call(app, "GET", "/version")).json()
        assert version["features"]["columns"]["seller"] == "category"
        assert version["score"] is None
        assert version["score_functions"] == list(functions)
        return rows

    rows = with_app(
        tmp_path / "model", work, log_directory=tmp_path / "log", score_functions=functions
    )
    for i, (row, case) in enumerate(zip(rows, cases, strict=True)):
        expected = known.recommend("u3", 5, policy=fr.PlackettLuce(), seed=i, **case)
        assert row["item_ids"] == expected.item_ids.tolist()
        assert row["log_propensities"] == expected.log_propensities.tolist()
        if expected.score is None:
            assert "score" not in row
            assert "features_version" not in row
        else:
            assert row["score"] == expected.score._asdict()
            assert row["features_version"] == model.catalog.features_version
    log = LogReader(tmp_path / "log")
    audit = ope.audit(log, [known])
    (check,) = (each for each in audit.checks if each.name == "propensities")
    assert check.outcome == "passed"
    assert len({stratum.score for stratum in log.strata}) == 4
    others = (
        (model, "5 sampled rows have the propensities that the model gives; 1 not judged: score"),
        (known.with_features(columns(seed=1)), "2 sampled rows have the propensities that the"),
    )
    for other, said in others:
        (check,) = (e for e in ope.audit(log, [other]).checks if e.name == "propensities")
        assert check.message.startswith(said)
        assert check.outcome != "passed"
    assert check.message.endswith("4 not judged: features of another version")


def test_waiting_requests_share_a_pass_each_with_its_own_params(
    tmp_path: Path, model: fr.Model
) -> None:
    async def work(app: App) -> None:
        asked = [
            {"score": TEXT, "params": {"w": float(i), "half_life": 10.0 + i}}
            if i % 3
            else {"score": "dot - 0.1 * stock"}
            for i in range(40)
        ]
        found = await asyncio.gather(
            *(ask(app, user_id=f"u{i % 20}", seed=i, k=4, **each) for i, each in enumerate(asked))
        )
        for i, (each, case) in enumerate(zip(found, asked, strict=True)):
            expected = model.recommend(f"u{i % 20}", 4, policy=fr.PlackettLuce(), seed=i, **case)
            assert each.json()["item_ids"] == expected.item_ids.tolist()
            assert each.json()["score"] == expected.score._asdict()  # type: ignore[union-attr]

    with_app(tmp_path / "model", work, threads=2)


@pytest.mark.parametrize(
    ("asked", "status", "field", "words"),
    [
        ({"score": "dot +"}, 422, "score", "invalid syntax"),
        ({"score": "dot + colour"}, 422, "score", "'colour' is neither a column"),
        ({"score": "1 / stock"}, 422, "score", "gives the item"),
        ({"score": "dot * w", "params": {"w": "a"}}, 422, "score", "expected a number"),
        ({"score": "dot", "params": {"w": 1}}, 422, "params", "the score is the dot product alone"),
        ({"params": {"w": 1}}, 422, "params", "the score is the dot product alone"),
        ({"score": "dot * w", "params": {"w": 1, "v": 2}}, 422, "params", "'v' is not in the"),
        ({"score": ""}, 422, "score", "expected 1 to 10000 characters"),
        ({"score": "d" * 10_001}, 422, "score", "expected 1 to 10000 characters"),
        ({"score": 3}, 400, "score", "expected text, got the number 3"),
        ({"params": [1]}, 400, "params", "expected `object | null`"),
        ({"params": {"w": None}}, 400, "params", "expected `bool | float | str`"),
        ({"params": {"w": {}}}, 400, "params", "expected"),
        ({"params": {"w" * 300: 1}}, 422, "params", "at most 256 characters"),
        ({"params": {"w": "a" * 300}}, 422, "params", "at most 256 characters"),
        ({"params": {f"w{i}": i for i in range(101)}}, 422, "params", "at most 100"),
        (
            {"score": "dot + age", "inference_type": "stochastic_flat_tail"},
            422,
            "policy",
            "cannot use the score",
        ),
    ],
)
def test_what_is_no_score_is_named(
    tmp_path: Path, model: fr.Model, asked: dict[str, Any], status: int, field: str, words: str
) -> None:
    async def work(app: App) -> None:
        found = await ask(app, user_id="u1", **asked)
        assert (found.status, found.error["field"]) == (status, field), found.body
        assert words in found.error["message"]

    with_app(tmp_path / "model", work)


def test_a_parameter_that_is_said_twice_is_refused(tmp_path: Path, model: fr.Model) -> None:
    async def work(app: App) -> None:
        body = '{"user_id": "u1", "score": "dot * w", "params": {"w": 1, "w": 2}}'
        found = await call(app, "POST", "/invocations", body)
        assert (found.status, found.error["code"]) == (400, "duplicate_field")
        for text in ("[1]", "w=1", '{"w": NaN}'):
            query = urlencode({"score": "dot * w", "params": text})
            found = await call(app, "GET", "/1/recommended-items/u1", query=query)
            assert found.error["field"] == "params"

    with_app(tmp_path / "model", work)


def test_a_models_own_score_and_its_tables(
    tmp_path: Path, model: fr.Model, functions: tuple[str, ...]
) -> None:
    auto = fr.PlackettLuce(0.5, sampler="auto")
    own = model.with_functions(fresh).with_score("fresh").with_tables(auto)
    own.save(tmp_path / "own")

    async def work(app: App) -> None:
        asked: dict[str, Any] = {"inference_type": "stochastic_plackett_luce_auto", "k": 4}
        asked |= {"user_id": "u2", "temperature": 0.5, "seed": 9}
        found = (await ask(app, **asked)).json()
        assert found["made_by"] == "table"
        assert found["score"] == {"name": "fresh", "hash": fresh.hash, "params": {}}
        expected = own.recommend("u2", 4, policy=auto, seed=9)
        assert found["item_ids"] == expected.item_ids.tolist()
        for other in ({"params": {"half_life": 3}}, {"score": "dot"}):
            assert (await ask(app, **asked, **other)).json()["made_by"] == "pass"
        document = (await call(app, "GET", "/openapi.json")).json()
        score = document["components"]["schemas"]["UserRequest"]["properties"]["score"]
        assert "By default fresh." in score["description"]

    with_app(tmp_path / "own", work, score_functions=functions)


def test_a_server_without_its_models_function_does_not_start(
    tmp_path: Path, model: fr.Model
) -> None:
    model.with_score(fresh).save(tmp_path / "own")
    done = process("serve", tmp_path / "own", "--port", 0)
    assert done.returncode != 0
    assert f"its score is the function '{fresh.path}'" in done.stderr


@pytest.mark.slow
def test_the_command_takes_functions_of_the_current_directory(tmp_path: Path) -> None:
    make_model(tmp_path / "model", n=N, features=columns())
    (tmp_path / "shop.py").write_text(
        "import fastrank as fr\n\n\n@fr.score_function\ndef cheap(dot, stock):\n"
        "    return dot - stock\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fastrank", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    asked = ["rank", "model", "--user", "u1", "--inference-type", "deterministic", "--json"]
    done = run(*asked, "--score", "cheap", "--score-function", "shop:cheap")
    assert json.loads(done.stdout)["score"]["name"] == "cheap", done.stderr
    for wrong in ("shop:dear", "shops:cheap", "shop", "json:dumps"):
        done = run(*asked, "--score-function", wrong)
        assert done.returncode == 2
        assert done.stderr.startswith("Usage:") or "--score-function: " in done.stderr
