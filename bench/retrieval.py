"""Measures tables, flat tails and what finds candidates, for docs/explanation/retrieval.md.

    python bench/retrieval.py                  # draw and write from what was measured
    python bench/retrieval.py --measure        # measure first
        [--processes 3] [--seconds 6] [--quick] [--largest] [--output docs]

Times are medians over fresh processes, contenders in turns, one thread. What an index finds, and
what m and factor do, is counted for some users once. --largest measures n = 10,000,000 (normal
vectors; ten minutes, most of them for the index, and 20 GB of memory), beside all else or added to
what was measured. What is measured goes to docs/retrieval.json.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

# First of all: it pins the thread pools, which NumPy starts.
from benchmarks import calls, comparisons
from benchmarks.jobs import Measurements, Values
from benchmarks.timing import interleaved
from benchmarks.workloads import LARGEST, Workload, kind_of
from figures import number
from matplotlib.figure import Figure
from style import STYLE, canvas

import fastrank as fr
from fastrank import retrieval

ROOT = Path(__file__).resolve().parents[1]
SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (5_000,)
KINDS = {
    "normal": "normal vectors",
    "falling": "vectors whose spectrum falls",
    "gowalla": "Gowalla's factors, enlarged from 41,000 on",
}
FOUND = {"gowalla": 40_981, "anime": 7_390, "clustered": 100_000}
PROBES = (1, 2, 4, 8, 16, 32, 64, 128)
WIDTHS = (16, 32, 64, 128, 256, 512)  # of a graph's search
SHARES = (0.001, 0.003, 0.01, 0.04, 0.1)
FACTORS = (1.0, 0.1, 0.01)
ROWS = {
    "cached": "**Plackett-Luce, from a table** of the user",
    "flat tail": "**flat tail**, m = 1,000, by the inverted file",
    "int8 gumbel": "Plackett-Luce by a pass, int8 storage",
    "gumbel": "Plackett-Luce by a pass",
    "faiss ivf": "FAISS IVFFlat, 16 lists, the 10 best: deterministic, approximate",
    "faiss ivf 1000": "the same, the 1,000 best",
    "faiss hnsw": "FAISS HNSW: deterministic, approximate",
    "faiss panorama": "FAISS IndexFlatIPPanorama: deterministic, exact",
    "faiss flat": "FAISS IndexFlatIP: deterministic, exact",
}
PAGE = "explanation/retrieval.md"
NAMES = {"gowalla": "Gowalla", "anime": "anime", "clustered": "clustered"}
RATIOS = (
    ("cached", "int8 gumbel"),
    ("cached", "faiss ivf"),
    ("flat tail", "faiss ivf 1000"),
    ("flat tail", "int8 gumbel"),
)


# ---- Measuring ------------------------------------------------------------------------------


def times(kind: str, n: int, seconds: float, names: Sequence[str]) -> Values:
    """Milliseconds of one ranking, k = 10, and ratios; 1,000 users, so that none soon repeats."""
    workload = kind_of(kind, n, users=1000 if n < LARGEST else 100)
    contenders = calls.present(names)
    found = comparisons.compare(workload, contenders, seconds=seconds)
    values = {f"{kind}, {n}: {name}": 1e3 * found.median(name) for name in contenders}
    for ours, peer in RATIOS:
        if ours in contenders and peer in contenders:
            values[f"{kind}, {n}: {ours} / {peer}"] = found.ratio(ours, peer)
    return values


def names_at(n: int) -> list[str]:
    """A graph of a million items takes two minutes, and of ten more than forty."""
    return [name for name in ROWS if name != "faiss hnsw" or n < 1_000_000]


def found_by(kind: str, n: int, users: int) -> Values:
    """By an inverted file and by a graph, for each width of search, of the 10 best: milliseconds,
    recall, the least user's recall; and the softmax mass that the candidates hold."""
    import faiss

    workload = kind_of(kind, n, users)
    faiss.omp_set_num_threads(1)
    own = workload.indexed_catalog.index
    assert own is not None  # it has one
    graph = faiss.IndexHNSWFlat(workload.vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    graph.add(workload.vectors)
    values: Values = {}
    for probes in PROBES:
        wide = faiss.SearchParametersIVF(nprobe=probes)
        values |= _found(workload, own.index, wide, f"{kind}, ivf, {probes}")
    for width in WIDTHS:
        wide = faiss.SearchParametersHNSW(efSearch=width)
        values |= _found(workload, graph, wide, f"{kind}, hnsw, {width}")
    return values


def _found(workload: Workload, index: Any, parameters: Any, where: str) -> Values:
    queries = [query[None] for query in workload.queries]
    m = min(1000, len(workload) // 10)
    hits, mass = np.empty(len(queries)), np.empty(len(queries))
    for i, query in enumerate(queries):
        scores = (workload.vectors @ query[0]).astype(np.float64)
        best = np.argpartition(-scores, 10)[:10]
        hits[i] = np.isin(best, index.search(query, 10, params=parameters)[1][0]).mean()
        many = index.search(query, m, params=parameters)[1][0]
        weights = np.exp((scores - scores.max()) / workload.temperature)
        mass[i] = weights[many[many >= 0]].sum() / weights.sum()
    search = calls.for_users(lambda query: index.search(query, 10, params=parameters), queries)
    return {
        f"{where}: ms": 1e3 * interleaved({"it": search}, 0.3).median("it"),
        f"{where}: recall": float(hits.mean()),
        f"{where}: least recall": float(hits.min()),
        f"{where}: mass": float(np.median(mass)),
    }


def trades_of(kind: str, n: int, users: int, draws: int) -> Values:
    """What m and factor do where all candidates are found: by a pass."""
    workload = kind_of(kind, n, users)
    model = fr.Model(workload.catalog, np.arange(users), workload.queries)
    found = retrieval.measure(
        model,
        fr.PlackettLuce(workload.temperature),
        m=[max(10, round(share * n)) for share in SHARES],
        factor=FACTORS,
        users=users,
        draws=draws,
    )
    values: Values = {}
    for share, of_share in zip(SHARES, _runs(found, len(FACTORS)), strict=True):
        for trade in of_share:
            where = f"{kind}, m = {share:g} n, factor = {trade.factor:g}"
            values |= {
                f"{where}: ess": trade.ess,
                f"{where}: least ess": trade.least_ess,
                f"{where}: lost": trade.lost,
            }
    return values


def _runs(values: Sequence[Any], length: int) -> list[Sequence[Any]]:
    return [values[first : first + length] for first in range(0, len(values), length)]


def measure(quick: bool, largest: bool, seconds: float, processes: int) -> Measurements:
    taken = Measurements(fresh=not quick)
    for _ in range(processes):
        for kind in KINDS:
            for n in QUICK_SIZES if quick else SIZES:
                taken.take(times, kind, n, seconds, names_at(n))
    if largest:
        measure_largest(taken, seconds)
    users, draws = (4, 10) if quick else (64, 100)
    for kind, n in FOUND.items():
        n = min(n, 3000) if quick else n
        taken.take(found_by, kind, n, users)
        taken.take(trades_of, kind, n, users, draws)
    return taken


def measure_largest(taken: Measurements, seconds: float) -> None:
    taken.take(times, "normal", LARGEST, 4 * seconds, names_at(LARGEST))


# ---- Pictures -------------------------------------------------------------------------------

_BLUE, _ORANGE, _GREEN = "#1f5fa8", "#c75b12", "#2c7a3f"
_KIND_STYLE = {"gowalla": (_BLUE, "o"), "anime": (_ORANGE, "s"), "clustered": (_GREEN, "^")}


def found_picture(taken: Measurements) -> Figure:
    """Recall of the 10 best against the time of the search, for both indexes."""
    figure, panels = canvas(7.4, panels=2)
    upper, lower = panels
    for kind, (colour, marker) in _KIND_STYLE.items():
        for index, widths, style in (("ivf", PROBES, "-"), ("hnsw", WIDTHS, "--")):
            where = [f"{kind}, {index}, {width}" for width in widths]
            name = f"{NAMES[kind]}, {'inverted file' if index == 'ivf' else 'graph'}"
            upper.plot(
                [1e3 * ms for ms in _all(taken, where, "ms")],
                _all(taken, where, "recall"),
                style,
                color=colour,
                marker=marker,
                markersize=5,
                label=name,
            )
        mass = _all(taken, [f"{kind}, ivf, {probes}" for probes in PROBES], "mass")
        lower.plot(PROBES[: len(mass)], mass, "-", color=colour, marker=marker, label=NAMES[kind])
    upper.set_xscale("log")
    upper.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    upper.set_xlabel("microseconds of a search for the 10 best")
    upper.set_ylabel("of the 10 best found")
    upper.set_title("What an index finds of the 10 best")
    lower.set_xscale("log")
    lower.set_xticks(PROBES, [str(probes) for probes in PROBES])
    lower.set_xlabel("lists that a search looks into (n_probes)")
    lower.set_ylabel("share of the softmax")
    lower.set_title("What 1,000 candidates hold of Plackett-Luce's first place")
    for axes in panels:
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _all(taken: Measurements, where: Sequence[str], what: str) -> list[float]:
    """A value for each place, or none at all."""
    found = [taken.median(f"{each}: {what}") for each in where]
    return [value for value in found if value is not None]


def trade_picture(taken: Measurements) -> Figure:
    """A panel for each kind: ESS against the score lost, a line for each factor, a point each m."""
    kinds = [kind for kind in NAMES if f"{kind}, m = 0.01 n, factor = 1: ess" in taken.values]
    figure, panels = canvas(3.3 * len(kinds), panels=len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        for factor, colour in zip(FACTORS, (_BLUE, _ORANGE, _GREEN), strict=True):
            where = [f"{kind}, m = {share:g} n, factor = {factor:g}" for share in SHARES]
            lost, ess = _all(taken, where, "lost"), _all(taken, where, "ess")
            axes.plot(lost, ess, "-", color=colour, marker="o", label=f"factor {factor:g}")
            for x, y, share in zip(lost, ess, SHARES, strict=True):
                if share not in (SHARES[0], 0.01, SHARES[-1]):
                    continue
                axes.annotate(
                    f"{100 * share:g}%",
                    (x, y),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                )
        axes.axvline(0.0, color="#888888", linewidth=0.8)
        axes.set_ylim(-0.03, 1.05)
        axes.set_xlabel("score lost (below 0: gained), of what Plackett-Luce has above uniform")
        axes.set_ylabel("effective share of rows")
        axes.set_title(f"{NAMES[kind]}, n = {FOUND[kind]:,}")
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure


# ---- Text -----------------------------------------------------------------------------------


def time_tables(taken: Measurements) -> str:
    """Microseconds by contender and n, for each kind of vectors; and the ratios that have bars."""
    parts = []
    for kind, words in KINDS.items():
        sizes = [
            n for n in (*QUICK_SIZES, *SIZES, LARGEST) if f"{kind}, {n}: cached" in taken.values
        ]
        if not sizes:
            continue
        lines = [
            f"| {words}, us | " + " | ".join(f"n = {n:,}" for n in sizes) + " |",
            "|---|" + "---:|" * len(sizes),
        ]
        for name, text in ROWS.items():
            found = [taken.median(f"{kind}, {n}: {name}") for n in sizes]
            cells = ["" if ms is None else number(1e3 * ms) for ms in found]
            lines.append(f"| {text} | " + " | ".join(cells) + " |")
        for ours, peer in RATIOS:
            found = [taken.median(f"{kind}, {n}: {ours} / {peer}") for n in sizes]
            cells = ["" if ratio is None else number(ratio) for ratio in found]
            words_of = {"cached": "table", "faiss ivf": "FAISS IVFFlat, 10 best"}
            words_of["faiss ivf 1000"] = "FAISS IVFFlat, 1,000 best"
            text = f"{words_of.get(ours, ours)} / {words_of.get(peer, peer)}"
            lines.append(f"| {text} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    about = "; ".join(f"{name}: {value}" for name, value in taken.environment.items())
    return "\n\n".join(parts) + "\n\n" + textwrap.fill(f"Measured on {about}.", 130)


def write(taken: Measurements, output: Path) -> None:
    style = {**STYLE, "axes.grid": True}
    images = output / "images"
    images.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style):
        for name, picture in {"found": found_picture, "trades": trade_picture}.items():
            path = images / f"retrieval-{name}.svg"
            picture(taken).savefig(path, metadata={"Date": None})
    page = output / PAGE
    text = (page if page.exists() else ROOT / "docs" / PAGE).read_text()
    pattern = r"(<!-- times: bench/retrieval.py -->\n).*?(\n<!-- end -->)"
    tables = time_tables(taken)
    text, count = re.subn(
        pattern, lambda found: f"{found[1]}\n{tables}\n{found[2]}", text, flags=re.S
    )
    if count != 1:
        raise SystemExit(f"{page} has no place for the times")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--quick", action="store_true", help="check all, measure nothing")
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    data = given.output / "retrieval.json"
    if given.quick:
        given.output = Path("build/retrieval-quick")
        try:
            write(measure(True, False, 0.1, 1), given.output)
        except NotImplementedError as error:  # by which benchmarks tell asv what they lack: data
            print(f"skipped: {error}")
        return
    if given.measure:
        measure(False, given.largest, given.seconds, given.processes).write(data)
    elif given.largest:
        before, added = Measurements.read(data), Measurements()
        measure_largest(added, given.seconds)
        for name in added.values:
            before.values.pop(name, None)
        before.pooled(added).write(data)
    write(Measurements.read(data), given.output)


if __name__ == "__main__":
    main()
