"""End the command silently at Ctrl-C while it is still loading.

Nothing can be lost by then, and an interrupt while NumPy starts would print a traceback, or crash.
Python imports the package before the first line of its command runs, so the package imports this
module first. In any other program it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["begin", "end"]

_SCRIPT = "fastrank"  # the script's name in pyproject.toml

_armed = False


def begin() -> None:
    """Let SIGINT end the process at once from here on, if it is the command."""
    global _armed
    # A shell makes background jobs ignore SIGINT: that must not change.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _is_command():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _armed = True


def end() -> None:
    """Let SIGINT raise KeyboardInterrupt again, so that running code can clean up."""
    global _armed
    if _armed:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _armed = False


def _is_command() -> bool:
    """Say whether this process is ``python -m fastrank``, or the script that pip installed."""
    program = next(iter(getattr(sys, "argv", [])), "")
    if program == "-m":  # sys.argv[0] while Python searches the module
        words = sys.orig_argv
        at = words.index("-m") + 1 if "-m" in words else len(words)
        return words[at : at + 1] == ["fastrank"]
    if os.path.basename(program) != _SCRIPT:
        return False
    try:
        with open(program, "rb") as script:
            return b"fastrank.cli" in script.read(4096)
    except OSError:
        return False
