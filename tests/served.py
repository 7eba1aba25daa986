"""A service to test with: models, and calls of the app without a network."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from environment import inherited
from patience import PATIENCE
from starlette.types import ASGIApp

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
    features: Any = None,
    **options: Any,
) -> fr.Model:
    """Users u0, u1, ... and items 0, 1, ... or "item 0", "item 1", ..., saved."""
    rng = np.random.default_rng(seed)
    ids: Any = [f"item {i}" for i in range(n)] if text else np.arange(n)
    catalog = fr.Catalog(ids, rng.standard_normal((n, dim)), features=features)
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
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes | str = b"",
    headers: Mapping[str, str] | None = None,
    *,
    query: str = "",
    host: str = "127.0.0.1",
    raw_path: bytes | None = None,
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
        if not messages:
            await asyncio.Event().wait()  # the client stays
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode() if raw_path is None else raw_path,
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


class Process:
    """A server of its own, on a port that was free.

    Parameters
    ----------
    model : path
    arguments : str
        Of ``fastrank serve``.
    program : str
        fastrank_serving is what the container starts.
    command : sequence of str, optional
        Instead of it.
    environ : mapping, optional
        Added to the environment.
    stdout : path, optional
        Takes its standard output, which is thrown away otherwise.
    """

    def __init__(
        self,
        model: Path,
        *arguments: str,
        program: str = "fastrank",
        wait: bool = True,
        command: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        stdout: Path | None = None,
    ) -> None:
        self.port = free_port()
        usual = [sys.executable, "-m", program, "serve", str(model), "--port", str(self.port)]
        with open(stdout or os.devnull, "a") as output:
            self.process = subprocess.Popen(
                [*(command or usual), *arguments],
                stderr=subprocess.PIPE,
                stdout=output,
                text=True,
                env={**inherited(), **(environ or {})},
            )
        self._said: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        if wait:
            self.until_ready()

    def until_ready(self, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if self.get("/ping")[0] == 200:
                    return
            if self.process.poll() is not None:
                raise AssertionError(self.said())
            time.sleep(0.01)
        raise AssertionError("not ready in time")

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._said.append(line)

    def said(self) -> str:
        """What it wrote to standard error so far."""
        return "".join(self._said)

    def until_says(self, words: str, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while words not in self.said():
            assert time.monotonic() < end, self.said()
            time.sleep(0.01)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = self.connection()
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def ask(
        self, connection: http.client.HTTPConnection | None = None, **request: Any
    ) -> tuple[int, Any]:
        own = connection or self.connection()
        try:
            own.request("POST", "/invocations", json.dumps(request), JSON)
            reply = own.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            if connection is None:
                own.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = PATIENCE) -> tuple[int, str]:
        """Wait for the end; exit code and what it said."""
        try:
            self.process.wait(seconds)
        finally:
            self.process.kill()
        self._listener.join(seconds)
        return self.process.returncode, self.said()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        self.process.kill()
        self.process.wait()
        self._listener.join(PATIENCE)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, as ``curl --unix-socket`` speaks it."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def asked_over(path: Path, method: str, target: str) -> tuple[int, Any]:
    """Status and JSON of a request over a Unix socket."""
    connection = UnixConnection(path)
    try:
        connection.request(method, target)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def with_app(model: Path, work: Callable[[App], Awaitable[T]], **settings: Any) -> T:
    """Run a test's coroutine against an app."""

    async def run() -> T:
        async with serving(model, **settings) as app:
            return await work(app)

    return asyncio.run(run())
