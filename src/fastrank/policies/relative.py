"""RelativeTemperature: a policy derived from the logging policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastrank.policies.base import MAX_TEMPERATURE, MIN_TEMPERATURE, Policy, law_of

__all__ = ["RelativeTemperature"]


@dataclass(frozen=True, slots=True)
class RelativeTemperature:
    """A target policy: Plackett-Luce at the logging policy's temperature times a factor.

    Parameters
    ----------
    factor : float
        Above 0; with 0.8, the target explores a little less than the log. The product is clipped
        to the range of temperatures.

    Examples
    --------
    >>> from fastrank import PlackettLuce
    >>> RelativeTemperature(0.5)(PlackettLuce(temperature=0.2))
    PlackettLuce(temperature=0.1, sampler='gumbel')
    """

    factor: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0.0):
            raise ValueError(f"factor: must be finite and above 0, got {self.factor!r}")

    def __call__(self, logging: Policy) -> Policy:
        temperature = law_of(logging).temperature
        if temperature == math.inf:
            raise ValueError(
                f"temperature: x{self.factor:g} is relative to the logging policy's temperature,"
                f" and {logging.inference_type} has none"
            )
        product = temperature * self.factor
        return logging.at_temperature(min(max(product, MIN_TEMPERATURE), MAX_TEMPERATURE))
