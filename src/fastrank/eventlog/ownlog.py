"""Anybody's log, a table with a row a ranking or a row an item, as tables in the log's schema.

They go through `LogReader.of_tables`, which checks them like any other log, or through
`LogWriter.append_table`, to be kept. What is wrong with a row is found here, where the row can
still be named by the number that it has in the caller's own table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from fastrank.eventlog.owncolumns import Columns, PropensityOf, checked
from fastrank.eventlog.ownrows import Reading
from fastrank.eventlog.reader import LogReader
from fastrank.eventlog.report import ReadReport
from fastrank.eventlog.schema import is_column
from fastrank.eventlog.sources import Piece, source_of
from fastrank.policies import Policy

__all__ = ["OwnLog", "TableLog", "from_table"]


class OwnLog(ABC):
    """A log of another making, as tables in this log's schema; iterate over it once or more.

    Attributes
    ----------
    policies : dict of str to str
        The evaluation policies that it knows propensities of, by label, and the column of its
        tables that holds their conditional log-propensities.
    arrays : dict of str to dict of str to str
        By label: columns of its tables for estimators that want more, by the array's name.
    columns : list of str
        Columns of its tables besides those of the schema.
    has_times : bool
        If not, every row says 1970-01-01.
    read_report : ReadReport
        Rankings set aside, by reason, and where they stand; complete after the last table.
        `LogReader.of_tables` takes it over into its own report.
    """

    policies: dict[str, str]
    arrays: dict[str, dict[str, str]]
    columns: list[str]
    has_times: bool
    read_report: ReadReport

    @abstractmethod
    def __iter__(self) -> Iterator[pa.Table]:
        """The tables; `read_report` is complete after the last."""

    def reader(self, *, omit: Sequence[str] = ()) -> LogReader:
        """A reader of the tables, with all of their columns."""
        return LogReader.of_tables(self, columns=self.columns, omit=omit)


def from_table(
    data: Any,
    *,
    item: str | None = None,
    propensity: str | None = None,
    log_propensity: str | None = None,
    propensity_of: PropensityOf = "item",
    reward: str | None = None,
    request: str | None = None,
    position: str | None = None,
    user: str | None = None,
    time: str | None = None,
    displayed: str | None = None,
    row_weight: str | None = None,
    n_eligible: str | int | None = None,
    logged_by: str | None = None,
    policies: Mapping[str, str | Policy] | None = None,
    columns: Sequence[str] = (),
) -> TableLog:
    """Anybody's log as tables in this log's schema.

    A row of `data` is a ranking: `item` is a list, or one item. With `request`, and items that are
    no lists, a row is an item, and the rows of a request, which may lie anywhere, are a ranking.

    Parameters
    ----------
    data : DataFrame, Table, RecordBatch, Dataset, mapping of arrays, path or paths
        What gives an Arrow stream (pandas from 2.2 on, polars, pyarrow), columns by name, or files,
        directories and globs: Parquet, and CSV in UTF-8 with commas, also packed by gzip. Of files
        that differ in how they say ids, all ids are texts.
    item : str
        Column of what was shown: integers or texts, or lists of them, the top place first.
    propensity, log_propensity : str
        One of them: column of the probability with which the logging policy showed it, or of its
        natural logarithm.
    propensity_of : {"item", "prefix", "ranking"}
        What that is the probability of, and those of `policies` likewise: of the item in its place,
        given those above it; of all items down to its place; or of the whole ranking, which each of
        its rows says, or one number beside lists.
    reward : str, optional
        Null is not observed, which is not 0. One number beside lists is the whole ranking's, and
        stands at its last place.
    request : str, optional
        Id of the ranking. By default the row's number.
    position : str, optional
        With a row an item: the item's place, from 0 or from 1. By default the order of the rows.
    user : str, optional
        Whose rows depend on each other. By default each ranking is a user of its own.
    time, displayed, row_weight, n_eligible, logged_by : str, optional
        When it was served: timestamps, dates or ISO 8601 texts, without a zone UTC; how many places
        were really shown; how many rankings it stands for, above 0; how many items could be shown,
        or one integer for all rows; the name of the policy that logged it. With a row an item they
        are the same in all rows of a request, but for times, of which the first counts.
    policies : mapping of str to str or Policy, optional
        By label: the column of the propensity under an evaluation policy, on the scale of the
        logging policy's; null is unknown, 0 (or -inf) is never. Or ``fr.Uniform()``: each of the
        `n_eligible` items that are not above it alike.
    columns : sequence of str
        Further columns to carry, of a number an item, or a number a ranking.

    Returns
    -------
    TableLog

    Raises
    ------
    ColumnsError
        A ValueError that names all that is missing at once, and the columns that there are.
    ValueError
        If a file cannot be read, or the columns of two files do not match; the message names them.

        While iterating, and after all is read, a ColumnsError names the columns of which not one
        value is what it is said to be: logarithms where probabilities are expected, for one.

    Notes
    -----
    A ranking with a row that is wrong is set aside, counted under its reason, and named by the row,
    from 0, without a CSV file's header. Nothing is clipped into shape: probabilities of 0 or above
    1 of what was shown, positions that repeat or leave a gap, an item twice, users that differ
    within a request, a time or a number of a CSV file that is none.

    Files and datasets with a row a ranking are streamed, and read again by each iteration. Grouping
    wants all of the named columns in memory: some 200 bytes a row of ten columns. Time is that of
    sorting the rows.

    Examples
    --------
    >>> log = from_table(
    ...     {"q": ["a", "a", "b"], "shown": [7, 8, 7], "p": [0.5, 0.25, 0.5], "clicks": [0, 1, 0]},
    ...     item="shown", propensity="p", reward="clicks", request="q")
    >>> [table["item_ids"].to_pylist() for table in log]
    [[[7, 8], [7]]]
    """
    return TableLog(
        data,
        Columns(
            item=item,
            propensity=propensity,
            log_propensity=log_propensity,
            propensity_of=propensity_of,
            reward=reward,
            request=request,
            position=position,
            user=user,
            time=time,
            displayed=displayed,
            row_weight=row_weight,
            n_eligible=n_eligible,
            logged_by=logged_by,
            policies={} if policies is None else policies,
            columns=columns,
        ),
    )


class TableLog(OwnLog):
    """What `from_table` makes of a table.

    Parameters
    ----------
    data
        As of `from_table`.
    named : Columns
    require : collection of str
        Arguments that must be given besides `item` and a propensity.

    Attributes
    ----------
    carried : dict of str to str
        Of `columns` of `from_table`: the column of its tables that each became.

    Examples
    --------
    >>> from fastrank.eventlog import from_table
    >>> log = from_table({"shown": [7, 8], "p": [0.5, 0.5]}, item="shown", propensity="p")
    >>> sum(table.num_rows for table in log), log.has_times
    (2, False)
    """

    def __init__(self, data: Any, named: Columns, require: Collection[str] = ()) -> None:
        wanted = [column for _, column in named.named if isinstance(column, str)]
        self._source = source_of(data, wanted)
        shape = checked(named, self._source.schema, require)
        taken: set[str] = set()
        self.carried = {name: _free(name, taken) for name in dict.fromkeys(named.columns)}
        self.policies = {}
        outputs: dict[str | None, str] = {}  # of columns of propensities; None: uniform
        for label, each in named.policies.items():
            column = each if isinstance(each, str) else None
            if column not in outputs:
                outputs[column] = _free(column or "uniform", taken)
            self.policies[label] = outputs[column]
        self.columns = sorted(taken)
        self.arrays = {}
        self.has_times = named.time is not None
        self.read_report = ReadReport()
        self._wanted = list(dict.fromkeys(wanted))
        self._reading = Reading(named, shape, self.carried, outputs)
        self._kept: list[pa.Table] | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        if self._kept is not None:
            yield from self._kept
            return
        self.read_report = report = ReadReport()
        numbers = self._reading.numbers
        pieces: Iterator[Piece] = self._source.pieces(self._wanted, numbers)
        made: Iterator[pa.Table] = self._reading.tables(pieces, report)
        if self._source.in_memory or self._reading.shape.is_grouped:
            self._kept = list(made)
            made = iter(self._kept)
        yield from made


def _free(name: str, taken: set[str]) -> str:
    """A name for a column of the tables that is not one of the schema, nor of another column."""
    while name in taken or is_column(name):
        name = f"own {name}"
    taken.add(name)
    return name
