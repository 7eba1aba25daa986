"""Logs of the Open Bandit Dataset, as tables in the log's schema.

They are read by `LogReader.of_tables`, which checks them like any other log, or stored by
`LogWriter.append_table`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fastrank import obd
from fastrank.eventlog.columns import as_utc
from fastrank.eventlog.schema import schema
from fastrank.eventlog.upgrade import completed
from fastrank.files import file_format, naming

__all__ = ["from_obd", "items_of_obd"]

_TABLE_ROWS = 65_536
_OBD_COLUMNS = {
    "timestamp": None,  # text or a timestamp
    "item_id": pa.int64(),
    "position": pa.int64(),
    "click": pa.float64(),
    "propensity_score": pa.float64(),
    **{f"user_feature_{j}": pa.string() for j in range(4)},
}
_OBD_ITEM = re.compile(r"user-item_affinity_\d+")


def from_obd(
    campaign_or_path: str | os.PathLike[str],
    policy: str | None = None,
    *,
    columns: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """Read logs of the Open Bandit Dataset as tables in the log's schema.

    Each impression becomes a ranking of one place, with the propensity of its item in its position.
    The position, 1 to 3, is kept in a column `position`: it is context, not a place of the ranking.

    Parameters
    ----------
    campaign_or_path : str or path
        ``all`` or ``men`` for the bundled log; otherwise a published file, .csv or .parquet.
    policy : {"random", "bts"}, optional
        The policy that logged it. For a file, by default the one named in its path.
    columns : sequence of str
        Further columns of the file to carry, with one number per row, such as the log-propensities
        of an evaluation policy. Each becomes a list of one, like the ranking's own propensities.

    Yields
    ------
    pyarrow.Table
        Request ids are ``<campaign>-<policy>-<row>``, with rows from 0; the user is the segment,
        the four hashed features joined by ``-``. The random policy is called ``uniform``. Clicks
        are rewards of kind ``complete``: no click is an observation too. The data have no seeds,
        scores or model, so those columns are null.

    Raises
    ------
    ValueError
        If the policy is unknown, if columns cannot be carried, or if a file differs from the
        published ones or lacks a column; the message names the file.

    Examples
    --------
    >>> table = next(from_obd("all", "bts"))
    >>> table.num_rows, table["request_id"][0].as_py(), table["k"][0].as_py()
    (10000, 'all-bts-0', 1)
    """
    if policy is not None and policy not in get_args(obd.LoggingPolicy):
        names = ", ".join(get_args(obd.LoggingPolicy))
        raise ValueError(f"policy: expected one of {names}; got {policy!r}")
    for name in columns:
        if name in schema("int64").names:
            raise ValueError(f"columns: {name} is a column of the schema itself")
        if name == "position":
            raise ValueError("columns: position is always read, as context: leave it out")
    if campaign_or_path in get_args(obd.Campaign):
        if policy is None:
            raise ValueError("policy: state which log of the campaign to read: random or bts")
        if columns:
            raise ValueError(f"columns: the bundled logs have no column {columns[0]}")
        return _bundled(campaign_or_path, policy)  # type: ignore[arg-type]  # mypy does not narrow by get_args
    path = _file(campaign_or_path)
    if policy is None:
        found = {word for word in _words(path) if word in get_args(obd.LoggingPolicy)}
        if len(found) != 1:
            raise ValueError(f"policy: {path} does not say whether it is random or bts")
        (policy,) = found
    return _published(path, _campaign(path), policy, columns)


def items_of_obd(path: str | os.PathLike[str]) -> int:
    """Number of items of the campaign of a published file of the Open Bandit Dataset.

    This is the number of the file's columns of affinity to items; without any, that of the bundled
    campaign that its path names. The items that occur in the file may be fewer.

    Raises
    ------
    ValueError
        If neither states it, or it is not such a file; the message names the file.
    """
    file = _file(path)
    found = _n_items(_column_names(file))
    if found is not None:
        return found
    campaign = _campaign(file)
    if campaign not in get_args(obd.Campaign):
        campaigns = " or ".join(get_args(obd.Campaign))
        raise ValueError(
            f"{path}: the number of items of its campaign is unknown: it has no columns"
            f" user-item_affinity_<item>, as published, and its path does not name {campaigns}"
        )
    return len(obd.items(campaign).item_ids)  # type: ignore[arg-type]  # nor here


def _file(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_file():
        campaigns = ", ".join(get_args(obd.Campaign))
        raise ValueError(f"{path}: neither a campaign ({campaigns}) nor a file")
    return Path(path)


def _words(path: Path) -> list[str]:
    return [word for part in path.with_suffix("").parts for word in re.split(r"[-_.]", part)]


def _campaign(path: Path) -> str:
    named = [word for word in _words(path) if word in ("all", "men", "women")]
    return named[-1] if named else path.stem


def _bundled(campaign: obd.Campaign, policy: obd.LoggingPolicy) -> Iterator[pa.Table]:
    log = obd.log(campaign, policy)
    columns: dict[str, Any] = {
        "timestamp": pa.array(log.timestamp, pa.timestamp("us")),
        "item_id": pa.array(log.item_id),
        "position": pa.array(log.position),
        "click": pa.array(log.click.astype(np.float64)),
        "propensity_score": pa.array(log.propensity),
    }
    for j in range(4):
        columns[f"user_feature_{j}"] = pa.array(log.user_features[:, j].tolist(), pa.string())
    yield _as_log(columns, campaign, policy, 0, log.affinity.shape[1])


def _published(path: Path, campaign: str, policy: str, extra: Sequence[str]) -> Iterator[pa.Table]:
    first = 0
    for batch, n_items in _published_batches(path, extra):
        with naming(path, f"log of the Open Bandit Dataset from row {first} on"):
            columns = {}
            for name, kind in _OBD_COLUMNS.items():
                column = batch.column(name)
                try:
                    columns[name] = as_utc(column) if kind is None else column.cast(kind)
                except pa.ArrowException as error:
                    raise ValueError(f"{path}: {name}: rows from {first}: {error}") from None
            _check_published(path, columns, first)
            carried = {name: _as_numbers(path, name, batch.column(name)) for name in extra}
            table = _as_log(columns, campaign, policy, first, n_items, carried)
        yield table
        first += batch.num_rows


def _check_published(path: Path, columns: Mapping[str, pa.Array], first: int) -> None:
    """Refuse values that the dataset cannot contain; the reader sets null values aside."""
    for name, low, high, wanted in (
        ("item_id", 0, math.inf, "an index from 0"),
        ("position", 1, 3, "1, 2 or 3"),
        ("click", 0, math.inf, "a number from 0"),
    ):
        values = columns[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero((values < low) | (values > high))
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"{path}: row {first + at}: {name}: expected {wanted}, got {columns[name][at]}"
            )


def _published_batches(
    path: Path, extra: Sequence[str]
) -> Iterator[tuple[pa.RecordBatch, int | None]]:
    """The requested columns, and the number of items of the campaign."""
    names = _column_names(path)
    missing = [name for name in _OBD_COLUMNS if name not in names]
    if missing:
        raise ValueError(f"{path}: not a log of the dataset: no column named {', '.join(missing)}")
    missing = [name for name in extra if name not in names]
    if missing:
        others = [n for n in names if n and n not in _OBD_COLUMNS and not _OBD_ITEM.fullmatch(n)]
        found = ", ".join(others) or "none besides those of the dataset"
        raise ValueError(f"{path}: no column named {', '.join(missing)}; found {found}")
    wanted = list(dict.fromkeys([*_OBD_COLUMNS, *extra]))
    for name in wanted:
        if names.count(name) > 1:
            raise ValueError(f"{path}: {names.count(name)} columns are called {name}")
    with naming(path, "log of the Open Bandit Dataset"):
        if file_format(path) == "csv":
            texts = {
                **dict.fromkeys(extra, pa.float64()),
                **{name: kind or pa.string() for name, kind in _OBD_COLUMNS.items()},
            }
            convert = pa.csv.ConvertOptions(include_columns=wanted, column_types=texts)
            with pa.csv.open_csv(path, convert_options=convert) as reader:
                for batch in reader:
                    yield batch, _n_items(names)
            return
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_TABLE_ROWS, columns=wanted):
                yield batch, _n_items(names)


def _column_names(path: Path) -> list[str]:
    with naming(path, "log of the Open Bandit Dataset"):
        if file_format(path) != "csv":
            return list(pq.read_schema(path).names)
        with path.open("rb") as lines:
            header = lines.readline().decode("utf-8", "replace")
        return [name.strip().strip('"') for name in header.split(",")]


def _n_items(names: Sequence[str]) -> int | None:
    return sum(bool(_OBD_ITEM.fullmatch(name)) for name in names) or None


def _as_numbers(path: Path, name: str, column: pa.Array) -> pa.Array:
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{path}: {name}: expected a number a row, got {kind}")
    return column.cast(pa.float64(), safe=False)


def _as_log(
    columns: dict[str, Any],
    campaign: str,
    policy: str,
    first: int,
    n_items: int | None,
    carried: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    n = len(columns["item_id"])
    offsets = pa.array(np.arange(n + 1, dtype=np.int32))
    with np.errstate(divide="ignore", invalid="ignore"):
        propensity = columns["propensity_score"].to_numpy(zero_copy_only=False)
        logs = np.log(propensity)
    features = [columns[f"user_feature_{j}"].fill_null("") for j in range(4)]
    stamps = columns["timestamp"].cast(pa.timestamp("us"))

    def same(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), n)

    def singles(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    prefix = f"{campaign}-{policy}-"
    return completed(
        pa.table(
            {
                "request_id": pa.array([f"{prefix}{row}" for row in range(first, first + n)]),
                "ts": stamps.cast(pa.timestamp("us", tz="UTC")),
                "user_id": pc.binary_join_element_wise(*features, "-"),
                "policy_name": same("uniform" if policy == "random" else policy, pa.string()),
                "n_eligible": same(n_items, pa.int64()),
                "is_fallback": same(False, pa.bool_()),
                "k": same(1, pa.int64()),
                "item_ids": singles(columns["item_id"]),
                "log_propensities": singles(pa.array(logs)),
                "log_propensity": pa.array(logs),
                "propensity_kind": same("exact", pa.string()),
                "log_norm_error": same(0.0, pa.float64()),
                "rewards": singles(columns["click"]),
                "reward_kind": same("complete", pa.string()),
                "position": columns["position"],
                **{name: singles(values) for name, values in (carried or {}).items()},
            }
        )
    )
