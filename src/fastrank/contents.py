"""Check the contents of a saved catalog's or model's arrays, for `verify=True`.

Hashes show that the arrays are as they were written. These checks show that what was written is
valid, since whoever can write files can also write matching hashes.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastrank import _native, packing
from fastrank.arraytypes import AnyArray, Positions

__all__ = ["check", "check_permutation", "panel_rows_of"]


_BLOCK_BYTES = 16 << 20


def check(manifest: Mapping[str, Any], arrays: Mapping[str, AnyArray]) -> None:
    """Read and check arrays whose shapes and dtypes are known to be right.

    Parameters
    ----------
    manifest : mapping
        As `store.read` returns it; errors name the file that it lists.
    arrays : mapping
        Arrays of a catalog, or of a model's users, by name.

    Raises
    ------
    ValueError
        If an array is not valid; the message names the file and the entry.
    """
    for name, array in arrays.items():
        try:
            _check_one(name, array, arrays, manifest)
        except ValueError as error:
            raise ValueError(f"damaged: {manifest['arrays'][name]['file']}: {error}") from None
    if "codes" in arrays:  # last, since they are compared with vectors checked above
        _check_codes(manifest, arrays)


def check_permutation(rows: Positions) -> None:
    """Raise a ValueError unless rows are a permutation of 0, ..., n - 1. O(n)."""
    _check_range(rows)
    there = np.zeros(len(rows), np.bool_)
    there[rows] = True
    if not there.all():
        raise ValueError(f"not a permutation: {int(there.argmin())} is missing")


def panel_rows_of(rows: Positions) -> Positions:
    """Return the lowest row of each panel."""
    return np.minimum.reduceat(rows, np.arange(0, len(rows), _native.LANES))


def _check_one(
    name: str, array: AnyArray, arrays: Mapping[str, AnyArray], manifest: Mapping[str, Any]
) -> None:
    match name:
        case "item_order":
            _check_order(array, arrays["item_ids"])
        case "user_order":
            _check_order(array, arrays["user_ids"])
        case "rows":
            check_permutation(array)
        case "panel_rows":
            wrong = np.flatnonzero(array != panel_rows_of(arrays["rows"]))
            if wrong.size:
                raise ValueError(f"entry {wrong[0]} is not the lowest row of its panel")
        case "title_text":
            _check_text(array)
        case "title_offsets":
            _check_offsets(array, arrays["title_text"])
        case "panels" | "vectors":
            _check_vectors(array, manifest["max_norm"])
        case "seen_offsets":
            _check_ascending(array, len(arrays["seen_items"]))
        case "seen_items":
            _check_seen(array, arrays["seen_offsets"], manifest["n_items"])
        case "user_vectors":
            _check_vectors(array, np.inf)
        case "bias":
            _check_finite(array)
            _check_bound(np.abs(array), "a bias", manifest["max_bias"])
        case "columns":
            _check_finite(array)
            _check_positive(array[1])
        case "scales":
            scales = array[: manifest["n_items"]]
            _check_finite(scales)
            _check_positive(scales)
            _check_bound(scales, "a scale", manifest["max_scale"])


def _check_range(rows: Positions) -> None:
    outside = np.flatnonzero((rows < 0) | (rows >= len(rows)))
    if outside.size:
        raise ValueError(
            f"not a permutation: entry {outside[0]} is {rows[outside[0]]}, not one of "
            f"{len(rows)} rows"
        )


def _check_order(order: Positions, ids: AnyArray) -> None:
    """Check that ids in this order ascend strictly, so that it is a permutation of unique ids."""
    _check_range(order)
    ordered = ids[order]
    wrong = np.flatnonzero(~(ordered[1:] > ordered[:-1]))
    if wrong.size:
        first, second = ordered[wrong[0] : wrong[0] + 2].tolist()
        raise ValueError(
            f"does not sort the ids: entry {wrong[0]} has {first!r}, the next has {second!r}"
        )


def _check_text(text: AnyArray) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for first, block in _blocks(text):
        try:
            decoder.decode(block.tobytes(), final=first + len(block) == len(text))
        except UnicodeDecodeError:
            raise ValueError(f"not UTF-8 text, after {first} bytes that are") from None


def _check_seen(items: AnyArray, offsets: Positions, n_items: int) -> None:
    """Check that positions ascend within each user's list."""
    beyond = np.flatnonzero(items >= n_items)
    if beyond.size:
        raise ValueError(f"entry {beyond[0]} is {items[beyond[0]]}, not one of {n_items} items")
    begins = np.zeros(len(items) + 1, np.bool_)
    begins[np.clip(offsets, 0, len(items))] = True
    wrong = np.flatnonzero((items[1:] <= items[:-1]) & ~begins[1:-1])
    if wrong.size:
        raise ValueError(f"entry {wrong[0] + 1} does not ascend within its list")


def _check_ascending(offsets: Positions, size: int) -> None:
    steps = np.diff(offsets, prepend=0)
    wrong = np.flatnonzero((steps < 0) | (offsets < 0) | (offsets > size))
    if wrong.size:
        raise ValueError(
            f"does not ascend from 0 to {size}: entry {wrong[0]} is {offsets[wrong[0]]}"
        )


def _check_offsets(offsets: Positions, text: AnyArray) -> None:
    size = len(text)
    _check_ascending(offsets, size)
    starts = text[np.minimum(offsets, size - 1)]
    wrong = np.flatnonzero((offsets < size) & (starts & 0xC0 == 0x80))
    if wrong.size:
        raise ValueError(f"entry {wrong[0]} is {offsets[wrong[0]]}, within a character")


def _check_vectors(vectors: AnyArray, longest: float) -> None:
    """Check rows (m, d), or panels (m, d, lanes)."""
    for first, block in _blocks(vectors):
        _check_finite(block, first)
        norms = np.sqrt(np.square(block, dtype=np.float64).sum(axis=1))
        _check_bound(norms, "a norm", longest)


def _check_codes(manifest: Mapping[str, Any], arrays: Mapping[str, AnyArray]) -> None:
    """Check that codes and the manifest's values are those of packing the vectors again. O(n d)."""
    n_items, dim = manifest["n_items"], manifest["dim"]
    extremes = np.zeros(4)
    for first, block in packing.blocks(arrays["vectors"][:n_items, :dim]):
        made, _, found = packing.quantised(block, first, arrays["columns"])
        extremes = np.maximum(extremes, found)
        for name, right in made.items():
            start = packing.start_of(name, first)
            kept = arrays[name][start : start + len(right)]
            wrong = np.argwhere(kept != right)
            if wrong.size:
                at = tuple(wrong[0].tolist())
                raise ValueError(
                    f"damaged: {manifest['arrays'][name]['file']}: entry"
                    f" {[at[0] + start, *at[1:]]} is {kept[at]:g}; packing gives {right[at]:g}"
                )
    for name, value in packing.code_facts(extremes.tolist(), arrays["codes"], dim).items():
        if not math.isclose(manifest[name], value, rel_tol=1e-6):
            raise ValueError(
                f"damaged: the manifest states a {name} of {manifest[name]:g}, but that of the"
                f" codes is {value:g}"
            )


def _blocks(array: AnyArray) -> Iterator[tuple[int, AnyArray]]:
    step = max(1, _BLOCK_BYTES // max(1, array[0].nbytes))
    for first in range(0, len(array), step):
        yield first, array[first : first + step]


def _check_finite(values: AnyArray, first: int = 0) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        index = bad[0].tolist()
        value = values[tuple(index)]
        raise ValueError(f"entry {[index[0] + first, *index[1:]]} is {value}: must be finite")


def _check_positive(values: AnyArray) -> None:
    bad = np.flatnonzero(~(values > 0.0))
    if bad.size:
        raise ValueError(f"entry {bad[0]} is {values[bad[0]]}: must be above 0")


def _check_bound(values: AnyArray, what: str, most: float) -> None:
    """Check that no value exceeds the manifest's bound, except by rounding."""
    found = float(values.max(initial=0.0))
    if found > most * (1.0 + 1e-6):
        raise ValueError(f"{what} is {found:g}, but the manifest states at most {most:g}")
