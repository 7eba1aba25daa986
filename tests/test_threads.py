"""One catalog, many threads: the same rankings as one after another; and after a fork."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from support import POLICIES

import fastrank as fr

N_THREADS = 8


def catalog_of(n: int, cache_bytes: int = 256 << 20) -> fr.Catalog:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((n, 8)).astype(np.float32)
    return fr.Catalog(np.arange(n), vectors, cache_bytes=cache_bytes)


def queries(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((count, 8)).astype(np.float32)


def fingerprint(ranking: fr.Ranking) -> bytes:
    return ranking.item_ids.tobytes() + ranking.log_propensities.tobytes()


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_get_what_one_would(policy: str) -> None:
    catalog, users = catalog_of(20_000), queries(16)
    exclude = np.arange(0, 20_000, 5)

    def job(seed: int) -> bytes:
        return fingerprint(
            catalog.rank(users[seed % 16], 10, policy=POLICIES[policy], seed=seed, exclude=exclude)
        )

    serial = [job(seed) for seed in range(150)]
    with ThreadPoolExecutor(N_THREADS) as pool:
        assert list(pool.map(job, range(150))) == serial


@pytest.mark.parametrize("trees", [0, 1, 3, 100])
def test_the_cache_under_threads(trees: int) -> None:
    """More users than the cache can hold, so that trees are evicted while others walk them."""
    n = 5_000
    users = queries(12)
    policy = fr.PlackettLuce(0.7, sampler="cached")
    catalog = catalog_of(n, cache_bytes=trees * n * 20)
    order = np.random.default_rng(3).integers(0, 12, size=400)

    def job(i: int) -> bytes:
        return fingerprint(catalog.rank(users[order[i]], 5, policy=policy, seed=i))

    serial = [job(i) for i in range(400)]
    with ThreadPoolExecutor(N_THREADS) as pool:
        assert list(pool.map(job, range(400))) == serial


def test_all_threads_ask_for_the_same_new_tree() -> None:
    catalog, users = catalog_of(50_000), queries(1)
    policy = fr.PlackettLuce(0.7, sampler="cached")
    gate = threading.Barrier(N_THREADS)

    def job(_: int) -> bytes:
        gate.wait()
        return fingerprint(catalog.rank(users[0], 5, policy=policy, seed=1))

    with ThreadPoolExecutor(N_THREADS) as pool:
        assert len(set(pool.map(job, range(N_THREADS)))) == 1


def test_drawn_seeds_differ_across_threads() -> None:
    catalog, users = catalog_of(100), queries(1)
    with ThreadPoolExecutor(N_THREADS) as pool:
        seeds = list(
            pool.map(lambda _: catalog.rank(users[0], policy=fr.Uniform()).seed, range(500))
        )
    assert len(set(seeds)) == 500


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_ranks_alike_but_draws_seeds_of_its_own() -> None:
    catalog, users = catalog_of(3_000), queries(1)

    def all_policies() -> bytes:
        return b"".join(
            fingerprint(catalog.rank(users[0], 10, policy=policy, seed=4))
            for policy in POLICIES.values()
        )

    def drawn() -> int:
        return catalog.rank(users[0], policy=fr.Uniform()).seed

    expected = all_policies()  # the cached tree exists before the fork
    drawn()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(write_end, all_policies() + drawn().to_bytes(8, "little"))
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert answer[:-8] == expected
    assert int.from_bytes(answer[-8:], "little") != drawn()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_while_the_cache_is_locked_is_not_stuck() -> None:
    """As if another thread of the parent had held the lock; the child is killed if it hangs."""
    catalog, users = catalog_of(100), queries(1)
    policy = fr.PlackettLuce(sampler="cached")
    expected = fingerprint(catalog.rank(users[0], policy=policy, seed=4))
    with catalog._trees._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            same = fingerprint(catalog.rank(users[0], policy=policy, seed=4)) == expected
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
