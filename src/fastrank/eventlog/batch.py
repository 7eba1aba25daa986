"""LogBatch: the valid rows of a log, as arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.arraytypes import AnyArray, Float32Array, FloatArray, IntArray, Mask
from fastrank.eventlog.columns import (
    Lists,
    Parameters,
    codes_of,
    floats,
    integers,
    is_valid,
    lengths_of,
    plain,
    undictionaried,
)
from fastrank.eventlog.filters import FilterStore
from fastrank.eventlog.hashing import uniforms
from fastrank.eventlog.schema import OLD_PARAMETERS, is_column
from fastrank.expressions import Param, as_params
from fastrank.ids import text_array
from fastrank.rules import AppliedRules, Rules

__all__ = ["LogBatch", "has_rules", "named_rules", "params_of_rules", "taken"]


@dataclass(frozen=True, eq=False, repr=False)
class LogBatch:
    """The n valid rows of one batch, as arrays; K is the longest ranking's length.

    Attributes
    ----------
    lengths : ndarray of int64, shape (n,)
        Places shown: those of the ranking, or `displayed` where that is fewer.
    item_ids : ndarray of int64 or str, shape (n, K)
        The whole ranking; -1 or '' past its end. Of str objects where one id is much longer than
        the others.
    log_propensities : ndarray of float64, shape (n, K)
        Conditional; 0 past `lengths`.
    rewards : ndarray of float64, shape (n, K)
        0 past `lengths`; NaN if not observed.
    observed : ndarray of bool, shape (n,)
        Whether every place shown has its reward.
    user_hash : ndarray of uint64, shape (n,)
        Fixed hash of the user id, or of the request id if there is no user.
    request_hash : ndarray of uint64, shape (n, 2)
    stratum : ndarray of int32, shape (n,)
        Index into `LogReader.strata`.
    caller_seed, is_fallback : ndarray of bool, shape (n,)
    n_eligible : ndarray of int64, shape (n,)
        -1 if unknown.
    k : ndarray of int64, shape (n,)
        Number of places requested.
    columns : dict of str to ndarray of float64
        The extra columns: (n, K) for lists, 0 past `lengths`; (n,) for numbers. NaN for null.
    source : str
        The file.
    rows : ndarray of int64, shape (n,)
        Rows of that file, from 0.
    row_weights : ndarray of float64, shape (n,), or None
        Number of rankings that each row stands for, 1 if it does not say; None if no row says.
    """

    lengths: IntArray
    item_ids: AnyArray
    log_propensities: FloatArray
    rewards: FloatArray
    observed: Mask
    user_hash: npt.NDArray[np.uint64]
    request_hash: npt.NDArray[np.uint64]
    stratum: npt.NDArray[np.int32]
    caller_seed: Mask
    is_fallback: Mask
    n_eligible: IntArray
    k: IntArray
    columns: dict[str, FloatArray]
    source: str
    rows: IntArray
    _coded: pa.RecordBatch
    _filters: FilterStore
    _folder: Path | None
    row_weights: FloatArray | None = None
    _values: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"LogBatch({len(self)} rows of up to {self.item_ids.shape[1]} places)"

    def where(self, rows: Mask) -> LogBatch:
        """Return the marked rows (n,) as a separate batch."""
        kept: dict[str, Any] = {
            each.name: value[rows]
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), np.ndarray)
        }
        kept["columns"] = {name: values[rows] for name, values in self.columns.items()}
        return replace(self, **kept, _coded=taken(self._coded, rows), _values={})

    @cached_property
    def table(self) -> pa.RecordBatch:
        """The n rows, with all columns of schema 2 except those omitted."""
        return plain(self._coded)

    def column(self, name: str) -> Any:
        """One column of `table`, a pyarrow.Array; None if it was omitted."""
        if name not in self._coded.schema.names:
            return None
        return undictionaried(self._coded.column(name))

    @cached_property
    def uniform(self) -> FloatArray:
        """A number in [0, 1) for each row, fixed by its request id; shape (n,)."""
        return uniforms(self.request_hash)

    @cached_property
    def never_shown(self) -> Mask:
        """Rows (n,) that nobody saw: `displayed` is 0."""
        return np.asarray(integers(self._coded.column("displayed")) == 0)

    @cached_property
    def user_ids(self) -> list[str | None]:
        """The user ids as logged; length n."""
        users: list[str | None] = self._coded.column("user_id").to_pylist()
        return users

    @cached_property
    def has_query(self) -> Mask:
        """Whether each row has its own query; shape (n,)."""
        if "query" not in self._coded.schema.names:
            return np.zeros(len(self), np.bool_)
        return is_valid(self._coded.column("query"))

    @cached_property
    def queries(self) -> Float32Array | None:
        """The rows' own queries, (n, d); NaN where a row has none; None if no row has one."""
        if not self.has_query.any():
            return None
        lists = Lists(self._coded.column("query"))
        return lists.padded(int(lists.lengths.max()), np.float32(np.nan))

    def values(self, name: str) -> list[Any]:
        """A column of the schema as Python values, None for null; length n, cached.

        `policy_params`, a struct in schema 1, is built from `law_params` and `user_temperature`.
        """
        found = self._values.get(name)
        if found is None:
            if not is_column(name):
                raise ValueError(f"name: {name!r} is not a column of the schema")
            if name == "policy_params":
                found = [self._old_params(i) for i in range(len(self))]
            else:
                column = self.column(name)
                found = [None] * len(self) if column is None else column.to_pylist()
            self._values[name] = found
        return found

    def _old_params(self, i: int) -> dict[str, float | None] | None:
        listed, factor = self.values("law_params")[i], self.values("user_temperature")[i]
        if listed is None and factor is None:
            return None
        return dict.fromkeys(OLD_PARAMETERS) | self.params(i) | {"user_temperature": factor}

    def texts(self, name: str) -> tuple[IntArray, list[str]]:
        """A column's distinct strings, and the index of each row's: (n,), -1 for null."""
        column = self.column(name)
        # A log of version 1 may have its own column under this name.
        if column is None or not pa.types.is_string(column.type):
            return np.full(len(self), -1, np.int64), []
        codes, names = codes_of(column)
        return codes.astype(np.int64), names

    def params(self, i: int) -> dict[str, float]:
        """Parameters of the law that drew row i, by name, including the user's factor."""
        listed = self.values("law_params")[i] or ()
        return {each["name"]: each["value"] for each in listed}

    def numbers(self, name: str) -> FloatArray:
        """A column of numbers, or a parameter such as ``law_params.epsilon``; NaN for null; (n,).

        ``policy_params.epsilon``, the name in schema 1, is the same.
        """
        name, _, part = name.partition(".")
        if (name, part) == ("policy_params", "user_temperature"):
            name, part = part, ""
        if part and name in ("law_params", "policy_params"):
            return self._parameters.of(part)
        column = self.column(name)
        if column is None:
            return np.full(len(self), np.nan)
        return floats(pc.struct_field(column, part) if part else column)

    @cached_property
    def _parameters(self) -> Parameters:
        return Parameters(self._coded.column("law_params"))

    def is_given(self, name: str) -> Mask:
        """Rows (n,) whose value of a column is not null."""
        column = self.column(name)
        return np.zeros(len(self), np.bool_) if column is None else is_valid(column)

    def value(self, name: str, i: int) -> Any:
        """Row i of `values`."""
        return self.values(name)[i]

    @cached_property
    def first_scores(self) -> FloatArray:
        """Raw score of each row's first place, (n,); NaN if there is none."""
        column = self.column("scores")
        if column is None:
            return np.full(len(self), np.nan)
        there = np.flatnonzero(lengths_of(column) > 0)
        result = np.full(len(self), np.nan)
        result[there] = floats(column.values.take(column.offsets.take(there)))
        return result

    @property
    def evaluated_names(self) -> list[str]:
        """Policies whose log-propensities of the ranking are in some row."""
        column = self._evaluated
        return [] if column is None else sorted(pc.unique(column.keys).to_pylist())

    def evaluated(self, name: str) -> FloatArray:
        """Log-propensities of the rankings under the policy of that name, (n, K).

        -inf for items that it never shows; 0 past `lengths`; NaN in rows without them.
        """
        found: FloatArray = np.full(self.log_propensities.shape, np.nan)
        column = self._evaluated
        if column is not None:
            lists = Lists(pc.map_lookup(column, name, "first"))
            whole = lists.lengths == lengths_of(self._coded.column("log_propensities"))
            width = max(found.shape[1], int(lists.lengths.max(initial=0)))
            found[whole] = lists.padded(width, 0.0)[whole, : found.shape[1]]
        found[np.arange(found.shape[1]) >= self.lengths[:, None]] = 0.0
        return found

    @cached_property
    def _evaluated(self) -> Any:
        """The column; None if it was omitted, or is a column of version 1 with that name."""
        column = self.column("evaluation_log_propensities")
        return column if column is not None and pa.types.is_map(column.type) else None

    def ranked(self, i: int) -> tuple[AnyArray, FloatArray]:
        """Item ids and log-propensities of row i as it was drawn, displayed or not; (m,) each."""
        drawn = np.array(self._coded.column("log_propensities")[i].as_py(), np.float64)
        return self.item_ids[i, : len(drawn)], drawn

    def query(self, i: int) -> Float32Array | None:
        """The query of row i, (d,) float32; None if the user's vector in the model is used."""
        if not self.has_query[i]:
            return None
        return np.array(self._coded.column("query")[i].as_py(), np.float32)

    def exclude(self, i: int) -> AnyArray | None:
        """Ids that row i left out, (m,); None for no filter."""
        return self._filter(i, "exclude")

    def allow(self, i: int) -> AnyArray | None:
        """Ids that row i was restricted to, (m,); None if it was not restricted."""
        return self._filter(i, "allow")

    def bias(self, i: int) -> Float32Array | None:
        """Bias vector of row i in catalog order, (n_items,) float32; None if there is none."""
        name = self._coded.column("bias_id")[i].as_py()
        return None if name is None else self._filters.bias(self._folder, name)

    def rules(self, i: int) -> AppliedRules | None:
        """The rules under which row i was drawn; None if there were none."""
        said = self.value("rules", i)
        if not isinstance(said, dict):  # a log of version 1 may have its own column of this name
            return None
        rules = self._filters.rules(self._folder, said["id"])
        return AppliedRules(rules, params_of_rules(said["params"]))

    @cached_property
    def has_rules(self) -> Mask:
        """Rows (n,) that were drawn under rules, or as a next page."""
        return self.is_given("after") | has_rules(self._coded)

    @cached_property
    def is_sequential(self) -> Mask:
        """Rows (n,) whose rules make a place's law depend on the places above (caps, pins)."""
        found = np.zeros(len(self), np.bool_)
        for rows, rules in self._by_rules():
            found |= rows & rules.is_sequential
        return found

    @cached_property
    def rules_named(self) -> set[str | None]:
        """Ids of the rows' rules; None is among them if some rows have none."""
        names: set[str | None] = {name for _, name in named_rules(self._coded)}
        return names if has_rules(self._coded).all() else {*names, None}

    def _by_rules(self) -> Iterator[tuple[Mask, Rules]]:
        """Rules, each with the rows (n,) under them."""
        for rows, name in named_rules(self._coded):
            yield rows, self._filters.rules(self._folder, name)

    def after(self, i: int) -> AnyArray | None:
        """Ids on the pages before row i, (m,), in order; None if it is no next page."""
        ids = self.value("after", i)
        return self._as_ids(ids) if isinstance(ids, list) else None

    def _as_ids(self, ids: list[Any]) -> AnyArray:
        return np.array(ids, np.int64) if self.item_ids.dtype.kind == "i" else text_array(ids)

    def _filter(self, i: int, role: str) -> AnyArray | None:
        column = self._coded.column(role)
        ids = column[i].as_py()
        if ids is not None:
            return self._as_ids(ids)
        names = self._coded.column("filter_id")[i].as_py()
        if names is None or names[role] is None:
            return None
        return self._filters.ids(self._folder, names[role])


def named_rules(batch: pa.RecordBatch) -> Iterator[tuple[Mask, str]]:
    """Ids of the rules that rows name, each with those rows (n,)."""
    if has_rules(batch).any():
        codes, names = codes_of(pc.struct_field(batch.column("rules"), "id"))
        for code, name in enumerate(names):
            if name is not None:
                yield codes == code, name


def params_of_rules(text: str | None) -> dict[str, Param]:
    """Parameters from JSON; ValueError if it contains anything else."""
    try:
        return as_params(None if text is None else json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def has_rules(batch: pa.RecordBatch) -> Mask:
    """Rows (n,) that were drawn under rules."""
    # A log of version 1 may have its own column under this name.
    if "rules" in batch.schema.names and pa.types.is_struct(batch.schema.field("rules").type):
        return is_valid(batch.column("rules"))
    return np.zeros(batch.num_rows, np.bool_)


def taken(batch: pa.RecordBatch, rows: Mask) -> pa.RecordBatch:
    return batch.filter(pa.array(rows))
