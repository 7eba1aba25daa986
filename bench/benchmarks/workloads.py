"""What is ranked: vectors, a query, and a temperature that suits their scores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

import fastrank as fr

from . import require_one_thread

__all__ = ["DIM", "REAL", "SIZES", "Workload", "real", "synthetic"]

Vectors = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

DIM = 64
# FASTRANK_BENCH_MAX_N leaves the larger sizes out, for a run that checks and does not measure.
_MAX_N = int(os.environ.get("FASTRANK_BENCH_MAX_N", "1000000"))
SIZES = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= _MAX_N]
REAL = ["gowalla", "anime"]

_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
# The first place's softmax over real scores is as spread as a uniform choice among this many.
_REAL_PERPLEXITY = 100.0


@dataclass(frozen=True)
class Workload:
    """One catalog and one user.

    Attributes
    ----------
    vectors : ndarray of float32, shape (n, d)
        Item i has id i.
    query : ndarray of float32, shape (d,)
    temperature : float
    """

    vectors: Vectors
    query: Vectors
    temperature: float

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def catalog(self) -> fr.Catalog:
        """Ours, in memory."""
        return fr.Catalog(np.arange(len(self)), self.vectors)

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """Exact to float64: what every contender's choice is held against."""
        return self.vectors.astype(np.float64) @ self.query.astype(np.float64)

    @property
    def scale(self) -> float:
        """Largest score that vectors of these norms could have; errors are measured by it."""
        norms = np.sqrt(np.einsum("ij,ij->i", self.vectors, self.vectors))
        return float(norms.max() * np.linalg.norm(self.query))

    def ascending(self) -> Workload:
        """The same items in ascending order of score: the order that enters most often."""
        order = np.argsort(self.scores, kind="stable")
        return Workload(self.vectors[order], self.query, self.temperature)

    def at(self, temperature: float) -> Workload:
        """The same at another temperature."""
        return Workload(self.vectors, self.query, temperature)


@lru_cache(maxsize=2)
def synthetic(n: int, dim: int = DIM, seed: int = 0) -> Workload:
    """Normal vectors and query with scores of standard deviation 1, at temperature 0.5."""
    require_one_thread()
    rng = np.random.default_rng([seed, n, dim])
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    vectors /= np.float32(np.sqrt(dim))
    return Workload(vectors, rng.standard_normal(dim, dtype=np.float32), 0.5)


@lru_cache(maxsize=2)
def real(name: str) -> Workload:
    """Factors of real interactions, one of their users, at a perplexity of 100.

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
    users = np.load(folder / "user_factors.npy", mmap_mode="r")
    query = np.array(users[len(users) // 2], dtype=np.float32)
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    return Workload(vectors, query, _temperature_of(scores, _REAL_PERPLEXITY))


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
