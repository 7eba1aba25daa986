"""The queue: what is refused, what shares a pass, what comes too late."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from support import same_ranking

import fastrank as fr
from fastrank_serving import engine
from fastrank_serving.engine import Engine, Job
from fastrank_serving.messages import ProblemError

T = TypeVar("T")
RNG = np.random.default_rng(0)
CATALOG = fr.Catalog(np.arange(500), RNG.standard_normal((500, 8)))
LIMIT = 30.0  # seconds that something may take on a busy machine before it counts as hanging


class Held:
    """Lets no pass begin until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.passes: list[int] = []
        ranked = engine._ranked

        def held(jobs: list[Job]) -> Any:
            self.passes.append(len(jobs))
            assert self.go.wait(LIMIT)
            return ranked(jobs)

        monkeypatch.setattr(engine, "_ranked", held)
        monkeypatch.setattr(engine, "INLINE_WORK", 0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


def job(seed: int, **changes: Any) -> Job:
    query = np.random.default_rng(seed).standard_normal(8).astype(np.float32)
    made: dict[str, Any] = {
        "catalog": CATALOG, "query": query, "k": 5, "policy": fr.PlackettLuce(), "seed": seed,
    }  # fmt: skip
    return Job(**made | changes)


def run(work: Callable[[Engine], Awaitable[T]], **options: Any) -> T:
    async def inside() -> T:
        own = Engine(**{"threads": 1, "queue": 100} | options)
        try:
            return await asyncio.wait_for(work(own), LIMIT)
        finally:
            own.close()

    return asyncio.run(inside())


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def test_one_job() -> None:
    async def work(own: Engine) -> None:
        for _ in range(3):
            found = await own.rank(job(1))
            assert same_ranking(found.ranking, job(1).rank())
            assert found.shared == 1
        assert own.inside == own.waiting == 0

    run(work)


@pytest.mark.parametrize("share", [1, 3, 64])
def test_waiting_jobs_share_passes_and_get_their_own_rankings(held: Held, share: int) -> None:
    jobs = [job(i) for i in range(10)]
    jobs[4] = job(4, exclude=np.array([1, 2, 3]))
    jobs[5] = job(5, policy=fr.Deterministic())
    jobs[6] = job(6, policy=fr.EpsilonGreedy(0.5), allow=np.arange(20))
    jobs[7] = job(7, k=3)

    async def work(own: Engine) -> list[Any]:
        tasks = [asyncio.create_task(own.rank(each)) for each in jobs]
        await until(lambda: own.waiting == 9)  # one has a thread, the others wait
        held.go.set()
        return await asyncio.gather(*tasks)

    found = run(work, share=share)
    for each, one in zip(found, jobs, strict=True):
        assert same_ranking(each.ranking, one.rank())
    expected = {1: [1] * 10, 3: [1, 3, 3, 1, 2], 64: [1, 8, 1]}[share]
    assert sorted(held.passes) == sorted(expected)


def test_jobs_of_one_score_share_a_pass_each_with_its_params(held: Held) -> None:
    jobs = [job(i, score="w * dot", params={"w": 1.0 + i}) for i in range(4)]
    jobs += [job(4, score="w * dot"), job(5, score="-dot"), job(6), job(7, params={})]
    jobs[4].params = {"w": -1.0}

    async def work(own: Engine) -> list[Any]:
        tasks = [asyncio.create_task(own.rank(each)) for each in jobs]
        await until(lambda: own.waiting == 7)
        held.go.set()
        return await asyncio.gather(*tasks)

    for each, one in zip(run(work), jobs, strict=True):
        assert same_ranking(each.ranking, one.rank())
        assert each.ranking.score == one.rank().score
    assert sorted(held.passes) == [1, 1, 2, 4]


def test_a_long_expression_is_not_ranked_in_the_loop() -> None:
    short, long = (job(1, score=" + ".join(["dot"] * many)) for many in (2, 1400))
    assert short.priced() <= engine.INLINE_WORK < long.priced()


def test_who_gains_nothing_shares_nothing(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no pass is longer than about a second: 64 slow ones in one would all come too late."""
    slow = [job(i, policy=fr.PlackettLuce(sampler="sequential")) for i in range(4)]
    jobs = [*slow, job(4, policy=fr.Uniform()), *(job(i) for i in range(5, 15))]
    monkeypatch.setattr(engine, "_PASS_WORK", 4 * jobs[-1].priced())

    async def work(own: Engine) -> list[Any]:
        tasks = [asyncio.create_task(own.rank(each)) for each in jobs]
        await until(lambda: own.waiting == len(jobs) - 1)
        held.go.set()
        return await asyncio.gather(*tasks)

    for each, one in zip(run(work), jobs, strict=True):
        assert same_ranking(each.ranking, one.rank())
    assert sorted(held.passes) == [1, 1, 1, 1, 1, 2, 4, 4]


def test_batches_take_turns_with_all_others(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single request waits for a pass of a batch, and not for all of the batch."""
    order: list[int] = []
    ranked = engine._ranked

    def noted(jobs: list[Job]) -> Any:
        order.extend(each.seed for each in jobs)
        return ranked(jobs)

    monkeypatch.setattr(engine, "_ranked", noted)
    slow = fr.PlackettLuce(sampler="sequential")
    lines = [job(i, policy=slow, is_batch=True) for i in range(10)]
    others = [job(i, policy=slow) for i in range(20, 24)]

    async def work(own: Engine) -> None:
        tasks = [asyncio.create_task(own.rank(each)) for each in (*lines, *others)]
        await until(lambda: own.waiting == 13)
        held.go.set()
        await asyncio.gather(*tasks)

    run(work)
    assert order == [0, 20, 1, 21, 2, 22, 3, 23, 4, 5, 6, 7, 8, 9]


def test_all_threads_are_there_before_they_are_wanted(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that could not be started later, the jobs would be counted for ever."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def work(own: Engine) -> None:
        own.begin()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            held.go.set()
            await asyncio.gather(*(own.rank(job(i)) for i in range(20)))
            assert await asyncio.gather(*(own.run(lambda: 7) for _ in range(20))) == [7] * 20
        assert own.inside == own.running == 0

    run(work, threads=3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        own = Engine(2, 10)
        with pytest.raises(OSError, match="6 threads are needed: can't start new thread"):
            own.begin()
        own.close()


def test_the_queue_is_bounded(held: Held) -> None:
    async def work(own: Engine) -> None:
        tasks = [asyncio.create_task(own.rank(job(i))) for i in range(4)]
        await until(lambda: own.inside == 4)
        with pytest.raises(ProblemError) as caught:
            await own.rank(job(9))
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        held.go.set()
        await asyncio.gather(*tasks)
        await own.rank(job(9))

    run(work, queue=4)


def test_deadlines(held: Held) -> None:
    """An answer comes, and nobody ranks for clients that were told that it is too late."""

    async def work(own: Engine) -> None:
        first = asyncio.create_task(own.rank(job(1)))
        await until(lambda: len(held.passes) == 1)
        with pytest.raises(ProblemError) as caught:
            await own.rank(job(2, deadline=time.monotonic() + 0.01))
        assert (caught.value.status, caught.value.code) == (503, "deadline_exceeded")
        held.go.set()
        await first
        await own.rank(job(3))

    run(work)
    assert held.passes == [1, 1]


def test_one_bad_job_does_not_spoil_a_pass(held: Held) -> None:
    async def work(own: Engine) -> list[Any]:
        bad = job(2, exclude=["no such kind of id"])
        tasks = [asyncio.create_task(own.rank(each)) for each in (job(0), job(1), bad, job(3))]
        await until(lambda: own.waiting == 3)
        held.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = run(work)
    assert isinstance(found[2], ProblemError)
    assert found[2].field == "exclude"
    for i in (0, 1, 3):
        assert same_ranking(found[i].ranking, job(i).rank())


def test_a_pass_that_hangs_is_noticed(held: Held) -> None:
    async def work(own: Engine) -> None:
        assert own.stuck_for() == 0.0
        task = asyncio.create_task(own.rank(job(1)))
        await until(lambda: own.stuck_for() > 0.02)
        held.go.set()
        await task
        assert own.stuck_for() == 0.0

    run(work)


def test_who_leaves_is_not_ranked_for(held: Held) -> None:
    async def work(own: Engine) -> None:
        first = asyncio.create_task(own.rank(job(1)))
        await until(lambda: len(held.passes) == 1)
        second = asyncio.create_task(own.rank(job(2)))
        await until(lambda: own.waiting == 1)
        second.cancel()
        held.go.set()
        await first
        assert same_ranking((await own.rank(job(3))).ranking, job(3).rank())
        assert own.inside == 0

    run(work)
    assert held.passes == [1, 1]
