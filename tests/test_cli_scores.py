"""Scores on the command line: columns of files, expressions, parameters, functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from commands import refused, run

import fastrank as fr
from fastrank.eventlog import LogWriter

N = 60
DECAY = "dot + w * exp(-age / 30)"


def columns() -> dict[str, Any]:
    rng = np.random.default_rng(4)
    return {
        "age": rng.exponential(60, N).astype(np.float32).tolist(),
        "new": (rng.random(N) < 0.4).tolist(),
        "seller": [None if i % 7 == 0 else f"s{i % 3}" for i in range(N)],
        "genres": [["drama"] * (i % 2) + ["é"] * (i % 3 == 0) for i in range(N)],
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((N, 4)).astype(np.float32)
    ids = [f"i{j}" for j in range(N)]
    pq.write_table(pa.table({"id": ids, "vector": list(vectors)}), tmp_path / "items.parquet")
    users = rng.standard_normal((2, 4)).astype(np.float32)
    pq.write_table(
        pa.table({"id": ["ann", "bob"], "vector": list(users)}), tmp_path / "users.parquet"
    )
    order = rng.permutation(N)  # of its own, and one that nobody has
    shop = {name: [column[j] for j in order] for name, column in columns().items()}
    shop = {name: [*column, column[0]] for name, column in shop.items()}
    shop["id"] = [*(ids[j] for j in order), "unheard of"]
    pq.write_table(pa.table(shop), tmp_path / "shop.parquet")
    return tmp_path


def build(files: Path, *options: object) -> tuple[Any, ...]:
    sides = ("--items", files / "items.parquet", "--users", files / "users.parquet")
    return ("build", *sides, "-o", files / "m", *options)


def ranked(files: Path, *options: object) -> dict[str, Any]:
    asked = ("rank", files / "m", "--user", "ann", "--inference-type", "deterministic", "--json")
    result = run(*asked, *options)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_columns_follow_the_ids_of_their_rows(files: Path) -> None:
    result = run(*build(files, "--features", files / "shop.parquet"))
    assert result.exit_code == 0, result.output
    assert "age (number), genres (categories), new (boolean), seller (category)" in result.stdout
    opened = fr.Model.open(files / "m", verify=True).catalog
    right = opened.with_features(columns())
    assert opened.features_version == right.features_version
    for text in ("age", "dot if 'é' in genres and new else -9", "1 if seller == 's1' else 0"):
        query = np.ones(4)
        np.testing.assert_array_equal(
            opened.scores(query, score=text), right.scores(query, score=text)
        )


def test_a_score_of_its_own_and_another_for_a_call(files: Path) -> None:
    options = ("--features", files / "shop.parquet", "--score", DECAY, "--param", "w=0.5")
    result = run(*build(files, *options, "--tables", "plackett_luce:temperature=0.5"))
    assert result.exit_code == 0, result.output
    assert f"Score: {DECAY}, w = 0.5" in result.stdout
    model = fr.Model.open(files / "m")
    assert ranked(files)["score"]["params"] == {"w": 0.5}
    cases: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        ((), {}),
        (("--param", "w=2"), {"params": {"w": 2.0}}),
        (("--score", "dot"), {"score": "dot"}),
        (
            (
                *("--score", "dot if new == on and seller != s else 0"),
                *("--param", "on=true", "--param", "s=s=1"),
            ),
            {
                "score": "dot if new == on and seller != s else 0",
                "params": {"on": True, "s": "s=1"},
            },
        ),
    ]
    for options_of_call, call in cases:
        expected = model.recommend("ann", 10, policy=fr.Deterministic(), **call)
        found = ranked(files, *options_of_call)
        assert found["item_ids"] == expected.item_ids.tolist()
        assert found["features_version"] == expected.features_version
    shown = run("rank", files / "m", "--user", "ann", "--inference-type", "uniform", "-k", 2)
    assert f"{DECAY}, w = 0.5" in " ".join(shown.stdout.split())


def test_columns_by_row(files: Path) -> None:
    arrays = {"age": np.arange(float(N)), "hot": np.arange(N) % 2 == 0}
    np.savez(files / "shop.npz", **arrays)
    columns_of = ("--features", files / "shop.npz")
    said = refused(*build(files, *columns_of))
    assert (
        "shop.npz: no column named id or ids; found age, hot."
        " Name the column of ids by --feature-id-column" in said
    )
    assert run(*build(files, *columns_of, "--features-by-row")).exit_code == 0
    right = fr.Model.open(files / "m").catalog.with_features(arrays)
    assert fr.Model.open(files / "m").catalog.features_version == right.features_version


def test_columns_of_ids_have_the_name_that_those_of_items_have(files: Path) -> None:
    for name in ("items", "shop"):
        table = pq.read_table(files / f"{name}.parquet")
        names = ["sku" if each == "id" else each for each in table.column_names]
        pq.write_table(table.rename_columns(names), files / f"{name}.parquet")
    result = run(*build(files, "--features", files / "shop.parquet", "--id-column", "sku"))
    assert result.exit_code == 0, result.output
    catalog = fr.Model.open(files / "m").catalog
    assert catalog.features_version == catalog.with_features(columns()).features_version


def test_a_text_that_looks_like_a_number_is_quoted(files: Path) -> None:
    path = files / "shop.parquet"
    table = pq.read_table(path)
    seller = pa.array([str(i % 3) for i in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("seller"), "seller", seller), path)
    score = ("--score", "dot if seller == s else -9", "--param")
    assert "the column 'seller' is compared with a number" in refused(
        *build(files, "--features", path, *score, "s=2")
    )
    assert run(*build(files, "--features", path, *score, 's="2"')).exit_code == 0
    found = ranked(files, "--param", 's="1"')
    assert found["score"]["params"] == {"s": "1"}
    assert ranked(files, "--param", 's="x')["score"]["params"] == {"s": '"x'}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--score", "dot +"), "--score: 'dot +'"),
        (("--score", "dot + price"), "--score: 'dot + price', column 7: 'price' is neither"),
        (("--param", "w=1"), "--param: needs --score"),
        (("--score", "w * dot", "--param", "w"), "--param: expected NAME=VALUE, got 'w'"),
        (
            ("--score", "dot", "--param", "w=1"),
            "--param: 'w' is not used: the score is the dot product alone",
        ),
        (("--score", "w * dot", "--param", "w=1", "--param", "w=2"), "w is given twice"),
        (("--score", "w * dot", "--param", "w=inf"), "--param: must be finite"),
        (("--score", "2 * dot", "--index", "ivf"), "an index finds items by dot products"),
        (("--feature-id-column", "id"), "--feature-id-column: needs --features"),
        (("--features-by-row",), "--features-by-row: needs --features"),
        (("--score-function", "os:path"), "--score-function: needs --score NAME"),
        (
            ("--score", "1 / (dot - dot)"),
            "--score: '1 / (dot - dot)' gives the item 'i0' more than 1e38",
        ),
    ],
)
def test_what_is_no_score_is_refused(files: Path, options: tuple[str, ...], words: str) -> None:
    assert words in refused(*build(files, *options))
    assert not (files / "m").exists()


def test_files_that_are_no_columns_of_these_items(files: Path) -> None:
    rows = pq.read_table(files / "shop.parquet")
    cases = [
        (rows.slice(1), "has no row of the item"),
        (pa.concat_tables([rows, rows.slice(2, 1)]), "has two rows of the item"),
        (rows.drop_columns(["id"]), "no column named id or ids; found age, new"),
        (rows.append_column("at", pa.array([None] * 61, pa.timestamp("us"))), "'at'"),
    ]
    for table, words in cases:
        pq.write_table(table, files / "other.parquet")
        said = refused(*build(files, "--features", files / "other.parquet"))
        assert "--features: " in said
        assert words in said
    said = refused(
        *build(files, "--features", files / "shop.parquet", "--feature-id-column", "sku")
    )
    assert "no column named sku" in said


def test_functions_by_name_for_every_command_that_ranks(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    (files / "own_shop.py").write_text(
        "import fastrank as fr\n\n\n"
        "@fr.score_function\n"
        "def recent(dot, age, w=1.0):\n"
        "    return dot - w * age / 100\n"
    )
    monkeypatch.chdir(files)
    monkeypatch.setenv("FASTRANK_CACHE_DIR", str(files / "cache"))
    monkeypatch.syspath_prepend(str(files))
    import own_shop  # type: ignore[import-not-found]  # made above

    named = ("--score-function", "own_shop:recent")
    score = ("--features", files / "shop.parquet", "--score", "recent")
    tables = ("--tables", "plackett_luce:temperature=0.5")
    assert "nor a known score function" in refused(*build(files, *score))
    assert run(*build(files, *score, "--param", "w=2", *named, *tables)).exit_code == 0
    model = fr.Model.open(files / "m", functions=[own_shop.recent])
    assert model.catalog.score is not None
    assert (model.catalog.score.name, model.catalog.score.params) == ("recent", {"w": 2.0})
    assert model.table_temperature == 0.5
    with LogWriter(files / "log") as log:
        for seed in range(150):
            ranking = model.recommend("ann", 3, policy=fr.PlackettLuce(0.5), seed=seed)
            log.append(ranking, user_id="ann", rewards=[1.0, 0.0, 0.0])
    logs = (files / "log", "--model", files / "m")
    for command in (
        ("rank", files / "m", "--user", "ann", "--inference-type", "deterministic"),
        ("audit", *logs),
        ("evaluate", *logs, "--policy", "deterministic"),
        ("plan", files / "m", "--users", 2),
        ("verify", files / "m", "--draws", 1000),
    ):
        without = run(*command)
        assert without.exit_code in (1, 2)
        said = " ".join(without.output.split())
        assert "its score is the function 'own_shop:recent': pass it" in said
        result = run(*command, *named)
        assert result.exit_code == 0, (command, result.output)
    assert ranked(files, *named, "--param", "w=3")["score"]["name"] == "recent"
    said = refused("audit", *logs, "--score-function", "own_shop:missing")
    assert "--score-function: 'own_shop:missing': expected module:name" in said


def test_an_evaluation_says_which_scores_rows_were_logged_by(files: Path) -> None:
    assert run(*build(files, "--features", files / "shop.parquet")).exit_code == 0
    model = fr.Model.open(files / "m")
    with LogWriter(files / "log") as log:
        for seed in range(200):
            score = "dot - age / 100" if seed % 2 else "dot"
            ranking = model.recommend("ann", 3, policy=fr.PlackettLuce(1), seed=seed, score=score)
            log.append(ranking, user_id="ann", rewards=[1.0, 0.0, 0.0])
    result = run(
        "evaluate", files / "log", "--model", files / "m", "--policy", "plackett_luce:temperature=2"
    )
    assert result.exit_code == 0, result.output
    version = model.catalog.features_version
    assert version is not None
    said = " ".join(result.stdout.split())
    assert "100 rows (50.0%) by plackett_luce temperature 1, score dot - age / 100 " in said
    assert f", features {version[:12]}" in said
