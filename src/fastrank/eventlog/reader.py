"""LogReader: streams a log as arrays of the rows that can be believed, and names the others.

Nothing is clipped into shape. A row that contradicts itself is set aside, counted under its reason,
and its place kept; a file that is not a log is named; what is missing between the rows of a writer
is counted as lost.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastrank.eventlog.columns import (
    CODED,
    MAX_PARAMETERS,
    Lists,
    Parameters,
    among,
    booleans,
    coded,
    codes_of,
    floats,
    integers,
    is_empty,
    is_valid,
    lengths_of,
    padded_numbers,
    plain,
    repeats,
    rounded,
)
from fastrank.eventlog.filters import FOLDER, FilterStore
from fastrank.eventlog.hashing import SeenHashes, text_hashes, uniforms
from fastrank.eventlog.report import Flaws, ReadReport, SequenceGaps
from fastrank.eventlog.schema import (
    KNOWN_RNG_VERSIONS,
    OLD_PARAMETERS,
    PROPENSITY_KINDS,
    REWARD_KINDS,
    SCHEMA_VERSION,
    SEED_SOURCES,
    UNFILLED,
    Kind,
    Stratum,
    cast_column,
    is_column,
    kind_of,
    schema,
)
from fastrank.eventlog.segments import SEGMENT, TornStreamError, open_stream
from fastrank.eventlog.upgrade import completed, foreign, refuse_foreign, upgraded
from fastrank.files import in_directory
from fastrank.ids import PADDING, text_array
from fastrank.inputs import as_count
from fastrank.policies import PARAMETERS

__all__ = ["JOIN_FILE", "JOIN_KEY", "LogBatch", "LogReader", "ReadReport"]

# Of a log that `join` wrote: which join (metadata of each file), and what it did (a file beside).
JOIN_KEY = b"fastrank.join"
JOIN_FILE = "join.json"

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

# Above 0 by more than this, or off by more than this: not rounding.
_TOLERANCE = 1e-9
_EPSILON = float(np.finfo(np.float64).eps)
_MAX_CELLS = 1 << 23  # of a padded array; a batch with one very long ranking is cut
# What checking a row needs; the other columns of the schema may be omitted.
_OMITTABLE = (
    *("scores", "query", "log_norm", "latency_us", "candidate_set_id", "n_candidates"),
    *("retrieval", "reward_kind", "reward_ts", "item_kind", "sampler", *UNFILLED),
)


@dataclass(frozen=True, eq=False)
class LogBatch:
    """The n valid rows of one batch, as arrays; K is the longest ranking's length.

    Attributes
    ----------
    lengths : ndarray of int64, shape (n,)
        Places shown: those of the ranking, or `displayed` where that is fewer.
    item_ids : ndarray of int64 or str, shape (n, K)
        The whole ranking; -1 or '' past its end. Of str objects where one id is much longer than
        the others.
    log_propensities : ndarray of float64, shape (n, K)
        Conditional; 0 past `lengths`.
    rewards : ndarray of float64, shape (n, K)
        0 past `lengths`; NaN where none was observed.
    observed : ndarray of bool, shape (n,)
        Whether every place shown has its reward.
    user_hash : ndarray of uint64, shape (n,)
        Fixed hash of the user id; of the request id where there is no user.
    request_hash : ndarray of uint64, shape (n, 2)
    stratum : ndarray of int32, shape (n,)
        Index into `LogReader.strata`.
    caller_seed, is_fallback : ndarray of bool, shape (n,)
    n_eligible : ndarray of int64, shape (n,)
        -1 where it is not known.
    k : ndarray of int64, shape (n,)
        Places asked for.
    columns : dict of str to ndarray of float64
        The extra columns: (n, K) for lists, 0 past `lengths`; (n,) for numbers. Null is NaN.
    source : str
        The file.
    rows : ndarray of int64, shape (n,)
        Rows of that file, from 0.
    """

    lengths: npt.NDArray[np.int64]
    item_ids: Array
    log_propensities: FloatArray
    rewards: FloatArray
    observed: Mask
    user_hash: npt.NDArray[np.uint64]
    request_hash: npt.NDArray[np.uint64]
    stratum: npt.NDArray[np.int32]
    caller_seed: Mask
    is_fallback: Mask
    n_eligible: npt.NDArray[np.int64]
    k: npt.NDArray[np.int64]
    columns: dict[str, FloatArray]
    source: str
    rows: npt.NDArray[np.int64]
    _coded: pa.RecordBatch = field(repr=False)
    _filters: FilterStore = field(repr=False)
    _folder: Path | None = field(repr=False)
    _values: dict[str, list[Any]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.lengths)

    def where(self, rows: Mask) -> LogBatch:
        """Those rows (n,) that are marked, as a batch of their own."""
        kept: dict[str, Any] = {
            each.name: value[rows]
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), np.ndarray)
        }
        kept["columns"] = {name: values[rows] for name, values in self.columns.items()}
        return replace(self, **kept, _coded=_taken(self._coded, rows), _values={})

    @cached_property
    def table(self) -> pa.RecordBatch:
        """The n rows, with all columns of schema 2 but for those omitted."""
        return plain(self._coded)

    @cached_property
    def uniform(self) -> FloatArray:
        """A number in [0, 1) for each row, fixed by its request id; shape (n,)."""
        return uniforms(self.request_hash)

    @cached_property
    def user_ids(self) -> list[str | None]:
        """As logged; length n."""
        users: list[str | None] = self._coded.column("user_id").to_pylist()
        return users

    @cached_property
    def has_query(self) -> Mask:
        """Whether the row brings its own query; shape (n,)."""
        if "query" not in self._coded.schema.names:
            return np.zeros(len(self), np.bool_)
        return is_valid(self._coded.column("query"))

    @cached_property
    def queries(self) -> npt.NDArray[np.float32] | None:
        """The rows' own queries, (n, d); NaN where a row has none; None if no row has one."""
        if not self.has_query.any():
            return None
        lists = Lists(self._coded.column("query"))
        return lists.padded(int(lists.lengths.max()), np.float32(np.nan))

    def values(self, name: str) -> list[Any]:
        """A column of the schema as Python values, None for null; length n, kept.

        `policy_params`, a struct in schema 1, is made of `law_params` and `user_temperature`.
        """
        found = self._values.get(name)
        if found is None:
            if not is_column(name):
                raise ValueError(f"name: {name!r} is not a column of the schema")
            if name == "policy_params":
                found = [self._old_params(i) for i in range(len(self))]
            else:
                here = name in self.table.schema.names
                found = self.table.column(name).to_pylist() if here else [None] * len(self)
            self._values[name] = found
        return found

    def _old_params(self, i: int) -> dict[str, float | None] | None:
        listed, factor = self.values("law_params")[i], self.values("user_temperature")[i]
        if listed is None and factor is None:
            return None
        return dict.fromkeys(OLD_PARAMETERS) | self.params(i) | {"user_temperature": factor}

    def params(self, i: int) -> dict[str, float]:
        """Parameters of the law that drew row i, by name; the user's factor is in them."""
        listed = self.values("law_params")[i] or ()
        return {each["name"]: each["value"] for each in listed}

    def numbers(self, name: str) -> FloatArray:
        """A column of numbers, or a parameter: ``law_params.epsilon``; NaN for null; (n,).

        ``policy_params.epsilon``, as in schema 1, is the same.
        """
        name, _, part = name.partition(".")
        if (name, part) == ("policy_params", "user_temperature"):
            name, part = part, ""
        if part and name in ("law_params", "policy_params"):
            return self._parameters.of(part)
        if name not in self.table.schema.names:
            return np.full(len(self), np.nan)
        column = self.table.column(name)
        return floats(pc.struct_field(column, part) if part else column)

    @cached_property
    def _parameters(self) -> Parameters:
        return Parameters(self._coded.column("law_params"))

    def is_given(self, name: str) -> Mask:
        """Rows (n,) whose value of a column is not null."""
        if name not in self.table.schema.names:
            return np.zeros(len(self), np.bool_)
        return is_valid(self.table.column(name))

    def value(self, name: str, i: int) -> Any:
        """Row i of `values`."""
        return self.values(name)[i]

    @cached_property
    def first_scores(self) -> FloatArray:
        """Raw score of each row's first place, (n,); NaN where there is none."""
        if "scores" not in self.table.schema.names:
            return np.full(len(self), np.nan)
        column = self.table.column("scores")
        there = np.flatnonzero(lengths_of(column) > 0)
        result = np.full(len(self), np.nan)
        result[there] = floats(column.values.take(column.offsets.take(there)))
        return result

    def query(self, i: int) -> npt.NDArray[np.float32] | None:
        """The query of row i, (d,) float32; None where the user's vector in the model is meant."""
        if not self.has_query[i]:
            return None
        return np.array(self._coded.column("query")[i].as_py(), np.float32)

    def exclude(self, i: int) -> Array | None:
        """Ids that row i left out, (m,); None: none."""
        return self._filter(i, "exclude")

    def allow(self, i: int) -> Array | None:
        """Ids that row i was restricted to, (m,); None: not restricted."""
        return self._filter(i, "allow")

    def bias(self, i: int) -> npt.NDArray[np.float32] | None:
        """Bias vector of row i in catalog order, (n_items,) float32; None: none."""
        name = self._coded.column("bias_id")[i].as_py()
        return None if name is None else self._filters.bias(self._folder, name)

    def _filter(self, i: int, role: str) -> Array | None:
        column = self._coded.column(role)
        ids = column[i].as_py()
        if ids is not None:
            return np.array(ids, np.int64) if self.item_ids.dtype.kind == "i" else text_array(ids)
        names = self._coded.column("filter_id")[i].as_py()
        if names is None or names[role] is None:
            return None
        return self._filters.ids(self._folder, names[role])


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
        candidate_set_id, n_candidates, retrieval, reward_kind, reward_ts, item_kind, sampler, and
        the columns that `LogWriter.append` leaves null.
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
        self._files: list[Path] = _files(paths)
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
        """Reads tables in the log's schema, as adapters make them; all else as for files.

        An iterator can be read once. Where `tables` has a `read_report`, as
        `adapters.DataCapture` has, what it set aside is part of this reader's report.
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
            if is_column(name) and name not in UNFILLED:
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
        self.strata: list[Stratum] = []
        self.kind: Kind | None = None
        self._stratum_of: dict[Stratum, int] = {}
        self._seen = SeenHashes()
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
            yield from self._checked(source, folder, start, batch)
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
            self.report.joins.append(_account(path.parent / JOIN_FILE, identity))
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

    # What is wrong with a row.

    def _checked(
        self, source: str, folder: Path | None, start: int, batch: pa.RecordBatch
    ) -> Iterator[LogBatch]:
        n = batch.num_rows
        if n == 0:
            return
        self.report.rows_read += n
        if not self._is_joined:
            self._note_sequence(batch)
        rows = start + np.arange(n)
        flaws = Flaws(self.report, source, rows)
        self._check_structure(flaws, batch, folder)
        if flaws.any:
            batch, rows = _taken(batch, flaws.sound), rows[flaws.sound]
            flaws.settle()
        width = max(1, batch.num_rows and int(lengths_of(batch.column("item_ids")).max()))
        step = max(1, _MAX_CELLS // (width * self._cell(batch)))
        for at in range(0, batch.num_rows, step):
            part = batch if step >= batch.num_rows else batch.slice(at, step)
            result = self._arrays(source, folder, rows[at : at + step], part)
            if len(result):
                yield result

    def _cell(self, batch: pa.RecordBatch) -> int:
        """What a padded id takes, in units of 8 bytes."""
        if self.kind == "int64":
            return 1
        lengths = pc.utf8_length(batch.column("item_ids").values)
        longest, mean = pc.max(lengths).as_py() or 1, pc.mean(lengths).as_py() or 1.0
        # At most: a text that is much longer than the others does not widen them.
        return max(1, min(longest, int(PADDING * mean)) // 2)

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

    def _check_structure(self, flaws: Flaws, batch: pa.RecordBatch, folder: Path | None) -> None:
        """Everything that can be said without looking into the lists."""
        column = batch.column
        version = column("schema_version")
        flaws.mark(integers(version) != SCHEMA_VERSION, "unknown schema version", version)
        rng = column("rng_version")
        known = np.isin(integers(rng, KNOWN_RNG_VERSIONS[0]), list(KNOWN_RNG_VERSIONS))
        flaws.mark(~known, "unknown rng version", rng)
        flaws.mark(is_empty(column("request_id")), "no request id")
        flaws.mark(~is_valid(column("ts")), "no time")
        flaws.mark(is_empty(column("policy_name")), "no policy name")
        self._check_parameters(flaws, column("law_params"))
        factor = column("user_temperature")
        values = floats(factor)
        bad = is_valid(factor) & ~(np.isfinite(values) & (values > 0.0))
        flaws.mark(bad, "policy parameter user_temperature", values)
        kinds, sources = column("propensity_kind"), column("seed_source")
        flaws.mark(~among(kinds, PROPENSITY_KINDS), "unknown propensity kind", kinds)
        error = floats(column("log_norm_error"))
        sane = np.isfinite(error) & (error >= 0.0)
        sane |= np.isnan(error) & among(kinds, ("exact",)) & ~is_valid(column("log_norm_error"))
        flaws.mark(~sane, "log_norm_error", error)
        flaws.mark(
            is_valid(sources) & ~among(sources, SEED_SOURCES), "unknown seed source", sources
        )
        items, propensities = column("item_ids"), column("log_propensities")
        flaws.mark(~is_valid(items), "no item list")
        lengths = lengths_of(items)
        flaws.mark(
            ~is_valid(propensities) | (lengths_of(propensities) != lengths),
            "list lengths differ",
            "log_propensities",
        )
        optional = ["rewards", *(["scores"] if "scores" in batch.schema.names else [])]
        extra = [n for n in self._columns if pa.types.is_nested(batch.schema.field(n).type)]
        for name in (*optional, *extra):
            values = column(name)
            different = is_valid(values) & (lengths_of(values) != lengths)
            flaws.mark(different, "list lengths differ", name)
        k = integers(column("k"), 0)
        flaws.mark(k < 1, "no k", k)
        flaws.mark(lengths > k, "more items than k", lengths)
        displayed = integers(column("displayed"), 0)
        wrong = (displayed < 0) | (displayed > lengths)
        flaws.mark(is_valid(column("displayed")) & wrong, "displayed", displayed)
        eligible = column("n_eligible")
        limit = integers(eligible)
        flaws.mark((limit >= 0) & (limit < lengths), "more items than eligible", eligible)
        # Cut on the way: its propensity would be that of another, shorter ranking.
        flaws.mark((limit >= 0) & (lengths < np.minimum(k, limit)), "fewer items than k", lengths)
        total = column("log_propensity")
        flaws.mark(~is_valid(total), "no log_propensity")
        self._check_filters(flaws, batch, folder)

    def _check_parameters(self, flaws: Flaws, column: pa.ListArray) -> None:
        """Each must have a name of its own, and a finite value."""
        found = Parameters(column)
        bad = np.flatnonzero(
            (found.codes < 0) | ~np.isfinite(found.values) | found.repeated
            | (found.places >= MAX_PARAMETERS)
        )  # fmt: skip
        if not len(bad):
            return
        names = dict.fromkeys((*PARAMETERS, *OLD_PARAMETERS))
        known = {name: found.names.index(name) for name in names if name in found.names}
        for name, code in [*known.items(), ("", None)]:
            mine = found.codes[bad] == code if code is not None else np.ones(len(bad), np.bool_)
            rows = found.rows[bad[mine]]
            wrong, values = np.zeros(len(column), np.bool_), np.full(len(column), np.nan)
            wrong[rows], values[rows] = True, found.values[bad[mine]]
            flaws.mark(wrong, f"policy parameter {name}".rstrip(), values)

    def _check_filters(self, flaws: Flaws, batch: pa.RecordBatch, folder: Path | None) -> None:
        """Every filter and bias that a row names must be there and be what its name says."""
        named = batch.column("filter_id")
        for column, load in (
            (pc.struct_field(named, "exclude"), self._filters.ids),
            (pc.struct_field(named, "allow"), self._filters.ids),
            (batch.column("bias_id"), self._filters.bias),
        ):
            if column.null_count == len(column):
                continue
            codes, names = codes_of(column)
            for code, name in enumerate(names):
                try:
                    load(folder, name)
                except ValueError as error:
                    flaws.mark(codes == code, "filter not at hand", str(error))
        for role in ("exclude", "allow"):
            values = batch.column(role)
            if values.null_count < len(values) and values.values.null_count:
                lists = Lists(values)
                flaws.mark(lists.any_of(lists.is_null), f"{role}: null id")

    def _arrays(
        self, source: str, folder: Path | None, rows: npt.NDArray[np.int64], batch: pa.RecordBatch
    ) -> LogBatch:
        """The batch's arrays, without the rows whose lists are wrong."""
        flaws = Flaws(self.report, source, rows)
        n = batch.num_rows
        ids = Lists(batch.column("item_ids"))
        lengths = ids.lengths
        width = int(lengths.max(initial=0))
        if ids.is_null is not None:
            flaws.mark(ids.any_of(ids.is_null), "null item id")
        item_ids, codes = ids.padded_ids(self.kind or "int64", width)
        flaws.mark(repeats(codes, lengths, width), "repeated item")

        lists = Lists(batch.column("log_propensities"))
        propensities: FloatArray = lists.padded(width, 0.0)
        flaws.mark(_any(~np.isfinite(propensities)), "log-propensity not finite")
        flaws.mark(_any(propensities > _TOLERANCE), "positive log-propensity")
        stated = floats(batch.column("log_propensity"))
        with np.errstate(invalid="ignore", over="ignore"):
            total = propensities @ np.ones(width)  # faster than sum() along short rows
            # Long rankings under tiny temperatures: the order of summation alone moves the sum.
            slack = _TOLERANCE + _EPSILON * np.maximum(lengths, 1) * np.abs(total)
            off = ~(np.abs(total - stated) <= slack)
        flaws.mark(off, "sum of log-propensities", stated)

        displayed = integers(batch.column("displayed"), np.iinfo(np.int64).max)
        shown = np.minimum(lengths, displayed)
        beyond = None
        if (shown < width).any():
            beyond = np.arange(width) >= shown[:, None]
        rewards, observed = self._rewards(flaws, batch.column("rewards"), width, beyond)
        if "query" in batch.schema.names and batch.column("query").null_count < n:
            queries = Lists(batch.column("query"))
            if not np.isfinite(queries.flat).all():
                flaws.mark(queries.any_of(~np.isfinite(queries.flat)), "query not finite")
        kinds = batch.column("reward_kind") if "reward_kind" in batch.schema.names else None
        if kinds is not None and kinds.null_count < n:
            known = among(kinds, REWARD_KINDS) | ~is_valid(kinds)
            flaws.mark(~known, "unknown reward kind", kinds)
            below = (np.nan_to_num(rewards) < 0.0).any(axis=1)
            flaws.mark(below & among(kinds, ("positives",)), "negative reward", kinds)
        if beyond is not None:
            propensities = np.where(beyond, 0.0, propensities)
        columns = {
            name: padded_numbers(batch.column(name), width, beyond) for name in self._columns
        }
        requests = text_hashes(batch.column("request_id"))
        sound = flaws.sound
        fresh = np.ones(n, np.bool_)
        fresh[sound] = ~self._seen.add(requests[sound])
        flaws.mark(~fresh, "duplicate request id", batch.column("request_id"))

        users = batch.column("user_id")
        user_hash = text_hashes(users)[:, 0]
        nobody = is_empty(users)
        if nobody.any():
            user_hash = np.where(nobody, requests[:, 0], user_hash)
        made = {
            "lengths": shown,
            "item_ids": item_ids,
            "log_propensities": propensities,
            "rewards": rewards,
            "observed": observed,
            "user_hash": user_hash,
            "request_hash": requests,
            "caller_seed": among(batch.column("seed_source"), ("caller",)),
            "is_fallback": booleans(batch.column("is_fallback")),
            "n_eligible": integers(batch.column("n_eligible"), -1),
            "k": integers(batch.column("k")),
            "rows": rows,
        }
        if flaws.any:
            keep = flaws.sound
            made = {name: values[keep] for name, values in made.items()}
            columns = {name: values[keep] for name, values in columns.items()}
            batch = _taken(batch, keep)
            flaws.settle()
        kept = [name for name in batch.schema.names if name not in self._columns]
        return LogBatch(
            stratum=self._strata(batch, made["is_fallback"]),
            columns=columns,
            source=source,
            _coded=batch if self._keep_all else batch.select(kept),
            _filters=self._filters,
            _folder=folder,
            **made,
        )

    def _rewards(
        self, flaws: Flaws, column: pa.ListArray, width: int, beyond: Mask | None
    ) -> tuple[FloatArray, Mask]:
        n = len(column)
        if column.null_count == n:
            rewards = np.full((n, width), np.nan)
            unobserved = np.ones((n, width), np.bool_)
        else:
            lists = Lists(column)
            bad = ~np.isfinite(lists.flat)
            if lists.is_null is not None:
                bad &= ~lists.is_null
            if bad.any():
                flaws.mark(lists.any_of(bad), "reward not finite")
            rewards = lists.padded(width, np.float32(np.nan)).astype(np.float64)
            unobserved = np.isnan(rewards)
        if beyond is not None:
            rewards = np.where(beyond, 0.0, rewards)
            unobserved &= ~beyond
        return rewards, ~_any(unobserved)

    def _strata(self, batch: pa.RecordBatch, is_fallback: Mask) -> npt.NDArray[np.int32]:
        n = batch.num_rows
        if n == 0:
            return np.empty(0, np.int32)
        parts: list[Array] = []
        texts = {}
        for name in ("law", "model_version", "catalog_version"):
            codes, names = codes_of(batch.column(name))
            parts.append(codes)
            texts[name] = names
        policies, names_of = codes_of(batch.column("policy_name"))
        params, factor = (
            Parameters(batch.column("law_params")),
            floats(batch.column("user_temperature")),
        )
        values = params.values
        if "temperature" in params.names:
            # Before the user's own factor.
            own = params.codes == params.names.index("temperature")
            factor = np.where(np.isnan(factor), 1.0, factor)[params.rows]
            values = np.where(own, values / factor, values)
        values = rounded(values)
        for place in range(int(params.places.max(initial=-1)) + 1):
            at = np.flatnonzero(params.places == place)
            part = np.full((2, n), -1, np.int64)
            part[:, params.rows[at]] = params.codes[at], values.view(np.int64)[at]
            parts.extend(part)
        first_of = np.searchsorted(params.rows, np.arange(n + 1))
        parts.append(is_fallback.astype(np.int64))
        key = np.zeros(n, np.int64)
        for part in parts:
            if (part == part[0]).all():
                continue
            _, inverse = np.unique(part, return_inverse=True)
            _, key = np.unique(key * (int(inverse.max()) + 1) + inverse, return_inverse=True)
        _, firsts, inverse = np.unique(key, return_index=True, return_inverse=True)
        indices = np.empty(len(firsts), np.int32)
        for group in np.argsort(firsts).tolist():  # numbered as they come
            row = int(firsts[group])

            def text(name: str, part: Array, row: int = row) -> str | None:
                return texts[name][part[row]] if part[row] >= 0 else None

            stratum = Stratum(
                policy_name=names_of[policies[row]],
                params=tuple(
                    (params.names[params.codes[at]], float(f"{values[at]:.12g}"))
                    for at in range(first_of[row], first_of[row + 1])
                ),
                model_version=text("model_version", parts[1]),
                catalog_version=text("catalog_version", parts[2]),
                is_fallback=bool(is_fallback[row]),
                law=text("law", parts[0]) or "",
            )
            if stratum not in self._stratum_of:
                self._stratum_of[stratum] = len(self.strata)
                self.strata.append(stratum)
            indices[group] = self._stratum_of[stratum]
        return indices[inverse]


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
        if name not in UNFILLED:
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


def _any(cells: Mask) -> Mask:
    """Rows of which some cell is marked; usually there is none, which is told much faster."""
    if not cells.any():
        return np.zeros(len(cells), np.bool_)
    return np.asarray(cells.any(axis=1), np.bool_)


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


def _taken(batch: pa.RecordBatch, rows: Mask) -> pa.RecordBatch:
    return batch.filter(pa.array(rows))


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


def _files(paths: Paths) -> list[Path]:
    """Files under paths, each once, in order; a ValueError for a path with none."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise ValueError("paths: none given")
    found: dict[Path, None] = {}
    for one in given:
        text = os.fspath(one)
        path = Path(text)
        if path.is_dir():
            files = _in_directory(path)
        elif path.exists() or path.with_suffix(".parquet").exists():
            files = [path]
        elif glob.has_magic(text):
            files = []
            for match in sorted(glob.glob(text, recursive=True)):
                if Path(match).is_dir():
                    files += _in_directory(Path(match))
                elif FOLDER not in Path(match).parts[-2:-1]:
                    files.append(Path(match))
        else:
            raise ValueError(f"{text}: no such file or directory")
        if not files:
            raise ValueError(f"{text}: no log files (.parquet, .arrow) there")
        found |= dict.fromkeys(files)
    sealed = {path for path in found if path.suffix == ".parquet"}  # as writers call them
    kept: dict[Path, None] = {}
    for path in found:
        parquet = path.with_suffix(".parquet")
        if path.suffix == ".arrow" and (parquet in sealed or parquet.exists()):
            path = parquet
        kept[path] = None
    return list(kept)


def _in_directory(directory: Path) -> list[Path]:
    return in_directory(directory, ("parquet", "arrow"), without=(FOLDER, JOIN_FILE))


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


def _account(file: Path, identity: str) -> dict[str, Any]:
    """What a join wrote about itself; only its name if that is lost."""
    try:
        account = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        account = None
    if not isinstance(account, dict) or account.get("id") != identity:
        return {"id": identity}
    source = account.get("source", {})
    kinds = {"rows_set_aside": int, "rows_lost": dict, "files_set_aside": dict}
    if not isinstance(source, dict) or not all(
        isinstance(source.get(name, kind()), kind) for name, kind in kinds.items()
    ):
        return {"id": identity}
    return account


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_numeric(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inner = kind.value_type if lists or pa.types.is_fixed_size_list(kind) else kind
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))
