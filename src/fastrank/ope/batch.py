"""The arrays that estimators use: n rankings under the logging and an evaluation policy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray, IntArray, Mask
from fastrank.eventlog.hashing import mixed
from fastrank.eventlog.schema import LARGEST
from fastrank.inputs import as_real
from fastrank.ope.tails import size_counts

__all__ = ["FLAT_ARRAYS", "GROUPS", "MAX_LOG_WEIGHT", "PLACE_ARRAYS", "Batch"]


# Users are hashed into this many groups: bounded, and mergeable.
GROUPS = 1024
# The square of exp(345) is within float64, with room for sums and rewards. Rows above it are
# counted, and make every estimate that they enter unsupported.
MAX_LOG_WEIGHT = 345.0


@dataclass(frozen=True, eq=False)
class Batch:
    """n logged rankings of up to k places.

    Places that a short ranking lacks have 0 in every array: they earn nothing, and leave the weight
    unchanged.

    Attributes
    ----------
    logged, evaluated : ndarray of float64, shape (n, k)
        Conditional log-propensities of the shown items under the logging policy (finite) and the
        evaluation policy (-inf where it cannot show the item there).
    rewards : ndarray of float64, shape (n, k)
        Finite.
    lengths : ndarray of int64, shape (n,)
        Number of places of each ranking.
    groups : ndarray of int64, shape (n,)
        In [0, `GROUPS`): which rows may depend on each other. A fixed hash of the user, or of the
        request if rows are taken as independent.
    uniform : ndarray of float64, shape (n,)
        In [0, 1), from a fixed hash of the request: one draw per row.
    n_eligible : ndarray of int64, shape (n,), optional
        Number of items that could be shown; -1 if unknown.
    marginals_logged, marginals_evaluated : ndarray of float64, shape (n, k), optional
        P(the item shown at place l is shown there) under either policy, whatever stands above.
    q_logged, q_expected : ndarray of float64, shape (n, k), optional
        A reward model's value of the shown item at its place, and its mean under the evaluation
        policy's law of that place, given the places above.
    cascade_q_logged, cascade_q_expected : ndarray of float64, shape (n, k), optional
        The same for the rewards from that place on.
    q_direct : ndarray of float64, shape (n,), optional
        The reward model's value of a ranking drawn from the evaluation policy.
    slate_weights : ndarray of float64, shape (n,), optional
        Weights of the pseudo-inverse estimator.
    row_weights : ndarray of float64, shape (n,), optional
        Above 0: the number of rankings that each row stands for, if some were kept less often than
        others (1 / the probability of being kept). By default 1.
    """

    logged: FloatArray
    evaluated: FloatArray
    rewards: FloatArray
    lengths: IntArray
    groups: IntArray
    uniform: FloatArray
    n_eligible: IntArray | None = None
    marginals_logged: FloatArray | None = None
    marginals_evaluated: FloatArray | None = None
    q_logged: FloatArray | None = None
    q_expected: FloatArray | None = None
    cascade_q_logged: FloatArray | None = None
    cascade_q_expected: FloatArray | None = None
    q_direct: FloatArray | None = None
    slate_weights: FloatArray | None = None
    row_weights: FloatArray | None = None

    @classmethod
    def of(
        cls,
        logged: npt.ArrayLike,
        evaluated: npt.ArrayLike,
        rewards: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
        uniform: npt.ArrayLike | None = None,
        **optional: npt.ArrayLike | None,
    ) -> Batch:
        """Make a checked batch from plain arrays.

        Parameters
        ----------
        logged, evaluated, rewards : array_like of real numbers, shape (n, k) or (n,)
        lengths : array_like of int, shape (n,), optional
            By default all rankings have k places.
        groups : array_like of int, shape (n,), optional
            Users, as any integers. By default each row is a separate user. Rows that share their
            noise, as when one seed serves many requests, also depend on each other, which no array
            here shows: group them by what they share.
        uniform : array_like of float, shape (n,), optional
            By default evenly spaced; only replay of a stochastic policy uses it.
        **optional : array_like
            The optional arrays.

        Raises
        ------
        ValueError
            If an argument is invalid; the message names the argument, the row and the value.

        Examples
        --------
        >>> batch = Batch.of([-0.7, -0.7], [-0.2, -1.6], [1.0, 0.0])
        >>> batch.weights.round(2).tolist()
        [1.65, 0.41]
        """
        logged_array = _matrix("logged", logged)
        shape = logged_array.shape
        if not (np.isfinite(logged_array) & (logged_array <= 0.0)).all():
            _refuse(
                "logged",
                logged_array,
                np.isfinite(logged_array) & (logged_array <= 0.0),
                "must be finite and not above 0",
            )
        evaluated_array = _matrix("evaluated", evaluated, shape)
        if not (evaluated_array <= 0.0).all():
            _refuse("evaluated", evaluated_array, evaluated_array <= 0.0, "must not be above 0")
        rewards_array = _matrix("rewards", rewards, shape)
        if not np.isfinite(rewards_array).all():
            _refuse("rewards", rewards_array, np.isfinite(rewards_array), "must be finite")
        within = np.abs(rewards_array) <= LARGEST
        if not within.all():
            _refuse("rewards", rewards_array, within, f"must be within {LARGEST:g}")
        n, k = shape
        length_array = np.full(n, k) if lengths is None else as_real("lengths", lengths)
        whole = n == 0 or length_array.dtype.kind in "iu"
        inside = (length_array >= 0) & (length_array <= k)
        if length_array.shape != (n,) or not whole or not inside.all():
            raise ValueError(f"lengths: expected {n} integers in [0, {k}]")
        length_array = length_array.astype(np.int64)
        absent = np.arange(k) >= length_array[:, None]
        if absent.any():
            for array in (logged_array, evaluated_array, rewards_array):
                array[absent] = 0.0
        group_array = np.arange(n) if groups is None else as_real("groups", groups)
        if groups is not None and group_array.dtype.kind in "iu":
            # Ids may be multiples of any number; hashed, they spread evenly over all groups.
            group_array = (mixed(group_array.astype(np.uint64)) % np.uint64(GROUPS)).astype(
                np.int64
            )
        if group_array.shape != (n,) or group_array.dtype.kind not in "iu":
            raise ValueError(f"groups: expected {n} integers")
        spread = (
            (np.arange(n) + 0.5) / max(n, 1) if uniform is None else as_real("uniform", uniform)
        )
        if spread.shape != (n,) or not ((spread >= 0.0) & (spread < 1.0)).all():
            raise ValueError(f"uniform: expected {n} numbers in [0, 1)")
        extra: dict[str, Any] = {}
        for name, values in optional.items():
            if name not in _FLAT | PLACE_ARRAYS:
                raise ValueError(f"{name}: no estimator uses an array of this name")
            if values is None:
                continue
            if name in _FLAT:
                dtype = np.int64 if name == "n_eligible" else np.float64
                array = np.array(as_real(name, values), dtype)
                if array.shape != (n,):
                    raise ValueError(f"{name}: expected shape ({n},), got {array.shape}")
            else:
                array = _matrix(name, values, shape)
                array[absent] = 0.0
            if not np.isfinite(array).all():
                _refuse(name, array, np.isfinite(array), "must be finite")
            if name == "row_weights":
                within = (array >= 1.0 / LARGEST) & (array <= LARGEST)
                if not within.all():
                    _refuse(name, array, within, f"must be above 0, within {LARGEST:g}")
            extra[name] = array
        return cls(
            logged_array,
            evaluated_array,
            rewards_array,
            length_array,
            group_array.astype(np.int64) % GROUPS,
            spread.astype(np.float64),
            **extra,
        )

    def __len__(self) -> int:
        return len(self.logged)

    @property
    def places(self) -> int:
        """k."""
        return int(self.logged.shape[1])

    @cached_property
    def counts(self) -> IntArray:
        """Rows of each group, shape (GROUPS,)."""
        return np.bincount(self.groups, minlength=GROUPS)

    @cached_property
    def log_weights(self) -> FloatArray:
        """Log importance weights of the prefixes, shape (n, k)."""
        return np.cumsum(self.evaluated - self.logged, axis=1)

    @cached_property
    def prefix_weights(self) -> FloatArray:
        """Importance weights of the prefixes, shape (n, k)."""
        return np.asarray(np.exp(np.minimum(self.log_weights, MAX_LOG_WEIGHT)))

    @property
    def weights(self) -> FloatArray:
        """Importance weights of the whole rankings, shape (n,)."""
        return self.prefix_weights[:, -1]

    @cached_property
    def weights_above(self) -> FloatArray:
        """Importance weights of the places above each, shape (n, k): 1 for the first."""
        return np.hstack([np.ones((len(self), 1)), self.prefix_weights[:, :-1]])

    @cached_property
    def earned(self) -> FloatArray:
        """Rewards of the whole rankings, shape (n,)."""
        return _row_sums(self.rewards)

    @cached_property
    def sizes(self) -> IntArray:
        """Numbers of rankings by what they earned, as counted by `tails`."""
        return size_counts(self.earned)

    @cached_property
    def weighted_rewards(self) -> FloatArray:
        """Each place's reward times the weight of its prefix, shape (n, k)."""
        return self.prefix_weights * self.rewards

    @cached_property
    def weighted_earned(self) -> FloatArray:
        """The sums over places of `weighted_rewards`, shape (n,)."""
        return _row_sums(self.weighted_rewards)

    @cached_property
    def matched(self) -> Mask:
        """Rows (n,) in which the evaluation policy, drawing once, shows the logged ranking.

        The ranking has its probability under the policy, so one uniform number per row decides.
        """
        return np.asarray(self.uniform < np.exp(_row_sums(self.evaluated)))


def _row_sums(array: FloatArray) -> FloatArray:
    return array @ np.ones(array.shape[1])  # several times as fast as sums along short rows


# The optional arrays of estimators: one value per row, and one per place.
FLAT_ARRAYS = frozenset({"q_direct", "slate_weights"})
PLACE_ARRAYS = frozenset(
    {
        "marginals_logged",
        "marginals_evaluated",
        "q_logged",
        "q_expected",
        "cascade_q_logged",
        "cascade_q_expected",
    }
)
_FLAT = FLAT_ARRAYS | {"n_eligible", "row_weights"}


def _matrix(name: str, values: npt.ArrayLike, shape: tuple[int, ...] | None = None) -> FloatArray:
    """A copy, float64 (n, k); a flat one has k = 1."""
    array = np.array(as_real(name, values), np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0 or (shape is not None and array.shape != shape):
        wanted = "(n, k) with k >= 1" if shape is None else f"{shape}"
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    return array


def _refuse(name: str, array: FloatArray, fine: Mask, why: str) -> None:
    where = tuple(np.argwhere(~fine)[0].tolist())
    place = f"row {where[0]}" + (f", place {where[1] + 1}" if len(where) > 1 else "")
    raise ValueError(f"{name}: {place}: {why}, got {array[where]}")
