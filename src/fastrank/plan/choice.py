"""Choose the policy stored in a model, its users' default."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrank.arraytypes import FloatArray, Mask
from fastrank.calibration import condense, expected_overlaps, temperatures_for_overlap
from fastrank.frames import plain, said_in_a_line
from fastrank.ids import Ids
from fastrank.inputs import as_count, shown
from fastrank.model import Model
from fastrank.plan.arguments import checked_targets, filters_under, fraction
from fastrank.plan.grid import DRAWS, estimated_seconds
from fastrank.plan.points import Advance, Kind, Point
from fastrank.plan.sample import Sample
from fastrank.plan.solve import overlap_in
from fastrank.plan.temperatures import REACHED, own_temperatures
from fastrank.policies import MAX_TEMPERATURE, MIN_TEMPERATURE, PlackettLuce, Policy
from fastrank.rules import Rules
from fastrank.scorer import eligible_of

__all__ = ["Choice", "choose", "seconds_for"]

_A_USER = 20_000  # overhead per user, in items: it takes as long as scoring so many


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Choice:
    """A policy for a model, and its users' factors.

    Attributes
    ----------
    policy : Policy
        Plackett-Luce at the temperature of the median user; users unknown to the model get it
        unchanged.
    factors : ndarray of float64, shape (u,), or None
        Factors of the users' own temperatures; 1 for users whose scores are all equal. None if
        all users have one temperature.
    k : int
        Number of places that the policy was chosen for: as asked for, but at most half of the
        eligible items.
    n_items, n_eligible : int
        Number of the model's items, and of those that the filters leave.
    asked : float
        The overlap that was asked for.
    point : Point
        What the policy does for a sample of users.
    users : int
        Number of users in the sample.
    not_reached : int
        Number of users who cannot have the overlap, because their best items have equal scores:
        among all users, or within the sample if all users have one temperature.
    """

    policy: Policy
    factors: FloatArray | None
    k: int
    n_items: int
    n_eligible: int
    asked: float
    point: Point
    users: int
    not_reached: int

    def __repr__(self) -> str:
        factors = "no factors" if self.factors is None else f"factors of {len(self.factors)} users"
        return (
            f"Choice({said_in_a_line(self.policy)}, {factors}: overlap {self.point.overlap:.3g} of"
            f" {self.k} places)"
        )

    @property
    def is_filtered(self) -> bool:
        """Whether the policy was chosen for a part of the items."""
        return self.n_eligible < self.n_items

    def of(self, model: Model) -> Model:
        """Return the model with this policy and these factors; it has no tables."""
        return model.with_user_temperatures(self.factors).with_policy(self.policy)

    def to_dict(self) -> dict[str, Any]:
        """Return the choice and its figures in JSON's types; values that are not finite are None.

        It includes the lowest, median and highest temperature of all users.
        """
        [temperature] = self.policy.params.values()
        own = temperature * (np.ones(1) if self.factors is None else self.factors)
        found: dict[str, Any] = {
            "policy": {"inference_type": self.policy.inference_type, "params": self.policy.params},
            "k": self.k,
            "n_items": self.n_items,
            "n_eligible": self.n_eligible,
            "overlap": self.point.overlap,
            "overlap_low": self.point.overlap_low,
            "overlap_median": self.point.overlap_median,
            "overlap_high": self.point.overlap_high,
            "users": 0 if self.factors is None else len(self.factors),
            "lowest": float(own.min()),
            "median": float(np.median(own)),
            "highest": float(own.max()),
            "not_reached": self.not_reached,
        }
        return {name: plain(value) for name, value in found.items()}


def choose(
    model: Model,
    overlap: float = 0.7,
    *,
    k: int = 10,
    users: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    most: int | None = None,
    threads: int = 1,
    exclude: Ids | None = None,
    allow: Ids | None = None,
    rules: Rules | None = None,
    params: Mapping[str, Any] | None = None,
    advance: Advance | None = None,
) -> Choice:
    """Choose a policy whose rankings keep a given share of the deterministic top k, on average.

    The policy is Plackett-Luce, and each user has a factor on its temperature, so that all users
    keep the same share. The model's present policy and factors are ignored, except for the sampler
    of a Plackett-Luce policy, which is kept.

    Parameters
    ----------
    model : Model
    overlap : float
        The share to keep, between 0 and 1.
    k : int
        Places of a ranking. At most half of the eligible items are used: if rankings show most
        items, every policy keeps most of the top k.
    users, draws, seed
        Of the sample that calibrates and describes the choice, as in `explore`.
    most : int, optional
        Limit of users x (items + 20,000). Beyond it, all users have one temperature, computed from
        the sample only. By default there is no limit.
    threads : int
    exclude, allow : array_like of ids, optional
        Filters of the rankings that the policy is chosen for, as for `Catalog.rank`, the same for
        all users: the share is that of the best k eligible items. The model does not store them;
        each call gives its own filters.
    rules : Rules, optional
        Only the filter `where` is accepted; it acts on all rankings, too. Other rules are refused,
        since overlap, cost and weights of rankings under them are known only by drawing.
    params : mapping, optional
        Values of the parameters of the filter.
    advance : callable, optional
        Called with the current step's name, the number of steps done, and of all steps.

    Returns
    -------
    Choice

    Raises
    ------
    ValueError
        If an argument is invalid, or no user of the sample can have the overlap; the message names
        the argument and the value.

    Notes
    -----
    The sample takes a few times 2 * draws rankings per user of the sample; then the cost is O(n d)
    for each of all users. Users who cannot have the overlap do not change what others keep.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(500), rng.standard_normal((500, 8)))
    >>> model = fr.Model(catalog, ["ann", "bob"], rng.standard_normal((2, 8)))
    >>> choice = choose(model, 0.8, k=5)
    >>> round(choice.point.overlap, 2), choice.of(model).policy == choice.policy
    (0.8, True)
    """
    if not isinstance(model, Model):
        raise ValueError(f"model: expected a Model, got {shown(model)}")
    asked = fraction("overlap", overlap)
    base = model.with_user_temperatures(None)
    exclude, allow = filters_under(base.catalog, exclude, allow, rules, params)
    items = eligible_of(base.catalog, exclude, allow)
    n, n_items = len(items), len(base.catalog)
    places = max(1, min(as_count("k", k), n // 2))
    each = most is None or len(base.user_ids) * (n_items + _A_USER) <= most
    targets = checked_targets(None)
    sample = Sample(base, items, None, places, users, draws, seed, targets, None, advance)
    able = _able(sample, asked)
    if not able.any():
        near = sample.point("user_temperature", asked, shares=False).overlap
        raise _unreachable(sample, asked, near)
    part = sample
    if not able.all():
        vectors = sample.vectors[able]
        of_able = len(vectors), draws, seed
        part = Sample(base.catalog, items, vectors, places, *of_able, {}, None, None)
    if advance is not None:
        advance("choosing the policy", 0, 1)
    kind: Kind = "user_temperature" if each else "temperature"
    start = asked if each else _one_temperature(part, asked)
    solution = overlap_in(part, [part.point(kind, start, shares=False)], asked, kind)
    if not solution.reachable:
        raise _unreachable(sample, asked, solution.value)
    solved = solution.point.parameter
    if each:
        own = own_temperatures(
            base, places, solved, advance, threads=threads, exclude=exclude, allow=allow
        )
        counted = own.reached if own.reached.any() else ~own.equal
        temperature = _rounded(float(np.median(own.temperatures[counted])))
        factors = _factors(own.temperatures, temperature)
        factors[own.equal] = 1.0
        point = sample.point(kind, solved)
        not_reached = int((~own.reached).sum())
    else:
        temperature, factors = _rounded(solved), None
        point = sample.point(kind, temperature)
        not_reached = int((~able).sum())
    return Choice(
        policy=_like(model.policy, temperature),
        factors=factors,
        k=places,
        n_items=n_items,
        n_eligible=n,
        asked=asked,
        point=point,
        users=len(able),
        not_reached=not_reached,
    )


def seconds_for(
    model: Model,
    k: int = 10,
    most: int | None = None,
    threads: int = 1,
    *,
    exclude: Ids | None = None,
    allow: Ids | None = None,
) -> float:
    """Estimate how many seconds `choose` will take on this machine.

    Parameters
    ----------
    model, k, most, threads, exclude, allow
        As in `choose`.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(100), rng.standard_normal((100, 8)))
    >>> seconds_for(fr.Model(catalog, ["ann"], rng.standard_normal((1, 8))), k=3) > 0
    True
    """
    items, users = eligible_of(model.catalog, exclude, allow), len(model.user_ids)
    places = max(1, min(k, len(items) // 2))
    seconds = estimated_seconds(  # the sample costs about as much
        model, k=places, points=4, exclude=exclude, allow=allow
    )
    if most is None or users * (len(model.catalog) + _A_USER) <= most:
        some = model.user_vectors[:5]
        start = time.perf_counter()
        for vector in some:
            condense(items.scores(vector), places)
        a_user = (time.perf_counter() - start) / len(some) + 3e-4
        seconds += users * a_user / threads
    return seconds


def _unreachable(sample: Sample, asked: float, nearest: float) -> ValueError:
    return ValueError(
        f"overlap: got {asked:g}; the nearest that can be reached is {nearest:.4g}, for {sample.k}"
        f" of {sample.n_eligible:,} items and {len(sample.factors):,} users"
    )


def _able(sample: Sample, overlap: float) -> Mask:
    """Return which users of a sample can have this overlap."""
    values, counts = sample.audience.condensed
    own = temperatures_for_overlap(values, sample.k, overlap, counts)
    found: Mask = np.abs(expected_overlaps(values, own, sample.k, counts) - overlap) < REACHED
    return found


def _one_temperature(sample: Sample, overlap: float) -> float:
    """Return the approximate temperature at which a sample's users keep this overlap on average."""
    values, counts = sample.audience.condensed
    own = np.log(temperatures_for_overlap(values, sample.k, overlap, counts))
    low, high = float(own.min()), float(own.max())
    for _ in range(20):
        middle = (low + high) / 2.0
        same = np.full(len(values), np.exp(middle))
        if expected_overlaps(values, same, sample.k, counts).mean() > overlap:
            low = middle
        else:
            high = middle
    return float(np.exp(high))


def _rounded(temperature: float) -> float:
    return min(max(float(f"{temperature:.3g}"), MIN_TEMPERATURE), MAX_TEMPERATURE)


def _factors(own: FloatArray, temperature: float) -> FloatArray:
    """Return factors that give users their own temperatures, clipped against rounding errors."""
    inside = np.clip(own, MIN_TEMPERATURE * (1.0 + 1e-9), MAX_TEMPERATURE * (1.0 - 1e-9))
    factors: FloatArray = inside / temperature
    return factors


def _like(policy: Policy | None, temperature: float) -> Policy:
    """Return Plackett-Luce with the sampler of the present policy if that is Plackett-Luce, too."""
    if isinstance(policy, PlackettLuce):
        return policy.at_temperature(temperature)
    return PlackettLuce(temperature)
