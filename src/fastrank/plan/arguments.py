"""Check arguments; a ValueError names the argument and its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray
from fastrank.catalog import Catalog
from fastrank.expressions import as_params
from fastrank.ids import Ids
from fastrank.inputs import as_count, as_float32, as_real, shown
from fastrank.model import Model, scorer_of
from fastrank.plan.points import Kind, Target
from fastrank.policies import Deterministic, Policy, law_of, no_policy
from fastrank.policies.relative import RelativeTemperature
from fastrank.rules import Rules
from fastrank.scorer import Eligible, Scorer

__all__ = [
    "check_k",
    "check_kind",
    "checked_prefixes",
    "checked_targets",
    "filters_under",
    "fraction",
    "user_count",
    "users_of",
]


_USERS = 200
_SCORES = 20_000_000  # scores of all users together: 80 MB


def check_k(k: object, items: Scorer | Eligible) -> int:
    places = as_count("k", k)
    if places > len(items):
        what = "items" if isinstance(items, Scorer) else "eligible items"
        raise ValueError(f"k: expected 1 to {len(items)}, the number of {what}; got {places}")
    return places


def check_kind(kind: object) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}; got {kind!r}")


def filters_under(
    scorer: Scorer,
    exclude: Ids | None,
    allow: Ids | None,
    rules: Rules | None,
    params: Mapping[str, Any] | None,
) -> tuple[Ids | None, Ids | None]:
    """Return `exclude` and `allow` combined with the filter `where` of rules.

    Raises
    ------
    ValueError
        If rules contain more than `where`: places then depend on each other, and a plan has no
        figures for such rankings.
    """
    given = as_params(params)
    if rules is None:
        if given:
            raise ValueError(f"params: got {shown(min(given))}; expected none without rules")
        return exclude, allow
    if not isinstance(rules, Rules):
        raise ValueError(f"rules: expected Rules, got {shown(rules)}")
    for name, value in rules.to_dict().items():
        if name not in ("where", "on_empty"):
            raise ValueError(
                f"rules: {name}: got {shown(value)}; a plan supports only where=, since it has no"
                " figures for rankings under other rules"
            )
    if not isinstance(scorer, Catalog):
        raise ValueError(f"rules: expected none, since a {type(scorer).__name__} has no columns")
    unknown = [name for name in given if name not in rules.names]
    if unknown:
        raise ValueError(f"params: {shown(unknown[0])} is not a parameter of the rules")
    ruled = scorer._bind_rules(rules, None, given, scorer.features)
    if ruled is None or ruled.bound.where is None:
        return exclude, allow
    left = scorer._left(exclude, allow) & scorer._by_row(ruled.bound.where)
    if not left.any():
        raise ValueError(f"rules: where: {shown(rules.where)} holds for no eligible item")
    return None, scorer.item_ids[left]


def fraction(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0.0 < value < 1.0:
        raise ValueError(f"{name}: must lie between 0 and 1, got {value!r}")
    return float(value)


def checked_targets(targets: Mapping[str, Target] | None) -> dict[str, Target]:
    if targets is None:
        return {"deterministic": Deterministic(), "temperature x0.8": RelativeTemperature(0.8)}
    for label, target in targets.items():
        if isinstance(target, Policy):
            law_of(target, f"targets: {label}")
        elif not callable(target):
            raise no_policy(f"targets: {label}", target)
    return dict(targets)


def checked_prefixes(prefixes: Sequence[int] | None, k: int) -> tuple[int, ...]:
    if prefixes is None:
        return tuple(sorted({place for place in (1, 3, 5, k) if place <= k}))
    places = sorted({as_count("prefixes", prefix) for prefix in prefixes})
    if not places or places[-1] > k:
        raise ValueError(f"prefixes: expected places from 1 to {k}, got {list(prefixes)!r}")
    return tuple(places)


def users_of(
    model: Model | Scorer, queries: npt.ArrayLike | None, rows: Sequence[int] | None = None
) -> tuple[Scorer, Float32Array, FloatArray | None, int]:
    """Return the catalog, vectors (u, d) and temperature factors (u,) of some rows, and the number
    of all rows."""
    catalog = scorer_of("model", model)
    if queries is None and not isinstance(model, Model):
        raise ValueError("queries: expected the users' vectors, since a catalog has no users")
    if queries is not None:
        array = as_real("queries", queries)
        if array.ndim != 2 or len(array) == 0 or array.shape[1] != catalog.dim:
            raise ValueError(
                f"queries: expected shape (q, {catalog.dim}) with q >= 1, got {array.shape}"
            )
        vectors = as_float32("queries", array, array.shape)
        return catalog, vectors if rows is None else vectors[list(rows)], None, len(vectors)
    assert isinstance(model, Model)
    ids = model.user_ids if rows is None else model.user_ids[list(rows)]
    users = ids.tolist()
    factors = None
    if model.has_user_temperatures:
        factors = np.array([model.user_temperature(user) for user in users])
    vectors = np.array([model.user_vector(user) for user in users], np.float32)
    return catalog, vectors, factors, len(model.user_ids)


def user_count(users: int | None, n_items: int, n_users: int) -> int:
    if users is None:
        return min(n_users, _USERS, max(20, _SCORES // n_items))
    return min(n_users, as_count("users", users))
