"""Processes that rank parts. They are started afresh, and end with the process that started them.

The pools of `multiprocessing` run the caller's script again in each process, and leave their
processes behind if the caller is killed. Here each process has one connection, and ends when it
does.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from fastrank.batch.parts import Part
from fastrank.batch.users import RankUsers
from fastrank.batch.work import Done, rank_part

__all__ = ["ranked_by_processes", "serve"]

# The code of a process: it finds modules where its parent does.
_CODE = "import sys; sys.path[:] = {path!r}; from fastrank.batch.pool import serve; serve({fd})"
_ERRORS = {"ValueError": ValueError, "OSError": OSError, "MemoryError": MemoryError}


def ranked_by_processes(
    parts: Iterator[Part],
    ranker: RankUsers,
    output: Path,
    processes: int,
    tell: Callable[[int], None],
) -> Iterator[Done]:
    """Yield each part as it is done.

    Raises
    ------
    ValueError, OSError
        As in `rank_part`; parts that are done stay.
    ChildProcessError
        If a process ended before its part was done, for example killed for lack of memory.
    """
    workers: dict[Connection, subprocess.Popen[bytes]] = {}
    try:
        for _ in range(processes):
            ours, theirs = Pipe()
            with theirs:
                code = _CODE.format(path=sys.path, fd=theirs.fileno())
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # interrupts go to the parent, which ends its processes
                )
            workers[ours] = process
            _send(ours, process, (ranker, output))
            _give(ours, process, parts)
        busy = set(workers)
        while busy:
            for each in wait(list(busy)):
                assert isinstance(each, Connection)
                what, said = _heard(each, workers[each])
                if what == "users":
                    tell(said)
                elif what == "done":
                    yield said
                    _give(each, workers[each], parts)
                elif what == "ended":
                    busy.discard(each)
                else:
                    raise _ERRORS.get(what, RuntimeError)(said)
    finally:
        for connection, process in workers.items():
            connection.close()
            process.terminate()  # processes that are done have ended
        for process in workers.values():
            process.wait()


def _give(connection: Connection, process: subprocess.Popen[bytes], parts: Iterator[Part]) -> None:
    """Send the next part, or None if there is none left."""
    _send(connection, process, next(parts, None))


def _send(connection: Connection, process: subprocess.Popen[bytes], message: object) -> None:
    try:
        connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        raise _ended(process) from None


def _heard(connection: Connection, process: subprocess.Popen[bytes]) -> tuple[str, Any]:
    try:
        found: tuple[str, Any] = connection.recv()
    except (EOFError, ConnectionResetError):
        raise _ended(process) from None
    return found


def _ended(process: subprocess.Popen[bytes]) -> ChildProcessError:
    code = process.wait()
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return ChildProcessError(
        f"a process that ranked ended {how}: finished parts stay; run it again for the rest"
    )


def serve(descriptor: int) -> None:
    """Rank the parts that arrive over a connection, until it ends."""
    gone = contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError)
    with gone, Connection(descriptor) as connection:
        try:
            ranker, output = connection.recv()
            while (part := connection.recv()) is not None:
                done = rank_part(ranker, output, part, lambda n: connection.send(("users", n)))
                connection.send(("done", done))
            connection.send(("ended", None))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            names = [each.__name__ for each in type(error).__mro__]
            name = next((each for each in names if each in _ERRORS), "RuntimeError")
            connection.send((name, str(error) if name in names else f"{names[0]}: {error}"))
