"""The commands as a user meets them: output, errors in one line, exit codes."""

from __future__ import annotations

import builtins
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from commands import process, refused, run

import fastrank as fr
from fastrank import cli, packing
from fastrank.cli.terminal import chance, percent
from fastrank.policies import NAMES

ANIME = Path(__file__).resolve().parents[2] / "shared" / "data" / "anime"
GUMBEL = "stochastic_gumbel_softmax_trick"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small item and user vectors in several formats."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    items = rng.standard_normal((40, 6)).astype(np.float32)
    titles = np.array([f"Title [{i}]" for i in range(40)])
    np.save(folder / "items.npy", items)
    np.save(folder / "item_ids.npy", np.arange(100, 140))
    np.savez(folder / "items.npz", ids=np.arange(100, 140), vectors=items, titles=titles)
    np.savez(folder / "text.npz", ids=np.array([f"i{i}" for i in range(40)]), vectors=items)
    np.save(folder / "users.npy", rng.standard_normal((7, 6)).astype(np.float32))
    np.save(folder / "query.npy", items[3])
    return folder


@pytest.fixture(scope="module")
def model(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a policy of its own."""
    path = tmp_path_factory.mktemp("model") / "m"
    result = run(
        "build", "--items", vectors / "items.npz", "--users", vectors / "users.npy", "-o", path,
        "--overlap", "none",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return path


class TestHelp:
    @pytest.mark.parametrize("command", ["build", "rank", "demo", "verify", "plan"])
    def test_each_command_has_an_example(self, command: str) -> None:
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "Example" in result.stdout
        assert f"fastrank {command}" in result.stdout

    def test_group_lists_commands_and_exit_codes(self) -> None:
        result = run("--help")
        assert result.exit_code == 0
        for command in ("build", "rank", "demo", "verify", "plan"):
            assert command in result.stdout
        assert "Exit codes" in result.stdout

    def test_version(self) -> None:
        result = run("--version")
        assert result.exit_code == 0
        assert "fastrank" in result.stdout

    def test_unknown_command_and_no_command(self) -> None:
        assert "No such command 'rnak'" in refused("rnak")


class TestBuild:
    def test_model_holds_what_the_files_held(self, model: Path) -> None:
        opened = fr.Model.open(model, verify=True)
        assert opened.catalog.item_ids.tolist() == list(range(100, 140))
        assert opened.user_ids.tolist() == list(range(7))
        assert opened.titles([103]) == ["Title [3]"]

    def test_npy_with_ids(self, vectors: Path, tmp_path: Path) -> None:
        result = run(
            "build", "--items", vectors / "items.npy", "--item-ids", vectors / "item_ids.npy",
            "--users", vectors / "users.npy", "-o", tmp_path / "m",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "40 items, 7 users, 6 dimensions" in result.stdout
        assert fr.Model.open(tmp_path / "m").catalog.item_ids[0] == 100

    def test_storage(self, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["build", "--items", vectors / "items.npz", "--users", vectors / "users.npy"]
        result = run(*arguments, "--storage", "int8", "-o", tmp_path / "small")
        assert "6 dimensions, float32, version" in result.stdout
        assert "Stored as float32: int8 needs at least 16,384 items." in result.stderr
        monkeypatch.setattr(packing, "CODED_FROM", 0)
        for storage in ("float32", "int8"):
            result = run(*arguments, "--storage", storage, "-o", tmp_path / storage)
            assert result.exit_code == 0, result.output
            assert f"6 dimensions, {storage}, version" in result.stdout
            assert "Kept as" not in result.stderr
        plain, quantised = (fr.Model.open(tmp_path / name) for name in ("float32", "int8"))
        assert "codes" in quantised.catalog._arrays
        query = plain.user_vector(3)
        assert quantised.catalog.scores(query).tobytes() == plain.catalog.scores(query).tobytes()
        assert "int4" in refused(*arguments, "--storage", "int4", "-o", tmp_path / "m")
        assert "--storage [float32|int8]" in run("build", "--help").stdout

    def test_parquet(self, vectors: Path, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        items = np.load(vectors / "items.npy")
        table = {
            "sku": [f"s{i}" for i in range(40)],
            "emb": pa.array(items.tolist(), pa.list_(pa.float32())),
            "prior": np.linspace(0, 1, 40),
            "name": [f"N{i}" for i in range(40)],
        }
        pq.write_table(pa.table(table), tmp_path / "items.parquet")
        users = {"who": ["ann", "bob"], "emb": table["emb"][:2]}
        pq.write_table(pa.table(users), tmp_path / "users.parquet")
        result = run(
            "build", "--items", tmp_path / "items.parquet", "--id-column", "sku",
            "--vector-column", "emb", "--bias-column", "prior", "--title-column", "name",
            "--prior-column", "prior",
            "--users", tmp_path / "users.parquet", "--user-id-column", "who",
            "--user-vector-column", "emb", "-o", tmp_path / "m",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        model = fr.Model.open(tmp_path / "m", verify=True)
        assert model.user_ids.tolist() == ["ann", "bob"]
        assert model.catalog._rows is not None
        assert model.catalog.item_ids.tolist() == table["sku"]
        expected = items @ items[1] + np.linspace(0, 1, 40)
        np.testing.assert_allclose(
            model.catalog.scores(model.user_vector("bob")), expected, rtol=1e-5, atol=1e-5
        )
        assert model.titles(["s7"]) == ["N7"]

    def test_all_missing_columns_are_named_at_once(self, vectors: Path, tmp_path: Path) -> None:
        """Of all files: what is named one by one takes as many runs."""
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        for name in ("items", "users", "seen"):
            pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / f"{name}.parquet")
        line = refused(
            "build", "--items", tmp_path / "items.parquet", "--title-column", "name",
            "--users", tmp_path / "users.parquet", "--user-vector-column", "emb",
            "--seen", tmp_path / "seen.parquet", "-o", tmp_path / "m",
        )  # fmt: skip
        items, users, seen = line.removeprefix("fastrank: ").split("; and ")
        assert items == (
            f"{tmp_path / 'items.parquet'}: no column named id; no column named name; no column"
            " named vector and no columns v0, v1, ...; found a, b"
        )
        assert users == (
            f"{tmp_path / 'users.parquet'}: no column named id; no column named emb; found a, b"
        )
        assert seen.strip() == (
            f"--seen: {tmp_path / 'seen.parquet'}: no column named user; no column named item;"
            " found a, b"
        )
        beside = ["--item-meta", tmp_path / "items.parquet", "--bias-column", "x"]
        line = refused(
            "build", "--items", vectors / "items.npy", *beside, "--users", vectors / "users.npy",
            "-o", tmp_path / "m",
        )  # fmt: skip
        assert "items.parquet: no column named id; no column named x; found a, b" in line

    @pytest.mark.parametrize(
        ("users", "options", "found"),
        [
            ({"sku": ["ann", "bob"]}, ["--id-column", "sku"], ["ann", "bob"]),
            ({"id": ["ann", "bob"]}, ["--id-column", "sku"], ["ann", "bob"]),
            (
                {"sku": [1, 2], "who": ["ann", "bob"], "id": [3, 4]},
                ["--id-column", "sku", "--user-id-column", "who"],
                ["ann", "bob"],
            ),
            ({"sku": [1, 2], "id": [3, 4]}, ["--id-column", "sku"], "columns id and sku"),
            ({"who": [1, 2]}, ["--id-column", "sku"], "no column named id or sku; found who, emb"),
        ],
        ids=str,
    )
    def test_the_id_column_is_of_users_too(
        self, users: dict[str, Any], options: list[str], found: Any, tmp_path: Path
    ) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        emb = pa.array([[1.0, 0.0], [0.0, 1.0]])
        pq.write_table(pa.table({"sku": ["a", "b"], "emb": emb}), tmp_path / "i.parquet")
        pq.write_table(pa.table({**users, "emb": emb}), tmp_path / "u.parquet")
        arguments = [
            "build", "--items", tmp_path / "i.parquet", "--vector-column", "emb", "--overlap",
            "none", "--users", tmp_path / "u.parquet", "--user-vector-column", "emb",
            "-o", tmp_path / "m", *options,
        ]  # fmt: skip
        if isinstance(found, str):
            assert f"u.parquet: {'it has ' * ('and' in found)}{found}" in refused(*arguments)
            return
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        model = fr.Model.open(tmp_path / "m")
        assert model.catalog.item_ids.tolist() == ["a", "b"]
        assert model.user_ids.tolist() == found

    def test_the_id_column_is_of_users_where_items_have_none(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        np.save(tmp_path / "i.npy", np.eye(2))
        table = {"who": ["ann", "bob"], "vector": [[1.0, 0.0], [0.0, 1.0]]}
        pq.write_table(pa.table(table), tmp_path / "u.parquet")
        arguments = [
            "build", "--items", tmp_path / "i.npy", "--overlap", "none",
            "--users", tmp_path / "u.parquet", "-o", tmp_path / "m", "--id-column",
        ]  # fmt: skip
        assert "u.parquet: no column named x; found who" in refused(*arguments, "x")
        result = run(*arguments, "who")
        assert result.exit_code == 0, result.output
        assert fr.Model.open(tmp_path / "m").user_ids.tolist() == ["ann", "bob"]

    def test_a_prior_is_honoured_or_refused(self, vectors: Path, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        items, prior = np.load(vectors / "items.npy"), np.linspace(0, 1, 40)
        np.savez(tmp_path / "items.npz", vectors=items, prior=prior)
        table = pa.table({"id": np.arange(40), "seen": prior, "tags": [["a"]] * 40})
        pq.write_table(table, tmp_path / "meta.parquet")
        users = ["--users", vectors / "users.npy", "-o"]
        of_array = ["build", "--items", tmp_path / "items.npz", *users]
        of_file = ["build", "--items", vectors / "items.npy", *users]
        beside = ["--item-meta", tmp_path / "meta.parquet"]
        expected = fr.Catalog(np.arange(40), items, prior=prior).version
        for name, arguments in {
            "array": [*of_array, tmp_path / "array"],
            "column": [*of_file, tmp_path / "column", *beside, "--prior-column", "seen"],
        }.items():
            result = run(*arguments)
            assert result.exit_code == 0, result.output
            assert fr.Model.open(tmp_path / name).catalog.version == expected
        out = tmp_path / "m"
        for name in ("seen", ""):
            line = refused(*of_array, out, "--prior-column", name)
            assert f"items.npz: no prior column '{name}'" in line
            line = refused(*of_file, out, "--prior-column", name)
            assert f"items.npy: no prior column '{name}'" in line
        line = refused(*of_file, out, *beside, "--prior-column", "")
        assert "meta.parquet: no column named ''; found id, seen, tags" in line
        line = refused(*of_file, out, *beside, "--prior-column", "tags")
        assert "meta.parquet: tags: expected numbers, got list" in line
        assert not out.exists()

    def test_existing_output_is_kept_unless_told(self, vectors: Path, tmp_path: Path) -> None:
        arguments = [
            "build", "--items", vectors / "items.npz", "--users", vectors / "users.npy",
            "-o", tmp_path / "m",
        ]  # fmt: skip
        assert run(*arguments).exit_code == 0
        assert "--replace" in refused(*arguments)
        assert run(*arguments, "--replace").exit_code == 0

    def test_a_folder_of_something_else_is_never_replaced(
        self, vectors: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "mine.txt").write_text("precious")
        line = refused(
            "build", "--items", vectors / "items.npz", "--users", vectors / "users.npy",
            "-o", tmp_path, "--replace",
        )  # fmt: skip
        assert "other files, such as mine.txt" in line
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize(
        ("items", "words"),
        [
            ({"vectors": np.array([[1.0, 2.0], [3.0, np.nan]])}, ["bad.npz", "row 1", "nan"]),
            (
                {"ids": np.array([1, 2, 1]), "vectors": np.ones((3, 6))},
                ["bad.npz", "rows 0 and 2", "1"],
            ),
            ({"ids": np.array([1.5]), "vectors": np.ones((1, 6))}, ["bad.npz", "float64"]),
            ({"vectors": np.ones((2, 6), bool)}, ["bad.npz", "bool"]),
            ({"vectors": np.ones((2, 5))}, ["users.npy", "5", "6"]),
            (
                {"vectors": np.ones((2, 6)), "bias": np.array([0.0, np.inf])},
                ["bad.npz", "bias", "1", "inf"],
            ),
        ],
    )
    def test_bad_rows_are_named_and_nothing_is_written(
        self, vectors: Path, tmp_path: Path, items: dict[str, Any], words: list[str]
    ) -> None:
        np.savez(tmp_path / "bad.npz", **items)
        line = refused(
            "build", "--items", tmp_path / "bad.npz", "--users", vectors / "users.npy",
            "-o", tmp_path / "m",
        )  # fmt: skip
        for word in words:
            assert word in line
        assert not (tmp_path / "m").exists()

    def test_missing_file_and_missing_option(self, vectors: Path, tmp_path: Path) -> None:
        line = refused("build", "--items", tmp_path / "no.npy", "--users", vectors / "users.npy")
        assert "no.npy" in line
        line = refused("build", "--items", vectors / "items.npy", "-o", tmp_path / "m")
        assert "--users" in line


class TestRank:
    @pytest.mark.parametrize("name", list(fr.INFERENCE_TYPES))
    def test_every_inference_type_prints_a_table(self, model: Path, name: str) -> None:
        result = run("rank", model, "--user", 3, "-k", 4, "--inference-type", name, "--seed", 5)
        assert result.exit_code == 0, result.output
        for word in ("place", "Title [", "propensity", "log-propensity", "seed", "latency", "40"):
            assert word in result.stdout
        assert fr.Model.open(model).catalog.version in result.stdout

    def test_json_is_the_ranking(self, model: Path) -> None:
        result = run(
            "rank", model, "--user", 3, "-k", 4, "--inference-type", GUMBEL,
            "--temperature", 0.5, "--seed", 2**64 - 1, "--exclude", "100,101", "--exclude", 102,
            "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        opened = fr.Model.open(model)
        ranking = opened.recommend(
            3, k=4, policy=fr.PlackettLuce(0.5), seed=2**64 - 1, exclude=[100, 101, 102]
        )
        assert record["item_ids"] == ranking.item_ids.tolist()
        assert record["titles"] == [f"Title [{i - 100}]" for i in record["item_ids"]]
        assert record["scores"] == pytest.approx(ranking.scores.tolist())
        assert record["log_propensities"] == ranking.log_propensities.tolist()
        assert record["propensities"] == pytest.approx(np.exp(ranking.log_propensities).tolist())
        assert record["log_propensity"] == ranking.log_propensity
        assert record["log_norm"] == ranking.log_norm
        assert record["seed"] == 2**64 - 1
        assert record["n_eligible"] == record["n_scored"] == 37
        assert record["made_by"] == "pass"
        assert record["policy"] == {"inference_type": GUMBEL, "params": {"temperature": 0.5}}
        assert record["catalog_version"] == ranking.catalog_version
        assert record["propensity_kind"] == "exact"
        assert record["log_norm_error"] == 0
        assert record["user"] == 3
        assert record["latency_us"] > 0

    def test_a_seed_is_drawn_and_repeats_the_ranking(self, model: Path) -> None:
        arguments = ["rank", model, "--user", 0, "--inference-type", GUMBEL, "--json"]
        first = json.loads(run(*arguments).stdout)
        again = json.loads(run(*arguments, "--seed", first["seed"]).stdout)
        for field in ("item_ids", "log_propensities", "seed", "policy"):
            assert first[field] == again[field]

    def test_temperature_is_chosen_when_not_given(self, model: Path) -> None:
        result = run("rank", model, "--user", 0, "--inference-type", GUMBEL)
        assert "chosen" in result.stdout
        result = run("rank", model, "--user", 0, "--inference-type", GUMBEL, "--temperature", 1)
        assert "chosen" not in result.stdout

    def test_allow_ignores_repeats_and_unknown_ids(self, model: Path) -> None:
        arguments = ["rank", model, "--user", 0, "--inference-type", "uniform", "--json"]
        record = json.loads(run(*arguments, "--allow", "105, 107,105,999").stdout)
        assert sorted(record["item_ids"]) == [105, 107]

    def test_query_instead_of_a_user(self, vectors: Path, model: Path) -> None:
        result = run(
            "rank", model, "--query", vectors / "query.npy", "--inference-type", "deterministic",
            "--json",
        )  # fmt: skip
        items = np.load(vectors / "items.npy")
        best = 100 + int(np.argmax(items @ items[3]))
        assert json.loads(result.stdout)["item_ids"][0] == best

    def test_catalog_without_users(self, vectors: Path, tmp_path: Path) -> None:
        with np.load(vectors / "text.npz") as npz:
            fr.Catalog(npz["ids"], npz["vectors"]).save(tmp_path / "c")
        result = run(
            "rank", tmp_path / "c", "--query", vectors / "query.npy",
            "--inference-type", "uniform", "--exclude", "i1,i2", "--json",
        )  # fmt: skip
        assert json.loads(result.stdout)["n_eligible"] == 38
        line = refused("rank", tmp_path / "c", "--user", "i1", "--inference-type", "uniform")
        assert "no users" in line

    def test_a_policy_is_said_as_everywhere(self, model: Path) -> None:
        rank = ["rank", model, "--user", 3, "--seed", 1, "--json"]
        said = (
            ["--policy", "plackett_luce:temperature=0.5,head=2"],
            ["--policy", "plackett_luce:head=2", "--temperature", 0.5],
            ["--inference-type", GUMBEL, "--temperature", 0.5, "--head", 2],
        )
        found = [json.loads(run(*rank, *each).stdout) for each in said]
        assert found[0]["policy"]["inference_type"] == GUMBEL
        assert found[0]["policy"]["params"] == {"temperature": 0.5, "head": 2}
        for each in found:
            assert {**each, "latency_us": 0} == {**found[0], "latency_us": 0}

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (
                ["--user", "3", "--policy", "softmax"],
                ["--policy", *(row.short for row in NAMES.values())],
            ),
            (["--user", "3", "--inference-type", "placket_luce"], ["(nearest: plackett_luce)"]),
            (
                ["--user", "3", "--policy", "plackett_luce:temprature=1"],
                ["temprature: ", "(nearest: temperature)"],
            ),
            (
                ["--user", "3", "--policy", "flat_tail:m=2", "--m", "3"],
                ["--m: --policy gives it already"],
            ),
            (["--user", "3"], ["--policy"]),
            (["--inference-type", "uniform"], ["either --user or --query"]),
            (["--user", "99", "--inference-type", "uniform"], ["99"]),
            (["--user", "", "--inference-type", "uniform"], ["--user", "integers", "''"]),
            (["--user", "bob", "--inference-type", "uniform"], ["--user", "integers", "bob"]),
            (
                ["--user", "3", "--inference-type", "uniform", "--temperature", "1"],
                ["temperature", "uniform takes head"],
            ),
            (["--user", "3", "--inference-type", GUMBEL, "--temperature", "0"], ["temperature"]),
            (["--user", "3", "--inference-type", GUMBEL, "--temperature", "nan"], ["temperature"]),
            (
                ["--user", "3", "--inference-type", "stochastic_epsilon_greedy", "--epsilon", "2"],
                ["epsilon", "2"],
            ),
            (["--user", "3", "--inference-type", "uniform", "-k", "0"], ["-k", "0"]),
            (["--user", "3", "--inference-type", "uniform", "--seed", "-1"], ["--seed", "-1"]),
            (
                ["--user", "3", "--inference-type", "uniform", "--exclude", "x"],
                ["--exclude", "integers", "x"],
            ),
        ],
    )
    def test_bad_input(self, model: Path, arguments: list[str], words: Sequence[str]) -> None:
        line = refused("rank", model, *arguments)
        for word in words:
            assert word in line

    def test_bad_query_and_bad_model(self, vectors: Path, model: Path, tmp_path: Path) -> None:
        uniform = ["--inference-type", "uniform"]
        np.save(tmp_path / "short.npy", np.ones(5))
        assert "query" in refused("rank", model, "--query", tmp_path / "short.npy", *uniform)
        (tmp_path / "text.npy").write_text("no")
        assert "text.npy" in refused("rank", model, "--query", tmp_path / "text.npy", *uniform)
        assert "manifest" in refused("rank", tmp_path, "--user", 3, *uniform)
        assert "does not exist" in refused("rank", tmp_path / "no", "--user", 3, *uniform)


class TestPercent:
    @pytest.mark.parametrize(
        ("probability", "text"),
        [
            (1.0, "100.0 %"),
            (0.1234, "12.3 %"),
            (0.0123, "1.2 %"),
            (2e-5, "0.002 %"),
            (3.1e-7, "3.1e-7"),
            (0.0, "0"),
        ],
    )
    def test_reads_well(self, probability: float, text: str) -> None:
        assert percent(math.log(probability) if probability else -math.inf) == text

    def test_below_the_range_of_floats(self) -> None:
        assert percent(-1000.0) == "5.1e-435"
        assert chance(-1000.0) == "1 in 10^434"

    @pytest.mark.parametrize(
        ("probability", "text"),
        [(0.5, "50.0 %"), (1.1e-4, "1 in 9,100"), (3.5e-16, "1 in 2.9e+15"), (0.0, "never")],
    )
    def test_small_chances_are_odds(self, probability: float, text: str) -> None:
        assert chance(math.log(probability) if probability else -math.inf) == text


class TestEntry:
    """`main` itself, in processes of its own."""

    def test_help_and_errors(self, tmp_path: Path) -> None:
        done = process("--help")
        assert done.returncode == 0
        assert "verify" in done.stdout
        done = process("rank", tmp_path, "--user", 1, "--inference-type", "uniform")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("fastrank: ")

    def test_rank_prints_json_to_a_pipe(self, model: Path) -> None:
        done = process("rank", model, "--user", 2, "--inference-type", GUMBEL, "--json")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert len(json.loads(done.stdout)["item_ids"]) == 10

    @pytest.mark.slow
    def test_verify_says_pass(self, model: Path) -> None:
        done = process("verify", model, "--draws", 1000)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "PASSED" in done.stdout

    def test_reader_that_leaves_is_no_error(self, model: Path) -> None:
        command = f"{sys.executable} -m fastrank --help | true"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("module", "arguments"), [("click", ["--help"]), ("rich", ["rank", "--help"])]
    )
    def test_missing_extra_is_one_line(
        self,
        module: str,
        arguments: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        real_import = builtins.__import__

        def without(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.partition(".")[0] == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real_import(name, *args, **kwargs)

        for name in [n for n in sys.modules if n.startswith("fastrank.cli.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(builtins, "__import__", without)
        monkeypatch.setattr(sys, "argv", ["fastrank", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith(
            f'fastrank: {module} is not installed (fastrank-sampling\'s extra "cli"):'
            ' pip install "click<'
        )
        assert line.count("\n") == 1

    def test_missing_parquet_library_is_one_line(
        self, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        (tmp_path / "items.parquet").write_bytes(b"")
        line = refused(
            "build", "--items", tmp_path / "items.parquet", "--users", vectors / "users.npy",
            "-o", tmp_path / "m",
        )  # fmt: skip
        assert line.startswith(
            'fastrank: pyarrow is not installed (fastrank-sampling\'s extra "data"):'
            ' pip install "pyarrow<'
        )

    def test_demo_restarts_with_one_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[tuple[list[str], dict[str, str]]] = []

        def execve(path: str, arguments: list[str], env: dict[str, str]) -> None:
            started.append((arguments, env))
            raise SystemExit(0)

        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(sys, "argv", ["fastrank", "demo", "--help"])
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        with pytest.raises(SystemExit):
            cli.main()
        arguments, env = started[0]
        assert arguments[1:] == sys.orig_argv[1:]
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            assert env[name] == "1"
            monkeypatch.setenv(name, "1")
        with pytest.raises(SystemExit):  # --help, in this process
            cli.main()
        assert len(started) == 1


@pytest.mark.skipif(not ANIME.is_dir(), reason=f"the anime data are not at {ANIME}")
class TestAnime:
    """Real factors and real titles, as they lie on disk."""

    @pytest.fixture(scope="class")
    @classmethod
    def anime(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        pytest.importorskip("pyarrow")
        path = tmp_path_factory.mktemp("anime") / "model"
        result = run(
            "build", "--items", ANIME / "item_factors.npy", "--item-meta", ANIME / "items.parquet",
            "--id-column", "item_id", "--title-column", "name",
            "--users", ANIME / "user_factors.npy", "--user-ids", ANIME / "user_ids.npy", "-o", path,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "7,390 items, 5,000 users, 64 dimensions" in result.stdout
        return path

    @pytest.mark.slow
    def test_best_titles_are_those_of_the_factors(self, anime: Path) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        user = int(np.load(ANIME / "user_ids.npy")[0])
        scores = np.load(ANIME / "item_factors.npy") @ np.load(ANIME / "user_factors.npy")[0]
        names = pq.read_table(ANIME / "items.parquet")["name"].to_pylist()
        result = run(
            "rank", anime, "--user", user, "-k", 5, "--inference-type", "deterministic", "--json"
        )
        expected = [names[i] for i in np.argsort(-scores, kind="stable")[:5]]
        assert json.loads(result.stdout)["titles"] == expected

    def test_a_sampled_ranking_shows_titles(self, anime: Path) -> None:
        user = int(np.load(ANIME / "user_ids.npy")[0])
        result = run("rank", anime, "--user", user, "--inference-type", GUMBEL, "--seed", 1)
        assert result.exit_code == 0, result.output
        record = json.loads(
            run(
                "rank", anime, "--user", user, "--inference-type", GUMBEL, "--seed", 1, "--json"
            ).stdout
        )
        for title in record["titles"]:
            assert title[:20] in result.stdout

    @pytest.mark.slow
    def test_verify_passes(self, anime: Path) -> None:
        result = run("verify", anime, "--draws", 1000)
        assert result.exit_code == 0, result.output


def test_no_arguments_print_the_help_as_it_is() -> None:
    result = run()
    assert result.exit_code == 2
    assert "\n  verify" in result.output


def test_no_eligible_item_is_said(model: Path) -> None:
    arguments = ["rank", model, "--user", 3, "--inference-type", GUMBEL, "--allow", 999_999]
    assert "no item is eligible" in refused(*arguments)


def test_the_chosen_temperature_is_that_of_the_eligible_items(model: Path) -> None:
    """Two items whose scores nearly tie need another temperature than all forty."""
    arguments = ["rank", model, "--user", 3, "--inference-type", GUMBEL, "--json", "--seed", 1]
    everything = json.loads(run(*arguments).stdout)
    best = everything["item_ids"][:2]
    some = json.loads(run(*arguments, "--allow", f"{best[0]},{best[1]}").stdout)
    assert some["policy"]["params"] != everything["policy"]["params"]
    assert some["user"] == 3


def test_the_word_that_is_no_id_is_named(model: Path) -> None:
    arguments = ["rank", model, "--user", 3, "--inference-type", GUMBEL, "--exclude", "101,x,102"]
    assert "got 'x'" in refused(*arguments)


def test_an_output_below_a_file_is_refused_at_once(vectors: Path) -> None:
    output = vectors / "items.npy" / "model"
    line = refused(
        "build", "--items", vectors / "items.npz", "--users", vectors / "users.npy", "-o", output
    )
    assert "items.npy is a file" in line


class TestPlan:
    QUICK = ("-k", 3, "--temperatures", "0.2,1", "--epsilons", "0.1,0.5", "--draws", 4)

    @pytest.fixture
    def own(self, model: Path, tmp_path: Path) -> Path:
        """The model, with temperatures of its users."""
        result = run(
            "plan", model, *self.QUICK, "--target-overlap", 0.7, "--apply", "-o", tmp_path / "own"
        )
        assert result.exit_code == 0, result.output
        assert "a factor for each of 7 users" in " ".join(result.stdout.split())
        return tmp_path / "own"

    def test_text(self, model: Path) -> None:
        result = run("plan", model, *self.QUICK, "--target-overlap", 0.7, "--target-ess", 0.1)
        assert result.exit_code == 0, result.output
        text = " ".join(result.stdout.split())
        assert "7 of 7 users, 40 items, rankings of 3" in text
        for word in ("Overlap:", "Loss:", "Perplexity:", "ESS share:", "A deterministic"):
            assert word in text
        assert "To keep 0.7 of the deterministic ranking" in text
        assert "To keep an ESS share of 0.1 at the first 3 places, for every policy" in text
        assert text.count("each user's own temperature: ") == 2

    def test_json(self, model: Path) -> None:
        result = run(
            "plan", model, *self.QUICK, "--policy", "flat=uniform", "--policy",
            "near=plackett_luce:temperature=x0.9", "--target-ess", 0.2, "--prefix", 2, "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        plan = record["plan"]
        assert plan["targets"] == ["flat", "near"]
        assert plan["prefixes"] == [1, 2, 3]
        assert [p["parameter"] for p in plan["points"] if p["kind"] == "epsilon"] == [0.1, 0.5]
        assert {s["prefix"] for s in record["solutions"]} == {2}
        assert {s["kind"]: s["targets"] for s in record["solutions"]}["epsilon"] == ["flat"]
        assert record["applied"] is None

    def test_a_catalog_with_queries(self, vectors: Path, tmp_path: Path) -> None:
        items = np.load(vectors / "items.npy")
        fr.Catalog(range(40), items).save(tmp_path / "catalog")
        assert "give --queries" in refused("plan", tmp_path / "catalog")
        arguments = ["plan", tmp_path / "catalog", "--queries", vectors / "users.npy", *self.QUICK]
        assert "7 of 7 users" in run(*arguments).stdout
        assert "no users to give" in refused(*arguments, "--apply", "--target-overlap", 0.5)
        np.save(tmp_path / "one.npy", items[0])
        line = refused("plan", tmp_path / "catalog", "--queries", tmp_path / "one.npy")
        assert "queries: expected shape (q, 6)" in line
        (tmp_path / "text.npy").write_text("1,2")
        line = refused("plan", tmp_path / "catalog", "--queries", tmp_path / "text.npy")
        assert "not a readable .npy" in line

    def test_report(self, model: Path, tmp_path: Path) -> None:
        pytest.importorskip("jinja2")
        page = tmp_path / "plan.html"
        result = run(
            "plan", model, *self.QUICK, "--policy", "<b>=uniform", "--target-overlap", 0.7,
            "--report", page,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert str(page) in result.stdout.replace("\n", "")
        html = page.read_text()
        for outside in ("http:", "https:", "src=", "@import", "url(", "<script"):
            assert outside not in html
        assert "prefers-color-scheme: dark" in html
        assert "<b>" not in html  # labels are text
        assert "&lt;b&gt;" in html
        assert html.count("<svg") == 1 + 2  # the trade-off, and prefixes 1 and 3
        assert "To keep 0.7 of the deterministic ranking" in html
        # What it says to do next: the model's own policy ranks, at no temperature of one's own.
        assert f"<code>fastrank plan {model} --target-overlap 0.8 --apply" in html
        assert f"fastrank rank {model} --user ID</code>" in html

    def test_report_says_what_to_install(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "jinja2", None)
        for module in ("fastrank.page", "fastrank.cli.planpage"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        line = refused("plan", model, *self.QUICK, "--report", tmp_path / "plan.html")
        assert line.startswith(
            'fastrank: jinja2 is not installed (fastrank-sampling\'s extra "ope"): pip'
        )

    def test_apply_writes_temperatures_that_keep_the_overlap(self, model: Path, own: Path) -> None:
        plain, changed = fr.Model.open(model), fr.Model.open(own, verify=True)
        assert plain.policy is None
        assert isinstance(changed.policy, fr.PlackettLuce)
        assert not plain.has_user_temperatures
        assert changed.has_user_temperatures
        assert changed.titles([103]) == plain.titles([103])
        plan = json.loads(
            run("plan", own, "-k", 3, "--temperatures", changed.policy.temperature, "--draws", 64,
                "--json").stdout
        )["plan"]  # fmt: skip
        assert plan["has_user_temperatures"]
        served = plan["points"][0]
        assert served["kind"] == "temperature"
        # Six standard errors of either plan's draws: 7 users x 4 and x 64 rankings.
        assert served["overlap"] == pytest.approx(0.7, abs=6 * 5 * served["overlap_error"])

    def test_apply_in_place_and_over_another_model(
        self, vectors: Path, own: Path, tmp_path: Path
    ) -> None:
        arguments = ["plan", own, *self.QUICK, "--target-overlap", 0.5, "--apply"]

        def temperature() -> float:
            policy = fr.Model.open(own, verify=True).user_policy(0)
            return float(policy.params["temperature"])

        before = temperature()
        assert "already exists" in refused(*arguments, "-o", own)
        assert run(*arguments, "--json").exit_code == 0
        assert temperature() > before
        result = run(*arguments, "-o", own, "--replace", "--json")
        applied = json.loads(result.stdout)["applied"]
        assert applied["users"] == 7
        assert applied["lowest"] <= applied["median"] <= applied["highest"]

    def test_apply_says_that_tables_are_left_out(self, model: Path, tmp_path: Path) -> None:
        ready, new = tmp_path / "ready", tmp_path / "new"
        fr.Model.open(model).with_tables(fr.PlackettLuce(0.5)).save(ready)
        result = run("plan", ready, *self.QUICK, "--target-overlap", 0.7, "--apply", "-o", new)
        assert "tables are for other temperatures, and are not written to" in result.stderr
        assert fr.Model.open(new).table_temperature is None

    def test_what_is_said_of_the_temperatures_was_measured(
        self, model: Path, tmp_path: Path
    ) -> None:
        arguments = ["plan", model, *self.QUICK, "--target-overlap", 0.7, "--apply"]
        told = run(*arguments, "-o", tmp_path / "told")
        counted = run(*arguments, "-o", tmp_path / "counted", "--json")
        applied = json.loads(counted.stdout)["applied"]
        words = (
            f"it keeps {applied['overlap']:.1%} on average; of 7 users looked at, 10 % keep less"
            f" than {applied['overlap_low']:.1%}, half less than {applied['overlap_median']:.1%},"
            f" 10 % more than {applied['overlap_high']:.1%}"
        )
        assert words in " ".join(told.stdout.split())

    def test_what_is_not_reachable_is_said_and_never_applied(self, model: Path) -> None:
        arguments = ["plan", model, *self.QUICK, "--target-overlap", 0.01]
        text = " ".join(run(*arguments).stdout.split())
        assert text.count("not reachable; the best is") == 3
        line = refused(*arguments, "--apply")
        assert "--apply: overlap: got 0.01; the nearest that can be reached is" in line
        assert "nothing was written" in line
        assert not fr.Model.open(model).has_user_temperatures

    def test_rank_multiplies_and_says_so(self, own: Path) -> None:
        opened = fr.Model.open(own)
        assert opened.policy is not None
        factor, usual = opened.user_temperature(2), opened.policy.params["temperature"]
        for name in (["--inference-type", GUMBEL], []):
            arguments = ["rank", own, "--user", 2, *name, "--seed", 1]
            for stated in (None, 2.0):
                given = [] if stated is None else ["--temperature", stated]
                record = json.loads(run(*arguments, *given, "--json").stdout)
                assert record["user_temperature"] == factor
                assert record["policy"]["params"]["temperature"] == (stated or usual) * factor
                text = " ".join(run(*arguments, *given).stdout.split())
                assert f"({stated or usual:g} times the user's own {factor:.6g})" in text
        uniform = ["rank", own, "--user", 2, "--inference-type", "uniform", "--json"]
        assert json.loads(run(*uniform).stdout)["user_temperature"] is None

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--apply"], ["--apply needs --target-overlap"]),
            (["-o", "there"], ["--output", "--apply"]),
            (["--target-overlap", "1.2"], ["--target-overlap", "1.2"]),
            (["--target-ess", "nan"], ["--target-ess", "nan"]),
            (["-k", "41"], ["k: expected 1 to 40", "41"]),
            (["-k", "3", "--prefix", "4"], ["--prefix", "1 to 3", "4"]),
            (["--temperatures", "1,warm"], ["--temperatures", "1,warm"]),
            (["--temperatures", "0"], ["temperature", "got 0.0"]),
            (["--epsilons", "2"], ["epsilon", "got 2.0"]),
            (["--report", "no/such/plan.html"], ["--report", "no/such"]),
            (["--policy", "warmest"], ["--policy", "plackett_luce", "warmest"]),
            (["--policy", "plackett_luce:temperature=hot"], ["temperature", "hot"]),
            (["--policy", "plackett_luce:temperature=x-1"], ["factor", "-1"]),
            (["--policy", "plackett_luce:epsilon=1"], ["epsilon", "takes temperature"]),
            (["--policy", "uniform:temperature=x2"], ["uniform", "takes head"]),
            (["--policy", "plackett_luce:head=2,temperature=x2"], ["without a head"]),
            (["--policy", "uniform", "--policy", "uniform"], ["two policies", "uniform"]),
            (["--policy", "plackett_luce:temperature=1,temperature=x2"], ["each once"]),
            (["--policy", "plackett_luce:"], ["--policy", "plackett_luce:"]),
            (["--policy", "=uniform"], ["--policy", "=uniform"]),
        ],
    )
    def test_bad_input(self, model: Path, arguments: list[str], words: list[str]) -> None:
        line = refused("plan", model, *arguments)
        for word in words:
            assert word in line


ACTS = "\x1b[31m \x9b2J \x7f \u202e"  # on a terminal, if it gets there
STANDS = r"\x1b[31m \x9b2J \x7f \u202e"


def test_a_strangers_text_stands_on_the_terminal_and_does_not_act(tmp_path: Path) -> None:
    catalog = fr.Catalog([f"i{ACTS}", ":warning: [b]"], [[1.0], [1.0]])
    fr.Model(catalog, ["u"], [[1.0]], item_titles=[f"t\n{ACTS}", "t"]).save(tmp_path / "m")
    arguments = ["rank", tmp_path / "m", "--user", "u", "--inference-type", "uniform"]
    table = run(*arguments).stdout
    assert f"i{STANDS}" in table
    assert rf"t\n{STANDS}" in table
    assert ":warning: [b]" in table
    text = run(*arguments, "--json").stdout
    assert not any(act in table + text for act in "\x1b\x9b\x7f\u202e")
    assert set(json.loads(text)["item_ids"]) == {f"i{ACTS}", ":warning: [b]"}


def test_an_error_does_not_act_on_the_terminal_either(vectors: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({f"x{ACTS}": [1]}), tmp_path / "i.parquet")
    line = refused(
        "build", "--items", tmp_path / "i.parquet", "--users", vectors / "users.npy",
        "-o", tmp_path / "m",
    )  # fmt: skip
    assert f"found x{STANDS}" in line


def test_the_file_that_an_argument_came_from_is_named(vectors: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.zeros(40, np.int64))
    np.savez(tmp_path / "users.npz", ids=[1, 1], vectors=np.ones((2, 6)), titles=[1, 2], bias="x")
    out = ["-o", tmp_path / "m"]
    users = ["--users", vectors / "users.npy"]
    items = ["--items", vectors / "items.npy"]
    line = refused("build", *items, "--item-ids", tmp_path / "ids.npy", *users, *out)
    assert f"{tmp_path / 'ids.npy'}: item_ids: must be unique; rows 0 and 1" in line
    line = refused("build", *items, "--users", tmp_path / "users.npz", *out)
    assert f"{tmp_path / 'users.npz'}: ids: user_ids: must be unique" in line
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00\x02\x00{(", b"PK\x03\x04", b""])
def test_a_query_that_is_none_is_one_line(model: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.npy").write_bytes(content)
    query = ["--query", tmp_path / "q.npy", "--inference-type", "uniform"]
    assert f"--query: {tmp_path / 'q.npy'}: not a readable .npy" in refused("rank", model, *query)
    line = refused("plan", model, "--queries", tmp_path / "q.npy")
    assert f"--queries: {tmp_path / 'q.npy'}: not a readable .npy" in line
