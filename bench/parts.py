"""What evaluating a log in parts costs beside one reading of it: one command.

    python bench/parts.py [--rows 1000000] [--places 10] [--parts 8] [--repeat 3]

The log of bench/evaluate_log.py in files, one a part. The whole log and its parts are read in turns
by this process, with the default estimators; parts are pickled and merged as other processes' are.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from pathlib import Path

import benchmarks  # noqa: F401  # first of all: it pins the thread pools, which NumPy starts
import pyarrow.parquet as pq
from evaluate_log import make

from fastrank import ope
from fastrank.eventlog import LogReader

POLICIES = [ope.FromColumn("evaluated", "evaluated")]


def split(log: Path, folder: Path, parts: int) -> None:
    """The rows of a file in several, in their order."""
    table = pq.read_table(log)
    rows = -(-len(table) // parts)
    for part in range(parts):
        file = folder / f"{part:04d}.parquet"
        pq.write_table(table.slice(part * rows, rows), file, compression="lz4")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--places", type=int, default=10)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"whole": [], "parts": [], "merged": []}
    with tempfile.TemporaryDirectory() as folder:
        one, log = Path(folder) / "log.parquet", Path(folder) / "log"
        make(one, options.rows, options.places)
        log.mkdir()
        split(one, log, options.parts)
        for _ in range(options.repeat):
            begun = time.process_time()
            whole = ope.evaluate(
                LogReader(log, columns=["evaluated"]), POLICIES, places=options.places
            )
            times["whole"].append(time.process_time() - begun)
            begun = time.process_time()
            sums = [
                pickle.dumps(ope.partial(part, POLICIES, places=options.places))
                for part in LogReader(log, columns=["evaluated"]).parts(options.parts)
            ]
            times["parts"].append(time.process_time() - begun)
            begun = time.process_time()
            found = ope.merged(map(pickle.loads, sums)).evaluation()
            times["merged"].append(time.process_time() - begun)
    lead = whole.policies[0].lead
    first, second = (each.policies[0].estimates[lead] for each in (whole, found))
    assert first.value is not None
    assert second.value is not None
    assert abs(first.value - second.value) <= 1e-14 * abs(first.value)
    medians = {name: statistics.median(each) for name, each in times.items()}
    ratio = (medians["parts"] + medians["merged"]) / medians["whole"]
    print(
        f"{whole.rows_used:,} rankings of {options.places}, s of processor time:"
        f" whole {medians['whole']:.2f}; {options.parts} parts {medians['parts']:.2f}, merged and"
        f" evaluated {medians['merged']:.2f}: {ratio:.3f} times as much; a part is"
        f" {max(map(len, sums)) / 2**20:.2f} MiB pickled"
    )


if __name__ == "__main__":
    main()
