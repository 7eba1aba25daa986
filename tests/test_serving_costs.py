"""What bytes of strangers cost: in proportion to how many there are, on every path, errors first.

Processor time is measured at one, two and four times a size, twice: at a size where a mistake would
still end soon, and up to the limits. Each doubling may cost 2.5 times as much, of two doublings
together (between two sizes may lie the end of a cache); what lies below two milliseconds counts as
that. Other processes take no part in it but for what they do to caches, which only adds: each size
is judged by the least of its measurements, three of them, and as many again, up to ten times, where
it must be.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
import uvicorn
from served import call, make_model, with_app

from fastrank_serving.app import App
from fastrank_serving.server import _Protocol, _State
from fastrank_serving.settings import MAX_BODY

FLOOR = 0.002  # seconds
RATIO = 2.5
JSON, LINES = {"content-type": "application/json"}, {"content-type": "application/jsonlines"}
Cost = Callable[[int], Awaitable[float]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("costs") / "model"
    features = {"a": [1.0, 2.0] * 100, "b": [True, False] * 100}
    make_model(directory, features=features)
    return directory


@pytest.fixture(autouse=True, scope="module")
def no_collections() -> None:
    """Of what all other tests have left: once for all, since that takes longer than most tests."""
    gc.collect()
    gc.freeze()


async def is_linear(cost: Cost, sizes: tuple[int, ...]) -> bool:
    """By the least of up to ten measurements of each size: what disturbs them only adds."""
    found = [float("inf")] * len(sizes)
    for _ in range(10):
        for at, size in enumerate(sizes):
            found[at] = min(found[at], await cost(size))
            if at and found[at] > 4.0 * RATIO * max(found[at - 1], FLOOR):
                break  # the next one would take for ever
        if found[-1] <= RATIO ** (len(sizes) - 1) * max(found[0], FLOOR):
            return True
    print(found)
    return False


async def least(work: Callable[[], Awaitable[Any]]) -> float:
    costs = []
    for _ in range(3):
        began = time.process_time()
        await work()
        costs.append(time.process_time() - began)
    return min(costs)


@pytest.mark.slow
def test_what_grows_faster_is_found() -> None:
    """As the search for a repeated name among n did."""

    async def search(n: int) -> float:
        names = [str(j) for j in range(n)]

        async def work() -> None:
            assert all(names.count(name) == 1 for name in names)

        return await least(work)

    assert not asyncio.run(is_linear(search, (500, 1000, 2000)))


# ---- Bodies ---------------------------------------------------------------------------------


def many(part: str, n: int, *, between: str = ",") -> str:
    """Of a part, as many as n bytes hold."""
    return between.join([part] * max(1, n // (len(part) + len(between))))


def numbered(form: str, n: int) -> str:
    return ",".join(form.format(j) for j in range(max(1, n // (len(form) + 6))))


BODIES: dict[str, Callable[[int], str]] = {
    "many names": lambda n: "{" + numbered('"a{}":1', n) + "}",
    "many names, the last of them twice": lambda n: (
        "{" + numbered('"a{}":1', n) + ',"user_id":"1","user_id":"2"}'
    ),
    "one name over and over": lambda n: "{" + many('"k":1', n) + "}",
    "a name that is long": lambda n: '{"' + "x" * n + '":1}',
    "a name that is long, twice": lambda n: (
        '{"user_id":"a","' + "x" * (n // 2) + '":1,"' + "x" * (n // 2) + '":1}'
    ),
    "small lists and an escape": lambda n: (
        '{"user_id":"\\u0061","exclude":[' + many("[]", n) + "]}"
    ),
    "small objects": lambda n: '{"user_id":"a","params":[' + many("{}", n) + "]}",
    "lists in lists": lambda n: '{"user_id":"a","exclude":' + "[" * n,
    "lists in lists, closed": lambda n: '{"exclude":' + "[" * (n // 2) + "]" * (n // 2) + "}",
    "a long query": lambda n: '{"query":[' + many("0.5", n) + "]}",
    "a long query as text": lambda n: '{"query":[' + many('"0.5"', n) + "]}",
    "a query of one long text": lambda n: '{"query":["' + many("0.5", n) + '"]}',
    "digits": lambda n: '{"user_id":"a","seed":' + "9" * n + "}",
    "digits as text": lambda n: '{"user_id":"a","seed":"' + "9" * n + '"}',
    "digits of a fraction, as text": lambda n: '{"user_id":"a","temperature":"0.' + "9" * n + '"}',
    "a user of many letters": lambda n: '{"user_id":"' + "x" * n + '"}',
    "a user of many escapes": lambda n: '{"user_id":"' + "\\u0041" * (n // 6) + '"}',
    "a repeated user of many letters": lambda n: '{"user_id":"x","user_id":"' + "y" * n + '"}',
    "ids": lambda n: '{"user_id":"u1","exclude":[' + numbered("10{}", min(n, 500_000)) + "]}",
    "too many ids": lambda n: '{"user_id":"u1","exclude":[' + many("7", n) + "]}",
    "ids as text": lambda n: '{"user_id":"u1","allow":[' + numbered('"{}"', min(n, 500_000)) + "]}",
    "ids, the last of another kind": lambda n: (
        '{"user_id":"u1","exclude":[' + many("123456", min(n, 500_000)) + ',"x"]}'
    ),
    "ids, the last no id at all": lambda n: '{"exclude":[' + many("123456", n) + ",1.5]}",
    "parameters": lambda n: (
        '{"user_id":"u1","score":"dot","params":{' + numbered('"p{}":1', n) + "}}"
    ),
    "a parameter of many letters": lambda n: (
        '{"user_id":"u1","score":"dot","params":{"p":"' + "x" * n + '"}}'
    ),
    "a score of many terms": lambda n: (
        '{"user_id":"u1","score":"' + many("dot", min(n, 9_000), between="+") + '"}'
    ),
    "a score of many letters": lambda n: '{"user_id":"u1","score":"' + "x" * n + '"}',
    "rules of no kind": lambda n: '{"user_id":"u1","rules":{' + numbered('"r{}":1', n) + "}}",
    "rules of many columns": lambda n: (
        '{"user_id":"u1","rules":{"cap":{' + numbered('"c{}":1', n) + "}}}"
    ),
    "rules of small lists": lambda n: '{"user_id":"u1","rules":{"cap":[' + many("[]", n) + "]}}",
    "rules of lists in lists": lambda n: '{"user_id":"u1","rules":{"where":' + "[" * n,
    "a rule over and over": lambda n: '{"user_id":"u1","rules":{' + many('"cap":{}', n) + "}}",
    "a column over and over": lambda n: (
        '{"user_id":"u1","rules":{"cap":{' + many('"a":1', n) + "}}}"
    ),
    "a window of many numbers": lambda n: (
        '{"user_id":"u1","rules":{"window":{"a":[' + many("1", n) + "]}}}"
    ),
    "a place of many digits": lambda n: '{"user_id":"u1","rules":{"pin":{"' + "9" * n + '":1}}}',
    "a pin of many digits": lambda n: '{"user_id":"u1","rules":{"pin":{"1":' + "9" * n + "}}}",
    "an expression of many letters": lambda n: (
        '{"user_id":"u1","rules":{"where":"' + "x" * n + '"}}'
    ),
    "expressions of many terms": lambda n: (
        '{"user_id":"u1","rules":{"boost":{"'
        + '":2,"'.join(many(f"a<{j}", min(n, 60_000) // 10 - 50, between=" or ") for j in range(10))
        + '":2}}}'
    ),
    "a name of many letters": lambda n: '{"user_id":"u1","rules":"' + "x" * n + '"}',
    "rules under escapes": lambda n: (
        '{"user_id":"u1","rules":{"\\u0063ap":{"' + "\\u0041" * (n // 6) + '":1}}}'
    ),
    "pages before": lambda n: '{"user_id":"u1","after":[' + numbered("{}", min(n, 500_000)) + "]}",
    "pages before, of one item": lambda n: '{"user_id":"u1","after":[' + many("7", n) + "]}",
    "a gateway's rules": lambda n: (
        '{"gateway":{"user_id":"u1","rules":"{%22cap%22:{' + many("%22a%22:1", n) + '}}"}}'
    ),
    "a gateway's list": lambda n: '{"gateway":{"user_id":"u1","exclude":"' + many("7", n) + '"}}',
    "a gateway's escapes": lambda n: '{"gateway":{"user_id":"' + many("%41", n, between="") + '"}}',
    "a gateway's quotes": lambda n: (
        '{"gateway":{"user_id":"u1","exclude":"' + many('\\"a\\"\\"\\"', n) + '"}}'
    ),
    "a gateway's names": lambda n: '{"gateway":{' + numbered('"a{}":"1"', n) + "}}",
    "no end": lambda n: '{"user_id":"u1","exclude":[' + many("[1]", n),
    "no text": lambda n: '{"user_id":"' + "x" * n + "\udcff" + '"}',
    "spaces": lambda n: '{"user_id":"u1"' + " " * n + "}",
    "no JSON": lambda n: "x" * n,
}
SOME, ALL = (20_000, 40_000, 80_000), (MAX_BODY // 4 - 50, MAX_BODY // 2 - 50, MAX_BODY - 100)


@pytest.mark.sampled
@pytest.mark.parametrize("sizes", [SOME, pytest.param(ALL, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_bodies(model: Path, tmp_path: Path, name: str, sizes: tuple[int, ...]) -> None:
    statuses = set()

    async def work(app: App) -> bool:
        async def cost(n: int) -> float:
            body = BODIES[name](n).encode(errors="surrogateescape")

            async def once() -> None:
                reply = await call(app, "POST", "/invocations", body, JSON)
                statuses.add(reply.status)
                assert len(reply.body) < 20_000

            return await least(once)

        return await is_linear(cost, sizes)

    assert with_app(model, work, log_directory=tmp_path / "log")
    assert statuses <= {200, 400, 422}


BATCHES: dict[str, Callable[[int], str]] = {
    "empty lines": lambda n: "\n" * n,
    "lines of one letter": lambda n: many("x", n, between="\n"),
    "rankings": lambda n: many('{"user_id":"u1","k":1}', n, between="\n"),
    "users that nobody knows": lambda n: many('{"user_id":"nobody"}', n, between="\n"),
    "one long line": lambda n: '{"user_id":"u1","exclude":[' + many("[]", n) + "]}\n{}",
    "lines with repeated names": lambda n: many('{"user_id":"1","user_id":"2"}', n, between="\n"),
}


@pytest.mark.sampled
@pytest.mark.parametrize(
    "sizes",
    [
        (5_000, 10_000, 20_000),
        pytest.param((150_000, 300_000, 600_000), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", BATCHES)
def test_batches(model: Path, name: str, sizes: tuple[int, ...]) -> None:
    async def work(app: App) -> bool:
        async def cost(n: int) -> float:
            body = BATCHES[name](n).encode()
            return await least(lambda: call(app, "POST", "/invocations", body, LINES))

        return await is_linear(cost, sizes)

    assert with_app(model, work)


# ---- Addresses and heads --------------------------------------------------------------------

URLS: dict[str, Callable[[int], tuple[str, str]]] = {
    "a user of many letters": lambda n: ("/1/recommended-items/" + "x" * n, ""),
    "slashes": lambda n: ("/1/recommended-items/" + "/" * n, ""),
    "an address that is not there": lambda n: ("/" + "x/" * (n // 2), ""),
    "ids": lambda n: ("/1/recommended-items/u1", "exclude=" + many("7", n)),
    "ids in quotes": lambda n: ("/1/recommended-items/u1", "exclude=" + many('"7""8"', n)),
    "a quote that is left open": lambda n: ("/1/recommended-items/u1", 'exclude="' + "x" * n),
    "parameters": lambda n: ("/1/recommended-items/u1", many("k=1", n, between="&")),
    "names": lambda n: (
        "/1/recommended-items/u1",
        "&".join(f"a{j}=1" for j in range(n // 8)),
    ),
    "escapes": lambda n: ("/1/recommended-items/u1", "inference_type=" + "%41" * (n // 3)),
    "half escapes": lambda n: ("/1/recommended-items/u1", "inference_type=" + "%" * n),
    "parameters of a score": lambda n: (
        "/1/recommended-items/u1",
        "score=dot&params={" + numbered('"p{}":1', n) + "}",
    ),
    "rules": lambda n: (
        "/1/recommended-items/u1",
        'rules={"cap":{' + numbered('"c{}":1', n) + "}}",
    ),
    "lists in rules": lambda n: ("/1/recommended-items/u1", 'rules={"cap":' + "[" * n),
    "pages before": lambda n: ("/1/recommended-items/u1", "after=" + numbered("{}", n)),
    "titles": lambda n: ("/explorer/titles", many("id=1", n, between="&")),
    "a prefix": lambda n: ("/explorer/users", "prefix=" + "u" * n),
}
HEAD = 60_000


@pytest.mark.sampled
@pytest.mark.parametrize("name", URLS)
def test_addresses(model: Path, name: str) -> None:
    async def work(app: App) -> bool:
        async def cost(n: int) -> float:
            path, query = URLS[name](n)
            return await least(lambda: call(app, "GET", path, query=query))

        return await is_linear(cost, (HEAD // 4, HEAD // 2, HEAD))

    assert with_app(model, work)


HEADS: dict[str, Callable[[int], bytes]] = {
    "many headers": lambda n: b"".join(b"h%d: v\r\n" % j for j in range(n // 9)),
    "one header over and over": lambda n: b"accept: x\r\n" * (n // 11),
    "a long value": lambda n: b"x: " + b"y" * n + b"\r\n",
    "a long name": lambda n: b"y" * n + b": x\r\n",
    "codings": lambda n: b"transfer-encoding: " + b"gzip," * (n // 5) + b"chunked\r\n",
    "upgrades": lambda n: b"upgrade: h2c\r\n" * (n // 14),
    "a trace": lambda n: b"traceparent: " + b"0" * n + b"\r\n",
    "custom attributes": lambda n: b"x-amzn-sagemaker-custom-attributes: " + b"a" * n + b"\r\n",
}


class Sink(asyncio.Transport):
    """A client that reads everything."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@pytest.mark.parametrize("step", [HEAD, 512], ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", HEADS)
def test_heads(model: Path, name: str, step: int) -> None:
    async def work(app: App) -> bool:
        config = uvicorn.Config(app, http=_Protocol, ws="none", lifespan="off", log_config=None)
        config.load()
        state = _State(lambda: None)

        async def cost(n: int) -> float:
            head = b"GET /ping HTTP/1.1\r\nhost: x\r\n" + HEADS[name](n) + b"\r\n"

            async def once() -> None:
                connection = _Protocol(config=config, server_state=state, app_state={})
                transport = Sink()
                connection.connection_made(transport)
                for at in range(0, len(head), step):
                    if not transport.closed:
                        connection.data_received(head[at : at + step])
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert transport.sent.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
                connection.connection_lost(None)

            return await least(once)

        return await is_linear(cost, (HEAD // 4, HEAD // 2, HEAD))

    assert with_app(model, work)


def test_the_limits_are_those_of_these_tests(model: Path) -> None:
    """Or sizes would not go up to them."""

    async def work(app: App) -> None:
        assert app.service.settings.max_body == MAX_BODY
        longest = json.dumps({"user_id": "x" * (MAX_BODY - 100)})
        assert (await call(app, "POST", "/invocations", longest, JSON)).status == 422
        longer = json.dumps({"user_id": "x" * MAX_BODY})
        assert (await call(app, "POST", "/invocations", longer, JSON)).status == 413

    with_app(model, work)
