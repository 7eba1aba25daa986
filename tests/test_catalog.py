"""The Catalog's boundary: ids, filters, seeds, batches, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import POLICIES, random_scored, scored

import fastrank as fr
from fastrank import catalog as catalogs
from fastrank import packing

N, DIM = 40, 3
PLACKETT_LUCE = fr.PlackettLuce(1.0)


@pytest.fixture(scope="module")
def vectors() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def catalog(vectors: npt.NDArray[np.float32]) -> fr.Catalog:
    return fr.Catalog(np.arange(N) + 100, vectors)


@pytest.fixture(scope="module")
def words(vectors: npt.NDArray[np.float32]) -> fr.Catalog:
    return fr.Catalog([f"item {i}" for i in range(N)], vectors)


QUERY = np.array([1.0, -0.5, 0.25], np.float32)


@pytest.mark.parametrize("prior", [False, True], ids=["", "prior"])
@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize(("n", "dim"), [(1, 1), (15, 3), (16, 4), (1000, 7)])
def test_vectors_are_those_handed_in(
    storage: str, prior: bool, n: int, dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in the caller's order, read-only, of a catalog that was made or opened; also
    where they are unpacked in several blocks."""
    monkeypatch.setattr(packing, "CODED_FROM", 0)
    monkeypatch.setattr(catalogs, "_BLOCK_BYTES", 4 * dim * 100)
    rng = np.random.default_rng(n)
    given = rng.standard_normal((n, dim))
    given[0] = -0.0
    made = fr.Catalog(
        rng.permutation(n), given, bias=np.ones(n), storage=storage,
        prior=rng.standard_normal(n) if prior else None,
    )  # fmt: skip
    made.save(tmp_path / "c")
    for catalog in (made, fr.Catalog.open(tmp_path / "c")):
        found = catalog.vectors
        assert type(found) is np.ndarray
        assert found.dtype == np.float32
        assert found.shape == (n, dim)
        assert found.tobytes() == given.astype(np.float32).tobytes()
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0] = 1.0
        views = np.may_share_memory(found, catalog.vectors)
        assert views == (storage == "int8" and catalog._rows is None)


@pytest.mark.parametrize(
    ("library", "is_table"),
    [
        *((library, False) for library in ("numpy", "pandas", "polars", "pyarrow")),
        # pyarrow's tables are arrays to NumPy whose rows are their columns.
        *((library, True) for library in ("numpy", "pandas", "polars")),
    ],
)
def test_a_column_of_vectors_is_stacked_as_the_refusal_says(library: str, is_table: bool) -> None:
    """What it says makes an array of what was passed."""
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    made = pytest.importorskip(library)
    given: Any = objects([np.array(row) for row in rows])
    if library != "numpy":
        given = made.array(rows) if library == "pyarrow" else made.Series(rows)
    if is_table:
        given = given[:, None] if library == "numpy" else made.DataFrame({"v": given})
    with pytest.raises(ValueError, match=r"vectors: .*a column of vectors.*np.stack") as said:
        fr.Catalog([1, 2, 3], given)
    remedy = str(said.value).partition("; ")[2].removesuffix(" makes one array of it")
    stacked = eval(remedy, {"np": np, "vectors": given})
    assert fr.Catalog([1, 2, 3], stacked).vectors.tolist() == rows


def test_a_row_without_a_vector_is_named() -> None:
    refused(
        lambda: fr.Catalog([1, 2], objects([[1.0], None])),
        "vectors: row 1: expected a vector, got None",
    )
    refused(
        lambda: fr.Catalog([1, 2], objects(["[1.0]", "[2.0]"])),
        "vectors: expected real numbers, got '[1.0]' at index 0; if these are vectors as JSON,",
        "np.stack([*map(json.loads, vectors)])",
    )


def test_an_item_is_in_its_catalog(catalog: fr.Catalog, words: fr.Catalog) -> None:
    for known in (100, np.int32(139)):
        assert known in catalog
    for unknown in (99, 140, "100", 100.0, True, None, [100], 2**70, "item 1"):
        assert unknown not in catalog
    assert "item 1" in words
    for other in ("item 99", "item 1\0", 1, b"item 1", {"item 1"}):
        assert other not in words


def refused(call: Callable[[], object], *parts: str) -> None:
    """A ValueError whose text holds every part: the argument's name, the row, the value."""
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"


def changed(array: npt.NDArray[Any], at: Any, value: object) -> npt.NDArray[Any]:
    copy = array.copy()
    copy[at] = value
    return copy


def objects(rows: list[Any]) -> npt.NDArray[Any]:
    """As a column of lists is: one dimension, of objects."""
    column = np.empty(len(rows), object)
    column[:] = rows
    return column


# Building


def test_a_catalog_knows_its_size_ids_and_version(
    catalog: fr.Catalog, words: fr.Catalog, vectors: npt.NDArray[np.float32]
) -> None:
    assert len(catalog) == N
    assert catalog.dim == DIM
    np.testing.assert_array_equal(catalog.item_ids, np.arange(N) + 100)
    assert catalog.item_ids.dtype == np.int64
    assert words.item_ids[7] == "item 7"
    assert words.item_ids.dtype.kind == "U"
    assert isinstance(catalog.version, str)
    assert len(catalog.version) >= 16


def test_the_version_is_the_content(vectors: npt.NDArray[np.float32]) -> None:
    ids, bias = np.arange(N), np.zeros(N, np.float32)
    bias[3] = 1.0
    same = {fr.Catalog(ids, vectors).version for _ in range(2)}
    same.add(fr.Catalog(ids.tolist(), vectors.astype(np.float64)).version)
    assert len(same) == 1
    others = {
        fr.Catalog(ids[::-1], vectors).version,
        fr.Catalog([str(i) for i in ids], vectors).version,
        fr.Catalog(ids, changed(vectors, (N - 1, DIM - 1), 0.0)).version,
        fr.Catalog(ids, vectors, bias=bias).version,
        fr.Catalog(ids[1:], vectors[1:]).version,
    }
    assert len(others | same) == 6


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_integer_ids_of_any_width(dtype: type, vectors: npt.NDArray[np.float32]) -> None:
    catalog = fr.Catalog(np.arange(N).astype(dtype), vectors)
    assert catalog.item_ids.dtype == np.int64
    assert catalog.rank(QUERY, 3, policy=PLACKETT_LUCE).item_ids.dtype == np.int64


def test_extreme_integer_ids(vectors: npt.NDArray[np.float32]) -> None:
    ids = [-(2**63), 2**63 - 1, 0, -1]
    catalog = fr.Catalog(ids, vectors[:4])
    for item in ids:
        kept = catalog.rank(QUERY, 4, policy=fr.Uniform(), allow=[item])
        assert kept.item_ids.tolist() == [item]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int16, np.uint8])
def test_real_dtypes_are_cast_once(dtype: type) -> None:
    values = np.array([[1, 2], [3, 0], [2, 2]])
    catalog = fr.Catalog([1, 2, 3], values.astype(dtype), bias=np.array([1, 0, 0], dtype))
    np.testing.assert_array_equal(catalog.scores(np.array([1, 2], dtype)), [6, 3, 6])


@pytest.mark.parametrize("layout", ["C", "F", "strided", "list", "read-only"])
def test_vectors_of_any_layout(layout: str, vectors: npt.NDArray[np.float32]) -> None:
    given: Any = {
        "C": vectors,
        "F": np.asfortranarray(vectors),
        "strided": np.repeat(vectors, 2, axis=0)[::2],
        "list": vectors.tolist(),
        "read-only": vectors.copy(),
    }[layout]
    if layout == "read-only":
        given.flags.writeable = False
    catalog = fr.Catalog(np.arange(N), given)
    expected = fr.Catalog(np.arange(N), vectors)
    assert catalog.scores(QUERY).tobytes() == expected.scores(QUERY).tobytes()


def test_what_the_caller_does_to_its_arrays_later_does_not_matter() -> None:
    ids, vectors = np.arange(3), np.array([[3.0], [2.0], [1.0]], np.float32)
    bias = np.zeros(3, np.float32)
    catalog = fr.Catalog(ids, vectors, bias=bias)
    ids[:], vectors[:], bias[:] = 7, 0.0, 9.0
    ranking = catalog.rank(np.ones(1), 3, policy=fr.Deterministic())
    assert ranking.item_ids.tolist() == [0, 1, 2]
    assert ranking.scores.tolist() == [3.0, 2.0, 1.0]


BAD_CATALOGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no items": ({"item_ids": [], "vectors": np.empty((0, 2))}, ()),
    "no dimensions": ({"item_ids": [1, 2], "vectors": np.empty((2, 0))}, ("vectors",)),
    "vectors 1-d": ({"item_ids": [1, 2], "vectors": [1.0, 2.0]}, ("vectors",)),
    "vectors 3-d": ({"item_ids": [1, 2], "vectors": np.ones((2, 2, 2))}, ("vectors",)),
    "nan": ({"vectors": changed(np.ones((3, 2)), (2, 1), np.nan)}, ("vectors", "2", "nan")),
    "inf": ({"vectors": changed(np.ones((3, 2)), (1, 0), -np.inf)}, ("vectors", "1", "-inf")),
    "beyond float32": ({"vectors": changed(np.ones((3, 2)), (2, 0), 1e39)}, ("vectors", "2")),
    "bool vectors": ({"vectors": np.ones((3, 2), bool)}, ("vectors", "bool")),
    "complex vectors": ({"vectors": np.ones((3, 2), complex)}, ("vectors", "complex")),
    "object vectors": ({"vectors": np.ones((3, 2), object)}, ("vectors", "object")),
    "str vectors": ({"vectors": np.full((3, 2), "1")}, ("vectors",)),
    "ragged vectors": (
        {"vectors": [[1.0], [1.0, 2.0], [3.0]]},
        ("vectors: row 1: expected 1 numbers, as in row 0, got 2",),
    ),
    "column of vectors": (
        {"vectors": objects([[1.0], [2.0], [3.0]])},
        ("vectors", "a column of vectors", "np.stack(vectors)"),
    ),
    "ragged column": ({"vectors": objects([[1.0], [2.0], []])}, ("vectors: row 2", "got 0")),
    "a text": ({"vectors": [[1.0], [2.0], ["x"]]}, ("vectors", "got 'x' at row 2, column 0")),
    "a hole": (
        {"vectors": [[1.0, 2.0], [3.0, None], [5.0, 6.0]]},
        ("got None at row 1, column 1",),
    ),
    "vectors a set": (
        {"vectors": {1.0, 2.0}},
        ("vectors: expected an array of numbers, got {1.0",),
    ),
    "vectors a mapping": ({"vectors": {1: [1.0]}}, ("vectors: expected an array of numbers",)),
    "huge vector": (
        {"vectors": [[1.0, 0.0], [3e38, 3e38], [1e37, 0.0]]},
        ("vectors: row 1: scores could pass the float32 range", "at most 1e+35, got 4.24264e+38"),
    ),
    "huge bias": ({"bias": [0.0, 1.0, -3e38]}, ("bias: index 2", "at most 1e+37", "got -3e+38")),
    "masked vectors": ({"vectors": np.ma.ones((3, 2))}, ("vectors: expected no masked array",)),
    "fewer ids": ({"item_ids": [1, 2]}, ("item_ids", "2", "3")),
    "more ids": ({"item_ids": [1, 2, 3, 4]}, ("item_ids", "4", "3")),
    "ids 2-d": ({"item_ids": [[1], [2], [3]]}, ("item_ids",)),
    "duplicate int": ({"item_ids": [5, 77, 5]}, ("item_ids", "5", "2")),
    "duplicate str": ({"item_ids": ["a", "bb", "bb"]}, ("item_ids", "bb", "2")),
    "float ids": ({"item_ids": [1.0, 2.0, 3.0]}, ("item_ids", "1.0")),
    "bool ids": ({"item_ids": np.array([True, False, True])}, ("item_ids", "bool")),
    "bytes ids": ({"item_ids": np.array([b"a", b"b", b"c"])}, ("item_ids",)),
    "ids beyond int64": (
        {"item_ids": np.array([1, 2**63 + 9, 3], np.uint64)},
        ("item_ids", str(2**63 + 9)),
    ),
    "short bias": ({"bias": [0.0, 1.0]}, ("bias",)),
    "2-d bias": ({"bias": [[0.0], [1.0], [2.0]]}, ("bias",)),
    "nan bias": ({"bias": [0.0, np.nan, 2.0]}, ("bias", "1", "nan")),
    "bool bias": ({"bias": [True, False, True]}, ("bias", "bool")),
    "storage": ({"storage": "float16"}, ("storage", "float16")),
    "storage type": ({"storage": None}, ("storage", "None")),
    "storage array": ({"storage": np.array(["int8", "int8"])}, ("storage", "array(['int8'")),
    "cache_bytes": ({"cache_bytes": -1}, ("cache_bytes", "-1")),
    "cache_bytes type": ({"cache_bytes": 1.5}, ("cache_bytes", "1.5")),
}


@pytest.mark.parametrize("case", BAD_CATALOGS)
def test_bad_catalogs_are_refused(case: str) -> None:
    arguments, parts = BAD_CATALOGS[case]
    good: dict[str, Any] = {"item_ids": [1, 2, 3], "vectors": np.ones((3, 2))}
    refused(lambda: fr.Catalog(**{**good, **arguments}), *parts)


# What every call refuses


BAD_CALLS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "query too short": ({"query": [1.0, 2.0]}, ("query", "2", "3")),
    "query 2-d": ({"query": [[1.0, 2.0, 3.0]]}, ("query",)),
    "query scalar": ({"query": 1.0}, ("query",)),
    "query nan": ({"query": [1.0, np.nan, 0.0]}, ("query", "1", "nan")),
    "query inf": ({"query": [1.0, 0.0, np.inf]}, ("query", "2", "inf")),
    "query bool": ({"query": np.ones(3, bool)}, ("query", "bool")),
    "query complex": ({"query": np.ones(3, complex)}, ("query", "complex")),
    "query object": ({"query": np.ones(3, object)}, ("query", "object")),
    "query str": ({"query": "abc"}, ("query",)),
    "query of a str": ({"query": [1e308, 1e308, "x"]}, ("query", "got 'x' at index 2")),
    "query of bytes": ({"query": (1.0, 2.0, b"x")}, ("query", "got b'x' at index 2")),
    "query beyond float32": ({"query": [1e39, 0.0, 0.0]}, ("query",)),
    "score beyond float32": ({"query": [3e38, 3e38, 3e38]}, ("query",)),
    "policy name": ({"policy": "deterministic"}, ("policy", "deterministic")),
    "policy class": ({"policy": fr.Uniform}, ("policy",)),
    "policy None": ({"policy": None}, ("policy", "None")),
    "exclude mask": ({"exclude": np.ones(N, bool)}, ("exclude", "bool")),
    "allow mask": ({"allow": np.ones(N, bool)}, ("allow", "bool")),
    "allow mask as list": ({"allow": [True, False]}, ("allow", "True")),
    "exclude floats": ({"exclude": [1.0, 2.0]}, ("exclude", "1.0")),
    "exclude 2-d": ({"exclude": [[1, 2]]}, ("exclude",)),
    "exclude scalar": ({"exclude": 101}, ("exclude",)),
    "exclude of str": ({"exclude": ["a"]}, ("exclude",)),
    "bias short": ({"bias": [1.0]}, ("bias", "1", str(N))),
    "bias nan": ({"bias": changed(np.zeros(N), 7, np.nan)}, ("bias", "7", "nan")),
    "bias bool": ({"bias": np.zeros(N, bool)}, ("bias", "bool")),
    "bias 2-d": ({"bias": np.zeros((1, N))}, ("bias",)),
    "bias beyond float32": ({"bias": np.full(N, 1e39)}, ("bias",)),
    "bias huge": ({"bias": changed(np.zeros(N), 7, 3e38)}, ("bias: index 7", "at most 1e+37")),
}
BAD_RANKS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "k 0": ({"k": 0}, ("k", "0")),
    "k negative": ({"k": -3}, ("k", "-3")),
    "k float": ({"k": 2.5}, ("k", "2.5")),
    "k bool": ({"k": True}, ("k", "True")),
    "k None": ({"k": None}, ("k", "None")),
    "k str": ({"k": "3"}, ("k", "3")),
    "seed negative": ({"seed": -1}, ("seed", "-1")),
    "seed too large": ({"seed": 2**64}, ("seed", str(2**64))),
    "seed float": ({"seed": 1.0}, ("seed", "1.0")),
    "seed bool": ({"seed": False}, ("seed", "False")),
    "seed str": ({"seed": "1"}, ("seed", "1")),
    "seed array": ({"seed": [1, 2]}, ("seed",)),
}


@pytest.mark.parametrize("case", BAD_CALLS | BAD_RANKS)
def test_bad_calls_of_rank_are_refused(catalog: fr.Catalog, case: str) -> None:
    arguments, parts = (BAD_CALLS | BAD_RANKS)[case]
    good: dict[str, Any] = {"query": QUERY, "k": 3, "policy": PLACKETT_LUCE, "seed": 1}
    refused(lambda: catalog.rank(**{**good, **arguments}), *parts)


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_of_log_propensities_are_refused(catalog: fr.Catalog, case: str) -> None:
    arguments, parts = BAD_CALLS[case]
    good: dict[str, Any] = {"query": QUERY, "item_ids": [101, 102], "policy": PLACKETT_LUCE}
    refused(lambda: catalog.log_propensities(**{**good, **arguments}), *parts)


@pytest.mark.parametrize(
    "item_ids", [[[101, 102]], 101, np.ones(N, bool), [1.5, 2.0], [101, None]], ids=repr
)
def test_bad_rankings_are_refused(catalog: fr.Catalog, item_ids: Any) -> None:
    refused(lambda: catalog.log_propensities(QUERY, item_ids, policy=PLACKETT_LUCE), "item_ids")


def test_the_policy_has_no_default(catalog: fr.Catalog) -> None:
    with pytest.raises(TypeError, match="policy"):
        catalog.rank(QUERY, 3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="policy"):
        catalog.rank_batch(QUERY[None], 3)  # type: ignore[call-arg]


def test_a_huge_k_allocates_what_there_is(catalog: fr.Catalog) -> None:
    for k in (2**40, 2**62, 2**70):
        assert len(catalog.rank(QUERY, k, policy=PLACKETT_LUCE)) == N
    batch = catalog.rank_batch(QUERY[None], 2**40, policy=PLACKETT_LUCE)
    assert batch.item_ids.shape == (1, N)


def test_numpy_integers_are_integers(catalog: fr.Catalog) -> None:
    integers: list[Any] = [np.int32(4), np.uint64(2**64 - 1)]
    a = catalog.rank(QUERY, integers[0], policy=PLACKETT_LUCE, seed=integers[1])
    b = catalog.rank(QUERY, 4, policy=PLACKETT_LUCE, seed=2**64 - 1)
    assert a.item_ids.tolist() == b.item_ids.tolist()
    assert type(a.seed) is int


# Filters


def test_unknown_and_repeated_ids_in_filters_are_ignored(catalog: fr.Catalog) -> None:
    plain = catalog.rank(
        QUERY, N, policy=PLACKETT_LUCE, seed=5, exclude=[101, 110], allow=np.arange(100, 120)
    )
    noisy = catalog.rank(
        QUERY,
        N,
        policy=PLACKETT_LUCE,
        seed=5,
        exclude=[110, 101, 101, -7, 2**40, 110],
        allow=[*range(119, 99, -1), 3, *range(100, 120), 2**62],
    )
    assert plain.item_ids.tolist() == noisy.item_ids.tolist()
    assert plain.log_propensities.tobytes() == noisy.log_propensities.tobytes()
    assert plain.n_eligible == noisy.n_eligible == 18


def test_exclude_wins(catalog: fr.Catalog) -> None:
    ranking = catalog.rank(QUERY, 5, policy=fr.Uniform(), allow=[101, 102, 103], exclude=[102])
    assert sorted(ranking.item_ids.tolist()) == [101, 103]


@pytest.mark.parametrize(
    "empty",
    [[], (), np.empty(0), np.empty(0, bool), np.empty(0, "U5"), np.empty(0, object)],
    ids=repr,
)
def test_empty_filters_of_any_dtype(catalog: fr.Catalog, words: fr.Catalog, empty: Any) -> None:
    for each in (catalog, words):
        everything = each.rank(QUERY, 5, policy=PLACKETT_LUCE, exclude=empty)
        assert everything.n_eligible == N
        nothing = each.rank(QUERY, 5, policy=PLACKETT_LUCE, allow=empty)
        assert nothing.n_eligible == len(nothing) == 0
        assert nothing.item_ids.dtype.kind == each.item_ids.dtype.kind


def test_filters_by_str_id_do_not_truncate(vectors: npt.NDArray[np.float32]) -> None:
    """An id longer than any in the catalog must not match by its first letters."""
    catalog = fr.Catalog(["abc", "abd", "b", "", "é", "日本"], vectors[:6])
    ranking = catalog.rank(
        QUERY, 9, policy=fr.Uniform(), exclude=["abcd", "abd ", "b", "日本", "e"]
    )
    assert sorted(ranking.item_ids.tolist()) == sorted(["abc", "abd", "", "é"])
    logs = catalog.log_propensities(QUERY, ["abcd", "abc"], policy=fr.Uniform())
    assert np.exp(logs) == pytest.approx([0.0, 1 / 6])


def test_ids_beyond_int64_are_refused_and_do_not_wrap(vectors: npt.NDArray[np.float32]) -> None:
    catalog = fr.Catalog([-1, -5, 3], vectors[:3])
    ids = np.array([3, 2**64 - 1, 2**64 - 5], np.uint64)  # -1 and -5, had they wrapped
    for wrapping in (ids, ids.tolist()):
        for name in ("exclude", "allow"):
            refused(
                lambda name=name, wrapping=wrapping: catalog.rank(  # type: ignore[misc]
                    QUERY, 3, policy=fr.Uniform(), **{name: wrapping}
                ),
                name,
                "1",
                str(2**64 - 1),
            )


def test_str_ids_all_the_way(words: fr.Catalog, catalog: fr.Catalog) -> None:
    """Positions decide the draw, so that ids of another type rank alike."""
    for name, policy in POLICIES.items():
        by_word = words.rank(QUERY, 6, policy=policy, seed=3, exclude=["item 2", "nobody"])
        by_number = catalog.rank(QUERY, 6, policy=policy, seed=3, exclude=[102, -1])
        assert [int(w.split()[1]) + 100 for w in by_word.item_ids] == by_number.item_ids.tolist()
        assert by_word.log_propensities.tobytes() == by_number.log_propensities.tobytes(), name
        logs = words.log_propensities(QUERY, by_word.item_ids, policy=policy, exclude=["item 2"])
        np.testing.assert_allclose(logs, by_word.log_propensities, atol=1e-6)


# Seeds


@pytest.mark.parametrize("policy", POLICIES)
def test_a_drawn_seed_is_recorded_and_replays(catalog: fr.Catalog, policy: str) -> None:
    drawn = [catalog.rank(QUERY, 5, policy=POLICIES[policy]) for _ in range(50)]
    seeds = {ranking.seed for ranking in drawn}
    assert len(seeds) == 50
    assert all(type(seed) is int and 0 <= seed < 2**53 for seed in seeds)
    assert max(seeds) > 2**44  # not the seeds of a small range
    for ranking in drawn:
        again = catalog.rank(QUERY, 5, policy=POLICIES[policy], seed=ranking.seed)
        assert again.item_ids.tolist() == ranking.item_ids.tolist()
        assert again.log_propensities.tobytes() == ranking.log_propensities.tobytes()


def test_drawn_seeds_ignore_numpys_global_seed(catalog: fr.Catalog) -> None:
    seeds = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002 - that it plays no part is the point
        seeds.append(catalog.rank(QUERY, 2, policy=fr.Uniform()).seed)
    assert seeds[0] != seeds[1]


# Batches


def test_a_batch_row_is_the_ranking_of_its_seed(isa: str) -> None:
    item = random_scored(300, 4, seed=8, bias=True)
    queries = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    seeds = [0, 5, 2**63, 2**64 - 1, 5, 9]
    as_array = np.array(seeds, np.uint64)
    exclude = [item.ids([i, i + 1]) for i in range(6)]
    allow = [item.ids(np.arange(i, 300, i + 1)) for i in range(6)]
    bias = np.random.default_rng(2).standard_normal(300).astype(np.float32)
    for policy in POLICIES.values():
        batch = item.catalog.rank_batch(
            queries, 7, policy=policy, seeds=seeds, exclude=exclude, allow=allow, bias=bias
        )
        again = item.catalog.rank_batch(
            queries, 7, policy=policy, seeds=as_array, exclude=exclude, allow=allow, bias=bias
        )
        assert again.seeds.tolist() == seeds
        assert again.item_ids.tolist() == batch.item_ids.tolist()
        assert len(batch) == 6
        assert batch.seeds.tolist() == seeds
        assert batch.policies == (policy,) * 6
        for i, row in enumerate(batch):
            single = item.catalog.rank(
                queries[i],
                7,
                policy=policy,
                seed=seeds[i],
                exclude=exclude[i],
                allow=allow[i],
                bias=bias,
            )
            assert row.item_ids.tolist() == single.item_ids.tolist()
            assert row.scores.tobytes() == single.scores.tobytes()
            assert row.log_propensities.tobytes() == single.log_propensities.tobytes()
            assert row.log_propensity == single.log_propensity
            assert row.log_norm == single.log_norm
            assert row.seed == single.seed
            assert row.n_eligible == single.n_eligible
            assert row.policy == single.policy
            assert row.catalog_version == single.catalog_version
            assert row.propensity_kind == single.propensity_kind


def test_a_batch_of_different_policies(catalog: fr.Catalog) -> None:
    policies = list(POLICIES.values())
    batch = catalog.rank_batch(
        np.tile(QUERY, (len(policies), 1)), 4, policy=policies, seeds=range(len(policies))
    )
    assert batch.policies == tuple(policies)
    for i, policy in enumerate(policies):
        single = catalog.rank(QUERY, 4, policy=policy, seed=i)
        assert batch[i].item_ids.tolist() == single.item_ids.tolist()
        assert np.isnan(batch.log_norm[i]) == (single.log_norm is None)


def test_cells_past_the_counts_are_blank(catalog: fr.Catalog, words: fr.Catalog) -> None:
    for each, blank in ((catalog, -1), (words, "")):
        ids = each.item_ids
        batch = each.rank_batch(
            np.tile(QUERY, (3, 1)), 4, policy=PLACKETT_LUCE, allow=[ids[:2], ids[:0], ids]
        )
        assert batch.counts.tolist() == [2, 0, 4]
        assert batch.n_eligible.tolist() == [2, 0, N]
        assert batch.item_ids.shape == batch.scores.shape == batch.log_propensities.shape == (3, 4)
        assert batch.item_ids[0, 2:].tolist() == [blank] * 2
        assert batch.item_ids[1].tolist() == [blank] * 4
        assert np.isnan(batch.scores[0, 2:]).all()
        assert np.isnan(batch.log_propensities[0, 2:]).all()
        assert np.isnan(batch.scores[1]).all()
        assert not np.isnan(batch.scores[2]).any()
        assert [len(row) for row in batch] == [2, 0, 4]


def test_a_batch_is_a_sequence(catalog: fr.Catalog) -> None:
    batch = catalog.rank_batch(np.tile(QUERY, (5, 1)), 3, policy=PLACKETT_LUCE, seeds=range(5))
    assert batch[-1].seed == 4
    assert [row.seed for row in batch[1:4]] == [1, 2, 3]
    with pytest.raises(IndexError):
        batch[5]


def test_drawn_seeds_of_a_batch_differ(catalog: fr.Catalog) -> None:
    """Equal users get rankings of their own: one noise for all is a classic bug."""
    batch = catalog.rank_batch(np.tile(QUERY, (200, 1)), 5, policy=PLACKETT_LUCE)
    assert len(set(batch.seeds.tolist())) == 200
    assert batch.seeds.dtype == np.uint64
    assert int(batch.seeds.max()) < 2**53
    assert len({tuple(row) for row in batch.item_ids.tolist()}) > 150
    other = catalog.rank_batch(np.tile(QUERY, (200, 1)), 5, policy=PLACKETT_LUCE)
    assert not set(other.seeds.tolist()) & set(batch.seeds.tolist())


@pytest.mark.parametrize("given", [7, np.int64(7), np.array(7), 7.0], ids=repr)
def test_a_scalar_seed_for_a_batch_is_refused(catalog: fr.Catalog, given: Any) -> None:
    refused(
        lambda: catalog.rank_batch(np.tile(QUERY, (3, 1)), 2, policy=PLACKETT_LUCE, seeds=given),
        "seeds",
    )


BAD_BATCHES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "queries 1-d": ({"queries": QUERY}, ("queries",)),
    "queries too narrow": ({"queries": np.ones((3, 2))}, ("queries", "2", "3")),
    "queries nan": ({"queries": changed(np.ones((3, 3)), (2, 0), np.nan)}, ("queries", "2", "nan")),
    "queries beyond": ({"queries": changed(np.ones((3, 3)), 1, 3e38)}, ("queries", "row 1")),
    "queries bool": ({"queries": np.ones((3, 3), bool)}, ("queries", "bool")),
    "k": ({"k": 0}, ("k", "0")),
    "seeds short": ({"seeds": [1, 2]}, ("seeds", "2", "3")),
    "seeds long": ({"seeds": [1, 2, 3, 4]}, ("seeds", "4", "3")),
    "seeds negative": ({"seeds": [1, 2, -3]}, ("seeds[2]", "-3")),
    "seeds too large": ({"seeds": [1, 2**64, 3]}, ("seeds[1]", str(2**64))),
    "seeds float": ({"seeds": [1.0, 2.0, 3.0]}, ("seeds",)),
    "seeds bool": ({"seeds": np.ones(3, bool)}, ("seeds", "True")),
    "policies short": ({"policy": [PLACKETT_LUCE] * 2}, ("policy", "2", "3")),
    "policy unknown": (
        {"policy": [PLACKETT_LUCE, "uniform", PLACKETT_LUCE]},
        ("row 1", "policy", "uniform"),
    ),
    "exclude flat": ({"exclude": [101, 102, 103]}, ("exclude",)),
    "exclude short": ({"exclude": [[101], [102]]}, ("exclude", "2", "3")),
    "exclude mask": ({"exclude": [[101], np.ones(N, bool), []]}, ("exclude[1]", "bool")),
    "allow flat": ({"allow": np.array([101, 102, 103])}, ("allow",)),
    "allow short": ({"allow": [[101], [102]]}, ("allow", "2", "3")),
    "bias": ({"bias": [1.0]}, ("bias",)),
    "bias huge": ({"bias": changed(np.zeros((3, N)), (2, 7), 3e38)}, ("row 2, column 7", "bias")),
    "bias ragged": ({"bias": [[0.0] * N, [0.0], [0.0] * N]}, ("bias: row 1",)),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches_are_refused(catalog: fr.Catalog, case: str) -> None:
    arguments, parts = BAD_BATCHES[case]
    good: dict[str, Any] = {"queries": np.ones((3, DIM)), "k": 2, "policy": PLACKETT_LUCE}
    refused(lambda: catalog.rank_batch(**{**good, **arguments}), *parts)


def test_none_among_the_filters_of_a_batch_filters_nothing(catalog: fr.Catalog) -> None:
    batch = catalog.rank_batch(
        np.tile(QUERY, (2, 1)), 3, policy=PLACKETT_LUCE, allow=[None, [101]], exclude=[[102], None]
    )
    assert batch.n_eligible.tolist() == [N - 1, 1]


# The cache of the cached sampler


def test_a_cache_of_any_size_ranks_alike() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((2_000, 3)).astype(np.float32)
    queries = rng.standard_normal((20, 3)).astype(np.float32)
    policy = fr.PlackettLuce(0.5, sampler="cached")
    results = []
    for cache_bytes in (0, 40_000, 256 << 20):
        catalog = fr.Catalog(np.arange(2_000), vectors, cache_bytes=cache_bytes)
        rows = [
            catalog.rank(query, 5, policy=policy, seed=seed)
            for seed, query in enumerate([*queries, *queries, *queries[::-1]])
        ]
        results.append([(row.item_ids.tolist(), row.log_propensities.tobytes()) for row in rows])
    assert results[0] == results[1] == results[2]


def test_the_cache_does_not_mix_up_queries_temperatures_and_biases() -> None:
    item = scored(np.linspace(-2, 2, 30))
    bias = np.linspace(3, -3, 30).astype(np.float32)
    for query in (1.0, -1.0, 1.0000001):
        for temperature in (0.5, 0.5000001, 2.0):
            for extra in (None, bias):
                policy = fr.PlackettLuce(temperature, sampler="cached")
                given = np.full(1, query, np.float32)
                ranking = item.catalog.rank(given, 3, policy=policy, seed=1, bias=extra)
                logs = item.catalog.log_propensities(
                    given,
                    ranking.item_ids,
                    policy=fr.PlackettLuce(temperature),
                    bias=extra,
                )
                np.testing.assert_allclose(ranking.log_propensities, logs, atol=1e-6)


def test_what_is_returned_cannot_change_the_catalog_or_the_model() -> None:
    catalog = fr.Catalog([3, 1, 2], [[1.0], [2.0], [3.0]])
    model = fr.Model(catalog, ["u"], [[1.0]])
    for array in (catalog.item_ids, model.user_ids, model.user_vector("u")):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = array[::-1]


def test_one_content_has_one_version_whatever_its_dtype() -> None:
    vectors = np.array([[1.0], [2.0]])
    ids: list[Any] = [["a", "b"], np.array(["a", "b"], "U9"), np.array(["a", "b"], ">U1")]
    assert (
        len({fr.Catalog(i, v).version for i in ids for v in (vectors, vectors.astype(">f4"))}) == 1
    )
    numbers: list[Any] = [[1, 2], np.array([1, 2], np.uint8), np.array([1, 2], ">i8")]
    assert len({fr.Catalog(i, vectors).version for i in numbers}) == 1


def test_masked_arrays_are_refused() -> None:
    catalog = fr.Catalog([1, 2], [[1.0], [2.0]])
    masked = np.ma.masked_array([1, 2], mask=[True, False])
    with pytest.raises(ValueError, match="exclude: expected no masked array"):
        catalog.rank([1.0], policy=fr.Uniform(), exclude=masked)
    with pytest.raises(ValueError, match="query: expected no masked array"):
        catalog.rank(masked[:1], policy=fr.Uniform())


def test_the_cache_of_a_small_catalog_is_bounded_by_what_it_really_takes() -> None:
    catalog = fr.Catalog(np.arange(10), np.ones((10, 64)), cache_bytes=1 << 20)
    queries = np.random.default_rng(0).standard_normal((2_000, 64)).astype(np.float32)
    catalog.rank(queries[0], policy=fr.PlackettLuce(sampler="cached"))
    tracemalloc.start()
    try:
        for query in queries:
            catalog.rank(query, policy=fr.PlackettLuce(sampler="cached"))
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_catalog_is_not_pickled_by_accident() -> None:
    with pytest.raises(TypeError, match="save it"):
        pickle.dumps(fr.Catalog([1], [[1.0]]))


# What no query can rank


def test_the_longest_vectors_and_biases_can_be_ranked() -> None:
    """By queries of a norm of 1,000 and less; for longer ones the query is named."""
    vectors, bias = [[1e35], [-1e35], [0.0]], [1e37, 0.0, -1e37]
    catalog = fr.Catalog([1, 2, 3], vectors, bias=bias)
    for query in ([1000.0], [-1.0]):
        ranking = catalog.rank(query, 3, policy=PLACKETT_LUCE, bias=[0.0, 0.0, 1e37])
        assert np.isfinite(ranking.scores).all()
    assert fr.Model(catalog, [7], [[1000.0]]).recommend(7, 3, policy=PLACKETT_LUCE).seed >= 0
    refused(lambda: catalog.rank([2000.0], policy=PLACKETT_LUCE), "query: with a norm of 2000")
    refused(
        lambda: catalog.log_propensities_batch(
            [[1.0], [2000.0]], [[1], [2]], policies=[PLACKETT_LUCE]
        ),
        "queries: row 1: with a norm of 2000",
    )
    refused(
        lambda: fr.Model(catalog, [7, 8], [[1.0], [2000.0]]),
        "user_vectors: row 1: with a norm of 2000",
    )


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_huge_vector_is_named_by_its_row(storage: str) -> None:
    """Whatever the order in which items are kept."""
    n = 20_000
    vectors = np.zeros((n, 4), np.float32)
    vectors[[9_000, 12_000]] = 2e38
    for prior in (None, np.arange(n)):
        build = functools.partial(fr.Catalog, storage=storage, prior=prior)
        refused(functools.partial(build, np.arange(n), vectors), "vectors: row 9000: ")


# Equality


@pytest.mark.parametrize("policy", POLICIES)
def test_rankings_are_equal_by_value(policy: str, words: fr.Catalog, catalog: fr.Catalog) -> None:
    for items in (words, catalog):
        one = items.rank(QUERY, 5, policy=POLICIES[policy], seed=1)
        same = items.rank(QUERY, 5, policy=POLICIES[policy], seed=1)
        batch = items.rank_batch([QUERY, QUERY], 5, policy=POLICIES[policy], seeds=[1, 2])
        assert one == same == batch[0]
        assert hash(one) == hash(same) == hash(batch[0])
        assert len({one, same, batch[0]}) == 1
        assert one != batch[1]
        assert one != one.item_ids.tolist()
        others = [
            dataclasses.replace(one, seed=2),
            dataclasses.replace(one, catalog_version="other"),
            dataclasses.replace(one, item_ids=one.item_ids[::-1]),
            dataclasses.replace(one, item_ids=one.item_ids[:4]),
            dataclasses.replace(one, scores=np.nextafter(one.scores, np.float32(9))),
            dataclasses.replace(one, log_propensities=one.log_propensities - 1e-15),
            dataclasses.replace(one, log_norm=-1.5),
        ]
        assert [one == other for other in others] == [False] * len(others)
        again = items.rank_batch([QUERY, QUERY], 5, policy=POLICIES[policy], seeds=[1, 2])
        assert batch == again
        assert hash(batch) == hash(again)
        assert batch != items.rank_batch([QUERY] * 2, 5, policy=POLICIES[policy], seeds=[1, 3])
        assert batch != list(batch)


def test_what_is_not_there_is_equal(catalog: fr.Catalog) -> None:
    """NaN past the end of a short ranking, and as the log-norm of what has none."""
    allow = [[100, 101], None]
    batches = [
        catalog.rank_batch([QUERY] * 2, 5, policy=fr.Uniform(), seeds=[1, 2], allow=allow)
        for _ in range(2)
    ]
    assert np.isnan(batches[0].scores[0, 2:]).all()
    assert batches[0] == batches[1]
    nan = dataclasses.replace(batches[0][0], log_propensity=np.nan)
    assert nan == dataclasses.replace(nan)
    assert dataclasses.replace(nan, log_propensity=0.0) != dataclasses.replace(
        nan, log_propensity=-0.0
    )
