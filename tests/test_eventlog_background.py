"""Threads inside the gate keep a fork waiting, for a while; they go from work to work."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("pyarrow")
from fastrank.eventlog import background
from fastrank.eventlog.background import Gate, Task, Threads


class Fork:
    """As `os.fork` calls the gate, in a thread of its own."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._ends = threading.Event()
        self._happened = threading.Event()
        self._thread = threading.Thread(target=self._fork)
        self._thread.start()
        while not gate._forks:
            time.sleep(0.001)

    def _fork(self) -> None:
        self._gate._before_fork()
        self._happened.set()
        assert self._ends.wait(60)
        self._gate._after_fork_in_parent()

    def happens(self) -> None:
        assert self._happened.wait(60)

    def has_happened(self) -> bool:
        return self._happened.is_set()

    def end(self) -> None:
        self._ends.set()
        self._thread.join()


@pytest.fixture
def gate() -> Gate:
    return Gate()


class TestGate:
    def test_a_fork_waits_for_who_is_inside_and_lets_him_in_again(self, gate: Gate) -> None:
        with gate:
            fork = Fork(gate)
            with gate:
                pass
            assert not fork.has_happened()
        fork.happens()
        fork.end()

    def test_nobody_goes_in_before_the_fork_is_over(self, gate: Gate) -> None:
        inside = threading.Event()

        def go_in() -> None:
            with gate:
                inside.set()

        fork = Fork(gate)
        fork.happens()
        thread = threading.Thread(target=go_in)
        thread.start()
        assert not inside.wait(0.1)  # it is not to come
        fork.end()
        thread.join()
        assert inside.is_set()

    def test_a_fork_goes_by_who_is_outside_for_a_while(self, gate: Gate) -> None:
        with gate, gate:
            fork = Fork(gate)
            with gate.outside():
                fork.happens()
                fork.end()
            again = Fork(gate)
            assert not again.has_happened()
        again.happens()
        again.end()

    def test_who_is_inside_may_fork(self, gate: Gate) -> None:
        with gate:
            gate._before_fork()
            gate._after_fork_in_parent()
        with gate:
            gate._before_fork()
            gate._after_fork_in_child()
        assert gate._inside == {}

    def test_a_fork_does_not_wait_for_ever(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(background, "_PATIENCE_SECONDS", 0.01)
        with gate:
            fork = Fork(gate)
            fork.happens()
            fork.end()

    def test_the_child_forgets_the_threads_that_are_gone(self, gate: Gate) -> None:
        here = threading.Thread(target=gate.__enter__)
        here.start()
        here.join()  # and is inside for ever
        gate._forks = 2  # one of them another thread's
        gate._after_fork_in_child()
        with gate:
            pass
        gate._before_fork()


class TestThreads:
    def test_are_used_again(self) -> None:
        threads = Threads()
        used: list[threading.Thread] = []
        for _ in range(3):
            threads.start(lambda: used.append(threading.current_thread())).join()
        assert len(set(used)) == 1
        assert used[0].daemon

    def test_are_as_many_as_there_is_work_at_once(self) -> None:
        threads = Threads()
        together = threading.Barrier(3)
        tasks = [threads.start(lambda: together.wait(60)) for _ in range(3)]
        for task in tasks:
            task.join()
            assert not task.is_alive()
        assert len(threads._idle) == 3

    def test_an_error_is_told_and_the_thread_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[type[BaseException]] = []
        monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
        threads = Threads()
        threads.start(lambda: 1 // 0).join()
        assert told == [ZeroDivisionError]
        assert len(threads._idle) == 1

    def test_a_task_that_has_not_begun_is_alive(self) -> None:
        assert Task(lambda: None).is_alive()
