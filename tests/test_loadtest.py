"""The load test: its histogram, its gates, what it writes, and short runs of it.

locust replaces parts of the standard library when it is imported, so it runs in processes of its
own and never here.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import NormalDist
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import history
import numpy as np
import numpy.typing as npt
import pytest
import run as loadtest_run
from environment import inherited
from gates import BASE, Gates, Verdict, pooled, ratio
from histogram import Histogram, _above, _index
from loadreport import Run, markdown, markdown_table, page, summary, text
from patience import PATIENCE
from recorder import Recorder, Series, Stage
from targets import Ask, Container, Gateway, SageMaker

from fastrank import INFERENCE_TYPES

ROOT = Path(__file__).resolve().parents[1]
LOADTEST = ROOT / "loadtest"
GUMBEL = "stochastic_gumbel_softmax_trick"


# ---- Histogram ------------------------------------------------------------------------------

# Sizes of which no percentile below is a whole number: of one that is, NumPy may take the next
# rank, because 99.9 is a little more in binary.
SAMPLES: dict[str, Callable[[np.random.Generator], npt.NDArray[np.floating[Any]]]] = {
    "an HTTP latency": lambda rng: rng.lognormal(-7.0, 0.5, 20_001),
    "a long tail": lambda rng: rng.pareto(1.1, 20_001) * 1e-4,
    "two speeds": lambda rng: np.where(rng.random(999) < 0.7, 2e-4, 0.05) * rng.uniform(1, 2, 999),
    "nanoseconds": lambda rng: rng.integers(0, 4000, 5003) * 1e-9,
    "hours": lambda rng: rng.uniform(1000.0, 40_000.0, 503),
    "one": lambda rng: np.array([0.00123]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_percentiles_are_numpys_to_three_digits(name: str) -> None:
    values = SAMPLES[name](np.random.default_rng(1))
    histogram = Histogram(values.tolist())
    for percent in (0.0, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0):
        exact = float(np.percentile(values, percent, method="inverted_cdf"))
        found = histogram.percentile(percent)
        # From above, by a thousandth at most, or by the nanosecond that a clock counts in.
        assert exact - 1e-12 <= found <= exact * (1 + 2**-10) + 1.001e-9, percent
    assert histogram.count == len(values)
    assert histogram.most == values.max()
    assert histogram.mean == pytest.approx(values.mean())


def test_exact_ranks() -> None:
    """99.9 % of 1,000 are 999."""
    histogram = Histogram(1e-3 * j for j in range(1, 1001))
    assert histogram.percentile(99.9) == pytest.approx(0.999, rel=1e-3)
    assert histogram.percentile(99.9) < 1.0


def test_buckets_have_no_gaps_and_are_narrow() -> None:
    rng = np.random.default_rng(2)
    edges = [2**p + d for p in range(1, 45) for d in (-1, 0, 1)]
    numbers = [0, 1, *edges, *(int(2**e) for e in rng.uniform(0, 45, 2000))]
    for nanoseconds in numbers:
        index = _index(nanoseconds)
        below = _above(index - 1) if index else 0
        assert below <= nanoseconds < _above(index)
        assert _above(index) - below <= max(1, nanoseconds / 1024)


def test_merged_is_as_if_recorded_together() -> None:
    values = np.random.default_rng(3).lognormal(-7.0, 1.0, 3000).tolist()
    together = Histogram(values)
    merged = Histogram()
    for j in range(3):
        merged.merge(Histogram(values[j::3]))
    merged.merge(Histogram())
    assert merged.counts == together.counts
    assert (merged.count, merged.least, merged.most) == (3000, together.least, together.most)
    assert merged.mean == pytest.approx(together.mean)
    again = Histogram.from_dict(json.loads(json.dumps(together.to_dict())))
    assert again.to_dict() == together.to_dict()
    assert again.percentile(99) == together.percentile(99)


def test_nothing_counted() -> None:
    empty = Histogram.from_dict(json.loads(json.dumps(Histogram().to_dict())))
    assert np.isnan(empty.percentile(50))
    assert np.isnan(empty.mean)
    with pytest.raises(ValueError, match="percent: expected 0 to 100"):
        empty.percentile(101)


def test_a_clock_that_steps_back_counts_as_zero() -> None:
    histogram = Histogram([-1e-6])
    assert histogram.percentile(50) == histogram.least == 0.0


def test_intervals_hold_the_median() -> None:
    """Of 400 intervals, at least 365: with 95 % each, fewer would be so with probability 6e-4.

    The seed is fixed, and order statistics hold a little more than they promise.
    """
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(400):
        low, high = Histogram(rng.exponential(1.0, 300).tolist()).interval(50)
        held += low <= np.log(2.0) <= high
    assert held >= 365


def test_too_few_for_an_interval() -> None:
    assert Histogram([0.001]).interval(50) == (0.0, float("inf"))


# ---- Recorder -------------------------------------------------------------------------------


def two_stages(since: float) -> tuple[str, float] | None:
    return (str(int(since // 10)), since % 10) if since < 20 else None


def test_stages_and_warm_up() -> None:
    recorder = Recorder(warm_up=1.0)
    recorder.begin(100.0, two_stages)
    recorder.record("a", 100.5, 0.001)  # warming up
    recorder.record("a", 102.0, 0.002)
    recorder.record("a", 109.0, 0.5)  # belongs to where it began
    recorder.record("b", 113.0, 0.003, late=0.001)
    recorder.record("b", 113.5, 9.0, error="500 " + "x" * 500)
    recorder.record("b", 125.0, 0.003)  # after the last stage
    assert recorder.left_out == 2
    assert list(recorder.stages) == ["0", "1"]
    assert recorder.stages["0"].seconds == pytest.approx(7.5)
    assert recorder.stages["0"].series["a"].latency.count == 2
    series = recorder.stages["1"].series["b"]
    assert (series.latency.count, series.failed, series.sent) == (1, 1, 2)
    assert series.latency.most == 0.003  # what failed has no latency
    assert series.late.count == 2
    assert all(len(reason) <= 100 for reason in series.errors)
    recorder.begin(200.0)
    assert not recorder.stages
    assert recorder.left_out == 0


def test_generators_send_each_other_what_they_counted() -> None:
    """A master adds up what its workers took, as JSON and in any number of pieces."""
    alone, master = Recorder(0.5), Recorder(0.5)
    workers = [Recorder(0.5), Recorder(0.5)]
    for recorder in (alone, *workers):
        recorder.begin(0.0, two_stages)
    rng = np.random.default_rng(5)
    for j in range(600):
        due, took = float(rng.uniform(0, 20)), float(rng.exponential(0.01))
        error = "503" if rng.random() < 0.1 else None
        for recorder in (alone, workers[j % 2]):
            recorder.record("ab"[j % 3 % 2], due, took, 0.001, error)
        if j % 100 == 99:
            for worker in workers:
                master.add(json.loads(json.dumps(worker.take())))
    found, expected = master.take(), alone.take()
    assert found["left_out"] == expected["left_out"] > 0
    for name, stage in expected["stages"].items():
        other = found["stages"][name]
        assert (stage["first"], stage["last"]) == (other["first"], other["last"])
        for kind, series in stage["series"].items():
            for part in ("latency", "late"):
                total = series[part].pop("total")
                assert other["series"][kind][part].pop("total") == pytest.approx(total)
            assert other["series"][kind] == series


# ---- Gates ----------------------------------------------------------------------------------


def recorded(
    stages: dict[str, dict[str, list[float]]],
    errors: int = 0,
    seconds: float = 10.0,
    late: Sequence[float] = (),
) -> Recorder:
    """A recorder of such latencies, in seconds; errors and lateness are added to each series."""
    recorder = Recorder()
    for name, kinds in stages.items():
        made = recorder.stages[name] = Stage(0.0, seconds)
        for kind, values in kinds.items():
            made.series[kind] = Series(Histogram(values), Histogram(late), {"503": errors})
            if not errors:
                made.series[kind].errors.clear()
    return recorder


def judged(gates: Gates, recorder: Recorder, rate: float | None = None) -> list[str]:
    """What failed."""
    return [each.text for each in gates.judge(recorder, rate) if not each.passed]


def test_p99_of_the_worst_type_in_each_stage() -> None:
    fast, slow = [0.001] * 200, [0.001] * 190 + [0.2] * 10
    recorder = recorded({"1": {"a": fast, "b": fast}, "8": {"a": fast, "b": slow}})
    assert judged(Gates(p99_ms=250.0), recorder) == []
    assert judged(Gates(), recorder) == []
    failed = judged(Gates(p99_ms=100.0), recorder)
    assert len(failed) == 1
    assert failed[0].startswith("p99 at 8 users: at most 200 ms (b), limit 100 ms")


def test_error_share() -> None:
    recorder = recorded({"1": {"a": [0.001] * 99}}, errors=1)
    assert judged(Gates(error_share=0.01), recorder) == []
    failed = judged(Gates(), recorder)
    assert failed == ["errors at 1 user: 1.000% of 100, limit 0.000%: 1 503"]


def test_only_errors_pass_no_gate() -> None:
    recorder = recorded({"1": {"a": []}}, errors=5)
    failed = judged(Gates(p99_ms=1.0, error_share=1.0), recorder)
    assert failed == ["0 answers, at least 1 wanted", "p99 at 1 user: nothing was answered"]


def test_a_run_that_sent_nothing_fails() -> None:
    assert judged(Gates(), Recorder()) == ["0 answers, at least 1 wanted"]


def test_ratio_to_deterministic() -> None:
    recorder = recorded({"1": {BASE: [0.001] * 100, GUMBEL: [0.00104] * 100}})
    assert judged(Gates(ratios={GUMBEL: 1.05}), recorder) == []
    assert len(judged(Gates(ratios={GUMBEL: 1.03}), recorder)) == 1
    missing = judged(Gates(ratios={"uniform": 9.0}), recorder)
    assert missing == [f"p50 of uniform / {BASE} at 1 user: not both were answered"]
    turned = Gates(ratios={BASE: 0.9}, base=GUMBEL)
    assert judged(turned, recorder)[0].startswith(f"p50 of {BASE} / {GUMBEL} at 1 user: 0.96")


@pytest.mark.parametrize(
    ("answers", "factor", "failed"),
    [(4000, 1.1, "limit 1.05"), (300, 1.054, ""), (4000, 1.04, ""), (20, 1.0, "too few answers")],
)
def test_a_ratio_is_judged_by_its_interval(answers: int, factor: float, failed: str) -> None:
    """1.054 (1.003 to 1.109) is no more than 1.05, as far as anybody can tell."""
    deviates = [NormalDist().inv_cdf((i + 0.5) / answers) for i in range(answers)]
    of, to = ([m * float(np.exp(0.4 * z)) for z in deviates] for m in (factor * 1e-3, 1e-3))
    found = judged(Gates(ratios={GUMBEL: 1.05}), recorded({"1": {BASE: to, GUMBEL: of}}))
    assert [failed in text for text in found] == [True] * bool(failed)
    found = judged(Gates(drift=1.05), recorded({"a": {GUMBEL: to}, "b": {GUMBEL: of}}))
    assert [failed in text for text in found] == [True] * bool(failed)


def test_ratio_has_an_interval() -> None:
    rng = np.random.default_rng(6)
    of, to = (Histogram((m * rng.lognormal(0, 0.3, 4000)).tolist()) for m in (1.1e-3, 1e-3))
    found = ratio(of, to)
    assert found is not None
    value, low, high = found
    assert low < value < high
    assert low < 1.1 < high
    assert high - low < 0.12
    assert ratio(Histogram(), to) is None


def test_drift() -> None:
    steady = {"0 s": {"a": [0.001] * 50}, "10 s": {"a": [0.0012] * 50}}
    assert judged(Gates(drift=1.5), recorded(steady)) == []
    assert len(judged(Gates(drift=1.1), recorded(steady))) == 1
    assert len(judged(Gates(drift=1.5), recorded({"0 s": {"a": [0.001]}}))) == 1


def test_an_open_loop_must_keep_up() -> None:
    recorder = recorded({"2": {"a": [0.001] * 1000}})
    for j in range(1000):
        recorder.stages["2"].series["a"].late.record(0.2 if j >= 980 else 0.0001)
    assert judged(Gates(late_ms=100.0), recorder) == []  # a closed loop has no schedule
    assert judged(Gates(late_ms=300.0), recorder, 50.0) == []
    failed = judged(Gates(late_ms=100.0), recorder, 50.0)
    assert failed == ["sent late at 100 requests/s: p99 200 ms, limit 100 ms"]


# ---- What is written ------------------------------------------------------------------------


def run_of(
    recorder: Recorder, loop: str = "closed", rate: float | None = None, shape: str = "ramp"
) -> Run:
    return Run(
        title=f"A <{loop}> loop",
        loop=loop,
        target="container",
        shape=shape,
        rate=rate,
        k=10,
        temperature=0.25,
        user_ids=3,
        generators=1,
        warm_up=1.0,
        verdicts=[Verdict(True, "one"), Verdict(False, "two & <three>")],
        stages=recorder.stages,
    )


def tables(words: str) -> list[list[list[str]]]:
    """Markdown's tables, as cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", words + "\n", flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        for table in found
    ]


def test_markdown_keeps_loops_apart() -> None:
    values = np.random.default_rng(7).lognormal(-7, 0.3, 2000).tolist()
    kinds = {GUMBEL: values, BASE: values, "uniform": values[:50], "none": []}
    closed = run_of(recorded({"1": kinds, "8": kinds}))
    opened = run_of(recorded({"1": kinds, "2": kinds}, late=values), "open", 150.0)
    words = markdown([opened.figures(), closed.figures()])
    assert words.index("A <closed> loop") < words.index("A <open> loop")
    found = tables(words)
    assert len(found) == 6  # of each run: over its stages, and of either stage
    for table in found:
        assert len({len(row) for row in table}) == 1
    assert [row[0] for row in found[0]] == ["users", "---", "1", "8"]
    assert [row[0] for row in found[3]] == ["requests/s asked for", "---", "150", "300"]
    head, _, *rows = found[1]
    assert head[-1] == "p50 / that of deterministic"
    assert {row[0] for row in rows} == {GUMBEL, BASE, "uniform", "none"}
    assert rows[-1][0] == "none"  # has no latency at all
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert cells[GUMBEL]["p50 / that of deterministic"].startswith("1.000 (")
    assert cells[BASE]["p50 / that of deterministic"] == ""
    assert cells[GUMBEL]["p99 ms"] != ""
    assert "p99.9 ms" not in head  # two of 2,000 lie above it: no row has one
    assert cells["uniform"]["p90 ms"] == ""
    assert "ms" in found[4][0][-1]
    assert "late" in found[4][0][-1]
    assert "- passed: one" in words
    assert "- FAILED: two & <three>" in words
    exact = 1e3 * float(np.percentile(values, 50, method="inverted_cdf"))
    assert float(cells[GUMBEL]["p50 ms"]) == pytest.approx(exact, rel=6e-3)


def test_page_says_the_same_and_escapes() -> None:
    values = np.random.default_rng(8).lognormal(-7, 0.3, 500).tolist()
    run = run_of(recorded({"1": {BASE: values, GUMBEL: values}}))
    words = page([run], "load < 1")
    assert "A &lt;closed&gt; loop" in words
    assert "two &amp; &lt;three&gt;" in words
    assert "load &lt; 1" in words
    assert words.count("<polyline") == 2
    assert "http" not in words  # needs nothing from elsewhere
    assert "Nothing was measured yet" in page([run_of(Recorder())])


def test_a_run_survives_json() -> None:
    run = run_of(recorded({"1": {BASE: [0.001] * 30}}, errors=2))
    run.server_cpu_us, run.left_out = 123.4, 7
    again = Run.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again.to_dict() == run.to_dict()
    assert text(again.figures()) == text(run.figures())
    assert again.sent == 7 + 30 + 2
    assert not again.passed
    assert "123 us" in text(run.figures())


def test_ratios_are_over_the_base() -> None:
    run = run_of(recorded({"1": {"a": [0.001] * 3000, "b": [0.002] * 3000}}))
    run.base = "a"
    [_, row], [_, other] = run.figures()["stages"]["1"]["types"].items()
    assert "ratio" not in row
    assert other["ratio"] == pytest.approx([2.0, 2.0, 2.0], rel=2e-3)
    assert tables(markdown([run.figures()]))[0][0][-1] == "p50 / that of a"


def test_the_short_table_is_of_one_user() -> None:
    one = run_of(recorded({"1": {BASE: [0.001] * 30}})).figures()
    many = run_of(recorded({"1": {BASE: [0.002] * 30}, "8": {BASE: [0.003] * 30}})).figures()
    other = {**one, "base": "gumbel"}
    assert summary([many, other]) == ""
    assert tables(summary([many, one, other]) + "\n")[0][2][:3] == [BASE, "30", "1"]
    through = run_of(recorded({"1": {BASE: [0.004] * 30}})).figures()
    through["target"] = "gateway"
    assert summary([through]) == ""
    head, _, row = tables(summary([through, one]) + "\n")[0]
    assert (row[2], head[-1], row[-1]) == ("1", "p50 ms, gateway", "4")


def test_soak_is_told_apart_by_time() -> None:
    stages = {"0 s": {"a": [0.001] * 20}, "10 s": {"a": [0.001] * 20}}
    words = markdown([run_of(recorded(stages), shape="soak").figures()])
    assert tables(words)[0][0][0] == "from"
    assert "**From 10 s on: 2 answers a second**" in words


# ---- Commit by commit -----------------------------------------------------------------------


def kept(commit: str, gumbel: float = 1.02, others: float = 0.01) -> history.Record:
    """A record of a commit whose gumbel takes so many times as long as deterministic."""
    draws = np.random.default_rng(9).lognormal(-7.0, 0.1, 2000)
    kinds = {BASE: draws.tolist(), GUMBEL: (gumbel * draws).tolist()}
    runs = {}
    for name, target in (("article", "gateway"), ("direct", "container")):
        run = run_of(recorded({"1": kinds}), shape="none")
        run.target, run.others = target, others
        runs[name] = run.figures()
    return history.record({**history.about(ROOT), "commit": commit, "changed": False}, runs)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `add` writes into."""
    (tmp_path / "docs").mkdir()
    places = "".join(
        f"<!-- {name}: loadtest/history.py -->\n\nold\n\n<!-- end -->\nafter\n"
        for name in ("article", "loadtest", "history", "runs")
    )
    (tmp_path / "docs" / "loadtest.md").write_text("before\n" + places)
    return tmp_path


def test_a_table_without_rows_keeps_its_head() -> None:
    assert markdown_table(["a", "b"], [])[0] == "| a | b |"
    assert markdown_table(["a", "b", "c"], [["1", "", "0"]])[0] == "| a | c |"


def test_a_commit_has_one_record_and_pages_show_the_latest(checkout: Path) -> None:
    for commit, gumbel in (("a" * 40, 1.5), ("b" * 40, 1.25), ("a" * 40, 1.125)):
        assert "Written" in history.add(checkout, kept(commit, gumbel))
    records = history.read(checkout / "docs" / "loadtest.json")
    assert [each["commit"][0] for each in records] == ["b", "a"]
    words = (checkout / "docs" / "loadtest.md").read_text()
    article, short, by_commit, *runs = tables(words)
    assert [row[0] for row in article[2:]] == [BASE, GUMBEL]  # first of all, and of the article's
    assert float(article[3][-1].split()[0]) == pytest.approx(1.125, rel=2e-3)
    assert [row[0] for row in by_commit[2:]] == ["a" * 7, "b" * 7]
    ratios = [float(row[3].split()[0]) for row in by_commit[2:]]
    assert ratios == pytest.approx([1.125, 1.25], rel=2e-3)
    assert len(runs) == 2
    assert (words.count("old"), words.count("after\n")) == (0, 4)
    assert short[-1][-2] == article[3][-1]
    assert "<svg" in (checkout / "docs" / "images" / "loadtest.svg").read_text()


def test_a_noisy_run_is_marked_and_takes_no_quiet_ones_place(checkout: Path) -> None:
    quiet, noisy = kept("a" * 40, 1.25), kept("a" * 40, 1.5, others=0.3)
    assert not quiet["noisy"]
    assert noisy["noisy"] == ["A <closed> loop: others had 30% of the cores' time"] * 2
    assert "Written" in history.add(checkout, noisy)  # better than nothing
    page_of_docs = checkout / "docs" / "loadtest.md"
    assert "**Noisy**: A <closed> loop: others had 30%" in page_of_docs.read_text()
    assert tables(page_of_docs.read_text())[2][2][2] == "noisy"
    assert "Written" in history.add(checkout, quiet)
    before = page_of_docs.read_text()
    assert "Noisy" not in before
    assert "quieter" in history.add(checkout, noisy)
    assert history.read(checkout / "docs" / "loadtest.json") == [quiet]
    assert page_of_docs.read_text() == before


def test_an_interval_too_wide_to_tell_is_noise() -> None:
    draws = np.random.default_rng(10).lognormal(-7.0, 1.5, 40).tolist()
    run = run_of(recorded({"1": {BASE: draws, "uniform": draws}}), shape="none")
    found = history.record(history.about(ROOT), {"direct": run.figures()})["noisy"]
    assert found == ["A <closed> loop: too few answers of uniform to tell"]


def test_a_record_says_of_what(tmp_path: Path) -> None:
    found = history.about(tmp_path)
    assert found["commit"] is None  # no checkout
    assert "no checkout" in history.where(found)
    assert found["versions"]["numpy"] == np.__version__
    assert found["machine"]["cores"] >= 1


def test_pages_show_what_the_data_say(tmp_path: Path) -> None:
    """docs/loadtest.md is that of docs/loadtest.json."""
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "loadtest.md"
    page.write_text((ROOT / "docs" / "loadtest.md").read_text())
    history.write_pages(tmp_path, history.read(ROOT / "docs" / "loadtest.json"))
    assert page.read_text() == (ROOT / "docs" / "loadtest.md").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--quick", "--write"], "--write: not of a quick run"),
        (["--url", "http://localhost:1", "--write"], "nor of another server"),
        (["--experiments", "direct", "--write"], "--write: --experiments has to have article,"),
        (["--experiments", "direct,best"], "--experiments: best: not one"),
    ],
)
def test_runs_that_cannot_be(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        loadtest_run.parse(options)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


# ---- Targets --------------------------------------------------------------------------------

PARAMETERS = {"k": 5, "inference_type": GUMBEL, "temperature": 0.5}
USERS = ["ann", "O'Brien", "a/b?c=d&k=9", "\u00e9\u4e2d"]


@pytest.mark.parametrize("user", USERS)
def test_container_and_gateway_ask_what_the_service_reads(user: str) -> None:
    messages = pytest.importorskip("fastrank_serving.messages")
    call = Container().call(user, PARAMETERS)
    assert (call.method, call.path) == ("POST", "/invocations")
    asked = messages.parse(call.body)
    assert (asked.user_id, asked.k, asked.inference_type) == (user, 5, GUMBEL)

    call = Gateway("/prod").call(user, PARAMETERS)
    assert (call.method, call.body) == ("GET", None)
    parts = urlsplit(call.path)
    before, _, last = parts.path.rpartition("/")
    assert before == "/prod/1/recommended-items"
    asked = messages.parse_parameters({**dict(parse_qsl(parts.query)), "user_id": unquote(last)})
    assert (asked.user_id, asked.k, asked.temperature) == (user, 5, 0.5)


def test_sagemaker_is_signed_as_its_own_client_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("botocore")
    from botocore.awsrequest import AWSResponse
    from botocore.session import Session

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    target = SageMaker("my endpoint", "eu-west-1")
    assert target.host == "https://runtime.sagemaker.eu-west-1.amazonaws.com"
    sent: list[Any] = []

    def keep(request: Any, **_: Any) -> Any:
        sent.append(request)
        return AWSResponse(request.url, 200, {}, _Raw())

    client = Session().create_client("sagemaker-runtime", region_name="eu-west-1")
    client.meta.events.register("before-send.sagemaker-runtime.InvokeEndpoint", keep)
    for _ in range(5):  # both within one second of the clock, which is part of what is signed
        call = target.call("ann", PARAMETERS)
        assert call.body is not None
        client.invoke_endpoint(
            EndpointName="my endpoint", ContentType="application/json", Body=call.body
        )
        theirs = {name: _text(value) for name, value in sent[-1].headers.items()}
        if theirs["X-Amz-Date"] == call.headers["X-Amz-Date"]:
            break
    assert sent[-1].url == target.host + call.path
    assert call.headers["X-Amz-Security-Token"] == "token"
    # Which headers are signed is the client's choice; with the same ones it is the same signature.
    ours = call.headers["Authorization"]
    assert _scope(ours) == _scope(theirs["Authorization"])
    if _signed(ours) == _signed(theirs["Authorization"]):
        assert ours == theirs["Authorization"]


class _Raw:
    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield b""

    def read(self, *_: Any) -> bytes:
        return b""


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _scope(authorization: str) -> str:
    return authorization.split(", SignedHeaders")[0]


def _signed(authorization: str) -> str:
    found = re.search(r"SignedHeaders=([^,]*)", authorization)
    assert found is not None
    return found[1]


def test_sagemaker_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("botocore")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no AWS credentials"):
        SageMaker("name", "eu-west-1")


# ---- Runs -----------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    """Answers rankings as `answer` says: with a status and a body, when it likes."""

    daemon_threads = True

    def __init__(self, answer: Callable[[int, str], tuple[int, bytes]]) -> None:
        self.answer = answer
        self.asked = 0
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        given = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(given)
        with self.server.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.seen.append((self.path, headers, given))
            self.server.asked += 1
            number = self.server.asked
        status, body = self.server.answer(number, asked.get("inference_type", ""))
        # In one piece: two would wait for each other's acknowledgement.
        self.wfile.write(
            b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
        )

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(answer: Callable[[int, str], tuple[int, bytes]]) -> Iterator[_Server]:
    server = _Server(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ranking(inference_type: str) -> tuple[int, bytes]:
    return 200, json.dumps(
        {"item_ids": [1], "policy": {"name": inference_type}}, separators=(",", ":")
    ).encode()


def locust(url: str, folder: Path, *options: str) -> tuple[int, Run, str]:
    """The exit code, what was measured, what was printed."""
    results = folder / "results.json"
    found = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(LOADTEST / "locustfile.py"), "--headless"),
            *("--only-summary", "--host", url, "--results", str(results), *options),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = found.stdout + found.stderr
    assert results.exists(), said
    return found.returncode, Run.from_dict(json.loads(results.read_text())), said


def test_every_inference_type_is_a_task() -> None:
    found = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(LOADTEST / "locustfile.py")),
            *("--show-task-ratio-json", "--headless", "-u", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    tasks = json.loads(found.stdout)["total"]["Visitor"]["tasks"]["Rounds"]["tasks"]
    assert set(tasks) == {*INFERENCE_TYPES, "ping"}


@pytest.mark.slow
def test_a_closed_loop_asks_for_each_type_alike(tmp_path: Path) -> None:
    with answering(lambda _, kind: ranking(kind)) as server:
        code, run, said = locust(
            server.url, tmp_path, "-u", "2", "-r", "2", "-t", "2s", "--warm-up", "0.2"
        )
    assert code == 0, said
    assert run.passed
    counts = {name: series.sent for name, series in run.stages["2"].series.items()}
    assert set(counts) == set(INFERENCE_TYPES)
    assert max(counts.values()) - min(counts.values()) <= 4  # a user's first and last rounds
    assert run.sent == server.asked
    assert "p50 / that of deterministic" in said


@pytest.mark.slow
def test_what_else_is_asked_takes_turns_on_two_servers(tmp_path: Path) -> None:
    """The second server answers by a pass where a table is expected, which is an error."""
    body = b'{"item_ids":[1],"made_by":"%s"}'
    asked = {"k": 3, "rules": {"cap": {"seller": 2}}}
    with (
        answering(lambda *_: (200, body % b"table")) as first,
        answering(lambda *_: (200, body % b"pass")) as second,
    ):
        asks = {
            "table": Ask(asked, ('"made_by":"table"',)),
            "pass": Ask({"k": 3}, (), second.url),
            "other": Ask({"k": 3}, ('"made_by":"table"',), second.url),
        }
        path = tmp_path / "asks.json"
        path.write_text(json.dumps({name: ask.to_dict() for name, ask in asks.items()}))
        options = ["--asks", str(path), "--base", "pass", "--gate-ratio", "table=1e9"]
        code, run, said = locust(first.url, tmp_path, *options, "-t", "1s", "--warm-up", "0")
    assert code == 1, said
    series = run.stages["1"].series
    assert set(series) == set(asks)
    assert max(each.sent for each in series.values()) - min(e.sent for e in series.values()) <= 1
    assert set(series["other"].errors) == {"200, but not that ranking"}
    assert not series["table"].failed + series["pass"].failed
    assert json.loads(first.seen[0][2]) == {"user_id": "0", **asked}
    assert "p50 of table / pass at 1 user" in said


def test_errors_are_counted_and_fail_the_run(tmp_path: Path) -> None:
    def answer(number: int, kind: str) -> tuple[int, bytes]:
        if kind == "uniform":
            return 429, b'{"error": {"code": "too_many_requests"}}'
        if kind == BASE:
            return 200, b'{"errorMessage": "not a ranking"}'
        return ranking(kind)

    with answering(answer) as server:
        code, run, said = locust(server.url, tmp_path, "-t", "1s", "--warm-up", "0")
    assert code == 1, said
    series = run.stages["1"].series
    assert set(series["uniform"].errors) == {"429 too_many_requests"}
    assert set(series[BASE].errors) == {"200, but not that ranking"}
    assert not series["uniform"].latency.count
    assert series[GUMBEL].latency.count
    assert not series[GUMBEL].failed


@pytest.mark.slow
def test_only_an_open_loop_sees_how_long_a_server_hung(tmp_path: Path) -> None:
    """It hangs once for a second. One request of a closed loop meets that, and p90 does not.

    Of an open loop's, all that were due meanwhile do, though one connection alone would have been
    enough: those due in 1 of 2.5 seconds, of which at most a tenth waited less than a tenth of it.
    """
    state = {"hang": 0.0}

    def answer(number: int, kind: str) -> tuple[int, bytes]:
        if number == 20:
            state["hang"] = time.monotonic() + 1.0
        time.sleep(max(state["hang"] - time.monotonic(), 0.0))
        return ranking(kind)

    found = {}
    for loop in ("closed", "open"):
        options = ["--rate", "60", "--gate-late-ms", "9999"] if loop == "open" else []
        state["hang"] = 0.0
        with answering(answer) as server:
            code, run, said = locust(
                server.url, tmp_path, "--loop", loop, *options, "-t", "3s", "--warm-up", "0"
            )
        assert code == 0, said
        stage = run.stages["1"]
        found[loop] = pooled(stage)
    assert found["closed"].latency.most > 0.9
    assert found["closed"].latency.percentile(90) < 0.1
    assert found["open"].latency.percentile(90) > 0.4
    assert found["open"].latency.percentile(20) < 0.3
    # It is asked all the while, from the first that was due to the last that was answered: locust
    # needs a while to start, and on a busy machine to stop as well.
    last = stage.seconds - found["open"].latency.most  # the last was due no earlier
    assert 60 * last - 1 <= found["open"].sent <= 60 * stage.seconds + 2
    assert last > 0.5
    assert not found["open"].failed


@pytest.mark.slow
def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """Asked by a load generator of its own, whose counts its master adds up."""
    results = tmp_path / "results.json"
    for seconds in (2, 20):
        found = subprocess.run(
            [
                *(sys.executable, "-m", "locust", "-f", str(LOADTEST / "locustfile.py")),
                *("--headless", "--processes", "1", "--host", "http://127.0.0.1:9"),
                *("--results", str(results), "--loop", "open", "--rate", "50", "-u", "1"),
                *("-t", f"{seconds}s", "--warm-up", "0"),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert found.returncode == 1, found.stdout + found.stderr
        run = Run.from_dict(json.loads(results.read_text()))
        stage = run.stages.get("1", Stage())
        if stage.seconds > 1.0:  # or the generator had hardly begun when its time was up
            break
    series = pooled(stage)
    assert set(series.errors) == {"ConnectionRefusedError"}
    # Refused at once, so that the last was due about when it failed.
    assert 0.5 * 50 * stage.seconds <= series.failed <= 50 * stage.seconds + 2
    assert run.generators == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetched(url: str, data: dict[str, object] | None = None) -> str:
    """A page of locust's, which takes a moment to be there."""
    body = None if data is None else urlencode(data).encode()
    end = time.monotonic() + 30.0
    while True:
        try:
            with urllib.request.urlopen(url, body, timeout=10.0) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError) as error:
            if time.monotonic() > end or isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(0.1)


@pytest.mark.slow
def test_from_locusts_page(tmp_path: Path) -> None:
    """Its forms hand on text, and nothing at all for what was left empty."""
    own, results = f"http://127.0.0.1:{free_port()}", tmp_path / "results.json"
    with answering(lambda _, kind: ranking(kind)) as server:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "locust", "-f", str(LOADTEST / "locustfile.py")),
                *("--web-host", "127.0.0.1", "--web-port", own.rpartition(":")[2]),
                *("--results", str(results)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert "Nothing was measured yet" in fetched(f"{own}/fastrank")
            form = {"user_count": 2, "spawn_rate": 2, "host": server.url, "temperature": ""}
            form |= {"loop": "open", "rate": 30, "warm_up": 0, "gate_p99_ms": "20000"}
            form |= {"gate_late_ms": "20000"}
            assert json.loads(fetched(f"{own}/swarm", form))["success"]
            end = time.monotonic() + 20.0
            while server.asked < 60 and time.monotonic() < end:
                time.sleep(0.1)
            live = fetched(f"{own}/fastrank")
            try:
                stopped = fetched(f"{own}/stop", {})
            except urllib.error.HTTPError:  # locust 2.30
                stopped = fetched(f"{own}/stop")
            assert json.loads(stopped)["success"]
        finally:
            process.terminate()
            said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "60 requests/s asked for" in live
    assert "limit 20000 ms" in live
    run = Run.from_dict(json.loads(results.read_text()))
    assert (run.loop, run.rate, run.temperature) == ("open", 30.0, None)
    assert run.sent == server.asked


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shape", "ramp", "--stages", "1,x"], "--stages: expected different numbers"),
        (["--gate-ratio", "best=1"], "--gate-ratio: best: expected one of deterministic"),
        (["--base", "best"], "--base: best: expected one of deterministic"),
        (["--asks", __file__], "--asks"),
        (["--target", "sagemaker"], "--endpoint and --region are wanted"),
        (["--user-ids", "@nowhere"], "nowhere"),
    ],
)
def test_options_that_cannot_be(options: list[str], says: str) -> None:
    found = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(LOADTEST / "locustfile.py"), "--headless"),
            *("-t", "1s", *options),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert found.returncode == 1
    assert f"loadtest: {says}" in found.stderr or says in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


def test_a_sagemaker_endpoint_gets_what_it_can_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature is that of the request as it arrived."""
    pytest.importorskip("botocore")
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    with answering(lambda _, kind: ranking(kind)) as server:
        code, run, said = locust(
            *(server.url, tmp_path, "--target", "sagemaker", "--endpoint", "my-ranker"),
            *("--region", "eu-west-1", "-t", "1s", "--warm-up", "0"),
        )
    assert code == 0, said
    assert run.sent == server.asked == len(server.seen)
    auth = SigV4Auth(Credentials("AKIDEXAMPLE", "not-a-secret"), "sagemaker", "eu-west-1")
    for path, headers, body in server.seen[:20]:
        assert path == "/endpoints/my-ranker/invocations"
        names = _signed(headers["authorization"]).split(";")
        assert {"host", "x-amz-date"} <= set(names)
        request = AWSRequest("POST", f"http://{headers['host']}{path}", data=body)
        for name in names:
            request.headers[name] = headers[name]
        request.context["timestamp"] = headers["x-amz-date"]
        canonical = auth.string_to_sign(request, auth.canonical_request(request))
        assert headers["authorization"].endswith(auth.signature(canonical, request))


def test_shapes() -> None:
    script = """
import json, sys
from shapes import Ramp, Soak
ramp, soak = Ramp([1, 8], 5.0), Soak(4, 10.0, 20.0)
def at(shape, seconds):
    shape.get_run_time = lambda: seconds
    return shape.tick()
print(json.dumps([
    [at(ramp, t) for t in (0.0, 4.9, 5.0, 10.0)],
    [ramp.stage_at(t) for t in (0.0, 6.0, 10.0, -1.0)],
    [at(soak, t) for t in (0.0, 6.0, 25.0, 30.0)],
    [soak.stage_at(t) for t in (9.0, 12.0, 25.0, 30.0)],
]))
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        cwd=LOADTEST,
    )
    assert json.loads(found.stdout) == [
        [[1, 8.0], [1, 8.0], [8, 8.0], None],
        [["1", 0.0], ["8", 1.0], None, None],
        [[1, 4.0], [3, 4.0], [4, 4.0], None],
        [None, ["0 s", 2.0], ["10 s", 5.0], None],
    ]


def whole(folder: Path, *options: object) -> Any:
    """`make loadtest`, but for the installing."""
    return subprocess.run(
        [
            *(sys.executable, str(LOADTEST / "run.py"), "--quick", "--output", str(folder)),
            *map(str, options),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=inherited(),
        check=False,
    )


@pytest.mark.slow
def test_all_of_it_against_a_server(tmp_path: Path) -> None:
    """Limits are wide: whether it is fast is no question for a test."""
    wide = ["--article-p99-ms", 20_000, "--p99-ms", 20_000, "--late-ms", 20_000, "--drift", 1000]
    wide += ["--rate", 150]
    small = ["--items", 300, "--dim", 8, "--users", 3, "--seconds", 2, "--soak-seconds", 3]
    names = ("article", "direct", "known", "shop", "ramp", "open", "soak")
    found = whole(tmp_path, "--experiments", ",".join(names), *wide, *small)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "All gates passed" in found.stdout
    runs = {
        name: Run.from_dict(json.loads((tmp_path / f"{name}.json").read_text())) for name in names
    }
    assert set(runs["article"].stages["1"].series) == set(INFERENCE_TYPES)
    assert [run.target for run in runs.values()] == ["gateway", *["container"] * 6]
    known = {"table, int8", "table, float32", "gumbel, int8", "ping"}
    assert set(runs["known"].stages["1"].series) == known
    shop = {"flat tail, IVF", "rules by name", "cap", "arms"}
    assert shop <= set(runs["shop"].stages["1"].series)
    assert set(runs["direct"].stages["1"].series) == {*INFERENCE_TYPES, "ping"}
    assert list(runs["ramp"].stages) == ["1", "8"]
    assert list(runs["open"].stages) == ["1", "2", "4"]
    assert len(runs["soak"].stages) >= 2
    assert "stochastic_plackett_luce" not in runs["ramp"].stages["8"].series
    for run in runs.values():
        assert not any(pooled(stage).failed for stage in run.stages.values())
    report = (tmp_path / "report.md").read_text()
    assert report.index("One user, all inference types") < report.index("At a constant rate")
    assert all(len({len(row) for row in table}) == 1 for table in tables(report))
    assert (tmp_path / "report.html").read_text().count("<polyline") >= 7
    assert (tmp_path / "article-locust.html").exists()
    log = (tmp_path / "server.log").read_text()
    assert "Finished server process" in log


@pytest.mark.slow
def test_a_gate_that_is_missed_through_the_gateways_path(tmp_path: Path) -> None:
    found = whole(
        *(tmp_path, "--experiments", "direct", "--target", "gateway", "--article-p99-ms", 0.001),
        *("--items", 300, "--seconds", 2),
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert "FAILED: p99 at 1 user" in found.stdout
    assert "Target: gateway" in found.stdout
    run = Run.from_dict(json.loads((tmp_path / "direct.json").read_text()))
    assert set(run.stages["1"].series) == set(INFERENCE_TYPES)
    assert [verdict.passed for verdict in run.verdicts] == [True, True, False]


def test_nothing_to_measure(tmp_path: Path) -> None:
    found = whole(tmp_path, "--model", tmp_path / "nothing")
    assert found.returncode == 2
    assert found.stderr.startswith("loadtest: ")
    assert "Traceback" not in found.stderr
