"""The share of an experiment's users, or requests, that each arm should have, and since when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from numbers import Real
from typing import TypeAlias

import numpy as np

from fastrank.inputs import shown

__all__ = ["Shares", "SharesGiven"]

# For the whole log, or by revision, or by the time since when they hold.
SharesGiven: TypeAlias = (
    Mapping[str, float] | Mapping[str, Mapping[str, float]] | Mapping[datetime, Mapping[str, float]]
)


class Shares:
    """Shares as declared by the caller.

    Parameters
    ----------
    given : mapping, optional
        From arms' names to shares, which are relative to their sum; or from revisions, or times
        since when they hold (datetimes with a time zone), to such mappings. None if nobody states
        them.

    Attributes
    ----------
    is_given : bool
    times : ndarray of datetime64[us], shape (m,)
        Times at which shares change, in order, UTC. Empty unless shares depend on times.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names it and the value.

    Examples
    --------
    >>> shares = Shares({"r1": {"control": 9, "new": 1}, "r2": {"control": 0.5, "new": 0.5}})
    >>> shares.of("r1", -1)
    {'control': 0.9, 'new': 0.1}
    """

    def __init__(self, given: SharesGiven | None = None) -> None:
        self.is_given = given is not None
        self._always: dict[str, float] | None = None
        self._by_revision: dict[str, dict[str, float]] = {}
        self._by_time: list[dict[str, float]] = []
        self.times = np.empty(0, "datetime64[us]")
        if given is None:
            return
        if not isinstance(given, Mapping) or not given:
            raise ValueError(f"shares: expected a mapping of arms to shares, got {shown(given)}")
        nested = [isinstance(value, Mapping) for value in given.values()]
        if not any(nested):
            self._always = _normalised("shares", given)
        elif not all(nested):
            raise ValueError(f"shares: some are of arms, and some of revisions: {shown(given)}")
        elif all(isinstance(at, datetime) for at in given):
            found = {}
            for at, shares in given.items():
                assert isinstance(at, datetime)
                if at.tzinfo is None:
                    raise ValueError(f"shares: {at.isoformat()} says no time zone")
                utc = np.datetime64(at.astimezone(UTC).replace(tzinfo=None), "us")
                if utc in found:
                    raise ValueError(f"shares: {at.isoformat()} is there twice")
                found[utc] = _normalised(f"shares: {at.isoformat()}", shares)
            self.times = np.array(sorted(found), "datetime64[us]")
            self._by_time = [found[at] for at in sorted(found)]
        elif all(isinstance(at, str) for at in given):
            self._by_revision = {
                str(at): _normalised(f"shares: {at}", shares) for at, shares in given.items()
            }
        else:
            raise ValueError(
                "shares: expected either revisions or datetimes to have shares, got both:"
                f" {shown(given)}"
            )

    def of(self, revision: str | None, time: int) -> dict[str, float] | None:
        """The shares in force, which sum to 1; None if nobody states them.

        Parameters
        ----------
        revision : str or None
        time : int
            Index of the last of `times` that had passed; -1 before the first.

        Raises
        ------
        ValueError
            If there are shares, but none for that revision or time.
        """
        if self._always is not None:
            return self._always
        if self._by_time:
            if time < 0:
                raise ValueError(
                    f"shares: they say nothing of the time before {self.times[0]}Z, and the log"
                    " has rows of it"
                )
            return self._by_time[time]
        if self._by_revision:
            if revision not in self._by_revision:
                named = "rows without a revision" if revision is None else f"revision {revision!r}"
                raise ValueError(
                    f"shares: the log has {named}, and they are of"
                    f" {', '.join(map(repr, self._by_revision))} alone"
                )
            return self._by_revision[revision]
        return None


def _normalised(name: str, shares: object) -> dict[str, float]:
    if not isinstance(shares, Mapping) or not shares:
        raise ValueError(f"{name}: expected a mapping of arms to shares, got {shown(shares)}")
    for arm, share in shares.items():
        if not isinstance(arm, str):
            raise ValueError(f"{name}: expected arms' names, got {shown(arm)}")
        is_number = isinstance(share, Real) and not isinstance(share, bool)
        if not is_number or not 0.0 <= share < math.inf:
            raise ValueError(f"{name}: {arm}: expected a number of at least 0, got {shown(share)}")
    total = math.fsum(float(share) for share in shares.values())
    if not 0.0 < total < math.inf:
        raise ValueError(f"{name}: expected a sum above 0, got {total:g}")
    return {arm: float(share) / total for arm, share in shares.items()}
