"""Catalogs stored in descending prior: nothing but the draws may tell that they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import N_DRAWS, Scored, assert_first_position_law, assert_ordered_law

import fastrank as fr
from fastrank import _probes, store

POLICIES: dict[str, fr.Policy] = {
    "gumbel": fr.PlackettLuce(0.7),
    "sequential": fr.PlackettLuce(0.7, sampler="sequential"),
    "cached": fr.PlackettLuce(0.7, sampler="cached"),
    "epsilon": fr.EpsilonGreedy(0.3),
    "uniform": fr.Uniform(),
}


def two_catalogs(
    n: int = 100, dim: int = 5, *, words: bool = False, ties: bool = False
) -> tuple[fr.Catalog, fr.Catalog, npt.NDArray[np.float32]]:
    """The same items without and with a prior (in which some are equal), and a query."""
    rng = np.random.default_rng(n)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    if ties:
        vectors = np.round(vectors)
    ids: npt.NDArray[Any] = rng.permutation(n) * 3 - 5
    if words:
        ids = np.array([f"item {i}" for i in ids])
    bias = rng.standard_normal(n).round(0 if ties else 3)
    prior = rng.standard_normal(n).round(1)
    query = np.ones(dim, np.float32)
    plain = fr.Catalog(ids, vectors, bias=bias)
    return plain, fr.Catalog(ids, vectors, bias=bias, prior=prior), query


# ---- Everything that speaks of rows ----------------------------------------------------------


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("n", [1, 15, 100, 1_000])
def test_ids_scores_and_best_are_those_without_a_prior(n: int, words: bool, isa: str) -> None:
    plain, other, query = two_catalogs(n, words=words)
    bias = np.random.default_rng(1).standard_normal(n)
    assert other.item_ids.tolist() == plain.item_ids.tolist()
    assert not other.item_ids.flags.writeable
    assert other.item_ids is other.item_ids
    assert (other.scores(query) == plain.scores(query)).all()
    assert (other.scores(query, bias=bias) == plain.scores(query, bias=bias)).all()
    exclude = plain.item_ids[::3]
    for options in ({}, {"bias": bias}, {"exclude": exclude}, {"allow": exclude}):
        ranked = [c.rank(query, k=20, policy=fr.Deterministic(), **options) for c in (plain, other)]
        assert ranked[0].item_ids.tolist() == ranked[1].item_ids.tolist()
        assert (ranked[0].scores == ranked[1].scores).all()
        assert ranked[0].n_eligible == ranked[1].n_eligible


@pytest.mark.parametrize("k", [1, 7, 100, 3_000])
@pytest.mark.parametrize("chunk_panels", [0, 3])
def test_ties_go_to_the_earlier_row(k: int, chunk_panels: int, isa: str) -> None:
    plain, other, query = two_catalogs(3_000, dim=2, ties=True)
    before = _probes.set_chunk_panels(chunk_panels)
    try:
        ranked = [c.rank(query, k=k, policy=fr.Deterministic()) for c in (plain, other)]
        given = [
            c.log_propensities(query, ranked[0].item_ids, policy=fr.EpsilonGreedy(0.1))
            for c in (plain, other)
        ]
    finally:
        _probes.set_chunk_panels(before)
    scores = plain.scores(query)
    expected = plain.item_ids[np.lexsort((np.arange(3_000), -scores))[:k]]
    assert ranked[0].item_ids.tolist() == ranked[1].item_ids.tolist() == expected.tolist()
    assert (given[0] == given[1]).all()


@pytest.mark.parametrize("with_prior", [False, True])
def test_a_scan_of_equal_items_stops_where_an_earlier_row_may_be(
    isa: str, *, with_prior: bool
) -> None:
    """Ten panels at most, of 3,125, hold one of the first ten rows."""
    n = 50_000
    prior = np.random.default_rng(0).random(n) if with_prior else None
    catalog = fr.Catalog(np.arange(n), np.ones((n, 16)), prior=prior)
    query = np.ones(16, np.float32)
    best = catalog.rank(query, k=10, policy=fr.Deterministic())
    assert best.item_ids.tolist() == list(range(10))
    stored = np.arange(n) if prior is None else np.argsort(-prior, kind="stable")
    panels = len(np.unique(np.flatnonzero(stored < 10) // 16))
    assert _probes.stops(catalog._packed, query, 16.0, 9) == panels
    assert _probes.stops(catalog._packed, query, 15.0, 9) == n // 16


def test_titles_are_those_of_the_ids() -> None:
    plain, other, _ = two_catalogs(50)
    titles = [f"title of {i}" for i in plain.item_ids]
    model = fr.Model(other, [0], np.ones((1, 5)), item_titles=titles)
    wanted = [*plain.item_ids[[3, 1, 40]].tolist(), 10_000]
    assert model.titles(wanted) == [*(f"title of {i}" for i in wanted[:3]), ""]


# ---- The law ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_law_is_that_of_the_scores(policy: str, isa: str) -> None:
    _, other, query = two_catalogs(7)
    item = Scored(other, query)
    orders = item.draw(3, POLICIES[policy], N_DRAWS)
    assert_ordered_law(orders, item.scores, 3, POLICIES[policy])


@pytest.mark.parametrize("policy", ["gumbel", "cached"])
def test_the_law_over_several_chunks(policy: str, isa: str) -> None:
    _, other, query = two_catalogs(300)
    item = Scored(other, query)
    before = _probes.set_chunk_panels(3)
    try:
        first = item.draw(2, POLICIES[policy], N_DRAWS)[:, 0]
    finally:
        _probes.set_chunk_panels(before)
    weights = np.exp((item.scores.astype(np.float64) - item.scores.max()) / 0.7)
    assert_first_position_law(first, weights / weights.sum())


@pytest.mark.parametrize("policy", POLICIES)
def test_propensities_are_those_without_a_prior(policy: str, isa: str) -> None:
    plain, other, query = two_catalogs(500)
    bias = np.random.default_rng(1).standard_normal(500)
    options: dict[str, Any] = {"bias": bias, "exclude": plain.item_ids[::2]}
    ranking = other.rank(query, k=9, policy=POLICIES[policy], seed=3, **options)
    for catalog in (plain, other):
        given = catalog.log_propensities(
            query, ranking.item_ids, policy=POLICIES[policy], **options
        )
        assert given == pytest.approx(ranking.log_propensities, abs=1e-5)


def test_a_batch_row_is_the_single_call() -> None:
    _, other, query = two_catalogs(200, words=True)
    bias = np.random.default_rng(1).standard_normal((3, 200))
    queries = np.array([query, -query, 2 * query])
    batch = other.rank_batch(queries, k=5, policy=fr.PlackettLuce(), seeds=[1, 2, 3], bias=bias)
    for i in range(3):
        single = other.rank(queries[i], k=5, policy=fr.PlackettLuce(), seed=i + 1, bias=bias[i])
        assert batch[i].item_ids.tolist() == single.item_ids.tolist()
        assert (batch[i].log_propensities == single.log_propensities).all()


# ---- Keeping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [False, True])
def test_an_opened_catalog_is_the_one_saved(tmp_path: Path, verify: bool) -> None:
    _, other, query = two_catalogs(333)
    other.save(tmp_path / "c")
    opened = fr.Catalog.open(tmp_path / "c", verify=verify)
    assert opened.version == other.version
    assert opened.item_ids.tolist() == other.item_ids.tolist()
    for policy in (fr.Deterministic(), fr.PlackettLuce(0.5)):
        a, b = (c.rank(query, k=12, policy=policy, seed=5) for c in (other, opened))
        assert a.item_ids.tolist() == b.item_ids.tolist()
        assert (a.log_propensities == b.log_propensities).all()


def test_the_version_tells_orders_apart_and_nothing_else() -> None:
    plain, other, _ = two_catalogs(100)
    vectors = np.random.default_rng(0).standard_normal((4, 2))
    versions = [
        fr.Catalog(range(4), vectors, prior=p).version
        for p in (None, [4, 3, 2, 2], [9, 8, 7, 6], [1, 2, 3, 4], [-4.5, -2, -1, 0])
    ]
    assert versions[0] == versions[1] == versions[2] != versions[3] == versions[4]
    assert plain.version != other.version


def test_rows_that_are_none_are_refused(tmp_path: Path) -> None:
    _, other, _ = two_catalogs(40)
    for name, value in (("rows", 0), ("rows", 41), ("rows", -1), ("panel_rows", 7)):
        arrays = {key: array.copy() for key, array in other._arrays.items()}
        arrays[name][:2] = value
        digests = {key: store.array_digest(array) for key, array in arrays.items()}
        store.write(tmp_path / "c", other._meta, arrays, digests)
        with pytest.raises(ValueError, match=rf"c: damaged: {name}-[0-9a-f]*\.npy: "):
            fr.Catalog.open(tmp_path / "c", verify=True)
    for missing in ("rows", "panel_rows"):
        arrays = {key: array for key, array in other._arrays.items() if key != missing}
        store.write(tmp_path / "c", other._meta, arrays, other._digests)
        with pytest.raises(ValueError, match="of rows and panel_rows one is missing"):
            fr.Catalog.open(tmp_path / "c")
    arrays = {**other._arrays, "rows": other._arrays["rows"].astype(np.int32)}
    digests = {key: store.array_digest(array) for key, array in arrays.items()}
    store.write(tmp_path / "c", other._meta, arrays, digests)
    with pytest.raises(ValueError, match="rows has shape"):
        fr.Catalog.open(tmp_path / "c")


# ---- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "reason"),
    [
        ([1.0, np.nan, 0.0], "prior: row 1: must be finite, got nan"),
        ([1.0, 0.0, -np.inf], "prior: row 2: must be finite, got -inf"),
        ([1.0, 2.0], r"prior: expected shape \(3,\), got \(2,\)"),
        ([[1.0], [2.0], [3.0]], r"prior: expected shape \(3,\), got \(3, 1\)"),
        (["a", "b", "c"], "prior: expected real numbers"),
        ([True, False, True], "prior: expected real numbers"),
    ],
)
def test_bad_priors_are_refused(prior: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fr.Catalog([1, 2, 3], np.ones((3, 2)), prior=prior)


def test_errors_speak_of_rows() -> None:
    prior = [0, 1, 2, 3]
    vectors = np.ones((4, 2))
    vectors[1, 1] = np.nan
    with pytest.raises(ValueError, match="vectors: row 1, column 1"):
        fr.Catalog(range(4), vectors, prior=prior)
    with pytest.raises(ValueError, match="item_ids: must be unique; rows 0 and 3"):
        fr.Catalog([7, 1, 2, 7], np.ones((4, 2)), prior=prior)
    with pytest.raises(ValueError, match="bias: index 2"):
        fr.Catalog(range(4), np.ones((4, 2)), bias=[0, 0, np.inf, 0], prior=prior)
