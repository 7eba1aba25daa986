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


def test_rewards_that_are_missing_are_said_in_words(log: Path, tmp_path: Path) -> None:
    clicks = write_rewards(
        tmp_path / "early.csv",
        *[reward(f"r{i}", 100, hours=-29.4 / 3600) for i in range(2)],
        *[reward("r2", 100), reward("r3", 100), reward("R4", 100)],
    )
    result = run("join", log, clicks, *USUAL, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "before their ranking 2" in said
    assert (
        "2 of 5 rewards came before their ranking, 29.4 s in the median, up to 29.4 s: if clocks"
        " differ, join with --skew 30s"
    ) in said
    assert "1 of 5 rewards name requests that the log does not hold: are ids written" in said
    assert "60 % of the rewards are missing in the result." in said
    mended = (*USUAL, "--skew", "30s", "--other-requests")
    result = run("join", log, clicks, *mended, "-o", tmp_path / "mended")
    assert result.exit_code == 0, result.output
    assert "1 of 5 rewards name requests that the log does not hold" in result.stdout
    assert "are missing" not in result.stdout
    said = " ".join(result.stdout.split())
    assert "before their ranking, within the skew 2" in said
    assert "--skew" not in said
    assert "skew: expected a length" in refused(
        "join", log, clicks, *USUAL, "--skew", "bit", "-o", tmp_path / "no"
    )


def test_no_reward_used_is_a_failed_check(log: Path, tmp_path: Path) -> None:
    """The result is there, and its account says why."""
    for name, rewards, why in (
        ("upper", [reward("R0", 100)], "name requests that the log does not hold"),
        ("east", [reward("r0", 100, hours=25)], "came after the window; a time that says no zone"),
        ("west", [reward("r0", 100, hours=-5)], "up to 5 h: a time that says no zone is taken"),
        ("items", [reward("r0", 999)], "1 of 1 rewards are of items that were not ranked there"),
        ("places", [reward("r0", 100, position=1)], "items that were ranked in another position"),
    ):
        clicks = write_rewards(tmp_path / f"{name}.csv", *rewards)
        result = run("join", log, clicks, *USUAL, "-o", tmp_path / name)
        assert result.exit_code == 1
        said = " ".join(result.stdout.split())
        assert why in said
        assert "None of the rewards was used: every ranking written earned 0." in said
        assert sum(map(len, LogReader(tmp_path / name))) == 5
        again = run("join", log, clicks, *USUAL, "-o", tmp_path / f"{name} too", "--json")
        assert again.exit_code == 1
        assert json.loads(again.stdout)["rewards_used"] == 0
        assert why in again.stderr
        assert "None of the rewards was used" in again.stderr


def test_files_without_rewards_are_said(log: Path, tmp_path: Path) -> None:
    clicks = write_rewards(tmp_path / "none.csv")
    for kind, nothing in (("positives", "earned 0"), ("complete", "has no reward")):
        usual = (*USUAL[:4], "--kind", kind)
        result = run("join", log, clicks, *usual, "-o", tmp_path / kind)
        assert result.exit_code == 0
        assert f"no rewards in the files: every ranking written {nothing}." in result.stdout


def test_open_windows_are_said(log: Path, tmp_path: Path) -> None:
    early = ("--window", "24h", "--as-of", "2026-01-01T13:00:00Z", "--kind", "positives")
    clicks = write_rewards(tmp_path / "one.csv", reward("r0", 100))
    result = run("join", log, clicks, *early, "-o", tmp_path / "out")
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    until = "2026-01-02T12:00:00.000004+00:00"
    assert f"5 rankings left out: their windows are open, the last until {until}" in said
    assert "No ranking was written: all windows are open." in said
    later = ("--window", "24h", "--as-of", "2999-01-01", "--kind", "positives")
    message = refused("join", log, clicks, *later, "-o", tmp_path / "never")
    assert "as_of: 2999-01-01T00:00:00+00:00 is beyond the clock" in message
    assert not (tmp_path / "never").exists()


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
    assert "already exists" in refused("join", log, clicks, *USUAL, "-o", clicks)


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


def test_what_was_shown(log: Path, tmp_path: Path) -> None:
    shown = write_rewards(
        tmp_path / "shown.csv",
        *[{**reward(f"r{i}", 0), "displayed": 2 - i} for i in range(3)],
        {**reward("gone", 0), "displayed": 1},
    )
    clicks = write_rewards(tmp_path / "c.csv", reward("r0", 100, hours=2), reward("r4", 100))
    options = (*USUAL, "--shown", shown, "-o")
    result = run("join", log, clicks, *options, tmp_path / "out")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    for words in (
        "never shown 3", "of rankings never shown 1", "impressions read 4 used 2",
        "1 of 2 rewards are of rankings that were never shown: are impressions missing?",
        "1 of 4 impressions say that no place was displayed", "within its time 1",
    ):  # fmt: skip
        assert words in said
    result = run("join", log, clicks, *options, tmp_path / "json", "--json")
    assert json.loads(result.stdout)["rows_not_shown"] == 3
    nothing = write_rewards(tmp_path / "none.csv", {**reward("r0", 0), "displayed": 0})
    result = run("join", log, clicks, *USUAL, "--shown", nothing, "-o", tmp_path / "none")
    assert "None of the rankings written was ever shown" in " ".join(result.stdout.split())
    assert "no column named displayed" in refused(
        "join", log, clicks, *USUAL, "--shown", clicks, "-o", tmp_path / "never"
    )
    assert (
        "of rankings never shown" in run("join", log, clicks, *USUAL, "-o", tmp_path / "w").stdout
    )
    assert "impressions" not in run("join", log, clicks, *USUAL, "-o", tmp_path / "x").stdout
