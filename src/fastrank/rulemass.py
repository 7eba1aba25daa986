"""Compute the masses of the items that rules allow at the places of a list.

Known items count one by one; for all others, sums are enough. If blocked items are few and the
difference keeps its digits, a sum is the mass of the drawn order minus that of the blocked items.
Otherwise a pass sums masses by label, where items of a label are allowed at the same places.
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
_FEW_GROUPS = 32  # blocked groups that are summed one by one
_LARGE = 300.0  # log-weights are clipped here: a total is then negligible
_CELLS = 1 << 20  # cells of a matrix computed at a time
_TOLD = 1e-6  # of a total: smaller sums by label may lack digits (kernels.h, "Labels")
_KEPT = 0.1  # of a total: if a difference leaves less, the rest is summed instead


class Source(Protocol):
    """A source that draws without rules: `fastrank.ranker.Ranker`."""

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
    """A call under rules: the eligible items, the law, and the items' weights.

    The weight of an item is exp(score / T), 1 if draws are uniform, or that of a flat tail.
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
        self.tail = 0.0  # log-weight of items whose score does not count
        if self.spec.kind == FLAT_TAIL and self.n_eligible:
            self._find_candidates()
        self.is_flat = self.is_uniform or self.found is not None
        self.n_scored = 0
        self._n_passed = 0  # items read by passes so far
        self._kept: tuple[_native.GivenScores, Float32Array] | None = None

    def flat_total(self) -> Total | None:
        """Return the total of eligible items with equal weights; None if there are none."""
        if not self.is_flat or not self.n_eligible:
            return None
        without = set() if self.found is None else set(self.found.positions.tolist())
        count = self.n_eligible - len(without)
        return Total(self.tail + math.log(count) if count else -math.inf, count, without)

    def explore_at(self, place: int) -> float:
        """Return the probability that a place is drawn instead of showing the best item."""
        return 0.0 if place < self.head else self.explore

    @cached_property
    def eligible(self) -> Mask:
        """Mask (n,) of eligible items; callers must not change it."""
        if self.words is None:
            return np.ones(self.n_items, np.bool_)
        bits = np.unpackbits(self.words.view(np.uint8), bitorder="little")
        return bits[: self.n_items].view(np.bool_)

    def is_eligible(self, position: int) -> bool:
        """Say whether an item is eligible."""
        if self.words is None:
            return True
        return bool(int(self.words[position // _native.LANES]) >> position % _native.LANES & 1)

    def are_eligible(self, positions: Positions) -> Mask:
        """Return which of some items are eligible."""
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
        """Draw from the source, after a list's first order."""
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
        """Return scores of all items, for a pass over `n_passed`; None to read vectors instead.

        Scores are stored, in O(n) memory, once later passes have read half as many items as there
        are. All passes of a list together thus cost about two passes over vectors, plus passes over
        scores.
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
        """Return scores of some items, the same as in rankings."""
        if self._kept is not None:
            return self._kept[1][positions]
        self.n_scored += len(positions)
        found: Float32Array = self.source._packed.scores_at(
            self.ask.query, positions, self.ask.bias, self._function
        )
        return found

    def log_weights(self, positions: Positions, scores: Float32Array | None) -> FloatArray:
        """Return the log-weights of items with these scores, None if scores do not count."""
        if self.is_uniform or scores is None:
            return np.full(len(positions), self.tail)
        found: FloatArray = scores.astype(np.float64) / self.temperature
        if self.found is not None:
            found = np.where(self.is_candidate[positions], found, self.tail)
        return found

    def by_label(
        self, among: Positions, labels: npt.NDArray[np.int32], n_labels: int
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Sum some items by label, in one pass: return log-masses and numbers of items."""
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
    """Return the spec of the draw at a place that does not show the best item."""
    if spec.kind in (_native.DETERMINISTIC, _native.EPSILON_GREEDY):
        return spec._replace(kind=_native.UNIFORM, head=0)
    if spec.kind == _native.SEQUENTIAL:  # it would take a pass for each item of an order
        return spec._replace(kind=_native.GUMBEL, head=0)
    return spec._replace(head=0)


class Best:
    """The best items of a call, found on demand: `ahead` of them at first."""

    def __init__(self, call: Call, ahead: int) -> None:
        self._call = call
        self._ahead = ahead
        self._positions: Positions = np.empty(0, np.int64)
        self._scores: Float32Array = np.empty(0, np.float32)

    def of(
        self, regime: Regime, gone: Collection[int], reserved: Collection[int]
    ) -> tuple[int, float] | None:
        """Return the best allowed item that is not gone, and its score; None if there is none.

        A weight factor counts as a change of the score: T times its logarithm.
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
        """Return the best item between two places and its value; -inf if none is allowed."""
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
        """Do the same with arrays."""
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
    """The mass of all eligible items except some, such as those behind a drawn order.

    Attributes
    ----------
    log_mass : float
    n_items : int
    without : collection of int
        Positions of the items that it does not include.
    joint : Joint or None
        Labels by which masses are known, too.
    log_by_label : ndarray of float64, shape (n_labels,), or None
        Log-masses of the labels.
    """

    log_mass: float
    n_items: int
    without: Collection[int]
    joint: Joint | None = None
    log_by_label: FloatArray | None = None


class Blocked:
    """Masses of blocked groups of a list's first order, if labels are the groups of one column.

    Parameters
    ----------
    joint : Joint
        With `label_of`.
    masses : ndarray of float64, shape (n_labels,)
        Masses of unknown items by label, relative to `log_reference`.
    log_reference : float
    groups : Groups
    log_weights : dict of int to float
        Log-weights of known items, by position.
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
        """Return the log-mass of the items left, `log_left`, without those of blocked groups.

        NaN if there are many groups, or the difference would lose more than one bit.
        """
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
    """Masses of the items that regimes allow in one list, and the propensities of its items.

    Parameters
    ----------
    call : Call
    known : ndarray of int64, shape (m,)
        Items that count one by one: at least all that are shown or reserved.
    log_weights : ndarray of float64, shape (m,)
        Log-weights of these.
    shown : sequence of int
        Positions, place by place; -1 for a place without an item.
    reserved : collection of int
        Positions of pinned items.
    total : Total, optional
        A known mass; `Total.without` must be among the known items.

    Attributes
    ----------
    loss : float
        The largest amplification of relative errors of the total; 0 if it is not used.
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
        # The last place at which each item can be shown.
        self._until = np.where(self._is_eligible, _NEVER, -1)
        for place, position in enumerate(shown):
            if position >= 0:
                self._until[self._at[position]] = place
        self._until[[self._at[position] for position in reserved]] = -1
        self._regimes: dict[Regime, int] = {}
        self._log_factors = np.empty((0, 0))
        self._rest = np.empty(0)

    def add(self, regimes: Sequence[Regime]) -> None:
        """Prepare all regimes that `log_masses` and `log_propensity` will be called with."""
        wanted = list(dict.fromkeys(regimes))
        self._regimes = {regime: row for row, regime in enumerate(wanted)}
        self._log_factors = log_factor_rows(wanted, self._known)
        self._rest = self._by_difference(wanted)
        others = np.flatnonzero(np.isnan(self._rest))
        if len(others):
            self._rest[others] = self._by_sums([wanted[at] for at in others])

    # ---- Unknown items ----------------------------------------------------------------------

    def _by_difference(self, regimes: list[Regime]) -> FloatArray:
        """Subtract blocked items from the total; NaN if that is impossible or inaccurate."""
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
        # The difference must keep its digits, compared with known items that may come at any place.
        known = np.exp(self._log_factors) @ self._weights(self._until == _NEVER)
        is_told = left + known >= (_KEPT if len(members) else _TOLD)
        if is_told.any():
            self.loss = 1.0 / float((left + known)[is_told].min()) if joint is None else 1.0
        with np.errstate(divide="ignore"):
            return np.where(is_told, np.log(left) + total.log_mass, math.nan)

    def _members(self, parts: list[tuple[Groups, int]]) -> Positions:
        """Return the unknown, eligible items of some groups."""
        if not parts:
            return _NOBODY
        items = np.concatenate([groups.items(group) for groups, group in parts])
        members = np.unique(items).astype(np.int64)
        return members[self._call.are_eligible(members) & ~np.isin(members, self._known)]

    def _by_label(self, regimes: list[Regime], total: Total) -> FloatArray | None:
        """Return the unknown mass that regimes allow by the total's labels, relative to the total.

        None if too many items would have to be summed.
        """
        is_in = self._is_in(total)
        is_other = np.flatnonzero(is_in)
        own = self._weights(is_in)[is_other]
        if total.joint is None or total.log_by_label is None:
            return np.full(len(regimes), 1.0 - float(own.sum()))
        weights = np.exp(total.log_by_label - total.log_mass)
        if len(own):
            of_label = total.joint.labels[self._known[is_other]]
            taken = np.bincount(of_label, own, total.joint.n_labels)
            # If a difference would lose digits, the items left are summed instead.
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
        """Sum the unknown items of some labels one by one; None if they are many."""
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
        """Return log-masses by counting, for items of equal weight."""
        blocked = np.zeros(len(regimes), np.int64)
        for rows in _blocks(len(regimes), len(members)):
            blocked[rows] = (log_factor_rows(regimes[rows], members) == -math.inf).sum(axis=1)
        left = total.n_items - int(self._is_in(total).sum()) - blocked
        with np.errstate(divide="ignore"):
            found: FloatArray = np.log(left) + self._call.tail
        return found

    def _is_in(self, total: Total) -> Mask:
        """Return which known items are in a total."""
        found = np.array([p not in total.without for p in self._known.tolist()], np.bool_)
        return found & self._is_eligible

    def _weights(self, among: Mask) -> FloatArray:
        """Return weights of known items relative to the total; 0 for those not in `among`."""
        assert self._total is not None
        log_weights = np.where(among, self._log_weights - self._total.log_mass, -math.inf)
        found: FloatArray = np.exp(np.minimum(log_weights, _LARGE))
        return found

    def _by_sums(self, regimes: list[Regime]) -> FloatArray:
        """Sum unknown items that any regime allows: one by one if they are few, else by label."""
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

    # ---- Places -----------------------------------------------------------------------------

    def log_masses(self, regimes: Sequence[Regime], places: Sequence[int]) -> FloatArray:
        """Return log-masses of allowed items for pairs of regime and place; -inf if none is."""
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
        """Return the log-propensity of a known item; `best` is shown if the place is not drawn."""
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


_NEVER = 1 << 62  # a place beyond all lists
_NOBODY = np.empty(0, np.int64)
_NOTHING: Mapping[int, Collection[int] | None] = {}


def _blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield blocks of rows that keep matrices small."""
    step = max(1, _CELLS // max(1, n_columns))
    return (slice(first, first + step) for first in range(0, n_rows, step))


def log_sums(terms: FloatArray) -> FloatArray:
    """Compute, for each row, the logarithm of the sum of exp(terms)."""
    if not terms.shape[1]:
        return np.full(len(terms), -math.inf)
    top = terms.max(axis=1)
    top[top == -math.inf] = 0.0
    with np.errstate(divide="ignore"):
        found: FloatArray = np.log(np.exp(terms - top[:, None]).sum(axis=1)) + top
    return found


def log_sum(terms: FloatArray) -> float:
    """Compute the logarithm of the sum of exp(terms)."""
    if not len(terms):
        return -math.inf
    top = float(terms.max())
    if top == -math.inf:
        return top
    return top + math.log(float(np.exp(terms - top).sum()))


def _allowed_by(regimes: Sequence[Regime]) -> Mask:
    """Return a mask (n,) of items that any of some regimes may allow. O(n)."""
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
    """Label items (n,) so that regimes treat items of a label alike.

    Returns labels, their number, and an item of each.
    """
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
