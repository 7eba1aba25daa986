"""`verify` accepts what is right and, above all, rejects what is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner
from support import Wrong

import fastrank as fr
from fastrank import packing
from fastrank.cli.app import app
from fastrank.store import MANIFEST
from fastrank.verify import (
    FALSE_ALARM,
    PROPENSITY_LIMIT,
    Verdict,
    _score,
    goodness_of_fit,
    verify,
    verify_catalog,
)

N_ITEMS, DIM = 300, 8
DRAWS = 2000  # of what chi-squares must see; 1,000 of the rest


def make_catalog(text_ids: bool = False) -> fr.Catalog:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((N_ITEMS, DIM)) * rng.weibull(1.0, (N_ITEMS, 1))
    ids: Any = rng.permutation(10 * N_ITEMS)[:N_ITEMS]
    return fr.Catalog([f"i{i}" for i in ids] if text_ids else ids, vectors, bias=vectors[:, 0] / 5)


def make_queries(count: int = 3) -> list[Any]:
    return list(np.random.default_rng(4).standard_normal((count, DIM)).astype(np.float32))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = fr.Model(make_catalog(), np.arange(5), np.stack(make_queries(5)))
    model.save(tmp_path / "model")
    return tmp_path / "model"


def make_quantised() -> fr.Catalog:
    """int8, and large enough for its codes to be used and its normaliser to be estimated."""
    vectors = np.random.default_rng(5).standard_normal((30_000, DIM)).astype(np.float32)
    return fr.Catalog(np.arange(30_000), vectors, storage="int8")


def judged(draws: int = 1000, **methods: Callable[..., Any]) -> Verdict:
    """One user is enough to find it."""
    wrong: Any = Wrong(make_catalog(), **methods)
    return verify_catalog(wrong, make_queries(1), draws=draws)


def failed_names(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.failures}


class TestQuantised:
    @pytest.fixture(autouse=True)
    def coded_from_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Small catalogs have codes, too."""
        monkeypatch.setattr(packing, "CODED_FROM", 0)

    @pytest.mark.slow
    def test_a_model_passes(self, tmp_path: Path) -> None:
        catalog = make_quantised()
        ranking = catalog.rank(make_queries()[0], policy=fr.PlackettLuce(5.0))
        assert ranking.propensity_kind == "bounded"
        fr.Model(catalog, np.arange(5), np.stack(make_queries(5))).save(tmp_path / "model")
        result = CliRunner().invoke(app, ["verify", str(tmp_path / "model"), "--draws", "1000"])
        assert result.exit_code == 0, result.output
        assert "PASSED" in result.stdout

    @pytest.mark.parametrize("shift", [0.9, 1.1])
    def test_an_error_counts_beyond_what_the_ranking_states(self, shift: float) -> None:
        """Propensities that are off by a little less than log_norm_error, and by a little more."""

        def rank(true: fr.Catalog, *args: Any, **kwargs: Any) -> fr.Ranking:
            ranking = true.rank(*args, **kwargs)
            if ranking.propensity_kind == "exact":
                return ranking
            given = true.log_propensities(args[0], ranking.item_ids, policy=ranking.policy)
            lp = given - shift * ranking.log_norm_error
            return dataclasses.replace(
                ranking, log_propensities=lp, log_propensity=float(lp.sum()), log_norm=None
            )

        catalog: Any = Wrong(make_quantised(), rank=rank)
        verdict = verify_catalog(catalog, make_queries()[:1], draws=100)  # no law is looked at
        names = {check.name for check in verdict.failures if check.p_value is None}
        assert ("propensities" in names) == (shift > 1.0)


class TestRight:
    @pytest.mark.sampled
    @pytest.mark.parametrize("text_ids", [False, True])
    def test_a_right_catalog_passes(self, text_ids: bool) -> None:
        steps: list[tuple[str, int, int]] = []
        verdict = verify_catalog(
            make_catalog(text_ids),
            make_queries(),
            draws=1000 if text_ids else DRAWS,
            advance=lambda *step: steps.append(step),
        )
        assert verdict.passed, verdict.failures
        checked = {c.policy.inference_type for c in verdict.checks if c.policy}
        assert checked == set(fr.INFERENCE_TYPES) - {"stochastic_plackett_luce_auto"}
        assert {c.name for c in verdict.checks} == {
            "rankings",
            "sum",
            "first place",
            "propensities",
            "same seed",
            "filters",
        }
        n_tests = sum(c.p_value is not None for c in verdict.checks)
        assert verdict.p_limit == FALSE_ALARM / n_tests
        assert [done for _, done, _ in steps] == list(range(len(steps)))
        assert steps[-1][1] < steps[-1][2]

    @pytest.mark.sampled
    @pytest.mark.parametrize("n_items", [1, 2, 3, 17])
    def test_tiny_catalogs(self, n_items: int) -> None:
        vectors = np.random.default_rng(0).standard_normal((n_items, 2))
        catalog = fr.Catalog(np.arange(n_items), vectors)
        verdict = verify_catalog(catalog, [np.ones(2, np.float32)], draws=1000)
        assert verdict.passed, verdict.failures

    def test_ties_and_users_without_vectors(self) -> None:
        vectors = np.zeros((40, 2))
        vectors[:5] = 1.0
        queries = [np.ones(2, np.float32), np.zeros(2, np.float32)]
        verdict = verify_catalog(fr.Catalog(np.arange(40), vectors), queries, draws=1000)
        assert verdict.passed, verdict.failures

    @pytest.mark.slow
    def test_a_saved_model_and_a_saved_catalog_pass(self, saved: Path, tmp_path: Path) -> None:
        assert verify(saved, draws=1000).passed
        make_catalog().save(tmp_path / "catalog")
        assert verify(tmp_path / "catalog", draws=1000).passed

    @pytest.mark.sampled
    @pytest.mark.parametrize(
        "text",
        [
            "dot if price >= 19.99 else dot - 1",  # as float32, like the column
            "dot + 1 / (1 + 1 / age)",  # of an age of 0, too
            "dot if dot > 0.3 else 5",  # float32 and float64 are on two sides of it
        ],
    )
    def test_scores_with_jumps_and_divisions_by_zero(self, text: str, tmp_path: Path) -> None:
        _scored(text).save(tmp_path / "c")
        verdict = verify(tmp_path / "c", draws=1000)
        assert verdict.passed, verdict.failures


def _scored(text: str) -> fr.Catalog:
    catalog = make_catalog()
    n = len(catalog)
    columns = {"price": [19.99] * (n // 2) + [20.5] * (n - n // 2), "age": np.arange(n) % 7}
    return catalog.with_features(columns).with_score(text)


class TestWrong:
    """Each fault that a sampler, a log or a disk may have is found, by the check meant for it."""

    def test_wrong_temperature(self) -> None:
        def rank(catalog: fr.Catalog, query: Any, k: int, *, policy: fr.Policy, **rest: Any) -> Any:
            if isinstance(policy, fr.PlackettLuce):
                other = dataclasses.replace(policy, temperature=1.25 * policy.temperature)
                true = catalog.rank(query, k, policy=other, **rest)
                given = {key: rest[key] for key in ("exclude", "allow") if key in rest}
                lp = catalog.log_propensities(query, true.item_ids, policy=policy, **given)
                return dataclasses.replace(
                    true,
                    policy=policy,
                    log_propensities=lp,
                    log_propensity=float(lp.sum()),
                    log_norm=None,
                )
            return catalog.rank(query, k, policy=policy, **rest)

        verdict = judged(DRAWS, rank=rank)
        assert {"rankings", "first place"} <= failed_names(verdict)
        assert "propensities" not in failed_names(verdict)
        assert all(isinstance(c.policy, fr.PlackettLuce) for c in verdict.failures)

    def test_tampered_propensity(self) -> None:
        def rank(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            true = catalog.rank(*args, **kwargs)
            lp = true.log_propensities - 2 * PROPENSITY_LIMIT
            return dataclasses.replace(true, log_propensities=lp, log_propensity=float(lp.sum()))

        verdict = judged(rank=rank)
        assert {"propensities", "filters"} <= failed_names(verdict)
        assert "rankings" not in failed_names(verdict)

    def test_nan_propensity(self) -> None:
        def rank(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            true = catalog.rank(*args, **kwargs)
            return dataclasses.replace(true, log_propensities=true.log_propensities * np.nan)

        assert {"propensities", "filters"} <= failed_names(judged(rank=rank))

    def test_nan_evaluation(self) -> None:
        def log_propensities(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            return catalog.log_propensities(*args, **kwargs) * np.nan

        verdict = judged(log_propensities=log_propensities)
        assert {"propensities", "sum"} <= failed_names(verdict)

    def test_sum_that_is_not_the_sum(self) -> None:
        def rank(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            true = catalog.rank(*args, **kwargs)
            return dataclasses.replace(true, log_propensity=true.log_propensity - 1e-6)

        assert failed_names(judged(rank=rank)) == {"propensities"}

    def test_wrong_normaliser(self) -> None:
        def log_propensities(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            return catalog.log_propensities(*args, **kwargs) - 1e-4

        verdict = judged(log_propensities=log_propensities)
        assert {"propensities", "sum"} <= failed_names(verdict)

    def test_items_that_never_come_first(self) -> None:
        """A sampler that forgets one lane of every panel of 16, as a packing fault would."""

        def rank(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("k") == 1 and "exclude" not in kwargs:
                kwargs["exclude"] = catalog.item_ids[5::16]
            return catalog.rank(*args, **kwargs)

        verdict = judged(DRAWS, rank=rank)
        assert failed_names(verdict) == {"first place"}
        assert any("modulo 16" in c.detail for c in verdict.failures)

    def test_filter_that_acts_after_sampling(self) -> None:
        def rank(catalog: fr.Catalog, query: Any, k: int, **kwargs: Any) -> Any:
            exclude = kwargs.pop("exclude", None)
            true = catalog.rank(query, k, **kwargs)
            keep = np.isin(true.item_ids, [] if exclude is None else exclude, invert=True)
            return dataclasses.replace(
                true,
                item_ids=true.item_ids[keep],
                scores=true.scores[keep],
                log_propensities=true.log_propensities[keep],
            )

        assert failed_names(judged(rank=rank)) == {"filters"}

    def test_seed_that_is_ignored(self) -> None:
        def rank(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            return catalog.rank(*args, **{**kwargs, "seed": None})

        assert failed_names(judged(rank=rank)) == {"same seed"}

    def test_batch_with_one_noise_for_all_but_another_than_alone(self) -> None:
        def rank_batch(catalog: fr.Catalog, queries: Any, **kwargs: Any) -> Any:
            return catalog.rank_batch(queries, **{**kwargs, "seeds": [1, 1]})

        assert failed_names(judged(rank_batch=rank_batch)) == {"same seed"}

    def test_allow_that_lets_others_in(self) -> None:
        def rank(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("allow", None)
            return catalog.rank(*args, **kwargs)

        assert "rankings" in failed_names(judged(rank=rank))

    @pytest.mark.parametrize("wrong", ["columns", "slope"])
    def test_scores_that_python_does_not_make(self, wrong: str) -> None:
        catalog = _scored("dot - 0.5 * age")
        other = catalog.with_features({"age": np.arange(len(catalog)) % 7 + 1})
        if wrong == "slope":
            other = catalog.with_score("dot - 0.51 * age")
        made, dots, columns = catalog._scored_at(make_queries()[0], np.arange(len(catalog)))
        given = other._scored_at(make_queries()[0], np.arange(len(catalog)))[0]
        subject: Any = Wrong(catalog, _scored_at=lambda *_: (given, dots, columns))
        assert not _score(subject, make_queries(1)).passed
        subject = Wrong(catalog, _scored_at=lambda *_: (made, dots, columns))
        assert _score(subject, make_queries(1)).passed

    def test_flipped_byte(self, saved: Path) -> None:
        for file in sorted(saved.glob("*.npy")):
            whole = file.read_bytes()
            file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            verdict = verify(saved, draws=1000)
            assert [(c.name, c.passed) for c in verdict.checks] == [("files", False)]
            assert "SHA-256" in verdict.checks[0].detail
            file.write_bytes(whole)
        assert verify(saved, draws=1000).passed


class TestGoodnessOfFit:
    def test_p_values_are_uniform_under_the_law(self) -> None:
        rng = np.random.default_rng(0)
        law = np.array([0.4, 0.3, 0.2, 0.05, 0.03, 0.0199, 0.0001])
        p = [goodness_of_fit(c, law)[2] for c in rng.multinomial(2000, law, size=2000)]
        # 2,000 p-values: the share below q has standard error sqrt(q (1 - q) / 2000); 5 of them.
        for q in (0.01, 0.1, 0.5, 0.9):
            assert abs(np.mean(np.array(p) < q) - q) < 5 * np.sqrt(q * (1 - q) / 2000)

    def test_small_cells_are_pooled(self) -> None:
        assert goodness_of_fit([98, 1, 1], [0.98, 0.01, 0.01])[1] == 0
        assert goodness_of_fit([90, 5, 5], [0.9, 0.05, 0.05])[1] == 2
        assert goodness_of_fit([94, 3, 3], [0.94, 0.03, 0.03])[1] == 1
        assert goodness_of_fit([100], [1.0]) == (0.0, 0, 1.0)

    def test_the_impossible_is_rejected(self) -> None:
        assert goodness_of_fit([99, 1], [1.0, 0.0])[2] == 0.0
        assert goodness_of_fit([100, 0], [1.0, 0.0])[2] == 1.0

    def test_a_wrong_law_is_rejected(self) -> None:
        assert goodness_of_fit([5300, 4700], [0.5, 0.5])[2] < 1e-6


class TestCommand:
    def run(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, ["verify", *map(str, arguments)], prog_name="fastrank")

    def test_prints_a_verdict(self, saved: Path) -> None:
        result = self.run(saved, "--draws", 1000)
        assert result.exit_code == 0, result.output
        assert "PASSED" in result.stdout
        for name in set(fr.INFERENCE_TYPES) - {"stochastic_plackett_luce_auto"}:
            assert name in result.stdout

    def test_json(self, saved: Path) -> None:
        result = self.run(saved, "--draws", 1000, "--json")
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        assert record["passed"] is True
        assert record["draws"] == 1000
        assert all(check["passed"] for check in record["checks"])

    def test_fails_with_exit_code_1(self, saved: Path) -> None:
        file = next(saved.glob("panels-*.npy"))
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])  # truncated
        for arguments in ([saved], [saved, "--json"]):
            result = self.run(*arguments)
            assert result.exit_code == 1, result.output
        assert json.loads(result.stdout)["passed"] is False
        result = self.run(saved)
        assert "FAILED" in result.stdout
        assert file.name in result.stdout.replace("\n", "")

    def test_a_broken_sampler_fails_with_exit_code_1(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        true_rank = fr.Catalog.rank

        def rank(catalog: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
            kwargs["policy"] = fr.Uniform()
            return true_rank(catalog, *args, **kwargs)

        monkeypatch.setattr(fr.Catalog, "rank", rank)
        result = self.run(saved, "--draws", 1000)
        assert result.exit_code == 1
        assert "FAILED" in result.stdout

    def test_bad_input(self, saved: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        result = self.run(tmp_path / "other")
        assert result.exit_code == 2
        assert MANIFEST in result.stderr
        assert self.run(tmp_path / "absent").exit_code == 2
        assert self.run(saved, "--draws", 10).exit_code == 2
        with pytest.raises(ValueError, match="draws: got 10; expected at least 1000"):
            verify(saved, draws=10)
