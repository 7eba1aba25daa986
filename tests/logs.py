"""Logs to test with: rows that are right, so that a test can spoil one thing at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import SCHEMA_VERSION, LogBatch, LogReader, ReadReport, schema
from fastrank.eventlog.schema import IdKind

NOON = 1_767_268_800_000_000  # 2026-01-01T12:00:00Z in microseconds
HOUR = 3_600_000_000


def row(number: int, kind: IdKind = "int64", **changes: Any) -> dict[str, Any]:
    """A valid row of three places, as version 1 wrote it; `changes` replace columns."""
    propensities = [math.log(p) for p in (0.5, 0.25, 0.125)]
    items: list[Any] = [number % 7, 100, 7 + number % 5]
    made: dict[str, Any] = {
        "request_id": f"r{number}",
        "ts": NOON + number,
        "writer_id": "w",
        "writer_seq": number,
        "user_id": f"u{number % 3}",
        "policy_name": "stochastic_gumbel_softmax_trick",
        "policy_params": {"temperature": 0.5},
        "rng_version": 1,
        "seed": 2**64 - 1 - number,
        "seed_source": "server",
        "model_version": "m",
        "catalog_version": "c",
        "n_eligible": 50,
        "is_fallback": False,
        "k": 3,
        "item_ids": items if kind == "int64" else [f"i{item}" for item in items],
        "scores": [3.0, 2.0, 1.0],
        "log_propensities": propensities,
        "log_propensity": math.fsum(propensities),
        "log_norm": 5.0,
        "propensity_kind": "exact",
        "log_norm_error": 0.0,
        "rewards": [0.0, 1.0, 0.0],
        "reward_kind": "complete",
    }
    return made | changes


def table(
    rows: list[dict[str, Any]], kind: IdKind = "int64", version: int = SCHEMA_VERSION
) -> pa.Table:
    """Rows as a table of either version."""
    made = [{"schema_version": version} | one for one in rows]
    for one in made if version > 1 else ():
        params = one.pop("policy_params", None)
        if params is not None:
            factor = params.get("user_temperature")
            one["law_params"] = [
                {"name": name, "value": value}
                for name, value in sorted(params.items())
                if value is not None and name != "user_temperature"
            ]
            one["user_temperature"] = factor
    return pa.Table.from_pylist(made, schema(kind, version))


def of_batch(batch: ope.Batch) -> pa.Table:
    """The log of a batch; the evaluation policy's log-propensities are its column `evaluated`."""
    n, k = batch.logged.shape
    whole = np.arange(n + 1) * k
    wide = {"log_propensities": batch.logged, "evaluated": batch.evaluated}
    wide |= {"rewards": batch.rewards}
    columns = {
        "request_id": pa.array([f"r{i}" for i in range(n)]),
        "ts": pa.array(NOON + np.arange(n), pa.timestamp("us", tz="UTC")),
        "user_id": pa.array([f"u{group}" for group in batch.groups]),
        "policy_name": pa.array(["somebody's"] * n),
        "propensity_kind": pa.array(["exact"] * n),
        "k": pa.array(np.full(n, k)),
        "item_ids": pa.ListArray.from_arrays(whole, np.tile(np.arange(k), n)),
        "log_propensity": pa.array(batch.logged.sum(axis=1)),
        "displayed": pa.array(batch.lengths),
        "row_weight": pa.array(np.ones(n) if batch.row_weights is None else batch.row_weights),
        **{name: pa.ListArray.from_arrays(whole, of.ravel()) for name, of in wide.items()},
    }
    return pa.table(columns)


def read(*rows: dict[str, Any], kind: IdKind = "int64", **options: Any) -> list[LogBatch]:
    """The batches of these rows."""
    return list(LogReader.of_tables([table(list(rows), kind)], **options))


def report_of(*rows: dict[str, Any], kind: IdKind = "int64", **options: Any) -> ReadReport:
    reader = LogReader.of_tables([table(list(rows), kind)], **options)
    for _ in reader:
        pass
    return reader.report


def drain(paths: Any, **options: Any) -> tuple[list[dict[str, Any]], LogReader]:
    """All valid rows of a log as dicts, and the reader."""
    reader = LogReader(paths, **options)
    rows = [one for batch in reader for one in batch.table.to_pylist()]
    return rows, reader


def catalog(n: int = 30, dim: int = 4, text: bool = False) -> fr.Catalog:
    vectors = np.random.default_rng(5).standard_normal((n, dim))
    ids: Any = [f"item {i}" for i in range(n)] if text else np.arange(100, 100 + n)
    return fr.Catalog(ids, vectors)


def segments(directory: Path, suffix: str) -> list[Path]:
    return sorted(directory.glob(f"*{suffix}"))
