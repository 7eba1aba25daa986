"""Choosing the exploration before anyone sees it: what each policy would cost, and what its log
would be worth.

For users of a model and a grid of logging policies: how much of the deterministic ranking a policy
keeps, how much score that costs, and which share of its log would be left, as an effective sample
size, to evaluate given target policies.

How the figures come about: see `fastrank.expectations`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastrank.calibration import condense, expected_overlaps, temperatures_for_overlap
from fastrank.catalog import Catalog
from fastrank.expectations import Audience, Draws, Laws
from fastrank.inputs import as_count, as_float32, as_real, as_seed
from fastrank.marginals import MAX_ITEMS, position_marginals
from fastrank.model import Model
from fastrank.policies import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Deterministic,
    EpsilonGreedy,
    PlackettLuce,
    Policy,
    law_of,
)
from fastrank.policies.relative import RelativeTemperature

__all__ = [
    "Kind",
    "OwnTemperatures",
    "Plan",
    "Point",
    "RelativeTemperature",
    "Share",
    "Solution",
    "Target",
    "estimated_seconds",
    "explore",
    "iips_shares",
    "own_temperatures",
    "solve_ess",
    "solve_overlap",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Advance: TypeAlias = Callable[[str, int, int], None]  # what is being done, steps done, in all

Kind = Literal["temperature", "user_temperature", "epsilon"]
# A policy to evaluate, or what makes one of the policy that logs; a ValueError says that it does
# not, for that one.
Target: TypeAlias = Policy | Callable[[Policy], Policy]

_USERS = 200
_SCORES = 20_000_000  # of all users together: 80 MB
_DRAWS = 16
_BLOCK = 256  # users whose own temperatures are found together
# Share of what lies between the uniform and the deterministic overlap.
_LEVELS = (0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
_OVERLAPS = (0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_EPSILONS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.85, 1.0)


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a log counts when a target policy is evaluated from it.

    Attributes
    ----------
    target : str
    prefix : int
        Places whose weight it is: `rips` at this place; `ips` where it is k.
    share : float
        ESS / n = 1 / E[w^2], the expectation over all users together, since one log holds them all.
        0 where the log cannot show what the target shows.
    median : float
        The share of the median user, were the log about that user alone.
    exact : bool
        Computed for these users, not estimated from draws.
    error : float
        Standard error of E[w^2] from the draws, relative to it; 0 if exact.
    heaviest_draw, heaviest_user : float
        The largest part of E[w^2] that one draw, one user brings.
    trusted : bool
        Exact, or error at most 0.2 and no draw above 0.1: a sum that hangs on a few draws has most
        likely missed heavier ones, and the true share is smaller.
    """

    target: str
    prefix: int
    share: float
    median: float
    exact: bool
    error: float
    heaviest_draw: float
    heaviest_user: float
    trusted: bool


@dataclass(frozen=True, slots=True)
class Point:
    """One logging policy, and what would come of it.

    Attributes
    ----------
    kind : {"temperature", "user_temperature", "epsilon"}
        Plackett-Luce at one temperature, at each user's own, or epsilon-greedy.
    parameter : float
        The temperature; the overlap that every user's own temperature aims at (by
        `fastrank.calibration`); epsilon.
    overlap, overlap_error : float
        Expected share of the deterministic top k that a ranking shows, mean over users, and its
        standard error from the draws.
    overlap_low, overlap_high : float
        The overlap that 10 % and 90 % of the users are below.
    loss, loss_error : float
        Mean score of the deterministic top k less the expected mean score, and its error.
    relative_loss : float
        `loss` over that of the uniform policy; 0 where no policy loses anything.
    perplexity : float
        exp of the entropy of the first place, geometric mean over users: among how many equally
        likely items that place would be as open.
    shares : tuple of Share
        By target and prefix; without targets that are not defined for this policy.
    """

    kind: Kind
    parameter: float
    overlap: float
    overlap_error: float
    overlap_low: float
    overlap_high: float
    loss: float
    loss_error: float
    relative_loss: float
    perplexity: float
    shares: tuple[Share, ...]

    def share(self, target: str, prefix: int) -> Share | None:
        """The share of one target at one prefix; None where it is not defined."""
        for each in self.shares:
            if (each.target, each.prefix) == (target, prefix):
                return each
        return None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `explore` found.

    Attributes
    ----------
    n_items, n_users : int
        Of the model; users of the queries given, if any were.
    users : int
        How many of them were looked at.
    k, draws, seed : int
    targets : tuple of str
    prefixes : tuple of int
    deterministic_score, uniform_score : float
        Mean score of the ranking under either policy, mean over users.
    uniform_overlap : float
        k / n: what a uniform draw keeps.
    catalog_version : str
    model_version : str or None
    has_user_temperatures : bool
        Whether the model has some; points of the kind "temperature" are multiples of them then.
    points : tuple of Point
        By kind, each from nearly deterministic to nearly uniform.
    """

    n_items: int
    n_users: int
    users: int
    k: int
    draws: int
    seed: int
    targets: tuple[str, ...]
    prefixes: tuple[int, ...]
    deterministic_score: float
    uniform_score: float
    uniform_overlap: float
    catalog_version: str
    model_version: str | None
    has_user_temperatures: bool
    points: tuple[Point, ...]
    _sample: _Sample = field(repr=False, compare=False)

    def of_kind(self, kind: Kind) -> tuple[Point, ...]:
        """The points of one kind."""
        return tuple(point for point in self.points if point.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON's types."""
        names = [name for name in self.__dataclass_fields__ if name not in ("points", "_sample")]
        record: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("targets", "prefixes"):
            record[name] = list(record[name])
        return {**record, "points": [asdict(point) for point in self.points]}


@dataclass(frozen=True, slots=True)
class Solution:
    """The parameter at which a figure is what was asked for.

    Attributes
    ----------
    kind : {"temperature", "user_temperature", "epsilon"}
    figure : {"overlap", "ess"}
    asked : float
    bound : {"equal", "at most", "at least", "any", "none"}
        "at most": the figure holds up to this parameter's exploration, "at least": from it on;
        "any": over the whole range; "none": it is not reachable, and `point` is the best there is.
    point : Point
        The policy that solves it, looked at like any other.
    value : float
        The figure there.
    targets : tuple of str
        Whose ESS share it is: all that are defined for this kind of policy, the worst one counts.
    prefix : int or None
    start : float or None
        "at most": the parameter from which on the figure holds, where it does not hold from the
        nearly deterministic end on.
    """

    kind: Kind
    figure: Literal["overlap", "ess"]
    asked: float
    bound: Literal["equal", "at most", "at least", "any", "none"]
    point: Point
    value: float
    targets: tuple[str, ...] = ()
    prefix: int | None = None
    start: float | None = None

    @property
    def reachable(self) -> bool:
        """Whether there is a policy of this kind that does what was asked."""
        return self.bound != "none"

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON's types."""
        return {**asdict(self), "targets": list(self.targets), "reachable": self.reachable}


@dataclass(frozen=True, slots=True, eq=False)
class OwnTemperatures:
    """A temperature for every user of a model.

    Attributes
    ----------
    temperatures : ndarray of float64, shape (u,)
        In the order of the model's users; 1 for users whose scores are all equal.
    reached : ndarray of bool, shape (u,)
        False where no temperature gives that overlap, because of equal scores: the nearest is
        taken then.
    """

    temperatures: FloatArray
    reached: npt.NDArray[np.bool_]


# ---- What to call ---------------------------------------------------------------------------


def explore(
    model: Model | Catalog,
    queries: npt.ArrayLike | None = None,
    *,
    k: int = 10,
    targets: Mapping[str, Target] | None = None,
    prefixes: Sequence[int] | None = None,
    temperatures: Sequence[float] | None = None,
    overlaps: Sequence[float] | None = None,
    epsilons: Sequence[float] | None = None,
    users: int | None = None,
    draws: int = _DRAWS,
    seed: int = 0,
    advance: Advance | None = None,
) -> Plan:
    """What logging policies would cost, and what their logs would be worth.

    Parameters
    ----------
    model : Model or Catalog
        A catalog needs `queries`.
    queries : array_like of real numbers, shape (q, d), optional
        Users' vectors, instead of the model's users.
    k : int
        Places of a ranking, from 1 to n.
    targets : mapping of str to Target, optional
        Policies to evaluate from the log, by label; a callable makes one of the logging policy
        (`RelativeTemperature`). Plackett-Luce targets are served like any: times the user's
        temperature, where the model has them. By default the deterministic policy and 0.8 times the
        logging temperature.
    prefixes : sequence of int, optional
        Places, from 1 to k. By default 1, 3, 5, k.
    temperatures, overlaps, epsilons : sequence of float, optional
        Parameters of the three kinds of policies; an empty one leaves its kind out. By default
        temperatures are spaced by what they do on this model, from nearly deterministic to nearly
        uniform.
    users : int, optional
        How many users to look at, drawn without replacement. By default 200, fewer where
        the catalog is large (20 at a million items).
    draws : int
        Rankings for each user and policy, at least 2.
    seed : int
    advance : callable, optional
        Told of the progress.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        Naming the argument and the value.

    Notes
    -----
    For each policy O(users * (n + draws * n * d)) at most, in native code; see `estimated_seconds`.
    Of the estimators, `ips` weighs the whole ranking (prefix k) and `rips` the prefix of each
    place. `iips`, whose weights are those of a position alone, takes a quadrature over all items
    and is asked for by itself: `iips_shares`.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(500), rng.standard_normal((500, 8)))
    >>> plan = explore(catalog, rng.standard_normal((20, 8)), k=5, epsilons=[0.1, 0.5])
    >>> [(p.parameter, round(p.overlap, 2)) for p in plan.of_kind("epsilon")]
    [(0.1, 0.9), (0.5, 0.5)]
    """
    chosen = _targets(targets)
    sample = _Sample(model, queries, k, users, draws, seed, chosen, prefixes, advance)
    grid = _grid(sample, temperatures, overlaps, epsilons)
    points = []
    for done, (kind, parameter) in enumerate(grid):
        if advance is not None:
            advance("looking at policies", done, len(grid))
        points.append(sample.point(kind, parameter))
    if advance is not None:
        advance("looking at policies", len(grid), len(grid))
    audience = sample.audience
    return Plan(
        n_items=sample.n_items,
        n_users=sample.n_users,
        users=len(sample.factors),
        k=sample.k,
        draws=sample.draws,
        seed=sample.seed,
        targets=tuple(chosen),
        prefixes=sample.prefixes,
        deterministic_score=float((audience.best - audience.top_gap).mean()),
        uniform_score=float((audience.best - audience.mean_gap).mean()),
        uniform_overlap=sample.k / sample.n_items,
        catalog_version=audience.catalog.version,
        model_version=model.version if isinstance(model, Model) else None,
        has_user_temperatures=sample.has_factors,
        points=tuple(points),
        _sample=sample,
    )


def iips_shares(plan: Plan, point: Point, advance: Advance | None = None) -> tuple[Share, ...]:
    """ESS shares that `iips` would have, place by place, from a log of one policy.

    Parameters
    ----------
    plan : Plan
        Of a catalog of at most `fastrank.marginals.MAX_ITEMS` items.
    point : Point
        One of the plan's, or a solution's.
    advance : callable, optional
        Told of each user done.

    Returns
    -------
    tuple of Share
        For each target that is defined there, and each of the plan's prefixes as a place: 1 over
        the mean over users of the sum over items of P_1(item at that place)^2 / P_0(the same).

    Raises
    ------
    ValueError
        For a larger catalog.

    Notes
    -----
    Exact for these users, by the marginals of all items under both policies: for a user and a
    policy some 10 ms at 1,000 items and 100 ms at 10,000.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(100), rng.standard_normal((100, 8)))
    >>> found = explore(catalog, rng.standard_normal((5, 8)), k=3, epsilons=[0.5], temperatures=[1])
    >>> [(s.prefix, round(s.share, 3)) for s in iips_shares(found, found.points[-1])][:2]
    [(1, 0.505), (3, 0.134)]
    """
    sample = plan._sample
    if sample.n_items > MAX_ITEMS:
        raise ValueError(
            f"plan: marginals of positions take at most {MAX_ITEMS} items, got {sample.n_items}"
        )
    logging = sample.policies(point.kind, point.parameter)
    targets: dict[str, list[Policy]] = {}
    for label, target in sample.targets.items():
        if isinstance(target, Policy):
            targets[label] = sample.served(target)
        else:
            try:
                targets[label] = [target(policy) for policy in logging]
            except ValueError:
                continue
    places = np.array(sample.prefixes) - 1
    squares = {label: np.zeros((len(logging), len(places))) for label in targets}
    for user, policy in enumerate(logging):
        if advance is not None:
            advance("positions", user, len(logging))
        scores = sample.audience.catalog.scores(sample.vectors[user])
        own = position_marginals(scores, policy, sample.k)[:, places]
        for label, policies in targets.items():
            theirs = position_marginals(scores, policies[user], sample.k)[:, places]
            with np.errstate(divide="ignore", invalid="ignore"):
                each = np.where(theirs > 0.0, theirs * (theirs / own), 0.0)
            squares[label][user] = each.sum(axis=0)
    with np.errstate(divide="ignore"):
        return tuple(
            _share(label, prefix, np.log(found[:, [j]]), exact=True)
            for label, found in squares.items()
            for j, prefix in enumerate(sample.prefixes)
        )


def solve_overlap(plan: Plan, overlap: float, kind: Kind = "temperature") -> Solution:
    """The policy of a kind that keeps this share of the deterministic top k.

    Parameters
    ----------
    plan : Plan
    overlap : float
        Between 0 and 1.
    kind : {"temperature", "user_temperature", "epsilon"}
        For "user_temperature" the solution's parameter is what to hand to `own_temperatures`: it
        makes up for what calibration is off by, on average.

    Raises
    ------
    ValueError
        For values out of range; where the overlap does not fall along the plan's points, beyond
        their errors.

    Notes
    -----
    Bisection, to 0.1 % of the parameter or 0.0002 of the overlap. The same seeds everywhere, so
    that noise does not count twice.
    """
    _check_kind(kind)
    asked = _fraction("overlap", overlap)
    sample = plan._sample
    curve = _curve(plan, kind)
    for earlier, later in pairwise(curve):
        slack = 5.0 * (earlier.overlap_error + later.overlap_error) + 1e-6
        if later.overlap > earlier.overlap + slack:
            raise ValueError(
                f"overlap: it rises from {earlier.overlap:.4g} to {later.overlap:.4g} between the"
                f" {kind} {earlier.parameter:.4g} and {later.parameter:.4g}: take more draws"
            )

    def solution(bound: Literal["equal", "none"], point: Point) -> Solution:
        full = sample.point(kind, point.parameter)
        return Solution(kind, "overlap", asked, bound, full, full.overlap)

    nearest = min(curve, key=lambda point: abs(point.overlap - asked))
    if abs(nearest.overlap - asked) <= 2e-4:
        return solution("equal", nearest)
    after = next((i for i, point in enumerate(curve) if point.overlap < asked), None)
    if after is None or after == 0:
        return solution("none", nearest)
    low, high = curve[after - 1], curve[after]
    while not _close(kind, low.parameter, high.parameter):
        middle = sample.point(kind, _between(kind, low.parameter, high.parameter), shares=False)
        if middle.overlap < asked:
            high = middle
        else:
            low = middle
        if abs(middle.overlap - asked) <= 2e-4:
            break
    return solution("equal", min(low, high, key=lambda point: abs(point.overlap - asked)))


def solve_ess(
    plan: Plan, share: float, kind: Kind = "temperature", prefix: int | None = None
) -> Solution:
    """The policy of a kind whose log keeps this ESS share for all of the plan's targets.

    Parameters
    ----------
    plan : Plan
    share : float
        Between 0 and 1.
    kind : {"temperature", "user_temperature", "epsilon"}
    prefix : int, optional
        One of the plan's; by default k, the whole ranking.

    Returns
    -------
    Solution
        The share need not be monotone: a log is best for targets like its own policy. From the
        nearly deterministic end on, the first stretch of policies that keep the share is taken.
        Where it ends, the answer is its end, the most exploring policy ("at most"); where it does
        not, its start ("at least"), or, if all policies keep the share, the most exploring one
        ("any"). Between two neighbouring points it is bisection, to 1 % of the share.

    Raises
    ------
    ValueError
        For values out of range; if none of the targets is defined for this kind.
    """
    _check_kind(kind)
    asked = _fraction("share", share)
    places = plan.k if prefix is None else prefix
    if places not in plan.prefixes:
        known = ", ".join(map(str, plan.prefixes))
        raise ValueError(f"prefix: expected one of the plan's {known}; got {prefix!r}")
    sample = plan._sample
    curve = _curve(plan, kind, shares=True)
    names = tuple(name for name in plan.targets if curve[0].share(name, places) is not None)
    if not names:
        raise ValueError(f"targets: none of {', '.join(plan.targets)} is defined for {kind}")

    def value(point: Point) -> float:
        return min(s.share for s in point.shares if s.prefix == places)

    def crossing(inside: Point, outside: Point) -> Point:
        """The last one inside."""
        while value(inside) > 1.01 * asked and not _close(
            kind, inside.parameter, outside.parameter
        ):
            middle = sample.point(kind, _between(kind, inside.parameter, outside.parameter))
            if value(middle) >= asked:
                inside = middle
            else:
                outside = middle
        return inside

    def solution(
        bound: Literal["at most", "at least", "any", "none"],
        point: Point,
        since: float | None = None,
    ) -> Solution:
        return Solution(kind, "ess", asked, bound, point, value(point), names, places, since)

    keeps = [value(point) >= asked for point in curve]
    if not any(keeps):
        return solution("none", max(curve, key=value))
    start = keeps.index(True)
    end = next((i for i in range(start, len(curve)) if not keeps[i]), None)
    first = crossing(curve[start], curve[start - 1]) if start > 0 else None
    if end is not None:
        last = crossing(curve[end - 1], curve[end])
        return solution("at most", last, first.parameter if first else None)
    return solution("at least", first) if first else solution("any", curve[-1])


def own_temperatures(
    model: Model, k: int, overlap: float, advance: Advance | None = None
) -> OwnTemperatures:
    """Each user's own temperature, so that everyone keeps the same share of their top k.

    Parameters
    ----------
    model : Model
    k : int
        From 1 to n.
    overlap : float
        Between 0 and 1; to be right on average after calibration, the parameter of
        ``solve_overlap(plan, ..., "user_temperature")``.
    advance : callable, optional
        Told of the progress, in users.

    Returns
    -------
    OwnTemperatures
        For `Model.with_user_temperatures`. They are temperatures, in the unit of the scores: the
        policy that gives the overlap is then Plackett-Luce at temperature 1.

    Notes
    -----
    O(n d) and about half a millisecond for each user of a catalog of 10,000 items.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(500), rng.standard_normal((500, 8)))
    >>> vectors = rng.standard_normal((2, 8))
    >>> model = fr.Model(catalog, ["ann", "bob"], np.vstack([vectors, 6 * vectors[:1]])[[0, 2]])
    >>> own = own_temperatures(model, k=5, overlap=0.8).temperatures
    >>> round(own[1] / own[0])
    6
    """
    _check_k(k, len(model.catalog))
    asked = _fraction("overlap", overlap)
    users = model.user_ids
    found = np.empty(len(users))
    reached = np.empty(len(users), np.bool_)
    for start in range(0, len(users), _BLOCK):
        if advance is not None:
            advance("temperatures of users", start, len(users))
        rows = slice(start, min(start + _BLOCK, len(users)))
        vectors = [model.user_vector(user) for user in users[rows].tolist()]
        values, counts = _stacked([condense(model.catalog.scores(v), k) for v in vectors])
        found[rows] = temperatures_for_overlap(values, k, asked, counts)
        achieved = expected_overlaps(values, found[rows], k, counts)
        reached[rows] = np.abs(achieved - asked) < 5e-3
    if advance is not None:
        advance("temperatures of users", len(users), len(users))
    return OwnTemperatures(found, reached)


def estimated_seconds(
    model: Model | Catalog,
    queries: npt.ArrayLike | None = None,
    *,
    k: int = 10,
    users: int | None = None,
    draws: int = _DRAWS,
    points: int = 40,
) -> float:
    """About how long `explore` will take on this machine, from one user's scores and ranking."""
    catalog, vectors, _, n_users = _users_of(model, queries, [0])
    n = len(catalog)
    count = _user_count(users, n, n_users)
    query = vectors[0]
    scores = catalog.scores(query)  # reads the vectors from disk, too
    start = time.perf_counter()
    catalog.scores(query)
    scoring = time.perf_counter() - start
    rows = np.repeat(query[None], 32, axis=0)  # a batch shares what it loads
    usual = min(max(float(np.ptp(scores)) / 20.0, MIN_TEMPERATURE), MAX_TEMPERATURE)
    start = time.perf_counter()
    catalog.rank_batch(rows, min(k, n), policy=PlackettLuce(usual), seeds=range(32))
    ranking = (time.perf_counter() - start) / 32
    # Two sets of draws (the second for a relative target), and a few passes over the scores.
    return count * (3 * scoring + points * (2 * draws * ranking + 5e-9 * n + 1e-6 * draws * k))


# ---- Inputs ---------------------------------------------------------------------------------


def _check_k(k: object, n_items: int) -> int:
    places = as_count("k", k)
    if places > n_items:
        raise ValueError(f"k: expected 1 to {n_items}, the number of items; got {places}")
    return places


def _check_kind(kind: object) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}; got {kind!r}")


def _fraction(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0.0 < value < 1.0:
        raise ValueError(f"{name}: must lie between 0 and 1, got {value!r}")
    return float(value)


def _targets(targets: Mapping[str, Target] | None) -> dict[str, Target]:
    if targets is None:
        return {"deterministic": Deterministic(), "temperature x0.8": RelativeTemperature(0.8)}
    for label, target in targets.items():
        if isinstance(target, Policy):
            law_of(target, f"targets: {label}")
        elif not callable(target):
            raise ValueError(f"targets: {label}: expected a policy, got {target!r}")
    return dict(targets)


def _prefixes(prefixes: Sequence[int] | None, k: int) -> tuple[int, ...]:
    if prefixes is None:
        return tuple(sorted({place for place in (1, 3, 5, k) if place <= k}))
    places = sorted({as_count("prefixes", prefix) for prefix in prefixes})
    if not places or places[-1] > k:
        raise ValueError(f"prefixes: expected places from 1 to {k}, got {list(prefixes)!r}")
    return tuple(places)


def _users_of(
    model: Model | Catalog, queries: npt.ArrayLike | None, rows: Sequence[int] | None = None
) -> tuple[Catalog, npt.NDArray[np.float32], FloatArray | None, int]:
    """Catalog, vectors (u, d), factors (u,) of the users' own, of some rows; and how many rows."""
    if isinstance(model, Catalog):
        if queries is None:
            raise ValueError("queries: a catalog has no users: give their vectors")
        catalog = model
    elif isinstance(model, Model):
        catalog = model.catalog
    else:
        raise ValueError(f"model: expected a Model or a Catalog, got {model!r}")
    if queries is not None:
        array = as_real("queries", queries)
        if array.ndim != 2 or len(array) == 0 or array.shape[1] != catalog.dim:
            raise ValueError(
                f"queries: expected shape (q, {catalog.dim}) with q >= 1, got {array.shape}"
            )
        vectors = as_float32("queries", array, array.shape)
        return catalog, vectors if rows is None else vectors[list(rows)], None, len(vectors)
    assert isinstance(model, Model)
    ids = model.user_ids if rows is None else model.user_ids[list(rows)]
    users = ids.tolist()
    factors = None
    if model.has_user_temperatures:
        factors = np.array([model.user_temperature(user) for user in users])
    vectors = np.array([model.user_vector(user) for user in users], np.float32)
    return catalog, vectors, factors, len(model.user_ids)


def _user_count(users: int | None, n_items: int, n_users: int) -> int:
    if users is None:
        return min(n_users, _USERS, max(20, _SCORES // n_items))
    return min(n_users, as_count("users", users))


# ---- Which policies -------------------------------------------------------------------------


def _grid(
    sample: _Sample,
    temperatures: Sequence[float] | None,
    overlaps: Sequence[float] | None,
    epsilons: Sequence[float] | None,
) -> list[tuple[Kind, float]]:
    """Kinds and parameters, each kind from nearly deterministic to nearly uniform."""
    lowest = sample.k / sample.n_items + 0.01
    by_kind: dict[Kind, list[float]] = {
        "temperature": [  # the policies say what is wrong with their parameters
            PlackettLuce(each).temperature
            for each in (_temperatures(sample) if temperatures is None else temperatures)
        ],
        "user_temperature": [
            _fraction("overlaps", each)
            for each in ([o for o in _OVERLAPS if o > lowest] if overlaps is None else overlaps)
        ],
        "epsilon": [
            EpsilonGreedy(each).epsilon for each in (_EPSILONS if epsilons is None else epsilons)
        ],
    }
    grid = [
        (kind, parameter)
        for kind, values in by_kind.items()
        for parameter in sorted(set(values), reverse=kind == "user_temperature")
    ]
    if not grid:
        raise ValueError("temperatures, overlaps, epsilons: no policy to look at")
    return grid


def _temperatures(sample: _Sample) -> list[float]:
    """Temperatures at which the mean overlap falls in steps that can be seen."""
    values, counts = sample.audience.condensed
    highest = np.where(counts > 0.0, values, -np.inf).max(axis=1)
    spread = (highest - np.where(counts > 0.0, values, np.inf).min(axis=1)) / sample.factors
    spread = spread[spread > 0.0]
    if spread.size == 0:
        return [1.0]  # all scores are equal: one temperature is as good as another
    low, high = spread.min() * math.exp(-14.0), spread.max() * math.exp(5.0)
    tried = np.geomspace(max(low, MIN_TEMPERATURE), min(high, MAX_TEMPERATURE), 80)
    kept = [expected_overlaps(values, t * sample.factors, sample.k, counts).mean() for t in tried]
    uniform = sample.k / sample.n_items
    levels = uniform + (max(kept) - uniform) * np.array(_LEVELS)
    if max(kept) - uniform < 1e-6:  # k = n: what changes is the order alone
        levels = np.geomspace(0.01, 10.0, len(_LEVELS)) * np.median(spread)
        found = np.clip(levels, tried[0], tried[-1])
    else:
        found = np.exp(np.interp(-levels, -np.array(kept), np.log(tried)))
    return sorted({float(f"{temperature:.3g}") for temperature in found.tolist()})


def _curve(plan: Plan, kind: Kind, shares: bool = False) -> list[Point]:
    """The plan's points of one kind, and the ends of what can be asked for."""
    points = list(plan.of_kind(kind))
    sample = plan._sample
    ends: tuple[float, float]
    if kind == "epsilon":
        ends = (0.0, 1.0)
    elif kind == "user_temperature":
        lowest = sample.k / sample.n_items
        ends = (0.9999, lowest + 0.001 * (1.0 - lowest))
        if lowest == 1.0:
            ends = (0.9999, 0.9998)
    else:
        middle = [point.parameter for point in points] or _temperatures(sample)
        ends = (
            max(middle[0] / 100.0, MIN_TEMPERATURE / sample.factors.min()),
            min(middle[-1] * 100.0, MAX_TEMPERATURE / sample.factors.max()),
        )
    known = {point.parameter for point in points}
    first, last = ([] if end in known else [sample.point(kind, end, shares=shares)] for end in ends)
    return [*first, *points, *last]


def _between(kind: Kind, low: float, high: float) -> float:
    return (low + high) / 2.0 if kind != "temperature" else math.sqrt(low * high)


def _close(kind: Kind, low: float, high: float) -> bool:
    return abs(high - low) <= (1e-3 * min(low, high) if kind == "temperature" else 1e-4)


def _stacked(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """What `condense` gives of each user, as rows."""
    return np.array([values for values, _ in pairs]), np.array([counts for _, counts in pairs])


# ---- Looking at one policy ------------------------------------------------------------------


class _Sample:
    """Users of a model, and the draws of the targets: what stays the same for all policies."""

    def __init__(
        self,
        model: Model | Catalog,
        queries: npt.ArrayLike | None,
        k: int,
        users: int | None,
        draws: int,
        seed: int,
        targets: Mapping[str, Target],
        prefixes: Sequence[int] | None,
        advance: Advance | None,
    ) -> None:
        catalog, _, _, self.n_users = _users_of(model, queries, [0])
        self.n_items = len(catalog)
        self.k = _check_k(k, self.n_items)
        self.seed = as_seed("seed", seed)
        self.draws = as_count("draws", draws, low=2)
        self.prefixes = _prefixes(prefixes, self.k)
        self.targets = targets
        self.fixed_draws: dict[Policy, tuple[Laws, Draws]] = {}  # of targets
        count = _user_count(users, self.n_items, self.n_users)
        rng = np.random.default_rng(self.seed)
        rows = np.sort(rng.choice(self.n_users, count, replace=False)).tolist()
        _, vectors, factors, _ = _users_of(model, queries, rows)
        self.has_factors = factors is not None
        self.factors = np.ones(count) if factors is None else factors  # (u,)
        # Below 2**53, and never one seed for two rankings.
        seeds = rng.choice(2**53, (2, count, self.draws), replace=False).astype(np.uint64)
        self.logging_seeds, self.target_seeds = seeds[0], seeds[1]  # (u, r)
        tell = None if advance is None else lambda user: advance("scoring users", user, count)
        self.audience = Audience(catalog, vectors, self.k, tell)
        self.vectors = vectors

    def policies(self, kind: Kind, parameter: float) -> list[Policy]:
        """The logging policy of each user."""
        if kind == "epsilon":
            return [EpsilonGreedy(parameter)] * len(self.factors)
        if kind == "temperature":
            return [PlackettLuce(parameter * own) for own in self.factors.tolist()]
        values, counts = self.audience.condensed
        own = temperatures_for_overlap(values, self.k, parameter, counts)
        return [PlackettLuce(temperature) for temperature in own.tolist()]

    def served(self, policy: Policy) -> list[Policy]:
        """A policy as each user of the model meets it."""
        return [policy.scaled(own) for own in self.factors.tolist()]

    def target(self, target: Target, logging: Sequence[Policy]) -> tuple[Laws, Draws] | None:
        """A target's law and draws; None where it is not defined for this logging policy."""
        if isinstance(target, Policy):
            if target not in self.fixed_draws:
                policies = self.served(target)
                law = self.audience.law(policies)
                self.fixed_draws[target] = law, self.audience.draw(policies, self.target_seeds)
            return self.fixed_draws[target]
        try:
            policies = [target(policy) for policy in logging]
        except ValueError:
            return None
        return self.audience.law(policies), self.audience.draw(policies, self.target_seeds)

    def point(self, kind: Kind, parameter: float, shares: bool = True) -> Point:
        """Everything about one logging policy."""
        policies = self.policies(kind, parameter)
        law = self.audience.law(policies)
        draws = self.audience.draw(policies, self.logging_seeds)
        overlaps, gaps, entropies = self.audience.kept_and_lost(law, draws)
        per_user = overlaps.mean(axis=1)
        loss = float((gaps.mean(axis=1) - self.audience.top_gap).mean())
        most = float((self.audience.mean_gap - self.audience.top_gap).mean())
        found: list[Share] = []
        for label, target in self.targets.items() if shares else ():
            drawn = self.target(target, policies)
            if drawn is not None:
                found += self.shares(label, law, *drawn)
        return Point(
            kind=kind,
            parameter=parameter,
            overlap=float(per_user.mean()),
            overlap_error=_standard_error(overlaps),
            overlap_low=float(np.quantile(per_user, 0.1)),
            overlap_high=float(np.quantile(per_user, 0.9)),
            loss=loss,
            loss_error=_standard_error(gaps),
            relative_loss=loss / most if most > 0.0 else 0.0,
            perplexity=math.exp(float(entropies.mean())),
            shares=tuple(found),
        )

    def shares(self, label: str, logging: Laws, law: Laws, draws: Draws) -> list[Share]:
        """ESS shares of a target by prefix, from rankings that the target drew."""
        log_squares = self.audience.log_squares(logging, law, draws)
        # A flat law's last place does not depend on those before it; a greedy one has one ranking.
        exact = law.certain or (logging.flat and law.flat)
        return [
            _share(label, prefix, log_squares[:, :, prefix - 1], exact or prefix == 1)
            for prefix in self.prefixes
        ]


def _standard_error(values: FloatArray) -> float:
    """Of the mean over users of the mean over draws (u, r); the users are taken as they are."""
    users, draws = values.shape
    if draws == 1:  # of a policy that has no other ranking
        return 0.0
    return math.sqrt(float(values.var(axis=1, ddof=1).sum()) / int(draws)) / int(users)


def _share(label: str, prefix: int, log_squares: FloatArray, exact: bool) -> Share:
    """1 / E[w^2] from log w^2 (u, r), each an estimate of its expectation."""
    top = float(log_squares.max())
    if top == np.inf:
        return Share(label, prefix, 0.0, 0.0, True, 0.0, 0.0, 0.0, True)
    squares = np.exp(log_squares - top)
    of_users = squares.mean(axis=1)
    mean = float(of_users.mean())
    per_user = np.log(of_users, where=of_users > 0.0, out=np.full(len(of_users), -np.inf)) + top
    median = math.exp(-max(float(np.median(per_user)), 0.0))
    error = 0.0 if exact else _standard_error(squares) / mean
    heaviest_draw = float(squares.max() / squares.sum())
    return Share(
        target=label,
        prefix=prefix,
        share=math.exp(-max(top + math.log(mean), 0.0)),  # E[w^2] >= 1: rounding, or luck
        median=median,
        exact=exact,
        error=error,
        heaviest_draw=heaviest_draw,
        heaviest_user=float(of_users.max() / of_users.sum()),
        trusted=exact or (error <= 0.2 and heaviest_draw <= 0.1),
    )
