"""Reference implementations for tests, benches and demos: the oracle, and what the core replaces.

There are two halves:

- The float64 oracle: `scores`, `expression_scores`, `flat_tail_scores`, `log_norm`, `log_next`,
  `log_propensities`, `rank`, `ranking_law`. It is plain NumPy over one score vector, without
  tricks: it computes every conditional law anew at every place, in O(kn) or worse. The candidates
  of `FlatTail` are the m best. Items are positions 0..n-1 of the score vector; ``eligible`` is a
  mask of those that the filters left, and ``rules``, the masks of `reference_rules`, say which
  items may stand where.
- The procedures that services commonly use: ``textbook_*`` over a dictionary
  {item: score}, and the best of NumPy, ``numpy_*``, over a matrix. Each draws from the law
  in its docstring, which also states its limits. Each returns only the items, best place first,
  and fewer than k if there are fewer.
"""

from __future__ import annotations

import ast
import math
import random
from bisect import bisect
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray, Mask, Positions
from fastrank.expressions import parsed
from fastrank.policies import FlatTail, PlackettLuce, Policy, law_of
from fastrank.reference_rules import RuleMasks

__all__ = [
    "RuleMasks",
    "expression_scores",
    "flat_tail_scores",
    "log_next",
    "log_norm",
    "log_propensities",
    "numpy_choice",
    "numpy_gumbel",
    "rank",
    "ranking_law",
    "scores",
    "textbook_deterministic",
    "textbook_epsilon_greedy",
    "textbook_gumbel",
    "textbook_softmax",
    "textbook_softmax_removal",
]


Item = TypeVar("Item", bound=Hashable)


# The oracle


def scores(
    vectors: npt.ArrayLike, query: npt.ArrayLike, bias: npt.ArrayLike | None = None
) -> FloatArray:
    """Compute dot products with the query, plus the bias, in float64.

    Parameters
    ----------
    vectors : array_like, shape (n, d)
    query : array_like, shape (d,)
    bias : array_like, shape (n,), optional

    Returns
    -------
    ndarray of float64, shape (n,)

    Examples
    --------
    >>> scores([[1, 0], [2, 3]], [1.0, 0.5], bias=[0, 1])
    array([1. , 4.5])
    """
    values = np.asarray(vectors, np.float64) @ np.asarray(query, np.float64)
    if bias is not None:
        values = values + np.asarray(bias, np.float64)
    return np.asarray(values, np.float64)


def expression_scores(
    text: str,
    dots: npt.ArrayLike,
    columns: Mapping[str, Sequence[Any]] | None = None,
    params: Mapping[str, Any] | None = None,
) -> FloatArray:
    """Evaluate an expression over dot products, in float64.

    Python itself evaluates the expression, item by item, which makes the result independent of
    ``fastrank.expressions``. Pass only expressions that ``fastrank.expressions.parsed`` accepts.
    Constants, columns and parameters are first rounded to float32, as in the core, so that 19.99 is
    the same number everywhere. Numbers are NumPy's, so that division by 0 gives infinity.

    Parameters
    ----------
    text : str
        The expression, as for ``score=``.
    dots : array_like, shape (n,)
    columns : mapping of str to sequence of n
        Numbers, booleans, texts or None, or lists of texts.
    params : mapping, optional

    Examples
    --------
    >>> columns = {"age": [0.0, 30.0], "genres": [["drama"], []]}
    >>> text = "dot * exp(-age / 30) + ('drama' in genres)"
    >>> expression_scores(text, [1.0, 2.0], columns).round(3)
    array([2.   , 0.736])
    """
    tree = ast.Expression(_Rounded().visit(ast.parse(parsed(text).text, mode="eval").body))
    code = compile(ast.fix_missing_locations(tree), "<expression>", "eval")
    names = {name: list(map(_rounded, column)) for name, column in (columns or {}).items()}
    given = {name: _rounded(value) for name, value in (params or {}).items()}
    rows = zip(*names.values(), strict=True) if names else repeat(())
    with np.errstate(all="ignore"):
        return _evaluated(code, np.asarray(dots, np.float64), names, rows, given)


def _evaluated(
    code: Any,
    dots: FloatArray,
    names: Mapping[str, Any],
    rows: Iterable[tuple[Any, ...]],
    params: Mapping[str, Any],
) -> FloatArray:
    return np.array(
        [
            float(
                eval(
                    code,
                    {"__builtins__": {}},
                    {
                        **_FUNCTIONS,
                        **params,
                        "dot": dot,
                        **dict(zip(names, row, strict=True)),
                    },
                )
            )
            for dot, row in zip(dots, rows, strict=False)
        ]
    )


class _Rounded(ast.NodeTransformer):
    """Apply `_rounded` to constants."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            return node
        return ast.Call(ast.Name("_rounded", ast.Load()), [node], [])


def _rounded(value: Any) -> Any:
    """Round numbers to float32; texts and lists of texts are returned unchanged."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return np.float64(np.float32(value))
    return value


_FUNCTIONS: dict[str, Any] = {
    "_rounded": _rounded,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "abs": abs,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "min": min,
    "max": max,
    "clip": lambda x, low, high: min(max(x, low), high),
    "pi": np.float64(math.pi),
    "e": np.float64(math.e),
}


def _start(values: npt.ArrayLike, eligible: npt.ArrayLike | None) -> tuple[FloatArray, Mask]:
    """Return the scores in float64, and a copy of the mask, from which items can be removed."""
    array = np.asarray(values, np.float64)
    left = np.ones(len(array), np.bool_) if eligible is None else np.array(eligible, np.bool_)
    return array, left


def flat_tail_scores(
    scores: npt.ArrayLike,
    policy: FlatTail,
    candidates: npt.ArrayLike | None = None,
    eligible: npt.ArrayLike | None = None,
) -> FloatArray:
    """Compute scores with which Plackett-Luce, at the same temperature, has a flat tail's law.

    Parameters
    ----------
    scores : array_like, shape (n,)
    policy : FlatTail
    candidates : array_like of int, optional
        Positions of the candidates that an index found; by default the m best eligible items.
    eligible : array_like of bool, shape (n,), optional

    Examples
    --------
    >>> flat_tail_scores([3.0, 2.0, 1.0, 0.0], FlatTail(1.0, m=2, factor=0.5)).round(3)
    array([3.   , 2.   , 1.307, 1.307])
    """
    values, left = _start(scores, eligible)
    if candidates is None:
        found = np.flatnonzero(left)[np.argsort(-values[left], kind="stable")[: policy.m]]
    else:
        found = np.asarray(candidates, np.int64)
    lowest = float(values[found].min()) if len(found) else 0.0
    factor = policy.factor if len(found) else 1.0
    changed = np.full(len(values), lowest + policy.temperature * math.log(factor))
    changed[found] = values[found]
    return changed


class _Next:
    """The law of the place after any prefix; None in a prefix is a place without an item."""

    def __init__(
        self,
        scores: npt.ArrayLike,
        k: int,
        policy: Policy,
        eligible: npt.ArrayLike | None,
        rules: RuleMasks | None,
    ) -> None:
        self.values, self._filters = _start(scores, eligible)
        self.eligible = self._filters if rules is None else rules.eligible(self._filters)
        self.places = min(k, int(self.eligible.sum()))
        self._k, self._rules = k, rules
        if isinstance(policy, FlatTail):
            self.values = flat_tail_scores(self.values, policy, None, self.eligible)
            policy = PlackettLuce(policy.temperature)
        self._policy = policy

    def __call__(self, prefix: Sequence[int | None]) -> tuple[Mask, FloatArray]:
        """Return a mask of allowed items, and log P(item i) for every i: -inf if not allowed."""
        left, values = self._left(prefix)
        return left, _log_next(values, left, self._policy, len(prefix))

    def _left(self, prefix: Sequence[int | None]) -> tuple[Mask, FloatArray]:
        """Return a mask of allowed items, and the scores by which one is drawn."""
        if self._rules is None:
            left = self.eligible.copy()
            left[[item for item in prefix if item is not None]] = False
            return left, self.values
        left, log_decay = self._rules.left(prefix, self._k, self._filters)
        if not self._rules.decay:
            return left, self.values
        temperature = law_of(self._policy).temperature
        if temperature == math.inf:
            raise ValueError(f"rules: decay needs Plackett-Luce, got {self._policy}")
        return left, self.values + temperature * log_decay


def _log_next(values: FloatArray, left: Mask, policy: Policy, place: int) -> FloatArray:
    """Compute log P(item i at a place) for every i, given the items left; -inf for others."""
    law = law_of(policy)
    explore = law.explore_at(place)
    log_p = np.full(len(values), -np.inf)
    if not left.any():
        return log_p
    candidates = values[left]
    best = np.flatnonzero(left)[candidates.argmax()]  # ties go to the earlier item
    if explore > 0.0:
        shifted = (candidates - candidates.max()) / law.temperature
        log_p[left] = math.log(explore) + shifted - np.log(np.exp(shifted).sum())
    if explore < 1.0:
        log_p[best] = np.logaddexp(log_p[best], math.log1p(-explore))
    return log_p


def log_norm(
    scores: npt.ArrayLike, temperature: float, eligible: npt.ArrayLike | None = None
) -> float:
    """Compute logsumexp(scores / T) over the eligible items; -inf if there are none.

    Parameters
    ----------
    scores : array_like, shape (n,)
    temperature : float
        T > 0, in the unit of the scores.
    eligible : array_like of bool, shape (n,), optional
        By default all items.

    Examples
    --------
    >>> log_norm([0.0, 0.0], temperature=1.0)
    0.6931471805599453
    """
    values, left = _start(scores, eligible)
    if not left.any():
        return -math.inf
    best = float(values[left].max())
    return best / temperature + math.log(float(np.exp((values[left] - best) / temperature).sum()))


def log_next(
    scores: npt.ArrayLike,
    prefix: Sequence[int | None],
    k: int,
    policy: Policy,
    eligible: npt.ArrayLike | None = None,
    rules: RuleMasks | None = None,
) -> FloatArray:
    """Compute log P(item i comes after a prefix) for every i; -inf if it is not allowed.

    Parameters
    ----------
    scores : array_like, shape (n,)
    prefix : sequence of int or None
        Positions, best place first; None at places without an item.
    k : int
        Number of places asked for.
    policy : Policy
    eligible : array_like of bool, shape (n,), optional
    rules : RuleMasks, optional

    Examples
    --------
    >>> from fastrank.policies import Uniform
    >>> np.exp(log_next([0.0, 0.0, 0.0], [1], 2, Uniform())).round(3)
    array([0.5, 0. , 0.5])
    """
    return _Next(scores, k, policy, eligible, rules)(prefix)[1]


def log_propensities(
    scores: npt.ArrayLike,
    order: npt.ArrayLike,
    policy: Policy,
    eligible: npt.ArrayLike | None = None,
    rules: RuleMasks | None = None,
    k: int | None = None,
) -> FloatArray:
    """Compute the conditional log-propensity of every place of any ranking.

    A position that is unknown (outside 0..n-1), ineligible or repeated gets -inf at its
    place and removes nothing; later places are conditional on the items left. A known,
    eligible item is removed even if the policy would never have shown it there, or rules
    do not allow it there.

    Parameters
    ----------
    scores : array_like, shape (n,)
    order : array_like of int, shape (m,)
        Positions, best place first.
    policy : Policy
    eligible : array_like of bool, shape (n,), optional
    rules : RuleMasks, optional
    k : int, optional
        Number of places asked for, which rules may depend on; by default m.

    Returns
    -------
    ndarray of float64, shape (m,)
        Natural logs, never above 0.

    Raises
    ------
    ValueError
        If the ranking has more than k places.

    Examples
    --------
    >>> from fastrank.policies import Uniform
    >>> np.exp(log_propensities([0.0, 0.0, 0.0, 0.0], [2, 2, 9, 0], Uniform())).round(3)
    array([0.25 , 0.   , 0.   , 0.333])
    """
    positions = np.asarray(order, np.int64).tolist()
    if k is not None and k < len(positions):
        raise ValueError(f"k: expected at least {len(positions)}, the ranking's length, got {k}")
    law = _Next(scores, len(positions) if k is None else k, policy, eligible, rules)
    result = np.full(len(positions), -np.inf)
    prefix: list[int | None] = []
    for place, item in enumerate(positions):
        known = 0 <= item < len(law.values) and law.eligible[item] and item not in prefix
        if known:
            result[place] = law(prefix)[1][item]
        prefix.append(item if known else None)
    return result


def rank(
    scores: npt.ArrayLike,
    k: int,
    policy: Policy,
    rng: np.random.Generator,
    eligible: npt.ArrayLike | None = None,
    rules: RuleMasks | None = None,
) -> Positions:
    """Draw one ranking, place by place, from the conditional law.

    Parameters
    ----------
    scores : array_like, shape (n,)
    k : int
    policy : Policy
        All samplers of `PlackettLuce` have the same law, so the sampler does not matter.
    rng : numpy.random.Generator
    eligible : array_like of bool, shape (n,), optional
    rules : RuleMasks, optional

    Returns
    -------
    ndarray of int64, shape (min(k, eligible items),)
        Positions, best place first; fewer if rules end the list.

    Notes
    -----
    Each place inverts a running sum of float64 probabilities, so events rarer than about
    1e-16 at their place do not occur.

    Examples
    --------
    >>> from fastrank.policies import Deterministic
    >>> rank([1.0, 3.0, 2.0], 2, Deterministic(), np.random.default_rng(0)).tolist()
    [1, 2]
    """
    law = _Next(scores, k, policy, eligible, rules)
    chosen: list[int] = []
    while len(chosen) < law.places:
        left, log_p = law(chosen)
        if not left.any():
            break
        p = np.exp(log_p)
        chosen.append(int(rng.choice(len(p), p=p / p.sum())))
    return np.array(chosen, np.int64)


def ranking_law(
    scores: npt.ArrayLike,
    k: int,
    policy: Policy,
    eligible: npt.ArrayLike | None = None,
    rules: RuleMasks | None = None,
) -> tuple[Positions, FloatArray]:
    """Enumerate ordered rankings of min(k, eligible) items that rules allow, with probabilities.

    There are up to n! / (n - k)! rankings: use it for small n, or n up to some hundreds and k = 2.

    Parameters
    ----------
    scores : array_like, shape (n,)
    k : int
    policy : Policy
    eligible : array_like of bool, shape (n,), optional
    rules : RuleMasks, optional

    Returns
    -------
    rankings : ndarray of int64, shape (r, m)
        In lexicographic order. Rankings of probability 0 are included. A ranking that rules end
        early has -1 at the places that it does not reach.
    probabilities : ndarray of float64, shape (r,)

    Examples
    --------
    >>> from fastrank.policies import PlackettLuce
    >>> rankings, p = ranking_law(np.log([1.0, 3.0]), 2, PlackettLuce())
    >>> rankings.tolist(), p.round(12).tolist()
    ([[0, 1], [1, 0]], [0.25, 0.75])
    """
    law = _Next(scores, k, policy, eligible, rules)

    def extend(prefix: tuple[int, ...], log_p: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if len(prefix) == law.places:
            yield prefix, log_p
            return
        left, log_next = law(prefix)
        if not left.any():
            yield (*prefix, *[-1] * (law.places - len(prefix))), log_p
            return
        for position in np.flatnonzero(left):
            yield from extend((*prefix, int(position)), log_p + float(log_next[position]))

    rows = list(extend((), 0.0))
    rankings = np.array([row for row, _ in rows], np.int64).reshape(len(rows), law.places)
    return rankings, np.exp(np.array([log_p for _, log_p in rows]))


# Common procedures over a dictionary


def textbook_deterministic(scores: Mapping[Item, float], k: int) -> list[Item]:
    """Sort all items by score and keep k; ties in the dictionary's order. O(n log n).

    Examples
    --------
    >>> textbook_deterministic({"a": 1.0, "b": 3.0, "c": 2.0}, 2)
    ['b', 'c']
    """
    return sorted(scores, key=scores.__getitem__, reverse=True)[:k]


def textbook_softmax(
    scores: Mapping[Item, float], k: int, temperature: float, rng: random.Random
) -> list[Item]:
    """Draw from Plackett-Luce by its definition: a softmax over the items left, per draw. O(kn).

    Exact for every gap between scores, because each softmax is shifted by its own maximum.

    Parameters
    ----------
    scores : dict of item to float
    k : int
    temperature : float
        T, above 0, in the unit of the scores.
    rng : random.Random

    Examples
    --------
    >>> import random
    >>> sorted(textbook_softmax({"a": 1.0, "b": 3.0}, 2, 0.5, random.Random(0)))
    ['a', 'b']
    """
    left = dict(scores)
    chosen: list[Item] = []
    for _ in range(min(k, len(scores))):
        best = max(left.values())
        exponentials = {item: math.exp((s - best) / temperature) for item, s in left.items()}
        total = sum(exponentials.values())
        probabilities = {item: e / total for item, e in exponentials.items()}
        threshold = rng.random()
        running = 0.0
        drawn = next(reversed(left))  # if rounding leaves the sum below the threshold
        for item, probability in probabilities.items():
            running += probability
            if running > threshold:
                drawn = item
                break
        chosen.append(drawn)
        del left[drawn]
    return chosen


def textbook_softmax_removal(
    scores: Mapping[Item, float], k: int, temperature: float, rng: random.Random
) -> list[Item]:
    """Draw from Plackett-Luce by one softmax, then k draws with removal from running sums. O(kn).

    The law holds only for items with positive weights. All weights are relative to the best
    item, so items more than 745 T below it have weight 0. Once the others are gone, such items
    are taken from the end of the dictionary instead of at random.

    Parameters
    ----------
    scores : dict of item to float
    k : int
    temperature : float
        T, above 0, in the unit of the scores.
    rng : random.Random

    Examples
    --------
    >>> import random
    >>> sorted(textbook_softmax_removal({"a": 1.0, "b": 3.0}, 2, 0.5, random.Random(0)))
    ['a', 'b']
    """
    best = max(scores.values())
    items = list(scores)
    weights = [math.exp((s - best) / temperature) for s in scores.values()]
    chosen: list[Item] = []
    for _ in range(min(k, len(scores))):
        running = list(accumulate(weights))
        index = min(bisect(running, rng.random() * running[-1]), len(items) - 1)
        chosen.append(items.pop(index))
        weights.pop(index)
    return chosen


def textbook_gumbel(
    scores: Mapping[Item, float], k: int, temperature: float, rng: random.Random
) -> list[Item]:
    """Draw from Plackett-Luce by Gumbel noise on every item and a full sort. O(n log n).

    Yellott (1977), "The relationship between Luce's choice axiom, Thurstone's theory of
    comparative judgment, and the double exponential distribution".

    Parameters
    ----------
    scores : dict of item to float
    k : int
    temperature : float
        T, above 0, in the unit of the scores.
    rng : random.Random

    Examples
    --------
    >>> import random
    >>> sorted(textbook_gumbel({"a": 1.0, "b": 3.0}, 2, 0.5, random.Random(0)))
    ['a', 'b']
    """
    keys = {
        # random() may be 0, whose logarithm is not defined.
        item: s / temperature - math.log(-math.log(max(rng.random(), 2.0**-53)))
        for item, s in scores.items()
    }
    return sorted(keys, key=keys.__getitem__, reverse=True)[:k]


def textbook_epsilon_greedy(
    scores: Mapping[Item, float], k: int, epsilon: float, rng: random.Random
) -> list[Item]:
    """Pick k times the best item left or, with probability epsilon, any item left. O(kn).

    Parameters
    ----------
    scores : dict of item to float
    k : int
    epsilon : float
        Probability of exploring, in [0, 1].
    rng : random.Random

    Examples
    --------
    >>> import random
    >>> sorted(textbook_epsilon_greedy({"a": 1.0, "b": 3.0}, 2, 0.5, random.Random(0)))
    ['a', 'b']
    """
    left = dict(scores)
    chosen: list[Item] = []
    for _ in range(min(k, len(scores))):
        explores = rng.random() < epsilon
        item = rng.choice(list(left)) if explores else max(left, key=left.__getitem__)
        chosen.append(item)
        del left[item]
    return chosen


# The best of NumPy, over a matrix


def numpy_choice(
    vectors: npt.NDArray[np.floating[Any]],
    query: npt.NDArray[np.floating[Any]],
    k: int,
    temperature: float,
    rng: np.random.Generator,
) -> Positions:
    """Draw from Plackett-Luce by softmax and ``Generator.choice(replace=False)``. O(kn) at worst.

    Parameters
    ----------
    vectors : ndarray of float32 or float64, shape (n, d)
    query : ndarray of the same dtype, shape (d,)
    k : int
    temperature : float
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int64, shape (min(k, n),)

    Raises
    ------
    ValueError
        From NumPy, if fewer than k probabilities are above 0: a softmax rounds probabilities
        of items far below the best one (88 T in float32) to 0.

    Notes
    -----
    ``choice`` draws k positions with replacement, keeps the distinct ones in order of
    arrival, removes them from p, and repeats for the missing ones until there are k.
    Drawing with replacement and skipping repeats is Plackett-Luce. The rounds do not
    change this, since the removed positions would have been skipped. So the *order* is
    that of Plackett-Luce, too, not just the set; ``shuffle`` has no effect when p is
    given. Only the tail is not exact: with running sums of p in float64 and 53-bit
    uniforms, an item of probability below about 1e-16 gets a wrong share or none.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sorted(numpy_choice(np.eye(3), np.ones(3), 3, 1.0, rng).tolist())
    [0, 1, 2]
    """
    s = vectors @ query
    s -= s.max()
    s /= s.dtype.type(temperature)
    p = np.exp(s, out=s)
    p /= p.sum()
    return rng.choice(len(p), size=min(k, len(p)), replace=False, p=p, shuffle=False)


def numpy_gumbel(
    vectors: npt.NDArray[np.floating[Any]],
    query: npt.NDArray[np.floating[Any]],
    k: int,
    temperature: float,
    rng: np.random.Generator,
) -> Positions:
    """Draw from Plackett-Luce by Gumbel noise on every item and argpartition. O(n + k log k).

    The noise is -log of a float64 exponential, which is cheaper than
    ``Generator.gumbel`` and has the same law. float32 exponentials would be cheaper
    still, but wrong: their steps near 0 cut off the upper tail of the Gumbels, where
    the winners among a million items lie.

    Parameters
    ----------
    vectors, query, k, temperature, rng
        As in `numpy_choice`.

    Returns
    -------
    ndarray of int64, shape (min(k, n),)

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sorted(numpy_gumbel(np.eye(3), np.ones(3), 3, 1.0, rng).tolist())
    [0, 1, 2]
    """
    noise = rng.standard_exponential(len(vectors))
    np.log(noise, out=noise)
    keys = np.subtract((vectors @ query) / temperature, noise, out=noise)
    if k < len(keys):
        top = np.argpartition(keys, len(keys) - k)[len(keys) - k :]
    else:
        top = np.arange(len(keys))
    return top[np.argsort(keys[top])[::-1]].astype(np.int64, copy=False)
