"""Evaluation in parts: sum parts of a log anywhere, and evaluate them as one log.

An evaluation only needs sums of a log, so many processes or machines may read its parts. Some
things are judged only after parts are merged, because they concern the log as a whole: repeated
requests, rows missing from a writer's sequence, seeds that users share, and every status.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fastrank
from fastrank.eventlog import LogReader, ReadReport
from fastrank.eventlog.reader import UnreadLogError
from fastrank.eventlog.schema import IdKind
from fastrank.inputs import as_count, shown
from fastrank.model import Model, scorer_of
from fastrank.ope.arrays import RewardModel
from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.experimentlog import ExperimentLog, Log
from fastrank.ope.progress import Progress
from fastrank.ope.propensities import ByFunction, ByModel, EvaluationPolicy, FromColumn, FromRows
from fastrank.ope.question import LOGGING, Question, longest_of, question
from fastrank.ope.reading import Choice, Reading
from fastrank.ope.requests import Requests, in_common
from fastrank.ope.summary import Evaluation, summarise
from fastrank.ope.sums import LogSums
from fastrank.scorer import Scorer

__all__ = ["Partial", "SharedRowsError", "merged", "partial", "partial_of"]

_FORMAT = 1  # of a pickled partial
_RANGES = 4096  # most ranges kept of a writer's sequence
_REQUESTS = 1 << 16


class SharedRowsError(ValueError):
    """Parts share rows, which are in the sums of each and so count twice.

    Attributes
    ----------
    pairs : list of (int, int)
        The parts, by their index among the partials to merge.

    Examples
    --------
    >>> SharedRowsError({(0, 2): "1,000 requests"}).pairs
    [(0, 2)]
    """

    def __init__(self, shared: Mapping[tuple[int, int], str]) -> None:
        (first, second), what = min(shared.items())
        more = f", and {len(shared) - 1} more pairs have some" if len(shared) > 1 else ""
        super().__init__(
            f"partials: {first} and {second} have {what} in common{more}: give each file to one"
            " part, and files that hold the same rows to the same one, which counts them once"
        )
        self.pairs = sorted(shared)


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """The contents of a `Partial`."""

    asked: Question  # without policies and models
    identity: Mapping[str, str]  # what parts of one evaluation must agree on, by argument
    sums: LogSums
    report: ReadReport
    kind: IdKind | None
    longest: int
    requests: Requests


class Partial:
    """Sums of a part of a log, made by `partial` and `merged`; they merge, and can be pickled.

    The size depends on places, estimators, policies and strata, not on rows: at most 2 MB for one
    policy, one stratum, ten places and the default estimators.

    Attributes
    ----------
    rows, rows_used : int
        Valid rows read, and rows in the sums.
    report : ReadReport
        The reader's report.
    """

    def __init__(self, kept: _Kept) -> None:
        self._kept = kept

    @property
    def rows(self) -> int:
        """Number of valid rows read."""
        return self._kept.sums.rows

    @property
    def rows_used(self) -> int:
        """Number of rows in the sums."""
        return sum(each.rows for each in self._kept.sums.strata)

    @property
    def report(self) -> ReadReport:
        """The reader's report."""
        return self._kept.report

    def __repr__(self) -> str:
        labels = ", ".join(self._kept.asked.labels)
        return f"Partial({labels}; {self.rows_used} of {self.rows} rows used)"

    def evaluation(self, reasons: Sequence[str] = ()) -> Evaluation:
        """Return what `evaluate` returns for a log of exactly these rows.

        Parameters
        ----------
        reasons : sequence of str
            Known problems of the log: keys of `REASONS`.

        Returns
        -------
        Evaluation

        Raises
        ------
        ValueError
            As in `evaluate`: if no file could be read, or a model refused all rows.
        """
        kept = self._kept
        why = kept.report.why_unread
        if why is not None:
            raise ValueError(why)
        asked, sums = kept.asked, kept.sums
        if kept.longest != asked.longest:  # unknown before all parts were read
            asked = asked.of_longest(kept.longest)
            sums = sums.cut(asked)
        return summarise(asked, sums, kept.report, reasons)

    def __reduce__(self) -> tuple[Any, ...]:
        content = pickle.dumps(self._kept, pickle.HIGHEST_PROTOCOL)
        return _opened, (_FORMAT, fastrank.__version__, content)


def _opened(form: int, version: str, content: bytes) -> Partial:
    """Unpickle a partial; ValueError if another version made it, which may sum differently."""
    if (form, version) != (_FORMAT, fastrank.__version__):
        raise ValueError(
            f"partial: made by fastrank {version}, but this is {fastrank.__version__}: sum all"
            " parts with one version"
        )
    return Partial(pickle.loads(content))


def partial(
    log: LogReader,
    policies: Sequence[EvaluationPolicy],
    *,
    places: int | None = None,
    longest: int | None = None,
    logging: Sequence[Model | Scorer] = (),
    estimators: Sequence[str] | None = None,
    lead: str | None = None,
    reference: str = LOGGING,
    cluster: bool = True,
    level: float = 0.95,
    thresholds: Thresholds | None = None,
    clip: float = 20.0,
    reward_range: tuple[float, float] | None = None,
    reward_model: RewardModel | None = None,
    include_fallback: bool = False,
    include_caller_seeds: bool = False,
    restrict_to_logged_catalog: bool = False,
    keep_candidates: bool = False,
    requests: int | None = _REQUESTS,
    advance: Callable[[int], None] | None = None,
) -> Partial:
    """Sum a part of a log, for `merged`.

    Parameters
    ----------
    log : LogReader
        Some files of a log; `LogReader.parts` divides a log. A user's rows may be in several parts.
    policies : sequence of EvaluationPolicy
        The same for all parts, like all other arguments except `requests` and `advance`.
    places, longest : int, optional
        At least one of them is required. `places`, as in `evaluate`, is the number of places that
        the evaluated policies show, by default each row's own number. In that case `longest` states
        the length of the longest ranking of the whole log, ``LogReader(everything).survey()[1]``,
        which no part knows.
    logging, estimators, lead, reference, cluster, level, thresholds, clip
        As in `evaluate`.
    reward_range, reward_model, include_fallback, include_caller_seeds
        As in `evaluate`.
    restrict_to_logged_catalog, keep_candidates
        As in `evaluate`.
    requests : int, optional
        How many hashes of request ids to keep, 8 bytes each; `merged` uses them to find requests
        that are in two parts. If there are more requests, a share is kept that represents all, the
        same in every part. A part that is contained twice is found for certain, and each of m
        single requests with the probability of the share. Repeated rows of a writer's sequence are
        always found. None keeps all.
    advance : callable, optional
        As in `evaluate`.

    Returns
    -------
    Partial

    Raises
    ------
    ValueError
        As in `evaluate`; before the log is read, if neither `places` nor `longest` is given, if a
        ranking of this part is longer than `longest`, or for an experiment's log.

    Notes
    -----
    Rows repeated within the part count once, as in `evaluate`. A part without rows, or of files
    that cannot be read, is allowed: its report says so.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank.eventlog import LogReader, LogWriter
    >>> from fastrank.ope import ByModel, merged, partial
    >>> catalog = fr.Catalog([10, 20], [[1.0], [0.0]])
    >>> model = fr.Model(catalog, [f"u{i}" for i in range(60)], [[1.0]] * 60)
    >>> folder = tempfile.mkdtemp()
    >>> for begin in (0, 200, 400):
    ...     with LogWriter(folder) as log:
    ...         for i in range(begin, begin + 200):
    ...             ranking = model.recommend(f"u{i % 60}", 1, policy=fr.Uniform(), seed=i)
    ...             reward = float(ranking.item_ids[0] == 10 and i % 2)
    ...             _ = log.append(ranking, user_id=f"u{i % 60}", rewards=[reward])
    >>> colder = ByModel("colder", fr.PlackettLuce(1.0), model)
    >>> parts = [partial(part, [colder], places=1) for part in LogReader(folder).parts(3)]
    >>> parts[0]
    Partial(colder; 200 of 200 rows used)
    >>> found = merged(parts).evaluation()
    >>> found.policies[0].status, found.rows_used
    ('ok', 600)
    """
    if isinstance(log, ExperimentLog):
        raise ValueError(
            "log: expected a LogReader, got an ExperimentLog: evaluate_arms compares arms in one"
            " reading of the whole log"
        )
    if places is None and longest is None:
        raise ValueError(
            "places, longest: expected one of them, since a part does not know the longest ranking"
            " of the log: LogReader(everything).survey()[1]"
        )
    if longest is not None:
        longest = as_count("longest", longest)
    if requests is not None and requests != 0:
        requests = as_count("requests", requests)
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
        longest=longest or places,
    )
    choice = Choice(
        include_fallback, include_caller_seeds, restrict_to_logged_catalog, keep_candidates
    )
    found = longest_of(log)
    if longest is not None and found > longest:
        raise ValueError(
            f"longest: expected at least {found:,}, the length of a ranking in this part; got"
            f" {longest:,}"
        )
    return partial_of(
        log, asked, choice, reward_model, longest=found, requests=requests, advance=advance
    )


def partial_of(
    log: Log,
    asked: Question,
    choice: Choice,
    reward_model: RewardModel | None = None,
    *,
    longest: int | None = None,
    requests: int | None = 0,
    advance: Callable[[int], None] | None = None,
) -> Partial:
    """The sums of a log, for checked arguments; `longest` is its own, by default the question's."""
    if not asked.policies:
        raise ValueError("policies: expected at least one")
    reading, progress = Reading(asked, choice, reward_model), Progress(advance)
    known = Requests(requests)
    try:
        for batch in log:
            known.add(batch.request_hash[:, 1])
            reading.take(choice.used(batch, asked.places), log.strata, progress=progress)
    except UnreadLogError:
        pass  # other parts may have readable files; this part's report says so
    for sequence in log.report.sequences.values():
        sequence.bound(_RANGES)
    return Partial(
        _Kept(
            asked=asked.told(),
            identity=_identity(asked, choice, reward_model),
            sums=reading.sums,
            report=log.report,
            kind=getattr(log, "kind", None),
            longest=longest or asked.longest,
            requests=known,
        )
    )


def merged(partials: Iterable[Partial]) -> Partial:
    """Merge partials, which may be merged ones, into one partial of all their rows.

    Parameters
    ----------
    partials : iterable of Partial
        At least one, all of the same evaluation. Their order is that of files and strata in the
        results; otherwise it changes only the last digits. They stay as they are.

    Returns
    -------
    Partial

    Raises
    ------
    SharedRowsError
        If two share rows: a part given twice, a file in two parts, repeated requests.
    ValueError
        If they disagree on policies, models, places or other arguments; the message names it.

    Notes
    -----
    Compared with `evaluate` of the whole log, relative differences of values are about 1e-15, of
    errors and intervals below 1e-12, and of skewness 1e-10. Counts, statuses and reasons are equal,
    unless a figure is that close to its threshold. With more than 32,768 seeds, the number of rows
    with shared seeds is an estimate, which may differ by chance.

    Examples
    --------
    >>> from fastrank.eventlog import LogReader
    >>> from fastrank.ope import FromColumn, merged, partial
    >>> empty = partial(LogReader.of_tables([]), [FromColumn("new", "p_new")], places=1)
    >>> merged([empty, empty])
    Partial(new; 0 of 0 rows used)
    """
    given = list(partials)
    for j, each in enumerate(given):
        if not isinstance(each, Partial):
            raise ValueError(f"partials: row {j}: expected a Partial, got {shown(each)}")
    if not given:
        raise ValueError("partials: expected at least one")
    kept = [each._kept for each in given]
    _check_alike(kept)
    shared = in_common([each.requests for each in kept], [each.report for each in kept])
    if shared:
        raise SharedRowsError(shared)
    first = kept[0]
    sums, requests = LogSums(first.asked), Requests(first.requests.most)
    for one in kept:
        sums.merge(one.sums)
        requests.merge(one.requests)
    return Partial(
        _Kept(
            asked=first.asked,
            identity=first.identity,
            sums=sums,
            report=ReadReport.merged([one.report for one in kept]),
            kind=next((one.kind for one in kept if one.kind is not None), None),
            longest=max(one.longest for one in kept),
            requests=requests,
        )
    )


def _check_alike(parts: Sequence[_Kept]) -> None:
    """Check that the sums of these may be added; a ValueError names what they disagree on."""
    first = parts[0]
    kinds: dict[IdKind, int] = {}
    for j, each in enumerate(parts):
        for name, value in first.identity.items():
            if each.identity[name] != value:
                raise ValueError(
                    f"partials: row {j}: {name}: expected {value}, as of row 0, got"
                    f" {each.identity[name]}"
                )
        if each.kind is not None:
            kinds.setdefault(each.kind, j)
    if len(kinds) > 1:
        said = " and ".join(f"{kind} in row {j}" for kind, j in kinds.items())
        raise ValueError(f"partials: item ids are {said}: they come from different logs")


def _identity(
    asked: Question, choice: Choice, reward_model: RewardModel | None
) -> Mapping[str, str]:
    """What an evaluation depends on, as text, by argument."""
    return {
        "policies": "; ".join(map(_named, asked.policies)),
        "logging": ", ".join(_version(each) for each in asked.logging) or "none",
        "places": f"{asked.asked_places or 'each row'}, of {asked.places} at most",
        "estimators": ", ".join(asked.names),
        "lead": asked.lead if asked.is_lead_asked else "by default",
        "reference": asked.reference,
        "cluster": str(asked.cluster),
        "level": repr(asked.level),
        "thresholds": json.dumps(asdict(asked.thresholds)),
        "clip": repr(asked.clip),
        "reward_range": repr(asked.reward_range),
        "reward_model": "none" if reward_model is None else _of_function(reward_model),
        **{name: str(value) for name, value in asdict(choice).items()},
    }


def _named(policy: EvaluationPolicy) -> str:
    """Describe a policy, so that equal texts mean equal policies as far as can be told."""
    if isinstance(policy, ByModel):
        drawn = policy.policy
        params = ", ".join(f"{name}={value!r}" for name, value in sorted(drawn.params.items()))
        rules = "the rows'" if policy.rules is None else policy.rules.id
        what = (
            f"{type(drawn).__qualname__}({params}) on {_version(policy.model)}, rules {rules}"
            f" {json.dumps(policy.params, sort_keys=True)}"
        )
    elif isinstance(policy, FromColumn):
        what = f"column {policy.column}"
    elif isinstance(policy, FromRows):
        what = f"of rows, {policy.name}"
    else:
        assert isinstance(policy, ByFunction)
        what = _of_function(policy.function)
    arrays = ", ".join(f"{name} {column}" for name, column in sorted(policy.arrays.items()))
    return f"{policy.label}: {what}{arrays and f', {arrays}'}"


def _version(model: Model | Scorer) -> str:
    columns = scorer_of("model", model).features_version
    return f"{model.version}{'' if columns is None else f' with columns {columns}'}"


def _of_function(function: Callable[..., Any]) -> str:
    kind = type(function)
    module, name = (
        getattr(function, attribute, getattr(kind, attribute))
        for attribute in ("__module__", "__qualname__")
    )
    return f"function {module}.{name}"
