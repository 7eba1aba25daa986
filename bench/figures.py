"""Measures the figures that fastrank promises, and the tables of docs/figures.md: one command.

    python bench/figures.py [--quick] [--processes 5] [--json docs/figures.json] [--check]

Tables are printed as they stand in docs/figures.md; `report.py` writes them there, from what
is measured here and there. One thread unless two are what is measured, contenders in turns within a
process (`benchmarks.timing`), each process fresh and with vectors of its own, because where the
kernel places pages differs from one process to the next. A figure is the median over processes, its
spread their range. What this fastrank cannot do is left out, and counts as missed for --check.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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
    opening,
    save,
    single_calls,
    small_calls,
    storages,
    textbooks,
    two_threads,
    under_rules,
    was_float32,
    worst_order,
)
from benchmarks.workloads import CODED_FROM

DATA = Path(__file__).resolve().parents[1] / "docs" / "figures.json"
TABLE_SIZES = [10_000, 100_000, 1_000_000]
QUICK_SIZES = [20_000]  # enough for codes
MIDDLE = 100_000
SPREAD = 2.0  # standard deviation of scores / T, of normal workloads
STORAGE_DIMS = {64: 0.95, 256: 0.55, **dict.fromkeys(comparisons.EMBEDDINGS, 0.5)}  # and targets
CONTENDERS = [*calls.OWN, *calls.INT8, *calls.FAISS, *calls.NUMPY, *calls.READS, "mapped"]
# A graph of a million items takes minutes to make.
INDEXED = [name for name in calls.INDEXED if name != "faiss hnsw"]
SCORED = [*calls.GIVEN, *calls.SCORED]
SCANNED = ["gumbel", "deterministic", "int8 gumbel", "int8 deterministic"]
BATCHED = ["gumbel", "int8 gumbel", "faiss flat", *calls.BATCHED]
TABLE_ROWS = {
    "read": "reading the float32 matrix and nothing else",
    "read int8": "reading a quarter of it, as much as int8 codes are",
    "gumbel": "**Plackett-Luce**, gumbel",
    "int8 gumbel": "**the same, int8 storage**",
    "mapped": "gumbel, on a catalog opened from disk",
    "cached": "Plackett-Luce, cached: from a table (the user was seen before)",
    "flat tail": "FlatTail of 1,000 candidates, which an index finds",
    "sequential": "Plackett-Luce, sequential",
    "deterministic": "Deterministic",
    "int8 deterministic": "Deterministic, int8 storage (the same top k)",
    "epsilon": "EpsilonGreedy",
    "uniform": "Uniform",
    "faiss flat": "FAISS IndexFlatIP: deterministic",
    "faiss panorama": "FAISS IndexFlatIPPanorama: deterministic (normal vectors: its worst case)",
    "faiss fp16": "FAISS flat float16: deterministic, approximate",
    "faiss sq8": "FAISS flat 8 bit: deterministic, approximate",
    "faiss ivf": "FAISS IVFFlat, 16 of 4 sqrt(n) lists: deterministic, approximate",
    "faiss ivf 1000": "the same, the 1,000 best",
    "numpy choice": "NumPy: matvec, softmax, `Generator.choice`",
    "numpy gumbel": "NumPy: matvec, Gumbel noise, argpartition",
    "given gumbel": "**`rank_scores`**, Plackett-Luce, of scores that are there",
    "prepared gumbel": "**the same** with `ItemIds`",
    "numpy softmax": "NumPy: softmax of these scores, `Generator.choice`",
    "torch multinomial": "torch: softmax of these scores, `multinomial`",
    "textbook deterministic": "textbook, over a dict of scores that are there: sort all",
    "textbook softmax": "softmax recomputed at each of k draws",
    "textbook softmax removal": "softmax once, draws and removal",
    "textbook gumbel": "Gumbel noise on all items, full sort",
    "textbook epsilon": "epsilon-greedy, k times the maximum",
}
SHORT_ROWS = {
    "read": "reading the vectors and nothing else",
    "gumbel": "**Plackett-Luce**",
    "int8 gumbel": "**the same, int8 storage**",
    "cached": "**the same, of a known user, by a table**",
    "faiss flat": "FAISS IndexFlatIP: deterministic",
    "numpy choice": "NumPy: matvec, softmax, `Generator.choice`",
}
BATCH_ROWS = {
    "sgemm": "all scores by BLAS's product of matrices, and nothing done with them",
    "gumbel": "**Plackett-Luce**, gumbel",
    "int8 gumbel": "**the same, int8 storage**",
    "faiss flat": "FAISS IndexFlatIP as installed: deterministic",
    "faiss blas": "FAISS IndexFlatIP told to use BLAS: deterministic",
}


@dataclass(frozen=True)
class Figure:
    """A value by its name in the measurements, what it is, and its target, if it has one.

    The target must not be exceeded; where `bigger_is_better`, it must be reached. docs/figures.md
    shows what is `shown`, and whatever misses its target.
    """

    key: str
    text: str
    target: float | None = None
    unit: str = ""
    bigger_is_better: bool = False
    shown: bool = False

    def met_by(self, value: float | None) -> bool:
        if self.target is None or value is None:
            return self.target is None
        return value >= self.target if self.bigger_is_better else value <= self.target

    def goal(self) -> str:
        if self.target is None:
            return ""
        return f"{'≥' if self.bigger_is_better else '≤'} {number(self.target)}{self.unit}"


SPOKEN = {
    "deterministic": "own deterministic",
    "int8 deterministic": "own int8 deterministic",
    "coded gumbel": "gumbel with int8 codes",
    "faiss flat": "FAISS IndexFlatIP",
    "faiss blas": "FAISS IndexFlatIP told to use BLAS",
    "faiss fp16": "FAISS float16",
    "faiss sq8": "FAISS 8 bit",
    "sgemm": "all scores by BLAS",
    "numpy choice": "NumPy `Generator.choice`",
    "numpy gumbel": "NumPy Gumbel",
    "given gumbel": "`rank_scores`",
    "prepared gumbel": "`rank_scores` with `ItemIds`",
    "numpy softmax": "NumPy softmax and `Generator.choice` of these scores",
    "torch multinomial": "torch softmax and `multinomial` of these scores",
    "read": "reading the float32 matrix",
    "read int8": "reading a quarter of it",
    "mapped": "on a mapped catalog",
}
SMALL = f" (under {CODED_FROM:,} items kept as float32)"


def ratio(
    n: int,
    pair: str,
    target: float | None = None,
    where: str = "",
    note: str = "",
    shown: bool = False,
) -> Figure:
    """Of two contenders; where: how the case differs from one ranking, k = 10."""
    ours, peer = pair.split(" / ")
    first = ours if ours.endswith("deterministic") else SPOKEN.get(ours, ours)
    if was_float32(f"{n}: {ours}"):
        first += SMALL
    text = f"{first} / {SPOKEN.get(peer, peer)}{note}, n = {n:,}{where}"
    return Figure(f"{n}{where}: {pair}", text, target, shown=shown)


FIGURES = [
    ratio(1_000_000, "int8 gumbel / faiss flat", 0.33, shown=True),
    ratio(1_000_000, "int8 gumbel / faiss fp16", 0.70, shown=True),
    ratio(1_000_000, "int8 deterministic / faiss flat", 0.32, shown=True),
    ratio(10_000, "int8 gumbel / faiss flat", 0.60),
    ratio(1_000_000, "gumbel / read", 1.15, shown=True),
    *[
        ratio(n, f"{storage}gumbel / {storage}deterministic", 1.05, shown=True)
        for storage in ("", "int8 ")
        for n in (100_000, 1_000_000)
    ],
    ratio(100_000, "gumbel / deterministic", 1.6, ", k = 1000", shown=True),
    ratio(100_000, "int8 gumbel / int8 deterministic", 1.6, ", k = 1000", shown=True),
    *[
        ratio(100_000, "int8 gumbel / gumbel", target, f", d = {dim}, sd / T = 2", shown=True)
        for dim, target in STORAGE_DIMS.items()
    ],
    *[
        Figure(
            f"100000, d = {dim}, any sd / T: {which} int8 gumbel / gumbel",
            f"int8 gumbel / gumbel, n = 100,000, d = {dim}, {which} for sd / T from 0.25 to 40",
            target,
            shown=True,
        )
        for dim in comparisons.EMBEDDINGS
        for which, target in {"largest": 0.9, "median": 0.5}.items()
    ],
    *[
        ratio(
            100_000, "int8 gumbel / gumbel", 1.0, f", d = {dim}, batch 64, sd / T = 2", shown=True
        )
        for dim in comparisons.EMBEDDINGS
    ],
    Figure(
        "1000000: p99 / p50 of int8 gumbel",
        "p99 / p50 of single int8 gumbel rankings, n = 1,000,000",
        2.0,
        shown=True,
    ),
    # The targets were set by FAISS as it is installed; what it can do is the line below each.
    ratio(1_000_000, "gumbel / faiss flat", 0.17, ", batch 64", " as installed", shown=True),
    ratio(1_000_000, "gumbel / faiss blas", None, ", batch 64", shown=True),
    ratio(1_000_000, "int8 gumbel / faiss flat", 0.10, ", batch 64", " as installed", shown=True),
    ratio(1_000_000, "int8 gumbel / faiss blas", None, ", batch 64", shown=True),
    *[
        Figure(
            f"1000000, two threads: {name} of what memory allows",
            f"{name}: two threads' speed-up / min(2, that of reading), n = 1,000,000",
            0.9,
            bigger_is_better=True,
            shown=True,
        )
        for name in ("gumbel", "int8 gumbel")
    ],
    *[
        Figure(
            f"1000000, batch 64, two threads: speed-up of {name}",
            f"{name}: two threads' speed-up, n = 1,000,000, batch 64",
            1.8,
            bigger_is_better=True,
            shown=True,
        )
        for name in ("gumbel", "int8 gumbel")
    ],
    *[
        Figure(
            f"1000000, batch 64, two threads: {name} of what arithmetic allows",
            f"{name}: the same / min(2, that of matrix products from the caches)",
            bigger_is_better=True,
            shown=True,
        )
        for name in ("gumbel", "int8 gumbel")
    ],
    *[
        Figure(f"small call: {name}", f"whole {name} call{note}, n = 1,000 less n = 16", 8.0, " us")
        for name, note in {"gumbel": "", "int8 gumbel": SMALL}.items()
    ],
    ratio(1_000_000, "deterministic / faiss flat", 0.85),
    ratio(1_000_000, "gumbel / faiss flat", 0.90, shown=True),
    ratio(100_000, "gumbel / faiss flat", 1.00, shown=True),
    ratio(1_000_000, "gumbel / numpy choice", 0.50, shown=True),
    ratio(1_000_000, "given gumbel / numpy softmax", 0.15, shown=True),
    ratio(1_000_000, "given gumbel / torch multinomial", 0.08, shown=True),
    *[
        Figure(
            f"1000000: memory of {name}",
            f"extra memory of a call: {name}, n = 1,000,000",
            1.0,
            " MiB",
            shown=name == "gumbel",
        )
        for name in calls.SCANS
    ],
    Figure("1000000: open", "opening a catalog with 256 MB of vectors", 50.0, " ms", shown=True),
    Figure("1000000: private", "private memory of that catalog", 1.0, " MiB"),
    Figure("error", "error of a log-propensity, T from 1e-6 to 1e6", 1e-5, shown=True),
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
    ratio(10_000, "coded gumbel / faiss flat"),
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
            f"{SPOKEN.get(name, name)}: two threads' speed-up, n = 1,000,000",
        )
        for name in ("gumbel", "int8 gumbel", *calls.READS)
    ],
    *[
        Figure(
            f"1000000: memory of {name}",
            f"extra memory of a call: {name}, n = 1,000,000",
            unit=" MiB",
            shown=name == "int8 gumbel",
        )
        for name in calls.INT8
    ],
]


# ---- The run --------------------------------------------------------------------------------


def measure(quick: bool, processes: int) -> Measurements:
    """All of it; `quick` checks every contender once and measures too little to be believed."""
    taken = Measurements(fresh=not quick)
    seconds = 0.2 if quick else 4.0
    sizes = QUICK_SIZES if quick else TABLE_SIZES
    largest = sizes[-1]
    middle = min(MIDDLE, largest)
    users = 8 if quick else 64
    for process in range(processes):
        for n in sizes:
            longer = seconds * (4 if n >= 1_000_000 else 1)
            taken.take(at_size, n, process, longer, contenders_at(n, CONTENDERS))
            taken.take(at_size, n, process, longer / 2, SCORED)
            taken.take(at_size, n, process, longer / 2, INDEXED)
            taken.take(under_rules, n, process, longer / 2)
        taken.take(by_k, middle, 1000, seconds, SCANNED)
        taken.take(by_users, largest, users, 2 * seconds, BATCHED)
        for dim in STORAGE_DIMS:
            embeddings = dim in comparisons.EMBEDDINGS
            cases = {1: comparisons.BAND, users: [SPREAD]} if embeddings else {1: [SPREAD]}
            taken.take(storages, middle, dim, cases, seconds / 8)
        taken.take(single_calls, largest, process, 1 if quick else comparisons.SINGLE_ROUNDS)
        taken.take(two_threads, largest, 1, 6 * seconds)
        taken.take(two_threads, largest, users, 6 * seconds)
        for name in ("gumbel", "int8 gumbel"):
            taken.take(small_calls, name, seconds / 2)
            taken.take(worst_order, middle, name, seconds)
    for n in sizes:
        taken.take(textbooks, n, seconds, calls.TEXTBOOK)
    with tempfile.TemporaryDirectory(prefix="fastrank-") as folder:
        saved = taken.take(save, largest, f"{folder}/float32", "float32")
        taken.take(memory_of_calls, largest, saved, calls.SCANS)
        taken.take(opening, largest, saved, seconds / 4)
        if calls.present(calls.INT8):
            saved = taken.take(save, largest, f"{folder}/int8", "int8")
            taken.take(memory_of_calls, largest, saved, calls.INT8)
    taken.take(accuracy)
    return taken


def contenders_at(n: int, names: Sequence[str]) -> list[str]:
    """With codes all the same where int8 storage has none."""
    return [*names, *(calls.CODED if n < CODED_FROM else [])]


# ---- Tables ---------------------------------------------------------------------------------


def figure_table(taken: Measurements, figures: Iterable[Figure]) -> list[str]:
    """Markdown: those of the figures that were measured, their range, their target, a verdict."""
    lines = ["| | measured | range over processes | target |", "|---|---|---|---|"]
    for figure in figures:
        value = taken.median(figure.key)
        if value is None:
            continue
        values = taken.values[figure.key]
        spread = f"{number(min(values))}-{number(max(values))}" if len(values) > 1 else ""
        target = figure.goal() + ("" if figure.met_by(value) else ", **missed**")
        lines.append(f"| {figure.text} | {number(value)}{figure.unit} | {spread} | {target} |")
    return lines


def shown_table(taken: Measurements) -> list[str]:
    """The figures that docs/figures.md shows."""
    return figure_table(
        taken,
        [f for f in (*FIGURES, *EXTRA) if f.shown or not f.met_by(taken.median(f.key))],
    )


def time_table(taken: Measurements, rows: Mapping[str, str] = TABLE_ROWS) -> list[str]:
    """Markdown: milliseconds of every contender at every size."""
    known = sorted({*TABLE_SIZES, *QUICK_SIZES})
    sizes = [n for n in known if f"{n}: gumbel" in taken.values]
    columns = {f"n = {n:,}": f"{n}" for n in sizes}
    return table(taken, "ms for one ranking", columns, rows)


def short_table(taken: Measurements) -> list[str]:
    """The README's."""
    return time_table(taken, SHORT_ROWS)


def batch_table(taken: Measurements) -> list[str]:
    """Markdown: milliseconds for one of a batch of users."""
    cases = dict.fromkeys(
        where
        for where in (name.split(":")[0] for name in taken.values)
        if re.fullmatch(r"\d+, batch \d+", where)
    )
    columns = {f"n = {int(n):,},{rest}": f"{n},{rest}" for n, rest in (c.split(",") for c in cases)}
    return table(taken, "ms for each user of a batch", columns, BATCH_ROWS)


def table(
    taken: Measurements, title: str, columns: Mapping[str, str], rows: Mapping[str, str]
) -> list[str]:
    """Markdown: medians, by the text of a column and where it was measured, and rows alike."""
    lines = ["| " + " | ".join([title, *columns]) + " |", "|---|" + "---|" * len(columns)]
    for name, text in rows.items():
        names = [f"{where}: {name}" for where in columns.values()]
        if any(name in taken.values for name in names):
            lines.append("| " + " | ".join([text, *(time_cell(taken, n) for n in names)]) + " |")
    return lines


def time_cell(taken: Measurements, name: str) -> str:
    """Milliseconds; in words where int8 storage of so few items is float32 storage."""
    value = taken.median(name)
    return "" if value is None else "as float32" if was_float32(name) else milliseconds(value)


def number(value: float) -> str:
    """Three significant digits."""
    return "0" if value == 0 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def milliseconds(value: float) -> str:
    return number(value) if math.isfinite(value) else f"> {1e3 * comparisons.TEXTBOOK_CAP:,.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and short: only the checks")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes (default 5)")
    parser.add_argument(
        "--json", type=Path, help="everything measured (default docs/figures.json, none if quick)"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    if find_spec("faiss") is None:
        print("FAISS is missing: pip install '.[faiss]' in the checkout", file=sys.stderr)
        return 2
    taken = measure(options.quick, 1 if options.quick else options.processes)
    print("\n".join(f"- {name}: {value}" for name, value in taken.environment.items()))
    if options.quick:
        print("\n**Every contender was checked; nothing was measured long enough to be believed.**")
    tables = {
        "Times": time_table(taken),
        "Ratios, with what is missed": shown_table(taken),
        "Batches": batch_table(taken),
        "Every figure": figure_table(taken, (*FIGURES, *EXTRA)),
    }
    for title, lines in tables.items():
        if not (options.quick and lines[0].startswith("| |")):
            print("\n" + "\n".join([f"{title}:", "", *lines]))
    missing = [figure.text for figure in FIGURES if taken.median(figure.key) is None]
    if missing and not options.quick:
        print("\nNot to be measured here: " + "; ".join(missing) + ".")
    if options.json or not options.quick:
        taken.write(options.json or DATA)
    judged = options.check and not options.quick
    return int(judged and not all(f.met_by(taken.median(f.key)) for f in FIGURES))


if __name__ == "__main__":
    sys.exit(main())
