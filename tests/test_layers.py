"""Imports follow the one direction of the design, and importing fastrank stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastrank

PACKAGE = Path(fastrank.__file__).parent

# What each module, or subpackage, may import from the package, from the bottom up. A new one
# must be given its place here.
MAY_IMPORT: dict[str, set[str]] = {
    # Loaded first; the one but looks, the other is for the command alone.
    "namesake": set(),
    "starting": set(),
    "extras": set(),
    "visible": set(),
    "frames": {"extras", "visible"},
    "cores": set(),
    # The core.
    "arraytypes": set(),
    "inputs": set(),
    "policies": {"inputs"},
    "ids": {"inputs", "_native"},
    "run": {"ids", "inputs"},
    "files": set(),
    "atomic": {"files"},
    "places": {"atomic"},
    "store": {"atomic", "files"},
    "wire": {"ids"},
    "packing": {"inputs", "_native"},
    "contents": {"packing", "_native"},
    "lru": set(),
    "features": {"inputs", "store", "lru", "_native"},
    "expressions": {"features", "inputs", "store", "_native"},
    "rules": {"expressions", "inputs", "store"},
    "rulesfile": {"rules", "inputs"},
    "ranking": {"policies", "rules", "frames"},
    "compiled": {"atomic"},
    "scoring": {"expressions", "features", "inputs", "store", "compiled", "_native"},
    "ask": {"policies", "ranking", "ids", "inputs", "_native"},
    "ruled": {"rules", "expressions", "features", "policies", "inputs", "lru"},
    "rulemass": {"ask", "features", "ruled", "_native"},
    "walk": {"ask", "features", "ruled", "rulemass", "ranking", "_native"},
    "seen": {"store"},
    "ranker": {
        "seen",
        *("ask", "policies", "ranking", "ids", "inputs", "lru", "_native"),
        *("walk", "ruled", "rules", "expressions", "features"),
    },
    "shards": {"inputs", "policies", "ranker", "ranking", "rules"},
    "scorer": {"policies", "ranking", "ids", "ranker", "rules"},
    "score": {"ask", "ranking", "expressions", "scoring", "features", "inputs"},
    "faissindex": {"ask", "inputs", "store"},
    "catalog": {
        *("policies", "ranking", "ids", "inputs", "packing", "contents", "store", "_native"),
        *("ask", "ranker", "scorer", "lru", "faissindex"),
        *("features", "expressions", "scoring", "score", "ruled", "rules", "seen"),
    },
    "given": {
        *("policies", "ranking", "ids", "inputs", "ranker", "_native"),
        *("ask", "expressions", "features", "lru", "rules"),
    },
    "tables": {"ask", "policies", "_native"},
    "model": {
        *("policies", "ranking", "ids", "inputs", "contents", "store", "scorer", "catalog"),
        *("tables", "faissindex", "expressions", "scoring", "score", "rules", "seen"),
    },
    # Around it.
    "opening": {"store", "catalog", "model", "scoring"},
    "retrieval": {"policies", "inputs", "catalog", "model", "faissindex"},
    "calibration": {"policies", "catalog"},
    "expectations": {"policies", "scorer", "calibration"},
    "marginals": {"policies", "inputs"},
    "plan": {
        *("policies", "inputs", "ids", "scorer", "model", "calibration", "expectations"),
        *("marginals", "catalog", "expressions", "rules"),
        *("frames", "extras", "visible"),
    },
    "simulate": {
        *("policies", "ranking", "ids", "inputs", "scorer", "catalog", "model", "marginals"),
        "rules",
    },
    "reference_rules": set(),
    "reference": {"policies", "expressions", "reference_rules"},
    "data": set(),
    "obd": {"data"},
    "eventlog": {
        "atomic",
        "places",
        "policies",
        "ranking",
        "run",
        "ids",
        "inputs",
        "files",
        "lru",
        "wire",
        "catalog",
        "obd",
        *("rules", "expressions"),
    },
    "page": set(),
    "ope": {
        "policies",
        "inputs",
        "lru",
        "ranker",
        "scorer",
        "catalog",
        "model",
        "marginals",
        "eventlog",
        "page",
        *("ranking", "expressions", "rules", "ruled"),
        *("frames", "extras", "visible"),
    },
    "experiments": {
        *("policies", "inputs", "catalog", "model", "marginals", "simulate", "eventlog", "ope"),
        *("calibration", "rules"),
    },
    "batch": {
        *("atomic", "cores", "extras", "files", "ids", "inputs", "run", "expressions", "rules"),
        *("policies", "ranking", "catalog", "model", "scoring", "eventlog", "shards", "store"),
    },
    "vectorfiles": {"files"},
    "verify": {
        *("policies", "ranking", "catalog", "model", "opening", "calibration", "reference"),
        *("scoring", "rules"),
    },
    "demo": {
        "rules",
        *("policies", "ranking", "catalog", "model", "calibration", "obd", "reference"),
        *("simulate", "eventlog", "ope"),
    },
    "cli": {
        "batch",
        "retrieval",
        "rules",
        "rulesfile",
        "scoring",
        "namesake",
        "starting",
        "extras",
        "frames",
        "visible",
        "cores",
        "files",
        "atomic",
        "ids",
        "policies",
        "ranking",
        "packing",
        "store",
        "catalog",
        "model",
        "opening",
        "calibration",
        "page",
        "plan",
        "obd",
        "eventlog",
        "ope",
        "experiments",
        "vectorfiles",
        "verify",
        "demo",
    },
    "__main__": {"cli"},
}
# Only these may know the slow twins: nothing that ranks in production.
MAY_USE_REFERENCE = {"reference", "verify", "demo"}
# What a module may import beyond the standard library and NumPy; the rest are extras.
EXTRAS: dict[str, set[str]] = {
    "frames": {"pandas", "pyarrow"},
    "compiled": {"llvmlite", "numba"},
    "faissindex": {"faiss"},
    "retrieval": {"faiss"},
    "wire": {"msgspec"},
    "data": {"pyarrow"},
    "eventlog": {"pyarrow"},
    "places": {"fsspec"},
    "batch": {"aiohttp", "pyarrow", "ray"},
    "page": {"jinja2"},
    "ope": {"scipy", "matplotlib"},
    "plan": {"matplotlib"},
    "vectorfiles": {"pyarrow"},
    "verify": {"scipy"},
    "demo": {"matplotlib"},
    "cli": {"click", "rich", "matplotlib", "fastrank_serving"},
}


@cache
def sources() -> dict[str, list[Path]]:
    """Python files by the module or subpackage directly below the package."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


@cache
def imports(module: str) -> set[str]:
    """Absolute names of everything that a module imports, inside functions too."""
    found: set[str] = set()
    for path in sources()[module]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                assert node.module is not None
                if node.module == "fastrank":
                    found |= {f"fastrank.{alias.name}" for alias in node.names}
                else:
                    found.add(node.module)
    return found


@pytest.mark.parametrize("module", [name for name in sources() if name != "__init__"])
def test_imports_point_one_way(module: str) -> None:
    assert module in MAY_IMPORT, f"give {module} its place in MAY_IMPORT"
    siblings = {name.split(".")[1] for name in imports(module) if name.startswith("fastrank.")}
    siblings -= {module, "arraytypes"}  # files of one subpackage, and names of types
    more = sorted(siblings - MAY_IMPORT[module])
    assert not more, f"{module} imports {more}, which MAY_IMPORT has not for it"
    if module not in MAY_USE_REFERENCE:
        assert not siblings & {"reference", "reference_rules"}


def test_a_name_of_an_array_type_is_said_once() -> None:
    said = [
        (node.target.id, path.name)
        for paths in sources().values()
        for path in paths
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.value is not None
        and ast.unparse(node.value).startswith("npt.NDArray[")
    ]
    elsewhere = [(name, file) for name, file in said if file != "arraytypes.py"]
    assert len({name for name, _ in said}) == len(said)
    assert elsewhere == []


def test_there_are_no_circles() -> None:
    placed: set[str] = {"_native"}
    for module, needs in MAY_IMPORT.items():
        assert needs <= placed, f"{module} needs what stands above it: {sorted(needs - placed)}"
        placed.add(module)


NATIVE = {"fastrank._native", "fastrank._probes"}


def test_files_import_in_no_circle() -> None:
    """Inside functions neither; a package may import what is in it, and that not the package."""
    files = {
        ".".join(("fastrank", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in PACKAGE.rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    needs: dict[str, set[str]] = {}
    for name, path in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    is_file = whole in files or whole in NATIVE
                    named.add(whole if is_file else node.module)
        needs[name] = {each for each in named if each in files}
    assert needs["fastrank.ope.reading"] >= {"fastrank.ope.sums", "fastrank.ope.summary"}
    list(TopologicalSorter(needs).static_order())  # a CycleError names the files


@pytest.mark.parametrize("module", sources())
def test_only_extras_are_imported_from_outside(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(module)} - {"fastrank"}
    allowed = set(sys.stdlib_module_names) | {"numpy"} | EXTRAS.get(module, set())
    assert outside <= allowed


def loaded_by_import() -> list[str]:
    code = (
        "import sys; before = set(sys.modules); import fastrank, json;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    names: list[str] = json.loads(result.stdout)
    # Cython registers what its modules share under names of its own.
    return [name for name in names if not name.startswith(("_cython", "cython_"))]


def test_importing_fastrank_loads_numpy_and_the_standard_library() -> None:
    loaded = loaded_by_import()
    assert {name.split(".")[0] for name in loaded} <= {
        *sys.stdlib_module_names,
        "numpy",
        "fastrank",
    }


def test_a_server_reads_a_policys_name_without_the_commands() -> None:
    code = (
        "import json, sys; from fastrank_serving.settings import OPTIONS;"
        " takes, = (each.takes for each in OPTIONS if each.field == 'policy');"
        " takes.convert('plackett_luce:temperature=0.3', None, None);"
        " print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in json.loads(done.stdout) if name.startswith("fastrank.")}
    assert not {name for name in loaded if name.split(".")[1] in ("cli", "plan", "eventlog", "ope")}


def test_importing_fastrank_loads_the_core_alone() -> None:
    core = {
        *(
            "namesake",
            "starting",
            "arraytypes",
            "policies",
            "ranking",
            "ids",
            "inputs",
            "packing",
            "contents",
            "store",
        ),
        *("_native", "files", "atomic", "lru", "ask", "ranker", "scorer", "catalog", "given"),
        *("tables", "model", "faissindex", "run", "seen"),
        *("features", "expressions", "scoring", "compiled", "score"),
        *("rules", "ruled", "rulemass", "walk", "shards"),
    }
    loaded = {name.split(".")[1] for name in loaded_by_import() if name.startswith("fastrank.")}
    assert loaded <= core, f"not of the core, or not in this list of it: {sorted(loaded - core)}"


def test_importing_fastrank_loads_nothing_that_few_calls_need() -> None:
    heavy = {"_hashlib", "asyncio", "glob", "lzma", "multiprocessing", "random", "shutil"}
    assert not heavy & set(loaded_by_import())


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
