"""Measures how the cost of a ranking grows; writes docs/speed.md and the tables of docs/figures.md.

    python bench/report.py                     # draw and write from what was measured
    python bench/report.py --measure           # measure first
        [--processes 3] [--seconds 4] [--quick] [--largest] [--output docs]

Measured as `figures.py` does: contenders in turns, medians over fresh processes. --largest adds
n = 10,000,000 (about 15 GB of memory). What is measured goes to docs/speed.json; what `figures.py`
measured, docs/figures.json, is pooled with it, so that all pages and the README say the same. Every
number in the text comes from these; what was not measured is left out of text and pictures.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# First of all: it pins the thread pools, which NumPy starts.
from benchmarks import calls
from benchmarks.comparisons import BAND, EMBEDDINGS, PRIORS
from benchmarks.jobs import (
    Measurements,
    at_size,
    by_dim,
    by_k,
    by_users,
    normaliser,
    prior,
    rescoring,
    rows_read,
    small_calls,
    storages,
    textbooks,
    two_threads,
    was_float32,
    worst_order,
)
from benchmarks.workloads import CODED_FROM, DIM, LARGEST, REAL
from figures import (
    DATA,
    FIGURES,
    contenders_at,
    figure_table,
    number,
    short_table,
    shown_table,
    table,
    time_table,
)
from growth import BATCHED, FLAT, LINES, OURS, PEERS, SCANNED, STEEP, Growth

ROOT = Path(__file__).resolve().parents[1]
# Times the temperature that suits the scores: peaked laws depend on few items' errors, flat ones on
# the sum of many.
FACTORS = [0.1, 1.0, 10.0]
SHORT = 4  # dimensions of vectors that cost little, where the order of items counts for more


# ---- The run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Where the cost is looked at; see `Growth` for middle and small."""

    sizes: tuple[int, ...] = (1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    middle: int = 100_000
    small: int = 10_000
    few: int = 20_000  # not many for codes
    ks: tuple[int, ...] = (1, 10, 100, 1000)
    dims: tuple[int, ...] = (32, 64, 128, 256, *EMBEDDINGS)
    users: tuple[int, ...] = (1, 4, 8, 16, 64, 256)
    together: int = 64  # users of the batch of long vectors
    in_threads: int = 64  # users of the batch that two threads share
    coded: tuple[int | str, ...] = (20_000, 100_000, 1_000_000, *REAL)  # int8's normalisers
    errors: int = 200  # users whose normalisers are checked


QUICK = Plan(
    sizes=(1_000, 10_000, 20_000),
    middle=20_000,
    small=1_000,
    ks=(1, 10, 100),
    dims=(32, 64),
    users=(1, 8),
    together=8,
    in_threads=8,
    coded=(20_000, *REAL),
    errors=16,
)


def measure(plan: Plan, seconds: float, processes: int) -> Measurements:
    taken = Measurements(fresh=plan is not QUICK)
    large, sources = plan.sizes[-1], (plan.middle, *REAL)
    everything = [*dict.fromkeys([*SCANNED, *PEERS]), *calls.READS, "sequential"]
    for process in range(processes):
        for n in plan.sizes:
            longer = seconds * (4 if n >= 1_000_000 else 1)
            taken.take(at_size, n, process, longer, contenders_at(n, everything))
            if n <= plan.middle:  # larger ones take minutes
                taken.take(textbooks, n, seconds, STEEP)
        for k in plan.ks:
            taken.take(by_k, plan.middle, k, seconds, SCANNED)
            taken.take(by_k, plan.small, k, seconds / 2, ["gumbel", "sequential"])
            taken.take(textbooks, plan.small, seconds / 2, STEEP, k)
        for dim in plan.dims:
            taken.take(by_dim, plan.middle, dim, seconds, [*OURS, "faiss flat", *calls.READS])
        for dim in EMBEDDINGS:
            taken.take(storages, plan.middle, dim, {1: BAND, plan.together: BAND}, seconds / 8)
            if plan.few < plan.middle:
                taken.take(storages, plan.few, dim, {1: BAND}, seconds / 8)
        for n in dict.fromkeys((plan.middle, large)):
            for users in plan.users:
                taken.take(by_users, n, users, seconds, BATCHED)
        for users in (1, plan.in_threads):
            taken.take(two_threads, large, users, 2 * seconds)
        for name in OURS:
            taken.take(small_calls, name, seconds / 2)
            for dim in (SHORT, DIM):
                taken.take(worst_order, plan.middle, name, seconds, dim)
            for source in sources:
                for by in PRIORS:
                    taken.take(prior, source, name, by, seconds / 2)
        for source in plan.coded:
            taken.take(rescoring, source, seconds / 2, FACTORS)
    for n in plan.sizes:
        if n > plan.middle:
            taken.take(textbooks, n, seconds, STEEP)
    taken.take(normaliser, plan.middle, plan.errors, FACTORS, ["float32"])
    for source in plan.coded:
        taken.take(normaliser, source, plan.errors, FACTORS, ["codes"])
        taken.take(rows_read, source, plan.errors, FACTORS)
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
        storage_section(growth),
        order_section(growth),
        normaliser_section(growth),
        textbook_section(growth),
        target_section(growth),
        environment_section(growth),
    ]
    return "\n".join(line for section in sections for line in section)


def introduction() -> list[str]:
    return [
        "# Speed",
        "",
        *paragraph(
            "Written by `python bench/report.py` from [speed.json](speed.json), and",
            "[figures.json](figures.json), which `bench/figures.py` measured; `--measure` measures",
            "anew. Each time is the median over fresh processes, in which contenders take",
            "turns, on one core unless two are named; d = 64, k = 10 and normal vectors where",
            "nothing else is said. Where memory is shared with others' work, one and the same case",
            "may differ from one table to the next: compare within a table.",
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
    large = growth.large
    ours = [*SCANNED[:4], *calls.CODED]
    names = list(dict.fromkeys([*calls.READS, *ours, *SCANNED, *PEERS]))
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
            "on the way. " + fitted(growth, "{}: ", growth.scans(), "n"),
        ),
        *paragraph(
            f"int8 storage keeps fewer than {CODED_FROM:,} items as float32: they fit a core's",
            "caches, where reading less saves less than scoring items twice costs.",
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
            "The pass over the items does not depend on k; entries into the ranking do. In items",
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
            "A power below 1 comes from what does not depend on d, one above 1 from a matrix that",
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
    ours = [name for name in OURS if growth.value(f"{n}, two threads: speed-up of {name}")]
    if not ours:
        return []
    batches = {users: f"{n}, batch {users}, two threads" for users in growth.users}
    users, batch = next(
        (users, where)
        for users, where in batches.items()
        if growth.value(f"{where}: speed-up of {ours[0]}")
    )
    rows = [
        [
            LINES[name].text,
            *[
                cell(growth, f"{where}: {value}")
                for where, limit in ((f"{n}, two threads", "memory"), (batch, calls.ARITHMETIC))
                for value in (f"speed-up of {name}", f"{name} of what {limit} allows")
            ],
        ]
        for name in ours
    ]
    return [
        *heading("Two threads"),
        *paragraph(
            "A ranking is split by chunks, whose results are merged exactly. It waits for memory,",
            "which may not serve two cores twice as fast as one. A batch computes, and two cores",
            "of a shared host are not always two whole ones. So beside each speed-up stands its",
            "share of what the machine allowed in the same minutes: the speed-up of reading alone,",
            "and of matrix products from the caches alone, which count as 2 at most.",
        ),
        *grid(
            [
                f"n = {n:,}",
                "one ranking",
                "share of what memory allows",
                f"a batch of {users}",
                "share of what arithmetic allows",
            ],
            rows,
        ),
    ]


def storage_section(growth: Growth) -> list[str]:
    """Where int8 is the slower storage, which is for the user to know before the faster."""
    pair = "int8 gumbel / gumbel", "int8 deterministic / deterministic"
    suffix = f": {pair[0]}"
    cases = dict.fromkeys(
        name.removesuffix(suffix)
        for name in growth.taken.values
        if name.endswith(suffix) and "sd / T" not in name
    )
    rows = []
    for where in sorted(cases, key=case_order):
        small = was_float32(f"{where}: {pair[0]}")
        of_codes = [of.replace("int8", "coded") if small else of for of in pair]
        ratios = [growth.value(f"{where}: {of}") for of in of_codes]
        if any(ratios):
            case = spoken_case(where) + (", codes all the same" if small else "")
            rows.append([case, *[slower_in_bold(r) for r in ratios]])
    return [
        *heading("int8 against float32"),
        *paragraph(
            "Codes save reading. Where something else is what costs, they are slower, in bold:",
            "arithmetic in batches, where float32 vectors are read once for many users, entries",
            "for a large k, the normaliser with few dimensions or items. So fewer than",
            f"{CODED_FROM:,} items are kept as float32.",
        ),
        *grid(["int8's time / float32's", "Plackett-Luce", "deterministic"], rows),
        *long_vectors(growth),
        *percentiles(growth),
    ]


def long_vectors(growth: Growth) -> list[str]:
    """int8 against float32 at the dimensions of text embeddings, by temperature."""
    pair = "int8 gumbel / gumbel"
    suffix = f", sd / T = {BAND[0]:g}: {pair}"
    cases = [n.removesuffix(suffix) for n in growth.taken.values if n.endswith(suffix)]
    if not cases:
        return []
    rows = []
    for where in sorted(cases, key=case_order):
        ratios = [growth.value(f"{where}, sd / T = {spread:g}: {pair}") for spread in BAND]
        rows.append([spoken_case(where), *[slower_in_bold(r) for r in ratios]])
    most = [
        f"{cell(growth, name)} with d = {dim}"
        for dim in EMBEDDINGS
        for name in [f"{growth.middle}, d = {dim}, any sd / T: largest {pair}"]
        if growth.value(name) is not None
    ]
    return [
        *paragraph(
            "Text embeddings have hundreds of dimensions: more reading to be saved. How many",
            "float32 vectors the normaliser takes besides depends on the temperature: few where",
            "the law is flat or peaked. So below goes by sd / T, the standard deviation of a",
            "user's scores over T, which is 2 above.",
            f"At n = {growth.middle:,} one user's ranking takes at most so much of float32's time:"
            if most
            else "",
            f"{', '.join(most)}." if most else "",
            "Of few items all may be needed at a middling temperature, and then codes cost time",
            "instead of saving it. Users of a batch share the reading, so it saves less there.",
        ),
        *grid(["int8's time / float32's", *[f"sd / T = {spread:g}" for spread in BAND]], rows),
    ]


def percentiles(growth: Growth) -> list[str]:
    """Of single rankings, from both storages."""
    n = growth.large
    columns = ["p50", "p99", "p99 / p50"]
    rows = [
        [LINES[name].text, *[cell(growth, f"{n}: {column} of {name}") for column in columns]]
        for name in OURS
        if growth.value(f"{n}: p50 of {name}") is not None
    ]
    if not rows:
        return []
    return [
        *paragraph(
            "The same for every user? Single rankings of 700 users, both storages in turns: half",
            "of them take less than p50 and one in a hundred more than p99.",
        ),
        *grid([f"ms for one ranking, n = {n:,}", "p50", "p99", "p99 / p50"], rows),
    ]


def slower_in_bold(ratio: float | None) -> str:
    return "" if ratio is None else f"**{number(ratio)}**" if ratio > 1.0 else number(ratio)


def case_order(where: str) -> tuple[int, str, list[int]]:
    """By n alone first, then by what else varies."""
    numbers = [int(number) for number in re.findall(r"\d+", where)]
    return len(numbers), re.sub(r"\d+", "", where), numbers


def spoken_case(where: str) -> str:
    n, *rest = where.split(",")
    return ",".join([f"n = {int(n):,}", *rest])


def order_section(growth: Growth) -> list[str]:
    rows = []
    for name in (*OURS, "coded gumbel"):
        n = growth.middle
        ascending = f"ascending score at T = 0.01, {source_text(n)}"
        orders = {
            f"{n}, worst order: {name}": ascending,
            f"{n}, d = {SHORT}, worst order: {name}": f"{ascending}, d = {SHORT}",
        }
        sources: list[int | str] = [growth.middle, *REAL]
        for source in sources:
            for by in PRIORS:
                orders[f"{source}, by {by}: {name}"] = f"descending {by}, {source_text(source)}"
        rows += [
            [LINES[name].text, text, cell(growth, key)]
            for key, text in orders.items()
            if growth.value(key) is not None
        ]
    return [
        *heading("By order of the items"),
        *paragraph(
            "The law of the rankings does not depend on the order in which items are stored. The",
            "number of entries does: few where the best come first, many where they come last.",
            "`prior=` stores them by what is known of all users: the mean of their scores, say, or",
            "the length of the item's vector.",
        ),
        *grid(["", "order", "time / that of no order"], rows),
    ]


def normaliser_section(growth: Growth) -> list[str]:
    errors = ["exact", "median error", "largest error", "largest bound", "beyond the bound"]
    costs = ["rows read", "all rows read", "time / unchecked", "time / float32"]
    shares = ("exact", "all rows read")

    def rows(columns: Sequence[str]) -> list[list[str]]:
        suffix = f": {columns[0]}"
        found = []
        for where in [n.removesuffix(suffix) for n in growth.taken.values if n.endswith(suffix)]:
            source, factor, storage = where.split(", ")
            values = [growth.value(f"{where}: {column}") for column in columns]
            cells = [
                "" if v is None else f"{v:.0%}" if column in shares else number(v)
                for column, v in zip(columns, values, strict=True)
            ]
            text = {"codes": "int8"}.get(storage, storage)
            found.append([text, source_text(source), factor.replace("x", "×"), *cells])
        return found

    case = ["storage", "vectors", "temperature"]
    costly = rows(costs)
    return [
        *heading("How exact the normaliser is"),
        *paragraph(
            "From float32 vectors the weights of the very scores are summed. From int8 codes",
            "weights of rounded scores are, and rows are scored again until a bound on the error",
            'holds: `log_norm_error`, which is 0 where the kind is "exact". Errors are against',
            "float64 arithmetic on the float32 scores, one for each user. T is 0.5 for normal",
            "vectors, whose scores have a standard deviation of 1; for real ones it gives the",
            "first user's softmax a perplexity of 100. Small catalogs have codes here, too.",
        ),
        *grid([*case, *errors], rows(errors)),
        *(
            paragraph(
                "What that takes: float32 rows that a ranking reads, for the normaliser and for",
                "what enters, by the pages of the mapped file that it touches; how many rankings",
                "read them all, since the bound could not be had for less; and time, over that of",
                "a ranking with a normaliser that may be off by a factor of e, and over that from",
                "float32 storage.",
            )
            if costly
            else []
        ),
        *(
            grid(
                [
                    *case,
                    "float32 rows read (median)",
                    "rankings that read all",
                    "time / without scoring again",
                    "time / float32 storage",
                ],
                costly,
            )
            if costly
            else []
        ),
    ]


def source_text(source: int | str) -> str:
    """Vectors, by their number or name."""
    return f"{int(source):,} normal" if str(source).isdigit() else str(source)


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


def target_section(growth: Growth) -> list[str]:
    return [
        *heading("Targets"),
        *paragraph(
            "What this project set out to reach, by what was measured here; what misses its target",
            "says so.",
        ),
        *figure_table(growth.taken, FIGURES),
        "",
    ]


def environment_section(growth: Growth) -> list[str]:
    processes = max(len(values) for values in growth.taken.values.values())
    lines = [f"- {name}: {value}" for name, value in growth.taken.environment.items()]
    return [*heading("Measured on"), *lines, f"- processes: up to {processes}", ""]


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
    if slope is None:
        return ""
    return f"none with {letter}" if abs(slope) < FLAT else f"{letter}^{slope:.2f}"


def fitted(growth: Growth, where: str, cases: Sequence[int], letter: str) -> str:
    """A sentence about the growth of our own times."""
    found = []
    for name in OURS:
        over, _ = growth.series(where + name, cases)
        if len(over) > 1:
            rate = power(growth, where + name, cases, letter)
            start = f" from n = {over[0]:,} on" if letter == "n" else ""
            found.append(f"{rate} for {LINES[name].text}{start}")
    return f"Fitted: {', '.join(found)}." if found else ""


# ---- Tables in other pages --------------------------------------------------------------------


def with_tables(text: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The text with these lines in the place of those after `<!-- name` up to `<!-- end -->`."""
    for name, lines in tables.items():
        parts = re.split(rf"(<!-- {name}\b.*?-->\n\n).*?(\n\n<!-- end -->)", text, flags=re.DOTALL)
        before, start, end, after = parts  # once, or else there is nothing to unpack
        text = before + start + "\n".join(lines) + end + after
    return text


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
    output = output.resolve()
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

    taken = Measurements.read(raw)
    if output == DATA.parent and DATA.exists():
        taken = taken.pooled(Measurements.read(DATA))
    growth = Growth(taken)
    draw(growth, output / "images")
    (output / "speed.md").write_text(document(growth))
    print(output / "speed.md")
    if output == DATA.parent:
        pages = {
            ROOT / "README.md": {"short": short_table(taken)},
            output / "figures.md": {"times": time_table(taken), "figures": shown_table(taken)},
        }
        for page, tables in pages.items():
            page.write_text(with_tables(page.read_text(), tables))
            print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
