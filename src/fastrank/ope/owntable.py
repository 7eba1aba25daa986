"""From a table of your own to estimates, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastrank.eventlog import ColumnsError, OwnLog, TableLog
from fastrank.eventlog.owncolumns import Columns, PropensityOf
from fastrank.ope.estimators import ESTIMATORS
from fastrank.ope.evaluation import evaluate
from fastrank.ope.propensities import FromColumn
from fastrank.ope.summary import Evaluation
from fastrank.policies import Policy

__all__ = ["evaluate_table", "evaluation_policies"]


def evaluate_table(
    data: Any,
    policies: Mapping[str, str | Policy] | None = None,
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
    arrays: Mapping[str, Mapping[str, str]] | None = None,
    **options: Any,
) -> Evaluation:
    """Estimate what other policies would have earned, from a table of your own.

    Parameters
    ----------
    data : DataFrame, Table, mapping of arrays, path, paths, or OwnLog
        With one row per ranking or one row per item, as in `from_table`. A log returned by
        `from_table`, `from_obp` or `from_dsjson` knows its columns and policies: then give only
        `options`.
    policies : mapping of str to str or Policy
        By label, as in `from_table`: the column with the propensity of what was shown under another
        policy, or ``fr.Uniform()``.
    item, propensity, log_propensity, propensity_of, reward, request, position, user
        As in `from_table`; `item`, a propensity and `reward` are required.
    time, displayed, row_weight, n_eligible, logged_by
        As in `from_table`.
    arrays : mapping of str to mapping of str to str, optional
        By label: columns for estimators that need more than propensities, by the array's name in
        `Batch`, such as ``q_logged``.
    **options
        As in `evaluate`: estimators, lead, places, reference, cluster, level, thresholds, and so
        on.

    Returns
    -------
    Evaluation
        Its `span` is None if no `time` is given.

    Raises
    ------
    ColumnsError
        A ValueError that names everything that is missing at once, and the columns found.
    ValueError
        As in `from_table` and `evaluate`.

    Notes
    -----
    The valid rows of the table are read once to count them and once for the estimates; a table that
    has to be grouped is kept in between.

    Examples
    --------
    >>> import numpy as np
    >>> shown = np.tile([0, 1], 500)
    >>> found = evaluate_table(
    ...     {"shown": shown, "p": np.full(1000, 0.5), "new": np.where(shown, 0.8, 0.2),
    ...      "clicked": np.tile([0, 0, 0, 1], 250)},
    ...     {"more of 1": "new"}, item="shown", propensity="p", reward="clicked")
    >>> found.policies[0].status, round(found.policies[0].estimates["ips"].value, 6)
    ('ok', 0.4)
    """
    log = data
    given = Columns(
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
        columns=_columns_of(arrays),
    )
    if not isinstance(data, OwnLog):
        log = TableLog(data, given, require=("reward", "policies"))
        unknown = [
            (f"arrays[{label!r}]", f"no policy has this label, only {', '.join(log.policies)}")
            for label in arrays or {}
            if label not in log.policies
        ]
        if unknown:
            raise ColumnsError(unknown)
    elif given != Columns():
        raise ValueError("data: knows its own columns and policies; name none")
    evaluation = evaluate(log.reader(), evaluation_policies(log, arrays), **options)
    return evaluation if log.has_times else replace(evaluation, span=None)


def evaluation_policies(
    log: OwnLog, arrays: Mapping[str, Mapping[str, str]] | None = None
) -> list[FromColumn]:
    """The policies that a log has columns for, in the form that `evaluate` takes.

    Parameters
    ----------
    log : OwnLog
    arrays : mapping of str to mapping of str to str, optional
        By label: columns of the caller's table, by the array's name; by default those that the log
        knows.

    Examples
    --------
    >>> from fastrank.eventlog import from_table
    >>> data = {"shown": [7, 8], "p": [0.5, 0.5], "new": [0.9, 0.1], "clicks": [0, 1]}
    >>> log = from_table(
    ...     data, item="shown", propensity="p", reward="clicks", policies={"mine": "new"})
    >>> [each.label for each in evaluation_policies(log)]
    ['mine']
    """
    carried = log.carried if isinstance(log, TableLog) else {}
    return [
        FromColumn(
            label,
            column,
            {
                **log.arrays.get(label, {}),
                **{name: carried[each] for name, each in (arrays or {}).get(label, {}).items()},
            },
        )
        for label, column in log.policies.items()
    ]


def _columns_of(arrays: Mapping[str, Mapping[str, str]] | None) -> tuple[str, ...]:
    """Columns that hold arrays, each once; ColumnsError for arrays that no estimator uses."""
    known = {need for each in ESTIMATORS.values() for need in each.needs}
    problems = []
    columns: dict[str, None] = {}
    for label, named in (arrays or {}).items():
        for name, column in named.items():
            columns[column] = None
            if name not in known:
                what = f"no estimator uses it, only {', '.join(sorted(known))}"
                problems.append((f"arrays[{label!r}][{name!r}]", what))
    if problems:
        raise ColumnsError(problems)
    return tuple(columns)
