"""int8 storage: codes find the items that matter, float32 decides, and errors are bounded.

Error budget of the laws: see support.py. Codes are of no use below 2048 eligible items and are not
consulted there; the fixture `codes` has them consulted always, so that laws can be enumerated.
`coarse` catalogs have codes that say little: what they are told apart by is the thinning alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken
import numpy as np
import numpy.typing as npt
import pytest
from patience import PATIENCE
from support import (
    LAW_CASES,
    MANY,
    N_DRAWS,
    PANEL_CASES,
    LawCase,
    Scored,
    assert_first_position_law,
    assert_log_propensities,
    assert_ordered_law,
    assert_well_formed,
    heavy_tailed_scores,
    shuffled_ids,
)

import fastrank as fr
from fastrank import _native, _probes, packing, reference

Rows = npt.NDArray[np.float32]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PLACKETT_LUCE = fr.PlackettLuce(1.0)
DIMS = [1, 3, 4, 5, 64, 257]
COARSE = 1e3  # the step of a code is then about a unit of score


@pytest.fixture(autouse=True)
def coded_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small catalogs have codes, too."""
    monkeypatch.setattr(packing, "CODED_FROM", 0)


@pytest.fixture
def codes() -> Iterator[None]:
    """Codes are used however few items there are."""
    previous = _probes.set_few_items(1)
    yield
    _probes.set_few_items(previous)


def coarse(scores: npt.ArrayLike, size: float = COARSE, **options: Any) -> Scored:
    """A catalog whose items have these scores, and codes that are busy with something else.

    Four more coordinates, of random signs, decide each vector's scale; the query does not look at
    them.
    """
    values = np.asarray(scores, np.float32)
    n = len(values)
    signs = np.random.default_rng(n).choice([-1.0, 1.0], (n, 4))
    vectors = np.column_stack([values, size * signs])
    catalog = fr.Catalog(shuffled_ids(n), vectors, storage="int8", **options)
    return Scored(catalog, np.array([1, 0, 0, 0, 0], np.float32))


def both(
    vectors: npt.ArrayLike, bias: npt.ArrayLike | None = None, **options: Any
) -> tuple[fr.Catalog, fr.Catalog]:
    """The same items in float32 and int8."""
    n = len(np.asarray(vectors))
    return (
        fr.Catalog(shuffled_ids(n), vectors, bias=bias),
        fr.Catalog(shuffled_ids(n), vectors, bias=bias, storage="int8", **options),
    )


def code_bounds(
    catalog: fr.Catalog, query: npt.NDArray[np.float32], bias: Rows | None = None
) -> tuple[Rows, Rows] | None:
    """What codes say of the scores: estimates and upper bounds."""
    biases = None if bias is None else catalog._bias(bias)
    return _probes.estimates(catalog._packed, catalog._query(query), biases)


def whole(ranking: fr.Ranking) -> tuple[Any, ...]:
    """All that a ranking holds, in bits."""
    return (
        ranking.item_ids.tolist(),
        ranking.scores.tobytes(),
        ranking.log_propensities.tobytes(),
        ranking.log_norm,
        ranking.log_norm_error,
        ranking.propensity_kind,
        ranking.n_eligible,
    )


# Rows and queries that quantisation could stumble over


def adversarial_rows(name: str, n: int, dim: int) -> Rows:
    """Vectors (n, dim), made for one weakness each."""
    rng = np.random.default_rng([n, dim])
    rows = rng.standard_normal((n, dim))
    match name:
        case "gaussian":
            pass
        case "equal":
            rows[:] = rows[0]
        case "zero":
            rows[:] = 0.0
        case "some zero":
            rows[::3] = 0.0
        case "denormal":
            rows *= 1e-41
        case "tiny":
            rows *= 1e-30
        case "large":
            rows *= 1e15
        case "whole numbers":  # exactly representable where the largest is 125
            rows = rng.integers(-125, 126, (n, dim)).astype(np.float64)
            rows[:, 0] = 125.0
        case "ends":  # the largest codes in every coordinate, of both signs
            rows = rng.choice([-127.0, 127.0], (n, dim))
        case "one sign":
            rows = np.abs(rows) + 10.0
        case "outlier":
            rows[n // 2] *= 1e6
        case "huge column":
            rows[:, 0] *= 1e6
        case "spikes":
            rows[np.arange(n), rng.integers(0, dim, n)] *= 1e4
        case "nearly equal":  # differ by less than a step
            rows = rows[0] + 1e-4 * rows
        case "mixed scales":
            rows *= 10.0 ** rng.uniform(-6.0, 6.0, (n, 1))
        case _:
            raise AssertionError(name)
    return rows.astype(np.float32)


ROWS = [
    *["gaussian", "equal", "zero", "some zero", "denormal", "tiny", "large", "whole numbers"],
    *["ends", "one sign", "outlier", "huge column", "spikes", "nearly equal", "mixed scales"],
]


def adversarial_queries(dim: int) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(dim)
    gaussian = rng.standard_normal(dim)
    one_hot = np.zeros(dim)
    one_hot[dim // 2] = -1.0
    queries = {
        "gaussian": gaussian,
        "zero": np.zeros(dim),
        "denormal": gaussian * 1e-41,
        "small": gaussian * 1e-20,
        "huge": gaussian * 1e30,
        "one-hot": one_hot,
        "signs": np.sign(gaussian),  # with "ends": as large as sums of codes can be
        "spike": np.where(one_hot != 0.0, 1.0, 1e-6 * gaussian),
    }
    return {name: query.astype(np.float32) for name, query in queries.items()}


# The law


@pytest.mark.sampled
@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("case", LAW_CASES, ids=lambda case: case.name)
def test_ordered_law_of_a_few_allowed_items(isa: str, case: LawCase) -> None:
    """Each stands in a panel of its own, so that all but the first k are seen by codes."""
    n = len(case.scores)
    at = 3 + 17 * np.arange(n)
    scores = np.random.default_rng(1).standard_normal(17 * n + 5)
    scores[at] = case.scores
    bias = None
    if case.bias:
        bias = np.full(len(scores), 5.0, np.float32)
        bias[at] = case.bias
    item = coarse(scores)
    allow = at[list(range(n) if case.allow is None else case.allow)]
    exclude = None if case.exclude is None else at[list(case.exclude)]
    orders = item.draw(case.k, PLACKETT_LUCE, N_DRAWS, allow=allow, exclude=exclude, bias=bias)
    eligible = item.eligible(exclude=exclude, allow=allow)
    assert_well_formed(orders, len(scores), case.k, eligible)
    values = item.catalog.scores(item.query, bias=bias)
    assert_ordered_law(orders, values, case.k, PLACKETT_LUCE, eligible)


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1e6])
@pytest.mark.parametrize("case", PANEL_CASES, ids=lambda case: case.name)
def test_ordered_law_over_panels(
    isa: str, chunk_panels: int, case: LawCase, temperature: float
) -> None:
    item, policy = coarse(case.scores), fr.PlackettLuce(temperature)
    orders = item.draw(case.k, policy, N_DRAWS // 2, exclude=case.exclude, allow=case.allow)
    eligible = item.eligible(case.exclude, case.allow)
    assert_well_formed(orders, len(case.scores), case.k, eligible)
    assert_ordered_law(orders, item.scores, case.k, policy, eligible)


@pytest.mark.sampled
@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dim", [1, 5, 64])
def test_ordered_law_of_adversarial_rows(chunk_panels: int, name: str, dim: int) -> None:
    """At a temperature at which the scores differ, but no item holds all the mass."""
    rows = adversarial_rows(name, 40, dim)
    own = None
    if (chunk_panels + dim + [*ROWS].index(name)) % 2:  # with and without one, of every pair
        own = np.random.default_rng(2).standard_normal(40) * float(np.abs(rows).max())
    catalog = fr.Catalog(shuffled_ids(40), rows, bias=own, storage="int8")
    item = Scored(catalog, adversarial_queries(dim)["gaussian"])
    scores = item.scores.astype(np.float64)
    policy = fr.PlackettLuce(float(np.clip(np.quantile(scores, 0.9) - scores.min(), 1e-6, 1e6)))
    orders = item.draw(2, policy, N_DRAWS // 4)
    assert_ordered_law(orders, scores, 2, policy)


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("name", ["zero", "denormal", "huge", "one-hot", "spike"])
def test_ordered_law_of_adversarial_queries(isa: str, name: str) -> None:
    catalog = fr.Catalog(shuffled_ids(40), adversarial_rows("spikes", 40, 5), storage="int8")
    item = Scored(catalog, adversarial_queries(5)[name])
    spread = float(np.ptp(item.scores.astype(np.float64)))
    policy = fr.PlackettLuce(min(max(spread / 4.0, 1e-6), 1e6))
    if name != "huge":
        assert_ordered_law(item.draw(2, policy, N_DRAWS // 4), item.scores, 2, policy)
        return
    # At the highest temperature there is the best item is certain, and the order too.
    order = np.argsort(-item.scores, kind="stable")[:2]
    assert (item.draw(2, policy, 100) == order).all()


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("policy", [fr.EpsilonGreedy(0.35), fr.Uniform(), fr.Deterministic()])
def test_other_policies_keep_their_law(isa: str, chunk_panels: int, policy: fr.Policy) -> None:
    item = coarse(MANY)
    assert_ordered_law(item.draw(2, policy, N_DRAWS // 4), item.scores, 2, policy)


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize(
    ("sampler", "right"), [("thinned", True), ("unthinned", False), ("estimates", False)]
)
def test_the_guard_sees_a_missing_second_look(sampler: str, *, right: bool) -> None:
    """The same catalog and number of draws as above; samplers that believe what codes say."""
    item, rng = coarse(MANY), np.random.default_rng(7)
    found = code_bounds(item.catalog, item.query)
    assert found is not None
    scores, estimates, uppers = (a.astype(np.float64) for a in (item.scores, *found))
    if sampler == "estimates":
        orders = broken.gumbel_sort(rng, estimates, 2, N_DRAWS // 2)
    else:
        draw = broken.thinned_jumps if right else broken.unthinned_jumps
        orders = draw(rng, scores, uppers, 2, N_DRAWS // 2)
    if right:
        assert_ordered_law(orders, scores, 2, PLACKETT_LUCE)
    else:
        with pytest.raises(AssertionError, match="p = "):
            assert_ordered_law(orders, scores, 2, PLACKETT_LUCE)


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("size", [1_000.0, 1_500.0])
def test_ordered_law_where_budgets_are_spent_on_a_linear_bound(
    isa: str, chunk_panels: int, size: float
) -> None:
    """Codes leave 1 to 1.4 of a log-weight open: what the bound adds to an estimate decides."""
    scores = np.random.default_rng(48).standard_normal(48) * 0.3
    item = coarse(scores, size)
    query = item.catalog._query(item.query)
    bounds = _probes.weight_bounds(item.catalog._packed, query, 1.0, 0.0)
    assert bounds is not None
    assert bounds[2]
    orders = item.draw(1, PLACKETT_LUCE, 3 * N_DRAWS)
    assert_ordered_law(orders, item.scores, 1, PLACKETT_LUCE)


@pytest.mark.sampled
@pytest.mark.law
@pytest.mark.parametrize("temperature", [0.25, 1.0, 20.0])
@pytest.mark.parametrize("order", ["shuffled", "ascending"])
def test_first_position_law(temperature: float, order: str) -> None:
    """Heavy tails at T = 1, a handful of items at T = 1/4, nearly all alike at T = 20."""
    scores = heavy_tailed_scores(6_000)
    item = coarse(np.sort(scores) if order == "ascending" else scores, 50.0)
    for k in (1, 10):
        orders = item.draw(k, fr.PlackettLuce(temperature), N_DRAWS // 3)
        logs = item.scores.astype(np.float64) / temperature
        p = np.exp(logs - reference.log_norm(item.scores, temperature))
        assert_first_position_law(orders[:, 0], p)


@pytest.mark.law
def test_first_position_law_of_a_filtered_catalog(chunk_panels: int) -> None:
    scores = heavy_tailed_scores(6_000)
    item = coarse(scores, 50.0)
    exclude = np.union1d(np.argsort(-scores)[:100], np.arange(2_000, 2_500))
    eligible = item.eligible(exclude=exclude)
    n_draws = N_DRAWS // (12 if chunk_panels else 3)  # 375 chunks cost more
    orders = item.draw(5, PLACKETT_LUCE, n_draws, exclude=exclude)
    assert_well_formed(orders, len(scores), 5, eligible)
    logs = scores.astype(np.float64) - reference.log_norm(scores, 1.0, eligible)
    assert_first_position_law(orders[:, 0], np.where(eligible, np.exp(logs), 0.0))


# Bounds: counted, not sampled


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dim", DIMS)
def test_no_score_passes_its_upper_bound(isa: str, name: str, dim: int) -> None:
    rows = adversarial_rows(name, 200, dim)
    size = float(np.abs(rows).max())
    rng = np.random.default_rng(3)
    for scale in (0.0, 1.0, 1e6):
        own = (rng.standard_normal(200) * size * scale).astype(np.float32) if scale else None
        catalog = fr.Catalog(shuffled_ids(200), rows, bias=own, storage="int8")
        for what, query in adversarial_queries(dim).items():
            call = None
            if scale:
                spread = float(np.abs(query).max()) * size * scale
                call = (rng.standard_normal(200) * min(spread, 1e30)).astype(np.float32)
            try:
                scores = catalog.scores(query, bias=call)
            except ValueError:  # could pass the float32 range
                assert what == "huge"
                continue
            found = code_bounds(catalog, query, call)
            if found is None:  # they know when they are of no use
                assert what in ("denormal", "small", "huge"), what
                continue
            estimates, uppers = (a.astype(np.float64) for a in found)
            assert (scores <= uppers).all(), what
            # The bound holds downwards, too, but for the rounding that formed it.
            assert (estimates - scores <= (uppers - estimates) * (1 + 1e-3) + 1e-44).all(), what


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.7, 1.0, 1e6])
@pytest.mark.parametrize("reference_score", [0.0, 1.0, -3e4])
def test_no_weight_passes_its_upper_bound(
    isa: str, temperature: float, reference_score: float
) -> None:
    """From e^-87, below which weights do not count, to e^88, above which float32 ends."""
    inverse = np.float32(1.0 / temperature)
    logs = np.concatenate(
        [
            np.linspace(-87.0, 87.9, 400_000),
            np.log(2.0) * np.repeat(np.arange(-125, 127), 16)
            + np.tile(np.arange(-8, 8), 252) * 1e-7,
        ]
    )
    uppers = (reference_score + logs * temperature).astype(np.float32)
    bounds = _probes.upper_weights(uppers, reference_score, float(inverse)).astype(np.float64)
    true = (uppers.astype(np.float64) - float(np.float32(reference_score))) / temperature
    counts = (true > -87.0) & (true < 88.0)
    weights = np.exp(true[counts])
    assert counts.sum() > 16
    assert (bounds[counts] >= weights).all()
    assert (bounds[counts] <= 1.0625 * weights).all()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dim", DIMS)
def test_no_weight_passes_the_bound_that_budgets_are_spent_on(
    isa: str, name: str, dim: int
) -> None:
    """Both ways of bounding weights, at temperatures from where codes say nearly all to too little.

    `slack` is the most by which codes leave a log-weight open; the bound is linear below about 2.
    """
    n = 200
    rows = adversarial_rows(name, n, dim)
    catalog = fr.Catalog(shuffled_ids(n), rows, storage="int8")
    seen = set()
    for what, query in adversarial_queries(dim).items():
        found = None if what == "huge" else code_bounds(catalog, query)
        if found is None:
            assert what in ("denormal", "small", "huge"), what
            continue
        scores = catalog.scores(query).astype(np.float64)
        estimates, uppers = (a.astype(np.float64) for a in found)
        reach = (uppers - estimates).max()
        for wanted in (0.01, 0.5, 0.9, 1.2, 1.5, 1.8, 5.0):
            temperature = float(np.clip(reach / wanted, 1e-6, 1e6))
            slack = min(reach / temperature, 100.0)
            for reference_score in {np.float32(scores.max()), np.float32(np.median(scores))}:
                result = _probes.weight_bounds(
                    catalog._packed, catalog._query(query), temperature, float(reference_score)
                )
                assert result is not None
                bounds, total, linear = result
                seen.add(linear)
                logs = (scores - float(reference_score)) / temperature
                counts = (logs > -80.0) & (logs < 80.0)
                weights = np.exp(logs[counts])
                assert (bounds[counts] >= weights).all(), (what, slack)
                if slack > 10.0:
                    continue
                # A weight's estimate is within e^slack of it, its bound of that; and roundings.
                limit = np.exp(2.0 * slack + 1.0) * weights
                assert (bounds[counts] <= limit).all(), (what, slack)
                if (logs < 80.0).all():
                    assert total == pytest.approx(bounds.astype(np.float64).sum(), rel=1e-5)
    assert True in seen or name in ("zero", "denormal")


# Deterministic, scores, log_propensities: those of float32, bit for bit


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dim", [1, 5, 64])
def test_what_is_not_drawn_is_float32s(isa: str, chunk_panels: int, name: str, dim: int) -> None:
    n = 300
    rows = adversarial_rows(name, n, dim)
    rows[n // 2 :: 7] = rows[0]  # ties
    for own in (None, np.random.default_rng(4).integers(0, 3, n)):
        plain, quantised = both(rows, own)
        exclude = plain.item_ids[::5]
        for what, query in adversarial_queries(dim).items():
            try:
                scores = plain.scores(query)
            except ValueError:
                with pytest.raises(ValueError, match="range"):
                    quantised.scores(query)
                continue
            assert quantised.scores(query).tobytes() == scores.tobytes()
            for k in (1, 20, n):
                for out in (None, exclude):
                    best, ours = (
                        c.rank(query, k, policy=fr.Deterministic(), exclude=out)
                        for c in (plain, quantised)
                    )
                    assert whole(ours) == whole(best), what
            # One law, one stream, one best list: epsilon-greedy is the same ranking.
            policy = fr.EpsilonGreedy(0.3)
            one, two = (c.rank(query, 20, policy=policy, seed=5) for c in (plain, quantised))
            assert whole(two) == whole(one), what
            given = [
                c.log_propensities(query, one.item_ids, policy=policy, exclude=exclude)
                for c in (plain, quantised)
            ]
            assert given[0].tobytes() == given[1].tobytes()


def test_propensities_of_a_given_ranking_are_float32s(isa: str) -> None:
    rng = np.random.default_rng(5)
    plain, quantised = both(rng.standard_normal((5_000, 13)), rng.standard_normal(5_000))
    query = rng.standard_normal(13)
    order = plain.item_ids[rng.permutation(5_000)[:30]]
    call = rng.standard_normal(5_000)
    for policy in (
        fr.PlackettLuce(0.3),
        fr.PlackettLuce(30.0),
        fr.EpsilonGreedy(0.2),
        fr.Uniform(),
    ):
        for bias in (None, call):
            given = [
                c.log_propensities(query, order, policy=policy, exclude=order[:2], bias=bias)
                for c in (plain, quantised)
            ]
            assert given[0].tobytes() == given[1].tobytes()


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("sampler", ["sequential", "cached"])
def test_samplers_without_codes_rank_as_in_float32(isa: str, sampler: str) -> None:
    plain, quantised = both(np.random.default_rng(6).standard_normal((500, 7)))
    policy = fr.policy(
        {"sequential": "stochastic_plackett_luce", "cached": "stochastic_plackett_luce_cached"}[
            sampler
        ],
        temperature=0.5,
    )
    for seed in range(5):
        one, two = (c.rank(np.ones(7), 10, policy=policy, seed=seed) for c in (plain, quantised))
        assert whole(two) == whole(one)
        assert two.propensity_kind == "exact"


# The log-normaliser


def temperature_of(scores: npt.ArrayLike, perplexity: float) -> float:
    """T at which exp(entropy) of the first place is this."""
    values = np.asarray(scores, np.float64)
    low, high = np.log(1e-6), np.log(1e6)
    for _ in range(60):
        middle = (low + high) / 2
        logs = values / np.exp(middle) - reference.log_norm(values, float(np.exp(middle)))
        low, high = (
            (middle, high) if -(np.exp(logs) * logs).sum() < np.log(perplexity) else (low, middle)
        )
    return float(np.exp((low + high) / 2))


def check_normaliser(item: Scored, policy: fr.PlackettLuce, tolerance: float, **call: Any) -> str:
    """One ranking against float64; its kind."""
    ranking = item.catalog.rank(item.query, 10, policy=policy, seed=1, **call)
    scores = item.catalog.scores(item.query, bias=call.get("bias")).astype(np.float64)
    eligible = np.ones(len(scores), np.bool_)
    if "exclude" in call:
        eligible[item.positions(call["exclude"])] = False
    expected = reference.log_norm(scores, policy.temperature, eligible)
    error = ranking.log_norm_error
    assert ranking.log_norm is not None
    # 1e-5 is float32's own error; 1e-12 that of float64 where a log-normaliser is large.
    assert abs(ranking.log_norm - expected) <= error + 1e-5 + 1e-12 * abs(expected)
    assert 0.0 <= error <= tolerance
    assert ranking.propensity_kind == ("bounded" if error > 0.0 else "exact")
    given = item.catalog.log_propensities(item.query, ranking.item_ids, policy=policy, **call)
    assert (np.abs(ranking.log_propensities - given) <= error + 1e-6 + 1e-12 * np.abs(given)).all()
    assert_log_propensities(
        ranking.log_propensities,
        scores,
        item.positions(ranking.item_ids),
        policy,
        eligible,
        tolerance=1e-5 + error,
    )
    return ranking.propensity_kind


def vectors_and_users(name: str) -> tuple[Rows, Rows]:
    if name == "gaussian":
        rng = np.random.default_rng(8)
        users = rng.standard_normal((3, 64)).astype(np.float32)
        return rng.standard_normal((20_000, 64)).astype(np.float32), users
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there")
    items = np.load(DATA / name / "item_factors.npy")
    users = np.load(DATA / name / "user_factors.npy")
    return items, users[[10, 100, 1_000]]


@pytest.mark.parametrize(
    "name", ["gaussian", "anime", pytest.param("gowalla", marks=pytest.mark.law)]
)
def test_log_norm_is_within_its_bound(name: str) -> None:
    items, users = vectors_and_users(name)
    n = len(items)
    kinds = []
    for tolerance in (1e-3, 1e-2):
        catalog = fr.Catalog(shuffled_ids(n), items, storage="int8", log_norm_tolerance=tolerance)
        for user in users:
            item = Scored(catalog, user)
            for perplexity in (3.0, 30.0, 300.0, n / 3):
                policy = fr.PlackettLuce(temperature_of(item.scores, perplexity))
                kinds.append(check_normaliser(item, policy, tolerance))
    assert "bounded" in kinds  # or this would say nothing


@pytest.mark.sampled
@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dim", [1, 4, 64])
def test_log_norm_of_adversarial_rows_is_within_its_bound(name: str, dim: int) -> None:
    rows = adversarial_rows(name, 3_000, dim)
    for tolerance in (1e-3, 0.3):
        catalog = fr.Catalog(
            shuffled_ids(3_000), rows, storage="int8", log_norm_tolerance=tolerance
        )
        for what, query in adversarial_queries(dim).items():
            try:
                item = Scored(catalog, query)
                spread = float(np.std(item.scores.astype(np.float64)))
            except ValueError:
                assert what == "huge"
                continue
            for share in (0.1, 1.0, 30.0):
                policy = fr.PlackettLuce(float(np.clip(spread * share, 1e-6, 1e6)))
                check_normaliser(item, policy, tolerance)


@pytest.mark.sampled
@pytest.mark.parametrize("place", ["catalog", "call", "both", "both, cancelling"])
@pytest.mark.parametrize("kind", ["equal", "nearly equal", "spread"])
def test_log_norm_under_large_biases_is_within_its_bound(kind: str, place: str) -> None:
    """Scores that stand just above the middle between two float32 numbers all round upwards.

    And estimates hardly ever do. With a bias of 2^24 a rounding is by up to 1.
    """
    n, dim = 6_000, 8
    rng = np.random.default_rng(24)
    kinds = []
    for power in range(0, 25, 3):
        bias = np.full(n, 2.0**power)
        step = 2.0 ** (power - 23)
        rows = rng.standard_normal((n, dim)) * 100 * step  # what decides how coarse codes are
        rows[:, 0] = 0.5 * step * 1.001
        if kind == "nearly equal":
            rows[:, 0] += step * rng.integers(0, 4, n)
        elif kind == "spread":
            rows[:, 0] += step * np.round(rng.standard_normal(n) * 1e4)
        own, call = {
            "catalog": (bias, None),
            "call": (None, bias),
            "both": (bias, bias),
            "both, cancelling": (bias, -bias),
        }[place]
        catalog = fr.Catalog(shuffled_ids(n), rows, bias=own, storage="int8")
        item = Scored(catalog, np.eye(1, dim, dtype=np.float32)[0])
        for temperature in 10.0 ** np.arange(-3.0, 4.0):
            options = {} if call is None else {"bias": call}
            kinds.append(check_normaliser(item, fr.PlackettLuce(temperature), 1e-3, **options))
    assert "bounded" in kinds
    assert "exact" in kinds


def test_log_norm_of_a_filtered_and_biased_catalog(isa: str) -> None:
    rng = np.random.default_rng(9)
    item = Scored(
        fr.Catalog(
            shuffled_ids(8_000),
            rng.standard_normal((8_000, 16)),
            bias=rng.standard_normal(8_000),
            storage="int8",
        ),
        rng.standard_normal(16).astype(np.float32),
    )
    best = item.ids(np.argsort(-item.scores)[:500])
    kinds = [
        check_normaliser(item, fr.PlackettLuce(temperature), 1e-3, exclude=best, bias=bias)
        for temperature in (1.0, 5.0)
        for bias in (None, rng.standard_normal(8_000).astype(np.float32))
    ]
    assert "bounded" in kinds


@pytest.mark.usefixtures("codes")
def test_the_sign_of_scores_does_not_decide_what_is_estimated() -> None:
    """Chunks with fewer than k items state no cut, and 0 is not below every score.

    400 neighbours are allowed, in one chunk of 512 or in two.
    """
    n, dim = 6_000, 16
    rng = np.random.default_rng(21)
    catalog = fr.Catalog(np.arange(n), rng.standard_normal((n, dim)), storage="int8")
    query = rng.standard_normal(dim)
    before = _probes.set_chunk_panels(32)
    try:
        below, above = (
            [
                catalog.rank(
                    *(query, 1),
                    policy=fr.PlackettLuce(2.0),
                    seed=1,
                    allow=np.arange(first, first + 400),
                    bias=np.full(n, shift),
                ).propensity_kind
                for first in range(0, n - 400, 150)
            ]
            for shift in (-100.0, 100.0)
        )
    finally:
        _probes.set_chunk_panels(before)
    assert below == above
    assert "bounded" in below


def test_zero_tolerance_is_exact() -> None:
    rng = np.random.default_rng(10)
    vectors, query = rng.standard_normal((5_000, 8)), rng.standard_normal(8)
    plain, quantised = both(vectors, log_norm_tolerance=0.0)
    for temperature in (0.05, 1.0, 100.0):
        call: dict[str, Any] = {"policy": fr.PlackettLuce(temperature), "seed": 3}
        ours, theirs = (c.rank(query, 10, **call) for c in (quantised, plain))
        assert whole(ours) == whole(theirs)  # codes are not used at all
        assert ours.propensity_kind == "exact"


@pytest.mark.parametrize(
    "value", [-1e-3, float("nan"), float("inf"), "1e-3", None, True, 1j], ids=repr
)
def test_bad_tolerances_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log_norm_tolerance"):
        fr.Catalog([1], [[1.0]], storage="int8", log_norm_tolerance=value)
    catalog = fr.Catalog([1], [[1.0]], storage="int8")
    fr.Model(catalog, [1], [[1.0]]).save(tmp_path / "model")
    for kind in (fr.Catalog, fr.Model):
        with pytest.raises(ValueError, match="log_norm_tolerance"):
            kind.open(tmp_path / "model", log_norm_tolerance=value)


def test_opening_takes_a_tolerance(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    catalog = fr.Catalog(np.arange(5_000), rng.standard_normal((5_000, 16)), storage="int8")
    fr.Model(catalog, [1], rng.standard_normal((1, 16))).save(tmp_path / "model")
    policy = fr.PlackettLuce(10.0)
    bounded = fr.Model.open(tmp_path / "model").recommend(1, policy=policy, seed=1)
    exact = fr.Model.open(tmp_path / "model", log_norm_tolerance=0.0)
    assert bounded.propensity_kind == "bounded"
    assert exact.recommend(1, policy=policy, seed=1).propensity_kind == "exact"
    opened = fr.Catalog.open(tmp_path / "model", log_norm_tolerance=0.0)
    query = rng.standard_normal(16)
    assert opened.rank(query, policy=policy, seed=1).propensity_kind == "exact"
    assert opened.version == catalog.version  # a tolerance is not content


# No bias: neither of the codes nor of the estimates


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.77])
def test_rounding_errors_have_mean_zero_and_variance_a_quarter(fraction: float) -> None:
    """Whatever is rounded. 200,000 errors of at most 1.5: within 5 standard errors."""
    dim, n = 1_000, 200
    vectors = np.full((n, dim), 7.0 + fraction, np.float32)
    vectors[:, 0] = 125.0  # a step is 1
    columns = np.stack([np.zeros(dim), np.ones(dim)]).astype(np.float32)
    panels = -(-n // 16)
    codes = np.zeros((panels, dim // 4, 16, 4), np.uint8)
    scales, kept = np.zeros(panels * 16, np.float32), np.zeros((panels * 16, dim), np.float32)
    _native.quantise(vectors, 0, columns, codes, scales, kept)
    assert (scales[:n] == 1.0).all()
    by_item = codes.transpose(0, 2, 1, 3).reshape(panels * 16, dim)[:n, 1:].astype(np.float64)
    errors = by_item - 128.0 - vectors[:, 1:]
    count = errors.size
    assert abs(errors.mean()) < 5 * np.sqrt(0.25 / count)
    fourth = (errors**4).mean()
    assert abs((errors**2).mean() - 0.25) <= 5 * np.sqrt((fourth - 1 / 16) / count)
    # Equal rows, different errors: a column's and a row's mean are means of independent ones.
    assert abs(errors.mean(axis=0)).max() < 6 * np.sqrt(0.25 / n)
    assert abs(errors.mean(axis=1)).max() < 6 * np.sqrt(0.25 / dim)
    nearest = np.round(vectors[:, 1:]) - vectors[:, 1:]  # what this would see
    if fraction not in (0.0, 0.5):
        assert abs(nearest.mean()) > 5 * np.sqrt(0.25 / count)


@pytest.mark.parametrize("kind", ["different", "equal"])
def test_log_norm_has_no_bias(kind: str) -> None:
    """The mean of 150 errors is within 5 standard errors of 0, and that error is small.

    Each query looks at a column of its own, so each error depends on other roundings. Estimates
    summed as they are would be off by half their variance, which the same test sees.
    """
    n, n_queries, temperature = 2_500, 150, 2.0
    rng = np.random.default_rng(12)
    rows = rng.standard_normal((n, n_queries + 100))
    if kind == "equal":
        rows[:] = rows[0]
    rows[np.arange(n), n_queries + np.arange(n) % 100] = 20.0  # a step is 0.16 with each row
    catalog = fr.Catalog(np.arange(n), rows, storage="int8", log_norm_tolerance=0.2)
    ours, naive = np.empty((2, n_queries))
    for column in range(n_queries):
        query = np.zeros(n_queries + 100, np.float32)
        query[column] = 1.0
        ranking = catalog.rank(query, 5, policy=fr.PlackettLuce(temperature), seed=column)
        exact = reference.log_norm(catalog.scores(query), temperature)
        assert ranking.propensity_kind == "bounded"
        assert ranking.log_norm is not None
        ours[column] = ranking.log_norm - exact
        found = code_bounds(catalog, query)
        assert found is not None
        naive[column] = reference.log_norm(found[0], temperature) - exact
    standard_error = ours.std() / np.sqrt(n_queries)
    assert 0.0 < standard_error < 1e-4
    assert abs(ours.mean()) < 5 * standard_error
    assert abs(naive.mean()) > 5 * naive.std() / np.sqrt(n_queries)


def test_the_bound_is_for_queries_that_do_not_depend_on_the_rounding() -> None:
    """What the README says of others: along the mean error of the codes a bound can be passed.

    By about a seventh of the root of the dimension; 40 other directions stay far below it.
    """
    n, dim, policy = 20_000, 256, fr.PlackettLuce(10.0)
    rng = np.random.default_rng(25)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    catalog = fr.Catalog(np.arange(n), vectors, storage="int8")
    center, unit = catalog._arrays["columns"].astype(np.float64)
    codes = catalog._arrays["codes"].transpose(0, 2, 1, 3).reshape(n, dim).astype(np.float64) - 128
    error = (center + catalog._arrays["scales"][:n, None] * unit * codes - vectors).mean(axis=0)
    shares = []
    for query in (error, *rng.standard_normal((40, dim))):
        direction = query / np.linalg.norm(query)
        ranking = catalog.rank(direction, policy=policy, seed=1)
        exact = reference.log_norm(catalog.scores(direction), policy.temperature)
        assert ranking.log_norm is not None
        shares.append(abs(ranking.log_norm - exact) / ranking.log_norm_error)
    assert 1.0 < shares[0] < np.sqrt(dim) / 7
    assert max(shares[1:]) < 0.6


def test_rounding_to_the_nearest_would_break_the_bound() -> None:
    """Two sets of equal rows: the errors of a set are one error, and so is that of its sum."""
    n, dim, policy = 3_000, 64, fr.PlackettLuce(4.0)
    rng = np.random.default_rng(17)
    broken_bounds = 0
    for i in range(20):
        row = rng.standard_normal(dim).astype(np.float32)
        rows = np.stack([row if j % 2 else -row for j in range(n)])
        catalog = fr.Catalog(np.arange(n), rows, storage="int8", log_norm_tolerance=0.01)
        query = rng.standard_normal(dim).astype(np.float32)
        ranking = catalog.rank(query, 5, policy=policy, seed=i)
        exact = reference.log_norm(catalog.scores(query), policy.temperature)
        assert ranking.propensity_kind == "bounded"
        assert ranking.log_norm == pytest.approx(exact, abs=1e-5 + ranking.log_norm_error)
        center, unit = catalog._arrays["columns"].astype(np.float64)
        steps = catalog._arrays["scales"][:n, None] * unit
        nearest = center + steps * np.round((rows - center) / steps)
        wrong = reference.log_norm(nearest @ query, policy.temperature) - exact
        broken_bounds += abs(wrong) > ranking.log_norm_error + 1e-5
    assert broken_bounds >= 5  # one alone would have a chance of 1e-9


# Same bits wherever it runs


def test_instruction_sets_agree_bit_for_bit(chunk_panels: int) -> None:
    """All but the baseline, which rounds differently."""
    names = [name for name in _probes.isa_names() if name != "v2"]
    rng = np.random.default_rng(13)
    before = _probes.set_few_items(1)
    try:
        for n, dim in ((1, 3), (17, 1), (40, 5), (500, 64), (3_000, 257), (9_000, 12)):
            rows = rng.standard_normal((n, dim))
            item = Scored(
                fr.Catalog(shuffled_ids(n), rows, bias=rng.standard_normal(n), storage="int8"),
                rng.standard_normal(dim).astype(np.float32),
            )
            exclude = item.ids(np.arange(0, n, 7)) if n > 1 else None
            calls: list[dict[str, Any]] = [
                *({}, {"exclude": exclude}, {"bias": rng.standard_normal(n)})
            ]
            for temperature in (1e-3, 0.05, 1.0, 1e3):
                for k in (1, 10, 400):
                    drawn = []
                    for name in names:
                        previous = _native.set_isa(name)
                        try:
                            policy = fr.PlackettLuce(temperature * np.sqrt(dim))
                            drawn.append(
                                [
                                    whole(
                                        item.catalog.rank(
                                            item.query, k, policy=policy, seed=seed, **options
                                        )
                                    )
                                    for seed, options in enumerate(calls)
                                ]
                            )
                        finally:
                            _native.set_isa(previous)
                    assert all(each == drawn[0] for each in drawn), (n, dim, temperature, k)
    finally:
        _probes.set_few_items(before)


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize(
    "policy", [fr.PlackettLuce(0.05), fr.PlackettLuce(1e-3), fr.Deterministic()]
)
@pytest.mark.parametrize("k", [10, 700])
def test_users_of_a_batch_whose_floats_are_needed_while_codes_are_shared(
    isa: str, k: int, policy: fr.Policy
) -> None:
    """A user leaves the codes of a tile: before k items are there, and where too few checks pay."""
    rng = np.random.default_rng(0)
    vectors = np.sort(rng.standard_normal((8_000, 12)), axis=0)
    catalog = fr.Catalog(np.arange(8_000), vectors, storage="int8")
    queries = rng.standard_normal((5, 12))
    batch = catalog.rank_batch(queries, k, policy=policy, seeds=range(5))
    for seed, (query, row) in enumerate(zip(queries, batch, strict=True)):
        assert whole(row) == whole(catalog.rank(query, k, policy=policy, seed=seed))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["gaussian", "mixed scales", "spikes", "equal", "outlier"])
def test_a_batch_is_its_rows_and_threads_do_not_show(chunk_panels: int, name: str) -> None:
    """Users with and without codes side by side: filters that leave few, other policies."""
    n, dim = 6_000, 12
    vectors = adversarial_rows(name, n, dim)
    size = float(np.abs(vectors).max())
    catalog = fr.Catalog(np.arange(n), vectors, storage="int8")
    rng = np.random.default_rng(14)
    queries = rng.standard_normal((9, dim)).astype(np.float32)
    queries[3] = 0.0
    queries[4] = 1e-41
    policies: list[fr.Policy] = [
        *[fr.PlackettLuce(float(np.clip(size * t, 1e-6, 1e6))) for t in (1e-3, 0.03, 0.3, 1.0)],
        fr.Deterministic(),
        fr.PlackettLuce(1e6),
        fr.EpsilonGreedy(0.2),
        fr.PlackettLuce(1.0, sampler="cached"),
        fr.PlackettLuce(1.0),
    ]
    exclude = [None, np.arange(0, n, 3), None, None, None, np.arange(100, n), None, None, None]
    allow = [np.arange(50), None, None, np.arange(n - 1), None, None, np.arange(3_000), None, None]
    for k in (1, 10, 500):
        biases: list[Any] = [None, rng.standard_normal(n), rng.standard_normal((9, n))]
        for bias in biases:
            batches = [
                catalog.rank_batch(
                    *(queries, k),
                    policy=policies,
                    seeds=range(9),
                    exclude=exclude,
                    allow=allow,
                    bias=bias,
                    threads=threads,
                )
                for threads in (1, 3)
            ]
            for i, (one, several) in enumerate(zip(*batches, strict=True)):
                alone = [
                    catalog.rank(
                        *(queries[i], k),
                        policy=policies[i],
                        seed=i,
                        exclude=exclude[i],
                        allow=allow[i],
                        bias=bias if bias is None or bias.ndim < 2 else bias[i],
                        threads=threads,
                    )
                    for threads in (1, 2)
                ]
                for other in (several, *alone):
                    assert whole(other) == whole(one), (k, i)


def assert_batch_is_its_rows(
    catalog: fr.Catalog, queries: Rows, k: int, policy: fr.Policy, **filters: Any
) -> None:
    """Filters are those of every user."""
    b = len(queries)
    each: dict[str, Any] = {name: [ids] * b for name, ids in filters.items()}
    batch = catalog.rank_batch(queries, k, policy=policy, seeds=range(b), **each)
    for seed, (query, row) in enumerate(zip(queries, batch, strict=True)):
        assert whole(row) == whole(catalog.rank(query, k, policy=policy, seed=seed, **filters))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_a_batch_is_its_rows_where_the_pilot_shows_nothing(temperature: float) -> None:
    """Runs between the pilot's panels are longer than a tile, and a cut depends on neither.

    The pilot of these catalogs is 14 panels, every 267th.
    """
    n, dim, policy = 60_000, 16, fr.PlackettLuce(temperature)
    rng = np.random.default_rng(19)
    catalog = fr.Catalog(np.arange(n), rng.standard_normal((n, dim)), storage="int8")
    queries = rng.standard_normal((2, dim)).astype(np.float32)
    pilot = (np.arange(14)[:, None] * 267 * 16 + np.arange(16)).ravel()
    for hidden in (pilot, pilot[16:], pilot[:-1]):
        assert_batch_is_its_rows(catalog, queries, 1, policy, exclude=hidden)
    for first in range(1_000, n, 9_700):  # a stretch with a panel of the pilot, or none
        stretch = np.arange(first, min(n, first + 3_000))
        assert_batch_is_its_rows(catalog, queries, 1, policy, allow=stretch)
        assert_batch_is_its_rows(catalog, queries, 20, policy, allow=stretch)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_a_batch_is_its_rows_where_the_pilot_is_smaller_than_k(temperature: float) -> None:
    """Vectors so long that a tile is 8 panels, and runs of 15."""
    n, dim, k = 5_000, 300, 400
    rng = np.random.default_rng(20)
    catalog = fr.Catalog(np.arange(n), rng.standard_normal((n, dim)), storage="int8")
    queries = rng.standard_normal((3, dim)).astype(np.float32)
    assert_batch_is_its_rows(catalog, queries, k, fr.PlackettLuce(temperature * np.sqrt(dim)))


@pytest.mark.usefixtures("codes")
@pytest.mark.parametrize("n", [1, 15, 16, 17, 2_047, 2_048, 2_049])
def test_sizes_at_the_edges(isa: str, chunk_panels: int, n: int) -> None:
    item = coarse(np.random.default_rng(n).standard_normal(n), 100.0)
    for few in (1, 0):
        _probes.set_few_items(few)
        for k in (1, n - 1, n, n + 1):
            if k == 0:
                continue
            ranking = item.catalog.rank(item.query, k, policy=PLACKETT_LUCE, seed=k)
            positions = item.positions(ranking.item_ids)
            assert_well_formed(positions, n, k)
            if k >= n:
                assert ranking.propensity_kind == "exact"
            if k < 20 or n < 20:
                assert_log_propensities(
                    ranking.log_propensities,
                    item.scores,
                    positions,
                    PLACKETT_LUCE,
                    tolerance=1e-5 + ranking.log_norm_error,
                )
            expected = reference.log_norm(item.scores, 1.0)
            assert ranking.log_norm == pytest.approx(expected, abs=1e-5 + ranking.log_norm_error)
        nobody = item.catalog.rank(item.query, 5, policy=PLACKETT_LUCE, allow=[])
        assert len(nobody) == 0
        assert nobody.log_norm == -np.inf
        assert nobody.propensity_kind == "exact"


# A catalog stored in another order


@pytest.mark.usefixtures("codes")
def test_a_prior_changes_nothing_but_the_draws(isa: str, chunk_panels: int) -> None:
    rng = np.random.default_rng(15)
    n = 3_000
    vectors = np.round(rng.standard_normal((n, 3)) * 2) / 2
    prior, query = rng.standard_normal(n), np.ones(3, np.float32)
    plain = fr.Catalog(np.arange(n) * 3, vectors)
    stored = fr.Catalog(np.arange(n) * 3, vectors, prior=prior, storage="int8")
    assert stored.scores(query).tobytes() == plain.scores(query).tobytes()
    for k in (1, 10, 300):
        best = [c.rank(query, k, policy=fr.Deterministic()) for c in (plain, stored)]
        assert whole(best[0])[:3] == whole(best[1])[:3]
        check_normaliser(Scored(stored, query), fr.PlackettLuce(1.0), 1e-3)


@pytest.mark.usefixtures("codes")
def test_law_with_a_prior(chunk_panels: int) -> None:
    item = coarse(MANY, prior=np.array(MANY))
    orders = item.draw(2, PLACKETT_LUCE, N_DRAWS)
    assert_ordered_law(orders, item.scores, 2, PLACKETT_LUCE)


# On disk


def test_round_trip_and_version(tmp_path: Path) -> None:
    rng = np.random.default_rng(16)
    vectors, bias = rng.standard_normal((3_000, 6)), rng.standard_normal(3_000)
    catalog, again = (fr.Catalog(np.arange(3_000), vectors, bias, "int8") for _ in range(2))
    assert again.version == catalog.version  # the dither is no accident
    assert catalog.version != fr.Catalog(np.arange(3_000), vectors, bias).version
    catalog.save(tmp_path / "model")
    for verify in (False, True):
        opened = fr.Catalog.open(tmp_path / "model", verify=verify)
        assert opened.version == catalog.version
        for policy in (fr.PlackettLuce(0.5), fr.PlackettLuce(5.0), fr.EpsilonGreedy(0.1)):
            call: dict[str, Any] = {"policy": policy, "seed": 4}
            assert whole(opened.rank(np.ones(6), **call)) == whole(catalog.rank(np.ones(6), **call))
        opened.save(tmp_path / "copy")
        assert fr.Catalog.open(tmp_path / "copy", verify=True).version == catalog.version


@pytest.mark.parametrize("name", ["codes", "scales", "vectors", "columns"])
def test_damage_is_refused(tmp_path: Path, name: str) -> None:
    fr.Catalog(np.arange(100), np.eye(100, 6), storage="int8").save(tmp_path / "model")
    (path,) = (tmp_path / "model").glob(f"{name}*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=path.name):
        fr.Catalog.open(tmp_path / "model", verify=True)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=path.name):
        fr.Catalog.open(tmp_path / "model")
    path.unlink()
    with pytest.raises(ValueError, match=path.name):
        fr.Catalog.open(tmp_path / "model")


DAMAGED = """
import sys
import numpy as np
import fastrank as fr
catalog = fr.Catalog.open(sys.argv[1])
for temperature in (0.05, 1.0, 10.0):
    for k in (10, 2_000):
        catalog.rank(np.ones(8), k, policy=fr.PlackettLuce(temperature), seed=k)
        catalog.rank_batch(np.ones((2, 8)), k, policy=fr.PlackettLuce(temperature), seeds=[1, 2])
catalog.rank(np.ones(8), policy=fr.Deterministic())
"""


@pytest.mark.sampled
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "3e38", "-1"])
@pytest.mark.parametrize("count", [20, 10_000])
def test_damage_that_nobody_looked_for_ends_no_process(
    tmp_path: Path, value: str, count: int
) -> None:
    """`open` reads no array, so scales may hold anything; rankings mean nothing then."""
    rng = np.random.default_rng(22)
    fr.Catalog(np.arange(20_000), rng.standard_normal((20_000, 8)), storage="int8").save(
        tmp_path / "model"
    )
    (path,) = (tmp_path / "model").glob("scales*.npy")
    scales = np.lib.format.open_memmap(path, mode="r+")
    scales[rng.choice(20_000, count, replace=False)] = float(value)
    scales.flush()
    command = [sys.executable, "-c", DAMAGED, str(tmp_path / "model")]
    subprocess.run(command, check=True, timeout=PATIENCE)


def test_vectors_that_are_not_finite_are_named() -> None:
    vectors = np.zeros((70_000, 3))
    vectors[69_999, 1] = np.nan
    with pytest.raises(ValueError, match="row 69999, column 1"):
        fr.Catalog(np.arange(70_000), vectors, storage="int8")
    with pytest.raises(ValueError, match="storage"):
        fr.Catalog([1], [[1.0]], storage="int4")


@pytest.mark.parametrize("power", [-65, -40, 40, 55])
def test_the_unit_of_vectors_does_not_matter(isa: str, power: int) -> None:
    """Vectors in another unit, the query in its inverse: the same ranking and bound to the bit.

    Squares of scales would leave the float32 range here, and with them what a bound is made of.
    """
    rng = np.random.default_rng(18)
    rows, query = rng.standard_normal((4_000, 16)), rng.standard_normal(16)
    rows, query = rows.astype(np.float32), query.astype(np.float32)
    for temperature in (1.0, 10.0):
        drawn = [
            fr.Catalog(np.arange(4_000), rows * unit, storage="int8").rank(
                query / unit, policy=fr.PlackettLuce(temperature), seed=1
            )
            for unit in (np.float32(1.0), np.float32(2.0) ** power)
        ]
        assert whole(drawn[1]) == whole(drawn[0])
    assert drawn[0].propensity_kind == "bounded"


def test_the_moment_of_codes_is_the_same_in_any_order() -> None:
    """Whatever the order in which a BLAS adds up: the bound of a ranking depends on it."""
    codes = np.random.default_rng(23).integers(1, 256, (300, 3, 16, 4)).astype(np.uint8)
    moment = packing._moment(codes, 11)
    rows = codes.transpose(0, 2, 1, 3).reshape(-1, 12)[:, :11].astype(np.int64) - 128
    largest = np.linalg.eigvalsh((rows.T @ rows).astype(np.float64))[-1]
    assert largest < moment < largest * (1 + 2e-5)
    assert packing._moment(codes[::-1], 11) == packing._moment(codes[:, :, ::-1], 11) == moment


def test_a_wrong_matrix_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on what codes are off by is made of one; kernels of some CPUs have been wrong."""
    vectors = np.random.default_rng(0).standard_normal((300, 8))
    right = packing._square

    def wrong(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        square = right(rows)
        square[-1, 0] += 1.0
        return square

    monkeypatch.setattr(packing, "_square", wrong)
    with pytest.raises(RuntimeError, match="matrix product is wrong on this CPU"):
        fr.Catalog(np.arange(300), vectors, storage="int8")
    fr.Catalog(np.arange(300), vectors)
