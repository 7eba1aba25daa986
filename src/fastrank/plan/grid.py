"""Explore a grid of logging policies: what each would cost, and what its log would be worth."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank.calibration import expected_overlaps
from fastrank.frames import as_arrow, as_html, as_pandas, floats, plain
from fastrank.ids import Ids
from fastrank.model import Model, scorer_of
from fastrank.plan.arguments import (
    checked_targets,
    filters_under,
    fraction,
    user_count,
    users_of,
)
from fastrank.plan.points import MARKS, Advance, Kind, Point, Share, Target
from fastrank.plan.sample import Sample
from fastrank.policies import MAX_TEMPERATURE, MIN_TEMPERATURE, EpsilonGreedy, PlackettLuce
from fastrank.rules import Rules
from fastrank.scorer import Scorer, eligible_of

__all__ = ["DRAWS", "Plan", "estimated_seconds", "explore", "usual_temperatures"]

DRAWS = 16
_POINTS_SHOWN = 60  # in a notebook
# Shares of the way from the uniform to the deterministic overlap.
_LEVELS = (0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
_OVERLAPS = (0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_EPSILONS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.85, 1.0)


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """The result of `explore`.

    Attributes
    ----------
    n_items, n_users : int
        Number of the model's items and users, or of the queries if they were given.
    n_eligible : int
        Number of items that the filters leave.
    users : int
        Number of users in the sample.
    k, draws, seed : int
    targets : tuple of str
    prefixes : tuple of int
    deterministic_score, uniform_score : float
        Mean score of a ranking under the two policies, averaged over users.
    uniform_overlap : float
        The overlap of uniform draws: k / `n_eligible`.
    catalog_version : str
    model_version : str or None
    has_user_temperatures : bool
        Whether the model has temperatures of users; points of the kind "temperature" then scale
        them.
    points : tuple of Point
        Sorted by kind, each from nearly deterministic to nearly uniform.
    """

    n_items: int
    n_eligible: int
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
    _sample: Sample = field(compare=False)

    def of_kind(self, kind: Kind) -> tuple[Point, ...]:
        """Return the points of one kind."""
        return tuple(point for point in self.points if point.kind == kind)

    def __repr__(self) -> str:
        return f"Plan({len(self.points)} policies, {self._looked_at})"

    def _repr_html_(self) -> str:
        whole = [f"ESS share, {target}" for target in self.targets]
        figures = ("parameter", "overlap", "loss", "perplexity", *whole)
        rows = [(point, [point.share(t, self.k) for t in self.targets]) for point in self.points]
        told = " ".join(each.text for _, shares in rows for each in shares if each is not None)
        return as_html(
            f"{len(self.points)} policies, {self._looked_at}",
            ["kind", *figures],
            (
                [
                    point.kind.replace("_", " "),
                    f"{point.parameter:.4g}",
                    f"{point.overlap:.1%}",
                    f"{point.relative_loss:.2%}",
                    f"{point.perplexity:,.1f}",
                    *("–" if each is None else each.text for each in shares),
                ]
                for point, shares in rows
            ),
            len(self.points),
            figures=figures,
            unit="policies",
            most=_POINTS_SHOWN,
            notes=[
                f"Overlap with the deterministic ranking, loss of score relative to uniform draws,"
                f" and the ESS share of a log for evaluating a target by all {self.k} places.",
                *(words for mark, words in MARKS.items() if mark in told),
            ],
        )

    @property
    def _looked_at(self) -> str:
        return f"{self.k} of {self.n_eligible:,} items for {self.users:,} of {self.n_users:,} users"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan in JSON's types; values that are not finite are None."""
        names = [name for name in self.__dataclass_fields__ if name not in ("points", "_sample")]
        record: dict[str, Any] = {name: getattr(self, name) for name in names}
        whole: dict[str, Any] = plain(
            {**record, "points": [asdict(point) for point in self.points]}
        )
        return whole

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each point, target and prefix.

        Its columns are the attributes of `Point` except `shares`, and then those of `Share`:
        `target`, `prefix`, `share`, and the others as `share_median`, `share_exact`,
        `share_error`, `share_heaviest_draw`, `share_heaviest_user` and `share_trusted`. A point
        for which no target is defined has one row, in which the latter are missing.

        Raises
        ------
        ModuleNotFoundError
            If pandas is not installed; the message says what to install.

        Examples
        --------
        >>> import fastrank as fr
        >>> rng = np.random.default_rng(0)
        >>> catalog = fr.Catalog(range(100), rng.standard_normal((100, 8)))
        >>> users = rng.standard_normal((5, 8))
        >>> found = explore(catalog, users, k=3, epsilons=[0.5], temperatures=[], overlaps=[])
        >>> found.to_pandas()[["kind", "parameter", "target", "prefix"]]
              kind  parameter         target  prefix
        0  epsilon        0.5  deterministic       1
        1  epsilon        0.5  deterministic       3
        """
        return as_pandas(self._columns())

    def to_arrow(self) -> Any:
        """Return a pyarrow.Table with the columns of `to_pandas`.

        Examples
        --------
        >>> import fastrank as fr
        >>> rng = np.random.default_rng(0)
        >>> catalog = fr.Catalog(range(100), rng.standard_normal((100, 8)))
        >>> users = rng.standard_normal((5, 8))
        >>> found = explore(catalog, users, k=3, epsilons=[0.5], temperatures=[], overlaps=[])
        >>> found.to_arrow()["prefix"].to_pylist()
        [1, 3]
        """
        return as_arrow(self._columns())

    def plot(self, axes: Any = None) -> Any:
        """Plot what the policies cost, and what their logs would be worth.

        The left plot shows the loss of score, the right one the ESS share by all k places for each
        target, both against the overlap with the deterministic ranking. Shares that are not trusted
        have hollow markers.

        Parameters
        ----------
        axes : sequence of 2 matplotlib.axes.Axes, optional
            By default those of a new figure.

        Returns
        -------
        sequence of 2 matplotlib.axes.Axes

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is not installed; the message says what to install.

        Examples
        --------
        >>> import fastrank as fr
        >>> rng = np.random.default_rng(0)
        >>> catalog = fr.Catalog(range(100), rng.standard_normal((100, 8)))
        >>> users = rng.standard_normal((5, 8))
        >>> found = explore(catalog, users, k=3, epsilons=[0.5], temperatures=[], overlaps=[])
        >>> left, right = found.plot()
        >>> left.get_ylabel() == right.get_ylabel()
        False
        """
        from fastrank.plan.plots import trade_off

        return trade_off(self.points, self.targets, self.k, axes)

    def _columns(self) -> dict[str, Any]:
        pairs: list[tuple[Point, Share | None]] = [
            (point, share) for point in self.points for share in (point.shares or (None,))
        ]
        names = [each.name for each in fields(Point) if each.name not in ("kind", "shares")]
        found: dict[str, Any] = {"kind": [point.kind for point, _ in pairs]}
        found |= {name: floats(getattr(point, name) for point, _ in pairs) for name in names}
        shares = [share for _, share in pairs]
        for each in fields(Share):
            values = [None if share is None else getattr(share, each.name) for share in shares]
            named = each.name in ("target", "prefix", "share")
            found[each.name if named else f"share_{each.name}"] = (
                floats(values) if each.type == "float" else values
            )
        return found


def explore(
    model: Model | Scorer,
    queries: npt.ArrayLike | None = None,
    *,
    k: int = 10,
    targets: Mapping[str, Target] | None = None,
    prefixes: Sequence[int] | None = None,
    temperatures: Sequence[float] | None = None,
    overlaps: Sequence[float] | None = None,
    epsilons: Sequence[float] | None = None,
    users: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    exclude: Ids | None = None,
    allow: Ids | None = None,
    rules: Rules | None = None,
    params: Mapping[str, Any] | None = None,
    advance: Advance | None = None,
) -> Plan:
    """Estimate what logging policies would cost, and what their logs would be worth.

    Parameters
    ----------
    model : Model or Catalog
        A catalog needs `queries`.
    queries : array_like of real numbers, shape (q, d), optional
        Users' vectors, instead of the model's users.
    k : int
        Places of a ranking, from 1 to the number of eligible items.
    targets : mapping of str to Target, optional
        Policies to evaluate from the log, by label; a callable makes one of the logging policy
        (`RelativeTemperature`). Plackett-Luce targets are served like any: times the user's
        temperature, where the model has them. By default the deterministic policy and 0.8 times the
        logging temperature.
    prefixes : sequence of int, optional
        Places, from 1 to k. By default 1, 3, 5, k.
    temperatures, overlaps, epsilons : sequence of float, optional
        Parameters of the three kinds of policies; an empty sequence leaves out its kind. By
        default, temperatures are spaced by their overlap on this model, from nearly deterministic
        to nearly uniform.
    users : int, optional
        Number of users to draw for the sample, without replacement. By default 200, and fewer if
        the catalog is large (20 with a million items).
    draws : int
        Rankings for each user and policy, at least 2.
    seed : int
    exclude, allow : array_like of ids, optional
        Filters of all rankings, as for `Catalog.rank`: all figures are about eligible items only.
    rules : Rules, optional
        Only the filter `where` is accepted; it acts on all rankings, too. Other rules are refused,
        since overlap, cost and weights of rankings under them are known only by drawing.
    params : mapping, optional
        Values of the parameters of the filter.
    advance : callable, optional
        Called with the current step's name, the number of steps done, and of all steps.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument and the value.

    Notes
    -----
    Each policy takes at most O(users * (n + draws * n * d)), in native code; see
    `estimated_seconds`. The estimator `ips` weighs the whole ranking (prefix k), and `rips` the
    prefix of each place. The weights of `iips`, which depend on single positions, need a quadrature
    over all items, so they have a function of their own: `iips_shares`.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(500), rng.standard_normal((500, 8)))
    >>> plan = explore(catalog, rng.standard_normal((20, 8)), k=5, epsilons=[0.1, 0.5])
    >>> [(p.parameter, round(p.overlap, 2)) for p in plan.of_kind("epsilon")]
    [(0.1, 0.9), (0.5, 0.5)]
    """
    chosen = checked_targets(targets)
    catalog = scorer_of("model", model)
    exclude, allow = filters_under(catalog, exclude, allow, rules, params)
    items = eligible_of(catalog, exclude, allow)
    sample = Sample(model, items, queries, k, users, draws, seed, chosen, prefixes, advance)
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
        n_items=len(catalog),
        n_eligible=sample.n_eligible,
        n_users=sample.n_users,
        users=len(sample.factors),
        k=sample.k,
        draws=sample.draws,
        seed=sample.seed,
        targets=tuple(chosen),
        prefixes=sample.prefixes,
        deterministic_score=float((audience.best - audience.top_gap).mean()),
        uniform_score=float((audience.best - audience.mean_gap).mean()),
        uniform_overlap=sample.k / sample.n_eligible,
        catalog_version=catalog.version,
        model_version=model.version if isinstance(model, Model) else None,
        has_user_temperatures=sample.has_factors,
        points=tuple(points),
        _sample=sample,
    )


def _grid(
    sample: Sample,
    temperatures: Sequence[float] | None,
    overlaps: Sequence[float] | None,
    epsilons: Sequence[float] | None,
) -> list[tuple[Kind, float]]:
    """List kinds and parameters, each kind from nearly deterministic to nearly uniform."""
    lowest = sample.k / sample.n_eligible + 0.01
    by_kind: dict[Kind, list[float]] = {
        "temperature": [  # constructing policies checks their parameters
            PlackettLuce(each).temperature
            for each in (usual_temperatures(sample) if temperatures is None else temperatures)
        ],
        "user_temperature": [
            fraction("overlaps", each)
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
        raise ValueError(
            "temperatures, overlaps, epsilons: expected at least one policy, got three empty"
            " sequences"
        )
    return grid


def usual_temperatures(sample: Sample) -> list[float]:
    """Choose temperatures at which the mean overlap falls in noticeable steps."""
    values, counts = sample.audience.condensed
    highest = np.where(counts > 0.0, values, -np.inf).max(axis=1)
    spread = (highest - np.where(counts > 0.0, values, np.inf).min(axis=1)) / sample.factors
    spread = spread[spread > 0.0]
    if spread.size == 0:
        return [1.0]  # all scores are equal: any temperature gives the same law
    low, high = spread.min() * math.exp(-14.0), spread.max() * math.exp(5.0)
    tried = np.geomspace(max(low, MIN_TEMPERATURE), min(high, MAX_TEMPERATURE), 80)
    kept = [expected_overlaps(values, t * sample.factors, sample.k, counts).mean() for t in tried]
    uniform = sample.k / sample.n_eligible
    levels = uniform + (max(kept) - uniform) * np.array(_LEVELS)
    if max(kept) - uniform < 1e-6:  # k = n: only the order changes
        levels = np.geomspace(0.01, 10.0, len(_LEVELS)) * np.median(spread)
        found = np.clip(levels, tried[0], tried[-1])
    else:
        found = np.exp(np.interp(-levels, -np.array(kept), np.log(tried)))
    return sorted({float(f"{temperature:.3g}") for temperature in found.tolist()})


def estimated_seconds(
    model: Model | Scorer,
    queries: npt.ArrayLike | None = None,
    *,
    k: int = 10,
    users: int | None = None,
    draws: int = DRAWS,
    points: int = 40,
    exclude: Ids | None = None,
    allow: Ids | None = None,
) -> float:
    """Estimate how many seconds `explore` will take here, by timing one user's ranking.

    Parameters
    ----------
    model, queries, k, users, draws, exclude, allow
        As in `explore`.
    points : int
        Number of policies.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog(range(100), np.random.default_rng(0).standard_normal((100, 8)))
    >>> estimated_seconds(catalog, np.ones((5, 8)), k=3) > 0
    True
    """
    catalog, vectors, _, n_users = users_of(model, queries, [0])
    items = eligible_of(catalog, exclude, allow)
    n = len(items)
    count = user_count(users, n, n_users)
    query = vectors[0]
    scores = items.scores(query)  # before timing, so that vectors are in memory
    start = time.perf_counter()
    items.scores(query)
    scoring = time.perf_counter() - start
    rows = np.repeat(query[None], 32, axis=0)  # users of a batch share the items that are read
    usual = min(max(float(np.ptp(scores)) / 20.0, MIN_TEMPERATURE), MAX_TEMPERATURE)
    start = time.perf_counter()
    items.rank_batch(rows, min(k, n), policy=PlackettLuce(usual), seeds=range(32))
    ranking = (time.perf_counter() - start) / 32
    # Two sets of draws (the second for a relative target), and a few passes over the scores.
    return count * (3 * scoring + points * (2 * draws * ranking + 5e-9 * n + 1e-6 * draws * k))
