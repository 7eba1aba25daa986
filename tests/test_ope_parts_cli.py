"""`fastrank evaluate --engine`: the same output by many processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("pyarrow")
import pyarrow.parquet as pq
from alike import assert_same
from commands import refused, run, unannounced

import fastrank as fr
from fastrank import simulate
from fastrank.cli import engines
from fastrank.eventlog import LogWriter

POLICIES = (
    *("--policy", "colder=plackett_luce:temperature=0.8"),
    *("--policy", "deterministic"),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and 2,000 rankings of 3 by four writers, each with a column `same`."""
    folder = tmp_path_factory.mktemp("shop")
    clicks = simulate.PositionBased([1.0, 0.8, 0.6])
    world = simulate.World.synthetic(50, 30, clicks, dim=6, seed=1, typical_rate=0.1)
    model = world.model(noise=0.3, seed=2)
    model.save(folder / "model")
    for part in range(4):
        with LogWriter(folder / "log") as log:
            simulate.write_log(world, model, fr.PlackettLuce(1.0), 3, 500, log, seed=part)
    for file in (folder / "log").glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column("same", table["log_propensities"]), file)
    return folder


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Parts one after another in this process, as others would get them; those that were."""
    done: list[Any] = []

    def results(
        processes: int, function: Callable[[Any], Any], parts: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        for number in reversed(range(len(parts))):
            done.append(parts[number])
            work, part = pickle.loads(pickle.dumps((function, parts[number])))
            yield number, pickle.loads(pickle.dumps(work(part)))

    monkeypatch.setattr(engines, "_on_this_machine", results)
    return done


def both(*arguments: object, processes: int = 2) -> tuple[str, str]:
    """What the command prints without an engine, and with one."""
    plain = run("evaluate", *arguments)
    by_parts = run("evaluate", *arguments, "--engine", "local", "--processes", processes)
    assert plain.exit_code == by_parts.exit_code, by_parts.output
    assert unannounced(plain.stderr) == unannounced(by_parts.stderr)
    return plain.stdout, by_parts.stdout


@pytest.mark.slow
def test_processes_print_the_same(shop: Path) -> None:
    plain, by_parts = both(shop / "log", "--model", shop / "model", *POLICIES)
    assert by_parts == plain
    assert "2,000 of 2,000 rows used" in plain
    assert multiprocessing.active_children() == []


@pytest.mark.sampled
@pytest.mark.parametrize(
    "options",
    [
        [*POLICIES, "--reference", "colder"],
        [*POLICIES, "-k", "1", "--no-audit"],
        ["--column", "given=same", "--independent-rows", "--level", "0.8"],
        [*POLICIES[:2], "--estimator", "iips", "--estimator", "ips", "--lead", "ips"],
    ],
    ids=lambda options: " ".join(options[:2]),
)
def test_json(shop: Path, alone: list[Any], options: list[str]) -> None:
    plain, by_parts = both(shop / "log", "--model", shop / "model", *options, "--json")
    assert len(alone) == 4
    assert_same(json.loads(by_parts), json.loads(plain))


@pytest.mark.slow
def test_files_with_the_same_rows_are_read_as_one(
    shop: Path, tmp_path: Path, alone: list[Any]
) -> None:
    """A copy of one and half of another: they count once, and only their files are read again."""
    first, second, *_ = sorted((shop / "log").glob("*.parquet"))
    log = tmp_path / "log"
    shutil.copytree(shop / "log", log)
    shutil.copy(first, log / "copy.parquet")
    pq.write_table(pq.read_table(second).slice(100), log / "half.parquet")
    plain, by_parts = both(log, "--model", shop / "model", *POLICIES, "--json")
    assert_same(json.loads(by_parts), json.loads(plain))
    found = json.loads(plain)
    assert (found["rows"], found["log"]["equal_duplicates"]) == (2000, 900)
    assert sorted(len(part.files) for part in alone) == [1] * 6 + [2] * 2
    plain, by_parts = both(log, "--model", shop / "model", *POLICIES)
    assert by_parts == plain


def test_files_that_say_which_arm_by_their_folder(
    shop: Path, tmp_path: Path, alone: list[Any]
) -> None:
    """Parts know their files as the whole log does."""
    files = sorted((shop / "log").glob("*.parquet"))
    for number, file in enumerate(files):
        folder = tmp_path / "log" / f"user_temperature={1 + number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        table = pq.read_table(file)
        pq.write_table(table.drop_columns(["user_temperature"]), folder / f"{number}.parquet")
    options = ("--column", "given=same", "--json", "--no-audit")
    plain, by_parts = both(tmp_path / "log", *options)
    assert_same(json.loads(by_parts), json.loads(plain))
    assert len(json.loads(plain)["strata"]) == 2


@pytest.mark.slow
def test_an_error_of_a_process_is_one_line(shop: Path) -> None:
    said = refused("evaluate", shop / "log", "--column", "nothing", "--engine", "local")
    assert "no column named nothing" in said
    assert multiprocessing.active_children() == []


def test_refusals(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = (shop / "log", "--column", "same")
    assert "--processes: needs --engine" in refused("evaluate", *log, "--processes", 2)
    for kind in ("obd", "table", "data-capture"):
        said = refused("evaluate", *log, "--engine", "local", "--format", kind)
        assert f"--engine: needs --format log; got {kind}" in said
    said = refused("evaluate", *log, "--engine", "local", "--experiment", "e")
    assert "--engine: cannot be combined with --experiment" in said

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(engines, "import_module", missing)
    said = refused("evaluate", *log, "--engine", "ray")
    assert 'ray is not installed (fastrank-sampling\'s extra "ray"): pip install' in said


def test_an_empty_log(tmp_path: Path, shop: Path, alone: list[Any]) -> None:
    """Files without rows: nothing is used, with exit code 1."""
    (file, *_) = (shop / "log").glob("*.parquet")
    pq.write_table(pq.read_table(file).slice(0, 0), tmp_path / "a.parquet")
    plain, by_parts = both(tmp_path, "--model", shop / "model", *POLICIES, "--json")
    assert_same(json.loads(by_parts), json.loads(plain))


# The engine itself.


def test_a_function_over_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    done: list[str | None] = []
    with engines.begun("local", 2) as engine:
        assert engine.map(os.getenv, ["OMP_NUM_THREADS"] * 3, done.append) == ["1"] * 3
        assert done == ["1"] * 3
        with pytest.raises(ValueError, match=r"invalid literal .* 'part 2'"):
            engine.map(int, ["0", "1", "part 2", "3"], lambda _: None)
        with pytest.raises(ValueError, match="a process was killed"):
            engine.map(os._exit, [3, 3], lambda _: None)
    assert "OMP_NUM_THREADS" not in os.environ
    assert multiprocessing.active_children() == []
