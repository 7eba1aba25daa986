"""Estimates from a log: one reading of the log for any number of policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy.typing as npt

from fastrank.model import Model
from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.experimentlog import Log
from fastrank.ope.parts import partial_of
from fastrank.ope.propensities import EvaluationPolicy
from fastrank.ope.question import DEFAULT_ESTIMATORS, LOGGING, question
from fastrank.ope.reading import Choice
from fastrank.ope.summary import Evaluation, PolicyResult, StratumResult
from fastrank.scorer import Scorer

__all__ = [
    "DEFAULT_ESTIMATORS",
    "LOGGING",
    "Evaluation",
    "PolicyResult",
    "StratumResult",
    "evaluate",
]


def evaluate(
    log: Log,
    policies: Sequence[EvaluationPolicy],
    *,
    logging: Sequence[Model | Scorer] = (),
    places: int | None = None,
    estimators: Sequence[str] | None = None,
    lead: str | None = None,
    reference: str = LOGGING,
    cluster: bool = True,
    level: float = 0.95,
    thresholds: Thresholds | None = None,
    clip: float = 20.0,
    reward_range: tuple[float, float] | None = None,
    reward_model: Callable[..., npt.ArrayLike] | None = None,
    include_fallback: bool = False,
    include_caller_seeds: bool = False,
    restrict_to_logged_catalog: bool = False,
    keep_candidates: bool = False,
    reasons: Sequence[str] = (),
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Estimate policies' values from a log, reading it once.

    Parameters
    ----------
    log : LogReader or ExperimentLog
    policies : sequence of EvaluationPolicy
        With distinct labels.
    logging : sequence of Model or Catalog
        The models that wrote the log. Needed if an evaluation policy has another catalog, to know
        what could not have been shown, and by estimators that use the logging law (iips, pi).
    places : int, optional
        Number of places that the evaluated policies show. By default each row's own number. If some
        rows asked for fewer, the log cannot say what the other places would have earned.
    estimators : sequence of str
        Keys of `ESTIMATORS`; by default `DEFAULT_ESTIMATORS`. avg is always added, and snips if
        others assume more about how people behave.
    lead : str, optional
        The estimator that verdicts rest on. By default snrips; snips with one place, where the two
        are equal, and if the log contradicts the assumption of snrips: from a paired difference of
        two thirds of `Thresholds.behaviour` on.
    reference : str
        What policies are compared with: ``"logging"``, or a policy's label.
    cluster : bool
        Whether errors allow for dependence between rows of one user. If they do not, and the log
        shows that they should, `Evaluation.user_effect` says so.
    level : float
        Confidence level of the intervals.
    thresholds : Thresholds, optional
    clip : float
        Largest weight of clipped-ips; above 0 and finite, since without a limit it equals ips.
    reward_range : (float, float), optional
        Smallest and largest reward of a ranking, for the Bernstein bound of clipped-ips.
    reward_model : callable, optional
        ``q(query (d,), item_ids (m,)) -> (m,)`` or ``(m, k)``: expected rewards. For dm and
        dr-position.
    include_fallback, include_caller_seeds : bool
        Also use rows that are left out by default.
    restrict_to_logged_catalog : bool
        Evaluate policies as if they never showed items that are not in the logged catalog.
    keep_candidates : bool
        If only candidates were ranked (`candidate_set_id`), evaluate policies that rank the same
        candidates, which are in the row's allow list. By default policies rank everything, and
        items shown that were not candidates are uncovered.
    reasons : sequence of str
        Known problems of the log: keys of `REASONS`, such as ``"audit_failed"``.
    advance : callable, optional
        Called with the number of rows done: after each batch and, if laws or a reward model take
        long, within it.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If an argument is invalid, before the log is read if possible; the message names the
        argument and the value. If a model's item ids are numbers and the log's are text, or the
        reverse; if the model refuses every row.

    Notes
    -----
    Memory is bounded by a batch and, for each stratum and policy, sums whose size depends only on
    the places and estimators: with the default ones 0.3 MB for one place and 0.7 MB for ten. iips
    and pi also keep up to 128 MiB of laws, and seeds take 2 MB. Each row costs one scan of the
    catalog for its scores, and one pass over them for each policy. iips computes two Plackett-Luce
    laws for every query, set of filters and policy of a batch: a few milliseconds each.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank.eventlog import LogReader, LogWriter
    >>> from fastrank.ope import ByModel, evaluate
    >>> catalog = fr.Catalog([10, 20], [[1.0], [0.0]])
    >>> model = fr.Model(catalog, [f"u{i}" for i in range(60)], [[1.0]] * 60)
    >>> folder = tempfile.mkdtemp()
    >>> with LogWriter(folder) as log:
    ...     for i in range(600):
    ...         ranking = model.recommend(f"u{i % 60}", 1, policy=fr.Uniform(), seed=i)
    ...         reward = float(ranking.item_ids[0] == 10 and i % 2)
    ...         _ = log.append(ranking, user_id=f"u{i % 60}", rewards=[reward])
    >>> colder = ByModel("colder", fr.PlackettLuce(1.0), model)
    >>> found = evaluate(LogReader(folder), [colder])
    >>> found.policies[0].status, found.rows_used
    ('ok', 600)
    """
    asked = question(
        log,
        policies,
        logging=logging,
        places=places,
        estimators=estimators,
        lead=lead,
        reference=reference,
        cluster=cluster,
        level=level,
        thresholds=thresholds,
        clip=clip,
        reward_range=reward_range,
    )
    if not asked.policies:
        raise ValueError("policies: expected at least one")
    choice = Choice(
        include_fallback, include_caller_seeds, restrict_to_logged_catalog, keep_candidates
    )
    whole = partial_of(log, asked, choice, reward_model, advance=advance)
    return whole.evaluation(reasons)
