"""Policies: frozen values that decide how a ranking is drawn.

A policy holds parameters, and states its law and its sampler; a catalog draws from it. Each has two
names: the *inference type*, written to logs and answers, and a short one. Arguments accept either:
`inference_type_of` reads the name, and `policy` constructs the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fastrank.inputs import nearest, shown
from fastrank.policies.base import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Law,
    Policy,
    is_frozen,
    law_of,
    no_policy,
    real,
)
from fastrank.policies.best_first import MAX_HEAD, BestFirst
from fastrank.policies.deterministic import Deterministic
from fastrank.policies.epsilon_greedy import EpsilonGreedy
from fastrank.policies.flat_tail import MAX_CANDIDATES, MIN_FACTOR, FlatTail
from fastrank.policies.plackett_luce import PlackettLuce, Sampler
from fastrank.policies.uniform import Uniform

__all__ = [
    "INFERENCE_TYPES",
    "MAX_HEAD",
    "MAX_TEMPERATURE",
    "MIN_TEMPERATURE",
    "NAMES",
    "PARAMETERS",
    "TABLED",
    "BestFirst",
    "Deterministic",
    "EpsilonGreedy",
    "FlatTail",
    "Law",
    "Name",
    "Parameter",
    "PlackettLuce",
    "Policy",
    "Sampler",
    "Uniform",
    "completed",
    "inference_type_of",
    "is_frozen",
    "law_name",
    "law_of",
    "names_of",
    "no_policy",
    "parameters_of",
    "policy",
    "sampler_name",
    "short_name",
    "words_of_names",
]

INFERENCE_TYPES: Mapping[str, tuple[type[Policy], Mapping[str, Any], tuple[str, ...]]] = {
    "deterministic": (Deterministic, {}, ()),
    "stochastic_plackett_luce": (PlackettLuce, {"sampler": "sequential"}, ("temperature",)),
    "stochastic_plackett_luce_cached": (PlackettLuce, {"sampler": "cached"}, ("temperature",)),
    "stochastic_plackett_luce_auto": (PlackettLuce, {"sampler": "auto"}, ("temperature",)),
    "stochastic_gumbel_softmax_trick": (PlackettLuce, {"sampler": "gumbel"}, ("temperature",)),
    "stochastic_epsilon_greedy": (EpsilonGreedy, {}, ("epsilon",)),
    "stochastic_flat_tail": (FlatTail, {}, ("temperature", "m", "factor")),
    "uniform": (Uniform, {}, ()),
}
"""By inference type: its class, the arguments that it fixes, the parameters that it accepts."""


class Name(NamedTuple):
    """The short name of an inference type, and a line on what it does."""

    short: str
    words: str


# Recommended ones come first: Plackett-Luce in one pass before the textbook's sampler.
NAMES: Mapping[str, Name] = {
    "deterministic": Name("deterministic", "the k best by score, always"),
    "stochastic_gumbel_softmax_trick": Name(
        "plackett_luce", "Plackett-Luce in one pass, by Gumbel noise"
    ),
    "stochastic_plackett_luce_auto": Name(
        "plackett_luce_auto", "Plackett-Luce from the user's table, otherwise in one pass"
    ),
    "stochastic_plackett_luce_cached": Name(
        "plackett_luce_cached", "Plackett-Luce from a table kept for the user"
    ),
    "stochastic_plackett_luce": Name(
        "plackett_luce_sequential",
        "the textbook's Plackett-Luce in k passes, slow, kept to compare with: use plackett_luce",
    ),
    "stochastic_epsilon_greedy": Name(
        "epsilon_greedy", "the best item left or, by epsilon, any item left"
    ),
    "stochastic_flat_tail": Name("flat_tail", "candidates that an index finds, and a flat tail"),
    "uniform": Name("uniform", "any item: scores play no part"),
}
_OF_SHORT = {row.short: name for name, row in NAMES.items()}

TABLED = frozenset({"cached", "auto"})
"""Samplers that draw from a user's table if it is ready."""


class Parameter(NamedTuple):
    """The range and the meaning of a policy's parameter."""

    low: float
    high: float
    is_integer: bool
    meaning: str


PARAMETERS: Mapping[str, Parameter] = {
    "temperature": Parameter(
        MIN_TEMPERATURE, MAX_TEMPERATURE, False, "T of the softmax of scores / T"
    ),
    "epsilon": Parameter(0.0, 1.0, False, "probability of exploring, for each place"),
    "m": Parameter(1, MAX_CANDIDATES, True, "number of candidates, the best that an index finds"),
    "factor": Parameter(
        MIN_FACTOR, 1.0, False, "weight of any other item, relative to the last candidate's"
    ),
    "head": Parameter(0, MAX_HEAD, True, "number of first places that show the best items"),
}


def inference_type_of(name: str, argument: str = "inference_type") -> str:
    """Return the inference type for a policy's name, short or not.

    Parameters
    ----------
    name : str
        A key of `INFERENCE_TYPES`, or a short name of `NAMES`.
    argument : str
        Name of the argument, for errors.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the names, and a similar one if there is one.

    Examples
    --------
    >>> inference_type_of("plackett_luce"), inference_type_of("stochastic_plackett_luce")
    ('stochastic_gumbel_softmax_trick', 'stochastic_plackett_luce')
    >>> inference_type_of("placket_luce")
    Traceback (most recent call last):
    ...
    ValueError: inference_type: expected one of deterministic, plackett_luce, plackett_luce_auto,\
 plackett_luce_cached, plackett_luce_sequential, epsilon_greedy, flat_tail, uniform, or an\
 inference type as logs write it; got 'placket_luce' (nearest: plackett_luce)
    """
    if isinstance(name, str):
        if name in INFERENCE_TYPES:
            return name
        if name in _OF_SHORT:
            return _OF_SHORT[name]
    names = ", ".join(_OF_SHORT)
    raise ValueError(
        f"{argument}: expected one of {names}, or an inference type as logs write it; got"
        f" {shown(name)}{nearest(name, [*_OF_SHORT, *INFERENCE_TYPES])}"
    )


def short_name(inference_type: str) -> str:
    """Return the short name of an inference type; an unknown type is returned unchanged.

    Examples
    --------
    >>> short_name("stochastic_gumbel_softmax_trick"), short_name("bts")
    ('plackett_luce', 'bts')
    """
    row = NAMES.get(inference_type)
    return inference_type if row is None else row.short


def names_of(inference_types: Iterable[str]) -> list[str]:
    """List all names of some inference types: the types first, then short names that differ.

    Examples
    --------
    >>> names_of(["stochastic_epsilon_greedy", "uniform"])
    ['stochastic_epsilon_greedy', 'uniform', 'epsilon_greedy']
    """
    known = list(inference_types)
    return list(dict.fromkeys([*known, *(short_name(name) for name in known)]))


def words_of_names(inference_types: Iterable[str] = NAMES) -> str:
    """Describe inference types, a phrase for each: short name, name in logs, what it does.

    Examples
    --------
    >>> words_of_names(["stochastic_epsilon_greedy"])
    'epsilon_greedy (stochastic_epsilon_greedy): the best item left or, by epsilon, any item left'
    """
    wanted = set(inference_types)
    return "; ".join(
        f"{row.short}{'' if name == row.short else f' ({name})'}: {row.words}"
        for name, row in NAMES.items()
        if name in wanted
    )


def parameters_of(inference_type: str) -> tuple[str, ...]:
    """List the parameters that `policy` accepts for a name: the policy's own, and maybe ``head``.

    Examples
    --------
    >>> parameters_of("epsilon_greedy"), parameters_of("deterministic")
    (('epsilon', 'head'), ())
    """
    cls, _, accepted = INFERENCE_TYPES[inference_type_of(inference_type)]
    return (*accepted, "head") if cls.takes_head else accepted


def law_name(inference_type: str) -> str:
    """Return the name of a policy's law; an unknown name is returned unchanged.

    Examples
    --------
    >>> law_name("stochastic_plackett_luce_cached"), law_name("bts")
    ('plackett_luce', 'bts')
    """
    row = INFERENCE_TYPES.get(_OF_SHORT.get(inference_type, inference_type))
    found = None if row is None else row[0].law_name
    return found if isinstance(found, str) else inference_type


def sampler_name(inference_type: str) -> str | None:
    """Return the sampler that a policy's name selects; None if its law has only one.

    Examples
    --------
    >>> sampler_name("stochastic_plackett_luce"), sampler_name("uniform")
    ('sequential', None)
    """
    row = INFERENCE_TYPES.get(_OF_SHORT.get(inference_type, inference_type))
    return None if row is None else row[1].get("sampler")


def policy(inference_type: str, **params: Any) -> Policy:
    """Make a policy from its name; the inverse of ``policy.inference_type``.

    Parameters
    ----------
    inference_type : str
        A short name, such as ``plackett_luce``, or a key of `INFERENCE_TYPES`, as in logs.
        ``stochastic_plackett_luce`` is the textbook's sampler, which is slow:
        ``plackett_luce`` draws from the same law in one pass.
    **params : float
        The policy's own parameters, such as ``temperature`` or ``epsilon``, and ``head`` for
        `BestFirst`.

    Raises
    ------
    ValueError
        If the name is unknown, or the policy does not accept a parameter.

    Examples
    --------
    >>> policy("plackett_luce", temperature=0.5)
    PlackettLuce(temperature=0.5, sampler='gumbel')
    """
    cls, fixed, _ = INFERENCE_TYPES[inference_type_of(inference_type)]
    accepted = parameters_of(inference_type)
    for name, value in params.items():
        if name not in accepted:
            takes = f"takes {', '.join(accepted)}" if accepted else "takes no parameters"
            near = nearest(name, accepted)
            raise ValueError(f"{name}: {inference_type} {takes}; got {name}={value!r}{near}")
    head = params.pop("head", 0)
    drawn = cls(**fixed, **params)
    return drawn if real("head", head, 0, MAX_HEAD) == 0.0 else BestFirst(head, drawn)


def completed(inference_type: str, stated: Mapping[str, Any], *usual: Policy | None) -> Policy:
    """Make a policy from its name, with missing parameters taken from other policies.

    Parameters
    ----------
    inference_type : str
        As for `policy`.
    stated : mapping of str to float
        Parameters that are given.
    *usual : Policy or None
        Policies, such as a server's and the model's. A missing parameter is taken from the first
        of them that has it, or else is the default.

    Raises
    ------
    ValueError
        As `policy`.

    Examples
    --------
    >>> usual = PlackettLuce(temperature=0.03)
    >>> completed("flat_tail", {"m": 500}, None, usual)
    FlatTail(temperature=0.03, m=500, factor=0.1)
    """
    known = parameters_of(inference_type)
    params = dict(stated)
    for each in usual:
        if each is not None:
            params = {name: v for name, v in each.params.items() if name in known} | params
    return policy(inference_type, **params)
