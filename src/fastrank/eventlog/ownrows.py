"""Rows of a foreign table as rankings: flat arrays, checked, and put into the log's schema.

A ranking with any error is set aside, once, under the first reason found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.arraytypes import FloatArray, IntArray, Mask
from fastrank.eventlog.columns import floats, is_valid, lengths_of
from fastrank.eventlog.hashing import row_hashes
from fastrank.eventlog.owncells import TIME, as_numbers, as_texts, as_times, is_whole
from fastrank.eventlog.owncolumns import Columns, ColumnsError, Shape, expected
from fastrank.eventlog.report import ReadReport
from fastrank.eventlog.schema import BEYOND, LARGEST
from fastrank.eventlog.sources import Piece, plain_array
from fastrank.eventlog.upgrade import completed
from fastrank.inputs import shown

__all__ = ["Reading"]

_TABLE_ROWS = 65_536
_NAMED = 5  # most places kept for each reason
_LOGGED_BY = "logging"  # if the table does not say
_TIMES = "\0times"  # a column with the parsed times
_EPOCH = pa.scalar(0, TIME)
# Values above 1, or logarithms above 0, by no more than this are rounding.
_TOLERANCE = 1e-9
_TOLERANCE_OF_FLOAT32 = 1e-6
# A value that must be certain may be written with few digits.
_CERTAIN = 1e-3


@dataclass(slots=True)
class _Flat:
    """n rankings, and the m items that they show, one after another.

    Attributes
    ----------
    lengths : ndarray of int64, shape (n,)
    rows : ndarray of int64, shape (m,)
        Rows of the table that the items come from.
    first_rows : ndarray of int64, shape (n,)
        Of each ranking.
    of_items : dict of str to pyarrow.Array
        Columns, m long.
    of_rankings : dict of str to pyarrow.Array
        Columns, n long.
    request : pyarrow.Array or None
    """

    lengths: IntArray
    rows: IntArray
    first_rows: IntArray
    of_items: dict[str, pa.Array] = field(default_factory=dict)
    of_rankings: dict[str, pa.Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> IntArray:
        return np.cumsum(self.lengths) - self.lengths

    @property
    def owners(self) -> IntArray:
        """Which ranking each item is of, (m,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def places(self) -> IntArray:
        """Where in its ranking each item stands, from 0, (m,)."""
        return np.arange(len(self.rows)) - np.repeat(self.starts, self.lengths)


class _Flaws:
    """Which rankings are wrong, and why; the first reason counts."""

    def __init__(self, flat: _Flat) -> None:
        self._flat = flat
        self._owners = flat.owners
        self.sound: Mask = np.ones(len(flat), np.bool_)
        self._found: list[tuple[str, IntArray, list[str]]] = []

    def items(self, wrong: Mask, reason: str, name: str = "", values: Any = None) -> None:
        """Set rankings aside for items (m,); `values` are what to quote, of the column `name`."""
        at = np.flatnonzero(wrong)
        if len(at):
            owners, first = np.unique(self._owners[at], return_index=True)
            self._mark(owners, self._flat.rows, at[first], reason, name, values)

    def rankings(self, wrong: Mask, reason: str, name: str = "", values: Any = None) -> None:
        """Set rankings (n,) aside."""
        at = np.flatnonzero(wrong)
        if len(at):
            self._mark(at, self._flat.first_rows, at, reason, name, values)

    def _mark(
        self, owners: IntArray, rows: IntArray, at: IntArray, reason: str, name: str, values: Any
    ) -> None:
        fresh = self.sound[owners]
        if not fresh.any():
            return
        self.sound[owners] = False
        at = at[fresh]
        details = [
            name if values is None else f"{name}: {_quoted(values, i)}"
            for i in at[:_NAMED].tolist()
        ]
        self._found.append((reason, rows[at], details))

    def settle(self, report: ReadReport, places: _Places) -> None:
        """Tell the report."""
        for reason, rows, details in self._found:
            report.aside(reason, len(rows))
            for row, detail in zip(rows.tolist(), details, strict=False):
                report.name(reason, *places.of(row), detail)


def _quoted(values: Any, i: int) -> str:
    if callable(values):
        return str(values(i))
    value = values[i]
    return shown(value.as_py() if isinstance(value, pa.Scalar) else value.item())


class _Places:
    """Where rows stand that are numbered through all sources."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._first: list[int] = []  # row of its source
        self._starts: list[int] = []  # the same row, as it is numbered here
        self._kept: IntArray | None = None
        self._times: IntArray | None = None
        self.rows = 0

    def keep(self, rows: IntArray, times: IntArray) -> None:
        """From now on rows are numbered as these are, which stand for so many each."""
        self._kept, self._times = rows, times

    def standing_for(self, rows: IntArray) -> int:
        """How many rows these are with those that say the same."""
        return len(rows) if self._times is None else int(self._times[rows].sum())

    def add(self, name: str, first: int, count: int) -> None:
        """Rows that come next."""
        self._names.append(name)
        self._first.append(first)
        self._starts.append(self.rows)
        self.rows += count

    def of(self, row: int) -> tuple[str, int]:
        """The source of a row, and its number there."""
        if self._kept is not None:
            row = int(self._kept[row])
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._names[at], self._first[at] + row - self._starts[at]


class _Whole:
    """Columns that hold nothing of what they should from end to end, whatever part is looked at."""

    def __init__(self) -> None:
        self._right: set[tuple[str, str]] = set()
        self._wrong: dict[tuple[str, str], str] = {}

    def see(self, argument: str, kind: str, is_right: bool, wrong: str | None) -> None:
        """A part that holds some of a kind of values, or, if it does not, what it has instead."""
        if is_right:
            self._right.add((argument, kind))
        elif wrong is not None:
            self._wrong.setdefault((argument, kind), wrong)

    def settle(self) -> None:
        """A ColumnsError where there are such columns."""
        wrong = [
            (argument, w)
            for (argument, k), w in self._wrong.items()
            if (argument, k) not in self._right
        ]
        if wrong:
            raise ColumnsError(wrong)


class Reading:
    """How to make tables of the log of somebody's rows.

    Parameters
    ----------
    named : Columns
        Checked against the table.
    shape : Shape
    carried : mapping of str to str
        Further columns, and what they are called in the tables.
    outputs : mapping of str or None to str
        Columns of evaluation policies' propensities, likewise; None is the uniform policy.
    """

    def __init__(
        self,
        named: Columns,
        shape: Shape,
        carried: Mapping[str, str],
        outputs: Mapping[str | None, str],
    ) -> None:
        self.shape = shape
        self._named = named
        self._carried = carried
        self._outputs = outputs
        self._labels = {each: label for label, each in reversed([*named.policies.items()])}
        self._is_log = named.propensity is None
        self._of_ranking = named.propensity_of == "ranking"

    @property
    def words(self) -> set[str]:
        """Columns of items, ids, names and times."""
        named = self._named
        found = (named.item, named.request, named.user, named.time, named.logged_by)
        return {column for column in found if column is not None}

    @property
    def numbers(self) -> set[str]:
        """Columns that hold numbers."""
        return {column for _, column in self._named.named} - self.words

    def tables(self, pieces: Iterable[Piece], report: ReadReport) -> Iterator[pa.Table]:
        """Tables of what is right in the pieces; what is not, the report is told.

        A ColumnsError after the last says which columns held nothing of what they should.
        """
        places, whole = _Places(), _Whole()
        gathered: list[dict[str, pa.Array]] = []
        for name, first, batch in pieces:
            start = places.rows
            places.add(name, first, batch.num_rows)
            if not batch.num_rows:
                continue
            with _naming(f"{name}: from row {first} on"):
                columns = {n: plain_array(batch.column(n)) for n in batch.schema.names}
                _check_texts(columns)
                self._parse(columns, report, whole)
                if self.shape.is_grouped:
                    gathered.append(columns)
                else:
                    listed = self._listed(columns, start, report, places)
                    yield from self._made(listed, report, places, whole)
        if gathered:
            with _naming("the table"):
                parts = [pa.table(columns) for columns in gathered]
                gathered.clear()
                table = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
                columns = {n: plain_array(table.column(n)) for n in table.column_names}
                del parts, table
                grouped = self._grouped(columns, report, places)
                yield from self._made(grouped, report, places, whole)
        whole.settle()

    def _parse(self, columns: dict[str, pa.Array], report: ReadReport, whole: _Whole) -> None:
        """Make numbers of texts, and `_TIMES`; what is none stands in a column of its own."""
        words = self.words
        for argument, name in self._named.named:
            values = columns[name]
            if argument == "time":
                parsed, wrong, unzoned = as_times(values)
                columns[_TIMES] = parsed
                report.times_without_zone += unzoned
                if [each for _, each in self._named.named].count(name) == 1:
                    del columns[name]
            elif name in words or not pa.types.is_string(values.type):
                continue
            else:
                columns[name], wrong = as_numbers(values)
                parsed = columns[name]
            first = None
            if wrong.any():
                texts = columns[_unread(name)] = pc.if_else(
                    pa.array(wrong), values.cast(pa.string()), None
                )
                kind = "times" if argument == "time" else "numbers"
                said = shown(texts[int(np.argmax(wrong))].as_py())
                first = f"column {name!r} holds no {kind}: {said}; expected {expected(argument)}"
            whole.see(argument, "kind", parsed.null_count < len(parsed), first)

    # ---- Rows as rankings ----------------------------------------------------------------------

    def _grouped(self, column: dict[str, pa.Array], report: ReadReport, places: _Places) -> _Flat:
        """A row an item: rows of a request together, in the order of their positions."""
        named = self._named
        request = as_texts(column[named.request or ""])
        codes, names = _coded(request)
        nobody = codes < 0
        if named.position is not None:
            kept, times = _once(column, nobody)
            if len(kept) < places.rows:  # delivered twice, as logs are; without places who knows
                column = {name: values.take(pa.array(kept)) for name, values in column.items()}
                request, codes, nobody = request.take(pa.array(kept)), codes[kept], nobody[kept]
                places.keep(kept, times)
        # Rows without a request are rankings of their own, and wrong.
        codes = np.where(nobody, len(names) + np.cumsum(nobody) - 1, codes)
        position = None
        if named.position is None:
            order = np.argsort(codes, kind="stable")
        else:
            position = floats(column[named.position])
            order = np.lexsort((position, codes))
        lengths = np.bincount(codes)
        flat = _Flat(lengths, order, order[np.cumsum(lengths) - lengths])
        indices = pa.array(order)
        sorted_ = {name: values.take(indices) for name, values in column.items()}
        firsts = pa.array(flat.starts)
        flaws = _Flaws(flat)
        flaws.rankings(nobody[flat.first_rows], "no request id")
        self._unread(sorted_, flaws.items)
        if position is not None:
            name = named.position or ""
            _check_positions(flaws, flat, name, position[order], sorted_[name])
        for argument, name in named.named:
            if argument == "time":
                flat.of_rankings[_TIMES] = _earliest(sorted_[_TIMES], flat)
                continue
            values = sorted_[name]
            whole = argument in _OF_RANKINGS or (self._of_ranking and _is_propensity(argument))
            if argument == "request":
                flat.of_rankings[name] = request.take(pa.array(flat.first_rows))
            elif whole:
                differs = np.zeros(len(order), np.bool_)
                if len(order):
                    kinds = _distinct(values)
                    differs = kinds != kinds[np.repeat(flat.starts, flat.lengths)]
                flaws.items(differs, f"contradictory {_plain(argument)}", name, values)
                flat.of_rankings[name] = values.take(firsts)
            if not whole and argument != "request":
                flat.of_items[name] = values
        report.items_read += places.rows
        found = self._sound(flat, flaws, report, places)
        report.equal_duplicates += places.standing_for(found.rows) - len(found.rows)
        return found

    def _listed(
        self, column: dict[str, pa.Array], start: int, report: ReadReport, places: _Places
    ) -> _Flat:
        """A row a ranking."""
        named = self._named
        n = len(column[named.item or ""])
        rows = start + np.arange(n)
        items = column[named.item or ""]
        lengths = lengths_of(items) if self.shape.has_lists else np.ones(n, np.int64)
        # Lists can be compared item by item only where they are equally long.
        rough = _Flat(np.zeros(n, np.int64), np.empty(0, np.int64), rows)
        flaws = _Flaws(rough)
        self._unread(column, flaws.rankings)
        if self.shape.has_lists:
            flaws.rankings(~is_valid(items), "no item list", named.item or "")
        for name in sorted(self.shape.listed - {named.item}):
            values = column[name]
            there = is_valid(values)
            if self._labels.get(name) is None and name != named.reward:
                flaws.rankings(~there, "no list", name)
            else:  # unknown, or not observed
                column[name] = _filled(values, lengths)
                there = np.ones(n, np.bool_)
            differs = there & (lengths_of(column[name]) != lengths)
            flaws.rankings(differs, "list lengths differ", name, lengths_of(column[name]))
        if not flaws.sound.all():
            flaws.settle(report, places)
            mask = pa.array(flaws.sound)
            column = {name: values.filter(mask) for name, values in column.items()}
            lengths, rows = lengths[flaws.sound], rows[flaws.sound]
        flat = _Flat(lengths, np.repeat(rows, lengths), rows)
        for argument, name in named.named:
            if argument == "time":
                flat.of_rankings[_TIMES] = column[_TIMES]
                continue
            values = column[name]
            if name in self.shape.listed:
                flat.of_items[name] = values.flatten()
            elif argument == "request":
                flat.of_rankings[name] = as_texts(values)
            elif self.shape.has_lists or argument in _OF_RANKINGS:
                flat.of_rankings[name] = values
            else:
                flat.of_items[name] = values
            if self._of_ranking and _is_propensity(argument) and not self.shape.has_lists:
                flat.of_rankings[name] = values
        return flat

    def _unread(self, column: Mapping[str, pa.Array], mark: Any) -> None:
        """Set aside what stands in a column of numbers or times and is none."""
        for argument, name in self._named.named:
            texts = column.get(_unread(name))
            if texts is not None:
                kind = "time" if argument == "time" else "number"
                mark(is_valid(texts), f"not a {kind}", name, texts)

    def _sound(self, flat: _Flat, flaws: _Flaws, report: ReadReport, places: _Places) -> _Flat:
        """Rankings without flaws so far."""
        if flaws.sound.all():
            return flat
        flaws.settle(report, places)
        keep = flaws.sound
        inside = keep[flat.owners]
        report.items_set_aside += places.standing_for(flat.rows[~inside])
        of_rankings, of_items = pa.array(keep), pa.array(inside)
        return _Flat(
            flat.lengths[keep],
            flat.rows[inside],
            flat.first_rows[keep],
            {name: values.filter(of_items) for name, values in flat.of_items.items()},
            {name: values.filter(of_rankings) for name, values in flat.of_rankings.items()},
        )

    # ---- Rankings as the log has them ----------------------------------------------------------

    def _made(
        self, flat: _Flat, report: ReadReport, places: _Places, whole: _Whole
    ) -> Iterator[pa.Table]:
        """Tables of the rankings, without those whose values are wrong."""
        named, n = self._named, len(flat)
        flaws = _Flaws(flat)
        kind, items = self._items(flaws, flat)
        eligible = self._eligible(flaws, flat)
        logged = self._logged(flaws, flat, eligible, whole)
        evaluated = {
            output: self._evaluated(flaws, flat, column, eligible, whole)
            for column, output in self._outputs.items()
        }
        displayed = self._displayed(flaws, flat)
        rewards = self._rewards(flaws, flat, displayed)
        weight = np.full(n, np.nan)
        if named.row_weight is not None:
            given = flat.of_rankings[named.row_weight]
            weight = floats(given)
            wrong = is_valid(given) & ~((weight >= 1.0 / LARGEST) & (weight <= LARGEST))
            flaws.rankings(wrong, "row_weight", named.row_weight, given)
        times = pa.repeat(_EPOCH, n)
        if named.time is not None:
            times = flat.of_rankings[_TIMES]
            flaws.rankings(~is_valid(times), "no time", named.time)
        if named.request is None:
            requests = pa.array(flat.first_rows).cast(pa.string())
        else:
            requests = as_texts(flat.of_rankings[named.request])  # it may be the user's column, too
            empty = pc.fill_null(pc.equal(requests, ""), True).to_numpy(zero_copy_only=False)
            flaws.rankings(empty, "no request id", named.request)
        users = pa.nulls(n, pa.string())
        if named.user is not None:
            users = as_texts(flat.of_rankings[named.user])
        logged_by = pa.repeat(_LOGGED_BY, n)
        if named.logged_by is not None:
            logged_by = as_texts(flat.of_rankings[named.logged_by])
            empty = pc.fill_null(pc.equal(logged_by, ""), True).to_numpy(zero_copy_only=False)
            flaws.rankings(empty, "no policy name", named.logged_by)
        flaws.settle(report, places)

        keep = flaws.sound
        inside = keep[flat.owners]
        lengths = flat.lengths[keep]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        of_items = {"item_ids": items.filter(pa.array(inside)).cast(kind)}
        numbers = {"log_propensities": logged, **evaluated}
        if named.reward is not None:
            numbers["rewards"] = rewards
        own: dict[str, pa.Array] = {}
        for name, output in self._carried.items():
            if name in flat.of_items:
                numbers[output] = floats(flat.of_items[name])
            else:
                own[output] = pa.array(floats(flat.of_rankings[name])[keep])
        for output, values in numbers.items():
            nan_is_null = output == "rewards"
            of_items[output] = pa.array(values[inside], from_pandas=nan_is_null)
        total = _sums(logged[inside], lengths)
        mask = pa.array(keep)
        of_rankings = {
            "request_id": requests.filter(mask),
            "ts": times.filter(mask),
            "user_id": users.filter(mask),
            "policy_name": logged_by.filter(mask),
            "row_weight": pa.array(weight[keep], from_pandas=True),
            "n_eligible": _nullable(eligible[keep]),
            "is_fallback": pa.repeat(False, len(lengths)),
            "k": pa.array(np.maximum(lengths, 1)),
            "log_propensity": pa.array(total),
            "propensity_kind": pa.repeat("exact", len(lengths)),
            "log_norm_error": pa.repeat(0.0, len(lengths)),
            "displayed": _nullable(displayed[keep]),
            "reward_kind": pa.repeat("complete", len(lengths)),
            **own,
        }
        for first in range(0, len(lengths), _TABLE_ROWS):
            part = slice(first, min(first + _TABLE_ROWS, len(lengths)))
            begin, end = int(bounds[part.start]), int(bounds[part.stop])
            offsets = pa.array((bounds[part.start : part.stop + 1] - begin).astype(np.int32))
            columns = {
                name: values.slice(part.start, part.stop - part.start)
                for name, values in of_rankings.items()
            }
            for name, values in of_items.items():
                columns[name] = pa.ListArray.from_arrays(offsets, values.slice(begin, end - begin))
            yield completed(pa.table(columns))

    def _items(self, flaws: _Flaws, flat: _Flat) -> tuple[pa.DataType, pa.Array]:
        name = self._named.item or ""
        items = flat.of_items[name]
        if pa.types.is_floating(items.type):  # of integers, where some are missing
            numbers = floats(items)
            missing, whole = np.isnan(numbers), is_whole(numbers)
            flaws.items(~missing & ~whole, "item id not whole", name, items)
            items = pa.array(np.where(whole, numbers, 0.0).astype(np.int64), mask=missing)
        elif pa.types.is_uint64(items.type):  # of hashes
            beyond = pc.fill_null(pc.greater(items, pa.scalar(2**63 - 1, pa.uint64())), False)
            flaws.items(beyond.to_numpy(zero_copy_only=False), "item id beyond int64", name, items)
            items = pc.if_else(beyond, pa.scalar(0, pa.uint64()), items).cast(pa.int64())
        elif pa.types.is_null(items.type):
            items = items.cast(pa.string())
        missing = ~is_valid(items)
        if pa.types.is_string(items.type):
            missing |= pc.fill_null(pc.equal(items, ""), True).to_numpy(zero_copy_only=False)
        flaws.items(missing, "null item id", name)
        if len(flat) < len(flat.rows):
            codes = _distinct(items)
            owners = flat.owners
            order = np.lexsort((codes, owners))
            again = np.zeros(len(order), np.bool_)
            same = (codes[order][1:] == codes[order][:-1]) & (
                owners[order][1:] == owners[order][:-1]
            )
            again[order[1:][same]] = True
            flaws.items(again, "repeated item", name, items)
        text = pa.types.is_string(items.type)
        return (pa.string() if text else pa.int64()), items

    def _eligible(self, flaws: _Flaws, flat: _Flat) -> FloatArray:
        """Items that could be shown, (n,); NaN where it is not known."""
        given = self._named.n_eligible
        if given is None:
            return np.full(len(flat), np.nan)
        if not isinstance(given, str):
            eligible = np.full(len(flat), float(given))
        else:
            eligible = floats(flat.of_rankings[given])
            wrong = ~np.isnan(eligible) & ~((eligible >= 0) & is_whole(eligible))
            flaws.rankings(wrong, "n_eligible", given, flat.of_rankings[given])
        name = given if isinstance(given, str) else "n_eligible"
        flaws.rankings(eligible < flat.lengths, "more items than eligible", name, eligible)
        flaws.rankings((eligible > 0) & (flat.lengths == 0), "fewer items than k", name, eligible)
        return eligible

    def _displayed(self, flaws: _Flaws, flat: _Flat) -> FloatArray:
        """Places really shown, (n,); NaN for all."""
        name = self._named.displayed
        if name is None:
            return np.full(len(flat), np.nan)
        displayed = floats(flat.of_rankings[name])
        right = (displayed >= 0) & (displayed <= flat.lengths) & is_whole(displayed)
        flaws.rankings(~np.isnan(displayed) & ~right, "displayed", name, flat.of_rankings[name])
        return displayed

    def _rewards(self, flaws: _Flaws, flat: _Flat, displayed: FloatArray) -> FloatArray:
        """(m,); NaN where not observed."""
        name = self._named.reward
        if name is None:
            return np.full(len(flat.rows), np.nan)
        if name in flat.of_items:
            rewards = floats(flat.of_items[name])
            flaws.items(np.isinf(rewards), "reward not finite", name, rewards)
            flaws.items(np.abs(rewards) > LARGEST, BEYOND, name, rewards)
            return rewards
        whole = floats(flat.of_rankings[name])
        flaws.rankings(np.isinf(whole), "reward not finite", name, whole)
        flaws.rankings(np.abs(whole) > LARGEST, BEYOND, name, whole)
        seen = np.where(np.isnan(displayed), flat.lengths, np.minimum(displayed, flat.lengths))
        seen = np.maximum(seen, 0).astype(np.int64)
        flaws.rankings((seen == 0) & (whole != 0.0), "reward of no place", name, whole)
        rewards = np.zeros(len(flat.rows))
        there = seen > 0
        rewards[(flat.starts + seen - 1)[there]] = whole[there]
        return rewards

    # ---- Propensities --------------------------------------------------------------------------

    def _logged(
        self, flaws: _Flaws, flat: _Flat, eligible: FloatArray, whole: _Whole
    ) -> FloatArray:
        """Conditional log-propensities of what was shown, (m,)."""
        name = self._named.log_propensity if self._is_log else self._named.propensity
        assert name is not None
        values, mark = self._given(flaws, flat, name)
        numbers, tolerance = floats(values), _tolerance(values.type)
        argument = "log_propensity" if self._is_log else "propensity"
        self._see_scale(whole, argument, name, numbers, tolerance)
        mark(np.isnan(numbers), "no propensity", name)
        if self._is_log:
            mark(np.isinf(numbers), "log-propensity not finite", name, values)
            mark(numbers > tolerance, "positive log-propensity", name, values)
            logs = np.minimum(numbers, 0.0)
        else:
            wrong = (numbers <= 0.0) | (numbers > 1.0 + tolerance)
            mark(wrong, "propensity not in (0, 1]", name, values)
            logs = np.log(np.where(wrong | np.isnan(numbers), 1.0, np.minimum(numbers, 1.0)))
        logs = self._conditional(flaws, flat, name, logs, tolerance)
        left = np.repeat(eligible, flat.lengths) - flat.places
        flaws.items(
            (left == 1.0) & (logs < -_CERTAIN),
            "uncertain, though the only item left",
            name,
            lambda i: f"{np.exp(logs[i]):.6g} where 1 is expected",
        )
        return logs

    def _evaluated(
        self,
        flaws: _Flaws,
        flat: _Flat,
        column: str | None,
        eligible: FloatArray,
        whole: _Whole,
    ) -> FloatArray:
        """The same under an evaluation policy; NaN where it is not known."""
        if column is None:
            with np.errstate(invalid="ignore", divide="ignore"):
                logs = -np.log(np.repeat(eligible, flat.lengths) - flat.places)
            if self._of_ranking:
                total = _sums(logs, flat.lengths)
                logs = np.zeros(len(logs))
                logs[flat.starts[flat.lengths > 0]] = total[flat.lengths > 0]
            return np.asarray(logs)
        values, mark = self._given(flaws, flat, column)
        numbers, tolerance = floats(values), _tolerance(values.type)
        argument = f"policies[{self._labels[column]!r}]"
        self._see_scale(whole, argument, column, numbers, tolerance)
        if self._is_log:
            mark(numbers > tolerance, "positive evaluation log-propensity", column, values)
            logs = np.minimum(numbers, 0.0)
        else:
            wrong = (numbers < 0.0) | (numbers > 1.0 + tolerance)
            mark(wrong, "evaluation propensity not in [0, 1]", column, values)
            with np.errstate(divide="ignore"):
                logs = np.log(np.clip(numbers, 0.0, 1.0))
        return self._conditional(flaws, flat, column, logs, tolerance)

    def _given(self, flaws: _Flaws, flat: _Flat, name: str) -> tuple[pa.Array, Any]:
        """A column of propensities, and what sets aside by it."""
        if self._of_ranking:
            flaws.rankings(flat.lengths == 0, "no item, though a propensity", name)
            return flat.of_rankings[name], flaws.rankings
        return flat.of_items[name], flaws.items

    def _see_scale(
        self, whole: _Whole, argument: str, name: str, numbers: FloatArray, tolerance: float
    ) -> None:
        """Whether a column is of the other scale from end to end."""
        if self._is_log:
            right, other = numbers < 0.0, numbers > tolerance
            has, wanted, as_ = "probabilities", "logarithms", "propensity"
        else:
            right, other = numbers > 0.0, numbers < 0.0
            has, wanted, as_ = "logarithms", "probabilities", "log_propensity"
        wrong = None
        if other.any():
            wrong = (
                f"column {name!r} holds {has} where {wanted} are expected,"
                f" {numbers[np.argmax(other)]:g} for one: all of the propensities as {has} are"
                f" taken with `{as_}`"
            )
        whole.see(argument, "scale", bool(right.any()), wrong)

    def _conditional(
        self, flaws: _Flaws, flat: _Flat, name: str, logs: FloatArray, tolerance: float
    ) -> FloatArray:
        """Of each item given those above it, (m,), from what the table says."""
        if self._of_ranking:
            # All of it at the first place: then the weight of any prefix is that of the whole.
            spread = np.zeros(len(flat.rows))
            there = flat.lengths > 0
            spread[flat.starts[there]] = logs[there]
            return spread
        if self._named.propensity_of == "item":
            return logs
        above = np.concatenate([[0.0], logs[:-1]]) if len(logs) else logs
        above[flat.starts[flat.lengths > 0]] = 0.0
        with np.errstate(invalid="ignore"):
            steps = logs - above
        steps[np.isneginf(logs) & np.isneginf(above)] = 0.0  # below what is never shown
        flaws.items(steps > 2 * tolerance, "propensity rises down the ranking", name, steps)
        return np.asarray(np.minimum(steps, 0.0))


def _check_texts(columns: Mapping[str, pa.Array]) -> None:
    """Texts are UTF-8, which other programs promise and do not check."""
    for name, values in columns.items():
        texts = values.flatten() if pa.types.is_list(values.type) else values
        if pa.types.is_string(texts.type):
            try:
                texts.validate(full=True)
            except pa.ArrowInvalid as error:
                raise pa.ArrowInvalid(f"column {name!r}: {error}") from None


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Where it was that Arrow could not take values."""
    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error


_OF_RANKINGS = ("request", "user", "time", "displayed", "row_weight", "n_eligible", "logged_by")


def _is_propensity(argument: str) -> bool:
    return argument in ("propensity", "log_propensity") or argument.startswith("policies[")


def _unread(name: str) -> str:
    """Beside a column: its texts that are not what it holds."""
    return f"\0no {name}"


def _plain(argument: str) -> str:
    return "evaluation propensity" if argument.startswith("policies[") else argument


def _tolerance(kind: pa.DataType) -> float:
    double = pa.types.is_float64(kind) or not pa.types.is_floating(kind)
    return _TOLERANCE if double else _TOLERANCE_OF_FLOAT32


def _check_positions(
    flaws: _Flaws, flat: _Flat, name: str, position: FloatArray, values: pa.Array
) -> None:
    """Places are 0, 1, ... or 1, 2, ...: whichever more of the rankings begin with."""
    missing = np.isnan(position)
    flaws.items(missing, "no position", name)
    whole = np.where(is_whole(position), position, 0.0)
    flaws.items(~missing & ~is_whole(position), "position not whole", name, values)
    first = whole[flat.starts]
    base = 0 if np.count_nonzero(first == 0) > np.count_nonzero(first == 1) else 1
    again = np.zeros(len(whole), np.bool_)
    again[1:] = whole[1:] == whole[:-1]
    again[flat.starts] = False
    flaws.items(again, "repeated position", name, values)
    expected = base + flat.places
    flaws.items(
        whole != expected,
        "gap in positions",
        name,
        lambda i: f"{whole[i]:.0f} where {expected[i]} is expected",
    )


def _once(column: Mapping[str, pa.Array], apart: Mask) -> tuple[IntArray, IntArray]:
    """Rows that differ in some column from all before them; how many are the same as one.

    Those `apart` are none of anybody.
    """
    n = len(apart)
    hashes = row_hashes(n, [_distinct(values) for values in column.values()])
    hashes[apart] = np.flatnonzero(apart)
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    order = np.argsort(first)
    return first[order], counts[order]


def _distinct(values: pa.Array) -> npt.NDArray[Any]:
    """Numbers that are equal where the values are; null is a value, too."""
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())  # NaN equals NaN in a dictionary
    encoded = values.dictionary_encode(null_encoding="encode")
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False))


def _coded(texts: pa.Array) -> tuple[IntArray, Sequence[Any]]:
    """A number for each distinct text, in the order of their coming; -1 for null and ''."""
    encoded = texts.dictionary_encode()
    codes = np.asarray(
        pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    )
    empty = pc.index(encoded.dictionary, "").as_py() if len(encoded.dictionary) else -1
    if empty >= 0:
        codes = np.where(codes == empty, -1, codes)
        codes = np.where(codes > empty, codes - 1, codes)
    return codes, range(len(encoded.dictionary) - (empty >= 0))


def _earliest(times: pa.Array, flat: _Flat) -> pa.Array:
    """Of each ranking; null where one of its times is."""
    counted = np.asarray(
        pc.fill_null(times.cast(pa.int64()), np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    )
    first = np.minimum.reduceat(counted, flat.starts)
    missing = first == np.iinfo(np.int64).min
    return pa.array(first, mask=missing).cast(times.type)


def _filled(lists: pa.Array, lengths: IntArray) -> pa.Array:
    """Lists of nulls where there are none."""
    if not lists.null_count:
        return lists
    there = is_valid(lists)
    own = lengths_of(lists)
    out = np.where(there, own, lengths)
    offsets = np.concatenate([[0], np.cumsum(out)])
    source = np.full(int(offsets[-1]), -1)
    inside = np.repeat(there, out)
    source[inside] = np.arange(int(own[there].sum()))
    indices = pa.array(source, mask=source < 0)
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), lists.flatten().take(indices)
    )


def _nullable(numbers: FloatArray) -> pa.Array:
    """Whole numbers as integers, null for others."""
    missing = ~is_whole(numbers)
    return pa.array(np.where(missing, 0.0, numbers).astype(np.int64), mask=missing)


def _sums(values: FloatArray, lengths: IntArray) -> FloatArray:
    """Of the values of each ranking."""
    result = np.zeros(len(lengths))
    there = lengths > 0
    if there.any():
        result[there] = np.add.reduceat(values, (np.cumsum(lengths) - lengths)[there])
    return result
