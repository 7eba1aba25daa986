"""Signals during a native call: their handlers run meanwhile, and what they raise ends the call.

Time is that of the process's cores, not of the clock, and a call is made long enough before: so a
busy machine changes nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastrank as fr
from fastrank import _native, _probes, packing

N_ITEMS = 1_000_000
LONG = 0.15  # seconds; signals are asked for every 0.025
MOST = 1 << 25

Call = Callable[[int], bytes]


class Enough(Exception):  # noqa: N818  # it ends a call, and is no error
    pass


@pytest.fixture(scope="module")
def catalog() -> fr.Catalog:
    vectors = np.random.default_rng(0).standard_normal((N_ITEMS, 2), dtype=np.float32)
    return fr.Catalog(np.arange(N_ITEMS), vectors)


def bits(ranking: fr.Ranking | fr.RankingBatch) -> bytes:
    return ranking.item_ids.tobytes() + ranking.log_propensities.tobytes()


def calls(catalog: fr.Catalog) -> dict[str, tuple[int, Call]]:
    """By name: a size to begin with, and a call whose cost grows with it."""
    query, users = np.array([0.3, -0.2], np.float32), np.ones((100_000, 2), np.float32)

    def rank(policy: fr.Policy, threads: int = 1) -> Call:
        return lambda k: bits(catalog.rank(query, k, policy=policy, seed=1, threads=threads))

    def rank_batch(policy: fr.Policy, threads: int = 1) -> Call:
        def call(b: int) -> bytes:
            return bits(
                catalog.rank_batch(users[:b], policy=policy, seeds=range(b), threads=threads)
            )

        return call

    def few_users(k: int) -> bytes:  # they share chunks with many places
        policy = fr.PlackettLuce(0.3)
        return bits(catalog.rank_batch(users[:9], k, policy=policy, seeds=range(9), threads=2))

    def log_propensities(k: int, policy: fr.Policy) -> bytes:
        positions = np.arange(k) % N_ITEMS
        return catalog.log_propensities(query, positions, policy=policy).tobytes()

    @cache  # they take as long as their scores
    def some(k: int) -> npt.NDArray[np.int64]:
        return np.arange(k) * 16 % N_ITEMS  # a panel each

    def label_masses(n: int) -> bytes:
        scores, labels = np.zeros(n, np.float32), np.zeros(n, np.int32)
        packed = _native.GivenScores(n)
        return packed.label_masses(scores, 0.3, None, None, labels, 1)[0].tobytes()

    def values(n: int) -> bytes:
        steps = np.tile(
            np.array([_native.OPS.index("sigmoid"), -1, 1 << 16, 0, 0], np.int32), (500, 1)
        )
        none = np.zeros(0, np.float32)
        return _native.Function(n, lambda *_: "", none, [], [], steps).values().tobytes()

    def find(n: int) -> bytes:
        rows = np.arange(n).view(np.uint8).reshape(n, 8)
        return _native.find_rows(rows, rows, 1).tobytes()

    return {
        "gumbel": (100_000, rank(fr.PlackettLuce(0.3))),
        "gumbel, two threads": (100_000, rank(fr.PlackettLuce(0.3), 2)),
        "sequential": (5, rank(fr.PlackettLuce(0.3, sampler="sequential"))),
        "cached": (50_000, rank(fr.PlackettLuce(0.3, sampler="cached"))),
        "epsilon-greedy": (50_000, rank(fr.EpsilonGreedy(0.3))),
        "uniform": (100_000, rank(fr.Uniform())),
        "a batch": (100, rank_batch(fr.PlackettLuce(0.3))),
        "a batch, two threads": (100, rank_batch(fr.PlackettLuce(0.3), 2)),
        "a batch of few, two threads": (5_000, few_users),
        "a sequential batch, two threads": (
            *(1, rank_batch(fr.PlackettLuce(0.3, sampler="sequential"), 2)),
        ),
        "log_propensities": (1_600_000, lambda k: log_propensities(k, fr.PlackettLuce(0.3))),
        "log_propensities, greedy": (50_000, lambda k: log_propensities(k, fr.Deterministic())),
        "scores of some": (
            *(1_600_000, lambda k: catalog._packed.scores_at(query, some(k), None).tobytes()),
        ),
        "values of a function": (100_000, values),
        "masses by label": (5_000_000, label_masses),
        "making tables": (
            200,
            lambda n: catalog._packed.make_tables(
                np.resize(users, (n, catalog.dim)), np.full(n, 0.3)
            )[0].tobytes(),
        ),
        "looking ids up": (1_000_000, find),
    }


NAMES = list(calls(fr.Catalog([1], [[1.0]])))


@contextmanager
def handling(handler: Callable[[], None], after: float, interval: float = 0.0) -> Iterator[None]:
    """Call a handler after so many seconds of computing, and in every such interval then."""
    before = signal.signal(signal.SIGPROF, lambda *_: handler())
    signal.setitimer(signal.ITIMER_PROF, after, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def seconds(call: Callable[[int], Any], size: int) -> tuple[float, Any]:
    before = time.process_time()
    result = call(size)
    return time.process_time() - before, result


@pytest.fixture
def small_chunks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Several chunks, however many places, for threads to share."""
    previous = _probes.set_chunk_panels(2_000)
    yield
    _probes.set_chunk_panels(previous)


def threads_of_this_process() -> int:
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


@pytest.mark.sampled
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", NAMES)
def test_handlers_run_during_a_call_and_may_end_it(catalog: fr.Catalog, name: str) -> None:
    size, call = calls(catalog)[name]
    long, expected = seconds(call, size)
    while long < LONG and size < MOST:
        size = min(int(size * max(1.25, 1.1 * LONG / long)), MOST)
        long, expected = seconds(call, size)
    long = min(long, seconds(call, size)[0])  # the first of its size may have waited for memory
    threads = threads_of_this_process()

    ran: list[float] = []
    with handling(lambda: ran.append(time.process_time()), long / 8, long / 8):
        result = call(size)
        returned = time.process_time()
    assert result == expected  # to the bit
    assert any(at < returned - long / 8 for at in ran)  # not at its end

    def enough() -> None:
        raise Enough

    def interrupted(size: int) -> None:
        with handling(enough, long / 8), pytest.raises(Enough):
            call(size)

    spent, _ = seconds(interrupted, size)
    assert spent < 0.8 * long
    assert threads_of_this_process() == threads
    assert call(1) == call(1)
    tables = catalog._tables
    assert tables is not None
    assert tables.weight == sum(weight for _, weight in tables._entries.values())


def test_ctrl_c_ends_a_call(catalog: fr.Catalog) -> None:
    """One that would take an hour."""
    policy = fr.PlackettLuce(sampler="sequential")
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        catalog.rank([1.0, 1.0], N_ITEMS, policy=policy)


def test_a_handler_may_rank(catalog: fr.Catalog) -> None:
    """The very catalog whose ranking it stands in the way of."""
    policy, inner = fr.PlackettLuce(0.3), []
    expected = bits(catalog.rank([1.0, 1.0], 100_000, policy=policy, seed=1))

    def handler() -> None:
        inner.append(bits(catalog.rank([1.0, 1.0], 100_000, policy=policy, seed=1)))

    with handling(handler, 0.02):
        outer = bits(catalog.rank([1.0, 1.0], 100_000, policy=policy, seed=1))
    assert [outer, *inner] == [expected] * (1 + len(inner))


def test_a_call_on_another_thread_leaves_signals_to_the_main_thread(catalog: fr.Catalog) -> None:
    _, call = calls(catalog)["gumbel, two threads"]
    expected, result, on = call(100_000), [], []
    worker = threading.Thread(target=lambda: result.append(call(100_000)))
    with handling(lambda: on.append(threading.current_thread()), 0.02, 0.02):
        worker.start()
        worker.join()
    assert result == [expected]
    assert set(on) <= {threading.main_thread()}


def test_a_build_looks_up_between_blocks() -> None:
    """To copy a block into panels takes milliseconds; signals are seen after each."""
    for dim in (1, 64, 4096):
        rows = np.broadcast_to(np.float32(1.0), (200_000, dim))
        block = next(packing.blocks(rows))[1]
        assert block.nbytes <= 16 << 20
        assert len(block) % 16 == 0
