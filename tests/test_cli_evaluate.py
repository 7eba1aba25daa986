"""`fastrank audit` and `fastrank evaluate` as a user meets them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
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

import fastrank as fr
from fastrank import obd, simulate
from fastrank.cli import evaluate as cli
from fastrank.eventlog import LogBatch, LogReader, LogWriter
from fastrank.ope import propensities, reading

GUMBEL = "stochastic_gumbel_softmax_trick"


def loaded(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one world, and a log that the first wrote."""
    folder = tmp_path_factory.mktemp("shop")
    world = simulate.World.synthetic(
        100, 50, simulate.PositionBased([1.0, 0.8, 0.6]), dim=4, seed=1, typical_rate=0.2
    )
    model = world.model(noise=0.2, seed=2)
    model.save(folder / "model")
    world.model(noise=0.25, seed=2).save(folder / "new")
    with LogWriter(folder / "logs") as log:
        simulate.write_log(world, model, fr.PlackettLuce(0.7), 3, 5000, log, seed=3)
    return folder


def test_audit_of_a_sound_log(shop: Path) -> None:
    result = run("audit", shop / "logs", "--model", shop / "model")
    assert result.exit_code == 0
    assert "The log agrees with the model." in result.stdout
    assert "passed" in result.stdout
    found = loaded("audit", shop / "logs", "--model", shop / "model", "--sample", "50")
    assert found["passed"] is True
    assert found["rows"] == 5000
    assert 20 < found["sampled"] < 100


def test_audit_of_another_model(shop: Path) -> None:
    result = run("audit", shop / "logs", "--model", shop / "new")
    assert result.exit_code == 1
    assert "This model did not write this log" in result.stdout
    assert "Traceback" not in result.output


def test_evaluate(shop: Path) -> None:
    arguments = [
        "evaluate", shop / "logs", "--model", shop / "model",
        "--policy", "colder=plackett_luce:temperature=0.6", "--policy", "deterministic",
        "--policy", f"new=plackett_luce:temperature=0.7@{shop / 'new'}",
    ]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "Audit: the log agrees with the model." in result.stdout
    assert "5,000 of 5,000 rows used" in result.stdout
    for label in ("colder", "deterministic", "new"):
        assert label in result.stdout
    found = loaded(*arguments)
    assert [policy["label"] for policy in found["policies"]] == ["colder", "deterministic", "new"]
    assert found["audit"]["passed"] is True
    colder = found["policies"][0]
    assert colder["status"] == "ok"
    assert colder["estimates"]["snrips"]["status"] == "ok"
    assert colder["verdict"] in " ".join(result.stdout.split())
    assert found["difference_level"] == pytest.approx(1 - 0.05 / 3)


def test_a_log_before_its_join_says_what_to_do_first(shop: Path, tmp_path: Path) -> None:
    """And shows no table of estimates, which there are none of."""
    model = fr.Model.open(shop / "model")
    with LogWriter(tmp_path / "logs") as log:
        for seed, user in enumerate(model.user_ids[:20].tolist()):
            drawn = model.recommend(user, 3, policy=fr.PlackettLuce(0.7), seed=seed)
            log.append(drawn, user_id=user)
    arguments = ["evaluate", tmp_path / "logs", "--model", shop / "model", "--policy", "uniform"]
    result = run(*arguments)
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "Audit: the log agrees with the model. No ranking has its rewards yet." in said
    assert "fastrank join LOGS REWARDS" in said
    assert "This log cannot evaluate uniform: no ranking has its rewards yet." in said
    assert "snips" not in said
    assert "too many rows had to be left out" not in said
    assert loaded(*arguments)["policies"][0]["verdict"].endswith("no ranking has its rewards yet.")


def test_brackets_of_what_the_log_earned_are_explained(shop: Path) -> None:
    """Also where no other figure stands in some."""
    found = run(
        "evaluate", shop / "logs", "--model", shop / "model", "--no-audit", "--estimator", "ips",
        "--policy", "colder=plackett_luce:temperature=0.6", "--lead", "ips",
        "--threshold", "clusters=1e9",
    ).stdout  # fmt: skip
    assert re.search(r"The logging policy earned \(", found)
    assert found.count("In brackets: no result") == 1


def test_a_log_of_another_model_is_not_evaluated(shop: Path) -> None:
    found = loaded(
        "evaluate", shop / "logs", "--model", shop / "new", "--policy", "uniform"
    )  # fmt: skip
    assert found["policies"][0]["status"] == "unsupported"
    assert "audit_failed" in found["policies"][0]["reasons"]
    believed = loaded(
        "evaluate", shop / "logs", "--model", shop / "new", "--policy", "uniform", "--no-audit"
    )
    assert believed["audit"] is None
    assert "audit_failed" not in believed["policies"][0]["reasons"]


def test_options_reach_the_evaluation(shop: Path) -> None:
    found = loaded(
        "evaluate", shop / "logs", "--model", shop / "model", "--no-audit", "--independent-rows",
        "--policy", "a=plackett_luce:temperature=0.6",
        "--policy", "b=plackett_luce:temperature=0.8",
        "-k", "1", "--estimator", "ips", "--estimator", "clipped-ips", "--lead", "ips",
        "--reference", "b", "--level", "0.9", "--clip", "3", "--reward-range", "0", "1",
        "--threshold", "reward_ess=100000",
    )  # fmt: skip
    a, b = found["policies"]
    assert set(a["estimates"]) == {"avg", "ips", "clipped-ips"}
    assert (a["lead"], found["places"], found["level"]) == ("ips", 1, 0.9)
    assert a["estimates"]["clipped-ips"]["parameters"] == {"clip": 3.0, "cut_off": 0.0}
    assert a["estimates"]["clipped-ips"]["bernstein"] is not None
    assert "reward_ess" in a["reasons"]
    assert a["estimates"]["ips"]["standard_error"] == a["estimates"]["ips"]["standard_error_iid"]
    assert b["differences"] == {}


def test_columns_are_policies(shop: Path, tmp_path: Path) -> None:
    batch = next(iter(LogReader(shop / "logs")))
    table = pa.Table.from_batches([batch.table])
    lp = [row.tolist() for row in batch.log_propensities - 0.0]
    pq.write_table(table.append_column("lp1", pa.array(lp)), tmp_path / "log.parquet")
    found = loaded("evaluate", tmp_path / "log.parquet", "--column", "same=lp1")
    estimates = found["policies"][0]["estimates"]
    assert estimates["ips"]["value"] == pytest.approx(estimates["avg"]["value"], rel=1e-12)


def with_columns(shop: Path, file: Path, **columns: Any) -> Path:
    """The log with further columns, made of the matrix (n, 3) of its log-propensities."""
    batch = next(iter(LogReader(shop / "logs")))
    table = pa.Table.from_batches([batch.table])
    for name, function in columns.items():
        values = np.asarray(function(batch.log_propensities + 0.0))
        table = table.append_column(name, pa.array(values.tolist()))
    pq.write_table(table, file)
    return file


def arrays(text: str) -> list[str]:
    return [part for each in text.split() for part in ("--array", each)]


def test_columns_feed_estimators(shop: Path, tmp_path: Path) -> None:
    log = with_columns(
        shop,
        tmp_path / "log.parquet",
        lp1=lambda lp: lp,
        p=np.exp,
        q=lambda lp: np.full(lp.shape, 0.25),
        none=np.zeros_like,
        row=lambda lp: np.full(len(lp), 0.75),
        weight=lambda lp: np.full(len(lp), 2.0),
    )
    names = ["iips", "dm", "dr-position", "cascade-dr", "pi"]
    found = loaded(
        "evaluate", log, "--column", "a=lp1", "--column", "b=lp1",
        *(part for name in names for part in ("--estimator", name)),
        *arrays("marginals_logged=p marginals_evaluated=p q_direct=row slate_weights=weight"),
        *arrays("q_logged=q cascade_q_logged=none cascade_q_expected=none"),
        *arrays("a:q_expected=q b:q_expected=none"),
    )  # fmt: skip
    a, b = (
        {name: each["value"] for name, each in policy["estimates"].items()}
        for policy in found["policies"]
    )
    avg = a["avg"]
    # The weights are 1, and the reward model's two words cancel in the one and not in the other.
    expected = {"iips": avg, "dm": 0.75, "cascade-dr": avg, "pi": 2 * avg}
    for name, value in expected.items():
        assert a[name] == pytest.approx(value)
        assert b[name] == pytest.approx(value)
    assert a["dr-position"] == pytest.approx(avg)
    assert b["dr-position"] == pytest.approx(avg - 0.75)


def test_arrays_go_to_policies_of_models(shop: Path, tmp_path: Path) -> None:
    """Whose labels may hold what separates the parts."""
    log = with_columns(shop, tmp_path / "log.parquet", q=lambda lp: np.full(len(lp), 0.5))
    label = "plackett_luce:temperature=0.6"
    found = loaded(
        "evaluate", log, "--model", shop / "model", "--policy", label, "--estimator", "dm",
        "--array", f"{label}:q_direct=q",
    )  # fmt: skip
    assert found["policies"][0]["label"] == label
    assert found["policies"][0]["estimates"]["dm"]["value"] == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("q=c", "--array: expected [LABEL:]NAME=COLUMN, NAME one of marginals_logged, "),
        ("q_direct", "--array: expected [LABEL:]NAME=COLUMN"),
        ("q_direct=", "--array: expected [LABEL:]NAME=COLUMN"),
        (":q_direct=row", "--array: expected [LABEL:]NAME=COLUMN"),
        ("c:q_direct=row", "--array: c:q_direct=row: expected a policy's label: a, b; got 'c'"),
        ("q_direct=row q_direct=row", "--array: q_direct of a is given twice"),
        ("q_direct=row b:q_direct=row", "--array: q_direct of b is given twice"),
        ("q_logged=q", "--array: q_logged=q: unused without --estimator dr-position"),
        ("a:q_direct=row", "dm of b: needs a reward model"),
        ("q_direct=nothing", "no column named nothing"),
        ("q_direct=text", "text: expected numbers or lists of them, got string"),
        ("q_direct=q", "q_direct: column q: expected one number a row; got a list"),
        ("q_direct=infinite", "q_direct: column infinite: request "),
        ("q_direct=null", "must be finite, got nan"),
        ("q_direct=scores", "scores is a column of the schema itself"),
    ],
)
def test_arrays_that_are_not_there(shop: Path, tmp_path: Path, given: str, message: str) -> None:
    log = with_columns(
        shop,
        tmp_path / "log.parquet",
        lp1=lambda lp: lp,
        q=np.exp,
        row=lambda lp: lp[:, 0],
        text=lambda lp: ["x"] * len(lp),
        infinite=lambda lp: np.where(np.arange(len(lp)) == 7, np.inf, 0.0),
        null=lambda lp: np.array([None, *lp[1:, 0]], object),
    )
    policies = ["--column", "a=lp1", "--column", "b=lp1", "--estimator", "dm"]
    assert message in refused("evaluate", log, *policies, *arrays(given))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("row", "marginals_logged: column row: expected a list of numbers a row, one for each"),
        ("zero", "place 2: must be a probability above 0, got 0.0"),
        ("above", "place 3: must be a probability above 0, got 1.5"),
    ],
)
def test_marginals_are_probabilities(shop: Path, tmp_path: Path, column: str, message: str) -> None:
    def at(place: int, value: float) -> Any:
        cell = np.zeros((5000, 3), np.bool_)
        cell[11, place - 1] = True
        return lambda lp: np.where(cell, value, np.exp(lp))

    columns = {"row": lambda lp: lp[:, 0], "zero": at(2, 0.0), "above": at(3, 1.5)}
    log = with_columns(shop, tmp_path / "log.parquet", lp1=lambda lp: lp, p=np.exp, **columns)
    given = arrays(f"marginals_evaluated=p marginals_logged={column}")
    found = refused("evaluate", log, "--column", "lp1", "--estimator", "iips", *given)
    assert message in found


def test_a_long_run_is_announced(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastrank.cli.evaluate as command

    monkeypatch.setattr(command, "_LONG", 0.0)
    result = run(
        "evaluate", shop / "logs", "--model", shop / "model", "--policy", "uniform",
        "--estimator", "iips", "--no-audit",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert " for 5,000 rows" in result.stderr


def test_the_bundled_logs() -> None:
    found = loaded("evaluate", "--format", "obd", "--independent-rows")
    titles = [section["title"] for section in found]
    assert [title.split(": ")[1] for title in titles] == [
        "logged by random, evaluated bts",
        "logged by bts, evaluated uniform",
        "logged by bts, evaluated uniform",
    ]
    values = [section["policies"][0]["estimates"]["ips"]["value"] for section in found]
    assert values == pytest.approx([0.00455288, 0.00235963952, 0.00300862633], abs=5e-9)
    printed = run("evaluate", "--format", "obd")
    assert printed.exit_code == 0
    assert "0.004553" in printed.stdout


def test_what_a_column_needs_no_model_for_is_not_read(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the result depends on it; rows that ranked candidates stay known as such."""
    batch = next(iter(LogReader(shop / "logs")))
    table = pa.Table.from_batches([batch.table])
    lp = pa.array([(1.1 * row).tolist() for row in batch.log_propensities])
    file = tmp_path / "log.parquet"
    pq.write_table(table.append_column("lp1", lp), file)
    arguments = ["evaluate", file, "--column", "new=lp1"]
    read: list[set[str]] = []
    judge = propensities.judge

    def seen(batch: LogBatch, *rest: Any, **options: Any) -> Any:
        read.append(set(batch.table.schema.names))
        return judge(batch, *rest, **options)

    monkeypatch.setattr(reading, "judge", seen)
    found = loaded(*arguments)
    assert not read[0] & {"scores", "query", "log_norm", "latency_us", "retrieval", "reward_ts"}
    assert read[0] >= {"candidate_set_id", "reward_kind", "seed"}
    monkeypatch.setattr(cli, "_UNREAD", ())
    monkeypatch.setattr(cli, "_FOR_MODELS", ())
    assert loaded(*arguments) == found
    assert {"scores", "query"} <= read[1]
    monkeypatch.undo()
    model = ["--model", shop / "model"]
    for more in ([*model], [*model, "--policy", "uniform", "--no-audit"]):
        monkeypatch.setattr(reading, "judge", seen)
        loaded(*arguments, *more)
        assert {"scores", "query", "log_norm"} <= read[-1]
    j = table.schema.get_field_index("candidate_set_id")
    named = pa.array(["some"] * len(table), table.schema.field(j).type)
    pq.write_table(table.set_column(j, "candidate_set_id", named).append_column("lp1", lp), file)
    assert "uncovered_unknown" in loaded(*arguments)["policies"][0]["reasons"]


def published(path: Path, rows: int = 10_000, **more: object) -> Path:
    """A bundled log of campaign all as a file, without affinities, with more columns."""
    log = obd.log("all", "bts")
    columns: dict[str, Any] = {
        "timestamp": log.timestamp.astype(str).tolist(),
        "item_id": log.item_id,
        "position": log.position,
        "click": log.click,
        "propensity_score": log.propensity,
        **{f"user_feature_{j}": log.user_features[:, j].tolist() for j in range(4)},
        **more,
    }
    path.parent.mkdir(exist_ok=True)
    table = pa.table(columns).slice(0, rows)
    if path.suffix == ".csv":
        pacsv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_files_of_the_dataset(tmp_path: Path, form: str) -> None:
    """Uniform needs no model, and a column holds one log-propensity a row."""
    logs = np.full(10_000, -np.log(80))
    file = published(tmp_path / "bts" / f"all.{form}", same=logs, same_but_one=[*logs[1:], None])
    found = loaded(
        "evaluate", "--format", "obd", file, "--policy", "uniform", "--policy", "u=uniform",
        "--column", "same", "--column", "less=same_but_one", "--independent-rows",
    )  # fmt: skip
    uniform, labelled, same, less = found["policies"]
    assert [each["label"] for each in found["policies"]] == ["uniform", "u", "same", "less"]
    assert found["rows"] == 10_000
    assert found["set_aside"] == {"no_propensity": 1}
    assert uniform["estimates"] == labelled["estimates"] == less["estimates"]
    assert same["estimates"]["ips"]["value"] == pytest.approx(uniform["estimates"]["ips"]["value"])
    whole = loaded(
        "evaluate", "--format", "obd", file, "--policy", "uniform", "--independent-rows"
    )  # fmt: skip
    bundled = loaded("evaluate", "--format", "obd", "--independent-rows")[1]
    ours, theirs = (each["policies"][0]["estimates"] for each in (whole, bundled))
    for name in theirs:  # a file comes in several tables, which rounds sums differently
        assert ours[name]["value"] == pytest.approx(theirs[name]["value"], rel=1e-12)
        assert ours[name]["reasons"] == theirs[name]["reasons"]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_arrays_of_one_number_a_row_in_files_of_the_dataset(tmp_path: Path, form: str) -> None:
    file = published(tmp_path / f"bts_all.{form}", q=np.full(10_000, 0.25), w=np.full(10_000, 1.0))
    given = ["evaluate", "--format", "obd", file, "--policy", "uniform"]
    arrays = ["--array", "q_direct=q", "--array", "slate_weights=w"]
    found = loaded(*given, "--estimator", "dm", "--estimator", "pi", *arrays)
    estimates = found["policies"][0]["estimates"]
    assert estimates["dm"]["value"] == 0.25
    assert estimates["pi"]["value"] == pytest.approx(0.0042)


def test_policies_of_a_model_on_files_of_the_dataset(shop: Path, tmp_path: Path) -> None:
    """They are judged by the model: nothing is known of these users there."""
    file = published(tmp_path / "bts_all.csv", rows=50)
    found = loaded("evaluate", "--format", "obd", file, "--policy", f"uniform@{shop / 'model'}")
    assert found["set_aside"] == {"unknown_user": 50}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bts_all", ["--policy", "deterministic"], "without a model; possible are uniform"),
        (
            "bts_all",
            ["--policy", "plackett_luce:temperature=1"],
            "and a --column of log-propensities",
        ),
        ("bts_all", ["--policy", "best"], "expected [LABEL=]POLICY"),
        ("bts_all", ["--column", "nothing"], "no column named nothing; found p"),
        ("bts_all", ["--column", "position"], "columns: position is always read"),
        ("bts_all", ["--column", "new=p"], "p: request all-bts-0, place 1: a log-propensity must"),
        ("bts_all", ["--column", "p"], "got 0.25; of probabilities give the logarithms"),
        ("bts_all", ["--column", "propensity_score"], "of probabilities give the logarithms"),
        ("bts_all", ["--column", "item_ids"], "item_ids is a column of the schema itself"),
        ("bts_all", [], "name at least one --policy, --column or --also"),
        ("bts_men", ["--policy", "uniform"], "expected items 0 to 33 of the campaign; got"),
        ("bts_mine", ["--policy", "uniform"], "the number of items of its campaign is unknown"),
        ("nothing", ["--policy", "uniform"], "nothing.csv: neither a campaign (all, men) nor"),
    ],
)
def test_bad_input_with_files_of_the_dataset(
    tmp_path: Path, name: str, options: list[str], message: str
) -> None:
    file = tmp_path / f"{name}.csv"
    if name != "nothing":
        published(file, p=np.full(10_000, 0.25))
    assert message in refused("evaluate", "--format", "obd", file, *options)


def test_campaigns_are_not_mixed(tmp_path: Path) -> None:
    files = [published(tmp_path / f"bts_{name}.csv", rows=1) for name in ("all", "men")]
    assert "campaigns of 34 and 80 items" in refused(
        "evaluate", "--format", "obd", *files, "--policy", "uniform"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "LOGS: name a file, a directory or a glob"),
        (["evaluate", "{shop}/logs"], "name at least one --policy, --column or --also"),
        (["evaluate", "{shop}/logs", "--policy", "uniform"], "give its model: --model, or @MODEL"),
        (["evaluate", "{shop}/nothing", "--column", "x"], "nothing"),
        (["evaluate", "{shop}/logs", "--column", "lp1"], "no column named lp1"),
        (
            ["evaluate", "{shop}/logs", "--model", "{shop}/model", "--policy", "best"],
            "expected [LABEL=]POLICY",
        ),
        (
            ["evaluate", "{shop}/logs", "--model", "{shop}/model", "--policy", "uniform@{shop}"],
            "{shop}",
        ),
        (
            ["evaluate", "{shop}/logs", "--model", "{shop}/model", "--policy", "uniform",
             "--threshold", "ess=3"],
            "--threshold: expected NAME=VALUE",
        ),
        (
            ["evaluate", "{shop}/logs", "--model", "{shop}/model", "--policy",
             "a=plackett_luce:temperature=x0.8"],
            "give the temperature itself",
        ),
        (
            ["evaluate", "{shop}/logs", "--model", "{shop}/model", "--policy", "uniform",
             "--policy", "uniform"],
            "two of them are called 'uniform'",
        ),
        (
            ["evaluate", "{shop}/logs", "--model", "{shop}/model", "--policy", "uniform",
             "--estimator", "dm"],
            "dm of uniform: needs a reward model",
        ),
        *(
            (["evaluate", "{shop}/logs", "--column", "x", option, value], f"'{option}': {value}")
            for option, value in (
                ("--clip", "nan"), ("--clip", "inf"), ("--clip", "0.0"), ("--clip", "-1.0"),
                ("--level", "nan"), ("--level", "1.0"),
            )
        ),
        (
            ["evaluate", "{shop}/logs", "--model", "{shop}/model", "--no-audit",
             "--policy", "logging=uniform"],
            "one is called 'logging', which is the name of the reference",
        ),
        (["evaluate", "--format", "obd", "--column", "x"], "evaluates the bundled logs"),
        (["evaluate", "--format", "obd", "--array", "q_direct=x"], "evaluates the bundled logs"),
        (["audit", "{shop}/model/manifest.json", "--model", "{shop}/model"], "manifest.json"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(shop: Path, arguments: list[str], message: str) -> None:
    filled = [argument.format(shop=shop) for argument in arguments]
    assert message.format(shop=shop) in refused(*filled)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["empty", "text", "cut", "foreign", "other version"])
def test_files_that_are_no_logs(shop: Path, tmp_path: Path, kind: str) -> None:
    """Named, never a stack trace; alone they are refused, beside good ones reported."""
    good = next((shop / "logs").glob("*.parquet"))
    file = tmp_path / "log.parquet"
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("request_id,item\n1,2\n")
    elif kind == "cut":
        file.write_bytes(good.read_bytes()[:5000])
    elif kind == "foreign":
        pq.write_table(pa.table({"a": [1, 2]}), file)
    else:
        table = pq.read_table(good)
        changed = table.replace_schema_metadata({b"fastrank.schema_version": b"99"})
        pq.write_table(changed, file)
    policy = ["--model", shop / "model", "--policy", "uniform"]
    assert "log.parquet" in refused("evaluate", tmp_path, *policy)
    found = loaded("evaluate", tmp_path, shop / "logs", *policy)
    assert list(found["log"]["files_set_aside"]) == [str(file)]
    assert found["rows_used"] == 5000


def test_a_damaged_file_makes_the_log_malformed(shop: Path, tmp_path: Path) -> None:
    good = pq.read_table(next((shop / "logs").glob("*.parquet")))
    pq.write_table(good.slice(0, 1000), tmp_path / "a.parquet")
    damaged = tmp_path / "b.parquet"
    pq.write_table(good.slice(1000), damaged)
    column = pq.read_metadata(damaged).row_group(0).column(0)
    data = bytearray(damaged.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 8] = b"\xff" * 8
    damaged.write_bytes(data)
    policy = ["--policy", "a=plackett_luce:temperature=0.6"]
    model = ["--model", shop / "model"]
    found = loaded("evaluate", tmp_path, *model, *policy)
    assert found["policies"][0]["status"] == "malformed_log"
    printed = run("evaluate", tmp_path, *model, *policy).stdout
    assert "not read: " in printed
    assert "could not be read" in printed
    result = run("audit", tmp_path, *model)
    assert "The log agrees with the model." not in result.stdout
    assert "The readable files of the log agree with the model" in result.stdout
    assert "b.parquet" in "".join(result.stdout.split())  # whatever the width cuts


def test_what_a_join_could_not_read_makes_its_result_malformed(shop: Path, tmp_path: Path) -> None:
    table = pq.read_table(next((shop / "logs").glob("*.parquet")))
    for name in ("rewards", "reward_kind", "reward_ts"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.field(at), pa.nulls(len(table), table.field(at).type))
    (tmp_path / "logs").mkdir()
    pq.write_table(table, tmp_path / "logs" / "a.parquet")
    (tmp_path / "logs" / "b.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "clicks.csv").write_text("request_id,item_id,reward,ts\n")
    now = datetime.now(UTC).isoformat()
    window = ["--window", "0.000001s", "--as-of", now, "--kind", "positives"]
    out = tmp_path / "out"
    run("join", tmp_path / "logs", tmp_path / "clicks.csv", *window, "-o", out)
    found = loaded("evaluate", out, "--model", shop / "model", "--policy", "uniform")
    assert "unreadable_files" in found["policies"][0]["estimates"]["avg"]["reasons"]
    assert list(found["log"]["unreadable_files"]) == [str(tmp_path / "logs" / "b.parquet")]


@pytest.mark.slow
def test_rewards_that_a_join_dropped_reach_the_status(shop: Path, tmp_path: Path) -> None:
    """Clocks half a minute off: two fifths of the clicks are gone, and the rest looks sound."""
    table = pq.read_table(next((shop / "logs").glob("*.parquet"))).slice(0, 2500)
    rng = np.random.default_rng(5)
    clicks: dict[str, list[Any]] = {"request_id": [], "item_id": [], "reward": [], "ts": []}
    columns = (table.column(name).to_pylist() for name in ("request_id", "item_ids", "rewards"))
    # Two hours ago, so that windows are closed.
    served = [ts - 7_200_000_000 for ts in table.column("ts").cast(pa.int64()).to_pylist()]
    at = table.schema.get_field_index("ts")
    earlier = pa.array(served).cast(table.field(at).type)
    table = table.set_column(at, table.field(at), earlier)
    for request, items, rewards, ts in zip(*columns, served, strict=True):
        for item, value in zip(items, rewards, strict=True):
            if value:
                delay = int(1e6 * (rng.exponential(60.0) - 30.0))
                for name, each in zip(clicks, (request, item, value, ts + delay), strict=True):
                    clicks[name].append(each)
    for name in ("rewards", "reward_kind", "reward_ts"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.field(at), pa.nulls(len(table), table.field(at).type))
    times = pa.array(clicks["ts"]).cast(pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({**clicks, "ts": times}), tmp_path / "clicks.parquet")
    (tmp_path / "logs").mkdir()
    pq.write_table(table, tmp_path / "logs" / "a.parquet")
    window = ["--window", "1h", "--as-of", datetime.now(UTC).isoformat()]
    usual = [tmp_path / "logs", tmp_path / "clicks.parquet", *window, "--kind", "positives"]
    asked = ["--model", shop / "model", "--policy", "colder=plackett_luce:temperature=0.6"]
    assert run("join", *usual, "-o", tmp_path / "off").exit_code == 0
    found = loaded("evaluate", tmp_path / "off", *asked)
    assert 0.3 < found["log"]["rewards_dropped_share"] < 0.5
    assert found["policies"][0]["status"] == "malformed_log"
    assert found["policies"][0]["reasons"] == ["rewards_dropped"]
    assert found["logged"]["status"] == "malformed_log"
    page = tmp_path / "page.html"
    printed = " ".join(run("evaluate", tmp_path / "off", *asked, "--report", page).stdout.split())
    assert "many rewards could not be joined to their rankings, and are missing" in printed
    early = r"[\d,]+ of [\d,]+ rewards came before their ranking, .* --skew 30s"
    assert re.search(f"join: {early}", printed)
    assert re.search(f"<li>{early}</li>", page.read_text())
    lax = ["--threshold", "set_aside=0.5"]
    assert loaded("evaluate", tmp_path / "off", *asked, *lax)["policies"][0]["status"] == "ok"
    none = loaded("evaluate", tmp_path / "off", *asked, "--threshold", "set_aside=inf")
    assert none["policies"][0]["status"] == "ok"
    assert none["thresholds"]["set_aside"] is None  # JSON has no infinity
    # Joined as it proposes, nothing is against it, and nothing is said.
    assert run("join", *usual, "--skew", "30s", "-o", tmp_path / "on").exit_code == 0
    found = loaded("evaluate", tmp_path / "on", *asked)
    assert found["policies"][0]["status"] == "ok"
    printed = run("evaluate", tmp_path / "on", *asked, "--report", page).stdout
    assert "join:" not in printed
    assert "rewards came" not in page.read_text()
    # An account that is damaged, or lost, is a file that cannot be read.
    (tmp_path / "on" / "join.json").write_text("{")
    found = loaded("evaluate", tmp_path / "on", *asked)
    assert found["policies"][0]["reasons"] == ["unreadable_files"]
    (tmp_path / "on" / "join.json").unlink()
    found = loaded("evaluate", tmp_path / "on", *asked)
    assert found["policies"][0]["reasons"] == ["unreadable_files"]
    printed = run("evaluate", tmp_path / "on", *asked).stdout
    assert "join: what joining its rewards left out is not known" in " ".join(printed.split())


def test_an_audit_without_rows_says_that_nothing_was_checked(shop: Path, tmp_path: Path) -> None:
    good = pq.read_table(next((shop / "logs").glob("*.parquet")))
    empty, capture = tmp_path / "empty.parquet", tmp_path / "none.jsonl"
    pq.write_table(good.slice(0, 0), empty)
    capture.write_bytes(b"")
    log = next((shop / "logs").glob("*.parquet"))
    model = ["--model", shop / "model"]
    for given in (
        [empty],
        [capture, "--format", "data-capture"],
        [log, "--format", "data-capture"],
    ):
        result = run("audit", *given, *model)
        assert result.exit_code == 1
        assert "Nothing could be checked" in result.stdout
        assert "agrees" not in result.stdout
        printed = run("evaluate", *given, *model, "--policy", "uniform").stdout
        assert "othing could be checked" in printed
        assert "agrees" not in printed
    found = loaded("audit", empty, *model)
    assert (found["passed"], found["judged"]) == (False, False)


def test_a_sample_of_one_is_a_row(shop: Path) -> None:
    for sample in ("1", "2"):
        found = loaded("audit", shop / "logs", "--model", shop / "model", "--sample", sample)
        assert found["passed"]
        assert found["sampled"] >= 1


def test_malformed_rows_are_counted_and_reflected(shop: Path, tmp_path: Path) -> None:
    good = pq.read_table(next((shop / "logs").glob("*.parquet")))
    rows = good.to_pydict()
    for i in range(20):
        rows["log_propensities"][i] = [0.5, 0.5, 0.5]
        rows["log_propensity"][i] = 1.5
    pq.write_table(pa.Table.from_pydict(rows, schema=good.schema), tmp_path / "log.parquet")
    policy = ["--model", shop / "model", "--policy", "a=plackett_luce:temperature=0.6"]
    found = loaded("evaluate", tmp_path, *policy)
    assert found["log"]["set_aside"] == {"positive log-propensity": 20}
    assert found["policies"][0]["status"] == "malformed_log"
    printed = run("evaluate", tmp_path, *policy).stdout
    assert "20 malformed: positive log-propensity" in printed


@pytest.mark.slow
def test_rows_that_came_twice_are_said_and_change_nothing(shop: Path, tmp_path: Path) -> None:
    good = pq.read_table(next((shop / "logs").glob("*.parquet")))
    policy = ["--model", shop / "model", "--policy", "a=plackett_luce:temperature=0.6"]
    expected = loaded("evaluate", shop / "logs", *policy)
    pq.write_table(pa.concat_tables([good, good.slice(0, 20)]), tmp_path / "log.parquet")
    found = loaded("evaluate", tmp_path, *policy)
    assert found["policies"] == expected["policies"]
    assert found["log"]["set_aside"] == {}
    assert found["log"]["equal_duplicates"] == 20
    page = tmp_path / "page.html"
    said = run("evaluate", tmp_path / "log.parquet", *policy, "--report", page).stdout
    assert "20 identical duplicates, counted once" in " ".join(said.split())
    assert "came twice and say the same: counted once</th><td>20</td>" in page.read_text()
    audited = run("audit", tmp_path / "log.parquet", "--model", shop / "model").stdout
    assert "20 came twice" in " ".join(audited.split())


def test_an_empty_log_is_no_number(shop: Path, tmp_path: Path) -> None:
    good = pq.read_table(next((shop / "logs").glob("*.parquet")))
    pq.write_table(good.slice(0, 0), tmp_path / "log.parquet")
    found = loaded(
        "evaluate", tmp_path, "--model", shop / "model", "--policy", "uniform"
    )  # fmt: skip
    assert found["policies"][0]["status"] == "unsupported"
    assert found["policies"][0]["estimates"]["ips"]["value"] is None
    assert run("audit", tmp_path, "--model", shop / "model").exit_code == 1


def test_help_names_what_is_there() -> None:
    assert "evaluate" in run("--help").stdout
    text = run("evaluate", "--help").stdout
    assert "snrips" in text
    assert "[LABEL=]POLICY" in text


def test_nothing_is_written_where_the_report_cannot_be(shop: Path, tmp_path: Path) -> None:
    where = tmp_path / "no" / "folder" / "report.html"
    message = refused(
        "evaluate", shop / "logs", "--model", shop / "model", "--policy", "uniform",
        "--report", where,
    )  # fmt: skip
    assert "--report" in message
    assert not where.parent.exists()


def test_weights_of_numpy_are_not_in_the_json(shop: Path) -> None:
    text = run(
        "evaluate", shop / "logs", "--model", shop / "model", "--policy", "deterministic", "--json"
    ).stdout
    assert "NaN" not in text
    assert "Infinity" not in text
    assert np.isfinite(json.loads(text)["policies"][0]["uncovered"])


def visits(path: Path, *, alike: bool) -> Path:
    """4,000 rows of 400 people, who click as they like; or each as all do."""
    rng = np.random.default_rng(5)
    n, users = 4000, 400
    user, arm = rng.integers(0, users, n), rng.integers(0, 10, n)
    own = np.ones(users) if alike else rng.lognormal(-0.5, 1.0, users)
    columns = {
        "who": [f"u{each}" for each in user.tolist()],
        "what": arm,
        "p": np.full(n, 0.1),
        "click": (rng.random(n) < 0.1 * own[user]).astype(float),
        "p_new": (arm + 1.0) / 55.0,
    }
    path.parent.mkdir(exist_ok=True)
    pacsv.write_csv(pa.table(columns), path)
    return path


def test_rows_that_are_not_independent_are_said_to_be_none(tmp_path: Path) -> None:
    """Their errors by users are some 1.7 times as large, so that 95 % intervals hold in 75 %."""
    usual = [
        *("--item", "what", "--propensity", "p", "--reward", "click", "--user", "who"),
        *("--column", "new=p_new"),
    ]
    for alike in (True, False):
        log = visits(tmp_path / str(alike) / "log.csv", alike=alike)
        asked = ["evaluate", "--format", "table", log, *usual, "--independent-rows"]
        page = tmp_path / "page.html"
        printed = " ".join(run(*asked, "--report", page).stdout.split())
        effect = loaded(*asked)["user_effect"]
        by_user = loaded(*asked[:-1])
        assert by_user["user_effect"] is None
        assert (effect is None) == alike
        said = "intervals are too narrow, by a factor of about"
        assert (said in printed) == (said in page.read_text()) == (not alike)
        if effect is not None:
            assert effect == pytest.approx(by_user["logged"]["design_effect"])
            assert 1.3 < effect**0.5 < 2.2
