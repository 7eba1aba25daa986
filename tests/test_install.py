"""What texts tell people to install is this project, and is enough.

On an index `fastrank` is another project, and `fastrank-sampling` is not there yet: install lines
say where this one lies.
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
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from environment import OWN, inherited
from packaging.requirements import Requirement
from support import DRAWS

import fastrank
from fastrank.extras import EXTRA_OF, missing_extra, requirements

ROOT = Path(__file__).resolve().parents[1]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
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
    return re.match(r"fastrank([-_]sampling)?($|[\[<>=!~@\s])", word) is not None


def brought(extra: str) -> set[str]:
    """The libraries of an extra, those of the extras that it is made of among them."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        own = re.fullmatch(r"fastrank-sampling\[([a-z0-9,]+)\]", requirement)
        found |= {requirement} if own is None else set().union(*map(brought, own[1].split(",")))
    return found


def test_the_check_sees_what_it_looks_for() -> None:
    """What the README once had, and ways to write it anew."""
    for name in ("fastrank", "fastrank-sampling"):
        for line in (
            f'with `pip install "{name}[cli,data]"`:',
            f"python -m pip install -U {name}",
            f"hint = \"pip install '{name}[data]'\"",
            f"RUN pip install {name}==0.1.0",
        ):
            assert any(asks_an_index(word) for words in install_lines(line) for word in words), line
    assert not asks_an_index("fastrank_sampling-0.2.0-cp311-abi3-manylinux_2_34_x86_64.whl")
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
    for extra in EXTRAS:
        for requirement in brought(extra):
            name = re.match(r"[A-Za-z0-9-]+", requirement)
            assert name is not None
            assert not name[0].startswith("fastrank"), extra
            assert ranges.setdefault(name[0], requirement) == requirement, extra
    # What tests import or run, and CI's benchmarks; JAX and torch are peers of those.
    # Ray and Spark are large: `make nightly` has an environment with them.
    for extra in EXTRAS.keys() - {"jax", "torch", "ray", "spark"}:
        assert brought(extra) <= brought("dev"), f"dev lacks some of {extra}"


def test_what_is_missing_is_named_with_its_range() -> None:
    def as_set(requirement: str) -> frozenset[str]:
        name, ranges = re.fullmatch(r"([A-Za-z0-9-]+(?:\[\w+\])?)(.*)", requirement).groups()  # type: ignore[union-attr]
        return frozenset([name, *ranges.split(",")])

    for extra in EXTRAS:
        assert set(map(as_set, requirements(extra))) == set(map(as_set, brought(extra))), (
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
        'rich is not installed, which is in fastrank-sampling\'s extra "cli"'
    )


@pytest.mark.sampled
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
    assert done.stderr.startswith(
        f"{arguments[0]}: {module} is not installed (fastrank-sampling's extra "
    )
    assert done.stderr.count("\n") == 1


def test_every_place_has_the_same_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert fastrank.__version__ == version
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version
    cited = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == [version]
    deployed = (ROOT / "serving" / "kubernetes.yaml").read_text()
    assert f"/fastrank:{version}\n" in deployed


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


def check_origin(report: Path) -> None:
    """That what was installed is this project."""
    taken = json.loads(report.read_text())["install"]
    (ours,) = [each for each in taken if each["metadata"]["name"] == "fastrank-sampling"]
    assert ours["download_info"]["url"].startswith("file://")
    assert ours["metadata"]["summary"] == metadata.metadata("fastrank-sampling")["Summary"]
    assert ours["metadata"]["version"] == fastrank.__version__


# Every module of the package, as a program: those that it cannot import, and what they lack.
IMPORT_ALL = """
import importlib, json, pathlib, fastrank, fastrank_serving
lacking = {}
for package in (fastrank, fastrank_serving):
    folder = pathlib.Path(package.__file__).parent
    for path in folder.rglob("*.py"):
        parts = (package.__name__, *path.relative_to(folder).with_suffix("").parts)
        name = ".".join(parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                lacking[name] = error.name.partition(".")[0]
print(json.dumps(lacking))
"""


def check_use(environment: Path, extras: list[str], empty: Path, path: Path | None = None) -> None:
    """That what was installed does what its extras are for.

    A module that cannot be imported lacks what another extra brings, which the command would name.
    """
    # What one command compiles the next one need not.
    names = os.environ.keys() - {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", *OWN}
    inherited = {name: os.environ[name] for name in names}
    if path is not None:
        inherited["PYTHONPATH"] = str(path)

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"{environment}/bin/{command}"],
            capture_output=True,
            text=True,
            cwd=empty,
            env=inherited,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    (empty / "import_all.py").write_text(IMPORT_ALL)
    lacking = json.loads(run("python import_all.py"))
    for name, module in lacking.items():
        assert module in EXTRA_OF, f"{name} lacks {module}, which no extra brings"
        assert EXTRA_OF[module] not in extras, f"{name} lacks {module}"
    modules = [module for module, extra in EXTRA_OF.items() if extra in extras]
    if modules:
        run(f"python -c 'import {', '.join(modules)}'")
    for wanted, commands in COMMANDS.items():
        if set(wanted) <= set(extras):
            for command in commands:
                run(command)


@pytest.mark.slow
def test_a_wheel_holds_nothing_that_only_tests_use(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    (native,) = [name for name in names if name.endswith(".so")]
    assert native.startswith("fastrank/_native.")
    assert not [name for name in names if "probes" in name or name.endswith((".pyx", ".pxd"))]
    assert not [name for name in names if name.split("/")[0] in ("tests", "ext", "bench")]


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("FASTRANK_TEST_WHEEL"),
    reason="pip's wheel is for this machine alone; FASTRANK_TEST_WHEEL names one of `make wheel`",
)
def test_the_wheel_says_which_c_library_it_wants(wheel: Path) -> None:
    said = re.search(r"-cp311-abi3-manylinux_(\d+)_(\d+)_x86_64", wheel.name)
    assert said, wheel.name
    native = zipfile.ZipFile(wheel).read("fastrank/_native.abi3.so")
    wanted = {(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d+)\.(\d+)", native)}
    assert wanted
    assert max(wanted) <= (int(said[1]), int(said[2]))


# By pip in CI; the others are left to `make nightly`: below is each extra, without pip.
BRIEFLY = ["."]


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_a_documented_line_installs_this(line: str, wheel: Path, tmp_path: Path) -> None:
    """In an empty environment. With the wheel in the place of the checkout: pip makes one of it
    first, and that is done once for all lines."""
    if line not in BRIEFLY and DRAWS < 10:
        pytest.skip("for `make nightly`")
    environment, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    # By the pip that is there: to install another takes as long as most lines.
    venv.create(environment, symlinks=True)
    python, report = environment / "bin/python", tmp_path / "report.json"
    # Nothing is compiled ahead: that takes longer than all else together.
    told = ["--no-compile", "--report", str(report), f"{wheel}{line[1:]}"]
    pip(sys.executable, "--python", str(python), "install", *told)
    check_origin(report)
    check_use(environment, extras_of(line), empty)
    shutil.rmtree(environment)  # hundreds of megabytes, of which pytest would keep three


# ---- Each extra, of the libraries that are here ---------------------------------------------


def required(requirements: Iterable[str], extras: Iterable[str] = ("",)) -> set[str]:
    """The installed distributions that these ask for, and those that they ask for in turn."""
    found: set[tuple[str, str]] = set()
    todo = [(Requirement(each), extra) for each in requirements for extra in extras]
    while todo:
        wanted, extra = todo.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        installed = metadata.distribution(wanted.name)
        assert installed.version in wanted.specifier, f"{wanted}: there is {installed.version}"
        for one in ("", *wanted.extras):
            if (wanted.name, one) not in found:
                found.add((wanted.name, one))
                todo += [(Requirement(each), one) for each in installed.requires or []]
    return {name for name, _ in found}


def linked(names: set[str], folder: Path) -> Path:
    """A folder of packages that has these distributions of the present environment, and no more."""
    folder.mkdir()
    for name in names:
        installed = metadata.distribution(name)
        for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(installed.locate_file(top))))
    return folder


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and nothing that it wants."""
    environment = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(environment, symlinks=True)
    python = str(environment / "bin/python")
    pip(sys.executable, "--python", python, "install", "--no-deps", "--no-compile", str(wheel))
    return environment


TOGETHER = [["cli", "data"], ["cli", "ope"], ["cli", "serving"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "extras",
    [[], *([extra] for extra in sorted(EXTRAS.keys() - {"dev"})), *TOGETHER],
    ids=lambda extras: ",".join(extras) or "none",
)
def test_an_extra_has_what_its_modules_import(
    extras: list[str], bare: Path, tmp_path: Path
) -> None:
    """The libraries are those of the tests, but for those that the extra does not ask for."""
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    if set(extras) & {"jax", "torch", "ray", "spark"}:  # which dev does not bring
        for name in {"spark": ["pyspark"]}.get(extras[0], extras):
            pytest.importorskip(name)
    names = required([*core, *set().union(*map(brought, extras))])
    empty = tmp_path / "empty"
    empty.mkdir()
    check_use(bare, extras, empty, linked(names, tmp_path / "libraries"))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_the_wheel_is_for_every_python(version: str, wheel: Path, tmp_path: Path) -> None:
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    python = found[-1] if found else shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"Python {version} is not installed here")
    environment = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
    own = environment / "bin/python"
    pip(sys.executable, "--python", str(own), "install", "--no-compile", str(wheel))
    done = subprocess.run(
        [own, ROOT / "tests" / "installed.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(environment)


def test_the_lines_are_found() -> None:
    for line in LINES:
        assert line == "." or extras_of(line), f"pip install {line}: neither this, nor in OF_OTHERS"
    assert OF_OTHERS <= ALL_LINES
    assert "." in LINES
    expected = "cli,data cli,serving cli,ope gateway loadtest bench"
    assert {f".[{extras}]" for extras in expected.split()} <= set(LINES)
