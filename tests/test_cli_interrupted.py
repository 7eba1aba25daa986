"""Ctrl-C ends the command without a traceback, whenever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from commands import run
from patience import PATIENCE

SCRIPT = Path(sys.executable).with_name("fastrank")
# In the place of a module that the command imports on its way.
INTERRUPTING = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(20)"


def interrupted_in(module: str, folder: Path, *command: str) -> Any:
    """The command, that gets a SIGINT when it imports this module."""
    (folder / f"{module}.py").write_text(INTERRUPTING)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


@pytest.mark.parametrize("module", ["numpy", "click", "rich"])
@pytest.mark.parametrize("way", ["-m fastrank", "script"])
def test_while_it_is_loaded(module: str, way: str, tmp_path: Path) -> None:
    if way == "script" and not SCRIPT.exists():
        pytest.skip(f"not installed by pip, which makes the script: there is no {SCRIPT}")
    command = [str(SCRIPT)] if way == "script" else [sys.executable, "-m", "fastrank"]
    done = interrupted_in(module, tmp_path, *command, "rank", "--help")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_other_programs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "fastrank").write_text("import fastrank")
    for command in (["-c", "import fastrank"], [str(tmp_path / "fastrank")]):
        done = interrupted_in("numpy", tmp_path, sys.executable, *command)
        assert done.returncode == -signal.SIGINT
        assert "KeyboardInterrupt" in done.stderr


def test_while_it_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrank.cli.rank.open_directory", interrupt)
    result = run("rank", tmp_path, "--user", 1, "--inference-type", "uniform")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "fastrank: interrupted\n"


def test_what_runs_can_clean_up(tmp_path: Path) -> None:
    """Once a command has begun, SIGINT is a KeyboardInterrupt again."""
    pytest.importorskip("scipy")
    done = interrupted_in(
        "scipy", tmp_path, sys.executable, "-m", "fastrank", "verify", str(tmp_path)
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "fastrank: interrupted\n")
