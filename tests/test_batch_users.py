"""RankUsers: rows of the log for a table of users, the same whoever asks and in whatever parts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa

import fastrank as fr
from fastrank import reference
from fastrank.batch import RankUsers
from fastrank.batch.users import as_user_texts
from fastrank.eventlog import LogReader, LogWriter, schema

RUN = fr.Run("2026-11-30", key=bytes(range(32)))
TS = 1_767_268_800_000_000
USERS = [f"u{i}" for i in range(60)]


def model_of(kind: str = "int64", **more: Any) -> fr.Model:
    """40 items, 60 users who differ in their temperatures and in what they have seen."""
    rng = np.random.default_rng(1)
    ids: Any = np.arange(40) * 3 if kind == "int64" else [f"item {i}" for i in range(40)]
    catalog = fr.Catalog(
        ids,
        rng.standard_normal((40, 4)),
        bias=rng.standard_normal(40),
    ).with_features({"shop": [f"s{i % 5}" for i in range(40)]})
    model = fr.Model(
        catalog,
        USERS,
        rng.standard_normal((60, 4)),
        user_temperatures=rng.uniform(0.3, 3.0, 60),
        policy=fr.PlackettLuce(0.5),
        **more,
    )
    seen = rng.integers(0, 40, 200)
    return model.with_seen([USERS[i] for i in rng.integers(0, 30, 200)], [ids[i] for i in seen])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("int64", "str"):
        model_of(kind).save(folder / kind)
    return {kind: folder / kind for kind in ("int64", "str")}


def users(names: Any) -> pa.Table:
    return pa.table({"other": pa.nulls(len(names)), "user_id": pa.array(names)})


def same_columns(one: pa.Table, other: pa.Table, besides: tuple[str, ...] = ()) -> None:
    """Equal in every column, numbers to the bit."""
    assert one.schema.names == other.schema.names
    for name in one.schema.names:
        if name in besides:
            continue
        a, b = (each[name].combine_chunks() for each in (one, other))
        assert a.type.equals(b.type), name
        assert a.to_pylist().__repr__() == b.to_pylist().__repr__(), name


LONG = [3 * i for i in range(0, 40, 2)] + list(range(1000, 1060))  # over 64: stored by hash
ASKED: dict[str, dict[str, Any]] = {
    "the model's own policy": {},
    "deterministic": {"policy": fr.Deterministic()},
    "epsilon-greedy": {"policy": fr.EpsilonGreedy(0.3)},
    "uniform": {"policy": fr.Uniform()},
    "best first": {"policy": fr.BestFirst(2, fr.PlackettLuce(0.5))},
    "sequential": {"policy": fr.PlackettLuce(0.4, sampler="sequential")},
    "flat tail": {"policy": fr.FlatTail(0.5, m=10, factor=0.2)},
    "filters": {"exclude": [3, 6, 9], "allow": list(range(0, 90, 3))},
    "long filters": {"exclude": LONG},
    "a score": {"score": "2 * dot - a", "params": {"a": 0.5}},
    "rules": {"rules": fr.Rules(cap={"shop": 1})},
    "fewer items than places": {"allow": [0, 3]},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_rows_are_those_that_a_writer_makes(
    asked: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    rank = RankUsers(models["int64"], RUN, 6, ts=TS, **asked)
    found = rank(users(USERS))
    found.validate(full=True)
    assert found.schema.equals(schema("int64"), check_metadata=True)
    model = fr.Model.open(models["int64"])
    filters = {name: [asked[name]] * len(USERS) for name in ("exclude", "allow") if name in asked}
    asked = asked | filters
    batch = model.recommend_batch(USERS, 6, seeds=RUN.seeds(USERS), **asked)
    with LogWriter(tmp_path) as log:
        log.append_batch(batch, user_ids=USERS, run=RUN, ts=TS, displayed=0, seed_source="derived")
    (file,) = tmp_path.glob("*.parquet")
    written = pa.parquet.read_table(file).cast(schema("int64"))
    same_columns(found, written, ("writer_id", "writer_seq"))


def test_texts_are_ids_too(models: dict[str, Path], tmp_path: Path) -> None:
    rank = RankUsers(models["str"], RUN, 6, ts=TS, exclude=["item 3"])
    found = rank(users(USERS))
    assert found.schema.equals(schema("str"), check_metadata=True)
    assert rank.item_kind == "str"
    batch = fr.Model.open(models["str"]).recommend_batch(
        USERS, 6, seeds=RUN.seeds(USERS), exclude=[["item 3"]] * 60
    )
    assert found["item_ids"].to_pylist() == [each.item_ids.tolist() for each in batch]
    assert found["exclude"].to_pylist() == [["item 3"]] * 60


def test_neither_order_nor_parts_nor_a_copy_show(models: dict[str, Path]) -> None:
    rank = RankUsers(models["int64"], RUN, 6, ts=TS)
    whole = rank(users(USERS))
    order = np.random.default_rng(3).permutation(60)
    for cuts in ([60], [1, 20, 60], list(range(1, 61))):
        parts, begin = [], 0
        for end in cuts:
            copy = pickle.loads(pickle.dumps(rank))
            parts.append(copy(users([USERS[i] for i in order[begin:end]])))
            begin = end
        same_columns(pa.concat_tables(parts).combine_chunks(), whole.take(pa.array(order)))


def test_users_are_drawn_by_the_law_and_apart_from_each_other(tmp_path: Path) -> None:
    """Two comparisons, of a budget of 1e-9 each (tests/support.py)."""
    pytest.importorskip("scipy")
    from support import N_DRAWS, assert_independent, assert_law

    scores, names = [0.3, -1.2, 0.9, 0.0], [f"u{i}" for i in range(2 * N_DRAWS)]
    catalog = fr.Catalog(np.arange(4), np.array(scores)[:, None])
    model = fr.Model(catalog, names, np.ones((len(names), 1)), policy=fr.PlackettLuce(0.8))
    model.save(tmp_path)
    rows = RankUsers(tmp_path, RUN, 2, ts=TS)(users(names))
    orders = np.array(rows["item_ids"].to_pylist())
    law = reference.ranking_law(catalog.scores([1.0]), 2, fr.PlackettLuce(0.8))
    assert_law(orders, law)
    assert_independent(orders[:N_DRAWS, 0], orders[N_DRAWS:, 0], law)


def test_a_pickle_is_small_and_has_no_model(models: dict[str, Path]) -> None:
    rank = RankUsers(models["int64"], RUN, 6, ts=TS)
    rank(users(USERS))
    assert len(pickle.dumps(rank)) < 1000


def test_the_log_has_users_who_were_never_shown_anything(
    models: dict[str, Path], tmp_path: Path
) -> None:
    rank = RankUsers(models["int64"], RUN, 6, ts=TS)
    pa.parquet.write_table(rank(users(USERS)), tmp_path / "a.parquet")
    reader = LogReader(tmp_path)
    (batch,) = reader
    assert batch.never_shown.all()
    assert not reader.report.set_aside
    assert set(batch.values("run")) == {"2026-11-30"}


def test_strangers(models: dict[str, Path]) -> None:
    names = ["u3", "nobody", "u4", "else"]
    with pytest.raises(ValueError, match=r"users: row 1: 'nobody' is not in the model"):
        RankUsers(models["int64"], RUN, 6, ts=TS)(users(names))
    known = RankUsers(models["int64"], RUN, 6, ts=TS)(users(["u3", "u4"]))
    skipped = RankUsers(models["int64"], RUN, 6, ts=TS, unknown="skip")
    same_columns(skipped(users(names)), known)
    assert skipped(users(["nobody"])).num_rows == 0

    rank = RankUsers(models["int64"], RUN, 6, ts=TS, unknown="fallback")
    rows = rank(users(names))
    assert rows["user_id"].to_pylist() == names
    assert rows["is_fallback"].to_pylist() == [False, True, False, True]
    assert rows["query"].to_pylist() == [None, [0.0] * 4, None, [0.0] * 4]
    model = fr.Model.open(models["int64"])
    seed = int(RUN.seeds(["nobody"])[0])
    alone = model.catalog.rank(np.zeros(4), 6, policy=fr.PlackettLuce(0.5), seed=seed)
    assert rows["item_ids"][1].as_py() == alone.item_ids.tolist()
    assert rows["log_propensity"][1].as_py() == alone.log_propensity
    assert set(rows["model_version"].to_pylist()) == {model.version}
    same_columns(rows.take([0, 2]), known)

    by_best = RankUsers(
        models["int64"], RUN, 6, ts=TS, unknown="fallback", fallback=fr.Deterministic()
    )
    assert by_best(users(names))["log_propensity"].to_pylist()[1::2] == [0.0, 0.0]


def test_somebody_who_has_seen_all_has_a_row_without_items(tmp_path: Path) -> None:
    catalog = fr.Catalog([1, 2], [[1.0], [0.5]])
    model = fr.Model(catalog, ["ann", "bob"], [[1.0], [1.0]], policy=fr.Uniform())
    model.with_seen(["ann", "ann"], [1, 2]).save(tmp_path / "model")
    rows = RankUsers(tmp_path / "model", RUN, 2, ts=TS)(users(["ann", "bob"]))
    assert [len(each) for each in rows["item_ids"].to_pylist()] == [0, 2]
    pa.parquet.write_table(rows, tmp_path / "log.parquet")
    reader = LogReader(tmp_path / "log.parquet")
    assert sum(map(len, reader)) == 2


def test_what_is_refused_for_one_user_names_them(tmp_path: Path) -> None:
    catalog = fr.Catalog([1, 2], [[1.0], [0.5]])
    model = fr.Model(catalog, ["ann", "bob"], [[1.0], [1.0]], policy=fr.Uniform())
    model.with_seen(["bob"], [2]).save(tmp_path)
    rank = RankUsers(tmp_path, RUN, 1, ts=TS, rules=fr.Rules(pin={1: 2}))
    assert rank(users(["ann"])).num_rows == 1
    with pytest.raises(ValueError, match=r"^user 'bob': rules: pin\[1\]: 2 is not eligible"):
        rank(users(["ann", "bob"]))


def test_users_are_integers_or_texts(tmp_path: Path) -> None:
    catalog = fr.Catalog([1, 2, 3], [[1.0], [0.5], [0.2]])
    fr.Model(catalog, [7, 42], [[1.0], [2.0]], policy=fr.PlackettLuce(1.0)).save(tmp_path)
    rank = RankUsers(tmp_path, RUN, 2, ts=TS)
    numbers = rank(users([42, 7]))
    assert numbers["user_id"].to_pylist() == ["42", "7"]
    texts = pa.array(["42", "7"])
    for column in (texts, texts.dictionary_encode(), texts.cast(pa.large_string())):
        same_columns(rank(pa.table({"user_id": column})), numbers)
    batch = pa.record_batch({"user_id": texts})
    same_columns(rank(batch), numbers)
    assert rank(users(pa.array([], pa.string()))).num_rows == 0


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array(["a", None]), "x: row 11 is null"),
        (pa.array(["a", "b", ""]), "x: row 12 is empty"),
        (pa.array([0.5]), "x: expected integers or texts, got double"),
        (pa.array([True]), "x: expected integers or texts, got bool"),
        (pa.chunked_array([["a"], [None]]), "x: row 11 is null"),
    ],
)
def test_what_is_no_user(column: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        as_user_texts("x", column, 10)


def test_a_slice_of_texts_is_read_from_where_it_begins() -> None:
    assert as_user_texts("x", pa.array(["", "a", "bc"])[1:]).to_pylist() == ["a", "bc"]


def test_bad_tables(models: dict[str, Path]) -> None:
    rank = RankUsers(models["int64"], RUN, 6, ts=TS)
    for table, said in (
        (["u1"], "users: expected a pyarrow Table"),
        (pa.table({"user": ["u1"]}), "users: no column named user_id; found user"),
        (
            pa.table([["u1"], ["u1"]], names=["user_id", "user_id"]),
            "users: two columns named user_id",
        ),
        (users(["u1", "u2", "u1"]), r"user_ids\[2\]: 'u1' repeats user_ids\[0\]"),
    ):
        with pytest.raises(ValueError, match=said):
            rank(table)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": 3}, "model: expected a path, got 3"),
        ({"run": "2026-11-30"}, "run: expected a fastrank.Run, whose key all workers share"),
        ({"k": 0}, "k: "),
        ({"policy": "uniform"}, "policy: "),
        ({"ts": 0.5}, "ts: expected a datetime"),
        ({"unknown": "pass"}, "unknown: expected one of fail, skip, fallback; got 'pass'"),
        ({"fallback": fr.Uniform()}, "fallback: goes with unknown=\"fallback\", got 'fail'"),
        ({"rules": {}}, "rules: expected a Rules"),
        ({"score": 2}, "score: expected an expression or a name"),
        ({"user_column": 1}, "user_column: expected a str"),
        ({"score_functions": "a:b"}, "score_functions: expected several"),
        ({"exclude": 3}, "exclude: "),
        ({"params": 3}, "params: "),
    ],
)
def test_bad_arguments(changed: dict[str, Any], said: str, models: dict[str, Path]) -> None:
    usual = {"model": models["int64"], "run": RUN, "k": 6, "ts": TS}
    with pytest.raises(ValueError, match=said) as error:
        RankUsers(**{**usual, **changed})
    assert "\n" not in str(error.value)


def test_another_model_under_the_path_is_refused(tmp_path: Path) -> None:
    catalog = fr.Catalog([1, 2], [[1.0], [0.5]])
    first = fr.Model(catalog, ["ann"], [[1.0]], policy=fr.Uniform())
    first.save(tmp_path / "a")
    rank = RankUsers(tmp_path / "a", RUN, 1, ts=TS, model_version="another")
    with pytest.raises(ValueError, match=f"version {first.version} now; this run was begun with"):
        rank(users(["ann"]))


def test_batches_for_spark(models: dict[str, Path]) -> None:
    rank = RankUsers(models["int64"], RUN, 6, ts=TS)
    batches = users(USERS).to_batches(max_chunksize=25)
    empty = batches[0].slice(0, 0)
    made = pa.Table.from_batches(rank.batches(iter([empty, *batches])))
    whole = rank(users(USERS))
    at = whole.schema.get_field_index("seed")
    same_columns(made, whole.set_column(at, "seed", whole["seed"].cast(pa.int64())))
    said = dict(each.split(" ", 1) for each in rank.spark_schema().split(", ") if " " in each)
    assert said["seed"] == "bigint"
    assert said["item_ids"] == "array<bigint>"
    assert said["ts"] == "timestamp"
