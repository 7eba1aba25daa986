"""Vectors as they lie on disk: .npy, .npz or Parquet, read into plain arrays.

Whatever is wrong is named by file, column and row (rows count from 0). What concerns the
values themselves, such as repeated ids or vectors that are not finite, `Catalog` and `Model`
check.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

__all__ = ["Columns", "VectorFile", "read_vectors"]

Array: TypeAlias = npt.NDArray[Any]
Advance: TypeAlias = Callable[[int, int], None]  # rows done, rows in all

_BATCH_ROWS = 1 << 16
_PARQUET = (".parquet", ".pq")
# What a column is called as an array of an .npz.
_ARRAYS = {
    "id": "ids",
    "vector": "vectors",
    "bias": "bias",
    "title": "titles",
    "prior": "prior",
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the Parquet columns to read; None: the usual name, where there is such a column.

    A column that is named must be there to be read: it is an error where no Parquet file is.

    Attributes
    ----------
    id, vector, bias, title : str or None
        Usually ``id``, ``vector``, ``bias``, ``title``. `vector` is one column of lists of numbers;
        without it, columns ``v0, v1, ...`` of numbers are taken.
    prior : str or None
        Taken only if it is named.
    """

    id: str | None = None
    vector: str | None = None
    bias: str | None = None
    title: str | None = None
    prior: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class VectorFile:
    """One side's vectors, with what came along.

    Attributes
    ----------
    ids : ndarray, shape (n,)
        As they lie there, text of Parquet as objects; `Catalog` and `Model` check them.
    vectors : ndarray of a real dtype, shape (n, d)
    bias : ndarray of float64 or None, shape (n,)
    titles : list of str or None, length n
        A list, since one long title would widen all others of an array.
    prior : ndarray of a real dtype or None, shape (n,)
    """

    ids: Array
    vectors: Array
    bias: Array | None = None
    titles: list[str] | None = None
    prior: Array | None = None


def read_vectors(
    path: Path,
    *,
    ids: Path | None = None,
    metadata: Path | None = None,
    columns: Columns | None = None,
    advance: Advance | None = None,
) -> VectorFile:
    """Read one file of vectors, and the ids and titles beside it.

    Parameters
    ----------
    path : Path
        - ``.npy``: vectors alone, shape (n, d); mapped, not copied. The ids are those of `ids` or
          `metadata`, or else the row numbers.
        - ``.npz``: arrays ``vectors``, and if wanted ``ids``, ``bias``, ``titles``, ``prior``.
        - ``.parquet``: see `Columns`.
    ids : Path, optional
        A .npy file of ids, shape (n,), in the order of the vectors.
    metadata : Path, optional
        A Parquet file of n rows in the order of the vectors: ids, and if wanted bias, titles and
        prior.
    columns : Columns, optional
        For Parquet: for `path`, or for `metadata`, which has no vectors.
    advance : callable, optional
        Told the progress in rows while Parquet is read.

    Raises
    ------
    ValueError
        Naming the file, and the column and row where there is one.
    """
    columns = columns or Columns()
    _check_columns_can_be_read(path, metadata, columns)
    match path.suffix.lower():
        case ".npy":
            table = VectorFile(ids=np.empty(0, np.int64), vectors=_load(path))
            has_ids = False
        case ".npz":
            table, has_ids = _read_npz(path)
        case suffix if suffix in _PARQUET:
            table, has_ids = _read_parquet(path, columns, advance, want_vectors=True), True
        case suffix:
            raise ValueError(
                f"{path}: expected .npy, .npz or .parquet, got {suffix or 'no suffix'}"
            )
    vectors = table.vectors
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{path}: vectors: expected shape (n, d), got {vectors.shape}")
    bias, titles, prior = table.bias, table.titles, table.prior
    if ids is not None and (has_ids or metadata is not None):
        raise ValueError(f"{ids}: ids are given twice, here and in {metadata or path}")
    if ids is not None:
        id_values = _load(ids)
    elif metadata is not None:
        if has_ids:
            raise ValueError(f"{metadata}: ids are given twice, here and in {path}")
        beside = _read_parquet(metadata, columns, advance, want_vectors=False)
        id_values = beside.ids
        bias = beside.bias if bias is None else bias
        titles = beside.titles if titles is None else titles
        if prior is not None and beside.prior is not None:
            raise ValueError(f"{metadata}: a prior is given twice, here and in {path}")
        prior = beside.prior if prior is None else prior
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
            raise ValueError(
                f"{ids or metadata or path}: {name}: expected shape ({len(vectors)},), one for each"
                f" vector of {path.name}; got {shape}"
            )
    return VectorFile(ids=id_values, vectors=vectors, bias=bias, titles=titles, prior=prior)


def _check_columns_can_be_read(path: Path, metadata: Path | None, columns: Columns) -> None:
    """Refuses names that nothing would be looked up by: the caller believes that they count."""
    if path.suffix.lower() in _PARQUET:
        return
    for kind, array in _ARRAYS.items():
        name = getattr(columns, kind)
        if name is not None and (metadata is None or kind == "vector"):
            hint = f"; an .npz has arrays, here {array}" if path.suffix.lower() == ".npz" else ""
            raise ValueError(f"{path}: no {kind} column {name!r}: this is not Parquet{hint}")


def _load(path: Path) -> Array:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file of numbers or text: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: this is an .npz archive; name it so")
    return array


def _read_npz(path: Path) -> tuple[VectorFile, bool]:
    try:
        with np.load(path, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    except (ValueError, EOFError, BadZipFile, AttributeError) as error:
        raise ValueError(f"{path}: not a readable .npz archive: {error}") from None
    if "vectors" not in arrays:
        raise ValueError(f"{path}: no array named vectors; found {', '.join(arrays) or 'none'}")
    table = VectorFile(
        ids=arrays.get("ids", np.empty(0, np.int64)),
        vectors=arrays["vectors"],
        bias=arrays.get("bias"),
        titles=arrays["titles"].tolist() if "titles" in arrays else None,
        prior=arrays.get("prior"),
    )
    return table, "ids" in arrays


def _read_parquet(
    path: Path, columns: Columns, advance: Advance | None, *, want_vectors: bool
) -> VectorFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from None
    with file:
        present = file.schema_arrow.names
        n_rows = file.metadata.num_rows
        id_column = _column(path, present, columns.id, "id", required=True)
        bias_column = _column(path, present, columns.bias, "bias")
        title_column = _column(path, present, columns.title, "title")
        prior_column = None
        if columns.prior is not None:
            prior_column = _column(path, present, columns.prior, "prior")
        vector_columns: list[str] = []
        if want_vectors:
            vector_columns = _vector_columns(path, present, columns.vector)
        plain = (id_column, bias_column, title_column, prior_column)
        wanted = list(dict.fromkeys(c for c in (*plain, *vector_columns) if c is not None))
        ids: list[Array] = []
        bias: list[Array] = []
        titles: list[str] = []
        prior: list[Array] = []
        vectors: list[Array] = []
        start = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            ids.append(_plain(path, id_column, start, batch[id_column]))
            if bias_column is not None:
                bias.append(_numbers(path, bias_column, start, batch[bias_column]))
            if prior_column is not None:
                prior.append(_numbers(path, prior_column, start, batch[prior_column]))
            if title_column is not None:
                titles += ["" if t is None else str(t) for t in batch[title_column].to_pylist()]
            if vector_columns:
                dim = vectors[0].shape[1] if vectors else None
                vectors.append(_rows(path, vector_columns, start, batch, dim))
            start += len(batch)
            if advance:
                advance(start, n_rows)
    return VectorFile(
        ids=_joined(ids, np.int64),
        vectors=_joined(vectors, np.float32),
        bias=_joined(bias, np.float64) if bias_column is not None else None,
        titles=titles if title_column is not None else None,
        prior=_joined(prior, np.float64) if prior_column is not None else None,
    )


def _joined(parts: list[Array], dtype: npt.DTypeLike) -> Array:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _column(
    path: Path, present: list[str], wanted: str | None, usual: str, *, required: bool = False
) -> str | None:
    name = usual if wanted is None else wanted
    if name in present:
        return name
    if wanted is not None or required:
        raise ValueError(
            f"{path}: no column named {name or repr(name)}; found {', '.join(present)}"
        )
    return None


def _vector_columns(path: Path, present: list[str], wanted: str | None) -> list[str]:
    if wanted is not None or "vector" in present:
        return [_column(path, present, wanted, "vector") or "vector"]
    numbered = [c for c in present if re.fullmatch(r"v\d+", c)]
    expected = [f"v{i}" for i in range(len(numbered))]
    if not numbered:
        raise ValueError(
            f"{path}: no column named vector and no columns v0, v1, ...; found {', '.join(present)}"
        )
    if sorted(numbered) != sorted(expected):
        missing = sorted(set(expected) - set(numbered))
        raise ValueError(f"{path}: columns v0 to v{len(numbered) - 1}: {missing[0]} is missing")
    return expected


def _is_nested(values: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(values.type))


def _plain(path: Path, column: str | None, start: int, values: Any) -> Array:
    """One column of a batch as an array of numbers or text; nulls and lists are refused."""
    if _is_nested(values):
        raise ValueError(f"{path}: {column}: expected numbers or text, got {values.type}")
    if values.null_count:
        row = start + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{path}: {column}: row {row} is null")
    # Text stays objects: in an array of fixed width one long id would be paid for by all.
    array: Array = values.to_numpy(zero_copy_only=False)
    return array


def _numbers(path: Path, column: str, start: int, values: Any) -> Array:
    """One column of a batch as an array of numbers; anything else is refused."""
    array = None if _is_nested(values) else _plain(path, column, start, values)
    if array is None or array.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {column}: expected numbers, got {values.type}")
    return array


def _rows(path: Path, columns: list[str], start: int, batch: Any, dim: int | None) -> Array:
    """The vectors of a batch; from one column of lists, or from one column a dimension."""
    import pyarrow as pa

    if len(columns) > 1 or not _is_nested(batch[columns[0]]):
        return np.stack([_numbers(path, c, start, batch[c]) for c in columns], axis=1)
    (column,) = columns
    lists = batch[column]
    kind = lists.type
    is_list = any(f(kind) for f in (pa.types.is_list, pa.types.is_large_list))
    if not (is_list or pa.types.is_fixed_size_list(kind)) or not (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        raise ValueError(f"{path}: {column}: expected lists of numbers, got {kind}")
    if lists.null_count:
        row = start + int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{path}: {column}: row {row} is null")
    lengths = lists.value_lengths().to_numpy() if is_list else np.full(len(lists), kind.list_size)
    if dim is None:
        dim = int(lengths[0]) if len(lengths) else 0
    if dim == 0:
        raise ValueError(f"{path}: {column}: row {start} holds no numbers")
    bad = np.flatnonzero(lengths != dim)
    if len(bad):
        raise ValueError(
            f"{path}: {column}: row {start + int(bad[0])} has {lengths[bad[0]]} numbers,"
            f" the first row has {dim}"
        )
    values = lists.flatten()
    if values.null_count:
        place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{path}: {column}: row {start + place // dim} holds a null")
    flat: Array = values.to_numpy(zero_copy_only=False)
    return flat.reshape(-1, dim)
