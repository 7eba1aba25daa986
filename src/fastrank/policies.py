"""Policies: what decides how a ranking is drawn, as frozen values.

A policy holds parameters and nothing else; `Catalog` draws from it. Each one
answers to the *inference type* under which services and logs know it, and
`policy` turns such a name back into the value.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from fastrank.inputs import shown

__all__ = [
    "INFERENCE_TYPES",
    "MAX_TEMPERATURE",
    "MIN_TEMPERATURE",
    "Deterministic",
    "EpsilonGreedy",
    "PlackettLuce",
    "Policy",
    "Sampler",
    "Uniform",
    "policy",
]

MIN_TEMPERATURE = 1e-6
MAX_TEMPERATURE = 1e6

Sampler = Literal["gumbel", "sequential", "cached"]


def _real(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}: expected a real number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{name}: must lie in [{low:g}, {high:g}], got {shown(value)}")
    return number


@dataclass(frozen=True, slots=True)
class Deterministic:
    """Show the k best items by score, always; ties go to the earlier item.

    Its log-propensities are 0: a log made under it says nothing about any
    item that it did not show.

    Examples
    --------
    >>> Deterministic().inference_type
    'deterministic'
    """

    @property
    def inference_type(self) -> str:
        return "deterministic"

    @property
    def params(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True, slots=True)
class PlackettLuce:
    """Draw items one after another, each with probability softmax(scores / T) of what is left.

    Parameters
    ----------
    temperature : float
        T, in the unit of the scores, from 1e-6 (nearly deterministic) to 1e6
        (nearly uniform). A temperature does not carry over from one model to
        another: what matters is the spread of the scores divided by T.
    sampler : {"gumbel", "sequential", "cached"}
        How to draw. The law and the reported propensities are the same for all three;
        a given seed gives each of them a draw of its own.

        - ``gumbel``: one pass over the catalog, O(n + k log k).
        - ``sequential``: k passes, O(kn). The textbook; kept as the yardstick.
        - ``cached``: a tree of log-sum-exp nodes, made once per query and
          temperature and kept by the catalog, O((k + excluded) log n) from
          then on.

    Notes
    -----
    Plackett (1975), "The analysis of permutations"; Yellott (1977) for the equality of
    the law with the order of Gumbel-perturbed scores.

    Examples
    --------
    >>> PlackettLuce(temperature=0.5).inference_type
    'stochastic_gumbel_softmax_trick'
    """

    temperature: float = 1.0
    sampler: Sampler = "gumbel"

    _NAMES: ClassVar[Mapping[str, str]] = {
        "gumbel": "stochastic_gumbel_softmax_trick",
        "sequential": "stochastic_plackett_luce",
        "cached": "stochastic_plackett_luce_cached",
    }

    def __post_init__(self) -> None:
        value = _real("temperature", self.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
        object.__setattr__(self, "temperature", value)
        if self.sampler not in get_args(Sampler):
            names = ", ".join(get_args(Sampler))
            raise ValueError(f"sampler: expected one of {names}, got {self.sampler!r}")

    @property
    def inference_type(self) -> str:
        return self._NAMES[self.sampler]

    @property
    def params(self) -> dict[str, float]:
        return {"temperature": self.temperature}


@dataclass(frozen=True, slots=True)
class EpsilonGreedy:
    """At each place: the best item left, or, with probability epsilon, any item left, uniformly.

    The exploring draw may hit the best item too, so its propensity is
    (1 - epsilon) + epsilon / left, and epsilon / left for every other item.

    Parameters
    ----------
    epsilon : float
        Probability of exploring, in [0, 1], for each place on its own.

    Examples
    --------
    >>> EpsilonGreedy(epsilon=0.2).params
    {'epsilon': 0.2}
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", _real("epsilon", self.epsilon, 0.0, 1.0))

    @property
    def inference_type(self) -> str:
        return "stochastic_epsilon_greedy"

    @property
    def params(self) -> dict[str, float]:
        return {"epsilon": self.epsilon}


@dataclass(frozen=True, slots=True)
class Uniform:
    """Draw k eligible items uniformly without replacement; the scores play no part.

    Examples
    --------
    >>> Uniform().inference_type
    'uniform'
    """

    @property
    def inference_type(self) -> str:
        return "uniform"

    @property
    def params(self) -> dict[str, float]:
        return {}


Policy: TypeAlias = Deterministic | PlackettLuce | EpsilonGreedy | Uniform

# Inference type -> (class, arguments that the name fixes, parameters that it takes).
INFERENCE_TYPES: Mapping[str, tuple[type[Policy], Mapping[str, Any], tuple[str, ...]]] = {
    "deterministic": (Deterministic, {}, ()),
    "stochastic_plackett_luce": (PlackettLuce, {"sampler": "sequential"}, ("temperature",)),
    "stochastic_plackett_luce_cached": (PlackettLuce, {"sampler": "cached"}, ("temperature",)),
    "stochastic_gumbel_softmax_trick": (PlackettLuce, {"sampler": "gumbel"}, ("temperature",)),
    "stochastic_epsilon_greedy": (EpsilonGreedy, {}, ("epsilon",)),
    "uniform": (Uniform, {}, ()),
}


def policy(inference_type: str, **params: Any) -> Policy:
    """The policy that an inference type names; the inverse of ``policy.inference_type``.

    Parameters
    ----------
    inference_type : str
        A key of `INFERENCE_TYPES`.
    **params : float
        The policy's own parameters: ``temperature`` or ``epsilon``.

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
    cls, fixed, accepted = row
    for name, value in params.items():
        if name not in accepted:
            takes = f"takes {', '.join(accepted)}" if accepted else "takes no parameters"
            raise ValueError(f"{name}: {inference_type} {takes}; got {name}={value!r}")
    return cls(**fixed, **params)
