"""One ranking, by us or by a peer, as a call without arguments.

Every function here makes the call once and checks what came back before handing it out: a
benchmark of a wrong answer measures nothing. The peers get the best that is known of them, and
whatever they need apart from the query (an index, a dictionary of scores) is made beforehand.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

import fastrank as fr
from fastrank import reference

from .timing import Call
from .workloads import Vectors, Workload

__all__ = [
    "FAISS",
    "NUMPY",
    "OWN",
    "SCANS",
    "TEXTBOOK",
    "batch",
    "cached_miss",
    "catalog_rank",
    "check_ranking",
    "faiss_search",
    "filtered",
    "log_propensities",
    "make",
    "own_policy",
    "read_matrix",
]

Positions: TypeAlias = npt.NDArray[np.int64]
T = TypeVar("T")

_EPSILON = 0.1
# Rounding of a float32 dot product, and of one with float16 entries, relative to the largest
# score that could be.
_FLOAT32_ERROR = 1e-5
_FLOAT16_ERROR = 1e-3
# The oracle takes O(k n) in float64: up to this many scores it is asked.
_ORACLE_SCORES = 20_000_000

OWN = ["gumbel", "deterministic", "epsilon", "uniform", "sequential", "cached"]
# Ours in one pass over the vectors, or less.
SCANS = ["gumbel", "deterministic", "epsilon", "uniform"]
FAISS = ["faiss flat", "faiss fp16"]
NUMPY = ["numpy choice", "numpy gumbel"]
TEXTBOOK = [
    "textbook deterministic",
    "textbook softmax",
    "textbook softmax removal",
    "textbook gumbel",
    "textbook epsilon",
]


def make(name: str, workload: Workload, k: int = 10) -> Call:
    """The contender of this name; see the lists above."""
    if name in OWN:
        return catalog_rank(workload, k, own_policy(name, workload.temperature))
    if name in FAISS:
        return faiss_search(workload, k, half=name == "faiss fp16")
    if name in NUMPY:
        return _numpy(workload, k, name)
    if name in TEXTBOOK:
        return _textbook(workload, k, name)
    if name == "read":
        return read_matrix(workload)
    raise ValueError(f"name: there is no contender {name!r}")


def own_policy(name: str, temperature: float) -> fr.Policy:
    """The policy of one of `OWN`."""
    policies: Mapping[str, fr.Policy] = {
        "gumbel": fr.PlackettLuce(temperature),
        "deterministic": fr.Deterministic(),
        "epsilon": fr.EpsilonGreedy(_EPSILON),
        "uniform": fr.Uniform(),
        "sequential": fr.PlackettLuce(temperature, sampler="sequential"),
        "cached": fr.PlackettLuce(temperature, sampler="cached"),
    }
    return policies[name]


# ---- Ours -----------------------------------------------------------------------------------


def catalog_rank(
    workload: Workload,
    k: int,
    policy: fr.Policy,
    *,
    catalog: fr.Catalog | None = None,
    allow: Positions | None = None,
    exclude: Positions | None = None,
) -> Call:
    """`Catalog.rank` with a seed drawn anew at each call; with "cached", of trees that are there.

    catalog: another image of the workload's catalog, one opened from disk, say.
    """
    ranked = workload.catalog if catalog is None else catalog
    rank = partial(ranked.rank, k=k, policy=policy, allow=allow, exclude=exclude)
    for query in workload.queries[::-1]:
        ranking = rank(query)
    check_ranking(workload, ranking, k, allow=allow, exclude=exclude)
    return _for_users(rank, workload.queries)


def _for_users(function: Callable[[T], object], arguments: Iterable[T]) -> Call:
    """Calls the function for one user after another, round and round."""
    following = cycle(arguments)
    return lambda: function(next(following))


def filtered(workload: Workload, k: int, name: str, kind: str, ids: Positions) -> Call:
    """One of `OWN` with a filter: kind "allow" or "exclude"."""
    policy = own_policy(name, workload.temperature)
    if kind == "allow":
        return catalog_rank(workload, k, policy, allow=ids)
    return catalog_rank(workload, k, policy, exclude=ids)


def cached_miss(workload: Workload, k: int) -> Call:
    """The cached sampler on a catalog that keeps no tree."""
    catalog = fr.Catalog(np.arange(len(workload)), workload.vectors, cache_bytes=0)
    return catalog_rank(workload, k, own_policy("cached", workload.temperature), catalog=catalog)


def check_ranking(
    workload: Workload,
    ranking: fr.Ranking,
    k: int,
    *,
    allow: Positions | None = None,
    exclude: Positions | None = None,
) -> None:
    """Scores, length, filters and propensities of one ranking; the best k for Deterministic."""
    catalog, query, policy = workload.catalog, workload.query, ranking.policy
    eligible = np.ones(len(workload), np.bool_)
    if allow is not None:
        eligible[:] = False
        eligible[allow] = True
    if exclude is not None:
        eligible[exclude] = False
    places = min(k, int(eligible.sum()))
    scores = catalog.scores(query)
    _check_items(ranking.item_ids, len(workload), places)
    _check(bool(eligible[ranking.item_ids].all()), "a filtered item was ranked")
    _check(ranking.n_eligible == int(eligible.sum()), "n_eligible is wrong")
    _check(np.array_equal(ranking.scores, scores[ranking.item_ids]), "scores are others'")
    error = np.abs(scores - workload.scores).max()
    _check(bool(error <= _FLOAT32_ERROR * workload.scale), f"scores are {error:g} off")
    if isinstance(policy, fr.Deterministic):
        _check_best(workload, ranking.item_ids, np.flatnonzero(eligible), _FLOAT32_ERROR)

    reported = ranking.log_propensities
    _check(bool(np.isfinite(reported).all() and (reported <= 0.0).all()), "not propensities")
    again = catalog.log_propensities(
        query, ranking.item_ids, policy=policy, allow=allow, exclude=exclude
    )
    _check_close(reported, again, "log_propensities gives others")
    if places * len(workload) <= _ORACLE_SCORES:
        oracle = reference.log_propensities(scores, ranking.item_ids, policy, eligible)
        _check_close(reported, oracle, "the oracle gives others")


def batch(workload: Workload, k: int, users: int) -> Call:
    """`rank_batch` under Plackett-Luce for users with vectors of their own."""
    catalog, policy = workload.catalog, own_policy("gumbel", workload.temperature)
    rng = np.random.default_rng(users)
    noise = rng.standard_normal((users, catalog.dim), dtype=np.float32)
    queries = workload.query + np.float32(0.5) * workload.query.std() * noise
    seeds = list(range(users))
    call = partial(catalog.rank_batch, queries, k, policy=policy)
    rankings = call(seeds=seeds)
    for i in range(users):
        one = catalog.rank(queries[i], k, policy=policy, seed=seeds[i])
        _check(np.array_equal(rankings[i].item_ids, one.item_ids), f"row {i} is not rank's")
    return call


def log_propensities(workload: Workload, k: int, policy: fr.Policy) -> Call:
    """`Catalog.log_propensities` of rankings that the policy drew."""
    catalog = workload.catalog
    rankings = [(query, catalog.rank(query, k, policy=policy)) for query in workload.queries]

    def judge(drawn: tuple[Vectors, fr.Ranking]) -> npt.NDArray[np.float64]:
        query, ranking = drawn
        return catalog.log_propensities(query, ranking.item_ids, policy=policy)

    for drawn in rankings:
        _check_close(judge(drawn), drawn[1].log_propensities, "not what rank reported")
    return _for_users(judge, rankings)


# ---- Peers ----------------------------------------------------------------------------------


def read_matrix(workload: Workload) -> Call:
    """Reads the float32 matrix once and does next to nothing else: BLAS's dot of it with itself.

    The floor of every exact pass over uncompressed vectors.
    """
    flat = workload.vectors.reshape(-1)
    call = partial(np.dot, flat, flat)
    exact = float(np.einsum("i,i->", flat, flat, dtype=np.float64))
    _check(abs(float(call()) - exact) <= 1e-3 * exact, "the dot product is wrong")
    return call


def faiss_search(workload: Workload, k: int, half: bool) -> Call:
    """The deterministic top k by FAISS: IndexFlatIP, or a flat index of float16 vectors."""
    try:
        import faiss
    except ImportError:
        raise NotImplementedError("faiss-cpu is not installed") from None
    faiss.omp_set_num_threads(1)
    dim = workload.vectors.shape[1]
    index: Any
    if half:
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexFlatIP(dim)
    index.add(workload.vectors)
    search = partial(index.search, k=k)
    items = search(workload.query[None, :])[1][0]
    _check_items(items, len(workload), min(k, len(workload)))
    error = _FLOAT16_ERROR if half else _FLOAT32_ERROR
    _check_best(workload, items, np.arange(len(workload)), error)
    return _for_users(search, list(workload.queries[:, None, :]))


def _numpy(workload: Workload, k: int, name: str) -> Call:
    function = {
        "numpy choice": reference.numpy_choice,
        "numpy gumbel": reference.numpy_gumbel,
    }[name]
    rng = np.random.default_rng(0)

    def rank(query: Vectors) -> Positions:
        return function(workload.vectors, query, k, workload.temperature, rng)

    _check_items(rank(workload.query), len(workload), min(k, len(workload)))
    return _for_users(rank, workload.queries)


def _textbook(workload: Workload, k: int, name: str) -> Call:
    """For one user, from scores that are there: their computation is not counted."""
    scores = dict(enumerate(workload.scores.tolist()))
    rng = random.Random(0)
    t = workload.temperature
    calls: Mapping[str, Any] = {
        "textbook deterministic": partial(reference.textbook_deterministic, scores, k),
        "textbook softmax": partial(reference.textbook_softmax, scores, k, t, rng),
        "textbook softmax removal": partial(reference.textbook_softmax_removal, scores, k, t, rng),
        "textbook gumbel": partial(reference.textbook_gumbel, scores, k, t, rng),
        "textbook epsilon": partial(reference.textbook_epsilon_greedy, scores, k, _EPSILON, rng),
    }
    call: Call = calls[name]
    # Seconds at n = 1,000,000, so there the one measured call is the only one.
    if len(workload) * k <= _ORACLE_SCORES // 10:
        _check_items(calls[name](), len(workload), min(k, len(workload)))
    return call


# ---- Checks ---------------------------------------------------------------------------------


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _check_close(found: object, expected: object, otherwise: str) -> None:
    _check(bool(np.allclose(found, expected, rtol=0.0, atol=1e-5)), otherwise)  # type: ignore[arg-type]


def _check_items(items: Positions | Sequence[int], n_items: int, places: int) -> None:
    found = np.asarray(items)
    _check(len(found) == places, f"{len(found)} items, not {places}")
    _check(len(np.unique(found)) == places, "an item was ranked twice")
    _check(bool((found >= 0).all() and (found < n_items).all()), "no such item")


def _check_best(workload: Workload, items: Positions, among: Positions, error: float) -> None:
    """Place by place the exact best k, but for items closer than the rounding of their scores."""
    exact = workload.scores
    best = among[np.argsort(-exact[among], kind="stable")[: len(items)]]
    worst = np.abs(exact[items] - exact[best]).max()
    _check(bool(worst <= 2.0 * error * workload.scale), f"not the best {len(items)}: {worst:g} off")
