"""One ranking, by us or by a peer, as a call without arguments.

Every function here makes the call once and checks what came back before handing it out: a
benchmark of a wrong answer measures nothing. The peers are set up as fast as is known, and whatever
they need apart from the query (an index, a dictionary of scores) is made beforehand.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import count, cycle
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

import fastrank as fr
from fastrank import reference

from . import rules, scores, twin
from .timing import Call
from .workloads import CODED_FROM, Vectors, Workload, require_storage

__all__ = [
    "ARITHMETIC",
    "BATCHED",
    "CODED",
    "FAISS",
    "GIVEN",
    "INDEXED",
    "INT8",
    "JAX",
    "NUMPY",
    "OWN",
    "READS",
    "SCANS",
    "SCORED",
    "TEXTBOOK",
    "TWIN",
    "as_float32",
    "cached_miss",
    "catalog_rank",
    "check_ranking",
    "filtered",
    "for_users",
    "log_propensities",
    "make",
    "make_batch",
    "multiply_in_threads",
    "own_policy",
    "present",
    "read_in_threads",
    "read_matrix",
    "require",
    "require_argument",
    "storage_of",
    "with_codes",
]

Positions: TypeAlias = npt.NDArray[np.int64]
T = TypeVar("T")

_EPSILON = 0.1
_CANDIDATES = 1000
# Rounding of a dot product with entries of a type, relative to the largest score that could be.
_FLOAT32_ERROR = 1e-5
_FLOAT16_ERROR = 1e-3
_EIGHT_BIT_ERROR = 2e-2
# Of a log-propensity whose sums are float32 ones.
_TWIN_ERROR = 1e-3
# The oracle takes O(k n) in float64: up to this many scores it is asked.
_ORACLE_SCORES = 20_000_000
_RULED_CELLS = 400_000  # places times items, where it knows of rules, item by item
_CHECKED_ROWS = 8  # of a batch
_NOISE = 0.5  # that tells its users from the workload's, relative to these
_FIRST_USERS = 16  # are ranked before anything is measured
_SCORED_USERS = 4  # as many as have their scores in the last cache together, as of a model just run
# FAISS as installed never multiplies matrices for fewer than 128,000 dot products of a user and the
# users. From so many users on that is what it is fastest with; before, its scan is.
_FAISS_BLAS_FROM = 8
# A block of so many scores stays in a core's cache.
_BLOCK_SCORES = 1 << 18

OWN = ["gumbel", "deterministic", "epsilon", "uniform", "sequential", "cached"]
# Ours in one pass over the vectors, or less.
SCANS = ["gumbel", "deterministic", "epsilon", "uniform"]
# Below CODED_FROM items these are float32 storage, as asking for int8 gives it,
INT8 = ["int8 gumbel", "int8 deterministic", "int8 epsilon"]
# and these codes all the same, for what is to be known of codes.
CODED = ["coded gumbel", "coded deterministic"]
FAISS = ["faiss flat", "faiss fp16", "faiss sq8"]
# By an index: ours, of 1,000 candidates; FAISS's search of the same index for the 10 best and for
# 1,000; and its others, HNSW and an exact one that leaves out coordinates which cannot matter.
INDEXED = ["flat tail", "faiss ivf", "faiss ivf 1000", "faiss hnsw", "faiss panorama"]
# What `make_batch` knows besides ours and FAISS: FAISS told to use BLAS, and the floor of a batch.
BATCHED = ["faiss blas", "sgemm"]
NUMPY = ["numpy choice", "numpy gumbel"]
JAX = ["jax top k", "jax gumbel"]
# Our own pass, propensities and all, written in Numba.
TWIN = "numba twin"
# From scores that are there: ours, with ids that are checked at every call and with prepared ones,
GIVEN = ["given gumbel", "prepared gumbel"]
# and what is written without us.
SCORED = ["numpy softmax", "torch multinomial"]
# The floors: as many bytes as the vectors have in a storage, read and nothing else.
READS = ["read", "read int8"]
# And arithmetic that never leaves the caches.
ARITHMETIC = "arithmetic"
TEXTBOOK = [
    "textbook deterministic",
    "textbook softmax",
    "textbook softmax removal",
    "textbook gumbel",
    "textbook epsilon",
]


def make(
    name: str,
    workload: Workload,
    k: int = 10,
    threads: int = 1,
    temperature: float | None = None,
) -> Call:
    """The contender of this name; see the lists above. Only ours take more than one thread.

    temperature: of ours, if not the workload's.

    Raises
    ------
    NotImplementedError
        As `require` does.
    """
    require(name, threads)
    if name in OWN + INT8 + CODED:
        catalog = workload.stored(storage_of(name))
        policy = own_policy(name, temperature or workload.temperature)
        return catalog_rank(workload, k, policy, catalog=catalog, threads=threads)
    if name in READS:
        return read_matrix(workload, storage_of(name))
    if name in FAISS:
        return for_users(_faiss_search(workload, k, name), list(workload.queries[:, None, :]))
    if name in INDEXED:
        return _indexed(workload, k, name)
    if name in NUMPY:
        return _numpy(workload, k, name)
    if name in JAX:
        return _jax(workload, k, name)
    if name == TWIN:
        return _numba_twin(workload, k)
    if name in TEXTBOOK:
        return _textbook(workload, k, name)
    if name in scores.EXPRESSIONS + scores.FUNCTIONS:
        return _by_score(workload, k, name)
    if name in rules.NAMES:
        return _under_rules(workload, k, name)
    if name in GIVEN:
        return _given(workload, k, name)
    if name in SCORED:
        return _scored(workload, k, name)
    raise ValueError(f"name: there is no contender {name!r}")


def require(name: str, threads: int = 1) -> None:
    """NotImplementedError, with the reason, where this contender is not to be had.

    asv takes that for a skip if it comes from a `setup`. The installed fastrank may be older than
    the benchmark, the peer may not be installed.
    """
    if name in INT8 + CODED:
        require_storage("int8")
    if name in GIVEN and not hasattr(fr, "rank_scores"):
        raise NotImplementedError("this fastrank has no rank_scores")
    module = "faiss" if name in INDEXED else name.split()[0]
    if name in INDEXED and not hasattr(fr, "FlatTail"):
        raise NotImplementedError("this fastrank has no FlatTail")
    if name in scores.EXPRESSIONS + scores.FUNCTIONS:
        require_argument(fr.Catalog.rank, "score")
    if name in rules.NAMES:
        require_argument(fr.Catalog.rank, "rules")
    brought = [*FAISS, *INDEXED, "faiss blas", *JAX, TWIN, *SCORED, *scores.FUNCTIONS]
    if name in brought and find_spec(module) is None:
        raise NotImplementedError(f"{module} is missing: pip install '.[{module}]'")
    if threads > len(os.sched_getaffinity(0)):
        raise NotImplementedError(f"there are no {threads} cores")
    if threads > 1 and name in OWN + INT8:
        require_argument(fr.Catalog.rank, "threads")


def require_argument(function: Callable[..., object], name: str) -> None:
    """NotImplementedError where this fastrank's function does not take it yet."""
    if name not in inspect.signature(function).parameters:
        raise NotImplementedError(f"this fastrank's {function.__qualname__} takes no {name}")


def present(names: Iterable[str], threads: int = 1) -> list[str]:
    """Those of the contenders that `require` lets pass."""
    found = []
    for name in names:
        try:
            require(name, threads)
        except NotImplementedError:
            continue
        found.append(name)
    return found


def storage_of(name: str) -> str:
    """What the contender's catalog is asked to keep, as for `Workload.stored`."""
    if name in CODED:
        return "codes"
    return "int8" if name in (*INT8, "read int8") else "float32"


def as_float32(name: str, n_items: int) -> bool:
    """Whether an int8 contender ranks so few items that they are kept as float32."""
    return name in INT8 and n_items < CODED_FROM


def with_codes(name: str, n_items: int) -> str:
    """The contender itself, or the one of `CODED` where it would rank from float32 vectors."""
    return name.replace("int8", "coded") if as_float32(name, n_items) else name


def own_policy(name: str, temperature: float) -> fr.Policy:
    """The policy of one of `OWN`, `INT8` or `CODED`."""
    policies: Mapping[str, fr.Policy] = {
        "gumbel": fr.PlackettLuce(temperature),
        "deterministic": fr.Deterministic(),
        "epsilon": fr.EpsilonGreedy(_EPSILON),
        "uniform": fr.Uniform(),
        "sequential": fr.PlackettLuce(temperature, sampler="sequential"),
        "cached": fr.PlackettLuce(temperature, sampler="cached"),
    }
    return policies[name.removeprefix("int8 ").removeprefix("coded ")]


# ---- Ours -----------------------------------------------------------------------------------


def catalog_rank(
    workload: Workload,
    k: int,
    policy: fr.Policy,
    *,
    catalog: fr.Catalog | None = None,
    threads: int = 1,
    allow: Positions | None = None,
    exclude: Positions | None = None,
) -> Call:
    """`Catalog.rank` with a seed drawn anew at each call; with "cached", of tables that are there.

    catalog: another image of the workload's catalog: opened from disk, in another storage or order.
    """
    ranked = workload.catalog if catalog is None else catalog
    rank = partial(_in_threads(ranked.rank, threads), k=k, policy=policy)
    if allow is not None or exclude is not None:
        rank = partial(rank, allow=allow, exclude=exclude)
    first = None if policy.sampler == "cached" else _FIRST_USERS  # all tables are to be there
    for query in workload.queries[:first][::-1]:
        ranking = rank(query)
    check_ranking(workload, ranking, k, catalog=ranked, allow=allow, exclude=exclude)
    return for_users(rank, workload.queries)


def _by_score(workload: Workload, k: int, name: str) -> Call:
    """Plackett-Luce by one of `scores`, which an older fastrank has not."""
    catalog, policy = workload.featured_catalog, own_policy("gumbel", workload.temperature)
    score, params, text = scores.score(name)
    rank = partial(catalog.rank, k=k, policy=policy, score=score, params=params)
    ranking = rank(workload.query)
    items = ranking.item_ids
    _check_items(items, len(workload), min(k, len(workload)))
    features = catalog.features
    assert features is not None  # it has some
    columns = {each: features.values(each)[items].tolist() for each in features.columns}
    exact = reference.expression_scores(text, workload.scores[items], columns, params)
    error = np.abs(ranking.scores - exact).max()
    _check(bool(error <= _FLOAT32_ERROR * workload.scale), f"scores are {error:g} off")
    if len(items) * len(workload) <= _ORACLE_SCORES:
        all_scores = catalog.scores(workload.query, score=score, params=params)
        oracle = reference.log_propensities(all_scores, items, policy)
        _check_close(ranking.log_propensities, oracle, "the oracle gives others")
    return for_users(rank, workload.queries)


def _under_rules(workload: Workload, k: int, name: str) -> Call:
    """Plackett-Luce under one of `rules`, which an older fastrank has not."""
    catalog, policy = workload.ruled_catalog, own_policy("gumbel", workload.temperature)
    ruled = rules.asked(name)

    def rank(asked: tuple[Vectors, fr.Ranking | None]) -> fr.Ranking:
        query, page = asked
        return catalog.rank(query, k, policy=policy, rules=ruled.rules, after=page)

    pages = [rank((q, None)) if ruled.has_page else None for q in workload.queries]
    users = list(zip(workload.queries, pages, strict=True))
    ranking, page = rank(users[0]), pages[0]
    _check_items(ranking.item_ids, len(workload), min(k, len(workload)))
    again = catalog.log_propensities(
        workload.query, ranking.item_ids, policy=policy, rules=ruled.rules, after=page
    )
    _check_close(ranking.log_propensities, again, "log_propensities gives others")
    if k * len(workload) <= _RULED_CELLS:
        oracle = _oracle_under_rules(workload, ruled.rules, ranking, policy, page)
        _check_close(ranking.log_propensities, oracle, "the oracle gives others")
    return for_users(rank, users)


def _oracle_under_rules(
    workload: Workload,
    asked: Any,
    ranking: fr.Ranking,
    policy: fr.Policy,
    page: fr.Ranking | None,
) -> npt.NDArray[np.float64]:
    """Item i has id i, and stands at position i."""
    columns = rules.columns(len(workload))
    named = [*asked.cap, *asked.window, *asked.decay]
    booleans = {name: np.asarray(columns[name]).dtype == bool for name in named}
    masks = reference.RuleMasks(
        groups={
            name: [
                {each} if each or not booleans[name] else set()
                for each in np.asarray(columns[name]).tolist()
            ]
            for name in named
        },
        cap=asked.cap,
        window=asked.window,
        decay=asked.decay,
        at_least=[(np.asarray(columns[text]), q) for text, q in asked.at_least.items()],
        pin={place - 1: item for place, item in asked.pin.items()},
        after=[] if page is None else page.item_ids.tolist(),
    )
    all_scores = workload.ruled_catalog.scores(workload.query)
    return reference.log_propensities(all_scores, ranking.item_ids, policy, None, masks)


def _in_threads(function: Callable[..., T], threads: int) -> Callable[..., T]:
    """As it is for one thread, since an older fastrank has no such argument."""
    return function if threads == 1 else partial(function, threads=threads)


def for_users(function: Callable[[T], object], arguments: Iterable[T]) -> Call:
    """Call the function for one user after another, round and round."""
    following = cycle(arguments)
    return lambda: function(next(following))


def filtered(workload: Workload, k: int, name: str, kind: str, ids: Positions) -> Call:
    """One of `OWN` with a filter: kind "allow" or "exclude"."""
    policy = own_policy(name, workload.temperature)
    if kind == "allow":
        return catalog_rank(workload, k, policy, allow=ids)
    return catalog_rank(workload, k, policy, exclude=ids)


def cached_miss(workload: Workload, k: int) -> Call:
    """The cached sampler on a catalog that keeps no table."""
    catalog = fr.Catalog(np.arange(len(workload)), workload.vectors, cache_bytes=0)
    return catalog_rank(workload, k, own_policy("cached", workload.temperature), catalog=catalog)


def check_ranking(
    workload: Workload,
    ranking: fr.Ranking,
    k: int,
    *,
    catalog: fr.Catalog,
    allow: Positions | None = None,
    exclude: Positions | None = None,
) -> None:
    """Scores, length, filters and propensities of one ranking; the best k for Deterministic."""
    query, policy = workload.query, ranking.policy
    eligible = np.ones(len(workload), np.bool_)
    if allow is not None:
        eligible[:] = False
        eligible[allow] = True
    if exclude is not None:
        eligible[exclude] = False
    places = min(k, int(eligible.sum()))
    scores = np.empty(len(workload), np.float32)
    scores[catalog.item_ids] = catalog.scores(query)  # the catalog may have an order of its own
    _check_items(ranking.item_ids, len(workload), places)
    _check(bool(eligible[ranking.item_ids].all()), "a filtered item was ranked")
    _check(ranking.n_eligible == int(eligible.sum()), "n_eligible is wrong")
    _check(np.array_equal(ranking.scores, scores[ranking.item_ids]), "scores are others'")
    error = np.abs(scores - workload.scores).max()
    _check(bool(error <= _FLOAT32_ERROR * workload.scale), f"scores are {error:g} off")
    if isinstance(policy, fr.Deterministic):
        _check_best(workload, ranking.item_ids, np.flatnonzero(eligible), _FLOAT32_ERROR)

    reported, bound = ranking.log_propensities, ranking.log_norm_error
    _check(bool(np.isfinite(reported).all() and (reported <= 0.0).all()), "not propensities")
    again = catalog.log_propensities(
        query, ranking.item_ids, policy=policy, allow=allow, exclude=exclude
    )
    _check_close(reported, again, "log_propensities gives others", bound)
    if places * len(workload) <= _ORACLE_SCORES:
        oracle = reference.log_propensities(scores, ranking.item_ids, policy, eligible)
        _check_close(reported, oracle, "the oracle gives others", bound)


def log_propensities(workload: Workload, k: int, policy: fr.Policy) -> Call:
    """`Catalog.log_propensities` of rankings that the policy drew."""
    catalog = workload.catalog
    rankings = [(query, catalog.rank(query, k, policy=policy)) for query in workload.queries]

    def judge(drawn: tuple[Vectors, fr.Ranking]) -> npt.NDArray[np.float64]:
        query, ranking = drawn
        return catalog.log_propensities(query, ranking.item_ids, policy=policy)

    for drawn in rankings:
        _check_close(judge(drawn), drawn[1].log_propensities, "not what rank reported")
    return for_users(judge, rankings)


def _given(workload: Workload, k: int, name: str) -> Call:
    """`rank_scores` with a seed drawn anew at each call."""
    item_ids = np.arange(len(workload))
    policy = own_policy("gumbel", workload.temperature)
    ids = fr.ItemIds(item_ids) if name == "prepared gumbel" else item_ids
    rank = partial(fr.rank_scores, ids, k=k, policy=policy)
    users = _scores_of_users(workload)
    ranking = rank(users[0])
    again = fr.Catalog(item_ids, users[0][:, None]).rank([1.0], k, policy=policy, seed=ranking.seed)
    _check(np.array_equal(ranking.item_ids, again.item_ids), "a catalog of the scores gives others")
    _check(ranking.log_propensity == again.log_propensity, "it gives other propensities")
    return for_users(rank, users)


def _scores_of_users(workload: Workload) -> list[Vectors]:
    return [workload.catalog.scores(query) for query in workload.queries[:_SCORED_USERS]]


# ---- Batches --------------------------------------------------------------------------------


def make_batch(
    name: str,
    workload: Workload,
    users: int,
    k: int = 10,
    threads: int = 1,
    temperature: float | None = None,
) -> Call:
    """Many users in one call: `OWN` and `INT8` by `rank_batch`, one of `FAISS` or of `BATCHED`.

    Batches of the same sizes hold the same users for every contender.

    temperature: of ours, if not the workload's.
    """
    require(name, threads)
    batches = _batches(workload, users)
    if name == "faiss blas":
        return for_users(_faiss_by_blas(workload, k, batches), batches)
    if name in FAISS:
        return for_users(_faiss_search(workload, k, name), batches)
    if name == "sgemm":
        return for_users(_products(workload, batches), batches)
    if threads > 1:
        require_argument(fr.Catalog.rank_batch, "threads")
    catalog = workload.stored(storage_of(name))
    policy = own_policy(name, temperature or workload.temperature)
    rank_batch = partial(_in_threads(catalog.rank_batch, threads), k=k, policy=policy)
    seeds = list(range(users))
    rankings = rank_batch(batches[0], seeds=seeds)
    for i in range(0, users, max(1, users // _CHECKED_ROWS)):
        one = catalog.rank(batches[0][i], k, policy=policy, seed=seeds[i])
        _check(np.array_equal(rankings[i].item_ids, one.item_ids), f"row {i} is not rank's")
    return for_users(rank_batch, batches)


def _batches(workload: Workload, users: int) -> list[Vectors]:
    """Two batches or more, of the workload's users with noise of their own, no further spread."""
    rng = np.random.default_rng(users)
    amount = max(2, len(workload.queries) // users)
    dim = workload.queries.shape[1]
    noise = rng.standard_normal((amount * users, dim), dtype=np.float32)
    queries = np.resize(workload.queries, noise.shape)
    queries = queries + np.float32(_NOISE) * queries.std(axis=1, keepdims=True) * noise
    queries /= np.float32(np.sqrt(1.0 + _NOISE**2))
    return list(queries.reshape(amount, users, dim))


# ---- Peers ----------------------------------------------------------------------------------


def read_matrix(workload: Workload, storage: str = "float32") -> Call:
    """Read the bytes of the matrix and do next to nothing else: BLAS's dot with itself.

    The floor of every exact pass. For int8 a quarter of the float32 matrix is read.
    """
    part = _bytes_of(workload, storage)
    call = partial(np.dot, part, part)
    checked = part[: 1 << 24]  # single precision loses the sum of many more
    exact = float(np.einsum("i,i->", checked, checked, dtype=np.float64))
    _check(abs(float(np.dot(checked, checked)) - exact) <= 1e-3 * exact, "the dot product is wrong")
    return call


def read_in_threads(workload: Workload, storage: str, threads: int, passes: int = 8) -> Call:
    """The same several times over, by threads on cores of their own: what memory gives to them.

    Each thread reads one part again and again, so that waking it up weighs little. BLAS has the
    GIL released meanwhile.
    """
    parts = np.array_split(_bytes_of(workload, storage), threads)
    pool = _on_own_cores(threads)

    def read(part: Vectors) -> None:
        for _ in range(passes):
            np.dot(part, part)

    return lambda: list(pool.map(read, parts))


def multiply_in_threads(threads: int, products: int = 600) -> Call:
    """Products of matrices that stay in a core's own cache: what arithmetic two cores have.

    They share nothing but heat and power, and what else runs on the host: a cloud's two cores are
    not twice one core all the time.
    """
    sides = np.random.default_rng(0).standard_normal((2, 192, 192), dtype=np.float32)
    pool = _on_own_cores(threads)

    def multiply(times: int) -> None:
        product = np.empty_like(sides[0])
        for _ in range(times):
            np.dot(sides[0], sides[1], out=product)

    return lambda: list(pool.map(multiply, [products // threads] * threads))


def _on_own_cores(threads: int) -> ThreadPoolExecutor:
    cores = iter(sorted(os.sched_getaffinity(0)))
    return ThreadPoolExecutor(threads, initializer=lambda: os.sched_setaffinity(0, {next(cores)}))


def _bytes_of(workload: Workload, storage: str) -> Vectors:
    flat = workload.vectors.reshape(-1)
    return flat[: flat.size // 4] if storage == "int8" else flat


def _faiss_search(workload: Workload, k: int, name: str) -> Callable[[Vectors], Any]:
    """The deterministic top k of users (b, d) by a flat index: of float32, float16 or 8 bits."""
    import faiss

    faiss.omp_set_num_threads(1)
    dim = workload.vectors.shape[1]
    quantizers = {
        "faiss fp16": (faiss.ScalarQuantizer.QT_fp16, _FLOAT16_ERROR),
        "faiss sq8": (faiss.ScalarQuantizer.QT_8bit, _EIGHT_BIT_ERROR),
    }
    index: Any
    if name in quantizers:
        kind, error = quantizers[name]
        index = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(workload.vectors)
    else:
        index, error = faiss.IndexFlatIP(dim), _FLOAT32_ERROR
    index.add(workload.vectors)
    search = partial(index.search, k=k)
    items = search(workload.query[None, :])[1][0]
    _check_items(items, len(workload), min(k, len(workload)))
    _check_best(workload, items, np.arange(len(workload)), error)
    return search


def _indexed(workload: Workload, k: int, name: str) -> Call:
    """By the workload's inverted file, ours or FAISS's own search; or by another index."""
    import faiss

    faiss.omp_set_num_threads(1)
    if name == "flat tail":
        policy = fr.FlatTail(workload.temperature, m=_CANDIDATES, factor=0.1)
        catalog = workload.indexed_catalog
        rank = partial(catalog.rank, k=k, policy=policy)
        ranking = rank(workload.query)
        again = catalog.log_propensities(workload.query, ranking.item_ids, policy=policy)
        _check_close(ranking.log_propensities, again, "log_propensities gives others")
        _check(ranking.made_by == "index", f"it was made by a {ranking.made_by}")
        return for_users(rank, workload.queries)
    parameters: Any = None
    if name.startswith("faiss ivf"):
        own = workload.indexed_catalog.index
        assert own is not None  # it has one
        index, parameters = own.index, faiss.SearchParametersIVF(nprobe=own.n_probes)
    else:
        dim = workload.vectors.shape[1]
        if name == "faiss hnsw":
            index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
            parameters = faiss.SearchParametersHNSW(efSearch=64)
        else:
            index = faiss.IndexFlatIPPanorama(dim, 8)
        index.add(workload.vectors)
    places = min(_CANDIDATES if name.endswith("1000") else k, len(workload))
    search = partial(index.search, k=places, params=parameters)
    found = search(workload.query[None, :])[1][0]
    if name == "faiss panorama":
        _check_best(workload, found, np.arange(len(workload)), _FLOAT32_ERROR)
    found = found[found >= 0]  # a graph may find fewer
    _check(0 < len(found) == len(np.unique(found)), "it finds nothing, or an item twice")
    return for_users(search, list(workload.queries[:, None, :]))


def _faiss_by_blas(
    workload: Workload, k: int, batches: Sequence[Vectors]
) -> Callable[[Vectors], object]:
    """IndexFlatIP with the best setting for batches: BLAS's product of matrices where it is faster.

    The setting is the process's, so each call puts back what it found.
    """
    import faiss

    search = _faiss_search(workload, k, "faiss flat")

    def by_blas(queries: Vectors) -> Any:
        found = faiss.cvar.distance_compute_blas_threshold
        if len(queries) >= _FAISS_BLAS_FROM:
            faiss.cvar.distance_compute_blas_threshold = 1
        try:
            return search(queries)
        finally:
            faiss.cvar.distance_compute_blas_threshold = found

    queries = batches[0]
    _check_scores(workload, queries, by_blas(queries)[0], search(queries)[0])
    return by_blas


def _products(workload: Workload, batches: Sequence[Vectors]) -> Callable[[Vectors], object]:
    """All scores of a batch by BLAS's sgemm, block by block, and nothing done with them.

    The floor of a batch that is ranked by products of matrices: there arithmetic is what costs.
    """
    vectors = workload.vectors
    users = len(batches[0])
    rows = max(1, _BLOCK_SCORES // users)
    scores = np.empty((rows, users), np.float32)

    def multiply(queries: Vectors) -> Vectors:
        columns = np.ascontiguousarray(queries.T)
        for first in range(0, len(vectors), rows):
            block = vectors[first : first + rows]
            np.matmul(block, columns, out=scores[: len(block)])
        return scores

    last = (len(vectors) - 1) % rows
    _check_scores(workload, batches[0], multiply(batches[0])[last], batches[0] @ vectors[-1])
    return multiply


def _jax(workload: Workload, k: int, name: str) -> Call:
    """Compiled by XLA for one thread: the product, Gumbel noise if asked for, and `top_k`.

    The matrix is an argument, since one that is closed over is folded into the program, and
    transposed, which XLA's product on CPUs is faster with. The noise is float32: its upper tail
    ends at 16.6.
    """
    os.environ.setdefault("PJRT_NPROC", "1")
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("XLA_FLAGS", flags)
    import jax

    places, temperature = min(k, len(workload)), workload.temperature

    def top_k(matrix: Any, query: Any, draw: Any) -> Any:
        keys = query @ matrix
        if name == "jax gumbel":
            random_key = jax.random.fold_in(jax.random.key(0), draw)
            keys = keys / temperature + jax.random.gumbel(random_key, keys.shape)
        return jax.lax.top_k(keys, places)

    compiled = jax.jit(top_k)
    matrix = jax.device_put(np.ascontiguousarray(workload.vectors.T))
    draws = count()

    def rank(query: Vectors) -> Any:
        return jax.block_until_ready(compiled(matrix, query, np.uint32(next(draws))))

    items = np.asarray(rank(workload.query)[1], np.int64)
    _check_items(items, len(workload), places)
    if name == "jax top k":
        _check_best(workload, items, np.arange(len(workload)), _FLOAT32_ERROR)
    return for_users(rank, workload.queries)


def _numba_twin(workload: Workload, k: int) -> Call:
    """The same sampler over the same float32 vectors, which may be laid out as suits it best.

    It gives positions, scores and log-propensities as arrays: no `Ranking`, no ids, and no seed by
    which it could be drawn again.
    """
    blocks = twin.blocks_of(workload.vectors)
    queries = np.zeros((len(workload.queries), blocks.shape[1]), np.float32)
    queries[:, : workload.queries.shape[1]] = workload.queries
    n_items, temperature = len(workload), workload.temperature
    compiled = twin.compiled()

    def rank(query: Vectors) -> twin.Drawn:
        return compiled(blocks, n_items, query, k, temperature)

    items, scores, reported = rank(queries[0])
    _check_items(items, n_items, min(k, n_items))
    error = np.abs(scores - workload.scores[items]).max()
    _check(bool(error <= _FLOAT32_ERROR * workload.scale), f"scores are {error:g} off")
    if len(items) * n_items <= _ORACLE_SCORES:
        policy = fr.PlackettLuce(temperature)
        oracle = reference.log_propensities(workload.scores, items, policy)
        _check_close(reported, oracle, "the oracle gives others", _TWIN_ERROR)
    return for_users(rank, queries)


def _numpy(workload: Workload, k: int, name: str) -> Call:
    function = {
        "numpy choice": reference.numpy_choice,
        "numpy gumbel": reference.numpy_gumbel,
    }[name]
    rng = np.random.default_rng(0)

    def rank(query: Vectors) -> Positions:
        return function(workload.vectors, query, k, workload.temperature, rng)

    _check_items(rank(workload.query), len(workload), min(k, len(workload)))
    return for_users(rank, workload.queries)


def _scored(workload: Workload, k: int, name: str) -> Call:
    """softmax, and k draws without replacement by the library's own function; no propensities."""
    places, temperature = min(k, len(workload)), workload.temperature
    rank: Callable[[Any], Any]
    users: list[Any] = _scores_of_users(workload)
    if name == "torch multinomial":
        import torch

        torch.set_num_threads(1)
        users = [torch.from_numpy(scores) for scores in users]

        def rank(scores: Any) -> Any:
            return torch.multinomial(torch.softmax(scores / temperature, 0), places)
    else:
        rng = np.random.default_rng(0)

        def rank(scores: Vectors) -> Positions:
            p = scores - scores.max()
            p /= np.float32(temperature)
            np.exp(p, out=p)
            p /= p.sum()
            return rng.choice(len(p), places, replace=False, p=p, shuffle=False)

    _check_items(np.asarray(rank(users[0])), len(workload), places)
    return for_users(rank, users)


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


def _check_close(
    found: npt.NDArray[np.float64],
    expected: npt.NDArray[np.float64],
    otherwise: str,
    beyond: float = 0.0,
) -> None:
    """Equal but for 1e-5, and what a bound allows beyond it."""
    _check(bool(np.allclose(found, expected, rtol=0.0, atol=1e-5 + beyond)), otherwise)


def _check_scores(workload: Workload, queries: Vectors, found: Vectors, expected: Vectors) -> None:
    """Equal but for the rounding of float32 products."""
    longest = np.sqrt(np.square(queries).sum(axis=1).max() / np.square(workload.query).sum())
    error = np.abs(found - expected).max()
    _check(bool(error <= 2.0 * _FLOAT32_ERROR * workload.scale * longest), f"{error:g} off")


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
