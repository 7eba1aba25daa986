"""Progress of reading a log."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress"]


class Progress:
    """Calls `advance` with the number of rows done; within a batch, in hundredths of it."""

    def __init__(self, advance: Callable[[int], None] | None) -> None:
        self._advance = advance
        self._before = self._told = self._rows = 0
        self._steps = self._done = 0.0

    def begin(self, rows: int, steps: int) -> None:
        """Start a batch of `rows` rows, which takes this many steps."""
        self._rows, self._steps, self._done = rows, float(max(steps, 1)), 0.0

    def step(self, steps: float) -> None:
        """Count further steps."""
        self._done += steps
        done = self._before + int(self._rows * min(self._done / self._steps, 1.0))
        if self._advance is not None and done - self._told > self._rows / 100:
            self._told = done
            self._advance(done)

    def end(self) -> None:
        """Of the batch."""
        self._before += self._rows
        if self._advance is not None:
            self._told = self._before
            self._advance(self._before)
