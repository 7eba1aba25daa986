"""What texts tell people to install is this project, and is enough.

On an index the name `fastrank` is another project's: install lines say where this one lies, and
extras name their libraries.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from environment import inherited
from support import DRAWS

import fastrank
from fastrank.extras import EXTRA_OF, missing_extra, requirements

ROOT = Path(__file__).resolve().parents[1]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
# What extras bring that are made of others.
PARTS = {
    "bench": ["cli", "data", "faiss", "numba", "serving"],
    "loadtest": ["cli", "faiss", "serving"],
    "dev": [
        "cli",
        "data",
        "gateway",
        "loadtest",
        "ope",
        "s3",
        "sagemaker",
        "serving",
        "pandas",
        "plot",
    ],
}
SUFFIXES = {".cfg", ".css", ".html", ".in", ".js", ".json", ".md", ".py", ".pyi", ".pyx", ".sh"}
SUFFIXES |= {".svg", ".toml", ".yaml", ".yml", ""}
# With or without "python -m"; up to what ends a command in prose, code and strings.
LINE = re.compile(
    r"\b(?:pip|pipx|uv pip|uv tool) install\s+((?:\"[^\"\n]*\"|'[^'\n]*'|[^`;\n#&|])*)"
)
WORD = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|[^\s\"'`]+")


def texts() -> Iterator[tuple[Path, str]]:
    """Every text of the repository, but for this one."""
    folders = ["src", "serving", "docs", "bench", "loadtest", "tests", "ext", ".ci", ".github"]
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in files:
        if path.suffix in SUFFIXES and path != Path(__file__).resolve():
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def install_lines(text: str) -> list[list[str]]:
    """The words of every install command."""
    return [[word.strip("\"'") for word in WORD.findall(line)] for line in LINE.findall(text)]


def extras_of(word: str) -> list[str]:
    found = re.fullmatch(r"\.\[([a-z,]+)\]", word)
    return found[1].split(",") if found else []


def asks_an_index(word: str) -> bool:
    return re.match(r"fastrank($|[\[<>=!~@\s])", word) is not None


def test_the_check_sees_what_it_looks_for() -> None:
    """What the README once had, and ways to write it anew."""
    name = "fastrank"
    for line in (
        f'with `pip install "{name}[cli,data]"`:',
        f"python -m pip install -U {name}",
        f"hint = \"pip install '{name}[data]'\"",
        f"RUN pip install {name}==0.1.0",
    ):
        assert any(asks_an_index(word) for words in install_lines(line) for word in words), line
    assert install_lines('`pip install ".[cli,data]"`, then') == [[".[cli,data]"]]


def test_no_text_asks_an_index_for_the_name() -> None:
    seen = 0
    for path, text in texts():
        for words in install_lines(text):
            seen += 1
            assert not any(map(asks_an_index, words)), f"{path}: pip install {' '.join(words)}"
        # An extra of that name, in whatever command.
        found = re.search(r"\bfastrank\[[a-z]+", text)
        assert found is None, f"{path}: {found}"
    assert seen >= 15


def test_every_extra_that_a_line_names_exists() -> None:
    named = [
        (path, extra)
        for path, text in texts()
        for words in install_lines(text)
        for word in words
        for extra in extras_of(word)
    ]
    assert len(named) >= 15
    for path, extra in named:
        assert extra in EXTRAS, path
    assert set(EXTRA_OF.values()) <= set(EXTRAS)


def test_extras_name_libraries_each_with_one_range() -> None:
    ranges: dict[str, str] = {}
    for extra, wanted in EXTRAS.items():
        for requirement in wanted:
            name = re.match(r"[A-Za-z0-9-]+", requirement)
            assert name is not None
            assert name[0] != "fastrank", extra
            assert ranges.setdefault(name[0], requirement) == requirement, extra
    for extra, parts in PARTS.items():
        for part in parts:
            assert set(EXTRAS[part]) <= set(EXTRAS[extra]), f"{extra} lacks some of {part}"


def test_what_is_missing_is_named_with_its_range() -> None:
    def as_set(requirement: str) -> frozenset[str]:
        name, ranges = re.fullmatch(r"([A-Za-z0-9-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        return frozenset([name, *ranges.split(",")])

    for extra, wanted in EXTRAS.items():
        assert set(map(as_set, requirements(extra))) == set(map(as_set, wanted)), (
            f"{extra}: is the installed package's metadata older than pyproject.toml?"
        )
    for module, extra in EXTRA_OF.items():
        hint = missing_extra(ModuleNotFoundError(name=f"{module}.part"))
        assert hint is not None
        assert f'extra "{extra}"' in hint
        (words,) = install_lines(hint)
        assert words == requirements(extra)
        assert re.sub("[_-]", "", module) in re.sub("[_-]", "", hint.split("install", 1)[1].lower())
    assert missing_extra(ModuleNotFoundError(name="of_somebody")) is None


def test_without_metadata_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", none)
    assert missing_extra(ModuleNotFoundError(name="rich")) == (
        'rich is not installed, which is in fastrank\'s extra "cli"'
    )


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("click", ["fastrank", "--version"]),
        ("uvicorn", ["fastrank", "serve", "."]),
        ("uvicorn", ["fastrank_serving", "serve"]),
        ("airspeed", ["fastrank_serving.gateway"]),
        ("yaml", ["fastrank_serving.gateway"]),
    ],
)
def test_what_is_missing_is_one_line(module: str, arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("click")
    pytest.importorskip(module)
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    (tmp_path / "model").mkdir()
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**inherited(), "PYTHONPATH": path, "SAGEMAKER_BASE_DIR": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{arguments[0]}: {module} is not installed (fastrank's extra ")
    assert done.stderr.count("\n") == 1


def test_what_packages_hold_besides_code_is_installed() -> None:
    """A file that only a checkout has is missed where the package is installed."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    held = 0
    for package, where in (("fastrank", "src"), ("fastrank_serving", "serving")):
        folder = ROOT / where / package
        listed = {path for glob in tables["package-data"][package] for path in folder.glob(glob)}
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in {".py", ".pyc", ".pxd", ".so"}:
                assert path in listed, f"{path}: no package-data of pyproject.toml"
                held += 1
    assert held > 5


# ---- The lines, run -------------------------------------------------------------------------

ALL_LINES = {
    " ".join(words)
    for path, text in texts()
    if path.suffix == ".md"
    for words in install_lines(text)
}
OF_OTHERS = {"redis"}
LINES = sorted(ALL_LINES - OF_OTHERS)
# Beyond the modules of `EXTRA_OF`: what must run where all of these extras are there.
COMMANDS = {
    ("cli",): ["fastrank --version", "fastrank rank --help", "fastrank verify --help"],
    ("cli", "data"): ["fastrank build --help"],
    ("cli", "ope"): ["fastrank plan --help", "fastrank evaluate --help", "fastrank join --help"],
    ("cli", "serving"): ["fastrank serve --help"],
    ("ope",): ["python -c 'import fastrank.ope, fastrank.eventlog, fastrank.page'"],
    ("serving",): ["python -c 'import fastrank_serving.server'"],
    # It reads the template, says where it listens, and ends well when it is asked to.
    ("gateway",): [
        "python -m fastrank_serving.gateway --port 0 2> said &"
        " while kill -0 $! && ! grep -q ' -> ' said; do sleep 0.1; done; kill $! && wait $!"
    ],
    (): [
        "python -c 'import fastrank as fr; c = fr.Catalog([1, 2], [[1.0], [2.0]]);"
        " assert c.rank([1.0], 1, policy=fr.Deterministic()).item_ids.tolist() == [2]'"
    ],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of `make dist`, where the environment says so; else of a copy of the sources, where
    nothing has been built."""
    if made := os.environ.get("FASTRANK_TEST_WHEEL"):
        return ROOT / made
    copy, folder = (tmp_path_factory.mktemp(name) / "of" for name in ("checkout", "wheel"))
    left = [".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "*.so"]
    left += ["_native.cpp", "_probes.cpp"]
    left += [".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "demo-output"]
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left))
    pip(sys.executable, "wheel", "--no-deps", "-w", str(folder), str(copy))
    (built,) = folder.glob("*.whl")
    return built


def pip(python: str | Path, *arguments: str) -> None:
    done = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "-q", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check(environment: Path, report: Path, extras: list[str], empty: Path) -> None:
    """That what was installed is this project, and that it does what its extras are for."""
    taken = json.loads(report.read_text())["install"]
    (ours,) = [each for each in taken if each["metadata"]["name"] == "fastrank"]
    assert ours["download_info"]["url"].startswith("file://")
    assert ours["metadata"]["summary"] == metadata.metadata("fastrank")["Summary"]
    assert ours["metadata"]["version"] == fastrank.__version__
    commands = [
        command
        for wanted, some in COMMANDS.items()
        if set(wanted) <= set(extras)
        for command in some
    ]
    modules = [module for module, extra in EXTRA_OF.items() if extra in extras]
    if modules:
        commands.append(f"python -c 'import {', '.join(modules)}'")
    # What one command compiles the next one need not.
    names = os.environ.keys() - {"PYTHONDONTWRITEBYTECODE"}
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", f"{environment}/bin/{command}"],
            capture_output=True,
            text=True,
            cwd=empty,
            env={name: os.environ[name] for name in names},
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.mark.slow
def test_a_wheel_holds_nothing_that_only_tests_use(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    (native,) = [name for name in names if name.endswith(".so")]
    assert native.startswith("fastrank/_native.")
    assert not [name for name in names if "probes" in name or name.endswith((".pyx", ".pxd"))]
    assert not [name for name in names if name.split("/")[0] in ("tests", "ext", "bench")]


# Gigabytes are unpacked, which takes as long as all other lines.
LARGE = [".[torch]"]


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_a_documented_line_installs_this(line: str, wheel: Path, tmp_path: Path) -> None:
    """In an empty environment. With the wheel in the place of the checkout: pip makes one of it
    first, and that is done once for all lines."""
    if line in LARGE and DRAWS < 10:
        pytest.skip("for `make nightly`")
    environment, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    # By the pip that is there: to install another takes as long as most lines.
    venv.create(environment, symlinks=True)
    python, report = environment / "bin/python", tmp_path / "report.json"
    # Nothing is compiled ahead: that takes longer than all else together.
    told = ["--no-compile", "--report", str(report), f"{wheel}{line[1:]}"]
    pip(sys.executable, "--python", str(python), "install", *told)
    check(environment, report, extras_of(line), empty)
    shutil.rmtree(environment)  # hundreds of megabytes, of which pytest would keep three


def test_the_lines_are_found() -> None:
    for line in LINES:
        assert line == "." or extras_of(line), f"pip install {line}: neither this, nor in OF_OTHERS"
    assert OF_OTHERS <= ALL_LINES
    assert "." in LINES
    expected = "cli,data cli,serving cli,ope gateway loadtest bench"
    assert {f".[{extras}]" for extras in expected.split()} <= set(LINES)
