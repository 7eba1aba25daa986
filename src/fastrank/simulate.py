"""Simulate users with known preferences, their clicks, and the value of a policy.

With a real log, the right value of an estimate is unknown; with a simulated one, it is known.
`write_log` serves rankings of one policy to the users of a `World` and logs their clicks, and
`true_value` computes what any other policy would have earned. Every random number depends only on
its seed and its row: neither on the batch size nor on earlier rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from numbers import Real
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, IdArray, Mask, Rows
from fastrank.catalog import Catalog
from fastrank.ids import IdIndex, Ids, as_id, as_ids, listed
from fastrank.inputs import as_column, as_count, as_real, as_seed, shown
from fastrank.marginals import MAX_ITEMS, next_law, position_marginals, prefix_tree, ranking_law
from fastrank.model import Model, scorer_of
from fastrank.policies import Policy, law_of
from fastrank.ranking import Ranking
from fastrank.rules import Rules
from fastrank.scorer import Scorer

__all__ = [
    "Cascade",
    "ClickModel",
    "PositionBased",
    "RankingLog",
    "TrueValue",
    "World",
    "q_columns",
    "true_value",
    "write_log",
]


_USERS, _CLICKS, _RANKINGS, _VECTORS, _NOISE, _TRUTH = range(6)  # streams of one seed
_BATCH = 2048  # rankings drawn at once
_CHEAP_RANKINGS = 1 << 20  # places x rankings x users up to which true values are enumerated
# (Items + _PER_USER) x users up to which they are summed over marginals, which takes seconds.
_CHEAP_MARGINALS = 100_000
_PER_USER = 300
_CALIBRATION_USERS = 200


# How clicks come about


@dataclass(frozen=True, slots=True)
class PositionBased:
    """Users examine each place with a fixed probability, whatever stands above it.

    Users click an item if they examine its place and like it: P(click at l) = examination[l] x
    rate. The reward at a place thus depends only on the item there.

    Parameters
    ----------
    examination : sequence of float
        P(place l is examined), in [0, 1], best place first; rankings may not be longer.

    Examples
    --------
    >>> PositionBased((1.0, 0.5)).expected(np.array([[0.2, 0.2]])).tolist()
    [[0.2, 0.1]]
    """

    examination: Sequence[float]

    def __post_init__(self) -> None:
        chances = tuple(
            _probability(f"examination[{place}]", value)
            for place, value in enumerate(self.examination)
        )
        if not chances:
            raise ValueError("examination: expected a probability for each place, got none")
        object.__setattr__(self, "examination", chances)

    def examined(self, rates: FloatArray) -> FloatArray:
        """Compute P(place l is examined | items above), (b, k), for rates (b, k) of the items."""
        places = rates.shape[1]
        if places > len(self.examination):
            raise ValueError(
                f"examination: has {len(self.examination)} places, the ranking {places}"
            )
        return np.broadcast_to(np.array(self.examination[:places]), rates.shape)

    def expected(self, rates: FloatArray) -> FloatArray:
        """Compute P(click), (b, k), for rates (b, k) of the items."""
        return np.asarray(self.examined(rates) * rates, np.float64)

    def clicks(self, rates: FloatArray, uniforms: FloatArray) -> FloatArray:
        """Draw clicks, 0 or 1, (b, k), from uniform numbers (b, k, 2)."""
        return (uniforms[..., 0] < self.expected(rates)).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Cascade:
    """Users examine places from the top down, and may leave after each.

    Parameters
    ----------
    continuation : float
        P(going on | no click here), in [0, 1].
    after_click : float
        P(going on | click here), in [0, 1]. With 0, users click at most once.

    Notes
    -----
    Craswell et al. (2008), "An experimental comparison of click position-bias models"; with
    ``after_click``, the dependent click model of Guo et al. (2009) with equal places.

    Examples
    --------
    >>> Cascade().expected(np.array([[0.5, 0.5, 0.5]])).tolist()
    [[0.5, 0.25, 0.125]]
    """

    continuation: float = 1.0
    after_click: float = 0.0

    def __post_init__(self) -> None:
        for name in ("continuation", "after_click"):
            object.__setattr__(self, name, _probability(name, getattr(self, name)))

    def examined(self, rates: FloatArray) -> FloatArray:
        """Compute P(place l is examined | items above), (b, k), for rates (b, k) of the items."""
        goes_on = rates * self.after_click + (1.0 - rates) * self.continuation
        result = np.ones_like(rates)
        np.cumprod(goes_on[:, :-1], axis=1, out=result[:, 1:])
        return result

    def expected(self, rates: FloatArray) -> FloatArray:
        """Compute P(click), (b, k), for rates (b, k) of the items."""
        return np.asarray(self.examined(rates) * rates, np.float64)

    def clicks(self, rates: FloatArray, uniforms: FloatArray) -> FloatArray:
        """Draw clicks, 0 or 1, (b, k), from uniform numbers (b, k, 2)."""
        result = np.zeros_like(rates)
        looks = np.ones(len(rates), np.bool_)
        for place in range(rates.shape[1]):
            click = looks & (uniforms[:, place, 0] < rates[:, place])
            result[:, place] = click
            goes_on = np.where(click, self.after_click, self.continuation)
            looks &= uniforms[:, place, 1] < goes_on
        return result


ClickModel: TypeAlias = PositionBased | Cascade
"""How simulated users click."""


# Who clicks on what


class World:
    """Users, items, and the true click rates of each user for each item.

    `from_rates`, `from_vectors` and `synthetic` construct one. A *rate* is the probability that a
    user who examines an item clicks it. Arguments refer to users and items by rows; `user_ids` and
    `item_ids` connect rows with catalogs and logs.

    Examples
    --------
    >>> world = World.from_rates([[0.1, 0.2, 0.4]], Cascade())
    >>> world.expected([0], [[2, 1]]).round(3).tolist()
    [[0.4, 0.12]]
    >>> world.clicks([0, 0, 0], [[2, 1]] * 3, seed=8).shape
    (3, 2)
    """

    def __init__(
        self,
        click_model: ClickModel,
        user_ids: Ids,
        item_ids: Ids,
        *,
        rates: FloatArray | None = None,
        user_vectors: FloatArray | None = None,
        item_vectors: FloatArray | None = None,
        slope: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        if not isinstance(click_model, PositionBased | Cascade):
            raise ValueError(f"click_model: expected PositionBased or Cascade, got {click_model!r}")
        self.click_model = click_model
        self._users = IdIndex("user_ids", as_ids("user_ids", user_ids))
        self._items = IdIndex("item_ids", as_ids("item_ids", item_ids))
        self._rates = rates
        self._user_vectors = user_vectors
        self._item_vectors = item_vectors
        self._slope = slope
        self._offset = offset

    @classmethod
    def from_rates(
        cls,
        rates: npt.ArrayLike,
        click_model: ClickModel,
        *,
        user_ids: Ids | None = None,
        item_ids: Ids | None = None,
    ) -> World:
        """Make a world from given click rates.

        Parameters
        ----------
        rates : array_like, shape (u, n)
            In [0, 1].
        click_model : PositionBased or Cascade
        user_ids, item_ids : array_like of int or str, optional
            By default 0, 1, 2, ...
        """
        table = as_real("rates", rates).astype(np.float64)
        if table.ndim != 2 or 0 in table.shape:
            raise ValueError(f"rates: expected shape (u, n) with u, n >= 1, got {table.shape}")
        bad = np.argwhere(~((table >= 0.0) & (table <= 1.0)))
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"rates: row {row}, column {column}: must lie in [0, 1], got {table[row, column]}"
            )
        return cls(
            click_model,
            _ids("user_ids", user_ids, table.shape[0]),
            _ids("item_ids", item_ids, table.shape[1]),
            rates=table,
        )

    @classmethod
    def from_vectors(
        cls,
        user_vectors: npt.ArrayLike,
        item_vectors: npt.ArrayLike,
        click_model: ClickModel,
        *,
        typical_rate: float = 0.02,
        best_rate: float = 0.3,
        user_ids: Ids | None = None,
        item_ids: Ids | None = None,
    ) -> World:
        """Make a world whose click rates are the sigmoid of a dot product.

        Parameters
        ----------
        user_vectors : array_like of real numbers, shape (u, d)
        item_vectors : array_like of real numbers, shape (n, d)
            The true vectors; factors of real data make the world realistic.
        click_model : PositionBased or Cascade
        typical_rate, best_rate : float
            Rates of the median (user, item) pair, and of the median user's best item. They
            determine slope and offset of the sigmoid, whatever the scale of the vectors.
        user_ids, item_ids : array_like of int or str, optional
            By default 0, 1, 2, ...
        """
        users = _vectors("user_vectors", user_vectors)
        items = _vectors("item_vectors", item_vectors)
        if users.shape[1] != items.shape[1]:
            raise ValueError(
                f"item_vectors: got {items.shape[1]} columns; expected {users.shape[1]}, as in"
                " user_vectors"
            )
        if not 0.0 < typical_rate <= best_rate < 1.0:
            raise ValueError(
                "typical_rate, best_rate: expected 0 < typical_rate <= best_rate < 1, "
                f"got {typical_rate!r} and {best_rate!r}"
            )
        some = np.linspace(0, len(users) - 1, min(len(users), _CALIBRATION_USERS)).astype(np.int64)
        scores = users[some] @ items.T
        typical, best = float(np.median(scores)), float(np.median(scores.max(axis=1)))
        low, high = (math.log(rate / (1.0 - rate)) for rate in (typical_rate, best_rate))
        slope = (high - low) / (best - typical) if best > typical else 0.0
        return cls(
            click_model,
            _ids("user_ids", user_ids, len(users)),
            _ids("item_ids", item_ids, len(items)),
            user_vectors=users,
            item_vectors=items,
            slope=slope,
            offset=low - slope * typical,
        )

    @classmethod
    def synthetic(
        cls,
        n_users: int,
        n_items: int,
        click_model: ClickModel,
        *,
        dim: int = 16,
        seed: int = 0,
        typical_rate: float = 0.02,
        best_rate: float = 0.3,
    ) -> World:
        """Make a world of random vectors in which some items are popular with almost all users.

        Vectors are normal; an item's first coordinate is its popularity, the same for all users.
        """
        rng = _generator(seed, _VECTORS)
        shape_u = as_count("n_users", n_users), as_count("dim", dim)
        users = rng.standard_normal(shape_u)
        items = rng.standard_normal((as_count("n_items", n_items), dim))
        users[:, 0] = math.sqrt(dim) / 2
        items[:, 0] = rng.standard_exponential(n_items) - 1.0
        return cls.from_vectors(
            users, items, click_model, typical_rate=typical_rate, best_rate=best_rate
        )

    @property
    def user_ids(self) -> IdArray:
        """ndarray of int64 or str, shape (u,)."""
        return self._users.ids

    @property
    def item_ids(self) -> IdArray:
        """ndarray of int64 or str, shape (n,)."""
        return self._items.ids

    @property
    def user_vectors(self) -> FloatArray | None:
        """True vectors of users, (u, d) float64; None for a world of given rates."""
        return self._user_vectors

    def __repr__(self) -> str:
        return (
            f"World({len(self.user_ids)} users, {len(self.item_ids)} items, {self.click_model!r})"
        )

    def item_rows(self, item_ids: Ids) -> Rows:
        """Find the rows (m,) of items; a ValueError for an item that is not in this world."""
        return self._item_rows("item_ids", item_ids)

    def _item_rows(self, name: str, item_ids: Ids) -> Rows:
        rows = self._items.find(name, item_ids, ordered=True)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            row = int(unknown[0])
            value = as_id(name, listed(name, item_ids)[row])
            raise ValueError(f"{name}: row {row}: {shown(value)} is not in this world")
        return rows

    def model(self, noise: float = 0.0, seed: int = 0) -> Model:
        """Make a model from the true vectors with added noise.

        Parameters
        ----------
        noise : float
            Standard deviation of the noise of each coordinate, relative to the standard deviation
            of all coordinates; 0 gives the true vectors.
        seed : int
        """
        if self._user_vectors is None or self._item_vectors is None:
            raise ValueError("model: this world was made from rates, and has no vectors")
        rng = _generator(seed, _NOISE)

        def blurred(vectors: FloatArray) -> FloatArray:
            return np.asarray(
                vectors + noise * vectors.std() * rng.standard_normal(vectors.shape), np.float64
            )

        catalog = Catalog(self.item_ids, blurred(self._item_vectors))
        return Model(catalog, self.user_ids, blurred(self._user_vectors))

    def rates(self, users: npt.ArrayLike, items: npt.ArrayLike | None = None) -> FloatArray:
        """Return click rates (b, k) of users (b,) for items (b, k); by default for all items."""
        who = _rows("users", users, len(self.user_ids))
        if items is None:
            what = None
        else:
            what = _rows("items", items, len(self.item_ids), ndim=2)
            if len(what) != len(who):
                raise ValueError(
                    f"items: expected {len(who)} rows, one for each user, got {len(what)}"
                )
        if self._rates is not None:
            return self._rates[who] if what is None else self._rates[who[:, None], what]
        assert self._user_vectors is not None
        assert self._item_vectors is not None
        if what is None:
            scores = self._user_vectors[who] @ self._item_vectors.T
        else:
            scores = np.einsum("bd,bkd->bk", self._user_vectors[who], self._item_vectors[what])
        # tanh does not overflow.
        return np.asarray(0.5 + 0.5 * np.tanh((self._slope * scores + self._offset) / 2))

    def expected(
        self, users: npt.ArrayLike, items: npt.ArrayLike, lengths: npt.ArrayLike | None = None
    ) -> FloatArray:
        """Compute P(click) at each place of rankings, given all items shown.

        Parameters
        ----------
        users : array_like of int, shape (b,)
            Rows.
        items : array_like of int, shape (b, k)
            Rows, best place first.
        lengths : array_like of int, shape (b,), optional
            Number of places shown; later cells are not read, and earn 0. By default k.

        Returns
        -------
        ndarray of float64, shape (b, k)
        """
        who, what, shown = self._shown(users, items, lengths)
        rates = np.where(shown, self.rates(who, what), 0.0)
        return np.where(shown, self.click_model.expected(rates), 0.0)

    def clicks(
        self,
        users: npt.ArrayLike,
        items: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        *,
        seed: int,
        first_row: int = 0,
    ) -> FloatArray:
        """Draw clicks, 0 or 1, at each place of rankings.

        Parameters
        ----------
        users, items, lengths
            As in `expected`.
        seed : int
        first_row : int
            Number of the first ranking among all rankings of this seed. For the same k, a log drawn
            in pieces thus equals the log drawn at once.
        """
        who, what, shown = self._shown(users, items, lengths)
        rates = np.where(shown, self.rates(who, what), 0.0)
        uniforms = _uniforms(seed, _CLICKS, first_row, (len(rates), rates.shape[1]), 2)
        return np.where(shown, self.click_model.clicks(rates, uniforms), 0.0)

    def _shown(
        self, users: npt.ArrayLike, items: npt.ArrayLike, lengths: npt.ArrayLike | None
    ) -> tuple[Rows, Rows, Mask]:
        who = _rows("users", users, len(self.user_ids))
        table = np.asarray(items)
        if table.ndim != 2 or len(table) != len(who):
            raise ValueError(f"items: expected shape ({len(who)}, k), got {table.shape}")
        places = table.shape[1]
        if lengths is None:
            return who, table, np.ones(table.shape, np.bool_)
        counts = _rows("lengths", lengths, places + 1)
        if counts.shape != who.shape:
            raise ValueError(f"lengths: expected shape {who.shape}, got {counts.shape}")
        shown = np.arange(places) < counts[:, None]
        return who, np.where(shown, table, 0), shown


# What a policy is worth


class TrueValue(NamedTuple):
    """Mean number of clicks on a policy's ranking, over users and draws.

    Attributes
    ----------
    value : float
    standard_error : float
        Standard error from drawing rankings; 0 if all rankings were summed. Users are not drawn.
    """

    value: float
    standard_error: float


def true_value(
    world: World,
    ranker: Model | Scorer,
    policy: Policy,
    k: int = 10,
    *,
    users: npt.ArrayLike | None = None,
    n_draws: int = 200,
    seed: int = 0,
    queries: npt.ArrayLike | None = None,
    exclude: Sequence[Ids | None] | None = None,
    rules: Rules | None = None,
    params: Mapping[str, Any] | None = None,
) -> TrueValue:
    """Compute the true value of a policy in a world, which estimates from logs aim at.

    Parameters
    ----------
    world : World
    ranker : Model or Catalog
        The source of scores. Its items, and a model's users, are found in the world by id.
    policy : Policy
    k : int
    users : array_like of int, optional
        Rows of the world's users to average over; by default all.
    n_draws : int
        Rankings to draw for each user if not all can be summed; with 0, this is a ValueError.
    seed : int
    queries : array_like of real numbers, shape (u, d), optional
        Vector of each of the world's users; by default those of the model or, for a catalog, the
        true ones.
    exclude : sequence of u (array_like of ids or None), optional
        Items not to show, for each of the world's users.
    rules : Rules, optional
        Needs a model or a catalog with their columns. Places that rules leave empty earn nothing.
    params : mapping, optional
        Values of the parameters of the rules.

    Returns
    -------
    TrueValue

    Notes
    -----
    The value is exact for `Deterministic`; if all rankings of all users have at most a million
    cells; and, with position-based clicks, if (items + 300) x users is at most 100,000, by position
    marginals. Otherwise, and always under rules, it is the mean of the expected clicks of drawn
    rankings, which varies less than the clicks themselves.

    Examples
    --------
    >>> from fastrank import Catalog, Deterministic, Uniform
    >>> world = World.from_rates([[0.1, 0.2, 0.6]], PositionBased([1.0, 0.5]))
    >>> catalog = Catalog([0, 1, 2], [[1.0], [2.0], [3.0]])
    >>> [round(true_value(world, catalog, p, 2, queries=[[1.0]]).value, 3)
    ...  for p in (Uniform(), Deterministic())]
    [0.45, 0.7]
    """
    source = _Source(world, ranker, queries, exclude, rules, params)
    places = min(as_count("k", k), source.n_items)
    chosen = source.users(users)
    as_count("n_draws", n_draws, low=0)
    law = law_of(policy)
    if law.is_certain:
        ids, lengths = source.rank(chosen, places, policy, np.zeros(len(chosen), np.uint64))
        return TrueValue(_mean(world.expected(chosen, ids, lengths).sum(axis=1)), 0.0)
    cells = math.perm(source.n_items, places) * places * len(chosen)
    if rules is None and cells <= _CHEAP_RANKINGS:
        return TrueValue(_mean([source.enumerated(u, places, policy) for u in chosen]), 0.0)
    has_marginals = (
        rules is None
        and isinstance(world.click_model, PositionBased)
        and (source.n_items <= MAX_ITEMS or law.temperature == math.inf)
    )
    cheap = (source.n_items + _PER_USER) * len(chosen) <= _CHEAP_MARGINALS
    if has_marginals and (cheap or n_draws == 0):
        return TrueValue(_mean([source.by_marginals(u, places, policy) for u in chosen]), 0.0)
    if rules is not None and n_draws < 2:
        raise ValueError(
            f"n_draws: got {n_draws}; expected at least 2, since rankings under rules are drawn,"
            " not summed"
        )
    if n_draws < 2:
        raise ValueError(
            f"n_draws: got {n_draws}; expected at least 2, since {source.n_items} items in {places}"
            f" places for {len(chosen)} users have too many rankings to sum"
        )
    first_seed = _first_seed(seed, _TRUTH)  # independent of a log with the same seed
    n_rows = len(chosen) * n_draws
    values = np.empty(n_rows)
    for start in range(0, n_rows, _BATCH):
        rows = np.arange(start, min(start + _BATCH, n_rows))
        who = chosen[rows // n_draws]
        items, lengths = source.rank(who, places, policy, _seeds(first_seed, rows))
        values[rows] = world.expected(who, items, lengths).sum(axis=1)
    by_user = values.reshape(len(chosen), n_draws)
    variance = by_user.var(axis=1, ddof=1).sum() / n_draws
    return TrueValue(_mean(by_user.mean(axis=1)), float(math.sqrt(variance) / len(chosen)))


class RankingLog(Protocol):
    """A log that `write_log` appends to, such as `fastrank.eventlog.LogWriter`."""

    def append(
        self,
        ranking: Ranking,
        *,
        k: int,
        request_id: str,
        user_id: str | int,
        query: Float32Array | None,
        model_version: str | None,
        user_temperature: float | None,
        exclude: Ids | None,
        rewards: FloatArray,
        reward_kind: str,
        ts: datetime,
    ) -> Any:
        """Add one ranking."""


def write_log(
    world: World,
    ranker: Model | Scorer,
    policy: Policy,
    k: int,
    n_rows: int,
    log: RankingLog,
    *,
    seed: int,
    first_row: int = 0,
    users: npt.ArrayLike | None = None,
    queries: npt.ArrayLike | None = None,
    exclude: Sequence[Ids | None] | None = None,
    rules: Rules | None = None,
    params: Mapping[str, Any] | None = None,
    start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
) -> None:
    """Serve rankings to random users of a world, and log them with their clicks.

    Parameters
    ----------
    world, ranker, policy, k, queries, exclude, rules, params
        As for `true_value`. Rows include the user's query unless a model knows it. A model's lists
        of seen items are ignored.
    n_rows : int
        Rankings to log.
    log : RankingLog
        An open ``LogWriter``; it stays open.
    seed : int
        Request ids are ``simulated-<seed>-<row>``, so logs that are read together need different
        seeds.
    first_row : int
        Number of the first row; use it to continue a log.
    users : array_like of int, optional
        Rows of the users to draw from uniformly; by default all.
    start : datetime
        Time of row 0; each row is a second later.

    Examples
    --------
    >>> import tempfile
    >>> from fastrank import Catalog, Uniform
    >>> from fastrank.eventlog import LogReader, LogWriter
    >>> world = World.from_rates([[0.1, 0.2, 0.6]], PositionBased([1.0, 0.5]))
    >>> catalog, folder = Catalog([0, 1, 2], [[1.0], [2.0], [3.0]]), tempfile.mkdtemp()
    >>> with LogWriter(folder) as log:
    ...     write_log(world, catalog, Uniform(), 2, 100, log, seed=0, queries=[[1.0]])
    >>> LogReader(folder).to_table().num_rows
    100
    """
    source = _Source(world, ranker, queries, exclude, rules, params)
    places = as_count("k", k)
    chosen = source.users(users)
    stop = as_count("first_row", first_row, low=0) + as_count("n_rows", n_rows, low=0)
    first_seed = _first_seed(seed, _RANKINGS)
    version = ranker.version if isinstance(ranker, Model) else None
    for low in range(first_row, stop, _BATCH):
        rows = np.arange(low, min(low + _BATCH, stop))
        uniforms = _uniforms(seed, _USERS, low, (len(rows), 1), 1)[:, 0, 0]
        who = chosen[(uniforms * len(chosen)).astype(np.int64)]
        batch = source.rank_batch(who, places, policy, _seeds(first_seed, rows))
        items = source.item_rows(batch.item_ids, batch.counts)
        clicks = world.clicks(who, items, batch.counts, seed=seed, first_row=low)
        for i, ranking in enumerate(batch):
            row, user = int(rows[i]), int(who[i])
            log.append(
                ranking,
                k=places,
                request_id=f"simulated-{seed}-{row}",
                user_id=world.user_ids[user].item(),
                query=None if version is not None and queries is None else source.queries[user],
                model_version=version,
                user_temperature=source.temperature(user),
                exclude=None if source.exclude is None else source.exclude[user],
                rewards=clicks[i, : len(ranking)],
                reward_kind="complete",
                ts=start + timedelta(seconds=row),
            )


# What doubly robust estimators know


def q_columns(
    world: World,
    ranker: Model | Scorer,
    policy: Policy,
    users: npt.ArrayLike,
    item_ids: npt.NDArray[Any],
    *,
    kind: Literal["place", "value_to_go"] = "place",
    queries: npt.ArrayLike | None = None,
    exclude: Sequence[Ids | None] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Compute true values q of logged items, and the mean of q over a policy's choices.

    Parameters
    ----------
    world, ranker, queries, exclude
        As for `true_value`.
    policy : Policy
        The evaluation policy, without rules.
    users : array_like of int, shape (b,)
        Rows of the world.
    item_ids : ndarray of int64 or str, shape (b, k)
        Logged rankings, each of k items.
    kind : {"place", "value_to_go"}
        Value of an item at place l, given the items above: its expected reward there; or the
        expected reward from there on, with the places below filled by the policy. The latter
        enumerates all rankings: at most a million cells.

    Returns
    -------
    q_logged : ndarray of float64, shape (b, k)
    q_expected : ndarray of float64, shape (b, k)
        Mean of q over the policy's choices at place l, given the logged items above.

    Examples
    --------
    >>> from fastrank import Catalog, Uniform
    >>> world = World.from_rates([[0.1, 0.2, 0.6]], PositionBased([1.0, 0.5]))
    >>> catalog = Catalog([0, 1, 2], [[1.0], [2.0], [3.0]])
    >>> logged, expected = q_columns(
    ...     world, catalog, Uniform(), [0], np.array([[2, 0]]), queries=[[1.0]]
    ... )
    >>> logged.round(3).tolist(), expected.round(3).tolist()
    ([[0.6, 0.05]], [[0.3, 0.075]])
    """
    if kind not in ("place", "value_to_go"):
        raise ValueError(f"kind: expected place or value_to_go, got {kind!r}")
    source = _Source(world, ranker, queries, exclude)
    who = source.users(users)
    rankings = as_column("item_ids", item_ids, f"{len(who)} rankings")
    if isinstance(rankings, np.ndarray) and rankings.ndim == 1 and rankings.dtype != object:
        raise ValueError(f"item_ids: expected shape ({len(who)}, k), got {rankings.shape}")
    found = [world._item_rows(f"item_ids[{i}]", each) for i, each in enumerate(rankings)]
    lengths = {len(each) for each in found}
    if len(found) != len(who) or len(lengths) > 1:
        got = f"{len(found)} rankings of {' or '.join(map(str, sorted(lengths)))} items"
        raise ValueError(f"item_ids: expected shape ({len(who)}, k), got {got}")
    rows = np.stack(found)
    values = source.values_to_go if kind == "value_to_go" else source.values_here
    logged, expected = np.empty(rows.shape), np.empty(rows.shape)
    for user in np.unique(who).tolist():
        mine = np.flatnonzero(who == user)
        logged[mine], expected[mine] = values(user, rows[mine], policy)
    return logged, expected


class _Source:
    """A ranker whose users and items are rows of a world."""

    def __init__(
        self,
        world: World,
        ranker: Model | Scorer,
        queries: npt.ArrayLike | None,
        exclude: Sequence[Ids | None] | None,
        rules: Rules | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.world = world
        self.catalog = scorer_of("ranker", ranker)
        self.n_items = len(self.catalog)
        self.rows = world.item_rows(self.catalog.item_ids)  # the world's row of each catalog item
        n_users = len(world.user_ids)
        given: npt.ArrayLike | None = queries
        if given is None and isinstance(ranker, Model):
            given = np.stack([ranker.user_vector(user.item()) for user in world.user_ids])
        if given is None:
            given = world.user_vectors
        if given is None:
            raise ValueError(
                "queries: expected vectors of users, since neither a catalog nor this world has any"
            )
        table = as_real("queries", given)
        if table.shape != (n_users, self.catalog.dim):
            raise ValueError(
                f"queries: expected shape ({n_users}, {self.catalog.dim}), got {table.shape}"
            )
        self.queries: Float32Array = table.astype(np.float32)
        self.exclude = None
        if exclude is not None:
            self.exclude = as_column("exclude", exclude, f"{n_users} entries, one for each user")
            if len(self.exclude) != n_users:
                raise ValueError(
                    f"exclude: expected {n_users} entries, one for each user, got {len(exclude)}"
                )
        if rules is not None and not isinstance(self.catalog, Catalog):
            raise ValueError(
                f"rules: expected a Model or a Catalog as ranker, got a {type(ranker).__name__}"
            )
        if params is not None and rules is None:
            raise ValueError("params: expected none without rules")
        self._ruled: dict[str, Any] = {} if rules is None else {"rules": rules, "params": params}
        self._model = ranker if isinstance(ranker, Model) and ranker.has_user_temperatures else None

    def policy(self, user: int, policy: Policy) -> Policy:
        """Return the policy as the model applies it to a user, at the user's own temperature."""
        if self._model is None:
            return policy
        return self._model.user_policy(self.world.user_ids[user].item(), policy)

    def temperature(self, user: int) -> float | None:
        """Return the user's temperature factor; None if the model has none."""
        if self._model is None:
            return None
        return self._model.user_temperature(self.world.user_ids[user].item())

    def users(self, users: npt.ArrayLike | None) -> Rows:
        n_users = len(self.world.user_ids)
        rows = np.arange(n_users) if users is None else _rows("users", users, n_users)
        if len(rows) == 0:
            raise ValueError("users: expected at least one")
        return rows

    def rank_batch(self, users: Rows, k: int, policy: Policy, seeds: npt.NDArray[np.uint64]) -> Any:
        exclude = None if self.exclude is None else [self.exclude[user] for user in users.tolist()]
        own = policy if self._model is None else [self.policy(u, policy) for u in users.tolist()]
        return self.catalog.rank_batch(
            self.queries[users], k, policy=own, seeds=seeds, exclude=exclude, **self._ruled
        )

    def rank(
        self, users: Rows, k: int, policy: Policy, seeds: npt.NDArray[np.uint64]
    ) -> tuple[Rows, Rows]:
        """Draw rankings; return them as the world's rows (b, k), and their lengths (b,)."""
        batch = self.rank_batch(users, k, policy, seeds)
        return self.item_rows(batch.item_ids, batch.counts), batch.counts

    def item_rows(self, item_ids: npt.NDArray[Any], lengths: Rows) -> Rows:
        shown = np.arange(item_ids.shape[1]) < lengths[:, None]
        rows = np.zeros(item_ids.shape, np.int64)
        rows[shown] = self.world.item_rows(item_ids[shown])
        return rows

    def eligible(self, user: int) -> tuple[FloatArray, Rows]:
        """Return the scores of a user's eligible items, best first, and the items as rows."""
        scores = self.catalog.scores(self.queries[user]).astype(np.float64)
        rows = self.rows
        barred = None if self.exclude is None else self.exclude[user]
        if barred is not None:
            found = self.world._items.find("exclude", barred)
            left = ~np.isin(rows, found)
            scores, rows = scores[left], rows[left]
        best_first = np.argsort(-scores, kind="stable")
        return scores[best_first], rows[best_first]

    def enumerated(self, user: int, places: int, policy: Policy) -> float:
        scores, rows = self.eligible(user)
        rankings, p = ranking_law(scores, places, self.policy(user, policy))
        users = np.full(len(p), user)
        return float(p @ self.world.expected(users, rows[rankings]).sum(axis=1))

    def by_marginals(self, user: int, places: int, policy: Policy) -> float:
        scores, rows = self.eligible(user)
        rates = self.world.rates([user], rows[None])[0]
        by_place = rates @ position_marginals(scores, self.policy(user, policy), places)
        return float(self.world.click_model.expected(by_place[None]).sum())

    def values_here(self, user: int, orders: Rows, policy: Policy) -> tuple[FloatArray, FloatArray]:
        scores, rows = self.eligible(user)
        rates = self.world.rates([user], rows[None])[0]
        users = np.full(len(orders), user)
        of_logged = self.world.rates(users, orders)
        examined = self.world.click_model.examined(of_logged)
        expected = np.zeros(orders.shape)
        for i, order in enumerate(orders):
            for place in range(len(order)):
                left = ~np.isin(rows, order[:place])
                if left.any():  # empty if all eligible items were logged above
                    chance = next_law(scores[None, left], self.policy(user, policy))[0]
                    expected[i, place] = examined[i, place] * (chance @ rates[left])
        return examined * of_logged, expected

    def values_to_go(
        self, user: int, orders: Rows, policy: Policy
    ) -> tuple[FloatArray, FloatArray]:
        scores, rows = self.eligible(user)
        n, places = len(rows), orders.shape[1]
        if places > n or math.perm(n, places) * places > _CHEAP_RANKINGS:
            raise ValueError(
                f"kind: value_to_go enumerates all rankings, but {places} places with {n} items"
                " have too many, or none"
            )
        levels = list(prefix_tree(scores, places, self.policy(user, policy)))
        logged, expected = np.empty(orders.shape), np.empty(orders.shape)
        # The place of each logged item among those left, and of each logged prefix in its level.
        rank = np.full(len(self.world.item_ids), -1)
        rank[rows] = np.arange(n)
        of_orders = rank[orders]
        if (of_orders < 0).any():
            raise ValueError("item_ids: a logged item is not eligible under the policy")
        at = np.zeros((len(orders), places + 1), np.int64)
        for place in range(places):
            above = (of_orders[:, :place] < of_orders[:, place, None]).sum(axis=1)
            at[:, place + 1] = at[:, place] * (n - place) + of_orders[:, place] - above
        after = np.zeros(len(levels[-1][0]))
        for place in reversed(range(places)):
            prefixes, law = levels[place]
            users = np.full(len(prefixes), user)
            value = self.world.expected(users, rows[prefixes])[:, place] + after
            logged[:, place] = value[at[:, place + 1]]
            after = (law * value.reshape(law.shape)).sum(axis=1)
            expected[:, place] = after[at[:, place]]
        return logged, expected


# Random numbers, and arguments


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(_philox(seed, stream, 0))


def _philox(seed: int, stream: int, counter: int) -> np.random.Philox:
    key = np.array([as_seed("seed", seed), stream], np.uint64)
    return np.random.Philox(key=key, counter=counter)


def _uniforms(
    seed: int, stream: int, first_row: int, shape: tuple[int, int], width: int
) -> FloatArray:
    """Draw uniform numbers (rows, places, width) in [0, 1); a row's do not depend on its batch."""
    rows, places = shape
    counters = -(-places * width // 4)  # Philox makes four numbers per counter
    raw = _philox(seed, stream, first_row * counters).random_raw(rows * counters * 4)
    uniforms = (raw >> np.uint64(11)) * 2.0**-53
    of_places = uniforms.reshape(rows, counters * 4)[:, : places * width]
    return np.asarray(of_places.reshape(rows, places, width), np.float64)


def _first_seed(seed: int, stream: int) -> int:
    """Return the first of consecutive seeds of rankings: unique in a log, all below 2**53."""
    return int(_philox(seed, stream, 0).random_raw() >> 11)


def _seeds(first: int, rows: Rows) -> npt.NDArray[np.uint64]:
    return (np.uint64(first) + rows.astype(np.uint64)) & np.uint64(2**53 - 1)


def _mean(values: FloatArray | list[float]) -> float:
    return float(np.mean(values))


def _probability(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{name}: must lie in [0, 1], got {value!r}")
    return float(value)


def _ids(name: str, ids: Ids | None, count: int) -> IdArray:
    array = np.arange(count, dtype=np.int64) if ids is None else as_ids(name, ids)
    if len(array) != count:
        raise ValueError(f"{name}: expected {count}, got {len(array)}")
    return array


def _vectors(name: str, vectors: npt.ArrayLike) -> FloatArray:
    rows = as_real(name, vectors).astype(np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name}: expected shape (rows, d) with both >= 1, got {rows.shape}")
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0]
        raise ValueError(f"{name}: row {row}, column {column}: must be finite")
    return rows


def _rows(name: str, rows: npt.ArrayLike, limit: int, ndim: int = 1) -> Rows:
    array = np.asarray(rows)
    if array.ndim != ndim or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(
            f"{name}: expected integers of {ndim} dimensions, got {array.dtype} of {array.shape}"
        )
    bad = np.argwhere((array < 0) | (array >= limit))
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(
            f"{name}: row {where[0]}: expected an integer from 0 to {limit - 1}, got {array[where]}"
        )
    return array.astype(np.int64)
