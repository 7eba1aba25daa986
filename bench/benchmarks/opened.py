"""Opening a saved catalog, and the memory that a ranking on it takes.

The catalogs are saved once, by `setup_cache`, into the folder in which asv runs the benchmarks.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import fastrank as fr

from . import calls, memory
from .timing import Call
from .workloads import SIZES, Workload, synthetic

__all__ = ["CallMemory", "Open", "PeakMemory", "Saved", "ranked", "save"]


class Saved(NamedTuple):
    """A catalog on disk, and a user to rank it for."""

    folder: str
    version: str
    query: npt.NDArray[np.float32]
    temperature: float


Cache: TypeAlias = dict[int, Saved]  # by n


def setup_cache() -> Cache:
    return {n: save(synthetic(n), f"catalog-{n}") for n in SIZES}


setup_cache.timeout = 600.0  # type: ignore[attr-defined]  # asv reads it


@lru_cache(maxsize=1)
def _check_opened(folder: str, version: str) -> None:
    if fr.Catalog.open(folder, verify=True).version != version:
        raise AssertionError("another catalog was opened")


def save(workload: Workload, folder: str, storage: str = "float32") -> Saved:
    """Write the workload's catalog."""
    catalog = workload.stored(storage)
    catalog.save(folder)
    return Saved(folder, catalog.version, workload.query, workload.temperature)


class Open:
    """n = 1,000,000 holds 256 MB of vectors."""

    rounds = 1
    number = 1
    repeat = (3, 20, 5.0)
    timeout = 300.0
    unit = "bytes"
    params = SIZES
    param_names = ("n",)

    def setup(self, cache: Cache, n: int) -> None:
        _check_opened(cache[n].folder, cache[n].version)

    def time_open(self, cache: Cache, n: int) -> None:
        fr.Catalog.open(cache[n].folder)

    def time_open_verify(self, cache: Cache, n: int) -> None:
        fr.Catalog.open(cache[n].folder, verify=True)

    def track_private_bytes(self, cache: Cache, n: int) -> int:
        return memory.private_growth(lambda: fr.Catalog.open(cache[n].folder))


class CallMemory:
    """What one call adds to the process at its peak, beyond the mapped catalog."""

    timeout = 300.0
    unit = "bytes"
    params = (calls.OWN, SIZES)
    param_names = ("policy", "n")

    def setup(self, cache: Cache, policy: str, n: int) -> None:
        self.call = ranked(cache[n], policy)

    def track_extra_bytes(self, cache: Cache, policy: str, n: int) -> int:
        return memory.extra_bytes(self.call)


class PeakMemory:
    """The whole process: Python, NumPy, 272 MB of mapped catalog, and the call's own memory.

    Every setup ranks deterministically, which maps the whole catalog; "nothing" then calls nothing,
    and what the others have above it is theirs.
    """

    timeout = 300.0
    params = ("nothing", *calls.OWN)
    param_names = ("policy",)

    def setup(self, cache: Cache, policy: str) -> None:
        largest = cache[max(cache)]
        self.call = ranked(largest, "deterministic" if policy == "nothing" else policy)

    def peakmem_rank(self, cache: Cache, policy: str) -> None:
        if policy != "nothing":
            self.call()


def ranked(saved: Saved, name: str) -> Call:
    """A ranking on a catalog opened from disk; the process holds no vectors of its own.

    Its check is the frugal one: the oracle's arrays would stand out from the call's memory.
    """
    catalog = fr.Catalog.open(saved.folder)
    # Every page of the files is touched first: those are shared, and no memory of a call.
    catalog.rank(saved.query, 1, policy=fr.Deterministic())
    catalog.item_ids.max()
    policy = calls.own_policy(name, saved.temperature)
    call = partial(catalog.rank, saved.query, 10, policy=policy)
    ranking = call()
    again = catalog.log_propensities(saved.query, ranking.item_ids, policy=policy)
    within = 1e-5 + ranking.log_norm_error
    if len(set(ranking.item_ids.tolist())) != 10 or not np.allclose(
        ranking.log_propensities, again, rtol=0.0, atol=within
    ):
        raise AssertionError(f"{name}: rank and log_propensities disagree")
    return call
