"""Files and directories are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fastrank.files import holds_data

__all__ = ["leftovers", "old_leftovers", "replacing", "sync", "write_text"]

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
_OLD_SECONDS = 3600.0
_MOST_LINKS = 40  # that a path is followed through, as by Linux


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside a file or directory, to be written to; what is there then takes its place.

    If writing fails the path stays what it was. Whoever has the file open keeps the old content. A
    directory takes the place of one that holds no data, and what that holds all the same, a
    .gitkeep say, stays where it was.

    Raises
    ------
    FileExistsError
        If the directory in the way holds data by now.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "report.html"
    >>> with replacing(file) as temporary:
    ...     _ = temporary.write_text("<html>")
    >>> [each.name for each in file.parent.iterdir()]
    ['report.html']
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir() and not path.is_symlink():
            _replace_directory(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            import shutil  # with four compressors, which `import fastrank` need not wait for

            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def _replace_directory(temporary: Path, path: Path) -> None:
    old = temporary.with_suffix(".old")  # where a kill leaves what it holds
    path.rename(old)
    try:
        if holds_data(old):
            raise FileExistsError(f"{path} is taken")
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    for name in os.listdir(old):
        (old / name).rename(path / name)
    old.rmdir()


def leftovers(directory: Path) -> Iterator[tuple[Path, str]]:
    """What `replacing` began in a directory, each with the name that it was to take.

    The caller must know whether somebody is still writing it or was killed.
    """
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            match = _TEMPORARY.fullmatch(name)
            if match is not None:
                yield directory / name, match[1]


def old_leftovers(directory: Path) -> Iterator[tuple[Path, str]]:
    """Those that nobody has written to for an hour: what is younger may be in use."""
    for leftover, name in leftovers(directory):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _OLD_SECONDS:
                yield leftover, name


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str) -> None:
    """UTF-8 text; what is no file to be replaced, such as ``/dev/stdout``, is written to."""
    descriptor = _descriptor(file)
    if descriptor is not None:
        # Not opened anew: where it goes to a file, that would write over what is there.
        sys.stdout.flush()
        sys.stderr.flush()
        with open(os.dup(descriptor), "w", encoding="utf-8") as stream:
            stream.write(text)
        return
    target = file.resolve()
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _descriptor(file: Path) -> int | None:
    """Of this process, where a path such as ``/dev/stdout`` names one."""
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(file.parent)
        if folder in (f"/proc/{os.getpid()}/fd", "/dev/fd") and file.name.isdecimal():
            return int(file.name)
        if not file.is_symlink():
            break
        file = Path(folder, os.readlink(file))
    return None
