"""Rankings under rules, and their propensities.

Every rule multiplies an item's weight by a factor from 0 to 1 that hangs on what is shown. So a list
is drawn as one Plackett-Luce order is walked down, best first. Its items are the arrivals of
independent exponential clocks; an arrival is accepted with its factor's probability. One that is not
goes on waiting, by memorylessness as if from then on, with its weight times the factor that it has at
each later place: a pool. Which comes next, one of the pool or the next of the order, is a coin with
their masses. That is exact for any factors, and what is left of an order that is not walked yet may be
drawn again, among whatever items, whenever what is known says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import AnyArray, Float32Array, FloatArray, Mask, Positions
from fastrank.ask import BEST, FLAT_TAIL, Ask, Drawn, Found, Spec
from fastrank.ranking import Candidates
from fastrank.ruled import BoundRules, Regime, State

__all__ = ["draw", "draws_order", "first_of", "judge"]

_AHEAD = 64  # items of an order that are drawn at a time, or four times the places
_STREAM = 0x72756C6573  # what tells these random numbers from all others of a seed
_MOST_LABELS = 1 << 16


class _Source(Protocol):
    """What draws without rules: `fastrank.ranker.Ranker`."""

    _n_items: int
    _packed: _native.PackedCatalog

    def _draw(self, ask: Ask) -> Drawn: ...

    def _found(self, ask: Ask) -> Found: ...


# ---- What is asked ---------------------------------------------------------------------------


class _Call:
    """A call under rules: what is eligible, which law, and what items weigh."""

    def __init__(self, source: _Source, ask: Ask, bound: BoundRules, after: Sequence[int]) -> None:
        self.source = source
        self.ask = ask
        self.bound = bound
        self.after = after
        self.n_items = source._n_items
        self.eligible = _mask(self.n_items, ask.excluded, ask.allowed)
        self.n_eligible = int(self.eligible.sum())
        self.head = ask.spec.head
        self.explore = _explore(ask.spec)
        self.spec = _exploring(ask.spec)
        flat = self.spec.kind == _native.UNIFORM
        self.temperature = math.inf if flat else self.spec.temperature
        # Of decays, where the best by score stands first.
        self.steepness = 0.0 if flat else self.spec.temperature
        self.found: Found | None = None
        self.tail = 0.0
        if self.spec.kind == FLAT_TAIL and self.n_eligible:
            self._find_candidates()

    def explore_at(self, place: int) -> float:
        return 0.0 if place < self.head else self.explore

    def _find_candidates(self) -> None:
        found = self.source._found(self.ask)
        if found.scores is None:
            found = found._replace(scores=self.scores_of(found.positions))
        self.found = found
        self.is_candidate = np.zeros(self.n_items, np.bool_)
        self.is_candidate[found.positions] = True
        if len(found.positions):
            assert found.scores is not None
            lowest = float(found.scores.min()) / self.temperature
            self.tail = lowest + math.log(self.spec.factor)

    def scores_of(self, positions: Positions) -> Float32Array:
        """As rankings have them."""
        function = None if self.ask.bound is None else self.ask.bound.function
        found: Float32Array = self.source._packed.scores_at(
            self.ask.query, positions, self.ask.bias, function
        )
        return found

    def log_weights(self, positions: Positions, scores: Float32Array) -> FloatArray:
        """By which items are drawn, of their scores."""
        if self.temperature == math.inf:
            return np.zeros(len(positions))
        found: FloatArray = scores.astype(np.float64) / self.temperature
        if self.found is not None:
            found = np.where(self.is_candidate[positions], found, self.tail)
        return found

    def rest(self, among: Mask, labels: npt.NDArray[np.int32], n_labels: int) -> _ByLabel:
        """Masses of the items of a mask, by label; one pass."""
        ask = self.ask
        bits, _ = _native.make_filter(self.n_items, np.flatnonzero(among), None)
        is_flat = self.temperature == math.inf or self.found is not None
        values, references, counts = self.source._packed.label_masses(
            ask.query,
            math.inf if is_flat else self.temperature,
            ask.bias,
            bits,
            labels,
            n_labels,
            None if ask.bound is None else ask.bound.function,
        )
        with np.errstate(divide="ignore"):
            if is_flat:
                return _ByLabel(np.log(counts) + self.tail, counts)
            return _ByLabel(np.log(values) + references / self.temperature, counts)


class _ByLabel(NamedTuple):
    log_masses: FloatArray
    counts: npt.NDArray[np.int64]


def _mask(n_items: int, excluded: Positions | None, allowed: Positions | None) -> Mask:
    found = np.full(n_items, allowed is None)
    if allowed is not None:
        found[allowed] = True
    if excluded is not None:
        found[excluded] = False
    return found


def _explore(spec: Spec) -> float:
    if spec.kind == _native.DETERMINISTIC:
        return 0.0
    return spec.epsilon if spec.kind == _native.EPSILON_GREEDY else 1.0


def _exploring(spec: Spec) -> Spec:
    """What is drawn where nothing is best."""
    if spec.kind in (_native.DETERMINISTIC, _native.EPSILON_GREEDY):
        return spec._replace(kind=_native.UNIFORM, head=0)
    return spec._replace(head=0)


class _Best:
    """The best items, as far as they were looked at."""

    def __init__(self, call: _Call, ahead: int) -> None:
        self.call = call
        self.ahead = ahead
        self.positions: list[int] = []
        self.scores: list[float] = []
        self.n_scored = 0

    def of(self, regime: Regime, gone: Collection[int], reserved: Collection[int]) -> int | None:
        """The best that is allowed and not gone; None: nothing is."""
        looked_at = 0
        best, highest = None, -math.inf
        while True:
            for position, score in zip(
                self.positions[looked_at:], self.scores[looked_at:], strict=True
            ):
                if best is not None and score <= highest:
                    return best
                if position in gone or position in reserved:
                    continue
                factor = regime.factor(position)
                if factor == 1.0:
                    value = score
                elif factor > 0.0:
                    value = score + self.call.steepness * math.log(factor)
                else:
                    continue
                if value > highest:
                    best, highest = position, value
            looked_at = len(self.positions)
            if not self.more():
                return best

    def more(self) -> bool:
        """Looks at more of them; whether there are any."""
        call = self.call
        if len(self.positions) >= call.n_eligible:
            return False
        k = min(max(self.ahead, 8 * len(self.positions)), call.n_eligible)
        drawn = call.source._draw(call.ask._replace(k=k, spec=BEST))
        self.positions, self.scores = drawn[0].tolist(), drawn[1].tolist()
        self.n_scored += drawn[5]
        return True


# ---- Drawing ---------------------------------------------------------------------------------


class _Place(NamedTuple):
    """What was allowed at a place of a list; no regime: a pinned item."""

    explore: float
    regime: Regime | None


class _Order:
    """Items in the order in which they arrive, those of one draw."""

    def __init__(self, drawn: Drawn, log_weights: list[float], asked: int, cover: Regime | None):
        self.positions: list[int] = drawn[0].tolist()
        self.log_weights = log_weights
        # The mass of an item and all behind it.
        self.log_masses = [w - lp for w, lp in zip(log_weights, drawn[2].tolist(), strict=True)]
        self.log_masses.append(-math.inf)
        self.has_more = asked <= len(self.positions) < drawn[7]
        self.cover = cover
        self.at = 0

    @property
    def is_used_up(self) -> bool:
        """Whether there are items left of which none is known."""
        return self.has_more and self.at == len(self.positions)


def ahead(k: int) -> int:
    """How many items of an order are drawn at a time for k places."""
    return max(_AHEAD, 4 * k)


def draws_order(spec: Spec) -> bool:
    """Whether a list begins with the order of all eligible items."""
    return _explore(spec) == 1.0 and spec.kind != FLAT_TAIL


def draw(
    source: _Source,
    ask: Ask,
    bound: BoundRules,
    after: Sequence[int],
    first: Drawn | None = None,
) -> Drawn:
    """A ranking under rules; `ask` has their filter, pages before and boosts already.

    `first` is what the source draws by `first_of(ask)`, if somebody has asked for it.

    A pass for an order, and the masses of what was not allowed at some place: of groups with few
    items those are scored, else it is a second pass. Where rules block most of what ranks high, up to
    one more pass a place over what is left.
    """
    return _Draw(_Call(source, ask, bound, after), first).drawn()


def first_of(ask: Ask, n_items: int) -> Ask:
    """The order with which a list begins, of a policy that `draws_order`."""
    return ask._replace(k=min(ahead(ask.k), n_items), spec=_exploring(ask.spec))


class _Draw:
    def __init__(self, call: _Call, first: Drawn | None) -> None:
        self.call = call
        self.raw = np.random.Philox(key=[call.ask.seed, _STREAM])
        self.n_scored = 0
        self.ahead = ahead(call.ask.k)
        self.state = State(call.bound, min(call.ask.k, call.n_eligible), call.after)
        self.scores: dict[int, float] = {}  # of all items that are known
        self.first = first  # of all eligible items
        self.order: _Order | None = None
        self.pool: dict[int, float] = {}
        self.best = _Best(call, self.ahead)

    def drawn(self) -> Drawn:
        call, state = self.call, self.state
        if call.explore == 1.0 and call.n_eligible:
            if self.first is None:
                self.first = self.asked(self.call.spec, self.ahead, call.ask.seed, None)
            else:
                self.meet(self.first)
            self.order = self.ordered(self.first, None)
        shown: list[int] = []
        places: list[_Place] = []
        while state.place < state.places:
            pinned = state.pinned
            if pinned is not None:
                places.append(_Place(1.0, None))
                position: int | None = pinned
            else:
                position = self.next(places)
            if position is None:
                break
            shown.append(position)
            state.show(position)
        return self.result(shown, places)

    # ---- Random numbers ---------------------------------------------------------------------

    def uniform(self) -> float:
        """In (0, 1)."""
        return ((int(self.raw.random_raw()) >> 11) + 0.5) * 2.0**-53

    def seed(self) -> int:
        return int(self.raw.random_raw())

    # ---- Draws of the source ----------------------------------------------------------------

    def asked(self, spec: Spec, k: int, seed: int, among: Mask | None) -> Drawn:
        """Of all eligible items, or of those of a mask."""
        call = self.call
        ask = call.ask._replace(k=min(k, call.n_items), spec=spec, seed=seed)
        if spec.kind == FLAT_TAIL:
            drawn = self.flat_tail(ask, call.eligible if among is None else among)
        else:
            if among is not None:
                ask = ask._replace(excluded=None, allowed=np.flatnonzero(among))
            drawn = call.source._draw(ask)
        self.meet(drawn)
        return drawn

    def meet(self, drawn: Drawn) -> None:
        self.n_scored += drawn[5]
        self.scores.update(zip(drawn[0].tolist(), drawn[1].tolist(), strict=True))

    def flat_tail(self, ask: Ask, among: Mask) -> Drawn:
        """By the candidates of all eligible items, and the weight of all others."""
        call, found = self.call, self.call.found
        assert found is not None
        assert found.scores is not None
        kept = among[found.positions]
        positions, scores = found.positions[kept], found.scores[kept]
        factor = ask.spec.factor
        if len(positions):  # of the lowest of these
            lowest = float(scores.min()) / call.temperature
            factor = min(1.0, math.exp(call.tail - lowest))
        bits, count = _native.make_filter(call.n_items, np.flatnonzero(among), None)
        drawn = call.source._packed.rank_flat_tail(
            ask.query,
            ask.k,
            ask.spec.temperature,
            factor,
            ask.seed,
            positions,
            scores,
            ask.bias,
            bits,
            count,
        )
        return (*drawn[:7], count, None)

    def ordered(self, drawn: Drawn, cover: Regime | None) -> _Order:
        log_weights = self.call.log_weights(drawn[0], drawn[1]).tolist()
        return _Order(drawn, log_weights, min(self.ahead, self.call.n_items), cover)

    def draw_order(self, regime: Regime) -> None:
        """Anew, of what has not arrived and is allowed now."""
        among = self.call.eligible.copy()
        among[[*self.state.shown, *self.state.reserved, *self.pool]] = False
        if regime.blocks:
            among &= regime.factors() > 0.0
        drawn = self.asked(_of_part(self.call.spec), self.ahead, self.seed(), among)
        self.order = self.ordered(drawn, regime)

    # ---- Places -----------------------------------------------------------------------------

    def next(self, places: list[_Place]) -> int | None:
        """The next item; `places` gets what was allowed."""
        explore = self.call.explore_at(self.state.place)
        explores = explore == 1.0 or (explore > 0.0 and self.uniform() < explore)
        for level in range(self.state.levels):
            regime = self.state.regime(level)
            if regime.pin_set >= 0:
                found = self.one_of_set(regime, explores)
            elif explores:
                found = self.walked(regime)
            else:
                found = self.best.of(regime, self.state.shown, self.state.reserved)
            if found is not None:
                places.append(_Place(explore, regime))
                return found
        return None

    def one_of_set(self, regime: Regime, explores: bool) -> int | None:
        """A draw of its own, which says nothing of the order."""
        among = self.call.eligible & (regime.factors() > 0.0)
        among[[*self.state.shown, *self.state.reserved]] = False
        if not among.any():
            return None
        spec = _of_part(self.call.spec) if explores else BEST
        return int(self.asked(spec, 1, self.seed(), among)[0][0])

    def walked(self, regime: Regime) -> int | None:
        """The next arrival that is accepted."""
        state = self.state
        if self.order is None or not (
            self.order.cover is None or self.order.cover.covers(regime)
        ):
            self.draw_order(regime)
        waiting: dict[int, float] = {}  # log-weights, by now, of the pool
        for position, log_weight in self.pool.items():
            factor = regime.factor(position)
            if factor > 0.0 and position not in state.shown:
                waiting[position] = log_weight + math.log(factor)
        while True:
            order = self.order
            assert order is not None
            if order.is_used_up:
                self.draw_order(regime)
                continue
            log_ahead = order.log_masses[order.at]
            if waiting:
                top = max(log_ahead, *waiting.values())
                ahead = math.exp(log_ahead - top)
                weights = {p: math.exp(w - top) for p, w in waiting.items()}
                budget = self.uniform() * (ahead + sum(weights.values())) - ahead
                if budget >= 0.0:
                    return self.of_pool(weights, budget)
            elif log_ahead == -math.inf:
                return None
            position, log_weight = order.positions[order.at], order.log_weights[order.at]
            order.at += 1
            if position in state.shown or position in state.reserved:
                continue
            factor = regime.factor(position)
            if factor == 1.0 or (factor > 0.0 and self.uniform() < factor):
                return position
            self.pool[position] = log_weight
            if factor > 0.0:
                waiting[position] = log_weight + math.log(factor)

    def of_pool(self, weights: dict[int, float], budget: float) -> int:
        found = -1
        for position, weight in weights.items():
            if weight > 0.0:
                found = position  # the last one, should rounding leave a remainder
                if budget < weight:
                    break
                budget -= weight
        del self.pool[found]
        return found

    # ---- The ranking ------------------------------------------------------------------------

    def result(self, shown: list[int], places: list[_Place]) -> Drawn:
        call = self.call
        missing = np.array(
            [p for p in {*shown, *self.state.reserved} if p not in self.scores], np.int64
        )
        if len(missing):  # they are pinned
            scores = call.scores_of(missing)
            self.n_scored += len(missing)
            self.scores.update(zip(missing.tolist(), scores.tolist(), strict=True))
        known = np.array(list(self.scores), np.int64)
        scores = np.array(list(self.scores.values()), np.float32)
        masses = _Masses(call, known, call.log_weights(known, scores), self.state.reserved)
        masses.add([place.regime for place in places if place.regime is not None])
        found = np.zeros(len(shown))
        for j, (position, place) in enumerate(zip(shown, places, strict=True)):
            if place.regime is not None:
                best = None
                if place.explore < 1.0:
                    best = self.best.of(place.regime, {*call.after, *shown[:j]}, self.state.reserved)
                found[j] = masses.log_propensity(position, place.explore, place.regime, best)
            masses.show(position)
        first = self.first
        candidates = None
        if call.found is not None:
            candidates = Candidates(
                call.is_candidate[shown],
                call.tail,
                len(call.found.positions),
                call.found.index_version,
                call.found.n_probes,
            )
        return (
            np.array(shown, np.int64),
            np.array([self.scores[p] for p in shown], np.float32),
            found,
            math.nan if first is None else first[3],
            0.0 if first is None else first[4],
            self.n_scored + self.best.n_scored + masses.n_scored,
            first is not None and first[6],
            call.n_eligible,
            candidates,
        )


def _of_part(spec: Spec) -> Spec:
    """Tables are of all items: of some a pass is cheaper."""
    return spec._replace(kind=_native.GUMBEL) if spec.kind == _native.TABLE else spec


# ---- Judging ---------------------------------------------------------------------------------


def judge(
    source: _Source,
    ask: Ask,
    positions: Sequence[int],
    bound: BoundRules,
    after: Sequence[int],
) -> FloatArray:
    """Log-propensities of any ranking; `ask` as for `draw`, positions are -1 of unknown items."""
    call = _Call(source, ask, bound, after)
    state = State(bound, min(ask.k, call.n_eligible), after)
    best = _Best(call, max(_AHEAD, 2 * len(positions)))
    shown: list[int] = []
    pinned: list[int | None] = []
    regimes: list[list[Regime]] = []
    for position in positions:
        pinned.append(state.pinned)
        regimes.append([state.regime(level) for level in range(state.levels)])
        is_shown = position >= 0 and bool(call.eligible[position]) and position not in state.shown
        shown.append(position if is_shown else -1)
        state.show(shown[-1])
    known = np.array(sorted({*[p for p in shown if p >= 0], *state.reserved}), np.int64)
    scores = call.scores_of(known) if len(known) else np.empty(0, np.float32)
    masses = _Masses(call, known, call.log_weights(known, scores), state.reserved)
    masses.add([regime for each in regimes for regime in each])
    found = np.full(len(positions), -math.inf)
    gone = set(after)
    for place, position in enumerate(shown):
        if position >= 0 and place < state.places:
            if pinned[place] is not None:
                found[place] = 0.0 if position == pinned[place] else -math.inf
            else:
                found[place] = _judged(
                    masses, best, position, call.explore_at(place), regimes[place], gone, state
                )
        if position >= 0:
            gone.add(position)
            masses.show(position)
    return found


def _judged(
    masses: _Masses,
    best: _Best,
    position: int,
    explore: float,
    regimes: list[Regime],
    gone: set[int],
    state: State,
) -> float:
    regime = next((each for each in regimes if masses.is_any(each)), None)
    if regime is None:
        return -math.inf
    first = best.of(regime, gone, state.reserved) if explore < 1.0 else None
    return masses.log_propensity(position, explore, regime, first)


# ---- Masses ----------------------------------------------------------------------------------


class _Masses:
    """Of what is allowed at places of one list: known items one by one, all others by labels.

    All sums are of positive terms: nothing cancels.
    """

    def __init__(
        self,
        call: _Call,
        known: Positions,
        log_weights: FloatArray,
        reserved: Collection[int],
    ) -> None:
        self.call = call
        self.n_scored = 0
        if call.found is not None:
            others = call.found.positions[~np.isin(call.found.positions, known)]
            assert call.found.scores is not None
            scores = call.found.scores[~np.isin(call.found.positions, known)]
            known = np.concatenate([known, others])
            log_weights = np.concatenate([log_weights, call.log_weights(others, scores)])
        self.known = known
        self.log_weights = log_weights
        self.place_of = {p: i for i, p in enumerate(known.tolist())}
        self.left = call.eligible[known]
        self.left[[self.place_of[p] for p in reserved]] = False
        self.rest: dict[Regime, tuple[float, int]] = {}
        self.factors: dict[Regime, FloatArray] = {}

    def show(self, position: int) -> None:
        self.left[self.place_of[position]] = False

    def add(self, regimes: Sequence[Regime]) -> None:
        """What these allow of the items that are not known."""
        wanted = list(dict.fromkeys(regimes))
        among = self.call.eligible.copy()
        among[self.known] = False
        if not among.any():
            self.rest.update(dict.fromkeys(wanted, (-math.inf, 0)))
            return
        labels, n_labels, one_of = _labelled(self.call.bound, wanted)
        by_label = self.call.rest(among, labels, n_labels)
        self.n_scored += int(by_label.counts.sum())
        filled = np.flatnonzero(by_label.counts)
        log_masses, counts = by_label.log_masses[filled], by_label.counts[filled]
        for regime in wanted:
            factors = regime.factors(one_of[filled])
            allowed = factors > 0.0
            self.rest[regime] = (
                _log_sum(log_masses[allowed] + np.log(factors[allowed])),
                int(counts[allowed].sum()),
            )

    def _factors(self, regime: Regime) -> FloatArray:
        found = self.factors.get(regime)
        if found is None:
            found = self.factors[regime] = regime.factors(self.known)
        return found

    def is_any(self, regime: Regime) -> bool:
        """Whether something is allowed."""
        return self.rest[regime][1] > 0 or bool((self.left & (self._factors(regime) > 0.0)).any())

    def log_propensity(
        self, position: int, explore: float, regime: Regime, best: int | None
    ) -> float:
        """Of an item that is not shown yet; `best` is what stands first where nothing is drawn."""
        at = self.place_of[position]
        factors = self._factors(regime)
        if not self.left[at] or factors[at] == 0.0:
            return -math.inf
        found = -math.inf
        if explore > 0.0:
            others = self.left & (factors > 0.0)
            others[at] = False
            log_rest, _ = self.rest[regime]
            log_others = np.logaddexp(
                log_rest, _log_sum(self.log_weights[others] + np.log(factors[others]))
            )
            own = self.log_weights[at] + math.log(factors[at])
            found = math.log(explore) - float(np.logaddexp(0.0, log_others - own))
        if explore < 1.0 and position == best:
            found = float(np.logaddexp(found, math.log1p(-explore)))
        return min(found, 0.0)


def _log_sum(terms: FloatArray) -> float:
    """The logarithm of a sum, of its terms'."""
    if not len(terms):
        return -math.inf
    top = float(terms.max())
    if top == -math.inf:
        return top
    return top + math.log(float(np.exp(terms - top).sum()))


def _labelled(
    bound: BoundRules, regimes: Sequence[Regime]
) -> tuple[npt.NDArray[np.int32], int, Positions]:
    """Labels (n,) of items that no regime tells apart, how many, and an item of each."""
    labels = np.zeros(bound.n_items, np.int64)
    n_labels = 1
    for at, rule in enumerate(bound.columns):
        touched = sorted(
            set().union(*(each.blocked[at] for each in regimes))
            | {group for each in regimes for group, _ in each.decayed[at]}
        )
        if not touched:
            continue
        if rule.groups.codes is not None:
            labels, n_labels = _condensed(labels, n_labels, len(touched) + 1)
            numbers = np.zeros(rule.groups.n_groups + 1, np.int64)
            numbers[touched] = np.arange(1, len(touched) + 1)
            labels = labels * (len(touched) + 1) + numbers[rule.groups.codes]
            n_labels *= len(touched) + 1
            continue
        for group in touched:
            labels, n_labels = _condensed(labels, n_labels, 2)
            labels[rule.groups.items(group)] += n_labels
            n_labels *= 2
    masks = [bound.shares[s][0] for s in sorted({s for each in regimes for s in each.owed})]
    masks += [bound.pin_sets[p] for p in sorted({r.pin_set for r in regimes if r.pin_set >= 0})]
    for mask in masks:
        labels, n_labels = _condensed(labels, n_labels, 2)
        labels[mask] += n_labels
        n_labels *= 2
    labels, n_labels = _condensed(labels, n_labels, 1)
    one_of = np.zeros(n_labels, np.int64)
    one_of[labels] = np.arange(bound.n_items)
    return labels.astype(np.int32), n_labels, one_of


def _condensed(labels: AnyArray, n_labels: int, by: int) -> tuple[AnyArray, int]:
    """Labels that can be told apart `by` times as often."""
    if n_labels * by <= _MOST_LABELS:
        return labels, n_labels
    own, labels = np.unique(labels, return_inverse=True)
    return labels, len(own)
