"""`fastrank.Rules`: what can be said, what is refused by name, and how calls take it."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support import same_ranking

import fastrank as fr

PL = fr.PlackettLuce(0.8)
FEATURES: dict[str, Any] = {
    "brand": ["x", "x", "y", None],
    "new": [True, False, False, True],
    "price": [1.0, 2.0, 3.0, 2.0],
    "genres": [["p"], ["q", "p"], [], ["q"]],
    "large": [2.0**24, 1.0, 2.0, 3.0],
}
CATALOG = fr.Catalog(["a", "b", "c", "d"], [[0.0], [1.0], [2.0], [3.0]], features=FEATURES)
PLAIN = fr.Catalog(["a", "b"], [[1.0], [2.0]])

FULL: dict[str, Any] = {
    "where": "price < budget",
    "cap": {"brand": 2, "genres": 3},
    "window": {"brand": (1, 3)},
    "at_least": {"new": 1},
    "decay": {"genres": 0.5},
    "pin": {3: "d", 10: "a"},
    "pin_where": {1: "brand == 'x'"},
    "boost": {"new": 2.0},
    "boost_score": {"price > 1": -0.5},
    "on_empty": "relax",
}


def ranked(rules: Any, k: int = 2, policy: fr.Policy = PL, **options: Any) -> fr.Ranking:
    return CATALOG.rank([1.0], k, policy=policy, rules=rules, seed=1, **options)


# ---- What they are -------------------------------------------------------------------------------


def test_they_say_what_they_were_given() -> None:
    rules = fr.Rules(**FULL)
    for name, value in FULL.items():
        assert getattr(rules, name) == value
    assert rules.names == {"price", "budget", "new", "brand"}
    nothing = fr.Rules()
    assert (nothing.where, nothing.cap, nothing.pin, nothing.on_empty) == (None, {}, {}, "stop")
    assert nothing.names == frozenset()
    assert repr(nothing) == "Rules()"
    assert eval(repr(rules), {"Rules": fr.Rules}) == rules


def test_an_id_is_that_of_the_content_and_stays() -> None:
    """Logs have them."""
    assert fr.Rules(**FULL).id == "43bc87f37d2b718deb178c899ae822b5e1afe4683080f1d80436e48e307677fa"
    assert fr.Rules().id == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"cap": {"a": 1, "b": 2}}, {"cap": {"b": 2, "a": 1}}),
        ({"cap": {}, "where": None}, {}),
        ({"on_empty": "stop"}, {}),
        ({"pin": {1: "a"}}, {"pin": {"1": "a"}}),
        ({"pin": {1: 7}}, {"pin": {np.int64(1): np.int64(7)}}),
        ({"window": {"a": (1, 2)}}, {"window": {"a": [1, np.int32(2)]}}),
        ({"boost": {"new": 2}}, {"boost": {" new ": 2.0}}),
        ({"boost_score": {"new": 0.5}}, {"boost_score": {"new": np.float32(0.5)}}),
        ({"cap": {"fi": 1}}, {"cap": {"\ufb01": 1}}),
    ],
)
def test_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = fr.Rules(**one), fr.Rules(**other)
    assert a == b
    assert hash(a) == hash(b)
    assert a.id == b.id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"cap": {"a": 1}}, {"cap": {"a": 2}}),
        ({"cap": {"a": 1}}, {"cap": {"b": 1}}),
        ({"pin": {1: 1}}, {"pin": {1: "1"}}),
        ({"pin": {1: "new"}}, {"pin_where": {1: "new"}}),
        ({"boost": {"new": 2.0}}, {"boost_score": {"new": 2.0}}),
        ({"on_empty": "relax"}, {}),
        ({"where": "new"}, {"where": "not new"}),
    ],
)
def test_not_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert fr.Rules(**one) != fr.Rules(**other)
    assert fr.Rules(**one).id != fr.Rules(**other).id
    assert fr.Rules(**one) != one


def test_copies_are_the_same() -> None:
    for rules in (fr.Rules(), fr.Rules(**FULL)):
        for other in (
            pickle.loads(pickle.dumps(rules)),
            copy.deepcopy(rules),
            fr.Rules.from_dict(rules.to_dict()),
            fr.Rules.from_dict(json.loads(json.dumps(rules.to_dict()))),
        ):
            assert other == rules
            assert other.to_dict() == rules.to_dict()
            assert (hash(other), other.id) == (hash(rules), rules.id)
    assert fr.Rules(**FULL).to_dict()["pin"] == {"3": "d", "10": "a"}
    assert fr.Rules(**FULL).to_dict()["window"] == {"brand": [1, 3]}


def test_nothing_changes_them() -> None:
    given: dict[str, Any] = {"cap": {"brand": 1}, "window": {"brand": [1, 3]}}
    rules = fr.Rules(**given)
    said = rules.to_dict()
    given["cap"]["brand"] = 5
    given["window"]["brand"][0] = 2
    rules.cap["brand"] = 5
    rules.to_dict()["cap"]["brand"] = 5
    for name in ("cap", "names", "id", "other"):
        with pytest.raises(AttributeError):
            setattr(rules, name, {})
    assert rules.to_dict() == said


# ---- What is refused where they are made ---------------------------------------------------------

LONG = 10**400


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cap": "x"}, "cap: expected a mapping, got 'x'"),
        ({"cap": [("a", 1)]}, r"cap: expected a mapping, got \[\('a', 1\)\]"),
        ({"cap": {"a": True}}, r"cap\['a'\]: expected an integer, got True"),
        ({"cap": {"a": float("nan")}}, r"cap\['a'\]: expected an integer, got nan"),
        ({"cap": {"a": 1.0}}, r"cap\['a'\]: expected an integer, got 1.0"),
        ({"cap": {"a": b"1"}}, r"cap\['a'\]: expected an integer, got b'1'"),
        ({"cap": {"a": LONG}}, r"cap\['a'\]: must be at most 1,000,000, got 1000"),
        ({"cap": {"a": 0}}, r"cap\['a'\]: must be at least 1, got 0"),
        ({"cap": {1: 1}}, "cap: expected names of columns, got 1"),
        ({"cap": {"": 1}}, "cap: expected names of columns, got ''"),
        ({"cap": {b"a": 1}}, "cap: expected names of columns, got b'a'"),
        ({"cap": {"fi": 1, "\ufb01": 1}}, "cap: 'fi' is given twice"),
        ({"cap": {f"c{i}": 1 for i in range(101)}}, "cap: at most 100 entries are taken, got 101"),
        ({"window": {"a": 3}}, r"window\['a'\]: expected \(most, places in a row\), got 3"),
        ({"window": {"a": (1,)}}, r"window\['a'\]: expected \(most, places in a row\), got"),
        ({"window": {"a": "12"}}, r"window\['a'\]: expected \(most, places in a row\), got '12'"),
        ({"window": {"a": b"12"}}, r"window\['a'\]: expected \(most, places in a row\)"),
        ({"window": {"a": {1, 3}}}, r"window\['a'\]: expected \(most, places in a row\)"),
        ({"window": {"a": {1: 2, 3: 4}}}, r"window\['a'\]: expected \(most, places in a row\)"),
        ({"window": {"a": (1, True)}}, r"window\['a'\]: expected an integer, got True"),
        ({"window": {"a": (1, 10**7)}}, r"window\['a'\]: must be at most 1,000,000"),
        ({"window": {"a": (0, 2)}}, r"window\['a'\]: must be at least 1, got 0"),
        ({"window": {"a": (2, 2)}}, r"window\['a'\]: expected fewer than the 2 places in a row"),
        ({"decay": {"a": 1}}, r"decay\['a'\]: must lie in \[1e-6, 1\), got 1; a cap says"),
        ({"decay": {"a": 0.0}}, r"decay\['a'\]: must lie in \[1e-6, 1\), got 0.0"),
        ({"decay": {"a": float("nan")}}, r"decay\['a'\]: must be finite, .* got nan"),
        ({"decay": {"a": "0.5"}}, r"decay\['a'\]: expected a number, got '0.5'"),
        ({"decay": {"a": True}}, r"decay\['a'\]: expected a number, got True"),
        ({"pin": {1: "a", "1": "b"}}, "pin: 1 is given twice"),
        ({"pin": {True: "a"}}, "pin: a place: expected an integer, got True"),
        ({"pin": {1.0: "a"}}, "pin: a place: expected an integer, got 1.0"),
        ({"pin": {"\u0663": "a"}}, "pin: a place: expected an integer, got '\u0663'"),
        ({"pin": {"": "a"}}, "pin: a place: expected an integer, got ''"),
        ({"pin": {0: "a"}}, "pin: a place: must be at least 1, got 0"),
        ({"pin": {"9" * 5000: "a"}}, "pin: a place: expected an integer, got '9999"),
        ({"pin": {1: 1.5}}, r"pin\[1\]: expected an item id, got 1.5"),
        ({"pin": {1: None}}, r"pin\[1\]: expected an item id, got None"),
        ({"pin": {1: True}}, r"pin\[1\]: expected an item id, got True"),
        ({"pin": {1: b"a"}}, r"pin\[1\]: expected an item id, got b'a'"),
        ({"pin": {1: ["a"]}}, r"pin\[1\]: expected an item id, got \['a'\]"),
        ({"pin": {2: "a", 5: "a"}}, "pin: 'a' is pinned to the places 2 and 5"),
        (
            {"pin": {2: "a"}, "pin_where": {"2": "new"}},
            "pin_where: place 2 has a pinned item already",
        ),
        ({"pin_where": {1: 5}}, r"pin_where\[1\]: expected an expression, as a text, got 5"),
        ({"pin_where": {1: "new ="}}, r"pin_where\[1\]: 'new =', .*invalid syntax"),
        ({"at_least": {"new": 0}}, r"at_least\['new'\]: must be at least 1, got 0"),
        ({"at_least": {"new": 1, "(": 1}}, r"at_least: '\('"),
        (
            {"at_least": {"new and price > 1": 1}, "cap": {"price": 1}},
            "at_least: 'new and price > 1' is a share by the column 'price', which has a cap",
        ),
        ({"boost": {"new": 0}}, r"boost\['new'\]: must lie in \[1e-30, 1e30\], got 0"),
        ({"boost": {"new": -1.0}}, r"boost\['new'\]: must lie in \[1e-30, 1e30\], got -1.0"),
        ({"boost": {"new": float("inf")}}, r"boost\['new'\]: must be finite, .* got inf"),
        ({"boost": {"new": LONG}}, r"boost\['new'\]: must be finite"),
        ({"boost": {"new": 2, "new ": 2}}, "boost: 'new' is given twice"),
        ({"boost": {1: 2}}, "boost: expected an expression, as a text, got 1"),
        ({"boost_score": {"new": 1e38}}, r"boost_score\['new'\]: must be finite, of at most 1e37"),
        ({"where": ""}, "where: '', at its end: invalid syntax"),
        ({"where": b"new"}, "where: expected an expression, as a text, got b'new'"),
        ({"where": "__import__('os')"}, "where: .* there is no function '__import__'"),
        ({"where": "(" * 4000 + "new" + ")" * 4000}, "where: "),
        ({"where": "new" * 10_000}, "where: an expression has at most 10,000 characters"),
        ({"on_empty": "give up"}, "on_empty: expected 'stop' or 'relax', got 'give up'"),
        ({"on_empty": None}, "on_empty: expected 'stop' or 'relax', got None"),
        ({"on_empty": []}, r"on_empty: expected 'stop' or 'relax', got \[\]"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        fr.Rules(**given)
    assert len(str(caught.value)) < 1_000
    with pytest.raises(ValueError, match=f"^{message}"):
        fr.Rules.from_dict(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "rules: expected an object, got None"),
        ([], r"rules: expected an object, got \[\]"),
        ("cap", "rules: expected an object, got 'cap'"),
        ({"caps": {"a": 1}}, "rules: there is no 'caps': there are where, cap, window"),
        ({1: 2}, "rules: there is no 1: there are"),
    ],
)
def test_objects_that_are_no_rules(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        fr.Rules.from_dict(given)


def test_a_hundred_entries_of_each_kind_are_taken() -> None:
    texts = [f"price == {i}" for i in range(100)]
    rules = fr.Rules(
        boost=dict.fromkeys(texts, 2.0),
        boost_score=dict.fromkeys(texts, 1.0),
        at_least=dict.fromkeys(texts, 1),
        pin_where={i + 1: text for i, text in enumerate(texts)},
        pin={i + 101: i for i in range(100)},
    )
    assert fr.Rules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules


# ---- What is refused by a call, before anything is drawn -----------------------------------------

PAGE = ranked(fr.Rules(cap={"brand": 1}), 1)


@pytest.mark.parametrize(
    ("rules", "call", "message"),
    [
        ({"cap": {"nope": 1}}, {}, r"rules: cap: there is no column 'nope' \(there are brand, "),
        ({"window": {"nope": (1, 2)}}, {}, "rules: window: there is no column 'nope'"),
        ({"decay": {"nope": 0.5}}, {}, "rules: decay: there is no column 'nope'"),
        ({"cap": {"dot": 1}}, {}, "rules: cap: there is no column 'dot'"),
        (
            {"cap": {"large": 1}},
            {},
            r"rules: features\['large'\]: got 1.67772e[+]07, which in float32",
        ),
        ({"where": "nope > 1"}, {}, "rules: where: 'nope > 1', column 1: 'nope' is neither a col"),
        ({"where": "brand"}, {}, "rules: where: 'brand', column 1: expected true or false"),
        ({"where": "price + 1"}, {}, "rules: where: 'price [+] 1', .* expected true or false"),
        ({"where": "dot > 1"}, {}, "rules: where: 'dot > 1', column 1: .* not `dot`"),
        ({"boost": {"dot > 1": 2}}, {}, "rules: boost: 'dot > 1', column 1: .* not `dot`"),
        ({"at_least": {"brand > 1": 1}}, {}, "rules: at_least: 'brand > 1', column 1: a text"),
        ({"pin_where": {1: "price"}}, {}, "rules: pin_where.*: 'price', .*expected true or false"),
        ({"where": "price < b"}, {}, "rules: where: 'price < b', column 9: 'b' is neither"),
        ({"where": "price < b"}, {"params": {"b": "x"}}, "rules: where: .* compared with a text"),
        ({"where": "price < b"}, {"params": {"b": np.nan}}, r"params\['b'\]: must be finite"),
        (
            {"where": "price < b"},
            {"params": {"b": 1, "c": 1}},
            "params: 'c' is not used: neither the score nor the rules have it",
        ),
        (
            {},
            {"params": {"c": 1}},
            "params: 'c' is not used: neither the score nor the rules have it",
        ),
        ({"where": "new"}, {"params": {"new": 1}}, "rules: params: 'new' is a column"),
        ({"pin": {9: "zz"}}, {}, r"rules: pin\[9\]: 'zz' is not in the catalog"),
        ({"pin": {1: "\ud800"}}, {}, r"rules: pin\[1\]: .* is not in the catalog"),
        ({"pin": {1: 5}}, {}, r"rules: pin\[1\]: the ids here are str, got 5"),
        ({"pin": {1: 10**30}}, {}, r"rules: pin\[1\]: "),
        ({"pin": {2: "a"}}, {"exclude": ["a"]}, r"rules: pin\[2\]: 'a' is not eligible: a filter"),
        ({"pin": {2: "a"}}, {"allow": ["b"]}, r"rules: pin\[2\]: 'a' is not eligible: a filter"),
        ({"pin": {1: "b"}, "where": "new"}, {}, r"rules: pin\[1\]: 'b' is not eligible: a filter"),
        (
            {"at_least": {"new": 2, "not new": 1}},
            {},
            "rules: at_least: got shares of 3 places, more than k = 2",
        ),
        (
            {"at_least": {"new": 1, "price == 2": 1}},
            {},
            "rules: at_least: expected sets without common items, but an item is in 'new' and in",
        ),
        (
            {"boost_score": {"new": 1e37, "price > 0": 1e37}},
            {},
            r"rules: boost, boost_score: got 2e\+37 to add to a score; expected at most 1e\+37",
        ),
        ({}, {"after": "a"}, "after: expected an array of ids, got 'a'"),
        ({}, {"after": 5}, "after: expected an array of ids, got 5"),
        ({}, {"after": ["b", "a", "b"]}, "after: 'b' is there twice"),
        ({}, {"after": ["zz"]}, "after: 'zz' is not in the catalog"),
        ({}, {"after": [1]}, "after: the ids here are str, got 1"),
        (
            {"cap": {"brand": 2}},
            {"after": PAGE},
            r"after: the page was ranked by other rules: Rules\(cap=\{'brand': 1\}\), not",
        ),
        ({}, {"after": PAGE}, "after: the page was ranked by other rules"),
        ({}, {"after": PLAIN.rank([1.0], 1, policy=PL)}, "after: the page is of the catalog"),
        *[
            (
                {kind: {"new": 2.0}},
                {"policy": policy},
                f"rules: {kind}: .* which changes weights of a softmax",
            )
            for kind, policy in [
                ("boost", fr.Deterministic()),
                ("boost", fr.EpsilonGreedy(0.1)),
                ("boost", fr.Uniform()),
                ("boost", fr.BestFirst(1, fr.Uniform())),
            ]
        ],
        ({"where": "price > 9"}, {}, "rules: where: 'price > 9' holds for no item"),
        (
            {"where": "price == 1", "at_least": {"new": 2}},
            {},
            r"rules: at_least\['new'\]: got 2 places for 1 items that where leaves",
        ),
        (
            {"pin_where": {1: "brand == 'z'"}},
            {},
            r"rules: pin_where\[1\]: \"brand == 'z'\" holds for no item",
        ),
        (
            {"at_least": {"new": 2}, "window": {"new": (1, 2)}},
            {},
            r"rules: at_least\['new'\]: needs 2 places, but window\['new'\] leaves 1 of 2",
        ),
        (
            {"at_least": {"brand == 'x'": 2}, "window": {"brand": (1, 2)}},
            {},
            r"rules: at_least.*: needs 2 places, but window\['brand'\] leaves 1 of 2",
        ),
        (
            {"at_least": {"price < 9": 2}, "cap": {"new": 1}, "where": "new"},
            {},
            r"rules: at_least.*: needs 2 places, but cap\['new'\] leaves 1 of 2",
        ),
        *[
            (
                {"at_least": {"new": q}, **pins},
                {},
                f"rules: at_least: needs {q} places besides .* leave {2 - len(pinned)} of 2",
            )
            for q, pins in (
                (2, {"pin": {1: "b"}}),
                (1, {"pin_where": {1: "not new", 2: "not new"}}),
            )
            for pinned in pins.values()
        ],
        (
            {"decay": {"brand": 0.5}},
            {"policy": fr.BestFirst(1, fr.EpsilonGreedy(0.1))},
            "rules: decay: .* which changes weights of a softmax, and BestFirst",
        ),
        *[
            (
                {kind: value},
                {"policy": fr.FlatTail(1.0, m=2, factor=0.5)},
                f"rules: FlatTail does not support {kind}, got ",
            )
            for kind, value in {
                "boost": {"new": 2.0},
                "boost_score": {"new": 2.0},
                "at_least": {"new": 1},
                "pin_where": {1: "new"},
                "decay": {"brand": 0.5},
            }.items()
        ],
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_by_a_call(rules: dict[str, Any], call: dict[str, Any], message: str) -> None:
    given = fr.Rules(**rules)
    call = {"policy": PL} | call
    with pytest.raises(ValueError, match=f"^{message}"):
        CATALOG.rank([1.0], 2, rules=given, **call)
    with pytest.raises(ValueError, match=f"^{message}"):
        CATALOG.log_propensities([1.0], ["a", "b"], rules=given, **call)
    rows: dict[str, Any] = {
        name: [value, value]
        for name, value in call.items()
        if name in ("exclude", "allow", "after")
    }
    one = {name: value for name, value in call.items() if name not in rows}
    with pytest.raises(ValueError, match=message) as caught:
        CATALOG.rank_batch([[1.0]] * 2, 2, seeds=[1, 2], rules=given, **one, **rows)
    assert "row 0" in str(caught.value) or str(caught.value).startswith(("params", "after[0]"))


@pytest.mark.parametrize("rules", ["cap", {"cap": {"brand": 1}}, 5, fr.Rules])
def test_only_rules_are_rules(rules: Any) -> None:
    for call in (
        lambda: ranked(rules),
        lambda: CATALOG.log_propensities([1.0], ["a"], policy=PL, rules=rules),
        lambda: fr.rank_scores(["a"], [1.0], 1, policy=PL, rules=rules),
    ):
        with pytest.raises(ValueError, match=r"^rules: expected Rules, got "):
            call()


def test_a_catalog_without_columns() -> None:
    with pytest.raises(ValueError, match=r"^rules: cap: there is no column 'brand' .there are no"):
        PLAIN.rank([1.0], 1, policy=PL, rules=fr.Rules(cap={"brand": 1}))
    with pytest.raises(ValueError, match=r"^rules: where: 'new', column 1: 'new' is neither"):
        PLAIN.rank([1.0], 1, policy=PL, rules=fr.Rules(where="new"))
    assert PLAIN.rank([1.0], 2, policy=PL, rules=fr.Rules(pin={1: "a"})).item_ids[0] == "a"


def test_places_that_are_judged() -> None:
    rules = fr.Rules(at_least={"new": 1})
    for k, message in [(1, "k: a ranking of 2 places has more than 1"), (True, "k: "), (0, "k: ")]:
        with pytest.raises(ValueError, match=f"^{message}"):
            CATALOG.log_propensities([1.0], ["b", "c"], policy=PL, rules=rules, k=k)
        with pytest.raises(ValueError, match=f"^{message}"):
            CATALOG.log_propensities([1.0], ["b", "c"], policy=PL, k=k)
        for own in (None, rules):
            with pytest.raises(ValueError, match=f"^k: row 1: {message.removeprefix('k: ')}"):
                CATALOG.log_propensities_batch(
                    [[1.0]] * 2, [["b", "c"]] * 2, policies=[PL], rules=own, k=[2, k]
                )
    two = CATALOG.log_propensities([1.0], ["b", "c"], policy=PL, rules=rules)
    three = CATALOG.log_propensities([1.0], ["b", "c"], policy=PL, rules=rules, k=3)
    assert np.isneginf(two[1])
    assert np.isfinite(three).all()
    assert not len(CATALOG.log_propensities([1.0], [], policy=PL, rules=fr.Rules(where="new")))


# ---- Names ---------------------------------------------------------------------------------------


def test_names_are_read_as_features_read_them() -> None:
    catalog = fr.Catalog([1, 2, 3], [[1.0]] * 3, features={"\ufb01": ["x", "x", "y"]})
    ranking = catalog.rank([1.0], 3, policy=PL, rules=fr.Rules(cap={"\ufb01": 1}), seed=1)
    assert len(ranking) == 2
    ranking = catalog.rank([1.0], 3, policy=PL, rules=fr.Rules(where="\ufb01 == 'x'"), seed=1)
    assert sorted(ranking.item_ids.tolist()) == [1, 2]
    with pytest.raises(ValueError, match=r"^at_least: .* is a share by the column 'fi', which has"):
        fr.Rules(cap={"\ufb01": 1}, at_least={"fi == 'x'": 1})


# ---- Pages ---------------------------------------------------------------------------------------


def test_three_pages_in_a_chain_and_as_lists() -> None:
    n = 60
    rng = np.random.default_rng(0)
    catalog = fr.Catalog(
        np.arange(n),
        rng.standard_normal((n, 1)),
        features={"brand": [f"b{i % 6}" for i in range(n)]},
    )
    rules = fr.Rules(cap={"brand": 2}, window={"brand": (1, 3)}, decay={"brand": 0.5})
    call: dict[str, Any] = {"policy": PL, "rules": rules}
    pages: list[fr.Ranking] = []
    for seed in range(3):
        before = pages[-1] if pages else None
        pages.append(catalog.rank([1.0], 4, seed=seed, after=before, **call))
        shown = [int(id_) for page in pages[:-1] for id_ in page.item_ids]
        alike = [catalog.rank([1.0], 4, seed=seed, after=shown, **call)]
        alike.append(catalog.rank([1.0], 4, seed=seed, after=np.array(shown, np.int64), **call))
        alike.append(
            catalog.rank_batch([[1.0]] * 2, 4, seeds=[9, seed], after=[None, before], **call)[1]
        )
        for other in alike:
            assert same_ranking(pages[-1], other)
        assert (pages[-1].after is None) == (before is None)
        if before is not None:
            assert pages[-1].after is not None
            assert list(pages[-1].after) == shown
            assert alike[0].after is not None
            assert list(alike[0].after) == shown
        assert pages[-1].n_eligible == n - len(shown)
        got = catalog.log_propensities([1.0], pages[-1].item_ids, after=before, **call)
        np.testing.assert_allclose(got, pages[-1].log_propensities, atol=1e-7)
    ids = [int(id_) for page in pages for id_ in page.item_ids]
    assert len(set(ids)) == 12
    brands = [id_ % 6 for id_ in ids]
    assert all(brands.count(each) == 2 for each in range(6))
    assert all(len(set(brands[i : i + 3])) == 3 for i in range(10))


def test_pages_without_rules_show_what_is_left() -> None:
    first = CATALOG.rank([1.0], 2, policy=PL, seed=1)
    second = CATALOG.rank([1.0], 2, policy=PL, seed=1, after=first)
    assert sorted([*first.item_ids, *second.item_ids]) == ["a", "b", "c", "d"]
    assert second.rules is not None
    assert second.rules.rules == fr.Rules()
    assert not len(CATALOG.rank([1.0], 2, policy=PL, seed=1, after=["a", "b", "c", "d"]))


def test_a_page_is_of_the_catalog_that_it_was_ranked_from() -> None:
    rules = fr.Rules(cap={"brand": 1})
    other = fr.Catalog(["a", "b", "c", "d"], [[0.0]] * 4, features=FEATURES)
    with pytest.raises(ValueError, match=r"^after: the page is of the catalog"):
        other.rank([1.0], 1, policy=PL, rules=rules, after=PAGE)


def test_a_page_is_of_the_parameters_and_columns_that_it_was_ranked_by() -> None:
    rules = fr.Rules(where="price < most", cap={"brand": 1})
    page = ranked(rules, 1, params={"most": 3})
    assert len(ranked(rules, 1, params={"most": 3}, after=page)) == 1
    with pytest.raises(
        ValueError, match=r"^after: .* the parameters \{'most': 3.0\}, not \{'most': 9"
    ):
        ranked(rules, 1, params={"most": 9}, after=page)
    other = CATALOG.with_features(FEATURES | {"brand": ["x", "y", "z", "w"]})
    with pytest.raises(ValueError, match=r"^after: the page was ranked by other columns"):
        other.rank([1.0], 1, policy=PL, rules=rules, params={"most": 3}, after=page)


# ---- Parameters, columns, memory, threads --------------------------------------------------------


def test_rows_of_a_batch_have_rules_parameters_and_pages_of_their_own() -> None:
    rules: list[Any] = [
        fr.Rules(where="price < b"),
        None,
        fr.Rules(cap={"brand": 1}),
        fr.Rules(pin={1: "a"}),
    ]
    params = [{"b": 2.5}, {}, {}, None]
    after = [["a"], None, ["b"], None]
    batch = CATALOG.rank_batch(
        [[1.0]] * 4, 3, policy=PL, seeds=range(4), rules=rules, params=params, after=after
    )
    for i in range(4):
        one = CATALOG.rank(
            [1.0], 3, policy=PL, seed=i, rules=rules[i], params=params[i], after=after[i]
        )
        assert same_ranking(batch[i], one)
        assert batch[i].rules == one.rules
    assert sorted(batch[0].item_ids.tolist()) == ["b", "d"]
    assert batch[0].rules == (rules[0], {"b": 2.5})
    assert batch[1].rules is None
    wrong: Any = [rules[3], "x"]
    with pytest.raises(ValueError, match=r"^row 1: rules: expected Rules, got 'x'"):
        CATALOG.rank_batch([[1.0]] * 2, 2, policy=PL, seeds=[1, 2], rules=wrong)
    with pytest.raises(ValueError, match=r"^rules: expected one entry for each of 2 users, got 1"):
        CATALOG.rank_batch([[1.0]] * 2, 2, policy=PL, seeds=[1, 2], rules=[rules[3]])
    with pytest.raises(
        ValueError, match=r"^row 1: rules: where: 'price < b', column 9: 'b' is nei"
    ):
        CATALOG.rank_batch(
            [[1.0]] * 2, 2, policy=PL, seeds=[1, 2], rules=rules[0], params=[{"b": 2}, {}]
        )


def test_a_parameter_of_the_score_and_of_the_rules_is_one() -> None:
    ranking = CATALOG.rank(
        [1.0], 4, policy=fr.Deterministic(), score="dot * a", params={"a": -1.5, "b": 2.0},
        rules=fr.Rules(where="price > 0 and (a < 0 or b < 0)", boost_score={"price < b": 10.0}),
    )  # fmt: skip
    assert ranking.item_ids.tolist() == ["a", "b", "c", "d"]
    assert ranking.scores.tolist() == [10.0, -1.5, -3.0, -4.5]
    assert ranking.rules is not None
    assert ranking.rules.params == {"a": -1.5, "b": 2.0}


def test_other_columns_are_other_rules() -> None:
    rules = fr.Rules(cap={"brand": 1})
    other = CATALOG.with_features({**FEATURES, "brand": ["x", "y", "z", "w"]})
    assert len(ranked(rules, 4)) == 3
    assert len(other.rank([1.0], 4, policy=PL, rules=rules)) == 4
    assert len(ranked(rules, 4)) == 3
    one, two = (c.rank([1.0], 4, policy=PL, rules=rules) for c in (CATALOG, other))
    assert one.features_version != two.features_version
    with pytest.raises(ValueError, match=r"^rules: cap: there is no column 'brand'"):
        CATALOG.with_features({"price": [1.0] * 4}).rank([1.0], 4, policy=PL, rules=rules)


def test_rules_of_many_parameters_and_columns_are_kept_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n = 4_000
    columns = {f"c{j}": [str((i >> j) & 1) for i in range(n)] for j in range(6)}
    monkeypatch.setattr("fastrank.catalog._RULES_BYTES", 1 << 20)
    monkeypatch.setattr("fastrank.features._LABEL_BYTES", 1 << 17)
    catalog = fr.Catalog(
        np.arange(n), np.zeros((n, 1)), features={**columns, "price": np.arange(n, dtype=float)}
    )
    rules = fr.Rules(where="price < b", boost={"price > b / 2": 2.0}, cap={"c0": 3})
    for b in range(1, 200):
        ranking = catalog.rank([1.0], 2, policy=PL, rules=rules, params={"b": float(b)}, seed=b)
        assert (ranking.item_ids < b).all()
    assert 0 < catalog._rules.weight <= 1 << 20
    assert 1 < len(catalog._rules) < 100
    for j in range(64):
        cap = {f"c{i}": 1 for i in range(6) if j >> i & 1}
        catalog.rank([1.0], 5, policy=PL, rules=fr.Rules(cap=cap))
    assert catalog.features is not None
    assert 0 < catalog.features._joints.weight <= 1 << 17
    window = fr.Rules(window={"c1": (1, 2)})
    for k in range(1, 40):
        catalog.rank([1.0], k, policy=PL, rules=window)
    bound = catalog._rules.get((window.id, "[]"))
    assert bound is not None
    assert len(bound._joints) <= 2
    assert bound.nbytes > 2 * n * len(bound._joints)


def test_threads_call_with_rules_and_parameters_of_their_own() -> None:
    n = 3_000
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, 2))
    features = {
        "brand": rng.integers(0, 20, n).astype(str).tolist(),
        "genres": [rng.choice(["x", "y", "z"], 2, replace=False).tolist() for _ in range(n)],
        "price": rng.random(n).astype(np.float32),
    }
    rules = [
        fr.Rules(where="price < b", cap={"brand": 1}),
        fr.Rules(window={"genres": (1, 2)}, boost={"price > b": 3.0}),
        fr.Rules(decay={"genres": 0.5, "brand": 0.2}, where="price > b"),
    ]

    def call(catalog: fr.Catalog, i: int) -> fr.Ranking:
        params = {"b": 0.3 + 0.01 * (i % 17)}
        return catalog.rank([1, 1], 6, policy=PL, seed=i, rules=rules[i % 3], params=params)

    fresh, other = (fr.Catalog(np.arange(n), vectors, features=features) for _ in "ab")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: call(fresh, i), range(150)))
    for i, ranking in enumerate(together):
        assert same_ranking(ranking, call(other, i))
