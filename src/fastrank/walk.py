"""Draw rankings under rules, and compute their propensities.

Every rule multiplies an item's weight by a factor from 0 to 1 that depends on what is shown. A list
is drawn by walking down one Plackett-Luce order, best item first. The items of the order are the
arrivals of independent exponential clocks. An arrival is accepted with a probability equal to its
factor. Otherwise it waits in a pool. Clocks are memoryless, so it waits as if from then on, with
its weight times its factor at each later place. A coin, with probabilities in proportion to masses,
decides what comes next: an item of the pool, or the next item of the order. This is exact for any
factors. The part of an order that is not walked yet may be drawn again, among any items, whenever
what is known then suggests it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fastrank import _native
from fastrank.arraytypes import FloatArray
from fastrank.ask import BEST, FLAT_TAIL, Ask, Drawn, Spec
from fastrank.features import Joint
from fastrank.ranking import Candidates
from fastrank.ruled import BoundRules, Regime, State, log_factor_rows
from fastrank.rulemass import Best, Blocked, Call, Masses, Source, Total, exploring, log_sum

__all__ = ["First", "count_allowed", "draw", "draws_order", "first_of", "judge"]

_MOST_AHEAD = 640  # items of an order: so many cost a few hundredths of a pass over a million
_LEAST_AGAIN, _MOST_AGAIN = 64, 256  # items of a new order; each place may need one
_MOST_EMPTY = 8  # regimes remembered to allow nothing
_STREAM = 0x72756C6573  # separates these random numbers from all others of a seed


def ahead(k: int, bound: BoundRules) -> int:
    """Return how many items of an order to draw first for k places.

    It is twice the number of arrivals expected to fill them. If that is too many, it is few, since
    a new order will be drawn for the rest; but it is the maximum if blocked items are allowed again
    within the list.
    """
    most, wanted = max(4 * k, _MOST_AHEAD), 2 * bound.arrivals(k)
    if wanted > most:
        wanted = most if bound.returns(k) else _LEAST_AGAIN
    return max(2 * k + 4, wanted)


def draws_order(spec: Spec) -> bool:
    """Say whether a list begins with an order of all eligible items."""
    has_coins = spec.kind in (_native.DETERMINISTIC, _native.EPSILON_GREEDY)
    return not (has_coins or spec.head or spec.kind == FLAT_TAIL)


class First(NamedTuple):
    """The order with which a list begins.

    Attributes
    ----------
    drawn : Drawn
    joint : Joint or None
        Labels by which the pass summed the masses of items that it did not draw.
    masses : ndarray of float64, shape (n_labels,), or None
        Masses of the labels, relative to the score `reference`.
    reference : float
    """

    drawn: Drawn
    joint: Joint | None = None
    masses: FloatArray | None = None
    reference: float = 0.0


def first_of(
    source: Source, ask: Ask, bound: BoundRules, n_eligible: int, after: Sequence[int]
) -> tuple[Ask, Joint | None]:
    """Return how to draw the first order of a list, for a policy that `draws_order`.

    The order has no pinned items. A table draws it, unless the list will need masses by label. A
    pass over vectors sums masses by label if they may be needed.
    """
    spec, joint = exploring(ask.spec), None
    if spec.kind in (_native.GUMBEL, _native.TABLE) and not source.has_codes:
        if spec.kind == _native.TABLE and bound.wants_masses(ask.k):
            spec = spec._replace(kind=_native.GUMBEL)
        if spec.kind == _native.GUMBEL:
            joint = bound.joint(ask.k)
    reserved = State(bound, min(ask.k, n_eligible), after).reserved if bound.pins else ()
    wanted = ahead(ask.k, bound)
    ask = ask._replace(k=min(wanted, source._n_items), spec=spec)
    if reserved:
        own = np.array(sorted(reserved), np.int64)
        excluded = own if ask.excluded is None else np.concatenate([ask.excluded, own])
        ask = ask._replace(excluded=excluded)
    return ask, joint


def draw(
    source: Source,
    ask: Ask,
    bound: BoundRules,
    after: Sequence[int],
    first: First | None = None,
) -> Drawn:
    """Draw a ranking under rules; `ask` already has their filter, earlier pages and boosts.

    `first` is the order that the source drew by `first_of`, if it was drawn before.

    The cost is a pass for an order, plus the masses of items blocked at some place: few items are
    scored one by one, many take a second pass. If rules block most items that rank high, each place
    may need another pass over the items left.
    """
    return _Draw(Call(source, ask, bound, after), first).drawn()


# ---- Drawing ---------------------------------------------------------------------------------


class _Place(NamedTuple):
    """An item and its place: the regime of the place, or, if known, the item's log-propensity."""

    position: int
    explore: float
    regime: Regime | None
    log_propensity: float


class _Order:
    """The items of one draw, in their order of arrival.

    cover: the regime that allows the items, with the decays by which they were drawn. If None, the
    order is of all eligible items except pinned ones. While another order is walked, the clocks of
    this one stand still.
    """

    def __init__(self, drawn: Drawn, log_weights: list[float], cover: Regime | None) -> None:
        self.positions: list[int] = drawn[0].tolist()
        self.log_weights = log_weights  # without decays
        self.cover = cover
        own = log_weights
        if cover is not None and cover.decays:
            own = [w + f for w, f in zip(own, cover.log_factors(self.positions), strict=True)]
        # The mass of each item and all items behind it.
        self.log_masses = [w - lp for w, lp in zip(own, drawn[2].tolist(), strict=True)]
        self.n_behind = drawn[7] - len(self.positions)  # items behind the last one drawn
        self.log_behind = -math.inf
        if self.n_behind:
            last = -float(drawn[2][-1])
            self.log_behind = own[-1] + (math.log(math.expm1(last)) if last else -math.inf)
        self.at = 0
        self.pool: dict[int, float] = {}  # log-weights of items that arrived but were not accepted
        self.gone: dict[int, float] = {}  # log-weights of items shown before they arrived
        self.arrived: set[int] = set()

    @property
    def log_ahead(self) -> float:
        """Log-mass of all items that have not arrived."""
        return self.log_masses[self.at] if self.at < len(self.positions) else self.log_behind

    @property
    def is_used_up(self) -> bool:
        """Whether all drawn items have arrived, but others are left."""
        return self.n_behind > 0 and self.at == len(self.positions)

    def holds(self, position: int) -> bool:
        """Say whether the order contains an item that was not shown before the draw."""
        return self.log_factor(position) > -math.inf

    def log_factor(self, position: int) -> float:
        """Return the log-factor of an item's weight when the order was drawn."""
        return 0.0 if self.cover is None else self.cover.log_factor(position)

    def covers(self, regime: Regime) -> bool:
        """Say whether all items that a regime allows have arrived or will arrive."""
        return self.cover is None or self.cover.covers(regime)

    def is_of(self, regime: Regime) -> bool:
        """Say whether the order has exactly the items that a regime allows, by its weights."""
        if self.cover is None:
            return not (regime.blocks or regime.decays)
        return self.cover.decayed == regime.decayed and self.cover.allows_as(regime)

    def log_total(self, waiting: dict[int, float]) -> float:
        """Return the log-mass of items not shown; NaN if a difference would lose its digits."""
        log_ahead = self.log_ahead
        if self.gone:
            log_gone = log_sum(np.array(list(self.gone.values())))
            if log_gone > log_ahead - math.log(2.0):
                return math.nan
            log_ahead += math.log1p(-math.exp(log_gone - log_ahead))
        return log_sum(np.array([log_ahead, *waiting.values()])) if waiting else log_ahead


class _Draw:
    def __init__(self, call: Call, first: First | None) -> None:
        self.call = call
        self.raw: np.random.Philox | None = None
        self.error = 0.0  # largest error of the masses of orders
        self.has_labels = False
        self.has_waited = False  # whether coins were tossed with those masses
        self.ahead = ahead(call.ask.k, call.bound)
        self.again = min(max(self.ahead, _LEAST_AGAIN), _MOST_AGAIN)
        self.state = State(call.bound, min(call.ask.k, call.n_eligible), call.after)
        self.scores: dict[int, float] = {}  # of all items drawn so far
        self.log_weights: dict[int, float] = {}  # of all items in orders
        self.first = first  # draw of all eligible items that are not pinned
        self.opening: _Order | None = None  # the order of `first`
        self.base: _Order | None = None  # of all eligible items: the opening or a later order
        self.part: _Order | None = None  # of the items that some regime allows
        # After so many refused arrivals, an order by decayed weights is drawn.
        self.patience = self.again // 3
        self.best = Best(call, self.ahead)
        self.empty: list[Regime] = []  # regimes that allowed none of the items left

    def drawn(self) -> Drawn:
        call, state = self.call, self.state
        if self.state.places and call.explore == 1.0 and call.head == 0:
            if self.first is None:
                self.first = self.draw_first()
            self.has_labels = self.first.masses is not None
            call.n_scored += self.first.drawn[5]
            self.meet(self.first.drawn)
            self.base = self.opening = self.ordered(self.first.drawn, None)
        places: list[_Place] = []
        while state.place < state.places:
            pinned = state.pinned
            place = self.next() if pinned is None else _Place(pinned, 1.0, None, 0.0)
            if place is None:
                break
            places.append(place)
            state.show(place.position)
        return self.result(places)

    # ---- Random numbers ---------------------------------------------------------------------

    def uniform(self) -> float:
        """Draw a uniform number in (0, 1)."""
        return ((self.seed() >> 12) + 0.5) * 2.0**-52

    def seed(self) -> int:
        if self.raw is None:
            self.raw = np.random.Philox(key=[self.call.ask.seed, _STREAM])
        return int(self.raw.random_raw())

    def draw_first(self) -> First:
        call = self.call
        ask, joint = first_of(call.source, call.ask, call.bound, call.n_eligible, call.after)
        if call.spec.kind == FLAT_TAIL:
            return First(self.flat_tail(ask))
        if joint is None:
            return First(call.source._draw(ask))
        drawn, masses, reference = call.source._draw_labelled(ask, joint)
        return First(drawn, joint, masses, reference)

    # ---- Draws of the source ----------------------------------------------------------------

    def asked(self, spec: Spec, seed: int, ask: Ask) -> Drawn:
        call = self.call
        ask = ask._replace(k=min(ask.k, call.n_items), spec=spec, seed=seed)
        if spec.kind == FLAT_TAIL:
            drawn = self.flat_tail(ask)
            call.n_scored += drawn[5]
        else:
            drawn = call.draw(ask)
        self.meet(drawn)
        return drawn

    def meet(self, drawn: Drawn) -> None:
        self.error = max(self.error, drawn[4])
        self.scores.update(zip(drawn[0].tolist(), drawn[1].tolist(), strict=True))

    def flat_tail(self, ask: Ask) -> Drawn:
        """Draw from a flat tail with the candidates and the tail's weight of the whole call."""
        call, found = self.call, self.call.found
        assert found is not None
        assert found.scores is not None
        words, count = call.source._eligible(ask.excluded, ask.allowed)
        positions, scores = found.positions, found.scores
        if words is not None:
            lanes = words[positions // _native.LANES] >> (positions % _native.LANES)
            kept = (lanes & 1).astype(np.bool_)
            positions, scores = positions[kept], scores[kept]
        factor = ask.spec.factor
        if len(positions):  # the factor is relative to the lowest candidate left
            factor = min(1.0, math.exp(call.tail - float(scores.min()) / call.temperature))
        drawn = call.source._packed.rank_flat_tail(
            ask.query,
            ask.k,
            ask.spec.temperature,
            factor,
            ask.seed,
            positions,
            scores,
            ask.bias,
            words,
            count,
        )
        return (*drawn[:7], count, None)

    def ordered(self, drawn: Drawn, cover: Regime | None) -> _Order:
        log_weights = self.call.log_weights(drawn[0], drawn[1]).tolist()
        self.log_weights.update(zip(drawn[0].tolist(), log_weights, strict=True))
        return _Order(drawn, log_weights, cover)

    def draw_order(self, regime: Regime, *, decays: bool = False) -> _Order:
        """Draw a new order of the allowed items that are not shown, with decays if asked for."""
        cover = regime if decays else regime._replace(decayed=((),) * len(regime.decayed))
        if cover.decays:
            order = self.ordered(self.draw_decayed(cover), cover)
        elif cover.blocks:
            ask = self.among(regime)._replace(k=self.again)
            order = self.ordered(self.asked(_of_part(self.call.spec), self.seed(), ask), cover)
        else:
            return self.draw_base()
        self.part = order
        return order

    def draw_base(self) -> _Order:
        """Draw a new order of all eligible items that are not shown."""
        own = np.array([*self.state.shown, *self.state.reserved], np.int64)
        old = self.call.ask.excluded
        ask = self.call.ask._replace(
            k=self.again, excluded=own if old is None else np.concatenate([old, own])
        )
        drawn = self.asked(_of_part(self.call.spec), self.seed(), ask)
        self.base, self.part = self.ordered(drawn, None), None
        return self.base

    def draw_decayed(self, regime: Regime) -> Drawn:
        """Draw an order by decayed weights, which float32 scores cannot represent. O(n)."""
        call = self.call
        positions = self.among(regime).allowed
        assert positions is not None
        scores = call.scores_of(positions)
        log_weights = call.log_weights(positions, scores) + log_factor_rows([regime], positions)[0]
        # Raw numbers, since a Generator's transforms of them may change with NumPy's version.
        raw = np.random.Philox(key=[self.seed(), _STREAM]).random_raw(len(positions))
        gumbels = -np.log(-np.log(((raw >> np.uint64(12)) + 0.5) * 2.0**-52))
        keys = log_weights + gumbels
        places = min(self.again, len(positions))
        least = np.partition(keys, len(keys) - places)[len(keys) - places] if places else 0.0
        first = np.flatnonzero(keys >= least)
        # The noise breaks ties of keys: it is lost in the sums if weights are very large.
        order = first[np.lexsort((-gumbels[first], -keys[first]))][:places]
        behind = np.ones(len(positions), np.bool_)
        behind[order] = False
        terms = np.append(log_sum(log_weights[behind]), log_weights[order][::-1])
        log_masses = np.logaddexp.accumulate(terms)[1:][::-1]
        drawn = (
            *(positions[order], scores[order], np.minimum(0.0, log_weights[order] - log_masses)),
            *(math.nan, 0.0, len(positions), False, len(positions), None),
        )
        self.meet(drawn)
        return drawn

    def among(self, regime: Regime) -> Ask:
        """Return an ask for the items that a regime allows, except those shown or pinned."""
        among = self.call.eligible & regime.allowed()
        among[[*self.state.shown, *self.state.reserved]] = False
        return self.call.ask._replace(excluded=None, allowed=np.flatnonzero(among))

    # ---- Places -----------------------------------------------------------------------------

    def next(self) -> _Place | None:
        explore = self.call.explore_at(self.state.place)
        explores = explore == 1.0 or (explore > 0.0 and self.uniform() < explore)
        for level in range(self.state.levels):
            regime = self.state.regime(level)
            # A regime that allowed none of the items left will not allow any later.
            if any(each.covers(regime) for each in self.empty):
                continue
            if regime.pin_set in self.call.bound.rare_sets:
                place = self.one_of_set(regime, explore, explores)
            elif explores:
                place = self.walked(regime, explore)
            else:
                place = self.best_of(regime, explore)
            if place is not None:
                return place
            self.empty = [each for each in self.empty if not regime.covers(each)][-_MOST_EMPTY:]
            self.empty.append(regime)
        return None

    def best_of(self, regime: Regime, explore: float) -> _Place | None:
        found = self.best.of(regime, self.state.shown, self.state.reserved)
        if found is None:
            return None
        position, self.scores[found[0]] = found
        self.is_gone(position)
        if explore == 0.0:
            return _Place(position, explore, None, 0.0)
        return _Place(position, explore, regime, math.nan)

    def one_of_set(self, regime: Regime, explore: float, explores: bool) -> _Place | None:
        """Draw an item of a rare set separately, independently of the order."""
        ask = self.among(regime)._replace(k=1)
        if ask.allowed is None or not len(ask.allowed):
            return None
        drawn = self.asked(_of_part(self.call.spec) if explores else BEST, self.seed(), ask)
        position = int(drawn[0][0])
        self.is_gone(position)
        if explore in (0.0, 1.0):
            return _Place(position, explore, None, float(drawn[2][0]))
        return _Place(position, explore, regime, math.nan)

    def is_gone(self, position: int) -> None:
        """Record that an item is shown; its later arrival in an order is then ignored."""
        for order in (self.base, self.part):
            if order is None or order.pool.pop(position, None) is not None:
                continue
            if position not in order.arrived and order.holds(position):
                log_weight: float = self.log_weights_of([position]).item()
                order.gone[position] = log_weight + order.log_factor(position)

    def walked(self, regime: Regime, explore: float) -> _Place | None:
        """Walk down an order to the next arrival that is accepted."""
        order = self.order_for(regime)
        waiting = self.waiting_for(order, regime)
        log_all = self.log_mass(order, regime, waiting)
        refused = 0
        while True:
            is_refused = refused > self.patience and regime.decays and not order.is_of(regime)
            if order.is_used_up or is_refused:
                decays = is_refused or (order.cover is not None and order.cover.decays)
                order, refused = self.draw_order(regime, decays=decays), 0
                waiting = self.waiting_for(order, regime)
                if math.isnan(log_all) and order.is_of(regime):
                    log_all = order.log_total(waiting)
                continue
            log_ahead = order.log_ahead
            if not waiting and log_ahead == -math.inf:
                return None
            found = self.of_pool(waiting, log_ahead) if waiting else None
            if found is None:
                found = self.arrival(order, regime, waiting)
            if found is None:
                refused += 1
                continue
            self.is_gone(found)
            if explore < 1.0 or math.isnan(log_all):
                return _Place(found, explore, regime, math.nan)
            log_weight = self.log_weights[found] + regime.log_factor(found)
            return _Place(found, explore, None, min(0.0, log_weight - log_all))

    def log_mass(self, order: _Order, regime: Regime, waiting: dict[int, float]) -> float:
        """Return the log-mass of allowed items; NaN if the order does not determine it."""
        if order.is_of(regime):
            return order.log_total(waiting)
        if order is not self.opening or self.part is not None or order.gone:
            return math.nan
        if regime.decays or regime.owed or regime.pin_set >= 0 or self.blocked is None:
            return math.nan
        log_left = order.log_total(order.pool)
        return self.blocked.log_rest(regime.blocked[0], self.state.shown, log_left)

    @cached_property
    def blocked(self) -> Blocked | None:
        """Masses of blocked groups of the opening order, if its pass summed by group."""
        call, first, order = self.call, self.first, self.opening
        if first is None or first.masses is None or first.joint is None or order is None:
            return None
        if first.joint.label_of is None:
            return None
        known = dict(zip(order.positions, order.log_weights, strict=True))
        log_reference = first.reference / call.temperature
        groups = call.bound.columns[0].groups
        return Blocked(first.joint, first.masses, log_reference, groups, known)

    def order_for(self, regime: Regime) -> _Order:
        """Return the order to walk; a new one if no order will bring all allowed items."""
        if self.part is not None and self.part.covers(regime) and not self.part.is_used_up:
            return self.part
        order = self.base
        if order is None and self.part is not None:
            return self.draw_base()  # otherwise alternating regimes would each draw a new order
        if order is None or (order.is_used_up and not regime.blocks):
            return self.draw_order(regime)
        if regime.owed and not self.has_labels and not order.is_of(regime):
            return self.draw_order(regime)  # its masses need no further pass
        return order

    def waiting_for(self, order: _Order, regime: Regime) -> dict[int, float]:
        """Return the present log-weights of items that wait in the pool of an order."""
        met = [*order.pool]
        return {
            position: order.pool[position] + log_factor
            for position, log_factor in zip(met, regime.log_factors(met), strict=True)
            if log_factor > -math.inf
        }

    def of_pool(self, waiting: dict[int, float], log_ahead: float) -> int | None:
        """Draw one of the waiting items, or None if the next of the order comes first."""
        self.has_waited = True
        top = max(log_ahead, *waiting.values())
        ahead_of = math.exp(log_ahead - top)
        weights = {p: math.exp(w - top) for p, w in waiting.items()}
        budget = self.uniform() * (ahead_of + sum(weights.values())) - ahead_of
        if budget < 0.0:
            return None
        found = -1
        for position, weight in weights.items():
            if weight > 0.0:
                found = position  # if rounding leaves a remainder, the last one is taken
                if budget < weight:
                    break
                budget -= weight
        return found

    def arrival(self, order: _Order, regime: Regime, waiting: dict[int, float]) -> int | None:
        """Take the next item of the order; return it if it is accepted, otherwise it waits."""
        position, log_weight = order.positions[order.at], order.log_weights[order.at]
        order.at += 1
        order.arrived.add(position)
        if order.gone.pop(position, None) is not None:
            return None
        log_factor = regime.log_factor(position)
        odds = log_factor - order.log_factor(position)
        if odds == 0.0 or (odds > -math.inf and self.uniform() < math.exp(odds)):
            return position
        order.pool[position] = log_weight
        if log_factor > -math.inf:
            waiting[position] = log_weight + log_factor
        return None

    # ---- The ranking ------------------------------------------------------------------------

    def result(self, places: list[_Place]) -> Drawn:
        call, first = self.call, self.first
        shown = [place.position for place in places]
        reserved = self.state.reserved
        missing = np.array([p for p in {*shown, *reserved} if p not in self.scores], np.int64)
        if len(missing):  # pinned items, which no draw has scored
            own = call.scores_of(missing)
            self.scores.update(zip(missing.tolist(), own.tolist(), strict=True))
        found = np.array([place.log_propensity for place in places])
        loss = self.judge_places(places, found) if np.isnan(found).any() else 0.0
        n_shown = len(shown)
        # Coins with estimated masses change the law by as much as the estimates' error.
        error = self.error * max(1.0, loss) * (2.0 if self.has_waited else 1.0)
        log_norm = -math.inf if call.ask.spec.has_norm else math.nan  # of no items
        if first is not None:
            log_norm = first.drawn[3]
        if reserved and not math.isnan(log_norm):
            pinned = self.log_weights_of(sorted(reserved))
            log_norm = float(np.logaddexp(log_norm, log_sum(pinned)))
        candidates = None
        if call.found is not None:
            candidates = Candidates(
                call.is_candidate[shown] if n_shown else np.empty(0, np.bool_),
                call.tail,
                len(call.found.positions),
                call.found.index_version,
                call.found.n_probes,
            )
        return (
            np.array(shown, np.int64),
            np.array([self.scores[p] for p in shown], np.float32),
            found,
            log_norm,
            error,
            call.n_scored,
            first is not None and first.drawn[6],
            call.n_eligible,
            candidates,
        )

    def log_weights_of(self, positions: list[int]) -> FloatArray:
        scores = np.array([self.scores[p] for p in positions], np.float32)
        return self.call.log_weights(np.array(positions, np.int64), scores)

    def judge_places(self, places: list[_Place], found: FloatArray) -> float:
        """Compute the propensities that are missing; return the loss of digits."""
        call, reserved = self.call, self.state.reserved
        total = call.flat_total()
        if total is None and self.first is not None and self.opening is not None:
            total = self.total_of(self.first, self.opening)
        shown = [place.position for place in places]
        firsts = [] if self.first is None else self.first.drawn[0].tolist()
        known = list(dict.fromkeys([*firsts, *shown, *sorted(reserved)]))
        masses = Masses(
            *(call, np.array(known, np.int64), self.log_weights_of(known), shown, reserved, total)
        )
        wanted = [(j, place.regime) for j, place in enumerate(places) if place.regime is not None]
        regimes = [regime for _, regime in wanted]
        masses.add(regimes)
        log_masses = masses.log_masses(regimes, [j for j, _ in wanted]).tolist()
        for (j, regime), log_mass in zip(wanted, log_masses, strict=True):
            position, explore = places[j].position, places[j].explore
            best = None
            if explore < 1.0:
                best = self.best.of(regime, {*call.after, *shown[:j]}, reserved)
            found[j] = masses.log_propensity(
                position, j, explore, regime, log_mass, None if best is None else best[0]
            )
        return masses.loss

    def total_of(self, first: First, order: _Order) -> Total:
        without = {*order.positions, *self.state.reserved}
        total = Total(order.log_behind, order.n_behind, without)
        if first.masses is None:
            return total
        with np.errstate(divide="ignore"):
            by_label = np.log(first.masses) + first.reference / self.call.temperature
        return total._replace(joint=first.joint, log_by_label=by_label)


def _of_part(spec: Spec) -> Spec:
    """Return the spec for a draw among some items: a table is of all, so a pass is cheaper."""
    return spec._replace(kind=_native.GUMBEL) if spec.kind == _native.TABLE else spec


# ---- Judging ---------------------------------------------------------------------------------


def count_allowed(
    source: Source, ask: Ask, positions: Sequence[int], bound: BoundRules, after: Sequence[int]
) -> int:
    """Count the items that may come next in a list that has shown some, all of them allowed.

    0 if the list ends there. Other arguments are as for `judge`. O(n).
    """
    call = Call(source, ask, bound, after)
    state = State(bound, min(ask.k, call.n_eligible), after)
    for position in positions:
        state.show(position)
    if state.place >= state.places:
        return 0
    if state.pinned is not None:
        return 1
    taken = [*state.shown, *state.reserved]
    for level in range(state.levels):
        left = call.eligible & state.regime(level).allowed()
        left[taken] = False
        if left.any():
            return int(left.sum())
    return 0


def judge(
    source: Source, ask: Ask, positions: Sequence[int], bound: BoundRules, after: Sequence[int]
) -> FloatArray:
    """Compute log-propensities of any ranking; `ask` as for `draw`, positions -1 if unknown."""
    call = Call(source, ask, bound, after)
    state = State(bound, min(ask.k, call.n_eligible), after)
    best = Best(call, ahead(len(positions), bound))
    shown: list[int] = []
    pinned: list[int | None] = []
    regimes: list[list[Regime]] = []
    for position in positions:
        pinned.append(state.pinned)
        regimes.append([state.regime(level) for level in range(state.levels)])
        is_new = position >= 0 and position not in state.shown and call.is_eligible(position)
        shown.append(position if is_new else -1)
        state.show(shown[-1])
    known = np.array(sorted({*[p for p in shown if p >= 0], *state.reserved}), np.int64)
    scores = call.scores_of(known) if len(known) else np.empty(0, np.float32)
    log_weights = call.log_weights(known, scores)
    masses = Masses(call, known, log_weights, shown, state.reserved, call.flat_total())
    masses.add([regime for each in regimes for regime in each])
    of_places = [place for place, each in enumerate(regimes) for _ in each]
    log_masses = masses.log_masses([regime for each in regimes for regime in each], of_places)
    by_place = log_masses.reshape(len(positions), state.levels).tolist()
    found = np.full(len(positions), -math.inf)
    gone = set(after)
    for place, position in enumerate(shown):
        if position < 0:
            continue
        if pinned[place] is not None:
            found[place] = 0.0 if position == pinned[place] else -math.inf
        else:
            found[place] = _judged(
                *(masses, best, position, place, call.explore_at(place), regimes[place]),
                *(by_place[place], gone, state.reserved),
            )
        gone.add(position)
    return found


def _judged(
    masses: Masses,
    best: Best,
    position: int,
    place: int,
    explore: float,
    regimes: list[Regime],
    log_masses: list[float],
    gone: set[int],
    reserved: frozenset[int],
) -> float:
    """Return the log-propensity under the first regime that allows any item."""
    for regime, log_mass in zip(regimes, log_masses, strict=True):
        if log_mass > -math.inf:
            first = best.of(regime, gone, reserved) if explore < 1.0 else None
            own = None if first is None else first[0]
            return masses.log_propensity(position, place, explore, regime, log_mass, own)
    return -math.inf
