"""Files that others wrote: which exist, what their names say, and errors that name them.

One rule for logs, rewards, captures and vectors, so that a file that one command reads is not
passed over by another.
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
# What writers add to a Parquet file's name for the compression inside: items.parquet.gzip.
_CODECS = {".gzip", ".gz", ".snappy", ".zstd", ".zst", ".brotli", ".br", ".lz4"}
# Names of data in formats that nothing here reads, or packed as a whole.
_OTHERS = _CODECS | {
    *(".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z"),
    *(".tsv", ".avro", ".orc", ".feather", ".ipc", ".arrows", ".jsonlines"),
}

# Text files that are read packed, too, where a reader says so.
_PACKED = {"csv", "jsonl", "json"}
_GZIP = b"\x1f\x8b"
# What begins so, among files that are no text.
_BEGINNINGS = {
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"PAR1": "a Parquet file",
    _GZIP: "packed by gzip",
    b"PK": "a zip archive, as .xlsx files are",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
}
_UNTEXTUAL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
_FEW = 50  # of so many bytes of a text one may be of these: a line that is broken

_LOG = logging.getLogger("fastrank.files")


def file_format(path: str | os.PathLike[str]) -> str | None:
    """The format that a file's name says, in letters of either case.

    Returns
    -------
    {"parquet", "jsonl", "json", "csv", "arrow", "npy", "npz"} or None
        None where the name says none of these; ``csv.gz`` and so on for text packed by gzip.

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
    """What a file is that is no text, by its first bytes; None for text.

    Examples
    --------
    >>> not_text(b"item,p\\n1,0.5\\n"), not_text("item,p".encode("utf-16"))
    (None, 'text in UTF-16')
    """
    in_utf_16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    odd = len(head) - len(head.translate(None, _UNTEXTUAL))
    if not in_utf_16 and odd <= len(head) // _FEW:
        return None
    return next((what for begin, what in _BEGINNINGS.items() if head.startswith(begin)), "no text")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where it is packed by gzip, whatever it is called."""
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
    """Whether what has this name in a directory may be anybody's data.

    Names that begin with a dot are not: they are not finished yet, or belong to another program.
    Neither is the ``lost+found`` of a file system.

    Examples
    --------
    >>> is_data("clicks.csv"), is_data(".gitkeep"), is_data("lost+found")
    (True, False, False)
    """
    return not name.startswith(".") and name != "lost+found"


def holds_data(directory: Path) -> bool:
    """Whether anything in a directory `is_data`; one where nothing is may be written to."""
    return any(map(is_data, os.listdir(directory)))


def directly_in(directory: Path, suffix: str) -> list[Path]:
    """Files in a directory itself whose names end so, by name; none that `is_data` says no to."""
    names = sorted(os.listdir(directory))
    return [directory / name for name in names if name.endswith(suffix) and is_data(name)]


def listed_paths(paths: Paths) -> list[str]:
    """One path or several, as a list."""
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    return [os.fspath(path) for path in given]


def files_at(
    paths: Paths, formats: Collection[str], what: str, without: Collection[str] = ()
) -> list[Path]:
    """The files that paths stand for, each once, in order.

    Parameters
    ----------
    paths : path or iterable of paths
        Files, whatever they are called; directories, of which `in_directory` says what is read;
        and globs, which stand for the files and directories that they match.
    formats, without
        As for `in_directory`. What a glob matches is left out likewise by its name, and by that of
        the folder it lies in.
    what : str
        What is looked for, for errors: ``log files (.parquet, .arrow)``.

    Raises
    ------
    ValueError
        Naming a path at which there is none.
    """
    import glob

    found: dict[Path, None] = {}
    for text in listed_paths(paths):
        if Path(text).exists():
            matches = [Path(text)]
        elif glob.has_magic(text):
            matches = [each for each in matched(text) if not {*each.parts[-2:]} & {*without}]
        elif "://" in text:
            raise ValueError(f"{text}: files are read, not URLs: copy it to a directory first")
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
    """What a glob matches, in order.

    ``**`` stands for a directory and all `folders_below` it, each once, and at the end of a glob
    for the files in them, too: links may lead round in circles.
    """
    import glob  # `import fastrank` need not wait for it

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
    """The files below a directory that are of given formats; what else looks like data is said.

    Parameters
    ----------
    directory : Path
    formats : collection of str
        As `file_format` gives them.
    without : collection of str
        Names of files and folders that are neither.

    Returns
    -------
    list of Path
        Each folder's files by name, before those of the folders in it; none that `is_data` says no
        to. Links are followed, as by `folders_below`.

    Notes
    -----
    The log ``fastrank.files`` warns of files that look like data by their names, and are of none
    of the formats: their owner may believe that they are read. What begins with an
    underscore, as the marks of programs that write data do (``_SUCCESS``), does not. It warns of
    links that lead nowhere as well: what was there may be away. A directory that may not be listed
    is an OSError.
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
    of_formats = f"by their names they are not of the formats {', '.join(formats)}"
    for files, why in ((passed_over, of_formats), (nowhere, "these links lead nowhere")):
        if files:
            shown = ", ".join(map(repr, (str(f.relative_to(directory)) for f in files[:3])))
            more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
            _LOG.warning("%s: %s%s: not read: %s", directory, shown, more, why)
    return found


def folders_below(
    directory: Path, without: Collection[str] = ()
) -> Iterator[tuple[Path, list[str]]]:
    """A directory and those below it that may hold data, each with the names of its files.

    A folder comes before those in it, which come by name. Links to directories are followed, and
    each directory is met once: under its own name where it has one here, and whatever links lead
    back to it.

    Parameters
    ----------
    directory : Path
    without : collection of str
        Names of folders that are left out, like those that `is_data` says no to.
    """
    own = {os.path.realpath(path) for path, _, _ in _walk(directory, without)}
    waiting, met = [directory], set[str]()
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in met:
            continue
        met.add(real)
        # Of a linked directory, what is below it has its own names under the link.
        if real not in own:
            own |= {os.path.realpath(path) for path, _, _ in _walk(folder, without)}
        _, folders, names = next(_walk(folder, without), (folder, [], []))
        below = [folder / name for name in folders]
        waiting += reversed(
            [each for each in below if not each.is_symlink() or os.path.realpath(each) not in own]
        )
        yield folder, sorted(names)


def _walk(directory: Path, without: Collection[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """What `os.walk` gives, in order, of folders that may hold data."""
    for folder, folders, names in os.walk(directory, onerror=_refuse):
        folders[:] = sorted(f for f in folders if f not in without and is_data(f))
        yield folder, folders, names


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # gone since it was seen
        raise error


@contextmanager
def naming(place: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Make a ValueError that names a file of whatever is raised while it is read.

    Parsers of a file that is damaged, or of another kind than its name says, may raise anything:
    KeyError, RuntimeError, zlib.error, MemoryError over a length that is not true.

    Parameters
    ----------
    place : str or path
        The file; with the part of it that is read, if that is known: ``items.npz: vectors``.
    kind : str
        What it was read as: ``Parquet file``.
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
            why = "what it says it holds does not fit in memory"
        raise ValueError(f"{place}: not a readable {kind}: {why}") from error
