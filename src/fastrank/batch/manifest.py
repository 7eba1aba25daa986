"""The manifest of a run: how it ranks, drawn and written once, beside the log that it writes.

``_batch.json`` is in the log's directory, where readers of logs ignore it. It contains the run's
key, so that a part that is tried again later, by any engine, gives the same rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

import fastrank
from fastrank.atomic import leftovers, replacing, sync
from fastrank.batch.sharded import Shard
from fastrank.batch.users import RankUsers, Unknown
from fastrank.catalog import RNG_VERSION
from fastrank.eventlog import filters
from fastrank.expressions import Params
from fastrank.files import is_data
from fastrank.ids import Ids
from fastrank.inputs import shown
from fastrank.policies import Policy
from fastrank.policies.spec import written
from fastrank.rules import Rules
from fastrank.run import Run

__all__ = ["MANIFEST", "begin", "begun", "held", "prepared", "read_manifest", "record", "settle"]

MANIFEST = "_batch.json"
_FORMAT = 1
# Seconds. A worker that a killed process was just starting holds its lock until it has started.
_UNLOCKED_WITHIN = 1.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of a manifest, what a run is not another one by.
_BESIDES = {"format", "key", "begun", "fastrank", "model", "shards", "user_column"}


def begin(
    output: str | os.PathLike[str],
    *,
    run: str,
    model: str | os.PathLike[str] | None = None,
    k: int = 10,
    policy: Policy | None = None,
    user_column: str = "user_id",
    exclude: Ids | None = None,
    allow: Ids | None = None,
    score: str | None = None,
    params: Params | None = None,
    rules: Rules | None = None,
    unknown: Unknown = "fail",
    fallback: Policy | None = None,
    score_functions: Sequence[str] = (),
    shards: Sequence[Any] | None = None,
    shard_timeout: float = 600.0,
) -> dict[str, Any]:
    """Begin a run, or continue one: returns the arguments of `RankUsers`, for another engine.

    The first call draws the run's key and writes the manifest into the log's directory, together
    with the contents that rows name by hash. Later calls, for example after a kill, find the key
    there, and return the same arguments.

    Parameters
    ----------
    output : path
        Directory of the log; created if absent.
    run : str
        The run's name: ``"2026-11-30"``, say.
    model : path, optional
        Not where there are `shards`.
    k, policy, user_column, exclude, allow, score, params, rules, unknown, fallback, score_functions
        As for `RankUsers`.
    shards, shard_timeout
        As for `RankUsers`. A later call may name other actors, of the same shards in their order.

    Returns
    -------
    dict
        Keyword arguments of `RankUsers`. They contain the key: keep it from anyone who could use it
        to choose rankings before the run.

    Raises
    ------
    ValueError
        If an argument is invalid, or the directory holds other data or another run; the message
        names the argument, or how the runs differ.
    ConnectionError
        If a shard does not answer; the directory is left as it was.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> model, log = tempfile.mkdtemp(), tempfile.mkdtemp()
    >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
    >>> fr.Model(catalog, ["ann", "bob"], [[1.0, 0.0], [0.0, 1.0]]).save(model)
    >>> rank = begin(log, run="2026-11-30", model=model, k=1, policy=fr.PlackettLuce(0.5))
    >>> again = begin(log, run="2026-11-30", model=model, k=1, policy=fr.PlackettLuce(0.5))
    >>> again == rank
    True
    >>> begin(log, run="2026-12-01", model=model, k=1, policy=fr.PlackettLuce(0.5))
    Traceback (most recent call last):
        ...
    ValueError: output: ... holds another run: its run is '2026-11-30', not '2026-12-01'
    """
    directory = Path(output)
    asked: dict[str, Any] = {
        "run": run,
        "model": model,
        "k": k,
        "policy": policy,
        "user_column": user_column,
        "exclude": exclude,
        "allow": allow,
        "score": score,
        "params": params,
        "rules": rules,
        "unknown": unknown,
        "fallback": fallback,
        "score_functions": score_functions,
        "shards": shards,
        "shard_timeout": shard_timeout,
    }
    arguments, content = prepared(directory, **asked)
    directory.mkdir(parents=True, exist_ok=True)
    settle(directory, RankUsers(**arguments), content)
    arguments, _ = prepared(directory, **asked)  # if two begin it at once, one draws the key
    return arguments


def prepared(
    directory: Path, *, run: str, model: str | os.PathLike[str] | None = None, **asked: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `RankUsers`, and the manifest: the existing one, or one to be written.

    Raises
    ------
    ValueError
        As in `begin`.
    """
    drawn, now = Run(run), time.time_ns() // 1000
    where = None if model is None else os.path.abspath(model)
    ranker = RankUsers(where, drawn, ts=now, **asked)
    ranker.policy = ranker._source.asked(ranker.policy)
    content = _said(ranker)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"output: {directory} is a file")
    if (directory / MANIFEST).exists():
        found = read_manifest(directory)
        for name, value in content.items():
            if name not in _BESIDES and found.get(name) != value:
                raise ValueError(
                    f"output: {directory} holds another run: its {name} is"
                    f" {shown(found.get(name))}, not {shown(value)}"
                )
        content = found
    else:
        strange = sorted(filter(is_data, os.listdir(directory))) if directory.exists() else []
        if set(strange) - {filters.FOLDER}:
            raise ValueError(f"output: {directory} holds {strange[0]!r}, which belongs to no run")
    arguments = {
        "model": ranker.model,
        "run": Run(run, key=bytes.fromhex(content["key"])),
        "ts": begun(content),
        **asked,
        "policy": ranker.policy,
        "model_version": ranker._about.version,
    }
    return arguments, content


def settle(directory: Path, ranker: RankUsers, content: Mapping[str, Any]) -> None:
    """Write a run's manifest, and the contents that its rows name by hash, unless one exists."""
    if not (directory / MANIFEST).exists():
        for name, values in ranker.contents.items():
            filters.save(directory, name, values)
        _write_first(directory / MANIFEST, content)


def begun(manifest: Mapping[str, Any]) -> int:
    """When the run began, in microseconds since 1970, UTC."""
    return (datetime.fromisoformat(manifest["begun"]) - _EPOCH) // timedelta(microseconds=1)


def _said(ranker: RankUsers) -> dict[str, Any]:
    """A run as its manifest has it."""
    policy, fallback, about = ranker.policy, ranker.fallback, ranker._about
    row = _tried(ranker)
    assert policy is not None  # the model's own has been looked up
    lists = {"exclude": ranker.exclude, "allow": ranker.allow}
    of_lists = {
        name: None if ids is None else {"ids": len(ids), "hash": filters.filter_id(ids)}
        for name, ids in lists.items()
    }
    return {
        "format": _FORMAT,
        "run": ranker.run.name,
        "key": ranker.run.key.hex(),
        "begun": (_EPOCH + timedelta(microseconds=ranker.ts)).isoformat(),
        "fastrank": fastrank.__version__,
        "rng_version": RNG_VERSION,
        "model": ranker.model,
        "shards": _said_of_shards(ranker),
        "model_version": about.version,
        "catalog_version": about.catalog_version,
        "k": ranker.k,
        "policy": written(policy),
        "user_column": ranker.user_column,
        **of_lists,
        # With their contents: a function of the same name may have changed.
        "score": row["score"],
        "rules": row["rules"],
        "unknown": ranker.unknown,
        "fallback": None if fallback is None else written(fallback),
    }


def _said_of_shards(ranker: RankUsers) -> list[dict[str, Any]] | None:
    source = ranker._source
    if isinstance(source, Shard):
        return None
    names = ("path", "n_items", "version", "catalog_version")
    return [{name: getattr(each, name) for name in names} for each in source.each]


def _tried(ranker: RankUsers) -> dict[str, Any]:
    """The row of the model's first user: what no call can use is refused before there is a run."""
    row: dict[str, Any] = ranker.rank([ranker._about.first_user]).to_pylist()[0]
    if ranker.unknown == "fallback":
        ranker._rows(["nobody"], np.array([-1]))
    return row


def _write_first(file: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest completely, unless one exists by now."""
    temporary = file.with_name(f".{file.name}.{os.urandom(8).hex()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        sync(temporary)
        with contextlib.suppress(FileExistsError):  # if two begin it, one draws the key
            os.link(temporary, file)
        sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a log's directory; ValueError if it is not valid."""
    file = directory / MANIFEST
    if not file.exists():
        raise ValueError(f"{directory} holds no run: it has no {MANIFEST}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError(f"format {shown(found['format'])}, where this fastrank has {_FORMAT}")
        bytes.fromhex(found["key"])
        begun(found)
        found["run"].encode()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"output: {file}: not the manifest of a run: {error}") from None
    content: dict[str, Any] = found
    return content


def record(directory: Path, **more: Any) -> None:
    """Add to a manifest what was ranked; the file is replaced as a whole."""
    content = {**read_manifest(directory), **more}
    with replacing(directory / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        sync(temporary)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Lock a log's directory for this process, and remove what a killed process left unfinished.

    The directory is created if absent, and removed again if it stays empty.

    Raises
    ------
    ValueError
        If another process has locked it, or it is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"output: {directory} is a file")
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        until = time.monotonic() + _UNLOCKED_WITHIN
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ValueError(
                        f"output: {directory}: another process writes to it now"
                    ) from None
            time.sleep(0.02)
        _remove_leftovers(directory)
        try:
            yield
        finally:
            _remove_leftovers(directory)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                directory.rmdir()
        raise
    finally:
        os.close(descriptor)


def _remove_leftovers(directory: Path) -> None:
    for leftover, _ in leftovers(directory):
        leftover.unlink(missing_ok=True)
