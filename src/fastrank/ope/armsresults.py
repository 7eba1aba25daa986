"""Results about an experiment's arms, also in plain language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fastrank.frames import plain, said_in_a_line
from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.ratio import LEAST_P, SampleRatio
from fastrank.ope.results import REASONS, Difference, Estimate, Status
from fastrank.ope.summary import Evaluation, PolicyResult
from fastrank.ope.verdict import explain

__all__ = ["ArmResult", "ArmsEvaluation", "Compared", "Crossed"]

_ARMS_SAID = 5  # most arms in a repr


@dataclass(frozen=True, slots=True, repr=False)
class ArmResult:
    """One arm.

    Attributes
    ----------
    arm : str
    policy : str or None
        How it ranks, in a few words; None if unknown.
    why_not_known : str or None
    rows, rows_used : int
    set_aside : dict of str to int
        Rows not used, by reason.
    earned : Estimate
        Its mean reward per ranking, over all rows used.
    """

    arm: str
    policy: str | None
    why_not_known: str | None
    rows: int
    rows_used: int
    set_aside: Mapping[str, int]
    earned: Estimate

    def __repr__(self) -> str:
        return f"ArmResult({said_in_a_line(self.arm)}, {self.rows_used} rows used, {self.earned!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Compared:
    """The difference of an arm to the control, over the periods in which both ran.

    Attributes
    ----------
    arm, control : str
    rows : dict of str to int
        Rows used of each.
    periods : int
        Periods of constant shares in which both have rows.
    difference : Difference
    """

    arm: str
    control: str
    rows: Mapping[str, int]
    periods: int
    difference: Difference

    def __repr__(self) -> str:
        arms = f"{said_in_a_line(self.arm)}, {said_in_a_line(self.control)}"
        return f"Compared({arms}, {self.difference!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Crossed:
    """An arm estimated off-policy from another arm's rows, over the periods in which both ran.

    Attributes
    ----------
    arm, source : str
    estimated : PolicyResult
        Estimated from the source's rows.
    difference : Difference
        The estimate minus what the arm itself earned.
    z : float or None
        The difference in standard errors; None if the estimate is not `ok`.
    """

    arm: str
    source: str
    estimated: PolicyResult
    difference: Difference
    z: float | None

    def __repr__(self) -> str:
        arms = f"{said_in_a_line(self.arm)} from {said_in_a_line(self.source)}"
        return f"Crossed({arms}, {self.estimated.status}, z={self.z})"


@dataclass(frozen=True, slots=True, repr=False)
class ArmsEvaluation:
    """Results of an experiment, from its log.

    Attributes
    ----------
    experiment, control : str
    status : {"ok", "low_overlap", "malformed_log", "unsupported"}
        Status of the experiment as a whole.
    reasons : tuple of str
        Problems of the experiment: keys of `REASONS`.
    sample_ratio : SampleRatio
    periods : tuple of dict
        Periods of constant shares: `name`, `shares` (or None), `first`, `last` and `rows` by arm.
    arms : tuple of ArmResult
    compared : tuple of Compared
        Each other arm, compared with the control.
    crossed : tuple of Crossed
        The control from each other arm's rows, and the reverse, if policies are known.
    weighed_by : {"mixture", "arm"}
        The propensities of pooled rows: "mixture" if those of all arms by their shares, "arm" if
        those of the row's own arm.
    why_no_mixture : str or None
    pooled : Evaluation or None
        Estimates of the requested policies, from all arms' rows.
    rows_without_arm : int
        Rows of the experiment that state no arm, and are left out.
    thresholds : Thresholds
        The thresholds of the statuses.
    level, difference_level : float
        Levels of intervals, and of intervals of differences, which are stricter (Bonferroni).
    log : dict
        The reader's report.
    """

    experiment: str
    control: str
    status: Status
    reasons: tuple[str, ...]
    sample_ratio: SampleRatio
    periods: tuple[Mapping[str, Any], ...]
    arms: tuple[ArmResult, ...]
    compared: tuple[Compared, ...]
    crossed: tuple[Crossed, ...]
    weighed_by: str
    why_no_mixture: str | None
    pooled: Evaluation | None
    rows_without_arm: int
    thresholds: Thresholds
    level: float
    difference_level: float
    log: Mapping[str, Any]

    def __repr__(self) -> str:
        arms = ", ".join(said_in_a_line(each.arm) for each in self.arms[:_ARMS_SAID])
        more = ", ..." if len(self.arms) > _ARMS_SAID else ""
        name = said_in_a_line(self.experiment)
        return f"ArmsEvaluation({name}, {len(self.arms)} arms: {arms}{more}; {self.status})"

    @property
    def verdict(self) -> tuple[str, ...]:
        """The results in plain language, for the person who has to decide."""
        return (
            _said_of_ratio(self.sample_ratio),
            *(_said_of_difference(each, self) for each in self.compared),
            *(_said_of_crossed(each, self.thresholds) for each in self.crossed),
        )

    @property
    def pooling(self) -> str:
        """How rows are weighed, in plain language."""
        if self.why_no_mixture is None:
            return "Rows of all arms are weighed by the mixture of their policies, by their shares."
        return (
            "Rows are weighed by the propensities of their own arm, not by the mixture of all:"
            f" {self.why_no_mixture}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The results in JSON's types; a value that is not finite is None."""
        found: dict[str, Any] = plain(asdict(replace(self, pooled=None)))
        found["pooled"] = None if self.pooled is None else self.pooled.to_dict()
        return {**found, "verdict": list(self.verdict)}


def _said_of_ratio(ratio: SampleRatio) -> str:
    unit = ratio.unit
    several = (
        f" {ratio.users_in_two_arms:,} users are in several arms at once, and are not counted."
        if ratio.users_in_two_arms
        else ""
    )
    moved = (
        f" {ratio.users_moved:,} users changed arms as shares changed." if ratio.users_moved else ""
    )
    if ratio.p_value is None:
        said = f"Whether the shares of {unit} are right was not tested: {ratio.why_not}."
        return f"{said}{several}{moved}"
    if ratio.fits:
        said = f"Shares of {unit} are as intended (p = {ratio.p_value:.3g})."
        return f"{said}{several}{moved}"
    worst = min(ratio.periods, key=lambda each: each.p_value)
    counts = ", ".join(
        f"{arm} {count:,} of {worst.expected.get(arm, 0.0):,.0f} expected"
        for arm, count in worst.counts.items()
    )
    return (
        f"The comparison of the arms is not reliable: shares of {unit} are not as intended, p ="
        f" {ratio.p_value:.2g} (at least {LEAST_P:g}); {worst.period}: {counts}."
        f"{several}{moved}"
    )


def _said_of_difference(each: Compared, found: ArmsEvaluation) -> str:
    difference, pair = each.difference, f"{each.arm} and {each.control}"
    if "no_rows" in difference.reasons:
        return f"{pair} cannot be compared: there is no period in which both ran."
    if difference.status != "ok":
        why = "; ".join(REASONS[reason] for reason in difference.reasons)
        return f"A comparison of {pair} is not reliable: {why}."
    assert difference.value is not None
    assert difference.interval is not None
    low, high = difference.interval
    between = f"{100 * difference.level:.4g} % interval: {low:+.3g} to {high:+.3g}"
    when = f", over {each.periods} periods of constant shares" if each.periods > 1 else ""
    if low > 0.0 or high < 0.0:
        which = "more" if low > 0.0 else "less"
        amount = f"{abs(difference.value):.4g} {which} a ranking than {each.control}"
        return f"{each.arm} earned {amount} ({between}{when})."
    return f"No difference between {pair} can be seen ({between}{when})."


def _said_of_crossed(each: Crossed, thresholds: Thresholds) -> str:
    estimate = each.estimated.estimates[each.estimated.lead]
    if each.estimated.status != "ok":
        why = "; ".join(
            explain(reason, estimate, each.estimated.uncovered, thresholds)
            for reason in estimate.reasons
        )
        return f"{each.arm} cannot be estimated from {each.source}'s rows: {why}."
    if each.z is None:
        return (
            f"{each.arm} can be estimated from {each.source}'s rows, but not compared with its own."
        )
    value = estimate.value
    if "arms_contradict" in each.difference.reasons:
        return (
            f"{each.source}'s rows estimate {each.arm} at {value:.4g}, {each.z:+.1f} standard"
            f" errors off what {each.arm} itself earned: {REASONS['arms_contradict']}."
        )
    return (
        f"{each.source}'s rows estimate {each.arm} at {value:.4g}, in agreement with its own rows"
        f" ({each.z:+.1f} standard errors off)."
    )
