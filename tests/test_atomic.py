"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from fastrank.atomic import replacing, write_text


@pytest.mark.parametrize("before", [None, "old"])
def test_what_fails_leaves_what_was_there(tmp_path: Path, before: str | None) -> None:
    """A disk that is full after 1,000 bytes."""
    file = tmp_path / "report.html"
    if before is not None:
        file.write_text(before)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_text(file, 10_000 * "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = {each.name: each.read_text() for each in tmp_path.iterdir()}
    assert found == ({} if before is None else {"report.html": before})


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_text_takes_the_place_of_text(tmp_path: Path) -> None:
    file, link = tmp_path / "report.html", tmp_path / "latest.html"
    write_text(file, "old")
    link.symlink_to(file)
    held = file.open()
    write_text(link, "né")
    assert held.read() == "old"
    held.close()
    assert link.is_symlink()
    assert file.read_bytes() == "né".encode()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]
