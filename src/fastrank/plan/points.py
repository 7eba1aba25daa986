"""What is found about one logging policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastrank.frames import said_in_a_line
from fastrank.policies import Policy

__all__ = ["MARKS", "Advance", "Kind", "Point", "Share", "Target"]

Advance: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, the steps done, and the steps in all."""

Kind = Literal["temperature", "user_temperature", "epsilon"]
"""What a plan's policies differ in."""
Target: TypeAlias = Policy | Callable[[Policy], Policy]
"""A policy to evaluate, or a function that makes one of the logging policy.

The function raises a ValueError where it makes none of a policy.
"""


@dataclass(frozen=True, slots=True, repr=False)
class Share:
    """How much of a log counts when a target policy is evaluated from it.

    Attributes
    ----------
    target : str
    prefix : int
        Places whose weight it is: `rips` at this place; `ips` where it is k.
    share : float
        ESS / n = 1 / E[w^2], the expectation over all users together, since one log holds them all.
        0 where the log cannot show what the target shows.
    median : float
        The share of the median user, were the log about that user alone.
    exact : bool
        Computed for these users, not estimated from draws.
    error : float
        Standard error of E[w^2] from the draws, relative to it; 0 if exact.
    heaviest_draw, heaviest_user : float
        The largest part of E[w^2] that one draw, one user brings.
    trusted : bool
        Exact, or error at most 0.2 and no draw above 0.1: a sum that depends on a few draws has
        most likely missed heavier ones, and the true share is smaller.
    """

    target: str
    prefix: int
    share: float
    median: float
    exact: bool
    error: float
    heaviest_draw: float
    heaviest_user: float
    trusted: bool

    def __repr__(self) -> str:
        trust = "" if self.trusted else ", not trusted"
        return f"Share({said_in_a_line(self.target)}, {self.prefix}, {self.share:.3g}{trust})"

    @property
    def text(self) -> str:
        """For reading; with ~ where it is a guess, and with ! where few users carry it."""
        if self.share == 0.0:
            return "0"
        text = f"{100 * self.share:.2g} %" if self.share >= 1e-5 else f"{self.share:.0e}"
        if self.share >= 0.995:
            text = "100 %"
        return ("" if self.trusted else "~") + text + ("!" if self.heaviest_user > 0.25 else "")


MARKS: Mapping[str, str] = {
    "~": "~: carried by a few draws, most likely too high.",
    "!": "!: one user brings over a quarter of the weight.",
}
"""What the marks of `Share.text` mean."""


@dataclass(frozen=True, slots=True, repr=False)
class Point:
    """One logging policy, and what would come of it.

    Attributes
    ----------
    kind : {"temperature", "user_temperature", "epsilon"}
        Plackett-Luce at one temperature, at each user's own, or epsilon-greedy.
    parameter : float
        The temperature; the overlap that every user's own temperature aims at (by
        `fastrank.calibration`); epsilon.
    overlap, overlap_error : float
        Expected share of the deterministic top k that a ranking shows, mean over users, and its
        standard error from the draws.
    overlap_low, overlap_median, overlap_high : float
        The overlap that 10 %, half and 90 % of the users are below.
    loss, loss_error : float
        Mean score of the deterministic top k less the expected mean score, and its error.
    relative_loss : float
        `loss` over that of the uniform policy; 0 where no policy loses anything.
    perplexity : float
        exp of the entropy of the first place, geometric mean over users: among how many equally
        likely items that place would be as open.
    shares : tuple of Share
        By target and prefix; without targets that are not defined for this policy.
    """

    kind: Kind
    parameter: float
    overlap: float
    overlap_error: float
    overlap_low: float
    overlap_median: float
    overlap_high: float
    loss: float
    loss_error: float
    relative_loss: float
    perplexity: float
    shares: tuple[Share, ...]

    def __repr__(self) -> str:
        return (
            f"Point({self.kind} {self.parameter:.6g}: overlap {self.overlap:.3g}, relative loss"
            f" {self.relative_loss:.3g}, {len(self.shares)} shares)"
        )

    def share(self, target: str, prefix: int) -> Share | None:
        """The share of one target at one prefix; None where it is not defined."""
        for each in self.shares:
            if (each.target, each.prefix) == (target, prefix):
                return each
        return None
