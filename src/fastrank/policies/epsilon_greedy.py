"""The best, or any."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrank.policies.base import Law, Policy, real

__all__ = ["EpsilonGreedy"]


@dataclass(frozen=True, slots=True)
class EpsilonGreedy(Policy):
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
    law: Law = field(init=False, repr=False, compare=False)

    law_name = "epsilon_greedy"
    sampler = "epsilon_greedy"
    inference_type = "stochastic_epsilon_greedy"

    def __post_init__(self) -> None:
        epsilon = real("epsilon", self.epsilon, 0.0, 1.0)
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "law", Law(explore=epsilon))

    @property
    def params(self) -> dict[str, float]:
        return {"epsilon": self.epsilon}
