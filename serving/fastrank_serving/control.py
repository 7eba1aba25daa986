"""The control file: a small JSON document that running servers follow.

It states arms and their shares, or that nothing is to be drawn, each time under a revision. Its
content stays in force until other content can take its place: a file that cannot be read or parsed,
or that the model cannot follow, changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fastrank.inputs import shown
from fastrank_serving.arms import Arm, Regime, arm_of, as_name, as_revision, as_share, checked
from fastrank_serving.board import Board, Note

__all__ = ["MAX_BYTES", "ControlFile", "Taken", "error_words", "regime_of"]

MAX_BYTES = 32_768  # fits into a seat of a board
_KEYS = ("revision", "experiment", "arms", "deterministic_only")
_ANSWERS = 5.0  # seconds for reading a file, or from a store
_JITTER = 0.2  # of an interval, either way, so that replicas do not all read at once


class Taken:
    """The content that a server's workers follow, for workers that replace them.

    Parameters
    ----------
    board : Board
        For this use only; it outlives workers.
    seat : int
        The seat of this worker.
    """

    def __init__(self, board: Board, seat: int) -> None:
        self._board = board
        self._seat = seat

    def put(self, content: bytes) -> None:
        """Record the content that this worker follows now."""
        self._board.write(self._seat, Note(content, _WHEN.pack(time.monotonic_ns())))

    def latest(self) -> bytes | None:
        """The content that a worker followed last; None if there was none."""
        notes = [note for note in self._board.read() if note.live]
        return max(notes, key=_when).kept if notes else None


_WHEN = struct.Struct("=Q")


def _when(note: Note) -> int:
    (nanoseconds,) = _WHEN.unpack(note.live)
    return int(nanoseconds)


class ControlFile:
    """The file's address, and the content that is in force.

    Parameters
    ----------
    address : str
        A path, or a URL that fsspec opens (s3://bucket/key).
    seconds : float
        From one read to the next.
    taken : Taken, optional
        Given if there are several workers.

    Attributes
    ----------
    in_force : bytes or None
        The content that was followed last.

    Raises
    ------
    ModuleNotFoundError
        If fsspec is not installed.
    ImportError, ValueError
        If it cannot open such URLs.
    """

    def __init__(self, address: str, seconds: float, taken: Taken | None = None) -> None:
        self.address = address
        self.in_force: bytes | None = None
        self._taken = taken
        self._seconds = seconds
        self._said: str | None = None
        self._reading: asyncio.Future[bytes] | None = None  # a read that has not ended
        self._read: Callable[[], bytes] = partial(_of_path, Path(address))
        if "://" in address:
            import fsspec

            try:
                file_system, path = fsspec.core.url_to_fs(address)
            except ValueError as error:
                raise ValueError(f"control: {address}: {error}") from None
            self._read = partial(file_system.cat_file, path)

    def pause(self) -> float:
        """Seconds until the next read."""
        return self._seconds * random.uniform(1.0 - _JITTER, 1.0 + _JITTER)

    async def read(self) -> bytes:
        """Return the content; errors of reading are raised, and a store may raise anything.

        Reads in a thread that nothing waits for when the process ends, nor for long: a store may
        hang.
        """
        if self._reading is None:
            self._reading = _in_thread(self._read)
        reading = self._reading
        if not (await asyncio.wait([reading], timeout=_ANSWERS))[0]:
            raise TimeoutError(f"no answer within {_ANSWERS:g} s")
        self._reading = None
        return reading.result()

    def follow(self, content: bytes) -> None:
        """Note that this content is in force now."""
        self.in_force = content
        if self._taken is not None:
            self._taken.put(content)

    def of_others(self) -> bytes | None:
        """For a worker that has followed nothing yet: the content of other or earlier workers."""
        if self.in_force is not None or self._taken is None:
            return None
        return self._taken.latest()

    def is_news(self, said: str | None) -> bool:
        """Whether this is new, and should be logged."""
        before, self._said = self._said, said
        return said != before


def _in_thread(read: Callable[[], bytes]) -> asyncio.Future[bytes]:
    loop = asyncio.get_running_loop()
    result: asyncio.Future[bytes] = loop.create_future()

    def work() -> None:
        try:
            settle = partial(result.set_result, read())
        except Exception as error:
            settle = partial(result.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=work, name="fastrank-control", daemon=True).start()
    return result


def _of_path(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def error_words(error: Exception) -> str:
    """Describe an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split())
    is_said = isinstance(error, ValueError | TimeoutError)
    return words if is_said else f"{type(error).__name__}: {words}"


def regime_of(content: bytes, settings: Regime) -> Regime:
    """The regime that a control file puts into force, on top of what settings state.

    A ValueError says what is wrong with the file, or where it contradicts itself.

    Examples
    --------
    >>> stated = Regime.stated("warmer", ["a=deterministic@0.5", "b=uniform@0.5"])
    >>> regime = regime_of(b'{"revision": 7, "arms": {"a": 0.9, "b": 0.1}}', stated)
    >>> regime.revision, [(arm.name, arm.share) for arm in regime.arms]
    ('7', [('a', 0.9), ('b', 0.1)])
    >>> regime_of(b'{"revision": 8, "deterministic_only": true}', stated).deterministic_only
    True
    """
    said = _object(content)
    unknown = [name for name in said if name not in _KEYS]
    if unknown:
        raise ValueError(f"{shown(unknown[0])}: expected some of {', '.join(_KEYS)}")
    if "revision" not in said:
        raise ValueError(
            "revision: expected an integer or a name, changed with each edit of the file"
        )
    revision = as_revision(said["revision"])
    is_off = said.get("deterministic_only", False)
    if not isinstance(is_off, bool):
        raise ValueError(f"deterministic_only: expected true or false, got {shown(is_off)}")
    if is_off:
        if "arms" in said:
            raise ValueError("deterministic_only: contradicts arms: state only one of them")
        return replace(settings, revision=revision, deterministic_only=True)
    experiment = settings.experiment
    if "experiment" in said:
        experiment = as_name("experiment", said["experiment"])
    arms = settings.arms
    if "arms" in said:
        arms = _arms(said["arms"], {arm.name: arm for arm in settings.arms})
    if bool(arms) != (experiment is not None):
        other = "arms: without an experiment" if arms else "experiment: it has no arms"
        raise ValueError(f"{other}: neither the file nor a setting states one")
    return replace(settings, revision=revision, experiment=experiment, arms=arms)


def _arms(said: Any, known: Mapping[str, Arm]) -> tuple[Arm, ...]:
    """Parse arms by name: the share of an arm of the settings, or a policy with its share."""
    if not isinstance(said, dict) or not said:
        raise ValueError(f"arms: expected an object of arms by name, got {shown(said)}")
    found = []
    for name, value in said.items():
        if isinstance(value, str):
            policy, at, share = value.rpartition("@")
            if not at:
                raise ValueError(f"arms: {name}: expected POLICY@SHARE, got {shown(value)}")
            found.append(arm_of(name, policy, share, "arms"))
        elif name in known:
            found.append(known[name]._replace(share=as_share(f"arms: {name}", value)))
        else:
            raise ValueError(
                f"arms: {shown(name)}: no setting states its policy: give POLICY@SHARE"
            )
    return checked(found, "arms")


def _object(content: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
            raise ValueError(f"{shown(twice)} is given twice")
        return found

    if len(content) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes")
    try:
        said = json.loads(content, object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"expected an object, got {shown(said)}")
    return said
