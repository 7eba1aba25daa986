"""Every example in a docstring runs and says what it says; those of the README and docs/ run."""

from __future__ import annotations

import doctest
import importlib
import linecache
import pkgutil
import re
from pathlib import Path

import pytest

import fastrank

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if path.exists()]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fastrank.__path__, "fastrank.")
    if not module.name.endswith(("._native", ".__main__", "data.build_obd"))
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert not failed


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [
        test.name
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    ]
    assert len(found) > 50
    assert "fastrank.catalog.Catalog" in found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a page, from top to bottom, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTRANK_CACHE_DIR", str(tmp_path / "cache"))
    names: dict[str, object] = {"__name__": page.stem}
    codes = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for number, code in enumerate(codes):
        name = f"<{page.name}, {number}>"
        # As a notebook does: a function's source can be read.
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        exec(compile(code, name, "exec"), names)


def test_the_readme_has_a_row_for_every_inference_type() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("tests of an installed package have no README beside them")
    table = readme.read_text(encoding="utf-8").partition("| policy | inference type |")[2]
    table = table.partition("\n\n")[0]
    assert [name for name in fastrank.INFERENCE_TYPES if f"`{name}`" not in table] == []
