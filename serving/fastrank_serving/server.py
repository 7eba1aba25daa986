"""Processes: one server, or several workers that share a socket, and how they end.

After SIGTERM a server reports on /ping that no more requests should come, and accepts requests for
a while longer. Then it accepts no more, answers those in progress, flushes the log and exits with
0. SIGHUP reloads the model. Workers are spawned, not forked, and a worker that dies is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from fastrank_serving.board import Board, Note
from fastrank_serving.listening import BACKLOG, admin_socket, tcp_socket
from fastrank_serving.messages import LATE
from fastrank_serving.settings import Settings

if TYPE_CHECKING:
    from fastrank_serving.beside import Beside

__all__ = ["run"]

_LOG = logging.getLogger("fastrank.serving")
# Seconds that a thread reading a long filter may keep the loop waiting, each time that the loop
# wants to continue: Python's default of 5 ms adds up before a /ping is answered.
_SWITCH = 0.0005
_HEAD_BYTES = 65_536
_HEADERS = 256  # of a request; each takes far more memory than its bytes
_AHEAD = 16  # requests of a connection that are read before the current one is answered
# Bytes of a body that are read and dropped once its answer is there: a client that sends no more
# than that can read the answer, and continue on this connection.
_SURPLUS = 16 << 20
_UPGRADE = re.compile(rb"(\n)upgrade(?=[ \t]*:)", re.IGNORECASE)
_GREETING = 1.0  # seconds for the first request of the newest connections
_SPARE = 16  # files that connections leave to the log and others
_BEFORE_READY = 32  # files that they leave to the model while it is being loaded
_LEAST_CONNECTIONS = 4  # always allowed, however few files there are
_IDLE = 1.0  # seconds that a connection may be idle while others wait for room
_NO_ROOM = 0.02  # seconds until the next look for room
_LEAST_LIFE = 2.0  # seconds; a worker that dies sooner is not replaced at once
_LONGER = 30.0  # seconds after its drain; a worker that has not ended by then is stuck
_ENDS = 5  # ends per worker, on average,
_WITHIN = 60.0  # seconds: replacing more workers than that would only hide the problem


def run(settings: Settings, ignored: Sequence[str] = ()) -> int:
    """Serve until a signal ends it, and return the exit code. Warn of ignored variables."""
    end_by_signals()
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    if ignored:
        _LOG.warning(
            "ignored, since Kubernetes sets them for a Service: %s; `enableServiceLinks: false`"
            " stops that",
            ", ".join(ignored),
        )
    # With one of these variables prometheus_client would keep its numbers in mapped files.
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(tcp_socket(settings.host, settings.port))]
        host, port = sockets[0].getsockname()[:2]
        if settings.admin_socket is not None:
            sockets.append(opened.enter_context(admin_socket(settings.admin_socket)))
        _LOG.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        if settings.secret is not None:
            _LOG.info("secret with the fingerprint %s", settings.secret.fingerprint)
        board = beside = None
        if settings.watch is not None or settings.is_log_uploaded:
            from fastrank_serving.beside import Beside, claimed  # imports prometheus_client

            settings = opened.enter_context(claimed(settings))
            board = Board(settings.workers + 1)
            opened.callback(board.close)
            beside = opened.enter_context(Beside(settings, board, settings.workers))
        if settings.workers == 1:
            return _serve(settings, sockets, board, leave=opened.close, beside=beside)
        return _Workers(settings, sockets, board, beside).run()


def end_by_signals() -> None:
    """Let SIGTERM end this process cleanly, before there is anything to drain.

    Otherwise it would not even end process 1 of a container.
    """

    def end(_number: int, _frame: Any) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


# ---- One server -----------------------------------------------------------------------------


def _serve(
    settings: Settings,
    sockets: list[socket.socket],
    board: Board | None = None,
    seat: int = 0,
    taken: Board | None = None,
    leave: Callable[[], None] | None = None,
    beside: Beside | None = None,
) -> int:
    """Serve until a signal; `leave` is called if this process ends at once."""
    from fastrank_serving.app import create_app
    from fastrank_serving.control import Taken
    from fastrank_serving.metrics import Metrics

    sys.setswitchinterval(_SWITCH)
    # With several workers, one that is ready must not answer /ping for one that is not. Until a
    # model has arrived there is only one worker, which reports that.
    load_first = settings.workers > 1 and settings.directory is not None
    others = None if taken is None else Taken(taken, seat)
    app = create_app(settings, load_first, Metrics(board, seat), others)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=_Protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
        backlog=BACKLOG,
    )
    server = _Server(config, app.service, app.administer, beside)
    app.on_failure = server.fail
    server.run(sockets=sockets)
    code = 1 if server.failed else 0
    if app.service.engine.running:
        # Python would wait for threads whose rankings nobody waits for any more.
        _LOG.warning("%d passes did not end in time", app.service.engine.running)
        logging.shutdown()
        if leave is not None:
            leave()
        os._exit(code)
    return code


class _Protocol(HttpToolsProtocol):
    """uvicorn's connection, with limits on waiting, and with each answer sent in one piece.

    `expire` closes the connection of a client that sends nothing, or sends too slowly.
    """

    _since: float | None = None  # when the head or body began that is being waited for
    _idle_since: float | None = None  # when the last answer was complete; None within a request
    _head = 0  # bytes of the head that came after the first read; -1 when it is complete
    _begun = False  # whether the bytes being read have begun a head
    _chunk_is_empty = False  # whether the current chunk is empty, like the last one before trailers
    _trailing = 0  # bytes that came while it was empty
    _deaf = False  # whether further input is ignored
    _surplus = 0  # bytes of a body that came after its answer

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.headers = []
        self.transport = cast("asyncio.Transport", _Joining(transport))
        self._since = self.loop.time()

    def expire(self, before: float) -> None:
        """Close the connection if it has been waited for since `before`."""
        if self._since is None or self._since > before or self.transport.is_closing():
            return
        if self._head >= 0 or self.cycle.response_complete:
            self.transport.close()
            return
        self._since = None
        self.scope[LATE] = True  # type: ignore[literal-required]  # our own key
        self.cycle.keep_alive = self.cycle.more_body = False
        self.cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if b"pgrade" in data:
            # The server speaks no other protocol and may ignore the upgrade, but llhttp would read
            # the body as that protocol's.
            data = _UPGRADE.sub(rb"\1ignored", data)
        self._begun = False
        if self._head < 0 and self._since is not None and self.cycle.response_complete:
            self._surplus += len(data)
            if self._surplus > _SURPLUS:
                self._deaf = True
                self.transport.close()
                return
        self._idle_since = None
        was_empty = self._chunk_is_empty
        super().data_received(data)
        if was_empty and self._chunk_is_empty:
            self._trailing += len(data)
            if self._trailing > _HEAD_BYTES:
                self.transport.close()
        if self._since is None:
            if self.cycle is None or self.cycle.response_complete:
                self._since = self.loop.time()  # empty lines do not begin a head
                self._head = 0
        elif self._head >= 0:
            if not self._begun:
                self._head += len(data)
            if self._head > _HEAD_BYTES:
                self.transport.close()
            elif len(self.headers) > _HEADERS:
                self.headers.clear()
                self.send_400_response(f"more than {_HEADERS} headers")

    def _unsupported_upgrade_warning(self) -> None:
        """Refuse CONNECT, or an Upgrade in two pieces: the body can no longer be found."""
        self._deaf = True
        self._since = None
        self.cycle.keep_alive = False

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _AHEAD:
            # Further input is not read; the last of these answers says so.
            self._deaf = True
            self.cycle.keep_alive = False
            raise ValueError
        self._since = self.loop.time()
        self._head = 0
        self._begun = True
        self._chunk_is_empty = False
        super().on_message_begin()

    def send_400_response(self, msg: str) -> None:
        if not self._deaf:
            super().send_400_response(msg)
            cast("_State", self.server_state).on_no_http()

    def on_headers_complete(self) -> None:
        self._since = self.loop.time()
        self._head = -1
        self._surplus = 0
        if len(self.headers) > _HEADERS or _is_ambiguous(self.headers):
            self.headers.clear()  # before the connection has ended
            raise ValueError  # the parser stops, and uvicorn answers with a 400
        super().on_headers_complete()
        self.headers = []  # trailers are collected here, and are not headers of the request
        if cast("_State", self.server_state).is_crowded:
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        self._chunk_is_empty = True
        self._trailing = 0

    def on_body(self, body: bytes) -> None:
        self._chunk_is_empty = False
        super().on_body(body)

    def make_room(self, before: float) -> None:
        """Others wait for room: close after this answer, or now if idle since `before`."""
        if self.cycle is None:
            return
        if not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self._idle_since is not None and self._idle_since < before:
            self.transport.close()

    def on_message_complete(self) -> None:
        self._since = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        cast("_Joining", self.transport).flush()
        self._idle_since = self.loop.time()
        super().on_response_complete()


def _is_ambiguous(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a proxy may read this head differently: two hosts, or a coding other than chunked."""
    hosts = codings = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            codings += 1 if value.strip(b" \t").lower() == b"chunked" else 2
    return hosts > 1 or codings > 1


class _State(ServerState):
    """State that the connections of a server share."""

    is_crowded = False  # connections wait until others have ended

    def __init__(self, on_no_http: Callable[[], None]) -> None:
        super().__init__()
        self.on_no_http = on_no_http  # called when input was answered with a 400


class _Joining:
    """A transport that sends an answer's head and body in one system call and packet.

    uvicorn writes them separately, and uvloop sends each write at once.
    """

    __slots__ = ("_head", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self.is_closing():  # the client has left, and its later requests with it
            return
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Send a head without a body now."""
        if self._head:
            head, self._head = self._head, b""
            if not self.is_closing():
                self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Server(uvicorn.Server):
    """uvicorn's server with our own signal handling."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Any,
        administer: Any = None,
        beside: Beside | None = None,
    ) -> None:
        super().__init__(config)
        self._beside = beside
        self.server_state: _State = _State(service.no_http)
        self._service = service
        self._administer = administer  # the app behind a Unix socket
        # With several workers, one must not take all connections that come at once.
        self._accepts = BACKLOG if service.settings.workers == 1 else 4
        self._own_files: int | None = None  # number open when the model became ready
        self._connecting: set[asyncio.Task[None]] = set()
        self._reloading: set[asyncio.Task[None]] = set()
        self.failed = False

    def fail(self) -> None:
        """End with an error."""
        self.failed = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, loop)
        loop.add_signal_handler(signal.SIGHUP, self._reload, loop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvloop's own server takes one connection per turn of the loop: of 128 that came at once
        # while rankings were made in the loop, the last one waited for two seconds.
        await super().startup([])
        loop = asyncio.get_running_loop()
        for each in sockets or []:
            each.setblocking(False)
            loop.add_reader(each, self._accept, each, self._accepts)

    def _accept(self, listening: socket.socket, most: int) -> None:
        """Take connections that wait in the kernel's queue."""
        loop = asyncio.get_running_loop()
        for _ in range(most):
            if not self._has_room(listening):
                self._wait_for_room(listening, _NO_ROOM, "files are few, and some are reserved")
                return
            try:
                client, _address = listening.accept()
            except (BlockingIOError, InterruptedError):
                self.server_state.is_crowded = False
                return
            except ConnectionError:
                continue  # the client gave up before it was taken
            except OSError as error:  # such as when the whole machine has no more files
                self._wait_for_room(listening, 1.0, str(error.strerror))
                return
            is_admin = listening.family == socket.AF_UNIX
            _keep(self._connecting, loop.create_task(self._connect(client, is_admin)))

    def _has_room(self, listening: socket.socket) -> bool:
        """Whether one more connection leaves the log and a reload the files that they may open."""
        try:
            lowest = os.dup(listening.fileno())  # the lowest free one, so no connection reserves it
        except OSError:
            return False
        os.close(lowest)
        own = self._own_files
        kept = _BEFORE_READY if own is None else own + _SPARE
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return most == resource.RLIM_INFINITY or lowest < max(
            most - kept, (own or 0) + _LEAST_CONNECTIONS
        )

    def _wait_for_room(self, listening: socket.socket, seconds: float, why: str) -> None:
        """Make room, and look again later."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.call_later(seconds, self._listen_again, listening)
        if not self.server_state.is_crowded:
            _LOG.warning(
                "connections wait beside %d open ones: %s", len(self.server_state.connections), why
            )
        self.server_state.is_crowded = True
        for connection in list(self.server_state.connections):
            cast("_Protocol", connection).make_room(loop.time() - _IDLE)

    def _listen_again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            loop = asyncio.get_running_loop()
            loop.add_reader(listening, self._accept, listening, self._accepts)

    async def _connect(self, client: socket.socket, is_admin: bool) -> None:
        protocol = self._admin_protocol if is_admin else self._protocol
        with contextlib.suppress(OSError):  # the client has left
            if not is_admin:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(protocol, client)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in sockets or []:
            asyncio.get_running_loop().remove_reader(each)
            self._accept(each, BACKLOG)
            each.close()  # at once: later clients are refused, not accepted and forgotten
        if self._connecting:
            await asyncio.wait(self._connecting)
        # The newest connections would count as idle: wait for their first request.
        loop = asyncio.get_running_loop()
        end = loop.time() + _GREETING
        while loop.time() < end and any(
            getattr(each, "cycle", None) is None for each in self.server_state.connections
        ):
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # their time is up
            connection.transport.abort()
        await asyncio.sleep(0)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = _Protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def _admin_protocol(self) -> asyncio.Protocol:
        protocol = cast("_Protocol", self._protocol())
        protocol.app = self._administer
        return protocol

    async def on_tick(self, counter: int) -> bool:
        try:
            self._service.tick()
        except Exception:  # the server continues
            _LOG.exception("recent answers were not counted")
        if self._own_files is None and self._service.ready:
            self._own_files = _open_files() - len(self.server_state.connections)
        if counter % 5 == 0:  # every half second
            before = asyncio.get_running_loop().time() - self._service.settings.receive_timeout
            for connection in list(self.server_state.connections):
                cast("_Protocol", connection).expire(before)
        return await super().on_tick(counter)

    def _drain(self, loop: Any) -> None:
        if self._service.draining:
            return
        self._service.draining = True
        _LOG.info("stopping: %d requests in flight", self._service.engine.inside)
        settings = self._service.settings
        if self._beside is not None:
            seconds = settings.drain_delay + settings.drain_timeout
            self._beside.finish_by(time.monotonic() + seconds)
        loop.call_later(settings.drain_delay, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    def _reload(self, loop: Any) -> None:
        async def reload() -> None:
            with contextlib.suppress(ValueError, OSError, MemoryError):  # it is logged
                await self._service.reload()

        _keep(self._reloading, loop.create_task(reload()))


def _open_files() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return _SPARE


def _keep(tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    """Keep a reference to a task until it is done: the loop keeps none."""
    tasks.add(task)
    task.add_done_callback(tasks.discard)


# ---- Several workers ------------------------------------------------------------------------


def _worker(
    settings: Settings,
    sockets: list[socket.socket],
    board: Board,
    seat: int,
    taken: Board | None,
) -> None:
    end_by_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    # A worker ends with its parent, even if that is killed, by Linux's PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:  # the parent was killed before this call
        sys.exit(0)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"%(asctime)s %(levelname)s %(name)s [{os.getpid()}] %(message)s",
        stream=sys.stderr,
    )
    sys.exit(_serve(settings, sockets, board, seat, taken))


class _Workers:
    """Keeps workers running, and passes signals on to them.

    Gives up if workers end again and again: the process that started the server may know better.
    """

    def __init__(
        self,
        settings: Settings,
        sockets: list[socket.socket],
        board: Board | None = None,
        beside: Beside | None = None,
    ) -> None:
        self._settings = settings
        self._sockets = sockets
        self._context = multiprocessing.get_context("spawn")
        self._is_own_board = board is None
        self._board = board or Board(settings.workers)
        # The content of the control file that they have followed.
        self._taken = None if settings.control is None else Board(settings.workers)
        self._beside = beside
        self._workers: dict[BaseProcess, tuple[int, float]] = {}  # their seat and start time
        self._most = _ENDS * settings.workers
        self._ends: deque[float] = deque(maxlen=self._most)  # times of the latest ends
        self._stopping = threading.Event()
        self._patience_ends = float("inf")  # monotonic seconds
        self._woken, self._wake = os.pipe()  # interrupts the wait for workers to end

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._hand_on)
        self._start(0)
        others = list(range(1, self._settings.workers))
        failed = False
        while self._workers:
            if others and self._settings.directory is not None:
                for seat in others:
                    self._start(seat)
                others = []
            ends = [worker.sentinel for worker in self._workers]
            if not self._stopping.is_set():
                ends.append(self._woken)
            multiprocessing.connection.wait(ends, 1.0)
            if self._stopping.is_set():
                # Workers hold the sockets too; connections that they do not accept are refused.
                self._close_sockets()
            free: list[int] = []
            at_once = True
            for worker, (seat, since) in list(self._workers.items()):
                if worker.exitcode is None:
                    continue
                del self._workers[worker]
                # The next worker at its seat continues its counts.
                self._board.write(seat, Note(self._board.read()[seat].kept, b""))
                if self._stopping.is_set():
                    # A worker that did not handle signals yet is ended by them.
                    failed = failed or worker.exitcode not in (0, -signal.SIGTERM)
                    continue
                early = time.monotonic() - since < _LEAST_LIFE
                if worker.exitcode == 1 and early:  # no worker could load the model
                    failed = True
                    self._stop(signal.SIGTERM, None)
                    continue
                _LOG.error("worker %s ended with %s", worker.pid, worker.exitcode)
                free.append(seat)
                at_once = at_once and not early
                if self._are_too_many(time.monotonic()):
                    failed = True
            if time.monotonic() > self._patience_ends:
                self._kill()
            if not at_once:
                self._stopping.wait(1.0)
            for seat in free:
                self._start(seat)
        self.close()
        return 1 if failed else 0

    def close(self) -> None:
        """Release what the workers shared."""
        self._close_sockets()
        if self._is_own_board:
            self._board.close()
        if self._taken is not None:
            self._taken.close()

    def _close_sockets(self) -> None:
        for each in self._sockets:
            each.close()

    def _kill(self) -> None:
        """Kill workers that do not end by themselves, such as one stopped by SIGSTOP."""
        for worker in self._workers:
            _LOG.error("worker %s did not end in time", worker.pid)
            worker.kill()
        self._patience_ends = float("inf")

    def _start(self, seat: int) -> None:
        if self._stopping.is_set():
            return
        arguments = (self._settings, self._sockets, self._board, seat, self._taken)
        worker = self._context.Process(target=_worker, args=arguments)
        # A reload requested meanwhile would end a process that does not handle signals yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        worker.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        self._workers[worker] = seat, time.monotonic()
        if self._stopping.is_set():  # it was set during the start
            self._hand_on(signal.SIGTERM, None)

    def _are_too_many(self, now: float) -> bool:
        """Whether this end is one too many; the others then end too."""
        self._ends.append(now)
        if len(self._ends) < self._most or now - self._ends[0] > _WITHIN:
            return False
        if not self._stopping.is_set():
            _LOG.error("giving up: %d workers ended within %.0f s", self._most, _WITHIN)
            self._stop(signal.SIGTERM, None)
        return True

    def _stop(self, number: int, _frame: Any) -> None:
        if not self._stopping.is_set():
            drain = self._settings.drain_delay + self._settings.drain_timeout
            self._patience_ends = time.monotonic() + drain + _LONGER
            if self._beside is not None:
                self._beside.finish_by(time.monotonic() + drain)
        self._stopping.set()
        os.write(self._wake, b".")
        self._hand_on(signal.SIGTERM, None)

    def _hand_on(self, number: int, _frame: Any) -> None:
        for worker in list(self._workers):
            if worker.pid is not None and worker.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)
