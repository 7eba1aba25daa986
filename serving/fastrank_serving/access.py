"""The access log: a line for each answer, or for those alone that refuse something.

Lines are made and written by a thread, those of a tenth of a second together: no request waits for
a line to be formatted, or for a slow reader. Lines that are left out are counted and reported.
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

LINE = "fastrank.line"  # in a scope: what is said of its answer

_LOG = logging.getLogger("fastrank.serving")
_PER_SECOND, _AT_ONCE = 10.0, 100.0  # refusals that are said while the log is off
_REFUSED = {"error": 500, "critical": 600}  # their least status, by the level of the server's log
_WAITING = 10_000  # lines, for a reader who is slow
_GOODBYE = 1.0  # seconds for the last lines
_SHOWN = 64  # characters of a path that the server does not know
_RECOMMENDED = "/1/recommended-items/"
# As SageMaker's own clients ask, with an endpoint_url that is this server.
ENDPOINT = re.compile(r"/endpoints/[A-Za-z0-9-]{1,63}/invocations")
_FORMATTER = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
_PLAIN = re.compile(
    r"[!#-<>-~]+"
)  # stands in a line of text as it is; else as JSON, without spaces


class Line(msgspec.Struct, omit_defaults=True):
    """One line: an answer's fields, by their names in JSON; unknown ones are left out.

    Attributes
    ----------
    time : float
        Seconds since 1970, once all was sent; as text when the line is made.
    path : str
        Its first part alone where the server does not know it: users' ids stand in paths.
    seconds : float
        From the request's head to the end of the answer.
    bytes : int
        Of the body.
    code : str, optional
        Of an error.
    user : str, optional
        The id; a hash of it when the line is made.
    policy, arm, model_version : str, optional
        What the ranking was drawn by.
    line : int, optional
        Of a batch the one that was refused; its first is 1.
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
    """So many lines are missing here."""

    time: float
    left_out: int


_Said: TypeAlias = Line | LeftOut


class AccessLog:
    """Takes lines from one event loop.

    Parameters
    ----------
    form : {"off", "text", "json"}
        "off": refusals alone, as text, at a bounded rate, on standard error. Otherwise every answer
        has its line, on standard output.
    level : str
        Of the server's log. Where this one is off, no 4xx is said above "warning", and no 5xx above
        "error".
    secret : Secret, optional
        The key by which users are hashed; by default drawn when the server started.

    Attributes
    ----------
    least : int
        Status of the answers that it wants to know of.
    paths : collection of str
        That are said whole.
    secret : Secret
    """

    def __init__(
        self, form: str = "off", level: str = "info", secret: Secret | None = None
    ) -> None:
        self.least = _REFUSED.get(level, 400) if form == "off" else 0
        self.paths: Collection[str] = ()
        self._form = form
        self._descriptor = 2 if form == "off" else 1
        # What multiprocessing draws at the start is the same in all workers.
        self.secret = secret or Secret(bytes(multiprocessing.current_process().authkey))
        self._lines: list[_Said] = []
        self._left_out = 0
        self._tokens, self._since = _AT_ONCE, time.monotonic()
        self._batches: queue.Queue[Sequence[_Said] | None] = queue.Queue(1)
        self._writer = threading.Thread(target=self._write, name="fastrank-access", daemon=True)

    def begin(self) -> None:
        """Start the thread; an OSError if the machine has none left."""
        try:
            self._writer.start()
        except RuntimeError as error:
            raise OSError(f"the access log wants a thread: {error}") from None

    def note(self, line: Line) -> None:
        """Note that an answer was sent; takes half a microsecond."""
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
        """Have it written, unless lines noted before still wait."""
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
        """Write the rest, for a few seconds at most."""
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
                for line in lines:  # each by itself: a pipe that workers share takes it whole
                    rest = self.made(line)
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
                is_lost = False
            except OSError as error:
                if not is_lost:
                    _LOG.error("the access log cannot be written: %s", error.strerror)
                is_lost = True

    def made(self, line: _Said) -> bytes:
        """A line as it is written: ASCII, and one line whatever the request held."""
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
