"""Checks on what callers hand in: each returns the value as the core wants it, or says why not.

Every error is a ValueError that names the argument, and the row and value where there is one.
"""

from __future__ import annotations

import operator
import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "as_count",
    "as_finite",
    "as_float32",
    "as_real",
    "as_seed",
    "draw_seed",
    "draw_seeds",
    "new_request_id",
]

Float32Array: TypeAlias = npt.NDArray[np.float32]

# JSON readers keep integers exact up to 2**53, so drawn seeds stay below it.
_DRAWN_SEED_BITS = 53


def as_real(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """An array of real numbers, not yet cast; bool, complex, object and text are refused."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name}: masked arrays are not taken: the mask would be lost")
    try:
        array = np.asarray(values)
    except ValueError as error:  # ragged nesting
        raise ValueError(f"{name}: not an array of numbers ({error})") from None
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array


def as_float32(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Float32Array:
    """A C-contiguous float32 array of this shape, finite."""
    array = as_real(name, values)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(cast).all():
        where = np.argwhere(~np.isfinite(cast))[0]
        place = "index " + ", ".join(str(i) for i in where)
        if array.ndim == 2:
            place = f"row {where[0]}, column {where[1]}"
        value = array[tuple(where)]
        raise ValueError(f"{name}: {place}: must be finite in float32, got {value}")
    return cast


def as_finite(name: str, values: npt.ArrayLike, shape: tuple[int]) -> npt.NDArray[np.float64]:
    """A float64 array of this shape, finite."""
    array = as_real(name, values)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    cast = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(cast))
    if bad.size:
        raise ValueError(f"{name}: row {bad[0]}: must be finite, got {array[bad[0]]}")
    return cast


def as_count(name: str, value: object, low: int = 1) -> int:
    """An integer of at least `low`."""
    try:
        if type(value) is int:  # the usual case, checked first
            number = value
        elif isinstance(value, bool | np.bool_):
            raise TypeError
        else:
            number = operator.index(value)  # type: ignore[arg-type]  # it refuses what it cannot take
    except TypeError:
        raise ValueError(f"{name}: expected an integer, got {value!r}") from None
    if number < low:
        raise ValueError(f"{name}: must be at least {low}, got {number}")
    return number


def as_seed(name: str, value: object) -> int:
    """An integer in [0, 2**64)."""
    seed = as_count(name, value, low=0)
    if seed >= 2**64:
        raise ValueError(f"{name}: must be below 2**64, got {seed}")
    return seed


def draw_seed() -> int:
    """A seed below 2**53 from the operating system: no state, so none shared after a fork."""
    return int.from_bytes(os.urandom(7), "little") >> (56 - _DRAWN_SEED_BITS)


def draw_seeds(count: int) -> list[int]:
    """Different seeds: users who share one would share their noise."""
    seeds: dict[int, None] = {}
    while len(seeds) < count:
        seeds[draw_seed()] = None
    return list(seeds)


def new_request_id() -> str:
    """A random UUID (version 4), in half the time of `uuid.uuid4`."""
    text = os.urandom(16).hex()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"
