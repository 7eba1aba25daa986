"""Render self-contained HTML pages: one file that loads nothing, for light and dark themes.

Each extends templates/page.html, which defines colours, type and printing for all pages.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package; every value is escaped.

    Parameters
    ----------
    template : str
        The name of a file in fastrank/templates.
    **values
        The template's values.

    Returns
    -------
    str
        Text that UTF-8 can encode: halves of surrogate pairs, as in names of files that are not
        UTF-8, are escaped.
    """
    text = _environment().get_template(template).render(**values)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fastrank"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
