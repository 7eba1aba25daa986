"""The trees of the cached sampler, kept by what they are made of."""

from __future__ import annotations

import os
from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Tree", "TreeCache"]

_ENTRY_BYTES = 2048


class Tree(NamedTuple):
    """Scores of all items, and the masses of the tree over them."""

    scores: npt.NDArray[np.float32]
    nodes: npt.NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """With the entry's key and objects, which weigh more than the tree of a small catalog."""
        return self.scores.nbytes + self.nodes.nbytes + _ENTRY_BYTES


class TreeCache:
    """Trees by (query bytes, temperature), least recently used out first. Thread-safe.

    A signal's exception comes up at a call: between what belongs together there is none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._start()

    def _start(self) -> None:
        self._used = 0
        self._trees: OrderedDict[tuple[bytes, float], Tree] = OrderedDict()
        self._lock = Lock()
        self._process = os.getpid()

    def get(self, key: tuple[bytes, float]) -> Tree | None:
        if (
            os.getpid() != self._process
        ):  # forked, perhaps while a thread that is gone held the lock
            self._start()
        with self._lock:
            tree = self._trees.get(key)
            if tree is not None:
                self._trees.move_to_end(key)
            return tree

    def put(self, key: tuple[bytes, float], tree: Tree) -> None:
        size = tree.nbytes
        if size > self._capacity:
            return
        with self._lock:
            if key in self._trees:  # another thread was first
                return
            while self._used + size > self._capacity:
                oldest = next(iter(self._trees))
                gone = self._trees[oldest].nbytes
                self._used -= gone
                del self._trees[oldest]
            self._used += size
            self._trees[key] = tree
