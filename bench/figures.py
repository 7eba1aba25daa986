"""Measures the figures that fastrank promises, and the table of the README: one command.

    python bench/figures.py [--quick] [--processes 5] [--json FILE] [--check]

Everything runs on one thread, contenders in turns within a process (`benchmarks.timing`), each
process fresh and with vectors of its own, because where the kernel places pages differs from one
process to the next. A figure is the median over processes, its spread their range.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

# First of all: it pins the thread pools, which NumPy starts.
from benchmarks import calls, comparisons, memory, opened
from benchmarks.timing import interleaved
from benchmarks.workloads import synthetic

import fastrank as fr
from fastrank import _native

Values: TypeAlias = dict[str, float]
T = TypeVar("T")

MILLI, MICRO, MEBIBYTE = 1e3, 1e6, 1 << 20
TABLE_SIZES = [10_000, 100_000, 1_000_000]
QUICK_SIZES = [10_000]
CONTENDERS = [*calls.OWN, *calls.FAISS, *calls.NUMPY]
TABLE_ROWS = {
    "read": "reading the float32 matrix and nothing else (BLAS dot with itself)",
    "gumbel": "**Plackett-Luce**, gumbel",
    "mapped": "the same on a catalog opened from disk",
    "cached": "Plackett-Luce, cached (the user was seen before)",
    "sequential": "Plackett-Luce, sequential",
    "deterministic": "Deterministic",
    "epsilon": "EpsilonGreedy",
    "uniform": "Uniform",
    "faiss flat": "FAISS IndexFlatIP: deterministic",
    "faiss fp16": "FAISS flat float16: deterministic, approximate",
    "numpy choice": "NumPy: matvec, softmax, Generator.choice",
    "numpy gumbel": "NumPy: matvec, Gumbel noise, argpartition",
    **{name: f"{name}, from scores that are there" for name in calls.TEXTBOOK},
}
TEMPERATURES = [10.0**power for power in range(-6, 7)]


@dataclass(frozen=True)
class Figure:
    """A value by its key in the measurements, what it is, and what it must not exceed."""

    key: str
    text: str
    target: float | None = None
    unit: str = ""


FIGURES = [
    Figure("100000: gumbel / deterministic", "gumbel / own deterministic, n = 100,000", 1.10),
    Figure("1000000: gumbel / deterministic", "gumbel / own deterministic, n = 1,000,000", 1.10),
    Figure(
        "1000000: deterministic / faiss flat",
        "own deterministic / FAISS FlatIP, n = 1,000,000",
        0.85,
    ),
    Figure("1000000: gumbel / faiss flat", "gumbel / FAISS FlatIP, n = 1,000,000", 0.90),
    Figure("100000: gumbel / faiss flat", "gumbel / FAISS FlatIP, n = 100,000", 1.00),
    Figure("1000000: gumbel / numpy choice", "gumbel / NumPy choice, n = 1,000,000", 0.50),
    Figure("small call", "whole rank call, n = 1,000 less n = 16", 15.0, "us"),
    *[
        Figure(
            f"1000000: memory of {name}",
            f"extra memory of a {name} call, n = 1,000,000",
            1.0,
            "MiB",
        )
        for name in calls.SCANS
    ],
    Figure("1000000: open", "open of a catalog with 256 MB of vectors", 50.0, "ms"),
    Figure("1000000: private", "private memory of that catalog", 1.0, "MiB"),
    Figure("error", "error of a log-propensity, T from 1e-6 to 1e6", 1e-5),
    Figure("100000: worst order", "gumbel, ascending order / shuffled, n = 100,000, T = 0.01", 2.0),
]
EXTRA = [
    Figure("1000000: gumbel / faiss fp16", "gumbel / FAISS float16, n = 1,000,000"),
    Figure("1000000: gumbel / numpy gumbel", "gumbel / NumPy Gumbel, n = 1,000,000"),
    Figure("1000000: gumbel / read", "gumbel / reading the matrix, n = 1,000,000"),
    Figure("1000000: deterministic / read", "own deterministic / reading it, n = 1,000,000"),
    Figure("1000000: faiss flat / read", "FAISS FlatIP / reading it, n = 1,000,000"),
    Figure("1000000: gumbel / mapped", "gumbel in memory / on a mapped catalog, n = 1,000,000"),
    Figure("1000000: cached / gumbel", "cached (hit) / gumbel, n = 1,000,000"),
]


# ---- Measurements: each runs in a process of its own ----------------------------------------


def at_size(n: int, seed: int, seconds: float) -> Values:
    """Milliseconds of every contender at one size, and their ratios."""
    workload = synthetic(n, seed=seed)
    contenders = {name: calls.make(name, workload) for name in [*CONTENDERS, "read"]}
    with tempfile.TemporaryDirectory(prefix="fastrank-") as folder:
        opened.save(workload, folder)
        catalog = fr.Catalog.open(folder)
        policy = calls.own_policy("gumbel", workload.temperature)
        contenders["mapped"] = calls.catalog_rank(workload, 10, policy, catalog=catalog)
        timings = interleaved(contenders, seconds)
    values = {f"{n}: {name}": MILLI * timings.median(name) for name in contenders}
    for ours in ("gumbel", "deterministic", "cached", "faiss flat"):
        for peer in contenders:
            values[f"{n}: {ours} / {peer}"] = timings.ratio(ours, peer)
    return values


def textbooks(n: int, seconds: float) -> Values:
    """Milliseconds of the textbook procedures, infinite where one was stopped."""
    workload = synthetic(n)
    values = {}
    for name in calls.TEXTBOOK:
        timings = comparisons.textbook(workload, name, seconds)
        values[f"{n}: {name}"] = MILLI * timings.median(name)
    return values


def small_calls(seconds: float) -> Values:
    timings = comparisons.small_calls("gumbel", seconds)
    return {
        "small call": MICRO * timings.difference("1000", "16"),
        "16: gumbel": MILLI * timings.median("16"),
        "1000: gumbel": MILLI * timings.median("1000"),
    }


def worst_order(n: int, seconds: float) -> Values:
    timings = comparisons.worst_order(n, seconds=seconds)
    return {f"{n}: worst order": timings.ratio("ascending", "shuffled")}


def save(n: int, folder: str) -> opened.Saved:
    return opened.save(synthetic(n), folder)


def memory_of_calls(n: int, saved: opened.Saved) -> Values:
    """MiB that a call adds at its peak, in a process that holds but the mapped catalog."""
    return {
        f"{n}: memory of {name}": memory.extra_bytes(opened.ranked(saved, name)) / MEBIBYTE
        for name in calls.SCANS
    }


def opening(n: int, saved: opened.Saved, seconds: float) -> Values:
    """Milliseconds of an `open`, and the MiB of its own that the catalog holds then."""
    call = partial(fr.Catalog.open, saved.folder)
    return {
        f"{n}: open": MILLI * interleaved({"open": call}, seconds).median("open"),
        f"{n}: private": memory.private_growth(call) / MEBIBYTE,
    }


def accuracy() -> Values:
    return {"error": comparisons.log_propensity_error(TEMPERATURES)}


# ---- The run --------------------------------------------------------------------------------


class Measurements:
    """Values by key, one for each process that measured it."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self._spawn = get_context("spawn")  # a fork would share the parent's pages and pools

    def take(self, job: Callable[..., T], *arguments: Any) -> T:
        """Runs a job in a fresh process; what it measured is kept."""
        title = " ".join(str(a) for a in (job.__name__, *arguments) if isinstance(a, str | int))
        print(f"  {title}", file=sys.stderr, flush=True)
        with ProcessPoolExecutor(1, mp_context=self._spawn) as pool:
            result = pool.submit(job, *arguments).result()
        if isinstance(result, dict):
            for key, value in result.items():
                self.values.setdefault(key, []).append(value)
        return result

    def median(self, key: str) -> float | None:
        values = self.values.get(key)
        return statistics.median(values) if values else None


def measure(quick: bool, processes: int) -> Measurements:
    """All of it; `quick` checks every contender once and measures too little to be believed."""
    taken = Measurements()
    seconds = 0.2 if quick else 4.0
    sizes = QUICK_SIZES if quick else TABLE_SIZES
    largest = sizes[-1]
    for process in range(processes):
        for n in sizes:
            taken.take(at_size, n, process, seconds * (3 if n >= 1_000_000 else 1))
        taken.take(small_calls, seconds)
        taken.take(worst_order, min(100_000, largest), seconds)
    for n in sizes:
        taken.take(textbooks, n, seconds)
    with tempfile.TemporaryDirectory(prefix="fastrank-") as folder:
        saved = taken.take(save, largest, folder)
        taken.take(memory_of_calls, largest, saved)
        taken.take(opening, largest, saved, seconds / 4)
    taken.take(accuracy)
    return taken


def environment() -> dict[str, str]:
    """What the figures hang on."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "CPU": f"{cpu}, {os.cpu_count()} cores, one thread used",
        "system": f"{platform.system()} {platform.release()}",
        "transparent huge pages": pages.read_text().strip() if pages.exists() else "none",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "fastrank": f"{fr.__version__} ({_commit()}), instruction set {_native.isa()}",
        **{name: importlib.metadata.version(name) for name in ("numpy", "faiss-cpu")},
    }


def _commit() -> str:
    """The checkout that this script is in, for what it is worth: the package may be another's."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no repository"


# ---- Tables ---------------------------------------------------------------------------------


def figure_table(taken: Measurements) -> list[str]:
    """Markdown: every figure that was measured, its target, its range over processes, a verdict."""
    lines = ["| figure | target | measured | range | |", "|---|---|---|---|---|"]
    for figure in FIGURES + EXTRA:
        value = taken.median(figure.key)
        if value is None:
            continue
        values = taken.values[figure.key]
        target = "" if figure.target is None else f"≤ {number(figure.target)}{figure.unit}"
        spread = f"{number(min(values))}–{number(max(values))}" if len(values) > 1 else ""
        verdict = "" if figure.target is None else "pass" if met(figure, taken) else "**fail**"
        lines.append(
            f"| {figure.text} | {target} | {number(value)}{figure.unit} | {spread} | {verdict} |"
        )
    return lines


def time_table(taken: Measurements) -> list[str]:
    """Markdown: milliseconds of every contender at every size."""
    sizes = [n for n in TABLE_SIZES if f"{n}: gumbel" in taken.values]
    lines = [
        "| ms for one ranking, d = 64, k = 10 | " + " | ".join(f"n = {n:,}" for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for key, text in TABLE_ROWS.items():
        values = [taken.median(f"{n}: {key}") for n in sizes]
        if any(value is not None for value in values):
            cells = ["" if v is None else milliseconds(v) for v in values]
            lines.append(f"| {text} | " + " | ".join(cells) + " |")
    return lines


def met(figure: Figure, taken: Measurements) -> bool:
    value = taken.median(figure.key)
    return figure.target is None or value is None or value <= figure.target


def number(value: float) -> str:
    """Three significant digits."""
    return "0" if value == 0 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def milliseconds(value: float) -> str:
    return number(value) if math.isfinite(value) else f"> {1e3 * comparisons.TEXTBOOK_CAP:,.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and short: only the checks")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes (default 5)")
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    if find_spec("faiss") is None:
        print("FAISS is missing: pip install 'fastrank[faiss]'", file=sys.stderr)
        return 2
    about = environment()
    taken = measure(options.quick, 1 if options.quick else options.processes)
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    if options.quick:
        print("\n**Every contender was checked; nothing was measured long enough to be believed.**")
    else:
        print("\n" + "\n".join(figure_table(taken)))
    print("\n" + "\n".join(time_table(taken)))
    if options.json:
        figures = [{**asdict(f), "measured": taken.median(f.key)} for f in FIGURES + EXTRA]
        content = {"environment": about, "figures": figures, "values": taken.values}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    judged = options.check and not options.quick
    return int(judged and not all(met(figure, taken) for figure in FIGURES))


if __name__ == "__main__":
    sys.exit(main())
