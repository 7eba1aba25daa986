"""Rankings of many users as rows of the log, built column by column, without objects per row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastrank.arraytypes import IdArray, IntArray
from fastrank.catalog import RNG_VERSION
from fastrank.eventlog.filters import Content, canonical, filter_id
from fastrank.eventlog.rows import LawColumns, as_rules_columns, as_score_columns, law_of_row
from fastrank.eventlog.schema import SCHEMA_VERSION, IdKind, schema
from fastrank.ids import Listed
from fastrank.policies import PlackettLuce, Policy
from fastrank.ranking import Candidates, RankingBatch

__all__ = ["INLINE_IDS", "Filtered", "filtered", "kind_of_items", "log_rows"]

INLINE_IDS = 64  # most ids stored in a row, as in `LogWriter`

T = TypeVar("T")


class Filtered(NamedTuple):
    """What every row states about the filters, which are the same for all users.

    Attributes
    ----------
    inline : dict of str to list of ids
        Short filters, by ``exclude`` and ``allow``.
    named : dict of str to str
        Hashes of long filters.
    contents : dict of str to ids
        Contents of the long filters, by hash, to be stored beside the log.
    """

    inline: dict[str, list[Any]]
    named: dict[str, str]
    contents: dict[str, Content]


def filtered(exclude: Listed | None, allow: Listed | None) -> Filtered:
    """Put short lists into the row, and long ones beside the log.

    Examples
    --------
    >>> filtered(np.array([3, 1]), None).inline
    {'exclude': [3, 1]}
    >>> list(filtered(None, np.arange(100)).named)
    ['allow']
    """
    found = Filtered({}, {}, {})
    for role, ids in (("exclude", exclude), ("allow", allow)):
        if ids is None:
            continue
        if len(ids) > INLINE_IDS:
            name = filter_id(ids)
            found.named[role] = name
            found.contents[name] = canonical(role, ids)
        else:
            found.inline[role] = ids if isinstance(ids, list) else ids.tolist()
    return found


def kind_of_items(item_ids: IdArray) -> IdKind:
    """The log's name for ids of this type."""
    return "int64" if item_ids.dtype.kind == "i" else "str"


def log_rows(
    batch: RankingBatch,
    *,
    user_ids: Sequence[str],
    request_ids: Sequence[str],
    run: str,
    ts: int,
    filters: Filtered,
    is_fallback: bool = False,
    query: npt.NDArray[np.float32] | None = None,
) -> pa.Table:
    """The b rankings of a batch as rows of the log that nobody has seen yet: `displayed` is 0.

    Parameters
    ----------
    batch : RankingBatch
        A batch from `Model.recommend_batch` or `Catalog.rank_batch`, without `bias` and `after`.
    user_ids, request_ids : sequence of str, length b
    run : str
    ts : int
        Microseconds since 1970, UTC.
    filters : Filtered
        The filters that the batch was ranked with.
    is_fallback : bool
    query : ndarray of float32, shape (d,), optional
        The vector that all were ranked for, if the users' vectors are not in the model.

    Returns
    -------
    pyarrow.Table
        All columns of `fastrank.eventlog.schema`.

    Notes
    -----
    O(b k); some microseconds per row of ten places. The rows are those of `LogWriter.append_batch`,
    except for the writer: a row that is made again is the same row.
    """
    n = len(batch)
    kind = kind_of_items(batch.item_ids)
    wanted = schema(kind)
    types = {field.name: field.type for field in wanted}
    counts = batch.counts

    def same(name: str, value: Any) -> pa.Array:
        return pa.repeat(pa.scalar(value, types[name]), n)

    def made(name: str, values: Any) -> pa.Array:
        return pa.array(values, types[name], from_pandas=True)

    columns: dict[str, pa.Array] = {
        "schema_version": same("schema_version", SCHEMA_VERSION),
        "request_id": made("request_id", request_ids),
        "ts": same("ts", ts),
        "run": same("run", run),
        "user_id": made("user_id", user_ids),
        **_laws(batch.policies, types),
        "rng_version": same("rng_version", RNG_VERSION),
        "seed": made("seed", batch.seeds),
        "seed_source": same("seed_source", "derived"),
        "model_version": same("model_version", batch.model_version),
        "catalog_version": same("catalog_version", batch.catalog_version),
        "features_version": same("features_version", batch.features_version),
        "n_eligible": made("n_eligible", batch.n_eligible),
        "is_fallback": same("is_fallback", is_fallback),
        "k": same("k", batch.k),
        "item_kind": same("item_kind", kind),
        "item_ids": _lists(batch.item_ids, counts, types["item_ids"]),
        "scores": _lists(batch.scores, counts, types["scores"]),
        "log_propensities": _lists(batch.log_propensities, counts, types["log_propensities"]),
        "log_propensity": made("log_propensity", batch.log_propensity),
        "log_norm": made("log_norm", batch.log_norm),  # NaN is null
        "propensity_kind": _texts(batch.propensity_kind),
        "log_norm_error": made("log_norm_error", batch.log_norm_error),
        "displayed": same("displayed", 0),
    }
    if batch.n_scored is not None:
        columns["n_scored"] = made("n_scored", batch.n_scored)
    for name, texts in (("made_by", batch.made_by), ("seen_id", batch.seen_ids)):
        if texts is not None:
            columns[name] = _texts(texts)
    if batch.user_temperatures is not None:
        columns["user_temperature"] = made("user_temperature", batch.user_temperatures)
    if batch.scores_by is not None:
        columns["score"] = made("score", _each(batch.scores_by, as_score_columns))
    if batch.rules is not None:
        columns["rules"] = made("rules", _each(batch.rules, as_rules_columns))
    for role, ids in filters.inline.items():
        columns[role] = same(role, ids)
    if filters.named:
        columns["filter_id"] = same("filter_id", filters.named)
    if query is not None:
        columns["query"] = same("query", query.tolist())
    if batch.candidates is not None:
        columns |= _found(batch.candidates, counts, types)
    arrays = [
        columns[field.name] if field.name in columns else pa.nulls(n, field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)


def _laws(policies: Sequence[Policy], types: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """The policy of each row. If users have their own temperatures, each has a policy."""
    n = len(policies)
    if n and type(policies[0]) is PlackettLuce and _alike(policies):
        laws = [law_of_row(policies[0])] * n
        counts = np.ones(n, np.int64)
        names: Any = pa.repeat("temperature", n)
        values = [policy.params["temperature"] for policy in policies]
    else:
        laws = _each(policies, law_of_row)
        counts = np.array([len(params) for _, _, params, _ in laws], np.int64)
        names = [name for _, _, params, _ in laws for name, _ in params]
        values = [value for _, _, params, _ in laws for _, value in params]
    entry = types["law_params"].value_type
    flat = pa.StructArray.from_arrays(
        [pa.array(names, pa.string()) if isinstance(names, list) else names, pa.array(values)]
        if len(values)
        else [pa.array([], pa.string()), pa.array([], pa.float64())],
        fields=list(entry),
    )
    return {
        "policy_name": _texts([law[0] for law in laws]),
        "law": _texts([law[1] for law in laws]),
        "law_params": pa.ListArray.from_arrays(_offsets(counts), flat, type=types["law_params"]),
        "sampler": _texts([law[3] for law in laws]),
    }


def _alike(policies: Sequence[Any]) -> bool:
    """Whether all are Plackett-Luce with the same sampler, and differ only in temperature."""
    kinds = set(map(type, policies))
    return kinds == {PlackettLuce} and len({policy.sampler for policy in policies}) == 1


def _each(values: Iterable[T | None], say: Callable[[T], Any]) -> list[Any]:
    """Describe each value, None for None; an object that rows share is described once."""
    kept = list(values)  # keeps them alive, so that ids are not reused
    known: dict[int, LawColumns | dict[str, str] | None] = {id(None): None}
    for value in kept:
        if value is not None and id(value) not in known:
            known[id(value)] = say(value)
    return [known[id(value)] for value in kept]


def _texts(values: Sequence[str | None]) -> pa.Array:
    if len(set(values)) == 1:
        return pa.repeat(pa.scalar(values[0], pa.string()), len(values))
    return pa.array(values, pa.string())


def _offsets(counts: IntArray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


def _lists(values: npt.NDArray[Any], counts: IntArray, wanted: pa.DataType) -> pa.ListArray:
    """The first `counts` values of each row."""
    width = values.shape[1]
    if (counts == width).all():
        flat = np.ascontiguousarray(values).reshape(-1)
    else:
        flat = values[np.arange(width) < counts[:, None]]
    return pa.ListArray.from_arrays(
        _offsets(counts), pa.array(flat, wanted.value_type), type=wanted
    )


def _found(
    candidates: Sequence[Candidates | None], counts: IntArray, types: Mapping[str, pa.DataType]
) -> dict[str, pa.Array]:
    """What rows by `FlatTail` state about their candidates."""
    own: list[Any] = list(candidates)
    columns = {
        "n_candidates": [None if c is None else c.n_found for c in own],
        "n_probes": [None if c is None else c.n_probes for c in own],
        "tail_log_weight": [None if c is None else c.tail_log_weight for c in own],
        "retrieval": [None if c is None else c.retrieval for c in own],
        "is_candidate": [None if c is None else c.is_candidate.tolist() for c in own],
    }
    return {name: pa.array(values, types[name]) for name, values in columns.items()}
