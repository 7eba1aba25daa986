"""Impressions: records of when a ranking was shown, and how many of its places.

Columns: `request_id`, `ts`, and `displayed`, the number of places from the top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastrank.arraytypes import AnyArray, IntArray
from fastrank.eventlog.events import Events, read_events
from fastrank.files import Paths

__all__ = ["Impressions", "read_impressions"]


@dataclass(frozen=True, slots=True, eq=False)
class Impressions:
    """m impressions, sorted by the first hash of their request.

    Attributes
    ----------
    request_hash : ndarray of uint64, shape (m, 2)
    displayed : ndarray of int64, shape (m,)
        Not negative.
    ts : ndarray of int64, shape (m,)
        Microseconds since 1970, UTC.
    """

    request_hash: npt.NDArray[np.uint64]
    displayed: IntArray
    ts: IntArray

    def __len__(self) -> int:
        return len(self.ts)


def read_impressions(paths: Paths) -> Impressions:
    """Read all impressions; O(m log m), about 32 bytes each.

    Parameters
    ----------
    paths : path or iterable of paths
        As in `read_events`.

    Raises
    ------
    ValueError
        If a column or value is missing, a number of places is negative or not an integer, or a time
        cannot be read; the message names file, row and value. Times without a zone are UTC.
    """
    parts, _ = read_events("impressions", paths, ("request_id", "displayed", "ts"), (), _checked)
    if not parts:
        none = np.empty(0, np.int64)
        return Impressions(np.empty((0, 2), np.uint64), none, none)
    request, displayed, ts = (np.concatenate([part[i] for part in parts]) for i in range(3))
    order = np.argsort(request[:, 0], kind="stable")
    return Impressions(request[order], displayed[order], ts[order])


def _checked(events: Events) -> tuple[AnyArray, AnyArray, AnyArray]:
    displayed = events.numbers("displayed", pa.int64()).to_numpy(zero_copy_only=False)
    events.refuse("displayed", displayed < 0, "must not be negative")
    return events.requests(), displayed, events.times()
