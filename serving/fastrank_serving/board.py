"""Memory that several processes share without a file: each writes its seat, all read all seats.

The kernel holds it (memfd): its pages exist from the start and nobody can truncate it, so it can
neither run out nor disappear, and it needs no directory. If a process is killed while it writes,
its earlier content remains: a seat has two halves, which are written in turn.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

__all__ = ["Board", "Note"]

_HALF = 65_536  # bytes
_LOOKS = 1000  # reads of a seat, until two agree: no writer is that fast
_HEAD = struct.Struct("=QII")  # number, lengths of both parts
_SUM = struct.Struct("=I")  # of the head and the parts
_ROOM = _HALF - _HEAD.size - _SUM.size


class Note(NamedTuple):
    """The content of a seat.

    Attributes
    ----------
    kept, live : bytes
        What outlives the process that wrote it, and what holds only while it runs.
    """

    kept: bytes
    live: bytes


class Board:
    """Seats for a number of processes; can be passed to processes that are being spawned.

    Each seat has one writer at a time, and any number of readers, who never wait.

    Parameters
    ----------
    seats : int

    Raises
    ------
    OSError
        If there is no memory for it.

    Examples
    --------
    >>> board = Board(2)
    >>> board.write(0, Note(b"kept", b"live"))
    >>> board.read()
    [Note(kept=b'kept', live=b'live'), Note(kept=b'', live=b'')]
    >>> board.close()
    """

    def __init__(self, seats: int) -> None:
        descriptor = os.memfd_create("fastrank-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(descriptor, 0, 2 * seats * _HALF)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            self._open(descriptor, seats)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):  # a limit on file sizes applies here too
                words = f"{2 * seats * _HALF} bytes that the workers share: {error.strerror}"
                raise OSError(error.errno, words) from None
            raise

    def _open(self, descriptor: int, seats: int) -> None:
        self._descriptor = descriptor
        self._seats = seats
        self._memory = mmap.mmap(descriptor, 2 * seats * _HALF)

    def __reduce__(self) -> tuple[Callable[..., Board], tuple[Any, int]]:
        return _opened, (DupFd(self._descriptor), self._seats)

    def close(self) -> None:
        """Release it in this process."""
        self._memory.close()
        os.close(self._descriptor)

    def write(self, seat: int, note: Note) -> None:
        """Replace the content of a seat; ValueError if it is longer than 64 KiB."""
        if len(note.kept) + len(note.live) > _ROOM:
            raise ValueError(f"note: {len(note.kept)} and {len(note.live)} bytes do not fit")
        latest = self._latest(seat)
        content = _HEAD.pack(latest.number + 1, *map(len, note)) + b"".join(note)
        at = (2 * seat + 1 - latest.half) * _HALF
        content = _SUM.pack(zlib.crc32(content)) + content
        self._memory[at : at + len(content)] = content

    def read(self) -> list[Note]:
        """The content of each seat; empty if nothing was written."""
        return [self._latest(seat).note for seat in range(self._seats)]

    def _latest(self, seat: int) -> _Written:
        """The newest of the halves that are complete."""
        latest = max(self._half(seat, half) for half in (0, 1))
        for _ in range(_LOOKS):  # a read may catch each half while it is being written
            before, latest = latest, max(self._half(seat, half) for half in (0, 1))
            if latest.number == before.number:
                break
        return latest

    def _half(self, seat: int, half: int) -> _Written:
        """Number 0 if it is not complete: it is being written, or never was."""
        at = (2 * seat + half) * _HALF
        head = self._memory[at : at + _SUM.size + _HEAD.size]
        number, kept, live = _HEAD.unpack_from(head, _SUM.size)
        end = at + min(_HALF, len(head) + kept + live)
        content = head[_SUM.size :] + self._memory[at + len(head) : end]
        if zlib.crc32(content) != _SUM.unpack_from(head)[0]:
            return _Written(0, half, Note(b"", b""))
        parts = content[_HEAD.size :]
        return _Written(number, half, Note(parts[:kept], parts[kept:]))


class _Written(NamedTuple):
    number: int
    half: int
    note: Note


def _opened(memory: Any, seats: int) -> Board:
    """Open it in the spawned process."""
    board = Board.__new__(Board)
    board._open(memory.detach(), seats)
    return board
