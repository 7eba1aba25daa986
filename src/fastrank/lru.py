"""A cache of the most recently used values, up to a bound."""

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
    """Values by key; if another value would exceed a bound, the least recently used are removed.

    Threads may share it. A signal handler may use it in the middle of a call, and so may a child
    process that was forked in the middle of a call.

    Parameters
    ----------
    weight : float
        Limit of the total weight, in the unit of the weights passed to `put`, such as bytes. A
        value with more weight than that is not kept.
    entries : float
        Limit of the number of values.

    Attributes
    ----------
    weight : float
        Total weight of the values kept.

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
        """Return the value of a key, which counts as used; `otherwise` if there is none."""
        entries = self._entries
        if key not in entries:
            return otherwise
        with self._lock:
            try:
                entries.move_to_end(key)
                return entries[key][0]
            except KeyError:  # another thread or a signal handler removed it
                return otherwise

    def put(self, key: K, value: V, weight: float = 1) -> None:
        """Store a value, which replaces the key's previous value."""
        entries = self._entries
        # Signal handlers raise exceptions only at calls: there is no call between steps that
        # belong together.
        with self._lock:
            if key in entries:
                self.weight -= entries[key][1]
                del entries[key]
            if weight > self._most_weight:
                return
            self.weight += weight
            entries[key] = value, weight
            while self.weight > self._most_weight or len(entries) > self._most_entries:
                for oldest in entries:  # not next(), which would be a call
                    self.weight -= entries[oldest][1]
                    del entries[oldest]
                    break


_ALL: weakref.WeakSet[LRU[Any, Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Replace the lock: a thread that the child lacks may have held it, in the middle of work."""
    for each in list(_ALL):
        each._lock = threading.RLock()
        each.weight = sum(weight for _, weight in each._entries.values())


os.register_at_fork(after_in_child=_after_fork_in_child)
