"""What HTTP adds to a ranking, and how the server performs under load: one command.

    python bench/serving.py [--part cost,ratio,share,ping,start] [--seconds 2] [--rounds 5]

Servers run as processes of their own on 127.0.0.1, asked by one client of this process over plain
sockets, which sends on each connection as soon as the last answer came (a closed loop). What is
compared takes turns, and the median of the rounds is shown with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import benchmarks  # noqa: F401  # first of all: it pins the thread pools, which NumPy starts
import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

import fastrank as fr

SECONDS = "fastrank_request_seconds"
DETERMINISTIC = "deterministic"
GUMBEL = "stochastic_gumbel_softmax_trick"
PARTS = ("cost", "ratio", "share", "ping", "start")
USERS = 1000
WARM = 0.5  # seconds before each server is measured for the first time

# uvicorn alone: an answer of the same size, which says what no app on it can go below.
BARE = """
import sys, uvicorn
BODY = b"x" * 1000
HEAD = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
async def app(scope, receive, send):
    message = await receive()
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEAD})
    await send({"type": "http.response.body", "body": BODY})
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", ws="none", lifespan="on",
            access_log=False, log_level="error", server_header=False, date_header=False)
"""


# ---- Servers --------------------------------------------------------------------------------


class Server:
    """A process that serves; `started` is how long it took until /ping said 200."""

    def __init__(
        self,
        *arguments: str,
        port: int,
        ranks: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.ranks = ranks
        self.warm = False
        began = time.perf_counter()
        self.process = subprocess.Popen([*arguments], stderr=subprocess.DEVNULL, env=environ)
        while not self._answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"{arguments}: ended with {self.process.returncode}")
            time.sleep(0.002)
        self.started = time.perf_counter() - began

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=5) as got:
                return bool(got.status == 200)
        except OSError:
            return False

    def processes(self) -> list[int]:
        """Its process and the workers of that."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def cpu(self) -> float:
        """Seconds of processor time that its threads have had so far."""
        nanoseconds = 0
        for pid in self.processes():
            for each in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                nanoseconds += int(each.read_text().split()[0])
        return nanoseconds / 1e9

    def ranked(self) -> float:
        """Seconds in `Catalog.rank`, so far."""
        if not self.ranks:
            return 0.0
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as got:
            text = got.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"{SECONDS}_sum" and sample.labels["part"] == "kernel":
                    return float(sample.value)
        return 0.0

    def stop(self) -> None:
        """Once it is enough."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def bare() -> Iterator[Server]:
    port = free_port()
    yield from _until_done(Server(sys.executable, "-c", BARE, str(port), port=port, ranks=False))


@contextmanager
def serve(model: Path, *options: str) -> Iterator[Server]:
    port = free_port()
    command = "from fastrank.cli import main; main()"
    told = ["serve", str(model), "--port", str(port), "--log-level", "error", *options]
    yield from _until_done(Server(sys.executable, "-c", command, *told, port=port))


def _until_done(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


def make_model(folder: Path, n: int, d: int) -> Path:
    """Items and users at random, with scores that spread as those of a trained model."""
    where = folder / f"model-{n}-{d}"
    if not where.exists():
        rng = np.random.default_rng(0)
        items = rng.standard_normal((n, d), dtype=np.float32) / np.float32(d**0.5)
        users = rng.standard_normal((USERS, d), dtype=np.float32)
        names = [f"user-{i}" for i in range(USERS)]
        catalog = fr.Catalog(np.arange(n), items)
        fr.Model(catalog, names, users, policy=fr.PlackettLuce(1.0)).save(where)
    return where


# ---- The client -----------------------------------------------------------------------------


@dataclass
class Load:
    """What a stretch of load came to; seconds by inference type."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    wall: float = 0.0
    cpu: float = 0.0
    ranked: float = 0.0
    pings: list[float] = field(default_factory=list)
    failed: Exception | None = None

    @property
    def requests(self) -> int:
        return sum(map(len, self.seconds.values()))

    def percentile(self, q: float, kind: str | None = None) -> float:
        values = [t for name, ts in self.seconds.items() if kind in (None, name) for t in ts]
        return float(np.percentile(values, q))


class Connection(asyncio.Protocol):
    """Sends a request, waits for the whole answer, sends the next one."""

    def __init__(self, load: Load, kinds: list[str], end: float, done: asyncio.Event) -> None:
        self._load, self._kinds, self._end, self._done = load, kinds, end, done
        self._turn = random.randrange(len(kinds))
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._send()

    def _send(self) -> None:
        self._kind = self._kinds[self._turn % len(self._kinds)]
        self._turn += 1
        user = f"user-{random.randrange(USERS)}"
        body = json.dumps({"user_id": user, "inference_type": self._kind}).encode()
        head = (
            b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        self._sent = time.perf_counter()
        self._transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answered {self._got!r}")
        self._load.seconds.setdefault(self._kind, []).append(now - self._sent)
        self._got = b""
        if now < self._end:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.failed = self._load.failed or exc
        self._done.set()


def put_under(
    server: Server, kinds: Iterable[str], connections: int, seconds: float, ping: bool = False
) -> Load:
    """Load from so many connections for so long."""
    load = Load()
    chosen = list(kinds)

    async def pings(end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while time.perf_counter() < end:
            began = time.perf_counter()
            writer.write(b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            load.pings.append(time.perf_counter() - began)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"answered {head!r}")
            await asyncio.sleep(0.01)
        writer.close()

    async def run(length: float) -> None:
        loop = asyncio.get_running_loop()
        end = time.perf_counter() + length
        events = []
        for _ in range(connections):
            done = asyncio.Event()
            events.append(done)
            await loop.create_connection(
                partial(Connection, load, chosen, end, done),
                "127.0.0.1",
                server.port,
            )
        if ping:
            await pings(end)
        for done in events:
            await done.wait()
        if load.failed is not None:
            raise load.failed

    if not server.warm:
        server.warm = True
        uvloop.run(run(WARM))
        load = Load()
    cpu, ranked = server.cpu(), server.ranked()
    began = time.perf_counter()
    uvloop.run(run(seconds))
    load.wall = time.perf_counter() - began
    load.cpu = server.cpu() - cpu
    load.ranked = server.ranked() - ranked
    return load


# ---- What is measured -----------------------------------------------------------------------


def shown(values: Iterable[float], scale: float = 1.0, digits: int = 2) -> str:
    """Median (smallest-largest)."""
    found = sorted(scale * value for value in values)
    middle, low, high = statistics.median(found), found[0], found[-1]
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def cost(folder: Path, seconds: float, rounds: int) -> None:
    """Processor time of a request beside `Catalog.rank`, and latency on one connection."""
    model = make_model(folder, 1000, 64)
    with (
        bare() as alone,
        serve(model) as plain,
        serve(model, "--log", str(folder / "log")) as logging,
    ):
        servers = {"uvicorn alone": alone, "fastrank": plain, "fastrank, log": logging}
        for connections in (1, 8, 32):
            loads: dict[str, list[Load]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, server in servers.items():
                    loads[name].append(put_under(server, [GUMBEL], connections, seconds))
            for name, found in loads.items():
                beside = [(x.cpu - x.ranked) / x.requests for x in found]
                print(
                    f"{connections:3d} connections, {name:14s}"
                    f" us CPU beside rank {shown(beside, 1e6, 0):18s}"
                    f" rank {shown([x.ranked / x.requests for x in found], 1e6, 0):14s}"
                    f" p50 ms {shown([x.percentile(50) for x in found], 1e3, 3):22s}"
                    f" p99 ms {shown([x.percentile(99) for x in found], 1e3, 2):20s}"
                    f" 1/s {shown([x.requests / x.wall for x in found], 1, 0)}",
                    flush=True,
                )


def ratio(folder: Path, seconds: float, rounds: int) -> None:
    """Latency of each inference type against deterministic, request by request in turns."""
    for n in (1000, 100_000):
        with serve(make_model(folder, n, 64)) as server:
            for kind in fr.INFERENCE_TYPES:
                pair = [DETERMINISTIC, kind]
                found = [put_under(server, pair, 1, seconds) for _ in range(rounds)]
                against = [x.percentile(50, kind) / x.percentile(50, DETERMINISTIC) for x in found]
                print(
                    f"n = {n:6d}, {kind:32s}"
                    f" p50 ms {shown([x.percentile(50, kind) for x in found], 1e3, 3):22s}"
                    f" / deterministic {shown(against, 1, 3)}",
                    flush=True,
                )


def share(folder: Path, seconds: float, rounds: int) -> None:
    """Waiting requests ranked together, or each by itself."""
    for n in (10_000, 100_000):
        model = make_model(folder, n, 64)
        with serve(model, "--share", "1") as apart, serve(model) as together:
            for connections in (1, 8, 32, 128):
                loads: dict[str, list[Load]] = {"apart": [], "together": []}
                for _ in range(rounds):
                    for name, server in (("apart", apart), ("together", together)):
                        loads[name].append(put_under(server, [GUMBEL], connections, seconds))
                for name, found in loads.items():
                    print(
                        f"n = {n:6d}, {connections:3d} connections, {name:8s}"
                        f" 1/s {shown([x.requests / x.wall for x in found], 1, 0):20s}"
                        f" p50 ms {shown([x.percentile(50) for x in found], 1e3, 2):22s}"
                        f" p99 ms {shown([x.percentile(99) for x in found], 1e3, 2)}",
                        flush=True,
                    )


def ping(folder: Path, seconds: float, rounds: int) -> None:
    """/ping while all threads are busy and requests wait."""
    for n, connections in ((1000, 32), (100_000, 32), (100_000, 128)):
        with serve(make_model(folder, n, 64)) as server:
            found = [
                put_under(server, [GUMBEL], connections, seconds, ping=True) for _ in range(rounds)
            ]
            print(
                f"n = {n:6d}, {connections:3d} connections, /ping"
                f" p50 ms {shown([float(np.median(x.pings)) for x in found], 1e3, 2):20s}"
                f" longest ms {shown([max(x.pings) for x in found], 1e3, 1)}",
                flush=True,
            )


def start(folder: Path, seconds: float, rounds: int) -> None:
    """From the start of the process to /ping's 200, and memory, with 256 MB of vectors."""
    model = make_model(folder, 500_000, 128)
    took = []
    for _ in range(rounds):
        with serve(model) as server:
            took.append(server.started)
    print(f"process start to /ping 200, 256 MB of vectors: s {shown(took)}", flush=True)
    # The cached sampler's tables come on top, up to the catalog's cache_bytes.
    kinds = [DETERMINISTIC, GUMBEL, "stochastic_epsilon_greedy", "uniform"]
    for words, options in (("no log", []), ("a log", ["--log", str(folder / "log-start")])):
        with serve(model, "--workers", "2", *options) as server:
            put_under(server, kinds, 32, seconds)
            sizes = [memory(pid) for pid in server.processes()[1:]]
        workers = [each for each in sizes if each["Rss"] > 200]  # not Python's helper
        private = [each["Private_Dirty"] + each["Private_Clean"] for each in workers]
        print(
            f"{len(workers)} workers after load, {words}: private MB {shown(private, 1, 0)},"
            f" resident MB {shown([each['Rss'] for each in workers], 1, 0)}",
            flush=True,
        )


def memory(pid: int) -> dict[str, float]:
    """Of a process, in MB; what several map counts in Rss for each of them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name.rstrip(":"): int(size) / 1024 for name, size, *_ in map(str.split, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--part", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    parts = given.part.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--part: expected some of {', '.join(PARTS)}; got {', '.join(unknown)}")
    random.seed(0)
    with tempfile.TemporaryDirectory(prefix="fastrank-serving-") as folder:
        for part in parts:
            print(f"# {part}: {globals()[part].__doc__}", flush=True)
            globals()[part](Path(folder), given.seconds, given.rounds)


if __name__ == "__main__":
    main()
