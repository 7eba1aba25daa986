"""What maps a function over parts of a log: processes of this machine, or Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from fastrank.cores import usable_cores
from fastrank.extras import named_if_missing

__all__ = ["ENGINES", "Engine", "begun"]

ENGINES = ("local", "ray")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_TRIES = 3  # again, of a task whose node was lost

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that is there.

    Attributes
    ----------
    processes : int
        That work at a time.
    """

    processes: int
    _results: Callable[..., Iterator[tuple[int, Any]]]

    def map(
        self, function: Callable[[T], R], parts: Sequence[T], done: Callable[[R], None]
    ) -> list[R]:
        """What a function gives of each part; `done` is called with each as soon as it is there.

        The first error that the function raises is raised here, and what still runs is ended.
        """
        found: dict[int, R] = {}
        for number, result in self._results(self.processes, function, parts):
            found[number] = result
            done(result)
        return [found[number] for number in range(len(parts))]


@contextmanager
def begun(name: str, processes: int | None) -> Iterator[Engine]:
    """An engine, by default with a process for each core that may be used."""
    if name == "local":
        yield Engine(processes or usable_cores(), _on_this_machine)
        return
    with named_if_missing():
        ray = import_module("ray")
    is_own = not ray.is_initialized()
    if is_own:  # the cluster of RAY_ADDRESS, or one of this machine alone
        size = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": processes or usable_cores()}
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False, **size)
    try:
        yield Engine(processes or max(1, int(ray.cluster_resources().get("CPU", 1))), _on_ray)
    finally:
        if is_own:
            ray.shutdown()


def _on_this_machine(
    processes: int, function: Callable[[T], R], parts: Sequence[T]
) -> Iterator[tuple[int, R]]:
    # A fork would copy the locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with _one_thread_each():
        pool = ProcessPoolExecutor(min(processes, len(parts)), context, _leave_interrupts)
        try:
            numbers: dict[Future[R], int] = {
                pool.submit(function, part): number for number, part in enumerate(parts)
            }
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool:
            raise ValueError(
                "--engine local: a process was ended from outside, for want of memory perhaps:"
                " fewer --processes take less"
            ) from None
        except BaseException:
            for process in [*(pool._processes or {}).values()]:
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are begun within it use one thread, where nobody has said otherwise."""
    unset = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "1"))
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)


def _on_ray(
    processes: int, function: Callable[[T], R], parts: Sequence[T]
) -> Iterator[tuple[int, R]]:
    """By a task each, `processes` at a time; where a node is lost, its tasks run on another."""
    ray = import_module("ray")
    task = ray.remote(num_cpus=1, max_retries=_TRIES)(_called)
    waiting = [*enumerate(parts)][::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                number, part = waiting.pop()
                running[task.remote(function, part)] = number
            (ready, *_), _ = ray.wait([*running])
            try:
                result = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
            except ray.exceptions.RayError as error:
                why = " ".join(str(error).split())
                raise ValueError(f"--engine ray: a task was lost {_TRIES} times: {why}") from None
            yield running.pop(ready), result
    finally:
        for each in running:
            ray.cancel(each, force=True)


def _called(function: Callable[[T], R], part: T) -> R:
    return function(part)
