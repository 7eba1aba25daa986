"""The notebooks of docs/ run, from top to bottom, and are kept as they ran.

    FASTRANK_NOTEBOOKS=write python -m pytest tests/test_notebooks.py

writes them with what they print and draw now.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
pytest.importorskip("pyarrow")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(
        book, timeout=120, record_timing=False, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    if os.environ.get("FASTRANK_NOTEBOOKS") == "write":
        nbformat.write(book, path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_as_it_ran(path: Path) -> None:
    code = [each for each in nbformat.read(path, as_version=4).cells if each.cell_type == "code"]
    assert [each.execution_count for each in code] == [*range(1, len(code) + 1)]
    said = [output for each in code for output in each.outputs]
    assert said
    assert all(output.output_type != "error" for output in said)
    assert all(output.get("name") != "stderr" for output in said)
