"""Convert tables of any version of the schema, also with absent columns, to version 2.

Version 1 named an inference type, with a struct of the four parameters of that time. Version 2 has
separate columns for the law, its sampler and any parameters. Tools combine files of both into one
table; then each row has one or the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.eventlog.columns import codes_of, floats, is_valid
from fastrank.eventlog.schema import (
    OLD_PARAMETERS,
    SCHEMA_VERSION,
    UNREAD,
    VERSION_KEY,
    IdKind,
    cast_column,
    kind_of_ids,
    schema,
)
from fastrank.policies import law_name, sampler_name

__all__ = ["completed", "foreign", "refuse_foreign", "upgraded"]


def foreign(columns: pa.Schema, kind: IdKind) -> list[str]:
    """Columns of a version 1 table that are its own, although version 2 uses the name.

    A column that `LogWriter.append` leaves null counts as version 2's if the types match.
    """
    stated = (columns.metadata or {}).get(VERSION_KEY)
    if "law_params" in columns.names or stated == str(SCHEMA_VERSION).encode():
        return []
    old, wanted = schema(kind, 1).names, schema(kind)
    return [
        each.name
        for each in columns
        if each.name in wanted.names
        and each.name not in old
        and not (each.name in UNREAD and _alike(each.type, wanted.field(each.name).type))
    ]


def refuse_foreign(columns: pa.Schema, kind: IdKind) -> None:
    """Raise ValueError if `foreign` finds any: version 2 could not keep them."""
    for name in foreign(columns, kind):
        raise ValueError(f"{name}: schema 2 has another column of this name; rename it")


def _alike(own: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(own):
        own = own.value_type
    texts = (pa.types.is_string, pa.types.is_large_string)
    return bool(
        own.equals(wanted)
        or pa.types.is_null(own)
        or (any(each(own) for each in texts) and pa.types.is_string(wanted))
        or (pa.types.is_floating(own) and pa.types.is_floating(wanted))
        or (pa.types.is_integer(own) and pa.types.is_integer(wanted))
    )


def completed(table: pa.Table | pa.RecordBatch, apart: Sequence[str] = ()) -> pa.Table:
    """A table with every column of the schema, in its type, followed by its own columns.

    Absent columns are null, except those that follow from others: `schema_version`, `law`,
    `sampler`, `item_kind` and `k`. Columns to be kept `apart` count as its own, and `foreign`
    columns are left out.

    Raises
    ------
    ValueError
        If there are no item ids, or a column cannot be converted to the schema's type.
    """
    if "item_ids" not in table.schema.names:
        raise ValueError("no column named item_ids")
    kind = kind_of_ids(table.schema.field("item_ids").type)
    wanted, old = schema(kind), schema(kind, 1)
    known = {*wanted.names, *old.names} - set(apart)
    left_out = set(foreign(table.schema, kind)) - set(apart)
    own = [field for field in table.schema if field.name not in known]
    columns = pa.schema(
        [*(field for field in wanted if field.name in known), *own], metadata=wanted.metadata
    )
    whole = table.combine_chunks() if isinstance(table, pa.Table) else table
    batches = []
    for batch in whole.to_batches() if isinstance(whole, pa.Table) else [whole]:
        arrays = {}
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            if name in left_out:
                continue
            if name in known:
                of_schema = wanted if name in wanted.names else old
                values = cast_column(name, values, of_schema.field(name).type)
            arrays[name] = values
        upgraded(arrays, batch.num_rows, kind)
        found = [
            cast_column(field.name, arrays[field.name], field.type)
            if field.name in arrays
            else pa.nulls(batch.num_rows, field.type)
            for field in columns
        ]
        batches.append(pa.RecordBatch.from_arrays(found, schema=columns))
    return pa.Table.from_batches(batches, columns)


def upgraded(columns: dict[str, pa.Array], rows: int, kind: IdKind) -> None:
    """Convert columns to version 2 in place, by name and in the schema's types.

    Texts may be dictionaries. Columns that are the same in both versions are left alone.
    """
    version = columns.get("schema_version")
    if version is None:
        columns["schema_version"] = pa.repeat(pa.scalar(SCHEMA_VERSION, pa.int16()), rows)
    elif pc.any(pc.equal(version, 1)).as_py():
        columns["schema_version"] = pc.replace_with_mask(
            version,
            pc.fill_null(pc.equal(version, 1), False),
            pa.scalar(SCHEMA_VERSION, pa.int16()),
        )
    old = columns.pop("policy_params", None)
    if old is not None and old.null_count < rows:
        *own, factor = (pc.struct_field(old, name) for name in OLD_PARAMETERS)
        _fill(columns, "law_params", _listed(old, own))
        _fill(columns, "user_temperature", factor)
    if "policy_name" in columns:
        for name, known in (("law", law_name), ("sampler", sampler_name)):
            _fill_text(columns, name, _mapped(columns["policy_name"], known))
    if "item_ids" in columns:
        places = pc.list_value_length(columns["item_ids"]).cast(pa.int64())
        _fill(columns, "k", pc.max_element_wise(places, 1))  # at least one, for an empty ranking
    _fill_text(columns, "item_kind", _dictionary(np.zeros(rows, np.int64), [kind]))


def _fill(columns: dict[str, pa.Array], name: str, values: pa.Array) -> None:
    """Fill in values where the column has none."""
    given = columns.get(name)
    if given is None or given.null_count == len(given):
        columns[name] = values
    elif given.null_count:
        columns[name] = pc.if_else(given.is_valid(), given, values)


def _fill_text(columns: dict[str, pa.Array], name: str, values: pa.DictionaryArray) -> None:
    given = columns.get(name)
    if given is None or given.null_count == len(given):
        columns[name] = values
    elif given.null_count:
        codes, texts = codes_of(given)
        others, more = codes_of(values)
        merged = np.where(codes >= 0, codes, np.where(others >= 0, others + len(texts), -1))
        columns[name] = _dictionary(merged, [*texts, *more])


def _mapped(
    names: pa.StringArray | pa.DictionaryArray, known: Callable[[str], str | None]
) -> pa.DictionaryArray:
    """Apply a function to each text."""
    codes, texts = codes_of(names)
    found = [None if text is None else known(text) for text in texts]
    places = {text: place for place, text in enumerate(dict.fromkeys(t for t in found if t))}
    moved = np.array([-1 if text is None else places.get(text, -1) for text in found] + [-1])
    return _dictionary(moved[codes], list(places))


def _dictionary(codes: np.ndarray, texts: list[str]) -> pa.DictionaryArray:
    indices = pa.array(np.maximum(codes, 0), pa.int32(), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(texts, pa.string()))


def _listed(old: pa.StructArray, parts: list[pa.Array]) -> pa.ListArray:
    """The parameters of a struct, as a list by name; null where the struct is."""
    names = OLD_PARAMETERS[: len(parts)]
    there = np.stack([is_valid(part) for part in parts], axis=1) & is_valid(old)[:, None]
    values = np.stack([floats(part) for part in parts], axis=1)
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    flat = pa.StructArray.from_arrays(
        [
            pa.array(np.array(names)[np.nonzero(there)[1]], pa.string()),
            pa.array(values[there], pa.float64()),
        ],
        fields=list(schema("int64").field("law_params").type.value_type),
    )
    return pa.ListArray.from_arrays(
        pa.array(offsets),
        flat,
        type=schema("int64").field("law_params").type,
        mask=old.is_null() if old.null_count else None,
    )
