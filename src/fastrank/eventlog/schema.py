"""The log's schema, version 2: one row is one ranking that was served.

A row contains everything that is needed to recompute its log-propensities: a missing exclude list
makes them wrong, and self-normalised estimators hide that. The version is in the metadata of each
file and in each row. Version 2 is written; version 1 can be read, and `fastrank.eventlog.upgrade`
converts it to version 2 before any other code sees it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.catalog import RNG_VERSION
from fastrank.wire import RequestIdSource, SeedSource

__all__ = [
    "BEYOND",
    "CLIENT_SOURCES",
    "KNOWN_RNG_VERSIONS",
    "KNOWN_VERSIONS",
    "LARGEST",
    "OLD_PARAMETERS",
    "PROPENSITY_KINDS",
    "REQUEST_ID_SOURCES",
    "REWARD_KINDS",
    "SCHEMA_VERSION",
    "SEED_SOURCES",
    "UNREAD",
    "VERSION_KEY",
    "IdKind",
    "cast_column",
    "is_column",
    "kind_of",
    "kind_of_ids",
    "schema",
    "value_of",
]

SCHEMA_VERSION = 2
"""The version of the schema that the writer writes."""
KNOWN_VERSIONS = range(1, SCHEMA_VERSION + 1)
VERSION_KEY = b"fastrank.schema_version"
KNOWN_RNG_VERSIONS = range(1, RNG_VERSION + 1)
PROPENSITY_KINDS = ("exact", "bounded")
SEED_SOURCES = get_args(SeedSource)
REQUEST_ID_SOURCES = get_args(RequestIdSource)
CLIENT_SOURCES = ("body", "header")  # a client chose the id
REWARD_KINDS = ("positives", "complete")
# Fields of version 1's struct policy_params, sorted; the last is not a parameter of the law.
OLD_PARAMETERS = ("epsilon", "tail_mass", "temperature", "user_temperature")
# Optional columns of version 2. `LogWriter.append` leaves them null, unless the ranking states them
# or they are given. A log of version 1 may have its own columns of these names.
UNREAD = (
    *("request_id_source", "inference_id", "traceparent", "run", "experiment", "arm", "revision"),
    "row_weight",
    *("features_version", "score", "rules", "after", "seen_id", "n_scored"),
    *("evaluation_log_propensities", "shown_at"),
)

# Columns required in every row, from any writer; all others may be null, and so absent.
_WANTED = (
    *("request_id", "ts", "policy_name", "item_ids", "log_propensities", "log_propensity"),
    "propensity_kind",
)

# Limit of a reward, and of a row's weight, which is at least 1 over it. Larger values are not
# realistic, and the squares of sums of weights and rewards must stay within float64.
LARGEST = 1e50
BEYOND = f"reward beyond {LARGEST:g}"  # why a row is set aside

IdKind: TypeAlias = Literal["int64", "str"]


@cache
def schema(kind: IdKind, version: int = SCHEMA_VERSION) -> pa.Schema:
    """Return the columns of a log.

    Parameters
    ----------
    kind : {"int64", "str"}
        Type of its item ids; one type per data set.
    version : int
        2, the version written, or 1, which can still be read.

    Returns
    -------
    pyarrow.Schema
        The schema, with the version in its metadata.

    Examples
    --------
    >>> schema("int64").field("log_propensities").type
    ListType(list<item: double>)
    >>> schema("str").metadata[b"fastrank.schema_version"]
    b'2'
    """
    if kind not in get_args(IdKind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(IdKind))}; got {kind!r}")
    if version not in KNOWN_VERSIONS:
        known = " or ".join(map(str, KNOWN_VERSIONS))
        raise ValueError(f"version: expected {known}, got {version!r}")
    item = pa.int64() if kind == "int64" else pa.string()
    text, real, time = pa.string(), pa.float64(), pa.timestamp("us", tz="UTC")
    parameters = pa.list_(pa.struct([("name", text), ("value", real)]))
    old_order = ("temperature", "epsilon", "tail_mass", "user_temperature")
    # Each with the first and the last version that has it.
    columns: list[tuple[str, Any, int, int]] = [
        # Identity.
        ("schema_version", pa.int16(), 1, 2),
        ("request_id", text, 1, 2),
        ("request_id_source", text, 2, 2),
        ("inference_id", text, 2, 2),
        ("traceparent", text, 2, 2),
        ("ts", time, 1, 2),
        ("writer_id", text, 1, 2),
        ("writer_seq", pa.int64(), 1, 2),
        ("run", text, 2, 2),
        ("user_id", text, 1, 2),
        ("experiment", text, 2, 2),
        ("arm", text, 2, 2),
        ("revision", text, 2, 2),
        ("row_weight", real, 2, 2),
        # The law of the draw.
        ("policy_name", text, 1, 2),
        ("policy_params", pa.struct([(name, real) for name in old_order]), 1, 1),
        ("law", text, 2, 2),
        ("law_params", parameters, 2, 2),
        ("user_temperature", real, 2, 2),
        ("sampler", text, 2, 2),
        ("rng_version", pa.int16(), 1, 2),
        ("seed", pa.uint64(), 1, 2),
        ("seed_source", text, 1, 2),
        ("model_version", text, 1, 2),
        ("catalog_version", text, 1, 2),
        ("features_version", text, 2, 2),
        ("query", pa.list_(pa.float32()), 1, 2),
        ("score", pa.struct([("name", text), ("hash", text), ("params", text)]), 2, 2),
        ("exclude", pa.list_(item), 1, 2),
        ("allow", pa.list_(item), 1, 2),
        ("filter_id", pa.struct([("exclude", text), ("allow", text)]), 1, 2),
        ("bias_id", text, 1, 2),
        ("seen_id", text, 2, 2),
        ("rules", pa.struct([("id", text), ("params", text)]), 2, 2),
        ("after", pa.list_(item), 2, 2),
        ("n_eligible", pa.int64(), 1, 2),
        ("candidate_set_id", text, 1, 2),
        ("n_candidates", pa.int64(), 1, 2),
        ("retrieval", pa.struct([("name", text), ("version", text), ("params", text)]), 1, 2),
        ("n_probes", pa.int64(), 2, 2),
        ("tail_log_weight", real, 2, 2),
        ("is_fallback", pa.bool_(), 1, 2),
        ("made_by", text, 2, 2),
        ("n_scored", pa.int64(), 2, 2),
        # What was shown.
        ("k", pa.int64(), 1, 2),
        ("item_kind", text, 2, 2),
        ("item_ids", pa.list_(item), 1, 2),
        ("is_candidate", pa.list_(pa.bool_()), 2, 2),
        ("scores", pa.list_(pa.float32()), 1, 2),
        ("log_propensities", pa.list_(real), 1, 2),
        ("log_propensity", real, 1, 2),
        ("log_norm", real, 1, 2),
        ("propensity_kind", text, 1, 2),
        ("log_norm_error", real, 1, 2),
        ("evaluation_log_propensities", pa.map_(text, pa.list_(real)), 2, 2),
        ("displayed", pa.int64(), 1, 2),
        ("shown_at", time, 2, 2),
        ("latency_us", real, 1, 2),
        # Results, which are joined later.
        ("rewards", pa.list_(pa.float32()), 1, 1),
        ("rewards", pa.list_(real), 2, 2),
        ("reward_kind", text, 1, 2),
        ("reward_ts", time, 1, 2),
    ]
    fields = [(name, kind_) for name, kind_, first, last in columns if first <= version <= last]
    return pa.schema(fields, metadata={VERSION_KEY: str(version).encode()})


def is_column(name: str) -> bool:
    """Whether some version of the schema has a column of this name."""
    return any(name in schema("int64", version).names for version in KNOWN_VERSIONS)


def kind_of(columns: pa.Schema, besides: Collection[str] = ()) -> IdKind:
    """The type of a log's item ids; ValueError if the columns are not those of a log.

    A log has all required columns, among its own or in `besides`, the names of its directories;
    every nullable column may be absent.

    Examples
    --------
    >>> kind_of(schema("str"))
    'str'
    """
    stated = (columns.metadata or {}).get(VERSION_KEY)
    if stated is not None and stated not in {str(known).encode() for known in KNOWN_VERSIONS}:
        known = " and ".join(map(str, KNOWN_VERSIONS))
        raise ValueError(
            f"schema version {stated.decode(errors='replace')!r}; this fastrank reads versions"
            f" {known}"
        )
    # Tools that add a column often lose the metadata; each row states its version too.
    names = {*columns.names, *besides}
    missing = [name for name in _WANTED if name not in names]
    if missing:
        raise ValueError(
            f"not an event log of fastrank: no column named {', '.join(missing)} (read other logs"
            " by `from_table`, or --format table)"
        )
    if len({*columns.names}) < len(columns.names):
        repeated = [name for name in columns.names if columns.names.count(name) > 1]
        raise ValueError(f"two columns are named {repeated[0]}")
    return kind_of_ids(columns.field("item_ids").type)


def kind_of_ids(ids: pa.DataType) -> IdKind:
    if _is_list(ids):
        if pa.types.is_integer(ids.value_type):
            return "int64"
        if pa.types.is_string(ids.value_type) or pa.types.is_large_string(ids.value_type):
            return "str"
    raise ValueError(f"item_ids: expected lists of int64 or string, got {ids}")


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def cast_column(name: str, values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Convert a column to the schema's type; ValueError if a value would be lost.

    Except for times, which are cut to microseconds.
    """
    if values.type.equals(wanted):
        return values
    try:
        if pa.types.is_struct(wanted) and pa.types.is_struct(values.type):
            # Fields are found by name, in any order; absent fields are null.
            have = {values.type.field(i).name for i in range(values.type.num_fields)}
            fields = [wanted.field(i) for i in range(wanted.num_fields)]
            for other in sorted(have - {field.name for field in fields}):
                lost = pc.struct_field(values, other)
                if lost.null_count < len(lost):
                    names = ", ".join(field.name for field in fields)
                    raise ValueError(f"{name}: expected the fields {names}; got {other!r}")
            parts = [
                cast_column(field.name, pc.struct_field(values, field.name), field.type)
                if field.name in have
                else pa.nulls(len(values), field.type)
                for field in fields
            ]
            return pa.StructArray.from_arrays(parts, fields=fields, mask=values.is_null())
        if pa.types.is_map(wanted) and _is_list(values.type):
            return _as_map(values, wanted)
        if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
            values = _in_microseconds(values)
        return values.cast(wanted)
    except pa.ArrowException as error:
        raise ValueError(f"{name}: expected {wanted}, got {values.type} ({error})") from None


def value_of(name: str, text: str | None, wanted: pa.DataType) -> pa.Scalar:
    """Parse a column's value from text, in the schema's type; ValueError if that is impossible.

    Times without a zone are UTC.

    Examples
    --------
    >>> value_of("k", "10", pa.int64())
    <pyarrow.Int64Scalar: 10>
    """
    given = pa.array([text], pa.string())
    try:
        if pa.types.is_timestamp(wanted):
            try:
                return given.cast(wanted)[0]
            except pa.ArrowException:
                return given.cast(pa.timestamp(wanted.unit)).cast(wanted)[0]
        return given.cast(wanted)[0]
    except pa.ArrowException:
        raise ValueError(f"{name}: expected {wanted}, got {text!r} by its path") from None


def _in_microseconds(values: pa.Array) -> pa.Array:
    """Floor times in nanoseconds to microseconds."""
    missing = values.is_null().to_numpy(zero_copy_only=False)
    counts = values.cast(pa.int64()).fill_null(0).to_numpy() // 1000
    return pa.array(counts, pa.timestamp("us", tz=values.type.tz), mask=missing)


def _as_map(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Convert lists of pairs, which tools without maps make of a map, back to a map."""
    pair = pa.struct([("key", wanted.key_type), ("value", wanted.item_type)])
    pairs = values.cast(pa.list_(pair)).take(pa.array(np.arange(len(values))))  # from offset 0
    keys, items = pairs.values.flatten()
    return pa.MapArray.from_arrays(pairs.offsets, keys, items, type=wanted, mask=pairs.is_null())
