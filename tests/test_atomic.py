"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastrank.atomic import leftovers, replacing, sync, write_text


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


def names(directory: Path) -> list[str]:
    return sorted(str(each.relative_to(directory)) for each in directory.rglob("*"))


def write_directory(path: Path, fail: bool = False) -> None:
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        sync(temporary / "new")
        sync(temporary)
        if fail:
            raise OSError("full")


@pytest.mark.parametrize("held", [None, [], [".gitkeep"], [".git", "lost+found"]])
def test_a_directory_takes_the_place_of_a_free_one(tmp_path: Path, held: list[str] | None) -> None:
    path = tmp_path / "out"
    for name in held or ():
        (path / name / "deep").mkdir(parents=True)
    if held == []:
        path.mkdir()
    before = names(tmp_path)
    with pytest.raises(OSError, match="full"):
        write_directory(path, fail=True)
    assert names(tmp_path) == before
    write_directory(path)
    assert names(tmp_path) == sorted({*before, "out", "out/new"})


@pytest.mark.parametrize("there", ["out/data", "out"])
def test_what_is_in_the_way_of_a_directory_stays(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("data")
    before = names(tmp_path)
    with pytest.raises(OSError, match=r"out is taken|Not a directory"):
        write_directory(tmp_path / "out")
    assert names(tmp_path) == before


def test_what_was_begun_is_found(tmp_path: Path) -> None:
    assert list(leftovers(tmp_path / "nowhere")) == []
    (tmp_path / ".mine.tmp").touch()
    with replacing(tmp_path / "a\n.b") as temporary:
        temporary.touch()
        assert list(leftovers(tmp_path)) == [(temporary, "a\n.b")]
    assert list(leftovers(tmp_path)) == []


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


@pytest.mark.sampled
@pytest.mark.parametrize("way", [">", ">>", "| cat >"])
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_a_program_s_output_is_written_to(tmp_path: Path, way: str, name: str) -> None:
    """Where it goes to a file, what is in that stays, and what comes after follows."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "out").write_text("before\n")
    code = (
        "from pathlib import Path; from fastrank.atomic import write_text;"
        f" print('first'); write_text(Path({name!r}), 'text\\n'); print('last')"
    )
    program = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {way} out"
    subprocess.run(program, shell=True, check=True, cwd=tmp_path)
    kept = "before\n" if way == ">>" else ""
    assert (tmp_path / "out").read_text() == f"{kept}first\ntext\nlast\n"
    assert names(tmp_path) == ["link", "out"]


def test_a_link_to_a_directory_stays(tmp_path: Path) -> None:
    """What it links to, and what that holds, is not taken apart."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / ".gitkeep").touch()
    (tmp_path / "out").symlink_to("real")
    before = names(tmp_path)
    with pytest.raises(NotADirectoryError):
        write_directory(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path) == before


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]
