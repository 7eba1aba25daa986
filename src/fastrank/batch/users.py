"""RankUsers: a table of users in, rows of the log out; what any engine's map calls."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from fastrank.arraytypes import IntArray, Mask
from fastrank.batch.rows import Filtered, filtered, log_rows
from fastrank.batch.sharded import About, Shard, Shards, as_shards
from fastrank.eventlog.filters import Content
from fastrank.eventlog.rows import Time, as_time
from fastrank.eventlog.schema import IdKind, schema
from fastrank.expressions import Params, as_params
from fastrank.ids import Ids, listed
from fastrank.inputs import as_count, shown
from fastrank.policies import Policy, no_policy
from fastrank.rules import Rules
from fastrank.run import Run
from fastrank.shards import check_rules, mergeable_law

__all__ = ["RankUsers", "Unknown", "as_user_texts"]

Unknown: TypeAlias = Literal["fail", "skip", "fallback"]

# The log's types in Spark's DDL, which has no unsigned integers; the seeds of a run fit.
_SPARK = {
    pa.int16(): "smallint",
    pa.int64(): "bigint",
    pa.uint64(): "bigint",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.bool_(): "boolean",
    pa.string(): "string",
    pa.timestamp("us", tz="UTC"): "timestamp",
}


class RankUsers:
    """Ranks users, a table at a time: the function that Ray, Spark, a pool or a loop maps.

    The model's directory is mapped at the first call, once in each worker; pickled, this object
    takes a few hundred bytes. A row depends only on the run and the user, so any engine,
    partitioning or retry makes the same row, bit for bit, and `fastrank.eventlog.LogReader` reads
    one of several equal rows.

    Parameters
    ----------
    model : path or None
        Of a model's directory, which every worker sees; None where there are `shards`.
    run : Run
        Gives each user a seed and a request id. Its name is the log's `run`.
    k : int
        Number of places.
    policy : Policy, optional
        By default the model's own. Users' own temperatures, and lists of what they have seen, apply
        as in `Model.recommend`.
    ts : datetime or int
        When the run began: the `ts` of every row, an int in microseconds since 1970, UTC. There is
        no default, because each worker would have a different one.
    user_column : str
        Column of user ids, integers or strings. Other columns are ignored.
    exclude, allow : array_like of ids, optional
        Items to show to nobody, and the only items to show.
    score, params, rules
        As in `Catalog.rank`, for all users.
    unknown : {"fail", "skip", "fallback"}
        What to do with users that the model does not know: raise ValueError; write no row; or write
        a row for a vector of zeros, that is, by the catalog's bias alone, with `is_fallback` true.
    fallback : Policy, optional
        Policy for those users; by default `policy`.
    score_functions : sequence of str
        ``module:name`` of score functions that the model's score or `score` names; each worker
        imports them. Shards have their own.
    model_version : str, optional
        What the model must be: another one under the same path, which would rank half of the
        users, is refused.
    shards : sequence of Shard, or of Ray actors of them, optional
        A catalog of more items than one worker holds, in parts: each shard's model has its items
        and all users. Every user is ranked by all shards, and the rankings are merged
        (`fastrank.merge_batch`), under `PlackettLuce`, `Uniform` or `Deterministic`, and rules that
        are filters and boosts.
    shard_timeout : float
        Seconds within which an actor must answer.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument and the value, and errors of a
        call the row, too.
        At the first use: if shards differ in policies, users, dimension or kind of item ids, or
        share an item.
    ConnectionError
        If a shard does not answer; the message names it, and the call returns no row.

    Notes
    -----
    A call costs O(n d) per user, as `Catalog.rank_batch`, plus some microseconds per row; users of
    one call share each item that is read, so about a thousand at a time is best. A ranking has not
    been shown yet: `displayed` is 0 until `fastrank.eventlog.join` learns what was shown.

    The rules and filters of more than 64 ids that rows name by hash must be stored beside the log:
    `begin` and `run` do that; otherwise use `contents`.

    With shards, `model_version` and `catalog_version` of the rows are SHA-256 of the shards' own
    in their order, a line each. Shards are looked through for shared items once, in 8 bytes an item
    of the asker's memory, unless `model_version` says that they were.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow as pa
    >>> import fastrank as fr
    >>> directory = tempfile.mkdtemp()
    >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
    >>> fr.Model(catalog, ["ann", "bob"], [[1.0, 0.0], [0.0, 1.0]]).save(directory)
    >>> run = fr.Run("2026-11-30", key=bytes(32))
    >>> rank = RankUsers(directory, run, k=1, policy=fr.Deterministic(), ts=0)
    >>> rows = rank(pa.table({"user_id": ["bob", "ann"]}))
    >>> rows["item_ids"].to_pylist(), rows["displayed"].to_pylist()
    ([[20], [10]], [0, 0])
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        run: Run,
        k: int = 10,
        policy: Policy | None = None,
        *,
        ts: Time,
        user_column: str = "user_id",
        exclude: Ids | None = None,
        allow: Ids | None = None,
        score: str | None = None,
        params: Params | None = None,
        rules: Rules | None = None,
        unknown: Unknown = "fail",
        fallback: Policy | None = None,
        score_functions: Sequence[str] = (),
        model_version: str | None = None,
        shards: Sequence[Any] | None = None,
        shard_timeout: float = 600.0,
    ) -> None:
        if (model is None) == (shards is None):
            got = "neither" if model is None else "both"
            raise ValueError(f"model: expected a path, or shards instead; got {got}")
        self.model = None if model is None else Shard(model, 1, score_functions).model
        self.shards = None if shards is None else as_shards(shards)
        if not isinstance(run, Run):
            raise ValueError(
                f"run: expected a fastrank.Run, whose key all workers share, got {shown(run)}"
            )
        for name, value in (("policy", policy), ("fallback", fallback)):
            if value is not None and not isinstance(value, Policy):
                raise no_policy(name, value)
        if unknown not in get_args(Unknown):
            known = ", ".join(get_args(Unknown))
            raise ValueError(f"unknown: expected one of {known}; got {shown(unknown)}")
        if fallback is not None and unknown != "fallback":
            raise ValueError(f'fallback: goes with unknown="fallback", got {unknown!r}')
        if rules is not None and not isinstance(rules, Rules):
            raise ValueError(f"rules: expected a Rules, got {shown(rules)}")
        if score is not None and not isinstance(score, str):
            raise ValueError(f"score: expected an expression or a name, got {shown(score)}")
        if not isinstance(user_column, str):
            raise ValueError(f"user_column: expected a str, got {shown(user_column)}")
        if shards is not None:
            if score_functions:
                raise ValueError("score_functions: each Shard takes its own")
            if rules is not None:
                check_rules("rules", rules)
            for name, value in (("policy", policy), ("fallback", fallback)):
                if value is not None:
                    mergeable_law(name, value)
        if not (isinstance(shard_timeout, int | float) and 0.0 < shard_timeout < math.inf):
            raise ValueError(f"shard_timeout: expected seconds above 0, got {shown(shard_timeout)}")
        self.shard_timeout = float(shard_timeout)
        self.run = run
        self.k = as_count("k", k)
        self.policy = policy
        self.ts = as_time("ts", ts)
        self.user_column = user_column
        self.exclude = None if exclude is None else listed("exclude", exclude).copy()
        self.allow = None if allow is None else listed("allow", allow).copy()
        self.score = score
        self.params = None if params is None else as_params(params)
        self.rules = rules
        self.unknown = unknown
        self.fallback = fallback
        self.score_functions = tuple(score_functions)
        self.model_version = model_version

    def __repr__(self) -> str:
        source = self.model if self.shards is None else f"{len(self.shards)} shards"
        return f"RankUsers({source!r}, {self.run!r}, k={self.k}, policy={self.policy!r})"

    def __getstate__(self) -> dict[str, Any]:
        own = dict(self.__dict__)
        for name in ("_source", "_about", "_filters"):  # each worker's
            own.pop(name, None)
        return own

    @cached_property
    def _source(self) -> Shard | Shards:
        """What ranks: the model, mapped at the first use, or the shards, looked at then."""
        found: Shard | Shards
        if self.shards is None:
            assert self.model is not None
            found = Shard(self.model, score_functions=self.score_functions)
        else:
            found = Shards(self.shards, self.shard_timeout, self.model_version is not None)
            found.asked(self.policy)
        version = found.about().version
        if self.model_version is not None and version != self.model_version:
            where = "shards: the whole" if self.model is None else f"model: {self.model}"
            raise ValueError(
                f"{where} is version {version} now; this run was begun with {self.model_version}"
            )
        return found

    @cached_property
    def _about(self) -> About:
        """What is known of the model, or of all shards together."""
        return self._source.about()

    @cached_property
    def _filters(self) -> Filtered:
        return filtered(self.exclude, self.allow)

    @property
    def contents(self) -> dict[str, Content]:
        """Long filters and rules, which rows name by hash; `begin` stores them beside a log."""
        own = dict(self._filters.contents)
        if self.rules is not None:
            own[self.rules.id] = self.rules
        return own

    @property
    def item_kind(self) -> IdKind:
        """What the model's item ids are."""
        return self._about.item_kind

    def __call__(self, users: pa.Table | pa.RecordBatch) -> pa.Table:
        """Return the rows of some users, in their order.

        Parameters
        ----------
        users : pyarrow.Table or RecordBatch
            With the column of user ids, each once.

        Returns
        -------
        pyarrow.Table
            In the log's schema, without rows for users who are skipped.

        Raises
        ------
        ValueError
            If a user is null, empty, repeated or unknown; the message names the row.
        """
        if not isinstance(users, pa.Table | pa.RecordBatch):
            raise ValueError(f"users: expected a pyarrow Table, got {shown(users)}")
        names = users.schema.names
        if names.count(self.user_column) != 1:
            found = ", ".join(names) or "none"
            count = "two columns" if self.user_column in names else "no column"
            raise ValueError(f"users: {count} named {self.user_column}; found {found}")
        return self.rank(as_user_texts("users", users.column(self.user_column)).to_pylist())

    def rank(self, user_ids: Sequence[str]) -> pa.Table:
        """As a call, of user ids as the log has them."""
        rows = self._source.find_users(list(user_ids))
        known = rows >= 0
        if self.unknown == "fail" and not known.all():
            first = int(np.flatnonzero(~known)[0])
            raise ValueError(f"users: row {first}: {shown(user_ids[first])} is not in the model")
        ids = np.empty(len(rows), object)
        ids[:] = user_ids
        if self.unknown == "skip":
            ids, rows, known = ids[known], rows[known], known[known]
        parts: list[pa.Table] = []
        if known.any() or not len(ids):
            parts.append(self._rows(ids[known].tolist(), rows[known]))
        if not known.all():
            parts.append(self._rows(ids[~known].tolist(), rows[~known]))
        return parts[0] if len(parts) == 1 else _together(parts, known)

    def _rows(self, user_ids: list[str], rows: IntArray) -> pa.Table:
        """Of users in these rows of the model; or of strangers, whose rows are -1."""
        if not user_ids:
            return schema(self.item_kind).empty_table()
        is_fallback = bool(rows[0] < 0)
        with _naming_users(user_ids):
            batch = self._source.rank(
                rows,
                self.k,
                self.fallback or self.policy if is_fallback else self.policy,
                self.run.seeds(user_ids),
                exclude=self.exclude,
                allow=self.allow,
                score=self.score,
                params=self.params,
                rules=self.rules,
            )
        return log_rows(
            batch,
            user_ids=user_ids,
            request_ids=self.run.request_ids(user_ids),
            run=self.run.name,
            ts=self.ts,
            filters=self._filters,
            is_fallback=is_fallback,
            query=np.zeros(self._about.dim, np.float32) if is_fallback else None,
        )

    def batches(self, users: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Rank for Spark's `mapInArrow`: ``df.mapInArrow(rank.batches, rank.spark_schema())``.

        Spark passes up to ``spark.sql.execution.arrow.maxRecordsPerBatch`` users at a time.

        Yields
        ------
        pyarrow.RecordBatch
            The rows of a call, with their seeds as int64.
        """
        for part in users:
            if not part.num_rows:
                continue
            rows = self(part)
            at = rows.schema.get_field_index("seed")
            rows = rows.set_column(at, "seed", rows.column(at).cast(pa.int64()))
            yield from rows.combine_chunks().to_batches()

    def spark_schema(self) -> str:
        """Return the columns of `batches`, in Spark's DDL: the log's, with a bigint seed.

        `fastrank.eventlog.LogReader` can read a log that Spark writes.
        """
        return ", ".join(f"{each.name} {_ddl(each.type)}" for each in schema(self.item_kind))


@contextmanager
def _naming_users(user_ids: Sequence[str]) -> Iterator[None]:
    """Make errors about a row of a batch name its user."""
    try:
        yield
    except ValueError as error:
        found = re.match(r"row (\d+): ", str(error))
        if found is None:
            raise
        user = user_ids[int(found[1])]
        raise ValueError(f"user {shown(user)}: {str(error)[found.end() :]}") from None


def as_user_texts(name: str, column: pa.Array | pa.ChunkedArray, start: int = 0) -> pa.StringArray:
    """User ids in the log's form, integers as digits; ValueError for invalid ids.

    Examples
    --------
    >>> as_user_texts("users", pa.array([7, 42])).to_pylist()
    ['7', '42']
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text or pa.types.is_integer(kind) or str(kind) == "string_view"):
        raise ValueError(f"{name}: expected integers or texts, got {kind}")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{name}: row {start + row} is null")
    try:
        texts = column.cast(pa.string())
        texts.validate(full=True)  # Parquet promises UTF-8, and does not check it
    except pa.ArrowException as error:
        raise ValueError(f"{name}: {error}") from None
    sizes = np.diff(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset :][: len(texts) + 1])
    if not sizes.all():
        raise ValueError(f"{name}: row {start + int(np.argmin(sizes))} is empty")
    return texts


def _together(parts: Sequence[pa.Table], first: Mask) -> pa.Table:
    """The rows of two tables: those of the first where `first` is true."""
    order = np.empty(len(first), np.int64)
    order[np.flatnonzero(first)] = np.arange(first.sum())
    order[np.flatnonzero(~first)] = np.arange(first.sum(), len(first))
    return pa.concat_tables(parts).combine_chunks().take(pa.array(order))


def _ddl(kind: pa.DataType) -> str:
    if pa.types.is_map(kind):
        return f"map<{_ddl(kind.key_type)}, {_ddl(kind.item_type)}>"
    if pa.types.is_list(kind):
        return f"array<{_ddl(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{each.name}: {_ddl(each.type)}' for each in kind)}>"
    return _SPARK[kind]
