"""Solve for the policy of a kind that has a given overlap or ESS share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from fastrank.frames import plain
from fastrank.plan.arguments import check_kind, fraction
from fastrank.plan.grid import Plan, usual_temperatures
from fastrank.plan.points import Kind, Point
from fastrank.plan.sample import Sample
from fastrank.policies import MAX_TEMPERATURE, MIN_TEMPERATURE

__all__ = ["Solution", "overlap_in", "solve_ess", "solve_overlap"]


@dataclass(frozen=True, slots=True, repr=False)
class Solution:
    """The parameter at which a figure has the value asked for.

    Attributes
    ----------
    kind : {"temperature", "user_temperature", "epsilon"}
    figure : {"overlap", "ess"}
    asked : float
    bound : {"equal", "at most", "at least", "any", "none"}
        Which parameters have the figure: "at most", those up to this parameter's exploration;
        "at least", those from it on; "any", the whole range. With "none" it cannot be reached, and
        `point` is the nearest.
    point : Point
        The figures of the policy at this parameter.
    value : float
        The figure of this policy.
    targets : tuple of str
        The targets whose ESS share it is: all that are defined for this kind of policy, of which
        the worst counts.
    prefix : int or None
    start : float or None
        With "at most", the parameter from which on the figure holds, if it does not hold at the
        nearly deterministic end.
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
        """Whether a policy of this kind has the value asked for."""
        return self.bound != "none"

    def __repr__(self) -> str:
        return (
            f"Solution({self.figure} {self.asked:g}, {self.bound}: {self.kind}"
            f" {self.point.parameter:.6g} has {self.value:.3g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the solution in JSON's types; values that are not finite are None."""
        found: dict[str, Any] = plain(asdict(self))
        return {**found, "reachable": self.reachable}


def solve_overlap(plan: Plan, overlap: float, kind: Kind = "temperature") -> Solution:
    """Find the policy of a kind that keeps a given share of the deterministic top k.

    Parameters
    ----------
    plan : Plan
    overlap : float
        Between 0 and 1.
    kind : {"temperature", "user_temperature", "epsilon"}
        For "user_temperature", pass the solution's parameter to `own_temperatures`: it corrects
        the mean error of calibration.

    Raises
    ------
    ValueError
        If a value is out of range, or the overlap rises along the plan's points by more than their
        errors.

    Notes
    -----
    Linear interpolation between points, to 0.1 % of the parameter or 0.0002 of the overlap. All
    points use the same seeds, so that differences have less noise.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrank as fr
    >>> from fastrank.plan import explore
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(100), rng.standard_normal((100, 8)))
    >>> plan = explore(catalog, rng.standard_normal((5, 8)), k=3, temperatures=[], overlaps=[])
    >>> found = solve_overlap(plan, 0.7, "epsilon")
    >>> found.reachable, round(found.value, 2)
    (True, 0.7)
    """
    check_kind(kind)
    return overlap_in(plan._sample, plan.of_kind(kind), overlap, kind)


def overlap_in(sample: Sample, points: Sequence[Point], overlap: float, kind: Kind) -> Solution:
    """Do `solve_overlap` for a sample of users; `points` are the known ones, in order."""
    asked = fraction("overlap", overlap)
    curve = _curve(sample, points, kind)
    for earlier, later in pairwise(curve):
        slack = 5.0 * (earlier.overlap_error + later.overlap_error) + 1e-6
        if later.overlap > earlier.overlap + slack:
            raise ValueError(
                f"overlap: rises from {earlier.overlap:.4g} to {later.overlap:.4g} between the"
                f" {kind} {earlier.parameter:.4g} and {later.parameter:.4g}; use more draws"
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
    above, below = low.overlap - asked, asked - high.overlap  # for the interpolation
    steps = 0
    while not _close(kind, low.parameter, high.parameter):
        # The overlap may jump over the value asked for; halving makes the search converge even so.
        steps += 1
        share = 0.5 if steps % 3 == 0 else min(max(above / (above + below), 0.01), 0.99)
        middle = sample.point(
            kind, _between(kind, low.parameter, high.parameter, share), shares=False
        )
        if middle.overlap < asked:
            high, below, above = middle, asked - middle.overlap, above / 2.0
        else:
            low, above, below = middle, middle.overlap - asked, below / 2.0
        if abs(middle.overlap - asked) <= 2e-4:
            break
    return solution("equal", min(low, high, key=lambda point: abs(point.overlap - asked)))


def solve_ess(
    plan: Plan, share: float, kind: Kind = "temperature", prefix: int | None = None
) -> Solution:
    """Find the policy of a kind whose log keeps an ESS share for all of the plan's targets.

    Parameters
    ----------
    plan : Plan
    share : float
        Between 0 and 1.
    kind : {"temperature", "user_temperature", "epsilon"}
    prefix : int, optional
        One of the plan's prefixes; by default k, the whole ranking.

    Returns
    -------
    Solution
        The share need not be monotone: a log is best for targets close to its own policy. The
        first interval of policies that keep the share is used, from the nearly deterministic end
        on. If the interval ends, the solution is its end, its most exploring policy ("at most").
        Otherwise it is the interval's start ("at least"), or, if all policies keep the share, the
        most exploring one ("any"). Bisection between two neighbouring points, to 1 % of the share.

    Raises
    ------
    ValueError
        If a value is out of range, or no target is defined for this kind.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrank as fr
    >>> from fastrank.plan import explore
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(100), rng.standard_normal((100, 8)))
    >>> plan = explore(catalog, rng.standard_normal((5, 8)), k=3, temperatures=[], overlaps=[])
    >>> found = solve_ess(plan, 0.5, "epsilon")
    >>> found.reachable, round(found.value, 2)
    (True, 0.5)
    """
    check_kind(kind)
    asked = fraction("share", share)
    places = plan.k if prefix is None else prefix
    if places not in plan.prefixes:
        known = ", ".join(map(str, plan.prefixes))
        raise ValueError(f"prefix: expected one of the plan's {known}; got {prefix!r}")
    sample = plan._sample
    curve = _curve(sample, plan.of_kind(kind), kind, shares=True)
    names = tuple(name for name in plan.targets if curve[0].share(name, places) is not None)
    if not names:
        raise ValueError(f"targets: none of {', '.join(plan.targets)} is defined for {kind}")

    def value(point: Point) -> float:
        return min(s.share for s in point.shares if s.prefix == places)

    def crossing(inside: Point, outside: Point) -> Point:
        """Find the last point inside, by bisection."""
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


def _curve(
    sample: Sample, points: Sequence[Point], kind: Kind, shares: bool = False
) -> list[Point]:
    """Return the points of one kind, with those at the ends of the range."""
    ends: tuple[float, float]
    if kind == "epsilon":
        ends = (0.0, 1.0)
    elif kind == "user_temperature":
        lowest = sample.k / sample.n_eligible
        ends = (0.9999, lowest + 0.001 * (1.0 - lowest))
        if lowest == 1.0:
            ends = (0.9999, 0.9998)
    else:
        middle = [point.parameter for point in points] or usual_temperatures(sample)
        ends = (
            max(middle[0] / 100.0, MIN_TEMPERATURE / sample.factors.min()),
            min(middle[-1] * 100.0, MAX_TEMPERATURE / sample.factors.max()),
        )
    known = {point.parameter for point in points}
    first, last = ([] if end in known else [sample.point(kind, end, shares=shares)] for end in ends)
    return [*first, *points, *last]


def _between(kind: Kind, low: float, high: float, share: float = 0.5) -> float:
    if kind == "temperature":
        return math.exp(math.log(low) + share * math.log(high / low))
    return low + share * (high - low)


def _close(kind: Kind, low: float, high: float) -> bool:
    return abs(high - low) <= (1e-3 * min(low, high) if kind == "temperature" else 1e-4)
