"""Rules in logs: rows say which acted, audits and evaluations rank by them, or by others."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("pyarrow")
pytest.importorskip("click")
pytest.importorskip("rich")
import pyarrow as pa
import pyarrow.parquet as pq
from commands import refused, run
from logs import NOON, drain

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogReader, LogWriter, join, schema
from fastrank.rules import AppliedRules

N, USERS, K = 40, 6, 5
SOFT = fr.PlackettLuce(0.8)
RNG = np.random.default_rng(4)
VECTORS, QUERIES = RNG.standard_normal((N, 3)), RNG.standard_normal((USERS, 3))


def columns(n: int = N) -> dict[str, Any]:
    return {
        "seller": [f"s{i % 5}" for i in range(n)],
        "tags": [[f"t{i % 3}", f"t{3 + i % 2}"] for i in range(n)],
        "price": np.arange(n).astype(float),
        "new": np.arange(n) % 4 == 0,
    }


def some_model(text: bool = False, prior: bool = False) -> fr.Model:
    ids: Any = [f"item {i}" for i in range(N)] if text else np.arange(N)
    likely = RNG.random(N) if prior else None
    catalog = fr.Catalog(ids, VECTORS, features=columns(), prior=likely)
    return fr.Model(catalog, [f"u{i}" for i in range(USERS)], QUERIES)


# One of each kind, and some together; with parameters where they have any.
KINDS: dict[str, tuple[fr.Rules, dict[str, Any]]] = {
    "where": (fr.Rules(where="price < budget"), {"budget": 30.0}),
    "boost": (fr.Rules(boost={"new": 3.0}, boost_score={"price > 20": 0.5}), {}),
    "cap": (fr.Rules(cap={"seller": 2, "tags": 3}), {}),
    "window": (fr.Rules(window={"seller": (1, 3)}), {}),
    "at_least": (fr.Rules(at_least={"new == flag": 2}), {"flag": True}),
    "decay": (fr.Rules(decay={"seller": 0.5, "tags": 0.7}), {}),
    "pin": (fr.Rules(pin={2: 7}), {}),
    "pin_where": (fr.Rules(pin_where={1: "seller == who"}), {"who": "s3"}),
    "short": (fr.Rules(cap={"seller": 1}, where="seller != 's0'"), {}),
    "relax": (fr.Rules(cap={"seller": 1}, window={"tags": (1, 2)}, on_empty="relax"), {}),
}


def of_text(rules: fr.Rules) -> fr.Rules:
    """The same of a catalog whose ids are text."""
    said = rules.to_dict()
    if "pin" in said:
        said["pin"] = {place: f"item {item}" for place, item in said["pin"].items()}
    return fr.Rules.from_dict(said)


def write(
    folder: Path,
    model: fr.Model,
    calls: Sequence[tuple[fr.Rules | None, dict[str, Any]]],
    rows: int = 120,
    policy: fr.Policy = SOFT,
    has_rewards: bool = True,
) -> None:
    """Two pages a user in turn, under each of the rules in turn."""
    rng = np.random.default_rng(1)
    with LogWriter(folder) as log:
        for i in range(rows // 2):
            user, (rules, params) = f"u{i % USERS}", calls[i % len(calls)]
            page: fr.Ranking | None = None
            for seed in (i, 10_000 + i):
                page = model.recommend(
                    user,
                    K,
                    policy=policy,
                    seed=seed,
                    exclude=model.catalog.item_ids[[i % 3]],
                    rules=rules,
                    params=params or None,
                    after=page,
                )
                rewards = (rng.random(len(page)) < 0.3).astype(float)
                log.append(page, user_id=user, rewards=rewards if has_rewards else None, ts=NOON)


def by_hand(ranking: fr.Ranking, **changes: Any) -> fr.Ranking:
    own = {each.name: getattr(ranking, each.name) for each in fields(ranking)}
    return fr.Ranking(**{**own, **changes})


def check_of(log: LogReader, models: list[Any], name: str = "propensities") -> ope.Check:
    (found,) = (each for each in ope.audit(log, models).checks if each.name == name)
    return found


# ---- Rows --------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [False, True], ids=["int64", "str"])
def test_a_row_says_its_rules(kind: str, text: bool, tmp_path: Path) -> None:
    """And a reader gives them back; an audit ranks by them, from the log and from its join."""
    rules, params = KINDS[kind]
    rules = of_text(rules) if text else rules
    model = some_model(text)
    write(tmp_path / "log", model, [(rules, params)], rows=24, has_rewards=False)
    files = [each.name for each in (tmp_path / "log" / "filters").iterdir()]
    assert files == [f"{rules.id}.json"]  # of 24 rows, once
    (tmp_path / "rewards.csv").write_text("request_id,item_id,reward,ts\n")
    join(
        tmp_path / "log",
        tmp_path / "rewards.csv",
        tmp_path / "joined",
        window="1h",
        as_of="2026-01-02T00:00:00Z",
        kind="positives",
    )
    for folder in (tmp_path / "log", tmp_path / "joined"):
        log = LogReader(folder)
        (batch,) = log
        assert log.report.set_aside == {}
        assert len(batch) == 24
        for i in range(24):
            assert batch.rules(i) == AppliedRules(rules, params)
            after = batch.after(i)
            if i % 2:
                before = batch.item_ids[i - 1, : batch.lengths[i - 1]]
                assert after is not None
                assert after.dtype.kind == before.dtype.kind
                np.testing.assert_array_equal(after, before)
            else:
                assert after is None
        assert set(batch.is_sequential) == {rules.is_sequential}
        assert batch.has_rules.all()
        assert check_of(log, [model]).message.startswith("24 sampled rows have")
        assert check_of(log, [model], "seeds draw").outcome == "passed"


def test_a_batch_says_them_too(tmp_path: Path) -> None:
    model = some_model()
    rules = [each for each, params in KINDS.values() if not params]
    found = model.catalog.rank_batch(
        QUERIES,
        K,
        policy=fr.PlackettLuce(),
        seeds=range(USERS),
        rules=rules[:USERS],
        after=[None, [1, 2], *[None] * 4],
    )
    with LogWriter(tmp_path) as log:
        log.append_batch(found, user_ids=[f"u{i}" for i in range(USERS)], queries=QUERIES)
    (batch,) = LogReader(tmp_path)
    assert [batch.rules(i) for i in range(USERS)] == [AppliedRules(r, {}) for r in rules[:USERS]]
    after = batch.after(1)
    assert after is not None
    assert after.tolist() == [1, 2]
    assert check_of(LogReader(tmp_path), [model.catalog]).outcome == "passed"


def test_a_next_page_without_rules(tmp_path: Path) -> None:
    model = some_model()
    write(tmp_path, model, [(None, {})], rows=20)
    assert not (tmp_path / "filters").exists()
    rows, _ = drain(tmp_path)
    assert [row["rules"] for row in rows] == [None] * 20
    assert [row["after"] is None for row in rows] == [True, False] * 10
    assert check_of(LogReader(tmp_path), [model]).message.startswith("20 sampled rows have")
    (batch,) = LogReader(tmp_path)
    assert batch.has_rules.tolist() == [False, True] * 10
    assert not batch.is_sequential.any()


def test_rules_stand_on_the_disk_before_their_rows(tmp_path: Path) -> None:
    """Each flush writes what its own rows name again, should it have been removed."""
    model = some_model()
    rules, _ = KINDS["cap"]
    ranking = model.recommend("u1", K, policy=fr.PlackettLuce(), seed=1, rules=rules)
    with LogWriter(tmp_path) as log:
        for _ in range(2):
            log.append(ranking, user_id="u1")
            assert log.flush()
            (file,) = (tmp_path / "filters").iterdir()
            assert fr.Rules.from_dict(json.loads(file.read_text())) == rules
            file.unlink()
    assert LogReader(tmp_path).survey()[0] == 2


PARAMS_OF_NONE: Any = fr.Rules(where="price < x"), {"x": [1]}


@pytest.mark.parametrize(("changes", "named"), [
    ({"rules": ("cap", {})}, "rules: expected AppliedRules"),
    ({"rules": (fr.Rules(where="price < x"), {"x": 1.0})}, "rules: expected AppliedRules"),
    ({"rules": AppliedRules(*PARAMS_OF_NONE)}, r"rules: params\['x'\]"),
    ({"after": ["a"]}, "after: the item ids are int64"),
])  # fmt: skip
def test_what_is_none_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    ranking = some_model().recommend("u1", K, policy=fr.PlackettLuce(), seed=1)
    with LogWriter(tmp_path) as log:
        with pytest.raises(ValueError, match=named):
            log.append(by_hand(ranking, **changes))
        log.append(ranking)


# ---- What is not believed ----------------------------------------------------------------------


def set_to(text: str | None) -> Callable[[Path], object]:
    return lambda file: file.unlink() if text is None else file.write_text(text)


@pytest.mark.parametrize(("spoil", "why"), [
    (set_to(None), "is missing"),
    (set_to(""), "not readable"),
    (set_to("[" * 100_000), "not readable"),
    (set_to('{"cap": {"seller": 3, "tags": 3}}'), "does not match its hash"),
    (set_to('{"cap": {"seller": -1}}'), "not readable"),
    (set_to('{"later": 1}'), "not readable"),
    (set_to("[]"), "not readable"),
])  # fmt: skip
def test_damaged_rules(spoil: Callable[[Path], object], why: str, tmp_path: Path) -> None:
    """Rows that name them are set aside, all others stay."""
    model = some_model()
    write(tmp_path, model, [KINDS["cap"], KINDS["window"]], rows=40)
    spoil(tmp_path / "filters" / f"{KINDS['cap'][0].id}.json")
    rows, log = drain(tmp_path)
    assert log.report.set_aside == {"rules not at hand": 20}
    assert {row["rules"]["id"] for row in rows} == {KINDS["window"][0].id}
    assert why in log.report.places["rules not at hand"][0][2]


@pytest.mark.parametrize(("changes", "reason"), [
    ({"rules": {"id": None, "params": "{}"}}, "rules not at hand"),
    ({"rules": {"id": "", "params": "{}"}}, "rules not at hand"),
    ({"rules": {"id": "../secret", "params": "{}"}}, "rules not at hand"),
    ({"params": "{"}, "params of rules"),
    ({"params": "[1]"}, "params of rules"),
    ({"params": '{"x": [1]}'}, "params of rules"),
    ({"params": '{"x": NaN}'}, "params of rules"),
    ({"params": "[" * 100_000}, "params of rules"),
    ({"after": [1, None]}, "after: null id"),
])  # fmt: skip
def test_rows_that_say_what_cannot_be(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rules, params = KINDS["where"]
    write(tmp_path, some_model(), [(rules, params)], rows=6)
    (file,) = tmp_path.glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    if "params" in changes:
        rows[2]["rules"] = {"id": rules.id, "params": changes["params"]}
    else:
        rows[2] |= changes
    pq.write_table(pa.Table.from_pylist(rows, schema("int64")), file)
    kept, log = drain(tmp_path)
    assert log.report.set_aside == {reason: 1}
    assert len(kept) == 5


def test_a_list_may_end_early_by_its_rules_alone(tmp_path: Path) -> None:
    """Where rules cannot end it, it was cut on the way."""
    model = some_model()
    can = ["cap", "window", "at_least", "pin_where", "short"]
    for name, (rules, params) in KINDS.items():
        folder = tmp_path / name
        drawn = model.recommend(
            "u1", K, policy=fr.PlackettLuce(), seed=1, rules=rules, params=params or None
        )
        cut = by_hand(
            drawn,
            item_ids=drawn.item_ids[:2],
            scores=drawn.scores[:2],
            log_propensities=drawn.log_propensities[:2],
            log_propensity=float(drawn.log_propensities[:2].sum()),
        )
        with LogWriter(folder) as log:
            log.append(cut, user_id="u1")
        _, reader = drain(folder)
        assert reader.report.set_aside == ({} if name in can else {"fewer items than k": 1}), name
        if name in can:  # the seed knows how long it was
            assert check_of(LogReader(folder), [model], "seeds draw").failures == 1


def test_the_rules_of_a_row_are_always_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="omit: expected any of"):
        LogReader.of_tables([], omit=["rules"])


def test_rows_that_differ_in_their_rules_contradict_each_other(tmp_path: Path) -> None:
    model = some_model()
    rules, params = KINDS["where"]
    ranking = model.recommend(
        "u1", K, policy=fr.PlackettLuce(), seed=1, rules=rules, params=params, after=[1, 2]
    )
    others = [
        by_hand(ranking),
        by_hand(ranking, rules=None),
        by_hand(ranking, rules=AppliedRules(rules, {"budget": 31.0})),
        by_hand(ranking, rules=AppliedRules(KINDS["cap"][0], {})),
        by_hand(ranking, after=[2, 1]),
        by_hand(ranking, after=[1]),
    ]
    with LogWriter(tmp_path) as log:
        for each in (ranking, *others):
            log.append(each, request_id="r", user_id="u1")
    _, reader = drain(tmp_path)
    assert reader.report.equal_duplicates == 1
    assert reader.report.rows_set_aside == len(others) - 1


# ---- Audits ------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("policy", [
    fr.PlackettLuce(0.8), fr.BestFirst(2, fr.PlackettLuce(0.8)), fr.EpsilonGreedy(0.3),
    fr.Uniform(), fr.Deterministic(),
])  # fmt: skip
def test_audits_of_all_laws(policy: fr.Policy, tmp_path: Path) -> None:
    model = some_model(prior=True)
    calls = [KINDS[name] for name in ("cap", "window", "at_least", "pin", "pin_where", "where")]
    write(tmp_path, model, calls, rows=60, policy=policy)
    log = LogReader(tmp_path)
    assert check_of(log, [model]).message.startswith("60 sampled rows have")
    assert check_of(log, [model], "seeds draw").outcome == "passed"
    if isinstance(policy, fr.PlackettLuce):  # of rules that are no more than filters
        assert check_of(log, [model], "first place").rows == 10


def test_an_audit_of_flat_tails(tmp_path: Path) -> None:
    model = some_model()
    write(tmp_path, model, [KINDS["cap"], KINDS["where"]], 40, fr.FlatTail(0.8, m=10))
    log = LogReader(tmp_path)
    assert check_of(log, [model]).message.startswith("40 sampled rows have")
    assert check_of(log, [model], "flat tails").rows == 20  # of the others nothing else can tell


def test_rules_that_act_on_a_finished_ranking_are_found(tmp_path: Path) -> None:
    """The broken logger: ranks without rules, drops what the cap forbids, logs what it drew by."""
    model = some_model()
    seller = columns()["seller"]
    rules = fr.Rules(cap={"seller": 1})
    broken = 0
    with LogWriter(tmp_path) as log:
        for seed in range(200):
            drawn = model.recommend("u1", N, policy=fr.PlackettLuce(0.8), seed=seed)
            kept: list[int] = []
            for place, item in enumerate(drawn.item_ids.tolist()):
                if len(kept) < 3 and seller[item] not in {
                    seller[drawn.item_ids[other]] for other in kept
                }:
                    kept.append(place)
            lie = by_hand(
                drawn,
                item_ids=drawn.item_ids[kept],
                scores=drawn.scores[kept],
                log_propensities=drawn.log_propensities[kept],
                log_propensity=float(drawn.log_propensities[kept].sum()),
                k=3,
                rules=AppliedRules(rules, {}),
                features_version=model.catalog.features_version,
            )
            right = model.catalog.log_propensities(
                QUERIES[1], lie.item_ids, policy=drawn.policy, rules=rules
            )
            broken += bool(np.abs(right - lie.log_propensities).max() > 1e-5)
            log.append(lie, user_id="u1")
    assert broken > 100
    found = check_of(LogReader(tmp_path), [model])
    assert (found.outcome, found.rows, found.failures) == ("failed", 200, broken)


def test_a_false_word_about_rules_is_found(tmp_path: Path) -> None:
    model = some_model()
    true = AppliedRules(*KINDS["cap"])
    lies: list[dict[str, Any]] = [
        {"rules": AppliedRules(fr.Rules(cap={"seller": 1}), {})},
        {"rules": AppliedRules(*KINDS["where"])},
        {"rules": AppliedRules(fr.Rules(cap={"size": 1}), {})},  # there is no such column
        {"rules": AppliedRules(fr.Rules(where="price < limit"), {})},  # no such parameter
        {"after": [39, 38, 37, 36, 35]},
    ]
    for i, lie in enumerate(lies):
        with LogWriter(tmp_path / str(i)) as log:
            for seed in range(20):
                drawn = model.recommend(
                    "u1", K, policy=fr.PlackettLuce(0.8), seed=seed, rules=true.rules
                )
                log.append(by_hand(drawn, **lie), user_id="u1")
        found = check_of(LogReader(tmp_path / str(i)), [model])
        assert (found.outcome, found.rows) == ("failed", 20), lie
        assert found.failures > 10


def test_other_columns_are_not_judged(tmp_path: Path) -> None:
    model = some_model()
    write(tmp_path, model, [KINDS["cap"], (fr.Rules(pin={1: 3}), {})], rows=40)
    other = model.with_features(columns() | {"price": np.zeros(N)})
    found = check_of(LogReader(tmp_path), [other])
    assert found.message == (
        "20 sampled rows have the propensities that the model gives; 20 not judged: features of"
        " another version"
    )
    assert check_of(LogReader(tmp_path), [other, model]).message.startswith("40 sampled rows have")


def test_a_score_without_columns_beside_rules_with_some(tmp_path: Path) -> None:
    """The version is of the rules' columns; parameters are shared by what names them."""
    model = some_model().with_score("w * dot", {"w": 1.5})
    rules = fr.Rules(where="price < w * 20", cap={"seller": 2})
    write(tmp_path, model, [(rules, {"w": 1.25})], rows=20)
    log = LogReader(tmp_path)
    assert check_of(log, [model]).message.startswith("20 sampled rows have")
    found = ope.evaluate(log, [ope.ByModel("same", fr.PlackettLuce(0.8), model)], logging=[model])
    assert found.policies[0].estimates["ips"].value == pytest.approx(found.logged.value)


# ---- Evaluations -------------------------------------------------------------------------------

# A world so small that its log can hold every ranking once, weighed by its probability: what an
# unbiased estimator makes of it is the truth itself.
SMALL, PLACES = 7, 3
RATES = np.random.default_rng(8).uniform(0.1, 0.9, (SMALL, PLACES))
QUERY = np.array([1.0])


def small_catalog() -> fr.Catalog:
    vectors = np.linspace(1.0, -1.0, SMALL)[:, None]
    return fr.Catalog(np.arange(SMALL), vectors, features=columns(SMALL) | {
        "seller": [*"aabbccd"], "new": [True, False] * 3 + [True],
    })  # fmt: skip


def rankings(places: int = PLACES) -> Iterator[list[int]]:
    for order in itertools.permutations(range(SMALL), places):
        yield [*order]


def truth(catalog: fr.Catalog, policy: fr.Policy, **call: Any) -> float:
    """What a policy earns, over all of its rankings, none of which is short."""
    value = total = 0.0
    for order in rankings():
        p = np.exp(catalog.log_propensities(QUERY, order, policy=policy, **call).sum())
        value += p * RATES[order, range(PLACES)].sum()
        total += p
    assert total == pytest.approx(1.0)
    return float(value)


def whole_log(folder: Path, catalog: fr.Catalog, policy: fr.Policy, **call: Any) -> LogReader:
    weights = []
    with LogWriter(folder / "drawn") as log:
        drawn = catalog.rank(QUERY, PLACES, policy=policy, seed=1, **call)
        for i, order in enumerate(rankings()):
            lp = catalog.log_propensities(QUERY, order, policy=policy, **call)
            if np.isneginf(lp).any():
                continue
            weights.append(float(np.exp(lp.sum())))
            log.append(
                by_hand(
                    drawn,
                    item_ids=np.array(order),
                    scores=np.zeros(PLACES, np.float32),
                    log_propensities=lp,
                    log_propensity=float(lp.sum()),
                ),
                request_id=f"r{i}",
                user_id=f"u{i}",
                query=QUERY,
                rewards=RATES[order, range(PLACES)],
            )
    assert sum(weights) == pytest.approx(1.0)
    (file,) = (folder / "drawn").glob("*.parquet")
    table = pq.read_table(file)
    at = table.schema.get_field_index("row_weight")
    table = table.set_column(at, "row_weight", pa.array(weights))
    (folder / "weighed").mkdir()
    pq.write_table(table, folder / "weighed" / "all.parquet")
    if (folder / "drawn" / "filters").exists():
        shutil.copytree(folder / "drawn" / "filters", folder / "weighed" / "filters")
    return LogReader(folder / "weighed")


WARM, COLD = fr.PlackettLuce(0.9), fr.PlackettLuce(0.6)
LAX = fr.Rules(cap={"seller": 2})
# A log without rules covers them all.
STRICTER: dict[str, fr.Rules] = {
    "cap": fr.Rules(cap={"seller": 1}),
    "window": fr.Rules(window={"seller": (1, 2)}, cap={"seller": 2}),
    "share": fr.Rules(at_least={"new": 2}),
    "decay": fr.Rules(decay={"seller": 0.3}),
    "pin": fr.Rules(pin={2: 5}),
    "pin_where": fr.Rules(pin_where={1: "new"}),
    "where": fr.Rules(where="price > 0"),
    "boost": fr.Rules(boost={"new": 4.0}),
    "none": fr.Rules(),
}


@cache
def truth_under(name: str, policy: fr.Policy) -> float:
    return truth(small_catalog(), policy, rules=STRICTER[name])


@pytest.fixture(scope="module")
def plain_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the log without rules, which holds every ranking."""
    folder = tmp_path_factory.mktemp("plain")
    whole_log(folder, small_catalog(), WARM)
    return folder / "weighed"


@pytest.mark.sampled
@pytest.mark.parametrize("name", STRICTER)
@pytest.mark.parametrize("policy", [COLD, fr.BestFirst(1, COLD)], ids=["draws", "best first"])
def test_other_rules_are_an_evaluation_policy_like_any(
    name: str, policy: fr.Policy, plain_log: Path
) -> None:
    catalog, rules, log = small_catalog(), STRICTER[name], LogReader(plain_log)
    asked = [ope.ByModel(name, policy, catalog, rules=rules)]
    found = ope.evaluate(log, asked, logging=[catalog])
    right = truth_under(name, policy)
    (of_policy,) = found.policies
    for estimator in ("ips", "snips", "rips", "snrips"):
        assert of_policy.estimates[estimator].value == pytest.approx(right, rel=1e-6), estimator
    assert of_policy.uncovered == 0.0
    words = "without rules" if name == "none" else f"rules {rules.id[:12]}"
    assert words in of_policy.description


@pytest.mark.sampled
@pytest.mark.parametrize("name", STRICTER)
def test_a_policy_is_asked_about_under_the_rows_own_rules(name: str, tmp_path: Path) -> None:
    catalog, rules = small_catalog(), STRICTER[name]
    log = whole_log(tmp_path, catalog, WARM, rules=rules)
    found = ope.evaluate(log, [ope.ByModel("cold", COLD, catalog)], logging=[catalog])
    right = truth(catalog, COLD, rules=rules)
    (policy,) = found.policies
    for estimator in ("ips", "snips", "rips", "snrips"):
        assert policy.estimates[estimator].value == pytest.approx(right, rel=1e-6), estimator
    assert policy.uncovered == 0.0


def test_stricter_rules_than_the_logs(tmp_path: Path) -> None:
    catalog = small_catalog()
    log = whole_log(tmp_path, catalog, WARM, rules=LAX)
    strict = fr.Rules(cap={"seller": 1}, pin={3: 6})
    found = ope.evaluate(log, [ope.ByModel("strict", COLD, catalog, rules=strict)])
    (policy,) = found.policies
    right = truth(catalog, COLD, rules=strict)
    assert policy.estimates["ips"].value == pytest.approx(right, rel=1e-6)
    assert policy.uncovered == 0.0


LAXER = [
    (fr.Rules(cap={"seller": 1}), fr.Rules(), WARM, COLD),
    (fr.Rules(cap={"seller": 1}), fr.Rules(cap={"seller": 2}), WARM, COLD),
    (fr.Rules(where="price > 2"), fr.Rules(), WARM, COLD),
    (fr.Rules(pin={1: 4}), fr.Rules(), WARM, COLD),
    (fr.Rules(pin_where={1: "new"}), fr.Rules(pin_where={1: "not new"}), WARM, COLD),
    (fr.Rules(at_least={"new": 2}), fr.Rules(at_least={"new": 1}), WARM, COLD),
    # The log was certain at a place that the policy hardly leaves; it leaves the rules at others.
    (fr.Rules(pin={1: 0}, cap={"seller": 1}), fr.Rules(), WARM, fr.PlackettLuce(0.07)),
    (fr.Rules(cap={"seller": 1}), fr.Rules(), fr.BestFirst(1, WARM), fr.PlackettLuce(0.07)),
    (fr.Rules(cap={"seller": 1}, pin={2: 5}), fr.Rules(pin={2: 5}), WARM, COLD),
    # It had but one item left at its last place, or at none: by what it had shown.
    (fr.Rules(cap={"seller": 1}, where="seller in ('a', 'b', 'd')"), fr.Rules(), WARM, COLD),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("logged", "asked", "warm", "cold"), LAXER)
def test_laxer_rules_are_uncovered(
    logged: fr.Rules, asked: fr.Rules, warm: fr.Policy, cold: fr.Policy, tmp_path: Path
) -> None:
    """What the log's own rules barred no row shows, and a mean weight may hide."""
    catalog = small_catalog()
    with LogWriter(tmp_path) as log:
        for seed in range(400):
            drawn = catalog.rank(QUERY, PLACES, policy=warm, seed=seed, rules=logged)
            log.append(
                drawn,
                request_id=f"r{seed}",
                user_id=f"u{seed}",
                query=QUERY,
                rewards=np.ones(len(drawn)),
            )
    beyond = sum(
        np.exp(catalog.log_propensities(QUERY, order, policy=cold, rules=asked).sum())
        for order in rankings()
        if np.isneginf(catalog.log_propensities(QUERY, order, policy=warm, rules=logged)).any()
    )
    assert beyond > 0.02
    lax = ope.ByModel("lax", cold, catalog, rules=asked)
    (policy,) = ope.evaluate(LogReader(tmp_path), [lax]).policies
    assert policy.status == "unsupported"
    assert "uncovered" in policy.reasons
    assert policy.uncovered == pytest.approx(beyond, abs=0.1)  # by one draw a row, or exactly
    (same,) = ope.evaluate(LogReader(tmp_path), [ope.ByModel("same", warm, catalog)]).policies
    assert same.uncovered == 0.0
    assert same.estimates["ips"].value == pytest.approx(same.estimates["avg"].value)


def test_places_that_the_logs_rules_never_filled_are_uncovered(tmp_path: Path) -> None:
    """Weights cannot tell: each list that was shown is the beginning of one of the policy's."""
    catalog = small_catalog()
    rules = fr.Rules(cap={"seller": 1}, where="seller != 'd' and seller != 'c'")
    with LogWriter(tmp_path) as log:
        for seed in range(300):
            drawn = catalog.rank(QUERY, PLACES, policy=WARM, seed=seed, rules=rules)
            assert len(drawn) == 2
            log.append(drawn, user_id=f"u{seed}", query=QUERY, rewards=[0.0, 1.0])
    wider = fr.Rules(cap={"seller": 2}, where=rules.where)
    asked = [
        ope.ByModel("own", WARM, catalog),
        ope.ByModel("wider", WARM, catalog, rules=wider),
    ]
    own, other = ope.evaluate(LogReader(tmp_path), asked).policies
    assert own.uncovered == 0.0
    assert own.estimates["ips"].value == pytest.approx(1.0)
    assert other.uncovered == pytest.approx(1.0)
    assert other.status == "unsupported"


def test_a_list_that_was_certain_and_ended_early_is_not_all_there_is(tmp_path: Path) -> None:
    catalog, best = small_catalog(), fr.Deterministic()
    with LogWriter(tmp_path) as log:
        for i in range(20):
            drawn = catalog.rank(
                QUERY, PLACES, policy=best, rules=fr.Rules(where="new", cap={"new": 1})
            )
            assert drawn.item_ids.tolist() == [0]
            log.append(drawn, user_id=f"u{i}", query=QUERY, rewards=[1.0])
    longer = ope.ByModel("longer", best, catalog, rules=fr.Rules(where="new", cap={"new": 2}))
    (policy,) = ope.evaluate(LogReader(tmp_path), [longer]).policies
    assert policy.uncovered == 1.0
    one = ope.evaluate(LogReader(tmp_path), [longer], places=1).policies[0]
    assert one.uncovered == 0.0


def test_lists_that_end_before_the_logs_are_uncovered(tmp_path: Path) -> None:
    """No row shows so short a page; of the places that it has there are rows."""
    catalog = small_catalog()
    plain = whole_log(tmp_path / "plain", catalog, WARM)
    short = ope.ByModel("short", COLD, catalog, rules=fr.Rules(where="price > 4"))  # two items
    (policy,) = ope.evaluate(plain, [short]).policies
    assert (policy.status, policy.uncovered) == ("unsupported", 1.0)
    (policy,) = ope.evaluate(plain, [short], places=2).policies
    assert policy.uncovered == 0.0
    right = sum(
        np.exp(catalog.log_propensities(QUERY, order, policy=COLD, rules=short.rules).sum())
        * RATES[order, range(2)].sum()
        for order in ([5, 6], [6, 5])
    )
    assert policy.estimates["ips"].value == pytest.approx(right, rel=1e-6)


def test_lists_that_the_logs_rules_end_too_are_covered(tmp_path: Path) -> None:
    """By a cap after two to three of five items; a window besides makes it neither."""
    catalog = small_catalog()
    cap = fr.Rules(cap={"new": 1}, where="new or price == 1 or price == 3")
    with LogWriter(tmp_path) as log:
        for seed in range(200):
            drawn = catalog.rank(QUERY, 5, policy=WARM, seed=seed, rules=cap)
            assert len(drawn) == 3
            log.append(drawn, user_id=f"u{seed}", query=QUERY, rewards=np.ones(3))
    other = fr.Rules(cap={"new": 1}, where="new or price == 1 or price == 3", decay={"new": 0.5})
    shorter = fr.Rules(cap={"new": 1}, where="new or price == 1")
    asked = [
        ope.ByModel(str(i), WARM, catalog, rules=each) for i, each in enumerate([other, shorter])
    ]
    of_other, of_shorter = ope.evaluate(LogReader(tmp_path), asked).policies
    assert of_other.uncovered == 0.0
    assert of_other.estimates["ips"].value == pytest.approx(3.0)
    assert of_shorter.uncovered == 1.0


def test_places_that_nobody_saw_are_not_uncovered(tmp_path: Path) -> None:
    """The rules are about later places than the one that was displayed."""
    catalog = small_catalog()
    with LogWriter(tmp_path) as log:
        for seed in range(100):
            drawn = catalog.rank(
                QUERY, 4, policy=WARM, seed=seed, rules=fr.Rules(at_least={"new": 3})
            )
            log.append(drawn, user_id=f"u{seed}", query=QUERY, displayed=1, rewards=[1, 0, 0, 0])
    asked = [ope.ByModel("none", COLD, catalog, rules=fr.Rules())]
    (policy,) = ope.evaluate(LogReader(tmp_path), asked).policies
    assert policy.uncovered == 0.0


@pytest.mark.slow
def test_what_clipping_cuts_off_is_not_uncovered(tmp_path: Path) -> None:
    catalog = small_catalog()
    logged, asked = fr.Rules(cap={"new": 2}), fr.Rules(pin={2: 6, 3: 4})
    with LogWriter(tmp_path) as log:
        for seed in range(2000):
            drawn = catalog.rank(QUERY, PLACES, policy=WARM, seed=seed, rules=logged)
            log.append(drawn, user_id=f"u{seed}", query=QUERY, rewards=np.ones(PLACES))
    found = ope.evaluate(LogReader(tmp_path), [ope.ByModel("pins", COLD, catalog, rules=asked)])
    (policy,) = found.policies
    clipped = policy.estimates["clipped-ips"].diagnostics
    assert clipped is not None
    assert clipped.mean_weight < 0.7  # weights are far above 20
    new = catalog.log_propensities(QUERY, [0], policy=COLD, rules=asked, k=PLACES)
    new = np.append(new, catalog.log_propensities(QUERY, [2], policy=COLD, rules=asked, k=PLACES))
    assert policy.uncovered == pytest.approx(np.exp(new).sum(), abs=0.06)  # of 2,000 draws


def test_places_asked_for_are_the_rows(tmp_path: Path) -> None:
    """A share of the page is owed by its last places, of which few were displayed."""
    catalog = small_catalog()
    rules = fr.Rules(at_least={"new": 2}, pin={3: 5})
    with LogWriter(tmp_path) as log:
        for seed in range(200):
            drawn = catalog.rank(QUERY, 4, policy=WARM, seed=seed, rules=rules)
            log.append(drawn, user_id=f"u{seed}", query=QUERY, displayed=2, rewards=[0, 1, 0, 0])
    assert check_of(LogReader(tmp_path), [catalog]).outcome == "passed"
    asked = [ope.ByModel("same", WARM, catalog), ope.ByModel("too", WARM, catalog, rules=rules)]
    for places in (None, 1):
        for policy in ope.evaluate(LogReader(tmp_path), asked, places=places).policies:
            diagnostics = policy.estimates["snips"].diagnostics
            assert diagnostics is not None
            assert diagnostics.mean_weight == pytest.approx(1.0)
            assert policy.uncovered == 0.0


def test_parameters_are_the_rows_unless_they_are_given(tmp_path: Path) -> None:
    catalog = small_catalog()
    log = whole_log(
        tmp_path, catalog, WARM, rules=fr.Rules(where="price < limit"), params={"limit": 6.0}
    )
    other = fr.Rules(where="price < limit", cap={"seller": 1})
    asked = [
        ope.ByModel("row", COLD, catalog, rules=other),
        ope.ByModel("given", COLD, catalog, rules=other, params={"limit": 5.0}),
    ]
    for policy, limit in zip(ope.evaluate(log, asked).policies, (6.0, 5.0), strict=True):
        right = truth(catalog, COLD, rules=other, params={"limit": limit})
        assert policy.estimates["ips"].value == pytest.approx(right, rel=1e-6)
    missing = ope.ByModel("missing", COLD, catalog, rules=fr.Rules(where="price < budget"))
    with pytest.raises(ValueError, match="budget"):
        ope.evaluate(log, [missing])
    with pytest.raises(ValueError, match="params: a: 'limit' is no parameter of the policy's own"):
        ope.ByModel("a", COLD, catalog, params={"limit": 5.0})
    wrong: Any = {"cap": {"seller": 1}}
    with pytest.raises(ValueError, match="rules: a: expected Rules"):
        ope.ByModel("a", COLD, catalog, rules=wrong)
    with pytest.raises(ValueError, match="rules: a: cap: there is no column 'seler'"):
        ope.ByModel("a", COLD, catalog, rules=fr.Rules(cap={"seler": 1}))


def test_a_next_page_is_evaluated_given_the_one_before(tmp_path: Path) -> None:
    catalog = small_catalog()
    rules, before = fr.Rules(cap={"seller": 2}, window={"seller": (1, 2)}), [3, 0]
    log = whole_log(tmp_path, catalog, WARM, rules=rules, after=before)
    found = ope.evaluate(log, [ope.ByModel("cold", COLD, catalog)], logging=[catalog])
    right = truth(catalog, COLD, rules=rules, after=before)
    assert found.policies[0].estimates["ips"].value == pytest.approx(right, rel=1e-6)
    bigger = fr.Catalog(np.arange(1, 9), np.ones((8, 1)), features={"seller": [*"abbccdee"]})
    refused = ope.evaluate(log, [ope.ByModel("other", COLD, bigger)], logging=[catalog])
    assert refused.set_aside == {"no_query": refused.rows}
    model = fr.Model(bigger, [f"u{i}" for i in range(300)], np.ones((300, 1)))
    lost = ope.evaluate(log, [ope.ByModel("other", COLD, model)], logging=[catalog])
    assert lost.set_aside == {"after_of_another_catalog": lost.rows}  # item 0 is of some seller


@pytest.mark.slow
def test_marginals_under_rules_are_refused_by_name(tmp_path: Path) -> None:
    catalog = small_catalog()
    names = {"iips": "marginals of places", "pi": "slate weights"}
    sequential = [n for n, r in STRICTER.items() if r.is_sequential]
    assert sequential == ["cap", "window", "share", "decay", "pin", "pin_where"]
    plain = whole_log(tmp_path / "plain", catalog, WARM)
    for kind in sequential:
        log = whole_log(tmp_path / kind, catalog, WARM, rules=STRICTER[kind])
        for name, what in names.items():
            with pytest.raises(
                ValueError, match=f"{name} of own: request .*: {what} are not known"
            ):
                ope.evaluate(
                    log,
                    [ope.ByModel("own", COLD, catalog)],
                    logging=[catalog],
                    estimators=[name],
                )
            with pytest.raises(ValueError, match=f"{name} of new: {what} are not known"):
                ope.evaluate(
                    plain,
                    [ope.ByModel("new", COLD, catalog, rules=STRICTER[kind])],
                    logging=[catalog],
                    estimators=[name],
                )
            # Of one place they are the propensities.
            ope.evaluate(
                log,
                [ope.ByModel("own", COLD, catalog)],
                logging=[catalog],
                estimators=[name],
                places=1,
            )


FILTERS = [
    (fr.Rules(where="price > 0"), None),
    (fr.Rules(boost={"new": 4.0}, boost_score={"price > 3": 0.5}, where="price < 6"), None),
    (fr.Rules(where="price < 6"), fr.Rules(boost={"new": 2.0}, where="price < 6")),
]


@pytest.mark.parametrize(("logged", "asked"), FILTERS)
def test_marginals_under_filters_and_boosts(
    logged: fr.Rules, asked: fr.Rules | None, tmp_path: Path
) -> None:
    catalog = small_catalog()
    log = whole_log(tmp_path, catalog, WARM, rules=logged, after=[1])
    right = truth(catalog, COLD, rules=asked or logged, after=[1])
    found = ope.evaluate(
        log,
        [ope.ByModel("own", COLD, catalog, rules=asked)],
        logging=[catalog],
        estimators=["iips", "pi", "ips"],
    )
    for name in ("iips", "pi", "ips"):
        assert found.policies[0].estimates[name].value == pytest.approx(right, rel=1e-6), name


def test_slate_weights_want_the_same_items_eligible(tmp_path: Path) -> None:
    catalog = small_catalog()
    log = whole_log(tmp_path, catalog, WARM, rules=fr.Rules(where="price < 6"))
    asked = [ope.ByModel("new", COLD, catalog, rules=fr.Rules(where="price < 5"))]
    with pytest.raises(ValueError, match="pi of new: needs rules that leave the same items"):
        ope.evaluate(log, asked, logging=[catalog], estimators=["pi"])


@pytest.mark.sampled
@pytest.mark.parametrize("name", STRICTER)
@pytest.mark.parametrize("policy", [COLD, fr.BestFirst(1, COLD)], ids=["draws", "best first"])
def test_doubly_robust_means_are_those_of_the_rules(
    name: str, policy: fr.Policy, plain_log: Path
) -> None:
    """Whatever the model says of rewards, its means under the policy take it out again."""
    catalog, rules, log = small_catalog(), STRICTER[name], LogReader(plain_log)
    q = np.random.default_rng(2).normal(0.0, 3.0, (SMALL, PLACES))
    found = ope.evaluate(
        log,
        [ope.ByModel(name, policy, catalog, rules=rules)],
        logging=[catalog],
        estimators=["dr-position", "dm"],
        reward_model=lambda query, ids: q,
    )
    right = truth_under(name, policy)
    estimates = found.policies[0].estimates
    assert estimates["dr-position"].value == pytest.approx(right, rel=1e-6)
    assert "reward_model" not in estimates["dr-position"].reasons


# ---- The command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    model = some_model()
    model.save(folder / "model")
    write(folder / "log", model, [KINDS["cap"], (fr.Rules(where="price < 38"), {})], rows=80)
    return folder


def found_by(served: Path, *options: object) -> dict[str, Any]:
    result = run(
        *("evaluate", served / "log", "--model", served / "model", "--json"),
        *("--policy", "a=plackett_luce:temperature=0.7", "--policy", "a=b=uniform"),
        *options,
    )
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_commands(served: Path, tmp_path: Path) -> None:
    result = run("audit", served / "log", "--model", served / "model")
    assert result.exit_code == 0, result.output
    own, strict, params = tmp_path / "own.json", tmp_path / "x=y.json", tmp_path / "params.json"
    own.write_text("{}")
    strict.write_text('{"cap": {"seller": 1}}')
    params.write_text('{"rules": {"where": "price < limit"}, "params": {"limit": 30}}')
    rules = fr.Rules(cap={"seller": 1})

    def said(*options: object) -> list[str]:
        return [each["description"] for each in found_by(served, *options)["policies"]]

    assert not any("rules" in each for each in said())
    assert all("without rules" in each for each in said("--policy-rules", own))
    of_one = said("--policy-rules", f"a={strict}")
    assert [rules.id[:12] in each for each in of_one] == [True, False]
    of_other = said("--policy-rules", f"a=b={strict}", "--policy-rules", f"a={own}")
    assert [rules.id[:12] in each for each in of_other] == [False, True]
    asked = [
        ope.ByModel(
            "a", fr.PlackettLuce(0.7), some_model(), rules=fr.Rules(where="price < limit"),
            params={"limit": 30.0},
        )
    ]  # fmt: skip
    by_python = ope.evaluate(LogReader(served / "log"), asked, logging=[some_model()])
    by_command = found_by(served, "--policy-rules", f"a={params}")["policies"][0]
    ips = by_python.policies[0].estimates["ips"].value
    assert by_command["estimates"]["ips"]["value"] == pytest.approx(ips)
    page = tmp_path / "page.html"
    result = run(
        *("evaluate", served / "log", "--model", served / "model", "--policy", "uniform"),
        *("--policy-rules", strict, "--report", page),
    )
    assert result.exit_code == 0, result.output
    assert rules.id[:12] in page.read_text()


@pytest.mark.parametrize(("text", "named"), [
    ("[", "Expecting value"),
    ('{"caps": {}}', "there is no 'caps'"),
    ('{"cap": {"seller": 0}}', "cap"),
    ('{"rules": {}, "param": {}}', "got 'param'"),
    ('{"rules": {}, "params": {"x": 1}}', "'x' is no parameter"),
    ('{"cap": {"seller": 1}, "cap": {"seller": 2}}', "'cap' is given twice"),
    ("[" * 100_000, "recursion"),
    ("\udcff", "utf-8"),
])  # fmt: skip
def test_files_of_no_rules(served: Path, text: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    said = refused(
        *("evaluate", served / "log", "--model", served / "model", "--policy", "uniform"),
        *("--policy-rules", file),
    )
    assert "--policy-rules" in said
    assert named in said


def test_rules_of_nobody(served: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text("{}")
    of_model = ("--model", served / "model", "--policy", "uniform")
    for option in (f"other={file}", tmp_path / "missing.json"):
        assert "--policy-rules" in refused(
            "evaluate", served / "log", *of_model, "--policy-rules", option
        )
    assert "given twice" in refused(
        *("evaluate", served / "log", *of_model),
        *("--policy-rules", file, "--policy-rules", f"uniform={file}"),
    )
    assert "--policy-rules" in refused("evaluate", "--format", "obd", "--policy-rules", file)
    assert "--policy-rules" in refused(
        *("evaluate", served / "log", "--column", "log_propensities", "--policy-rules", file)
    )
