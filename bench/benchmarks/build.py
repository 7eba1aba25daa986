"""Time of making a catalog from arrays in memory: checks, panels, id look-up, content hash."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

import fastrank as fr

from .timing import Call
from .workloads import SIZES, STORAGES, require_storage, synthetic

__all__ = ["Build"]


class Build:
    """By n, the storage and the type of the ids, which come in no order."""

    rounds = 1
    number = 1
    repeat = (3, 5, 10.0)
    timeout = 300.0
    params = ([n for n in SIZES if n >= 10_000] or SIZES, STORAGES, ["int", "str"])
    param_names = ("n", "storage", "ids")

    def setup(self, n: int, storage: str, ids: str) -> None:
        require_storage(storage)
        self.call = _build(n, storage, ids)

    def time_build(self, n: int, storage: str, ids: str) -> None:
        self.call()


@lru_cache(maxsize=1)
def _build(n: int, storage: str, ids: str) -> Call:
    workload = synthetic(n)
    numbers = np.random.default_rng(2).permutation(n)
    item_ids = numbers if ids == "int" else np.char.add("item-", numbers.astype(np.str_))
    call = partial(fr.Catalog, item_ids, workload.vectors, storage=storage)
    ranking = call().rank(workload.query, 5, policy=fr.Deterministic())
    best = workload.catalog.rank(workload.query, 5, policy=fr.Deterministic())
    if not np.array_equal(ranking.item_ids, item_ids[best.item_ids]):
        raise AssertionError("the catalog ranks other items")
    return call
