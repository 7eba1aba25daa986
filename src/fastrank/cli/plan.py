"""`fastrank plan`: print what `fastrank.plan` finds, and write it into the model if asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fastrank import plan as planning
from fastrank.atomic import write_text
from fastrank.catalog import Catalog
from fastrank.cli.filters import Filters, filter_options, filters_of
from fastrank.cli.planwords import (
    KINDS,
    WORDS,
    choice_text,
    describe,
    not_reached_text,
    parameter,
    question,
    share_text,
    solution_text,
)
from fastrank.cli.scores import (
    functions_of,
    param_option,
    params_of,
    rules_of,
    score_function_option,
)
from fastrank.cli.terminal import for_terminal, progress, say, standard_output
from fastrank.cores import usable_cores
from fastrank.opening import open_directory
from fastrank.plan import Advance, Kind, Plan, Point, Share, Solution
from fastrank.plan.arguments import filters_under
from fastrank.policies.spec import SYNTAX, parse_policies
from fastrank.rules import Rules
from fastrank.store import MANIFEST
from fastrank.vectorfiles import read_npy

__all__ = ["plan"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_SLOW = 5.0  # seconds: longer work is announced


def _numbers(context: click.Context, option: click.Parameter, text: str | None) -> Any:
    """Numbers separated by commas: '' for an empty list, None for the default."""
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise click.BadParameter(
            f"expected numbers separated by commas, such as 0.1,0.5; got {text!r}"
        ) from None


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--queries", type=_FILE, help="A .npy of users' vectors, in place of the model's.")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Places.")
@filter_options(
    "Items that rankings leave out: all figures are for the other items. Repeatable. --apply does"
    " not write the filter into the model: requests send their own.",
    "All figures are for rankings of these items only. Repeatable.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar=SYNTAX,
    help="A policy to evaluate from the log. Repeatable. A temperature x0.8 is 0.8 times the"
    " logging policy's.  [default: deterministic, and plackett_luce:temperature=x0.8]",
)
@click.option(
    "--target-overlap", type=float, metavar="SHARE", help="Find the policies with this overlap."
)
@click.option(
    "--target-ess",
    type=float,
    metavar="SHARE",
    help="Find the policies whose log keeps this ESS share for every --policy.",
)
@click.option(
    "--prefix",
    type=click.IntRange(min=1),
    help="--target-ess: of the weights of this many first places.  [default: k, the whole ranking]",
)
@click.option(
    "--apply",
    "applies",
    is_flag=True,
    help="Write a policy and factors into the model, so that every user gets the --target-overlap"
    " when a request names no policy: Plackett-Luce at each user's own temperature.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="--apply: directory to write to, instead of the model's own.",
)
@click.option("--replace", is_flag=True, help="--apply: replace the model that is in --output.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a web page.")
@click.option(
    "--users", type=click.IntRange(min=1), help="Number of users to sample.  [default: 200]"
)
@click.option(
    "--draws",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Rankings to draw for each user and policy.",
)
@click.option(
    "--temperatures",
    callback=_numbers,
    metavar="NUMBERS",
    help="Temperatures, separated by commas.  [default: from nearly deterministic to nearly uniform"
    " on this model]",
)
@click.option("--epsilons", callback=_numbers, metavar="NUMBERS", help="Separated by commas.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
@click.option(
    "--iips",
    "by_position",
    is_flag=True,
    help="Also compute ESS shares of iips from the logs that --target-... finds; takes a while.",
)
@click.option(
    "--rules",
    "rules_text",
    metavar="FILE|JSON",
    help="All figures are for the items that the rules allow: a JSON file, or JSON itself, with the"
    " keys of fastrank.Rules. A plan uses `where` only. --apply does not write the rules.",
)
@param_option
@score_function_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    model: Path,
    queries: Path | None,
    k: int,
    exclude: tuple[str, ...],
    exclude_file: Path | None,
    allow: tuple[str, ...],
    allow_file: Path | None,
    policies: tuple[str, ...],
    target_overlap: float | None,
    target_ess: float | None,
    prefix: int | None,
    applies: bool,
    output: Path | None,
    replace: bool,
    report: Path | None,
    users: int | None,
    draws: int,
    temperatures: list[float] | None,
    epsilons: list[float] | None,
    seed: int,
    by_position: bool,
    rules_text: str | None,
    params: tuple[str, ...],
    score_functions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Estimate what exploration costs, and what its log would be worth, before going live.

    The plan covers a sample of users and a grid of logging policies. For each it reports how much
    of the deterministic ranking is kept, how much score that costs, how open the first place is,
    and which share of the log would count when the policies of --policy are evaluated from it. IDS
    and files of ids are as for fastrank rank.

    \b
    Examples:
      fastrank plan model/ --report plan.html
      fastrank plan model/ --policy deterministic --policy new=plackett_luce:temperature=x0.8 \\
          --target-overlap 0.8 --target-ess 0.1
      fastrank plan model/ --target-overlap 0.8 --apply
      fastrank plan model/ --exclude-file sold_out.txt --target-overlap 0.8 --apply
      fastrank plan model/ --rules '{"where": "price < most"}' --param most=40 --target-overlap 0.8
    """
    if applies and target_overlap is None:
        raise click.UsageError(
            "--apply needs --target-overlap: the overlap that every user should get"
        )
    if (output is not None or replace) and not applies:
        raise click.UsageError("--output, --replace: need --apply")
    if output is not None and (output / MANIFEST).exists() and not replace:
        raise click.UsageError(f"{output} already exists; --replace replaces the model in it")
    if by_position and target_overlap is None and target_ess is None:
        raise click.UsageError("--iips: needs --target-overlap or --target-ess")
    for option, value in (("--target-overlap", target_overlap), ("--target-ess", target_ess)):
        if value is not None and not 0.0 < value < 1.0:
            raise click.UsageError(f"{option}: expected a number between 0 and 1; got {value:g}")
    if report is not None:
        if not report.absolute().parent.is_dir():
            raise click.UsageError(f"--report: {report.parent} is not a directory")
        # Fail now, not after minutes of work, if the template library is missing.
        from fastrank.cli.planpage import page
    targets = parse_policies(policies) if policies else None
    catalog, opened = open_directory(model, functions=functions_of(score_functions))
    if opened is None and queries is None:
        raise click.UsageError(f"{model} has no users; give --queries")
    if applies and opened is None:
        raise click.UsageError(f"--apply: {model} has no users to give temperatures to")
    if prefix is not None and prefix > k:
        raise click.UsageError(f"--prefix: expected 1 to {k}, the number of places; got {prefix}")
    vectors = None if queries is None else _vectors(queries)
    filters, _ = filters_of(catalog, exclude, exclude_file, allow, allow_file)
    if rules_text is not None:
        filters = _under_rules(catalog, filters, rules_of(rules_text), params_of(params))
    elif params:
        raise click.UsageError("--param: needs --rules")
    looked_at = opened if opened is not None else catalog
    places = sorted({place for place in (1, 3, 5, k, prefix or 1) if place <= k})
    # Solving evaluates about a dozen policies of each kind.
    points = 16 if temperatures is None else len(temperatures)
    points += 12 + (12 if epsilons is None else len(epsilons))
    points += 36 * sum(value is not None for value in (target_overlap, target_ess))
    seconds = planning.estimated_seconds(
        looked_at, vectors, k=k, users=users, draws=draws, points=points, **filters
    )
    if seconds > _SLOW:
        click.echo(f"this takes about {float(f'{seconds:.1g}'):,.0f} s", err=True)
    with _told() as advance:
        found = planning.explore(
            looked_at,
            vectors,
            k=k,
            targets=targets,
            prefixes=places,
            temperatures=temperatures,
            epsilons=epsilons,
            users=users,
            draws=draws,
            seed=seed,
            **filters,
            advance=advance,
        )
        solutions = list(_solutions(found, target_overlap, target_ess, prefix, advance))
        positions = [
            planning.iips_shares(found, solution.point, advance) if by_position else ()
            for solution in solutions
        ]
        choice, target = None, output or model
        if applies and opened is not None and target_overlap is not None:
            try:
                choice = planning.choose(
                    opened,
                    target_overlap,
                    k=k,
                    users=users,
                    draws=draws,
                    seed=seed,
                    threads=usable_cores(),
                    **filters,
                    advance=advance,
                )
            except ValueError as error:
                raise ValueError(f"--apply: {error}; nothing was written") from None
            choice.of(opened).save(target)
            if opened.table_temperature is not None:
                click.echo(
                    "fastrank plan: the model's tables are for other temperatures, and are not"
                    f" written to {target}; Model.with_tables makes new ones",
                    err=True,
                )
    if report is not None:
        write_text(report, page(found, solutions, str(model)))
    if as_json:
        record = {
            "plan": found.to_dict(),
            "solutions": [
                {**solution.to_dict(), "iips": [asdict(share) for share in shares]}
                for solution, shares in zip(solutions, positions, strict=True)
            ],
            "applied": None if choice is None else {"directory": str(target), **choice.to_dict()},
        }
        click.echo(json.dumps(record, allow_nan=False))
        return
    console = standard_output()
    _print(console, found, solutions)
    for solution, shares in zip(solutions, positions, strict=True):
        if shares:
            _print_positions(console, solution, shares)
    if choice is not None:
        say(
            console,
            f"[bold green]Written[/]: {for_terminal(target)}: {for_terminal(choice_text(choice))}",
        )
        if choice.not_reached:
            say(console, not_reached_text(choice))
    if report is not None:
        console.print(f"Report: {for_terminal(report)}")


# ---- Work ------------------------------------------------------------------------------------


def _under_rules(
    catalog: Catalog, filters: Filters, rules: Rules, params: Mapping[str, Any] | None
) -> Filters:
    try:
        exclude, allow = filters_under(catalog, filters["exclude"], filters["allow"], rules, params)
    except ValueError as error:
        text = re.sub("^params: ", "--param: ", re.sub("^rules: ", "--rules: ", str(error)))
        raise click.UsageError(text) from None
    return {"exclude": exclude, "allow": allow}


def _vectors(path: Path) -> Any:
    try:
        return read_npy(path)
    except ValueError as error:
        raise click.UsageError(f"--queries: {error}") from None


@contextmanager
def _told() -> Iterator[Advance]:
    """A function that updates a progress bar."""
    with progress() as bar:
        task = bar.add_task("opening", total=None)

        def advance(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        yield advance


def _solutions(
    found: Plan,
    overlap: float | None,
    ess: float | None,
    prefix: int | None,
    advance: Advance,
) -> Iterator[Solution]:
    """Find what was asked for, for each kind of policy."""
    for done, kind in enumerate(KINDS):
        advance("solving", done, len(KINDS))
        if overlap is not None:
            yield planning.solve_overlap(found, overlap, kind)
        defined = any(point.shares for point in found.of_kind(kind))
        if ess is not None and defined:
            yield planning.solve_ess(found, ess, kind, prefix)


# ---- Printing --------------------------------------------------------------------------------


def _print(console: Console, found: Plan, solutions: Sequence[Solution]) -> None:
    console.print(f"[bold]What exploration costs, and what its log is worth[/]: {describe(found)}")
    console.print()
    for word, meaning in WORDS.items():
        console.print(f"[bold]{word}[/]: {meaning}")
    console.print()
    console.print(_chart(found.points), highlight=False)
    console.print(
        "[bold]ESS[/]: ESS share, by places of the ranking that the weight covers, to evaluate "
        + ", ".join(
            f"[bold]{letter}[/] {for_terminal(label)}" for label, letter in _letters(found).items()
        )
    )
    console.print()
    for kind, (name, _, mark) in KINDS.items():
        points = found.of_kind(kind)
        if points:
            console.print(_table(found, kind, f"{mark} {name}", points))
    say(
        console,
        """users: 10 % and 90 % of the users have an overlap below these. ESS shares are of all
        users' rankings in one log. ~: a few draws dominate; the figure is most likely too high. !:
        one user has over a quarter of the weight, so that other users would give another figure; a
        temperature for each user avoids this. All places: --json, --report.""",
    )
    asked = ""
    for solution in sorted(solutions, key=lambda each: each.figure == "ess"):
        if question(solution) != asked:
            asked = question(solution)
            console.print(f"[bold]{for_terminal(asked)}[/]")
        console.print(f"  {for_terminal(solution_text(found, solution))}")
    if solutions:
        console.print()


def _print_positions(console: Console, solution: Solution, shares: Sequence[Share]) -> None:
    places = list(dict.fromkeys(share.prefix for share in shares))
    name = KINDS[solution.kind][0]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"ESS shares of iips, {name} {parameter(solution.point)}",
        title_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for place in places:
        table.add_column(f"place {place}", justify="right")
    for label in dict.fromkeys(share.target for share in shares):
        row = [share_text(share) for share in shares if share.target == label]
        table.add_row(for_terminal(label), *row)
    console.print(table)


def _table(found: Plan, kind: Kind, title: str, points: Sequence[Point]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    multiple = kind == "temperature" and found.has_user_temperatures
    noun = "times the user's own" if multiple else KINDS[kind][1]
    for column in (noun, "overlap", "users", "loss", "perplexity"):
        table.add_column(column, justify="right")
    prefixes = found.prefixes
    if len(prefixes) > 1:
        prefixes = (prefixes[0], prefixes[-1])
    letters = _letters(found)
    labels = [label for label in letters if points[0].share(label, prefixes[0]) is not None]
    for label in labels:
        for prefix in prefixes:
            places = "place" if prefix == 1 else "places"
            table.add_column(f"{letters[label]}: ESS,\n{prefix} {places}", justify="right")
    for point in points:
        table.add_row(
            parameter(point),
            f"{point.overlap:.1%}",
            f"{point.overlap_low:.0%}-{point.overlap_high:.0%}",
            f"{point.relative_loss:.2%}",
            f"{point.perplexity:,.1f}",
            *(share_text(point.share(label, prefix)) for label in labels for prefix in prefixes),
        )
    return table


def _letters(found: Plan) -> dict[str, str]:
    """Short names of the targets, for column headings."""
    return {label: chr(ord("A") + i % 26) * (1 + i // 26) for i, label in enumerate(found.targets)}


_CHART = (64, 15)  # columns, rows


def _chart(points: Sequence[Point]) -> str:
    """Plot loss over overlap, with one mark per policy."""
    width, height = _CHART
    cells = [[" "] * width for _ in range(height)]
    for point in points:
        column = round((width - 1) * (1.0 - min(max(point.overlap, 0.0), 1.0)))
        row = round((height - 1) * (1.0 - min(max(point.relative_loss, 0.0), 1.0)))
        mark = KINDS[point.kind][2]
        cells[row][column] = mark if cells[row][column] in (" ", mark) else "#"
    lines = ["loss"]
    for row, line in enumerate(cells):
        percent = 100 * (1 - row / (height - 1))
        label = f"{percent:.0f} %" if row in (0, height - 1) or row == height // 2 else ""
        lines.append(f"{label:>6} |{''.join(line)}")
    lines.append(" " * 7 + "+" + "-" * width)
    lines.append(" " * 8 + "overlap 100 %" + " " * (width - 18) + "  0 %")
    marks = ", ".join(f"{mark} {name}" for name, _, mark in KINDS.values())
    best = "lower is cheaper, further right explores more"
    return "\n".join([*lines, f"{'':8}{marks}, # several", f"{'':8}{best}", ""])
