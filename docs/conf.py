"""The documentation site: `make docs` builds it into build/docs, and a warning is an error."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import fastrank

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "fastrank"
copyright = "the fastrank contributors"  # noqa: A001 (Sphinx's name)
version = release = fastrank.__version__

extensions = [
    "generated",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_click",
]
exclude_patterns = ["_ext"]
default_role = "py:obj"
nitpicky = True
smartquotes = False  # --items of a command is to be copied, and is no dash

myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = False
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "fastrank"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_toc_level": 2}
html_copy_source = False
html_show_sourcelink = False
html_domain_indices = False


# ---- Pages that stand elsewhere in the repository ---------------------------------------------

# On the site each is a page of docs/, which includes it.
INCLUDED = {
    DOCS.parent / path: DOCS / page
    for path, page in {
        "README.md": "index.md",
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "bench/README.md": "benchmarks.md",
        "loadtest/README.md": "load-testing.md",
        "serving/README.md": "serving.md",
    }.items()
}
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")


def links_of_the_site(text: str, written_in: Path, shown_in: Path) -> str:
    """Links to files, as the repository has them, as links of the page that shows them."""

    def link(found: re.Match[str]) -> str:
        path = (written_in / found[2]).resolve()
        if not path.exists():
            return found[0]
        path = INCLUDED.get(path, path)
        return f"{found[1]}{os.path.relpath(path, shown_in)}{found[3] or ''}"

    return _LINK.sub(link, text)


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    folder = Path(app.env.doc2path(docname)).parent
    source[0] = links_of_the_site(source[0], folder, folder)


def read_included(app: Sphinx, included: Path, _: str, source: list[str]) -> None:
    shown_in = Path(app.env.doc2path(app.env.docname)).parent
    source[0] = links_of_the_site(source[0], (DOCS / included).parent, shown_in)


# ---- Names in docstrings ----------------------------------------------------------------------


def without_link(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.Node | None:
    """`Catalog.rank` in another module than `fastrank`; and words that are no name, as arguments.

    Names that are written out, `fastrank.ope.evaluate`, must be there.
    """
    if node.get("refdomain") != "py" or node["reftarget"].startswith("fastrank."):
        return None
    python, name = env.domains.python_domain, f"fastrank.{node['reftarget']}"
    if name not in python.objects:
        return text
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", without_link)
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
