"""Types of arrays, by dtype and meaning."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "AnyArray",
    "Float32Array",
    "FloatArray",
    "Hashes",
    "IdArray",
    "IntArray",
    "Mask",
    "Positions",
    "Rows",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Float32Array: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
AnyArray: TypeAlias = npt.NDArray[Any]
Hashes: TypeAlias = npt.NDArray[np.uint64]  # and seeds

IdArray: TypeAlias = npt.NDArray[Any]  # int64 or fixed-width str
Positions: TypeAlias = npt.NDArray[np.int64]  # of items, as their catalog stores them; -1 for none
Rows: TypeAlias = npt.NDArray[np.int64]  # of a table: a log, a catalog as its caller gave it
