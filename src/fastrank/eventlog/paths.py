"""Which files a log is, and whether one that is still to be written would be read along with it.

`fastrank.files` says what is read of a directory and of what a glob matches; the filters are not.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from pathlib import Path

from fastrank.eventlog.filters import FOLDER
from fastrank.files import Paths, files_at, is_data, listed_paths

__all__ = ["JOIN_FILE", "log_files", "path_that_reads"]

JOIN_FILE = "join.json"  # beside a log that `join` wrote: what it did


def log_files(paths: Paths) -> list[Path]:
    """Files under paths, each once, in order; a ValueError for a path with none.

    Where a segment is there both growing and sealed, the sealed one counts.
    """
    given = [_as_sealed(path) for path in listed_paths(paths)]
    if not given:
        raise ValueError("paths: none given")
    found = files_at(
        given, ("parquet", "arrow"), "log files (.parquet, .arrow)", without=(FOLDER, JOIN_FILE)
    )
    sealed = {path for path in found if path.suffix == ".parquet"}  # as writers call them
    kept: dict[Path, None] = {}
    for path in found:
        parquet = path.with_suffix(".parquet")
        if path.suffix == ".arrow" and (parquet in sealed or parquet.exists()):
            path = parquet
        kept[path] = None
    return list(kept)


def _as_sealed(path: str) -> str:
    """What a growing segment became that is not there any more."""
    if not path.endswith(".arrow") or os.path.exists(path):
        return path
    sealed = f"{path.removesuffix('.arrow')}.parquet"
    return sealed if os.path.exists(sealed) else path


def path_that_reads(paths: Paths, directory: Path, name: str) -> str | None:
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
    for text in listed_paths(paths):
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
    return all(part != FOLDER and is_data(part) for part in parts[:-1])


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
            of_filters = FOLDER in found.parts[-2:]
            if cut == len(pattern.parts) and not of_filters and _is_below(file, found):
                return True
            if found.resolve() == there and _fits(rest, new, found.parts):
                return True
    return not pattern.is_absolute() and there == Path.cwd() and _fits(pattern.parts, new, ())


def _fits(pattern: tuple[str, ...], new: tuple[str, ...], matched: tuple[str, ...]) -> bool:
    """Whether a glob matches the path of a file, or a directory on its way."""
    if not pattern:
        return FOLDER not in matched[-2:] and _is_met(new)
    if pattern[0] == "**" and _fits(pattern[1:], new, matched):
        return True
    if not new:
        return False
    first = pattern[0]
    hidden = new[0].startswith(".") and not first.startswith(".")
    if hidden or not (first == "**" or fnmatch.fnmatch(new[0], first)):
        return False
    return _fits(pattern if first == "**" else pattern[1:], new[1:], (*matched, new[0]))
