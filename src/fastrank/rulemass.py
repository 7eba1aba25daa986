"""What is allowed at the places of a list under rules, and what it weighs.

Known items count one by one; of all others sums are enough. Those come from the order that was
drawn, less what is not allowed there, as far as such a difference keeps its digits and its items
are few; else from a pass that sums up by label: items of one label are allowed at the same places.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import AnyArray, Float32Array, FloatArray, Mask, Positions
from fastrank.ask import BEST, FLAT_TAIL, Ask, Drawn, Found, Spec
from fastrank.ruled import BoundRules, Regime

__all__ = ["Best", "Call", "Masses", "Source", "Total", "exploring", "log_sum"]

_MOST_LABELS = 1 << 16  # more are numbered anew, which sorts them
_BITS = 30  # groups of lists at a time
_FEW = 80  # one item in so many may be scored by itself: as many cost a fifth of a pass
_KEPT = 0.1  # of a total: where a difference leaves less, it is summed up instead


class Source(Protocol):
    """What draws without rules: `fastrank.ranker.Ranker`."""

    _n_items: int
    _packed: _native.PackedCatalog

    def _draw(self, ask: Ask) -> Drawn: ...

    def _found(self, ask: Ask) -> Found: ...

    def _eligible(
        self, excluded: Positions | None, allowed: Positions | None
    ) -> tuple[npt.NDArray[np.uint16] | None, int]: ...


class Call:
    """A call under rules: what is eligible, by which law it is drawn, and what items weigh.

    Items weigh exp(score / T), 1 where draws are uniform, and in a flat tail what that says.
    """

    def __init__(self, source: Source, ask: Ask, bound: BoundRules, after: Sequence[int]) -> None:
        self.source = source
        self.ask = ask
        self.bound = bound
        self.after = after
        self.n_items = source._n_items
        self.words, self.n_eligible = source._eligible(ask.excluded, ask.allowed)
        self.head = ask.spec.head
        self.explore = _explore(ask.spec)
        self.spec = exploring(ask.spec)
        self.is_uniform = self.spec.kind == _native.UNIFORM
        self.temperature = math.inf if self.is_uniform else self.spec.temperature
        self.found: Found | None = None
        self.tail = 0.0  # the logarithm of what items weigh whose score does not count
        if self.spec.kind == FLAT_TAIL and self.n_eligible:
            self._find_candidates()
        self.is_flat = self.is_uniform or self.found is not None

    def flat_total(self) -> Total | None:
        """Of all eligible items but candidates, where those weigh the same; else None."""
        if not self.is_flat or not self.n_eligible:
            return None
        without = set() if self.found is None else set(self.found.positions.tolist())
        count = self.n_eligible - len(without)
        return Total(self.tail + math.log(count) if count else -math.inf, count, without)

    def explore_at(self, place: int) -> float:
        """How likely a place is drawn, and does not show the best."""
        return 0.0 if place < self.head else self.explore

    @cached_property
    def eligible(self) -> Mask:
        """(n,), the caller's to change a copy of."""
        if self.words is None:
            return np.ones(self.n_items, np.bool_)
        bits = np.unpackbits(self.words.view(np.uint8), bitorder="little")
        return bits[: self.n_items].view(np.bool_)

    def is_eligible(self, position: int) -> bool:
        """One item."""
        if self.words is None:
            return True
        return bool(int(self.words[position // _native.LANES]) >> position % _native.LANES & 1)

    def are_eligible(self, positions: Positions) -> Mask:
        """Some items."""
        if self.words is None:
            return np.ones(len(positions), np.bool_)
        lanes = self.words[positions // _native.LANES] >> (positions % _native.LANES)
        return (lanes & 1).astype(np.bool_)

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

    def log_weights(self, positions: Positions, scores: Float32Array | None) -> FloatArray:
        """Of items with these scores; None: where no score counts."""
        if self.is_uniform or scores is None:
            return np.full(len(positions), self.tail)
        found: FloatArray = scores.astype(np.float64) / self.temperature
        if self.found is not None:
            found = np.where(self.is_candidate[positions], found, self.tail)
        return found

    def by_label(
        self, among: Mask, labels: npt.NDArray[np.int32], n_labels: int
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Log-masses and numbers of the items of a mask, by label. One pass."""
        ask = self.ask
        bits, _ = _native.make_filter(self.n_items, np.flatnonzero(among), None)
        values, references, counts = self.source._packed.label_masses(
            ask.query,
            math.inf if self.is_flat else self.temperature,
            ask.bias,
            bits,
            labels,
            n_labels,
            None if ask.bound is None else ask.bound.function,
        )
        with np.errstate(divide="ignore"):
            if self.is_flat:
                return np.log(counts) + self.tail, counts
            return np.log(values) + references / self.temperature, counts


def _explore(spec: Spec) -> float:
    if spec.kind == _native.DETERMINISTIC:
        return 0.0
    return spec.epsilon if spec.kind == _native.EPSILON_GREEDY else 1.0


def exploring(spec: Spec) -> Spec:
    """What is drawn where nothing is best."""
    if spec.kind in (_native.DETERMINISTIC, _native.EPSILON_GREEDY):
        return spec._replace(kind=_native.UNIFORM, head=0)
    if spec.kind == _native.SEQUENTIAL:  # an order of so many items takes a pass for each
        return spec._replace(kind=_native.GUMBEL, head=0)
    return spec._replace(head=0)


class Best:
    """The best items of a call, as far as they were looked at: `ahead` of them at first."""

    def __init__(self, call: Call, ahead: int) -> None:
        self.n_scored = 0
        self._call = call
        self._ahead = ahead
        self._positions: list[int] = []
        self._scores: list[float] = []

    def of(
        self, regime: Regime, gone: Collection[int], reserved: Collection[int]
    ) -> tuple[int, float] | None:
        """The best that is allowed and not gone, and its score; None: nothing is.

        A factor of weights counts by what it is worth in scores: T times its logarithm.
        """
        looked_at = 0
        best: tuple[int, float] | None = None
        highest = -math.inf
        while True:
            new = zip(self._positions[looked_at:], self._scores[looked_at:], strict=True)
            for position, score in new:
                if best is not None and score <= highest:
                    return best
                if position in gone or position in reserved:
                    continue
                factor = regime.factor(position)
                if factor == 0.0:
                    continue
                value = score
                if factor < 1.0:
                    value += self._call.temperature * math.log(factor)
                if value > highest:
                    best, highest = (position, score), value
            looked_at = len(self._positions)
            if not self._more():
                return best

    def _more(self) -> bool:
        call = self._call
        if len(self._positions) >= call.n_eligible:
            return False
        k = min(max(self._ahead, 8 * len(self._positions)), call.n_eligible)
        drawn = call.source._draw(call.ask._replace(k=k, spec=BEST))
        self._positions, self._scores = drawn[0].tolist(), drawn[1].tolist()
        self.n_scored += drawn[5]
        return True


class Total(NamedTuple):
    """Of all eligible items but those of an order that was drawn, and the items of that order."""

    log_mass: float
    n_items: int
    without: Collection[int]


class Masses:
    """What regimes allow, while the list of a call grows.

    Parameters
    ----------
    call : Call
    known : ndarray of int64, shape (m,)
        Items that count one by one: at least all that are shown or reserved.
    log_weights : ndarray of float64, shape (m,)
    reserved : collection of int
        Positions of pinned items.
    total : Total, optional
        Its items are among the known.

    Attributes
    ----------
    n_scored : int
    loss : float
        By how much relative errors of the total are enlarged at most; 0: it plays no part.
    """

    def __init__(
        self,
        call: Call,
        known: Positions,
        log_weights: FloatArray,
        reserved: Collection[int],
        total: Total | None = None,
    ) -> None:
        self.n_scored = 0
        self.loss = 0.0
        self._call = call
        if call.found is not None:
            others = ~np.isin(call.found.positions, known)
            assert call.found.scores is not None
            positions, scores = call.found.positions[others], call.found.scores[others]
            known = np.concatenate([known, positions])
            log_weights = np.concatenate([log_weights, call.log_weights(positions, scores)])
        self._total = total
        self._known = known
        self._log_weights = log_weights
        self._place_of = {p: i for i, p in enumerate(known.tolist())}
        self._left = call.are_eligible(known)
        self._left[[self._place_of[p] for p in reserved]] = False
        self._rest: dict[Regime, tuple[float, int]] = {}
        self._factors: dict[Regime, FloatArray] = {}

    def show(self, position: int) -> None:
        """An item is shown."""
        self._left[self._place_of[position]] = False

    def add(self, regimes: Sequence[Regime], shown: Sequence[int]) -> None:
        """Regimes of a list that will have shown these items when it ends."""
        wanted = list(dict.fromkeys(regimes))
        if wanted and not self._by_difference(wanted, shown):
            self._by_pass(wanted)

    def _by_difference(self, regimes: list[Regime], shown: Sequence[int]) -> bool:
        """From the total, what is not allowed is taken off; whether that does."""
        total, call = self._total, self._call
        if total is None or any(each.owed or each.pin_set >= 0 for each in regimes):
            return False
        if total.n_items == 0 or total.log_mass == -math.inf:
            if total.n_items:  # so little that it is not told
                return False
            self._rest.update(dict.fromkeys(regimes, (-math.inf, 0)))
            return True
        touched = call.bound.touched(regimes)
        size = sum(rule.groups.size(group) for rule, groups in touched for group in groups)
        if size > self._call.n_items // (4 if call.is_flat else _FEW):
            return False
        parts = [rule.groups.items(group) for rule, groups in touched for group in groups]
        members = np.unique(np.concatenate(parts)).astype(np.int64) if parts else _NOBODY
        members = members[call.are_eligible(members)]
        members = members[~np.isin(members, self._known)]
        log_weights = call.log_weights(members, None if call.is_flat else call.scores_of(members))
        self.n_scored += 0 if call.is_flat else len(members)
        weights = np.exp(np.minimum(log_weights - total.log_mass, 1.0))
        others = [i for i, p in enumerate(self._known.tolist()) if p not in total.without]
        taken = float(
            np.exp(self._log_weights[others] - total.log_mass)[self._was_left(others)].sum()
        )
        n_others = int(self._was_left(others).sum())
        last = self._left.copy()
        last[[self._place_of[p] for p in shown]] = False
        found: dict[Regime, tuple[float, int]] = {}
        for regime in regimes:
            factors = regime.factors(members)
            left = 1.0 - taken - float((weights * (1.0 - factors)).sum())
            count = total.n_items - n_others - int((factors == 0.0).sum())
            own = self._factors_of(regime)
            allowed = last & (own > 0.0)
            known = log_sum(self._log_weights[allowed] + np.log(own[allowed])) - total.log_mass
            kept = max(left, 0.0) + math.exp(min(known, 50.0))
            if not call.is_flat and not kept >= _KEPT:
                return False
            self.loss = max(self.loss, 1.0 / kept if kept else 0.0)
            if call.is_flat:
                left = count / total.n_items
            is_any = count > 0 and left > 0.0
            found[regime] = (math.log(left) + total.log_mass if is_any else -math.inf, count)
        self._rest.update(found)
        return True

    def _was_left(self, places: list[int]) -> Mask:
        return self._call.are_eligible(self._known[places])

    def _by_pass(self, regimes: list[Regime]) -> None:
        among = self._call.eligible.copy()
        among[self._known] = False
        if not among.any():
            self._rest.update(dict.fromkeys(regimes, (-math.inf, 0)))
            return
        labels, n_labels, one_of = _labelled(self._call.bound, regimes)
        log_masses, counts = self._call.by_label(among, labels, n_labels)
        self.n_scored += int(counts.sum())
        filled = np.flatnonzero(counts)
        log_masses, counts = log_masses[filled], counts[filled]
        for regime in regimes:
            factors = regime.factors(one_of[filled])
            allowed = factors > 0.0
            self._rest[regime] = (
                log_sum(log_masses[allowed] + np.log(factors[allowed])),
                int(counts[allowed].sum()),
            )

    def _factors_of(self, regime: Regime) -> FloatArray:
        found = self._factors.get(regime)
        if found is None:
            found = self._factors[regime] = regime.factors(self._known)
        return found

    def is_any(self, regime: Regime) -> bool:
        """Whether something is allowed now."""
        if self._rest[regime][1] > 0:
            return True
        return bool((self._left & (self._factors_of(regime) > 0.0)).any())

    def log_propensity(
        self, position: int, explore: float, regime: Regime, best: int | None
    ) -> float:
        """Of a known item, now; `best` is what stands there where nothing is drawn."""
        at = self._place_of[position]
        factors = self._factors_of(regime)
        if not self._left[at] or factors[at] == 0.0:
            return -math.inf
        found = -math.inf
        if explore > 0.0:
            others = self._left & (factors > 0.0)
            others[at] = False
            known = log_sum(self._log_weights[others] + np.log(factors[others]))
            log_others = float(np.logaddexp(self._rest[regime][0], known))
            own = float(self._log_weights[at]) + math.log(factors[at])
            found = drawn_with(explore, own, log_others)
        if explore < 1.0 and position == best:
            found = float(np.logaddexp(found, math.log1p(-explore)))
        return min(found, 0.0)


_NOBODY = np.empty(0, np.int64)


def drawn_with(explore: float, log_weight: float, log_others: float) -> float:
    """The log-probability that a place is drawn and shows an item, beside all others."""
    return math.log(explore) - float(np.logaddexp(0.0, log_others - log_weight))


def log_sum(terms: FloatArray) -> float:
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
    labels, n_labels = np.zeros(bound.n_items, np.int64), 1
    for rule, touched in bound.touched(regimes):
        if rule.groups.codes is None:
            for first in range(0, len(touched), _BITS):
                bits = np.zeros(bound.n_items, np.int64)
                part = touched[first : first + _BITS]
                for place, group in enumerate(part):
                    bits[rule.groups.items(group)] |= 1 << place
                labels, n_labels = _told_apart(labels, n_labels, bits, 1 << len(part))
        elif touched:
            numbers = np.zeros(rule.groups.n_groups + 1, np.int64)
            numbers[touched] = np.arange(1, len(touched) + 1)
            own = numbers[rule.groups.codes]
            labels, n_labels = _told_apart(labels, n_labels, own, len(touched) + 1)
    masks = [bound.shares[s][0] for s in sorted({s for each in regimes for s in each.owed})]
    masks += [bound.pin_sets[p] for p in sorted({r.pin_set for r in regimes if r.pin_set >= 0})]
    for mask in masks:
        labels, n_labels = _told_apart(labels, n_labels, mask.astype(np.int64), 2)
    one_of = np.zeros(n_labels, np.int64)
    one_of[labels] = np.arange(bound.n_items)
    return labels.astype(np.int32), n_labels, one_of


def _told_apart(
    labels: AnyArray, n_labels: int, own: AnyArray, n_own: int
) -> tuple[AnyArray, int]:
    """Labels of pairs of labels."""
    if n_own > _MOST_LABELS:
        own, n_own = _condensed(own)
    if n_labels * n_own > _MOST_LABELS:
        labels, n_labels = _condensed(labels)
    labels, n_labels = labels * n_own + own, n_labels * n_own
    return (labels, n_labels) if n_labels <= _MOST_LABELS else _condensed(labels)


def _condensed(labels: AnyArray) -> tuple[AnyArray, int]:
    """Labels from 0 on, without gaps; 0 stays."""
    others = np.flatnonzero(labels)
    own, places = np.unique(labels[others], return_inverse=True)
    found = np.zeros(len(labels), np.int64)
    found[others] = places + 1
    return found, len(own) + 1
