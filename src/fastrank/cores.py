"""Count the cores that this process may use, by its affinity and the quotas of its cgroups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["usable_cores"]

_ESCAPED = re.compile(r"\\([0-7]{3})")  # escapes of characters such as spaces in a path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may keep busy, at least 1.

    A container with a limit of two CPUs sees all cores of its machine. With more than two threads,
    all threads would be stopped for a part of each tenth of a second. A limit of 2.5 CPUs counts as
    2 cores.

    Parameters
    ----------
    root : Path
        Root of ``proc`` and of the cgroups' mounts; tests use another one.

    Returns
    -------
    int
        The minimum of the affinity (`os.sched_getaffinity`) and the quotas, rounded down, of the
        process's cgroup and its ancestors: ``cpu.max`` in version 2, ``cpu.cfs_quota_us`` in
        version 1. Quotas that cannot be read are ignored.

    Examples
    --------
    >>> usable_cores() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0))
    try:
        return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))
    except (OSError, ValueError, IndexError):
        return cores


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota of each visible cgroup of this process."""
    own: dict[str, str] = {}  # paths of cgroups, by version
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            own["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            own["cgroup"] = path
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounted, place = (_unescaped(each) for each in before.split(" ")[3:5])
        kind, _, options = after.split(" ", 2)
        if kind not in own or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        top = root / place.lstrip("/")
        folder = top / _below(own[kind], mounted)
        for each in (folder, *folder.parents):
            quota = _quota(each, kind)
            if quota is not None:
                yield quota
            if each == top:
                break


def _below(path: str, mounted: str) -> str:
    """Return a cgroup's path below the mounted one; the mounted one itself if it is elsewhere."""
    within = mounted.rstrip("/") + "/"
    rest = path[len(within) :] if path.startswith(within) else ""
    return "" if ".." in rest.split("/") else rest


def _quota(folder: Path, kind: str) -> float | None:
    try:
        if kind == "cgroup2":
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max" means no quota
        return None


def _unescaped(path: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), path)
