"""Calls measured in turns, A B A B, in one process: what a noisy machine leaves comparable."""

from __future__ import annotations

import gc
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["SECONDS", "Call", "Timings", "each_call", "interleaved", "timed_once"]

Call: TypeAlias = Callable[[], object]

# What a comparison may take; FASTRANK_BENCH_SECONDS shortens it, to check and not to measure.
SECONDS = float(os.environ.get("FASTRANK_BENCH_SECONDS", "2"))

# A turn is unmeasured calls for about this long: a last-level cache that others have filled needs
# several passes over 25 MB until it holds them again.
_WARM_SECONDS = 5e-3
# Then measured ones for about this long, so that calls of some microseconds are not single.
_TURN_SECONDS = 2e-3
_TURN_CALLS = (3, 50)
# A call that takes so long has little to gain from caches that are warm at its start.
_LONG_CALL = 20 * _WARM_SECONDS
_MAX_ROUNDS = 2000


@dataclass(frozen=True)
class Timings:
    """Seconds of each call, by name: the median of every turn, in order of rounds.

    From `each_call` they are those of every single call.
    """

    seconds: Mapping[str, npt.NDArray[np.float64]]

    def median(self, name: str) -> float:
        """Seconds."""
        return float(np.median(self.seconds[name]))

    def percentile(self, name: str, percent: float) -> float:
        """Seconds."""
        return float(np.percentile(self.seconds[name], percent))

    def ratio(self, numerator: str, denominator: str) -> float:
        """Median over rounds of the ratio within a round: slow drifts of the machine cancel."""
        return float(np.median(self.seconds[numerator] / self.seconds[denominator]))

    def difference(self, name: str, subtracted: str) -> float:
        """Median over rounds of the difference within a round, in seconds."""
        return float(np.median(self.seconds[name] - self.seconds[subtracted]))


def interleaved(
    calls: Mapping[str, Call],
    seconds: float = SECONDS,
    min_rounds: int = 5,
    *,
    warm: bool = True,
) -> Timings:
    """Measure calls in turns until `seconds` are spent, at least `min_rounds` rounds.

    A turn is calls that are not measured, at least one, and then several that are. The first ones
    bring the contender's own data back into the caches: each is seen as it runs in a service of its
    own, not as the others left the caches for it. A call of a tenth of a second and more is a turn
    by itself. Odd rounds go through the calls backwards.

    Parameters
    ----------
    calls : mapping of str to callable
    seconds : float
        For all calls together.
    min_rounds : int
    warm : bool
        False where no cache holds what a call goes through: each call is then a turn by itself.
    """
    turn_calls = {name: _calls_in_a_turn(call) if warm else 1 for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    with _without_gc():
        for done in range(_MAX_ROUNDS):
            if done >= min_rounds and time.perf_counter() >= end:
                break
            for name in calls if done % 2 == 0 else reversed(list(calls)):
                samples[name].append(_turn(calls[name], turn_calls[name]))
    return Timings({name: np.array(values) for name, values in samples.items()})


def each_call(calls: Mapping[str, Call], rounds: int, turn: int) -> Timings:
    """Times every single call: so many rounds of turns, each of so many calls in a row.

    For percentiles, which the medians of `interleaved` hide. The first call of a turn, when the
    others' data are in the caches, is made once more and not measured.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with _without_gc():
        for _ in range(rounds):
            for name, call in calls.items():
                call()
                samples[name] += [_seconds(call) for _ in range(turn)]
    return Timings({name: np.array(values) for name, values in samples.items()})


def timed_once(call: Call, cap: float) -> float:
    """Seconds of a single call, cut short after `cap` seconds: then inf. Main thread only."""
    previous = signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, cap)
    try:
        with _without_gc():
            return _seconds(call)
    except _CapReachedError:
        return math.inf
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


class _CapReachedError(Exception):
    pass


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise _CapReachedError


def _turn(call: Call, count: int) -> float:
    warm = time.perf_counter() + _WARM_SECONDS
    while count > 1:  # a single one is a long one
        call()
        if time.perf_counter() >= warm:
            break
    return float(np.median([_seconds(call) for _ in range(count)]))


def _calls_in_a_turn(call: Call) -> int:
    if _seconds(call) >= _LONG_CALL:
        return 1
    low, high = _TURN_CALLS
    return min(high, max(low, int(_TURN_SECONDS / _turn(call, low))))


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def _without_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
