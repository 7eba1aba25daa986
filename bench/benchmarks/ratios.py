"""Ours against a peer, both measured in turns in one process: bigger is worse, 1 is a tie.

Times depend on the machine and its load, ratios much less: watch these from commit to commit.
`figures.py` prints the same ratios with the targets that they must meet.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import fastrank as fr

from . import calls, comparisons, rules, scores
from .workloads import (
    DIM,
    LARGEST,
    MAX_N,
    MIDDLE,
    REAL,
    SIZES,
    Workload,
    kind_of,
    real,
    synthetic,
    workload,
)

__all__ = [
    "Accuracy",
    "ByDim",
    "ByK",
    "ByThreads",
    "ByUsers",
    "Embeddings",
    "Floors",
    "GivenScores",
    "Indexed",
    "LargeBatch",
    "Normaliser",
    "Prior",
    "Ratio",
    "RealData",
    "Rules",
    "Scores",
    "SingleCalls",
    "SmallCall",
    "Storages",
    "Textbook",
    "WorstOrder",
]

PAIRS = [
    "gumbel / deterministic",
    "gumbel / faiss flat",
    "gumbel / faiss fp16",
    "gumbel / faiss sq8",
    "gumbel / numpy choice",
    "gumbel / numpy gumbel",
    "gumbel / jax gumbel",
    "gumbel / numba twin",
    "gumbel / read",
    "deterministic / faiss flat",
    "deterministic / jax top k",
    "deterministic / read",
    "epsilon / deterministic",
    "uniform / deterministic",
    "cached / gumbel",
    "cached / int8 gumbel",
    "int8 gumbel / gumbel",
    "int8 gumbel / int8 deterministic",
    "int8 gumbel / faiss flat",
    "int8 gumbel / faiss fp16",
    "int8 gumbel / faiss sq8",
    "int8 gumbel / numpy gumbel",
    "int8 gumbel / jax gumbel",
    "int8 gumbel / read int8",
    "int8 deterministic / faiss flat",
    "int8 epsilon / int8 deterministic",
]
_TO_FLAT = ["gumbel / faiss flat", "int8 gumbel / faiss flat"]
_OF_BATCHES = [*_TO_FLAT, "gumbel / faiss blas", "int8 gumbel / faiss blas", "gumbel / sgemm"]
_TO_OWN = ["gumbel / deterministic", "int8 gumbel / int8 deterministic"]
_BOTH = ["gumbel", "int8 gumbel"]
_STORAGES = "int8 gumbel / gumbel"


class _Tracked:
    unit = "ratio"
    timeout = 600.0

    def setup(self, names: str, *_: object) -> None:
        """asv takes NotImplementedError for a skip here, and only here."""
        for name in names.split(" / "):
            calls.require(name)


def _ratio(workload: Workload, pair: str, k: int = 10) -> float:
    ours, peer = pair.split(" / ")
    return comparisons.compare(workload, [ours, peer], k).ratio(ours, peer)


class Ratio(_Tracked):
    """Synthetic vectors, d = 64, k = 10."""

    params = (PAIRS, SIZES)
    param_names = ("pair", "n")

    def track_ratio(self, pair: str, n: int) -> float:
        return _ratio(synthetic(n), pair)


class GivenScores(_Tracked):
    """Scores that are there, k = 10. Targets at n = 1,000,000: 0.15 of NumPy, 0.08 of torch."""

    params = ([f"{ours} / {peer}" for ours in calls.GIVEN for peer in calls.SCORED], SIZES)
    param_names = ("pair", "n")

    def track_ratio(self, pair: str, n: int) -> float:
        return _ratio(synthetic(n), pair)


class Scores(_Tracked):
    """Plackett-Luce by a score, against the same by the dot product alone, k = 10.

    Targets at n = 1,000,000: by an expression 1.12 for the cosine and 1.25 for the decay; by Numba
    1.06 for the identity and 1.15 for the decay, whose exp is that of fastrank.scoring.
    """

    params = (scores.EXPRESSIONS + scores.FUNCTIONS, SIZES)
    param_names = ("score", "n")

    def track_ratio(self, score: str, n: int) -> float:
        return _ratio(synthetic(n), f"{score} / gumbel")


class Rules(_Tracked):
    """Plackett-Luce under rules, against the same without, k = 10.

    Targets at n = 1,000,000: 1.2 for caps of up to 256 groups and from 4,000 on, 1.3 between, 1.2
    for windows, pins and second pages, 2.3 where one group has nearly all items.
    """

    params = (rules.NAMES, [n for n in SIZES if n >= 10_000] or SIZES[-1:])
    param_names = ("rules", "n")

    def track_ratio(self, rules: str, n: int) -> float:
        return _ratio(synthetic(n), f"{rules} / gumbel")


class Indexed(_Tracked):
    """A table, and a flat tail over an inverted file of FAISS, against FAISS and our passes.

    At n = 1,000,000 a table is to take 0.015 of int8 gumbel and less than FAISS's search, a flat
    tail 1.3 of FAISS's search for as many. FASTRANK_BENCH_MAX_N=10000000 adds that size, and graphs
    of more than 100,000 items: each is made anew, which takes 2 minutes a million.
    """

    timeout = 7200.0

    params = (
        [
            *(f"cached / {peer}" for peer in ("faiss ivf", "faiss hnsw", "faiss panorama")),
            *("cached / int8 gumbel", "flat tail / faiss ivf 1000", "flat tail / int8 gumbel"),
            *("faiss panorama / faiss flat", "gumbel / faiss panorama"),
        ],
        ["normal", "falling", "gowalla"],
        [*(n for n in SIZES if n >= 10_000), LARGEST],
    )
    param_names = ("pair", "vectors", "n")

    def setup(self, names: str, *rest: Any) -> None:
        super().setup(names)
        vectors, n = rest
        large = n == LARGEST or ("hnsw" in names and n > MIDDLE)
        if large and MAX_N < LARGEST:
            # So asv is told to skip a case: ten minutes for an index, and 20 GB of memory.
            raise NotImplementedError(f"takes long: FASTRANK_BENCH_MAX_N={LARGEST} measures it")
        if vectors == "gowalla":
            real("gowalla")

    def track_ratio(self, pair: str, vectors: str, n: int) -> float:
        return _ratio(kind_of(vectors, n), pair)


class ByK(_Tracked):
    """n = 100,000; `Generator.choice` is not made for a large k."""

    params = ([*_TO_OWN, *_TO_FLAT, "gumbel / numpy gumbel"], [1, 100, 1000])
    param_names = ("pair", "k")

    def track_ratio(self, pair: str, k: int) -> float:
        return _ratio(synthetic(MIDDLE), pair, k)


class ByDim(_Tracked):
    """n = 100,000, k = 10."""

    params = ([*_TO_OWN, *_TO_FLAT, "gumbel / read", "int8 gumbel / read int8"], [32, 128, 256])
    param_names = ("pair", "dim")

    def track_ratio(self, pair: str, dim: int) -> float:
        return _ratio(synthetic(MIDDLE, dim), pair)


class ByUsers(_Tracked):
    """A batch by `rank_batch` against FAISS's search for the same users, n = 100,000.

    "faiss flat" is FAISS as installed, "faiss blas" as fast as it can be.
    """

    params = (_OF_BATCHES, [1, 4, 8, 16, 64, 256])
    param_names = ("pair", "users")

    def track_ratio(self, pair: str, users: int) -> float:
        return _batch_ratio(pair, MIDDLE, users)


class LargeBatch(_Tracked):
    """The same for 64 users at the largest n, whose matrix does not fit the caches."""

    params = _OF_BATCHES
    param_names = ("pair",)

    def track_ratio(self, pair: str) -> float:
        return _batch_ratio(pair, SIZES[-1], 64)


def _batch_ratio(pair: str, n: int, users: int, dim: int = DIM) -> float:
    ours, peer = pair.split(" / ")
    return comparisons.batches(synthetic(n, dim), [ours, peer], users).ratio(ours, peer)


class Storages(_Tracked):
    """int8 against float32, Plackett-Luce, one user and the workload's temperature, n = 100,000.

    Targets: 0.95 at d = 64, 0.55 at 256, 0.5 at 384 and 768.
    """

    params = (64, 128, 256, *comparisons.EMBEDDINGS)
    param_names = ("dim",)

    def setup(self, *_: object) -> None:
        super().setup(_STORAGES)

    def track_ratio(self, dim: int) -> float:
        return _ratio(synthetic(MIDDLE, dim), _STORAGES)


class Embeddings(_Tracked):
    """The same at the dimensions of text embeddings, over all temperatures, and in batches of 64.

    Targets: at most 0.9 at any temperature, a median of 0.5; 1 in batches at the workload's.
    """

    params = comparisons.EMBEDDINGS
    param_names = ("dim",)

    def setup(self, *_: object) -> None:
        super().setup(_STORAGES)

    def track_largest(self, dim: int) -> float:
        return max(_by_temperature(dim))

    def track_median(self, dim: int) -> float:
        return median(_by_temperature(dim))

    def track_batch(self, dim: int) -> float:
        return _batch_ratio(_STORAGES, MIDDLE, 64, dim)


def _by_temperature(dim: int) -> list[float]:
    found = comparisons.storages(synthetic(MIDDLE, dim), comparisons.BAND)
    return [timings.ratio(*_STORAGES.split(" / ")) for timings in found.values()]


class SingleCalls(_Tracked):
    """p99 / p50 of single rankings at the largest n, by 700 users. Target: 2 for int8."""

    params = _BOTH
    param_names = ("policy",)

    def setup(self, *_: object) -> None:
        super().setup(_STORAGES)

    def track_tail(self, policy: str) -> float:
        timings = comparisons.single_calls(SIZES[-1])
        return timings.percentile(policy, 99.0) / timings.median(policy)


class ByThreads(_Tracked):
    """Two threads against one at the largest n, a ranking or a batch: 0.5 is twice as fast."""

    params = (_BOTH, [1, 64])
    param_names = ("policy", "users")

    def setup(self, names: str, *_: object) -> None:
        calls.require(names, threads=2)

    def track_ratio(self, policy: str, users: int) -> float:
        return _two_to_one(policy, users)


class Floors(_Tracked):
    """The same for nothing but reading, or arithmetic: what the machine allows two threads."""

    params = (*calls.READS, calls.ARITHMETIC)
    param_names = ("floor",)

    def setup(self, names: str, *_: object) -> None:
        calls.require(names, threads=2)

    def track_ratio(self, floor: str) -> float:
        return _two_to_one(floor, 1)


def _two_to_one(name: str, users: int) -> float:
    timings = comparisons.threads(synthetic(SIZES[-1]), [name], users)
    return timings.ratio(f"{name}, 2", f"{name}, 1")


class RealData(_Tracked):
    """Factors of real interactions: heavy tails, ties, a temperature that suits them."""

    params = (
        [pair for pair in PAIRS if "read" not in pair and "uniform" not in pair],
        REAL,
    )
    param_names = ("pair", "data")

    def setup(self, names: str, *data: object) -> None:
        super().setup(names)
        real(str(data[0]))

    def track_ratio(self, pair: str, data: str) -> float:
        return _ratio(real(data), pair)


class Prior(_Tracked):
    """A catalog in descending order of a prior against a shuffled one; int8 has codes."""

    params = (_BOTH, comparisons.PRIORS, [MIDDLE, *REAL])
    param_names = ("policy", "prior", "vectors")

    def setup(self, names: str, *rest: object) -> None:
        super().setup(names)
        calls.require_argument(fr.Catalog.__init__, "prior")
        if rest[1] in REAL:
            real(str(rest[1]))

    def track_ratio(self, policy: str, prior: str, vectors: int | str) -> float:
        return comparisons.prior_order(workload(vectors), policy, prior).ratio("sorted", "shuffled")


class Textbook(_Tracked):
    """gumbel against the textbook procedures, whose scores are computed beforehand."""

    params = (calls.TEXTBOOK, SIZES)
    param_names = ("procedure", "n")

    def track_ratio(self, procedure: str, n: int) -> float:
        return comparisons.textbook(synthetic(n), procedure).ratio("gumbel", procedure)


class WorstOrder(_Tracked):
    """Ascending order of score at T = 0.01 against the same items shuffled."""

    params = (["gumbel", "deterministic", "int8 gumbel", "int8 deterministic"], SIZES)
    param_names = ("policy", "n")

    def track_ratio(self, policy: str, n: int) -> float:
        return comparisons.worst_order(n, policy).ratio("ascending", "shuffled")


class SmallCall(_Tracked):
    """A whole `rank` call at n = 1,000 beyond one at n = 16."""

    unit = "us"
    params = calls.SCANS + calls.INT8
    param_names = ("policy",)

    def track_overhead(self, policy: str) -> float:
        return 1e6 * comparisons.small_calls(policy).difference("1000", "16")


class Normaliser(_Tracked):
    """Largest error of log_norm from int8 codes over users, also at a tenth of the temperature."""

    unit = "nats"
    params = ([MIDDLE, *REAL], [0.1, 1.0])
    param_names = ("vectors", "factor")

    def setup(self, vectors: int | str, *_: object) -> None:
        super().setup("int8 gumbel")
        if vectors in REAL:
            real(vectors)

    def track_error(self, vectors: int | str, factor: float) -> float:
        many = workload(vectors, users=100)
        found = comparisons.normalisers(many, "codes", factor * many.temperature)
        return float(found.errors.max())


class Accuracy:
    """Largest error of a log-propensity against the float64 oracle, fed with our own scores."""

    unit = "nats"
    timeout = 600.0

    def track_log_propensity_error(self) -> float:
        return comparisons.log_propensity_error([1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6])
