"""Servers as processes, the small model that they serve, and a client that hides nothing.

`python tests/servers.py DIRECTORY` writes the model, for a server that is started elsewhere.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from environment import inherited
from patience import PATIENCE

import fastrank as fr

N_ITEMS, DIM = 300, 8
# Among them what templates, URLs and JSON could mistake for something of their own.
USERS = ["ann", "O'Brien", "50%", "a b", 'say "hi"', "back\\slash", "Zoë 東京", "$util.foo", "a+b"]


def make_model() -> fr.Model:
    """The model of the contract suite; the same one in every process."""
    rng = np.random.default_rng(20)
    vectors = rng.standard_normal((N_ITEMS, DIM)).astype(np.float32)
    users = rng.standard_normal((len(USERS), DIM)).astype(np.float32)
    catalog = fr.Catalog(np.arange(N_ITEMS) + 1000, vectors)
    return fr.Model(catalog, USERS, users, policy=fr.PlackettLuce(0.75))


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers.get("content-type", "").startswith("application/json"), self
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The error of the body, whose form is checked."""
        body = self.json()
        assert set(body) == {"error"}, body
        error: dict[str, Any] = body["error"]
        assert set(error) == {
            *("code", "field", "value", "allowed", "message", "request_id", "retry_after_s"),
        }
        assert isinstance(error["code"], str)
        assert isinstance(error["message"], str)
        assert b"Traceback" not in self.body
        return error


class Client:
    """Asks a server, on one connection if used as a context manager.

    Parameters
    ----------
    url : str
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.address = (parts.hostname, parts.port or 80)
        self._kept: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        self._kept = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._kept is not None
        self._kept.close()
        self._kept = None

    def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; bytes as they are, an iterator in chunks."""
        connection = self._kept or http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request(method, target, body, dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            if connection is not self._kept:
                connection.close()

    def invoke(self, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """POST /invocations; what is not bytes is written as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask(
            "POST", "/invocations", data, {"Content-Type": "application/json", **(headers or {})}
        )

    def ping(self) -> int:
        """The status of /ping; 0 if nobody answers."""
        try:
            return self.ask("GET", "/ping").status
        except OSError:
            return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Container:
    """The server as the container starts it, on a free port; a context manager.

    Parameters
    ----------
    base : Path
        Stands for /opt/ml: the model is in its folder model.
    environ : mapping, optional
        Added to the environment.
    """

    def __init__(self, base: Path, environ: Mapping[str, str] | None = None) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.client = Client(self.url)
        self.pings: list[int] = []
        self._errors = base / "stderr"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastrank_serving", "serve"],
                stderr=errors,
                env={
                    **inherited(),
                    "SAGEMAKER_BASE_DIR": str(base),
                    "SAGEMAKER_BIND_TO_PORT": str(port),
                    "FASTRANK_DRAIN_DELAY": "0",  # nobody is told to stay away
                    **(environ or {}),
                },
            )

    @property
    def stderr(self) -> str:
        return self._errors.read_text()

    def wait(self, seconds: float = 30.0) -> Self:
        """Until /ping says 200."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            self.pings.append(self.client.ping())
            if self.pings[-1] == 200:
                return self
            time.sleep(0.02)
        raise AssertionError(f"not ready; exit code {self.process.poll()}: {self.stderr}")

    def wait_for(self, words: str, times: int, seconds: float = 30.0) -> None:
        """Until the words stand so often on its standard error."""
        end = time.monotonic() + seconds
        while self.stderr.count(words) < times:
            assert time.monotonic() < end, self.stderr
            assert self.process.poll() is None, self.stderr
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 25.0) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    make_model().save(sys.argv[1])
