"""The expected overlap against simulation, and the temperature that reaches one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from fastrank.calibration import expected_overlap, temperature_for_overlap


def simulated_overlap(
    scores: npt.NDArray[np.float64], temperature: float, k: int, draws: int
) -> float:
    rng = np.random.default_rng(1)
    top = np.argpartition(-scores, k - 1)[:k]
    kept = 0
    for _ in range(draws):
        keys = scores / temperature + rng.gumbel(size=len(scores))
        kept += len(np.intersect1d(top, np.argpartition(-keys, k - 1)[:k]))
    return kept / (draws * k)


SHAPES: dict[str, Callable[[np.random.Generator], npt.NDArray[np.float64]]] = {
    "normal": lambda rng: rng.standard_normal(2000),
    "heavy": lambda rng: rng.standard_exponential(2000) ** 2,
    "few": lambda rng: rng.standard_normal(20),
    "ties": lambda rng: np.concatenate([rng.standard_normal(50), np.zeros(500)]),
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("overlap", [0.3, 0.7, 0.95])
def test_temperature_gives_the_overlap(shape: str, overlap: float) -> None:
    scores = SHAPES[shape](np.random.default_rng(0))
    k = 5
    temperature = temperature_for_overlap(scores, k, overlap)
    if shape != "few" or overlap > 0.3:  # a uniform draw of 5 of 20 keeps 0.25 already
        assert expected_overlap(scores, temperature, k) == pytest.approx(overlap, abs=2e-3)
    # 600 draws of 5 items: standard error below sqrt(.25 / 3000) = 0.009, so 0.04 is 4 of them;
    # the approximation itself adds up to 0.02 where k is a quarter of all items.
    limit = 0.06 if shape == "few" else 0.04
    assert simulated_overlap(scores, temperature, k, 600) == pytest.approx(overlap, abs=limit)


def test_temperature_has_the_unit_of_the_scores() -> None:
    scores = np.random.default_rng(0).standard_normal(500)
    base = temperature_for_overlap(scores, 10)
    assert temperature_for_overlap(scores * 1000 + 7, 10) == pytest.approx(base * 1000, rel=1e-2)


def test_overlap_falls_from_one_to_uniform() -> None:
    scores = np.random.default_rng(0).standard_normal(100)
    overlaps = [expected_overlap(scores, t, 10) for t in np.geomspace(1e-6, 1e6, 40)]
    assert overlaps[0] == pytest.approx(1.0, abs=1e-6)
    assert overlaps[-1] == pytest.approx(0.1, abs=1e-3)
    assert np.all(np.diff(overlaps) <= 1e-9)


def test_items_that_stand_above_a_crowd_of_ties() -> None:
    # 5 items far above 35 equal ones: they are in, and 5 of the 35 at random: 5 + 5 * 5 / 35.
    scores = np.concatenate([np.ones(5), np.zeros(35)])
    for temperature in (1e-6, 1e-3, 0.02):
        assert expected_overlap(scores, temperature, 10) == pytest.approx(
            (5 + 25 / 35) / 10, abs=1e-2
        )
    assert 1e-6 <= temperature_for_overlap(scores, 10, 0.9) < 1e-4  # beyond reach


def test_edges() -> None:
    assert temperature_for_overlap(np.zeros(10), 3) == 1.0
    assert expected_overlap([1.0, 2.0], 1.0, 2) == 1.0
    assert expected_overlap([800.0, 0.0, -800.0], 1.0, 1) == pytest.approx(1.0)
    assert 1e-6 <= temperature_for_overlap([3.0], 1) <= 1e6
    with pytest.raises(ValueError, match="k: expected 1 to 2"):
        expected_overlap([1.0, 2.0], 1.0, 3)
    with pytest.raises(ValueError, match="overlap: must lie between 0 and 1"):
        temperature_for_overlap([1.0, 2.0], 1, 1.0)
