"""Shows which functions of the native core a ranking spends its time in, by Linux perf.

    python bench/profile_native.py [--policy gumbel] [--n 100000] [--k 10] [--annotate]

Samples a process that does nothing but call the native pass. Functions are named as they are;
for source lines (--annotate) build with FASTRANK_CXXFLAGS=-g. perf's own clock is used, so a
virtual machine without hardware counters will do.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# First of all: it pins the thread pools, which NumPy starts.
from benchmarks import calls
from benchmarks.workloads import synthetic

# isort: split
from fastrank.ask import spec_of

SAMPLES_A_SECOND = 4000


def spin(name: str, n: int, k: int, seconds: float) -> None:
    """Rankings one after another, once the parent has been told that the catalog stands."""
    workload = synthetic(n)
    packed = workload.catalog._packed
    spec = spec_of(calls.own_policy(name, workload.temperature))
    print("ready", flush=True)
    done, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        query = workload.queries[done % len(workload.queries)]
        packed.rank(query, k, spec.kind, spec.temperature, spec.epsilon, done, None, None, n)
        done += 1
    print(f"{1e6 * (time.perf_counter() - start) / done:.1f} us a call, {done} calls", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    policies = [name for name in calls.OWN if name != "cached"]
    parser.add_argument("--policy", choices=policies, default="gumbel")
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--annotate", action="store_true", help="the hottest instructions, too")
    parser.add_argument("--spin", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.spin:
        spin(options.policy, options.n, options.k, options.seconds)
        return 0
    perf = shutil.which("perf")
    if perf is None:
        print("perf is not installed (Debian: linux-perf)", file=sys.stderr)
        return 2
    child = subprocess.Popen(
        [sys.executable, __file__, "--spin", *sys.argv[1:]], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    with tempfile.TemporaryDirectory(prefix="fastrank-perf-") as folder:
        data = str(Path(folder) / "perf.data")
        clock = ["-e", "cpu-clock", "-F", str(SAMPLES_A_SECOND), "-o", data]
        subprocess.run(
            [perf, "record", "-q", *clock, "-p", str(child.pid)], check=True, capture_output=True
        )
        print(child.communicate()[0], flush=True)
        report = [perf, "report", "-i", data, "--stdio", "-q", "--no-children"]
        sort = ["--fields", "overhead,dso,symbol", "--percent-limit", "0.5"]
        subprocess.run([*report, *sort], check=True)
        if options.annotate:
            hottest = [perf, "annotate", "-i", data, "--stdio", "-q", "--percent-limit", "0.5"]
            subprocess.run([*hottest, "--dso", "_native.abi3.so"], check=True)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
