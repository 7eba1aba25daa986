"""Other logs, brought into this schema: the Open Bandit Dataset, and SageMaker Data Capture.

An adapter only translates. Its tables go through `LogReader.of_tables`, which checks them like any
other log, or through `LogWriter.append_table`, to be kept.
"""

from __future__ import annotations

import base64
import binascii
import glob
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fastrank import obd, wire
from fastrank.eventlog.reader import ReadReport
from fastrank.eventlog.schema import SCHEMA_VERSION, UNFILLED, Kind, schema
from fastrank.eventlog.upgrade import completed
from fastrank.files import file_format, in_directory, naming
from fastrank.ids import ids_from_text, integer, plain_id
from fastrank.inputs import shown

__all__ = ["DataCapture", "from_data_capture", "from_obd", "items_of_obd"]

Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_TABLE_ROWS = 65_536
_NOT_ANSWERED = ("writer_id", "writer_seq", "rewards", "reward_kind", "reward_ts")
_CAPTURE_ROWS = 10_000
_OBD_COLUMNS = {
    "timestamp": None,  # text or a timestamp
    "item_id": pa.int64(),
    "position": pa.int64(),
    "click": pa.float32(),
    "propensity_score": pa.float64(),
    **{f"user_feature_{j}": pa.string() for j in range(4)},
}
_OBD_ITEM = re.compile(r"user-item_affinity_\d+")
_LIKE: dict[Kind, Any] = {"int64": np.empty(0, np.int64), "str": np.empty(0, np.str_)}


# The Open Bandit Dataset.


def from_obd(
    campaign_or_path: str | os.PathLike[str],
    policy: str | None = None,
    *,
    columns: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """Logs of the Open Bandit Dataset as tables in the log's schema.

    Each impression becomes a ranking of one place, whose propensity is that of its item in its
    position. The position, 1 to 3, is kept in a column `position`: it is context, not a
    place of the ranking.

    Parameters
    ----------
    campaign_or_path : str or path
        ``all`` or ``men``: the bundled log. Otherwise a file as published, .csv or .parquet.
    policy : {"random", "bts"}, optional
        Which policy logged it. For a file it is read off the path, if it can be.
    columns : sequence of str
        Further columns of the file to carry, of one number a row: the log-propensity of an
        evaluation policy, say. Each becomes a list of one, as the ranking's own propensities are.

    Yields
    ------
    pyarrow.Table
        Request ids are ``<campaign>-<policy>-<row>``, rows from 0; the user is the segment, the
        four hashed features joined by ``-``. The random policy is called ``uniform``, which is what
        it is. Clicks are rewards, of kind ``complete``: no click is an observation, too. The
        data hold no seeds, scores or model, so those columns are null.

    Raises
    ------
    ValueError
        If the policy cannot be told, for columns that cannot be carried, or naming the file, for
        one that is not as published or lacks a column.

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
            raise ValueError("columns: position is there without asking, as context")
    if campaign_or_path in get_args(obd.Campaign):
        if policy is None:
            raise ValueError("policy: say which log of the campaign, random or bts")
        if columns:
            raise ValueError(f"columns: the bundled logs have no column {columns[0]}")
        return _bundled(campaign_or_path, policy)  # type: ignore[arg-type]
    path = _file(campaign_or_path)
    if policy is None:
        found = {word for word in _words(path) if word in get_args(obd.LoggingPolicy)}
        if len(found) != 1:
            raise ValueError(f"policy: {path} does not say whether it is random or bts")
        (policy,) = found
    return _published(path, _campaign(path), policy, columns)


def items_of_obd(path: str | os.PathLike[str]) -> int:
    """Items of the campaign that a file of the Open Bandit Dataset, as published, is of.

    As many as it has columns of affinity to items; without any, those of the bundled campaign that
    its path names. Not those that happen to be in the file, which may be fewer.

    Raises
    ------
    ValueError
        Naming the file, if neither says it or it is no such file.
    """
    file = _file(path)
    found = _n_items(_column_names(file))
    if found is not None:
        return found
    campaign = _campaign(file)
    if campaign not in get_args(obd.Campaign):
        campaigns = " or ".join(get_args(obd.Campaign))
        raise ValueError(
            f"{path}: how many items its campaign has is not known: it has no columns"
            f" user-item_affinity_<item>, as published, and its path does not name {campaigns}"
        )
    return len(obd.items(campaign).item_ids)  # type: ignore[arg-type]  # checked above


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
        "click": pa.array(log.click.astype(np.float32)),
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
                    columns[name] = _as_utc(column) if kind is None else column.cast(kind)
                except pa.ArrowException as error:
                    raise ValueError(f"{path}: {name}: rows from {first}: {error}") from None
            _check_published(path, columns, first)
            carried = {name: _as_numbers(path, name, batch.column(name)) for name in extra}
            table = _as_log(columns, campaign, policy, first, n_items, carried)
        yield table
        first += batch.num_rows


def _check_published(path: Path, columns: Mapping[str, pa.Array], first: int) -> None:
    """Refuse values that the dataset cannot hold; null is for the reader to set aside."""
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
    """The columns wanted, and how many items the campaign has."""
    names = _column_names(path)
    for name in _OBD_COLUMNS:
        if name not in names:
            raise ValueError(f"{path}: not a log of the dataset: no column named {name}")
    for name in extra:
        if name not in names:
            others = [
                n for n in names if n and n not in _OBD_COLUMNS and not _OBD_ITEM.fullmatch(n)
            ]
            found = ", ".join(others) or "none besides those of the dataset"
            raise ValueError(f"{path}: no column named {name}; found {found}")
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


def _as_utc(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        # Nanoseconds, as pyarrow writes those of a Parquet file to CSV; microseconds are kept.
        column = pc.replace_substring_regex(column, r"(\.\d{6})\d{1,3}", r"\1")
        zoned = pc.match_substring_regex(column, r"(Z|[+-]\d\d:?\d\d)$")
        if pc.all(zoned).as_py():
            column = column.cast(pa.timestamp("us", tz="UTC"))
        else:
            column = column.cast(pa.timestamp("us"))
    return column.cast(pa.timestamp("us", tz=column.type.tz), safe=False)


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


# SageMaker Data Capture.


def from_data_capture(paths: Paths) -> DataCapture:
    """Rows from what SageMaker Data Capture stored of an endpoint; see `DataCapture`."""
    return DataCapture(paths)


class DataCapture:
    """What Data Capture stored, as tables in the log's schema; iterate over it once or more.

    The endpoint's answer is the log row, and the capture its transport. The answer does not repeat
    what was asked: exclude and allow lists and a query come from the captured input, without
    which the row cannot be trusted, and is set aside. It is read by the server's own rules
    (`fastrank.wire`): what the server takes in any form, as text or from API Gateway, is the same
    row here.

    Parameters
    ----------
    paths : path or iterable of paths
        JSON Lines files, directories (every .jsonl below) or globs.

    Attributes
    ----------
    read_report : ReadReport
        Lines set aside by reason; complete after the last table. `LogReader.of_tables` takes it
        over into its own report.
    error_responses : int
        Captured answers that are errors: no ranking was served, so they are no rows.

    Notes
    -----
    Input and output are matched by ``eventId``, or else ``inferenceId``, if they stand in different
    lines; halves wait in memory for the other one. Data may be JSON or base64 of it; by its
    observed content type it may be JSON Lines, whose every line is a row.

    An answer states the kind of its item ids. Those of older servers do not: there the first
    ranking that is not empty says it for all, and empty ones that come before wait in memory.

    Examples
    --------
    >>> import tempfile
    >>> body = {"item_ids": [3], "log_propensities": [-0.5], "log_propensity": -0.5, "k": 1,
    ...         "request_id": "r1", "policy": {"name": "uniform", "params": {}}, "seed": 1,
    ...         "seed_source": "server", "rng_version": 1, "propensity_kind": "exact"}
    >>> line = {"captureData": {
    ...     "endpointInput": {"mode": "INPUT", "encoding": "JSON", "data": '{"user_id": "u"}'},
    ...     "endpointOutput": {"mode": "OUTPUT", "encoding": "JSON", "data": json.dumps(body)}},
    ...     "eventMetadata": {"eventId": "e1", "inferenceTime": "2026-01-01T00:00:00Z"}}
    >>> file = Path(tempfile.mkdtemp(), "capture.jsonl")
    >>> _ = file.write_text(json.dumps(line))
    >>> [table["item_ids"].to_pylist() for table in from_data_capture(file)]
    [[[3]]]
    """

    def __init__(self, paths: Paths) -> None:
        self.files = _capture_files(paths)
        self._reset()

    def _reset(self) -> None:
        self.read_report = ReadReport()
        self.error_responses = 0
        self._kind: Kind | None = None
        self._halves: dict[str, _Half] = {}

    def __iter__(self) -> Iterator[pa.Table]:
        self._reset()
        rows: list[dict[str, Any]] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == _CAPTURE_ROWS:
                yield self._table(rows)
                rows = []
        if rows:
            yield self._table(rows)

    def _rows(self) -> Iterator[dict[str, Any]]:
        waiting: list[_Captured] = []  # until something says of what kind ids are
        for path in self.files:
            for number, line in self._lines(path):
                for found in self._captured(str(path), number, line):
                    if found.kind is None and self._kind is None:
                        waiting.append(found)
                        continue
                    row = self._fitted(found)
                    if row is not None:
                        yield from self._all_fitted(waiting)
                        waiting = []
                        yield row
        for half in self._halves.values():
            which = "no captured output" if half.output is None else "no captured input"
            self._aside(which, half.file, half.number, "")
        self._halves = {}
        if waiting:
            self._kind = _kind_of_filters(waiting)
            yield from self._all_fitted(waiting)

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines):
                    if line.strip():
                        yield number, line
        except OSError as error:
            self.read_report.files_set_aside[str(path)] = str(error)

    def _aside(self, reason: str, file: str, number: int, detail: str) -> None:
        self.read_report.aside(reason)
        self.read_report.name(reason, file, number, detail)

    def _captured(self, file: str, number: int, line: bytes) -> Iterator[_Captured]:
        """The rankings that a line completes, if it does."""
        try:
            half = self._paired(_half(file, number, line))
            if half is None:
                return
            exchanges = _exchanges(half)
        except ValueError as error:
            self._aside("capture not understood", file, number, str(error))
            return
        for where, asked, answered in exchanges:
            try:
                response = _mapping("data", _json(answered))
                if "error" in response and "item_ids" not in response:
                    self.error_responses += 1  # whatever was asked
                    continue
                values, kind = _values(wire.read(asked), response)
            except ValueError as error:
                self._aside("capture not understood", file, number, f"{where}{error}")
                continue
            if not where:  # one id is not that of many
                values["request_id"] = values["request_id"] or half.inference_id
            values["ts"] = values["ts"] or half.time
            yield _Captured(file, number, where, values, kind)

    def _all_fitted(self, rows: Iterable[_Captured]) -> Iterator[dict[str, Any]]:
        return (row for row in map(self._fitted, rows) if row is not None)

    def _fitted(self, found: _Captured) -> dict[str, Any] | None:
        """The row as the columns can hold it; the first one says the kind of ids of all."""
        kind = found.kind or self._kind
        assert kind is not None
        try:
            row = _row(found.values, kind)
            if self._kind is not None and kind != self._kind:
                raise ValueError(f"item_ids: those before are {self._kind}, got {kind}")
        except ValueError as error:
            detail = f"{found.where}{error}"
            self._aside("capture not understood", found.file, found.number, detail)
            return None
        self._kind = kind
        return row

    def _paired(self, half: _Half) -> _Half | None:
        """Both halves in one, once they are there."""
        if half.input is not None and half.output is not None:
            return half
        if half.event is None:
            raise ValueError("eventMetadata: neither eventId nor inferenceId joins the halves")
        other = self._halves.get(half.event)
        if other is None:
            self._halves[half.event] = half
            return None
        if (other.input is None) == (half.input is None):
            raise ValueError(f"the same half came before, in {other.file}, line {other.number}")
        del self._halves[half.event]
        return _Half(
            half.file,
            half.number,
            half.input if other.input is None else other.input,
            half.output if other.output is None else other.output,
            half.event,
            half.inference_id or other.inference_id,
            half.time or other.time,
        )

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        wanted = schema(self._kind or "int64")
        return pa.Table.from_pylist(rows, wanted)


class _Half:
    """One line's input, output, or both, and by which event the other half may be found."""

    __slots__ = ("event", "file", "inference_id", "input", "number", "output", "time")

    def __init__(
        self,
        file: str,
        number: int,
        request: Any,
        response: Any,
        event: str | None,
        inference_id: str | None,
        time: str | None,
    ) -> None:
        self.file = file
        self.number = number
        self.input = request
        self.output = response
        self.event = event
        self.inference_id = inference_id
        self.time = time


class _Captured(NamedTuple):
    """A ranking as it was captured: its row but for the types, and the kind of its ids if known."""

    file: str
    number: int
    where: str  # in the line, for errors
    values: dict[str, Any]
    kind: Kind | None


def _capture_files(paths: Paths) -> list[Path]:
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: dict[Path, None] = {}
    for one in given:
        text = os.fspath(one)
        if Path(text).is_dir():
            files = sorted(in_directory(Path(text), ("jsonl",)))
        elif Path(text).exists():
            files = [Path(text)]
        else:
            files = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        if not files:
            raise ValueError(f"{text}: no capture files (.jsonl) there")
        found |= dict.fromkeys(files)
    if not found:
        raise ValueError("paths: none given")
    return list(found)


def _half(file: str, number: int, line: bytes) -> _Half:
    capture = _mapping("the line", _json(line))
    data = _mapping("captureData", capture.get("captureData"))
    metadata = _mapping("eventMetadata", capture.get("eventMetadata", {}))
    request, response = data.get("endpointInput"), data.get("endpointOutput")
    if request is None and response is None:
        raise ValueError("captureData: neither endpointInput nor endpointOutput")
    for name, part, mode in (
        ("endpointInput", request, "INPUT"),
        ("endpointOutput", response, "OUTPUT"),
    ):
        if part is not None and _mapping(name, part).get("mode", mode) != mode:
            raise ValueError(f"{name}: mode: expected {mode}, got {shown(part['mode'])}")
    texts: dict[str, str | None] = {
        name: None if metadata.get(name) is None else _text(name, metadata[name])
        for name in ("eventId", "inferenceId", "inferenceTime")
    }
    # A caller may use an inference id more than once; an event id is the endpoint's own.
    event = next((f"{n} {texts[n]}" for n in ("eventId", "inferenceId") if texts[n]), None)
    return _Half(
        file, number, request, response, event, texts["inferenceId"], texts["inferenceTime"]
    )


def _json(content: bytes | str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def _exchanges(half: _Half) -> list[tuple[str, bytes, bytes]]:
    """What was asked and answered, and where in the line: one of each, or one a line."""
    asked, answered = _body(half.input), _body(half.output)
    if not _has_lines(half.input):
        return [("", asked, answered)]
    asked_lines, answered_lines = wire.lines_of(asked), wire.lines_of(answered)
    if len(asked_lines) != len(answered_lines):
        try:
            error = _json(answered)
        except ValueError:
            error = None
        if isinstance(error, dict) and "error" in error:  # the batch was refused whole
            return [("", asked, answered)]
        raise ValueError(
            f"data: {len(asked_lines)} lines were asked, and {len(answered_lines)} answered"
        )
    return [
        (f"line {j}: ", question, answer)
        for j, (question, answer) in enumerate(zip(asked_lines, answered_lines, strict=True))
    ]


def _has_lines(part: Mapping[str, Any]) -> bool:
    kind = part.get("observedContentType")
    return isinstance(kind, str) and kind.split(";")[0].strip().lower() in wire.LINES


def _body(part: Any) -> bytes:
    """The bytes that were captured on one side."""
    data, encoding = part.get("data"), part.get("encoding", "JSON")
    if isinstance(data, dict):
        try:
            return json.dumps(data).encode()
        except RecursionError:
            raise ValueError("data: too many levels") from None
    data = _text("data", data)
    if encoding == "BASE64":
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"data: not base64: {error}") from None
    if encoding != "JSON":
        raise ValueError(f"encoding: expected JSON or BASE64, got {shown(encoding)}")
    return data.encode()


def _values(request: wire.Request, response: dict[str, Any]) -> tuple[dict[str, Any], Kind | None]:
    """A row's values as they were captured, and the kind of its ids if something says it."""
    items = response.get("item_ids")
    if not isinstance(items, list):
        raise ValueError(f"item_ids: expected a list, got {shown(items)}")
    kind = _kind(response.get("item_kind"), items)
    policy = _mapping("policy", response.get("policy"))
    params = _mapping("policy: params", policy.get("params") or {})
    values: dict[str, Any] = {
        name: response.get(name)
        for name in schema("int64").names
        if name not in (*_NOT_ANSWERED, *UNFILLED)
    }
    values |= {
        "schema_version": SCHEMA_VERSION,
        "request_id_source": response.get("request_id_source"),
        "traceparent": response.get("traceparent"),
        "user_id": response.get("user_id", request.user_id),
        "policy_name": policy.get("name"),
        "law_params": [
            {"name": name, "value": _number(name, value)}
            for name, value in sorted(params.items())
            if value is not None and name != "user_temperature"
        ],
        "user_temperature": _number("user_temperature", params.get("user_temperature")),
        "query": request.query if request.query is not None else response.get("query"),
        "exclude": request.exclude,
        "allow": request.allow,
    }
    user = plain_id(values["user_id"])
    if isinstance(user, int):
        values["user_id"] = str(user)
    if values["log_norm"] is None and not items and params.get("temperature") is not None:
        values["log_norm"] = -math.inf  # of a softmax over nothing, which JSON cannot say
    return values, kind


def _kind(stated: Any, items: list[Any]) -> Kind | None:
    if stated is None:  # by an older server
        if not items:
            return None
        return "str" if any(isinstance(item, str) for item in items) else "int64"
    for kind in _LIKE:
        if stated == kind:
            return kind
    raise ValueError(f"item_kind: expected one of {', '.join(_LIKE)}; got {shown(stated)}")


def _row(values: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Values in the types of the columns, where item ids are of this kind."""
    row = {}
    for field in schema(kind):
        value = values.get(field.name)
        if value is None:
            continue
        if field.name in ("exclude", "allow"):
            found = ids_from_text(field.name, value, _LIKE[kind])
            value = found if isinstance(found, list) else found.tolist()
        elif field.name == "ts":
            value = _time(value)
        row[field.name] = _fitting(field.name, value, field.type)
    return row


def _kind_of_filters(rows: Iterable[_Captured]) -> Kind:
    """Of rankings that are all empty: filters by text that is no integer are those of text."""
    words = (
        word
        for row in rows
        for name in ("exclude", "allow")
        for word in row.values[name] or ()
        if isinstance(word, str)
    )
    return "str" if any(integer(word) is None for word in words) else "int64"


def _fitting(name: str, value: Any, kind: pa.DataType) -> Any:
    """A JSON value that the column's type can hold, or a ValueError."""
    if pa.types.is_list(kind):
        if not isinstance(value, list):
            raise ValueError(f"{name}: expected a list, got {shown(value)}")
        return [_fitting(name, item, kind.value_type) for item in value]
    if pa.types.is_timestamp(kind) or value is None:
        return value
    if pa.types.is_struct(kind):
        parts = _mapping(name, value)
        return {
            one.name: _fitting(f"{name}: {one.name}", parts.get(one.name), one.type) for one in kind
        }
    if pa.types.is_string(kind):
        return _text(name, value)
    if pa.types.is_boolean(kind):
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected true or false, got {shown(value)}")
        return value
    if pa.types.is_floating(kind):
        return _number(name, value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}: expected an integer, got {shown(value)}")
    bits = kind.bit_width
    low, high = (0, 2**bits) if str(kind).startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    if not low <= value < high:
        raise ValueError(f"{name}: out of range, got {value}")
    return value


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, got {shown(value)}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: not text that UTF-8 can hold: {shown(value)}") from None
    return value


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: expected a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _time(value: Any) -> datetime:
    text = _text("time", value)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"time: expected ISO 8601, got {shown(text)}") from None
    if time.tzinfo is None:
        raise ValueError(f"time: says no time zone, got {shown(text)}")
    return time
