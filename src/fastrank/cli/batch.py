"""`fastrank batch`: all users of some files ranked into a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.progress import TaskID
from rich.table import Table

from fastrank.cli.filters import filter_options, filters_of
from fastrank.cli.scores import (
    functions_of,
    param_option,
    params_of,
    rules_of,
    score_function_option,
)
from fastrank.cli.terminal import for_terminal, json_text, progress, standard_output
from fastrank.model import Model
from fastrank.opening import open_directory
from fastrank.policies import Policy
from fastrank.policies.spec import parse_stated

if TYPE_CHECKING:  # it brings pyarrow, which --help does without
    from fastrank.batch.runs import Engine

__all__ = ["batch"]

_POLICY = "POLICY[:PARAM=VALUE,...]"


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("users")
@click.option(
    "-o",
    "--output",
    "log",
    required=True,
    metavar="LOG",
    type=click.Path(path_type=Path),
    help="The log's directory, of this run alone.",
)
@click.option("--run", required=True, metavar="NAME", help="The run's name: 2026-11-30, say.")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Places.")
@click.option(
    "--policy",
    "policy_text",
    metavar=_POLICY,
    help="How to rank.  [default: the model's own policy]",
)
@click.option(
    "--user-column",
    default="user_id",
    show_default=True,
    metavar="COLUMN",
    help="Column of user ids in USERS.",
)
@click.option(
    "--unknown",
    type=click.Choice(["fail", "skip", "fallback"]),
    default="fail",
    show_default=True,
    help="What becomes of users that the model does not know: nobody is ranked; they get no row;"
    " or they are ranked by the catalog's bias alone, or by what its score makes of a dot product"
    " of 0.",
)
@click.option(
    "--fallback",
    "fallback_text",
    metavar=_POLICY,
    help="Ranks those of --unknown fallback.  [default: the policy]",
)
@click.option("--score", help="What makes scores of dot products.  [default: the model's own]")
@param_option
@score_function_option
@click.option(
    "--rules", "rules_text", metavar="FILE|JSON", help="What may stand where, as for fastrank rank."
)
@filter_options("Items to leave out. Repeatable.", "Rank only these items. Repeatable.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Processes of this machine, or Ray: the cluster of RAY_ADDRESS, whose nodes all see MODEL"
    " and LOG, or this machine.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="How many rank.  [default: one for each core; of Ray, its CPUs less one]",
)
@click.option(
    "--part-rows",
    type=click.IntRange(min=1),
    default=50_000,
    show_default=True,
    help="Users of a part, at most: each is a file of the log, and what a kill loses.",
)
@click.option(
    "--items",
    "store",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Also write what a serving store keeps: user_id, request_id, item_ids, scores.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def batch(
    model: Path,
    users: str,
    log: Path,
    run: str,
    k: int,
    policy_text: str | None,
    user_column: str,
    unknown: str,
    fallback_text: str | None,
    score: str | None,
    params: tuple[str, ...],
    score_functions: tuple[str, ...],
    rules_text: str | None,
    exclude: tuple[str, ...],
    exclude_file: Path | None,
    allow: tuple[str, ...],
    allow_file: Path | None,
    engine: Engine,
    processes: int | None,
    part_rows: int,
    store: Path | None,
    as_json: bool,
) -> None:
    """Rank all users of USERS and write the rows of a log.

    USERS is a directory, file or glob of Parquet, CSV or JSON Lines with a column of user ids. What
    is killed goes on where it was when it is run again: seeds and request ids follow from the run
    and the user, and each part of the users is a file of the log, whole or not at all. A user who
    is there twice is refused before anyone is ranked, and so is a LOG that holds another run.

    Ranked is not shown: join the log with impressions (fastrank join --shown) before it is
    evaluated. IDS and files of ids are as for fastrank rank.

    \b
    Examples:
      fastrank batch model/ users/ -o log/ --run 2026-11-30
      fastrank batch model/ users.csv -o log/ --run 2026-11-30 -k 20 \\
          --policy plackett_luce:temperature=0.25 --unknown skip --items store/
    """
    from fastrank import batch as batches  # with pyarrow, which --help need not wait for

    catalog, opened = open_directory(model, functions=functions_of(score_functions))
    if opened is None:
        raise click.UsageError(f"{model} has no users")
    policy = None if policy_text is None else _policy("--policy", policy_text, opened)
    if policy is None and opened.policy is None:
        raise click.UsageError(
            f"give --policy, plackett_luce:temperature=0.25 say: {model} has no policy of its own"
            " (fastrank plan --apply chooses one)"
        )
    fallback = None if fallback_text is None else _policy("--fallback", fallback_text, opened)
    if fallback is not None and unknown != "fallback":
        raise click.UsageError("--fallback: goes with --unknown fallback, which is not given")
    filters, _ = filters_of(catalog, exclude, exclude_file, allow, allow_file)
    with progress() as bar:
        task: TaskID | None = None

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("ranking users", total=total)
            bar.update(task, completed=done)

        summary = batches.run(
            users,
            log,
            run=run,
            model=model,
            processes=processes,
            engine=engine,
            part_rows=part_rows,
            advance=advance,
            k=k,
            policy=policy,
            user_column=user_column,
            unknown=unknown,
            fallback=fallback,
            score=score,
            params=params_of(params),
            rules=None if rules_text is None else rules_of(rules_text),
            score_functions=score_functions,
            **filters,
        )
        if store is not None:
            bar.add_task("writing what a store keeps", total=None)
            batches.project(log, store)
    if as_json:
        facts = {"output": str(log), "items": None if store is None else str(store)}
        click.echo(json_text({**facts, **summary.to_dict()}))
    else:
        _print(summary, log, store, unknown)


def _policy(option: str, text: str, model: Model) -> Policy:
    stated = parse_stated(text, option)
    own = model.policy
    if stated.wants_temperature and (own is None or "temperature" not in own.params):
        raise click.UsageError(f"{option}: {text}: give its temperature, {text}:temperature=0.25")
    try:
        return stated.completed(own)
    except ValueError as error:
        raise click.UsageError(f"{option}: {text}: {error}") from None


def _print(summary: Any, log: Path, store: Path | None, unknown: str) -> None:
    console = standard_output()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("count", justify="right")
    strangers = "skipped" if unknown == "skip" else "ranked by the fallback"
    rows = [
        ("users", summary.users),
        (f"  unknown, {strangers}", summary.unknown),
        ("rankings", summary.rows),
        ("  of no place: nothing was left to rank", summary.empty),
        ("files", summary.parts),
        ("  that were there already", summary.there),
    ]
    for name, count in rows:
        if count or not name.startswith(" "):
            table.add_row(name, f"{count:,}")
    console.print(table)
    if summary.unknown:
        named = ", ".join(map(for_terminal, summary.strangers))
        more = summary.unknown - len(summary.strangers)
        console.print(f"unknown: {named}{f', and {more:,} more' if more else ''}")
    console.print(f"{for_terminal(log)}: run {for_terminal(summary.run)}, not shown to anyone yet")
    if store is not None:
        console.print(f"{for_terminal(store)}: user_id, request_id, item_ids, scores")
