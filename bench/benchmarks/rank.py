"""Time of a ranking: every policy and sampler, by n, by k, on real factors, in batches, filtered.

asv calls `setup` anew before every timed call, so the workloads and their checked calls are kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import calls, comparisons
from .timing import Call
from .workloads import REAL, SIZES, synthetic, workload

__all__ = ["Batch", "CachedMiss", "Filtered", "LargeK", "LogPropensities", "Order", "Rank", "Real"]

_LARGE = [n for n in SIZES if n >= 100_000] or SIZES[-1:]
_MIDDLE = min(100_000, SIZES[-1])


class _Timed:
    """What the classes here share: how often asv calls, and for how long."""

    rounds = 1
    repeat = (3, 10, 2.0)
    number = 1
    timeout = 300.0
    call: Call

    def adopt(self, call: Call, n_items: int) -> None:
        """Sets what is timed, and how many calls make a sample."""
        self.call = call
        self.number = max(1, min(500, 500_000 // n_items))


@lru_cache(maxsize=1)
def _call(name: str, source: int | str, k: int) -> Call:
    return calls.make(name, workload(source), k)


class Rank(_Timed):
    """k = 10."""

    params = (calls.OWN, SIZES)
    param_names = ("policy", "n")

    def setup(self, policy: str, n: int) -> None:
        self.adopt(_call(policy, n, 10), n)

    def time_rank(self, policy: str, n: int) -> None:
        self.call()


class LargeK(_Timed):
    """n = 100,000."""

    params = ([*calls.SCANS, "cached"], [100, 1000])
    param_names = ("policy", "k")

    def setup(self, policy: str, k: int) -> None:
        self.adopt(_call(policy, _MIDDLE, k), _MIDDLE)

    def time_rank(self, policy: str, k: int) -> None:
        self.call()


class Real(_Timed):
    """Factors of real interactions: n = 40,981 (gowalla) and 7,390 (anime)."""

    params = (calls.OWN, REAL)
    param_names = ("policy", "data")

    def setup(self, policy: str, data: str) -> None:
        self.adopt(_call(policy, data, 10), 20_000)

    def time_rank(self, policy: str, data: str) -> None:
        self.call()


class Order(_Timed):
    """Items in ascending order of score at a small temperature: the most entries into the heap."""

    params = (["ascending", "shuffled"], SIZES)
    param_names = ("order", "n")

    def setup(self, order: str, n: int) -> None:
        self.adopt(_ordered(order, n), n)

    def time_gumbel(self, order: str, n: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _ordered(order: str, n: int) -> Call:
    cold = synthetic(n).first_user(comparisons.WORST_TEMPERATURE)
    return calls.make("gumbel", cold.ascending() if order == "ascending" else cold)


class CachedMiss(_Timed):
    """The first ranking of a user under the cached sampler: scores, tree, draws."""

    params = SIZES
    param_names = ("n",)

    def setup(self, n: int) -> None:
        self.adopt(_cached_miss(n), n)

    def time_rank(self, n: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _cached_miss(n: int) -> Call:
    return calls.cached_miss(synthetic(n), 10)


class Batch(_Timed):
    """`rank_batch` of 8 users; the time is that of all 8."""

    params = SIZES
    param_names = ("n",)

    def setup(self, n: int) -> None:
        self.adopt(_batch(n), 8 * n)

    def time_rank_batch(self, n: int) -> None:
        self.call()


@lru_cache(maxsize=1)
def _batch(n: int) -> Call:
    return calls.make_batch("gumbel", synthetic(n), users=8)


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
    """Allow and exclude lists of int64 ids in no order: a bitset, or an overlay of the tree."""

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
