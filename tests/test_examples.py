"""Every example in a docstring runs and says what it says, and every block of code on a page."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("markdown_it")
pytest.importorskip("scipy")
pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from environment import inherited
from pages import blocks, repository_pages

import fastrank
from fastrank import demo
from fastrank.eventlog import LogWriter
from fastrank.policies import NAMES

ROOT = Path(__file__).resolve().parents[1]
PAGES = repository_pages(ROOT)
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


# ---- Pages ----------------------------------------------------------------------------------

# What a word in a block's fence says of it, which readers do not see: why it is not run.
NOT_RUN = {
    "shown": "what was printed on other data, or a drawing; nothing to run",
    "checkout": "programs of the repository, of minutes each, which other tests run",
    "anime": "data that are not of this repository; tests/test_docs_rules.py runs it on them",
    "asked": "the log of a server that clients asked; tests/test_serving_arms.py has one",
    "engine": "Ray, or Spark; tests/test_batch_engines.py has them where they are installed",
    "absent": "a library that tests do not install (implicit, LightFM, torch); what follows"
    " takes arrays of the same form",
    "aws": "an account of AWS; tests/test_serving_circle.py has its services on this machine",
    "cluster": "a Kubernetes cluster; tests/test_serving_deployment.py reads what it is given",
    "docker": "a Docker engine; `make container-test` does without",
    "long": "half a minute of verification; tests/test_cli_rank.py and test_verify_rules.py run it",
    "elsewhere": "directories of a machine's own (/etc, /run); tests/test_serving_*.py have others",
}


@cache
def isolation() -> list[str]:
    """What gives a process ports of its own, where that can be had."""
    command = [
        "unshare",
        "--map-root-user",
        "--net",
        "bash",
        "-c",
        'ip link set lo up; exec "$@"',
        "_",
    ]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return command


# Files that a page takes for granted.
GIVEN = {
    "docs/explanation/retrieval.md": ("items.npz", "users.npz"),
    "docs/how-to/evaluate.md": ("demo-output",),
    "docs/how-to/evaluate-in-parts.md": ("demo-output",),
    "docs/how-to/from-azure-personalizer.md": ("model",),
    "docs/how-to/join.md": ("logs", "clicks.csv", "impressions.csv"),
    "docs/how-to/kubernetes.md": ("items.npz", "users.npz"),
    "docs/how-to/plan.md": ("model", "items.npz", "users.npz", "sold_out.txt", "on_sale.txt"),
    "docs/how-to/sagemaker.md": ("items.npz", "users.npz"),
    "docs/reference/models.md": ("items.parquet", "users.parquet"),
    "docs/reference/rules.md": ("model",),
    "docs/how-to/clients.md": ("model",),
    "docs/how-to/server-rules.md": ("model",),
    "docs/reference/seeds.md": ("model",),
    "serving/README.md": ("model",),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that commands of pages name, and pages do not make."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    users = [f"u{i}" for i in range(15)] + ["ann"]
    items, vectors = np.arange(120), rng.standard_normal((120, 8))
    of_users = rng.standard_normal((16, 8))
    np.savez(folder / "items.npz", ids=items, vectors=vectors)
    np.savez(folder / "users.npz", ids=users, vectors=of_users)
    for name, ids, rows in (("items", items, vectors), ("users", users, of_users)):
        table = pa.table({"id": ids, "vector": list(rows.astype(np.float32))})
        pq.write_table(table, folder / f"{name}.parquet")
    (folder / "sold_out.txt").write_text("17\n23\n")
    (folder / "on_sale.txt").write_text("".join(f"{i}\n" for i in range(100)))
    features = {"seller": [f"s{i % 20}" for i in items], "price": rng.exponential(50, 120)}
    catalog = fastrank.Catalog(items, vectors, features=features)
    model = fastrank.Model(catalog, users, of_users, policy=fastrank.PlackettLuce(1.0))
    model.save(folder / "model")
    asked = []
    with LogWriter(folder / "logs") as log:
        for user in users:
            ranking = model.recommend(user, 5)
            at = datetime(2026, 1, 1, 12, tzinfo=UTC)
            request = log.append(ranking, user_id=user, ts=at)
            asked.append((request, ranking.item_ids[0], at))
    clicks = [f"{request},{item},1,{at.isoformat()}" for request, item, at in asked[::3]]
    seen = [f"{request},3,{at.isoformat()}" for request, _, at in asked]
    (folder / "clicks.csv").write_text("\n".join(["request_id,item_id,reward,ts", *clicks]))
    (folder / "impressions.csv").write_text("\n".join(["request_id,displayed,ts", *seen]))
    demo.story(folder / "demo-output" / "shop", rows=3000)
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the wheel, where there is one, or else what is here."""
    home = tmp_path_factory.mktemp("home")
    own = {"HOME": str(home), "MPLBACKEND": "agg", "FASTRANK_CACHE_DIR": str(home / "cache")}
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if wheel := os.environ.get("FASTRANK_TEST_WHEEL"):
        into = home / "wheel"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        subprocess.run([*pip, "--no-deps", "--target", into, ROOT / wheel], check=True)
        own["PYTHONPATH"] = str(into)  # before what is here
        paths.insert(0, str(into / "bin"))
    environment = {**inherited(), **own, "PATH": os.pathsep.join(paths)}
    where = [sys.executable, "-c", "import fastrank; print(fastrank.__file__)"]
    found = subprocess.check_output(where, env=environment, cwd=home, text=True)
    assert not wheel or Path(found).is_relative_to(home), "what was installed is not what is run"
    return environment


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page: Path, shop: Path, installed: dict[str, str], tmp_path: Path) -> None:
    """The code of a page, from top to bottom, in a directory with what `GIVEN` says."""
    for name in GIVEN.get(str(page.relative_to(ROOT)), ()):
        copy = shutil.copytree if (shop / name).is_dir() else shutil.copy
        copy(shop / name, tmp_path / name)
    done = subprocess.run(
        [*isolation(), sys.executable, str(ROOT / "tests" / "pages.py"), str(page)],
        cwd=tmp_path,
        env=installed,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_block_is_run_or_says_why_not() -> None:
    marks = {mark for page in PAGES for block in blocks(page.read_text()) for mark in block.marks}
    assert marks - {"serves"} <= NOT_RUN.keys(), "a word without a reason"
    assert marks - {"serves"} == NOT_RUN.keys(), "a reason that no block has"


def test_a_page_says_every_inference_type() -> None:
    if not (ROOT / "docs").exists():
        pytest.skip("an sdist has the tests, and not the pages")
    page = (ROOT / "docs" / "reference" / "policies.md").read_text(encoding="utf-8")
    table = page.partition("| policy | inference type |")[2].partition("\n\n")[0]
    assert [name for name in fastrank.INFERENCE_TYPES if f"`{name}`" not in table] == []
    table = page.partition("| short name | inference type |")[2].partition("\n\n")[0]
    rows = [re.findall("`([a-z_]+)`", row) for row in table.splitlines()]
    said = {row[0]: row[-1] for row in rows if row}  # "the same" where it is one name
    assert said == {row.short: name for name, row in NAMES.items()}


def run_page(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    page = folder / "page.md"
    page.write_text(text)
    command = [sys.executable, str(ROOT / "tests" / "pages.py"), str(page)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


GOOD = """
```python
x = 3
print("one", x, "three")
```

```text
one ... three
```

```sh
y=4
```

```sh
echo $y
```

```text
4
```

```json
{"a": 1}
{"b": 2}
```
"""


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ("x = 3", "x = 1 / 0", "line 2"),
        ("one ... three", "one ... four", "line 7"),
        ("y=4", "y=4; false", "line 11"),
        ("y=4", "false | cat", "line 11"),
        ("4\n", "5\n", "line 19"),
        ('"b": 2', '"b": ', "line 23"),
        ("```json", "```", "line 23"),
        ("```json", "    indented\n\n```json", "line 23"),
    ],
)
def test_what_is_wrong_on_a_page_is_found(
    right: str, wrong: str, line: str, tmp_path: Path
) -> None:
    done = run_page(GOOD.replace(right, wrong, 1), tmp_path)
    assert done.returncode == 1
    assert line in done.stderr


def test_what_is_right_on_a_page_is_right(tmp_path: Path) -> None:
    done = run_page(GOOD, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
