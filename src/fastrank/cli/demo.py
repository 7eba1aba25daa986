"""`fastrank demo`: print what `fastrank.demo` does and measures."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fastrank import demo as showcase
from fastrank.cli.terminal import chance, percent, progress, say, standard_output
from fastrank.ranking import Ranking

__all__ = ["demo"]

_TEXTBOOK_CAP = 15.0  # seconds


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Directory for the picture, a copy of the text, and shop/, which is replaced.",
)
@click.option("--quick", is_flag=True, help="Time 20,000 items only: seconds instead of minutes.")
def demo(output: Path, quick: bool) -> None:
    """Rank a real shop's items, measure the cost at a million items, and evaluate its logs.

    Needs no input: the data come with the package. Takes about a minute and 1.5 GB of memory.

    \b
    Example:
      fastrank demo -o demo-output/
    """
    output.mkdir(parents=True, exist_ok=True)
    console = standard_output(record=True)
    _print_shop(console, showcase.shop())
    _print_reweighted(console, showcase.reweighted())
    # Catalog size, interleaved rounds.
    sizes = [(20_000, 5)] if quick else [(100_000, 101), (1_000_000, 21)]
    comparisons = []
    with progress() as bar:
        task = bar.add_task("making vectors", total=None)

        def advance(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        for n_items, repetitions in sizes:
            bar.update(task, description=f"{n_items:,} items: making vectors", total=None)
            comparisons.append(
                showcase.compare(
                    n_items, repetitions=repetitions, textbook_cap=_TEXTBOOK_CAP, advance=advance
                )
            )
        bar.update(task, description="a simulated shop", total=None)
        story = showcase.story(output / "shop", advance=advance)
    _print_comparisons(console, comparisons)
    _print_story(console, story)
    picture = output / "demo.png"
    showcase.picture(comparisons, picture)
    console.print(f"Picture: {picture}    This text: {output / 'demo.txt'}")
    _print_next(console, story, output)
    (output / "demo.txt").write_text(console.export_text(), encoding="utf-8")


def _print_shop(console: Console, shop: showcase.Shop) -> None:
    console.rule("[bold]1. A real shop")
    say(
        console,
        f"""The Open Bandit Dataset: {shop.n_items} items of a fashion shop and {shop.n_users}
        groups of its visitors, as vectors that explain {shop.explained:.0%} of who clicked what.
        Below, each inference type (way of ranking) shows {shop.k} items, best place first, to the
        largest group of visitors.""",
    )
    say(
        console,
        """[bold]Propensity[/] is the probability that an item was drawn for its place, given the
        places above it. The product over all places is the probability of the whole ranking. Under
        deterministic all probabilities are 1: the list is always the same, and nothing is learned
        about any other item.""",
    )
    for name, ranking in shop.rankings.items():
        console.print(
            f"[bold]{name}[/]: {shop.microseconds[name]:.0f} us;"
            f" the whole ranking: {chance(ranking.log_propensity)}"
        )
        _print_ranking(console, ranking)
    say(
        console,
        f"""The Plackett-Luce samplers (plackett_luce or gumbel in the name) follow one law and
        differ in cost. Their temperature, {shop.temperature:.2g}, is chosen to keep
        {showcase.OVERLAP:.0%} of the deterministic {shop.k}; the rankings drawn keep
        {shop.kept:.0%}. epsilon is {showcase.EPSILON:g}.""",
    )
    _print_ruled(console, shop)
    error = math.sqrt(shop.first_reported * (1 - shop.first_reported) / shop.first_draws)
    say(
        console,
        f"""[bold]Is the propensity right?[/] In {shop.first_draws:,} rankings, item
        {shop.first_item} came first in {shop.first_observed:.2%} of them; its propensity says
        {shop.first_reported:.2%}. The standard error of so many draws is {error:.2%}.""",
    )


def _print_ranking(console: Console, ranking: Ranking, categories: Sequence[str] = ()) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=12, justify="right")
    for _ in range(len(ranking)):
        grid.add_column(min_width=8, justify="right")
    scores = [round(float(score), 4) + 0.0 for score in ranking.scores]  # + 0.0: no -0.0000
    grid.add_row("item", *map(str, ranking.item_ids.tolist()), style="bold")
    if categories:
        grid.add_row("category", *categories)
    grid.add_row("score", *(f"{score:.4f}" for score in scores))
    grid.add_row("propensity", *map(percent, ranking.log_propensities))
    console.print(grid)
    console.print()


def _print_ruled(console: Console, shop: showcase.Shop) -> None:
    say(
        console,
        """[bold]Rules[/] of the shop apply while a list is drawn, so that its probabilities are
        those under the rules. Here each category (the data have hashes for names) may appear
        once:""",
    )
    names = [shop.categories[item][:6] for item in shop.ruled.item_ids.tolist()]
    _print_ranking(console, shop.ruled, names)
    say(
        console,
        f"""The whole ranking: {chance(shop.ruled.log_propensity)}. Drawing without the rule and
        removing items afterwards would log {chance(shop.ruled_unaware)}, which is wrong.""",
    )


def _print_reweighted(console: Console, result: showcase.Reweighted) -> None:
    say(
        console,
        f"""[bold]What is it good for?[/] The shop logged 10,000 impressions under a random policy;
        {result.logged:.2%} were clicked. Weight each impression by the probability that another
        policy would have shown it, divided by the probability that it was shown. The weighted
        clicks predict {result.predicted:.2%} ± {result.standard_error:.2%} for the other policy,
        without running it. The shop did run it: {result.observed:.2%} ±
        {result.observed_error:.2%}. A log without propensities cannot answer this question.""",
    )


def _print_comparisons(console: Console, comparisons: Sequence[showcase.Comparison]) -> None:
    console.rule("[bold]2. What it costs")
    say(
        console,
        f"""Rankings of {showcase.K} from larger catalogs: synthetic vectors of {showcase.DIM}
        numbers (float32) whose scores have heavy tails, like real ones: a few items stand far above
        the rest ("best, in sd": standard deviations above the mean). The real catalog is a model of
        check-ins at 41,000 places (Gowalla).""",
    )
    shapes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("items", "skew", "excess kurtosis", "best, in sd", "temperature", "keeps"):
        shapes.add_column(title, justify="right")
    for c in comparisons:
        shapes.add_row(
            f"{c.n_items:,}",
            f"{c.skew:.1f}",
            f"{c.excess_kurtosis:.0f}",
            f"{c.top:.0f}",
            f"{c.temperature:.3g}",
            f"{c.kept:.0%}",
        )
    shapes.add_row("a real one", "6", "66", "24", "", "")
    console.print(shapes)
    say(
        console,
        f"""Temperatures are chosen to keep {showcase.OVERLAP:.0%} of the deterministic
        {showcase.K}; "keeps" is the share that the rankings drawn keep. The times of fastrank and
        NumPy include scoring. The textbook procedures are plain Python over a dictionary of scores,
        and get these scores for free. Only fastrank reports the probability of its ranking.""",
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\nprocedure", no_wrap=True)
    for comparison in comparisons:
        table.add_column(f"{comparison.n_items:,}\nitems: ms", justify="right")
        table.add_column("\nratio", justify="right")
        table.add_column("\nruns", justify="right")
    law = ""
    for row, timing in enumerate(comparisons[0].timings):
        if timing.law != law:
            law = timing.law
            table.add_row(law, style="bold")
        cells = []
        for comparison in comparisons:
            t = comparison.timings[row]
            sign = "> " if t.capped else ""
            cells += [
                sign + showcase.milliseconds(t.milliseconds),
                sign + showcase.times(t.ratio),
                "stop" if t.capped else str(t.repetitions),
            ]
        last = row + 1 == len(comparisons[0].timings)
        table.add_row(
            f"  {timing.name}",
            *cells,
            style="blue" if timing.ours else None,
            end_section=last or comparisons[0].timings[row + 1].law != law,
        )
    console.print(table)
    say(
        console,
        f"""ms: median milliseconds for one ranking. ratio: to fastrank under the same law (under
        Plackett-Luce, to its gumbel sampler). runs: repetitions, interleaved between fastrank and
        NumPy; {_threads()}. stop: stopped after {_TEXTBOOK_CAP:.0f} s.""",
    )


def _print_story(console: Console, story: showcase.Story) -> None:
    console.rule("[bold]3. What its logs can decide")
    say(
        console,
        f"""A simulated shop, where the truth is known: the {story.n_items} items and
        {story.n_users} groups of visitors of part 1, with clicks drawn from their vectors. An
        almost correct model, with {story.dim} numbers per item, shows {story.k} items per visit. It
        served {story.rows:,} visits twice: once always its best {story.k}, and once drawn at
        temperature {story.temperature:g}. What would a lower temperature, {story.colder:g}, or a
        smaller model, with {story.smaller_dim} numbers per item, have earned? Can either log
        tell?""",
    )
    console.print("[bold]a. The log of always the best cannot tell[/], and its statuses say so:")
    _print_told(console, story.by_deterministic)
    uncovered = min(told.result.uncovered for told in story.by_deterministic)
    say(
        console,
        f"""In over {math.floor(1000 * uncovered) / 10:g} % of visits these policies would show
        rankings that this log never contains, however many visits it has. The weights still give a
        number; the truth beside it shows how wrong that number is.""",
    )
    audited = (
        "[green]passed[/]: the model reproduces the propensities that were logged"
        if story.audit.passed
        else "[red]failed[/]"
    )
    console.print(
        "[bold]b. The log of drawn rankings can tell[/], though neither policy was ever shown."
        f" Audit {audited}."
    )
    _print_told(console, story.by_stochastic)
    better, worse = story.by_stochastic
    say(
        console,
        f"""{_advice(better)} {_advice(worse)} ±: half of the 95 % interval, corrected for two
        questions where differences are concerned. The differences are more precise: visitors who
        click a lot do so under either policy, and that cancels.""",
    )
    console.print("[bold]c. The limits of that log.[/] Evaluating always the best from it:")
    _print_told(console, (story.best_of_k, story.best_of_one), (story.k, 1))
    say(
        console,
        f"""Hardly any drawn ranking equals the best one in all {story.k} places, so almost no row
        counts; many rows equal it in the first place. Use a lower temperature, log more, or ask
        about fewer places.""",
    )


def _advice(told: showcase.Told) -> str:
    label, difference = told.result.label.capitalize(), told.difference
    if told.result.status != "ok" or difference.interval is None or difference.value is None:
        return f"{label}: this log cannot tell."
    low, high = difference.interval
    if low <= 0.0 <= high:
        return f"{label}: no difference can be seen."
    return f"{label}: {'more' if low > 0.0 else 'fewer'} clicks."


def _print_told(
    console: Console, found: Sequence[showcase.Told], places: Sequence[int] | None = None
) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\npolicy", no_wrap=True)
    table.add_column("\nstatus", no_wrap=True)
    table.add_column("clicks a visit\nby the log", justify="right", no_wrap=True)
    table.add_column("\ntruth", justify="right", style="bold", no_wrap=True)
    table.add_column("more than was logged\nby the log", justify="right", no_wrap=True)
    table.add_column("\ntruth", justify="right", style="bold", no_wrap=True)
    for row, told in enumerate(found):
        status = told.result.status
        colour = {"ok": "green", "unsupported": "red"}.get(status, "yellow")
        label = told.result.label
        if places is not None:
            label += f", {places[row]} place{'s' if places[row] > 1 else ''}"
        estimate = _figure(told.estimate.value, told.estimate.interval)
        change = _figure(told.difference.value, told.difference.interval, "+")
        if status != "ok":
            estimate, change = (f"[dim]({figure})[/]" for figure in (estimate, change))
        table.add_row(
            label,
            f"[{colour}]{status}[/]",
            estimate,
            f"{told.truth:.3f}",
            change,
            f"{told.true_difference:+.3f}",
        )
    console.print(table)
    if any(told.result.status != "ok" for told in found):
        say(console, "In brackets: no result, for the reason that its status gives.")


def _figure(value: float | None, interval: tuple[float, float] | None, sign: str = "") -> str:
    if value is None or interval is None:
        return "none"
    return f"{value:{sign}.3f} ± {(interval[1] - interval[0]) / 2:.3f}"


def _print_next(console: Console, story: showcase.Story, output: Path) -> None:
    """Print commands to continue with; they run when copied."""
    program, log, model = _program(), story.stochastic_log, story.model
    colder = f"colder=plackett_luce:temperature={story.colder:g}"
    smaller = f"smaller=plackett_luce:temperature={story.temperature:g}@{story.smaller_model}"
    console.print()
    console.print("[bold]Continue with the simulated shop:[/]")
    for line in (
        f"{program} audit {_quoted(log)} --model {_quoted(model)}",
        f"{program} evaluate {_quoted(log)} --model {_quoted(model)} \\",
        f"    --policy {_quoted(colder)} --policy {_quoted(smaller)} \\",
        f"    --report {_quoted(output / 'report.html')}",
        f"{program} plan {_quoted(model)}",
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _quoted(word: str | Path) -> str:
    return shlex.quote(str(word))


def _program() -> str:
    """The command that starts fastrank here, which need not be on the path."""
    if shutil.which("fastrank"):
        return "fastrank"
    beside = Path(sys.executable).with_name("fastrank")
    if not beside.exists():
        return f"{_quoted(sys.executable)} -m fastrank"
    here = Path.cwd()
    return _quoted(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def _threads() -> str:
    pinned = os.environ.get("OPENBLAS_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS") == "1"
    return "one thread" if pinned else "NumPy's linear algebra was not limited to one thread"
