"""Rules: which items may stand where in a list, as part of the law and of the propensities.

A rule says which items may come next, given those already shown; a decay makes them less likely.
Rules act while a ranking is drawn, so the propensities are those of the list that is shown; rules
applied to a finished ranking would make them wrong. `fastrank.ruled` joins rules with a catalog's
columns.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args
from unicodedata import normalize

import numpy as np

from fastrank.expressions import Expression, Param, parsed
from fastrank.inputs import as_count, shown
from fastrank.store import content_hash

__all__ = ["MOST_ADDED", "AppliedRules", "OnEmpty", "Rules"]

OnEmpty = Literal["stop", "relax"]

_MOST_ENTRIES = 100  # per kind of rule
_MOST_PLACES = 1_000_000
MOST_ADDED = 1e37  # to a score


class Rules:
    """Rules for the items of a list: caps, windows, shares, decay, pins, boosts, a filter.

    Immutable. Columns are those of the catalog's features. An expression is text in the language of
    ``score=`` (docs/reference/scores.md) that is true or false for each item, without ``dot``.

    Parameters
    ----------
    where : str, optional
        An expression; items for which it is false are not eligible.
    cap : mapping of str to int, optional
        The most items of each value of a column, earlier pages included. For a column of lists, an
        item needs room in each of its groups; for booleans only True is a group.
    window : mapping of str to (int, int), optional
        ``{"brand": (1, 5)}``: at most 1 item of each value in any 5 consecutive places, 1 <= most <
        places.
    at_least : mapping of str to int, optional
        ``{"new": 3}``: at least 3 places of a page show items for which the expression is true.
        Once as many are still owed as places are free, only such items are allowed.
    decay : mapping of str to float, optional
        ``{"author": 0.5}``: an item's weight is halved for each item of its author shown before.
    pin : mapping of int to id, optional
        ``{3: "sku-9"}``: the third place shows this item, and no other place does.
    pin_where : mapping of int to str, optional
        ``{1: "seller == 'acme'"}``: the first place shows an item for which it is true, drawn at
        random.
    boost : mapping of str to float, optional
        Odds: the weight of items for which the expression is true is multiplied by the value.
    boost_score : mapping of str to float, optional
        The value is added to the score of items for which the expression is true.
    on_empty : {"stop", "relax"}
        What to do at a place where no item is allowed: end the list, or drop restrictions for this
        place until an item is allowed: first shares and the set of a pin, then windows, then caps.

    Attributes
    ----------
    id : str
        SHA-256 of what the rules say.
    names : frozenset of str
        Columns and parameters of the expressions.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument and the value.

    Notes
    -----
    Pins overrule everything but filters at their own place, count towards caps from the start, and
    windows look ahead to them. Places and shares refer to one page; caps, windows and decays count
    the pages before, too. A share is not Plackett-Luce conditioned on the share: items are drawn
    without it until only owed items fit.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog(
    ...     [1, 2, 3, 4], [[4.0], [3.0], [2.0], [1.0]], features={"seller": ["a", "a", "a", "b"]}
    ... )
    >>> rules = fr.Rules(cap={"seller": 1})
    >>> ranking = catalog.rank([1.0], 2, policy=fr.PlackettLuce(), rules=rules, seed=1)
    >>> sorted(catalog.features.entries("seller", ranking.item_ids - 1))
    ['a', 'b']
    """

    __slots__ = ("__weakref__", "_content", "_expressions", "_id", "_names")

    def __init__(
        self,
        *,
        where: str | None = None,
        cap: Mapping[str, int] | None = None,
        window: Mapping[str, tuple[int, int]] | None = None,
        at_least: Mapping[str, int] | None = None,
        decay: Mapping[str, float] | None = None,
        pin: Mapping[int, Any] | None = None,
        pin_where: Mapping[int, str] | None = None,
        boost: Mapping[str, float] | None = None,
        boost_score: Mapping[str, float] | None = None,
        on_empty: OnEmpty = "stop",
    ) -> None:
        expressions: dict[str, Expression] = {}

        def expression(name: str, text: Any) -> str:
            if not isinstance(text, str):
                raise ValueError(f"{name}: expected an expression, as a text, got {shown(text)}")
            found = parsed(text, name)
            expressions[found.text] = found
            return found.text

        def column(name: str, text: Any) -> str:
            if not isinstance(text, str) or not text:
                raise ValueError(f"{name}: expected names of columns, got {shown(text)}")
            return normalize("NFKC", text)  # as features do

        def of_one(low: int) -> Callable[[str, Any], int]:
            return lambda name, value: _count(name, value, low)

        parts: dict[str, Any] = {
            "cap": _entries("cap", cap, column, of_one(1)),
            "window": _entries("window", window, column, _window),
            "at_least": _entries("at_least", at_least, expression, of_one(1)),
            "decay": _entries("decay", decay, column, _decay),
            "pin": _entries("pin", pin, _place, _item),
            "pin_where": _entries("pin_where", pin_where, _place, expression),
            "boost": _entries("boost", boost, expression, _odds),
            "boost_score": _entries("boost_score", boost_score, expression, _number),
        }
        if where is not None:
            parts["where"] = expression("where", where)
        if on_empty not in get_args(OnEmpty):
            raise ValueError(f"on_empty: expected 'stop' or 'relax', got {shown(on_empty)}")
        if on_empty != "stop":
            parts["on_empty"] = on_empty
        self._content = {name: part for name, part in parts.items() if part}
        self._check()
        self._expressions = expressions
        self._names: frozenset[str] = frozenset().union(
            *(each.names for each in expressions.values())
        )
        self._id: str | None = None

    def _check(self) -> None:
        pin, pin_where = self.pin, self.pin_where
        both = sorted(pin.keys() & pin_where.keys())
        if both:
            raise ValueError(f"pin_where: place {both[0]} has a pinned item already")
        items: dict[Any, int] = {}
        for place, item in pin.items():
            if item in items:
                raise ValueError(
                    f"pin: {shown(item)} is pinned to the places {items[item]} and {place}"
                )
            items[item] = place
        capped = self.cap.keys()
        for text in self.at_least:
            names = parsed(text, "at_least").names & capped
            if names:
                raise ValueError(
                    f"at_least: {shown(text)} is a share by the column {shown(min(names))}, which"
                    " has a cap: the two can contradict each other"
                )

    # ---- What they say ----------------------------------------------------------------------

    @property
    def where(self) -> str | None:
        """The filter, if there is one."""
        found: str | None = self._content.get("where")
        return found

    @property
    def cap(self) -> dict[str, int]:
        """Caps by column."""
        return dict(self._content.get("cap", {}))

    @property
    def window(self) -> dict[str, tuple[int, int]]:
        """Windows by column: the most items, and the number of places."""
        return dict(self._content.get("window", {}))

    @property
    def at_least(self) -> dict[str, int]:
        """Shares by expression."""
        return dict(self._content.get("at_least", {}))

    @property
    def decay(self) -> dict[str, float]:
        """Factors by column."""
        return dict(self._content.get("decay", {}))

    @property
    def pin(self) -> dict[int, Any]:
        """Pinned items by place, from 1."""
        return dict(self._content.get("pin", {}))

    @property
    def pin_where(self) -> dict[int, str]:
        """Expressions by place, from 1."""
        return dict(self._content.get("pin_where", {}))

    @property
    def boost(self) -> dict[str, float]:
        """Odds by expression."""
        return dict(self._content.get("boost", {}))

    @property
    def boost_score(self) -> dict[str, float]:
        """Amounts added to scores, by expression."""
        return dict(self._content.get("boost_score", {}))

    @property
    def on_empty(self) -> OnEmpty:
        """What happens at a place where no item is allowed."""
        found: OnEmpty = self._content.get("on_empty", "stop")
        return found

    @property
    def is_sequential(self) -> bool:
        """Whether the items shown restrict the next one beyond not being repeated."""
        return not self._content.keys() <= _OF_ITEMS

    @property
    def may_end_early(self) -> bool:
        """Whether a list may end before its last place although items are eligible."""
        return self.on_empty == "stop" and not self._content.keys().isdisjoint(_BLOCKING)

    @property
    def names(self) -> frozenset[str]:
        """Columns and parameters of the expressions."""
        return self._names

    @property
    def id(self) -> str:
        if self._id is None:
            self._id = content_hash(self.to_dict())
        return self._id

    def expression(self, text: str) -> Expression:
        """The parsed form of one of the expressions."""
        return self._expressions[text]

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that were given, as JSON types: places are text."""
        found: dict[str, Any] = {}
        for name, part in self._content.items():
            if name in ("pin", "pin_where"):
                part = {str(place): value for place, value in part.items()}
            elif name == "window":
                part = {column: list(value) for column, value in part.items()}
            found[name] = dict(part) if isinstance(part, dict) else part
        return found

    @classmethod
    def from_dict(cls, content: Any) -> Rules:
        """Make rules from what `to_dict` returned.

        Raises
        ------
        ValueError
            If a value is invalid; the message names the key and the value.

        Examples
        --------
        >>> import fastrank as fr
        >>> rules = fr.Rules.from_dict({"pin": {"1": "sku-9"}, "cap": {"seller": 2}})
        >>> rules == fr.Rules(cap={"seller": 2}, pin={1: "sku-9"})
        True
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"rules: expected an object, got {shown(content)}")
        unknown = [key for key in content if key not in _KEYS]
        if unknown:
            raise ValueError(
                f"rules: there is no {shown(unknown[0])}: there are {', '.join(_KEYS)}"
            )
        return cls(**content)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rules):
            return NotImplemented
        return self is other or self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        said = ", ".join(
            f"{name}={self._content[name]!r}" for name in _KEYS if name in self._content
        )
        return f"Rules({said})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Rules.from_dict, (self.to_dict(),)


_KEYS = (
    *("where", "cap", "window", "at_least", "decay", "pin", "pin_where", "boost", "boost_score"),
    "on_empty",
)
_OF_ITEMS = frozenset(("where", "boost", "boost_score", "on_empty"))  # whatever is shown
_BLOCKING = ("cap", "window", "at_least", "pin_where")  # may leave a place without any item


class AppliedRules(NamedTuple):
    """Rules as they acted on a ranking, as logs state them.

    Attributes
    ----------
    rules : Rules
    params : dict of str to (float, bool or str)
        The parameters of their expressions.
    """

    rules: Rules
    params: dict[str, Param]

    @property
    def params_text(self) -> str:
        """The parameters as JSON, sorted by name."""
        return json.dumps(self.params, sort_keys=True)


# ---- Entries ---------------------------------------------------------------------------------


def _entries(
    name: str,
    given: Any,
    key_of: Callable[[str, Any], Any],
    value_of: Callable[[str, Any], Any],
) -> dict[Any, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{name}: expected a mapping, got {shown(given)}")
    if len(given) > _MOST_ENTRIES:
        raise ValueError(f"{name}: at most {_MOST_ENTRIES} entries are taken, got {len(given):,}")
    found: dict[Any, Any] = {}
    for key, value in given.items():
        own = key_of(name, key)
        if own in found:
            raise ValueError(f"{name}: {shown(own)} is given twice")
        found[own] = value_of(f"{name}[{shown(own)}]", value)
    return dict(sorted(found.items()))


def _count(name: str, value: Any, low: int = 1) -> int:
    count = as_count(name, value, low)
    if count > _MOST_PLACES:
        raise ValueError(f"{name}: must be at most {_MOST_PLACES:,}, got {shown(value)}")
    return count


def _place(name: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,6}", value):
        value = int(value)  # keys are text in JSON
    return _count(f"{name}: a place", value)


def _window(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{name}: expected (most, places in a row), got {shown(value)}")
    most, row = (_count(name, each) for each in value)
    if most >= row:
        raise ValueError(
            f"{name}: expected fewer than the {row} places in a row, got {most}, which would say"
            " nothing"
        )
    return most, row


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise ValueError(f"{name}: expected a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MOST_ADDED:
        raise ValueError(f"{name}: must be finite, of at most 1e37, got {shown(value)}")
    return number


def _odds(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 1e-30 <= number <= 1e30:
        raise ValueError(f"{name}: must lie in [1e-30, 1e30], got {shown(value)}")
    return number


def _decay(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 1e-6 <= number < 1.0:
        raise ValueError(
            f"{name}: must lie in [1e-6, 1), got {shown(value)}; a cap says of how many items at"
            " most"
        )
    return number


def _item(name: str, value: Any) -> int | str:
    if isinstance(value, np.integer | np.str_):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{name}: expected an item id, got {shown(value)}")
    return value
