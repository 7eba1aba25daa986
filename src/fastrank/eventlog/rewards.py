"""Rewards as they lie on disk: Parquet, CSV or JSON Lines, read into arrays sorted by request.

Columns: `request_id`, `item_id`, `reward`, `ts`, and if wanted `position`, the item's place in the
ranking from 1. Whatever is wrong is named by file, row (from 0) and value.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fastrank.arraytypes import AnyArray, FloatArray, IntArray
from fastrank.eventlog.hashing import text_hashes
from fastrank.eventlog.schema import IdKind
from fastrank.files import Paths, file_format, files_at, naming
from fastrank.inputs import shown

__all__ = ["DATED", "Rewards", "read_rewards"]


_FORMATS = ("parquet", "csv", "jsonl", "json")
# Times that a calendar has, years 1 to 9999, in microseconds since 1970.
DATED = (-62_135_596_800_000_000, 253_402_300_799_999_999)
_BATCH_ROWS = 1 << 16
_WRITTEN = r"^(0|-?[1-9][0-9]*)$"  # as `fastrank.ids.integer` has it
_COLUMNS = ("request_id", "item_id", "reward", "ts")


@dataclass(frozen=True, slots=True, eq=False)
class Rewards:
    """m rewards, sorted by the first hash of their request; equal ones as they came.

    Attributes
    ----------
    request_hash : ndarray of uint64, shape (m, 2)
    item : ndarray of int64 or uint64, shape (m,) or (m, 2)
        The id, or for text its two hashes.
    position : ndarray of int64, shape (m,)
        Place in the ranking, from 1; 0 where it is not stated.
    reward : ndarray of float64, shape (m,)
    ts : ndarray of int64, shape (m,)
        Microseconds since 1970, UTC.
    files : list of str
    """

    request_hash: npt.NDArray[np.uint64]
    item: AnyArray
    position: IntArray
    reward: FloatArray
    ts: IntArray
    files: list[str]

    def __len__(self) -> int:
        return len(self.reward)


def read_rewards(paths: Paths, kind: IdKind, *, allow_negative: bool) -> Rewards:
    """Read all rewards; O(m log m), about 60 bytes each.

    Parameters
    ----------
    paths : path or iterable of paths
        Files, directories or globs. Of directories what is Parquet, CSV or JSON Lines by its name;
        the log ``fastrank.files`` warns of what else looks like data.
    kind : {"int64", "str"}
        Of the log's item ids.
    allow_negative : bool

    Raises
    ------
    ValueError
        Naming file, row and value: for a column or value that is missing, an item id of another
        kind, a reward that is not finite (or negative, where that is not allowed), a time
        that cannot be read. Times without a zone are UTC.
    """
    files = files_at(paths, _FORMATS, "rewards")
    parts: list[tuple[AnyArray, AnyArray, AnyArray, AnyArray, AnyArray]] = []
    for path in files:
        start = 0
        with naming(path, "file of rewards"):
            for batch in _batches(path):
                parts.append(_checked(path, start, batch, kind, allow_negative))
                start += batch.num_rows
    if not parts:
        empty = np.empty((0, 2), np.uint64)
        item = empty if kind == "str" else np.empty(0, np.int64)
        integers = np.empty(0, np.int64)
        none = np.empty(0, np.float64)
        return Rewards(empty, item, integers, none, integers, [str(f) for f in files])
    request, item, position, reward, ts = (
        np.concatenate([part[i] for part in parts]) for i in range(5)
    )
    order = np.argsort(request[:, 0], kind="stable")
    return Rewards(
        request[order],
        item[order],
        position[order],
        reward[order],
        ts[order],
        [str(file) for file in files],
    )


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Batches with the columns wanted, `position` if it is there; values as they come."""
    match file_format(path):
        case "parquet":
            with pq.ParquetFile(path, pre_buffer=False) as file:
                names = _wanted(path, file.schema_arrow.names)
                yield from file.iter_batches(_BATCH_ROWS, columns=names)
        case "csv":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                present = next(filter(None, csv.reader(lines)), [])
            names = _wanted(path, present)
            # Ids as text: 007 is not 7, and what is an integer is decided by the log.
            options = pa.csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            )
            with pa.csv.open_csv(path, convert_options=options) as reader:
                yield from reader
        case "jsonl" | "json":
            yield from _json_lines(path)
        case _:
            suffix = path.suffix.lower()
            raise ValueError(
                f"{path}: expected .parquet, .pq, .csv, .jsonl, .ndjson, .json;"
                f" got {suffix or 'no suffix'}"
            )


def _wanted(path: Path, present: list[str]) -> list[str]:
    missing = [name for name in _COLUMNS if name not in present]
    if missing:
        shown = ", ".join(name if name == name.strip() else repr(name) for name in present)
        apart = present[0] if len(present) == 1 else ""
        why = "; commas separate columns" if ";" in apart or "\t" in apart else ""
        raise ValueError(f"{path}: no column named {missing[0]}; found {shown or 'none'}{why}")
    for name in (*_COLUMNS, "position"):
        if present.count(name) > 1:
            raise ValueError(f"{path}: {present.count(name)} columns are called {name}")
    return [*_COLUMNS, *(["position"] if "position" in present else [])]


def _json_lines(path: Path) -> Iterator[pa.RecordBatch]:
    kept: list[list[str | None]] = []
    names = [*_COLUMNS, "position"]

    def batch() -> pa.RecordBatch:
        columns = [pa.array(values, pa.string()) for values in zip(*kept, strict=True)]
        return pa.RecordBatch.from_arrays(columns, names=names)

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


def _checked(
    path: Path, start: int, batch: pa.RecordBatch, kind: IdKind, allow_negative: bool
) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray, AnyArray]:
    """One batch as arrays: request hashes, items, positions, rewards, times."""

    def refuse(name: str, bad: AnyArray, why: str) -> None:
        where = np.flatnonzero(bad)
        if where.size:
            row = int(where[0])
            value = batch.column(name)[row].as_py()
            raise ValueError(f"{path}: row {start + row}: {name}: {why}, got {shown(value)}")

    column = {name: batch.column(name) for name in batch.schema.names}
    for name, values in column.items():
        if pa.types.is_dictionary(values.type):
            column[name] = values.dictionary_decode()
    for name in _COLUMNS:
        refuse(name, column[name].is_null().to_numpy(zero_copy_only=False), "is missing")

    def number(name: str, wanted: pa.DataType) -> pa.Array:
        values = column[name]
        if pa.types.is_integer(wanted) and pa.types.is_string(values.type):
            # Arrow would read 007 and 0x7 as 7, which is another id.
            written = pc.match_substring_regex(values, _WRITTEN).fill_null(True)
            refuse(name, ~written.to_numpy(zero_copy_only=False), "expected an integer")
        if pa.types.is_integer(values.type) and pa.types.is_floating(wanted):
            return values.cast(wanted, safe=False)  # the nearest, as of a number in text
        try:
            return values.cast(wanted)
        except pa.ArrowInvalid:
            for row, value in enumerate(values):
                try:
                    value.cast(wanted)
                except pa.ArrowInvalid:
                    bad = np.arange(len(values)) == row
                    kinds = "an integer" if pa.types.is_integer(wanted) else "a number"
                    refuse(name, bad, f"expected {kinds}")
            raise

    kind_of_item = column["item_id"].type
    is_text = pa.types.is_string(kind_of_item) or pa.types.is_large_string(kind_of_item)
    if not (is_text or pa.types.is_integer(kind_of_item) or pa.types.is_decimal(kind_of_item)):
        raise ValueError(f"{path}: item_id: expected {kind} ids, got {kind_of_item}")
    from_text = file_format(path) != "parquet"
    if not from_text and is_text != (kind == "str"):
        raise ValueError(f"{path}: item_id: the log has {kind} ids, got {kind_of_item}")
    if kind == "str":
        item: AnyArray = text_hashes(column["item_id"].cast(pa.string()))
    else:
        item = number("item_id", pa.int64()).to_numpy(zero_copy_only=False)
    reward = np.asarray(number("reward", pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    refuse("reward", ~np.isfinite(reward), "must be finite")
    if not allow_negative:
        refuse("reward", reward < 0.0, "must not be negative where rewards are positives")
    position = np.zeros(len(reward), np.int64)
    if "position" in column:
        position = number("position", pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        stated = ~column["position"].is_null().to_numpy(zero_copy_only=False)
        refuse("position", stated & (position < 1), "places count from 1")
    request = column["request_id"]
    if not (pa.types.is_string(request.type) or pa.types.is_large_string(request.type)):
        raise ValueError(f"{path}: request_id: expected text, got {request.type}")
    ts = _micros(path, start, column["ts"])
    undated = np.flatnonzero((ts < DATED[0]) | (ts > DATED[1]))
    if undated.size:
        raise ValueError(
            f"{path}: row {start + undated[0]}: ts: must be of the years 1 to 9999, got"
            f" {ts[undated[0]]} microseconds since 1970"
        )
    return text_hashes(request.cast(pa.string())), item, position, reward, ts


def _micros(path: Path, start: int, column: pa.Array) -> IntArray:
    """Times as microseconds since 1970, UTC."""
    if pa.types.is_timestamp(column.type):
        cuts = column.type.unit == "ns"  # nanoseconds; what is coarser must not pass the range
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
        pass  # one by one, which takes more forms and names the row
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
