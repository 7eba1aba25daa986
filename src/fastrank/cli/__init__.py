"""The command line: parsing and printing; what the commands do lives in modules of the same name.

This file must import without click or rich, to be able to say that they are missing.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from fastrank.extras import missing_extra
from fastrank.namesake import refuse

__all__ = ["main"]

refuse()  # where the other project came last, its __init__.py has not looked

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> NoReturn:
    """Run the command in ``sys.argv`` and exit: 0 fine, 1 verification failed, 2 bad input."""
    if sys.argv[1:2] == ["demo"]:
        _restart_with_one_thread()
    try:
        from fastrank.cli.app import app
    except ModuleNotFoundError as error:
        hint = missing_extra(error)
        if hint is None:
            raise
        print(f"fastrank: {hint}", file=sys.stderr)
        raise SystemExit(2) from None
    app(prog_name="fastrank")
    raise SystemExit(0)


def _restart_with_one_thread() -> None:
    # Linear algebra libraries read these when they are loaded, and NumPy is by now: timings
    # of one thread against one thread need a fresh process.
    if any(os.environ.get(name) != value for name, value in _ONE_THREAD.items()):
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **_ONE_THREAD})
