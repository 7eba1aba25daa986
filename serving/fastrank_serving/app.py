"""The HTTP side: addresses, and the form of errors.

/ping and /invocations, SageMaker's contract, take a short path; Starlette handles the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import msgspec
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import fastrank as fr
from fastrank.extras import missing_extra
from fastrank.wire import LINES, lines_of
from fastrank_serving import explorer, metrics
from fastrank_serving.access import ENDPOINT, LINE, Line
from fastrank_serving.control import Taken
from fastrank_serving.messages import (
    LATE,
    MAX_TEXT,
    Origin,
    ProblemError,
    Request,
    error_body,
    origin_of,
    parse,
    parse_parameters,
    refuse_repeated,
    traceparent_of,
)
from fastrank_serving.openapi import document
from fastrank_serving.rehearsal import rehearse
from fastrank_serving.service import Loaded, Service
from fastrank_serving.settings import Settings

__all__ = ["App", "create_app", "rehearse_apart"]

Headers: TypeAlias = dict[bytes, bytes]

_LOG = logging.getLogger("fastrank.serving")
_JSON = b"application/json"
_LINES = tuple(kind.encode() for kind in LINES)
_CUSTOM = b"x-amzn-sagemaker-custom-attributes"
_INFERENCE_ID = b"x-amzn-sagemaker-inference-id"
_TRACEPARENT = b"traceparent"
_CLOSE = (b"connection", b"close")
_PATH = 200  # characters that the access log reads
_VISIBLE = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,1023}|")
_EMF_SECONDS = 60.0
_REHEARSAL_SECONDS = 600.0  # for each request: a slow model is not a bad one
_LINES_MOST = 100_000  # of a batch
_LONG = 64  # lines; several shorter ones are answered at a time
_ANSWERS_BYTES = 64 << 20  # for all lines of a batch
_TURN = 0.005  # seconds that a batch may keep the loop busy
_SMALL = 65_536  # bytes; larger bodies are read one at a time
# Bytes that a parsed request holds for an id and a number; and for a line of a batch.
_ID_BYTES, _NUMBER_BYTES, _LINE_BYTES = 64, 32, 100


def create_app(
    settings: Settings,
    load_first: bool = False,
    counted: metrics.Metrics | None = None,
    taken: Taken | None = None,
) -> App:
    """Create the app for these settings; the server loads the model when it starts.

    With `load_first`, no connection is accepted before the model is loaded. Otherwise /ping reports
    that the server is not ready yet.
    """
    service = Service(settings, counted or metrics.Metrics(), taken=taken)
    service.on_loaded = partial(rehearse_apart, settings)
    return App(service, load_first)


async def rehearse_apart(settings: Settings, loaded: Loaded) -> None:
    """Rehearse in a separate app, which logs and counts nothing."""
    apart = replace(
        settings,
        log_directory=None,
        log_spool=None,
        deadline=_REHEARSAL_SECONDS,
        # Clients are allowed everything here, since a setting may allow it later.
        only_named_rules=False,
        clients_may=None,
        gateway_may=None,
        allow_policies=None,
    )
    service = Service(apart, metrics.Metrics(), loaded)
    try:
        await rehearse(App(service), loaded, settings)
    finally:
        service.engine.close()


class App:
    """An ASGI app.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service, load_first: bool = False) -> None:
        self.service = service
        self._load_first = load_first
        self.on_failure: Any = None  # called if the model cannot be loaded
        self._others, self._admin = _starlettes(self)
        routes = [*self._others.routes, *self._admin.routes]
        self.access = service.access
        paths = (each.path for each in routes if isinstance(each, Route))
        self.access.paths = {"/ping", "/invocations", *paths}
        self._small = min(_SMALL, service.settings.max_body)
        self._memory = _Memory(service.settings.max_held)
        self._reading = asyncio.Lock()
        self._long_batch = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._noted(self._http, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def administer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app behind the Unix socket for operators."""
        await self._noted(partial(self._by, self._admin), scope, receive, send)

    async def _noted(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Add a line of the access log, and Connection: close while draining."""
        began = time.monotonic()
        line = scope[LINE] = Line(0.0, scope["method"], scope["path"][:_PATH], 0, 0.0, 0)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                line.status = message["status"]
                if self.service.draining and _CLOSE not in message["headers"]:
                    message["headers"] = [*message["headers"], _CLOSE]
            else:
                line.bytes += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive, sending)
        finally:
            if self._is_said(line):
                if scope["method"] == "HEAD":
                    line.bytes = 0
                line.seconds = time.monotonic() - began
                line.traceparent = traceparent_of(scope["headers"])
                self.access.note(line)

    def _is_said(self, line: Line) -> bool:
        least = self.access.least
        if least and line.path == "/ping" and not self.service.hangs:
            return False  # a 503 from /ping is expected while not ready
        return line.status >= least

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith("/endpoints/") and ENDPOINT.fullmatch(path):
            path = "/invocations"
        if path == "/invocations" and scope["method"] == "POST":
            await self._invocations(scope, receive, send)
        elif path == "/ping" and scope["method"] in ("GET", "HEAD"):
            await self._send(send, 200 if self.service.ready else 503, b"", {})
        elif path in ("/invocations", "/ping"):
            allowed = "POST" if path == "/invocations" else "GET, HEAD"
            problem = _not_allowed(f"expected {allowed}")
            await self._refuse(send, problem, None, {b"allow": allowed.encode()})
        else:
            await self._by(self._others, scope, receive, send)

    async def _by(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:  # the time for open requests is up
            await self._refuse(send, _stopped(), None, {})

    # ---- SageMaker's contract ---------------------------------------------------------------

    async def _invocations(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = dict(scope["headers"])
        inference_id = headers.get(_INFERENCE_ID, b"").decode("latin-1") or None
        extra: Headers = {}
        custom = headers.get(_CUSTOM)
        if custom is not None and _VISIBLE.fullmatch(custom):
            extra[_CUSTOM] = custom
        kind = headers.get(b"content-type", _JSON).split(b";")[0].strip().lower()
        request_id: str | None = None
        held: _Held | None = None
        line: Line = scope[LINE]
        try:
            if kind not in (_JSON, b"", *_LINES):
                raise ProblemError(
                    415,
                    "unsupported_media_type",
                    "content-type: expected application/json",
                    field="content-type",
                    value=kind.decode("latin-1"),
                    allowed=["application/json", "application/jsonlines"],
                )
            coding = headers.get(b"content-encoding")
            if coding is not None and coding.strip().lower() != b"identity":
                raise ProblemError(
                    415,
                    "unsupported_media_type",
                    "content-encoding: send the body without an encoding",
                    field="content-encoding",
                    value=coding.decode("latin-1"),
                    allowed=["identity"],
                )
            if inference_id is not None and len(inference_id) > MAX_TEXT:
                raise ProblemError(
                    422,
                    "invalid_value",
                    f"{_INFERENCE_ID.decode()}: at most {MAX_TEXT} characters",
                    field=_INFERENCE_ID.decode(),
                )
            message = await receive()
            body: bytes = message.get("body", b"")
            # Nearly all bodies arrive whole and small, and can be read without waiting.
            if len(body) > self._small or message.get("more_body", True) or LATE in scope:
                held = _Held(self._memory)
                body = await self._body(message, scope, headers, receive, held)
            trace = traceparent_of(scope["headers"]) if _TRACEPARENT in headers else None
            if kind in _LINES:
                held = held or _Held(self._memory)
                answer = await self._lines(body, inference_id, trace, held, receive, line)
                await self._send(send, 200, answer, extra, kind)
                return
            request = parse(body) if held is None else await self._read(body, held)
            del body, message
            origin = self._origin(request, inference_id, trace)
            line.request_id = request_id = origin.request_id
            line.user = request.user_id
            answer = await self.service.answer(request, origin, line=line)
        except ProblemError as problem:
            line.code = problem.code
            if LATE in scope:
                extra |= [_CLOSE]
            await self._refuse(send, problem, request_id, extra)
            return
        except ConnectionError:
            return  # the client has left
        except asyncio.CancelledError:  # the time for open requests is up
            await self._refuse(send, _stopped(), request_id, extra)
            return
        except Exception:
            _LOG.exception("request %r", request_id)
            await self._refuse(send, _internal(), request_id, extra)
            return
        finally:
            if held is not None:
                held.give_back()
        await self._send(send, 200, answer, extra)

    def _origin(self, request: Request, inference_id: str | None, trace: str | None) -> Origin:
        has_gateway = self.service.clients.has_gateway
        return origin_of(request, inference_id, trace, has_gateway=has_gateway)

    async def _body(
        self, message: Message, scope: Scope, headers: Headers, receive: Receive, held: _Held
    ) -> bytes:
        limit = self.service.settings.max_body
        length = headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ConnectionError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            held.take(len(parts[-1]))
            if not message.get("more_body", False):
                break
            message = await receive()
        if LATE in scope:  # the rest of this connection cannot be parsed
            raise ProblemError(408, "body_too_slow", "the body did not arrive in time")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read(self, body: bytes, held: _Held) -> Request:
        """Read a body that may be large; other work gets its turn between two of them."""
        if len(body) <= _SMALL:
            return parse(body)
        most = self.service.settings.max_ids
        async with self._reading:
            await asyncio.sleep(0)
            request = parse(body, most)
        lists = (request.exclude, request.allow, request.after)
        ids = sum(min(len(ids), most) for ids in lists if ids is not None)
        numbers = 0 if request.query is None else len(request.query)
        held.take(ids * _ID_BYTES + numbers * _NUMBER_BYTES - len(body))
        return request

    async def _lines(
        self,
        body: bytes,
        inference_id: str | None,
        trace: str | None,
        held: _Held,
        receive: Receive,
        line: Line,
    ) -> bytes:
        """Answer batch transform: one line out per line in, in order; a bad line gives an error.

        Long lines are answered one after another. Otherwise several answers that are nearly
        complete could take all the memory. A batch stops when its client leaves; otherwise it would
        continue for hours.
        """
        if body.count(b"\n") > _LINES_MOST:
            allowed = f"at most {_LINES_MOST} lines"
            raise ProblemError(413, "too_many_lines", f"the body: {allowed}", allowed=allowed)
        lines = lines_of(body)
        held.take(len(body) + len(lines) * _LINE_BYTES)
        if len(lines) <= _LONG:
            return await self._answers(lines, inference_id, trace, line)
        leaving = asyncio.ensure_future(_left(receive))
        answering = asyncio.ensure_future(self._long(lines, inference_id, trace, line))
        try:
            await asyncio.wait((leaving, answering), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ConnectionError
            return answering.result()
        finally:
            leaving.cancel()
            answering.cancel()

    async def _long(
        self, lines: list[bytes], inference_id: str | None, trace: str | None, said: Line
    ) -> bytes:
        async with self._long_batch:
            return await self._answers(lines, inference_id, trace, said)

    async def _answers(
        self, lines: list[bytes], inference_id: str | None, trace: str | None, said: Line
    ) -> bytes:
        results: list[bytes] = [b""] * len(lines)
        waiting = iter(enumerate(lines))
        size = 0
        turns = _Turns()

        async def work() -> None:
            nonlocal size
            for j, line in waiting:
                await turns.take()  # a line may need no waiting at all
                began = time.monotonic()
                own = Line(0.0, said.method, said.path, 200, 0.0, 0, line=j + 1, traceparent=trace)
                problem = None
                try:
                    request = parse(line)
                    origin = self._origin(request, inference_id, trace)
                    own.request_id, own.user = origin.request_id, request.user_id
                    results[j] = await self.service.answer(request, origin, is_batch=True)
                except ProblemError as error:
                    problem = error
                except Exception:
                    _LOG.exception("line %d", j)
                    problem = _internal()
                if problem is not None:
                    self.service.metrics.refused(problem.status)
                    results[j] = error_body(problem, own.request_id)
                    own.status, own.code = problem.status, problem.code
                    own.bytes = len(results[j])
                    own.seconds = time.monotonic() - began
                    if own.status >= self.access.least:
                        self.access.note(own)
                size += len(results[j])
                if size > _ANSWERS_BYTES:
                    return

        width = max(1, min(len(lines), self.service.settings.queue // 2, 64))
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(work())
        if size > _ANSWERS_BYTES:
            allowed = f"at most {_ANSWERS_BYTES >> 20} MiB"
            words = f"the answers: {allowed}; send fewer lines at a time"
            raise ProblemError(413, "answers_too_large", words, allowed=allowed)
        return b"\n".join([*results, b""])

    # ---- Answers ----------------------------------------------------------------------------

    async def _refuse(
        self, send: Send, problem: ProblemError, request_id: str | None, extra: Headers
    ) -> None:
        self.service.metrics.refused(problem.status)
        if problem.retry_after is not None:
            extra = {**extra, b"retry-after": str(problem.retry_after).encode()}
        await self._send(send, problem.status, error_body(problem, request_id), extra)

    async def _send(
        self, send: Send, status: int, body: bytes, extra: Headers, kind: bytes = _JSON
    ) -> None:
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *extra.items(),
        ]
        start: Message = {"type": "http.response.start", "status": status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    # ---- Life -------------------------------------------------------------------------------

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        starting = asyncio.create_task(self._start())
        if self._load_first:
            await starting
        emf = asyncio.create_task(self._emf()) if self.service.settings.emf else None
        await send({"type": "lifespan.startup.complete"})
        with contextlib.suppress(asyncio.CancelledError):  # ended before it had begun
            await receive()
        starting.cancel()
        if emf is not None:
            emf.cancel()
            self.service.metrics.print_emf()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        await self.service.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        try:
            await self.service.start()
            # Freeze what exists now: collecting garbage among it would stop the loop for 30 ms.
            gc.collect()
            gc.freeze()
        except Exception as error:
            hint = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
            known = isinstance(error, ValueError | OSError | ImportError | MemoryError)
            _LOG.error(
                "the model cannot be served: %s", hint or error, exc_info=None if known else error
            )
            if self.on_failure is not None:
                self.on_failure()

    async def _emf(self) -> None:
        while True:
            await asyncio.sleep(_EMF_SECONDS)
            self.service.metrics.print_emf()


class _Memory:
    """Bytes that all requests hold together, and the limit."""

    __slots__ = ("most", "taken")

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0


class _Held:
    """The share that one request holds."""

    __slots__ = ("_memory", "_taken")

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory
        self._taken = 0

    def take(self, count: int) -> None:
        """Take more bytes, or give them back if below 0; ProblemError if too few are left."""
        if count > 0 and self._memory.taken + count > self._memory.most:
            raise ProblemError(
                503,
                "busy",
                f"requests hold {self._memory.taken} bytes, of at most {self._memory.most}",
                retry_after=1,
            )
        self._memory.taken += count
        self._taken += count

    def give_back(self) -> None:
        self._memory.taken -= self._taken
        self._taken = 0


async def _left(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Turns:
    """Limits the time that a batch's tasks take together in one turn of the loop."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next: asyncio.Future[None] | None = None

    async def take(self) -> None:
        """Continue, now or in a later turn."""
        while time.monotonic() - self._began > _TURN:
            if self._next is None:
                loop = asyncio.get_running_loop()
                self._next = loop.create_future()
                loop.call_soon(self._begin, self._next)
            await self._next

    def _begin(self, waiting: asyncio.Future[None]) -> None:
        self._began = time.monotonic()
        self._next = None
        waiting.set_result(None)


# ---- Addresses that SageMaker does not need --------------------------------------------------


class _Rest(PathConvertor):
    """The rest of a path; Starlette's own convertor drops or refuses newlines."""

    regex = r"[\s\S]*"


register_url_convertor("rest", _Rest())


def _starlettes(app: App) -> tuple[Starlette, Starlette]:
    """Addresses for everyone, and addresses for operators."""
    service = app.service

    def refused(problem: ProblemError, request_id: str | None = None) -> Response:
        service.metrics.refused(problem.status)
        headers = {"cache-control": "no-store"}
        if problem.retry_after is not None:
            headers["retry-after"] = str(problem.retry_after)
        return Response(
            error_body(problem, request_id),
            status_code=problem.status,
            media_type="application/json",
            headers=headers,
        )

    async def recommended(request: HttpRequest) -> Response:
        request_id: str | None = None
        line: Line = request.scope[LINE]
        try:
            if request.method == "HEAD":  # a ranking is made to be shown, so HEAD makes none
                raise _not_allowed("expected GET")
            given = dict(request.query_params)
            refuse_repeated(request.query_params.multi_items())
            if "user_id" in given:
                raise ProblemError(
                    400, "duplicate_field", "user_id: the path gives it already", field="user_id"
                )
            asked = parse_parameters({**given, "user_id": request.path_params["user_id"]})
            origin = origin_of(asked, traceparent=traceparent_of(request.scope["headers"]))
            line.request_id = request_id = origin.request_id
            line.user = asked.user_id
            body = await service.answer(asked, origin, line=line)
        except ProblemError as problem:
            line.code = problem.code
            return refused(problem, request_id)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def live(_: HttpRequest) -> Response:
        return Response(status_code=200)

    async def measured(_: HttpRequest) -> Response:
        service.tick()
        return Response(service.metrics.page(), headers={"content-type": metrics.CONTENT_TYPE})

    async def version(_: HttpRequest) -> Response:
        try:
            loaded = service.loaded
        except ProblemError as problem:
            return refused(problem)
        index = loaded.catalog.index
        return JSONResponse(
            {
                "fastrank": fr.__version__,
                "rng_version": fr.RNG_VERSION,
                "model_version": loaded.version,
                "catalog_version": loaded.catalog.version,
                "n_items": len(loaded.catalog),
                "dim": loaded.catalog.dim,
                "n_users": 0 if loaded.model is None else len(loaded.model.user_ids),
                "table_temperature": None
                if loaded.model is None
                else loaded.model.table_temperature,
                "score": None if loaded.catalog.score is None else loaded.catalog.score._asdict(),
                "features": None
                if loaded.catalog.features is None
                else {
                    "version": loaded.catalog.features.version,
                    "columns": loaded.catalog.features.columns,
                },
                "score_functions": list(service.settings.score_functions),
                "rules": {
                    name: {"id": each.rules.id, "params": each.params}
                    for name, each in loaded.rules.items()
                },
                "only_named_rules": not service.clients.may_say("rules"),
                "clients_may": service.clients.fields,
                "gateway_may": service.clients.gateways,
                "allow_policies": service.clients.policies,
                "index": None
                if index is None
                else {"version": index.version, "n_probes": index.n_probes},
                "policy": {
                    "name": loaded.policy.inference_type,
                    "params": loaded.policy.params,
                },
                **loaded.in_force.to_dict(),
            }
        )

    async def openapi(_: HttpRequest) -> Response:
        described = document(
            service.settings,
            service.catalog,
            service.policy,
            service.rules,
            has_arms=bool(service.in_force.arms),
        )
        return Response(msgspec.json.encode(described), media_type="application/json")

    async def execution_parameters(_: HttpRequest) -> Response:
        settings = service.settings
        return JSONResponse(
            {
                "MaxConcurrentTransforms": settings.threads * settings.workers,
                "BatchStrategy": "MULTI_RECORD",
                "MaxPayloadInMB": max(1, settings.max_body >> 20),
            }
        )

    async def reload(_: HttpRequest) -> Response:
        try:
            found = await service.reload()
        except (ValueError, OSError, MemoryError) as error:
            return refused(ProblemError(409, "not_reloaded", f"the old model serves: {error}"))
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid == os.getppid():
            os.kill(os.getppid(), signal.SIGHUP)  # the parent passes it on to the other workers
        return JSONResponse({"model_version": found})

    async def not_found(_: HttpRequest, __: Exception) -> Response:
        return refused(ProblemError(404, "not_found", "there is nothing at this address"))

    async def not_allowed(_: HttpRequest, __: Exception) -> Response:
        return refused(_not_allowed("this address takes another one"))

    async def failed(_: HttpRequest, error: Exception) -> Response:
        _LOG.error("a request failed", exc_info=error)
        return refused(_internal())

    def starlette(*routes: Route) -> Starlette:
        handlers: Any = {404: not_found, 405: not_allowed, 500: failed}
        made = Starlette(routes=routes, exception_handlers=handlers)
        made.router.redirect_slashes = False  # redirects would follow the Host header
        return made

    others = starlette(
        Route("/1/recommended-items/{user_id:rest}", recommended),
        Route("/livez", live),
        Route("/metrics", measured),
        Route("/version", version),
        Route("/openapi.json", openapi),
        Route("/execution-parameters", execution_parameters),
        *explorer.routes(service, refused),
    )
    return others, starlette(Route("/-/reload", reload, methods=["POST"]))


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        413, "body_too_large", f"the body: at most {limit} bytes", allowed=f"at most {limit} bytes"
    )


def _not_allowed(words: str) -> ProblemError:
    return ProblemError(405, "method_not_allowed", f"method: {words}")


def _stopped() -> ProblemError:
    return ProblemError(
        503, "stopped", "the server has stopped: send the request again", retry_after=1
    )


def _internal() -> ProblemError:
    return ProblemError(500, "internal", "an internal error; see the server's log")
