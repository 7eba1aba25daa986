"""Fixed hashes: known answers, the slow twin, uniformity, and what was seen before."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from support import LIMIT, chi_square_p_value

from fastrank.eventlog.hashing import SeenHashes, row_hashes, text_hash, text_hashes, uniforms

# Written once: groups, bootstraps and replay draws of users' evaluations depend on them.
KNOWN = {
    "": (0xE220A8397B1DCDAF, 0x8209B480FAED1B10),
    "a": (0x0DCC227C03C0ED9C, 0xC38C22CC5310E52E),
    "user-42": (0x412EC6AEAA5FEAEC, 0xAF57D16103D11557),
    "0f8fad5b-d9cb-469f-a165-70867728950e": (0x3122FBD05576DDEF, 0x1CF73F22C3CADE36),
    "ü" * 200: (0x850C46CFC5C0251B, 0x5154F4B630AF3B87),
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_answers(text: str) -> None:
    assert text_hash(text) == KNOWN[text]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=30), st.text(min_size=100, max_size=300)), max_size=40))
def test_a_column_hashes_like_its_texts(texts: list[str]) -> None:
    column = pa.array(texts, pa.string())
    assert [tuple(row) for row in text_hashes(column).tolist()] == [text_hash(t) for t in texts]


@pytest.mark.parametrize("lengths", [(36, 36), (0, 0), (1, 80), (250, 260)])
def test_slices_and_nulls(lengths: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    texts: list[str | None] = [
        "".join(rng.choice(list("abcdé"), rng.integers(lengths[0], lengths[1] + 1)))
        for _ in range(50)
    ]
    column = pa.array(texts)
    expected = [text_hash(text or "") for text in texts]
    for start, stop in [(0, 50), (7, 31), (49, 50), (20, 20)]:
        part = text_hashes(column.slice(start, stop - start))
        assert [tuple(row) for row in part.tolist()] == expected[start:stop]
    texts[3] = texts[10] = None
    with_nulls = text_hashes(pa.array(texts).slice(2, 20))
    assert tuple(with_nulls[1].tolist()) == text_hash("")


@pytest.mark.parametrize("pattern", ["{}", "user-{}", "{:020d}", "2026-01-01T00:00:00Z/{}"])
def test_sequential_texts_spread_evenly(pattern: str) -> None:
    """Chi-square over 1,024 groups, as errors are clustered; fails below LIMIT = 1e-9, 12 tests."""
    hashes = text_hashes(pa.array([pattern.format(i) for i in range(100_000)]))
    law = np.full(1024, 1 / 1024)
    for lane in (hashes[:, 0], hashes[:, 1]):
        assert chi_square_p_value(np.bincount(lane % 1024, minlength=1024), law) > LIMIT
    cells = (uniforms(hashes) * 1024).astype(np.int64)
    assert chi_square_p_value(np.bincount(cells, minlength=1024), law) > LIMIT


def test_a_weak_hash_fails_that_test() -> None:
    """The sum of a text's bytes, say."""
    sums = np.array([sum(f"user-{i}".encode()) for i in range(100_000)])
    law = np.full(1024, 1 / 1024)
    assert chi_square_p_value(np.bincount(sums % 1024, minlength=1024), law) < LIMIT


def test_uniforms_lie_in_the_half_open_interval() -> None:
    extremes = np.array([[0, 0], [2**64 - 1, 2**64 - 1], [0, 2**64 - 1]], np.uint64)
    drawn = uniforms(extremes)
    assert ((drawn >= 0.0) & (drawn < 1.0)).all()


@pytest.mark.parametrize("step", [1, 7, 1000, 5000])
def test_repeats_are_found_across_batches(step: int) -> None:
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 3000, 5000)
    hashes = text_hashes(pa.array([f"k{key}" for key in keys]))
    contents = rng.integers(0, 3, 5000).astype(np.uint64)
    seen = SeenHashes()
    parts = [
        seen.add(hashes[at : at + step], contents[at : at + step]) for at in range(0, 5000, step)
    ]
    found, otherwise = (np.concatenate(each) for each in zip(*parts, strict=True))
    first = np.zeros(5000, np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    np.testing.assert_array_equal(found, ~first)
    of_first = dict(zip(keys[first].tolist(), contents[first].tolist(), strict=True))
    np.testing.assert_array_equal(otherwise, contents != [of_first[key] for key in keys.tolist()])
    assert len(seen) == len(np.unique(keys))


def test_equal_first_halves_are_told_apart() -> None:
    """Collisions of the sorted half must not hide or invent a repeat."""
    seen = SeenHashes()

    def add(*pairs: tuple[int, int, int]) -> tuple[list[bool], list[bool]]:
        rows = np.array(pairs, np.uint64)
        before, otherwise = seen.add(rows[:, :2], rows[:, 2])
        return before.tolist(), otherwise.tolist()

    assert add((5, 1, 0), (5, 2, 0), (5, 1, 9), (5, 3, 0)) == (
        [False, False, True, False], [False, False, True, False],
    )  # fmt: skip
    assert add((5, 2, 9), (5, 4, 4), (5, 3, 0)) == ([True, False, True], [True, False, False])
    assert add((5, 4, 4), (5, 5, 0), (4, 4, 0), (6, 1, 0)) == (
        [True, False, False, False], [False] * 4,
    )  # fmt: skip


def test_many_rows_of_one_id_cost_as_any_others() -> None:
    """Neither a Python step for each nor a look at all others: it took the square of the rows."""
    rows = np.full((400_000, 2), 7, np.uint64)
    spent = time.process_time()
    before, otherwise = SeenHashes().add(rows, np.arange(400_000, dtype=np.uint64) % 2)
    spent = time.process_time() - spent
    assert before.tolist() == [False] + [True] * 399_999
    assert int(otherwise.sum()) == 200_000
    plain = time.process_time()
    for _ in range(40):
        np.sort(np.random.default_rng(0).integers(0, 2**63, 400_000))
    assert spent < time.process_time() - plain


@pytest.mark.parametrize("width", [1, 3, 10, 65])
def test_hashes_of_rows_tell_contents_apart(width: int) -> None:
    """Every change of a place, every exchange of two, for numbers whose bits are mostly zeros."""
    rng = np.random.default_rng(width)
    for base in (np.zeros(width), np.eye(1, width)[0], rng.integers(0, 2, width) * 0.5):
        rows = [base]
        for place in range(width):
            values = (1.0, 2.0, -1.0, 0.5, float(np.float32(0.1)))
            rows += [np.where(np.arange(width) == place, value, base) for value in values]
            for other in range(place):
                swapped = base.copy()
                swapped[[place, other]] = base[[other, place]]
                rows.append(swapped)
        table = np.array(rows)
        for dtype in (np.float64, np.float32):
            found = row_hashes(len(table), [None, table.astype(dtype)])
            distinct = len(np.unique(table.astype(dtype), axis=0))
            assert len(np.unique(found)) == distinct


def test_hashes_of_rows_do_not_depend_on_their_batch() -> None:
    rng = np.random.default_rng(1)
    table, flags = rng.normal(size=(50, 4)), rng.random(50) < 0.5
    whole = row_hashes(50, [table, None, flags, np.arange(50)])
    wider = np.pad(table, [(0, 0), (0, 5)])
    for rows in (slice(0, 1), slice(7, 30), slice(30, 50)):
        n = len(flags[rows])
        part = row_hashes(n, [wider[rows], np.zeros(n), flags[rows], np.arange(50)[rows]])
        np.testing.assert_array_equal(part, whole[rows])


def test_runs_are_few_and_hold_24_bytes_a_request() -> None:
    seen = SeenHashes()
    rng = np.random.default_rng(3)
    for _ in range(200):
        seen.add(rng.integers(0, 2**63, (100, 2)).astype(np.uint64), np.zeros(100, np.uint64))
    assert len(seen) == 20_000
    assert len(seen._runs) <= 16
    assert sum(part.nbytes for run in seen._runs for part in run) == 24 * 20_000
