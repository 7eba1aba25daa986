"""Time of a ranking: every policy and sampler and storage, by n, k, d, batch and threads; filtered.

asv calls `setup` anew before every timed call, so the workloads and their checked calls are kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import calls, comparisons, rules
from .timing import Call
from .workloads import MIDDLE, REAL, SIZES, synthetic, workload

__all__ = [
    "ByDim",
    "ByK",
    "ByThreads",
    "ByUsers",
    "CachedMiss",
    "Filtered",
    "LogPropensities",
    "Order",
    "Rank",
    "Real",
    "Ruled",
]

_LARGE = [n for n in SIZES if n >= 100_000] or SIZES[-1:]
_BOTH = ["gumbel", "int8 gumbel"]


class _Timed:
    """What the classes here share: how often asv calls, and for how long."""

    rounds = 1
    repeat = (3, 10, 2.0)
    number = 1
    timeout = 300.0
    call: Call

    def adopt(self, call: Call, n_items: int) -> None:
        """Set what is timed, and how many calls make a sample."""
        self.call = call
        self.number = max(1, min(500, 500_000 // n_items))


@lru_cache(maxsize=1)
def _call(name: str, source: int | str, k: int, threads: int = 1) -> Call:
    return calls.make(name, workload(source), k, threads)


class Rank(_Timed):
    """k = 10."""

    params = (calls.OWN + calls.INT8 + calls.GIVEN, SIZES)
    param_names = ("policy", "n")

    def setup(self, policy: str, n: int) -> None:
        self.adopt(_call(policy, n, 10), n)

    def time_rank(self, policy: str, n: int) -> None:
        self.call()


class ByK(_Timed):
    """n = 100,000; `Rank` has k = 10."""

    params = ([*calls.SCANS, "cached", *calls.INT8], [1, 100, 1000])
    param_names = ("policy", "k")

    def setup(self, policy: str, k: int) -> None:
        self.adopt(_call(policy, MIDDLE, k), MIDDLE)

    def time_rank(self, policy: str, k: int) -> None:
        self.call()


class ByDim(_Timed):
    """n = 100,000, k = 10; `Rank` has d = 64."""

    params = ([*_BOTH, "deterministic", "int8 deterministic"], [32, 128, 256])
    param_names = ("policy", "dim")

    def setup(self, policy: str, dim: int) -> None:
        self.adopt(_of_dim(policy, dim), MIDDLE)

    def time_rank(self, policy: str, dim: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _of_dim(policy: str, dim: int) -> Call:
    return calls.make(policy, synthetic(MIDDLE, dim))


class Real(_Timed):
    """Factors of real interactions: n = 40,981 (gowalla) and 7,390 (anime)."""

    params = (calls.OWN + calls.INT8, REAL)
    param_names = ("policy", "data")

    def setup(self, policy: str, data: str) -> None:
        self.adopt(_call(policy, data, 10), 20_000)

    def time_rank(self, policy: str, data: str) -> None:
        self.call()


class Order(_Timed):
    """Items in ascending order of score at a small temperature: the most entries into the heap."""

    params = (_BOTH, ["ascending", "shuffled"], SIZES)
    param_names = ("policy", "order", "n")

    def setup(self, policy: str, order: str, n: int) -> None:
        self.adopt(_ordered(policy, order, n), n)

    def time_rank(self, policy: str, order: str, n: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _ordered(policy: str, order: str, n: int) -> Call:
    cold = synthetic(n).first_user(comparisons.WORST_TEMPERATURE)
    return calls.make(policy, cold.ascending() if order == "ascending" else cold)


class CachedMiss(_Timed):
    """The first ranking of a user under the cached sampler: table, draws."""

    params = SIZES
    param_names = ("n",)

    def setup(self, n: int) -> None:
        self.adopt(_cached_miss(n), n)

    def time_rank(self, n: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _cached_miss(n: int) -> Call:
    return calls.cached_miss(synthetic(n), 10)


class ByUsers(_Timed):
    """`rank_batch`, n = 100,000; the time is that of all users."""

    params = (_BOTH, [1, 4, 8, 16, 64, 256])
    param_names = ("policy", "users")

    def setup(self, policy: str, users: int) -> None:
        self.adopt(_batch(policy, users, 1, MIDDLE), users * MIDDLE)

    def time_rank_batch(self, policy: str, users: int) -> None:
        self.call()


class ByThreads(_Timed):
    """n = 1,000,000: one ranking, and a batch of 64, by one thread and by two."""

    params = (_BOTH, [1, 64], [1, 2])
    param_names = ("policy", "users", "threads")

    def setup(self, policy: str, users: int, threads: int) -> None:
        n = SIZES[-1]
        if users == 1:
            self.adopt(_call(policy, n, 10, threads), n)
        else:
            self.adopt(_batch(policy, users, threads, n), n)

    def time_rank(self, policy: str, users: int, threads: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _batch(policy: str, users: int, threads: int, n: int) -> Call:
    return calls.make_batch(policy, synthetic(n), users, threads=threads)


class LogPropensities(_Timed):
    """Of a given ranking, k = 10."""

    params = (calls.SCANS, SIZES)
    param_names = ("policy", "n")

    def setup(self, policy: str, n: int) -> None:
        self.adopt(_propensities(policy, n), n)

    def time_log_propensities(self, policy: str, n: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _propensities(policy: str, n: int) -> Call:
    normal = synthetic(n)
    return calls.log_propensities(normal, 10, calls.own_policy(policy, normal.temperature))


class Filtered(_Timed):
    """Allow and exclude lists of int64 ids in no order: a bitset, and what it cuts of a table."""

    params = (
        ["gumbel", "cached"],
        ["allow 10", "allow 1000", "exclude 100", "exclude half"],
        _LARGE,
    )
    param_names = ("sampler", "ids", "n")

    def setup(self, sampler: str, ids: str, n: int) -> None:
        self.adopt(_filtered(sampler, ids, n), n)

    def time_rank(self, sampler: str, ids: str, n: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _filtered(sampler: str, ids: str, n: int) -> Call:
    kind, amount = ids.split()
    size = n // 2 if amount == "half" else int(amount)
    chosen = np.random.default_rng(1).choice(n, size, replace=False)
    return calls.filtered(synthetic(n), 10, sampler, kind, chosen)


class Ruled(_Timed):
    """Under rules, k = 10; `Rank` has the same without."""

    params = (rules.NAMES, [n for n in SIZES if n >= 10_000] or SIZES[-1:])
    param_names = ("rules", "n")

    def setup(self, rules: str, n: int) -> None:
        self.adopt(_call(rules, n, 10), n)

    def time_rank(self, rules: str, n: int) -> None:
        self.call()
