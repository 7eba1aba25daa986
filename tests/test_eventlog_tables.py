"""Anybody's table as a log: every shape and source gives the same, and what is wrong is named."""

from __future__ import annotations

import datetime
import gzip
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("scipy")
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import (
    ColumnsError,
    LogReader,
    LogWriter,
    OwnLog,
    ReadReport,
    TableLog,
    from_table,
)

NAMES: dict[str, Any] = {
    "item": "item",
    "propensity": "p",
    "reward": "r",
    "request": "q",
    "position": "at",
    "user": "who",
}
POLICIES = {"new": "p1"}


def by_item(**changes: Any) -> dict[str, Any]:
    """Two requests of two places and one of one, a row an item, in no order."""
    columns: dict[str, Any] = {
        "q": ["b", "a", "c", "a", "b"],
        "at": [2, 1, 1, 2, 1],
        "item": [7, 5, 5, 6, 6],
        "p": [0.25, 0.5, 0.1, 0.25, 0.5],
        "p1": [0.5, 0.0, 0.2, 0.5, 1.0],
        "r": [1.0, 0.0, 1.0, 0.0, 0.0],
        "who": ["v", "u", "u", "u", "v"],
    }
    return columns | changes


def read(log: OwnLog) -> tuple[list[dict[str, Any]], ReadReport]:
    """All that is believed of a log, as rows, and the reader's report."""
    reader = log.reader()
    rows = []
    for batch in reader:
        for i in range(len(batch)):
            k = int(batch.lengths[i])
            rows.append(
                {
                    "request": batch.value("request_id", i),
                    "user": batch.value("user_id", i),
                    "items": batch.item_ids[i, :k].tolist(),
                    "logged": np.exp(batch.log_propensities[i, :k]).round(12).tolist(),
                    "rewards": [None if np.isnan(r) else r for r in batch.rewards[i, :k].tolist()],
                    **{
                        name: np.exp(values[i, :k] if values.ndim == 2 else values[i])
                        .round(12)
                        .tolist()
                        for name, values in batch.columns.items()
                    },
                }
            )
    return rows, reader.report


def set_aside(log: OwnLog) -> dict[str, tuple[int, Any]]:
    """Of each reason: how many rankings, and where the first of them stands."""
    _, report = read(log)
    assert set(report.set_aside) == set(report.places)
    return {reason: (n, report.places[reason][0]) for reason, n in report.set_aside.items()}


def one(**changes: Any) -> dict[str, tuple[int, Any]]:
    """What is set aside of `by_item` with these changes."""
    return set_aside(from_table(by_item(**changes), **NAMES, policies=POLICIES))


RANKINGS = [
    {
        "request": request,
        "user": user,
        "items": items,
        "logged": logged,
        "rewards": rewards,
        "p1": new,
    }
    for request, user, items, logged, rewards, new in [
        ("b", "v", [6, 7], [0.5, 0.25], [0.0, 1.0], [1.0, 0.5]),
        ("a", "u", [5, 6], [0.5, 0.25], [0.0, 0.0], [0.0, 0.5]),
        ("c", "u", [5], [0.1], [1.0], [0.2]),
    ]
]


# ---- Shapes and sources -------------------------------------------------------------------------


def as_table(columns: Mapping[str, Any], folder: Path) -> Any:
    return pa.table(dict(columns))


def as_batch(columns: Mapping[str, Any], folder: Path) -> Any:
    return pa.RecordBatch.from_pydict(dict(columns))


def as_pandas(columns: Mapping[str, Any], folder: Path) -> Any:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(dict(columns), index=[9, 8, 7, 6, 5][: len(columns["item"])])
    frame["who"] = frame["who"].astype("category")
    frame["odd"] = [object()] + [1] * (len(frame) - 1)  # nobody asked for it
    return frame


def as_polars(columns: Mapping[str, Any], folder: Path) -> Any:
    pl = pytest.importorskip("polars")
    return pl.DataFrame(dict(columns)).with_columns(pl.col("who").cast(pl.Categorical))


def as_dataset(columns: Mapping[str, Any], folder: Path) -> Any:
    return pa.dataset.dataset([pa.table(dict(columns))])


def as_stream(columns: Mapping[str, Any], folder: Path) -> Any:
    return pa.table(dict(columns)).to_reader()


def as_interchange(columns: Mapping[str, Any], folder: Path) -> Any:
    """A frame that knows no Arrow, as pandas before 2.2."""

    class Frame:
        def __dataframe__(self, **options: Any) -> Any:
            return pa.table(dict(columns)).__dataframe__(**options)

    return Frame()


def as_parquet(columns: Mapping[str, Any], folder: Path) -> Any:
    """Two files of one directory."""
    table = pa.table(dict(columns))
    pq.write_table(table.slice(0, 2), folder / "0.parquet")
    pq.write_table(table.slice(2), folder / "1.parquet")
    return folder


def as_csv(columns: Mapping[str, Any], folder: Path) -> Any:
    table = pa.table(dict(columns))
    pacsv.write_csv(table.slice(0, 3), folder / "0.csv")
    pacsv.write_csv(table.slice(3), folder / "1.csv")
    return [folder / "0.csv", str(folder / "1.csv")]


SOURCES: list[Callable[[Mapping[str, Any], Path], Any]] = [
    *(as_table, as_batch, as_pandas, as_polars, as_dataset, as_stream, as_parquet, as_csv),
    *(as_interchange, lambda columns, folder: dict(columns)),
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_row_an_item_from_every_source(
    source: Callable[[Mapping[str, Any], Path], Any], tmp_path: Path
) -> None:
    log = from_table(source(by_item(), tmp_path), **NAMES, policies=POLICIES)
    wanted = RANKINGS
    if source is as_csv:  # where nobody says that ids are no texts
        wanted = [each | {"items": [str(i) for i in each["items"]]} for each in RANKINGS]
    assert read(log)[0] == wanted
    assert read(log)[0] == wanted, "it can be read again"
    assert log.read_report.set_aside == {}


def lists() -> dict[str, Any]:
    """The same, a row a ranking."""
    return {
        "q": ["b", "a", "c"],
        "who": ["v", "u", "u"],
        "item": [[6, 7], [5, 6], [5]],
        "p": [[0.5, 0.25], [0.5, 0.25], [0.1]],
        "p1": [[1.0, 0.5], [0.0, 0.5], [0.2]],
        "r": [[0.0, 1.0], [0.0, 0.0], [1.0]],
    }


IN_LISTS = {name: column for name, column in NAMES.items() if name != "position"}


@pytest.mark.parametrize(
    "source", [each for each in SOURCES if each not in (as_csv, as_interchange)]
)
def test_a_row_a_ranking_from_every_source(
    source: Callable[[Mapping[str, Any], Path], Any], tmp_path: Path
) -> None:
    columns = source(lists(), tmp_path)
    log = from_table(columns, **IN_LISTS, policies=POLICIES)
    assert read(log)[0] == RANKINGS
    assert read(log)[0] == RANKINGS


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(pa.float32()),
        pa.list_(pa.float64(), 2),
        *([pa.list_view(pa.float64())] if hasattr(pa, "list_view") else []),
    ],
)
def test_lists_of_every_kind(kind: pa.DataType) -> None:
    table = pa.table(
        {
            "item": pa.array([["a", "b"]], pa.large_list(pa.dictionary(pa.int8(), pa.string()))),
            "p": pa.array([[0.5, 0.25]], kind),
        }
    )
    (row,) = read(from_table(table, item="item", propensity="p"))[0]
    assert (row["items"], row["logged"]) == (["a", "b"], [0.5, 0.25])


def test_matrices_are_lists() -> None:
    items, p = np.array([[1, 2], [2, 1]]), np.array([[0.5, 0.5], [0.25, 1.0]])
    rows, _ = read(from_table({"i": items, "p": p}, item="i", propensity="p"))
    assert [row["items"] for row in rows] == items.tolist()
    assert [row["logged"] for row in rows] == p.tolist()
    assert [row["request"] for row in rows] == ["0", "1"]


def test_a_row_a_ranking_of_one_place() -> None:
    columns = {"item": ["x", "y", "x"], "p": [0.5, 0.25, 0.5], "r": [True, False, None]}
    rows, report = read(from_table(columns, item="item", propensity="p", reward="r"))
    assert [row["items"] for row in rows] == [["x"], ["y"], ["x"]]
    assert [row["rewards"] for row in rows] == [[1.0], [0.0], [None]]
    assert [row["user"] for row in rows] == [None] * 3
    assert report.set_aside == {}


def test_one_number_beside_lists_is_the_rankings() -> None:
    """The propensity stands at the first place, and the reward at the last."""
    columns = {"i": [[1, 2, 3], [4]], "p": [0.1, 0.2], "new": [0.3, 0.0], "r": [5.0, None]}
    log = from_table(
        columns, item="i", propensity="p", reward="r", propensity_of="ranking",
        policies={"new": "new", "uniform": fr.Uniform()}, n_eligible=10,
    )  # fmt: skip
    first, second = read(log)[0]
    assert first["logged"] == [0.1, 1.0, 1.0]
    assert first["new"] == [0.3, 1.0, 1.0]
    assert first["uniform"] == pytest.approx([1 / 720, 1.0, 1.0])
    assert first["rewards"] == [0.0, 0.0, 5.0]
    assert (second["new"], second["rewards"]) == ([0.0], [None])
    columns["seen"] = [2, 1]
    log = from_table(
        columns, item="i", propensity="p", reward="r", propensity_of="ranking", displayed="seen"
    )
    assert read(log)[0][0]["rewards"] == [0.0, 5.0]


@pytest.mark.parametrize("is_log", [False, True])
def test_products_down_to_a_place_are_divided(is_log: bool) -> None:
    columns = by_item(
        p=[0.125, 0.5, 0.1, 0.125, 0.5],
        p1=[0.5, 0.0, 0.2, 0.0, 1.0],
    )
    names = dict(NAMES)
    if is_log:
        names["log_propensity"] = names.pop("propensity")
        with np.errstate(divide="ignore"):
            columns |= {"p": np.log(columns["p"]), "p1": np.log(columns["p1"])}
    rows, report = read(from_table(columns, **names, propensity_of="prefix", policies=POLICIES))
    assert report.set_aside == {}
    assert [row["logged"] for row in rows] == [row["logged"] for row in RANKINGS]
    assert [row["p1"] for row in rows] == [[1.0, 0.5], [0.0, 1.0], [0.2]]


def test_the_whole_rankings_propensity_on_each_of_its_rows() -> None:
    columns = by_item(p=[0.1, 0.2, 0.3, 0.2, 0.1], p1=[0.4, 0.0, 0.5, 0.0, 0.4])
    log = from_table(columns, **NAMES, propensity_of="ranking", policies=POLICIES)
    assert [row["logged"] for row in read(log)[0]] == [[0.1, 1.0], [0.2, 1.0], [0.3]]
    columns["p"] = [0.1, 0.2, 0.3, 0.2, 0.15]
    log = from_table(columns, **NAMES, propensity_of="ranking", policies=POLICIES)
    (reason,) = set_aside(log).items()
    assert reason == ("contradictory propensity", (1, ("table", 0, "p: 0.1")))


def test_uniform_is_over_what_is_left() -> None:
    columns = by_item(n=[4, 3, None, 3, 4])
    log = from_table(columns, **NAMES, policies={"all alike": fr.Uniform()}, n_eligible="n")
    rows, _ = read(log)
    assert [row["uniform"] for row in rows[:2]] == [[0.25, 0.333333333333], [0.333333333333, 0.5]]
    assert np.isnan(rows[2]["uniform"]).all(), "not known"
    assert log.policies == {"all alike": "uniform"}


def test_what_else_a_table_says() -> None:
    columns = {
        "item": [[1, 2], [3]],
        "p": [[0.5, 0.5], [0.5]],
        "seen": [1, None],
        "weight": [2.5, None],
        "when": ["2026-01-02T03:04:05.1234567Z", "2026-01-02T03:04:05+01:00"],
        "by": ["bts", "old"],
        "number": [0.25, 3.0],
        "scores": [[1.0, 2.0], [3.0]],
    }
    log = from_table(
        columns, item="item", propensity="p", displayed="seen", row_weight="weight",
        time="when", logged_by="by", columns=["number", "scores"],
    )  # fmt: skip
    assert log.carried == {"number": "number", "scores": "own scores"}
    reader = log.reader()
    (batch,) = reader
    assert batch.lengths.tolist() == [1, 1]
    assert batch.row_weights is not None
    assert batch.row_weights.tolist() == [2.5, 1.0]
    assert [each.law for each in reader.strata] == ["bts", "old"]
    assert batch.values("policy_name") == ["bts", "old"]
    assert batch.values("ts") == [
        datetime.datetime(2026, 1, 2, 3, 4, 5, 123456, datetime.UTC),
        datetime.datetime(2026, 1, 2, 2, 4, 5, 0, datetime.UTC),
    ]
    assert batch.columns["number"].tolist() == [0.25, 3.0]
    assert batch.columns["own scores"][:, 0].tolist() == [1.0, 3.0]
    assert log.has_times


@pytest.mark.parametrize(
    "times",
    [
        pa.array([0, 10**9], pa.timestamp("ns")),
        pa.array([0, 1], pa.timestamp("s", tz="Europe/Berlin")),
        pa.array([0, 1], pa.date32()),
    ],
)
def test_times_of_every_kind(times: pa.Array) -> None:
    table = pa.table({"i": [1, 2], "p": [0.5, 0.5], "t": times})
    (batch,) = from_table(table, item="i", propensity="p", time="t").reader()
    wanted = 86_400 if pa.types.is_date(times.type) else 1
    assert [t.timestamp() for t in batch.values("ts")] == [0, wanted]


def test_integers_that_became_floats_are_integers() -> None:
    """As pandas makes them where one is missing."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(by_item(item=[7, 5, None, 6, 6], who=[4, 3, None, 3, 4]))
    assert frame["item"].dtype == np.float64
    rows, report = read(from_table(frame, **NAMES))
    assert [(row["items"], row["user"]) for row in rows] == [([6, 7], "4"), ([5, 6], "3")]
    assert report.places["null item id"] == [("table", 2, "item")]


def test_csv_ids_are_as_written(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("item,p,who\n0042,0.5,007\n42,0.5,\n,0.5,x\n")
    rows, report = read(from_table(tmp_path / "log.csv", item="item", propensity="p", user="who"))
    assert [row["items"] for row in rows] == [["0042"], ["42"]]
    assert [row["user"] for row in rows] == ["007", ""]
    assert report.places == {"null item id": [(str(tmp_path / "log.csv"), 2, "item")]}


def test_rankings_are_kept_by_a_writer(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log") as writer:
        for table in from_table(by_item(), **NAMES, policies=POLICIES):
            writer.append_table(table)
    reader = LogReader(tmp_path / "log", columns=["p1"])
    (batch,) = reader
    assert reader.report.set_aside == {}
    assert batch.values("request_id") == ["b", "a", "c"]


def test_large_tables_come_in_parts_and_are_cut_anywhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n, k = 70_000, 2
    order = rng.permutation(n * k)
    columns = {
        "q": np.repeat(np.arange(n), k)[order],
        "at": np.tile(np.arange(k), n)[order],
        "item": np.tile([1, 2], n)[order],
        "p": rng.uniform(0.1, 1.0, n * k),
        "r": rng.random(n * k),
    }
    names = {name: column for name, column in NAMES.items() if column in columns}
    whole = list(from_table(pa.table(columns), **names))
    assert [table.num_rows for table in whole] == [65_536, n - 65_536]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=10_000)
    parts = list(from_table(tmp_path / "t.parquet", **names))
    assert pa.concat_tables(parts).equals(pa.concat_tables(whole))


def test_time_is_that_of_sorting() -> None:
    """Of processor time, eight times the rows take less than twenty times as much."""

    def seconds(n: int) -> float:
        rng = np.random.default_rng(0)
        columns = {
            "q": [f"r{i}" for i in rng.permutation(np.repeat(np.arange(n // 4), 4))],
            "item": np.arange(n),
            "p": rng.uniform(0.1, 1.0, n),
            "r": np.where(rng.random(n) < 0.5, np.inf, 1.0),  # flaws are no more than rows
        }
        table = pa.table(columns)
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            list(from_table(table, item="item", propensity="p", reward="r", request="q"))
            best = min(best, time.process_time() - start)
        return best

    assert seconds(160_000) < 20 * seconds(20_000)


# ---- What is missing, all at once ---------------------------------------------------------------


def test_all_that_is_missing_is_said_at_once() -> None:
    table = pa.table({"shown": [1], "prob": [0.5], "clicks": ["a"], "new": [0.5], "place": [1]})
    no_kind: Any = "place"
    with pytest.raises(ColumnsError) as caught:
        ope.evaluate_table(
            table, {"new": "nwe"}, propensity="probb", reward="clicks", position="place",
            log_propensity="prob", n_eligible=0, propensity_of=no_kind,
        )  # fmt: skip
    assert dict(caught.value.problems) == {
        "item": "name the column of what was shown",
        "log_propensity": "give this or `propensity`, not both",
        "propensity_of": "expected item, prefix, ranking; got 'place'",
        "position": "means the place within a request: name `request`, too",
        "n_eligible": "expected a column or an integer from 1, got 0",
        "propensity": "no column named 'probb'; did you mean 'prob'?",
        "reward": "column 'clicks' is of type string; expected numbers",
        "policies['new']": "no column named 'nwe'; did you mean 'new'?",
    }
    for argument, what in caught.value.problems:
        assert f"{argument}: {what}" in str(caught.value)
    assert str(caught.value).endswith("the table's columns are shown, prob, clicks, new, place")
    with pytest.raises(ColumnsError) as caught:
        ope.evaluate_table(table)
    assert [name for name, _ in caught.value.problems] == [
        *("item", "propensity", "reward", "policies"),
    ]
    assert "columns are" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "argument", "what"),
    [
        ({"item": 5}, "item", "expected the name of a column, got 5"),
        ({"item": "yes"}, "item", "column 'yes' is of type bool; expected integers or texts"),
        ({"item": "lists"}, "propensity", "is of type double; expected lists, as 'lists' has"),
        ({"propensity": "lists"}, "propensity", "expected one value, as 'i' has"),
        ({"request": "i", "user": "lists"}, "user", "expected one value, as 'i' has"),
        ({"time": "i"}, "time", "is of type int64; expected timestamps, or ISO 8601 texts"),
        ({"columns": ["t"]}, "columns", "is of type string; expected numbers"),
        ({"policies": {"a": fr.Deterministic()}}, "policies['a']", "only fr.Uniform() needs no"),
        ({"policies": {"a": fr.Uniform()}}, "policies['a']", "wants `n_eligible`"),
        ({"policies": "p"}, "policies", "expected labels with columns, got 'p'"),
        ({"policies": {1: "p"}}, "policies[1]", "expected a text as its label"),
        ({"policies": {"a": 1}}, "policies['a']", "expected the name of a column, got 1"),
        ({"item": "twice"}, "item", "two columns are named 'twice'"),
    ],
)
def test_columns_of_the_wrong_kind(changes: dict[str, Any], argument: str, what: str) -> None:
    table = pa.table(
        [
            *(pa.array([1]), pa.array([0.5]), pa.array([[1]]), pa.array(["a"]), pa.array([True])),
            *(pa.array([1]), pa.array([1])),
        ],
        names=["i", "p", "lists", "t", "yes", "twice", "twice"],
    )
    with pytest.raises(ColumnsError) as caught:
        from_table(table, **{"item": "i", "propensity": "p", **changes})
    assert [name for name, said in caught.value.problems if what in said] == [argument]


def test_positions_of_lists_are_refused() -> None:
    columns = lists() | {"at": [0, 0, 0]}
    with pytest.raises(ColumnsError, match="lists of items are in the order of their places"):
        from_table(columns, **NAMES)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (5, "data: expected a pandas or polars DataFrame.*; got 5"),
        ([[1, 2]], "data: expected a pandas"),
        ({"a": [1, "x"]}, "data: Arrow cannot take this dict: column 'a': Could not convert 'x'"),
        ("nowhere.csv", "nowhere.csv: no such file"),
    ],
)
def test_what_is_no_table(data: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_table(data, item="a", propensity="p")


def test_a_lazy_frame_is_told_what_to_do() -> None:
    pl = pytest.importorskip("polars")
    with pytest.raises(ValueError, match="collect"):
        from_table(pl.LazyFrame({"a": [1]}), item="a", propensity="p")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a.parquet: not a readable Parquet file"):
        from_table(tmp_path / "a.parquet", item="i", propensity="p")
    (tmp_path / "b.txt").write_text("i,p\n1,0.5\n")
    with pytest.raises(ValueError, match=r"b.txt: expected a CSV or a Parquet file"):
        from_table(tmp_path / "b.txt", item="i", propensity="p")
    (tmp_path / "c.csv").write_text("i,p\n1,half\n")
    with pytest.raises(ColumnsError, match=r"propensity: column 'p' holds no numbers: 'half'"):
        list(from_table(tmp_path / "c.csv", item="i", propensity="p"))
    (tmp_path / "d.csv").write_text("")
    with pytest.raises(ValueError, match=r"d.csv: not a readable CSV file"):
        from_table(tmp_path / "d.csv", item="i", propensity="p")
    (tmp_path / "e.csv").write_text("i,i,p\n1,1,0.5\n")
    with pytest.raises(ValueError, match=r"e.csv: .*two columns are named i"):
        from_table(tmp_path / "e.csv", item="i", propensity="p")
    (tmp_path / "f.csv").write_text("i,p\n1,0.5\n")
    (tmp_path / "g.csv").write_text("i,q\n1,0.5\n")
    log = from_table([tmp_path / "f.csv", tmp_path / "g.csv"], item="i", propensity="p")
    with pytest.raises(ValueError, match=r"g.csv: no column named p; found i, q"):
        list(log)
    (tmp_path / "h.csv").write_text("x\n1\n")
    log = from_table([tmp_path / "f.csv", tmp_path / "h.csv"], item="i", propensity="p")
    with pytest.raises(ValueError, match=r"h.csv: no column named i, p; found x"):
        list(log)


def test_times_that_are_none_are_named() -> None:
    columns = {"i": [1], "p": [0.5], "t": ["yesterday"]}
    with pytest.raises(
        ColumnsError, match="time: column 't' holds no times: 'yesterday'; expected"
    ):
        list(from_table(columns, item="i", propensity="p", time="t"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("i,p\n1,0.5\n".encode("utf-16"), "expected a CSV file in UTF-8, .*; it is text in UTF-16"),
        ("i,p\n1,0.5\n".encode("utf-16-be"), "expected a CSV file in UTF-8, .*; it is not text"),
        (b"PK\x03\x04\x14\x00\x00\x00", "expected a CSV file .*; it is a zip archive"),
        (
            gzip.compress(b"PAR1\x00\x00\x00\x00", mtime=0),
            "expected a CSV file .*; it is a Parquet file",
        ),
        (
            gzip.compress(b"i,p\n1,0.5\n", mtime=0)[:-9],
            "not a readable table: Compressed file ended",
        ),
        ("i;p\n1;0,5\n", "expected commas between columns, not ';': 'i;p'"),
        ("i\tp\n1\t0.5\n", r"expected commas between columns, not '\\t': 'i\\tp'"),
        ("i,p\n1,0.5\n2\n", "row 1: Expected 2 columns, got 1: 2"),
    ],
)
def test_what_is_no_csv_file_is_named(content: bytes | str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=why) as caught:
        list(from_table(file, item="i", propensity="p"))
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).isprintable()


def test_csv_files_packed_by_gzip(tmp_path: Path) -> None:
    text = b"i,p\n1,0.5\n2,0.25\n"
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text))
    (tmp_path / "b.csv").write_bytes(gzip.compress(text))  # whatever it is called
    rows, report = read(from_table(tmp_path, item="i", propensity="p"))
    assert [row["items"] for row in rows] == [["1"], ["2"]] * 2
    assert report.set_aside == {}


def test_a_packed_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "i,p\n" + "".join(f"{i},{p}\n" for i, p in enumerate(rng.random(20_000)))
    packed = gzip.compress(text.encode())
    (tmp_path / "a.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"a.csv.gz: not a readable CSV file: .* ended before"):
        list(from_table(tmp_path / "a.csv.gz", item="i", propensity="p"))


@pytest.mark.parametrize("grouped", [False, True])
def test_files_of_several_kinds_are_one_table(grouped: bool, tmp_path: Path) -> None:
    """Ids that are texts in one of them are texts, times are times, and numbers numbers."""
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    columns = {"q": [1, 2], "i": [7, 8], "p": [0.5, 0.25], "who": [3, None], "t": [day, day]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(
        "t,who,p,i,q\n2026-01-02,3,0.5,007,3\n2026-01-02T01+01,4,1,8,4\n"
    )
    later = pa.array([0], pa.timestamp("ns"))
    third = {"q": [5.0], "i": [8.0], "p": [True], "who": ["x"], "t": later}
    pq.write_table(pa.table(third), tmp_path / "c.parquet")
    names: dict[str, Any] = {"request": "q"} if grouped else {}
    log = from_table(tmp_path, item="i", propensity="p", user="who", time="t", **names)
    rows, report = read(log)
    assert report.set_aside == {}
    assert [row["items"] for row in rows] == [["7"], ["8"], ["007"], ["8"], ["8"]]
    assert [row["user"] for row in rows] == ["3", None, "3", "4", "x"]
    assert [row["logged"] for row in rows] == [[0.5], [0.25], [0.5], [1.0], [1.0]]
    assert report.times_without_zone == 2
    if grouped:
        assert [row["request"] for row in rows] == ["1", "2", "3", "4", "5"]
    times = [t for batch in log.reader() for t in batch.values("ts")]
    assert times[1:] == [day, *[day + datetime.timedelta(1)], *[day + datetime.timedelta(1)],
                         datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)]  # fmt: skip


@pytest.mark.parametrize("grouped", [False, True])
def test_integers_of_several_types_stay_integers(grouped: bool, tmp_path: Path) -> None:
    """As pandas writes those of a file in which one is missing."""
    large = 2**53 + 1
    for name, ids in (
        ("a", pa.array([large, 1])),
        ("b", pa.array([2.0, None])),
        ("c", pa.array([3, 4], pa.int32())),
        ("d", pa.array([5, 6], pa.uint64())),
    ):
        pq.write_table(
            pa.table({"i": ids, "q": ids, "p": [0.5, 0.5]}), tmp_path / f"{name}.parquet"
        )
    names: dict[str, Any] = {"request": "q"} if grouped else {}
    rows, report = read(from_table(tmp_path, item="i", propensity="p", **names))
    assert [row["items"] for row in rows] == [[large], [1], [2], [3], [4], [5], [6]]
    assert report.rows_set_aside == 1


def test_columns_that_cannot_be_one_name_two_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": [1], "p": [0.5]}), tmp_path / "a.parquet")
    for second in ({"i": [[1]], "p": [[0.5]]}, {"i": [1], "p": ["0.5"]}):
        pq.write_table(pa.table(second), tmp_path / "b.parquet")
        with pytest.raises(ValueError, match=r"column '[ip]' is of type") as caught:
            list(from_table(tmp_path, item="i", propensity="p"))
        assert all(str(tmp_path / name) in str(caught.value) for name in ("a.parquet", "b.parquet"))


def test_text_that_is_not_utf_8_is_named() -> None:
    broken = pa.array([b"\xff", b"a"]).view(pa.string())
    for item, p in ((broken, [0.5, 0.5]), (pa.ListArray.from_arrays([0, 2], broken), [[0.5, 0.5]])):
        table = pa.table({"i": item, "p": pa.array(p)})
        with pytest.raises(ValueError, match="table: from row 0 on: column 'i': Invalid UTF8"):
            list(from_table(table, item="i", propensity="p"))


# ---- Times --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
def test_rows_whose_time_is_none_are_set_aside(grouped: bool) -> None:
    n = 70_000  # more than one piece, the last of which has no time that is one
    times = ["2026-01-01T00:00:00Z"] * n
    times[3], times[5], times[-1] = "yesterday", "2026-02-29", "01/02/2026"
    columns = {"i": [1] * n, "p": [0.5] * n, "t": times, "q": np.arange(n)}
    names: dict[str, Any] = {"request": "q"} if grouped else {}
    log = from_table(columns, item="i", propensity="p", time="t", **names)
    rows = sum(map(len, log))
    assert rows == n - 3
    assert log.read_report.set_aside == {"not a time": 3}
    assert log.read_report.places["not a time"] == [
        ("table", 3, "t: 'yesterday'"), ("table", 5, "t: '2026-02-29'"),
        ("table", n - 1, "t: '01/02/2026'"),
    ]  # fmt: skip


def test_a_ranking_with_a_row_whose_time_is_none_is_set_aside() -> None:
    times = ["2026-01-01", "2026-01-01", "2026-01-01", "noon", "2026-01-01"]
    log = from_table(by_item(x=times), **NAMES, time="x", policies=POLICIES)
    assert set_aside(log) == {"not a time": (1, ("table", 3, "x: 'noon'"))}


@pytest.mark.parametrize(
    "times",
    [
        pa.array([2**62, 0], pa.timestamp("s")),
        pa.array([2**62, 0], pa.timestamp("us", tz="UTC")),
        pa.array([2**30, 0], pa.date32()),
    ],
)
def test_times_beyond_every_calendar_are_none(times: pa.Array) -> None:
    log = from_table({"i": [1, 2], "p": [0.5, 0.5], "t": times}, item="i", propensity="p", time="t")
    ((reason, (count, (_, row, _))),) = set_aside(log).items()
    assert (reason, count, row) == ("not a time", 1, 0)


def test_times_without_a_zone_are_utc_and_counted() -> None:
    texts = ["2026-01-02 03:04:05", "2026-01-02T03:04:05Z", "2026-01-02T05:04:05+0200",
             "2026-01-02 03:04:05 UTC", "2026-01-02T04:04:05+01"]  # fmt: skip
    columns = {"i": [1] * 5, "p": [0.5] * 5, "t": texts}
    reader = from_table(columns, item="i", propensity="p", time="t").reader()
    (batch,) = reader
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert batch.values("ts") == [moment] * 5
    assert reader.report.times_without_zone == 1
    assert reader.report.to_dict()["times_without_zone"] == 1


@given(st.from_regex(r"\A\d{4}-[01]\d-[0-3]\d([T ][0-2]\d(:[0-6]\d){0,2})?\Z").map(str))
def test_times_are_those_of_the_calendar(text: str) -> None:
    text = "".join(str(int(c)) if c.isdigit() else c for c in text)
    log = from_table(
        {"i": [1, 1], "p": [0.5, 0.5], "t": ["2026-01-01", text]},
        item="i", propensity="p", time="t",
    )  # fmt: skip
    times = [t for batch in log.reader() for t in batch.values("ts")][1:]
    try:
        wanted = [datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)]
    except ValueError:
        wanted = []
    assert times == wanted


# ---- Numbers of CSV files -----------------------------------------------------------------------


def test_cells_that_are_no_numbers_set_rows_aside(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text(
        'q,at,i,p,r,new\n1,1,7,"0,5",1,0.5\n2,1,7, 0.5 ,TRUE,0.5\n3,1,7,0.5,false,NA\n'
        "4,first,7,0.5,1,0.5\n5,1,7,0.5,none,0.5\n6,1,7,0.5,,+0.5\n"
    )
    shapes: list[dict[str, Any]] = [{"request": "q", "position": "at"}, {}]
    for names in shapes:
        log = from_table(
            file, item="i", propensity="p", reward="r", policies={"new": "new"},
            columns=["at"], **names,
        )  # fmt: skip
        rows, report = read(log)
        assert report.set_aside == {"not a number": 3}
        assert sorted(report.places["not a number"]) == [
            (str(file), 0, "p: '0,5'"), (str(file), 3, "at: 'first'"), (str(file), 4, "r: 'none'"),
        ]  # fmt: skip
        assert [row["rewards"] for row in rows] == [[1.0], [0.0], [None]]
        assert [row["logged"] for row in rows] == [[0.5]] * 3


def test_a_column_without_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("i,p,r\n1,0.5,yes\n1,50%,no\n")
    (tmp_path / "b.csv").write_text("i,p,r\n1,half,yes\n")
    with pytest.raises(ColumnsError) as caught:
        list(from_table(tmp_path, item="i", propensity="p", reward="r"))
    assert caught.value.problems == (
        ("reward", "column 'r' holds no numbers: 'yes'; expected numbers"),
    )


def test_one_value_of_the_other_scale_refuses_no_table() -> None:
    """Not even where it is the only one of its part."""
    n = 65_537
    p = np.full(n, 0.5)
    p[-1] = -0.7
    log = from_table({"i": np.ones(n, int), "p": p}, item="i", propensity="p")
    assert sum(map(len, log)) == n - 1
    assert log.read_report.places == {"propensity not in (0, 1]": [("table", n - 1, "p: -0.7")]}


@pytest.mark.parametrize(
    ("names", "argument", "what"),
    [
        ({"propensity": "logs"}, "propensity", "holds logarithms where probabilities"),
        ({"log_propensity": "p"}, "log_propensity", "holds probabilities where logarithms"),
        ({"propensity": "p", "policies": {"a": "logs"}}, "policies['a']", "holds logarithms"),
        ({"log_propensity": "logs", "policies": {"a": "p"}}, "policies['a']", "holds prob"),
    ],
)
def test_the_other_scale_is_recognised(names: dict[str, Any], argument: str, what: str) -> None:
    columns: dict[str, Any] = {"i": [1, 2, 3], "p": [0.5, 1.0, 0.25], "logs": [-0.7, 0.0, -np.inf]}
    if names.get("log_propensity") == "logs":
        columns["logs"][2] = -1.4
    with pytest.raises(ColumnsError) as caught:
        list(from_table(columns, item="i", **names))
    ((name, said),) = caught.value.problems
    assert name == argument
    assert what in said


# ---- Rows that are wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason", "row", "detail"),
    [
        ({"p": [0.25, 0.0, 0.1, 0.25, 0.5]}, "propensity not in (0, 1]", 1, "p: 0.0"),
        ({"p": [0.25, 0.5, 0.1, 1.5, 0.5]}, "propensity not in (0, 1]", 3, "p: 1.5"),
        ({"p": [0.25, 0.5, -0.1, 0.25, 0.5]}, "propensity not in (0, 1]", 2, "p: -0.1"),
        ({"p": [0.25, np.nan, 0.1, 0.25, 0.5]}, "no propensity", 1, "p"),
        ({"p": [0.25, None, 0.1, 0.25, 0.5]}, "no propensity", 1, "p"),
        ({"p1": [0.5, 0.0, 1.2, 0.5, 1.0]}, "evaluation propensity not in [0, 1]", 2, "p1: 1.2"),
        ({"p1": [0.5, -0.5, 0.2, 0.5, 1.0]}, "evaluation propensity not in [0, 1]", 1, "p1: -0.5"),
        ({"item": [7, 5, 5, 5, 6]}, "repeated item", 3, "item: 5"),
        ({"item": ["x", "y", None, "z", "w"]}, "null item id", 2, "item"),
        ({"item": [7.0, 5.5, 5.0, 6.0, 6.0]}, "item id not whole", 1, "item: 5.5"),
        ({"at": [2, 1, 1, 1, 1]}, "repeated position", 3, "at: 1"),
        ({"at": [3, 1, 1, 2, 1]}, "gap in positions", 0, "at: 3 where 2 is expected"),
        ({"at": [2, 1, 2, 2, 1]}, "gap in positions", 2, "at: 2 where 1 is expected"),
        ({"at": [2, 1, None, 2, 1]}, "no position", 2, "at"),
        ({"at": [2, 1, 1, 1.5, 1]}, "position not whole", 3, "at: 1.5"),
        ({"who": ["v", "u", "u", "x", "v"]}, "contradictory user", 3, "who: 'x'"),
        ({"who": ["v", None, "u", "u", "v"]}, "contradictory user", 3, "who: 'u'"),
        ({"q": ["b", "a", None, "a", "b"]}, "no request id", 2, ""),
        ({"q": ["b", "a", "", "a", "b"]}, "no request id", 2, ""),
        ({"r": [1.0, np.inf, 1.0, 0.0, 0.0]}, "reward not finite", 1, "r: inf"),
    ],
)
def test_flaws_of_items(changes: dict[str, Any], reason: str, row: int, detail: str) -> None:
    assert one(**changes) == {reason: (1, ("table", row, detail))}
    rows, report = read(from_table(by_item(**changes), **NAMES, policies=POLICIES))
    assert len(rows) == 2, "the others stay"
    assert report.rows_read == 3
    assert 1 / 3 <= report.malformed_share <= 0.4  # of rankings, and of rows


@pytest.mark.parametrize(
    ("argument", "values", "reason", "row", "detail"),
    [
        ("displayed", [2, 2, 1, 2, 3], "contradictory displayed", 0, "x: 2"),
        ("displayed", [3, 2, 1, 2, 3], "displayed", 4, "x: 3"),
        ("displayed", [-1, 2, 1, 2, -1], "displayed", 4, "x: -1"),
        ("row_weight", [1.0, 2.0, 0.0, 2.0, 1.0], "row_weight", 2, "x: 0.0"),
        ("row_weight", [1.0, 2.0, -1.0, 2.0, 1.0], "row_weight", 2, "x: -1.0"),
        ("row_weight", [1.0, 2.0, np.inf, 2.0, 1.0], "row_weight", 2, "x: inf"),
        ("row_weight", [1.0, 2.0, 1.0, 3.0, 1.0], "contradictory row_weight", 3, "x: 3.0"),
        ("n_eligible", [1, 3, 2, 3, 1], "more items than eligible", 4, "x: 1.0"),
        ("n_eligible", [2.5, 3, 2, 3, 2.5], "n_eligible", 4, "x: 2.5"),
        ("logged_by", ["a", "a", "b", "c", "a"], "contradictory logged_by", 3, "x: 'c'"),
        ("logged_by", ["a", "a", None, "a", "a"], "no policy name", 2, "x"),
        ("time", ["2026-01-01", "2026-01-01", "", "2026-01-01", "2026-01-01"], "no time", 2, "x"),
    ],
)
def test_flaws_of_rankings(
    argument: str, values: list[Any], reason: str, row: int, detail: str
) -> None:
    log = from_table(by_item(x=values), **(NAMES | {argument: "x"}), policies=POLICIES)
    assert set_aside(log) == {reason: (1, ("table", row, detail))}


@pytest.mark.parametrize(
    ("changes", "reason", "row", "detail"),
    [
        ({"p": [[0.5, 0.25], [0.5], [0.1]]}, "list lengths differ", 1, "p: 1"),
        ({"r": [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]}, "list lengths differ", 2, "r: 2"),
        ({"p1": [[], [0.0, 0.5], [0.2]]}, "list lengths differ", 0, "p1: 0"),
        ({"item": [[6, 7], [5, 6], None]}, "no item list", 2, "item"),
        ({"p": [[0.5, 0.25], None, [0.1]]}, "no list", 1, "p"),
        ({"item": [[6, 6], [5, 6], [5]]}, "repeated item", 0, "item: 6"),
        ({"item": [[6, None], [5, 6], [5]]}, "null item id", 0, "item"),
        ({"p": [[0.5, 0.0], [0.5, 0.25], [0.1]]}, "propensity not in (0, 1]", 0, "p: 0.0"),
        ({"q": ["b", "a", None]}, "no request id", 2, "q"),
    ],
)
def test_flaws_of_lists(changes: dict[str, Any], reason: str, row: int, detail: str) -> None:
    log = from_table(lists() | changes, **IN_LISTS, policies=POLICIES)
    assert set_aside(log) == {reason: (1, ("table", row, detail))}


def test_lists_that_are_not_there_are_not_known() -> None:
    columns = lists() | {
        "p1": [[1.0, 0.5], None, [0.2]],
        "r": [None, [0.0, 0.0], [1.0]],
    }
    rows, report = read(from_table(columns, **IN_LISTS, policies=POLICIES))
    assert report.set_aside == {}
    assert np.isnan(rows[1]["p1"]).all()
    assert [row["rewards"] for row in rows] == [[None, None], [0.0, 0.0], [1.0]]
    assert [row["p1"] for row in rows[::2]] == [[1.0, 0.5], [0.2]]


@pytest.mark.parametrize(
    ("p", "reason", "detail"),
    [
        ([-1.0, -0.5, np.inf], "log-propensity not finite", "p: inf"),
        ([-1.0, -0.5, -np.inf], "log-propensity not finite", "p: -inf"),
        ([-1.0, -0.5, 0.1], "positive log-propensity", "p: 0.1"),
        ([-1.0, -0.5, np.nan], "no propensity", "p"),
    ],
)
def test_flaws_of_logarithms(p: Sequence[float], reason: str, detail: str) -> None:
    log = from_table({"i": [1, 2, 3], "p": p}, item="i", log_propensity="p")
    assert set_aside(log) == {reason: (1, ("table", 2, detail))}
    log = from_table(
        {"i": [1, 2, 3], "p": [-1.0, -0.5, -0.1], "new": [-1.0, 0.5, -np.inf]},
        item="i", log_propensity="p", policies={"a": "new"},
    )  # fmt: skip
    reason = "positive evaluation log-propensity"
    assert set_aside(log) == {reason: (1, ("table", 1, "new: 0.5"))}


@pytest.mark.parametrize("of", ["item", "prefix"])
def test_the_only_item_left_is_certain(of: Any) -> None:
    """Of two items that could be shown, the second is sure to come below the first."""
    p = {"item": [1.0, 0.5, 0.25, 0.25, 0.5], "prefix": [0.5, 0.5, 0.25, 0.25, 0.5]}[of]
    columns = by_item(p=p, n=[2, 2, 4, 2, 2])
    log = from_table(columns, **NAMES, n_eligible="n", propensity_of=of)
    detail = f"p: {'0.25' if of == 'item' else '0.5'} where 1 is expected"
    wanted = {"uncertain, though the only item left": (1, ("table", 3, detail))}
    assert set_aside(log) == wanted
    single = {"i": [1, 2], "p": [1.0, 0.5], "n": [1, 1]}
    log = from_table(single, item="i", propensity="p", n_eligible="n", propensity_of="ranking")
    assert [row for _, (_, row, _) in set_aside(log).values()] == [1]


def test_counts_of_numpy_are_counts() -> None:
    count: Any = np.int64(4)
    log = from_table(by_item(), **NAMES, policies={"u": fr.Uniform()}, n_eligible=count)
    assert read(log)[0][0]["uniform"] == [0.25, 0.333333333333]


def test_a_product_that_rises_is_a_flaw() -> None:
    columns = by_item(p=[0.6, 0.5, 0.1, 0.25, 0.5])
    log = from_table(columns, **NAMES, propensity_of="prefix")
    ((reason, (count, (_, row, _))),) = set_aside(log).items()
    assert (reason, count, row) == ("propensity rises down the ranking", 1, 0)


def test_rounding_above_1_is_none() -> None:
    columns: dict[str, Any] = {"i": [1, 2], "p": np.array([1.0000001, 0.5], np.float32)}
    rows, report = read(from_table(columns, item="i", propensity="p"))
    assert report.set_aside == {}
    assert rows[0]["logged"] == [1.0]
    columns["p"] = columns["p"].astype(np.float64)  # float64 knows better
    assert set(set_aside(from_table(columns, item="i", propensity="p"))) == {
        "propensity not in (0, 1]"
    }


def test_flaws_are_named_by_the_row_of_their_file(tmp_path: Path) -> None:
    """Of both shapes, and only the first five of a reason."""
    first = {"q": list(range(4)), "item": [1] * 4, "p": [0.5] * 4}
    second = {"q": list(range(4, 14)), "item": [1] * 10, "p": [0.5] + [2.0] * 9}
    for j, columns in enumerate((first, second)):
        pq.write_table(pa.table(columns), tmp_path / f"{j}.parquet", row_group_size=3)
    shapes: list[dict[str, Any]] = [{}, {"request": "q"}]
    for names in shapes:
        log = from_table(tmp_path, item="item", propensity="p", **names)
        _, report = read(log)
        assert report.set_aside == {"propensity not in (0, 1]": 9}
        file = str(tmp_path / "1.parquet")
        places = report.places["propensity not in (0, 1]"]
        assert places == [(file, row, "p: 2.0") for row in range(1, 6)]


def test_a_ranking_counts_once() -> None:
    found = one(p=[0.0, 0.5, 0.1, 0.25, 2.0], r=[np.inf, 0.0, 1.0, 0.0, 0.0])
    assert found == {"propensity not in (0, 1]": (1, ("table", 4, "p: 2.0"))}


def test_nothing_is_left_where_all_is_wrong() -> None:
    rows, report = read(from_table({"i": [1], "p": [0.0]}, item="i", propensity="p"))
    assert rows == []
    assert (report.rows_read, report.rows_set_aside) == (1, 1)
    rows, report = read(from_table({"i": [], "p": []}, item="i", propensity="p"))
    assert (rows, report.rows_read) == ([], 0)


NASTY = st.sampled_from([0.5, 1.0, 0.25, 0.0, -1.0, 2.0, np.nan, np.inf, -np.inf, 1e300, 1 + 1e-12])
IDS = st.sampled_from(["a", "b", "", None, "u\N{COMBINING ACUTE ACCENT}"])
COUNTS = st.sampled_from([0.0, 1.0, 2.0, 3.0, 1.5, -1.0, np.nan, np.inf, 1e18, 1e300])


@given(
    rows=st.lists(st.tuples(IDS, COUNTS, IDS, NASTY, NASTY, NASTY, IDS, COUNTS, NASTY, COUNTS)),
    of=st.sampled_from(["item", "prefix", "ranking"]),
    grouped=st.booleans(),
)
def test_whatever_is_in_a_table_the_reader_finds_no_more(
    rows: list[tuple[Any, ...]], of: Any, grouped: bool
) -> None:
    """Every flaw is found where its row can be named; each ranking is read or set aside."""
    kinds = [pa.string() if j in (0, 2, 6) else pa.float64() for j in range(10)]
    names = ["q", "at", "item", "p", "p1", "r", "who", "seen", "w", "n"]
    columns = [pa.array([row[j] for row in rows], kinds[j]) for j in range(10)]
    named: dict[str, Any] = {**NAMES, "displayed": "seen", "row_weight": "w", "n_eligible": "n"}
    if not grouped:
        del named["request"], named["position"]
    uniform: Any = fr.Uniform()
    log = from_table(
        pa.table(columns, names=names),
        **named,
        propensity_of=of,
        policies={"new": "p1", "uniform": uniform},
    )
    try:
        believed, report = read(log)
    except ColumnsError:  # of logarithms where probabilities are expected
        assert any(row[3] < 0 or row[4] < 0 for row in rows)
        return
    assert report.set_aside == log.read_report.set_aside
    requests = {row[0] for row in rows} - {"", None}
    wanted = len(requests) + sum(not row[0] for row in rows) if grouped else len(rows)
    assert len(believed) + report.rows_set_aside == wanted


CELLS = st.sampled_from(
    [
        *("", "1", "0.5", " 0.25 ", "0,5", "1e999", "-1", "NaN", "inf", "true", "NULL", "50%", "x"),
        *("2026-01-01", "2026-01-01T00:00Z", "2026-02-30", "0001-01-01T00:00+23", "1700000000"),
        *("007", "u\N{COMBINING ACUTE ACCENT}", "\x1b[0m", "\0", 'a"b', "a\nb", "9" * 400),
    ]
)


@given(
    rows=st.lists(st.tuples(*[CELLS] * 10), max_size=6),
    grouped=st.booleans(),
    packed=st.booleans(),
)
def test_whatever_is_in_a_csv_file_is_read_or_named(
    rows: list[tuple[str, ...]], grouped: bool, packed: bool
) -> None:
    names = ["q", "at", "item", "p", "p1", "r", "who", "seen", "n", "t"]
    lines = [names, *([f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in rows)]
    text = "".join(",".join(line) + "\n" for line in lines).encode()
    named: dict[str, Any] = {**NAMES, "displayed": "seen", "n_eligible": "n", "time": "t"}
    if not grouped:
        del named["request"], named["position"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "log.csv")
        file.write_bytes(gzip.compress(text) if packed else text)
        refusal = None
        try:
            believed, report = read(from_table(file, **named, policies={"new": "p1"}))
        except ValueError as error:
            refusal = error
    if isinstance(refusal, ColumnsError):  # of columns in which nothing is right
        assert {name for name, _ in refusal.problems} <= {*named, "policies['new']"}
        return
    if refusal is not None:  # of a file that is no text, or breaks lines within a cell
        assert str(refusal).startswith(f"{file}: ")
        return
    requests = {row[0] for row in rows} - {""}
    wanted = len(requests) + sum(not row[0] for row in rows) if grouped else len(rows)
    assert len(believed) + report.rows_set_aside == wanted
    assert all(detail.isprintable() for each in report.places.values() for _, _, detail in each)


# ---- In one call --------------------------------------------------------------------------------


def some_log() -> tuple[pa.Table, dict[str, Any]]:
    """A uniform log of ten items, and what NumPy makes of it."""
    rng = np.random.default_rng(0)
    n, items = 20_000, 10
    weights = np.exp(np.linspace(0, 1, items))
    law = weights / weights.sum()
    shown = rng.integers(0, items, n)
    reward = (rng.random(n) < np.linspace(0.05, 0.3, items)[shown]).astype(float)
    weight = law[shown] * items
    table = pa.table(
        {
            "item": shown,
            "p": np.full(n, 1 / items),
            "new": law[shown],
            "clicked": reward,
            "who": rng.integers(0, 5000, n),
        }
    )
    return table, {
        "ips": (weight * reward).mean(),
        "snips": (weight * reward).sum() / weight.sum(),
        "truth": law @ np.linspace(0.05, 0.3, items),
    }


def test_a_minimal_table_gives_what_numpy_gives() -> None:
    table, wanted = some_log()
    found = ope.evaluate_table(
        table, {"new": "new", "uniform": fr.Uniform()},
        item="item", propensity="p", reward="clicked", user="who", n_eligible=10,
    )  # fmt: skip
    new, uniform = found.policies
    assert (new.status, new.reasons) == ("ok", ())
    for name in ("ips", "snips"):
        assert new.estimates[name].value == pytest.approx(wanted[name], rel=1e-12)
    interval = new.estimates["snips"].interval
    assert interval is not None
    assert interval[0] < wanted["truth"] < interval[1]
    logged = found.logged.value
    assert uniform.estimates["snips"].value == pytest.approx(logged, rel=1e-12)
    assert found.log["set_aside"] == {}
    assert found.span is None, "nobody said when"
    assert found.rows_without_user == 0


def test_propensities_of_another_meaning_show_in_the_weights_of_uniform() -> None:
    """No row tells, but what is uniform must weigh 1 on average where `n_eligible` is true."""
    rng, n, places = np.random.default_rng(0), 2000, 3
    columns = {
        "q": np.repeat(np.arange(n), places),
        "at": np.tile(np.arange(places), n),
        "i": np.array([rng.permutation(10)[:places] for _ in range(n)]).ravel(),
        "r": rng.random(n * places),
        "each": np.tile([1 / 10, 1 / 9, 1 / 8], n),
        "all down to it": np.tile([1 / 10, 1 / 90, 1 / 720], n),
        "of 20": np.tile([1 / 20, 1 / 19, 1 / 18], n),
    }
    statuses = {}
    for p in ("each", "all down to it", "of 20"):
        found = ope.evaluate_table(
            columns, {"uniform": fr.Uniform()}, item="i", propensity=p, reward="r", request="q",
            position="at", n_eligible=10,
        )  # fmt: skip
        assert found.log["set_aside"] == {}
        statuses[p] = (found.policies[0].status, "mean_weight" in found.policies[0].reasons)
    assert statuses["each"] == ("ok", False)
    assert statuses["all down to it"] == statuses["of 20"] == ("low_overlap", True)


def test_options_reach_the_evaluation() -> None:
    table, _ = some_log()
    names: dict[str, Any] = {"item": "item", "propensity": "p", "reward": "clicked"}
    table = table.append_column("q", pa.array(np.full(len(table), 0.2)))
    found = ope.evaluate_table(
        table, {"new": "new"}, **names, estimators=["dr-position"], lead="dr-position", level=0.9,
        arrays={"new": {"q_logged": "q", "q_expected": "q"}},
    )  # fmt: skip
    assert set(found.policies[0].estimates) == {"avg", "dr-position"}
    assert (found.policies[0].lead, found.level) == ("dr-position", 0.9)
    with pytest.raises(ColumnsError, match=r"arrays\['old'\]: no policy has this label, only new"):
        ope.evaluate_table(table, {"new": "new"}, **names, arrays={"old": {"q_logged": "q"}})
    with pytest.raises(ColumnsError, match=r"arrays\['new'\]\['q'\]: no estimator uses it, only"):
        ope.evaluate_table(table, {"new": "new"}, **names, arrays={"new": {"q": "q"}})
    with pytest.raises(ValueError, match="knows its own columns and policies"):
        ope.evaluate_table(from_table(table, item="item", propensity="p"), {"new": "new"})
    with pytest.raises(TypeError, match="rewards"):
        ope.evaluate_table(table, {"new": "new"}, **names, rewards="clicked")


def test_row_weights_count() -> None:
    """Half of the rows without a click are kept, and weigh two."""
    table, wanted = some_log()
    rng = np.random.default_rng(1)
    clicked = table["clicked"].to_numpy()
    keep = (clicked > 0) | (rng.random(len(table)) < 0.5)
    kept = table.append_column("w", pa.array(np.where(clicked > 0, 1.0, 2.0)))
    kept = kept.filter(pa.array(keep))
    names: dict[str, Any] = {"item": "item", "propensity": "p", "reward": "clicked"}
    (policy,) = ope.evaluate_table(kept, {"new": "new"}, **names, row_weight="w").policies
    value, error = policy.estimates["snips"].value, policy.estimates["snips"].standard_error
    assert value is not None
    assert error is not None
    assert abs(value - wanted["snips"]) < 4 * error
    (plain,) = ope.evaluate_table(kept, {"new": "new"}, **names).policies
    assert plain.estimates["snips"].value is not None
    assert plain.estimates["snips"].value > value + 10 * error


def test_rewards_that_are_not_observed_are_counted() -> None:
    table, _ = some_log()
    none = pa.nulls(len(table), pa.float64())
    table = table.set_column(table.schema.get_field_index("clicked"), "clicked", none)
    found = ope.evaluate_table(table, {"new": "new"}, item="item", propensity="p", reward="clicked")
    assert found.policies[0].reasons == ("no_rows",) or "no_rows" in found.policies[0].reasons
    assert found.set_aside == {"reward_not_observed": len(table)}


def test_streams_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a row a ranking is read a batch at a time, as often as it is iterated."""
    table, _ = some_log()
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1000)
    opened: list[int] = []
    batches = pq.ParquetFile.iter_batches

    def counted(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in batches(self, *args, **kwargs):
            opened.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    log = from_table(tmp_path / "t.parquet", item="item", propensity="p")
    assert isinstance(log, TableLog)
    tables = iter(log)
    next(tables)
    assert sum(opened) <= 65_536
    del tables  # and with it the open file
    before = len(opened)
    assert sum(each.num_rows for each in log) == len(table)
    assert len(opened) > before


def visits(n: int = 2000) -> dict[str, Any]:
    """A row an item, two a visit."""
    return {
        "visit": np.repeat(np.arange(n), 2),
        "place": np.tile([1, 2], n),
        "item": np.arange(2 * n) % 8,
        "p": np.tile([0.5, 0.5], n),
        "r": np.tile([0.0, 1.0], n),
    }


NAMED: dict[str, Any] = {
    "item": "item",
    "propensity": "p",
    "reward": "r",
    "request": "visit",
    "position": "place",
}


def test_rows_that_were_delivered_twice_change_nothing() -> None:
    """Single rows or whole visits, next to their like or not; what says otherwise is an error."""
    plain = visits()
    again = np.r_[np.arange(4000), [0, 1, 2, 1001, 1001], [7]]
    twice = {name: values[again] for name, values in plain.items()}
    log = from_table(twice, **NAMED)
    tables = list(log)
    assert log.read_report.equal_duplicates == 6
    assert log.read_report.set_aside == {}
    whole = pa.concat_tables(tables)
    assert whole.num_rows == 2000
    assert whole["item_ids"].to_pylist() == plain["item"].reshape(2000, 2).tolist()
    twice["r"] = twice["r"] + (np.arange(4006) == 4000)
    wrong = from_table(twice, **NAMED)
    assert sum(table.num_rows for table in wrong) == 1999
    assert wrong.read_report.places["repeated position"][0][1] in (0, 4000)
    reader = from_table(twice, **NAMED).reader()
    assert sum(map(len, reader)) == 1999
    assert reader.report.equal_duplicates == 4  # what is set aside is not among them


@pytest.mark.parametrize(("lost", "status"), [(2, "ok"), (400, "malformed_log")])
def test_a_request_that_stands_for_nobody_is_many_rows(lost: int, status: str) -> None:
    """-1, or "unknown", makes one ranking of them all: one of 2,000, and a fifth of the table."""
    rows = visits()
    rows["visit"] = np.where(rows["visit"] < lost // 2, -1, rows["visit"])
    rows["new"] = rows["p"]
    found = ope.evaluate_table(rows, {"new": "new"}, **NAMED)
    if lost == 2:  # a visit under another name
        assert found.log["set_aside"] == {}
    else:
        assert sum(found.log["set_aside"].values()) == 1
        assert found.log["malformed_share"] == pytest.approx(lost / 4000)
    assert found.policies[0].status == status


@pytest.mark.parametrize("ids", [np.arange, lambda n: [f"v{i}" for i in range(n)]])
def test_a_request_may_be_its_own_user(ids: Callable[[int], Any]) -> None:
    rows = visits(50) | {"visit": np.repeat(ids(50), 2)}
    (table,) = from_table(rows, **NAMED, user="visit")
    assert table["user_id"].to_pylist() == table["request_id"].to_pylist()
    assert table.num_rows == 50


def test_ids_that_are_hashes_are_read_as_far_as_the_log_can_hold_them() -> None:
    """One of 64 bits sets its ranking aside, and says which; as texts all are taken."""
    rows = visits(50)
    rows["item"] = rows["item"].astype(np.uint64)
    rows["item"][5] = np.uint64(2**63)
    log = from_table(rows, **NAMED)
    assert sum(table.num_rows for table in log) == 49
    (place,) = log.read_report.places["item id beyond int64"]
    assert place == ("table", 5, "item: 9223372036854775808")
    rows["item"] = rows["item"].astype(str)
    assert sum(table.num_rows for table in from_table(rows, **NAMED)) == 50
