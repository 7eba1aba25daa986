"""Sealed segments leave for another place: what arrives, in which order, and what can be lost."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("s3fs")
from logs import catalog
from patience import PATIENCE
from stores import BUCKET, s3_server

import fastrank as fr
from fastrank import places
from fastrank.eventlog import LogReader, LogUploader, LogWriter, upload

POLICY = fr.PlackettLuce(0.5)
QUERY = [1.0, -0.5, 0.25, 2.0]


@pytest.fixture(scope="module")
def items() -> fr.Catalog:
    return catalog()


def write(directory: Path, items: fr.Catalog, count: int = 3, **options: Any) -> list[str]:
    """A closed segment of so many rows; their request ids."""
    with LogWriter(directory, inline_ids=5) as log:
        rankings = [items.rank(QUERY, k=2, policy=POLICY, seed=s, **options) for s in range(count)]
        return [log.append(ranking, query=QUERY) for ranking in rankings]


def read(directory: Path) -> tuple[set[str], LogReader]:
    reader = LogReader(directory)
    ids = {name for batch in reader for name in batch.table["request_id"].to_pylist()}
    return ids, reader


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class Far:
    """A directory that can be out of reach, and notes what was put there in which order."""

    def __init__(self, directory: Path) -> None:
        self._place = places.place(directory)
        self.order: list[str] = []
        self.tries = 0
        self.is_there = threading.Event()

    def put(self, file: Path, name: str) -> None:
        self.tries += 1
        if not self.is_there.is_set():
            raise ConnectionError("nobody answers")
        self._place.put(file, name)
        self.order.append(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    found = Far(tmp_path / "far")
    monkeypatch.setattr(places, "place", lambda _where: found)
    monkeypatch.setattr(upload, "_SOONEST", 0.01)
    return found


def test_rows_arrive_after_what_they_name_and_leave_the_spool(
    items: fr.Catalog, tmp_path: Path, far: Far
) -> None:
    spool = tmp_path / "spool"
    far.is_there.set()
    ids = items.item_ids[:10].tolist()
    rules = fr.Rules(pin={1: int(items.item_ids[20])})
    with LogUploader(spool, tmp_path / "far", every=0.02) as uploader:
        sent = write(spool, items, exclude=ids)
        until(lambda: uploader.files_sent == 2)
        sent += write(spool, items, rules=rules)
        sent += write(spool, items, exclude=ids)  # the list was removed here, and comes again
    assert [path for path in spool.rglob("*") if path.is_file()] == []
    kinds = ["filters" if name.startswith("filters/") else "segment" for name in far.order]
    assert kinds[:2] == ["filters", "segment"]
    assert sorted(kinds) == ["filters"] * 3 + ["segment"] * 3
    assert kinds[-1] == "segment"
    found, reader = read(tmp_path / "far")
    assert found == set(sent)
    assert (reader.report.set_aside, reader.report.rows_lost) == ({}, {})
    assert (uploader.files_sent, uploader.bytes_waiting, uploader.failures) == (6, 0, 0)


def test_what_grows_is_let_be(items: fr.Catalog, tmp_path: Path, far: Far) -> None:
    far.is_there.set()
    spool = tmp_path / "spool"
    with LogUploader(spool, tmp_path / "far", every=0.01) as uploader, LogWriter(spool) as log:
        log.append(items.rank(QUERY, k=2, policy=POLICY), query=QUERY)
        log.flush()
        (spool / "of somebody else.parquet").write_bytes(b"")
        time.sleep(0.05)
        assert uploader.files_sent == 0
    assert len(far.order) == 1


def test_a_segment_is_sealed_for_its_age(items: fr.Catalog, tmp_path: Path) -> None:
    def sealed(count: int) -> Callable[[], bool]:
        return lambda: len([*tmp_path.glob("*.parquet")]) == count

    with LogWriter(tmp_path, flush_seconds=0.01, segment_seconds=0.05) as log:
        for count in (1, 2):
            log.append(items.rank(QUERY, k=2, policy=POLICY), query=QUERY)
            until(sealed(count))
        log.append_table(next(iter(LogReader(tmp_path))).table)  # who appends it writes it
        until(sealed(3))
    assert log.rows_written == 3
    with pytest.raises(ValueError, match=r"segment_seconds: must be finite and above 0"):
        LogWriter(tmp_path, segment_seconds=0.0)


def test_an_outage_loses_nothing_and_is_said_once(
    items: fr.Catalog, tmp_path: Path, far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fastrank.eventlog")
    with LogUploader(tmp_path / "spool", tmp_path / "far", every=0.01) as uploader:
        sent = write(tmp_path / "spool", items)
        until(lambda: uploader.failures >= 3)
        assert uploader.bytes_waiting > 0
        far.is_there.set()
        until(lambda: uploader.files_sent == 1)
        until(lambda: len(caplog.messages) == 2)
    assert caplog.messages == [
        f"{tmp_path / 'far'}: rows wait to be uploaded: nobody answers",
        f"{tmp_path / 'far'}: rows are uploaded again; 0 were lost before",
    ]
    assert read(tmp_path / "far")[0] == set(sent)
    assert (uploader.rows_lost, uploader.bytes_waiting) == (0, 0)


def test_a_backlog_is_bounded_and_the_oldest_rows_go(
    items: fr.Catalog, tmp_path: Path, far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    with LogWriter(spool, segment_rows=3, flush_rows=3) as log:
        sent = []
        for seed in range(15):
            sent.append(log.append(items.rank(QUERY, k=2, policy=POLICY, seed=seed), query=QUERY))
            if seed % 3 == 2:
                log.flush()
            if seed == 2:
                until(lambda: [*spool.glob("*.parquet")] and not [*spool.glob("*.arrow")])
                far.is_there.set()
                assert LogUploader(spool, tmp_path / "far").close()
                far.is_there.clear()
    files = sorted(spool.glob("*.parquet"))
    assert len(files) == 4
    for age, file in enumerate(reversed(files)):
        os.utime(file, (1e9 - age, 1e9 - age))
    room = sum(file.stat().st_size for file in files[2:]) + 100
    caplog.set_level(logging.ERROR, "fastrank.eventlog")
    with LogUploader(spool, tmp_path / "far", max_bytes=room, every=0.01) as uploader:
        until(lambda: uploader.failures >= 3)
        assert (uploader.rows_lost, uploader.files_lost) == (6, 2)
        assert 0 < uploader.bytes_waiting <= room
        assert caplog.messages == [
            f"{spool}: rows are lost, those of the oldest segments first: more than {room} bytes"
            " wait to be uploaded"
        ]
        far.is_there.set()
    found, reader = read(tmp_path / "far")
    assert found == {*sent[:3], *sent[9:]}
    assert reader.report.rows_lost == {log.writer_id: 6}


def test_what_cannot_be_uploaded_at_the_end_is_by_the_next_one(
    items: fr.Catalog, tmp_path: Path, far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    uploader = LogUploader(spool, tmp_path / "far")
    sent = write(spool, items)
    assert not uploader.close(0.1)
    (file,) = spool.glob("*.parquet")
    assert caplog.messages[-1] == (
        f"{spool}: 1 files of {file.stat().st_size} bytes are not uploaded, and stay for the next"
        " start there"
    )
    assert far.tries >= 2  # as long as there is time
    far.is_there.set()
    assert LogUploader(spool, tmp_path / "far").close()
    assert read(tmp_path / "far")[0] == set(sent)


def test_rows_of_a_writer_that_was_killed_are_uploaded_at_the_end(tmp_path: Path, far: Far) -> None:
    far.is_there.set()
    script = """
        import os, sys, fastrank as fr
        from fastrank.eventlog import LogWriter
        items = fr.Catalog([1, 2, 3], [[1.0], [2.0], [3.0]])
        log = LogWriter(sys.argv[1])
        log.append(items.rank([1.0], k=2, policy=fr.PlackettLuce(1.0)), query=[1.0])
        log.flush()
        os.kill(os.getpid(), 9)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "spool")]
    assert subprocess.run(command).returncode == -9
    assert LogUploader(tmp_path / "spool", tmp_path / "far").close()
    assert len(read(tmp_path / "far")[0]) == 1


def test_uploaders_of_one_spool_take_turns(items: fr.Catalog, tmp_path: Path, far: Far) -> None:
    spool = tmp_path / "spool"
    first = LogUploader(spool, tmp_path / "far", every=0.01)
    second = LogUploader(spool, tmp_path / "far", every=0.01)
    sent = write(spool, items)
    until(lambda: first.failures >= 2 or second.failures >= 2)
    assert 0 in (first.failures, second.failures)
    far.is_there.set()
    until(lambda: first.files_sent + second.files_sent == 1)
    busy, idle = (first, second) if first.files_sent else (second, first)
    assert busy.close()
    sent += write(spool, items)
    until(lambda: idle.files_sent == 1)
    assert idle.close()
    assert read(tmp_path / "far")[0] == set(sent)


def test_arguments_are_checked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cases: tuple[tuple[Any, dict[str, Any], str], ...] = (
        ((tmp_path / "file", "memory://far"), {}, "directory: .*/file is a file"),
        ((tmp_path / "spool", "s3://"), {}, "s3://: it names no place"),
        ((tmp_path / "spool", "memory://x"), {"max_bytes": 0}, "max_bytes: must be at least 1"),
        ((tmp_path / "spool", "memory://x"), {"every": 0}, "every: must be finite and above 0"),
        ((tmp_path / "spool", tmp_path / "spool"), {}, "url: .* is the directory that is uploaded"),
    )
    for arguments, options, words in cases:
        with pytest.raises(ValueError, match=words):
            LogUploader(*arguments, **options)


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.mark.usefixtures("s3")
def test_a_log_in_s3(items: fr.Catalog, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/logs"
    with LogUploader(tmp_path / "spool", url), LogWriter(tmp_path / "spool", inline_ids=5) as log:
        ranking = items.rank(QUERY, k=2, policy=POLICY, exclude=items.item_ids[:10].tolist())
        sent = log.append(ranking, query=QUERY)
    far = places.place(url)
    (tmp_path / "back" / "filters").mkdir(parents=True)
    for folder in ("", "filters"):
        for name, entry in far.entries(folder).items():
            if entry.size is not None:
                name = f"{folder}/{name}".lstrip("/")
                far.fetch(name, tmp_path / "back" / name)
    found, reader = read(tmp_path / "back")
    assert found == {sent}
    assert reader.report.set_aside == {}
