"""Background work and forks, which exclude each other.

A fork copies the locks that other threads hold, and in the child nobody releases them. Arrow has
such locks, in its allocator (mimalloc's page map and arenas) and around its initialisation at the
first use (its tracer), and so has each import. A child forked while another thread held one hangs
as soon as it needs that lock. So all parts of the log that call Arrow do so inside `GATE`, and a
fork waits until no thread is inside.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

__all__ = ["GATE", "THREADS", "Gate", "Task", "Threads"]

# A hanging disk keeps a thread inside; then a child that may hang is better than a program that
# does.
_PATIENCE_SECONDS = 10.0


class Gate:
    """Any number of threads may be inside, but none while the process forks.

    ``with GATE:`` enters; a thread that is inside may enter again, even while a fork waits. Work
    inside should be short: a fork waits for it, up to ten seconds. A thread inside must not wait
    for one that has yet to enter: if a lock is held while entering, always take it before the gate.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}  # how often each thread has entered
        self._forks = 0  # forks that wait or are in progress

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if me not in self._inside:
                self._changed.wait_for(lambda: not self._forks)
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(self, *_: object) -> None:
        me = threading.get_ident()
        with self._changed:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
                self._changed.notify_all()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Leave the gate for a while, in the middle of long work, so that a fork may proceed."""
        me = threading.get_ident()
        with self._changed:
            depth = self._inside.pop(me)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._changed.wait_for(lambda: not self._forks)
                self._inside[me] = depth

    def _before_fork(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._inside.keys() - {me}, _PATIENCE_SECONDS)

    def _after_fork_in_parent(self) -> None:
        with self._changed:
            self._forks = max(0, self._forks - 1)  # Ctrl-C may have prevented the count
            self._changed.notify_all()

    def _after_fork_in_child(self) -> None:
        me = threading.get_ident()
        depth = self._inside.get(me)  # the other threads are gone
        self._changed = threading.Condition()
        self._inside = {} if depth is None else {me: depth}
        self._forks = 0


GATE = Gate()


class Task:
    """Work that a thread does, or has done."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work: Callable[[], object] | None = work
        self._done = threading.Event()

    def is_alive(self) -> bool:
        return not self._done.is_set()

    def join(self) -> None:
        """Wait until it is done."""
        self._done.wait()

    def _run(self) -> None:
        work, self._work = self._work, None
        try:
            if work is not None:
                work()
        except BaseException:  # told as if the thread had ended by it
            told = threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
            threading.excepthook(told)


class Threads:
    """Threads for work in the background, which wait for more once they have done theirs.

    They do not end, because a thread that used Arrow takes the locks of Arrow's allocator once
    more as it ends, past all Python, where it cannot be inside a gate.
    """

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[Task]] = []

    def start(self, work: Callable[[], object]) -> Task:
        """Have it done; a RuntimeError if no thread can start, as the interpreter ends."""
        task = Task(work)
        try:
            tasks = self._idle.pop()
        except IndexError:
            tasks = SimpleQueue()
            name = "fastrank-log"
            threading.Thread(target=self._work, args=(tasks,), name=name, daemon=True).start()
        tasks.put(task)
        return task

    def _work(self, tasks: SimpleQueue[Task]) -> None:
        while True:
            task = tasks.get()
            task._run()
            self._idle.append(tasks)
            task._done.set()
            del task  # and what it holds

    def _after_fork_in_child(self) -> None:
        self._idle = []


THREADS = Threads()


def _after_fork_in_child() -> None:
    GATE._after_fork_in_child()
    THREADS._after_fork_in_child()


os.register_at_fork(
    before=GATE._before_fork,
    after_in_parent=GATE._after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
