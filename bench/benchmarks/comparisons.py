"""What is measured together, in turns, behind the ratios of `ratios.py` and the jobs of `jobs.py`.

Each raises NotImplementedError where a contender is not to be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import fastrank as fr
from fastrank import reference

from . import calls
from .timing import SECONDS, Call, Timings, each_call, interleaved, timed_once
from .workloads import DIM, Workload, synthetic

__all__ = [
    "BAND",
    "EMBEDDINGS",
    "PRIORS",
    "SINGLE_ROUNDS",
    "TEXTBOOK_CAP",
    "WORST_TEMPERATURE",
    "Normalisers",
    "batches",
    "compare",
    "log_propensity_error",
    "normalisers",
    "prior_order",
    "rescoring",
    "single_calls",
    "small_calls",
    "storages",
    "textbook",
    "threads",
    "worst_order",
]

# Seconds after which a textbook procedure is stopped: its time is then given as infinite.
TEXTBOOK_CAP = 60.0
# Above this many scores for one ranking a textbook procedure is timed once.
_TEXTBOOK_REPEATED = 1_000_000
# Small enough that only the very best items can enter, in ascending order one after another.
WORST_TEMPERATURE = 0.01
PRIORS = ["mean score", "norm"]
# Dimensions of text embeddings.
EMBEDDINGS = (384, 768)
# Standard deviation of a user's scores / T, from nearly uniform to nearly deterministic rankings:
# what int8 storage costs depends on it. Normal workloads are at 2.
BAND = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 10.0, 40.0)
_STORAGES = ("gumbel", "int8 gumbel")
# 700 users for each of them.
SINGLE_ROUNDS, _SINGLE_TURN = 20, 35


def compare(
    workload: Workload, names: Sequence[str], k: int = 10, seconds: float = SECONDS
) -> Timings:
    """Contenders of `calls`, in turns."""
    return interleaved({name: calls.make(name, workload, k) for name in names}, seconds)


def textbook(workload: Workload, name: str, k: int = 10, seconds: float = SECONDS) -> Timings:
    """ "gumbel" and a textbook procedure; a slow one is timed once, capped."""
    slow = name in ("textbook softmax", "textbook softmax removal", "textbook epsilon")
    if len(workload) * (k if slow else 1) <= _TEXTBOOK_REPEATED:
        return compare(workload, ["gumbel", name], k, seconds)
    ours = compare(workload, ["gumbel"], k, seconds / 2)
    once = timed_once(calls.make(name, workload, k), TEXTBOOK_CAP)
    return Timings({**ours.seconds, name: np.full(len(ours.seconds["gumbel"]), once)})


def small_calls(name: str = "gumbel", seconds: float = SECONDS) -> Timings:
    """Whole `rank` calls at n = 16, nearly all of it Python, and n = 1,000; named by n."""
    return interleaved({str(n): calls.make(name, synthetic(n)) for n in (16, 1_000)}, seconds)


def worst_order(n: int, name: str = "gumbel", seconds: float = SECONDS, dim: int = DIM) -> Timings:
    """ "ascending" and "shuffled" order of the same items, at a small temperature."""
    shuffled = synthetic(n, dim).first_user(WORST_TEMPERATURE)
    orders = {"ascending": shuffled.ascending(), "shuffled": shuffled}
    return interleaved({order: calls.make(name, w) for order, w in orders.items()}, seconds)


def batches(
    workload: Workload, names: Sequence[str], users: int, seconds: float = SECONDS
) -> Timings:
    """Whole batches of so many users."""
    return interleaved({name: calls.make_batch(name, workload, users) for name in names}, seconds)


def threads(
    workload: Workload, names: Sequence[str], users: int = 1, seconds: float = SECONDS
) -> Timings:
    """Each by one thread and by two, named "gumbel, 1" and "gumbel, 2"; the floors too.

    users: more than one are a batch.
    """
    contenders = {}
    for amount in (1, 2):
        for name in names:
            if name == calls.ARITHMETIC:
                call = calls.multiply_in_threads(amount)
            elif name in calls.READS:
                call = calls.read_in_threads(workload, calls.storage_of(name), amount)
            elif users == 1:
                call = calls.make(name, workload, threads=amount)
            else:
                call = calls.make_batch(name, workload, users, threads=amount)
            contenders[f"{name}, {amount}"] = call
    return interleaved(contenders, seconds)


def prior_order(workload: Workload, name: str, by: str, seconds: float = SECONDS) -> Timings:
    """ "sorted" by a prior, and "shuffled": items that come in some order may be sorted already.

    by: one of `PRIORS`: mean score over many users, or length of the item's vector. int8 has codes,
    however few the items are.
    """
    name = calls.with_codes(name, len(workload))
    calls.require(name)
    calls.require_argument(fr.Catalog.__init__, "prior")
    workload = workload.shuffled()
    priors = {
        "mean score": workload.vectors @ workload.mean_user,
        "norm": np.linalg.norm(workload.vectors, axis=1),
    }
    catalog = workload.packed(storage=calls.storage_of(name), prior=priors[by])
    policy = calls.own_policy(name, workload.temperature)
    contenders = {
        "sorted": calls.catalog_rank(workload, 10, policy, catalog=catalog),
        "shuffled": calls.make(name, workload),
    }
    return interleaved(contenders, seconds)


def rescoring(
    workload: Workload, factors: Sequence[float] = (1.0,), seconds: float = SECONDS
) -> dict[float, Timings]:
    """What the normaliser of int8 codes costs, by factor of the workload's temperature.

    "codes" as they are, "unchecked" with a normaliser that may be e times too large, "float32". The
    first less the second is re-scoring rows where the quantised sum is not close enough.
    """
    calls.require("coded gumbel")
    calls.require_argument(fr.Catalog.__init__, "log_norm_tolerance")
    catalogs = {
        "codes": workload.stored("codes"),
        "unchecked": workload.packed("codes", log_norm_tolerance=1.0),
        "float32": workload.catalog,
    }
    found = {}
    for factor in factors:
        policy = calls.own_policy("gumbel", factor * workload.temperature)
        contenders = {
            name: calls.catalog_rank(workload, 10, policy, catalog=catalog)
            for name, catalog in catalogs.items()
        }
        found[factor] = interleaved(contenders, seconds)
    return found


def storages(
    normal: Workload, spreads: Sequence[float], users: int = 1, seconds: float = SECONDS
) -> dict[float, Timings]:
    """ "gumbel" and "int8 gumbel" of normal vectors, by standard deviation of a user's scores / T.

    users: more than one are a batch. seconds: for each of the spreads.
    """

    def call(name: str, temperature: float) -> Call:
        if users == 1:
            return calls.make(name, normal, temperature=temperature)
        return calls.make_batch(name, normal, users, temperature=temperature)

    found = {}
    for spread in spreads:
        contenders = {name: call(name, 1.0 / spread) for name in _STORAGES}
        found[spread] = interleaved(contenders, seconds, warm=users == 1)
    return found


def single_calls(n: int, seed: int = 0, rounds: int = SINGLE_ROUNDS) -> Timings:
    """Each of 700 rankings of "gumbel" and of "int8 gumbel", by 700 users: for percentiles."""
    normal = synthetic(n, seed=seed, users=rounds * (1 + _SINGLE_TURN))
    return each_call({name: calls.make(name, normal) for name in _STORAGES}, rounds, _SINGLE_TURN)


@dataclass(frozen=True)
class Normalisers:
    """log_norm of many users against float64 arithmetic on the kernel's own float32 scores.

    Attributes
    ----------
    errors : ndarray of float64, shape (u,)
        Absolute.
    bounds : ndarray of float64, shape (u,)
        What the rankings stated, `Ranking.log_norm_error`.
    exact : float
        Share of rankings that said "exact".
    """

    errors: npt.NDArray[np.float64]
    bounds: npt.NDArray[np.float64]
    exact: float


def normalisers(workload: Workload, storage: str, temperature: float) -> Normalisers:
    """For all users of the workload; storage as for `Workload.stored`."""
    catalog, policy = workload.stored(storage), fr.PlackettLuce(temperature)
    rankings = [
        catalog.rank(query, 10, policy=policy, seed=user)
        for user, query in enumerate(workload.queries)
    ]
    oracle = [reference.log_norm(catalog.scores(query), temperature) for query in workload.queries]
    return Normalisers(
        errors=np.abs(np.array([ranking.log_norm for ranking in rankings], np.float64) - oracle),
        bounds=np.array([ranking.log_norm_error for ranking in rankings]),
        exact=sum(ranking.propensity_kind == "exact" for ranking in rankings) / len(rankings),
    )


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
