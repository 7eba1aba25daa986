"""PyPI's `fastrank` in the same environment: what can be said is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastrank

OURS = Path(fastrank.__file__).parent
# What its releases 0.5 to 0.8 bring, but for a library of Rust's and what finds that.
ITS_FILES = {
    "__init__.py": "from .clib import CModel\n__version__ = '0.7.0'\n",
    "clib.py": "class CModel: ...\n",
    "training.py": "",
    "fastrank/__init__.py": "",
}


def installed(folder: Path, last: str) -> Path:
    """A folder of packages into which both were installed, one of them last."""
    package = folder / "fastrank"
    package.mkdir()
    for path in OURS.iterdir():
        (package / path.name).symlink_to(path)
    for name, text in ITS_FILES.items():
        path = package / name
        if name == "__init__.py":
            if last == "ours":
                continue
            path.unlink()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )


def assert_said(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"ImportError: two distributions have installed into {folder}/fastrank:")
    assert "pip uninstall -y fastrank fastrank-sampling" in line


def test_none_of_its_files_is_named_as_one_of_ours() -> None:
    own = {path.name for path in OURS.iterdir()}
    assert own & {name.split("/")[0] for name in ITS_FILES} == {"__init__.py"}


def test_where_ours_came_last_it_does_not_import(tmp_path: Path) -> None:
    folder = installed(tmp_path, last="ours")
    code = "import sys\ntry: import fastrank\nfinally: assert 'numpy' not in sys.modules"
    assert_said(python(folder, "-c", code), folder)


@pytest.mark.parametrize("module", ["fastrank", "fastrank_serving"])
def test_where_ours_came_first_the_commands_say_so(module: str, tmp_path: Path) -> None:
    """`import fastrank` is then the other project, which nothing of ours can help."""
    pytest.importorskip("click")
    folder = installed(tmp_path, last="theirs")
    code = "import fastrank; print(fastrank.__version__, hasattr(fastrank, 'Catalog'))"
    assert python(folder, "-c", code).stdout == "0.7.0 False\n"
    assert_said(python(folder, "-m", module, "--version"), folder)
