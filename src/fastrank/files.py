"""Find files that other programs wrote, tell their formats, and name them in errors.

Logs, rewards, captures and vectors follow the same rules, so that no command skips a file that
another one reads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

__all__ = [
    "Paths",
    "directly_in",
    "file_format",
    "files_at",
    "folders_below",
    "holds_data",
    "in_directory",
    "is_data",
    "listed_paths",
    "matched",
    "naming",
    "not_text",
    "opened",
]

Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_FORMATS = {
    **dict.fromkeys((".parquet", ".parq", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **{f".{name}": name for name in ("json", "csv", "arrow", "npy", "npz")},
}
# Suffixes that writers append to a Parquet file's name for its compression: items.parquet.gzip.
_CODECS = {".gzip", ".gz", ".snappy", ".zstd", ".zst", ".brotli", ".br", ".lz4"}
# Suffixes of data in formats that fastrank does not read, or compressed as a whole.
_OTHERS = _CODECS | {
    *(".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z"),
    *(".tsv", ".avro", ".orc", ".feather", ".ipc", ".arrows", ".jsonlines"),
}

# Text formats that may be compressed by gzip, if the reader supports it.
_PACKED = {"csv", "jsonl", "json"}
_GZIP = b"\x1f\x8b"
# First bytes of files that are not text, and what the files are.
_BEGINNINGS = {
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"PAR1": "a Parquet file",
    _GZIP: "compressed by gzip",
    b"PK": "a zip archive, as .xlsx files are",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
}
_UNTEXTUAL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
_FEW = 50  # a text may have one of these bytes in so many, as in a broken line

_LOG = logging.getLogger("fastrank.files")


def file_format(path: str | os.PathLike[str]) -> str | None:
    """Tell a file's format from its name, in upper or lower case.

    Returns
    -------
    {"parquet", "jsonl", "json", "csv", "arrow", "npy", "npz"} or None
        None for any other name. For text compressed by gzip, ``csv.gz`` and so on.

    Examples
    --------
    >>> file_format("ITEMS.PARQ"), file_format("part-0.snappy.parquet"), file_format("i.parquet.gz")
    ('parquet', 'parquet', 'parquet')
    >>> file_format("clicks.csv"), file_format("clicks.csv.gz")
    ('csv', 'csv.gz')
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    found = _FORMATS.get(suffixes[-1]) if suffixes else None
    if found is None and suffixes and suffixes[-1] in _CODECS:
        inner = _FORMATS.get(suffixes[0])
        if inner in _PACKED and suffixes[-1] == ".gz":
            return f"{inner}.gz"
        return inner if inner == "parquet" else None
    return found


def not_text(head: bytes) -> str | None:
    """Describe a file that is not text, from its first bytes; None for text.

    Examples
    --------
    >>> not_text(b"item,p\\n1,0.5\\n"), not_text("item,p".encode("utf-16"))
    (None, 'text in UTF-16')
    """
    in_utf_16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    odd = len(head) - len(head.translate(None, _UNTEXTUAL))
    if not in_utf_16 and odd <= len(head) // _FEW:
        return None
    return next((what for begin, what in _BEGINNINGS.items() if head.startswith(begin)), "not text")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; gzip is decompressed, whatever the file's name."""
    import gzip

    with path.open("rb") as file:
        is_packed = file.read(2) == _GZIP
        file.seek(0)
        if not is_packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast("BinaryIO", unpacked)


def is_data(name: str) -> bool:
    """Say whether a name in a directory may be data.

    Names that begin with a dot are not: the files are unfinished, or belong to another program. The
    ``lost+found`` of a file system is not, either.

    Examples
    --------
    >>> is_data("clicks.csv"), is_data(".gitkeep"), is_data("lost+found")
    (True, False, False)
    """
    return not name.startswith(".") and name != "lost+found"


def holds_data(directory: Path) -> bool:
    """Say whether a directory has any name that `is_data`; otherwise it may be written to."""
    return any(map(is_data, os.listdir(directory)))


def directly_in(directory: Path, suffix: str) -> list[Path]:
    """List the files directly in a directory that have a suffix and `is_data`, by name."""
    names = sorted(os.listdir(directory))
    return [directory / name for name in names if name.endswith(suffix) and is_data(name)]


def listed_paths(paths: Paths) -> list[str]:
    """Return one path or several as a list."""
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    return [os.fspath(path) for path in given]


def files_at(
    paths: Paths, formats: Collection[str], what: str, without: Collection[str] = ()
) -> list[Path]:
    """List the files that paths stand for, each once, in order.

    Parameters
    ----------
    paths : path or iterable of paths
        Files of any name; directories, whose files `in_directory` lists; and globs, which stand
        for the files and directories that they match.
    formats, without
        As for `in_directory`. Matches of a glob are left out by the same rules, by their own names
        and those of their folders.
    what : str
        The kind of files, for errors: ``log files (.parquet, .arrow)``.

    Raises
    ------
    ValueError
        If a path stands for no file; the message names the path.
    """
    import glob

    found: dict[Path, None] = {}
    for text in listed_paths(paths):
        if Path(text).exists():
            matches = [Path(text)]
        elif glob.has_magic(text):
            matches = [each for each in matched(text) if not {*each.parts[-2:]} & {*without}]
        elif "://" in text:
            raise ValueError(f"{text}: expected a file, not a URL; copy it to a directory first")
        else:
            raise ValueError(f"{text}: no such file or directory")
        files: list[Path] = []
        for each in matches:
            files += in_directory(each, formats, without) if each.is_dir() else [each]
        if not files:
            raise ValueError(f"{text}: no {what} there")
        found |= dict.fromkeys(files)
    return list(found)


def matched(pattern: str) -> list[Path]:
    """List the paths that a glob matches, in order.

    ``**`` stands for a directory and all `folders_below` it, each once, since links may form
    cycles; at the end of a glob, it stands for the files in them, too.
    """
    import glob  # late, since it slows `import fastrank`

    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(map(Path, glob.glob(pattern)))
    at = parts.index("**")
    rest = Path(*parts[at + 1 :])
    found: set[Path] = set()
    for top in matched(str(Path(*parts[:at]))) if at else [Path()]:
        for folder, names in folders_below(top) if top.is_dir() else ():
            if rest.parts:
                found.update(matched(str(Path(glob.escape(str(folder)), rest))))
            else:
                found.update([folder, *(folder / name for name in names if is_data(name))])
    return sorted(found)


def in_directory(
    directory: Path, formats: Collection[str], without: Collection[str] = ()
) -> list[Path]:
    """List the files below a directory that have given formats; warn of other data.

    Parameters
    ----------
    directory : Path
    formats : collection of str
        As `file_format` returns them.
    without : collection of str
        Names of files and folders to leave out without a warning.

    Returns
    -------
    list of Path
        Files that `is_data`: those of each folder by name, before those of its subfolders. Links
        are followed, as by `folders_below`.

    Raises
    ------
    OSError
        If a directory may not be listed.

    Notes
    -----
    The log ``fastrank.files`` warns of files whose names look like data of another format, since
    their owner may believe that they are read. Names that begin with an underscore, such as the
    markers of programs that write data (``_SUCCESS``), are left out silently. It also warns of
    broken links, whose data may have been moved.
    """
    found, passed_over, nowhere = [], [], []
    for folder, names in folders_below(directory, without):
        for name in names:
            if name in without or not is_data(name):
                continue
            file = folder / name
            said = file_format(file)
            if said in formats:
                found.append(file)
            elif not name.startswith("_") and (said or file.suffix.lower() in _OTHERS):
                passed_over.append(file)
            elif file.is_symlink() and not file.exists():
                nowhere.append(file)
    of_formats = f"by their names, their formats are not among {', '.join(formats)}"
    for files, why in ((passed_over, of_formats), (nowhere, "these links are broken")):
        if files:
            shown = ", ".join(map(repr, (str(f.relative_to(directory)) for f in files[:3])))
            more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
            _LOG.warning("%s: %s%s: not read: %s", directory, shown, more, why)
    return found


def folders_below(
    directory: Path, without: Collection[str] = ()
) -> Iterator[tuple[Path, list[str]]]:
    """Yield a directory and all folders below it that may hold data, with their files' names.

    A folder comes before its subfolders, which are sorted by name. Links to directories are
    followed, and each directory comes once, even if links form cycles: under its own name if that
    is below `directory`.

    Parameters
    ----------
    directory : Path
    without : collection of str
        Names of folders to leave out, in addition to those that are not data by `is_data`.
    """
    own = {os.path.realpath(path) for path, _, _ in _walk(directory, without)}
    waiting, met = [directory], set[str]()
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in met:
            continue
        met.add(real)
        # Folders below a linked directory are named by the link.
        if real not in own:
            own |= {os.path.realpath(path) for path, _, _ in _walk(folder, without)}
        _, folders, names = next(_walk(folder, without), (folder, [], []))
        below = [folder / name for name in folders]
        waiting += reversed(
            [each for each in below if not each.is_symlink() or os.path.realpath(each) not in own]
        )
        yield folder, sorted(names)


def _walk(directory: Path, without: Collection[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Do `os.walk` in order, for folders that may hold data."""
    for folder, folders, names in os.walk(directory, onerror=_refuse):
        folders[:] = sorted(f for f in folders if f not in without and is_data(f))
        yield folder, folders, names


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # removed since it was listed
        raise error


@contextmanager
def naming(place: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn any error while a file is read into a ValueError that names the file.

    Parsers may raise anything if a file is damaged, or of another kind than its name says:
    KeyError, RuntimeError, zlib.error, or MemoryError for a wrong length.

    Parameters
    ----------
    place : str or path
        The file, and the part of it that is read if known: ``items.npz: vectors``.
    kind : str
        What it is read as: ``Parquet file``.
    """
    try:
        yield
    except ImportError:  # an extra that is not installed
        raise
    except Exception as error:
        is_named = isinstance(error, ValueError) and str(error).startswith(f"{place}: ")
        if is_named or (isinstance(error, OSError) and error.filename is not None):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError):
            why = "the size that it states does not fit in memory"
        raise ValueError(f"{place}: not a readable {kind}: {why}") from error
