"""What was used most recently, kept up to a bound."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar, overload

__all__ = ["LRU"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")


class LRU(Generic[K, V]):
    """Values by key; when one more would exceed a bound, the least recently used ones go.

    Threads may share it. A signal handler may use it in the middle of a call, and so may a child
    that was forked in the middle of one.

    Parameters
    ----------
    weight : float
        At most this for all values together, in the unit of the weights that `put` is called
        with: bytes, say. A value that weighs more by itself is not kept.
    entries : float
        How many at most.

    Attributes
    ----------
    weight : float
        Of what is kept.

    Examples
    --------
    >>> kept = LRU[str, int](entries=2)
    >>> kept.put("a", 1)
    >>> kept.put("b", 2)
    >>> kept.get("a")
    1
    >>> kept.put("c", 3)
    >>> kept.get("a"), kept.get("b"), kept.get("c")
    (1, None, 3)
    """

    def __init__(self, weight: float = math.inf, *, entries: float = math.inf) -> None:
        self.weight: float = 0
        self._most_weight = weight
        self._most_entries = entries
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._lock = threading.RLock()
        _ALL.add(self)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, otherwise: D) -> V | D: ...
    def get(self, key: K, otherwise: D | None = None) -> V | D | None:
        """The value of a key, which counts as used; `otherwise` where there is none."""
        entries = self._entries
        if key not in entries:
            return otherwise
        with self._lock:
            try:
                entries.move_to_end(key)
                return entries[key][0]
            except KeyError:  # another thread or a signal's handler needed its room
                return otherwise

    def put(self, key: K, value: V, weight: float = 1) -> None:
        """Keep a value; it replaces the one that the key has."""
        entries = self._entries
        # A signal's exception is raised at a call: there is none between steps that belong
        # together.
        with self._lock:
            if key in entries:
                self.weight -= entries[key][1]
                del entries[key]
            if weight > self._most_weight:
                return
            self.weight += weight
            entries[key] = value, weight
            while self.weight > self._most_weight or len(entries) > self._most_entries:
                for oldest in entries:  # next() would be a call
                    self.weight -= entries[oldest][1]
                    del entries[oldest]
                    break


_ALL: weakref.WeakSet[LRU[Any, Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A thread that is gone may have held the lock, in the middle of its work."""
    for each in list(_ALL):
        each._lock = threading.RLock()
        each.weight = sum(weight for _, weight in each._entries.values())


os.register_at_fork(after_in_child=_after_fork_in_child)
