"""Uniform: any k eligible items."""

from __future__ import annotations

from dataclasses import dataclass

from fastrank.policies.base import Law, Policy

__all__ = ["Uniform"]


@dataclass(frozen=True, slots=True)
class Uniform(Policy):
    """Draw k eligible items uniformly without replacement; the scores play no part.

    Examples
    --------
    >>> Uniform().inference_type
    'uniform'
    """

    law = Law(explore=1.0)
    sampler = "uniform"
    inference_type = "uniform"

    @property
    def params(self) -> dict[str, float]:
        return {}
