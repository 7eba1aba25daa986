"""What the native core must equal, and what it replaces; only tests, benches and demos import it.

Two halves:

- The float64 oracle: `scores`, `expression_scores`, `flat_tail_scores`, `log_norm`, `log_next`,
  `log_propensities`, `rank`, `ranking_law`. Plain NumPy over one score vector, every conditional
  law computed afresh at every place, O(kn) or worse, no tricks. The candidates of `FlatTail` are
  the m best. Items are positions 0..n-1 of the score vector; ``eligible`` is a mask of those that
  the filters left, and ``rules``, the masks of `reference_rules`, say what may stand where.
- The procedures that services run today: ``textbook_*`` over a dictionary
  {item: score}, and NumPy's best, ``numpy_*``, over a matrix. Each draws from the law
  that it names (its docstring says where it stops doing so) and returns the items alone,
  best place first, fewer than k when there are fewer.
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
    """Dot product with the query, plus the bias, in float64.

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
    """What an expression makes of dot products, in float64.

    Python itself reads it, item by item, so that what it says is what Python says: pass none
    that ``fastrank.expressions.parsed`` does not take. Numbers that are written in it, columns and
    parameters are rounded to float32 first, as the core has them: 19.99 is one number then. They
    are NumPy's, whose division by 0 is an infinity.

    Parameters
    ----------
    text : str
        The expression, as of ``score=``.
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
    """Numbers, and what is true or false, as `_rounded` has them."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            return node
        return ast.Call(ast.Name("_rounded", ast.Load()), [node], [])


def _rounded(value: Any) -> Any:
    """Texts, and lists of them, as they are."""
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
    """The scores in float64, and a mask of our own to strike chosen items from."""
    array = np.asarray(values, np.float64)
    left = np.ones(len(array), np.bool_) if eligible is None else np.array(eligible, np.bool_)
    return array, left


def flat_tail_scores(
    scores: npt.ArrayLike,
    policy: FlatTail,
    candidates: npt.ArrayLike | None = None,
    eligible: npt.ArrayLike | None = None,
) -> FloatArray:
    """Scores by which Plackett-Luce, at the same temperature, has the law of a flat tail.

    Parameters
    ----------
    scores : array_like, shape (n,)
    policy : FlatTail
    candidates : array_like of int, optional
        Positions of those that an index found; by default the m best of the eligible.
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
    """The law of the place behind any prefix, whose None are places that show no item."""

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
        """What may be there, and log P(item i is there) for every i: -inf for what may not."""
        left, values = self._left(prefix)
        return left, _log_next(values, left, self._policy, len(prefix))

    def _left(self, prefix: Sequence[int | None]) -> tuple[Mask, FloatArray]:
        """What may be there, and the scores by which it is drawn."""
        if self._rules is None:
            left = self.eligible.copy()
            left[[item for item in prefix if item is not None]] = False
            return left, self.values
        left, log_decay = self._rules.left(prefix, self._k, self._filters)
        if not self._rules.decay:
            return left, self.values
        temperature = law_of(self._policy).temperature
        if temperature == math.inf:
            raise ValueError(f"rules: decay is known for Plackett-Luce alone, not {self._policy}")
        return left, self.values + temperature * log_decay


def _log_next(values: FloatArray, left: Mask, policy: Policy, place: int) -> FloatArray:
    """log P(item i is at a place) for every i, given what is left; -inf for what is not."""
    law = law_of(policy)
    explore = law.explore_at(place)
    log_p = np.full(len(values), -np.inf)
    if not left.any():
        return log_p
    candidates = values[left]
    best = np.flatnonzero(left)[candidates.argmax()]  # in catalog order: ties to the earlier item
    if explore > 0.0:
        shifted = (candidates - candidates.max()) / law.temperature
        log_p[left] = math.log(explore) + shifted - np.log(np.exp(shifted).sum())
    if explore < 1.0:
        log_p[best] = np.logaddexp(log_p[best], math.log1p(-explore))
    return log_p


def log_norm(
    scores: npt.ArrayLike, temperature: float, eligible: npt.ArrayLike | None = None
) -> float:
    """logsumexp(scores / T) over the eligible items; -inf where there is none.

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
    """log P(item i stands behind a prefix) for every i; -inf for what may not.

    Parameters
    ----------
    scores : array_like, shape (n,)
    prefix : sequence of int or None
        Positions, best place first; None at places that show no item.
    k : int
        Places that were asked for.
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
    """Conditional log-propensity of every place of any ranking.

    A position that is unknown (outside 0..n-1), ineligible or repeated gets -inf at its
    place and removes nothing; later places are conditional on what is left. A known,
    eligible item is removed even if the policy would never have shown it there, or no rule
    allows it there.

    Parameters
    ----------
    scores : array_like, shape (n,)
    order : array_like of int, shape (m,)
        Positions, best place first.
    policy : Policy
    eligible : array_like of bool, shape (n,), optional
    rules : RuleMasks, optional
    k : int, optional
        Places that were asked for, by which rules know what is still to come; by default m.

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
        raise ValueError(f"k: expected at least {len(positions)}, one for each place, got {k}")
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
    """One ranking, drawn place by place from the conditional law.

    Parameters
    ----------
    scores : array_like, shape (n,)
    k : int
    policy : Policy
        The samplers of `PlackettLuce` have one law, so it does not matter which is named.
    rng : numpy.random.Generator
    eligible : array_like of bool, shape (n,), optional
    rules : RuleMasks, optional

    Returns
    -------
    ndarray of int64, shape (min(k, eligible items),)
        Positions, best place first; fewer where rules end the list.

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
    """Every ordered ranking of min(k, eligible) items that rules allow, with its probability.

    There are up to n! / (n - k)! of them: for small n, or n up to some hundreds and k = 2.

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
        In lexicographic order. Rankings that the policy never shows are listed with probability 0.
        One that rules end early has -1 at the places that it does not reach.
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


# What services run today, over a dictionary


def textbook_deterministic(scores: Mapping[Item, float], k: int) -> list[Item]:
    """Sort all items by score, keep k; ties in the dictionary's order. O(n log n).

    Examples
    --------
    >>> textbook_deterministic({"a": 1.0, "b": 3.0, "c": 2.0}, 2)
    ['b', 'c']
    """
    return sorted(scores, key=scores.__getitem__, reverse=True)[:k]


def textbook_softmax(
    scores: Mapping[Item, float], k: int, temperature: float, rng: random.Random
) -> list[Item]:
    """Plackett-Luce as its definition says: the softmax of what is left at each draw. O(kn).

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
        drawn = next(reversed(left))  # where rounding leaves the sum below the threshold
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
    """Plackett-Luce by one softmax, then k draws from running sums, each with a removal. O(kn).

    Only as long as the weights last: all are relative to the best item of all, so items
    that lie more than 745 T below it have weight 0, and once the others are gone they are
    taken from the end of the dictionary instead of at random.

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
    """Plackett-Luce by Gumbel noise on every item and a full sort. O(n log n).

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
        # random() may be 0, whose logarithm is not a number.
        item: s / temperature - math.log(-math.log(max(rng.random(), 2.0**-53)))
        for item, s in scores.items()
    }
    return sorted(keys, key=keys.__getitem__, reverse=True)[:k]


def textbook_epsilon_greedy(
    scores: Mapping[Item, float], k: int, epsilon: float, rng: random.Random
) -> list[Item]:
    """k times: the maximum of what is left or, with probability epsilon, any of it. O(kn).

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


# NumPy's best, over a matrix


def numpy_choice(
    vectors: npt.NDArray[np.floating[Any]],
    query: npt.NDArray[np.floating[Any]],
    k: int,
    temperature: float,
    rng: np.random.Generator,
) -> Positions:
    """Plackett-Luce by matvec, softmax and ``Generator.choice(replace=False)``. O(kn) at worst.

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
        From NumPy, when fewer than k probabilities are above 0: a softmax rounds items far
        below the best one (88 T in float32) to 0.

    Notes
    -----
    ``choice`` draws k positions with replacement, keeps the distinct ones in the order in
    which they came, strikes them from p, and draws as many as are missing until there are
    k. Drawing with replacement and skipping what was seen before is Plackett-Luce, and the
    rounds do not change that: what a later round strikes would have been skipped. So the
    *order* is that of Plackett-Luce too, not just the set; ``shuffle`` plays no part when
    p is given. What is not exact is the tail: running sums of p in float64 and 53-bit
    uniforms give an item of probability below about 1e-16 the wrong share or none.

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
    """Plackett-Luce by matvec, Gumbel noise on every item and argpartition. O(n + k log k).

    The noise is -log of a float64
    exponential, which is cheaper than ``Generator.gumbel`` and has its law. float32
    exponentials would be cheaper still and wrong: their steps near 0 cut the upper tail of
    the Gumbels off, where the winners among a million items lie.

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
