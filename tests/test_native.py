"""What the native modules show: nothing that the package does not use; and stubs that say so."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastrank import _native, _probes

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "fastrank"


def public(thing: Any) -> set[str]:
    """Names of a module's or a class's own, but for what it imports."""
    return {
        name
        for name, value in vars(thing).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }


def shown(module: ModuleType) -> set[str]:
    """What a module shows: names, and those of its classes' members."""
    names = public(module)
    for name in public(module):
        value = getattr(module, name)
        if isinstance(value, type):
            names |= {f"{name}.{member}" for member in public(value)}
    return names


def used() -> set[str]:
    """Every `something.name` in a file of the package that imports `_native`."""
    return {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if "_native" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
    }


def test_the_package_uses_all_that_its_native_module_shows() -> None:
    """What only tests use is in `_probes`, which no wheel holds."""
    attributes = used()
    assert not [name for name in shown(_native) if name.rpartition(".")[2] not in attributes]


@pytest.mark.parametrize("module", [_native, _probes])
def test_a_stub_names_what_is_there(module: ModuleType) -> None:
    name = module.__name__.rpartition(".")[2]
    stub = ast.parse((PACKAGE / f"{name}.pyi").read_text(encoding="utf-8"))
    stated: set[str] = set()
    for node in stub.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            stated.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            stated.add(node.target.id)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    stated.add(f"{node.name}.{member.name}")
                elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    stated.add(f"{node.name}.{member.target.id}")
    stated = {each for each in stated if not any(p.startswith("_") for p in each.split("."))}
    assert stated == shown(module)
