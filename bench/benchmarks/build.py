"""Time of making what rankings need: a catalog from arrays in memory, a function's machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

import fastrank as fr

from . import calls
from .timing import Call
from .workloads import SIZES, STORAGES, require_storage, synthetic

__all__ = ["Build", "FirstCall"]


class Build:
    """A catalog: checks, panels, id look-up, content hash.

    By n, the storage and the type of the ids, which come in no order.
    """

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


class FirstCall:
    """A new process's first ranking by a function that an earlier one compiled. Target: 0.15 s.

    Compiling takes seconds, so machine code is kept, here in a folder of its own, and Numba is not
    even imported. Python's start and fastrank's import are not counted.
    """

    unit = "s"
    timeout = 300.0

    def setup(self) -> None:
        calls.require("numba decay")

    def track_seconds(self) -> float:
        with TemporaryDirectory() as folder:
            if not _first_call(folder)[1]:
                raise AssertionError("Numba did not compile it")
            found = [_first_call(folder) for _ in range(5)]
        if any(compiled for _, compiled in found):
            raise AssertionError("the code was not kept")
        return median(seconds for seconds, _ in found)


def _first_call(folder: str) -> tuple[float, bool]:
    """In a process of its own: seconds, and whether Numba was there in the end."""
    code = "import sys; from benchmarks.scores import first_call"
    code += "; print(first_call(), 'numba' in sys.modules)"
    environment = {
        **os.environ,
        "FASTRANK_CACHE_DIR": folder,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, there = child.stdout.split()
    return float(seconds), there == "True"
