"""Places that files come from and go to: a folder of this machine, or a store such as S3.

A folder needs nothing but Python. All other places are read by fsspec, by their URLs; the extra
``s3`` brings S3.
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
# Stores in which an object exists whole, or not at all.
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}


class Entry(NamedTuple):
    """What a place has under a name.

    Attributes
    ----------
    size : int or None
        Bytes; None for a folder.
    stamp : str
        Another one once the content is another.
    """

    size: int | None
    stamp: str


class Place(Protocol):
    """Names are relative, with ``/`` between their parts.

    Errors of the place pass through: a FileNotFoundError for what does not exist, and anything else
    that a store may raise.
    """

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """What is directly in a folder."""

    def read(self, name: str) -> bytes:
        """All of a file."""

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file of it to one of this machine, read and not mapped."""

    def put(self, file: Path, name: str) -> None:
        """Copy a file of this machine to it; under the name it is whole, or absent."""


def is_url(text: object) -> bool:
    """Whether a place is said by a URL.

    Examples
    --------
    >>> is_url("s3://bucket/models"), is_url("models/"), is_url("C:/models")
    (True, False, False)
    """
    return isinstance(text, str) and _URL.fullmatch(text) is not None


def check(where: str | os.PathLike[str]) -> None:
    """Whether a place can be used, by its URL and by what is installed; nothing is fetched.

    Raises
    ------
    ValueError
        If the URL names no place, or one of a kind that fsspec does not know.
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
    """The place at a path or URL.

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
            except FileNotFoundError:  # it went, or is a link that leads nowhere
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

        # Otherwise fsspec would keep its first listing, and the settings of that time.
        found: tuple[Any, str] = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        self._files, self._root = found
        self._is_whole = url.partition("://")[0] in _WHOLE

    def entries(self, folder: str = "") -> dict[str, Entry]:
        path = self._path(folder)
        self._files.invalidate_cache()
        found = {}
        for each in self._files.ls(path, detail=True):
            name = each["name"].rstrip("/").rpartition("/")[2]
            if each["name"].strip("/") == path.strip("/"):  # what some tools make of a folder
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
