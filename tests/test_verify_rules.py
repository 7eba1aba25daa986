"""`verify` under rules accepts what is right and rejects what is wrong."""

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
from fastrank import verify as verify_
from fastrank import walk
from fastrank.cli.app import app
from fastrank.verify import FALSE_ALARM, Verdict, _all_ruled, verify, verify_catalog

N_ITEMS = 120
GUMBEL = "stochastic_gumbel_softmax_trick"
QUERY = np.random.default_rng(4).standard_normal(6).astype(np.float32)


def make_catalog(n: int = N_ITEMS, text_ids: bool = True) -> fr.Catalog:
    rng = np.random.default_rng(3)
    numbers = rng.permutation(10 * n)[:n]
    return fr.Catalog(
        [f"i{each}" for each in numbers] if text_ids else numbers,
        rng.standard_normal((n, 6)),
        features={
            "seller": [f"s{i % 20}" if i % 7 else None for i in range(n)],
            "brand": [f"b{i % 4}" for i in range(n)],
            "genres": [["a", "b"] if i % 3 else ["b"] if i % 2 else [] for i in range(n)],
            "new": np.arange(n) % 5 == 0,
            "size": np.arange(n) % 3,
            "price": rng.exponential(50, n),
        },
    )


ALL: dict[str, dict[str, Any]] = {
    "where": {"where": "new or price < budget"},
    "cap": {"cap": {"seller": 1, "genres": 2, "new": 2}},
    "window": {"window": {"brand": (1, 2), "size": (2, 3)}},
    "at_least": {"at_least": {"new": 2}},
    "decay": {"decay": {"brand": 0.4, "genres": 0.7}},
    "pin": {"pin": {2: "i661"}, "window": {"brand": (1, 3)}},
    "pin_where": {"pin_where": {1: "price > 80", 3: "new"}},
    "boost": {"boost": {"new": 3.0}, "boost_score": {"price < 10": 0.5}},
    "relax": {"cap": {"brand": 1}, "window": {"size": (1, 3)}, "on_empty": "relax"},
    "together": {
        "where": "price < budget",
        "cap": {"seller": 2},
        "window": {"brand": (1, 2)},
        "at_least": {"new": 1},
        "pin": {3: "i661"},
        "boost": {"size == 1": 0.5},
        "decay": {"genres": 0.8},
    },
}


def test_the_pinned_item_is_there() -> None:
    assert "i661" in make_catalog().item_ids


def judged(rules: fr.Rules, draws: int = 2000, **methods: Callable[..., Any]) -> Verdict:
    catalog: Any = Wrong(make_catalog(), **methods)
    params = {"budget": 100.0} if "budget" in rules.names else None
    return verify_catalog(catalog, [QUERY], draws=draws, rules=[rules], params=params)


def failed_names(verdict: Verdict) -> set[str]:
    assert all(check.rules is not None for check in verdict.failures)
    return {check.name for check in verdict.failures}


@pytest.fixture
def gumbel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is about what is looked at, and not under which inference type."""
    every = verify_._policies

    def alone(*args: Any) -> list[fr.Policy]:
        return [each for each in every(*args) if each.inference_type == GUMBEL]

    monkeypatch.setattr(verify_, "_policies", alone)


# Right


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ALL)
def test_right_rankings_pass(kind: str) -> None:
    """By every inference type that takes such rules."""
    rules = fr.Rules(**ALL[kind])
    params = {"budget": 100.0} if "budget" in rules.names else None
    # 200 rankings under rules for each type: `Wrong` below shows what 500 and more reject; whether
    # draws have their laws is what test_rules_laws.py asks.
    verdict = verify_catalog(make_catalog(), [QUERY], draws=400, rules=[rules], params=params)
    assert verdict.passed, verdict.failures
    under = [check for check in verdict.checks if check.rules == rules]
    names = {check.name for check in under}
    assert {"sets", "places", "propensities", "same seed"} <= names
    n_tests = sum(check.p_value is not None for check in verdict.checks)
    assert verdict.p_limit == FALSE_ALARM / n_tests
    softmax = {"decay", "boost", "together"} & {kind}
    types = {check.policy.inference_type for check in under if check.policy}
    assert ("deterministic" in types) != bool(softmax)


@pytest.mark.slow
@pytest.mark.usefixtures("gumbel_alone")
def test_many_items_are_looked_at_in_part() -> None:
    """And a list of a thousand pins and shares is not enumerated."""
    catalog = make_catalog(12_000, text_ids=False)
    rules = fr.Rules(cap={"brand": 4}, at_least={"new": 9}, pin={5: int(catalog.item_ids[7])})
    verdict = verify_catalog(catalog, [QUERY], draws=1000, rules=[rules])
    assert verdict.passed, verdict.failures
    under = [check for check in verdict.checks if check.rules is not None]
    assert "rankings" not in {check.name for check in under}
    assert any("of 10000 items" in c.detail or "of 10001" in c.detail for c in under)


@pytest.mark.usefixtures("gumbel_alone")
def test_catalogs_that_are_stored_by_a_prior() -> None:
    """Their items stand elsewhere than their rows say."""
    catalog = make_catalog()
    assert catalog.features is not None
    columns = {
        name: catalog.features.entries(name, np.arange(N_ITEMS))
        for name in ("seller", "brand", "genres", "new", "size", "price")
    }
    vectors = np.random.default_rng(3).standard_normal((N_ITEMS, 6))
    prior = np.random.default_rng(5).standard_normal(N_ITEMS)
    stored = fr.Catalog(catalog.item_ids, vectors, prior=prior, features=columns)
    rules = fr.Rules(**ALL["pin"], at_least={"price > 60": 2}, where="size < 2")
    verdict = verify_catalog(stored, [QUERY], draws=1000, rules=[rules])
    assert verdict.passed, verdict.failures


def test_the_few_items_are_such_that_rules_matter() -> None:
    for kind, content in ALL.items():
        rules = fr.Rules(**content)
        params = {"budget": 100.0} if "budget" in rules.names else {}
        (ruled,) = _all_ruled(make_catalog(), QUERY, [rules], params)
        items, k = ruled.few(np.random.default_rng(0))
        eligible, masks = ruled.oracle(items)
        allowed = [masks.left(list(prefix), k, eligible)[0] for prefix in ((), (0,), (0, 1))]
        plain = [eligible & ~np.isin(np.arange(len(items)), range(j)) for j in range(3)]
        changed = any((a != b).any() for a, b in zip(allowed, plain, strict=True))
        decayed = bool(masks.left([0, 1], k, eligible)[1].any())
        bites = changed or decayed or kind in ("where", "boost")
        assert bites, kind
        assert kind != "where" or not eligible.all()


def test_without_policies_that_take_them() -> None:
    with pytest.raises(ValueError, match="no column 'shop'"):
        verify_catalog(make_catalog(), [QUERY], draws=1000, rules=[fr.Rules(cap={"shop": 1})])
    with pytest.raises(ValueError, match="params: 'x' is not a parameter of the rules"):
        verify_catalog(
            make_catalog(), [QUERY], draws=1000, rules=[fr.Rules(cap={"new": 1})], params={"x": 1}
        )


# Wrong


@pytest.mark.slow
@pytest.mark.usefixtures("gumbel_alone")
def test_a_walk_that_forgets_what_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that a window kept back never comes again."""
    monkeypatch.setattr(walk._Draw, "waiting_for", lambda *_: {})
    verdict = judged(fr.Rules(**ALL["window"]), draws=2000)  # p = 8e-51 where 6e-8 is enough
    assert {"places", "rankings"} & failed_names(verdict)


@pytest.mark.slow
@pytest.mark.usefixtures("gumbel_alone")
def test_lists_drawn_again_until_they_obey() -> None:
    """With propensities that would be right for lists drawn by rules."""
    catalog = make_catalog()
    assert catalog.features is not None
    every = catalog.features.entries("brand", np.arange(N_ITEMS))
    brands = dict(zip(catalog.item_ids, every, strict=True))

    def rank(true: fr.Catalog, *args: Any, seed: int, **kwargs: Any) -> fr.Ranking:
        ruled = true.rank(*args, seed=seed, **kwargs)
        rules, _ = kwargs.pop("rules", None), kwargs.pop("params", None)
        law = kwargs["policy"].inference_type
        if rules is None or "allow" not in kwargs or law != GUMBEL:
            return ruled
        for attempt in range(100):
            plain = true.rank(*args, seed=seed * 100 + attempt, **kwargs)
            shown = [brands[each] for each in plain.item_ids]
            if len(set(shown)) == len(shown):
                break
        else:
            return ruled
        lp = true.log_propensities(
            args[0], plain.item_ids, policy=kwargs["policy"], rules=rules, allow=kwargs["allow"]
        )
        return dataclasses.replace(ruled, item_ids=plain.item_ids, log_propensities=lp)

    verdict = judged(fr.Rules(cap={"brand": 1}), draws=2000, rank=rank)  # p = 2e-34
    assert {"places", "rankings"} & failed_names(verdict)


@pytest.mark.usefixtures("gumbel_alone")
def test_propensities_that_do_not_know_of_the_cap() -> None:
    """Everywhere the formula's, so that they agree with each other."""

    def formula(true: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
        return true.log_propensities(*args, **without_rules(kwargs))

    def formulas(true: fr.Catalog, *args: Any, **kwargs: Any) -> Any:
        return true.log_propensities_batch(*args, **without_rules(kwargs))

    def rank(true: fr.Catalog, query: Any, k: int, **kwargs: Any) -> fr.Ranking:
        ranking = true.rank(query, k, **kwargs)
        if ranking.rules is None:
            return ranking
        given = {name: kwargs[name] for name in ("allow", "after") if name in kwargs}
        lp = formula(true, query, ranking.item_ids, policy=kwargs["policy"], **given)
        return dataclasses.replace(ranking, log_propensities=lp, log_propensity=float(lp.sum()))

    verdict = judged(
        fr.Rules(cap={"brand": 1}),
        rank=rank,
        log_propensities=formula,
        log_propensities_batch=formulas,
    )
    assert {"propensities", "sum"} <= failed_names(verdict)
    assert not {"places", "rankings"} & failed_names(verdict)


def without_rules(call: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in call.items() if name not in ("rules", "params", "k")}


@pytest.mark.usefixtures("gumbel_alone")
@pytest.mark.parametrize("forgotten", ["window", "where", "pin", "at_least"])
def test_a_rule_that_is_forgotten(forgotten: str) -> None:
    def rank(true: fr.Catalog, *args: Any, **kwargs: Any) -> fr.Ranking:
        rules = kwargs.get("rules")
        if rules is not None:
            content = {name: each for name, each in rules.to_dict().items() if name != forgotten}
            kwargs["rules"] = fr.Rules.from_dict(content)
            params = kwargs["params"]
            kwargs["params"] = {n: v for n, v in params.items() if n in kwargs["rules"].names}
        return true.rank(*args, **kwargs)

    rules = fr.Rules(**{"cap": {"seller": 2}, **ALL[forgotten]})
    verdict = judged(rules, draws=1000, rank=rank)
    assert failed_names(verdict)
    assert any("rules do not allow" in c.detail or "not of" in c.detail for c in verdict.failures)


@pytest.mark.usefixtures("gumbel_alone")
def test_pages_that_are_forgotten() -> None:
    def rank(true: fr.Catalog, *args: Any, **kwargs: Any) -> fr.Ranking:
        kwargs.pop("after", None)
        return true.rank(*args, **kwargs)

    verdict = judged(fr.Rules(cap={"seller": 2}), draws=1000, rank=rank)
    assert failed_names(verdict) == {"propensities"}
    assert any("page 2" in check.detail for check in verdict.failures)


@pytest.mark.usefixtures("gumbel_alone")
def test_lists_that_end_too_early() -> None:
    def rank(true: fr.Catalog, query: Any, k: int, **kwargs: Any) -> fr.Ranking:
        ranking = true.rank(query, k, **kwargs)
        if ranking.rules is None:
            return ranking
        return dataclasses.replace(
            ranking,
            item_ids=ranking.item_ids[:-1],
            log_propensities=ranking.log_propensities[:-1],
            scores=ranking.scores[:-1],
        )

    verdict = judged(fr.Rules(cap={"seller": 2}), draws=1000, rank=rank)
    assert any("ends where items are allowed" in check.detail for check in verdict.failures)


@pytest.mark.usefixtures("gumbel_alone")
def test_an_expression_that_is_read_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrank.expressions import Expression

    true = Expression.holds

    def holds(own: Expression, *args: Any) -> Any:
        return ~true(own, *args) if own.text == "price > 80" else true(own, *args)

    monkeypatch.setattr(Expression, "holds", holds)
    assert failed_names(judged(fr.Rules(**ALL["pin_where"]), draws=1000)) == {"sets"}


# The command


@pytest.mark.usefixtures("gumbel_alone")
class TestCommand:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        fr.Model(make_catalog(), np.arange(3), np.stack([QUERY] * 3)).save(tmp_path / "model")
        return tmp_path / "model"

    def run(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, ["verify", *map(str, arguments)], prog_name="fastrank")

    @pytest.mark.slow
    def test_two_files(self, model: Path, tmp_path: Path) -> None:
        one, two = tmp_path / "one.json", tmp_path / "two.json"
        one.write_text(json.dumps(fr.Rules(**ALL["where"], cap={"seller": 2}).to_dict()))
        two.write_text(json.dumps(fr.Rules(**ALL["pin"]).to_dict()))
        given = ["--draws", 1000, "--rules", one, "--rules", two, "--param", "budget=100"]
        result = self.run(model, *given)
        assert result.exit_code == 0, result.output
        assert result.stdout.count("Under ") == 2
        assert "PASSED" in result.stdout
        record = json.loads(self.run(model, *given, "--json").stdout)
        said = {json.dumps(check["rules"]) for check in record["checks"]}
        assert len(said) == 3  # one of them null

    def test_json_itself(self, model: Path) -> None:
        result = self.run(model, "--draws", 1000, "--rules", '{"cap": {"seller": 1}}')
        assert result.exit_code == 0, result.output
        result = self.run(model, "--rules", '{"cap": {"shop": 1}}')
        assert result.exit_code == 2
        assert '--rules: {"cap": {"shop": 1}}: cap: there is no column \'shop\'' in result.stderr

    @pytest.mark.slow
    def test_a_fault_names_the_file(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(walk._Draw, "waiting_for", lambda *_: {})
        file = tmp_path / "apart.json"
        file.write_text(json.dumps(fr.Rules(**ALL["window"]).to_dict()))
        result = self.run(model, "--draws", 2000, "--rules", file)
        assert result.exit_code == 1, result.output
        said = " ".join(result.stdout.split())
        assert "FAILED" in said
        assert "apart.json places:" in said or "apart.json rankings:" in said

    @pytest.mark.parametrize(
        ("content", "more", "said"),
        [
            ("{", [], "not JSON"),
            ('{"caps": {}}', [], "there is no 'caps'"),
            ('{"cap": {"shop": 1}}', [], "rules.json: cap: there is no column"),
            ('{"where": "price < budget"}', [], "budget"),
            ('{"cap": {"seller": 1}}', ["--param", "budget=3"], "budget"),
        ],
    )
    def test_bad_input_is_a_line(
        self, model: Path, tmp_path: Path, content: str, more: list[str], said: str
    ) -> None:
        file = tmp_path / "rules.json"
        file.write_text(content)
        result = self.run(model, "--draws", 1000, "--rules", file, *more)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert "Traceback" not in result.stderr

    def test_parameters_need_rules(self, model: Path) -> None:
        result = self.run(model, "--param", "budget=3")
        assert result.exit_code == 2
        assert "--rules" in result.stderr

    def test_python(self, model: Path) -> None:
        assert verify(model, draws=1000, rules=[fr.Rules(cap={"seller": 1})]).passed
