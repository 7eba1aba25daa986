"""`fastrank join` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("pyarrow")
from commands import process, refused, run
from logs import row
from test_eventlog_join import reward, write_log, write_rewards

from fastrank.eventlog import LogReader

USUAL = ("--window", "24h", "--as-of", "2026-01-03T12:00:00Z", "--kind", "positives")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_rewards(tmp_path / "clicks.csv", reward("r0", 100), reward("gone", 1))
    return write_log(tmp_path / "logs", *(row(i) for i in range(5)))


def test_help_has_an_example() -> None:
    result = run("join", "--help")
    assert result.exit_code == 0
    assert "fastrank join logs/ clicks.csv" in result.stdout
    assert "join" in run("--help").stdout


def test_table(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("join", log, tmp_path / "clicks.csv", *USUAL, "-o", out)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert ["rankings", "read", "5"] in lines
    assert ["request", "not", "in", "the", "log", "1"] in lines
    assert "5 rankings with rewards" in result.stdout
    assert result.stderr == ""


def test_json(log: Path, tmp_path: Path) -> None:
    options = (*USUAL, "--repeats", "sum", "-o", tmp_path / "out", "--json")
    result = run("join", str(log / "*.parquet"), tmp_path / "clicks.csv", *options)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["output"] == str(tmp_path / "out")
    assert record["rows_written"] == 5
    assert record["rewards_unlogged"] == 1


def test_files_that_cannot_be_read_are_named(log: Path, tmp_path: Path) -> None:
    bad = log / "bad.parquet"
    bad.write_bytes(next(log.glob("*.parquet")).read_bytes()[:500])
    result = run("join", log, tmp_path / "clicks.csv", *USUAL, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "not read:" in result.stdout
    assert "bad.parquet" in result.stdout
    options = (*USUAL, "-o", tmp_path / "again", "--json")
    record = json.loads(run("join", log, tmp_path / "clicks.csv", *options).stdout)
    assert list(record["files_set_aside"]) == [str(bad)]
    (found,) = LogReader(tmp_path / "out").files
    reader = LogReader(found)
    assert sum(map(len, reader)) == 5
    assert list(reader.report.unreadable_files) == [str(bad)]


def test_one_line_errors(log: Path, tmp_path: Path) -> None:
    clicks, out = tmp_path / "clicks.csv", tmp_path / "out"
    assert "no such file" in refused("join", tmp_path / "no", clicks, *USUAL, "-o", out)
    assert "no such file" in refused("join", log, tmp_path / "no.csv", *USUAL, "-o", out)
    assert "Missing option '--kind'" in refused("join", log, clicks, *USUAL[:4], "-o", out)
    assert "window: expected a length" in refused(
        "join", log, clicks, "--window", "day", *USUAL[2:], "-o", out
    )
    write_rewards(clicks, reward("r0", 100, -1.0))
    assert "clicks.csv: row 0: reward: must not be negative" in refused(
        "join", log, clicks, *USUAL, "-o", out
    )
    (log / "a.parquet").write_bytes(b"broken")
    assert "no file of the log can be read" in refused("join", log, clicks, *USUAL, "-o", out)
    assert not out.exists()
    assert "is taken" in refused("join", log, clicks, *USUAL, "-o", clicks)


def test_the_result_is_not_among_the_logs(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again, every ranking would be there twice: refused before anything is read."""
    (tmp_path / "linked").symlink_to(log)
    monkeypatch.chdir(tmp_path)
    for logs, out in (
        (log, log / "joined"),
        (log, "logs/day/joined"),
        ("logs", "linked/joined"),
        ("linked", tmp_path / "logs" / "joined"),
        ("logs/**/*.parquet", log / "joined"),
        ("*/*/*.parquet", "linked/joined"),
    ):
        message = refused("join", logs, "no rewards here", *USUAL, "-o", out)
        assert f"output: {out} lies in what {logs} reads" in message
    assert [file.name for file in log.iterdir()] == ["a.parquet"]
    for logs, out in (("logs/*.parquet", "logs/joined"), (log, "logs joined")):
        assert run("join", logs, "clicks.csv", *USUAL, "-o", out).exit_code == 0


def test_as_a_process(log: Path, tmp_path: Path) -> None:
    done = process("join", log, tmp_path / "clicks.csv", *USUAL, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
