"""Check arguments: each function returns the value in the form that the core needs, or raises.

Every error is a ValueError that names the argument, and the row and the value if there is one.
"""

from __future__ import annotations

import math
import operator
import os
import reprlib
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence, Set, ValuesView
from numbers import Number, Real
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, Mask

__all__ = [
    "MAX_BIAS",
    "as_bias",
    "as_column",
    "as_count",
    "as_finite",
    "as_float32",
    "as_real",
    "as_seed",
    "draw_seed",
    "draw_seeds",
    "nearest",
    "new_request_id",
    "shown",
]


# JSON readers keep integers exact up to 2**53, so drawn seeds stay below it.
_DRAWN_SEED_BITS = 53


# Largest magnitude of a bias: beyond it, scores would leave the float32 range for normal queries.
MAX_BIAS = 1e37

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_NAMED_COLUMNS = 5  # columns of a table that an error lists
_LONGEST_WORD = 100  # characters of a word for which a similar one is searched
_LOOKED_AT = 100  # rows of a column of objects that are inspected


def shown(value: object) -> str:
    """Return the repr of a value, cut if it is long, since values may come from anybody."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "a value"


def nearest(word: object, known: Iterable[str]) -> str:
    """Return a hint at the most similar known word, for errors; empty if none is similar.

    Examples
    --------
    >>> nearest("temprature", ["temperature", "head"]), nearest("magic", ["uniform"])
    (' (nearest: temperature)', '')
    """
    if not isinstance(word, str) or len(word) > _LONGEST_WORD:  # difflib's time is quadratic
        return ""
    from difflib import get_close_matches  # late: only errors need it

    near = get_close_matches(word, list(known), 1)
    return f" (nearest: {near[0]})" if near else ""


def as_column(
    name: str, values: Any, expected: str, *, ordered: bool = True
) -> list[Any] | tuple[Any, ...] | npt.NDArray[Any]:
    """Return an argument of one value per row as a list, a tuple or an array.

    Columns of other libraries (pandas, polars, pyarrow, torch) give their values. Other iterables
    are refused: a table or a mapping would yield its names, a text its letters, and an iterator
    nothing the second time. A set is accepted only if order does not matter.
    """
    kind = type(values)
    if kind is list or kind is tuple:
        return values  # type: ignore[no-any-return]
    if kind is np.ndarray and values.ndim and values.dtype.names is None:
        return values  # type: ignore[no-any-return]
    named = _columns_of(values)
    if named is not None:
        raise ValueError(
            f"{name}: expected {expected}, not a table: got a {kind.__name__} of columns {named};"
            " pass one of them"
        )
    if isinstance(values, Mapping):
        raise ValueError(
            f"{name}: expected {expected}, not a mapping: got a {kind.__name__}; pass a list of"
            " its keys, or of its values"
        )
    if isinstance(values, Iterator):
        raise ValueError(
            f"{name}: expected {expected}, got a {kind.__name__}, which can be read only once;"
            " pass a list of it"
        )
    if isinstance(values, str | bytes | bytearray | memoryview | np.generic | Number):
        raise ValueError(
            f"{name}: expected {expected}, got {shown(values)}, a single {kind.__name__}; pass a"
            " list of one"
        )
    if hasattr(kind, "__array__"):
        items = _own_list(name, values)
        if items is not None:
            return items
        array = _as_array(name, values)
        if array.ndim:
            return array
    elif isinstance(values, Sequence | KeysView | ValuesView):  # a dict keeps its order
        return list(values)
    elif isinstance(values, Set):
        if ordered:
            raise ValueError(
                f"{name}: expected {expected} in order, which a {kind.__name__} does not have:"
                f" got {shown(values)}; pass a list in the intended order"
            )
        return list(values)
    raise ValueError(f"{name}: expected {expected}, got {shown(values)}; pass a list")


def _columns_of(values: Any) -> str | None:
    """List the names of a table's columns; None if the value is not a table."""
    if isinstance(values, np.ndarray):
        names = values.dtype.names
    else:
        # In pyarrow's tables, `columns` holds the values.
        own = [each for each in ("column_names", "columns") if hasattr(type(values), each)]
        names = getattr(values, own[0]) if own else None
    if names is None:
        return None
    listed = [str(each) for each in names]
    more = ", ..." if len(listed) > _NAMED_COLUMNS else ""
    return ", ".join(listed[:_NAMED_COLUMNS]) + more


def _own_list(name: str, values: Any) -> list[Any] | None:
    """Return a column's values as a list if conversion to an array would change them, else None.

    polars makes text as wide as the longest, and drops a NUL at its end. polars, pyarrow and pandas
    turn integers with missing values into floats.
    """
    kind, dtype = type(values), getattr(values, "dtype", None)
    try:
        if hasattr(kind, "null_count"):  # polars' and pyarrow's
            missing = values.null_count() if callable(values.null_count) else values.null_count
            if missing or str(dtype) in ("String", "Utf8"):
                return list((values.to_pylist if hasattr(kind, "to_pylist") else values.to_list)())
        elif hasattr(dtype, "na_value") and hasattr(kind, "isna") and values.isna().any():
            return list(values.tolist())  # pandas'
    except MemoryError:
        raise
    except Exception as error:  # from the column's library
        raise ValueError(f"{name}: not a column: {_first_line(error)}") from None
    return None


def _as_array(name: str, values: Any) -> npt.NDArray[Any]:
    """Do ``np.asarray`` for arrays of any library; refuse masks, and drop gradients."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(
            f"{name}: expected no masked array, since its mask would be lost; pass"
            " .compressed(), the values that it leaves"
        )
    if type(values) is np.ndarray:
        return values
    is_tensor = hasattr(type(values), "detach")  # torch's
    try:
        if is_tensor:
            values = values.detach().cpu()
        try:
            return np.asarray(values)
        except TypeError:
            if not is_tensor:
                raise
            return np.asarray(values.float())  # NumPy has no bfloat16
    except MemoryError:
        raise
    except Exception as error:  # from the array's library
        raise ValueError(f"{name}: not an array: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def as_real(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return an array of real numbers, not cast; refuse bool, complex, object and text."""
    if isinstance(values, np.ndarray) or hasattr(type(values), "__array__"):
        array = _as_array(name, values)
    else:
        _refuse_text(name, values)
        try:
            array = np.asarray(values)
        except MemoryError:
            raise
        except Exception as error:
            why = _ragged(values) or f"not an array of numbers ({_first_line(error)})"
            raise ValueError(f"{name}: {why}") from None
    if array.dtype.kind == "O":
        raise ValueError(f"{name}: {_not_numbers(name, values, array)}")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array


def _refuse_text(name: str, values: Any, at: tuple[int, ...] = ()) -> None:
    """Refuse text before NumPy turns all values into text as wide as the longest."""
    if not isinstance(values, list | tuple):
        return
    try:
        math.fsum(values)  # the fastest check that all are numbers
    except (TypeError, ValueError, OverflowError):
        for i, value in enumerate(values):
            if isinstance(value, str | bytes):
                where = _place((*at, i))
                raise ValueError(
                    f"{name}: expected real numbers, got {shown(value)} at {where}"
                ) from None
            if len(at) < 2:
                _refuse_text(name, value, (*at, i))


def _ragged(values: Any) -> str | None:
    """Describe the first row whose length differs from row 0; None if there is none."""
    try:
        lengths = [len(row) for row in values]
    except TypeError:
        return None
    for row, length in enumerate(lengths):
        if length != lengths[0]:
            return f"row {row}: expected {lengths[0]} numbers, as in row 0, got {length}"
    return None


def _not_numbers(name: str, values: Any, array: npt.NDArray[Any]) -> str:
    """Say why an array of objects is not an array of numbers."""
    if array.ndim == 0:
        return f"expected an array of numbers, got {shown(values)}"
    is_frame = array.ndim == 2 and array.shape[1] == 1  # a table of one column
    column = array[:, 0] if is_frame else array
    if column.ndim == 1 and any(map(_is_vector, column[:_LOOKED_AT])):
        if (row := _without_vector(column)) is not None:
            return f"row {row}: expected a vector, got {shown(column[row])}"
        whole = f"np.asarray({name})[:, 0]" if is_frame else name
        if not is_frame and not isinstance(values, np.ndarray | list | tuple):
            whole = f"np.asarray({name})"  # NumPy does not treat all columns as sequences
        hint = f"np.stack({whole}) makes one array of it"
        return _ragged(column) or (
            f"expected real numbers, got a column of vectors, which are objects to NumPy; {hint}"
        )
    for where, value in np.ndenumerate(array):
        if isinstance(value, bool) or not isinstance(value, Real):
            hint = ""
            if isinstance(value, str) and value.lstrip().startswith("["):
                hint = f"; if these are vectors as JSON, np.stack([*map(json.loads, {name})])"
            return f"expected real numbers, got {shown(value)} at {_place(where)}{hint}"
    return f"expected real numbers, got dtype object; {name}.astype(float) makes numbers of it"


def _is_vector(value: Any) -> bool:
    return isinstance(value, list | tuple) or (
        hasattr(type(value), "__array__") and np.ndim(value) == 1
    )


def _without_vector(column: npt.NDArray[Any]) -> int | None:
    """Find the first row without a vector in a column of vectors; None if there is none."""
    return next((row for row, value in enumerate(column) if not _is_vector(value)), None)


def _place(where: Sequence[int]) -> str:
    if len(where) == 2:
        return f"row {where[0]}, column {where[1]}"
    return "index " + ", ".join(str(i) for i in where)


def as_float32(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Float32Array:
    """Return a finite, C-contiguous float32 array of this shape."""
    array, cast = _cast(name, values, shape)
    if not np.isfinite(cast).all():
        _refuse(name, ~np.isfinite(cast), "must be finite in float32", array)
    return cast


def as_bias(
    name: str, values: npt.ArrayLike, shape: tuple[int, ...], copy: bool = False
) -> Float32Array:
    """Do as `as_float32`, with magnitudes up to `MAX_BIAS`; with `copy`, return a private copy."""
    array, cast = _cast(name, values, shape)
    if (
        copy
        and not isinstance(values, list)
        and np.may_share_memory(cast, np.asarray(values))
        and not _is_fixed(cast)
    ):
        cast = cast.copy()
    # False also if a value is NaN.
    if cast.size and not (cast.max() <= MAX_BIAS and cast.min() >= -MAX_BIAS):
        finite = np.isfinite(cast)
        if not finite.all():
            _refuse(name, ~finite, "must be finite in float32", array)
        why = f"scores could leave the float32 range: expected at most {MAX_BIAS:g} in magnitude"
        _refuse(name, np.abs(cast) > MAX_BIAS, why, array)
    return cast


def _is_fixed(array: Any) -> bool:
    """Say whether an array, and every array that it is a view of, is read-only."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None


def _cast(
    name: str, values: npt.ArrayLike, shape: tuple[int, ...]
) -> tuple[npt.NDArray[Any], Float32Array]:
    array = as_real(name, values)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=np.float32)
    return array, cast if cast.flags.aligned else cast.copy()


def _refuse(name: str, bad: Mask, why: str, array: npt.NDArray[Any]) -> NoReturn:
    where = tuple(np.argwhere(bad)[0].tolist())
    raise ValueError(f"{name}: {_place(where)}: {why}, got {array[where]}")


def as_finite(name: str, values: npt.ArrayLike, shape: tuple[int]) -> FloatArray:
    """Return a finite float64 array of this shape."""
    array = as_real(name, values)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    cast = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(cast))
    if bad.size:
        raise ValueError(f"{name}: row {bad[0]}: must be finite, got {array[bad[0]]}")
    return cast


def as_count(name: str, value: object, low: int = 1) -> int:
    """Return an integer of at least `low`."""
    try:
        if type(value) is int:  # the usual case, checked first
            number = value
        elif isinstance(value, bool | np.bool_):
            raise TypeError
        else:
            number = operator.index(value)  # type: ignore[arg-type]  # it raises for other types
    except TypeError:
        raise ValueError(f"{name}: expected an integer, got {shown(value)}") from None
    if number < low:
        raise ValueError(f"{name}: must be at least {low}, got {shown(number)}")
    return number


def as_seed(name: str, value: object) -> int:
    """Return an integer in [0, 2**64)."""
    seed = as_count(name, value, low=0)
    if seed >= 2**64:
        raise ValueError(f"{name}: must be below 2**64, got {shown(seed)}")
    return seed


def draw_seed() -> int:
    """Draw a seed below 2**53 from the operating system: forked processes share no state."""
    return int.from_bytes(os.urandom(7), "little") >> (56 - _DRAWN_SEED_BITS)


def draw_seeds(count: int) -> list[int]:
    """Draw different seeds: users with the same seed would share their noise."""
    seeds: dict[int, None] = {}
    while len(seeds) < count:
        seeds[draw_seed()] = None
    return list(seeds)


def new_request_id() -> str:
    """Draw a random UUID (version 4), in half the time of `uuid.uuid4`."""
    text = os.urandom(16).hex()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"
