"""Sockets that a server listens on: TCP for everyone, and a Unix socket for operators."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["BACKLOG", "admin_socket", "tcp_socket"]

BACKLOG = 2048
_ANSWER = 2.0  # seconds for another server to answer, or to finish


def tcp_socket(host: str, port: int) -> socket.socket:
    """Open a socket that listens; an OSError names the address if that fails."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise _cannot(f"{host}:{port}", error) from None
    listening.listen(BACKLOG)
    return listening


@contextlib.contextmanager
def admin_socket(path: Path) -> Iterator[socket.socket]:
    """Open a Unix socket that only its owner may connect to, and remove it at the end.

    A socket that a dead server left at the path is replaced.

    Raises
    ------
    OSError
        If a server listens at the path, it is no socket, or it cannot be made; the message names
        the path.
    """
    listening = socket.socket(socket.AF_UNIX)
    try:
        with _locked(path.parent):  # two servers that start take turns
            _remove_dead(path)
            listening.bind(os.fspath(path))
            path.chmod(0o600)  # no one can connect before it listens
            listening.listen(BACKLOG)
            own = path.lstat()
    except OSError as error:
        listening.close()
        raise _cannot(path, error) from None
    try:
        yield listening
    finally:
        listening.close()
        with contextlib.suppress(OSError), _locked(path.parent):
            if os.path.samestat(path.lstat(), own):
                path.unlink()


def _remove_dead(path: Path) -> None:
    """Remove a socket that no process listens on."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError("there is a file that is not a socket")
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_ANSWER)
            try:
                asking.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except (TimeoutError, BlockingIOError):  # it listens, but its queue is full
                pass
        raise OSError("a server listens there")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock against other processes that make or remove sockets in a folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    end = time.monotonic() + _ANSWER
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise OSError(f"{folder} is locked by another process") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _cannot(where: object, error: OSError) -> OSError:
    return OSError(f"cannot listen on {where}: {error.strerror or error}")
