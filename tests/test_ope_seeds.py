"""Rows that share their seed with another user's are counted, and no status hides them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa

import fastrank as fr
from fastrank import ope
from fastrank.arraytypes import AnyArray
from fastrank.eventlog import LogReader, LogWriter, schema
from fastrank.ope.seeds import _MOST, SharedSeeds

RNG = np.random.default_rng(2)
CATALOG = fr.Catalog(np.arange(20), RNG.standard_normal((20, 4)))
USERS = RNG.standard_normal((200, 4))


def counted(seeds: AnyArray, holders: AnyArray, step: int = 10_000) -> SharedSeeds:
    found = SharedSeeds()
    for at in range(0, len(seeds), step):
        part = slice(at, at + step)
        found.add(seeds[part].astype(np.uint64), holders[part].astype(np.uint64))
    return found


def by_hand(seeds: AnyArray, holders: AnyArray) -> int:
    besides = 0
    for seed in np.unique(seeds):
        mine = holders[seeds == seed]
        besides += len(mine) - int(np.count_nonzero(mine == mine.min()))
    return besides


@pytest.mark.parametrize("step", [1, 37, 10_000])
def test_few_seeds_are_counted_exactly(step: int) -> None:
    rng = np.random.default_rng(step)
    for n_seeds, n_holders in ((5, 3), (400, 3), (400, 400), (10_000, 50), (1, 1), (3, 1)):
        seeds, holders = rng.integers(0, n_seeds, 600), rng.integers(1, n_holders + 1, 600)
        found = counted(seeds, holders, step)
        assert (found.rows, found.shared) == (600, by_hand(seeds, holders))
        parts = [counted(seeds[at::3], holders[at::3], step) for at in range(3)]
        merged = SharedSeeds()
        for part in parts:
            merged.merge(part)
        assert (merged.rows, merged.shared) == (600, found.shared)
        if found.commonest is None:
            assert found.shared == 0
        else:
            seed, rows = found.commonest
            assert rows == np.count_nonzero(seeds == seed)


def size(found: SharedSeeds) -> int:
    return len(found._kept) + sum(map(len, found._waiting))


def test_of_long_logs_a_share_of_seeds_stands_for_all() -> None:
    """Error budget: of 1,000 or more pairs that are kept, the relative error is 3 %; 20 % is 6."""
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**63, 400_000)
    users = np.arange(400_000)
    alone = counted(seeds, users)
    assert alone.shared == 0.0
    assert alone.commonest is None
    assert size(alone) <= 2 * _MOST
    far = np.concatenate([seeds, seeds])  # each twice, and never in one batch
    shared = counted(far, np.arange(800_000))
    assert shared.shared == pytest.approx(400_000, rel=0.2)
    assert size(shared) <= 2 * _MOST
    halves = [counted(far[part], np.arange(800_000)[part]) for part in (slice(0, 300_000),
              slice(300_000, None))]  # fmt: skip
    halves[0].merge(halves[1])
    assert halves[0].shared == pytest.approx(400_000, rel=0.2)
    assert size(halves[0]) <= 2 * _MOST
    assert counted(far, np.concatenate([users, users])).shared == 0.0  # each user's own


@pytest.mark.sampled
@pytest.mark.parametrize("n", [1, 24, 1000])
def test_few_seeds_of_many_rows_are_not_missed(n: int) -> None:
    """Whatever a hash would choose: one row in a hundred has one of n seeds, the rest its own."""
    rng = np.random.default_rng(n)
    for seed in range(5):
        common = rng.integers(0, 2**63, n)
        seeds = rng.integers(0, 2**63, 400_000)
        some = rng.random(400_000) < 0.01
        seeds[some] = rng.choice(common, int(some.sum()))
        found = counted(seeds, np.arange(400_000) + seed, 50_000)
        assert found.shared > 2000
        assert size(found) <= 2 * _MOST


def written(path: Path, seeds: list[int], users: AnyArray, **options: Any) -> LogReader:
    """A log of these seeds, with a reward of 1 for items below 10."""
    policy = options.pop("policy", fr.PlackettLuce(1.0))
    with LogWriter(path) as log:
        for seed, user in zip(seeds, users.tolist(), strict=True):
            ranking = CATALOG.rank(USERS[user], 1, policy=policy, seed=seed)
            earned = float(ranking.item_ids[0] < 10)
            log.append(ranking, k=1, user_id=f"u{user}", query=USERS[user], rewards=[earned],
                       **options)  # fmt: skip
    return LogReader(path)


def evaluated(log: LogReader, **options: Any) -> ope.Evaluation:
    policy = ope.ByModel("flat", fr.PlackettLuce(1.1), CATALOG)
    return ope.evaluate(log, [policy], estimators=["snips"], **options)


N = 6000


def test_seeds_of_their_own_are_fine(tmp_path: Path) -> None:
    found = evaluated(written(tmp_path, list(range(N)), np.arange(N) % 200))
    assert (found.policies[0].status, found.logged.status) == ("ok", "ok")


@pytest.mark.sampled
@pytest.mark.parametrize("different", [1, 24])
def test_seeds_that_users_share_are_not(tmp_path: Path, different: int) -> None:
    """The same for all, or one an hour: the interval would cover .8 of the time, and say .95."""
    log = written(tmp_path, [i * different // N for i in range(N)], np.arange(N) % 200)
    # Weights of rows that share their noise stray, too, by an error that is too small.
    seeds_alone = ope.Thresholds(mean_weight_z=100.0)
    found = evaluated(log, thresholds=seeds_alone)
    for each in (found.policies[0].estimates["snips"], found.policies[0].differences["snips"]):
        assert each.status == "malformed_log"
        assert each.reasons == ("repeated_seeds",)
    assert found.logged.reasons == ("repeated_seeds",)
    assert "rows of different users share their seed" in found.policies[0].verdict
    allowed = ope.Thresholds(malformed=1.0, mean_weight_z=100.0)
    assert evaluated(log, thresholds=allowed).policies[0].status == "ok"


def test_one_in_a_thousand_may_be(tmp_path: Path) -> None:
    for at, shared in enumerate((6, 7)):
        seeds = list(range(N))
        seeds[-shared:] = seeds[:shared]
        found = evaluated(written(tmp_path / str(at), seeds, np.arange(N) % 199))
        assert found.policies[0].reasons == (() if shared == 6 else ("repeated_seeds",))


def test_a_user_may_have_a_seed_where_errors_are_by_user(tmp_path: Path) -> None:
    users = np.arange(N) % 200
    log = written(tmp_path, (7 + users).tolist(), users)
    assert "repeated_seeds" not in evaluated(log).policies[0].reasons
    assert "repeated_seeds" in evaluated(log, cluster=False).policies[0].reasons


@pytest.mark.slow
def test_what_nobody_drew_by_a_servers_seed_is_not_counted(tmp_path: Path) -> None:
    users = np.arange(N) % 200
    drawn = written(tmp_path / "a", [1] * N, users, policy=fr.Deterministic())
    assert "repeated_seeds" not in evaluated(drawn).policies[0].reasons
    chosen = written(tmp_path / "b", [1] * N, users, seed_source="caller")
    found = evaluated(chosen, include_caller_seeds=True)
    assert "repeated_seeds" not in found.policies[0].reasons
    written(tmp_path / "c", [1] * N, users, is_fallback=True)
    written(tmp_path / "c", list(range(N)), users)
    fallback = LogReader(tmp_path / "c")
    assert evaluated(fallback).policies[0].reasons == ()
    assert "repeated_seeds" in evaluated(fallback, include_fallback=True).policies[0].reasons


def test_tables_without_seeds_are_evaluated_as_they_are() -> None:
    items = RNG.integers(0, 10, 2000)
    logged = np.full(2000, -np.log(10.0))
    table = pa.table({
        "request_id": [f"r{i}" for i in range(2000)],
        "ts": pa.array(np.arange(2000), pa.timestamp("us", tz="UTC")),
        "user_id": [f"u{i % 500}" for i in range(2000)],
        "policy_name": ["uniform"] * 2000,
        "item_ids": pa.array([[i] for i in items.tolist()]),
        "log_propensities": pa.array([[p] for p in logged.tolist()]),
        "log_propensity": logged,
        "propensity_kind": ["exact"] * 2000,
        "rewards": pa.array([[float(i > 2)] for i in items.tolist()]),
        "lp1": pa.array([[p] for p in logged.tolist()]),
    })  # fmt: skip
    assert "seed" not in table.schema.names
    assert "seed" in schema("int64").names
    log = LogReader.of_tables(table, columns=["lp1"])
    (found,) = ope.evaluate(log, [ope.FromColumn("same", "lp1")]).policies
    assert (found.status, found.reasons) == ("ok", ())


def test_what_stands_for_all_does_not_depend_on_parts() -> None:
    """However a log is cut and merged, the same seeds are kept of those that a hash chooses."""
    rng = np.random.default_rng(3)
    once = rng.integers(0, 2**63, 120_000)
    seeds = rng.permutation(np.concatenate([once, once[:5000]]))
    holders = np.arange(125_000)
    whole = counted(seeds, holders, 125_000)
    parts = [counted(seeds[j::2], holders[j::2], 7000) for j in range(2)]
    for ordered in (parts, parts[::-1]):
        merged = SharedSeeds()
        for part in ordered:
            merged.merge(part)
        assert (merged._limit, merged.shared) == (whole._limit, whole.shared)
    assert whole.shared == pytest.approx(5000, rel=0.1)
