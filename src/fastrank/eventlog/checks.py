"""What is wrong with rows: a wrong one is set aside under its reason, the others become arrays.

A row is checked against itself alone, but for its request id, which must not have come before. No
value is clipped to make it valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.arraytypes import AnyArray, FloatArray, Hashes, IntArray, Mask
from fastrank.eventlog.batch import (
    LogBatch,
    has_rules,
    named_rules,
    params_of_rules,
    taken,
)
from fastrank.eventlog.columns import (
    MAX_PARAMETERS,
    Lists,
    Parameters,
    among,
    booleans,
    codes_of,
    floats,
    integers,
    is_empty,
    is_valid,
    lengths_of,
    padded_numbers,
    repeats,
)
from fastrank.eventlog.contents import content_hashes
from fastrank.eventlog.filters import FilterStore
from fastrank.eventlog.hashing import SeenHashes, text_hashes
from fastrank.eventlog.report import DUPLICATE, Flaws, ReadReport
from fastrank.eventlog.schema import (
    BEYOND,
    CLIENT_SOURCES,
    KNOWN_RNG_VERSIONS,
    LARGEST,
    OLD_PARAMETERS,
    PROPENSITY_KINDS,
    REWARD_KINDS,
    SCHEMA_VERSION,
    SEED_SOURCES,
    IdKind,
)
from fastrank.eventlog.strata import Strata
from fastrank.ids import PADDING
from fastrank.policies import PARAMETERS

__all__ = ["Checks", "above_0"]


# Larger than this above 0, or larger errors than this, are not rounding.
_TOLERANCE = 1e-9
_EPSILON = float(np.finfo(np.float64).eps)
_SINGLE = float(np.finfo(np.float32).eps)
_MAX_CELLS = 1 << 23  # of a padded array; a batch with one very long ranking is split


class Checks:
    """Checks the rows of one log, batch after batch.

    Parameters
    ----------
    report : ReadReport
        Counts and names the rows that are set aside.
    filters : FilterStore
    columns : sequence of str
        The log's own columns, of numbers or of lists of numbers.
    keep_all : bool
        Whether batches keep columns that were not requested.

    Attributes
    ----------
    strata : Strata
    """

    def __init__(
        self, report: ReadReport, filters: FilterStore, columns: Sequence[str], keep_all: bool
    ) -> None:
        self.strata = Strata()
        self._report = report
        self._filters = filters
        self._columns = columns
        self._keep_all = keep_all
        self._seen = SeenHashes()

    def believed(
        self, kind: IdKind, source: str, folder: Path | None, start: int, batch: pa.RecordBatch
    ) -> Iterator[LogBatch]:
        """Return the valid rows of a batch.

        Parameters
        ----------
        kind : {"int64", "str"}
            Type of the item ids.
        source, start
            For the report: the file, and the index of the batch's first row.
        folder : Path or None
            Folder of the filters that the rows name.
        batch : pyarrow.RecordBatch
            In the schema's columns and types.
        """
        rows = start + np.arange(batch.num_rows)
        flaws = Flaws(self._report, source, rows)
        self._check_structure(flaws, batch, folder)
        if flaws.any:
            batch, rows = taken(batch, flaws.sound), rows[flaws.sound]
            flaws.settle()
        width = max(1, batch.num_rows and int(lengths_of(batch.column("item_ids")).max()))
        step = max(1, _MAX_CELLS // (width * _cell(kind, batch)))
        for at in range(0, batch.num_rows, step):
            part = batch if step >= batch.num_rows else batch.slice(at, step)
            result = self._arrays(kind, source, folder, rows[at : at + step], part)
            if len(result):
                yield result

    def _check_structure(self, flaws: Flaws, batch: pa.RecordBatch, folder: Path | None) -> None:
        """Check everything that does not need the lists."""
        column = batch.column
        version = column("schema_version")
        flaws.mark(integers(version) != SCHEMA_VERSION, "unknown schema version", version)
        rng = column("rng_version")
        known = np.isin(integers(rng, KNOWN_RNG_VERSIONS[0]), list(KNOWN_RNG_VERSIONS))
        flaws.mark(~known, "unknown rng version", rng)
        flaws.mark(is_empty(column("request_id")), "no request id")
        flaws.mark(~is_valid(column("ts")), "no time")
        flaws.mark(is_empty(column("policy_name")), "no policy name")
        _check_parameters(flaws, column("law_params"))
        factor = column("user_temperature")
        values = floats(factor)
        bad = is_valid(factor) & ~(np.isfinite(values) & (values > 0.0))
        flaws.mark(bad, "policy parameter user_temperature", values)
        kinds, sources = column("propensity_kind"), column("seed_source")
        flaws.mark(~among(kinds, PROPENSITY_KINDS), "unknown propensity kind", kinds)
        error = floats(column("log_norm_error"))
        sane = np.isfinite(error) & (error >= 0.0)
        sane |= np.isnan(error) & among(kinds, ("exact",)) & ~is_valid(column("log_norm_error"))
        flaws.mark(~sane, "log_norm_error", error)
        flaws.mark(
            is_valid(sources) & ~among(sources, SEED_SOURCES), "unknown seed source", sources
        )
        items, propensities = column("item_ids"), column("log_propensities")
        flaws.mark(~is_valid(items), "no item list")
        lengths = lengths_of(items)
        flaws.mark(
            ~is_valid(propensities) | (lengths_of(propensities) != lengths),
            "list lengths differ",
            "log_propensities",
        )
        there = [n for n in ("scores", "is_candidate") if n in batch.schema.names]
        optional = ["rewards", *there]
        extra = [n for n in self._columns if pa.types.is_nested(batch.schema.field(n).type)]
        for name in (*optional, *extra):
            values = column(name)
            different = is_valid(values) & (lengths_of(values) != lengths)
            flaws.mark(different, "list lengths differ", name)
        if "tail_log_weight" in batch.schema.names:
            weight = floats(column("tail_log_weight"))
            wrong = is_valid(column("tail_log_weight")) & ~np.isfinite(weight)
            flaws.mark(wrong, "tail_log_weight", weight)
        if "row_weight" in batch.schema.names:
            weight = floats(column("row_weight"))
            wrong = is_valid(column("row_weight")) & ~(
                (weight >= 1 / LARGEST) & (weight <= LARGEST)
            )
            flaws.mark(wrong, "row_weight", weight)
        k = integers(column("k"), 0)
        flaws.mark(k < 1, "no k", k)
        flaws.mark(lengths > k, "more items than k", lengths)
        displayed = integers(column("displayed"), 0)
        wrong = (displayed < 0) | (displayed > lengths)
        flaws.mark(is_valid(column("displayed")) & wrong, "displayed", displayed)
        eligible = column("n_eligible")
        limit = integers(eligible)
        flaws.mark((limit >= 0) & (limit < lengths), "more items than eligible", eligible)
        # It was cut somewhere: its propensity would be that of another, shorter ranking.
        short = (limit >= 0) & (lengths < np.minimum(k, limit))
        short &= ~self._check_rules(flaws, batch, folder)
        flaws.mark(short, "fewer items than k", lengths)
        total = column("log_propensity")
        flaws.mark(~is_valid(total), "no log_propensity")
        self._check_filters(flaws, batch, folder)

    def _check_rules(self, flaws: Flaws, batch: pa.RecordBatch, folder: Path | None) -> Mask:
        """Check that named rules exist; return the rows (n,) that rules may shorten."""
        early = np.zeros(batch.num_rows, np.bool_)
        there = has_rules(batch)
        if not there.any():
            return early
        named = np.zeros(batch.num_rows, np.bool_)
        for rows, name in named_rules(batch):
            named |= rows
            try:
                early |= rows & self._filters.rules(folder, name).may_end_early
            except ValueError as error:
                flaws.mark(rows, "rules not at hand", str(error))
        flaws.mark(there & ~named, "rules not at hand", "they have no id")
        codes, texts = codes_of(pc.struct_field(batch.column("rules"), "params"))
        for code, text in enumerate(texts):
            try:
                params_of_rules(text)
            except ValueError as error:
                flaws.mark(codes == code, "params of rules", str(error))
        return early

    def _check_filters(self, flaws: Flaws, batch: pa.RecordBatch, folder: Path | None) -> None:
        """Check that every named filter and bias exists and matches its name, a hash."""
        named = batch.column("filter_id")
        for column, load in (
            (pc.struct_field(named, "exclude"), self._filters.ids),
            (pc.struct_field(named, "allow"), self._filters.ids),
            (batch.column("bias_id"), self._filters.bias),
        ):
            if column.null_count == len(column):
                continue
            codes, names = codes_of(column)
            for code, name in enumerate(names):
                try:
                    load(folder, name)
                except ValueError as error:
                    flaws.mark(codes == code, "filter not at hand", str(error))
        for role in ("exclude", "allow", "after"):
            if role not in batch.schema.names:
                continue
            values = batch.column(role)
            if not pa.types.is_list(values.type):  # a log's own column, in version 1
                continue
            if values.null_count < len(values) and values.values.null_count:
                lists = Lists(values)
                flaws.mark(lists.any_of(lists.is_null), f"{role}: null id")

    def _arrays(
        self,
        kind: IdKind,
        source: str,
        folder: Path | None,
        rows: IntArray,
        batch: pa.RecordBatch,
    ) -> LogBatch:
        """The batch's arrays, without the rows whose lists are wrong."""
        flaws = Flaws(self._report, source, rows)
        n = batch.num_rows
        ids = Lists(batch.column("item_ids"))
        lengths = ids.lengths
        width = int(lengths.max(initial=0))
        if ids.is_null is not None:
            flaws.mark(ids.any_of(ids.is_null), "null item id")
        item_ids, codes, words = ids.padded_ids(kind, width)
        flaws.mark(repeats(codes, lengths, width), "repeated item")

        lists = Lists(batch.column("log_propensities"))
        propensities: FloatArray = lists.padded(width, 0.0)
        flaws.mark(_any(~np.isfinite(propensities)), "log-propensity not finite")
        flaws.mark(_any(above_0(propensities)), "positive log-propensity")
        stated = floats(batch.column("log_propensity"))
        flaws.mark(_off(propensities, stated, lengths), "sum of log-propensities", stated)

        displayed = integers(batch.column("displayed"), np.iinfo(np.int64).max)
        shown = np.minimum(lengths, displayed)
        beyond = None
        if (shown < width).any():
            beyond = np.arange(width) >= shown[:, None]
        rewards, observed = _rewards(flaws, batch.column("rewards"), width, beyond)
        if "query" in batch.schema.names and batch.column("query").null_count < n:
            queries = Lists(batch.column("query"))
            if not np.isfinite(queries.flat).all():
                flaws.mark(queries.any_of(~np.isfinite(queries.flat)), "query not finite")
        kinds = batch.column("reward_kind") if "reward_kind" in batch.schema.names else None
        if kinds is not None and kinds.null_count < n:
            known = among(kinds, REWARD_KINDS) | ~is_valid(kinds)
            flaws.mark(~known, "unknown reward kind", kinds)
            below = (np.nan_to_num(rewards) < 0.0).any(axis=1)
            flaws.mark(below & among(kinds, ("positives",)), "negative reward", kinds)
        if beyond is not None:
            propensities = np.where(beyond, 0.0, propensities)
        columns = {
            name: padded_numbers(batch.column(name), width, beyond) for name in self._columns
        }
        requests = text_hashes(batch.column("request_id"))
        users = batch.column("user_id")
        user_hash = text_hashes(users)[:, 0]
        nobody = is_empty(users)
        if nobody.any():
            user_hash = np.where(nobody, requests[:, 0], user_hash)
        made = {
            "lengths": shown,
            "item_ids": item_ids,
            "log_propensities": propensities,
            "rewards": rewards,
            "observed": observed,
            "user_hash": user_hash,
            "request_hash": requests,
            "caller_seed": among(batch.column("seed_source"), ("caller",)),
            "is_fallback": booleans(batch.column("is_fallback")),
            "n_eligible": integers(batch.column("n_eligible"), -1),
            "k": integers(batch.column("k")),
            "rows": rows,
        }
        if "row_weight" in batch.schema.names and batch.column("row_weight").null_count < n:
            made["row_weights"] = np.nan_to_num(floats(batch.column("row_weight")), nan=1.0)
        if flaws.any:
            keep = flaws.sound
            batch, words = taken(batch, keep), words[keep]
            made, columns = _rows_of(made, keep), _rows_of(columns, keep)
            flaws.settle()
        made["stratum"] = self.strata.of(batch, made["is_fallback"])
        again = self._repeated(source, batch, made, columns, words)
        if again.any():
            batch = taken(batch, ~again)
            made, columns = _rows_of(made, ~again), _rows_of(columns, ~again)
        kept = [name for name in batch.schema.names if name not in self._columns]
        return LogBatch(
            columns=columns,
            source=source,
            _coded=batch if self._keep_all else batch.select(kept),
            _filters=self._filters,
            _folder=folder,
            **made,
        )

    def _repeated(
        self,
        source: str,
        batch: pa.RecordBatch,
        made: Mapping[str, AnyArray],
        columns: Mapping[str, FloatArray],
        words: Hashes,
    ) -> Mask:
        """Rows whose request id came before.

        One that says the same as the first is only counted; of two that contradict each other
        nobody knows which is true, and the later is set aside.
        """
        laws = np.array(self.strata.hashes, np.uint64)[made["stratum"]]
        contents = content_hashes(batch, made, columns, words, laws)
        again, otherwise = self._seen.add(made["request_hash"], contents)
        flaws = Flaws(self._report, source, made["rows"])
        flaws.mark(otherwise, DUPLICATE, batch.column("request_id"))
        flaws.settle()
        self._report.equal_duplicates += int(np.count_nonzero(again & ~otherwise))
        if again.any() and "request_id_source" in batch.schema.names:
            chosen = among(batch.column("request_id_source"), CLIENT_SOURCES)
            self._report.client_ids_repeated += int(np.count_nonzero(again & chosen))
            self._report.client_ids_contradicted += int(np.count_nonzero(otherwise & chosen))
        return again


def _rows_of(arrays: Mapping[str, AnyArray], rows: Mask) -> dict[str, AnyArray]:
    return {name: values[rows] for name, values in arrays.items()}


def _cell(kind: IdKind, batch: pa.RecordBatch) -> int:
    """Memory of a padded id, in units of 8 bytes."""
    if kind == "int64":
        return 1
    lengths = pc.utf8_length(batch.column("item_ids").values)
    longest, mean = pc.max(lengths).as_py() or 1, pc.mean(lengths).as_py() or 1.0
    # An upper limit: a text that is much longer than the others does not widen them.
    return max(1, min(longest, int(PADDING * mean)) // 2)


def _check_parameters(flaws: Flaws, column: pa.ListArray) -> None:
    """Check that each has a distinct name and a finite value."""
    found = Parameters(column)
    bad = np.flatnonzero(
        (found.codes < 0) | ~np.isfinite(found.values) | found.repeated
        | (found.places >= MAX_PARAMETERS)
    )  # fmt: skip
    if not len(bad):
        return
    names = dict.fromkeys((*PARAMETERS, *OLD_PARAMETERS))
    known = {name: found.names.index(name) for name in names if name in found.names}
    for name, code in [*known.items(), ("", None)]:
        mine = found.codes[bad] == code if code is not None else np.ones(len(bad), np.bool_)
        rows = found.rows[bad[mine]]
        wrong, values = np.zeros(len(column), np.bool_), np.full(len(column), np.nan)
        wrong[rows], values[rows] = True, found.values[bad[mine]]
        flaws.mark(wrong, f"policy parameter {name}".rstrip(), values)


def _rewards(
    flaws: Flaws, column: pa.ListArray, width: int, beyond: Mask | None
) -> tuple[FloatArray, Mask]:
    n = len(column)
    if column.null_count == n:
        rewards = np.full((n, width), np.nan)
        unobserved = np.ones((n, width), np.bool_)
    else:
        lists = Lists(column)
        bad = ~np.isfinite(lists.flat)
        if lists.is_null is not None:
            bad &= ~lists.is_null
        if bad.any():
            flaws.mark(lists.any_of(bad), "reward not finite")
        with np.errstate(invalid="ignore"):
            beyond_all = np.abs(lists.flat) > LARGEST
        if beyond_all.any():
            flaws.mark(lists.any_of(beyond_all), BEYOND)
        rewards = lists.padded(width, np.nan)
        unobserved = np.isnan(rewards)
    if beyond is not None:
        rewards = np.where(beyond, 0.0, rewards)
        unobserved &= ~beyond
    return rewards, ~_any(unobserved)


def above_0(log_propensities: FloatArray) -> Mask:
    """Rows with log-propensities above 0 by more than rounding, in float32 if they are float32."""
    above = np.asarray(log_propensities > _TOLERANCE)
    if above.any():
        above &= ~((log_propensities <= 8 * _SINGLE) & _are_single(log_propensities))
    return above


def _off(propensities: FloatArray, stated: FloatArray, lengths: IntArray) -> Mask:
    """Rows whose stated sum differs from that of their log-propensities by more than rounding."""
    with np.errstate(invalid="ignore", over="ignore"):
        total = propensities @ np.ones(propensities.shape[1])  # faster than sum() along short rows
        # In long rankings at tiny temperatures the order of summation alone changes the sum.
        slack = _TOLERANCE + _EPSILON * np.maximum(lengths, 1) * np.abs(total)
        off = np.asarray(~(np.abs(total - stated) <= slack))
        rows = np.flatnonzero(off)
        if len(rows):  # terms or sum may have been stored as float32, and summed in it
            terms, total, stated = propensities[rows], total[rows], stated[rows]
            single = _are_single(terms).all(axis=1) | _are_single(stated)
            slack = _TOLERANCE + _SINGLE * (lengths[rows] + 1) * np.abs(terms).sum(axis=1)
            off[rows] = ~(single & (np.abs(total - stated) <= slack))
    return off


def _are_single(values: FloatArray) -> Mask:
    """Whether each value is a float32; by chance one in 500 million other values is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values.astype(np.float32) == values)


def _any(cells: Mask) -> Mask:
    """Rows with a marked cell; usually there are none, which is checked first."""
    if not cells.any():
        return np.zeros(len(cells), np.bool_)
    return np.asarray(cells.any(axis=1), np.bool_)
