"""A user of a batch gets what `rank` gives alone, bit for bit, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import POLICIES

import fastrank as fr
from fastrank.ids import IdIndex

SCANNING: dict[str, fr.Policy] = {
    "deterministic": fr.Deterministic(),
    "gumbel": fr.PlackettLuce(0.5),
    "epsilon_greedy": fr.EpsilonGreedy(0.3),
}


def catalog_of(n: int, dim: int, *, bias: bool = False, seed: int = 0) -> fr.Catalog:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    offsets = rng.standard_normal(n).astype(np.float32) if bias else None
    return fr.Catalog(np.arange(n) * 3 + 1, vectors, bias=offsets)


def users_of(b: int, dim: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((b, dim)).astype(np.float32)


def per_user(values: Any, i: int) -> Any:
    """Entry i of a batch's argument that may be None."""
    return None if values is None else values[i]


def assert_rows_are_rankings(
    catalog: fr.Catalog,
    queries: npt.NDArray[np.float32],
    k: int,
    policy: fr.Policy | Sequence[fr.Policy],
    *,
    rows: Sequence[int] | None = None,
    threads: int = 1,
    bias: npt.NDArray[np.float32] | None = None,
    **filters: Any,
) -> None:
    """`rows` are compared, all if not given."""
    b = len(queries)
    seeds = [7 * i + 2**60 for i in range(b)]
    batch = catalog.rank_batch(
        queries, k, policy=policy, seeds=seeds, bias=bias, threads=threads, **filters
    )
    assert batch.item_ids.shape == (b, min(k, len(catalog)))
    for i in range(b) if rows is None else rows:
        row, policy_i = batch[i], policy[i] if isinstance(policy, Sequence) else policy
        one = catalog.rank(
            queries[i],
            k,
            policy=policy_i,
            seed=seeds[i],
            bias=bias[i] if bias is not None and bias.ndim == 2 else bias,
            **{name: per_user(values, i) for name, values in filters.items()},
        )
        assert row.item_ids.tolist() == one.item_ids.tolist(), i
        assert row.scores.tobytes() == one.scores.tobytes(), i
        assert row.log_propensities.tobytes() == one.log_propensities.tobytes(), i
        assert row.log_propensity == one.log_propensity
        assert row.log_norm == one.log_norm
        assert (row.seed, row.policy) == (one.seed, one.policy)
        assert (row.n_eligible, row.propensity_kind) == (one.n_eligible, one.propensity_kind)


# Shapes: lanes of the last panel, dimensions past the chains, users past the registers


@pytest.mark.parametrize("policy", SCANNING)
@pytest.mark.parametrize(("n", "dim"), [(1, 1), (16, 4), (777, 5), (3_001, 18), (20_000, 7)])
def test_any_shape(isa: str, chunk_panels: int, policy: str, n: int, dim: int) -> None:
    catalog = catalog_of(n, dim, bias=n % 2 == 0)
    assert_rows_are_rankings(catalog, users_of(9, dim), 10, SCANNING[policy])


@pytest.mark.parametrize("b", [1, 2, 3, 4, 5, 6, 7, 8, 63, 64, 65, 70])
def test_any_number_of_users(isa: str, b: int) -> None:
    catalog = catalog_of(2_000, 6)
    for policy in SCANNING.values():
        assert_rows_are_rankings(catalog, users_of(b, 6), 5, policy)


def test_more_users_than_one_block_holds() -> None:
    catalog = catalog_of(1_100, 6)
    rows = [0, 1, 63, 64, 127, 128, 150, 298, 299]
    for policy in POLICIES.values():
        assert_rows_are_rankings(catalog, users_of(300, 6), 3, policy, rows=rows)
        assert_rows_are_rankings(catalog, users_of(300, 6), 3, policy, rows=rows, threads=3)


@pytest.mark.parametrize("k", [1, 100, 2_000, 5_000])
def test_any_k(isa: str, k: int) -> None:
    catalog = catalog_of(2_500, 3)
    for policy in SCANNING.values():
        assert_rows_are_rankings(catalog, users_of(5, 3), k, policy)


def test_items_in_the_order_of_their_scores() -> None:
    """The order with the most entries: tiles stop often."""
    scores = np.sort(np.random.default_rng(5).standard_normal(30_000)).astype(np.float32)
    for order in (scores, scores[::-1]):
        catalog = fr.Catalog(np.arange(30_000), order.reshape(-1, 1))
        queries = np.linspace(0.1, 3.0, 6, dtype=np.float32).reshape(-1, 1)
        for policy in (fr.PlackettLuce(0.02), fr.PlackettLuce(1.0), fr.Deterministic()):
            assert_rows_are_rankings(catalog, queries, 20, policy)


def test_equal_scores_and_extreme_temperatures(isa: str) -> None:
    catalog = fr.Catalog(np.arange(5_000), np.repeat([[1.0], [-1.0]], 2_500, axis=0))
    queries = np.array([[0.0], [1.0], [1000.0], [-1e30], [1e-30]], np.float32)
    for policy in (fr.PlackettLuce(1e-6), fr.PlackettLuce(1e6), fr.Deterministic()):
        assert_rows_are_rankings(catalog, queries, 8, policy)


# What is a user's own


@pytest.mark.parametrize("threads", [1, 3])
def test_filters_biases_policies_and_temperatures_of_each_user(
    isa: str, chunk_panels: int, threads: int
) -> None:
    n, b = 3_003, 11
    catalog, rng = catalog_of(n, 6, bias=True), np.random.default_rng(3)
    ids = catalog.item_ids
    exclude = [None, ids[::2], ids[:0], ids, rng.permutation(ids)[: n - 20], *[None] * 6]
    allow = [None, ids[::3], None, None, None, ids[:0], ids[5:8], ids[1_000:], *[None] * 3]
    policies: list[fr.Policy] = [fr.PlackettLuce(0.2 * 2**i) for i in range(6)]
    policies += [*POLICIES.values(), fr.Deterministic()][: b - 6]
    for bias in (None, rng.standard_normal(n), rng.standard_normal((b, n))):
        assert_rows_are_rankings(
            catalog,
            users_of(b, 6),
            12,
            policies,
            bias=None if bias is None else bias.astype(np.float32),
            exclude=exclude,
            allow=allow,
            threads=threads,
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_of_every_policy_with_filters(policy: str) -> None:
    catalog = catalog_of(500, 5)
    exclude = [catalog.item_ids[i::7] for i in range(6)]
    assert_rows_are_rankings(catalog, users_of(6, 5), 9, POLICIES[policy], exclude=exclude)


def test_ids_that_users_share_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many users there are; ids that only follow each other in memory are not shared."""
    catalog, queries = catalog_of(50, 5), users_of(6, 5)
    rows = catalog.item_ids[np.arange(24).reshape(6, 4)]
    for exclude in ([rows[0], None] * 3, rows):
        assert_rows_are_rankings(catalog, queries, 9, SCANNING["gumbel"], exclude=exclude)
    looked: list[str] = []
    find = IdIndex.find_listed

    def counted(index: IdIndex, name: str, ids: Any) -> Any:
        looked.append(name)
        return find(index, name, ids)

    monkeypatch.setattr(IdIndex, "find_listed", counted)
    catalog.rank_batch(queries, 3, policy=fr.Uniform(), exclude=[None, *[rows[0]] * 5])
    assert looked == ["exclude[1]"]


def test_equal_users_with_equal_seeds_agree_and_with_others_do_not() -> None:
    catalog = catalog_of(5_000, 4)
    queries = np.repeat(users_of(1, 4), 6, axis=0)
    batch = catalog.rank_batch(queries, 5, policy=fr.PlackettLuce(1.0), seeds=[1, 2, 3, 1, 2, 3])
    rows = [tuple(row) for row in batch.item_ids.tolist()]
    assert rows[:3] == rows[3:]
    assert len(set(rows)) == 3


# Edges


@pytest.mark.parametrize("policy", POLICIES)
def test_no_users(policy: str) -> None:
    catalog = catalog_of(10, 3)
    batch = catalog.rank_batch(
        np.empty((0, 3)), 4, policy=POLICIES[policy], seeds=[], exclude=[], allow=[], threads=2
    )
    assert len(batch) == 0
    assert list(batch) == []
    assert batch.item_ids.shape == batch.scores.shape == (0, 4)
    assert batch.item_ids.dtype == np.int64


def test_ids_of_text_are_blank_past_the_counts() -> None:
    catalog = fr.Catalog(["a", "bb", "ccc"], np.eye(3))
    batch = catalog.rank_batch(
        np.eye(3), 9, policy=fr.Deterministic(), allow=[["ccc"], [], None], seeds=[0, 1, 2]
    )
    assert batch.item_ids.tolist() == [["ccc", "", ""], ["", "", ""], ["ccc", "a", "bb"]]
    assert batch.counts.tolist() == [1, 0, 3]
    assert np.isnan(batch.log_propensities[0, 1:]).all()
    assert np.isnan(batch.scores[1]).all()
    assert batch.log_propensity.tolist() == [0.0, 0.0, 0.0]


def test_a_wrong_row_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = catalog_of(100, 3)
    queries = np.ones((200, 3), np.float32)
    queries[150] = 3e38
    cached = fr.PlackettLuce(1.0, sampler="cached")
    monkeypatch.setattr(type(catalog), "_tables_of", None)
    for policy in (fr.PlackettLuce(1.0), cached):
        with pytest.raises(ValueError, match=r"^queries: row 150: .*norm"):
            catalog.rank_batch(queries, 3, policy=policy)
    with pytest.raises(ValueError, match=r"^exclude\[1\]: "):
        catalog.rank_batch(queries[:2], 3, policy=cached, exclude=[[1], [True]])
    with pytest.raises(ValueError, match=r"^policy: row 1: "):
        catalog.rank_batch(queries[:2], 3, policy=[cached, "cached"])  # type: ignore[list-item]
