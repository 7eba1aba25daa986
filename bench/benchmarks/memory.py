"""What a call, or opening a catalog, adds to the memory of this process. Linux with glibc only."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

from .timing import Call

__all__ = ["extra_bytes", "private_growth", "rows_read", "use_small_pages"]

_KIB = 1024
_MIB = 1024 * _KIB
_PAGE = 4 * _KIB


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


def use_small_pages() -> None:
    """What this process maps from now on comes in pages of 4 KiB: `rows_read` counts these."""
    disable_huge_pages = 41  # PR_SET_THP_DISABLE
    if ctypes.CDLL(None).prctl(disable_huge_pages, 1, 0, 0, 0) != 0:
        raise NotImplementedError("this kernel does not let a process do without huge pages")


def rows_read(call: Call, name: str, n_rows: int, n_bytes: int) -> float:
    """How many rows of a mapped file a call reads, by the pages that the CPU marked as referred to.

    Several rows of a page are seen once. That is made up for on average, if rows are read anywhere:
    what none of m in n rows falls on is a share (1 - m / n)^r of the pages, of r rows each.

    Parameters
    ----------
    call : callable
    name : str
        How the name of the file begins, which holds nothing but the rows, all of them resident,
        and a header that no call reads.
    n_rows, n_bytes : int
        Rows, and what they all take in the file.
    """
    Path("/proc/self/clear_refs").write_text("1")
    # The CPU marks no page whose translation it still has; giving so many back makes it forget all.
    with mmap(-1, _MIB) as scratch:
        scratch.write(bytes(_MIB))
    call()
    referenced = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        field, *rest = line.split()
        if not field.endswith(":"):  # a mapping's first line ends with its file
            inside = len(rest) > 4 and Path(rest[4]).name.startswith(name)
        elif inside and field == "Referenced:":
            referenced += int(rest[0]) * _KIB
    share = min(1.0, referenced / n_bytes)  # the last page may be read for less than all of it
    return n_rows * (1.0 - math.pow(1.0 - share, n_bytes / _PAGE / n_rows))


def _field(file: str, name: str) -> int:
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * _KIB
    raise RuntimeError(f"/proc/self/{file} has no {name}")
