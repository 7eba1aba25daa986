"""Look-up of ids: every way of it against a dict, whatever the ids and however many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from fastrank import _native
from fastrank.ids import IdIndex

IdArray: TypeAlias = npt.NDArray[Any]

N = 3_000
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def gapless(rng: np.random.Generator) -> IdArray:
    return rng.permutation(N).astype(np.int64) - 70


def lowest(rng: np.random.Generator) -> IdArray:
    return rng.permutation(N).astype(np.int64) + LOW


def highest(rng: np.random.Generator) -> IdArray:
    return HIGH - rng.permutation(N).astype(np.int64)


def sparse(rng: np.random.Generator) -> IdArray:
    ids = rng.choice(np.arange(LOW, HIGH, 2**40), N, replace=False)
    ids[:2] = LOW, HIGH
    return ids


def words(rng: np.random.Generator) -> IdArray:
    return np.array([f"ü{i}" if i % 3 else f"{i}" for i in rng.permutation(N)])


MAKERS: list[Callable[[np.random.Generator], IdArray]] = [gapless, lowest, highest, sparse, words]


@pytest.mark.parametrize("count", [1, 10, 31, 32, 500, 2 * N])
@pytest.mark.parametrize("make", MAKERS)
def test_every_look_up_finds_what_a_dict_finds(
    make: Callable[[np.random.Generator], IdArray], count: int
) -> None:
    rng = np.random.default_rng(count)
    ids = make(rng)
    if ids.dtype.kind == "U":
        # Cut to the width of the catalog's ids, the longer ones would be others.
        unknown = np.array(["", "x", *[f"{i}!longer than any" for i in ids[:20]]])
    else:
        unknown = np.array([LOW, HIGH, -1, 0, N, *ids[:20] + 1], np.int64)
    wanted = rng.choice(np.concatenate([ids, unknown]), count)  # with repeats
    wanted[-1] = unknown[count % len(unknown)]
    where = {item: row for row, item in enumerate(ids.tolist())}
    expected = [where.get(item, -1) for item in wanted.tolist()]
    found = IdIndex("item_ids", ids).find("exclude", wanted)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_shapes_that_do_not_fit_are_refused() -> None:
    rows, other = np.zeros((3, 8), np.uint8), np.zeros((2, 4), np.uint8)
    with pytest.raises(ValueError, match="wanted: shape does not fit"):
        _native.find_rows(rows, other, 1)
    with pytest.raises(ValueError, match="wanted: shape does not fit"):
        _native.find_rows(rows, rows[:0], 1)


@pytest.mark.parametrize("make", MAKERS)
def test_what_a_prefix_finds_is_what_a_pass_finds(
    make: Callable[[np.random.Generator], IdArray],
) -> None:
    rng = np.random.default_rng(5)
    ids = make(rng)
    index = IdIndex("user_ids", ids)
    ordered = sorted(ids.tolist())
    some = [str(item) for item in rng.choice(ids, 60).tolist()]
    prefixes = {text[: 1 + j % len(text)] for j, text in enumerate(some)} | {*some[:20]}
    prefixes |= {"", "-", "-0", "0", "00", "+1", " 1", "1_0", "\u0661", "\0", "1\0", "\U0010ffff"}
    prefixes |= {"9" * 19, "9" * 20, "-" + "9" * 19, str(LOW), str(HIGH), "x" * 1000, "é", "ü"}
    for prefix in sorted(prefixes):
        expected = [item for item in ordered if str(item).startswith(prefix)]
        if ids.dtype.kind != "U" and prefix not in ("", "-"):
            expected.sort(key=lambda item: (len(str(item)), item))  # short ones first
        for limit in (1, 7, 2 * N):
            found = index.starting_with(prefix, limit)
            assert found.dtype == np.int64
            assert ids[found].tolist() == expected[:limit], (prefix, limit)
