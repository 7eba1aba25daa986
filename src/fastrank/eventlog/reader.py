"""LogReader: streams a log as arrays of its valid rows, and names the others.

No value is clipped to make it valid. A row that contradicts itself is set aside, counted by reason,
and its place is kept; a file that is not a log is named; gaps in a writer's sequence are counted as
lost rows.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastrank.eventlog.account import read_account
from fastrank.eventlog.batch import LogBatch
from fastrank.eventlog.checks import Checks
from fastrank.eventlog.columns import CODED, coded, codes_of, integers, is_valid
from fastrank.eventlog.filters import FOLDER, FilterStore
from fastrank.eventlog.paths import JOIN_FILE, LogFile, log_files
from fastrank.eventlog.report import ReadReport, SequenceGaps
from fastrank.eventlog.schema import (
    SCHEMA_VERSION,
    UNREAD,
    IdKind,
    cast_column,
    is_column,
    kind_of,
    schema,
    value_of,
)
from fastrank.eventlog.segments import SEGMENT, TornStreamError, open_stream
from fastrank.eventlog.upgrade import completed, foreign, refuse_foreign, upgraded
from fastrank.files import Paths
from fastrank.inputs import as_count, shown
from fastrank.rules import Rules

__all__ = ["JOIN_KEY", "LogReader", "UnreadLogError"]

# Metadata of each file of a log that `join` wrote: the id of that join.
JOIN_KEY = b"fastrank.join"

# Columns needed to check a row; the other columns of the schema may be omitted.
_OMITTABLE = (
    *("scores", "query", "log_norm", "latency_us", "candidate_set_id", "n_candidates"),
    *("retrieval", "n_probes", "tail_log_weight", "is_candidate"),
    *("reward_kind", "reward_ts", "item_kind", "sampler", "made_by"),
    *(name for name in UNREAD if name not in ("row_weight", "rules", "seen_id")),
)


# Columns that are null in most logs.
_SELDOM = frozenset((*UNREAD, "n_probes", "tail_log_weight"))


class LogReader:
    """Reads a log in batches; iterate over it, then look at its `report`.

    Parameters
    ----------
    paths : path or iterable of paths
        Files (Parquet, or Arrow streams of running or killed writers), directories (recursively,
        following links) and globs. If a segment exists both growing and sealed, the sealed one is
        read. In directories, files named as Parquet or Arrow are read; the logger
        ``fastrank.files`` warns of other files that look like data. Directories ``name=value`` fill
        columns that the files lack.
    columns : sequence of str
        Further columns to read, of numbers or of lists with one number per place: for example the
        log-propensities of an evaluation policy, or a column that `LogWriter.append` leaves null.
    omit : sequence of str
        Columns of the schema that need not be read: scores, query, log_norm, latency_us,
        candidate_set_id, n_candidates, retrieval, n_probes, tail_log_weight, is_candidate,
        reward_kind, reward_ts, item_kind, sampler, made_by, and the columns that are mostly null,
        such as `score`, `features_version` and `after`.
    batch_rows : int
        Most rows in a batch.

    Attributes
    ----------
    report : ReadReport
        Complete after the last batch.
    strata : list of Stratum
        Grows while reading; `LogBatch.stratum` indexes it.

    Raises
    ------
    ValueError
        If there is no file under a path; while iterating, if no file can be read, or a file lacks a
        requested column.

    Notes
    -----
    Memory is that of a batch, plus 24 bytes per request to find duplicates: 16 for its id, 8 for
    its content. Each iteration starts again.

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
        self._files: list[LogFile] = log_files(paths)
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
        """Read tables in the log's schema, such as those of `from_obd`; otherwise as for files.

        Tables of an iterator, which returns them only once, are kept from the first reading on, and
        take their memory. Tables of a list exist anyway, and objects that create them each time,
        like `DataCapture`, cost nothing. If `tables` has a `read_report`, as `DataCapture` has, the
        rows that it set aside are part of this reader's report; if it has `rules`, by id, rows may
        name those.
        """
        reader = cls.__new__(cls)
        reader._files = []
        if isinstance(tables, pa.Table | pa.RecordBatch):
            tables = [tables]
        reader._tables = _Kept(tables) if isinstance(tables, Iterator) else tables
        reader._set(columns, omit, batch_rows, getattr(tables, "rules", None))
        return reader

    def _set(
        self,
        columns: Sequence[str],
        omit: Sequence[str],
        batch_rows: int,
        rules: Mapping[str, Rules] | None = None,
    ) -> None:
        if isinstance(columns, str) or isinstance(omit, str):
            raise ValueError("columns, omit: expected sequences of names")
        for name in columns:
            if is_column(name) and (name not in UNREAD or name == "row_weight"):
                raise ValueError(f"columns: {name} is a column of the schema itself")
        for name in omit:
            if name not in _OMITTABLE:
                raise ValueError(f"omit: expected any of {', '.join(_OMITTABLE)}; got {name!r}")
        self._columns, self._omit = tuple(dict.fromkeys(columns)), tuple(omit)
        self._names = [
            name for name in schema("int64").names if name not in {*omit, *self._columns}
        ]
        self._keep_all = False
        self._batch_rows = as_count("batch_rows", batch_rows)
        self._rules, self._filters = rules, FilterStore(rules)
        self._reset(self._keep_all)

    def _reset(self, keep_all: bool) -> None:
        self.report = ReadReport()
        self.kind: IdKind | None = None
        self._checks = Checks(self.report, self._filters, self._columns, keep_all)
        self.strata = self._checks.strata.found
        self._joins: set[bytes] = set()
        self._begun: Path | None = None  # the file being read
        self._is_joined = False  # by `join`, which leaves rows out on purpose
        self._said: dict[str, pa.Scalar] = {}  # values for all its rows, from its path
        self._bytes = sum(_size(file.path) for file in self._files)
        self._bytes_done = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what it reads: the copy has not read anything yet."""
        settings = self._columns, self._omit, self._batch_rows, self._rules
        return {"files": self._files, "tables": self._tables, "settings": settings}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._files, self._tables = state["files"], state["tables"]
        self._set(*state["settings"])

    @property
    def files(self) -> list[Path]:
        """The files to read, in this order."""
        return [file.path for file in self._files]

    @property
    def progress(self) -> float:
        """Share of the files that is read, by bytes; in [0, 1]."""
        return min(1.0, self._bytes_done / self._bytes) if self._bytes else 0.0

    def parts(self, n: int) -> list[LogReader]:
        """Return readers of some of this log's files each, for `ope.partial` in separate processes.

        Parameters
        ----------
        n : int
            Most readers; there are never more than files.

        Returns
        -------
        list of LogReader
            Each has about the same number of bytes, with files in order, and is otherwise like this
            reader. Readers can be pickled; the copy has not read anything yet.

        Raises
        ------
        ValueError
            If `n` is below 1; for a log of tables, which have no files.

        Examples
        --------
        >>> import tempfile
        >>> import fastrank as fr
        >>> from fastrank.eventlog import LogWriter
        >>> catalog, directory = fr.Catalog([10, 20], [[1.0], [0.5]]), tempfile.mkdtemp()
        >>> for seed in range(4):
        ...     with LogWriter(directory) as log:
        ...         _ = log.append(catalog.rank([1.0], 1, policy=fr.Uniform(), seed=seed))
        >>> [len(part.files) for part in LogReader(directory).parts(2)]
        [2, 2]
        """
        n = as_count("n", n)
        if self._tables is not None:
            raise ValueError(
                "parts: the log consists of tables, not files: make a reader for each part"
            )
        sizes = np.array([_size(file.path) for file in self._files], np.float64) + 1.0
        # By the middle of each file's bytes: a file belongs to the part that has most of it.
        at = ((np.cumsum(sizes) - sizes / 2) * (n / sizes.sum())).astype(np.int64)
        return [self._of(np.flatnonzero(at == j).tolist()) for j in np.unique(at).tolist()]

    @classmethod
    def of_parts(cls, parts: Sequence[LogReader]) -> LogReader:
        """Make one reader from several (at least one) that `parts` made of a log."""
        found = parts[0]._of([])
        found._files = [file for part in parts for file in part._files]
        found._reset(found._keep_all)
        return found

    def _of(self, numbers: Sequence[int]) -> LogReader:
        """A reader of some of the files."""
        found = LogReader.__new__(LogReader)
        found._files = [self._files[number] for number in numbers]
        found._tables = None
        found._set(self._columns, self._omit, self._batch_rows)
        return found

    def survey(self) -> tuple[int, int]:
        """Estimate quickly how many rows can be read, and at most how many places a ranking has.

        Nothing is checked; unreadable files are ignored, and damaged ones count up to the damage.
        Item lists are read only until one is as long as `k` and `n_eligible` allow; if these are
        not stated, all are read.
        """
        found = _Survey()
        if self._tables is not None:
            for table in self._tables:
                with suppress(Exception):  # reading will set the file aside by name
                    found.add([table], table.num_rows)
        for file in self._files:
            with suppress(Exception):  # a parser may raise anything for a foreign file
                _survey(file.path, found)
        return found.rows, found.places

    def __repr__(self) -> str:
        what = (
            f"{len(self._files)} file{'' if len(self._files) == 1 else 's'}"
            if self._tables is None
            else "tables"
        )
        return (
            f"LogReader({what}; {self.report!r})" if self.report.rows_read else f"LogReader({what})"
        )

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all valid rows as one table.

        Reads the log; the report is complete afterwards.

        Parameters
        ----------
        columns : sequence of str, optional
            The columns, in this order. By default all that this reader reads: those of the schema
            except ``omit``, and its own ``columns``. Rows are checked by all of them in any case.

        Returns
        -------
        pyarrow.Table
            In the types of `eventlog.schema`, with its metadata, so that `of_tables` can read it;
            the reader's own columns keep their types. Rankings whose filters or rules are files of
            the log name these files, which are not in the table.

        Raises
        ------
        ValueError
            If a column is not read; the message names those that are. Otherwise as for iterating.

        Notes
        -----
        The table is held in memory: for large logs, name only the columns that you need. Its
        ``to_pandas()`` is a DataFrame; ``explode(["item_ids", "log_propensities"])`` gives one row
        per place.

        Examples
        --------
        >>> import tempfile
        >>> import fastrank as fr
        >>> from fastrank.eventlog import LogWriter
        >>> catalog, directory = fr.Catalog([10, 20], [[1.0], [0.5]]), tempfile.mkdtemp()
        >>> with LogWriter(directory) as log:
        ...     _ = log.append(catalog.rank([1.0], 2, policy=fr.Deterministic()), user_id="ann")
        >>> LogReader(directory).to_table(["user_id", "item_ids"]).to_pylist()
        [{'user_id': 'ann', 'item_ids': [10, 20]}]
        """
        read = [*self._names, *self._columns]
        wanted = read if columns is None else [*columns]
        unknown = [name for name in wanted if name not in read]
        if isinstance(columns, str) or unknown:
            got = columns if isinstance(columns, str) else ", ".join(map(shown, unknown))
            raise ValueError(
                f"columns: expected some of {', '.join(read)}; got {got}. LogReader(columns=) reads"
                " further ones of numbers"
            )
        twice = [name for name, times in Counter(wanted).items() if times > 1]
        if twice:
            raise ValueError(f"columns: {twice[0]} is named twice")
        parts = [
            pa.table({name: batch.column(name) for name in wanted})
            for batch in self._batches_read(keep_all=True)
        ]
        of_log = schema(self.kind or "int64")
        fields = [of_log.field(n) if n in of_log.names else pa.field(n, pa.null()) for n in wanted]
        empty = pa.schema(fields).empty_table()
        try:
            found = pa.concat_tables([empty, *parts], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"columns: files have them in several types: {error}") from None
        return found.replace_schema_metadata(of_log.metadata)

    def __iter__(self) -> Iterator[LogBatch]:
        return self._batches_read(self._keep_all)

    def _batches_read(self, keep_all: bool) -> Iterator[LogBatch]:
        self._reset(keep_all)
        sources = self._of_files() if self._tables is None else self._of_given()
        for source, folder, start, batch in sources:
            if not batch.num_rows:
                continue
            self.report.rows_read += batch.num_rows
            if not self._is_joined:
                self._note_sequence(batch)
            kind = self.kind or "int64"
            yield from self._checks.believed(kind, source, folder, start, batch)
        self.report.count_lost()
        given = getattr(self._tables, "read_report", None)
        if isinstance(given, ReadReport):
            self._add(given)
        why = self.report.why_unread
        if why is not None:
            raise UnreadLogError(why)

    def _add(self, given: ReadReport) -> None:
        self.report.rows_read += given.rows_set_aside
        self.report.items_read += given.items_read
        self.report.items_set_aside += given.items_set_aside
        self.report.equal_duplicates += given.equal_duplicates
        self.report.times_without_zone += given.times_without_zone
        for reason, count in given.set_aside.items():
            self.report.aside(reason, count)
            for place in given.places.get(reason, []):
                self.report.name(reason, *place)
        self.report.files_set_aside |= given.files_set_aside
        self.report.files_read += given.files_read

    # Sources of batches: name, folder of the filters, row of the first, the batch.

    def _of_given(self) -> Iterator[tuple[str, Path | None, int, pa.RecordBatch]]:
        rows = 0
        for number, table in enumerate(self._tables or ()):
            source = f"table {number}"
            try:
                kind_of(table.schema)
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
            path, file = _opened(listed.path)
            source, size, folder = str(path), _size(path), listed.folder_with(FOLDER)
            start = 0
            try:
                for share, batch in self._batches(LogFile(path, listed.top), file):
                    self._bytes_done = done + share * size
                    yield source, folder, start, self._selected(batch)
                    start += batch.num_rows
            except _UnreadableError as error:
                is_log = self._begun == path  # judged by its columns
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
        self, listed: LogFile, opened: BinaryIO | OSError
    ) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Batches of one file in the schema's types, each with the share read so far."""
        try:
            if isinstance(opened, OSError):
                raise opened
            with opened as file:
                head = file.read(6)
                file.seek(0)
                if not head and listed.path.suffix == ".arrow":
                    return  # a writer has created it, and has not written a row yet
                if not head:
                    raise _UnreadableError("the file is empty")
                if head[:4] == b"PAR1":
                    raw = self._of_parquet(listed)
                elif head == b"ARROW1":
                    reader = pa.ipc.open_file(file)
                    self._accept(listed, reader.schema)
                    raw = ((0.0, reader.get_batch(i)) for i in range(reader.num_record_batches))
                else:
                    columns, batches = open_stream(file)
                    self._accept(listed, columns)
                    raw = _gathered(batches, columns, self._batch_rows)
                for share, batch in raw:
                    yield share, self._in_schema(batch)
        except _AskedForError:
            raise
        except TornStreamError as error:
            raise _UnreadableError(_one_line(error), is_torn=True) from None
        except Exception as error:  # a parser may raise anything for a foreign file
            raise _UnreadableError(_one_line(error)) from None

    def _of_parquet(self, listed: LogFile) -> Iterator[tuple[float, pa.RecordBatch]]:
        path = listed.path
        metadata = pq.read_metadata(path)
        columns = metadata.schema.to_arrow_schema()
        self._accept(listed, columns)
        # Buffering ahead would hold the whole file; pyarrow's threads cost more than they save when
        # the batches are used on the same cores.
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

    def _accept(self, listed: LogFile, columns: pa.Schema) -> None:
        """Start a file; ValueError if its columns are not those of this log."""
        path = listed.path
        said = listed.said_above | listed.said
        kind = kind_of(columns, said)
        if self._keep_all:
            refuse_foreign(columns, kind)
        its_own = foreign(columns, kind)
        for name in ("policy_params", *self._names):  # once per file, not in the middle of it
            if name not in columns.names or name in its_own:
                continue
            wanted, got = _type_of(name, kind), columns.field(name).type
            if pa.types.is_dictionary(got):
                got = got.value_type
            cast_column(name, pa.nulls(0, got), wanted)
        self._said = self._values_said(listed, columns, kind)
        self._admit(columns, said)
        self._require(str(path), columns)
        self._begun = path
        joined = (columns.metadata or {}).get(JOIN_KEY)
        self._is_joined = joined is not None
        if joined is not None and joined not in self._joins:
            self._joins.add(joined)
            identity = joined.decode(errors="replace")
            account = listed.folder_with(JOIN_FILE) / JOIN_FILE
            try:
                self.report.joins.append(read_account(account, identity))
            except ValueError as error:
                self.report.joins.append({"id": identity})
                self.report.files_set_aside[str(account)] = str(error)
        match = SEGMENT.fullmatch(path.name)
        if match is not None and int(match["number"]) == 0:
            # The writer's first segment is among the files, so its sequence must begin at 0.
            self.report.sequences.setdefault(match["writer"], SequenceGaps()).add(np.array([-1]))

    def _values_said(
        self, listed: LogFile, columns: pa.Schema, kind: IdKind
    ) -> dict[str, pa.Scalar]:
        """Values from a file's path for columns that it lacks, or has no value in.

        ValueError if the path contradicts the file.
        """
        found = {}
        said = listed.said_above | listed.said
        texts = [pa.field(name, pa.string()) for name in said if name not in columns.names]
        own = foreign(pa.schema([*columns, *texts], columns.metadata), kind)
        for name, text in said.items():
            if name in self._columns:
                value = _number_said(str(listed.path), name, text)
            elif name in self._names and name not in own:
                value = value_of(name, text, _type_of(name, kind))
            else:
                continue
            if name in columns.names:
                if name not in listed.said:
                    continue
                _check_said(listed.path, name, text, value)
            found[name] = value
        return found

    def _admit(self, columns: pa.Schema, said: Collection[str] = ()) -> None:
        kind = kind_of(columns, said)
        if self.kind is not None and kind != self.kind:
            raise ValueError(f"its item ids are {kind}, those of the other files {self.kind}")
        self.kind = kind

    def _require(self, source: str, columns: pa.Schema) -> None:
        asked = [name for name in self._columns if name not in self._said]
        missing = [name for name in asked if name not in columns.names]
        if missing:
            others = [n for n in columns.names if not is_column(n)]
            found = ", ".join(others) or "none besides those of the schema"
            raise _AskedForError(f"{source}: no column named {', '.join(missing)}; found {found}")
        for name in asked:
            if not _is_numeric(columns.field(name).type):
                raise _AskedForError(
                    f"{source}: {name}: expected numbers or lists of them, got"
                    f" {columns.field(name).type}"
                )

    def _in_schema(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch in schema 2's columns and types, with repetitive strings as dictionaries.

        Absent columns are null.
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
                column = cast_column(own.name, column, _type_of(own.name, kind))
                if own.name in ("request_id", "user_id", "item_ids"):
                    column.validate(full=kind == "str" or own.name != "item_ids")
            columns[own.name] = column
        for name, value in self._said.items():
            filled = pa.repeat(value, batch.num_rows)
            if name in columns:
                filled = columns[name].cast(value.type).fill_null(value)
            columns[name] = coded(name, filled) if name in CODED else filled
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
            self.report.sequences.setdefault(name, SequenceGaps()).add(sequence[codes == code])


class UnreadLogError(ValueError):
    """No file of a log can be read; the complete report says why."""


class _AskedForError(ValueError):
    """A file lacks what the caller requested: not an error of the log."""


class _UnreadableError(Exception):
    """A file, or the rest of one, cannot be read."""

    def __init__(self, why: str, is_torn: bool = False) -> None:
        super().__init__(why)
        self.is_torn = is_torn  # left by a killed writer; no complete message is missing


def _without_values(metadata: pq.FileMetaData) -> set[str]:
    """Columns without any value, by the file's statistics; they need not be read."""
    values: dict[str, bool] = {}
    for at in range(metadata.num_columns):
        column = metadata.schema.column(at)
        name = column.path.partition(".")[0]
        if name not in _SELDOM:
            continue
        parts = [metadata.row_group(g).column(at) for g in range(metadata.num_row_groups)]
        found = [part.statistics for part in parts]
        values[name] = values.get(name, False) or not (
            column.max_repetition_level == 0  # an empty list has no values either
            and all(
                one is not None and one.has_null_count and one.null_count == part.num_values
                for one, part in zip(found, parts, strict=True)
            )
        )
    return {name for name, there in values.items() if not there}


class _Kept:
    """The tables of an iterator, kept as they come, so that they can be read again."""

    def __init__(self, tables: Iterator[pa.Table | pa.RecordBatch]) -> None:
        self._tables = tables
        self._kept: list[pa.Table | pa.RecordBatch] = []
        self._error: Exception | None = None
        self.read_report = getattr(tables, "read_report", None)

    def __iter__(self) -> Iterator[pa.Table | pa.RecordBatch]:
        for number in itertools.count():
            while number == len(self._kept):
                if self._error is not None:  # after an error, a generator would only end
                    raise self._error
                try:
                    self._kept.append(next(self._tables))
                except StopIteration:
                    return
                except Exception as error:
                    self._error = error
            yield self._kept[number]


class _Survey:
    """Number of rows, and length of the longest ranking that its row does not contradict."""

    def __init__(self) -> None:
        self.rows = self.places = 0

    def add(
        self,
        parts: Iterable[pa.Table | pa.RecordBatch],
        rows: int | None = None,
        most: float = math.inf,
    ) -> None:
        """Add parts of a table with `rows` rows, whose lists have at most `most` entries."""
        if rows is not None:
            self.rows += rows
        for part in parts:
            lengths = pc.list_value_length(part.column("item_ids"))
            longest = pc.max(pc.min_element_wise(lengths, *_limits(part))).as_py() or 0
            self.places = max(self.places, longest)
            self.rows += part.num_rows if rows is None else 0
            if self.places >= most:
                return


_LIMITS = ("k", "n_eligible")


def _survey(path: Path, found: _Survey) -> None:
    with path.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        if head[:4] == b"PAR1":
            with pq.ParquetFile(file, pre_buffer=False) as parquet:
                rows, names = parquet.metadata.num_rows, parquet.schema_arrow.names
                if "item_ids" not in names:
                    return
                known = [name for name in _LIMITS if name in names]
                most = math.inf
                if known:  # these columns are few bytes; lists are most of them
                    with suppress(Exception):
                        most = max(map(_most, parquet.iter_batches(columns=known)), default=0)
                groups = range(parquet.num_row_groups)  # one by one, since one may be damaged
                parts = (parquet.read_row_group(g, [*known, "item_ids"]) for g in groups)
                found.add(parts, rows, most)
        elif head == b"ARROW1":
            reader = pa.ipc.open_file(file)
            found.add(reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            _, batches = open_stream(file)
            found.add(batches)


def _limits(part: pa.Table | pa.RecordBatch) -> list[pa.Array]:
    """Places that each row allows, by each column that states it; null if it does not."""
    found = []
    for name in _LIMITS:
        if name in part.schema.names:
            values = cast_column(name, part.column(name), pa.int64())
            found.append(pc.if_else(pc.less(values, 0), None, values))
    return found


def _most(part: pa.RecordBatch) -> float:
    """Places that a ranking can have; infinite if a row does not say."""
    least = pc.min_element_wise(*_limits(part))
    return math.inf if least.null_count else pc.max(least).as_py() or 0


def _gathered(
    batches: Iterator[pa.RecordBatch], columns: pa.Schema, batch_rows: int
) -> Iterator[tuple[float, pa.RecordBatch]]:
    """Combine small batches; if a stream breaks off, the rows before that come first."""
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
    """Open a file, or its sealed form if it was sealed since; or return the error."""
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


def _type_of(name: str, kind: IdKind) -> pa.DataType:
    """Type of a column of the schema; columns that version 2 lacks are of version 1."""
    return schema(kind, 1 if name == "policy_params" else SCHEMA_VERSION).field(name).type


def _number_said(source: str, name: str, text: str | None) -> pa.Scalar:
    try:
        return pa.scalar(None if text is None else float(text), pa.float64())
    except ValueError:
        raise _AskedForError(
            f"{source}: {name}: expected numbers or lists of them, got {text!r} by its path"
        ) from None


def _check_said(path: Path, name: str, text: str | None, value: pa.Scalar) -> None:
    """Raise ValueError if some row of a file contradicts its path."""
    with path.open("rb") as file, suppress(TornStreamError):
        head = file.read(6)
        file.seek(0)
        parts: Iterable[pa.RecordBatch]
        if head[:4] == b"PAR1":
            parts = pq.ParquetFile(file, pre_buffer=False).iter_batches(columns=[name])
        elif head == b"ARROW1":
            reader = pa.ipc.open_file(file)
            parts = map(reader.get_batch, range(reader.num_record_batches))
        else:
            _, parts = open_stream(file)
        for part in parts:
            values = cast_column(name, part.column(name), value.type)
            other = values.drop_null()
            if text is not None:
                other = other.filter(pc.not_equal(other, value))
            if len(other):
                raise ValueError(f"{name}: its path says {text!r}, a row {other[0].as_py()!r}")


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
