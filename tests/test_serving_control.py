"""The control file: what it may say, and how running servers follow it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
from patience import PATIENCE
from served import Process, ask, call, make_model, with_app

import fastrank as fr
from fastrank.eventlog import LogReader
from fastrank_serving import control
from fastrank_serving.app import App
from fastrank_serving.arms import Regime
from fastrank_serving.board import Board
from fastrank_serving.control import Taken, regime_of

ARMS = ("control=deterministic@0.5", "explore=plackett_luce:temperature=0.5@0.5")
STATED = Regime.stated("warmer", ARMS, ["flat=uniform"])
OFF = {"revision": "off", "deterministic_only": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("control") / "model"
    make_model(directory)
    return directory


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


def write(file: Path, said: Any) -> None:
    """At once, as who exchanges a file does."""
    beside = file.with_suffix(".new")
    beside.write_text(said if isinstance(said, str) else json.dumps(said))
    beside.replace(file)


# ---- What it says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"revision": 7}, ("7", "warmer", {"control": 0.5, "explore": 0.5})),
        (
            {"revision": "r8", "arms": {"explore": 0.9, "control": 0.1}},
            ("r8", "warmer", {"explore": 0.9, "control": 0.1}),
        ),
        (
            {"revision": 9, "arms": {"control": 1}},
            ("9", "warmer", {"control": 1.0}),
        ),
        (
            {"revision": 1, "experiment": "colder", "arms": {"a": "uniform@0.25", "control": 0.75}},
            ("1", "colder", {"a": 0.25, "control": 0.75}),
        ),
    ],
)
def test_what_it_puts_into_force(said: Any, expected: Any) -> None:
    found = regime_of(json.dumps(said).encode(), STATED)
    shares = {arm.name: arm.share for arm in found.arms}
    assert (found.revision, found.experiment, shares) == expected
    assert not found.deterministic_only
    assert found.also == STATED.also
    policies = {arm.name: arm.policy for arm in found.arms}
    if "control" in policies:
        assert policies["control"] == STATED.arms[0].policy


def test_nothing_is_drawn() -> None:
    found = regime_of(json.dumps(OFF).encode(), Regime())
    assert found.deterministic_only
    assert found.revision == "off"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "expected at most"),
        ("[" * 30_000, "not JSON"),
        ("7", "expected an object, got 7"),
        ({}, "revision: expected an integer or a name"),
        ({"revision": None}, "revision: expected a name"),
        ({"revision": True}, "revision: expected a name"),
        ({"revision": 1.5}, "revision: expected a name"),
        ({"revision": ""}, "revision: expected a name"),
        ({"revision": "a:b"}, "revision: expected a name"),
        ({"revision": "20260102T030405Z"}, "revision: 20260102T030405Z is a time"),
        ({"revision": 1, "arm": {}}, "'arm': expected some of revision, experiment, arms"),
        ('{"revision": 1, "revision": 2}', "'revision' is given twice"),
        ({"revision": 1, "arms": []}, "arms: expected an object"),
        ({"revision": 1, "arms": {}}, "arms: expected an object"),
        ('{"revision": 1, "arms": {"control": 0.5, "control": 0.5}}', "'control' is given twice"),
        ({"revision": 1, "arms": {"control": 0.5}}, "arms: shares must sum to 1, got 0.5"),
        ({"revision": 1, "arms": {"control": 0.5, "explore": 0.6}}, "0.5 + 0.6 = 1.1"),
        ({"revision": 1, "arms": {"control": "1"}}, "arms: control: expected POLICY@SHARE"),
        ({"revision": 1, "arms": {"control": None}}, "arms: control: expected a share of 0 to 1"),
        ({"revision": 1, "arms": {"control": True}}, "arms: control: expected a share of 0 to 1"),
        ('{"revision": 1, "arms": {"control": NaN}}', "arms: control: expected a share of 0 to 1"),
        ({"revision": 1, "arms": {"new": 1.0}}, "arms: 'new': no setting states its policy"),
        ({"revision": 1, "arms": {"new": "magic@1"}}, "arms: new: expected [LABEL=]POLICY"),
        ({"revision": 1, "arms": {"a b": "uniform@1"}}, "arms: expected a name"),
        ({"revision": 1, "experiment": 7}, "experiment: expected a name"),
        ({"revision": 1, "deterministic_only": 1}, "deterministic_only: expected true or false"),
        ({**OFF, "arms": {"control": 1}}, "deterministic_only: contradicts arms"),
    ],
)
def test_what_cannot_be_followed(said: Any, words: str) -> None:
    content = (said if isinstance(said, str) else json.dumps(said)).encode()
    with pytest.raises(ValueError, match=re.escape(words)):
        regime_of(content, STATED)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"revision": 1, "arms": {"a": "uniform@1"}}, "arms: without an experiment"),
        ({"revision": 1, "experiment": "e"}, "experiment: it has no arms"),
    ],
)
def test_an_experiment_has_arms_and_they_have_one(said: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        regime_of(json.dumps(said).encode(), Regime())
    assert regime_of(b'{"revision": 1}', Regime()).arms == ()


# ---- In a server --------------------------------------------------------------------------------


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not done():
            await asyncio.sleep(0.005)


def following(model: Path, work: Any, file: Path | str, **settings: Any) -> Any:
    usual = {"experiment": "warmer", "arms": ARMS, "control": str(file), "control_every": 0.01}
    return with_app(model, work, **usual | settings)


def in_force(app: App) -> str | None:
    return app.service.loaded.in_force.revision


def looks(page: str) -> dict[str, float]:
    found = re.findall(r'fastrank_control_looks_total\{outcome="(\w+)"\} (\S+)', page)
    return {outcome: float(value) for outcome, value in found}


def test_a_server_follows_it(
    model: Path, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is bad changes nothing, and is said once."""
    write(file, {"revision": 1, "arms": {"control": 1.0}})
    answers: list[Any] = []
    least: list[float] = []

    async def work(app: App) -> str:
        async def asked(**request: Any) -> Any:
            answers.append((await ask(app, user_id="u1", k=2, **request)).json())
            return answers[-1]

        assert (await asked())["arm"] == "control"
        write(file, {"revision": 2, "arms": {"explore": 1.0}})
        await until(lambda: in_force(app) == "2")
        assert (await asked())["arm"] == "explore"
        metrics = app.service.metrics
        for bad in ("{", {"revision": 3, "arms": {"control": "plackett_luce:overlap=0.01@1"}}):
            least.append(looks(metrics.page().decode()).get("refused", 0.0) + 3)
            write(file, bad)
            await until(lambda: looks(metrics.page().decode()).get("refused", 0.0) >= least[-1])
            assert (await asked())["revision"] == "2"
        file.unlink()
        await until(lambda: looks(metrics.page().decode()).get("unreachable", 0.0) > 2)
        assert (await asked())["revision"] == "2"
        write(file, OFF)
        await until(lambda: in_force(app) == "off")
        for request in ({}, {"inference_type": "uniform"}, {"temperature": 2.0}):
            off = await asked(**request)
            assert off["policy"] == {"name": "deterministic", "params": {}}
            assert "arm" not in off
        fallback = (await ask(app, user_id="nobody")).json()
        assert fallback["is_fallback"]
        assert fallback["policy"]["name"] == "deterministic"
        return (await call(app, "GET", "/metrics")).body.decode()

    with caplog.at_level(logging.INFO, "fastrank.serving"):
        page = following(model, work, file, fallback=fr.Uniform(), log_directory=tmp_path / "log")
    assert looks(page)["taken"] == 3
    assert 'revision="off"} 1.0' in page
    assert page.count("fastrank_revision_info{") == 1
    assert 'fastrank_reloads_total{outcome="loaded"} 1.0' in page
    said = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert len(said) == 3, said
    for words, line in zip(("not JSON", "arm control: overlap", "No such file"), said, strict=True):
        assert words in line
        assert line.startswith(f"control file {file}: ")
        assert "still in force: revision 2, experiment warmer: explore 1 " in line
    rows = [row for batch in LogReader(tmp_path / "log") for row in batch.table.to_pylist()]
    assert {row["revision"] for row in rows} == {"1", "2", "off"}
    by_request = {row["request_id"]: row for row in rows}
    for answer in answers:
        row = by_request[answer["request_id"]]
        assert (row["revision"], row["arm"]) == (answer["revision"], answer.get("arm"))


def test_until_it_was_read_nothing_is_drawn(
    model: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have said so before a restart."""

    async def work(app: App) -> None:
        first = (await ask(app, user_id="u1")).json()
        assert first["policy"]["name"] == "deterministic"
        assert not {"arm", "revision"} & first.keys()
        write(file, {"revision": 1, "arms": {"explore": 1.0}})
        await until(lambda: in_force(app) == "1")
        assert (await ask(app, user_id="u1")).json()["arm"] == "explore"

    following(model, work, file)
    (record,) = (each for each in caplog.records if each.levelname == "ERROR")
    assert "No such file" in record.getMessage()
    assert "still in force: deterministic only" in record.getMessage()


def test_a_reload_stays_under_what_it_says(tmp_path: Path, file: Path) -> None:
    """Of a model that cannot follow it the reload is refused."""
    make_model(tmp_path / "model")
    make_model(tmp_path / "next", seed=1)
    fr.Catalog([1, 2, 3], np.eye(3)).save(tmp_path / "bare")
    live = tmp_path / "live"
    live.symlink_to(tmp_path / "model")
    write(file, {"revision": 5, "arms": {"explore": "plackett_luce:overlap=0.8@1"}})

    async def work(app: App) -> None:
        def temperature() -> float:
            return app.service.loaded.in_force.arms[0].policy.params["temperature"]

        before, version = temperature(), app.service.loaded.version
        live.unlink()
        live.symlink_to(tmp_path / "next")
        assert await app.service.reload() != version
        assert in_force(app) == "5"
        assert temperature() != before  # the same overlap, of other users
        version = app.service.loaded.version
        live.unlink()
        live.symlink_to(tmp_path / "bare")
        with pytest.raises(ValueError, match="arm explore: overlap"):
            await app.service.reload()
        assert app.service.loaded.version == version

    following(live, work, file)


def test_what_a_url_says_is_followed(model: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe_file("/arms/control.json", b'{"revision": "a"}')

    async def work(app: App) -> None:
        assert in_force(app) == "a"
        store.pipe_file("/arms/control.json", json.dumps(OFF).encode())
        await until(lambda: in_force(app) == "off")

    following(model, work, "memory://arms/control.json")


def test_what_is_not_installed_is_said_at_the_start(model: Path) -> None:
    async def work(app: App) -> None: ...

    with pytest.raises(ValueError, match=r"^control: nowhere://arms/control.json: "):
        following(model, work, "nowhere://arms/control.json")


def test_a_store_that_does_not_answer_holds_nothing_up(
    model: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the start nor the end; one thread waits for it, and is left behind."""
    ends = threading.Event()

    def hang(path: Path) -> bytes:
        ends.wait(PATIENCE)
        return b'{"revision": 1}'

    monkeypatch.setattr(control, "_of_path", hang)
    monkeypatch.setattr(control, "_ANSWERS", 0.02)

    def waiting() -> list[bool]:
        return [each.daemon for each in threading.enumerate() if each.name == "fastrank-control"]

    async def work(app: App) -> None:
        assert (await ask(app, user_id="u1")).json()["policy"]["name"] == "deterministic"
        metrics = app.service.metrics
        await until(lambda: looks(metrics.page().decode()).get("unreachable", 0.0) > 2)
        assert waiting() == [True]

    try:
        following(model, work, file)
        assert waiting() == [True]
    finally:
        ends.set()


def test_all_workers_follow_it(model: Path, file: Path) -> None:
    write(file, {"revision": 1, "arms": {"control": 1.0}})
    options = ("--workers", "2", "--control", str(file), "--control-every", "0.05")
    arms = tuple(word for arm in ARMS for word in ("--arm", arm))

    def revisions(server: Process) -> set[str]:
        return {*re.findall(r'fastrank_revision_info\{.*revision="(.*?)"', page(server))}

    def page(server: Process) -> str:
        return server.get("/metrics")[1].decode()

    with Process(model, *options, "--experiment", "warmer", *arms) as server:
        asyncio.run(until(lambda: server.said().count("revision 1,") == 2))
        write(file, OFF)
        asyncio.run(until(lambda: server.said().count("revision off, deterministic only") == 2))
        asyncio.run(until(lambda: revisions(server) == {"off"}))
        for _ in range(8):  # whichever worker answers
            status, answer = server.ask(user_id="u1")
            assert (status, answer["revision"]) == (200, "off")


@pytest.mark.slow
def test_a_worker_that_cannot_read_it_takes_what_the_others_had(model: Path, file: Path) -> None:
    """Those that it replaces, too: here none of them is left."""
    write(file, {"revision": 1, "arms": {"explore": 1.0}})
    options = ("--workers", "2", "--control", str(file), "--control-every", "0.05")
    arms = tuple(word for arm in ARMS for word in ("--arm", arm))
    with Process(model, *options, "--experiment", "warmer", *arms) as server:
        asyncio.run(until(lambda: server.said().count("revision 1,") == 2))
        write(file, {"revision": 2, "arms": {"explore": 1.0}})
        asyncio.run(until(lambda: server.said().count("revision 2,") == 2))
        write(file, "{")
        asyncio.run(until(lambda: server.said().count("still in force: revision 2,") == 2))
        for worker in re.findall(r"\[(\d+)\] serving model .* revision 2,", server.said()):
            os.kill(int(worker), signal.SIGKILL)
        asyncio.run(until(lambda: server.said().count("still in force: revision 2,") == 4))
        server.until_ready()
        for _ in range(8):  # whichever worker answers
            status, answer = server.ask(user_id="u1")
            assert (status, answer["revision"], answer["arm"]) == (200, "2", "explore")


def test_what_workers_took_is_what_was_taken_last() -> None:
    board = Board(3)
    try:
        taken = [Taken(board, seat) for seat in range(3)]
        assert taken[0].latest() is None
        for seat, content in ((2, b"one"), (0, b"two"), (1, bytes(control.MAX_BYTES)), (2, b"")):
            taken[seat].put(content)
            assert {each.latest() for each in taken} == {content}
    finally:
        board.close()


def test_a_revision_that_says_something_else_is_told(
    model: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts, for it may end all drawing."""
    write(file, {"revision": 1, "arms": {"control": 1.0}})

    def told() -> int:
        return sum("stated something else before" in each.getMessage() for each in caplog.records)

    async def work(app: App) -> None:
        write(file, '{"arms":{"control":1},"revision":"1"}')  # in other words
        await until(lambda: looks(app.service.metrics.page().decode())["taken"] == 2)
        assert told() == 0
        write(file, {"revision": 1, "deterministic_only": True})
        await until(lambda: app.service.in_force.deterministic_only)
        assert told() == 1
        write(file, {"revision": 2, "deterministic_only": True})
        await until(lambda: in_force(app) == "2")
        assert told() == 1

    following(model, work, file)
