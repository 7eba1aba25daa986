"""`run`: rank all users of some files into a log, part by part; a rerun does what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from fastrank.atomic import sync
from fastrank.batch import manifest
from fastrank.batch.onray import check_ray, ranked_by_ray
from fastrank.batch.parts import Part, Survey, parts_of, survey, user_files
from fastrank.batch.pool import ranked_by_processes
from fastrank.batch.sharded import as_shards, is_of_ray
from fastrank.batch.users import RankUsers
from fastrank.batch.work import Done, done_of, rank_part
from fastrank.cores import usable_cores
from fastrank.eventlog import filters
from fastrank.eventlog.paths import path_that_reads
from fastrank.files import Paths, is_data
from fastrank.inputs import as_count, shown

__all__ = ["Advance", "Engine", "Summary", "run"]

Engine: TypeAlias = Literal["local", "ray"]
Advance: TypeAlias = Callable[[int, int], None]
_ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class Summary:
    """Results of a run, over all attempts.

    Attributes
    ----------
    run : str
    users : int
        Number of users in the files.
    rows : int
        Number of rankings in the log.
    unknown : int
        Users that the model does not know: skipped, or ranked by the fallback.
    strangers : tuple of str
        The first few unknown users.
    empty : int
        Users with no item left to rank: their rows have no place.
    parts : int
        Number of files of the log.
    there : int
        Number of those that existed before this call.
    """

    run: str
    users: int
    rows: int
    unknown: int
    strangers: tuple[str, ...]
    empty: int
    parts: int
    there: int

    def to_dict(self) -> dict[str, Any]:
        """The summary in JSON's types."""
        return {**asdict(self), "strangers": list(self.strangers)}


def run(
    users: Paths,
    output: str | os.PathLike[str],
    *,
    run: str,
    model: str | os.PathLike[str] | None = None,
    processes: int | None = None,
    engine: Engine = "local",
    part_rows: int = 50_000,
    advance: Advance | None = None,
    **ranked_by: Any,
) -> Summary:
    """Rank all users of some files into a log; call it again after a kill, and it continues.

    All users are checked before the first one is ranked: a repeated user, or an unknown one
    (``unknown="fail"``), is refused while the log is still empty. Then each part, consecutive users
    of one file, becomes one file of the log, completely or not at all.

    Parameters
    ----------
    users : path or iterable of paths
        Parquet, CSV or JSON Lines files, directories of them, or globs, with a column of user ids.
    output : path
        Directory of the log, for this run only. Created if absent.
    run : str
        Name of the run.
    model : path
        A model's directory.
    processes : int, optional
        By default one per core; for Ray, as many actors as it has CPUs, less one. With 1, users are
        ranked in this process.
    engine : {"local", "ray"}
        Processes of this machine; or Ray, on the cluster that it is connected to, whose nodes must
        all see `model` and `output`.
    part_rows : int
        Most users in a part. A run that continues keeps the value of its start.
    advance : callable, optional
        Called with the number of users done, and of all users.
    **ranked_by
        `k`, `policy`, `user_column`, `shards` and others, as `begin` takes them.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If an argument is invalid, a user is not an id, repeated or unknown, or `output` holds
        another run, rankings of other users, or other data. The message names the argument, or the
        file, the row and the value.
    ModuleNotFoundError
        If the engine is missing; the message says what to install.
    ChildProcessError
        If a process is killed: what is done stays.
    ConnectionError
        If a shard does not answer: what is done stays.
    OSError
        If the disk refuses.

    Notes
    -----
    The log's rows have `displayed` 0: `fastrank.eventlog.join` with impressions sets what was
    shown. The order of rows and files has no meaning. Finding repeated users takes 24 bytes per
    user; each process holds the rows of one part in memory, about 300 bytes for ten places.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import fastrank as fr
    >>> folder = Path(tempfile.mkdtemp())
    >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
    >>> fr.Model(catalog, ["ann", "bob"], [[1.0, 0.0], [0.0, 1.0]]).save(folder / "model")
    >>> _ = (folder / "users.csv").write_text("user_id\\nann\\nbob\\n")
    >>> from fastrank import batch
    >>> asked = {"run": "2026-11-30", "model": folder / "model", "k": 1, "processes": 1}
    >>> asked["policy"] = fr.PlackettLuce(0.5)
    >>> done = batch.run(folder / "users.csv", folder / "log", **asked)
    >>> done.users, done.rows
    (2, 2)
    """
    if engine not in _ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(_ENGINES)}; got {shown(engine)}")
    if engine == "ray":
        check_ray()
    if processes is not None:
        as_count("processes", processes)
    shards = ranked_by.get("shards")
    if shards is not None and engine == "local" and processes != 1 and is_of_ray(as_shards(shards)):
        raise ValueError(
            'shards: actors of Ray are asked with engine="ray", or by this process (processes=1)'
        )
    rows = as_count("part_rows", part_rows)
    files = user_files(users)
    directory = Path(output)
    reads = path_that_reads(users, directory, "ranked.parquet")
    if reads is not None:
        raise ValueError(f"output: {directory} is among the files of users that {reads} stands for")
    with manifest.held(directory):
        arguments, content = manifest.prepared(directory, run=run, model=model, **ranked_by)
        ranker = RankUsers(**arguments)
        rows = content.setdefault("part_rows", rows)  # a run that is gone on with has its own
        known, column = ranker._source.find_users, ranker.user_column
        found = survey(
            parts_of(files, column, ranker.run, rows), lambda texts: np.less(known(texts), 0)
        )
        if found.unknown and ranker.unknown == "fail":
            raise ValueError(
                f"users: {found.unknown:,} of {found.users:,} are not in the model, the first"
                f' {shown(found.strangers[0])}; unknown="skip" leaves them out'
            )
        manifest.settle(directory, ranker, content)
        if manifest.read_manifest(directory)["key"] != content["key"]:
            raise ValueError(f"output: {directory}: another process has begun a run in it")
        done = _there(directory, found)
        there = len(done)
        total, users_done = found.users, sum(each.users for each in done.values())
        missing = (
            part for part in parts_of(files, column, ranker.run, rows) if part.name not in done
        )

        def tell(more: int) -> None:
            nonlocal users_done
            users_done += more
            if advance is not None:
                advance(users_done, total)

        tell(0)
        for each in _ranked(
            engine, _as_surveyed(missing, found), ranker, directory, processes, tell
        ):
            done[each.name] = each
        if done.keys() != found.parts.keys():
            raise ValueError("users: the files changed while they were ranked: run it again")
        sync(directory)
        manifest.record(
            directory,
            inputs=[str(file) for file in files],
            users={"users": found.users, "unknown": found.unknown},
            files=[asdict(done[name]) for name in sorted(done)],
        )
    return Summary(
        run=ranker.run.name,
        users=found.users,
        rows=sum(each.rows for each in done.values()),
        unknown=found.unknown,
        strangers=found.strangers,
        empty=sum(each.empty for each in done.values()),
        parts=len(done),
        there=there,
    )


def _ranked(
    engine: Engine,
    parts: Iterator[Part],
    ranker: RankUsers,
    directory: Path,
    processes: int | None,
    tell: Callable[[int], None],
) -> Iterator[Done]:
    if engine == "ray":
        yield from ranked_by_ray(parts, ranker, directory, processes, tell)
        return
    count = processes or usable_cores()
    if count == 1:
        for part in parts:
            yield rank_part(ranker, directory, part, tell)
    else:
        yield from ranked_by_processes(parts, ranker, directory, count, tell)


def _as_surveyed(parts: Iterator[Part], found: Survey) -> Iterator[Part]:
    """The parts, while they are the ones that were surveyed."""
    for part in parts:
        if part.name not in found.parts:
            raise ValueError(f"{part.file}: it changed while it was read: run it again")
        yield part


def _there(directory: Path, found: Survey) -> dict[str, Done]:
    """Parts that are done already; ValueError for files of other users, or of no run."""
    done = {}
    for name in sorted(os.listdir(directory)):
        if not is_data(name) or name in (manifest.MANIFEST, filters.FOLDER):
            continue
        if name not in found.parts:
            of = done_of(directory / name) if name.startswith("ranked-") else None
            whose = "" if of is None else f", rankings of {of.users:,} users of {of.input},"
            raise ValueError(
                f"output: {directory} holds {name}{whose} which is not of the users that are given"
                " now: give those that the run was begun with, or another output"
            )
        done[name] = done_of(directory / name)
    return done
