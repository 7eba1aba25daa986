"""Features: what is taken as a column and what is not, what a version is of, and damaged files."""

from __future__ import annotations

import decimal
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastrank as fr
from fastrank.features import as_features
from fastrank.store import content_hash

VECTORS = [[1.0], [2.0], [3.0]]
COLUMNS: dict[str, Any] = {
    "age": [30.0, 0.5, 7.0],
    "new": [True, False, True],
    "seller": ["acme", None, "é"],
    "genres": [["drama", "comedy"], [], ["é", "drama", "drama"]],
    "tags": [[], ["x"], None],
}


def some_catalog(features: Any = None, **options: Any) -> fr.Catalog:
    given = COLUMNS if features is None else features
    return fr.Catalog([10, 20, 30], VECTORS, features=given, **options)


def entries(catalog: fr.Catalog, name: str) -> list[Any]:
    """Of a column, in the order of the caller's rows."""
    assert catalog.features is not None
    rows = catalog._rows
    positions = np.arange(len(catalog.item_ids)) if rows is None else np.argsort(rows)
    return catalog.features.entries(name, positions)


# ---- Kinds -------------------------------------------------------------------------------------


def test_columns_say_their_kind_and_what_they_hold() -> None:
    catalog = some_catalog()
    assert catalog.features is not None
    assert catalog.features.columns == {
        "age": "number",
        "genres": "categories",
        "new": "boolean",
        "seller": "category",
        "tags": "categories",
    }
    assert entries(catalog, "age") == [30.0, 0.5, 7.0]
    assert entries(catalog, "new") == [True, False, True]
    assert entries(catalog, "seller") == ["acme", None, "é"]
    assert entries(catalog, "genres") == [["comedy", "drama"], [], ["drama", "é"]]
    assert entries(catalog, "tags") == [[], ["x"], []]
    assert catalog.features.categories("genres") == ["comedy", "drama", "é"]
    assert catalog.features.kind("other") is None
    assert "seller: category" in repr(catalog.features)


TAKEN: list[tuple[Any, str, list[Any]]] = [
    (np.array([1, 2, 3], np.int8), "number", [1, 2, 3]),
    (np.array([1, 2, 2**63], np.uint64), "number", [1, 2, 2**63]),
    (np.array([0.1, 2, 3]), "number", [float(np.float32(0.1)), 2, 3]),
    (np.array([1, 2, 3], np.longdouble), "number", [1, 2, 3]),
    (np.array([1, 2.5, 3], object), "number", [1, 2.5, 3]),
    (range(3), "number", [0, 1, 2]),
    ([-(2**63), 2**40, -0.0], "number", [-(2**63), 2**40, 0]),
    ([True, np.bool_(False), True], "boolean", [True, False, True]),
    (("a\0", "", "a"), "category", ["a\0", "", "a"]),
    (np.array(["x", "yy", "x"]), "category", ["x", "yy", "x"]),
    (["é", "e\u0301", "\U0001f600"], "category", ["é", "e\u0301", "\U0001f600"]),
    ([("a",), {"b"}, frozenset("c")], "categories", [["a"], ["b"], ["c"]]),
    (np.array([["a", "b"]] * 3, object), "categories", [["a", "b"]] * 3),
    (pd.Series([1, 2, 3], index=[2, 1, 0]), "number", [1, 2, 3]),
    (pd.Series([1, 2, 3], dtype="Int64"), "number", [1, 2, 3]),
    (pd.Series(["a", None, "b"], dtype=object), "category", ["a", None, "b"]),
    (pd.Series(["a", np.nan, "b"]), "category", ["a", None, "b"]),
    (pd.Series(["a", pd.NA, "b"], dtype=object), "category", ["a", None, "b"]),
    (pd.Series(["a", None, "b"], dtype="category"), "category", ["a", None, "b"]),
    (pd.Series([["a"], np.nan, ["b"]]), "categories", [["a"], [], ["b"]]),
    (pd.Series([["a"], [], None]), "categories", [["a"], [], []]),
    (pl.Series(["a", None, "b\0"]), "category", ["a", None, "b\0"]),
    (pl.Series(["a", None, "b"], dtype=pl.Categorical), "category", ["a", None, "b"]),
    (pl.Series([["a"], None, ["c", "b"]]), "categories", [["a"], [], ["b", "c"]]),
    (pl.Series([True, True, False]), "boolean", [True, True, False]),
    (pa.array(["a", None, "b"]).dictionary_encode(), "category", ["a", None, "b"]),
    (pa.chunked_array([[1, 2], [3]]), "number", [1, 2, 3]),
    (pa.chunked_array([[["a"]], [["b"], []]]), "categories", [["a"], ["b"], []]),
]


@pytest.mark.parametrize(("column", "kind", "held"), TAKEN, ids=range(len(TAKEN)))
def test_columns_of_every_library_are_taken(column: Any, kind: str, held: list[Any]) -> None:
    catalog = some_catalog({"c": column})
    assert catalog.features is not None
    assert catalog.features.columns == {"c": kind}
    assert entries(catalog, "c") == held


@pytest.mark.parametrize("table", [pd.DataFrame, pl.DataFrame, pa.table])
def test_a_table_is_its_columns(table: Callable[[Any], Any]) -> None:
    columns = {"age": [1.5, 2.0, 3.0], "genres": [["a"], [], ["b"]]}
    assert some_catalog(table(columns)).features_version == some_catalog(columns).features_version


@pytest.mark.parametrize("n", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("with_prior", [False, True])
def test_every_lane_of_every_panel_has_its_own(n: int, with_prior: bool) -> None:
    ids = np.arange(n)
    columns = {"a": ids.astype(float), "g": [[f"t{i}", "all"] for i in ids]}
    prior = ids if with_prior else None
    catalog = fr.Catalog(ids, np.ones((n, 1)), features=columns, prior=prior)
    assert catalog.scores([0.0], score="dot + a").tolist() == ids.tolist()
    for i in {0, n // 2, n - 1}:
        made = catalog.scores([0.0], score="dot + (tag in g)", params={"tag": f"t{i}"})
        assert made.tolist() == [float(j == i) for j in ids]
    assert catalog.scores([0.0], score="dot + ('all' in g)").tolist() == [1.0] * n


def test_texts_are_found_among_many() -> None:
    n = 20_011
    texts = [f"t{(i * 7919) % n}" for i in range(n)]
    catalog = fr.Catalog(
        np.arange(n), np.ones((n, 1)), features={"s": texts, "g": [[t] for t in texts]}
    )
    for i in (0, 1, 9999, n - 1):
        made = catalog.scores([0.0], score="dot + (s == t) + (t in g)", params={"t": texts[i]})
        assert np.flatnonzero(made).tolist() == [i]
        assert made[i] == 2.0


# ---- Versions ----------------------------------------------------------------------------------


def test_a_version_is_of_columns_and_not_of_how_they_came() -> None:
    plain = some_catalog()
    turned = some_catalog(dict(reversed(COLUMNS.items())))
    stored = some_catalog(prior=[1.0, 3.0, 2.0])
    assert stored._rows is not None
    sets = COLUMNS | {"genres": [{"comedy", "drama"}, (), ["drama", "é"]]}
    versions = {each.features_version for each in (plain, turned, stored, some_catalog(sets))}
    assert len(versions) == 1
    for name in COLUMNS:
        assert entries(stored, name) == entries(plain, name)
    assert plain.version == some_catalog({"x": [1, 2, 3]}).version


@pytest.mark.parametrize(
    "other",
    [
        {"age": [30.0, 0.5, 8.0]},
        {"new": [1, 0, 1]},
        {"seller": ["acme", "", "é"]},
        {"seller": ["acme", None, "e\u0301"]},
        {"genres": [["drama"], [], ["é", "drama"]]},
        {"tags": [["x"], [], None]},
        {"more": [1, 2, 3]},
    ],
)
def test_another_value_is_another_version(other: dict[str, Any]) -> None:
    assert some_catalog(COLUMNS | other).features_version != some_catalog().features_version


def test_texts_that_look_alike_when_escaped_are_others() -> None:
    texts = ["\ud800", "\\xed\\xa0\\x80", "\ud83d\ude00", "\U0001f600", "\\ud800", "\\\\ud800"]
    versions = {some_catalog({"s": [each] * 3}).features_version for each in texts}
    assert len(versions) == len(texts)
    catalog = some_catalog({"s": ["\ud800", "\\xed\\xa0\\x80", None]})
    made = catalog.scores([0.0], score="dot + (s == t)", params={"t": "\ud800"})
    assert made.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_new_features_pack_nothing_again(with_prior: bool, storage: str) -> None:
    n = 16_384 if storage == "int8" else 37
    first = fr.Catalog(
        np.arange(n),
        np.ones((n, 2)),
        storage=storage,
        prior=np.arange(n) if with_prior else None,
    )
    other = first.with_features({"a": np.arange(n) % 7})
    assert first.features is None
    assert first.features_version is None
    assert other._packed is first._packed
    assert all(other._arrays[name] is array for name, array in first._arrays.items())
    assert other.version == first.version
    assert other.scores([0.0, 0.0], score="dot + a").tolist() == (np.arange(n) % 7).tolist()
    third = other.with_features({"a": -(np.arange(n) % 7)})
    assert other.scores([0.0, 0.0], score="dot + a").max() == 6.0
    assert third.scores([0.0, 0.0], score="dot + a").max() == 0.0
    assert other.with_features(None).features is None


def test_features_that_lack_what_the_own_score_has_are_refused() -> None:
    catalog = some_catalog().with_score("dot + age")
    with pytest.raises(ValueError, match="'age' is neither a column"):
        catalog.with_features({"x": [1, 2, 3]})
    with pytest.raises(ValueError, match="'age' is neither a column"):
        catalog.with_features(None)
    with pytest.raises(ValueError, match="expected a number, but this is a text"):
        catalog.with_features({"age": ["a", "b", "c"]})


# ---- Names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "a b", "1a", "class", "None", "dot", "exp", "e", "pi", 5, None, "\ud800", "a-b"]
)
def test_names_that_no_expression_can_have(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^features: ") as refused:
        some_catalog({name: [1, 2, 3]})
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", ["\ufb01ne", "\xb5", "e\u0301", "\uff44ay", "match", "_", "π"])
def test_names_are_read_as_python_reads_them(name: str) -> None:
    """A micro sign is a mu, in an expression, among columns and among parameters."""
    column = some_catalog({name: [1, 2, 3]})
    assert column.scores([0.0], score=f"dot + {name}").tolist() == [1.0, 2.0, 3.0]
    made = some_catalog().scores([1.0], score=f"dot * {name}", params={name: 2.0})
    assert made.tolist() == [2.0, 4.0, 6.0]


def test_names_that_are_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="features: two columns have the name 'fine'"):
        some_catalog({"\ufb01ne": [1, 2, 3], "fine": [4, 5, 6]})
    with pytest.raises(ValueError, match="params: 'fine' is given twice"):
        some_catalog().scores([1.0], score="dot * fine", params={"\ufb01ne": 1.0, "fine": 2.0})


# ---- What is refused ---------------------------------------------------------------------------

REFUSED: list[tuple[Any, str]] = [
    ([1, 2], "expected 3 values, one for each item, got 2"),
    ([], "expected 3 values, one for each item, got 0"),
    (5, "expected 3 values, one for each item, got 5"),
    ("abc", "expected 3 values, one for each item, got 'abc'"),
    (iter([1, 2, 3]), "can be read only once"),
    ({1, 2, 3}, "in order, which a set does not have"),
    ({"a": 1}, "not a mapping"),
    (pd.DataFrame({"x": [1, 2, 3]}), "not a table"),
    (np.zeros((3, 2)), "expected one value per item, got shape (3, 2)"),
    (np.array(5), "expected 3 values"),
    ([1, None, 2], "row 1: expected a number, got None (a missing value: fill it in)"),
    ([1.0, 2.0, math.nan], "row 2: expected a number that is finite in float32, got nan"),
    ([1.0, -math.inf, 2.0], "row 1: expected a number that is finite in float32, got -inf"),
    ([1.0, 1e39, 2.0], "row 1: expected a number that is finite in float32, got 1e+39"),
    ([1, 2, 2**24 + 1], "row 2: the integer 16777217 is not exact in float32"),
    (np.array([0, 2**53 + 1, 1]), "row 1: the integer 9007199254740993 is not exact in float32"),
    (np.array([0, 2**63 - 1, 1]), "row 1: the integer 9223372036854775807 is not exact"),
    (
        np.array([0, 2**64 - 1, 1], np.uint64),
        "row 1: the integer 18446744073709551615 is not exact",
    ),
    ([1, 2**64, 2], "row 1: expected an integer of at most 64 bits, or a float, got 1844674"),
    ([1, 2**63 + 1, -1], "row 1: expected an integer of at most 64 bits, or a float, got 9223"),
    ([0.5, 10**400, 2], "row 1: expected an integer of at most 64 bits, or a float, got 1000"),
    ([1, True, 2], "row 1: expected a number, got True"),
    ([True, 1, False], "row 1: expected True or False, got 1"),
    ([True, None, False], "row 1: expected True or False, got None (a missing value"),
    ([1j, 2, 3], "row 0: expected a number, got 1j"),
    ([decimal.Decimal(1), 2, 3], "row 0: expected a number, got Decimal('1')"),
    ([b"a", b"b", b"c"], "row 0: expected a number, got b'a'"),
    (np.array([b"a"] * 3), "expected numbers, booleans or texts, got |S1"),
    (np.array(["2020"] * 3, "M8[Y]"), "expected numbers, booleans or texts, got datetime64[Y]"),
    (np.ma.array([1, 2, 3]), "expected no masked array"),
    ([None, None, None], "all 3 values are missing"),
    (["a", 1, None], "row 1: expected a text, or None, got 1"),
    (["a", ["b"], "c"], "row 1: expected a text, or None, got ['b']"),
    ([["a"], "b", []], "row 1: expected a list of texts, or None, got 'b'"),
    ([["a"], ["b", 1], []], "row 1: expected a list of texts, got ['b', 1]"),
    ([["a"], [["b"]], []], "row 1: expected a list of texts, got [['b']]"),
    (pd.Series([1, None, 3], dtype="Int64"), "row 1: expected a number, got <NA>"),
    (pl.Series([1, None, 3]), "row 1: expected a number, got None"),
    (pa.array([True, None, False]), "row 1: expected True or False, got None"),
]


@pytest.mark.parametrize(("column", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_column_is_refused_with_row_and_value(column: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^features\['c'\]: ") as refused:
        some_catalog({"a": [1, 2, 3], "c": column})
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({}, "at least one column"),
        ([("a", [1, 2, 3])], "expected a mapping of names to columns"),
        ("a", "expected a mapping of names to columns"),
        (pd.Series([1, 2, 3]), "expected a mapping of names to columns"),
        (pd.DataFrame([[1, 2]] * 3, columns=["a", "a"]), "not a table"),
        (pa.table([[1, 2, 3], [1, 2, 3]], names=["a", "a"]), "not a table of columns"),
        (pl.LazyFrame({"a": [1, 2, 3]}), "not a table of columns"),
    ],
)
@pytest.mark.filterwarnings("ignore:Determining the column names")
def test_what_is_no_table_is_refused(table: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^features") as refused:
        some_catalog(table)
    assert reason in str(refused.value)


# ---- Files -------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    some_catalog(prior=[1.0, 3.0, 2.0]).save(tmp_path / "c")
    return tmp_path / "c"


def file_of(directory: Path, name: str) -> Path:
    manifest = json.loads((directory / "manifest.json").read_text())
    return directory / str(manifest["arrays"][name]["file"])


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest and its own hash."""
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    change(manifest)
    manifest["manifest_sha256"] = content_hash(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def overwrite(directory: Path, name: str, values: dict[int, Any], *, in_manifest: bool) -> None:
    """Put other values into a file of an array; with their hash, if the manifest is to fit."""
    file = file_of(directory, name)
    content = bytearray(file.read_bytes())
    manifest = json.loads((directory / "manifest.json").read_text())
    entry = manifest["arrays"][name]
    array = np.frombuffer(content, entry["dtype"], offset=len(content) - _size(entry))
    array.flags.writeable = True
    for place, value in values.items():
        array[place] = value
    file.write_bytes(content)
    if in_manifest:
        digest = hashlib.sha256(content).hexdigest()
        edit(directory, lambda m: m["arrays"][name].__setitem__("sha256", digest))


def _size(entry: dict[str, Any]) -> int:
    return int(np.dtype(entry["dtype"]).itemsize * np.prod(entry["shape"]))


ARRAYS = [
    "feature_values",
    "feature_offsets",
    "feature_members",
    "feature_text_offsets",
    "feature_text",
]


@pytest.mark.parametrize("verify", [False, True])
def test_what_was_saved_is_opened(saved: Path, verify: bool) -> None:
    plain = some_catalog()
    opened = fr.Catalog.open(saved, verify=verify)
    assert opened.features is not None
    assert opened.features_version == plain.features_version
    assert opened.features.columns == dict(sorted(plain.features.columns.items()))  # type: ignore[union-attr]
    for name in COLUMNS:
        assert entries(opened, name) == entries(plain, name)
    text = "dot + age + new + 2 * (seller == 'é') + 4 * ('drama' in genres) + 8 * ('x' in tags)"
    assert opened.scores([1.0], score=text).tolist() == plain.scores([1.0], score=text).tolist()
    assert not opened.features.arrays["feature_values"].flags.writeable


@pytest.mark.parametrize("columns", [{"g": [[], [], []]}, {"s": ["", None, ""]}, {"n": [1, 2, 3]}])
def test_columns_without_texts_and_lists_are_saved(
    tmp_path: Path, columns: dict[str, list[Any]]
) -> None:
    some_catalog(columns).save(tmp_path / "c")
    opened = fr.Catalog.open(tmp_path / "c", verify=True)
    for name, held in columns.items():
        assert entries(opened, name) == held


def test_features_are_saved_anew_and_taken_away(saved: Path) -> None:
    fr.Catalog.open(saved).with_features({"z": [3, 2, 1]}).save(saved)
    opened = fr.Catalog.open(saved, verify=True)
    assert entries(opened, "z") == [3.0, 2.0, 1.0]
    assert not list(saved.glob("feature_text*"))
    opened.with_features(None).save(saved)
    assert fr.Catalog.open(saved, verify=True).features is None
    assert not list(saved.glob("feature*"))


@pytest.mark.parametrize("name", ARRAYS)
def test_a_file_that_is_cut_or_gone_is_refused(saved: Path, name: str) -> None:
    file = file_of(saved, name)
    content = file.read_bytes()
    for other in (content[:-1], content[:100], b"", content + b"x"):
        file.write_bytes(other)
        with pytest.raises(ValueError, match=name):
            fr.Catalog.open(saved)
    file.unlink()
    with pytest.raises(ValueError, match=name):
        fr.Catalog.open(saved)


TEXT = "dot + age + new + (seller == 'é') + ('drama' in genres) + ('x' in tags) + ('?' in tags)"
USES: list[Callable[[fr.Catalog], Any]] = [
    lambda catalog: catalog.scores([1.0], score=TEXT),
    lambda catalog: catalog.rank([1.0], policy=fr.PlackettLuce(), score=TEXT),
    lambda catalog: [entries(catalog, name) for name in ("age", "new", "seller")],
    lambda catalog: [entries(catalog, name) for name in ("genres", "tags")],
    lambda catalog: catalog.features.categories("genres"),  # type: ignore[union-attr]
]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_byte_is_found_by_a_check_and_crashes_nobody(saved: Path, name: str) -> None:
    file = file_of(saved, name)
    content = file.read_bytes()
    manifest = json.loads((saved / "manifest.json").read_text())
    first = len(content) - _size(manifest["arrays"][name])
    for place in range(first, len(content)):
        for other in (127, 255):
            damaged = bytearray(content)
            if damaged[place] == other:
                continue
            damaged[place] = other
            file.write_bytes(damaged)
            if place % 16 == 0:
                with pytest.raises(ValueError, match=name):
                    fr.Catalog.open(saved, verify=True)
            opened = fr.Catalog.open(saved)
            for use in USES:
                try:
                    use(opened)
                except ValueError as error:
                    assert str(error).startswith(("damaged: feature", "score: "))  # noqa: PT017


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("feature_values", {0: np.nan}, "'age': a value is not finite"),
        ("feature_values", {16: 2.0}, "'new': a value is not one of 0, ..., 1"),
        ("feature_values", {16: 0.5}, "'new': a value is not an integer"),
        ("feature_values", {32: 2.0}, "'seller': a value is not one of -1, ..., 1"),
        ("feature_values", {32: 0.5}, "'seller': a value is not an integer"),
        ("feature_values", {32: -2.0}, "'seller': a value is not one of -1, ..., 1"),
        ("feature_members", {0: 3}, "'genres': a value is not one of 0, ..., 2"),
        ("feature_members", {0: -1}, "'genres': a value is not one of 0, ..., 2"),
        ("feature_offsets", {1: 99}, "'genres': offsets do not ascend"),
        ("feature_offsets", {0: -1}, "'genres': offsets do not ascend"),
        ("feature_offsets", {7: 99}, "'tags': offsets do not ascend"),
        ("feature_text", {0: 255}, "'genres': texts do not ascend"),
        ("feature_text_offsets", {1: 99}, "feature_text_offsets: text 0 is [0, 99)"),
    ],
)
def test_values_that_no_column_has_are_found(
    saved: Path, name: str, values: dict[int, Any], reason: str
) -> None:
    """Though the file is what its hash says."""
    overwrite(saved, name, values, in_manifest=True)
    fr.Catalog.open(saved)
    with pytest.raises(ValueError, match="damaged: features: ") as refused:
        fr.Catalog.open(saved, verify=True)
    assert reason in str(refused.value)


def test_a_category_beyond_all_texts_names_the_column(saved: Path) -> None:
    for value in (2.0, np.inf, 3e9):
        overwrite(saved, "feature_values", dict.fromkeys(range(32, 35), value), in_manifest=False)
        with pytest.raises(ValueError, match="damaged: features: 'seller' has no text"):
            entries(fr.Catalog.open(saved), "seller")


def test_features_of_another_catalog_are_refused(saved: Path, tmp_path: Path) -> None:
    fr.Catalog([1, 2, 3], VECTORS, features=COLUMNS).save(tmp_path / "d")
    other = json.loads((tmp_path / "d" / "manifest.json").read_text())
    for name in ARRAYS:
        shutil.copy(file_of(tmp_path / "d", name), saved)

    def exchange(manifest: dict[str, Any]) -> None:
        manifest["features"] = other["features"]
        manifest["arrays"] |= {name: other["arrays"][name] for name in ARRAYS}

    edit(saved, exchange)
    with pytest.raises(ValueError, match="features belong to another catalog"):
        fr.Catalog.open(saved)


MANIFESTS: list[Callable[[dict[str, Any]], Any]] = [
    lambda m: m.__setitem__("features", None),
    lambda m: m.__setitem__("features", [1]),
    lambda m: m["features"].pop("columns"),
    lambda m: m["features"].__setitem__("version", 5),
    lambda m: m["features"].__setitem__("columns", {}),
    lambda m: m["features"].__setitem__("columns", []),
    lambda m: m["features"].__setitem__("columns", ["age"]),
    lambda m: m["features"]["columns"].pop(),
    lambda m: m["features"]["columns"][0].__setitem__("name", "a b"),
    lambda m: m["features"]["columns"][0].__setitem__("name", []),
    lambda m: m["features"]["columns"][0].__setitem__("name", "genres"),
    lambda m: m["features"]["columns"][0].__setitem__("kind", "categories"),
    lambda m: m["features"]["columns"][0].__setitem__("kind", "colour"),
    lambda m: m["features"]["columns"][0].__setitem__("texts", 1),
    lambda m: m["features"]["columns"][1].__setitem__("texts", 10**30),
    lambda m: m["features"]["columns"][1].__setitem__("texts", -1),
    lambda m: m["features"]["columns"][1].__setitem__("texts", True),
    lambda m: m["arrays"].pop("feature_values"),
    lambda m: m["arrays"].pop("feature_text"),
]


@pytest.mark.parametrize("change", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_manifest_that_does_not_fit_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    edit(saved, change)
    with pytest.raises(ValueError, match="not a catalog: "):
        fr.Catalog.open(saved)


@pytest.mark.parametrize("n_groups", [5, 30, 31, 200])
def test_lists_are_told_apart_by_the_groups_that_matter(n_groups: int) -> None:
    """However many those are, and besides labels that there are."""
    n = 300
    rng = np.random.default_rng(n_groups)
    lists = [rng.choice(n_groups, rng.integers(0, 4), replace=False).tolist() for _ in range(n)]
    features = as_features({"tags": [[f"{g:03}" for g in own] for own in lists]}, n, None)
    groups = features.groups("tags")
    names = features.categories("tags")
    before = rng.integers(0, 3, n)
    for wanted in (list(range(groups.n_groups)), list(range(0, groups.n_groups, 2))):
        labels, n_labels = groups.told_apart(before, 3, wanted)
        assert labels.min() >= 0
        assert labels.max() < n_labels
        known = {int(names[g]) for g in wanted}
        is_in = [(int(b), *sorted(known & set(own))) for b, own in zip(before, lists, strict=True)]
        pairs = set(zip(is_in, labels.tolist(), strict=True))
        assert len(pairs) == len(set(is_in)) == len(set(labels.tolist()))
    few, n_few = groups.told_apart(before, 3, list(range(groups.n_groups)), 2)
    assert len(set(few.tolist())) > 2
    assert n_few > 2
