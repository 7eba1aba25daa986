"""Rewards in files, read into arrays sorted by request.

Columns: `request_id`, `item_id`, `reward`, `ts`, and optionally `position`, the item's place in the
ranking from 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastrank.arraytypes import AnyArray, FloatArray, IntArray
from fastrank.eventlog.events import Events, read_events
from fastrank.eventlog.hashing import text_hashes
from fastrank.eventlog.schema import IdKind
from fastrank.files import Paths

__all__ = ["Rewards", "read_rewards"]


@dataclass(frozen=True, slots=True, eq=False)
class Rewards:
    """m rewards, sorted by the first hash of their request; equal ones stay in order.

    Attributes
    ----------
    request_hash : ndarray of uint64, shape (m, 2)
    item : ndarray of int64 or uint64, shape (m,) or (m, 2)
        The id; for text, its two hashes.
    position : ndarray of int64, shape (m,)
        Place in the ranking, from 1; 0 if not stated.
    reward : ndarray of float64, shape (m,)
    ts : ndarray of int64, shape (m,)
        Microseconds since 1970, UTC.
    files : list of str
    """

    request_hash: npt.NDArray[np.uint64]
    item: AnyArray
    position: IntArray
    reward: FloatArray
    ts: IntArray
    files: list[str]

    def __len__(self) -> int:
        return len(self.reward)


def read_rewards(paths: Paths, kind: IdKind, *, allow_negative: bool) -> Rewards:
    """Read all rewards; O(m log m), about 60 bytes each.

    Parameters
    ----------
    paths : path or iterable of paths
        As in `read_events`.
    kind : {"int64", "str"}
        Type of the log's item ids.
    allow_negative : bool

    Raises
    ------
    ValueError
        If a column or value is missing, an item id has the other type, a reward is not finite (or
        negative, if that is not allowed), or a time cannot be read; the message names file, row and
        value. Times without a zone are UTC.
    """
    parts, files = read_events(
        "rewards",
        paths,
        ("request_id", "item_id", "reward", "ts"),
        ("position",),
        lambda events: _checked(events, kind, allow_negative),
    )
    names = [str(file) for file in files]
    if not parts:
        empty = np.empty((0, 2), np.uint64)
        item = empty if kind == "str" else np.empty(0, np.int64)
        integers = np.empty(0, np.int64)
        none = np.empty(0, np.float64)
        return Rewards(empty, item, integers, none, integers, names)
    request, item, position, reward, ts = (
        np.concatenate([part[i] for part in parts]) for i in range(5)
    )
    order = np.argsort(request[:, 0], kind="stable")
    return Rewards(request[order], item[order], position[order], reward[order], ts[order], names)


def _checked(
    events: Events, kind: IdKind, allow_negative: bool
) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray, AnyArray]:
    """One batch as arrays: request hashes, items, positions, rewards, times."""
    ids = events.column("item_id")
    is_text = pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)
    if not (is_text or pa.types.is_integer(ids.type) or pa.types.is_decimal(ids.type)):
        raise ValueError(f"{events.path}: item_id: expected {kind} ids, got {ids.type}")
    if events.is_typed and is_text != (kind == "str"):
        raise ValueError(f"{events.path}: item_id: the log has {kind} ids, got {ids.type}")
    if kind == "str":
        item: AnyArray = text_hashes(ids.cast(pa.string()))
    else:
        item = events.numbers("item_id", pa.int64()).to_numpy(zero_copy_only=False)
    values = events.numbers("reward", pa.float64())
    reward = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
    events.refuse("reward", ~np.isfinite(reward), "must be finite")
    if not allow_negative:
        negative = "must not be negative where rewards are positives"
        events.refuse("reward", reward < 0.0, negative)
    position = np.zeros(len(reward), np.int64)
    if "position" in events:
        places = events.numbers("position", pa.int64()).fill_null(0)
        position = places.to_numpy(zero_copy_only=False)
        stated = ~events.column("position").is_null().to_numpy(zero_copy_only=False)
        events.refuse("position", stated & (position < 1), "places count from 1")
    return events.requests(), item, position, reward, events.times()
