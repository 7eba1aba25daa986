"""What a run measured: by stage and type of request, as sums that load generators send each other.

Answers that count have a latency each; what failed is counted by its reason and has none, because
a refusal is quick and would flatter. What begins in the first seconds of a stage is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from histogram import Histogram

__all__ = ["Recorder", "Series", "Stage", "StageAt"]

# Seconds since the start -> name of the stage, seconds since it began, or None: not to be counted.
StageAt = Callable[[float], tuple[str, float] | None]

_MAX_REASON = 100  # characters


@dataclass
class Series:
    """One type of request in one stage.

    Attributes
    ----------
    latency : Histogram
        Of answers; in an open loop from the moment at which the request was due.
    late : Histogram
        How much later than due an open loop sent: the part of its latencies that it spent itself,
        or waited for a free connection.
    errors : dict
        Reasons, and how often.
    """

    latency: Histogram = field(default_factory=Histogram)
    late: Histogram = field(default_factory=Histogram)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def sent(self) -> int:
        """Answered and failed."""
        return self.latency.count + self.failed

    def merge(self, other: Series) -> None:
        self.latency.merge(other.latency)
        self.late.merge(other.late)
        for reason, count in other.errors.items():
            self.errors[reason] = self.errors.get(reason, 0) + count

    def to_dict(self) -> dict[str, Any]:
        return {
            "latency": self.latency.to_dict(),
            "late": self.late.to_dict(),
            "errors": self.errors,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Series:
        return cls(
            Histogram.from_dict(data["latency"]),
            Histogram.from_dict(data["late"]),
            dict(data["errors"]),
        )


@dataclass
class Stage:
    """A part of a run in which nothing changed.

    Attributes
    ----------
    first, last : float
        Seconds since the start: when the first request that counts was due, and the last answer
        came.
    series : dict
        By the name of the request.
    """

    first: float = math.inf
    last: float = 0.0
    series: dict[str, Series] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return max(self.last - self.first, 0.0)

    def merge(self, other: Stage) -> None:
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)
        for name, series in other.series.items():
            self.series.setdefault(name, Series()).merge(series)

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "last": self.last,
            "series": {name: series.to_dict() for name, series in self.series.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stage:
        series = {name: Series.from_dict(each) for name, each in data["series"].items()}
        return cls(data["first"], data["last"], series)


class Recorder:
    """Collects requests; clocks are the caller's, and only their differences count.

    Parameters
    ----------
    warm_up : float
        Seconds at the start of every stage whose requests do not count.
    """

    def __init__(self, warm_up: float = 0.0) -> None:
        self.warm_up = warm_up
        self.stages: dict[str, Stage] = {}
        self.left_out = 0  # requests
        self._start = 0.0
        self._stage_at: StageAt = _one_stage

    def begin(self, now: float, stage_at: StageAt | None = None) -> None:
        """A run starts; forgets the one before."""
        self.stages = {}
        self.left_out = 0
        self._start = now
        self._stage_at = stage_at or _one_stage

    def record(
        self, name: str, due: float, seconds: float, late: float = 0.0, error: str | None = None
    ) -> None:
        """A request that was due at a moment and was answered, or failed, so long after it."""
        since = due - self._start
        found = self._stage_at(since)
        if found is None or found[1] < self.warm_up:
            self.left_out += 1
            return
        stage = self.stages.setdefault(found[0], Stage())
        stage.first = min(stage.first, since)
        stage.last = max(stage.last, since + seconds)
        series = stage.series.setdefault(name, Series())
        series.late.record(late)
        if error is None:
            series.latency.record(seconds)
        else:
            reason = error[:_MAX_REASON]
            series.errors[reason] = series.errors.get(reason, 0) + 1

    def take(self) -> dict[str, Any]:
        """What was collected since it was last taken."""
        stages, self.stages = self.stages, {}
        left_out, self.left_out = self.left_out, 0
        return {
            "stages": {name: stage.to_dict() for name, stage in stages.items()},
            "left_out": left_out,
        }

    def add(self, data: Mapping[str, Any]) -> None:
        """What another one took."""
        self.left_out += data["left_out"]
        for name, stage in data["stages"].items():
            self.stages.setdefault(name, Stage()).merge(Stage.from_dict(stage))


def _one_stage(since: float) -> tuple[str, float]:
    return "", since
