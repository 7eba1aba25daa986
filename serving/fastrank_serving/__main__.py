"""``python -m fastrank_serving serve``: what the container starts."""

from __future__ import annotations

import os
import signal
import sys


def main(arguments: list[str]) -> int:
    # Before the imports, which take a while: process 1 is not ended by a signal that it ignores.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        from fastrank_serving.server import run
        from fastrank_serving.settings import Settings
    except ModuleNotFoundError as error:
        from fastrank.extras import missing_extra

        hint = missing_extra(error)
        if hint is None:
            raise
        sys.stderr.write(f"fastrank_serving: {hint}\n")
        return 2

    if arguments not in ([], ["serve"]):
        sys.stderr.write(f"expected serve, got {' '.join(arguments)!r}\n")
        return 2
    try:
        return run(Settings.of_container(os.environ))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"fastrank_serving: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
