"""Published experiments: their figures, exactly where they are exact, and what is printed of them.

Statistical tests allow 6.2 standard errors: a false alarm in 2e9 runs, and seeds are fixed.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("scipy")
pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner

from fastrank import Deterministic, PlackettLuce, Uniform, experiments, reference
from fastrank.cli.app import app
from fastrank.cli.experiment import _NAMES
from fastrank.marginals import position_marginals, ranking_law
from fastrank.reference import RuleMasks

FAR = 6.2  # standard errors


@cache
def found(name: str) -> Any:
    return experiments.EXPERIMENTS[name](seed=3, quick=True)


# Replay


def test_replay_reproduces_the_published_run() -> None:
    """9,962 matches of 100,000 and 990 of these again; .2 by replay, .02 by counting."""
    result = found("replay")
    first = result.logs[0]
    assert (first.n_items, first.k, result.rows) == (10, 1, 100_000)
    sd = math.sqrt(100_000 * 0.1 * 0.9)
    again = math.sqrt(100_000 * 0.01 * 0.99)
    for matches, twice in ((first.matches, result.matched_again), (9_962, 990)):
        assert abs(matches - 10_000) < FAR * sd
        assert abs(twice - 1_000) < FAR * again
    assert first.standard_error == pytest.approx(0.4 / math.sqrt(first.matches), rel=0.05)
    assert abs(first.replay - 0.2) < FAR * 0.004
    assert abs(result.replay_again - 0.2) < FAR * 0.4 / math.sqrt(result.matched_again)
    # naive is matched clicks over all rows: Binomial(100,000, .02).
    assert abs(first.naive - 0.02) < FAR * math.sqrt(0.02 * 0.98 / 100_000)
    assert first.status == "ok"
    # What the logging policy earned is neither.
    assert abs(result.logged - (0.1 + 0.1 / 10)) < FAR * math.sqrt(0.11 * 0.89 / 100_000)


def test_matches_shrink_as_the_number_of_rankings_grows() -> None:
    for log in found("replay").logs:
        p = 1.0 / math.perm(log.n_items, log.k)
        assert log.expected_matches == pytest.approx(100_000 * p)
        # Poisson's tail for few, the normal one for many: both below 1e-9 at this distance.
        assert abs(log.matches - 100_000 * p) < FAR * math.sqrt(100_000 * p) + 12
        if log.expected_matches >= 1:
            assert log.expected_error == pytest.approx(
                math.sqrt(0.16 / (log.k * log.expected_matches))
            )
        if not log.matches:
            assert log.replay is None
            assert log.reasons == ("no_overlap",)


def test_draws_are_uniform_over_ordered_rankings() -> None:
    rows = experiments._draws(np.random.default_rng(1), 60_000, 5, 3)
    codes, counts = np.unique(rows @ [25, 5, 1], return_counts=True)
    assert len(codes) == 60
    # Pearson's statistic of 59 degrees of freedom passes 150 with a probability of 1e-9.
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 150


def test_draws_with_replacement_would_be_seen() -> None:
    broken = np.random.default_rng(1).integers(5, size=(60_000, 3))
    assert len(np.unique(broken @ [25, 5, 1])) > 60


# Deterministic or stochastic


def test_four_ways_support_is_what_logging_allows() -> None:
    rows = {(c.logging, c.evaluation, c.same_model): c for c in found("four-ways").combinations}
    assert len(rows) == 6
    for (logging, _, same), each in rows.items():
        if logging == "deterministic" and not same:
            assert each.status == "unsupported"
            assert "uncovered" in each.reasons
            assert each.uncovered > 0.01
        else:
            assert (each.status, each.reasons, each.uncovered) == ("ok", (), 0.0)
            low, high = each.interval
            error = (high - low) / 2 / 1.96
            assert abs(each.estimate - each.truth) < FAR * error


def test_four_ways_deterministic_log_is_wrong_about_another_model() -> None:
    """Why it must be called unsupported: its interval is narrow, and beside the truth."""
    (each,) = [
        c
        for c in found("four-ways").combinations
        if (c.logging, c.evaluation) == ("deterministic", "stochastic")
    ]
    low, high = each.interval
    assert not low <= each.truth <= high


# The logged average


def test_avg_is_biased_and_weighted_estimates_are_not() -> None:
    result = found("avg-bias")
    by_factor = {each.factor: each for each in result.policies}
    same = by_factor[1.0]
    assert abs(same.avg_bias) < 1e-12
    assert same.ess_share == pytest.approx(1.0)
    assert same.ips_error == pytest.approx(same.avg_error)
    for each in result.policies:
        assert abs(each.ips_bias) < 1e-12
        assert abs(each.rips_bias) < 1e-12
        assert each.rips_error <= each.ips_error + 1e-15
        assert abs(each.ips - each.truth) < FAR * each.ips_error
        assert abs(each.rips - each.truth) < FAR * each.rips_error
    # Further apart, more bias, on either side; and far more than the error of avg.
    biases = [each.avg_bias for each in result.policies]
    assert biases == sorted(biases, reverse=True)
    assert abs(by_factor[0.25].avg_bias) > 5 * by_factor[0.25].avg_error


def test_prefix_weights_are_ratios_of_prefix_probabilities() -> None:
    scores = np.log([1.0, 2.0, 3.0, 4.0])
    rankings, p0 = ranking_law(scores, 3, PlackettLuce())
    p1 = ranking_law(scores, 3, PlackettLuce(0.5))[1]
    weights = experiments.prefix_weights(p0, p1, 4, 3)
    for row, ranking in enumerate(rankings):
        for places in (1, 2, 3):
            starts = (rankings[:, :places] == ranking[:places]).all(axis=1)
            assert weights[row, places - 1] == pytest.approx(p1[starts].sum() / p0[starts].sum())
    conditional = experiments._conditional(p0, 4, 3)
    np.testing.assert_allclose(np.exp(conditional.sum(axis=1)), p0)


# Variance


def test_variances_of_one_place_are_those_of_a_bandit() -> None:
    """One place: all three are ips, and Var = sum p1^2 / p0 q - V^2."""
    n = 100
    (cell,) = [c for c in found("variance").cells if (c.n_items, c.k) == (n, 1)]
    levels = (np.arange(n) + 0.5) / n
    scores = np.array(experiments._normal_quantiles(levels))[::-1] * 2.0
    p0, p1 = (np.exp(scores / t) / np.exp(scores / t).sum() for t in (1.0, 0.8))
    rates = 0.01 + 0.29 * levels[::-1]
    variance = (p1**2 / p0 * rates).sum() - (p1 @ rates) ** 2
    assert cell.exact
    assert cell.variances == pytest.approx((variance,) * 3, rel=1e-6)
    assert cell.ess_shares == pytest.approx((1.0 / (p1**2 / p0).sum(),) * 3, rel=1e-6)
    own = p1 @ rates - (p1 @ rates) ** 2
    assert cell.worth == pytest.approx((own / variance,) * 3, rel=1e-6)


def test_drawn_variances_agree_with_enumerated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = {c.k: c for c in experiments._spreads(10, 20_000, 1) if c.exact}
    assert set(exact) == {1, 2, 3, 5}
    monkeypatch.setattr(experiments, "_ENUMERATED", 0)
    for drawn in experiments._spreads(10, 20_000, 1):
        if drawn.k in exact:
            assert not drawn.exact
            for j in range(3):
                truth, error = exact[drawn.k].variances[j], drawn.errors[j]
                assert 0.0 < error < 0.02
                assert abs(drawn.variances[j] - truth) < FAR * error * drawn.variances[j]


def test_mixture_without_its_weights_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of the evaluated policy counted as the logging policy's: far off."""
    drawn = experiments._drawn

    def broken(*args: Any) -> Any:
        rankings, weights = drawn(*args)
        half = len(rankings) // 2
        return np.concatenate([rankings[half:]] * 2), np.concatenate([weights[half:]] * 2)

    exact = {c.k: c for c in experiments._spreads(10, 20_000, 1)}
    monkeypatch.setattr(experiments, "_ENUMERATED", 0)
    monkeypatch.setattr(experiments, "_drawn", broken)
    (cell,) = [c for c in experiments._spreads(10, 20_000, 1) if c.k == 5]
    assert abs(cell.variances[0] / exact[5].variances[0] - 1.0) > FAR * cell.errors[0]


def test_variance_grows_with_places_and_less_for_rips_and_iips() -> None:
    for each in found("variance").cells:
        ips, rips, iips = each.variances
        if each.k > 1:
            assert ips > rips > iips
    largest = [c for c in found("variance").cells if c.n_items == 1000]
    shares = [c.ess_shares[0] for c in largest]
    assert shares == sorted(shares, reverse=True)
    assert len({round(c.ess_shares[2], 12) for c in largest}) == 1  # the first place is the worst


def test_iips_ess_is_that_of_marginals() -> None:
    scores = np.array(experiments._normal_quantiles((np.arange(10) + 0.5) / 10))[::-1] * 2.0
    m0, m1 = (position_marginals(scores, PlackettLuce(t), 5) for t in (1.0, 0.8))
    (cell,) = [c for c in found("variance").cells if (c.n_items, c.k) == (10, 5)]
    assert cell.ess_shares[2] == pytest.approx(1.0 / (m1**2 / m0).sum(axis=0).max(), rel=1e-5)


# Rules that act on finished rankings


def test_rules_by_masses_are_those_of_the_product() -> None:
    """And of the oracle: what the experiment holds the shops' propensities against."""
    market = experiments._Market(3)
    who = np.arange(20).repeat(3)
    shown, _ = market.drawn(who, 10, rules=market.rules)
    cold = [PlackettLuce(0.9 * each) for each in market.temperatures[who].tolist()]
    for rules, cap in ((market.rules, 2), (None, 10)):
        (right,) = market.catalog.log_propensities_batch(
            market.users[who], list(shown), policies=[cold], rules=rules
        )
        own = market.log_propensities(who, shown, cap, 0.9)
        np.testing.assert_allclose(own, right, atol=1e-5)
    groups = {"seller": [{each} for each in market.sellers.tolist()]}
    masks = RuleMasks(groups=groups, cap={"seller": 2})
    own = market.log_propensities(who, shown, 2, 0.9)
    for i in (0, 31, 59):
        oracle = reference.log_propensities(market.scores[who[i]], shown[i], cold[i], rules=masks)
        np.testing.assert_allclose(own[i], oracle, atol=1e-9)


@pytest.mark.slow
def test_what_a_cap_strikes_out_is_what_rules_do_not_draw() -> None:
    """The same law of the last place's seller: so the first shop's truth is the third one's."""
    market = experiments._Market(3)
    who = np.zeros(4_000, np.int64)
    struck, ruled = market.capped(who), market.drawn(who, 10, rules=market.rules)[0]
    assert market.obeys(struck).all()
    assert market.obeys(ruled).all()
    assert not market.obeys(market.drawn(who, 10)[0]).all()
    counts = [np.bincount(market.sellers[each[:, 9]], minlength=40) for each in (struck, ruled)]
    both = counts[0] + counts[1]
    large = both >= 20
    # Two samples of as many: chi-square of at most 40 degrees, beyond 120 with 1e-9.
    assert (((counts[0] - counts[1]) ** 2)[large] / both[large]).sum() < 120


@pytest.mark.slow
def test_propensities_without_the_cap_make_estimates_wrong() -> None:
    result = found("rules")
    struck, both, again, _ = result.shops
    assert [each.weighs_by_cap for each in result.shops] == [True, False, True, True]
    for shop in (struck, again):
        assert shop.ratio[1] < 0.5
        assert shop.mean_weight > 1.5
        assert shop.ips[0] > 1.3
        assert shop.flagged == 1.0
    # By the same mistake on both sides much of it cancels, and some is left.
    assert both.ratio == struck.ratio
    assert both.mean_weight < 0.97
    # One over the share of rankings that obey, by visitors.
    assert again.draws > 2
    assert again.mean_weight == pytest.approx(again.draws, rel=0.5)


def test_propensities_by_rules_make_estimates_right() -> None:
    result = found("rules")
    ruled = result.shops[-1]
    assert ruled.ratio == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)
    n = result.logs * result.rows
    # An ESS share of .6 and more: the mean weight's standard error is at most sqrt(.67 / n).
    assert abs(ruled.mean_weight - 1.0) < FAR * math.sqrt(0.67 / n)
    assert ruled.ips[0] < 1.0 < ruled.ips[2]
    assert ruled.snips[0] < 1.0 < ruled.snips[2]
    assert ruled.draws == 1.0
    assert result.truth > result.logged + FAR * result.truth_error


# The command


def test_names_are_the_same_everywhere() -> None:
    assert tuple(experiments.EXPERIMENTS) == _NAMES


@pytest.mark.sampled
@pytest.mark.parametrize("name", _NAMES)
def test_command_explains_and_draws(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was drawn for the tests above; `test_json_is_one_object_and_repeats` draws anew."""
    pytest.importorskip("matplotlib")

    def drawn(*, seed: int = 0, quick: bool, advance: Any = None) -> Any:
        assert (seed, quick) == (0, True)
        return found(name)

    found(name)
    monkeypatch.setitem(experiments.EXPERIMENTS, name, drawn)
    picture = tmp_path / "picture.svg"
    result = CliRunner().invoke(app, ["experiment", name, "--quick", "-o", str(picture)])
    assert result.exit_code == 0, result.output
    assert "Source: " in result.stdout
    assert "…" not in result.stdout  # a table that is too wide
    words = experiments.EXPERIMENTS[name](quick=True).words if name == "avg-bias" else ""
    assert " ".join(words.split()[:8]) in " ".join(result.stdout.split())
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize("name", _NAMES)
def test_words_are_a_few_sentences(name: str) -> None:
    words = found(name).words
    assert 2 <= sum(words.count(end) for end in (". ", "? ")) <= 5
    assert words.endswith(".")


def test_json_is_one_object_and_repeats() -> None:
    runs = [
        CliRunner().invoke(app, ["experiment", "avg-bias", "--quick", "--json", "--seed", "5"])
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    record = json.loads(runs[0].stdout)
    assert record["title"] == found("avg-bias").title
    assert len(record["policies"]) == 8


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nothing"], "nothing"),
        (["replay", "-o", "picture.txt"], "picture.txt"),
        (["replay", "-o", "no/such/place.svg"], "no/such"),
        (["replay", "--seed", "-1"], "-1"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], word: str) -> None:
    result = CliRunner().invoke(app, ["experiment", *arguments])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert word in result.stderr


def test_seeds_are_checked() -> None:
    for run in experiments.EXPERIMENTS.values():
        with pytest.raises(ValueError, match="seed"):
            run(seed=-1, quick=True)


def test_deterministic_has_no_support_under_itself_elsewhere() -> None:
    """`prefix_weights` of a policy that never shows what was logged are 0, not an error."""
    p0, p1 = (ranking_law([1.0, 0.0], 2, policy)[1] for policy in (Uniform(), Deterministic()))
    assert experiments.prefix_weights(p0, p1, n_items=2, k=2).tolist() == [[2.0, 2.0], [0.0, 0.0]]
