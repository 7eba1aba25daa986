"""Files of events after requests: Parquet, CSV or JSON Lines, one event per line.

Each event has `request_id` and `ts`, and further columns. Errors name the file, the row (from 0)
and the value.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fastrank.arraytypes import Hashes, IntArray, Mask
from fastrank.eventlog.hashing import text_hashes
from fastrank.files import Paths, file_format, files_at, naming
from fastrank.inputs import shown

__all__ = ["DATED", "Events", "read_batches", "read_events"]

_FORMATS = ("parquet", "csv", "jsonl", "json")
# Times that the calendar can express, years 1 to 9999, in microseconds since 1970.
DATED = (-62_135_596_800_000_000, 253_402_300_799_999_999)
_BATCH_ROWS = 1 << 16
_WRITTEN = r"^(0|-?[1-9][0-9]*)$"  # as `fastrank.ids.integer` has it

T = TypeVar("T")


def read_events(
    what: str,
    paths: Paths,
    wanted: Sequence[str],
    optional: Sequence[str],
    take: Callable[[Events], T],
) -> tuple[list[T], list[Path]]:
    """Apply `take` to each batch of the files, in their order; return the results and the files.

    Parameters
    ----------
    what : str
        What the files contain, for people, such as rewards.
    paths : path or iterable of paths
        Files, directories or globs. In directories, files named as Parquet, CSV or JSON Lines are
        read; the logger ``fastrank.files`` warns of other files that look like data.
    wanted, optional : sequence of str
        Columns that every file must have, without missing values, and columns that it may have.
    take : callable

    Raises
    ------
    ValueError
        If a value is invalid; the message names file, row and value.
    """
    files = files_at(paths, _FORMATS, what)
    parts: list[T] = []
    for path in files:
        start = 0
        with naming(path, f"file of {what}"):
            for batch in read_batches(path, wanted, optional):
                parts.append(take(Events(path, start, batch, wanted)))
                start += batch.num_rows
    return parts, files


class Events:
    """One batch of a file, which checks its columns.

    Attributes
    ----------
    path : Path
    is_typed : bool
        Whether the file has types: in CSV and JSON Lines everything may be text.
    """

    def __init__(
        self, path: Path, start: int, batch: pa.RecordBatch, wanted: Sequence[str]
    ) -> None:
        self.path = path
        self.is_typed = file_format(path) == "parquet"
        self._start = start
        self._columns = {
            name: column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        for name in wanted:
            missing = self._columns[name].is_null().to_numpy(zero_copy_only=False)
            self.refuse(name, missing, "is missing")

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def column(self, name: str) -> pa.Array:
        """A column, unchecked."""
        return self._columns[name]

    def refuse(self, name: str, bad: Mask, why: str) -> None:
        """Raise ValueError for the first marked row."""
        where = np.flatnonzero(bad)
        if where.size:
            row = int(where[0])
            value = shown(self._columns[name][row].as_py())
            raise ValueError(f"{self.path}: row {self._start + row}: {name}: {why}, got {value}")

    def numbers(self, name: str, wanted: pa.DataType) -> pa.Array:
        """A column of integers or numbers, null where it is null."""
        values = self._columns[name]
        kinds = "an integer" if pa.types.is_integer(wanted) else "a number"
        if pa.types.is_boolean(values.type) or pa.types.is_temporal(values.type):
            # Arrow would count these too.
            raise ValueError(f"{self.path}: {name}: expected {kinds}, got {values.type}")
        if pa.types.is_integer(wanted) and pa.types.is_string(values.type):
            # Arrow would read 007 and 0x7 as 7, but they are different ids.
            written = pc.match_substring_regex(values, _WRITTEN).fill_null(True)
            self.refuse(name, ~written.to_numpy(zero_copy_only=False), "expected an integer")
        if pa.types.is_integer(values.type) and pa.types.is_floating(wanted):
            return values.cast(wanted, safe=False)  # to the nearest, as for a number in text
        try:
            return values.cast(wanted)
        except pa.ArrowNotImplementedError:  # not numbers, but lists, for example
            raise ValueError(f"{self.path}: {name}: expected {kinds}, got {values.type}") from None
        except pa.ArrowInvalid:
            for row, value in enumerate(values):
                try:
                    value.cast(wanted)
                except pa.ArrowInvalid:
                    self.refuse(name, np.arange(len(values)) == row, f"expected {kinds}")
            raise

    def requests(self) -> Hashes:
        """Hashes of the request ids, (m, 2)."""
        request = self._columns["request_id"]
        if not (pa.types.is_string(request.type) or pa.types.is_large_string(request.type)):
            raise ValueError(f"{self.path}: request_id: expected text, got {request.type}")
        return text_hashes(request.cast(pa.string()))

    def times(self) -> IntArray:
        """Microseconds since 1970, UTC, (m,); a time without a zone is UTC."""
        ts = _micros(self.path, self._start, self._columns["ts"])
        undated = np.flatnonzero((ts < DATED[0]) | (ts > DATED[1]))
        if undated.size:
            raise ValueError(
                f"{self.path}: row {self._start + undated[0]}: ts: must be of the years 1 to 9999,"
                f" got {ts[undated[0]]} microseconds since 1970"
            )
        return ts


def read_batches(
    path: Path, wanted: Sequence[str], optional: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Batches with the required, and the existing optional columns; values unchecked."""
    match file_format(path):
        case "parquet":
            with pq.ParquetFile(path, pre_buffer=False) as file:
                names = _named(path, file.schema_arrow.names, wanted, optional)
                yield from file.iter_batches(_BATCH_ROWS, columns=names)
        case "csv":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                present = next(filter(None, csv.reader(lines)), [])
            names = _named(path, present, wanted, optional)
            # Ids are read as text: 007 is not 7, and the log decides what is an integer.
            options = pa.csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            )
            with pa.csv.open_csv(path, convert_options=options) as reader:
                yield from reader
        case "jsonl" | "json":
            yield from _json_lines(path, [*wanted, *optional])
        case _:
            suffix = path.suffix.lower()
            raise ValueError(
                f"{path}: expected .parquet, .pq, .csv, .jsonl, .ndjson, .json;"
                f" got {suffix or 'no suffix'}"
            )


def _named(
    path: Path, present: list[str], wanted: Sequence[str], optional: Sequence[str]
) -> list[str]:
    missing = [name for name in wanted if name not in present]
    if missing:
        found = ", ".join(name if name == name.strip() else repr(name) for name in present)
        apart = present[0] if len(present) == 1 else ""
        why = "; commas separate columns" if ";" in apart or "\t" in apart else ""
        named = ", ".join(missing)
        raise ValueError(f"{path}: no column named {named}; found {found or 'none'}{why}")
    for name in (*wanted, *optional):
        if present.count(name) > 1:
            raise ValueError(f"{path}: {present.count(name)} columns are called {name}")
    return [*wanted, *(name for name in optional if name in present)]


def _json_lines(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    kept: list[list[str | None]] = []

    def batch() -> pa.RecordBatch:
        columns = [pa.array(values, pa.string()) for values in zip(*kept, strict=True)]
        return pa.RecordBatch.from_arrays(columns, names=list(names))

    row = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: row {row}: not JSON in one line: {error}") from None
            if not isinstance(record, dict):
                got = "an array" if isinstance(record, list) else shown(record)
                raise ValueError(f"{path}: row {row}: expected an object in each line, got {got}")
            values: list[str | None] = []
            for name in names:
                value = record.get(name)
                if isinstance(value, bool | list | dict):
                    raise ValueError(f"{path}: row {row}: {name}: got {shown(value)}")
                values.append(value if value is None or isinstance(value, str) else repr(value))
            kept.append(values)
            row += 1
            if len(kept) == _BATCH_ROWS:
                yield batch()
                kept = []
    if kept:
        yield batch()


def _micros(path: Path, start: int, column: pa.Array) -> IntArray:
    """Times as microseconds since 1970, UTC."""
    if pa.types.is_timestamp(column.type):
        cuts = column.type.unit == "ns"  # only nanoseconds lose digits; others must not overflow
        return _counted(column.cast(pa.timestamp("us", tz=column.type.tz), safe=not cuts))
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f"{path}: ts: expected timestamps or ISO 8601 text, got {column.type}")
    zoned = pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")
    try:
        if pc.all(zoned).as_py():
            return _counted(column.cast(pa.timestamp("us", tz="UTC")))
        if not pc.any(zoned).as_py():
            return _counted(column.cast(pa.timestamp("us")))
    except pa.ArrowInvalid:
        pass  # parse one by one, which accepts more formats and names the row
    values = []
    for row, text in enumerate(column.to_pylist()):
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"{path}: row {start + row}: ts: expected ISO 8601, got {shown(text)}"
            ) from None
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
        since = time - datetime(1970, 1, 1, tzinfo=UTC)
        values.append((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)
    return np.array(values, np.int64)


def _counted(times: pa.TimestampArray) -> IntArray:
    return np.asarray(times.cast(pa.int64()).to_numpy(), np.int64)
