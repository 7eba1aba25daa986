"""Scores that are more than a dot product: expressions, and functions that Numba compiles.

Functions stand in a file, since `fr.score_function` reads their source.
"""

from __future__ import annotations

import math
import time
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import fastrank as fr

try:
    from fastrank.scoring import exp
except ImportError:  # asv measures older commits, too, which have no scores

    def exp(x: float) -> float:
        return math.exp(x)


__all__ = ["EXPRESSIONS", "FUNCTIONS", "Score", "first_call", "score"]

FUNCTIONS = ["numba identity", "numba decay"]
_HALF_LIFE = {"half_life": 30.0}
_DECAY = "dot + 0.3 * exp(-age / half_life)"
_EXPRESSIONS: dict[str, tuple[str, dict[str, float]]] = {
    "cosine expression": ("dot / norm", {}),
    "decay expression": (_DECAY, _HALF_LIFE),
    "two heads expression": ("v * sigmoid(dot) + w * price", {"v": 0.8, "w": 0.001}),
    "eight weights expression": (
        "dot + " + " + ".join(f"w{i} * x{i}" for i in range(8)),
        {f"w{i}": 0.01 * (i + 1) for i in range(8)},
    ),
}
EXPRESSIONS = list(_EXPRESSIONS)


def identity(dot: float) -> float:
    return dot


def decay(dot: float, age: float, half_life: float) -> float:
    return dot + 0.3 * exp(-age / half_life)


class Score(NamedTuple):
    """For ``score=`` and ``params=``, and what it says as an expression, for the oracle."""

    score: Any
    params: dict[str, float]
    text: str


@cache
def score(name: str) -> Score:
    """The one of this name; see the lists above."""
    if name in _EXPRESSIONS:
        text, params = _EXPRESSIONS[name]
        return Score(text, params, text)
    if name == "numba identity":
        return Score(fr.score_function(identity), {}, "dot")
    if name == "numba decay":
        return Score(fr.score_function(decay), _HALF_LIFE, _DECAY)
    raise ValueError(f"name: there is no score {name!r}")


def first_call() -> float:
    """Seconds of the first ranking by a function in this process, of a few items."""
    asked = score("numba decay")
    ages = np.arange(1_000.0)
    catalog = fr.Catalog(np.arange(1_000), np.ones((1_000, 8)), features={"age": ages})
    policy = fr.PlackettLuce(1.0)
    start = time.perf_counter()
    catalog.rank(np.ones(8), 10, policy=policy, score=asked.score, params=asked.params)
    return time.perf_counter() - start
