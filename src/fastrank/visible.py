"""Make text from other sources safe to show in a terminal or a notebook."""

from __future__ import annotations

import re

__all__ = ["UNSEEN", "visible"]

# Characters that would control a terminal or a page: control characters, escapes, line ends and
# directions of writing; and halves of surrogate pairs, which no encoding has.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Escape characters of a text that would control the terminal or page that shows it.

    Examples
    --------
    >>> print(visible("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
