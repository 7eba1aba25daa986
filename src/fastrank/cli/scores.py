"""Scores and rules on the command line: options, and files of columns."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastrank.arraytypes import Positions
from fastrank.catalog import Catalog
from fastrank.rules import Rules
from fastrank.rulesfile import read_rules, rules_of_json
from fastrank.scoring import ScoreFunction, imported
from fastrank.vectorfiles import read_columns

__all__ = [
    "features_of",
    "functions_of",
    "param_option",
    "params_of",
    "rules_of",
    "said_of",
    "score_function_option",
]

score_function_option = click.option(
    "--score-function",
    "score_functions",
    multiple=True,
    metavar="MODULE:NAME",
    help="A score function that the model's score, --score or a log may name. Its module is"
    " imported, also from the current directory. Repeatable.",
)
param_option = click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the score, or of --rules: a number, true, false, or else text; '\"42\"' is"
    " text, too. Repeatable.",
)


def functions_of(paths: Sequence[str]) -> list[ScoreFunction]:
    """Those of --score-function."""
    if paths and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return imported(paths)
    except ValueError as error:
        raise click.UsageError(f"--score-function: {error}") from None


def params_of(texts: Sequence[str]) -> dict[str, float | bool | str] | None:
    """Those of --param; None for none."""
    found: dict[str, float | bool | str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise click.UsageError(f"--param: expected NAME=VALUE, got {text!r}")
        if name in found:
            raise click.UsageError(f"--param: {name} is given twice")
        found[name] = _value(value)
    return found or None


def rules_of(text: str) -> Rules:
    """Those of --rules: of JSON, or of a file's name."""
    try:
        is_json = text.lstrip().startswith(("{", "[", '"'))
        return rules_of_json(text) if is_json else read_rules(Path(text))
    except ValueError as error:
        raise click.UsageError(f"--rules: {str(error).removeprefix('rules: ')}") from None
    except OSError as error:
        raise click.UsageError(f"--rules: {text}: {error.strerror or error}") from None


def _value(text: str) -> float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        with contextlib.suppress(ValueError):
            return str(json.loads(text))
    try:
        return float(text)
    except ValueError:
        return text


def features_of(path: Path, id_columns: Sequence[str], catalog: Catalog) -> dict[str, Any]:
    """Columns of a file in catalog order: by the ids in one of its columns, the first that it has.

    Of no `id_columns`, row by row.

    Raises
    ------
    ValueError
        If the file lacks an item or has one twice; the message names the file and the item.
    """
    ids, columns = read_columns(path, id_columns)
    if not id_columns:
        return columns
    if ids is None:
        raise ValueError(
            f"{path}: no column named {' or '.join(id_columns)}; found {', '.join(columns)}."
            " --feature-id-column names the column of ids; --features-by-row says that rows are in"
            " the order of --items"
        )
    rows = catalog._rows_of(ids)
    place = np.full(len(catalog), -1, np.int64)
    known = np.flatnonzero(rows >= 0)
    place[rows[known]] = known
    missing = np.flatnonzero(place < 0)
    if missing.size:
        item = catalog.item_ids[missing[0]].item()
        more = f", and {missing.size - 1:,} more" if missing.size > 1 else ""
        raise ValueError(f"{path}: has no row of the item {item!r}{more}")
    if len(known) > len(catalog):
        twice = np.flatnonzero(np.bincount(rows[known], minlength=len(catalog)) > 1)[0]
        raise ValueError(f"{path}: has two rows of the item {catalog.item_ids[twice].item()!r}")
    return {name: _taken(column, place) for name, column in columns.items()}


def _taken(column: Any, rows: Positions) -> Any:
    if isinstance(column, np.ndarray):
        return column[rows]
    return [column[row] for row in rows.tolist()]


def said_of(score: Mapping[str, Any]) -> str:
    """A score in a line."""
    params = ", ".join(f"{name} = {value}" for name, value in score["params"].items())
    return f"{score['name']}{', ' if params else ''}{params}"
