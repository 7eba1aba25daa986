"""The figures of one logging policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastrank.frames import said_in_a_line
from fastrank.policies import Policy

__all__ = ["MARKS", "Advance", "Kind", "Point", "Share", "Target"]

Advance: TypeAlias = Callable[[str, int, int], None]  # what is being done, steps done, all steps

Kind = Literal["temperature", "user_temperature", "epsilon"]
# A policy to evaluate, or a callable that makes one from the logging policy; the callable raises a
# ValueError for logging policies that it does not support.
Target: TypeAlias = Policy | Callable[[Policy], Policy]


@dataclass(frozen=True, slots=True, repr=False)
class Share:
    """The effective share of a log's rows when a target policy is evaluated from it.

    Attributes
    ----------
    target : str
    prefix : int
        Number of places in the weight: `rips` uses it at this place, `ips` if it is k.
    share : float
        ESS / n = 1 / E[w^2], with the expectation over all users together, since one log holds
        them all. 0 if the logging policy cannot show what the target shows.
    median : float
        The median over users of the share of a log of one user.
    exact : bool
        Whether the share is computed exactly for these users, not estimated from draws.
    error : float
        Relative standard error of E[w^2] from the draws; 0 if exact.
    heaviest_draw, heaviest_user : float
        The largest fraction of E[w^2] from one draw and from one user.
    trusted : bool
        Whether it is exact, or `error` is at most 0.2 and `heaviest_draw` at most 0.1. A sum that
        depends on a few draws has most likely missed heavier ones, so the true share is smaller.
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
        """The share as text, marked ~ if it is not trusted, and ! if one user dominates it."""
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
"""The meaning of the marks of `Share.text`."""


@dataclass(frozen=True, slots=True, repr=False)
class Point:
    """One logging policy, what it would cost, and what its log would be worth.

    Attributes
    ----------
    kind : {"temperature", "user_temperature", "epsilon"}
        Plackett-Luce at one temperature, at each user's own, or epsilon-greedy.
    parameter : float
        The temperature; or the overlap that every user's own temperature aims at, by
        `fastrank.calibration`; or epsilon.
    overlap, overlap_error : float
        Expected share of the deterministic top k in a ranking, averaged over users, and its
        standard error from the draws.
    overlap_low, overlap_median, overlap_high : float
        10 %, 50 % and 90 % quantiles of users' overlaps.
    loss, loss_error : float
        Mean score of the deterministic top k minus the expected mean score, and its error.
    relative_loss : float
        `loss` divided by the uniform policy's; 0 if no policy loses score.
    perplexity : float
        exp of the entropy of the first place, geometric mean over users: the number of equally
        likely items with the same entropy.
    shares : tuple of Share
        By target and prefix, without targets that are not defined for this policy.
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
        """Return the share of one target at one prefix; None if it is not defined."""
        for each in self.shares:
            if (each.target, each.prefix) == (target, prefix):
                return each
        return None
