"""What fastrank does, on a real shop's data, and what it costs, at up to a million items.

Three parts. `shop` ranks the bundled Open Bandit Dataset for one user under every inference
type. `compare` times the same at sizes where it matters, on vectors from `heavy_tailed`, against
the procedures that services run today (`fastrank.reference`). `story` simulates that shop's
visitors, and shows what logs of its rankings can decide, and what they cannot.
"""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fastrank import obd, reference
from fastrank.arraytypes import Float32Array, IntArray
from fastrank.calibration import drawn_overlap, temperature_for_overlap
from fastrank.catalog import Catalog
from fastrank.model import Model
from fastrank.policies import (
    INFERENCE_TYPES,
    Deterministic,
    EpsilonGreedy,
    FlatTail,
    PlackettLuce,
    Policy,
    policy,
    sampler_name,
)
from fastrank.ranking import Ranking
from fastrank.rules import Rules
from fastrank.simulate import PositionBased, World, true_value, write_log

if TYPE_CHECKING:  # pyarrow takes a while to import: only when a log is written
    from fastrank import ope

__all__ = [
    "OVERLAP",
    "Comparison",
    "Reweighted",
    "Shop",
    "Story",
    "Timing",
    "Told",
    "compare",
    "heavy_tailed",
    "milliseconds",
    "picture",
    "reweighted",
    "shop",
    "story",
    "times",
]

OVERLAP = 0.7
"""Temperatures are chosen for this share of the deterministic top k in a sampled ranking."""
EPSILON = 0.3
DIM = 64
K = 10
_TEXTBOOK_REPETITIONS = 3
# The story: temperatures; what the model gets wrong; how little of a taste is none.
_WARM, _COLD = 0.25, 0.2
_NOISE = 0.2
_SMALLER_DIM = 12
_NO_TASTE = 1e-3

Advance: TypeAlias = Callable[[str, int, int], None]  # what is being done, steps done, in all


@dataclass(frozen=True, slots=True, eq=False)
class Shop:
    """One user of the bundled data, ranked under every inference type.

    Attributes
    ----------
    n_items, n_users, user, k : int
    explained : float
        Share of the affinities that the vectors explain.
    temperature : float
    kept : float
        Share of the deterministic ranking that draws at this temperature show, as counted.
    rankings : dict of str to Ranking
        By inference type.
    microseconds : dict of str to float
        Median time of one ranking.
    ruled : Ranking
        By Plackett-Luce, under the rule that a category comes once.
    categories : dict of int to str
        By item: of the items of `ruled` and of Plackett-Luce's ranking without the rule.
    ruled_unaware : float
        The log-probability that `ruled` would have without the rule.
    first_item : int
        The item that Plackett-Luce most often shows first.
    first_reported, first_observed : float
        The propensity of that, and its frequency in `first_draws` rankings.
    first_draws : int
    """

    n_items: int
    n_users: int
    user: int
    k: int
    explained: float
    temperature: float
    kept: float
    rankings: Mapping[str, Ranking]
    microseconds: Mapping[str, float]
    ruled: Ranking
    categories: Mapping[int, str]
    ruled_unaware: float
    first_item: int
    first_reported: float
    first_observed: float
    first_draws: int


@dataclass(frozen=True, slots=True)
class Reweighted:
    """What propensities are for: one policy's clicks predicted from the other's log.

    Attributes
    ----------
    logged : float
        Click rate of the random policy, whose log is used.
    predicted, standard_error : float
        Click rate of bts by inverse propensity weighting of that log.
    observed, observed_error : float
        Click rate in the log of bts itself.
    """

    logged: float
    predicted: float
    standard_error: float
    observed: float
    observed_error: float


@dataclass(frozen=True, slots=True)
class Told:
    """What a log says about a policy, and the truth.

    Attributes
    ----------
    result : PolicyResult
    estimate : Estimate
        By the leading estimator.
    difference : Difference
        To what the logging policy earned.
    truth, true_difference : float
        Clicks a ranking, exactly.
    """

    result: ope.PolicyResult
    estimate: ope.Estimate
    difference: ope.Difference
    truth: float
    true_difference: float


@dataclass(frozen=True, slots=True)
class Story:
    """A simulated shop, logged twice, and what either log can say.

    Attributes
    ----------
    n_items, n_users, k, rows : int
        `rows` rankings were logged under each of two policies.
    dim, smaller_dim : int
        Numbers in a vector of the model that runs, and of the smaller one.
    temperature, colder : float
        Of the stochastic logging policy, and of the one that is evaluated.
    directory, model, smaller_model, deterministic_log, stochastic_log : Path
        Where all of this lies, to be played with.
    audit : Audit
        Of the stochastic log.
    by_deterministic, by_stochastic : tuple of Told
        The colder policy and the smaller model, by either log.
    best_of_k, best_of_one : Told
        The deterministic policy by the stochastic log: all k places, and the first one alone.
    """

    n_items: int
    n_users: int
    k: int
    rows: int
    dim: int
    smaller_dim: int
    temperature: float
    colder: float
    directory: Path
    model: Path
    smaller_model: Path
    deterministic_log: Path
    stochastic_log: Path
    audit: ope.Audit
    by_deterministic: tuple[Told, ...]
    by_stochastic: tuple[Told, ...]
    best_of_k: Told
    best_of_one: Told


@dataclass(frozen=True, slots=True)
class Timing:
    """One procedure's time for one ranking of k items.

    Attributes
    ----------
    law : str
        Policy family: only procedures of one law are compared.
    name : str
    ours : bool
    milliseconds : float
        Median; where `capped`, the cap, which the one attempt did not meet.
    ratio : float
        To the fastrank procedure that stands for the law.
    repetitions : int
    capped : bool
    propensities : bool
        Whether it says how probable its ranking was.
    """

    law: str
    name: str
    ours: bool
    milliseconds: float
    ratio: float
    repetitions: int
    capped: bool
    propensities: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """All procedures at one catalog size.

    Attributes
    ----------
    n_items : int
    skew, excess_kurtosis, top : float
        Of one user's scores, median over users; `top` is the best item's distance from the mean in
        standard deviations.
    temperature : float
    kept : float
        Share of that user's deterministic ranking that draws at it show, as counted.
    timings : tuple of Timing
    """

    n_items: int
    skew: float
    excess_kurtosis: float
    top: float
    temperature: float
    kept: float
    timings: tuple[Timing, ...]


def shop(k: int = 5, draws: int = 20_000, seed: int = 4) -> Shop:
    """Rank the bundled shop's items for one user under every inference type but "auto".

    Parameters
    ----------
    k : int
    draws : int
        Rankings drawn to compare a propensity with a frequency.
    seed : int
        Of the rankings shown.
    """
    factors = obd.vectors("all")
    categories = obd.items("all").categories[:, 0]
    catalog = Catalog(
        factors.item_ids, factors.item_vectors, features={"category": categories.tolist()}
    )
    model = Model(catalog, factors.user_ids, factors.user_vectors)
    user = 0  # the segment with most impressions
    query = model.user_vector(user)
    scores = model.catalog.scores(query)
    temperature = temperature_for_overlap(scores, k, OVERLAP)
    rankings: dict[str, Ranking] = {}
    microseconds: dict[str, float] = {}
    for name, (_, _, accepted) in INFERENCE_TYPES.items():
        if sampler_name(name) == "auto" or name == FlatTail().inference_type:
            continue  # without tables of users it is gumbel; without an index there is no use in it
        values = {"temperature": temperature, "epsilon": EPSILON}
        chosen = policy(name, **{p: values[p] for p in accepted if p in values})
        rankings[name] = model.recommend(user, k=k, policy=chosen, seed=seed)
        times = []
        for repetition in range(300):
            start = time.perf_counter()
            model.recommend(user, k=k, policy=chosen, seed=repetition)
            times.append(time.perf_counter() - start)
        microseconds[name] = 1e6 * statistics.median(times)
    gumbel = PlackettLuce(temperature=temperature)
    once = Rules(cap={"category": 1})
    ruled = model.recommend(user, k=k, policy=gumbel, seed=seed, rules=once)
    unaware = model.catalog.log_propensities(query, ruled.item_ids, policy=gumbel)
    shown = {*ruled.item_ids.tolist(), *rankings[gumbel.inference_type].item_ids.tolist()}
    best = model.recommend(user, k=1, policy=Deterministic(), seed=0).item_ids
    firsts = [
        int(model.recommend(user, k=1, policy=gumbel, seed=draw).item_ids[0])
        for draw in range(draws)
    ]
    log_propensity = model.catalog.log_propensities(query, best, policy=gumbel)[0]
    return Shop(
        n_items=len(factors.item_ids),
        n_users=len(factors.user_ids),
        user=user,
        k=k,
        explained=factors.explained,
        temperature=temperature,
        kept=drawn_overlap(scores, temperature, k),
        rankings=rankings,
        microseconds=microseconds,
        ruled=ruled,
        categories={item: str(categories[item]) for item in shown},
        ruled_unaware=float(unaware.sum()),
        first_item=int(best[0]),
        first_reported=float(np.exp(log_propensity)),
        first_observed=firsts.count(int(best[0])) / draws,
        first_draws=draws,
    )


def reweighted() -> Reweighted:
    """Predict the click rate of bts from the log of the random policy; look at bts's own log."""
    log, other = obd.log("all", "random"), obd.log("all", "bts")
    shown_by_bts = obd.action_distribution("all")[log.item_id, log.position - 1]
    value = shown_by_bts / log.propensity * log.click
    return Reweighted(
        logged=float(log.click.mean()),
        predicted=float(value.mean()),
        standard_error=float(value.std(ddof=1) / np.sqrt(len(log))),
        observed=float(other.click.mean()),
        observed_error=float(other.click.std(ddof=1) / np.sqrt(len(other))),
    )


def story(
    directory: Path, rows: int = 20_000, seed: int = 1, advance: Advance | None = None
) -> Story:
    """Log a simulated shop under two policies, and evaluate others from the logs.

    Parameters
    ----------
    directory : Path
        Where models and logs go. It is made anew: what is in it is lost.
    rows : int
        Rankings in each of the two logs.
    seed : int
        Of the logs.
    advance : callable, optional
        Called with the progress.

    Notes
    -----
    The true tastes are the bundled vectors: those of users who have any, brought to length 1, for
    one temperature to mean the same for all of them. Clicks are position-based, so the truth can be
    summed up exactly. The model that runs knows the tastes up to some noise; the smaller one knows
    the first 12 of their 16 numbers. At T = 0.25 and 20,000 rows both evaluations from the
    stochastic log are far from every threshold, and the deterministic policy is far beyond them at
    ten places.
    """
    from fastrank import ope
    from fastrank.eventlog import LogReader, LogWriter

    def step(description: str, done: int) -> None:
        if advance:
            advance(f"a simulated shop: {description}", done, 6)

    factors = obd.vectors("all")
    lengths = np.linalg.norm(factors.user_vectors, axis=1)
    known = lengths > _NO_TASTE
    tastes = factors.user_vectors[known] / lengths[known, None]
    world = World.from_vectors(
        tastes,
        factors.item_vectors,
        PositionBased(tuple(1.0 / np.log2(np.arange(K) + 2.0))),
        user_ids=factors.user_ids[known],
        item_ids=factors.item_ids,
    )
    best: Policy = Deterministic()
    warm: Policy = PlackettLuce(_WARM)
    model = world.model(noise=_NOISE, seed=1).with_policy(warm)
    smaller = Model(
        Catalog(world.item_ids, factors.item_vectors[:, :_SMALLER_DIM]),
        world.user_ids,
        tastes[:, :_SMALLER_DIM],
        policy=warm,
    )
    if directory.exists():
        shutil.rmtree(directory)
    paths = [directory / name for name in ("model", "smaller-model", "deterministic-log", "log")]
    model.save(paths[0])
    smaller.save(paths[1])
    for done, (path, policy_) in enumerate(((paths[2], best), (paths[3], warm))):
        step("its visitors come", done)
        with LogWriter(path) as log:
            write_log(world, model, policy_, K, rows, log, seed=seed)

    policies = {
        each.label: each
        for each in (
            ope.ByModel("logged", warm, model),
            ope.ByModel("colder", PlackettLuce(_COLD), model),
            ope.ByModel("smaller model", warm, smaller),
            ope.ByModel("always the best", best, model),
        )
    }

    @cache
    def truth(label: str, k: int) -> float:
        by = policies[label]
        return true_value(world, by.model, by.policy, k).value

    def told(path: Path, logging: str, labels: Sequence[str], k: int) -> tuple[Told, ...]:
        asked = [policies[label] for label in labels]
        found = ope.evaluate(LogReader(path), asked, logging=[model], places=k)
        return tuple(
            Told(
                each,
                each.estimates[each.lead],
                each.differences[each.lead],
                truth(each.label, k),
                truth(each.label, k) - truth(logging, k),
            )
            for each in found.policies
        )

    step("evaluation", 2)
    by_deterministic = told(paths[2], "always the best", ["colder", "smaller model"], K)
    step("audit", 3)
    audit = ope.audit(LogReader(paths[3]), [model])
    step("evaluation", 4)
    *by_stochastic, best_of_k = told(paths[3], "logged", list(policies)[1:], K)
    step("evaluation", 5)
    (best_of_one,) = told(paths[3], "logged", ["always the best"], 1)
    return Story(
        n_items=len(world.item_ids),
        n_users=len(world.user_ids),
        k=K,
        rows=rows,
        dim=factors.item_vectors.shape[1],
        smaller_dim=_SMALLER_DIM,
        temperature=_WARM,
        colder=_COLD,
        directory=directory,
        model=paths[0],
        smaller_model=paths[1],
        deterministic_log=paths[2],
        stochastic_log=paths[3],
        audit=audit,
        by_deterministic=by_deterministic,
        by_stochastic=tuple(by_stochastic),
        best_of_k=best_of_k,
        best_of_one=best_of_one,
    )


def heavy_tailed(n_items: int, n_users: int, seed: int = 0) -> tuple[Float32Array, Float32Array]:
    """Item and user vectors whose scores have the tails of a real recommender's.

    Parameters
    ----------
    n_items, n_users : int
    seed : int

    Returns
    -------
    items : ndarray of float32, shape (n_items, 64)
    users : ndarray of float32, shape (n_users, 64)

    Notes
    -----
    32 tastes are orthogonal unit vectors. An item lies along one taste, at a distance that is
    Weibull with shape 1.26, plus normal noise of 0.1 in each dimension; a user is one taste plus
    normal noise of 0.05. So one item in 32 concerns a user at all, a few of those very much, and
    the rest is noise. Within a user the scores have skew 6, excess kurtosis 65 and a best item 23
    (n = 100,000) to 26 (n = 1,000,000) standard deviations above the mean. Factors of real
    check-in data (Gowalla, 41,000 places, alternating least squares) have 6, 66 and 24; scores of
    normal vectors would have 0, 0 and 4.
    """
    rng = np.random.default_rng(seed)
    tastes = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][:32].astype(np.float32)
    items = np.empty((n_items, DIM), np.float32)
    rows_at_once = 1 << 16  # bounds the scratch memory
    for start in range(0, n_items, rows_at_once):
        block = items[start : start + rows_at_once]
        rng.standard_normal(out=block, dtype=np.float32)
        block *= np.float32(0.1)
        strength = rng.weibull(1.26, size=(len(block), 1)).astype(np.float32)
        block += strength * tastes[rng.integers(len(tastes), size=len(block))]
    users = tastes[rng.integers(len(tastes), size=n_users)]
    users = users + np.float32(0.05) * rng.standard_normal((n_users, DIM), dtype=np.float32)
    return items, users


def compare(
    n_items: int,
    *,
    repetitions: int,
    textbook_cap: float,
    advance: Advance | None = None,
) -> Comparison:
    """Time every procedure on one catalog, interleaved, one thread.

    Parameters
    ----------
    n_items : int
    repetitions : int
        Rounds; in each, every procedure of fastrank and NumPy makes one ranking.
    textbook_cap : float
        Seconds after which a procedure over dictionaries is stopped. They have 3 repetitions, or 1
        from a million items on.
    advance : callable, optional
        Called with the progress.
    """
    items, users = heavy_tailed(n_items, n_users=8)
    catalog = Catalog(np.arange(n_items), items)
    scores = [catalog.scores(user) for user in users]
    temperature = temperature_for_overlap(scores[0], K, OVERLAP)
    skew, excess_kurtosis, top = np.median([_shape(s) for s in scores], axis=0).tolist()

    fast = _fast_procedures(catalog, items, temperature)
    textbook = _textbook_procedures(temperature)
    textbook_rounds = 1 if n_items >= 1_000_000 else _TEXTBOOK_REPETITIONS
    n_steps = repetitions + textbook_rounds * len(textbook)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in fast}
    for run in fast.values():
        run(users[0], 0)  # page faults and the cached sampler's table are not part of a ranking
    for repetition in range(repetitions):
        if advance:
            advance(f"{n_items:,} items: fastrank and NumPy", repetition, n_steps)
        for key, run in fast.items():
            # The cached sampler is for a user who comes again: always user 0.
            user = users[0] if key[1] == _CACHED else users[repetition % len(users)]
            start = time.perf_counter()
            run(user, repetition)
            seconds[key].append(time.perf_counter() - start)
    by_item = dict(enumerate(scores[0].tolist()))
    capped: set[tuple[str, str]] = set()
    for number, (key, procedure) in enumerate(textbook.items()):
        seconds[key] = []
        for repetition in range(textbook_rounds):
            if advance:
                done = repetitions + number * textbook_rounds + repetition
                advance(f"{n_items:,} items: {key[1]}", done, n_steps)
            start = time.perf_counter()
            try:
                with _time_limit(textbook_cap):
                    procedure(by_item, random.Random(repetition))
            except TimeoutError:
                capped.add(key)
                seconds[key] = [textbook_cap]
                break
            seconds[key].append(time.perf_counter() - start)

    medians = {key: 1e3 * statistics.median(values) for key, values in seconds.items()}
    timings = [
        Timing(
            law=law,
            name=name,
            ours=name.startswith("fastrank"),
            milliseconds=medians[law, name],
            ratio=medians[law, name] / medians[law, _STANDARD[law]],
            repetitions=len(seconds[law, name]),
            capped=(law, name) in capped,
            propensities=name.startswith("fastrank"),
        )
        for law in _STANDARD
        for of_law, name in seconds
        if of_law == law
    ]
    kept = drawn_overlap(scores[0], temperature, K)
    return Comparison(n_items, skew, excess_kurtosis, top, temperature, kept, tuple(timings))


# The procedure of fastrank that the others of its law are measured against.
_STANDARD = {
    "Deterministic": "fastrank",
    "Plackett-Luce": "fastrank, gumbel",
    "Epsilon-greedy": "fastrank",
}
_CACHED = "fastrank, cached user"

Key: TypeAlias = tuple[str, str]  # law, name


def _fast_procedures(
    catalog: Catalog, items: Float32Array, temperature: float
) -> dict[Key, Callable[[Float32Array, int], object]]:
    """What runs in the interleaved rounds: (query, seed) -> a ranking, scores included."""

    def ours(chosen: Policy) -> Callable[[Float32Array, int], object]:
        return lambda query, seed: catalog.rank(query, k=K, policy=chosen, seed=seed)

    def numpy(
        procedure: Callable[..., IntArray],
    ) -> Callable[[Float32Array, int], object]:
        return lambda query, seed: procedure(
            items, query, K, temperature, np.random.default_rng(seed)
        )

    return {
        ("Deterministic", "fastrank"): ours(Deterministic()),
        ("Plackett-Luce", "fastrank, gumbel"): ours(PlackettLuce(temperature)),
        ("Plackett-Luce", _CACHED): ours(PlackettLuce(temperature, sampler="cached")),
        ("Plackett-Luce", "NumPy, softmax + choice"): numpy(reference.numpy_choice),
        ("Plackett-Luce", "NumPy, Gumbel + top k"): numpy(reference.numpy_gumbel),
        ("Epsilon-greedy", "fastrank"): ours(EpsilonGreedy(EPSILON)),
    }


def _textbook_procedures(
    temperature: float,
) -> dict[Key, Callable[[Mapping[int, float], random.Random], object]]:
    """What runs over a dictionary of scores that it is given for nothing."""
    return {
        ("Deterministic", "textbook, sort"): lambda scores, _: reference.textbook_deterministic(
            scores, K
        ),
        ("Plackett-Luce", "textbook, softmax k times"): lambda scores, rng: (
            reference.textbook_softmax(scores, K, temperature, rng)
        ),
        ("Plackett-Luce", "textbook, softmax once"): lambda scores, rng: (
            reference.textbook_softmax_removal(scores, K, temperature, rng)
        ),
        ("Plackett-Luce", "textbook, Gumbel + sort"): lambda scores, rng: reference.textbook_gumbel(
            scores, K, temperature, rng
        ),
        ("Epsilon-greedy", "textbook, maximum k times"): lambda scores, rng: (
            reference.textbook_epsilon_greedy(scores, K, EPSILON, rng)
        ),
    }


def _shape(scores: Float32Array) -> tuple[float, float, float]:
    """Skew, excess kurtosis, and the best score in standard deviations above the mean."""
    z = scores.astype(np.float64)
    z -= z.mean()
    z /= z.std()
    return float(np.mean(z**3)), float(np.mean(z**4)) - 3.0, float(z.max())


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in pure Python code that runs longer; no limit outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def picture(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw the timings as bars, one panel for each catalog size, and save a PNG.

    Parameters
    ----------
    comparisons : sequence of Comparison
    path : Path
    """
    from matplotlib.figure import Figure

    colours = {"fastrank": "#1b6ca8", "NumPy": "#e08e2b", "textbook": "#a0a0a0"}
    figure = Figure(figsize=(4.6 * len(comparisons) + 3.4, 6.0), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(comparisons), squeeze=False, sharex=True, sharey=True)[0]
    rows: list[tuple[str, bool]] = []  # label, and whether it is a heading
    for panel, comparison in zip(panels, comparisons, strict=True):
        rows.clear()
        law = ""
        for timing in comparison.timings:
            if timing.law != law:
                law = timing.law
                rows.append((law, True))
            y = len(rows)
            panel.barh(y, timing.milliseconds, 0.74, color=colours[timing.name.split(",")[0]])
            text = f" {'over ' if timing.capped else ''}{milliseconds(timing.milliseconds)} ms"
            if timing.ratio != 1.0:
                text += f"  ({times(timing.ratio)})"
            panel.text(timing.milliseconds, y, text, va="center", fontsize=9)
            rows.append((timing.name, False))
        panel.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
        panel.tick_params(axis="y", length=0)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:,g}")
        panel.set_title(f"{comparison.n_items:,} items", fontsize=12)
        panel.set_xlabel("milliseconds for one ranking (logarithmic scale)")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low, high * 30)  # room for the figures beside the longest bars
    panels[0].set_yticks(range(len(rows)), [label for label, _ in rows])
    for label, (_, heading) in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if heading else "normal")
    figure.suptitle(
        f"Time to draw one ranking of {K} items\n"
        "(fastrank's comes with its exact probability, the others' without)",
        fontsize=13,
    )
    figure.savefig(path)


def milliseconds(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 9.12, 1,230."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def times(ratio: float) -> str:
    """How many times as long: 0.12 x, 3.1 x, 57 x, 1,230 x."""
    if ratio >= 10:
        return f"{ratio:,.0f} x"
    return f"{ratio:.1f} x" if ratio >= 1 else f"{ratio:.2f} x"
