"""LogUploader: copies sealed segments of a `LogWriter` to an object store, or another disk.

The log grows in a local directory, the spool. Each sealed segment is uploaded from there, after the
filters and rules that its rows name; files that have arrived are removed locally.
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
_SOONEST, _LONGEST = 1.0, 60.0  # seconds between two attempts
_LONG = 3600.0  # longest wait in seconds
_TURN = 0.2  # seconds between looks while another uploader has the spool


class _File(NamedTuple):
    path: Path
    bytes: int


class LogUploader:
    """Uploads the sealed segments of a log directory, in a thread; a context manager.

    Parameters
    ----------
    directory : path
        The spool: the directory of a `LogWriter`, whose `segment_seconds` determines how soon rows
        are uploaded. Created if absent. Its sealed files are removed once they have arrived.
        Several uploaders, also of several processes, take turns; the uploader of a forked child
        does nothing.
    url : str or path
        Destination: ``s3://bucket/prefix`` (extra ``s3``), any other URL of fsspec, or a directory,
        for example on another disk. It becomes a normal log.
    max_bytes : int
        Most bytes that are kept while the destination cannot be reached. Then the oldest segments
        are dropped, counted and logged: they are the closest to being too late for their rewards,
        and the reader finds the gap in their writer's sequence.
    every : float
        Most seconds between two looks into the directory; at least half as many.

    Attributes
    ----------
    bytes_waiting : int
        Bytes of sealed files that are not yet uploaded, as of the latest look.
    files_sent, failures, rows_lost, files_lost : int
        Files that have arrived; failed attempts; rows and files dropped for lack of room.

    Raises
    ------
    ValueError, ModuleNotFoundError
        If the arguments are invalid, or a package is missing. Later errors are logged (logger
        ``fastrank.eventlog``), once for each time that they begin, and the upload is tried again:
        after a second, then twice as long each time, up to a minute, less a random part.

    Notes
    -----
    A file arrives completely or not at all, and may be uploaded twice under the same name, if the
    process was killed at that moment. Filters and rules are uploaded before the segments whose rows
    name them. The only cost is reading the files; a look lists two directories, for any number of
    files.

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
        self._failing = self._dropping = False  # logged when it begins
        self._ends = threading.Event()
        self._end = float("inf")  # monotonic seconds after which it gives up
        self._thread = threading.Thread(target=self._run, name="fastrank-upload", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"LogUploader({str(self._directory)!r}, {self._url!r}, {self.files_sent} files sent)"

    def __enter__(self) -> LogUploader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, seconds: float = 20.0) -> bool:
        """Upload the rest, including segments of dead writers; False if the time was too short.

        The next uploader of the directory uploads what is left. Close the writer first.
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
        """The work of the thread."""
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
        """Lock the directory; None if the end comes before others have released it."""
        while time.monotonic() < self._end:
            with contextlib.suppress(OSError):
                folder = HeldFile(self._directory, os.O_RDONLY)
                if folder.lock():
                    return folder
                folder.close()
            time.sleep(_TURN)
        return None

    def _rest(self, seconds: float) -> None:
        """Wait until the next attempt, but not beyond the end."""
        if self._ends.is_set():
            time.sleep(max(0.0, min(seconds, self._end - time.monotonic())))
        else:
            self._ends.wait(seconds)

    def _round(self) -> bool:
        """Upload the present files; False if that failed."""
        try:
            if self._ends.is_set():
                seal_abandoned(self._directory)
            # List the segments first: the files that their rows name exist by then.
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
        """Drop the oldest segments if there is no room for them."""
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
        """The segments, oldest first."""
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
    """Number of rows; 0 if the file does not say."""
    try:
        with GATE:
            return int(pq.read_metadata(path).num_rows)
    except Exception:  # a parser may raise anything for a damaged file
        return 0


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
