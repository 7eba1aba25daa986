"""Foreign logs for `fastrank evaluate`: whose format they have, and what their columns hold."""

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
# Options that say what a table's columns hold, with the matching arguments of `from_table`.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "--item": ("item", "What was shown; a list, top place first, if each row is a whole ranking."),
    "--propensity": (
        "propensity",
        "The probability that the logging policy showed it, given the places above.",
    ),
    "--log-propensity": ("log_propensity", "The natural logarithm of the propensity, instead."),
    "--reward": ("reward", "What was earned; an empty cell was not observed."),
    "--request": ("request", "Rows with the same request form a ranking, one item per row."),
    "--position": ("position", "The item's place, from 0 or 1; by default the order of the rows."),
    "--user": ("user", "The user; rows of one user depend on each other."),
    "--time": ("time", "When the row was served; in UTC if it names no zone."),
    "--displayed": ("displayed", "How many places were really shown."),
    "--row-weight": ("row_weight", "How many rankings the row stands for, above 0."),
    "--n-eligible": ("n_eligible", "How many items could be shown, or one number for all rows."),
    "--logged-by": ("logged_by", "Name of the policy that logged the row, if there are several."),
}
_ARGUMENTS = {argument: option for option, (argument, _) in _OPTIONS.items()}
OPTIONS = (*_ARGUMENTS, "propensity_of")
# Options that a foreign log cannot use, since it comes without a model.
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
    """Add the options of ``--format table``."""
    kinds = click.Choice(["item", "prefix", "ranking"])
    command = click.option(
        "--propensity-of",
        type=kinds,
        help="Of --format table: what a propensity covers: the item in its place, all items down to"
        " it, or the whole ranking.  [default: item]",
    )(command)
    for option, (argument, words) in reversed(list(_OPTIONS.items())):
        help_ = f"Of --format table: {words[0].lower()}{words[1:]}"
        command = click.option(option, argument, metavar="COLUMN", help=help_)(command)
    return command


def refuse_options(kind: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError, naming every option that does not fit the format."""
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
            why = "such a log comes without a model, and lacks the columns that these need"
            if kind == "dsjson":
                why = "such a log is evaluated for its two policies, uniform and first"
            _refuse([(", ".join(unfit), f"not with --format {kind}: {why}")])


def table_log(
    logs: Sequence[str],
    options: Mapping[str, Any],
    policies: Sequence[tuple[str, str | Policy]],
    arrays: Sequence[str],
) -> TableLog:
    """Open files of a table as a log; a UsageError names everything that is missing at once.

    Parameters
    ----------
    logs : sequence of str
    options : mapping of str to str
        The options of `table_options`.
    policies : sequence of (str, str or Policy)
        By label: a column, or what `uniform_policies` made of ``--policy``.
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
    """Turn errors about a table's columns into a UsageError that names the options."""
    try:
        yield
    except ColumnsError as error:
        _refuse(_as_options(error.problems), error.columns_said)


def uniform_policies(texts: Sequence[str]) -> list[tuple[str, Policy]]:
    """The policies of ``--policy`` for a table, by label; UsageError for one that needs a model."""
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
    """Open dsjson files as a log."""
    if not logs:
        _refuse([("LOGS", "name a file, a directory or a glob")])
    return from_dsjson(list(logs))


def _as_options(problems: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Translate arguments of `from_table` into the names of their options, in texts too."""

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
