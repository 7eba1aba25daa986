"""Runs as text, Markdown and a page; closed and open loops never in one table.

Tables are made of a run's figures, which are plain enough to be kept for years; curves of its
histograms.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gates import BASE, Verdict, pooled, ratio, stage_label
from recorder import Series, Stage

__all__ = [
    "Figures",
    "Run",
    "markdown",
    "markdown_table",
    "page",
    "ratio_text",
    "shown",
    "summary",
    "text",
]

Figures = dict[str, Any]  # of a run: see `Run.figures`

_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
_ENOUGH = 10  # answers above a percentile, or it is not shown
_COLOURS = ("#0072B2", "#C64A00", "#00795A", "#A8487F", "#5F5F5F", "#8A6D00", "#000000")


@dataclass
class Run:
    """What one run of locust measured.

    Attributes
    ----------
    title, loop, target, shape : str
    rate : float or None
        Requests a second of each user, in an open loop.
    k, temperature, user_ids
        What was asked for, and for how many different users.
    generators : int
        Processes that sent.
    warm_up : float
        Seconds of each stage that do not count.
    base : str
        Over whose p50 ratios are.
    verdicts : list of Verdict
    stages : dict of Stage
        By name: the number of users, or for a soak when it began.
    left_out : int
        Requests that did not count.
    server_cpu_us : float or None
        CPU microseconds of the servers a request, of these too; where it could be seen.
    others : float or None
        Share of all cores' time that neither clients nor servers had; where it could be seen.
    """

    title: str
    loop: str
    target: str
    shape: str
    rate: float | None
    k: int
    temperature: float | None
    user_ids: int
    generators: int
    warm_up: float
    verdicts: list[Verdict]
    base: str = BASE
    stages: Mapping[str, Stage] = field(default_factory=dict)
    left_out: int = 0
    server_cpu_us: float | None = None
    others: float | None = None

    @property
    def sent(self) -> int:
        """All requests."""
        return self.left_out + sum(pooled(stage).sent for stage in self.stages.values())

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "verdicts": [[verdict.passed, verdict.text] for verdict in self.verdicts],
            "stages": {name: stage.to_dict() for name, stage in self.stages.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        return cls(
            **{name: data[name] for name in _PLAIN},
            verdicts=[Verdict(bool(passed), words) for passed, words in data["verdicts"]],
            stages={name: Stage.from_dict(stage) for name, stage in data["stages"].items()},
        )

    def figures(self) -> Figures:
        """What tables show of it, as JSON may have it: counts, milliseconds, ratios.

        A percentile is null where fewer than ten answers lie above it.
        """
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "verdicts": [[verdict.passed, verdict.text] for verdict in self.verdicts],
            "stages": {name: self._figures(stage) for name, stage in self.stages.items()},
        }

    def _figures(self, stage: Stage) -> dict[str, Any]:
        base = stage.series.get(self.base)
        types: dict[str, Any] = {}
        for name in sorted(stage.series, key=lambda each: _place(stage.series[each])):
            found = types[name] = _row(stage.series[name])
            if self.loop == "closed" and base is not None and name != self.base:
                against = ratio(stage.series[name].latency, base.latency)
                if against is not None and all(map(math.isfinite, against)):
                    found["ratio"] = [round(each, 4) for each in against]
        return {
            "seconds": round(stage.seconds, 3),
            "together": _row(pooled(stage)),
            "types": types,
        }


_PLAIN = (
    *("title", "loop", "target", "shape", "rate", "k", "temperature", "user_ids", "generators"),
    *("warm_up", "base", "left_out", "server_cpu_us", "others"),
)


def _row(series: Series) -> dict[str, Any]:
    times = series.latency
    found: dict[str, Any] = {"answers": times.count, "failed": series.failed}
    for name, percent in _PERCENTILES.items():
        enough = times.count * (1.0 - percent / 100.0) >= _ENOUGH
        found[name] = _milliseconds(times.percentile(percent)) if enough else None
    found["max"] = _milliseconds(times.most) if times.count else None
    enough = series.late.count * 0.01 >= _ENOUGH
    found["late"] = _milliseconds(series.late.percentile(99.0)) if enough else None
    return found


def _milliseconds(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


def summary(runs: Iterable[Figures]) -> str:
    """A short table: inference types one at a time, from the runs of one user."""
    found = {
        run["target"] == "gateway": run
        for run in runs
        if run["loop"] == "closed" and run["base"] == BASE and list(run["stages"]) == ["1"]
    }
    direct, through = found.get(False), found.get(True)
    if direct is None:
        return ""
    head, rows = _by_type(direct, direct["stages"]["1"])
    if through is not None:
        head.append("p50 ms, gateway")
        types = through["stages"]["1"]["types"]
        for row in rows:
            row.append(shown(types[row[0]]["p50"]) if row[0] in types else "")
    return "\n".join(markdown_table(head, rows))


# ---- Tables ---------------------------------------------------------------------------------

_Table = tuple[list[str], list[list[str]]]


def _tables(run: Figures) -> list[tuple[str, _Table]]:
    """A table by what is asked for each stage, and one over the stages if there are several."""
    found = []
    if len(run["stages"]) > 1:
        found.append(("All types together", _by_stage(run)))
    for name, stage in run["stages"].items():
        found.append((_stage_title(run, name), _by_type(run, stage)))
    return found


def _by_type(run: Figures, stage: Mapping[str, Any]) -> _Table:
    closed = run["loop"] == "closed"
    head = ["asked", "answers", *_latency_head(), "failed"]
    head += [f"p50 / that of {run['base']}"] if closed else ["late p99 ms"]
    rows = []
    for name, each in stage["types"].items():
        row = [name, f"{each['answers']:,}", *_latency(each), f"{each['failed']:,}"]
        row.append(ratio_text(each.get("ratio")) if closed else shown(each["late"]))
        rows.append(row)
    return head, rows


def _by_stage(run: Figures) -> _Table:
    closed = run["loop"] == "closed"
    first = "from" if run["shape"] == "soak" else "users" if closed else "requests/s asked for"
    head = [first, "answers/s", *_latency_head(), "failed"]
    head += [] if closed else ["late p99 ms"]
    rows = []
    for name, stage in run["stages"].items():
        together = stage["together"]
        asked = name
        if run["rate"] is not None and name.isdigit():
            asked = f"{run['rate'] * int(name):g}"
        row = [asked, f"{_rate(stage):,.0f}", *_latency(together), f"{together['failed']:,}"]
        rows.append(row + ([] if closed else [shown(together["late"])]))
    return head, rows


def _stage_title(run: Figures, name: str) -> str:
    where = stage_label(name, run["rate"]) or "All"
    if run["shape"] == "soak":
        where = f"From {name} on"
    elif run["rate"] is not None and name.isdigit():
        where += " asked for"
    return f"{where}: {_rate(run['stages'][name]):,.0f} answers a second"


def _rate(stage: Mapping[str, Any]) -> float:
    return float(stage["together"]["answers"] / stage["seconds"]) if stage["seconds"] else 0.0


def _latency_head() -> list[str]:
    return [f"{name} ms" for name in (*_PERCENTILES, "max")]


def _latency(row: Mapping[str, Any]) -> list[str]:
    return [shown(row[name]) for name in (*_PERCENTILES, "max")]


def shown(value: float | None) -> str:
    """Milliseconds, where there are any."""
    if value is None:
        return ""
    if value >= 100.0:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.01 else f"{value:.2f}"


def ratio_text(found: Sequence[float] | None) -> str:
    """A ratio and its interval."""
    if found is None:
        return ""
    value, low, high = found
    return f"{value:.3f}" if low <= 0.0 else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _place(series: Series) -> float:
    """Fast ones first, those without an answer last."""
    return series.latency.percentile(50) if series.latency.count else math.inf


def _conditions(run: Figures) -> str:
    users, temperature, cpu_us = run["user_ids"], run["temperature"], run["server_cpu_us"]
    asked = f"k = {run['k']}, {users} different user{'s' if users != 1 else ''}"
    if temperature is not None:
        asked += f", temperature {temperature:g}"
    how = (
        "each user waits for an answer before it asks again"
        if run["loop"] == "closed"
        else "requests are sent at a constant rate, and a latency counts from when its request was"
        " due; late: by how much the generator missed that"
    )
    cpu = ""
    if cpu_us is not None:
        cpu = f" The server took {cpu_us:,.0f} us of CPU a request, ranking and all."
    others = ""
    if run["others"] is not None:
        others = f" Others had {run['others']:.1%} of the cores' time."
    return (
        f"{run['loop'].capitalize()} loop: {how}. Target: {run['target']}; {asked}. What is asked"
        f" takes turns in an order drawn anew for each round; the first {run['warm_up']:g} s of"
        f" each stage do not count.{cpu}{others}"
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown, without the columns that have no figure in any row."""
    told = [j for j in range(len(head)) if not rows or any(row[j] for row in rows)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    lines = [[line[j] for j in told] for line in lines]
    return ["| " + " | ".join(line) + " |" for line in lines]


def markdown(runs: Iterable[Figures], level: int = 2) -> str:
    """Runs as Markdown: those of closed loops first, and apart from those of open ones."""
    lines: list[str] = []
    for run in sorted(runs, key=lambda each: each["loop"] != "closed"):
        lines += [f"{'#' * level} {run['title']}", "", _conditions(run), ""]
        for title, table in _tables(run):
            lines += [f"**{title}**", "", *markdown_table(*table), ""]
        lines += [f"- {_mark(passed)}: {words}" for passed, words in run["verdicts"]]
        lines.append("")
    return "\n".join(lines)


def text(run: Figures) -> str:
    """A run for a terminal."""
    lines = [run["title"], _conditions(run), ""]
    for title, (head, rows) in _tables(run):
        widths = [max(len(row[j]) for row in [head, *rows]) for j in range(len(head))]
        lines.append(title)
        for row in [head, *rows]:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            lines.append("  " + "  ".join(cells).rstrip())
        lines.append("")
    lines += [f"{_mark(passed)}: {words}" for passed, words in run["verdicts"]]
    return "\n".join(lines)


def _mark(passed: bool) -> str:
    return "passed" if passed else "FAILED"


# ---- The page -------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
.failed { color: #a40000; font-weight: 600; }
svg { max-width: 100%; height: auto; }
"""


def page(runs: Sequence[Run], preface: str = "") -> str:
    """Runs as one HTML page that needs nothing else."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>fastrank: load test</title>",
        f"<style>{_STYLE}</style><h1>Load test</h1>",
        f"<p>{html.escape(preface)}</p>" if preface else "",
    ]
    for run in sorted(runs, key=lambda each: each.loop != "closed"):
        figures = run.figures()
        words = html.escape(_conditions(figures))
        parts.append(f"<h2>{html.escape(run.title)}</h2><p>{words}</p>")
        if not run.stages:
            parts.append("<p>Nothing was measured yet.</p>")
        for title, table in _tables(figures):
            parts.append(f"<h3>{html.escape(title)}</h3>{_html_table(table)}")
        for name, stage in run.stages.items():
            parts.append(_curves(stage, _stage_title(figures, name)))
        parts.append("<ul>")
        for passed, words in figures["verdicts"]:
            kind = "" if passed else " class='failed'"
            parts.append(f"<li{kind}>{_mark(passed)}: {html.escape(words)}</li>")
        parts.append("</ul>")
    return "\n".join(part for part in parts if part) + "\n"


def _html_table(table: _Table) -> str:
    head, rows = table
    cells = "".join(f"<th scope='col'>{html.escape(each)}</th>" for each in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _curves(stage: Stage, title: str) -> str:
    """Latency over percentile, both logarithmic: the tail gets the room that it needs."""
    shown = {
        name: stage.series[name].latency
        for name in sorted(stage.series, key=lambda each: _place(stage.series[each]))
        if stage.series[name].latency.count >= _ENOUGH
    }
    if not shown:
        return ""
    width, height, left, right, top, bottom = 760.0, 320.0, 60.0, 240.0, 10.0, 40.0
    nines = max(1.0, math.log10(max(times.count for times in shown.values()) / _ENOUGH))
    low = min(max(times.least, 1e-6) for times in shown.values())
    high = max(times.most for times in shown.values())
    bounds = math.log10(low), max(math.log10(high), math.log10(low) + 0.1)

    def x(share_above: float) -> float:
        return left + (width - left - right) * min(-math.log10(share_above) / nines, 1.0)

    def y(seconds: float) -> float:
        part = (math.log10(max(seconds, low)) - bounds[0]) / (bounds[1] - bounds[0])
        return height - bottom - (height - top - bottom) * part

    label = html.escape(f"Latency by percentile. {title}")
    parts = [
        f"<svg viewBox='0 0 {width:g} {height:g}' width='{width:g}' role='img'"
        f" aria-label='{label}' font-size='12'>"
    ]
    ticks = [(0.5, "p50"), *((10.0**-j, f"p{100 * (1 - 10.0**-j):.9g}") for j in range(1, 7))]
    for share, name in ticks:
        if -math.log10(share) <= nines:
            parts.append(
                f"<path d='M{x(share):.1f} {top} V{height - bottom}' stroke='#ddd'/>"
                f"<text x='{x(share):.1f}' y='{height - bottom + 18}' text-anchor='middle'>"
                f"{name}</text>"
            )
    for power in range(math.floor(bounds[0]), math.ceil(bounds[1]) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if low <= value <= high:
                parts.append(
                    f"<path d='M{left} {y(value):.1f} H{width - right}' stroke='#ddd'/>"
                    f"<text x='{left - 6}' y='{y(value) + 4:.1f}' text-anchor='end'>"
                    f"{1e3 * value:g} ms</text>"
                )
    for j, (name, times) in enumerate(shown.items()):
        colour = _COLOURS[j % len(_COLOURS)]
        steps = 120
        end = min(nines, math.log10(times.count))
        points = []
        for step in range(steps + 1):
            share = 10.0 ** (-end * step / steps)
            points.append(f"{x(share):.1f},{y(times.percentile(100 * (1 - share))):.1f}")
        parts.append(
            f"<polyline points='{' '.join(points)}' fill='none' stroke='{colour}'"
            " stroke-width='2'/>"
            f"<text x='{width - right + 12}' y='{top + 14 + 18 * j}' fill='{colour}'>"
            f"{html.escape(name)}</text>"
        )
    return "".join([*parts, "</svg>"])
