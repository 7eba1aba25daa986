"""Segments: the files of a log, while they grow and after they are sealed.

A segment grows as ``<writer id>-<number>.arrow``, an Arrow IPC stream, of which any prefix can be
read up to its last whole batch. It is sealed into ``<writer id>-<number>.parquet``: written under
another name, renamed, and only then the .arrow goes, so that at each moment one of them is whole.
A process that writes or seals a segment holds a lock (flock) on the .arrow, which the kernel
releases when the process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import re
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from fastrank.atomic import leftovers, old_leftovers, replacing, sync
from fastrank.eventlog.background import GATE
from fastrank.eventlog.schema import KNOWN_VERSIONS, IdKind, schema
from fastrank.files import directly_in

__all__ = [
    "SEGMENT",
    "HeldFile",
    "Segment",
    "TornStreamError",
    "open_stream",
    "parquet_options",
    "seal",
    "seal_abandoned",
]

SEGMENT = re.compile(r"(?P<writer>.+)-(?P<number>\d{6,})\.(?:arrow|parquet)")

# Of a growing file: where its name says; whole, and under another name or in a directory that has
# another; with no name left, so that nobody will read it; or of a size that nobody here gave it.
Place: TypeAlias = Literal["here", "moved", "removed", "changed"]

_LOG = logging.getLogger("fastrank.eventlog")
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an Arrow IPC stream
_ROW_GROUP_ROWS = 65_536
# Columns that repeat a few values; the others would only pay for a dictionary.
_REPETITIVE = (
    *("writer_id", "user_id", "policy_name", "seed_source", "model_version", "catalog_version"),
    *("candidate_set_id", "propensity_kind", "reward_kind", "bias_id", "seen_id"),
    *("policy_params.temperature", "policy_params.epsilon", "policy_params.tail_mass"),
    *("policy_params.user_temperature", "law", "law_params.list.element.name"),
    *("law_params.list.element.value", "user_temperature", "sampler", "item_kind"),
    *("filter_id.exclude", "filter_id.allow", "features_version", "made_by"),
    *("retrieval.name", "retrieval.version", "retrieval.params"),
    *("score.name", "score.hash", "score.params", "rules.id", "rules.params"),
    *("run", "experiment", "arm", "revision", "request_id_source", "row_weight"),
)


def parquet_options(columns: pa.Schema) -> dict[str, Any]:
    """How a log is written to Parquet: for speed of reading rather than size."""
    present = [name for name in _REPETITIVE if name.split(".")[0] in columns.names]
    return {"compression": "lz4", "use_dictionary": present}


class Segment:
    """A growing segment, locked by this process, and written by whole messages.

    It is read while it grows, so it has its own name from the first and is never replaced.

    Parameters
    ----------
    path : Path
        A file that does not exist.
    columns : pyarrow.Schema

    Raises
    ------
    FileExistsError
        If the name is taken, or another process took the file before it was locked.
    OSError
        If the disk refuses.
    """

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self.path = path
        self.columns = columns
        self.rows = 0
        self.since = time.monotonic()
        self.broken = False  # whether later data could not be read
        self._size = 0
        header = columns.serialize()  # now: a kill from here on leaves a file without one
        self._file = HeldFile(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND)
        try:
            if not self._file.lock():
                raise FileExistsError(f"{path}: another process has locked it")
            self._append(header)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            self.close()
            raise

    def append(self, message: pa.Buffer, rows: int) -> bool:
        """Add a batch; after an OSError the segment is unchanged. False: the file is in no log."""
        self._append(message)
        if self.place() in ("removed", "changed"):
            return False
        self.rows += rows
        return True

    def place(self) -> Place:
        """Check where the file is; two system calls."""
        try:
            own = os.fstat(self._file.descriptor)
        except OSError:  # another host has removed it
            return "removed"
        try:
            here = os.path.samestat(own, os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            here = False
        except OSError:  # it cannot be checked
            here = own.st_nlink > 0
        if here:
            return "here" if own.st_size == self._size or self.broken else "changed"
        return "moved" if own.st_nlink else "removed"

    def _append(self, message: pa.Buffer) -> None:
        rest = memoryview(message).cast("B")
        try:
            while rest:
                rest = rest[os.write(self._file.descriptor, rest) :]
        except OSError:
            # Half a message in the middle would hide everything after it.
            self.broken = True
            os.ftruncate(self._file.descriptor, self._size)
            self.broken = False
            raise
        self._size += message.size

    def finish(self) -> None:
        """Mark the end of the stream; if that fails, its content stays readable."""
        with contextlib.suppress(OSError):
            self._append(pa.py_buffer(_END))

    def seal(self) -> int:
        """Convert it to Parquet, release the lock, and count its rows that are in a file."""
        try:
            place = self.place()
            sealed = seal(self.path) if place in ("here", "changed") else None
            if sealed is not None:
                return sealed
            return 0 if self.place() == "removed" else self.rows
        finally:
            self.close()

    def close(self) -> None:
        """Close the file, which releases the lock."""
        self._file.close()


class HeldFile:
    """An open file, or directory, that can be locked, and that a forked child closes.

    The lock would outlive this process in a child that kept the file open.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self._path = path
        self.descriptor = -1
        # A child forked between the two steps, here and in `close`, would miss what is open, or
        # close another file of that number.
        with GATE:
            _HELD.add(self)
            self.descriptor = os.open(path, flags, 0o644)

    def lock(self) -> bool:
        """Take the lock, if it is free and the file still has its name."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self.descriptor), self._path.stat())
        except OSError:
            return False

    def close(self) -> None:
        with GATE:
            descriptor, self.descriptor = self.descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)


_HELD: weakref.WeakSet[HeldFile] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child."""
    for file in list(_HELD):
        file.close()


os.register_at_fork(after_in_child=_let_go)


class TornStreamError(pa.ArrowInvalid):  # type: ignore[misc]  # pyarrow comes without types
    """The file ends within a message, like that of a killed writer."""


def open_stream(file: BinaryIO) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Columns and whole batches of an Arrow IPC stream, which may end anywhere.

    A `pyarrow.ArrowInvalid` where it does not even begin as one. The iterator ends with the last
    whole batch; after that it raises `TornStreamError` if the stream breaks off at the end of the
    file, and another `pyarrow.ArrowInvalid` where more of the file follows.
    """
    try:
        reader = pa.ipc.open_stream(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise pa.ArrowInvalid(
            "neither Parquet nor an Arrow stream, as logs of fastrank's are (a table of another"
            f" making is read by `from_table`, or --format table): {error}"
        ) from None
    return reader.schema, _whole_batches(reader, file)


def _whole_batches(
    reader: pa.ipc.RecordBatchStreamReader, file: BinaryIO
) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            batch = reader.read_next_batch()
            batch.validate(full=True)  # a torn message may describe anything
        except StopIteration:
            return
        except (pa.ArrowException, OSError, ValueError) as error:
            if file.read(1):
                raise pa.ArrowInvalid(f"the stream is damaged: {error}") from None
            raise TornStreamError(f"the stream breaks off: {error}") from None
        yield batch


def seal(path: Path) -> int | None:
    """Turn a segment that nobody writes into Parquet; the rows of it, None if it is not sealed.

    The caller holds its lock. A segment without one whole batch held nothing, and goes. If the
    disk refuses, or the file is not a segment, it stays as it is, and the log says so. A fork
    waits for one row group at most.
    """
    with GATE:
        return _seal(path)


def _seal(path: Path) -> int | None:
    target = path.with_suffix(".parquet")
    try:
        for leftover, name in leftovers(path.parent):
            if name == target.name:
                leftover.unlink(missing_ok=True)
        rows = 0
        if target.exists():
            rows = pq.read_metadata(target).num_rows
        elif not _holds_no_batch(path):
            with path.open("rb") as file:
                rows = _write_parquet(target, *open_stream(file))
        path.unlink(missing_ok=True)  # if it is gone, its rows are in the Parquet file
    except (OSError, pa.ArrowException) as error:
        if path.exists():
            _LOG.warning("%s: not sealed, and kept as it is: %s", path, error)
        return None
    return rows


def _write_parquet(target: Path, columns: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    """Write the rows of a stream to a Parquet file, and count them; no file if there are none."""
    groups = _row_groups(target, columns, batches)
    first = next(groups, None)
    if first is None:
        return 0
    rows = 0
    with replacing(target) as temporary:
        with pq.ParquetWriter(temporary, columns, **parquet_options(columns)) as writer:
            for group in itertools.chain([first], groups):
                writer.write_table(group, row_group_size=_ROW_GROUP_ROWS)
                rows += group.num_rows
                with GATE.outside():  # lets a waiting fork proceed
                    pass
        with GATE.outside():
            sync(temporary)
    return rows


def _row_groups(
    target: Path, columns: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = 0
    while True:
        try:
            batch = next(batches, None)
        except pa.ArrowInvalid as error:
            _LOG.info("%s: sealed up to where its stream breaks off: %s", target, error)
            batch = None
        if batch is not None:
            waiting.append(batch)
            rows += batch.num_rows
        if rows >= _ROW_GROUP_ROWS or (batch is None and rows):
            yield pa.Table.from_batches(waiting, columns)
            waiting, rows = [], 0
        if batch is None:
            return


def _holds_no_batch(path: Path) -> bool:
    """Whether a file is the beginning of a segment's header, and nothing else."""
    size = path.stat().st_size
    headers = [
        schema(kind, version).serialize().to_pybytes()
        for kind in get_args(IdKind)
        for version in KNOWN_VERSIONS
    ]
    if size > max(map(len, headers)):
        return False
    content = path.read_bytes()
    return any(header.startswith(content) for header in headers)


def seal_abandoned(directory: Path) -> int:
    """Seal the segments of dead writers; return how many were sealed."""
    sealed = 0
    for path in directly_in(directory, ".arrow"):
        if not SEGMENT.fullmatch(path.name):
            continue
        try:
            file = HeldFile(path, os.O_RDWR)
        except OSError:
            continue  # another process has just sealed it
        try:
            if file.lock():
                sealed += seal(path) is not None
        finally:
            file.close()
    for leftover, name in old_leftovers(directory):
        growing = (directory / name).with_suffix(".arrow")
        # The segment was removed while it was sealed, or the disk was full.
        if SEGMENT.fullmatch(name) and not growing.exists():
            leftover.unlink(missing_ok=True)
    return sealed
