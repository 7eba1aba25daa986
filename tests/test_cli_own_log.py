"""`fastrank evaluate` of logs of another making, and what it says where something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from commands import refused, run

from fastrank.cli import ownlog
from fastrank.cli.evaluate import evaluate

OPTIONS = (
    *("--item", "banner", "--propensity", "p", "--reward", "clicked", "--request", "visit"),
    *("--position", "place", "--user", "who"),
)


def table(**changes: Any) -> pa.Table:
    """Two of five banners a visit, uniform; `p_new` twice as often shows the first half."""
    n, rng = 2000, np.random.default_rng(0)
    shown = np.array([rng.permutation(5)[:2] for _ in range(n)])
    columns: dict[str, Any] = {
        "visit": np.repeat(np.arange(n), 2),
        "place": np.tile([1, 2], n),
        "banner": shown.ravel(),
        "p": np.tile([1 / 5, 1 / 4], n),
        "clicked": (rng.random(2 * n) < 0.3).astype(float),
        "who": np.repeat(rng.integers(0, 600, n), 2),
        "p_new": np.tile([1 / 5, 1 / 4], n) * np.where(shown.ravel() < 2, 1.3, 0.8),
    }
    columns |= changes
    return pa.table(columns)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "log.csv"
    pacsv.write_csv(table(), path)
    return path


def loaded(*arguments: object) -> Any:
    result = run("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_table_is_evaluated(log: Path, tmp_path: Path) -> None:
    columns = table()
    found = loaded(
        "--format", "table", log, *OPTIONS, "--n-eligible", "5",
        "--column", "new=p_new", "--policy", "uniform", "--policy", "again=uniform",
    )  # fmt: skip
    assert [each["label"] for each in found["policies"]] == ["uniform", "again", "new"]
    assert found["span"] is None
    uniform, _, new = found["policies"]
    p, q = (columns[name].to_numpy().reshape(-1, 2) for name in ("p", "p_new"))
    reward = columns["clicked"].to_numpy().reshape(-1, 2)
    weight = np.cumprod(q / p, axis=1)
    assert new["estimates"]["ips"]["value"] == pytest.approx(
        (weight[:, 1] * reward.sum(axis=1)).mean(), rel=1e-12
    )
    assert new["estimates"]["rips"]["value"] == pytest.approx(
        (weight * reward).sum(axis=1).mean(), rel=1e-12
    )
    earned = reward.sum(axis=1).mean()
    assert uniform["estimates"]["snips"]["value"] == pytest.approx(earned, rel=1e-12)
    pq.write_table(columns, tmp_path / "t.parquet")
    arguments = ["evaluate", "--format", "table", tmp_path / "t.parquet", *OPTIONS]
    result = run(*arguments, "--column", "new=p_new", "--report", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "Not audited" in result.stdout
    assert "2,000 of 2,000 rows used." in result.stdout
    assert "not known" in (tmp_path / "page.html").read_text()


def test_every_option_reaches_the_table(tmp_path: Path) -> None:
    logs = np.log(np.tile([1 / 5, 1 / 20], 2000))
    columns = table(
        seen=np.full(4000, 1), weight=np.full(4000, 2.0), n=np.full(4000, 5),
        when=["2026-01-02T03:04:05Z"] * 4000, by=["a", "a", "b", "b"] * 1000,
        logs=logs, logs_new=logs, q=np.full(4000, 0.3),
    )  # fmt: skip
    pq.write_table(columns, tmp_path / "t.parquet")
    found = loaded(
        "--format", "table", tmp_path / "t.parquet", "--item", "banner", "--reward", "clicked",
        "--request", "visit", "--position", "place", "--user", "who", "--log-propensity", "logs",
        "--propensity-of", "prefix", "--displayed", "seen", "--row-weight", "weight",
        "--n-eligible", "n", "--time", "when", "--logged-by", "by", "--column", "new=logs_new",
        "--policy", "uniform", "--estimator", "dr-position",
        "--array", "new:q_logged=q", "--array", "new:q_expected=q",
        "--array", "uniform:q_logged=q", "--array", "uniform:q_expected=q",
    )  # fmt: skip
    assert found["span"] == ["2026-01-02T03:04:05Z"] * 2
    assert [each["stratum"]["law"] for each in found["strata"]] == ["a", "b"]
    _, new = found["policies"]
    first = columns["clicked"].to_numpy()[::2].mean()
    for name in ("avg", "dr-position"):
        assert new["estimates"][name]["value"] == pytest.approx(first, rel=1e-9)


def test_all_that_is_missing_is_said_at_once(log: Path) -> None:
    said = refused("evaluate", "--format", "table")
    for name in ("LOGS", "--item", "--propensity", "--log-propensity", "--reward", "--column"):
        assert name in said
    said = refused(
        "evaluate", "--format", "table", log, "--item", "baner", "--log-propensity", "p_log",
        "--position", "place", "--column", "new=p_ne", "--policy", "uniform",
    )  # fmt: skip
    for words in (
        "--item: no column named 'baner'; did you mean 'banner'?",
        "--log-propensity: no column named 'p_log'",
        "--reward: name the column",
        "--position: means the place within a request: name --request, too",
        "--column 'new': no column named 'p_ne'; did you mean 'p_new'?",
        "wants --n-eligible",
        "the table's columns are visit, place, banner, p, clicked, who, p_new",
    ):
        assert words in said
    said = refused(
        "evaluate", "--format", "table", log, "--item", "banner", "--log-propensity", "p",
        "--reward", "clicked", "--column", "p_new",
    )  # fmt: skip
    assert "--log-propensity: column 'p' holds probabilities where logarithms" in said
    assert "--propensity" in said.partition("taken with")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--item", "a", "--propensity-of", "item"], "--item, --propensity-of: only with"),
        (["--format", "obd", "--reward", "a"], "--reward: only with --format table"),
        (["--format", "dsjson", "x", "--user", "a"], "--user: only with --format table"),
        (
            ["--format", "table", "x", "--no-audit", "--include-fallback", "--keep-candidates"],
            "--keep-candidates, --include-fallback, --no-audit: not with --format table",
        ),
        (["--format", "table", "x", "--model", "."], "--model: not with --format table"),
        (
            ["--format", "dsjson", "x", "--column", "a", "--policy", "uniform"],
            "--column, --policy: not with --format dsjson",
        ),
        (["--format", "dsjson"], "LOGS: name a file"),
        (
            ["--format", "dsjson", "x", "--control", "a", "--experiment", "b"],
            "--experiment, --control: needs --format log",
        ),
    ],
)
def test_options_of_other_formats_are_refused_by_name(arguments: list[str], words: str) -> None:
    assert words in refused("evaluate", *arguments)


def test_a_table_without_the_format_is_told_of_it(log: Path) -> None:
    result = run("evaluate", log, "--column", "new=p_new")
    assert result.exit_code == 2
    assert "log.csv: neither Parquet nor an Arrow stream" in " ".join(result.output.split())
    assert "--format table" in result.output


def test_policies_that_want_a_model_are_refused(log: Path) -> None:
    arguments = ["evaluate", "--format", "table", log, *OPTIONS]
    said = refused(*arguments, "--policy", "deterministic")
    assert "--policy: deterministic: a table comes without a model" in said
    assert "comes without a model" in refused(*arguments, "--policy", "uniform@model/")
    said = refused(*arguments, "--column", "a=p_new", "--column", "a=p")
    assert "two policies are called 'a'" in said


def test_every_option_is_refused_or_taken() -> None:
    """A new option of `evaluate` must be given its place with other formats."""
    known = {
        *ownlog.OPTIONS,
        *ownlog._OF_MODELS,
        *ownlog._OF_COLUMNS,
        *("logs", "kind", "places", "estimators", "lead", "reference", "level"),
        *("independent_rows", "clip", "reward_range", "limits", "report", "as_json"),
        *("experiment", "shares", "control", "engine", "processes"),
    }
    assert {each.name for each in evaluate.params} == known


def test_dsjson(tmp_path: Path) -> None:
    lines = [
        {
            "_label_cost": -float(j % 2),
            "_label_probability": 0.5,
            "_label_Action": 1 + j % 2,
            "_labelIndex": j % 2,
            "Timestamp": "2026-01-01T00:00:00Z",
            "EventId": f"e{j}",
            "a": [1 + j % 2, 2 - j % 2],
            "p": [0.5, 0.5],
        }
        for j in range(1000)
    ]
    (tmp_path / "log.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = loaded("--format", "dsjson", tmp_path / "log.json")
    values = {each["label"]: each["estimates"]["ips"]["value"] for each in found["policies"]}
    assert values == {"uniform": pytest.approx(0.5), "first": 0.0}
    assert found["span"] == ["2026-01-01T00:00:00Z"] * 2


def test_malformed_rows_are_named(tmp_path: Path) -> None:
    p = np.tile([1 / 5, 1 / 4], 2000)
    p[[4, 10, 20, 30]] = 0.0
    pq.write_table(table(p=p), tmp_path / "t.parquet")
    result = run("evaluate", "--format", "table", tmp_path / "t.parquet", *OPTIONS, "--column", "p")
    said = "".join(result.stdout.split())  # lines break anywhere
    assert "4malformed:propensitynotin(0,1]" in said
    for row in (4, 10, 20):
        assert f"propensitynotin(0,1]:{tmp_path / 't.parquet'},row{row}:p:0.0" in said
    assert "row30" not in said


def test_brackets_are_explained_where_there_are_any(log: Path) -> None:
    arguments = ["evaluate", "--format", "table", log, *OPTIONS, "--estimator", "snips"]
    sound = run(*arguments, "--column", "new=p_new", "--lead", "snips").stdout
    assert "In brackets" not in sound
    doubted = run(
        *arguments, "--column", "new=p_new", "--lead", "snips", "--threshold", "reward_ess=1e9"
    ).stdout
    assert doubted.count("In brackets: no result") == 1


def test_a_log_without_rewards_says_what_to_do(tmp_path: Path) -> None:
    none = pa.nulls(4000, pa.float64())
    pq.write_table(table(clicked=none), tmp_path / "t.parquet")
    arguments = ["evaluate", "--format", "table", tmp_path / "t.parquet", *OPTIONS, "--column", "p"]
    result = run(*arguments, "--report", tmp_path / "page.html")
    assert "No ranking has its rewards yet" in result.stdout
    assert "fastrank join" in result.stdout
    assert "fastrank join" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("banner,p,clicked\n", "There is no row in the files read"),
        ("banner,p,clicked\n1,0,1\n2,2,0\n", "No row is valid"),
        ("banner,p,clicked\n1,0.5,\n", "No ranking has its rewards yet"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_exit_code_1_where_no_row_is_of_use(
    text: str, said: str, as_json: bool, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text(text)
    result = run(
        *("evaluate", "--format", "table", tmp_path / "log.csv", "--item", "banner", "--column"),
        *("p", "--propensity", "p", "--reward", "clicked", *(["--json"] if as_json else [])),
    )
    assert result.exit_code == 1, result.output
    if as_json:
        assert json.loads(result.stdout)["rows_used"] == 0
    else:
        assert said in " ".join(result.stdout.split())


def test_a_file_without_json_in_it(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text("item,p\n1,0.5\n")
    result = run("evaluate", "--format", "dsjson", tmp_path / "log.json")
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "2 malformed: not JSON" in said
    assert "No row is valid" in said
    (tmp_path / "log.json").write_bytes("{}".encode("utf-16"))
    said = refused("evaluate", "--format", "dsjson", tmp_path / "log.json")
    assert "text in UTF-16" in said


def test_times_without_a_zone_are_said(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "banner,p,clicked,t\n1,0.5,1,2026-01-01\n1,0.5,1,2026-01-02T00:00:00Z\n1,0.5,0,noon\n"
    )
    arguments = ("--item", "banner", "--propensity", "p", "--reward", "clicked", "--time", "t")
    result = run(
        *("evaluate", "--format", "table", tmp_path / "log.csv", *arguments, "--column", "p"),
        *("--report", tmp_path / "page.html"),
    )
    assert result.exit_code == 0, result.output
    assert "served at a time without a zone: taken as UTC" in (tmp_path / "page.html").read_text()
    said = " ".join(result.stdout.split())
    assert "1 served at a time without a zone, read as UTC" in said
    assert "1 malformed: not a time" in said
