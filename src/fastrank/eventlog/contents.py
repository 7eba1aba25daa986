"""The content of a log's row as one number, to recognise repeated rows.

It covers what an evaluation or an audit uses of a row. The time, the writer and the latency may
differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.arraytypes import AnyArray, FloatArray, Hashes
from fastrank.eventlog.columns import Lists, codes_of, lengths_of
from fastrank.eventlog.hashing import mixed, row_hashes, text_hashes

__all__ = ["content_hashes"]

_ARRAYS = ("log_propensities", "rewards", "lengths", "k", "n_eligible", "user_hash", "caller_seed")
_NUMBERS = ("seed", "log_norm_error", "user_temperature", "log_norm", "tail_log_weight")
_FILTERS = ("exclude", "allow")
_RULES = ("id", "params")


def content_hashes(
    batch: pa.RecordBatch,
    arrays: Mapping[str, AnyArray],
    columns: Mapping[str, FloatArray],
    items: Hashes,
    laws: Hashes,
) -> Hashes:
    """Hash the content of each row, (n,): independent of how a log is divided into batches.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        The rows in the schema's columns and types.
    arrays, columns : mapping of str to ndarray
        The arrays of `LogBatch`, by attribute; and the log's own columns.
    items : ndarray of uint64, shape (n, K)
        A word for each item id, 0 past the end of a ranking.
    laws : ndarray of uint64, shape (n,)
        A hash of each row's stratum.
    """
    n = batch.num_rows
    there = {
        name: batch.column(name) for name in batch.schema.names if batch.column(name).null_count < n
    }
    weights, named = arrays.get("row_weights"), there.get("filter_id")
    texts = [there.get("candidate_set_id"), there.get("bias_id")]
    texts += [
        text if (text := there.get(name)) is not None and _is_text(text) else None
        for name in ("seen_id", "experiment", "arm", "revision")
    ]
    texts += [named if named is None else pc.struct_field(named, role) for role in _FILTERS]
    rules = there.get("rules")
    if rules is None or not pa.types.is_struct(rules.type):
        rules = None
    texts += [rules if rules is None else pc.struct_field(rules, part) for part in _RULES]
    # Each column has its own position; null counts as absent.
    numbers = [
        *(items, lengths_of(batch.column("item_ids"))),
        *(arrays[name] for name in _ARRAYS),
        *(laws, None if weights is None else weights - 1.0),
        *(_numbers(there.get(name)) for name in _NUMBERS),
        _vectors(there.get("query")),
        *(_of_texts(column) for column in texts),
        *(_of_ids(there.get(role)) for role in _FILTERS),
        _of_ids(there.get("after"), in_order=True),
        *columns.values(),
    ]
    return row_hashes(n, numbers)


def _is_text(column: pa.Array) -> bool:
    # A log of version 1 may have its own column of this name.
    return bool(pa.types.is_string(column.type) or pa.types.is_dictionary(column.type))


def _numbers(column: pa.Array | None) -> AnyArray | None:
    if column is None:
        return None
    filled = column.fill_null(0) if column.null_count else column
    return np.asarray(filled.to_numpy(zero_copy_only=False))


def _vectors(column: pa.ListArray | None) -> AnyArray | None:
    if column is None:
        return None
    lists = Lists(column)
    return lists.padded(int(lists.lengths.max(initial=0)), np.float32(0.0))


def _of_texts(column: pa.Array | None) -> Hashes | None:
    """A word for each text; 0 for null."""
    if column is None:
        return None
    codes, texts = codes_of(column)
    words: Hashes = np.append(text_hashes(pa.array(texts, pa.string()))[:, 0], np.uint64(0))
    return words[codes]


def _of_ids(column: pa.ListArray | None, in_order: bool = False) -> Hashes | None:
    """A word for each list of ids, independent of their order unless `in_order`; 0 for null."""
    if column is None:
        return None
    ids, lengths = column.flatten(), lengths_of(column)
    text = pa.types.is_string(ids.type)
    words = text_hashes(ids)[:, 0] if text else mixed(ids.to_numpy().view(np.uint64))
    if in_order:
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        words = mixed(words + (np.arange(len(words)) - starts).astype(np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words, dtype=np.uint64)])
    ends = np.cumsum(lengths)
    found: Hashes = sums[ends] - sums[ends - lengths] + lengths.astype(np.uint64)
    return found
