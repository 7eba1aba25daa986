"""Series of measurements by n, k, d or users, and how their contenders are called and drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from benchmarks import calls
from benchmarks.jobs import Measurements, was_float32

__all__ = ["BATCHED", "FLAT", "LINES", "OURS", "PEERS", "SCANNED", "STEEP", "Growth", "Line"]

OURS = ["gumbel", "int8 gumbel"]
SCANNED = [*OURS, "deterministic", "int8 deterministic", "faiss flat"]
PEERS = [*calls.FAISS, *calls.NUMPY, *calls.JAX]
BATCHED = [*OURS, "faiss flat", *calls.BATCHED]
# A fitted power this small is taken for none.
FLAT = 0.1
STEEP = ["textbook softmax", "textbook gumbel"]


@dataclass(frozen=True)
class Line:
    """How a contender is called and drawn."""

    text: str
    colour: str
    style: str = "-"
    marker: str = "o"
    width: float = 1.5


# After Okabe and Ito, darkened so that they do as text: told apart by all eyes.
_BLUE, _RED, _GREEN, _PINK, _GREY = "#0072B2", "#C64A00", "#00795A", "#A8487F", "#5F5F5F"
LINES = {
    "gumbel": Line("fastrank float32", _BLUE, width=2.8),
    "int8 gumbel": Line("fastrank int8", _RED, width=2.8),
    "deterministic": Line("float32, deterministic", _BLUE, "--", "s"),
    "int8 deterministic": Line("int8, deterministic", _RED, "--", "s"),
    "coded gumbel": Line("int8 codes all the same", _RED, ":", "o"),
    "coded deterministic": Line("int8 codes all the same, deterministic", _RED, ":", "s"),
    "sequential": Line("fastrank sequential", _BLUE, "--", "s"),
    "faiss flat": Line("FAISS float32 (FlatIP)", _GREEN, "-", "^"),
    "faiss blas": Line("FAISS float32, BLAS", _GREEN, "--", "v"),
    "faiss fp16": Line("FAISS float16", _GREEN, "--", "v"),
    "faiss sq8": Line("FAISS 8 bit", _GREEN, ":", "D"),
    "numpy choice": Line("NumPy choice", _GREY, "-", "s"),
    "numpy gumbel": Line("NumPy Gumbel", _GREY, "--", "D"),
    "jax top k": Line("JAX top k", _PINK, "-", "s"),
    "jax gumbel": Line("JAX Gumbel", _PINK, "--", "D"),
    "read": Line("reading float32", "black", ":", "", 1.2),
    "read int8": Line("reading int8", "black", ":", "", 1.2),
    "sgemm": Line("scores alone (BLAS)", "black", ":", "", 1.2),
    "textbook softmax": Line("textbook, k softmaxes", _GREY, "-", "^"),
    "textbook gumbel": Line("textbook, noise and sort", _PINK, "-", "D"),
}


class Growth:
    """Which cases were measured, and the values over them.

    Attributes
    ----------
    sizes, usual : list of int
        Every n at d = 64, k = 10; those up to 1,000,000.
    large, middle, small : int
        Where n stands still: the largest usual one; where k, d and users vary; where the
        textbook's k does.
    ks, dims, users : list of int
    """

    def __init__(self, taken: Measurements) -> None:
        self.taken = taken
        self.sizes = self._cases("{}: gumbel")
        self.usual = [n for n in self.sizes if n <= 1_000_000]
        self.large = self.usual[-1]
        self.middle = max(n for n in self.sizes if self._cases(f"{n}, d = {{}}: gumbel"))
        self.small = min(n for n in self.sizes if self._cases(f"{n}, k = {{}}: sequential"))
        self.ks = self._cases(f"{self.middle}, k = {{}}: gumbel")
        self.dims = self._cases(f"{self.middle}, d = {{}}: gumbel")
        self.users = self._cases(f"{self.large}, batch {{}}: gumbel")

    def _cases(self, pattern: str) -> list[int]:
        """The numbers at the place of {} for which there are measurements."""
        before, after = pattern.split("{}")
        inner = (
            name[len(before) : len(name) - len(after)]
            for name in self.taken.values
            if name.startswith(before) and name.endswith(after)
        )
        return sorted(int(number) for number in inner if number.isdigit())

    def value(self, name: str) -> float | None:
        """Median over processes."""
        return self.taken.median(name)

    def series(self, pattern: str, cases: Iterable[int]) -> tuple[list[int], list[float]]:
        """The cases, which stand for {}, with finite values, and these.

        What was asked to be int8 and had too few items for codes is not among them.
        """
        names = {case: pattern.format(case) for case in cases}
        found = [(c, self.value(name)) for c, name in names.items() if not was_float32(name)]
        there = [(c, v) for c, v in found if v is not None and math.isfinite(v)]
        return [c for c, _ in there], [v for _, v in there]

    def slope(self, pattern: str, cases: Iterable[int]) -> float | None:
        """The power with which values grow, to two digits: least squares of their logarithms."""
        x, y = self.series(pattern, cases)
        if len(x) < 2:
            return None
        return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 2) + 0.0  # no -0.0

    def scans(self) -> list[int]:
        """Usual sizes at which a call is mostly a pass over the items."""
        return [n for n in self.usual if n >= 10_000]
