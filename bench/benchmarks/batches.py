"""Rankings of many users after they are drawn: rows of the log, and shards that are merged."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastrank as fr

from .timing import Call
from .workloads import synthetic

__all__ = ["Rows"]

_USERS, _ITEMS, _PLACES, _SHARDS = 1024, 4_000, 10, 4


class Rows:
    """1,024 users, ten places each: seeds and request ids, the table, four shards merged."""

    rounds = 1
    number = 1
    repeat = (3, 20, 2.0)
    params = (["seeds and ids", "to Arrow", "merge"],)
    param_names = ("what",)

    def setup(self, what: str) -> None:
        self.call = _call(what)

    def time_rows(self, what: str) -> None:
        self.call()


@lru_cache
def _call(what: str) -> Call:
    if what == "to Arrow" and find_spec("pyarrow") is None:
        raise NotImplementedError("pyarrow is missing: pip install '.[data]'")
    if what != "merge" and not hasattr(fr, "Run"):
        raise NotImplementedError("this fastrank has no Run")
    if what == "merge" and not hasattr(fr, "merge_batch"):
        raise NotImplementedError("this fastrank has no merge_batch")
    run, names = fr.Run("bench", key=bytes(32)), [f"user-{i:08d}" for i in range(_USERS)]
    if what == "seeds and ids":
        assert len(set(run.seeds(names).tolist())) == len(set(run.request_ids(names))) == _USERS
        return lambda: (run.seeds(names), run.request_ids(names))
    vectors = synthetic(_ITEMS).vectors
    queries, policy = vectors[:_USERS], fr.PlackettLuce(1.0)
    if what == "to Arrow":
        from fastrank.batch.rows import filtered, log_rows

        catalog, requests = fr.Catalog(np.arange(_ITEMS), vectors), run.request_ids(names)
        ranked = catalog.rank_batch(queries, _PLACES, policy=policy, seeds=run.seeds(names))

        def rows() -> Any:  # a pyarrow.Table, which has no types
            return log_rows(
                ranked,
                user_ids=names,
                request_ids=requests,
                run="bench",
                ts=0,
                filters=filtered(None, None),
            )

        assert len(rows()) == _USERS
        return rows
    parts = []
    for i, some in enumerate(np.array_split(np.arange(_ITEMS), _SHARDS)):
        shard, seeds = (
            fr.Catalog(some, vectors[some]),
            map(fr.shard_seed, range(_USERS), [i] * _USERS),
        )
        parts.append(shard.rank_batch(queries, _PLACES, policy=policy, seeds=list(seeds)))

    def merged() -> fr.RankingBatch:
        return fr.merge_batch(parts, _PLACES, seeds=range(_USERS))

    assert merged().counts.tolist() == [_PLACES] * _USERS
    return merged
