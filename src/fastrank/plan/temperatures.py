"""A temperature for every user, so that all keep the same share of their best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastrank.arraytypes import FloatArray, Mask
from fastrank.calibration import condense, expected_overlaps, temperatures_for_overlap
from fastrank.model import Model
from fastrank.plan.arguments import check_k, fraction
from fastrank.plan.points import Advance

__all__ = ["OwnTemperatures", "own_temperatures"]


_BLOCK = 256  # users whose own temperatures are found together


@dataclass(frozen=True, slots=True, eq=False)
class OwnTemperatures:
    """A temperature for every user of a model.

    Attributes
    ----------
    temperatures : ndarray of float64, shape (u,)
        In the order of the model's users; 1 for users whose scores are all equal.
    reached : ndarray of bool, shape (u,)
        False where no temperature gives that overlap, because of equal scores: the nearest is
        taken then.
    """

    temperatures: FloatArray
    reached: Mask


def own_temperatures(
    model: Model, k: int, overlap: float, advance: Advance | None = None
) -> OwnTemperatures:
    """Each user's own temperature, so that everyone keeps the same share of their top k.

    Parameters
    ----------
    model : Model
    k : int
        From 1 to n.
    overlap : float
        Between 0 and 1; to be right on average after calibration, the parameter of
        ``solve_overlap(plan, ..., "user_temperature")``.
    advance : callable, optional
        Called with the progress, in users.

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
    check_k(k, len(model.catalog))
    asked = fraction("overlap", overlap)
    users = model.user_ids
    found = np.empty(len(users))
    reached = np.empty(len(users), np.bool_)
    for start in range(0, len(users), _BLOCK):
        if advance is not None:
            advance("temperatures of users", start, len(users))
        rows = slice(start, min(start + _BLOCK, len(users)))
        vectors = [model.user_vector(user) for user in users[rows].tolist()]
        values, counts = _stacked([condense(model.catalog.scores(v), k) for v in vectors])
        found[rows] = temperatures_for_overlap(values, k, asked, counts)
        achieved = expected_overlaps(values, found[rows], k, counts)
        reached[rows] = np.abs(achieved - asked) < 5e-3
    if advance is not None:
        advance("temperatures of users", len(users), len(users))
    return OwnTemperatures(found, reached)


def _stacked(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """What `condense` gives of each user, as rows."""
    return np.array([values for values, _ in pairs]), np.array([counts for _, counts in pairs])
