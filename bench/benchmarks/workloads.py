"""What is ranked: vectors, queries, and a temperature that suits their scores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastrank as fr
from fastrank import packing

from . import require_one_thread, rules

__all__ = [
    "CODED_FROM",
    "DIM",
    "LARGEST",
    "MAX_N",
    "MIDDLE",
    "REAL",
    "SIZES",
    "STORAGES",
    "Vectors",
    "Workload",
    "clustered",
    "enlarged",
    "falling",
    "kind_of",
    "real",
    "require_storage",
    "synthetic",
    "workload",
]

Vectors: TypeAlias = npt.NDArray[np.float32]

DIM = 64
# FASTRANK_BENCH_MAX_N leaves the larger sizes out, for a run that checks and does not measure; with
# 10000000 what has a track of LARGEST is measured there, too.
MAX_N = int(os.environ.get("FASTRANK_BENCH_MAX_N", "1000000"))
SIZES = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= MAX_N]
LARGEST = 10_000_000
# Where something other than n varies.
MIDDLE = min(100_000, SIZES[-1])
REAL = ["gowalla", "anime"]
STORAGES = ["float32", "int8"]
# int8 storage of fewer items is float32 storage.
CODED_FROM = int(getattr(packing, "CODED_FROM", 0))

_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
_USERS = 16
_SAMPLE = 256  # users behind the mean user of normal vectors; real ones have all theirs
# The first place's softmax over real scores is as spread as a uniform choice among this many.
_REAL_PERPLEXITY = 100.0


@dataclass(frozen=True)
class Workload:
    """One catalog and its users.

    Attributes
    ----------
    vectors : ndarray of float32, shape (n, d)
        Item i has id i.
    queries : ndarray of float32, shape (u, d)
        Users come in turn: one and the same user again and again would train the CPU's branch
        predictor, most of all for the policies that always do the same.
    temperature : float
    mean_user : ndarray of float32, shape (d,)
        Mean of many users, who need not be among the queries: its scores are their mean scores.
    """

    vectors: Vectors
    queries: Vectors
    temperature: float
    mean_user: Vectors

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def query(self) -> Vectors:
        """The first user's, for whom results are checked."""
        first: Vectors = self.queries[0]
        return first

    @cached_property
    def catalog(self) -> fr.Catalog:
        """Ours, in memory, of float32 panels."""
        return self.packed()

    @cached_property
    def int8_catalog(self) -> fr.Catalog:
        """Ours, in memory, as asking for int8 gives it: few items are kept as float32."""
        return self.packed("int8")

    @cached_property
    def coded_catalog(self) -> fr.Catalog:
        """Ours, in memory, of int8 codes, however few the items are."""
        return self.int8_catalog if len(self) >= CODED_FROM else self.packed("codes")

    @cached_property
    def featured_catalog(self) -> fr.Catalog:
        """`catalog`, its panels shared, with columns for `scores`."""
        rng, n = np.random.default_rng(3), len(self)
        columns = {
            "age": rng.exponential(60.0, n),
            "norm": np.linalg.norm(self.vectors, axis=1),
            "price": rng.lognormal(3.0, 1.0, n),
            **{f"x{i}": rng.standard_normal(n) for i in range(8)},
        }
        return self.catalog.with_features(columns)

    @cached_property
    def ruled_catalog(self) -> fr.Catalog:
        """`catalog`, its panels shared, with columns for `rules`."""
        return self.catalog.with_features(rules.columns(len(self)))

    @cached_property
    def indexed_catalog(self) -> fr.Catalog:
        """Ours, of float32 panels, with an inverted file of FAISS as it is made by default."""
        from fastrank import retrieval  # which an older fastrank has not

        return self.catalog.with_index(retrieval.build_ivf(self.catalog))

    def stored(self, storage: str) -> fr.Catalog:
        """The one of float32, int8 or codes, made when it is first asked for."""
        catalogs = {"float32": "catalog", "int8": "int8_catalog", "codes": "coded_catalog"}
        catalog: fr.Catalog = getattr(self, catalogs[storage])
        return catalog

    def packed(self, storage: str = "float32", **options: Any) -> fr.Catalog:
        """A new catalog of the same items, with other options; storage as for `stored`."""
        if storage != "codes":
            require_storage(storage)
            return fr.Catalog(np.arange(len(self)), self.vectors, storage=storage, **options)
        with _codes_for_all():
            return self.packed("int8", **options)

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """The first user's, in float64: what every contender's choice is held against."""
        exact: npt.NDArray[np.float64] = np.einsum(
            "ij,j->i", self.vectors, self.query, dtype=np.float64
        )
        return exact

    @cached_property
    def scale(self) -> float:
        """Largest score that vectors of these norms could have; errors are measured by it."""
        norms = np.sqrt(np.einsum("ij,ij->i", self.vectors, self.vectors))
        return float(norms.max() * np.linalg.norm(self.query))

    def first_user(self, temperature: float) -> Workload:
        """The same without the others, at another temperature."""
        return replace(self, queries=self.queries[:1], temperature=temperature)

    def shuffled(self) -> Workload:
        """The same items in no order."""
        order = np.random.default_rng(0).permutation(len(self))
        return replace(self, vectors=self.vectors[order])

    def ascending(self) -> Workload:
        """The same items in ascending order of the first user's scores: the most entries."""
        order = np.argsort(self.scores, kind="stable")
        return replace(self, vectors=self.vectors[order])


def workload(source: int | str, users: int = _USERS) -> Workload:
    """Normal vectors, this many, or the real ones of this name."""
    if isinstance(source, str):
        return real(source, users)
    return synthetic(source, users=users)


def kind_of(vectors: str, n: int, users: int = _USERS) -> Workload:
    """So many normal vectors, falling or clustered ones, or of real ones by name."""
    if vectors == "normal":
        return synthetic(n, users=users)
    if vectors in ("falling", "clustered"):
        return (falling if vectors == "falling" else clustered)(n, users=users)
    return enlarged(vectors, n, users)


@contextmanager
def _codes_for_all() -> Iterator[None]:
    """int8 storage keeps codes of small catalogs too: to measure what is done with codes."""
    found, packing.CODED_FROM = CODED_FROM, 0
    try:
        yield
    finally:
        packing.CODED_FROM = found


@cache
def require_storage(storage: str) -> None:
    """NotImplementedError, a skip to asv, where this fastrank does not know the storage."""
    try:
        fr.Catalog([0], [[1.0]], storage=storage)
    except ValueError as error:
        raise NotImplementedError(f"this fastrank cannot: {error}") from None


@lru_cache(maxsize=2)
def synthetic(n: int, dim: int = DIM, seed: int = 0, users: int = _USERS) -> Workload:
    """Normal vectors and queries with scores of standard deviation 1, at temperature 0.5."""
    require_one_thread()
    rng = np.random.default_rng([seed, n, dim])
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    vectors /= np.float32(np.sqrt(dim))
    queries = rng.standard_normal((users, dim), dtype=np.float32)
    mean_user = rng.standard_normal((_SAMPLE, dim), dtype=np.float32).mean(axis=0)
    return Workload(vectors, queries, 0.5, mean_user)


@lru_cache(maxsize=2)
def falling(n: int, dim: int = DIM, users: int = _USERS) -> Workload:
    """Normal vectors whose coordinates count less and less, by e in 8: as after a rotation to their
    principal axes. Scores of standard deviation 1, at temperature 0.5."""
    require_one_thread()
    rng = np.random.default_rng([1, n, dim])
    spread = np.exp(-np.arange(dim) / 8.0)
    spread = (spread / np.sqrt((spread**4).sum())).astype(np.float32)
    vectors = rng.standard_normal((n, dim), dtype=np.float32) * spread
    queries = rng.standard_normal((users, dim), dtype=np.float32) * spread
    queries *= np.float32(1.0 / np.std(vectors[:10_000] @ queries.T))
    return Workload(vectors, queries, 0.5, queries.mean(axis=0))


@lru_cache(maxsize=2)
def clustered(n: int, dim: int = DIM, users: int = _USERS) -> Workload:
    """Vectors in n / 100 clusters, and users near some item; at a perplexity of 100."""
    require_one_thread()
    rng = np.random.default_rng([2, n, dim])
    centres = rng.standard_normal((max(1, n // 100), dim), dtype=np.float32)
    vectors = centres[rng.integers(0, len(centres), n)]
    vectors += np.float32(0.5) * rng.standard_normal((n, dim), dtype=np.float32)
    queries = vectors[rng.integers(0, n, users)]
    queries += np.float32(0.5) * rng.standard_normal((users, dim), dtype=np.float32)
    found = Workload(vectors, queries, 1.0, queries.mean(axis=0))
    return replace(found, temperature=_temperature_of(found.scores, _REAL_PERPLEXITY))


@lru_cache(maxsize=2)
def enlarged(name: str, n: int, users: int = _USERS) -> Workload:
    """Real users, and as many items as are asked for: some of the real ones or, where there are not
    so many, each an item and 0.3 of another one, brought to its length. Nobody has checked them
    against a real catalog of that size."""
    found = real(name, users)
    rng = np.random.default_rng(7)
    own = found.vectors
    if n <= len(own):
        vectors = own[np.sort(rng.permutation(len(own))[:n])]
    else:
        item, other = rng.integers(0, len(own), n), rng.integers(0, len(own), n)
        norms = np.linalg.norm(own, axis=1)
        share = np.float32(0.3) * norms[item] / np.maximum(norms[other], np.float32(1e-12))
        vectors = own[item] + share[:, None] * own[other]
    made = replace(found, vectors=np.ascontiguousarray(vectors, np.float32))
    return replace(made, temperature=_temperature_of(made.scores, _REAL_PERPLEXITY))


@lru_cache(maxsize=2)
def real(name: str, users: int = _USERS) -> Workload:
    """Factors of real interactions, some of their users, at a perplexity of 100.

    Raises
    ------
    NotImplementedError
        Where the data is not there; asv then skips the benchmark and shows the reason.
    """
    require_one_thread()
    folder = _DATA / name
    if not folder.is_dir():
        raise NotImplementedError(f"there is no {folder}")
    vectors = np.ascontiguousarray(np.load(folder / "item_factors.npy"), dtype=np.float32)
    everyone = np.load(folder / "user_factors.npy", mmap_mode="r")
    step = len(everyone) // users
    queries = np.array(everyone[step // 2 :: step][:users], np.float32)
    workload = Workload(vectors, queries, 1.0, everyone.mean(axis=0, dtype=np.float32))
    return replace(workload, temperature=_temperature_of(workload.scores, _REAL_PERPLEXITY))


def _temperature_of(scores: npt.NDArray[np.float64], perplexity: float) -> float:
    """The temperature at which exp(entropy) of the softmax is `perplexity`, by bisection."""
    low, high = 1e-6, 1e6
    for _ in range(100):
        temperature = float(np.sqrt(low * high))
        logits = (scores - scores.max()) / temperature
        p = np.exp(logits)
        entropy = np.log(p.sum()) - (p * logits).sum() / p.sum()
        if np.exp(entropy) < perplexity:
            low = temperature
        else:
            high = temperature
    return high
