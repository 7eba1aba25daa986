"""Checks on what callers pass: each returns the value as the core wants it, or says why not.

Every error is a ValueError that names the argument, and the row and value where there is one.
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


# Of a bias, in magnitude: beyond it scores would leave the float32 range for usual queries, too.
MAX_BIAS = 1e37

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_NAMED_COLUMNS = 5  # of a table, in an error
_LONGEST_WORD = 100  # characters of one that may be misspelt
_LOOKED_AT = 100  # rows, to see what a column of objects is


def shown(value: object) -> str:
    """The repr of a value, cut where it is long: a stranger's may be of any length."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "a value"


def nearest(word: object, known: Iterable[str]) -> str:
    """What an error adds to say which known word is near; nothing where none is.

    Examples
    --------
    >>> nearest("temprature", ["temperature", "head"]), nearest("magic", ["uniform"])
    (' (nearest: temperature)', '')
    """
    if not isinstance(word, str) or len(word) > _LONGEST_WORD:  # difflib's time is quadratic
        return ""
    from difflib import get_close_matches  # which only those who err should wait for

    near = get_close_matches(word, list(known), 1)
    return f" (nearest: {near[0]})" if near else ""


def as_column(
    name: str, values: Any, expected: str, *, ordered: bool = True
) -> list[Any] | tuple[Any, ...] | npt.NDArray[Any]:
    """What was passed for one value a row: a list, a tuple, or an array of rows.

    Columns of other libraries (pandas, polars, pyarrow, torch) give their values. Whatever else
    can be iterated is refused: a table and a mapping would give their names, a text its letters,
    an iterator nothing when it is read again. A set has no order, and is taken only where order
    does not matter.
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
                f" got {shown(values)}; pass a list, in the order that is meant"
            )
        return list(values)
    raise ValueError(f"{name}: expected {expected}, got {shown(values)}; pass a list")


def _columns_of(values: Any) -> str | None:
    """The names of a table's columns; None for what is no table."""
    if isinstance(values, np.ndarray):
        names = values.dtype.names
    else:
        # Of pyarrow's tables `columns` are the values.
        own = [each for each in ("column_names", "columns") if hasattr(type(values), each)]
        names = getattr(values, own[0]) if own else None
    if names is None:
        return None
    listed = [str(each) for each in names]
    more = ", ..." if len(listed) > _NAMED_COLUMNS else ""
    return ", ".join(listed[:_NAMED_COLUMNS]) + more


def _own_list(name: str, values: Any) -> list[Any] | None:
    """The values of a column whose array would be another: None for any other.

    polars makes text as wide as the longest, without a NUL at its end; of integers some of which
    are missing polars, pyarrow and pandas make floats.
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
    except Exception as error:  # any error of its own library
        raise ValueError(f"{name}: not a column: {_first_line(error)}") from None
    return None


def _as_array(name: str, values: Any) -> npt.NDArray[Any]:
    """``np.asarray``, for arrays of every library; a mask is refused, a gradient left behind."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(
            f"{name}: masked arrays are not taken: the mask would be lost; pass what it leaves,"
            " by .compressed()"
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
            return np.asarray(values.float())  # of bfloat16, which NumPy lacks
    except MemoryError:
        raise
    except Exception as error:  # its own library's, whatever that raises
        raise ValueError(f"{name}: not an array: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def as_real(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """An array of real numbers, not yet cast; bool, complex, object and text are refused."""
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
    """Before NumPy makes texts of all values, each as wide as the longest one."""
    if not isinstance(values, list | tuple):
        return
    try:
        math.fsum(values)  # the quickest way to see that they are numbers
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
    """Which row is longer or shorter than the first one; None if none is."""
    try:
        lengths = [len(row) for row in values]
    except TypeError:
        return None
    for row, length in enumerate(lengths):
        if length != lengths[0]:
            return f"row {row}: expected {lengths[0]} numbers, as row 0 has, got {length}"
    return None


def _not_numbers(name: str, values: Any, array: npt.NDArray[Any]) -> str:
    """Why an array of objects is not one of numbers."""
    if array.ndim == 0:
        return f"expected an array of numbers, got {shown(values)}"
    is_frame = array.ndim == 2 and array.shape[1] == 1  # or a table of one column
    column = array[:, 0] if is_frame else array
    if column.ndim == 1 and any(map(_is_vector, column[:_LOOKED_AT])):
        if (row := _without_vector(column)) is not None:
            return f"row {row}: expected a vector, got {shown(column[row])}"
        whole = f"np.asarray({name})[:, 0]" if is_frame else name
        if not is_frame and not isinstance(values, np.ndarray | list | tuple):
            whole = f"np.asarray({name})"  # not all columns are sequences to NumPy
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
    """The first row of a column of vectors that has none."""
    return next((row for row, value in enumerate(column) if not _is_vector(value)), None)


def _place(where: Sequence[int]) -> str:
    if len(where) == 2:
        return f"row {where[0]}, column {where[1]}"
    return "index " + ", ".join(str(i) for i in where)


def as_float32(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Float32Array:
    """A C-contiguous float32 array of this shape, finite."""
    array, cast = _cast(name, values, shape)
    if not np.isfinite(cast).all():
        _refuse(name, ~np.isfinite(cast), "must be finite in float32", array)
    return cast


def as_bias(
    name: str, values: npt.ArrayLike, shape: tuple[int, ...], copy: bool = False
) -> Float32Array:
    """As `as_float32`, and of at most `MAX_BIAS` in magnitude; with `copy` nobody can change it."""
    array, cast = _cast(name, values, shape)
    if (
        copy
        and not isinstance(values, list)
        and np.may_share_memory(cast, np.asarray(values))
        and not _is_fixed(cast)
    ):
        cast = cast.copy()
    # False where one is NaN, too.
    if cast.size and not (cast.max() <= MAX_BIAS and cast.min() >= -MAX_BIAS):
        finite = np.isfinite(cast)
        if not finite.all():
            _refuse(name, ~finite, "must be finite in float32", array)
        why = f"scores could pass the float32 range, expected at most {MAX_BIAS:g} in magnitude"
        _refuse(name, np.abs(cast) > MAX_BIAS, why, array)
    return cast


def _is_fixed(array: Any) -> bool:
    """Whether an array, and all that it is a view of, is read-only."""
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
        raise ValueError(f"{name}: expected an integer, got {shown(value)}") from None
    if number < low:
        raise ValueError(f"{name}: must be at least {low}, got {shown(number)}")
    return number


def as_seed(name: str, value: object) -> int:
    """An integer in [0, 2**64)."""
    seed = as_count(name, value, low=0)
    if seed >= 2**64:
        raise ValueError(f"{name}: must be below 2**64, got {shown(seed)}")
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
