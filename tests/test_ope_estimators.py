"""Estimators against truth cases that can be worked out exactly, and the ways sums may merge."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from fastrank import ope
from fastrank.ope.batch import FLAT_ARRAYS, PLACE_ARRAYS
from fastrank.ope.estimators import Ips, _Mean
from fastrank.ope.verdict import explain

Array: TypeAlias = npt.NDArray[np.float64]
EXACT = 1e-9


def estimator_of(name: str, batch: ope.Batch, **options: Any) -> ope.Estimator:
    estimator = ope.ESTIMATORS[name](batch.places, **options)
    estimator.update(batch)
    return estimator


def iid(name: str, batch: ope.Batch, **options: Any) -> ope.Estimate:
    return ope.estimate(estimator_of(name, batch, **options), cluster=False)


def variance(estimate: ope.Estimate) -> float:
    """Per row, ddof 0."""
    assert estimate.standard_error_iid is not None
    return estimate.standard_error_iid**2 * (estimate.rows - 1)


# Truth case 2: three arms.

P0, P1 = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
RATES = np.array([0.1, 0.2, 0.4])


def three_arms() -> ope.Batch:
    arm = np.repeat([0, 1, 2], [500, 300, 200])
    clicks = np.concatenate([np.arange(m) < c for m, c in ((500, 50), (300, 60), (200, 80))])
    return ope.Batch.of(
        np.log(P0[arm]),
        np.log(P1[arm]),
        clicks.astype(float),
        q_logged=RATES[arm],
        q_expected=np.full(1000, P1 @ RATES),
        q_direct=np.full(1000, P1 @ RATES),
        cascade_q_logged=RATES[arm],
        cascade_q_expected=np.full(1000, P1 @ RATES),
        marginals_logged=P0[arm],
        marginals_evaluated=P1[arm],
        slate_weights=P1[arm] / P0[arm],
    )


@pytest.mark.parametrize("name", ope.ESTIMATORS)
def test_three_arms(name: str) -> None:
    """All of them with one place; those of matches, which are few here, have tests below."""
    if name not in ("replay", "replay-weighted"):
        value = 0.19 if name == "avg" else 0.31
        assert iid(name, three_arms()).value == pytest.approx(value, abs=EXACT)


def test_variances_of_three_arms() -> None:
    batch = three_arms()
    assert variance(iid("ips", batch)) == pytest.approx(0.6859, abs=EXACT)
    assert variance(iid("dr-position", batch)) == pytest.approx(0.4818, abs=EXACT)
    assert variance(iid("snips", batch)) == pytest.approx(0.500892, abs=EXACT)
    assert variance(iid("snrips", batch)) == pytest.approx(0.500892, abs=EXACT)
    assert iid("clipped-ips", batch, clip=2.0).value == pytest.approx(0.23, abs=EXACT)


def test_weights_of_three_arms() -> None:
    found = iid("ips", three_arms()).diagnostics
    assert found is not None
    assert found.ess_share == pytest.approx(1 / 2.12, abs=EXACT)
    assert found.ess_share == pytest.approx(0.471698, abs=5e-7)
    assert found.mean_weight == pytest.approx(1.0, abs=EXACT)
    assert found.mean_weight_z == pytest.approx(0.0, abs=EXACT)
    assert found.max_weight_share == pytest.approx(3.0 / 1000, abs=EXACT)
    assert found.heaviest_share == pytest.approx(30.0 / 1000, abs=EXACT)
    # Rewarded: 50 of weight .2, 60 of weight 1, 80 of weight 3.
    reward_ess = (50 * 0.2 + 60 + 80 * 3) ** 2 / (50 * 0.04 + 60 + 80 * 9)
    assert found.reward_ess == pytest.approx(reward_ess, abs=EXACT)


# Truth case 3: rankings of two of four items.

W0, W1 = np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 3.0, 2.0, 1.0])
CLICKS = np.array([0.1, 0.2, 0.3, 0.4])
COUNTS = [56, 84, 112, 63, 189, 252, 108, 216, 432, 168, 336, 504]
ORDERS = np.array(list(permutations(range(4), 2)))


def conditionals(weights: Array, orders: npt.NDArray[np.int64]) -> Array:
    first = weights[orders[:, 0]] / weights.sum()
    second = weights[orders[:, 1]] / (weights.sum() - weights[orders[:, 0]])
    return np.stack([first, second], axis=1)


def marginals(weights: Array) -> Array:
    """P(item at place), (4, 2)."""
    p = conditionals(weights, ORDERS).prod(axis=1)
    return np.stack([np.bincount(ORDERS[:, place], p, 4) for place in (0, 1)], axis=1)


def four_items(cascade: bool) -> ope.Batch:
    orders = np.repeat(ORDERS, COUNTS, axis=0)
    rewards = CLICKS[orders]
    q = CLICKS[orders]
    left = np.ones((len(orders), 4))
    left[np.arange(len(orders)), orders[:, 0]] = 0.0
    second = left * W1 / (left * W1).sum(axis=1, keepdims=True)
    q_expected = np.stack([np.full(len(orders), W1 @ CLICKS / W1.sum()), second @ CLICKS], axis=1)
    examined = np.ones(orders.shape)
    if cascade:
        examined[:, 1] = 1.0 - CLICKS[orders[:, 0]]
        rewards = rewards * examined
    # The value from a place on: what the second place will earn, given the first item.
    follow = np.zeros(4)
    for a in range(4):
        others = np.delete(np.arange(4), a)
        follow[a] = W1[others] @ CLICKS[others] / W1[others].sum()
    if cascade:
        follow = follow * (1.0 - CLICKS)
    whole = CLICKS + follow
    cascade_q = np.stack([whole[orders[:, 0]], CLICKS[orders[:, 1]] * examined[:, 1]], axis=1)
    cascade_expected = np.stack(
        [np.full(len(orders), W1 @ whole / W1.sum()), (second @ CLICKS) * examined[:, 1]], axis=1
    )
    at = np.array([0, 1])
    return ope.Batch.of(
        np.log(conditionals(W0, orders)),
        np.log(conditionals(W1, orders)),
        rewards,
        marginals_logged=marginals(W0)[orders, at],
        marginals_evaluated=marginals(W1)[orders, at],
        q_logged=q,
        q_expected=q_expected,
        cascade_q_logged=cascade_q,
        cascade_q_expected=cascade_expected,
    )


@pytest.mark.parametrize(
    ("name", "per_row"),
    [
        ("ips", 0.300440976), ("iips", 0.008376691), ("rips", 0.178858970),
        ("dr-position", 0.088495370), ("cascade-dr", 0.0),
    ],
)  # fmt: skip
def test_four_items(name: str, per_row: float) -> None:
    estimate = iid(name, four_items(cascade=False))
    assert estimate.value == pytest.approx(151 / 360, abs=EXACT)
    assert variance(estimate) == pytest.approx(per_row, abs=EXACT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ips", 91 / 240), ("rips", 91 / 240), ("cascade-dr", 91 / 240), ("iips", 0.352209200),
    ],
)  # fmt: skip
def test_four_items_in_a_cascade(name: str, value: float) -> None:
    assert iid(name, four_items(cascade=True)).value == pytest.approx(value, abs=EXACT)


def test_weights_of_four_items() -> None:
    found = iid("ips", four_items(cascade=False)).diagnostics
    assert found is not None
    assert found.ess_share == pytest.approx(0.2458085746, abs=1e-10)
    assert found.ess_share == pytest.approx(1 / 4.068206333, abs=EXACT)


def test_the_interval_of_many_rows_is_normal() -> None:
    """Truth case 6."""
    even = np.arange(1000) % 2 == 0
    batch = ope.Batch.of(
        np.full(1000, np.log(0.5)), np.log(np.where(even, 0.2, 0.8)), even.astype(float)
    )
    estimate = iid("ips", batch)
    assert estimate.value == pytest.approx(0.2, abs=EXACT)
    assert estimate.standard_error is not None
    half = 1.959963984540054 * estimate.standard_error
    assert (0.2 - half, 0.2 + half) == pytest.approx((0.18759789675, 0.21240210325), abs=1e-11)
    # Its own interval allows for 1,000 rows, and is bent by a skewness of nearly 0.
    assert estimate.interval == pytest.approx((0.18759789675, 0.21240210325), abs=3e-5)


# Replay: truth case 7.


def test_replay_counts_matches_alone() -> None:
    """Ten arms, logged uniformly; each tenth row matches and pays .2; others never count."""
    rng = np.random.default_rng(0)
    arm = rng.integers(0, 10, 100_000)
    shown = rng.integers(0, 10, 100_000)  # what the evaluation policy would show
    clicks = (rng.random(100_000) < np.where(arm == shown, 0.2, 0.0)).astype(float)
    evaluated = np.where(arm == shown, 0.0, -np.inf)
    estimate = iid("replay", ope.Batch.of(np.full(100_000, np.log(0.1)), evaluated, clicks))
    # Binomial(100000, 1/10): sd 95, and the click rate's sd among 10,000 is 0.004; 6.1 sd each
    # are exceeded with probability 1e-9.
    assert estimate.matched is not None
    assert abs(estimate.matched - 10_000) < 6.1 * 95
    assert estimate.value == pytest.approx(0.2, abs=6.1 * 0.004)
    assert clicks.mean() == pytest.approx(0.02, abs=6.1 * 0.0005)
    assert estimate.status == "ok"


def test_replay_of_a_stochastic_policy_draws_once_a_row() -> None:
    n = 1000
    uniform = (np.arange(n) + 0.5) / n
    batch = ope.Batch.of(
        np.full(n, np.log(0.1)), np.full(n, np.log(0.25)), np.ones(n), uniform=uniform
    )
    assert iid("replay", batch).matched == 250


@pytest.mark.parametrize("logged", ["propensities", "items"])
def test_replay_wants_matches_equally_likely(logged: str) -> None:
    n = 4000
    lp = np.full(n, np.log(0.5))
    n_eligible = np.full(n, 2)
    if logged == "propensities":
        lp[::2] = np.log(0.25)
    else:
        n_eligible[::2] = 3
    batch = ope.Batch.of(lp, np.zeros(n), np.ones(n), n_eligible=n_eligible)
    estimate = iid("replay", batch)
    assert estimate.status == "low_overlap"
    assert estimate.reasons == ("match_not_constant",)
    assert iid("replay-weighted", batch).value == pytest.approx(1.0)


def test_replay_by_weights_is_right_where_replay_is_not() -> None:
    """Rows of two kinds, with other match rates and other rewards."""
    n = 20_000
    odd = np.arange(n) % 2 == 1
    p = np.where(odd, 0.8, 0.2)
    # Matched in exactly that share of rows; the evaluation policy is deterministic.
    matched = np.concatenate(
        [(np.arange(n // 2) % 10 < 2)[:, None], (np.arange(n // 2) % 10 < 8)[:, None]], 1
    )
    evaluated = np.where(matched.ravel(), 0.0, -np.inf)
    batch = ope.Batch.of(np.log(p), evaluated, odd.astype(float))
    assert iid("replay", batch).value == pytest.approx(0.8)
    assert iid("replay-weighted", batch).value == pytest.approx(0.5)


# Sums merge.


def some_batch(n: int, k: int, seed: int, users: int = 300) -> ope.Batch:
    """Rankings of up to k places with everything that any estimator wants."""
    rng = np.random.default_rng(seed)
    shape = n, k

    def law() -> Array:
        return np.log(rng.uniform(0.05, 1.0, shape))

    evaluated = law()
    evaluated[rng.random(shape) < 0.05] = -np.inf
    return ope.Batch.of(
        law(),
        evaluated,
        rng.exponential(1.0, shape) * (rng.random(shape) < 0.3),
        lengths=rng.integers(0, k + 1, n),
        groups=rng.integers(0, 2**40, users)[rng.integers(0, users, n)],
        uniform=rng.random(n),
        n_eligible=rng.integers(k, 2 * k, n),
        marginals_logged=np.exp(law()),
        marginals_evaluated=np.exp(law()),
        q_logged=rng.random(shape),
        q_expected=rng.random(shape),
        cascade_q_logged=rng.random(shape),
        cascade_q_expected=rng.random(shape),
        q_direct=rng.random(n),
        slate_weights=rng.normal(1.0, 1.0, n),
    )


def rows_of(batch: ope.Batch, rows: npt.NDArray[np.int64]) -> ope.Batch:
    """Some of its rows."""
    arrays = {
        field: value[rows]
        for field, value in vars(batch).items()
        if isinstance(value, np.ndarray) and field in ope.Batch.__dataclass_fields__
    }
    return ope.Batch(**arrays)


def figures(estimator: ope.Estimator) -> dict[str, Any]:
    """Everything that a result says, flat."""
    found = ope.estimate(estimator).to_dict()
    diagnostics = found.pop("diagnostics") or {}
    places = diagnostics.pop("by_place", ())
    flat = {**found.pop("parameters"), **found, **diagnostics}
    for j, place in enumerate(places):
        flat |= {f"{name} {j}": value for name, value in place.items()}
    return flat


@pytest.mark.parametrize("name", ope.ESTIMATORS)
@pytest.mark.parametrize("shape", ["halves", "ones and rest", "tree", "empty ones"])
def test_any_split_gives_the_same(name: str, shape: str) -> None:
    whole = some_batch(600, 4, seed=1)
    if shape == "tree":
        whole = replace(whole, row_weights=np.random.default_rng(3).uniform(0.1, 10.0, 600))
    order = np.random.default_rng(2).permutation(600)
    cuts = {
        "halves": [300],
        "ones and rest": [1, 2, 3],
        "tree": [37, 150, 151, 400],
        "empty ones": [0, 0, 600],
    }[shape]
    parts = [estimator_of(name, rows_of(whole, part)) for part in np.split(order, cuts)]
    while len(parts) > 1:  # pairwise, from the middle, so that both sides have been merged
        i = (len(parts) - 1) // 2
        parts[i].merge(parts.pop(i + 1))
    expected, found = figures(estimator_of(name, whole)), figures(parts[0])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float) or (
            isinstance(value, list) and value and isinstance(value[0], float)
        ):
            assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key
        else:
            assert found[key] == value, key
    one = estimator_of(name, whole)
    np.testing.assert_allclose(parts[0].sums, one.sums, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(parts[0].counts, one.counts)
    np.testing.assert_array_equal(parts[0].weights.largest, one.weights.largest)
    np.testing.assert_array_equal(parts[0].weights.histogram_counts, one.weights.histogram_counts)


def test_users_may_be_any_integers() -> None:
    """Multiples of 1,024, or ids that begin with a time, are not one user."""
    n = 2000
    for users in (np.arange(n) * 1024, np.arange(n) << 22, -np.arange(n) * 4096):
        batch = ope.Batch.of(np.zeros(n), np.zeros(n), np.ones(n), groups=users)
        assert ope.estimate(estimator_of("ips", batch)).clusters > 800


def test_amounts_beyond_reason_are_refused() -> None:
    """Their squares would pass float64, and a number without an error is none."""
    with pytest.raises(ValueError, match=r"rewards: row 1, place 1: must be within 1e\+50"):
        ope.Batch.of([0.0, 0.0], [0.0, 0.0], [1.0, 1e51])
    for weight in (1e51, 1e-51):
        with pytest.raises(ValueError, match=r"row_weights: row 0: must be above 0, within 1e\+50"):
            ope.Batch.of([0.0], [0.0], [1.0], row_weights=[weight])
    largest = ope.Batch.of(
        np.zeros(200), np.zeros(200), np.full(200, 1e50), row_weights=[1e50] * 200
    )
    for name in ("ips", "snips"):
        found = ope.estimate(estimator_of(name, largest))
        assert found.value == pytest.approx(1e50)
        assert found.status == "ok"


# Rows that stand for others.


@pytest.mark.parametrize("name", ope.ESTIMATORS)
def test_a_row_counts_as_often_as_it_says(name: str) -> None:
    """As if it were there so many times, but for what counts rows, and errors of single rows."""
    batch = some_batch(400, 3, seed=7)
    times = np.random.default_rng(8).integers(1, 6, 400)
    repeated = rows_of(batch, np.repeat(np.arange(400), times))
    expected = ope.estimate(estimator_of(name, repeated))
    weighted = replace(batch, row_weights=times.astype(float))
    found = ope.estimate(estimator_of(name, weighted))
    assert (expected.rows, found.rows) == (times.sum(), 400)
    for what in ("value", "standard_error", "effective_clusters", "skewness"):
        assert getattr(found, what) == pytest.approx(getattr(expected, what), rel=1e-9), what
    for what in ("interval", "bootstrap"):
        assert getattr(found, what) == pytest.approx(getattr(expected, what), rel=1e-9), what
    if found.diagnostics is not None:
        assert expected.diagnostics is not None
        for what in ("mean_weight", "mean_weight_z"):
            one, other = (getattr(each.diagnostics, what) for each in (found, expected))
            assert one == pytest.approx(other, rel=1e-9), what
        # What a row stands for is one row's word.
        assert found.diagnostics.ess < expected.diagnostics.ess
    if name == "clipped-ips":
        assert found.parameters == pytest.approx(expected.parameters)


@pytest.mark.parametrize("name", ope.ESTIMATORS)
def test_the_unit_of_row_weights_does_not_matter(name: str) -> None:
    batch = some_batch(400, 3, seed=7)
    own = np.random.default_rng(8).uniform(0.5, 2.0, 400)
    one, other = (
        figures(estimator_of(name, replace(batch, row_weights=scale * own))) for scale in (1.0, 1e6)
    )
    for key, value in one.items():
        if key.startswith("heaviest_share"):  # by bins of the weights
            assert other[key] == pytest.approx(value, rel=0.05)
        elif isinstance(value, float):
            assert other[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key


def test_rows_that_were_kept_by_their_rewards_are_made_good() -> None:
    """Of rows without a click a tenth was kept: each stands for ten, exactly in the population."""
    arm, click = np.repeat([0, 1, 2], 2), np.tile([0.0, 1.0], 3)
    share = P0[arm] * np.where(click > 0.0, RATES[arm], 1.0 - RATES[arm])
    kept = np.where(click > 0.0, 1.0, 0.1)
    rows = np.repeat(np.arange(6), np.round(10_000 * share * kept).astype(int))
    batch = ope.Batch.of(
        np.log(P0[arm])[rows],
        np.log(P1[arm])[rows],
        click[rows],
        marginals_logged=P0[arm][rows],
        marginals_evaluated=P1[arm][rows],
        row_weights=(1.0 / kept)[rows],
    )
    for name in ("ips", "snips", "rips", "snrips", "iips"):
        found = ope.estimate(estimator_of(name, batch))
        assert found.value == pytest.approx(0.31, rel=1e-3), name
        assert found.diagnostics is not None
        assert found.diagnostics.mean_weight == pytest.approx(1.0, abs=1e-3)
        without = ope.estimate(estimator_of(name, replace(batch, row_weights=None)))
        assert without.value is not None
        assert without.value > 0.8
    assert iid("avg", batch).value == pytest.approx(0.19, rel=1e-3)


def test_a_bernstein_bound_is_of_rows_that_are_alike() -> None:
    batch = replace(three_arms(), row_weights=np.where(np.arange(1000) < 500, 1.0, 2.0))
    estimator = estimator_of("clipped-ips", batch)
    assert ope.estimate(estimator, reward_range=(0.0, 1.0)).bernstein is None
    alike = estimator_of("clipped-ips", replace(batch, row_weights=np.ones(1000)))
    assert ope.estimate(alike, reward_range=(0.0, 1.0)).bernstein is not None


def weigh_alike(one: str, other: str) -> bool:
    kinds = {ope.ESTIMATORS[name].kind_of_weights for name in (one, other)}
    return len(kinds) == 1 and None not in kinds


PAIRS = list(permutations(ope.ESTIMATORS, 2))


@pytest.mark.parametrize(("keeper", "name"), [pair for pair in PAIRS if weigh_alike(*pair)])
@pytest.mark.parametrize("k", [1, 3])
def test_shared_sums_about_weights_are_its_own(keeper: str, name: str, k: int) -> None:
    """To the last bit: each would have added the same figures in the same order."""
    batches = [some_batch(200, k, seed) for seed in (1, 2, 3)]

    def fed(share: bool) -> ope.Estimator:
        first, second = ope.ESTIMATORS[keeper](k), ope.ESTIMATORS[name](k)
        if share:
            second.share_weights(first)
        for batch in batches:
            first.update(batch)
            second.update(batch)
        return second

    shared, alone = fed(True), fed(False)
    assert vars(shared.weights).keys() == vars(alone.weights).keys()
    for attribute, value in vars(alone.weights).items():
        np.testing.assert_array_equal(
            getattr(shared.weights, attribute),
            value,
            f"weights.{attribute}: {name} does not weigh as {keeper}, whose kind_of_weights it has",
        )
    assert ope.estimate(shared) == ope.estimate(alone)
    # They merge into one that keeps its own, and that counts once.
    whole = ope.ESTIMATORS[name](k)
    whole.merge(shared)
    whole.merge(alone)
    assert whole.weights.rows == 2 * alone.weights.rows == 1200


def test_what_weighs_otherwise_is_not_shared() -> None:
    others = [pair for pair in PAIRS if not weigh_alike(*pair)]
    assert ("ips", "rips") in others
    for keeper, name in others:
        with pytest.raises(ValueError, match=f"other: {keeper} has other weights than {name}"):
            ope.ESTIMATORS[name](2).share_weights(ope.ESTIMATORS[keeper](2))


def test_what_estimators_need_is_in_a_batch() -> None:
    """Name an array in `FLAT_ARRAYS` or `PLACE_ARRAYS`, and give it in `some_batch`."""
    arrays = FLAT_ARRAYS | PLACE_ARRAYS
    assert {need for cls in ope.ESTIMATORS.values() for need in cls.needs} == arrays
    assert arrays <= {
        name for name, value in vars(some_batch(1, 1, 0)).items() if value is not None
    }


@pytest.mark.parametrize("name", ope.ESTIMATORS)
def test_other_sums_do_not_merge(name: str) -> None:
    other = next(each for each in ope.ESTIMATORS if each != name)
    with pytest.raises(ValueError, match="cannot be merged"):
        ope.ESTIMATORS[name](3).merge(ope.ESTIMATORS[other](3))
    with pytest.raises(ValueError, match="cannot be merged"):
        ope.ESTIMATORS[name](3).merge(ope.ESTIMATORS[name](4))


@pytest.mark.parametrize("name", ope.ESTIMATORS)
def test_gradients_are_the_derivatives(name: str) -> None:
    """Errors depend on them."""
    estimator = estimator_of(name, some_batch(500, 3, seed=3))
    totals = estimator.sums.sum(axis=0)
    gradient = estimator.gradient(totals)
    for j in range(len(totals)):
        step = np.zeros(len(totals))
        step[j] = 1e-5 * totals[j]
        if totals[j] == 0.0:
            continue
        rise = estimator.value(totals + step) - estimator.value(totals - step)
        assert rise / (2 * step[j]) == pytest.approx(gradient[j], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in ope.ESTIMATORS if name != "replay-weighted"])
def test_standard_errors_are_those_of_the_influence(name: str) -> None:
    """One group a row: clustered and iid agree; the bootstrap's spread does, too.

    Exactly for means; of a ratio the jackknife's error is larger by a term of order 1/n, and much
    larger where n is the few matches of replay-weighted.
    """
    n = 1000
    batch = some_batch(n, 3, seed=4)
    alone = ope.Batch(**{**arrays_of(batch), "groups": np.arange(n)})
    estimate = ope.estimate(estimator_of(name, alone))
    ratio = not issubclass(ope.ESTIMATORS[name], _Mean)
    assert estimate.standard_error is not None
    assert estimate.standard_error_iid is not None
    assert estimate.standard_error == pytest.approx(
        estimate.standard_error_iid, rel=0.1 if ratio else 1e-9
    )
    assert estimate.standard_error >= estimate.standard_error_iid * (1 - 1e-9)
    assert estimate.design_effect == pytest.approx(1.0, rel=0.2 if ratio else 1e-9)
    assert estimate.bootstrap is not None
    width = estimate.bootstrap[1] - estimate.bootstrap[0]
    # 1,000 replicates: the quantiles' own sd is about 5 % of the width.
    assert width == pytest.approx(2 * 1.96 * estimate.standard_error, rel=0.3)


def arrays_of(batch: ope.Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in ope.Batch.__dataclass_fields__}


def clipped(heavy: float, n: int) -> ope.Estimate:
    """One row in a hundred has this weight, and the reward; cut at 2, and added up in two parts."""
    weights = np.full(n, (1.0 - 0.01 * heavy) / 0.99)
    weights[::100] = heavy
    logged, rewards = np.full(n, -2.0), (weights == heavy).astype(float)
    estimator = ope.ESTIMATORS["clipped-ips"](1, 2.0)
    for part in (slice(None, 1000), slice(1000, None)):
        other = ope.ESTIMATORS["clipped-ips"](1, 2.0)
        other.update(ope.Batch.of(logged[part], np.log(weights[part]) - 2.0, rewards[part]))
        estimator.merge(other)
    return ope.estimate(estimator, cluster=False)


@pytest.mark.parametrize(("heavy", "cut"), [(3.0, 1.0 / 3.0), (2.1, 1.0 / 21.0), (2.0, 0.0)])
def test_what_clipping_cuts_off_is_counted(heavy: float, cut: float) -> None:
    """Where the reward is on few heavy rows, the weights' mean hides it: .99."""
    found = clipped(heavy, 30_000)
    assert found.parameters["cut_off"] == pytest.approx(cut, abs=1e-12)
    assert found.reasons == (("clipped",) if cut else ())
    assert found.status == ("biased" if cut else "ok")


def test_a_bias_is_small_beside_a_large_error() -> None:
    assert clipped(2.1, 30_000).status == "biased"
    assert "clipped" not in clipped(2.1, 2000).reasons


def earned_by(shares: npt.NDArray[np.float64], seed: int = 1) -> ope.Estimate:
    """Of users with equally many rows, who earn in these proportions."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(len(shares)), 20)
    rewards = (rng.random(len(users)) < shares[users]).astype(float)
    ones = np.zeros(len(users))
    return ope.estimate(estimator_of("ips", ope.Batch.of(ones, ones, rewards, groups=users)))


def test_users_who_earn_nearly_everything_bend_the_interval() -> None:
    alike, shares = earned_by(np.full(400, 0.3)), np.full(400, 0.01)
    shares[:8] = 0.9
    uneven = earned_by(shares)
    for found, low, high in ((alike, 0.9, 1.1), (uneven, 1.5, 3.0)):
        assert found.status == "ok"
        assert found.interval is not None
        assert found.value is not None
        below, above = found.value - found.interval[0], found.interval[1] - found.value
        assert low < above / below < high
    assert uneven.effective_clusters == pytest.approx(400, rel=0.3)  # 1,024 groups
    assert uneven.skewness is not None
    assert uneven.skewness > 0.3


@pytest.mark.parametrize(
    ("clicks", "low", "high"), [(1, 0.0253, 5.572), (20, 12.22, 30.89), (50, 37.11, 65.92)]
)
def test_rare_clicks_have_about_the_interval_of_a_count(
    clicks: int, low: float, high: float
) -> None:
    """The exact one of a Poisson mean (Garwood 1936), which covers 95 % at least."""
    n = 100_000
    rewards = np.arange(n) < clicks
    batch = ope.Batch.of(np.zeros(n), np.zeros(n), rewards.astype(float))
    found = ope.estimate(estimator_of("ips", batch), cluster=False).interval
    assert found is not None
    if clicks == 1:  # of whose likes nothing is known
        assert found[0] <= low / n
        assert found[1] >= high / n
    else:
        assert (found[0] * n, found[1] * n) == pytest.approx((low, high), rel=0.06)


def test_many_places_have_clustered_errors() -> None:
    def many(places: int) -> ope.Batch:
        rng = np.random.default_rng(9)
        logged = np.full((400, places), -1.0)
        evaluated = logged + rng.normal(0.0, 0.02, logged.shape)
        return ope.Batch.of(logged, evaluated, rng.random(logged.shape))

    estimate = ope.estimate(estimator_of("snrips", many(120)))
    assert estimate.standard_error is not None
    assert estimate.standard_error_iid is None
    assert iid("snrips", many(120)).standard_error == estimate.standard_error
    assert ope.estimate(estimator_of("snrips", many(64))).standard_error_iid is not None
    assert ope.estimate(estimator_of("snrips", many(65))).standard_error_iid is None


def test_users_who_repeat_themselves_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    taste = rng.random(200)
    user = np.repeat(np.arange(200), 20)
    rewards = (rng.random(4000) < taste[user]).astype(float)
    batch = ope.Batch.of(np.zeros(4000), np.zeros(4000), rewards, groups=user)
    estimate = ope.estimate(estimator_of("ips", batch))
    # Of 20 rows each, variance 1/12 between users of 1/4 in all: 1 + 19 / 3.
    assert estimate.design_effect == pytest.approx(1 + 19 / 3, rel=0.25)
    assert 160 < estimate.clusters <= 200  # some of them fall into one of 1,024 groups


# What a number may be called.


def weighted(weights: Array, rewards: Array | None = None) -> ope.Batch:
    """Single places with these weights."""
    logged = np.full(len(weights), -np.log(max(weights.max(), 1.0)) - 1e-12)
    with np.errstate(divide="ignore"):
        evaluated = np.minimum(logged + np.log(weights), 0.0)
    return ope.Batch.of(logged, evaluated, np.ones(len(weights)) if rewards is None else rewards)


def spread_weights(mean: float, n: int) -> Array:
    """Two in five 1.2 above the mean, the others .8 below: a standard deviation of .98."""
    order = np.random.default_rng(n).permutation(n)
    return mean + np.where(order % 5 < 2, 1.2, -0.8)


@pytest.mark.parametrize(
    ("weights", "rewards", "reasons"),
    [
        (np.ones(1000), None, ()),
        (np.ones(1000), np.arange(1000) < 2, ("reward_ess",)),
        (np.ones(1000), np.arange(1000) < 3, ()),
        (np.r_[np.ones(999), 11.0], None, ("max_weight_share",)),
        (np.r_[np.full(9999, 1.0), 99.0], None, ()),
        (np.r_[np.full(99_000, 0.7), np.full(1000, 30.7)], None, ("heaviest_share",)),
        # Up to .05 may be chance where rows are few. An error is .98 / sqrt(n): .031 and .0049.
        (spread_weights(1.051, 1000), None, ("mean_weight",)),
        (spread_weights(1.049, 1000), None, ()),
        (spread_weights(1.017, 40_000), None, ()),
        (spread_weights(1.022, 40_000), None, ("mean_weight",)),
        # Below 1 it is what the logging policy could not show.
        (spread_weights(1.0 - 0.017, 40_000), None, ()),
        (spread_weights(1.0 - 0.022, 40_000), None, ("mean_weight", "uncovered")),
        (spread_weights(1.0 - 0.009, 1_000_000), None, ("mean_weight",)),
        # As exact as propensities are.
        (np.full(1000, 1.0009), None, ()),
        (np.full(1000, 0.949), None, ("mean_weight", "uncovered")),
        (np.zeros(1000), None, ("no_overlap", "reward_ess", "mean_weight")),
    ],
)
def test_thresholds(weights: Array, rewards: Array | None, reasons: tuple[str, ...]) -> None:
    batch = weighted(weights, None if rewards is None else np.asarray(rewards, float))
    estimate = iid("ips", batch)
    assert estimate.reasons == reasons
    doubted = "unsupported" if "uncovered" in reasons else "low_overlap"
    assert estimate.status == (doubted if reasons else "ok")


def test_one_place_whose_mean_weight_strays_is_enough() -> None:
    """The farthest place is within chance; a nearer one, whose weights vary less, is not."""
    n = 10_000
    first, second = np.full(n, 1.02), spread_weights(1.03, n) * 1.0
    logged = np.full((n, 2), -3.0)
    evaluated = logged + np.log(np.stack([first, second / first], axis=1))
    found = iid("rips", ope.Batch.of(logged, evaluated, np.ones((n, 2))))
    assert found.diagnostics is not None
    assert found.diagnostics.mean_weight == pytest.approx(1.03)
    assert found.diagnostics.mean_weight_z == pytest.approx(3.06, abs=0.2)
    assert found.reasons == ("mean_weight",)


def test_propensities_are_not_blamed_for_a_mean_that_lacks_the_heaviest_weights() -> None:
    """A deterministic policy, of which few logged rankings are: each weighs much."""
    n = 5000
    log_weights = np.full(n, -np.inf)
    log_weights[:11] = 5.0
    logged = np.full((n, 1), -6.0)
    found = iid("ips", ope.Batch.of(logged, logged + log_weights[:, None], np.ones((n, 1))))
    assert found.diagnostics is not None
    assert found.diagnostics.mean_weight < 0.5
    assert {"mean_weight", "heaviest_share"} <= {*found.reasons}
    said = explain("mean_weight", found, 0.0, ope.Thresholds())
    assert "too few rows are like the policy's, or" in said


def test_propensities_are_not_blamed_for_what_chance_explains() -> None:
    """Both means are .06 off: of 500 rows by 1.4 standard errors, of 50,000 by 14."""
    limits = ope.Thresholds()
    said = []
    for n in (500, 50_000):
        found = iid("ips", weighted(spread_weights(1.06, n), np.ones(n)))
        assert found.reasons == ("mean_weight",)
        said.append(explain("mean_weight", found, 0.0, limits))
    few, many = said
    assert "too few rows are like the policy's, or" in few
    assert "too far from 1: propensities of one side are not true" in many
    assert few.endswith(": 1.06 (within 0.05)")
    assert many.endswith(": 1.06 (within 0.05)")


def test_thresholds_can_be_set() -> None:
    batch = weighted(np.ones(1000), (np.arange(1000) < 50).astype(float))
    estimator = estimator_of("ips", batch)
    for limit, status in ((50, "ok"), (51, "low_overlap")):
        thresholds = ope.Thresholds(reward_ess=limit, clusters=40)
        assert ope.estimate(estimator, thresholds=thresholds).status == status
    with pytest.raises(ValueError, match="reward_ess: expected a number of at least 0, got -1"):
        ope.Thresholds(reward_ess=-1)


@pytest.mark.parametrize(("clicks", "reasons"), [(7, ("reward_ess",)), (8, ())])
def test_differences_want_some_rewarded_rows(clicks: int, reasons: tuple[str, ...]) -> None:
    """An estimate of so few clicks has an interval that holds; their difference has not."""
    batch = weighted(np.ones(1000), (np.arange(1000) < clicks).astype(float))
    ips, avg = estimator_of("ips", batch), estimator_of("avg", batch)
    assert ope.estimate(ips).status == "ok"
    assert ope.difference(ips, avg).reasons == reasons


def test_a_difference_without_an_interval_is_none_to_rely_on() -> None:
    batch = ope.Batch.of(np.zeros(500), np.zeros(500), np.ones(500), groups=np.zeros(500, int))
    found = ope.difference(estimator_of("ips", batch), estimator_of("avg", batch))
    assert (found.value, found.interval) == (0.0, None)
    assert (found.status, found.reasons) == ("low_overlap", ("no_interval",))


def test_no_rows_are_no_number() -> None:
    for cls in ope.ESTIMATORS.values():
        estimate = ope.estimate(cls(3))
        assert estimate.value is None
        assert estimate.standard_error is None
        assert (estimate.status, estimate.reasons) == ("unsupported", ("no_rows",))


def test_weights_beyond_float64_are_no_number() -> None:
    batch = ope.Batch.of(np.full((300, 2), -400.0), np.zeros((300, 2)), np.ones((300, 2)))
    for name in ("ips", "snips", "rips", "snrips"):
        estimate = iid(name, batch)
        assert (estimate.value, estimate.status) == (None, "unsupported")
        assert estimate.reasons[0] == "weight_overflow"
        assert (estimate.interval, estimate.bootstrap) == (None, None)


def test_one_row_has_no_error() -> None:
    estimate = iid("ips", weighted(np.ones(1)))
    assert estimate.value == pytest.approx(1.0)
    assert (estimate.standard_error, estimate.interval, estimate.bootstrap) == (None, None, None)


def test_few_users_are_named() -> None:
    n = 2000
    batch = ope.Batch.of(np.zeros(n), np.zeros(n), np.ones(n), groups=np.arange(n) % 29)
    assert ope.estimate(estimator_of("ips", batch)).reasons == ("few_clusters",)


def test_reasons_are_known() -> None:
    with pytest.raises(ValueError, match=r"reasons: expected one of .* got 'bad luck'"):
        ope.estimate(estimator_of("ips", three_arms()), reasons=("bad luck",))
    estimator = estimator_of("ips", three_arms())
    assert ope.estimate(estimator, reasons=("malformed_rows",)).status == "malformed_log"
    assert ope.estimate(estimator, reasons=("malformed_rows", "uncovered")).status == "unsupported"


class Halved(Ips):
    @property
    def parameters(self) -> dict[str, float]:
        return {"share": 0.5}

    @property
    def matched(self) -> int:
        return 500


def test_an_estimate_says_what_its_estimator_does() -> None:
    estimator = Halved(1)
    estimator.update(three_arms())
    found = ope.estimate(estimator)
    assert (found.parameters, found.matched) == ({"share": 0.5}, 500)
    assert ope.estimate(estimator_of("ips", three_arms())).matched is None


# Differences.


def test_differences_are_paired() -> None:
    """Two policies that nearly agree: what they share cancels."""
    rng = np.random.default_rng(6)
    n = 20_000
    logged, rewards = np.full(n, np.log(0.5)), (rng.random(n) < 0.3).astype(float)
    first = np.log(np.where(rng.random(n) < 0.5, 0.45, 0.55))
    second = np.where(np.arange(n) % 50 == 0, np.log(0.5), first)
    a = estimator_of("ips", ope.Batch.of(logged, first, rewards))
    b = estimator_of("ips", ope.Batch.of(logged, second, rewards))
    paired, one = ope.difference(a, b), ope.estimate(a)
    values = rewards * (np.exp(first) - np.exp(second)) / 0.5
    assert paired.value == pytest.approx(values.mean(), abs=1e-12)
    # Rows in groups by their number: as good as alone.
    assert paired.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(n), rel=0.1)
    assert one.standard_error is not None
    assert paired.standard_error is not None
    assert paired.standard_error < one.standard_error / 20


def test_a_difference_to_the_log_is_to_its_average() -> None:
    batch = three_arms()
    found = ope.difference(estimator_of("ips", batch), estimator_of("avg", batch))
    assert found.value == pytest.approx(0.31 - 0.19, abs=EXACT)
    assert found.reference_estimator == "avg"


def test_differences_want_the_same_rows() -> None:
    a = estimator_of("ips", three_arms())
    b = estimator_of("ips", some_batch(10, 1, seed=7))
    with pytest.raises(ValueError, match="reference: sums over other rows"):
        ope.difference(a, b)


# The Bernstein bound.


def test_bernstein_covers_the_clipped_mean() -> None:
    batch = three_arms()
    estimator = estimator_of("clipped-ips", batch, clip=2.0)
    found = ope.estimate(estimator, cluster=False, reward_range=(0.0, 1.0))
    assert found.bernstein is not None
    variance_of_values = 50 * 0.04 + 60 + 80 * 4
    variance_of_values = (variance_of_values - 1000 * 0.23**2) / 999
    log_term = np.log(4 / 0.05)
    half = np.sqrt(2 * variance_of_values * log_term / 1000) + 7 * 2.0 * log_term / (3 * 999)
    assert found.bernstein == pytest.approx((0.23 - half, 0.23 + half), abs=EXACT)
    assert ope.estimate(estimator_of("ips", batch), reward_range=(0.0, 1.0)).bernstein is None


# Bad input.


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([0.1], [0.0], [1.0]), "logged: row 0, place 1: must be finite and not above 0, got 0.1"),
        (([-np.inf], [0.0], [1.0]), "logged: row 0, place 1: must be finite"),
        (([-1.0], [0.5], [1.0]), "evaluated: row 0, place 1: must not be above 0, got 0.5"),
        (([-1.0], [np.nan], [1.0]), "evaluated: row 0, place 1: must not be above 0, got nan"),
        (([-1.0], [-1.0], [np.nan]), "rewards: row 0, place 1: must be finite, got nan"),
        (([-1.0], [-1.0, -1.0], [1.0]), r"evaluated: expected shape \(1, 1\), got \(2, 1\)"),
        (([True], [-1.0], [1.0]), "logged: expected real numbers, got dtype bool"),
        (
            ([[-1.0], [-1.0, -1.0]], [], []),
            "logged: row 1: expected 1 numbers, as in row 0, got 2",
        ),
        (([-1.0], np.ma.array([-1.0]), [1.0]), "evaluated: expected no masked array"),
        (([-1.0], [-1.0], [None]), "rewards: expected real numbers, got None at index 0"),
    ],
)
def test_bad_arrays_are_named(arrays: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ope.Batch.of(*arrays)


@pytest.mark.parametrize(
    ("optional", "message"),
    [
        ({"lengths": [0.5]}, r"lengths: expected 1 integers in \[0, 1\]"),  # not 0 places
        ({"lengths": [2]}, r"lengths: expected 1 integers in \[0, 1\]"),
        ({"groups": {1}}, "groups: expected an array of numbers, got {1}"),
        ({"groups": np.ma.array([1], mask=[True])}, "groups: expected no masked array"),
        ({"uniform": ["x"]}, "uniform: expected real numbers, got 'x' at index 0"),
        ({"row_weights": [0.0]}, r"row_weights: row 0: must be above 0, within 1e\+50, got 0\.0"),
        ({"row_weights": [-1]}, r"row_weights: row 0: must be above 0, within 1e\+50, got -1\.0"),
        ({"row_weights": [np.nan]}, "row_weights: row 0: must be finite, got nan"),
        ({"row_weights": [1.0, 1.0]}, r"row_weights: expected shape \(1,\), got \(2,\)"),
    ],
)
def test_bad_optional_arrays_are_named(optional: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ope.Batch.of([-1.0], [-1.0], [1.0], **optional)


def test_unknown_arrays_are_named() -> None:
    with pytest.raises(ValueError, match="q: no estimator uses an array of this name"):
        ope.Batch.of([-1.0], [-1.0], [1.0], q=[0.5])


def test_the_average_needs_no_support() -> None:
    estimator = estimator_of("avg", weighted(np.ones(1000)))
    assert ope.estimate(estimator, reasons=("uncovered",), cluster=False).status == "ok"
    assert ope.estimate(estimator, reasons=("audit_failed",)).status == "unsupported"
    other = estimator_of("ips", weighted(np.ones(1000)))
    assert ope.estimate(other, reasons=("uncovered",)).status == "unsupported"


def test_clipped_weights_are_judged_as_they_are_used() -> None:
    weights = np.r_[np.full(9980, 0.98), np.full(20, 11.0)]
    batch = weighted(weights)
    assert "heaviest_share" not in iid("clipped-ips", batch, clip=1.0).reasons
    found = iid("clipped-ips", batch, clip=1.0).diagnostics
    assert found is not None
    assert found.mean_weight == pytest.approx(np.minimum(weights, 1.0).mean())
    assert (
        "mean_weight"
        in iid("clipped-ips", weighted(np.r_[np.ones(900), np.full(100, 9.0)]), clip=1.5).reasons
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_weights_of_1_are_counted_as_any_others(sign: float) -> None:
    """Batches of them alone are added the short way; not those of -1, or with a row of 2."""
    ones, row = np.full(500, sign), np.array([2.0])
    alone, beside = ope.Weights(), ope.Weights()
    groups = np.arange(501) % 7
    with np.errstate(divide="ignore"):
        for sums, parts in ((alone, [ones, row]), (beside, [np.concatenate([ones, row])])):
            start = 0
            for weights in parts:
                end = start + len(weights)
                sums.update(
                    np.log(np.abs(weights))[:, None],
                    weights[:, None],
                    np.ones(len(weights)),
                    groups[start:end],
                )
                start = end
    assert alone.result() == beside.result()
    assert alone.histogram() == beside.histogram()
    np.testing.assert_array_equal(alone.sums, beside.sums)
    assert alone.negatives.tolist() == [500 if sign < 0.0 else 0]


def test_weights_below_0_are_signed_and_disclosed() -> None:
    weights = np.r_[np.full(300, 3.0), np.full(600, -1.0), np.full(1100, 1.0)]
    batch = ope.Batch.of(
        np.full(2000, -1.0), np.full(2000, -1.0), np.ones(2000), slate_weights=weights
    )
    found = iid("pi", batch).diagnostics
    assert found is not None
    assert found.mean_weight == pytest.approx(0.7)
    assert found.negative_share == 0.3
    assert found.ess == pytest.approx(1400**2 / 4400)
    assert found.max_weight_share == pytest.approx(3.0 / 2600)
    assert found.heaviest_share == pytest.approx(60.0 / 2600)
    assert iid("pi", batch).reasons == ("mean_weight", "uncovered")
    assert iid("pi", batch).value == pytest.approx(0.7)
    halves = [ope.ESTIMATORS["pi"](1), ope.ESTIMATORS["pi"](1)]
    for half, rows in zip(halves, (slice(None, 700), slice(700, None)), strict=True):
        half.update(
            ope.Batch.of(
                np.full(2000, -1.0)[rows],
                np.full(2000, -1.0)[rows],
                np.ones(2000)[rows],
                slate_weights=weights[rows],
            )
        )
    halves[0].merge(halves[1])
    merged = halves[0].weights.result()
    assert merged is not None
    assert merged.negative_share == 0.3
    assert merged.max_weight_share == pytest.approx(3.0 / 2600)
    plain = iid("ips", batch).diagnostics
    assert plain is not None
    assert plain.negative_share == 0.0
