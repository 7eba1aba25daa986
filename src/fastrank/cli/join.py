"""`fastrank join`: add rewards to a log, as a new data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table

from fastrank.cli.terminal import for_terminal, progress, say, standard_output

if TYPE_CHECKING:  # pyarrow is slow to import: only when the command runs
    from fastrank.eventlog import JoinSummary
    from fastrank.eventlog.join import Repeats, RewardKind

__all__ = ["join"]


@click.command()
@click.argument("logs")
@click.argument("rewards")
@click.option(
    "--window",
    required=True,
    help="Rewards count for this long after a ranking was shown: 30m, 24h, 7d.",
)
@click.option(
    "--as-of",
    required=True,
    help="The rewards are complete up to this time: 2026-01-31T12:00:00Z. UTC if it names no zone.",
)
@click.option(
    "--kind",
    required=True,
    type=click.Choice(["positives", "complete"]),
    help="positives: a missing reward is 0. complete: a missing reward was not observed.",
)
@click.option(
    "--shown",
    metavar="IMPRESSIONS",
    help="What was shown, and when: request_id, ts, displayed (number of places, from the top).",
)
@click.option(
    "--repeats",
    type=click.Choice(["max", "sum", "first"]),
    default="max",
    show_default=True,
    help="How to combine several rewards for one item of one ranking.",
)
@click.option(
    "--skew",
    default="0s",
    show_default=True,
    help="How long before its ranking a reward or impression may come, if clocks differ: 30s.",
)
@click.option(
    "--other-requests",
    is_flag=True,
    help="REWARDS and IMPRESSIONS also contain requests that were not logged.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to make."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def join(
    logs: str,
    rewards: str,
    window: str,
    as_of: str,
    kind: RewardKind,
    shown: str | None,
    repeats: Repeats,
    skew: str,
    other_requests: bool,
    output: Path,
    as_json: bool,
) -> int:
    """Join REWARDS to LOGS and write a new data set.

    LOGS is a directory, file or glob of a log. REWARDS is a directory, file or glob of Parquet, CSV
    or JSON Lines with request_id, item_id, reward, ts, and optionally position (the item's place,
    from 1).

    A reward counts if its item was shown under its request and the reward came within the window.
    Rankings whose window is still open at --as-of are left out: run the command again later. The
    result is written completely or not at all, and not inside LOGS, where the next command would
    read it too.

    A logged ranking has not necessarily been shown. With --shown, a window begins when its ranking
    was first shown, and places beyond those displayed earn nothing. A ranking without an impression
    was never shown: it earns nothing, and evaluate leaves it out.

    Rewards without a ranking are counted by reason. The exit code is 1 if rankings were written and
    no reward was used.

    \b
    Example:
      fastrank join logs/ clicks.csv --window 24h --as-of 2026-02-01T00:00:00Z \\
          --kind positives -o joined/
      fastrank join logs/ clicks.csv --shown impressions.csv --window 24h \\
          --as-of 2026-02-01T00:00:00Z --kind positives -o joined/
    """
    from fastrank.eventlog.account import told
    from fastrank.eventlog.join import join as join_rewards

    with progress() as bar:
        task = bar.add_task("joining", total=1.0)
        summary = join_rewards(
            logs,
            rewards,
            output,
            window=window,
            as_of=as_of,
            kind=kind,
            shown=shown,
            repeats=repeats,
            skew=skew,
            other_requests=other_requests,
            advance=lambda share: bar.update(task, completed=share),
        )
    missing = told(summary.to_dict(), other_requests=other_requests)
    verdict = _verdict(summary, kind)
    if as_json:
        click.echo(json.dumps({"output": str(output), **summary.to_dict()}))
        for line in (*missing, *([verdict] if verdict else [])):
            click.echo(f"fastrank join: {line}", err=True)
    else:
        _print(output, summary, missing, verdict, shown is not None)
    unused = summary.rewards_read and summary.rows_written and not summary.rewards_used
    return 1 if unused else 0


def _verdict(summary: JoinSummary, kind: str) -> str:
    """The main problem of the result, or an empty text."""
    nothing = "earned 0" if kind == "positives" else "has no reward"
    if not summary.rows_written:
        return "No ranking was written: all windows are open." if summary.rows_open else ""
    if summary.rows_not_shown == summary.rows_written:
        return "None of the rankings written was ever shown: there is nothing to evaluate."
    if not summary.rewards_read:
        return f"There are no rewards in the files: every ranking written {nothing}."
    if not summary.rewards_used:
        return f"None of the rewards was used: every ranking written {nothing}."
    if summary.rewards_dropped:
        return f"{100 * summary.dropped_share:.3g} % of the rewards are missing in the result."
    return ""


def _print(
    output: Path, summary: JoinSummary, missing: list[str], verdict: str, has_impressions: bool
) -> None:
    console = standard_output()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("count", justify="right")
    unlogged = summary.rewards_unlogged_requests
    rows: list[tuple[str, int]] = [
        ("rankings read", summary.rows_read),
        ("  set aside as malformed", summary.rows_set_aside),
        ("  left out, window still open", summary.rows_open),
        ("  written", summary.rows_written),
        ("    with a reward from the files", summary.rows_with_reward),
        ("    never shown", summary.rows_not_shown),
        ("rewards read", summary.rewards_read),
        ("  used", summary.rewards_used),
        ("    of these, repeats", summary.rewards_repeated),
        ("    before their ranking, within the skew", summary.rewards_early),
        ("  of rankings left out", summary.rewards_of_open_rows),
        ("  before their ranking", summary.rewards_before),
        ("  after the window", summary.rewards_after),
        ("  request not in the log", unlogged),
        ("    within its time", summary.rewards_unlogged_in_span),
        ("  item not ranked there", summary.rewards_unlogged - unlogged),
        ("  ranked in another position", summary.rewards_misplaced),
        ("  beyond the places displayed", summary.rewards_not_displayed),
        ("  of rankings never shown", summary.rewards_not_shown),
    ]
    if has_impressions:
        rows += [
            ("impressions read", summary.impressions_read),
            ("  used", summary.impressions_used),
            ("    of these, repeats", summary.impressions_repeated),
            ("    more places than were ranked", summary.impressions_beyond),
            ("    before their ranking, within the skew", summary.impressions_early),
            ("  of rankings left out", summary.impressions_of_open_rows),
            ("  before their ranking", summary.impressions_before),
            ("  after the window", summary.impressions_after),
            ("  of no place", summary.impressions_empty),
            ("  request not in the log", summary.impressions_unlogged),
            ("    within its time", summary.impressions_unlogged_in_span),
        ]
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    console.print(table)
    for file, why in summary.files_set_aside.items():
        say(console, f"[bold yellow]not read:[/] {for_terminal(file)}: {for_terminal(why)}")
    for file, why in summary.files_cut.items():
        say(console, f"[bold yellow]breaks off:[/] {for_terminal(file)}: {for_terminal(why)}")
    for line in missing:
        console.print(for_terminal(line))
    if summary.rows_open:
        until = f", the last until {summary.open_until}" if summary.open_until else ""
        console.print(f"{summary.rows_open:,} rankings left out: their windows are open{until}")
    if verdict:
        console.print(f"[bold yellow]{verdict}[/]")
    console.print(f"{for_terminal(output)}: {summary.rows_written:,} rankings with rewards")
