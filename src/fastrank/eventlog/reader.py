"""LogReader: streams a log as arrays of the rows that can be believed, and names the others.

Nothing is clipped into shape. A row that contradicts itself is set aside, counted under its reason,
and its place kept; a file that is not a log is named; what is missing between the rows of a writer
is counted as lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastrank.eventlog.account import read_account
from fastrank.eventlog.batch import LogBatch
from fastrank.eventlog.checks import Checks
from fastrank.eventlog.columns import CODED, coded, codes_of, integers, is_valid
from fastrank.eventlog.filters import FilterStore
from fastrank.eventlog.paths import JOIN_FILE, log_files
from fastrank.eventlog.report import ReadReport, SequenceGaps
from fastrank.eventlog.schema import (
    SCHEMA_VERSION,
    UNREAD,
    IdKind,
    cast_column,
    is_column,
    kind_of,
    schema,
)
from fastrank.eventlog.segments import SEGMENT, TornStreamError, open_stream
from fastrank.eventlog.upgrade import completed, foreign, refuse_foreign, upgraded
from fastrank.files import Paths
from fastrank.inputs import as_count

__all__ = ["JOIN_KEY", "LogReader"]

# Metadata of each file of a log that `join` wrote: which join.
JOIN_KEY = b"fastrank.join"

# What checking a row needs; the other columns of the schema may be omitted.
_OMITTABLE = (
    *("scores", "query", "log_norm", "latency_us", "candidate_set_id", "n_candidates"),
    *("retrieval", "n_probes", "tail_log_weight", "is_candidate"),
    *("reward_kind", "reward_ts", "item_kind", "sampler", "made_by"),
    *(name for name in UNREAD if name != "row_weight"),
)


# What few logs have.
_SELDOM = frozenset((*UNREAD, "n_probes", "tail_log_weight"))


class LogReader:
    """Reads a log in batches; iterate over it, then look at its `report`.

    Parameters
    ----------
    paths : path or iterable of paths
        Files (Parquet, or Arrow streams of running or killed writers), directories (with what is
        below them) and globs. Where a segment is there both growing and sealed, the sealed one is
        read. Of directories what is Parquet or Arrow by its name; the log ``fastrank.files`` warns
        of what else looks like data.
    columns : sequence of str
        Further columns to read, of numbers or of lists of numbers with one for each place: the
        log-propensities of an evaluation policy, say, or a column that `LogWriter.append` leaves
        null.
    omit : sequence of str
        Columns of the schema that need not be read: scores, query, log_norm, latency_us,
        candidate_set_id, n_candidates, retrieval, n_probes, tail_log_weight, is_candidate,
        reward_kind, reward_ts, item_kind, sampler, made_by, and the columns that
        `LogWriter.append` leaves null, `score` and `features_version` among them.
    batch_rows : int
        Rows in a batch at most.

    Attributes
    ----------
    report : ReadReport
        Complete after the last batch.
    strata : list of Stratum
        Grows while reading; `LogBatch.stratum` points into it.

    Raises
    ------
    ValueError
        If there is no file under a path; while iterating, if no file can be read, or one lacks a
        column that was asked for.

    Notes
    -----
    Memory is that of a batch, plus 16 bytes a request to find duplicates. Each iteration starts
    anew.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank.eventlog import LogWriter
    >>> catalog = fr.Catalog([10, 20, 30], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    >>> directory = tempfile.mkdtemp()
    >>> with LogWriter(directory) as log:
    ...     for seed in range(3):
    ...         ranking = catalog.rank([1.0, 0.2], k=2, policy=fr.PlackettLuce(0.5), seed=seed)
    ...         _ = log.append(ranking, k=2, user_id="u1", query=[1.0, 0.2], rewards=[0.0, 1.0])
    >>> reader = LogReader(directory)
    >>> for batch in reader:
    ...     print(len(batch), batch.item_ids.shape, batch.rewards.sum(axis=1).tolist())
    3 (3, 2) [1.0, 1.0, 1.0]
    >>> reader.report.rows_read, reader.report.set_aside, reader.strata[0].params
    (3, {}, (('temperature', 0.5),))
    """

    def __init__(
        self,
        paths: Paths,
        *,
        columns: Sequence[str] = (),
        omit: Sequence[str] = (),
        batch_rows: int = 65_536,
    ) -> None:
        self._files: list[Path] = log_files(paths)
        self._tables: Iterable[pa.Table | pa.RecordBatch] | None = None
        self._set(columns, omit, batch_rows)

    @classmethod
    def of_tables(
        cls,
        tables: Iterable[pa.Table | pa.RecordBatch],
        *,
        columns: Sequence[str] = (),
        omit: Sequence[str] = (),
        batch_rows: int = 65_536,
    ) -> LogReader:
        """Reads tables in the log's schema, as `from_obd` makes them; all else as for files.

        An iterator can be read once. Where `tables` has a `read_report`, as
        `DataCapture` has, what it set aside is part of this reader's report.
        """
        reader = cls.__new__(cls)
        reader._files = []
        reader._tables = [tables] if isinstance(tables, pa.Table | pa.RecordBatch) else tables
        reader._set(columns, omit, batch_rows)
        return reader

    def _set(self, columns: Sequence[str], omit: Sequence[str], batch_rows: int) -> None:
        if isinstance(columns, str) or isinstance(omit, str):
            raise ValueError("columns, omit: expected sequences of names")
        for name in columns:
            if is_column(name) and (name not in UNREAD or name == "row_weight"):
                raise ValueError(f"columns: {name} is a column of the schema itself")
        for name in omit:
            if name not in _OMITTABLE:
                raise ValueError(f"omit: expected any of {', '.join(_OMITTABLE)}; got {name!r}")
        self._columns = tuple(dict.fromkeys(columns))
        self._names = [
            name for name in schema("int64").names if name not in {*omit, *self._columns}
        ]
        self._keep_all = False
        self._batch_rows = as_count("batch_rows", batch_rows)
        self._filters = FilterStore()
        self._reset()

    def _reset(self) -> None:
        self.report = ReadReport()
        self.kind: IdKind | None = None
        self._checks = Checks(self.report, self._filters, self._columns, self._keep_all)
        self.strata = self._checks.strata.found
        self._sequences: dict[str, SequenceGaps] = {}
        self._joins: set[bytes] = set()
        self._begun: Path | None = None  # the file that is being read
        self._is_joined = False  # whether it is one of `join`, which leaves rows out on purpose
        self._bytes = sum(map(_size, self._files))
        self._bytes_done = 0.0

    @property
    def files(self) -> list[Path]:
        """The files to be read, in this order."""
        return list(self._files)

    @property
    def progress(self) -> float:
        """Share of the files that is read, by bytes; in [0, 1]."""
        return min(1.0, self._bytes_done / self._bytes) if self._bytes else 0.0

    def survey(self) -> tuple[int, int]:
        """Rows, and places of the longest ranking at most, of what can be read; a quick look.

        Nothing is checked; files that cannot be read count for nothing. Of item lists, no more are
        read than it takes to meet one as long as `k` allows. Given tables must be such that they
        can be read again.
        """
        if self._tables is not None:
            found = [_surveyed(table, [table]) for table in self._tables]
        else:
            found = [self._survey_of(path) for path in self._files]
        return sum(rows for rows, _ in found), max((places for _, places in found), default=0)

    @staticmethod
    def _survey_of(path: Path) -> tuple[int, int]:
        try:
            with path.open("rb") as file:
                head = file.read(6)
                file.seek(0)
                if head[:4] == b"PAR1":
                    with pq.ParquetFile(file, pre_buffer=False) as parquet:
                        lists = parquet.iter_batches(columns=["item_ids"])
                        return _surveyed(parquet.read(columns=["k", "n_eligible"]), lists)
                if head == b"ARROW1":
                    table = pa.ipc.open_file(file).read_all()
                    return _surveyed(table, [table])
                _, batches = open_stream(file)
                parts = [batch.select(["k", "n_eligible", "item_ids"]) for batch in batches]
                return _surveyed(pa.Table.from_batches(parts), parts) if parts else (0, 0)
        except Exception:  # what parses a stranger's file raises what it likes
            return 0, 0

    def __iter__(self) -> Iterator[LogBatch]:
        self._reset()
        sources = self._of_files() if self._tables is None else self._of_given()
        for source, folder, start, batch in sources:
            if not batch.num_rows:
                continue
            self.report.rows_read += batch.num_rows
            if not self._is_joined:
                self._note_sequence(batch)
            kind = self.kind or "int64"
            yield from self._checks.believed(kind, source, folder, start, batch)
        for writer, sequence in self._sequences.items():
            if sequence.missing:
                self.report.rows_lost[writer] = sequence.missing
        given = getattr(self._tables, "read_report", None)
        if isinstance(given, ReadReport):
            self._add(given)
        report = self.report
        if not report.files_read and (self._files or report.files_set_aside):
            shown = "; ".join(f"{f}: {why}" for f, why in list(report.files_set_aside.items())[:3])
            raise ValueError(f"no file of the log can be read: {shown}")

    def _add(self, given: ReadReport) -> None:
        self.report.rows_read += given.rows_set_aside
        for reason, count in given.set_aside.items():
            self.report.aside(reason, count)
            for place in given.places.get(reason, []):
                self.report.name(reason, *place)
        self.report.files_set_aside |= given.files_set_aside
        self.report.files_read += given.files_read

    # Where batches come from: name, folder of the filters, row of the first, the batch.

    def _of_given(self) -> Iterator[tuple[str, Path | None, int, pa.RecordBatch]]:
        rows = 0
        for number, table in enumerate(self._tables or ()):
            source = f"table {number}"
            try:
                whole = completed(table, self._columns)
                self._admit(whole.schema)
            except ValueError as error:
                self.report.files_set_aside[source] = str(error)
                continue
            self._require(source, whole.schema)
            self.report.files_read.append(source)
            for batch in whole.to_batches(max_chunksize=self._batch_rows):
                yield source, None, rows, self._selected(self._in_schema(batch))
                rows += batch.num_rows
            rows = 0

    def _of_files(self) -> Iterator[tuple[str, Path | None, int, pa.RecordBatch]]:
        done = 0.0
        for listed in self._files:
            path, file = _opened(listed)
            source, size = str(path), _size(path)
            start = 0
            try:
                for share, batch in self._batches(path, file):
                    self._bytes_done = done + share * size
                    yield source, path.parent, start, self._selected(batch)
                    start += batch.num_rows
            except _UnreadableError as error:
                is_log = self._begun == path  # by its columns
                if is_log and error.is_torn:
                    self.report.files_cut[source] = f"after {start} rows: {error}"
                else:
                    where = f"damaged after {start} rows: " if is_log else ""
                    self.report.files_set_aside[source] = f"{where}{error}"
            done += size
            self._bytes_done = done
            if self._begun == path and (start or source not in self.report.files_set_aside):
                self.report.files_read.append(source)

    def _batches(
        self, path: Path, opened: BinaryIO | OSError
    ) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Batches of one file in the schema's types, each with the share of it read by then."""
        try:
            if isinstance(opened, OSError):
                raise opened
            with opened as file:
                head = file.read(6)
                file.seek(0)
                if not head:
                    raise _UnreadableError("the file is empty")
                if head[:4] == b"PAR1":
                    raw = self._of_parquet(path)
                elif head == b"ARROW1":
                    reader = pa.ipc.open_file(file)
                    self._accept(path, reader.schema)
                    raw = ((0.0, reader.get_batch(i)) for i in range(reader.num_record_batches))
                else:
                    columns, batches = open_stream(file)
                    self._accept(path, columns)
                    raw = _gathered(batches, columns, self._batch_rows)
                for share, batch in raw:
                    yield share, self._in_schema(batch)
        except _AskedForError:
            raise
        except TornStreamError as error:
            raise _UnreadableError(_one_line(error), is_torn=True) from None
        except Exception as error:  # what parses a stranger's file raises what it likes
            raise _UnreadableError(_one_line(error)) from None

    def _of_parquet(self, path: Path) -> Iterator[tuple[float, pa.RecordBatch]]:
        metadata = pq.read_metadata(path)
        columns = metadata.schema.to_arrow_schema()
        self._accept(path, columns)
        # Buffering ahead would hold the whole file; threads of pyarrow's cost more than they bring
        # where the batches are used on the same cores.
        coded_here = [name for name in CODED if name in columns.names]
        with pq.ParquetFile(
            path, metadata=metadata, read_dictionary=coded_here, pre_buffer=False
        ) as file:
            wanted = {*self._names, "policy_params", *self._columns}
            empty = _without_values(metadata) - set(self._columns)
            names = [n for n in columns.names if n not in empty and (self._keep_all or n in wanted)]
            rows = max(1, file.metadata.num_rows)
            read = 0
            for batch in file.iter_batches(self._batch_rows, columns=names, use_threads=False):
                read += batch.num_rows
                yield read / rows, batch

    def _accept(self, path: Path, columns: pa.Schema) -> None:
        """Begin a file; a ValueError if its columns are not those of this log."""
        kind = kind_of(columns)
        if self._keep_all:
            refuse_foreign(columns, kind)
        its_own = foreign(columns, kind)
        for name in ("policy_params", *self._names):  # once for the file, not in the middle of it
            if name not in columns.names or name in its_own:
                continue
            of_schema = schema(kind, 1 if name == "policy_params" else SCHEMA_VERSION)
            wanted, got = of_schema.field(name).type, columns.field(name).type
            if pa.types.is_dictionary(got):
                got = got.value_type
            cast_column(name, pa.nulls(0, got), wanted)
        self._admit(columns)
        self._require(str(path), columns)
        self._begun = path
        joined = (columns.metadata or {}).get(JOIN_KEY)
        self._is_joined = joined is not None
        if joined is not None and joined not in self._joins:
            self._joins.add(joined)
            identity = joined.decode(errors="replace")
            account = path.parent / JOIN_FILE
            try:
                self.report.joins.append(read_account(account, identity))
            except ValueError as error:
                self.report.joins.append({"id": identity})
                self.report.files_set_aside[str(account)] = str(error)
        match = SEGMENT.fullmatch(path.name)
        if match is not None and int(match["number"]) == 0:
            # The writer's first segment is here, so its sequence must begin at 0.
            self._sequences.setdefault(match["writer"], SequenceGaps()).add(np.array([-1]))

    def _admit(self, columns: pa.Schema) -> None:
        kind = kind_of(columns)
        if self.kind is not None and kind != self.kind:
            raise ValueError(f"its item ids are {kind}, those of the other files {self.kind}")
        self.kind = kind

    def _require(self, source: str, columns: pa.Schema) -> None:
        for name in self._columns:
            if name not in columns.names:
                others = [n for n in columns.names if not is_column(n)]
                found = ", ".join(others) or "none besides those of the schema"
                raise _AskedForError(f"{source}: no column named {name}; found {found}")
            if not _is_numeric(columns.field(name).type):
                raise _AskedForError(
                    f"{source}: {name}: expected numbers or lists of them, got"
                    f" {columns.field(name).type}"
                )

    def _in_schema(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch in schema 2's columns and types, its repetitive texts as dictionaries.

        Columns that are absent are null.
        """
        kind = self.kind or "int64"
        columns = {}
        its_own = foreign(batch.schema, kind)
        for column, own in zip(batch.columns, batch.schema, strict=True):
            if own.name in self._columns:
                pass
            elif own.name in its_own:
                continue
            elif own.name in CODED:
                column = coded(own.name, column)
            elif is_column(own.name):
                old = own.name == "policy_params"
                of_schema = schema(kind, 1) if old else schema(kind)
                column = cast_column(own.name, column, of_schema.field(own.name).type)
                if own.name in ("request_id", "user_id", "item_ids"):
                    column.validate(full=kind == "str" or own.name != "item_ids")
            columns[own.name] = column
        upgraded(columns, batch.num_rows, kind)
        for name in self._names:
            if name not in columns:
                columns[name] = pa.nulls(batch.num_rows, schema(kind).field(name).type)
        order = [name for name in schema(kind).names if name in columns]
        order += [name for name in columns if name not in order]
        fields = [pa.field(name, columns[name].type) for name in order]
        return pa.RecordBatch.from_arrays(
            [columns[name] for name in order],
            schema=pa.schema(fields, metadata=batch.schema.metadata),
        )

    def _selected(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._keep_all:
            return batch
        return batch.select([*self._names, *self._columns])

    def _note_sequence(self, batch: pa.RecordBatch) -> None:
        writers, numbers = batch.column("writer_id"), batch.column("writer_seq")
        known = is_valid(writers) & is_valid(numbers)
        if not known.any():
            return
        sequence = integers(numbers)[known]
        codes, names = codes_of(writers)
        codes = codes[known]
        for code in np.unique(codes).tolist():
            name = names[code]
            self._sequences.setdefault(name, SequenceGaps()).add(sequence[codes == code])


class _AskedForError(ValueError):
    """A file lacks what the caller asked for: not a flaw of the log."""


class _UnreadableError(Exception):
    """A file, or the rest of one, cannot be read."""

    def __init__(self, why: str, is_torn: bool = False) -> None:
        super().__init__(why)
        self.is_torn = is_torn  # a killed writer's, of which nothing whole is missing


def _without_values(metadata: pq.FileMetaData) -> set[str]:
    """Columns that nobody has filled, as far as the file's statistics tell; need not be read."""
    values: dict[str, bool] = {}
    for at in range(metadata.num_columns):
        column = metadata.schema.column(at)
        name = column.path.partition(".")[0]
        if name not in _SELDOM:
            continue
        parts = [metadata.row_group(g).column(at) for g in range(metadata.num_row_groups)]
        found = [part.statistics for part in parts]
        values[name] = values.get(name, False) or not (
            column.max_repetition_level == 0  # an empty list has no values, either
            and all(
                one is not None and one.has_null_count and one.null_count == part.num_values
                for one, part in zip(found, parts, strict=True)
            )
        )
    return {name for name, there in values.items() if not there}


def _surveyed(
    limits: pa.Table | pa.RecordBatch, parts: Iterable[pa.Table | pa.RecordBatch]
) -> tuple[int, int]:
    """Rows, and places at most, from columns k and n_eligible, and then item_ids in parts."""
    if not {"k", "n_eligible"} <= set(limits.schema.names):
        return 0, 0
    most = pc.max(pc.min_element_wise(limits.column("k"), limits.column("n_eligible"))).as_py() or 0
    longest = 0
    for part in parts:  # as few as will do: lists are most of the bytes
        if "item_ids" not in part.schema.names:
            return 0, 0
        longest = max(longest, pc.max(pc.list_value_length(part.column("item_ids"))).as_py() or 0)
        if longest >= most:
            break
    return limits.num_rows, min(most, longest)


def _gathered(
    batches: Iterator[pa.RecordBatch], columns: pa.Schema, batch_rows: int
) -> Iterator[tuple[float, pa.RecordBatch]]:
    """Small batches put together; a stream that breaks off gives what came before first."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    broken: pa.ArrowInvalid | None = None
    while True:
        try:
            batch = next(batches, None)
        except pa.ArrowInvalid as error:
            batch, broken = None, error
        if batch is not None and batch.num_rows:
            waiting.append(batch)
            rows += batch.num_rows
        if waiting and (batch is None or rows >= batch_rows):
            whole = pa.Table.from_batches(waiting, columns).combine_chunks()
            for part in whole.to_batches(max_chunksize=batch_rows):
                yield 0.0, part
            waiting, rows = [], 0
        if batch is None:
            break
    if broken is not None:
        raise broken


def _opened(path: Path) -> tuple[Path, BinaryIO | OSError]:
    """A file, or what a segment became that was sealed since it was listed; or why neither."""
    try:
        return path, path.open("rb")
    except FileNotFoundError as error:
        sealed = path.with_suffix(".parquet")
        try:
            return sealed, sealed.open("rb")
        except OSError:
            return path, error
    except OSError as error:
        return path, error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # sealed since it was listed


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_numeric(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inner = kind.value_type if lists or pa.types.is_fixed_size_list(kind) else kind
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))
