"""Any table, in memory or in files, as record batches of the requested columns."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fastrank.eventlog.owncells import as_texts
from fastrank.files import file_format, files_at, naming, not_text, opened
from fastrank.inputs import shown

__all__ = ["Piece", "Source", "plain_array", "plain_type", "source_of"]

_BATCH_ROWS = 65_536
_CSV_BLOCK = 1 << 23  # bytes
_HEAD = 4096  # bytes that identify the format of a file
_CSV_NULLS = pa.array(pa.csv.ConvertOptions().null_values)
_FORMATS = ("parquet", "csv", "csv.gz")
_EXPECTED = (
    "a pandas or polars DataFrame, a pyarrow Table, RecordBatch or Dataset, a mapping of arrays, or"
    " paths of CSV and Parquet files"
)

Piece: TypeAlias = tuple[str, int, pa.RecordBatch]  # of which source, from which of its rows on


class Source(Protocol):
    """A table whose columns can be read any number of times.

    Attributes
    ----------
    schema : pyarrow.Schema
        All columns; those of CSV files have the type null, which means unknown.
    in_memory : bool
    """

    schema: pa.Schema
    in_memory: bool

    def pieces(self, names: Sequence[str], numbers: Collection[str]) -> Iterator[Piece]:
        """These columns, batch by batch.

        In CSV files those of `numbers` are float64, but for batches in which one of them holds
        something that is no number: they are texts.
        """


def source_of(data: Any, wanted: Sequence[str]) -> Source:
    """Open what a caller passes as a table.

    Parameters
    ----------
    data
        As in `from_table`.
    wanted : sequence of str
        Columns that will be read: of a DataFrame only these are converted.

    Raises
    ------
    ValueError
        If it is not a table, or a file cannot be read; the message names the file.
    """
    if isinstance(data, pa.Table | pa.RecordBatch):
        return _Table(pa.Table.from_batches([data]) if isinstance(data, pa.RecordBatch) else data)
    if isinstance(data, str | os.PathLike) or (
        isinstance(data, list | tuple) and all(isinstance(each, str | os.PathLike) for each in data)
    ):
        return _Files(files_at(data, _FORMATS, "tables (.parquet, .csv, .csv.gz)"))
    try:
        if isinstance(data, Mapping):
            return _Table(pa.table({name: _column(name, data[name]) for name in data}))
        if hasattr(data, "scanner") and hasattr(data, "to_batches"):
            return _Dataset(data)
        if hasattr(data, "__arrow_c_stream__"):
            return _Frame(data, wanted)
        if hasattr(data, "__dataframe__"):
            from pyarrow.interchange import from_dataframe

            return _Table(from_dataframe(data))
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # any error of the table's own library
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"data: Arrow cannot take this {type(data).__name__}: {why}") from error
    lazy = "; collect() it first" if hasattr(data, "collect") else ""
    raise ValueError(f"data: expected {_EXPECTED}; got {shown(data)}{lazy}")


def _column(name: Any, values: Any) -> Any:
    """A column of a mapping; of a matrix each row is a list."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        offsets = np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]
        return pa.LargeListArray.from_arrays(pa.array(offsets), flat)
    try:
        return pa.array(values)
    except pa.ArrowException as error:
        raise ValueError(f"column {name!r}: {error}") from None


class _Table:
    """A table in memory."""

    in_memory = True

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.schema: pa.Schema = table.schema

    def pieces(self, names: Sequence[str], numbers: Collection[str]) -> Iterator[Piece]:
        yield from _counted("table", self._table.select(list(names)).to_batches(_BATCH_ROWS))


class _Frame(_Table):
    """Another library's table, read through its Arrow stream."""

    def __init__(self, data: Any, wanted: Sequence[str]) -> None:
        own = getattr(data, "columns", None)
        if own is None or not hasattr(data, "dtypes"):  # not a DataFrame, but a stream, for example
            super().__init__(pa.table(data))
            return
        # A column that was not requested may have a type that Arrow lacks.
        columns = list(own)
        names = [name for name in dict.fromkeys(wanted) if name in columns]
        repeated = [name for name in names if columns.count(name) > 1]
        if repeated:
            raise ValueError(f"two columns are named {repeated[0]}")
        super().__init__(pa.table(data[names]).select(names))
        of_wanted = {field.name: field for field in self.schema}
        self.schema = pa.schema(
            [of_wanted.get(str(name), pa.field(str(name), pa.null())) for name in columns]
        )


class _Dataset:
    """A dataset of pyarrow."""

    in_memory = False

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.schema: pa.Schema = dataset.schema

    def pieces(self, names: Sequence[str], numbers: Collection[str]) -> Iterator[Piece]:
        yield from _counted(
            "dataset", self._dataset.to_batches(columns=list(names), batch_size=_BATCH_ROWS)
        )


class _Files:
    """CSV and Parquet files, one after the other."""

    in_memory = False

    def __init__(self, files: Sequence[Path]) -> None:
        self._is_csv = {file: _is_csv(file) for file in files}
        self._schemas = {file: _schema(file, is_csv) for file, is_csv in self._is_csv.items()}
        first, *others = self._schemas.values()
        self.schema: pa.Schema = first
        for other in others:
            # If one file does not determine a column's type, another may.
            for at, field in enumerate(self.schema):
                if pa.types.is_null(field.type) and field.name in other.names:
                    self.schema = self.schema.set(at, other.field(field.name))

    def pieces(self, names: Sequence[str], numbers: Collection[str]) -> Iterator[Piece]:
        for file, columns in self._schemas.items():
            missing = [name for name in names if name not in columns.names]
            if missing:
                has = ", ".join(columns.names)
                raise ValueError(f"{file}: no column named {', '.join(missing)}; found {has}")
        wanted = {name: self._common(name, name in numbers) for name in names}
        for file, columns in self._schemas.items():
            is_csv = self._is_csv[file]
            with naming(file, "CSV file" if is_csv else "Parquet file"):
                try:
                    batches = _batches(file, is_csv, names, numbers)
                    alike = (_alike(batch, wanted) for batch in batches)
                    yield from _counted(str(file), alike)
                except pa.ArrowInvalid as error:
                    raise _with_name(error, columns.names) from None

    def _common(self, name: str, is_number: bool) -> pa.DataType | None:
        """What files that say a column in several types make of it; None where they do not.

        A ValueError names two files of which no column can be made.
        """
        found: dict[pa.DataType, Path] = {}
        for file, columns in self._schemas.items():
            kind = plain_type(columns.field(name).type)
            if self._is_csv[file]:
                kind = pa.float64() if is_number else pa.string()
            if not pa.types.is_null(kind):
                found.setdefault(kind, file)
        shapes = {_shape(kind, is_number): kind for kind in reversed(found)}
        if len(shapes) > 1:
            said = " and ".join(f"of type {kind} in {found[kind]}" for kind in shapes.values())
            raise ValueError(f"column {name!r} is {said}: give files of one kind")
        kinds = {kind.value_type if pa.types.is_list(kind) else kind for kind in found}
        if len(kinds) < 2 or all(map(pa.types.is_temporal, kinds)):
            return None
        if is_number:
            return pa.float64()
        is_integer = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
        return pa.int64() if is_integer else pa.string()


def _shape(kind: pa.DataType, is_number: bool) -> tuple[bool, bool]:
    """What a column must have in common with that of another file: lists, and texts as numbers."""
    is_list = pa.types.is_list(kind)
    is_text = pa.types.is_string(kind.value_type if is_list else kind)
    return is_list, is_number and is_text


def _alike(batch: pa.RecordBatch, wanted: Mapping[str, pa.DataType | None]) -> pa.RecordBatch:
    """A batch whose columns, or lists, are of the types wanted, where their values allow it."""
    columns = [
        column if wanted[name] is None else _cast(plain_array(column), wanted[name])
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _cast(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_string(wanted):
        return as_texts(column)
    try:
        return column.cast(pa.list_(wanted) if pa.types.is_list(column.type) else wanted)
    except pa.ArrowInvalid:  # no integers, or no numbers: they are set aside when they are read
        return column


def _with_name(error: pa.ArrowInvalid, names: Sequence[str]) -> ValueError:
    """Arrow's error about a CSV file, with names of columns and rows from 0."""
    said = re.sub(r"In CSV column #(\d+)", lambda at: f"column {names[int(at[1])]!r}", str(error))
    # Arrow counts lines from 1, including the header.
    return ValueError(re.sub(r"Row #(\d+)", lambda at: f"row {int(at[1]) - 2}", said))


def _counted(name: str, batches: Any) -> Iterator[Piece]:
    start = 0
    for batch in batches:
        yield name, start, batch
        start += batch.num_rows


def _is_csv(file: Path) -> bool:
    with naming(file, "table"):
        with file.open("rb") as content:
            if content.read(4) == b"PAR1":
                return False
        with opened(file) as content:
            head = content.read(_HEAD)
    if file_format(file) not in _FORMATS[1:]:
        raise ValueError(f"{file}: expected a CSV or a Parquet file, by its name")
    other = not_text(head)
    if other is not None:
        raise ValueError(f"{file}: expected a CSV file in UTF-8, by its name; it is {other}")
    return True


def _schema(file: Path, is_csv: bool) -> pa.Schema:
    with naming(file, "CSV file" if is_csv else "Parquet file"):
        if not is_csv:
            schema = pq.read_schema(file)
        else:
            # Lines of another length are refused when they are read: the header comes first.
            lenient = pa.csv.ParseOptions(invalid_row_handler=lambda line: "skip")
            with (
                opened(file) as content,
                pa.csv.open_csv(content, parse_options=lenient) as reader,
            ):
                schema = pa.schema([(name, pa.null()) for name in reader.schema.names])
            other = re.search(r"[;\t|]", schema.names[0]) if len(schema.names) == 1 else None
            if other is not None:
                names = shown(schema.names[0])
                raise ValueError(f"expected commas between columns, not {other[0]!r}: {names}")
        repeated = [name for name in schema.names if schema.names.count(name) > 1]
        if repeated:
            raise ValueError(f"two columns are named {repeated[0]}")
        return schema


def _batches(
    file: Path, is_csv: bool, names: Sequence[str], numbers: Collection[str]
) -> Iterator[pa.RecordBatch]:
    if not is_csv:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            yield from parquet.iter_batches(_BATCH_ROWS, columns=list(names))
        return
    # Ids stay as they are written: 0042 is not 42.
    options = pa.csv.ConvertOptions(
        include_columns=list(names), column_types=dict.fromkeys(names, pa.string())
    )
    with (
        opened(file) as content,
        pa.csv.open_csv(
            content,
            # Errors name the row only without threads, which save nothing here.
            read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK, use_threads=False),
            convert_options=options,
        ) as reader,
    ):
        for batch in reader:
            columns = [
                _numbers(column) if name in numbers else column
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _numbers(texts: pa.Array) -> pa.Array:
    """A column of a CSV file as float64; texts, without those for null, if one is no number."""
    texts = pc.if_else(pc.is_in(texts, _CSV_NULLS), None, texts)
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return texts


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without storage details: dictionaries, views, large offsets.

    Examples
    --------
    >>> plain_type(pa.large_list(pa.dictionary(pa.int8(), pa.large_string())))
    ListType(list<item: string>)
    """
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or str(kind) == "string_view":
        return pa.string()
    if _is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    return kind


def _is_list(kind: pa.DataType) -> bool:
    # pyarrow 14 has no views of lists.
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or str(kind).startswith(("list_view<", "large_list_view<"))
    )


def plain_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in its `plain_type`, in one piece."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    wanted = plain_type(column.type)
    if column.type.equals(wanted):
        return column
    if isinstance(column, pa.ExtensionArray):
        return plain_array(column.storage)
    if isinstance(column, pa.DictionaryArray):
        return plain_array(column.dictionary).take(column.indices)
    if not _is_list(column.type):
        return column.cast(wanted)
    # No cast handles every kind of lists with every kind of values, and that of views is wrong.
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    missing = column.is_null() if column.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), plain_array(column.flatten()), mask=missing)
