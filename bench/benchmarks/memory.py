"""What a call, or opening a catalog, adds to the memory of this process. Linux with glibc only."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from .timing import Call

__all__ = ["extra_bytes", "private_growth"]

_KIB = 1024
_MIB = 1024 * _KIB


def extra_bytes(call: Call) -> int:
    """How far one call raises the resident size of the process above what it was, in bytes.

    The kernel's own high-water mark, so that what the call frees again is counted. The call is
    made before, so that code, tables and catalog pages are resident.
    """
    for _ in range(2):  # the second time malloc knows the size and keeps what it was given back
        if _raised(_scratch) < 7 * _MIB:
            raise AssertionError("the high-water mark misses a scratch of 8 MiB")
    call()
    return _raised(call)


def _scratch() -> None:
    _ = b"x" * (8 * _MIB)


def _raised(call: Call) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # else a scratch is hidden in memory freed, but not returned
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to the present size
    before = _field("status", "VmRSS")
    call()
    return max(0, _field("status", "VmHWM") - before)


def private_growth(make: Callable[[], object]) -> int:
    """Memory that this process alone holds for what `make` returns: mapped files are not in it."""
    make()  # whatever is loaded on the first use is not counted
    before = _field("smaps_rollup", "Anonymous")
    kept = make()
    grown = _field("smaps_rollup", "Anonymous") - before
    del kept
    return max(0, grown)


def _field(file: str, name: str) -> int:
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * _KIB
    raise RuntimeError(f"/proc/self/{file} has no {name}")
