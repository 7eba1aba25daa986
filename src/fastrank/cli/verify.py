"""`fastrank verify`: prints what `fastrank.verify` finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table

from fastrank.cli.scores import functions_of, score_function_option
from fastrank.cli.terminal import for_terminal, progress, say, standard_output
from fastrank.store import MANIFEST

if TYPE_CHECKING:  # scipy takes half a second to import: only when the command runs
    from fastrank.verify import Check, Verdict

__all__ = ["verify"]

_COLUMNS = {  # the checks that share a column
    "rankings, p": ("rankings",),
    "first place, p": ("first place",),
    "error": ("sum", "propensities", "filters"),
    "same seed": ("same seed",),
}


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--draws",
    type=click.IntRange(min=1000),
    default=20_000,
    show_default=True,
    help="Rankings drawn for each chi-square test.",
)
@score_function_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(
    context: click.Context,
    model: Path,
    draws: int,
    score_functions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check, on your own model, that rankings come as often as their propensities say.

    Every file is hashed. Then, for each inference type: rankings of a few allowed items and the
    first place over the full catalog are counted against their exact law (chi-square); the
    probabilities of all rankings must sum to 1; what rank reports must equal log_propensities and
    a float64 computation; one seed must give one ranking; excluded items must not take part.

    Exit code 0 if all hold, 1 if one does not.

    \b
    Example:
      fastrank verify model/
    """
    from fastrank.verify import verify as check_model

    if not (model / MANIFEST).exists():
        raise click.UsageError(f"{model}: not a fastrank directory: there is no {MANIFEST}")
    with progress() as bar:
        task = bar.add_task("hashing files", total=None)

        def advance(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        functions = functions_of(score_functions)
        verdict = check_model(model, draws=draws, advance=advance, functions=functions)
    if as_json:
        click.echo(json.dumps(_record(verdict), allow_nan=False))
    else:
        _print(model, verdict)
    context.exit(0 if verdict.passed else 1)


def _record(verdict: Verdict) -> dict[str, object]:
    return {
        "passed": verdict.passed,
        "catalog_version": verdict.catalog_version,
        "n_items": verdict.n_items,
        "draws": verdict.draws,
        "full_draws": verdict.full_draws,
        "p_limit": verdict.p_limit,
        "checks": [
            {
                "name": check.name,
                "inference_type": check.policy.inference_type if check.policy else None,
                "params": check.policy.params if check.policy else None,
                "passed": check.passed,
                "p_value": check.p_value,
                "error": check.error,
                "detail": check.detail,
            }
            for check in verdict.checks
        ],
    }


def _print(model: Path, verdict: Verdict) -> None:
    console = standard_output()
    for check in verdict.checks:
        if check.policy is None:
            console.print(f"{_mark(check.passed)} {check.name}: {for_terminal(check.detail)}")
    if verdict.p_limit is not None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("inference type", no_wrap=True)
        for title in _COLUMNS:
            table.add_column(title, justify="right")
        for name in dict.fromkeys(filter(None, map(_type, verdict.checks))):
            row = [
                _cell([c for c in verdict.checks if c.name in names and _type(c) == name])
                for names in _COLUMNS.values()
            ]
            table.add_row(name, *row)
        console.print(table)
        say(
            console,
            f"""p: the smallest p-value of the chi-square tests, on up to {verdict.draws:,} rankings
            of a few allowed items and {verdict.full_draws:,} first places over all
            {verdict.n_items:,} items. A test fails below {verdict.p_limit:.1e}, so that a right
            sampler fails a whole run with a chance of at most one in a million. error: the largest
            of any probability or log-propensity that was compared, filters included, beyond the
            error that a ranking itself states; at most 1e-05.""",
        )
    for check in verdict.failures:
        if check.policy is None:
            continue  # said above
        console.print(f"{_mark(False)} {_type(check)} {check.name}: {for_terminal(check.detail)}")
    n = len(verdict.checks)
    if verdict.passed:
        console.print(f"[bold green]PASSED[/]: all {n} checks of {for_terminal(model)}")
    else:
        failed = len(verdict.failures)
        console.print(f"[bold red]FAILED[/]: {failed} of {n} checks of {for_terminal(model)}")


def _type(check: Check) -> str:
    from fastrank.verify import label

    return label(check.policy) if check.policy else ""


def _cell(checks: list[Check]) -> str:
    passed = all(check.passed for check in checks)
    p_values = [check.p_value for check in checks if check.p_value is not None]
    errors = [check.error for check in checks if check.error is not None]
    text = f"{min(p_values):.2g} " if p_values else f"{max(errors):.0e} " if errors else ""
    return text + _mark(passed)


def _mark(passed: bool) -> str:
    return "[green]✓[/]" if passed else "[red]✗[/]"
