"""The numbers of several workers are one page, whichever of them dies, and whenever."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

import fastrank as fr
from fastrank_serving import board as board_module
from fastrank_serving.board import Board, Note
from fastrank_serving.metrics import _SECONDS, Metrics, _Seconds


@pytest.fixture
def board() -> Iterator[Board]:
    with contextlib.closing(Board(3)) as found:
        yield found


SAID: Any = SimpleNamespace(
    experiment="warmer", arm="explore", seed_source="server", is_fallback=False
)


def served(metrics: Metrics, times: int, seconds: float = 0.003) -> None:
    ranked: Any = SimpleNamespace(
        waited=0.0, ranked=0.001, shared=1, ranking=SimpleNamespace(made_by="pass")
    )
    for _ in range(times):
        metrics.served("uniform", seconds, ranked, SAID)
    metrics.fold()
    metrics.share()


def numbers(metrics: Metrics) -> dict[str, float]:
    lines = metrics.page().decode().splitlines()
    return {name: float(value) for name, value in
            (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}  # fmt: skip


def died(board: Board, seat: int) -> None:
    """What the parent does then."""
    board.write(seat, Note(board.read()[seat].kept, b""))


ANSWERED = 'fastrank_requests_total{inference_type="uniform",status="200"}'


class TestBoard:
    def test_what_is_written_is_read(self, board: Board) -> None:
        assert board.read() == [Note(b"", b"")] * 3
        for i in range(10):
            board.write(1, Note(bytes([i]) * i, b"x" * (i % 2)))
            assert board.read() == [
                Note(b"", b""),
                Note(bytes([i]) * i, b"x" * (i % 2)),
                Note(b"", b""),
            ]

    def test_a_note_that_is_too_long_is_refused(self, board: Board) -> None:
        board.write(2, Note(b"a", b"b"))
        with pytest.raises(ValueError, match="note: 40000 and 30000 bytes do not fit"):
            board.write(2, Note(b"a" * 40_000, b"b" * 30_000))
        assert board.read()[2] == Note(b"a", b"b")
        most = board_module._ROOM
        board.write(2, Note(b"a" * most, b""))
        board.write(1, Note(b"", b"b" * most))
        assert board.read() == [Note(b"", b""), Note(b"", b"b" * most), Note(b"a" * most, b"")]

    @pytest.mark.parametrize("size", [0, 1, 4, 12, 20, 21, 99, 119])
    def test_who_dies_while_writing_leaves_what_was_there(
        self, board: Board, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Cut:
            """Memory that takes so many bytes; then the process is gone."""

            def __setitem__(self, at: slice, content: bytes) -> None:
                memory[at.start : at.start + size] = content[:size]

            def __getitem__(self, at: slice) -> bytes:
                return memory[at]

        memory = board._memory
        for i in range(4):
            board.write(1, Note(b"%d" % i * 50, b"good" * 12))
            with monkeypatch.context() as patch:
                patch.setattr(board, "_memory", Cut())
                board.write(1, Note(b"z" * 60, b"bad!" * 10))
            assert board.read()[1] == Note(b"%d" % i * 50, b"good" * 12)

    def test_readers_never_see_half_a_note(self, board: Board) -> None:
        process = multiprocessing.get_context("spawn").Process(target=write_many, args=(board,))
        process.start()
        last = 0
        while process.is_alive():
            note = board.read()[1]
            if note.kept:
                assert len({*note.kept.split()}) == 1
                number = int(note.kept.split()[0])
                assert number >= last
                last = number
        process.join()
        assert process.exitcode == 0
        assert board.read()[1].kept.split()[0] == b"3000"

    @pytest.mark.parametrize("look", range(1, 9))
    @pytest.mark.parametrize("last", [3, 4])
    def test_a_reader_who_is_slow_sees_nothing_older_than_before(
        self, board: Board, look: int, last: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While it looks at one half after the other a note is written, and the next one begun."""
        memory = board._memory
        for number in range(1, last + 1):
            board.write(1, Note(b"%d" % number, b""))

        class Busy:
            """Memory that another process writes to before one of the looks at it."""

            looked = 0

            def __getitem__(self, at: slice) -> bytes:
                self.looked += 1
                if self.looked == look:
                    monkeypatch.setattr(board, "_memory", memory)
                    board.write(1, Note(b"%d" % (last + 1), b""))
                    next_half = 1 - board._latest(1).half
                    memory[(2 + next_half) * board_module._HALF] ^= 0xFF
                    monkeypatch.setattr(board, "_memory", self)
                return memory[at]

        monkeypatch.setattr(board, "_memory", Busy())
        found = int(board._latest(1).note.kept)
        monkeypatch.undo()
        assert found in (last, last + 1)

    def test_its_memory_cannot_be_cut(self, board: Board) -> None:
        """Or those who have it mapped would end by SIGBUS."""
        with pytest.raises(PermissionError):
            os.ftruncate(board._descriptor, 0)
        found = os.fstat(board._descriptor)
        assert found.st_blocks * 512 >= found.st_size  # and none of it is still to be found


def write_many(board: Board) -> None:
    for i in range(3001):
        board.write(1, Note(b"%d " % i * 5000, b""))


def serve_in_turn(board: Board, to: Connection) -> None:
    to.send(Metrics(board, 1).page().decode())
    to.recv()


def test_seconds_are_counted_as_prometheus_client_does() -> None:
    """Limits themselves among them, which belong to what is below."""
    limits = [float(each) for each in _SECONDS]
    values = [0.0, *limits, *(1.001 * each for each in limits), 1e9]
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    own = _Seconds()
    ours.register(own)
    name, said = "fastrank_request_seconds", next(iter(own.collect())).documentation
    histogram = Histogram(name, said, ["part"], buckets=limits, registry=theirs)
    for part in ("total", "queue", "kernel"):
        for value in values:
            histogram.labels(part).observe(value)
        own.observe(part, values[:7])
        own.observe(part, values[7:])
    lines = generate_latest(theirs).decode().splitlines()
    expected = [line for line in lines if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == expected


class TestMetrics:
    def test_counters_of_all_are_added(self, board: Board) -> None:
        one, other = Metrics(board, 0), Metrics(board, 2)
        served(one, 3)
        served(other, 4, 0.3)
        other.refused(404)
        other.repeated()
        other.not_logged()
        other.share()
        for each in (one, other):
            found = numbers(each)
            assert found[ANSWERED] == 7
            assert found['fastrank_requests_total{inference_type="",status="404"}'] == 1
            assert found["fastrank_repeated_requests_total"] == 1
            assert found["fastrank_log_rows_refused_total"] == 1
            assert found['fastrank_request_seconds_bucket{le="0.005",part="total"}'] == 3
            assert found['fastrank_request_seconds_bucket{le="+Inf",part="total"}'] == 7
            assert found['fastrank_request_seconds_count{part="total"}'] == 7
            assert found['fastrank_request_seconds_sum{part="total"}'] == pytest.approx(1.209)

    def test_counters_outlive_who_counted(self, board: Board) -> None:
        """And stand still at no moment of an end and a new beginning."""
        one, other = Metrics(board, 0), Metrics(board, 1)
        served(other, 1)
        log: Any = SimpleNamespace(rows_written=0, rows_dropped=0)
        for generation in range(1, 6):
            log.rows_written, log.rows_dropped = 10, 1
            one.look(2, None, log)
            served(one, 5)
            for moment in ("running", "dead", "new", "counts"):
                if moment == "dead":
                    died(board, 0)
                elif moment == "new":
                    one = Metrics(board, 0)
                elif moment == "counts":
                    one.share()
                found = numbers(other)
                assert found[ANSWERED] == 5 * generation + 1
                assert found["fastrank_log_rows_written"] == 10 * generation
                assert found["fastrank_log_rows_dropped"] == generation
                assert found["fastrank_requests_in_flight"] == 2 * (moment == "running")

    def test_only_models_that_serve_are_named(self, board: Board) -> None:
        one, other = Metrics(board, 0), Metrics(board, 1)
        alone = Metrics()
        for version in "abc":
            for each in (one, other, alone):
                each.loaded(version)
        one.loaded("d")
        one.share()

        def versions(metrics: Metrics) -> dict[str, str]:
            return dict(
                re.findall(
                    r'^fastrank_model_info{version="(.)"} (.*)$', metrics.page().decode(), re.M
                )
            )

        assert versions(alone) == {"c": "1.0"}
        assert versions(other) == {"c": "1.0", "d": "1.0"}
        died(board, 0)
        assert versions(other) == {"c": "1.0"}
        assert numbers(other)['fastrank_reloads_total{outcome="loaded"}'] == 7

    def test_processes_are_told_apart_and_end(self, board: Board) -> None:
        own = Metrics(board, 0)
        own.share()
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve_in_turn, args=(board, there))
        process.start()
        pages = [here.recv(), own.page().decode()]
        here.send(None)
        process.join()
        died(board, 1)
        pages.append(own.page().decode())
        for page, names in zip(pages, ({"0", "1", "parent"}, {"0", "1"}, {"0"}), strict=True):
            for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "max_fds"):
                found = re.findall(rf'^process_{name}{{process="(\w+)"}} (\S+)$', page, re.M)
                assert {each for each, _ in found} == names
                assert all(float(value) > 0 for _, value in found)
            pids = dict(re.findall(r'fastrank_process_info{pid="(\d+)",process="(\d)"} 1', page))
            assert pids.get(str(os.getpid())) == "0"
            assert ("1" in names) == (pids.get(str(process.pid)) == "1")
            assert page.count("python_info{") == 1

    def test_alone_as_among_others(self) -> None:
        metrics = Metrics()
        metrics.queue_limit(7)
        page = metrics.page().decode()
        assert re.search(r'^process_start_time_seconds{process="0"} \S+$', page, re.M)
        assert "fastrank_queue_limit 7.0" in page
        assert 'fastrank_reloads_total{outcome="failed"} 0.0' in page
        assert "_created" not in page

    def test_all_that_can_be_counted_has_room(self, board: Board) -> None:
        metrics = Metrics(board, 0)
        ranked: Any = SimpleNamespace(waited=1.0, ranked=1.0, shared=2, ranking=None)
        for made_by in ("pass", "table", "index", "given"):
            ranked.ranking = SimpleNamespace(made_by=made_by)
            for name in fr.INFERENCE_TYPES:
                metrics.served(name, 1e9, ranked, SAID)
        for status in range(400, 512):
            metrics.refused(status)
        metrics.loaded("f" * 64)
        metrics.reload_failed()
        metrics.fold()
        metrics.share()
        assert 2 * sum(map(len, board.read()[0])) < board_module._ROOM

    def test_nothing_is_written_while_nothing_is_new(self, board: Board) -> None:
        metrics = Metrics(board, 0)
        served(metrics, 1)
        before = board._latest(0).number
        for _ in range(3):
            metrics.fold()
            metrics.look(0, None, None)
            metrics.share()
        assert board._latest(0).number <= before + 1
