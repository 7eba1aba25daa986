"""Reading vectors: every format gives the same arrays, and whatever is wrong is named."""

from __future__ import annotations

import io
import tracemalloc
import uuid
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrank as fr
from fastrank.vectorfiles import Columns, read_vectors

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = np.array([10, 20, 30, 40])
BIAS = np.array([0.5, 0.0, -1.0, 2.0])
TITLES = ["one", "two", "", "four"]


def extension(kind: Any, storage: Any) -> Any:
    return pa.ExtensionArray.from_storage(kind, storage)


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
        fr.Catalog(read.ids, read.vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"x": [1]},
            "no column named id; no column named vector and no columns v0, v1, ...; found x",
        ),
        ({"id": [1]}, "no column named vector and no columns v0, v1, ...; found id"),
        ({"id": [1], "v0": [1.0], "v2": [1.0]}, "columns v0 to v1: v1 is missing"),
        ({"id": [1, None, 3], "v0": [1.0, 2, 3]}, "id: row 1 is null"),
        ({"id": [1, 2, 3], "v0": [1.0, 2, None]}, "v0: row 2 is null"),
        ({"id": [1], "v0": ["a"]}, "v0: expected numbers, got string"),
        ({"id": [[1]], "v0": [1.0]}, "id: expected integers or text, got list"),
        ({"id": [1], "v0": [1.0], "bias": [[1.0]]}, "bias: expected numbers, got list"),
        ({"id": [1], "v0": [1.0], "bias": ["a"]}, "bias: expected numbers, got string"),
        ({"id": [1], "vector": ["a"]}, "vector: expected numbers, got string"),
        ({"id": [1], "vector": [["a"]]}, "vector: expected lists of numbers, got list"),
        ({"id": [1], "vector": lists([[]])}, "vector: row 0 holds no numbers"),
        (
            {"id": [1, 2, 3], "vector": lists([[1, 2], [1, 2], [1]])},
            "vector: row 2 has 1 numbers, but the first row has 2",
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
    with pytest.raises(ValueError, match="vector: row 3 has 3 numbers, but the first row has 2"):
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
    np.savez(tmp_path / "bias.npz", vectors=VECTORS, bias=BIAS[:3])
    with pytest.raises(ValueError, match=r"bias\.npz: bias: expected shape \(4,\), one for each"):
        read_vectors(tmp_path / "bias.npz", ids=tmp_path / "ids.npy")
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


UUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
LONG = "x" * 5000  # no width that all ids would get


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([2, 1], pa.int8()), [2, 1]),
        (pa.array([2, 2**63], pa.uint64()), [2, 2**63]),
        (pa.array([Decimal(2), Decimal(1)], pa.decimal128(38, 0)), [2, 1]),
        (pa.array([Decimal(2**70), Decimal(1)], pa.decimal256(60, 0)), [2**70, 1]),
        (pa.array([2, 1]).dictionary_encode(), [2, 1]),
        (pa.array([LONG, "é\0"]), [LONG, "é\0"]),
        (pa.array(["b", "a"], pa.large_string()), ["b", "a"]),
        (pa.array(["b", "b"]).dictionary_encode(), ["b", "b"]),
        (pa.array(["café".encode(), b""], pa.binary()), ["café", ""]),
        (pa.array([b"b", b"a"], pa.large_binary()), ["b", "a"]),
        (pa.array([b"bb", b"aa"], pa.binary(2)), ["bb", "aa"]),
        (pa.array(["b", LONG], pa.string_view()), ["b", LONG]),
        (
            extension(pa.uuid(), pa.array([uuid.UUID(UUID).bytes, bytes(16)], pa.binary(16))),
            [UUID, "00000000-0000-0000-0000-000000000000"],
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_ids_are_what_the_file_says(tmp_path: Path, ids: Any, expected: list[Any]) -> None:
    path = save_parquet(tmp_path / "i.parquet", id=ids, v0=[1.0, 2.0])
    read = read_vectors(path)
    assert read.ids.tolist() == expected
    assert read.ids.nbytes <= 16
    assert read.places["ids"] == f"{path}: id"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            pa.array([b"x", uuid.UUID(UUID).bytes, None], pa.binary()),
            "id: row 1: binary: bytes that are not text, got b'k\\xa7",
        ),
        (
            pa.array([uuid.UUID(int=i).bytes for i in range(3)], pa.binary(16)),
            "id: row 0: fixed_size_binary[16]: bytes that are not text, got b'\\x00",
        ),
        (
            pa.array([b"x", b"\xff", b"y"]).view(pa.string()),
            "id: row 1: string: text that is not UTF-8, got b'\\xff'",
        ),
        (pa.array(["a", None, "b"]), "id: row 1 is null"),
        (pa.array(["a", None, "a"]).dictionary_encode(), "id: row 1 is null"),
        (pa.array([b"a", None, b"b"]), "id: row 1 is null"),
        (pa.array([1.0, 2.0, 3.0]), "id: expected integers or text, got double"),
        (pa.array([True, False, None]), "id: expected integers or text, got bool"),
        (pa.array([1, 2, 3], pa.date32()), "id: expected integers or text, got date32"),
        (pa.array([1, 2, 3], pa.timestamp("us")), "id: expected integers or text, got timestamp"),
        (
            pa.array([Decimal("1.5"), Decimal(2), Decimal(3)], pa.decimal128(9, 2)),
            "id: expected integers or text, got decimal128(9, 2)",
        ),
        (
            extension(pa.bool8(), pa.array([0, 1, 2], pa.int8())),
            "id: expected integers or text, got extension<arrow.bool8>",
        ),
        (pa.nulls(3), "id: expected integers or text, got null"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_ids_that_are_none_are_named(tmp_path: Path, ids: Any, message: str) -> None:
    path = save_parquet(tmp_path / "bad.parquet", id=ids, v0=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"bad\.parquet: id: ") as caught:
        read_vectors(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def flat(size: int, dtype: Any = None) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8), dtype or pa.float32()), size)


@pytest.mark.parametrize(
    "vectors",
    [
        extension(pa.fixed_shape_tensor(pa.float32(), [4]), flat(4)),
        extension(pa.fixed_shape_tensor(pa.float64(), [4]), flat(4, pa.float64())),
        flat(4, pa.int16()),
        lists(np.arange(8, dtype=np.float16).reshape(2, 4).tolist(), pa.float16()),
        pa.array([[0.0, 1, 2, 3], [4, 5, 6, 7]], pa.large_list(pa.float64())),
        pa.array([[0.0, 1, 2, 3], [4, 5, 6, 7]], pa.list_view(pa.float32())),
        lists([[Decimal(i + j) for i in range(4)] for j in (0, 4)], pa.decimal128(5, 2)),
    ],
    ids=lambda value: str(value.type),
)
def test_vectors_of_every_kind_of_list(tmp_path: Path, vectors: Any) -> None:
    path = save_parquet(tmp_path / "v.parquet", id=[1, 2], vector=vectors)
    np.testing.assert_array_equal(read_vectors(path).vectors, np.arange(8).reshape(2, 4))


def test_vectors_that_are_none_are_named(tmp_path: Path) -> None:
    tensor = extension(pa.fixed_shape_tensor(pa.float32(), [2, 2]), flat(4))
    struct = pa.array([{"values": [1.0]}, {"values": [2.0]}])
    for vectors in (tensor, struct, pa.array([b"1234", b"5678"])):
        path = save_parquet(tmp_path / "bad.parquet", id=[1, 2], vector=vectors)
        with pytest.raises(ValueError, match=r"bad\.parquet: vector: expected ") as caught:
            read_vectors(path)
        assert f"got {vectors.type}"[:10] in str(caught.value)


def test_numbers_of_every_width(tmp_path: Path) -> None:
    path = save_parquet(
        tmp_path / "n.parquet",
        id=[1, 2],
        v0=pa.array([Decimal("0.5"), Decimal(2)], pa.decimal128(5, 2)),
        v1=pa.array(np.array([1, 2], np.float16)),
        bias=pa.array([0.5, 0.5]).dictionary_encode(),
    )
    read = read_vectors(path)
    np.testing.assert_array_equal(read.vectors, [[0.5, 1], [2, 2]])
    np.testing.assert_array_equal(read.bias, [0.5, 0.5])


@pytest.mark.parametrize("titles", [pa.array([1, 2]), pa.array([["a"], ["b"]])])
def test_titles_are_text(tmp_path: Path, titles: Any) -> None:
    path = save_parquet(tmp_path / "i.parquet", id=[1, 2], v0=[1.0, 2], title=titles)
    with pytest.raises(ValueError, match=r"i\.parquet: title: expected text, got (int64|list)"):
        read_vectors(path)
    assert read_vectors(path, alone=True).titles is None  # of users nobody reads them
    path = save_parquet(
        tmp_path / "i.parquet", id=[1, 2], v0=[1.0, 2], title=pa.array(["é".encode(), None])
    )
    assert read_vectors(path).titles == ["é", ""]


@pytest.mark.parametrize("name", ["id", "vector", "v0"])
def test_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    vector = {"vector": lists([[1.0], [2.0]])} if name == "vector" else {"v0": [1.0, 2.0]}
    table = pa.table({"id": [1, 2], **vector})
    twice = table.append_column(name, table[name])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=rf"twice\.parquet: 2 columns are named {name}$"):
        read_vectors(tmp_path / "twice.parquet")


@pytest.mark.parametrize(
    "name",
    [
        "I.PARQUET",
        "i.parq",
        "i.pq",
        "i.parquet.gzip",
        "i.snappy.parquet",
        "i.gz.parquet",
        "i.Parquet.zst",
    ],
)
def test_parquet_by_its_other_names(tmp_path: Path, name: str) -> None:
    path = save_parquet(tmp_path / name, id=[1, 2], v0=[1.0, 2.0])
    assert read_vectors(path).ids.tolist() == [1, 2]


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".npz"])
def test_whatever_is_damaged_is_named(tmp_path: Path, suffix: str) -> None:
    """Cut, overwritten and of another kind: nothing but a ValueError that begins with the file."""
    path = tmp_path / f"items{suffix}"
    whole = tmp_path / f"whole{suffix}"
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 4)).astype(np.float32)
    if suffix == ".parquet":
        save_parquet(whole, id=np.arange(300), vector=lists(vectors.tolist()))
    elif suffix == ".npy":
        np.save(whole, vectors)
    else:
        np.savez_compressed(whole, ids=np.arange(300), vectors=vectors)
    content = whole.read_bytes()
    damaged = [content[: len(content) * i // 8] for i in range(8)]
    places = range(4, len(content), max(1, len(content) // 40))
    damaged += [content[:i] + bytes(8) + content[i + 8 :] for i in places]
    said = []
    for each in damaged:
        path.write_bytes(each)
        try:
            read_vectors(path)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 8
    assert all(text.startswith(f"{path}: ") and "\n" not in text for text in said)


def test_archives_that_hold_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.save(tmp_path / "plain.npy", VECTORS)
    (tmp_path / "plain.npy").rename(path)
    with pytest.raises(ValueError, match=r"a\.npz: this is a \.npy array; name it so"):
        read_vectors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vectors", "hi")
    with pytest.raises(ValueError, match=r"a\.npz: vectors: expected an array as NumPy saves it"):
        read_vectors(path)
    buffer = io.BytesIO()
    np.save(buffer, VECTORS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vectors.npy", buffer.getvalue())
    raw = bytearray(path.read_bytes())
    for at in (6, raw.find(b"PK\x01\x02") + 8):  # the flag of an encrypted member
        raw[at] |= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.npz: vectors: not a readable array .*encrypted"):
        read_vectors(path)
    header = buffer.getvalue().replace(b"(4, 3)", b"(4, 3000000000000)").ljust(200)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vectors.npy", header)
    with pytest.raises(ValueError, match=r"a\.npz: vectors: not a readable array"):
        read_vectors(path)
    np.savez(path, vectors=VECTORS, titles=np.arange(4))
    with pytest.raises(ValueError, match=r"a\.npz: titles: expected text, .*got int64 of shape"):
        read_vectors(path)


@pytest.mark.parametrize(
    "vectors",
    [
        np.asfortranarray(VECTORS),
        VECTORS.astype(">f4"),
        VECTORS.astype(np.float16),
    ],
    ids=["Fortran order", "big-endian", "half"],
)
def test_arrays_of_another_layout_hold_the_same(tmp_path: Path, vectors: Any) -> None:
    np.save(tmp_path / "items.npy", vectors)
    read = read_vectors(tmp_path / "items.npy")
    catalog = fr.Catalog(read.ids, read.vectors)
    same = fr.Catalog(np.arange(4), VECTORS)
    assert catalog.version == same.version
