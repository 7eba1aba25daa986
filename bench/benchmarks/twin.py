"""Our Plackett-Luce pass, written in Numba as well as one can: to see what C++ buys.

The same sampler as in ext/rank.cpp, class Jumps, over the same float32 vectors. Numba is imported
when the pass is asked for, since asv imports this module where there is none, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from .workloads import Vectors

__all__ = ["Drawn", "blocks_of", "compiled"]

Doubles: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
# Positions, scores and log-propensities, in order of place.
Drawn: TypeAlias = tuple[Integers, Vectors, Doubles]
F = TypeVar("F", bound=Callable[..., Any])

# Items whose scores are made together: the scores stay in the first cache, and the vectors are read
# in streams of 2 KB. 256 are slower for 100,000 items and more, 1,024 for 1,000,000.
_BLOCK = 512
# Dimensions that are added to them at a time.
_AT_ONCE = 8
# Items that are weighed together; they are weighed anew when one of them enters.
_STEP = 64
# Sums in any order and fused multiply-adds, as our kernels have them; inf and NaN keep their law.
_FAST = {"contract", "reassoc", "nsz"}


def blocks_of(vectors: Vectors) -> Vectors:
    """The vectors by blocks of items and, within, by dimensions, filled up with zeros.

    Sums of neighbouring items are vectorised then. Dot products of rows, compiled by Numba, take
    0.85 of the time for 10,000 items, which nearly fit a core's cache, and 1.2 of it for more.
    """
    n_items, dim = vectors.shape
    n_blocks = -(-n_items // _BLOCK)
    rows = np.zeros((n_blocks * _BLOCK, -(-dim // _AT_ONCE) * _AT_ONCE), np.float32)
    rows[:n_items, :dim] = vectors
    return np.ascontiguousarray(rows.reshape(n_blocks, _BLOCK, -1).transpose(0, 2, 1))


@cache
def compiled() -> Callable[[Vectors, int, Vectors, int, float], Drawn]:
    """The pass over blocks: their number of items, a query as long as they are, k, temperature."""
    import numba

    def jit(function: F) -> F:
        made: F = numba.njit(fastmath=_FAST, error_model="numpy")(function)
        return made

    @jit
    def score(block: Vectors, query: Vectors, scores: Vectors) -> None:
        scores[:] = np.float32(0.0)
        for j in range(0, len(query), _AT_ONCE):
            q0, q1, q2, q3 = query[j], query[j + 1], query[j + 2], query[j + 3]
            q4, q5, q6, q7 = query[j + 4], query[j + 5], query[j + 6], query[j + 7]
            d0, d1, d2, d3 = block[j], block[j + 1], block[j + 2], block[j + 3]
            d4, d5, d6, d7 = block[j + 4], block[j + 5], block[j + 6], block[j + 7]
            for i in range(len(scores)):
                first = (q0 * d0[i] + q1 * d1[i]) + (q2 * d2[i] + q3 * d3[i])
                scores[i] += first + (q4 * d4[i] + q5 * d5[i]) + (q6 * d6[i] + q7 * d7[i])

    @jit
    def exp(x: Any) -> Any:
        """Of a float32, in plain arithmetic, of which vectors are made."""
        x = min(max(x, np.float32(-87.0)), np.float32(88.0))
        power = np.float32(math.floor(x * np.float32(1.442695) + np.float32(0.5)))
        r = (x - power * np.float32(0.6933594)) + power * np.float32(0.00021219444)
        p = np.float32(0.0013926184) * r + np.float32(0.008363179)
        p = p * r + np.float32(0.041666556)
        p = p * r + np.float32(0.16666576)
        p = p * r + np.float32(0.5)
        p = p * (r * r) + (r + np.float32(1.0))
        return p * np.int32((np.int32(power) + 127) << 23).view(np.float32)

    @jit
    def weigh(scores: Vectors, reference: Any, inv_t: Any, weights: Vectors) -> Any:
        """exp((score - reference) / T), and their sum."""
        total = np.float32(0.0)
        for i in range(len(scores)):
            weights[i] = exp((scores[i] - reference) * inv_t)
            total += weights[i]
        return total

    @jit
    def exponential() -> float:
        """By Numba's own generator: to be handed a `Generator` takes it 5 us a call."""
        return np.random.standard_exponential()  # noqa: NPY002  # Numba's, never NumPy's global one

    @jit
    def sink(heap: Integers, keys: Doubles) -> None:
        """Bring the first place of a heap, which has the lowest key there, to where it belongs."""
        at, moved = 0, heap[0]
        while 2 * at + 1 < len(heap):
            child = 2 * at + 1
            if child + 1 < len(heap) and keys[heap[child + 1]] < keys[heap[child]]:
                child += 1
            if keys[moved] <= keys[heap[child]]:
                break
            heap[at] = heap[child]
            at = child
        heap[at] = moved

    @jit
    def rank(blocks: Vectors, n_items: int, query: Vectors, k: int, temperature: float) -> Drawn:
        inv_t, places = 1.0 / temperature, min(k, n_items)
        scores, weights = np.empty(_BLOCK, np.float32), np.empty(_STEP, np.float32)
        # The best so far, in no order; `heap` holds their numbers.
        positions, kept = np.empty(places, np.int64), np.empty(places, np.float32)
        exponentials, keys = np.empty(places), np.empty(places)
        heap, filled = np.arange(places), 0
        # Weights of items outside, relative to the worst one's score: before it came, and since.
        rest = mass = limit = 0.0
        for b in range(len(blocks)):
            score(blocks[b], query, scores)
            i, end = 0, min(_BLOCK, n_items - b * _BLOCK)
            while filled < places and i < end:
                drawn = exponential()
                positions[filled], kept[filled] = b * _BLOCK + i, scores[i]
                exponentials[filled] = drawn
                keys[filled] = scores[i] * inv_t - math.log(drawn)
                i += 1
                filled += 1
                if filled == places:
                    heap = np.argsort(keys)
                    limit = exponential() / exponentials[heap[0]]
            while i < end:
                worst, stop = heap[0], min(i + _STEP, end)
                total = weigh(scores[i:stop], kept[worst], np.float32(inv_t), weights)
                if mass + total <= limit:
                    mass += total
                    i = stop
                    continue
                first = i
                while i < stop and mass + weights[i - first] <= limit:
                    mass += weights[i - first]
                    i += 1
                if i == stop:
                    continue
                # The remainder of the budget is the exponential in the key of the one that enters.
                before, drawn = kept[worst], max((limit - mass) * exponentials[worst], 1e-300)
                positions[worst], kept[worst] = b * _BLOCK + i, scores[i]
                exponentials[worst] = drawn
                keys[worst] = scores[i] * inv_t - math.log(drawn)
                sink(heap, keys)
                i += 1
                worst = heap[0]
                shift = math.exp((np.float64(before) - np.float64(kept[worst])) * inv_t)
                rest, mass = (rest + mass + 1.0) * shift, 0.0
                limit = exponential() / exponentials[worst]
        order = np.argsort(-keys)
        left, reference = math.log(rest + mass), np.float64(kept[heap[0]])
        log_propensities = np.empty(places)
        for place in range(places - 1, -1, -1):
            logit = (np.float64(kept[order[place]]) - reference) * inv_t
            high = max(left, logit)
            left = high + math.log(math.exp(left - high) + math.exp(logit - high))
            log_propensities[place] = logit - left
        return positions[order], kept[order], log_propensities

    return rank
