"""The examples of serving/examples, with a Redis that answers, is gone, or hangs."""

from __future__ import annotations

import json
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("redis")
import numpy as np
import redis
from patience import PATIENCE
from served import Process, make_model

import fastrank as fr

EXAMPLES = Path(__file__).parents[1] / "serving" / "examples"
USER = "u1"
DIM = 8


def example(name: str) -> Any:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


VECTOR, SEEN = example("vector_from_redis"), example("seen_from_redis")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Redis; each test has a user of its own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not here: Debian's package of that name has it")
    path = tmp_path_factory.mktemp("redis") / "s"
    options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
    with subprocess.Popen([program, *map(str, options)], stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + PATIENCE
            while not path.exists():
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def gone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"unix://{tmp_path_factory.mktemp('gone') / 's'}"


@pytest.fixture
def hangs(tmp_path: Path) -> Iterator[tuple[str, list[socket.socket]]]:
    """One that takes connections, which are kept here, and says nothing."""
    taken: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(16)

        def take() -> None:
            while True:
                try:
                    taken.append(listening.accept()[0])
                except OSError:
                    return

        taking = threading.Thread(target=take)
        taking.start()
        yield f"unix://{tmp_path / 's'}", taken
        listening.shutdown(socket.SHUT_RDWR)
        taking.join()
    for each in taken:
        each.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[fr.Model, str]]:
    """And the server of it, which draws nothing."""
    folder = tmp_path_factory.mktemp("model") / "m"
    made = make_model(folder, dim=DIM)
    with Process(folder, "--policy", "deterministic") as server:
        yield made, f"http://127.0.0.1:{server.port}"


def best(model: fr.Model, vector: Any, **more: Any) -> list[Any]:
    found: list[Any] = model.catalog.rank(
        vector, 10, policy=fr.Deterministic(), **more
    ).item_ids.tolist()
    return found


def asked(name: str, *arguments: str) -> Any:
    """What the program prints."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return json.loads(done.stdout) if done.stdout else None


class TestVector:
    def test_is_that_of_redis(self, model: tuple[fr.Model, str], store: str) -> None:
        made, server = model
        vector = np.linspace(-1, 1, DIM, dtype="<f4")
        client = redis.Redis.from_url(store)
        client.set(f"vector:monday:{USER}", vector.tobytes())
        answer = asked(
            *("vector_from_redis", USER, "--space", "monday"),
            *("--redis", store, "--server", server),
        )
        assert answer["item_ids"] == best(made, vector) != best(made, made.user_vector(USER))
        assert answer["user_id"] is None
        more = VECTOR.recommend(VECTOR.store_at(store), server, "monday", USER, k=3)
        assert more["item_ids"] == answer["item_ids"][:3]

    @pytest.mark.parametrize(
        "content",
        [None, b"", b"abc", struct.pack("<8f", *[0.0] * 7, float("nan"))],
        ids=["none", "empty", "half", "nan"],
    )
    def test_is_the_models_where_redis_has_none(
        self, model: tuple[fr.Model, str], store: str, content: bytes | None
    ) -> None:
        made, server = model
        client = VECTOR.store_at(store)
        client.delete("vector:tuesday:u2")
        if content is not None:
            client.set("vector:tuesday:u2", content)
        answer = VECTOR.recommend(client, server, "tuesday", "u2")
        assert answer["item_ids"] == best(made, made.user_vector("u2"))
        assert answer["user_id"] == "u2"

    def test_is_the_models_where_redis_is_gone_or_hangs(
        self, model: tuple[fr.Model, str], gone: str, hangs: tuple[str, list[socket.socket]]
    ) -> None:
        made, server = model
        for url in (gone, hangs[0]):
            answer = VECTOR.recommend(VECTOR.store_at(url), server, "monday", USER)
            assert answer["item_ids"] == best(made, made.user_vector(USER))
        assert len(hangs[1]) == 1  # it was tried once

    def test_that_does_not_fit_is_refused_by_the_server(
        self, model: tuple[fr.Model, str], store: str
    ) -> None:
        client = VECTOR.store_at(store)
        client.set("vector:long:u3", struct.pack("<9f", *range(9)))
        with pytest.raises(VECTOR.urllib.error.HTTPError) as caught:
            VECTOR.recommend(client, model[1], "long", "u3")
        assert caught.value.code == 422
        caught.value.close()


class TestSeen:
    def test_is_left_out_once_it_was_shown(self, model: tuple[fr.Model, str], store: str) -> None:
        made, server = model
        client = SEEN.store_at(store)
        first = SEEN.recommend(client, server, USER)["item_ids"]
        assert first == best(made, made.user_vector(USER))
        assert SEEN.recommend(client, server, USER)["item_ids"] == first
        shown = first[:3]
        where = ("--redis", store, "--server", server)
        assert asked("seen_from_redis", USER, "--shown", ",".join(map(str, shown)), *where) is None
        second = asked("seen_from_redis", USER, *where)["item_ids"]
        assert second == best(made, made.user_vector(USER), exclude=shown)
        assert second[:7] == first[3:]

    def test_has_a_bound_and_an_end(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(SEEN.remember.__globals__, "MOST", 3)
        client = SEEN.store_at(store)
        for items in ([1, 2], [3, 4], [2]):
            assert SEEN.remember(client, "u5", items)
        assert {*SEEN.seen_of(client, "u5")} == {"2", "4", "3"}
        assert SEEN.seen_of(client, "u5")[0] == "2"
        assert 29 * 86_400 < client.ttl("seen:u5") <= 30 * 86_400

    def test_comes_again_where_redis_is_gone_or_hangs(
        self, model: tuple[fr.Model, str], gone: str, hangs: tuple[str, list[socket.socket]]
    ) -> None:
        made, server = model
        for url in (gone, hangs[0]):
            client = SEEN.store_at(url)
            assert SEEN.remember(client, USER, [1]) is False
            answer = SEEN.recommend(client, server, USER)
            assert answer["item_ids"] == best(made, made.user_vector(USER))
        assert len(hangs[1]) == 2
