"""Deterministic: the best k by score."""

from __future__ import annotations

from dataclasses import dataclass

from fastrank.policies.base import Law, Policy

__all__ = ["Deterministic"]


@dataclass(frozen=True, slots=True)
class Deterministic(Policy):
    """Show the k best items by score, always; ties go to the earlier item.

    Its log-propensities are 0: a log of its rankings holds no information
    about items that were not shown.

    Examples
    --------
    >>> Deterministic().inference_type
    'deterministic'
    """

    law = Law(explore=0.0)
    sampler = "deterministic"
    inference_type = "deterministic"
    takes_head = False

    @property
    def params(self) -> dict[str, float]:
        return {}
