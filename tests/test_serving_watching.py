"""Models that arrive: which version is taken, and that nothing broken or half copied is served."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("s3fs")
pytest.importorskip("pyarrow")
from patience import PATIENCE
from prometheus_client import CollectorRegistry
from served import Process, free_port, make_model
from stores import BUCKET, s3_server

import fastrank as fr
from fastrank import places
from fastrank.eventlog import LogReader
from fastrank_serving import watching
from fastrank_serving.beside import claimed
from fastrank_serving.settings import Settings
from fastrank_serving.watching import Watcher, newest_first


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some small models, a, b and c, and one of other ids, text."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("abc"):
        make_model(folder / name, n=20, dim=2, users=2, seed=seed, policy=fr.PlackettLuce(1.0))
    make_model(folder / "text", n=20, dim=2, users=2, text=True, policy=fr.PlackettLuce(1.0))
    return folder


class World:
    """A directory that is watched, and its watcher."""

    def __init__(self, folder: Path, made: Path, **settings: Any) -> None:
        self.watched, self.copies, self.made = folder / "watched", folder / "copies", made
        self.watched.mkdir()
        self.copies.mkdir()
        self.registry = CollectorRegistry()
        given: dict[str, Any] = {"watch": self.watched, "watch_copies": self.copies, "threads": 1}
        self.settings = Settings(**given | settings)
        self.watcher = Watcher(self.settings, self.registry)

    def put(self, model: str, name: str) -> Path:
        return Path(shutil.copytree(self.made / model, self.watched / name))

    def look(self) -> str | None:
        """The model, of those that were made, that is in force after a look."""
        before = self.in_force()
        assert self.watcher.look() is (self.in_force() != before)
        return self.in_force()

    def in_force(self) -> str | None:
        copy = self.settings.copy
        assert copy is not None
        if not copy.exists():
            return None
        here = fr.Model.open(copy, verify=True).version
        return {fr.Model.open(each).version: each.name for each in self.made.iterdir()}[here]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"fastrank_watch_{name}", labels)


@pytest.fixture
def world(tmp_path: Path, made: Path) -> World:
    return World(tmp_path, made)


def test_names_are_ordered_with_their_numbers() -> None:
    names = ["v10", "v9", "v9.1", "2026-01", "2025-12-31T23", "x", "v010"]
    assert newest_first(names) == ["x", "v10", "v010", "v9.1", "v9", "2026-01", "2025-12-31T23"]


def test_the_last_version_is_served_or_the_one_that_is_pinned(world: World, made: Path) -> None:
    assert world.look() is None
    world.put("a", "v9")
    assert world.look() == "a"
    assert not world.watcher.look()
    world.put("b", "v10")
    assert world.look() == "b"
    assert world.metric("version_info", version="v10") == 1
    assert world.metric("version_info", version="v9") is None
    (world.watched / "PIN").write_text("v9\n")  # back
    assert world.look() == "a"
    world.put("c", "v11")
    assert world.look() == "a"
    (world.watched / "PIN").unlink()
    assert world.look() == "c"
    # Of all that was copied only what serves is there.
    assert len([*world.copies.iterdir()]) == 2


def test_a_setting_pins_too(tmp_path: Path, made: Path) -> None:
    world = World(tmp_path, made, pin="v1")
    world.put("a", "v1")
    world.put("b", "v2")
    (world.watched / "PIN").write_text("v2")
    assert world.look() == "a"


def test_what_is_watched_may_be_written_over(world: World) -> None:
    """As no file of it is mapped: a map of a file that is cut ends the process."""
    version = world.put("a", "v1")
    assert world.look() == "a"
    maps = Path("/proc/self/maps").read_text()
    assert str(world.watched) not in maps
    for file in version.iterdir():
        with file.open("r+b") as stream:
            stream.truncate(10)
    assert world.in_force() == "a"


def test_a_version_that_is_replaced_in_place_is_another_one(world: World) -> None:
    world.put("a", "live")
    assert world.look() == "a"
    fr.Model.open(world.made / "b").save(world.watched / "live")
    assert world.look() == "b"


def largest(version: Path) -> Path:
    return max(version.iterdir(), key=lambda file: file.stat().st_size)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, 100)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda v: (v / "manifest.json").unlink(), "it is incomplete: no manifest.json"),
        (lambda v: largest(v).unlink(), "it is incomplete: .*npy is missing"),
        (lambda v: cut(largest(v)), "it is incomplete: .*npy is there with 100 bytes of"),
        (lambda v: flip(largest(v)), "v2: damaged: .*npy: it does not match its SHA-256"),
        (lambda v: flip(v / "manifest.json"), "v2: damaged: manifest.json"),
        (lambda v: (v / "manifest.json").write_text("{}"), "manifest.json is not one of fastrank"),
    ],
)
def test_a_version_that_is_not_whole_is_not_served_and_said_once(
    world: World,
    spoil: Callable[[Path], None],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world.put("a", "v1")
    assert world.look() == "a"
    spoil(world.put("b", "v2"))
    for _ in range(3):
        assert world.look() == "a"
    (said,) = (each.getMessage() for each in caplog.records if each.levelname == "ERROR")
    assert said.startswith(f"{world.watched}: the version 'v2' is not served: ")
    assert said.endswith("; the current model keeps serving")
    assert len(re.findall(words, said)) == 1
    assert "copies" not in said
    assert world.metric("failures_total", what="version") == 1
    shutil.rmtree(world.watched / "v2")
    world.put("b", "v2")
    assert world.look() == "b"


def test_below_a_broken_version_the_next_one_is_served_but_never_an_older(world: World) -> None:
    world.put("a", "v1")
    flip(largest(world.put("c", "v3")))
    assert world.look() == "a"
    world.put("b", "v2")
    assert world.look() == "b"
    shutil.rmtree(world.watched / "v2")
    assert world.look() == "b"


def test_a_place_that_vanishes_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastrank.serving")
    world.put("a", "v1")
    assert world.look() == "a"
    world.watched.rename(world.watched.with_name("away"))
    caplog.clear()
    for _ in range(3):
        assert world.look() == "a"
    (said,) = caplog.messages
    assert said.startswith(f"{world.watched}: cannot be watched: ")
    assert world.metric("failures_total", what="look") == 3
    seen = world.metric("last_look_timestamp_seconds")
    world.watched.with_name("away").rename(world.watched)
    assert world.look() == "a"
    assert caplog.messages[1:] == [f"{world.watched}: is watched again"]
    assert (world.metric("last_look_timestamp_seconds") or 0) > (seen or 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("README", "there is no version, which would be a directory"),
        ("manifest.json", "it is a version itself: watch the directory that contains it"),
        ("PIN", "the pinned version 'v7' is missing"),
    ],
)
def test_where_there_is_no_version_it_is_said_once(
    world: World, name: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    (world.watched / name).write_text("v7")
    for _ in range(2):
        assert world.look() is None
    (said,) = caplog.messages
    assert words in said


def test_a_version_that_cannot_serve_is_copied_once(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('{"pin": {"1": 10000}}')
    world = World(tmp_path, made, rules=(f"home={rules}",))
    copied: list[str] = []
    fetch = places._Folder.fetch

    def noting(place: Any, name: str, file: Path) -> None:
        copied.append(name)
        fetch(place, name, file)

    monkeypatch.setattr(places._Folder, "fetch", noting)
    version = world.put("a", "v1")
    for _ in range(2):
        assert world.look() is None
    assert len(copied) == len(set(copied))
    (said,) = caplog.messages
    assert "the version 'v1' is not served: the rules 'home' do not fit the model: " in said
    rules.write_text("{}")
    os.utime(largest(version))  # a file of it has changed
    assert world.look() == "a"


def test_ids_of_another_kind_are_not_served_beside_a_log(tmp_path: Path, made: Path) -> None:
    for log, after in ((tmp_path / "log", "a"), (None, "text")):
        folder = tmp_path / after
        folder.mkdir()
        world = World(folder, made, log_directory=log)
        world.put("a", "v1")
        assert world.look() == "a"
        world.put("text", "v2")
        assert world.look() == after


def test_copies_have_a_budget(tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = sum(file.stat().st_size for file in (made / "a").iterdir())
    world = World(tmp_path, made, watch_bytes=size + 10)
    world.put("a", "v1")
    assert world.look() == "a"
    world.put("b", "v2")
    for _ in range(2):
        assert world.look() == "a"
    (said,) = caplog.messages
    assert f"is more than --watch-bytes, {size + 10}" in said


def test_a_disk_that_is_full_leaves_what_serves(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.put("a", "v1")
    assert world.look() == "a"
    world.put("b", "v2")
    tries: list[Path] = []

    def half(_place: Any, _name: str, file: Path) -> None:
        tries.append(file)
        file.write_bytes(b"\x93NUM")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(places._Folder, "fetch", half)
        for _ in range(3):
            assert world.look() == "a"
    assert len([*world.copies.iterdir()]) == 2
    (said,) = caplog.messages
    assert "No space left on device" in said
    assert len(tries) == 1  # again in a while, and not at each look
    later = time.monotonic() + watching._AGAIN
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: later, time=time.time))
    assert world.look() == "b"


def test_what_a_killed_server_left_is_removed_and_nothing_else(world: World) -> None:
    world.put("a", "v1")
    assert world.look() == "a"
    half = world.copies / ".0123456789abcdef.0123456789abcdef.tmp"
    old, other = world.copies / "0123456789abcdef", world.copies / "of somebody else"
    for folder in (half, old, other):
        folder.mkdir()
        (folder / "vectors.npy").write_bytes(b"half")
    (world.copies / ".current.0123456789abcdef.tmp").symlink_to("nowhere")
    world.watcher = Watcher(world.settings, CollectorRegistry())
    assert world.in_force() == "a"
    assert {path.name for path in world.copies.iterdir()} == {
        "current", "of somebody else", os.readlink(world.copies / "current"),
    }  # fmt: skip
    assert world.look() == "a"


# ---- Directories of one server --------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(folder))
    return folder


def test_a_temporary_directory_is_one_servers_and_goes_with_it(
    tmp_path: Path, temporary: Path
) -> None:
    settings = Settings(watch=tmp_path / "watched", log_directory=f"file://{tmp_path}/far")
    with claimed(settings) as first, claimed(settings) as second:
        folders = {first.watch_copies, first.log_spool, second.watch_copies, second.log_spool}
        assert len(folders) == 4
        assert all(folder is not None and folder.parent == temporary for folder in folders)
        assert first.log_spool is not None
        (first.log_spool / "w-000000.parquet").write_bytes(b"")
        left = first.log_spool
    assert [*temporary.iterdir()] == [left]
    with claimed(settings) as third:  # takes what is left
        assert third.log_spool == left


def test_what_others_made_there_is_not_taken(tmp_path: Path, temporary: Path) -> None:
    settings = Settings(watch=tmp_path / "watched")
    with claimed(settings) as found:
        assert found.watch_copies is not None
        name = found.watch_copies.name.removesuffix("0")
    (tmp_path / "trap").mkdir()
    (temporary / f"{name}0").symlink_to(tmp_path / "trap")
    (temporary / f"{name}1").mkdir(mode=0o755)
    (temporary / f"{name}2").write_text("")
    with claimed(settings) as found:
        assert found.watch_copies == temporary / f"{name}3"
    assert [*(tmp_path / "trap").iterdir()] == []


def test_directories_that_cannot_be_had_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(watch=tmp_path / "w", watch_copies=tmp_path / "copies")
    with claimed(settings), pytest.raises(OSError, match=r"--watch-copies: .* is another server's"):
        claimed(settings).__enter__()
    (tmp_path / "file").write_text("")
    settings = Settings(watch=tmp_path / "w", watch_copies=tmp_path / "file")
    with pytest.raises(OSError, match="--watch-copies: give a directory that can be written to"):
        claimed(settings).__enter__()
    settings = Settings(watch=tmp_path / "w", watch_copies=tmp_path / "w" / "copies")
    with pytest.raises(ValueError, match=r"--watch-copies: .* is inside the watched directory"):
        claimed(settings).__enter__()
    settings = Settings(
        watch=tmp_path / "w", watch_copies=tmp_path / "c", log_directory=tmp_path / "w"
    )
    with pytest.raises(ValueError, match=r"--log: .* is inside the watched directory"):
        claimed(settings).__enter__()
    (tmp_path / "model").mkdir()
    settings = Settings(tmp_path / "model", watch=tmp_path / "w", watch_copies=tmp_path / "model")
    with pytest.raises(ValueError, match=r"--watch-copies: .* is inside the model"):
        claimed(settings).__enter__()
    monkeypatch.setattr(
        tempfile, "gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError("no /tmp"))
    )
    with pytest.raises(OSError, match=r"--watch-copies: give a directory .*: no /tmp"):
        claimed(Settings(watch=tmp_path / "w")).__enter__()


def test_a_damaged_copy_of_a_server_before_is_given_up(world: World) -> None:
    world.put("a", "v1")
    assert world.look() == "a"
    with claimed(world.settings) as found:
        assert found.directory is not None
    cut(largest(world.copies / os.readlink(world.copies / "current")))
    with claimed(world.settings) as found:
        assert found.directory is None
    world.watcher = Watcher(world.settings, CollectorRegistry())
    assert world.look() == "a"


# ---- Servers --------------------------------------------------------------------------------


class Asking:
    """A client that asks one question after another, and keeps what came back."""

    def __init__(self, server: Process) -> None:
        self.server = server
        self.statuses: Counter[int] = Counter()
        self.versions: list[str] = []
        self.ids: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        with closing(self.server.connection()) as connection:
            while not self._stop.is_set():
                status, body = self.server.ask(connection, user_id="u1", k=2)
                self.statuses[status] += 1
                if status == 200:
                    self.versions.append(body["model_version"])
                    self.ids.add(body["request_id"])
                time.sleep(0.002)

    def until(self, version: str) -> None:
        """Until nothing else comes any more."""
        end = time.monotonic() + PATIENCE
        while {*self.versions[-20:]} != {version}:
            assert time.monotonic() < end, (self.statuses, self.versions[-20:], self.server.said())
            assert self._thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def processes(server: Process) -> list[tuple[str, str]]:
    """Names and numbers."""
    found = re.findall(r'fastrank_process_info{pid="(\d+)",process="(\w+)"} 1', metrics_of(server))
    return [(name, number) for number, name in found]


def metrics_of(server: Process) -> str:
    return server.get("/metrics")[1].decode()


def until_metric(server: Process, line: str) -> None:
    end = time.monotonic() + PATIENCE
    while line not in metrics_of(server):
        assert time.monotonic() < end, metrics_of(server)
        time.sleep(0.02)


def version_of(directory: Path) -> str:
    return fr.Model.open(directory).version


def arrive(made: Path, watched: Path, name: str) -> None:
    """As a whole."""
    shutil.copytree(made, watched / ".arriving")
    (watched / ".arriving").rename(watched / name)


def rows(directory: Path) -> set[str]:
    return {name for b in LogReader(directory) for name in b.table["request_id"].to_pylist()}


@pytest.mark.slow
def test_workers_serve_what_arrives_and_upload_what_they_answered(
    tmp_path: Path, made: Path
) -> None:
    watched, far = tmp_path / "watched", tmp_path / "far"
    watched.mkdir()
    (tmp_path / "tmp").mkdir()
    port = str(free_port())
    command = [sys.executable, "-m", "fastrank", "serve", "--watch", str(watched), "--workers=2"]
    command += ["--watch-every=0.2", "--log", f"file://{far}", "--log-every=0.3", "--port", port]
    environ = {"TMPDIR": str(tmp_path / "tmp")}
    with Process(tmp_path, command=command, environ=environ, wait=False) as server:
        server.port = int(port)
        server.until_says("waiting for a model from")
        server.until_says("Application startup complete")
        assert server.get("/ping")[0] == 503
        assert server.get("/livez")[0] == 200
        arrive(made / "a", watched, "v1")
        server.until_ready()
        asking = Asking(server)
        asking.until(version_of(made / "a"))
        while server.said().count("serving model") < 2:  # the other worker
            time.sleep(0.01)
        arrive(made / "b", watched, "v2")
        asking.until(version_of(made / "b"))
        shutil.copytree(made / "c", watched / ".broken")
        flip(largest(watched / ".broken"))
        (watched / ".broken").rename(watched / "v3")
        server.until_says("the version 'v3' is not served: v3: damaged")
        until_metric(server, 'fastrank_watch_failures_total{what="version"} 1.0')
        beside = re.findall(r"\[(\d+), beside\]", server.said())[-1]
        assert ("beside", beside) in processes(server)
        os.kill(int(beside), signal.SIGKILL)  # nobody who is asked
        server.until_says("is started again")
        arrive(made / "c", watched, "v4")
        asking.until(version_of(made / "c"))
        until_metric(server, 'fastrank_watch_version_info{version="v4"} 1.0')
        (number,) = (number for name, number in processes(server) if name == "beside")
        assert number != beside
        assert 'process_resident_memory_bytes{process="beside"}' in metrics_of(server)
        assert 'fastrank_watch_failures_total{what="version"} 0.0' not in metrics_of(server)
        asking.stop()
        assert {*asking.statuses} == {200}
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
    assert rows(far) == asking.ids
    assert [*(tmp_path / "tmp").iterdir()] == []


# ---- S3 -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as environ:
        yield environ


@pytest.mark.slow
@pytest.mark.usefixtures("s3")
def test_versions_in_s3(tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"s3://{BUCKET}/models"
    world = World(tmp_path, made, watch=url)
    far = places.place(url)
    assert world.look() is None
    assert "cannot be watched" in caplog.messages[-1]  # what is empty is not there

    def put(model: str, name: str, without: str = "") -> None:
        for file in (made / model).iterdir():
            if file.name != without:
                far.put(file, f"{name}/{file.name}")

    put("a", "v9")
    assert world.look() == "a"
    put("b", "v10", without="manifest.json")
    assert world.look() == "a"
    far.put(made / "b" / "manifest.json", "v10/manifest.json")
    assert world.look() == "b"
    (tmp_path / "PIN").write_text("v9")
    far.put(tmp_path / "PIN", "PIN")
    assert world.look() == "a"
    assert np.array_equal(  # and it serves what was uploaded
        fr.Model.open(world.settings.copy or "").catalog.item_ids,
        fr.Model.open(made / "a").catalog.item_ids,
    )


@pytest.mark.slow
def test_a_server_between_two_places_in_s3(s3: dict[str, str], tmp_path: Path, made: Path) -> None:
    models, logs = places.place(f"s3://{BUCKET}/live"), places.place(f"s3://{BUCKET}/log")
    for file in (made / "b").iterdir():
        models.put(file, f"2026-12-02/{file.name}")
    arguments = ["--watch", f"s3://{BUCKET}/live", "--log", f"s3://{BUCKET}/log", "--threads=1"]
    arguments += [
        "--watch-copies",
        str(tmp_path / "copies"),
        "--log-spool",
        str(tmp_path / "spool"),
    ]
    with Process(made / "a", *arguments, environ=s3, wait=False) as server:
        server.until_ready()
        first = server.ask(user_id="u1", k=2)[1]  # before anything has arrived, most likely
        server.until_says("the version '2026-12-02' was copied")
        asking = Asking(server)
        asking.until(version_of(made / "b"))
        asking.stop()
        assert {*asking.statuses} == {200}
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
    (tmp_path / "back").mkdir()
    for name in logs.entries():
        logs.fetch(name, tmp_path / "back" / name)
    assert rows(tmp_path / "back") == {first["request_id"], *asking.ids}
    assert (tmp_path / "copies" / "current").exists()  # was given, and stays


@pytest.mark.slow
def test_rows_that_cannot_be_uploaded_wait_for_the_next_server(tmp_path: Path, made: Path) -> None:
    far = tmp_path / "far"
    far.write_text("in the way")
    arguments = ["--log", f"file://{far}", "--log-spool", str(tmp_path / "spool")]
    asked = []
    for code in range(2):
        with Process(made / "a", *arguments, "--drain-timeout=3", "--threads=1") as server:
            asked.append(server.ask(user_id="u1", k=2)[1]["request_id"])
            server.signal(signal.SIGTERM)
            assert server.end()[0] == 0
            if code == 0:
                assert "rows wait to be uploaded" in server.said(), server.said()
                assert re.search(f"stays? (for|in {tmp_path}/spool)", server.said()), server.said()
                far.unlink()
    assert rows(far) == {*asked}
