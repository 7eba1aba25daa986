"""Bind rules to a catalog's columns, and derive what they allow at each place of a list.

Items are positions, and places count from 0. A `Regime` gives the factor that multiplies an item's
weight at one place: 0 if the item is not allowed, otherwise 1, or less with decays.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrank.arraytypes import FloatArray, Mask, Positions
from fastrank.expressions import Params
from fastrank.features import Features, Groups, Joint, told_apart
from fastrank.inputs import shown
from fastrank.lru import LRU
from fastrank.policies import Policy, law_of
from fastrank.rules import MOST_ADDED, AppliedRules, Rules

__all__ = [
    *("FEW", "LEVELS", "BoundRules", "Regime", "State", "bind_rules", "check_columns"),
    "log_factor_rows",
]

# Rules that "relax" drops at each level: none; shares and sets of pins; windows; caps.
LEVELS = 4
FEW = 320  # up to n / FEW items are scored one by one, which costs a fifth of a pass
_FEW_BESIDE = 500  # sums by label cost as much as scoring n / _FEW_BESIDE items
_LONGEST_WAIT = 2000  # an order waits for shares for at most n / _LONGEST_WAIT items
_LIKELY = 0.4
_MANY = 64  # items from which on arrays are faster than a loop
_MOST_JOINTS = 2  # cached per rules, for lists of different lengths
_NO_SHARES, _NO_WINDOWS, _NO_CAPS = 1, 2, 3


class Rule(NamedTuple):
    """The rules about one column."""

    name: str
    groups: Groups
    cap: int | None
    window: tuple[int, int] | None
    decay: float | None


class BoundRules:
    """Rules bound to a catalog's columns and a call's parameters.

    Attributes
    ----------
    applied : AppliedRules
    key : str
        Identifies the rules, the parameters and the columns.
    features_version : str or None
        None if the rules use no column.
    allowed, excluded : ndarray of int64 or None
        The items that `where` keeps, or those that it removes, whichever are fewer.
    columns : list of Rule
    shares : list of (mask, int)
        The items of each share, and its number of places.
    pins, pin_sets : dict from a place to a position, and to a mask
    rare_sets : set of int
        The places of `pin_sets` with few items.
    """

    def __init__(
        self,
        rules: Rules,
        params: Params,
        features: Features | None,
        n_items: int,
        find: Callable[[str, list[Any]], Positions],
    ) -> None:
        self.applied = AppliedRules(rules, dict(params))
        self.n_items = n_items
        self._features = features
        self._params = params
        self.columns = list(self._columns(rules))
        self._masks: dict[str, Mask] = {}
        self._joints = LRU[tuple[int, ...], tuple[Joint | None]](entries=_MOST_JOINTS)
        self.allowed: Positions | None = None
        self.excluded: Positions | None = None
        self.where: Mask | None = None
        if rules.where is not None:
            self.where = self._mask(rules, rules.where)
            kept = int(self.where.sum())
            if not kept:
                raise ValueError(f"where: {shown(rules.where)} holds for no item")
            if 2 * kept <= n_items:
                self.allowed = np.flatnonzero(self.where)
            else:
                self.excluded = np.flatnonzero(~self.where)
        self.shares = [(self._mask(rules, text), q) for text, q in rules.at_least.items()]
        self._check_shares(list(rules.at_least))
        # For each share and column: the number of the share's items in each of their groups.
        self._sizes = [
            [
                rule.groups.sizes_among(mask if self.where is None else mask & self.where)
                if rule.cap is not None or rule.window is not None
                else None
                for rule in self.columns
            ]
            for mask, _ in self.shares
        ]
        # Expected arrivals, in random order, until the shares are filled; limited to what costs no
        # more than a part of a pass.
        waited = sum(q * n_items // max(1, int(mask.sum())) for mask, q in self.shares)
        self._waited = min(waited, n_items // _LONGEST_WAIT)
        self.pins = self._pins(rules, find)
        self.pin_sets = {
            place - 1: self._mask(rules, text) for place, text in rules.pin_where.items()
        }
        self._check_sets(rules)
        # Places of pin sets without an item of any share.
        of_shares = np.zeros(n_items, np.bool_)
        for mask, _ in self.shares:
            of_shares |= mask
        self._useless = [
            place for place, mask in self.pin_sets.items() if not (mask & of_shares).any()
        ]
        # Sets so small that a separate draw is cheaper than waiting for one of their items.
        self.rare_sets = {
            place for place, mask in self.pin_sets.items() if 16 * int(mask.sum()) < n_items
        }
        self._odds = self._sum(rules, {text: math.log(b) for text, b in rules.boost.items()})
        self._added = self._sum(rules, rules.boost_score)
        used = {each.name for each in self.columns}
        used |= {name for name in rules.names if features is not None and features.kind(name)}
        self.features_version = features.version if features is not None and used else None
        self.key = json.dumps([rules.id, sorted(params.items()), self.features_version])
        # Whether the law of a place depends on more than the set of items left.
        self.is_walked = rules.is_sequential

    def _columns(self, rules: Rules) -> Iterator[Rule]:
        check_columns(rules, self._features)
        caps, windows, decays = rules.cap, rules.window, rules.decay
        for name in sorted({*caps, *windows, *decays}):
            assert self._features is not None
            groups = self._features.groups(name)
            yield Rule(name, groups, caps.get(name), windows.get(name), decays.get(name))

    def _mask(self, rules: Rules, text: str) -> Mask:
        if text not in self._masks:
            expression = rules.expression(text)
            own = {name: value for name, value in self._params.items() if name in expression.names}
            self._masks[text] = expression.holds(self._features, own, self.n_items)
        return self._masks[text]

    def _check_shares(self, texts: list[str]) -> None:
        taken = np.zeros(self.n_items, np.int16)
        for place, (mask, _) in enumerate(self.shares, 1):
            both = np.flatnonzero(mask & (taken > 0))
            if both.size:
                other = texts[int(taken[both[0]]) - 1]
                raise ValueError(
                    f"at_least: expected sets without common items, but an item is in"
                    f" {shown(other)} and in {shown(texts[place - 1])}"
                )
            taken[mask] = place

    def _check_sets(self, rules: Rules) -> None:
        """Refuse sets that have too few items for any list, unless rules are to be relaxed then."""
        if rules.on_empty == "relax":
            return
        filtered = "" if self.where is None else " that where leaves"
        for (mask, q), text in zip(self.shares, rules.at_least, strict=True):
            count = int((mask if self.where is None else mask & self.where).sum())
            if count < q:
                raise ValueError(
                    f"at_least[{shown(text)}]: got {q} places for {count} items{filtered}"
                )
        for place, text in rules.pin_where.items():
            mask = self.pin_sets[place - 1]
            if not (mask if self.where is None else mask & self.where).any():
                raise ValueError(f"pin_where[{place}]: {shown(text)} holds for no item{filtered}")

    def _pins(self, rules: Rules, find: Callable[[str, list[Any]], Positions]) -> dict[int, int]:
        pins = rules.pin
        if not pins:
            return {}
        positions = [int(find(f"pin[{place}]", [item])[0]) for place, item in pins.items()]
        for (place, item), position in zip(pins.items(), positions, strict=True):
            if position < 0:
                raise ValueError(f"pin[{place}]: {shown(item)} is not in the catalog")
        if len(set(positions)) < len(positions):
            raise ValueError(f"pin: got an item at two places: {shown(pins)}")
        return {place - 1: p for place, p in zip(pins, positions, strict=True)}

    def _sum(self, rules: Rules, values: dict[str, float]) -> FloatArray | None:
        """Sum, for each item, the values of the expressions that hold."""
        if not values:
            return None
        found = np.zeros(self.n_items)
        for text, value in values.items():
            found[self._mask(rules, text)] += value
        return found

    # ---- With a policy ----------------------------------------------------------------------

    def check(self, policy: Policy, k: int) -> None:
        """Refuse policies whose law does not support these rules, and shares beyond k."""
        rules = self.applied.rules
        if policy.law_name == "flat_tail":
            for name in ("boost", "boost_score", "at_least", "pin_where", "decay"):
                if getattr(rules, name):
                    raise ValueError(
                        f"rules: FlatTail does not support {name}, got"
                        f" {shown(getattr(rules, name))}"
                    )
        else:
            law = law_of(policy)
            if not (law.explore == 1.0 and law.temperature < math.inf):
                for name in ("boost", "decay"):
                    if getattr(rules, name):
                        raise ValueError(
                            f"rules: {name}: got {shown(getattr(rules, name))}, which changes"
                            f" weights of a softmax, and {shown(policy)} has none; boost_score adds"
                            " to scores"
                        )
        owed = sum(q for _, q in self.shares)
        if owed > k:
            raise ValueError(f"rules: at_least: got shares of {owed} places, more than k = {k}")
        if rules.on_empty == "relax":
            return
        self._check_room(k)
        if self.shares and (self.pins or self.pin_sets):
            self._check_free(k)

    def _check_room(self, k: int) -> None:
        """Refuse shares of more places than caps or windows leave for the groups of the set."""
        texts = self.applied.rules.at_least
        held = sum(place < k for place in self.pin_sets)
        pinned = [p for place, p in self.pins.items() if place < k]
        for (mask, q), text, by_column in zip(self.shares, texts, self._sizes, strict=True):
            owed = q - held - int(mask[pinned].sum())  # pins overrule caps and windows
            for rule, sizes in zip(self.columns, by_column, strict=True):
                if sizes is None:
                    continue
                rooms = {}
                if rule.cap is not None:
                    rooms["cap"] = int(np.minimum(sizes, rule.cap).sum())
                if rule.window is not None:
                    most, row = rule.window
                    most = int(np.minimum(sizes, most).sum())
                    rooms["window"] = most * (k // row) + min(most, k % row)
                for kind, room in rooms.items():
                    if owed > room:
                        raise ValueError(
                            f"rules: at_least[{shown(text)}]: needs {owed} places, but {kind}"
                            f"[{shown(rule.name)}] leaves {room} of {k}"
                        )

    def _check_free(self, k: int) -> None:
        """Refuse shares that need more places than pins leave."""
        pinned = [p for place, p in self.pins.items() if place < k]
        owed = sum(max(0, q - int(mask[pinned].sum())) for mask, q in self.shares)
        free = k - len(pinned) - sum(place < k for place in self._useless)
        if owed > free:
            raise ValueError(
                f"rules: at_least: needs {owed} places besides pinned items, but pins leave {free}"
                f" of {k}"
            )

    def bias(self, temperature: float) -> FloatArray | None:
        """Return what boosts add to the scores (n,), by position; None if there are none."""
        found = self._added
        if self._odds is not None:
            odds = temperature * self._odds
            found = odds if found is None else odds + found
        if found is not None and not np.abs(found).max() <= MOST_ADDED:
            worst = found[int(np.abs(found).argmax())]
            raise ValueError(
                f"rules: boost, boost_score: got {worst:g} to add to a score; expected at most"
                f" {MOST_ADDED:g}"
            )
        return found

    def check_pins(
        self, is_eligible: Callable[[int], bool], after: Sequence[int], ids: Any
    ) -> None:
        """Refuse pinned items that a filter removes, except items of earlier pages."""
        for place, position in self.pins.items():
            if not is_eligible(position) and position not in after:
                raise ValueError(
                    f"rules: pin[{place + 1}]: {shown(ids[position].item())} is not eligible: a"
                    " filter removes it"
                )

    def arrivals(self, k: int) -> int:
        """Estimate how many arrivals of an order fill k places.

        The estimate assumes equal weights in all groups, and independent columns.
        """
        accepted = 1.0  # a lower bound of the share of items allowed at the last place
        for rule in self.columns:
            groups = 0 if rule.cap is None else max(k - 1, 0) // rule.cap
            if rule.window is not None:
                most, row = rule.window
                groups = max(groups, (min(k, row) - 1) // most)
            if groups:
                accepted *= max(0.0, 1.0 - rule.groups.largest(groups) / self.n_items)
            if rule.decay is not None:
                accepted *= 0.5
        accepted = max(accepted, 1.0 / self.n_items)
        return max(math.ceil(k / accepted), self._waited)

    def returns(self, k: int) -> bool:
        """Say whether items that windows block at a place may be allowed again within k places."""
        windows = [rule.window for rule in self.columns if rule.window is not None]
        return any(row < k for _, row in windows)

    def joint(self, k: int) -> Joint | None:
        """Return labels by which a pass sums masses.

        None if blocked items are few in any case, or have too many groups.
        """
        many = self._many(k)
        kept = self._joints.get(many)
        if kept is None:
            # If there are too many labels, drop the columns that block fewest items: these items
            # are then scored one by one.
            tried = (self._joint(many[:most]) for most in range(len(many), -1, -1))
            kept = (next((each for each in tried if each is not None), None),)
            self._joints.put(many, kept)
        return kept[0]

    def wants_masses(self, k: int) -> bool:
        """Say whether a list of k places will likely need masses of groups with many items.

        A pass that also sums masses is then cheaper than a table and a pass for the masses.
        """
        if self.joint(k) is None:
            return False
        if self.shares or self.pin_sets:
            return True
        full = 0.0  # expected number of groups that are full before the last place
        for rule in self.columns:
            if rule.cap is None or rule.window or rule.decay:
                return True
            shares = rule.groups.sizes() / self.n_items
            full += math.comb(max(k - 1, 0), rule.cap) * float((shares**rule.cap).sum())
        return full > _LIKELY

    def _many(self, k: int) -> tuple[int, ...]:
        """Return the columns that may block many items in a list of k places; most items first."""
        found = []
        for at, rule in enumerate(self.columns):
            groups = k if rule.cap is None or rule.window or rule.decay else -(-k // rule.cap)
            n_items = rule.groups.largest(groups)
            if n_items > self.n_items // _FEW_BESIDE:
                found.append((-n_items, at))
        return tuple(at for _, at in sorted(found))

    def _joint(self, many: Sequence[int]) -> Joint | None:
        masks = [mask for mask, _ in self.shares]
        masks += [mask for place, mask in self.pin_sets.items() if place not in self.rare_sets]
        if self._features is None or not (many or masks):
            return None
        # If there are too many groups, label only the large ones: the others have few items.
        for least in (1, self.n_items // (10 * FEW)):
            names = tuple(self.columns[at].name for at in many)
            labels, n_labels = self._features.joint(names, least)
            for mask in masks:
                labels, n_labels = told_apart(labels, n_labels, mask.astype(np.int64), 2)
            found = Joint.of(labels, n_labels)
            if found is not None:
                told = {
                    at: None if least == 1 else frozenset(self.columns[at].groups.of_size(least))
                    for at in many
                }
                label_of = None
                if least == 1 and len(self.columns) == 1 and not masks:
                    label_of = self.columns[0].groups.labels_of(found.one_of)
                return found._replace(told=told, label_of=label_of)
        return None

    def touched(self, regimes: Sequence[Regime]) -> list[tuple[Rule, list[int]]]:
        """Return, for each column, the groups that some regime blocks or decays."""
        found = []
        for at, rule in enumerate(self.columns):
            groups = {group for each in regimes for group, _ in each.decayed[at]}
            groups = groups.union(*(each.blocked[at] for each in regimes))
            found.append((rule, sorted(groups)))
        return found

    @property
    def nbytes(self) -> int:
        """Approximate size, without what all rules of a catalog share."""
        arrays = [self.allowed, self.excluded, self.where, self._odds, self._added]
        masks = [*self._masks.values()]
        joints = _MOST_JOINTS * 2 * self.n_items if self.is_walked else 0
        return 4096 + joints + sum(each.nbytes for each in [*arrays, *masks] if each is not None)


def check_columns(rules: Rules, features: Features | None) -> None:
    """Refuse caps, windows and decays of columns that do not exist."""
    for kind in ("cap", "window", "decay"):
        for name in getattr(rules, kind):
            if features is None or features.kind(name) is None:
                known = {} if features is None else features.columns
                have = ", ".join(sorted(known)) or "none"
                raise ValueError(f"{kind}: there is no column {shown(name)} (there are {have})")


def bind_rules(
    rules: Rules,
    params: Params,
    features: Features | None,
    n_items: int,
    find: Callable[[str, list[Any]], Positions],
) -> BoundRules:
    """Bind rules to columns; `find` returns the positions of ids.

    Raises
    ------
    ValueError
        If a rule is invalid; the message names the rule and the value.
    """
    try:
        return BoundRules(rules, params, features, n_items, find)
    except ValueError as error:
        raise ValueError(f"rules: {error}") from None


class Regime(NamedTuple):
    """What rules allow at one place, apart from items already shown or pinned elsewhere."""

    bound: BoundRules
    blocked: tuple[frozenset[int], ...]  # groups, by column
    decayed: tuple[tuple[tuple[int, int], ...], ...]  # by column: groups, and how many were shown
    owed: tuple[int, ...]  # only items of these shares are allowed; if empty, of all
    pin_set: int  # the place of `pin_sets` that applies; -1: none

    def log_factor(self, position: int) -> float:
        """Return the log-factor of an item; -inf if it is not allowed, finite if it decays."""
        if self.pin_set >= 0:
            return 0.0 if self.bound.pin_sets[self.pin_set][position] else -math.inf
        if self.owed and not any(self.bound.shares[s][0][position] for s in self.owed):
            return -math.inf
        found = 0.0
        for rule, blocked, decayed in zip(
            self.bound.columns, self.blocked, self.decayed, strict=True
        ):
            if not blocked and not decayed:
                continue
            groups = rule.groups.of(position)
            if any(group in blocked for group in groups):
                return -math.inf
            for group in groups if decayed else ():
                at = bisect.bisect_left(decayed, (group, 0))
                if at < len(decayed) and decayed[at][0] == group:
                    assert rule.decay is not None
                    found += decayed[at][1] * math.log(rule.decay)
        return found

    def log_factors(self, positions: list[int]) -> list[float]:
        """Return the log-factors of some items."""
        if len(positions) < _MANY:
            return [self.log_factor(position) for position in positions]
        found: list[float] = log_factor_rows([self], np.array(positions, np.int64))[0].tolist()
        return found

    def allowed(self) -> Mask:
        """Return a mask (n,) of the items allowed. O(n)."""
        if self.pin_set >= 0:
            return self.bound.pin_sets[self.pin_set].copy()
        found = np.ones(self.bound.n_items, np.bool_)
        if self.owed:
            found = np.logical_or.reduce([self.bound.shares[s][0] for s in self.owed])
        for rule, blocked in zip(self.bound.columns, self.blocked, strict=True):
            if blocked:
                rule.groups.strike(blocked, found)
        return found

    @property
    def blocks(self) -> bool:
        """Whether some item may be blocked."""
        return self.pin_set >= 0 or bool(self.owed) or any(self.blocked)

    def allows_as(self, other: Regime) -> bool:
        """Say whether both regimes allow the same items."""
        if self.pin_set >= 0 or other.pin_set >= 0:
            return self.pin_set == other.pin_set
        return self.blocked == other.blocked and self.owed == other.owed

    @property
    def decays(self) -> bool:
        """Whether some item may have a reduced weight."""
        return any(self.decayed)

    def covers(self, other: Regime) -> bool:
        """Say whether this regime surely allows all items of another one, of a later place.

        Their weights are then no smaller here.
        """
        if self.pin_set >= 0 or other.pin_set >= 0:
            return self.pin_set == other.pin_set or not (self.blocks or self.decays)
        if self.owed and not (other.owed and set(other.owed) <= set(self.owed)):
            return False
        return all(one <= two for one, two in zip(self.blocked, other.blocked, strict=True))


def log_factor_rows(
    regimes: Sequence[Regime],
    positions: Positions,
    told: Mapping[int, Collection[int] | None] | None = None,
) -> FloatArray:
    """Compute log-factors (r, m) of some items under some regimes of the same rules.

    With `told` (`Joint.told`), only the groups in it count.
    """
    found = np.zeros((len(regimes), len(positions)))
    if not len(regimes) or not len(positions):
        return found
    bound = regimes[0].bound
    for at, (rule, touched) in enumerate(bound.touched(regimes)):
        if told is not None:
            own = told.get(at, ())
            touched = touched if own is None else [group for group in touched if group in own]
        if not touched:
            continue
        place_of = {group: place for place, group in enumerate(touched)}
        blocked = np.zeros((len(regimes), len(touched)), np.int64)
        counts = np.zeros((len(regimes), len(touched)), np.int64)
        for row, regime in enumerate(regimes):
            blocked[row, [place_of[g] for g in regime.blocked[at] if g in place_of]] = 1
            for group, count in regime.decayed[at]:
                if group in place_of:
                    counts[row, place_of[group]] = count
        if blocked.any():
            found[rule.groups.sums(touched, blocked, positions) > 0] = -math.inf
        if rule.decay is not None and counts.any():
            found += math.log(rule.decay) * rule.groups.sums(touched, counts, positions)
    for row, regime in enumerate(regimes):
        if regime.pin_set >= 0:
            is_in = bound.pin_sets[regime.pin_set][positions]
            found[row] = np.where(is_in, 0.0, -math.inf)
        elif regime.owed:
            masks = [bound.shares[s][0][positions] for s in regime.owed]
            found[row, ~np.logical_or.reduce(masks)] = -math.inf
    return found


class State:
    """The state of a list while it is drawn: the items shown, and what may come next.

    Parameters
    ----------
    bound : BoundRules
    places : int
        Length of the list: min(k, n_eligible).
    after : sequence of int
        Positions of the items on earlier pages, in order.
    """

    def __init__(self, bound: BoundRules, places: int, after: Sequence[int]) -> None:
        self.bound = bound
        self.places = places
        gone = set(after)
        self.pins = {
            place: p for place, p in bound.pins.items() if place < places and p not in gone
        }
        self.reserved = frozenset(self.pins.values())
        self._coming = set(self.reserved)
        self.pin_sets = {place for place in bound.pin_sets if place < places}
        self.shown = gone
        self.place = 0
        self._list: list[int] = [*after]  # -1: a place without an item
        self._n_before = len(self._list)
        self._counts: list[dict[int, int]] = [{} for _ in bound.columns]
        self._owed = [q for _, q in bound.shares]
        # Pinned items count for caps and shares from the start.
        self._decays: list[dict[int, int]] = [{} for _ in bound.columns]
        self._full: list[set[int]] = [set() for _ in bound.columns]
        for position in after:
            self._count(position)
            self._decay(position)
        for position in self.pins.values():
            self._count(position)
            self._pay(position)

    def _count(self, position: int, by: int = 1) -> None:
        for rule, counts, full in zip(self.bound.columns, self._counts, self._full, strict=True):
            if rule.cap is None:
                continue
            for group in rule.groups.of(position):
                counts[group] = counts.get(group, 0) + by
                (full.add if counts[group] >= rule.cap else full.discard)(group)

    def _decay(self, position: int) -> None:
        for rule, decays in zip(self.bound.columns, self._decays, strict=True):
            if rule.decay is not None:
                for group in rule.groups.of(position):
                    decays[group] = decays.get(group, 0) + 1

    def _pay(self, position: int, by: int = 1) -> None:
        for share, (mask, _) in enumerate(self.bound.shares):
            if mask[position]:
                self._owed[share] -= by

    def show(self, position: int) -> None:
        """Show an item at the next place; -1 leaves the place empty."""
        missed = self.pins.get(self.place)
        self.place += 1
        self._list.append(position)
        if position >= 0:
            self.shown.add(position)
            self._decay(position)
            if position in self._coming:
                self._coming.discard(position)  # counted from the start
            else:
                self._count(position)
                self._pay(position)
        if missed in self._coming:  # the ranking breaks these rules
            self._coming.discard(missed)
            self._count(missed, -1)
            self._pay(missed, -1)

    @property
    def pinned(self) -> int | None:
        """The item pinned to the next place; None if there is none."""
        return self.pins.get(self.place)

    @property
    def levels(self) -> int:
        """The number of regimes that a place may go through."""
        return LEVELS if self.bound.applied.rules.on_empty == "relax" else 1

    def regime(self, level: int = 0) -> Regime:
        """Return the regime of the next place; higher levels drop more rules."""
        pin_set = self.place if self.place in self.pin_sets and level < _NO_SHARES else -1
        blocked = []
        decayed = []
        for at, rule in enumerate(self.bound.columns):
            own: set[int] = set()
            if rule.cap is not None and level < _NO_CAPS:
                own |= self._full[at]
            if rule.window is not None and level < _NO_WINDOWS:
                own |= self._in_window(rule.groups, *rule.window)
            blocked.append(frozenset(own))
            decays = {} if pin_set >= 0 else self._decays[at]
            decayed.append(tuple(sorted(decays.items())))
        owed = self._forced() if level < _NO_SHARES else ()
        return Regime(self.bound, tuple(blocked), tuple(decayed), owed, pin_set)

    def _forced(self) -> tuple[int, ...]:
        if not self.bound.shares:
            return ()
        held = sum(place >= self.place for place in self.pins) + sum(
            place >= self.place for place in self.pin_sets
        )
        free = self.places - self.place - held
        owed = [max(0, q) for q in self._owed]
        if 0 < free <= sum(owed):
            return tuple(share for share, q in enumerate(owed) if q > 0)
        return ()

    def _in_window(self, groups: Groups, most: int, row: int) -> set[int]:
        """Return the groups that are full in some window of `row` places with this one."""
        ahead = sorted(
            (place - self.place, position)
            for place, position in self.pins.items()
            if 0 < place - self.place < row and position in self._coming
        )
        counts: dict[int, int] = {}
        found: set[int] = set()

        def add(position: int) -> None:
            for group in groups.of(position) if position >= 0 else ():
                counts[group] = counts.get(group, 0) + 1
                if counts[group] >= most:
                    found.add(group)

        for _, position in ahead:
            add(position)
        # Only windows that end at a pin, and the one that ends here, can have most items. They are
        # tried from the last one: each next window has one pin less at its end, and more places
        # before this one.
        behind = 0
        while True:
            reach = min(row - 1 - (ahead[-1][0] if ahead else 0), len(self._list))
            for position in self._list[len(self._list) - reach : len(self._list) - behind]:
                add(position)
            behind = reach
            if not ahead:
                return found
            for group in groups.of(ahead.pop()[1]):
                counts[group] -= 1
