"""Policies: what decides how a ranking is drawn, as frozen values.

A policy holds parameters, and says its law and its sampler; a catalog draws from it. Each one
answers to the *inference type* under which services and logs know it, and `policy` turns such a
name back into the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastrank.policies.base import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Law,
    Policy,
    is_frozen,
    law_of,
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
    "PARAMETERS",
    "TABLED",
    "BestFirst",
    "Deterministic",
    "EpsilonGreedy",
    "FlatTail",
    "Law",
    "Parameter",
    "PlackettLuce",
    "Policy",
    "Sampler",
    "Uniform",
    "completed",
    "is_frozen",
    "law_name",
    "law_of",
    "parameters_of",
    "policy",
    "sampler_name",
]

# Inference type -> (class, arguments that the name fixes, parameters that it takes).
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


TABLED = frozenset({"cached", "auto"})
"""Samplers that draw from a user's table, where it is ready."""


class Parameter(NamedTuple):
    """What a parameter of a policy may be, wherever it is handed in."""

    low: float
    high: float
    is_integer: bool
    meaning: str


PARAMETERS: Mapping[str, Parameter] = {
    "temperature": Parameter(
        MIN_TEMPERATURE, MAX_TEMPERATURE, False, "T of the softmax of scores / T"
    ),
    "epsilon": Parameter(0.0, 1.0, False, "probability of exploring, for each place"),
    "m": Parameter(1, MAX_CANDIDATES, True, "how many candidates, the best that an index finds"),
    "factor": Parameter(
        MIN_FACTOR, 1.0, False, "weight of any other item, in that of the last candidate"
    ),
    "head": Parameter(0, MAX_HEAD, True, "first places that show the best items; 0: none"),
}


def parameters_of(inference_type: str) -> tuple[str, ...]:
    """What an inference type takes: its own parameters, and ``head`` if it takes one.

    Examples
    --------
    >>> parameters_of("stochastic_epsilon_greedy"), parameters_of("deterministic")
    (('epsilon', 'head'), ())
    """
    cls, _, accepted = INFERENCE_TYPES[inference_type]
    return (*accepted, "head") if cls.takes_head else accepted


def law_name(inference_type: str) -> str:
    """The law that an inference type draws by; of one that is not known, its own name.

    Examples
    --------
    >>> law_name("stochastic_plackett_luce_cached"), law_name("bts")
    ('plackett_luce', 'bts')
    """
    row = INFERENCE_TYPES.get(inference_type)
    found = None if row is None else row[0].law_name
    return found if isinstance(found, str) else inference_type


def sampler_name(inference_type: str) -> str | None:
    """Which of its law's samplers an inference type means; None where there is but one.

    Examples
    --------
    >>> sampler_name("stochastic_plackett_luce_cached"), sampler_name("uniform")
    ('cached', None)
    """
    row = INFERENCE_TYPES.get(inference_type)
    return None if row is None else row[1].get("sampler")


def policy(inference_type: str, **params: Any) -> Policy:
    """The policy that an inference type names; the inverse of ``policy.inference_type``.

    Parameters
    ----------
    inference_type : str
        A key of `INFERENCE_TYPES`.
    **params : float
        The policy's own parameters, ``temperature`` or ``epsilon`` say, and ``head`` for
        `BestFirst`.

    Raises
    ------
    ValueError
        For an unknown name, or a parameter that the policy does not take.

    Examples
    --------
    >>> policy("stochastic_gumbel_softmax_trick", temperature=0.5)
    PlackettLuce(temperature=0.5, sampler='gumbel')
    """
    row = INFERENCE_TYPES.get(inference_type) if isinstance(inference_type, str) else None
    if row is None:
        names = ", ".join(INFERENCE_TYPES)
        raise ValueError(f"inference_type: expected one of {names}; got {inference_type!r}")
    cls, fixed, _ = row
    accepted = parameters_of(inference_type)
    for name, value in params.items():
        if name not in accepted:
            takes = f"takes {', '.join(accepted)}" if accepted else "takes no parameters"
            raise ValueError(f"{name}: {inference_type} {takes}; got {name}={value!r}")
    head = params.pop("head", 0)
    drawn = cls(**fixed, **params)
    return drawn if real("head", head, 0, MAX_HEAD) == 0.0 else BestFirst(head, drawn)


def completed(inference_type: str, stated: Mapping[str, Any], *usual: Policy | None) -> Policy:
    """The policy of a name; what is not stated of it is taken from the first of others that has it.

    Parameters
    ----------
    inference_type : str
        A key of `INFERENCE_TYPES`.
    stated : mapping of str to float
        Parameters.
    *usual : Policy or None
        A server's policy, say, and the model's. What none of them has is the type's own default.

    Raises
    ------
    ValueError
        As `policy`.

    Examples
    --------
    >>> usual = PlackettLuce(temperature=0.03)
    >>> completed("stochastic_flat_tail", {"m": 500}, None, usual)
    FlatTail(temperature=0.03, m=500, factor=0.1)
    """
    known = parameters_of(inference_type) if inference_type in INFERENCE_TYPES else ()
    params = dict(stated)
    for each in usual:
        if each is not None:
            params = {name: v for name, v in each.params.items() if name in known} | params
    return policy(inference_type, **params)
