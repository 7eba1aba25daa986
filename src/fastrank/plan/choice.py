"""The policy that a model keeps: what its users are to see, where nobody says otherwise."""

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

_A_USER = 20_000  # items: what is done for a user besides looking at items takes as long


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Choice:
    """A policy for a model, and its users' factors.

    Attributes
    ----------
    policy : Policy
        Plackett-Luce at the temperature of the median user, which is also what users get whom the
        model does not know.
    factors : ndarray of float64, shape (u,), or None
        Each user's own, on that temperature; 1 where all scores are equal. None: one temperature
        for all.
    k : int
        Places that it was chosen for: those that were asked for, but at most half of the eligible
        items.
    n_items, n_eligible : int
        Items of the model, and those that the filters leave, which it was chosen for.
    asked : float
        The overlap.
    point : Point
        What comes of it, for the users that were looked at.
    users : int
        How many those are.
    not_reached : int
        Users, of all, whose best items have equal scores, so that they cannot have that overlap;
        of those that were looked at, where there is one temperature for all.
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
        """Whether it was chosen for fewer than all items."""
        return self.n_eligible < self.n_items

    def of(self, model: Model) -> Model:
        """The model with this policy and these factors; it has no tables."""
        return model.with_user_temperatures(self.factors).with_policy(self.policy)

    def to_dict(self) -> dict[str, Any]:
        """What was chosen and what comes of it, in JSON's types; what is not finite is None.

        The lowest, median and highest temperature of all users are among it.
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
    """A policy by which users see this share of their deterministic top k, on average.

    It is Plackett-Luce, and every user has a factor of their own on its temperature, so that all
    keep the same share. Factors and policy that the model has already play no part, but for the
    sampler of a Plackett-Luce policy, which stays.

    Parameters
    ----------
    model : Model
    overlap : float
        Between 0 and 1.
    k : int
        Places of a ranking. Where that is more than half of the eligible items, half of them are
        taken: of rankings that show most of what there is every policy keeps most.
    users, draws, seed
        Of the sample by which the choice is set right and described, as in `explore`.
    most : int, optional
        Users times items, 20,000 items added for each user, beyond which all users have one
        temperature, by the sample alone. By default there is no such bound.
    threads : int
    exclude, allow : array_like of ids, optional
        The filters of the rankings that it is chosen for, as `Catalog.rank` takes them, the same
        for all users: the share is that of the best k eligible items. The model does not keep them:
        its rankings have the filters that their calls say.
    rules : Rules, optional
        Whose filter, `where`, acts on all rankings, too. Rules that say more are refused: what such
        rankings keep and cost, and what their weights are worth, is known of none but drawn ones.
    params : mapping, optional
        Values of the parameters that the filter has.
    advance : callable, optional
        Called with the progress.

    Returns
    -------
    Choice

    Raises
    ------
    ValueError
        Naming the argument and the value; where none of the users looked at can have that overlap.

    Notes
    -----
    The sample takes some times 2 * draws rankings for each of its users; then it is O(n d) for each
    of all users. Users whose scores allow of no such overlap do not make others keep more.

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
    """About how long `choose` will take on this machine.

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
    seconds = estimated_seconds(  # as dear as that
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
        f"overlap: {asked:g} is not reachable: the nearest is {nearest:.4g}, in {sample.k} of"
        f" {sample.n_eligible:,} items, by the scores of {len(sample.factors):,} users"
    )


def _able(sample: Sample, overlap: float) -> Mask:
    """Which users of a sample can have this overlap at all."""
    values, counts = sample.audience.condensed
    own = temperatures_for_overlap(values, sample.k, overlap, counts)
    found: Mask = np.abs(expected_overlaps(values, own, sample.k, counts) - overlap) < REACHED
    return found


def _one_temperature(sample: Sample, overlap: float) -> float:
    """About the temperature at which the users of a sample keep this overlap on average."""
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
    """What makes the temperature each user's own; no rounding takes one out of the range."""
    inside = np.clip(own, MIN_TEMPERATURE * (1.0 + 1e-9), MAX_TEMPERATURE * (1.0 - 1e-9))
    factors: FloatArray = inside / temperature
    return factors


def _like(policy: Policy | None, temperature: float) -> Policy:
    """Plackett-Luce by the sampler of the policy before, if that was it, too."""
    if isinstance(policy, PlackettLuce):
        return policy.at_temperature(temperature)
    return PlackettLuce(temperature)
