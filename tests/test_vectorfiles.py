"""Reading vectors: every format gives the same arrays, and whatever is wrong is named."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrank import Catalog
from fastrank.vectorfiles import Columns, read_vectors

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = np.array([10, 20, 30, 40])
BIAS = np.array([0.5, 0.0, -1.0, 2.0])
TITLES = ["one", "two", "", "four"]


def save_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def lists(rows: Any, dtype: Any = None) -> Any:
    return pa.array(rows, pa.list_(dtype or pa.float32()))


@pytest.fixture
def every_format(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Arguments of `read_vectors` that all describe the same items."""
    np.save(tmp_path / "items.npy", VECTORS)
    np.save(tmp_path / "ids.npy", IDS)
    np.savez(tmp_path / "items.npz", ids=IDS, vectors=VECTORS, bias=BIAS, titles=np.array(TITLES))
    beside = {"id": IDS, "bias": BIAS, "title": ["one", "two", None, "four"]}
    rows = VECTORS.tolist()
    numbered = {f"v{i}": VECTORS[:, i] for i in range(3)}
    renamed = {"item": IDS, "b": BIAS, "name": TITLES, "factors": lists(rows)}
    return {
        "npz": {"path": tmp_path / "items.npz"},
        "npy + metadata": {
            "path": tmp_path / "items.npy",
            "metadata": save_parquet(tmp_path / "meta.parquet", **beside),
        },
        "lists": {"path": save_parquet(tmp_path / "l.parquet", **beside, vector=lists(rows))},
        "doubles": {
            "path": save_parquet(tmp_path / "d.parquet", **beside, vector=lists(rows, pa.float64()))
        },
        "fixed lists": {
            "path": save_parquet(
                tmp_path / "f.parquet", **beside, vector=pa.array(rows, pa.list_(pa.float32(), 3))
            )
        },
        "numbered columns": {"path": save_parquet(tmp_path / "n.parquet", **beside, **numbered)},
        "other names": {
            "path": save_parquet(tmp_path / "o.parquet", **renamed),
            "columns": Columns(id="item", vector="factors", bias="b", title="name"),
        },
    }


@pytest.mark.parametrize(
    "name",
    [
        "npz",
        "npy + metadata",
        "lists",
        "doubles",
        "fixed lists",
        "numbered columns",
        "other names",
    ],
)
def test_every_format_gives_the_same(every_format: dict[str, dict[str, Any]], name: str) -> None:
    read = read_vectors(**every_format[name])
    np.testing.assert_array_equal(read.vectors, VECTORS)
    np.testing.assert_array_equal(read.ids, IDS)
    assert read.bias is not None
    np.testing.assert_array_equal(read.bias, BIAS)
    assert read.titles == TITLES


def test_npy_alone_counts_its_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "items.npy", VECTORS)
    np.save(tmp_path / "ids.npy", np.array(["a", "b", "c", "d"]))
    plain = read_vectors(tmp_path / "items.npy")
    assert plain.ids.tolist() == [0, 1, 2, 3]
    assert plain.bias is None
    assert plain.titles is None
    assert isinstance(plain.vectors, np.memmap)
    named = read_vectors(tmp_path / "items.npy", ids=tmp_path / "ids.npy")
    assert named.ids.tolist() == ["a", "b", "c", "d"]


def test_text_ids_and_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrank.vectorfiles._BATCH_ROWS", 3)
    ids = [f"item-{'x' * i}" for i in range(10)]  # of different widths in different batches
    rows = np.arange(20.0).reshape(10, 2)
    path = save_parquet(tmp_path / "p.parquet", id=ids, vector=lists(rows.tolist()))
    seen: list[tuple[int, int]] = []
    read = read_vectors(path, advance=lambda done, total: seen.append((done, total)))
    assert read.ids.tolist() == ids
    np.testing.assert_array_equal(read.vectors, rows)
    assert seen == [(3, 10), (6, 10), (9, 10), (10, 10)]


def test_one_long_id_is_read_at_its_own_cost_and_refused_by_row(tmp_path: Path) -> None:
    """At one width, 20,000 ids beside one of 10,000 letters take 800 MB."""
    ids = [f"item{i}" for i in range(20_000)]
    ids[7] = "x" * 10_000
    path = save_parquet(tmp_path / "p.parquet", id=ids, v0=np.zeros(20_000))
    tracemalloc.start()
    read = read_vectors(path)
    with pytest.raises(ValueError, match="item_ids: row 7: expected at most 1024 characters, got"):
        Catalog(read.ids, read.vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1]}, "no column named id; found x"),
        ({"id": [1]}, "no column named vector and no columns v0, v1, ...; found id"),
        ({"id": [1], "v0": [1.0], "v2": [1.0]}, "columns v0 to v1: v1 is missing"),
        ({"id": [1, None, 3], "v0": [1.0, 2, 3]}, "id: row 1 is null"),
        ({"id": [1, 2, 3], "v0": [1.0, 2, None]}, "v0: row 2 is null"),
        ({"id": [1], "v0": ["a"]}, "v0: expected numbers, got string"),
        ({"id": [[1]], "v0": [1.0]}, "id: expected numbers or text, got list"),
        ({"id": [1], "v0": [1.0], "bias": [[1.0]]}, "bias: expected numbers, got list"),
        ({"id": [1], "v0": [1.0], "bias": ["a"]}, "bias: expected numbers, got string"),
        ({"id": [1], "vector": ["a"]}, "vector: expected numbers, got string"),
        ({"id": [1], "vector": [["a"]]}, "vector: expected lists of numbers, got list"),
        ({"id": [1], "vector": lists([[]])}, "vector: row 0 holds no numbers"),
        (
            {"id": [1, 2, 3], "vector": lists([[1, 2], [1, 2], [1]])},
            "vector: row 2 has 1 numbers, the first row has 2",
        ),
        ({"id": [1, 2], "vector": lists([[1, 2], None])}, "vector: row 1 is null"),
        (
            {"id": [1, 2, 3], "vector": lists([[1, 2], [1, 2], [1, None]])},
            "vector: row 2 holds a null",
        ),
    ],
)
def test_what_is_wrong_in_parquet_is_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = save_parquet(tmp_path / "bad.parquet", **columns)
    with pytest.raises(ValueError, match=r"bad\.parquet: ") as caught:
        read_vectors(path)
    assert message in str(caught.value)


def test_rows_are_counted_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrank.vectorfiles._BATCH_ROWS", 2)
    rows = lists([[1, 2], [1, 2], [1, 2], [1, 2, 3]])
    path = save_parquet(tmp_path / "bad.parquet", id=[1, 2, 3, 4], vector=rows)
    with pytest.raises(ValueError, match="vector: row 3 has 3 numbers, the first row has 2"):
        read_vectors(path)


def test_what_is_wrong_in_numpy_files_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"flat\.npy: vectors: expected shape \(n, d\), got \(3,"):
        read_vectors(tmp_path / "flat.npy")
    np.save(tmp_path / "objects.npy", np.array([[1], [None]], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects\.npy: not a readable \.npy"):
        read_vectors(tmp_path / "objects.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npy: not a readable \.npy"):
        read_vectors(tmp_path / "text.npy")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz: not a readable \.npz"):
        read_vectors(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=VECTORS, b=IDS)
    with pytest.raises(ValueError, match=r"other\.npz: no array named vectors; found a, b"):
        read_vectors(tmp_path / "other.npz")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.parquet: not a readable Parquet file"):
        read_vectors(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"expected \.npy, \.npz or \.parquet, got \.csv"):
        read_vectors(tmp_path / "items.csv")


def test_lengths_must_agree_and_ids_come_once(tmp_path: Path) -> None:
    np.save(tmp_path / "items.npy", VECTORS)
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "short.npy", IDS[:3])
    np.savez(tmp_path / "items.npz", ids=IDS, vectors=VECTORS)
    meta = save_parquet(tmp_path / "meta.parquet", id=IDS)
    with pytest.raises(
        ValueError, match=r"short\.npy: ids: expected shape \(4,\), one for each vector of items"
    ):
        read_vectors(tmp_path / "items.npy", ids=tmp_path / "short.npy")
    with pytest.raises(ValueError, match=r"ids\.npy: ids are given twice, .*items\.npz"):
        read_vectors(tmp_path / "items.npz", ids=tmp_path / "ids.npy")
    with pytest.raises(ValueError, match="ids are given twice"):
        read_vectors(tmp_path / "items.npy", ids=tmp_path / "ids.npy", metadata=meta)
    with pytest.raises(ValueError, match="ids are given twice"):
        read_vectors(tmp_path / "items.npz", metadata=meta)


def test_a_prior_is_read_only_where_it_is_named(tmp_path: Path) -> None:
    path = save_parquet(tmp_path / "i.parquet", id=IDS, vector=lists(VECTORS.tolist()), prior=BIAS)
    assert read_vectors(path).prior is None
    np.testing.assert_array_equal(read_vectors(path, columns=Columns(prior="prior")).prior, BIAS)
    with pytest.raises(ValueError, match="no column named popularity"):
        read_vectors(path, columns=Columns(prior="popularity"))
    with pytest.raises(ValueError, match="no column named ''; found id, vector, prior"):
        read_vectors(path, columns=Columns(prior=""))
    np.save(tmp_path / "items.npy", VECTORS)
    read = read_vectors(tmp_path / "items.npy", metadata=path, columns=Columns(prior="id"))
    np.testing.assert_array_equal(read.prior, IDS)


def test_an_archive_may_hold_a_prior(tmp_path: Path) -> None:
    np.savez(tmp_path / "items.npz", vectors=VECTORS, prior=BIAS)
    np.testing.assert_array_equal(read_vectors(tmp_path / "items.npz").prior, BIAS)
    meta = save_parquet(tmp_path / "meta.parquet", id=IDS, popularity=-BIAS)
    read = read_vectors(tmp_path / "items.npz", metadata=meta)
    np.testing.assert_array_equal(read.prior, BIAS)
    with pytest.raises(ValueError, match=r"meta\.parquet: a prior is given twice, .*items\.npz"):
        read_vectors(tmp_path / "items.npz", metadata=meta, columns=Columns(prior="popularity"))
    np.savez(tmp_path / "bad.npz", vectors=VECTORS, prior=BIAS[:, None])
    with pytest.raises(ValueError, match=r"bad\.npz: prior: expected shape \(4,\), .*\(4, 1\)"):
        read_vectors(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ([[1.0], [2.0], [3.0], [4.0]], "got list"),
        (["a", "b", "c", "d"], "got string"),
        ([True, False, True, False], "got bool"),
    ],
)
def test_a_prior_is_numbers(tmp_path: Path, prior: list[Any], words: str) -> None:
    path = save_parquet(tmp_path / "i.parquet", id=IDS, v0=VECTORS[:, 0], popularity=prior)
    with pytest.raises(ValueError, match=rf"i\.parquet: popularity: expected numbers, {words}"):
        read_vectors(path, columns=Columns(prior="popularity"))


@pytest.mark.parametrize("kind", ["id", "vector", "bias", "title", "prior"])
@pytest.mark.parametrize("name", ["x", ""])
def test_a_column_that_is_named_is_never_passed_over(tmp_path: Path, kind: str, name: str) -> None:
    np.save(tmp_path / "items.npy", VECTORS)
    np.savez(tmp_path / "items.npz", vectors=VECTORS)
    meta = save_parquet(tmp_path / "meta.parquet", id=IDS, title=TITLES)
    columns = Columns(**{kind: name})
    for file in ("items.npy", "items.npz"):
        with pytest.raises(ValueError, match=rf"{file}: no {kind} column '{name}': .*not Parquet"):
            read_vectors(tmp_path / file, columns=columns)
        with pytest.raises(ValueError, match=rf"no (column named|vector column) ('{name}'|{name})"):
            read_vectors(tmp_path / file, metadata=meta, columns=columns)
