"""The log's schema, version 1: one row is one ranking that was served.

A row holds everything that is needed to compute its log-propensities again: an exclude list that
is forgotten makes them wrong, and self-normalised estimators hide that. The version stands in the
metadata of each file and in each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.compute as pc

from fastrank.catalog import RNG_VERSION

__all__ = [
    "KNOWN_RNG_VERSIONS",
    "PARAMETERS",
    "PROPENSITY_KINDS",
    "REWARD_KINDS",
    "SCHEMA_VERSION",
    "SEED_SOURCES",
    "VERSION_KEY",
    "Kind",
    "Stratum",
    "cast_column",
    "completed",
    "kind_of",
    "schema",
]

SCHEMA_VERSION = 1
VERSION_KEY = b"fastrank.schema_version"
KNOWN_RNG_VERSIONS = range(1, RNG_VERSION + 1)
PROPENSITY_KINDS = ("exact", "bounded")
SEED_SOURCES = ("server", "caller")
REWARD_KINDS = ("positives", "complete")
# Fields of the struct policy_params; null where the policy has no such parameter.
PARAMETERS = ("temperature", "epsilon", "tail_mass", "user_temperature")

Kind: TypeAlias = Literal["int64", "str"]


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows that follow one law: what they share besides user, filters and seed.

    Attributes
    ----------
    policy_name : str
        The inference type.
    params : tuple of (str, float)
        The policy's parameters, sorted by name, to 12 significant digits. `temperature` is the one
        before the user's own factor: ``policy_params.temperature / policy_params.user_temperature``
        of each row.
    model_version, catalog_version : str or None
    is_fallback : bool
    """

    policy_name: str
    params: tuple[tuple[str, float], ...]
    model_version: str | None
    catalog_version: str | None
    is_fallback: bool


@cache
def schema(kind: Kind) -> pa.Schema:
    """The columns of a log.

    Parameters
    ----------
    kind : {"int64", "str"}
        What its item ids are; one kind a data set.

    Returns
    -------
    pyarrow.Schema
        With the version in its metadata.

    Examples
    --------
    >>> schema("int64").field("log_propensities").type
    ListType(list<item: double>)
    >>> schema("str").metadata[b"fastrank.schema_version"]
    b'1'
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}; got {kind!r}")
    item = pa.int64() if kind == "int64" else pa.string()
    text, real, time = pa.string(), pa.float64(), pa.timestamp("us", tz="UTC")
    columns: list[tuple[str, Any]] = [
        # Identity.
        ("schema_version", pa.int16()),
        ("request_id", text),
        ("ts", time),
        ("writer_id", text),
        ("writer_seq", pa.int64()),
        ("user_id", text),
        # The law that drew it.
        ("policy_name", text),
        ("policy_params", pa.struct([(name, real) for name in PARAMETERS])),
        ("rng_version", pa.int16()),
        ("seed", pa.uint64()),
        ("seed_source", text),
        ("model_version", text),
        ("catalog_version", text),
        ("query", pa.list_(pa.float32())),
        ("exclude", pa.list_(item)),
        ("allow", pa.list_(item)),
        ("filter_id", pa.struct([("exclude", text), ("allow", text)])),
        ("bias_id", text),
        ("n_eligible", pa.int64()),
        ("candidate_set_id", text),
        ("n_candidates", pa.int64()),
        ("retrieval", pa.struct([("name", text), ("version", text), ("params", text)])),
        ("is_fallback", pa.bool_()),
        # What was shown.
        ("k", pa.int64()),
        ("item_ids", pa.list_(item)),
        ("scores", pa.list_(pa.float32())),
        ("log_propensities", pa.list_(real)),
        ("log_propensity", real),
        ("log_norm", real),
        ("propensity_kind", text),
        ("log_norm_error", real),
        ("displayed", pa.int64()),
        ("latency_us", real),
        # What came of it; joined later.
        ("rewards", pa.list_(pa.float32())),
        ("reward_kind", text),
        ("reward_ts", time),
    ]
    return pa.schema(columns, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


def kind_of(columns: pa.Schema) -> Kind:
    """The kind of a log's item ids; a ValueError where its columns are not those of a log.

    Examples
    --------
    >>> kind_of(schema("str"))
    'str'
    """
    stated = (columns.metadata or {}).get(VERSION_KEY)
    if stated is not None and stated != str(SCHEMA_VERSION).encode():
        raise ValueError(
            f"schema version {stated.decode(errors='replace')!r}; this fastrank reads version"
            f" {SCHEMA_VERSION}"
        )
    # Tools that add a column often lose the metadata; each row states its version, too.
    missing = [name for name in schema("int64").names if name not in columns.names]
    if missing:
        raise ValueError(f"not an event log of fastrank's: no column named {missing[0]}")
    repeated = [name for name in columns.names if columns.names.count(name) > 1]
    if repeated:
        raise ValueError(f"two columns are named {repeated[0]}")
    return _kind_of_ids(columns.field("item_ids").type)


def _kind_of_ids(ids: pa.DataType) -> Kind:
    if pa.types.is_list(ids) or pa.types.is_large_list(ids) or pa.types.is_fixed_size_list(ids):
        if pa.types.is_integer(ids.value_type):
            return "int64"
        if pa.types.is_string(ids.value_type) or pa.types.is_large_string(ids.value_type):
            return "str"
    raise ValueError(f"item_ids: expected lists of int64 or string, got {ids}")


def cast_column(name: str, values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """A column in the type that the schema wants; a ValueError where a value would be lost."""
    if values.type.equals(wanted):
        return values
    try:
        if pa.types.is_struct(wanted) and pa.types.is_struct(values.type):
            # Fields by name, in any order; those that are absent are null.
            have = {values.type.field(i).name for i in range(values.type.num_fields)}
            fields = [wanted.field(i) for i in range(wanted.num_fields)]
            parts = [
                cast_column(field.name, pc.struct_field(values, field.name), field.type)
                if field.name in have
                else pa.nulls(len(values), field.type)
                for field in fields
            ]
            return pa.StructArray.from_arrays(parts, fields=fields, mask=values.is_null())
        return values.cast(wanted)
    except pa.ArrowException as error:
        raise ValueError(f"{name}: expected {wanted}, got {values.type} ({error})") from None


def completed(table: pa.Table | pa.RecordBatch) -> pa.Table:
    """A table with every column of the schema, in its type, and then its own columns.

    Columns that are absent are null, but for `schema_version`, which is this one.

    Raises
    ------
    ValueError
        If there are no item ids, or a column cannot be taken in the schema's type.
    """
    if "item_ids" not in table.schema.names:
        raise ValueError("no column named item_ids")
    wanted = schema(_kind_of_ids(table.schema.field("item_ids").type))
    own = [field for field in table.schema if field.name not in wanted.names]
    columns = pa.schema([*wanted, *own], metadata=wanted.metadata)
    whole = table.combine_chunks() if isinstance(table, pa.Table) else table
    batches = []
    for batch in whole.to_batches() if isinstance(whole, pa.Table) else [whole]:
        arrays = []
        for field in columns:
            if field.name == "schema_version" and field.name not in table.schema.names:
                version = pa.scalar(SCHEMA_VERSION, field.type)
                arrays.append(pa.repeat(version, batch.num_rows))
            elif field.name in table.schema.names:
                arrays.append(cast_column(field.name, batch.column(field.name), field.type))
            else:
                arrays.append(pa.nulls(batch.num_rows, field.type))
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=columns))
    return pa.Table.from_batches(batches, columns)
