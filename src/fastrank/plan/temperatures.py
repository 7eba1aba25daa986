"""Choose a temperature for every user, so that all keep the same share of their top k."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fastrank.arraytypes import FloatArray, Mask
from fastrank.calibration import condense, expected_overlaps, temperatures_for_overlap
from fastrank.ids import Ids
from fastrank.inputs import as_count
from fastrank.model import Model
from fastrank.plan.arguments import check_k, fraction
from fastrank.plan.points import Advance
from fastrank.scorer import eligible_of

__all__ = ["REACHED", "OwnTemperatures", "own_temperatures"]

REACHED = 5e-3  # an overlap is reached if it is this near to the one asked for

_BLOCK = 256  # users whose temperatures are computed together


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class OwnTemperatures:
    """A temperature for every user of a model.

    Attributes
    ----------
    temperatures : ndarray of float64, shape (u,)
        In the order of the model's users; 1 for users whose scores are all equal.
    reached : ndarray of bool, shape (u,)
        False for users for whom no temperature gives the overlap, because of equal scores; they
        get the nearest.
    equal : ndarray of bool, shape (u,)
        True for users whose scores are all equal, so that every temperature gives the same law.
    """

    temperatures: FloatArray
    reached: Mask
    equal: Mask

    def __repr__(self) -> str:
        return f"OwnTemperatures({len(self.reached)} users, {self.reached.sum()} reached)"


def own_temperatures(
    model: Model,
    k: int,
    overlap: float,
    advance: Advance | None = None,
    *,
    threads: int = 1,
    exclude: Ids | None = None,
    allow: Ids | None = None,
) -> OwnTemperatures:
    """Compute each user's own temperature, at which all users keep the same share of their top k.

    Parameters
    ----------
    model : Model
    k : int
        From 1 to the number of eligible items.
    overlap : float
        Between 0 and 1. To correct the mean error of calibration, pass the parameter of
        ``solve_overlap(plan, ..., "user_temperature")``.
    advance : callable, optional
        Called with the current step's name, the number of users done, and of all users.
    threads : int
        The temperatures are the same for any number.
    exclude, allow : array_like of ids, optional
        As in `explore`.

    Returns
    -------
    OwnTemperatures
        For `Model.with_user_temperatures`. The temperatures are in the unit of the scores, so that
        Plackett-Luce at temperature 1 then gives the overlap.

    Notes
    -----
    O(n d) per user: about half a millisecond with 10,000 items.

    Examples
    --------
    >>> import fastrank as fr
    >>> rng = np.random.default_rng(0)
    >>> catalog = fr.Catalog(range(500), rng.standard_normal((500, 8)))
    >>> vectors = rng.standard_normal((2, 8))
    >>> model = fr.Model(catalog, ["ann", "bob"], np.vstack([vectors, 6 * vectors[:1]])[[0, 2]])
    >>> own = own_temperatures(model, k=5, overlap=0.8).temperatures
    >>> round(own[1] / own[0])
    6
    """
    items = eligible_of(model.catalog, exclude, allow)
    check_k(k, items)
    asked = fraction("overlap", overlap)
    vectors = model.user_vectors
    starts = range(0, len(vectors), _BLOCK)

    def of_block(start: int) -> tuple[FloatArray, Mask, Mask]:
        block = vectors[start : start + _BLOCK]
        values, counts = _stacked([condense(items.scores(v), k) for v in block])
        found = temperatures_for_overlap(values, k, asked, counts)
        achieved = expected_overlaps(values, found, k, counts)
        is_there = counts > 0.0
        highest = np.where(is_there, values, -np.inf).max(axis=1)
        lowest = np.where(is_there, values, np.inf).min(axis=1)
        return found, np.abs(achieved - asked) < REACHED, highest == lowest

    blocks = []
    pool = ThreadPoolExecutor(as_count("threads", threads))
    try:
        for start, block in zip(starts, pool.map(of_block, starts), strict=True):
            if advance is not None:
                advance("temperatures of users", start, len(vectors))
            blocks.append(block)
    finally:
        pool.shutdown(cancel_futures=True)
    if advance is not None:
        advance("temperatures of users", len(vectors), len(vectors))
    found, reached, equal = (np.concatenate(each) for each in zip(*blocks, strict=True))
    return OwnTemperatures(found, reached, equal)


def _stacked(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """Stack what `condense` returns for each user, as rows."""
    return np.array([values for values, _ in pairs]), np.array([counts for _, counts in pairs])
