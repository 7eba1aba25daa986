"""Rankings for many requests at once: threads, a bounded queue, deadlines, shared passes.

One event loop takes requests; as many threads as there are cores rank, with the GIL released. A
ranking that costs less than a hand-over to a thread is made in the loop itself. While all threads
are busy, requests wait; a free thread takes all waiting requests for the same catalog and k, and
ranks them in one pass over the vectors. Each row of such a batch is the ranking that the request
would have got alone, and no request waits for others to join it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

import fastrank as fr
from fastrank.arraytypes import FloatArray
from fastrank.ids import as_written, id_from_text, ids_from_text
from fastrank.scorer import Scorer
from fastrank.seen import Seen
from fastrank.wire import RulesBody
from fastrank_serving import rules
from fastrank_serving.messages import ProblemError, invalid_value

__all__ = ["Engine", "Job", "Ranked"]

T = TypeVar("T")
_Result: TypeAlias = tuple[fr.Ranking, dict[str, FloatArray] | None]

_LOG = logging.getLogger("fastrank.serving")

# Multiply-adds that take as long as waking a thread and being woken by it: about 60 us.
INLINE_WORK = 1_500_000
# Other work of a ranking, in equivalent multiply-adds: for each place, a candidate that enters the
# top k; for each item, a place of the sequential sampler; the table of the cached sampler.
_ENTRY, _SEQUENTIAL, _TABLE = 3_500, 70, 15
# An id of a filter: reading it, looking it up, sorting and hashing it for the log.
_ID = 8_000
# A ranking judged under further policies, besides one and a half passes; an item.
_JUDGED, _ALSO = 1_000_000, 15
_SEEN = 50  # for each item that the user has seen: a bit of a filter
# Items of a table's cell, and the other work of a ranking from it, in multiply-adds.
_CELL, _CELLS = 512, 50_000
# Limit of a pass: about a second, so that nobody waits long for the others in a shared pass.
_PASS_WORK = 25_000_000_000
_PER_SECOND = _PASS_WORK / 4  # on a slow or busy machine
_AT_BEST = _PASS_WORK * 8  # per second, for requests that share their passes
_BESIDE = 4  # threads for other work than rankings


# Work that is not a single scan, by sampler: for n items, d dimensions, k places.
_PER_SAMPLER: dict[str | None, Callable[[int, int, int], int]] = {
    "uniform": lambda n, d, k: 0,
    "sequential": lambda n, d, k: n * (d + _SEQUENTIAL * k),
    "cached": lambda n, d, k: n * (d + _TABLE),
    "flat_tail": lambda n, d, k: n * d,  # at most; less with an index
}


# Structs take a fifth of the time of a dataclass to create; each request creates three.
class Job(msgspec.Struct, eq=False):
    """One ranking to be made.

    Attributes
    ----------
    catalog, query, k, policy, seed, bias, score, params
        As `fastrank.Catalog.rank` takes them, checked.
    exclude, allow, after : list of int or str, optional
    seen : Seen, optional
        What the user has seen, as stored in the model.
    rules : Rules or RulesBody, optional
        As in the request; `prepare` converts them for the catalog.
    has_table : bool
        The policy's sampler is "cached", and the table exists.
    also : mapping of str to Policy, optional
        Policies whose log-propensities of the ranking are also needed.
    deadline : float
        Monotonic seconds.
    is_batch : bool
        The job is a line of a batch.
    """

    catalog: Scorer
    query: npt.NDArray[np.float32]
    k: int
    policy: fr.Policy
    seed: int
    exclude: Any = None
    allow: Any = None
    bias: Any = None
    score: str | None = None
    params: dict[str, float | bool | str] | None = None
    rules: fr.Rules | RulesBody | None = None
    after: Any = None
    seen: Seen | None = None
    has_table: bool = False
    also: Mapping[str, fr.Policy] | None = None
    deadline: float = float("inf")
    is_batch: bool = False
    result: asyncio.Future[Ranked] | None = None
    came: float = 0.0
    work: int = 0  # as returned by `priced`, once computed

    @property
    def ids(self) -> int:
        """Number of ids in its filters and earlier pages."""
        lists = (self.exclude, self.allow, self.after)
        return sum([0 if ids is None else len(ids) for ids in lists])

    def prepare(self) -> None:
        """Convert the request's ids and rules; ProblemError if one is invalid."""
        if self.exclude is not None:
            self.exclude = _as_ids("exclude", self.exclude, self.catalog)
        if self.allow is not None:
            self.allow = _as_ids("allow", self.allow, self.catalog)
        if self.after is not None:
            self.after = _as_ids("after", self.after, self.catalog)
        if isinstance(self.rules, RulesBody):
            self.rules = rules.made(self.rules, self.catalog)

    def priced(self) -> int:
        """Estimate the work, in multiply-adds."""
        n, d = len(self.catalog), self.catalog.dim
        k = min(self.k, n)
        cut = self.ids
        seen = 0 if self.seen is None else len(self.seen.items)
        if self.has_table:
            work = min(_CELLS + (k * _CELL + (cut + seen) * 16) * d, n * d)
        else:
            other = _PER_SAMPLER.get(self.policy.sampler)
            work = _ENTRY * k + (n * d if other is None else other(n, d, k))
        work += _ID * cut + _SEEN * seen
        if self.score is not None:
            # A step of an expression has about four characters, and costs two multiply-adds per
            # item.
            work += n * len(self.score) // 2
        if self.rules is not None or self.after is not None:
            shown = 0 if self.after is None else len(self.after)
            work += rules.work_of(self.rules, shown, n, d, k)
        if self.also:
            work += _JUDGED + n * (3 * d // 2 + _ALSO * len(self.also)) + _ID * (cut + seen) // 8
        return work + n * d if self.head else work

    def rank(self) -> fr.Ranking:
        """Rank this job alone, after `prepare`."""
        return self.catalog.rank(
            self.query,
            self.k,
            policy=self.policy,
            seed=self.seed,
            exclude=self.exclude,
            allow=self.allow,
            bias=self.bias,
            **self.said,
        )

    @property
    def left_out(self) -> Any:
        """Ids of `exclude` and of what the user has seen."""
        if self.seen is None:
            return self.exclude
        own = self.catalog.item_ids[self.seen.items]
        if self.exclude is None or not len(self.exclude):
            return own
        return np.concatenate([own, np.asarray(self.exclude)])

    @property
    def said(self) -> dict[str, Any]:
        """Arguments of the call for score and rules."""
        found: dict[str, Any] = {}
        if self.score is not None or self.params is not None:
            found |= {"score": self.score, "params": self.params}
        if self.rules is not None or self.after is not None:
            found |= {"rules": self.rules, "after": self.after}
        if self.seen is not None:
            found["seen"] = self.seen
        return found

    def joins(self, other: Job) -> bool:
        """Whether one pass can serve both jobs, and saves time."""
        return (
            self.catalog is other.catalog
            and self.k == other.k
            and self.scans
            and other.scans
            and self.head == other.head
            and self.bias is None
            and other.bias is None
            and self.score == other.score
        )

    @property
    def head(self) -> int:
        """Number of places that show the best items."""
        law = self.policy.law
        return 0 if law is None else law.head

    @property
    def scans(self) -> bool:
        """Whether it scans the catalog once, like other jobs that can share a pass."""
        return self.policy.sampler not in _PER_SAMPLER


class Ranked(msgspec.Struct, frozen=True, eq=False):
    """A ranking, and how long each part took.

    Attributes
    ----------
    ranking : Ranking
    waited, ranked : float
        Seconds in the queue, and in the kernel (of the whole pass, if shared).
    shared : int
        Number of requests ranked in this pass.
    also : dict of str to ndarray of float64, optional
        Log-propensities under the policies of `Job.also`, by name.
    """

    ranking: fr.Ranking
    waited: float
    ranked: float
    shared: int
    also: dict[str, FloatArray] | None = None


class Engine:
    """Ranks jobs; all methods belong to one event loop.

    Parameters
    ----------
    threads : int
    queue : int
        Most jobs that may be ranked or wait; further ones are refused at once.
    share : int
        Most jobs in one pass; 1 ranks every job alone.
    """

    def __init__(self, threads: int, queue: int, share: int = 64) -> None:
        self.threads = threads
        self.queue = queue
        self.share = share
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fastrank-rank")
        self._beside = ThreadPoolExecutor(_BESIDE, thread_name_prefix="fastrank-beside")
        self._waiting: deque[Job] = deque()
        self._batches: deque[Job] = deque()  # waiting jobs of batches
        self._running = 0  # passes
        self._inside = 0  # jobs that were accepted and have no answer yet
        self._work = 0  # of these jobs
        self._due: dict[int, float] = {}  # when each running pass should end
        self._passes = 0
        self._batch_was_last = False  # among the passes that were started

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return len(self._waiting) + len(self._batches)

    @property
    def running(self) -> int:
        """Passes that are running."""
        return self._running

    @property
    def inside(self) -> int:
        """Jobs without an answer."""
        return self._inside

    def stuck_for(self) -> float:
        """Seconds by which a pass exceeds its time on a slow machine; 0 if none does."""
        if not self._due:
            return 0.0
        return max(0.0, time.monotonic() - min(self._due.values()))

    async def rank(self, job: Job) -> Ranked:
        """Rank a job.

        Raises
        ------
        ProblemError
            429 if too many jobs are inside, or so much work that this one would be too late; 422 if
            it is too much work by itself; 503 after the deadline.
        ValueError
            As `fastrank.Catalog.rank`.
        """
        if self._inside >= self.queue:
            raise _too_many(f"the limit of {self._inside} requests, served or waiting, is reached")
        now = time.monotonic()
        job.work = job.priced()
        if not self._running and job.work <= INLINE_WORK:
            job.prepare()
            ranking = job.rank()
            also = _judged([job], [ranking])[0] if job.also else None
            return Ranked(ranking, 0.0, time.monotonic() - now, 1, also)
        self._admit(job, job.deadline - now)
        loop = asyncio.get_running_loop()
        job.came = now
        job.result = loop.create_future()
        self._inside += 1
        self._work += job.work
        (self._batches if job.is_batch else self._waiting).append(job)
        self._start(loop)
        late = loop.call_later(max(job.deadline - now, 0.0), _too_late, job)
        try:
            return await job.result
        finally:
            late.cancel()
            self._inside -= 1
            self._work -= job.work

    def _admit(self, job: Job, seconds: float) -> None:
        """Refuse a job that would be late, or make others late."""
        if seconds <= 0.0:
            return
        if job.work > _PASS_WORK * seconds:
            raise ProblemError(
                422,
                "too_dear",
                f"this ranking would take about {job.work / _PASS_WORK:.2g} s; the limit is"
                f" {seconds:.2g} s: ask for fewer places or another inference_type"
                + (", such as plackett_luce" if job.policy.sampler == "sequential" else ""),
                value=job.policy.inference_type,
            )
        if self._work + job.work > _AT_BEST * self.threads * seconds:
            raise _too_many(
                "the rankings in progress and in the queue take all the time that is left"
            )

    async def run(self, work: Callable[[], T]) -> T:
        """Run other work in one of the threads, such as loading a model."""
        return await asyncio.get_running_loop().run_in_executor(self._beside, work)

    def begin(self) -> None:
        """Start all threads now, since the machine may have none left later.

        Raises
        ------
        OSError
            If the machine has too few threads.
        """
        for pool, count in ((self._pool, self.threads), (self._beside, _BESIDE)):
            all_there = threading.Event()
            try:
                for _ in range(count):
                    pool.submit(all_there.wait)  # otherwise one thread would take all of them
            except RuntimeError as error:
                raise OSError(f"{self.threads + _BESIDE} threads are needed: {error}") from None
            finally:
                all_there.set()

    def close(self) -> None:
        for pool in (self._pool, self._beside):
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give waiting jobs to free threads."""
        while self._running < self.threads:
            jobs = self._next()
            if not jobs:
                return
            self._running += 1
            self._passes += 1
            work = sum(job.work for job in jobs)
            self._due[self._passes] = time.monotonic() + work / _PER_SECOND
            self._pool.submit(self._pass, loop, self._passes, jobs)

    def _next(self) -> list[Job]:
        """The oldest job that still needs an answer, and those that can join it.

        A batch keeps many jobs here for a long time, so jobs of batches and other jobs take turns.
        """
        jobs: list[Job] = []
        first, second = self._waiting, self._batches
        for queue in (first, second) if self._batch_was_last else (second, first):
            self._take(jobs, queue)
        if jobs:
            self._batch_was_last = jobs[0].is_batch
        return jobs

    def _take(self, jobs: list[Job], queue: deque[Job]) -> None:
        """Move from a queue the jobs that can join the first of `jobs`."""
        passed: list[Job] = []
        work = sum(job.work for job in jobs)
        while queue and len(jobs) < self.share and work < _PASS_WORK:
            job = queue.popleft()
            if job.result is None or job.result.done():
                continue  # too late, or the client has left
            if not jobs or jobs[0].joins(job):
                jobs.append(job)
                work += job.work
            else:
                passed.append(job)
        queue.extendleft(reversed(passed))

    def _pass(self, loop: asyncio.AbstractEventLoop, number: int, jobs: list[Job]) -> None:
        """In a thread: rank, and pass the results to the loop."""
        began = time.monotonic()
        results = _ranked(jobs)
        took = time.monotonic() - began
        try:
            loop.call_soon_threadsafe(self._done, loop, number, jobs, results, began, took)
        except RuntimeError:  # the loop is closed, and nobody waits for the answers
            _LOG.warning("%d rankings came after the end", len(jobs))

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        jobs: list[Job],
        results: Sequence[_Result | Exception],
        began: float,
        took: float,
    ) -> None:
        self._running -= 1
        del self._due[number]
        self._start(loop)  # first, so that the thread need not wait for the answers
        for job, result in zip(jobs, results, strict=True):
            if job.result is None or job.result.done():
                continue
            if isinstance(result, Exception):
                job.result.set_exception(result)
            else:
                ranking, also = result
                job.result.set_result(Ranked(ranking, began - job.came, took, len(jobs), also))


def _as_ids(name: str, ids: Any, catalog: Scorer) -> Any:
    """A filter as the catalog's ids; where ids are integers, text that states one is accepted."""
    like = catalog.item_ids
    try:
        return ids_from_text(name, ids, like)
    except ValueError:
        bad = next(each for each in ids if id_from_text(each, like) is None)
        is_number = like.dtype.kind == "U" and not isinstance(bad, str)
        allowed = f'{as_written(like)}, such as "{bad}"' if is_number else as_written(like)
        raise invalid_value(name, bad, allowed) from None


def _too_many(why: str) -> ProblemError:
    return ProblemError(429, "too_many_requests", why, retry_after=1)


def _too_late(job: Job) -> None:
    if job.result is not None and not job.result.done():
        job.result.set_exception(
            ProblemError(
                503,
                "deadline_exceeded",
                "the ranking was not ready in time",
                retry_after=1,
            )
        )


def _said(jobs: list[Job]) -> dict[str, Any]:
    """Arguments of a call for all jobs: their common score, and their rules."""
    names = {name for job in jobs for name in job.said}
    found: dict[str, Any] = {
        name: [getattr(job, name) for job in jobs] for name in names - {"score"}
    }
    return found | ({"score": jobs[0].score} if "score" in names else {})


def _ranked(jobs: list[Job]) -> list[_Result | Exception]:
    """Each job's ranking and what else it needs, or the error that prevented it."""
    found: dict[int, fr.Ranking | Exception] = {}
    for j, job in enumerate(jobs):
        try:
            job.prepare()
        except Exception as error:
            found[j] = error
    prepared = [(j, job) for j, job in enumerate(jobs) if j not in found]
    if len(prepared) > 1:
        try:
            found |= zip(
                [j for j, _ in prepared], _together([job for _, job in prepared]), strict=True
            )
        except Exception:  # of one of them; below, each is ranked alone
            _LOG.debug("a shared pass failed", exc_info=True)
    for j, job in prepared:
        if j not in found:
            try:
                found[j] = job.rank()
            except Exception as error:
                found[j] = error
    made = {j: each for j, each in found.items() if isinstance(each, fr.Ranking)}
    results: dict[int, _Result | Exception] = {
        j: each for j, each in found.items() if isinstance(each, Exception)
    }
    try:
        also = _judged([jobs[j] for j in made], [*made.values()])
        results |= zip(made, zip(made.values(), also, strict=True), strict=True)
    except Exception as error:
        results |= dict.fromkeys(made, error)
    return [results[j] for j in range(len(jobs))]


def _judged(
    jobs: Sequence[Job], rankings: Sequence[fr.Ranking]
) -> Sequence[dict[str, FloatArray] | None]:
    """Log-propensities of the rankings under the policies of `also`, by name; None without any.

    Uses one pass if the jobs can share it. Leaves out policies that a job's rules do not fit.
    """
    if not any(job.also for job in jobs):
        return [None] * len(jobs)
    names = {tuple(job.also or ()) for job in jobs}
    try:
        if len(names) == 1:
            (wanted,) = names
            return _judged_together(jobs, rankings, wanted)
    except ValueError:  # of one of them
        pass
    if len(jobs) > 1:
        return [_judged([job], [each])[0] for job, each in zip(jobs, rankings, strict=True)]
    found: dict[str, FloatArray] = {}
    for name in jobs[0].also or ():
        with contextlib.suppress(ValueError):
            found |= _judged_together(jobs, rankings, (name,))[0]
    return [found]


def _judged_together(
    jobs: Sequence[Job], rankings: Sequence[fr.Ranking], names: Sequence[str]
) -> list[dict[str, FloatArray]]:
    first = jobs[0]
    said: dict[str, Any] = {}
    if first.score is not None or any(job.params is not None for job in jobs):
        said |= {"score": first.score, "params": [job.params for job in jobs]}
    if any(job.rules is not None or job.after is not None for job in jobs):
        said |= {
            "rules": [job.rules for job in jobs],
            "after": [job.after for job in jobs],
            "k": first.k,
        }
    found = first.catalog.log_propensities_batch(
        np.stack([job.query for job in jobs]),
        [ranking.item_ids for ranking in rankings],
        policies=[[(job.also or {})[name] for job in jobs] for name in names],
        exclude=[job.left_out for job in jobs],
        allow=[job.allow for job in jobs],
        bias=first.bias,
        **said,
    )
    np.minimum(found, 0.0, out=found)  # rounding may exceed 0
    return [
        {name: found[p, i, : len(ranking.item_ids)] for p, name in enumerate(names)}
        for i, ranking in enumerate(rankings)
    ]


def _together(jobs: list[Job]) -> fr.RankingBatch:
    """Rank all jobs in one pass."""
    return jobs[0].catalog.rank_batch(
        np.stack([job.query for job in jobs]),
        jobs[0].k,
        policy=[job.policy for job in jobs],
        seeds=[job.seed for job in jobs],
        exclude=[job.exclude for job in jobs],
        allow=[job.allow for job in jobs],
        **_said(jobs),
    )
