"""What the columns of a foreign table hold; all errors are reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from fastrank.eventlog.sources import plain_type
from fastrank.inputs import shown
from fastrank.policies import Policy

__all__ = ["Columns", "ColumnsError", "PropensityOf", "Shape", "checked", "expected", "missing"]

PropensityOf: TypeAlias = Literal["item", "prefix", "ranking"]


class ColumnsError(ValueError):
    """Everything that is missing from a call, or from the table, at once.

    Attributes
    ----------
    problems : tuple of (str, str)
        Arguments, each with what is wrong with it.
    found : tuple of str
        The table's columns, if one was not found.
    """

    def __init__(self, problems: Sequence[tuple[str, str]], found: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        self.found = tuple(found)
        said = [f"{name}: {what}" for name, what in self.problems]
        super().__init__("; ".join([*said, *self.columns_said]))

    @property
    def columns_said(self) -> list[str]:
        """A sentence about the table's columns, or nothing."""
        return [f"the table's columns are {', '.join(self.found)}"] if self.found else []


@dataclass(frozen=True, slots=True)
class Columns:
    """What a table's columns hold, as given to `from_table`."""

    item: str | None = None
    propensity: str | None = None
    log_propensity: str | None = None
    propensity_of: PropensityOf = "item"
    reward: str | None = None
    request: str | None = None
    position: str | None = None
    user: str | None = None
    time: str | None = None
    displayed: str | None = None
    row_weight: str | None = None
    n_eligible: str | int | None = None
    logged_by: str | None = None
    policies: Mapping[str, str | Policy] = field(default_factory=dict)
    columns: Sequence[str] = ()

    @property
    def named(self) -> list[tuple[str, Any]]:
        """Arguments that name a column, each with that column."""
        found = [(name, getattr(self, name)) for name in _WANTED if name != "columns"]
        if isinstance(self.policies, Mapping):
            found += [
                (f"policies[{label!r}]", each)
                for label, each in self.policies.items()
                if not isinstance(each, Policy)
            ]
        found += [("columns", each) for each in self.columns]
        constant = _is_integer(self.n_eligible)
        return [
            (name, column)
            for name, column in found
            if column is not None and not (name == "n_eligible" and constant)
        ]


# For each argument that names a column: what it holds, in words and as a type.
_IDS = "integers or texts"
_NUMBERS = "numbers"
_TEXTS = "texts or integers"
_TIMES = "timestamps, or ISO 8601 texts"
_WANTED: Mapping[str, str] = {
    "item": _IDS,
    "propensity": _NUMBERS,
    "log_propensity": _NUMBERS,
    "reward": _NUMBERS,
    "request": _TEXTS,
    "position": _NUMBERS,
    "user": _TEXTS,
    "time": _TIMES,
    "displayed": _NUMBERS,
    "row_weight": _NUMBERS,
    "n_eligible": _NUMBERS,
    "logged_by": _TEXTS,
    "columns": _NUMBERS,
}
# Values per item, lists if items are lists; all others are per ranking.
_OF_ITEMS = ("propensity", "log_propensity")
_MAY_BE_EITHER = ("reward", "columns")


@dataclass(frozen=True, slots=True)
class Shape:
    """How a table represents rankings.

    Attributes
    ----------
    has_lists : bool
        Whether items are lists.
    is_grouped : bool
        Whether a row is an item of the ranking that its request identifies.
    listed : frozenset of str
        Columns that are lists.
    """

    has_lists: bool
    is_grouped: bool
    listed: frozenset[str]


def expected(argument: str) -> str:
    """Describe what the column of an argument holds."""
    return _WANTED["propensity" if argument.startswith("policies[") else argument]


def missing(named: Columns, require: Collection[str] = ()) -> list[tuple[str, str]]:
    """Errors in a call that do not depend on the table: arguments, and what to do about each.

    Parameters
    ----------
    named : Columns
    require : collection of str
        The ones of ``reward`` and ``policies`` that are required besides items and propensities.
    """
    problems: list[tuple[str, str]] = []
    if named.item is None:
        problems.append(("item", "name the column of what was shown"))
    if named.propensity is None and named.log_propensity is None:
        of = "the probability of what was shown under the logging policy"
        problems.append(("propensity", f"name the column of {of}, or `log_propensity`"))
    if named.propensity is not None and named.log_propensity is not None:
        problems.append(("log_propensity", "give this or `propensity`, not both"))
    if "reward" in require and named.reward is None:
        problems.append(("reward", "name the column of what was earned"))
    if named.propensity_of not in get_args(PropensityOf):
        said = ", ".join(get_args(PropensityOf))
        problems.append(("propensity_of", f"expected {said}; got {shown(named.propensity_of)}"))
    if named.position is not None and named.request is None:
        problems.append(("position", "means the place within a request: name `request`, too"))
    problems += _of_policies(named, "policies" in require)
    n = named.n_eligible
    if n is not None and not isinstance(n, str) and not (_is_integer(n) and 1 <= n < 2**63):
        problems.append(("n_eligible", f"expected a column or an integer from 1, got {shown(n)}"))
    return problems


def checked(named: Columns, schema: pa.Schema, require: Collection[str] = ()) -> Shape:
    """The shape of a table; ColumnsError with everything wrong in a call and its columns."""
    problems = missing(named, require)
    absent = False
    for argument, column in named.named:
        if not isinstance(column, str):
            problems.append((argument, f"expected the name of a column, got {shown(column)}"))
        elif column not in schema.names:
            absent = True
            near = difflib.get_close_matches(column, schema.names, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            problems.append((argument, f"no column named {column!r}{hint}"))
        elif schema.names.count(column) > 1:
            problems.append((argument, f"two columns are named {column!r}"))
        else:
            problems += _of_type(argument, column, schema, named)
    if problems:
        raise ColumnsError(problems, schema.names if absent else ())
    assert named.item is not None
    listed = frozenset(each for _, each in named.named if pa.types.is_list(_kind(schema, each)))
    has_lists = named.item in listed
    return Shape(has_lists, named.request is not None and not has_lists, listed)


def _of_policies(named: Columns, required: bool) -> list[tuple[str, str]]:
    if not isinstance(named.policies, Mapping):
        what = f"expected labels with columns, got {shown(named.policies)}"
        return [("policies", what)]
    if required and not named.policies:
        what = "name a column of what was shown's propensity under another policy, by its label"
        return [("policies", what)]
    found = []
    for label, each in named.policies.items():
        argument = f"policies[{label!r}]"
        if not isinstance(label, str):
            found.append((argument, "expected a text as its label"))
        if isinstance(each, Policy):
            if each.law is None or not each.law.is_uniform:
                what = "of policies only fr.Uniform() needs no scores; name a column"
                found.append((argument, what))
            elif named.n_eligible is None:
                found.append((argument, "wants `n_eligible`: how many items could be shown"))
    return found


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _kind(schema: pa.Schema, column: str) -> pa.DataType:
    return plain_type(schema.field(column).type)


def _of_type(
    argument: str, column: str, schema: pa.Schema, named: Columns
) -> list[tuple[str, str]]:
    """What is wrong with the type of a column, if anything."""
    name = "propensity" if argument.startswith("policies[") else argument
    kind, wanted = _kind(schema, column), expected(argument)
    has = f"column {column!r} is of type {schema.field(column).type}"
    lists = pa.types.is_list(kind)
    if not _holds(kind.value_type if lists else kind, wanted):
        return [(argument, f"{has}; expected {wanted}")]
    if argument == "item":
        if lists and named.position is not None:
            return [("position", "lists of items are in the order of their places: leave it out")]
        return []
    item = named.item
    if not isinstance(item, str) or schema.names.count(item) != 1:
        return []  # said before
    of_item = pa.types.is_list(_kind(schema, item))
    if name in _OF_ITEMS:
        needs_lists = of_item and named.propensity_of != "ranking"
    elif name in _MAY_BE_EITHER:
        needs_lists = lists and of_item
    else:
        needs_lists = False
    if lists and not needs_lists:
        why = " a ranking" if of_item else f", as {item!r} has"
        return [(argument, f"{has}; expected one value{why}")]
    if needs_lists and not lists:
        return [(argument, f"{has}; expected lists, as {item!r} has")]
    return []


def _holds(kind: pa.DataType, wanted: str) -> bool:
    is_text, is_null = pa.types.is_string(kind), pa.types.is_null(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if is_null:
        return True  # read from a CSV file, or without any value
    if wanted in (_IDS, _TEXTS):
        return bool(is_text or is_number)
    if wanted == _TIMES:
        return bool(is_text or pa.types.is_timestamp(kind) or pa.types.is_date(kind))
    return bool(is_number or pa.types.is_boolean(kind) or pa.types.is_decimal(kind))
