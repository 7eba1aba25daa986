"""Logs of shops with a known truth, drawn again and again, for the coverage of intervals.

Each design gives arrays for `ope.Batch.of` and knows the evaluation policy's value and that of the
logging policy. Sizes are as small as still show what the design is about: a ladder draws thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank.marginals import position_marginals
from fastrank.policies import PlackettLuce

__all__ = ["BEYOND", "DESIGNS", "Design", "Log", "modelled", "on_a_page"]

Array: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Log: TypeAlias = dict[str, Any]

ARMS = 30
_FIXED = np.random.default_rng(20261130)
SCORES = _FIXED.standard_normal(ARMS)
LIKING = 0.6 * SCORES + 0.8 * _FIXED.standard_normal(ARMS)  # what people like, half known
OTHERS = SCORES + 0.4 * LIKING  # of the evaluation policy, which knows a little more
P0, P1 = (np.exp(s) / np.exp(s).sum() for s in (SCORES, OTHERS))


@dataclass(frozen=True)
class Design:
    """How logs are drawn, and what is true of them.

    `draw(rng)` gives the arrays of a log, and `seeds` where rows share them; `value` is the
    evaluation policy's, `logged` the logging policy's.
    """

    draw: Callable[[np.random.Generator], Log]
    value: float
    logged: float


def rates(typical: float) -> Array:
    """Of clicks, by item."""
    return np.asarray(typical * np.exp(0.5 * LIKING - 0.125))


def means(of_items: Array) -> tuple[float, float]:
    """Under the evaluation and the logging policy, of one place."""
    return float(P1 @ of_items), float(P0 @ of_items)


def arms(rng: np.random.Generator, n: int) -> Ints:
    return np.minimum(np.searchsorted(np.cumsum(P0), rng.random(n)), ARMS - 1)


def one_place(arm: Ints, rewards: npt.NDArray[Any], users: Ints, **others: Any) -> Log:
    logged, evaluated = np.log(P0[arm]), np.log(P1[arm])
    return dict(logged=logged, evaluated=evaluated, rewards=rewards, users=users, **others)


def active_users(rng: np.random.Generator, n: int, rows: float, sd: float) -> tuple[Ints, Array]:
    """Rows' users, of lognormal activity, and the logarithm of each one's activity."""
    bent = sd * rng.standard_normal(n)
    return np.repeat(np.arange(n), rng.poisson(rows * np.exp(bent - sd**2 / 2))), bent


def drawn(rng: np.random.Generator, scores: Array, n: int, k: int) -> Ints:
    """Plackett-Luce rankings."""
    noisy = scores + rng.gumbel(size=(n, len(scores)))
    return np.argsort(-noisy, axis=1)[:, :k]


def plackett_luce(scores: Array, items: Ints) -> Array:
    weights = np.exp(scores)
    shown = weights[items]
    above = np.cumsum(shown, axis=1) - shown
    return np.asarray(np.log(shown) - np.log(weights.sum() - above))


def rare(typical: float, n: int, users: int) -> Design:
    """Clicks of so many a row."""
    of_items = rates(typical)

    def draw(rng: np.random.Generator) -> Log:
        arm = arms(rng, n)
        clicks = (rng.random(n) < of_items[arm]).astype(float)
        return one_place(arm, clicks, rng.integers(0, users, n))

    return Design(draw, *means(of_items))


def revenue(sigma: float, users: int, typical: float = 0.02) -> Design:
    """Lognormal, where something is bought; of users of lognormal activity."""
    of_items = rates(typical)

    def draw(rng: np.random.Generator) -> Log:
        user, _ = active_users(rng, users, 7.0, 0.8)
        arm = arms(rng, len(user))
        own = rng.lognormal(-0.08, 0.4, users)
        buys = rng.random(len(user)) < np.minimum(of_items[arm] * own[user], 1.0)
        return one_place(arm, buys * rng.lognormal(0.0, sigma, len(user)), user)

    value, logged = means(of_items)
    return Design(draw, value * np.exp(sigma**2 / 2), logged * np.exp(sigma**2 / 2))


def power_law(exponent: float, users: int) -> Design:
    """Pareto, where something is bought: its variance is infinite up to an exponent of 2."""
    of_items = rates(0.02)

    def draw(rng: np.random.Generator) -> Log:
        user, _ = active_users(rng, users, 7.0, 0.8)
        arm = arms(rng, len(user))
        buys = rng.random(len(user)) < np.minimum(of_items[arm], 1.0)
        return one_place(arm, buys * (1.0 + rng.pareto(exponent, len(user))), user)

    value, logged = means(of_items)
    mean = exponent / (exponent - 1.0)
    return Design(draw, value * mean, logged * mean)


def active_buyers(users: int, activity: float, own: float) -> Design:
    """The active click more often, in proportion to their activity, and by their own liking."""
    of_items = rates(0.05)

    def draw(rng: np.random.Generator) -> Log:
        user, bent = active_users(rng, users, 30.0, activity)
        arm = arms(rng, len(user))
        liking = np.exp(bent - activity**2 / 2) * rng.lognormal(-(own**2) / 2, own, users)
        # A reward a row, in proportion to the chance of a click: a Poisson count of them.
        return one_place(arm, rng.poisson(of_items[arm] * liking[user]).astype(float), user)

    more = np.exp(activity**2)  # E a^2 over (E a)^2, of lognormal activity
    value, logged = means(of_items)
    return Design(draw, more * value, more * logged)


def refunds(users: int) -> Design:
    """40 for a purchase, or, for a tenth of them, -60; the active buy more often."""
    of_items = rates(0.03)
    # E activity x own rate over E activity, both lognormal of one normal: sd .6 and .3.
    more = np.exp(0.6 * 0.3)

    def draw(rng: np.random.Generator) -> Log:
        user, bent = active_users(rng, users, 8.0, 0.6)
        arm = arms(rng, len(user))
        own = np.exp(0.5 * bent - 0.045)
        buys = rng.random(len(user)) < np.minimum(of_items[arm] * own[user], 1.0)
        return one_place(arm, buys * np.where(rng.random(len(user)) < 0.1, -60.0, 40.0), user)

    value, logged = means(of_items)
    return Design(draw, 30.0 * more * value, 30.0 * more * logged)


def bots(users: int) -> Design:
    """3 % of the users are bots with 60 % of the rows, who click 15 % of anything."""
    of_items = rates(0.05)

    def draw(rng: np.random.Generator) -> Log:
        bot = rng.random(users) < 0.03
        user = np.repeat(np.arange(users), rng.poisson(np.where(bot, 48.5 * 4, 4.0)))
        arm = arms(rng, len(user))
        own = np.where(bot, rng.beta(1.5, 8.5, users), 0.0)
        chance = np.where(bot[user], own[user], of_items[arm])
        return one_place(arm, (rng.random(len(user)) < chance).astype(float), user)

    share = 0.03 * 48.5 / (0.03 * 48.5 + 0.97)
    value, logged = (share * 0.15 + (1 - share) * mean for mean in means(of_items))
    return Design(draw, value, logged)


def shared_seeds(seeds: int, n: int) -> Design:
    """Rows of one seed have the same noise, and so the same item, as users are alike."""
    of_items = rates(0.1)

    def draw(rng: np.random.Generator) -> Log:
        seed = rng.integers(0, seeds, n)
        arm = arms(rng, seeds)[seed]
        clicks = (rng.random(n) < of_items[arm]).astype(float)
        return one_place(arm, clicks, np.arange(n), seeds=seed)

    return Design(draw, *means(of_items))


def sampled(n: int, kept: float) -> Design:
    """Of rows without a click only so many were kept; each stands for the others."""
    of_items = rates(0.03)

    def draw(rng: np.random.Generator) -> Log:
        arm = arms(rng, n)
        clicks = (rng.random(n) < of_items[arm]).astype(float)
        chance = np.where(clicks > 0.0, 1.0, kept)
        rows = np.flatnonzero(rng.random(n) < chance)
        users = rng.integers(0, n // 5, n)[rows]
        return one_place(arm[rows], clicks[rows], users, row_weights=1.0 / chance[rows])

    return Design(draw, *means(of_items))


PLACES = 3


def mean(scores: Array, places: int, earned: Callable[[Ints], Array]) -> float:
    """Of what rankings earn, over the Plackett-Luce law of all that there are."""
    items = np.array([*permutations(range(len(scores)), places)])
    return float(np.exp(plackett_luce(scores, items).sum(axis=1)) @ earned(items))


def truths(earned: Callable[[Ints], Array]) -> tuple[float, float]:
    return mean(OTHERS, PLACES, earned), mean(SCORES, PLACES, earned)


def rankings(
    items: Ints, rewards: npt.NDArray[Any], users: Ints, scores: Array = SCORES, **more: Any
) -> Log:
    return dict(
        logged=plackett_luce(scores, items),
        evaluated=plackett_luce(OTHERS, items),
        rewards=rewards,
        users=users,
        **more,
    )


def scrolled(n: int) -> Design:
    """People look from the top and leave after a click; displayed is what they looked at."""
    of_items = rates(0.2)

    def chances(items: Ints) -> Array:
        return np.minimum(of_items[items], 0.9)

    def earned(items: Ints) -> Array:
        return np.asarray(1.0 - (1.0 - chances(items)).prod(axis=1))

    def draw(rng: np.random.Generator) -> Log:
        items = drawn(rng, SCORES, n, PLACES)
        clicks = rng.random(items.shape) < chances(items)
        looks: npt.NDArray[np.bool_] = np.cumsum(clicks, axis=1) - clicks == 0
        rewards = (clicks & looks).astype(float)
        return rankings(items, rewards, np.arange(n), lengths=looks.sum(axis=1))

    return Design(draw, *truths(earned))


def bought_once(n: int) -> Design:
    """One purchase a ranking, by multinomial choice: what stands below matters."""

    def chances(items: Ints) -> Array:
        worth = np.exp(1.2 * LIKING[items])
        return np.asarray(worth / (worth.sum(axis=1, keepdims=True) + 10.0))

    def draw(rng: np.random.Generator) -> Log:
        items = drawn(rng, SCORES, n, PLACES)
        below = np.cumsum(chances(items), axis=1)
        x = rng.random(n)[:, None]
        bought = (x < below) & (x >= below - chances(items))
        return rankings(items, bought.astype(float), np.arange(n))

    return Design(draw, *truths(lambda items: np.asarray(chances(items).sum(axis=1))))


def weekdays(n: int, users: int) -> Design:
    """Hotter at weekends, when people click more; a user comes on several days."""
    heat = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    level = np.array([0.03, 0.03, 0.03, 0.04, 0.05, 0.10, 0.12])
    share = np.array([0.10, 0.10, 0.10, 0.12, 0.13, 0.22, 0.23])
    looks = np.array([1.0, 0.6, 0.4])

    def draw(rng: np.random.Generator) -> Log:
        day = rng.choice(7, n, p=share)
        user = rng.integers(0, users, n)
        own = rng.lognormal(-0.125, 0.5, users)[user]
        scores = SCORES / heat[day, None]
        items = np.argsort(-(scores + rng.gumbel(size=scores.shape)), axis=1)[:, :PLACES]
        logged = np.zeros((n, PLACES))
        for each in (1.0, 2.0):
            mine = heat[day] == each
            logged[mine] = plackett_luce(SCORES / each, items[mine])
        chance = rates(1.0)[items] * looks * (level[day] * own)[:, None]
        clicks = (rng.random(items.shape) < np.minimum(chance, 1.0)).astype(float)
        return rankings(items, clicks, user) | {"logged": logged}

    typical = rates(1.0)

    def earned(items: Ints) -> Array:
        return np.asarray((typical[items] * looks).sum(axis=1))

    days = share * level
    logged = sum(days[heat == t].sum() * mean(SCORES / t, PLACES, earned) for t in (1.0, 2.0))
    return Design(draw, days.sum() * mean(OTHERS, PLACES, earned), logged)


PAGE = 5  # places


def on_a_page(n: int, far: float, behaviour: str) -> Design:
    """Five places of eight items; `far` is how much better the evaluation policy knows them.

    With items, and the marginals that iips wants. People "leave" after a click, "buy" one at most,
    or "look" at each place for itself.
    """
    places, liking = PAGE, LIKING[:8]
    of_items = np.minimum(0.2 * np.exp(0.7 * liking - 0.25), 0.9)
    both = SCORES[:8], SCORES[:8] + far * liking
    of_places = [position_marginals(scores, PlackettLuce(1.0), places) for scores in both]

    def sales(items: Ints) -> Array:
        """Chances that an item of the first places is bought."""
        worth = np.exp(1.2 * liking[items])
        return np.asarray(np.cumsum(worth / (worth.sum(axis=1, keepdims=True) + 10.0), axis=1))

    def serve(items: Ints, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        x = rng.random(items.shape)
        if behaviour == "buy":
            below = sales(items)
            bought = x[:, :1] < below
            return np.asarray(bought & (np.cumsum(bought, axis=1) == 1))
        clicks = x < of_items[items]
        if behaviour == "leave":
            return np.asarray(clicks & (np.cumsum(clicks, axis=1) == 1))
        return clicks

    def earned(items: Ints) -> Array:
        if behaviour == "buy":
            return sales(items)[:, -1]
        chances = of_items[items]
        if behaviour == "leave":
            return np.asarray(1.0 - (1.0 - chances).prod(axis=1))
        return np.asarray(chances.sum(axis=1))

    def draw(rng: np.random.Generator) -> Log:
        items = drawn(rng, both[0], n, places)
        logged, evaluated = (each[items, np.arange(places)] for each in of_places)
        return {
            "logged": plackett_luce(both[0], items),
            "evaluated": plackett_luce(both[1], items),
            "rewards": serve(items, rng).astype(float),
            "users": rng.integers(0, n // 4, n),
            "items": items,
            "marginals_logged": logged,
            "marginals_evaluated": evaluated,
        }

    return Design(draw, mean(both[1], places, earned), mean(both[0], places, earned))


def modelled(log: Log, other: Log, far: float, model: str) -> Log:
    """Arrays of a reward model for a log `on_a_page`: means by item and place, of some rows.

    Of "other" rows, the "same" or "few" of the same; "reversed", or "large" whatever was earned.
    """
    places, of = PAGE, log if model in ("same", "few") else other
    rows = slice(0, 60) if model == "few" else slice(None)
    q = np.zeros((8, places))
    for place in range(places):
        items, rewards = of["items"][rows, place], of["rewards"][rows, place]
        counts = np.bincount(items, minlength=8)
        q[:, place] = (np.bincount(items, rewards, 8) + rewards.mean()) / (counts + 1)
    if model == "reversed":
        q = q.max() - q
    if model == "large":
        q = np.linspace(0.5, 2.0, 8)[:, None] * np.ones(places)
    weights = np.tile(np.exp(SCORES[:8] + far * LIKING[:8]), (len(log["items"]), 1))
    expected = np.zeros(log["items"].shape)
    for place in range(places):
        expected[:, place] = weights @ q[:, place] / weights.sum(axis=1)
        np.put_along_axis(weights, log["items"][:, [place]], 0.0, axis=1)
    return {"q_logged": q[log["items"], np.arange(places)], "q_expected": expected}


DESIGNS: dict[str, Callable[[], Design]] = {
    "scroll depth, 5,000 rankings": lambda: scrolled(5000),
    "one purchase a ranking, 1,000": lambda: bought_once(1000),
    "one purchase a ranking, 4,000": lambda: bought_once(4000),
    "one purchase a ranking, 16,000": lambda: bought_once(16_000),
    "clicks of 1e-3, 2.5 expected": lambda: rare(1e-3, 2000, 400),
    "clicks of 1e-3, 6 expected": lambda: rare(1e-3, 5000, 1000),
    "clicks of 1e-3, 12 expected": lambda: rare(1e-3, 10_000, 2000),
    "clicks of 1e-3, 50 expected": lambda: rare(1e-3, 40_000, 8000),
    "clicks of 1e-3, 140 expected": lambda: rare(1e-3, 112_000, 20_000),
    "clicks of 1e-4, 25 expected": lambda: rare(1e-4, 200_000, 40_000),
    "bots with 60 % of the rows": lambda: bots(1000),
    "300 users who click as they are active": lambda: active_buyers(300, 0.8, 0.0),
    "1,000 users, and as they like it": lambda: active_buyers(1000, 0.8, 0.5),
    "refunds": lambda: refunds(500),
    "lognormal revenue, sigma 1.2, 6,000 users": lambda: revenue(1.2, 6000),
    "lognormal revenue, sigma 1.8, 6,000 users": lambda: revenue(1.8, 6000),
    "lognormal revenue, sigma 1.8, 600 users": lambda: revenue(1.8, 600),
    "lognormal revenue, sigma 1.8, 25 users": lambda: revenue(1.8, 25, 0.05),
    "lognormal revenue, sigma 2.5, 2,000 users": lambda: revenue(2.5, 2000),
    "temperature and clicks by weekday": lambda: weekdays(10_000, 2000),
    "clickless rows kept at .1": lambda: sampled(20_000, 0.1),
    "24 seeds for all": lambda: shared_seeds(24, 3000),
}
# Tails that no bulk tells: no status can, and the documentation says so.
BEYOND: dict[str, Callable[[], Design]] = {
    "Pareto revenue, exponent 1.5": lambda: power_law(1.5, 2000),
    "Pareto revenue, exponent 1.2": lambda: power_law(1.2, 2000),
}
