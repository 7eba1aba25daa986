"""Counters for Prometheus, right with several workers too, and CloudWatch's lines on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter as Tally
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from fastrank_serving.engine import Ranked

if TYPE_CHECKING:
    from fastrank import Catalog
    from fastrank.eventlog import LogWriter

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_FOLD = 64  # requests


class Metrics:
    """Of one worker; `page` adds up those of all, who may be a tenth of a second behind."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter(
            "fastrank_requests",
            "Requests answered, by inference type and HTTP status.",
            ["inference_type", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "fastrank_request_seconds",
            "Of ranked requests: total, in the kernel, and in the queue of those that waited.",
            ["part"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._total = self._seconds.labels("total")
        self._queue = self._seconds.labels("queue")
        self._kernel = self._seconds.labels("kernel")
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
            "Tables made for rankings that found none, of the model that serves: beside rankings"
            " made by tables, the misses.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._table_bytes = Gauge(
            "fastrank_table_bytes",
            "Of the tables that are kept.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.repeated = Counter(
            "fastrank_repeated_requests",
            "Requests answered by the first answer to their id.",
            registry=registry,
        )
        self.not_logged = Counter(
            "fastrank_log_rows_refused", "Rows that the log did not take.", registry=registry
        )
        self._reloads = Counter(
            "fastrank_reloads", "Models loaded, by outcome.", ["outcome"], registry=registry
        )
        self._in_flight = Gauge(
            "fastrank_requests_in_flight",
            "Requests being served or waiting.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._model = Gauge(
            "fastrank_model_info",
            "1 for the model that serves.",
            ["version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._log_rows = Gauge(
            "fastrank_log_rows_written",
            "Rows of the propensity log that the file system has.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self._log_dropped = Gauge(
            "fastrank_log_rows_dropped",
            "Rows that were lost because the disk refused them.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self._ok: dict[str, Counter] = {}
        self._new: list[tuple[str, float, Ranked]] = []
        self._version = ""
        self._tally: Tally[str] = Tally()
        self._slowest = 0.0

    def served(self, inference_type: str, seconds: float, ranked: Ranked) -> None:
        """A request was answered; counted by the next `fold`, many at a time."""
        self._new.append((inference_type, seconds, ranked))
        if len(self._new) >= _FOLD:
            self.fold()

    def fold(self) -> None:
        """Count what was answered since the last time."""
        new, self._new = self._new, []
        for inference_type, seconds, ranked in new:
            counter = self._ok.get(inference_type)
            if counter is None:
                counter = self._ok[inference_type] = self._requests.labels(inference_type, "200")
            counter.inc()
            self._total.observe(seconds)
            if ranked.waited:
                self._queue.observe(ranked.waited)
            self._kernel.observe(ranked.ranked)
            if ranked.shared > 1:
                self._shared.inc()
            self._made.labels(ranked.ranking.made_by or "pass").inc()
            self._slowest = max(self._slowest, seconds)
        if new:
            self._tally["Requests"] += len(new)

    def refused(self, status: int) -> None:
        """A request was answered by an error."""
        self._requests.labels("", str(status)).inc()
        self._tally["Errors"] += 1

    def loaded(self, version: str) -> None:
        if self._version:
            self._model.labels(self._version).set(0)
        self._version = version
        self._model.labels(version).set(1)
        self._reloads.labels("loaded").inc()

    def reload_failed(self) -> None:
        self._reloads.labels("failed").inc()

    def look(self, in_flight: int, catalog: Catalog | None, log: LogWriter | None) -> None:
        """Take the state that is known elsewhere."""
        self._in_flight.set(in_flight)
        if catalog is not None:
            self._tables.set(catalog.tables_made)
            self._table_bytes.set(catalog.table_bytes)
        if log is not None:
            self._log_rows.set(log.rows_written)
            self._log_dropped.set(log.rows_dropped)

    def page(self) -> bytes:
        """In Prometheus's format."""
        self.fold()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]  # has no types
        return generate_latest(together)

    def print_emf(self) -> None:
        """CloudWatch's embedded metric format: what was counted since the last line."""
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
