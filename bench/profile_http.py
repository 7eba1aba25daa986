"""Shows what a request takes of the processor beside its ranking, part by part: one command.

    python bench/profile_http.py [--n 1000] [--connections 8] [--seconds 0.3] [--rounds 30]
        [--against CHECKOUT]

A deterministic ranking, k = 10, is asked for over and over, metrics on and the log off, of servers
that take turns: the server as it is, uvicorn alone with an answer of the same size, one whose parts
look at the clock as they begin and end, and, with --against, the server of another checkout, built.
Totals are processor time. Parts are medians of their calls, so that others' use of the core does
not count; the cost of reading the clock is measured and subtracted. "rest" is what the server as it
is takes beyond its parts: the event loop, reading from sockets, changing tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from array import array
from collections import Counter
from contextlib import ExitStack
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

PARTS = {
    "protocol": "uvicorn's protocol and httptools: from bytes to a request and its task",
    "routing": "the app: where it goes, what its headers say",
    "decode": "JSON to a request; its id",
    "service": "policy, user, what is wanted of the engine",
    "engine": "where it is ranked: here, or in a thread",
    "rank": "Catalog.rank",
    "encode": "the answer, and its JSON",
    "metrics": "counters and histograms",
    "log": "rows of the log",
    "answer": "uvicorn's head of the answer, its checks, the end of the request",
    "write": "the system call that sends it",
}
_CALIBRATED = 1000  # times a hundred calls


# ---- In the server --------------------------------------------------------------------------


class Clocks:
    """How long functions take, without those of them that they call.

    Only of what does not wait: the parts of a ranking that is made in the event loop.
    """

    def __init__(self) -> None:
        self.own: dict[str, array[int]] = {}  # nanoseconds of each call, by part and function
        self.within: Counter[str] = Counter()  # calls of others of them
        self._stack: list[int] = []  # of those that were begun, what they have taken so far
        self._names: list[str] = []
        self._since = 0

    def _enter(self, name: str) -> None:
        now = time.perf_counter_ns()
        if self._stack:
            self._stack[-1] += now - self._since
            self.within[self._names[-1]] += 1
        self._stack.append(0)
        self._names.append(name)
        self._since = time.perf_counter_ns()

    def _leave(self, name: str) -> None:
        now = time.perf_counter_ns()
        self.own[name].append(self._stack.pop() + now - self._since)
        self._names.pop()
        self._since = time.perf_counter_ns()

    def on(self, part: str, owner: Any, function: str) -> None:
        """Have a function counted, or a method, or a coroutine."""
        plain, name = getattr(owner, function), f"{part} {function}"
        self.own[name] = array("q")

        def counted(*given: Any, **named: Any) -> Any:
            self._enter(name)
            try:
                return plain(*given, **named)
            finally:
                self._leave(name)

        async def counted_async(*given: Any, **named: Any) -> Any:
            self._enter(name)
            try:
                return await plain(*given, **named)
            finally:
                self._leave(name)

        setattr(owner, function, counted_async if iscoroutinefunction(plain) else counted)

    def calibrated(self) -> tuple[float, float]:
        """Nanoseconds that measuring adds to a call itself, and to its caller."""

        class Nothing:
            def inner(self) -> None:
                pass

            def outer(self) -> None:
                for _ in range(100):
                    self.inner()

        plain, nothing = [], Nothing()
        for _ in range(_CALIBRATED):
            began = time.perf_counter_ns()
            nothing.outer()
            plain.append(time.perf_counter_ns() - began)
        self.on("", Nothing, "inner")
        self.on("", Nothing, "outer")
        for _ in range(_CALIBRATED):
            nothing.outer()
        outer = statistics.median(self.own[" outer"]) - statistics.median(plain)
        return statistics.median(self.own[" inner"]), outer / 100

    def by_part(self, requests: int) -> dict[str, float]:
        """Microseconds a request."""
        inside, outside = Clocks().calibrated()
        found = dict.fromkeys(PARTS, 0.0)
        for name, took in self.own.items():
            if took:
                each = statistics.median(took) - inside
                each -= outside * self.within[name] / len(took)
                found[name.split()[0]] += each * len(took) / requests / 1e3
        return found


def serve_counted(output: str) -> None:
    """`fastrank serve`, which writes what its parts took as it ends."""
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from fastrank.cli import main
    from fastrank_serving import app, server, service
    from fastrank_serving.engine import Engine, Job
    from fastrank_serving.metrics import Metrics

    clocks = Clocks()
    clocks.on("protocol", server._Protocol, "data_received")
    clocks.on("routing", app.App, "_invocations")
    clocks.on("decode", app, "parse")
    clocks.on("decode", app, "origin_of")
    clocks.on("service", service.Service, "answer")
    clocks.on("engine", Engine, "rank")
    clocks.on("rank", Job, "rank")
    clocks.on("encode", service, "answer_of")
    clocks.on("encode", service, "encoded")
    clocks.on("metrics", Metrics, "served")
    clocks.on("metrics", Metrics, "fold")
    clocks.on("log", service.Service, "_log_rows")
    clocks.on("answer", RequestResponseCycle, "send")
    clocks.on("write", server._Joining, "write")
    try:
        main()
    finally:
        requests = len(clocks.own["protocol data_received"])
        Path(output).write_text(json.dumps(clocks.by_part(requests)), encoding="utf-8")


# ---- Around it ------------------------------------------------------------------------------


def main() -> None:
    # They import benchmarks, which pins thread pools: not what a server should find.
    from serving import DETERMINISTIC, Load, Server, bare, free_port, make_model, put_under

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a round of each server")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--against", type=Path, help="another checkout, built")
    given = parser.parse_args()
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        model, output = make_model(Path(folder), given.n, 64), Path(folder) / "parts.json"

        def started(command: str, checkout: Path) -> Server:
            port = free_port()
            told = ["serve", str(model), "--port", str(port), "--log-level", "error"]
            paths = [str(checkout / "src"), str(checkout / "serving"), str(here)]
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
            server = Server(sys.executable, "-c", command, *told, port=port, environ=environ)
            opened.callback(server.stop)
            return server

        plain = "from fastrank.cli import main; main()"
        counted = "import profile_http; profile_http.serve_counted({!r})"
        servers = {
            "uvicorn alone": opened.enter_context(bare()),
            "as it is": started(plain, here.parent),
            "with clocks": started(counted.format(str(output)), here.parent),
        }
        if given.against is not None:
            servers["the other"] = started(plain, given.against.resolve())
        loads: dict[str, list[Load]] = {name: [] for name in servers}
        for _ in range(given.rounds):
            for name, server in servers.items():
                load = put_under(server, [DETERMINISTIC], given.connections, given.seconds)
                loads[name].append(load)
        servers["with clocks"].stop()
        parts: dict[str, float] = json.loads(output.read_text(encoding="utf-8"))
    print(f"us of processor time a request, n = {given.n:,}, {given.connections} connections")
    taken = {name: [1e6 * x.cpu / x.requests for x in found] for name, found in loads.items()}
    for name, of_all in taken.items():
        rank = (
            ""
            if name == "uvicorn alone"
            else f"; beside rank {statistics.median(of_all) - parts['rank']:.1f}"
        )
        print(f"{name:14s} {within(of_all)}{rank}")
    if "the other" in taken:
        of_both = zip(taken["as it is"], taken["the other"], strict=True)
        print(f"the other's, less this one's: {within([b - a for a, b in of_both])}")
    parts["rest"] = statistics.median(taken["as it is"]) - sum(parts.values())
    for part, of_it in parts.items():
        print(f"{of_it:7.1f}  {part:9s} {PARTS.get(part, 'event loop, sockets, tasks')}")


def within(values: list[float]) -> str:
    """The median of rounds, its 95 % interval by their order, and the least, least disturbed."""
    found = sorted(values)
    half = 0.98 * len(found) ** 0.5
    low, high = math.floor(len(found) / 2 - half), math.ceil(len(found) / 2 + half)
    middle = statistics.median(found)
    ends = found[max(low, 0)], found[min(high, len(found) - 1)]
    return f"{middle:.1f} ({ends[0]:.1f} to {ends[1]:.1f}), least {found[0]:.1f}"


if __name__ == "__main__":
    main()
