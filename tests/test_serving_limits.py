"""What requests may cost, alone and together: memory, work, places in the log's queue."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
from served import ask, call, make_model, serving, with_app
from test_serving_engine import CATALOG, Held, held, job, run, until

import fastrank as fr
from fastrank.eventlog import LogReader
from fastrank_serving import app as apps
from fastrank_serving import engine, service
from fastrank_serving.app import App
from fastrank_serving.engine import Engine
from fastrank_serving.messages import ProblemError

__all__ = ["held"]  # a fixture

JSON, LINES = {"content-type": "application/json"}, {"content-type": "application/jsonlines"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("limits") / "model"
    make_model(directory)
    return directory


# ---- Memory ---------------------------------------------------------------------------------


class Unfinished:
    """A request whose body does not end."""

    def __init__(self, app: App, part: bytes) -> None:
        self.sent: list[Any] = []
        self._parts = [part]
        self._left = asyncio.Event()
        scope = {
            "type": "http", "method": "POST", "path": "/invocations", "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._parts:
            return {"type": "http.request", "body": self._parts.pop(), "more_body": True}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def leave(self) -> None:
        self._left.set()
        await self.task


def test_bodies_that_do_not_end_have_a_limit_together(model: Path) -> None:
    async def work(app: App) -> None:
        clients = [Unfinished(app, b" " * 30_000) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert [bool(each.sent) for each in clients] == [False, False, False, True, True]
        assert clients[3].sent[0]["status"] == 503
        error = json.loads(clients[3].sent[1]["body"])["error"]
        assert (error["code"], error["retry_after_s"]) == ("busy", 1)
        assert (await ask(app, user_id="u1")).status == 200
        for each in clients:
            await each.leave()
        body = json.dumps({"user_id": "u1", "request_id": "x"}) + " " * 90_000
        assert (await call(app, "POST", "/invocations", body)).status == 200
        assert app._memory.taken == 0

    with_app(model, work, max_held=100_000, max_body=100_000)


def test_what_is_read_from_a_body_counts(model: Path) -> None:
    """A list of ids takes many times the bytes that wrote it."""

    async def work(app: App) -> None:
        exclude = [1000 + i for i in range(20_000)]  # 6 bytes each, and 64 once they are read
        reply = await ask(app, user_id="u1", exclude=exclude)
        assert (reply.status, reply.error["code"]) == (503, "busy")
        assert app._memory.taken == 0

    with_app(model, work, max_held=1_000_000, max_body=1_000_000)


def test_whatever_a_request_ends_by_it_holds_nothing_more(model: Path) -> None:
    bodies = ["", "{", '{"user_id": "nobody"}', '{"user_id": "u1", "k": 0}', "x" * 201]

    async def work(app: App) -> None:
        for kind in (JSON, LINES):
            for body in bodies:
                await call(app, "POST", "/invocations", body, kind, parts=3)
                assert app._memory.taken == 0

    with_app(model, work, max_body=200)


def test_long_batches_are_answered_one_after_another(model: Path) -> None:
    """And short ones, and rankings, beside them."""
    going = 0
    most = 0
    answers = App._answers

    async def counted(self: App, lines: list[bytes], *more: Any) -> bytes:
        nonlocal going, most
        is_long = len(lines) > apps._LONG
        going += is_long
        most = max(most, going)
        found = await answers(self, lines, *more)
        going -= is_long
        return found

    async def work(app: App) -> None:
        long = '{"user_id": "u1", "k": 1}\n' * 2000
        tasks = [
            asyncio.create_task(call(app, "POST", "/invocations", long, LINES)) for _ in range(3)
        ]
        await asyncio.sleep(0.01)
        short = await call(app, "POST", "/invocations", long[: 26 * 10], LINES)
        assert short.body.count(b"\n") == 10
        assert not all(task.done() for task in tasks)
        for task in tasks:
            assert (await task).body.count(b"item_ids") == 2000
        assert most == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(App, "_answers", counted)
        with_app(model, work)


def test_a_long_batch_ends_with_its_client(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on for hours, and other long ones would wait for it."""
    asked = 0
    left = asyncio.Event()
    answer = service.Service.answer

    async def counted(self: Any, *args: Any, **kwargs: Any) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 100:
            left.set()
        await asyncio.sleep(0.001)
        return await answer(self, *args, **kwargs)

    async def work(app: App) -> None:
        parts = [b'{"user_id": "u1", "k": 1}\n' * 50_000]

        async def receive() -> Any:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {
            "type": "http", "method": "POST", "path": "/invocations", "query_string": b"",
            "headers": [(b"content-type", b"application/jsonlines")],
        }  # fmt: skip
        await app(scope, receive, send)
        assert asked < 50_000
        assert app._memory.taken == 0
        again = await call(app, "POST", "/invocations", b'{"user_id": "u1"}\n' * 100, LINES)
        assert again.body.count(b"item_ids") == 100

    monkeypatch.setattr(service.Service, "answer", counted)
    with_app(model, work)


# ---- Work -----------------------------------------------------------------------------------


def test_a_filter_has_its_price() -> None:
    few, many = (job(1, exclude=list(range(count))) for count in (10, 10_000))
    assert few.priced() <= engine.INLINE_WORK < many.priced()


def test_what_would_take_too_long_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = fr.PlackettLuce(sampler="sequential")
    monkeypatch.setattr(engine, "INLINE_WORK", 0)
    monkeypatch.setattr(engine, "_PASS_WORK", job(1, policy=slow, k=100).priced() // 10)

    async def work(own: Engine) -> None:
        with pytest.raises(ProblemError) as caught:
            await own.rank(job(1, policy=slow, k=100, deadline=time.monotonic() + 5.0))
        assert (caught.value.status, caught.value.code) == (422, "too_dear")
        assert "about 10 s" in str(caught.value)
        assert own.inside == 0
        await own.rank(job(1, policy=slow, k=100, deadline=time.monotonic() + 200.0))

    run(work)


def test_work_that_waits_is_counted(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it is, and not by requests: what would come too late is refused at once."""
    monkeypatch.setattr(engine, "_AT_BEST", 5 * job(1).priced() / 1000)

    async def work(own: Engine) -> None:
        deadline = time.monotonic() + 1000.0
        tasks = [asyncio.create_task(own.rank(job(i, deadline=deadline + 9000))) for i in range(4)]
        await until(lambda: own.inside == 4)
        with pytest.raises(ProblemError) as caught:
            await own.rank(job(5, deadline=deadline))
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        held.go.set()
        await asyncio.gather(*tasks)
        assert own._work == 0
        await own.rank(job(6, deadline=time.monotonic() + 1000.0))

    run(work)


@pytest.mark.parametrize("text", [False, True], ids=["int64", "str"])
def test_long_filters_are_read_and_logged_in_threads(
    text: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the loop everybody would wait for them; of no row there is less."""
    make_model(tmp_path / "model", n=2000, text=text)
    known = [f"item {i}" for i in range(2000)] if text else list(range(2000))
    loop_thread = threading.get_ident()
    seen: list[bool] = []
    as_ids, append = engine._as_ids, service.Service._log_row

    def read(name: str, ids: Any, catalog: Any) -> Any:
        if ids is not None:
            seen.append(threading.get_ident() == loop_thread)
        return as_ids(name, ids, catalog)

    def log(self: Any, row: Any) -> None:
        seen.append(threading.get_ident() == loop_thread)
        append(self, row)

    monkeypatch.setattr(engine, "_as_ids", read)
    monkeypatch.setattr(service.Service, "_log_row", log)

    async def work() -> None:
        async with serving(tmp_path / "model", log_directory=tmp_path / "log") as app:
            seen.clear()  # the requests of the self-test
            replies = [await ask(app, user_id="u1", k=3, exclude=known[i:]) for i in range(10, 40)]
            assert all(reply.status == 200 for reply in replies)
            assert set(replies[0].json()["item_ids"]) <= set(known[:10])
            await until(lambda: len(seen) == 60)
            assert not any(seen)
            seen.clear()
            assert (await ask(app, user_id="u1", k=3, exclude=known[5:9])).status == 200
            assert seen == [True, True]

    asyncio.run(work())
    reader = LogReader(tmp_path / "log")
    assert sum(len(batch) for batch in reader) == 31
    assert reader.report.total_rows_lost == 0


def test_a_word_that_is_no_id_is_named_from_a_thread(model: Path) -> None:
    async def work(app: App) -> None:
        reply = await ask(app, user_id="u1", exclude=[*range(1000), "x"])
        assert (reply.status, reply.error["field"], reply.error["value"]) == (422, "exclude", "x")

    with_app(model, work)


def test_rankings_of_long_filters_are_those_of_the_catalog() -> None:
    exclude = np.arange(0, 480)

    async def work(own: Engine) -> None:
        found = await own.rank(job(1, exclude=[str(i) for i in exclude]))
        again = CATALOG.rank(
            job(1).query, 5, policy=fr.PlackettLuce(), seed=1, exclude=exclude.tolist()
        )
        assert found.ranking.item_ids.tolist() == again.item_ids.tolist()

    run(work)


@pytest.mark.parametrize("count", [100_001, 300_000])
def test_filters_that_are_too_long_are_refused_alike(model: Path, count: int) -> None:
    """A long one before it is read, and text, whose commas do not tell, after it."""

    async def work(app: App) -> None:
        for ids in ("7", '"7"', '"7,7"'):
            body = '{"user_id":"u1","allow":[' + ",".join([ids] * count) + "]}"
            reply = await call(app, "POST", "/invocations", body)
            assert reply.status == 422
            error = reply.error
            assert (error["code"], error["field"], error["value"]) == (
                "out_of_range", "allow", count,
            )  # fmt: skip
            assert error["message"] == f"allow: expected at most 100000 ids, got {count}"

    with_app(model, work)
