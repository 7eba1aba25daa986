"""How many cores this process may keep busy: by its affinity, and by the quota of its cgroup."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["usable_cores"]

_ESCAPED = re.compile(r"\\([0-7]{3})")  # such as a space in a path


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that this process may keep busy, at least 1.

    A container with a limit of two CPUs sees all cores of its machine: threads beyond two would be
    stopped together for the rest of each tenth of a second. Of 2.5 CPUs, 2 cores.

    Parameters
    ----------
    root : Path
        Where ``proc`` and the mounts of cgroups are looked for; another one for tests.

    Returns
    -------
    int
        The least of the affinity (`os.sched_getaffinity`) and of the quotas, rounded down, of the
        process's cgroup and those above it: ``cpu.max`` of version 2, ``cpu.cfs_quota_us`` of
        version 1. What cannot be read limits nothing.

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
    """CPUs by each cgroup that this process is in, of those that are seen here."""
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
    """Where a cgroup is below the one that is mounted; that one itself if it is elsewhere."""
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
    except (OSError, ValueError, ZeroDivisionError):  # "max": none
        return None


def _unescaped(path: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), path)
