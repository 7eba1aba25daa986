"""Ctrl-C while the command is still being loaded: it just ends.

Nothing has begun by then that could be lost, and an interrupt within NumPy's start is a traceback,
or a crash. Python imports the package before the first line of its command is run, so this is what
the package imports first. In any other program it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["begin", "end"]

_SCRIPT = "fastrank"  # as pyproject.toml names it

_armed = False


def begin() -> None:
    """If this process is the command, SIGINT ends it at once from here on."""
    global _armed
    # A shell that starts a job in the background has it ignore SIGINT: that stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _is_command():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _armed = True


def end() -> None:
    """SIGINT is a KeyboardInterrupt again: what runs now can clean up."""
    global _armed
    if _armed:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _armed = False


def _is_command() -> bool:
    """Whether this is ``python -m fastrank``, or the script that pip made for it."""
    program = next(iter(getattr(sys, "argv", [])), "")
    if program == "-m":  # so it is called while the module is looked for
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
