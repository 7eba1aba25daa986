"""Models that arrive: a place is watched for versions, and the last complete one is served.

A version is a directory made by `fastrank build`. It is copied to a new directory on this machine,
where its hashes are verified and requests of every kind are made. Only then does the link that
servers open lead to it, and the previous version is removed. Nothing in the watched place itself is
ever mapped.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from fastrank import places, store
from fastrank.atomic import leftovers, replacing, sync
from fastrank.extras import missing_extra
from fastrank.files import is_data
from fastrank.opening import open_directory
from fastrank.places import Place
from fastrank.scoring import imported
from fastrank_serving.app import rehearse_apart
from fastrank_serving.service import open_model
from fastrank_serving.settings import Settings

__all__ = ["PIN", "Watcher", "newest_first"]

PIN = "PIN"  # a file beside the versions that names the one to serve
_LOG = logging.getLogger("fastrank.serving")
_DIGITS = re.compile(r"(\d+)")
_NONE = "/"  # stands for no version
_AGAIN = 300.0  # seconds until a copy that failed because of the machine is tried again
_COPY = re.compile(r"[0-9a-f]{16}")  # a copy, named by the start of its manifest's hash


def newest_first(names: Iterable[str]) -> list[str]:
    """Sort versions by name, newest first; numbers in names are compared as numbers.

    Examples
    --------
    >>> newest_first(["v9", "v10", "v1"])
    ['v10', 'v9', 'v1']
    >>> newest_first(["2026-11-30", "2026-12-01"])
    ['2026-12-01', '2026-11-30']
    """
    return sorted(names, key=_order, reverse=True)


def _order(name: str) -> tuple[list[tuple[str, int]], str]:
    parts = _DIGITS.split(name)
    pairs = zip(parts[::2], [*parts[1::2], "-1"], strict=True)
    return [(text, int(number)) for text, number in pairs], name


class _RefusedError(Exception):
    """A version cannot be served in its present state; logged once for each kind of reason."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Watcher:
    """Looks for versions, and puts the right one into service.

    Parameters
    ----------
    settings : Settings
        With `watch`, and a directory for copies.
    registry : CollectorRegistry
        For the metrics.
    """

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        assert settings.watch is not None
        assert settings.copy is not None
        self._settings = settings
        self._where = settings.watch
        self._link = settings.copy
        self._place: Place | None = None
        self._served: str | None = None  # its name, once this watcher has brought it
        self._said: dict[str, str] = {}  # kind of the problem by version; "" is the place itself
        # Versions that could not be copied: their state then, the reason, and until when it holds.
        self._in_vain: dict[str, tuple[object, _RefusedError, float]] = {}
        self._in_force = Gauge(
            "fastrank_watch_version_info",
            "1 for the watched version that servers were last told to serve.",
            ["version"],
            registry=registry,
        )
        self._looked = Gauge(
            "fastrank_watch_last_look_timestamp_seconds",
            "When the watched place was last seen.",
            registry=registry,
        )
        self._failures = Counter(
            "fastrank_watch_failures",
            "Looks that failed and versions that were refused, each once for each reason.",
            ["what"],
            registry=registry,
        )
        for what in ("look", "version"):
            self._failures.labels(what)
        self._clean()

    def look(self) -> bool:
        """Look once; return whether another version is in force now. Problems are logged."""
        try:
            if self._place is None:
                self._place = places.place(self._where)
            names = self._place.entries()
            versions = [n for n, entry in names.items() if entry.size is None and is_data(n)]
            pin = self._settings.pin
            if pin is None and PIN in names:
                pin = self._place.read(PIN).decode("utf-8", "replace").strip()
        except Exception as error:  # stores may raise anything
            self._failures.labels("look").inc()
            self._say("", type(error).__name__, f"cannot be watched: {_why(error)}")
            return False
        self._looked.set(time.time())
        self._mended("", "is watched again")
        if pin is not None:
            wanted = [pin] if pin in versions else []
            missing = f"the pinned version {pin!r} is missing"
        else:
            wanted = newest_first(versions)
            missing = "there is no version, which would be a directory"
            if store.MANIFEST in names:
                missing = "it is a version itself: watch the directory that contains it"
        if wanted:
            self._said.pop(_NONE, None)
        else:
            self._say(_NONE, missing, missing)
        for name in wanted:
            is_back = pin is None and self._served is not None
            if is_back and _order(name) < _order(str(self._served)):
                break  # the version that serves was removed there, and is newer
            try:
                is_new = self._bring(name)
            except Exception as error:
                self._refuse(name, error)
                continue
            self._mended(name, f"the version {name!r} is complete now")
            return is_new
        return False

    # ---- One version ------------------------------------------------------------------------

    def _bring(self, name: str) -> bool:
        """Put a version into service; return whether it is new. An error says why not."""
        assert self._place is not None
        try:
            manifest = self._place.read(f"{name}/{store.MANIFEST}")
        except FileNotFoundError:
            raise _RefusedError("not whole", f"it is incomplete: no {store.MANIFEST}") from None
        digest, files = store.files_of(name, manifest)
        target = self._link.with_name(digest[:16])
        if self._link.exists() and self._link.resolve() == target.resolve():
            self._is_served(name)
            return False
        there = self._place.entries(name)
        for file, size in files.items():
            found = there[file].size if file in there else None
            if found != size:
                what = "missing" if found is None else f"there with {found} bytes of {size}"
                raise _RefusedError("not whole", f"it is incomplete: {file} is {what}")
        state = digest, {file: there[file] for file in files}
        was, why, until = self._in_vain.get(name, (None, None, 0.0))
        if why is not None and was == state and time.monotonic() < until:
            raise why
        self._make_room(len(manifest) + sum(files.values()))
        began = time.monotonic()
        try:
            with replacing(target) as copy:
                copied = self._copy(name, manifest, files, copy)
                self._test(copy)
            self._exchange(target)
        except Exception as error:
            again = math.inf if isinstance(error, ValueError) else began + _AGAIN
            words = _why(error).replace(str(copy), name)
            why = _RefusedError(type(error).__name__, words)
            self._in_vain[name] = state, why, again
            raise why from None
        self._clean()
        _LOG.info(
            "%s: the version %r was copied in %.1f s, tested in %.1f, and is in force",
            self._where,
            name,
            copied - began,
            time.monotonic() - copied,
        )
        self._is_served(name)
        return True

    def _copy(self, name: str, manifest: bytes, files: Iterable[str], copy: Path) -> float:
        """Copy into a directory of its own; return when that was done."""
        assert self._place is not None
        copy.mkdir()
        for file in files:
            self._place.fetch(f"{name}/{file}", copy / file)
            sync(copy / file)
        (copy / store.MANIFEST).write_bytes(manifest)
        sync(copy / store.MANIFEST)
        sync(copy)
        return time.monotonic()

    def _make_room(self, size: int) -> None:
        held = sum(file.stat().st_size for file in self._link.parent.rglob("*") if file.is_file())
        most = self._settings.watch_bytes
        if held + size > most:
            raise _RefusedError(
                "no room",
                f"its copy of {size} bytes, beside {held} of the version that serves, is more than"
                f" --watch-bytes, {most}",
            )

    def _test(self, copy: Path) -> None:
        """Verify hashes and contents, then answer requests of every kind."""
        settings = self._settings
        open_directory(copy, verify=True, functions=imported(settings.score_functions))
        loaded = open_model(settings, copy, settings.regime, warns=False)  # the server warns itself
        asyncio.run(rehearse_apart(settings, loaded))
        before = settings.directory
        if settings.log_directory is not None and before is not None:
            kinds = {store.read(each)[1]["item_ids"].dtype.kind for each in (before, copy)}
            if len(kinds) > 1:
                raise ValueError("its item ids are of another kind than those of the log")

    def _exchange(self, target: Path) -> None:
        with replacing(self._link) as temporary:
            temporary.symlink_to(target.name)
        sync(self._link.parent)

    def _clean(self) -> None:
        """Remove all copies but the one in force: processes that mapped their files keep them."""
        gc.collect()  # unmaps what was tested
        kept = {self._link.name, os.readlink(self._link)} if self._link.is_symlink() else set()
        for path in self._link.parent.iterdir():
            if path.name not in kept and _COPY.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        for path, name in leftovers(self._link.parent):
            if name != self._link.name and not _COPY.fullmatch(name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    # ---- What is said -----------------------------------------------------------------------

    def _is_served(self, name: str) -> None:
        self._served = name
        self._in_force.clear()
        self._in_force.labels(name).set(1)

    def _refuse(self, name: str, error: Exception) -> None:
        kind = error.kind if isinstance(error, _RefusedError) else type(error).__name__
        if self._say(name, kind, f"the version {name!r} is not served: {_why(error)}"):
            self._failures.labels("version").inc()

    def _say(self, name: str, kind: str, line: str) -> bool:
        """Log the problem, unless already logged; return whether it was new."""
        if self._said.get(name) == kind:
            return False
        self._said[name] = kind
        goes_on = "" if self._settings.directory is None else "; the current model keeps serving"
        _LOG.error("%s: %s%s", self._where, line, goes_on)
        return True

    def _mended(self, name: str, line: str) -> None:
        if self._said.pop(name, None) is not None:
            _LOG.info("%s: %s", self._where, line)


def _why(error: Exception) -> str:
    hint = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
    return hint or " ".join(str(error).split()) or type(error).__name__
