"""Print the results of `fastrank evaluate` and `fastrank audit`."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from fastrank import ope
from fastrank.cli.terminal import for_terminal, say
from fastrank.eventlog.account import told_of
from fastrank.frames import bracketed
from fastrank.ope.report import Section, is_rounding
from fastrank.ope.summary import IN_BRACKETS

__all__ = ["agreement", "print_audit", "print_section"]

_JOIN_LINES = 10  # most lines printed about what joins dropped
_PLACES = 3  # most malformed rows shown for each reason


def agreement(found: ope.Audit) -> str:
    """The summary of an audit in which no check failed."""
    if not found.judged:
        return "Nothing could be checked: the log has no valid rows."
    if found.log["unreadable_files"]:
        return "The readable files of the log agree with the model; some files could not be read."
    return "The log agrees with the model."


def print_audit(console: Console, found: ope.Audit) -> None:
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


def print_section(console: Console, section: Section) -> None:
    evaluation = section.evaluation
    console.rule(f"[bold]{for_terminal(section.title)}")
    if section.audit is None:
        say(console, "Not audited: it is assumed that the model wrote the log.")
    else:
        if not section.audit.failed:
            warnings = [c.message for c in section.audit.checks if c.outcome == "warning"]
            tail = f" Warnings: {'; '.join(warnings)}." if warnings else ""
            agreed = agreement(section.audit)
            say(console, f"Audit: {agreed[0].lower()}{agreed[1:]}{for_terminal(tail)}")
        else:
            print_audit(console, section.audit)
    if evaluation.next_step is not None:
        say(console, f"[bold]{for_terminal(evaluation.next_step)}[/]")
    doubted = False
    earned = evaluation.logged
    if earned.value is not None:
        good = earned.status == "ok"
        between = _interval(earned.interval)
        inner = f"{_figure(earned.value)}; {between}" if between else _figure(earned.value)
        tail = f" ({between})" if between else ""
        amount = f"{_figure(earned.value)} a ranking{tail}" if good else f"({inner}) a ranking"
        say(console, f"The logging policy earned {amount}.")
        doubted |= not good
    for policy in evaluation.policies:
        colour = {"ok": "green", "unsupported": "red"}.get(policy.status, "yellow")
        say(console, f"[{colour}]{policy.status}[/] [bold]{for_terminal(policy.verdict)}[/]")
    if evaluation.rows_used:
        doubted |= _print_estimates(console, evaluation)
    if doubted:
        say(console, IN_BRACKETS)
    if evaluation.clustered and evaluation.rows_without_user:
        say(
            console,
            f"{evaluation.rows_without_user:,} rows name no user, and are treated as independent.",
        )
    if evaluation.user_effect is not None:
        say(
            console,
            "Rows were treated as independent, but rows of one user are not: intervals are too"
            f" narrow, by a factor of about {evaluation.user_effect**0.5:.2g}.",
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
        console.print(f"join: {len(missing) - _JOIN_LINES:,} more lines, printed in --report")
    lost = sum(evaluation.log["rows_lost"].values())
    gaps = [f"{lost:,} lost before they were written"] if lost else []
    equal = evaluation.log["equal_duplicates"]
    again = [f"{equal:,} identical duplicates, counted once"] if equal else []
    unzoned = evaluation.log["times_without_zone"]
    zones = [f"{unzoned:,} served at a time without a zone, read as UTC"] if unzoned else []
    counts = [used, *aside, *malformed, *again, *gaps, *zones]
    say(console, for_terminal("; ".join(counts) + "."))
    for reason, places in evaluation.log["places"].items():
        for place in places[:_PLACES]:
            detail = f": {place['detail']}" if place["detail"] else ""
            where = f"{place['file']}, row {place['row']}{detail}"
            console.print(for_terminal(f"  malformed: {reason}: {where}"))
    if len(evaluation.strata) > 1:
        for stratum in evaluation.strata:
            params = ", ".join(f"{n} {v:.6g}" for n, v in stratum.stratum.params)
            name = f"{stratum.stratum.law} {params}".strip()
            if stratum.stratum.score is not None:
                name += f", score {stratum.stratum.score}"
            if stratum.stratum.features_version is not None:
                name += f", features {stratum.stratum.features_version[:12]}"
            dropped = (
                f"; left out because of {', '.join(stratum.dropped)}" if stratum.dropped else ""
            )
            console.print(
                for_terminal(f"  {stratum.rows:,} rows ({stratum.share:.1%}) by {name}{dropped}")
            )


def _print_estimates(console: Console, evaluation: ope.Evaluation) -> bool:
    """Print the table of estimates; return whether any of them is in brackets."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy", overflow="fold", min_width=8)
    table.add_column("estimator", no_wrap=True)
    for column in ("estimate", f"{100 * evaluation.level:g} % interval", "difference", "ESS"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    doubted = False
    for policy in evaluation.policies:
        for j, (name, estimate) in enumerate(policy.listed.items()):
            good = estimate.status == "ok"
            difference = policy.differences.get(name)
            compared = difference is not None and difference.status == "ok"
            found = estimate.diagnostics
            figures = [
                bracketed(_figure(estimate.value), good),
                bracketed(_interval(estimate.interval), good),
                ""
                if difference is None or name == "avg"
                else "0"
                if is_rounding(difference, estimate)
                else bracketed(_figure(difference.value, "+"), compared),
            ]
            doubted |= any(text.startswith("(") for text in figures)
            table.add_row(
                for_terminal(policy.label) if j == 0 else "",
                f"[bold]{name}[/]" if name == policy.lead else name,
                *figures,
                "" if found is None else f"{found.ess:,.0f}",
                estimate.status,
                style=None if good else "dim",
                end_section=j + 1 == len(policy.listed),
            )
    console.print(table)
    return doubted


def _figure(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4g}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}"
