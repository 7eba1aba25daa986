"""Rank parts by Ray Data: actors that map the model once, and that Ray restarts."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from fastrank.batch.parts import Part
from fastrank.batch.users import RankUsers
from fastrank.batch.work import Done, rank_part
from fastrank.extras import named_if_missing

__all__ = ["check_ray", "ranked_by_ray"]

_ERRORS = {"ValueError": ValueError, "ConnectionError": ConnectionError}


def check_ray() -> None:
    """Raise ModuleNotFoundError, saying what to install, if Ray Data is missing."""
    with named_if_missing():
        import aiohttp  # noqa: F401  # without which Ray Data does not start
        import ray.data  # noqa: F401  # to learn now whether it can be imported


class _RankParts:
    """The callable of `map_batches`: one part per row in, its results out."""

    def __init__(self, ranker: RankUsers, output: Path) -> None:
        self.ranker, self.output = ranker, output

    def __call__(self, parts: pa.Table) -> pa.Table:
        said: list[dict[str, Any]] = []
        for row in parts.to_pylist():
            users = pa.array(row["users"], pa.string())
            part = Part(row["file"], row["start"], users, row["name"])
            try:
                said.append({"done": asdict(rank_part(self.ranker, self.output, part))})
            except (ValueError, ConnectionError) as error:  # which another try would not mend
                kind = "ValueError" if isinstance(error, ValueError) else "ConnectionError"
                said.append({"error": str(error), "kind": kind})
        return pa.table({"said": [json.dumps(each) for each in said]})


def ranked_by_ray(
    parts: Iterator[Part],
    ranker: RankUsers,
    output: Path,
    processes: int | None,
    tell: Callable[[int], None],
) -> Iterator[Done]:
    """Yield each part as it is done, on the cluster that Ray is connected to, or on this machine.

    Raises
    ------
    ValueError
        As `rank_part`; what is done by then stays.
    ConnectionError
        For a shard that does not answer.
    """
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        blocks = [
            pa.table(
                {
                    "name": [part.name],
                    "file": [part.file],
                    "start": [part.start],
                    "users": pa.ListArray.from_arrays([0, len(part.users)], part.users),
                }
            )
            for part in parts
        ]
        if not blocks:
            return
        # An actor that holds the last CPU leaves none for Ray's own tasks, which it then waits for.
        # Shards hold some, too.
        having = ray.cluster_resources() if ranker.shards is None else ray.available_resources()
        cpus = int(having.get("CPU", 1))
        actors = max(1, min(processes or cpus - 1, len(blocks)))
        with _quiet(ray):
            done = ray.data.from_arrow(blocks).map_batches(
                _RankParts,
                fn_constructor_args=(ranker, output),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_cpus=1,
            )
            for row in done.iter_rows():
                said = json.loads(row["said"])
                if "error" in said:
                    raise _ERRORS[said["kind"]](said["error"])
                each = Done(**said["done"])
                tell(each.users)
                yield each
    finally:
        if is_ours:
            ray.shutdown()


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Turn off Ray's own progress bars and plans, which would appear between ours."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        log.setLevel(before[1])
