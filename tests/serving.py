"""A service to test with: models, and calls of the app without a network."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import fastrank as fr
from fastrank_serving.app import App, create_app
from fastrank_serving.settings import Settings

T = TypeVar("T")
JSON = {"content-type": "application/json"}


def make_model(
    directory: Path,
    *,
    n: int = 200,
    dim: int = 8,
    users: int = 20,
    text: bool = False,
    seed: int = 0,
    **options: Any,
) -> fr.Model:
    """Users u0, u1, ... and items 0, 1, ... or "item 0", "item 1", ..., saved."""
    rng = np.random.default_rng(seed)
    ids: Any = [f"item {i}" for i in range(n)] if text else np.arange(n)
    catalog = fr.Catalog(ids, rng.standard_normal((n, dim)))
    vectors = rng.standard_normal((users, dim))
    model = fr.Model(catalog, [f"u{i}" for i in range(users)], vectors, **options)
    model.save(directory)
    return fr.Model.open(directory)


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json()["error"]
        return found


async def call(
    app: App,
    method: str,
    path: str,
    body: bytes | str = b"",
    headers: Mapping[str, str] | None = None,
    *,
    query: str = "",
    host: str = "127.0.0.1",
    parts: int = 1,
) -> Reply:
    """One request, its body in so many parts."""
    content = body.encode() if isinstance(body, str) else body
    size = max(1, -(-len(content) // parts))
    pieces = [content[at : at + size] for at in range(0, max(len(content), 1), size)]
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": j + 1 < len(pieces)}
        for j, piece in enumerate(pieces)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (name.lower().encode(), value.encode())
            for name, value in {**(headers if headers is not None else JSON)}.items()
        ],
        "client": (host, 1234),
        "server": ("127.0.0.1", 8080),
    }
    await app(scope, receive, send)
    start = sent[0]
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(part.get("body", b"") for part in sent[1:]))


async def ask(app: App, **request: Any) -> Reply:
    """POST /invocations."""
    return await call(app, "POST", "/invocations", json.dumps(request))


@contextlib.asynccontextmanager
async def serving(model: Path, **settings: Any) -> AsyncIterator[App]:
    """An app that is ready."""
    app = create_app(Settings(model=model, **{"threads": 2} | settings))
    await app.service.start()
    try:
        yield app
    finally:
        await app.service.close()


def with_app(model: Path, work: Callable[[App], Awaitable[T]], **settings: Any) -> T:
    """Run a test's coroutine against an app."""

    async def run() -> T:
        async with serving(model, **settings) as app:
            return await work(app)

    return asyncio.run(run())
