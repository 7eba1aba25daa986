"""The policy that a model keeps: chosen for its users, saved with it, and what ranks by default."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from served import ask, call, make_model, serving, with_app
from support import Array

import fastrank as fr
from fastrank import marginals, packing, plan, store
from fastrank.eventlog import LogReader
from fastrank.plan import choice
from fastrank.policies import completed
from fastrank.policies.spec import parse_stated

GUMBEL = "stochastic_gumbel_softmax_trick"
POLICIES: list[fr.Policy] = [
    fr.Deterministic(),
    fr.PlackettLuce(0.1),
    fr.PlackettLuce(0.1, sampler="auto"),
    fr.PlackettLuce(1e-6, sampler="cached"),
    fr.EpsilonGreedy(0.2),
    fr.FlatTail(0.3, m=7, factor=0.01),
    fr.Uniform(),
    fr.BestFirst(2, then=fr.PlackettLuce(0.3)),
]


def plain(**options: Any) -> fr.Model:
    """30 users whose scores differ sixfold, 300 items."""
    rng = np.random.default_rng(1)
    catalog = fr.Catalog(range(300), rng.standard_normal((300, 8)))
    vectors = rng.standard_normal((30, 8)) * np.geomspace(0.4, 2.4, 30)[:, None]
    return fr.Model(catalog, range(30), vectors, **options)


def overlaps(model: fr.Model, k: int) -> Array:
    """Of each user, exactly: the share of the best k that the model's policy shows in k places."""
    found = []
    for user in model.user_ids.tolist():
        scores = model.catalog.scores(model.user_vector(user)).astype(np.float64)
        top = np.argsort(-scores, kind="stable")[:k]
        shown = marginals.position_marginals(scores, model.user_policy(user), k, items=top)
        found.append(shown.sum() / k)
    return np.array(found)


def own_of(chosen: plan.Choice) -> Array:
    """Each user's temperature."""
    assert chosen.factors is not None
    return chosen.factors * chosen.policy.params["temperature"]


class TestModel:
    def test_a_model_without_has_the_version_that_it_always_had(self, tmp_path: Path) -> None:
        model = plain()
        model.save(tmp_path / "m")
        assert model.policy is None
        assert "policy" not in store.read(tmp_path / "m")[0]
        assert fr.Model.open(tmp_path / "m", verify=True).policy is None
        # As they were before models could have policies: logs name them.
        eye = [[1.0, 0.0], [0.0, 1.0]]
        old = fr.Model(fr.Catalog([10, 20], eye), ["ann", "bob"], eye)
        assert old.version[:16] == "e6736c4176d85519"
        assert old.with_user_temperatures([0.5, 2.0]).version[:16] == "adfcaf6680d07781"

    @pytest.mark.parametrize("policy", POLICIES, ids=repr)
    def test_round_trip(self, tmp_path: Path, policy: fr.Policy) -> None:
        model = plain(policy=policy)
        model.save(tmp_path / "m")
        opened = fr.Model.open(tmp_path / "m", verify=True)
        assert opened.policy == model.policy == policy
        assert opened.version == model.version == plain().with_policy(policy).version
        assert opened.catalog.version == plain().catalog.version
        assert store.read(tmp_path / "m")[0]["model_version"] == model.version
        assert opened.with_policy(None).version == plain().version

    def test_another_policy_is_another_version(self) -> None:
        versions = {plain(policy=policy).version for policy in [None, *POLICIES]}
        assert len(versions) == len(POLICIES) + 1

    def test_recommend_takes_it_and_multiplies(self) -> None:
        factors = np.linspace(0.5, 2.0, 30)
        model = plain(policy=fr.PlackettLuce(0.3), user_temperatures=factors)
        ranking = model.recommend(29, 4, seed=3)
        assert ranking.policy == model.user_policy(29) == fr.PlackettLuce(0.6)
        stated = model.recommend(29, 4, policy=fr.PlackettLuce(0.3), seed=3)
        assert ranking.item_ids.tolist() == stated.item_ids.tolist()
        assert ranking.model_version == model.version

    def test_without_one_what_to_do_is_said(self) -> None:
        model = plain()
        for call_ in (
            lambda: model.recommend(1),
            lambda: model.user_policy(1),
            lambda: model.with_tables(),
        ):
            with pytest.raises(ValueError, match=r"policy: .*none.*--apply.*Model\.with_policy"):
                call_()
        rank: Any = model.catalog.rank  # which has no default
        with pytest.raises(TypeError, match="policy"):
            rank(np.ones(8), 3)

    def test_it_stays_where_something_else_changes(self) -> None:
        policy = fr.PlackettLuce(0.3, sampler="auto")
        model = plain(policy=policy)
        for changed in (
            model.with_user_temperatures(np.ones(30)),
            model.with_tables(),
            model.with_index(None),
            model.with_features({"age": np.ones(300)}),
            model.with_score("2 * dot"),
            model.with_functions(),
        ):
            assert changed.policy == policy
        tabled = model.with_tables().with_policy(policy)
        assert tabled.recommend(1, seed=1).made_by == "table"

    @pytest.mark.parametrize("wrong", ["plackett_luce", 0.3, fr.PlackettLuce])
    def test_what_is_none_is_refused(self, wrong: Any) -> None:
        with pytest.raises(ValueError, match="policy: expected one of fastrank's policies, got"):
            plain(policy=wrong)
        with pytest.raises(ValueError, match="policy: expected one of fastrank's policies, got"):
            plain().with_policy(wrong)

    def test_one_of_ones_own_cannot_be_kept(self) -> None:
        class Warm(fr.PlackettLuce):
            inference_type = "warm"

        with pytest.raises(ValueError, match="policy: expected one of fastrank's"):
            plain(policy=Warm(0.5))

    @pytest.mark.parametrize(
        "written",
        [
            "warm",
            {},
            {"inference_type": "warm", "params": {}},
            {"inference_type": GUMBEL, "params": {"temperature": -1.0}},
            {"inference_type": GUMBEL, "params": {"epsilon": 0.1}},
            {"inference_type": GUMBEL, "params": ["temperature"]},
            {"inference_type": [GUMBEL], "params": {}},
        ],
    )
    def test_a_manifest_that_says_none_is_refused(self, tmp_path: Path, written: Any) -> None:
        plain(policy=fr.PlackettLuce(0.3)).save(tmp_path / "m")
        manifest, arrays = store.read(tmp_path / "m")
        entries = manifest.pop("arrays")
        for name in ("format", "format_version"):
            manifest.pop(name)
        manifest["policy"] = written
        digests = {name: entry["sha256"] for name, entry in entries.items()}
        store.write(tmp_path / "m", manifest, arrays, digests)
        with pytest.raises(ValueError, match="not a model: policy: "):
            fr.Model.open(tmp_path / "m")


class TestChoosing:
    """Overlaps are exact here, by quadrature: what is left is the error of the choice itself, whose
    correction was found from draws. Six of its standard errors; seeds are fixed."""

    @pytest.mark.sampled
    @pytest.mark.parametrize(("overlap", "k"), [(0.5, 5), (0.7, 5), (0.7, 1), (0.9, 10)])
    def test_users_keep_what_was_asked_for(self, overlap: float, k: int) -> None:
        model = plain()
        chosen = plan.choose(model, overlap, k=k)
        exact = overlaps(chosen.of(model), k)
        assert exact.mean() == pytest.approx(overlap, abs=6 * chosen.point.overlap_error + 1e-3)
        assert exact.std() < 0.03
        assert (chosen.k, chosen.asked, chosen.users, chosen.not_reached) == (k, overlap, 30, 0)
        point = chosen.point
        assert point.overlap_low <= point.overlap_median <= point.overlap_high
        assert point.overlap_median == pytest.approx(np.median(exact), abs=0.02)

    def test_the_policy_is_that_of_the_median_user(self) -> None:
        """So users whom the model does not know do not get noise."""
        model = plain()
        chosen = plan.choose(model, 0.7, k=5)
        assert chosen.factors is not None
        assert np.median(chosen.factors) == pytest.approx(1.0, abs=5e-3)
        ours = overlaps(plain(policy=chosen.policy), 5)
        noise = overlaps(plain(policy=fr.PlackettLuce(1e3)), 5)
        assert np.median(ours) == pytest.approx(0.7, abs=0.05)
        assert np.median(noise) < 0.03

    def test_what_the_model_had_plays_no_part(self) -> None:
        factors = np.geomspace(0.01, 100.0, 30)
        before = plain(policy=fr.EpsilonGreedy(0.1), user_temperatures=factors)
        chosen = plan.choose(before, k=5)
        assert chosen.of(before).version == plan.choose(plain(), k=5).of(plain()).version
        assert plan.choose(before, k=5, most=1).policy == plan.choose(plain(), k=5, most=1).policy
        auto = plain(policy=fr.PlackettLuce(9.0, sampler="auto"))
        assert plan.choose(auto, k=5).policy.inference_type == "stochastic_plackett_luce_auto"

    @pytest.mark.slow
    def test_the_same_for_any_number_of_threads(self) -> None:
        rng = np.random.default_rng(2)
        model = fr.Model(plain().catalog, range(300), rng.standard_normal((300, 8)))
        one, three = (plan.choose(model, k=5, threads=threads) for threads in (1, 3))
        assert one.of(model).version == three.of(model).version

    def test_users_without_a_taste_do_not_make_others_keep_more(self) -> None:
        vectors = np.array(plain().user_vectors)
        vectors[::3] = 0.0
        model = fr.Model(plain().catalog, range(30), vectors)
        chosen = plan.choose(model, 0.7, k=5)
        exact = overlaps(chosen.of(model), 5)
        error = 6 * chosen.point.overlap_error + 1e-3
        assert np.delete(exact, np.s_[::3]).mean() == pytest.approx(0.7, abs=error)
        assert exact[::3] == pytest.approx(5 / 300)
        assert chosen.not_reached == 10
        assert chosen.factors is not None
        assert (chosen.factors[::3] == 1.0).all()
        assert chosen.point.overlap < 0.5  # what is said is of all

    def test_ties(self) -> None:
        """Half of the users' best items tie, so that they cannot keep them."""
        items = np.zeros((60, 2))
        items[:20, 0], items[:, 1] = 1.0, np.linspace(-1.0, 1.0, 60)
        model = fr.Model(fr.Catalog(range(60), items), range(8), [[1.0, 0.0], [0.0, 1.0]] * 4)
        chosen = plan.choose(model, 0.7, k=5)
        exact = overlaps(chosen.of(model), 5)
        assert exact[1::2] == pytest.approx(0.7, abs=0.03)
        assert exact[::2] == pytest.approx(0.25, abs=0.01)  # 5 of 20
        assert chosen.not_reached == 4

    @pytest.mark.parametrize(
        ("items", "users", "k"),
        [([[1.0]], [[1.0]], 10), (np.zeros((50, 1)), [[1.0]], 5), (np.ones((50, 1)), [[0.0]], 5)],
        ids=["one item", "equal items", "zero users"],
    )
    def test_what_no_temperature_keeps_is_refused(self, items: Any, users: Any, k: int) -> None:
        model = fr.Model(fr.Catalog(range(len(items)), items), ["ann"], users)
        with pytest.raises(ValueError, match=r"overlap: got 0\.7; the nearest that can be "):
            plan.choose(model, 0.7, k=k)

    def test_of_a_small_catalog_half_is_ranked(self) -> None:
        """Where all is shown, all is kept, whatever the order: by noise, too."""
        catalog = fr.Catalog(range(12), np.random.default_rng(0).standard_normal((12, 4)))
        model = fr.Model(catalog, range(20), np.random.default_rng(1).standard_normal((20, 4)))
        chosen = plan.choose(model, 0.7, k=1000)
        assert chosen.k == 6
        error = 6 * chosen.point.overlap_error + 0.01  # calibration is coarse for a dozen items
        assert overlaps(chosen.of(model), 6).mean() == pytest.approx(0.7, abs=error)
        with pytest.raises(ValueError, match="k: "):
            plan.choose(model, 0.7, k=0)

    def test_storage_and_order_of_items_make_no_difference(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(packing, "CODED_FROM", 0)
        base, vectors = plain(), np.random.default_rng(1).standard_normal((300, 8))
        right = plan.choose(base, k=5)
        for options in ({"storage": "int8"}, {"prior": np.arange(300.0)}):
            catalog = fr.Catalog(range(300), vectors, **options)
            chosen = plan.choose(fr.Model(catalog, range(30), base.user_vectors), k=5)
            np.testing.assert_allclose(own_of(chosen), own_of(right), rtol=0.02)  # other draws

    def test_it_is_for_the_models_own_score(self) -> None:
        once, thrice = (plan.choose(plain().with_score(f"{n} * dot"), k=5) for n in (1, 3))
        ratio = thrice.policy.params["temperature"] / once.policy.params["temperature"]
        assert ratio == pytest.approx(3.0, rel=0.02)

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_every_users_temperature_can_be_served(self, scale: float) -> None:
        """Temperatures end at 1e-6 and 1e6, and no factor leads out of there."""
        vectors = np.array(plain().user_vectors, np.float64)
        vectors[::2] *= scale
        model = fr.Model(plain().catalog, range(30), vectors)
        with_policy = plan.choose(model, k=5).of(model)
        for user in range(30):
            with_policy.recommend(user, 3, seed=1)

    def test_no_rounding_leads_out_of_the_range(self) -> None:
        for temperature in np.geomspace(1e-6, 1e6, 400).tolist():
            rounded = choice._rounded(temperature)
            for factor in choice._factors(np.array([1e-6, 1e6]), rounded).tolist():
                fr.PlackettLuce(rounded).scaled(factor)

    def test_many_users_share_one_temperature(self) -> None:
        model = plain()
        exactly = 30 * (300 + choice._A_USER)
        assert plan.choose(model, k=5, most=exactly).factors is not None
        chosen = plan.choose(model, k=5, most=exactly - 1)
        assert chosen.factors is None
        error = 6 * chosen.point.overlap_error + 2e-3  # its three digits
        assert overlaps(chosen.of(model), 5).mean() == pytest.approx(0.7, abs=error)
        assert chosen.point.overlap_high - chosen.point.overlap_low > 0.3

    def test_bad_arguments(self) -> None:
        wrong: Any = plain().catalog
        with pytest.raises(ValueError, match="model: expected a Model"):
            plan.choose(wrong)
        for overlap in (0.0, 1.0, float("nan")):
            with pytest.raises(ValueError, match="overlap: must lie between 0 and 1"):
                plan.choose(plain(), overlap)


def test_what_is_not_stated_is_taken_from_the_first_that_has_it() -> None:
    usual = [None, fr.EpsilonGreedy(0.3), fr.BestFirst(2, fr.PlackettLuce(0.1))]
    assert completed(GUMBEL, {}, *usual) == fr.BestFirst(2, fr.PlackettLuce(0.1))
    assert completed(GUMBEL, {"head": 0}, *usual) == fr.PlackettLuce(0.1)
    assert completed("stochastic_epsilon_greedy", {"head": 1}, *usual) == fr.BestFirst(
        1, fr.EpsilonGreedy(0.3)
    )
    assert completed("stochastic_flat_tail", {}, *usual) == fr.FlatTail(0.1)
    assert completed("deterministic", {}, *usual) == fr.Deterministic()
    assert completed(GUMBEL, {}) == fr.PlackettLuce()
    with pytest.raises(ValueError, match="inference_type: expected one of"):
        completed("softmax", {}, *usual)
    with pytest.raises(ValueError, match="epsilon: deterministic takes no parameters"):
        completed("deterministic", {"epsilon": 0.1})


# The commands


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    """The sides of `plain`."""
    model = plain()
    np.save(tmp_path / "items.npy", np.random.default_rng(1).standard_normal((300, 8)))
    np.save(tmp_path / "users.npy", model.user_vectors)
    return ["--items", tmp_path / "items.npy", "--users", tmp_path / "users.npy"]


def built(files: list[object], output: Path, *options: object) -> tuple[fr.Model, str]:
    """The model, and what was said of it."""
    result = run("build", *files, "-o", output, *options)
    assert result.exit_code == 0, result.output
    return fr.Model.open(output, verify=True), " ".join(result.output.split())


class TestBuild:
    def test_it_is_what_plan_applies(self, files: list[object], tmp_path: Path) -> None:
        model, said = built(files, tmp_path / "m", "-k", 5)
        assert isinstance(model.policy, fr.PlackettLuce)
        bare, _ = built(files, tmp_path / "bare", "--overlap", "none")
        assert (bare.policy, bare.has_user_temperatures) == (None, False)
        quick = ["-k", 5, "--temperatures", "0.2", "--epsilons", "0.1"]
        apply = ["plan", tmp_path / "bare", *quick, "--target-overlap", 0.7, "--apply"]
        result = run(*apply)
        assert result.exit_code == 0, result.output
        assert fr.Model.open(tmp_path / "bare", verify=True).version == model.version
        chosen = plan.choose(bare, 0.7, k=5)
        assert chosen.of(bare).version == model.version
        point = chosen.point
        for text in (said, " ".join(result.output.split())):
            assert f" plackett_luce, temperature {model.policy.temperature:g}" in text
            assert (
                f"it keeps {point.overlap:.1%} on average; of 30 users looked at, 10 % keep less"
                f" than {point.overlap_low:.1%}, half less than {point.overlap_median:.1%}, 10 %"
                f" more than {point.overlap_high:.1%}"
            ) in text
            assert 'ESS share of its log, to evaluate "deterministic": ' in text
            assert '"temperature x0.8": ' in text
        assert overlaps(model, 5).mean() == pytest.approx(0.7, abs=6 * point.overlap_error + 1e-3)

    @pytest.mark.slow
    def test_other_overlaps_and_places(self, files: list[object], tmp_path: Path) -> None:
        model, _ = built(files, tmp_path / "m", "-k", 5, "--overlap", 0.9)
        assert overlaps(model, 5).mean() == pytest.approx(0.9, abs=0.02)
        other, _ = built(files, tmp_path / "other", "-k", 20, "--overlap", 0.9)
        assert overlaps(other, 20).mean() == pytest.approx(0.9, abs=0.02)
        assert other.version != model.version

    def test_one_place_and_marks_are_in_words(self, files: list[object], tmp_path: Path) -> None:
        vectors = np.eye(4)
        ids = ["a", "b", "c", "d"]
        np.savez(tmp_path / "items.npz", ids=ids, vectors=vectors)
        np.savez(tmp_path / "users.npz", ids=ids[:2], vectors=[[1, 0, 0, 0], [9, 1, 0, 0]])
        sides = ["--items", tmp_path / "items.npz", "--users", tmp_path / "users.npz"]
        _, said = built(sides, tmp_path / "m", "-k", 1)
        assert "Of the deterministic ranking of one place it keeps" in said
        assert " %!" in said
        assert said.count("!: one user brings over a quarter of the weight.") == 1
        _, said = built(files, tmp_path / "many")
        assert "!" not in said

    def test_a_stated_one(self, files: list[object], tmp_path: Path) -> None:
        model, said = built(files, tmp_path / "m", "--policy", "epsilon_greedy:epsilon=0.25")
        assert model.policy == fr.EpsilonGreedy(0.25)
        assert not model.has_user_temperatures
        assert "Policy: epsilon_greedy, epsilon 0.25, as stated." in said

    def test_what_cannot_be_is_refused(self, files: list[object], tmp_path: Path) -> None:
        build = ["build", *files, "-o", tmp_path / "m"]
        for options, words in (
            (["--policy", "plackett_luce"], "--policy: plackett_luce: give its temperature"),
            (["--policy", "stochastic_flat_tail:m=9"], "give its temperature"),
            (["--policy", "softmax:temperature=1"], "--policy: expected"),
            (["--policy", "plackett_luce:temperature=x2"], "--policy: "),
            (["--policy", "uniform", "--overlap", 0.7], "--policy, --overlap: give only one"),
            (["--overlap", "1.5"], "expected a share between 0 and 1, or none; got '1.5'"),
            (["--overlap", "some"], "expected a share between 0 and 1, or none; got 'some'"),
            (["--overlap", "none", "--tables"], "--tables: the model has no policy"),
            (["--overlap", "0.001"], "--overlap: got 0.001; the nearest that can be reached is"),
        ):
            assert words in refused(*build, *options)
            assert not (tmp_path / "m").exists()

    def test_users_who_can_keep_nothing_get_a_model_without(
        self, files: list[object], tmp_path: Path
    ) -> None:
        np.save(tmp_path / "users.npy", np.zeros((5, 8)))
        model, said = built(files, tmp_path / "m")
        assert (model.policy, model.has_user_temperatures) == (None, False)
        assert "no policy was chosen: overlap: got 0.7; the nearest that can be reached is" in said

    def test_tables_are_of_the_policy(self, files: list[object], tmp_path: Path) -> None:
        model, said = built(files, tmp_path / "m", "-k", 5, "--tables")
        assert isinstance(model.policy, fr.PlackettLuce)
        assert model.table_temperature == model.policy.temperature
        assert f"Tables of all users at temperature {model.policy.temperature:g}." in said
        ranking = model.recommend(7, 5, seed=1)
        assert ranking.made_by == "table"
        assert overlaps(model, 5).mean() == pytest.approx(0.7, abs=0.02)
        stated = ["--tables", "plackett_luce:temperature=0.5"]
        model, _ = built(files, tmp_path / "stated", *stated)
        assert model.policy == fr.PlackettLuce(0.5, sampler="auto")
        assert not model.has_user_temperatures
        model, said = built(
            files, tmp_path / "gumbel", "--policy", "plackett_luce:temperature=0.5", "--tables"
        )
        assert model.policy == fr.PlackettLuce(0.5)
        assert "requests that name no policy do not use the tables" in said

    def test_many_users_are_told_how_to_have_their_own(
        self, files: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules["fastrank.cli.build"], "_MOST", 1)
        model, said = built(files, tmp_path / "m", "-k", 5)
        assert not model.has_user_temperatures
        assert isinstance(model.policy, fr.PlackettLuce)
        assert "One temperature for all, because there are many users: fastrank plan" in said

    def test_what_takes_long_is_announced(
        self, files: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, said = built(files, tmp_path / "m")
        assert "takes about" not in said
        monkeypatch.setattr(sys.modules["fastrank.cli.build"], "seconds_for", lambda *_, **__: 61.0)
        _, said = built(files, tmp_path / "slow")
        assert "choosing the policy takes about 60 s; --overlap none skips it" in said

    def test_an_index_is_measured_at_its_temperature(
        self, files: list[object], tmp_path: Path
    ) -> None:
        pytest.importorskip("faiss")
        model, said = built(files, tmp_path / "m", "-k", 5, "--index", "ivf")
        assert isinstance(model.policy, fr.PlackettLuce)
        assert f"At temperature {model.policy.temperature:g} and 5 places" in said
        tail = completed("stochastic_flat_tail", {"m": 300}, model.policy)
        assert (
            model.recommend(3, 5, policy=tail).policy.params["temperature"]
            == (model.user_policy(3).params["temperature"])
        )


class TestRank:
    def test_it_ranks_by_the_models_policy(self, files: list[object], tmp_path: Path) -> None:
        model, _ = built(files, tmp_path / "m", "-k", 5)
        rank = ["rank", tmp_path / "m", "--user", 3, "--seed", 1, "--json"]
        record = json.loads(run(*rank).stdout)
        expected = model.recommend(3, 10, seed=1)
        assert record["item_ids"] == expected.item_ids.tolist()
        assert record["policy"]["params"] == expected.policy.params
        np.save(tmp_path / "query.npy", model.user_vector(3))
        query = ["rank", tmp_path / "m", "--query", tmp_path / "query.npy", "--json"]
        assert model.policy is not None
        for name in ([], ["--inference-type", "stochastic_flat_tail"]):
            params = json.loads(run(*query, *name).stdout)["policy"]["params"]
            assert params["temperature"] == model.policy.params["temperature"]

    def test_parameters_that_are_not_given_are_the_models(
        self, files: list[object], tmp_path: Path
    ) -> None:
        built(files, tmp_path / "m", "--policy", "epsilon_greedy:epsilon=0.25,head=2")
        rank = ["rank", tmp_path / "m", "--user", 3, "--json"]
        params = json.loads(run(*rank).stdout)["policy"]["params"]
        assert params == {"epsilon": 0.25, "head": 2}
        params = json.loads(run(*rank, "--epsilon", 0.5).stdout)["policy"]["params"]
        assert params == {"epsilon": 0.5, "head": 2}

    def test_without_one_a_type_must_be_given(self, files: list[object], tmp_path: Path) -> None:
        built(files, tmp_path / "m", "--overlap", "none")
        assert "give --policy" in refused("rank", tmp_path / "m", "--user", 3)


def test_verify_draws_at_the_temperature_that_is_served(tmp_path: Path) -> None:
    from fastrank.verify import verify

    factors = np.full(30, 0.5)
    plain(policy=fr.PlackettLuce(0.4), user_temperatures=factors).save(tmp_path / "m")
    verdict = verify(tmp_path / "m", draws=1000)
    assert verdict.passed
    full = {
        check.policy.params["temperature"]
        for check in verdict.checks
        if check.name == "first place" and check.policy and "temperature" in check.policy.params
    }
    assert full == {0.2}


# The server


def policy_of(reply: Any) -> tuple[str, dict[str, float]]:
    assert reply.status == 200, reply.body
    named = reply.json()["policy"]
    return named["name"], named["params"]


class TestServer:
    def test_requests_that_name_none_get_the_models(self, tmp_path: Path) -> None:
        policy = fr.PlackettLuce(0.25)
        model = make_model(tmp_path, policy=policy, user_temperatures=np.full(20, 2.0))

        async def work(app: Any) -> None:
            known, temperature = {"temperature": 0.5, "user_temperature": 2.0}, 0.25
            assert policy_of(await ask(app, user_id="u1")) == (GUMBEL, known)
            query = np.array(model.user_vector("u1")).tolist()
            assert policy_of(await ask(app, query=query)) == (GUMBEL, {"temperature": temperature})
            for name in fr.INFERENCE_TYPES:
                _, params = policy_of(await ask(app, user_id="u1", inference_type=name))
                assert params.get("temperature", 0.5) == 0.5
            _, params = policy_of(await ask(app, user_id="u1", temperature=1.0))
            assert params["temperature"] == 2.0
            seeded = (await ask(app, user_id="u1", seed=5, k=7)).json()
            assert seeded["item_ids"] == model.recommend("u1", 7, seed=5).item_ids.tolist()
            version = (await call(app, "GET", "/version")).json()
            assert version["policy"] == {"name": GUMBEL, "params": {"temperature": 0.25}}
            about = (await call(app, "GET", "/explorer/about")).json()
            assert about["params"] == {"temperature": 0.25}
            document = (await call(app, "GET", "/openapi.json")).json()
            field = document["components"]["schemas"]["UserRequest"]["properties"]["inference_type"]
            assert field["description"].startswith(f"By default {GUMBEL}, temperature 0.25. ")

        with_app(tmp_path, work)

    @pytest.mark.parametrize(
        ("setting", "served"),
        [
            (fr.EpsilonGreedy(0.3), fr.EpsilonGreedy(0.3)),
            (parse_stated("plackett_luce"), fr.PlackettLuce(0.25)),
            (parse_stated("plackett_luce:temperature=0.5"), fr.PlackettLuce(0.5)),
            (parse_stated("stochastic_flat_tail:m=20"), fr.FlatTail(0.25, m=20)),
        ],
    )
    def test_settings_say_another(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: Any, served: fr.Policy
    ) -> None:
        make_model(tmp_path, policy=fr.PlackettLuce(0.25))

        async def work(app: Any) -> None:
            assert policy_of(await ask(app, user_id="u1")) == (served.inference_type, served.params)
            # A temperature that the setting does not say is the model's, never a guess.
            _, params = policy_of(await ask(app, user_id="u1", inference_type=GUMBEL))
            assert params["temperature"] == served.params.get("temperature", 0.25)
            about = (await call(app, "GET", "/explorer/about")).json()
            assert about["params"] == {"temperature": 0.25} | served.params

        with caplog.at_level(logging.WARNING, "fastrank.serving"):
            with_app(tmp_path, work, policy=setting)
        assert not caplog.records

    def test_a_fallback_is_at_the_models_temperature(self, tmp_path: Path) -> None:
        make_model(tmp_path, policy=fr.PlackettLuce(0.25), user_temperatures=np.full(20, 2.0))

        async def work(app: Any) -> None:
            _, params = policy_of(await ask(app, user_id="nobody"))
            assert params == {"temperature": 0.25}

        with_app(tmp_path, work, fallback=parse_stated("plackett_luce"))

    def test_other_parameters_of_the_models_policy(self, tmp_path: Path) -> None:
        make_model(tmp_path, policy=fr.FlatTail(0.25, m=30, factor=0.5))

        async def work(app: Any) -> None:
            _, params = policy_of(await ask(app, user_id="u1", m=40))
            assert params == {"temperature": 0.25, "m": 40, "factor": 0.5}
            _, params = policy_of(await ask(app, user_id="u1", inference_type=GUMBEL, head=2))
            assert params == {"temperature": 0.25, "head": 2}
            greedy = "stochastic_epsilon_greedy"
            _, params = policy_of(await ask(app, user_id="u1", inference_type=greedy))
            assert params == {"epsilon": 0.1}

        with_app(tmp_path, work)

    @pytest.mark.parametrize("kind", ["plain", "factors", "stated", "catalog"])
    def test_without_one_it_starts_and_says_once_what_is_kept(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
    ) -> None:
        scale = np.random.default_rng(0).standard_normal((20, 8)) / 100.0
        base = make_model(tmp_path / "base")
        model = fr.Model(base.catalog, base.user_ids, scale)
        settings: dict[str, Any] = {}
        if kind == "factors":  # as those who chose them without a policy mean them
            own = plan.own_temperatures(model, 10, 0.7).temperatures
            model = model.with_user_temperatures(own)
        if kind == "stated":  # without a temperature
            settings["policy"] = parse_stated("stochastic_plackett_luce_auto")
        (model.catalog if kind == "catalog" else model).save(tmp_path / "m")

        def drawn(*_: Any) -> int:
            raise AssertionError("a seed was drawn")

        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "fastrank.serving"):
            patch.setattr("fastrank_serving.seeds.draw_seed", drawn)
            patch.setattr("fastrank.ranker.draw_seed", drawn)

            async def work(app: Any) -> None:
                for _ in range(3):
                    reply = await ask(app, query=[0.0] * 8, inference_type="uniform", seed=1)
                    assert reply.status == 200

            with_app(tmp_path / "m", work, **settings)
        [record] = caplog.records
        text = record.getMessage()
        assert text.startswith(f"{tmp_path / 'm'}: neither the model nor a setting states a temp")
        assert "--apply" in text
        assert "--policy" in text
        if kind == "catalog":
            assert "unknown, without users" in text
            return
        rows = np.linspace(0, 19, 8).astype(int)
        exact = overlaps(
            fr.Model(
                model.catalog,
                range(8),
                model.user_vectors[rows],
                policy=fr.PlackettLuce(1.0),
                user_temperatures=[model.temperature_at(row) for row in rows.tolist()],
            ),
            10,
        ).mean()
        said = float(text.split("which keeps ")[1].split("%")[0]) / 100.0
        assert said == pytest.approx(exact, abs=0.01)
        assert (said > 0.6) == (kind == "factors")

    def test_a_policy_without_a_temperature_says_what_others_get(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A request that names Plackett-Luce finds none, and is ranked at 1."""
        model = make_model(tmp_path / "base")
        model.with_policy(fr.EpsilonGreedy(0.1)).save(tmp_path / "m")

        async def work(app: Any) -> None:
            named = "stochastic_gumbel_softmax_trick"
            _, params = policy_of(await ask(app, user_id="u1", inference_type=named))
            assert params == {"temperature": 1.0}

        with caplog.at_level(logging.WARNING, "fastrank.serving"):
            with_app(tmp_path / "m", work)
            with_app(tmp_path / "m", work, policy=parse_stated("epsilon_greedy:epsilon=0.2"))
        [record] = caplog.records  # who stated a policy has chosen
        text = record.getMessage()
        assert "the model's policy, stochastic_epsilon_greedy, has no temperature" in text
        assert "are ranked at temperature 1, which keeps" in text

    def test_what_is_looked_at_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_model(tmp_path, n=2000, users=20)
        from fastrank_serving import service

        loaded = service.Loaded.open(tmp_path)
        scored: list[int] = []
        scores = fr.Catalog.scores

        def counted(*given: Any) -> Any:
            scored.append(1)
            return scores(*given)

        monkeypatch.setattr(fr.Catalog, "scores", counted)
        for most, users in ((10**9, 8), (4000, 2), (1, 1)):
            monkeypatch.setattr(service, "_SCORES", most)
            scored.clear()
            assert f"for {users} of its users" in loaded.what_is_kept()
            assert len(scored) == users

    def test_a_new_models_policy_comes_with_it(self, tmp_path: Path) -> None:
        make_model(tmp_path, policy=fr.PlackettLuce(0.25))

        async def work() -> None:
            async with serving(tmp_path) as app, serving(tmp_path, policy=fr.Uniform()) as stubborn:
                make_model(tmp_path, policy=fr.EpsilonGreedy(0.2))
                for each, old, new in (
                    (app, GUMBEL, "stochastic_epsilon_greedy"),
                    (stubborn, "uniform", "uniform"),
                ):
                    assert policy_of(await ask(each, user_id="u1"))[0] == old
                    before = each.service.loaded.version
                    await each.service.reload()
                    assert each.service.loaded.version != before
                    assert policy_of(await ask(each, user_id="u1"))[0] == new
                    version = (await call(each, "GET", "/version")).json()
                    assert version["policy"]["name"] == new

        asyncio.run(work())

    def test_a_log_of_it_is_one_stratum(self, tmp_path: Path) -> None:
        """Whatever the factors: the policy is one."""
        model = make_model(tmp_path / "m")
        chosen = plan.choose(model, k=5)
        chosen.of(model).save(tmp_path / "m")

        async def work(app: Any) -> None:
            for row in range(20):
                assert (await ask(app, user_id=f"u{row}", k=5)).status == 200

        with_app(tmp_path / "m", work, log_directory=tmp_path / "log")
        reader = LogReader(tmp_path / "log")
        strata = {
            (reader.strata[i].policy_name, reader.strata[i].params, reader.strata[i].model_version)
            for batch in reader
            for i in batch.stratum.tolist()
        }
        params = tuple(chosen.policy.params.items())
        assert strata == {(GUMBEL, params, chosen.of(model).version)}
