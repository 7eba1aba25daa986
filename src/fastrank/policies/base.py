"""What a policy is: a frozen value that says a law, and by what it is drawn."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fastrank.inputs import shown

__all__ = [
    "MAX_TEMPERATURE",
    "MIN_TEMPERATURE",
    "Law",
    "Policy",
    "is_frozen",
    "law_of",
    "no_policy",
    "real",
]

MIN_TEMPERATURE = 1e-6
MAX_TEMPERATURE = 1e6


@dataclass(frozen=True, slots=True)
class Law:
    """P(the next item | the items above it): what all that computes with a policy takes of it.

    The first `head` places show the best item left. Each place after them shows, with probability
    `explore`, an item drawn from softmax(scores / T) of what is left, and otherwise the best one
    left. Ties for the best go to the earlier item.

    Attributes
    ----------
    explore : float
        In [0, 1].
    temperature : float
        T, above 0; infinite where the scores play no part.
    head : int
        From 0.

    Raises
    ------
    ValueError
        For a number out of its range: nothing draws by such a law.

    Examples
    --------
    >>> from fastrank import EpsilonGreedy, PlackettLuce
    >>> PlackettLuce(0.5).law
    Law(explore=1.0, temperature=0.5, head=0)
    >>> EpsilonGreedy(0.1).law
    Law(explore=0.1, temperature=inf, head=0)
    """

    explore: float
    temperature: float = math.inf
    head: int = 0

    def __post_init__(self) -> None:
        if not (
            0.0 <= self.explore <= 1.0
            and self.temperature > 0.0
            and isinstance(self.head, int)
            and self.head >= 0
        ):
            raise ValueError(
                "law: expected explore in [0, 1], a temperature above 0 and an integer head of at"
                f" least 0; got {self!r}"
            )

    @property
    def is_uniform(self) -> bool:
        """Whether each place shows any item left, all alike."""
        return self.explore == 1.0 and self.head == 0 and self.temperature == math.inf

    @property
    def is_plackett_luce(self) -> bool:
        """Whether each place is drawn from a softmax in which the scores count."""
        return self.explore == 1.0 and self.head == 0 and self.temperature < math.inf

    @property
    def is_certain(self) -> bool:
        """Whether there is one ranking and no other."""
        return self.explore == 0.0

    @property
    def steepness(self) -> float:
        """1 / T; 0 where the scores play no part."""
        return 1.0 / self.temperature

    def explore_at(self, place: int) -> float:
        """`explore` at one place, counted from 0."""
        return 0.0 if place < self.head else self.explore


class Policy(ABC):
    """What decides how a ranking is drawn; the base of every policy.

    Attributes
    ----------
    law : Law or None
        None where no `Law` says it: then what would compute with it refuses it by name.
    sampler : str or None
        Which of the native samplers draws it; None where none does.
    law_name : str
        Under which logs know the law, whichever sampler draws it; by default the inference type.
    takes_head : bool
        Whether `BestFirst` may stand above it, and its inference type takes ``head``. False where
        the law has a head of its own, or draws nothing.
    """

    __slots__ = ()
    takes_head: ClassVar[bool] = True

    @property
    @abstractmethod
    def inference_type(self) -> str:
        """The name under which services and logs know it."""

    @property
    @abstractmethod
    def params(self) -> dict[str, float]:
        """What makes the same policy of its inference type."""

    @property
    def law(self) -> Law | None:
        return None

    @property
    def sampler(self) -> str | None:
        return None

    @property
    def law_name(self) -> str:
        return self.inference_type

    def with_sampler(self, sampler: str) -> Policy:
        """The same law by another of its samplers; a ValueError where it has but one."""
        raise ValueError(f"policy: it has no sampler {sampler!r}: {shown(self)}")

    def at_temperature(self, temperature: float) -> Policy:
        """The policy at another temperature; itself where its law has none.

        A policy whose law has one says how: here it is a ValueError.
        """
        law = self.law
        if law is None or law.temperature == math.inf:
            return self
        raise ValueError(f"policy: it has no at_temperature: {shown(self)}")

    def scaled(self, factor: float) -> Policy:
        """The policy with `factor` times its ``temperature``; itself where its law has none.

        Raises
        ------
        ValueError
            If the product leaves the range of temperatures, or the law has a temperature that is
            no parameter of that name, by which logs and strata know the factor.
        """
        law = self.law
        if law is None or law.temperature == math.inf:
            return self
        if "temperature" not in self.params:
            raise ValueError(f"policy: it has no parameter temperature: {shown(self)}")
        return self.at_temperature(law.temperature * factor)


def law_of(policy: object, name: str = "policy") -> Law:
    """The law of a policy; a ValueError naming what has none."""
    law = policy.law if isinstance(policy, Policy) else None
    if law is None and isinstance(policy, Policy) and policy.sampler is not None:
        raise ValueError(f"{name}: here laws of the scores alone are known, not {shown(policy)}")
    if not isinstance(law, Law):
        raise no_policy(name, policy)
    return law


def no_policy(name: str, value: object) -> ValueError:
    """What to raise for what is no policy of fastrank's, saying how to make one."""
    if isinstance(value, str):
        how = f"; fastrank.policy({shown(value)}) makes one of its name"
    elif isinstance(value, type) and issubclass(value, Policy):
        how = f"; write {value.__name__}(...), which makes one"
    else:
        how = ""
    return ValueError(f"{name}: expected one of fastrank's policies, got {shown(value)}{how}")


def is_frozen(policy: Policy) -> bool:
    """Whether what a policy said once may be kept: only a frozen dataclass says the same again."""
    made = vars(type(policy)).get("__dataclass_params__")
    return made is not None and bool(made.frozen)


def real(name: str, value: object, low: float, high: float) -> float:
    """A parameter as a float in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}: expected a real number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{name}: must lie in [{low:g}, {high:g}], got {shown(value)}")
    return number
