"""A server of a model that keeps what users have seen: nobody's list is in another's answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from served import ask, call, make_model, with_app

import fastrank as fr
from fastrank_serving.app import App
from fastrank_serving.engine import Job

N = 40
LINES = {"content-type": "application/jsonlines"}
SEEN = {"u1": [3, 5], "u2": [5, 6, 7], "u3": list(range(N))}


def seen_by(model: fr.Model, seen: dict[str, list[int]], directory: Path) -> fr.Model:
    found = model.with_seen(
        [user for user, items in seen.items() for _ in items],
        [item for items in seen.values() for item in items],
    )
    found.save(directory)
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seen") / "model"
    seen_by(make_model(path, n=N), SEEN, path)
    return path


def whole(user: str, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "k": N, "inference_type": "uniform", **more}


def left(*gone: int) -> set[int]:
    return {*range(N)} - {*gone}


def test_each_user_has_a_list_of_their_own(directory: Path) -> None:
    model = fr.Model.open(directory)

    async def work(app: App) -> None:
        for user in ("u0", "u1", "u2", "u3", "u1"):
            answer = (await ask(app, **whole(user))).json()
            assert {*answer["item_ids"]} == left(*SEEN.get(user, []))
            assert answer["n_eligible"] == N - len(SEEN.get(user, []))
            assert answer.get("seen_id") == (model.seen_id if user in SEEN else None)
        more = (await ask(app, **whole("u1", exclude=[0, 3]))).json()
        assert {*more["item_ids"]} == left(0, 3, 5)
        only = (await ask(app, **whole("u1", allow=[3, 4]))).json()
        assert only["item_ids"] == [4]
        everything = await ask(app, **whole("u3"))
        assert (everything.status, everything.json()["item_ids"]) == (200, [])
        query = {"query": model.user_vector("u1").tolist(), "k": N, "inference_type": "uniform"}
        by_query = (await ask(app, **query)).json()  # nobody's
        assert {*by_query["item_ids"]} == left()
        assert "seen_id" not in by_query

    with_app(directory, work)


def test_lines_of_a_batch_and_requests_at_once_share_passes(directory: Path) -> None:
    """Made by one pass or each by itself, a row is its own user's, and what `recommend` draws."""
    model = fr.Model.open(directory)
    users = [f"u{i % 4}" for i in range(40)]
    bodies = [
        {"user_id": user, "k": 5, "inference_type": "stochastic_gumbel_softmax_trick",
         "temperature": 0.7, "seed": i, **({"exclude": [9]} if i % 3 else {})}
        for i, user in enumerate(users)
    ]  # fmt: skip
    expected = [
        model.recommend(
            user, 5, policy=fr.PlackettLuce(0.7), seed=i, exclude=[9] if i % 3 else None
        )
        for i, user in enumerate(users)
    ]

    async def work(app: App) -> None:
        app.service.engine._running = app.service.engine.threads  # all wait for one another
        asked = [asyncio.ensure_future(ask(app, **body)) for body in bodies]
        await asyncio.sleep(0)
        lines = "\n".join(map(json.dumps, bodies))
        batch = asyncio.ensure_future(call(app, "POST", "/invocations", lines, LINES))
        await asyncio.sleep(0.05)
        app.service.engine._running = 0
        app.service.engine._start(asyncio.get_running_loop())
        answers = [reply.json() for reply in await asyncio.gather(*asked)]
        answers += map(json.loads, (await batch).body.splitlines())
        assert app.service.engine._passes < len(answers) // 2
        for answer, ranking in zip(answers, [*expected, *expected], strict=True):
            assert answer["item_ids"] == ranking.item_ids.tolist()
            assert answer["log_propensities"] == ranking.log_propensities.tolist()
            assert answer.get("seen_id") == ranking.seen_id

    with_app(directory, work)


def test_reload_exchanges_the_lists_with_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model"
    model = seen_by(make_model(path, n=N), SEEN, path)

    async def work(app: App) -> None:
        before = (await ask(app, **whole("u1"))).json()
        seen_by(model, {"u1": [7], "u0": [1]}, path)
        still = (await ask(app, **whole("u1"))).json()
        assert {*before["item_ids"]} == {*still["item_ids"]} == left(3, 5)
        await app.service.reload()
        after = (await ask(app, **whole("u1"))).json()
        assert {*after["item_ids"]} == left(7)
        assert {*(await ask(app, **whole("u0"))).json()["item_ids"]} == left(1)
        assert {*(await ask(app, **whole("u2"))).json()["item_ids"]} == left()
        assert len({each["seen_id"] for each in (before, still, after)}) == 2
        assert len({each["model_version"] for each in (before, still, after)}) == 2

    with_app(path, work)


def test_logs_and_captures_name_it_and_can_be_audited(directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from fastrank import ope
    from fastrank.eventlog import LogReader, from_data_capture

    model = fr.Model.open(directory)
    captured: list[str] = []

    async def work(app: App) -> None:
        for i in range(60):
            body = {"user_id": f"u{i % 3}", "k": 4, "request_id": f"r{i}", "temperature": 0.7,
                    "inference_type": "stochastic_gumbel_softmax_trick"}  # fmt: skip
            reply = await ask(app, **body)
            data = {"endpointInput": {"data": json.dumps(body)},
                    "endpointOutput": {"data": reply.body.decode()}}  # fmt: skip
            event = {"eventId": f"r{i}", "inferenceTime": "2026-01-01T00:00:00Z"}
            captured.append(json.dumps({"captureData": data, "eventMetadata": event}))

    with_app(directory, work, log_directory=tmp_path / "log")
    (tmp_path / "capture.jsonl").write_text("\n".join(captured))
    readers = [
        LogReader(tmp_path / "log"),
        LogReader.of_tables(from_data_capture(tmp_path / "capture.jsonl")),
    ]
    for reader in readers:
        checks = {each.name: each for each in ope.audit(reader, [model]).checks}
        assert checks["propensities"].outcome == checks["seeds draw"].outcome == "passed"
        assert checks["propensities"].rows == 60
        (batch,) = reader
        by_user = dict(zip(batch.user_ids, batch.values("seen_id"), strict=True))
        assert by_user == {"u0": None, "u1": model.seen_id, "u2": model.seen_id}
        assert batch.values("exclude") == [None] * 60


def test_a_list_is_priced_by_its_length(directory: Path) -> None:
    model = fr.Model.open(directory)
    policy, query = fr.PlackettLuce(1.0), model.user_vector("u3")
    prices = [
        Job(model.catalog, query, 5, policy, 1, seen=model.seen(user)).priced()
        for user in ("u0", "u1", "u3")
    ]
    assert prices[0] < prices[1] < prices[2]
    assert prices[2] - prices[0] == (N // 2) * (prices[1] - prices[0])
