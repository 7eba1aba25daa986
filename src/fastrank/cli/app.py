"""The group of commands. Each of them fails with one line on stderr and exit code 2."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import click

import fastrank
from fastrank import starting
from fastrank.extras import missing_extra
from fastrank.visible import visible

__all__ = ["Commands", "app"]


# In order of use. A command is imported only when called, since each needs different extras.
_COMMANDS: Mapping[str, str] = {
    "build": "Make a model directory from item and user vectors.",
    "rank": "Rank a model's items for one user.",
    "batch": "Rank all users of some files into a log.",
    "serve": "Serve a model over HTTP.",
    "plan": "Estimate what exploration costs, and what its log would be worth.",
    "join": "Join rewards to a log of rankings.",
    "audit": "Check that a log is what the model wrote.",
    "evaluate": "Estimate what other policies would have earned.",
    "experiment": "Run published experiments on off-policy evaluation.",
    "verify": "Check a model's files, samplers and propensities.",
    "demo": "Try fastrank on a real shop's data, and measure its cost.",
}
_MODULES = {"audit": "evaluate"}  # commands that share a module


class Commands(click.Group):
    """A group whose commands report bad input without a traceback."""

    table: ClassVar[Mapping[str, str]] = _COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        command = self.load(cmd_name)
        starting.end()
        return command

    def load(self, name: str) -> click.Command:
        module = importlib.import_module(f"fastrank.cli.{_MODULES.get(name, name)}")
        command: click.Command = getattr(module, name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)  # the terminal has written ^C into the line
            _fail("interrupted", self.name, code=130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.table.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            _fail(error.format_message(), context.command_path if context else self.name)
        except ModuleNotFoundError as error:
            hint = missing_extra(error)
            if hint is None:
                raise
            _fail(hint, self.name)
        except click.Abort:  # interrupted before the command began
            _fail("interrupted", self.name, code=130)
        except BrokenPipeError:
            # The reader has closed the pipe (`fastrank ... | head`): not an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except MemoryError:
            _fail("out of memory", self.name)
        except (ValueError, OSError) as error:
            if "FASTRANK_TRACEBACK" in os.environ:  # to debug the program
                raise
            _fail(str(error), self.name)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, prefix: str | None, code: int = 2) -> NoReturn:
    click.echo(f"{prefix}: {visible(' '.join(message.split()))}", err=True)
    sys.exit(code)


@click.group(
    "fastrank",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version=fastrank.__version__, prog_name="fastrank")
def app() -> None:
    """Sample top-k recommendations in one pass, with the exact probability of what is shown.

    Start with `fastrank demo`. With your own vectors: build, then rank, and plan how much to
    explore. With a log of what was shown: join its rewards, audit it, and evaluate other policies.

    Exit codes: 0 success, 1 a check failed or no input was usable, 2 bad input.
    """
