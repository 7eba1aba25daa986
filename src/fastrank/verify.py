"""Check that a model, on this machine, draws from the law whose probabilities it reports.

The checks compare what the catalog does with what its scores imply. They take the scores as given
(`Catalog.scores`, float32) and derive every law from them in float64 with `fastrank.reference`,
which shares no code with the native core.

**Error budget.** Every chi-square test is done at level `FALSE_ALARM` / (number of such tests), so
that a correct sampler fails a whole run with probability at most `FALSE_ALARM` over the seeds. The
seeds are fixed, so repeating a run on the same files gives the same verdict.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from fastrank import reference
from fastrank.arraytypes import Float32Array, FloatArray, IntArray, Mask
from fastrank.calibration import temperature_for_overlap
from fastrank.catalog import Catalog
from fastrank.model import Model
from fastrank.opening import open_directory
from fastrank.policies import (
    INFERENCE_TYPES,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    BestFirst,
    FlatTail,
    PlackettLuce,
    Policy,
    law_of,
    policy,
    sampler_name,
)
from fastrank.ranking import Ranking
from fastrank.reference import RuleMasks
from fastrank.rules import Rules
from fastrank.scoring import ScoreFunction

__all__ = [
    "FALSE_ALARM",
    "PROPENSITY_LIMIT",
    "Check",
    "Verdict",
    "goodness_of_fit",
    "label",
    "verify",
    "verify_catalog",
]

FALSE_ALARM = 1e-6
"""Probability that a correct sampler fails a run."""
PROPENSITY_LIMIT = 1e-5
"""Largest accepted error of a log-propensity, beyond the ranking's own `log_norm_error`."""

_SUBSET = 5  # items: 5 * 4 * 3 = 60 ordered rankings of 3
_MOST_OWED = 200  # places tried beyond those of shares, until pins and windows fit
_PLACES = 3
_GROUPS = 10
_LANES = 16  # items are packed in 16 lanes: an error in a lane shows in the position modulo 16
_FULL_K = 10
_EPSILON = 0.3
_OVERLAP = 0.7
_DRAWS_TIMES_ITEMS = 500_000_000  # limits draws that each cost a pass over the catalog to seconds
_MIN_DRAWS = 1000
_MIN_CELL = 5.0
_TABLES = 16  # users whose tables are recomputed
_SCORED = 500  # items whose scores are also computed in Python
_SCORE_JUMPS = 0.01  # share of these whose scores may differ, since expressions can jump
_SCORE_LIMIT = 1e-3  # error relative to the largest score: subtraction in float32 loses digits
_FEW_CANDIDATES, _FACTOR = 2, 0.3  # of a flat tail over a few items
_RULED_CELLS = 100_000  # places x items for which the oracle computes what rules allow: a second
_FEW_RULED, _RULED_PLACES = 6, 5  # items under rules, or more if rules name more; their places
_ENUMERATED = 3000  # rankings
_BINS = 20  # of a probability integral transform
_WRONG_SETS = 0.01  # share of items: near a jump, float32 may fall on the other side
_CANDIDATES = 0.1  # share of all items, as over the full catalog

Advance: TypeAlias = Callable[[str, int, int], None]  # what is being checked, steps done, all steps


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its result.

    Attributes
    ----------
    name : str
        ``files``, ``tables``, ``index``, ``rankings``, ``first place``, ``sum``, ``propensities``,
        ``same seed`` or ``filters``; for rules also ``sets`` and ``places``.
    policy : Policy or None
        None for ``files``, ``tables``, ``index`` and ``sets``.
    passed : bool
    detail : str
        A line that describes the result.
    p_value : float or None
        P-value of a chi-square test, which fails below the verdict's `p_limit`.
    error : float or None
        The largest difference, if numbers were compared.
    rules : Rules or None
        The rules of the rankings checked.
    """

    name: str
    policy: Policy | None
    passed: bool
    detail: str
    p_value: float | None = None
    error: float | None = None
    rules: Rules | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one run.

    Attributes
    ----------
    checks : tuple of Check
    p_limit : float or None
        Level of each chi-square test; None if none was done.
    draws, full_draws : int
        Rankings drawn for each test: at most, and if each costs a pass over the catalog.
    n_items : int
    catalog_version : str
    """

    checks: tuple[Check, ...]
    p_limit: float | None = None
    draws: int = 0
    full_draws: int = 0
    n_items: int = 0
    catalog_version: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)


def verify(
    path: Path,
    *,
    draws: int = 20_000,
    advance: Advance | None = None,
    functions: Sequence[ScoreFunction] = (),
    rules: Sequence[Rules] = (),
    params: Mapping[str, Any] | None = None,
) -> Verdict:
    """Check a model directory: its files' hashes, then its catalog with users' vectors as queries.

    Parameters
    ----------
    path : Path
        A model directory, or a catalog directory (queries are then random).
    draws : int
        Rankings drawn for each chi-square test; at least 1,000.
    advance : callable, optional
        Called with what is being checked, the number of steps done, and of all steps.
    functions : sequence of ScoreFunction
        As for `Model.open`.
    rules, params
        As in `verify_catalog`.

    Returns
    -------
    Verdict
        If a file is damaged, no other checks follow.

    Raises
    ------
    ValueError
        If an argument is invalid, or rules do not fit the catalog; the message names the argument
        and the value.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> folder = Path(tempfile.mkdtemp(), "catalog")
    >>> fr.Catalog(range(50), np.random.default_rng(0).standard_normal((50, 4))).save(folder)
    >>> found = verify(folder, draws=1000)
    >>> found.passed, found.failures
    (True, ())
    """
    if draws < _MIN_DRAWS:
        raise ValueError(f"draws: got {draws}; expected at least {_MIN_DRAWS}")
    try:
        catalog, model = open_directory(path, verify=True, functions=functions)
    except (ValueError, OSError) as error:
        return Verdict(checks=(Check("files", None, False, str(error)),))
    files = [Check("files", None, True, "every file has the hash that its manifest states")]
    if model is not None and model.table_temperature is not None:
        files.append(_tables(model))
    if model is None:
        rng = np.random.default_rng(0)
        queries = [rng.standard_normal(catalog.dim, dtype=np.float32) for _ in range(3)]
        temperature = None
    else:
        rows = _rows(model)
        queries = [np.array(model.user_vectors[row]) for row in rows]
        temperature = _temperature(model, rows[0])
    if catalog.index is not None:
        files.append(_index(catalog, queries))
        if not files[-1].passed:
            return Verdict(checks=tuple(files))
    if catalog.score is not None:
        files.append(_score(catalog, queries))
    verdict = verify_catalog(
        catalog,
        queries,
        draws=draws,
        temperature=temperature,
        advance=advance,
        rules=rules,
        params=params,
    )
    return Verdict(
        checks=(*files, *verdict.checks),
        p_limit=verdict.p_limit,
        draws=verdict.draws,
        full_draws=verdict.full_draws,
        n_items=verdict.n_items,
        catalog_version=verdict.catalog_version,
    )


def verify_catalog(
    catalog: Catalog,
    queries: Sequence[Float32Array],
    *,
    draws: int = 20_000,
    temperature: float | None = None,
    advance: Advance | None = None,
    rules: Sequence[Rules] = (),
    params: Mapping[str, Any] | None = None,
) -> Verdict:
    """Check the samplers and propensities of an open catalog under every inference type but "auto".

    Parameters
    ----------
    catalog : Catalog
    queries : sequence of ndarray of float32, shape (d,)
        A subset of items is drawn for each query; the first is used on the full catalog.
    draws : int
        Rankings drawn for each chi-square test. If each costs a pass over a large catalog (first
        places, and the sequential sampler), fewer are drawn, but at least 1,000.
    temperature : float, optional
        Temperature on the full catalog. By default it keeps 70 % of the first query's best items.
    advance : callable, optional
        As for `verify`.
    rules : sequence of Rules
        Each is also checked for the first query, under every inference type that can draw by it:
        the items that expressions hold for; rankings of a few items that the rules concern, against
        their enumerated law if it is small, and place by place, by the probability integral
        transform of the conditional law; and rankings of up to 10,000 items with their second page,
        whose propensities must equal the oracle's.
    params : mapping, optional
        Parameters of the rules' expressions; each gets those that it names.

    Returns
    -------
    Verdict

    Raises
    ------
    ValueError
        If rules do not fit the catalog, or no policy can draw by them.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(50), rng.standard_normal((50, 4)))
    >>> verify_catalog(catalog, [np.ones(4, np.float32)], draws=1000).passed
    True
    """
    ruled = _all_ruled(catalog, queries[0], rules, params or {})
    n = len(catalog)
    full_draws = _affordable(draws, n)
    subjects = [_Subject.of(catalog, query) for query in queries]
    subsets = [_subset(subject, i) for i, subject in enumerate(subjects)]
    k = max(1, min(_FULL_K, n // 2))
    if temperature is None:
        temperature = temperature_for_overlap(subjects[0].scores, k, _OVERLAP)
    policies = _policies(temperature, n)
    if catalog.score is not None:  # a flat tail refuses scores of one's own
        policies = [each for each in policies if not isinstance(each, FlatTail)]
    n_steps = (len(queries) + 1 + len(ruled)) * len(policies)
    step = 0
    checks: list[Check] = []
    for number, full in enumerate(policies):
        seeds = _Seeds(number)
        name = label(full)
        for subject, subset in zip(subjects, subsets, strict=True):
            if advance:
                advance(f"{name}, {len(subset)} items", step, n_steps)
            step += 1
            small = full.at_temperature(_subset_temperature(subject.scores[subset]))
            if isinstance(small, FlatTail):
                small = replace(small, m=_FEW_CANDIDATES)
            checks.append(_rankings(subject, subset, small, _enough(small, draws, n), seeds))
            checks.append(_sum(subject, subset, small))
        if advance:
            advance(f"{name}, {n:,} items", step, n_steps)
        step += 1
        first_draws = min(full_draws, _enough(full, draws, n))
        checks += _first_place(subjects[0], full, first_draws, seeds)
        checks.append(_propensities(subjects[0], full, k, seeds))
        checks.append(_same_seed(subjects[0], full, k, seeds))
        checks.append(_filters(subjects[0], full, k, seeds))
    for number, one in enumerate(ruled, 1):
        taken = [full for full in policies if one.takes(full)]
        if not taken:
            raise ValueError(f"rules: no inference type takes all of them together: {one.rules!r}")
        checks.append(one.sets_are_right())
        for at, full in enumerate(policies):
            if advance:
                advance(f"{label(full)}, under rules", step, n_steps)
            step += 1
            if full in taken:
                seeds = _Seeds(number * len(policies) + at)
                checks += _under_rules(one, full, k, _enough(full, draws // 2, n), seeds)
    p_limit = FALSE_ALARM / sum(check.p_value is not None for check in checks)
    return Verdict(
        checks=tuple(_judged(check, p_limit) for check in checks),
        p_limit=p_limit,
        draws=draws,
        full_draws=full_draws,
        n_items=n,
        catalog_version=catalog.version,
    )


def label(tested: Policy) -> str:
    """Describe a policy: its inference type, and its head if it has one.

    Examples
    --------
    >>> import fastrank as fr
    >>> label(fr.Uniform())
    'uniform'
    """
    if not isinstance(tested, FlatTail):
        law_of(tested)  # raises if it has no law
    head = tested.params.get("head")
    return f"{tested.inference_type}, head {head}" if head else tested.inference_type


def goodness_of_fit(
    counts: npt.ArrayLike, probabilities: npt.ArrayLike
) -> tuple[float, int, float]:
    """Do Pearson's chi-square test of counts against a fully specified law.

    Cells with expected counts below 5 are pooled, smallest first, until the pool expects 5. A
    count in a cell of probability 0 gives p = 0.

    Parameters
    ----------
    counts : array_like of int, shape (m,)
    probabilities : array_like of float, shape (m,)
        Summing to 1.

    Returns
    -------
    statistic : float
    degrees : int
        0 if pooling left one cell: the test is void, and p is 1.
    p_value : float
        Upper tail.

    Examples
    --------
    >>> goodness_of_fit([50, 50], [0.5, 0.5])
    (0.0, 1, 1.0)
    """
    observed = np.asarray(counts, np.float64)
    expected = np.asarray(probabilities, np.float64) * observed.sum()
    if observed[expected == 0].any():
        return math.inf, 1, 0.0
    order = np.argsort(expected)
    observed, expected = observed[order], expected[order]
    running = np.cumsum(expected)
    pooled = int(np.searchsorted(running, _MIN_CELL)) + 1 if expected[0] < _MIN_CELL else 1
    observed = np.concatenate([[observed[:pooled].sum()], observed[pooled:]])
    expected = np.concatenate([[expected[:pooled].sum()], expected[pooled:]])
    degrees = len(expected) - 1
    if degrees == 0:
        return 0.0, 0, 1.0
    statistic = float(np.sum((observed - expected) ** 2 / expected))
    return statistic, degrees, float(stats.chi2.sf(statistic, degrees))


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """A catalog under one query, which all checks use."""

    catalog: Catalog
    query: Float32Array
    scores: FloatArray
    ids: npt.NDArray[Any]
    by_id: IntArray  # the permutation that sorts the ids

    @classmethod
    def of(cls, catalog: Catalog, query: Float32Array) -> _Subject:
        scores = catalog.scores(query).astype(np.float64)
        ids = np.asarray(catalog.item_ids)
        return cls(catalog, query, scores, ids, np.argsort(ids, kind="stable"))

    def as_drawn(
        self, full: Policy, left: Mask | None = None, exclude: npt.NDArray[Any] | None = None
    ) -> tuple[FloatArray, Policy]:
        """Return scores and a policy of the same law: a flat tail is a softmax of other scores."""
        if not isinstance(full, FlatTail):
            return self.scores, full
        rows, found = self.catalog._candidates(self.query, full.m, exclude)
        scores = self.scores.copy()
        if found is not None:
            scores[rows] = found
        changed = reference.flat_tail_scores(scores, full, rows, left)
        return changed, PlackettLuce(full.temperature)

    def positions(self, item_ids: npt.NDArray[Any]) -> IntArray:
        return self.by_id[np.searchsorted(self.ids, item_ids, sorter=self.by_id)]


def _rankings(
    subject: _Subject, subset: IntArray, small: Policy, draws: int, seeds: _Seeds
) -> Check:
    """Test ordered rankings of a few allowed items against their enumerated law."""
    ids = subject.ids[subset]
    rankings, law = reference.ranking_law(subject.scores[subset], _PLACES, small)
    cell = {tuple(ids[row].tolist()): i for i, row in enumerate(rankings)}
    counts = np.zeros(len(cell), np.int64)
    for seed in seeds.take(draws):
        ranking = subject.catalog.rank(subject.query, k=_PLACES, policy=small, seed=seed, allow=ids)
        drawn = cell.get(tuple(ranking.item_ids.tolist()))
        if drawn is None:
            shown = ", ".join(map(str, ranking.item_ids.tolist()))
            detail = f"seed {seed} drew {shown}: not a ranking of the {len(ids)} allowed items"
            return Check("rankings", small, False, detail, p_value=0.0)
        counts[drawn] += 1
    return _tested("rankings", small, counts, law, f"{len(cell)} rankings of {len(ids)} items")


def _sum(subject: _Subject, subset: IntArray, small: Policy) -> Check:
    """Check that probabilities of all rankings of a few items are as enumerated and sum to 1."""
    ids = subject.ids[subset]
    rankings, law = reference.ranking_law(subject.scores[subset], _PLACES, small)
    given = [
        subject.catalog.log_propensities(subject.query, ids[row], policy=small, allow=ids).sum()
        for row in rankings
    ]
    total = float(np.exp(given).sum())
    error = float(np.max([abs(total - 1.0), *np.abs(np.exp(given) - law)]))
    detail = f"the probabilities of all {len(law)} rankings sum to {total:.12g}"
    return Check("sum", small, error <= PROPENSITY_LIMIT, detail, error=error)


def _first_place(subject: _Subject, full: Policy, draws: int, seeds: _Seeds) -> list[Check]:
    """Test the item in the first place, over the full catalog, against its law in 3 groupings."""
    n = len(subject.scores)
    law = _first_place_law(*subject.as_drawn(full))
    first = [
        subject.catalog.rank(subject.query, k=1, policy=full, seed=seed).item_ids[0]
        for seed in seeds.take(draws)
    ]
    drawn = subject.positions(np.array(first))
    groupings = {
        "mass deciles by score": _deciles(law, np.argsort(-subject.scores, kind="stable")),
        "mass deciles by place in the catalog": _deciles(law, np.arange(n)),
        "position modulo 16": np.arange(n) % _LANES,
    }
    return [
        _tested(
            "first place",
            full,
            np.bincount(group[drawn], minlength=int(group.max()) + 1),
            np.bincount(group, weights=law),
            name,
        )
        for name, group in groupings.items()
    ]


def _first_place_law(scores: FloatArray, full: Policy) -> FloatArray:
    """Compute P(the first place shows item i), shape (n,), in float64."""
    law = law_of(full)
    explore = law.explore_at(0)
    result = explore * np.exp(
        scores / law.temperature - reference.log_norm(scores, law.temperature)
    )
    result[scores.argmax()] += 1.0 - explore
    return np.asarray(result, np.float64)


def _propensities(subject: _Subject, full: Policy, k: int, seeds: _Seeds) -> Check:
    """Compare what `rank` reports with `log_propensities` of the same items, and with float64."""
    worst = 0.0
    scores, same = subject.as_drawn(full)
    for seed in seeds.take(3):
        ranking = subject.catalog.rank(subject.query, k=k, policy=full, seed=seed)
        positions = subject.positions(ranking.item_ids)
        fault = _fault(ranking, subject.scores, positions, k)
        if fault:
            return Check("propensities", full, False, f"seed {seed}: {fault}")
        given = subject.catalog.log_propensities(subject.query, ranking.item_ids, policy=full)
        exact = reference.log_propensities(scores, positions, same)
        differences = [np.abs(ranking.log_propensities - other).max() for other in (given, exact)]
        if ranking.log_norm is not None:
            exact_norm = reference.log_norm(scores, law_of(same).temperature)
            differences.append(abs(ranking.log_norm - exact_norm))
        # np.max, unlike max, lets a nan through, and a nan fails the comparison below.
        worst = float(np.max([worst, np.max(differences) - ranking.log_norm_error]))
    detail = f"reported log-propensities are within {worst:.1e} of those in float64"
    return Check("propensities", full, worst <= PROPENSITY_LIMIT, detail, error=worst)


def _fault(ranking: Ranking, scores: FloatArray, positions: IntArray, k: int) -> str | None:
    """Say what is wrong with a ranking by itself; None if nothing is."""
    different = len(np.unique(positions))
    if different != k or len(ranking) != k:
        return f"{len(ranking)} places with {different} different items for k = {k}"
    own = scores[positions]
    # An index sums inner products in another order than the catalog.
    off = 1e-5 * np.abs(scores).max() if ranking.made_by == "index" else 0.0
    if not (np.abs(ranking.scores - own) <= off).all():
        return "the scores are not those of the items"
    if not np.all(ranking.log_propensities <= 0):  # a nan fails this too
        return "a log-propensity is above 0 or not a number"
    if abs(ranking.log_propensity - ranking.log_propensities.sum()) > 1e-9:
        return "the ranking's log-propensity is not the sum of its places'"
    if ranking.n_eligible != len(scores):
        return f"n_eligible is {ranking.n_eligible}, not {len(scores)}"
    return None


def _same_seed(subject: _Subject, full: Policy, k: int, seeds: _Seeds) -> Check:
    """Check that a seed gives one ranking with one set of propensities, alone and in a batch."""
    seed = seeds.take(1)[0]
    batch = subject.catalog.rank_batch(
        np.stack([subject.query] * 2), k=k, policy=full, seeds=[seed, seed]
    )
    single = [subject.catalog.rank(subject.query, k=k, policy=full, seed=seed) for _ in range(2)]
    draws = {(tuple(r.item_ids.tolist()), r.log_propensities.tobytes()) for r in (*single, *batch)}
    detail = "one seed gives one ranking, bit for bit, alone and in a batch"
    return Check("same seed", full, len(draws) == 1, detail)


def _filters(subject: _Subject, full: Policy, k: int, seeds: _Seeds) -> Check:
    """Check that excluded items are never shown, and that propensities are those of the rest."""
    n = len(subject.scores)
    out = np.argsort(-subject.scores, kind="stable")[: min(3, n - 1)]
    left = np.ones(n, np.bool_)
    left[out] = False
    worst = 0.0
    for i, seed in enumerate(seeds.take(20)):
        ranking = subject.catalog.rank(
            subject.query, k=k, policy=full, seed=seed, exclude=subject.ids[out]
        )
        positions = subject.positions(ranking.item_ids)
        if not left[positions].all() or ranking.n_eligible != left.sum():
            return Check("filters", full, False, f"seed {seed}: an excluded item took part")
        if i == 0:
            scores, same = subject.as_drawn(full, left, subject.ids[out])
            exact = reference.log_propensities(scores, positions, same, left)
            difference = np.abs(ranking.log_propensities - exact).max()
            worst = float(np.max([0.0, difference - ranking.log_norm_error]))
    detail = f"the best {len(out)}, excluded, never came; propensities within {worst:.1e}"
    return Check("filters", full, worst <= PROPENSITY_LIMIT, detail, error=worst)


# ---- Rules -----------------------------------------------------------------------------------


class _Ruled:
    """Rules in the oracle's form: groups, sets and pins of some items.

    Items are rows in catalog order; the oracle numbers them from 0, in ascending order.
    """

    def __init__(
        self, catalog: Catalog, query: Float32Array, rules: Rules, params: Mapping[str, Any]
    ) -> None:
        self.catalog, self.query, self.rules = catalog, query, rules
        self.params = {name: value for name, value in params.items() if name in rules.names}
        bound = catalog._bind_rules(rules, None, self.params, catalog.features)
        assert bound is not None  # since there are rules
        self._bound = bound.bound
        self._position = catalog._by_row(np.arange(len(catalog)))
        pins = self._bound.pins
        self._pins = {at: int(np.flatnonzero(self._position == p)[0]) for at, p in pins.items()}
        self._where = np.ones(len(catalog), np.bool_)
        if rules.where is not None:
            self._where = self._holds(rules.where)
        self.owed = self._owed()

    def _owed(self) -> int:
        """The fewest places for which no policy refuses the shares, pins and windows."""
        owed = sum(self.rules.at_least.values())
        for k in range(owed, owed + _MOST_OWED if owed else 1):
            with contextlib.suppress(ValueError):
                self._bound.check(PlackettLuce(1.0), k)
                return k
        return owed

    def takes(self, full: Policy) -> bool:
        if isinstance(full, FlatTail) and self.catalog.index is not None:
            return False  # the oracle's candidates are the best items, not those of an index
        with contextlib.suppress(ValueError):
            self._bound.check(full, max(_PLACES, self.owed))
            return True
        return False

    def sets_are_right(self) -> Check:
        """Compare the items that expressions hold for with Python's evaluation."""
        some = self.some(_RULED_CELLS // _FULL_K)
        texts = [self.rules.where] if self.rules.where else []
        texts += [*self.rules.at_least, *self.rules.pin_where.values()]
        texts += [*self.rules.boost, *self.rules.boost_score]
        worst, features = 0.0, self.catalog.features
        for text in dict.fromkeys(texts):
            names = self.rules.expression(text).names
            columns = {
                name: features.entries(name, self._position[some])
                for name in names
                if features is not None and features.kind(name) is not None
            }
            params = {name: each for name, each in self.params.items() if name in names}
            right = reference.expression_scores(text, np.zeros(len(some)), columns, params) != 0.0
            worst = max(worst, float((right != self._holds(text)[some]).mean()))
        detail = f"expressions differ from Python for {worst:.2%} of {len(some)} items"
        return Check("sets", None, worst <= _WRONG_SETS, detail, error=worst, rules=self.rules)

    def _holds(self, text: str) -> Mask:
        mask: Mask = self.catalog._by_row(self._bound._mask(self.rules, text))
        return mask

    def some(self, most: int) -> IntArray:
        """Return so many items, or all, and the pinned ones, ascending."""
        n = len(self.catalog)
        if n <= most:
            return np.arange(n)
        drawn = np.random.default_rng(0).choice(n, most, replace=False)
        return np.union1d(drawn, np.array([*self._pins.values()], np.int64))

    def few(self, rng: np.random.Generator) -> tuple[IntArray, int]:
        """Return items that the rules concern, ascending, and a number of places."""
        n, bound = len(self.catalog), self._bound
        eligible = self._where
        chosen = set(self._pins.values())

        def add(count: int, mask: Mask) -> None:
            taken = np.fromiter(chosen, np.int64, len(chosen))
            left = np.setdiff1d(np.flatnonzero(mask), taken)
            chosen.update(rng.choice(left, max(0, min(count, len(left))), replace=False).tolist())

        for rule in bound.columns:
            most = min(each for each in (rule.cap, rule.window and rule.window[0], 2) if each)
            sizes = [rule.groups.size(group) for group in range(rule.groups.n_groups)]
            for group in np.argsort(sizes)[::-1][:2].tolist():
                mask = np.zeros(n, np.bool_)
                mask[rule.groups.items(group)] = True
                add(most + 1, self.catalog._by_row(mask) & eligible)
        for text, share in self.rules.at_least.items():
            add(share + 1, self._holds(text) & eligible)
        for text in self.rules.pin_where.values():
            add(2, self._holds(text) & eligible)
        add(1, ~eligible)
        add(_FEW_RULED - len(chosen), eligible)
        pinned = [*bound.pins, *bound.pin_sets]
        k = max(_PLACES, self.owed, min(_RULED_PLACES, max(pinned, default=0) + 1))
        return np.array(sorted(chosen), np.int64), k

    def oracle(self, items: IntArray, after: Sequence[int] = ()) -> tuple[Mask, RuleMasks]:
        """Return which items filters leave, and the rules for these; `after` is the oracle's."""
        bound, rules = self._bound, self.rules
        at = {row: local for local, row in enumerate(items.tolist())}
        groups: dict[str, Sequence[Collection[Hashable]]] = {}
        for rule in bound.columns:
            features = self.catalog.features
            assert features is not None  # since there are columns
            entries = features.entries(rule.name, self._position[items])
            groups[rule.name] = [_groups_of(entry) for entry in entries]
        masks = RuleMasks(
            groups=groups,
            cap=rules.cap,
            window=rules.window,
            at_least=[(self._holds(text)[items], q) for text, q in rules.at_least.items()],
            decay=rules.decay,
            pin={place: at[row] for place, row in self._pins.items()},
            pin_where={
                place - 1: self._holds(text)[items] for place, text in rules.pin_where.items()
            },
            on_empty=rules.on_empty,
            after=after,
        )
        return self._where[items], masks

    def scores(self, full: Policy) -> FloatArray:
        """Return the scores of all items, with boosts."""
        bias = np.zeros(len(self.catalog))
        for text, odds in self.rules.boost.items():
            bias += law_of(full).temperature * math.log(odds) * self._holds(text)
        for text, added in self.rules.boost_score.items():
            bias += added * self._holds(text)
        return self.catalog.scores(self.query, bias=bias).astype(np.float64)

    def rank(self, k: int, full: Policy, seed: int, **call: Any) -> Ranking:
        return self.catalog.rank(
            self.query, k, policy=full, seed=seed, rules=self.rules, params=self.params, **call
        )


def _groups_of(entry: Any) -> Collection[Hashable]:
    if isinstance(entry, list):
        return frozenset(entry)
    if isinstance(entry, bool):
        return frozenset([True]) if entry else frozenset()
    return frozenset() if entry is None else frozenset([entry])


def _all_ruled(
    catalog: Catalog,
    query: Float32Array,
    rules: Sequence[Rules],
    params: Mapping[str, Any],
) -> list[_Ruled]:
    unknown = [name for name in params if not any(name in each.names for each in rules)]
    if unknown:
        raise ValueError(f"params: {unknown[0]!r} is not a parameter of the rules")
    found = []
    for i, each in enumerate(rules):
        try:
            found.append(_Ruled(catalog, query, each, params))
        except ValueError as error:
            text = str(error).removeprefix("rules: ")
            raise ValueError(f"rules[{i}]: {text}") from None
    return found


def _under_rules(ruled: _Ruled, full: Policy, k: int, draws: int, seeds: _Seeds) -> list[Check]:
    items, places = ruled.few(np.random.default_rng([len(ruled.catalog), seeds.take(1)[0] >> 32]))
    small = full.at_temperature(_subset_temperature(ruled.scores(full)[items]))
    if isinstance(small, FlatTail):
        small = replace(small, m=_FEW_CANDIDATES)
    checks = _law_under_rules(ruled, items, places, small, draws, seeds)
    checks.append(_propensities_under_rules(ruled, full, max(k, ruled.owed), seeds))
    checks.append(_same_seed_under_rules(ruled, full, max(k, ruled.owed), seeds))
    return [replace(check, rules=ruled.rules) for check in checks]


def _law_under_rules(
    ruled: _Ruled, items: IntArray, k: int, small: Policy, draws: int, seeds: _Seeds
) -> list[Check]:
    """Test rankings of a few items against their enumerated law, and each place by the oracle.

    The place test is a probability integral transform: given the items above, the distribution
    function of a place's law at the item shown, with a uniform part of its step, is uniform.
    """
    ids = np.asarray(ruled.catalog.item_ids)[items]
    scores = ruled.scores(small)[items]
    eligible, masks = ruled.oracle(items)
    at = {each: local for local, each in enumerate(ids.tolist())}
    n_rankings = math.perm(int(eligible.sum()), min(k, int(eligible.sum())))
    known: dict[tuple[int, ...], FloatArray] = {}

    def law_behind(prefix: tuple[int, ...]) -> FloatArray:
        if prefix not in known:
            known[prefix] = np.exp(reference.log_next(scores, prefix, k, small, eligible, masks))
        return known[prefix]

    places = min(k, int(masks.eligible(eligible).sum()))
    drawn: list[tuple[int, ...]] = []
    transforms: list[list[float]] = [[] for _ in range(places)]
    uniform = np.random.default_rng([seeds.take(1)[0] >> 32, 1])
    for seed in seeds.take(draws):
        ranking = ruled.rank(k, small, seed, allow=ids)
        order = tuple(at.get(each, -1) for each in ranking.item_ids.tolist())
        shown = ", ".join(map(str, ranking.item_ids.tolist()))
        if -1 in order:
            detail = f"seed {seed} drew {shown}: not of the {len(ids)} allowed items"
            return [Check("places", small, False, detail, p_value=0.0)]
        for place, item in enumerate(order):
            law = law_behind(order[:place])
            if law[item] == 0.0:
                detail = f"seed {seed} drew {shown}: rules do not allow place {place + 1}"
                return [Check("places", small, False, detail, p_value=0.0)]
            below = float(law[:item].sum())
            transforms[place].append(below + float(uniform.random()) * float(law[item]))
        if len(order) < places and law_behind(order).any():
            detail = f"seed {seed} drew {shown}: the list ends where items are allowed"
            return [Check("places", small, False, detail, p_value=0.0)]
        drawn.append(order)
    checks = []
    for place, values in enumerate(transforms):
        cells = np.minimum((np.array(values) * _BINS).astype(np.int64), _BINS - 1)
        counts = np.bincount(cells, minlength=_BINS)
        if len(values) >= _BINS * _MIN_CELL:
            what = f"place {place + 1} of {len(ids)} items, given those above"
            checks.append(_tested("places", small, counts, np.full(_BINS, 1.0 / _BINS), what))
    if n_rankings <= _ENUMERATED:
        rankings, p = reference.ranking_law(scores, k, small, eligible, masks)
        cell = {_without_end(row): i for i, row in enumerate(rankings.tolist())}
        counts = np.bincount([cell[order] for order in drawn], minlength=len(cell))
        what = f"{len(cell)} rankings of {len(ids)} items"
        checks.append(_tested("rankings", small, counts, p, what))
        checks.append(_sum_under_rules(ruled, ids, [*cell], p, k, small))
    return checks


def _without_end(row: Sequence[int]) -> tuple[int, ...]:
    """Return a ranking without the padding after the place where rules ended it."""
    return tuple(item for item in row if item >= 0)


def _sum_under_rules(
    ruled: _Ruled,
    ids: npt.NDArray[Any],
    rankings: Sequence[tuple[int, ...]],
    law: FloatArray,
    k: int,
    small: Policy,
) -> Check:
    """Check that the probabilities of all allowed rankings are as enumerated and sum to 1."""
    given = ruled.catalog.log_propensities_batch(
        np.stack([ruled.query] * len(rankings)),
        [ids[np.array(each, np.int64)] for each in rankings],
        policies=[small],
        allow=[ids] * len(rankings),
        rules=ruled.rules,
        params=ruled.params,
        k=k,
    )[0]
    p = np.exp(np.where(np.isnan(given), 0.0, given).sum(axis=1))  # nan: places past the end
    total = float(p.sum())
    error = float(np.max([abs(total - 1.0), *np.abs(p - law)]))
    detail = f"the probabilities of all {len(law)} rankings sum to {total:.12g}"
    return Check("sum", small, error <= PROPENSITY_LIMIT, detail, error=error)


def _propensities_under_rules(ruled: _Ruled, full: Policy, k: int, seeds: _Seeds) -> Check:
    """Check that rankings and second pages keep the rules and report the oracle's propensities."""
    catalog = ruled.catalog
    n = len(catalog)
    items = ruled.some(max(2 * k, _RULED_CELLS // k))
    ids = np.asarray(catalog.item_ids)[items]
    at = {each: local for local, each in enumerate(ids.tolist())}
    call: dict[str, Any] = {} if len(items) == n else {"allow": ids}
    scores = ruled.scores(full)[items]
    worst = 0.0
    for seed in seeds.take(3):
        shown: list[int] = []
        for page in (1, 2):
            after: dict[str, Any] = {"after": ids[shown]} if page > 1 else {}
            ranking = ruled.rank(k, full, seed, **call, **after)
            order = [at.get(each, -1) for each in ranking.item_ids.tolist()]
            where = f"seed {seed}, page {page}"
            eligible, masks = ruled.oracle(items, shown)
            left = masks.eligible(eligible)
            if ranking.n_eligible != left.sum():
                detail = f"{where}: n_eligible is {ranking.n_eligible}, not {left.sum()}"
                return Check("propensities", full, False, detail)
            exact = reference.log_propensities(scores, order, full, eligible, masks, k)
            if not np.isfinite(exact).all():
                place = int(np.flatnonzero(~np.isfinite(exact))[0])
                detail = f"{where}: rules do not allow what place {place + 1} shows"
                return Check("propensities", full, False, detail)
            if len(order) < min(k, int(left.sum())):
                behind = reference.log_next(scores, order, k, full, eligible, masks)
                if np.isfinite(behind).any():
                    detail = f"{where}: the list ends where items are allowed"
                    return Check("propensities", full, False, detail)
            given = catalog.log_propensities(
                ruled.query,
                ranking.item_ids,
                policy=full,
                rules=ruled.rules,
                params=ruled.params,
                k=k,
                **call,
                **after,
            )
            for other in (given, exact):
                with np.errstate(invalid="ignore"):  # inf - inf gives NaN, which fails the check
                    off = float(np.abs(ranking.log_propensities - other).max(initial=0.0))
                worst = float(np.max([worst, off - ranking.log_norm_error]))
            shown += order
    detail = f"of {len(items)} items, second pages too: within {worst:.1e} of those in float64"
    return Check("propensities", full, worst <= PROPENSITY_LIMIT, detail, error=worst)


def _same_seed_under_rules(ruled: _Ruled, full: Policy, k: int, seeds: _Seeds) -> Check:
    """As `_same_seed`."""
    seed = seeds.take(1)[0]
    batch = ruled.catalog.rank_batch(
        np.stack([ruled.query] * 2),
        k=k,
        policy=full,
        seeds=[seed, seed],
        rules=ruled.rules,
        params=ruled.params,
    )
    single = [ruled.rank(k, full, seed) for _ in range(2)]
    draws = {(tuple(r.item_ids.tolist()), r.log_propensities.tobytes()) for r in (*single, *batch)}
    detail = "one seed gives one ranking, bit for bit, alone and in a batch"
    return Check("same seed", full, len(draws) == 1, detail)


# ---- Numbers of draws ------------------------------------------------------------------------


def _affordable(draws: int, n: int) -> int:
    """Return the number of draws to make if each costs a pass over the catalog."""
    return min(draws, max(_MIN_DRAWS, _DRAWS_TIMES_ITEMS // n))


def _enough(tested: Policy, draws: int, n: int) -> int:
    """Return the number of rankings of a few allowed items to draw."""
    if tested.law is not None and tested.law.is_certain:
        return _MIN_DRAWS  # only one ranking is correct
    if tested.sampler == "sequential":
        return _affordable(draws, n)  # it passes over the catalog even for a few items
    return draws


class _Seeds:
    """Consecutive seeds, each used once in a run; the start depends on the inference type."""

    def __init__(self, step: int) -> None:
        self._next = step << 32

    def take(self, count: int) -> range:
        start = self._next
        self._next += count
        return range(start, self._next)


def _tested(
    name: str, tested: Policy, counts: npt.ArrayLike, probabilities: npt.ArrayLike, what: str
) -> Check:
    statistic, degrees, p = goodness_of_fit(counts, probabilities)
    drawn = int(np.sum(counts))
    detail = f"{what}: chi-square {statistic:.1f} on {degrees}, p = {p:.2g}, {drawn:,} draws"
    return Check(name, tested, True, detail, p_value=p)


def _judged(check: Check, p_limit: float) -> Check:
    if check.p_value is None:
        return check
    passed = check.passed and check.p_value >= p_limit
    return replace(check, passed=passed)


def _tables(model: Model) -> Check:
    """Check that some users' tables equal tables recomputed from their vectors."""
    users, error = model._table_error(_TABLES)
    passed = error <= PROPENSITY_LIMIT
    detail = f"of {users} users, recomputed: log-masses differ by at most {error:.2g}"
    return Check("tables", None, passed, detail, error=error)


def _index(catalog: Catalog, queries: Sequence[Float32Array]) -> Check:
    """Check that the index holds the catalog's vectors, and count how many best items it finds."""
    assert catalog.index is not None  # the caller checks
    try:
        catalog._check_index()
        k = min(_FULL_K, len(catalog))
        shares = []
        for query in queries:
            best = np.argsort(-catalog.scores(query), kind="stable")[:k]
            shares.append(np.isin(best, catalog._candidates(query, k)[0]).mean())
    except (ValueError, ModuleNotFoundError) as error:
        return Check("index", None, False, str(error))
    found = f"of the best {k} it finds {float(np.mean(shares)):.0%} for {len(queries)} queries"
    return Check("index", None, True, f"it scores as the catalog does; {found}")


def _score(catalog: Catalog, queries: Sequence[Float32Array]) -> Check:
    """Compare some items' scores with those that Python computes from vectors and columns."""
    positions = np.unique(np.linspace(0, len(catalog) - 1, _SCORED).astype(np.int64))
    worst = 0.0
    for query in queries:
        made, dots, columns = catalog._scored_at(query, positions)
        right = _by_python(catalog, dots, columns)
        told = np.isfinite(right)  # Python has no finite value for the others
        largest = max(float(np.abs(right[told]).max(initial=0.0)), 1e-30)
        off = np.sort(np.abs(made - right)[told]) / largest
        # Near a jump of the score, float32 may fall on the other side.
        few = int(_SCORE_JUMPS * len(off))
        worst = max(worst, float(off[: len(off) - few].max(initial=0.0)))
    detail = (
        f"of {len(positions)} items, compared with Python's: off by at most {worst:.2g} of the"
        " largest"
    )
    return Check("score", None, worst <= _SCORE_LIMIT, detail, error=worst)


def _by_python(
    catalog: Catalog, dots: FloatArray, columns: Mapping[str, Sequence[Any]]
) -> FloatArray:
    score, own = catalog.score, catalog._score
    assert score is not None  # the caller checks
    if not isinstance(own, ScoreFunction):
        return reference.expression_scores(score.name, dots, columns, score.params)
    given = {**own.defaults, **score.params}
    made = np.full(len(dots), np.nan)
    for i, dot in enumerate(dots):
        row = {name: column[i] for name, column in columns.items()}
        arguments = {**given, **row, **({"dot": dot} if "dot" in own.arguments else {})}
        with np.errstate(all="ignore"), contextlib.suppress(ArithmeticError, ValueError):
            made[i] = own(
                **{
                    name: np.float64(value) if isinstance(value, float) else value
                    for name, value in arguments.items()
                }
            )
    return made


def _deciles(law: FloatArray, order: IntArray) -> IntArray:
    """Assign items to groups 0..9: ten runs along `order` of nearly equal mass."""
    mass = law[order]
    middle = np.cumsum(mass) - mass / 2
    groups = np.empty(len(law), np.int64)
    groups[order] = np.clip((middle * _GROUPS).astype(np.int64), 0, _GROUPS - 1)
    return groups


def _policies(temperature: float, n: int) -> list[Policy]:
    """Make a policy of every inference type with a law of its own, and one with a head."""
    values = {"temperature": temperature, "epsilon": _EPSILON, "factor": _FACTOR}
    values["m"] = max(1, int(_CANDIDATES * n))
    found = [
        policy(name, **{p: values[p] for p in accepted if p in values})
        for name, (_, _, accepted) in INFERENCE_TYPES.items()
        if sampler_name(name) != "auto"  # in a catalog, without users' tables, it equals gumbel
    ]
    return [
        *found,
        BestFirst(1, policy("stochastic_gumbel_softmax_trick", temperature=temperature)),
    ]


def _subset(subject: _Subject, i: int) -> IntArray:
    """Choose positions of a few items, ascending; every other subset has the best item."""
    n = len(subject.scores)
    best = int(subject.scores.argmax())
    chosen = np.random.default_rng([n, i]).choice(n, size=min(_SUBSET, n), replace=False)
    if i % 2 == 0 and best not in chosen:
        chosen[0] = best
    return np.sort(chosen).astype(np.int64)


def _subset_temperature(scores: FloatArray) -> float:
    """Return the T at which the worst item is e^3 times rarer than the best: no cell is empty."""
    spread = float(np.ptp(scores))
    return float(np.clip(spread / 3.0, 1e-6, 1e6)) if spread > 0 else 1.0


def _temperature(model: Model, row: int) -> float | None:
    """Return the temperature of the model's own policy for a user's row; None if it has none."""
    usual = None if model.policy is None else model.policy.params.get("temperature")
    if usual is None:
        return None
    return min(max(usual * model.temperature_at(row), MIN_TEMPERATURE), MAX_TEMPERATURE)


def _rows(model: Model) -> list[int]:
    """Choose three users, preferably ones whose scores differ."""
    rows: list[int] = np.random.default_rng(0).permutation(len(model.user_ids))[:50].tolist()
    rows.sort(key=lambda row: not model.user_vectors[row].any())  # stable: zero vectors last
    return (rows * 3)[:3]
