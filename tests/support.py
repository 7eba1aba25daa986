"""Guards that a wrong sampler cannot pass, and builders for what they look at.

A guard takes rankings as arrays of catalog positions and raises AssertionError. It does
not know who drew them, so that `test_support.py` can show for each guard that the right
samplers pass it and that the broken ones (`broken.py`) do not.

Error budget. Every statistical guard compares counts with a law known exactly and fails
where the upper tail probability of its chi-square is below `LIMIT` = 1e-9. The suite holds
about a thousand such comparisons, so a right library would fail one of them with
probability 1e-6 when the seeds were chosen; the seeds are fixed, so from then on the outcome
is the same on every run. Cells expect at least `MIN_EXPECTED` = 20 counts each: with
fewer, the chi-square distribution is a poor stand-in for the multinomial that far out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

import fastrank as fr
from fastrank import reference
from fastrank.policies import Sampler

LIMIT = 1e-9
MIN_EXPECTED = 20.0
# Rankings for each comparison, and for each broken sampler that must fail at this number.
N_DRAWS = 12_000

# Of every budget so much is spent: of draws, of Hypothesis's examples, of simulated logs.
# Sanitizers look at memory, not at laws, and spend a fraction; `make nightly` spends a multiple.
# Thresholds depend on counts as they come, so they hold for any.
DRAWS = float(os.environ.get("FASTRANK_TEST_DRAWS", "1"))

Array: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Positions: TypeAlias = npt.NDArray[np.int64]
Law: TypeAlias = tuple[Positions, Array]
Some: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]  # positions


# Chi-square


def merge_small(counts: Array, expected: Array) -> tuple[Array, Array]:
    """Pool cells, the rarest first, until each expects `MIN_EXPECTED` counts."""
    order = np.argsort(expected, kind="stable")
    pooled: list[list[float]] = [[0.0, 0.0]]
    for count, mean in zip(counts[order].tolist(), expected[order].tolist(), strict=True):
        if pooled[-1][1] >= MIN_EXPECTED:
            pooled.append([0.0, 0.0])
        pooled[-1][0] += count
        pooled[-1][1] += mean
    if len(pooled) > 1 and pooled[-1][1] < MIN_EXPECTED:
        count, mean = pooled.pop()
        pooled[-1][0] += count
        pooled[-1][1] += mean
    table = np.array(pooled)
    return table[:, 0], table[:, 1]


def chi_square_p_value(counts: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Upper tail probability of the counts under a law over the same cells.

    Cells that together expect less than `LIMIT` counts are judged without the chi-square:
    a single count there has, by Markov's inequality, a probability below `LIMIT`.
    """
    observed = np.asarray(counts, np.float64)
    law = np.asarray(probabilities, np.float64)
    assert observed.shape == law.shape
    assert abs(law.sum() - 1.0) < 1e-9, f"the law sums to {law.sum()!r}"
    expected = law * observed.sum()
    order = np.argsort(expected, kind="stable")
    never = order[np.cumsum(expected[order]) < LIMIT]
    if observed[never].any():
        return float(expected[never].sum())
    cells, means = merge_small(observed, expected)
    if len(cells) == 1:
        return 1.0
    statistic = float(((cells - means) ** 2 / means).sum())
    return float(chi2.sf(statistic, len(cells) - 1))


def order_counts(orders: Positions, law: Law) -> Array:
    """How often each ranking of the law was drawn; an AssertionError for one not in it."""
    rankings, _ = law
    assert orders.ndim == 2
    assert orders.shape[1] == rankings.shape[1], (
        f"rankings have {orders.shape[1]} places instead of {rankings.shape[1]}"
    )
    assert orders.min(initial=0) >= 0, "a negative position was ranked"
    base = int(max(rankings.max(initial=0), orders.max(initial=0))) + 1
    digits = base ** np.arange(rankings.shape[1], dtype=np.int64)
    codes, drawn = rankings @ digits, orders @ digits
    by_code = np.argsort(codes)
    at = by_code[np.minimum(np.searchsorted(codes[by_code], drawn), len(codes) - 1)]
    foreign = np.flatnonzero(codes[at] != drawn)
    assert not len(foreign), f"drawn but impossible: {orders[foreign[:3]].tolist()}"
    return np.bincount(at, minlength=len(codes)).astype(np.float64)


# Guards


def assert_law(orders: Positions, law: Law) -> None:
    """Ordered rankings follow the law: nothing impossible, chi-square above `LIMIT`."""
    counts = order_counts(orders, law)
    p_value = chi_square_p_value(counts, law[1])
    if p_value < LIMIT:
        expected = law[1] * len(orders)
        worst = np.argsort((counts - expected) ** 2 / np.maximum(expected, 1e-300))[::-1][:4]
        cells = ", ".join(
            f"{law[0][i].tolist()}: {counts[i]:.0f} for {expected[i]:.4g}" for i in worst
        )
        raise AssertionError(f"p = {p_value:.3g} over {len(orders)} rankings; {cells}")


def assert_ordered_law(
    orders: Positions,
    scores: npt.ArrayLike,
    k: int,
    policy: fr.Policy,
    eligible: npt.ArrayLike | None = None,
) -> None:
    """Ordered rankings follow the oracle's exact law for these scores."""
    assert_law(orders, reference.ranking_law(scores, k, policy, eligible))


def assert_first_position_law(first: Positions, probabilities: Array) -> None:
    """The item at the first place has this law, over a catalog too large for a cell per item.

    Two chi-squares: over deciles of probability mass from the likeliest item to the least
    likely (temperatures, heads, tails), and over 16 equal stretches of the catalog
    (chunks, floors, the order of the scan).
    """
    n = len(probabilities)
    likeliest_first = np.argsort(-probabilities, kind="stable")
    mass_before = np.cumsum(probabilities[likeliest_first]) - probabilities[likeliest_first] / 2
    decile = np.empty(n, np.int64)
    decile[likeliest_first] = np.clip(mass_before * 10, 0, 9).astype(np.int64)
    stretch = np.arange(n, dtype=np.int64) * 16 // n
    for name, cell_of in (("mass deciles", decile), ("catalog stretches", stretch)):
        cells = np.bincount(cell_of, weights=probabilities)
        counts = np.bincount(cell_of[first], minlength=len(cells))
        p_value = chi_square_p_value(counts, cells / cells.sum())
        assert p_value >= LIMIT, f"p = {p_value:.3g} over {name}: {counts.tolist()}"


def assert_independent(first: Positions, second: Positions, law: Law) -> None:
    """The top items of two users with the same scores are drawn independently.

    A noise that the users share makes them agree too often.
    """
    items = np.unique(law[0][:, 0])
    marginal = np.array([law[1][law[0][:, 0] == item].sum() for item in items])
    size = int(items.max()) + 1
    joint = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    p_value = chi_square_p_value(
        joint[np.ix_(items, items)].ravel(), np.outer(marginal, marginal).ravel()
    )
    assert p_value >= LIMIT, f"p = {p_value:.3g} for independent users"


def assert_well_formed(
    orders: npt.ArrayLike, n: int, k: int, eligible: npt.ArrayLike | None = None
) -> None:
    """min(k, eligible) places, none ineligible, none twice, no padding."""
    rows = np.atleast_2d(np.asarray(orders, np.int64))
    mask = np.ones(n, np.bool_) if eligible is None else np.asarray(eligible, np.bool_)
    places = min(k, int(mask.sum()))
    assert rows.shape[1] == places, f"{rows.shape[1]} places instead of {places}"
    assert ((rows >= 0) & (rows < n)).all(), "a position outside the catalog"
    assert mask[rows].all(), f"ineligible items were ranked: {np.unique(rows[~mask[rows]])}"
    in_order = np.sort(rows, axis=1)
    assert (in_order[:, 1:] != in_order[:, :-1]).all(), "an item was ranked twice"


def assert_log_propensities(
    log_propensities: npt.ArrayLike,
    scores: npt.ArrayLike,
    order: npt.ArrayLike,
    policy: fr.Policy,
    eligible: npt.ArrayLike | None = None,
    *,
    tolerance: float = 1e-5,
) -> None:
    """Never nan, +inf or above 0; within the tolerance of the oracle; -inf where it has -inf.

    Magnitudes reach 1e36 (scores of 1e30 at T = 1e-6), where float64 itself is coarser than
    any absolute tolerance: hence 1e-12 of the value on top.
    """
    actual = np.asarray(log_propensities, np.float64)
    expected = reference.log_propensities(scores, order, policy, eligible)
    assert actual.shape == expected.shape
    assert not np.isnan(actual).any(), f"nan in {actual}"
    assert (actual <= 0.0).all(), f"a log-propensity above 0 in {actual}"
    certain = np.isneginf(expected)
    np.testing.assert_array_equal(np.isneginf(actual), certain, err_msg=f"{actual}, {expected}")
    np.testing.assert_allclose(actual[~certain], expected[~certain], rtol=1e-12, atol=tolerance)


# Catalogs with known scores


@dataclass(frozen=True)
class Scored:
    """A catalog, the query that gives its items known scores, and filters as calls take them."""

    catalog: fr.Catalog
    query: npt.NDArray[np.float32]

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """The kernel's own scores, in catalog order."""
        return self.catalog.scores(self.query)

    @cached_property
    def _by_id(self) -> Positions:
        return np.argsort(np.asarray(self.catalog.item_ids))

    def positions(self, item_ids: npt.ArrayLike) -> Positions:
        """Catalog positions of the caller's ids."""
        ids, by_id = np.asarray(self.catalog.item_ids), self._by_id
        wanted = np.asarray(item_ids)
        at = by_id[np.minimum(np.searchsorted(ids[by_id], wanted), len(ids) - 1)]
        assert (ids[at] == wanted).all(), "an id that the catalog does not have"
        return at

    def ids(self, positions: Some) -> npt.NDArray[Any]:
        """The caller's ids of catalog positions."""
        return np.asarray(self.catalog.item_ids)[np.asarray(positions, np.int64)]

    def eligible(self, exclude: Some | None = None, allow: Some | None = None) -> Mask:
        """The mask that filters, given as positions, leave."""
        mask = np.full(len(self.catalog), allow is None)
        if allow is not None:
            mask[np.asarray(allow, np.int64)] = True
        if exclude is not None:
            mask[np.asarray(exclude, np.int64)] = False
        return mask

    def draw(
        self,
        k: int,
        policy: fr.Policy,
        n_draws: int,
        *,
        first_seed: int = 0,
        exclude: Some | None = None,
        allow: Some | None = None,
        bias: npt.ArrayLike | None = None,
    ) -> Positions:
        """Rankings for the seeds first_seed .. first_seed + n_draws - 1, as positions.

        `exclude` and `allow` are positions, too.

        Returns
        -------
        ndarray of int64, shape (n_draws, min(k, eligible))
            A fraction of the rows where the environment asks for it.
        """
        n_draws = max(20, int(n_draws * DRAWS))
        no_ids = None if exclude is None else self.ids(exclude)
        yes_ids = None if allow is None else self.ids(allow)
        batch = self.catalog.rank_batch(
            np.broadcast_to(self.query, (n_draws, len(self.query))),
            k,
            policy=policy,
            seeds=np.arange(n_draws, dtype=np.uint64) + np.uint64(first_seed),
            exclude=None if no_ids is None else [no_ids] * n_draws,
            allow=None if yes_ids is None else [yes_ids] * n_draws,
            bias=bias,
        )
        places = int(batch.counts[0])
        assert (batch.counts == places).all(), "rankings of one law differ in length"
        ranked: npt.NDArray[Any] = batch.item_ids[:, :places]
        return self.positions(ranked.ravel()).reshape(n_draws, places)


def shuffled_ids(n: int) -> npt.NDArray[np.int64]:
    """Ids that no position can be mistaken for: above n and in no order."""
    return np.random.default_rng(n).permutation(n) * 3 + 10 * n + 7


def scored(scores: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Scored:
    """A catalog of one dimension in which item i has the score ``scores[i]`` (plus its bias)."""
    column = np.asarray(scores, np.float32).reshape(-1, 1)
    catalog = fr.Catalog(shuffled_ids(len(column)), column, bias=bias)
    return Scored(catalog, np.ones(1, np.float32))


def random_scored(n: int, dim: int, seed: int, *, scale: float = 1.0, bias: bool = False) -> Scored:
    """A catalog of random vectors whose scores have about the standard deviation `scale`."""
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((n, dim)) * scale / np.sqrt(dim)).astype(np.float32)
    offsets = (rng.standard_normal(n) * scale).astype(np.float32) if bias else None
    catalog = fr.Catalog(shuffled_ids(n), vectors, bias=offsets)
    return Scored(catalog, rng.standard_normal(dim).astype(np.float32))


def heavy_tailed_scores(n: int) -> npt.NDArray[np.float32]:
    """Scores whose weights at T = 1 are Pareto with index 1.1: few items hold most of the mass."""
    return (np.random.default_rng(3).exponential(size=n) / 1.1).astype(np.float32)


# The laws that every sampler is held to, and every broken one breaks

POLICIES: dict[str, fr.Policy] = {
    "deterministic": fr.Deterministic(),
    "gumbel": fr.PlackettLuce(0.8, sampler="gumbel"),
    "sequential": fr.PlackettLuce(0.8, sampler="sequential"),
    "cached": fr.PlackettLuce(0.8, sampler="cached"),
    "epsilon_greedy": fr.EpsilonGreedy(0.35),
    "uniform": fr.Uniform(),
    "flat_tail": fr.FlatTail(0.8, m=3, factor=0.3),
    "best_first": fr.BestFirst(1, fr.PlackettLuce(0.8)),
}
SAMPLERS: tuple[Sampler, ...] = ("gumbel", "sequential", "cached")


@dataclass(frozen=True)
class LawCase:
    """Scores small enough to enumerate every ranking, and filters as positions."""

    name: str
    scores: tuple[float, ...]
    k: int
    exclude: tuple[int, ...] | None = None
    allow: tuple[int, ...] | None = None
    bias: tuple[float, ...] | None = None


SPREAD = (0.3, -1.2, 0.9, -0.4, 1.4, 0.0)
LAW_CASES = (
    LawCase("spread", SPREAD, 3),
    LawCase("spread, k = n", SPREAD[:5], 5),
    LawCase("spread, k > n", SPREAD[:4], 9),
    LawCase("ascending, k = 1", tuple(sorted(SPREAD)), 1),
    LawCase("negative", (-1.0, -3.0, -2.0, -5.0, -1.5), 3),
    LawCase("ties", (0.5,) * 5, 3),
    LawCase("exclude", SPREAD, 3, exclude=(4, 1)),
    LawCase("allow", SPREAD, 2, allow=(0, 1, 3, 5)),
    LawCase("allow and exclude", SPREAD, 3, exclude=(0, 4), allow=(0, 1, 2, 3, 4)),
    LawCase("bias", SPREAD, 2, bias=(1.0, 2.0, -1.0, 0.0, -2.0, 0.5)),
)
# Several panels of 16, the last one not full: several chunks where a chunk is one panel.
MANY = tuple((np.random.default_rng(5).standard_normal(37) * 1.5).round(3).tolist())
PANEL_CASES = (
    LawCase("panels", MANY, 2),
    LawCase("panels, ascending", tuple(sorted(MANY)), 2),
    LawCase("panels, exclude", MANY, 2, exclude=tuple(range(10, 30, 2))),
    LawCase("panels, allow", MANY, 2, allow=(0, 5, 15, 16, 17, 31, 32, 36)),
)


def same_ranking(a: fr.Ranking, b: fr.Ranking) -> bool:
    """Equal bit for bit in everything that a log would hold."""
    return (
        a.item_ids.tolist() == b.item_ids.tolist()
        and a.scores.tobytes() == b.scores.tobytes()
        and a.log_propensities.tobytes() == b.log_propensities.tobytes()
        and (a.log_propensity, a.log_norm) == (b.log_propensity, b.log_norm)
        and (a.seed, a.policy, a.n_eligible) == (b.seed, b.policy, b.n_eligible)
    )


def cover(cells: Sequence[Sequence[Hashable]], strength: int = 2) -> set[int]:
    """Which cells of a product cover it: any values that `strength` factors have together in some
    cell, they have together in one of these. 2: all pairs; 1: each value.

    Greedy, and so not the fewest: the next is the first of the cells that add most. With no more
    factors than `strength` it is all of them.
    """
    if max((len(cell) for cell in cells), default=0) <= strength:
        return set(range(len(cells)))
    parts = [set(combinations(enumerate(cell), strength)) for cell in cells]
    queue = [(-len(each), at) for at, each in enumerate(parts)]
    heapify(queue)
    met: set[Any] = set()
    chosen = set()
    while queue:
        added, at = heappop(queue)
        new = len(parts[at] - met)
        if new and new < -added:
            heappush(queue, (-new, at))  # others may add more by now
        elif new:
            met |= parts[at]
            chosen.add(at)
    return chosen


class Wrong:
    """A catalog of which one method does something else; the rest is the true one's."""

    def __init__(self, true: fr.Catalog, **methods: Callable[..., Any]) -> None:
        self._true, self._methods = true, methods

    def __getattr__(self, name: str) -> Any:
        if name in self._methods:
            return lambda *args, **kwargs: self._methods[name](self._true, *args, **kwargs)
        return getattr(self._true, name)

    def __len__(self) -> int:
        return len(self._true)
