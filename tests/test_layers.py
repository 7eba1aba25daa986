"""Imports follow the one direction of the design, and importing fastrank stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastrank

PACKAGE = Path(fastrank.__file__).parent

# What each module may import from the package; a new module must be given its place here.
MAY_IMPORT: dict[str, set[str]] = {
    "policies": set(),
    "ranking": {"policies"},
    "store": set(),
    "catalog": {"policies", "ranking", "store", "_native"},
    "model": {"policies", "ranking", "store", "catalog"},
    "reference": {"policies"},
    "verify": {"policies", "ranking", "catalog", "model", "reference"},
    "demo": {"policies", "ranking", "catalog", "model", "reference"},
    "cli": {"policies", "ranking", "store", "catalog", "model", "verify", "demo"},
    "__main__": {"cli"},
}
# Only these may know the slow twins: nothing that ranks in production.
MAY_USE_REFERENCE = {"verify", "demo"}
# What the core may import from outside: the standard library and this.
CORE = ("__init__", "policies", "ranking", "store", "catalog", "model", "reference")
CORE_DEPENDENCIES = {"numpy"}


def module_names() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports(module: str) -> set[str]:
    """Absolute names of everything that a module imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            if node.module == "fastrank":
                found |= {f"fastrank.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def siblings(module: str) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("fastrank.")}


@pytest.mark.parametrize("module", [name for name in module_names() if name != "__init__"])
def test_imports_point_one_way(module: str) -> None:
    assert module in MAY_IMPORT, f"give {module} its place in MAY_IMPORT"
    assert siblings(module) <= MAY_IMPORT[module]
    if module not in MAY_USE_REFERENCE:
        assert "reference" not in siblings(module)


def test_there_are_no_circles() -> None:
    placed: set[str] = {"_native"}
    waiting = dict(MAY_IMPORT)
    while waiting:
        ready = {name for name, needs in waiting.items() if needs <= placed}
        assert ready, f"a circle among {sorted(waiting)}"
        placed |= ready
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}


@pytest.mark.parametrize("module", [name for name in module_names() if name in CORE])
def test_the_core_needs_numpy_alone(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(module)} - {"fastrank"}
    assert outside <= set(sys.stdlib_module_names) | CORE_DEPENDENCIES


def test_importing_fastrank_loads_numpy_and_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import fastrank, json;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = json.loads(result.stdout)
    tops = {name.split(".")[0] for name in loaded}
    assert tops <= set(sys.stdlib_module_names) | CORE_DEPENDENCIES | {"fastrank"}
    for module in ("reference", "cli", "demo", "verify"):
        assert f"fastrank.{module}" not in loaded


def test_importing_fastrank_starts_no_thread() -> None:
    """Beyond those that NumPy's own linear algebra starts."""
    code = (
        "import os, numpy; before = len(os.listdir('/proc/self/task'));"
        "import fastrank; print(len(os.listdir('/proc/self/task')) - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "0"
