"""Tables of a model's users, made in advance: arrays that are saved and mapped with the model.

A table holds the masses that Plackett-Luce needs for a user at a temperature (ext/kernels.h,
"Tables"), so that a ranking scores hundreds of items instead of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import AnyArray, FloatArray, IntArray
from fastrank.ask import Table
from fastrank.policies import MAX_TEMPERATURE, MIN_TEMPERATURE

__all__ = [
    "NAMES",
    "Advance",
    "UserTables",
    "from_arrays",
    "largest_difference",
    "nbytes",
    "rounding",
]

Parts: TypeAlias = tuple[npt.NDArray[np.uint32], FloatArray]  # depths and tops of m users

NAMES = ("table_depths", "table_tops", "table_users")

_STEP, _DEEP = 2.0**-21, 0xE0000000  # of depths (ext/kernels.h)

Advance: TypeAlias = Callable[[int, int], None]  # users done, all users


class UserTables(NamedTuple):
    """Tables of m users at a policy's temperature times each user's own factor."""

    temperature: float
    depths: npt.NDArray[np.uint32]  # (m, cells)
    tops: FloatArray  # (m, 2): reference and largest
    users: IntArray | None  # (m,): rows of the model, ascending; None: all of them

    def of(self, row: int) -> Table | None:
        """Return the table of the user in a row of the model; None if there is none."""
        if self.users is not None:
            place = int(np.searchsorted(self.users, row))
            if place == len(self.users) or self.users[place] != row:
                return None
            row = place
        return Table(self.depths[row], *self.tops[row].tolist())

    def arrays(self) -> dict[str, AnyArray]:
        """Return the arrays by the names of their files."""
        found: dict[str, AnyArray] = {"table_depths": self.depths, "table_tops": self.tops}
        if self.users is not None:
            found["table_users"] = self.users
        return found


def nbytes(n_items: int, n_users: int) -> int:
    """Return the size of the tables of so many users."""
    return n_users * (4 * _native.table_size(n_items) + 16)


def rounding() -> str:
    """Return how this CPU rounds scores; a table is valid only for scores rounded alike.

    AVX2 and AVX-512 round alike; other CPUs would give other masses at a small temperature.
    """
    return "separate" if _native.isa() == "v2" else "fused"


def largest_difference(one: Parts, other: Parts, temperatures: FloatArray) -> float:
    """Return the largest difference of log-masses in two tables of the same users.

    Only masses that both tables state are compared.
    """

    def logs(parts: Parts) -> FloatArray:
        depths, tops = parts
        start = (tops[:, 0] - other[1][:, 0]) / temperatures + tops[:, 1]
        found: FloatArray = start[:, None] - depths * _STEP
        return found

    differences = np.abs(logs(one) - logs(other))
    differences[(one[0] >= _DEEP) & (other[0] >= _DEEP)] = 0.0
    return float(differences.max(initial=0.0))


def from_arrays(
    arrays: dict[str, AnyArray], temperature: Any, n_items: int, n_users: int
) -> UserTables | None:
    """Restore the tables of a saved model, which may be damaged; None if it has none. O(m)."""
    own = {name: arrays[name] for name in NAMES if name in arrays}
    if not own and temperature is None:
        return None
    users = own.get("table_users")
    if users is not None and users.ndim != 1:
        raise ValueError("table_users is missing or does not fit")
    count = n_users if users is None else len(users)
    expected = {
        "table_depths": ((count, _native.table_size(n_items)), "<u4"),
        "table_tops": ((count, 2), "<f8"),
        "table_users": ((count,), "<i8"),
    }
    for name, (shape, dtype) in expected.items():
        if name not in own and name == "table_users":
            continue
        if name not in own or own[name].shape != shape or own[name].dtype.str != dtype:
            raise ValueError(f"{name} is missing or does not fit")
    if not isinstance(temperature, float) or not (
        MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE
    ):
        raise ValueError(f"table_temperature: expected a temperature, got {temperature!r}")
    if not np.isfinite(own["table_tops"]).all():
        raise ValueError("table_tops: expected finite numbers")
    if users is not None and not (
        _native.ascends(users) and (count == 0 or (users[0] >= 0 and users[-1] < n_users))
    ):
        raise ValueError(f"table_users: expected rows of {n_users} users, ascending")
    return UserTables(temperature, own["table_depths"], own["table_tops"], users)
