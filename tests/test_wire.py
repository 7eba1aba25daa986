"""One wire, read twice: what a server answers is read back from a capture as its own log has it."""

from __future__ import annotations

import base64
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_plus

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("starlette")
from hypothesis import given, settings
from hypothesis import strategies as st
from served import call, make_model, with_app
from support import DRAWS

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogReader, from_data_capture
from fastrank_serving.app import App

DIM, ITEMS = 3, 12
JSON, LINES = "application/json", "application/jsonlines"
REVISION = "c0129fe9063d"  # of the arms below
# What only the way of a row says, not the row.
OF_THE_WAY = {"ts", "latency_us", "writer_id", "writer_seq"}


class Call(NamedTuple):
    """Bodies of one request, and how they are sent and captured."""

    bodies: tuple[bytes, ...]
    content_type: str = JSON
    base64: bool = False
    apart: bool = False  # input and output in two lines
    headers: tuple[tuple[str, str], ...] = ()


# ---- Requests in every form -----------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
USERS = st.sampled_from(["u0", "u1", "u1\0", "a\0b", "O'Brien", "50%", "a+b c", "%FF", '"'])
FLOATS = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, -0.0, 1e-40, 0.1, 3e-6, 1.0])
POLICIES = [{"inference_type": name} for name in fr.INFERENCE_TYPES] + [
    {},
    {"temperature": 0.25},
    {"temperature": 1e-5},
    {"head": 1},
    {"temperature": 0.25, "head": 2},
    {"inference_type": "uniform", "head": 7},
    {"inference_type": "stochastic_epsilon_greedy", "epsilon": 0.5},
]


SCORES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.just({"score": " dot"}),
    st.just({"score": "dot - 0.5 * age"}),
    st.builds(lambda w: {"score": "dot + w * age", "params": {"w": w}}, FLOATS),
    st.builds(
        lambda kind, on: {
            "score": "dot if kind == é and on else -1",
            "params": {"é": kind, "on": on},
        },
        TEXT,
        st.booleans(),
    ),
)


RULES: list[dict[str, Any]] = [
    {},
    {},
    {"rules": "home", "params": {"most": 2}},
    {"rules": {}},
    {"rules": {"cap": {"kind": 1}, "where": "age < age_most"}, "params": {"age_most": 2.25}},
    {"rules": {"window": {"kind": [1, 2]}, "on_empty": "relax", "decay": None}},
]


def items(text: bool) -> st.SearchStrategy[int | str]:
    """Ids that the catalog's could be, many of them its own."""
    if text:
        own = st.integers(0, ITEMS - 1).map("item {}".format)
        return (
            own | TEXT.filter(lambda word: word[-1] != "\0") | st.sampled_from(["", '"', ",", "7"])
        )
    numbers = st.integers(-2, ITEMS + 2) | st.sampled_from([2**63 - 1, -(2**63)])
    return numbers | numbers.map(str)


@st.composite
def requests(draw: st.DrawFn, text: bool) -> dict[str, Any]:
    asked: dict[str, Any] = dict(draw(st.sampled_from(POLICIES)))
    if asked.get("inference_type") != "stochastic_flat_tail":  # which refuses them
        asked |= draw(SCORES)
    if draw(st.booleans()):
        asked["user_id"] = draw(USERS | TEXT)
    else:
        asked["query"] = draw(st.lists(FLOATS, min_size=DIM, max_size=DIM))
    for name in ("exclude", "allow"):
        filters = draw(st.none() | st.lists(items(text), max_size=ITEMS))
        if filters is not None:
            asked[name] = filters
    rules = draw(st.sampled_from(RULES))
    if rules:
        asked |= rules | {"params": {**asked.get("params", {}), **rules.get("params", {})}}
    own = [f"item {i}" if text else i for i in range(ITEMS)]
    after = draw(st.none() | st.lists(st.sampled_from(own), unique=True, max_size=4))
    if after is not None:
        asked["after"] = after
    seed = draw(st.none() | st.integers(0, 2**64 - 1))
    if seed is not None:
        asked["seed"] = seed
    if draw(st.booleans()):
        asked["k"] = draw(st.integers(1, 5))
    return asked


def in_quotes(word: int | str) -> str:
    return '"{}"'.format(str(word).replace('"', '""'))


def body(asked: dict[str, Any], form: str) -> bytes:
    """A request as JSON, as JSON with its numbers as text, or as API Gateway makes it."""
    if form == "json":
        return json.dumps(asked).encode()
    as_text: dict[str, Any] = {}
    for name, value in asked.items():
        as_text[name] = value if isinstance(value, str | list | dict) else repr(value)
        if name == "query":
            as_text[name] = [repr(number) for number in value]
        elif name in ("exclude", "allow", "after") and form == "gateway":
            as_text[name] = ",".join(map(in_quotes, value)) or ","  # '' would be none at all
    if form == "text":
        return json.dumps(as_text, ensure_ascii=False).encode()
    for name in ("params", "rules"):
        if isinstance(as_text.get(name), dict):
            as_text[name] = json.dumps(as_text[name])
    if "query" in as_text:
        as_text["query"] = ",".join(as_text["query"])
    gateway = {name: quote_plus(value) for name, value in as_text.items()}
    return json.dumps({"gateway": {**gateway, "request_id": ""}}).encode()


@st.composite
def calls(draw: st.DrawFn, text: bool) -> Call:
    lines = draw(st.booleans())
    forms = st.sampled_from(["json", "text", "gateway"])
    bodies = st.builds(body, requests(text), forms)
    few = draw(st.lists(bodies, min_size=1, max_size=3 if lines else 1))
    content_type = LINES if lines else JSON
    return Call(tuple(few), content_type, draw(st.booleans()), draw(st.booleans()))


# ---- Both ways ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["int64", "str"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wire") / "model"
    text = bool(request.param)
    factors = None if text else [2.0, 0.5]
    features = {"age": np.arange(ITEMS) / 4, "kind": ["a", "b", None] * (ITEMS // 3)}
    make_model(
        directory,
        n=ITEMS,
        dim=DIM,
        users=2,
        text=text,
        user_temperatures=factors,
        features=features,
    )
    return directory


def captured(number: int, asked: Call, answer: bytes) -> list[str]:
    """Lines of Data Capture."""

    def part(mode: str, data: bytes) -> dict[str, str]:
        shown = base64.b64encode(data).decode() if asked.base64 else data.decode()
        encoding = "BASE64" if asked.base64 else "JSON"
        kind = asked.content_type
        return {"observedContentType": kind, "mode": mode, "data": shown, "encoding": encoding}

    halves = {
        "endpointInput": part("INPUT", b"\n".join(asked.bodies)),
        "endpointOutput": part("OUTPUT", answer),
    }
    metadata = {"eventId": f"e{number}", "inferenceTime": "2026-01-01T00:00:00Z"}
    parts = [{name: half} for name, half in halves.items()] if asked.apart else [halves]
    return [json.dumps({"captureData": each, "eventMetadata": metadata}) for each in parts]


def both_ways(model: Path, asked: Sequence[Call], folder: Path) -> list[LogReader]:
    """Readers of the server's own log, and of a capture of what it was asked and answered."""

    async def work(app: App) -> list[str]:
        lines = []
        for number, each in enumerate(asked):
            headers = {"content-type": each.content_type, **dict(each.headers)}
            reply = await call(app, "POST", "/invocations", b"\n".join(each.bodies), headers)
            assert reply.status == 200, (each, reply.body)
            assert b'"error"' not in reply.body, (each, reply.body)
            lines += captured(number, each, reply.body)
        return lines

    (folder / "rules.json").write_text('{"home": {"where": "1 < most"}}')
    lines = with_app(
        model,
        work,
        log_directory=folder / "log",
        fallback=fr.PlackettLuce(2.0),
        threads=1,
        rules=(str(folder / "rules.json"),),
        experiment="e",
        arms=("cold=plackett_luce:temperature=0.5@0.5", "warm=plackett_luce:temperature=2@0.5"),
        also=("best=deterministic", "flat=uniform", "cold=plackett_luce:temperature=0.5"),
    )
    (folder / "capture.jsonl").write_text("\n".join(lines) + "\n")
    capture = from_data_capture(folder / "capture.jsonl")
    return [LogReader(folder / "log"), LogReader.of_tables(capture)]


def rows_of(reader: LogReader) -> dict[str, dict[str, Any]]:
    rows = {
        row["request_id"]: {name: row[name] for name in row.keys() - OF_THE_WAY}
        for batch in reader
        for row in batch.table.to_pylist()
    }
    assert reader.report.set_aside == {}
    return rows


@pytest.mark.sampled
@settings(max_examples=max(5, int(12 * DRAWS)))
@given(st.data())
def test_a_capture_is_the_servers_own_log(model: Path, data: st.DataObject) -> None:
    """Row for row, in every column that is not of the way it came."""
    text = fr.Catalog.open(model).item_ids.dtype.kind == "U"
    asked = data.draw(st.lists(calls(text), min_size=1, max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        own, capture = map(rows_of, both_ways(model, asked, Path(folder)))
    assert len(own) == sum(len(each.bodies) for each in asked)
    assert capture == own
    assert {row["revision"] for row in own.values()} == {REVISION}
    assert {row["arm"] for row in own.values()} <= {"cold", "warm", None}


@pytest.mark.parametrize(
    ("asked", "column", "expected"),
    [
        (b'{"query": ["1.0", "0.5", 0], "k": "2"}', "query", [1.0, 0.5, 0.0]),
        (b'{"gateway": {"query": "1.0%2C0.5%2C0", "k": "2"}}', "query", [1.0, 0.5, 0.0]),
        (b'{"gateway": {"query": "1.0,0.5,0"}}', "query", [1.0, 0.5, 0.0]),
        (b'{"gateway": {"user_id": "u0", "exclude": "%22item%203%22%2C4%2C,"}}', "exclude", None),
        (b'{"gateway": {"user_id": "%FF"}}', "user_id", "%FF"),
        (b'{"user_id": "nobody"}', "query", [0.0, 0.0, 0.0]),
        (b'{"user_id": "u0", "allow": []}', "log_norm", -math.inf),
        (b'{"user_id": "u0", "allow": [], "inference_type": "uniform"}', "log_norm", None),
        (b'{"user_id": "u0", "allow": [], "head": 2}', "log_norm", None),
        (
            b'{"user_id": "u0", "allow": [], "rules": {"pin": {"1": "item 1"}}, "after": ["item 1"'
            b"]}",
            "log_norm",
            -math.inf,
        ),
    ],
)
def test_rows_that_a_capture_lost(tmp_path: Path, asked: bytes, column: str, expected: Any) -> None:
    make_model(tmp_path / "model", n=ITEMS, dim=DIM, users=2, text=True)
    own, capture = map(rows_of, both_ways(tmp_path / "model", [Call((asked,))], tmp_path))
    assert capture == own
    (row,) = capture.values()
    assert row[column] == (["item 3", "4"] if column == "exclude" else expected)


@pytest.mark.parametrize("text", [False, True])
def test_captured_rules_can_be_audited(tmp_path: Path, text: bool) -> None:
    """Those that a request said stand in it, those that it named in the answer."""
    features = {"kind": ["a", "b", None] * (ITEMS // 3)}
    model = make_model(tmp_path / "model", n=ITEMS, dim=DIM, users=2, text=text, features=features)
    item = "item 7" if text else "7"
    rules = json.dumps({"pin": {"2": item}, "cap": {"kind": 2}})
    after = json.dumps(["item 1", "item 4"] if text else ["1", 4])
    asked = [
        Call((f'{{"user_id": "u0", "k": 4, "rules": {rules}, "after": {after}}}'.encode(),)),
        Call((b'{"user_id": "u1", "rules": "home", "params": {"most": 3}}',)),
        Call((f'{{"user_id": "u1", "after": {after}}}'.encode(),)),
    ]
    readers = both_ways(tmp_path / "model", asked, tmp_path)
    own, capture = map(rows_of, readers)
    assert capture == own
    for reader in readers:
        audit = ope.audit(reader, [model])
        (check,) = (each for each in audit.checks if each.name == "propensities")
        assert check.outcome == "passed", check
    ids = {row["rules"]["id"] for row in own.values() if row["rules"] is not None}
    pinned = fr.Rules(pin={2: item if text else 7}, cap={"kind": 2})
    assert ids == {pinned.id, fr.Rules(where="1 < most").id}


def test_a_capture_whose_rules_are_others_is_set_aside(tmp_path: Path) -> None:
    make_model(tmp_path / "model", n=ITEMS, dim=DIM, users=2)
    both_ways(tmp_path / "model", [Call((b'{"user_id": "u0", "rules": {"pin": {"1": 3}}}',))],
              tmp_path)  # fmt: skip
    file = tmp_path / "capture.jsonl"
    file.write_text(file.read_text().replace('\\"1\\": 3', '\\"1\\": 4'))
    capture = from_data_capture(file)
    assert list(capture) == []
    assert capture.read_report.set_aside == {"capture not understood": 1}


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INFERENCE_ID = ("x-amzn-sagemaker-inference-id", "i")


@pytest.mark.parametrize(
    ("asked", "sources"),
    [
        (Call((b'{"user_id": "u0"}',)), ["server"]),
        (Call((b'{"user_id": "u0"}',), headers=(INFERENCE_ID,)), ["server"]),
        (Call((b'{"user_id": "u0", "request_id": "a"}',), headers=(INFERENCE_ID,)), ["body"]),
        (Call((b'{"gateway": {"user_id": "u0", "request_id": "a"}}',)), ["body"]),
        (
            Call((b'{"user_id": "u0"}', b'{"user_id": "u0", "request_id": "a"}'), LINES),
            ["server", "body"],
        ),
    ],
)
def test_where_a_request_came_from(tmp_path: Path, asked: Call, sources: list[str]) -> None:
    make_model(tmp_path / "model", n=ITEMS, dim=DIM, users=2)
    traced = asked._replace(headers=(*asked.headers, ("traceparent", TRACE)))
    own, capture = map(rows_of, both_ways(tmp_path / "model", [traced], tmp_path))
    assert capture == own
    assert [row["request_id_source"] for row in own.values()] == sources
    assert {row["traceparent"] for row in own.values()} == {TRACE}
    label = dict(asked.headers).get(INFERENCE_ID[0])
    assert {row["inference_id"] for row in own.values()} == {label}


def test_a_batch_of_lines_is_a_row_a_line(tmp_path: Path) -> None:
    make_model(tmp_path / "model", n=ITEMS, dim=DIM, users=2)
    bodies = [b'{"user_id": "u%d", "exclude": [%d]}' % (j % 2, j) for j in range(5)]
    own, capture = map(
        rows_of, both_ways(tmp_path / "model", [Call((*bodies, b""), LINES)], tmp_path)
    )
    assert capture == own
    assert len(capture) == 5


def test_long_filters_are_the_same(tmp_path: Path) -> None:
    """The server's own log keeps them once for each content."""
    make_model(tmp_path / "model", n=300, dim=DIM, users=2)
    asked = json.dumps({"user_id": "u0", "exclude": [*range(99, -1, -1), "5"]}).encode()
    readers = both_ways(tmp_path / "model", [Call((asked,))], tmp_path)
    for reader in readers:
        (batch,) = reader
        excluded = batch.exclude(0)
        assert excluded is not None
        assert set(excluded.tolist()) == set(range(100))


def test_captured_fallbacks_can_be_audited(tmp_path: Path) -> None:
    """What was ranked for stands in the answer: no model knows the user."""
    model = make_model(tmp_path / "model", n=ITEMS, dim=DIM, users=2)
    asked = [Call((b'{"user_id": "nobody", "k": 3}',))] * 3
    _, capture = both_ways(tmp_path / "model", asked, tmp_path)
    audit = ope.audit(capture, [model], sample=3)
    assert audit.passed, audit
    (check,) = (each for each in audit.checks if each.name == "propensities")
    assert check.outcome == "passed"


@pytest.mark.parametrize("text", [False, True])
def test_an_answer_states_the_kind_of_its_ids(tmp_path: Path, text: bool) -> None:
    """An empty ranking's, too; and the document says so."""
    make_model(tmp_path / "model", n=ITEMS, dim=DIM, text=text)

    async def work(app: App) -> None:
        for asked in ({"user_id": "u0"}, {"user_id": "u0", "allow": []}):
            found = (await call(app, "POST", "/invocations", json.dumps(asked))).json()
            assert found["item_kind"] == ("str" if text else "int64")
            assert "query" not in found
        document = (await call(app, "GET", "/openapi.json")).json()
        answer = document["components"]["schemas"]["Answer"]
        assert set(answer["properties"]["item_kind"]["enum"]) == {"int64", "str"}
        assert set(answer["properties"]) - set(answer["required"]) == {
            *("query", "inference_id", "traceparent", "n_candidates", "retrieval", "n_probes"),
            *("tail_log_weight", "is_candidate", "score", "features_version", "rules"),
            *("seen_id", "experiment", "arm", "revision", "evaluation_log_propensities"),
        }

    with_app(tmp_path / "model", work)
