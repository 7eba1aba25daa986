"""Rankings under rules follow the oracle's laws, and say with which probability they were drawn.

Error budget: see support.py. Each of some 80 comparisons by chi-square fails a right library with
probability 1e-9 over the choice of its seeds, which are fixed. Propensities have no budget: each is
compared with the oracle's, to 1e-6. The last part shows which mistakes the guards reject, at the
same numbers of draws.

Catalogs here are small enough to be drawn whole at once, so orders of one to three items are
forced: lists then go through refusals, the pool, coins, and orders that are drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import brokenrules
import numpy as np
import numpy.typing as npt
import pytest
from ruleworlds import KINDS, PAIRS, SINGLES, Kinds, World, triples, world, worlds
from support import DRAWS, Law, Positions, assert_law, same_ranking

import fastrank as fr
from fastrank import _probes, packing, reference, ruled, rulemass, walk
from fastrank import features as features_
from fastrank.features import as_features
from fastrank.reference import RuleMasks
from fastrank.retrieval import FaissIndex

# Rankings for each comparison, and for each mistake that must fail at this number, with p < 1e-9.
# Of cap it is 1e-65, of window 1e-58, of decays and pins 1e-19 to 1e-25; the others need the most.
N_DRAWS = 1_000
OTHER_DRAWS = {
    **dict.fromkeys(["cap", "window", "shares"], 600),
    **dict.fromkeys(["window, two brands", "cap, relaxed"], 2_000),
    "window, most of it shut": 6_000,
}
TOLERANCE = 1e-6
PL = fr.PlackettLuce(0.8)


# ---- Worlds that are made ------------------------------------------------------------------------

_BRANDS = ["a", "a", "a", "b", "b", "c", None]
_GENRES = [["x"], ["x", "y"], [], ["y"], ["z"], ["x", "z"], ["y"]]
_NEW = [False, False, True, False, True, True, False]
_SCORES = np.array([1.5, 1.0, 0.75, 0.25, 0.0, -0.5, 0.5])
_IDS = ["i4", "i1", "i7", "i2", "i9", "i3", "i8"]
_FEATURES: dict[str, list[Any]] = {"brand": _BRANDS, "genres": _GENRES, "new": _NEW}
_GROUPS: dict[str, Any] = {
    "genres": [set(each) for each in _GENRES],
    "new": [{True} if each else set() for each in _NEW],
}
_SETS = {
    "new": np.array(_NEW),
    "not new": ~np.array(_NEW),
    "brand == 'a'": np.array([each == "a" for each in _BRANDS]),
    "brand == 'b'": np.array([each == "b" for each in _BRANDS]),
    "brand != 'a'": np.array([each != "a" for each in _BRANDS]),
    "'x' in genres": np.array(["x" in each for each in _GENRES]),
    "brand != 'c'": np.array([each != "c" for each in _BRANDS]),
}


def made(
    k: int,
    policy: fr.Policy = PL,
    scores: npt.ArrayLike = _SCORES,
    after: Sequence[int] = (),
    brand: Sequence[str | None] = _BRANDS,
    **rules: Any,
) -> World:
    """A world of seven items; pins name rows, and all places count from 1."""
    values = np.asarray(scores, np.float32).astype(np.float64)
    boosted = values.copy()
    for text, odds in rules.get("boost", {}).items():
        assert policy.law is not None
        boosted += policy.law.temperature * np.log(odds) * _SETS[text]
    for text, added in rules.get("boost_score", {}).items():
        boosted += added * _SETS[text]
    where = rules.get("where")
    pin = rules.pop("pin", {})
    masks = RuleMasks(
        groups=_GROUPS | {"brand": [set() if each is None else {each} for each in brand]},
        **{name: rules[name] for name in ("cap", "window", "decay", "on_empty") if name in rules},
        at_least=[(_SETS[text], q) for text, q in rules.get("at_least", {}).items()],
        pin={place - 1: row for place, row in pin.items()},
        pin_where={place - 1: _SETS[text] for place, text in rules.get("pin_where", {}).items()},
        after=after,
    )
    if pin:
        rules["pin"] = {place: _IDS[row] for place, row in pin.items()}
    call = {"k": k, "policy": policy}
    if after:
        call["after"] = [_IDS[row] for row in after]
    eligible = np.ones(7, np.bool_) if where is None else _SETS[where]
    return World(
        *(
            (),
            0,
            _IDS,
            values,
            _FEATURES | {"brand": [*brand]},
            rules,
            call,
            eligible,
            boosted,
            masks,
        ),
        {},
    )


MADE: dict[str, World] = {
    "cap": made(4, cap={"brand": 1}),
    "cap of lists": made(4, cap={"genres": 1}),
    "cap, relaxed": made(4, cap={"brand": 1}, where="brand != 'c'", on_empty="relax"),
    "window": made(4, window={"brand": (1, 2)}),
    "window, two brands": made(3, scores=[0] * 7, brand=[*"aaabbbc"], window={"brand": (1, 2)}),
    "window of lists": made(4, window={"genres": (1, 3)}, on_empty="relax"),
    "window before a pin": made(4, window={"brand": (1, 3)}, pin={3: 1}),
    "window, most of it shut": made(
        *(2, PL, [0, 1, 0, 0, 0, 0, 0], [0], [*"aabbbbc"]), window={"brand": (1, 2)}
    ),
    "shares": made(4, at_least={"brand == 'b'": 2, "brand == 'a'": 2}),
    "decay": made(4, decay={"brand": 0.3}),
    "decay of most": made(2, scores=[0] * 7, brand=[*"aaaaabc"], decay={"brand": 0.1}),
    "decay of lists": made(3, decay={"genres": 0.2}),
    "a pin, and one of a set": made(4, pin={3: 5}, pin_where={1: "brand != 'a'", 4: "new"}),
    "the next page": made(3, after=[0, 3], cap={"brand": 2}, window={"brand": (1, 3)}),
    "boosts": made(
        3, boost={"new": 3.0, "'x' in genres": 0.5}, boost_score={"new": -0.5}, cap={"brand": 1}
    ),
    "all": made(
        4,
        after=[6],
        cap={"brand": 2},
        window={"genres": (1, 2)},
        at_least={"new": 2},
        decay={"brand": 0.4, "genres": 0.7},
        pin_where={2: "brand == 'a'"},
        on_empty="relax",
    ),
}


# ---- Guards --------------------------------------------------------------------------------------


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Any:
    def force(count: int) -> None:
        monkeypatch.setattr(walk, "ahead", lambda *_: count)

    return force


def law_of(each: World) -> Law:
    """With the first position that no item has where a list does not reach."""
    rankings, p = each.law()
    return np.where(rankings < 0, len(each.ids), rankings), p


def drawn(
    each: World, n_draws: int = N_DRAWS, catalog: fr.Catalog | None = None, **options: Any
) -> fr.RankingBatch:
    catalog = each.catalog() if catalog is None else catalog
    n_draws = max(20, int(n_draws * DRAWS))
    call = dict(each.call)
    for name in ("exclude", "allow", "after"):
        if name in call:
            call[name] = [call[name]] * n_draws
    query = options.pop("query", [1.0])
    return catalog.rank_batch(
        np.tile(np.asarray(query, np.float32), (n_draws, 1)),
        rules=fr.Rules(**each.rules),
        seeds=np.arange(n_draws),
        **(call | options),
    )


def orders_of(each: World, batch: fr.RankingBatch) -> Positions:
    """Positions (n_draws, places), as `law_of` has them."""
    row_of = {id_: row for row, id_ in enumerate(each.ids)}
    orders = np.full((len(batch), each.law()[0].shape[1]), len(each.ids))
    for i, count in enumerate(batch.counts.tolist()):
        orders[i, :count] = [row_of[id_] for id_ in batch.item_ids[i, :count].tolist()]
    return orders


def assert_judged(each: World, order: Sequence[int], actual: npt.ArrayLike, k: int) -> None:
    expected = each.log_propensities(order, k)
    got = np.asarray(actual)
    said = f"{each} {each.policy} {each.rules} {each.call} {order}: {got} for {expected}"
    assert got.shape == expected.shape, said
    assert (got <= 0.0).all(), said
    assert (np.isneginf(got) == np.isneginf(expected)).all(), said
    finite = ~np.isneginf(expected)
    np.testing.assert_allclose(got[finite], expected[finite], 1e-9, TOLERANCE, err_msg=said)


def assert_says_its_propensities(each: World, batch: fr.RankingBatch, others: int = 0) -> None:
    """The first sixty rankings that differ; there are so many other items."""
    seen: dict[tuple[int, ...], int] = {}
    for i, order in enumerate(orders_of(each, batch).tolist()):
        seen.setdefault(tuple(order), i)
    assert (batch.n_eligible == each.n_eligible + others).all()
    for order, i in list(seen.items())[:60]:
        m = int(batch.counts[i])
        assert_judged(each, order[:m], batch.log_propensities[i, :m], each.k)
        assert batch.log_propensity[i] == pytest.approx(float(batch.log_propensities[i, :m].sum()))


def check(each: World, n_draws: int = N_DRAWS, others: int = 0, **options: Any) -> None:
    if isinstance(each.policy, fr.Deterministic):
        n_draws = 50
    batch = drawn(each, n_draws, **options)
    assert_law(orders_of(each, batch), law_of(each))
    assert_says_its_propensities(each, batch, others)


# ---- What any ranking's probability is -----------------------------------------------------------


def rankings_to_judge(each: World, count: int) -> Iterator[tuple[list[int], int]]:
    """Those of the law, evenly, and nonsense; with k. -1: an item that there is not."""
    rankings = each.law()[0].tolist()
    for ranking in rankings[:: max(1, len(rankings) // count)]:
        order = [row for row in ranking if row >= 0]
        yield order, each.k
        if order:
            yield order, len(order)
    rng = np.random.default_rng(each.seed)
    for _ in range(count // 3):  # unknown, repeated, ineligible, not allowed
        yield rng.integers(-1, len(each.ids), rng.integers(0, each.k + 3)).tolist(), 2 * each.k + 3


def check_judging(each: World, count: int = 24) -> None:
    catalog, rules = each.catalog(), fr.Rules(**each.rules)
    call = {name: value for name, value in each.call.items() if name != "k"}
    owed = sum(rules.at_least.values())
    for order, k in rankings_to_judge(each, count):
        if k < owed:
            continue
        ids = [each.ids[row] if row >= 0 else "nobody" for row in order]
        got = catalog.log_propensities([1.0], ids, rules=rules, k=max(1, k), **call)
        assert_judged(each, order, got, max(1, k))


@pytest.mark.sampled
@pytest.mark.parametrize("kinds", SINGLES, ids="+".join)
def test_judging_by_each_kind(kinds: Kinds) -> None:
    for each in worlds(kinds, 8):
        check_judging(each)


def test_judging_by_each_pair_of_kinds() -> None:
    for kinds in PAIRS:
        check_judging(world(kinds, 0))


def test_judging_by_some_triples_of_kinds() -> None:
    for kinds in triples(30):
        check_judging(world(kinds, 1))


@pytest.mark.slow
def test_judging_by_pairs_triples_and_all_kinds() -> None:
    for kinds in [*PAIRS, *triples(20, seed=1), KINDS]:
        for each in worlds(kinds, 1, seed=10):
            check_judging(each)


@pytest.mark.sampled
@pytest.mark.parametrize("name", MADE)
def test_judging_of_made_worlds(name: str) -> None:
    check_judging(MADE[name], 120)


_SLOW = ("cap of lists", "window before a pin", "the next page", "boosts")  # no mistake needs them

# ---- Draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MADE if name not in _SLOW])
def test_law(name: str, ahead: Any) -> None:
    ahead(1 + list(MADE).index(name) % 3)
    check(MADE[name], OTHER_DRAWS.get(name, N_DRAWS))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("name", MADE)
def test_law_however_many_are_drawn_at_a_time(name: str, count: int, ahead: Any) -> None:
    ahead(count)
    check(MADE[name], OTHER_DRAWS.get(name, N_DRAWS))


@pytest.mark.slow
def test_law_of_some_pairs(ahead: Any) -> None:
    for i, kinds in enumerate(PAIRS):
        ahead(1 + i % 3)
        check(world(kinds, 2), 200)


@pytest.mark.slow
def test_law_of_pairs_and_triples(ahead: Any) -> None:
    for i, kinds in enumerate([*PAIRS, *triples(25, seed=2)]):
        ahead(1 + i % 3)
        check(world(kinds, 3), 1_000)


@pytest.mark.parametrize("count", [1, 3, 64])
def test_a_call_draws_what_a_row_does(count: int, ahead: Any) -> None:
    ahead(count)
    for each in [*MADE.values(), *(world(kinds, 4) for kinds in triples(10, seed=4))]:
        batch = drawn(each, 20)
        call = dict(each.call)
        for seed in range(8):
            one = each.catalog().rank([1.0], seed=seed, rules=fr.Rules(**each.rules), **call)
            assert same_ranking(one, batch[seed])
            assert one.log_norm_error == batch[seed].log_norm_error


# ---- Policies, storages, sources -----------------------------------------------------------------

_WITHOUT_WEIGHTS: dict[str, Any] = {
    "cap": {"brand": 2},
    "window": {"genres": (1, 2)},
    "at_least": {"new": 2},
    "pin_where": {2: "brand == 'a'"},
    "boost_score": {"'x' in genres": 0.25},
    "on_empty": "relax",
}
_POLICIES: dict[str, World] = {
    "deterministic": made(4, fr.Deterministic(), **_WITHOUT_WEIGHTS),
    "epsilon-greedy": made(4, fr.EpsilonGreedy(0.4), **_WITHOUT_WEIGHTS),
    "uniform": made(4, fr.Uniform(), **_WITHOUT_WEIGHTS),
    "best first, epsilon-greedy": made(
        4, fr.BestFirst(1, fr.EpsilonGreedy(0.4)), **_WITHOUT_WEIGHTS
    ),
    "best first": made(
        4, fr.BestFirst(2, PL), decay={"brand": 0.1}, boost={"new": 4.0}, cap={"genres": 2}
    ),
    "sequential": made(
        4, fr.PlackettLuce(0.8, sampler="sequential"), decay={"brand": 0.4}, window={"new": (1, 2)}
    ),
    "cached": made(
        4, fr.PlackettLuce(0.8, sampler="cached"), decay={"brand": 0.4}, window={"new": (1, 2)}
    ),
    "flat tail": made(
        4,
        fr.FlatTail(0.8, m=3, factor=0.4),
        *(_SCORES, [5]),
        cap={"brand": 1},
        window={"genres": (1, 2)},
        pin={3: 4},
        on_empty="relax",
    ),
    "ties": made(
        3, scores=[0.5] * 7, decay={"brand": 0.4}, window={"new": (1, 2)}, cap={"genres": 2}
    ),
    "ties of the best": made(
        3, fr.EpsilonGreedy(0.3), [0.5] * 7, cap={"brand": 1}, window={"new": (1, 2)}
    ),
    "steep": made(3, fr.PlackettLuce(0.05), cap={"brand": 2}, decay={"genres": 0.01}),
    "flat": made(3, fr.PlackettLuce(1e3), window={"brand": (1, 2)}, decay={"genres": 0.3}),
}


@pytest.mark.sampled
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if i % 3 else pytest.mark.slow)
        for i, name in enumerate(_POLICIES)
    ],
)
def test_law_by_policy(name: str, ahead: Any) -> None:
    ahead(2)
    check(_POLICIES[name], 1_000)
    check_judging(_POLICIES[name])


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Codes are used however few items there are."""
    monkeypatch.setattr(packing, "CODED_FROM", 0)
    previous = _probes.set_few_items(1)
    yield
    _probes.set_few_items(previous)


@pytest.mark.sampled
@pytest.mark.usefixtures("coded")
@pytest.mark.parametrize("name", ["window of lists", "all"])
def test_law_of_int8_storage(name: str, ahead: Any) -> None:
    """Codes that are busy with four other coordinates, and say little."""
    ahead(2)
    each = MADE[name]
    vectors = np.column_stack([each.scores, np.random.default_rng(7).choice([-1e3, 1e3], (7, 4))])
    catalog = fr.Catalog(each.ids, vectors, features=each.features, storage="int8")
    check(each, 1_000, catalog=catalog, query=[1, 0, 0, 0, 0])


# Of these seven items some can be shown at any place, whatever is shown before.
_ENOUGH = made(4, decay={"brand": 0.4}, window={"new": (1, 2)}, boost={"'x' in genres": 0.5})


def with_others(each: World, count: int, **options: Any) -> fr.Catalog:
    """Its items among others of no group, so far below that none is ever drawn."""
    places = np.linspace(0, count, 7).astype(int) + np.arange(7)
    scores, ids = np.full(7 + count, -1e4), [f"other {i}" for i in range(7 + count)]
    columns: dict[str, list[Any]] = {
        "brand": [None] * len(ids),
        "genres": [[]] * len(ids),
        "new": [False] * len(ids),
    }
    for row, place in enumerate(places.tolist()):
        scores[place], ids[place] = each.scores[row], each.ids[row]
        for name, column in columns.items():
            column[place] = each.features[name][row]
    return fr.Catalog(ids, scores[:, None], features=columns, **options)


def test_law_over_chunks_and_a_prior_order(chunk_panels: int, ahead: Any) -> None:
    ahead(2)
    for prior in (None, np.random.default_rng(1).random(47)):
        check(_ENOUGH, 600, catalog=with_others(_ENOUGH, 40, prior=prior), others=40)


def test_law_from_tables(ahead: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead(2)
    monkeypatch.setattr(ruled.BoundRules, "wants_masses", lambda self, k: False)
    each = replace(_ENOUGH, call=_ENOUGH.call | {"policy": fr.PlackettLuce(0.8, sampler="cached")})
    for other in (each, replace(each, rules=each.rules | {"boost": {}}, boosted=each.scores)):
        catalog = with_others(other, 30_000)
        check(other, 700, catalog=catalog, others=30_000)
        made_by = catalog.rank([1.0], 4, policy=each.policy, rules=fr.Rules(**other.rules)).made_by
        assert made_by == ("pass" if other is each else "table")


def test_threads_change_nothing() -> None:
    for each in (_ENOUGH, *MADE.values()):
        catalog = with_others(each, 5_000)
        assert same_batch(drawn(each, 40, catalog), drawn(each, 40, catalog, threads=3))
        call = dict(each.call)
        for seed in range(3):
            ranked = [
                catalog.rank([1.0], seed=seed, threads=n, rules=fr.Rules(**each.rules), **call)
                for n in (1, 3)
            ]
            assert same_ranking(*ranked)


def same_batch(one: fr.RankingBatch, other: fr.RankingBatch) -> bool:
    return all(same_ranking(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["cap", "all"])
def test_law_of_given_scores(name: str, ahead: Any) -> None:
    ahead(2)
    each, n_draws = MADE[name], max(20, int(1_500 * DRAWS))
    rows = np.tile(each.scores.astype(np.float32), (n_draws, 1))
    features = as_features(each.features, 7, None)
    rules = fr.Rules(**each.rules)
    call: dict[str, Any] = {"policy": each.policy, "rules": rules, "features": features}
    after = each.call.get("after")
    pages = None if after is None else [after] * n_draws
    batch = fr.rank_scores_batch(
        each.ids, rows, each.k, seeds=np.arange(n_draws), after=pages, **call
    )
    assert_law(orders_of(each, batch), law_of(each))
    assert_says_its_propensities(each, batch)
    for seed in range(10):
        one = fr.rank_scores(each.ids, rows[0], each.k, seed=seed, after=after, **call)
        assert same_ranking(one, batch[seed])
    for order, k in rankings_to_judge(each, 20):
        if k < 2:
            continue
        ids = [each.ids[row] if row >= 0 else "nobody" for row in order]
        got = fr.log_propensities_of_scores(each.ids, rows[0], ids, k=k, after=after, **call)
        assert_judged(each, order, got, k)


def test_law_of_a_flat_tail_with_an_index(ahead: Any) -> None:
    faiss = pytest.importorskip("faiss")
    ahead(2)
    each = _POLICIES["flat tail"]
    vectors = np.column_stack([each.scores, np.zeros(7)]).astype(np.float32)
    index = faiss.IndexFlatIP(2)
    index.add(vectors)
    catalog = fr.Catalog(each.ids, vectors, features=each.features)
    check(each, 2_000, catalog=catalog.with_index(FaissIndex(index)), query=[1, 0])


# ---- Scores far apart ----------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("gap", "temperature"), [(100.0, 1.0), (800.0, 1e-3), (30.0, 1e3), (1e6, 1.0)]
)
def test_propensities_beside_blocked_items_that_outweigh_the_others(
    gap: float, temperature: float, ahead: Any
) -> None:
    """Items of brand a stand so many T above all others, and the rules allow one of them."""
    scores = np.float32(temperature) * (
        _SCORES + gap * np.array([each == "a" for each in _BRANDS])
    ).astype(np.float32)
    policy = fr.PlackettLuce(temperature)
    ahead(2)
    for rules in (
        {"cap": {"brand": 1}},
        {"window": {"brand": (1, 3)}},
        {"window": {"brand": (1, 2)}, "decay": {"genres": 1e-6}},
        {"at_least": {"brand != 'a'": 3}},
        {"pin": {1: 0}, "cap": {"brand": 1}},
        {"pin_where": {1: "brand != 'a'", 2: "new"}},
    ):
        each = made(4, policy, scores, **rules)
        batch = drawn(each, 60)
        assert_says_its_propensities(each, batch)
        check_judging(each, 60)


def test_law_beside_blocked_items_that_outweigh_the_others(ahead: Any) -> None:
    ahead(2)
    scores = _SCORES + 100.0 * np.array([each == "a" for each in _BRANDS])
    check(made(4, fr.PlackettLuce(1.0), scores, window={"brand": (1, 3)}, cap={"genres": 2}))


def test_decayed_weights_are_told_apart_where_float32_scores_would_not(ahead: Any) -> None:
    """At scores of 1,000 and T = 0.001 the logarithm of a decay, as a score, has no digits."""
    ahead(2)
    scores = 1000.0 + np.array([0, 1, 2, 4, 5, 3, 0]) * 2.0**-14
    each = made(4, fr.PlackettLuce(1e-3), scores, decay={"brand": 0.3, "genres": 0.9})
    check(each)


def test_decay_blocks_nothing() -> None:
    """60 items of one group, each shown with a weight of 1e-6 to the power of those before."""
    n = 60
    rules = fr.Rules(decay={"brand": 1e-6})
    catalog = fr.Catalog(np.arange(n), np.zeros((n, 1)), features={"brand": ["a"] * n})
    ranking = catalog.rank([1.0], n, policy=PL, rules=rules, seed=1)
    assert len(ranking) == n
    expected = -np.log(np.arange(n, 0, -1))
    np.testing.assert_allclose(ranking.log_propensities, expected, atol=1e-9)
    got = catalog.log_propensities([1.0], np.arange(n), policy=PL, rules=rules)
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_what_is_empty_at_every_place_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list of 300 places, all but three of them relaxed."""
    n, looked = 2_000, 0
    catalog = fr.Catalog(
        np.arange(n),
        np.random.default_rng(0).standard_normal((n, 1)),
        features={"brand": [f"b{i % 3}" for i in range(n)]},
    )
    allowed = ruled.Regime.allowed

    def counted(regime: ruled.Regime) -> Any:
        nonlocal looked
        looked += 1
        return allowed(regime)

    monkeypatch.setattr(ruled.Regime, "allowed", counted)
    for rules in ({"cap": {"brand": 1}}, {"window": {"brand": (1, 100)}}):
        call = fr.Rules(**rules, on_empty="relax")
        assert len(catalog.rank([1.0], 300, policy=PL, rules=call, seed=1)) == 300
    assert looked < 60


def test_decays_that_refuse_nearly_all_cost_an_order_a_place() -> None:
    n = 3_000
    catalog = fr.Catalog(
        np.arange(n),
        np.random.default_rng(0).standard_normal((n, 1)),
        features={"brand": ["a"] * n},
    )
    rules = fr.Rules(decay={"brand": 1e-6})
    n_scored = catalog.rank([1.0], 10, policy=PL, rules=rules, seed=1).n_scored
    assert n_scored is not None
    assert n_scored < 13 * n


# ---- Pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules",
    [
        {"cap": {"brand": 2}, "window": {"brand": (1, 2)}},
        pytest.param(
            {"decay": {"brand": 0.2}, "window": {"genres": (1, 3)}, "on_empty": "relax"},
            marks=pytest.mark.slow,
        ),
        {"at_least": {"new": 1}, "pin": {2: 5}, "cap": {"brand": 2}},
    ],
    ids="+".join,
)
def test_two_pages_follow_the_product_of_their_laws(rules: dict[str, Any], ahead: Any) -> None:
    ahead(2)
    first = made(2, **{**rules})
    n_draws = max(20, int(N_DRAWS * DRAWS))
    pages, n = drawn(first, N_DRAWS), 7
    catalog = first.catalog()
    batch = catalog.rank_batch(
        np.ones((n_draws, 1)),
        2,
        policy=PL,
        seeds=np.arange(n_draws) + 10**6,
        rules=fr.Rules(**first.rules),
        after=[pages[i] for i in range(n_draws)],
    )
    rankings, p = [], []
    seconds: dict[tuple[int, ...], World] = {}
    for ranking, share in zip(*first.law(), strict=True):
        shown = [row for row in ranking.tolist() if row >= 0]
        second = seconds[tuple(shown)] = made(2, after=shown, **{**rules})
        padded = [*shown, *[n] * (2 - len(shown))]
        for other, its in zip(*second.law(), strict=True):
            shown_then = [row for row in other.tolist() if row >= 0]
            rankings.append([*padded, *shown_then, *[n] * (2 - len(shown_then))])
            p.append(share * its)
    row_of = {id_: row for row, id_ in enumerate(first.ids)}
    orders = np.full((n_draws, 4), n)
    orders[:, :2] = orders_of(first, pages)
    for i, count in enumerate(batch.counts.tolist()):
        orders[i, 2 : 2 + count] = [row_of[id_] for id_ in batch.item_ids[i, :count].tolist()]
    assert_law(orders, (np.array(rankings), np.array(p)))
    for i in range(40):
        second = seconds[tuple(row for row in orders[i, :2].tolist() if row < n)]
        m = int(batch.counts[i])
        assert_judged(second, orders[i, 2 : 2 + m].tolist(), batch.log_propensities[i, :m], 2)


@pytest.mark.slow
def test_pages_of_caps_and_windows_are_one_list(ahead: Any) -> None:
    """Two pages of two are drawn as one of four: by the same law."""
    ahead(2)
    whole = made(4, cap={"brand": 2}, window={"brand": (1, 2)}, decay={"genres": 0.5})
    halves = made(2, cap={"brand": 2}, window={"brand": (1, 2)}, decay={"genres": 0.5})
    for order, p in zip(*whole.law(), strict=True):
        first, then = order[:2].tolist(), order[2:].tolist()
        second = replace(halves, masks=replace(halves.masks, after=first))
        parts = [halves.log_propensities(first, 2), second.log_propensities(then, 2)]
        assert float(np.concatenate(parts).sum()) == pytest.approx(math.log(p), abs=1e-9)
    pages = drawn(halves)
    n_draws = len(pages)
    batch = halves.catalog().rank_batch(
        np.ones((n_draws, 1)),
        2,
        policy=PL,
        seeds=np.arange(n_draws) + 10**6,
        rules=fr.Rules(**halves.rules),
        after=list(pages),
    )
    orders = np.hstack([orders_of(halves, pages), orders_of(halves, batch)])
    assert_law(orders, law_of(whole))


# ---- Many items ----------------------------------------------------------------------------------


_SUMMED: list[tuple[dict[str, Any], int]] = [
    ({"cap": {"seller": 1}}, 40),
    ({"cap": {"genres": 2}, "window": {"seller": (1, 5)}}, 40),
    ({"decay": {"genres": 0.7, "brand": 0.5}}, 20),
    ({"cap": {"new": 3}, "window": {"brand": (1, 2)}}, 20),
    ({"decay": {"seller": 0.1}, "pin": {3: 5}, "on_empty": "relax"}, 20),
    ({"at_least": {"new": 15}, "decay": {"price": 0.5}}, 20),
]


@pytest.mark.parametrize(
    ("n", "rules", "k"),
    [
        *[(2_000, *each) for each in _SUMMED],
        *[pytest.param(100_000, *each, marks=pytest.mark.slow) for each in _SUMMED[:3]],
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value),
)
def test_ways_to_sum_up_agree(
    n: int, rules: dict[str, Any], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was drawn: differences, labels of the first pass, a pass by label, and the oracle."""
    rng = np.random.default_rng(n)
    values = {
        "seller": rng.integers(0, n // 10, n),
        "brand": rng.integers(0, 4, n),
        "price": rng.integers(0, 9, n),
    }
    lists = [rng.choice(40, 3, replace=False) for _ in range(n)]
    new = rng.random(n) < 0.1
    features = {
        **{name: [f"{name} {each}" for each in values[name]] for name in ("seller", "brand")},
        "price": values["price"].astype(np.float32),
        "genres": [[f"g{each}" for each in own] for own in lists],
        "new": new,
    }
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    query = rng.standard_normal(4).astype(np.float32)
    catalog = fr.Catalog(np.arange(n), vectors, features=features)
    groups = {
        **{name: [{each} for each in column.tolist()] for name, column in values.items()},
        "genres": [set(own.tolist()) for own in lists],
        "new": [{True} if each else set() for each in new.tolist()],
    }
    masks = RuleMasks(
        groups=groups,
        **{name: rules[name] for name in ("cap", "window", "decay") if name in rules},
        at_least=[(new, q) for q in rules.get("at_least", {}).values()],
        pin={place - 1: item for place, item in rules.get("pin", {}).items()},
        on_empty=rules.get("on_empty", "stop"),
    )
    policy, call = fr.PlackettLuce(0.7), fr.Rules(**rules)
    scores = catalog.scores(query).astype(np.float64)
    said: dict[tuple[int, ...], list[npt.NDArray[np.float64]]] = {}
    # As it comes; by a difference; by a pass.
    for few, kept, largest in ((None, None, None), (1, 0.0, 0), (10**9, 2.0, 0)):
        with monkeypatch.context() as patch:
            if few is not None:
                for module in (ruled, rulemass):
                    patch.setattr(module, "FEW", few)
                patch.setattr(rulemass, "_KEPT", kept)
                patch.setattr(features_, "_MOST_SUMMED", largest)
            own = fr.Catalog(np.arange(n), vectors, features=features)
            for seed in range(3):
                ranking = own.rank(query, k, policy=policy, rules=call, seed=seed)
                said.setdefault(tuple(ranking.item_ids.tolist()), []).append(
                    ranking.log_propensities
                )
                said[tuple(ranking.item_ids.tolist())].append(
                    own.log_propensities(query, ranking.item_ids, policy=policy, rules=call, k=k)
                )
    for place, (order, those) in enumerate(said.items()):
        if place == 0 or n < 10_000:
            those.append(reference.log_propensities(scores, order, policy, None, masks, k))
        assert len(those) > 1
        for each in those[1:]:
            np.testing.assert_allclose(each, those[0], rtol=1e-6, atol=1e-6)


# ---- What the guards reject ----------------------------------------------------------------------

_MISTAKES: list[tuple[Any, str, int]] = [
    (brokenrules.redraws_until_a_prefix_fills, "cap", 5),
    (brokenrules.gives_up_after_refusals, "cap", 64),
    (brokenrules.returns_at_the_old_place, "window, two brands", 64),
    (brokenrules.returns_at_the_old_place, "cap, relaxed", 64),
    (brokenrules.takes_each_share_by_itself, "shares", 64),
    (brokenrules.reuses_the_order_for_a_set, "a pin, and one of a set", 64),
    (brokenrules.forgets_the_pool, "window", 64),
    (brokenrules.forgets_the_pool, "decay", 64),
    (brokenrules.weighs_the_allowed_only, "window, most of it shut", 64),
    (brokenrules.refused_by_decay_once_and_for_all, "decay of most", 64),
    (brokenrules.decays_by_the_last_item_alone, "decay of lists", 64),
]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("mistake", "name", "count"), _MISTAKES, ids=lambda value: getattr(value, "__name__", value)
)
def test_mistakes_fail_the_law(
    mistake: Any, name: str, count: int, ahead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead(count)
    mistake(monkeypatch)
    each = MADE[name]
    with pytest.raises(AssertionError, match=r"p = |impossible"):
        assert_law(orders_of(each, drawn(each, OTHER_DRAWS.get(name, N_DRAWS))), law_of(each))


def test_propensities_without_rules_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    brokenrules.says_the_mass_of_all(monkeypatch)
    each = MADE["window"]
    with pytest.raises(AssertionError, match="window"):
        assert_says_its_propensities(each, drawn(each, 50))
