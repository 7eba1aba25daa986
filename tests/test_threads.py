"""One catalog, many threads, the caller's or one call's: the rankings of one; and after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from patience import PATIENCE
from support import POLICIES

import fastrank as fr
from fastrank import _native, _probes
from fastrank.ask import ENTRY_BYTES

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


def whole(batch: fr.RankingBatch) -> bytes:
    arrays = (batch.item_ids, batch.scores, batch.log_propensities, batch.log_norm, batch.counts)
    return b"".join(array.tobytes() for array in arrays)


@pytest.mark.sampled
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads_ranks_alike(
    isa: str, chunk_panels: int, policy: str, threads: int
) -> None:
    catalog, users = catalog_of(5_000), queries(3)
    for k, arguments in (
        (10, {}),
        (300, {"exclude": np.arange(0, 5_000, 3)}),
        (4, {"allow": np.arange(2_000, 2_003)}),
        (10_000, {"bias": np.linspace(0.0, 3.0, 5_000)}),
    ):
        if k > 300 and POLICIES[policy] == POLICIES["sequential"]:
            continue  # O(k n)
        for seed, user in enumerate(users):
            call: dict[str, Any] = {"policy": POLICIES[policy], "seed": seed, **arguments}
            one = catalog.rank(user, k, **call)
            several = catalog.rank(user, k, **call, threads=threads)
            assert fingerprint(several) == fingerprint(one)
            assert several.log_norm == one.log_norm


@pytest.mark.parametrize("b", [1, 2, 17, 40, 200])
@pytest.mark.parametrize("threads", [2, 4, 5])
def test_any_number_of_threads_ranks_a_batch_alike(chunk_panels: int, threads: int, b: int) -> None:
    """Users apart, from 8 a thread on, or chunks."""
    catalog, users = catalog_of(3_000), queries(b)
    for policy in (fr.PlackettLuce(0.3), fr.EpsilonGreedy(0.2), fr.Deterministic()):
        one = catalog.rank_batch(users, 10, policy=policy, seeds=range(b))
        several = catalog.rank_batch(users, 10, policy=policy, seeds=range(b), threads=threads)
        assert whole(several) == whole(one)


def test_chunks_wait_for_all_before_their_group() -> None:
    """Three chunks that take as long, each with many of the best: if the third, the first of its
    group, does not wait for the second, its floor is that of the first alone in many of the runs.
    """
    n, k, panels = 48_000, 1_000, 1_000
    vectors = np.random.default_rng(1).standard_normal((n, 1)).astype(np.float32)
    vectors[panels * 16 : 2 * panels * 16] += 1.0
    catalog = fr.Catalog(np.arange(n), vectors)
    policy, previous = fr.PlackettLuce(0.3), _probes.set_chunk_panels(panels)
    try:
        for seed in range(60):
            one = catalog.rank([1.0], k, policy=policy, seed=seed)
            several = catalog.rank([1.0], k, policy=policy, seed=seed, threads=2)
            assert fingerprint(several) == fingerprint(one)
    finally:
        _probes.set_chunk_panels(previous)


def test_threads_and_hardly_any_items() -> None:
    for n in (1, 2, 16, 17):
        catalog, users = catalog_of(n), queries(1)
        for policy in POLICIES.values():
            one = catalog.rank(users[0], 5, policy=policy, seed=1)
            for threads in (2, 5, 10**30):
                again = catalog.rank(users[0], 5, policy=policy, seed=1, threads=threads)
                assert fingerprint(again) == fingerprint(one)
            assert len(catalog.rank(users[0], policy=policy, allow=[], threads=3)) == 0


def test_many_calls_with_threads_of_their_own_at_once(chunk_panels: int) -> None:
    """Far more threads than cores: chunks wait for each other while others hold the cores."""
    catalog, users = catalog_of(3_000), queries(16)
    policy = fr.PlackettLuce(0.3)

    def one(seed: int) -> bytes:
        return fingerprint(catalog.rank(users[seed % 16], 10, policy=policy, seed=seed))

    def several(seed: int) -> bytes:
        return fingerprint(catalog.rank(users[seed % 16], 10, policy=policy, seed=seed, threads=3))

    with ThreadPoolExecutor(N_THREADS) as pool:
        assert list(pool.map(several, range(60))) == [one(seed) for seed in range(60)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="mapped memory cannot be seen")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="its threads must start")
def test_threads_that_cannot_start_are_done_without() -> None:
    """A process with room for its rankings and for no stack more."""
    program = """
import resource, threading
import numpy as np
import fastrank as fr
catalog = fr.Catalog(np.arange(100_000), np.random.default_rng(1).standard_normal((100_000, 4)))
users, policy = np.random.default_rng(2).standard_normal((40, 4)), fr.PlackettLuce(0.3)
def rankings(threads):
    alone = catalog.rank(users[0], policy=policy, seed=4, threads=threads)
    together = catalog.rank_batch(users, policy=policy, seeds=range(40), threads=threads)
    return alone.log_propensities.tobytes() + together.log_propensities.tobytes()
expected = rankings(1)
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (4 << 20),) * 2)
try:
    threading.Thread(target=len, args=("",)).start()
except RuntimeError:
    print(rankings(5) == expected)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert result.stdout == "True\n"


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "a", None], ids=repr)
def test_bad_threads_are_refused(given: Any) -> None:
    catalog, users = catalog_of(10), queries(2)
    model = fr.Model(catalog, ["ann", "bob"], users)
    for call in (
        lambda: catalog.rank(users[0], policy=fr.Uniform(), threads=given),
        lambda: catalog.rank_batch(users, policy=fr.Uniform(), threads=given),
        lambda: model.recommend("ann", policy=fr.Uniform(), threads=given),
    ):
        with pytest.raises(ValueError, match=r"^threads: "):
            call()


@pytest.mark.parametrize("tables", [0, 1, 3, 100])
def test_the_cache_under_threads(tables: int) -> None:
    """More users than the cache can hold, so that tables are evicted while others draw."""
    n = 5_000
    users = queries(12)
    policy = fr.PlackettLuce(0.7, sampler="cached")
    size = ENTRY_BYTES + 4 * _native.table_size(n)
    catalog = catalog_of(n, cache_bytes=tables * size)
    order = np.random.default_rng(3).integers(0, 12, size=400)

    def job(i: int) -> bytes:
        return fingerprint(catalog.rank(users[order[i]], 5, policy=policy, seed=i))

    serial = [job(i) for i in range(400)]
    with ThreadPoolExecutor(N_THREADS) as pool:
        assert list(pool.map(job, range(400))) == serial


def test_all_threads_ask_for_the_same_new_table() -> None:
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_ranks_alike_but_draws_seeds_of_its_own() -> None:
    catalog, users = catalog_of(60_000), queries(1)  # several chunks

    def all_policies() -> bytes:
        return b"".join(
            fingerprint(catalog.rank(users[0], 10, policy=policy, seed=4, threads=threads))
            for policy in POLICIES.values()
            for threads in (1, 3)
        )

    def drawn() -> int:
        return catalog.rank(users[0], policy=fr.Uniform()).seed

    expected = all_policies()  # the cached table exists before the fork
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
