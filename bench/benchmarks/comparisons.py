"""The measurements behind the ratios that `ratios.py` tracks and `figures.py` prints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import fastrank as fr
from fastrank import reference

from . import calls
from .timing import SECONDS, Timings, interleaved, timed_once
from .workloads import DIM, Workload, synthetic

__all__ = [
    "TEXTBOOK_CAP",
    "WORST_TEMPERATURE",
    "compare",
    "log_propensity_error",
    "small_calls",
    "textbook",
    "worst_order",
]

# Seconds after which a textbook procedure is stopped: its time is then given as infinite.
TEXTBOOK_CAP = 60.0
# Above this many scores for one ranking a textbook procedure is timed once.
_TEXTBOOK_REPEATED = 1_000_000
# Small enough that only the very best items can enter, in ascending order one after another.
WORST_TEMPERATURE = 0.01


def compare(
    workload: Workload, names: Sequence[str], k: int = 10, seconds: float = SECONDS
) -> Timings:
    """Contenders of `calls`, in turns."""
    return interleaved({name: calls.make(name, workload, k) for name in names}, seconds)


def textbook(workload: Workload, name: str, seconds: float = SECONDS) -> Timings:
    """ "gumbel" and a textbook procedure, k = 10; a slow one is timed once, capped."""
    slow = name in ("textbook softmax", "textbook softmax removal", "textbook epsilon")
    if len(workload) * (10 if slow else 1) <= _TEXTBOOK_REPEATED:
        return compare(workload, ["gumbel", name], seconds=seconds)
    ours = compare(workload, ["gumbel"], seconds=seconds / 2)
    once = timed_once(calls.make(name, workload), TEXTBOOK_CAP)
    return Timings({**ours.seconds, name: np.full(len(ours.seconds["gumbel"]), once)})


def small_calls(name: str = "gumbel", seconds: float = SECONDS) -> Timings:
    """Whole `rank` calls at n = 16, nearly all of it Python, and n = 1,000; named by n."""
    return interleaved({str(n): calls.make(name, synthetic(n)) for n in (16, 1_000)}, seconds)


def worst_order(n: int, name: str = "gumbel", seconds: float = SECONDS) -> Timings:
    """ "ascending" and "shuffled" order of the same items, at a small temperature."""
    shuffled = synthetic(n).first_user(WORST_TEMPERATURE)
    orders = {"ascending": shuffled.ascending(), "shuffled": shuffled}
    return interleaved({order: calls.make(name, w) for order, w in orders.items()}, seconds)


def log_propensity_error(temperatures: Sequence[float], n: int = 2_000, k: int = 10) -> float:
    """Largest error of a log-propensity against the float64 oracle, over temperatures.

    The oracle is given the kernel's own float32 scores. An AssertionError for a value that is
    nan, +inf or above 0. -inf must be -inf on both sides.
    """
    worst = 0.0
    for seed, scale in enumerate((1.0, 100.0)):
        base = synthetic(n, DIM, seed)
        catalog, query = base.catalog, base.query * np.float32(scale)
        scores = catalog.scores(query)
        anything = np.random.default_rng(seed).choice(n, k, replace=False)
        for temperature in temperatures:
            policy = fr.PlackettLuce(temperature)
            drawn = catalog.rank(query, k, policy=policy, seed=seed)
            found = {
                "drawn": (drawn.item_ids, drawn.log_propensities),
                "given": (
                    anything,
                    catalog.log_propensities(query, anything, policy=policy),
                ),
            }
            for kind, (items, ours) in found.items():
                if np.isnan(ours).any() or (ours > 0.0).any():
                    raise AssertionError(f"{kind} at T = {temperature:g}: {ours}")
                oracle = reference.log_propensities(scores, items, policy)
                worst = max(worst, float(np.abs(ours - oracle).max()))
    return worst
