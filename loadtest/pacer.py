"""Waiting until a given time, to some tens of microseconds, without spinning.

gevent waits in whole milliseconds, which is as long as an answer takes; spinning instead takes the
core that the server needs. Linux's timerfd is as exact as the kernel, and gevent waits for it as it
does for a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time

import gevent
from gevent.socket import wait_read

__all__ = ["Pacer"]

_CLOCK_MONOTONIC = 1  # what time.perf_counter reads on Linux
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, getattr(os, "O_CLOEXEC", 0)
_ABSOLUTE = 1


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("every", _Moment), ("at", _Moment))


class Pacer:
    """Waits for moments of `time.perf_counter`; one greenlet's own."""

    def __init__(self) -> None:
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC)

    def wait_until(self, moment: float) -> None:
        """Return at that moment, or soon if it is over; others run meanwhile in either case."""
        if moment <= time.perf_counter():
            gevent.sleep(0)
            return
        if self._fd < 0:
            gevent.sleep(moment - time.perf_counter())
            return
        seconds = int(moment)
        at = _Moment(seconds, int(1e9 * (moment - seconds)))
        timer = _Timer(_Moment(0, 0), at)
        if self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(timer), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        wait_read(self._fd)
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
