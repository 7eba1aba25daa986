"""What ranking all users takes beside the ranking itself: one command.

    python bench/batch.py [--items 100000] [--users 24000] [--rounds 3] [--shards 4] [--ray]

Prints microseconds a row from a batch of rankings to Arrow; CPU time a user of the catalog in
shards, and of merging their rankings; and CPU time a user of two processes
and, with --ray, of Ray with two actors. What a user more takes is the difference between runs of
all users and of a quarter of them, each the least of its rounds, since what else runs on a machine
only adds; the rest is what a run takes once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import threading
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


def shards(items: int, count: int, rounds: int) -> None:
    """Microseconds of CPU a user: the whole catalog, its shards, and merging their rankings."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((items, DIM), np.float32)
    queries = rng.standard_normal((TOGETHER, DIM), np.float32)
    whole, policy = fr.Catalog(np.arange(items), vectors), fr.PlackettLuce(2.0)
    cuts = np.linspace(0, items, count + 1).astype(int)
    parts = [fr.Catalog(np.arange(a, b), vectors[a:b]) for a, b in itertools.pairwise(cuts)]
    seeds = np.arange(TOGETHER, dtype=np.uint64)

    def by_shards() -> list[fr.RankingBatch]:
        return [
            part.rank_batch(
                queries,
                K,
                policy=policy,
                seeds=[fr.shard_seed(seed, i) for seed in range(TOGETHER)],
            )
            for i, part in enumerate(parts)
        ]

    ranked = by_shards()
    first = [each[0] for each in ranked]
    works: list[tuple[str, int, int, Callable[[], object]]] = [
        ("the whole", TOGETHER, rounds, lambda: whole.rank_batch(queries, K, policy=policy)),
        (f"{count} shards", TOGETHER, rounds, by_shards),
        ("merging them", TOGETHER, 20, lambda: fr.merge_batch(ranked, K, seeds=seeds)),
        ("merging them, one user at a time", 1, 100, lambda: fr.merge(first, K, seed=0)),
    ]
    for name, users, times, work in works:
        assert work() is not None
        spent = []
        for _ in range(times):
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
        print(f"{name}: {1e6 * min(spent) / users:.1f} us of CPU a user")


def used_by_tree(used: dict[int, float]) -> None:
    """Note the CPU seconds of this process and of all that it began, by process."""
    parents: dict[int, int] = {}
    now: dict[int, float] = {}
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            try:
                fields = (each / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(each.name)] = int(fields[1])
            now[int(each.name)] = (int(fields[11]) + int(fields[12])) / TICK
    found = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    used.update({one: now[one] for one in found})


class Meter:
    """CPU seconds of this process and all that it began, of those that end on the way, too.

    With `is_new_only`, of what it begins from now on: Ray's processes are idle, but not at rest.
    """

    def __init__(self, is_new_only: bool) -> None:
        self._is_new_only = is_new_only

    def __enter__(self) -> Meter:
        self.spent = 0.0
        self._before: dict[int, float] = {}
        used_by_tree(self._before)
        self._used = dict(self._before)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._is_over.wait(0.2):
            used_by_tree(self._used)
        self._own = time.thread_time()  # what looking takes

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        used_by_tree(self._used)
        own = {os.getpid()} | (self._used.keys() - self._before.keys())
        counted = own if self._is_new_only else self._used.keys()
        self.spent = sum(self._used[one] - self._before.get(one, 0.0) for one in counted)
        self.spent -= self._own


def once(folder: Path, engine: Any, users: str) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as log:
        with Meter(engine == "local") as meter:
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
        assert done.rows == pq.read_metadata(folder / f"{users}.parquet").num_rows
    return meter.spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    engines = ["local", *(["ray"] if options.ray else [])]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make(folder, options.items, options.users)
        print(f"load {os.getloadavg()[0]:.1f}; {options.items:,} items of {DIM} dimensions")
        rows(folder)
        shards(options.items, options.shards, options.rounds)
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
