"""The Unix socket for those who run a server."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import time
from pathlib import Path

import pytest
from patience import PATIENCE
from served import Process, asked_over, make_model

from fastrank_serving import listening
from fastrank_serving.listening import admin_socket


def test_only_its_owner_may_connect_and_it_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with admin_socket(path) as found:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert found.family == socket.AF_UNIX
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            found.accept()[0].close()
    assert not path.exists()


def test_what_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with admin_socket(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("is_full", [False, True])
def test_one_that_lives_is_not(tmp_path: Path, is_full: bool) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen(0)
        before = path.stat()
        with socket.socket(socket.AF_UNIX) as first:
            if is_full:
                first.connect(str(path))
            with pytest.raises(OSError, match=r"admin\.sock: a server listens there"):
                admin_socket(path).__enter__()
        assert os.path.samestat(path.stat(), before)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "admin.sock"
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(OSError, match=r"admin\.sock: there is a file that is not a socket"):
        admin_socket(path).__enter__()
    assert os.path.lexists(path)


def test_where_none_can_be_made(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "a.sock", tmp_path / ("x" * 200), Path("/proc/a.sock")):
        with pytest.raises(OSError, match=f"cannot listen on {path}: ") as error:
            admin_socket(path).__enter__()
        assert "\n" not in str(error.value)


def test_one_that_another_server_made_since_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with admin_socket(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_who_holds_the_folder_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_ANSWER", 0.05)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="is locked by another process"):
        admin_socket(tmp_path / "a.sock").__enter__()
    os.close(handle)


def test_a_reload_over_it_reaches_all_workers(tmp_path: Path) -> None:
    """And it is the next server's after this one was killed."""
    path, directory = tmp_path / "admin.sock", tmp_path / "model"
    make_model(directory, seed=1)
    options = ("--admin-socket", str(path), "--workers", "2")
    with Process(directory, *options) as server:
        server.until_says("serving model")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Process(directory, *options, wait=False) as another:
            code, said = another.end()
        assert (code, said.count("\n")) == (2, 1), said
        assert f"cannot listen on {path}: a server listens there" in said
        second = make_model(directory, seed=2)
        assert asked_over(path, "POST", "/-/reload") == (200, {"model_version": second.version})
        end = time.monotonic() + PATIENCE
        while server.said().count(f"serving model {second.version[:12]}") < 2:
            assert time.monotonic() < end, server.said()
            time.sleep(0.01)
        for file in directory.iterdir():
            file.unlink()
        status, body = asked_over(path, "POST", "/-/reload")
        assert (status, body["error"]["code"]) == (409, "not_reloaded")
        connection = server.connection()
        connection.request("POST", "/-/reload")
        assert connection.getresponse().status == 404  # by TCP it is not there
        connection.close()
        server.signal(signal.SIGKILL)
        server.end()
    assert path.is_socket()
    with admin_socket(path):
        pass
