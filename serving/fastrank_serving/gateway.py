"""API Gateway and SageMaker on this machine, for tests and load tests: renders the deployed
template in front of a container.

    python -m fastrank_serving.gateway --target http://127.0.0.1:8080 --port 9000

It reads the template.yaml beside it, renders its mapping templates with airspeed, posts to the
target's /invocations, and wraps errors as SageMaker does: ModelError, status 424, with
OriginalStatusCode and OriginalMessage. With --capture it writes what Data Capture would store. It
does not imitate authorization, throttling or caches. It uses one thread per connection and is not a
production server.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import queue
import re
import signal
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, quote_plus, unquote, unquote_plus, urlsplit

from fastrank.extras import missing_extra
from fastrank.files import naming

try:
    import airspeed
    import yaml
except ModuleNotFoundError as error:
    hint = missing_extra(error)
    if __name__ != "__main__" or hint is None:
        raise
    sys.stderr.write(f"fastrank_serving.gateway: {hint}\n")
    sys.exit(2)

__all__ = ["Gateway", "Integration", "Parameters", "Reply", "Server", "integrations"]

TEMPLATE = Path(__file__).with_name("template.yaml")

Parameters: TypeAlias = dict[str, dict[str, str]]  # "path", "querystring" and "header"

_JSON = "application/json"
_IDLE = 64  # idle connections to the target that are kept


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


# ---- What templates can use ------------------------------------------------------------------


class _Util:
    """API Gateway's ``$util``; Java's encoder keeps the asterisk and escapes the tilde."""

    def urlEncode(self, text: str) -> str:  # noqa: N802  # the name in templates
        return quote_plus(text, safe="*").replace("~", "%7E")

    def urlDecode(self, text: str) -> str:  # noqa: N802  # the name in templates
        return unquote_plus(text)

    def escapeJavaScript(self, text: str) -> str:  # noqa: N802  # the name in templates
        return json.dumps(text)[1:-1].replace("'", "\\'").replace("/", "\\/")


class _Input:
    """API Gateway's ``$input``; supports paths of members only, such as ``$.a.b``."""

    def __init__(self, body: str, parameters: Parameters) -> None:
        self.body = body
        self._parameters = parameters

    def params(self, name: str | None = None) -> Any:
        if name is None:
            return self._parameters
        for place in ("path", "querystring", "header"):
            if name in self._parameters[place]:
                return self._parameters[place][name]
        return ""

    def path(self, where: str) -> Any:
        try:
            found: Any = json.loads(self.body)
        except ValueError:
            return None
        for name in where.removeprefix("$").split(".")[1:]:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def json(self, where: str) -> str:
        return json.dumps(self.path(where))


class _Context(dict[str, Any]):
    """API Gateway's ``$context``."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            requestId=request_id, stage="live", responseOverride={"header": {}, "status": None}
        )


# ---- The template ---------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short tags, which are kept as they are."""


_Loader.add_multi_constructor(
    "!",
    lambda loader, tag, node: (
        {tag: node.value}
        if isinstance(node, yaml.ScalarNode)
        else {tag: loader.construct_sequence(node)}
    ),
)


class Integration:
    """One method of the API, with its integration.

    Parameters
    ----------
    path : str
        With parameters in braces.
    method : str
    settings : mapping
        Its x-amazon-apigateway-integration.
    """

    def __init__(self, path: str, method: str, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.method = method.upper()
        words = (re.escape(word) for word in re.split(r"\{\w+\}", path))
        self._names: list[str] = re.findall(r"\{(\w+)\}", path)
        self._path = re.compile("([^/]+)".join(words))
        if settings["type"] != "aws" or settings["httpMethod"] != "POST":
            raise ValueError(f"{path}: expected an AWS integration by POST")
        self._request = _compiled(settings["requestTemplates"][_JSON])
        self._headers = dict(settings.get("requestParameters", {}))
        self._responses = [
            (name, response, _compiled(response.get("responseTemplates", {}).get(_JSON)))
            for name, response in settings["responses"].items()
        ]

    def match(self, path: str) -> dict[str, str] | None:
        """The values of the path's parameters, undecoded; None for another path."""
        found = self._path.fullmatch(path)
        return None if found is None else dict(zip(self._names, found.groups(), strict=True))

    def request(self, parameters: Parameters, request_id: str) -> tuple[bytes, dict[str, str]]:
        """The body for /invocations, and its headers."""
        context = _Context(request_id)
        body = _rendered(self._request, "", parameters, context)
        headers = {}
        for target, source in self._headers.items():
            name = target.removeprefix("integration.request.header.")
            if name == target:
                raise ValueError(f"{target}: only headers are imitated")
            headers[name] = _value(source, context)
        return body.encode(), headers

    def response(self, status: int, body: bytes, parameters: Parameters, request_id: str) -> Reply:
        """API Gateway's answer for an answer of SageMaker."""
        chosen = None
        for name, response, template in self._responses:
            if name == "default":
                chosen = chosen or (response, template)
            elif re.fullmatch(name, str(status)):
                chosen = (response, template)
                break
        if chosen is None:
            return _failed()
        response, template = chosen
        context = _Context(request_id)
        if template is not None:
            text = body.decode("utf-8", "replace")
            body = _rendered(template, text, parameters, context).strip().encode()
        override = context["responseOverride"]["status"]
        headers = [("Content-Type", _JSON), ("x-amzn-RequestId", request_id)]
        for target, source in response.get("responseParameters", {}).items():
            name = target.removeprefix("method.response.header.")
            headers.append((name, _value(source, context)))
        return Reply(int(override or response["statusCode"]), body, tuple(headers))


def integrations(template: Path = TEMPLATE) -> list[Integration]:
    """The integrations of all APIs of a SAM template.

    Raises
    ------
    OSError, ValueError
        If there is no such file, or it has no API that can be imitated.
    """
    with naming(template, "SAM template"):
        document = yaml.load(template.read_text(), _Loader)
        found = [
            Integration(path, method, operation["x-amazon-apigateway-integration"])
            for resource in document.get("Resources", {}).values()
            if resource.get("Type") == "AWS::Serverless::Api"
            for path, operations in resource["Properties"]["DefinitionBody"]["paths"].items()
            for method, operation in operations.items()
        ]
    if not found:
        raise ValueError(f"{template}: no AWS::Serverless::Api with a DefinitionBody")
    return found


def _compiled(text: str | None) -> Any:
    if text is None:
        return None
    template = airspeed.Template(text)
    template.ensure_compiled()
    return template


def _rendered(template: Any, body: str, parameters: Parameters, context: _Context) -> str:
    names = {"input": _Input(body, parameters), "util": _Util(), "context": context}
    text: str = template.merge(names)
    return text


def _value(source: str, context: _Context) -> str:
    if source.startswith("'") and source.endswith("'"):
        return source[1:-1]
    if source.startswith("context."):
        return str(context[source.removeprefix("context.")])
    raise ValueError(f"{source}: only text and context.NAME are imitated")


# ---- The gateway ----------------------------------------------------------------------------


class Gateway:
    """The API in front of a container.

    Parameters
    ----------
    target : str
        The container's URL.
    template : Path
        A SAM template.
    decode_path : bool
        Whether templates get the path's parameters decoded. API Gateway has been observed to pass
        them on undecoded, and its guide does not say, so the template has to be right in both
        cases.
    timeout : float
        Seconds to wait for the container.
    capture : Path, optional
        A file that receives JSON Lines of Data Capture, one line per answer of the container.
    """

    def __init__(
        self,
        target: str,
        template: Path = TEMPLATE,
        *,
        decode_path: bool = False,
        timeout: float = 29.0,
        capture: Path | None = None,
    ) -> None:
        parts = urlsplit(target)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"target: expected http://HOST:PORT, got {target!r}")
        self._address = (parts.hostname, parts.port or 80)
        self._integrations = integrations(template)
        self._decode_path = decode_path
        self._timeout = timeout
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue(_IDLE)
        self._capture = None if capture is None else capture.open("ab", buffering=0)

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Reply:
        """Answer a request as the API would.

        Parameters
        ----------
        method : str
        target : str
            Path and query, as in the request.
        headers : mapping
        """
        path, _, query = target.partition("?")
        for integration in self._integrations:
            values = integration.match(path)
            if values is not None and integration.method == method:
                break
        else:  # API Gateway's answer for an unknown path
            return _plain(403, "Missing Authentication Token")
        if self._decode_path:
            values = {name: unquote(value) for name, value in values.items()}
        parameters: Parameters = {
            "path": values,
            # A map holds the last value of a repeated parameter.
            "querystring": dict(parse_qsl(query, keep_blank_values=True)),
            "header": dict(headers),
        }
        request_id = str(uuid.uuid4())
        try:
            body, sent = integration.request(parameters, request_id)
        except airspeed.TemplateError:
            return _failed()
        try:
            status, got = self._invoke(body, sent)
        except TimeoutError:
            return _plain(504, "Endpoint request timed out")
        except (OSError, http.client.HTTPException):
            status, got = 503, json.dumps({"Message": "no instance is there"}).encode()
        else:
            if self._capture is not None:
                self._capture.write(_captured(body, got, request_id))  # one call keeps lines whole
            if not 200 <= status < 300:
                status, got = 424, _model_error(status, got)
        try:
            return integration.response(status, got, parameters, request_id)
        except airspeed.TemplateError:
            return _failed()

    def close(self) -> None:
        """Close the connections to the target, and the capture."""
        if self._capture is not None:
            self._capture.close()
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _invoke(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        try:
            connection, fresh = self._idle.get_nowait(), False
        except queue.Empty:
            connection, fresh = self._connection(), True
        while True:
            try:
                connection.request("POST", "/invocations", body, dict(headers))
                response = connection.getresponse()
                answer = response.read()
                break
            except (ConnectionError, http.client.RemoteDisconnected):
                connection.close()
                if fresh:
                    raise
                # The target may close an idle connection; the request_id makes a retry harmless.
                connection, fresh = self._connection(), True
            except BaseException:
                connection.close()
                raise
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()
        return response.status, answer

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._address, timeout=self._timeout)


def _model_error(status: int, body: bytes) -> bytes:
    message = body.decode("utf-8", "replace")
    side = "client" if status < 500 else "server"
    return json.dumps(
        {
            "ErrorCode": "CLIENT_ERROR_FROM_MODEL" if status < 500 else "SERVER_ERROR_FROM_MODEL",
            "LogStreamArn": "",
            "Message": f'Received {side} error ({status}) from primary with message "{message}"',
            "OriginalMessage": message,
            "OriginalStatusCode": status,
        }
    ).encode()


def _captured(asked: bytes, answered: bytes, request_id: str) -> bytes:
    def part(mode: str, data: bytes) -> dict[str, str]:
        text = data.decode("utf-8", "replace")
        return {"observedContentType": _JSON, "mode": mode, "data": text, "encoding": "JSON"}

    line = {
        "captureData": {
            "endpointInput": part("INPUT", asked),
            "endpointOutput": part("OUTPUT", answered),
        },
        "eventMetadata": {
            "eventId": str(uuid.uuid4()),
            "inferenceId": request_id,
            "inferenceTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        },
        "eventVersion": "0",
    }
    return json.dumps(line).encode() + b"\n"


def _plain(status: int, message: str) -> Reply:
    body = json.dumps({"message": message}).encode()
    return Reply(status, body, (("Content-Type", _JSON),))


def _failed() -> Reply:
    return _plain(500, "Internal server error")


# ---- Over HTTP ------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def _serve(self) -> None:
        length = self.headers.get("Content-Length", "0")
        is_number = length.isascii() and length.isdigit()
        if not is_number or int(length) > 10_485_760 or self.headers["Transfer-Encoding"]:
            self.close_connection = True
        else:
            self.rfile.read(int(length))  # the template maps no body
        reply = self.server.gateway.answer(self.command, self.path, dict(self.headers.items()))
        reason = http.client.responses.get(reply.status, "")
        lines = [
            f"HTTP/1.1 {reply.status} {reason}",
            f"Content-Length: {len(reply.body)}",
            *(f"{name}: {value}" for name, value in reply.headers),
            *(["Connection: close"] if self.close_connection else []),
        ]
        head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
        self.wfile.write(head if self.command == "HEAD" else head + reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815  # http.server calls them

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's
        pass


class Server(ThreadingHTTPServer):
    """A gateway that listens; a context manager like its base, served by `serve_forever`."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, gateway: Gateway, host: str = "127.0.0.1", port: int = 0) -> None:
        self.gateway = gateway
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def start(self) -> None:
        """Serve in a thread until `shutdown`."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def server_close(self) -> None:
        super().server_close()
        self.gateway.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave
            super().handle_error(request, client_address)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastrank_serving.gateway",
        description="The API Gateway of a SAM template on this machine.",
    )
    parser.add_argument("--target", default="http://127.0.0.1:8080", help="the container's URL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument(
        "--template", type=Path, default=TEMPLATE, help="by default the bundled template"
    )
    parser.add_argument("--decode-path", action="store_true", help="before templates see it")
    parser.add_argument("--capture", type=Path, help="write Data Capture's JSON Lines here")
    given = parser.parse_args(arguments)
    try:
        gateway = Gateway(
            given.target, given.template, decode_path=given.decode_path, capture=given.capture
        )
        server = Server(gateway, given.host, given.port)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"fastrank_serving.gateway: {error}\n")
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with server, contextlib.suppress(KeyboardInterrupt):
        sys.stderr.write(f"{server.url} -> {given.target}\n")
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
