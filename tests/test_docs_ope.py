"""Pages of evaluation: what they show runs, and they know every status, reason and estimator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("scipy")
pytest.importorskip("click")
pytest.importorskip("rich")

from fastrank.experiments import EXPERIMENTS
from fastrank.ope import ESTIMATORS, REASONS
from fastrank.ope.diagnostics import Thresholds
from fastrank.ope.results import worst

DOCS = Path(__file__).parents[1] / "docs"
EVALUATE, ESTIMATORS_PAGE, STATUSES = (
    (DOCS / page).read_text(encoding="utf-8")
    for page in (
        "how-to/evaluate.md",
        "explanation/which-estimator.md",
        "reference/statuses.md",
    )
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


def rows(page: str, first_header: str) -> list[list[str]]:
    """Cells of the table whose first column has this header."""
    table = page[page.index(f"| {first_header} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_sessions_run(capsys: pytest.CaptureFixture[str]) -> None:
    _, code = blocks(EVALUATE, "python")
    exec(compile(code, "evaluate.md", "exec"), {})
    page, session = capsys.readouterr().out.splitlines()
    found = [re.match(r"stricter .*?([\d.]+) a ranking", said) for said in (page, session)]
    values = [float(each[1]) for each in found if each is not None]
    assert values == pytest.approx([0.6, 1.2], rel=0.1)  # a fifth of the places earn 1


def test_every_estimator_reason_and_experiment_is_explained() -> None:
    named = [row[0].strip("`") for row in rows(ESTIMATORS_PAGE, "name")]
    assert len(named) == len(set(named))
    assert set(named) == set(ESTIMATORS), "the table of names has a row for each estimator"
    explained = {row[0].strip("`"): row[1] for row in rows(STATUSES, "reason")}
    assert explained == {reason: worst([reason]) for reason in REASONS}
    assert {row[0].strip("`") for row in rows(STATUSES, "status")} == {"ok", *explained.values()}
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert set(re.findall(r"fastrank experiment ([a-z-]+)", text)) <= set(EXPERIMENTS)


def test_limits_are_the_defaults() -> None:
    limits = Thresholds()
    said = {row[0].strip("`"): row[2] for row in rows(STATUSES, "reason")}
    assert f"Fewer than {limits.reward_ess:g} " in said["reward_ess"]
    assert f"over {100 * limits.max_weight_share:g} %" in said["max_weight_share"]
    assert f"over {100 * limits.heaviest_share:g} %" in said["heaviest_share"]
    assert f"over {limits.mean_weight:g}".replace("0.", ".") in said["mean_weight"]
    assert f"Fewer than {limits.clusters:g} " in said["few_clusters"]
    assert f"over {limits.clipped:g}".replace("0.", ".") in said["clipped"]
    assert f"than {limits.difference_reward_ess:g} for a difference" in said["reward_ess"]
    assert f"fewer than {limits.difference_reward_ess:g}." in said["long_tail"]
    assert f"over {limits.mean_weight_z:g} standard errors" in said["mean_weight"]
    assert f"over {limits.reward_model:g} standard errors" in said["reward_model"]
    assert f"Over {limits.behaviour:g} paired standard errors" in said["behaviour"]
    assert f"Over {100 * limits.set_aside:g} %" in said["set_aside"]
    assert f"{100 * limits.malformed:g} %" in STATUSES
    said_of_mass = f"{100 * limits.uncovered:g} % the status is `unsupported`"
    assert said_of_mass in STATUSES.replace("\n", " ")
