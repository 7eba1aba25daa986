"""Any table with one row per ranking or per item, as tables in the log's schema.

They are read by `LogReader.of_tables`, which checks them like any other log, or stored by
`LogWriter.append_table`. Errors in a row are found here, because here the row can still be named by
its number in the caller's table.
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
    """A foreign log, as tables in this log's schema; can be iterated over several times.

    Attributes
    ----------
    policies : dict of str to str
        The evaluation policies whose propensities it has, by label, with the column of its tables
        that holds their conditional log-propensities.
    arrays : dict of str to dict of str to str
        By label: columns of its tables for estimators that need more, by the array's name.
    columns : list of str
        Columns of its tables besides those of the schema.
    has_times : bool
        If False, every row states 1970-01-01.
    read_report : ReadReport
        Rankings set aside, by reason, and their places; complete after the last table.
        `LogReader.of_tables` includes it in its own report.
    """

    policies: dict[str, str]
    arrays: dict[str, dict[str, str]]
    columns: list[str]
    has_times: bool
    read_report: ReadReport

    @abstractmethod
    def __iter__(self) -> Iterator[pa.Table]:
        """Iterate over the tables; `read_report` is complete after the last one."""

    def reader(self, *, omit: Sequence[str] = ()) -> LogReader:
        """Return a reader of the tables, with all of their columns."""
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
    """Read any log as tables in this log's schema.

    A row of `data` is a ranking: `item` is a list, or one item. With `request`, and items that are
    not lists, a row is an item, and the rows of a request, in any place, form a ranking.

    Parameters
    ----------
    data : DataFrame, Table, RecordBatch, Dataset, mapping of arrays, path or paths
        Anything that gives an Arrow stream (pandas from 2.2 on, polars, pyarrow), a mapping of
        columns, or files, directories and globs: Parquet, and CSV in UTF-8 with commas, also with
        gzip compression. If files differ in the type of ids, all ids become strings.
    item : str
        Column of what was shown: integers or strings, or lists of them, top place first.
    propensity, log_propensity : str
        Column of the probability with which the logging policy showed it, or of its natural
        logarithm; exactly one of the two.
    propensity_of : {"item", "prefix", "ranking"}
        What this probability, and those of `policies`, cover: the item in its place, given the
        items above it; all items down to its place; or the whole ranking, repeated in each of its
        rows, or one number beside lists.
    reward : str, optional
        Column of rewards. Null is not observed, which differs from 0. One number beside lists is
        the reward of the whole ranking, and is stored at its last place.
    request : str, optional
        Column of the ranking's id. By default the row's number.
    position : str, optional
        With one row per item: the item's place, from 0 or from 1. By default the order of the rows.
    user : str, optional
        Column of the user; rows of one user depend on each other. By default each ranking is a
        separate user.
    time, displayed, row_weight, n_eligible, logged_by : str, optional
        When it was served: timestamps, dates or ISO 8601 strings, in UTC without a zone; how many
        places were really shown; how many rankings the row stands for, above 0; how many items
        could be shown, or one integer for all rows; the name of the policy that logged it. With one
        row per item they must be equal in all rows of a request, except times, of which the first
        counts.
    policies : mapping of str to str or Policy, optional
        By label: the column of the propensity under an evaluation policy, on the scale of the
        logging policy's; null is unknown, 0 (or -inf) is never. Or ``fr.Uniform()``: all of the
        `n_eligible` items that are not above it are equally likely.
    columns : sequence of str
        Further columns to carry, with one number per item or per ranking.

    Returns
    -------
    TableLog

    Raises
    ------
    ColumnsError
        A ValueError that names everything that is missing at once, and the columns found.
    ValueError
        If a file cannot be read, or two files have columns that do not fit; the message names them.

        While iterating, after everything is read, a ColumnsError names the columns without a single
        valid value, such as logarithms where probabilities are expected.

    Notes
    -----
    A ranking with a wrong row is set aside, counted by reason, and named by the row, from 0,
    without a CSV file's header. Nothing is clipped into shape: probabilities of 0 or above 1 for
    what was shown, repeated positions or gaps, repeated items, different users within a request,
    invalid times or numbers in a CSV file.

    Files and datasets with one row per ranking are streamed, and read again by each iteration.
    Grouping needs all of the named columns in memory: about 200 bytes per row of ten columns. The
    time is that of sorting the rows.

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
    """A table read by `from_table`.

    Parameters
    ----------
    data
        As in `from_table`.
    named : Columns
    require : collection of str
        Arguments that are required besides `item` and a propensity.

    Attributes
    ----------
    carried : dict of str to str
        For `columns` of `from_table`: the column of its tables that each became.

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
        outputs: dict[str | None, str] = {}  # by column of propensities; None: uniform
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
    """A column name for the tables that neither the schema nor another column uses."""
    while name in taken or is_column(name):
        name = f"own {name}"
    taken.add(name)
    return name
