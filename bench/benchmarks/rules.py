"""Rules of a shop, by name, and the columns that they speak of.

Rankings under them are Plackett-Luce; "gumbel" of `calls` is the same without rules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import fastrank as fr

__all__ = ["NAMES", "Asked", "asked", "columns"]

_GROUPS = {"cap of 16": 16, "cap of 256": 256, "cap of 4000": 4_000, "cap of 100000": 100_000}
_RULES: dict[str, dict[str, Any]] = {
    **{name: {"cap": {f"g{groups}": 2}} for name, groups in _GROUPS.items()},
    "cap of a large one": {"cap": {"large": 2}},
    "window": {"window": {"g256": (1, 5)}},
    "pin": {"pin": {3: 7}},
    "at least": {"at_least": {"new": 3}},
    "decay": {"decay": {"g256": 0.5}},
    "page 2": {"cap": {"g256": 2}},
}
NAMES = list(_RULES)


class Asked(NamedTuple):
    """Rules, and whether a page before has been shown."""

    rules: Any
    has_page: bool


def asked(name: str) -> Asked:
    """Those of this name; see the list above."""
    return Asked(fr.Rules(**_RULES[name]), name == "page 2")


def columns(n: int) -> dict[str, Any]:
    """Of n items: groups of about the same size, one that has nearly all, and the new ones."""
    rng = np.random.default_rng(4)
    return {
        **{f"g{groups}": rng.integers(groups, size=n) for groups in _GROUPS.values()},
        "large": rng.permutation(n) >= max(20, n // 1000),  # enough are left for a list
        "new": rng.random(n) < 0.05,
    }
