"""The sums of a log that an evaluation keeps, by stratum and policy, and counts of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy

import numpy as np

from fastrank.eventlog import LogBatch, Stratum
from fastrank.ope.batch import Batch
from fastrank.ope.estimators import ESTIMATORS, Avg, Estimator
from fastrank.ope.propensities import Judged
from fastrank.ope.question import Question
from fastrank.ope.rows import Part, Used
from fastrank.ope.seeds import SharedSeeds

__all__ = ["MOST_STRATA", "LogSums", "StratumSums"]

MOST_STRATA = 2000  # for each stratum and policy, sums take a third of a megabyte


class LogSums:
    """Sums of all rows so far.

    Attributes
    ----------
    rows : int
        Valid rows read.
    without_user : int
        Rows used that name no user.
    set_aside : Counter of str
        Rows not used, by reason.
    seeds : SharedSeeds
        Shared seeds of the rows used.
    by_user : Avg
        What the rows used earned, with users as groups; empty if all groups are users.
    refusal : str or None
        Why a model refused the first row that it could not judge.
    """

    def __init__(self, question: Question) -> None:
        question = question.told()
        self.refusal: str | None = None
        self.seeds = SharedSeeds()
        self.by_user = Avg(question.places)
        self.rows = self.without_user = 0
        self.set_aside: Counter[str] = Counter()
        self._question = question
        self._strata: dict[int, StratumSums] = {}
        self._ends: list[np.datetime64] = []  # the first and the last time

    @property
    def numbers(self) -> list[int]:
        """The strata, in their order."""
        return sorted(self._strata)

    @property
    def strata(self) -> list[StratumSums]:
        """The sums of the strata, in the order of their numbers."""
        return [self._strata[index] for index in sorted(self._strata)]

    @property
    def span(self) -> tuple[str, str] | None:
        """When the first and the last row were served; None without rows."""
        if not self._ends:
            return None
        first, last = (f"{np.datetime_as_string(end, unit='s')}Z" for end in self._ends)
        return first, last

    @property
    def all_refused(self) -> bool:
        """Whether models refused all rows that they were asked to judge."""
        besides = {
            *("fallback", "caller_seed", "not_shown", "reward_not_observed", "not_computable")
        }
        return not self._strata and {*+self.set_aside} <= besides

    def count(self, used: Used, strata: Sequence[Stratum]) -> None:
        """Add a batch whose used rows are known, with the log's strata."""
        self.rows += len(used.batch)
        self.without_user += used.without_user
        self.set_aside.update(used.set_aside)
        self.seeds.update(used.batch, strata, used.mask, by_user=self._question.cluster)
        self._extend_span(used.batch)

    def stratum(self, index: int, stratum: Stratum) -> StratumSums:
        """The sums of the stratum with this number."""
        if index not in self._strata:
            if len(self._strata) == MOST_STRATA:
                raise ValueError(
                    f"strata: the log has more than {MOST_STRATA:,} logging policies, models or"
                    f" catalogs: {stratum.law} is one more; is something else in such a column?"
                )
            self._strata[index] = StratumSums(stratum, self._question)
        return self._strata[index]

    def merge(self, other: LogSums) -> None:
        """Add the sums of another part, for the same question; `other` stays as it is."""
        self.rows += other.rows
        self.without_user += other.without_user
        self.set_aside.update(other.set_aside)
        self.seeds.merge(other.seeds)
        self.by_user.merge(other.by_user)
        self.refusal = other.refusal if self.refusal is None else self.refusal
        known = {each.stratum: index for index, each in self._strata.items()}
        fresh = max(self._strata, default=-1) + 1
        for number, each in enumerate(other.strata):
            index = known.get(each.stratum, fresh + number)
            self.stratum(index, each.stratum).merge(each)
        self._extend(other._ends)

    def cut(self, question: Question) -> LogSums:
        """Cut to the places and estimators of `question`, if no ranking has more places."""
        found = copy(self)
        found._question = question
        found.by_user = self.by_user.cut(question.places)
        found._strata = {index: each.cut(question) for index, each in self._strata.items()}
        return found

    def _extend_span(self, batch: LogBatch) -> None:
        if len(batch):
            times = batch.column("ts").to_numpy(zero_copy_only=False)
            self._extend([times.min(), times.max()])

    def _extend(self, times: Sequence[np.datetime64]) -> None:
        ends = [*self._ends, *times]
        if ends:
            self._ends = [min(ends), max(ends)]


class StratumSums:
    """Sums of one stratum, for all policies.

    Attributes
    ----------
    stratum : Stratum
    rows : int
    fewer_places : int
        Rows that requested fewer places than are evaluated.
    of_candidates : bool
        Whether some row ranked only candidates.
    mass : float
        Sum of the row weights; the number of rows if they have none.
    certain, outside : ndarray of float64, shape (policies,)
        Sums over rows of the values in `Judged`, times the row weights.
    support_unknown : ndarray of int64, shape (policies,)
    estimators : list of dict of str to Estimator
        By policy and name.
    """

    def __init__(self, stratum: Stratum, question: Question) -> None:
        self.stratum = stratum
        self.rows = self.fewer_places = 0
        self.mass = 0.0
        self.of_candidates = False
        n = len(question.labels)
        self.certain, self.outside = np.zeros((2, n))
        self.support_unknown = np.zeros(n, np.int64)
        self.estimators = [_estimators(question) for _ in range(n)]
        self._asked_places = question.asked_places

    def count(self, part: Part, judged: Sequence[Judged]) -> None:
        """Its rows of a batch, with what each policy could show in them."""
        self.rows += len(part)
        own = np.ones(len(part)) if part.row_weights is None else part.row_weights
        self.mass += float(own.sum())
        self.of_candidates |= bool(part.of(part.batch.is_given("candidate_set_id")).any())
        self.fewer_places += int(np.count_nonzero(part.of(part.batch.k) < self._asked_places))
        for p, each in enumerate(judged):
            self.certain[p] += part.of(each.certain) @ own
            self.outside[p] += part.of(each.outside) @ own
            self.support_unknown[p] += np.count_nonzero(part.of(each.support_unknown))

    def update(self, p: int, batch: Batch) -> None:
        """The same rows as arrays, for policy p."""
        for estimator in self.estimators[p].values():
            estimator.update(batch)

    def merge(self, other: StratumSums) -> None:
        """Add the sums of the same stratum in another part of the log."""
        self.rows += other.rows
        self.fewer_places += other.fewer_places
        self.mass += other.mass
        self.of_candidates |= other.of_candidates
        self.certain += other.certain
        self.outside += other.outside
        self.support_unknown += other.support_unknown
        for own, others in zip(self.estimators, other.estimators, strict=True):
            for name, estimator in own.items():
                estimator.merge(others[name])

    def cut(self, question: Question) -> StratumSums:
        """As `LogSums.cut`."""
        found = copy(self)
        found.estimators = [
            _sharing({name: own[name].cut(question.places) for name in question.names})
            for own in self.estimators
        ]
        return found


def _estimators(question: Question) -> dict[str, Estimator]:
    """One estimator of each kind; those with equal weights store the sums of these once."""
    return _sharing(
        {name: ESTIMATORS[name](question.places, question.clip) for name in question.names}
    )


def _sharing(made: dict[str, Estimator]) -> dict[str, Estimator]:
    keepers: dict[str, Estimator] = {}
    for each in made.values():
        if each.kind_of_weights is not None:
            keeper = keepers.setdefault(each.kind_of_weights, each)
            if keeper is not each:
                each.share_weights(keeper)
    return made
