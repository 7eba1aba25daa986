"""What a policy is: a frozen value that states a law, and the sampler that draws from it."""

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
    """P(next item | items above it): the form in which computations use a policy.

    The first `head` places show the best item left. Each place after them shows, with probability
    `explore`, an item drawn from softmax(scores / T) of what is left, and otherwise the best one
    left. Ties for the best go to the earlier item.

    Attributes
    ----------
    explore : float
        In [0, 1].
    temperature : float
        T > 0; infinite if scores play no part.
    head : int
        At least 0.

    Raises
    ------
    ValueError
        If a number is out of its range.

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
        """Whether each place shows any item left, with equal probabilities."""
        return self.explore == 1.0 and self.head == 0 and self.temperature == math.inf

    @property
    def is_plackett_luce(self) -> bool:
        """Whether each place is drawn from a softmax in which the scores count."""
        return self.explore == 1.0 and self.head == 0 and self.temperature < math.inf

    @property
    def is_certain(self) -> bool:
        """Whether only one ranking is possible."""
        return self.explore == 0.0

    @property
    def steepness(self) -> float:
        """1 / T; 0 if the scores play no part."""
        return 1.0 / self.temperature

    def explore_at(self, place: int) -> float:
        """Return `explore` at a place, counted from 0: 0 within the head."""
        return 0.0 if place < self.head else self.explore


class Policy(ABC):
    """The base class of policies, which decide how a ranking is drawn.

    Attributes
    ----------
    law : Law or None
        None if no `Law` describes the policy; computations that need one then refuse it by name.
    sampler : str or None
        The native sampler that draws it; None if none does.
    law_name : str
        Name of the law in logs, whichever sampler draws it; by default the inference type.
    takes_head : bool
        Whether `BestFirst` can wrap the policy, so that its inference type accepts ``head``. False
        if the law has a head of its own, or draws nothing.
    """

    __slots__ = ()
    takes_head: ClassVar[bool] = True

    @property
    @abstractmethod
    def inference_type(self) -> str:
        """The policy's name in services and logs."""

    @property
    @abstractmethod
    def params(self) -> dict[str, float]:
        """The parameters that, with the inference type, make the same policy."""

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
        """Return the same law with another sampler; a ValueError if it has only one."""
        raise ValueError(f"policy: {shown(self)} has no sampler {sampler!r}")

    def at_temperature(self, temperature: float) -> Policy:
        """Return the policy at another temperature; itself if its law has none.

        Policies whose law has a temperature override this method, which raises a ValueError.
        """
        law = self.law
        if law is None or law.temperature == math.inf:
            return self
        raise ValueError(f"policy: {shown(self)} has no at_temperature")

    def scaled(self, factor: float) -> Policy:
        """Return the policy at `factor` times its ``temperature``; itself if its law has none.

        Raises
        ------
        ValueError
            If the product leaves the range of temperatures, or the law has a temperature but the
            policy no parameter ``temperature``, from which logs and strata derive the factor.
        """
        law = self.law
        if law is None or law.temperature == math.inf:
            return self
        if "temperature" not in self.params:
            raise ValueError(f"policy: {shown(self)} has no parameter temperature")
        return self.at_temperature(law.temperature * factor)


def law_of(policy: object, name: str = "policy") -> Law:
    """Return the law of a policy; a ValueError, naming the policy, if it has none."""
    law = policy.law if isinstance(policy, Policy) else None
    if law is None and isinstance(policy, Policy) and policy.sampler is not None:
        raise ValueError(
            f"{name}: expected a policy whose law depends on scores alone, got {shown(policy)}"
        )
    if not isinstance(law, Law):
        raise no_policy(name, policy)
    return law


def no_policy(name: str, value: object) -> ValueError:
    """Make the error for a value that is not a policy of fastrank; it says how to make one."""
    if isinstance(value, str):
        how = f"; fastrank.policy({shown(value)}) makes one of its name"
    elif isinstance(value, type) and issubclass(value, Policy):
        how = f"; write {value.__name__}(...), which makes one"
    else:
        how = ""
    return ValueError(f"{name}: expected one of fastrank's policies, got {shown(value)}{how}")


def is_frozen(policy: Policy) -> bool:
    """Say whether a policy's answers may be cached: only a frozen dataclass cannot change them."""
    made = vars(type(policy)).get("__dataclass_params__")
    return made is not None and bool(made.frozen)


def real(name: str, value: object, low: float, high: float) -> float:
    """Return a parameter as a float in [low, high]; a ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}: expected a real number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{name}: must lie in [{low:g}, {high:g}], got {shown(value)}")
    return number
