"""What the sizes of rewards let expect, whether or not the largest of them are there."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from fastrank import ope
from fastrank.ope.tails import BINS, expected_ess, size_counts

Array = npt.NDArray[np.float64]


def expected(values: Array) -> float:
    return expected_ess(size_counts(values))


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 1.8, 2.5])
def test_lognormal_sizes_are_worth_what_their_law_says(sigma: float) -> None:
    """By the fifth largest of so many s is known within some 6 %."""
    values = np.random.default_rng(1).lognormal(3.0, sigma, 25_000)
    low, high = (
        25_000 * np.exp(-((sigma * by + add) ** 2)) for by, add in ((1.03, 0.06), (0.95, 0))
    )
    assert low <= expected(values) <= high
    assert expected(-values) == expected(values)


def test_the_largest_hardly_matter() -> None:
    """Of 2,000 lognormal sizes as the law has them, evenly, and without the largest."""
    normal = NormalDist()
    whole = np.exp([2.0 * normal.inv_cdf((i + 0.5) / 2000) for i in range(2000)])
    lacking = whole[:-1]
    counted = [sizes.sum() ** 2 / np.square(sizes).sum() for sizes in (whole, lacking)]
    assert counted[1] > 1.5 * counted[0]
    assert expected(lacking) < 1.25 * expected(whole)


def test_sizes_that_end_somewhere_are_worth_more() -> None:
    """From 1 to 10,000, evenly by logarithm: worth .217 of their number; a lognormal is not."""
    values = np.exp(np.random.default_rng(3).uniform(0.0, np.log(1e4), 2000))
    assert 0.03 * 2000 < expected(values) < 0.217 * 2000


@pytest.mark.parametrize(
    ("prices", "bought"),
    [((9, 49, 499), (60, 30, 10)), ((9, 99, 999), (180, 60, 10)), ((9, 11, 99), (90, 30, 10))],
)
def test_prices_end_at_the_highest(prices: tuple[int, ...], bought: tuple[int, ...]) -> None:
    """Three prices of subscriptions; ten at the highest are worth that many by themselves."""
    assert expected(np.repeat(np.array(prices, float), bought)) >= 10


def test_long_tails_have_no_such_end() -> None:
    """Where the largest of 120 is missing, few logs look as if sizes ended."""
    rng = np.random.default_rng(6)
    logs = [np.sort(rng.lognormal(0.0, 2.5, 120))[:-1] for _ in range(500)]
    assert np.quantile([expected(sizes) for sizes in logs], 0.95) < 8.0


def test_equal_rewards_are_worth_their_number() -> None:
    assert expected(np.repeat([0.0, 7.0], [50, 40])) == 40.0
    assert expected(np.zeros(3)) == 0.0
    assert expected(np.array([1e-300, 1.0, 1e50])) == 3.0  # too few to tell
    assert size_counts(np.array([1e-300, 1e50, 0.0]))[[0, BINS - 1]].tolist() == [1, 1]


def test_few_large_ones_among_many_small_are_no_lognormal() -> None:
    """A click is 1, one in 25 a purchase of 100: the counted number is what judges them."""
    values = np.repeat([1.0, 100.0], [960, 40])
    assert expected(values) > values.sum() ** 2 / np.square(values).sum()


def difference(sigma: float, purchases: int) -> ope.Difference:
    """The largest is left out, as logs do that look well."""
    rng = np.random.default_rng(4)
    rewards = np.zeros(200 * purchases)
    rewards[::200] = rng.lognormal(0.0, sigma, purchases)
    rewards[np.argmax(rewards)] = 0.0
    weights = np.where(np.arange(len(rewards)) // 200 % 2, 1.5, 0.5)
    halves = np.array_split(np.arange(len(rewards)), 2)
    sides = {}
    for name in ("ips", "avg"):
        parts = []
        for rows in halves:
            parts.append(ope.ESTIMATORS[name](1))
            logged = np.full(len(rows), -3.0)
            parts[-1].update(ope.Batch.of(logged, logged + np.log(weights[rows]), rewards[rows]))
        parts[0].merge(parts[1])
        sides[name] = parts[0]
    return ope.difference(sides["ips"], sides["avg"])


def test_a_difference_of_a_long_tail_is_flagged() -> None:
    assert "long_tail" in difference(2.2, 100).reasons
    assert difference(2.2, 100).status == "low_overlap"
    assert "long_tail" not in difference(1.2, 100).reasons
