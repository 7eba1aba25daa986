"""The whole circle: serve, log, join what people clicked, audit, evaluate another policy.

By both ways that a log can take: the server's own files, and what SageMaker's Data Capture would
have kept of the same requests and answers.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import call, with_app

import fastrank as fr
from fastrank import ope, simulate
from fastrank.eventlog import LogReader, LogWriter, from_data_capture
from fastrank.eventlog.join import join
from fastrank_serving.app import App

REQUESTS = 4000
PLACES = 3
SERVED = fr.PlackettLuce(0.5)
ASKED = fr.PlackettLuce(0.4)


@pytest.fixture(scope="module")
def world() -> simulate.World:
    clicks = simulate.PositionBased([1.0, 0.7, 0.5])
    return simulate.World.synthetic(100, 40, clicks, dim=6, seed=1, typical_rate=0.2)


@pytest.fixture(scope="module")
def model(world: simulate.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("circle") / "model"
    world.model(noise=0.3, seed=2).save(directory)
    return directory


@pytest.fixture(scope="module")
def served(
    world: simulate.World, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The log by its ways, and the clicks."""
    folder = tmp_path_factory.mktemp("served")
    # An hour ago, so that the window of all clicks is closed.
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    rng = np.random.default_rng(3)
    users = rng.integers(0, len(world.user_ids), REQUESTS)
    bodies = [
        json.dumps({"user_id": str(world.user_ids[user].item()), "k": PLACES}) for user in users
    ]

    seeds = iter(rng.integers(0, 2**53, REQUESTS).tolist())

    async def work(app: App) -> list[bytes]:
        answers = []
        with pytest.MonkeyPatch.context() as patch:  # the same log on every run
            patch.setattr("fastrank_serving.seeds.draw_seed", lambda: next(seeds))
            patch.setattr("time.time_ns", lambda: int(began.timestamp()) * 10**9)
            for body in bodies:
                reply = await call(app, "POST", "/invocations", body)
                assert reply.status == 200
                answers.append(reply.body)
        return answers

    answers = with_app(model, work, policy=SERVED, log_directory=folder / "own")
    with (folder / "capture.jsonl").open("w") as file:
        for number, (body, answer) in enumerate(zip(bodies, answers, strict=True)):
            file.write(json.dumps(captured(number, body, answer, began)) + "\n")
    with LogWriter(folder / "captured") as log:
        for table in from_data_capture(folder / "capture.jsonl"):
            log.append_table(table)
    found = [json.loads(answer) for answer in answers]
    rows = world.item_rows(np.concatenate([each["item_ids"] for each in found]))
    clicks = world.clicks(
        users, rows.reshape(REQUESTS, PLACES), np.full(REQUESTS, PLACES), seed=4, first_row=0
    )
    with (folder / "clicks.jsonl").open("w") as file:
        for answer, row in zip(found, clicks, strict=True):
            for item, click in zip(answer["item_ids"], row, strict=True):
                if click:
                    reward = {"request_id": answer["request_id"], "item_id": item,
                              "reward": 1.0, "ts": began.isoformat()}  # fmt: skip
                    file.write(json.dumps(reward) + "\n")
    return {name: folder / name for name in ("own", "captured", "clicks.jsonl")}


def captured(number: int, request: str, answer: bytes, served_at: datetime) -> dict[str, Any]:
    """A line of Data Capture; every other one is base64."""

    def part(mode: str, data: str) -> dict[str, Any]:
        encoded = number % 2 == 1
        return {
            "observedContentType": "application/json",
            "mode": mode,
            "data": base64.b64encode(data.encode()).decode() if encoded else data,
            "encoding": "BASE64" if encoded else "JSON",
        }

    return {
        "captureData": {
            "endpointInput": part("INPUT", request),
            "endpointOutput": part("OUTPUT", answer.decode()),
        },
        "eventMetadata": {
            "eventId": f"event-{number}",
            "inferenceTime": served_at.isoformat(),
        },
        "eventVersion": "0",
    }


@pytest.mark.sampled
@pytest.mark.parametrize("way", ["own", "captured"])
def test_the_estimate_covers_the_truth(
    way: str, served: dict[str, Path], world: simulate.World, model: Path, tmp_path: Path
) -> None:
    """Error budget: 4.5 standard errors miss the truth of one log in 150,000; seeds are fixed."""
    summary = join(
        served[way],
        served["clicks.jsonl"],
        tmp_path / "joined",
        window=timedelta(minutes=30),
        as_of=datetime.now(UTC),
        kind="positives",
    )
    assert summary.rows_written == REQUESTS
    assert summary.rewards_unlogged == 0
    reader = LogReader(tmp_path / "joined")
    known = fr.Model.open(model)
    audit = ope.audit(reader, [known], sample=REQUESTS)
    assert audit.passed, audit
    assert {check.outcome for check in audit.checks} <= {"passed", "not done"}
    found = ope.evaluate(reader, [ope.ByModel("colder", ASKED, known)], logging=[known])
    (policy,) = found.policies
    assert policy.status == "ok"
    assert found.rows_used == REQUESTS
    estimate = policy.estimates["snrips"]
    truth = simulate.true_value(world, known, ASKED, PLACES)
    assert estimate.value is not None
    assert estimate.standard_error is not None
    assert abs(estimate.value - truth.value) < 4.5 * estimate.standard_error
    # It would not cover what the served policy is worth by pretending that nothing was changed.
    assert estimate.standard_error < 0.1 * truth.value


def test_both_ways_hold_the_same_rows(served: dict[str, Path]) -> None:
    rows = [
        {
            row["request_id"]: (row["item_ids"], row["log_propensities"], row["seed"], row["k"])
            for batch in LogReader(served[way])
            for row in batch.table.to_pylist()
        }
        for way in ("own", "captured")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == REQUESTS
