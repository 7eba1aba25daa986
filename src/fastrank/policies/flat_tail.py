"""FlatTail: candidates that an index finds, by their scores, and equal weights for the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastrank.inputs import shown
from fastrank.policies.base import MAX_TEMPERATURE, MIN_TEMPERATURE, Policy, real

__all__ = ["MAX_CANDIDATES", "MIN_FACTOR", "FlatTail"]

MAX_CANDIDATES = 10_000_000
MIN_FACTOR = 1e-9


@dataclass(frozen=True, slots=True)
class FlatTail(Policy):
    """Draw items one after another: m candidates weighted by score, all others weighted equally.

    The candidates are the m best eligible items that the catalog's index finds; they have weights
    exp(score / T). Every other eligible item has the same weight: `factor` times the weight of the
    candidate with the lowest score. Thus every item can be shown, though only m items are scored,
    and the propensity of what is shown is exact, whatever the index missed. In a catalog without an
    index the candidates are the m best items, found by a pass.

    Parameters
    ----------
    temperature : float
        T, as for `PlackettLuce`.
    m : int
        Number of candidates, from 1 to 10,000,000. If at most m items are eligible, all are
        candidates and the law is Plackett-Luce.
    factor : float
        From 1e-9 to 1. A small factor costs little score, but makes the log less useful for
        evaluating other policies: `fastrank.retrieval.propose` weighs the two.

    Notes
    -----
    O(m + k m / 64) beyond the search. The law depends on what the index finds, which can differ
    between machines and versions of FAISS. `Ranking.candidates` therefore records which of the
    shown items were candidates and the weight of the others, so that a logged row can be checked
    on its own.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog([1, 2, 3, 4], [[3.0], [2.0], [1.0], [0.0]])
    >>> policy = fr.FlatTail(temperature=1.0, m=2, factor=0.5)
    >>> lp = catalog.log_propensities([1.0], [1], policy=policy)
    >>> round(float(lp[0]), 4)  # 3 - log(e^3 + e^2 + e^2 / 2 + e^2 / 2)
    -0.5514
    """

    temperature: float = 1.0
    m: int = 1000
    factor: float = 0.1

    takes_head = False
    law_name = "flat_tail"

    def __post_init__(self) -> None:
        temperature = real("temperature", self.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
        m = real("m", self.m, 1, MAX_CANDIDATES)
        if m != int(m):
            raise ValueError(f"m: expected an integer, got {shown(self.m)}")
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "m", int(m))
        object.__setattr__(self, "factor", real("factor", self.factor, MIN_FACTOR, 1.0))

    @property
    def inference_type(self) -> str:
        return "stochastic_flat_tail"

    @property
    def params(self) -> dict[str, float]:
        return {"temperature": self.temperature, "m": self.m, "factor": self.factor}

    @property
    def sampler(self) -> str:
        return "flat_tail"

    def at_temperature(self, temperature: float) -> FlatTail:
        return replace(self, temperature=temperature)

    def scaled(self, factor: float) -> FlatTail:
        return self.at_temperature(self.temperature * factor)
