"""Pages of the documentation: their links, and what a page must have since the code has it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("markdown_it")
pytest.importorskip("pyarrow")
from markdown_it import MarkdownIt
from pages import repository_pages

from fastrank.eventlog import SCHEMA_VERSION, schema

ROOT = Path(__file__).resolve().parents[1]
PAGES = repository_pages(ROOT)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and MyST make them."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    titles = [b.content for a, b in pairwise(tokens) if a.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    every = [child for token in tokens for child in token.children or ()]
    found = [str(each.attrs.get("href") or each.attrs.get("src") or "") for each in every]
    return [each for each in found if each and "://" not in each]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_there_are_links() -> None:
    assert sum(len(links(page)) for page in PAGES) > 100


def test_the_page_of_the_log_has_its_columns() -> None:
    page = (ROOT / "docs" / "reference" / "event-log.md").read_text(encoding="utf-8")
    table = page.partition("| column | type |")[2].partition("\n\n")[0]
    said = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    columns = {
        name for version in (1, SCHEMA_VERSION) for name in schema("int64", version=version).names
    }
    assert said == columns


@pytest.mark.slow
def test_the_site_keeps_options_as_they_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("pydata_sphinx_theme")
    pytest.importorskip("sphinx_click")
    if not (ROOT / "docs").exists():
        pytest.skip("an sdist has the tests, and not the pages")
    (tmp_path / "index.rst").write_text("Page\n====\n\nfastrank build --items a.npz\n")
    build = [sys.executable, "-m", "sphinx", "-q", "-c", str(ROOT / "docs")]
    subprocess.run([*build, str(tmp_path), str(tmp_path / "out")], check=True)
    assert "fastrank build --items a.npz" in (tmp_path / "out" / "index.html").read_text()


def test_extras_are_on_the_page_of_installing() -> None:
    page = ROOT / "docs" / "how-to" / "installing.md"
    if not page.exists():
        pytest.skip("an sdist has the tests, and not the pages")
    table = page.read_text(encoding="utf-8").partition("| extra | for |")[2].partition("\n\n")[0]
    said = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row[:90])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"].keys() <= said


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) <= 900
    short = prose.partition("<!-- short: bench/report.py -->")[2].partition("<!-- end -->")[0]
    assert len(short.strip().splitlines()) == 2 + 6  # a head, and six rows
