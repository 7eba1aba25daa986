"""Pack vectors as float32 panels, or as int8 codes stored beside the float32 vectors.

A panel is 16 items, dimension by dimension; ``ext/kernels.h`` describes both layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import Float32Array, IntArray

__all__ = [
    *("CODED_FROM", "META", "STORAGES", "Arrays", "Meta"),
    *("blocks", "code_facts", "expected", "kept_as", "pack", "quantised", "start_of"),
]

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
Meta: TypeAlias = dict[str, float]

STORAGES = ("float32", "int8")
# Numbers about the arrays that the kernels need, by storage: finite, not negative.
META = {
    "float32": ("max_norm",),
    "int8": ("max_norm", "code_error", "code_norm", "code_moment", "max_scale"),
}

# Catalogs with fewer items are stored as float32 panels under any storage: they fit a core's
# caches, where codes save less than scoring some items twice costs.
CODED_FROM = 16_384

_BLOCK_BYTES = 8 << 20  # of float32: about 10 ms, after which Python handles signals
_SAMPLE_ROWS = 4096
_DIMS_OF_A_GROUP = 4
_NO_CODE = 128  # code 0: codes are stored plus 128


def kept_as(storage: str, n_items: int) -> str:
    """Return the storage that a catalog of so many items gets if `storage` is asked for."""
    return "float32" if n_items < CODED_FROM else storage


def pack(
    storage: str, rows: npt.NDArray[Any], order: IntArray | None = None
) -> tuple[Arrays, Meta]:
    """Pack vectors (n, d), in this order of rows; return read-only arrays and their numbers.

    Casts to float32 block by block; a ValueError names the first row that is not finite then.
    """
    n_items, dim = rows.shape
    arrays = {
        name: _aligned(shape, dtype)
        for name, (shape, dtype) in expected(storage, n_items, dim).items()
    }
    if storage == "float32":
        max_square = 0.0
        for first, block in blocks(rows, order):
            bad, square = _native.pack(block, first, arrays["panels"])
            _refuse(rows, order, first, bad)
            max_square = max(max_square, square)
        meta = {"max_norm": float(np.sqrt(max_square))}
    else:
        arrays["columns"][:] = _columns(rows)
        extremes = np.zeros(4)
        for first, block in blocks(rows, order):
            made, bad, found = quantised(block, first, arrays["columns"])
            _refuse(rows, order, first, bad)
            for name, part in made.items():
                start = start_of(name, first)
                arrays[name][start : start + len(part)] = part
            extremes = np.maximum(extremes, found)
        meta = code_facts(extremes.tolist(), arrays["codes"], dim)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays, meta


def quantised(
    rows: Float32Array, first: int, columns: Float32Array
) -> tuple[Arrays, int, tuple[float, ...]]:
    """Quantise rows of whole panels; return codes, scales and vectors in the form of `expected`.

    Parameters
    ----------
    rows : ndarray of float32, shape (m, d)
    first : int
        The item of the first row, which begins a panel.
    columns : ndarray of float32, shape (2, d)

    Returns
    -------
    arrays : dict
        Unused lanes have codes and scales of 0.
    bad : int
        Flat index of the first element that is not finite; -1 if all are.
    extremes : tuple of float
        The largest squared norm, code error, code norm and scale.
    """
    made = {
        name: np.zeros(shape, dtype)
        for name, (shape, dtype) in expected("int8", *rows.shape).items()
        if name != "columns"
    }
    made["codes"][-1] = _NO_CODE
    bad, *extremes = _native.quantise(rows, first, columns, *made.values())
    return made, bad, tuple(extremes)


def start_of(name: str, first: int) -> int:
    """Return the index in an array of int8 storage of the panel that begins with an item."""
    return first // _native.LANES if name == "codes" else first


def code_facts(extremes: Sequence[float], codes: npt.NDArray[np.uint8], dim: int) -> Meta:
    """Combine results of `quantised` into the numbers about all codes that the kernels need."""
    square, error, norm, scale = extremes
    # Rounded up by one rounding error of float64, since they must be bounds.
    return {
        "max_norm": float(np.sqrt(square)),
        "code_error": float(error) * (1.0 + 1e-9),
        "code_norm": float(norm) * (1.0 + 1e-9),
        "code_moment": _moment(codes, dim),
        "max_scale": float(scale),
    }


def expected(storage: str, n_items: int, dim: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Return the shape and dtype of each array of a storage."""
    lanes = _native.LANES
    n_panels = -(-n_items // lanes)
    if storage == "float32":
        return {"panels": ((n_panels, dim, lanes), "<f4")}
    groups = -(-dim // _DIMS_OF_A_GROUP)
    return {
        "codes": ((n_panels, groups, lanes, _DIMS_OF_A_GROUP), "|u1"),
        "scales": ((n_panels * lanes,), "<f4"),
        "vectors": ((n_panels * lanes, groups * _DIMS_OF_A_GROUP), "<f4"),
        "columns": ((2, dim), "<f4"),  # center, unit
    }


def _moment(codes: npt.NDArray[np.uint8], dim: int) -> float:
    """Return an upper bound, to 1e-5, of the largest eigenvalue of the sum of code x code^T.

    The sum is exact, since float32 holds sums over blocks of 1,024 rows (127^2 * 1024 < 2^24). The
    last digits, which depend on LAPACK, are rounded away, since rankings depend on this number.
    """
    moments = np.zeros((dim, dim))
    for first in range(0, len(codes), 64):
        block = codes[first : first + 64].transpose(0, 2, 1, 3)
        rows = block.reshape(len(block) * 16, -1)[:, :dim].astype(np.float32) - _NO_CODE
        square = _square(rows)
        if first == 0:
            _check_square(rows, square)
        moments += square
    return float(np.float32(np.linalg.eigvalsh(moments)[-1] * (1.0 + 1e-5)))


def _square(rows: Float32Array) -> Float32Array:
    # Kernels for SVE and SME raise flags of false exceptions in unused lanes.
    with np.errstate(all="ignore"):
        return rows.T @ rows


def _check_square(rows: Float32Array, square: Float32Array) -> None:
    """Check a matrix product by its row sums, which are integers.

    Propensities rely on a bound computed from it, and some kernels of OpenBLAS are wrong on some
    CPUs; they are then wrong for all numbers.
    """
    sums = (rows * rows.sum(axis=1, keepdims=True, dtype=np.float64)).sum(axis=0)
    if not np.array_equal(square.sum(axis=1, dtype=np.float64), sums):
        raise RuntimeError(
            "NumPy's matrix product is wrong on this CPU, and int8 storage needs it: use another"
            " NumPy, or have its OpenBLAS take older kernels (OPENBLAS_CORETYPE)"
        )


def _aligned(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Return an array that begins on a page boundary."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    return room[start : start + size].view(dtype).reshape(shape)


def blocks(
    rows: npt.NDArray[Any], order: IntArray | None = None
) -> Iterator[tuple[int, Float32Array]]:
    """Yield blocks of whole panels of rows (n, d), as float32, with the first item of each."""
    lanes = _native.LANES
    step = max(1, _BLOCK_BYTES // (4 * rows.shape[1] * lanes)) * lanes  # whole panels
    for first in range(0, len(rows), step):
        taken = slice(first, first + step)
        block = rows[taken] if order is None else rows[order[taken]]
        with np.errstate(over="ignore"):
            yield first, np.ascontiguousarray(block, dtype=np.float32)


def _refuse(rows: npt.NDArray[Any], order: IntArray | None, first: int, bad: int) -> None:
    if bad >= 0:
        position, column = divmod(bad, rows.shape[1])
        row = first + position if order is None else int(order[first + position])
        raise ValueError(
            f"vectors: row {row}, column {column}: must be finite in float32, "
            f"got {rows[row, column]}"
        )


def _columns(rows: npt.NDArray[Any]) -> Float32Array:
    """Compute a centre of the rows and a unit for each column, (2, d), from a sample of rows.

    Codes cover the range of a row's largest coordinate. They are thus finest around the centre that
    makes rows shortest, and if columns have about the same size. Units are powers of two, so that
    division by them is exact.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        sample = rows[:: -(-len(rows) // _SAMPLE_ROWS)].astype(np.float32).astype(np.float64)
        sample = sample[np.isfinite(sample).all(axis=1)]
    dim = rows.shape[1]
    if not len(sample):
        return np.stack([np.zeros(dim), np.ones(dim)]).astype(np.float32)
    centers = [np.zeros(dim), np.median(sample, axis=0), sample.mean(axis=0)]
    found = []
    for center in centers:
        rest = sample - center.astype(np.float32)
        size = np.sqrt(np.median(rest**2, axis=0) + 1e-3 * (rest**2).mean(axis=0))
        usual = np.median(size[size > 0.0]) if size.any() else 1.0
        ratio = np.clip(np.where(size > 0.0, size, usual) / usual, 2.0**-4, 2.0**40)
        unit = 2.0 ** np.round(np.log2(ratio))
        found.append((np.square(np.abs(rest / unit).max(axis=1)).mean(), center, unit))
    _, center, unit = min(found, key=lambda one: one[0])
    return np.stack([center, unit]).astype(np.float32)
