"""Text that came from elsewhere, for a terminal or a notebook."""

from __future__ import annotations

import re

__all__ = ["UNSEEN", "visible"]

# What acts on a terminal, or a page, instead of standing in it: controls, escapes, ends of lines,
# the order of writing; and halves of surrogate pairs, which no encoding has.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""A stranger's text as it is read: what would act on what shows it stands as its escape.

    Examples
    --------
    >>> print(visible("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
