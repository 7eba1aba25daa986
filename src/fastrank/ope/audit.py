"""Check that a log's propensities are those of the model that is said to have written it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fastrank.eventlog import LogBatch, ReadReport
from fastrank.eventlog.reader import UnreadLogError
from fastrank.frames import plain
from fastrank.inputs import as_column
from fastrank.model import Model
from fastrank.ope.experimentlog import Log, check_log
from fastrank.ope.queries import Query, Writers, catalog_of, logging_policy
from fastrank.ope.seeds import SharedSeeds
from fastrank.policies import MAX_TEMPERATURE, FlatTail, Policy, law_of
from fastrank.ranker import RNG_VERSION, draws_as
from fastrank.scorer import Scorer

__all__ = ["Audit", "Check", "audit"]

Outcome = Literal["passed", "warning", "failed", "not done"]

SAMPLE = 1000  # rows that are recomputed
TOLERANCE = 1e-5  # for a conditional log-propensity, beyond the bound that a row states
_FLATTER = 1.25  # temperature of the known policy, relative to the logging policy's
_WORST_Z = 5.0
_FEW = 100  # least rows to judge a mean from
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the log.

    Attributes
    ----------
    name : str
    outcome : {"passed", "warning", "failed", "not done"}
        A log with a failed check must not be evaluated; after a warning its figures depend on what
        the message says.
    rows, failures : int
        Rows checked, and rows found wrong.
    message : str
        The result in plain language.
    examples : tuple of str
        The first wrong rows: request ids, with what is wrong.
    """

    name: str
    outcome: Outcome
    rows: int
    failures: int
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Audit:
    """The result of an audit.

    Attributes
    ----------
    checks : tuple of Check
    rows, sampled : int
        Valid rows of the log, and rows whose propensities were recomputed.
    log : dict
        The reader's report.
    """

    checks: tuple[Check, ...]
    rows: int
    sampled: int
    log: dict[str, Any]

    def __repr__(self) -> str:
        word = "failed" if self.failed else "passed" if self.passed else "nothing to judge"
        failed = [each.name for each in self.checks if each.outcome == "failed"]
        which = f": {', '.join(failed)}" if failed else ""
        return f"Audit({word}{which}; {self.sampled} of {self.rows} rows computed again)"

    @property
    def judged(self) -> bool:
        """Whether propensities of at least one row were recomputed."""
        return self.sampled > 0

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.outcome == "failed" for check in self.checks)

    @property
    def passed(self) -> bool:
        """Whether no check failed, and there was something to check."""
        return self.judged and not self.failed

    def to_dict(self) -> dict[str, Any]:
        """The audit in JSON's types; a value that is not finite is None."""
        found: dict[str, Any] = plain(asdict(self))
        return {"passed": self.passed, "judged": self.judged, **found}


def audit(
    log: Log,
    models: Sequence[Model | Scorer],
    *,
    sample: int = SAMPLE,
    advance: Callable[[int], None] | None = None,
) -> Audit:
    """Recompute the logging policy's propensities, and look for signs of a broken log.

    Parameters
    ----------
    log : LogReader
    models : sequence of Model or Catalog
        The models said to have written it; a row is judged by the one with its catalog's version.
    sample : int
        About how many rows to recompute, chosen by a hash of the request; at least one, if the log
        has rows.
    advance : callable, optional
        Called with the number of rows read so far.

    Returns
    -------
    Audit

    Raises
    ------
    ValueError
        If an argument is invalid; the message names it.

    Notes
    -----
    For each row of the sample: it names the given model; its conditional log-propensities are right
    within 1e-5, or the bound that the row states; its seed draws the same ranking again. Over rows
    whose seed no caller chose, the mean weight of a known policy (the same at a temperature 1.25
    times as high, first place) is 1. For every row whose rules are at most filters and boosts:
    under Plackett-Luce the first place's log-propensity is ``s_1 / T - log_norm``; under a flat
    tail every place's log-propensity follows from the row's own columns. The candidates of a flat
    tail, found again, may differ because of another index, version of FAISS or CPU. Such rows are
    reported, and are not forged. No two users share a seed; no rows are missing from a writer's
    sequence; rows repeated under a request id that a client chose are identical. O(n d) per row of
    the sample. Rows of `rank_scores` name no catalog that could reproduce their scores: they are
    counted as not judged, and a log fails if most of its rows cannot be judged.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank.eventlog import LogReader, LogWriter
    >>> catalog = fr.Catalog([10, 20], [[1.0], [0.0]])
    >>> model = fr.Model(catalog, [f"u{i}" for i in range(60)], [[1.0]] * 60)
    >>> folder = tempfile.mkdtemp()
    >>> with LogWriter(folder) as log:
    ...     for i in range(600):
    ...         ranking = model.recommend(f"u{i % 60}", 1, policy=fr.Uniform(), seed=i)
    ...         reward = float(ranking.item_ids[0] == 10 and i % 2)
    ...         _ = log.append(ranking, user_id=f"u{i % 60}", rewards=[reward])
    >>> found = audit(LogReader(folder), [model])
    >>> found.passed, found.rows
    (True, 600)
    """
    check_log(log)
    models = list(as_column("models", models, "a sequence of models or catalogs"))
    found = Audited(models)
    found.read(log, min(1.0, sample / max(log.survey()[0], 1)), advance)
    return found.result()


class Audited:
    """The state of an audit of a log, or of a part; it can be merged and pickled."""

    def __init__(self, models: Sequence[Model | Scorer]) -> None:
        self.rows = 0
        self.report = ReadReport()
        self._models = models
        self._first_place, self._seeds, self._tails = _FirstPlace(), SharedSeeds(), _FlatTails()
        self._sampled = _Sample()
        self._spare: _Sample | None = None  # one row, in case the hash chooses none

    def read(self, log: Log, share: float, advance: Callable[[int], None] | None = None) -> None:
        """Read a log to its end, and recompute a share of its rows."""
        writers, spare = Writers(self._models), None
        try:
            for batch in log:
                self.rows += len(batch)
                if spare is None:
                    spare = batch.where(np.arange(len(batch)) == batch.uniform.argmin())
                self._first_place.update(batch)
                self._tails.update(batch)
                self._seeds.update(batch, log.strata, np.ones(len(batch), np.bool_))
                chosen = batch.uniform < share
                if chosen.any():
                    self._sampled.update(batch.where(chosen), writers)
                if advance is not None:
                    advance(self.rows)
        except UnreadLogError:
            pass  # the report says so
        self.report = log.report
        if spare is not None and not self._sampled.is_begun:
            self._spare = _Sample()
            self._spare.update(spare, writers)

    @classmethod
    def merged(cls, parts: Sequence[Audited]) -> Audited:
        """Merge audits of parts, which stay as they are."""
        found = cls([])
        for each in parts:
            found.rows += each.rows
            found._first_place.tally.merge(each._first_place.tally)
            found._tails.tally.merge(each._tails.tally)
            found._seeds.merge(each._seeds)
            found._sampled.merge(each._sampled)
            found._spare = found._spare or each._spare
        found.report = ReadReport.merged([each.report for each in parts])
        return found

    def result(self) -> Audit:
        """The result; ValueError if no file could be read."""
        if self.report.why_unread is not None:
            raise ValueError(self.report.why_unread)
        sampled = self._sampled
        if not sampled.is_begun and self._spare is not None:
            sampled = self._spare
        checks = (
            *sampled.checks(),
            self._first_place.check(),
            *self._tails.checks(),
            _repeated_seeds(self._seeds),
            _gaps(self.report),
            _malformed(self.report),
            _repeated_ids(self.report),
            _unreadable(self.report),
        )
        return Audit(checks, self.rows, sampled.rows, self.report.to_dict())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_models": []}  # models may be large


class _Tally:
    """Number of rows checked and of wrong ones, and the first wrong ones."""

    def __init__(self) -> None:
        self.rows = 0
        self.failures = 0
        self.examples: list[str] = []

    def add(self, fine: bool, batch: LogBatch, i: int, what: str) -> None:
        self.rows += 1
        if not fine:
            self.fail(batch, i, what)

    def fail(self, batch: LogBatch, i: int, what: str) -> None:
        self.failures += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"request {batch.value('request_id', i)}: {what}")

    def merge(self, other: _Tally) -> None:
        self.rows += other.rows
        self.failures += other.failures
        self.examples = [*self.examples, *other.examples][:_EXAMPLES]

    def check(
        self, name: str, passed: str, failed: str, empty: str, outcome: Outcome = "failed"
    ) -> Check:
        if self.failures:
            message = f"{self.failures:,} of {self.rows:,} {failed}"
            return Check(name, outcome, self.rows, self.failures, message, tuple(self.examples))
        if not self.rows:
            return Check(name, "not done", 0, 0, empty)
        return Check(name, "passed", self.rows, 0, f"{self.rows:,} {passed}")


class _Sample:
    """Rows that are recomputed."""

    def __init__(self) -> None:
        self._named, self._propensities, self._drawn = _Tally(), _Tally(), _Tally()
        self._not_judged: Counter[str] = Counter()
        self._weights: list[tuple[float, float]] = []  # of the known policy, and row weights
        self._other_versions: Counter[int] = Counter()
        self._other_candidates = 0

    @property
    def rows(self) -> int:
        return self._propensities.rows

    @property
    def is_begun(self) -> bool:
        """Whether any row was looked at, even if none could be judged."""
        return self._named.rows > 0 or self._not_judged.total() > 0

    def merge(self, other: _Sample) -> None:
        for name in ("_named", "_propensities", "_drawn"):
            getattr(self, name).merge(getattr(other, name))
        self._not_judged.update(other._not_judged)
        self._weights += other._weights
        self._other_versions.update(other._other_versions)
        self._other_candidates += other._other_candidates

    def update(self, batch: LogBatch, writers: Writers) -> None:
        asked = writers.queries(batch)
        for i in range(len(batch)):
            version = batch.value("catalog_version", i)
            if version == "":
                self._not_judged["scores that were given, of no catalog"] += 1
                continue
            writer = writers.of(batch, i)
            if writer is not None and version is not None:  # versions contradict each other
                given = catalog_of(writers.models[writer]).version
                writer = writer if version == given else None
            self._named.add(
                writer is not None, batch, i, f"catalog {str(version)[:12]} is none of those given"
            )
            if writer is None:
                continue
            model = writers.models[writer]
            policy = logging_policy(batch, i)
            query = asked[writer].row(i)
            if (
                policy is None
                or isinstance(query, str)
                or (batch.value("candidate_set_id", i) is not None)
            ):
                why = query if isinstance(query, str) else "policy that fastrank does not know"
                self._not_judged[
                    "truncated candidates"
                    if (batch.value("candidate_set_id", i) is not None)
                    else why
                ] += 1
                continue
            try:
                self._judge(batch, i, catalog_of(model), policy, query)
            except ValueError as error:
                if not query.is_ruled:
                    raise
                # Such a call would be refused, so it cannot have drawn the ranking.
                self._propensities.add(False, batch, i, f"its rules are refused: {error}")

    def _judge(
        self, batch: LogBatch, i: int, catalog: Scorer, policy: Policy, query: Query
    ) -> None:
        items, logged = batch.ranked(i)
        if not len(items):
            self._propensities.add(True, batch, i, "")
            return
        k = int(batch.k[i])
        again = catalog.log_propensities(
            query.vector,
            items,
            policy=policy,
            exclude=query.exclude,
            allow=query.allow,
            bias=query.bias,
            **query.judged(k),
        )
        errors = np.abs(again - logged)
        worst = int(errors.argmax())
        if isinstance(policy, FlatTail) and errors[worst] > TOLERANCE:
            if batch.is_sequential[i]:
                # It is unknown whether an index found the other candidates then.
                if batch.is_given("retrieval")[i]:
                    self._not_judged["flat tails under rules, with other candidates now"] += 1
                    return
            elif tail_error(batch, i) <= TOLERANCE:
                # The stated candidates give its propensities, and others are found now.
                self._other_candidates += 1
                return
        self._propensities.add(
            bool(errors[worst] <= TOLERANCE + (batch.value("log_norm_error", i) or 0.0)),
            batch,
            i,
            f"log-propensity {logged[worst]:.6g} at place {worst + 1}, computed {again[worst]:.6g}",
        )
        rng_version = batch.value("rng_version", i)
        if rng_version is not None and not draws_as(rng_version, policy, catalog):
            self._other_versions[rng_version] += 1
        elif policy.sampler == "auto" and batch.value("made_by", i) is None:
            pass  # it is unknown in which of two ways it was drawn
        elif batch.value("seed", i) is not None and rng_version is not None:
            from_table = policy.sampler == "auto" and batch.value("made_by", i) == "table"
            ranking = catalog.rank(
                query.vector,
                k,
                policy=policy.with_sampler("cached") if from_table else policy,
                seed=batch.value("seed", i),
                exclude=query.exclude,
                allow=query.allow,
                bias=query.bias,
                **query.call,
            )
            same = np.array_equal(ranking.item_ids[: len(items)], items)
            if batch.has_rules[i]:  # nothing else says how long their list is
                same = same and len(ranking) == len(batch.value("item_ids", i))
            self._drawn.add(
                same,
                batch,
                i,
                "its seed draws another ranking",
            )
        # A caller who chose the seed chose the ranking: it was not drawn by the law that is
        # checked.
        drawn = isinstance(policy, FlatTail) or law_of(policy).is_plackett_luce
        if drawn and not batch.caller_seed[i]:
            temperature = policy.params["temperature"]
            flatter = policy.at_temperature(min(temperature * _FLATTER, MAX_TEMPERATURE))
            other = catalog.log_propensities(
                query.vector,
                items[:1],
                policy=flatter,
                exclude=query.exclude,
                allow=query.allow,
                bias=query.bias,
                **query.judged(k),
            )
            own = 1.0 if batch.row_weights is None else float(batch.row_weights[i])
            self._weights.append((float(np.exp(other[0] - logged[0])), own))

    def checks(self) -> Iterator[Check]:
        yield self._named.check(
            "model",
            "sampled rows name a model that was given",
            "sampled rows were written by another model",
            "no sampled row names a catalog" if self.is_begun else "the log has no valid rows",
        )
        left = self._not_judged.total()
        besides = "".join(
            f"; {count:,} not judged: {why.replace('_', ' ')}"
            for why, count in self._not_judged.items()
        )
        if self._other_candidates:
            besides += (
                f"; of {self._other_candidates:,} with a flat tail, whose own columns agree, other"
                " candidates are found now"
            )
        found = self._propensities.check(
            "propensities",
            f"sampled rows have the propensities that the model gives{besides}",
            f"sampled rows have other propensities than the model gives{besides}",
            f"no sampled row could be judged{besides}",
        )
        if found.outcome in ("passed", "not done") and self._other_candidates:
            rows = found.rows + self._other_candidates
            found = Check(found.name, "warning", rows, self._other_candidates, found.message)
        if found.outcome != "failed" and left > self.rows:
            found = Check(found.name, "failed", self.rows + left, left, found.message)
        elif found.outcome == "passed" and left > 0.05 * self.rows:
            found = Check(found.name, "warning", self.rows + left, left, found.message)
        yield found
        others = "".join(
            f"; {count:,} were drawn by rng_version {version}: this fastrank draws by {RNG_VERSION}"
            for version, count in sorted(self._other_versions.items())
        )
        yield self._drawn.check(
            "seeds draw",
            f"sampled rows are drawn again by their seed{others}",
            f"sampled rows are not what their seed draws{others}",
            f"no sampled row could be drawn again{others}",
            outcome="warning",  # another instruction set may round, and then draw, differently
        )
        yield self._mean_weight()

    def _mean_weight(self) -> Check:
        name, n = "mean weight", len(self._weights)
        if n < _FEW:
            return Check(
                name, "not done", n, 0, f"fewer than {_FEW} Plackett-Luce rows in the sample"
            )
        weights, own = np.array(self._weights).T
        mean = float(own @ weights / own.sum())
        spread = float(np.square(own * (weights - mean)).sum()) * n / (n - 1)
        error = math.sqrt(spread) / float(own.sum())
        z = (mean - 1.0) / error if error else 0.0
        message = (
            f"the mean weight of a known policy is {mean:.4f} ± {error:.4f},"
            f" {'as it should be' if abs(z) <= _WORST_Z else 'and should be 1'}"
        )
        failed = abs(z) > _WORST_Z
        return Check(name, "failed" if failed else "passed", n, n if failed else 0, message)


class _FirstPlace:
    """Checks every Plackett-Luce row without sequential rules: lp_1 = s_1 / T - log_norm."""

    def __init__(self) -> None:
        self.tally = _Tally()

    def update(self, batch: LogBatch) -> None:
        temperature, log_norm = (
            batch.numbers("law_params.temperature"),
            batch.numbers("log_norm"),
        )
        score = batch.first_scores
        known = np.flatnonzero(
            np.isfinite(temperature)
            & ~batch.is_given("tail_log_weight")
            & np.isfinite(log_norm)
            & np.isfinite(score)
            & (batch.lengths > 0)
            & ~batch.is_sequential
        )
        if not len(known):
            return
        scaled = score[known] / temperature[known]
        error = np.abs(batch.log_propensities[known, 0] - (scaled - log_norm[known]))
        wrong = np.flatnonzero(~(error <= TOLERANCE + 1e-12 * np.abs(scaled)))
        self.tally.rows += len(known)
        for j in wrong.tolist():
            self.tally.fail(batch, int(known[j]), f"first place off by {error[j]:.3g}")

    def check(self) -> Check:
        return self.tally.check(
            "first place",
            "Plackett-Luce rows agree with their own normaliser",
            "Plackett-Luce rows disagree with their own normaliser",
            "no Plackett-Luce rows",
        )


def tail_error(batch: LogBatch, i: int) -> float:
    """How far the log-propensities of row i, of a flat tail, differ from what its own columns give.

    Infinite if the columns are incomplete. Each place has the item's weight divided by the rest of
    exp(log_norm), after subtracting the places above it. Beside a head with nearly all of the
    weight, the rest is known to fewer digits, and the tolerance is wider accordingly.
    """
    weight, flags = batch.value("tail_log_weight", i), batch.value("is_candidate", i)
    norm, scores = batch.value("log_norm", i), batch.value("scores", i)
    temperature = batch.params(i).get("temperature", math.nan)
    if None in (weight, flags, norm, scores) or None in flags or not temperature > 0.0:
        return math.inf
    n = int(batch.lengths[i])
    logs = np.where(flags, np.array(scores, np.float64) / temperature, weight)[:n] - norm
    shares = np.exp(logs)
    left = 1.0 - np.concatenate([[0.0], np.cumsum(shares)[:-1]]) if n else shares
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(batch.log_propensities[i, :n] - (logs - np.log(left)))
        # Rounding of float64, and of float32 scores divided by a temperature.
        slack = 1e-12 * np.abs(logs + norm) + 4e-15 / left
    known = left > 1e-9
    return float(np.max(np.where(known, errors - slack, 0.0), initial=0.0))


class _FlatTails:
    """Checks every row of a flat tail: each place's weight over the rest."""

    def __init__(self) -> None:
        self.tally = _Tally()

    def update(self, batch: LogBatch) -> None:
        own = batch.is_given("tail_log_weight") & ~batch.is_sequential
        for i in np.flatnonzero(own).tolist():
            error = tail_error(batch, i)
            what = "it says too little" if error == math.inf else f"a place is off by {error:.3g}"
            self.tally.add(error <= TOLERANCE, batch, i, what)

    def checks(self) -> Iterator[Check]:
        if self.tally.rows:
            yield self.tally.check(
                "flat tails",
                "rows of a flat tail agree with what they say of their candidates",
                "rows of a flat tail disagree with what they say of their candidates",
                "",
            )


def _repeated_seeds(seeds: SharedSeeds) -> Check:
    name = "repeated seeds"
    if not seeds.rows:
        return Check(name, "not done", 0, 0, "no rows with a seed of the server's")
    commonest = seeds.commonest
    if commonest is None:
        message = f"{seeds.rows:,} rows, no seed in those of two users"
        return Check(name, "passed", seeds.rows, 0, message)
    shared = max(1, round(seeds.shared))
    message = f"{shared:,} of {seeds.rows:,} rows share their seed with another user's: their noise"
    example = f"seed {commonest[0]} stands in {commonest[1]:,} rows"
    return Check(name, "warning", seeds.rows, shared, message, (example,))


def _gaps(report: ReadReport) -> Check:
    lost = report.total_rows_lost
    if lost:
        message = f"{lost:,} rows are missing from their writers' sequences"
        return Check("gaps", "warning", report.rows_read, lost, message)
    return Check("gaps", "passed", report.rows_read, 0, "no rows are missing from the sequences")


def _malformed(report: ReadReport) -> Check:
    wrong, equal = report.rows_set_aside, report.equal_duplicates
    message = f"{wrong:,} rows are malformed" if wrong else "no malformed rows"
    if equal:
        message += f"; {equal:,} came twice, say the same, and count once"
    outcome: Outcome = "warning" if wrong else "passed"
    return Check("malformed rows", outcome, report.rows_read, wrong, message)


def _repeated_ids(report: ReadReport) -> Check:
    """Look for clients who repeat a request's id, and so its seed, until they like the answer."""
    name, rows = "request ids", report.rows_read
    repeated, contradicted = report.repeats_by_clients
    if not repeated:
        return Check(name, "passed", rows, 0, "no request id that a client chose came again")
    message = f"{repeated:,} rows came again under a request id that a client chose"
    if not contradicted:
        return Check(name, "passed", rows, 0, f"{message}, and say the same")
    message += f"; {contradicted:,} of them say something else, and are set aside"
    return Check(name, "warning", rows, contradicted, message)


def _unreadable(report: ReadReport) -> Check:
    found = report.unreadable_files
    n = len({*report.files_read, *found})
    if not found:
        return Check("files", "passed", n, 0, "no file is damaged or foreign")
    message = f"{len(found):,} files could not be read, or not to their end"
    return Check("files", "warning", n, len(found), message)
