"""``python -m fastrank_serving serve`` starts the container; ``ping`` asks whether it is ready."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from typing import ClassVar, NoReturn


def main(arguments: list[str]) -> NoReturn:
    # Before the slow imports: process 1 does not end on a signal without a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        import click

        from fastrank.cli.app import Commands
    except ModuleNotFoundError as error:
        from fastrank.extras import missing_extra

        hint = missing_extra(error)
        if hint is None:
            raise
        sys.stderr.write(f"fastrank_serving: {hint}\n")
        raise SystemExit(2) from None

    class Container(Commands):
        """The commands of the image."""

        table: ClassVar[Mapping[str, str]] = {
            "serve": "Serve the model in /opt/ml/model.",
            "ping": "Ask the server of this container whether it is ready.",
        }

        def load(self, name: str) -> click.Command:
            from fastrank.cli.serve import ping, serve_command

            return ping if name == "ping" else serve_command(container=True)

    Container("fastrank_serving").main(arguments or ["serve"], prog_name="fastrank_serving")
    raise SystemExit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
