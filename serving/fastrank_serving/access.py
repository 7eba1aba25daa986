"""The access log: one line for each answer, or only for refusals.

A thread formats and writes the lines of each tenth of a second together, so that no request waits
for formatting or for a slow reader. Lines that are left out are counted and reported.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import queue
import re
import threading
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

import msgspec

from fastrank_serving.secret import Secret

__all__ = ["ENDPOINT", "LINE", "AccessLog", "LeftOut", "Line"]

LINE = "fastrank.line"  # key in a scope: the line about its answer

_LOG = logging.getLogger("fastrank.serving")
_PER_SECOND, _AT_ONCE = 10.0, 100.0  # refusals that are written while the log is off
_REFUSED = {"error": 500, "critical": 600}  # least status written, by the level of the server's log
_WAITING = 10_000  # lines that may wait for a slow reader
_GOODBYE = 1.0  # seconds to write the last lines
_SHOWN = 64  # characters of an unknown path that are shown
_RECOMMENDED = "/1/recommended-items/"
# Paths of SageMaker's own clients when their endpoint_url is this server.
ENDPOINT = re.compile(r"/endpoints/[A-Za-z0-9-]{1,63}/invocations")
_FORMATTER = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
_PLAIN = re.compile(
    r"[!#-<>-~]+"
)  # characters written as they are in a line of text; others as JSON, without spaces


class Line(msgspec.Struct, omit_defaults=True):
    """One line: fields of an answer, named as in JSON; unknown fields are left out.

    Attributes
    ----------
    time : float
        Seconds since 1970, when everything was sent; becomes text when the line is made.
    path : str
        Only the first part of an unknown path, because paths contain users' ids.
    seconds : float
        From the head of the request to the end of the answer.
    bytes : int
        Length of the body.
    code : str, optional
        Code of an error.
    user : str, optional
        The id; replaced by its hash when the line is made.
    policy, arm, model_version : str, optional
        How the ranking was drawn.
    line : int, optional
        The line of a batch that was refused; the first one is 1.
    """

    time: float
    method: str
    path: str
    status: int
    seconds: float
    bytes: int
    code: str | None = None
    request_id: str | None = None
    user: str | None = None
    policy: str | None = None
    arm: str | None = None
    model_version: str | None = None
    traceparent: str | None = None
    line: int | None = None


class LeftOut(msgspec.Struct):
    """The number of lines that are missing here."""

    time: float
    left_out: int


_Said: TypeAlias = Line | LeftOut


class AccessLog:
    """Accepts lines from one event loop.

    Parameters
    ----------
    form : {"off", "text", "json"}
        "off": only refusals, as text, at a bounded rate, on standard error. Otherwise one line for
        each answer, on standard output.
    level : str
        Level of the server's log. With "off", lines about 4xx need at least "warning", and lines
        about 5xx at least "error".
    secret : Secret, optional
        The key for hashing users; by default drawn when the server started.

    Attributes
    ----------
    least : int
        Least status of the answers to note.
    paths : collection of str
        Known paths, which are shown in full.
    secret : Secret
    """

    def __init__(
        self, form: str = "off", level: str = "info", secret: Secret | None = None
    ) -> None:
        self.least = _REFUSED.get(level, 400) if form == "off" else 0
        self.paths: Collection[str] = ()
        self._form = form
        self._descriptor = 2 if form == "off" else 1
        # multiprocessing draws this key at the start; it is the same in all workers.
        self.secret = secret or Secret(bytes(multiprocessing.current_process().authkey))
        self._lines: list[_Said] = []
        self._left_out = 0
        self._tokens, self._since = _AT_ONCE, time.monotonic()
        self._batches: queue.Queue[Sequence[_Said] | None] = queue.Queue(1)
        self._writer = threading.Thread(target=self._write, name="fastrank-access", daemon=True)

    def begin(self) -> None:
        """Start the thread; raise OSError if the machine has no thread left."""
        try:
            self._writer.start()
        except RuntimeError as error:
            raise OSError(f"the access log needs a thread: {error}") from None

    def note(self, line: Line) -> None:
        """Note an answer that was sent; takes half a microsecond."""
        if len(self._lines) < _WAITING and self._has_token():
            line.time = time.time()
            self._lines.append(line)
        else:
            self._left_out += 1

    def _has_token(self) -> bool:
        if self._form != "off":
            return True
        now = time.monotonic()
        self._tokens = min(_AT_ONCE, self._tokens + _PER_SECOND * (now - self._since))
        self._since = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def flush(self) -> None:
        """Write the noted lines, unless earlier ones are still waiting."""
        if self._batches.full():
            return
        if self._left_out and self._has_token():
            self._tell()
        if self._lines:
            self._batches.put(self._lines)
            self._lines = []

    def _tell(self) -> None:
        self._lines.append(LeftOut(time.time(), self._left_out))
        self._left_out = 0

    def close(self) -> None:
        """Write the rest, for at most a few seconds."""
        if not self._writer.is_alive():
            return
        if self._left_out:
            self._tell()
        with contextlib.suppress(queue.Full):
            self._batches.put(self._lines, timeout=_GOODBYE)
            self._batches.put(None, timeout=_GOODBYE)
            self._writer.join(_GOODBYE)
        if self._writer.is_alive():
            _LOG.warning("the last lines of the access log were not read in time")

    # ---- The thread -------------------------------------------------------------------------

    def _write(self) -> None:
        is_lost = False
        for lines in iter(self._batches.get, None):
            try:
                for line in lines:  # one write each: lines stay whole in a pipe that workers share
                    rest = self.made(line)
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
                is_lost = False
            except OSError as error:
                if not is_lost:
                    _LOG.error("the access log cannot be written: %s", error.strerror)
                is_lost = True

    def made(self, line: _Said) -> bytes:
        """The written form of a line: ASCII, and one line whatever the request contained."""
        if isinstance(line, Line):
            line.path = self._shown(line.path)
            line.seconds = round(line.seconds, 6)
            if line.user is not None:
                user = line.user.encode(errors="surrogatepass")
                line.user = self.secret.digest("access log", user).hex()[:16]
        said = msgspec.to_builtins(line)
        clock = said.pop("time")
        if self._form == "json":
            said = {"time": datetime.fromtimestamp(clock, UTC).isoformat(), **said}
            return json.dumps(said).encode() + b"\n"
        words = [_text(said.pop(name)) for name in ("method", "path") if name in said]
        status = said.pop("status", None)
        if status is not None:
            words.append(str(status))
        words += [f"{name}={_text(value)}" for name, value in said.items()]
        record = {
            "created": clock,
            "msecs": 1000 * (clock % 1),
            "name": "fastrank.access",
            "levelname": _level(status),
            "msg": " ".join(words),
        }
        return _FORMATTER.format(logging.makeLogRecord(record)).encode() + b"\n"

    def _shown(self, path: str) -> str:
        if path in self.paths or ENDPOINT.fullmatch(path):
            return path
        if path.startswith(_RECOMMENDED):
            return f"{_RECOMMENDED}{{user_id}}"
        first = path.split("/", 2)[:2]
        return "/".join(first)[:_SHOWN] + ("/..." if path.count("/") > 1 else "")


def _level(status: int | None) -> str:
    if status is None:
        return "WARNING"
    return "INFO" if status < 400 else "WARNING" if status < 500 else "ERROR"


def _text(value: object) -> str:
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return json.dumps(text).replace(" ", "\\u0020").replace("=", "\\u003d")
