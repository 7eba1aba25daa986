"""Write files and directories atomically."""

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
_MOST_LINKS = 40  # symbolic links followed in a path, as in Linux


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside a file or directory; what is written there then replaces it.

    If writing fails, the path is unchanged. Readers that have the file open keep the old content. A
    directory replaces only one without data; other files in that one, such as .gitkeep, stay there.

    Raises
    ------
    FileExistsError
        If the directory to replace holds data by now.

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
            import shutil  # late: it imports four compressors, which slow `import fastrank`

            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def _replace_directory(temporary: Path, path: Path) -> None:
    old = temporary.with_suffix(".old")  # keeps the old content if the process is killed
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
    """Yield unfinished names of `replacing` in a directory, each with its intended name.

    The caller must know whether their writers still run or were killed.
    """
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            match = _TEMPORARY.fullmatch(name)
            if match is not None:
                yield directory / name, match[1]


def old_leftovers(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield those leftovers that were not written to for an hour: others may be in use."""
    for leftover, name in leftovers(directory):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _OLD_SECONDS:
                yield leftover, name


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text to a file atomically; other paths, like ``/dev/stdout``, are written to."""
    descriptor = _descriptor(file)
    if descriptor is not None:
        # Not opened again: if it is redirected to a file, that would overwrite its content.
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
    """Return this process's descriptor that a path such as ``/dev/stdout`` names, or None."""
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(file.parent)
        if folder in (f"/proc/{os.getpid()}/fd", "/dev/fd") and file.name.isdecimal():
            return int(file.name)
        if not file.is_symlink():
            break
        file = Path(folder, os.readlink(file))
    return None
