"""Commands as a user calls them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from click.testing import CliRunner, Result
from environment import OWN, inherited
from patience import PATIENCE

from fastrank.cli.app import app


def run(*arguments: object) -> Result:
    words = [str(a) for a in arguments]
    return CliRunner(env=dict.fromkeys(OWN)).invoke(app, words, prog_name="fastrank")


def refused(*arguments: object) -> str:
    """The one line that a command says when it refuses its input."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("fastrank"), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def process(*arguments: object, env: Mapping[str, str] | None = None) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "fastrank", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**inherited(), **(env or {})},
        check=False,
    )
