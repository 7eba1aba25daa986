"""What rules ask of the core: values of a function, scores of a few items, masses by label."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastrank as fr
from fastrank import _native, packing

Array = npt.NDArray[Any]

# Scored panel by panel, and, of so many steps, a tile at a time.
SHORT, LONG = "dot + s", "dot + s" + " + 0 * s" * 9
STORAGES = ["float32", "int8"]


@pytest.fixture(autouse=True)
def coded_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small catalogs have codes, too."""
    monkeypatch.setattr(packing, "CODED_FROM", 0)


def some_catalog(n: int, dim: int = 6, *, bias: bool = False, storage: str = "float32") -> Any:
    """With whole numbers in a column `s`, of which some are 0."""
    rng = np.random.default_rng(n)
    return fr.Catalog(
        np.arange(n) * 2 + 1,
        rng.standard_normal((n, dim), dtype=np.float32),
        bias=rng.standard_normal(n).astype(np.float32) if bias else None,
        features={"s": rng.integers(0, 4, n).astype(float)},
        storage=storage,
    )


def function_of(catalog: fr.Catalog, text: str) -> Any:
    bound = catalog._bind(text, None)
    assert bound is not None
    return bound.function


def query_of(catalog: fr.Catalog, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return catalog._query(rng.standard_normal(catalog.dim).astype(np.float32))


# ---- Values of a function ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 15, 16, 37, 5003])
@pytest.mark.parametrize("text", [SHORT, LONG])
def test_values_are_what_it_makes_of_nothing(isa: str, n: int, text: str) -> None:
    catalog = some_catalog(n, bias=True)
    values = function_of(catalog, text).values()
    assert values.dtype == np.float32
    rng = np.random.default_rng(n)
    rng.standard_normal((n, 6), dtype=np.float32), rng.standard_normal(n)
    np.testing.assert_array_equal(values, rng.integers(0, 4, n))
    truths = function_of(catalog, "0 * dot + (1 < s <= 2 or s == 0)").values()
    np.testing.assert_array_equal(truths, (values == 2) | (values == 0))


def test_values_that_are_none_name_the_lowest_item(isa: str) -> None:
    catalog = some_catalog(5003)
    bad = int(np.flatnonzero(function_of(catalog, "dot + s").values() == 0)[0])
    with pytest.raises(ValueError, match=f"gives the item {2 * bad + 1} more than 1e38"):
        function_of(catalog, "dot + 1 / s").values()
    with pytest.raises(ValueError, match=f"gives the item {2 * bad + 1} nan"):
        function_of(catalog, "dot / s").values()


def test_values_of_code_are_of_items_alone(isa: str) -> None:
    n = 5003

    def run(_context: int, first: int, count: int, scores: int) -> None:
        made = np.ctypeslib.as_array((ctypes.c_float * count).from_address(scores))
        assert not made.any()
        made[:] = np.arange(first, first + count)

    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    code = ctypes.CFUNCTYPE(None, pointer, integer, integer, pointer)(run)
    none, address = np.zeros(0, np.float32), ctypes.cast(code, pointer).value
    assert address is not None
    function = _native.Function(n, lambda position, what: "", none, [], [], code=address)
    np.testing.assert_array_equal(function.values(), np.arange(n))


# ---- Scores of a few items ---------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("text", [None, SHORT, LONG])
@pytest.mark.parametrize("n", [1, 16, 37, 5003])
def test_scores_of_some_are_those_of_all(isa: str, n: int, text: str | None, storage: str) -> None:
    rng = np.random.default_rng(1)
    for bias in (False, True):
        catalog = some_catalog(n, bias=bias, storage=storage)
        packed, query = catalog._packed, query_of(catalog)
        function = None if text is None else function_of(catalog, text)
        call_bias = rng.standard_normal(n).astype(np.float32)
        for own in (None, call_bias):
            scores = packed.scores(query, own, function)
            for positions in (
                np.arange(n),
                np.arange(n)[::-1].copy(),
                rng.integers(0, n, 3 * n),
                np.array([n - 1, 0, n - 1]),
                np.zeros(0, np.int64),
            ):
                found = packed.scores_at(query, positions, own, function)
                assert found.dtype == np.float32
                assert found.tobytes() == scores[positions].tobytes()


@pytest.mark.parametrize("n", [1, 16, 37])
def test_given_scores_of_some(isa: str, n: int) -> None:
    scores = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    scores[::3] = -0.0
    packed, positions = _native.GivenScores(n), np.arange(n)[::-2].copy()
    found = packed.scores_at(scores, positions, None)
    assert found.tobytes() == packed.scores(scores, None)[positions].tobytes()
    scores[n // 2] = np.nan
    with pytest.raises(ValueError, match=f"^scores: index {n // 2}: must be finite"):
        packed.scores_at(scores, positions, None)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("text", ["dot / s", "dot / s" + " + 0 * dot" * 9])
def test_only_an_item_that_is_asked_for_needs_a_score(isa: str, storage: str, text: str) -> None:
    catalog = some_catalog(101, storage=storage)
    packed, query, function = catalog._packed, query_of(catalog), function_of(catalog, text)
    s = function_of(catalog, "dot + s").values()
    good, bad = np.flatnonzero(s), np.flatnonzero(s == 0)
    assert len(set(good // 16) & set(bad // 16)) == 7
    found = packed.scores_at(query, good, None, function)
    dots = packed.scores(query, None)
    np.testing.assert_allclose(found, dots[good] / s[good], rtol=1e-6)
    asked = np.concatenate([good, bad[[2, 1]]])
    with pytest.raises(ValueError, match=f"gives the item {2 * bad[1] + 1} "):
        packed.scores_at(query, asked, None, function)


def test_positions_that_are_none_are_refused() -> None:
    catalog = some_catalog(37)
    for bad in (-1, 37):
        with pytest.raises(ValueError, match=rf"positions: entry 1: expected .* got {bad}$"):
            catalog._packed.scores_at(query_of(catalog), np.array([0, bad]), None)


# ---- Masses by label, each relative to itself --------------------------------------------------


def words(mask: Array) -> Array:
    """A bit for each item, as filters have them."""
    bits = np.zeros(-(-len(mask) // 16) * 16, np.uint16)
    bits[: len(mask)] = mask
    result: Array = np.left_shift(bits.reshape(-1, 16), np.arange(16)).sum(1, dtype=np.uint16)
    return result


def true_masses(scores: Array, t: float, labels: Array, n_labels: int) -> tuple[Array, ...]:
    values, references = np.zeros(n_labels), np.zeros(n_labels)
    counts = np.bincount(labels[labels >= 0], minlength=n_labels)
    for label in np.flatnonzero(counts):
        own = scores[labels == label].astype(np.float64)
        references[label] = own.max()
        values[label] = np.exp((own - own.max()) / t).sum()
    return values, references, counts


def check_masses(
    packed: Any, query: Array, scores: Array, t: float, labels: Array, n_labels: int, **call: Any
) -> None:
    """With a filter, and without one."""
    for share in (1.0, 0.3):
        mask = np.random.default_rng(3).random(len(scores)) < share
        eligible = None if share == 1.0 else words(mask)
        values, references, counts = packed.label_masses(
            query, t, call.get("bias"), eligible, labels, n_labels, call.get("function")
        )
        right = true_masses(scores, t, np.where(mask, labels, -1), n_labels)
        np.testing.assert_allclose(values, right[0], rtol=1e-6, atol=0)
        np.testing.assert_array_equal(references, right[1])
        np.testing.assert_array_equal(counts, right[2])
        if t == np.inf:
            np.testing.assert_array_equal(values, counts)


TEMPERATURES = [1e-6, 0.03, 1.0, 1e6, np.inf]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("text", [None, SHORT, LONG])
@pytest.mark.parametrize("n", [1, 16, 37, 5003])
def test_masses_by_label(isa: str, n: int, text: str | None, storage: str) -> None:
    rng = np.random.default_rng(n)
    catalog = some_catalog(n, bias=True, storage=storage)
    packed, query = catalog._packed, query_of(catalog)
    function = None if text is None else function_of(catalog, text)
    bias = rng.standard_normal(n).astype(np.float32)
    scores = packed.scores(query, bias, function)
    for n_labels in (1, 7, 300):
        labels = rng.integers(-1, n_labels, n).astype(np.int32)
        for t in TEMPERATURES:
            check_masses(packed, query, scores, t, labels, n_labels, bias=bias, function=function)


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "ties"])
def test_masses_of_given_scores(isa: str, order: str) -> None:
    """Nothing is lost however far labels lie apart, and whichever comes first."""
    n, n_labels = 4_003, 5
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_labels, n).astype(np.int32)
    scores = rng.standard_normal(n).astype(np.float32) + 3e4 * labels.astype(np.float32)
    if order == "ties":
        scores = (1e30 * labels).astype(np.float32)
    elif order != "random":
        by = np.argsort(scores)[:: 1 if order == "ascending" else -1]
        scores, labels = scores[by], labels[by]
    for t in TEMPERATURES:
        check_masses(_native.GivenScores(n), scores, scores, t, labels, n_labels)


def test_labels_that_are_none_are_refused() -> None:
    catalog = some_catalog(37)
    packed, query = catalog._packed, query_of(catalog)
    for labels, n_labels, message in (
        ([0] * 36 + [4], 4, "^labels: entry 36: expected a label below 4, got 4$"),
        ([0] * 37, 0, "^labels: entry 0: expected a label below 0, got 0$"),
        ([0] * 36, 4, "^labels: wrong length$"),
        ([0] * 37, -1, "^labels: wrong length$"),
    ):
        with pytest.raises(ValueError, match=message):
            packed.label_masses(query, 1.0, None, None, np.array(labels, np.int32), n_labels)
    none = packed.label_masses(query, 1.0, None, None, np.full(37, -1, np.int32), 0)
    assert [len(each) for each in none] == [0, 0, 0]


def test_masses_of_scores_that_are_none_name_the_item(isa: str) -> None:
    catalog = some_catalog(101)
    packed, query, function = catalog._packed, query_of(catalog), function_of(catalog, "dot / s")
    s, labels = function_of(catalog, "dot + s").values(), np.zeros(101, np.int32)
    bad = int(np.flatnonzero(s == 0)[0])
    with pytest.raises(ValueError, match=f"gives the item {2 * bad + 1} "):
        packed.label_masses(query, 1.0, None, None, labels, 1, function)
    found = packed.label_masses(query, 1.0, None, words(s > 0), labels, 1, function)
    assert found[2] == (s > 0).sum()


# ---- Masses by label of what a pass does not rank ----------------------------------------------


def padded(labels: Array) -> Array:
    """What spare lanes are labelled does not matter."""
    result = np.zeros(-(-len(labels) // 16) * 16, np.uint16)
    result[: len(labels)] = labels
    return result


def check_pass(
    packed: Any,
    query: Array,
    k: int,
    t: float,
    labels: Array,
    n_labels: int,
    mask: Array | None = None,
    bias: Array | None = None,
    function: Any = None,
    threads: int = 1,
    seed: int = 1,
) -> Any:
    """The ranking is what it is without labels, to the bit; the masses are what NumPy sums up."""
    n = len(labels)
    scores = packed.scores(query, bias, function).astype(np.float64)
    eligible = None if mask is None else words(mask)
    left = np.ones(n, np.bool_) if mask is None else mask.copy()
    args = query, k, _native.GUMBEL, t, 0.0, seed, bias, eligible, int(left.sum()), threads
    plain = packed.rank(*args, None, function)
    made = packed.rank(*args, None, function, labels=padded(labels), n_labels=n_labels)
    for a, b in zip(plain, made, strict=False):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    masses, reference = made[7:]
    assert masses.shape == (n_labels,)
    assert masses.dtype == np.float64
    with np.errstate(under="ignore", over="ignore"):
        weights = np.where(left, np.exp((scores - reference) / t), 0.0)
    left[made[0]] = False
    right = np.bincount(labels[left], weights[left], n_labels)
    large = right >= 1e-3 * weights.sum()
    np.testing.assert_array_less(
        np.abs(masses - right), np.where(large, 1e-6, 2e-5) * right + n * 2.0**-126
    )
    if not left.any():
        assert not masses.any()
    return made


@pytest.mark.parametrize("n", [1, 16, 37, 300, 5003])
@pytest.mark.parametrize("t", [1e-6, 0.02, 0.3, 1e6])
def test_a_pass_sums_by_label_what_it_does_not_rank(
    isa: str, chunk_panels: int, n: int, t: float
) -> None:
    rng = np.random.default_rng(n)
    catalog = some_catalog(n, bias=True)
    query = query_of(catalog)
    bias = rng.standard_normal(n).astype(np.float32)
    for n_labels in (1, 3, 5000):
        labels = rng.integers(0, n_labels, n)
        for k in (1, 7, n):
            check_pass(catalog._packed, query, min(k, n), t, labels, n_labels)
        for share in (0.5, 0.02, 0.0):
            mask = rng.random(n) < share
            check_pass(catalog._packed, query, min(3, n), t, labels, n_labels, mask, bias)


@pytest.mark.parametrize("text", [SHORT, LONG])
@pytest.mark.parametrize("n", [37, 40_007])
def test_a_pass_sums_scores_of_a_function(isa: str, chunk_panels: int, n: int, text: str) -> None:
    if chunk_panels and n > 5000:
        n = 5000
    catalog = some_catalog(n)
    labels = np.arange(n) * 11 // n  # most panels are of one label
    mask = np.random.default_rng(0).random(n) < 0.5
    for each in (None, mask):
        check_pass(
            *(catalog._packed, query_of(catalog), 10, 0.7, labels, 11, each),
            function=function_of(catalog, text),
        )


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "ties", "far"])
@pytest.mark.parametrize("t", [1e-6, 0.05, 1.0, 100.0])
def test_a_pass_sums_given_scores(isa: str, chunk_panels: int, order: str, t: float) -> None:
    """However the threshold moves: up, not at all, by more than float64 could scale a sum."""
    rng = np.random.default_rng(4)
    n = 3_001
    scores = rng.standard_normal(n).astype(np.float32)
    scores = {
        "random": scores,
        "ascending": np.sort(scores),
        "descending": np.sort(scores)[::-1].copy(),
        "ties": scores.round(),
        "far": (scores.astype(np.float64) ** 7 * 1e3).astype(np.float32),
    }[order]
    labels = np.minimum(rng.geometric(0.3, n) - 1, 19)  # one label is half of all
    packed = _native.GivenScores(n)
    for k in (1, 40):
        for seed in range(5):
            check_pass(packed, scores, k, t, labels, 20, seed=seed)
    check_pass(packed, scores, 40, t, labels, 20, labels % 3 > 0)


def test_masses_are_the_same_by_any_threads_and_in_any_batch(isa: str, chunk_panels: int) -> None:
    n, b, n_labels = (60_000, 9, 40) if not chunk_panels else (3_000, 9, 40)
    rng = np.random.default_rng(2)
    catalog = some_catalog(n)
    packed, labels = catalog._packed, rng.integers(0, n_labels, n)
    queries = np.stack([query_of(catalog, seed) for seed in range(b)])
    bias = rng.standard_normal((b, n)).astype(np.float32)
    t = np.linspace(0.1, 2.0, b)
    masks = [rng.random(n) < (i + 1) / b for i in range(b)]
    functions = [None, function_of(catalog, SHORT), function_of(catalog, LONG)] * 3
    allowed = [np.flatnonzero(mask) if i % 2 else None for i, mask in enumerate(masks)]
    alone = [
        check_pass(
            *(packed, queries[i], 12, t[i], labels, n_labels, masks[i] if i % 2 else None),
            *(bias[i], functions[i], threads, i),
        )
        for i in range(b)
        for threads in (1, 3)
    ]
    for one, many in zip(alone[::2], alone[1::2], strict=True):
        assert one[7].tobytes() == many[7].tobytes()
        assert one[8] == many[8]
    kinds = np.full(b, _native.GUMBEL, np.int32)
    seeds, none = np.arange(b, dtype=np.uint64), np.zeros(b)
    for threads in (1, 2):
        args = queries, 12, kinds, t, none, seeds, bias, [None] * b, allowed, threads
        plain = packed.rank_batch(*args, None, functions)
        made = packed.rank_batch(*args, None, functions, labels=padded(labels), n_labels=n_labels)
        for i, one in enumerate(alone[::2]):
            for j in range(3):
                assert made[j][i].tobytes() == plain[j][i].tobytes() == one[j].tobytes()
            assert made[9][i].tobytes() == one[7].tobytes()
            assert made[10][i] == one[8]


def test_a_batch_of_one_score_each(isa: str) -> None:
    n, b, n_labels = 20_011, 3, 7
    rng = np.random.default_rng(8)
    packed: Any = _native.GivenScores(n)
    labels = rng.integers(0, n_labels, n)
    scores = rng.standard_normal((b, n)).astype(np.float32)
    kinds, seeds = np.full(b, _native.GUMBEL, np.int32), np.arange(b, dtype=np.uint64)
    args: Any = scores, 5, kinds, np.full(b, 0.5), np.zeros(b), seeds, None, [None] * b, [None] * b
    made = packed.rank_batch(*args, 2, labels=padded(labels), n_labels=n_labels)
    for i in range(b):
        one = check_pass(packed, scores[i], 5, 0.5, labels, n_labels, seed=i)
        assert made[9][i].tobytes() == one[7].tobytes()
        assert made[10][i] == one[8]


def test_passes_that_cannot_sum_by_label_are_refused() -> None:
    catalog, of_codes = some_catalog(37), some_catalog(37, storage="int8")
    labels = np.zeros(48, np.uint16)

    def rank(of: fr.Catalog, kind: int, n_labels: int, some: Array = labels) -> Any:
        return of._packed.rank(
            *(query_of(of), 3, kind, 1.0, 0.0, 1, None, None, 37), labels=some, n_labels=n_labels
        )

    gumbel = _native.GUMBEL
    with pytest.raises(ValueError, match=r"^labels: no masses are summed over codes$"):
        rank(of_codes, gumbel, 1)
    for kind in (_native.DETERMINISTIC, _native.SEQUENTIAL, _native.UNIFORM, _native.TABLE):
        with pytest.raises(ValueError, match=r"^labels: no pass of this kind sums by them$"):
            rank(catalog, kind, 1)
    for n_labels in (-1, 0):
        with pytest.raises(ValueError, match=r"^labels: entry 0: expected a label below"):
            rank(catalog, gumbel, n_labels)
    with pytest.raises(ValueError, match=r"^labels: wrong length$"):
        rank(catalog, gumbel, 1, labels[:37])
    labels[47] = 4  # of a spare lane, whose weight is 0
    with pytest.raises(ValueError, match=r"^labels: entry 47: expected a label below 4, got 4$"):
        rank(catalog, gumbel, 4)
    assert len(rank(catalog, gumbel, 5)[7]) == 5
    kinds = np.array([gumbel, _native.UNIFORM], np.int32)
    queries = np.stack([query_of(catalog)] * 2)
    with pytest.raises(ValueError, match=r"^labels: no pass of this kind sums by them$"):
        catalog._packed.rank_batch(
            *(queries, 3, kinds, np.ones(2), np.zeros(2), np.zeros(2, np.uint64)),
            *(None, [None] * 2, [None] * 2, 1),
            labels=labels,
            n_labels=5,
        )
