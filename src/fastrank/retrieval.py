"""Candidates for `FlatTail`: build a FAISS index, and measure the effect of m and factor.

FAISS is an extra ("faiss") and is imported where it is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrank.catalog import Catalog
from fastrank.faissindex import FaissIndex
from fastrank.inputs import as_column, as_count, as_seed, shown
from fastrank.model import Model
from fastrank.policies import FlatTail, PlackettLuce, Policy, law_of

__all__ = ["FaissIndex", "Trade", "build_ivf", "measure", "propose"]

_POINTS = 64  # training vectors of k-means, for each list
_ROUNDS = 10  # of k-means
_AT_ONCE = 65_536  # vectors copied, assigned and added at a time
_LONG = 1e9  # vectors longer than this are scaled down, so that squared distances stay finite
_LEAST_A_LIST = 39  # items per list, by default; FAISS warns if there are fewer

# The limits that a proposal must keep: shares of the rankings, and of the score.
ENOUGH_ESS, ENOUGH_LEAST_ESS, MOST_LOST = 0.5, 0.1, 0.05
_SHARES = (0.001, 0.01, 0.04)  # shares of the catalog to try as numbers of candidates
_FACTORS = (1.0, 0.1, 0.01)
_PASSES = 5  # rankings per user that time a pass


def build_ivf(
    catalog: Catalog, *, n_lists: int | None = None, n_probes: int = 16, seed: int = 0
) -> FaissIndex:
    """Build an inverted file over a catalog's vectors: IVFFlat, with lists by k-means.

    Each item goes into the list with the nearest centre. A search reads the lists whose centres
    have the largest inner products with the query. On factors of real recommenders, this found more
    in the same time than any other FAISS index tried (docs/explanation/retrieval.md).

    Parameters
    ----------
    catalog : Catalog
    n_lists : int, optional
        Up to n; by default 4 sqrt(n), or fewer if lists would have less than 39 items on average.
    n_probes : int
        Number of lists that a search reads. More lists give better candidates, and take longer.
    seed : int
        Seed of k-means.

    Returns
    -------
    FaissIndex
        For `Catalog.with_index` and `Model.with_index`.

    Notes
    -----
    O(n d n_lists) time, on all cores; 4 (d + 2) bytes per item in addition to the catalog's.

    Examples
    --------
    >>> import fastrank as fr
    >>> vectors = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> catalog = fr.Catalog(np.arange(1000), vectors)
    >>> indexed = catalog.with_index(build_ivf(catalog, n_lists=20, n_probes=5))
    >>> policy = fr.FlatTail(temperature=0.5, m=50, factor=0.1)
    >>> indexed.rank(vectors[0], k=5, policy=policy, seed=1).made_by
    'index'
    """
    if not isinstance(catalog, Catalog):
        raise ValueError(f"catalog: expected a Catalog, got {catalog!r}")
    import faiss

    n = len(catalog)
    if n_lists is None:
        n_lists = max(1, min(round(4 * n**0.5), n // _LEAST_A_LIST))
    n_lists = as_count("n_lists", n_lists)
    if n_lists > n:
        raise ValueError(f"n_lists: got {n_lists}; expected at most {n}, the number of items")
    n_probes = as_count("n_probes", n_probes)
    rng = np.random.default_rng(as_seed("seed", seed))
    chosen = np.sort(rng.permutation(n)[: _POINTS * n_lists])
    sample = np.concatenate(
        [
            catalog._vectors(first, first + _AT_ONCE)[
                chosen[(chosen >= first) & (chosen < first + _AT_ONCE)] - first
            ]
            for first in range(0, n, _AT_ONCE)
        ]
    )
    dim = sample.shape[1]
    # Squares of distances must stay in the range of float32.
    longest = max(catalog._meta["max_norm"], catalog._meta["max_bias"])
    scale = np.float32(1.0 / longest if longest > _LONG else 1.0)
    means = faiss.Kmeans(
        dim,
        n_lists,
        niter=_ROUNDS,
        seed=int(rng.integers(1, 2**31)),
        min_points_per_centroid=1,
        max_points_per_centroid=_POINTS,
    )
    means.train(sample * scale)
    # Items are assigned to lists by distance, but searches choose lists by inner product:
    # assignment by inner products would put half of all items into the lists of the longest
    # centres.
    quantiser, nearest = faiss.IndexFlatIP(dim), faiss.IndexFlatL2(dim)
    for each in (quantiser, nearest):  # scaling does not change the order of the inner products
        each.add(means.centroids)
    index = faiss.IndexIVFFlat(quantiser, dim, n_lists, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    for first in range(0, n, _AT_ONCE):
        _add(index, nearest, catalog._vectors(first, first + _AT_ONCE), first, scale)
    return FaissIndex.of_positions(index, min(n_probes, n_lists))


def _add(index: Any, nearest: Any, vectors: Any, first: int, scale: Any) -> None:
    import faiss

    positions = np.arange(first, first + len(vectors))
    lists = np.ascontiguousarray(nearest.search(vectors * scale, 1)[1].ravel())
    index.add_core(
        len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(positions), faiss.swig_ptr(lists)
    )


@dataclass(frozen=True, slots=True)
class Trade:
    """Measured effects of one m and factor, compared with Plackett-Luce at the same temperature.

    Attributes
    ----------
    m : int
    factor : float
    found : float
        Number of candidates that the index found, for the median user. It can be below m, since
        an inverted file finds only items of the lists that it reads (`n_probes`).
    ess, least_ess : float
        Effective sample size, as a share of the rows, of evaluating Plackett-Luce from a log of
        these rankings: the median over users, and the least. A log of Plackett-Luce itself has 1.
    lost : float
        Loss of the mean score of the items shown: 0 for Plackett-Luce, 1 for uniform draws;
        negative if the items score higher.
    mass : float
        Plackett-Luce's probability that a candidate stands first, for the median user.
    from_tail : float
        Mean number of places that show an item of the tail.
    seconds, of_a_pass : float
        Time of a ranking: in seconds, and relative to a Plackett-Luce ranking by a pass.
    """

    m: int
    factor: float
    found: float
    ess: float
    least_ess: float
    lost: float
    mass: float
    from_tail: float
    seconds: float
    of_a_pass: float

    @property
    def is_enough(self) -> bool:
        """Whether logs of such rankings can evaluate other policies, and little score is lost."""
        return (
            self.ess >= ENOUGH_ESS and self.least_ess >= ENOUGH_LEAST_ESS and self.lost <= MOST_LOST
        )


def measure(
    model: Model,
    policy: Policy,
    *,
    k: int = 10,
    m: Sequence[int] | None = None,
    factor: Sequence[float] = _FACTORS,
    users: int = 32,
    draws: int = 100,
    seed: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> list[Trade]:
    """Measure what m and factor of `FlatTail` do to rankings for a model's users.

    Parameters
    ----------
    model : Model
        Without an index, a pass finds the candidates.
    policy : Policy
        `PlackettLuce`, at the temperature to use, or another policy of its law.
    k : int
        Places.
    m : sequence of int, optional
        By default 0.1, 1 and 4 percent of the catalog, if that is at least k.
    factor : sequence of float
    users, draws : int
        Number of users to draw from the model, and number of rankings for each.
    seed : int
    advance : callable, optional
        Called with the number of users done and the number of all.

    Returns
    -------
    list of Trade
        One for each m and factor.

    Notes
    -----
    O(n d) for each user, plus a search and O(n) for each ranking. From 100 rankings, an effective
    sample size that is not small is known to about 10 %.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(np.arange(500), rng.standard_normal((500, 8)))
    >>> model = fr.Model(catalog, ["ann", "bob"], rng.standard_normal((2, 8)))
    >>> few, all_of_them = measure(model, fr.PlackettLuce(0.5), k=3, m=[5, 500], factor=[0.1])
    >>> few.ess < 0.5, round(all_of_them.ess, 6), all_of_them.is_enough
    (True, 1.0, True)
    """
    if not isinstance(model, Model):
        raise ValueError(f"model: expected a Model, got {shown(model)}")
    law = law_of(policy)
    if not law.is_plackett_luce:
        raise ValueError(f"policy: expected PlackettLuce, got {shown(policy)}")
    n = len(model.catalog)
    k = min(as_count("k", k), n)
    if m is None:
        m = sorted({max(k, math.ceil(share * n)) for share in _SHARES})
    tails = [
        FlatTail(law.temperature, each, weight)
        for each in as_column("m", m, "a sequence of integers")
        for weight in as_column("factor", factor, "a sequence of numbers")
    ]
    if not tails:
        raise ValueError("m, factor: expected one or more of each, got none")
    count = min(as_count("users", users), len(model.user_ids))
    draws = as_count("draws", draws, low=2)
    rng = np.random.default_rng(as_seed("seed", seed))
    rows = np.sort(rng.permutation(len(model.user_ids))[:count]).tolist()
    seeds = rng.integers(0, 2**53, (count, draws)).astype(np.uint64)
    found = np.empty((len(tails), count, 6))  # n_found, ess, loss, mass, from_tail, seconds
    to_lose, of_passes = np.empty(count), np.empty(count)
    for i, row in enumerate(rows):
        to_lose[i], of_passes[i], found[:, i] = _of_user(model, row, tails, k, seeds[i])
        if advance is not None:
            advance(i + 1, count)
    a_pass, all_to_lose = float(np.median(of_passes)), float(to_lose.sum())
    trades = []
    for tail, (n_found, ess, loss, mass, from_tail, seconds) in zip(
        tails, found.transpose(0, 2, 1), strict=True
    ):
        trades.append(
            Trade(
                tail.m,
                tail.factor,
                float(np.median(n_found)),
                float(np.median(ess)),
                float(ess.min()),
                float(loss.sum()) / all_to_lose if all_to_lose > 0.0 else 0.0,
                float(np.median(mass)),
                float(from_tail.mean()),
                float(np.median(seconds)),
                float(np.median(seconds)) / a_pass,
            )
        )
    return trades


def _of_user(
    model: Model, row: int, tails: Sequence[FlatTail], k: int, seeds: Any
) -> tuple[float, float, Any]:
    """Return the score that could be lost, the time of a pass, and a row for each tail: n_found,
    ess, loss of score, mass, from_tail, seconds."""
    catalog, vector = model.catalog, model.user_vectors[row]
    queries = np.broadcast_to(vector, (len(seeds), catalog.dim))
    own = law_of(model._own_policy(row, PlackettLuce(tails[0].temperature))[0]).temperature
    softmax = PlackettLuce(own, sampler="cached")
    start = time.perf_counter()
    for each in seeds[:_PASSES].tolist():
        norm = catalog.rank(vector, k, policy=PlackettLuce(own), seed=each).log_norm
    a_pass = (time.perf_counter() - start) / len(seeds[:_PASSES])
    assert norm is not None
    best = float(
        catalog.rank_batch(queries, k, policy=softmax, seeds=seeds).scores.mean(dtype=np.float64)
    )
    to_lose = best - float(catalog.scores(vector).mean(dtype=np.float64))
    rows = []
    for tail in tails:
        drawn_by = tail.at_temperature(own)
        start = time.perf_counter()
        batch = catalog.rank_batch(queries, k, policy=drawn_by, seeds=seeds)
        seconds = (time.perf_counter() - start) / len(seeds)
        lp = catalog.log_propensities_batch(queries, list(batch.item_ids), policies=[softmax])[0]
        weights = np.exp(lp.sum(axis=1) - batch.log_propensity)
        square = float((weights**2).mean())
        ess = float(weights.mean()) ** 2 / square if square > 0.0 else 0.0
        loss = best - float(batch.scores.mean(dtype=np.float64))
        assert batch.candidates is not None
        said = [each for each in batch.candidates if each is not None]
        n_tail = len(catalog) - said[0].n_found
        log_tail = math.log(n_tail) + said[0].tail_log_weight if n_tail else -math.inf
        mass = math.exp(batch.log_norm[0] - norm) * -math.expm1(log_tail - batch.log_norm[0])
        from_tail = float(np.mean([k - each.is_candidate.sum() for each in said]))
        rows.append((said[0].n_found, ess, loss, min(mass, 1.0), from_tail, seconds))
    return to_lose, a_pass, rows


def propose(trades: Sequence[Trade]) -> tuple[Trade, list[str]]:
    """Choose a trade, and say what is wrong with it.

    Among trades that lose little score and allow evaluating other policies, the fastest is chosen.
    If there is none, the one with the largest effective sample size that loses little.

    Examples
    --------
    >>> few = Trade(100, 0.1, 100.0, 0.02, 0.01, 0.03, 0.6, 2.5, 7e-5, 0.03)
    >>> trade, warnings = propose([few])
    >>> trade.m, len(warnings)
    (100, 1)
    """
    trades = list(trades)
    if not trades:
        raise ValueError("trades: expected some, got none")
    enough = [each for each in trades if each.is_enough]
    if enough:
        trade = min(enough, key=lambda each: (each.m, each.lost))
    else:
        few_lost = [each for each in trades if each.lost <= MOST_LOST]
        trade = max(few_lost or trades, key=lambda each: (each.ess, each.least_ess))
    warnings = []
    if trade.ess < ENOUGH_ESS or trade.least_ess < ENOUGH_LEAST_ESS:
        warnings.append(
            f"with {trade.m:,} candidates and a factor of {trade.factor:g}, a log is worth"
            f" {trade.ess:.0%} of its rows for evaluating Plackett-Luce, and {trade.least_ess:.0%}"
            f" for the worst user: little can be said about other policies"
        )
    if trade.found < 0.99 * trade.m:
        warnings.append(
            f"of {trade.m:,} candidates the index finds {trade.found:,.0f}: raise n_probes, so that"
            " searches read more lists"
        )
    if trade.lost > MOST_LOST:
        warnings.append(f"{trade.lost:.0%} of the score is lost")
    if trade.of_a_pass > 1.0:
        warnings.append(
            f"a ranking takes {trade.of_a_pass:.1f} times as long as Plackett-Luce by a pass over"
            " this catalog, which loses no score"
        )
    return trade, warnings
