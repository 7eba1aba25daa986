"""`batch.run`: files of users to a log, in parts; what a kill leaves, a rerun finishes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from patience import PATIENCE
from test_batch_users import same_columns

import fastrank as fr
from fastrank import batch
from fastrank.batch.manifest import MANIFEST
from fastrank.eventlog import LogReader

N = 900
USERS = [f"u{i}" for i in range(N)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    catalog = fr.Catalog(np.arange(50), rng.standard_normal((50, 4)))
    folder = tmp_path_factory.mktemp("model") / "model"
    made = fr.Model(
        catalog,
        USERS,
        rng.standard_normal((N, 4)),
        user_temperatures=rng.uniform(0.3, 3.0, N),
        policy=fr.PlackettLuce(0.5),
    )
    made.with_seen(USERS[:200], [i % 49 for i in range(200)]).save(folder)
    return folder


def write(folder: Path, *files: list[Any], column: str = "user_id") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, names in enumerate(files):
        pq.write_table(pa.table({column: pa.array(names)}), folder / f"{number}.parquet")
    return folder


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return write(tmp_path / "users", USERS[:400], USERS[400:410], USERS[410:])


def ranked(log: Path) -> pa.Table:
    """The rows of a log, by user."""
    files = sorted(log.glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files]).sort_by("user_id").combine_chunks()


def asked(model: Path, **more: Any) -> dict[str, Any]:
    return {"run": "night", "model": model, "k": 5, "processes": 1, "part_rows": 150, **more}


def files_of(folder: Path) -> dict[str, bytes]:
    """All that is there, but hidden files of programs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_each_user_has_one_row(model: Path, users: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    log = tmp_path / "log"
    done = batch.run(users, log, advance=lambda *each: told.append(each), **asked(model))
    assert (done.users, done.rows, done.unknown, done.empty) == (N, N, 0, 0)
    assert (done.parts, done.there) == (3 + 1 + 4, 0)
    assert told[0] == (0, N)
    assert told[-1] == (N, N)
    assert sorted(told) == told
    reader = LogReader(log)
    rows = sum(map(len, reader))
    assert (rows, reader.report.duplicates, reader.report.files_set_aside) == (N, 0, {})
    rank = batch.RankUsers(**batch.begin(log, run="night", model=model, k=5))
    expected = rank(pa.table({"user_id": sorted(USERS)}))
    same_columns(ranked(log), expected)

    said = json.loads((log / MANIFEST).read_text())
    assert said["run"] == "night"
    assert said["policy"] == "stochastic_gumbel_softmax_trick:temperature=0.5"
    assert said["model_version"] == fr.Model.open(model).version
    assert (said["k"], said["fastrank"]) == (5, fr.__version__)
    assert said["inputs"] == [str(users / f"{i}.parquet") for i in range(3)]
    assert sum(each["rows"] for each in said["files"]) == N
    assert {each["name"] for each in said["files"]} == {f.name for f in log.glob("*.parquet")}


def test_neither_processes_nor_parts_show(model: Path, users: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    batch.run(users, first, **asked(model))
    whole = ranked(first)
    for name, more in {
        "two": {"processes": 2},
        "cut": {"processes": 2, "part_rows": 37},
        "whole": {"part_rows": 10_000},
    }.items():
        log = tmp_path / name
        log.mkdir()
        content = json.loads((first / MANIFEST).read_text())
        del content["part_rows"]
        (log / MANIFEST).write_text(json.dumps(content))  # the key, and when it was begun
        batch.run(users, log, **asked(model, **more))
        same_columns(ranked(log), whole)


def test_a_rerun_changes_nothing_and_does_what_is_missing(
    model: Path, users: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    batch.run(users, log, **asked(model))
    before = files_of(log)
    again = batch.run(users, log, **asked(model, part_rows=77))
    assert (again.there, again.parts, again.rows) == (8, 8, N)
    assert files_of(log) == before
    lost = sorted(log.glob("*.parquet"))[2:4]
    for file in lost:
        file.unlink()
    mended = batch.run(users, log, **asked(model, processes=2))
    assert (mended.there, mended.parts) == (6, 8)
    assert files_of(log) == before

    # Users that came since are parts of their own, where they have a file of their own.
    write(tmp_path / "more", USERS[:1])
    (tmp_path / "more/0.parquet").rename(users / "twice.parquet")
    with pytest.raises(ValueError, match=r"users: 'u0' is there twice, again at .*twice.parquet"):
        batch.run(users, log, **asked(model))
    assert files_of(log) == before


def test_texts_numbers_and_formats(tmp_path: Path) -> None:
    catalog = fr.Catalog([1, 2, 3], [[1.0], [0.5], [0.2]])
    fr.Model(catalog, range(6), np.ones((6, 1)), policy=fr.PlackettLuce(1.0)).save(tmp_path / "m")
    users = write(tmp_path / "users", [0, 1], column="id")
    (users / "b.csv").write_text("id,age\n2,30\n3,40\n")
    (users / "c.jsonl").write_text('{"id": 4}\n{"id": "5"}\n')
    log = tmp_path / "log"
    done = batch.run(users, log, run="r", model=tmp_path / "m", user_column="id", processes=1)
    assert done.rows == 6
    assert ranked(log)["user_id"].to_pylist() == list("012345")
    (users / "d.csv").write_text("id\n03\n")
    with pytest.raises(ValueError, match="1 of 7 are not in the model, the first '03'"):
        batch.run(users, log, run="r", model=tmp_path / "m", user_column="id", processes=1)


def test_users_twice_are_refused_before_anyone_is_ranked(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for files in ((USERS[:10], USERS[5:8]), ([*USERS[:10], "u5", "u6", "u7"],)):
        users = write(tmp_path / str(len(files)), *files)
        with pytest.raises(ValueError, match=r"'u5' is there twice, again at .*, and 2 more"):
            batch.run(users, log, **asked(model))
        assert not log.exists()


def test_strangers(model: Path, tmp_path: Path) -> None:
    users = write(tmp_path / "users", ["u1", "x1", "u2"], ["x2", "x3", "x4"])
    log = tmp_path / "log"
    with pytest.raises(ValueError, match="users: 4 of 6 are not in the model, the first 'x1'"):
        batch.run(users, log, **asked(model))
    assert not log.exists()
    done = batch.run(users, tmp_path / "skip", **asked(model, unknown="skip"))
    assert (done.users, done.rows, done.unknown) == (6, 2, 4)
    assert done.strangers == ("x1", "x2", "x3")
    assert batch.run(users, tmp_path / "skip", **asked(model, unknown="skip")).there == 2
    done = batch.run(users, tmp_path / "fall", **asked(model, unknown="fallback"))
    assert (done.users, done.rows, done.unknown) == (6, 6, 4)
    assert sum(ranked(tmp_path / "fall")["is_fallback"].to_pylist()) == 4


def test_an_output_of_another_run_is_refused(model: Path, users: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    batch.run(users, log, **asked(model))
    before = files_of(log)
    for changed, said in {
        ("run", "other"): "its run is 'night', not 'other'",
        ("k", 4): "its k is 5, not 4",
        ("policy", fr.Uniform()): "its policy is ",
        ("exclude", (1, 2)): "its exclude is None, not ",
        ("rules", fr.Rules(pin={1: 49})): "its rules is None, not ",
        ("score", "dot * 2"): "its score is None, not {'hash': ",
        ("unknown", "skip"): "its unknown is 'fail', not 'skip'",
    }.items():
        with pytest.raises(ValueError, match=f"log holds another run: {said}"):
            batch.run(users, log, **asked(model, **dict([changed])))
    other = tmp_path / "other"
    fr.Model.open(model).with_policy(fr.Uniform()).save(other)
    more = {"policy": fr.PlackettLuce(0.5)}
    with pytest.raises(ValueError, match="log holds another run: its model_version is"):
        batch.run(users, log, **asked(other, **more))
    fewer = write(tmp_path / "fewer", USERS[:400], USERS[400:410])
    with pytest.raises(ValueError, match=r"rankings of \d+ users of .*2.parquet, which is not of"):
        batch.run(fewer, log, **asked(model))
    assert files_of(log) == before


def test_an_output_with_other_data_is_refused(model: Path, users: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    (log / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"log holds 'notes.txt', which belongs to no run"):
        batch.run(users, log, **asked(model))
    (log / "notes.txt").unlink()
    (log / ".gitkeep").write_text("")
    batch.run(users, log, **asked(model))
    (log / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"log holds notes\.txt which is not of the users"):
        batch.run(users, log, **asked(model))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output: .*file is a file"):
        batch.run(users, tmp_path / "file", **asked(model))
    with pytest.raises(ValueError, match="is among the files of users"):
        batch.run(users, users / "log", **asked(model))
    assert not (users / "log").exists()


def test_a_damaged_manifest_is_named(model: Path, users: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    batch.run(users, log, **asked(model))
    whole = json.loads((log / MANIFEST).read_text())
    for text in (
        "{",
        "[]",
        json.dumps({**whole, "format": 2}),
        json.dumps({**whole, "key": "x"}),
        json.dumps({**whole, "begun": 3}),
    ):
        (log / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=f"{MANIFEST}: not the manifest of a run"):
            batch.run(users, log, **asked(model))


def test_bad_arguments(model: Path, users: Path, tmp_path: Path) -> None:
    for changed, said in (
        ({"engine": "spark"}, "engine: expected one of local, ray; got 'spark'"),
        ({"processes": 0}, "processes: "),
        ({"part_rows": 0}, "part_rows: "),
        ({"run": ""}, "name: expected a non-empty str"),
        ({"model": tmp_path / "no"}, "no"),
        ({"user_column": "who"}, "no column named who; found user_id"),
        ({"rules": fr.Rules(pin={1: 999})}, "pin"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            batch.run(users, tmp_path / "log", **{**asked(model), **changed})
        assert not (tmp_path / "log").exists()
    for paths, said in ((tmp_path / "none", "no such file"), (tmp_path / "empty", "no files of")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=said):
            batch.run(paths, tmp_path / "log", **asked(model))


def test_no_users_are_a_log_without_rows(model: Path, tmp_path: Path) -> None:
    users = write(tmp_path / "users", pa.array([], pa.string()))
    done = batch.run(users, tmp_path / "log", **asked(model, processes=2))
    assert (done.users, done.rows, done.parts) == (0, 0, 0)


def test_what_rows_name_lies_beside_them(model: Path, users: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    rules = fr.Rules(pin={2: 49})
    long = list(range(100, 200))
    batch.run(users, log, **asked(model, rules=rules, exclude=long))
    reader = LogReader(log)
    (rows,) = [len(each) for each in reader][:1]
    assert rows
    assert not reader.report.set_aside
    assert {file.suffix for file in (log / "filters").iterdir()} == {".json", ".parquet"}
    batch.run(users, log, **asked(model, rules=rules, exclude=long))


def test_two_at_once_are_refused(model: Path, users: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def meanwhile(done: int, _: int) -> None:
        if done == 0:
            with pytest.raises(ValueError, match="log: another process writes to it now"):
                batch.run(users, log, **asked(model))

    batch.run(users, log, advance=meanwhile, **asked(model))


def test_a_lock_that_is_about_to_end_is_waited_for(
    model: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that a killed process was just starting holds its lock for a moment."""
    log = tmp_path / "log"
    log.mkdir()
    held = os.open(log, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(held))
    assert batch.run(users, log, **asked(model)).rows == N


# Kills.

SCRIPT = """
import sys
from fastrank import batch
users, log, model, processes = sys.argv[1:]
batch.run(users, log, run="night", model=model, k=5, processes=int(processes), part_rows=20,
          advance=lambda done, total: print(done, flush=True))
"""


def started(users: Path, log: Path, model: Path, processes: int) -> subprocess.Popen[str]:
    """As its user runs it; it says how many users are done."""
    arguments = [str(users), str(log), str(model), str(processes)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True
    )


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(each) for each in found.split()]


def is_gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


@pytest.mark.sampled
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "after",
    [pytest.param(0, marks=pytest.mark.slow), 300, pytest.param(700, marks=pytest.mark.slow)],
)
def test_a_kill_and_a_rerun_rank_everyone_once(
    after: int, processes: int, model: Path, users: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = started(users, log, model, processes)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= after:
            break
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    process.stdout.close()
    done = batch.run(users, log, **asked(model, processes=processes))
    assert (done.rows, done.users) == (N, N)
    end = time.monotonic() + PATIENCE
    while not all(map(is_gone, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(map(is_gone, workers)), "processes outlive whoever started them"
    reader = LogReader(log)
    names = [name for each in reader for name in each.values("user_id")]
    assert sorted(names) == sorted(USERS)
    assert reader.report.duplicates == 0
    assert not [name for name in os.listdir(log) if name.endswith(".tmp")]


@pytest.mark.slow
def test_a_process_that_is_killed_is_said(model: Path, users: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def kill(done: int, _: int) -> None:
        if done:
            for each in children(os.getpid()):
                os.kill(each, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"ended by signal 9: finished parts stay"):
        batch.run(users, log, **asked(model, processes=2, part_rows=20), advance=kill)
    done = batch.run(users, log, **asked(model, processes=2))
    assert (done.rows, done.users) == (N, N)
    assert sum(map(len, LogReader(log))) == N


def test_what_a_process_refuses_is_said_here(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    factors = np.ones(100)
    factors[70] = 1e290  # times the policy's: beyond what a temperature may be
    folder = tmp_path / "model"
    catalog = fr.Catalog(np.arange(9), rng.standard_normal((9, 2)))
    names = [f"u{i}" for i in range(100)]
    made = fr.Model(catalog, names, rng.standard_normal((100, 2)), user_temperatures=factors)
    made.with_policy(fr.PlackettLuce(10.0)).save(folder)
    users = write(tmp_path / "users", names)
    for processes in (1, 2):
        with pytest.raises(ValueError, match=r"rows 60 to 79: temperature: .* of user 'u70'"):
            batch.run(users, tmp_path / "log", **asked(folder, processes=processes, part_rows=20))


@pytest.mark.slow
def test_a_policy_that_no_other_process_can_make_is_said(
    model: Path, users: Path, tmp_path: Path
) -> None:
    script = """
import sys
import fastrank as fr
from fastrank import batch

class Mine(fr.PlackettLuce):
    pass

users, log, model = sys.argv[1:]
try:
    batch.run(users, log, run="night", model=model, policy=Mine(0.5), processes=2)
except RuntimeError as error:
    print(error)
"""
    arguments = [str(users), str(tmp_path / "log"), str(model)]
    said = subprocess.check_output([sys.executable, "-c", script, *arguments], text=True)
    assert "AttributeError: " in said
    assert "Mine" in said


def test_an_interrupt_leaves_whole_files(model: Path, users: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def interrupt(done: int, _: int) -> None:
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.run(users, log, **asked(model, processes=2, part_rows=20), advance=interrupt)
    assert not [name for name in os.listdir(log) if name.endswith(".tmp")]
    assert not [each for each in children(os.getpid()) if not is_gone(each)]
    done = batch.run(users, log, **asked(model))
    assert 0 < done.there < done.parts


# What a store keeps.


def test_the_projection(model: Path, users: Path, tmp_path: Path) -> None:
    log, store = tmp_path / "log", tmp_path / "store"
    batch.run(users, log, **asked(model))
    assert batch.project(log, store) == N
    rows = ranked(store)
    assert rows.schema.names == ["user_id", "request_id", "item_ids", "scores"]
    same_columns(rows, ranked(log).select(rows.schema.names))
    before = files_of(store)
    lost = sorted(store.iterdir())[0]
    lost.unlink()
    (store / f".{lost.name}.{'0' * 16}.tmp").write_text("half")
    assert batch.project(log, store) == N
    assert files_of(store) == before

    other = tmp_path / "other"
    batch.run(users, other, **asked(model, run="next"))
    with pytest.raises(ValueError, match=r"store holds ranked-.*, which is not of the run in"):
        batch.project(other, store)
    with pytest.raises(ValueError, match="is in the log"):
        batch.project(log, log / "store")
    with pytest.raises(ValueError, match=r"users holds no run: it has no _batch.json"):
        batch.project(users, tmp_path / "nothing")
    with pytest.raises(ValueError, match="is a file"):
        batch.project(log, model / "manifest.json")
