"""`fastrank evaluate`, `fastrank audit`: what a log says about other policies, and about itself."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastrank import obd, ope
from fastrank.atomic import write_text
from fastrank.catalog import Catalog
from fastrank.cli import ownlog
from fastrank.cli.armsprint import print_arms
from fastrank.cli.engines import ENGINES, Engine, begun
from fastrank.cli.evaluateprint import agreement, print_audit, print_section
from fastrank.cli.scores import functions_of, score_function_option
from fastrank.cli.terminal import for_terminal, json_text, progress, say, standard_output
from fastrank.eventlog import LogBatch, LogReader, from_data_capture, from_obd
from fastrank.eventlog.obdlog import items_of_obd
from fastrank.eventlog.schema import UNREAD
from fastrank.model import Model
from fastrank.ope.audit import SAMPLE, Audited
from fastrank.ope.evaluation import DEFAULT_ESTIMATORS
from fastrank.ope.forecast import forecast
from fastrank.ope.report import Section, render
from fastrank.opening import open_directory
from fastrank.policies import Policy, law_of
from fastrank.policies.spec import parse_policy
from fastrank.rules import Rules
from fastrank.scoring import ScoreFunction

__all__ = ["audit", "evaluate"]

_FORMATS = ["log", "obd", "data-capture", *ownlog.FORMATS]
# What estimators need besides propensities, by the names that --array takes.
_ARRAYS = [*dict.fromkeys(need for each in ope.ESTIMATORS.values() for need in each.needs)]
_POLICY = "[LABEL=]POLICY[:PARAM=VALUE,...][@MODEL]"
# Log columns that no evaluation or audit reads, and those that only models read; together they are
# most of a log's bytes. Whether rows ranked candidates, and the kind of rewards, is always read.
_READ = ("score", "features_version", "row_weight", "rules", "after", "seen_id")
_UNREAD = (
    *("latency_us", "n_candidates", "retrieval", "reward_ts"),
    *(name for name in UNREAD if name not in _READ),
)
_FOR_MODELS = ("scores", "query", "log_norm")
_CARRIED = "evaluation_log_propensities"  # what --also reads
_NAME_ONE = "name at least one --policy, --column or --also"
_LONG = 10.0  # seconds; a longer run is announced
_PARTS = 4  # of a log per process: a process that gets small parts takes more of them
# The Open Bandit Dataset's logs, and the policy to evaluate from each: campaign, log, policy.
_BUNDLED: Sequence[tuple[obd.Campaign, obd.LoggingPolicy, str]] = (
    ("all", "random", "bts"),
    ("all", "bts", "uniform"),
    ("men", "bts", "uniform"),
)


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse NaN, which passes any range of click's, and infinity, which is no limit."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", context, parameter)
    return value


@click.command()
@click.argument("logs", nargs=-1, required=True)
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The model that wrote the log; repeat the option if the model was replaced meanwhile.",
)
@click.option("--format", "kind", type=click.Choice(["log", "data-capture"]), default="log")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Number of rows whose propensities are recomputed.",
)
@score_function_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(
    logs: tuple[str, ...],
    models: tuple[Path, ...],
    kind: str,
    sample: int,
    score_functions: tuple[str, ...],
    as_json: bool,
) -> int:
    """Recompute a log's propensities with the model that is said to have written it.

    LOGS are files, directories or quoted globs. The exit code is 1 if a check fails, or if there
    was nothing to check.

    \b
    Example:
      fastrank audit logs/ --model model/
    """
    functions = functions_of(score_functions)
    opened = [_open(path, functions) for path in models]
    log = _reader(logs, kind)
    with progress() as bar:
        task = bar.add_task("auditing", total=log.survey()[0] or None)
        found = ope.audit(
            log, opened, sample=sample, advance=lambda rows: bar.update(task, completed=rows)
        )
    if as_json:
        click.echo(json_text(found.to_dict()))
    else:
        console = standard_output()
        print_audit(console, found)
        for name, why in found.log["unreadable_files"].items():
            console.print(for_terminal(f"not read: {name}: {why}"))
        say(
            console,
            agreement(found)
            if found.passed or not found.failed
            else "[bold]This model did not write this log[/] as it stands: do not evaluate the"
            " log.",
        )
    return 0 if found.passed else 1


@click.command()
@click.argument("logs", nargs=-1)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The model that wrote the log and that policies rank with; repeat the option if it was"
    " replaced.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar=_POLICY,
    help="A policy to evaluate, on the last --model or on @MODEL. Repeatable. With --format obd and"
    " table, uniform works without a model.",
)
@click.option(
    "--policy-rules",
    "policy_rules",
    multiple=True,
    metavar="[LABEL=]FILE",
    help="Rules as JSON that replace the rows' own, for the policy with that label or for all of"
    " --policy: {} for none. An object {rules, params} also sets values of parameters.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="[LABEL=]COLUMN",
    help="A policy whose conditional log-propensities are in a column of the log: lists, or numbers"
    " in a file of --format obd. With --format table, on the scale of the propensities.",
)
@click.option(
    "--also",
    "carried",
    multiple=True,
    metavar="[LABEL=]NAME",
    help="A policy whose log-propensities the rows contain, as `serve --also NAME=...` logs them."
    " Needs no model.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(_FORMATS),
    default="log",
    show_default=True,
    help="table: your own CSV (or .csv.gz) and Parquet files, with the options below that say what"
    " their columns hold; dsjson: logs of Vowpal Wabbit; obd: CSV or Parquet files of the Open"
    " Bandit Dataset, or without LOGS the bundled ones.",
)
@ownlog.table_options
@click.option(
    "--array",
    "arrays",
    multiple=True,
    metavar="[LABEL:]NAME=COLUMN",
    help=f"A column of the log with what an estimator needs: NAME is one of {', '.join(_ARRAYS)}."
    " For the policy with that label, or for all.",
)
@click.option("-k", "places", type=click.IntRange(min=1), help="Places of the evaluated rankings.")
@click.option(
    "--estimator",
    "estimators",
    multiple=True,
    type=click.Choice(list(ope.ESTIMATORS)),
    metavar="NAME",
    help=f"Any of {', '.join(ope.ESTIMATORS)}.  [default: {', '.join(DEFAULT_ESTIMATORS)}]",
)
@click.option(
    "--lead",
    type=click.Choice(list(ope.ESTIMATORS)),
    metavar="NAME",
    help="The estimator that verdicts rest on.  [default: snrips; snips if it is as precise, or if"
    " the log contradicts snrips]",
)
@click.option(
    "--reference",
    default="logging",
    show_default=True,
    metavar="LABEL",
    help="What the policies are compared with.",
)
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    callback=_finite,
    help="Confidence level of intervals.",
)
@click.option(
    "--independent-rows",
    is_flag=True,
    help="Treat every row as another user's: intervals are too narrow if users come back.",
)
@click.option(
    "--clip",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    callback=_finite,
    help="Largest weight of clipped-ips; must be finite, since without a limit it equals ips.",
)
@click.option(
    "--reward-range",
    type=(float, float),
    metavar="LOW HIGH",
    help="Smallest and largest reward of a ranking: gives clipped-ips a Bernstein bound.",
)
@click.option(
    "--threshold",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"One of {', '.join(ope.Thresholds.__dataclass_fields__)}.",
)
@click.option(
    "--experiment",
    metavar="NAME",
    help="Compare the arms of this experiment, using its rows only, and estimate policies from all"
    " of them. A policy whose label is an arm's name is that arm's policy; the policies of other"
    " arms are those that their rows state, on --model.",
)
@click.option(
    "--shares",
    multiple=True,
    metavar="[FROM:]ARM=SHARE,...",
    help="Shares of users that the arms should have had, for the sample-ratio test: for the whole"
    " log, or FROM a revision or a time (2026-03-01T00:00:00Z), one option each. With this or"
    " --control, the only experiment of a log need not be named.",
)
@click.option(
    "--control",
    metavar="ARM",
    help="The arm that the others are compared with.  [default: control, or the first by name]",
)
@click.option("--include-fallback", is_flag=True, help="Also use rows that the fallback ranked.")
@click.option(
    "--include-caller-seeds", is_flag=True, help="Also use rows whose seed a caller chose."
)
@click.option(
    "--restrict-to-logged-catalog",
    is_flag=True,
    help="Evaluate policies as if they never showed items newer than the log's.",
)
@click.option(
    "--keep-candidates",
    is_flag=True,
    help="If candidates were ranked, evaluate policies that rank the same candidates.",
)
@click.option(
    "--no-audit", is_flag=True, help="Skip the audit, and trust that the model wrote the log."
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="Read files in many processes and merge their sums; the result is the same. local:"
    " processes of this machine. ray: tasks of Ray, on the cluster of RAY_ADDRESS or on this"
    " machine.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Processes of --engine at a time.  [default: one per core]",
)
@score_function_option
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write an HTML report.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    logs: tuple[str, ...],
    kind: str,
    engine: str | None,
    processes: int | None,
    report: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Estimate what other policies would have earned, from a log of one policy and its rewards.

    LOGS are files, directories or quoted globs. The log is audited first, then read once. The exit
    code is 1 if no row was usable. With --experiment, arms are compared too, and no policy need be
    given.

    \b
    Examples:
      fastrank evaluate logs/ --model model/ --policy colder=plackett_luce:temperature=0.2 \\
          --policy deterministic --policy new=plackett_luce:temperature=0.3@new-model/ \\
          --report report.html
      fastrank evaluate logs/ --model model/ --experiment warmer \\
          --shares control=0.5,explore=0.5 --policy colder=plackett_luce:temperature=0.2
      fastrank evaluate --format obd --report report.html
      fastrank evaluate --format obd obd/bts/men/men.csv --policy uniform --column new=log_p
      fastrank evaluate --format table log.csv --item shown --propensity p --reward clicked \\
          --request visit --position place --user who --column new=p_new
      fastrank evaluate logs/ --model model/ --policy deterministic --engine local --processes 8
    """
    ownlog.refuse_options(kind, options)
    arms = {name: options.pop(name) for name in ("experiment", "shares", "control")}
    of_arms = [f"--{name}" for name, value in arms.items() if value]
    if of_arms and kind != "log":
        raise click.UsageError(f"{', '.join(of_arms)}: needs --format log, whose rows state arms")
    _refuse_engine(engine, processes, kind, of_arms)
    table = {name: options.pop(name) for name in ownlog.OPTIONS}
    settings = _Settings(**options)
    if report is not None and not report.parent.is_dir():  # checked before the work
        raise click.UsageError(f"--report: {report.parent} is not a directory")
    if report is not None:
        render([])  # fails now if the template library is missing
    if kind == "obd" and not logs:
        given = (settings.models, settings.policies, settings.policy_rules, settings.columns)
        if any((*given, settings.carried, settings.arrays)):
            raise click.UsageError(
                "--format obd without LOGS evaluates the bundled logs: no policies, no"
                " --policy-rules"
            )
        sections = [_bundled(settings, *each) for each in _BUNDLED]
    elif kind in ownlog.FORMATS:
        sections = [_of_own(settings, logs, kind, table)]
    else:
        if not logs:
            raise click.UsageError("LOGS: name a file, a directory or a glob")
        if of_arms:
            return _of_arms(settings, logs, arms, report, as_json)
        sections = [_evaluated(settings, logs, kind, engine, processes)]
    if report is not None:
        write_text(report, render(sections))
    code = 0 if all(section.evaluation.rows_used for section in sections) else 1
    if as_json:
        found = [
            {"title": s.title, "audit": s.audit and s.audit.to_dict(), **s.evaluation.to_dict()}
            for s in sections
        ]
        click.echo(json_text(found[0] if len(found) == 1 else found))
        return code
    console = standard_output()
    for section in sections:
        print_section(console, section)
    if report is not None:
        console.print(f"Report: {for_terminal(report)}")
    return code


@dataclass(frozen=True, slots=True)
class _Settings:
    models: tuple[Path, ...]
    policies: tuple[str, ...]
    policy_rules: tuple[str, ...]
    columns: tuple[str, ...]
    carried: tuple[str, ...]
    arrays: tuple[str, ...]
    places: int | None
    estimators: tuple[str, ...]
    lead: str | None
    reference: str
    level: float
    independent_rows: bool
    clip: float
    reward_range: tuple[float, float] | None
    limits: tuple[str, ...]
    include_fallback: bool
    include_caller_seeds: bool
    restrict_to_logged_catalog: bool
    keep_candidates: bool
    no_audit: bool
    score_functions: tuple[str, ...]

    def thresholds(self) -> ope.Thresholds:
        given: dict[str, float] = {}
        for text in self.limits:
            name, equals, value = text.partition("=")
            if not equals or name not in ope.Thresholds.__dataclass_fields__:
                names = ", ".join(ope.Thresholds.__dataclass_fields__)
                raise click.UsageError(
                    f"--threshold: expected NAME=VALUE, NAME one of {names}; got {text!r}"
                )
            try:
                given[name] = float(value)
            except ValueError:
                raise click.UsageError(f"--threshold: {name}: not a number: {value!r}") from None
        return ope.Thresholds(**given)

    def announce(
        self,
        log: LogReader,
        policies: Sequence[ope.EvaluationPolicy],
        logging: Sequence[Model | Catalog],
        rows: int,
        processes: int = 1,
    ) -> None:
        """Print how long the run will take, if that is long."""
        seconds = forecast(
            log,
            policies,
            logging=logging,
            places=self.places,
            estimators=self.estimators or None,
            lead=self.lead,
            restrict_to_logged_catalog=self.restrict_to_logged_catalog,
            keep_candidates=self.keep_candidates,
        )
        seconds /= processes
        if seconds > _LONG:
            click.echo(f"about {_duration(seconds)} for {rows:,} rows", err=True)

    def run(
        self,
        log: LogReader,
        policies: Sequence[ope.EvaluationPolicy],
        logging: Sequence[Model | Catalog],
        rows: int,
        reasons: Sequence[str] = (),
    ) -> ope.Evaluation:
        with progress() as bar:
            task = bar.add_task("evaluating", total=rows or None)
            return ope.evaluate(
                log,
                policies,
                logging=logging,
                reasons=reasons,
                advance=lambda rows: bar.update(task, completed=rows),
                **self.options(),
            )

    def run_arms(
        self,
        log: ope.ExperimentLog,
        policies: Sequence[ope.EvaluationPolicy],
        logging: Sequence[Model | Catalog],
        control: str | None,
        reasons: Sequence[str],
    ) -> ope.ArmsEvaluation:
        with progress() as bar:
            task = bar.add_task("evaluating", total=log.rows or None)
            return ope.evaluate_arms(
                log,
                policies,
                control=control,
                logging=logging,
                reasons=reasons,
                advance=lambda rows: bar.update(task, completed=rows),
                **self.options(),
            )

    def options(self) -> dict[str, Any]:
        """The options that all evaluations take."""
        return {
            "places": self.places,
            "estimators": self.estimators or None,
            "lead": self.lead,
            "reference": self.reference,
            "cluster": not self.independent_rows,
            "level": self.level,
            "thresholds": self.thresholds(),
            "clip": self.clip,
            "reward_range": self.reward_range,
            "include_fallback": self.include_fallback,
            "include_caller_seeds": self.include_caller_seeds,
            "restrict_to_logged_catalog": self.restrict_to_logged_catalog,
            "keep_candidates": self.keep_candidates,
        }


def _refuse_engine(
    engine: str | None, processes: int | None, kind: str, of_arms: Sequence[str]
) -> None:
    """Raise UsageError for an evaluation that cannot be done in parts."""
    if engine is None:
        if processes is not None:
            raise click.UsageError("--processes: needs --engine")
        return
    if kind != "log":
        raise click.UsageError(
            f"--engine: needs --format log; got {kind}: parts are files of a log"
        )
    if of_arms:
        raise click.UsageError(
            f"--engine: cannot be combined with {', '.join(of_arms)}: arms are compared in one"
            " reading"
        )


def _evaluated(
    settings: _Settings,
    logs: Sequence[str],
    kind: str,
    engine: str | None,
    processes: int | None,
) -> Section:
    models, policies, columns = _asked(settings, logs, kind)
    if not policies:
        raise click.UsageError(_NAME_ONE)
    audited = bool(models) and not settings.no_audit and kind != "obd"
    asked = audited or any(isinstance(each, ope.ByModel) for each in policies)
    omit = _unread(settings, () if asked else _FOR_MODELS)
    log = _reader(logs, kind, columns, omit)
    _check_carried(settings, log)
    rows, longest = log.survey()
    title = ", ".join(logs)
    if engine is not None:
        share = min(1.0, SAMPLE / max(rows, 1)) if audited else None
        work = _Work(settings, tuple(logs), os.getcwd(), share, max(longest, 1))
        with begun(engine, processes) as ready:
            settings.announce(log, policies, models, rows, ready.processes)
            found, sums = _in_parts(ready, work, log, rows)
        return Section(title, sums.evaluation(_against(found)), found)
    found = _audited(log, models, rows) if audited else None
    settings.announce(log, policies, models, rows)
    evaluation = settings.run(log, policies, models, rows, _against(found))
    return Section(title, evaluation, found)


def _against(found: ope.Audit | None) -> list[str]:
    return ["audit_failed"] if found is not None and found.failed else []


@dataclass(frozen=True, slots=True)
class _Work:
    """The work of one process: read a part of the log, and return its sums."""

    settings: _Settings
    logs: tuple[str, ...]
    folder: str  # that paths are relative to
    share: float | None  # of rows that the model audits
    longest: int

    def __call__(self, part: LogReader) -> tuple[Audited | None, ope.Partial]:
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise ValueError(
                f"--engine: {platform.node()} has no {self.folder} ({error.strerror}): models and"
                " logs must have the same paths on every machine"
            ) from None
        models, policies, _ = _asked_once(self.settings, self.logs)
        audit = None
        if self.share is not None:
            audit = Audited(models)
            audit.read(part, self.share)
        sums = ope.partial(
            part,
            policies,
            longest=self.longest,
            logging=models,
            requests=None,
            **self.settings.options(),
        )
        return audit, sums


@lru_cache(maxsize=1)
def _asked_once(
    settings: _Settings, logs: tuple[str, ...]
) -> tuple[list[Model | Catalog], list[ope.EvaluationPolicy], list[str]]:
    """As `_asked`, cached for all parts that a process sums."""
    return _asked(settings, logs, "log")


def _in_parts(
    engine: Engine, work: _Work, log: LogReader, rows: int
) -> tuple[ope.Audit | None, ope.Partial]:
    """Sum all parts of a log. Parts that share rows are read as one."""
    parts = log.parts(_PARTS * engine.processes)
    found: dict[int, tuple[Audited | None, ope.Partial]] = {}
    missing = [*range(len(parts))]
    with progress() as bar:
        task = bar.add_task("evaluating", total=rows or None)
        while True:
            results = engine.map(
                work,
                [parts[number] for number in missing],
                lambda result: bar.advance(task, result[1].rows),
            )
            found.update(zip(missing, results, strict=True))
            numbers = sorted(found)
            audits, sums = zip(*(found[number] for number in numbers), strict=True)
            try:
                merged = ope.merged(sums)
                break
            except ope.SharedRowsError as error:
                missing = []
                for group in _connected(error.pairs):
                    first, *others = (numbers[j] for j in group)
                    parts[first] = LogReader.of_parts([parts[j] for j in (first, *others)])
                    for j in (first, *others):
                        del found[j]
                    missing.append(first)
    audit = Audited.merged(audits).result() if work.share is not None else None
    return audit, merged


def _connected(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of numbers that pairs link, each in ascending order."""
    groups: list[set[int]] = []
    for pair in pairs:
        touched = [group for group in groups if group & {*pair}]
        groups = [group for group in groups if group not in touched]
        groups.append({*pair}.union(*touched))
    return sorted(map(sorted, groups))


def _asked(
    settings: _Settings, logs: Sequence[str], kind: str
) -> tuple[list[Model | Catalog], list[ope.EvaluationPolicy], list[str]]:
    """Models, policies, and the columns of the log that they need."""
    functions = functions_of(settings.score_functions)
    models = [_open(path, functions) for path in settings.models]
    by_model = _by_model(settings.policies, models, functions, logs if kind == "obd" else ())
    policies = [
        *_with_rules([*by_model], settings.policy_rules),
        *(ope.FromColumn(*_labelled(text)) for text in settings.columns),
        *(ope.FromRows(*_labelled(text)) for text in settings.carried),
    ]
    policies = _with_arrays(policies, settings)
    columns = [each.column for each in policies if isinstance(each, ope.FromColumn)]
    columns += [column for each in policies for column in each.arrays.values()]
    return models, policies, columns


def _audited(
    log: LogReader | ope.ExperimentLog, models: Sequence[Model | Catalog], rows: int
) -> ope.Audit:
    with progress() as bar:
        task = bar.add_task("auditing", total=rows or None)
        return ope.audit(log, models, advance=lambda rows: bar.update(task, completed=rows))


def _of_arms(
    settings: _Settings,
    logs: Sequence[str],
    arms: Mapping[str, Any],
    report: Path | None,
    as_json: bool,
) -> int:
    """Evaluate the rows of one experiment, and return the exit code."""
    models, policies, columns = _asked(settings, logs, "log")
    if report is not None and not policies:
        raise click.UsageError(f"--report: shows policies: {_NAME_ONE}")
    omit = _unread(settings, () if models or policies else _FOR_MODELS)
    omit = [name for name in omit if name not in ("experiment", "arm", "revision")]
    reader = _reader(logs, "log", columns, omit)
    _check_carried(settings, reader)
    log = ope.ExperimentLog(
        reader,
        arms["experiment"],
        shares=_shares(arms["shares"]),
    )
    audit = _audited(log, models, log.rows) if models and not settings.no_audit else None
    failed = audit is not None and audit.failed
    reasons = ["audit_failed"] if failed else []
    found = settings.run_arms(log, policies, models, arms["control"], reasons)
    title = f"{', '.join(logs)}: experiment {found.experiment}"
    section = None if found.pooled is None else Section(title, found.pooled, audit, found)
    if report is not None and section is not None:
        write_text(report, render([section]))
    code = 0 if any(each.rows_used for each in found.arms) else 1
    if as_json:
        told = {"title": title, "audit": audit and audit.to_dict(), **found.to_dict()}
        click.echo(json_text(told))
        return code
    console = standard_output()
    print_arms(console, title, found, audit)
    if section is not None:
        print_section(console, section)
    if report is not None:
        console.print(f"Report: {for_terminal(report)}")
    return code


def _unread(settings: _Settings, besides: Sequence[str]) -> list[str]:
    """Columns that need not be read."""
    wanted = _CARRIED if settings.carried else ""
    return [name for name in (*_UNREAD, *besides) if name != wanted]


def _check_carried(settings: _Settings, log: LogReader) -> None:
    """Raise UsageError if no row has a policy's log-propensities."""
    wanted = {_labelled(text)[1] for text in settings.carried}
    found: set[str] = set()
    for batch in log if wanted else ():
        found.update(batch.evaluated_names)
        if wanted <= found:
            return
    for name in sorted(wanted - found):
        have = ", ".join(sorted(found)) or "none of any policy"
        raise click.UsageError(f"--also: no row has log-propensities of {name!r}; they have {have}")


_ARM = "[^:=,]+=[^:=,]+"
_OF_ARMS = re.compile(rf"(?:(?P<since>.*):)?(?P<shares>{_ARM}(?:,{_ARM})*)", re.DOTALL)


def _shares(texts: Sequence[str]) -> Any:
    """Shares as `ExperimentLog` takes them."""
    if not texts:
        return None
    found: dict[Any, dict[str, float]] = {}
    for text in texts:
        match = _OF_ARMS.fullmatch(text)
        if match is None:
            raise click.UsageError(f"--shares: expected [FROM:]ARM=SHARE,...; got {text!r}")
        at = _since(match["since"])
        if at in found:
            raise click.UsageError(f"--shares: {text}: this start is given twice")
        shares = found.setdefault(at, {})
        for part in match["shares"].split(","):
            arm, _, share = part.partition("=")
            if arm in shares:
                raise click.UsageError(f"--shares: {text}: {arm} is given twice")
            try:
                shares[arm] = float(share)
            except ValueError:
                raise click.UsageError(
                    f"--shares: {text}: expected a number; got {share!r}"
                ) from None
    if None in found and len(found) > 1:
        raise click.UsageError("--shares: some have a start (FROM) and some have none")
    return found.get(None, found)


def _since(text: str | None) -> str | datetime | None:
    """A time, if the text is one with a time zone; otherwise a revision."""
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return text
    return text if at.tzinfo is None else at


def _of_own(
    settings: _Settings, logs: Sequence[str], kind: str, table: Mapping[str, Any]
) -> Section:
    """Evaluate a foreign log: its policies are columns of it, and no model is used."""
    with ownlog.saying_options():
        if kind == "dsjson":
            log, arrays = ownlog.dsjson_log(logs), {}
        else:
            named: list[tuple[str, str | Policy]] = [
                *ownlog.uniform_policies(settings.policies),
                *map(_labelled, settings.columns),
            ]
            labels = [ope.FromColumn(label, str(each)) for label, each in named]
            arrays = {each.label: each.arrays for each in _with_arrays(labels, settings)}
            columns = [column for each in arrays.values() for column in each.values()]
            log = ownlog.table_log(logs, table, named, columns)
        reader = log.reader(omit=(*_UNREAD, *_FOR_MODELS))
        rows = reader.survey()[0]
        evaluation = settings.run(reader, ope.evaluation_policies(log, arrays), [], rows)
    if not log.has_times:
        evaluation = replace(evaluation, span=None)
    return Section(", ".join(logs), evaluation, None)


def _by_model(
    texts: Sequence[str],
    models: Sequence[Model | Catalog],
    functions: Sequence[ScoreFunction] = (),
    dataset: Sequence[str] = (),
) -> Iterator[ope.EvaluationPolicy]:
    others: dict[str, Model | Catalog] = {}
    for text in texts:
        spec, at, directory = text.partition("@")
        label, policy = parse_policy(spec, "--policy")
        if callable(policy):
            raise click.UsageError(
                f"--policy: {text}: only `fastrank plan` takes a temperature relative to the"
                " logging policy's: give the temperature itself"
            )
        if at and directory not in others:
            others[directory] = _open(Path(directory), functions)
        if dataset and not at and not models:
            if not law_of(policy).is_uniform:
                raise click.UsageError(
                    f"--policy: {text}: a file of the Open Bandit Dataset comes without a model;"
                    " possible are uniform, and a --column of log-propensities"
                )
            yield ope.ByFunction(label, _uniform_of(dataset))
            continue
        if not at and not models:
            raise click.UsageError(f"--policy: {text}: give its model: --model, or @MODEL")
        # If several models wrote the log, the last one given is the one in use now.
        yield ope.ByModel(
            label if label != spec else text, policy, others[directory] if at else models[-1]
        )


def _with_rules(
    policies: Sequence[ope.EvaluationPolicy], texts: Sequence[str]
) -> list[ope.EvaluationPolicy]:
    """The policies, with the rules that --policy-rules gives them."""
    labels = [each.label for each in policies]
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        # Labels and files may contain equals signs: the longest label that matches is taken.
        fits = [label for label in labels if text.startswith(f"{label}=")]
        label = max(fits, key=len, default=None)
        file = Path(text if label is None else text[len(label) + 1 :])
        if label is None and not file.is_file() and "=" in text:
            raise click.UsageError(
                f"--policy-rules: {text}: expected a file, or LABEL=FILE with a policy on a model:"
                f" {', '.join(labels) or 'there is none'}"
            )
        said = _rules_of(file)
        for each in labels if label is None else [label]:
            if each in found:
                raise click.UsageError(f"--policy-rules: the rules of {each} are given twice")
            found[each] = said
    if texts and not labels:
        raise click.UsageError("--policy-rules: needs --policy")
    if not all(isinstance(each, ope.ByModel) for each in policies if each.label in found):
        raise click.UsageError(
            "--policy-rules: rules apply where a model ranks: give --model, or @MODEL in --policy"
        )
    try:
        return [replace(each, **found.get(each.label, {})) for each in policies]
    except ValueError as error:
        raise click.UsageError(f"--policy-rules: {error}") from None


def _rules_of(file: Path) -> dict[str, Any]:
    """Rules, and values of their parameters, from a file."""
    try:
        said = json.loads(file.read_bytes(), object_pairs_hook=_object)
        params: dict[str, Any] = {}
        if isinstance(said, dict) and "rules" in said:
            unknown = sorted(said.keys() - {"rules", "params"})
            if unknown:
                raise ValueError(f"expected the keys rules and params; got {unknown[0]!r}")
            said, params = said["rules"], said.get("params") or {}
        return {"rules": Rules.from_dict(said), "params": params}
    except OSError as error:
        raise click.UsageError(f"--policy-rules: {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--policy-rules: {file}: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated keys, of which JSON readers would keep one value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _labelled(text: str) -> tuple[str, str]:
    label, equals, column = text.partition("=")
    return (label, column) if equals else (text, text)


def _with_arrays(
    policies: Sequence[ope.EvaluationPolicy], settings: _Settings
) -> list[ope.EvaluationPolicy]:
    """The policies, with the columns that --array gives them."""
    names = [*settings.estimators, *([settings.lead] if settings.lead else [])]
    wanted = {need for name in names for need in ope.ESTIMATORS[name].needs}
    labels = [each.label for each in policies]
    found: dict[str, dict[str, str]] = {label: {} for label in labels}
    for text in settings.arrays:
        # Labels may contain colons and equals signs, such as plackett_luce:temperature=0.5.
        match = re.fullmatch(
            rf"(?:(?P<label>.+?):)?(?P<name>{'|'.join(_ARRAYS)})=(?P<column>.+)", text
        )
        if match is None:
            raise click.UsageError(
                f"--array: expected [LABEL:]NAME=COLUMN, NAME one of {', '.join(_ARRAYS)};"
                f" got {text!r}"
            )
        label, name, column = match["label"], match["name"], match["column"]
        if label is not None and label not in labels:
            raise click.UsageError(
                f"--array: {text}: expected a policy's label: {', '.join(labels)}; got {label!r}"
            )
        if name not in wanted:
            users = [each for each, cls in ope.ESTIMATORS.items() if name in cls.needs]
            raise click.UsageError(
                f"--array: {text}: unused without --estimator {' or '.join(users)}"
            )
        for each in labels if label is None else [label]:
            if name in found[each]:
                raise click.UsageError(f"--array: {name} of {each} is given twice")
            found[each][name] = column
    return [replace(each, arrays=found[each.label]) for each in policies]


def _open(path: Path, functions: Sequence[ScoreFunction]) -> Model | Catalog:
    catalog, model = open_directory(path, functions=functions)
    return catalog if model is None else model


def _reader(
    logs: Sequence[str], kind: str, columns: Sequence[str] = (), omit: Sequence[str] = _UNREAD
) -> LogReader:
    if kind == "data-capture":
        captured = from_data_capture(list(logs))
        return LogReader.of_tables(captured, columns=columns, omit=omit)
    if kind == "obd":
        tables = [table for path in logs for table in from_obd(path, columns=columns)]
        return LogReader.of_tables(tables, columns=["position", *columns], omit=omit)
    return LogReader(list(logs), columns=columns, omit=omit)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


# ---- The Open Bandit Dataset --------------------------------------------------------------------


def _bundled(
    settings: _Settings, campaign: obd.Campaign, logged: obd.LoggingPolicy, target: str
) -> Section:
    log = LogReader.of_tables(list(from_obd(campaign, logged)), columns=["position"])
    n_items = len(obd.items(campaign).item_ids)
    frozen = target == "bts"
    function = _frozen(obd.action_distribution(campaign)) if frozen else _uniform(n_items)
    evaluation = settings.run(log, [ope.ByFunction(target, function)], [], log.survey()[0])
    title = f"Open Bandit Dataset, campaign {campaign}: logged by {logged}, evaluated {target}"
    return Section(title, evaluation, None)


def _frozen(action_distribution: np.ndarray[Any, Any]) -> Callable[[LogBatch], Any]:
    def function(batch: LogBatch) -> Any:
        place = batch.columns["position"].astype(np.int64) - 1
        return np.log(action_distribution[batch.item_ids[:, 0], place])[:, None]

    return function


def _uniform(n_items: int) -> Callable[[LogBatch], Any]:
    return lambda batch: np.full(batch.log_propensities.shape, -np.log(n_items))


def _uniform_of(paths: Sequence[str]) -> Callable[[LogBatch], Any]:
    """The uniform policy over the items of the campaign that all the files are of."""
    found = {items_of_obd(path) for path in paths}
    if len(found) > 1:
        several = " and ".join(map(str, sorted(found)))
        raise click.UsageError(
            f"--policy: uniform: the files are of campaigns of {several} items: evaluate each"
            " campaign separately"
        )
    (n_items,) = found
    uniform = _uniform(n_items)

    def function(batch: LogBatch) -> Any:
        if batch.item_ids.max(initial=0) >= n_items:
            raise ValueError(
                f"{', '.join(paths)}: expected items 0 to {n_items - 1} of the campaign; got"
                f" {batch.item_ids.max()}"
            )
        return uniform(batch)

    return function
