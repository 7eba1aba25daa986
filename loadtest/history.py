"""What load tests measured, commit by commit: docs/loadtest.json, the page and the picture of it.

    python loadtest/history.py                 # writes page and picture anew from the data

Machines differ, and so does one machine from day to day: what is compared over commits are ratios
of what took turns within one run. A record says whether others were busy meanwhile.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

from loadreport import Figures, markdown, markdown_table, ratio_text, shown, summary

import fastrank as fr
from fastrank.cores import usable_cores

__all__ = ["Record", "about", "add", "read", "record", "where", "write_pages"]

Record = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[1]
_BUSY = 0.05  # share of the cores' time that others may have
_WIDE = 1.5  # upper end of a ratio's interval over the lower, beyond which it tells nothing
_PACKAGES = (
    *("numpy", "uvicorn", "uvloop", "httptools", "starlette", "msgspec", "prometheus-client"),
    *("faiss-cpu", "locust"),
)
_MEASURED = ("src", "serving", "ext", "loadtest", "setup.py", "pyproject.toml")
# The inference types of the article, and what it had for each of them.
_ARTICLE = (
    *("deterministic", "stochastic_plackett_luce", "stochastic_plackett_luce_cached"),
    *("stochastic_gumbel_softmax_trick", "stochastic_epsilon_greedy"),
)
_ARTICLE_MS = "about 80"
_GUMBEL = "stochastic_gumbel_softmax_trick"
# Experiment, what is asked, the column's words, the limit of the project's own.
_COLUMNS = (
    ("direct", _GUMBEL, "gumbel / deterministic", 1.05),
    ("known", "table, int8", "table / pass, int8", 0.2),
    ("known", "table, float32", "table, float32 / pass, int8", None),
    ("shop", "flat tail, IVF", "flat tail, IVF / gumbel", None),
    ("shop", "rules by name", "rules / gumbel", None),
    ("shop", "arms", "arms / gumbel", None),
)
# Experiments that are drawn, and their panels' titles; what takes k passes is off any scale.
_PANELS = {
    "direct": "100,000 items, over deterministic",
    "known": "Known users, 1,000,000 items, over a pass of int8",
    "shop": "A shop's requests, 100,000 items, over Plackett-Luce",
}
_LABELS = 6  # commits that are named below
_OFF = ("stochastic_plackett_luce", "ping")
_COLOURS = ("#0072B2", "#C64A00", "#00795A", "#A8487F", "#5F5F5F", "#8A6D00", "#000000", "#56B4E9")


# ---- Records --------------------------------------------------------------------------------


def about(root: Path) -> Record:
    """What is measured, and where: commit, date, machine, versions.

    `commit` is None outside a checkout; `changed` if what is measured differs from the commit.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = _git(root, "rev-parse", "HEAD")
    return {
        "commit": commit,
        "changed": bool(_git(root, "status", "--porcelain", "--", *_MEASURED)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": usable_cores(),
            "memory_gib": round(memory, 1),
            "system": f"{platform.system()} {platform.release()}",
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "fastrank": fr.__version__,
            "python": platform.python_version(),
            **{name: found for name in _PACKAGES if (found := _version(name))},
        },
    }


def record(about: Mapping[str, Any], runs: Mapping[str, Figures]) -> Record:
    """What a load test measured, by experiment, and why it is not to be relied on, if it is not."""
    return {**about, "noisy": _noise(runs), "runs": dict(runs)}


def _noise(runs: Mapping[str, Figures]) -> list[str]:
    found = []
    for run in runs.values():
        if run["others"] is not None and run["others"] > _BUSY:
            found.append(f"{run['title']}: others had {run['others']:.0%} of the cores' time")
        if len(run["stages"]) > 1:
            continue
        for stage in run["stages"].values():
            for name, each in stage["types"].items():
                if "ratio" in each and each["ratio"][2] > _WIDE * each["ratio"][1]:
                    found.append(f"{run['title']}: too few answers of {name} to tell")
    return found


def _git(root: Path, *words: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def read(path: Path) -> list[Record]:
    """The records of a file, oldest first; none if it is not there."""
    if not path.exists():
        return []
    found: list[Record] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, records: Sequence[Record]) -> None:
    """A line for each type, so that what changed can be read."""
    words = json.dumps(records, indent=1)
    flat = re.compile(r"\{[^{}]*\}|\[[^\[\]{}]*\]")
    for _ in range(2):  # lists first, then objects that held them
        words = flat.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), words)
    path.write_text(words + "\n", encoding="utf-8")


def _with(records: Sequence[Record], new: Record) -> list[Record]:
    """With one more, in the place of an earlier one of the same commit.

    A noisy one does not take the place of a quiet one.
    """
    same = [each for each in records if each["commit"] == new["commit"]]
    if new["noisy"] and any(not each["noisy"] for each in same):
        return list(records)
    return [*(each for each in records if each not in same), new]


def add(root: Path, new: Record) -> str:
    """Add a record to docs/loadtest.json and write what shows it; what was done, in words."""
    path = root / "docs" / "loadtest.json"
    before = read(path)
    records = _with(before, new)
    if new not in records:
        return "Not written: this commit has a record of a quieter run"
    _write(path, records)
    write_pages(root, records)
    return f"Written: {path}, {len(records)} records"


# ---- What shows them ------------------------------------------------------------------------


def write_pages(root: Path, records: Sequence[Record]) -> None:
    """docs/loadtest.md, where it has a place for each, and its picture."""
    if not records:
        return
    latest = records[-1]
    runs = latest["runs"]
    parts = {
        "article": "\n".join(_article(runs)),
        "history": "\n".join(_history(records)),
        "runs": f"{where(latest)}\n\n{markdown(runs.values(), level=3)}".rstrip(),
        "loadtest": summary(runs.values()),
    }
    page = root / "docs" / "loadtest.md"
    page.write_text(_between(page.read_text(encoding="utf-8"), parts), encoding="utf-8")
    draw(records, root / "docs" / "images" / "loadtest.svg")


def _between(words: str, parts: Mapping[str, str]) -> str:
    """With each part in the place after `<!-- name` up to `<!-- end -->`."""
    for name, part in parts.items():
        place = re.compile(rf"(<!-- {name}\b[^>]*-->\n).*?(\n<!-- end -->)", re.DOTALL)
        found = place.search(words)
        if part and found:
            before, after = words[: found.start()], words[found.end() :]
            words = f"{before}{found[1]}\n{part}\n{found[2]}{after}"
    return words


def _article(runs: Mapping[str, Figures]) -> list[str]:
    """The inference types that the article measured, beside what it had."""
    if "article" not in runs:
        return []
    types = runs["article"]["stages"]["1"]["types"]
    head = ["inference type", "the article, ms", "here: p50 ms", "p99 ms", "p50 / deterministic"]
    rows = [
        [
            name,
            _ARTICLE_MS,
            shown(types[name]["p50"]),
            shown(types[name]["p99"]),
            ratio_text(types[name].get("ratio")),
        ]
        for name in _ARTICLE
        if name in types
    ]
    return markdown_table(head, rows)


def where(of: Mapping[str, Any]) -> str:
    """In words: what was measured, and on what."""
    machine, versions = of["machine"], of["versions"]
    noisy = "".join(f" **Noisy**: {each}." for each in of.get("noisy", ()))
    return (
        f"fastrank {versions['fastrank']}, {_commit(of)}, {of['date'][:10]}, on {machine['cpu']},"
        f" {machine['cores']} cores, which client and server share; load before:"
        f" {machine['load_before']:.1f}. Latencies are the client's, network stack and all."
        f" A percentile is left out where fewer than ten answers lie above it; what failed has no"
        f" latency, and is counted.{noisy}"
    )


def _commit(of: Mapping[str, Any]) -> str:
    if of["commit"] is None:
        return "no checkout"
    return f"commit {of['commit'][:7]}" + (" with changes" if of["changed"] else "")


def _ratio(of: Mapping[str, Any], experiment: str, name: str) -> Sequence[float] | None:
    """Of one user's requests to those of the base; None where it was not measured."""
    stages = of["runs"].get(experiment, {}).get("stages", {})
    found: Sequence[float] | None = stages.get("1", {}).get("types", {}).get(name, {}).get("ratio")
    return found


def _history(records: Sequence[Record]) -> list[str]:
    """A row for each commit, the latest first."""
    head = ["commit", "date", "machine"]
    head += [
        words + ("" if limit is None else f", at most {limit:g}") for _, _, words, limit in _COLUMNS
    ]
    rows = [
        [
            (each["commit"] or "")[:7] + "+" * each["changed"],
            each["date"][:10],
            "noisy" if each["noisy"] else "quiet",
            *(ratio_text(_ratio(each, experiment, name)) for experiment, name, _, _ in _COLUMNS),
        ]
        for each in reversed(records)
    ]
    return markdown_table(head, rows)


def draw(records: Sequence[Record], path: Path) -> None:
    """Ratios over commits, with their intervals; hollow where a run was noisy."""
    import matplotlib
    from matplotlib.ticker import LogLocator

    sys.path.append(str(_ROOT / "bench"))
    from style import STYLE, canvas

    panels = {experiment: names for experiment in _PANELS if (names := _names(records, experiment))}
    if not panels:
        return
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(0.4 + 3.2 * len(panels), len(panels))
        for on, (experiment, names) in zip(axes, panels.items(), strict=True):
            for name, colour, marker in zip(
                names, cycle(_COLOURS), cycle("osD^v<>*"), strict=False
            ):
                points = [
                    (x, *found, bool(each["noisy"]))
                    for x, each in enumerate(records)
                    if (found := _ratio(each, experiment, name)) is not None
                ]
                x, value, low, high, noisy = zip(*points, strict=True)
                off = [[v - a for v, a in zip(value, low, strict=True)]]
                off += [[b - v for v, b in zip(value, high, strict=True)]]
                on.errorbar(x, value, off, color=colour, marker=marker, capsize=2, label=name)
                hollow = [
                    (j, v) for j, v, doubtful in zip(x, value, noisy, strict=True) if doubtful
                ]
                for j, v in hollow:
                    on.plot(j, v, marker, color=colour, markerfacecolor="white", zorder=3)
            on.set_yscale("log")
            on.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            on.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            on.minorticks_off()
            every = math.ceil(len(records) / _LABELS)
            labels = [(each["commit"] or "")[:7] for each in records[::every]]
            on.set_xticks(range(0, len(records), every), labels)
            on.set_xlim(-0.5, len(records) - 0.5)
            on.set_title(_PANELS[experiment])
            on.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _names(records: Sequence[Record], experiment: str) -> list[str]:
    """What has a ratio in some record, fast ones first as in the latest that has it."""
    found: dict[str, None] = {}
    for each in reversed(records):
        stages = each["runs"].get(experiment, {}).get("stages", {})
        types = stages.get("1", {}).get("types", {})
        found |= dict.fromkeys(name for name, row in types.items() if "ratio" in row)
    return [name for name in found if name not in _OFF]


if __name__ == "__main__":
    write_pages(_ROOT, read(_ROOT / "docs" / "loadtest.json"))
