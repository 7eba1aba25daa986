"""A server of rules: those that it has by name, those that requests say, pages, costs, reloads."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from served import Process, Reply, ask, call, make_model, with_app

import fastrank as fr
from fastrank import wire
from fastrank.rulesfile import named_rules
from fastrank_serving import engine, service
from fastrank_serving.app import App
from fastrank_serving.engine import Job
from fastrank_serving.service import Loaded

N = 300
LINES = {"content-type": "application/jsonlines"}
HOME = {
    "cap": {"seller": 2},
    "window": {"brand": [1, 3]},
    "at_least": {"new": 2},
    "pin": {"3": 7},
    "pin_where": {"1": "seller == 'acme'"},
    "on_empty": "relax",
}
BUDGET = {"where": "price < budget", "boost": {"new": 2.0}}
NAMED = {"home": HOME, "budget": BUDGET, "late": {"pin": {"40": 3}, "at_least": {"new": 15}}}


def columns(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "seller": rng.choice(["acme", "bob", "cat", "dan", "eve"], N).tolist(),
        "brand": rng.choice(list("klmnopqr"), N).tolist(),
        "new": rng.random(N) < 0.3,
        "price": rng.exponential(50, N),
    }


DEARER_THAN_5 = f"price > {columns()['price'][5] + 1}"


@pytest.fixture
def model(tmp_path: Path) -> fr.Model:
    factors = np.linspace(0.5, 2.0, 20)
    return make_model(tmp_path / "model", n=N, features=columns(), user_temperatures=factors)


@pytest.fixture
def named(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "rules.json").write_text(json.dumps(NAMED))
    return (str(tmp_path / "rules.json"),)


def same(reply: Reply, expected: fr.Ranking) -> bool:
    row = reply.json()
    return bool(
        row["item_ids"] == expected.item_ids.tolist()
        and row["log_propensities"] == expected.log_propensities.tolist()
        and row["n_eligible"] == expected.n_eligible
    )


# ---- Rankings --------------------------------------------------------------------------------


CASES: list[dict[str, Any]] = [
    {"rules": "home"},
    {"rules": HOME},
    {"rules": "budget", "params": {"budget": 40}},
    {"rules": BUDGET, "params": {"budget": 40}},
    {"rules": "budget", "params": {"budget": 40, "w": 2}, "score": "dot * w - price / budget"},
    {"rules": "home", "after": [1, 2, 50, 7]},
    {"rules": {"decay": {"seller": 0.5}}, "after": [4], "exclude": [5, 6]},
    {"rules": {"cap": {"seller": 1}}, "allow": list(range(40))},
    {"rules": {"cap": {"seller": 1}}, "inference_type": "deterministic"},
    {"rules": {"window": {"seller": [1, 2]}}, "inference_type": "uniform"},
    {"rules": "home", "inference_type": "stochastic_plackett_luce_cached"},
    {"rules": {"cap": {"seller": 1}}, "inference_type": "stochastic_flat_tail"},
    {"rules": {}},
    {"after": [3, 9]},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_answer_is_the_ranking_under_its_rules(
    tmp_path: Path, model: fr.Model, named: tuple[str, ...], case: dict[str, Any]
) -> None:
    asked = case.get("rules")
    rules = None if asked is None else NAMED[asked] if isinstance(asked, str) else asked
    own = None if rules is None else fr.Rules.from_dict(rules)
    given = {name: case[name] for name in ("params", "score", "after", "exclude", "allow")
             if name in case}  # fmt: skip
    name = case.get("inference_type")
    policy = fr.PlackettLuce() if name is None else fr.policy(name)

    async def work(app: App) -> None:
        for seed in range(4):
            found = await ask(app, user_id="u3", k=6, seed=seed, **case)
            assert found.status == 200, found.body
            expected = model.recommend("u3", 6, policy=policy, seed=seed, rules=own, **given)
            assert same(found, expected)
            row = found.json()
            again = model.catalog.log_propensities(
                model.user_vector("u3"),
                row["item_ids"],
                policy=model.user_policy("u3", policy),
                rules=own,
                k=6,
                **given,
            )
            np.testing.assert_allclose(row["log_propensities"], again, atol=1e-5)
            if own is None:
                assert "rules" not in row
            else:
                assert row["rules"]["id"] == own.id
                assert row["rules"]["params"] == {
                    key: value for key, value in case.get("params", {}).items() if key in own.names
                }
                if isinstance(asked, str):
                    assert row["rules"]["name"] == asked
                    assert fr.Rules.from_dict(row["rules"]["content"]) == own
                else:
                    assert row["rules"].keys() == {"id", "params"}

    with_app(tmp_path / "model", work, rules=named)


def test_by_url_as_by_body(tmp_path: Path, model: fr.Model, named: tuple[str, ...]) -> None:
    async def work(app: App) -> None:
        for rules in ("home", HOME, {}):
            by_body = await ask(app, user_id="u3", k=6, seed=2, rules=rules, after=[1, 9])
            text = rules if isinstance(rules, str) else json.dumps(rules)
            query = urlencode({"k": 6, "seed": 2, "rules": text, "after": "1,9"})
            by_url = await call(app, "GET", "/1/recommended-items/u3", query=query)
            assert by_url.json()["item_ids"] == by_body.json()["item_ids"]
            assert by_url.json()["rules"] == by_body.json()["rules"]
            encoded = {"user_id": "u3", "k": "6", "seed": "2", "rules": text, "after": "1,9"}
            gateway = await ask(app, gateway=encoded)
            assert gateway.json()["item_ids"] == by_body.json()["item_ids"]

    with_app(tmp_path / "model", work, rules=named)


def test_pinned_ids_are_read_as_filters_are(tmp_path: Path) -> None:
    make_model(tmp_path / "numbers", n=20)
    make_model(tmp_path / "texts", n=20, text=True)

    async def numbers(app: App) -> None:
        found = await ask(app, user_id="u1", k=3, rules={"pin": {"2": "7"}})
        assert found.json()["item_ids"][1] == 7
        assert found.json()["rules"]["id"] == fr.Rules(pin={2: 7}).id
        for wrong in ("x", "07", "7.0", str(2**70)):
            found = await ask(app, user_id="u1", rules={"pin": {"2": wrong}})
            assert (found.status, found.error["field"]) == (422, "rules.pin.2"), found.body

    async def texts(app: App) -> None:
        found = await ask(app, user_id="u1", k=3, rules={"pin": {"2": "item 7"}})
        assert found.json()["item_ids"][1] == "item 7"
        found = await ask(app, user_id="u1", k=3, rules={"pin": {"2": 7}})
        assert (found.status, found.error["field"]) == (422, "rules.pin.2"), found.body

    with_app(tmp_path / "numbers", numbers)
    with_app(tmp_path / "texts", texts)


def test_waiting_requests_share_a_pass_each_under_its_rules(
    tmp_path: Path, model: fr.Model, named: tuple[str, ...]
) -> None:
    kinds: list[Callable[[int], dict[str, Any]]] = [
        lambda i: {"rules": "home"},
        lambda i: {},
        lambda i: {"rules": {"cap": {"seller": 1 + i % 4}}},
        lambda i: {"after": [i]},
        lambda i: {"rules": "budget", "params": {"budget": 20.0 + i}},
        lambda i: {"rules": {"cap": {"x": 1}}},
    ]
    asked = [kinds[i % 6](i) for i in range(48)]
    own = {"home": fr.Rules.from_dict(HOME), "budget": fr.Rules.from_dict(BUDGET)}

    async def work(app: App) -> None:
        found = await asyncio.gather(
            *(ask(app, user_id=f"u{i % 20}", seed=i, k=4, **each) for i, each in enumerate(asked))
        )
        for i, (reply, case) in enumerate(zip(found, asked, strict=True)):
            rules = case.get("rules")
            if rules == {"cap": {"x": 1}}:
                assert (reply.status, reply.error["field"]) == (422, "rules.cap")
                continue
            given: dict[str, Any] = {
                name: case[name] for name in ("params", "after") if name in case
            }
            if rules is not None:
                given["rules"] = own[rules] if isinstance(rules, str) else fr.Rules(**rules)
            expected = model.recommend(f"u{i % 20}", 4, policy=fr.PlackettLuce(), seed=i, **given)
            assert same(reply, expected)

    with_app(tmp_path / "model", work, threads=2, rules=named)


def test_lines_of_a_batch(tmp_path: Path, model: fr.Model, named: tuple[str, ...]) -> None:
    lines = [
        {"user_id": "u1", "rules": "home", "seed": 1, "k": 5},
        {"user_id": "u1", "rules": "away", "seed": 1, "k": 5},
        {"user_id": "u2", "rules": {"cap": {"seller": 1}}, "after": [4, 5], "seed": 1, "k": 5},
        {"user_id": "u2", "after": [4, 4]},
    ]

    async def work(app: App) -> None:
        body = "\n".join(map(json.dumps, lines))
        rows = (await call(app, "POST", "/invocations", body, LINES)).body.splitlines()
        first, second, third, fourth = map(json.loads, rows)
        assert first["item_ids"][2] == 7
        assert second["error"]["code"] == "unknown_rules"
        expected = model.recommend(
            "u2", 5, policy=fr.PlackettLuce(), seed=1, rules=fr.Rules(cap={"seller": 1}),
            after=[4, 5],
        )  # fmt: skip
        assert third["item_ids"] == expected.item_ids.tolist()
        assert fourth["error"]["field"] == "after"

    with_app(tmp_path / "model", work, rules=named)


def test_a_page_goes_on_where_the_last_one_ended(
    tmp_path: Path, model: fr.Model, named: tuple[str, ...]
) -> None:
    async def work(app: App) -> None:
        shown: list[int] = []
        for _ in range(2):
            found = await ask(app, user_id="u3", k=5, rules={"cap": {"seller": 2}}, after=shown)
            shown += found.json()["item_ids"]
        assert len(shown) == len(set(shown)) == 10  # two of each of five sellers
        last = await ask(app, user_id="u3", k=5, rules={"cap": {"seller": 2}}, after=shown)
        assert last.json()["item_ids"] == []
        assert last.json()["log_propensity"] == 0.0

    with_app(tmp_path / "model", work, rules=named)


def test_a_request_that_is_sent_again_has_the_same_rules(
    tmp_path: Path, model: fr.Model, named: tuple[str, ...]
) -> None:
    async def work(app: App) -> None:
        asked = {"user_id": "u1", "request_id": "a", "rules": "home", "after": [3]}
        first = await ask(app, **asked)
        assert (await ask(app, **asked)).body == first.body
        for other in ({"rules": "late"}, {"rules": HOME}, {"after": [4]}):
            assert (await ask(app, **asked | other)).status == 409

    with_app(tmp_path / "model", work, rules=named)


# ---- What is refused -------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("asked", "status", "field", "words"),
    [
        ({"rules": "nowhere"}, 422, "rules", "the server defines (home, budget, late); got 'now"),
        ({"rules": ""}, 422, "rules", "expected 1 to 256 characters"),
        ({"rules": 3}, 400, "rules", "expected an object, or a name as text; got 3"),
        ({"rules": ["home"]}, 400, "rules", "expected an object, or a name as text"),
        ({"rules": True}, 400, "rules", "expected an object, or a name as text"),
        ({"rules": {"kap": {"seller": 2}}}, 400, "rules.kap", "not a field of rules: where, cap"),
        ({"rules": {"cap": [2]}}, 400, "rules.cap", "expected an object, got '[2]'"),
        ({"rules": {"cap": {"seller": "2"}}}, 400, "rules.cap.seller", "an integer, got '2'"),
        ({"rules": {"cap": {"seller": 2.5}}}, 400, "rules.cap.seller", "an integer, got 2.5"),
        ({"rules": {"cap": {"seller": None}}}, 400, "rules.cap.seller", "an integer, got None"),
        ({"rules": {"window": {"brand": [1]}}}, 400, "rules.window.brand", "two integers"),
        ({"rules": {"where": 3}}, 400, "rules.where", "expected an expression, as text, got 3"),
        ({"rules": {"on_empty": "go"}}, 400, "rules.on_empty", "expected stop or relax"),
        ({"rules": {"pin": {"2": 1.5}}}, 400, "rules.pin.2", "expected an item id, got 1.5"),
        ({"rules": {"boost": {"new": "x"}}}, 400, "rules.boost.new", "expected a number"),
        ({"rules": {"cap": {f"c{i}": 1 for i in range(101)}}}, 422, "rules.cap", "at most 100"),
        ({"rules": {"where": "new" + " " * 70_000}}, 422, "rules", "at most 65536 bytes"),
        ({"rules": {"where": "x" * 200_000}}, 422, "rules", "at most 65536 bytes"),
        ({"rules": {"where": "n" * 10_001}}, 422, "rules.where", "at most 10,000 characters"),
        ({"rules": {"cap": {"seller": 0}}}, 422, "rules.cap.seller", "must be at least 1, got 0"),
        ({"rules": {"cap": {"colour": 1}}}, 422, "rules.cap", "there is no column 'colour'"),
        ({"rules": {"decay": {"seller": 1.0}}}, 422, "rules.decay.seller", "must lie in"),
        ({"rules": {"where": "price <"}}, 422, "rules.where", "invalid syntax"),
        ({"rules": {"where": "price"}}, 422, "rules.where", "expected true or false"),
        ({"rules": {"where": "dot > 1"}}, 422, "rules.where", "not `dot`"),
        ({"rules": {"pin": {"0": 1}}}, 422, "rules.pin", "must be at least 1"),
        ({"rules": {"pin": {"01": 1}}}, 422, "rules.pin", "'01'"),
        ({"rules": {"pin": {"1": 10_000}}}, 422, "rules.pin.1", "10000 is not in the catalog"),
        ({"rules": {"pin": {"1": 2, "3": 2}}}, 422, "rules.pin", "2 is pinned to the places"),
        ({"rules": {"pin": {"1": 2}}, "exclude": [2]}, 422, "rules.pin.1", "is not eligible"),
        ({"rules": {"pin": {"1": 2}, "pin_where": {"1": "new"}}}, 422, "rules.pin_where", "alre"),
        (
            {"rules": {"at_least": {"new": 11}}},
            422,
            "rules.at_least",
            "got shares of 11 places, more than k",
        ),
        ({"rules": "budget"}, 422, "rules.where", "'budget' is neither a column"),
        (
            {"rules": "home", "params": {"w": 1}},
            422,
            "params",
            "neither the score nor the rules have it",
        ),
        (
            {"rules": {"boost": {"new": 2}}, "inference_type": "uniform"},
            422,
            "rules.boost",
            "changes weights",
        ),
        (
            {"rules": {"boost": {"new": 2}}, "inference_type": "stochastic_flat_tail"},
            422,
            "rules",
            "FlatTail does not support boost",
        ),
        ({"after": [1, 2, 1]}, 422, "after", "1 is there twice"),
        ({"after": [1, 10_000]}, 422, "after", "10000 is not in the catalog"),
        ({"after": ["x"]}, 422, "after", "expected integers"),
        ({"after": [1.5]}, 400, "after", "expected `int | str`"),
        ({"after": "1"}, 400, "after", "expected `array | null`"),
        ({"after": list(range(101))}, 422, "after", "at most 100 ids"),
    ],
)
def test_what_cannot_be_is_named(
    tmp_path: Path,
    model: fr.Model,
    named: tuple[str, ...],
    asked: dict[str, Any],
    status: int,
    field: str,
    words: str,
) -> None:
    async def work(app: App) -> None:
        found = await ask(app, user_id="u1", **asked)
        assert (found.status, found.error["field"]) == (status, field), found.body
        assert words in found.error["message"]
        assert len(found.body) < 2_000
        # Nor is it taken where numbers come as text, or rules in a URL.
        found = await ask(app, user_id="u1", k="10", **asked)
        assert (found.status, found.error["field"]) == (status, field), found.body
        rules = asked.get("rules")
        if isinstance(rules, dict) and "exclude" not in asked and len(json.dumps(rules)) < 4000:
            given = {"rules": json.dumps(rules)}
            given |= {key: asked[key] for key in ("inference_type",) if key in asked}
            reply = await call(app, "GET", "/1/recommended-items/u1", query=urlencode(given))
            assert (reply.status, reply.error["field"]) == (status, field), reply.body

    with_app(tmp_path / "model", work, rules=named, max_ids=100)


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ('{"cap": {"seller": 1}, "cap": {"seller": 2}}', "rules.cap"),
        ('{"cap": {"seller": 1, "seller": 2}}', "rules.cap.seller"),
        ('{"cap": {"seller": 1, "\\u0073eller": 2}}', "rules.cap.seller"),
        ('{"pin": {"1": 1, "1": 2}}', "rules.pin.1"),
    ],
)
def test_what_is_said_twice_is_refused(
    tmp_path: Path, model: fr.Model, rules: str, field: str
) -> None:
    async def work(app: App) -> None:
        reply = await call(app, "POST", "/invocations", f'{{"user_id": "u1", "rules": {rules}}}')
        assert (reply.status, reply.error["code"]) == (400, "duplicate_field")
        assert reply.error["field"] == field
        query = urlencode({"rules": rules})
        reply = await call(app, "GET", "/1/recommended-items/u1", query=query)
        assert (reply.status, reply.error["field"]) == (400, field)

    with_app(tmp_path / "model", work)


def test_a_server_may_take_named_rules_alone(
    tmp_path: Path, model: fr.Model, named: tuple[str, ...]
) -> None:
    async def work(app: App) -> None:
        assert (await ask(app, user_id="u1", rules="home")).status == 200
        assert (await ask(app, user_id="u1", after=[3])).status == 200
        found = await ask(app, user_id="u1", rules=HOME)
        assert (found.status, found.error["field"]) == (403, "rules")
        assert found.error["allowed"] == list(NAMED)
        assert "others are not allowed" in found.error["message"]
        found = await ask(app, user_id="u1", rules="away")
        assert (found.status, found.error["code"]) == (422, "unknown_rules")
        schemas = (await call(app, "GET", "/openapi.json")).json()["components"]["schemas"]
        assert "#/components/schemas/Rules" not in json.dumps(schemas["UserRequest"])

    with_app(tmp_path / "model", work, rules=named, only_named_rules=True)


def test_fields_of_rules_are_those_of_rules() -> None:
    said = {"where": "new", "cap": {"a": 1}, "window": {"a": (1, 2)}, "at_least": {"b": 1},
            "decay": {"a": 0.5}, "pin": {1: 2}, "pin_where": {2: "c"}, "boost": {"d": 2.0},
            "boost_score": {"e": 1.0}, "on_empty": "relax"}  # fmt: skip
    rules = fr.Rules.from_dict(said)
    assert set(wire.RulesBody.__struct_fields__) == rules.to_dict().keys()
    body = wire.read(json.dumps({"rules": rules.to_dict()}).encode()).rules
    assert isinstance(body, wire.RulesBody)
    assert fr.Rules.from_dict(body.content) == rules


# ---- Costs -----------------------------------------------------------------------------------


def priced(n: int = 10_000, k: int = 10, after: int = 0, **rules: Any) -> int:
    catalog = fr.Catalog(np.arange(n), np.ones((n, 2)))
    body = wire.RulesBody(**rules) if rules else None
    return Job(
        catalog=catalog,
        query=np.zeros(2, np.float32),
        k=k,
        policy=fr.PlackettLuce(),
        seed=1,
        rules=body,
        after=list(range(after)) or None,
    ).priced()


@pytest.mark.parametrize(
    "rules",
    [
        {"cap": {"seller": 2}},
        {"window": {"seller": (1, 2)}},
        {"at_least": {"new": 1}},
        {"decay": {"seller": 0.5}},
        {"pin": {"1": 3}},
        {"pin_where": {"1": "new"}},
        {"where": "new or " * 20 + "new"},
        {"boost": {"new or " * 20 + "new": 2.0}},
    ],
    ids=str,
)
def test_rules_are_priced_and_nothing_dear_is_done_in_the_loop(rules: dict[str, Any]) -> None:
    without = priced()
    assert without < engine.INLINE_WORK < priced(**rules)
    assert priced(100_000, **rules) > priced(10_000, **rules) + priced(100_000) - without
    if "where" not in rules and "boost" not in rules:
        assert priced(k=100, **rules) > 5 * priced(k=10, **rules)


def test_pages_before_are_priced() -> None:
    assert priced(after=1000) - priced() > 20_000 * 1000
    more = priced(after=1000, cap={"seller": 2}) - priced(cap={"seller": 2})
    assert more > priced(after=1000) - priced()


def test_what_would_take_too_long_is_refused(
    tmp_path: Path, model: fr.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PASS_WORK", 50_000_000)

    async def work(app: App) -> None:
        rules = {"window": {"seller": [1, 2], "brand": [1, 3]}}
        found = await ask(app, user_id="u1", k=1000, rules=rules)
        assert (found.status, found.error["code"]) == (422, "too_dear")
        assert (await ask(app, user_id="u1", k=2, rules=rules)).status == 200

    with_app(tmp_path / "model", work)


def test_expressions_of_a_request_take_no_more_memory_than_is_kept(
    tmp_path: Path, model: fr.Model, named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_BYTES", 30 * N)

    async def work(app: App) -> None:
        few = {"boost": {f"price < {i}": 2.0 for i in range(6)}}
        many = {"boost": {f"price < {i}": 2.0 for i in range(7)}}
        assert (await ask(app, user_id="u1", rules=few)).status == 200
        found = await ask(app, user_id="u1", rules=many)
        assert (found.status, found.error["field"]) == (422, "rules")
        assert found.error["allowed"].startswith("expressions that take at most 9000 bytes")

    with_app(tmp_path / "model", work, rules=named)


# ---- Named rules -----------------------------------------------------------------------------


def test_what_a_server_has_is_told(tmp_path: Path, model: fr.Model, named: tuple[str, ...]) -> None:
    async def work(app: App) -> None:
        version = (await call(app, "GET", "/version")).json()
        assert version["rules"] == {
            name: {
                "id": fr.Rules.from_dict(each).id,
                "params": ["budget"] if name == "budget" else [],
            }
            for name, each in NAMED.items()
        }
        assert version["only_named_rules"] is False
        about = (await call(app, "GET", "/explorer/about")).json()
        assert about["rules"] == [
            {"name": name, "params": version["rules"][name]["params"]} for name in NAMED
        ]
        schemas = (await call(app, "GET", "/openapi.json")).json()["components"]["schemas"]
        for kind in ("UserRequest", "QueryRequest"):
            rules = schemas[kind]["properties"]["rules"]
            assert {"type": "string", "enum": list(NAMED)} in rules["anyOf"]
            assert {"$ref": "#/components/schemas/Rules"} in rules["anyOf"]
            assert "budget (with the params budget)" in rules["description"]
        assert schemas["Rules"]["properties"].keys() == set(wire.RulesBody.__struct_fields__)

    with_app(tmp_path / "model", work, rules=named)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": {"cap": {"colour": 2}}}, "the rules 'a' do not fit the model: cap: there is no co"),
        ({"a": {"pin": {"3": 10_000}}}, "pin[3]: 10000 is not in the catalog"),
        ({"a": {"pin": {"3": 5}, "where": DEARER_THAN_5}}, "pin[3]: 5 is not eligible"),
        ({"a": {"where": "price < 0"}}, "where: 'price < 0' holds for no item"),
        ({"a": {"at_least": {"new": 1, "price < 50": 1}}}, "expected sets without common items"),
        ({"a": {"where": "price"}}, "expected true or false"),
        ({"a": {"at_least": {"price": 1}, "where": "price < budget"}}, "expected true or false"),
    ],
)
def test_rules_that_do_not_fit_keep_a_model_from_serving(
    model: fr.Model, tmp_path: Path, content: dict[str, Any], words: str
) -> None:
    (tmp_path / "rules.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the rules 'a' do not fit the model: ") as error:
        Loaded.open(tmp_path / "model", rules=named_rules([str(tmp_path / "rules.json")]))
    assert words in str(error.value)


def test_a_reload_reads_rules_again_and_is_refused_where_they_do_not_fit(
    tmp_path: Path, model: fr.Model, named: tuple[str, ...]
) -> None:
    file = tmp_path / "rules.json"

    async def work(app: App) -> None:
        async def reload() -> Reply:
            return await call(app.administer, "POST", "/-/reload")

        file.write_text(json.dumps({"home": {"pin": {"1": 9}}}))
        assert (await ask(app, user_id="u1", rules="late", k=20)).status == 200
        assert (await reload()).status == 200
        found = await ask(app, user_id="u1", rules="home")
        assert found.json()["item_ids"][0] == 9
        assert (await ask(app, user_id="u1", rules="late")).error["code"] == "unknown_rules"
        for wrong, words in (
            ('{"home": {"cap": {"colour": 1}}}', "there is no column 'colour'"),
            ('{"home": {"pin": {"1": 8}}', "not JSON"),
            ('{"home": {"pin": {"1": 8, "1": 9}}}', "'1' is given more than once"),
            ('{"home": {}, "home": {}}', "'home' is given more than once"),
            ('{"home sweet": {}}', "name of rules: got 'home sweet'"),
            ('{"home": {"kap": {}}}', "there is no 'kap'"),
            ("[]", "expected an object"),
        ):
            file.write_text(wrong)
            reply = await reload()
            assert (reply.status, reply.error["code"]) == (409, "not_reloaded")
            assert words in reply.error["message"]
        file.unlink()
        assert (await reload()).status == 409
        assert (await ask(app, user_id="u1", rules="home")).json()["item_ids"][0] == 9
        # A model whose columns they do not fit is refused as they are.
        file.write_text(json.dumps({"home": {"cap": {"seller": 1}}}))
        assert (await reload()).status == 200
        make_model(tmp_path / "model", n=N, seed=1)
        reply = await reload()
        assert reply.status == 409
        assert "there is no column 'seller'" in reply.error["message"]
        found = await ask(app, user_id="u1", rules="home")
        assert found.json()["model_version"] == model.version

    with_app(tmp_path / "model", work, rules=named)


def test_a_name_is_given_once_and_files_may_hold_one_or_several(tmp_path: Path) -> None:
    one, several = tmp_path / "one.json", tmp_path / "several.json"
    one.write_text('{"cap": {"seller": 1}}')
    several.write_text('{"home-3": {"pin": {"1": "sku-9"}}, "é.1": {}}')
    found = named_rules([f"top={one}", str(several)])
    assert found == {
        "top": fr.Rules(cap={"seller": 1}),
        "home-3": fr.Rules(pin={1: "sku-9"}),
        "é.1": fr.Rules(),
    }
    for options, words in (
        ([f"a={one}", f"a={one}"], "rules named 'a' were given already"),
        ([str(one)], "cap: rules: there is no 'seller'"),
        ([f"a={several}"], "a: rules: there is no 'home-3'"),
        ([f"={one}"], "name of rules: got ''"),
        ([f"{'a' * 101}={one}"], "name of rules: got "),
    ):
        with pytest.raises(ValueError, match=r".") as error:
            named_rules(options)
        assert words in str(error.value), options


def test_every_named_rules_are_rehearsed(
    tmp_path: Path, model: fr.Model, named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks under them keeps a model from serving."""
    rank: Callable[..., Any] = Job.rank
    seen: set[str] = set()

    def watched(self: Job) -> fr.Ranking:
        if isinstance(self.rules, fr.Rules):
            seen.add(self.rules.id)
            if self.rules == fr.Rules.from_dict(NAMED["late"]):
                raise OSError("a disk")
        ranking: fr.Ranking = rank(self)
        return ranking

    monkeypatch.setattr(Job, "rank", watched)

    async def work(app: App) -> None:
        raise AssertionError("it serves")

    with pytest.raises(ValueError, match=r'self-test: POST /invocations .*"rules":"late"'):
        with_app(tmp_path / "model", work, rules=named)
    assert {fr.Rules.from_dict(each).id for each in NAMED.values()} - seen == set()


def test_the_command_serves_them(tmp_path: Path, model: fr.Model, named: tuple[str, ...]) -> None:
    options = ["--rules", *named, "--rules", f"top={tmp_path / 'top.json'}", "--only-named-rules"]
    (tmp_path / "top.json").write_text('{"pin": {"1": 11}}')
    with Process(tmp_path / "model", *options) as process:
        status, row = process.ask(user_id="u1", rules="top")
        assert (status, row["item_ids"][0]) == (200, 11)
        (tmp_path / "top.json").write_text('{"pin": {"1": 12}}')
        process.signal(signal.SIGHUP)
        for _ in range(2):
            process.until_says("serving model")
        for _ in range(500):
            if process.ask(user_id="u1", rules="top")[1]["item_ids"][0] == 12:
                break
        else:
            raise AssertionError("it did not read the file again")
        assert process.ask(user_id="u1", rules={})[0] == 403
