"""Machine code of score functions: compiled by Numba, and cached for later processes.

Numba is imported only if a function must be compiled; code from the cache is loaded by llvmlite.
The cache is in the user's own cache folder, with a file for each combination of function, argument
types, CPU, and versions of Numba and llvmlite.
"""

from __future__ import annotations

import logging
import math
import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fastrank.atomic import replacing

__all__ = ["cache_directory", "code_of", "dispatcher", "divisor", "exp", "log", "sigmoid"]

_LOG = logging.getLogger("fastrank.compiled")
# External functions that machine code may call: only mathematics, since a score function computes
# with numbers alone.
_MATHEMATICS = re.compile(
    r"(a?(cos|sin|tan)h?|atan2|exp|exp2|expm1|log|log2|log10|log1p|pow|sqrt|cbrt|hypot|fmod|ceil|"
    r"floor|trunc|round|rint|nearbyint|erf|erfc|copysign|ldexp|fma)f?|memset|memcpy|memmove"
)
_EXTERNAL = re.compile(r"^declare .*@\"?([^\"(]+)\"?\(", re.MULTILINE)


def exp(x: float) -> float:
    """Compute e to the x; within score functions in float32, to 2 ulp. 0 below -87.3.

    Examples
    --------
    >>> exp(0.0)
    1.0
    """
    return math.exp(x)


def log(x: float) -> float:
    """Compute the natural logarithm; within score functions in float32, to 2 ulp.

    It is -inf for 0, and NaN below.

    Examples
    --------
    >>> log(1.0), log(0.0)
    (0.0, -inf)
    """
    if x > 0.0:
        return math.log(x)
    return -math.inf if x == 0.0 else math.nan


def sigmoid(x: float) -> float:
    """Compute 1 / (1 + exp(-x)).

    Examples
    --------
    >>> sigmoid(0.0)
    0.5
    """
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0.0 else math.exp(x) / (1.0 + math.exp(x))


def divisor(x: Any) -> Any:
    """Check a divisor of // or %: integer 0 raises, where machine code would return 0."""
    return x


class Source(Protocol):
    """A score function, as compiling needs it."""

    text: str
    hash: str

    def as_float32(self) -> Callable[..., Any]:
        """Return the function with its numbers in float32."""


_lock = threading.RLock()
_addresses: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
_kept: list[Any] = []  # owners of code, which must live as long as the process


def code_of(score: Source, passed: tuple[tuple[str, str], ...]) -> int:
    """Return the address of a function's loop over items (`Function.run`, ext/kernels.h).

    passed: for each argument its source ("dot", "column" or "param") and its kind.

    Raises
    ------
    ValueError
        If Numba is not installed, or cannot compile the function.
    """
    key = score.hash, passed
    address = _addresses.get(key)
    if address is not None:
        return address
    with _lock:
        if key not in _addresses:
            _addresses[key] = _loaded(score, passed) or _made(score, passed)
        return _addresses[key]


def cache_directory() -> Path | None:
    """Return the cache's directory: ``$FASTRANK_CACHE_DIR``, or ``fastrank`` in the user's cache.

    None if others may write to it, since they could then run code in this process.
    """
    own = os.environ.get("FASTRANK_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = Path(own) if own else Path(base) / "fastrank"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError:
        return None
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _LOG.warning("others may write to %s: compiled functions are not cached", directory)
        return None
    return directory


def dispatcher(function: Callable[..., Any]) -> Any:
    """Return Numba's dispatcher of a function that score functions call."""
    return _numba().njit(error_model="numpy")(function)


# ---- Loading --------------------------------------------------------------------------------


def _label(score: Source, passed: tuple[tuple[str, str], ...]) -> bytes | None:
    """Return a file's first line, all that its code depends on; None if nothing can load code."""
    from importlib import metadata  # late, since it takes 10 ms that only functions need

    try:
        import llvmlite.binding as llvm

        versions = [f"{each} {metadata.version(each)}" for each in ("numba", "llvmlite")]
    except (ImportError, metadata.PackageNotFoundError):
        return None
    sources = Path(__file__), Path(__file__).with_name("scoring.py")
    own = _digest(b"".join(each.read_bytes() for each in sources)).hex()
    cpu = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    told = ["fastrank code 1", own, score.hash, repr(passed), *versions, cpu]
    return "; ".join(told).encode() + b"\n"


def _digest(content: bytes) -> bytes:
    import hashlib  # late: loading OpenSSL takes a tenth of `import fastrank`

    return hashlib.sha256(content).digest()


def _file(label: bytes) -> Path | None:
    directory = cache_directory()
    if directory is None:
        return None
    return directory / f"score-{_digest(label).hex()[:32]}.bin"


def _loaded(score: Source, passed: tuple[tuple[str, str], ...]) -> int | None:
    """Load code that an earlier process cached; None if there is none, or it is damaged."""
    label = _label(score, passed)
    file = None if label is None else _file(label)
    if label is None or file is None:
        return None
    try:
        found = file.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[len(label) : len(label) + 32], content[len(label) + 32 :]
    if not content.startswith(label) or _digest(code) != digest:
        _LOG.warning("%s is damaged and will be rebuilt", file)
        return None
    return _linked(code)


def _linked(code: bytes) -> int:
    """Link code into this process; return its address.

    The code is the name of its loop, a newline, and an object file.
    """
    import llvmlite.binding as llvm

    name, _, code = code.partition(b"\n")

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _kept.append(engine)
    address: int = engine.get_function_address(name.decode())
    return address


# ---- Compiling ------------------------------------------------------------------------------


def _numba() -> Any:
    try:
        import numba
    except ImportError as error:
        raise ModuleNotFoundError(
            f"score functions need Numba, which is not installed ({error}); expressions do not",
            name="numba",
        ) from None
    _register()
    return numba


def _made(score: Source, passed: tuple[tuple[str, str], ...]) -> int:
    numba = _numba()
    from numba.core import errors, types

    kinds = {"number": types.float32, "boolean": types.boolean}
    inner = dispatcher(score.as_float32())
    try:
        inner.compile(tuple(kinds[kind] for _, kind in passed))
        result = inner.nopython_signatures[0].return_type
    except MemoryError:
        raise
    except Exception as error:  # Numba's own errors, and Python's from inside it
        raise ValueError(f"score: {score.text}: {_words_of(error)}") from None
    if not isinstance(result, types.Number | types.Boolean) or isinstance(result, types.Complex):
        raise ValueError(f"score: {score.text}: returns {_type_words(result)}; expected a number")
    try:
        pointer = types.CPointer(types.float32)
        signature = types.void(types.CPointer(pointer), types.int64, types.int64, pointer)
        loop = numba.cfunc(signature)(_loop_of(inner, passed))
    except errors.NumbaError as error:
        raise ValueError(f"score: {score.text}: {_words_of(error)}") from None
    text = loop.inspect_llvm()
    called = {name for name in _EXTERNAL.findall(text) if not name.startswith("llvm.")}
    strange = sorted(name for name in called if not _MATHEMATICS.fullmatch(name))
    if strange:
        raise ValueError(
            f"score: {score.text}: calls {strange[0]}; a score function may only compute with"
            " numbers: it must not draw random numbers, keep lists or print"
        )
    _keep(score, passed, loop)
    _kept.append(loop)
    address: int = loop.address
    return address


def _loop_of(inner: Any, passed: tuple[tuple[str, str], ...]) -> Callable[..., Any]:
    """Make the loop over items, which turns exceptions into NaN, a score that the core refuses."""
    lines, arguments = ["def loop(context, first, count, scores):", " params = context[0]"], []
    columns = params = 0
    for source, kind in passed:
        if source == "dot":
            value = "scores[i]"
        elif source == "column":
            columns += 1
            lines.append(f" column{columns} = context[{columns}]")
            value = f"column{columns}[first + i]"
        else:
            lines.append(f" param{params} = params[{params}]")
            value = f"param{params}"
            params += 1
        arguments.append(f"{value} != 0" if kind == "boolean" else value)
    lines += [
        " for i in range(count):",
        "  try:",
        f"   scores[i] = inner({', '.join(arguments)})",
        "  except Exception:",
        "   scores[i] = nan",
    ]
    namespace: dict[str, Any] = {"inner": inner, "nan": float("nan")}
    exec("\n".join(lines), namespace)
    loop: Callable[..., Any] = namespace["loop"]
    return loop


def _keep(score: Source, passed: tuple[tuple[str, str], ...], loop: Any) -> None:
    """Cache code for later processes; if this fails, they compile it again."""
    label = _label(score, passed)
    file = None if label is None else _file(label)
    if label is None or file is None:
        return
    try:
        kind, (code, *_) = loop._library.serialize_using_object_code()[1:]
        if kind != "object":
            return
        content = loop.native_name.encode() + b"\n" + code
        with replacing(file) as temporary:
            temporary.write_bytes(label + _digest(content) + content)
    except Exception as error:  # Numba's internals differ from version to version
        _LOG.warning("the code of %s is not cached: %r", score.text, error)


def _type_words(kind: Any) -> str:
    from numba.core import types

    if isinstance(kind, types.Optional):
        return "a number or nothing"
    if isinstance(kind, types.UnicodeType | types.StringLiteral):
        return "a text"
    if isinstance(kind, types.BaseTuple):
        return "several values"
    return "nothing" if kind == types.none else str(kind)


def _words_of(error: Exception) -> str:
    """Pick the line of Numba's message that says what does not work, and where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in lines]
    if len(lines) > 1 and lines[0].startswith("Failed in"):
        lines = lines[1:]
    if "exception_match" in str(error):
        return (
            "Numba cannot compile it: it catches a single kind of exception; `except Exception`"
            " works"
        )
    for line in lines:
        if re.match(
            r"(Unknown attribute|No implementation|Cannot unify|Cannot determine|Untyped|"
            r"name '|Use of|Invalid use|NameError|.*not supported|.*unsupported)",
            line,
            re.I,
        ):
            return f"Numba cannot compile it: {line}"
    return f"Numba cannot compile it: {lines[0] if lines else type(error).__name__}"


_registered = False


def _register() -> None:
    """Register the functions of `fastrank.scoring` with Numba, once.

    They evaluate the core's polynomials (ext/) step by step. On a CPU with fused multiply-adds, the
    results are bit for bit those of expressions.
    """
    global _registered
    if _registered:
        return
    import numpy as np
    from llvmlite import ir
    from numba import extending, types

    f = np.float32

    def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
        made: Callable[..., Any] = extending.register_jitable(inline="always")(function)
        return made

    def bits(kind: Any, native: Any, argument: Any) -> Any:
        def cast(_: Any, x: Any) -> Any:
            def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
                return builder.bitcast(args[0], native)

            return kind(argument), code

        return extending.intrinsic(cast)

    def multiply_add(_: Any, x: Any, y: Any, z: Any) -> Any:
        def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
            return builder.fma(*args)

        return types.float32(types.float32, types.float32, types.float32), code

    fma = extending.intrinsic(multiply_add)
    as_int = bits(types.int32, ir.IntType(32), types.float32)
    as_float = bits(types.float32, ir.FloatType(), types.int32)
    shift, low = np.int32(23), np.int32(0x7FFFFF)
    magic = f(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
    infinity, not_a_number = f(np.inf), f(np.nan)

    @inlined
    def exp32(x: Any) -> Any:
        shifted = fma(x, f(1.442695), magic)
        k = shifted - magic
        r = fma(k, f(-0.6933594), x)
        r = fma(k, f(0.00021219444), r)
        p = fma(f(0.0013926184), r, f(0.008363179))
        p = fma(p, r, f(0.041666556))
        p = fma(p, r, f(0.16666576))
        p = fma(p, r, f(0.5))
        p = fma(p, r * r, r + f(1.0))
        p = as_float(as_int(p) + (as_int(shifted) << shift))
        p = f(0.0) if x < f(-87.3) else p
        return infinity if x > f(88.3) else p

    @inlined
    def log32(x: Any) -> Any:
        scaled = x * f(8388608.0) if x < f(1.1754944e-38) else x
        word = as_int(scaled)
        k = f(word >> shift) - (f(150.0) if x < f(1.1754944e-38) else f(127.0))
        m = as_float((word & low) | np.int32(0x3F800000))
        large = m > f(1.4142135)
        k = k + f(1.0) if large else k
        r = (m * f(0.5) if large else m) - f(1.0)
        r2 = r * r
        p = fma(f(7.0376836292e-2), r, f(-1.1514610310e-1))
        p = fma(p, r, f(1.1676998740e-1))
        p = fma(p, r, f(-1.2420140846e-1))
        p = fma(p, r, f(1.4249322787e-1))
        p = fma(p, r, f(-1.6668057665e-1))
        p = fma(p, r, f(2.0000714765e-1))
        p = fma(p, r, f(-2.4999993993e-1))
        p = fma(p, r, f(3.3333331174e-1))
        y = p * r * r2
        y = fma(k, f(-2.12194440e-4), y)
        y = fma(r2, f(-0.5), y)
        y = fma(k, f(0.693359375), r + y)
        y = x if x > f(3.4028235e38) else y
        other = -infinity if x == f(0.0) else not_a_number
        return y if x > f(0.0) else other

    @inlined
    def sigmoid32(x: Any) -> Any:
        return f(1.0) / (f(1.0) + exp32(-x))

    for function, body in (
        (exp, exp32),
        (log, log32),
        (sigmoid, sigmoid32),
    ):
        _overload(extending, types, function, body)

    def checked(x: Any) -> Any:
        def itself(x: Any) -> Any:
            return x

        def nonzero(x: Any) -> Any:
            if x == 0:
                raise ZeroDivisionError
            return x

        return nonzero if isinstance(x, types.Integer | types.Boolean) else itself

    extending.overload(divisor)(checked)
    _registered = True


def _overload(extending: Any, types: Any, function: Any, body: Any) -> None:
    def narrowed(x: Any) -> Any:
        return body(types.float32(x))

    def chosen(x: Any) -> Any:
        is_real = isinstance(x, types.Number | types.Boolean) and not isinstance(x, types.Complex)
        return narrowed if is_real else None

    extending.overload(function, inline="always")(chosen)
