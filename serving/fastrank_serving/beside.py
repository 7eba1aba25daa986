"""The helper process: it watches for models, and uploads the log.

Its work would delay rankings, and needs memory of its own (S3's client, for example), so there is
one such process for any number of workers. If it ends, it is started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from prometheus_client import CollectorRegistry, Gauge

from fastrank import places
from fastrank.store import read
from fastrank_serving.board import Board, Note
from fastrank_serving.metrics import kept_of, name_process, note_of
from fastrank_serving.settings import Settings

if TYPE_CHECKING:
    from fastrank.eventlog import LogUploader

__all__ = ["Beside", "claimed"]

_LOG = logging.getLogger("fastrank.serving")
_SOONEST = 2.0  # seconds between two starts of the process, at least
_SHARE = 0.2  # seconds between two notes of its metrics
_LEAST = 1.0  # seconds that it has at the end, however late it is
_WORD = 0.5  # seconds of these for reporting what was not uploaded
_NICE = 5
_TRIES = 100  # directories to try, which other servers may have


# ---- Directories of one server ---------------------------------------------------------------


@contextlib.contextmanager
def claimed(settings: Settings) -> Iterator[Settings]:
    """The settings, with directories for copies and for the log that waits to be uploaded.

    Each directory belongs to this server for the duration of the context. By default it is a
    temporary one, removed at the end unless something in it could not be uploaded. If a killed
    server left such a directory at the same place, it is taken over with its content.

    Raises
    ------
    ValueError, OSError
        If a directory cannot be used, or belongs to another server; the message names the option.
    """
    with contextlib.ExitStack() as held:
        if settings.watch is not None:
            places.check(settings.watch)
            folder = held.enter_context(
                _alone("watch-copies", settings.watch_copies, str(settings.watch))
            )
            _check_apart(settings, folder)
            settings = replace(settings, watch_copies=folder)
            _heal(settings)
        if settings.is_log_uploaded:
            url = str(settings.log_directory)
            places.check(url)
            folder = held.enter_context(_alone("log-spool", settings.log_spool, url))
            settings = replace(settings, log_spool=folder)
        yield settings


@contextlib.contextmanager
def _alone(option: str, given: Path | None, place: str) -> Iterator[Path]:
    lock = None
    try:
        if given is not None:
            given.mkdir(parents=True, exist_ok=True)
            folder, lock = given, _lock(given)
        else:
            name = f"fastrank-{option}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
            for number in range(_TRIES):
                folder = Path(tempfile.gettempdir(), f"{name}-{number}")
                # Others may write to that directory; their directories are not taken.
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(mode=0o700)
                if _is_ours(folder) and (lock := _lock(folder)) is not None:
                    break
    except OSError as error:
        raise OSError(f"--{option}: give a directory that can be written to: {error}") from None
    if lock is None:
        raise OSError(f"--{option}: {folder} is another server's: give one of its own")
    if given is None:
        _LOG.info("--%s is not given: %s", option, folder)
    try:
        yield folder
    finally:
        if given is None and (option != "log-spool" or not _has_rows(folder)):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _has_rows(folder: Path) -> bool:
    return any(path.suffix in (".arrow", ".parquet") for path in folder.iterdir())


def _check_apart(settings: Settings, copies: Path) -> None:
    """Raise ValueError if what this server and what others write would share a directory."""
    if settings.model is not None and _is_below(copies, settings.model):
        raise ValueError(f"--watch-copies: {copies} is inside the model that serves first")
    watched, log = settings.watch, settings.log_directory
    if watched is None or places.is_url(watched):
        return
    if _is_below(copies, Path(watched)):
        raise ValueError(f"--watch-copies: {copies} is inside the watched directory")
    if log is not None and not places.is_url(log) and _is_below(Path(log), Path(watched)):
        raise ValueError(f"--log: {log} is inside the watched directory")


def _is_below(folder: Path, other: Path) -> bool:
    return folder.resolve().is_relative_to(other.resolve())


def _is_ours(folder: Path) -> bool:
    found = folder.lstat()
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and ((found.st_uid, found.st_mode & 0o077) == (os.geteuid(), 0))
    )


def _lock(folder: Path) -> int | None:
    """Take a lock that ends with this process; None if another process has it."""
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), (folder / ".lock").stat()):
            return handle
    except (BlockingIOError, FileNotFoundError):  # or its owner has just removed it
        pass
    os.close(handle)
    return None


def _heal(settings: Settings) -> None:
    """Remove a damaged copy that an earlier server left, so that it is copied again."""
    copy = settings.copy
    assert copy is not None
    if copy.is_symlink():
        try:
            read(copy)
        except (ValueError, OSError) as error:
            _LOG.warning("an earlier copy is not used: %s", error)
            copy.unlink()


# ---- The process -----------------------------------------------------------------------------


class Beside:
    """Keeps the process running; a context manager for the main process.

    Parameters
    ----------
    settings : Settings
        As returned by `claimed`.
    board : Board
    seat : int
        Where its metrics are written.
    """

    def __init__(self, settings: Settings, board: Board, seat: int) -> None:
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._board, self._seat = board, seat
        self._closing = threading.Event()
        self._end = float("inf")  # monotonic seconds
        self._process: Any = None
        self._told: Any = None  # gets the time by which it should end
        # The process ends when this thread ends, as on the parent's death, so the thread outlives
        # it.
        self._keeper = threading.Thread(target=self._keep, name="fastrank-beside", daemon=True)

    def __enter__(self) -> Beside:
        self._keeper.start()
        return self

    def finish_by(self, moment: float) -> None:
        """Set when it should have ended, in monotonic seconds; only the first call counts."""
        self._end = min(self._end, moment)

    def __exit__(self, *_: object) -> None:
        """Let it upload the rest, once all processes that write a log have ended."""
        self._closing.set()
        self.finish_by(time.monotonic() + self._settings.drain_timeout)
        self._terminate()
        self._keeper.join(max(_LEAST, self._end - time.monotonic()))
        if self._keeper.is_alive() and self._process is not None:
            _LOG.warning("rows that were not uploaded stay in %s", self._settings.log_spool)
            self._process.kill()
            self._keeper.join(_LEAST)

    def _terminate(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._told.send(self._end)
            self._process.terminate()

    def _keep(self) -> None:
        """In a thread: keep it running until the end."""
        again = False
        while True:
            began = time.monotonic()
            hears, told = self._context.Pipe(duplex=False)
            arguments = self._settings, self._board, self._seat, hears, again
            process = self._context.Process(target=_run, args=arguments)
            # It is ended once it listens, and not before. A process started by the very first one
            # would lift the block.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            process.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            hears.close()
            self._process, self._told = process, told
            if self._closing.is_set():
                self._terminate()
            process.join()
            if not self._closing.is_set():  # the next process continues its counts
                self._board.write(self._seat, Note(self._board.read()[self._seat].kept, b""))
            if self._closing.is_set():
                if process.exitcode == 0 or time.monotonic() >= self._end:
                    return
            else:
                _LOG.log(  # exit code 0 follows a SIGTERM, for example to the whole group
                    logging.ERROR if process.exitcode else logging.INFO,
                    "the helper process, %s, ended with %s: it is started again",
                    process.pid,
                    process.exitcode,
                )
            self._closing.wait(max(0.0, began + _SOONEST - time.monotonic()))
            again = True


def _run(settings: Settings, board: Board, seat: int, hears: Connection, again: bool) -> NoReturn:
    def end(_number: int, _frame: Any) -> NoReturn:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    for number in (signal.SIGINT, signal.SIGHUP):  # for the servers only
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:
        sys.exit(0)
    os.nice(_NICE)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"%(asctime)s %(levelname)s %(name)s [{os.getpid()}, beside] %(message)s",
        stream=sys.stderr,
    )
    registry = CollectorRegistry()
    name_process(registry, "beside")
    with contextlib.ExitStack() as stack:
        if settings.is_log_uploaded:
            _upload(settings, registry, hears, stack)
        threading.Thread(target=_share, args=(registry, board, seat), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if settings.watch is None:
            while True:
                signal.pause()
        _watch(settings, registry, parent.pid, again)


def _share(registry: CollectorRegistry, board: Board, seat: int) -> None:
    before = kept_of(board, seat)
    while True:
        board.write(seat, note_of(registry, before))
        time.sleep(_SHARE)


def _watch(settings: Settings, registry: CollectorRegistry, parent: int, again: bool) -> NoReturn:
    from fastrank_serving.watching import Watcher

    watcher = Watcher(settings, registry)
    is_new = again and settings.directory == settings.copy  # the last process may not have said so
    while True:
        if watcher.look() or is_new:
            os.kill(parent, signal.SIGHUP)
        is_new = False
        time.sleep(settings.watch_every * random.uniform(0.5, 1.0))


def _upload(
    settings: Settings, registry: CollectorRegistry, hears: Connection, stack: contextlib.ExitStack
) -> None:
    from fastrank.eventlog import LogUploader

    assert settings.log_spool is not None
    uploader = LogUploader(
        settings.log_spool, str(settings.log_directory), max_bytes=settings.log_backlog
    )

    def finish() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = time.monotonic() + settings.drain_timeout
        if hears.poll():
            end = min(end, hears.recv())
        uploader.close(max(_LEAST, end - time.monotonic()) - _WORD)

    stack.callback(finish)
    count_uploads(uploader, registry)


def count_uploads(uploader: LogUploader, registry: CollectorRegistry) -> None:
    """Export its counts as metrics."""
    for name, attribute, words in (
        (
            "backlog_bytes",
            "bytes_waiting",
            "Bytes of the log that are sealed and not yet uploaded.",
        ),
        ("files_uploaded", "files_sent", "Files of the log that were uploaded."),
        ("upload_failures", "failures", "Failed attempts to upload the log."),
        ("upload_rows_lost", "rows_lost", "Rows lost for lack of room while uploads failed."),
    ):
        gauge = Gauge(f"fastrank_log_{name}", words, registry=registry)
        gauge.set_function(partial(getattr, uploader, attribute))
