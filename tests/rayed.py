"""What tests have Ray do, in a process of its own, which starts it and ends it.

    python tests/rayed.py WHAT ARGUMENTS

Ray warns, starts processes and keeps state of its own: nothing of that may reach other tests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data

import fastrank as fr
from fastrank import batch

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextlib.contextmanager
def alone(cpus: int = 3) -> Iterator[None]:
    """Ray on this machine."""
    ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=100 << 20, **QUIET)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def rank(users: str, log: str, rows: int, arguments: dict[str, Any]) -> None:
    """The lines of docs/how-to/rank-all-users.md."""
    (
        ray.data.read_parquet(users)
        .repartition(target_num_rows_per_block=rows)
        .map_batches(
            batch.RankUsers,
            fn_constructor_kwargs=arguments,
            batch_size=rows,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=1,
        )
        .write_parquet(log, mode="append")
    )


def partitions(users: str, model: str, logs: str, *cuts: str) -> None:
    """A log for each partitioning, and one by `batch.run`."""
    with alone():
        for cut in cuts:
            arguments = batch.begin(f"{logs}/{cut}", run="night", model=model, k=5)
            rank(users, f"{logs}/{cut}", int(cut), arguments)
        asked: dict[str, Any] = {"run": "night", "model": model, "k": 5, "part_rows": 150}
        batch.run(users, f"{logs}/run", engine="ray", **asked)


class Slowly(batch.RankUsers):
    """So that it can be killed midway: it says in a file which process ranks."""

    def __call__(self, users: Any) -> Any:
        Path(os.environ["FASTRANK_RANKS"], str(os.getpid())).touch()
        time.sleep(0.5)
        return super().__call__(users)


def killed_actor(users: str, model: str, log: str, ranks: str) -> None:
    """An actor of Ray Data is killed once it has ranked; Ray has another do its part again."""
    import threading

    batch.RankUsers = Slowly  # type: ignore[misc]  # what `rank` maps

    def kill() -> None:
        while not list(Path(ranks).iterdir()) or not list(Path(log).glob("*.parquet")):
            time.sleep(0.05)
        os.kill(int(sorted(Path(ranks).iterdir())[0].name), signal.SIGKILL)
        print("killed", flush=True)

    arguments = batch.begin(log, run="night", model=model, k=5)
    with alone():
        threading.Thread(target=kill, daemon=True).start()
        rank(users, log, 60, arguments)


def run(users: str, model: str, log: str) -> None:
    """Says how many users are done; a test may kill it."""

    def tell(done: int, _: int) -> None:
        print(done, flush=True)
        time.sleep(0.05)

    asked: dict[str, Any] = {"run": "night", "model": model, "k": 5, "part_rows": 30}
    with alone():
        batch.run(users, log, engine="ray", advance=tell, **asked)


def shards(users: str, logs: str, *models: str) -> None:
    """Actors that hold a shard each, asked by `batch.run` and by a map of one's own."""
    actor = ray.remote(num_cpus=0)(batch.Shard)
    with alone():
        held = [actor.remote(model) for model in models]
        asked: dict[str, Any] = {"run": "night", "k": 5, "shards": held}
        batch.run(users, f"{logs}/run", engine="ray", part_rows=150, **asked)
        rank(users, f"{logs}/map", 37, batch.begin(f"{logs}/map", **asked))
        try:
            batch.begin(f"{logs}/none", score="dot + price", **asked)
        except ValueError as error:
            print(error, flush=True)


class Hung(batch.Shard):
    """Has died without a word."""

    def about(self) -> Any:
        time.sleep(3600)


def lost_shard(users: str, log: str, *models: str) -> None:
    """An actor is killed midway, and a new one takes its place; another one hangs."""
    actor = ray.remote(num_cpus=0)(batch.Shard)
    with alone():
        held = [actor.remote(model) for model in models]
        asked: dict[str, Any] = {"run": "night", "k": 5, "shards": held, "part_rows": 30}

        def kill(done: int, total: int) -> None:
            if done > total // 3:
                ray.kill(held[1])

        try:
            batch.run(users, log, engine="ray", processes=1, advance=kill, **asked)
        except ConnectionError as error:
            print(error, flush=True)
        print(len(list(Path(log).glob("*.parquet"))), flush=True)
        held[1] = ray.remote(num_cpus=0)(Hung).remote(models[1])
        try:
            batch.begin(log, run="night", k=5, shards=held, shard_timeout=2)
        except ConnectionError as error:
            print(error, flush=True)
        held[1] = actor.remote(models[1])
        batch.run(users, log, engine="ray", **asked)


def nodes(users: str, model: str, log: str) -> None:
    """Three nodes, of which one is killed midway, with all that it runs, and another one comes."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 << 20}
    head = {"num_cpus": 1, "include_dashboard": False, **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    others = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    is_killed = False

    def tell(done: int, total: int) -> None:
        nonlocal is_killed
        if done > total // 3 and not is_killed:
            is_killed = True
            cluster.remove_node(others[1], allow_graceful=False)
            cluster.add_node(num_cpus=1, **small)
            print("killed", flush=True)

    try:
        ray.init(address=cluster.address, **QUIET)
        asked: dict[str, Any] = {"run": "night", "model": model, "k": 5, "part_rows": 30}
        batch.run(users, log, engine="ray", advance=tell, **asked)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    assert fr.__version__
    globals()[sys.argv[1]](*sys.argv[2:])
