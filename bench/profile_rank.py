"""Shows where a `rank` call spends its time, layer by layer, by n, by k, with filters and rules.

    python bench/profile_rank.py [--n 1000 100000 ...] [--k 10 1000 ...] [--seconds 0.5]

Each layer is called on its own with what the real call hands it, in turns with the others; "rest"
is what the whole call takes beyond their sum. `profile_native.py` looks into the native pass.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, TypeAlias

# First of all: it pins the thread pools, which NumPy starts.
from benchmarks import calls, rules
from benchmarks.timing import Call, Timings, interleaved
from benchmarks.workloads import Workload, synthetic

# isort: split
import numpy as np
import numpy.typing as npt

import fastrank as fr
from fastrank import _native, walk
from fastrank.ask import Ask, spec_of
from fastrank.inputs import as_count, as_float32, draw_seed
from fastrank.ruled import bind_rules

Positions: TypeAlias = npt.NDArray[np.int64]

MICRO = 1e6


# ---- Layers of one call ---------------------------------------------------------------------


def layers(
    workload: Workload,
    k: int,
    policy: fr.Policy,
    allow: Positions | None = None,
    exclude: Positions | None = None,
) -> Mapping[str, Call]:
    """The whole call, and its layers as `Catalog.rank` calls them one after another."""
    catalog, query, n = workload.catalog, workload.query, len(workload)
    index, packed, spec = catalog._index, catalog._packed, spec_of(policy)
    allowed, excluded = catalog._find("allow", allow), catalog._find("exclude", exclude)
    eligible, n_eligible = catalog._eligible(excluded, allowed)
    # One and the same draw again and again would train the CPU's branch predictor.
    seeds, queries = iter(range(sys.maxsize)), cycle(workload.queries)

    def native() -> tuple[Any, ...]:
        return packed.rank(
            *(next(queries), k, spec.kind, spec.temperature, spec.epsilon, next(seeds)),
            *(None, eligible, n_eligible),
        )

    positions, scores, log_propensities, log_norm, *_ = native()

    def record() -> fr.Ranking:
        return fr.Ranking(
            item_ids=index.ids[positions],
            scores=scores,
            log_propensities=log_propensities,
            log_propensity=float(log_propensities.sum()),
            seed=1,
            policy=policy,
            log_norm=log_norm,
            n_eligible=n_eligible,
            catalog_version=catalog.version,
        )

    whole = calls.catalog_rank(workload, k, policy, allow=allow, exclude=exclude)
    parts: dict[str, Call] = {
        "whole call": whole,
        "check the query": partial(as_float32, "query", query, (catalog.dim,)),
        "check k, draw a seed": lambda: (as_count("k", k), draw_seed()),
        "policy to kernel terms": partial(spec_of, policy),
    }
    for name, ids in (("allow", allow), ("exclude", exclude)):
        if ids is not None:
            parts[f"look up {name}"] = partial(catalog._find, name, ids)
    if eligible is not None:
        parts["filter to bitset"] = partial(_native.make_filter, n, allowed, excluded)
    return parts | {"native pass": native, "ids and Ranking": record}


def ruled(workload: Workload, k: int, name: str) -> Mapping[str, Call]:
    """A call under rules, and the pass for the order that it walks down, which sums up by group
    where the rules ask for it: the rest is the walk, and masses that the pass did not tell."""
    catalog, n = workload.ruled_catalog, len(workload)
    spec = spec_of(calls.own_policy("gumbel", workload.temperature))
    given = rules.asked(name).rules
    bound = bind_rules(given, {}, catalog.features, n, lambda _, ids: np.array(ids, np.int64))
    call = Ask(workload.query, k, spec, 0, None, None, None, 1, None)
    order, joint = walk.first_of(catalog, call, bound, n, [])
    seeds, queries = iter(range(sys.maxsize)), cycle(workload.queries)

    def native() -> None:
        ask = order._replace(query=next(queries), seed=next(seeds))
        if joint is None:
            catalog._draw(ask)
        else:
            catalog._draw_labelled(ask, joint)

    sums = "" if joint is None else ", with sums by group"
    return {"whole call": calls.make(name, workload, k), f"pass of {order.k}{sums}": native}


def layer_table(columns: Mapping[str, Timings]) -> list[str]:
    """Microseconds by layer (rows) and by workload (columns)."""
    names = list(dict.fromkeys(name for timings in columns.values() for name in timings.seconds))
    rows = [[name, *[_cell(timings, name) for timings in columns.values()]] for name in names]
    rest = ["rest"]
    for timings in columns.values():
        parts = sum(timings.median(name) for name in timings.seconds if name != "whole call")
        rest.append(f"{MICRO * (timings.median('whole call') - parts):.1f}")
    return markdown(["us", *columns], [*rows, rest])


def _cell(timings: Timings, name: str) -> str:
    return f"{MICRO * timings.median(name):.1f}" if name in timings.seconds else ""


# ---- Inside the native pass -----------------------------------------------------------------


def native_table(workload: Workload, ks: Sequence[int], seconds: float) -> list[str]:
    """Microseconds of the pass by k, taken apart by passes that do less.

    - read: BLAS's dot of the matrix with itself
    - dots: `deterministic` for k = 1: all scores, a compare, a handful of entries
    - weights: the sum of `log_propensities` for one item: dots, exp, add
    - entries: what `gumbel` takes beyond weights, over the entries that a catalog in no order has
    """
    n, packed, t = len(workload), workload.catalog._packed, workload.temperature
    some_item = np.zeros(1, np.int64)
    seeds, queries = iter(range(sys.maxsize)), cycle(workload.queries)

    def ranking(k: int, kind: int) -> None:
        packed.rank(next(queries), k, kind, t, 0.0, next(seeds), None, None, n)

    def weights() -> None:
        query, kind = next(queries), _native.GUMBEL
        packed.log_propensities(query, some_item, kind, t, 0.0, None, None, n)

    passes: dict[str, Call] = {
        "read": calls.read_matrix(workload),
        "dots": partial(ranking, 1, _native.DETERMINISTIC),
        "weights": weights,
    }
    for k in ks:
        passes[f"deterministic {k}"] = partial(ranking, k, _native.DETERMINISTIC)
        passes[f"gumbel {k}"] = partial(ranking, k, _native.GUMBEL)
    timings = interleaved(passes, seconds)
    us = {name: MICRO * timings.median(name) for name in passes}
    rows = []
    for k in ks:
        entered = entries(n, k)
        beyond = us[f"gumbel {k}"] - us["weights"]
        # Where entries take little of the pass, the difference is mostly noise.
        entry = f"{1e3 * beyond / entered:.0f}" if beyond > 0.2 * us["weights"] else ""
        parts = [us[name] for name in ("read", "dots", "weights", f"deterministic {k}")]
        cells = [f"{value:.1f}" for value in (*parts, us[f"gumbel {k}"])]
        rows.append([f"{k}", *cells, f"{entered:.0f}", entry])
    header = ["k", "read", "dots", "weights", "deterministic", "gumbel", "entries", "ns an entry"]
    return markdown(header, rows)


def entries(n: int, k: int, draws: int = 5) -> float:
    """Entries into the heap under the chunk law of ext/kernels.h, simulated for keys in no order.

    The first k items count too, since each takes a draw. For keys in no order the pilot is as
    good as any other part of chunk 0.
    """
    k = min(k, n)
    size = 1024 * -(-k // 256) * _native.LANES  # of a chunk, in items
    rng = np.random.default_rng(0)
    total = 0
    for _ in range(draws):
        keys = rng.random(n)
        best: list[float] = []
        floor = 0.0
        for c, first in enumerate(range(0, n, size)):
            if c > 0 and (c & (c - 1)) == 0 and len(best) == k:
                floor = best[0]
            part: list[float] = []
            for key in keys[first : first + size][keys[first : first + size] > floor].tolist():
                if len(part) < k:
                    heapq.heappush(part, key)
                    total += 1
                elif key > part[0]:
                    heapq.heapreplace(part, key)
                    total += 1
            best = heapq.nlargest(k, best + part)
            heapq.heapify(best)
    return total / draws


# ---- The report -----------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns are also aligned as plain text."""
    table = [header, ["-" * 3 for _ in header], *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    return [
        "| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in table
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    sizes = [16, 1_000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--n", type=int, nargs="+", default=sizes)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each column or table")
    options = parser.parse_args()

    print("## A rank call, k = 10: gumbel")
    columns = {}
    for n in options.n:
        workload = synthetic(n)
        policy = calls.own_policy("gumbel", workload.temperature)
        columns[f"n = {n:,}"] = interleaved(layers(workload, 10, policy), options.seconds)
    print("\n".join(layer_table(columns)))

    for n in options.n:
        ks = [k for k in options.k if k <= n]
        if ks:
            print(f"\n## The native pass in us, n = {n:,}, {_native.isa()}")
            print("\n".join(native_table(synthetic(n), ks, options.seconds * len(ks))))

    n = max(options.n)
    workload = synthetic(n)
    print(f"\n## Filters, n = {n:,}, k = 10: gumbel")
    columns = {}
    rng = np.random.default_rng(1)
    for name, size in (("allow", 10), ("allow", 1_000), ("exclude", 100), ("exclude", n // 2)):
        if size <= n:
            ids = rng.choice(n, size, replace=False)
            columns[f"{name} {size:,}"] = interleaved(
                layers(
                    workload,
                    10,
                    calls.own_policy("gumbel", workload.temperature),
                    ids if name == "allow" else None,
                    ids if name == "exclude" else None,
                ),
                options.seconds,
            )
    print("\n".join(layer_table(columns)))

    print(f"\n## Rules, n = {n:,}, k = 10: gumbel")
    timings = {
        name: interleaved(ruled(workload, 10, name), options.seconds) for name in rules.NAMES
    }
    print("\n".join(layer_table(timings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
