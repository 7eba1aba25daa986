"""Plans, and the policy that a model keeps, for the items that filters leave."""

from __future__ import annotations

import json
import math
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from commands import refused, run
from support import Array

import fastrank as fr
from fastrank import plan
from fastrank.scorer import Eligible, eligible_of

ITEMS, K, ASKED = 300, 5, 0.7
HITS = list(range(60))  # ahead of all others for most users: without them a ranking is another
DRAWS = 400
SIGMAS = 6.0
LEFT = np.arange(len(HITS), ITEMS)


def vectors() -> tuple[Array, Array]:
    """Of items, the hits five times as long, and of 30 users."""
    rng = np.random.default_rng(3)
    items = rng.standard_normal((ITEMS, 8))
    items[HITS] *= 5.0
    return items, rng.standard_normal((30, 8))


def world(**options: Any) -> fr.Model:
    items, users = vectors()
    return fr.Model(fr.Catalog(range(ITEMS), items, **options), range(30), users)


def of_the_rest(**options: Any) -> fr.Model:
    """As if there were no hits."""
    items, users = vectors()
    return fr.Model(fr.Catalog(LEFT, items[LEFT], **options), range(30), users)


def kept(model: fr.Model, exclude: list[int], k: int = K) -> tuple[float, float]:
    """The share of users' best k under a filter that `DRAWS` rankings of the model's own policy
    show under it, mean over users; and its standard error."""
    shares = []
    for user in model.user_ids.tolist():
        rows = np.repeat(model.user_vector(user)[None], DRAWS, axis=0)
        policy = model.user_policy(user)
        batch = model.catalog.rank_batch(
            rows, k, policy=policy, seeds=range(DRAWS), exclude=[exclude] * DRAWS
        )
        best = model.catalog.rank(rows[0], k, policy=fr.Deterministic(), exclude=exclude).item_ids
        shares.append(np.isin(batch.item_ids, best).mean(axis=1))
    found = np.array(shares)
    error = math.sqrt(found.var(axis=1, ddof=1).sum() / DRAWS) / len(found)
    return float(found.mean()), error


def assert_kept(model: fr.Model, of_choice: float, exclude: list[int]) -> None:
    """Within six standard errors of what was counted, and of what the choice was set right by."""
    found, error = kept(model, exclude)
    assert abs(found - ASKED) <= SIGMAS * (error + of_choice) + 1e-3


@cache
def without_hits() -> tuple[fr.Model, plan.Choice]:
    """A model, and what was chosen for it under the filter."""
    model = world()
    return model, plan.choose(model, ASKED, k=K, exclude=HITS)


class TestChoosing:
    def test_what_was_asked_for_is_kept_under_the_filter(self, tmp_path: Path) -> None:
        model = world()
        chosen = plan.choose(model, ASKED, k=K, exclude=HITS)
        chosen.of(model).save(tmp_path / "m")
        opened = fr.Model.open(tmp_path / "m", verify=True)
        assert_kept(opened, chosen.point.overlap_error, HITS)
        assert chosen.point.overlap == pytest.approx(ASKED, abs=1e-3)
        assert (chosen.n_items, chosen.n_eligible, chosen.not_reached) == (ITEMS, 240, 0)
        assert kept(opened, [])[0] > ASKED + 0.1  # the filter is no part of the model

    def test_without_it_another_policy_is_chosen(self) -> None:
        model = world()
        chosen = plan.choose(model, ASKED, k=K)
        assert_kept(chosen.of(model), chosen.point.overlap_error, [])
        assert kept(chosen.of(model), HITS)[0] < ASKED - 0.1

    def test_so_where_many_users_share_one_temperature(self) -> None:
        model = world()
        chosen = plan.choose(model, ASKED, k=K, exclude=HITS, most=1)
        assert chosen.factors is None
        found, error = kept(chosen.of(model), HITS)
        allowed = SIGMAS * (error + chosen.point.overlap_error) + 2e-3  # its three digits
        assert abs(found - ASKED) <= allowed

    @pytest.mark.parametrize(
        "filters",
        [
            {"exclude": HITS + HITS[:7]},
            {"exclude": set(HITS)},
            {"exclude": [*HITS, 7_000_000]},
            {"allow": LEFT},
            {"allow": np.repeat(LEFT[::-1], 2)},
            {"allow": range(ITEMS), "exclude": HITS},
            {"allow": range(30, ITEMS), "exclude": HITS[:50] + HITS[45:]},
        ],
        ids=["twice", "set", "unknown", "allow", "allow twice", "both", "they meet"],
    )
    def test_filters_that_leave_the_same_are_the_same(self, filters: dict[str, Any]) -> None:
        model, once = without_hits()
        again = plan.choose(model, ASKED, k=K, **filters)
        assert again.to_dict() == once.to_dict()
        assert again.of(model).version == once.of(model).version

    @pytest.mark.sampled
    @pytest.mark.parametrize(
        "filters",
        [{"exclude": []}, {"exclude": [-1, 7_000]}, {"allow": range(ITEMS)}, {"allow": range(999)}],
    )
    def test_filters_that_leave_everything_change_no_bit(self, filters: dict[str, Any]) -> None:
        model = world()
        one, other = plan.choose(model, k=K), plan.choose(model, k=K, **filters)
        assert other.to_dict() == one.to_dict()
        assert other.point == one.point
        assert other.of(model).version == one.of(model).version
        assert not other.is_filtered
        options: dict[str, Any] = {"k": K, "temperatures": [0.3], "overlaps": [], "draws": 3}
        assert plan.explore(model, **options, **filters) == plan.explore(model, **options)

    def test_what_the_model_had_plays_no_part(self) -> None:
        model = world()
        chosen = plan.choose(model, k=K, exclude=HITS).of(model)
        tabled = model.with_policy(fr.PlackettLuce(0.5)).with_tables()
        for before in (
            tabled.with_policy(None),
            model.with_policy(fr.FlatTail(0.3, m=7)),
            model.with_user_temperatures(np.linspace(0.1, 9.0, 30)),
            chosen,
        ):
            again = plan.choose(before, k=K, exclude=HITS).of(before)
            assert again.version == chosen.version
            assert again.table_temperature is None

    def test_tables_made_for_it_draw_it(self) -> None:
        model = world()
        chosen = plan.choose(model, ASKED, k=K, exclude=HITS)
        auto = chosen.of(model).with_policy(chosen.policy.with_sampler("auto")).with_tables()
        assert auto.recommend(7, K, exclude=HITS, seed=1).made_by == "table"
        draws = range(DRAWS)
        shown = [
            [auto.recommend(user, K, exclude=HITS, seed=seed).item_ids for seed in draws]
            for user in range(5)
        ]
        best = [
            auto.recommend(user, K, exclude=HITS, policy=fr.Deterministic()).item_ids
            for user in range(5)
        ]
        found = np.array(
            [np.isin(drawn, top).mean(axis=1) for drawn, top in zip(shown, best, strict=True)]
        )
        error = found.std(axis=1, ddof=1) / math.sqrt(DRAWS)
        # Of single users calibration is off by some hundredths.
        assert (abs(found.mean(axis=1) - ASKED) <= SIGMAS * error + 0.05).all()

    def test_of_few_eligible_items_half_are_ranked(self) -> None:
        chosen = plan.choose(world(), ASKED, k=10, allow=range(100, 112))
        assert (chosen.k, chosen.n_eligible) == (6, 12)

    @pytest.mark.parametrize("allow", [[100], []])
    def test_of_one_item_or_none_nothing_is_chosen(self, allow: list[int]) -> None:
        words = "be reached is 1, for 1 of 1 items" if allow else "exclude, allow: no item is elig"
        with pytest.raises(ValueError, match=words):
            plan.choose(world(), ASKED, k=K, allow=allow)

    @pytest.mark.parametrize("name", ["exclude", "allow"])
    @pytest.mark.parametrize(
        "ask", [plan.choose, plan.explore, plan.seconds_for, plan.estimated_seconds]
    )
    def test_what_is_no_filter_is_named(self, name: str, ask: Any) -> None:
        for wrong, words in (
            (["17"], f"{name}: the ids here are int64, got '17'"),
            ("17", f"{name}: expected an array of ids, got '17'"),
            (iter([17]), f"{name}: .* can be read only once"),
            ([[17]], f"{name}: "),
            ([1.5], f"{name}: row 0: expected int64 or str ids, got 1.5"),
        ):
            with pytest.raises(ValueError, match=words):
                ask(world(), k=K, **{name: wrong})


class TestAgainstACatalogOfTheRest:
    """All figures are those of a catalog that has no other items."""

    @pytest.mark.parametrize("options", [{}, {"prior": np.arange(300.0)}], ids=["", "prior"])
    def test_temperatures_are_the_same_to_the_bit(self, options: dict[str, Any]) -> None:
        own = plan.own_temperatures(world(**options), K, ASKED, exclude=HITS)
        right = plan.own_temperatures(of_the_rest(), K, ASKED)
        assert own.temperatures.tolist() == right.temperatures.tolist()
        assert own.reached.all()

    @pytest.mark.slow
    def test_plans_agree(self) -> None:
        options: dict[str, Any] = {
            **{"k": K, "draws": 200, "temperatures": [0.4, 2.0], "overlaps": [0.7]},
            **{"epsilons": [0.2], "users": 20, "prefixes": [1, 3, K]},
        }
        found = plan.explore(world(), allow=LEFT, **options)
        right = plan.explore(of_the_rest(), **options)
        assert (found.n_items, found.n_eligible, right.n_items) == (ITEMS, 240, 240)
        for name in ("users", "prefixes", "uniform_overlap", "deterministic_score"):
            assert getattr(found, name) == getattr(right, name)
        assert found.uniform_score == pytest.approx(right.uniform_score, rel=1e-9)
        for one, other in zip(found.points, right.points, strict=True):
            assert (one.kind, one.parameter) == (other.kind, other.parameter)
            error = math.hypot(one.overlap_error, other.overlap_error)
            assert abs(one.overlap - other.overlap) <= SIGMAS * error + 1e-9
            for name in ("overlap_low", "overlap_median", "overlap_high"):  # of single users
                single = SIGMAS * math.sqrt(20) * error + 1e-9
                assert abs(getattr(one, name) - getattr(other, name)) <= single
            error = math.hypot(one.loss_error, other.loss_error)
            assert abs(one.loss - other.loss) <= SIGMAS * error + 1e-9
            assert one.perplexity == pytest.approx(other.perplexity, rel=1e-9)  # no draws in it
            for share, same in zip(one.shares, other.shares, strict=True):
                if share.exact:
                    assert share.share == pytest.approx(same.share, rel=1e-9)
                elif share.trusted and same.trusted:
                    error = SIGMAS * math.hypot(share.error, same.error)
                    assert share.share == pytest.approx(same.share, rel=error)
            positions = [plan.iips_shares(of, point) for of, point in ((found, one), (right, one))]
            for share, same in zip(*positions, strict=True):
                assert share.share == pytest.approx(same.share, rel=1e-6)
        solved = [plan.solve_overlap(each, ASKED, "user_temperature") for each in (found, right)]
        assert solved[0].point.parameter == pytest.approx(solved[1].point.parameter, abs=0.01)

    def test_temperatures_are_spaced_by_the_rest(self) -> None:
        options: dict[str, Any] = {"k": K, "overlaps": [], "epsilons": [], "targets": {}}
        found, right = (
            [point.parameter for point in plan.explore(of, exclude=exclude, **options).points]
            for of, exclude in ((world(), HITS), (of_the_rest(), None))
        )
        assert found == right

    def test_places_are_those_of_the_rest(self) -> None:
        assert plan.explore(world(), k=3, allow=[1, 2, 3], epsilons=[]).uniform_overlap == 1.0
        with pytest.raises(ValueError, match="k: expected 1 to 3, the number of eligible items; g"):
            plan.explore(world(), k=4, allow=[1, 2, 3])
        with pytest.raises(ValueError, match="k: expected 1 to 3, the number of eligible items; g"):
            plan.own_temperatures(world(), 4, 0.5, allow=[1, 2, 3])
        with pytest.raises(ValueError, match="k: expected 1 to 3, the number of eligible items; g"):
            plan.estimated_seconds(world(), k=4, allow=[1, 2, 3])

    def test_vectors_instead_of_users(self) -> None:
        model = world()
        options: dict[str, Any] = {"k": K, "epsilons": [0.1], "exclude": HITS, "draws": 4}
        by_catalog = plan.explore(model.catalog, model.user_vectors, **options)
        assert by_catalog.points == plan.explore(model, **options).points

    def test_items_that_are_left_out_need_no_score(self) -> None:
        """A shop's score may be defined for what is for sale alone."""
        stock = np.where(np.arange(ITEMS) < len(HITS), 0.0, 2.0)
        model = world(features={"stock": stock}).with_score("dot + log(stock) - log(2)")
        chosen = plan.choose(model, ASKED, k=K, exclude=HITS)
        right = plan.choose(world(), ASKED, k=K, exclude=HITS)
        assert chosen.factors is not None
        assert right.factors is not None
        np.testing.assert_allclose(chosen.factors, right.factors, rtol=0.01)
        assert plan.seconds_for(model, K, exclude=HITS) > 0.0
        assert plan.estimated_seconds(model, k=K, exclude=HITS) > 0.0
        for ask in (plan.choose, plan.explore, plan.seconds_for, plan.estimated_seconds):
            with pytest.raises(ValueError, match="score"):
                ask(model, k=K)

    def test_rankings_read_the_shorter_list(self) -> None:
        """Each of a batch does: what is left of a million may be all but one."""
        for exclude, name, length in ((HITS, "exclude", 60), (range(200), "allow", 100)):
            few = eligible_of(world().catalog, exclude, None)
            assert isinstance(few, Eligible)
            assert (few._filter[0], len(few._filter[1])) == (name, length)


# The commands


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    """The sides of `world`, and the hits."""
    for name, array in zip(("items", "users"), vectors(), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "hits.txt").write_text("\r\n".join(map(str, HITS)))
    return ["--items", tmp_path / "items.npy", "--users", tmp_path / "users.npy"]


QUICK = ["-k", K, "--temperatures", "0.4", "--epsilons", "0.1"]


class TestCommands:
    @pytest.mark.slow
    def test_build_is_what_plan_applies(self, files: list[object], tmp_path: Path) -> None:
        pytest.importorskip("jinja2")
        hits = ["--exclude-file", tmp_path / "hits.txt"]
        result = run("build", *files, "-o", tmp_path / "m", "-k", K, *hits)
        assert result.exit_code == 0, result.output
        model = fr.Model.open(tmp_path / "m", verify=True)
        run("build", *files, "-o", tmp_path / "bare", "--overlap", "none")
        bare = fr.Model.open(tmp_path / "bare")
        apply = ["plan", tmp_path / "bare", *QUICK, *hits, "--target-overlap", ASKED, "--apply"]
        to = ["-o", tmp_path / "as_json", "--json"]
        applied = json.loads(run(*apply, *to).stdout)
        page = ["--report", tmp_path / "page.html"]
        printed = run(*apply, *page)
        assert printed.exit_code == 0, printed.output
        for directory in ("bare", "as_json"):
            assert fr.Model.open(tmp_path / directory, verify=True).version == model.version
        chosen = plan.choose(bare, ASKED, k=K, exclude=HITS)
        assert chosen.of(bare).version == model.version
        assert_kept(model, chosen.point.overlap_error, HITS)
        unfiltered = plan.choose(bare, ASKED, k=K).of(bare)
        assert unfiltered.version != model.version
        assert kept(unfiltered, HITS)[0] < ASKED - 0.1
        words = (
            "Of the deterministic ranking of 5 places among 240 of 300 items, those that the"
            f" filters leave, it keeps {chosen.point.overlap:.1%} on average"
        )
        for text in (result.output, printed.output):
            assert words in " ".join(text.split())
        looked_at = "30 of 30 users, 240 of 300 items, which the filters leave, rankings of 5"
        for text in (printed.output, (tmp_path / "page.html").read_text()):
            assert looked_at in " ".join(text.split())
        assert "with the filters of this plan" in (tmp_path / "page.html").read_text()
        for record in (applied["plan"], applied["applied"]):
            assert (record["n_items"], record["n_eligible"]) == (ITEMS, 240)
        for solution in applied["solutions"]:
            assert solution["point"]["overlap"] == pytest.approx(ASKED, abs=0.01)

    def test_all_four_options(self, files: list[object], tmp_path: Path) -> None:
        (tmp_path / "allowed.txt").write_text("\n".join(map(str, range(50, ITEMS))))
        options = ["--exclude", "50,51, 52", "--exclude", 53, "--exclude-file"]
        (tmp_path / "more.txt").write_text("\n".join(map(str, range(54, 60))))
        options += [tmp_path / "more.txt", "--allow-file", tmp_path / "allowed.txt"]
        options += ["--allow", "0"]
        right = plan.choose(world(), k=K, exclude=HITS[1:]).of(world())
        result = run("build", *files, "-o", tmp_path / "m", "-k", K, *options)
        assert result.exit_code == 0, result.output
        assert fr.Model.open(tmp_path / "m").version == right.version
        run("build", *files, "-o", tmp_path / "p", "--overlap", "none")
        result = run(
            *("plan", tmp_path / "p", *QUICK, *options, "--target-overlap", ASKED, "--apply")
        )
        assert result.exit_code == 0, result.output
        assert fr.Model.open(tmp_path / "p").version == right.version

    def test_without_filters_nothing_is_said_of_them(
        self, files: list[object], tmp_path: Path
    ) -> None:
        pytest.importorskip("jinja2")
        everything = ["--allow", ",".join(map(str, range(ITEMS)))]
        said = [
            run("build", *files, "-o", tmp_path / "m", "-k", K, "--replace", *options).output
            for options in ([], everything)
        ]
        assert said[0] == said[1]
        assert "filters leave" not in said[0]
        report = ["--report", tmp_path / "page.html", "--json"]
        plain, whole = (
            json.loads(run("plan", tmp_path / "m", *QUICK, *options, *report).stdout)
            for options in ([], everything)
        )
        assert plain == whole
        assert plain["plan"]["n_eligible"] == ITEMS
        page = (tmp_path / "page.html").read_text()
        assert "filters leave" not in page
        assert "with the filters" not in page

    def test_a_typing_error_does_not_pass_for_a_filter(
        self, files: list[object], tmp_path: Path
    ) -> None:
        line = "--exclude: 2 ids are not in the catalog: 300, -1"
        built = run("build", *files, "-o", tmp_path / "m", "-k", K, "--exclude", "300,-1,0")
        assert f"fastrank build: {line}" in built.stderr.splitlines()
        assert "299 of 300 items" in " ".join(built.output.split())
        planned = run("plan", tmp_path / "m", *QUICK, "--exclude", "300,-1,0", "--json")
        assert f"fastrank plan: {line}" in planned.stderr.splitlines()
        assert json.loads(planned.stdout)["plan"]["n_eligible"] == 299

    def test_what_cannot_be_is_refused(self, files: list[object], tmp_path: Path) -> None:
        build = ["build", *files, "-o", tmp_path / "m"]
        run("build", *files, "-o", tmp_path / "p", "--overlap", "none")
        before = fr.Model.open(tmp_path / "p").version
        apply = ["plan", tmp_path / "p", *QUICK, "--target-overlap", ASKED, "--apply"]
        (tmp_path / "bytes").write_bytes(b"1\n\xff")
        (tmp_path / "words").write_text("1\nann\n")
        for options, words in (
            (["--allow", "300"], "no item is eligible (--allow: 1 id is not in the catalog: 300)"),
            (["--allow", ""], "no item is eligible (--allow: no id is given)"),
            (["--allow", "1", "--exclude", "1"], "--allow, --exclude: no item is eligible"),
            (["--exclude", "ann"], "--exclude: the ids here are integers of 64 bits"),
            (["--exclude", '"1'], "exclude: expected a comma or the end"),
            (["--allow-file", tmp_path / "words"], "words: line 2: the ids here are integers"),
            (["--exclude-file", tmp_path / "bytes"], "bytes is not UTF-8"),
            (["--exclude-file", tmp_path / "none"], "does not exist"),
        ):
            for command in (build, apply):
                assert words in refused(*command, *options)
        few = ["--allow", "1,2,3"]
        assert "k: expected 1 to 3, the number of eligible items; got 5" in refused(*apply, *few)
        one = ["-k", 1, "--allow", 1]
        assert "--overlap: got 0.7; the nearest" in refused(*build, "--overlap", 0.7, *one)
        assert "nothing was written" in refused(*apply, *one)
        for stated in (["--overlap", "none"], ["--policy", "uniform"]):
            for option, value in (("--exclude", 1), ("--allow-file", tmp_path / "hits.txt")):
                line = refused(*build, *stated, option, value)
                assert f"{option}: needs --overlap, which chooses a policy" in line
        assert not (tmp_path / "m").exists()
        assert fr.Model.open(tmp_path / "p").version == before

    def test_one_item_is_left_and_no_policy_chosen(
        self, files: list[object], tmp_path: Path
    ) -> None:
        result = run("build", *files, "-o", tmp_path / "m", "--allow", 7)
        assert result.exit_code == 0
        assert "no policy was chosen: overlap: got 0.7; the nearest that can be reached is 1, " in (
            result.stderr
        )
        assert fr.Model.open(tmp_path / "m").policy is None

    def test_who_is_sent_to_plan_is_told_to_take_the_filters_along(
        self, files: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules["fastrank.cli.build"], "_MOST", 1)
        hits = ["--exclude-file", tmp_path / "hits.txt"]
        for options, is_there in ((hits, True), ([], False)):
            result = run("build", *files, "-o", tmp_path / "m", "-k", K, "--replace", *options)
            said = " ".join(result.output.split())
            assert "--target-overlap 0.7 --apply" in said
            assert ("--apply, with the same filters, finds each user's own" in said) == is_there


# Rules


def priced(prior: bool = False) -> tuple[fr.Model, npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(8)
    price = rng.exponential(50, 200).astype(np.float32)
    catalog = fr.Catalog(
        [f"i{each}" for each in rng.permutation(200)],
        rng.standard_normal((200, 6)),
        features={"price": price, "seller": [f"s{i % 9}" for i in range(200)]},
        prior=rng.standard_normal(200) if prior else None,
    )
    return fr.Model(catalog, np.arange(20), rng.standard_normal((20, 6))), price < 60


@pytest.mark.parametrize("prior", [False, True])
def test_where_is_a_filter(prior: bool) -> None:
    model, cheap = priced(prior)
    ids = model.catalog.item_ids
    rules, params = fr.Rules(where="price < most"), {"most": 60.0}
    call: dict[str, Any] = {"k": 5, "draws": 20, "temperatures": [0.5]}
    by_rules = plan.explore(model, rules=rules, params=params, exclude=ids[:9], **call)
    by_ids = plan.explore(model, allow=ids[cheap], exclude=ids[:9], **call)
    assert by_rules.n_eligible == int(cheap[9:].sum())
    assert by_rules.points == by_ids.points
    chosen = plan.choose(model, 0.7, k=5, draws=20, rules=rules, params=params)
    assert chosen.policy == plan.choose(model, 0.7, k=5, draws=20, allow=ids[cheap]).policy


@pytest.mark.parametrize(
    "content",
    [
        {"cap": {"seller": 2}},
        {"window": {"seller": (1, 3)}},
        {"at_least": {"price < 60": 2}},
        {"decay": {"seller": 0.5}},
        {"pin": {1: "i3"}},
        {"pin_where": {1: "price < 60"}},
        {"boost": {"price < 60": 2.0}},
        {"boost_score": {"price < 60": 0.1}},
    ],
    ids=lambda content: next(iter(content)),
)
def test_rules_that_say_more_are_refused_by_name(content: dict[str, Any]) -> None:
    model, _ = priced()
    rules = fr.Rules(where="price < 90", **content)
    for call in (plan.explore, plan.choose):
        with pytest.raises(
            ValueError, match=f"rules: {next(iter(content))}: .* supports only where="
        ):
            call(model, k=5, draws=20, rules=rules)


def test_rules_of_no_such_columns_or_parameters() -> None:
    model, _ = priced()
    cases: list[tuple[Any, Any, str]] = [
        (fr.Rules(where="size < 3"), None, "rules: .*size"),
        (
            fr.Rules(where="price < 3"),
            {"most": 1},
            "params: 'most' is not a parameter of the rules",
        ),
        (None, {"most": 1}, "params: got 'most'; expected none without rules"),
        (fr.Rules(where="price < 0"), None, "rules: where: 'price < 0' holds for no item"),
        ({"where": "price < 3"}, None, "rules: expected Rules"),
    ]
    for rules, params, message in cases:
        with pytest.raises(ValueError, match=message):
            plan.explore(model, k=5, draws=20, rules=rules, params=params)


def test_rules_on_the_command_line(tmp_path: Path) -> None:
    model, price = tmp_path / "model", np.arange(ITEMS, dtype=float)
    world(features={"price": price}).save(model)
    file = tmp_path / "cheap.json"
    file.write_text('{"where": "price < most"}')
    call: list[object] = ["plan", model, "-k", 5, "--draws", 8, "--users", 5]
    call += ["--temperatures", "0.5", "--epsilons", "", "--json"]
    by_ids = run(*call, "--allow", ",".join(map(str, range(60)))).stdout
    for text in (file, '{"where": "price < most", "on_empty": "relax"}'):
        assert run(*call, "--rules", text, "--param", "most=60").stdout == by_ids
    assert json.loads(by_ids)["plan"]["n_eligible"] == 60
    for options, message in (
        (["--rules", '{"cap": {"price": 2}}'], "--rules: cap: .* supports only where="),
        (["--rules", '{"where": "size < 2"}'], "--rules: where: .*size"),
        (["--rules", file], "--rules: .*most"),
        (["--rules", '{"where": "price < 0"}'], "--rules: where: 'price < 0' holds for no item"),
        (["--rules", '{"where": "price < 9"}', "--param", "least=2"], "--param: 'least' is no"),
        (["--param", "most=2"], "--param: needs --rules"),
        (["--rules", "gone.json"], "--rules: gone.json: No such file"),
    ):
        assert re.search(message, refused(*call, *options)), options
