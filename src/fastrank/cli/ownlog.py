"""Logs of other makings for `fastrank evaluate`: whose table it is, and what its columns hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from fastrank.eventlog import ColumnsError, OwnLog, TableLog, from_dsjson
from fastrank.eventlog.owncolumns import Columns, missing
from fastrank.policies import Policy, law_of
from fastrank.policies.spec import parse_policy

__all__ = [
    "FORMATS",
    "OPTIONS",
    "dsjson_log",
    "refuse_options",
    "saying_options",
    "table_log",
    "table_options",
]

FORMATS = ("table", "dsjson")
# Options that say what a table's columns hold, with the arguments of `from_table` that they are.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "--item": ("item", "What was shown; lists, the top place first, where a row is a ranking."),
    "--propensity": (
        "propensity",
        "The probability with which the logging policy showed it, given the places above.",
    ),
    "--log-propensity": ("log_propensity", "Or its natural logarithm."),
    "--reward": ("reward", "What was earned; empty is not observed."),
    "--request": ("request", "Rows of one request are a ranking, an item a row."),
    "--position": ("position", "The item's place in it, from 0 or 1; by default as rows come."),
    "--user": ("user", "Whose rows depend on each other."),
    "--time": ("time", "When it was served; without a zone UTC."),
    "--displayed": ("displayed", "How many places were really shown."),
    "--row-weight": ("row_weight", "How many rankings it stands for, above 0."),
    "--n-eligible": ("n_eligible", "How many items could be shown; or one number for all rows."),
    "--logged-by": ("logged_by", "Name of the policy that logged it, where there are several."),
}
_ARGUMENTS = {argument: option for option, (argument, _) in _OPTIONS.items()}
OPTIONS = (*_ARGUMENTS, "propensity_of")
# Options that a log of another making has no use for: it comes without a model.
_OF_MODELS = {
    "models": "--model",
    "restrict_to_logged_catalog": "--restrict-to-logged-catalog",
    "keep_candidates": "--keep-candidates",
    "include_fallback": "--include-fallback",
    "include_caller_seeds": "--include-caller-seeds",
    "no_audit": "--no-audit",
    "score_functions": "--score-function",
    "policy_rules": "--policy-rules",
    "carried": "--also",
}
_OF_COLUMNS = {"columns": "--column", "arrays": "--array", "policies": "--policy"}


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of ``--format table``."""
    kinds = click.Choice(["item", "prefix", "ranking"])
    command = click.option(
        "--propensity-of",
        type=kinds,
        help="Of --format table: what the propensity is of: the item in its place, all items"
        " down to it, or the whole ranking.  [default: item]",
    )(command)
    for option, (argument, words) in reversed(list(_OPTIONS.items())):
        help_ = f"Of --format table: {words[0].lower()}{words[1:]}"
        command = click.option(option, argument, metavar="COLUMN", help=help_)(command)
    return command


def refuse_options(kind: str, options: Mapping[str, Any]) -> None:
    """A UsageError that names every option that makes no sense with a format."""
    unfit = [
        option
        for name, option in {**_ARGUMENTS, "propensity_of": "--propensity-of"}.items()
        if kind != "table" and options[name] is not None
    ]
    if unfit:
        _refuse([(", ".join(unfit), "only with --format table")])
    if kind in FORMATS:
        names = _OF_MODELS if kind == "table" else {**_OF_MODELS, **_OF_COLUMNS}
        unfit = [option for name, option in names.items() if options[name]]
        if unfit:
            why = "such a log comes without a model, and does not say what these go by"
            if kind == "dsjson":
                why = "such a log is evaluated for its two policies, uniform and first"
            _refuse([(", ".join(unfit), f"not with --format {kind}: {why}")])


def table_log(
    logs: Sequence[str],
    options: Mapping[str, Any],
    policies: Sequence[tuple[str, str | Policy]],
    arrays: Sequence[str],
) -> TableLog:
    """The log that files of a table are; a UsageError names all that is missing at once.

    Parameters
    ----------
    logs : sequence of str
    options : mapping of str to str
        Those of `table_options`.
    policies : sequence of (str, str or Policy)
        By label: the column, or what `uniform_policies` made of ``--policy``.
    arrays : sequence of str
        Further columns.
    """
    named = {name: options[name] for name in _ARGUMENTS}
    count = named["n_eligible"]
    if count is not None and count.isascii() and count.isdecimal():
        named["n_eligible"] = int(count)
    repeated = [label for label, n in Counter(label for label, _ in policies).items() if n > 1]
    if repeated:
        _refuse([("--column", f"two policies are called {repeated[0]!r}")])
    asked = Columns(
        **named,
        propensity_of=options["propensity_of"] or "item",
        policies=dict(policies),
        columns=arrays,
    )
    require = ("reward", "policies")
    if not logs:
        _refuse(
            [("LOGS", "name a file, a directory or a glob"), *_as_options(missing(asked, require))]
        )
    return TableLog(list(logs), asked, require)


@contextmanager
def saying_options() -> Iterator[None]:
    """Make a UsageError of what is wrong with a table's columns, in terms of the options."""
    try:
        yield
    except ColumnsError as error:
        _refuse(_as_options(error.problems), error.columns_said)


def uniform_policies(texts: Sequence[str]) -> list[tuple[str, Policy]]:
    """What ``--policy`` names for a table, by label; a UsageError for what wants a model."""
    found = []
    for text in texts:
        spec, at, _ = text.partition("@")
        label, policy = parse_policy(spec, "--policy")
        if at or callable(policy) or not law_of(policy).is_uniform:
            why = "a table comes without a model; possible are uniform, with --n-eligible,"
            _refuse([("--policy", f"{text}: {why} and a --column")])
        found.append((label, policy))
    return found


def dsjson_log(logs: Sequence[str]) -> OwnLog:
    """The log that dsjson files are."""
    if not logs:
        _refuse([("LOGS", "name a file, a directory or a glob")])
    return from_dsjson(list(logs))


def _as_options(problems: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Arguments of `from_table` as the options that they are, in texts too."""

    def option(argument: str) -> str:
        if argument.startswith("policies"):
            return "--column" + argument.removeprefix("policies").replace("[", " ").rstrip("]")
        return _ARGUMENTS.get(argument, "--array" if argument == "columns" else f"--{argument}")

    return [
        (option(name), re.sub(r"`(\w+)`", lambda found: option(found[1]), what))
        for name, what in problems
    ]


def _refuse(problems: Sequence[tuple[str, str]], more: Sequence[str] = ()) -> NoReturn:
    raise click.UsageError("; ".join([*(f"{name}: {what}" for name, what in problems), *more]))
