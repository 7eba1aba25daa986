"""Given scores: to the bit the rankings of a catalog of one dimension, and nothing is copied."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import MANY, POLICIES, assert_log_propensities, assert_well_formed

import fastrank as fr
from fastrank import _native

RNG = np.random.default_rng(0)
DRAWN = {name: policy for name, policy in POLICIES.items() if name != "cached"}
DRAWN["best_first"] = fr.BestFirst(2, fr.PlackettLuce(0.8))
HALF = np.float32(0.5) * np.finfo(np.float32).max


def some_scores(n: int) -> npt.NDArray[np.float32]:
    """With ties, zeros of both signs and a head that holds much of the mass."""
    scores = RNG.standard_normal(n).astype(np.float32).round(1)
    scores[::5] = -0.0
    scores[n // 2] = 4.0
    return scores


def filters_of(ids: npt.NDArray[Any]) -> list[dict[str, Any]]:
    return [
        {},
        {"exclude": ids[::3]},
        {"allow": [*ids[::2].tolist(), *ids[:1].tolist()]},
        {"allow": ids[: len(ids) - 1], "exclude": ids[1::2]},
        {"allow": []},
    ]


def same(given: fr.Ranking, of_catalog: fr.Ranking) -> bool:
    return given == dataclasses.replace(of_catalog, catalog_version="")


# The law


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("n", [1, 15, 16, 37, 300])
def test_a_ranking_is_that_of_a_catalog(isa: str, chunk_panels: int, name: str, n: int) -> None:
    scores, ids, policy = some_scores(n), np.arange(n) * 3 - 7, DRAWN[name]
    catalog = fr.Catalog(ids, scores[:, None])
    for k in (1, 10, n + 1):
        for filters in filters_of(ids):
            for seed in range(3):
                given = fr.rank_scores(ids, scores, k, policy=policy, seed=seed, **filters)
                of_catalog = catalog.rank([1.0], k, policy=policy, seed=seed, **filters)
                assert same(given, of_catalog)
            found = fr.log_propensities_of_scores(
                ids, scores, [*given.item_ids, -1], policy=policy, **filters
            )
            expected = catalog.log_propensities(
                [1.0], [*given.item_ids, -1], policy=policy, **filters
            )
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", DRAWN)
def test_over_several_chunks_and_threads(isa: str, name: str) -> None:
    n = 50_003
    scores, ids, policy = some_scores(n), np.arange(n), DRAWN[name]
    catalog = fr.Catalog(ids, scores[:, None])
    cases: list[dict[str, Any]] = [{}, {"exclude": ids[5:40_000]}]
    for filters in cases:
        of_catalog = catalog.rank([1.0], 10, policy=policy, seed=1, **filters)
        for threads in (1, 2):
            given = fr.rank_scores(
                ids, scores, 10, policy=policy, seed=1, threads=threads, **filters
            )
            assert same(given, of_catalog)
        found = fr.log_propensities_of_scores(
            ids, scores, of_catalog.item_ids, policy=policy, **filters
        )
        expected = catalog.log_propensities([1.0], of_catalog.item_ids, policy=policy, **filters)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("b", [1, 3, 70])
def test_a_row_of_a_batch_is_a_ranking_of_its_own(threads: int, b: int) -> None:
    n = 1_003
    scores, ids = RNG.standard_normal((b, n)).astype(np.float32), RNG.permutation(n)
    policies = [list(DRAWN.values())[i % len(DRAWN)] for i in range(b)]
    filters = [filters_of(ids)[i % 5] for i in range(b)]
    exclude, allow = ([each.get(name) for each in filters] for name in ("exclude", "allow"))
    batch = fr.rank_scores_batch(
        ids, scores, 12, policy=policies, seeds=range(b), exclude=exclude, allow=allow,
        threads=threads,
    )  # fmt: skip
    assert len(batch) == b
    assert batch.catalog_version == ""
    for i, policy in enumerate(policies):
        assert batch[i] == fr.rank_scores(
            ids, scores[i], 12, policy=policy, seed=i, exclude=exclude[i], allow=allow[i]
        )


def test_users_of_a_batch_have_noise_of_their_own() -> None:
    scores = np.zeros((8, 100), np.float32)
    batch = fr.rank_scores_batch(np.arange(100), scores, 5, policy=fr.PlackettLuce())
    assert len(set(batch.seeds.tolist())) == len({tuple(row) for row in batch.item_ids}) == 8
    assert len(fr.rank_scores_batch([1, 2], np.zeros((0, 2)), 5, policy=fr.Uniform())) == 0


@pytest.mark.parametrize("name", POLICIES)
def test_propensities_are_the_oracles(isa: str, name: str) -> None:
    scores, ids = np.array(MANY, np.float32), np.arange(len(MANY))
    eligible = np.ones(len(MANY), np.bool_)
    eligible[10:20] = False
    if name in DRAWN:
        ranking = fr.rank_scores(ids, scores, 8, policy=POLICIES[name], exclude=ids[10:20])
        assert_well_formed(ranking.item_ids, len(MANY), 8, eligible)
        assert_log_propensities(
            ranking.log_propensities, scores, ranking.item_ids, POLICIES[name], eligible
        )
    given = RNG.permutation(ids)[:12]
    found = fr.log_propensities_of_scores(
        ids, scores, given, policy=POLICIES[name], exclude=ids[10:20]
    )
    assert_log_propensities(found, scores, given, POLICIES[name], eligible)


def test_a_table_for_scores_that_are_used_once_is_refused() -> None:
    cached = fr.PlackettLuce(sampler="cached")
    with pytest.raises(ValueError, match="policy: the sampler 'cached' keeps a table"):
        fr.rank_scores([1, 2], [0.0, 1.0], policy=cached)
    with pytest.raises(ValueError, match="policy: the sampler 'cached' keeps a table"):
        fr.rank_scores([1, 2], [0.0, 1.0], policy=fr.BestFirst(1, cached))
    with pytest.raises(ValueError, match="policy: row 1: the sampler 'cached' keeps a table"):
        fr.rank_scores_batch([1, 2], np.zeros((2, 2)), policy=[fr.Uniform(), cached])
    lp = fr.log_propensities_of_scores([1, 2], [0.0, 0.0], [2, 1], policy=cached)
    assert np.exp(lp).tolist() == pytest.approx([0.5, 1.0])


# The caller's array


def unaligned(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    memory = np.empty(scores.nbytes + 1, np.uint8)
    there = memory[1:].view(np.float32)
    there[:] = scores
    return there


def read_only(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    there = scores.copy()
    there.flags.writeable = False
    return there


ARRAYS: dict[str, Callable[[npt.NDArray[np.float32]], Any]] = {
    "float64": lambda scores: scores.astype(np.float64),
    "float16": lambda scores: scores.astype(np.float16),
    "integers": lambda scores: scores.astype(np.int8),
    "big-endian": lambda scores: scores.astype(">f4"),
    "every other": lambda scores: np.repeat(scores, 2)[::2],
    "backwards": lambda scores: scores[::-1].copy()[::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "a part": lambda scores: np.concatenate([[np.nan], scores, [np.nan]]).astype(np.float32)[1:-1],
    "list": lambda scores: scores.tolist(),
    "tuple": lambda scores: tuple(scores.tolist()),
    "memoryview": lambda scores: scores.data,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_any_array_of_numbers(kind: str) -> None:
    scores = RNG.integers(-3, 4, 1_001).astype(np.float32)  # exact in every type
    ids, policy = np.arange(1_001), fr.PlackettLuce(0.5)
    given = ARRAYS[kind](scores)
    assert fr.rank_scores(ids, given, policy=policy, seed=1) == fr.rank_scores(
        ids, scores, policy=policy, seed=1
    )
    lp = fr.log_propensities_of_scores(ids, given, ids[:5], policy=policy)
    np.testing.assert_array_equal(
        lp, fr.log_propensities_of_scores(ids, scores, ids[:5], policy=policy)
    )
    rows = np.stack([scores, scores + 1])
    batch = ARRAYS[kind](rows.ravel())
    if isinstance(batch, np.ndarray):
        assert fr.rank_scores_batch(
            ids, batch.reshape(2, -1), policy=policy, seeds=[1, 2]
        ) == fr.rank_scores_batch(ids, rows, policy=policy, seeds=[1, 2])


def test_rows_of_a_batch_in_any_layout() -> None:
    rows = RNG.standard_normal((3, 500)).astype(np.float32)
    ids, policy = np.arange(500), fr.PlackettLuce(0.5)
    expected = fr.rank_scores_batch(ids, rows, policy=policy, seeds=[1, 2, 3])
    for given in (np.asfortranarray(rows), list(rows), np.repeat(rows, 2, axis=1)[:, ::2]):
        assert fr.rank_scores_batch(ids, given, policy=policy, seeds=[1, 2, 3]) == expected


def peak(call: Callable[[], object]) -> int:
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("prepared", [False, True])
def test_nothing_is_copied(prepared: bool) -> None:
    """Of Python's arrays; the core's own memory is O(k)."""
    n = 300_001
    rows, ids, policy = RNG.standard_normal((2, n)).astype(np.float32), np.arange(n), fr.Uniform()
    items = fr.ItemIds(ids[::-1]) if prepared else ids
    for call in (
        lambda: fr.rank_scores(items, rows[0], policy=policy),
        lambda: fr.rank_scores_batch(items, rows, policy=fr.BestFirst(2, policy)),
        lambda: fr.log_propensities_of_scores(items, rows[0], [1, 2], policy=policy),
    ):
        assert peak(call) < 50_000


def test_scores_of_a_query_are_not_copied_to_be_judged_by() -> None:
    n = 300_001
    catalog = fr.Catalog(np.arange(n), RNG.standard_normal((n, 2)))
    judge = catalog.log_propensities_batch
    policies = [fr.PlackettLuce(0.5), fr.Uniform()]
    used = peak(lambda: judge([[1.0, 2.0]], [[1, 2]], policies=policies))
    assert used < 1.1 * 4 * n  # the scores, once


def test_a_mapped_file(tmp_path: Path) -> None:
    scores = RNG.standard_normal(1_000).astype(np.float32)
    np.save(tmp_path / "scores.npy", scores)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    assert fr.rank_scores(range(1_000), mapped, policy=fr.PlackettLuce(), seed=3) == (
        fr.rank_scores(range(1_000), scores, policy=fr.PlackettLuce(), seed=3)
    )


def test_scores_up_to_half_the_float32_range(isa: str) -> None:
    scores = np.array([HALF, -HALF, 0.0, HALF, *[1.0] * 15], np.float32)
    ids = np.arange(len(scores))
    for policy in DRAWN.values():
        ranking = fr.rank_scores(ids, scores, len(ids), policy=policy, seed=0)
        assert_well_formed(ranking.item_ids, len(ids), len(ids))
        assert_log_propensities(ranking.log_propensities, scores, ranking.item_ids, policy)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.nan, "must be finite in float32, got nan"),
        (np.inf, "must be finite in float32, got inf"),
        (-np.inf, "must be finite in float32, got -inf"),
        (2e38, r"must lie within half the float32 range, 1\.7e38 either way, got 2e\+38"),
        (-3e38, r"must lie within half the float32 range, 1\.7e38 either way, got -3e\+38"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at", [0, 15, 36])
def test_what_is_no_score_is_named(value: float, why: str, dtype: type, at: int) -> None:
    scores: npt.NDArray[Any] = np.zeros((3, 37), dtype)
    scores[1, at] = value
    ids, ranked = np.arange(37), [1, 2]
    for policy in (fr.PlackettLuce(), fr.Uniform(), fr.Deterministic()):
        with pytest.raises(ValueError, match=f"^scores: index {at}: {why}"):
            fr.rank_scores(ids, scores[1], policy=policy, exclude=[at])  # excluded or not
        with pytest.raises(ValueError, match=f"^scores: index {at}: {why}"):
            fr.log_propensities_of_scores(ids, scores[1], ranked, policy=policy)
        with pytest.raises(ValueError, match=f"^scores: row 1, column {at}: {why}"):
            fr.rank_scores_batch(ids, scores, policy=policy)


def test_what_float32_cannot_hold_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"scores: index 1: must be finite in float32, got 1e\+300"
    ):
        fr.rank_scores([1, 2], [0.0, 1e300], policy=fr.Uniform())


# Ids


IDS: dict[str, npt.NDArray[Any]] = {
    "without gaps": np.arange(500) - 20,
    "ascending": np.arange(500) ** 2,
    "to the ends of int64": np.array([*range(-(2**63), -(2**63) + 499), 2**63 - 1]),
    "descending": np.arange(500)[::-1],
    "in no order": RNG.permutation(500) * 7,
    "text": np.array([f"item {i}" for i in RNG.permutation(500)]),
}


@pytest.mark.parametrize("kind", IDS)
def test_filters_find_any_ids(kind: str) -> None:
    """Few are searched for, many looked up at once; raw ids or prepared ones."""
    ids, scores = IDS[kind], some_scores(500)
    catalog, items = fr.Catalog(ids, scores[:, None]), fr.ItemIds(ids)
    unknown = ["none"] if kind == "text" else [-5_000, 2**62 + 1]
    policy = fr.PlackettLuce(0.5)
    for some in (ids[[3]], ids[RNG.permutation(500)[:200]], ids):
        given = [*some.tolist(), *unknown, some[0].item()]
        cases: list[dict[str, Any]] = [{"exclude": given}, {"allow": given}]
        for filters in cases:
            expected = catalog.rank([1.0], 5, policy=policy, seed=2, **filters)
            for source in (ids, ids.tolist(), items):
                ranking = fr.rank_scores(source, scores, 5, policy=policy, seed=2, **filters)
                assert same(ranking, expected)
        expected_lp = catalog.log_propensities([1.0], given, policy=policy)
        for source in (ids, items):
            lp = fr.log_propensities_of_scores(source, scores, given, policy=policy)
            np.testing.assert_array_equal(lp, expected_lp)


@pytest.mark.parametrize("kind", IDS)
def test_a_repeated_id_is_named(kind: str) -> None:
    ids = IDS[kind].copy()
    ids[200] = ids[77]
    name = f"item_ids: must be unique; rows 77 and 200 are both {ids[77].item()!r}"
    for call in (
        lambda: fr.rank_scores(ids, np.zeros(500), policy=fr.Uniform()),
        lambda: fr.rank_scores_batch(ids, np.zeros((2, 500)), policy=fr.Uniform()),
        lambda: fr.log_propensities_of_scores(ids, np.zeros(500), ids[:1], policy=fr.Uniform()),
        lambda: fr.ItemIds(ids),
    ):
        with pytest.raises(ValueError, match=name):
            call()


def test_item_ids_are_checked_once_and_kept() -> None:
    ids = np.array([3, 1, 2])
    items = fr.ItemIds(ids)
    ids[:] = 0
    assert (len(items), repr(items)) == (3, "ItemIds(3 int64 ids)")
    assert np.asarray(items).tolist() == [3, 1, 2]
    assert np.asarray(items, np.float32).dtype == np.float32
    ranking = fr.rank_scores(items, [1.0, 3.0, 2.0], policy=fr.Deterministic())
    assert ranking.item_ids.tolist() == [1, 2, 3]
    catalog = fr.Catalog(items, [[1.0], [3.0], [2.0]])
    assert catalog.version == fr.Catalog([3, 1, 2], [[1.0], [3.0], [2.0]]).version
    assert (
        catalog.rank([1.0], exclude=np.asarray(items), policy=fr.Uniform()).item_ids.tolist() == []
    )


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": []}, r"scores: expected shape \(n,\) with n >= 1, got \(0,\)"),
        ({"scores": 1.0}, r"scores: expected shape \(n,\) with n >= 1, got \(\)"),
        ({"scores": [[0.0, 1.0]]}, r"scores: expected shape \(n,\) with n >= 1, got \(1, 2\)"),
        ({"scores": [True, False]}, "scores: expected real numbers, got dtype bool"),
        ({"scores": ["a", "b"]}, "scores: expected real numbers, got 'a' at index 0"),
        ({"scores": np.ma.array([0.0, 1.0])}, "scores: expected no masked array"),
        ({"scores": [1j, 2j]}, "scores: expected real numbers, got dtype complex128"),
        ({"item_ids": [1]}, "item_ids: expected 2, one for each score, got 1"),
        ({"item_ids": fr.ItemIds([1])}, "item_ids: expected 2, one for each score, got 1"),
        ({"item_ids": [1.0, 2.0]}, "item_ids: row 0: expected int64 or str ids, got 1.0"),
        ({"item_ids": {1, 2}}, "item_ids: expected an array of ids in order"),
        ({"k": 0}, "k: must be at least 1, got 0"),
        ({"policy": "best"}, "policy: expected one of fastrank's policies, got 'best'"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"threads": 0}, "threads: must be at least 1, got 0"),
        ({"exclude": ["a"]}, "exclude: the ids here are int64, got 'a'"),
        ({"allow": 1}, "allow: expected an array of ids, got 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "item_ids": [1, 2], "scores": [0.0, 1.0], "policy": fr.PlackettLuce(), **arguments
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        fr.rank_scores(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": [0.0, 1.0]}, r"scores: expected shape \(b, n\) with n >= 1, got \(2,\)"),
        (
            {"scores": np.zeros((2, 0))},
            r"scores: expected shape \(b, n\) with n >= 1, got \(2, 0\)",
        ),
        ({"scores": [[0.0], [0.0, 1.0]]}, "scores: row 1: expected 1 numbers, as in row 0, got 2"),
        ({"item_ids": [1]}, "item_ids: expected 2, one for each score, got 1"),
        ({"policy": [fr.Uniform()]}, "policy: expected one entry for each of 2 users, got 1"),
        ({"seeds": 1}, "seeds: expected one entry for each of 2 users, got 1"),
        ({"seeds": [1, -1]}, r"seeds\[1\]: must be at least 0, got -1"),
        ({"exclude": [1, 2]}, r"exclude\[0\]: expected an array of ids, got 1"),
        ({"allow": [None, ["a"]]}, r"allow\[1\]: the ids here are int64, got 'a'"),
    ],
)
def test_bad_arguments_of_a_batch_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "item_ids": [1, 2], "scores": np.zeros((2, 2)), "policy": fr.PlackettLuce(), **arguments
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        fr.rank_scores_batch(**given)


def test_bad_rankings_to_judge_are_named() -> None:
    for ranked, why in (({1}, "in order"), (["a"], "the ids here are int64, got 'a'")):
        with pytest.raises(ValueError, match=f"ranked_ids: .*{why}"):
            fr.log_propensities_of_scores([1, 2], [0.0, 1.0], ranked, policy=fr.Uniform())
    empty = fr.log_propensities_of_scores([1, 2], [0.0, 1.0], [], policy=fr.Uniform())
    assert empty.shape == (0,)
    assert empty.dtype == np.float64


def test_the_core_refuses_what_does_not_fit() -> None:
    given = _native.GivenScores(20)
    with pytest.raises(ValueError, match="query: wrong length"):
        given.rank(np.zeros(19, np.float32), 1, 0, 1.0, 0.0, 0, None, None, 20)
    with pytest.raises(ValueError, match="bias: wrong length"):
        given.rank(np.zeros(20, np.float32), 1, 0, 1.0, 0.0, 0, np.zeros(20, np.float32), None, 20)
    with pytest.raises(ValueError, match="n_items: expected at least 1"):
        _native.GivenScores(0)
