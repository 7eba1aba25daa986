"""LogWriter: appends rankings to a log, without delaying the request.

`LogWriter.append` checks its arguments and puts the row into a buffer. A background thread converts
the buffer to Arrow and writes it, so requests never wait for the disk. A killed process loses the
rows since the last flush: at most `flush_rows` rows or `flush_seconds`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fastrank.eventlog import filters
from fastrank.eventlog.background import GATE, THREADS, Task
from fastrank.eventlog.batch import named_rules
from fastrank.eventlog.filters import Content, bias_id, canonical, remove_leftovers, size_of
from fastrank.eventlog.rows import (
    Row,
    Time,
    as_batch,
    as_evaluated,
    as_positive,
    as_query,
    as_retrieval,
    as_rewards,
    as_rules_columns,
    as_score_columns,
    as_text,
    as_time,
    as_user,
    items_of,
    law_of_row,
)
from fastrank.eventlog.schema import REQUEST_ID_SOURCES, SEED_SOURCES, IdKind, kind_of, schema
from fastrank.eventlog.segments import Segment, open_stream, seal_abandoned
from fastrank.eventlog.upgrade import completed, refuse_foreign
from fastrank.files import directly_in
from fastrank.ids import Ids, Listed, listed
from fastrank.inputs import as_column, as_count, as_float32, as_real, new_request_id, shown
from fastrank.ranking import Ranking, RankingBatch
from fastrank.rules import Rules
from fastrank.run import Run

__all__ = ["LogWriter"]

_LOG = logging.getLogger("fastrank.eventlog")
# Filters and biases waiting for the disk, in bytes; rows that would exceed this are dropped.
_MAX_WAITING_BYTES = 256 << 20
_LONG = 3600.0  # longest wait in seconds
_NOT_CONVERTED = (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError)


class _Waiting(NamedTuple):
    """Rows as an Arrow message, with the filters and biases that must be on disk before it."""

    columns: pa.Schema
    message: pa.Buffer
    rows: int
    contents: dict[str, Content]


class LogWriter:
    """Appends rankings to a log directory; safe to use from many threads, and after a fork.

    Parameters
    ----------
    directory : path
        Created if absent. Several writers, also of several processes, may share it.
    kind : {"int64", "str"}, optional
        Type of the item ids; by default that of the existing log, or of the first ranking.
    flush_rows, flush_seconds : int, float
        Rows are written when this many wait, or when the first of them has waited this long.
    segment_rows : int
        A segment is sealed to Parquet, in a separate thread, when it has this many rows.
    segment_seconds : float, optional
        A segment is also sealed this long after its first row was written; for a log that is
        uploaded (`LogUploader`).
    inline_ids : int
        Exclude and allow lists of up to this many ids are stored in the row. Longer lists are
        stored once under ``filters/``, and the row has their hash; so are rules of any length.
    max_buffered_rows : int
        While the disk refuses, this many rows are kept for later; further rows are dropped and
        counted.

    Attributes
    ----------
    writer_id : str
        Start time and a random number; a forked child has another one.

    Raises
    ------
    ValueError
        For bad arguments, a directory that is a file, or a log of another kind.
    OSError
        If the directory cannot be made. Later errors of the disk raise nothing: they are logged
        (logger ``fastrank.eventlog``), rows wait, and lost rows are counted in `rows_dropped`. The
        same holds for files of the log that others remove, move or truncate while they grow: each
        flush checks whether its file still exists, and continues in a new one, in a new directory
        if necessary.

    Notes
    -----
    Segments left by dead writers are sealed at the start, in the background. A process that ends
    without `close` flushes its rows at exit; a killed process loses what was not flushed. Rows are
    not synced to the disk at each flush: after a power loss they are as safe as the file system
    makes them. Sealed files are synced.

    A forked child's writer has its own rows, files and `writer_id`; rows that waited at the fork
    belong to the parent. Arrow does not survive a fork in the middle of its work, so ``os.fork``
    waits until the log's threads are between two pieces of work (one flush, one row group of a
    segment that is sealed), for at most ten seconds in case the disk hangs. It cannot wait for a
    program's own threads that use Arrow at a fork: then the child may hang.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> catalog = fr.Catalog([10, 20, 30], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    >>> directory = tempfile.mkdtemp()
    >>> with LogWriter(directory) as log:
    ...     ranking = catalog.rank([1.0, 0.2], k=2, policy=fr.PlackettLuce(0.5), seed=7)
    ...     request_id = log.append(ranking, user_id="u1", query=[1.0, 0.2])
    >>> log.rows_written, log.rows_dropped
    (1, 0)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        kind: IdKind | None = None,
        flush_rows: int = 1000,
        flush_seconds: float = 1.0,
        segment_rows: int = 1_000_000,
        segment_seconds: float | None = None,
        inline_ids: int = 64,
        max_buffered_rows: int = 100_000,
    ) -> None:
        self._directory = Path(directory)
        self._flush_rows = as_count("flush_rows", flush_rows)
        self._flush_seconds = as_positive("flush_seconds", flush_seconds, above=0.0)
        self._segment_rows = as_count("segment_rows", segment_rows)
        self._segment_seconds = math.inf
        if segment_seconds is not None:
            self._segment_seconds = as_positive("segment_seconds", segment_seconds, above=0.0)
        self._inline_ids = as_count("inline_ids", inline_ids, low=0)
        self._max_rows = as_count("max_buffered_rows", max_buffered_rows)
        if kind is not None and kind not in get_args(IdKind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(IdKind))}; got {kind!r}")
        if self._directory.exists() and not self._directory.is_dir():
            raise ValueError(f"directory: {self._directory} is a file")
        self._directory.mkdir(parents=True, exist_ok=True)
        with GATE:
            there = _kind_of_directory(self._directory)
        if kind is not None and there is not None and kind != there:
            raise ValueError(
                f"kind: the log in {self._directory} has {there} item ids, got {kind!r}"
            )
        self._kind: IdKind | None = kind or there
        # pyarrow loads pandas, if installed, with its first array: do it now, since rows may wait
        # until the process exits, when nothing can be loaded.
        pa.array(np.empty(0))
        self._closed = False
        self._segment: Segment | None = None
        self._start()
        _WRITERS.add(self)
        self._in_background(self._seal_abandoned)

    def _start(self) -> None:
        """Set the state of a writer that has written nothing in this process."""
        now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.writer_id = f"{now}-{os.urandom(6).hex()}"
        self._seq = 0
        self._number = 0
        self._rows: list[tuple[int, Row]] = []  # each with its number in the sequence
        self._first_at = 0.0  # when the oldest of them came
        self._contents: dict[str, Content] = {}  # filters and biases that `_rows` name
        self._held: dict[str, tuple[Content, int]] = {}  # those in memory, with the number of parts
        self._contents_bytes = 0
        self._waiting: list[_Waiting] = []
        self._waiting_rows = 0
        self._written = 0
        self._dropped = 0
        self._failing = False
        # `_lock` guards incoming rows, `_disk` the writing. The order is `_disk`, the gate,
        # `_lock`: `append` waits for neither of the first two.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._disk = threading.RLock()
        self._flusher: Task | None = None
        self._sealers: list[Task] = []

    def _after_fork(self) -> None:
        """In the child: give up the rows, file and threads of the parent."""
        self._segment = None
        self._start()

    # Incoming rows.

    @property
    def rows_written(self) -> int:
        """Rows of this process that are in a file of the log, or were when it was sealed.

        The number decreases if a growing file is found to be removed.
        """
        return self._written

    @property
    def rows_dropped(self) -> int:
        """Rows lost: the disk refused for too long, or their file was removed while it grew."""
        return self._dropped

    @property
    def kind(self) -> IdKind | None:
        """Type of the item ids; None until it is known."""
        return self._kind

    def __repr__(self) -> str:
        return f"LogWriter({str(self._directory)!r}, {self._written} rows written)"

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(
        self,
        ranking: Ranking,
        *,
        k: int | None = None,
        request_id: str | None = None,
        request_id_source: str | None = None,
        inference_id: str | None = None,
        traceparent: str | None = None,
        run: str | None = None,
        user_id: str | int | None = None,
        experiment: str | None = None,
        arm: str | None = None,
        revision: str | None = None,
        evaluation_log_propensities: Mapping[str, npt.ArrayLike] | None = None,
        query: npt.ArrayLike | None = None,
        model_version: str | None = None,
        exclude: Ids | None = None,
        allow: Ids | None = None,
        bias: npt.ArrayLike | None = None,
        seed_source: str = "server",
        is_fallback: bool = False,
        displayed: int | None = None,
        latency_us: float | None = None,
        candidate_set_id: str | None = None,
        n_candidates: int | None = None,
        retrieval: Mapping[str, Any] | None = None,
        user_temperature: float | None = None,
        rewards: Sequence[float | None] | npt.NDArray[Any] | None = None,
        reward_kind: str | None = None,
        reward_ts: Time | None = None,
        ts: Time | None = None,
    ) -> str:
        """Add one ranking; costs some microseconds and never waits for the disk.

        The ranking states what it was made for: `k`, `exclude`, `allow`, `bias`, `model_version`
        and `user_temperature` are needed only if it does not state them, as for a ranking that
        fastrank did not make, or whose candidates were chosen beforehand. Arguments must agree with
        what the ranking states. Its rules, their parameters and the earlier pages are always taken
        from the ranking.

        Parameters
        ----------
        ranking : Ranking
            A ranking from `Model.recommend` or `Catalog.rank`.
        k : int, optional
            Number of places requested.
        request_id : str, optional
            Must be unique; by default a random UUID.
        request_id_source : {"server", "gateway", "header", "body"}, optional
            Where the request id came from: drawn by the server or by the gateway in front of it, a
            header, or the body of the request.
        inference_id : str, optional
            The caller's label of SageMaker's request, which need not be unique.
        traceparent : str, optional
            The trace that the request was part of, in the format of W3C Trace Context.
        run : str, optional
            Name of the run that made it, together with other rankings.
        user_id : str or int, optional
            Kept as text. Required if the ranking left out what its user has seen.
        experiment, arm, revision : str, optional
            The experiment of the request, its arm, and the revision of what rankings were drawn by;
            shares are constant under one revision. The first two require each other.
        evaluation_log_propensities : mapping of str to array_like of float, optional
            Log-propensities of the same ranking under further policies, by name, as returned by
            `Catalog.log_propensities`: of shape (k,), -inf for items that a policy never shows.
        query : array_like of float, shape (d,), optional
            The vector that was ranked for; required unless `user_id` identifies it in the model.
        model_version : str, optional
        exclude, allow : array_like of ids, optional
            Items that were left out, and the only items that could be shown.
        bias : array_like of float, shape (n,), optional
            Stored once for each content.
        seed_source : {"server", "caller", "derived"}
            Who chose the seed; "derived" means that it follows from a secret and the request. A
            caller who chooses the seed chooses the ranking, and its propensity is no longer true:
            evaluations leave such rows out.
        is_fallback : bool
            Whether another policy was used instead, for example for an unknown user.
        displayed : int, optional
            How many places were really shown, from the top; None for all. 0 means none, or not yet
            known (`join` takes impressions); evaluations leave such rows out.
        latency_us : float, optional
            Microseconds.
        candidate_set_id, n_candidates, retrieval : str, int, mapping, optional
            If only candidates were ranked: which, how many, and how they were found (``name``,
            ``version``, ``params``, a mapping that JSON can represent). `allow` should be the
            candidates: otherwise an evaluation cannot know what could have been shown. A `FlatTail`
            ranking states the last two itself; it has no `candidate_set_id`, since all items could
            have been shown.
        user_temperature : float, optional
            The user's factor in the policy's temperature.
        rewards : sequence of float or None, length of the ranking, optional
            Rewards that are known already; None or NaN is not observed, which differs from 0.
        reward_kind, reward_ts : str, time, optional
        ts : datetime, datetime64 or int, optional
            When it was served; an int counts microseconds since 1970, UTC. By default now.

        Returns
        -------
        str
            The request id.

        Raises
        ------
        ValueError
            If an argument is invalid or contradicts the ranking (the message names it and the
            value), or if the writer is closed. Never because of the disk.

        Examples
        --------
        >>> import tempfile
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([10, 20, 30], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        >>> model = fr.Model(catalog, ["ann"], [[1.0, 0.2]], user_temperatures=[0.5])
        >>> with LogWriter(tempfile.mkdtemp()) as log:
        ...     ranking = model.recommend("ann", k=2, policy=fr.PlackettLuce(1.0), exclude=[20])
        ...     request_id = log.append(ranking, user_id="ann")
        """
        if not isinstance(ranking, Ranking):
            raise ValueError(f"ranking: expected a Ranking, got {ranking!r}")
        kind, item_ids = items_of(ranking)
        length = len(ranking.item_ids)
        if k is None:
            k = ranking.k
            if k is None:
                raise ValueError(
                    "k: required, since the ranking does not state how many places it is for"
                )
        k = _as_int64("k", k, low=1)
        if length > k:
            raise ValueError(f"k: the ranking has {length} places, got k = {k}")
        if k != ranking.k:
            _agreed("k", ranking.k, k)
        if request_id is None:
            if request_id_source not in (None, "server"):
                raise ValueError(f"request_id_source: {request_id_source!r} needs a request_id")
            request_id, request_id_source = new_request_id(), "server"
        else:
            request_id = as_text("request_id", request_id)
            if request_id == "":
                raise ValueError("request_id: must not be empty")
        if request_id_source is not None and request_id_source not in REQUEST_ID_SOURCES:
            known = ", ".join(REQUEST_ID_SOURCES)
            raise ValueError(
                f"request_id_source: expected one of {known}; got {request_id_source!r}"
            )
        if inference_id is not None:
            inference_id = as_text("inference_id", inference_id)
        if traceparent is not None:
            traceparent = as_text("traceparent", traceparent)
        if run is not None:
            run = as_text("run", run)
        if user_id is not None:
            user_id = as_user(user_id)
        elif ranking.seen_id is not None:
            raise ValueError(
                "user_id: required, since the ranking left out what its user has seen, and the log"
                " names that by the user"
            )
        if experiment is not None or arm is not None or revision is not None:
            _check_experiment(experiment, arm, revision)
        evaluated = None
        if evaluation_log_propensities is not None:
            evaluated = as_evaluated(evaluation_log_propensities, length) or None
        if model_version is None:
            model_version = ranking.model_version
        elif as_text("model_version", model_version) != ranking.model_version:
            _agreed("model_version", ranking.model_version, model_version)
        if candidate_set_id is not None:
            as_text("candidate_set_id", candidate_set_id)
        if seed_source not in SEED_SOURCES:
            raise ValueError(
                f"seed_source: expected one of {', '.join(SEED_SOURCES)}; got {seed_source!r}"
            )
        if not isinstance(is_fallback, bool):
            raise ValueError(f"is_fallback: expected a bool, got {is_fallback!r}")
        if displayed is not None:
            displayed = as_count("displayed", displayed, low=0)
            if displayed > length:
                raise ValueError(f"displayed: the ranking has {length} places, got {displayed}")
        if latency_us is not None:
            latency_us = as_positive("latency_us", latency_us)
        if n_candidates is not None:
            n_candidates = _as_int64("n_candidates", n_candidates, low=0)
        if user_temperature is None:
            user_temperature = ranking.user_temperature
        else:
            user_temperature = as_positive("user_temperature", user_temperature, above=0.0)
            if user_temperature != ranking.user_temperature:
                _agreed("user_temperature", ranking.user_temperature, user_temperature)
        if reward_kind is not None:
            as_text("reward_kind", reward_kind)
        contents: dict[str, Content] = {}
        filter_id: dict[str, str] | None = None
        inline: dict[str, list[Any] | None] = {"exclude": None, "allow": None}
        if exclude is None:
            exclude = ranking.exclude
        elif ranking.exclude is not None:
            _agreed_ids("exclude", ranking.exclude, exclude)
        if allow is None:
            allow = ranking.allow
        elif ranking.allow is not None:
            _agreed_ids("allow", ranking.allow, allow)
        if exclude is not None or allow is not None:
            filter_id, inline = self._filters(kind, exclude, allow, contents)
        bias_name = None
        if bias is None:
            bias = ranking.bias
        if bias is not None:
            values = as_real("bias", bias)
            if values.ndim != 1:
                raise ValueError(f"bias: expected shape (n,), got {values.shape}")
            values = as_float32("bias", values, values.shape)
            own = ranking.bias
            if own is None and ranking.k is not None:
                raise ValueError(f"bias: the ranking was made without one; got {shown(bias)}")
            if own is not None and not np.array_equal(own, values):
                _agreed("bias", own, values)
            bias_name = bias_id(values)
            contents[bias_name] = values
        rules = after = None
        if ranking.rules is not None:
            rules = as_rules_columns(ranking.rules)
            if rules is not None:
                contents[rules["id"]] = ranking.rules.rules
        if ranking.after is not None:
            after = _own_ids("after", kind, listed("after", ranking.after))
        policy_name, law, law_params, sampler = law_of_row(ranking.policy)
        log_norm = ranking.log_norm
        by_index = None if retrieval is None else as_retrieval(retrieval)
        n_probes = tail_log_weight = is_candidate = None
        found = ranking.candidates
        if found is not None:
            n_probes, tail_log_weight = found.n_probes, found.tail_log_weight
            is_candidate = found.is_candidate.tolist()
            if len(is_candidate) != length or not math.isfinite(tail_log_weight):
                raise ValueError(
                    f"ranking: candidates: expected a tail_log_weight that is finite, and"
                    f" {length} of is_candidate, one for each item; got {shown(found)}"
                )
            if n_candidates is None:
                n_candidates = found.n_found
            by_index = found.retrieval if by_index is None else by_index
        row = Row(
            request_id,
            request_id_source,
            inference_id,
            traceparent,
            time.time_ns() // 1000 if ts is None else as_time("ts", ts),
            run,
            user_id,
            experiment,
            arm,
            revision,
            policy_name,
            law,
            law_params,
            sampler,
            user_temperature,
            ranking.seed,
            seed_source,
            model_version,
            ranking.catalog_version,
            ranking.features_version,
            None if query is None else as_query(query),
            None if ranking.score is None else as_score_columns(ranking.score),
            inline["exclude"],
            inline["allow"],
            filter_id,
            bias_name,
            ranking.seen_id,
            rules,
            after,
            ranking.n_eligible,
            candidate_set_id,
            n_candidates,
            by_index,
            n_probes,
            tail_log_weight,
            is_fallback,
            ranking.made_by,
            ranking.n_scored,
            k,
            length,
            item_ids,
            is_candidate,
            ranking.scores.tobytes(),
            ranking.log_propensities.tobytes(),
            ranking.log_propensity,
            log_norm,
            ranking.propensity_kind,
            ranking.log_norm_error,
            evaluated,
            displayed,
            latency_us,
            None if rewards is None else as_rewards(rewards, length),
            reward_kind,
            None if reward_ts is None else as_time("reward_ts", reward_ts),
        )
        with self._lock:
            if kind != self._kind or self._closed or self._flusher is None:
                self._admit(kind)
            seq = self._seq
            self._seq = seq + 1
            if self._accepts(contents):
                self._rows.append((seq, row))
                count = len(self._rows)
                if count == 1:
                    self._first_at = time.monotonic()
                    self._changed.notify()
                elif count == self._flush_rows:
                    self._changed.notify()
            else:
                self._dropped += 1
        return request_id

    def append_batch(
        self,
        batch: RankingBatch,
        *,
        k: int | None = None,
        request_ids: Sequence[str] | None = None,
        user_ids: Sequence[str | int | None] | npt.NDArray[Any] | None = None,
        queries: npt.NDArray[Any] | Sequence[npt.ArrayLike] | None = None,
        exclude: Sequence[Ids | None] | None = None,
        allow: Sequence[Ids | None] | None = None,
        bias: npt.ArrayLike | None = None,
        run: Run | None = None,
        **same: Any,
    ) -> list[str]:
        """Add the b rankings of a batch; plural arguments, and filters, have b entries.

        As in `append`, the batch states what it was made for.

        Parameters
        ----------
        batch : RankingBatch
            A batch from `Catalog.rank_batch`.
        k : int, optional
        request_ids, user_ids, queries, exclude, allow : sequence of length b, optional
        bias : array_like of float, shape (n,), optional
            One bias for all rankings, as in `Catalog.rank_batch`.
        run : Run, optional
            The run in which `user_ids` were ranked, with its seeds. Request ids follow from it
            unless others are given, so that a task that is tried again writes no ranking twice.
        **same
            Arguments of `append`, the same for all rankings.

        Returns
        -------
        list of str, length b
        """
        if not isinstance(batch, RankingBatch | Sequence) or isinstance(batch, str | bytes):
            raise ValueError(f"batch: expected a RankingBatch, or Rankings, got {shown(batch)}")
        if run is not None:
            if not isinstance(run, Run):
                raise ValueError(f"run: expected a fastrank.Run, got {shown(run)}")
            same["run"] = run.name
            if request_ids is None:
                request_ids = self._of_run(run, batch, user_ids)
        given: dict[str, Any] = {}
        for name, argument, values in (
            ("request_id", "request_ids", request_ids),
            ("user_id", "user_ids", user_ids),
            ("query", "queries", queries),
            ("exclude", "exclude", exclude),
            ("allow", "allow", allow),
        ):
            if values is None:
                continue
            entries = as_column(argument, values, f"{len(batch)} entries")
            if len(entries) != len(batch):
                raise ValueError(f"{argument}: expected {len(batch)} entries, got {len(entries)}")
            given[name] = entries
        ids = []
        for i, ranking in enumerate(batch):
            own = {name: values[i] for name, values in given.items()}
            ids.append(self.append(ranking, k=k, bias=bias, **own, **same))
        return ids

    @staticmethod
    def _of_run(run: Run, batch: RankingBatch, user_ids: Any) -> list[str]:
        """Request ids of a run; ValueError if the batch was not drawn by the run's seeds."""
        if user_ids is None:
            raise ValueError("user_ids: required, since the request ids of a run follow from them")
        user_ids = as_column("user_ids", user_ids, f"{len(batch)} entries")
        if len(user_ids) != len(batch):
            raise ValueError(f"user_ids: expected {len(batch)} entries, got {len(user_ids)}")
        found = run.request_ids(user_ids)
        seeds = run.seeds(user_ids).tolist()
        for i, (ranking, seed) in enumerate(zip(batch, seeds, strict=True)):
            if ranking.seed != seed:
                raise ValueError(
                    f"run: ranking {i} was drawn by the seed {ranking.seed}, but the run's seed for"
                    f" its user is {seed}: rank with seeds=run.seeds(user_ids)"
                )
        return found

    def append_table(
        self, table: pa.Table | pa.RecordBatch, rules: Mapping[str, Rules] | None = None
    ) -> int:
        """Add rows that are already in the log's schema, such as those of an adapter.

        Parameters
        ----------
        table : pyarrow.Table or RecordBatch
            Columns of the schema, by name; absent columns are null. Rows of schema 1 become rows of
            schema 2. Other columns are kept. `writer_id` and `writer_seq` are set anew. The content
            of the rows is not checked: `LogReader` does that.
        rules : mapping of str to Rules, optional
            The rules that rows name, by id, such as `DataCapture.rules`. They are stored beside the
            rows; without them propensities under these rules cannot be recomputed.

        Returns
        -------
        int
            Number of rows added; they are written before this returns, unless the disk refuses.

        Raises
        ------
        ValueError
            If rules are given under an id that is not theirs, a column cannot be converted to the
            schema's type, or a table of schema 1 has its own column under a name that schema 2
            uses.
        """
        if not isinstance(table, pa.Table | pa.RecordBatch):
            raise ValueError(f"table: expected a pyarrow Table or RecordBatch, got {table!r}")
        for name, each in (rules or {}).items():
            if not isinstance(each, Rules) or each.id != name:
                raise ValueError(f"rules: {shown(each)} are not those of the id {shown(name)}")
        try:
            with GATE:
                full = completed(table)
                refuse_foreign(table.schema, kind_of(full.schema))
        except ValueError as error:
            raise ValueError(f"table: {error}") from None
        kind = kind_of(full.schema)
        with self._disk:
            with self._lock:
                self._admit(kind)
                start = self._seq
                self._seq += full.num_rows
            with GATE:
                self._convert()  # earlier rows come first
            for at in range(0, full.num_rows, self._flush_rows):
                with GATE:
                    self._append_part(full.slice(at, self._flush_rows), start + at, rules or {})
        return int(full.num_rows)

    def _append_part(self, part: pa.Table, start: int, rules: Mapping[str, Rules]) -> None:
        """Write rows with their numbers in the sequence; `_disk` is held."""
        own: dict[str, Any] = {
            "writer_id": pa.array([self.writer_id] * part.num_rows, pa.string()),
            "writer_seq": pa.array(np.arange(start, start + part.num_rows), pa.int64()),
        }
        for name, values in own.items():
            index = part.schema.get_field_index(name)
            part = part.set_column(index, part.schema.field(index), values)
        batch = part.combine_chunks().to_batches()[0]
        named: dict[str, Content] = {
            name: rules[name] for _, name in named_rules(batch) if name in rules
        }
        with self._lock:
            self._waiting_rows += part.num_rows
            self._hold(named)
        self._waiting.append(_Waiting(batch.schema, batch.serialize(), len(batch), named))
        if not self._write() and self._waiting_rows > self._max_rows:
            last = self._waiting.pop()
            self._lose(last.rows)
            with self._lock:
                self._release(last.contents)

    def _admit(self, kind: IdKind) -> None:
        """Check that rows of this kind may be added; `_lock` is held."""
        if self._closed:
            raise ValueError(f"the log writer of {self._directory} is closed")
        if self._kind is None:
            self._kind = kind
        elif kind != self._kind:
            raise ValueError(f"item_ids: this log has {self._kind} ids, got {kind}")
        if self._flusher is None:
            self._flusher = THREADS.start(self._flush_for_ever)

    def _accepts(self, contents: dict[str, Content]) -> bool:
        """Whether there is room for one more row; if so, keep its contents."""
        if len(self._rows) + self._waiting_rows >= self._max_rows:
            return False
        # Every part includes what its rows name, since files on the disk may have been removed.
        contents = {name: v for name, v in contents.items() if name not in self._contents}
        if contents:
            new = [values for name, values in contents.items() if name not in self._held]
            size = sum(map(size_of, new))
            if self._contents_bytes + size > _MAX_WAITING_BYTES:
                return False
            self._contents |= self._hold(contents)
        return True

    def _hold(self, contents: Mapping[str, Content]) -> dict[str, Content]:
        """Keep the contents of one more part, not the caller's own objects; `_lock` is held."""
        held = {}
        for name, values in contents.items():
            kept, parts = self._held.get(name) or (None, 0)
            if kept is None:
                kept = values if isinstance(values, Rules) else values.copy()
                self._contents_bytes += size_of(kept)
            self._held[name] = kept, parts + 1
            held[name] = kept
        return held

    def _filters(
        self, kind: IdKind, exclude: Ids | None, allow: Ids | None, contents: dict[str, Content]
    ) -> tuple[dict[str, str] | None, dict[str, list[Any] | None]]:
        """Hashes of the long lists, and the other lists themselves."""
        names: dict[str, str] = {}
        inline: dict[str, list[Any] | None] = {"exclude": None, "allow": None}
        for role, given in (("exclude", exclude), ("allow", allow)):
            if given is None:
                continue
            found = listed(role, given)
            ids = _own_ids(role, kind, found)
            if len(ids) > self._inline_ids:
                content = canonical(role, found)
                name = filters._hash_of_ids(content)
                names[role] = name
                contents[name] = content
            else:
                inline[role] = ids
        return names or None, inline

    # Outgoing rows.

    def _flush_for_ever(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._rows and not self._waiting:
                    left = self._seconds_left()
                    if left <= 0.0:
                        break
                    self._changed.wait(None if left == math.inf else min(left, _LONG))
                if self._closed:
                    return
                since = time.monotonic() if self._failing else self._first_at
                while not self._closed and (self._failing or len(self._rows) < self._flush_rows):
                    left = since + self._flush_seconds - time.monotonic()
                    if left <= 0.0:
                        break
                    self._changed.wait(left)
            try:
                self.flush()
            except Exception:  # nobody would notice the end of this thread
                _LOG.exception("%s: rows wait", self._directory)
                self._failing = True

    def flush(self) -> bool:
        """Write all rows to the file system now; False if it refused and rows still wait."""
        with self._disk, GATE:
            self._convert()
            return self._write()

    def _convert(self) -> None:
        """Convert rows to Arrow; `_disk` is held."""
        with self._lock:
            rows, self._rows = self._rows, []
            contents, self._contents = self._contents, {}
            self._waiting_rows += len(rows)  # so that they still count
            kind = self._kind
        if not rows or kind is None:
            return
        try:
            batch = as_batch(rows, kind, self.writer_id)
        except _NOT_CONVERTED:
            # `append` accepts only rows that can be converted; if one ever cannot, it must not
            # affect the others.
            batches = []
            for row in rows:
                try:
                    batches.append(as_batch([row], kind, self.writer_id))
                except _NOT_CONVERTED:
                    _LOG.exception("request %r: not logged", row[1].request_id)
            self._lose(len(rows) - len(batches))
            table = pa.Table.from_batches(batches, schema(kind)).combine_chunks()
            batch = (table.to_batches() or [pa.RecordBatch.from_pylist([], schema(kind))])[0]
        self._waiting.append(_Waiting(batch.schema, batch.serialize(), len(batch), contents))

    def _lose(self, rows: int) -> None:
        with self._lock:
            self._waiting_rows -= rows
            self._dropped += rows

    def _write(self) -> bool:
        """Write waiting parts, in order; `_disk` is held. False if the disk refuses."""
        while self._waiting:
            first = self._waiting[0]
            try:
                for name, values in first.contents.items():
                    filters.save(self._directory, name, values)
                segment = self._open_segment(first.columns)
                if not segment.append(first.message, first.rows):
                    continue
            except OSError as error:
                if not self._failing:
                    _LOG.warning("%s: rows wait, the disk refuses: %s", self._directory, error)
                self._failing = True
                if self._segment is not None and self._segment.broken:
                    self._rotate()
                return False
            with self._lock:
                self._waiting.pop(0)
                self._waiting_rows -= first.rows
                self._written += first.rows
                self._release(first.contents)
            if self._failing:
                _LOG.warning("%s: rows are written again", self._directory)
            self._failing = False
            if segment.rows >= self._segment_rows:
                self._rotate()
        if self._seconds_left() <= 0.0:
            self._rotate()
        return True

    def _seconds_left(self) -> float:
        """Seconds until the segment is sealed because of its age; infinite without one."""
        segment = self._segment
        if segment is None:
            return math.inf
        return segment.since + self._segment_seconds - time.monotonic()

    def _release(self, contents: dict[str, Content]) -> None:
        """Release what a part named; `_lock` is held."""
        for name, values in contents.items():
            _, parts = self._held.pop(name)
            if parts > 1:
                self._held[name] = values, parts - 1
            else:
                self._contents_bytes -= size_of(values)

    def _open_segment(self, columns: pa.Schema) -> Segment:
        """The growing file with these columns; a new one if it is no longer where it was."""
        segment = self._segment
        if segment is not None and not (
            segment.place() == "here" and segment.columns.equals(columns)
        ):
            self._rotate()
        while self._segment is None:
            path = self._directory / f"{self.writer_id}-{self._number:06d}.arrow"
            # It may have been deleted under a running writer: keep the rows, whatever the reason.
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                self._segment = Segment(path, columns)
            except FileExistsError:
                self._number += 1
            else:
                with self._changed:
                    self._changed.notify()  # the thread that waits for its age
        return self._segment

    def _rotate(self) -> None:
        """Pass the segment to a thread that seals it."""
        segment, self._segment = self._segment, None
        self._number += 1
        if segment is None:
            return
        place = segment.place()
        if place == "moved":
            _LOG.warning(
                "%s was moved: it keeps its %d rows, and is not sealed", segment.path, segment.rows
            )
        if place != "changed":  # otherwise it may end with half a message
            segment.finish()
        self._in_background(lambda: self._seal(segment))

    def _seal(self, segment: Segment) -> None:
        """In a separate thread; counts rows that are in no file afterwards as lost."""
        lost = segment.rows - segment.seal()
        if lost > 0:
            with self._lock:
                self._written -= lost
                self._dropped += lost
            _LOG.warning("%s was removed or cut: %d of its rows are lost", segment.path, lost)

    def _in_background(self, work: Callable[[], object]) -> None:
        self._sealers = [one for one in self._sealers if one.is_alive()]
        with contextlib.suppress(RuntimeError):  # at interpreter exit: the next writer seals
            self._sealers.append(THREADS.start(work))

    def _seal_abandoned(self) -> None:
        try:
            seal_abandoned(self._directory)
            remove_leftovers(self._directory)
        except OSError as error:
            _LOG.warning("%s: could not look for abandoned segments: %s", self._directory, error)

    def close(self) -> None:
        """Flush, seal, and end; rows that the disk still refuses are dropped and counted."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        with self._disk:
            if not self.flush():
                lost = sum(waiting.rows for waiting in self._waiting)
                self._waiting.clear()
                self._lose(lost)
                _LOG.warning("%s: %d rows are lost, the disk refuses", self._directory, lost)
            with GATE:
                self._rotate()
        if self._flusher is not None:
            self._flusher.join()
        for sealer in self._sealers:
            sealer.join()
        _WRITERS.discard(self)


_WRITERS: weakref.WeakSet[LogWriter] = weakref.WeakSet()


def _agreed(name: str, own: object, given: object) -> None:
    """Refuse an argument that contradicts the ranking."""
    if own is not None:
        one, other = (v.tolist() if isinstance(v, np.ndarray) else v for v in (own, given))
        raise ValueError(f"{name}: the ranking was made with {shown(one)}, got {shown(other)}")


def _agreed_ids(name: str, own: Ids, given: Ids) -> None:
    """Like `_agreed`, for filters, which are sets."""
    if own is given:
        return
    one, other = canonical(name, own), canonical(name, given)
    if isinstance(one, list) and isinstance(other, list):
        same = one == other
    else:  # a list of strings is never an array of integers
        same = type(one) is type(other) and np.array_equal(one, other)
    if not same:
        _agreed(name, own, given)


def _own_ids(name: str, kind: IdKind, found: Listed) -> list[Any]:
    """A copy of a list, since the caller may change it before it is written."""
    ids: list[Any] = list(found) if isinstance(found, list) else found.tolist()
    if ids and isinstance(ids[0], str) != (kind == "str"):
        raise ValueError(f"{name}: the item ids are {kind}, got {shown(ids[0])}")
    if kind == "str":
        for text in ids:
            as_text(name, text)
    return ids


def _check_experiment(experiment: object, arm: object, revision: object) -> None:
    """Raise ValueError if an evaluation could not tell which arm a row belongs to."""
    given = {"experiment": experiment, "arm": arm, "revision": revision}
    for name, value in given.items():
        if value is not None and as_text(name, value) == "":
            raise ValueError(f"{name}: must not be empty")
    for name, beside in (("experiment", "arm"), ("arm", "experiment")):
        if given[name] is None and given[beside] is not None:
            raise ValueError(f"{name}: required, since {beside} is {given[beside]!r}")


def _as_int64(name: str, value: object, low: int) -> int:
    """A count that fits the column: a row that cannot be written must not be accepted."""
    number = as_count(name, value, low)
    if number >= 2**63:
        raise ValueError(f"{name}: must fit int64, got {shown(number)}")
    return number


def _after_fork_in_child() -> None:
    for writer in list(_WRITERS):
        writer._after_fork()


def _flush_all() -> None:
    for writer in list(_WRITERS):
        writer.flush()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_flush_all)


def _kind_of_directory(directory: Path) -> IdKind | None:
    """Type of the item ids of an existing log; None if there is no readable one."""
    for file in directly_in(directory, ".parquet")[-3:]:
        try:
            return kind_of(pq.read_schema(file))
        except Exception:  # a parser may raise anything for a foreign file
            continue
    for file in directly_in(directory, ".arrow")[-3:]:
        try:
            with file.open("rb") as stream:
                return kind_of(open_stream(stream)[0])
        except Exception:
            continue
    return None
