"""Rankings from tables: laws over many cells, filters, depths, and what each costs.

The guards of `test_laws.py` draw by the sampler "cached", too, from catalogs of a cell or three.
Here are the cases that need more of them, or cells of several panels. Error budget: see support.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import (
    LIMIT,
    N_DRAWS,
    Scored,
    assert_first_position_law,
    assert_log_propensities,
    assert_ordered_law,
    chi_square_p_value,
    heavy_tailed_scores,
    random_scored,
    same_ranking,
    scored,
)

import fastrank as fr
from fastrank import _native, reference

PL = fr.PlackettLuce(1.0, sampler="cached")
FAR = -1e4  # of items that are not drawn: e to this power is nothing


def in_cells(cells: list[list[float]]) -> Scored:
    """A catalog whose i-th cell, a panel of 16, has items of these scores, and others far below."""
    scores = np.full(16 * len(cells), FAR)
    for i, those in enumerate(cells):
        scores[16 * i : 16 * i + len(those)] = those
    assert _native.table_size(len(scores)) == len(cells)
    return scored(scores)


def live(item: Scored) -> npt.NDArray[np.bool_]:
    return item.scores > FAR / 2


# Cells of 1, 2 and 5 items, beside some of none
SIZES = [[0.9], [-0.4, 0.3], [], [0.0, 0.5, -1.2, 0.1, 0.7], [], [-0.2]]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_law_over_cells(isa: str, k: int) -> None:
    item = in_cells(SIZES)
    assert_ordered_law(item.draw(k, PL, N_DRAWS), item.scores, k, PL, live(item))


@pytest.mark.sampled
@pytest.mark.parametrize("gap", [40.0, 90.0, 1000.0, 1700.0, 3000.0])
def test_law_below_a_head(isa: str, gap: float) -> None:
    """The head is in a cell by itself, in one with others, and two of it are in one cell."""
    for heads in ([0], [16], [48, 49], [0, 50, 80]):
        item = in_cells(SIZES)
        scores = item.scores.copy()
        scores[heads] += np.float32(gap)
        item = scored(scores)
        k = len(heads) + 2
        orders = item.draw(k, PL, N_DRAWS)
        assert set(orders[:, : len(heads)].ravel().tolist()) == set(heads)
        left = live(item)
        left[heads] = False
        assert_ordered_law(orders[:, len(heads) :], scores, 2, PL, left)


@pytest.mark.sampled
@pytest.mark.parametrize("cut", [[0], [48], [49], [48, 49, 50, 51], [16, 17], [80, 52]])
@pytest.mark.parametrize("beside", [200, 3])
def test_law_of_a_filter(isa: str, cut: list[int], beside: int) -> None:
    """Heads and tails of cells, whole cells; with so many cells that the table pays, and with few.

    Of few the ranking is what a pass draws.
    """
    scores = np.full(16 * (len(SIZES) + beside), FAR)
    scores[: 16 * len(SIZES)] = in_cells(SIZES).scores
    scores[-1] = 0.2
    item = scored(scores)
    left = live(item)
    left[cut] = False
    ids = item.ids(cut)
    made = item.catalog.rank(item.query, 3, policy=PL, seed=1, exclude=ids)
    if beside == 200 or len(cut) < 2:
        assert made.made_by == "table"
    assert_ordered_law(item.draw(3, PL, N_DRAWS, exclude=cut), item.scores, 3, PL, left)


def test_law_of_an_allow_list(isa: str) -> None:
    scores = np.random.default_rng(4).standard_normal(16 * 300).round(3)
    item = scored(scores)
    allow = [3, 17, 18, 400, 4000, 4799]
    made = item.catalog.rank(item.query, 3, policy=PL, seed=1, allow=item.ids(allow))
    assert (made.made_by, made.n_scored) == ("table", 6)
    orders = item.draw(3, PL, N_DRAWS, allow=allow)
    assert_ordered_law(orders, item.scores, 3, PL, item.eligible(allow=allow))


@pytest.mark.sampled
@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("sd", [0.3, 1.5, 4.0])
def test_law_over_cells_of_many_panels(storage: str, sd: float) -> None:
    """200,000 items, four panels a cell: deciles of mass, and stretches of the catalog; also of the
    second place, given the first."""
    rng = np.random.default_rng(6)
    vectors = (rng.standard_normal((200_000, 4)) * sd / 2).astype(np.float32)
    catalog = fr.Catalog(np.arange(len(vectors)), vectors, storage=storage)
    item = Scored(catalog, rng.standard_normal(4).astype(np.float32))
    assert _native.table_size(len(vectors)) == 3125
    orders = item.draw(2, PL, 2 * N_DRAWS)
    law = np.exp(item.scores.astype(np.float64) - reference.log_norm(item.scores, 1.0))
    assert_first_position_law(orders[:, 0], law / law.sum())
    # Its place among the others: uniform, if it follows their law.
    order = np.argsort(-law, kind="stable")
    before = np.empty(len(law))
    before[order] = np.cumsum(law[order]) - law[order]
    first, second = orders[:, 0], orders[:, 1]
    gone = np.where(before[first] < before[second], law[first], 0.0)
    u = rng.random(len(second))
    place = (before[second] - gone + u * law[second]) / (1.0 - law[first])
    counts = np.bincount(np.clip((place * 10).astype(int), 0, 9), minlength=10)
    assert chi_square_p_value(counts, np.full(10, 0.1)) >= LIMIT


@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000, 66_000, 140_000])
@pytest.mark.parametrize("temperature", [0.02, 0.3, 2.0, 1e6])
def test_propensities_are_those_of_the_oracle(isa: str, n: int, temperature: float) -> None:
    item = random_scored(n, 7, seed=n, bias=True)
    policy = fr.PlackettLuce(temperature, sampler="cached")
    cut = np.arange(0, n, 611)
    for seed, exclude in enumerate([None, cut, np.argsort(-item.scores)[: min(n - 1, 30)]]):
        ids = None if exclude is None else item.ids(exclude)
        ranking = item.catalog.rank(item.query, 20, policy=policy, seed=seed, exclude=ids)
        left = item.eligible(exclude=exclude)
        positions = item.positions(ranking.item_ids)
        assert_log_propensities(
            ranking.log_propensities, item.scores, positions, policy, left, tolerance=3e-6
        )
        if left.any():
            norm = reference.log_norm(item.scores, temperature, left)
            assert ranking.log_norm == pytest.approx(norm, abs=3e-6, rel=1e-12)


@pytest.mark.parametrize("depth", [40.0, 1000.0, 1700.0, 1900.0, 1e5])
def test_what_is_far_below_a_head_has_exact_propensities(isa: str, depth: float) -> None:
    """At most 1e-6 from the law of these scores: the docstring of `PlackettLuce` says so."""
    rng = np.random.default_rng(3)
    scores = rng.standard_normal(5000).astype(np.float32)
    scores[777] += np.float32(depth)
    item = scored(scores)
    for seed in range(5):
        ranking = item.catalog.rank(item.query, 20, policy=PL, seed=seed)
        positions = item.positions(ranking.item_ids)
        assert positions[0] == 777
        assert_log_propensities(ranking.log_propensities, scores, positions, PL, tolerance=1e-6)


# What a table is


def test_a_table_is_the_same_however_it_was_made(isa: str) -> None:
    rng = np.random.default_rng(1)
    for storage in ("float32", "int8"):
        vectors = rng.standard_normal((70_000, 19)).astype(np.float32)
        catalog = fr.Catalog(
            np.arange(70_000), vectors, bias=rng.standard_normal(70_000), storage=storage
        )
        queries = catalog._padded(rng.standard_normal((70, 19)).astype(np.float32))
        temperatures = rng.uniform(0.1, 2.0, 70)
        depths, tops = catalog._packed.make_tables(queries, temperatures, 3)
        for i in range(0, 70, 9):
            one, top = catalog._packed.make_tables(queries[i : i + 1], temperatures[i : i + 1])
            assert one.tobytes() == depths[i].tobytes()
            assert top.tobytes() == tops[i].tobytes()


def test_a_table_holds_the_masses_of_cells(isa: str) -> None:
    item = random_scored(140_000, 5, seed=2, bias=True)
    depths, tops = item.catalog._packed.make_tables(
        item.catalog._padded(item.query[None]), np.array([0.3])
    )
    scores = item.scores.astype(np.float64) / 0.3
    of_cell = np.split(scores, np.arange(64, len(scores), 64))
    best = scores.max()
    logs = np.array([best + np.log(np.exp(cell - best).sum()) for cell in of_cell])
    assert depths.shape == (1, len(logs))
    assert depths.min() == 0
    got = tops[0, 0] / 0.3 + tops[0, 1] - depths[0] * 2.0**-21
    np.testing.assert_allclose(got, logs, atol=2e-6)


def test_a_ranking_says_how_it_was_made() -> None:
    item = random_scored(100_000, 8, seed=5)
    rank = item.catalog.rank
    first = rank(item.query, 10, policy=PL, seed=1)
    assert first.made_by == "table"
    assert first.n_scored is not None
    assert 10 <= first.n_scored <= 10 * 32
    by_pass = rank(item.query, 10, policy=fr.PlackettLuce(1.0), seed=1)
    assert (by_pass.made_by, by_pass.n_scored) == ("pass", 100_000)
    batch = item.catalog.rank_batch(
        [item.query] * 3, 10, policy=[PL, fr.Uniform(), fr.BestFirst(2, PL)], seeds=[1, 2, 3]
    )
    assert batch.made_by == ("table", "pass", "table")
    assert batch[0].n_scored == first.n_scored
    assert same_ranking(batch[0], first)
    assert batch[2] == rank(item.query, 10, policy=fr.BestFirst(2, PL), seed=3)


def test_what_a_table_does_not_know_is_drawn_by_a_pass() -> None:
    """A bias of the call, or a filter that costs more than a pass: what `gumbel` draws."""
    item = random_scored(20_000, 8, seed=5)
    gumbel = fr.PlackettLuce(1.0)
    calls: list[dict[str, Any]] = [
        {"bias": np.linspace(0, 1, 20_000)},
        {"exclude": item.ids(np.arange(0, 20_000, 16))},
        {"allow": item.ids(np.arange(0, 20_000, 16))},
    ]
    for call in calls:
        own = item.catalog.rank(item.query, policy=PL, seed=3, **call)
        other = item.catalog.rank(item.query, policy=gumbel, seed=3, **call)
        assert own.made_by == "pass"
        assert own.item_ids.tolist() == other.item_ids.tolist()
        assert own.log_propensities.tobytes() == other.log_propensities.tobytes()
        many: dict[str, Any] = {
            name: [value] if name != "bias" else value for name, value in call.items()
        }
        batch = item.catalog.rank_batch([item.query], policy=PL, seeds=[3], **many)
        assert batch[0] == own


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads: int) -> None:
    rng = np.random.default_rng(8)
    catalog = fr.Catalog(np.arange(30_000), rng.standard_normal((30_000, 6)))
    queries = rng.standard_normal((40, 6))
    exclude = [rng.integers(0, 30_000, 200) for _ in queries]
    one, many = (
        catalog.rank_batch(queries, policy=PL, seeds=range(40), exclude=exclude, threads=count)
        for count in (1, threads)
    )
    assert one == many


def test_heavy_tails(isa: str) -> None:
    scores = heavy_tailed_scores(100_000)
    item = scored(scores)
    law = np.exp(scores.astype(np.float64))
    assert_first_position_law(item.draw(1, PL, N_DRAWS)[:, 0], law / law.sum())


# The guards see the mistakes that a table invites


def by_cells(
    rng: np.random.Generator,
    scores: npt.NDArray[np.float32],
    k: int,
    n_draws: int,
    eligible: npt.NDArray[np.bool_],
    mistake: str | None,
) -> npt.NDArray[np.int64]:
    """Rankings from the masses of cells, in float64 and without haste; right without a mistake."""
    weights = np.exp(scores.astype(np.float64) - scores.max())
    cell_of = np.arange(len(scores)) // 16
    n_cells = cell_of[-1] + 1
    whole = np.bincount(cell_of, weights, n_cells)
    orders = np.empty((n_draws, k), np.int64)
    for row in orders:
        left = eligible.copy()
        kept = whole.astype(np.float32)  # of the mistake that takes weights off it
        for place in range(k):
            mass = np.bincount(cell_of, np.where(left, weights, 0.0), n_cells)
            if mistake == "excluded items stay in the mass":
                shown = np.bincount(cell_of[row[:place]], weights[row[:place]], n_cells)
                mass = np.where(mass > 0, np.maximum(whole - shown, mass), 0.0)
            elif mistake == "a shown head is taken off":
                mass = np.maximum(kept, 0.0).astype(np.float64)
            elif mistake == "what is gone is drawn anew in its cell":
                mass = np.where(mass > 0, whole, 0.0)
            cell = rng.choice(n_cells, p=mass / mass.sum())
            own = np.where((cell_of == cell) & left, weights, 0.0)
            row[place] = rng.choice(len(own), p=own / own.sum())
            left[row[place]] = False
            kept[cell] -= np.float32(weights[row[place]])
    return orders


def _case(mistake: str | None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    scores = in_cells(SIZES).scores.copy()
    if mistake == "a shown head is taken off":
        scores[48] += np.float32(40.0)
    eligible = scores > FAR / 2
    if mistake == "excluded items stay in the mass":
        eligible[[49, 16]] = False
    return scores, eligible


def test_the_oracle_of_tables_is_right() -> None:
    for mistake in ("a shown head is taken off", "excluded items stay in the mass"):
        scores, eligible = _case(mistake)
        orders = by_cells(np.random.default_rng(1), scores, 2, 4000, eligible, None)
        assert_ordered_law(orders, scores, 2, PL, eligible)


@pytest.mark.law
@pytest.mark.parametrize(
    "mistake",
    [
        "a shown head is taken off",
        "excluded items stay in the mass",
        "what is gone is drawn anew in its cell",
    ],
)
def test_the_guards_reject_mistakes_with_tables(mistake: str) -> None:
    scores, eligible = _case(mistake)
    orders = by_cells(np.random.default_rng(2), scores, 3, 4000, eligible, mistake)
    with pytest.raises(AssertionError, match="p = "):
        assert_ordered_law(orders, scores, 3, PL, eligible)
