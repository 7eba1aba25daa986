"""The report of reading a log: rows and files set aside, where they are, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fastrank.arraytypes import IntArray, Mask
from fastrank.eventlog.account import dropped_of

__all__ = ["DUPLICATE", "Flaws", "ReadReport", "SequenceGaps"]

DUPLICATE = "duplicate request id"  # of a row that differs from the first one of that id
_PLACES = 5  # most places named for each reason


@dataclass(slots=True, repr=False)
class ReadReport:
    """The report of reading a log; complete after the last batch.

    Attributes
    ----------
    rows_read : int
        Rows of readable files, including those set aside and equal duplicates.
    set_aside : dict of str to int
        Rows set aside, by reason; a row counts once, under the first reason found.
    places : dict of str to list of (str, int, str)
        The first few places of each reason: file, row of the file from 0, what exactly is wrong.
    files_read : list of str
    files_set_aside : dict of str to str
        Files that are not a log, have the other type of ids, or are damaged, with the reason. Rows
        of a damaged file before the damage were read. A damaged join.json is included.
    files_cut : dict of str to str
        Growing files that break off at their end, like those of a killed writer; the rows before
        were read. Sealed files never break off: one that does is damaged.
    rows_lost : dict of str to int
        Numbers missing in a writer's sequence, by writer id.
    joins : list of dict
        For a log that `join` wrote: what the join did, and the report of what it read; only `id` if
        join.json is lost or damaged.
    equal_duplicates : int
        Rows that repeat a row with the same request id and the same content, as in logs with
        at-least-once delivery. They are left out and change nothing; this is not an error.
    client_ids_repeated, client_ids_contradicted : int
        Rows that repeat a request id that a client chose, and those of them that differ from the
        first.
    items_read, items_set_aside : int
        For a table with one row per item: its rows, and the rows of rankings that were set aside
        there. A request id that stands for no request makes one ranking of many rows.
    times_without_zone : int
        Times of a foreign table that were read as UTC because they name no zone.
    sequences : dict of str to SequenceGaps
        By writer id, the numbers of its sequence that came; `rows_lost` counts the missing ones.
    """

    rows_read: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[tuple[str, int, str]]] = field(default_factory=dict)
    files_read: list[str] = field(default_factory=list)
    files_set_aside: dict[str, str] = field(default_factory=dict)
    files_cut: dict[str, str] = field(default_factory=dict)
    rows_lost: dict[str, int] = field(default_factory=dict)
    joins: list[dict[str, Any]] = field(default_factory=list)
    equal_duplicates: int = 0
    client_ids_repeated: int = 0
    client_ids_contradicted: int = 0
    items_read: int = 0
    items_set_aside: int = 0
    times_without_zone: int = 0
    sequences: dict[str, SequenceGaps] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"ReadReport({self.rows_read} rows read, {self.rows_set_aside} set aside; files:"
            f" {len(self.files_read)} read, {len(self.files_set_aside)} set aside)"
        )

    @property
    def rows_set_aside(self) -> int:
        """Rows set aside, over all reasons."""
        return sum(self.set_aside.values())

    @property
    def duplicates(self) -> int:
        """Rows whose request id occurred before, equal or not; the first row counts."""
        return self.equal_duplicates + self.set_aside.get(DUPLICATE, 0)

    @property
    def repeats_by_clients(self) -> tuple[int, int]:
        """`client_ids_repeated` and `client_ids_contradicted`, with rows that joins left out."""
        repeated, contradicted = self.client_ids_repeated, self.client_ids_contradicted
        for join in self.joins:
            source = join.get("source", {})
            repeated += source.get("client_ids_repeated", 0)
            contradicted += source.get("client_ids_contradicted", 0)
        return repeated, contradicted

    @property
    def malformed_share(self) -> float:
        """Share of rows set aside, including those that a `join` set aside; in [0, 1].

        For a table with one row per item, the share of its rows if that is larger.
        """
        aside, read = self.rows_set_aside, self.rows_read
        for join in self.joins:
            source = join.get("source", {})
            # The rows that the join wrote were read here; those that it left out are added.
            aside += source.get("rows_set_aside", 0)
            read += source.get("rows_set_aside", 0)
        share = aside / read if read else 0.0
        of_items = self.items_set_aside / self.items_read if self.items_read else 0.0
        return max(share, of_items)

    @property
    def rewards_dropped_share(self) -> float:
        """Share of the rewards that joins dropped, among those that should be there; in [0, 1].

        `JoinSummary.rewards_dropped` defines it; 0 if no join says.
        """
        return self._dropped_share("rewards")

    @property
    def impressions_dropped_share(self) -> float:
        """Share of the impressions that joins dropped; see `JoinSummary.impressions_dropped`."""
        return self._dropped_share("impressions")

    def _dropped_share(self, what: str) -> float:
        counts = [dropped_of(join, what) for join in self.joins]
        judged = sum(among for _, among in counts)
        return sum(dropped for dropped, _ in counts) / judged if judged else 0.0

    @property
    def total_rows_lost(self) -> int:
        """Rows lost, over all writers, including those of joined logs."""
        before = (sum(join.get("source", {}).get("rows_lost", {}).values()) for join in self.joins)
        return int(sum(self.rows_lost.values()) + sum(before))

    @property
    def unreadable_files(self) -> dict[str, str]:
        """Files set aside, with the reason; including those that a `join` could not read."""
        found: dict[str, str] = {}
        for join in self.joins:
            found |= join.get("source", {}).get("files_set_aside", {})
        return found | self.files_set_aside

    @property
    def why_unread(self) -> str | None:
        """Why no file could be read, naming three; None if one could, or there is none."""
        if self.files_read or not self.files_set_aside:
            return None
        named = [f"{file}: {why}" for file, why in [*self.files_set_aside.items()][:3]]
        return f"no file of the log can be read: {'; '.join(named)}"

    @classmethod
    def merged(cls, reports: Sequence[ReadReport]) -> ReadReport:
        """Merge the reports of parts of one log, in their order; `reports` stay as they are."""
        found = cls()
        joins: dict[Any, dict[str, Any]] = {}
        for each in reports:
            for name in _COUNTS:
                setattr(found, name, getattr(found, name) + getattr(each, name))
            for reason, count in each.set_aside.items():
                found.aside(reason, count)
            for reason, places in each.places.items():
                for place in places:
                    found.name(reason, *place)
            found.files_read += each.files_read
            found.files_set_aside |= each.files_set_aside
            found.files_cut |= each.files_cut
            for writer, sequence in each.sequences.items():
                found.sequences.setdefault(writer, SequenceGaps()).merge(sequence)
            for join in each.joins:  # rows of one join may be in all parts
                joins.setdefault(join.get("id"), join)
        found.files_read = [*dict.fromkeys(found.files_read)]
        found.joins = [*joins.values()]
        found.count_lost()
        return found

    def count_lost(self) -> None:
        """Rows missing in writers' sequences."""
        self.rows_lost = {
            writer: sequence.missing
            for writer, sequence in self.sequences.items()
            if sequence.missing
        }

    def aside(self, reason: str, count: int = 1) -> None:
        """Count rows under a reason."""
        self.set_aside[reason] = self.set_aside.get(reason, 0) + count

    def name(self, reason: str, file: str, row: int, detail: str = "") -> None:
        """Keep the place of a row, unless enough are kept for that reason."""
        places = self.places.setdefault(reason, [])
        if len(places) < _PLACES:
            places.append((file, row, detail))

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {
            "rows_read": self.rows_read,
            "rows_set_aside": self.rows_set_aside,
            "set_aside": dict(self.set_aside),
            "places": {
                reason: [{"file": f, "row": r, "detail": d} for f, r, d in places]
                for reason, places in self.places.items()
            },
            "malformed_share": self.malformed_share,
            "duplicates": self.duplicates,
            "equal_duplicates": self.equal_duplicates,
            "client_ids_repeated": self.client_ids_repeated,
            "client_ids_contradicted": self.client_ids_contradicted,
            "items_read": self.items_read,
            "items_set_aside": self.items_set_aside,
            "times_without_zone": self.times_without_zone,
            "files_read": list(self.files_read),
            "files_set_aside": dict(self.files_set_aside),
            "files_cut": dict(self.files_cut),
            "unreadable_files": self.unreadable_files,
            "rows_lost": dict(self.rows_lost),
            "rewards_dropped_share": self.rewards_dropped_share,
            "impressions_dropped_share": self.impressions_dropped_share,
            "joins": list(self.joins),
        }


# The counts of a report that parts of a log add up.
_COUNTS = (
    *("rows_read", "equal_duplicates", "client_ids_repeated", "client_ids_contradicted"),
    *("items_read", "items_set_aside", "times_without_zone"),
)


class Flaws:
    """The wrong rows of a batch, and why; the first reason counts."""

    def __init__(self, report: ReadReport, source: str, rows: IntArray) -> None:
        self._report = report
        self._source = source
        self._rows = rows
        self.sound: Mask = np.ones(len(rows), np.bool_)
        self._found: list[tuple[str, Mask, Any]] = []

    @property
    def any(self) -> bool:
        """Whether some row is set aside."""
        return bool(self._found)

    def mark(self, wrong: Mask, reason: str, values: Any = "") -> None:
        """Set rows aside; `values` is a text, or the column to quote from."""
        fresh = wrong & self.sound
        if fresh.any():
            self.sound = self.sound & ~wrong
            self._found.append((reason, fresh, values))

    def settle(self) -> None:
        """Add the flaws to the report."""
        for reason, wrong, values in self._found:
            where = np.flatnonzero(wrong)
            self._report.aside(reason, len(where))
            for at in where[:_PLACES].tolist():
                if isinstance(values, str):
                    detail = values
                else:
                    value = values[at]
                    detail = repr(value.as_py() if isinstance(value, pa.Scalar) else value.item())
                self._report.name(reason, self._source, int(self._rows[at]), detail)


class SequenceGaps:
    """The numbers of a writer's sequence that came: disjoint ranges, few unless rows are lost.

    Examples
    --------
    >>> gaps, others = SequenceGaps(), SequenceGaps()
    >>> gaps.add(np.array([0, 1, 4]))
    >>> others.add(np.array([3]))
    >>> gaps.merge(others)
    >>> gaps.ranges, gaps.missing
    ([(0, 1), (3, 4)], 1)
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []  # first, last
        # For writers without stored ranges: the first and last number, and how many came.
        self._counted: tuple[int, int, int] | None = None

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The first and the last number of each range, in order."""
        return list(self._ranges)

    def add(self, numbers: IntArray) -> None:
        """Add numbers, at least one."""
        if (np.diff(numbers) == 1).all():  # in the order of writing
            self._merge([(int(numbers[0]), int(numbers[-1]))])
            return
        ordered = np.unique(numbers)
        breaks = np.flatnonzero(np.diff(ordered) != 1)
        firsts = ordered[np.concatenate([[0], breaks + 1])]
        lasts = ordered[np.concatenate([breaks, [len(ordered) - 1]])]
        self._merge(list(zip(firsts.tolist(), lasts.tolist(), strict=True)))

    def merge(self, other: SequenceGaps) -> None:
        """Add the numbers of another part of the log; `other` has none twice."""
        self._merge(other._ranges)
        if other._counted is not None:
            self._count(*other._counted)

    def bound(self, most: int) -> None:
        """If there are more than `most` ranges, keep only how many numbers came."""
        if len(self._ranges) > most:
            self._count(self._ranges[0][0], self._ranges[-1][1], _numbers_in(self._ranges))
            self._ranges = []

    def _count(self, first: int, last: int, came: int) -> None:
        if self._counted is not None:
            low, high, before = self._counted
            first, last, came = min(first, low), max(last, high), came + before
        self._counted = first, last, came

    def _merge(self, fresh: list[tuple[int, int]]) -> None:
        merged: list[tuple[int, int]] = []
        for first, last in sorted(self._ranges + fresh):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(merged[-1][1], last)
            else:
                merged.append((first, last))
        self._ranges = merged

    @property
    def missing(self) -> int:
        """How many numbers between the first and the last are missing."""
        ends = [end for each in self._ranges for end in each]
        came = _numbers_in(self._ranges)
        if self._counted is not None:
            ends += self._counted[:2]
            came += self._counted[2]
        return max(0, max(ends) - min(ends) + 1 - came) if ends else 0


def _numbers_in(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)
