"""Samplers under rules that are wrong on purpose: parts of `fastrank.walk` with a mistake each.

Each function takes a patch and puts its mistake in the place of what is right. A sampler that draws
a list anew does so from the seed that its random numbers come to.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastrank import walk
from fastrank.ruled import State
from fastrank.rulemass import Call, log_sum

_Draw: Any = walk._Draw


class _AgainError(Exception):
    """This list is given up."""


def _from_the_start(patch: pytest.MonkeyPatch) -> None:
    """Lists that are given up are drawn whole from another seed."""
    drawn = _Draw.drawn

    def until_done(self: Any) -> Any:
        for attempt in range(10_000):
            own = self if attempt == 0 else _Draw(self.call._with_seed(attempt), None)
            try:
                return drawn(own)
            except _AgainError:
                continue
        raise AssertionError("no list came about")

    def with_seed(call: Any, attempt: int) -> Any:
        other = object.__new__(type(call))
        other.__dict__.update(call.__dict__)
        other.ask = call.ask._replace(seed=call.ask.seed + 1_000_003 * attempt)
        return other

    patch.setattr(Call, "_with_seed", with_seed, raising=False)
    patch.setattr(_Draw, "drawn", until_done)


def redraws_until_a_prefix_fills(patch: pytest.MonkeyPatch) -> None:
    """Where an order is used up the list is given up, and drawn from another order."""
    _from_the_start(patch)

    def draw_order(self: Any, regime: Any, **_: Any) -> Any:
        raise _AgainError

    patch.setattr(_Draw, "draw_order", draw_order)


def gives_up_after_refusals(patch: pytest.MonkeyPatch) -> None:
    """A list of which two arrivals were refused is drawn anew; such as come of none."""
    _from_the_start(patch)
    arrival = _Draw.arrival

    def refused(self: Any, order: Any, regime: Any, waiting: dict[int, float]) -> int | None:
        found: int | None = arrival(self, order, regime, waiting)
        if found is None and len(order.pool) >= 2 and self.call.ask.seed < 10**8:
            raise _AgainError
        return found

    patch.setattr(_Draw, "arrival", refused)


def returns_at_the_old_place(patch: pytest.MonkeyPatch) -> None:
    """What was refused is shown as soon as it is allowed, since it came before all others."""
    walked = _Draw.walked

    def first_of_the_pool(self: Any, regime: Any, explore: float) -> Any:
        for position in self.base.pool:
            if regime.log_factor(position) > -math.inf:
                self.is_gone(position)
                return walk._Place(position, explore, regime, math.nan)
        return walked(self, regime, explore)

    patch.setattr(_Draw, "walked", first_of_the_pool)


def takes_each_share_by_itself(patch: pytest.MonkeyPatch) -> None:
    """A share is forced where it takes all free places alone."""

    def forced(self: State) -> tuple[int, ...]:
        held = sum(place >= self.place for place in (*self.pins, *self.pin_sets))
        free = self.places - self.place - held
        return tuple(s for s, q in enumerate(self._owed) if 0 < free <= q)

    patch.setattr(State, "_forced", forced)


def reuses_the_order_for_a_set(patch: pytest.MonkeyPatch) -> None:
    """The place of a set shows its next arrival, which says something of the others."""
    walked = _Draw.walked

    def next_of_set(self: Any, regime: Any, explore: float) -> Any:
        order = self.base
        for position in order.positions[order.at :] if regime.pin_set >= 0 else ():
            if position not in order.gone and regime.log_factor(position) > -math.inf:
                self.is_gone(position)
                return walk._Place(position, explore, regime, math.nan)
        return walked(self, regime, explore)

    patch.setattr(_Draw, "walked", next_of_set)
    patch.setattr(
        _Draw, "one_of_set", lambda self, regime, explore, _: next_of_set(self, regime, explore)
    )


def forgets_the_pool(patch: pytest.MonkeyPatch) -> None:
    """The next of the order comes first as long as there is one."""
    of_pool = _Draw.of_pool

    def if_nothing_else(self: Any, waiting: dict[int, float], log_ahead: float) -> int | None:
        found: int | None = of_pool(self, waiting, -math.inf) if log_ahead == -math.inf else None
        return found

    patch.setattr(_Draw, "of_pool", if_nothing_else)


def weighs_the_allowed_only(patch: pytest.MonkeyPatch) -> None:
    """The coin of the pool has the mass of what is allowed ahead, of all that will arrive."""
    of_pool = _Draw.of_pool

    def beside_the_allowed(self: Any, waiting: dict[int, float], log_ahead: float) -> int | None:
        order, regime = self.base, self.state.regime()
        ahead = zip(order.positions[order.at :], order.log_weights[order.at :], strict=True)
        own = [w for p, w in ahead if p not in order.gone and regime.log_factor(p) > -math.inf]
        found: int | None = of_pool(self, waiting, log_sum(np.array(own)))
        return found

    patch.setattr(_Draw, "of_pool", beside_the_allowed)


def refused_by_decay_once_and_for_all(patch: pytest.MonkeyPatch) -> None:
    """What a decay refused waits with its whole weight at this place."""
    arrival = _Draw.arrival

    def with_its_whole_weight(
        self: Any, order: Any, regime: Any, waiting: dict[int, float]
    ) -> int | None:
        found: int | None = arrival(self, order, regime, waiting)
        for position in waiting:
            waiting[position] = order.pool.get(position, -math.inf)
        return found

    patch.setattr(_Draw, "arrival", with_its_whole_weight)


def decays_by_the_last_item_alone(patch: pytest.MonkeyPatch) -> None:
    """An arrival is accepted by what the item before took off, not by all that was shown."""
    regime_of = State.regime

    def of_the_last(self: State, level: int = 0) -> Any:
        found = regime_of(self, level)
        last = self._list[-1] if self._list else -1
        decayed = tuple(
            tuple((group, 1) for group in rule.groups.of(last)) if last >= 0 else ()
            for rule in self.bound.columns
        )
        return found._replace(decayed=decayed)

    patch.setattr(State, "regime", of_the_last)


def says_the_mass_of_all(patch: pytest.MonkeyPatch) -> None:
    """Propensities of the law without rules: of lists that were drawn by the right one."""
    judged = _Draw.judge_places

    def of_all(self: Any, places: Any, found: Any) -> Any:
        free = [
            place._replace(
                regime=place.regime
                and place.regime._replace(blocked=tuple(frozenset() for _ in place.regime.blocked))
            )
            for place in places
        ]
        return judged(self, free, found)

    patch.setattr(_Draw, "judge_places", of_all)
