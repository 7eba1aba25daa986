"""`fastrank experiment`: print and draw what `fastrank.experiments` finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from fastrank.atomic import replacing
from fastrank.cli.terminal import json_text, progress, say, standard_output
from fastrank.frames import bracketed

if TYPE_CHECKING:  # pyarrow and matplotlib are slow to import: only when the command runs
    from matplotlib.figure import Figure

    from fastrank.experiments import (
        AvgBias,
        Combination,
        FourWays,
        ReplayShrinks,
        RulesAfterwards,
        Shop,
        Variances,
    )

__all__ = ["experiment"]

_NAMES = ("replay", "four-ways", "avg-bias", "variance", "rules")
_COLOURS = ("#1b6ca8", "#e08e2b", "#3a9d5d", "#a0a0a0")


@click.command()
@click.argument("name", type=click.Choice(_NAMES), metavar="NAME")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the result: .svg, .png or .pdf.",
)
@click.option("--seed", type=click.IntRange(0, 2**53), default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Run a smaller experiment, in seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def experiment(name: str, output: Path | None, seed: int, quick: bool, as_json: bool) -> None:
    """Run a published experiment where the truth is known, to see what logs can and cannot tell.

    \b
    NAME is one of
        replay     matching rows: exact on uniform logs, but few rows are left
      four-ways  deterministic or stochastic: which logs can evaluate which policies
      avg-bias   the logged average as another policy's value
      variance   of ips, rips and iips, as items and places grow
        rules      a cap applied to finished rankings, and the bias that its log then has

    Each takes a minute at most, and needs no input.

    \b
    Example:
      fastrank experiment variance -o variance.svg
    """
    if output is not None:
        if output.suffix not in (".svg", ".png", ".pdf"):
            raise click.UsageError(f"--output: expected .svg, .png or .pdf, got {output.name!r}")
        if not output.absolute().parent.is_dir():
            raise click.UsageError(f"--output: {output.parent} is not a directory")
        import matplotlib.figure  # noqa: F401  # fails now if missing, not after the work
    from fastrank.experiments import EXPERIMENTS

    with progress() as bar:
        task = bar.add_task(name, total=None)

        def advance(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        found: Any = EXPERIMENTS[name](seed=seed, quick=quick, advance=advance)
    table, draw = _SHOWN[name]
    if output is not None:
        with replacing(output) as temporary:
            draw(found).savefig(temporary, format=output.suffix[1:])
    if as_json:
        click.echo(json_text(found.to_dict()))
        return
    console = standard_output()
    console.rule(f"[bold]{found.title}")
    say(console, found.words)
    table(console, found)
    for source in found.sources:
        console.print(f"Source: {source}", markup=False)
    if output is not None:
        console.print(f"Picture: {output}", markup=False)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 0) -> Table:
    """Make a table whose first `left` columns are text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for j, column in enumerate(columns):
        table.add_column(column, justify="left" if j < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _figure(width: float = 7.0, height: float = 4.4) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


# ---- Replay ---------------------------------------------------------------------------------


def _print_replay(console: Console, found: ReplayShrinks) -> None:
    columns = ("items", "k", "matched", "expected", "counted", "replay ± se", "expected", "status")
    rows = [
        (
            f"{log.n_items:,}",
            str(log.k),
            f"{log.matches:,}",
            _count(log.expected_matches),
            f"{log.naive:.2g}",
            bracketed(_with_error(log.replay, log.standard_error), log.status == "ok"),
            "" if log.expected_error is None else f"± {log.expected_error:.3f}",
            log.status,
        )
        for log in found.logs
    ]
    console.print(_table(columns, rows))
    first = found.logs[0]
    say(
        console,
        f"""{found.rows:,} rows per log. Truth: {found.truth:g} clicks per place; the logging policy
        itself earned {found.logged:.3f} in the first log. counted: clicks in matched rows over all
        rows; replay: over the matched rows, in brackets where it is no result, as its status says.
        The {first.matches:,} matched rows of the first log form a log again: an independent draw
        matches {found.matched_again:,} of them, with {found.replay_again:.3f} clicks.""",
    )


def _with_error(value: float | None, error: float | None) -> str:
    return "none" if value is None or error is None else f"{value:.3f} ± {error:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _draw_replay(found: ReplayShrinks) -> Figure:
    figure = _figure(9.0)
    left, right = figure.subplots(1, 2)
    for k, colour in zip((1, 2, 3), _COLOURS, strict=False):
        logs = [log for log in found.logs if log.k == k]
        items = [log.n_items for log in logs]
        left.plot(items, [log.expected_matches for log in logs], color=colour, label=f"k = {k}")
        seen = [log for log in logs if log.matches]
        left.plot([log.n_items for log in seen], [log.matches for log in seen], "o", color=colour)
        exact = [log for log in logs if log.expected_error is not None]
        right.plot(
            [log.n_items for log in exact],
            [log.expected_error for log in exact],
            "o-",
            color=colour,
            label=f"k = {k}",
        )
    left.set_ylim(0.3, 2 * found.rows)
    left.set_title(f"Rows that match, of {found.rows:,}")
    right.axhline(found.truth, color=_COLOURS[3], linestyle="--")
    right.text(found.logs[0].n_items, found.truth * 1.06, "the truth itself", color="#707070")
    right.set_title("Standard error of replay, clicks a place")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("items")
        axes.legend(frameon=False)
        _plain(axes)
    return figure


# ---- Four ways --------------------------------------------------------------------------------


def _print_four_ways(console: Console, found: FourWays) -> None:
    columns = ("logged", "evaluated", "status", "uncovered", "estimate", "truth")
    rows = [
        (
            each.logging,
            _asked(each),
            each.status,
            f"{each.uncovered:.1%}",
            bracketed(
                _with_error(
                    each.estimate, each.interval and (each.interval[1] - each.interval[0]) / 2
                ),
                each.status == "ok",
            ),
            f"{each.truth:.3f}",
        )
        for each in found.combinations
    ]
    console.print(_table(columns, rows, left=3))
    from fastrank.ope import REASONS

    reasons = dict.fromkeys(reason for each in found.combinations for reason in each.reasons)
    for reason in reasons:
        console.print(f"  {reason}: {REASONS[reason]}")
    say(
        console,
        f"""Clicks per visit; {found.rows:,} visits per log, {found.n_users} users, {found.n_items}
        items, {found.k} place; stochastic: Plackett-Luce at T = {found.temperature:g}. uncovered:
        the share of what the evaluated policy shows that the logging policy could not show. ±: half
        of the 95 % interval. In brackets: no result.""",
    )


def _asked(each: Combination) -> str:
    return "itself" if each.same_model else f"another model, {each.evaluation}"


def _draw_four_ways(found: FourWays) -> Figure:
    figure = _figure()
    axes = figure.subplots()
    labels = []
    for y, each in enumerate(found.combinations):
        colour = {"ok": _COLOURS[2], "unsupported": "#c0392b"}.get(each.status, _COLOURS[1])
        if each.interval is not None:
            axes.plot(each.interval, [y, y], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot(each.truth, y, "D", color="black", zorder=3)
        axes.text(
            1.01, y, each.status, transform=axes.get_yaxis_transform(), color=colour, va="center"
        )
        labels.append(f"{each.logging} log:\n{_asked(each)}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("clicks a visit: 95 % interval from the log, and the truth (diamond)")
    _plain(axes)
    return figure


# ---- The bias of the logged average -----------------------------------------------------------


def _print_avg_bias(console: Console, found: AvgBias) -> None:
    avg = found.policies[0]
    columns = (
        "temperature",
        "truth",
        "bias of avg",
        "ips ± se",
        "rips ± se",
        "ESS share",
        "status",
    )
    rows = [
        (
            f"x {each.factor:g}",
            f"{each.truth:.4f}",
            f"{each.avg_bias:+.4f}",
            f"{each.ips:.4f} ± {each.ips_error:.4f}",
            f"{each.rips:.4f} ± {each.rips_error:.4f}",
            f"{each.ess_share:.2f}",
            each.rips_status,
        )
        for each in found.policies
    ]
    console.print(_table(columns, rows))
    say(
        console,
        f"""Clicks per visit; one drawn log of {found.rows:,} rows, whose avg is {avg.avg:.4f} ±
        {avg.avg_error:.4f}; {found.n_items} items in {found.k} places, visitors who stop at their
        first click. truth, bias, standard errors and ESS share are exact, by enumeration; ips and
        rips have no bias.""",
    )


def _draw_avg_bias(found: AvgBias) -> Figure:
    figure = _figure()
    axes = figure.subplots()
    factors = [each.factor for each in found.policies]
    axes.axhline(0.0, color="black", linewidth=1)
    axes.plot(factors, [each.avg_bias for each in found.policies], "o-", color="#c0392b")
    axes.text(factors[0], found.policies[0].avg_bias, "avg: bias ", ha="right", va="bottom")
    for name, colour in (("ips", _COLOURS[1]), ("rips", _COLOURS[0])):
        errors = [2 * getattr(each, f"{name}_error") for each in found.policies]
        misses = [getattr(each, name) - each.truth for each in found.policies]
        axes.fill_between(factors, [-e for e in errors], errors, color=colour, alpha=0.25)
        axes.plot(factors, misses, "o", color=colour, label=f"{name}: one log, ± 2 exact se")
    axes.set_xscale("log")
    axes.set_xticks(factors, [f"x {factor:g}" for factor in factors])
    axes.minorticks_off()
    axes.set_xlabel("temperature of the evaluated policy, over that of the log")
    axes.set_ylabel("estimate minus truth, clicks per visit")
    axes.legend(frameon=False, loc="upper left")
    _plain(axes)
    return figure


# ---- Variance ---------------------------------------------------------------------------------


def _print_variance(console: Console, found: Variances) -> None:
    columns = [
        "\nitems", "\nk", "variance\nips", "\nrips", "\niips", "ESS share\nips, rips", "\niips",
        "worth\nips", "\nrips", "\niips", "\nerror",
    ]  # fmt: skip
    rows = [
        (
            f"{each.n_items:,}",
            str(each.k),
            *(f"{value:.3g}" for value in each.variances),
            f"{each.ess_shares[0]:.2f}",
            f"{each.ess_shares[2]:.2f}",
            *(f"{value:.2f}" for value in each.worth),
            "exact" if each.exact else f"{max(each.errors):.1%}",
        )
        for each in found.cells
    ]
    console.print(_table(columns, rows))
    say(
        console,
        f"""variance: of one row. Evaluated: temperature x {found.factor:g}; scores are normal, with
        a standard deviation of two temperatures; clicks are position-based. ESS share: of the worst
        place; that of rips is the last place, where it equals ips. worth: of a row, in rows of the
        evaluated policy's own log. error: standard error of the variances where rankings were drawn
        ({found.draws:,}).""",
    )


def _draw_variance(found: Variances) -> Figure:
    figure = _figure(9.0)
    panels = figure.subplots(1, 2, sharey=True)
    largest = max(each.n_items for each in found.cells)
    most = max(each.k for each in found.cells)
    by_places = [each for each in found.cells if each.n_items == largest]
    by_items = [each for each in found.cells if each.k == most]
    for j, name in enumerate(("ips", "rips", "iips")):
        style = {"color": _COLOURS[(1, 0, 2)[j]], "label": name}
        panels[0].plot(
            [each.k for each in by_places], [each.worth[j] for each in by_places], "o-", **style
        )
        panels[1].plot(
            [each.n_items for each in by_items], [each.worth[j] for each in by_items], "o-", **style
        )
    panels[0].set_xlabel("places")
    panels[0].set_ylabel("what a logged row is worth,\nin rows of the evaluated policy's own log")
    panels[0].set_title(f"{largest:,} items")
    panels[1].set_xlabel("items")
    panels[1].set_xscale("log")
    panels[1].set_title(f"{most} places")
    for panel in panels:
        panel.set_ylim(0.0, 1.0)
        panel.legend(frameon=False, loc="lower left")
        _plain(panel)
    return figure


# ---- Rules that act on finished rankings --------------------------------------------------------


def _print_rules(console: Console, found: RulesAfterwards) -> None:
    columns = [
        "\nshop", "cap in\nweights", "logged / true\npropensity", "mean\nweight", "\nips / truth",
        "\nsnips / truth", "\nflagged",
    ]  # fmt: skip
    rows = [
        (
            shop.logger,
            "yes" if shop.weighs_by_cap else "no",
            _spread(shop.ratio),
            f"{shop.mean_weight:.3g}",
            _spread(shop.ips),
            _spread(shop.snips),
            f"{shop.flagged:.0%}",
        )
        for shop in found.shops
    ]
    console.print(_table(columns, rows, left=2))
    again = next(shop.draws for shop in found.shops if shop.draws > 1.0)
    say(
        console,
        f"""{found.logs} logs of {found.rows:,} rankings per shop; {found.n_items:,} items of
        {found.n_sellers} sellers, of which the largest has {found.largest:.0%}; {found.n_users}
        visitors. Evaluated: the same cap at {found.factor:g} times the temperature, which earns
        {found.truth:.4f} ± {found.truth_error:.4f} clicks per ranking (the logs:
        {found.logged:.3f}), with propensities that take the cap into account or do not. Drawing
        again took {again:.1f} rankings for one that obeys. Ranges: of 90 % of the rankings, or of
        the logs, around the median. flagged: logs in which fastrank reports that the mean weight is
        off.""",
    )


def _weights(shop: Shop) -> str:
    return "with cap" if shop.weighs_by_cap else "without cap"


def _spread(values: tuple[float, float, float]) -> str:
    low, middle, high = (f"{value:.2g}" if value < 10 else f"{value:,.0f}" for value in values)
    return f"{middle} ({low}-{high})"


# How each shop keeps to its cap, for the picture's labels.
_OF_SHOPS = {
    "strikes out": "excess items removed\nfrom a finished ranking",
    "draws again": "drawn again\nuntil a ranking obeys",
    "has rules": "drawn by rules",
}


def _draw_rules(found: RulesAfterwards) -> Figure:
    figure = _figure(9.0, 3.8)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    names = []
    for y, shop in enumerate(found.shops):
        right_one = shop.logger == "has rules"
        colour = _COLOURS[2] if right_one else "#c0392b"
        low, middle, high = shop.ratio
        left.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="round")
        left.plot(middle, y, "o", color=colour, markersize=8)
        for of, shift, tint in ((shop.ips, -0.14, _COLOURS[1]), (shop.snips, 0.14, _COLOURS[0])):
            at = [y + shift] * 2
            right.plot(of[::2], at, color=tint, linewidth=3, solid_capstyle="round")
            name = ("ips" if shift < 0 else "snips") if y == 0 else None
            right.plot(of[1], at[0], "o", color=tint, markersize=8, label=name)
        names.append(f"{_OF_SHOPS[shop.logger]},\nweights {_weights(shop)}")
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_title("Logged / true propensity")
    left.set_xlabel("of a ranking: median, and 90 % of them")
    right.set_title("Estimate / truth")
    right.set_xlabel("median, and 90 % of the logs")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.axvline(1.0, color="black", linewidth=1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.xaxis.set_minor_formatter("")
        axes.tick_params(axis="y", length=0)
        _plain(axes)
    return figure


_SHOWN: dict[str, tuple[Callable[[Console, Any], None], Callable[[Any], Figure]]] = {
    "replay": (_print_replay, _draw_replay),
    "four-ways": (_print_four_ways, _draw_four_ways),
    "avg-bias": (_print_avg_bias, _draw_avg_bias),
    "variance": (_print_variance, _draw_variance),
    "rules": (_print_rules, _draw_rules),
}
