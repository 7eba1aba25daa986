"""Scores other than dot products: an expression, or a function, with its parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from fastrank.ask import Bound
from fastrank.expressions import Expression, Params, parsed
from fastrank.features import Features
from fastrank.inputs import shown
from fastrank.ranking import Score
from fastrank.scoring import ScoreFunction

__all__ = ["ScoreLike", "as_score", "bind"]

ScoreLike: TypeAlias = str | Expression | ScoreFunction


def as_score(given: Any) -> Expression | ScoreFunction | None:
    """The score that a caller passed; None for the dot product itself."""
    if isinstance(given, str):
        given = parsed(given)
    if isinstance(given, Expression):
        return None if given.text == "dot" else given
    if isinstance(given, ScoreFunction):
        return given
    raise ValueError(
        "score: expected an expression, as a text, or a function made by"
        f" fastrank.score_function, got {shown(given)}"
    )


def bind(
    score: Expression | ScoreFunction,
    params: Params,
    features: Features | None,
    n_items: int,
    id_at: Callable[[int], Any],
) -> Bound:
    """Join a score with columns and parameters; `id_at` returns the id of a position."""

    def refuse(position: int, what: str) -> str:
        with_params = f", with params {dict(params)}" if params else ""
        # Machine code can only return a number for an exception.
        raised = " or an exception" if score.kind == "function" and what == "nan" else ""
        return (
            f"score: {shown(score.text)} gives the item {shown(id_at(position))} {what}{raised}"
            f"{with_params}; a score is finite, of at most 1e38"
        )

    function = score.bind(features, params, n_items, refuse)
    made = Score(score.text, score.hash, dict(params))
    has_columns = features is not None and any(features.kind(name) for name in score.names)
    version = features.version if features is not None and has_columns else None
    key = json.dumps([made.hash, made.params_text, version]).encode()
    return Bound(function, made, key, version)
