"""Fixed hashes: known answers, the slow twin, uniformity, and what was seen before."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from support import LIMIT, chi_square_p_value

from fastrank.eventlog.hashing import SeenHashes, text_hash, text_hashes, uniforms

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
    seen = SeenHashes()
    found = np.concatenate([seen.add(hashes[at : at + step]) for at in range(0, 5000, step)])
    first = np.zeros(5000, np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    np.testing.assert_array_equal(found, ~first)
    assert len(seen) == len(np.unique(keys))


def test_equal_first_halves_are_told_apart() -> None:
    """Collisions of the sorted half must not hide or invent a repeat."""
    seen = SeenHashes()
    same = np.array([[5, 1], [5, 2], [5, 1], [5, 3]], np.uint64)
    assert seen.add(same).tolist() == [False, False, True, False]
    later = np.array([[5, 2], [5, 4], [5, 3]], np.uint64)
    assert seen.add(later).tolist() == [True, False, True]
    assert seen.add(np.array([[5, 4], [5, 5]], np.uint64)).tolist() == [True, False]


def test_runs_are_few_and_hold_sixteen_bytes_a_request() -> None:
    seen = SeenHashes()
    rng = np.random.default_rng(3)
    for _ in range(200):
        seen.add(rng.integers(0, 2**63, (100, 2)).astype(np.uint64))
    assert len(seen) == 20_000
    assert len(seen._runs) <= 16
    assert sum(a.nbytes + b.nbytes for a, b in seen._runs) == 16 * 20_000
