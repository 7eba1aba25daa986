"""Ours against a peer, both measured in turns in one process: bigger is worse, 1 is a tie.

Times depend on the machine and its mood, ratios much less: these are what to watch from commit to
commit. `figures.py` prints the same ratios with the targets that they must meet.
"""

from __future__ import annotations

from . import calls, comparisons
from .workloads import REAL, SIZES, Workload, real, synthetic

__all__ = ["LargeK", "Ratio", "RealData", "SmallCall", "Textbook", "WorstOrder"]

PAIRS = [
    "gumbel / deterministic",
    "gumbel / faiss flat",
    "gumbel / faiss fp16",
    "gumbel / numpy choice",
    "gumbel / numpy gumbel",
    "gumbel / read",
    "deterministic / faiss flat",
    "deterministic / read",
    "epsilon / deterministic",
    "uniform / deterministic",
    "cached / gumbel",
]


class _Tracked:
    unit = "ratio"
    timeout = 600.0


def _ratio(workload: Workload, pair: str, k: int = 10) -> float:
    ours, peer = pair.split(" / ")
    return comparisons.compare(workload, [ours, peer], k).ratio(ours, peer)


class Ratio(_Tracked):
    """Synthetic vectors, d = 64, k = 10."""

    params = (PAIRS, SIZES)
    param_names = ("pair", "n")

    def track_ratio(self, pair: str, n: int) -> float:
        return _ratio(synthetic(n), pair)


class LargeK(_Tracked):
    """Large k; `Generator.choice` is not made for it."""

    params = (
        ["gumbel / deterministic", "gumbel / faiss flat", "gumbel / numpy gumbel"],
        [n for n in SIZES if n >= 10_000] or SIZES,
        [100, 1000],
    )
    param_names = ("pair", "n", "k")

    def track_ratio(self, pair: str, n: int, k: int) -> float:
        return _ratio(synthetic(n), pair, k)


class RealData(_Tracked):
    """Factors of real interactions: heavy tails, ties, a temperature that suits them."""

    params = (
        [pair for pair in PAIRS if "read" not in pair and "uniform" not in pair],
        REAL,
    )
    param_names = ("pair", "data")

    def setup(self, pair: str, data: str) -> None:
        real(data)  # asv takes NotImplementedError for a skip here, and only here

    def track_ratio(self, pair: str, data: str) -> float:
        return _ratio(real(data), pair)


class Textbook(_Tracked):
    """gumbel against the textbook procedures, whose scores are computed beforehand."""

    params = (calls.TEXTBOOK, SIZES)
    param_names = ("procedure", "n")

    def track_ratio(self, procedure: str, n: int) -> float:
        return comparisons.textbook(synthetic(n), procedure).ratio("gumbel", procedure)


class WorstOrder(_Tracked):
    """Ascending order of score at T = 0.01 against the same items shuffled."""

    params = (["gumbel", "deterministic"], SIZES)
    param_names = ("policy", "n")

    def track_ratio(self, policy: str, n: int) -> float:
        return comparisons.worst_order(n, policy).ratio("ascending", "shuffled")


class SmallCall(_Tracked):
    """A whole `rank` call at n = 1,000 beyond one at n = 16."""

    unit = "us"
    params = calls.SCANS
    param_names = ("policy",)

    def track_overhead(self, policy: str) -> float:
        return 1e6 * comparisons.small_calls(policy).difference("1000", "16")


class Accuracy(_Tracked):
    """Largest error of a log-propensity against the float64 oracle, fed with our own scores."""

    unit = "nats"

    def track_log_propensity_error(self) -> float:
        return comparisons.log_propensity_error([1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6])
