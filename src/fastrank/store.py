"""Store arrays in directories: written atomically, opened as memory maps, checked by a manifest.

A directory holds ``manifest.json`` and one ``.npy`` file for each array, named by content. The
manifest is written last and replaced atomically, so a directory always has either the old content
or the new one. Only files that the manifest does not name are removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import mmap
import os
import re
import struct
import time
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrank.arraytypes import AnyArray
from fastrank.atomic import leftovers, replacing, sync
from fastrank.files import is_data

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "array_digest",
    "content_hash",
    "files_of",
    "read",
    "write",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_FORMAT = "fastrank"
# Data starts on a page boundary, so that mapped arrays are aligned for any instruction set.
_HEADER_BYTES = 4096
_ARRAY_FILE = re.compile(r"[a-z_]+-[0-9a-f]{16}\.npy")
# Errors of fsync on a directory if the file system does not support it.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
_PATIENCE = 1.0  # seconds of waiting for another writer before a warning
_LOOKS = 1000  # attempts to read a directory that is replaced again and again

_LOG = logging.getLogger("fastrank.store")


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Make a version 1.0 .npy header of exactly `_HEADER_BYTES`."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    size = _HEADER_BYTES - 10
    body = text.encode("latin1").ljust(size - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", size) + body


def _bytes(array: AnyArray) -> memoryview:
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def array_digest(array: AnyArray) -> str:
    """Compute the SHA-256 of the file that `write` makes of an array."""
    import hashlib  # late: loading OpenSSL takes a tenth of `import fastrank`

    digest = hashlib.sha256(_header(array.dtype, array.shape))
    digest.update(_bytes(array))
    return digest.hexdigest()


def content_hash(content: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of a JSON object with sorted keys."""
    import hashlib

    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write(
    directory: str | os.PathLike[str],
    meta: Mapping[str, Any],
    arrays: Mapping[str, AnyArray],
    digests: Mapping[str, str],
) -> None:
    """Write arrays and manifest; an existing fastrank directory is replaced.

    Parameters
    ----------
    directory : path
        Made if absent. A directory with other files is refused; names that begin with a dot, and
        ``lost+found``, are ignored.
    meta : mapping
        JSON values to keep in the manifest.
    arrays, digests : mapping
        By name; `digests` as `array_digest` returns them.

    Raises
    ------
    ValueError
        If the directory was not written by fastrank.
    OSError
        If the disk fails; the previous content is then untouched.

    Notes
    -----
    Writers of one directory wait for each other; after a second the log (``fastrank.store``) says
    so. Files of killed writers are removed before anything is written, so that they cannot keep a
    disk full. The new content takes effect when its manifest is in place. Later failures, in
    removing old files or in confirming the last change to the disk, are logged, not raised.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise ValueError(f"directory: {path} is a file")
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(path):
            _write_locked(path, meta, arrays, digests)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # another writer may have it by now
                path.rmdir()
        raise


def _write_locked(
    path: Path,
    meta: Mapping[str, Any],
    arrays: Mapping[str, AnyArray],
    digests: Mapping[str, str],
) -> None:
    _refuse_foreign(path)
    _remove_unnamed(path)
    entries: dict[str, Any] = {}
    try:
        for name, array in arrays.items():
            file = path / f"{name}-{digests[name][:16]}.npy"
            entries[name] = {
                "file": file.name,
                "sha256": digests[name],
                "bytes": _HEADER_BYTES + array.nbytes,
                "dtype": array.dtype.str,
                "shape": list(array.shape),
            }
            _write_file(file, _header(array.dtype, array.shape), _bytes(array))
        _sync_directory(path)  # the files must be durable before the manifest names them
        manifest = {"format": _FORMAT, "format_version": FORMAT_VERSION, **meta, "arrays": entries}
        manifest["manifest_sha256"] = content_hash(manifest)
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        _write_file(path / MANIFEST, text.encode())
    except BaseException:
        # By the manifest on disk: an interrupt may have come after the new one was in place.
        _remove_unnamed(path)
        raise
    _remove_unnamed(path)
    try:
        _sync_directory(path)
    except OSError as error:
        _LOG.warning(
            "%s: written and in use, but the disk did not confirm it, so that a power cut may undo"
            " it: %s",
            path,
            error,
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a directory against other writers; readers need no lock."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    patience = time.monotonic() + _PATIENCE
    while time.monotonic() < patience:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
    _LOG.warning("%s: waiting for another process that is saving there", path)
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _sync_directory(path: Path) -> None:
    """Make the names in a directory durable, if its file system can."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _refuse_foreign(path: Path) -> None:
    """Raise a ValueError if the files of a directory are not fastrank's."""
    try:
        with _opened(path / MANIFEST) as stream:
            ours = json.loads(stream.read())["format"] == _FORMAT
    except FileNotFoundError:
        for name in sorted(os.listdir(path)):
            if is_data(name) and not _ARRAY_FILE.fullmatch(name):
                raise ValueError(
                    f"directory: {path} has no {MANIFEST} but other files, such as {name}"
                ) from None
        ours = True
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        ours = False
    if not ours:
        raise ValueError(f"directory: {path} has a {MANIFEST} that is not fastrank's")


def _remove_unnamed(path: Path) -> None:
    """Remove fastrank's files that the manifest does not name: old ones, and of killed writers.

    Files that cannot be removed are left for the next time.
    """
    try:
        try:
            text = (path / MANIFEST).read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            text = ""
        named = set(_ARRAY_FILE.findall(text))
        for file, name in leftovers(path):
            if name == MANIFEST or _ARRAY_FILE.fullmatch(name):
                file.unlink()
        for name in os.listdir(path):
            if _ARRAY_FILE.fullmatch(name) and name not in named:
                os.unlink(path / name)
    except OSError as error:
        _LOG.warning("%s: old files stay: %s", path, error)


def read(
    directory: str | os.PathLike[str], verify: bool = False
) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Read the manifest, and map its arrays read-only, without copies.

    Checks the manifest's own hash, the format version and every file's size, dtype and shape;
    with `verify`, every file's SHA-256 too.

    Raises
    ------
    ValueError
        If the directory is not as its writer left it; the message says why.
    """
    path = Path(directory)
    for look in range(1, _LOOKS + 1):
        with _manifest_of(path) as stream:
            try:
                manifest = _parsed(path, stream.read())
                return manifest, _read_arrays(path, _entries(path, manifest), verify)
            except (ValueError, FileNotFoundError, IsADirectoryError) as error:
                # An error only if the manifest is still the same: otherwise the directory may
                # have been replaced, and the files removed, in between.
                if look == _LOOKS or _is_there(path / MANIFEST, stream):
                    if isinstance(error, ValueError):
                        raise
                    what = "missing" if isinstance(error, FileNotFoundError) else "a folder"
                    name = Path(error.filename).name
                    raise ValueError(f"{path}: damaged: {name} is {what}") from None
    raise AssertionError  # the last look returns or raises


def _manifest_of(path: Path) -> BufferedReader:
    try:
        return _opened(path / MANIFEST)
    except FileNotFoundError:
        raise ValueError(f"{path}: not a fastrank directory: there is no {MANIFEST}") from None
    except NotADirectoryError:
        raise ValueError(f"{path}: not a fastrank directory: it is a file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: not a fastrank directory: {MANIFEST} is a folder") from None


def _is_there(file: Path, stream: BufferedReader) -> bool:
    """Say whether an open file is still the one of this name.

    No other file can have its inode number while it is open. A file that was replaced by another
    of the same content is thus recognised.
    """
    try:
        return os.path.samestat(file.stat(), os.fstat(stream.fileno()))
    except OSError:
        return False


def files_of(where: str | os.PathLike[str], manifest: bytes) -> tuple[str, dict[str, int]]:
    """Parse a manifest from any source: return its own hash, and each file's size by name.

    Files are always in the manifest's own directory.

    Raises
    ------
    ValueError
        If `read` would not accept the manifest; the message names `where`.
    """
    found = _parsed(where, manifest)
    files = {entry.file: entry.bytes for entry in _entries(where, found).values()}
    return content_hash(found), files


def _parsed(path: str | os.PathLike[str], content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: damaged: {MANIFEST} is not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: damaged: {MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{path}: {MANIFEST} is not one of fastrank's")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {manifest.get('format_version')!r}; "
            f"this fastrank reads version {FORMAT_VERSION}"
        )
    stated = manifest.pop("manifest_sha256", None)
    if stated != content_hash(manifest):
        raise ValueError(f"{path}: damaged: {MANIFEST} does not match its own hash")
    return manifest


def _entries(path: str | os.PathLike[str], manifest: dict[str, Any]) -> dict[str, _Entry]:
    try:
        entries = {
            str(name): _Entry(
                str(e["file"]), e["bytes"], np.dtype(e["dtype"]), tuple(e["shape"]), e["sha256"]
            )
            for name, e in manifest["arrays"].items()
        }
        described = all(entry.is_sound() for entry in entries.values())
    except Exception:  # parsing a dtype may raise anything
        described = False
    if not described:
        raise ValueError(f"{path}: damaged: {MANIFEST} does not describe its arrays")
    for entry in entries.values():
        if not _ARRAY_FILE.fullmatch(entry.file):
            raise ValueError(f"{path}: {MANIFEST} names a file in another directory: {entry.file}")
    return entries


def _read_arrays(path: Path, entries: dict[str, _Entry], verify: bool) -> dict[str, AnyArray]:
    with contextlib.ExitStack() as stack:
        # All files are opened before any is read, so that none can be replaced in between.
        streams = [stack.enter_context(_opened(path / entry.file)) for entry in entries.values()]
        return {
            name: _mapped(path, stream, entry, verify)
            for stream, (name, entry) in zip(streams, entries.items(), strict=True)
        }


class _Entry(NamedTuple):
    """A manifest's entry about an array."""

    file: str
    bytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sha256: str

    def is_sound(self) -> bool:
        if not all(type(length) is int and length >= 0 for length in self.shape):
            return False
        size = math.prod((*self.shape, self.dtype.itemsize))
        return self.dtype.kind in "iufU" and self.bytes == _HEADER_BYTES + size


def _opened(file: Path) -> BufferedReader:
    # Without blocking: the name may be a pipe that nobody ever writes to.
    return open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def _mapped(path: Path, stream: BufferedReader, entry: _Entry, verify: bool) -> AnyArray:
    import hashlib

    size = os.fstat(stream.fileno()).st_size
    if size != entry.bytes:
        raise ValueError(f"{path}: damaged: {entry.file} has {size} bytes, not {entry.bytes}")
    try:
        if verify and hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
            raise ValueError("it does not match its SHA-256")

        content = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
        if content[:_HEADER_BYTES] != _header(entry.dtype, entry.shape):
            raise ValueError(f"it does not hold {entry.dtype.str} of shape {entry.shape}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {entry.file}: {error}") from None
    return np.ndarray(entry.shape, entry.dtype, content, _HEADER_BYTES)


def _write_file(file: Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically; maps of an old file of this name do not change."""
    with replacing(file) as temporary:
        with temporary.open("xb") as stream:
            for part in parts:
                stream.write(part)
        sync(temporary)
