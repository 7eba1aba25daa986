"""The access log: what lines say and do not say, how many there are, and that nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette")
from patience import PATIENCE
from served import JSON, Process, ask, call, make_model, serving

import fastrank as fr
from fastrank_serving import access as access_module
from fastrank_serving.access import AccessLog, Line
from fastrank_serving.app import App, create_app
from fastrank_serving.secret import Secret
from fastrank_serving.settings import Settings

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
USER = "u1"
# Of whoever may write a request's id, a path or a user's id.
ODD = [
    *("a\nb", "a\r\n2026-01-01 INFO x", "\u2028x\u2029", "\x85", "\x1b[2J", "\x00", "\x7f", "é東"),
    *('"', '\\"', "=", "a=1 left_out=7", " ", "\\", "\U0001f600" * 64, "'", "{}", "%0a"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("access") / "model"
    make_model(directory, policy=fr.PlackettLuce(1.0))
    return directory


class Lines:
    """What an app wrote; only read once it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def text(self) -> str:
        return self.path.read_text("ascii")

    @property
    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@contextlib.asynccontextmanager
async def logged(model: Path, lines: Lines, **settings: Any) -> AsyncIterator[App]:
    async with serving(model, **settings) as app:
        descriptor = os.open(lines.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        app.access._descriptor = descriptor
        yield app
    os.close(descriptor)


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    return Lines(tmp_path / "lines")


def pairs(line: str) -> dict[str, str]:
    """Those of a line of text, which is split at its spaces."""
    found = [word.split("=") for word in line.split() if "=" in word]
    return {name: json.loads(value) if value[0] == '"' else value for name, value in found}


def of_line(line: str) -> tuple[str, ...]:
    """Level, method, path and status."""
    words = re.match(r"[\d-]+ [\d:,]+ (\w+) fastrank\.access (\S+) (\S+) (\d+)( |$)", line)
    assert words is not None, line
    return words.groups()[:4]


class TestWhatLinesSay:
    def test_of_a_ranking(self, model: Path, lines: Lines) -> None:
        async def work() -> list[dict[str, Any]]:
            async with logged(model, lines, access_log="json") as app:
                traced = {**JSON, "traceparent": TRACE}
                body = json.dumps({"user_id": USER, "request_id": "r"})
                first = await call(app, "POST", "/invocations", body, traced)
                path = f"/1/recommended-items/{USER}"
                second = await call(app, "GET", path, query="inference_type=uniform&k=3")
                return [{"bytes": len(each.body), **each.json()} for each in (first, second)]

        answers = asyncio.run(work())
        assert len(lines.said) == 2
        for said, answer in zip(lines.said, answers, strict=True):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", said.pop("time"))
            assert 0 < said.pop("seconds") < 60
            assert said.pop("status") == 200
            assert said.pop("bytes") == answer["bytes"]
            assert said.pop("request_id") == answer["request_id"]
            assert said.pop("policy") == answer["policy"]["name"]
            assert said.pop("model_version") == answer["model_version"][:12]
            assert said.pop("traceparent", None) == answer.get("traceparent")
        first, second = lines.said
        assert first["request_id"] == "r"
        assert first["traceparent"] == TRACE
        assert (first["method"], first["path"]) == ("POST", "/invocations")
        assert (second["method"], second["path"]) == ("GET", "/1/recommended-items/{user_id}")
        assert first["user"] == second["user"]
        assert re.fullmatch("[0-9a-f]{16}", first["user"])

    def test_of_an_arm(self, model: Path, lines: Lines) -> None:
        arms = ("one=deterministic@0.5", "two=uniform@0.5")

        async def work() -> list[str]:
            async with logged(
                model, lines, access_log="json", experiment="warmer", arms=arms
            ) as app:
                answers = [(await ask(app, user_id=f"u{j}")).json() for j in range(10)]
                return [answer["arm"] for answer in answers]

        arms_of = asyncio.run(work())
        assert [each["arm"] for each in lines.said] == arms_of
        assert {*arms_of} == {"one", "two"}

    def test_of_a_refusal(self, model: Path, lines: Lines) -> None:
        async def work() -> None:
            async with logged(model, lines, access_log="json") as app:
                await ask(app, user_id="nobody", request_id="r")
                await ask(app, user_id=USER, k=0)
                await call(app, "POST", "/invocations", "{")
                await call(app, "PUT", "/invocations")
                await call(app, "GET", "/1/recommended-items/nobody", query="m=x")

        asyncio.run(work())
        assert [(each["status"], each.get("code")) for each in lines.said] == [
            (404, "unknown_user"),
            (422, "out_of_range"),
            (400, "malformed_json"),
            (405, None),
            (400, "invalid_type"),
        ]
        assert lines.said[0]["request_id"] == "r"
        users = [each.get("user") for each in lines.said]
        assert None not in users[:2]
        assert users[2:4] == [None, None]
        assert "policy" not in lines.said[0]

    def test_of_a_batch_and_its_lines_that_are_refused(self, model: Path, lines: Lines) -> None:
        bodies = [{"user_id": USER}, {"user_id": "nobody", "request_id": "r"}, {"user_id": USER}]
        content = "\n".join([*map(json.dumps, bodies), "{"])
        kind = {"content-type": "application/jsonlines", "traceparent": TRACE}

        async def work() -> bytes:
            async with logged(model, lines, access_log="json") as app:
                return (await call(app, "POST", "/invocations", content, kind)).body

        answer = asyncio.run(work())
        *refused, whole = lines.said
        assert [(each["line"], each["status"]) for each in refused] == [(2, 404), (4, 400)]
        assert [each["bytes"] for each in refused] == [
            len(answer.splitlines()[j - 1]) for j in (2, 4)
        ]
        assert refused[0]["request_id"] == "r"
        assert (whole["status"], whole["bytes"]) == (200, len(answer))
        assert {each["traceparent"] for each in lines.said} == {TRACE}

    def test_of_an_invalid_trace_nothing(self, model: Path, lines: Lines) -> None:
        async def work() -> None:
            async with logged(model, lines, access_log="json") as app:
                for bad in (TRACE.upper(), "ff" + TRACE[2:], TRACE + "-", "00-" + "0" * 52):
                    await call(app, "GET", "/ping", headers={"traceparent": bad})
                await call(app, "GET", "/ping", headers={"traceparent": f"01{TRACE[2:]}-more"})

        asyncio.run(work())
        assert [each.get("traceparent") for each in lines.said] == [*[None] * 4, "01" + TRACE[2:]]

    def test_every_path_of_the_server_is_said_and_no_other(self, model: Path, lines: Lines) -> None:
        async def work() -> list[str]:
            async with logged(model, lines, access_log="json") as app:
                known = sorted(path for path in app.access.paths if "{" not in path)
                for path in [*known, "/endpoints/my-own/invocations"]:
                    await call(app, "GET", path)
                for path in ("/users/ann", "/ann/", "/" + "x" * 300, "//ann", "*", ""):
                    await call(app, "HEAD", path)
                return known

        known = asyncio.run(work())
        found = [each["path"] for each in lines.said]
        assert {"/ping", "/invocations", "/metrics", "/explorer/users", "/-/reload"} <= {*known}
        assert found[: len(known) + 1] == [*known, "/endpoints/my-own/invocations"]
        assert found[len(known) + 1 :] == [
            *("/users/...", "/ann/...", "/" + "x" * 63, "//...", "*", ""),
        ]


class TestWhatLinesHide:
    @pytest.mark.parametrize("form", ["json", "text", "off"])
    def test_no_user_and_nothing_of_bodies(self, model: Path, lines: Lines, form: str) -> None:
        hidden = ["nobody-knows-me", "Zoë 東京", "secret-item"]

        async def work() -> None:
            async with logged(model, lines, access_log=form) as app:
                for user in (*hidden, USER):
                    await ask(app, user_id=user, exclude=[3, "secret-item"])
                    await ask(app, user_id=user, k=0, seed=987654321)
                    for folder in ("/1/recommended-items/", "/1/recommended-item/", "/x/"):
                        await call(app, "GET", folder + user, query=f"exclude={user}")
                await ask(app, query=[0.123456] * 8, k=-1)
                await call(app, "GET", "/explorer/users", query="prefix=nobody-knows-me")

        asyncio.run(work())
        assert lines.text.count("\n") > 10
        for word in (*hidden, *(ascii(each)[1:-1] for each in hidden), "0.1234", "987654321"):
            assert word not in lines.text
            assert json.dumps(word)[1:-1] not in lines.text
        assert not re.search(rf"\b{USER}\b", lines.text)

    def test_a_hash_is_of_the_secret(self) -> None:
        def user(secret: Secret | None) -> str:
            line = Line(0.0, "GET", "/ping", 200, 0.0, 0, user="ann")
            found: str = json.loads(AccessLog("json", secret=secret).made(line))["user"]
            return found

        one, other = Secret(b"a" * 32), Secret(b"b" * 32)
        # As docs/how-to/monitor.md says: each part behind its length.
        message = b"".join(
            len(each).to_bytes(8, "little") + each for each in (b"access log", b"ann")
        )
        assert user(one) == hmac.digest(one.key, message, "sha256").hex()[:16] != user(other)
        assert user(None) == user(None) != user(one)

    def test_the_secret_is_the_servers(self, model: Path) -> None:
        secret = Secret(bytes(range(32)))
        service = create_app(Settings(model=model, secret=secret)).service
        assert service.access.secret == secret

    def test_the_processes_of_a_server_hash_alike(self) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=tell_key, args=(there,))
        process.start()
        found = here.recv()
        process.join()
        assert found == AccessLog().secret.key


def tell_key(to: Connection) -> None:
    to.send(AccessLog().secret.key)


class TestForms:
    @pytest.mark.parametrize("odd", ODD)
    def test_nothing_that_is_asked_breaks_a_line(self, odd: str) -> None:
        def line() -> Line:
            return Line(
                *(0.0, "GET", f"/{odd}/{odd}", 404, 0.0, 1),
                request_id=odd,
                user=odd,
                line=3,
            )

        as_json, as_text = (AccessLog(form).made(line()).decode("ascii") for form in FORMS)
        for made in (as_json, as_text):
            assert made.endswith("\n")
            assert len(made.splitlines()) == 1
            assert made[:-1].isprintable()
        said = json.loads(as_json)
        assert said["request_id"] == odd
        assert pairs(as_text) == {
            name: str(said[name]) for name in ("seconds", "bytes", "request_id", "user", "line")
        }

    def test_levels_are_those_of_statuses(self) -> None:
        levels = [
            of_line(AccessLog("text").made(Line(0.0, "GET", "/ping", status, 0.0, 0)).decode())
            for status in (200, 399, 400, 499, 500, 503)
        ]
        assert [(each[0], each[3]) for each in levels] == [
            *(("INFO", "200"), ("INFO", "399"), ("WARNING", "400"), ("WARNING", "499")),
            *(("ERROR", "500"), ("ERROR", "503")),
        ]


FORMS = ("json", "text")


async def hang(app: App) -> None:
    """As if a ranking took an hour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.service.engine, "stuck_for", lambda: 3600.0)
        assert (await call(app, "GET", "/ping")).status == 503


class TestRefusalsAlone:
    def test_are_said_though_the_log_is_off(self, model: Path, lines: Lines) -> None:
        async def work() -> None:
            async with logged(model, lines) as app:
                await ask(app, user_id=USER)
                await call(app, "GET", "/ping")
                await ask(app, user_id="nobody", request_id="r")
                await hang(app)

        asyncio.run(work())
        first, second = lines.text.splitlines()
        assert of_line(first) == ("WARNING", "POST", "/invocations", "404")
        assert pairs(first)["request_id"] == "r"
        assert of_line(second) == ("ERROR", "GET", "/ping", "503")

    def test_but_not_that_a_server_that_starts_or_stops_is_not_ready(
        self, model: Path, lines: Lines
    ) -> None:
        async def work() -> None:
            async with logged(model, lines) as app:
                app.service.draining = True
                assert (await call(app, "GET", "/ping")).status == 503

        asyncio.run(work())
        assert lines.text == ""

    @pytest.mark.parametrize(
        ("level", "expected"),
        [("debug", [404, 503]), ("warning", [404, 503]), ("error", [503]), ("critical", [])],
    )
    def test_as_far_as_the_level_goes(
        self, model: Path, lines: Lines, level: str, expected: list[int]
    ) -> None:
        async def work() -> None:
            async with logged(model, lines, log_level=level) as app:
                await ask(app, user_id="nobody")
                await hang(app)

        asyncio.run(work())
        assert [int(of_line(line)[3]) for line in lines.text.splitlines()] == expected

    def test_at_a_bounded_rate_and_what_is_left_out_is_said(
        self, model: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [1000.0]
        fake = SimpleNamespace(monotonic=lambda: clock[0], time=lambda: clock[0])
        monkeypatch.setattr(access_module, "time", fake)

        async def work() -> None:
            async with logged(model, lines) as app:
                for count, seconds in ((150, 0.05), (3, 0.3), (1, 60.0), (200, 0.0)):
                    for _ in range(count):
                        await call(app, "GET", "/nothing")
                    app.service.tick()
                    clock[0] += seconds
                    while app.access._batches.full():  # the thread takes them
                        await asyncio.sleep(0)
                    app.service.tick()

        asyncio.run(work())
        found = [
            int(pairs(line)["left_out"]) if "left_out" in line else of_line(line)[2]
            for line in lines.text.splitlines()
        ]
        said = "/nothing"
        assert found == [*[said] * 100, 53, *[said] * 1, *[said] * 100, 100]


def test_of_several_workers_until_they_end(model: Path, lines: Lines) -> None:
    options = ("--workers", "2", "--access-log", "json", "--no-explorer")
    with Process(model, *options, stdout=lines.path) as server:
        for j in range(40):
            assert server.ask(user_id=USER, request_id=f"r{j}")[0] == 200
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as garbage:
            garbage.sendall(b"what is this\r\n\r\n")
            assert garbage.recv(100).startswith(b"HTTP/1.1 400")
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
    found = [each for each in lines.said if each["path"] == "/invocations"]
    assert {each["request_id"] for each in found} == {f"r{j}" for j in range(40)}
    assert len({each["user"] for each in found}) == 1
    (bad,) = (each for each in lines.said if each["status"] == 400)
    assert (bad["method"], bad["path"], bad["code"]) == ("-", "-", "no_http")


def fill(pipe: int) -> None:
    """Until nothing more can be written to it."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 4096)
    os.set_blocking(pipe, True)


class TestSlowReaders:
    def test_nobody_waits_and_what_is_left_out_is_counted(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(access_module, "_WAITING", 50)
        monkeypatch.setattr(access_module, "_GOODBYE", PATIENCE)
        reading, writing = os.pipe()
        fill(writing)
        text: list[bytes] = []
        reader = threading.Thread(
            target=lambda: text.extend(iter(lambda: os.read(reading, 1 << 16), b""))
        )

        async def work() -> int:
            async with serving(model, access_log="json") as app:
                app.access._descriptor = writing
                for j in range(200):
                    assert (await call(app, "GET", "/livez")).status == 200
                    app.service.tick()
                    while j == 0 and app.access._batches.full():  # the thread has not begun on it
                        await asyncio.sleep(0.001)
                reader.start()
                return app.access._left_out

        left_out = asyncio.run(work())
        os.close(writing)
        reader.join()
        os.close(reading)
        *said, last = [
            json.loads(line) for line in b"".join(text).decode().lstrip("x").splitlines()
        ]
        assert last["left_out"] == left_out >= 100
        assert [each["path"] for each in said] == ["/livez"] * (200 - left_out)

    def test_nor_does_the_end(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(access_module, "_GOODBYE", 0.01)
        reading, writing = os.pipe()
        fill(writing)

        async def work() -> App:
            async with serving(model, access_log="json") as app:
                app.access._descriptor = writing
                await call(app, "GET", "/livez")
                app.service.tick()
                return app

        app = asyncio.run(work())
        assert "the last lines of the access log were not read in time" in caplog.text
        os.close(reading)  # which ends the thread's wait
        app.access._batches.put(None)
        app.access._writer.join()
        os.close(writing)

    def test_a_reader_who_has_left_is_told_of_once(
        self, model: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        reading, writing = os.pipe()
        os.close(reading)

        async def work() -> None:
            async with serving(model, access_log="text") as app:
                app.access._descriptor = writing
                for _ in range(3):
                    assert (await call(app, "GET", "/ping")).status == 200
                    app.service.tick()
                    await asyncio.sleep(0.02)

        asyncio.run(work())
        os.close(writing)
        said = [each for each in caplog.records if "access log" in each.getMessage()]
        assert [each.getMessage() for each in said] == [
            "the access log cannot be written: Broken pipe"
        ]
