"""Results in a notebook and a script: reprs, HTML, JSON's types, frames, pictures."""

from __future__ import annotations

import builtins
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import fastrank as fr
from fastrank.frames import as_html, plain
from fastrank.plan import (
    Plan,
    RelativeTemperature,
    choose,
    explore,
    own_temperatures,
    solve_overlap,
)

IDS = [
    "<script>alert(1)</script>",
    "a&b\"'",
    "x" * 900,
    "\x1b[2J\u202eb",
    "שלום\n",
]


@pytest.fixture(scope="module")
def catalog() -> fr.Catalog:
    return fr.Catalog(IDS, np.linspace(1.0, 0.0, 5)[:, None])


@pytest.fixture(scope="module")
def model() -> fr.Model:
    rng = np.random.default_rng(0)
    items = fr.Catalog(range(60), rng.standard_normal((60, 4)))
    return fr.Model(items, [f"u{i}" for i in range(20)], rng.standard_normal((20, 4)))


@pytest.fixture(scope="module")
def plan(model: fr.Model) -> Plan:
    return explore(model, k=3, users=8, temperatures=[0.1, 1.0], overlaps=[], epsilons=[0.2])


def evaluated(rows: int, n_policies: int = 1, *, label: str = "new") -> Any:
    """Of a table of four items that are shown as often, asked of policies that show them so, too,
    and of one that hardly shows three of them."""
    ope = pytest.importorskip("fastrank.ope")
    rng = np.random.default_rng(1)
    table = {"i": np.arange(rows) % 4, "p": np.full(rows, 0.25), "same": np.full(rows, 0.25)}
    table |= {
        "r": (rng.random(rows) < 0.3) * 1.0,
        "far": np.where(np.arange(rows) % 100, 1e-9, 1.0),
    }
    policies = {f"{label} {i}": "same" for i in range(n_policies)} | {"far off": "far"}
    return ope.evaluate_table(table, policies, item="i", propensity="p", reward="r")


class Page(HTMLParser):
    """Tags of a piece of HTML, and its text; every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.said = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        assert {name for name, _ in attrs} <= {"class"}
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        if "style" not in self.open:
            self.said += data


TAGS = {"div", "style", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"}


def checked(result: Any, most: int = 20_000) -> Page:
    text = result._repr_html_()
    assert len(text) <= most
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\ud800-\udfff]", text)
    page = Page(text)
    assert set(page.tags) <= TAGS
    return page


def one_line(result: object, most: int = 500) -> str:
    text = repr(result)
    assert "\n" not in text
    assert len(text) <= most
    assert text.startswith(f"{type(result).__name__}(")
    return text


# ---- Rankings -------------------------------------------------------------------------------


def test_a_ranking_is_its_places(catalog: fr.Catalog) -> None:
    ranking = catalog.rank([1.0], 5, policy=fr.PlackettLuce(0.5), seed=3)
    rows = list(ranking)
    assert [item for item, _, _ in rows] == ranking.item_ids.tolist()
    assert [score for _, score, _ in rows] == ranking.scores.tolist()
    assert [p for _, _, p in rows] == np.exp(ranking.log_propensities).tolist()
    assert math.prod(p for _, _, p in rows) == pytest.approx(math.exp(ranking.log_propensity))
    assert {(type(a), type(b), type(c)) for a, b, c in rows} == {(str, float, float)}
    assert all(
        type(item) is int
        for item, _, _ in fr.Catalog([1, 2], [[1.0], [2.0]]).rank([1.0], 2, policy=fr.Uniform())
    )
    assert list(catalog.rank([1.0], 5, policy=fr.Uniform(), allow=[])) == []
    again = catalog.rank([1.0], 5, policy=fr.PlackettLuce(0.5), seed=3)
    assert ranking == again
    assert ranking != catalog.rank([1.0], 5, policy=fr.PlackettLuce(0.5), seed=4)


def test_reprs_are_one_line(catalog: fr.Catalog, model: fr.Model, plan: Plan) -> None:
    long = model.recommend("u1", 50, policy=fr.PlackettLuce(0.5), seed=1)
    assert one_line(long).endswith(
        f"50 of 60 items, PlackettLuce(temperature=0.5, sampler='gumbel'), seed=1,"
        f" log_propensity={long.log_propensity:.6g})"
    )
    one_line(catalog.rank([1.0], 5, policy=fr.Uniform(), seed=1))
    mixed = [fr.Uniform(), fr.Deterministic()]
    batch = catalog.rank_batch([[1.0]] * 2, 2, policy=mixed)
    assert one_line(batch) == "RankingBatch(2 rankings of up to 2 places, Uniform() and others)"
    for each in (model, catalog, plan, *plan.points, *plan.points[0].shares):
        one_line(each)
    one_line(solve_overlap(plan, 0.7))
    one_line(choose(model, 0.7, k=3, users=8))
    one_line(own_temperatures(model, 3, 0.7))


def test_a_ranking_of_hostile_ids_is_escaped(catalog: fr.Catalog) -> None:
    page = checked(catalog.rank([1.0], 5, policy=fr.Deterministic()))
    assert page.cells[0] == ["place", "item", "score", "propensity"]
    shown = [cell[1] for cell in page.cells[1:]]
    assert shown[:2] == IDS[:2]
    assert shown[2] == "x" * 59 + "…"
    assert shown[3:] == [r"\x1b[2J\u202eb", r"שלום\n"]
    assert "script" not in page.tags


def test_long_results_show_their_first_rows(model: fr.Model) -> None:
    ranking = model.recommend("u1", 50, policy=fr.Uniform())
    page = checked(ranking)
    assert len(page.cells) == 21
    assert page.said.endswith("30 more places")
    many = model.catalog.rank_batch(np.ones((500, 4)), 40, policy=fr.Uniform())
    page = checked(many)
    assert len(page.cells) == 11
    assert page.said.endswith("490 more rankings")
    assert page.cells[1][:3] == [
        "0", ", ".join(map(str, many.item_ids[0, :5].tolist())) + ", …", "40"
    ]  # fmt: skip
    assert "more" not in checked(model.recommend("u1", 20, policy=fr.Uniform())).said


@pytest.mark.parametrize(
    "policy", [fr.PlackettLuce(0.5), fr.Deterministic(), fr.FlatTail(0.5, m=2)], ids=str
)
def test_a_ranking_in_json_is_what_was_drawn(policy: fr.Policy) -> None:
    features = {"hot": [True, False, True]}
    catalog = fr.Catalog([1, 2, 3], [[1.0], [0.5], [0.0]], features=features)
    asked: dict[str, Any] = {"exclude": np.array([3]), "bias": [0.0, 1.0, 0.0]}
    if not isinstance(policy, fr.FlatTail):
        asked |= {"rules": fr.Rules(cap={"hot": 2}), "score": "2 * dot"}
    ranking = catalog.rank([1.0], 2, policy=policy, seed=2**63 + 1, **asked)
    found = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert found == ranking.to_dict()
    assert found["item_ids"] == ranking.item_ids.tolist()
    for name in ("scores", "log_propensities"):
        assert np.array(found[name]).tolist() == getattr(ranking, name).tolist()
    for name in ("log_propensity", "log_norm", "seed", "k", "n_eligible", "catalog_version"):
        assert found[name] == getattr(ranking, name)
    assert fr.policy(found["policy"]["name"], **found["policy"]["params"]) == policy
    assert found["exclude"] == [3]
    assert "bias" not in found
    assert ("rules" in found, "score" in found) == (("rules" in asked),) * 2
    if "rules" in asked:
        assert fr.Rules.from_dict(found["rules"]["content"]) == asked["rules"]
    assert ("is_candidate" in found) == isinstance(policy, fr.FlatTail)
    batch = catalog.rank_batch([[1.0]] * 2, 2, policy=policy, seeds=[1, 2])
    assert batch.to_dict() == {"rankings": [each.to_dict() for each in batch]}


def test_json_has_neither_nan_nor_infinity() -> None:
    value = {"a": [np.float64("nan"), (1, -math.inf)], 2: np.array([[1.5], [np.inf]], np.float32)}
    assert plain(value) == {"a": [None, [1, None]], "2": [[1.5], [None]]}
    assert type(plain(np.int64(3))) is int
    assert type(plain(np.float32(0.5))) is float


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_frames_of_rankings(library: str, catalog: fr.Catalog) -> None:
    pytest.importorskip(library)
    ranking = catalog.rank([1.0], 5, policy=fr.PlackettLuce(0.5), seed=3)
    found = as_columns(ranking, library)
    assert [*found] == ["place", "item_id", "score", "propensity", "conditional_log_propensity"]
    assert found["place"] == [1, 2, 3, 4, 5]
    assert list(zip(*[found[name] for name in [*found][1:4]], strict=True)) == list(ranking)
    assert found["conditional_log_propensity"] == ranking.log_propensities.tolist()
    batch = catalog.rank_batch([[1.0]] * 3, 5, policy=fr.Uniform(), allow=[IDS, IDS[:2], []])
    found = as_columns(batch, library)
    assert [*found] == ["row", "place", *[*as_columns(ranking, library)][1:]]
    assert found["row"] == [0] * 5 + [1] * 2
    assert found["place"] == [1, 2, 3, 4, 5, 1, 2]
    assert found["item_id"] == [item for each in batch for item, _, _ in each]
    assert found["propensity"] == [p for each in batch for _, _, p in each]
    numbers = fr.Catalog([7, 8], [[1.0], [0.0]]).rank([1.0], 2, policy=fr.Deterministic())
    assert as_columns(numbers, library)["item_id"] == [7, 8]


def as_columns(result: Any, library: str) -> dict[str, list[Any]]:
    if library == "pyarrow":
        found: dict[str, list[Any]] = result.to_arrow().to_pydict()
        return found
    frame = result.to_pandas()
    return {name: frame[name].tolist() for name in frame.columns}


def test_a_frame_does_not_change_with_its_ranking() -> None:
    pytest.importorskip("pyarrow")
    ranking = fr.Catalog([7, 8], [[1.0], [0.0]]).rank([1.0], 2, policy=fr.Deterministic())
    table = ranking.to_arrow()
    ranking.scores[:] = 9.0
    ranking.item_ids[:] = 9
    assert table.to_pydict()["item_id"] == [7, 8]
    assert table.to_pydict()["score"] == [1.0, 0.0]


# ---- What is not installed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "module", "extra"),
    [
        ("to_pandas", "pandas", "pandas"),
        ("to_arrow", "pyarrow", "data"),
        ("plot", "matplotlib", "plot"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    call: str, module: str, extra: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    ranking = fr.Catalog([7], [[1.0]]).rank([1.0], 1, policy=fr.Uniform())
    results = [plan] if call == "plot" else [plan, ranking]
    monkeypatch.setattr(builtins, "__import__", without)
    for result in results:
        with pytest.raises(ModuleNotFoundError, match=f"{module} is not installed") as caught:
            getattr(result, call)()
        assert f'extra "{extra}"' in str(caught.value)
        assert caught.value.name is not None
        assert caught.value.name.partition(".")[0] == module


# ---- Evaluations ------------------------------------------------------------------------------


def test_an_evaluation_is_one_line() -> None:
    found = evaluated(400, 3, label="a <new>")
    said = one_line(found)
    assert said.startswith("Evaluation('a <new> 0' 0.")
    assert said.endswith("...; 400 of 400 rows used)")
    assert len(said) < 200
    for policy in found.policies:
        one_line(policy)
        for each in (*policy.estimates.values(), *policy.differences.values()):
            one_line(each)
    for each in found.strata:
        one_line(each)
    assert "(0." in repr(evaluated(400)).partition("far off")[2]  # no result looks like one


def test_an_evaluation_in_a_notebook_says_what_is_no_result() -> None:
    found = evaluated(400, label="a <b>")
    page = checked(found)
    policies, estimators = zip(*[row[:2] for row in page.cells[1:]], strict=True)
    assert set(policies) == {"a <b> 0", "far off"}
    lead = found.policies[0].lead
    assert f"{lead} (leads)" in estimators
    for row in page.cells[1:]:
        assert row[2].startswith("(") == (row[-1] != "ok")
    for policy in found.policies:
        assert policy.verdict in page.said
    assert page.said.count("In brackets: no result") == 1
    checked(evaluated(400, 9), most=40_000)


def test_an_evaluation_without_rewards_says_so() -> None:
    ope = pytest.importorskip("fastrank.ope")
    table = {"i": [1, 2], "p": [0.5, 0.5], "r": np.array([np.nan, np.nan])}
    found = ope.evaluate_table(table, {"new": "p"}, item="i", propensity="p", reward="r")
    assert found.policies[0].verdict == (
        "This log cannot evaluate new: no ranking has its rewards yet."
    )
    assert found.next_step is not None
    assert found.next_step in checked(found).said
    assert "new' – unsupported" in one_line(found)


def test_an_evaluation_in_json_and_frames() -> None:
    pytest.importorskip("pandas")
    ope = pytest.importorskip("fastrank.ope")
    rows = 400
    table = {"i": np.arange(rows) % 4, "p": np.full(rows, 0.25), "r": np.arange(rows) % 3 * 1.0}
    limits = ope.Thresholds(mean_weight_z=math.inf)
    found = ope.evaluate_table(
        *(table, {"new": "p"}), item="i", propensity="p", reward="r", thresholds=limits
    )
    said = found.to_dict()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["thresholds"]["mean_weight_z"] is None
    frame, arrow = found.to_pandas(), found.to_arrow()
    assert [*frame.columns] == arrow.column_names
    (policy,) = found.policies
    assert frame["estimator"].tolist() == [*policy.estimates]
    for row, (name, estimate) in zip(
        frame.to_dict("records"), policy.estimates.items(), strict=True
    ):
        assert row["policy"] == "new"
        assert row["is_lead"] == (name == policy.lead)
        assert row["status"] == estimate.status
        assert row["reasons"] == ", ".join(estimate.reasons)
        assert row["value"] == pytest.approx(estimate.value)
        assert (row["low"], row["high"]) == pytest.approx(
            estimate.interval or (math.nan,) * 2, nan_ok=True
        )
        assert row["difference"] == pytest.approx(policy.differences[name].value)
        assert row["difference_status"] == policy.differences[name].status
    at = arrow["estimator"].to_pylist().index("avg")
    assert arrow["ess"][at].as_py() == policy.estimates["avg"].diagnostics.ess


# ---- Plans ------------------------------------------------------------------------------------


def test_a_plan_in_a_notebook_in_json_and_frames(plan: Plan) -> None:
    page = checked(plan)
    assert [row[0] for row in page.cells[1:]] == [p.kind for p in plan.points]
    assert len(page.cells[0]) == 5 + len(plan.targets)
    said = plan.to_dict()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["targets"] == [*plan.targets]
    pytest.importorskip("pandas")
    frame = plan.to_pandas()
    assert len(frame) == sum(len(point.shares) for point in plan.points)
    for point in plan.points:
        mine = frame[(frame["kind"] == point.kind) & (frame["parameter"] == point.parameter)]
        assert set(mine["overlap"]) == {point.overlap}
        for share in point.shares:
            one = mine[(mine["target"] == share.target) & (mine["prefix"] == share.prefix)]
            assert one["share"].tolist() == [share.share]
            assert one["share_trusted"].tolist() == [share.trusted]
    pytest.importorskip("pyarrow")
    assert plan.to_arrow().column_names == [*frame.columns]


def test_a_point_without_targets_keeps_its_row(model: fr.Model) -> None:
    pytest.importorskip("pyarrow")
    cooler = explore(
        model, k=2, users=4, temperatures=[], overlaps=[], epsilons=[0.2],
        targets={"cooler": RelativeTemperature(0.8)},
    )  # fmt: skip
    assert cooler.points[0].shares == ()
    (row,) = cooler.to_arrow().to_pylist()
    assert (row["kind"], row["parameter"], row["target"], row["share"]) == (
        "epsilon",
        0.2,
        None,
        None,
    )
    assert "–" in checked(cooler).cells[1]


# ---- Pictures ---------------------------------------------------------------------------------


@pytest.fixture
def pyplot() -> Iterator[Any]:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_the_picture_of_an_evaluation(pyplot: Any) -> None:
    found = evaluated(400, label=r"$\frac{_")  # which mathtext could not read
    ax = found.plot()
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_yticklabels()] == [r"$\frac{_ 0", "far off"]
    (good, doubted) = [line for line in ax.lines if line.get_marker() == "o"]
    assert good.get_xdata().tolist() == [found.policies[0].estimates[found.policies[0].lead].value]
    assert good.get_markerfacecolor() == good.get_color()
    assert doubted.get_markerfacecolor() != doubted.get_color()
    assert [text.get_text() for text in ax.texts] == [found.policies[1].status.replace("_", " ")]
    low, high = ax.get_xlim()
    assert low < found.logged.interval[0] < found.logged.interval[1] < high
    assert high - low < 1.0  # what is no result sets no scale
    _, own = pyplot.subplots()
    assert found.plot(own) is own


def test_the_picture_of_a_log_without_rewards(pyplot: Any) -> None:
    ope = pytest.importorskip("fastrank.ope")
    table = {"i": [1, 2], "p": [0.5, 0.5], "r": np.array([np.nan, np.nan])}
    found = ope.evaluate_table(table, {"new": "p"}, item="i", propensity="p", reward="r")
    ax = found.plot()
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.texts] == ["unsupported"]


def test_the_picture_of_a_plan(plan: Plan, pyplot: Any) -> None:
    cost, worth = plan.plot()
    cost.figure.canvas.draw()
    by_kind = {line.get_label(): line for line in cost.lines}
    drawn = by_kind["epsilon-greedy"]
    (point,) = plan.of_kind("epsilon")
    assert (drawn.get_xdata().tolist(), drawn.get_ydata().tolist()) == (
        [point.overlap], [point.relative_loss],
    )  # fmt: skip
    assert worth.get_yscale() == "log"
    said = [text.get_text().strip() for text in worth.get_legend().get_texts()]
    assert said == [*plan.targets]
    _, own = pyplot.subplots(1, 2)
    assert plan.plot(own) is own


def test_html_takes_no_more_rows_than_it_shows() -> None:
    taken: list[int] = []

    def rows() -> Iterator[list[str]]:
        for i in range(1_000_000):
            taken.append(i)
            yield [str(i)]

    text = as_html("t", ["a"], rows(), 1_000_000, notes=["n" * 5000])
    assert len(taken) <= 21
    assert len(text) < 5000
    assert Page(text).said.count("999,980 more rows") == 1
