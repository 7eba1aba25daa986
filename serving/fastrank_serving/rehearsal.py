"""Requests of every kind, sent before a model serves: the last part of its self-test.

The first request of a kind makes Python import modules and read files. Without a rehearsal that
would happen while clients wait, and fail if the process cannot open more files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec
import numpy as np
from starlette.types import ASGIApp

import fastrank as fr
from fastrank.policies import TABLED
from fastrank_serving.rules import places_of
from fastrank_serving.service import Loaded
from fastrank_serving.settings import Settings

__all__ = ["rehearse"]

_JSON = "application/json"
_LINES = "application/jsonlines"
_PATHS = (
    *("/ping", "/livez", "/metrics", "/version", "/openapi.json", "/execution-parameters"),
    *("/", "/explorer/about", "/explorer/users", "/nothing"),
)
_FAILED = 500  # least status that reports an internal error


class _Asked(NamedTuple):
    method: str
    path: str
    body: bytes = b""
    kind: str = _JSON
    query: str = ""


async def rehearse(app: ASGIApp, loaded: Loaded, settings: Settings) -> None:
    """Send a separate app every kind of request that a server of this model may get.

    A request costs about 0.5 ms, for a catalog of any size; one under rules costs a few passes.

    Raises
    ------
    ValueError
        If a request is answered by a status of 500 or more, or not at all; the message names it.
    """
    for asked in _requests(loaded, settings):
        await asyncio.sleep(0)  # lets other requests be served
        try:
            status, body = await _ask(app, asked)
        except Exception as error:
            status, body = _FAILED, repr(error).encode()
        if status >= _FAILED:
            what = f"{asked.method} {asked.path} {asked.body.decode()}".strip()
            raise ValueError(f"self-test: {what}: {status} {body.decode()}")


def _requests(loaded: Loaded, settings: Settings) -> Iterator[_Asked]:
    ids = [] if loaded.model is None else [str(each) for each in loaded.model.user_ids[:1]]
    users = [*filter(_can_be_sent, ids), "nobody"]
    item = str(loaded.catalog.item_ids[0])
    query = np.zeros(loaded.catalog.dim).tolist()
    # Another policy would make a table, and keep it.
    types = [name for name in fr.INFERENCE_TYPES if fr.policy(name).sampler not in TABLED]
    functions = [path.rpartition(":")[2] for path in settings.score_functions]
    one: dict[str, Any] = {"k": 1, "seed": 1}  # a fixed seed: the test must not depend on chance
    own: dict[str, Any] = {"query": query, "k": 2, "seed": 1}
    if _can_be_sent(item):
        one["allow"] = [item]  # the cheapest ranking
        own |= {"rules": {"pin": {"2": item}, "on_empty": "relax"}}
    bodies: list[dict[str, Any]] = [
        *({"user_id": user, "inference_type": "uniform", **one} for user in users),
        *({"query": query, "inference_type": name, **one} for name in types),
        *({"query": query, "score": name, **one} for name in functions),
        {"query": query, "score": "dot + 1", "seed": 1, "exclude": ["nothing"]},
        own,
        {**own, "rules": {"cap": {"nothing": 1}}, "after": []},
        *({"query": query, "seed": 1, **_under(name, loaded, settings)} for name in loaded.rules),
        {"query": query, "inference_type": "nothing"},
        {"query": query, "k": 0},
        *({"query": query, "k": k, "request_id": "rehearsal", **one} for k in (1, 1, 2)),
        {},
    ]
    encoded = [msgspec.json.encode(body) for body in bodies]
    for body in (*encoded, b"{", b"\xff"):
        yield _Asked("POST", "/invocations", body)
    yield _Asked("POST", "/invocations", b"\n".join([*encoded[:2], b"{"]), _LINES)
    yield _Asked("POST", "/invocations", b"", "text/csv")
    for path in _PATHS:
        for method in ("GET", "HEAD", "POST"):
            yield _Asked(method, path)
    yield _Asked("GET", "/invocations")
    yield _Asked("GET", "/explorer/titles", query=urlencode({"id": item}, errors="replace"))
    for user in users:
        yield _Asked("GET", "/explorer/users", query=urlencode({"prefix": user[:1]}))
        path = f"/1/recommended-items/{quote(user)}"
        for text in (
            "k=1&seed=1&inference_type=uniform&params=%7B%7D&exclude=%22a%22,1",
            "k=1&k=1",
        ):
            yield _Asked("GET", path, query=text)
        yield _Asked("HEAD", path)


def _under(name: str, loaded: Loaded, settings: Settings) -> dict[str, Any]:
    """A request under the server's rules of that name, with enough places."""
    k = places_of(loaded.rules[name].rules, len(loaded.catalog))
    return {"rules": name, "k": min(k, settings.max_k)}


def _can_be_sent(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def _ask(app: ASGIApp, asked: _Asked) -> tuple[int, bytes]:
    messages: list[Any] = [{"type": "http.request", "body": asked.body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "query_string": asked.query.encode(),
        "root_path": "",
        "headers": [
            (b"host", b"rehearsal"),
            (b"content-type", asked.kind.encode()),
            (b"content-length", str(len(asked.body)).encode()),
            (b"traceparent", trace),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return int(sent[0]["status"]), b"".join(part.get("body", b"") for part in sent[1:])
