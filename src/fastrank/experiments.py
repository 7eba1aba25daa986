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
from fastrank.catalog import Catalog
from fastrank.eventlog import LogReader, LogWriter
from fastrank.inputs import as_seed
from fastrank.marginals import position_marginals, ranking_law
from fastrank.model import Model
from fastrank.ope.estimators import Avg, Ips, Replay, Rips
from fastrank.policies import Deterministic, PlackettLuce, Policy
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
    "Spread",
    "Variances",
    "avg_bias",
    "four_ways",
    "prefix_weights",
    "replay",
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


EXPERIMENTS: Mapping[str, Callable[..., Experiment]] = {
    "replay": replay,
    "four-ways": four_ways,
    "avg-bias": avg_bias,
    "variance": variance,
}
