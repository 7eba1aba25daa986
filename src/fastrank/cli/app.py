"""The group of commands, and how every one of them fails: one line on stderr, exit code 2."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

import fastrank
from fastrank.cli import missing_extra
from fastrank.cli.build import build
from fastrank.cli.demo import demo
from fastrank.cli.rank import rank
from fastrank.cli.verify import verify

__all__ = ["app"]


class OneLineErrors(click.Group):
    """A group whose commands never end in a traceback over bad input."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            _fail(error.format_message(), context.command_path if context else "fastrank")
        except ModuleNotFoundError as error:
            hint = missing_extra(error)
            if hint is None:
                raise
            _fail(hint)
        except click.Abort:
            _fail("interrupted", code=130)
        except BrokenPipeError:
            # The reader has left (`fastrank ... | head`): not an error, and nobody to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except (ValueError, OSError) as error:
            if "FASTRANK_TRACEBACK" in os.environ:  # for who suspects the program, not the input
                raise
            _fail(str(error))
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, prefix: str = "fastrank", code: int = 2) -> NoReturn:
    click.echo(f"{prefix}: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands=[build, rank, demo, verify],
)
@click.version_option(version=fastrank.__version__, prog_name="fastrank")
def app() -> None:
    """Sample top-k recommendations in one pass, with the exact probability of what is shown.

    Start with `fastrank demo`. With vectors of your own: build, then rank, then verify.

    Exit codes: 0 fine, 1 verification failed, 2 bad input.
    """
