"""PlackettLuce: a softmax without replacement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from fastrank.policies.base import MAX_TEMPERATURE, MIN_TEMPERATURE, Law, Policy, real

__all__ = ["PlackettLuce", "Sampler"]

Sampler = Literal["gumbel", "sequential", "cached", "auto"]


@dataclass(frozen=True, slots=True)
class PlackettLuce(Policy):
    """Draw items one after another, each by softmax(scores / T) over the items left.

    Parameters
    ----------
    temperature : float
        T, in the unit of the scores, from 1e-6 (nearly deterministic) to 1e6
        (nearly uniform). A temperature does not carry over from one model to
        another: what matters is the spread of the scores divided by T.
    sampler : {"gumbel", "sequential", "cached", "auto"}
        How to draw. The law and the reported propensities are the same for all,
        but each of the first three draws another ranking from the same seed.

        - ``gumbel``: one pass over the catalog, O(n + k log k).
        - ``sequential``: k passes, O(kn). The textbook's sampler, kept to compare with.
        - ``cached``: from a table of the masses of a few thousand cells of the catalog.
          A pass makes it once per query and temperature, and the catalog keeps it. A
          ranking then scores the items of at most k cells, and of cells that filters
          cut. If filters or a bias make this dearer than a pass, ``gumbel`` draws.
        - ``auto``: ``cached`` for users whose table at this temperature the model has
          (`Model.with_tables`), and ``gumbel`` for others.

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
    law: Law = field(init=False, repr=False, compare=False)

    law_name = "plackett_luce"

    _NAMES: ClassVar[Mapping[str, str]] = {
        "gumbel": "stochastic_gumbel_softmax_trick",
        "sequential": "stochastic_plackett_luce",
        "cached": "stochastic_plackett_luce_cached",
        "auto": "stochastic_plackett_luce_auto",
    }

    def __post_init__(self) -> None:
        value = real("temperature", self.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
        object.__setattr__(self, "temperature", value)
        if self.sampler not in get_args(Sampler):
            names = ", ".join(get_args(Sampler))
            raise ValueError(f"sampler: expected one of {names}, got {self.sampler!r}")
        object.__setattr__(self, "law", Law(explore=1.0, temperature=value))

    @property
    def inference_type(self) -> str:
        return self._NAMES[self.sampler]

    @property
    def params(self) -> dict[str, float]:
        return {"temperature": self.temperature}

    def with_sampler(self, sampler: str) -> PlackettLuce:
        # Any text may be passed: __post_init__ refuses unknown samplers.
        return PlackettLuce(self.temperature, sampler)  # type: ignore[arg-type]  # checked there

    def at_temperature(self, temperature: float) -> PlackettLuce:
        return PlackettLuce(temperature, self.sampler)
