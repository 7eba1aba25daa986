"""Published experiments on off-policy evaluation, each one call, where the truth is known.

`EXPERIMENTS` names them. What can be summed up exactly is; the rest is drawn, and says its error.
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

Advance: TypeAlias = Callable[[str, int, int], None]  # what is being done, steps done, in all


class Experiment:
    """What an experiment found; subclasses are dataclasses with the figures.

    Attributes
    ----------
    title : str
    words : str
        What is done and what to look at, in three sentences.
    sources : tuple of str
    """

    title: ClassVar[str]
    words: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        about = {"title": self.title, "words": self.words, "sources": list(self.sources)}
        return {**about, **asdict(self)}  # type: ignore[call-overload]  # subclasses are dataclasses


# ---- Replay ---------------------------------------------------------------------------------

_REPLAY_ROWS = 100_000
_RATE, _OTHER_RATE = 0.2, 0.1  # clicks on a visitor's favourite, and on anything else


@dataclass(frozen=True, slots=True)
class Replayed:
    """One uniform log, and what counting and replay make of it.

    Attributes
    ----------
    n_items, k : int
    matches, expected_matches : int, float
        Rows in which the logged ranking is the evaluated policy's; and their mean, n (A - k)! / A!.
    naive : float
        Clicks a place, rows without a match as misses.
    replay, standard_error : float or None
        Clicks a place in the matched rows; None without enough of those.
    expected_error : float or None
        Standard error that the expected number of matches leaves; None for fewer than one.
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
    """What `replay` found.

    Attributes
    ----------
    rows : int
        Of each log.
    truth : float
        Clicks a place of the evaluated policy.
    logged : float
        Clicks a place in the first log: what the logging policy earned.
    matched_again : int
        Of the first log's matches, those that an independent uniform draw matches once more.
    replay_again : float
        Clicks a place among these.
    logs : tuple of Replayed
        The first has ten items and one place, as the published runs.
    """

    title = "Replay: exact where it applies, and soon without data"
    words = (
        "A log shows items at random; a policy that always shows a visitor's favourite is judged by"
        " the rows where the log happens to show just that (replay). Counting the other rows as"
        " misses divides the answer by the number of items; leaving them out gives the truth. But"
        " the rows that are left shrink with the number of items, to the power of the places."
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
    """Matches and errors of replay, as items and places grow.

    Parameters
    ----------
    seed : int
    quick : bool
        Up to 1,000 items instead of 10,000.
    advance : callable, optional
        Called with the progress.

    Notes
    -----
    A visitor clicks on the favourite with .2, on anything else with .1. By symmetry, item l is the
    favourite for place l. 100,000 rows a log.

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
    """k different items a row, uniformly."""
    result = np.empty((rows, k), np.int64)
    for place in range(k):
        item = rng.integers(n_items - place, size=rows)
        # The item-th of those that are left: step over the chosen ones in ascending order.
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
    """One log and one policy that is evaluated from it.

    Attributes
    ----------
    logging, evaluation : str
        "deterministic" or "stochastic".
    same_model : bool
        Whether both rank by the same model.
    status : str
    reasons : tuple of str
    uncovered : float
        The evaluated policy's probability of what the logging policy could not show.
    estimate : float or None
        Clicks a ranking.
    interval : (float, float) or None
        95 %.
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
    """What `four_ways` found.

    Attributes
    ----------
    rows : int
        Of each of the two logs.
    n_items, n_users, k : int
    temperature : float
        Of the stochastic policies.
    combinations : tuple of Combination
    """

    title = "Deterministic or stochastic: which logs can evaluate which policies"
    words = (
        "The same visitors are logged twice, with the best items and with drawn ones, and each log"
        " is asked about the policy that wrote it and about another model, deterministic and"
        " stochastic. The deterministic log knows itself alone: of anything else it saw only the"
        " rankings that both would show, no fair sample. The stochastic log could have shown"
        " everything, so it can speak of every policy here, deterministic ones included."
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
        10,000 rows a log instead of 30,000.
    advance : callable, optional
        Called with the progress.

    Notes
    -----
    20 items, one place, so that a deterministic policy is within reach of the stochastic log, too
    (`fastrank demo` shows it out of reach at ten places). The truth is summed up exactly.

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
        Its temperature, over the logging policy's.
    truth : float
        Its clicks a ranking, exactly.
    avg_bias : float
        The logging policy's clicks less that, exactly.
    ips_bias, rips_bias : float
        The same of these estimators' means: 0 but for rounding.
    avg_error, ips_error, rips_error : float
        Exact standard errors with that many rows.
    avg, ips, rips : float
        Estimates from one drawn log.
    ips_status, rips_status : str
        What fastrank says of them.
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
    """What `avg_bias` found.

    Attributes
    ----------
    rows, n_items, k : int
    policies : tuple of Bias
        From hotter to colder.
    """

    title = "The logged average is no estimate of another policy"
    words = (
        "A log of drawn rankings is asked for the value of the same model at other temperatures."
        " The logging policy's own average (avg) misses it by more the further the policies are"
        " apart, and no number of rows helps, while its interval stays as narrow as ever. Weighted"
        " estimates (ips, rips) have no bias; they pay with variance, rips with less of it where"
        " visitors read from the top."
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
    """Bias and error of avg, ips and rips as the evaluation policy leaves the logging policy.

    Parameters
    ----------
    seed : int
    quick : bool
        5,000 rows instead of 50,000.
    advance : callable, optional
        Called with the progress.

    Notes
    -----
    8 items in 3 places, 336 rankings, all enumerated. Clicks follow the cascade: the first item
    that is liked is clicked, and nothing after it, so that at most one reward is not 0 and
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
    avg_variance = avg - avg**2  # a click or none
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
    """Weights of the first 1, ..., k places of all rankings, (r, k), in `ranking_law`'s order.

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
        # Rankings of one beginning stand together, as many for each.
        shape = (math.perm(n_items, place + 1), -1)
        before, after = p0.reshape(shape).sum(axis=1), p1.reshape(shape).sum(axis=1)
        result[:, place] = np.repeat(after / before, len(p0) // shape[0])
    return result


def _conditional(p: FloatArray, n_items: int, k: int) -> FloatArray:
    """Conditional log-propensities (r, k) of all rankings, in `ranking_law`'s order."""
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
_SPREAD = 2.0  # standard deviation of the scores, in temperatures of the logging policy
_PLACES = (1, 2, 3, 5, 10)
_ENUMERATED = 200_000  # rankings


@dataclass(frozen=True, slots=True)
class Spread:
    """Items and places; each triple is of ips, rips and iips.

    Attributes
    ----------
    n_items, k : int
    variances : tuple of float
        Of one row's value.
    errors : tuple of float
        Standard errors of these, relative; 0 where all rankings were enumerated.
    ess_shares : tuple of float
        1 / E[w^2], of the worst place: for rips the last one, where its weight is that of ips.
    worth : tuple of float
        Variance of a row that the evaluated policy had logged itself, over `variances`: as many
        rows of its own log is a row of this one worth.
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
    """What `variance` found.

    Attributes
    ----------
    factor : float
        Temperature of the evaluated policy over that of the logging policy.
    draws : int
        Rankings drawn where not all were enumerated.
    cells : tuple of Spread
    """

    title = "Variance of ips, rips and iips, as items and places grow"
    words = (
        "A log is asked for a temperature 0.8 times its own, and each estimator's variance is"
        " computed rather than observed. The weight of a whole ranking (ips) is a product over its"
        " places, so each of them multiplies the variance; rips leaves out the places below a"
        " reward, and iips takes one ratio a place, which hardly grows. So all are the same at one"
        " place and far apart at ten, and that pays where it is allowed: rips if a click depends on"
        " its item and those above, iips only if it depends on its item and place alone."
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
    """Variance and effective sample size of ips, rips and iips.

    Parameters
    ----------
    seed : int
    quick : bool
        Up to 1,000 items instead of 10,000, a fifth of the draws.
    advance : callable, optional
        Called with the progress.

    Notes
    -----
    Scores are normal quantiles with a standard deviation of 2 T. Clicks are position-based, with
    look-probabilities 1 / l and rates that rise with the score from .01 to .3; given the ranking
    they are independent, so with c_l an estimator's weight at place l and q_l the click rate there

        E[value^2] = E[(sum c_l q_l)^2 + sum c_l^2 q_l (1 - q_l)].

    The outer expectation runs over all rankings where they are 200,000 at most. Else it is the mean
    over rankings of which half are drawn from either policy, each counted 1 / (1/2 + w / 2) times
    (the balance heuristic, Veach and Guibas 1995), which bounds what one draw can bring. Marginals,
    and with them the truth and the ESS of iips, are exact throughout.

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
    # Best first, and in float32, as a catalog has them.
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
    """Rankings of which half are drawn from either policy, and their prefixes' weights."""
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
    """P(item at place l | those above it), (b, k), for Plackett-Luce weights."""
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
_SHOP_DIM, _OF_SELLER = 16, 0.05  # how much of the variance of items is between sellers
_SHOP_OVERLAP, _SHOP_FACTOR = 0.5, 0.9
_CLOSE = 0.1  # an estimate this near the truth, relative to it
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class Shop:
    """One way to keep a cap and to log, and what its logs say of another policy.

    Attributes
    ----------
    logger : {"strikes out", "draws again", "has rules"}
    weighs_by_cap : bool
        Whether the propensities of the evaluated policy know of the cap.
    draws : float
        Rankings drawn for each that is shown.
    ratio : (float, float, float)
        Logged propensity of a ranking, over the true one: 5 % quantile, median, 95 % quantile.
    mean_weight : float
        Over all logs; 1 where propensities are true.
    ips, snips : (float, float, float)
        Estimate over truth: 5 % quantile, median and 95 % quantile over logs.
    ips_close, snips_close : float
        Share of the logs whose estimate is within 10 % of the truth.
    flagged : float
        Share of the logs of which `ope.estimate` says that the mean weight is off (ips).
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
    """What `rules` found.

    Attributes
    ----------
    n_items, n_sellers, n_users, k, cap : int
    logs, rows : int
        How many logs, and the rows of each.
    factor : float
        Temperature of the evaluated policy over that of the logging policy.
    largest : float
        Share of the items that the largest seller has.
    truth, truth_error : float
        Clicks a ranking of the evaluated policy, and their standard error.
    logged : float
        Clicks a ranking in the logs of the third shop.
    shops : tuple of Shop
    """

    title = "A cap on the finished ranking makes its logged propensity wrong"
    words = (
        "Three shops show at most 2 of a seller among 10: one strikes out of the finished ranking"
        " what is too much, one draws again until a ranking obeys, and both log the propensity of"
        " the ranking as if there were no cap; the third has rules, and logs the propensity of"
        " that. Each is asked what the same cap at 0.9 times the temperature would earn."
        " Propensities that do not know of the cap are too small, and weights too large:"
        " self-normalised estimates (snips) hide it, and are no better for it where weights are off"
        " by more for one ranking than for another."
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
    """Visitors, items of sellers, and a policy of their own for each visitor."""

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
        """Rankings (b, k) of visitors (b,), and their conditional log-propensities."""
        policies = [PlackettLuce(factor * t) for t in self.temperatures[who].tolist()]
        seeds = self._rng.integers(2**53, size=len(who)).astype(np.uint64)
        found = self.catalog.rank_batch(
            self.users[who], k, policy=policies, seeds=seeds, rules=rules
        )
        return found.item_ids, found.log_propensities

    def obeys(self, rankings: Rows) -> Mask:
        """Which rankings (b, k) keep the cap."""
        shown = np.sort(self.sellers[rankings], axis=1)
        return np.asarray((shown[:, _SHOP_CAP:] != shown[:, :-_SHOP_CAP]).all(axis=1))

    def capped(self, who: Rows) -> Rows:
        """Rankings of all items, without what the cap strikes out, and the first places of them."""
        result = np.empty((len(who), _SHOP_PLACES), np.int64)
        for i, order in enumerate(self.drawn(who, _SHOP_ITEMS)[0]):
            sellers = self.sellers[order]
            by_seller = np.argsort(sellers, kind="stable")
            first = np.searchsorted(sellers[by_seller], sellers)
            above = np.empty(len(order), np.int64)  # of the same seller
            above[by_seller] = np.arange(len(order))
            result[i] = order[above - first < _SHOP_CAP][:_SHOP_PLACES]
        return result

    def redrawn(self, who: Rows) -> tuple[Rows, Rows]:
        """Rankings that obey, drawn again until they do, and how often each was drawn."""
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
        """Of rankings (b, k) under a cap, by the masses of sellers; a cap of k says nothing."""
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
    """Propensities and estimates of logs whose cap acts on finished rankings.

    Parameters
    ----------
    seed : int
    quick : bool
        8 logs of 250 rows instead of 16 of 750.
    advance : callable, optional
        Called with the progress.

    Notes
    -----
    1,000 items of 40 sellers, whose sizes fall as 1 / rank; a twentieth of the variance of items is
    between sellers. 20 visitors, each with a temperature that keeps half of their ten best; a click
    takes a look, with probability 1 / place, and a taste for the item.

    What a cap strikes out of an order of all items leaves the law of `Rules(cap=...)`: so the first
    shop shows what the third one does, and its true propensities are those of the third. The second
    one's are the formula's, over the share of a visitor's rankings that obey, which is that of
    those drawn. The truth is the mean over rankings drawn by rules, without the noise of clicks.

    Examples
    --------
    >>> after, _, again, ruled = rules(quick=True).shops
    >>> after.ratio[1] < 0.5, again.mean_weight > 1.5, [round(each, 5) for each in ruled.ratio]
    (True, True, [1.0, 1.0, 1.0])
    """
    market = _Market(as_seed("seed", seed))
    logs, rows = (8, 250) if quick else (16, 750)
    who = np.repeat(np.arange(_SHOP_USERS), logs * rows // _SHOP_USERS)
    turns = np.random.default_rng(seed).permutation(len(who))  # of visitors, among the logs
    steps = ["the truth", "rankings by rules", "rankings, capped", "rankings, drawn again"]

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
