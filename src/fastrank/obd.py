"""The Open Bandit Dataset, small version, as bundled: real logs with their true propensities.

A fashion shop showed items in three places under two policies, uniform random
(``random``) and Bernoulli Thompson sampling (``bts``), in two campaigns, ``all`` (80 items) and
``men`` (34): 10,000 impressions of one item each, for each policy and campaign, in one week of
November 2019. Source, licence and citation are in NOTICE.

**Who is a user.** The data carry no user id. Four hashed features are all that is known of a
visitor, so a *user* is here a segment: one combination of the four, 280 of them in ``all`` and
265 in ``men``. User 0 has the most impressions. Two impressions of one user need not be one
person; for clustering errors this is the finest honest grouping there is.

**Affinity.** Each impression carries, for each item, how often its visitor had clicked it
before. That is 0 in most cells: 4.5 % of the impressions have any past click. `affinity` averages
over a user's impressions; 162 of the 280 users in ``all`` (7 % of its impressions) have none, so
their vectors are 0 and all their scores tie, as those of new users do everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import AnyArray, Float32Array, FloatArray, IntArray

__all__ = [
    "Campaign",
    "Factors",
    "Items",
    "LoggedImpressions",
    "LoggingPolicy",
    "action_distribution",
    "affinity",
    "items",
    "log",
    "vectors",
]

Campaign: TypeAlias = Literal["all", "men"]
LoggingPolicy: TypeAlias = Literal["random", "bts"]

_EPOCH = np.datetime64("2019-11-24T00:00:00", "us")


@dataclass(frozen=True, slots=True, eq=False)
class LoggedImpressions:
    """One log: m impressions in the order of time, each of one item in one place.

    Attributes
    ----------
    timestamp : ndarray of datetime64[us], shape (m,)
        UTC.
    item_id, position, click : ndarray of int64, shape (m,)
        The item shown; its place 1, 2 or 3; 1 where it was clicked, else 0.
    propensity : ndarray of float64, shape (m,)
        P(item | position) under the policy that logged it. ``bts`` changes as it learns, so
        its propensities are those of the moment, not those of `action_distribution`.
    user : ndarray of int64, shape (m,)
        Row of `affinity` and `vectors` of the same campaign.
    user_features : ndarray of str, shape (m, 4)
        Hashes, as published.
    affinity : ndarray of float32, shape (m, n_items)
        Past clicks of this impression's visitor on each item.
    """

    timestamp: npt.NDArray[np.datetime64]
    item_id: IntArray
    position: IntArray
    click: IntArray
    propensity: FloatArray
    user: IntArray
    user_features: npt.NDArray[np.str_]
    affinity: Float32Array

    def __len__(self) -> int:
        return len(self.item_id)


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """A campaign's items.

    Attributes
    ----------
    item_ids : ndarray of int64, shape (n,)
        0 .. n - 1.
    number : ndarray of float64, shape (n,)
        The published numeric feature, standardised by its publishers.
    categories : ndarray of str, shape (n, 3)
        The published categorical features: hashes.
    """

    item_ids: IntArray
    number: FloatArray
    categories: npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Vectors whose dot products approximate `affinity`.

    Attributes
    ----------
    item_ids : ndarray of int64, shape (n,)
    item_vectors : ndarray of float32, shape (n, dim)
    user_ids : ndarray of int64, shape (u,)
    user_vectors : ndarray of float32, shape (u, dim)
    explained : float
        Share of the affinities' sum of squares that the dot products explain, each user
        weighted by its impressions; in [0, 1].
    """

    item_ids: IntArray
    item_vectors: Float32Array
    user_ids: IntArray
    user_vectors: Float32Array
    explained: float


def log(campaign: Campaign, policy: LoggingPolicy) -> LoggedImpressions:
    """The impressions that one policy logged in one campaign.

    Examples
    --------
    >>> bts = log("all", "bts")
    >>> len(bts), float(bts.click.mean())
    (10000, 0.0042)
    """
    _check("campaign", campaign, Campaign)
    _check("policy", policy, LoggingPolicy)
    data = _arrays()
    prefix = f"{campaign}_{policy}"
    user = data[f"{prefix}_user"].astype(np.int64)
    features = [data[f"user_feature_{j}"][data[f"{campaign}_users"][user, j]] for j in range(4)]
    steps = np.cumsum(data[f"{prefix}_step"].astype(np.int64))
    row, item, count = data[f"{prefix}_affinity"]
    affinity = np.zeros((len(user), len(data[f"{campaign}_item_feature_0"])), np.float32)
    affinity[row, item] = count
    return LoggedImpressions(
        timestamp=_EPOCH + steps.astype("timedelta64[us]"),
        item_id=data[f"{prefix}_item"].astype(np.int64),
        position=data[f"{prefix}_position"].astype(np.int64),
        click=data[f"{prefix}_click"].astype(np.int64),
        propensity=data[f"{prefix}_propensity"].copy(),
        user=user,
        user_features=np.stack(features, axis=1),
        affinity=affinity,
    )


def items(campaign: Campaign) -> Items:
    """The items of a campaign, in the order of their ids.

    Examples
    --------
    >>> items("men").categories.shape
    (34, 3)
    """
    _check("campaign", campaign, Campaign)
    data = _arrays()
    number = data[f"{campaign}_item_feature_0"].copy()
    return Items(
        item_ids=np.arange(len(number), dtype=np.int64),
        number=number,
        categories=np.stack([data[f"{campaign}_item_feature_{j}"] for j in (1, 2, 3)], axis=1),
    )


def action_distribution(campaign: Campaign) -> FloatArray:
    """P(item | position) under bts as its publishers froze it for evaluation; shape (n, 3).

    Column ``position - 1`` belongs to a position; each sums to 1. Being fixed, it is an
    evaluation policy: what the log recorded drifts around it.

    Examples
    --------
    >>> action_distribution("all").sum(axis=0).round(9).tolist()
    [1.0, 1.0, 1.0]
    """
    _check("campaign", campaign, Campaign)
    return _arrays()[f"{campaign}_bts_action_dist"].copy()


def affinity(campaign: Campaign) -> tuple[FloatArray, IntArray]:
    """Mean past clicks of each user on each item, over both logs of a campaign.

    Returns
    -------
    mean : ndarray of float64, shape (u, n)
    impressions : ndarray of int64, shape (u,)
        How many impressions each mean is over; never 0, never rising.

    Examples
    --------
    >>> mean, impressions = affinity("all")
    >>> mean.shape, int(impressions.sum())
    ((280, 80), 20000)
    """
    _check("campaign", campaign, Campaign)
    data = _arrays()
    shape = len(data[f"{campaign}_users"]), len(data[f"{campaign}_item_feature_0"])
    total = np.zeros(shape)
    impressions = np.zeros(shape[0], np.int64)
    for policy in get_args(LoggingPolicy):
        user = data[f"{campaign}_{policy}_user"]
        row, item, count = data[f"{campaign}_{policy}_affinity"]
        np.add.at(total, (user[row], item), count)
        impressions += np.bincount(user, minlength=shape[0])
    return total / impressions[:, None], impressions


def vectors(campaign: Campaign, dim: int = 16) -> Factors:
    """Item and user vectors from the affinities, by truncated singular value decomposition.

    The decomposition is that of the matrix of mean affinities with each user's row weighted by
    the root of its impressions: the best fit of rank `dim`, by squares, over impressions. The
    weights are taken off again, so a dot product reads as the expected number of past clicks.
    The sign of each factor is set by its largest item entry, so that the result does not depend on
    the linear algebra library.

    Parameters
    ----------
    campaign : {"all", "men"}
    dim : int
        From 1 to the number of items. In ``all``, 8 explain 70 % of the affinity, 16 explain 88 %,
        32 explain 98 %; in ``men`` 87 %, 97 % and 99.99 %.

    Examples
    --------
    >>> factors = vectors("all")
    >>> factors.item_vectors.shape, factors.user_vectors.shape, round(factors.explained, 2)
    ((80, 16), (280, 16), 0.88)
    """
    mean, impressions = affinity(campaign)
    n_users, n_items = mean.shape
    if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= n_items:
        raise ValueError(f"dim: expected an integer in [1, {n_items}], got {dim!r}")
    weight = np.sqrt(impressions)[:, None]
    left, singular, right = np.linalg.svd(weight * mean, full_matrices=False)
    largest = np.abs(right).argmax(axis=1)
    sign = np.sign(right[np.arange(len(right)), largest])
    root = np.sqrt(singular[:dim])
    user_vectors = left[:, :dim] * sign[:dim] * root / weight
    item_vectors = right[:dim].T * sign[:dim] * root
    user_vectors[~mean.any(axis=1)] = 0.0  # not the rounding noise that the library leaves
    return Factors(
        item_ids=np.arange(n_items, dtype=np.int64),
        item_vectors=item_vectors.astype(np.float32),
        user_ids=np.arange(n_users, dtype=np.int64),
        user_vectors=user_vectors.astype(np.float32),
        explained=float(np.sum(singular[:dim] ** 2) / np.sum(singular**2)),
    )


@cache
def _arrays() -> dict[str, AnyArray]:
    with (
        as_file(files("fastrank") / "data" / "obd.npz") as path,
        np.load(path, allow_pickle=False) as npz,
    ):
        return {name: npz[name] for name in npz.files}


def _check(argument: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        names = ", ".join(get_args(choices))
        raise ValueError(f"{argument}: expected one of {names}; got {value!r}")
