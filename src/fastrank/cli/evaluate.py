"""`fastrank evaluate`, `fastrank audit`: what a log says about other policies, and about itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from fastrank import obd, ope
from fastrank.atomic import write_text
from fastrank.catalog import Catalog
from fastrank.cli.scores import functions_of, score_function_option
from fastrank.cli.terminal import for_terminal, json_text, progress, say, standard_output
from fastrank.eventlog import LogBatch, LogReader, from_data_capture, from_obd
from fastrank.eventlog.account import told_of
from fastrank.eventlog.obdlog import items_of_obd
from fastrank.eventlog.schema import UNREAD
from fastrank.model import Model
from fastrank.ope.evaluation import DEFAULT_ESTIMATORS
from fastrank.ope.forecast import forecast
from fastrank.ope.report import Section, render
from fastrank.opening import open_directory
from fastrank.policies import law_of
from fastrank.policies.spec import parse_policy
from fastrank.scoring import ScoreFunction

__all__ = ["audit", "evaluate"]

_FORMATS = ["log", "obd", "data-capture"]
# What estimators want besides propensities, by the names that columns are given for.
_ARRAYS = [*dict.fromkeys(need for each in ope.ESTIMATORS.values() for need in each.needs)]
_POLICY = "[LABEL=]INFERENCE_TYPE[:PARAM=VALUE,...][@MODEL]"
# Columns of a log that no evaluation and no audit looks at, and those that only models do, and that
# make most of its bytes. Whether rows ranked candidates, and the kind of rewards, is always read.
_READ = ("score", "features_version", "row_weight")
_UNREAD = (
    *("latency_us", "n_candidates", "retrieval", "reward_ts"),
    *(name for name in UNREAD if name not in _READ),
)
_FOR_MODELS = ("scores", "query", "log_norm")
_JOIN_LINES = 10  # of what joins dropped, so many are printed
_LONG = 10.0  # seconds, from which on a run is announced
# Of what the Open Bandit Dataset was logged by, and what it is asked about: campaign, log, policy.
_BUNDLED: Sequence[tuple[obd.Campaign, obd.LoggingPolicy, str]] = (
    ("all", "random", "bts"),
    ("all", "bts", "uniform"),
    ("men", "bts", "uniform"),
)


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """NaN lies outside no range, as click compares; infinity is no limit."""
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
    help="The model that wrote it; several if it was replaced on the way.",
)
@click.option("--format", "kind", type=click.Choice(["log", "data-capture"]), default="log")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Rows whose propensities are computed again.",
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
    """Compute a log's propensities again with the model that is said to have written it.

    LOGS are files, directories or quoted globs. Exit code 1 if a check fails, or if there was
    nothing to check.

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
        _print_audit(console, found)
        for name, why in found.log["unreadable_files"].items():
            console.print(for_terminal(f"not read: {name}: {why}"))
        say(
            console,
            _agreement(found)
            if found.passed or not found.failed
            else "[bold]This model did not write this log[/] as it stands: do not evaluate it.",
        )
    return 0 if found.passed else 1


@click.command()
@click.argument("logs", nargs=-1)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The model that wrote the log, and that policies are of; several if it was replaced.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar=_POLICY,
    help="A policy to evaluate, of the last --model, or @MODEL. May be given several times."
    " Of a file of --format obd, uniform is possible without a model.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="[LABEL=]COLUMN",
    help="A policy whose conditional log-propensities stand in a column of the log: lists,"
    " or of a file of --format obd numbers.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(_FORMATS),
    default="log",
    show_default=True,
    help="obd: CSV or Parquet files of the Open Bandit Dataset; without LOGS, those bundled.",
)
@click.option(
    "--array",
    "arrays",
    multiple=True,
    metavar="[LABEL:]NAME=COLUMN",
    help="A column of the log that holds what an estimator wants: NAME is one of"
    f" {', '.join(_ARRAYS)}. For the policy of that label, or for all.",
)
@click.option("-k", "places", type=click.IntRange(min=1), help="Places of the evaluated rankings.")
@click.option(
    "--estimator",
    "estimators",
    multiple=True,
    type=click.Choice(list(ope.ESTIMATORS)),
    metavar="NAME",
    help=f"Some of {', '.join(ope.ESTIMATORS)}.  [default: {', '.join(DEFAULT_ESTIMATORS)}]",
)
@click.option(
    "--lead",
    type=click.Choice(list(ope.ESTIMATORS)),
    metavar="NAME",
    help="The estimator that verdicts rest on.  [default: snrips; snips where that is as exact, or"
    " the log contradicts snrips]",
)
@click.option(
    "--reference",
    default="logging",
    show_default=True,
    metavar="LABEL",
    help="What policies are compared with.",
)
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    callback=_finite,
    help="Of intervals.",
)
@click.option("--independent-rows", is_flag=True, help="Do not take rows of a user as one cluster.")
@click.option(
    "--clip",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    callback=_finite,
    help="Largest weight of clipped-ips, finite: without a limit it is ips.",
)
@click.option(
    "--reward-range",
    type=(float, float),
    metavar="LOW HIGH",
    help="Of a ranking's reward: gives clipped-ips a Bernstein bound.",
)
@click.option(
    "--threshold",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"One of {', '.join(ope.Thresholds.__dataclass_fields__)}.",
)
@click.option("--include-fallback", is_flag=True, help="Use rows of the fallback.")
@click.option("--include-caller-seeds", is_flag=True, help="Use rows whose seed a caller chose.")
@click.option(
    "--restrict-to-logged-catalog",
    is_flag=True,
    help="Evaluate policies that never show newer items than the log's.",
)
@click.option(
    "--keep-candidates",
    is_flag=True,
    help="Where candidates were ranked, evaluate policies that rank the same ones.",
)
@click.option("--no-audit", is_flag=True, help="Believe that the model wrote the log.")
@score_function_option
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page to read in a browser.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    logs: tuple[str, ...], kind: str, report: Path | None, as_json: bool, **options: Any
) -> None:
    """Estimate what other policies would have earned, from a log of this one with its rewards.

    LOGS are files, directories or quoted globs. The log is audited first, then read once.

    \b
    Examples:
      fastrank evaluate logs/ --model model/ --policy colder=plackett_luce:temperature=0.2 \\
          --policy deterministic --policy new=plackett_luce:temperature=0.3@new-model/ \\
          --report report.html
      fastrank evaluate --format obd --report report.html
      fastrank evaluate --format obd obd/bts/men/men.csv --policy uniform --column new=log_p
    """
    settings = _Settings(**options)
    if report is not None and not report.parent.is_dir():  # known now, not after the work
        raise click.UsageError(f"--report: {report.parent} is not a directory")
    if report is not None:
        render([])  # likewise whether there is what pages are made with
    if kind == "obd" and not logs:
        if settings.models or settings.policies or settings.columns or settings.arrays:
            raise click.UsageError(
                "--format obd without LOGS evaluates what is bundled: no policies"
            )
        sections = [_bundled(settings, *each) for each in _BUNDLED]
    else:
        if not logs:
            raise click.UsageError("LOGS: name a file, a directory or a glob")
        sections = [_evaluated(settings, logs, kind)]
    if report is not None:
        write_text(report, render(sections))
    if as_json:
        found = [
            {"title": s.title, "audit": s.audit and s.audit.to_dict(), **s.evaluation.to_dict()}
            for s in sections
        ]
        click.echo(json_text(found[0] if len(found) == 1 else found))
        return
    console = standard_output()
    for section in sections:
        _print(console, section)
    if report is not None:
        console.print(f"Report: {for_terminal(report)}")


@dataclass(frozen=True, slots=True)
class _Settings:
    models: tuple[Path, ...]
    policies: tuple[str, ...]
    columns: tuple[str, ...]
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
    ) -> None:
        """Say how long it will take, if that is long."""
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
                places=self.places,
                estimators=self.estimators or None,
                lead=self.lead,
                reference=self.reference,
                cluster=not self.independent_rows,
                level=self.level,
                thresholds=self.thresholds(),
                clip=self.clip,
                reward_range=self.reward_range,
                include_fallback=self.include_fallback,
                include_caller_seeds=self.include_caller_seeds,
                restrict_to_logged_catalog=self.restrict_to_logged_catalog,
                keep_candidates=self.keep_candidates,
                reasons=reasons,
                advance=lambda rows: bar.update(task, completed=rows),
            )


def _evaluated(settings: _Settings, logs: Sequence[str], kind: str) -> Section:
    functions = functions_of(settings.score_functions)
    models = [_open(path, functions) for path in settings.models]
    policies = [
        *_by_model(settings.policies, models, functions, logs if kind == "obd" else ()),
        *(ope.FromColumn(*_labelled(text)) for text in settings.columns),
    ]
    if not policies:
        raise click.UsageError("name at least one --policy or --column")
    policies = _with_arrays(policies, settings)
    columns = [each.column for each in policies if isinstance(each, ope.FromColumn)]
    columns += [column for each in policies for column in each.arrays.values()]
    audited = bool(models) and not settings.no_audit and kind != "obd"
    asked = audited or any(isinstance(each, ope.ByModel) for each in policies)
    log = _reader(logs, kind, columns, _UNREAD if asked else (*_UNREAD, *_FOR_MODELS))
    rows = log.survey()[0]
    found = None
    if audited:
        with progress() as bar:
            task = bar.add_task("auditing", total=rows or None)
            found = ope.audit(log, models, advance=lambda rows: bar.update(task, completed=rows))
    settings.announce(log, policies, models, rows)
    failed = found is not None and found.failed
    evaluation = settings.run(log, policies, models, rows, ["audit_failed"] if failed else [])
    return Section(", ".join(logs), evaluation, found)


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
            raise click.UsageError(f"--policy: {text}: give the temperature itself")
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
        # Of several that wrote the log, the last one given is what goes on from here.
        yield ope.ByModel(
            label if label != spec else text, policy, others[directory] if at else models[-1]
        )


def _labelled(text: str) -> tuple[str, str]:
    label, equals, column = text.partition("=")
    return (label, column) if equals else (text, text)


def _with_arrays(
    policies: Sequence[ope.EvaluationPolicy], settings: _Settings
) -> list[ope.EvaluationPolicy]:
    """The policies with the columns that --array names for them."""
    names = [*settings.estimators, *([settings.lead] if settings.lead else [])]
    wanted = {need for name in names for need in ope.ESTIMATORS[name].needs}
    labels = [each.label for each in policies]
    found: dict[str, dict[str, str]] = {label: {} for label in labels}
    for text in settings.arrays:
        # Labels may hold colons and equals signs: plackett_luce:temperature=0.5 is one.
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
                f"--array: {text}: no policy is called {label!r}, only {', '.join(labels)}"
            )
        if name not in wanted:
            users = [each for each, cls in ope.ESTIMATORS.items() if name in cls.needs]
            raise click.UsageError(
                f"--array: {text}: nothing wants it without --estimator {' or '.join(users)}"
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
    title = f"Open Bandit Dataset, campaign {campaign}: logged by {logged}, asked about {target}"
    return Section(title, evaluation, None)


def _frozen(action_distribution: np.ndarray[Any, Any]) -> Callable[[LogBatch], Any]:
    def function(batch: LogBatch) -> Any:
        place = batch.columns["position"].astype(np.int64) - 1
        return np.log(action_distribution[batch.item_ids[:, 0], place])[:, None]

    return function


def _uniform(n_items: int) -> Callable[[LogBatch], Any]:
    return lambda batch: np.full(batch.log_propensities.shape, -np.log(n_items))


def _uniform_of(paths: Sequence[str]) -> Callable[[LogBatch], Any]:
    """Uniform over the items of the campaign that all of the files are of."""
    found = {items_of_obd(path) for path in paths}
    if len(found) > 1:
        several = " and ".join(map(str, sorted(found)))
        raise click.UsageError(
            f"--policy: uniform: the files are of campaigns of {several} items: evaluate each"
            " campaign for itself"
        )
    (n_items,) = found
    uniform = _uniform(n_items)

    def function(batch: LogBatch) -> Any:
        if batch.item_ids.max(initial=0) >= n_items:
            raise ValueError(
                f"{', '.join(paths)}: item {batch.item_ids.max()} is none of the campaign's"
                f" {n_items} items, 0 to {n_items - 1}"
            )
        return uniform(batch)

    return function


# ---- Printing -----------------------------------------------------------------------------------


def _agreement(found: ope.Audit) -> str:
    """What an audit says of which no check failed."""
    if not found.judged:
        return "Nothing could be checked: the log has no valid rows."
    if found.log["unreadable_files"]:
        return "What could be read of the log agrees with the model; some of its files could not."
    return "The log agrees with the model."


def _print_audit(console: Console, found: ope.Audit) -> None:
    colours = {"passed": "green", "warning": "yellow", "failed": "bold red", "not done": "dim"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("check", "outcome", ""):
        table.add_column(column)
    for check in found.checks:
        table.add_row(
            check.name, f"[{colours[check.outcome]}]{check.outcome}[/]", for_terminal(check.message)
        )
        for example in check.examples:
            table.add_row("", "", f"[dim]{for_terminal(example)}[/]")
    console.print(table)


def _print(console: Console, section: Section) -> None:
    evaluation = section.evaluation
    console.rule(f"[bold]{for_terminal(section.title)}")
    if section.audit is None:
        say(console, "Not audited: that the log is what it says is taken on trust.")
    else:
        if not section.audit.failed:
            warnings = [c.message for c in section.audit.checks if c.outcome == "warning"]
            tail = f" Warnings: {'; '.join(warnings)}." if warnings else ""
            agreement = _agreement(section.audit)
            say(console, f"Audit: {agreement[0].lower()}{agreement[1:]}{for_terminal(tail)}")
        else:
            _print_audit(console, section.audit)
    earned = evaluation.logged
    if earned.value is not None:
        good = earned.status == "ok"
        amount = _doubted(_figure(earned.value), good)
        between = _doubted(_interval(earned.interval), good)
        tail = f" ({between})" if between else ""
        say(console, f"The logging policy earned {amount} a ranking{tail}.")
    for policy in evaluation.policies:
        colour = {"ok": "green", "unsupported": "red"}.get(policy.status, "yellow")
        say(console, f"[{colour}]{policy.status}[/] [bold]{for_terminal(policy.verdict)}[/]")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy", overflow="fold", min_width=8)
    table.add_column("estimator", no_wrap=True)
    for column in ("estimate", f"{100 * evaluation.level:g} % interval", "difference", "ESS"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for policy in evaluation.policies:
        listed = [
            (name, estimate)
            for name, estimate in policy.estimates.items()
            if name != "avg" or name == policy.lead or estimate.status == "ok"
        ]
        for j, (name, estimate) in enumerate(listed):
            good = estimate.status == "ok"
            difference = policy.differences.get(name)
            compared = difference is not None and difference.status == "ok"
            found = estimate.diagnostics
            table.add_row(
                for_terminal(policy.label) if j == 0 else "",
                f"[bold]{name}[/]" if name == policy.lead else name,
                _doubted(_figure(estimate.value), good),
                _doubted(_interval(estimate.interval), good),
                ""
                if difference is None or name == "avg"
                else _doubted(_figure(difference.value, "+"), compared),
                "" if found is None else f"{found.ess:,.0f}",
                estimate.status,
                style=None if good else "dim",
                end_section=j + 1 == len(listed),
            )
    console.print(table)
    if evaluation.clustered and evaluation.rows_without_user:
        say(
            console,
            f"{evaluation.rows_without_user:,} rows name no user, and are taken as independent.",
        )
    used = f"{evaluation.rows_used:,} of {evaluation.rows:,} rows used"
    aside = [
        f"{count:,} {reason.replace('_', ' ')}" for reason, count in evaluation.set_aside.items()
    ]
    malformed = [
        f"{count:,} malformed: {reason}" for reason, count in evaluation.log["set_aside"].items()
    ]
    unread = [f"{name}: {why}" for name, why in evaluation.log["unreadable_files"].items()]
    unread += [f"{name} breaks off: {why}" for name, why in evaluation.log["files_cut"].items()]
    for line in unread:
        console.print(for_terminal(f"not read: {line}"))
    missing = [line for join in evaluation.log["joins"] for line in told_of(join)]
    for line in missing[:_JOIN_LINES]:
        console.print(for_terminal(f"join: {line}"))
    if len(missing) > _JOIN_LINES:
        console.print(f"join: {len(missing) - _JOIN_LINES:,} more lines, which --report has")
    lost = sum(evaluation.log["rows_lost"].values())
    gaps = [f"{lost:,} lost before they were written"] if lost else []
    equal = evaluation.log["equal_duplicates"]
    again = [f"{equal:,} came twice, say the same, and count once"] if equal else []
    say(console, for_terminal("; ".join([used, *aside, *malformed, *again, *gaps]) + "."))
    if len(evaluation.strata) > 1:
        for stratum in evaluation.strata:
            params = ", ".join(f"{n} {v:.6g}" for n, v in stratum.stratum.params)
            name = f"{stratum.stratum.law} {params}".strip()
            if stratum.stratum.score is not None:
                name += f", score {stratum.stratum.score}"
            if stratum.stratum.features_version is not None:
                name += f", features {stratum.stratum.features_version[:12]}"
            dropped = f"; left out for {', '.join(stratum.dropped)}" if stratum.dropped else ""
            console.print(
                for_terminal(f"  {stratum.rows:,} rows ({stratum.share:.1%}) by {name}{dropped}")
            )


def _doubted(text: str, good: bool) -> str:
    """In brackets, if it is no result."""
    return text if good or not text else f"({text})"


def _figure(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4g}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"
