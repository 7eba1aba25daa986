"""LogUploader: copies what a `LogWriter` has sealed to an object store, or another disk.

The log grows in a directory of this machine, the spool, and each sealed segment goes from there to
its place, after the filters and rules that its rows name; what has arrived is removed here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from fastrank import places
from fastrank.eventlog.background import GATE
from fastrank.eventlog.filters import FOLDER
from fastrank.eventlog.rows import as_positive
from fastrank.eventlog.segments import SEGMENT, HeldFile, seal_abandoned
from fastrank.files import is_data
from fastrank.inputs import as_count
from fastrank.places import Place

__all__ = ["LogUploader"]

_LOG = logging.getLogger("fastrank.eventlog")
_SOONEST, _LONGEST = 1.0, 60.0  # seconds between two tries
_LONG = 3600.0  # that a wait may be given
_TURN = 0.2  # of waiting for another uploader of the same spool


class _File(NamedTuple):
    path: Path
    bytes: int


class LogUploader:
    """Uploads the sealed segments of a log directory, in a thread; a context manager.

    Parameters
    ----------
    directory : path
        The spool: the directory of a `LogWriter`, whose `segment_seconds` says how soon rows leave.
        Made if absent. Its sealed files are removed once they have arrived. Several uploaders, of
        several processes too, take turns; a forked child's does nothing.
    url : str or path
        Where to: ``s3://bucket/prefix`` (extra ``s3``), whatever else fsspec has, or a directory,
        on another disk say. It becomes a log like any.
    max_bytes : int
        How much is kept while it cannot be reached. Beyond that the oldest segments are dropped,
        counted and logged: they are the closest to being too late for their rewards, and the reader
        finds the gap in their writer's sequence.
    every : float
        Seconds between two looks into the directory, at most; half as many at the least.

    Attributes
    ----------
    bytes_waiting : int
        Of files that are sealed and not yet uploaded, as of the latest look.
    files_sent, failures, rows_lost, files_lost : int
        Files that have arrived; tries that failed; what was dropped for lack of room.

    Raises
    ------
    ValueError, ModuleNotFoundError
        If the arguments are none, or a package is missing. What goes wrong later is logged (logger
        ``fastrank.eventlog``), once for each time that it begins, and tried again: after a second,
        then twice as long each time, up to a minute, less a random part.

    Notes
    -----
    A file arrives whole or not at all, and may arrive twice under its one name, after a kill just
    then. Contents go before the segments whose rows name them. Costs nothing beside reading the
    files; whatever their number, a look lists two directories.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank.eventlog import LogReader, LogUploader, LogWriter
    >>> catalog = fr.Catalog([10, 20, 30], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    >>> spool, far = tempfile.mkdtemp(), tempfile.mkdtemp()
    >>> with LogUploader(spool, far), LogWriter(spool, segment_seconds=60) as log:
    ...     ranking = catalog.rank([1.0, 0.2], k=2, policy=fr.PlackettLuce(0.5), seed=7)
    ...     request_id = log.append(ranking, user_id="u1", query=[1.0, 0.2])
    >>> sum(len(batch) for batch in LogReader(far))
    1
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        url: str | os.PathLike[str],
        *,
        max_bytes: int = 1 << 30,
        every: float = 5.0,
    ) -> None:
        self._directory = Path(directory)
        self._url = os.fspath(url)
        self._max_bytes = as_count("max_bytes", max_bytes)
        self._every = as_positive("every", every, above=0.0)
        if self._directory.exists() and not self._directory.is_dir():
            raise ValueError(f"directory: {self._directory} is a file")
        places.check(self._url)
        self._directory.mkdir(parents=True, exist_ok=True)
        if not places.is_url(self._url) and self._directory.resolve() == Path(self._url).resolve():
            raise ValueError(f"url: {self._url} is the directory that is uploaded")
        self.bytes_waiting = 0
        self.files_sent = 0
        self.failures = 0
        self.rows_lost = 0
        self.files_lost = 0
        self._place: Place | None = None
        self._failing = self._dropping = False  # which is said when it begins
        self._ends = threading.Event()
        self._end = float("inf")  # monotonic seconds, by which it gives up
        self._thread = threading.Thread(target=self._run, name="fastrank-upload", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"LogUploader({str(self._directory)!r}, {self._url!r}, {self.files_sent} files sent)"

    def __enter__(self) -> LogUploader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, seconds: float = 20.0) -> bool:
        """Upload what is left, segments of writers that are dead too; False if time was too short.

        What stays in the directory is uploaded by the next uploader of it. Close the writer before.
        """
        self._end = min(self._end, time.monotonic() + seconds)
        self._ends.set()
        self._thread.join(max(0.0, self._end - time.monotonic()))
        left = [*self._sealed(), *self._contents()]
        if left:
            _LOG.warning(
                "%s: %d files of %d bytes are not uploaded, and stay for the next start there",
                self._directory,
                len(left),
                _bytes_of(left),
            )
        return not left

    def _run(self) -> None:
        """In the thread."""
        turn = self._turn()
        if turn is None:
            return
        try:
            wait = _SOONEST
            while time.monotonic() < self._end:
                is_last = self._ends.is_set()
                if not self._round():
                    self._rest(wait * random.uniform(0.5, 1.0))
                    wait = min(2.0 * wait, _LONGEST)
                elif is_last:
                    return
                else:
                    wait = _SOONEST
                    self._ends.wait(min(self._every, _LONG) * random.uniform(0.5, 1.0))
        finally:
            turn.close()

    def _turn(self) -> HeldFile | None:
        """The directory, locked; None if the end comes before others have given it up."""
        while time.monotonic() < self._end:
            with contextlib.suppress(OSError):
                folder = HeldFile(self._directory, os.O_RDONLY)
                if folder.lock():
                    return folder
                folder.close()
            time.sleep(_TURN)
        return None

    def _rest(self, seconds: float) -> None:
        """Until the next try; not over the end, of which all that is left may be short."""
        if self._ends.is_set():
            time.sleep(max(0.0, min(seconds, self._end - time.monotonic())))
        else:
            self._ends.wait(seconds)

    def _round(self) -> bool:
        """Upload what is there; False if that failed."""
        try:
            if self._ends.is_set():
                seal_abandoned(self._directory)
            # First the segments are looked for: what their rows name is there by then.
            segments = self._sealed()
            contents = self._contents()
            self.bytes_waiting = _bytes_of(segments, contents)
            if self._place is None and (segments or contents):
                self._place = places.place(self._url)
            for folder, files in ((f"{FOLDER}/", contents), ("", segments)):
                for file in files:
                    if time.monotonic() > self._end:
                        return False
                    self._send(file, f"{folder}{file.path.name}")
        except Exception as error:  # stores may raise anything
            self.failures += 1
            if not self._failing:
                _LOG.warning("%s: rows wait to be uploaded: %s", self._url, _why(error))
            self._failing = True
            self._make_room()
            return False
        if self._failing:
            _LOG.warning(
                "%s: rows are uploaded again; %d were lost before", self._url, self.rows_lost
            )
        self._failing = False
        self._make_room()  # segments may come faster than they are uploaded
        return True

    def _send(self, file: _File, name: str) -> None:
        assert self._place is not None
        try:
            self._place.put(file.path, name)
        except FileNotFoundError:
            if file.path.exists():
                raise
            return  # its owner has removed it
        file.path.unlink(missing_ok=True)
        self.files_sent += 1
        self.bytes_waiting -= file.bytes

    def _make_room(self) -> None:
        """Drop the oldest segments that there is no room for."""
        segments, contents = self._sealed(), self._contents()
        size = _bytes_of(segments, contents)
        is_too_much = size > self._max_bytes
        for oldest in segments:
            if size <= self._max_bytes:
                break
            self.rows_lost += _rows_of(oldest.path)
            self.files_lost += 1
            oldest.path.unlink(missing_ok=True)
            size -= oldest.bytes
        self.bytes_waiting = size
        if is_too_much and not self._dropping:
            _LOG.error(
                "%s: rows are lost, those of the oldest segments first: more than %d bytes wait to"
                " be uploaded",
                self._directory,
                self._max_bytes,
            )
        self._dropping = self._failing and (is_too_much or self._dropping)

    def _sealed(self) -> list[_File]:
        """Segments, the oldest first."""
        found = []
        for path in self._directory.glob("*.parquet"):
            if SEGMENT.fullmatch(path.name) and is_data(path.name):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, path.name, _File(path, stat.st_size)))
        return [file for _, _, file in sorted(found)]

    def _contents(self) -> list[_File]:
        found = []
        for path in sorted(self._directory.glob(f"{FOLDER}/*")):
            if is_data(path.name):
                with contextlib.suppress(FileNotFoundError):
                    found.append(_File(path, path.stat().st_size))
        return found


def _bytes_of(*files: list[_File]) -> int:
    return sum(file.bytes for each in files for file in each)


def _rows_of(path: Path) -> int:
    """0 where it does not say."""
    try:
        with GATE:
            return int(pq.read_metadata(path).num_rows)
    except Exception:  # what parses a file that was damaged raises what it likes
        return 0


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
