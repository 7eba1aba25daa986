"""Once a server is ready nothing is imported any more, whatever it is asked for."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE
from served import Process, asked_over, with_app

pytest.importorskip("pyarrow")

import fastrank as fr
from fastrank.eventlog import LogReader
from fastrank_serving.app import App
from fastrank_serving.rehearsal import _requests
from fastrank_serving.service import Loaded
from fastrank_serving.settings import Settings

# Python runs this before anything else: what is imported is written down.
SITE = """
import os, sys
file = os.open({path!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
sys.addaudithook(
    lambda event, given: event == "import" and os.write(file, given[0].encode() + b"\\n")
)
"""
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def make(directory: Path, text: bool, seed: int = 0) -> fr.Model:
    rng = np.random.default_rng(seed)
    ids: Any = [f"item {i}" for i in range(60)] if text else np.arange(60)
    users: Any = ["ann", "bo", "cy"] if text else [1, 2, 3]
    columns = {"price": np.arange(60.0), "seller": ["acme", "bob"] * 30}
    catalog = fr.Catalog(ids, rng.standard_normal((60, 4)), features=columns)
    titles = [f"title {i}" for i in range(60)]
    model = fr.Model(catalog, users, rng.standard_normal((3, 4)), item_titles=titles,
                     user_temperatures=[0.5, 1.0, 2.0])  # fmt: skip
    model.save(directory)
    return model


def everything(text: bool) -> list[tuple[str, str, bytes, dict[str, str]]]:
    """Requests of every kind: method, target, body, headers."""
    user, item, other = ("ann", "item 1", "item 2") if text else ("1", 1, "2")
    many = [f"item {i}" if text else i for i in range(2, 60)] * 2
    by_user: list[dict[str, Any]] = [
        {},
        {"k": 3, "seed": 5, "exclude": [item], "allow": [item, other]},
        {"exclude": many[:50] + many[60:]},  # stored beside the log
        {"score": "dot - price / 100 if seller == shop else -9", "params": {"shop": "bob"}},
        {"rules": {"cap": {"seller": 2}, "at_least": {"price < most": 1}}, "params": {"most": 9}},
        {"rules": {"pin": {"2": item}, "window": {"seller": [1, 2]}}, "after": [other], "k": 3},
        {"rules": {"decay": {"seller": 0.5}, "boost": {"price < 9": 2}}},
        {"rules": {"pin_where": {"1": "price < 9"}}},
        {"rules": "nothing"},
        {"rules": {"cap": {"nothing": 1}}},
        {"request_id": "a"},
        {"request_id": "a"},
        {"request_id": "a", "k": 2},
        {"k": 0},
        {"k": 10**30},
        {"seed": "x"},
        {"nothing": 1},
        {"inference_type": "nothing"},
        {"exclude": ["nothing at all"]},
        {"temperature": 1e-300},
        *({"inference_type": name} for name in fr.INFERENCE_TYPES),
    ]
    bodies = [json.dumps({"user_id": user} | body).encode() for body in by_user]
    bodies += [
        json.dumps(body).encode()
        for body in (
            {"query": [0.5, 1, 2, 3]},
            {"query": [0.5]},
            {"query": [1e40, 0, 0, 0]},
            {"user_id": "nobody"},
            {"user_id": 1.5},
            {"gateway": {"user_id": user, "k": "3", "exclude": "", "request_id": "g"}},
        )
    ]
    bodies += [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"user_id": "\\ud800"}',
        b'{"k": 1, "k": 2}',
        b"[" * 9999,
    ]
    json_kind = {"content-type": "application/json"}
    lines = b"\n".join([*bodies[:3], b"{", b""])
    found = [("POST", "/invocations", body, json_kind) for body in bodies]
    found += [
        ("POST", "/invocations", lines, {"content-type": "application/jsonlines"}),
        ("POST", "/invocations", bodies[0], {"content-type": "text/csv"}),
        ("POST", "/invocations", bodies[0], json_kind | {"traceparent": TRACE}),
        ("POST", "/invocations", bodies[0], {"x-amzn-sagemaker-inference-id": "i" * 300}),
        ("POST", "/invocations", b"x" * 7_000_000, json_kind),
        ("POST", "/endpoints/any/invocations", bodies[0], json_kind),
        ("POST", "/invocations", bodies[0], json_kind | {"content-encoding": "gzip"}),
        ("PUT", "/invocations", b"", {}),
    ]
    queries = ("", "k=3&exclude=1,%22a%22%22b%22", "k=1&k=2", "x=1", "score=dot&params=%7B%7D")
    paths = [
        *("/ping", "/livez", "/metrics", "/version", "/openapi.json", "/nothing", "/"),
        *("/execution-parameters", "/explorer/about", "/explorer/users?prefix=a&limit=3"),
        *("/explorer/users?limit=x", "/explorer/titles?id=item%201&id=1", "/explorer/explorer.js"),
        *(f"/1/recommended-items/{user}?{query}" for query in queries),
    ]
    return found + [(method, path, b"", {}) for path in paths for method in ("GET", "HEAD", "POST")]


@pytest.mark.sampled
@pytest.mark.parametrize("text", [False, True])
def test_nothing_is_imported_once_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bool
) -> None:
    make(tmp_path / "model", text)
    imported = tmp_path / "imported"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE.format(path=str(imported)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    admin = tmp_path / "admin.sock"
    options = ("--log", str(tmp_path / "log"), "--admin-socket", str(admin))
    with Process(tmp_path / "model", *options) as server:
        server.until_says("serving model")
        before = imported.read_text().split()
        assert "fastrank_serving.server" in before
        connection = server.connection()
        statuses = set()
        for method, target, body, headers in everything(text):
            try:
                connection.request(method, target, body, headers)
                reply = connection.getresponse()
                reply.read()
                statuses.add(reply.status)
            except (BrokenPipeError, ConnectionResetError):  # it was told enough
                connection.close()
        connection.close()
        for raw in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\n"
                    b"connection: upgrade\r\n\r\n"):  # fmt: skip
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
                client.sendall(raw)
                assert client.recv(65536).startswith(b"HTTP/1.1 ")
        end = time.monotonic() + PATIENCE
        while not list((tmp_path / "log").glob("*.arrow")):
            assert time.monotonic() < end
            time.sleep(0.01)
        second = make(tmp_path / "model", text, seed=1)
        reloaded = asked_over(admin, "POST", "/-/reload")
        assert reloaded == (200, {"model_version": second.version})
        assert asked_over(admin, "GET", "/")[0] == 404
        assert server.get("/metrics")[0] == 200
        after = imported.read_text().split()
        server.signal(signal.SIGTERM)
        code, said = server.end()
    assert code == 0, said
    assert not admin.exists()
    assert statuses == {200, 400, 404, 405, 409, 413, 415, 422}
    assert after[len(before) :] == []
    assert sum(1 for _ in LogReader(tmp_path / "log")) > 0


def test_a_rehearsal_is_neither_counted_nor_logged(tmp_path: Path) -> None:
    make(tmp_path / "model", text=True)

    async def work(app: App) -> str:
        app.service.tick()
        assert app.service.log is not None
        app.service.log.flush()
        assert app.service.log.rows_written == 0
        await app.service.reload()
        return app.service.metrics.page().decode()

    page = with_app(tmp_path / "model", work, log_directory=tmp_path / "log")
    assert "fastrank_requests_total{" not in page
    assert 'fastrank_reloads_total{outcome="loaded"} 2.0' in page


def test_a_model_that_fails_it_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tmp_path / "model", text=False)

    async def work(app: App) -> None:
        make(tmp_path / "model", text=False, seed=1)

        def fail(*_: object) -> None:
            raise RuntimeError("not now")

        with monkeypatch.context() as patched:
            patched.setattr(Loaded, "of_user", fail)
            with pytest.raises(ValueError, match=r'self-test: POST /invocations {"user_id":"1"'):
                await app.service.reload()
        assert app.service.loaded.version == first.version
        await app.service.reload()
        assert app.service.loaded.version != first.version

    with_app(tmp_path / "model", work)


def test_what_is_rehearsed_costs_no_pass_for_each_request(tmp_path: Path) -> None:
    """Rankings of one item, or uniform ones; of the whole catalog one, and one by rules."""
    make(tmp_path / "model", text=False)
    loaded = Loaded.open(tmp_path / "model")
    whole = 0
    for asked in _requests(loaded, Settings(model=tmp_path / "model")):
        if asked.path != "/invocations" or b'"query"' not in asked.body:
            continue
        for line in asked.body.split(b"\n"):
            body = json.loads(line) if line.startswith(b'{"q') else {}
            whole += "query" in body and body.get("k") != 0 and "allow" not in body
    assert whole == 4  # two of them under rules; one of each two is refused


@pytest.mark.parametrize("deadline", [1e-9, 20.0])
def test_a_short_deadline_is_for_clients(tmp_path: Path, deadline: float) -> None:
    make(tmp_path / "model", text=False)

    async def work(app: App) -> None:
        assert app.service.ready

    with_app(tmp_path / "model", work, deadline=deadline, queue=1)
