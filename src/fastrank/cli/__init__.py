"""The command line parses and prints; the work is in modules of fastrank with the commands' names.

This file must import without click or rich, so that it can report that they are missing.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from fastrank.extras import missing_extra
from fastrank.namesake import refuse

__all__ = ["main"]

refuse()  # fastrank/__init__.py has not checked if the other project's files were installed last

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> NoReturn:
    """Run the command in ``sys.argv`` and exit: 0 success, 1 a check failed, 2 bad input."""
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
    # Linear algebra libraries read these variables when they load, and NumPy has loaded them by
    # now. Timings on one thread need a fresh process.
    if any(os.environ.get(name) != value for name, value in _ONE_THREAD.items()):
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **_ONE_THREAD})
