"""EpsilonGreedy: the best item left, or any item left."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrank.policies.base import Law, Policy, real

__all__ = ["EpsilonGreedy"]


@dataclass(frozen=True, slots=True)
class EpsilonGreedy(Policy):
    """Show, at each place, the best item left or, with probability epsilon, a uniform draw.

    The uniform draw can also pick the best item, so the best item's propensity is
    (1 - epsilon) + epsilon / left, and that of every other item epsilon / left, for `left` items
    not shown yet.

    Parameters
    ----------
    epsilon : float
        Probability of exploring, in [0, 1], independently at each place.

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
