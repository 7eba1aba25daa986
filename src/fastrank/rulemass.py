"""Which items rules allow at the places of a list, and how much they weigh.

Known items count one by one; of all others sums are enough. Those come from the order that was
drawn, less what is not allowed there, as far as such a difference keeps its digits and its items
are few; else from a pass that sums up by label: items of one label are allowed at the same places.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import Float32Array, FloatArray, Mask, Positions
from fastrank.ask import BEST, FLAT_TAIL, Ask, Drawn, Found, Spec
from fastrank.features import Groups, Joint, told_apart
from fastrank.ruled import FEW, BoundRules, Regime, log_factor_rows

__all__ = ["Best", "Blocked", "Call", "Masses", "Source", "Total", "exploring", "log_sum"]

_ONE_BY_ONE = 256
_FEW_GROUPS = 32  # to look at one by one
_LARGE = 300.0  # the logarithm of a weight beside which a total is nothing
_CELLS = 1 << 20  # of a matrix
_TOLD = 1e-6  # of a total: sums by label of less may lack digits (kernels.h, "Labels")
_KEPT = 0.1  # of a total: where a difference leaves less, it is summed up instead


class Source(Protocol):
    """What draws without rules: `fastrank.ranker.Ranker`."""

    _n_items: int
    _packed: _native.PackedCatalog

    @property
    def has_codes(self) -> bool: ...

    def _draw(self, ask: Ask) -> Drawn: ...

    def _draw_labelled(self, ask: Ask, joint: Joint) -> tuple[Drawn, FloatArray, float]: ...

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
        self.n_scored = 0
        self._n_passed = 0  # items that passes went over
        self._kept: tuple[_native.GivenScores, Float32Array] | None = None

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

    def draw(self, ask: Ask) -> Drawn:
        """What the source draws, after a list's first order."""
        words, n_eligible = self.source._eligible(ask.excluded, ask.allowed)
        kept = None if ask.spec.kind == _native.UNIFORM else self._scores_for(n_eligible)
        if kept is None:
            drawn = self.source._draw(ask)
            self.n_scored += drawn[5]
            return drawn
        packed, scores = kept
        spec = ask.spec
        order = packed.rank(
            *(scores, ask.k, spec.kind, spec.temperature, spec.epsilon, ask.seed, None),
            *(words, n_eligible, ask.threads),
        )
        return (*order, n_eligible, None)

    def _scores_for(self, n_passed: int) -> tuple[_native.GivenScores, Float32Array] | None:
        """Scores of all items for a pass over so many; None where it shall go over the vectors.

        They are kept, O(n) memory, from the pass on with which half the items will have been gone
        over again. So all passes of a list together cost about two over vectors, and what passes
        over numbers cost.
        """
        self._n_passed += n_passed
        is_given = isinstance(self.source._packed, _native.GivenScores)
        if self._kept is None and not is_given and 2 * self._n_passed >= self.n_items:
            packed, ask = self.source._packed, self.ask
            scores = packed.scores(ask.query, ask.bias, self._function)
            self.n_scored += self.n_items
            self._kept = packed.over_scores(), scores
        return self._kept

    @property
    def _function(self) -> _native.Function | None:
        return None if self.ask.bound is None else self.ask.bound.function

    def scores_of(self, positions: Positions) -> Float32Array:
        """As rankings have them."""
        if self._kept is not None:
            return self._kept[1][positions]
        self.n_scored += len(positions)
        found: Float32Array = self.source._packed.scores_at(
            self.ask.query, positions, self.ask.bias, self._function
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
        self, among: Positions, labels: npt.NDArray[np.int32], n_labels: int
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Log-masses and numbers of some items, by label. One pass."""
        if self.is_flat:
            counts = np.bincount(labels[among], minlength=n_labels)
            with np.errstate(divide="ignore"):
                return np.log(counts) + self.tail, counts
        bits, count = _native.make_filter(self.n_items, among, None)
        kept = self._scores_for(count)
        if kept is None:
            ask, packed = self.ask, self.source._packed
            values, references, counts = packed.label_masses(
                *(ask.query, self.temperature, ask.bias, bits, labels, n_labels, self._function)
            )
            self.n_scored += count
        else:
            values, references, counts = kept[0].label_masses(
                kept[1], self.temperature, None, bits, labels, n_labels
            )
        with np.errstate(divide="ignore"):
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
        self._call = call
        self._ahead = ahead
        self._positions: Positions = np.empty(0, np.int64)
        self._scores: Float32Array = np.empty(0, np.float32)

    def of(
        self, regime: Regime, gone: Collection[int], reserved: Collection[int]
    ) -> tuple[int, float] | None:
        """The best that is allowed and not gone, and its score; None: nothing is.

        A factor of weights counts by what it is worth in scores: T times its logarithm.
        """
        best: tuple[int, float] | None = None
        highest = -math.inf
        low = 0
        while low < len(self._positions) or self._more():
            if self._scores[low] <= highest:
                break
            high = min(len(self._positions), max(_ONE_BY_ONE, 8 * low))
            among = self._one_by_one if high <= _ONE_BY_ONE else self._together
            at, value = among(low, high, regime, gone, reserved)
            if value > highest:
                best, highest = (int(self._positions[at]), float(self._scores[at])), value
            low = high
        return best

    def _one_by_one(
        self, low: int, high: int, regime: Regime, *without: Collection[int]
    ) -> tuple[int, float]:
        """The first of the best between two places, and what it is worth; -inf: none is allowed."""
        best, highest = low, -math.inf
        positions, scores = self._positions[low:high].tolist(), self._scores[low:high].tolist()
        for at, (position, score) in enumerate(zip(positions, scores, strict=True), low):
            if score <= highest:
                break
            if not any(position in each for each in without):
                log_factor = regime.log_factor(position)
                value = score + self._call.temperature * log_factor if log_factor else score
                if value > highest:
                    best, highest = at, value
        return best, highest

    def _together(
        self, low: int, high: int, regime: Regime, *without: Collection[int]
    ) -> tuple[int, float]:
        """Likewise."""
        positions = self._positions[low:high]
        log_factors = log_factor_rows([regime], positions)[0]
        is_gone = np.zeros(self._call.n_items, np.bool_)
        for each in without:
            is_gone[list(each)] = True
        log_factors[is_gone[positions]] = -math.inf
        values = self._scores[low:high].astype(np.float64)
        changed = log_factors != 0.0
        values[changed] += self._call.temperature * log_factors[changed]
        at = int(values.argmax())
        return low + at, float(values[at])

    def _more(self) -> bool:
        call = self._call
        if len(self._positions) >= call.n_eligible:
            return False
        k = min(max(self._ahead, 8 * len(self._positions)), call.n_eligible)
        self._positions, self._scores = call.draw(call.ask._replace(k=k, spec=BEST))[:2]
        return True


class Total(NamedTuple):
    """Of all eligible items but some: of an order that was drawn, say.

    Attributes
    ----------
    log_mass : float
    n_items : int
    without : collection of int
        Those that are not in it.
    joint : Joint or None
        Labels by which it is known, too.
    log_by_label : ndarray of float64, shape (n_labels,), or None
    """

    log_mass: float
    n_items: int
    without: Collection[int]
    joint: Joint | None = None
    log_by_label: FloatArray | None = None


class Blocked:
    """What a list may not show of its first order, where labels are the groups of one column.

    Parameters
    ----------
    joint : Joint
        With `label_of`.
    masses : ndarray of float64, shape (n_labels,)
        Of items that are not known, relative to `log_reference`.
    log_reference : float
    groups : Groups
    log_weights : dict of int to float
        Of those that are known, by position.
    """

    def __init__(
        self,
        joint: Joint,
        masses: FloatArray,
        log_reference: float,
        groups: Groups,
        log_weights: dict[int, float],
    ) -> None:
        assert joint.label_of is not None
        self._label_of = joint.label_of
        self._masses = masses
        self._log_reference = log_reference
        self._known: dict[int, list[tuple[int, float]]] = {}
        for position, log_weight in log_weights.items():
            for group in groups.of(position):
                self._known.setdefault(group, []).append((position, log_weight))

    def log_rest(self, blocked: Collection[int], shown: Collection[int], log_left: float) -> float:
        """The mass of all that is left, `log_left`, without some groups; NaN where those are many,
        or a difference would lose more than one bit."""
        if len(blocked) > _FEW_GROUPS:
            return math.nan
        share = 0.0
        scale = math.exp(min(self._log_reference - log_left, _LARGE))
        for group in blocked:
            label = int(self._label_of[group])
            if label >= 0:
                share += float(self._masses[label]) * scale
            for position, log_weight in self._known.get(group, ()):
                if position not in shown:
                    share += math.exp(log_weight - log_left)
        return log_left + math.log1p(-share) if share <= 0.5 else math.nan


class Masses:
    """What regimes allow at the places of one list, and with it the propensities of its items.

    Parameters
    ----------
    call : Call
    known : ndarray of int64, shape (m,)
        Items that count one by one: at least all that are shown or reserved.
    log_weights : ndarray of float64, shape (m,)
    shown : sequence of int
        Positions, place by place; -1: a place without an item.
    reserved : collection of int
        Positions of pinned items.
    total : Total, optional
        Its items are among the known.

    Attributes
    ----------
    loss : float
        By how much relative errors of the total are enlarged at most; 0: it plays no part.
    """

    def __init__(
        self,
        call: Call,
        known: Positions,
        log_weights: FloatArray,
        shown: Sequence[int],
        reserved: Collection[int],
        total: Total | None = None,
    ) -> None:
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
        self._at = {position: at for at, position in enumerate(known.tolist())}
        self._is_eligible = call.are_eligible(known)
        # Until which place each can be shown.
        self._until = np.where(self._is_eligible, _NEVER, -1)
        for place, position in enumerate(shown):
            if position >= 0:
                self._until[self._at[position]] = place
        self._until[[self._at[position] for position in reserved]] = -1
        self._regimes: dict[Regime, int] = {}
        self._log_factors = np.empty((0, 0))
        self._rest = np.empty(0)

    def add(self, regimes: Sequence[Regime]) -> None:
        """All regimes that will be asked for."""
        wanted = list(dict.fromkeys(regimes))
        self._regimes = {regime: row for row, regime in enumerate(wanted)}
        self._log_factors = log_factor_rows(wanted, self._known)
        self._rest = self._by_difference(wanted)
        others = np.flatnonzero(np.isnan(self._rest))
        if len(others):
            self._rest[others] = self._by_sums([wanted[at] for at in others])

    # ---- Of the items that are not known ----------------------------------------------------

    def _by_difference(self, regimes: list[Regime]) -> FloatArray:
        """The total without what is not allowed; NaN where that does not do."""
        total, call = self._total, self._call
        unknown = np.full(len(regimes), math.nan)
        if total is None:
            return unknown
        if total.n_items == 0:
            return np.full(len(regimes), -math.inf)
        joint = total.joint
        if joint is None and any(each.owed or each.pin_set >= 0 for each in regimes):
            return unknown
        told = _NOTHING if joint is None else joint.told
        parts = []
        size = 0
        for at, (rule, touched) in enumerate(call.bound.touched(regimes)):
            own = told.get(at, ())
            others = [] if own is None else [group for group in touched if group not in own]
            size += sum(rule.groups.size(group) for group in others)
            parts += [(rule.groups, group) for group in others]
        if size > call.n_items // (4 if call.is_flat else FEW) or total.log_mass == -math.inf:
            return unknown
        members = self._members(parts)
        if call.is_flat:
            return self._by_number(regimes, members, total)
        taken = np.zeros(len(regimes))
        if len(members):
            log_weights = call.log_weights(members, call.scores_of(members)) - total.log_mass
            weights = np.exp(np.minimum(log_weights, 1.0))
            for rows in _blocks(len(regimes), len(members)):
                factors = np.exp(log_factor_rows(regimes[rows], members))
                if joint is None:
                    taken[rows] = (1.0 - factors) @ weights
                else:
                    as_told = np.exp(log_factor_rows(regimes[rows], members, told))
                    taken[rows] = (as_told - factors) @ weights
        base = self._by_label(regimes, total)
        if base is None:
            return unknown
        left = np.maximum(base - taken, 0.0)
        # Beside the known items that may come at any place the difference must keep its digits.
        known = np.exp(self._log_factors) @ self._weights(self._until == _NEVER)
        is_told = left + known >= (_KEPT if len(members) else _TOLD)
        if is_told.any():
            self.loss = 1.0 / float((left + known)[is_told].min()) if joint is None else 1.0
        with np.errstate(divide="ignore"):
            return np.where(is_told, np.log(left) + total.log_mass, math.nan)

    def _members(self, parts: list[tuple[Groups, int]]) -> Positions:
        """Of some groups the items that are eligible and not known."""
        if not parts:
            return _NOBODY
        items = np.concatenate([groups.items(group) for groups, group in parts])
        members = np.unique(items).astype(np.int64)
        return members[self._call.are_eligible(members) & ~np.isin(members, self._known)]

    def _by_label(self, regimes: list[Regime], total: Total) -> FloatArray | None:
        """Of the total, in its units, what is allowed as far as its labels tell; known items are
        no part of it."""
        is_in = self._is_in(total)
        is_other = np.flatnonzero(is_in)
        own = self._weights(is_in)[is_other]
        if total.joint is None or total.log_by_label is None:
            return np.full(len(regimes), 1.0 - float(own.sum()))
        weights = np.exp(total.log_by_label - total.log_mass)
        if len(own):
            of_label = total.joint.labels[self._known[is_other]]
            taken = np.bincount(of_label, own, total.joint.n_labels)
            # Where a difference would lose digits, what is left is summed up.
            lost = np.flatnonzero(taken > weights / 2.0)
            weights = weights - taken
            if len(lost):
                left = self._left_of(total.joint, lost)
                if left is None:
                    return None
                weights[lost] = left
        log_factors = log_factor_rows(regimes, total.joint.one_of, total.joint.told)
        found: FloatArray = np.exp(log_factors) @ weights
        return found

    def _left_of(self, joint: Joint, labels: Positions) -> FloatArray | None:
        """Of some labels, the items that are not known, one by one; None where they are many."""
        call = self._call
        own = joint.labels[: call.n_items]
        positions = np.flatnonzero(np.isin(own, labels))
        if len(positions) > call.n_items // FEW:
            return None
        positions = positions[call.are_eligible(positions) & ~np.isin(positions, self._known)]
        assert self._total is not None
        log_weights = call.log_weights(positions, call.scores_of(positions))
        weights = np.exp(np.minimum(log_weights - self._total.log_mass, 1.0))
        found = np.zeros(joint.n_labels)
        np.add.at(found, own[positions], weights)
        return found[labels]

    def _by_number(self, regimes: list[Regime], members: Positions, total: Total) -> FloatArray:
        """Where items weigh the same."""
        blocked = np.zeros(len(regimes), np.int64)
        for rows in _blocks(len(regimes), len(members)):
            blocked[rows] = (log_factor_rows(regimes[rows], members) == -math.inf).sum(axis=1)
        left = total.n_items - int(self._is_in(total).sum()) - blocked
        with np.errstate(divide="ignore"):
            found: FloatArray = np.log(left) + self._call.tail
        return found

    def _is_in(self, total: Total) -> Mask:
        """Which known items are in a total."""
        found = np.array([p not in total.without for p in self._known.tolist()], np.bool_)
        return found & self._is_eligible

    def _weights(self, among: Mask) -> FloatArray:
        """Of known items, in units of the total; 0 of those that are not among them."""
        assert self._total is not None
        log_weights = np.where(among, self._log_weights - self._total.log_mass, -math.inf)
        found: FloatArray = np.exp(np.minimum(log_weights, _LARGE))
        return found

    def _by_sums(self, regimes: list[Regime]) -> FloatArray:
        """Of what one of them allows: item by item where those are few, else label by label."""
        call = self._call
        among = call.eligible & _allowed_by(regimes)
        among[self._known] = False
        positions = np.flatnonzero(among)
        rest = np.full(len(regimes), -math.inf)
        if not len(positions):
            return rest
        if len(positions) <= call.n_items // FEW:
            scores = None if call.is_flat else call.scores_of(positions)
            log_masses = call.log_weights(positions, scores)
        else:
            labels, n_labels, one_of = _labelled(call.bound, regimes)
            log_masses, counts = call.by_label(positions, labels, n_labels)
            filled = np.flatnonzero(counts)
            log_masses, positions = log_masses[filled], one_of[filled]
        for rows in _blocks(len(regimes), len(positions)):
            log_factors = log_factor_rows(regimes[rows], positions)
            rest[rows] = log_sums(log_masses + log_factors)
        return rest

    # ---- Of places --------------------------------------------------------------------------

    def log_masses(self, regimes: Sequence[Regime], places: Sequence[int]) -> FloatArray:
        """Of all that a regime allows at a place, for each of some; -inf where nothing is."""
        found = np.empty(len(regimes))
        numbers = np.array([self._regimes[regime] for regime in regimes], np.int64)
        at = np.array(places, np.int64)
        for rows in _blocks(len(regimes), len(self._known)):
            log_weights = self._log_weights + self._log_factors[numbers[rows]]
            log_weights[self._until < at[rows, None]] = -math.inf
            found[rows] = np.logaddexp(log_sums(log_weights), self._rest[numbers[rows]])
        return found

    def log_propensity(
        self,
        position: int,
        place: int,
        explore: float,
        regime: Regime,
        log_mass: float,
        best: int | None,
    ) -> float:
        """Of a known item; `best` is what stands at the place where nothing is drawn."""
        at = self._at[position]
        log_factor = float(self._log_factors[self._regimes[regime], at])
        if self._until[at] < place or log_factor == -math.inf:
            return -math.inf
        found = -math.inf
        if explore > 0.0:
            drawn = min(0.0, float(self._log_weights[at]) + log_factor - log_mass)
            found = math.log(explore) + drawn
        if explore < 1.0 and position == best:
            found = float(np.logaddexp(found, math.log1p(-explore)))
        return min(found, 0.0)


_NEVER = 1 << 62  # a place that no list has
_NOBODY = np.empty(0, np.int64)
_NOTHING: Mapping[int, Collection[int] | None] = {}


def _blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Rows, as many at a time as make no large matrix."""
    step = max(1, _CELLS // max(1, n_columns))
    return (slice(first, first + step) for first in range(0, n_rows, step))


def log_sums(terms: FloatArray) -> FloatArray:
    """The logarithms of sums, of each row's terms'."""
    if not terms.shape[1]:
        return np.full(len(terms), -math.inf)
    top = terms.max(axis=1)
    top[top == -math.inf] = 0.0
    with np.errstate(divide="ignore"):
        found: FloatArray = np.log(np.exp(terms - top[:, None]).sum(axis=1)) + top
    return found


def log_sum(terms: FloatArray) -> float:
    """The logarithm of a sum, of its terms'."""
    if not len(terms):
        return -math.inf
    top = float(terms.max())
    if top == -math.inf:
        return top
    return top + math.log(float(np.exp(terms - top).sum()))


def _allowed_by(regimes: Sequence[Regime]) -> Mask:
    """What may be allowed by one of some regimes (n,). O(n)."""
    bound = regimes[0].bound
    found = [bound.pin_sets[each] for each in {each.pin_set for each in regimes} if each >= 0]
    others = [each for each in regimes if each.pin_set < 0]
    if others:
        blocked = others[0].blocked
        for other in others[1:]:
            blocked = tuple(a & b for a, b in zip(blocked, other.blocked, strict=True))
        owed = {share for each in others for share in each.owed}
        if not all(each.owed for each in others):
            owed = set()
        found.append(others[0]._replace(blocked=blocked, owed=tuple(sorted(owed))).allowed())
    allowed: Mask = np.logical_or.reduce(found)
    return allowed


def _labelled(
    bound: BoundRules, regimes: Sequence[Regime]
) -> tuple[npt.NDArray[np.int32], int, Positions]:
    """Labels (n,) of items that no regime tells apart, how many, and an item of each."""
    labels, n_labels = np.zeros(bound.n_items, np.int64), 1
    for rule, touched in bound.touched(regimes):
        if touched:
            labels, n_labels = rule.groups.told_apart(labels, n_labels, touched)
    masks = [bound.shares[s][0] for s in sorted({s for each in regimes for s in each.owed})]
    masks += [bound.pin_sets[p] for p in sorted({r.pin_set for r in regimes if r.pin_set >= 0})]
    for mask in masks:
        labels, n_labels = told_apart(labels, n_labels, mask.astype(np.int64), 2)
    one_of = np.zeros(n_labels, np.int64)
    one_of[labels] = np.arange(bound.n_items)
    return labels.astype(np.int32), n_labels, one_of
