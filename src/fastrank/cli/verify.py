"""`fastrank verify`: print what `fastrank.verify` finds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table

from fastrank.cli.scores import (
    functions_of,
    param_option,
    params_of,
    rules_of,
    score_function_option,
)
from fastrank.cli.terminal import for_terminal, json_text, progress, say, standard_output
from fastrank.rules import Rules
from fastrank.store import MANIFEST

if TYPE_CHECKING:  # scipy takes half a second to import: only when the command runs
    from fastrank.verify import Check, Verdict

__all__ = ["verify"]

_COLUMNS = {  # checks that share a column
    "rankings, p": ("rankings",),
    "first place, p": ("first place",),
    "error": ("sum", "propensities", "filters"),
    "same seed": ("same seed",),
}
_RULED_COLUMNS = {
    "rankings, p": ("rankings",),
    "places, p": ("places",),
    "error": ("sum", "propensities"),
    "same seed": ("same seed",),
}


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--draws",
    type=click.IntRange(min=1000),
    default=20_000,
    show_default=True,
    help="Rankings to draw for each chi-square test.",
)
@click.option(
    "--rules",
    "rules_texts",
    multiple=True,
    metavar="FILE|JSON",
    help="Also check rankings under these rules: a JSON file, or JSON itself, with the keys of"
    " fastrank.Rules. Repeatable.",
)
@param_option
@score_function_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(
    context: click.Context,
    model: Path,
    draws: int,
    rules_texts: tuple[str, ...],
    params: tuple[str, ...],
    score_functions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check, on your own model, that rankings occur as often as their propensities say.

    Every file is hashed. Then, for each inference type, rankings of a few allowed items and the
    first place over the full catalog are counted and compared with their exact law (chi-square).
    The probabilities of all rankings must sum to 1; the propensities of rank must equal
    log_propensities and a float64 computation; one seed must give one ranking; excluded items must
    not take part.

    Under each of --rules, the command compares the items that expressions select with Python's
    reading of them, and the rankings, place by place, and their propensities, for second pages too,
    with a slow float64 computation that uses no sampler.

    Exit code 0 if all checks pass, 1 if one fails.

    \b
    Example:
      fastrank verify model/
      fastrank verify model/ --rules home.json --param budget=50
    """
    from fastrank.verify import verify as check_model

    if not (model / MANIFEST).exists():
        raise click.UsageError(f"{model}: not a fastrank directory: it has no {MANIFEST}")
    rules = [rules_of(text) for text in rules_texts]
    values = params_of(params)
    if values and not rules:
        raise click.UsageError("--param: needs --rules")
    with progress() as bar:
        task = bar.add_task("hashing files", total=None)

        def advance(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        functions = functions_of(score_functions)
        try:
            verdict = check_model(
                model,
                draws=draws,
                advance=advance,
                functions=functions,
                rules=rules,
                params=values,
            )
        except ValueError as error:
            if not rules:
                raise
            named = re.sub(
                r"^rules\[(\d+)\]", lambda m: f"--rules: {rules_texts[int(m[1])]}", str(error)
            )
            raise click.UsageError(named) from None
    if as_json:
        click.echo(json.dumps(_record(verdict), allow_nan=False))
    else:
        _print(model, verdict, dict(zip(rules, rules_texts, strict=True)))
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
                "rules": check.rules.to_dict() if check.rules else None,
            }
            for check in verdict.checks
        ],
    }


def _print(model: Path, verdict: Verdict, files: dict[Rules, str]) -> None:
    console = standard_output()
    for check in verdict.checks:
        if check.policy is None and check.rules is None:
            console.print(f"{_mark(check.passed)} {check.name}: {for_terminal(check.detail)}")
    if verdict.p_limit is not None:
        own = [check for check in verdict.checks if check.rules is None]
        console.print(_by_policy(own, _COLUMNS))
        say(
            console,
            f"""p: the smallest p-value of the chi-square tests, on up to {verdict.draws:,} rankings
            of a few allowed items and {verdict.full_draws:,} first places over all
            {verdict.n_items:,} items. A test fails below {verdict.p_limit:.1e}, so that a correct
            sampler fails a whole run with a probability of at most one in a million. error: the
            largest difference of any probability or log-propensity, filters included, beyond the
            error that a ranking itself states; at most 1e-05.""",
        )
    for rules, file in files.items():
        under = [check for check in verdict.checks if check.rules == rules]
        if not under:
            continue
        console.print()
        console.print(f"Under {for_terminal(file)}: {for_terminal(json_text(rules.to_dict()))}")
        for check in under:
            if check.policy is None:
                console.print(f"{_mark(check.passed)} {check.name}: {for_terminal(check.detail)}")
        console.print(_by_policy(under, _RULED_COLUMNS))
        say(
            console,
            """rankings: of a few items that the rules restrict, if there are few enough to
            enumerate. places: the law of each place, given what stands above it. error: of these
            probabilities, and of the propensities of rankings of many items. Inference types that
            refuse such rules are left out.""",
        )
    for check in verdict.failures:
        if check.policy is None:
            continue  # printed above
        where = f" under {for_terminal(files[check.rules])}" if check.rules else ""
        said = f"{_type(check)}{where} {check.name}: {for_terminal(check.detail)}"
        console.print(f"{_mark(False)} {said}")
    n = len(verdict.checks)
    if verdict.passed:
        console.print(f"[bold green]PASSED[/]: all {n} checks of {for_terminal(model)}")
    else:
        failed = len(verdict.failures)
        console.print(f"[bold red]FAILED[/]: {failed} of {n} checks of {for_terminal(model)}")


def _by_policy(checks: list[Check], columns: Mapping[str, tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("inference type", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right")
    for name in dict.fromkeys(filter(None, map(_type, checks))):
        row = [
            _cell([each for each in checks if each.name in names and _type(each) == name])
            for names in columns.values()
        ]
        table.add_row(name, *row)
    return table


def _type(check: Check) -> str:
    from fastrank.verify import label

    return label(check.policy) if check.policy else ""


def _cell(checks: list[Check]) -> str:
    if not checks:
        return ""
    passed = all(check.passed for check in checks)
    p_values = [check.p_value for check in checks if check.p_value is not None]
    errors = [check.error for check in checks if check.error is not None]
    text = f"{min(p_values):.2g} " if p_values else f"{max(errors):.0e} " if errors else ""
    return text + _mark(passed)


def _mark(passed: bool) -> str:
    return "[green]✓[/]" if passed else "[red]✗[/]"
