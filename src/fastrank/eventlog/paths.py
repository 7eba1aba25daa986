"""Which files belong to a log, and whether a file yet to be written would be read with it.

`fastrank.files` says what is read of a directory and of what a glob matches; the filters are not.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from fastrank.eventlog.filters import FOLDER
from fastrank.files import Paths, files_at, folders_below, is_data, listed_paths, matched

__all__ = ["JOIN_FILE", "LogFile", "log_files", "path_that_reads"]

JOIN_FILE = "join.json"  # the account of a join, beside the log that it wrote
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file of a log, with the values that the names of its directories give all its rows.

    Tools that split a table by a column make directories ``name=value``, in which values are
    percent-encoded, and often leave the column out of the files.

    Attributes
    ----------
    path : Path
    top : Path
        The given part of the path, before any wildcard.

    Examples
    --------
    >>> file = LogFile(Path("logs/arm=a%20b/hour=7/x.parquet"), Path("logs"))
    >>> file.said
    {'arm': 'a b', 'hour': '7'}
    >>> LogFile(file.path, Path("logs/arm=a%20b")).said_above
    {'arm': 'a b'}
    """

    path: Path
    top: Path

    @property
    def said(self) -> dict[str, str | None]:
        """Columns and values from the directories below `top`; None for null."""
        return _said(self.path.relative_to(self.top).parts[:-1])

    @property
    def said_above(self) -> dict[str, str | None]:
        """Likewise by `top` and those directly above it, as far as they are called so.

        They need not be of this log: a directory ``seed=3`` of experiments may hold it.
        """
        parts = self.top.parts
        first = len(parts)
        while first and "=" in parts[first - 1]:
            first -= 1
        return _said(parts[first:])

    def folder_with(self, name: str) -> Path:
        """The folder in which the log keeps what is no row.

        The one it is in, or one above the directories that split the log.
        """
        for folder in self.path.parents:
            if (folder / name).exists():
                return folder
            if folder == self.top or "=" not in folder.name:
                break
        return self.path.parent


def _said(folders: tuple[str, ...]) -> dict[str, str | None]:
    pairs = [folder.partition("=") for folder in folders]
    return {
        unquote(name): None if value == _NO_VALUE else unquote(value)
        for name, equals, value in pairs
        if name and equals
    }


def log_files(paths: Paths) -> list[LogFile]:
    """Files under paths, each once, in order; a ValueError for a path with none.

    Where a segment is there both growing and sealed, the sealed one counts.
    """
    given = [_as_sealed(path) for path in listed_paths(paths)]
    if not given:
        raise ValueError("paths: none given; name a file, a directory or a glob")
    what, without = "log files (.parquet, .arrow)", (FOLDER, JOIN_FILE)
    found: dict[Path, Path] = {}
    for text in given:
        for path in files_at(text, ("parquet", "arrow"), what, without):
            found.setdefault(path, _top(text))
    sealed = {path for path in found if path.suffix == ".parquet"}  # as writers call them
    kept: dict[Path, Path] = {}
    for path, top in found.items():
        parquet = path.with_suffix(".parquet")
        if path.suffix == ".arrow" and (parquet in sealed or parquet.exists()):
            path = parquet
        kept.setdefault(path, top)
    return [LogFile(path, top) for path, top in kept.items()]


def _top(text: str) -> Path:
    path = Path(text)
    if path.exists():
        return path if path.is_dir() else path.parent
    plain = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    return Path(*path.parts[:plain])


def _as_sealed(path: str) -> str:
    """The present path of a growing segment that is no longer there."""
    if not path.endswith(".arrow") or os.path.exists(path):
        return path
    sealed = f"{path.removesuffix('.arrow')}.parquet"
    return sealed if os.path.exists(sealed) else path


def path_that_reads(paths: Paths, directory: Path, name: str) -> str | None:
    """Find the first of a log's paths under which a file in a directory would be read too.

    Parameters
    ----------
    paths : iterable of paths
        Files, directories and globs, as in `LogReader`.
    directory : Path
        May not exist yet. Links are followed, as in reading.
    name : str
        Name of the file that will be written there.
    """
    file = directory.resolve() / name
    for text in listed_paths(paths):
        path = Path(text)
        if path.is_dir():
            found = _is_below(file, path)
        elif path.exists():  # a file, under any name
            found = False
        else:
            found = glob.has_magic(text) and _is_matched(file, path)
        if found:
            return text
    return None


def _is_below(file: Path, directory: Path) -> bool:
    """Whether walking through a directory, following links, reaches a file."""
    top = directory.resolve()
    if file.is_relative_to(top) and _is_met(file.relative_to(top).parts):
        return True
    there = _nearest(file)
    return _is_met(file.relative_to(there).parts) and any(
        folder.resolve() == there for folder, _ in folders_below(directory, (FOLDER,))
    )


def _nearest(file: Path) -> Path:
    """The directory that contains an existing file."""
    return next(folder for folder in file.parents if folder.exists())


def _is_met(parts: tuple[str, ...]) -> bool:
    return all(part != FOLDER and is_data(part) for part in parts[:-1])


def _is_matched(file: Path, pattern: Path) -> bool:
    """Whether a glob matches a file that is not there yet, or a directory that it will be in.

    The pattern is cut in two everywhere: what is there already is found by the first part, which
    follows links, and what is not is compared with the second.
    """
    there = _nearest(file)
    new = file.relative_to(there).parts
    for cut in range(1, len(pattern.parts) + 1):
        head, rest = Path(*pattern.parts[:cut]), pattern.parts[cut:]
        if pattern.parts[cut - 1] == "**":
            rest = ("**", *rest)  # which goes on from where it is
        for found in matched(str(head)):
            if not found.is_dir():
                continue
            of_filters = FOLDER in found.parts[-2:]
            if cut == len(pattern.parts) and not of_filters and _is_below(file, found):
                return True
            if found.resolve() == there and _fits(rest, new, found.parts):
                return True
    return not pattern.is_absolute() and there == Path.cwd() and _fits(pattern.parts, new, ())


def _fits(pattern: tuple[str, ...], new: tuple[str, ...], matched: tuple[str, ...]) -> bool:
    """Whether a glob matches the path of a file, or a directory on the way to it."""
    if not pattern:
        return FOLDER not in matched[-2:] and _is_met(new)
    if pattern[0] == "**" and _fits(pattern[1:], new, matched):
        return True
    if not new:
        return False
    first = pattern[0]
    hidden = new[0].startswith(".") and not first.startswith(".")
    if not (is_data(new[0]) if first == "**" else fnmatch.fnmatch(new[0], first) and not hidden):
        return False
    return _fits(pattern if first == "**" else pattern[1:], new[1:], (*matched, new[0]))
