"""Measures how the cost of a ranking grows; writes docs/speed.md, its pictures and its raw data.

    python bench/report.py                     # draw and write from docs/speed.json
    python bench/report.py --measure           # measure first
        [--processes 3] [--seconds 4] [--quick] [--largest] [--output docs]

Measured as `figures.py` does: contenders in turns, medians over fresh processes. --largest adds
n = 10,000,000 (about 15 GB of memory). Every number in the text comes from the measurements; what
was not measured is left out of text and pictures.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# First of all: it pins the thread pools, which NumPy starts.
from benchmarks import calls
from benchmarks.comparisons import PRIORS
from benchmarks.jobs import (
    Measurements,
    at_size,
    by_dim,
    by_k,
    by_users,
    normaliser,
    prior,
    rescoring,
    small_calls,
    textbooks,
    two_threads,
    worst_order,
)
from benchmarks.workloads import REAL
from figures import NORMALISER_FACTORS, normaliser_table, number, table
from growth import BATCHED, LINES, OURS, PEERS, SCANNED, STEEP, Growth

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 10_000_000


# ---- The run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Where the cost is looked at; see `Growth` for middle and small."""

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    middle: int = 100_000
    small: int = 10_000
    ks: tuple[int, ...] = (1, 10, 100, 1000)
    dims: tuple[int, ...] = (32, 64, 128, 256)
    users: tuple[int, ...] = (1, 4, 8, 16, 64, 256)
    in_threads: int = 64  # users of the batch that two threads share
    errors: int = 200  # users whose normalisers are checked


QUICK = Plan((1_000, 10_000), 10_000, 1_000, (1, 10, 100), (32, 64), (1, 8), 8, 16)


def measure(plan: Plan, seconds: float, processes: int) -> Measurements:
    taken = Measurements()
    large, sources = plan.sizes[-1], (plan.middle, *REAL)
    everything = [*dict.fromkeys([*SCANNED, *PEERS]), *calls.READS, "sequential"]
    for process in range(processes):
        for n in plan.sizes:
            taken.take(at_size, n, process, seconds * (4 if n >= 1_000_000 else 1), everything)
        for k in plan.ks:
            taken.take(by_k, plan.middle, k, seconds, SCANNED)
            taken.take(by_k, plan.small, k, seconds / 2, ["gumbel", "sequential"])
        for dim in plan.dims:
            taken.take(by_dim, plan.middle, dim, seconds, [*OURS, "faiss flat", *calls.READS])
        for n in dict.fromkeys((plan.middle, large)):
            for users in plan.users:
                taken.take(by_users, n, users, seconds, BATCHED)
        for users in (1, plan.in_threads):
            taken.take(two_threads, large, users, 2 * seconds)
        for name in OURS:
            taken.take(small_calls, name, seconds / 2)
            taken.take(worst_order, plan.middle, name, seconds)
            for source in sources:
                for by in PRIORS:
                    taken.take(prior, source, name, by, seconds / 2)
        for source in sources:
            taken.take(rescoring, source, seconds / 2)
    for n in plan.sizes:
        taken.take(textbooks, n, seconds, STEEP)
    for k in plan.ks:
        taken.take(textbooks, plan.small, seconds / 2, STEEP, k)
    for source in sources:
        for factor in NORMALISER_FACTORS:
            taken.take(normaliser, source, plan.errors, factor)
    return taken


def measure_largest(taken: Measurements, seconds: float) -> None:
    others = [name for name in dict.fromkeys(PEERS) if name != "faiss flat"]
    for names in (SCANNED, others):  # two processes, for want of memory for all at once
        taken.take(at_size, LARGEST, 0, 10 * seconds, [*names, *calls.READS])


# ---- Text -----------------------------------------------------------------------------------


def document(growth: Growth) -> str:
    sections = [
        introduction(),
        size_section(growth),
        floor_section(growth),
        k_section(growth),
        dim_section(growth),
        batch_section(growth),
        threads_section(growth),
        order_section(growth),
        normaliser_section(growth),
        textbook_section(growth),
        environment_section(growth),
    ]
    return "\n".join(line for section in sections for line in section)


def introduction() -> list[str]:
    return [
        "# Speed",
        "",
        *paragraph(
            "Written by `python bench/report.py` from [speed.json](speed.json); `--measure`",
            "measures anew. Each time is the median over fresh processes, in which contenders take",
            "turns, on one core unless two are named; d = 64, k = 10 and normal vectors where",
            "nothing else is said.",
        ),
        *paragraph(
            "fastrank samples Plackett-Luce rankings and says how probable each was; where it says",
            "*deterministic* it ranks by score. FAISS ranks by score, from float16 and 8-bit",
            "vectors approximately. NumPy and JAX sample, or rank by score. None of them gives a",
            "propensity. *Reading* is BLAS's dot product of the float32 matrix with itself, or of",
            "a quarter of it, which has as many bytes as int8 vectors: the floor of a pass that",
            "waits for memory.",
        ),
    ]


def size_section(growth: Growth) -> list[str]:
    large, scans = growth.large, growth.scans()
    names = list(dict.fromkeys([*calls.READS, *SCANNED, *PEERS]))
    small = growth.value("small call: gumbel")
    times = [
        f"{LINES[name].text} {number(value)} ms"
        for name in [*OURS, *PEERS]
        for value in [growth.value(f"{large}: {name}")]
        if value is not None
    ]
    return [
        *heading("By catalog size", "speed-n", "Milliseconds for a ranking, by number of items"),
        *paragraph(f"At n = {large:,}: {', '.join(times)}."),
        *paragraph(
            "Every item is looked at once: d multiply-adds and one exponential. What sampling adds",
            "is random numbers, and they are few: about k (1 + ln(n / k)), which is",
            f"{10 * (1 + math.log(large / 10)):.0f} for n = {large:,}, instead of n. Below some",
            "thousands of items the call itself is what costs",
            "" if small is None else f"(n = 1,000 takes {number(small)} us more than n = 16);",
            "with more, time goes with n, a little faster than n where the matrix leaves a cache",
            "on the way. "
            + fitted(growth, "{}: ", scans, "n", f"from n = {min(scans, default=0):,} on"),
        ),
        *table(
            growth.taken,
            "ms for one ranking",
            {f"n = {n:,}": f"{n}" for n in growth.sizes},
            texts(names),
        ),
        "",
    ]


def floor_section(growth: Growth) -> list[str]:
    where = f"{growth.large}: "
    rows = [
        [LINES[name].text, *[cell(growth, f"{where}{name} / {floor}") for floor in calls.READS]]
        for name in dict.fromkeys([*SCANNED, *PEERS])
        if growth.value(f"{where}{name} / read") is not None
    ]
    return [
        *heading("Against the floor", "speed-floor", "Time in times of reading the matrix"),
        *paragraph(
            "Where a pass waits for memory, the way to be faster is to read fewer bytes. int8",
            "vectors have a quarter of them. They bound every score from above; the few items",
            "whose bound lets them enter are scored again from their float32 vectors, so the law",
            "of the rankings is that of the float32 scores.",
        ),
        *grid([f"n = {growth.large:,}", "time / reading float32", "time / reading int8"], rows),
    ]


def k_section(growth: Growth) -> list[str]:
    n, large = growth.middle, growth.ks[-1]
    entries = ", ".join(f"{k * (1 + math.log(n / k)):,.0f} for k = {k:,}" for k in growth.ks)
    costs = [
        f"{cell(growth, f'{n}, k = {large}: {storage}gumbel / {storage}deterministic')} times "
        f"its own deterministic pass from {storage.strip() or 'float32'} vectors"
        for storage in ("", "int8 ")
        if growth.value(f"{n}, k = {large}: {storage}gumbel / {storage}deterministic") is not None
    ]
    return [
        *heading("By k", "speed-k", "Milliseconds for a ranking, by its length"),
        *paragraph(
            "The pass over the items does not hang on k; entries into the ranking do. In items",
            f"without order there are about k (1 + ln(n / k)) of them: {entries}. Each takes a",
            "random number, logarithms and a place in a heap. At",
            f"k = {large:,} sampling takes {' and '.join(costs)}.",
        ),
        *table(
            growth.taken,
            f"ms, n = {n:,}",
            {f"k = {k:,}": f"{n}, k = {k}" for k in growth.ks},
            texts(SCANNED),
        ),
        "",
    ]


def dim_section(growth: Growth) -> list[str]:
    n = growth.middle
    return [
        *heading("By d", "speed-d", "Milliseconds for a ranking, by the length of a vector"),
        *paragraph(
            "A dot product takes d multiply-adds and reads 4 d bytes, d from int8 vectors: both",
            "grow with d. The exponential, the sum and the entries do not. "
            + fitted(growth, f"{n}, d = {{}}: ", growth.dims, "d"),
            "A power below 1 comes from what does not hang on d, one above 1 from a matrix that",
            "leaves a cache on the way.",
        ),
        *table(
            growth.taken,
            f"ms, n = {n:,}",
            {f"d = {d}": f"{n}, d = {d}" for d in growth.dims},
            texts([*OURS, "faiss flat", *calls.READS]),
        ),
        "",
    ]


def batch_section(growth: Growth) -> list[str]:
    gains = []
    for name in (*OURS, "faiss flat", "faiss blas"):
        _, times = growth.series(f"{growth.large}, batch {{}}: {name}", growth.users)
        if len(times) > 1:
            gains.append(f"{LINES[name].text} {number(times[0] / min(times))} times")
    peers = paragraph(
        "FAISS as installed scans for each user anew, unless there are many thousands of them;",
        "*BLAS* is FAISS told to multiply matrices from 8 users on",
        "(`faiss.cvar.distance_compute_blas_threshold`), its fastest setting that we found.",
        "*Scores alone* are such products by NumPy's BLAS, block by block, and nothing done with",
        "the scores: the floor of whoever ranks a batch that way.",
    )
    rows = texts(BATCHED) | {"faiss flat": f"{LINES['faiss flat'].text}, as installed"}
    tables: list[str] = []
    for n in dict.fromkeys((growth.middle, growth.large)):
        columns = {f"batch of {users}": f"{n}, batch {users}" for users in growth.users}
        tables += [*table(growth.taken, f"ms for each, n = {n:,}", columns, rows), ""]
    return [
        *heading("By batch size", "speed-batch", "Milliseconds for each user of a batch"),
        *paragraph(
            "The users of a batch share what is loaded: vectors come from memory once and are",
            "scored for several users, each of whom has a seed, a heap and a sum of their own.",
            "Then arithmetic is the floor, not memory. So much faster than alone is a user in the",
            f"best batch at n = {growth.large:,}: {', '.join(gains)}.",
        ),
        *(peers if growth.value(f"{growth.large}, batch {growth.users[-1]}: sgemm") else []),
        *tables,
    ]


def threads_section(growth: Growth) -> list[str]:
    n = growth.large
    rows = []
    for name in OURS:
        share = growth.value(f"{n}, two threads: {name} of what memory allows")
        in_batches = [f"{n}, batch {u}, two threads: speed-up of {name}" for u in growth.users]
        if share is not None:
            batch = next(filter(None, (cell(growth, name) for name in in_batches)), "")
            alone = cell(growth, f"{n}, two threads: speed-up of {name}")
            rows.append([LINES[name].text, alone, number(share), batch])
    if not rows:
        return []
    return [
        *heading("Two threads"),
        *paragraph(
            "A ranking is split by chunks, whose results are merged exactly. Memory may not serve",
            "two cores twice as fast as one: the share is the speed-up over that of reading alone,",
            "which counts as 2 at most.",
        ),
        *grid(
            [f"n = {n:,}", "one ranking", "share of what memory allows", "a batch"],
            rows,
        ),
    ]


def order_section(growth: Growth) -> list[str]:
    rows = []
    for name in OURS:
        orders = {f"{growth.middle}, worst order: {name}": "ascending score at T = 0.01, normal"}
        for source in (growth.middle, *REAL):
            vectors = "normal" if isinstance(source, int) else source
            for by in PRIORS:
                orders[f"{source}, prior {by}: {name}"] = f"descending {by}, {vectors}"
        rows += [
            [LINES[name].text, text, cell(growth, key)]
            for key, text in orders.items()
            if growth.value(key) is not None
        ]
    return [
        *heading("By order of the items"),
        *paragraph(
            "The law of the rankings does not hang on the order in which items are stored. The",
            "number of entries does: few where the best come first, many where they come last.",
            "`prior=` stores them by what is known of all users: the mean of their scores, say, or",
            "the length of the item's vector.",
        ),
        *grid(["", "order", "time / that of the order given"], rows),
    ]


def normaliser_section(growth: Growth) -> list[str]:
    sources: dict[int | str, str] = {growth.middle: "normal"} | {name: name for name in REAL}
    costs = [
        f"{cell(growth, f'{source}: cost of re-scoring')} times on {vectors} vectors"
        for source, vectors in sources.items()
        if growth.value(f"{source}: cost of re-scoring") is not None
    ]
    return [
        *heading("How exact the normaliser is"),
        *paragraph(
            "From float32 vectors the weights of the very scores are summed. From int8 vectors",
            "weights of rounded scores are, and rows are scored again until a bound on the error",
            'holds: `log_norm_error`, which is 0 where the kind is "exact". Errors are against',
            "float64 arithmetic on the float32 scores, one for each user.",
            f"Scoring again costs: {', '.join(costs)} the pass without it." if costs else "",
        ),
        *normaliser_table(growth.taken),
        "",
    ]


def textbook_section(growth: Growth) -> list[str]:
    names = ["gumbel", "sequential", *STEEP]
    columns = {f"n = {n:,}": f"{n}" for n in growth.usual}
    by_k = {f"k = {k:,}": f"{growth.small}, k = {k}" for k in growth.ks}
    powers = [
        [
            LINES[name].text,
            power(growth, f"{{}}: {name}", growth.scans(), "n"),
            power(growth, f"{growth.small}, k = {{}}: {name}", growth.ks, "k"),
        ]
        for name in names
    ]
    return [
        *heading("Against the textbook", "speed-textbook", "Milliseconds by n, and by k"),
        *paragraph(
            "By its definition a Plackett-Luce ranking is k draws from the softmax over what is",
            "left: O(k n). Gumbel noise on every item and a full sort is O(n log n). Both work in",
            "Python on a dictionary of scores that are there; *sequential* is the definition in",
            "C++, from the vectors.",
        ),
        *grid(["fitted growth", "with n", "with k"], powers),
        *table(growth.taken, "ms, k = 10", columns, texts(names)),
        "",
        *table(growth.taken, f"ms, n = {growth.small:,}", by_k, texts(names)),
        "",
    ]


def environment_section(growth: Growth) -> list[str]:
    processes = max(len(values) for values in growth.taken.values.values())
    lines = [f"- {name}: {value}" for name, value in growth.taken.environment.items()]
    return [*heading("Measured on"), *lines, f"- processes: {processes}", ""]


# ---- Its parts ------------------------------------------------------------------------------


def heading(text: str, picture: str = "", shows: str = "") -> list[str]:
    """A section's, and its picture."""
    return [f"## {text}", "", *([f"![{shows}](images/{picture}.svg)", ""] if picture else [])]


def paragraph(*parts: str) -> list[str]:
    return [*textwrap.wrap(" ".join(parts), 100, break_on_hyphens=False), ""]


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [*["| " + " | ".join(line) + " |" for line in lines], ""]


def cell(growth: Growth, name: str) -> str:
    value = growth.value(name)
    return "" if value is None else number(value)


def texts(names: Iterable[str]) -> dict[str, str]:
    return {name: LINES[name].text for name in names}


def power(growth: Growth, pattern: str, cases: Sequence[int], letter: str) -> str:
    slope = growth.slope(pattern, cases)
    return "" if slope is None else f"{letter}^{slope:.2f}"


def fitted(growth: Growth, where: str, cases: Sequence[int], letter: str, note: str = "") -> str:
    """A sentence about the growth of our own times."""
    found = [f"{power(growth, where + n, cases, letter)} for {LINES[n].text}" for n in OURS]
    found = [text for text in found if not text.startswith(" ")]
    return f"Fitted{' ' if note else ''}{note}: {', '.join(found)}." if found else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure before drawing")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes (default 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="a comparison (default 4)")
    parser.add_argument("--quick", action="store_true", help="small and short: only the checks")
    parser.add_argument(
        "--largest", action="store_true", help=f"measure n = {LARGEST:,}, too, or alone"
    )
    parser.add_argument("--output", type=Path, help="default docs, or build/report if quick")
    options = parser.parse_args()
    output = options.output or ROOT / ("build/report" if options.quick else "docs")
    raw = output / "speed.json"
    if options.measure:
        plan, processes = (QUICK, 1) if options.quick else (Plan(), options.processes)
        seconds = min(0.05, options.seconds) if options.quick else options.seconds
        measure(plan, seconds, processes).write(raw)
    if options.largest:
        with_largest = Measurements.read(raw) if raw.exists() else Measurements()
        measure_largest(with_largest, options.seconds)
        with_largest.write(raw)
    if not raw.exists():
        print(f"{raw} is missing: measure first (--measure)", file=sys.stderr)
        return 2
    # Here, since the processes that measure import this file and have no use for matplotlib.
    from pictures import draw

    growth = Growth(Measurements.read(raw))
    draw(growth, output / "images")
    (output / "speed.md").write_text(document(growth))
    print(output / "speed.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
