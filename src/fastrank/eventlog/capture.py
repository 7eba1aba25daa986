"""SageMaker Data Capture of an endpoint, as tables in the log's schema.

`LogReader.of_tables` reads them and checks them like any other log; `LogWriter.append_table` stores
them.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fastrank import wire
from fastrank.eventlog.report import ReadReport
from fastrank.eventlog.schema import SCHEMA_VERSION, UNREAD, IdKind, schema
from fastrank.files import Paths, files_at
from fastrank.ids import id_from_text, ids_from_text, integer, plain_id
from fastrank.inputs import shown
from fastrank.rules import Rules

__all__ = ["DataCapture", "from_data_capture"]

_TABLE_ROWS = 10_000
_NOT_ANSWERED = ("writer_id", "writer_seq", "rewards", "reward_kind", "reward_ts")
_LIKE: dict[IdKind, Any] = {"int64": np.empty(0, np.int64), "str": np.empty(0, np.str_)}


def from_data_capture(paths: Paths) -> DataCapture:
    """Read rows from SageMaker Data Capture of an endpoint; see `DataCapture`.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "capture.jsonl")
    >>> _ = file.write_text("not JSON")
    >>> captured = from_data_capture(file)
    >>> list(captured), captured.read_report.rows_set_aside
    ([], 1)
    """
    return DataCapture(paths)


class DataCapture:
    """Data Capture of an endpoint, as tables in the log's schema; iterate any number of times.

    The endpoint's answer is the log row, and the capture transports it. The answer does not repeat
    the request: exclude and allow lists, earlier pages, rules stated by a request, and a query come
    from the captured input; a row without it cannot be trusted, and is set aside. The input is read
    by the server's own rules (`fastrank.wire`): whatever form the server accepts, as text or from
    API Gateway, gives the same row here.

    Parameters
    ----------
    paths : path or iterable of paths
        JSON Lines files, directories (every .jsonl in them, recursively) or globs.

    Attributes
    ----------
    read_report : ReadReport
        Lines set aside by reason; complete after the last table. `LogReader.of_tables` includes it
        in its own report.
    error_responses : int
        Captured answers that are errors: no ranking was served, so they are not rows.
    rules : dict of str to Rules
        The rules that rows name, by id; `LogReader.of_tables` uses them.

    Notes
    -----
    Input and output on different lines are matched by ``eventId``, or else ``inferenceId``; each
    half waits in memory for the other one. Data may be JSON or base64 of JSON; according to its
    observed content type it may be JSON Lines, with one row per line.

    An answer states the type of its item ids. Answers of older servers do not: then the first
    ranking that is not empty determines it for all, and empty ones before it wait in memory.

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
        self.files = files_at(paths, ("jsonl",), "capture files (.jsonl)")
        if not self.files:
            raise ValueError("paths: none given; name a file, a directory or a glob")
        self.rules: dict[str, Rules] = {}
        self._reset()

    def _reset(self) -> None:
        self.read_report = ReadReport()
        self.error_responses = 0
        self._kind: IdKind | None = None
        self._halves: dict[str, _Half] = {}

    def __iter__(self) -> Iterator[pa.Table]:
        self._reset()
        rows: list[dict[str, Any]] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == _TABLE_ROWS:
                yield self._table(rows)
                rows = []
        if rows:
            yield self._table(rows)

    def _rows(self) -> Iterator[dict[str, Any]]:
        waiting: list[_Captured] = []  # until the type of the ids is known
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
        """The rankings that a line completes, if any."""
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
                    self.error_responses += 1  # whatever the request was
                    continue
                request = wire.read(asked)
                values, kind = _values(request, response)
            except ValueError as error:
                self._aside("capture not understood", file, number, f"{where}{error}")
                continue
            if not where:  # one id cannot belong to many rows
                values["request_id"] = values["request_id"] or half.inference_id
                values["inference_id"] = values["inference_id"] or half.inference_id
            values["ts"] = values["ts"] or half.time
            said = response.get("rules"), request.rules
            yield _Captured(file, number, where, values, kind, *said)

    def _all_fitted(self, rows: Iterable[_Captured]) -> Iterator[dict[str, Any]]:
        return (row for row in map(self._fitted, rows) if row is not None)

    def _fitted(self, found: _Captured) -> dict[str, Any] | None:
        """The row in the columns' types; the first row determines the type of all ids."""
        kind = found.kind or self._kind
        assert kind is not None
        try:
            row = _row(found.values, kind)
            if self._kind is not None and kind != self._kind:
                raise ValueError(f"item_ids: those before are {self._kind}, got {kind}")
            if found.answered is not None:
                rules = _rules(found.answered, found.asked, kind)
                self.rules[rules.id] = rules
        except ValueError as error:
            detail = f"{found.where}{error}"
            self._aside("capture not understood", found.file, found.number, detail)
            return None
        self._kind = kind
        return row

    def _paired(self, half: _Half) -> _Half | None:
        """Both halves combined, once both have been read."""
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
    """One line's input, output, or both, with the event that the other half is found by."""

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
    """A captured ranking: its row before type conversion, and the type of its ids if known."""

    file: str
    number: int
    where: str  # position in the line, for errors
    values: dict[str, Any]
    kind: IdKind | None
    answered: Any  # rules of the answer
    asked: str | wire.RulesBody | None  # rules of the request


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
    # A caller may reuse an inference id; an event id is the endpoint's own.
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
    """Request and answer with their position in the line: one pair, or one per line."""
    asked, answered = _body(half.input), _body(half.output)
    if not _has_lines(half.input):
        return [("", asked, answered)]
    asked_lines, answered_lines = wire.lines_of(asked), wire.lines_of(answered)
    if len(asked_lines) != len(answered_lines):
        try:
            error = _json(answered)
        except ValueError:
            error = None
        if isinstance(error, dict) and "error" in error:  # the whole batch was refused
            return [("", asked, answered)]
        raise ValueError(
            f"data: {len(asked_lines)} lines were requested, and {len(answered_lines)} answered"
        )
    return [
        (f"line {j}: ", question, answer)
        for j, (question, answer) in enumerate(zip(asked_lines, answered_lines, strict=True))
    ]


def _has_lines(part: Mapping[str, Any]) -> bool:
    kind = part.get("observedContentType")
    return isinstance(kind, str) and kind.split(";")[0].strip().lower() in wire.LINES


def _body(part: Any) -> bytes:
    """The captured bytes of one side."""
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


def _values(
    request: wire.Request, response: dict[str, Any]
) -> tuple[dict[str, Any], IdKind | None]:
    """A row's captured values, and the type of its ids if it is stated."""
    items = response.get("item_ids")
    if not isinstance(items, list):
        raise ValueError(f"item_ids: expected a list, got {shown(items)}")
    kind = _kind(response.get("item_kind"), items)
    policy = _mapping("policy", response.get("policy"))
    params = _mapping("policy: params", policy.get("params") or {})
    values: dict[str, Any] = {
        name: response.get(name)
        for name in schema("int64").names
        if name not in (*_NOT_ANSWERED, *UNREAD)
    }
    values |= {
        "schema_version": SCHEMA_VERSION,
        "request_id_source": response.get("request_id_source"),
        "inference_id": response.get("inference_id"),
        "traceparent": response.get("traceparent"),
        "n_scored": response.get("n_scored"),
        "features_version": response.get("features_version"),
        "seen_id": response.get("seen_id"),
        "experiment": response.get("experiment"),
        "arm": response.get("arm"),
        "revision": response.get("revision"),
        "evaluation_log_propensities": response.get("evaluation_log_propensities"),
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
        "after": request.after,
        "score": _score(response.get("score")),
        "rules": _named(response.get("rules")),
    }
    user = plain_id(values["user_id"])
    if isinstance(user, int):
        values["user_id"] = str(user)
    if values["log_norm"] is None and not items and _has_norm(params):
        values["log_norm"] = -math.inf  # of a softmax over nothing, which JSON cannot represent
    return values, kind


def _score(answered: Any) -> dict[str, Any] | None:
    """The score of an answer, with its parameters as text."""
    if answered is None:
        return None
    score = _mapping("score", answered)
    params = _mapping("score: params", score.get("params") or {})
    return {**score, "params": json.dumps(params, sort_keys=True)}


def _named(answered: Any) -> dict[str, Any] | None:
    """The id of an answer's rules, with their parameters as text; None if there are none.

    A log does not contain empty rules.
    """
    if answered is None:
        return None
    rules = _mapping("rules", answered)
    if rules.get("id") == Rules().id:
        return None
    params = _mapping("rules: params", rules.get("params") or {})
    return {"id": rules.get("id"), "params": json.dumps(params, sort_keys=True)}


def _rules(answered: Any, asked: str | wire.RulesBody | None, kind: IdKind) -> Rules:
    """The rules of a ranking: those of the answer if they were named, else those of the request."""
    rules = _mapping("rules", answered)
    content = rules.get("content")
    if isinstance(asked, wire.RulesBody):
        content = asked.content
        pins = content.get("pin", {})
        for place, item in pins.items():  # as the server reads them
            pins[place] = id_from_text(str(item), _LIKE[kind])
    found = Rules.from_dict(content)
    if found.id != rules.get("id"):
        raise ValueError(f"rules: {shown(found)} do not have the answer's id")
    return found


def _has_norm(params: Mapping[str, Any]) -> bool:
    """Whether rankings by a law of these parameters state a `log_norm`: none below a head does."""
    return params.get("temperature") is not None and not params.get("head")


def _kind(stated: Any, items: list[Any]) -> IdKind | None:
    if stated is None:  # by an older server
        if not items:
            return None
        return "str" if any(isinstance(item, str) for item in items) else "int64"
    for kind in _LIKE:
        if stated == kind:
            return kind
    raise ValueError(f"item_kind: expected one of {', '.join(_LIKE)}; got {shown(stated)}")


def _row(values: dict[str, Any], kind: IdKind) -> dict[str, Any]:
    """Values in the types of the columns, where item ids are of this kind."""
    row = {}
    for field in schema(kind):
        value = values.get(field.name)
        if value is None:
            continue
        if field.name in ("exclude", "allow", "after"):
            found = ids_from_text(field.name, value, _LIKE[kind])
            value = found if isinstance(found, list) else found.tolist()
        elif field.name == "ts":
            value = _time(value)
        row[field.name] = _fitting(field.name, value, field.type)
    return row


def _kind_of_filters(rows: Iterable[_Captured]) -> IdKind:
    """Of rankings that are all empty: filters by text that is no integer are those of text."""
    words = (
        word
        for row in rows
        for name in ("exclude", "allow", "after")
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
    if pa.types.is_map(kind):  # of names to log-propensities; JSON has no infinity
        return [
            (key, [-math.inf if each is None else each for each in _fitting(name, part, wanted)])
            for wanted in [kind.item_type]
            for key, part in _mapping(name, value).items()
        ]
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
