"""Commands as a user calls them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from click.testing import CliRunner, Result
from environment import OWN, inherited
from patience import PATIENCE

from fastrank.cli.app import app

# How long it takes, which is said on a busy machine.
ANNOUNCED = re.compile(r"takes about [\d,]+ s|^about .* rows$")


def run(*arguments: object) -> Result:
    words = [str(a) for a in arguments]
    return CliRunner(env=dict.fromkeys(OWN)).invoke(app, words, prog_name="fastrank")


def unannounced(said: str) -> str:
    """What a command says, but for how long it takes."""
    return "".join(line for line in said.splitlines(True) if not ANNOUNCED.search(line))


def refused(*arguments: object) -> str:
    """The one line that a command says when it refuses its input."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    said = unannounced(result.stderr)
    assert said.startswith("fastrank"), said
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


def process(*arguments: object, env: Mapping[str, str] | None = None) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "fastrank", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**inherited(), **(env or {})},
        check=False,
    )
