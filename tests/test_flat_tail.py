"""A flat tail below candidates: laws, however these were found, and what each call says of them.

`test_laws.py` and others have it among their policies, where candidates are the m best. Here they
are handed to the core as an index would, right and wrong. Error budget: see support.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from support import (
    DRAWS,
    N_DRAWS,
    SPREAD,
    Array,
    Positions,
    Scored,
    assert_first_position_law,
    assert_law,
    assert_well_formed,
    random_scored,
    scored,
)

import fastrank as fr
from fastrank import _native, reference

T, FACTOR = 0.8, 0.3


def policy_of(m: int, temperature: float = T, factor: float = FACTOR) -> fr.FlatTail:
    return fr.FlatTail(temperature, m, factor)


def bits_of(item: Scored, left: npt.NDArray[np.bool_]) -> tuple[Any, int]:
    if left.all():
        return None, len(left)
    return _native.make_filter(len(left), np.flatnonzero(left), None)


def draw(
    item: Scored,
    candidates: list[int],
    k: int,
    policy: fr.FlatTail,
    n_draws: int,
    left: npt.NDArray[np.bool_] | None = None,
) -> Positions:
    """Rankings from candidates that somebody found."""
    left = np.ones(len(item.catalog), np.bool_) if left is None else left
    eligible, n_eligible = bits_of(item, left)
    found = np.array(candidates, np.int64)
    known = item.scores[found]
    return np.array(
        [
            item.catalog._packed.rank_flat_tail(
                *(item.query, k, policy.temperature, policy.factor, seed, found, known, None),
                *(eligible, n_eligible),
            )[0]
            for seed in range(max(20, int(n_draws * DRAWS)))
        ]
    )


def law_of_candidates(
    scores: npt.ArrayLike,
    candidates: list[int],
    k: int,
    policy: fr.FlatTail,
    left: npt.NDArray[np.bool_] | None = None,
) -> tuple[Positions, Array]:
    changed = reference.flat_tail_scores(scores, policy, candidates, left)
    return reference.ranking_law(changed, k, fr.PlackettLuce(policy.temperature), left)


# Laws: candidates that are not the best, in any order, none, and all

CANDIDATES: list[list[int]] = [[4, 2], [5], [1, 5, 0], [], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("candidates", CANDIDATES, ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_law_of_what_was_found(isa: str, candidates: list[int], k: int) -> None:
    item = scored(SPREAD)
    law = law_of_candidates(item.scores, candidates, k, policy_of(2))
    assert_law(draw(item, candidates, k, policy_of(2), N_DRAWS), law)


@pytest.mark.parametrize("gap", [40.0, 300.0, 1000.0, 1e6])
@pytest.mark.parametrize("heads", [[0], [3, 8]])
def test_law_below_a_head(isa: str, heads: list[int], gap: float) -> None:
    """A head takes nothing of the precision of what is left with it, nor of the tail's."""
    scores = np.random.default_rng(2).standard_normal(9).round(3)
    scores[heads] += gap
    item, k = scored(scores), len(heads) + 2
    candidates = [*heads, 5, 6]
    orders = draw(item, candidates, k, policy_of(4, 1.0), N_DRAWS)
    assert set(orders[:, : len(heads)].ravel().tolist()) == set(heads)
    left = np.ones(9, np.bool_)
    left[heads] = False
    below = law_of_candidates(item.scores, [5, 6], 2, policy_of(4, 1.0), left)
    assert_law(orders[:, len(heads) :], below)


@pytest.mark.parametrize("far", [-1000.0, -1e6])
def test_law_of_a_tail_far_below(isa: str, far: float) -> None:
    """Candidates that are nothing beside the first, and a tail that is nothing beside them."""
    item = scored([1.0, far, 0.5, 0.2, far, 0.9, 0.1])
    orders = draw(item, [0, 1], 4, policy_of(2, 1.0, 0.5), N_DRAWS)
    law = law_of_candidates(item.scores, [0, 1], 4, policy_of(2, 1.0, 0.5))
    assert (orders[:, 0] == 0).all()
    assert_law(orders, law)


@pytest.mark.parametrize("n_left", [3, 5, 40, 60])
def test_law_of_a_filter(isa: str, n_left: int) -> None:
    """Of a few items the tail is listed, of many drawn and looked up."""
    scores = np.random.default_rng(3).standard_normal(64).round(3)
    item = scored(scores)
    left = np.zeros(64, np.bool_)
    left[np.random.default_rng(n_left).permutation(64)[:n_left]] = True
    candidates = np.flatnonzero(left)[[1, 2]].tolist()
    orders = draw(item, candidates, 2, policy_of(2), N_DRAWS, left)
    assert_well_formed(orders, 64, 2, left)
    assert_law(orders, law_of_candidates(item.scores, candidates, 2, policy_of(2), left))


def test_law_of_many_candidates(isa: str) -> None:
    """Several blocks of them, and first and second places."""
    item = random_scored(5000, 7, seed=1)
    candidates = np.argsort(-item.scores)[:1000].tolist()
    policy = policy_of(1000, 0.5, 0.1)
    changed = reference.flat_tail_scores(item.scores, policy, candidates)
    p = np.exp(changed / 0.5 - reference.log_norm(changed, 0.5))
    orders = draw(item, candidates, 10, policy, N_DRAWS)
    assert_well_formed(orders, 5000, 10)
    assert_first_position_law(orders[:, 0], p / p.sum())
    in_tail = ~np.isin(orders[:, 0], candidates)
    expected = 1.0 - p[candidates].sum()
    sd = (expected * (1 - expected) / len(orders)) ** 0.5
    assert abs(in_tail.mean() - expected) < 6.5 * sd  # fails a right one with 1e-10


# Mistakes that a flat tail invites

Sampler: TypeAlias = Callable[
    [np.random.Generator, Array, list[int], npt.NDArray[np.bool_], int], list[int]
]


def right(
    rng: np.random.Generator,
    scores: Array,
    candidates: list[int],
    left: npt.NDArray[np.bool_],
    k: int,
) -> list[int]:
    weights = np.exp(reference.flat_tail_scores(scores, policy_of(2), candidates) / T)
    weights[~left] = 0.0
    shown: list[int] = []
    for _ in range(k):
        shown.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        weights[shown[-1]] = 0.0
    return shown


def subtracts_the_head(
    rng: np.random.Generator,
    scores: Array,
    candidates: list[int],
    left: npt.NDArray[np.bool_],
    k: int,
) -> list[int]:
    """All weights are relative to the first, and what is shown is taken off their sum."""
    changed = reference.flat_tail_scores(scores, policy_of(2), candidates) / T
    weights = np.where(left, np.exp(changed - changed.max()), 0.0)
    total, shown = float(weights.sum()), list[int]()
    for _ in range(k):
        budget, last = rng.random() * total, -1
        for i in np.flatnonzero(weights):
            last = int(i)
            if budget < weights[i]:
                break
            budget -= weights[i]
        if last < 0:
            last = int(np.flatnonzero(left & ~np.isin(np.arange(len(left)), shown))[0])
        shown.append(last)
        total -= weights[last]
        weights[last] = 0.0
    return shown


def counts_the_excluded(
    rng: np.random.Generator,
    scores: Array,
    candidates: list[int],
    left: npt.NDArray[np.bool_],
    k: int,
) -> list[int]:
    """The tail is as heavy as if nothing had been excluded from it."""
    changed = reference.flat_tail_scores(scores, policy_of(2), candidates) / T
    weights = np.where(left, np.exp(changed), 0.0)
    in_tail = ~np.isin(np.arange(len(left)), candidates)
    weights[in_tail & left] *= in_tail.sum() / (in_tail & left).sum()
    shown: list[int] = []
    for _ in range(k):
        shown.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        weights[shown[-1]] = 0.0
    return shown


def draws_anew_after_a_refusal(
    rng: np.random.Generator,
    scores: Array,
    candidates: list[int],
    left: npt.NDArray[np.bool_],
    k: int,
) -> list[int]:
    """Tail or not is right; but an item of the tail that a filter, or a place above, has taken
    starts the whole draw again, and a candidate may come of it."""
    changed = reference.flat_tail_scores(scores, policy_of(2), candidates) / T
    everyone = np.arange(len(left))
    shown: list[int] = []
    while len(shown) < k:
        free = left & ~np.isin(everyone, shown)
        weights = np.where(free, np.exp(changed), 0.0)
        drawn = int(rng.choice(len(weights), p=weights / weights.sum()))
        if drawn not in candidates:
            drawn = int(rng.choice(everyone[~np.isin(everyone, candidates)]))
            if not free[drawn]:
                continue
        shown.append(drawn)
    return shown


def gives_the_tail_a_share(
    rng: np.random.Generator,
    scores: Array,
    candidates: list[int],
    left: npt.NDArray[np.bool_],
    k: int,
) -> list[int]:
    """The tail has a share of the mass that is left, at each place anew."""
    changed = reference.flat_tail_scores(scores, policy_of(2), candidates) / T
    weights = np.where(left, np.exp(changed), 0.0)
    in_tail = ~np.isin(np.arange(len(left)), candidates)
    share = weights[in_tail].sum() / weights.sum()
    shown: list[int] = []
    for _ in range(k):
        now = weights.copy()
        head, tail = now[~in_tail].sum(), now[in_tail].sum()
        if head > 0.0 and tail > 0.0:
            now[in_tail] *= share / (1.0 - share) * head / tail
        shown.append(int(rng.choice(len(now), p=now / now.sum())))
        weights[shown[-1]] = 0.0
    return shown


@pytest.mark.sampled
@pytest.mark.law
@pytest.mark.parametrize(
    ("sampler", "scores"),
    [
        (right, SPREAD),
        (subtracts_the_head, (40.0, -1.2, 0.9, -0.4, 1.4, 0.0)),
        (counts_the_excluded, SPREAD),
        (draws_anew_after_a_refusal, SPREAD),
        (gives_the_tail_a_share, SPREAD),
    ],
)
def test_the_guards_see_each_mistake(sampler: Sampler, scores: tuple[float, ...]) -> None:
    rng, item = np.random.default_rng(7), scored(scores)
    candidates, left = [0, 2], np.ones(6, np.bool_)
    left[[1, 5]] = False
    drawn = np.array(
        [sampler(rng, item.scores.astype(float), candidates, left, 3) for _ in range(N_DRAWS // 3)]
    )
    law = law_of_candidates(item.scores, candidates, 3, policy_of(2), left)
    if sampler is right:
        assert_law(drawn, law)
        return
    with pytest.raises(AssertionError):
        assert_law(drawn, law)


# Propensities


@pytest.mark.parametrize("temperature", [1e-6, 0.05, 1.0, 1e6])
@pytest.mark.parametrize("m", [1, 7, 64, 65, 500])
def test_propensities_are_those_of_the_oracle(isa: str, m: int, temperature: float) -> None:
    item = random_scored(300, 5, seed=m, bias=True)
    policy = policy_of(m, temperature)
    for seed, exclude in enumerate([None, np.argsort(-item.scores)[:30], np.arange(0, 290)]):
        ids = None if exclude is None else item.ids(exclude)
        left = item.eligible(exclude=exclude)
        ranking = item.catalog.rank(item.query, 20, policy=policy, seed=seed, exclude=ids)
        positions = item.positions(ranking.item_ids)
        expected = reference.log_propensities(item.scores, positions, policy, left)
        np.testing.assert_allclose(ranking.log_propensities, expected, rtol=1e-12, atol=1e-9)
        again = item.catalog.log_propensities(
            item.query, ranking.item_ids, policy=policy, exclude=ids
        )
        np.testing.assert_allclose(ranking.log_propensities, again, rtol=1e-12, atol=1e-12)


def test_a_row_can_be_checked_by_itself() -> None:
    """Each place: its weight over log_norm less what stands above, from the ranking alone."""
    item = random_scored(400, 5, seed=4)
    policy = policy_of(30, 0.4)
    for seed in range(50):
        ranking = item.catalog.rank(item.query, 8, policy=policy, seed=seed)
        said = ranking.candidates
        assert said is not None
        assert ranking.log_norm is not None
        assert (said.n_found, said.index_version, said.n_probes) == (30, None, None)
        best = item.ids(np.argsort(-item.scores, kind="stable")[:30])
        assert np.isin(ranking.item_ids, best).tolist() == said.is_candidate.tolist()
        logs = np.where(said.is_candidate, ranking.scores.astype(float) / 0.4, said.tail_log_weight)
        above = np.exp(logs - ranking.log_norm)
        left = 1.0 - np.concatenate([[0.0], np.cumsum(above)[:-1]])
        np.testing.assert_allclose(
            ranking.log_propensities, logs - ranking.log_norm - np.log(left), atol=1e-9
        )


def test_unknown_ineligible_and_repeated_items_get_nothing() -> None:
    item = scored(SPREAD)
    ids = item.ids([0, 1, 0, 4])
    lp = item.catalog.log_propensities(
        item.query, [ids[0], ids[1], ids[2], -5, ids[3]], policy=policy_of(2), exclude=[ids[1]]
    )
    assert np.isneginf(lp).tolist() == [False, True, True, True, False]
    left = item.eligible(exclude=[1])
    expected = reference.log_propensities(item.scores, [0, 4], policy_of(2), left)
    np.testing.assert_allclose(lp[[0, 4]], expected, atol=1e-12)


# Calls


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_rows_of_a_batch_are_what_rank_gives(storage: str) -> None:
    rng = np.random.default_rng(5)
    catalog = fr.Catalog(
        np.arange(20_000),
        rng.standard_normal((20_000, 6)),
        storage=storage,
        prior=rng.random(20_000),
    )
    queries = rng.standard_normal((7, 6))
    policies = [policy_of(50), fr.PlackettLuce(), policy_of(3, 2.0), fr.Uniform(), policy_of(50)]
    policies += [fr.BestFirst(2, fr.PlackettLuce()), fr.EpsilonGreedy()]
    exclude: list[Any] = [None, [1, 2], [3], None, list(range(1, 20_000)), [9], None]
    batch = catalog.rank_batch(queries, 5, policy=policies, seeds=range(7), exclude=exclude)
    assert batch.candidates is not None
    for i, query in enumerate(queries):
        one = catalog.rank(query, 5, policy=policies[i], seed=i, exclude=exclude[i])
        assert one == batch[i]
        assert (one.made_by, one.n_scored) == (batch[i].made_by, batch[i].n_scored)
        said, in_batch = one.candidates, batch.candidates[i]
        assert (said is None) == (in_batch is None) == (not isinstance(policies[i], fr.FlatTail))
        if said is not None and in_batch is not None:
            assert said.is_candidate.tolist() == in_batch.is_candidate.tolist()
            assert said[1:] == in_batch[1:]
    assert batch.counts[4] == 1
    lp = catalog.log_propensities_batch(
        queries,
        [each.item_ids for each in batch],
        policies=[policies, policy_of(50)],
        exclude=exclude,
    )
    for i, query in enumerate(queries):
        for j, judged in enumerate([policies[i], policy_of(50)]):
            alone = catalog.log_propensities(
                query, batch[i].item_ids, policy=judged, exclude=exclude[i]
            )
            assert lp[j, i, : len(alone)].tobytes() == alone.tobytes()


def test_more_candidates_than_items_is_plackett_luce() -> None:
    item = scored(SPREAD)
    ids = item.ids(np.array([3, 1, 4]))
    for m in (6, 1000):
        lp = item.catalog.log_propensities(item.query, ids, policy=policy_of(m))
        plain = item.catalog.log_propensities(item.query, ids, policy=fr.PlackettLuce(T))
        np.testing.assert_allclose(lp, plain, atol=1e-6)
    ranking = item.catalog.rank(item.query, 9, policy=policy_of(1000), seed=1)
    assert len(ranking) == ranking.n_scored == 6
    assert ranking.candidates is not None
    assert ranking.candidates.n_found == 6
    assert ranking.candidates.is_candidate.all()


def test_nothing_eligible_is_an_empty_ranking() -> None:
    item = scored(SPREAD)
    ranking = item.catalog.rank(item.query, 3, policy=policy_of(2), allow=[])
    assert len(ranking) == 0
    assert ranking.log_norm == -np.inf


def test_a_bias_of_the_call_counts() -> None:
    item = scored(SPREAD)
    bias = [5.0, 0.0, 0.0, 9.0, 0.0, 0.0]
    policy = policy_of(2, 0.01, 1e-9)
    ranking = item.catalog.rank(item.query, 2, policy=policy, bias=bias, seed=1)
    assert ranking.item_ids.tolist() == item.ids([3, 0]).tolist()


def test_given_scores() -> None:
    policy = policy_of(1, 0.1, 1e-9)
    ranking = fr.rank_scores([10, 20, 30], [0.1, 5.0, 0.2], 2, policy=policy, seed=1)
    assert ranking.item_ids[0] == 20
    assert ranking.candidates is not None
    lp = fr.log_propensities_of_scores(
        [10, 20, 30], [0.1, 5.0, 0.2], ranking.item_ids, policy=policy
    )
    np.testing.assert_allclose(lp, ranking.log_propensities, atol=1e-12)


def test_a_user_s_own_temperature_multiplies_it() -> None:
    catalog = fr.Catalog([1, 2, 3], [[1.0], [0.0], [0.5]])
    model = fr.Model(catalog, ["ann"], [[2.0]], user_temperatures=[0.5])
    ranking = model.recommend("ann", 2, policy=policy_of(2, 1.0), seed=1)
    assert ranking.policy == policy_of(2, 0.5)
    assert ranking.user_temperature == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fr.FlatTail(0.0), r"temperature: must lie in \[1e-06, 1e\+06\], got 0"),
        (lambda: fr.FlatTail(m=0), r"m: must lie in \[1, 1e\+07\], got 0"),
        (lambda: fr.FlatTail(m=1.5), "m: expected an integer, got 1.5"),  # type: ignore[arg-type]  # it is refused
        (lambda: fr.FlatTail(factor=0.0), r"factor: must lie in \[1e-09, 1\], got 0"),
        (lambda: fr.FlatTail(factor=1.1), r"factor: must lie in \[1e-09, 1\], got 1.1"),
        (lambda: fr.BestFirst(1, fr.FlatTail()), "then: expected PlackettLuce, .*FlatTail"),
    ],
)
def test_what_is_no_flat_tail_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("candidates", "scores", "message"),
    [
        ([0, 2, 0], None, "index: candidate 2 was there before"),
        ([0, 1], None, "index: candidate 1 is an item that a filter takes out"),
        ([0, 6], None, r"candidates: entry 1: expected a position in \[0, 6\), got 6"),
        ([-1], None, r"candidates: entry 0: expected a position in \[0, 6\), got -1"),
        ([0, 2], [1.0], "scores: expected one for each candidate"),
    ],
)
def test_the_core_refuses_wrong_candidates(
    candidates: list[int], scores: list[float] | None, message: str
) -> None:
    """Nothing is drawn from what an index of something else found."""
    item = scored(SPREAD)
    left = item.eligible(exclude=[1])
    eligible, n_eligible = bits_of(item, left)
    found = np.array(candidates, np.int64)
    known = None if scores is None else np.array(scores, np.float32)
    with pytest.raises(ValueError, match=message):
        item.catalog._packed.rank_flat_tail(
            item.query, 2, T, FACTOR, 1, found, known, None, eligible, n_eligible
        )
    with pytest.raises(ValueError, match=message):
        item.catalog._packed.flat_tail_log_propensities(
            item.query, np.array([0]), T, FACTOR, found, known, None, eligible, n_eligible
        )
