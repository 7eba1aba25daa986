"""Whether files that are still to be written would be read along with a log.

`LogReader` lists files by the same rules: a directory with all that is below it, but for hidden
folders and the filters, and what a glob matches.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable
from pathlib import Path

from fastrank.eventlog.filters import FOLDER

__all__ = ["path_that_reads"]


def path_that_reads(
    paths: Iterable[str | os.PathLike[str]], directory: Path, name: str
) -> str | None:
    """The first of a log's paths under which a file in a directory would be read, too.

    Parameters
    ----------
    paths : iterable of paths
        Files, directories and globs, as `LogReader` takes them.
    directory : Path
        Need not exist yet. Links are followed, as they are in reading.
    name : str
        Of the file that is to be written there.
    """
    file = directory.resolve() / name
    for each in paths:
        text = os.fspath(each)
        path = Path(text)
        if path.is_dir():
            found = _is_below(file, path)
        elif path.exists():  # a file, whatever it is called
            found = False
        else:
            found = glob.has_magic(text) and _is_matched(file, path)
        if found:
            return text
    return None


def _is_below(file: Path, directory: Path) -> bool:
    """Whether a walk through a directory meets a file."""
    top = directory.resolve()
    return file.is_relative_to(top) and _is_met(file.relative_to(top).parts)


def _is_met(parts: tuple[str, ...]) -> bool:
    return not any(part == FOLDER or part.startswith(".") for part in parts[:-1])


def _is_matched(file: Path, pattern: Path) -> bool:
    """Whether a glob matches a file that is not there yet, or a directory that it will be in.

    The pattern is cut in two everywhere: what is there already is found by the first part, which
    follows links, and what is not is compared with the second.
    """
    there = file.parent
    while not there.exists():
        there = there.parent
    new = file.relative_to(there).parts
    for cut in range(1, len(pattern.parts) + 1):
        head, rest = Path(*pattern.parts[:cut]), pattern.parts[cut:]
        if pattern.parts[cut - 1] == "**":
            rest = ("**", *rest)  # which goes on from where it is
        for match in glob.iglob(str(head), recursive=True):
            found = Path(match)
            if not found.is_dir():
                continue
            if cut == len(pattern.parts) and _is_below(file, found):
                return True
            if found.resolve() == there and _fits(rest, new):
                return True
    return not pattern.is_absolute() and there == Path.cwd() and _fits(pattern.parts, new)


def _fits(pattern: tuple[str, ...], new: tuple[str, ...]) -> bool:
    """Whether a glob matches the path of a file, or a directory on its way."""
    if not pattern:
        return _is_met(new)
    if pattern[0] == "**" and _fits(pattern[1:], new):
        return True
    if not new:
        return False
    first = pattern[0]
    hidden = new[0].startswith(".") and not first.startswith(".")
    if hidden or not (first == "**" or fnmatch.fnmatch(new[0], first)):
        return False
    return _fits(pattern if first == "**" else pattern[1:], new[1:])
