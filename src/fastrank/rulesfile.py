"""Rules as JSON: in a text, in a file, and several by their names."""

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
    """The rules of a JSON object, as `Rules.to_dict` gives it.

    Raises
    ------
    ValueError
        Where it is none, or says something twice; naming the key.

    Examples
    --------
    >>> rules_of_json('{"cap": {"seller": 2}, "pin": {"3": "sku-9"}}')
    Rules(cap={'seller': 2}, pin={3: 'sku-9'})
    """
    return Rules.from_dict(_content(text))


def read_rules(path: Path) -> Rules:
    """The rules of a JSON file.

    Raises
    ------
    ValueError
        Naming the file, and the key.
    OSError
        If it cannot be read.
    """
    try:
        return rules_of_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def named_rules(options: Iterable[str]) -> dict[str, Rules]:
    """Rules by name: of ``NAME=FILE``, and of ``FILE``, whose object has rules by their names.

    A name begins with a letter or a digit, and has at most 100 of these, ``_``, ``-`` and ``.``.

    Raises
    ------
    ValueError
        Naming the option, and the file, the name or the key.
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
                    f"{path}: {shown(own)} is no name of rules: expected letters, digits, and . _ -"
                    " after the first"
                )
            if own in found:
                raise ValueError(f"{path}: rules of the name {own!r} are there already")
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
