"""One evaluation on its way through a log: the rows that it uses, and the sums that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastrank.arraytypes import Rows
from fastrank.eventlog import LogBatch, Stratum
from fastrank.ope.arrays import OptionalArrays, RewardModel
from fastrank.ope.experimentlog import Log
from fastrank.ope.progress import Progress
from fastrank.ope.propensities import EvaluationPolicy, Judged, judge
from fastrank.ope.queries import catalogs_of
from fastrank.ope.question import Question
from fastrank.ope.rows import Used
from fastrank.ope.summary import Evaluation, summarise
from fastrank.ope.sums import LogSums

__all__ = ["Choice", "Reading"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are used, and what policies may show: arguments of `evaluate`."""

    include_fallback: bool = False
    include_caller_seeds: bool = False
    restrict_to_logged_catalog: bool = False
    keep_candidates: bool = False

    def used(self, batch: LogBatch, places: int) -> Used:
        """The rows of a batch that may be used, before judging them."""
        used = Used(batch)
        if not self.include_fallback:
            used.leave("fallback", batch.is_fallback)
        if not self.include_caller_seeds:
            used.leave("caller_seed", batch.caller_seed)
        used.leave("not_shown", batch.never_shown)
        used.leave("reward_not_observed", np.isnan(batch.rewards[:, :places].sum(axis=1)))
        return used


class Reading:
    """The sums of one question over the batches of a log.

    Parameters
    ----------
    asked : Question
    choice : Choice
    reward_model : callable, optional
    """

    def __init__(
        self,
        asked: Question,
        choice: Choice,
        reward_model: RewardModel | None = None,
    ) -> None:
        self.asked = asked
        self.sums = LogSums(asked)
        self._choice = choice
        self._catalogs = catalogs_of(asked.logging)
        self._optional = OptionalArrays(
            asked.names,
            asked.policies,
            asked.logging,
            asked.places,
            reward_model,
            choice.restrict_to_logged_catalog,
            choice.keep_candidates,
        )

    def judge(
        self, batch: LogBatch, rows: Rows, policies: Sequence[EvaluationPolicy] | None = None
    ) -> list[Judged]:
        """Judge rows of a batch by policies, by default by those of the question."""
        asked = self.asked
        return judge(
            batch,
            asked.policies if policies is None else policies,
            rows,
            logging=self._catalogs,
            restrict=self._choice.restrict_to_logged_catalog,
            keep_candidates=self._choice.keep_candidates,
            places=asked.asked_places or None,  # the log's longest may be shorter than a policy's
            models=asked.logging,
        )

    def take(
        self,
        used: Used,
        strata: Sequence[Stratum],
        *,
        drawn: LogBatch | None = None,
        laws: Sequence[Stratum] | None = None,
        judged: Sequence[Judged] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Add the used rows of a batch.

        Parameters
        ----------
        used : Used
        strata : sequence of Stratum
            The strata of the batch.
        drawn : LogBatch, optional
            The same rows with other log-propensities and strata, `laws`, which are used for the
            weights.
        judged : sequence of Judged, optional
            Each policy's results for them, if they are known.
        progress : Progress, optional
        """
        progress = Progress(None) if progress is None else progress
        asked, sums = self.asked, self.sums
        batch, laws = (used.batch, strata) if drawn is None else (drawn, laws or strata)
        judged = self.judge(batch, used.rows) if judged is None else judged
        for each in judged:
            for reason, which in each.unknown.items():
                used.leave(reason, which)
            if each.refusal is not None and sums.refusal is None:
                sums.refusal = str(each.refusal)
        sums.count(used, strata)
        progress.begin(len(batch), used.count * len(asked.policies))
        for index, part in used.parts(asked.places, asked.cluster, batch):
            stratum = sums.stratum(index, laws[index])
            stratum.count(part, judged)
            if not asked.cluster:
                sums.by_user.update(part.by_user())
            for p, policy in enumerate(asked.policies):
                evaluated = part.matrix(judged[p].log_propensities)
                arrays = self._optional.arrays(
                    policy, batch, part.rows, part.logged, evaluated, progress.step
                )
                stratum.update(p, part.arrays(evaluated, arrays))
        progress.end()

    def result(self, log: Log, reasons: Sequence[str]) -> Evaluation:
        """The evaluation of a log that was read to its end, with further reasons against it.

        Raises
        ------
        ValueError
            If a model refused every row.
        """
        return summarise(self.asked, self.sums, log.report, reasons)
