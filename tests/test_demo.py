"""The demo: what it prints and measures, at a size that takes seconds."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
from click.testing import CliRunner
from patience import PATIENCE

import fastrank as fr
from fastrank import demo, reference
from fastrank.cli.app import app

# What is another one, without tables of users or an index.
NOT_SHOWN = {"stochastic_plackett_luce_auto", "stochastic_flat_tail"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """As a user calls it: nothing holds it to one thread, so it starts itself again."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    free = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "fastrank", "demo", "--quick", "-o", str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=free,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, folder


@pytest.mark.slow
def test_shows_every_inference_type_and_procedure(quick: tuple[str, Path]) -> None:
    output, _ = quick
    for name in set(fr.INFERENCE_TYPES) - NOT_SHOWN:
        assert name in output
    for word in ("Propensity", "NumPy", "textbook", "Gowalla", "temperature", "20,000"):
        assert word in output
    assert "…" not in output  # a table that is too wide


@pytest.mark.slow
def test_shows_a_list_under_a_rule_and_a_table_of_the_user(quick: tuple[str, Path]) -> None:
    output, _ = quick
    assert "each category" in output
    shop = demo.shop(draws=10)
    items = shop.ruled.item_ids.tolist()
    assert len({shop.categories[item] for item in items}) == len(items) == shop.k
    plain = shop.rankings["stochastic_gumbel_softmax_trick"].item_ids.tolist()
    assert len({shop.categories[item] for item in plain}) < shop.k  # the rule changes something
    assert shop.ruled.log_propensity != pytest.approx(shop.ruled_unaware, abs=0.1)
    assert shop.rankings["stochastic_plackett_luce_cached"].made_by == "table"


@pytest.mark.slow
def test_saves_the_text_and_one_picture(quick: tuple[str, Path]) -> None:
    output, folder = quick
    assert sorted(p.name for p in folder.iterdir()) == ["demo.png", "demo.txt", "shop"]
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "demo.txt").read_text(encoding="utf-8") in output


@pytest.mark.slow
def test_command_restarts_itself_with_one_thread(quick: tuple[str, Path]) -> None:
    output, _ = quick
    assert "one thread" in output
    assert "not limited to one thread" not in output


@pytest.mark.slow
def test_ends_with_commands_that_run(quick: tuple[str, Path]) -> None:
    output, folder = quick
    tail = output[output.index("Continue with the simulated shop") :].replace("\\\n", "")
    lines = [line.strip() for line in tail.splitlines()[1:] if line.strip()]
    commands = [shlex.split(line[line.index("fastrank ") :]) for line in lines]
    assert [command[1] for command in commands] == ["audit", "evaluate", "plan"]
    for _, name, *arguments in commands:
        if name == "evaluate":
            pytest.importorskip("jinja2")
        result = CliRunner().invoke(app, [name, *arguments])
        assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!")


@pytest.mark.slow
def test_shop_is_made_anew(tmp_path: Path) -> None:
    """Rows of a demo before would be duplicates, and of another model for all we know."""
    shop = tmp_path / "shop"
    for _ in range(2):
        told = demo.story(shop, rows=300)
        assert (told.audit.rows, told.audit.log["set_aside"]) == (300, {})
        assert not (shop / "left").exists()
        (shop / "left").write_text("")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> demo.Story:
    # Another seed than the demo's: what is told must not depend on that.
    return demo.story(tmp_path_factory.mktemp("story") / "shop", seed=7)


def test_deterministic_log_evaluates_nothing(story: demo.Story) -> None:
    assert [told.result.label for told in story.by_deterministic] == ["colder", "smaller model"]
    for told in story.by_deterministic:
        assert told.result.status == "unsupported"
        assert told.result.reasons[0] == "uncovered"
        assert told.result.uncovered > 0.99
        # What it would say is wrong by far more than its interval.
        assert told.estimate.interval is not None
        assert told.estimate.interval[0] > told.truth


def test_stochastic_log_finds_the_truth(story: demo.Story) -> None:
    assert story.audit.passed
    signs = []
    for told in story.by_stochastic:
        assert (told.result.status, told.result.reasons) == ("ok", ())
        estimate, difference = told.estimate, told.difference
        # 6.2 standard errors: a false alarm in 2e9 seeds.
        assert estimate.value is not None
        assert estimate.standard_error is not None
        assert abs(estimate.value - told.truth) < 6.2 * estimate.standard_error
        assert difference.value is not None
        assert difference.standard_error is not None
        assert abs(difference.value - told.true_difference) < 6.2 * difference.standard_error
        assert difference.standard_error < estimate.standard_error / 2
        signs.append(told.true_difference > 0)
    assert signs == [True, False]


def test_best_items_are_out_of_reach_at_ten_places_and_not_at_one(story: demo.Story) -> None:
    assert story.best_of_k.result.status == "low_overlap"
    one = story.best_of_one
    assert one.result.status == "ok"
    assert one.estimate.value is not None
    assert one.estimate.standard_error is not None
    assert abs(one.estimate.value - one.truth) < 6.2 * one.estimate.standard_error


def test_output_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["demo", "--quick", "-o", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_shop_reports_what_the_catalog_says() -> None:
    shop = demo.shop(draws=4000)
    assert set(shop.rankings) == set(fr.INFERENCE_TYPES) - NOT_SHOWN
    assert all(len(r) == shop.k for r in shop.rankings.values())
    # 4,000 draws: 5 standard errors.
    error = np.sqrt(shop.first_reported * (1 - shop.first_reported) / 4000)
    assert abs(shop.first_observed - shop.first_reported) < 5 * error


def test_reweighted_gives_the_figures_of_obp() -> None:
    result = demo.reweighted()
    assert result.predicted == pytest.approx(0.00455288)
    assert (result.logged, result.observed) == (0.0038, 0.0042)


@pytest.mark.parametrize("n_items", [20_000, 100_000])
def test_heavy_tails_are_those_of_real_scores(n_items: int) -> None:
    items, users = demo.heavy_tailed(n_items, 8)
    assert items.dtype == users.dtype == np.float32
    assert items.shape == (n_items, 64)
    skew, kurtosis, top = np.median([demo._shape(items @ user) for user in users], axis=0)
    assert 5 < skew < 7
    assert 50 < kurtosis < 80
    assert 18 < top < 30
    again, _ = demo.heavy_tailed(n_items, 8)
    np.testing.assert_array_equal(items, again)


def test_compare_names_its_standards_and_repetitions() -> None:
    comparison = demo.compare(2000, repetitions=3, textbook_cap=10.0)
    standard = [t for t in comparison.timings if t.ratio == 1.0]
    assert [t.law for t in standard] == ["Deterministic", "Plackett-Luce", "Epsilon-greedy"]
    assert all(t.ours and t.propensities for t in standard)
    assert len(comparison.timings) == 11
    assert all(t.milliseconds > 0 and t.repetitions == 3 for t in comparison.timings)


def test_a_procedure_over_the_cap_is_stopped_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def endless(scores: object, k: int, temperature: float, rng: random.Random) -> list[int]:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(reference, "textbook_softmax", endless)
    comparison = demo.compare(2000, repetitions=1, textbook_cap=0.2)
    (stopped,) = [t for t in comparison.timings if t.capped]
    assert stopped.name == "textbook, softmax k times"
    assert (stopped.milliseconds, stopped.repetitions) == (200.0, 1)
    demo.picture([comparison], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (9.117, "9.12"), (57.6, "57.6"), (1234.5, "1,234")]
)
def test_milliseconds_read_well(value: float, text: str) -> None:
    assert demo.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.01 x"), (1.0, "1.0 x"), (3.14, "3.1 x"), (1234.5, "1,234 x")]
)
def test_times_read_well(value: float, text: str) -> None:
    assert demo.times(value) == text
