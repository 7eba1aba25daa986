"""Long exclude and allow lists, biases, rules: stored once beside the log, named by content.

``filters/<hash>.parquet`` holds one list of ids, sorted and without repeats, since a filter is a
set; ``filters/<hash>.npy`` holds one float32 bias vector; ``filters/<id>.json`` holds `Rules`. A
file is complete or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fastrank.arraytypes import AnyArray, Float32Array
from fastrank.atomic import old_leftovers, replacing
from fastrank.ids import Ids, listed, text_array
from fastrank.lru import LRU
from fastrank.rules import Rules

__all__ = [
    "FOLDER",
    "FilterStore",
    "bias_id",
    "canonical",
    "filter_id",
    "remove_leftovers",
    "save",
    "size_of",
]

FOLDER = "filters"
_CACHE_BYTES = 64 << 20

# Ids (as a list of str, since one may be long), a bias, or rules.
Content: TypeAlias = AnyArray | list[str] | Rules


def canonical(name: str, ids: Ids) -> AnyArray | list[str]:
    """The ids of a list as a set: sorted, without repeats."""
    found = listed(name, ids)
    if len(found) == 0:
        return np.empty(0, np.int64)
    if isinstance(found, list):
        found = text_array(found)
    if found.dtype == object:  # one of the ids is long
        return sorted(set(found))
    different = np.unique(found)  # releases the GIL, unlike sorting a list
    return different if different.dtype.kind == "i" else different.tolist()


def size_of(values: Content) -> int:
    """Approximate size in bytes."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.nbytes
    if isinstance(values, Rules):
        return len(_text_of(values))
    return sum(map(sys.getsizeof, values))


def filter_id(ids: Ids) -> str:
    """Content hash of a list of ids; order and repeats do not matter.

    Examples
    --------
    >>> filter_id([3, 1, 2]) == filter_id([1, 2, 3, 3])
    True
    >>> filter_id([1]) == filter_id(["1"])
    False
    """
    return _hash_of_ids(canonical("ids", ids))


def bias_id(bias: npt.ArrayLike) -> str:
    """Content hash of a bias vector, as float32.

    Examples
    --------
    >>> bias_id([0.5, 1.0]) == bias_id([1.0, 0.5])
    False
    """
    values = np.ascontiguousarray(bias, np.dtype("<f4"))
    return hashlib.sha256(b"bias\0" + values.tobytes()).hexdigest()[:32]


def _hash_of_ids(ids: AnyArray | list[str]) -> str:
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "i":
        content = b"int64\0" + ids.astype("<i8").tobytes()
    else:
        content = b"str\0" + json.dumps(ids if isinstance(ids, list) else ids.tolist()).encode()
    return hashlib.sha256(content).hexdigest()[:32]


def _text_of(rules: Rules) -> str:
    return json.dumps(rules.to_dict(), sort_keys=True)


def save(log_directory: Path, name: str, values: Content) -> None:
    """Write ids, a bias (float32) or rules under their hash, unless they exist already.

    Raises
    ------
    OSError
        If the disk refuses; then no file of that name is left.
    """
    is_bias = isinstance(values, np.ndarray) and values.dtype == np.float32
    suffix = ".json" if isinstance(values, Rules) else ".npy" if is_bias else ".parquet"
    folder = log_directory / FOLDER
    file = folder / f"{name}{suffix}"
    if file.exists():
        return
    content = BytesIO()
    if isinstance(values, Rules):
        content.write(_text_of(values).encode())
    elif is_bias:
        np.save(content, values, allow_pickle=False)
    else:
        kind = pa.string() if isinstance(values, list) else pa.int64()
        pq.write_table(pa.table({"item_id": pa.array(values, kind)}), content)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(content.getbuffer())


def remove_leftovers(log_directory: Path) -> None:
    """Remove files that killed writers left unfinished."""
    for file, _ in old_leftovers(log_directory / FOLDER):
        with contextlib.suppress(OSError):
            file.unlink()


class FilterStore:
    """Reads lists, biases and rules by hash and checks them; keeps the latest 64 MB.

    `given` are rules of tables, which are in no file.
    """

    def __init__(self, given: Mapping[str, Rules] | None = None) -> None:
        self._given: Mapping[str, Rules] = {} if given is None else given
        self._cache = LRU[tuple[str, str], Any](_CACHE_BYTES)

    def ids(self, folder: Path | None, name: str) -> AnyArray:
        """The sorted ids of a list; ValueError if it is missing or does not match its name."""
        found: AnyArray = self._get(folder, name, ".parquet")
        return found

    def bias(self, folder: Path | None, name: str) -> Float32Array:
        """A bias vector, float32 (n,); ValueError as for `ids`."""
        found: Float32Array = self._get(folder, name, ".npy")
        return found

    def rules(self, folder: Path | None, name: str) -> Rules:
        """Rules by their id; ValueError as for `ids`."""
        if folder is None and name in self._given:
            return self._given[name]
        found: Rules = self._get(folder, name, ".json")
        return found

    def _get(self, folder: Path | None, name: str, suffix: str) -> Any:
        key = (str(folder), name + suffix)
        found = self._cache.get(key)
        if found is None:
            found = _read(folder, name, suffix)
            # A larger one is kept too: rows that name it follow one another.
            self._cache.put(key, found, min(size_of(found), _CACHE_BYTES))
        return found


def _ids_of(column: pa.ChunkedArray) -> AnyArray:
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if column.null_count or not (is_text or pa.types.is_integer(column.type)):
        raise ValueError("its ids are neither int64 nor str")
    if is_text and len(column):
        return text_array(column.to_pylist())
    return np.array(column.cast(pa.int64()).to_numpy()) if len(column) else np.empty(0, np.int64)


def _read(folder: Path | None, name: str, suffix: str) -> Content:
    if folder is None:
        raise ValueError(f"{FOLDER}/{name}{suffix} is not available: this is a table, not a file")
    if os.path.basename(name) != name or not name:
        raise ValueError(f"{name!r} is not the name of a filter")
    file = folder / FOLDER / f"{name}{suffix}"
    try:
        values, stated = _loaded(file)
    except FileNotFoundError:
        raise ValueError(f"{FOLDER}/{file.name} is missing") from None
    except Exception as error:  # a parser may raise anything for a foreign file
        raise ValueError(f"{FOLDER}/{file.name}: not readable: {error}") from None
    if stated != name:
        raise ValueError(f"{FOLDER}/{file.name} does not match its hash")
    return values


def _loaded(file: Path) -> tuple[Content, str]:
    """The content of a file, and the hash of the content."""
    if file.suffix == ".json":
        rules = Rules.from_dict(json.loads(file.read_bytes()))
        return rules, rules.id
    values: AnyArray
    if file.suffix == ".npy":
        values = np.load(file, allow_pickle=False)
        stated = bias_id(values) if values.dtype == np.float32 and values.ndim == 1 else ""
    else:
        values = _ids_of(pq.read_table(file, columns=["item_id"])["item_id"])
        stated = _hash_of_ids(values)
    values.flags.writeable = False
    return values, stated
