"""Rankings of shards, merged: the law of the whole catalog, its propensities, and what is refused.

Error budget: see support.py; each comparison fails a right library with probability 1e-9.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import DRAWS, N_DRAWS, assert_law, assert_log_propensities

import fastrank as fr
from fastrank import reference, shards
from fastrank.rules import Rules

RNG = np.random.default_rng(21)
N, K = 7, 3
CUTS = (0, 2, 3, 7)  # one shard of a single item, one shorter than k
VECTORS = RNG.standard_normal((N, 3)).astype(np.float32)
QUERY = RNG.standard_normal(3).astype(np.float32)
PRICES = np.arange(N) % 3
WHOLE = fr.Catalog(np.arange(N), VECTORS, features={"price": PRICES})


def cut(vectors: npt.NDArray[np.float32], cuts: Sequence[int], **options: Any) -> list[fr.Catalog]:
    parts = itertools.pairwise(cuts)
    return [
        fr.Catalog(
            np.arange(a, b), vectors[a:b], features={"price": np.arange(a, b) % 3}, **options
        )
        for a, b in parts
    ]


SHARDS = cut(VECTORS, CUTS)


def drawn(
    policy: fr.Policy,
    n_draws: int,
    *,
    seed_of: Callable[[int, int], int] = fr.shard_seed,
    catalogs: Sequence[fr.Catalog] = tuple(SHARDS),
    k: int = K,
    **call: Any,
) -> fr.RankingBatch:
    """Rankings of seeds from 0, merged; the shards' seeds are stated as they should be."""
    seeds = range(max(20, int(n_draws * DRAWS)))
    queries = np.broadcast_to(QUERY, (len(seeds), len(QUERY)))
    filters: dict[str, Any] = {
        name: [ids] * len(seeds) for name, ids in call.items() if name != "rules"
    }
    parts = []
    for i, shard in enumerate(catalogs):
        own = np.array([seed_of(seed, i) for seed in seeds], np.uint64)
        batch = shard.rank_batch(
            queries, k, policy=policy, seeds=own, rules=call.get("rules"), **filters
        )
        right = np.array([fr.shard_seed(seed, i) for seed in seeds], np.uint64)
        parts.append(dataclasses.replace(batch, seeds=right))
    return fr.merge_batch(parts, k, seeds=list(seeds))


def eligible(exclude: Sequence[int] = (), allow: Sequence[int] | None = None) -> npt.NDArray[Any]:
    mask = np.isin(np.arange(N), np.arange(N) if allow is None else allow)
    mask[list(exclude)] = False
    return mask


FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "exclude": {"exclude": [3, 0]},
    "a shard without items": {"exclude": [2]},
    "allow": {"allow": [0, 2, 4, 5, 99]},
}
POLICIES = {
    "cold": fr.PlackettLuce(0.3),
    "plackett_luce": fr.PlackettLuce(1.0),
    "sequential": fr.PlackettLuce(1.0, sampler="sequential"),
    "hot": fr.PlackettLuce(5.0),
    "uniform": fr.Uniform(),
}


# The law


@pytest.mark.sampled
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_merged_rankings_follow_the_law_of_the_whole(policy: str, filters: str) -> None:
    call = FILTERS[filters]
    batch = drawn(POLICIES[policy], N_DRAWS, **call)
    law = reference.ranking_law(WHOLE.scores(QUERY), K, POLICIES[policy], eligible(**call))
    assert_law(batch.item_ids, law)


@pytest.mark.parametrize("policy", ["plackett_luce", "uniform"])
def test_one_seed_for_all_shards_is_found(policy: str) -> None:
    """What `merge` refuses; this is what it would do to the law."""
    batch = drawn(POLICIES[policy], N_DRAWS, seed_of=lambda seed, _: seed)
    law = reference.ranking_law(WHOLE.scores(QUERY), K, POLICIES[policy])
    with pytest.raises(AssertionError):
        assert_law(batch.item_ids, law)


def _masses_of_the_whole(own: Any, left: Any) -> Any:
    """A shard drawn by all its items, also by those that were taken."""
    return own, np.where(np.isneginf(left), left, left[:, :, :1])


def _masses_of_the_next(own: Any, left: Any) -> Any:
    """A shard drawn by its next item alone."""
    return own, np.where(np.isneginf(left), left, own)


@pytest.mark.parametrize("wrong", [_masses_of_the_whole, _masses_of_the_next])
def test_shards_drawn_by_other_masses_are_found(
    wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = shards._left
    monkeypatch.setattr(shards, "_left", lambda *given: wrong(*right(*given)))
    batch = drawn(fr.PlackettLuce(1.0), N_DRAWS)
    with pytest.raises(AssertionError):
        assert_law(batch.item_ids, reference.ranking_law(WHOLE.scores(QUERY), K, batch.policies[0]))


def test_a_shards_noise_used_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniforms that do not change from seed to seed."""
    monkeypatch.setattr(shards, "_uniforms", lambda seed, k: np.full(k, 0.4))
    batch = drawn(fr.PlackettLuce(1.0), N_DRAWS)
    with pytest.raises(AssertionError):
        assert_law(batch.item_ids, reference.ranking_law(WHOLE.scores(QUERY), K, batch.policies[0]))


def test_rules_on_items_are_merged() -> None:
    rules = Rules(where="price > 0", boost={"price == 1": 3.0}, boost_score={"price == 2": 0.25})
    policy = fr.PlackettLuce(0.7)
    batch = drawn(policy, N_DRAWS, rules=rules)
    scores = WHOLE.scores(QUERY).astype(np.float64)
    scores += np.where(PRICES == 1, 0.7 * np.log(3.0), 0.0) + np.where(PRICES == 2, 0.25, 0.0)
    assert_law(batch.item_ids, reference.ranking_law(scores, K, policy, PRICES > 0))
    for r in range(20):
        expected = WHOLE.log_propensities(QUERY, batch[r].item_ids, policy=policy, rules=rules)
        np.testing.assert_allclose(batch[r].log_propensities, expected, atol=1e-6)
    assert batch.rules is not None
    assert batch.rules[0] is not None
    assert batch.rules[0].rules == rules


def test_merged_rankings_are_merged_again() -> None:
    """Two shards of shards: the law, and the shards of a whole that is itself a part."""
    policy, seeds = fr.PlackettLuce(1.0), range(max(20, int(N_DRAWS * DRAWS)))
    queries = np.broadcast_to(QUERY, (len(seeds), 3))
    groups = []
    for g, catalogs in enumerate(([SHARDS[0], SHARDS[1]], [SHARDS[2]])):
        of_group = [fr.shard_seed(seed, g) for seed in seeds]
        parts = [
            shard.rank_batch(
                queries, K, policy=policy, seeds=[fr.shard_seed(seed, i) for seed in of_group]
            )
            for i, shard in enumerate(catalogs)
        ]
        groups.append(fr.merge_batch(parts, K, seeds=of_group))
    batch = fr.merge_batch(groups, K, seeds=list(seeds))
    assert_law(batch.item_ids, reference.ranking_law(WHOLE.scores(QUERY), K, policy))


# What a merged ranking states


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.03, 0.3, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_propensities_are_those_of_the_whole(temperature: float, scale: float) -> None:
    rng = np.random.default_rng(2)
    vectors = (scale * rng.standard_normal((400, 8))).astype(np.float32)
    query, policy = rng.standard_normal(8).astype(np.float32), fr.PlackettLuce(temperature)
    whole = fr.Catalog(np.arange(400), vectors)
    catalogs = cut(vectors, (0, 1, 30, 400))
    own = whole.rank(query, 10, policy=policy, seed=0)
    assert own.log_norm is not None
    for seed in range(20):
        parts = [
            shard.rank(query, 10, policy=policy, seed=fr.shard_seed(seed, i))
            for i, shard in enumerate(catalogs)
        ]
        merged = fr.merge(parts, 10, seed=seed)
        order = np.asarray(merged.item_ids)
        assert_log_propensities(
            merged.log_propensities, whole.scores(query), order, policy, tolerance=1e-6
        )
        assert merged.log_norm == pytest.approx(own.log_norm, rel=1e-12, abs=1e-6)
        assert merged.log_propensity == pytest.approx(merged.log_propensities.sum())
        np.testing.assert_array_equal(merged.scores, whole.scores(query)[order])


def test_the_best_of_all_shards() -> None:
    """And ties go to the earlier shard, as to the earlier item of a catalog."""
    scores = np.array([1, 3, 3, 2, 3, 0, 2], np.float32)
    whole = fr.Catalog(np.arange(7), scores[:, None])
    catalogs = cut(scores[:, None], CUTS)
    for policy in (fr.Deterministic(), fr.EpsilonGreedy(0.0)):
        expected = whole.rank([1.0], 5, policy=policy)
        merged = fr.merge([shard.rank([1.0], 5, policy=policy) for shard in catalogs], 5, seed=3)
        assert merged.item_ids.tolist() == expected.item_ids.tolist()
        assert merged.log_propensities.tolist() == [0.0] * 5
        assert merged.log_norm is None


def test_all_that_a_log_needs() -> None:
    policy = fr.PlackettLuce(0.5)
    call: dict[str, Any] = {"policy": policy, "exclude": [5]}
    parts = [
        shard.rank(QUERY, 4, seed=fr.shard_seed(9, i), bias=np.full(len(shard), i), **call)
        for i, shard in enumerate(SHARDS)
    ]
    merged = fr.merge(parts, 4, seed=9)
    assert (merged.seed, merged.k, merged.policy, merged.n_eligible) == (9, 4, policy, 6)
    assert np.asarray(merged.exclude).tolist() == [5]
    assert merged.bias is not None
    assert merged.bias.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert (merged.made_by, merged.n_scored, merged.propensity_kind) == ("pass", 6, "exact")
    assert merged == fr.merge(parts, 4, seed=9)
    assert pickle.loads(pickle.dumps(merged)) == merged
    # Its version is the shards', in their order.
    versions = {merged.catalog_version, *(shard.version for shard in SHARDS), WHOLE.version}
    assert len(versions) == 5
    expected = WHOLE.log_propensities(
        QUERY, merged.item_ids, policy=policy, exclude=[5], bias=merged.bias
    )
    np.testing.assert_allclose(merged.log_propensities, expected, atol=1e-6)


def test_fewer_items_than_places() -> None:
    policy = fr.PlackettLuce()
    parts = [
        s.rank(QUERY, 50, policy=policy, seed=fr.shard_seed(1, i)) for i, s in enumerate(SHARDS)
    ]
    merged = fr.merge(parts, 50, seed=1)
    assert sorted(merged.item_ids.tolist()) == list(range(N))
    assert merged.log_propensities[-1] == pytest.approx(0.0, abs=1e-9)
    none = [
        s.rank(QUERY, 5, policy=policy, seed=fr.shard_seed(1, i), allow=[])
        for i, s in enumerate(SHARDS)
    ]
    empty = fr.merge(none, 5, seed=1)
    assert (len(empty), empty.n_eligible, empty.log_norm) == (0, 0, -np.inf)


def test_a_row_is_what_merge_gives() -> None:
    """Rows of different policies, filters and lengths."""
    queries = RNG.standard_normal((5, 3)).astype(np.float32)
    policies = [fr.PlackettLuce(0.1), fr.Deterministic(), fr.Uniform(), fr.PlackettLuce(2.0)]
    policies.append(fr.EpsilonGreedy(0.0))
    exclude: list[Any] = [None, [0, 1, 2, 3], [6], list(range(N)), None]
    seeds = [4, 5, 2**64 - 1, 0, 7]
    parts = [
        shard.rank_batch(
            *(queries, 4),
            policy=policies,
            seeds=[fr.shard_seed(seed, i) for seed in seeds],
            exclude=exclude,
        )
        for i, shard in enumerate(SHARDS)
    ]
    batch = fr.merge_batch(parts, 4, seeds=seeds)
    assert batch.counts.tolist() == [4, 3, 4, 0, 4]
    for r in range(5):
        merged = fr.merge([part[r] for part in parts], 4, seed=seeds[r])
        assert batch[r] == merged
        assert batch[r].to_dict() == merged.to_dict()
    assert fr.merge_batch([part_of(part, 0) for part in parts], 4, seeds=[]).counts.tolist() == []


def part_of(batch: fr.RankingBatch, b: int) -> fr.RankingBatch:
    """The first b rows."""
    cut = {
        each.name: getattr(batch, each.name)[:b]
        for each in dataclasses.fields(batch)
        if isinstance(getattr(batch, each.name), np.ndarray | tuple)
    }
    return dataclasses.replace(batch, **cut)


@pytest.mark.parametrize("ids", ["int", "text"])
def test_int8_shards_stay_inside_their_bounds(ids: str) -> None:
    n, rng = 30_000, np.random.default_rng(3)
    vectors = rng.standard_normal((n, 16)).astype(np.float32)
    names = np.arange(n) if ids == "int" else np.array([f"item-{i}" for i in range(n)])
    query, policy = rng.standard_normal(16).astype(np.float32), fr.PlackettLuce(1.0)
    whole = fr.Catalog(names, vectors)
    parts = []
    for i, (a, b) in enumerate([(0, 10_000), (10_000, n)]):
        shard = fr.Catalog(names[a:b], vectors[a:b], storage="int8")
        parts.append(shard.rank(query, 10, policy=policy, seed=fr.shard_seed(5, i)))
    merged = fr.merge(parts, 10, seed=5)
    assert merged.propensity_kind == "bounded"
    assert merged.log_norm_error == max(part.log_norm_error for part in parts) > 0.0
    expected = whole.log_propensities(query, merged.item_ids, policy=policy)
    off = np.abs(merged.log_propensities - expected).max()
    assert off <= merged.log_norm_error + 1e-6


def test_a_models_users(tmp_path: Path) -> None:
    """Their own temperatures, and what made the ranking: tables of one shard, a pass of another."""
    users = {"ann": QUERY}
    policy = fr.PlackettLuce(0.5, sampler="auto")
    models = [
        fr.Model(shard, list(users), np.stack(list(users.values())), user_temperatures=[2.0])
        for shard in SHARDS
    ]
    parts = [
        model.recommend("ann", 3, policy=policy, seed=fr.shard_seed(2, i))
        for i, model in enumerate(models)
    ]
    merged = fr.merge(parts, 3, seed=2)
    assert (merged.user_temperature, merged.policy) == (2.0, policy.scaled(2.0))
    expected = WHOLE.log_propensities(QUERY, merged.item_ids, policy=fr.PlackettLuce(1.0))
    np.testing.assert_allclose(merged.log_propensities, expected, atol=1e-6)
    assert merged.model_version not in (None, *(model.version for model in models))


def test_shard_seeds_are_fixed() -> None:
    assert [fr.shard_seed(7, 0), fr.shard_seed(7, 1), fr.shard_seed(2**64 - 1, 3)] == [
        *(8758554476282166, 770509117242914, 7925022994462973)
    ]
    many = {fr.shard_seed(seed, shard) for seed in range(300) for shard in range(30)}
    assert len(many) == 9_000
    assert max(many) < 2**53


# Bad input


def parts_of(policy: fr.Policy, k: int = K, seed: int = 1, **call: Any) -> list[fr.Ranking]:
    return [
        shard.rank(QUERY, k, policy=policy, seed=fr.shard_seed(seed, i), **call)
        for i, shard in enumerate(SHARDS)
    ]


PL = fr.PlackettLuce(0.5)


def _with(index: int, **changes: Any) -> list[fr.Ranking]:
    parts = parts_of(PL)
    parts[index] = dataclasses.replace(parts[index], **changes)
    return parts


def _walked() -> list[fr.Ranking]:
    return parts_of(PL, rules=Rules(cap={"price": 1}))


def _relaxed() -> list[fr.Ranking]:
    return parts_of(PL, rules=Rules(where="price > 0", on_empty="relax"))


def _pages() -> list[fr.Ranking]:
    return [
        shard.rank(QUERY, K, policy=PL, seed=fr.shard_seed(1, i), after=[int(shard.item_ids[0])])
        for i, shard in enumerate(SHARDS)
    ]


def _other_filter() -> list[fr.Ranking]:
    parts = parts_of(PL)
    parts[2] = SHARDS[2].rank(QUERY, K, policy=PL, seed=fr.shard_seed(1, 2), exclude=[4])
    return parts


def _text_ids() -> list[fr.Ranking]:
    text = fr.Catalog(["a"], VECTORS[:1])
    return [*parts_of(PL), text.rank(QUERY, K, policy=PL, seed=fr.shard_seed(1, 3))]


def _overlapping() -> list[fr.Ranking]:
    first = fr.Catalog([0, 1], VECTORS[:2])
    second = fr.Catalog([1, 2], VECTORS[1:3])
    return [
        shard.rank(QUERY, 4, policy=PL, seed=fr.shard_seed(1, i))
        for i, shard in enumerate((first, second))
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (list, "rankings: expected one of each shard, got none"),
        (
            lambda: [*parts_of(PL)[:2], None],
            r"rankings\[2\]: expected a Ranking, got None; without a shard that does not answer",
        ),
        (
            lambda: _with(1, policy=fr.PlackettLuce(0.6)),
            r"rankings\[1\]: policy: expected PlackettLuce\(temperature=0.5.* got .*0.6",
        ),
        (lambda: _with(1, user_temperature=2.0), r"rankings\[1\]: user_temperature: expected None"),
        (_other_filter, r"rankings\[2\]: exclude: expected None, as in rankings\[0\], got array"),
        (
            lambda: _with(2, seed=1),
            r"rankings\[2\]: seed: expected shard_seed\(1, 2\) = \d+, got 1; each shard draws by",
        ),
        (
            lambda: parts_of(PL, k=2),
            r"rankings\[2\]: expected 3 places or more, as k = 3 and 4 eligible items .* got 2",
        ),
        (
            lambda: _with(2, log_propensities=np.full(3, -0.5)),
            r"rankings\[2\]: log_propensities: they are not those of its scores under Plackett",
        ),
        (
            lambda: _with(2, catalog_version=SHARDS[0].version),
            r"rankings\[2\]: catalog_version: '.{12}' is that of rankings\[0\], too",
        ),
        (_text_ids, "rankings: item_ids: some shards have integers, and others text"),
        (_walked, r"rankings\[0\]: rules: expected where, boost and boost_score alone"),
        (_relaxed, r"rankings\[0\]: rules: expected where, boost and boost_score alone"),
        (_pages, r"rankings\[0\]: after: later pages cannot be merged; exclude what"),
        (_overlapping, "rankings: item 1 is in two shards"),
        *(
            (
                lambda policy=policy: parts_of(policy),
                r"rankings\[0\]: policy: expected Deterministic, PlackettLuce or Uniform",
            )
            for policy in (
                fr.EpsilonGreedy(0.1),
                fr.FlatTail(0.5, m=2),
                fr.BestFirst(1, fr.PlackettLuce(0.5)),
            )
        ),
    ],
)
def test_refused(make: Callable[[], list[Any]], message: str) -> None:
    k = 4 if make is _overlapping else K
    with pytest.raises(ValueError, match=message):
        fr.merge(make(), k, seed=1)


def test_batches_are_refused() -> None:
    queries = np.stack([QUERY, -QUERY])
    parts = [
        shard.rank_batch(queries, K, policy=PL, seeds=[fr.shard_seed(s, i) for s in (1, 2)])
        for i, shard in enumerate(SHARDS)
    ]
    with pytest.raises(ValueError, match=r"batches\[1\]: expected 2 rows, as in batches\[0\], got"):
        fr.merge_batch([parts[0], part_of(parts[1], 1)], K, seeds=[1, 2])
    with pytest.raises(ValueError, match="seeds: expected one entry for each of 2 users, got 1"):
        fr.merge_batch(parts, K, seeds=[1])
    with pytest.raises(ValueError, match=r"seeds\[1\]: must be at least 0, got -1"):
        fr.merge_batch(parts, K, seeds=[1, -1])
    with pytest.raises(ValueError, match=r"batches\[0\], row 1: seed: expected shard_seed\(3, 0\)"):
        fr.merge_batch(parts, K, seeds=[1, 3])
    with pytest.raises(ValueError, match=r"batches\[0\]: expected a RankingBatch, got Ranking"):
        fr.merge_batch([parts[0][0]], K, seeds=[1])  # type: ignore[list-item]  # wrong on purpose
    with pytest.raises(ValueError, match="k: must be at least 1, got 0"):
        fr.merge_batch(parts, 0, seeds=[1, 2])
    with pytest.raises(ValueError, match="seeds: expected one entry for each of 2 users, got 5"):
        fr.merge_batch(parts, K, seeds=5)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(("seed", "shard"), [(-1, 0), (2**64, 0), (0, -1), (1.5, 0), (0, True)])
def test_shard_seeds_are_refused(seed: Any, shard: Any) -> None:
    with pytest.raises(ValueError, match=r"^(seed|shard): "):
        fr.shard_seed(seed, shard)
