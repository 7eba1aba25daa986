"""Places that files are read from and written to: a local folder, or a store such as S3.

A folder needs only Python. All other places are accessed by fsspec, by their URLs; the extra ``s3``
installs support for S3.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fastrank.atomic import replacing, sync

__all__ = ["Entry", "Place", "check", "is_url", "place"]

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_FILE = "file://"
# Stores that write objects atomically.
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}


class Entry(NamedTuple):
    """A file or a folder in a place.

    Attributes
    ----------
    size : int or None
        Bytes; None for a folder.
    stamp : str
        Changes whenever the content changes.
    """

    size: int | None
    stamp: str


class Place(Protocol):
    """A place with named files. Names are relative, with ``/`` between their parts.

    Errors of the place are passed through: a FileNotFoundError if a name does not exist, and any
    other error of a store.
    """

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """List the entries directly in a folder, by name."""

    def read(self, name: str) -> bytes:
        """Read a whole file."""

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file of the place to a local file, by reading, not mapping."""

    def put(self, file: Path, name: str) -> None:
        """Copy a local file to the place, atomically."""


def is_url(text: object) -> bool:
    """Say whether a text is a URL.

    Examples
    --------
    >>> is_url("s3://bucket/models"), is_url("models/"), is_url("C:/models")
    (True, False, False)
    """
    return isinstance(text, str) and _URL.fullmatch(text) is not None


def check(where: str | os.PathLike[str]) -> None:
    """Check that a place can be used, by its URL and the installed packages, without access.

    Raises
    ------
    ValueError
        If the URL names no place, or fsspec does not know its scheme.
    ModuleNotFoundError
        If a package is missing.
    """
    found = _URL.fullmatch(os.fspath(where))
    if found is None:
        return
    scheme, path = found.groups()
    if not path.strip("/"):
        raise ValueError(f"{where}: it names no place")
    if scheme == "file":
        return
    from fsspec.registry import known_implementations

    if scheme not in known_implementations:
        raise ValueError(f"{where}: expected a folder, or s3://BUCKET/PREFIX")
    package = known_implementations[scheme]["class"].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def place(where: str | os.PathLike[str]) -> Place:
    """Return the place at a path or URL.

    Raises
    ------
    ValueError, ModuleNotFoundError
        As `check`.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = Path(folder, "PIN").write_text("2026-12-01")
    >>> place(folder).read("PIN")
    b'2026-12-01'
    """
    check(where)
    text = os.fspath(where)
    if not is_url(text) or text.startswith(_FILE):
        return _Folder(Path(text.removeprefix(_FILE)))
    return _Store(text)


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self, folder: str = "") -> dict[str, Entry]:
        found = {}
        for name in os.listdir(self._path / folder):
            try:
                stat = (self._path / folder / name).stat()
            except FileNotFoundError:  # it was removed, or is a broken link
                continue
            is_folder = (self._path / folder / name).is_dir()
            found[name] = Entry(None if is_folder else stat.st_size, str(stat.st_mtime_ns))
        return found

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def fetch(self, name: str, file: Path) -> None:
        shutil.copyfile(self._path / name, file)

    def put(self, file: Path, name: str) -> None:
        target = self._path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(file, temporary)
            sync(temporary)


class _Store:
    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        # Otherwise fsspec would cache its first listing, and the settings at that time.
        found: tuple[Any, str] = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        self._files, self._root = found
        self._is_whole = url.partition("://")[0] in _WHOLE

    def entries(self, folder: str = "") -> dict[str, Entry]:
        path = self._path(folder)
        self._files.invalidate_cache()
        found = {}
        for each in self._files.ls(path, detail=True):
            name = each["name"].rstrip("/").rpartition("/")[2]
            if each["name"].strip("/") == path.strip("/"):  # some tools write a marker of a folder
                continue
            size = None if each["type"] == "directory" else int(each["size"])
            stamps = (each.get(key) for key in ("ETag", "LastModified", "mtime", "created"))
            found[name] = Entry(size, str(next(filter(None, stamps), "")))
        return found

    def read(self, name: str) -> bytes:
        content: bytes = self._files.cat_file(self._path(name))
        return content

    def fetch(self, name: str, file: Path) -> None:
        self._files.get_file(self._path(name), str(file))

    def put(self, file: Path, name: str) -> None:
        target = self._path(name)
        if self._is_whole:
            self._files.put_file(str(file), target)
            return
        folder, _, last = target.rpartition("/")
        self._files.makedirs(folder, exist_ok=True)
        self._files.put_file(str(file), f"{folder}/.{last}.tmp")
        self._files.mv(f"{folder}/.{last}.tmp", target)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")
