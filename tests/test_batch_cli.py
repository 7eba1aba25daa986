"""`fastrank batch`, as it is called."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("click")
pytest.importorskip("rich")
import pyarrow.parquet as pq
from commands import process, refused, run

import fastrank as fr
from fastrank import batch
from fastrank.batch.manifest import MANIFEST
from fastrank.eventlog import LogReader

USERS = [f"u{i}" for i in range(40)]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A model, with and without a policy of its own, and its users."""
    rng = np.random.default_rng(1)
    catalog = fr.Catalog(np.arange(20), rng.standard_normal((20, 4)))
    model = fr.Model(catalog, USERS, rng.standard_normal((40, 4)), policy=fr.PlackettLuce(0.5))
    model.save(tmp_path / "model")
    model.with_policy(None).save(tmp_path / "plain")
    (tmp_path / "users.csv").write_text("user_id,age\n" + "".join(f"{u},30\n" for u in USERS))
    return tmp_path


def asked(
    shop: Path, *more: object, users: str = "users.csv", model: str = "model"
) -> list[object]:
    one = ["--run", "night", "--processes", 1]
    return ["batch", shop / model, shop / users, "-o", shop / "log", *one, *more]


def test_help_says_what_it_does() -> None:
    result = run("batch", "--help")
    assert result.exit_code == 0
    assert "has not been shown yet" in result.stdout
    assert "batch" in run("--help").stdout


def test_a_run_and_a_rerun(shop: Path) -> None:
    result = run(*asked(shop, "-k", 3, "--part-rows", 15, "--items", shop / "store"))
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    words = result.stdout.split()
    assert words[:7] == ["count", "─" * len(words[1]), "users", "40", "rankings", "40", "files"]
    said = "".join(words)  # lines break anywhere
    assert f"{shop}/log:runnight,notshowntoanyoneyet" in said
    assert sum(map(len, LogReader(shop / "log"))) == 40
    assert pq.read_table(shop / "store").num_rows == 40
    again = run(*asked(shop, "-k", 3, "--json"))
    assert json.loads(again.stdout) == {
        "output": str(shop / "log"),
        "items": None,
        "run": "night",
        "users": 40,
        "rows": 40,
        "unknown": 0,
        "strangers": [],
        "empty": 0,
        "parts": 3,
        "there": 3,
    }
    said = json.loads((shop / "log" / MANIFEST).read_text())
    assert (said["k"], said["policy"]) == (3, "stochastic_gumbel_softmax_trick:temperature=0.5")


def test_options_are_those_of_the_library(shop: Path) -> None:
    rules = json.dumps({"pin": {"1": 7}})
    options: list[object] = [
        "--policy",
        "epsilon_greedy:epsilon=0.2",
        "--exclude",
        "1,2",
        "--allow",
        "1,3,5,7",
    ]
    options += ["--rules", rules, "--score", "dot * w", "--param", "w=2", "-k", 2]
    result = run(*asked(shop, *options, model="plain"))
    assert result.exit_code == 0, result.output
    kept = json.loads((shop / "log" / MANIFEST).read_text())
    log = shop / "same"
    log.mkdir()
    (log / MANIFEST).write_text(
        json.dumps({name: kept[name] for name in kept.keys() - {"files", "inputs", "users"}})
    )
    batch.run(
        shop / "users.csv",
        log,
        run="night",
        model=shop / "plain",
        k=2,
        policy=fr.EpsilonGreedy(0.2),
        exclude=[1, 2],
        allow=[1, 3, 5, 7],
        rules=fr.Rules(pin={1: 7}),
        score="dot * w",
        params={"w": 2.0},
        processes=1,
    )
    one, other = (pq.read_table(next(each.glob("*.parquet"))) for each in (log, shop / "log"))
    assert one.equals(other)
    assert {row[0] for row in one["item_ids"].to_pylist()} == {7}


def test_strangers_are_counted(shop: Path) -> None:
    (shop / "more.csv").write_text("user_id\nu1\nx1\nx2\nx3\nx4\n")
    said = refused(*asked(shop, users="more.csv"))
    assert "users: 4 of 5 are not in the model, the first 'x1'" in said
    other = ["--run", "night", "--processes", 1, "--unknown", "skip", "-o", shop / "skipped"]
    result = run("batch", shop / "model", shop / "more.csv", *other)
    assert result.exit_code == 0
    assert "unknown, skipped" in result.stdout
    assert "unknown: x1, x2, x3, and 1 more" in result.stdout
    other = [*other[:-3], "fallback", "--fallback", "uniform", "-o", shop / "ranked"]
    result = run("batch", shop / "model", shop / "more.csv", *other)
    assert result.exit_code == 0, result.output
    assert "unknown, ranked by the fallback" in result.stdout
    assert sum(map(len, LogReader(shop / "ranked"))) == 5


def test_bad_input_is_one_line(shop: Path) -> None:
    run(*asked(shop))
    for arguments, said in (
        (asked(shop, "--run", "other"), "holds another run: its run is 'night', not 'other'"),
        (asked(shop, "-k", 9), "holds another run: its k is 10, not 9"),
        (asked(shop, "--policy", "magic"), "--policy"),
        (asked(shop, "--policy", "plackett_luce", model="plain"), "give its temperature"),
        (asked(shop, model="plain"), "give --policy"),
        (asked(shop, "--fallback", "uniform"), "--fallback: needs --unknown fallback"),
        (asked(shop, "--user-column", "id"), "no column named id; found user_id, age"),
        (asked(shop, "--rules", "{"), "--rules: not JSON"),
        (asked(shop, "--exclude", "x"), "--exclude: the ids here are"),
        (asked(shop, users="none.csv"), "none.csv: no such file or directory"),
        (asked(shop, "--items", shop / "log/store"), "is in the log"),
        (asked(shop, "--engine", "spark"), "'spark' is not one of"),
    ):
        assert said in refused(*arguments)
    fr.Catalog([1], [[1.0]]).save(shop / "catalog")
    assert "has no users" in refused(*asked(shop, model="catalog"))


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_an_engine_that_is_not_installed_is_named(shop: Path) -> None:
    said = refused(*asked(shop, "--engine", "ray"))
    assert said.startswith("fastrank: ray is not installed")
    assert not (shop / "log").exists()


@pytest.mark.slow
def test_processes_of_a_command(shop: Path) -> None:
    done = process(*asked(shop, "--processes", 2, "--part-rows", 11, "--json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["parts"] == 4
    assert sum(map(len, LogReader(shop / "log"))) == 40
