"""Rules that a server has by name, and rules that a request states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import fastrank as fr
from fastrank.ids import as_written, id_from_text
from fastrank.scorer import Scorer
from fastrank.wire import RulesBody
from fastrank_serving.messages import ProblemError, field_of, invalid_value

__all__ = ["MAX_BYTES", "Named", "bytes_of", "fitted", "made", "places_of", "work_of"]

_AGREE = 1e-5  # tolerance for log-propensities in the self-test
_MOST_PLACES = 1000  # in the self-test
# Limit on masks and sums of a request's own rules: as much as a catalog keeps.
MAX_BYTES = 128 << 20

# In multiply-adds (`fastrank_serving.engine`): walking a list; a place of it, and an item of such a
# place, once more for each column or set; parsing a character; an item of an earlier page; an item
# of a window.
_WALK, _PLACE, _ITEM = 12_000_000, 2_000_000, 40
_CHARACTER, _SHOWN, _WINDOW = 25_000, 25_000, 5_000


class Named(NamedTuple):
    """Rules of the server.

    Attributes
    ----------
    rules : Rules
    params : list of str
        Parameters that a request must give with them.
    """

    rules: fr.Rules
    params: list[str]


def fitted(rules: fr.Rules, catalog: fr.Catalog, policy: fr.Policy) -> Named:
    """Check rules against a catalog, including the propensities of a list under them.

    If something depends on parameters, which come with requests, only its form is checked.

    Raises
    ------
    ValueError
        If a rule is invalid; the message names the rule and the value.
    """
    features = catalog.features
    wanted = sorted(name for name in rules.names if features is None or features.kind(name) is None)
    known = _without(rules, frozenset(wanted))
    query, k = np.zeros(catalog.dim, np.float32), places_of(rules, len(catalog))
    ranking = catalog.rank(query, k, policy=policy, seed=1, rules=known)
    again = catalog.log_propensities(query, ranking.item_ids, policy=policy, rules=known, k=k)
    error = float(np.abs(np.asarray(again) - ranking.log_propensities).max(initial=0.0))
    if not error <= _AGREE + ranking.log_norm_error:
        raise ValueError(f"self-test: propensities differ by {error:g} ({policy})")
    return Named(rules, wanted)


def places_of(rules: fr.Rules, n_items: int) -> int:
    """How many places show everything, or most, of what the rules say about places."""
    last = max([0, *rules.pin, *rules.pin_where])
    return max(min(10, n_items), min(last, n_items, _MOST_PLACES), sum(rules.at_least.values()))


def _without(rules: fr.Rules, names: frozenset[str]) -> fr.Rules:
    """The rules without the expressions that use one of these names."""
    if not names:
        return rules
    content = rules.to_dict()

    def has(text: str) -> bool:
        return not names.isdisjoint(rules.expression(text).names)

    if rules.where is not None and has(rules.where):
        del content["where"]
    for kind in ("at_least", "boost", "boost_score"):
        content[kind] = {t: value for t, value in content.get(kind, {}).items() if not has(t)}
    content["pin_where"] = {p: t for p, t in content.get("pin_where", {}).items() if not has(t)}
    return fr.Rules.from_dict(content)


# ---- Of requests ----------------------------------------------------------------------------


def made(body: RulesBody, catalog: Scorer) -> fr.Rules:
    """Build the rules of a request, with pinned ids as the catalog has them.

    Raises
    ------
    ProblemError
        422, naming the rule and the value.
    """
    content = body.content
    like = catalog.item_ids
    for place, item in content.get("pin", {}).items():
        found = id_from_text(str(item), like)
        if found is None:
            raise invalid_value(f"rules.pin.{place}", str(item), as_written(like))
        content["pin"][place] = found
    try:
        return fr.Rules.from_dict(content)
    except ValueError as error:
        text = f"rules: {str(error).removeprefix('rules: ')}"
        raise ProblemError(422, "invalid_value", text, field=field_of(text)) from None


def work_of(rules: fr.Rules | RulesBody | None, after: int, n: int, d: int, k: int) -> int:
    """Estimate the work of rules for a ranking, in multiply-adds; `after`: items shown before."""
    if rules is None:
        return _SHOWN * after
    said = _Said.of(rules)
    work = said.characters * (n // 2 + (_CHARACTER if isinstance(rules, RulesBody) else 0))
    if not (said.parts or said.pins):
        return work + _SHOWN * after
    # Where much is blocked, a place is drawn again from the rest.
    work += _WALK + k * (_PLACE * (1 + said.parts) + n * (d + _ITEM * (1 + said.parts)))
    work += _SHOWN * after * (1 + said.parts)
    return work + k * sum(_WINDOW * min(row, after + k) for row in said.rows)


def bytes_of(rules: fr.Rules | RulesBody, n: int) -> int:
    """Estimate the memory that rules take with a catalog of n items."""
    return n * (_Said.of(rules).expressions + 24)


class _Said(NamedTuple):
    """The parts of rules that cost time or memory."""

    characters: int  # of expressions
    expressions: int
    parts: int  # columns and sets that make places differ
    pins: int
    rows: list[int]  # of windows

    @classmethod
    def of(cls, rules: fr.Rules | RulesBody) -> _Said:
        kinds: dict[str, Mapping[Any, Any]] = {
            name: getattr(rules, name) or {}
            for name in ("cap", "window", "at_least", "decay", "pin", "pin_where", "boost")
        }
        kinds["boost_score"] = rules.boost_score or {}
        texts = [*kinds["at_least"], *kinds["pin_where"].values()]
        texts += [*kinds["boost"], *kinds["boost_score"], *filter(None, [rules.where])]
        parts = sum(len(kinds[name]) for name in ("cap", "window", "at_least", "decay"))
        return cls(
            sum(map(len, texts)),
            len(texts),
            parts + len(kinds["pin_where"]),
            len(kinds["pin"]),
            [row for _, row in kinds["window"].values()],
        )
