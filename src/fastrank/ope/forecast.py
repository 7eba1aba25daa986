"""Estimate how long an evaluation will take, from the first batch of its log."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from fastrank.eventlog import LogBatch
from fastrank.model import Model
from fastrank.ope.arrays import OptionalArrays, RewardModel
from fastrank.ope.experimentlog import Log
from fastrank.ope.propensities import EvaluationPolicy, FromColumn, FromRows, judge
from fastrank.ope.queries import catalogs_of
from fastrank.ope.question import longest_of, settled
from fastrank.ope.rows import cut
from fastrank.scorer import Scorer

__all__ = ["forecast"]

_ROWS = 200  # most rows judged, and in each sample for the optional arrays
_SECONDS = 1.0  # for the latter; a sample that was started is finished


def forecast(
    log: Log,
    policies: Sequence[EvaluationPolicy],
    *,
    logging: Sequence[Model | Scorer] = (),
    places: int | None = None,
    estimators: Sequence[str] | None = None,
    lead: str | None = None,
    reward_model: RewardModel | None = None,
    restrict_to_logged_catalog: bool = False,
    keep_candidates: bool = False,
) -> float:
    """Estimate the seconds that `evaluate` will take with these arguments, for a message.

    0 for a short log, or if everything needed is in columns of the log. Takes the reading of one
    batch and some seconds.

    Raises
    ------
    ValueError
        As in `evaluate`.
    """
    places, names, _ = settled(longest_of(log), places, estimators, lead)
    optional = OptionalArrays(
        names,
        policies,
        logging,
        places,
        reward_model,
        restrict_to_logged_catalog,
        keep_candidates,
    )
    rows = log.survey()[0]
    if rows <= _ROWS or all(isinstance(p, FromColumn | FromRows) for p in policies):
        return 0.0
    batch = next(iter(log), None)
    if batch is None:
        return 0.0
    catalogs = catalogs_of(logging)
    times = []
    for count in (1, _ROWS):  # the extra cost of the first row occurs once per batch
        start = time.perf_counter()
        judge(
            batch,
            policies,
            np.arange(min(len(batch), count)),
            logging=catalogs,
            restrict=restrict_to_logged_catalog,
            keep_candidates=keep_candidates,
            models=logging,
        )
        times.append(time.perf_counter() - start)
    a_row = max(times[1] - times[0], 0.0) / _ROWS
    return rows * (a_row + _arrays_a_row(batch, policies, logging, optional, places))


def _arrays_a_row(
    batch: LogBatch,
    policies: Sequence[EvaluationPolicy],
    logging: Sequence[Model | Scorer],
    optional: OptionalArrays,
    places: int,
) -> float:
    """Seconds per row for the optional arrays.

    Rows of one user share most of the work, so whole users are timed: one, then two more, then four
    more, until that has taken long enough.
    """
    order = np.argsort(batch.user_hash, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(batch.user_hash[order]) != 0])
    ends = np.r_[starts[1:], len(order)]
    # Rows that are left out by default may lack what the others have.
    left_out = batch.is_fallback | batch.caller_seed | batch.never_shown
    likely = ~(left_out | np.isnan(batch.rewards).any(axis=1))
    measured: list[tuple[int, float]] = []
    user, users = 0, 1
    while user < len(starts) and sum(seconds for _, seconds in measured) < _SECONDS:
        last = min(user + users, len(starts)) - 1
        part = order[starts[user] : min(ends[last], starts[user] + _ROWS)]
        judged = judge(batch, policies, part, logging={}, models=logging)
        known = likely.copy()
        for each in judged:
            for which in each.unknown.values():
                known &= ~which
        part = part[known[part]]
        if len(part):
            start = time.perf_counter()
            for policy, each in zip(policies, judged, strict=True):
                logged, evaluated = (
                    cut(array[part], places)
                    for array in (batch.log_propensities, each.log_propensities)
                )
                optional.arrays(policy, batch, part, logged, evaluated)
            measured.append((len(part), time.perf_counter() - start))
        user, users = last + 1, 2 * users
    if len(measured) > 1:
        measured = measured[1:]  # the first user includes loading and preparing
    rows = sum(count for count, _ in measured)
    return sum(seconds for _, seconds in measured) / rows if rows else 0.0
