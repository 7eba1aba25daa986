"""Read rules from JSON: from a text, from a file, and several sets by their names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastrank.inputs import shown
from fastrank.rules import Rules

__all__ = ["named_rules", "read_rules", "rules_of_json"]

_NAME = re.compile(r"[^\W_][\w.-]{0,99}")


def rules_of_json(text: str | bytes) -> Rules:
    """Read rules from a JSON object, as `Rules.to_dict` returns it.

    Raises
    ------
    ValueError
        If the text is not such an object, or gives a key twice; the message names the key.

    Examples
    --------
    >>> rules_of_json('{"cap": {"seller": 2}, "pin": {"3": "sku-9"}}')
    Rules(cap={'seller': 2}, pin={3: 'sku-9'})
    """
    return Rules.from_dict(_content(text))


def read_rules(path: Path) -> Rules:
    """Read rules from a JSON file.

    Raises
    ------
    ValueError
        As `rules_of_json`; the message names the file, too.
    OSError
        If the file cannot be read.
    """
    try:
        return rules_of_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def named_rules(options: Iterable[str]) -> dict[str, Rules]:
    """Read sets of rules by name, from options ``NAME=FILE`` and ``FILE``.

    The file of ``NAME=FILE`` holds one set of rules; that of ``FILE`` an object of sets by name. A
    name begins with a letter or a digit, and has at most 100 letters, digits, ``_``, ``-`` and
    ``.``.

    Raises
    ------
    ValueError
        If a file holds no rules, a name is malformed or is given twice; the message names the file
        and the name or the key.
    OSError
        If a file cannot be read.
    """
    found: dict[str, Rules] = {}
    for option in options:
        name, is_one, file = option.partition("=")
        path = Path(file if is_one else name)
        try:
            content = _content(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: rules: expected an object, got {shown(content)}")
        for own, each in ({name: content} if is_one else content).items():
            if not _NAME.fullmatch(own):
                raise ValueError(
                    f"{path}: name of rules: got {shown(own)}; expected letters and digits, and"
                    " . _ - after the first character"
                )
            if own in found:
                raise ValueError(f"{path}: rules named {own!r} were given already")
            try:
                found[own] = Rules.from_dict(each)
            except ValueError as error:
                raise ValueError(f"{path}: {own}: {error}") from None
    return found


def _content(text: str | bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for name, value in pairs:
            if name in members:
                raise ValueError(f"rules: {shown(name)} is given more than once")
            members[name] = value
        return members

    def no_number(word: str) -> Any:
        raise ValueError(f"rules: not JSON: {word}")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"rules: not JSON: {error}") from None
