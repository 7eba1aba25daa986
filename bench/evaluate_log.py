"""Time and memory of evaluating a long log: one command.

    python bench/evaluate_log.py [--rows 1000000] [--places 10] [--log FILE] [--repeat 3]

Rankings with an evaluation policy's log-propensities in a column go from Parquet to ips, rips and
snips with intervals and diagnostics, on one core. The log is made first, and kept where --log says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import benchmarks  # noqa: F401  # first of all: it pins the thread pools, which NumPy starts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastrank import ope
from fastrank.eventlog import LogReader, schema

ROW_GROUP = 65_536
# What this evaluation has no use for.
OMIT = (
    *("scores", "query", "log_norm", "latency_us", "candidate_set_id", "n_candidates"),
    *("retrieval", "reward_kind", "reward_ts"),
)


def make(path: Path, rows: int, places: int) -> None:
    """A log of rankings of 50 items for 50,000 users, and the column ``evaluated``."""
    rng = np.random.default_rng(0)
    columns = schema("int64").append(pa.field("evaluated", pa.list_(pa.float64())))
    with pq.ParquetWriter(path, columns, compression="lz4") as writer:
        for first in range(0, rows, ROW_GROUP):
            n = min(ROW_GROUP, rows - first)
            logged = np.log(rng.uniform(0.02, 0.5, (n, places)))
            evaluated = np.minimum(logged + rng.normal(0.0, 0.1, logged.shape), 0.0)
            rewards = (rng.random((n, places)) < 0.05).astype(np.float64)
            items = rng.permuted(np.tile(np.arange(50), (n, 1)), axis=1)[:, :places]
            given = {
                "schema_version": np.ones(n),
                "request_id": [f"request-{first + i:09d}" for i in range(n)],
                "ts": (first + np.arange(n)) * 1000,
                "writer_id": ["writer"] * n,
                "writer_seq": first + np.arange(n),
                "user_id": [f"user-{user}" for user in rng.integers(0, 50_000, n)],
                "policy_name": ["stochastic_gumbel_softmax_trick"] * n,
                "rng_version": np.ones(n),
                "seed": rng.integers(0, 2**53, n),
                "seed_source": ["server"] * n,
                "catalog_version": ["catalog"] * n,
                "n_eligible": np.full(n, 50),
                "is_fallback": np.zeros(n, np.bool_),
                "k": np.full(n, places),
                "item_ids": lists(items, pa.int64()),
                "log_propensities": lists(logged, pa.float64()),
                "log_propensity": logged.sum(axis=1),
                "propensity_kind": ["exact"] * n,
                "log_norm_error": np.zeros(n),
                "rewards": lists(rewards, pa.float64()),
                "reward_kind": ["complete"] * n,
                "evaluated": lists(evaluated, pa.float64()),
            }
            arrays = [
                pa.array(given[field.name]).cast(field.type)
                if field.name in given
                else pa.nulls(n, field.type)
                for field in columns
            ]
            writer.write_batch(pa.record_batch(arrays, schema=columns), ROW_GROUP)


def lists(values: np.ndarray[tuple[int, int], np.dtype[np.generic]], kind: pa.DataType) -> pa.Array:
    n, places = values.shape
    offsets = pa.array(np.arange(0, n * places + 1, places, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), kind))


def resident() -> int:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--places", type=int, default=10)
    parser.add_argument("--log", type=Path, help="made if it is not there")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.log or Path(folder) / "log.parquet"
        if not path.exists():
            make(path, options.rows, options.places)
        before, peak = resident(), 0
        walls, processors = [], []
        for _ in range(options.repeat):
            log = LogReader(path, columns=["evaluated"], omit=OMIT)
            wall, processor = time.perf_counter(), time.process_time()

            def advance(rows: int) -> None:
                nonlocal peak
                peak = max(peak, resident())

            found = ope.evaluate(
                log,
                [ope.FromColumn("evaluated", "evaluated")],
                estimators=["ips", "rips", "snips"],
                lead="snips",
                advance=advance,
            )
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - processor)
    for name, estimate in found.policies[0].estimates.items():
        print(f"{name:6} {estimate.value:.5f} ± {estimate.standard_error:.5f}  {estimate.status}")
    print(
        f"{found.rows_used:,} rankings: median {statistics.median(walls):.2f} s"
        f" ({statistics.median(processors):.2f} s of processor time), best {min(walls):.2f} s;"
        f" {peak - before} MiB beside the {before} MiB of the process before"
    )


if __name__ == "__main__":
    main()
