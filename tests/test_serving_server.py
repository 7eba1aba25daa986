"""Processes under load and faults: what was sent, what was answered, what was lost."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from environment import inherited
from patience import PATIENCE
from served import Process, free_port, make_model

import fastrank as fr
from fastrank.eventlog import LogReader
from fastrank_serving.metrics import Metrics
from fastrank_serving.server import _Protocol, _Server, _Workers
from fastrank_serving.service import Service
from fastrank_serving.settings import Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 items: a ranking is handed to a thread, and takes a while."""
    directory = tmp_path_factory.mktemp("server") / "model"
    make_model(directory, n=20_000, dim=96, users=20, policy=fr.PlackettLuce(1.0))
    return directory


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Process]:
    with Process(model) as found:
        yield found


@pytest.fixture(scope="module")
def hasty(model: Path) -> Iterator[Process]:
    with Process(model, "--receive-timeout", "1") as found:
        yield found


BODY_OF_100 = (
    b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b'content-length: 100\r\n\r\n{"user_id":'
)


class Load:
    """Clients that ask one after another, and count what comes back.

    A request that gets no answer, as its connection breaks, is sent again once, under the same id.
    """

    def __init__(self, server: Process, clients: int = 4) -> None:
        self.server = server
        self.sent = 0
        self.answered: Counter[int] = Counter()
        self.versions: set[str] = set()
        self.latest: deque[str] = deque(maxlen=100)
        self.ids: dict[str, float] = {}  # of answers, and when they came
        self.broken = 0  # connections that ended under a request
        self.refused = 0  # connections that were not accepted: nobody was promised anything
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number,), daemon=True)
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def until(self, answers: int, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while sum(self.answered.values()) < answers:
            assert time.monotonic() < end, (self.sent, self.answered)
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        connection: http.client.HTTPConnection | None = None
        count = 0
        while not self._stop.is_set():
            count += 1
            request = {"user_id": f"u{count % 20}", "k": 5, "request_id": f"c{number}-{count}"}
            with self._lock:
                self.sent += 1
            for _ in range(2):
                try:
                    if connection is None or connection.sock is None:
                        connection = self.server.connection()
                        connection.connect()
                except OSError:
                    connection = None
                    with self._lock:
                        self.sent -= 1
                        self.refused += 1
                    self._stop.wait(0.01)
                    break
                try:
                    status, body = self.server.ask(connection, **request)
                except (OSError, http.client.HTTPException):
                    connection.close()
                    connection = None
                    with self._lock:
                        self.broken += 1
                    continue
                with self._lock:
                    self.answered[status] += 1
                    if status == 200:
                        self.versions.add(body["model_version"])
                        self.latest.append(body["model_version"])
                        self.ids[body["request_id"]] = time.monotonic()
                break
        if connection is not None:
            connection.close()

    @property
    def lost(self) -> int:
        return self.sent - sum(self.answered.values())


def logged(directory: Path) -> set[str]:
    return {row["request_id"] for batch in LogReader(directory) for row in batch.table.to_pylist()}


def test_sigterm_under_load_loses_nothing(model: Path, tmp_path: Path) -> None:
    with Process(model, "--log", str(tmp_path), "--drain-delay", "0.2") as server:
        load = Load(server)
        load.until(100)
        server.signal(signal.SIGTERM)
        code, said = server.end()
        load.stop()
    assert code == 0, said
    assert load.lost == 0
    # A connection that the kernel took between the last look at its queue and the socket's end was
    # never the server's: at most each client's last, which finds nobody when it is sent again.
    assert load.broken <= 4
    assert set(load.answered) == {200}
    assert logged(tmp_path) == set(load.ids)  # and no log row either


def test_the_log_says_where_a_request_came_from(model: Path, tmp_path: Path) -> None:
    """Over a socket: an id of each source, one trace that is valid and some that are not."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    inference_id = "X-Amzn-SageMaker-Inference-Id"
    cases: list[tuple[str, list[tuple[str, str]], str, str | None]] = [
        ('{"user_id": "u1"}', [], "server", None),
        # A session's requests may all have the same label; another question is no matter.
        ('{"user_id": "u1"}', [(inference_id, "a")], "server", None),
        ('{"user_id": "u2"}', [(inference_id, "a")], "server", None),
        ('{"user_id": "u1", "request_id": "b"}', [(inference_id, "c")], "body", None),
        ('{"user_id": "u1"}', [("Traceparent", trace)], "server", trace),
        ('{"user_id": "u1"}', [("traceparent", f"{trace}-")], "server", None),
        ('{"user_id": "u1"}', [("traceparent", trace)] * 2, "server", None),
    ]
    answers = []
    with Process(model, "--log", str(tmp_path / "log")) as server:
        connection = server.connection()
        for body, headers, _, _ in cases:
            connection.putrequest("POST", "/invocations")
            for name, value in [("Content-Length", str(len(body))), *headers]:
                connection.putheader(name, value)
            connection.endheaders(body.encode())
            answers.append(json.loads(connection.getresponse().read()))
        for target in ("/1/recommended-items/u1", "/1/recommended-items/u1?request_id=d"):
            connection.request("GET", target, headers={"traceparent": trace})
            answers.append(json.loads(connection.getresponse().read()))
        connection.close()
    expected = [each[2:] for each in cases] + [("server", trace), ("body", trace)]
    (batch,) = LogReader(tmp_path / "log")
    rows = {row["request_id"]: row for row in batch.table.to_pylist()}
    assert len(rows) == len(answers)
    for answer, (source, traced) in zip(answers, expected, strict=True):
        row = rows[answer["request_id"]]
        assert row["request_id_source"] == answer["request_id_source"] == source
        assert row["traceparent"] == answer.get("traceparent") == traced
    labels = [rows[answer["request_id"]]["inference_id"] for answer in answers]
    assert labels == [answer.get("inference_id") for answer in answers]
    assert labels == [None, "a", "a", "c", None, None, None, None, None]


def test_boto3_asks_it_as_an_endpoint(server: Process) -> None:
    pytest.importorskip("botocore")
    import botocore.exceptions
    import botocore.session

    client = botocore.session.get_session().create_client(
        "sagemaker-runtime",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        region_name="eu-west-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    reply = client.invoke_endpoint(
        EndpointName="my-endpoint-1",
        ContentType="application/json",
        InferenceId="label",
        Body=b'{"user_id": "u1", "k": 3}',
    )
    found = json.loads(reply["Body"].read())
    assert (len(found["item_ids"]), found["inference_id"]) == (3, "label")
    with pytest.raises(botocore.exceptions.ClientError):
        client.invoke_endpoint(EndpointName="e", Body=b'{"user_id": "nobody"}')
    for path in (
        "/endpoints//invocations",
        "/endpoints/a/b/invocations",
        "/endpoints/a_/invocations",
    ):
        connection = server.connection()
        connection.request("POST", path, b'{"user_id": "u1"}')
        assert connection.getresponse().status == 404
        connection.close()


@pytest.mark.slow
def test_what_is_not_done_when_the_time_is_up_is_told_so(model: Path) -> None:
    with Process(model, "--drain-timeout", "1") as server:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        client.sendall(BODY_OF_100)
        assert server.get("/ping")[0] == 200
        server.signal(signal.SIGTERM)
        got = client.recv(65536)
        client.close()
        code, said = server.end()
    assert code == 0, said
    assert got.startswith(b"HTTP/1.1 503 ")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "stopped"
    assert "Traceback" not in said


def test_a_server_that_stops_says_so(model: Path) -> None:
    with Process(model, "--drain-delay", "5") as server:
        connection = server.connection()
        assert server.ask(connection, user_id="u1")[0] == 200
        server.signal(signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while server.get("/ping")[0] != 503:
            assert time.monotonic() < end
        connection.request("POST", "/invocations", b'{"user_id": "u1"}',
                           {"content-type": "application/json"})  # fmt: skip
        reply = connection.getresponse()
        reply.read()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        connection.close()
        for path in ("/1/recommended-items/u1", "/livez", "/nothing"):
            connection = server.connection()
            connection.request("GET", path)
            reply = connection.getresponse()
            reply.read()
            assert reply.headers["connection"] == "close"
            connection.close()
        server.signal(signal.SIGTERM)  # asked twice, it does not end twice
        server.signal(signal.SIGKILL)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_reloads_under_load_lose_nothing(tmp_path: Path, workers: int) -> None:
    directory = tmp_path / "m"
    first = make_model(directory, n=5000, seed=1)
    with Process(directory, "--workers", str(workers)) as server:
        load = Load(server)
        load.until(50)
        second = make_model(directory, n=5000, seed=2)
        server.signal(signal.SIGHUP)
        end = time.monotonic() + PATIENCE
        while set(load.latest) != {second.version}:  # in all workers
            assert time.monotonic() < end
            time.sleep(0.01)
        for file in directory.iterdir():  # a model that is none
            file.unlink()
        server.signal(signal.SIGHUP)
        count = sum(load.answered.values())
        load.until(count + 200)
        load.stop()
        assert server.process.poll() is None
        assert server.ask(user_id="u1")[1]["model_version"] == second.version
    assert load.lost == 0
    assert load.broken == 0
    assert set(load.answered) == {200}
    assert load.versions == {first.version, second.version}


def test_a_worker_that_is_killed_is_replaced(model: Path, tmp_path: Path) -> None:
    """What it was answering gets no answer, and is sent again: nothing is lost.

    Its log loses the rows that were not flushed yet.
    """
    kills: list[float] = []
    with Process(model, "--workers", "2", "--threads", "1", "--log", str(tmp_path)) as server:
        load = Load(server)
        load.until(50)
        for _ in range(2):
            victim = workers_of(server)[0]
            os.kill(victim, signal.SIGKILL)
            kills.append(time.monotonic())
            end = time.monotonic() + PATIENCE
            while victim in workers_of(server) or len(workers_of(server)) < 2:
                assert time.monotonic() < end
                time.sleep(0.01)
            load.until(sum(load.answered.values()) + 50)
        load.stop()
        server.signal(signal.SIGTERM)
        code, said = server.end()
    assert code == 0, said
    assert load.lost == 0
    assert load.refused == 0  # the socket is the parent's
    assert set(load.answered) == {200}
    assert load.broken <= 2 * 4
    kept = logged(tmp_path)
    # What was answered on a connection that broke then may stand there, too, and twice.
    assert len(kept - set(load.ids)) == 0
    for lost in set(load.ids) - kept:  # flushed each second; five on a machine that is busy
        assert any(-0.5 < kill - load.ids[lost] < 5.0 for kill in kills)


def test_workers_end_with_their_parent(model: Path) -> None:
    with Process(model, "--workers", "2") as server:
        workers = workers_of(server)
        assert len(workers) == 2
        server.signal(signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while any(is_running(pid) for pid in workers):
            assert time.monotonic() < end
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def workers_of(server: Process) -> list[int]:
    """Processes of the server that serve; not Python's own helper of spawned ones."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == server.process.pid and b"spawn_main" in command:
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.slow
def test_metrics_are_of_all_workers(model: Path, tmp_path: Path) -> None:
    with Process(model, "--workers", "2", "--log", str(tmp_path)) as server:
        for i in range(40):
            assert server.ask(user_id=f"u{i % 20}", inference_type="uniform")[0] == 200
        counted = r'^fastrank_requests_total{inference_type="uniform",status="200"} (\S+)$'
        end = time.monotonic() + PATIENCE
        found: list[str] = []
        while found != ["40.0"]:  # what the other worker answered last comes a little later
            assert time.monotonic() < end, found
            page = server.get("/metrics")[1].decode()
            found = re.findall(counted, page, re.M)
        while metric(server, "fastrank_log_rows_written") != 40:
            assert time.monotonic() < end
            time.sleep(0.01)
        versions = re.findall(r'^fastrank_model_info{version="(\w+)"} 1.0$', page, re.M)
        assert versions == [fr.Model.open(model).version]
        for number, expected in ((signal.SIGKILL, 40), (signal.SIGTERM, 42)):
            for _ in range(expected - 40):
                assert server.ask(user_id="u1", inference_type="uniform")[0] == 200
            victims = workers_of(server)
            for victim in victims:
                os.kill(victim, number)
            end = time.monotonic() + PATIENCE
            while set(victims) & set(workers_of(server)):
                assert time.monotonic() < end
                time.sleep(0.01)
            server.until_ready()
            page = server.get("/metrics")[1].decode()
            assert re.findall(counted, page, re.M) == [f"{expected}.0"]
            assert metric(server, "fastrank_log_rows_written") == expected


# Python runs these in each process, before anything else.
READ_ONLY = """
import os, sys

def refuse(event, given):
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if (
        event in ("os.mkdir", "tempfile.mkdtemp", "tempfile.mkstemp")
        or (event == "open" and isinstance(given[0], (str, bytes)) and given[2] & writes
            and not os.fsdecode(given[0]).startswith("/dev/null"))
    ):
        raise OSError(30, "Read-only file system", str(given[0]))

sys.addaudithook(refuse)
"""
DYING = """
import os, signal, sys

if "spawn_main" in " ".join(sys.orig_argv):
    os.kill(os.getpid(), signal.SIGBUS)
"""


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have Python run some lines at the start of each process."""

    def write(lines: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(lines)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    return write


@pytest.mark.sampled
@pytest.mark.parametrize(("program", "workers"), [("fastrank", 1), ("fastrank_serving", 2)])
def test_no_directory_needs_to_be_writable(
    model: Path,
    sites: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    workers: int,
) -> None:
    sites(READ_ONLY)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/proc/nothing")  # somebody else's
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/proc/nothing")
    options = ("--workers", str(workers), "--drain-delay", "0")
    with Process(model, *options, program=program) as server:
        for name in fr.INFERENCE_TYPES:
            assert server.ask(user_id="u1", inference_type=name)[0] in (200, 422)
        assert server.get("/metrics")[0] == 200
        end = time.monotonic() + PATIENCE
        for times in (1, 2):
            while server.said().count("serving model") < times * workers:
                assert time.monotonic() < end, server.said()
                time.sleep(0.01)
            if times == 1:
                server.signal(signal.SIGHUP)
        if workers > 1:
            victim = workers_of(server)[0]
            os.kill(victim, signal.SIGKILL)
            while victim in workers_of(server) or len(workers_of(server)) < 2:
                assert time.monotonic() < end, server.said()
                time.sleep(0.01)
        server.signal(signal.SIGTERM)
        code, said = server.end()
    assert code == 0, said
    assert "Traceback" not in said


def test_workers_that_end_again_and_again_are_given_up(
    model: Path, sites: Callable[[str], None]
) -> None:
    sites(DYING)
    code = (
        "import sys; from pathlib import Path; from fastrank_serving import server, settings;"
        "server._LEAST_LIFE = 0;"
        f"found = settings.Settings(model=Path({str(model)!r}), port={free_port()}, workers=2);"
        "sys.exit(server.run(found))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=PATIENCE
    )
    assert found.returncode == 1, found.stderr
    assert found.stderr.count(f"ended with -{signal.SIGBUS.value}\n") == 10
    assert "giving up: 10 workers ended within 60 s" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_worker_that_does_not_end_is_killed(model: Path) -> None:
    """By SIGTERM alone a stopped one would end when it is let go on, and its parent not before."""
    code = (
        "import sys; from pathlib import Path; from fastrank_serving import server, settings;"
        "server._LONGER = 0;"
        f"found = settings.Settings(model=Path({str(model)!r}), port={free_port()}, workers=2,"
        " drain_timeout=2.0);"
        "sys.exit(server.run(found))"
    )
    with Process(model, command=[sys.executable, "-c", code], wait=False) as server:
        end = time.monotonic() + PATIENCE
        while server.said().count("serving model") < 2:
            assert time.monotonic() < end, server.said()
            time.sleep(0.01)
        stopped = workers_of(server)[0]
        os.kill(stopped, signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        status, said = server.end()
    assert status == 1, said
    assert f"worker {stopped} did not end in time" in said


def test_workers_that_end_now_and_then_are_replaced(model: Path) -> None:
    with socket.socket() as listening:
        workers = _Workers(Settings(model=model, workers=2), [listening])
        assert not any(workers._are_too_many(6.7 * i) for i in range(100))
        many = [workers._are_too_many(1000 + i) for i in range(10)]
        assert many == [False] * 9 + [True]
        workers.close()


def fill_disk(server: Process, size: int | None) -> None:
    """No file may become larger: the kernel's limit stands in for a full disk."""
    _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    soft = most if size is None else size
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (soft, most))


@pytest.mark.slow
def test_the_disk_of_the_log_is_full_for_a_while(model: Path, tmp_path: Path) -> None:
    """Requests are answered meanwhile, and their rows wait: nothing is lost."""
    with Process(model, "--log", str(tmp_path)) as server:
        load = Load(server)
        load.until(50)
        fill_disk(server, 100)
        server.until_says("the disk refuses")
        load.until(sum(load.answered.values()) + 1500)
        assert metric(server, "fastrank_log_rows_written") < len(load.ids)
        fill_disk(server, None)
        server.until_says("written again")
        load.until(sum(load.answered.values()) + 50)
        load.stop()
        server.signal(signal.SIGTERM)
        code, said = server.end()
    assert code == 0, said
    assert (load.lost, load.broken) == (0, 0)
    assert set(load.answered) == {200}
    assert logged(tmp_path) == set(load.ids)


@pytest.mark.slow
def test_the_disk_of_the_log_stays_full(model: Path, tmp_path: Path) -> None:
    """Requests are answered; at the end the rows that nobody has are counted and said."""
    with Process(model, "--log", str(tmp_path)) as server:
        load = Load(server)
        while not metric(server, "fastrank_log_rows_written"):
            time.sleep(0.01)
        fill_disk(server, 100)
        server.until_says("the disk refuses")
        load.until(sum(load.answered.values()) + 500)
        load.stop()
        server.signal(signal.SIGTERM)
        code, said = server.end()
    assert code == 0, said
    assert (load.lost, load.broken) == (0, 0)
    assert set(load.answered) == {200}
    kept = logged(tmp_path)
    assert kept < set(load.ids)
    assert f"{len(set(load.ids) - kept)} rows" in said
    assert "Traceback" not in said


def test_a_log_that_cannot_be_begun_is_said_at_once(model: Path) -> None:
    with Process(model, "--log", "/proc/fastrank", wait=False) as server:
        code, said = server.end()
        assert code == 1
        assert "/proc/fastrank" in said
        assert "Traceback" not in said


def metric(server: Process, name: str) -> float:
    """A number of /metrics that has no labels."""
    (found,) = re.findall(rf"^{name} (\S+)$", server.get("/metrics")[1].decode(), re.M)
    return float(found)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "sent", [b"", b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-le", b"nonsense\r\n\r\n"]
)
def test_half_open_clients_keep_nobody_waiting(model: Path, sent: bytes) -> None:
    with Process(model) as server:
        clients = []
        for _ in range(100):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
            client.sendall(sent)
            clients.append(client)
        assert server.get("/ping")[0] == 200
        assert server.ask(user_id="u1")[0] == 200
        server.signal(signal.SIGTERM)  # they do not keep it from ending either
        code, said = server.end()
        for client in clients:
            client.close()
    assert code == 0, said


# What a client sends, then sends again and again, and is answered.
SLOW = [
    (b"", b"", b""),
    (b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-le", b"", b""),
    (b"GET /ping HTTP/1.1\r\nx: ", b"y", b""),  # slow loris: a byte now and then
    (BODY_OF_100, b"", b"HTTP/1.1 408 "),
    (BODY_OF_100, b" ", b"HTTP/1.1 408 "),
]


@pytest.mark.slow
def test_slow_clients_are_sent_away(hasty: Process) -> None:
    """A client that sends too slowly is; one that has nothing to ask at the moment is not."""
    patient = hasty.connection()
    assert hasty.ask(patient, user_id="u1")[0] == 200
    waiting = {}
    for kind in SLOW * 10:
        client = socket.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE)
        client.sendall(kind[0])
        client.settimeout(0.001)
        waiting[client] = kind
    end = time.monotonic() + PATIENCE
    while waiting:
        assert time.monotonic() < end, [*waiting.values()]
        for client, (sent, more, answered) in [*waiting.items()]:
            try:
                with contextlib.suppress(ConnectionError):  # what it still sent was not wanted
                    client.sendall(more)
                got = client.recv(65536)  # what was answered is there all the same
            except TimeoutError:
                continue
            except ConnectionError:
                got = b""
            assert got.startswith(answered), sent
            if answered and got:
                head, _, body = got.partition(b"\r\n\r\n")
                assert b"connection: close" in head
                assert json.loads(body)["error"]["code"] == "body_too_slow"
            del waiting[client]
            client.close()
    assert hasty.ask(patient, user_id="u1")[0] == 200  # it was silent for longer
    patient.close()


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("sent", "more"),
    [
        (BODY_OF_100.replace(b"/invocations", b"/ping"), b" "),  # answered before its body came
        (b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n"),  # empty lines are no request
    ],
)
def test_who_was_answered_and_dawdles_is_sent_away(
    hasty: Process, sent: bytes, more: bytes
) -> None:
    client = socket.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE)
    client.sendall(sent)
    assert client.recv(65536).startswith(b"HTTP/1.1 ")
    end = time.monotonic() + PATIENCE
    client.settimeout(0.2)
    while True:
        assert time.monotonic() < end
        try:
            client.sendall(more)
            if client.recv(65536) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    client.close()


@pytest.mark.sampled
@pytest.mark.parametrize("at", [None, 40, 75, 90, 95])
def test_an_upgrade_is_not_taken(server: Process, at: int | None) -> None:
    """Java's client asks for h2c each time, and its body is a body; a split name ends it well."""
    body = b'{"user_id": "u1", "k": 1}'
    head = (
        b"POST /invocations HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if at is not None:
        client.sendall(head[:at])
        time.sleep(0.2)
    client.sendall(head[at or 0 :])
    time.sleep(0.2)
    client.sendall(body)
    got = client.recv(65536)
    split = at is not None and head.index(b"Upgrade: ") < at < head.index(b" h2c")
    if split and b" 200 " not in got[:15]:  # a server that was late got it in one piece
        assert got.startswith(b"HTTP/1.1 400 ")
        assert b"connection: close" in got
        assert b"item_ids" not in got
    else:
        assert got.startswith(b"HTTP/1.1 200 ")
        assert b"item_ids" in got
    client.close()


def test_pipelined_requests_are_answered_before_a_head_that_is_late(server: Process) -> None:
    body = b'{"user_id": "u1", "k": 1, "exclude": [' + b",".join([b"1"] * 40_000) + b"]}"
    head = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    client.sendall(head + body + b"GET /pi")
    got = client.recv(65536)
    assert got.startswith(b"HTTP/1.1 200 ")
    client.sendall(b"ng HTTP/1.1\r\nhost: x\r\n\r\n")
    while b"content-length: 0" not in got:
        more = client.recv(65536)
        assert more
        got += more
    client.close()


@pytest.mark.slow
def test_who_comes_while_a_server_ends_is_refused_and_not_dropped(model: Path) -> None:
    """Beside a connection that says nothing, which is waited for."""
    with Process(model) as server:
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        assert server.get("/ping")[0] == 200
        server.signal(signal.SIGTERM)
        dropped = answered = 0
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
            except ConnectionRefusedError:
                break
            try:
                client.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                answered += client.recv(65536) != b""
            except ConnectionError:
                dropped += 1
            client.close()
        idle.close()
        assert server.end()[0] == 0
    assert dropped <= 1  # taken by the kernel between the last look and the socket's end


@pytest.mark.slow
def test_a_pass_that_nobody_waits_for_does_not_keep_the_process(tmp_path: Path) -> None:
    make_model(tmp_path / "m", n=1_000_000, dim=8, users=20)
    admin = tmp_path / "admin.sock"
    options = ("--threads", "1", "--drain-timeout", "1", "--admin-socket", str(admin))
    with Process(tmp_path / "m", *options) as server:
        slow = {"k": 1000, "inference_type": "stochastic_plackett_luce", "user_id": "u1"}
        body = json.dumps(slow).encode()
        clients = []
        for path in ("invocations", "1/recommended-items/u1"):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
            if path == "invocations":
                head = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
                client.sendall(head % len(body) + body)
            else:
                query = b"k=1000&inference_type=stochastic_plackett_luce"
                client.sendall(b"GET /%s?%s HTTP/1.1\r\nhost: x\r\n\r\n" % (path.encode(), query))
            clients.append(client)
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        for client in clients:
            got = client.recv(65536)
            assert got.startswith(b"HTTP/1.1 503 "), got
            assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "stopped"
            client.close()
        began = time.monotonic()
        code, said = server.end(60)
        took = time.monotonic() - began
    assert code == 0, said
    assert took < 8.0, said  # the pass takes 17 s
    assert not admin.exists()
    assert "Traceback" not in said


def test_more_connections_than_files(model: Path) -> None:
    """Those that find no place wait until others have left."""
    with Process(model) as server:
        _, most = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (50, most))
        clients = [
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
            for _ in range(100)
        ]
        server.until_says("connections wait")
        for client in clients[:90]:
            client.close()
        for client in clients[90:]:
            client.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            client.close()


def few_files(server: Process, files: int) -> None:
    """Of a server that is ready, and has counted those that it has open itself."""
    time.sleep(0.3)
    _, most = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (files, most))


@pytest.mark.slow
def test_many_clients_and_few_files(model: Path, tmp_path: Path) -> None:
    """All are answered, in turns; the log, the metrics and a reload have the files they need."""
    with Process(model, "--log", str(tmp_path)) as server:
        few_files(server, 64)
        load = Load(server, clients=60)
        server.until_says("connections wait")
        load.until(500)
        server.signal(signal.SIGHUP)
        end = time.monotonic() + PATIENCE
        while server.said().count("serving model") < 2:
            assert time.monotonic() < end, server.said()
            time.sleep(0.01)
        load.until(sum(load.answered.values()) + 500)
        assert server.get("/metrics")[0] == 200
        load.stop()
        server.signal(signal.SIGTERM)
        code, said = server.end()
    assert code == 0, said
    assert set(load.answered) == {200}
    assert (load.lost, load.broken) == (0, 0)
    assert logged(tmp_path) == set(load.ids)
    assert "Too many open files" not in said


@pytest.mark.sampled
@pytest.mark.parametrize("files", [30, 64])
def test_who_is_idle_makes_room(model: Path, files: int) -> None:
    """However few files there are, some are served."""
    with Process(model) as server:
        few_files(server, files)
        first = [server.connection() for _ in range(4)]
        for each in first:
            assert server.ask(each, user_id="u1")[0] == 200
            assert server.ask(each, user_id="u1")[0] == 200  # it was kept
        idle = [server.connection() for _ in range(60)]
        for each in idle:
            each.connect()
            each.request("GET", "/ping")
        for each in idle:  # each takes the place of another
            assert each.getresponse().status == 200
        for each in (*first, *idle):
            each.close()
        server.until_says("connections wait")


def test_all_that_wait_are_accepted_in_one_turn(model: Path) -> None:
    """uvloop by itself takes one connection in each turn of the loop."""
    config = uvicorn.Config(no_app, http=_Protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        listening.setblocking(False)
        clients = [socket.create_connection(listening.getsockname()) for _ in range(50)]

        async def work() -> None:
            server = _Server(config, Service(Settings(model=model), Metrics()))
            server.lifespan = config.lifespan_class(config)
            server._accept(listening, 100)
            assert len(server._connecting) == 50
            await asyncio.wait(server._connecting)
            assert len(server.server_state.connections) == 50
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)

        uvloop.run(work())
        for client in clients:
            client.close()


async def no_app(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("nothing was asked")


def test_a_client_that_leaves_amid_its_requests_is_no_error(model: Path) -> None:
    """Those behind the one that is being answered have no connection any more."""
    asked = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with Process(model) as server:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(asked * 500)
        assert server.get("/ping")[0] == 200
        server.signal(signal.SIGTERM)
        code, said = server.end()
    assert code == 0
    assert "Traceback" not in said, said


def test_an_endless_head_is_cut_off(server: Process) -> None:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    client.sendall(b"GET /ping HTTP/1.1\r\nx: ")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.sendall(b"x" * 50_000_000)
    client.close()
    assert server.get("/ping")[0] == 200


HEAD = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"user_id":"u1","k":1}'
CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("endless", [b"x" * 65_536, b"x: y\r\n" * 10_000])
def test_trailers_without_end_are_cut_off(server: Process, endless: bytes) -> None:
    """Seconds of processor time and gigabytes of memory, otherwise, for the time of one body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + CHUNKS + b"x: ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall(endless * 400)
    assert server.get("/ping")[0] == 200


def test_trailers_are_no_headers(server: Process) -> None:
    trailer = b"content-encoding: gzip\r\nx-amzn-sagemaker-inference-id: mine\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + CHUNKS + trailer + b"\r\n")
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"inference_id" not in answer


@pytest.mark.parametrize(("count", "status"), [(200, b"200"), (300, b"400")])
def test_a_request_has_so_many_headers(server: Process, count: int, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(b"GET /ping HTTP/1.1\r\n" + b"a:\r\n" * count + b"\r\n")
        assert client.recv(65536).split()[1] == status


@pytest.mark.parametrize("parts", [1, 2])
def test_a_head_that_waits_has_so_many_headers(server: Process, parts: int) -> None:
    head = [b"GET /ping HTTP/1.1\r\n", b"a:\r\n" * 1000]
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in head if parts == 2 else [b"".join(head)]:
            client.sendall(part)
            time.sleep(0.1)
        client.settimeout(5)  # less than the server's own patience
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_so_many_requests_are_read_ahead(server: Process) -> None:
    """The others are not answered, and the last answer says so by closing the connection."""
    body = BODY[:-1] + b',"exclude":[' + b",".join([b"1"] * 20_000) + b"]}"
    first = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(first + b"GET /ping HTTP/1.1\r\n\r\n" * 1000)
        found = b""
        while more := client.recv(65536):
            found += more
    answers = found.split(b"HTTP/1.1 ")[1:]
    assert len(answers) == 17
    assert all(each.startswith(b"200 ") for each in answers)
    assert [b"connection: close" in each for each in answers] == [False] * 16 + [True]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"host: y\r\n", b"400"),
        (b"transfer-encoding: gzip, chunked\r\n", b"400"),
        (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", b"400"),
        (b"transfer-encoding: identity, chunked\r\n", b"400"),
        (b"transfer-encoding:\tChunked \r\n", b"200"),
        (b"te: gzip\r\n", b"200"),
    ],
)
def test_heads_that_proxies_may_read_otherwise(server: Process, line: bytes, status: bytes) -> None:
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    is_chunked = line.lower().startswith(b"transfer")
    length = b"" if is_chunked else b"content-length: %d\r\n" % len(BODY)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(HEAD + line + length + b"\r\n" + (chunks if is_chunked else BODY))
        answer = client.recv(65536)
    assert answer.split()[1] == status
    assert status == b"400" or re.search(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} ", answer)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD, b"413"),
        (HEAD.replace(b"/json", b"/csv"), b"415"),
        (HEAD.replace(b"/invocations", b"/nothing"), b"404"),
        (HEAD.replace(b"/invocations", b"/ping"), b"405"),
    ],
)
def test_a_body_without_end_is_cut_off_after_its_answer(
    server: Process, head: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        answer, sent = poured(client, b"100000\r\n" + b" " * 0x100000 + b"\r\n")
    assert answer.split()[1] == status
    assert 10 <= sent < 40  # MiB: 16, besides what is read before there is an answer and on its way


def poured(client: socket.socket, chunk: bytes) -> tuple[bytes, int]:
    """What was answered, and how many chunks were taken before the connection was closed."""
    answer = b""
    for sent in range(200):
        if not answer:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                answer = client.recv(65536)
            client.setblocking(True)
        try:
            client.sendall(chunk)
        except (ConnectionResetError, BrokenPipeError):
            return answer, sent
    return answer, 200


def test_a_client_that_sends_all_of_a_large_body_may_go_on(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
        client.sendall(HEAD + b"content-length: 7000000\r\n\r\n" + b"x" * 7_000_000)
        client.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        found = b""
        while b"HTTP/1.1 200" not in found:
            found += client.recv(65536)
    assert found.startswith(b"HTTP/1.1 413")


@pytest.mark.slow
def test_what_cannot_be_served_ends_at_once(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for workers in ("1", "2"):
        with Process(empty, "--workers", workers, wait=False) as server:
            code, said = server.end()
        assert code == 1
        assert "cannot be served" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Process(model, "--port", str(port), wait=False) as server:
            code, said = server.end()
        assert code == 2
        assert f"cannot listen on 127.0.0.1:{port}" in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_the_container_heeds_its_environment(model: Path, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    base.mkdir()
    (base / "model").symlink_to(model)
    port = free_port()
    environment = inherited() | {
        "FASTRANK_DRAIN_DELAY": "0",
        "SAGEMAKER_BASE_DIR": str(base),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "30",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "fastrank_serving", "serve"],
        env=environment, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        end = time.monotonic() + PATIENCE
        status: Any = None
        while status != 200:
            assert time.monotonic() < end
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
                connection.request("GET", "/ping")
                status = connection.getresponse().status
                connection.close()
            except OSError:
                time.sleep(0.01)
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert said == ""
