"""What int8 storage states of its normaliser's error: docs/explanation/int8-bounds.md, by numbers.

Nothing here is drawn. What the proof takes for granted of a code's error is computed for a thousand
fractions; what it concludes of a sum of such errors is compared with their exact distribution; and
the native bound with the same formula, written down again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import shuffled_ids

import fastrank as fr
from fastrank import _probes, packing, reference

FloatArray = npt.NDArray[np.float64]

SUB_GAUSSIAN = 1.066
LOG_ODDS = 21.9
TAIL = 7.0
WINDOW = 5.0

# A code is floor(v + dither + 1/2), the dither a sum of two uniforms on (-1/2, 1/2): given the
# fraction of v, its errors are whole numbers apart and follow the quadratic B-spline.
FRACTIONS = np.linspace(0.0, 1.0, 1_001)
ERRORS = np.arange(-2, 3)[:, None] - FRACTIONS
_SIZE = np.abs(ERRORS)
CHANCES = np.where(_SIZE <= 0.5, 0.75 - _SIZE**2, 0.5 * np.maximum(1.5 - _SIZE, 0.0) ** 2)


def cumulant(a: float) -> FloatArray:
    """log E exp(a e), for each fraction."""
    most = 1.5 * abs(a)
    values: FloatArray = np.log((CHANCES * np.exp(a * ERRORS - most)).sum(axis=0)) + most
    return values


# Facts (1) to (4). Fractions f and 1 - f have opposite errors, so positive a are enough.


def test_errors_of_codes_have_the_moments_that_are_claimed() -> None:
    np.testing.assert_allclose(CHANCES.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose((CHANCES * ERRORS).sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose((CHANCES * ERRORS**2).sum(axis=0), 0.25, rtol=1e-12)
    assert (CHANCES * ERRORS**4).sum(axis=0).max() == pytest.approx(0.25)  # (3)
    third = np.abs((CHANCES * ERRORS**3).sum(axis=0)).max()
    assert 0.0481 < third < 0.0482  # of (4)


def test_the_mean_of_an_exponential_is_near_a_normal_variates() -> None:
    factors = np.concatenate([np.geomspace(0.01, 0.1, 20), np.linspace(0.1, 12.0, 400)])
    shares = [np.abs(cumulant(a) - a**2 / 8.0).max() / a**3 for a in factors.tolist()]
    assert 0.0107 < max(shares) < 0.011  # (1)
    # Beyond: |e| <= 3/2 and E e = 0 keep log E exp(a e) between 0 and 3 a / 2 <= a^2 / 8.
    assert 12.0**2 / 8.0 < 0.011 * 12.0**3


def test_errors_are_sub_gaussian() -> None:
    factors = np.geomspace(0.02, 12.0, 2_000)
    shares = [cumulant(a).max() / (a**2 / 8.0) for a in factors.tolist()]
    assert SUB_GAUSSIAN - 0.001 < max(shares) < SUB_GAUSSIAN  # (2); beyond 12 as above


def test_the_third_cumulant_is_what_is_left() -> None:
    third = (CHANCES * ERRORS**3).sum(axis=0)
    rests = []
    for a in np.geomspace(0.02, 1.0, 400).tolist():
        for sign in (1.0, -1.0):
            rest = cumulant(sign * a) - a**2 / 8.0 - third * sign * a**3 / 6.0
            rests.append(np.abs(rest).max() / a**4)
    assert 0.0050 < max(rests) < 0.0053  # (4)


# What follows for one item


def inflation(u: float, d: float, eta: float, tail: float = TAIL) -> float:
    """I(u) of docs/explanation/int8-bounds.md."""
    cut_off = np.expm1(tail * d) / (tail * d)
    variance = np.expm1(d**2 * (1.0 + 0.44 * eta * d)) / d**2
    third = 0.26 * eta + (3.3 + 3.0 * eta**2) * d
    fourth = (cut_off * (3.0 + eta**2 / 4.0) ** 0.25 + 0.55 * d) ** 4
    y = u * cut_off * tail
    # By its series, which has no cancellation.
    g, term = 0.0, 1.0
    for j in range(60):
        g += term
        term *= y / (j + 5)
    return float(1.001 * (variance + u * third / 3.0 + u**2 * fourth * g / 12.0))


def beyond(u: float, certain: float, tail: float) -> float:
    """tau(u) of docs/explanation/int8-bounds.md."""
    if tail < TAIL:
        return 0.0
    chord = np.expm1(certain) / certain
    return float(4.0 * np.exp(1.1 * u * chord * TAIL - TAIL**2 / (2.0 * SUB_GAUSSIAN)))


@pytest.mark.parametrize("count", [1, 2, 4, 16, 64, 256])
def test_no_moment_passes_its_bound(count: int) -> None:
    """log E exp(theta X) for an error that is the sum of `count` equal coordinates', exactly.

    With one coordinate eta is 2, the most there is. Both tails; d up to the largest that is small.
    """
    tightest = 0.0
    for fraction in (0, 103, 250, 397, 500):
        law = CHANCES[:, fraction]
        sums = np.array([1.0])
        for _ in range(count):
            sums = np.convolve(sums, law)
        error = np.arange(len(sums)) - 2.0 * count - count * FRACTIONS[fraction]
        held = sums > 0.0
        sums, error = sums[held], error[held]
        for d in (0.01, 0.05, 0.125):
            a = 2.0 * d / np.sqrt(count)
            eta = 2.0 / np.sqrt(count)
            certain = 1.5 * a * count
            if certain > 2.0:
                continue
            weights = np.exp(a * error)
            x = weights / (sums * weights).sum() - 1.0  # of mean 0
            tail = min(TAIL, certain / d)
            for u in (0.02, 0.1, 0.3, 0.5):
                allowed = 0.5 * u**2 * inflation(u, d, eta, tail) + beyond(u, certain, tail)
                for theta in (u / d, -u / d):
                    psi = np.log((sums * np.exp(theta * x)).sum())
                    assert psi <= allowed, (fraction, d, u)
                    tightest = max(tightest, psi / (0.5 * u**2))
    assert tightest > 0.999  # the variance alone would be too little somewhere, or just enough


def test_a_missed_item_adds_no_more_than_is_claimed() -> None:
    """A heavy one that errs by more than the window, x deviations heavier than the cut.

    Normal errors would do much less; what counts is the sub-Gaussian tail alone, as in the proof.
    """
    for d in (0.01, 0.05, 0.125):
        for u in (0.1, 0.3, 0.5):
            x = np.linspace(0.0, 2.0 / d - WINDOW, 2_000)
            z = WINDOW + x
            heavier = u * np.exp(x * d)
            exponent = 0.55 * heavier * d + heavier * z - z**2 / (2.0 * SUB_GAUSSIAN)
            assert exponent.max() <= 5.1 * u - WINDOW**2 / (2.0 * SUB_GAUSSIAN)


# The native bound is this one


def stated(
    catalog: fr.Catalog,
    query: FloatArray,
    temperature: float,
    sums: tuple[float, float, float, float],
    n_heavy: int,
) -> tuple[float, float, float]:
    """(bound, noting, window) as ext/error_law.h has them, where errors are small."""
    center, unit = catalog._arrays["columns"].astype(np.float64)
    meta, dim, n = catalog._meta, catalog.dim, len(catalog)
    mass, scaled, variance, cut = sums
    norm = float(np.linalg.norm(query * unit))
    step = float(np.float32(np.abs(query * unit).max() / 32600.0))
    residue = float(np.linalg.norm(query * unit - step * np.rint(query * unit / step)))
    terms = norm * (meta["code_norm"] + meta["code_error"])
    center_terms = float(np.linalg.norm(query) * np.linalg.norm(center))
    per_scale = meta["code_norm"] * residue + 2.0**-24 * (0.5 * dim + 16.0) * terms
    largest = meta["max_scale"]
    certain = 1.001 * (meta["code_error"] * norm + per_scale)
    deviations = np.sqrt(2.0 * SUB_GAUSSIAN * np.log(6e9 * n))
    spread = min(certain, 1.001 * (0.5 * deviations * norm + per_scale))
    window = min(spread, 1.001 * (WINDOW * 0.5 * norm + per_scale))
    d = 0.5 * norm / temperature * largest
    assert d <= 0.125
    assert certain * largest / temperature <= 2.0
    eta = 2.0 * float(np.abs(query * unit).max()) / norm
    slope = 4.0 * spread / norm
    reach = d * np.exp(-slope * d) if slope * d <= 1.0 else 1.0 / (np.e * slope)
    reach *= np.exp(2.0**-24 * (0.5 * dim + 16.0) * center_terms / temperature + 4e-6)
    most = cut * reach
    whole = (variance + 2335.0 * (d * most) ** 2) / (0.98 - d**2)
    tail = min(TAIL, certain * largest / temperature / d)
    rate = min(np.sqrt(2.0 * LOG_ODDS / whole), 0.5 / most)
    rate = min(np.sqrt(2.0 * LOG_ODDS / (whole * inflation(rate * most, d, eta, tail))), 0.5 / most)
    u = float(rate * most)
    odds = (
        LOG_ODDS
        + n * beyond(u, certain * largest / temperature, tail)
        + (1.01 * n_heavy + 10.0) * np.exp(5.1 * u - WINDOW**2 / (2.0 * SUB_GAUSSIAN))
    )
    random = odds / rate + 0.5 * rate * whole * inflation(u, d, eta, tail)
    own = 2.0**-22 * terms * 2.0 / norm
    moved = 2.0 / norm * residue * np.sqrt(meta["code_moment"]) * np.sqrt(variance) + own * scaled
    fixed = min(moved, (2.0 / norm * meta["code_norm"] * residue + own) * scaled)
    fixed += scaled * (0.046 * eta * d**2 + 2.0**-16 * np.sqrt(dim))
    fixed += mass * np.expm1(2.0**-22 * center_terms / temperature + 4e-6)
    return float(random + fixed), 2.0 * spread + window, window


def native(
    catalog: fr.Catalog, query: Any, temperature: float, sums: Any, n_heavy: int
) -> tuple[float, float, float]:
    found = _probes.error_bound(catalog._packed, query, temperature, np.array(sums), n_heavy)
    assert found is not None
    return found


@pytest.mark.parametrize("dim", [8, 64, 384])
def test_the_native_bound_is_the_one_that_was_proved(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CODED_FROM", 0)
    rng = np.random.default_rng(dim)
    rows = 0.3 + rng.standard_normal((2_000, dim)) / np.sqrt(dim)
    catalog = fr.Catalog(shuffled_ids(2_000), rows, storage="int8")
    query = rng.standard_normal(dim).astype(np.float32)
    for temperature in (0.5, 2.0, 20.0):
        for sums in (
            (1e3, 20.0, 0.3, 1.0),
            (1e3, 20.0, 0.3, 40.0),  # few items decide
            (1e5, 2e3, 1e-4, 1e-6),
        ):
            for n_heavy in (0, 1_000, 100_000):
                found = native(catalog, query, temperature, sums, n_heavy)
                expected = stated(catalog, query.astype(np.float64), temperature, sums, n_heavy)
                assert found == pytest.approx(expected, rel=1e-6)


def test_what_can_err_by_more_than_a_factor_of_e_is_allowed_for_beside_the_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bernstein's inequality, where errors are large; nothing is light here but by the cut."""
    monkeypatch.setattr(packing, "CODED_FROM", 0)
    rng = np.random.default_rng(7)
    n, temperature = 3_000, 0.05
    rows = rng.standard_normal((n, 8))
    rows[0] *= 100.0
    catalog = fr.Catalog(np.arange(n), rows, storage="int8")
    query = rng.standard_normal(8).astype(np.float32)
    scaled = query.astype(np.float64) * catalog._arrays["columns"][1]
    norm = float(np.linalg.norm(scaled))
    assert 0.5 * norm * catalog._meta["max_scale"] / temperature > 1.0
    bound, noting, window = native(catalog, query, temperature, (0.0, 0.0, 0.0, 1.0), 0)
    assert noting == pytest.approx(3.0 * window)  # no item errs by more than `spread`
    c = window / norm
    assert c > 0.75
    eta = 2.0 * float(np.abs(scaled).max()) / norm
    light = LOG_ODDS / 3.0 * (0.5 - 0.25)  # x = log 2
    beyond_one = 0.046 * eta * n + np.sqrt(2.0 * LOG_ODDS * np.e * n)
    assert beyond_one * np.exp(-4.0 * c) > 1e-3 * light  # or this would say nothing
    assert bound == pytest.approx(light + beyond_one * np.exp(-4.0 * c), rel=1e-4)
    for i in range(4):
        sums = np.array([1e3, 20.0, 0.3, 1.0])
        before = native(catalog, query, temperature, sums, 10)[0]
        sums[i] *= 2.0
        assert native(catalog, query, temperature, sums, 10)[0] > before


# And it holds


@pytest.mark.sampled
@pytest.mark.parametrize(("n", "dim"), [(40_000, 64), (20_000, 384), (17_000, 768)])
def test_text_embeddings_are_estimated_within_their_bound(n: int, dim: int) -> None:
    """At all temperatures, and none reads all float32 vectors for its normaliser."""
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((n, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
    catalog = fr.Catalog(np.arange(n), rows, storage="int8")
    wide = rows.astype(np.float64)
    shares = []
    for i in range(3):
        query = rng.standard_normal(dim).astype(np.float32)
        scores = wide @ query.astype(np.float64)
        for share in (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 10.0, 40.0):
            ranking = catalog.rank(query, 10, policy=fr.PlackettLuce(1.0 / share), seed=i)
            assert ranking.log_norm is not None
            error = abs(ranking.log_norm - reference.log_norm(scores, 1.0 / share))
            assert error <= ranking.log_norm_error + 1e-5
            assert ranking.log_norm_error <= 1e-3
            assert ranking.propensity_kind == "bounded", share
            shares.append(error / ranking.log_norm_error)
    assert 0.01 < max(shares) < 0.6  # 6.6 deviations are allowed for


@pytest.mark.sampled
@pytest.mark.parametrize("dim", [64, 384])
def test_what_a_scan_noted_too_little_of_is_noted_again(dim: int) -> None:
    """A pilot whose items are heavier than the others makes the first chunk's cut too high.

    A second pass over the codes notes more; without it the float32 vectors would be read, and the
    kind be "exact".
    """
    n, temperature = 65_536, 0.6
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((n, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
    liked = rng.standard_normal(dim).astype(np.float32)
    liked /= np.linalg.norm(liked)
    pilot = (np.arange(40)[:, None] * 102 * 16 + np.arange(16)).ravel()  # 40 panels, every 102nd
    rows[pilot] += np.float32(2.0 * temperature / 4.0) * liked  # weigh e^2 times as much
    catalog = fr.Catalog(np.arange(n), rows, storage="int8")
    wide = rows.astype(np.float64)
    for i in range(3):
        query = rng.standard_normal(dim).astype(np.float32)
        query += (4.0 - query @ liked) * liked
        ranking = catalog.rank(query, 10, policy=fr.PlackettLuce(temperature), seed=i)
        assert ranking.log_norm is not None
        error = abs(ranking.log_norm - reference.log_norm(wide @ query.astype(float), temperature))
        assert error <= ranking.log_norm_error + 1e-5
        assert ranking.propensity_kind == "bounded"
