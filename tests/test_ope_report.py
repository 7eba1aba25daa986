"""The page of an evaluation: whole, safe against what strangers wrote, and true to the figures."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("pyarrow")
pytest.importorskip("scipy")

import fastrank as fr
from fastrank import ope, simulate
from fastrank.eventlog import LogReader, LogWriter, Stratum
from fastrank.extras import missing_extra
from fastrank.ope import report
from fastrank.ope.evaluation import PolicyResult
from fastrank.ope.report import Section, render
from fastrank.ope.results import Estimate
from fastrank.ope.verdict import explain

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = '<script>alert("1")</script>\'"&<b> {{ 7 * 7 }} {% endif %} -->'
HEADINGS = (
    *("In short", "Verdicts", "Differences to ", "Estimates", "Weights", "Overlap", "Strata"),
    *("What was set aside", "Audit"),
)


# ---- Reading pages --------------------------------------------------------------------------


@dataclass
class Node:
    """An element, with its children and its text in one list."""

    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def all(self, tag: str = "", of: str = "") -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                if (not tag or child.tag == tag) and (not of or of in child.classes):
                    yield child
                yield from child.all(tag, of)

    @property
    def raw(self) -> str:
        return "".join(child if isinstance(child, str) else child.raw for child in self.children)

    @property
    def text(self) -> str:
        return " ".join(self.raw.split())


class Tree(HTMLParser):
    """Refuses what browsers would have to repair."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag}: an attribute twice: {names}"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def close(self) -> None:
        super().close()
        assert self._open == [self.root], f"<{self._open[-1].tag}> is never closed"


def tree(text: str) -> Node:
    parser = Tree()
    parser.feed(text)
    parser.close()
    return parser.root


def checked(sections: list[Section]) -> Node:
    """The page, after what holds for every page."""
    text = render(sections)
    assert text == render(sections)
    root = tree(text)
    tags = {node.tag for node in root.all()}
    assert not tags & {"script", "link", "iframe", "img", "object", "embed", "form", "base"}
    assert not re.search(r"url\(|@import|https?:|\bsrc=|\bjavascript:", text.replace(HOSTILE, ""))
    names = Counter(node.attributes["id"] for node in root.all() if "id" in node.attributes)
    assert set(names.values()) <= {1}
    links = [node.attributes["href"] for node in root.all("a")]
    assert all(link.startswith("#") and link[1:] in names for link in links)
    for node in root.all():
        assert not any(name.startswith("on") for name in node.attributes)
        numbers = " ".join(
            node.attributes.get(name, "") for name in ("d", "cx", "cy", "x", "x1", "x2", "y")
        )
        assert not re.search("nan|inf|None", numbers)
    for node in root.all("svg"):
        assert node.attributes.get("aria-label") or "axis" in render_classes(root, node)
    words = root.text
    assert "None" not in words
    assert not re.search(r"\b(nan|inf)\b", words)
    for section in sections:
        for policy in section.evaluation.policies:
            lead = policy.estimates[policy.lead]
            verdict = policy.verdict
            if len(lead.reasons) > 2:  # the others stand below it
                verdict = verdict.partition(": ")[0]
            assert " ".join(verdict.split()) in words
            for reason in lead.reasons:
                limits = section.evaluation.thresholds
                assert explain(reason, lead, policy.uncovered, limits) in words
            assert " ".join(policy.label.split()) in words
    return root


def render_classes(root: Node, svg: Node) -> list[str]:
    """Classes of the list item that a drawing stands in."""
    return [name for item in root.all("li") if svg in item.all("svg") for name in item.classes]


@pytest.mark.parametrize("text", ["<p><b></p></b>", "<p>", "<p></p></i>", '<p class="" class="">'])
def test_what_is_not_whole_is_seen(text: str) -> None:
    with pytest.raises(AssertionError):
        tree(text)


# ---- Logs -----------------------------------------------------------------------------------

Made = tuple[simulate.World, fr.Model, Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    def log(places: int, rows: int, policy: Any) -> Made:
        click = simulate.PositionBased((1.0 / np.arange(1, places + 1) ** 0.5).tolist())
        world = simulate.World.synthetic(200, 100, click, dim=8, seed=1)
        model = world.model(noise=0.3, seed=2)
        directory = tmp_path_factory.mktemp("log")
        with LogWriter(directory) as writer:
            simulate.write_log(world, model, policy, places, rows, writer, seed=3)
        return world, model, directory

    return log


@pytest.fixture(scope="module")
def section(make: Callable[..., Made]) -> Section:
    """Of a log that decides something and leaves something open."""
    world, model, directory = make(4, 4000, fr.PlackettLuce(0.8))
    log = LogReader(directory)
    policies = [
        ope.ByModel("same", fr.PlackettLuce(0.8), model),
        ope.ByModel("colder", fr.PlackettLuce(0.6), model),
        ope.ByModel("other", fr.PlackettLuce(0.3), world.model(noise=0.1, seed=5)),
        ope.ByModel("best", fr.Deterministic(), model),
    ]
    evaluation = ope.evaluate(log, policies, logging=[model], reward_range=(0.0, 4.0))
    statuses = [policy.status for policy in evaluation.policies]
    assert statuses == ["ok", "ok", "low_overlap", "low_overlap"]
    return Section("logs/", evaluation, ope.audit(log, [model]))


def with_policy(section: Section, **changes: Any) -> Section:
    """The first policy alone, changed."""
    policy = replace(section.evaluation.policies[0], **changes)
    return replace(section, evaluation=replace(section.evaluation, policies=(policy,)))


# ---- What it shows --------------------------------------------------------------------------


def test_order_of_the_page(section: Section) -> None:
    root = checked([section, replace(section, title="another", audit=None)])
    (first, second, words) = root.all("section")
    assert [next(each.all("h2")).text for each in (first, second)] == ["logs/", "another"]
    found = [node.text for node in first.all("h3")]
    assert len(found) == len(HEADINGS)
    assert all(a.startswith(b) for a, b in zip(found, HEADINGS, strict=True))
    assert len(list(second.all("h3"))) == len(HEADINGS) - 1
    assert "not done" in second.text
    for word in ("Propensity", "Reward ESS", "Uncovered mass", "Cascade assumption"):
        assert word in words.text
    for name, estimator in ope.ESTIMATORS.items():
        assert any(
            [cell.text for cell in row.children if isinstance(cell, Node)]
            == [name, estimator.assumes]
            for row in words.all("tr")
        )


def test_what_it_is_about(section: Section) -> None:
    facts = next(checked([section]).all("dl", of="facts")).text
    assert "4,000 of 4,000 read (100 %)" in facts
    assert section.evaluation.span is not None
    assert all(end[:10] in facts for end in section.evaluation.span)
    assert "plackett_luce, temperature 0.8" in facts
    assert "4 policies on rankings of 4 places" in facts
    assert "passed" in facts
    assert "snrips" in facts
    assert "rows of one user" in facts


def test_what_can_be_decided(section: Section) -> None:
    short = next(checked([section]).all("ul", of="short"))
    lines = {node.classes[0]: node.text for node in short.all("li")}
    assert lines["doubt"] == "Cannot be decided from this log other best"
    decided = [node.text for node in short.all("li") if "good" in node.classes]
    low, high = section.evaluation.policies[1].differences["snrips"].interval or (0.0, 0.0)
    assert (low > 0.0 or high < 0.0) == any(line.endswith("policy colder") for line in decided)
    assert any(line.endswith("can be seen same") for line in decided)


def rows_of(root: Node, label: str) -> list[Node]:
    """The rows of a policy's estimates."""
    (region,) = (
        node
        for node in root.all("div", of="scroll")
        if node.attributes.get("aria-label") == f"Estimates for {label}"
    )
    return [row for body in region.all("tbody") for row in body.all("tr")]


def given(policy: PolicyResult) -> dict[str, Estimate]:
    """Without what is said of the log once."""
    return {
        name: each
        for name, each in policy.estimates.items()
        if name != "avg" or each.status == "ok"
    }


def test_numbers_are_those_of_the_evaluation(section: Section) -> None:
    root = checked([section])
    for policy in section.evaluation.policies:
        rows = [row for row in rows_of(root, policy.label) if list(row.all("th"))]
        assert len(rows) == len(given(policy))
        for row, (name, estimate) in zip(rows, given(policy).items(), strict=True):
            assert next(row.all("th")).text.startswith(name)
            cells = [cell.text for cell in row.all("td")]
            spoken = cells[0].removeprefix("no result: ")
            assert agrees(spoken, estimate.value)
            assert agrees(cells[1], estimate.standard_error)
            for cell, ends in zip(cells[2:4], (estimate.interval, estimate.bootstrap), strict=True):
                shown = cell.split("Bernstein")[0].split(" to ")
                assert all(agrees(s, e) for s, e in zip(shown, ends or (None,), strict=True))
            assert ("Bernstein" in cells[2]) == (name == "clipped-ips")
            assert agrees(cells[5], estimate.design_effect)
            assert estimate.diagnostics is not None
            assert agrees(cells[6], estimate.diagnostics.ess)
            assert agrees(cells[7], estimate.diagnostics.reward_ess)


def agrees(shown: str, value: float | None) -> bool:
    """Whether a number is another one, rounded to the digits that are shown, of which two count."""
    if value is None or shown == "–":
        return value is None and shown == "–"
    number = shown.replace(",", "")
    mantissa = number.partition("e")[0]
    digits = len(mantissa.partition(".")[2])
    exponent = int(number.partition("e")[2] or 0)
    return abs(float(number) - value) <= 0.51 * 10.0 ** (exponent - digits)


def test_agreement_can_fail() -> None:
    assert agrees("0.67", 0.6749)
    assert agrees("1,235", 1234.6)
    assert not agrees("0.67", 0.676)
    assert not agrees("–", 0.1)
    assert not agrees("1,235", 1234.4)


def test_what_is_not_ok_never_looks_like_a_result(section: Section) -> None:
    root = checked([section])
    doubted = 0
    for policy in section.evaluation.policies:
        rows = [row for row in rows_of(root, policy.label) if list(row.all("th"))]
        for row, estimate in zip(rows, given(policy).values(), strict=True):
            assert ("no-result" in row.classes) == (estimate.status != "ok")
            assert ("no result" in row.text) == (estimate.status != "ok")
            doubted += estimate.status != "ok"
    assert doubted > 8
    items = list(next(root.all("ol", of="forest")).all("li"))[:-1]
    for item, policy in zip(items, section.evaluation.policies, strict=True):
        ok = policy.differences["snrips"].status == "ok"
        assert item.classes == ["result" if ok else "no-result"]
        assert ok == bool(list(item.all("b")))
        assert (ok and policy.label != "same") == ("interval" in item.text)
    style = next(root.all("style")).text
    assert "stroke-dasharray" in style.split(".no-result .stroke {")[1].split("}")[0]
    assert "gradient" in style.split(".no-result {")[1].split("}")[0]


def test_reasons_stand_with_their_figures(section: Section) -> None:
    policy = section.evaluation.policies[2]
    found = policy.estimates["snrips"].diagnostics
    assert found is not None
    text = " ".join(row.text for row in rows_of(checked([section]), "other"))
    share = f"{100 * found.max_weight_share:.3g} % (at most 1 %)"
    assert f"one row carries too much of the weight: {share}" in text


def test_forest(section: Section) -> None:
    forest = report._forest(section.evaluation)
    same, colder, other, best = forest["rows"]
    ticks = {text: x for x, text in forest["ticks"]}
    assert ticks["0"] == forest["zero"]
    assert 3 <= len(ticks) <= 8
    (x0, v0), (x1, v1) = ((x, float(text)) for text, x in list(ticks.items())[:2])
    difference = section.evaluation.policies[1].differences["snrips"]
    assert difference.interval is not None
    assert difference.value is not None
    scale = (x1 - x0) / (v1 - v0)
    for name, value in zip(
        ("low", "high", "value"), (*difference.interval, difference.value), strict=True
    ):
        # Both ends are rounded to a hundredth of a percent of the width.
        assert colder["line"][name] == pytest.approx(x0 + (value - v0) * scale, abs=0.1)
        assert 0.0 < colder["line"][name] < 100.0
    assert same["equal"]
    assert not colder["equal"]
    # What is no result does not set the scale, and is cut off where it leaves the drawing.
    for row in (other, best):
        line = row["line"]
        assert 0.0 <= line["low"] <= line["high"] <= 100.0
    assert any(row["line"]["beyond_low"] or row["line"]["beyond_high"] for row in (other, best))


def test_relative_difference(section: Section) -> None:
    policy = section.evaluation.policies[1]
    logged = policy.estimates["avg"].value
    value = policy.differences["snrips"].value
    assert logged is not None
    assert value is not None
    row = report._forest(section.evaluation)["rows"][1]
    assert agrees(row["relative"].removesuffix(" %"), 100 * value / logged)


def test_histogram_holds_all_rows_and_all_weight(section: Section) -> None:
    for policy in section.evaluation.policies:
        drawn = report._histogram(policy)
        assert drawn is not None
        for side in ("up", "down"):
            # Heights are rounded to a hundredth.
            total = sum(bar[side] for bar in drawn["bars"])
            peak = float(drawn["peak"].removesuffix(" %")) / 100
            assert total * peak / drawn["height"] == pytest.approx(1.0, rel=0.01)
        assert len(drawn["bars"]) <= 42
        assert all(drawn["left"] <= bar["x"] <= drawn["right"] for bar in drawn["bars"])
        assert drawn["zeros"] == (policy.label == "best")
    words = report._histogram(section.evaluation.policies[0])
    assert words is not None
    assert words["words"] == "Half of the weight lies on 50 % of the rows."


def test_wide_and_narrow_histograms(section: Section) -> None:
    bins = [(0.0, 5, 0.0), *((2.0 ** (j / 4), 1, 2.0 ** (j / 4)) for j in range(-160, 240, 7))]
    for histogram in (bins, bins[:1], bins[1:2], bins[-1:], []):
        checked([with_policy(section, histogram=histogram)])
    drawn = report._histogram(replace(section.evaluation.policies[0], histogram=bins))
    assert drawn is not None
    assert len(drawn["bars"]) <= 42
    assert len(drawn["ticks"]) <= 7


def test_ess_by_place(section: Section) -> None:
    policy = section.evaluation.policies[1]
    drawn = report._by_place(policy)
    assert drawn is not None
    found = policy.estimates["rips"].diagnostics
    assert found is not None
    assert len(drawn["points"]) == 4
    assert f"ESS {found.by_place[3]['ess']:,.0f}" in drawn["points"][3][2]
    heights = [y for _, y, _ in drawn["points"]]
    assert heights == sorted(heights)  # later places have less


def test_ess_by_place_is_of_prefixes_alone(section: Section) -> None:
    """The chart says how many places are weighted; other estimators weigh each place by itself."""
    policy = section.evaluation.policies[1]
    rips = policy.estimates["rips"]
    for names, drawn in ((["iips", "rips"], "rips"), (["iips"], None)):
        estimates = {name: replace(rips, estimator=name) for name in names}
        found = report._by_place(replace(policy, estimates=estimates))
        assert (found and found["estimator"]) == drawn


# ---- Strangers ------------------------------------------------------------------------------


def written_by(stranger: str, section: Section) -> Section:
    """Every text that comes from outside, replaced."""
    label = f"{stranger} p"
    stratum = section.evaluation.strata[0]
    policy = section.evaluation.policies[2]
    policy = replace(policy, label=label, description=stranger, verdict=f"{stranger} v")
    other = replace(section.evaluation.policies[1])
    law = Stratum(stranger, ((stranger, 1.0),), stranger, stranger, True)
    estimates = {label: stratum.estimates["other"], "colder": stratum.estimates["colder"]}
    log = {
        **section.evaluation.log,
        "set_aside": {stranger: 3},
        "places": {stranger: [{"file": stranger, "row": 7, "detail": stranger}]},
        "files_read": [stranger],
        "unreadable_files": {stranger: stranger},
        "files_cut": {stranger: stranger},
        "rows_lost": {stranger: 5},
        "joins": [{stranger: stranger, "source": {}}],
    }
    check = ope.Check(stranger, "failed", 3, 2, stranger, (stranger, stranger))
    assert section.audit is not None
    return Section(
        stranger,
        replace(
            section.evaluation,
            policies=(policy, other),
            strata=(
                replace(
                    stratum,
                    stratum=law,
                    uncovered={label: 0.5, "colder": 0.0},
                    estimates=estimates,
                    dropped=(label,),
                ),
            ),
            reference=stranger,
            set_aside={stranger: 4},
            log=log,
        ),
        replace(section.audit, checks=(check,)),
    )


def shape(root: Node) -> list[tuple[str, tuple[str, ...]]]:
    return [(node.tag, tuple(sorted(node.attributes))) for node in root.all()]


def test_strangers_write_text_and_nothing_else(section: Section) -> None:
    hostile = checked([written_by(HOSTILE, section)])
    assert shape(hostile) == shape(checked([written_by("plain", section)]))
    assert HOSTILE in next(hostile.all("h2")).text
    assert f"row 7: {HOSTILE}" in hostile.text
    assert "49" not in next(hostile.all("h2")).text


def test_long_words(section: Section) -> None:
    checked([written_by("x" * 3000, section)])


def test_names_that_are_no_text(section: Section) -> None:
    page = render([written_by("\udcff", section)])
    assert "\\udcff" in page.encode("utf-8").decode("utf-8")


# ---- Other logs -----------------------------------------------------------------------------


@pytest.mark.parametrize("places", [1, 50])
def test_few_and_many_places(make: Callable[..., Made], places: int) -> None:
    _, model, directory = make(places, 600, fr.PlackettLuce(1.0))
    policies = [ope.ByModel("colder", fr.PlackettLuce(0.9), model)]
    evaluation = ope.evaluate(LogReader(directory), policies, logging=[model])
    root = checked([Section("log", evaluation, None)])
    drawings = [
        svg for svg in root.all("svg") if "viewBox" in svg.attributes or "viewbox" in svg.attributes
    ]
    assert len(drawings) == (1 if places == 1 else 2)
    assert f"rankings of {places} place" in root.text


def test_a_deterministic_log(make: Callable[..., Made]) -> None:
    _, model, directory = make(3, 600, fr.Deterministic())
    policies = [
        ope.ByModel("stochastic", fr.PlackettLuce(1.0), model),
        ope.ByModel("unchanged", fr.Deterministic(), model),
    ]
    evaluation = ope.evaluate(LogReader(directory), policies, logging=[model])
    assert evaluation.policies[0].status == "unsupported"
    root = checked([Section("log", evaluation, None)])
    refused, fine = [*next(root.all("ol", of="forest")).all("li")][:2]
    assert not [line for line in refused.all("line") if "stroke" in line.classes]
    assert not list(refused.all("circle"))
    assert "cannot be evaluated" in refused.text
    assert not re.search(r"[+-]\d", refused.text)
    assert "Cannot be evaluated from this log stochastic" in root.text
    assert list(fine.all("circle"))


def test_twelve_policies_stay_light(make: Callable[..., Made]) -> None:
    _, model, directory = make(5, 1500, fr.PlackettLuce(1.0))
    policies = [
        ope.ByModel(
            f"policy {i} with a name that goes on " * 3, fr.PlackettLuce(0.5 + i / 10), model
        )
        for i in range(12)
    ]
    evaluation = ope.evaluate(LogReader(directory), policies, logging=[model])
    section = Section("log", evaluation, None)
    root = checked([section])
    assert len(render([section]).encode()) < 300_000
    assert "all 12 together hold at 95 % (Bonferroni)" in root.text
    assert "99.58 %" in root.text


def test_nothing_to_say(section: Section) -> None:
    def empty(policy: PolicyResult) -> PolicyResult:
        estimates = {
            name: replace(
                each,
                value=None,
                standard_error=None,
                standard_error_iid=None,
                design_effect=None,
                interval=None,
                bootstrap=None,
                bernstein=None,
                rows=0,
                clusters=0,
                diagnostics=None,
                status="unsupported",
                reasons=("no_rows",),
            )
            for name, each in policy.estimates.items()
        }
        differences = {
            name: replace(
                each,
                value=None,
                standard_error=None,
                interval=None,
                bootstrap=None,
                status="unsupported",
                reasons=("no_rows",),
            )
            for name, each in policy.differences.items()
        }
        return replace(
            policy,
            status="unsupported",
            reasons=("no_rows",),
            estimates=estimates,
            differences=differences,
            rows=0,
            histogram=[],
        )

    evaluation = replace(
        section.evaluation,
        policies=tuple(empty(policy) for policy in section.evaluation.policies),
        strata=(),
        rows=0,
        rows_used=0,
        span=None,
        set_aside={"reward_not_observed": 4000, "caller_seed": 1},
        log={**section.evaluation.log, "rows_read": 0},
    )
    root = checked([Section("log", evaluation, None)])
    assert "no rows are left to estimate from" in root.text
    assert "the reward was not observed" in root.text
    assert not list(root.all("tr", of="result"))


def test_the_reference_alone(make: Callable[..., Made]) -> None:
    _, model, directory = make(3, 600, fr.PlackettLuce(1.0))
    only = [ope.ByModel("champion", fr.PlackettLuce(0.9), model)]
    evaluation = ope.evaluate(LogReader(directory), only, reference="champion", cluster=False)
    root = checked([Section("log", evaluation, None)])
    assert "Nothing is compared" in root.text
    assert not list(root.all("ol", of="forest"))
    assert "rows are taken as independent" in root.text


def test_no_log() -> None:
    root = checked([])
    assert next(root.all("h2")).text == "Words"


def test_many_strata(section: Section) -> None:
    strata = section.evaluation.strata[0]
    many = tuple(
        replace(strata, rows=i, stratum=replace(strata.stratum, law=f"policy{i}"))
        for i in range(1, 31)
    )
    evaluation = replace(section.evaluation, strata=many)
    root = checked([replace(section, evaluation=evaluation)])
    assert "policy30, temperature 0.8: 30 rows" in root.text
    assert "policy10," not in root.text
    assert "10 more strata, of 55 rows, are in the JSON output" in root.text


def test_an_audit_that_failed(section: Section) -> None:
    assert section.audit is not None
    check = ope.Check("propensities", "failed", 9, 4, "4 of 9 differ", ("request a: off by 1",))
    root = checked([replace(section, audit=replace(section.audit, checks=(check,)))])
    assert "failed this model did not write this log" in next(root.all("dl", of="facts")).text
    assert "4 of 9 differ" in root.text
    assert "request a: off by 1" in root.text


# ---- Figures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.67386, 0.0055, "0.6739"),
        (0.67386, 0.055, "0.674"),
        (12345.678, 31.0, "12,346"),
        (12345.678, 0.31, "12,345.68"),
        (0.67386, None, "0.6739"),
        (0.67386, 0.0, "0.6739"),
        (1.5e-12, 3e-13, "1.5e-12"),
        (2.5e12, 3e11, "2.5e+12"),
        (0.0, 0.01, "0.000"),
        (None, 0.01, "–"),
        (float("nan"), 0.01, "–"),
        (1.0, float("inf"), "1"),
    ],
)
def test_figures_have_the_digits_of_their_errors(
    value: float | None, error: float | None, shown: str
) -> None:
    assert report._figure(value, error) == shown


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), (-0.0013, 0.0094), (0.0, 3e-9), (-7e8, 1.0), (-1e-17, 1e-17), (-0.5, 1234.0)],
)
def test_ticks(low: float, high: float) -> None:
    ticks = report._ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert "0" in [text for _, text in ticks]
    slack = 1e-9 * (high - low)
    assert all(low - slack <= value <= high + slack for value, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)
    for value, text in ticks:
        assert float(text.replace(",", "")) == pytest.approx(value, rel=1e-9, abs=1e-30)


def test_every_reason_for_leaving_rows_out_has_words() -> None:
    source = Path(ope.__file__).parent
    files = ("reading.py", "propensities.py", "queries.py")
    text = "".join((source / name).read_text() for name in files)
    named = set(re.findall(r'leave\("(\w+)"', text))
    named |= set(re.findall(r'return "(\w+)" if', text))
    named |= set(re.findall(r'else "(no_query)"', text)) | set(
        re.findall(r'return "(\w+_of_\w+)"', text)
    )
    named |= set(re.findall(r'unknown\["(\w+)"\]', text))
    named |= set(re.findall(r'_NOT_AT_HAND = "(\w+)"', text))
    of_scores = {"score_not_at_hand", "features_of_another_version", "params_of_another_score"}
    named |= of_scores  # by a catalog
    assert len(named) >= 8
    assert named == set(report._SET_ASIDE)


def test_what_is_missing_is_named() -> None:
    hint = missing_extra(ModuleNotFoundError("jinja2", name="jinja2"))
    assert hint is not None
    assert 'jinja2 is not installed (fastrank-sampling\'s extra "ope"): pip install ' in hint


# ---- The command ----------------------------------------------------------------------------


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    testing = pytest.importorskip("click.testing")
    pytest.importorskip("rich")
    from fastrank.cli.app import app

    path = tmp_path / "report.html"
    result = testing.CliRunner().invoke(app, ["evaluate", "--format", "obd", "--report", str(path)])
    assert result.exit_code == 0, result.output
    root = tree(path.read_text(encoding="utf-8"))
    assert len([node for node in root.all("section") if "id" in node.attributes]) == 3
    assert str(path) in "".join(result.output.split())


def test_what_pages_are_made_with_is_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    testing = pytest.importorskip("click.testing")
    pytest.importorskip("rich")
    from fastrank.cli.app import app

    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "fastrank.page", raising=False)
    monkeypatch.delattr(fr, "page", raising=False)
    path = tmp_path / "report.html"
    # The log is not there either: it was not looked for.
    result = testing.CliRunner().invoke(app, ["evaluate", "no-log", "--report", str(path)])
    assert result.exit_code == 2
    assert 'fastrank-sampling\'s extra "ope"' in result.output


def test_many_reasons_fold_below_the_verdict() -> None:
    """A verdict says the first, and the others are there to be unfolded."""
    n = 400
    table = {"i": np.arange(n) % 4, "p": np.full(n, 0.25), "r": np.arange(n) % 3 % 2}
    table["new"] = np.where(table["i"] == 0, 0.9, 0.1 / 3)
    strict = ope.Thresholds(max_weight_share=0.0, heaviest_share=0.0, clusters=1e9)
    names: dict[str, Any] = {"item": "i", "propensity": "p", "reward": "r"}
    found = ope.evaluate_table(table, {"new": "new"}, thresholds=strict, **names)
    (policy,) = found.policies
    assert len(policy.reasons) > 2
    root = checked([Section("own", found, None)])
    (verdicts,) = root.all("ul", of="verdicts")
    (verdict,) = [each for each in verdicts.children if isinstance(each, Node)]
    lead = policy.estimates[policy.lead]
    first, *others = [
        explain(reason, lead, policy.uncovered, found.thresholds) for reason in policy.reasons
    ]
    assert f"{first}, and {len(others)} more reasons" in verdict.text
    (folded,) = verdict.all("details")
    assert "open" not in folded.attributes
    assert [each.text for each in folded.all("li")] == others


def test_without_rewards_the_page_says_what_to_do() -> None:
    table = {"i": [1, 2], "p": [0.5, 0.5], "r": np.array([np.nan, np.nan])}
    names: dict[str, Any] = {"item": "i", "propensity": "p", "reward": "r"}
    found = ope.evaluate_table(table, {"new": "p"}, **names)
    step = found.next_step
    assert step is not None
    assert "fastrank join LOGS REWARDS" in step
    assert step in checked([Section("own", found, None)]).text
    joined = replace(found, log={**found.log, "joins": [{"id": "j"}]})
    said = joined.next_step
    assert said is not None
    assert said.startswith("Rewards were joined")
    table["r"] = np.array([1.0, 0.0])
    assert ope.evaluate_table(table, {"new": "p"}, **names).next_step is None
