"""Directories of arrays: written whole or not at all, opened as maps, checked against a manifest.

A directory holds ``manifest.json`` and one ``.npy`` file for each array, named by content. The
manifest is written last and replaced atomically, so a directory is always the old content or the
new one; files are removed only when no manifest names them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["FORMAT_VERSION", "MANIFEST", "array_digest", "content_hash", "read", "write"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_FORMAT = "fastrank"
# Data starts on a page boundary: a mapped array is aligned for any instruction set.
_HEADER_BYTES = 4096
_ARRAY_FILE = re.compile(r"[a-z_]+-[0-9a-f]{16}\.npy")
_LEFTOVER = re.compile(r"\.[a-z_.0-9-]+\.[0-9a-f]{16}\.tmp")

Array: TypeAlias = npt.NDArray[Any]


def _header(array: Array) -> bytes:
    """A version 1.0 .npy header of exactly `_HEADER_BYTES`."""
    text = f"{{'descr': {array.dtype.str!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    size = _HEADER_BYTES - 10
    body = text.encode("latin1").ljust(size - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", size) + body


def _bytes(array: Array) -> memoryview:
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def array_digest(array: Array) -> str:
    """SHA-256 of the file that `write` makes of an array."""
    digest = hashlib.sha256(_header(array))
    digest.update(_bytes(array))
    return digest.hexdigest()


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, keys sorted."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write(
    directory: str | os.PathLike[str],
    meta: Mapping[str, Any],
    arrays: Mapping[str, Array],
    digests: Mapping[str, str],
) -> None:
    """Writes arrays and manifest; an existing fastrank directory is replaced.

    Parameters
    ----------
    directory : path
        Made if absent. A directory of anything else is refused.
    meta : mapping
        JSON values to keep in the manifest.
    arrays, digests : mapping
        By name; `digests` as `array_digest` gives them.

    Raises
    ------
    ValueError
        If the directory is not ours to replace.
    OSError
        If the disk fails; what was there before is untouched then.
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
            with contextlib.suppress(OSError):  # another writer's by now
                path.rmdir()
        raise


def _write_locked(
    path: Path,
    meta: Mapping[str, Any],
    arrays: Mapping[str, Array],
    digests: Mapping[str, str],
) -> None:
    replaced = _own_files(path)
    entries: dict[str, Any] = {}
    new: list[Path] = []
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
            if not file.exists():
                new.append(file)
            _write_file(file, _header(array), _bytes(array))
        manifest = {"format": _FORMAT, "format_version": FORMAT_VERSION, **meta, "arrays": entries}
        manifest["manifest_sha256"] = content_hash(manifest)
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        _write_file(path / MANIFEST, text.encode())
    except BaseException:
        for file in new:
            file.unlink(missing_ok=True)
        raise
    kept = {entry["file"] for entry in entries.values()}
    for file in replaced:
        if file.name not in kept:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time; readers need no lock."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _own_files(path: Path) -> list[Path]:
    """Our files in a directory, those of killed saves too. A ValueError if it is someone else's."""
    others = []
    own = []
    for file in path.iterdir():
        if _ARRAY_FILE.fullmatch(file.name) or _LEFTOVER.fullmatch(file.name):
            own.append(file)
        elif file.name != MANIFEST:
            others.append(file.name)
    try:
        ours = json.loads((path / MANIFEST).read_bytes())["format"] == _FORMAT
    except FileNotFoundError:
        if others:
            raise ValueError(
                f"directory: {path} holds no {MANIFEST}, but other files, such as {others[0]}"
            ) from None
        ours = True
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        ours = False
    if not ours:
        raise ValueError(f"directory: {path} holds a {MANIFEST} that is not fastrank's")
    return own


def read(
    directory: str | os.PathLike[str], verify: bool = False
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The manifest and its arrays, mapped read-only; nothing is copied.

    Checks the manifest's own hash, the format version and every file's size, dtype and shape;
    with `verify`, every file's SHA-256 too.

    Raises
    ------
    ValueError
        With the reason, if the directory is not what its writer left.
    """
    path = Path(directory)
    seen: dict[str, Any] | None = None
    while True:
        manifest = _read_manifest(path)
        try:
            return manifest, _read_arrays(path, manifest, verify)
        except FileNotFoundError as error:
            # A new manifest: the directory was replaced between our two looks.
            if manifest == seen:
                missing = Path(error.filename).name
                raise ValueError(f"{path}: damaged: {missing} is missing") from None
        seen = manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: not a fastrank directory: there is no {MANIFEST}") from None
    except NotADirectoryError:
        raise ValueError(f"{path}: not a fastrank directory: it is a file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: not a fastrank directory: {MANIFEST} is a folder") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: damaged: {MANIFEST} is not UTF-8 text") from None
    try:
        manifest = json.loads(text)
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


def _read_arrays(path: Path, manifest: dict[str, Any], verify: bool) -> dict[str, Array]:
    try:
        entries = {
            str(name): (
                str(e["file"]),
                int(e["bytes"]),
                str(e["dtype"]),
                list(e["shape"]),
                e["sha256"],
            )
            for name, e in manifest["arrays"].items()
        }
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise ValueError(f"{path}: damaged: {MANIFEST} does not describe its arrays") from None
    arrays = {}
    for name, (file_name, n_bytes, dtype, shape, sha256) in entries.items():
        if not _ARRAY_FILE.fullmatch(file_name):
            raise ValueError(f"{path}: {MANIFEST} names a file elsewhere: {file_name}")
        file = path / file_name
        size = file.stat().st_size
        if size != n_bytes:
            raise ValueError(f"{path}: damaged: {file_name} has {size} bytes, not {n_bytes}")
        if verify:
            with file.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                    raise ValueError(f"{path}: damaged: {file_name} does not match its SHA-256")
        try:
            array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a header is Python's, and what reads it raises what it likes
            raise ValueError(f"{path}: damaged: {file_name}: {error}") from None
        if array.dtype.str != dtype or list(array.shape) != shape:
            raise ValueError(
                f"{path}: damaged: {file_name} holds {array.dtype.str} {list(array.shape)}, "
                f"not {dtype} {shape}"
            )
        arrays[name] = array
    return arrays


def _write_file(file: Path, *parts: bytes | memoryview) -> None:
    """Writes beside the target, then renames: a file is whole or absent, and maps of an old one
    stay what they were."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
