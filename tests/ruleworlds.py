"""Small random catalogs with rules, each as the library takes it and as the oracle does.

A `World` is drawn for the kinds of rules that it is to have and a seed; the same two give the same
one. What an expression holds for is worked out here, of the values that the columns were made of,
and by nobody's reading of its text. All rankings of a world can be enumerated: there are at most
some 1,700.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product
from typing import Any, TypeAlias

import numpy as np
from support import Array, Law, Mask, Positions

import fastrank as fr
from fastrank import reference
from fastrank.reference import RuleMasks

__all__ = ["KINDS", "PAIRS", "SINGLES", "World", "triples", "world", "worlds"]

Kinds: TypeAlias = tuple[str, ...]
# The arguments of `fr.Rules`, and what was shown before. `on_empty` is either, in any world.
KINDS: Kinds = (
    *("where", "cap", "window", "at_least", "decay", "pin", "pin_where", "boost", "boost_score"),
    "after",
)
SINGLES: list[Kinds] = [(kind,) for kind in KINDS]
PAIRS: list[Kinds] = list(combinations(KINDS, 2))

# What a policy takes besides `after`; None: all.
_WEIGHTS = frozenset({"decay", "boost"})
_POLICIES: list[tuple[fr.Policy, frozenset[str]]] = [
    *[(fr.PlackettLuce(0.8), frozenset(KINDS))] * 4,
    (fr.PlackettLuce(1.5, sampler="sequential"), frozenset(KINDS)),
    (fr.BestFirst(1, fr.PlackettLuce(0.8)), frozenset(KINDS)),
    (fr.BestFirst(2, fr.PlackettLuce(0.8)), frozenset(KINDS)),
    (fr.Deterministic(), frozenset(KINDS) - _WEIGHTS),
    (fr.EpsilonGreedy(0.35), frozenset(KINDS) - _WEIGHTS),
    (fr.Uniform(), frozenset(KINDS) - _WEIGHTS),
    (fr.BestFirst(1, fr.EpsilonGreedy(0.35)), frozenset(KINDS) - _WEIGHTS),
    *[(fr.FlatTail(0.8, m=3, factor=0.3), frozenset({"where", "cap", "window", "pin", "after"}))]
    * 2,
]
_PLACES = {5: 5, 6: 5, 7: 4, 8: 4}  # the most that a world of so many items has
_NO_NEAR_TIE = 1e-5  # the library has float32


@dataclass(frozen=True)
class World:
    """A catalog and a call, twice.

    Attributes
    ----------
    kinds, seed
        What it was drawn for.
    ids, scores, features
        Of its items, in the order of their rows; scores are multiples of 1/4.
    rules : dict
        Keyword arguments of `fr.Rules`.
    call : dict
        Those of `Catalog.rank` besides rules and seed: ``k``, ``policy``, and where the world has
        them ``exclude``, ``allow``, ``after`` and ``params``.
    eligible : mask
        What ``exclude``, ``allow`` and ``where`` left: the oracle's filters.
    boosted : ndarray
        The scores, with their boosts.
    masks : RuleMasks
        The rules, with ``after``.
    sets : dict of str to mask
        What each expression of the rules holds for.
    """

    kinds: Kinds
    seed: int
    ids: list[str]
    scores: Array
    features: dict[str, list[Any]]
    rules: dict[str, Any]
    call: dict[str, Any]
    eligible: Mask
    boosted: Array
    masks: RuleMasks
    sets: dict[str, Mask]

    def __str__(self) -> str:
        return f"{'+'.join(self.kinds)}-{self.seed}"

    @property
    def k(self) -> int:
        return int(self.call["k"])

    @property
    def policy(self) -> fr.Policy:
        policy: fr.Policy = self.call["policy"]
        return policy

    @property
    def n_eligible(self) -> int:
        """As `Ranking` has it: without what was shown before."""
        return int(self.masks.eligible(self.eligible).sum())

    def catalog(self) -> fr.Catalog:
        """Its items, whose scores for the query [1.0] are those of the world."""
        return fr.Catalog(self.ids, self.scores[:, None], features=self.features)

    def positions(self, ids: Sequence[str]) -> list[int]:
        return [self.ids.index(each) for each in ids]

    def law(self) -> Law:
        """The oracle's: all rankings, and their probabilities."""
        return self._law

    @cached_property
    def _law(self) -> Law:
        return reference.ranking_law(self.boosted, self.k, self.policy, self.eligible, self.masks)

    def log_propensities(self, order: Sequence[int] | Positions, k: int | None = None) -> Array:
        """The oracle's, of any ranking."""
        return reference.log_propensities(
            self.boosted, order, self.policy, self.eligible, self.masks, k
        )


def worlds(kinds: Kinds, count: int, seed: int = 0) -> Iterator[World]:
    return (world(kinds, each) for each in range(seed, seed + count))


def triples(count: int, seed: int = 0) -> list[Kinds]:
    """That many of the triples of kinds, drawn."""
    return random.Random(seed).sample(list(combinations(KINDS, 3)), count)


def world(kinds: Kinds, seed: int) -> World:
    """A world that has these kinds of rules."""
    draw = _Draw(random.Random(f"{sorted(kinds)} {seed}"), frozenset(kinds))
    while True:
        found = draw.world(kinds, seed)
        if found is not None:
            return found


class _Draw:
    def __init__(self, rng: random.Random, kinds: frozenset[str]) -> None:
        self.rng, self.kinds = rng, kinds

    def world(self, kinds: Kinds, seed: int) -> World | None:
        """None where what was drawn does not fit together."""
        rng = self.rng
        n = rng.randint(5, 8)
        k = rng.randint(2, _PLACES[n])
        policy = rng.choice([each for each, takes in _POLICIES if self.kinds <= takes])
        ids = [f"i{each}" for each in rng.sample(range(10, 100), n)]
        items = _Items(rng, n)
        scores = np.array([rng.randint(-4, 8) / 4 for _ in range(n)])
        rules: dict[str, Any] = {}
        call: dict[str, Any] = {"k": k, "policy": policy}

        capped: dict[str, int] = {}
        if "cap" in self.kinds:
            capped = {column: rng.randint(1, 2) for column in self._columns()}
            rules["cap"] = capped
        window: dict[str, tuple[int, int]] = {}
        if "window" in self.kinds:
            for column in self._columns():
                width = rng.randint(2, 4)
                window[column] = (rng.randint(1, width - 1), width)
            rules["window"] = window
        decay: dict[str, float] = {}
        if "decay" in self.kinds:
            decay = dict(zip(self._columns(), rng.sample([0.5, 0.3, 0.8], 2), strict=False))
            rules["decay"] = decay

        eligible = self._filters(n, ids, call)
        if "where" in self.kinds:
            rules["where"] = items.expression()
            eligible &= items.sets[rules["where"]]
        after: list[int] = []
        if "after" in self.kinds:
            shown = np.flatnonzero(eligible) if rng.random() < 0.8 else np.arange(n)
            after = rng.sample(shown.tolist(), min(len(shown), rng.randint(1, 3)))
            call["after"] = [ids[i] for i in after]
        if (eligible & ~np.isin(np.arange(n), after)).sum() < 2:
            return None

        at_least: dict[str, int] = {}
        if "at_least" in self.kinds:
            for _ in range(rng.randint(1, 2)):
                text = items.expression(without=capped)
                apart = not any((items.sets[text] & items.sets[each]).any() for each in at_least)
                room = k - sum(at_least.values())
                if apart and text not in at_least and room > 0:
                    at_least[text] = rng.randint(1, room)
            rules["at_least"] = at_least

        places = rng.sample(range(1, k + 2), min(k + 1, 4))
        pin: dict[int, int] = {}
        if "pin" in self.kinds:
            pinned = rng.sample(np.flatnonzero(eligible).tolist(), rng.randint(1, 2))
            pin = {places.pop(): item for item in pinned}
            rules["pin"] = {place: ids[item] for place, item in pin.items()}
        pin_where: dict[int, str] = {}
        if "pin_where" in self.kinds and places:
            for _ in range(min(len(places), rng.randint(1, 2))):
                pin_where[places.pop()] = items.expression()
            rules["pin_where"] = pin_where
        if "pin_where" in self.kinds and not pin_where:
            return None

        boosted = scores.copy()
        temperature = policy.law.temperature if policy.law else np.inf
        if "boost" in self.kinds:
            rules["boost"] = {items.expression(): rng.choice([3.0, 0.25, 1.7]) for _ in "ab"}
            for text, odds in rules["boost"].items():
                boosted += temperature * np.log(odds) * items.sets[text]
        if "boost_score" in self.kinds:
            rules["boost_score"] = {items.expression(): rng.choice([1.0, -0.5, 0.75]) for _ in "ab"}
            for text, added in rules["boost_score"].items():
                boosted += added * items.sets[text]
        made_of = {
            (score, *(items.sets[text][i] for text in rules.get("boost", ())))
            for i, score in enumerate(boosted.tolist())
        }
        if len({score for score, *_ in made_of}) < len(made_of):
            return None  # a tie of what is not made of the same, and so none in float32
        if _have_near_ties(boosted, temperature, decay):
            return None

        if rng.random() < 0.5:
            rules["on_empty"] = "relax"
        elif rng.random() < 0.5:
            rules["on_empty"] = "stop"
        left = items.sets[rules["where"]] if "where" in rules else np.ones(n, bool)
        relaxes = rules.get("on_empty") == "relax"
        if not (relaxes or _is_feasible(items, left, k, at_least, rules, pin, pin_where)):
            return None
        said = [
            *([rules["where"]] if "where" in rules else []),
            *(*at_least, *pin_where.values()),
            *(*rules.get("boost", ()), *rules.get("boost_score", ())),
        ]
        names = {name for text in said for name in re.findall(r"\w+", text)}
        params = {name: value for name, value in _PARAMS.items() if name in names}
        if params:
            call["params"] = params
        masks = RuleMasks(
            groups={column: items.groups(column) for column in {*capped, *window, *decay}},
            cap=capped,
            window=window,
            at_least=[(items.sets[text], share) for text, share in at_least.items()],
            decay=decay,
            pin={place - 1: item for place, item in pin.items()},
            pin_where={place - 1: items.sets[text] for place, text in pin_where.items()},
            on_empty=rules.get("on_empty", "stop"),
            after=after,
        )
        return World(
            *(kinds, seed, ids, scores, items.columns, rules, call, eligible, boosted, masks),
            {text: items.sets[text] for text in said},
        )

    def _columns(self) -> list[str]:
        return self.rng.sample(_COLUMNS, self.rng.randint(1, 2))

    def _filters(self, n: int, ids: list[str], call: dict[str, Any]) -> Mask:
        eligible = np.ones(n, np.bool_)
        if self.rng.random() < 0.3:
            out = self.rng.sample(range(n), self.rng.randint(1, 2))
            eligible[out] = False
            call["exclude"] = [ids[i] for i in out]
        if self.rng.random() < 0.3:
            kept = self.rng.sample(range(n), self.rng.randint(3, n))
            eligible &= np.isin(np.arange(n), kept)
            call["allow"] = [ids[i] for i in kept]
        return eligible


_COLUMNS = ["brand", "genres", "new", "price"]


@dataclass
class _Items:
    """Columns, and expressions of them with what they hold for."""

    rng: random.Random
    n: int
    columns: dict[str, list[Any]] = field(default_factory=dict)
    sets: dict[str, Mask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng, n = self.rng, self.n
        brands = [rng.choice(["a", "a", "b", "c", None]) for _ in range(n)]
        brands[rng.randrange(n)] = "b"  # a column of nothing but None has no kind
        self.columns = {
            "brand": brands,
            "genres": [rng.sample(["x", "y", "z"], rng.choice([0, 1, 1, 2])) for _ in range(n)],
            "new": [rng.random() < 0.4 for _ in range(n)],
            "price": [rng.choice([0.0, -0.0, 1.5, 1.5, 2.0]) for _ in range(n)],
        }

    def groups(self, column: str) -> list[set[Hashable]]:
        values = self.columns[column]
        if column == "genres":
            return [set(value) for value in values]
        return [set() if value is None or value is False else {value} for value in values]

    def expression(self, without: Sequence[str] | dict[str, int] = ()) -> str:
        """One that is true of some items, not of all of them as a rule; its set goes to `sets`.

        It names no column of `without`.
        """
        rng = self.rng
        simple = [each for each in _CONDITIONS if each[0] not in without]
        text, mask = self._of(rng.choice(simple))
        match rng.randrange(5):
            case 0:
                more, its = self._of(rng.choice(simple))
                text, mask = f"{text} and {more}", mask & its
            case 1:
                more, its = self._of(rng.choice(simple))
                text, mask = f"{text} or {more}", mask | its
            case 2:
                text, mask = f"not ({text})", ~mask
        self.sets[text] = mask
        return text

    def _of(self, condition: _Condition) -> tuple[str, Mask]:
        column, text, holds = condition
        values = self.columns[column]
        return text, np.array([holds(value) for value in values])


_Condition: TypeAlias = tuple[str, str, Callable[[Any], bool]]
_PARAMS = {"wanted": "a", "budget": 1.5, "on": True}
_CONDITIONS: list[_Condition] = [
    ("brand", "brand == 'a'", lambda brand: brand == "a"),
    ("brand", "brand == wanted", lambda brand: brand == "a"),
    ("brand", "brand != 'b'", lambda brand: brand != "b"),
    ("brand", "brand in ('b', 'c')", lambda brand: brand in ("b", "c")),
    ("brand", "brand == 'nobody'", lambda brand: False),
    ("genres", "'x' in genres", lambda genres: "x" in genres),
    ("genres", "'y' not in genres", lambda genres: "y" not in genres),
    ("new", "new", lambda new: new),
    ("new", "new and on", lambda new: new),
    ("new", "not new", lambda new: not new),
    ("price", "price == 1.5", lambda price: price == 1.5),
    ("price", "price < budget", lambda price: price < 1.5),
    ("price", "0 < price <= 2", lambda price: 0 < price <= 2),
]


def _is_feasible(
    items: _Items,
    left: Mask,
    k: int,
    at_least: dict[str, int],
    rules: dict[str, Any],
    pin: dict[int, int],
    pin_where: dict[int, str],
) -> bool:
    """Whether some list of k places could hold what shares and sets of pins ask for."""
    if not all((items.sets[text] & left).any() for text in pin_where.values()):
        return False
    owed = 0
    for text, share in at_least.items():
        if (items.sets[text] & left).sum() < share:
            return False
        paid = sum(items.sets[text][item] for place, item in pin.items() if place <= k)
        owed += max(0, share - paid)
        free = share - paid - sum(place <= k for place in pin_where)
        most_in_row = [(column, most, k) for column, most in rules.get("cap", {}).items()]
        most_in_row += [(column, *each) for column, each in rules.get("window", {}).items()]
        for column, most, row in most_in_row:
            own = [items.groups(column)[item] for item in np.flatnonzero(items.sets[text] & left)]
            if not all(own):
                continue
            sizes = Counter(group for groups in own for group in groups)
            room = sum(min(most, size) for size in sizes.values())
            if free > sum(min(room, k - first) for first in range(0, k, row)):
                return False
    others = [
        not any((items.sets[text] & items.sets[each]).any() for each in at_least)
        for place, text in pin_where.items()
        if place <= k
    ]
    return not at_least or owed <= k - sum(place <= k for place in pin) - sum(others)


def _have_near_ties(scores: Array, temperature: float, decay: dict[str, float]) -> bool:
    """Whether, by what weights may decay to, two items are nearly alike and yet not quite."""
    steps = [temperature * np.log(factor) * np.arange(7) for factor in decay.values()]
    values = np.sort([score + sum(step) for score in scores for step in product(*steps)])
    gaps = np.diff(values)
    return bool(((gaps > 0.0) & (gaps < _NO_NEAR_TIE)).any())
