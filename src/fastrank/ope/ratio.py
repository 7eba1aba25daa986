"""The sample-ratio test: whether arms have as many users, or requests, as they should have.

If they do not, rows of one arm were lost, or users were sent to another one. That may depend on
what the arm showed, so no comparison of the arms can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LEAST_P", "Ratio", "SampleRatio", "ratio_p_value", "sample_ratio"]

LEAST_P = 1e-3  # below it, a comparison of arms is not reliable
_FEW = 100.0  # expected count of an arm below which chi-square is not accurate enough


@dataclass(frozen=True, slots=True)
class Ratio:
    """Counts of the arms while shares were constant.

    Attributes
    ----------
    period : str
        The period.
    counts : dict of str to int
    expected : dict of str to float
        Expected counts, from the shares.
    p_value : float
    """

    period: str
    counts: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether the arms' counts fit their shares.

    Attributes
    ----------
    unit : {"users", "requests"}
        The unit that is counted; rows that name no user, in a log where others do, count as
        separate users.
    periods : tuple of Ratio
    p_value : float or None
        The smallest of the periods' p-values, after Bonferroni. None if not tested.
    why_not : str or None
        Why it was not tested.
    users_in_two_arms : int
        Users who were in several arms while shares were constant, and are not counted.
    counted : int
        Users or requests in all, including those in several arms; counted anew in each period.
    users_moved : int
        Users who were in another arm after a change of shares.
    """

    unit: str
    periods: tuple[Ratio, ...]
    p_value: float | None
    why_not: str | None
    users_in_two_arms: int
    users_moved: int
    counted: int

    @property
    def fits(self) -> bool:
        """Whether nothing contradicts the shares."""
        return self.p_value is None or self.p_value >= LEAST_P


def sample_ratio(
    unit: str,
    counts_of: Sequence[tuple[str, Mapping[str, int], Mapping[str, float]]],
    users_in_two_arms: int = 0,
    users_moved: int = 0,
) -> SampleRatio:
    """Test periods, each with its name, arms' counts and arms' shares."""
    periods = []
    for name, counts, shares in counts_of:
        total = sum(counts.values())
        expected = {arm: total * share for arm, share in shares.items()}
        periods.append(Ratio(name, counts, expected, ratio_p_value(counts, shares)))
    least = min((each.p_value for each in periods), default=1.0)
    p_value = min(1.0, least * max(len(periods), 1))
    counted = sum(sum(each.counts.values()) for each in periods) + users_in_two_arms
    return SampleRatio(unit, tuple(periods), p_value, None, users_in_two_arms, users_moved, counted)


def ratio_p_value(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Probability of counts at least as far from their shares.

    Computed by chi-square; if an arm should have fewer than a hundred, by the exact binomial law of
    each arm against all others, times their number (Bonferroni).

    Examples
    --------
    >>> even = {"control": 0.5, "new": 0.5}
    >>> round(ratio_p_value({"control": 5000, "new": 5100}, even), 3)
    0.32
    >>> ratio_p_value({"control": 10, "new": 0}, even) == 2 / 2**10
    True
    """
    from scipy.special import chdtrc
    from scipy.stats import binomtest

    if any(count for arm, count in counts.items() if not shares.get(arm)):
        return 0.0
    arms = [arm for arm, share in shares.items() if share]
    total = sum(counts.values())
    if len(arms) < 2 or not total:
        return 1.0
    found = np.array([counts.get(arm, 0) for arm in arms], np.float64)
    expected = np.array([total * shares[arm] for arm in arms])
    if expected.min() >= _FEW:
        return float(chdtrc(len(arms) - 1, (np.square(found - expected) / expected).sum()))
    tried = arms[:1] if len(arms) == 2 else arms  # with two arms, one test is enough
    exact = [float(binomtest(counts.get(arm, 0), total, shares[arm]).pvalue) for arm in tried]
    return min(1.0, min(exact) * len(tried))
