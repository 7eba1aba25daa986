"""Measures the figures that fastrank promises, and the table of the README: one command.

    python bench/figures.py [--quick] [--processes 5] [--json FILE] [--check]

One thread unless two are what is measured, contenders in turns within a process
(`benchmarks.timing`), each process fresh and with vectors of its own, because where the kernel
places pages differs from one process to the next. A figure is the median over processes, its spread
their range. What this fastrank cannot do is left out, and counts as missed for --check.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# First of all: it pins the thread pools, which NumPy starts.
from benchmarks import calls, comparisons
from benchmarks.jobs import (
    Measurements,
    accuracy,
    at_size,
    by_k,
    by_users,
    memory_of_calls,
    normaliser,
    opening,
    rescoring,
    save,
    small_calls,
    textbooks,
    two_threads,
    worst_order,
)
from benchmarks.workloads import REAL

TABLE_SIZES = [10_000, 100_000, 1_000_000]
QUICK_SIZES = [10_000]
MIDDLE = 100_000
CONTENDERS = [*calls.OWN, *calls.INT8, *calls.FAISS, *calls.NUMPY, *calls.READS, "mapped"]
SCANNED = ["gumbel", "deterministic", "int8 gumbel", "int8 deterministic"]
BATCHED = ["gumbel", "int8 gumbel", "faiss flat", *calls.BATCHED]
# Times the temperature that suits the scores: peaked laws hang on few items' errors.
NORMALISER_FACTORS = [0.1, 1.0]
TABLE_ROWS = {
    "read": "reading the float32 matrix and nothing else (BLAS dot with itself)",
    "read int8": "reading a quarter of it: as many bytes as int8 has",
    "gumbel": "**Plackett-Luce**, gumbel",
    "mapped": "the same on a catalog opened from disk",
    "int8 gumbel": "**Plackett-Luce**, gumbel, int8 storage",
    "cached": "Plackett-Luce, cached (the user was seen before)",
    "sequential": "Plackett-Luce, sequential",
    "deterministic": "Deterministic",
    "int8 deterministic": "Deterministic, int8 storage",
    "epsilon": "EpsilonGreedy",
    "int8 epsilon": "EpsilonGreedy, int8 storage",
    "uniform": "Uniform",
    "faiss flat": "FAISS IndexFlatIP: deterministic",
    "faiss fp16": "FAISS flat float16: deterministic, approximate",
    "faiss sq8": "FAISS flat 8 bit: deterministic, approximate",
    "numpy choice": "NumPy: matvec, softmax, Generator.choice",
    "numpy gumbel": "NumPy: matvec, Gumbel noise, argpartition",
    **{name: f"{name}, from scores that are there" for name in calls.TEXTBOOK},
}
BATCH_ROWS = {
    "sgemm": "all scores by BLAS's product of matrices, and nothing done with them",
    "gumbel": "**Plackett-Luce**, gumbel",
    "int8 gumbel": "**Plackett-Luce**, gumbel, int8 storage",
    "faiss flat": "FAISS IndexFlatIP as installed: deterministic",
    "faiss blas": "FAISS IndexFlatIP told to use BLAS: deterministic",
}


@dataclass(frozen=True)
class Figure:
    """A value by its name in the measurements, what it is, and its target, if it has one.

    The target must not be exceeded; where `bigger_is_better`, it must be reached.
    """

    key: str
    text: str
    target: float | None = None
    unit: str = ""
    bigger_is_better: bool = False

    def met_by(self, value: float | None) -> bool:
        if self.target is None or value is None:
            return self.target is None
        return value >= self.target if self.bigger_is_better else value <= self.target

    def goal(self) -> str:
        if self.target is None:
            return ""
        return f"{'≥' if self.bigger_is_better else '≤'} {number(self.target)}{self.unit}"


SPOKEN = {
    "faiss flat": "FAISS FlatIP",
    "faiss fp16": "FAISS float16",
    "faiss sq8": "FAISS 8 bit",
    "faiss blas": "FAISS FlatIP told to use BLAS",
    "sgemm": "all scores by BLAS",
    "numpy choice": "NumPy choice",
    "numpy gumbel": "NumPy Gumbel",
    "read": "reading the float32 matrix",
    "read int8": "reading a quarter of it",
    "mapped": "on a mapped catalog",
}


def ratio(
    n: int, pair: str, target: float | None = None, where: str = "", note: str = ""
) -> Figure:
    """Of two contenders; where: how the case differs from one ranking, k = 10."""
    text = " / ".join(SPOKEN.get(name, name) for name in pair.split(" / "))
    return Figure(f"{n}{where}: {pair}", f"{text}{note}, n = {n:,}{where}", target)


FIGURES = [
    ratio(1_000_000, "int8 gumbel / faiss flat", 0.33),
    ratio(1_000_000, "int8 gumbel / faiss fp16", 0.70),
    ratio(1_000_000, "int8 deterministic / faiss flat", 0.32),
    ratio(10_000, "int8 gumbel / faiss flat", 0.60),
    ratio(1_000_000, "gumbel / read", 1.15),
    *[
        ratio(n, f"{storage}gumbel / {storage}deterministic", 1.05)
        for storage in ("", "int8 ")
        for n in (100_000, 1_000_000)
    ],
    ratio(100_000, "gumbel / deterministic", 1.6, ", k = 1000"),
    ratio(100_000, "int8 gumbel / int8 deterministic", 1.6, ", k = 1000"),
    # The targets were set by FAISS as it is installed; what it can do is the line below each.
    ratio(1_000_000, "gumbel / faiss flat", 0.17, ", batch 64", " as installed"),
    ratio(1_000_000, "gumbel / faiss blas", None, ", batch 64"),
    ratio(1_000_000, "int8 gumbel / faiss flat", 0.10, ", batch 64", " as installed"),
    ratio(1_000_000, "int8 gumbel / faiss blas", None, ", batch 64"),
    *[
        Figure(
            f"1000000, two threads: {name} of what memory allows",
            f"{name}: two threads' speed-up / min(2, that of reading), n = 1,000,000",
            0.9,
            bigger_is_better=True,
        )
        for name in ("gumbel", "int8 gumbel")
    ],
    *[
        Figure(
            f"1000000, batch 64, two threads: speed-up of {name}",
            f"{name}: two threads' speed-up, n = 1,000,000, batch 64",
            1.8,
            bigger_is_better=True,
        )
        for name in ("gumbel", "int8 gumbel")
    ],
    *[
        Figure(f"small call: {name}", f"whole {name} call, n = 1,000 less n = 16", 8.0, " us")
        for name in ("gumbel", "int8 gumbel")
    ],
    ratio(1_000_000, "deterministic / faiss flat", 0.85),
    ratio(1_000_000, "gumbel / faiss flat", 0.90),
    ratio(100_000, "gumbel / faiss flat", 1.00),
    ratio(1_000_000, "gumbel / numpy choice", 0.50),
    *[
        Figure(
            f"1000000: memory of {name}",
            f"extra memory of a {name} call, n = 1,000,000",
            1.0,
            " MiB",
        )
        for name in calls.SCANS
    ],
    Figure("1000000: open", "open of a catalog with 256 MB of vectors", 50.0, " ms"),
    Figure("1000000: private", "private memory of that catalog", 1.0, " MiB"),
    Figure("error", "error of a log-propensity, T from 1e-6 to 1e6", 1e-5),
    Figure(
        "100000, worst order: gumbel",
        "gumbel, ascending order / shuffled, n = 100,000, T = 0.01",
        2.0,
    ),
]
EXTRA = [
    Figure(
        "100000, worst order: int8 gumbel",
        "int8 gumbel, ascending order / shuffled, n = 100,000, T = 0.01",
    ),
    ratio(1_000_000, "int8 gumbel / gumbel"),
    ratio(1_000_000, "int8 gumbel / read int8"),
    ratio(1_000_000, "int8 gumbel / faiss sq8"),
    ratio(1_000_000, "gumbel / faiss fp16"),
    ratio(1_000_000, "gumbel / numpy gumbel"),
    ratio(1_000_000, "deterministic / read"),
    ratio(1_000_000, "faiss flat / read"),
    ratio(1_000_000, "gumbel / sgemm", None, ", batch 64"),
    ratio(1_000_000, "int8 gumbel / sgemm", None, ", batch 64"),
    ratio(1_000_000, "gumbel / mapped"),
    ratio(1_000_000, "cached / gumbel"),
    *[
        Figure(
            f"1000000, two threads: speed-up of {name}",
            f"{name}: two threads' speed-up, n = 1,000,000",
        )
        for name in ("gumbel", "int8 gumbel", *calls.READS)
    ],
    *[
        Figure(
            f"1000000: memory of {name}",
            f"extra memory of a {name} call, n = 1,000,000",
            unit=" MiB",
        )
        for name in calls.INT8
    ],
    *[
        Figure(f"{source}: cost of re-scoring", f"int8 gumbel / the same unchecked, {source}")
        for source in (MIDDLE, *REAL)
    ],
]


# ---- The run --------------------------------------------------------------------------------


def measure(quick: bool, processes: int) -> Measurements:
    """All of it; `quick` checks every contender once and measures too little to be believed."""
    taken = Measurements()
    seconds = 0.2 if quick else 4.0
    sizes = QUICK_SIZES if quick else TABLE_SIZES
    largest = sizes[-1]
    middle = min(MIDDLE, largest)
    users = 8 if quick else 64
    for process in range(processes):
        for n in sizes:
            taken.take(at_size, n, process, seconds * (4 if n >= 1_000_000 else 1), CONTENDERS)
        taken.take(by_k, middle, 1000, seconds, SCANNED)
        taken.take(by_users, largest, users, 2 * seconds, BATCHED)
        taken.take(two_threads, largest, 1, 2 * seconds)
        taken.take(two_threads, largest, users, 2 * seconds)
        for name in ("gumbel", "int8 gumbel"):
            taken.take(small_calls, name, seconds / 2)
            taken.take(worst_order, middle, name, seconds)
        for source in (middle, *REAL):
            taken.take(rescoring, source, seconds / 2)
    for n in sizes:
        taken.take(textbooks, n, seconds, calls.TEXTBOOK)
    with tempfile.TemporaryDirectory(prefix="fastrank-") as folder:
        saved = taken.take(save, largest, f"{folder}/float32", "float32")
        taken.take(memory_of_calls, largest, saved, calls.SCANS)
        taken.take(opening, largest, saved, seconds / 4)
        if calls.present(calls.INT8):
            saved = taken.take(save, largest, f"{folder}/int8", "int8")
            taken.take(memory_of_calls, largest, saved, calls.INT8)
    for source in (middle, *REAL):
        for factor in NORMALISER_FACTORS:
            taken.take(normaliser, source, 16 if quick else 200, factor)
    taken.take(accuracy)
    return taken


# ---- Tables ---------------------------------------------------------------------------------


def figure_table(taken: Measurements) -> list[str]:
    """Markdown: every figure that was measured, its target, its range over processes, a verdict."""
    lines = ["| figure | target | measured | range | |", "|---|---|---|---|---|"]
    for figure in FIGURES + EXTRA:
        value = taken.median(figure.key)
        if value is None:
            continue
        values = taken.values[figure.key]
        spread = f"{number(min(values))}–{number(max(values))}" if len(values) > 1 else ""
        verdict = "pass" if figure.met_by(value) else "**fail**"
        lines.append(
            f"| {figure.text} | {figure.goal()} | {number(value)}{figure.unit} | {spread} "
            f"| {verdict if figure.target is not None else ''} |"
        )
    return lines


def time_table(taken: Measurements) -> list[str]:
    """Markdown: milliseconds of every contender at every size."""
    sizes = [n for n in TABLE_SIZES if f"{n}: gumbel" in taken.values]
    columns = {f"n = {n:,}": f"{n}" for n in sizes}
    return table(taken, "ms for one ranking, d = 64, k = 10", columns, TABLE_ROWS)


def batch_table(taken: Measurements) -> list[str]:
    """Markdown: milliseconds for one of a batch of users."""
    cases = dict.fromkeys(
        name.split(":")[0] for name in taken.values if ", batch " in name and "two" not in name
    )
    columns = {f"n = {int(n):,},{rest}": f"{n},{rest}" for n, rest in (c.split(",") for c in cases)}
    return table(taken, "ms for each user of a batch", columns, BATCH_ROWS)


def table(
    taken: Measurements, title: str, columns: Mapping[str, str], rows: Mapping[str, str]
) -> list[str]:
    """Markdown: medians, by the text of a column and where it was measured, and rows alike."""
    lines = ["| " + " | ".join([title, *columns]) + " |", "|---|" + "---|" * len(columns)]
    for name, text in rows.items():
        values = [taken.median(f"{where}: {name}") for where in columns.values()]
        if any(value is not None for value in values):
            cells = ["" if v is None else milliseconds(v) for v in values]
            lines.append("| " + " | ".join([text, *cells]) + " |")
    return lines


def normaliser_table(taken: Measurements) -> list[str]:
    """Markdown: how far log_norm is from float64 arithmetic, by vectors, temperature, storage."""
    columns = ["exact", "median error", "largest error", "largest bound", "beyond the bound"]
    columns.append("rows re-scored")
    lines = ["| log_norm | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    suffix = ": largest error"
    for where in [name.removesuffix(suffix) for name in taken.values if name.endswith(suffix)]:
        source, factor, storage = where.split(", ")
        text = f"{storage}, {f'{int(source):,} normal' if source.isdigit() else source}, {factor}"
        values = [taken.median(f"{where}: {column}") for column in columns]
        cells = ["" if v is None else number(v) for v in values]
        cells[0] = "" if values[0] is None else f"{values[0]:.0%}"
        lines.append("| " + " | ".join([text, *cells]) + " |")
    return lines


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
    taken = measure(options.quick, 1 if options.quick else options.processes)
    print("\n".join(f"- {name}: {value}" for name, value in taken.environment.items()))
    if options.quick:
        print("\n**Every contender was checked; nothing was measured long enough to be believed.**")
    else:
        print("\n" + "\n".join(figure_table(taken)))
        missing = [figure.text for figure in FIGURES if taken.median(figure.key) is None]
        if missing:
            print("\nNot to be measured here: " + "; ".join(missing) + ".")
    for lines in (time_table(taken), batch_table(taken), normaliser_table(taken)):
        print("\n" + "\n".join(lines))
    if options.json:
        taken.write(options.json)
    judged = options.check and not options.quick
    return int(judged and not all(f.met_by(taken.median(f.key)) for f in FIGURES))


if __name__ == "__main__":
    sys.exit(main())
