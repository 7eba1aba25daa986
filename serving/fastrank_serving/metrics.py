"""Counters for Prometheus, correct with several workers, and CloudWatch's lines on stdout."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric

from fastrank_serving.arms import InForce
from fastrank_serving.board import Board, Note
from fastrank_serving.engine import Ranked
from fastrank_serving.messages import Served

if TYPE_CHECKING:
    from fastrank import Catalog
    from fastrank.eventlog import LogWriter

__all__ = ["CONTENT_TYPE", "Metrics", "kept_of", "name_process", "note_of"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_FOLD = 64  # requests
# Gauges by name: those that count work of a worker, which remains done after the worker has ended,
# and those for which the value of all workers is the largest, not the sum.
_KEPT = {
    *("fastrank_log_rows_written", "fastrank_log_rows_dropped", "fastrank_log_files_uploaded"),
    *("fastrank_log_upload_failures", "fastrank_log_upload_rows_lost"),
}
_ALIKE = {"fastrank_model_info", "fastrank_revision_info", "fastrank_secret_info"}
_PROCESSES = "fastrank_process_info"


class _Family(NamedTuple):
    """A worker's numbers of one name; each sample has a name, labels, and a value."""

    name: str
    documentation: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


_Families: TypeAlias = list[_Family]
_decode = msgspec.msgpack.Decoder(_Families).decode
_encode = msgspec.msgpack.Encoder().encode


class Metrics:
    """Metrics of one worker; `page` adds up all workers, up to a tenth of a second late.

    Parameters
    ----------
    board : Board, optional
        Shared with others; the counts continue those of the worker that had this seat before.
    seat : int
    """

    def __init__(self, board: Board | None = None, seat: int = 0) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._board = board
        self._seat = seat
        self._before = [] if board is None else kept_of(board, seat)
        self._requests = Counter(
            "fastrank_requests",
            "Requests answered, by inference type and HTTP status.",
            ["inference_type", "status"],
            registry=registry,
        )
        self._seconds = _Seconds()
        registry.register(self._seconds)
        self._shared = Counter(
            "fastrank_shared_requests",
            "Requests that were ranked in one pass with others.",
            registry=registry,
        )
        self._made = Counter(
            "fastrank_rankings",
            "Rankings, by how they were made: by a pass over the catalog, or from a user's table.",
            ["made_by"],
            registry=registry,
        )
        self._tables = Gauge(
            "fastrank_tables_made",
            "Tables made for rankings that found none, for the model that serves: the misses of"
            " rankings made by tables.",
            registry=registry,
        )
        self._table_bytes = Gauge(
            "fastrank_table_bytes",
            "Of the tables that are kept.",
            registry=registry,
        )
        self._seeds = Counter(
            "fastrank_seeds",
            "Rankings, by who chose the seed: evaluations leave out those of a caller.",
            ["source"],
            registry=registry,
        )
        self._fallbacks = Counter(
            "fastrank_fallbacks",
            "Rankings for users that the model does not know.",
            registry=registry,
        )
        self._repeated = Counter(
            "fastrank_repeated_requests",
            "Requests answered with the first answer to their id.",
            registry=registry,
        )
        self._not_logged = Counter(
            "fastrank_log_rows_refused", "Rows that the log refused.", registry=registry
        )
        self._reloads = Counter(
            "fastrank_reloads", "Models loaded, by outcome.", ["outcome"], registry=registry
        )
        for outcome in ("loaded", "failed"):
            self._reloads.labels(outcome)  # rates miss a counter that starts at 1
        self._arms = Counter(
            "fastrank_arm_requests",
            "Rankings by the arm of an experiment.",
            ["experiment", "arm"],
            registry=registry,
        )
        self._revision = Gauge(
            "fastrank_revision_info",
            "1 for the revision of arms, policies and shares that is in force.",
            ["experiment", "revision", "deterministic_only"],
            registry=registry,
        )
        self._control = Counter(
            "fastrank_control_looks",
            "Reads of the control file: taken, same, refused (it is wrong) or unreachable.",
            ["outcome"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "fastrank_requests_in_flight",
            "Requests being served or waiting.",
            registry=registry,
        )
        self._queue_limit = Gauge(
            "fastrank_queue_limit",
            "Most requests that may be served or wait: further ones get a 429.",
            registry=registry,
        )
        name_process(registry, str(seat))
        self._model = Gauge(
            "fastrank_model_info",
            "1 for the model that serves.",
            ["version"],
            registry=registry,
        )
        self._secret = Gauge(
            "fastrank_secret_info",
            "1 for the secret that seeds are derived from, by its fingerprint.",
            ["fingerprint"],
            registry=registry,
        )
        self._log_rows = Gauge(
            "fastrank_log_rows_written",
            "Rows of the propensity log that are in a file, or were when it was sealed.",
            registry=registry,
        )
        self._log_dropped = Gauge(
            "fastrank_log_rows_dropped",
            "Rows that were lost: the disk refused them, or their file was removed while it grew.",
            registry=registry,
        )
        self._new: list[tuple[str, float, Ranked, Served]] = []
        self._version = ""
        self._tally: Tally[str] = Tally()
        self._slowest = 0.0
        self._looked: tuple[int, ...] = ()
        self._has_news = True

    def queue_limit(self, most: int) -> None:
        """Set how many requests may be served or wait here."""
        self._has_news = True
        self._queue_limit.set(most)

    def served(self, inference_type: str, seconds: float, ranked: Ranked, said: Served) -> None:
        """Note that a request was answered; the next `fold` counts it, together with others."""
        self._new.append((inference_type, seconds, ranked, said))
        if len(self._new) >= _FOLD:
            self.fold()

    def fold(self) -> None:
        """Count the requests answered since the last call."""
        new, self._new = self._new, []
        if not new:
            return
        types, seconds, ranked, said = zip(*new, strict=True)
        for inference_type, count in Tally(types).items():
            self._requests.labels(inference_type, "200").inc(count)
        for made_by, count in Tally(each.ranking.made_by or "pass" for each in ranked).items():
            self._made.labels(made_by).inc(count)
        for arm, count in Tally(
            (of.experiment, of.arm) for of in said if of.arm is not None
        ).items():
            self._arms.labels(*arm).inc(count)
        for source, count in Tally(of.seed_source for of in said).items():
            self._seeds.labels(source).inc(count)
        self._fallbacks.inc(sum(of.is_fallback for of in said))
        self._shared.inc(sum(each.shared > 1 for each in ranked))
        self._seconds.observe("total", seconds)
        self._seconds.observe("queue", [each.waited for each in ranked if each.waited])
        self._seconds.observe("kernel", [each.ranked for each in ranked])
        self._slowest = max(self._slowest, *seconds)
        self._has_news = True
        self._tally["Requests"] += len(new)

    def refused(self, status: int) -> None:
        """Count a request that was answered by an error."""
        self._has_news = True
        self._requests.labels("", str(status)).inc()
        self._tally["Errors"] += 1

    def repeated(self) -> None:
        """Count a request that was answered with the first answer to its id."""
        self._has_news = True
        self._repeated.inc()

    def not_logged(self) -> None:
        """Count a row that the log refused."""
        self._has_news = True
        self._not_logged.inc()

    def loaded(self, version: str) -> None:
        self._has_news = True
        self._model.clear()
        self._version = version
        self._model.labels(version).set(1)
        self._reloads.labels("loaded").inc()

    def has_secret(self, fingerprint: str) -> None:
        self._has_news = True
        self._secret.labels(fingerprint).set(1)

    def in_force(self, law: InForce) -> None:
        self._has_news = True
        self._revision.clear()
        if law.revision is not None or law.deterministic_only:
            is_off = str(law.deterministic_only).lower()
            self._revision.labels(law.experiment or "", law.revision or "", is_off).set(1)

    def looked_at_control(self, outcome: str) -> None:
        self._has_news = True
        self._control.labels(outcome).inc()

    def reload_failed(self) -> None:
        self._has_news = True
        self._reloads.labels("failed").inc()

    def look(self, in_flight: int, catalog: Catalog | None, log: LogWriter | None) -> None:
        """Read the state that other parts of the server know."""
        tables, size = (catalog.tables_made, catalog.table_bytes) if catalog is not None else (0, 0)
        written, dropped = (log.rows_written, log.rows_dropped) if log is not None else (0, 0)
        looked = in_flight, tables, size, written, dropped
        if looked == self._looked:
            return
        self._looked = looked
        self._has_news = True
        self._in_flight.set(in_flight)
        self._tables.set(tables)
        self._table_bytes.set(size)
        self._log_rows.set(written)
        self._log_dropped.set(dropped)

    def share(self) -> None:
        """Share new counts with the other workers."""
        if self._board is None or not self._has_news:
            return
        self._has_news = False
        self._board.write(self._seat, note_of(self._registry, self._before))

    def page(self) -> bytes:
        """The metrics in Prometheus's format."""
        self.fold()
        together = CollectorRegistry()
        PlatformCollector(together)
        if self._board is None:
            parts = [_family(metric) for metric in self._registry.collect()]
        else:
            self.share()
            notes = self._board.read()
            parts = [
                part for note in notes for part in (*_families(note.kept), *_families(note.live))
            ]
        together.register(_Together([*parts, *_of_processes(parts)]))
        return generate_latest(together)

    def print_emf(self) -> None:
        """Print a line in CloudWatch's embedded metric format: the counts since the last line."""
        self.fold()
        tally, self._tally = self._tally, Tally()
        slowest, self._slowest = self._slowest, 0.0
        if not tally:
            return
        metrics = [{"Name": name, "Unit": "Count"} for name in tally]
        line = {
            "_aws": {
                "Timestamp": int(1000 * time.time()),
                "CloudWatchMetrics": [
                    {
                        "Namespace": "fastrank",
                        "Dimensions": [["ModelVersion"]],
                        "Metrics": [*metrics, {"Name": "Slowest", "Unit": "Seconds"}],
                    }
                ],
            },
            "ModelVersion": self._version[:12],
            **tally,
            "Slowest": slowest,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def _family(metric: Metric, labels: dict[str, str] | None = None) -> _Family:
    samples = [
        (each.name, {**each.labels, **(labels or {})}, each.value) for each in metric.samples
    ]
    return _Family(metric.name, metric.documentation, metric.type, samples)


def _of_processes(families: Iterable[_Family]) -> Iterator[_Family]:
    """What the system reports about each process, as prometheus_client collects it."""
    names = {
        labels["process"]: labels["pid"]
        for family in families
        if family.name == _PROCESSES
        for _, labels, _ in family.samples
    }
    parent = multiprocessing.parent_process()
    if parent is not None:
        names["parent"] = str(parent.pid)
    for name, pid in names.items():
        for metric in ProcessCollector(pid=partial(str, pid), registry=None).collect():
            yield _family(metric, {"process": name})


class _Seconds:
    """A histogram; prometheus_client's own would take 1 us for each value."""

    def __init__(self) -> None:
        self._counts = {part: [0] * (len(_SECONDS) + 1) for part in ("total", "queue", "kernel")}
        self._sums = dict.fromkeys(self._counts, 0.0)

    def observe(self, part: str, values: Sequence[float]) -> None:
        counts = self._counts[part]
        for value in values:
            counts[bisect_left(_SECONDS, value)] += 1
        self._sums[part] += sum(values)

    def collect(self) -> Iterator[Metric]:
        found = HistogramMetricFamily(
            "fastrank_request_seconds",
            "Of ranked requests: total, in the kernel, and in the queue for those that waited.",
            labels=["part"],
        )
        limits = [*map(str, _SECONDS), "+Inf"]
        for part, counts in self._counts.items():
            below = list(zip(limits, accumulate(counts), strict=True))
            found.add_metric([part], below, self._sums[part])
        yield found


def name_process(registry: CollectorRegistry, name: str) -> None:
    """Report this process among those of the `process_...` metrics, as `name`."""
    words = "1 for each process of this server: its name in process_..., and its number."
    gauge = Gauge(_PROCESSES, words, ["process", "pid"], registry=registry)
    gauge.labels(name, str(os.getpid())).set(1)


def kept_of(board: Board, seat: int) -> _Families:
    """The counts of earlier workers at this seat."""
    return _families(board.read()[seat].kept)


def note_of(registry: CollectorRegistry, before: _Families) -> Note:
    """A note for the board: these counts, added to earlier ones."""
    kept: _Families = []
    live: _Families = []
    for metric in registry.collect():
        family = _family(metric)
        (kept if metric.type != "gauge" or metric.name in _KEPT else live).append(family)
    return Note(_encode([*_added([*before, *kept])]), _encode(live))


def _families(content: bytes) -> _Families:
    return _decode(content) if content else []


def _added(families: Iterable[_Family]) -> Iterator[_Family]:
    """Each name once, with the sums of samples that have the same labels.

    Prometheus's histograms are cumulative, and so are their sums.
    """
    found: dict[str, tuple[_Family, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
    for family in families:
        _, values = found.setdefault(family.name, (family, {}))
        for name, labels, value in family.samples:
            if name.endswith("_created"):  # when a worker started; the counter is older
                continue
            key = name, tuple(sorted(labels.items()))
            before = values.get(key, 0.0)
            values[key] = max(before, value) if family.name in _ALIKE else before + value
    for family, values in found.values():
        yield family._replace(
            samples=[(name, dict(labels), value) for (name, labels), value in values.items()]
        )


class _Together:
    """A collector for prometheus_client."""

    def __init__(self, families: Iterable[_Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in _added(self._families):
            metric = Metric(family.name, family.documentation, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric
