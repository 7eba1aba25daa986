"""What `figures.py` and `report.py` measure: values by name, each job in a fresh process.

Names say where, then what: ``"1000000: gumbel"`` is milliseconds for one ranking at n = 1,000,000,
d = 64, k = 10; ``"1000000: gumbel / read"`` a ratio; ``"100000, k = 100: gumbel"`` the same at
another k. What is not to be had here (an older fastrank, a peer that is not installed, real data)
is left out.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

import fastrank as fr
from fastrank import _native

from . import calls, comparisons, memory, opened, rules
from .timing import Timings, interleaved
from .workloads import DIM, synthetic, workload

__all__ = [
    "Measurements",
    "Values",
    "accuracy",
    "at_size",
    "by_dim",
    "by_k",
    "by_users",
    "environment",
    "memory_of_calls",
    "normaliser",
    "opening",
    "prior",
    "rescoring",
    "rows_read",
    "save",
    "single_calls",
    "small_calls",
    "storages",
    "textbooks",
    "two_threads",
    "under_rules",
    "was_float32",
    "worst_order",
]

Values: TypeAlias = dict[str, float]
T = TypeVar("T")

MILLI, MICRO, MEBIBYTE = 1e3, 1e6, 1 << 20
# Of these the ratio to everything that they were measured with is kept, of others that to "read".
_RATED = (
    *("gumbel", "deterministic", "cached", "faiss flat"),
    *("int8 gumbel", "int8 deterministic", *calls.CODED),
    *calls.GIVEN,
)
_TEMPERATURES = [10.0**power for power in range(-6, 7)]


# ---- Jobs -----------------------------------------------------------------------------------


def _values(where: str, timings: Timings, users: int = 1) -> Values:
    """Milliseconds for one user's ranking, and ratios."""
    values = {f"{where}: {name}": MILLI * timings.median(name) / users for name in timings.seconds}
    for name in timings.seconds:
        for other in timings.seconds:
            if name != other and (name in _RATED or other.startswith("read")):
                values[f"{where}: {name} / {other}"] = timings.ratio(name, other)
    return values


def at_size(n: int, seed: int, seconds: float, names: Sequence[str]) -> Values:
    """One ranking by each contender. "mapped" is gumbel on a catalog opened from disk."""
    normal = synthetic(n, seed=seed)
    made = calls.present(name for name in names if name != "mapped")
    contenders = {name: calls.make(name, normal) for name in made}
    if "mapped" not in names:
        return _values(f"{n}", interleaved(contenders, seconds))
    with tempfile.TemporaryDirectory(prefix="fastrank-") as folder:
        opened.save(normal, folder)
        policy = calls.own_policy("gumbel", normal.temperature)
        catalog = fr.Catalog.open(folder)
        contenders["mapped"] = calls.catalog_rank(normal, 10, policy, catalog=catalog)
        return _values(f"{n}", interleaved(contenders, seconds))


def under_rules(n: int, seed: int, seconds: float) -> Values:
    """One ranking under each of `rules`, and over one without."""
    normal = synthetic(n, seed=seed)
    names = calls.present(rules.NAMES)
    made = {name: calls.make(name, normal) for name in ("gumbel", *names)}
    timings = interleaved(made, seconds)
    times = {f"{n}: {name}": MILLI * timings.median(name) for name in names}
    return times | {f"{n}: {name} / gumbel": timings.ratio(name, "gumbel") for name in names}


def by_k(n: int, k: int, seconds: float, names: Sequence[str]) -> Values:
    return _values(
        f"{n}, k = {k}", comparisons.compare(synthetic(n), calls.present(names), k, seconds)
    )


def by_dim(n: int, dim: int, seconds: float, names: Sequence[str]) -> Values:
    timings = comparisons.compare(synthetic(n, dim), calls.present(names), seconds=seconds)
    return _values(f"{n}, d = {dim}", timings)


def by_users(n: int, users: int, seconds: float, names: Sequence[str]) -> Values:
    """Batches of so many users; milliseconds are those of one."""
    timings = comparisons.batches(synthetic(n), calls.present(names), users, seconds)
    return _values(f"{n}, batch {users}", timings, users)


def storages(n: int, dim: int, cases: Mapping[int, Sequence[float]], seconds: float) -> Values:
    """int8 against float32 by users of a batch, 1 for none, and standard deviations / T of scores.

    Over all of the latter, the largest and the median ratio besides.
    """
    if not calls.present(["int8 gumbel"]):
        return {}
    normal, pair = synthetic(n, dim), "int8 gumbel / gumbel"
    values: Values = {}
    for users, spreads in cases.items():
        where = f"{n}, d = {dim}" if users == 1 else f"{n}, d = {dim}, batch {users}"
        for spread, timings in comparisons.storages(normal, spreads, users, seconds).items():
            values |= _values(f"{where}, sd / T = {spread:g}", timings, users)
        if len(spreads) > 1:
            ratios = [values[f"{where}, sd / T = {spread:g}: {pair}"] for spread in spreads]
            values[f"{where}, any sd / T: largest {pair}"] = max(ratios)
            values[f"{where}, any sd / T: median {pair}"] = statistics.median(ratios)
    return values


def single_calls(n: int, seed: int, rounds: int) -> Values:
    """Milliseconds that half and that 99 % of single rankings stay below."""
    if not calls.present(["int8 gumbel"]):
        return {}
    timings = comparisons.single_calls(n, seed, rounds)
    values = {}
    for name in timings.seconds:
        middle, high = (timings.percentile(name, percent) for percent in (50.0, 99.0))
        values[f"{n}: p50 of {name}"] = MILLI * middle
        values[f"{n}: p99 of {name}"] = MILLI * high
        values[f"{n}: p99 / p50 of {name}"] = high / middle
    return values


def two_threads(n: int, users: int, seconds: float) -> Values:
    """How many times as fast two threads are as one, and which share of what the machine allows.

    A ranking waits for memory, which allows two cores at most twice what one reads, and less where
    one takes most of it. A batch computes: two cores of a shared host may not be twice one.
    """
    where = f"{n}, two threads" if users == 1 else f"{n}, batch {users}, two threads"
    names = calls.present(["gumbel", "int8 gumbel"], threads=2)
    if not names:
        return {}
    floors = calls.READS if users == 1 else [calls.ARITHMETIC]
    timings = comparisons.threads(synthetic(n), [*names, *floors], users, seconds)
    values = {
        f"{where}: speed-up of {name}": timings.ratio(f"{name}, 1", f"{name}, 2")
        for name in [*names, *floors]
    }
    for name in names:
        floor = floors[-1] if calls.storage_of(name) == "int8" else floors[0]
        allowed = min(2.0, values[f"{where}: speed-up of {floor}"])
        limit = "memory" if users == 1 else floor
        values[f"{where}: {name} of what {limit} allows"] = (
            values[f"{where}: speed-up of {name}"] / allowed
        )
    return values


def textbooks(n: int, seconds: float, names: Sequence[str], k: int | None = None) -> Values:
    """Milliseconds of textbook procedures, infinite where one was stopped; k is 10 if not named."""
    normal = synthetic(n)
    where = f"{n}" if k is None else f"{n}, k = {k}"
    timings = {name: comparisons.textbook(normal, name, k or 10, seconds) for name in names}
    return {f"{where}: {name}": MILLI * timings[name].median(name) for name in names}


def small_calls(name: str, seconds: float) -> Values:
    """Microseconds of a whole call at n = 1,000 beyond one at n = 16."""
    if not calls.present([name]):
        return {}
    timings = comparisons.small_calls(name, seconds)
    return {f"small call: {name}": MICRO * timings.difference("1000", "16")}


def worst_order(n: int, name: str, seconds: float, dim: int = DIM) -> Values:
    """Time in ascending order of scores, relative to no order."""
    if not calls.present([name]):
        return {}
    timings = comparisons.worst_order(n, name, seconds, dim)
    where = f"{n}, worst order" if dim == DIM else f"{n}, d = {dim}, worst order"
    return {f"{where}: {name}": timings.ratio("ascending", "shuffled")}


def prior(source: int | str, name: str, by: str, seconds: float) -> Values:
    """Time on a catalog sorted by a prior, relative to a shuffled one; int8 has codes."""
    try:
        items = workload(source)
        timings = comparisons.prior_order(items, name, by, seconds)
    except NotImplementedError:
        return {}
    label = calls.with_codes(name, len(items))
    return {f"{source}, by {by}: {label}": timings.ratio("sorted", "shuffled")}


def normaliser(
    source: int | str, users: int, factors: Sequence[float], storages: Sequence[str]
) -> Values:
    """Errors of log_norm at so many times the workload's temperature.

    storages: as for `Workload.stored`.
    """
    values = {}
    if "codes" in storages and not calls.present(["coded gumbel"]):
        return {}
    try:
        many = workload(source, users)
    except NotImplementedError:
        return {}
    for storage, factor in itertools.product(storages, factors):
        found = comparisons.normalisers(many, storage, factor * many.temperature)
        where = f"{source}, T x {factor:g}, {storage}"
        values[f"{where}: exact"] = found.exact
        values[f"{where}: median error"] = float(statistics.median(found.errors))
        values[f"{where}: largest error"] = float(found.errors.max())
        values[f"{where}: largest bound"] = float(found.bounds.max())
        # How many errors are beyond what was stated, float rounding aside: none should be.
        values[f"{where}: beyond the bound"] = float((found.errors > found.bounds + 1e-5).sum())
    return values


def rescoring(source: int | str, seconds: float, factors: Sequence[float]) -> Values:
    """What the normaliser costs with codes: time relative to no re-scoring, and to float32."""
    try:
        found = comparisons.rescoring(workload(source), factors, seconds)
    except NotImplementedError:
        return {}
    values = {}
    for factor, timings in found.items():
        for other in ("unchecked", "float32"):
            where = f"{source}, T x {factor:g}, codes"
            values[f"{where}: time / {other}"] = timings.ratio("codes", other)
    return values


def rows_read(source: int | str, users: int, factors: Sequence[float]) -> Values:
    """How many float32 rows a gumbel ranking from codes reads, and how often it reads them all."""
    if not calls.present(["coded gumbel"]):
        return {}
    try:
        items = workload(source, users)
        memory.use_small_pages()
    except NotImplementedError:
        return {}
    values = {}
    with tempfile.TemporaryDirectory(prefix="fastrank-") as folder:
        items.shuffled().packed("codes").save(folder)
        catalog = fr.Catalog.open(folder)
        n_bytes = sum(np.load(p, mmap_mode="r").nbytes for p in Path(folder).glob("vectors*"))
        read_by = partial(memory.rows_read, name="vectors", n_rows=len(items), n_bytes=n_bytes)

        def everything() -> None:
            catalog.log_propensities(items.query, [0], policy=fr.PlackettLuce(items.temperature))

        everything()  # so that all of it is resident
        if read_by(everything) != len(items) or read_by(lambda: None) != 0.0:
            raise AssertionError("rows that are read are not seen")
        for factor in factors:
            policy = fr.PlackettLuce(factor * items.temperature)
            rows = [read_by(partial(catalog.rank, q, 10, policy=policy)) for q in items.queries]
            where = f"{source}, T x {factor:g}, codes"
            values[f"{where}: rows read"] = statistics.median(rows)
            values[f"{where}: all rows read"] = rows.count(float(len(items))) / len(rows)
    return values


def save(n: int, folder: str, storage: str) -> opened.Saved:
    return opened.save(synthetic(n), folder, storage)


def memory_of_calls(n: int, saved: opened.Saved, names: Sequence[str]) -> Values:
    """MiB that a call adds at its peak, in a process that holds but the mapped catalog."""
    return {
        f"{n}: memory of {name}": memory.extra_bytes(opened.ranked(saved, name)) / MEBIBYTE
        for name in names
    }


def opening(n: int, saved: opened.Saved, seconds: float) -> Values:
    """Milliseconds of an `open`, and the MiB of its own that the catalog holds then."""
    call = partial(fr.Catalog.open, saved.folder)
    return {
        f"{n}: open": MILLI * interleaved({"open": call}, seconds).median("open"),
        f"{n}: private": memory.private_growth(call) / MEBIBYTE,
    }


def accuracy() -> Values:
    return {"error": comparisons.log_propensity_error(_TEMPERATURES)}


# ---- Their values ---------------------------------------------------------------------------


def was_float32(name: str) -> bool:
    """Whether a value is of an int8 contender with so few items that they were kept as float32."""
    where, _, contender = name.partition(": ")
    n = where.split(",")[0]
    return n.isdigit() and any(calls.as_float32(c, int(n)) for c in contender.split(" / "))


class Measurements:
    """Values by name, one for each process that measured it, and what they depend on.

    Processes are `fresh` for each job, but where nothing is to be believed but the checks: then one
    does them all, and imports once.
    """

    def __init__(
        self,
        values: Mapping[str, Iterable[float]] | None = None,
        about: Mapping[str, str] | None = None,
        *,
        fresh: bool = True,
    ) -> None:
        self.values = {name: list(of_all) for name, of_all in (values or {}).items()}
        self.environment = dict(environment() if about is None else about)
        self._spawn = get_context("spawn")  # a fork would share the parent's pages and pools
        self._fresh = fresh

    @cached_property
    def _kept(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=self._spawn)

    def take(self, job: Callable[..., T], *arguments: Any) -> T:
        """Runs a job in a process of its own; what it measured is kept."""
        title = " ".join(str(a) for a in (job.__name__, *arguments) if isinstance(a, str | int))
        print(f"  {title}", file=sys.stderr, flush=True)
        if self._fresh:
            with ProcessPoolExecutor(1, mp_context=self._spawn) as pool:
                result = pool.submit(job, *arguments).result()
        else:
            result = self._kept.submit(job, *arguments).result()
        if isinstance(result, dict):
            for name, value in result.items():
                self.values.setdefault(name, []).append(value)
        return result

    def median(self, name: str) -> float | None:
        values = self.values.get(name)
        return statistics.median(values) if values else None

    def pooled(self, other: Measurements) -> Measurements:
        """With another run's values beside these, as if its processes had been of this run."""
        values = {name: self.values.get(name, []) for name in (*self.values, *other.values)}
        about = dict.fromkeys((*self.environment, *other.environment), "")
        for name in about:
            found = (of.environment.get(name) for of in (self, other))
            about[name] = "; ".join(dict.fromkeys(text for text in found if text))
        return Measurements({n: v + other.values.get(n, []) for n, v in values.items()}, about)

    def write(self, path: Path) -> None:
        """As JSON: null for what was stopped before it ended."""
        values = {
            name: json.dumps([float(f"{v:.6g}") if math.isfinite(v) else None for v in of_all])
            for name, of_all in self.values.items()
        }
        rows = ",\n".join(f"  {json.dumps(name)}: {row}" for name, row in values.items())
        about = json.dumps(self.environment, indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{\n"environment": {about},\n"values": {{\n{rows}\n}}\n}}\n')

    @classmethod
    def read(cls, path: Path) -> Measurements:
        content = json.loads(path.read_text())
        values = {
            name: [math.inf if v is None else v for v in of_all]
            for name, of_all in content["values"].items()
        }
        return cls(values, content["environment"])


def environment() -> dict[str, str]:
    """What measurements depend on."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    peers = {name: name for name in ("numpy", "numba", "jax", "torch")} | {"faiss": "faiss-cpu"}
    return {
        "CPU": f"{cpu}, {os.cpu_count()} cores, one thread used unless two are named",
        "system": f"{platform.system()} {platform.release()}",
        "transparent huge pages": pages.read_text().strip() if pages.exists() else "none",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "fastrank": f"{fr.__version__} ({_commit()}), instruction set {_native.isa()}",
        **{
            package: importlib.metadata.version(package)
            for module, package in peers.items()
            if find_spec(module) is not None
        },
    }


def _commit() -> str:
    """The checkout that this file is in, for what it is worth: the package may be another's."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no repository"
