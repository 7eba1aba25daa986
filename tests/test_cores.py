"""How many cores there are for this process: machines made of files, as Linux shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrank.cores import usable_cores

V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def machine(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    own = root / "proc" / "self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text(cgroup)
    (own / "mountinfo").write_text(mounts)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


UNIFIED = "25 18 0:22 {root} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
OLD = "30 25 0:26 {root} /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "31 25 0:27 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"
TOP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "cores"),
    [
        # A container of its own namespace.
        ("0::/\n", UNIFIED.format(root="/"), {f"{TOP}/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", UNIFIED.format(root="/"), {f"{TOP}/cpu.max": "350000 100000\n"}, 3),
        ("0::/\n", UNIFIED.format(root="/"), {f"{TOP}/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", UNIFIED.format(root="/"), {f"{TOP}/cpu.max": "max 100000\n"}, 8),
        ("0::/\n", UNIFIED.format(root="/"), {}, 8),
        # A limit of a cgroup above, as a systemd slice has it, counts as well.
        (
            "0::/a.slice/b.service\n",
            UNIFIED.format(root="/"),
            {
                f"{TOP}/a.slice/cpu.max": "300000 100000",
                f"{TOP}/a.slice/b.service/cpu.max": "max 100000",
            },
            3,
        ),
        # One that is mounted from elsewhere, and one that is seen from within it.
        (
            "0::/docker/7\n",
            UNIFIED.format(root="/docker/7"),
            {f"{TOP}/cpu.max": "200000 100000"},
            2,
        ),
        ("0::/../7\n", UNIFIED.format(root="/"), {f"{TOP}/cpu.max": "200000 100000"}, 2),
        # Version 1, alone and beside version 2.
        (
            "4:memory:/m\n3:cpu,cpuacct:/docker/7\n0::/\n",
            MEMORY + OLD.format(root="/docker/7") + UNIFIED.format(root="/"),
            {f"{TOP}/cpu/{V1[0]}": "400000\n", f"{TOP}/cpu/{V1[1]}": "100000\n"},
            4,
        ),
        (
            "3:cpu,cpuacct:/\n",
            OLD.format(root="/"),
            {f"{TOP}/cpu/{V1[0]}": "-1\n", f"{TOP}/cpu/{V1[1]}": "100000\n"},
            8,
        ),
        # What nobody understands limits nothing.
        ("0::/\n", UNIFIED.format(root="/"), {f"{TOP}/cpu.max": "much\n"}, 8),
        ("0::/\n", UNIFIED.format(root="/"), {f"{TOP}/cpu.max": "100000 0\n"}, 8),
        ("nonsense\n", "nonsense\n", {}, 8),
        # A mount whose name has a space.
        (
            "0::/\n",
            "25 18 0:22 / /sys/fs/c\\040group rw - cgroup2 cgroup2 rw\n",
            {"sys/fs/c group/cpu.max": "200000 100000\n"},
            2,
        ),
    ],
)
def test_a_quota_counts_as_the_affinity_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cgroup: str,
    mounts: str,
    files: dict[str, str],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores(machine(tmp_path, cgroup, mounts, files)) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert usable_cores(tmp_path) == 1


def test_without_proc_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
