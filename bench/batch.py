"""What ranking all users takes beside the ranking itself: one command.

    python bench/batch.py [--items 100000] [--users 24000] [--rounds 3] [--ray]

Prints microseconds a row from a batch of rankings to Arrow, and CPU time a user of two processes
and, with --ray, of Ray with two actors. What a user more takes is the difference between runs of
all users and of a quarter of them, each the least of its rounds, since what else runs on a machine
only adds; the rest is what a run takes once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmarks  # noqa: F401  # first of all: it pins the thread pools, which NumPy starts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastrank as fr
from fastrank import batch
from fastrank.batch.rows import filtered, log_rows

DIM, K, TOGETHER, PART = 64, 10, 1024, 2000
RUN = fr.Run("bench", key=bytes(32))
TICK = os.sysconf("SC_CLK_TCK")


def make(folder: Path, items: int, users: int) -> None:
    rng = np.random.default_rng(0)
    catalog = fr.Catalog(np.arange(items), rng.standard_normal((items, DIM), np.float32))
    names = [f"user-{i:08d}" for i in range(users)]
    vectors = rng.standard_normal((users, DIM), np.float32)
    own = rng.uniform(0.5, 2.0, users)
    policy = fr.PlackettLuce(2.0)
    model = fr.Model(catalog, names, vectors, user_temperatures=own, policy=policy)
    model.save(folder / "model")
    for name, some in (("few", names[: users // 4]), ("all", names)):
        pq.write_table(pa.table({"user_id": some}), folder / f"{name}.parquet")


def rows(folder: Path) -> None:
    """Microseconds a row, the best of twenty."""
    model = fr.Model.open(folder / "model")
    names = model.user_ids[:TOGETHER].tolist()
    made = model.recommend_batch(names, K, seeds=RUN.seeds(names))
    requests = RUN.request_ids(names)
    said: dict[str, Any] = {"user_ids": names, "run": "bench", "ts": 0}
    filters = filtered(None, None)
    parts: dict[str, Callable[[], object]] = {
        "to Arrow": lambda: log_rows(made, request_ids=requests, filters=filters, **said),
        "seeds and request ids": lambda: (RUN.seeds(names), RUN.request_ids(names)),
    }
    for name, work in parts.items():
        assert work() is not None
        times = []
        for _ in range(20):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        print(f"{name}: {1e6 * min(times) / TOGETHER:.2f} us a row of {K} places")


def cpu_of_tree() -> float:
    """CPU seconds of this process and all that it began, those that have ended among them."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            try:
                fields = (each / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(each.name)] = int(fields[1])
            used[int(each.name)] = sum(map(int, fields[11:15])) / TICK
    found, total = {os.getpid()}, used[os.getpid()]
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
        total += sum(used[one] for one in more)
    return total


def once(folder: Path, engine: Any, users: str) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as log:
        start = cpu_of_tree()
        done = batch.run(
            folder / f"{users}.parquet",
            Path(log) / "log",
            run="bench",
            model=folder / "model",
            k=K,
            processes=2,
            engine=engine,
            part_rows=PART,
        )
        spent = cpu_of_tree() - start
        assert done.rows == pq.read_metadata(folder / f"{users}.parquet").num_rows
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    engines = ["local", *(["ray"] if options.ray else [])]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make(folder, options.items, options.users)
        print(f"load {os.getloadavg()[0]:.1f}; {options.items:,} items of {DIM} dimensions")
        rows(folder)
        if options.ray:
            import ray

            ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
        spent: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for users in ("few", "all"):
                for engine in engines:
                    spent.setdefault((engine, users), []).append(once(folder, engine, users))
        more = options.users - options.users // 4
        a_user = {}
        for engine in engines:
            few, everybody = (min(spent[engine, users]) for users in ("few", "all"))
            a_user[engine] = (everybody - few) / more
            fixed = few - a_user[engine] * (options.users // 4)
            print(f"{engine}: {1e6 * a_user[engine]:.0f} us of CPU a user more, {fixed:.1f} s once")
        if options.ray:
            print(f"ray / local: {a_user['ray'] / a_user['local']:.3f} a user more")
            ray.shutdown()


if __name__ == "__main__":
    main()
