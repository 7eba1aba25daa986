"""Published experiments on off-policy evaluation with known true values, each in one call.

`EXPERIMENTS` lists them by name. Sums are exact where possible; other results are drawn, and have
a standard error.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from fastrank import ope
from fastrank.arraytypes import FloatArray, Mask, Rows
from fastrank.calibration import temperatures_for_overlap
from fastrank.catalog import Catalog
from fastrank.eventlog import LogReader, LogWriter
from fastrank.inputs import as_seed
from fastrank.marginals import position_marginals, ranking_law
from fastrank.model import Model
from fastrank.ope.estimators import Avg, Ips, Replay, Rips, Snips
from fastrank.policies import Deterministic, PlackettLuce, Policy
from fastrank.rules import Rules
from fastrank.simulate import Cascade, PositionBased, World, true_value, write_log

__all__ = [
    "EXPERIMENTS",
    "AvgBias",
    "Bias",
    "Combination",
    "Experiment",
    "FourWays",
    "ReplayShrinks",
    "Replayed",
    "RulesAfterwards",
    "Shop",
    "Spread",
    "Variances",
    "avg_bias",
    "four_ways",
    "prefix_weights",
    "replay",
    "rules",
    "variance",
]

Advance: TypeAlias = Callable[[str, int, int], None]  # what is being done, steps done, all steps


class Experiment:
    """The result of an experiment; subclasses are dataclasses with the figures.

    Attributes
    ----------
    title : str
    words : str
        What the experiment does and what it shows, in a few sentences.
    sources : tuple of str
    """

    title: ClassVar[str]
    words: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dict for JSON."""
        about = {"title": self.title, "words": self.words, "sources": list(self.sources)}
        return {**about, **asdict(self)}  # type: ignore[call-overload]  # subclasses are dataclasses


# ---- Replay ---------------------------------------------------------------------------------

_REPLAY_ROWS = 100_000
_RATE, _OTHER_RATE = 0.2, 0.1  # clicks on a visitor's favourite, and on anything else


@dataclass(frozen=True, slots=True)
class Replayed:
    """One uniform log, and its estimates by counting and by replay.

    Attributes
    ----------
    n_items, k : int
    matches, expected_matches : int, float
        Rows whose logged ranking is the evaluated policy's; and their mean, n (A - k)! / A!.
    naive : float
        Clicks per place if rows without a match count as misses.
    replay, standard_error : float or None
        Clicks per place in the matched rows, and its error; None if there are too few.
    expected_error : float or None
        Standard error for the expected number of matches; None if that is below one.
    status : str
    reasons : tuple of str
    """

    n_items: int
    k: int
    matches: int
    expected_matches: float
    naive: float
    replay: float | None
    standard_error: float | None
    expected_error: float | None
    status: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplayShrinks(Experiment):
    """The result of `replay`.

    Attributes
    ----------
    rows : int
        Rows of each log.
    truth : float
        Clicks per place of the evaluated policy.
    logged : float
        Clicks per place in the first log, which the logging policy earned.
    matched_again : int
        Matches of the first log that an independent uniform draw matches, too.
    replay_again : float
        Clicks per place among these.
    logs : tuple of Replayed
        The first has ten items and one place, as in the published runs.
    """

    title = "Replay: unbiased, but soon without data"
    words = (
        "A log shows items at random. A policy that always shows a visitor's favourite is evaluated"
        " on the rows in which the log happens to show just that (replay). Counting the other rows"
        " as misses divides the answer by the number of items; leaving them out gives the true"
        " value. But the share of rows that remain falls as the number of items to the power of the"
        " number of places."
    )
    sources = (
        "Li, Chu, Langford and Wang (2011), Unbiased offline evaluation of contextual-bandit-based"
        " news article recommendation algorithms, WSDM",
    )

    rows: int
    truth: float
    logged: float
    matched_again: int
    replay_again: float
    logs: tuple[Replayed, ...]


def replay(*, seed: int = 0, quick: bool = False, advance: Advance | None = None) -> ReplayShrinks:
    """Measure matches and errors of replay as items and places grow.

    Parameters
    ----------
    seed : int
    quick : bool
        Up to 1,000 items instead of 10,000.
    advance : callable, optional
        Called with the current step's name, the number of steps done, and of all steps.

    Notes
    -----
    A visitor clicks on the favourite with probability 0.2, on any other item with 0.1. By symmetry,
    item l may be taken as the favourite for place l. Each log has 100,000 rows.

    Examples
    --------
    >>> found = replay(quick=True)
    >>> first = found.logs[0]
    >>> first.expected_matches, round(first.naive, 2), round(first.replay, 1)
    (10000.0, 0.02, 0.2)
    """
    rng = np.random.Generator(np.random.Philox(as_seed("seed", seed)))
    sizes = [10, 30, 100, 300, 1000] + ([] if quick else [3000, 10_000])
    cells = [(n_items, k) for k in (1, 2, 3) for n_items in sizes]
    logs = []
    logged = again = earned_again = 0.0
    for number, (n_items, k) in enumerate(cells):
        if advance:
            advance(f"{n_items:,} items, k = {k}", number, len(cells))
        shown = _draws(rng, _REPLAY_ROWS, n_items, k)
        wanted = shown == np.arange(k)
        clicked = rng.random(shown.shape) < np.where(wanted, _RATE, _OTHER_RATE)
        rewards = clicked.astype(np.float64)
        logs.append(_replayed(n_items, wanted, rewards))
        if number == 0:
            logged = float(rewards.mean())
            twice = wanted[:, 0] & (rng.integers(n_items, size=_REPLAY_ROWS) == 0)
            again, earned_again = int(twice.sum()), float(rewards[twice].mean())
    return ReplayShrinks(_REPLAY_ROWS, _RATE, logged, int(again), earned_again, tuple(logs))


def _draws(rng: np.random.Generator, rows: int, n_items: int, k: int) -> Rows:
    """Draw k different items per row, uniformly."""
    result = np.empty((rows, k), np.int64)
    for place in range(k):
        item = rng.integers(n_items - place, size=rows)
        # `item` counts among the items left: skip the chosen ones in ascending order.
        for chosen in np.sort(result[:, :place], axis=1).T:
            item += item >= chosen
        result[:, place] = item
    return result


def _replayed(n_items: int, wanted: Mask, rewards: FloatArray) -> Replayed:
    rows, k = wanted.shape
    left = n_items - np.arange(k)
    sums = Replay(k)
    sums.update(
        ope.Batch.of(
            np.broadcast_to(-np.log(left), wanted.shape),
            np.where(wanted, 0.0, -np.inf),
            rewards,
            n_eligible=np.full(rows, n_items),
        )
    )
    found = ope.estimate(sums, cluster=False, bootstrap=False)
    expected = rows / math.perm(n_items, k)
    value, error = found.value, found.standard_error
    return Replayed(
        n_items=n_items,
        k=k,
        matches=sums.matches,
        expected_matches=expected,
        naive=float(rewards[wanted.all(axis=1)].sum() / (rows * k)),
        replay=None if value is None else value / k,
        standard_error=None if error is None else error / k,
        expected_error=math.sqrt(_RATE * (1.0 - _RATE) / (expected * k)) if expected >= 1 else None,
        status=found.status,
        reasons=found.reasons,
    )


# ---- Deterministic and stochastic, logging and evaluation -------------------------------------

_FOUR_ITEMS, _FOUR_USERS, _FOUR_PLACES = 20, 200, 1
_FOUR_TEMPERATURE = 2.0
_FOUR_NOISE, _FOUR_OTHER_NOISE = 0.3, 0.1


@dataclass(frozen=True, slots=True)
class Combination:
    """One log, and one policy that is evaluated from it.

    Attributes
    ----------
    logging, evaluation : str
        "deterministic" or "stochastic".
    same_model : bool
        Whether both rank by the same model.
    status : str
    reasons : tuple of str
    uncovered : float
        The evaluated policy's probability of rankings that the logging policy could not show.
    estimate : float or None
        Clicks per ranking.
    interval : (float, float) or None
        95 % confidence interval.
    truth : float
    """

    logging: str
    evaluation: str
    same_model: bool
    status: str
    reasons: tuple[str, ...]
    uncovered: float
    estimate: float | None
    interval: tuple[float, float] | None
    truth: float


@dataclass(frozen=True, slots=True)
class FourWays(Experiment):
    """The result of `four_ways`.

    Attributes
    ----------
    rows : int
        Rows of each of the two logs.
    n_items, n_users, k : int
    temperature : float
        Temperature of the stochastic policies.
    combinations : tuple of Combination
    """

    title = "Deterministic or stochastic: which logs can evaluate which policies"
    words = (
        "The same visitors are logged twice, once with the best items and once with drawn items."
        " Each log is used to evaluate the policy that wrote it and the policies of another model,"
        " deterministic and stochastic. The deterministic log can evaluate only its own policy: of"
        " any other it has only the rankings that both would show, which are not a fair sample. The"
        " stochastic log could have shown every ranking, so it can evaluate every policy here,"
        " deterministic ones included."
    )
    sources = (
        "Horvitz and Thompson (1952), A generalization of sampling without replacement from a"
        " finite universe, JASA",
        "Swaminathan et al. (2017), Off-policy evaluation for slate recommendation, NeurIPS"
        " (absolute continuity)",
    )

    rows: int
    n_items: int
    n_users: int
    k: int
    temperature: float
    combinations: tuple[Combination, ...]


def four_ways(*, seed: int = 0, quick: bool = False, advance: Advance | None = None) -> FourWays:
    """Evaluate deterministic and stochastic policies from logs of either kind.

    Parameters
    ----------
    seed : int
    quick : bool
        10,000 rows per log instead of 30,000.
    advance : callable, optional
        Called with the current step's name, the number of steps done, and of all steps.

    Notes
    -----
    There are 20 items and one place, so that the stochastic log can evaluate deterministic
    policies, too; with ten places it cannot, as `fastrank demo` shows. True values are exact sums.

    Examples
    --------
    >>> found = four_ways(quick=True)
    >>> [each.status for each in found.combinations if each.logging == "stochastic"][0]
    'ok'
    """
    as_seed("seed", seed)
    rows = 10_000 if quick else 30_000
    world = World.synthetic(_FOUR_USERS, _FOUR_ITEMS, PositionBased((1.0,)), seed=seed)
    running, other = (
        world.model(noise=noise, seed=seed + number)
        for number, noise in enumerate((_FOUR_NOISE, _FOUR_OTHER_NOISE))
    )
    best: Policy = Deterministic()
    drawn: Policy = PlackettLuce(_FOUR_TEMPERATURE)
    policies: dict[str, tuple[str, bool, Policy, Model]] = {
        "best": ("deterministic", False, best, other),
        "drawn": ("stochastic", False, drawn, other),
    }
    found: list[Combination] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, logging) in enumerate((("deterministic", best), ("stochastic", drawn))):
            if advance:
                advance(f"{kind} log", 2 * number, 4)
            path = Path(folder) / kind
            with LogWriter(path) as log:
                write_log(world, running, logging, _FOUR_PLACES, rows, log, seed=seed + number)
            asked = {"itself": (kind, True, logging, running), **policies}
            if advance:
                advance(f"{kind} log", 2 * number + 1, 4)
            evaluation = ope.evaluate(
                LogReader(path),
                [ope.ByModel(label, each[2], each[3]) for label, each in asked.items()],
                logging=[running],
            )
            for result in evaluation.policies:
                evaluated, same, policy, model = asked[result.label]
                estimate = result.estimates[result.lead]
                found.append(
                    Combination(
                        logging=kind,
                        evaluation=evaluated,
                        same_model=same,
                        status=result.status,
                        reasons=result.reasons,
                        uncovered=result.uncovered,
                        estimate=estimate.value,
                        interval=estimate.interval,
                        truth=true_value(world, model, policy, _FOUR_PLACES).value,
                    )
                )
    return FourWays(rows, _FOUR_ITEMS, _FOUR_USERS, _FOUR_PLACES, _FOUR_TEMPERATURE, tuple(found))


# ---- The bias of the logged average -----------------------------------------------------------

_BIAS_ITEMS, _BIAS_PLACES = 8, 3
_BIAS_FACTORS = (4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25)


@dataclass(frozen=True, slots=True)
class Bias:
    """One evaluation policy.

    Attributes
    ----------
    factor : float
        Its temperature relative to the logging policy's.
    truth : float
        Its clicks per ranking, exact.
    avg_bias : float
        The logging policy's clicks per ranking minus `truth`, exact.
    ips_bias, rips_bias : float
        Bias of these estimators, exact: 0 except for rounding.
    avg_error, ips_error, rips_error : float
        Exact standard errors for the log's number of rows.
    avg, ips, rips : float
        Estimates from one drawn log.
    ips_status, rips_status : str
        The statuses of these estimates.
    ess_share : float
        1 / E[w^2], exactly.
    """

    factor: float
    truth: float
    avg_bias: float
    ips_bias: float
    rips_bias: float
    avg_error: float
    ips_error: float
    rips_error: float
    avg: float
    ips: float
    rips: float
    ips_status: str
    rips_status: str
    ess_share: float


@dataclass(frozen=True, slots=True)
class AvgBias(Experiment):
    """The result of `avg_bias`.

    Attributes
    ----------
    rows, n_items, k : int
    policies : tuple of Bias
        In order of falling temperature.
    """

    title = "The logged average does not estimate another policy"
    words = (
        "A log of drawn rankings is used to estimate the value of the same model at other"
        " temperatures. The logged average (avg) is biased, the more so the further the policies"
        " are apart; more rows do not help, and its interval stays narrow. Weighted estimates (ips,"
        " rips) have no bias but more variance; rips has less of it than ips if visitors read from"
        " the top."
    )
    sources = (
        "McInerney, Brost, Chandar, Mehrotra and Carterette (2020), Counterfactual evaluation of"
        " slate recommendations with sequential reward interactions, KDD",
        "Kiyohara et al. (2022), Doubly robust off-policy evaluation for ranking policies under the"
        " cascade behavior model, WSDM",
    )

    rows: int
    n_items: int
    k: int
    policies: tuple[Bias, ...]


def avg_bias(*, seed: int = 0, quick: bool = False, advance: Advance | None = None) -> AvgBias:
    """Compute bias and error of avg, ips and rips as the evaluated policy moves from the logged.

    Parameters
    ----------
    seed : int
    quick : bool
        5,000 rows instead of 50,000.
    advance : callable, optional
        Called with the current step's name, the number of steps done, and of all steps.

    Notes
    -----
    8 items in 3 places have 336 rankings, which are all enumerated. Clicks follow the cascade
    model: a visitor clicks the first item they like and then leaves. So at most one reward is not
    0, and
    ``E[(sum w_l r_l)^2] = E[sum w_l^2 r_l]``.

    Examples
    --------
    >>> same = [each for each in avg_bias(quick=True).policies if each.factor == 1.0][0]
    >>> abs(same.avg_bias) < 1e-12, round(same.ess_share, 9)
    (True, 1.0)
    """
    rng = np.random.Generator(np.random.Philox(as_seed("seed", seed)))
    rows = 5_000 if quick else 50_000
    scores = np.linspace(0.0, 3.0, _BIAS_ITEMS)
    rates = np.linspace(0.02, 0.3, _BIAS_ITEMS)
    clicks = Cascade()
    rankings, p0 = ranking_law(scores, _BIAS_PLACES, PlackettLuce(1.0))
    logged = _conditional(p0, _BIAS_ITEMS, _BIAS_PLACES)
    expected = clicks.expected(rates[rankings])
    drawn = rng.choice(len(p0), rows, p=p0)
    rewards = clicks.clicks(rates[rankings[drawn]], rng.random((rows, _BIAS_PLACES, 2)))
    avg = float(p0 @ expected.sum(axis=1))
    avg_variance = avg - avg**2  # of a Bernoulli variable: one click or none
    found = []
    for number, factor in enumerate(_BIAS_FACTORS):
        if advance:
            advance(f"temperature x {factor:g}", number, len(_BIAS_FACTORS))
        p1 = ranking_law(scores, _BIAS_PLACES, PlackettLuce(factor))[1]
        evaluated = _conditional(p1, _BIAS_ITEMS, _BIAS_PLACES)
        truth = float(p1 @ expected.sum(axis=1))
        weights = prefix_weights(p0, p1, _BIAS_ITEMS, _BIAS_PLACES)
        whole = weights[:, -1]
        means = [
            float(p0 @ (whole * expected.sum(axis=1))),
            float(p0 @ (weights * expected).sum(axis=1)),
        ]
        squares = [
            float(p0 @ (whole**2 * expected.sum(axis=1))),
            float(p0 @ (weights**2 * expected).sum(axis=1)),
        ]
        batch = ope.Batch.of(logged[drawn], evaluated[drawn], rewards)
        estimates = []
        for cls in (Avg, Ips, Rips):
            sums = cls(_BIAS_PLACES)
            sums.update(batch)
            estimates.append(ope.estimate(sums, cluster=False, bootstrap=False))
        values = [math.nan if each.value is None else each.value for each in estimates]
        found.append(
            Bias(
                factor=factor,
                truth=truth,
                avg_bias=avg - truth,
                ips_bias=means[0] - truth,
                rips_bias=means[1] - truth,
                avg_error=math.sqrt(avg_variance / rows),
                ips_error=math.sqrt((squares[0] - truth**2) / rows),
                rips_error=math.sqrt((squares[1] - truth**2) / rows),
                avg=values[0],
                ips=values[1],
                rips=values[2],
                ips_status=estimates[1].status,
                rips_status=estimates[2].status,
                ess_share=float(1.0 / (p0 @ whole**2)),
            )
        )
    return AvgBias(rows, _BIAS_ITEMS, _BIAS_PLACES, tuple(found))


def prefix_weights(p0: FloatArray, p1: FloatArray, n_items: int, k: int) -> FloatArray:
    """Compute weights of the first 1, ..., k places of all rankings, in `ranking_law`'s order.

    Parameters
    ----------
    p0, p1 : ndarray of float64, shape (r,)
        Probabilities of all rankings under the logging and the evaluated policy.
    n_items, k : int

    Examples
    --------
    >>> laws = [ranking_law([0.0, 0.0], 2, p)[1] for p in (PlackettLuce(), Deterministic())]
    >>> prefix_weights(*laws, n_items=2, k=2).tolist()
    [[2.0, 2.0], [0.0, 0.0]]
    """
    result = np.empty((len(p0), k))
    for place in range(k):
        # Rankings with the same prefix are adjacent, and each prefix has equally many.
        shape = (math.perm(n_items, place + 1), -1)
        before, after = p0.reshape(shape).sum(axis=1), p1.reshape(shape).sum(axis=1)
        result[:, place] = np.repeat(after / before, len(p0) // shape[0])
    return result


def _conditional(p: FloatArray, n_items: int, k: int) -> FloatArray:
    """Compute conditional log-propensities (r, k) of all rankings, in `ranking_law`'s order."""
    result = np.empty((len(p), k))
    above = np.ones(1)
    for place in range(k):
        count = math.perm(n_items, place + 1)
        here = p.reshape(count, -1).sum(axis=1)
        with np.errstate(divide="ignore"):
            chance = np.log(np.minimum(here / np.repeat(above, count // len(above)), 1.0))
        result[:, place] = np.repeat(chance, len(p) // count)
        above = here
    return result


# ---- Variance ---------------------------------------------------------------------------------

_FACTOR = 0.8
_SPREAD = 2.0  # standard deviation of scores, relative to the logging policy's temperature
_PLACES = (1, 2, 3, 5, 10)
_ENUMERATED = 200_000  # rankings


@dataclass(frozen=True, slots=True)
class Spread:
    """Results for a number of items and places; triples are for ips, rips and iips.

    Attributes
    ----------
    n_items, k : int
    variances : tuple of float
        Variances of one row's value.
    errors : tuple of float
        Relative standard errors of the variances; 0 if all rankings were enumerated.
    ess_shares : tuple of float
        1 / E[w^2] at the worst place. For rips it is the last, where its weight is that of ips.
    worth : tuple of float
        Variance of a row logged by the evaluated policy itself, divided by `variances`: the number
        of rows of such a log that a row of this log is worth.
    exact : bool
    """

    n_items: int
    k: int
    variances: tuple[float, float, float]
    errors: tuple[float, float, float]
    ess_shares: tuple[float, float, float]
    worth: tuple[float, float, float]
    exact: bool


@dataclass(frozen=True, slots=True)
class Variances(Experiment):
    """The result of `variance`.

    Attributes
    ----------
    factor : float
        Temperature of the evaluated policy relative to the logging policy's.
    draws : int
        Rankings drawn if not all were enumerated.
    cells : tuple of Spread
    """

    title = "Variance of ips, rips and iips, as items and places grow"
    words = (
        "A log is used to evaluate a temperature 0.8 times its own, and the variance of each"
        " estimator is computed, not observed. The weight of a whole ranking (ips) is a product"
        " over its places, so each place multiplies the variance. rips leaves out places below a"
        " reward, and iips uses one ratio per place, which hardly grows. The estimators are"
        " equal with one place and far apart with ten. The lower variance needs assumptions:"
        " rips that a click depends only on its item and those above, iips that it depends only"
        " on its item and place."
    )
    sources = (
        "Swaminathan et al. (2017), Off-policy evaluation for slate recommendation, NeurIPS (ips)",
        "McInerney et al. (2020), Counterfactual evaluation of slate recommendations with"
        " sequential reward interactions, KDD (rips)",
        "Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay and Wen (2018), Offline evaluation of"
        " ranking policies with click models, KDD (iips)",
    )

    factor: float
    draws: int
    cells: tuple[Spread, ...]


def variance(*, seed: int = 0, quick: bool = False, advance: Advance | None = None) -> Variances:
    """Compute variance and effective sample size of ips, rips and iips.

    Parameters
    ----------
    seed : int
    quick : bool
        Up to 1,000 items instead of 10,000, and a fifth of the draws.
    advance : callable, optional
        Called with the current step's name, the number of steps done, and of all steps.

    Notes
    -----
    Scores are normal quantiles with a standard deviation of 2 T. Clicks are position-based, with
    examination probabilities 1 / l and rates that rise with the score from 0.01 to 0.3. Given the
    ranking they are independent. With c_l an estimator's weight at place l and q_l the click rate
    there, thus

        E[value^2] = E[(sum c_l q_l)^2 + sum c_l^2 q_l (1 - q_l)].

    The outer expectation is a sum over all rankings if there are at most 200,000. Otherwise half of
    a sample of rankings is drawn from each policy, and each ranking has the weight
    1 / (1/2 + w / 2) (the balance heuristic, Veach and Guibas 1995), which bounds the influence of
    one draw. Marginals, and thus the true value and the ESS of iips, are always exact.

    Examples
    --------
    >>> found = variance(quick=True)
    >>> ips, rips, iips = found.cells[-1].variances
    >>> ips > rips > iips
    True
    """
    as_seed("seed", seed)
    sizes = (10, 100, 1000) if quick else (10, 100, 1000, 10_000)
    draws = 4_000 if quick else 20_000
    found = []
    for number, n_items in enumerate(sizes):
        if advance:
            advance(f"{n_items:,} items", number, len(sizes))
        found += _spreads(n_items, draws, seed)
    return Variances(_FACTOR, draws, tuple(found))


def _spreads(n_items: int, draws: int, seed: int) -> list[Spread]:
    quantiles = np.array(_normal_quantiles((np.arange(n_items) + 0.5) / n_items))
    # Best first, and in float32, as in a catalog.
    scores = (_SPREAD * quantiles[::-1]).astype(np.float32).astype(np.float64)
    rates = 0.01 + 0.29 * (np.arange(n_items)[::-1] + 0.5) / n_items
    most = min(max(_PLACES), n_items)
    policies = PlackettLuce(1.0), PlackettLuce(_FACTOR)
    marginals = [position_marginals(scores, policy, most) for policy in policies]
    looks = 1.0 / np.arange(1, most + 1)
    ratios = marginals[1] / np.maximum(marginals[0], 1e-300)
    truths = np.cumsum(looks * (rates @ marginals[1]))
    shares = 1.0 / (marginals[1] * ratios).sum(axis=0)
    drawn: tuple[Rows, FloatArray] | None = None
    found = []
    for k in (each for each in _PLACES if each <= n_items):
        exact = math.perm(n_items, k) <= _ENUMERATED
        if exact:
            rankings, p0 = ranking_law(scores, k, policies[0])
            p1 = ranking_law(scores, k, policies[1])[1]
            weights, chances = prefix_weights(p0, p1, n_items, k), p0 * len(p0)
        else:
            drawn = drawn or _drawn(scores, policies, most, draws, seed)
            rankings, weights = drawn[0][:, :k], drawn[1][:, :k]
            chances = 1.0 / (0.5 + 0.5 * weights[:, -1])
        q = looks[:k] * rates[rankings]
        truth = float(truths[k - 1])
        by = (
            np.broadcast_to(weights[:, -1:], q.shape),
            weights,
            ratios[rankings, np.arange(k)],
        )
        squares = [
            chances * ((c * q).sum(axis=1) ** 2 + (c**2 * q * (1.0 - q)).sum(axis=1)) for c in by
        ]
        variances = [float(each.mean()) - truth**2 for each in squares]
        errors = [
            0.0 if exact else float(each.std(ddof=1) / math.sqrt(len(each)) / v)
            for each, v in zip(squares, variances, strict=True)
        ]
        own = weights[:, -1] * ((q.sum(axis=1)) ** 2 + (q * (1.0 - q)).sum(axis=1))
        own_variance = float((chances * own).mean()) - truth**2
        whole = 1.0 / float((chances * weights[:, -1] ** 2).mean())
        found.append(
            Spread(
                n_items=n_items,
                k=k,
                variances=_three(variances),
                errors=_three(errors),
                ess_shares=(whole, whole, float(shares[:k].min())),
                worth=_three([own_variance / each for each in variances]),
                exact=exact,
            )
        )
    return found


def _drawn(
    scores: FloatArray, policies: tuple[PlackettLuce, PlackettLuce], k: int, draws: int, seed: int
) -> tuple[Rows, FloatArray]:
    """Draw rankings, half of them from each policy; return them and their prefixes' weights."""
    catalog = Catalog(np.arange(len(scores)), scores[:, None])
    rng = np.random.Generator(np.random.Philox(seed))
    half = draws // 2
    query = np.ones((half, 1), np.float32)
    seeds = rng.integers(2**53, size=(2, half)).astype(np.uint64)
    rankings = np.concatenate(
        [
            catalog.rank_batch(query, k, policy=policy, seeds=of).item_ids
            for policy, of in zip(policies, seeds, strict=True)
        ]
    )
    weights = np.exp(scores / policies[0].temperature)
    colder = np.exp((scores - scores[0]) / policies[1].temperature)
    log_weights = np.log(_sequential(colder, rankings)) - np.log(_sequential(weights, rankings))
    return rankings, np.exp(np.cumsum(log_weights, axis=1))


def _sequential(weights: FloatArray, rankings: Rows) -> FloatArray:
    """Compute P(item at place l | items above it), (b, k), for Plackett-Luce weights."""
    shown = weights[rankings]
    above = np.cumsum(shown, axis=1) - shown
    return np.asarray(shown / (weights.sum() - above))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def _normal_quantiles(levels: FloatArray) -> list[float]:
    from statistics import NormalDist

    return [NormalDist().inv_cdf(level) for level in levels.tolist()]


# ---- Rules that act on finished rankings --------------------------------------------------------

_SHOP_ITEMS, _SHOP_SELLERS, _SHOP_USERS = 1000, 40, 20
_SHOP_PLACES, _SHOP_CAP = 10, 2
_SHOP_DIM, _OF_SELLER = 16, 0.05  # share of the variance of items that is between sellers
_SHOP_OVERLAP, _SHOP_FACTOR = 0.5, 0.9
_CLOSE = 0.1  # an estimate this near the truth, relative to it
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class Shop:
    """One way to keep a cap and to log, and estimates of another policy from such logs.

    Attributes
    ----------
    logger : {"strikes out", "draws again", "has rules"}
    weighs_by_cap : bool
        Whether the evaluated policy's propensities take the cap into account.
    draws : float
        Rankings drawn for each one shown.
    ratio : (float, float, float)
        Logged propensity of a ranking divided by the true one: 5 % quantile, median and 95 %
        quantile.
    mean_weight : float
        Mean weight over all logs; 1 if propensities are true.
    ips, snips : (float, float, float)
        Estimate divided by the true value: 5 % quantile, median and 95 % quantile over logs.
    ips_close, snips_close : float
        Share of logs whose estimate is within 10 % of the true value.
    flagged : float
        Share of logs for which `ope.estimate` reports that the mean weight (ips) is off.
    """

    logger: str
    weighs_by_cap: bool
    draws: float
    ratio: tuple[float, float, float]
    mean_weight: float
    ips: tuple[float, float, float]
    snips: tuple[float, float, float]
    ips_close: float
    snips_close: float
    flagged: float


@dataclass(frozen=True, slots=True)
class RulesAfterwards(Experiment):
    """The result of `rules`.

    Attributes
    ----------
    n_items, n_sellers, n_users, k, cap : int
    logs, rows : int
        Number of logs, and rows of each.
    factor : float
        Temperature of the evaluated policy relative to the logging policy's.
    largest : float
        Share of items of the largest seller.
    truth, truth_error : float
        Clicks per ranking of the evaluated policy, and their standard error.
    logged : float
        Clicks per ranking in the logs of the third shop.
    shops : tuple of Shop
    """

    title = "A cap on the finished ranking makes its logged propensity wrong"
    words = (
        "Three shops show at most 2 items of a seller among 10. The first strikes the excess out of"
        " the finished ranking, and the second draws again until a ranking keeps the cap; both log"
        " the propensity of a ranking without a cap. The third draws by rules, and logs the"
        " propensity under them. Each log is used to evaluate the same cap at 0.9 times the"
        " temperature. Propensities that ignore the cap are too small, and weights too large."
        " Self-normalised estimates (snips) hide this, but do not correct it if weights are more"
        " wrong for some rankings than for others."
    )
    sources = (
        "Horvitz and Thompson (1952), A generalization of sampling without replacement from a"
        " finite universe, JASA",
        "Swaminathan et al. (2017), Off-policy evaluation for slate recommendation, NeurIPS",
    )

    n_items: int
    n_sellers: int
    n_users: int
    k: int
    cap: int
    logs: int
    rows: int
    factor: float
    largest: float
    truth: float
    truth_error: float
    logged: float
    shops: tuple[Shop, ...]


class _Market:
    """Visitors with a policy each, and items of sellers."""

    def __init__(self, seed: int) -> None:
        rng = np.random.Generator(np.random.Philox(seed))
        shares = 1.0 / np.arange(1, _SHOP_SELLERS + 1)
        self.sellers = rng.choice(_SHOP_SELLERS, _SHOP_ITEMS, p=shares / shares.sum())
        kinds = rng.standard_normal((_SHOP_SELLERS, _SHOP_DIM))[self.sellers]
        own = rng.standard_normal((_SHOP_ITEMS, _SHOP_DIM))
        items = math.sqrt(_OF_SELLER) * kinds + math.sqrt(1.0 - _OF_SELLER) * own
        self.users = rng.standard_normal((_SHOP_USERS, _SHOP_DIM))
        looks = PositionBased([1.0 / place for place in range(1, _SHOP_PLACES + 1)])
        self.world = World.from_vectors(self.users, items, looks)
        self.catalog = Catalog(
            np.arange(_SHOP_ITEMS),
            items,
            features={"seller": [f"s{each}" for each in self.sellers.tolist()]},
        )
        self.rules = Rules(cap={"seller": _SHOP_CAP})
        self.scores = np.array([self.catalog.scores(each) for each in self.users], np.float64)
        self.temperatures = temperatures_for_overlap(self.scores, _SHOP_PLACES, _SHOP_OVERLAP)
        self._rng = rng

    def drawn(
        self, who: Rows, k: int, *, factor: float = 1.0, rules: Rules | None = None
    ) -> tuple[Rows, FloatArray]:
        """Draw rankings (b, k) for visitors (b,); return them and their log-propensities."""
        policies = [PlackettLuce(factor * t) for t in self.temperatures[who].tolist()]
        seeds = self._rng.integers(2**53, size=len(who)).astype(np.uint64)
        found = self.catalog.rank_batch(
            self.users[who], k, policy=policies, seeds=seeds, rules=rules
        )
        return found.item_ids, found.log_propensities

    def obeys(self, rankings: Rows) -> Mask:
        """Say which rankings (b, k) keep the cap."""
        shown = np.sort(self.sellers[rankings], axis=1)
        return np.asarray((shown[:, _SHOP_CAP:] != shown[:, :-_SHOP_CAP]).all(axis=1))

    def capped(self, who: Rows) -> Rows:
        """Rank all items, strike out what exceeds the cap, and return the first k places."""
        result = np.empty((len(who), _SHOP_PLACES), np.int64)
        for i, order in enumerate(self.drawn(who, _SHOP_ITEMS)[0]):
            sellers = self.sellers[order]
            by_seller = np.argsort(sellers, kind="stable")
            first = np.searchsorted(sellers[by_seller], sellers)
            above = np.empty(len(order), np.int64)  # items of the same seller above each
            above[by_seller] = np.arange(len(order))
            result[i] = order[above - first < _SHOP_CAP][:_SHOP_PLACES]
        return result

    def redrawn(self, who: Rows) -> tuple[Rows, Rows]:
        """Draw rankings again until they keep the cap; return them and the number of draws."""
        result = np.empty((len(who), _SHOP_PLACES), np.int64)
        draws = np.zeros(len(who), np.int64)
        left = np.arange(len(who))
        while len(left):
            drawn, _ = self.drawn(who[left], _SHOP_PLACES)
            draws[left] += 1
            obeys = self.obeys(drawn)
            result[left[obeys]] = drawn[obeys]
            left = left[~obeys]
        return result, draws

    def log_propensities(
        self, who: Rows, rankings: Rows, cap: int, factor: float = 1.0
    ) -> FloatArray:
        """Compute log-propensities of rankings (b, k) under a cap from the masses of sellers.

        A cap of k has no effect.
        """
        weights = np.exp(
            (self.scores - self.scores.max(axis=1, keepdims=True))
            / (factor * self.temperatures[:, None])
        )
        of_sellers = np.zeros((_SHOP_USERS, _SHOP_SELLERS))
        for seller in range(_SHOP_SELLERS):
            of_sellers[:, seller] = weights[:, self.sellers == seller].sum(axis=1)
        left, counts = of_sellers[who], np.zeros((len(who), _SHOP_SELLERS), np.int64)
        shown = np.take_along_axis(weights[who], rankings, axis=1)
        result = np.empty(rankings.shape)
        rows = np.arange(len(who))
        for place, sellers in enumerate(self.sellers[rankings].T):
            result[:, place] = np.log(shown[:, place] / np.where(counts < cap, left, 0.0).sum(1))
            left[rows, sellers] -= shown[:, place]
            counts[rows, sellers] += 1
        return np.minimum(result, 0.0)


def rules(*, seed: int = 0, quick: bool = False, advance: Advance | None = None) -> RulesAfterwards:
    """Measure propensities and estimates of logs whose cap acts on finished rankings.

    Parameters
    ----------
    seed : int
    quick : bool
        8 logs of 250 rows instead of 16 of 750.
    advance : callable, optional
        Called with the current step's name, the number of steps done, and of all steps.

    Notes
    -----
    1,000 items belong to 40 sellers, whose sizes fall as 1 / rank; a twentieth of the variance of
    items is between sellers. 20 visitors each have a temperature that keeps half of their ten best.
    A visitor clicks an item if they examine its place, with probability 1 / place, and like it.

    Striking out what exceeds a cap from an order of all items gives the law of `Rules(cap=...)`.
    The first shop's rankings therefore follow the law of the third, and its true propensities are
    those of the third. The second shop's are the formula's without a cap, divided by the share of a
    visitor's rankings that keep the cap, estimated from those drawn. The true value is the mean
    over rankings drawn by rules, without the noise of clicks.

    Examples
    --------
    >>> after, _, again, ruled = rules(quick=True).shops
    >>> after.ratio[1] < 0.5, again.mean_weight > 1.5, [round(each, 5) for each in ruled.ratio]
    (True, True, [1.0, 1.0, 1.0])
    """
    market = _Market(as_seed("seed", seed))
    logs, rows = (8, 250) if quick else (16, 750)
    who = np.repeat(np.arange(_SHOP_USERS), logs * rows // _SHOP_USERS)
    turns = np.random.default_rng(seed).permutation(len(who))  # assigns visitors to logs
    steps = ["the true value", "rankings by rules", "rankings, capped", "rankings, drawn again"]

    def begin(step: int) -> None:
        if advance:
            advance(steps[step], step, len(steps))

    def shop(
        logger: str, shown: Rows, logged: FloatArray, log_true: FloatArray, weighs_by_cap: bool
    ) -> Shop:
        cap = _SHOP_CAP if weighs_by_cap else _SHOP_PLACES
        evaluated = market.log_propensities(who, shown, cap, _SHOP_FACTOR)
        clicks = market.world.clicks(who, shown, seed=seed)
        found = []
        for part in np.array_split(turns, logs):
            batch = ope.Batch.of(logged[part], evaluated[part], clicks[part])
            for cls in (Ips, Snips):
                sums = cls(_SHOP_PLACES)
                sums.update(batch)
                found.append(ope.estimate(sums, cluster=False, bootstrap=False))
        values = np.array([math.nan if each.value is None else each.value for each in found])
        by_log = values.reshape(logs, 2) / truth
        close = (np.abs(by_log - 1.0) < _CLOSE).mean(axis=0)
        return Shop(
            logger=logger,
            weighs_by_cap=weighs_by_cap,
            draws=float(draws.mean()) if logger == "draws again" else 1.0,
            ratio=_quantiles(np.exp(logged.sum(axis=1) - log_true)),
            mean_weight=float(np.exp(evaluated.sum(axis=1) - logged.sum(axis=1)).mean()),
            ips=_quantiles(by_log[:, 0]),
            snips=_quantiles(by_log[:, 1]),
            ips_close=float(close[0]),
            snips_close=float(close[1]),
            flagged=float(np.mean(["mean_weight" in each.reasons for each in found[::2]])),
        )

    begin(0)
    again = np.repeat(np.arange(_SHOP_USERS), 2 * logs * rows // (5 * _SHOP_USERS))
    aims, _ = market.drawn(again, _SHOP_PLACES, factor=_SHOP_FACTOR, rules=market.rules)
    values = market.world.expected(again, aims).sum(axis=1).reshape(_SHOP_USERS, -1)
    truth = float(values.mean())
    spread = values.var(axis=1, ddof=1).sum() / values.shape[1]
    begin(1)
    by_rules, logged = market.drawn(who, _SHOP_PLACES, rules=market.rules)
    begin(2)
    struck = market.capped(who)
    begin(3)
    obeying, draws = market.redrawn(who)

    def by_formula(shown: Rows) -> FloatArray:
        return market.log_propensities(who, shown, _SHOP_PLACES)

    def by_cap(shown: Rows) -> FloatArray:
        return np.asarray(market.log_propensities(who, shown, _SHOP_CAP).sum(axis=1))

    obeys = 1.0 / draws.reshape(_SHOP_USERS, -1).mean(axis=1)
    redrawn = by_formula(obeying)
    of_struck, true = by_formula(struck), by_cap(struck)
    return RulesAfterwards(
        n_items=_SHOP_ITEMS,
        n_sellers=_SHOP_SELLERS,
        n_users=_SHOP_USERS,
        k=_SHOP_PLACES,
        cap=_SHOP_CAP,
        logs=logs,
        rows=rows,
        factor=_SHOP_FACTOR,
        largest=float(np.bincount(market.sellers).max() / _SHOP_ITEMS),
        truth=truth,
        truth_error=float(math.sqrt(spread) / _SHOP_USERS),
        logged=float(market.world.expected(who, by_rules).sum(axis=1).mean()),
        shops=(
            shop("strikes out", struck, of_struck, true, True),
            shop("strikes out", struck, of_struck, true, False),
            shop("draws again", obeying, redrawn, redrawn.sum(axis=1) - np.log(obeys[who]), True),
            shop("has rules", by_rules, logged, by_cap(by_rules), True),
        ),
    )


def _quantiles(values: FloatArray) -> tuple[float, float, float]:
    return _three(np.quantile(values, _QUANTILES).tolist())


EXPERIMENTS: Mapping[str, Callable[..., Experiment]] = {
    "replay": replay,
    "four-ways": four_ways,
    "avg-bias": avg_bias,
    "variance": variance,
    "rules": rules,
}
