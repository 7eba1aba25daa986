"""The same rows by Ray and by Spark as by a plain loop, to the bit; and once each after kills.

`make engines` has an environment with both, `make ray` one with Ray for the short tests; elsewhere
these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from environment import inherited
from patience import PATIENCE
from test_batch_users import same_columns

import fastrank as fr
from fastrank import batch
from fastrank.batch.manifest import MANIFEST
from fastrank.eventlog import LogReader
from fastrank.eventlog.upgrade import completed

HERE = Path(__file__).parent
N = 600
USERS = [f"u{i}" for i in range(N)]

with_ray = pytest.mark.skipif(
    not (find_spec("ray") and find_spec("aiohttp")), reason="Ray is not installed: extra ray"
)
with_spark = pytest.mark.skipif(
    not find_spec("pyspark") or shutil.which("java") is None,
    reason="pyspark (extra spark) or a JRE (Debian's default-jre-headless) is not installed",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, files of its users, and the log of a plain loop."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("engines")
    catalog = fr.Catalog(np.arange(50), rng.standard_normal((50, 4)))
    model = fr.Model(
        catalog,
        USERS,
        rng.standard_normal((N, 4)),
        user_temperatures=rng.uniform(0.3, 3.0, N),
        policy=fr.PlackettLuce(0.5),
    )
    model.with_seen(USERS[:100], [i % 50 for i in range(100)]).save(folder / "model")
    (folder / "users").mkdir()
    for number, start in enumerate(range(0, N, 150)):
        table = pa.table({"user_id": USERS[start : start + 150]})
        pq.write_table(table, folder / "users" / f"{number}.parquet")
    asked: dict[str, Any] = {"run": "night", "model": folder / "model", "k": 5, "part_rows": 150}
    batch.run(folder / "users", folder / "plain", processes=1, **asked)
    return folder


def of_run(plain: Path, log: Path) -> Path:
    """The directory of a log that another engine is to write, with the key of the plain one."""
    log.mkdir(parents=True)
    content = json.loads((plain / MANIFEST).read_text())
    for name in ("part_rows", "inputs", "users", "files"):
        del content[name]
    (log / MANIFEST).write_text(json.dumps(content))
    return log


def rows_of(log: Path) -> pa.Table:
    """By user, in the log's types."""
    tables = [completed(pq.read_table(file)) for file in sorted(log.glob("*.parquet"))]
    return pa.concat_tables(tables).sort_by("user_id").combine_chunks()


def check_each_once(log: Path) -> None:
    reader = LogReader(log)
    names = [name for each in reader for name in each.values("user_id")]
    assert sorted(names) == sorted(USERS)
    assert (reader.report.duplicates, reader.report.files_set_aside) == (0, {})


def group(number: int) -> set[int]:
    """Live processes whose environment says that this test began them."""
    found = set()
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            try:
                said = (each / "environ").read_bytes().split(b"\0")
                is_dead = (each / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if f"FASTRANK_TEST_GROUP={number}".encode() in said and not is_dead:
                found.add(int(each.name))
    return found


class Rayed:
    """Runs tests/rayed.py, and sees to it that no process is left behind."""

    def __init__(self, ranks: Path) -> None:
        self.number = time.monotonic_ns()
        self.short = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets are in it
        paths = filter(None, [str(Path(fr.__file__).parents[1]), os.environ.get("PYTHONPATH")])
        self.environment = {
            **inherited(),
            "PYTHONPATH": os.pathsep.join(paths),
            "HOME": str(self.short),  # where Ray keeps a token
            "RAY_TMPDIR": str(self.short),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            "FASTRANK_RANKS": str(ranks),
            "FASTRANK_TEST_GROUP": str(self.number),
        }

    def begin(self, *arguments: object) -> subprocess.Popen[str]:
        with (self.short / "errors").open("a") as errors:
            return subprocess.Popen(
                [sys.executable, str(HERE / "rayed.py"), *map(str, arguments)],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, *arguments: object) -> str:
        process = self.begin(*arguments)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said + (self.short / "errors").read_text()
        return said

    def wait_for_the_end(self) -> set[int]:
        """Those who are left after a while."""
        end = time.monotonic() + PATIENCE
        while (left := group(self.number)) and time.monotonic() < end:
            time.sleep(0.2)
        return left

    def close(self) -> None:
        for each in group(self.number):
            os.kill(each, signal.SIGKILL)
        shutil.rmtree(self.short, ignore_errors=True)


@pytest.fixture
def rayed(tmp_path: Path) -> Iterator[Rayed]:
    (tmp_path / "ranks").mkdir()
    made = Rayed(tmp_path / "ranks")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("cuts", [(37,), pytest.param((600, 150), marks=pytest.mark.slow)])
@with_ray
def test_ray_gives_the_rows_of_a_plain_loop(
    cuts: tuple[int, ...], folder: Path, rayed: Rayed, tmp_path: Path
) -> None:
    for name in (*cuts, "run"):
        of_run(folder / "plain", tmp_path / str(name))
    rayed.run("partitions", folder / "users", folder / "model", tmp_path, *cuts)
    assert not rayed.wait_for_the_end()
    plain = rows_of(folder / "plain")
    for name in (*cuts, "run"):
        same_columns(rows_of(tmp_path / str(name)), plain)
        check_each_once(tmp_path / str(name))


@pytest.mark.slow
@with_ray
def test_an_actor_that_is_killed(folder: Path, rayed: Rayed, tmp_path: Path) -> None:
    log = of_run(folder / "plain", tmp_path / "log")
    said = rayed.run("killed_actor", folder / "users", folder / "model", log, tmp_path / "ranks")
    assert "killed\n" in said
    assert not rayed.wait_for_the_end()
    check_each_once(log)
    same_columns(rows_of(log), rows_of(folder / "plain"))


@pytest.mark.slow
@with_ray
def test_a_driver_that_is_killed(folder: Path, rayed: Rayed, tmp_path: Path) -> None:
    log = of_run(folder / "plain", tmp_path / "log")
    process = rayed.begin("run", folder / "users", folder / "model", log)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdecimal() and int(line) > N // 3:  # Ray has its say, too
            break
    assert len(group(rayed.number)) > 3  # which are those that are looked for below
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    process.stdout.close()
    assert not rayed.wait_for_the_end()
    there = len(list(log.glob("*.parquet")))
    assert 0 < there < N // 30
    rayed.run("run", folder / "users", folder / "model", log)
    check_each_once(log)
    same_columns(rows_of(log), rows_of(folder / "plain"))


@pytest.mark.slow
@with_ray
def test_a_node_that_is_killed(folder: Path, rayed: Rayed, tmp_path: Path) -> None:
    log = of_run(folder / "plain", tmp_path / "log")
    said = rayed.run("nodes", folder / "users", folder / "model", log)
    assert "killed\n" in said
    assert not rayed.wait_for_the_end()
    check_each_once(log)
    same_columns(rows_of(log), rows_of(folder / "plain"))


@pytest.fixture(scope="module")
def shards(folder: Path) -> list[Path]:
    """The items of the model in three parts, and the log of a plain loop over these."""
    whole = fr.Model.open(folder / "model")
    rng, found = np.random.default_rng(2), []
    vectors = rng.standard_normal((50, 4))
    for i, (a, b) in enumerate([(0, 10), (10, 11), (11, 50)]):
        found.append(folder / f"shard-{i}")
        catalog = fr.Catalog(np.arange(a, b), vectors[a:b])
        own: dict[str, Any] = {
            "user_temperatures": np.random.default_rng(3).uniform(0.3, 3.0, N),
            "policy": fr.PlackettLuce(0.5),
        }
        fr.Model(catalog, USERS, whole.user_vectors, **own).save(found[-1])
    of_shards = [batch.Shard(path) for path in found]
    asked: dict[str, Any] = {"run": "night", "k": 5, "part_rows": 150, "shards": of_shards}
    batch.run(folder / "users", folder / "of-shards", processes=1, **asked)
    return found


@with_ray
def test_actors_hold_shards(folder: Path, shards: list[Path], rayed: Rayed, tmp_path: Path) -> None:
    for name in ("run", "map"):
        of_run(folder / "of-shards", tmp_path / name)
    said = rayed.run("shards", folder / "users", tmp_path, *shards)
    assert "\nshards[0]: score: " in f"\n{said}"  # in one line, as it is
    assert not (tmp_path / "none").exists()
    assert not rayed.wait_for_the_end()
    for name in ("run", "map"):
        same_columns(rows_of(tmp_path / name), rows_of(folder / "of-shards"))
        check_each_once(tmp_path / name)


@pytest.mark.slow
@with_ray
def test_a_shard_that_is_lost(
    folder: Path, shards: list[Path], rayed: Rayed, tmp_path: Path
) -> None:
    """It is named, no part is half written, and a rerun with another actor does the rest."""
    log = of_run(folder / "of-shards", tmp_path / "log")
    said = rayed.run("lost_shard", folder / "users", log, *shards).splitlines()
    lost, there, hung = (line for line in said if line.startswith("shards[") or line.isdecimal())
    assert lost.startswith("shards[1] did not answer (ActorDiedError")
    assert 0 < int(there) < N // 30
    assert hung.startswith("shards[1] did not answer (GetTimeoutError")
    assert not rayed.wait_for_the_end()
    check_each_once(log)
    same_columns(rows_of(log), rows_of(folder / "of-shards"))


@with_spark
def test_spark_gives_the_rows_of_a_plain_loop(folder: Path, tmp_path: Path) -> None:
    log = of_run(folder / "plain", tmp_path / "log")
    paths = filter(None, [str(Path(fr.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    environment = {
        **inherited(),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    command = [sys.executable, HERE / "sparked.py", folder / "users", folder / "model", log]
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "scratch")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(log.glob("*.parquet"))) == 3
    same_columns(rows_of(log), rows_of(folder / "plain"))
    check_each_once(log)
