"""LogWriter: appends rankings to a log, off the path of the request.

`LogWriter.append` checks its arguments and puts the row into a buffer. A thread in the background
turns the buffer into Arrow and writes it out, so the disk is never waited for. What a killed
process loses is what came since the last flush: at most `flush_rows` rows or `flush_seconds`.
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
# Filters and biases that wait for the disk, in bytes; rows that bring more are dropped.
_MAX_WAITING_BYTES = 256 << 20
_LONG = 3600.0  # seconds that a wait may be given
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
        Made if absent. Several writers, of several processes too, may share it.
    kind : {"int64", "str"}, optional
        Of the item ids; otherwise that of what is there already, or of the first ranking.
    flush_rows, flush_seconds : int, float
        Rows are written out when so many wait, or when the first of them waits so long.
    segment_rows : int
        A segment is sealed to Parquet, in a thread of its own, when it holds so many rows.
    segment_seconds : float, optional
        And when its first row was written so long ago; for a log that is uploaded (`LogUploader`).
    inline_ids : int
        Exclude and allow lists of up to so many ids stand in the row; longer ones are stored once
        under ``filters/``, and the row carries their hash; so are rules, whatever their length.
    max_buffered_rows : int
        While the disk refuses, so many rows are kept for later; what comes then is dropped and
        counted.

    Attributes
    ----------
    writer_id : str
        Time of the start and a random number; another one in a forked child.

    Raises
    ------
    ValueError
        For bad arguments, a directory that is a file, or a log of another kind.
    OSError
        If the directory cannot be made. Later on the disk's errors raise nothing: they are logged
        (logger ``fastrank.eventlog``), rows wait, and what is lost is counted in `rows_dropped`.
        So are files of the log that others remove, move or cut while they grow: each flush looks
        whether its file is still there, and goes on in a new one, in a new directory if need be.

    Notes
    -----
    Segments that dead writers left are sealed at the start, in the background. A process that ends
    without `close` flushes its rows on the way out; one that is killed loses what was not yet
    flushed. Rows are not synced to the disk at each flush: against power loss they have what the
    file system gives. Sealed files are.

    A forked child's writer has rows, files and a `writer_id` of its own; rows that waited at the
    fork are the parent's. As Arrow does not survive a fork in the midst of its work, ``os.fork``
    waits until the log's threads are between two pieces of it (one flush, one row group of a
    segment that is sealed; ten seconds at most, should the disk hang). It cannot do that for a
    program's own threads that are in Arrow at a fork: the child may hang.

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
        # With its first array pyarrow loads pandas, where there is one: now, since rows may wait
        # until the process exits, and nothing can be loaded then.
        pa.array(np.empty(0))
        self._closed = False
        self._segment: Segment | None = None
        self._start()
        _WRITERS.add(self)
        self._in_background(self._seal_abandoned)

    def _start(self) -> None:
        """The state of a writer that has written nothing, in this process."""
        now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.writer_id = f"{now}-{os.urandom(6).hex()}"
        self._seq = 0
        self._number = 0
        self._rows: list[tuple[int, Row]] = []  # each with its place in the sequence
        self._first_at = 0.0  # when the oldest of them came
        self._contents: dict[str, Content] = {}  # filters and biases that `_rows` name
        self._held: dict[str, tuple[Content, int]] = {}  # those in memory, and for how many parts
        self._contents_bytes = 0
        self._waiting: list[_Waiting] = []
        self._waiting_rows = 0
        self._written = 0
        self._dropped = 0
        self._failing = False
        # `_lock` guards the rows that come in, `_disk` what is done with them. `_disk` first, then
        # the gate, then `_lock`: `append` waits for neither of the two others.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._disk = threading.RLock()
        self._flusher: Task | None = None
        self._sealers: list[Task] = []

    def _after_fork(self) -> None:
        """In the child: the parent's rows, file and threads are the parent's."""
        self._segment = None
        self._start()

    # What came in.

    @property
    def rows_written(self) -> int:
        """Rows of this process that are in a file of the log, or were when it was sealed.

        Fewer than before, once it is noticed that a growing file was removed.
        """
        return self._written

    @property
    def rows_dropped(self) -> int:
        """Rows lost: the disk refused for too long, or their file was removed while it grew."""
        return self._dropped

    @property
    def kind(self) -> IdKind | None:
        """Of the item ids; None until it is known."""
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

        The ranking says itself what it was asked for: `k`, `exclude`, `allow`, `bias`,
        `model_version` and `user_temperature` need only be given where it does not, as for one that
        was not made by fastrank, or whose candidates were chosen beforehand. What is given must
        agree with what the ranking says. Its rules, their parameters and the pages before it are
        always its own.

        Parameters
        ----------
        ranking : Ranking
            As `Model.recommend` or `Catalog.rank` gave it.
        k : int, optional
            Places that were asked for.
        request_id : str, optional
            Unique; otherwise a random UUID.
        request_id_source : {"server", "gateway", "header", "body"}, optional
            Where it came from: drawn by the server or the gateway before it, a header, or the body
            of the request.
        inference_id : str, optional
            The caller's label of SageMaker's request, which need not be unique.
        traceparent : str, optional
            The trace that the request was part of, as W3C Trace Context writes it.
        run : str, optional
            Name of the run that ranked it, with many others.
        user_id : str or int, optional
            Kept as text. Needed where the ranking left out what its user has seen.
        experiment, arm, revision : str, optional
            Which experiment the request was part of, in which of its arms, and under which revision
            of what was drawn by: while shares are constant, that is one. Neither of the first two
            goes without the other.
        evaluation_log_propensities : mapping of str to array_like of float, optional
            Log-propensities of the same ranking under further policies, by their names, as
            `Catalog.log_propensities` gives them: of shape (k,), -inf for what one never shows.
        query : array_like of float, shape (d,), optional
            The vector that was ranked for, needed unless `user_id` gives it in the model.
        model_version : str, optional
        exclude, allow : array_like of ids, optional
            What was left out, and what alone could be shown.
        bias : array_like of float, shape (n,), optional
            Stored once for each content.
        seed_source : {"server", "caller", "derived"}
            Who chose the seed; "derived": nobody, for it follows from a secret and the request. A
            caller who chooses the seed chooses the ranking, and its propensity is no longer true:
            such rows are left out of evaluations.
        is_fallback : bool
            Whether another policy stood in, for an unknown user say.
        displayed : int, optional
            How many places were really shown, from the first; None: all. 0: none, or nobody knows
            as yet whether any will be (`join` takes impressions); evaluations leave such rows out.
        latency_us : float, optional
            Microseconds.
        candidate_set_id, n_candidates, retrieval : str, int, mapping, optional
            Where only candidates were ranked: which, how many, and how they were found
            (``name``, ``version``, ``params``, a mapping that JSON can hold). `allow` should be
            the candidates: an evaluation cannot know otherwise what could have been shown. A
            `FlatTail` ranking says the last two itself; it has no `candidate_set_id`, since all
            items could have been shown.
        user_temperature : float, optional
            The user's own factor in the policy's temperature.
        rewards : sequence of float or None, length of the ranking, optional
            Where they are known already; None or NaN: not observed, which is not 0.
        reward_kind, reward_ts : str, time, optional
        ts : datetime, datetime64 or int, optional
            When it was served; an int counts microseconds since 1970, UTC. Now, otherwise.

        Returns
        -------
        str
            The request id.

        Raises
        ------
        ValueError
            If an argument is invalid or contradicts the ranking, or the writer is closed; the
            message names the argument and both values. Never because of the disk.

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
                raise ValueError("k: give it: the ranking does not say how many places it was for")
        k = _as_int64("k", k, low=1)
        if length > k:
            raise ValueError(f"k: the ranking has {length} places, got k = {k}")
        if k != ranking.k:
            _agreed("k", ranking.k, k)
        if request_id is None:
            if request_id_source not in (None, "server"):
                raise ValueError(f"request_id_source: {request_id_source!r} goes with a request_id")
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
                "user_id: give it: the ranking left out what its user has seen, and the log names"
                " that by the user"
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
                raise ValueError(f"bias: the ranking was made with none, got {shown(bias)}")
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
        """Add the b rankings of a batch; arguments in the plural, and filters, have b entries.

        As for `append`, the batch says itself what it was asked for.

        Parameters
        ----------
        batch : RankingBatch
            As `Catalog.rank_batch` gave it.
        k : int, optional
        request_ids, user_ids, queries, exclude, allow : sequence of length b, optional
        bias : array_like of float, shape (n,), optional
            One for all, as `Catalog.rank_batch` takes it.
        run : Run, optional
            What `user_ids` were ranked in, with its seeds: request ids are those that it gives them
            unless there are others, so that a task which is tried again writes no ranking twice.
        **same
            What `append` takes, the same for all.

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
        """Request ids; a ValueError where the batch was drawn by other seeds than the run's."""
        if user_ids is None:
            raise ValueError("user_ids: give them: the request ids of a run follow from them")
        user_ids = as_column("user_ids", user_ids, f"{len(batch)} entries")
        if len(user_ids) != len(batch):
            raise ValueError(f"user_ids: expected {len(batch)} entries, got {len(user_ids)}")
        found = run.request_ids(user_ids)
        seeds = run.seeds(user_ids).tolist()
        for i, (ranking, seed) in enumerate(zip(batch, seeds, strict=True)):
            if ranking.seed != seed:
                raise ValueError(
                    f"run: ranking {i} was drawn by the seed {ranking.seed}, which is not the run's"
                    f" for its user, {seed}: rank with seeds=run.seeds(user_ids)"
                )
        return found

    def append_table(
        self, table: pa.Table | pa.RecordBatch, rules: Mapping[str, Rules] | None = None
    ) -> int:
        """Add rows that are in the log's schema already, such as those of an adapter.

        Parameters
        ----------
        table : pyarrow.Table or RecordBatch
            Columns of the schema, by name; those that are absent are null. Rows of schema 1 become
            rows of schema 2. Other columns are kept.
            `writer_id` and `writer_seq` are set anew. What the rows say is not checked:
            `LogReader` does that.
        rules : mapping of str to Rules, optional
            By their ids, those that rows name, such as `DataCapture.rules`; they are stored beside
            the rows, without which nobody can compute propensities under them again.

        Returns
        -------
        int
            Rows added; they are written out before this returns, unless the disk refuses.

        Raises
        ------
        ValueError
            If rules stand under an id that is not theirs, a column cannot be taken in the schema's
            type, or a table of schema 1 has a column of its own under a name that schema 2 has
            given to another.
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
                self._convert()  # what came before stands before
            for at in range(0, full.num_rows, self._flush_rows):
                with GATE:
                    self._append_part(full.slice(at, self._flush_rows), start + at, rules or {})
        return int(full.num_rows)

    def _append_part(self, part: pa.Table, start: int, rules: Mapping[str, Rules]) -> None:
        """Write rows with their place in the sequence; `_disk` is held."""
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
        """Whether rows of this kind may come; `_lock` is held."""
        if self._closed:
            raise ValueError(f"the log writer of {self._directory} is closed")
        if self._kind is None:
            self._kind = kind
        elif kind != self._kind:
            raise ValueError(f"item_ids: this log has {self._kind} ids, got {kind}")
        if self._flusher is None:
            self._flusher = THREADS.start(self._flush_for_ever)

    def _accepts(self, contents: dict[str, Content]) -> bool:
        """Whether there is room for one more row, and if so keep its contents."""
        if len(self._rows) + self._waiting_rows >= self._max_rows:
            return False
        # Every part brings what its rows name: what was on the disk once may be gone by now.
        contents = {name: v for name, v in contents.items() if name not in self._contents}
        if contents:
            new = [values for name, values in contents.items() if name not in self._held]
            size = sum(map(size_of, new))
            if self._contents_bytes + size > _MAX_WAITING_BYTES:
                return False
            self._contents |= self._hold(contents)
        return True

    def _hold(self, contents: Mapping[str, Content]) -> dict[str, Content]:
        """Keep what one more part brings, not the caller's own; `_lock` is held."""
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
        """Hashes of the lists that are long, and the lists that are not."""
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

    # What goes out.

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
            except Exception:  # nobody would notice that this thread is gone
                _LOG.exception("%s: rows wait", self._directory)
                self._failing = True

    def flush(self) -> bool:
        """Write all rows to the file system now; False if it refused and rows still wait."""
        with self._disk, GATE:
            self._convert()
            return self._write()

    def _convert(self) -> None:
        """Rows to Arrow; `_disk` is held."""
        with self._lock:
            rows, self._rows = self._rows, []
            contents, self._contents = self._contents, {}
            self._waiting_rows += len(rows)  # so that they go on counting
            kind = self._kind
        if not rows or kind is None:
            return
        try:
            batch = as_batch(rows, kind, self.writer_id)
        except _NOT_CONVERTED:
            # `append` lets nothing in that does not convert; should it ever, one row must not
            # take the others with it.
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
        """Write what waits, in order; `_disk` is held. False if the disk refuses."""
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
        """Seconds until the growing segment is sealed for its age; infinite where there is none."""
        segment = self._segment
        if segment is None:
            return math.inf
        return segment.since + self._segment_seconds - time.monotonic()

    def _release(self, contents: dict[str, Content]) -> None:
        """Hold what a part named no longer for it; `_lock` is held."""
        for name, values in contents.items():
            _, parts = self._held.pop(name)
            if parts > 1:
                self._held[name] = values, parts - 1
            else:
                self._contents_bytes -= size_of(values)

    def _open_segment(self, columns: pa.Schema) -> Segment:
        """The file that grows, of these columns; another one if it is not where it was."""
        segment = self._segment
        if segment is not None and not (
            segment.place() == "here" and segment.columns.equals(columns)
        ):
            self._rotate()
        while self._segment is None:
            path = self._directory / f"{self.writer_id}-{self._number:06d}.arrow"
            # Deleted under a running writer, say: keeping the rows matters more than why.
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
        """Give the segment to a thread that seals it."""
        segment, self._segment = self._segment, None
        self._number += 1
        if segment is None:
            return
        place = segment.place()
        if place == "moved":
            _LOG.warning(
                "%s was moved: it keeps its %d rows, and is not sealed", segment.path, segment.rows
            )
        if place != "changed":  # what it ends with then may be half a message
            segment.finish()
        self._in_background(lambda: self._seal(segment))

    def _seal(self, segment: Segment) -> None:
        """In a thread of its own; rows that are in no file then are lost."""
        lost = segment.rows - segment.seal()
        if lost > 0:
            with self._lock:
                self._written -= lost
                self._dropped += lost
            _LOG.warning("%s was removed or cut: %d of its rows are lost", segment.path, lost)

    def _in_background(self, work: Callable[[], object]) -> None:
        self._sealers = [one for one in self._sealers if one.is_alive()]
        with contextlib.suppress(RuntimeError):  # as the interpreter ends: the next writer seals
            self._sealers.append(THREADS.start(work))

    def _seal_abandoned(self) -> None:
        try:
            seal_abandoned(self._directory)
            remove_leftovers(self._directory)
        except OSError as error:
            _LOG.warning("%s: could not look for abandoned segments: %s", self._directory, error)

    def close(self) -> None:
        """Flush, seal, and end; rows that the disk refuses even now are dropped and counted."""
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
    """Refuse an argument that is not what the ranking says itself."""
    if own is not None:
        one, other = (v.tolist() if isinstance(v, np.ndarray) else v for v in (own, given))
        raise ValueError(f"{name}: the ranking was made with {shown(one)}, got {shown(other)}")


def _agreed_ids(name: str, own: Ids, given: Ids) -> None:
    """As `_agreed`, of filters, which are sets."""
    if own is given:
        return
    one, other = canonical(name, own), canonical(name, given)
    if isinstance(one, list) and isinstance(other, list):
        same = one == other
    else:  # a list of texts is never an array of integers
        same = type(one) is type(other) and np.array_equal(one, other)
    if not same:
        _agreed(name, own, given)


def _own_ids(name: str, kind: IdKind, found: Listed) -> list[Any]:
    """A list of its own, since the caller's may change before it is written."""
    ids: list[Any] = list(found) if isinstance(found, list) else found.tolist()
    if ids and isinstance(ids[0], str) != (kind == "str"):
        raise ValueError(f"{name}: the item ids are {kind}, got {shown(ids[0])}")
    if kind == "str":
        for text in ids:
            as_text(name, text)
    return ids


def _check_experiment(experiment: object, arm: object, revision: object) -> None:
    """A ValueError where an evaluation could not tell whose arm a row is of."""
    given = {"experiment": experiment, "arm": arm, "revision": revision}
    for name, value in given.items():
        if value is not None and as_text(name, value) == "":
            raise ValueError(f"{name}: must not be empty")
    for name, beside in (("experiment", "arm"), ("arm", "experiment")):
        if given[name] is None and given[beside] is not None:
            raise ValueError(f"{name}: give it: {beside} is {given[beside]!r}")


def _as_int64(name: str, value: object, low: int) -> int:
    """A count that a column can hold: what cannot be written must not wait to be."""
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
    """Of the log that is there; None where there is none that can be read."""
    for file in directly_in(directory, ".parquet")[-3:]:
        try:
            return kind_of(pq.read_schema(file))
        except Exception:  # a parser of a stranger's file may raise anything
            continue
    for file in directly_in(directory, ".arrow")[-3:]:
        try:
            with file.open("rb") as stream:
                return kind_of(open_stream(stream)[0])
        except Exception:
            continue
    return None
