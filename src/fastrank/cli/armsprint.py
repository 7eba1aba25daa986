"""Print the comparison of arms of `fastrank evaluate --experiment`."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from fastrank import ope
from fastrank.cli.evaluateprint import agreement, print_audit
from fastrank.cli.terminal import for_terminal, say

__all__ = ["print_arms"]


def print_arms(
    console: Console, title: str, found: ope.ArmsEvaluation, audit: ope.Audit | None
) -> None:
    console.rule(f"[bold]{for_terminal(title)}")
    if found.pooled is None and audit is not None:  # otherwise printed with the policies
        if audit.failed:
            print_audit(console, audit)
        else:
            say(console, f"Audit: {for_terminal(agreement(audit))}")
    colour = {"ok": "green", "unsupported": "red"}.get(found.status, "yellow")
    first, *others = found.verdict
    say(console, f"[{colour}]{found.status}[/] [bold]{for_terminal(first)}[/]")
    for said in others:
        say(console, for_terminal(said))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", overflow="fold", min_width=8)
    for column in ("rows", "used", "earned", f"{100 * found.level:g} % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold")
    for each in found.arms:
        earned = each.earned
        table.add_row(
            for_terminal(each.arm),
            f"{each.rows:,}",
            f"{each.rows_used:,}",
            "" if earned.value is None else f"{earned.value:.4g}",
            "" if earned.interval is None else "{:.3g} to {:.3g}".format(*earned.interval),
            for_terminal(each.policy or f"unknown: {each.why_not_known}"),
        )
    console.print(table)
    if len(found.periods) > 1:
        say(
            console,
            "Arms are compared within periods of constant shares; do not compare their totals.",
        )
        for period in found.periods:
            rows = ", ".join(f"{arm} {count:,}" for arm, count in period["rows"].items())
            console.print(
                for_terminal(f"  {period['name']}, {period['first']} to {period['last']}: {rows}")
            )
    aside = [
        f"{count:,} {reason.replace('_', ' ')} ({each.arm})"
        for each in found.arms
        for reason, count in each.set_aside.items()
    ]
    if found.rows_without_arm:
        aside.append(f"{found.rows_without_arm:,} without an arm")
    if aside:
        say(console, for_terminal(f"Not used: {'; '.join(aside)}."))
    if found.pooled is not None:
        say(console, for_terminal(found.pooling))
