"""Rankings from scores that another model computed, by the same passes that rank a catalog.

There is no catalog: items are ids with a float32 number each, read where the caller keeps them. The
result is, bit for bit, what ``Catalog(item_ids, scores[:, None])`` draws for the query ``[1.0]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import Float32Array, FloatArray
from fastrank.ask import Ask
from fastrank.expressions import Params, as_params
from fastrank.features import Features, as_features
from fastrank.ids import Ids, ItemIds, UniqueIds, ids_of
from fastrank.inputs import as_float32, as_real
from fastrank.lru import LRU
from fastrank.policies import Policy
from fastrank.ranker import Ranker, Ruled, each_of
from fastrank.ranking import Ranking, RankingBatch
from fastrank.rules import Rules

__all__ = ["log_propensities_of_scores", "rank_scores", "rank_scores_batch"]


def rank_scores(
    item_ids: Ids | ItemIds,
    scores: npt.ArrayLike,
    k: int = 10,
    *,
    policy: Policy,
    seed: int | None = None,
    exclude: Ids | None = None,
    allow: Ids | None = None,
    threads: int = 1,
    features: Any = None,
    rules: Rules | None = None,
    after: Ids | None = None,
    params: Params | None = None,
) -> Ranking:
    """Draw one ranking from given scores, with the exact probability of having drawn it.

    Parameters
    ----------
    item_ids : array_like of int or str, shape (n,), or ItemIds
        Unique. Each call checks them, O(n): a million takes 0.2 ms as an ascending int64 array, 60
        ms in any other order, and 90 ms as text. `ItemIds` were checked when they were made.
    scores : array_like of real numbers, shape (n,)
        One per item, n >= 1; cast to float32, finite, and within half the float32 range. A
        contiguous float32 array is read in place, and must not change during the call.
    k : int
        Places to fill, at least 1. If fewer items are eligible, the ranking is shorter.
    policy : Policy
        How to draw; there is no default. ``PlackettLuce(sampler="cached")`` is refused: a table of
        scores that are used once saves nothing, and "gumbel" draws by the same law.
    seed : int, optional
        In [0, 2**64). By default the operating system draws one below 2**53.
    exclude, allow : array_like of ids, optional
        Items to leave out, and the only items to rank; a set works too. Both act before sampling,
        so propensities are those of the filtered law. Unknown ids and repeats are ignored, and
        `exclude` wins. None is no filter; an empty `allow` allows nothing.
    threads : int
        How many threads may work on this call; they start and end with it. The ranking is the same
        for any number.
    features : Features, mapping of str to array_like, shape (n,), or a table, optional
        Columns for rules, as for `Catalog`. Each call reads them, O(n log n), unless they are those
        of `Catalog.features`.
    rules : Rules, optional
        Which items may stand where in the list.
    after : array_like of ids, optional
        All items that the pages before this one showed, in their order.
    params : mapping of str to (float, bool or str), optional
        Values of the parameters of the rules.

    Returns
    -------
    Ranking
        Its `catalog_version` is empty, since no version identifies these scores.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument, the row and the value.

    Notes
    -----
    O(n + k log k) time and O(k) memory, and n / 8 bytes with a filter.

    Examples
    --------
    >>> import fastrank as fr
    >>> scores = np.array([0.3, 1.2, 0.8], np.float32)
    >>> ranking = fr.rank_scores(["a", "b", "c"], scores, k=2, policy=fr.PlackettLuce(0.5), seed=7)
    >>> len(ranking), ranking.n_eligible
    (2, 3)
    >>> fr.rank_scores(["a", "b", "c"], scores, 2, policy=fr.Deterministic()).item_ids.tolist()
    ['b', 'c']
    """
    row = _row(scores)
    items = _Scored(item_ids, len(row))
    ruled = items._ruled(features, rules, after, params)
    return items._rank(row, k, policy, seed, exclude, allow, None, threads, None, ruled)


def rank_scores_batch(
    item_ids: Ids | ItemIds,
    scores: npt.ArrayLike,
    k: int = 10,
    *,
    policy: Policy | Sequence[Policy],
    seeds: Sequence[int] | npt.NDArray[Any] | None = None,
    exclude: Sequence[Ids | None] | None = None,
    allow: Sequence[Ids | None] | None = None,
    threads: int = 1,
    features: Any = None,
    rules: Rules | None = None,
    after: Sequence[Ids | None] | None = None,
    params: Params | None = None,
) -> RankingBatch:
    """Draw one ranking for each of b users; row i is what `rank_scores` returns for seeds[i].

    Parameters
    ----------
    item_ids : array_like of int or str, shape (n,), or ItemIds
        The same items for all users.
    scores : array_like of real numbers, shape (b, n)
        One row per user; as for `rank_scores`.
    k : int
    policy : Policy or sequence of b policies
    seeds : sequence of b int, optional
        By default b different seeds are drawn. A single number is an error: the same noise for all
        users would make their rankings move together, and every joint propensity wrong.
    exclude, allow : sequence of b (array_like of ids or None), optional
    threads : int
        How many threads may work on this call. With at least 8 users per thread, each thread ranks
        for its own users; with fewer, all threads share each scan.
    features, rules, params
        As for `rank_scores`, the same for all users.
    after : sequence of b (array_like of ids or None), optional

    Returns
    -------
    RankingBatch

    Raises
    ------
    ValueError
        If an argument is invalid, before any work is done; the message names the argument, the row
        and the value.

    Notes
    -----
    O(n + k log k) per user, as for `rank_scores`; ids are checked once. Beyond the result, memory
    is O(k), and n / 8 bytes with a filter, for each of 64 users at a time on each thread.

    Examples
    --------
    >>> import fastrank as fr
    >>> scores = np.array([[0.3, 1.2, 0.8], [0.9, 0.1, 0.5]], np.float32)
    >>> policy = fr.Deterministic()
    >>> batch = fr.rank_scores_batch(["a", "b", "c"], scores, 2, policy=policy, exclude=[None, "a"])
    Traceback (most recent call last):
        ...
    ValueError: exclude[1]: expected an array of ids, got 'a', a single str; pass a list of one
    >>> batch = fr.rank_scores_batch(["a", "b", "c"], scores, 2, policy=policy, exclude=[[], ["a"]])
    >>> batch.item_ids.tolist()
    [['b', 'c'], ['c', 'b']]
    """
    rows = as_real("scores", scores)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"scores: expected shape (b, n) with n >= 1, got {rows.shape}")
    if not _is_ready(rows):
        rows = as_float32("scores", rows, rows.shape)
    b = len(rows)
    items = _Scored(item_ids, rows.shape[1])
    pages = [None] * b if after is None else each_of("after", after, b)
    ruled = [items._ruled(features, rules, page, params) for page in pages]
    return items._rank_batch(
        *(rows, k, policy, seeds, exclude, allow, None, threads, None),
        ruled if any(ruled) else None,
    )


def log_propensities_of_scores(
    item_ids: Ids | ItemIds,
    scores: npt.ArrayLike,
    ranked_ids: Ids,
    *,
    policy: Policy,
    exclude: Ids | None = None,
    allow: Ids | None = None,
    features: Any = None,
    rules: Rules | None = None,
    after: Ids | None = None,
    params: Params | None = None,
    k: int | None = None,
) -> FloatArray:
    """Compute how probable any ranking of given scores is under a policy, place by place.

    Parameters
    ----------
    item_ids, scores
        As in `rank_scores`.
    ranked_ids : array_like of ids, shape (m,)
        The ranking, best place first.
    policy : Policy
        All samplers of `PlackettLuce` have the same law, including the cached one.
    exclude, allow, features, rules, after, params
        As in `rank_scores`.
    k : int, optional
        Places that the ranking was drawn for, which the shares and pins of rules depend on; by
        default the length of the ranking.

    Returns
    -------
    ndarray of float64, shape (m,)
        log P(item at place j | items at places before j). An unknown, ineligible or repeated item
        gets -inf and removes nothing: later places are conditional on the items that are left.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument, the row and the value.

    Notes
    -----
    One pass, O(n + m log m).

    Examples
    --------
    >>> import fastrank as fr
    >>> lp = fr.log_propensities_of_scores([1, 2, 3], [0.0] * 3, [3, 1], policy=fr.PlackettLuce())
    >>> [round(float(p), 3) for p in np.exp(lp)]
    [0.333, 0.5]
    """
    row = _row(scores)
    items = _Scored(item_ids, len(row))
    ruled = items._ruled(features, rules, after, params)
    return items._judge(row, "ranked_ids", ranked_ids, policy, exclude, allow, None, None, ruled, k)


class _Scored(Ranker):
    """Items whose scores come with each call, instead of a query."""

    def __init__(self, item_ids: Ids | ItemIds, n_items: int) -> None:
        ids, index = ids_of("item_ids", item_ids)
        if len(ids) != n_items:
            raise ValueError(f"item_ids: expected {n_items}, one for each score, got {len(ids)}")
        self._index = index or UniqueIds("item_ids", ids)
        self._n_items = n_items
        self._packed = _native.GivenScores(n_items)
        self._version = ""
        self._rules = LRU(entries=1)
        self._features: tuple[Any, Features] | None = None

    def _ruled(self, given: Any, rules: Any, after: Any, params: Any) -> Ruled | None:
        """The rules of a call, by columns that come with it."""
        own = as_params(params)
        names = rules.names if isinstance(rules, Rules) else frozenset()
        unknown = [name for name in own if name not in names]
        if unknown:
            raise ValueError(f"params: {unknown[0]!r} is no parameter of rules")
        if given is not None and (self._features is None or self._features[0] is not given):
            if isinstance(given, Features):
                if given.n_items != self._n_items:
                    raise ValueError(
                        f"features: have {given.n_items} items, where there are {self._n_items}"
                    )
                self._features = given, given
            else:
                self._features = given, as_features(given, self._n_items, None)
        features = None if given is None or self._features is None else self._features[1]
        return self._bind_rules(rules, after, own, features)

    def _boosted(self, ask: Ask, bias: Float32Array) -> Ask:
        return ask._replace(query=ask.query + bias)


def _row(scores: npt.ArrayLike) -> Float32Array:
    """Scores (n,) as the core reads them; the core also checks that they are finite."""
    array = as_real("scores", scores)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"scores: expected shape (n,) with n >= 1, got {array.shape}")
    return array if _is_ready(array) else as_float32("scores", array, array.shape)


def _is_ready(array: npt.NDArray[Any]) -> bool:
    """Whether the core can read an array in place."""
    flags = array.flags
    return array.dtype == np.float32 and flags.c_contiguous and flags.aligned
