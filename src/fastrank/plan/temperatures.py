"""A temperature for every user, so that all keep the same share of their best."""

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

REACHED = 5e-3  # as near as that to what is asked counts as reached

_BLOCK = 256  # users whose own temperatures are found together


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class OwnTemperatures:
    """A temperature for every user of a model.

    Attributes
    ----------
    temperatures : ndarray of float64, shape (u,)
        In the order of the model's users; 1 for users whose scores are all equal.
    reached : ndarray of bool, shape (u,)
        False where no temperature gives that overlap, because of equal scores: the nearest is
        taken then.
    equal : ndarray of bool, shape (u,)
        True where all scores are equal, so that every temperature gives the same law.
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
    """Each user's own temperature, so that everyone keeps the same share of their top k.

    Parameters
    ----------
    model : Model
    k : int
        From 1 to the number of eligible items.
    overlap : float
        Between 0 and 1; to be right on average after calibration, the parameter of
        ``solve_overlap(plan, ..., "user_temperature")``.
    advance : callable, optional
        Called with the progress, in users.
    threads : int
        The temperatures are the same for any number.
    exclude, allow : array_like of ids, optional
        As in `explore`.

    Returns
    -------
    OwnTemperatures
        For `Model.with_user_temperatures`. They are temperatures, in the unit of the scores: the
        policy that gives the overlap is then Plackett-Luce at temperature 1.

    Notes
    -----
    O(n d) and about half a millisecond for each user of a catalog of 10,000 items.

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
    """What `condense` gives of each user, as rows."""
    return np.array([values for values, _ in pairs]), np.array([counts for _, counts in pairs])
