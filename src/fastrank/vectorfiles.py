"""Read files of vectors (.npy, .npz or Parquet) into plain arrays.

Errors name the file, the column and the row (from 0). `Catalog` and `Model` check the values, such
as repeated ids, or vectors that are not finite.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fastrank.arraytypes import AnyArray
from fastrank.files import file_format, naming

__all__ = [
    *("Columns", "VectorFile", "check_columns", "check_pairs", "read_columns", "read_npy"),
    *("read_pairs", "read_vectors"),
]

Advance: TypeAlias = Callable[[int, int], None]  # rows done, all rows

_BATCH_ROWS = 1 << 16
# Names of the parts as arrays of an .npz.
_ARRAYS = {
    "id": "ids",
    "vector": "vectors",
    "bias": "bias",
    "title": "titles",
    "prior": "prior",
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the Parquet columns to read. None stands for the usual name, if the file has it.

    A name that is given must exist: it is an error if no Parquet file is read.

    Attributes
    ----------
    id, vector, bias, title : str or None
        By default ``id``, ``vector``, ``bias``, ``title``. `vector` is one column of lists of
        numbers; without it, columns ``v0, v1, ...`` of numbers are read.
    prior : str or None
        Read only if it is given.
    or_id : str or None
        Another usual name of the column of ids, if `id` is None. A file with both is refused as
        ambiguous.
    """

    id: str | None = None
    vector: str | None = None
    bias: str | None = None
    title: str | None = None
    prior: str | None = None
    or_id: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class VectorFile:
    """Vectors of items or users, with their ids, biases, titles and prior.

    Attributes
    ----------
    ids : ndarray, shape (n,)
        As in the file: integers or text. Text from Parquet is Python's str, since one long id
        would widen all others of an array. `Catalog` and `Model` check that they are ids.
    vectors : ndarray of a real dtype, shape (n, d)
    bias : ndarray of float64 or None, shape (n,)
    titles : list of str or None, length n
        A list, since one long title would widen all others of an array.
    prior : ndarray of a real dtype or None, shape (n,)
    places : dict of str to str
        The file and column of each part, for errors: ``items.parquet: id``.
    """

    ids: AnyArray
    vectors: AnyArray
    bias: AnyArray | None = None
    titles: list[str] | None = None
    prior: AnyArray | None = None
    places: dict[str, str] = field(default_factory=dict)


def read_vectors(
    path: Path,
    *,
    ids: Path | None = None,
    metadata: Path | None = None,
    columns: Columns | None = None,
    alone: bool = False,
    advance: Advance | None = None,
) -> VectorFile:
    """Read a file of vectors, and files of ids and titles that belong to it.

    Parameters
    ----------
    path : Path
        - ``.npy``: vectors only, shape (n, d); mapped, not copied. The ids are those of `ids` or
          `metadata`, or else the row numbers.
        - ``.npz``: array ``vectors``, and optionally ``ids``, ``bias``, ``titles``, ``prior``.
        - ``.parquet``, ``.pq``, ``.parq``, also followed by the name of a compression: see
          `Columns`.
    ids : Path, optional
        A .npy file of ids, shape (n,), in the order of the vectors.
    metadata : Path, optional
        A Parquet file of n rows in the order of the vectors: ids, and optionally bias, titles and
        prior.
    columns : Columns, optional
        Names of Parquet columns, in `path` or in `metadata`; the latter has no vectors.
    alone : bool
        Read only vectors and ids, as for users, who have no titles.
    advance : callable, optional
        Called with the number of rows done and of all rows while Parquet is read.

    Raises
    ------
    ValueError
        If a file cannot be read or a part is invalid; the message names the file, and the column,
        row and type if there is one.

    Notes
    -----
    Ids in Parquet may be integers; decimals of scale 0; text; bytes that are UTF-8 without NUL, as
    Spark, Impala and Hive write text; or UUIDs, read as their canonical text. Numbers may be
    integers, floats of any width and decimals. Vectors are lists of numbers, of fixed length or
    not, or tensors of one dimension. Dictionaries are decoded; titles are text. Any other type is
    refused by name.
    """
    columns = columns or Columns()
    _check_columns_can_be_read(path, metadata, columns)
    match file_format(path):
        case "npy":
            table = VectorFile(ids=np.empty(0, np.int64), vectors=read_npy(path))
            has_ids = False
        case "npz":
            table, has_ids = _read_npz(path, alone)
        case "parquet":
            table = _read_parquet(path, columns, advance, want_vectors=True, alone=alone)
            has_ids = True
        case _:
            suffix = path.suffix.lower()
            raise ValueError(
                f"{path}: expected .npy, .npz or .parquet, got {suffix or 'no suffix'}"
            )
    vectors = table.vectors
    places = {"vectors": str(path), "ids": str(path)} | table.places
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{path}: vectors: expected shape (n, d), got {vectors.shape}")
    bias, titles, prior = table.bias, table.titles, table.prior
    if ids is not None and (has_ids or metadata is not None):
        raise ValueError(f"{ids}: ids are given twice, here and in {metadata or path}")
    if ids is not None:
        id_values = read_npy(ids)
        places["ids"] = str(ids)
    elif metadata is not None:
        if has_ids:
            raise ValueError(f"{metadata}: ids are given twice, here and in {path}")
        beside = _read_parquet(metadata, columns, advance, want_vectors=False, alone=alone)
        id_values = beside.ids
        bias = beside.bias if bias is None else bias
        titles = beside.titles if titles is None else titles
        if prior is not None and beside.prior is not None:
            raise ValueError(f"{metadata}: a prior is given twice, here and in {path}")
        prior = beside.prior if prior is None else prior
        places = beside.places | places | {"ids": beside.places["ids"]}
    else:
        id_values = table.ids if has_ids else np.arange(len(vectors), dtype=np.int64)
    shapes = {
        "ids": id_values.shape,
        "bias": (len(vectors),) if bias is None else bias.shape,
        "titles": (len(vectors),) if titles is None else (len(titles),),
        "prior": (len(vectors),) if prior is None else prior.shape,
    }
    for name, shape in shapes.items():
        if shape != (len(vectors),):
            place = places[name].removesuffix(f": {name}")
            raise ValueError(
                f"{place}: {name}: expected shape ({len(vectors)},), one for each vector of"
                f" {path.name}; got {shape}"
            )
    return VectorFile(id_values, vectors, bias, titles, prior, places)


def read_columns(
    path: Path, id_columns: Sequence[str]
) -> tuple[AnyArray | None, dict[str, AnyArray | list[Any]]]:
    """Read all columns of a file of items' attributes, by name, and the ids of its rows.

    Parameters
    ----------
    path : Path
        Parquet, or an ``.npz`` of arrays.
    id_columns : sequence of str
        Possible names of the column of ids; the ids are None if the file has none of these.

    Raises
    ------
    ValueError
        If the file or a column cannot be read; the message names it.
    """
    match file_format(path):
        case "npz":
            columns = _arrays_of(path)
        case "parquet":
            columns = _all_columns(path)
        case _:
            raise ValueError(f"{path}: expected .npz or .parquet")
    name = next((name for name in id_columns if name in columns), None)
    ids = None if name is None else np.asarray(columns.pop(name))
    return ids, columns


def read_pairs(
    path: Path, first: str, second: str, *, advance: Advance | None = None
) -> Iterator[tuple[AnyArray, AnyArray]]:
    """Read two columns of ids of a Parquet file, part by part, as `read_vectors` reads ids.

    Raises
    ------
    ValueError
        If the file cannot be read or an id is invalid; the message names the file, and the column
        and row if there is one.
    """
    if file_format(path) != "parquet":
        raise ValueError(f"{path}: expected .parquet, got {path.suffix.lower() or 'no suffix'}")
    import pyarrow.parquet as pq

    with naming(path, "Parquet file"):
        file = pq.ParquetFile(path)
    with file:
        names = (first, second)
        _both(path, file.schema_arrow.names, *names)
        start = 0
        for batch in _batches(path, file, list(dict.fromkeys(names))):
            found = []
            for name in names:
                with naming(f"{path}: {name}", f"column from row {start} on"):
                    found.append(_ids(path, name, start, _decoded(batch[name])))
            yield found[0], found[1]
            start += len(batch)
            if advance:
                advance(start, file.metadata.num_rows)


def _arrays_of(path: Path) -> dict[str, AnyArray | list[Any]]:
    with naming(path, ".npz archive"), np.load(path, allow_pickle=False) as archive:
        return {name: _of_archive(path, archive, name) for name in archive.files}


def _all_columns(path: Path) -> dict[str, AnyArray | list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with naming(path, "Parquet file"):
        table = pq.read_table(path)
    found: dict[str, AnyArray | list[Any]] = {}
    for name in table.column_names:
        if name in found:
            raise ValueError(f"{path}: two columns are named {name}")
        with naming(f"{path}: {name}", "column"):
            column = _decoded(table.column(name).combine_chunks())
            kind = column.type
            if pa.types.is_decimal(kind):
                column = column.cast(pa.float64())
            is_plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
            if column.null_count or not is_plain:
                found[name] = column.to_pylist()
            else:
                found[name] = column.to_numpy(zero_copy_only=False)
    return found


def _check_columns_can_be_read(path: Path, metadata: Path | None, columns: Columns) -> None:
    """Refuse names of columns that would not be used, since the caller expects them to be."""
    if file_format(path) == "parquet":
        return
    for kind, array in _ARRAYS.items():
        name = getattr(columns, kind)
        if name is not None and (metadata is None or kind == "vector"):
            hint = f"; an .npz has arrays, here {array}" if file_format(path) == "npz" else ""
            raise ValueError(f"{path}: no {kind} column {name!r}: this is not Parquet{hint}")


def read_npy(path: Path) -> AnyArray:
    """Map a .npy file of numbers or text; a ValueError that names the file if it is not one."""
    with naming(path, ".npy file of numbers or text"):
        with path.open("rb") as stream:
            head = stream.read(len(np.lib.format.MAGIC_PREFIX))
        if head.startswith(b"PK"):
            raise ValueError("this is an .npz archive; name it so")
        if head != np.lib.format.MAGIC_PREFIX:
            raise ValueError("it does not begin as an .npy file does")
        array: AnyArray = np.lib.format.open_memmap(path, mode="r")
    return array


def _read_npz(path: Path, alone: bool) -> tuple[VectorFile, bool]:
    wanted = ("ids", "vectors") if alone else _ARRAYS.values()
    with naming(path, ".npz archive"), path.open("rb") as stream:
        if stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            raise ValueError(f"{path}: this is a .npy array; name it so")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as archive:
            names = archive.files
            arrays = {name: _of_archive(path, archive, name) for name in wanted if name in names}
    if "vectors" not in arrays:
        raise ValueError(f"{path}: no array named vectors; found {', '.join(names) or 'none'}")
    titles = arrays.get("titles")
    if titles is not None and (titles.dtype.kind != "U" or titles.ndim != 1):
        raise ValueError(
            f"{path}: titles: expected text, one for each vector; got {titles.dtype}"
            f" of shape {titles.shape}"
        )
    table = VectorFile(
        ids=arrays.get("ids", np.empty(0, np.int64)),
        vectors=arrays["vectors"],
        bias=arrays.get("bias"),
        titles=None if titles is None else titles.tolist(),
        prior=arrays.get("prior"),
        places={name: f"{path}: {name}" for name in arrays},
    )
    return table, "ids" in arrays


def _of_archive(path: Path, archive: Any, name: str) -> AnyArray:
    with naming(f"{path}: {name}", "array of numbers or text"):
        array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {name}: expected an array as NumPy saves it, got other bytes")
    return array


def _read_parquet(
    path: Path, columns: Columns, advance: Advance | None, *, want_vectors: bool, alone: bool
) -> VectorFile:
    import pyarrow.parquet as pq

    with naming(path, "Parquet file"):
        file = pq.ParquetFile(path)
    with file:
        n_rows = file.metadata.num_rows
        found, vector_columns = _parts(
            path, file.schema_arrow.names, columns, want_vectors=want_vectors, alone=alone
        )
        wanted = list(dict.fromkeys([*found.values(), *vector_columns]))
        parts: dict[str, list[AnyArray]] = {part: [] for part in found}
        vectors: list[AnyArray] = []
        start = 0
        for batch in _batches(path, file, wanted):
            for part, column in found.items():
                with naming(f"{path}: {column}", f"column from row {start} on"):
                    values = _decoded(batch[column])
                    parts[part].append(_READERS[part](path, column, start, values))
            if vector_columns:
                dim = vectors[0].shape[1] if vectors else None
                with naming(path, f"Parquet file from row {start} on"):
                    vectors.append(_rows(path, vector_columns, start, batch, dim))
            start += len(batch)
            if advance:
                advance(start, n_rows)
    joined = {part: np.concatenate(arrays) for part, arrays in parts.items() if arrays}
    titles = joined.get("titles", np.empty(0, object)).tolist() if "titles" in found else None
    places = {part: f"{path}: {column}" for part, column in found.items()}
    if want_vectors:
        places["vectors"] = f"{path}: {vector_columns[0]}"
    return VectorFile(
        ids=joined.get("ids", np.empty(0, np.int64)),
        vectors=np.concatenate(vectors) if vectors else np.empty(0, np.float32),
        bias=joined.get("bias", np.empty(0)) if "bias" in found else None,
        titles=titles,
        prior=joined.get("prior", np.empty(0)) if "prior" in found else None,
        places=places,
    )


def _batches(path: Path, file: Any, columns: list[str]) -> Iterator[Any]:
    with naming(path, "Parquet file"):  # the caller's own errors are raised outside of this
        yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)


def check_columns(
    path: Path,
    *,
    metadata: Path | None = None,
    columns: Columns | None = None,
    alone: bool = False,
) -> None:
    """Check columns as `read_vectors` does, by the heads of the files; report all problems."""
    columns = columns or Columns()
    _check_columns_can_be_read(path, metadata, columns)
    for file, want_vectors in ((path, True), (metadata, False)):
        if file is not None and file_format(file) == "parquet":
            _parts(file, _names(file), columns, want_vectors=want_vectors, alone=alone)


def check_pairs(path: Path, first: str, second: str) -> None:
    """Check columns as `read_pairs` does, from the head of the file."""
    if file_format(path) == "parquet":
        _both(path, _names(path), first, second)


def _names(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    with naming(path, "Parquet file"):
        names: list[str] = pq.read_schema(path).names
    return names


def _parts(
    path: Path, present: list[str], columns: Columns, *, want_vectors: bool, alone: bool
) -> tuple[dict[str, str], list[str]]:
    """Find the columns of the parts in a file, and those of the vectors."""
    problems: list[str] = []
    names = {"ids": _id_column(present, columns, problems)}
    if not alone:
        names["bias"] = _column(present, columns.bias, "bias", problems)
        names["titles"] = _column(present, columns.title, "title", problems)
    if columns.prior is not None:
        names["prior"] = _column(present, columns.prior, "prior", problems)
    vectors = _vector_columns(present, columns.vector, problems) if want_vectors else []
    _refuse_columns(path, present, problems)
    return {part: name for part, name in names.items() if name is not None}, vectors


def _both(path: Path, present: list[str], *names: str) -> None:
    problems: list[str] = []
    for name in dict.fromkeys(names):
        _column(present, name, name, problems)
    _refuse_columns(path, present, problems)


def _refuse_columns(path: Path, present: list[str], problems: Sequence[str]) -> None:
    if problems:
        is_absent = any(each.startswith("no column") for each in problems)
        found = [f"found {', '.join(present)}"] if is_absent else []
        raise ValueError(f"{path}: {'; '.join([*problems, *found])}")


def _id_column(present: list[str], columns: Columns, problems: list[str]) -> str | None:
    other = columns.or_id
    if columns.id is not None or other in (None, "id"):
        return _column(present, columns.id, "id", problems, required=True)
    if "id" in present and other in present:
        problems.append(f"it has columns id and {other}; name the one that holds the ids")
        return None
    if "id" not in present and other not in present:
        problems.append(f"no column named id or {other}")
        return None
    return _column(present, other if other in present else "id", "id", problems)


def _column(
    present: list[str],
    wanted: str | None,
    usual: str,
    problems: list[str],
    *,
    required: bool = False,
) -> str | None:
    name = usual if wanted is None else wanted
    if name in present:
        if present.count(name) > 1:
            problems.append(f"{present.count(name)} columns are named {name}")
        return name
    if wanted is not None or required:
        problems.append(f"no column named {name or repr(name)}")
    return None


def _vector_columns(present: list[str], wanted: str | None, problems: list[str]) -> list[str]:
    if wanted is not None or "vector" in present:
        return [_column(present, wanted, "vector", problems) or "vector"]
    numbered = [c for c in present if re.fullmatch(r"v\d+", c, re.ASCII)]
    expected = [f"v{i}" for i in range(len(numbered))]
    if not numbered:
        problems.append("no column named vector and no columns v0, v1, ...")
    missing = sorted(set(expected) - set(numbered), key=expected.index)
    twice = sorted({c for c in numbered if numbered.count(c) > 1})
    if twice:
        problems.append(f"{numbered.count(twice[0])} columns are named {twice[0]}")
    elif missing:
        are = "is" if len(missing) == 1 else "are"
        problems.append(f"columns v0 to v{len(numbered) - 1}: {', '.join(missing)} {are} missing")
    return expected


def _is(kind: Any, *names: str) -> bool:
    """Say whether a type is one of these; older versions of pyarrow lack some of them."""
    import pyarrow as pa

    checks = (getattr(pa.types, f"is_{name}", None) for name in names)
    return any(check is not None and check(kind) for check in checks)


def _decoded(values: Any) -> Any:
    """Return a column of a batch, with dictionaries decoded."""
    return values.dictionary_decode() if _is(values.type, "dictionary") else values


def _refuse_null(path: Path, column: str, start: int, values: Any) -> None:
    if values.null_count:
        row = start + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{path}: {column}: row {row} is null")


def _ids(path: Path, column: str, start: int, values: Any) -> AnyArray:
    """Return a column of a batch as integers, or as text in Python's str; refuse nulls."""
    kind = values.type
    if _is(kind, "integer"):
        _refuse_null(path, column, start, values)
        integers: AnyArray = values.to_numpy(zero_copy_only=False)
        return integers
    if _is(kind, "decimal") and kind.scale <= 0:
        _refuse_null(path, column, start, values)
        return _objects(int(value) for value in values.to_pylist())
    if getattr(kind, "extension_name", "") == "arrow.uuid":
        _refuse_null(path, column, start, values)
        return _objects(str(value) for value in values.to_pylist())
    text = _text(path, column, start, values)
    if text is None:
        raise ValueError(f"{path}: {column}: expected integers or text, got {kind}")
    _refuse_null(path, column, start, values)
    return text


def _objects(values: Any) -> AnyArray:
    """Return an array of Python objects, so that a long text does not widen the others."""
    items = list(values)
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _text(path: Path, column: str, start: int, values: Any) -> AnyArray | None:
    """Return a column of a batch as Python's str, None for null; None if its type is not text.

    Bytes count as text if they are UTF-8 without NUL: many writers do not mark text as such.
    """
    import pyarrow as pa

    kind = values.type
    if not _is(kind, "string", "large_string", "string_view"):
        if not _is(kind, "binary", "large_binary", "binary_view", "fixed_size_binary"):
            return None
        wrong = "bytes that are not text"
    else:
        wrong = "text that is not UTF-8"
    raw = values.cast(pa.large_binary())
    try:
        array: AnyArray = raw.cast(pa.large_string()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        array = _objects(raw.to_pylist())
        for row, value in enumerate(array):
            try:
                array[row] = value if value is None else value.decode()
            except UnicodeDecodeError:
                raise ValueError(
                    f"{path}: {column}: row {start + row}: {kind}: {wrong}, got {value!r:.80}"
                ) from None
    if wrong.startswith("bytes"):
        for row, value in enumerate(array):
            if value is not None and "\0" in value:
                raise ValueError(
                    f"{path}: {column}: row {start + row}: {kind}: {wrong},"
                    f" got {value.encode()!r:.80}"
                )
    return array


def _titles(path: Path, column: str, start: int, values: Any) -> AnyArray:
    """Return a column of a batch as text, '' for null; refuse other types."""
    if _is(values.type, "null"):
        return _objects([""] * len(values))
    text = _text(path, column, start, values)
    if text is None:
        raise ValueError(f"{path}: {column}: expected text, got {values.type}")
    return _objects("" if title is None else title for title in text)


def _numbers(path: Path, column: str, start: int, values: Any) -> AnyArray:
    """Return a column of a batch as an array of numbers; refuse other types."""
    values = _decoded(values)
    kind = values.type
    if not _is(kind, "integer", "floating", "decimal"):
        raise ValueError(f"{path}: {column}: expected numbers, got {kind}")
    _refuse_null(path, column, start, values)
    return _as_numbers(values)


def _as_numbers(values: Any) -> AnyArray:
    if _is(values.type, "decimal"):
        return np.array([float(value) for value in values.to_pylist()])
    array: AnyArray = values.to_numpy(zero_copy_only=False)
    return array


_READERS = {"ids": _ids, "bias": _numbers, "titles": _titles, "prior": _numbers}


def _rows(path: Path, columns: list[str], start: int, batch: Any, dim: int | None) -> AnyArray:
    """Return the vectors of a batch, from one column of lists or one column per dimension."""
    import pyarrow.compute as pc

    if len(columns) > 1:
        return np.stack([_numbers(path, c, start, batch[c]) for c in columns], axis=1)
    (column,) = columns
    lists = batch[column]
    kind = lists.type
    if hasattr(kind, "storage_type") and len(getattr(kind, "shape", (1,))) == 1:
        lists = lists.storage  # a tensor of one dimension
    is_fixed = _is(lists.type, "fixed_size_list")
    is_list = is_fixed or _is(lists.type, "list", "large_list", "list_view", "large_list_view")
    if not is_list:
        if _is(kind, "nested") or hasattr(kind, "storage_type"):
            raise ValueError(f"{path}: {column}: expected lists of numbers, got {kind}")
        return _numbers(path, column, start, lists).reshape(-1, 1)
    if not _is(lists.type.value_type, "integer", "floating", "decimal"):
        raise ValueError(f"{path}: {column}: expected lists of numbers, got {kind}")
    _refuse_null(path, column, start, lists)
    if is_fixed:
        lengths = np.full(len(lists), lists.type.list_size)
    else:
        lengths = pc.list_value_length(lists).to_numpy()
    if dim is None:
        dim = int(lengths[0]) if len(lengths) else 0
    if dim == 0:
        raise ValueError(f"{path}: {column}: row {start} holds no numbers")
    bad = np.flatnonzero(lengths != dim)
    if len(bad):
        raise ValueError(
            f"{path}: {column}: row {start + int(bad[0])} has {lengths[bad[0]]} numbers,"
            f" but the first row has {dim}"
        )
    values = lists.flatten()
    if values.null_count:
        place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{path}: {column}: row {start + place // dim} holds a null")
    return _as_numbers(values).reshape(-1, dim)
