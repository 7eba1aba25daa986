"""How the number of users goes over time: steps up, or long and level.

In a closed loop a user sends, waits for the answer, and sends again. In an open loop a user stands
for a rate: it sends so often, whatever comes back.
"""

from __future__ import annotations

import math

from locust import LoadTestShape

__all__ = ["SETTLED", "Ramp", "Shape", "Soak"]

# Seconds after which the users are those of a new stage: locust looks at a shape once a second.
SETTLED = 1.5


class Shape(LoadTestShape):
    """A shape that says in which stage a moment lies; every load generator can tell by itself."""

    abstract = True

    def stage_at(self, since: float) -> tuple[str, float] | None:
        """The stage's name, and the seconds since it began."""
        raise NotImplementedError  # each shape says it; locust never runs an abstract one


class Ramp(Shape):
    """So many users, one number after another, each for as long.

    Parameters
    ----------
    users : list of int
    stage_seconds : float
    """

    abstract = True  # chosen by --shape, not found by locust

    def __init__(self, users: list[int], stage_seconds: float) -> None:
        super().__init__()
        self.users = users
        self.stage_seconds = stage_seconds

    def tick(self) -> tuple[int, float] | None:
        j = int(self.get_run_time() // self.stage_seconds)
        if j >= len(self.users):
            return None
        return self.users[j], float(max(self.users))

    def stage_at(self, since: float) -> tuple[str, float] | None:
        j = int(since // self.stage_seconds)
        if not 0 <= j < len(self.users):
            return None
        return str(self.users[j]), since - j * self.stage_seconds


class Soak(Shape):
    """As many users for a long time, after a start in which they come one by one.

    Parameters
    ----------
    users : int
    stage_seconds : float
        Of the start, and of each part in which latencies are told apart.
    seconds : float
        Of all of it after the start.
    """

    abstract = True

    def __init__(self, users: int, stage_seconds: float, seconds: float) -> None:
        super().__init__()
        self.users = users
        self.stage_seconds = stage_seconds
        self.seconds = max(seconds, stage_seconds)

    def tick(self) -> tuple[int, float] | None:
        since = self.get_run_time()
        if since >= self.stage_seconds + self.seconds:
            return None
        rise = max(self.stage_seconds - SETTLED, 0.1)
        rising = math.ceil(self.users * min(since / rise, 1.0))
        return max(1, rising), float(self.users)

    def stage_at(self, since: float) -> tuple[str, float] | None:
        level = since - self.stage_seconds
        if not 0.0 <= level < self.seconds:
            return None
        j = int(level // self.stage_seconds)
        return f"{j * self.stage_seconds:g} s", level - j * self.stage_seconds
