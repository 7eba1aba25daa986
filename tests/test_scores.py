"""Scores by expressions: what they say, and that everything draws by them as by finished scores."""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import DRAWS, POLICIES, assert_law

import fastrank as fr
from fastrank import _native, reference
from fastrank.expressions import parsed

RNG = np.random.default_rng(15)
DRAWN = {name: policy for name, policy in POLICIES.items() if name != "flat_tail"}
DRAWN["best_first"] = fr.BestFirst(2, fr.PlackettLuce(0.8))
GENRES = ["comedy", "drama", "é", ""]


def some_columns(n: int, seed: int = 0) -> dict[str, Any]:
    """Of every kind; numbers are quarters, so that float32 compares them as Python does."""
    rng = np.random.default_rng(seed)
    genres = [
        sorted(rng.choice(GENRES, rng.integers(0, 3), replace=False).tolist()) for _ in range(n)
    ]
    return {
        "age": (rng.integers(0, 400, n) / 4).tolist(),
        "price": rng.integers(1, 60, n).astype(float).tolist(),
        "new": (rng.random(n) < 0.3).tolist(),
        "seller": [[None, "acme", "bob"][i] for i in rng.integers(0, 3, n)],
        "genres": genres,
    }


def some_catalog(n: int, dim: int = 5, **options: Any) -> fr.Catalog:
    rng = np.random.default_rng(n)
    vectors = rng.integers(-8, 9, (n, dim)) / 4.0
    return fr.Catalog(np.arange(n) * 2, vectors, features=some_columns(n), **options)


QUERY = np.array([1.0, -0.5, 0.25, 0.0, 2.0])


# ---- What expressions say ----------------------------------------------------------------------

NUMBERS = st.sampled_from(["dot", "age", "price", "new", "2", "0.5", "-3", "w"])
TRUTHS = st.sampled_from(
    [
        *("new", "age < 50", "price >= 30", "1 < price <= limit", "seller == 'acme'"),
        *("seller != shop", "'drama' in genres", "'é' not in genres", "'' in genres"),
        *("seller in ('bob', 'zed')", "price in (3, 5, 7)", "flag", "shop == 'bob'", "True"),
    ]
)


def _numbers(inner: Any, truths: Any) -> Any:
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda x: f"({x[0]} {x[1]} {x[2]})"),
        st.tuples(inner, inner).map(lambda x: f"({x[0]} / (1 + abs({x[1]})))"),
        st.tuples(inner, truths, inner).map(lambda x: f"({x[0]} if {x[1]} else {x[2]})"),
        st.tuples(inner, inner).map(lambda x: f"max({x[0]}, {x[1]}, 1)"),
        st.tuples(inner, inner).map(lambda x: f"min({x[0]}, {x[1]})"),
        inner.map(lambda x: f"exp(clip({x}, -3, 3))"),
        inner.map(lambda x: f"log(0.25 + abs({x}))"),
        inner.map(lambda x: f"log1p(abs({x}))"),
        inner.map(lambda x: f"sqrt(0.25 + abs({x}))"),
        inner.map(lambda x: f"sigmoid({x} / 50)"),
        inner.map(lambda x: f"(1 + abs({x} / 99)) ** 1.5"),
        st.tuples(inner, st.sampled_from(["2", "3", "-1", "-2", "0.5", "7"])).map(
            lambda x: f"(1 + abs({x[0]}) / 50) ** {x[1]}"
        ),
        inner.map(lambda x: f"-{x}"),
        truths.map(lambda x: f"(0.5 * ({x}))"),
    )


def _truths(inner: Any) -> Any:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
            lambda x: f"({x[0]} {x[1]} {x[2]})"
        ),
        inner.map(lambda x: f"(not {x})"),
    )


TRUTH = st.recursive(TRUTHS, _truths, max_leaves=4)
NUMBER = st.recursive(NUMBERS, lambda inner: _numbers(inner, TRUTH), max_leaves=8)
PARAMS: dict[str, Any] = {"w": 0.75, "limit": 40, "shop": "bob", "flag": True}
SOME = some_catalog(83)
COLUMNS = some_columns(83)


@functools.total_ordering
class Rounded:
    """A number, and how far off float32 arithmetic may be: what each step adds and hands on."""

    def __init__(self, value: float, error: float = 0.0) -> None:
        self.value, self.error = float(value), error

    @staticmethod
    def of(x: Any) -> Rounded:
        return x if isinstance(x, Rounded) else Rounded(x)

    def made(self, value: float, error: float, ulp: float = 1.0) -> Rounded:
        return Rounded(value, error + ulp * 2.0**-23 * abs(value) + 1e-37)

    def __add__(self, other: Any) -> Rounded:
        other = Rounded.of(other)
        return self.made(self.value + other.value, self.error + other.error)

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error)

    def __sub__(self, other: Any) -> Rounded:
        return self + -Rounded.of(other)

    def __mul__(self, other: Any) -> Rounded:
        other = Rounded.of(other)
        error = abs(self.value) * other.error + abs(other.value) * self.error
        return self.made(self.value * other.value, error + self.error * other.error)

    def __truediv__(self, other: Any) -> Rounded:
        other = Rounded.of(other)
        value, least = self.value / other.value, abs(other.value) - other.error
        return self.made(value, (self.error + abs(value) * other.error) / least)

    def __pow__(self, exponent: Any) -> Rounded:
        value, power = self.value, float(exponent)
        slope = abs(power) * max((value - self.error) ** (power - 1), value ** (power - 1)) * 2
        ulp = 8.0 + 2.0 * abs(power * math.log(value))
        return self.made(value**power, slope * self.error, ulp)

    def by(self, function: Any, slope: float, ulp: float = 3.0) -> Rounded:
        return self.made(function(self.value), slope * self.error, ulp)

    def __radd__(self, other: Any) -> Rounded:
        return Rounded.of(other) + self

    def __rsub__(self, other: Any) -> Rounded:
        return Rounded.of(other) - self

    def __rmul__(self, other: Any) -> Rounded:
        return Rounded.of(other) * self

    def __rtruediv__(self, other: Any) -> Rounded:
        return Rounded.of(other) / self

    def __float__(self) -> float:
        return self.value

    def __bool__(self) -> bool:
        return self.value != 0.0

    def __abs__(self) -> Rounded:
        return Rounded(abs(self.value), self.error)

    def __lt__(self, other: Any) -> bool:
        return self.value < Rounded.of(other).value

    def __eq__(self, other: object) -> bool:
        return self.value == Rounded.of(other).value

    __hash__ = None  # type: ignore[assignment]  # of what compares by value


class _Numbers(ast.NodeTransformer):
    """Those that are written in an expression are float32, too."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, bool | str):
            return node
        return ast.Call(ast.Name("Rounded", ast.Load()), [node], [])


def _errors(text: str, dots: npt.NDArray[Any], params: dict[str, Any]) -> list[float]:
    """How far off float32 may be for each item; `min` and `max` hand on what arguments have."""

    def chosen(of: Any) -> Any:
        def choose(*xs: Any) -> Rounded:
            numbers = [Rounded.of(x) for x in xs]
            return Rounded(of(x.value for x in numbers), max(x.error for x in numbers))

        return choose

    functions = {
        "exp": lambda x: Rounded.of(x).by(math.exp, 25.0),  # of at most 3
        "log": lambda x: Rounded.of(x).made(
            math.log(Rounded.of(x).value), 5.0 * Rounded.of(x).error + 1e-7
        ),
        "log1p": lambda x: Rounded.of(x).by(math.log1p, 1.0),
        "sqrt": lambda x: Rounded.of(x).by(math.sqrt, 1.0),
        "sigmoid": lambda x: Rounded.of(x).by(lambda v: 1 / (1 + math.exp(-v)), 0.25, 4.0),
        "min": chosen(min),
        "max": chosen(max),
        "clip": lambda x, low, high: Rounded(
            min(max(float(x), float(low)), float(high)), Rounded.of(x).error
        ),
        "abs": abs,
    }
    tree = _Numbers().visit(ast.parse(text, mode="eval"))
    code = compile(ast.fix_missing_locations(tree), "<text>", "eval")
    rows = zip(*COLUMNS.values(), strict=True)
    numbers = ("age", "price", "new")
    return [
        Rounded.of(
            eval(
                code,
                {},
                {
                    **functions,
                    **params,
                    "Rounded": Rounded,
                    **{
                        name: Rounded(x) if name in numbers else x
                        for name, x in zip(COLUMNS, row, strict=True)
                    },
                    "dot": Rounded(dot),
                },
            )
        ).error
        for dot, row in zip(dots.tolist(), rows, strict=True)
    ]


@given(text=NUMBER)
def test_an_expression_says_what_python_says(text: str) -> None:
    text = f"1 * {text}"
    names = parsed(text).names
    params = {name: value for name, value in PARAMS.items() if name in names}
    dots = SOME.scores(QUERY)
    right = reference.expression_scores(text, dots, COLUMNS, params)
    if np.abs(right).max() > 1e37:
        return
    made = SOME.scores(QUERY, score=text, params=params)
    np.testing.assert_array_less(
        np.abs(made - right), np.array(_errors(text, dots, params)) + 1e-30
    )


@pytest.mark.parametrize(
    ("text", "params", "value"),
    [
        ("dot", {}, lambda d, c: d),
        ("dot + 0.3 * exp(-age / half_life)", {"half_life": 30}, None),
        ("w1 * sigmoid(dot) + w2 * price", {"w1": 0.8, "w2": 0.01}, None),
        ("dot if 'é' in genres or '' in genres else -1", {}, None),
        ("dot if shop in genres else 0", {"shop": "drama"}, None),
        ("dot if shop in genres else 0", {"shop": "nowhere"}, None),
        ("dot if seller == shop else 0", {"shop": "nowhere"}, None),
        ("dot if seller != 'acme' else 0", {}, None),  # None is no text
        ("dot ** 2 - dot ** 5 + (1 + price) ** -3", {}, None),
        ("(1 + price) ** 0.5 + price ** 1.25 + (1 + age) ** w", {"w": -0.5}, None),
        ("3 < price < 30 < age or new", {}, None),
        ("1 + 2 * pi - e", {}, None),
        ("clip(dot, low, 1) + max(dot, age, price) - min(0, dot)", {"low": -0.5}, None),
        ("1 if on and not off else dot", {"on": True, "off": False}, None),
    ],
)
def test_examples(isa: str, text: str, params: dict[str, Any], value: Any) -> None:
    if text.startswith("3 <"):
        text = f"1.5 if {text} else dot"
    right = reference.expression_scores(text, SOME.scores(QUERY), COLUMNS, params)
    made = SOME.scores(QUERY, score=text, params=params)
    np.testing.assert_allclose(made, right, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["exp", "log", "log1p", "sqrt", "sigmoid"])
def test_functions_are_right_to_some_ulp(isa: str, name: str) -> None:
    x = np.concatenate(
        [
            np.linspace(1e-6, 80, 5000),
            np.geomspace(1e-38, 1e34, 5000),
            np.array([1.0, 0.5, 2.0**-126, 2.0**-140]),
        ]
    ).astype(np.float32)
    if name in ("exp", "sigmoid", "log1p"):
        x = np.clip(np.concatenate([x, -x]), -80 if name != "log1p" else -0.999, 80)
    catalog = fr.Catalog(np.arange(len(x)), x[:, None])
    made = catalog.scores([1.0], score=f"{name}(dot)").astype(np.float64)
    with np.errstate(over="ignore"):
        functions: dict[str, Any] = {
            "exp": np.exp,
            "log": np.log,
            "log1p": np.log1p,
            "sqrt": np.sqrt,
            "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        }
        right = functions[name](x.astype(np.float64))
    ulp = np.spacing(np.abs(right).astype(np.float32)).astype(np.float64)
    # A result near 0 comes of two that are not: log near 1.
    assert np.max(np.abs(made - right) / np.maximum(ulp, 1e-45)) <= 4.0


def test_powers_are_as_good_as_their_logarithm(isa: str) -> None:
    x = np.geomspace(1e-6, 1e6, 999).astype(np.float32)
    catalog = fr.Catalog(np.arange(len(x)), x[:, None])
    for exponent in (-2.5, -0.3, 0.7, 1.9):
        made = catalog.scores([1.0], score="dot ** p", params={"p": exponent})
        right = x.astype(np.float64) ** float(np.float32(exponent))
        bound = 1.2e-7 * (2 + np.abs(exponent * np.log(x.astype(np.float64))))
        assert (np.abs(made / right - 1) <= 2 * bound).all()


def test_what_is_not_a_number_is_not_hidden() -> None:
    """Whichever argument it is: `min` and `max` do not drop it."""
    catalog = fr.Catalog([1, 2], [[1.0], [4.0]])
    for text in ("max(log(dot - 2), 0)", "max(0, log(dot - 2))", "min(sqrt(dot - 2), dot)"):
        with pytest.raises(ValueError, match="gives the item 1 nan"):
            catalog.scores([1.0], score=text)


# ---- Drawing -----------------------------------------------------------------------------------

# Scored panel by panel, and, of so many steps, a tile at a time: both are `s`.
FINISHED = {"short": "s", "long": "s" + " + 0 * s" * 9}


def finished(n: int, **options: Any) -> tuple[fr.Catalog, npt.NDArray[np.float32]]:
    """A catalog whose column says what the score is to be."""
    scores = RNG.standard_normal(n).astype(np.float32).round(1)
    scores[n // 2] = 4.0
    vectors = RNG.standard_normal((n, 3), dtype=np.float32)
    return fr.Catalog(np.arange(n) * 3, vectors, features={"s": scores}, **options), scores


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("n", [1, 16, 37, 300])
@pytest.mark.parametrize("length", FINISHED)
def test_rankings_are_those_of_finished_scores(
    isa: str, chunk_panels: int, name: str, n: int, length: str
) -> None:
    text = FINISHED[length]
    catalog, scores = finished(n)
    policy = DRAWN[name]
    query, ids = [0.5, -1.0, 2.0], catalog.item_ids
    cases: list[dict[str, Any]] = [
        {},
        {"exclude": ids[::3]},
        {"allow": ids[::2], "exclude": ids[:1]},
    ]
    for filters in cases:
        for k in (1, 7, n + 1):
            made = catalog.rank(query, k, policy=policy, seed=5, score=text, **filters)
            if name == "cached":
                check = reference.log_propensities
                left = np.isin(ids, filters.get("allow", ids))
                left &= ~np.isin(ids, filters.get("exclude", []))
                rows = np.searchsorted(ids, made.item_ids)
                right = check(scores, rows, fr.PlackettLuce(0.8), left)
                np.testing.assert_allclose(made.log_propensities, right, atol=1e-5)
                assert made.made_by == "table" or filters  # of few items a pass is cheaper
                continue
            given = fr.rank_scores(ids, scores, k, policy=policy, seed=5, **filters)
            assert given == dataclasses.replace(made, catalog_version="")
            judged = catalog.log_propensities(
                query, made.item_ids, policy=policy, score=text, **filters
            )
            own = fr.log_propensities_of_scores(
                ids, scores, made.item_ids, policy=policy, **filters
            )
            np.testing.assert_allclose(judged, own, rtol=0, atol=2e-6)


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("length", FINISHED)
@pytest.mark.parametrize("name", [name for name in DRAWN if name != "cached"])
def test_over_many_chunks_threads_and_storages(
    isa: str, storage: str, length: str, name: str
) -> None:
    catalog, scores = finished(40_007, storage=storage)
    ids, policy = catalog.item_ids, DRAWN[name]
    cases: list[dict[str, Any]] = [{}, {"exclude": ids[5:30_000]}, {"allow": ids[::50]}]
    for filters in cases:
        given = fr.rank_scores(ids, scores, 10, policy=policy, seed=9, **filters)
        for threads in (1, 3):
            made = catalog.rank(
                [1.0, 1.0, 1.0],
                10,
                policy=policy,
                seed=9,
                score=FINISHED[length],
                threads=threads,
                **filters,
            )
            assert given == dataclasses.replace(made, catalog_version="")


def test_a_row_of_a_batch_is_a_ranking_of_its_own(isa: str) -> None:
    n = 20_011
    columns = {"s": RNG.standard_normal(n), "age": RNG.exponential(60, n)}
    for storage in ("float32", "int8"):
        vectors = RNG.standard_normal((n, 6), dtype=np.float32)
        catalog = fr.Catalog(np.arange(n), vectors, features=columns, storage=storage)
        queries = RNG.standard_normal((9, 6))
        text = "dot * w + 0.3 * exp(-age / half_life)" + " + 0 * s" * (7 * (storage == "int8"))
        params = [{"w": 0.1 * i, "half_life": 30.0 + i} for i in range(9)]
        policies = [list(DRAWN.values())[i % len(DRAWN)] for i in range(9)]
        exclude = [None, [1, 2, 3], *[list(range(0, n, 2))] * 7]
        biases = RNG.standard_normal((9, n)).astype(np.float32)
        for bias in (None, biases):
            for threads in (1, 2):
                batch = catalog.rank_batch(
                    queries,
                    6,
                    policy=policies,
                    seeds=range(9),
                    exclude=exclude,
                    bias=bias,
                    score=text,
                    params=params,
                    threads=threads,
                )
                for i, row in enumerate(batch):
                    one = catalog.rank(
                        queries[i],
                        6,
                        policy=policies[i],
                        seed=i,
                        exclude=exclude[i],
                        bias=None if bias is None else bias[i],
                        score=text,
                        params=params[i],
                    )
                    assert row == one
                    assert row.score == one.score
                    assert row.features_version == catalog.features_version
        judged = catalog.log_propensities_batch(
            queries,
            [row.item_ids for row in batch],
            policies=[policies],
            exclude=exclude,
            bias=biases,
            score=text,
            params=params,
        )
        np.testing.assert_allclose(judged[0], batch.log_propensities, atol=1e-4)


def test_items_that_a_filter_takes_out_need_no_score_in_batches_either() -> None:
    catalog = fr.Catalog([1, 2, 3, 4], np.eye(4), features={"norm": [1.0, 0.0, 2.0, 4.0]})
    queries, policies = [[1.0, 2.0, 3.0, 4.0]] * 3, [fr.PlackettLuce(0.5), fr.Uniform()]
    call: dict[str, Any] = {"score": "dot / norm", "exclude": [[2], [2, 4], [2]]}
    rankings = [[1, 3], [3], [4, 3, 1]]
    judged = catalog.log_propensities_batch(queries, rankings, policies=policies, **call)
    for j, policy in enumerate(policies):
        for i, ranking in enumerate(rankings):
            one = catalog.log_propensities(
                queries[i], ranking, policy=policy, score="dot / norm", exclude=call["exclude"][i]
            )
            np.testing.assert_allclose(judged[j, i, : len(ranking)], one, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"^queries: row 1: score: .* gives the item 2 more than 1e38"
    ):
        catalog.log_propensities_batch(
            queries, rankings, policies=policies, score="dot / norm", exclude=[[2], [4], [2]]
        )


def test_a_batch_may_mix_dot_products_and_scores() -> None:
    catalog = some_catalog(500).with_score("dot + w * new", {"w": 1.0})
    params = [None, {"w": 0.0}, {"w": -5.0}]
    queries = np.stack([QUERY] * 3)
    batch = catalog.rank_batch(queries, 4, policy=fr.Deterministic(), params=params)
    assert [row.score.params for row in batch if row.score] == [{"w": 1.0}, {"w": 0.0}, {"w": -5.0}]
    assert batch[1].item_ids.tolist() == [
        *catalog.rank(QUERY, 4, policy=fr.Deterministic(), score="dot").item_ids
    ]


@pytest.mark.sampled
def test_law_in_an_order_of_its_own(isa: str) -> None:
    """A prior stores items, and columns, in another order: the law is that of the rows."""
    columns: dict[str, list[Any]] = {
        "age": [0.0, 3.0, 1.0, 2.0, 9.0],
        "hot": [True, False, False, True, False],
    }
    catalog = fr.Catalog(
        [10, 20, 30, 40, 50],
        [[0.1], [0.2], [0.3], [0.4], [0.5]],
        prior=[1, 5, 2, 4, 3],
        features=columns,
    )
    text, policy = "dot - 0.3 * age + hot", fr.PlackettLuce(0.7)
    right = reference.expression_scores(text, [0.1, 0.2, 0.3, 0.4, 0.5], columns)
    np.testing.assert_allclose(catalog.scores([1.0], score=text), right, rtol=1e-6, atol=1e-7)
    draws = max(200, int(12_000 * DRAWS))
    for sampler in ("gumbel", "sequential", "cached"):
        drawn = [
            catalog.rank([1.0], 2, policy=policy.with_sampler(sampler), seed=i, score=text)
            for i in range(draws)
        ]
        orders = np.searchsorted(catalog.item_ids, [r.item_ids for r in drawn])
        assert_law(orders, reference.ranking_law(right, 2, policy))
        # Scores without columns, and columns in the order in which items are stored.
        stored = {name: [column[i] for i in (1, 3, 4, 2, 0)] for name, column in columns.items()}
        for wrong in ("dot", text) if DRAWS >= 1.0 else ():
            scores = reference.expression_scores(wrong, [0.1, 0.2, 0.3, 0.4, 0.5], stored)
            with pytest.raises(AssertionError, match=r"^p = "):
                assert_law(orders, reference.ranking_law(scores, 2, policy))


# ---- Faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_score_that_is_none_names_the_item(isa: str, storage: str, threads: int) -> None:
    n = 20_000
    stock = np.ones(n)
    stock[[777, 15_000]] = 0.0
    catalog = fr.Catalog(
        [f"sku-{i}" for i in range(n)], np.ones((n, 2)), features={"stock": stock}, storage=storage
    )
    for name, policy in DRAWN.items():
        if name == "uniform":
            continue  # scores what it shows
        with pytest.raises(ValueError, match=r"score: '1 / stock' gives the item 'sku-777' more"):
            catalog.rank([1.0, 1.0], 3, policy=policy, seed=1, score="1 / stock", threads=threads)
    with pytest.raises(ValueError, match=r"'sku-777' less than -1e38"):
        catalog.scores([1.0, 1.0], score="-1 / stock")
    with pytest.raises(ValueError, match=r"'sku-777' nan.*with params \{'w': 0.0\}"):
        catalog.log_propensities(
            [1.0, 1.0],
            ["sku-1"],
            policy=fr.PlackettLuce(),
            score="w / stock",
            params={"w": 0.0},
        )
    with pytest.raises(ValueError, match=r"queries: row 1: score: .*'sku-777'"):
        catalog.rank_batch(
            np.ones((2, 2)),
            3,
            policy=fr.PlackettLuce(),
            score="1 / (stock + w)",
            params=[{"w": 1.0}, {"w": 0.0}],
        )


@pytest.mark.parametrize("sampler", ["gumbel", "cached"])
def test_of_several_users_whose_scores_are_none_the_first_is_named(sampler: Any) -> None:
    """With the item that is this user's own, whatever those after it met."""
    catalog = fr.Catalog([1, 2, 3], np.eye(3), features={"a": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match=r"^queries: row 1: .* gives the item 3 more .*'w': 3.0"):
        catalog.rank_batch(
            np.ones((4, 3)),
            2,
            policy=fr.PlackettLuce(sampler=sampler),
            score="1 / (a - w)",
            params=[{"w": w} for w in (0.0, 3.0, 1.0, 2.0)],
        )


def test_of_what_is_filtered_out_nothing_is_asked(isa: str, chunk_panels: int) -> None:
    n = 1000
    stock = np.ones(n)
    stock[::7] = 0.0
    catalog = fr.Catalog(np.arange(n), np.arange(n)[:, None] / n, features={"stock": stock})
    none = np.arange(0, n, 7)
    for name, policy in DRAWN.items():
        if name == "cached":
            continue  # a table is of all items
        ranking = catalog.rank([1.0], 5, policy=policy, seed=3, exclude=none, score="dot / stock")
        right = catalog.rank([1.0], 5, policy=policy, seed=3, exclude=none)
        assert ranking == right
        judged = catalog.log_propensities(
            [1.0], ranking.item_ids, policy=policy, exclude=none, score="dot / stock"
        )
        np.testing.assert_allclose(judged, ranking.log_propensities, atol=1e-6)
    with pytest.raises(ValueError, match="gives the item 0 nan"):
        catalog.rank(
            [1.0],
            5,
            policy=fr.PlackettLuce(sampler="cached"),
            exclude=none,
            score="dot / stock",
        )


def test_a_bias_is_added_behind() -> None:
    catalog = fr.Catalog([1, 2], [[1.0], [2.0]], bias=[0.5, 0.25], features={"a": [3.0, 4.0]})
    made = catalog.scores([1.0], bias=[10.0, 20.0], score="dot * a")
    assert made.tolist() == [13.5, 28.25]


def test_a_dot_product_beyond_the_range_is_refused_whatever_a_score_makes_of_it() -> None:
    """It could be an infinity, of which `1 / dot` makes a score like any other."""
    catalog = fr.Catalog([1, 2], [[1.0], [2.0]])
    made = catalog.scores([8e37], score="1 / dot")
    assert made.tolist() == pytest.approx([1 / 8e37, 1 / 16e37])
    with pytest.raises(ValueError, match="scores could pass the float32 range"):
        catalog.scores([9e37], score="1 / dot")


# ---- What is refused ---------------------------------------------------------------------------

REFUSED = [
    ("dot +", "invalid syntax"),
    ("", "invalid syntax"),
    ("dot; dot", "invalid syntax"),
    ("dot.real", "column 1: an attribute is not part of the language"),
    ("dot + age[0]", "column 7: an index is not part of the language"),
    ("missing * dot", "column 1: 'missing' is neither a column (there are age, genres, new, price"),
    ("dot if price else 1", "column 8: expected true or false, but this is a number"),
    ("seller * 2", "expected a number, but this is a text, the column 'seller'"),
    ("exp(dot, 1)", "exp takes 1 positional arguments"),
    ("max(dot)", "max takes 2 to 16 positional arguments"),
    ("exp", "exp is a function"),
    ("exp(x=dot)", "exp takes 1 positional arguments"),
    ("dot // 2", "the operator // is not part of the language"),
    ("dot & new", "write `and`"),
    ("'a' in seller", "a column of lists"),
    ("seller in genres", "expected one text, the same for all items"),
    ("'a' in shop", "after `in`"),
    ("dot == 'x'", "a number is compared with a text"),
    ("seller < 'a'", "texts can be compared only by"),
    ("seller == seller", "two columns of texts"),
    ("genres", "a score is a number, but this is a list of texts"),
    ("__import__('os').system('x')", "only functions can be called"),
    ("open('x')", "there is no function 'open'"),
    ("(lambda: 1)()", "only functions can be called"),
    ("[x for x in genres]", "a comprehension is not part of the language"),
    ("(dot, 1)", "a tuple that does not follow `in`"),
    ("dot < 3", "a score is a number, but this is true or false"),
    ("True", "a score is a number"),
    ("'text'", "a score is a number, but this is a text"),
    ("1e400 * dot", "not finite in float32"),
    ("dot ** 1e400", "not finite in float32"),
    ("dot ** -1e400", "not finite in float32"),
    ("(dot + 1\n + é)", "line 2, column 4: 'é' is neither a column"),
    ("(é + dot +\n lost)", "'é' is neither a column"),
    ("(age + 'é' +\n   dot.real)", "line 2, column 4: an attribute"),
    ("1 if age in (1, 2) == True else 0", "`in` must be last in a chain of comparisons"),
    ("10 ** 60 * dot", "not finite in float32"),
    ("1 / 0 + dot", "division by zero"),
    ("1j * dot", "not a number, a boolean or a text"),
    ("None", "not a number, a boolean or a text"),
    ("dot if new else seller", "both values of a choice must be numbers"),
    ("1 if 'a' else 2", "expected true or false"),
    ("1 if 'a' < 'b' else 2", "a text is compared with a text"),
    ("f'{dot}'", "an f-string is not part of the language"),
    ("2 * dot + (" * 49 + "dot" + ")" * 49, "intermediate results"),
    ("dot + (" * 160 + "dot" + ")" * 160, "nests more than 150 deep"),
    ("(" * 900 + "dot" + ")" * 900, ""),
    ("+".join(["dot"] * 4000), "at most 10,000 characters"),
    ("dot\0", "null bytes"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_expression_is_refused_with_place_and_reason(text: str, reason: str) -> None:
    if text.startswith("(" * 900) and _accepted(text):
        return  # some versions of Python read it
    with pytest.raises(ValueError, match=r"^score: ") as refused:
        SOME.rank(QUERY, 3, policy=fr.PlackettLuce(), score=text, **_params_for(text))
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 500


def _accepted(text: str) -> bool:
    try:
        parsed(text)
    except ValueError:
        return False
    return True


def _params_for(text: str) -> dict[str, Any]:
    return {"params": {"shop": "a"}} if "shop" in text else {}


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "'w' is neither a column"),
        ({"w": "text"}, "expected a number, but this is a text"),
        ({"w": math.nan}, r"params['w']: must be finite, got nan"),
        ({"w": 10**400}, r"params['w']: must be finite"),
        ({"w": 1e39}, "its value 1e+39 is not finite in float32"),
        ({"w": None}, r"params['w']: expected a number, a boolean or a text, got None"),
        ({"w": [1.0]}, r"params['w']: expected a number"),
        ({"w": 1.0, "v": 2.0}, "params: 'v' is not in the score"),
        ({"w": 1.0, "age": 2.0}, "params: 'age' is not in the score"),
        ({"w": 1.0, "dot": 2.0}, "params: 'dot' has another meaning in the score"),
        ({1: 2.0}, "expected names as text, got 1"),
        ([("w", 1.0)], "params: expected a mapping"),
    ],
)
def test_params_that_do_not_fit(params: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^(params|score)") as refused:
        SOME.rank(QUERY, 3, policy=fr.PlackettLuce(), score="w * dot", params=params)
    assert reason in str(refused.value)


def test_a_param_is_no_column() -> None:
    with pytest.raises(ValueError, match="params: 'age' is a column of the score"):
        SOME.scores(QUERY, score="age * dot", params={"age": 1.0})


def test_params_without_a_score() -> None:
    with pytest.raises(
        ValueError, match="params: 'w' is not used: the score is the dot product alone"
    ):
        SOME.rank(QUERY, 3, policy=fr.PlackettLuce(), params={"w": 1.0})
    with pytest.raises(ValueError, match="score: expected an expression"):
        SOME.rank(QUERY, 3, policy=fr.PlackettLuce(), score=3)  # type: ignore[arg-type]


def test_a_flat_tail_refuses_a_score() -> None:
    flat = fr.FlatTail(0.5, m=10)
    for call in (
        lambda: SOME.rank(QUERY, 3, policy=flat, score="dot + age"),
        lambda: SOME.rank_batch([QUERY], 3, policy=flat, score="dot + age"),
        lambda: SOME.log_propensities(QUERY, [0], policy=flat, score="dot + age"),
        lambda: SOME.log_propensities_batch([QUERY], [[0]], policies=[flat], score="dot + age"),
        lambda: SOME.with_score("dot + age").rank(QUERY, 3, policy=flat),
    ):
        with pytest.raises(ValueError, match=r"FlatTail .* cannot use the score 'dot . age'"):
            call()
    assert len(SOME.with_score("dot + age").rank(QUERY, 3, policy=flat, score="dot")) == 3


def test_an_expression_is_compiled_in_time_that_grows_with_it() -> None:
    """Steps, not seconds: each node is looked at a bounded number of times."""
    text = " + ".join(f"({' + '.join(['w * age'] * 12)})" for _ in range(60))
    catalog = some_catalog(40)
    right = 720 * 0.5 * np.array(some_columns(40)["age"])
    np.testing.assert_allclose(
        catalog.scores(QUERY, score=text, params={"w": 0.5}), right, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("around", "right"),
    [
        ("({} in (1, 1))", 0.0),
        ("(-9 < {} < 9)", 1.0),
        ("(-9 < {} < 9 > 0 > -9)", 1.0),
    ],
)
@pytest.mark.parametrize("inner", ["age", "2"])
def test_comparisons_within_comparisons_do_not_double_each_other(
    around: str, right: float, inner: str
) -> None:
    """What stands in the middle is reckoned once: 2^60 steps would never end."""
    text = inner
    for _ in range(60):
        text = around.format(text)
    made = SOME.scores(QUERY, score=f"1.0 * {text} + 0 * dot")
    assert made[0] == right


def test_a_term_in_the_middle_is_kept_for_both_comparisons() -> None:
    dots, age = SOME.scores(QUERY), np.array(COLUMNS["age"])
    text = "1.0 * (-1 < dot + 1 <= 2 * dot < age * 0.5 and age - 3 in (dot, age - 3, 7))"
    right = (dots + 1 > -1) & (dots + 1 <= 2 * dots) & (2 * dots < age * 0.5)
    assert 0 < right.sum() < len(right)
    assert SOME.scores(QUERY, score=text).tolist() == right.astype(float).tolist()


# ---- A score of its own ------------------------------------------------------------------------


def test_a_catalog_has_a_score_of_its_own_where_a_call_says_none(tmp_path: Path) -> None:
    plain = some_catalog(64)
    catalog = plain.with_score("w * dot - age", {"w": 2.0})
    assert plain.score is None
    assert catalog.score is not None
    assert catalog.score.params == {"w": 2.0}
    assert catalog.version == plain.version
    right = reference.expression_scores(
        "w * dot - age", plain.scores(QUERY), some_columns(64), {"w": 3.0}
    )
    np.testing.assert_allclose(catalog.scores(QUERY, params={"w": 3.0}), right, rtol=1e-6)
    assert catalog.rank(QUERY, 2, policy=fr.Uniform(), score="dot").score is None
    ranking = catalog.rank(QUERY, 2, policy=fr.Uniform(), params={"w": 3.0})
    assert ranking.score is not None
    assert json.loads(ranking.score.params_text) == {"w": 3.0}
    catalog.save(tmp_path / "c")
    opened = fr.Catalog.open(tmp_path / "c", verify=True)
    assert opened.score == catalog.score
    assert opened.features_version == catalog.features_version
    np.testing.assert_array_equal(opened.scores(QUERY), catalog.scores(QUERY))
    assert opened.with_score(None).score is None
    assert opened.with_score("dot").score is None


def test_spaces_do_not_make_another_score() -> None:
    assert parsed("dot+0.5*age").hash == parsed(" dot + (0.5 * age) ").hash
    assert parsed("dot + 1").hash == parsed("dot + 1.0").hash
    assert parsed("dot + 1").hash != parsed("1 + dot").hash
    assert parsed("dot + True").hash != parsed("dot + 1").hash


def test_tables_are_of_a_score_and_its_params() -> None:
    catalog = some_catalog(200)
    policy = fr.PlackettLuce(0.5, sampler="cached")
    scores: list[dict[str, Any]] = [
        {},
        {"score": "dot - w * age", "params": {"w": 0.1}},
        {"score": "dot - w * age", "params": {"w": 0.2}},
        {"score": "dot + 0.1 * price"},
    ]
    for _ in range(2):
        for each in scores:
            ranking = catalog.rank(QUERY, 4, policy=policy, seed=1, **each)
            assert ranking.made_by == "table"
            right = reference.log_propensities(
                catalog.scores(QUERY, **each), ranking.item_ids // 2, fr.PlackettLuce(0.5)
            )
            np.testing.assert_allclose(ranking.log_propensities, right, atol=1e-5)
    assert catalog.tables_made == len(scores)


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("length", FINISHED)
def test_what_a_filter_takes_from_a_table_is_by_the_score(
    isa: str, length: str, storage: str
) -> None:
    """What is taken from a cell is scored alone: of float32 by panels, beside codes by rows."""
    catalog, scores = finished(300_007, storage=storage)
    ids, query, text = catalog.item_ids, [0.5, -1.0, 2.0], FINISHED[length]
    best = np.argsort(-scores)
    cases: list[dict[str, Any]] = [
        {"exclude": ids[best[:30]]},
        {"exclude": ids[np.concatenate([best[:10], np.arange(40, 200)])]},
        {"allow": ids[100:400]},
    ]
    for filters in cases:
        left = np.isin(ids, filters.get("allow", ids))
        left &= ~np.isin(ids, filters.get("exclude", []))
        for seed in range(4):
            made = catalog.rank(query, 7, policy=DRAWN["cached"], seed=seed, score=text, **filters)
            assert made.made_by == "table"
            rows = made.item_ids // 3
            right = reference.log_propensities(scores, rows, fr.PlackettLuce(0.8), left)
            np.testing.assert_allclose(made.log_propensities, right, atol=1e-5)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_filter_keeps_to_a_table_where_a_pass_by_the_score_costs_more(storage: str) -> None:
    """Codes make the pass by dot products cheaper, and leave that by a score as it is."""
    catalog, _ = finished(20_011, storage=storage)
    ids = catalog.item_ids
    places = np.arange(len(ids))
    cut = ids[(places // 16 % 5 == 0) & (places % 16 < 4)]
    call: dict[str, Any] = {"policy": DRAWN["cached"], "seed": 1, "exclude": cut}
    assert catalog.rank([0.5, -1.0, 2.0], 5, score="s", **call).made_by == "table"
    by_dot = catalog.rank([0.5, -1.0, 2.0], 5, **call)
    assert by_dot.made_by == ("table" if storage == "float32" else "pass")


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("length", FINISHED)
def test_tables_of_many_users_are_made_together(isa: str, length: str, storage: str) -> None:
    """Ahead, and by a batch whose users have scores of their own: every user's is by their own."""
    n, users = 20_011, 11
    catalog, scores = finished(n, storage=storage)
    queries = RNG.standard_normal((users, 3)).astype(np.float32)
    policy, text = DRAWN["cached"], f"({FINISHED[length]}) + w"
    own = catalog.with_score(text, {"w": 0.5})
    names = [f"u{i}" for i in range(users)]
    model = fr.Model(own, names, queries).with_tables(fr.PlackettLuce(0.8), threads=2)
    text = f"({FINISHED[length]}) * w"
    factors = [0.5 + 0.1 * i for i in range(users)]
    batch = catalog.rank_batch(
        queries,
        5,
        policy=policy,
        seeds=range(users),
        score=text,
        params=[{"w": w} for w in factors],
    )
    for i, (name, factor) in enumerate(zip(names, factors, strict=True)):
        ahead = model.recommend(name, 5, policy=fr.PlackettLuce(0.8, sampler="auto"), seed=i)
        for made, right in ((ahead, scores + 0.5), (batch[i], scores * factor)):
            assert made.made_by == "table"
            rows = made.item_ids // 3
            lp = reference.log_propensities(right, rows, fr.PlackettLuce(0.8))
            np.testing.assert_allclose(made.log_propensities, lp, atol=1e-5)


def test_tables_made_ahead_are_of_the_models_own_score(tmp_path: Path) -> None:
    catalog = some_catalog(300)
    policy = fr.PlackettLuce(0.5, sampler="auto")
    model = fr.Model(catalog, ["ann"], [QUERY]).with_score("dot - 0.1 * age").with_tables(policy)
    model.save(tmp_path / "m")
    opened = fr.Model.open(tmp_path / "m", verify=True)
    for each in (model, opened):
        ranking = each.recommend("ann", 4, policy=policy, seed=1)
        assert ranking.made_by == "table"
        right = reference.log_propensities(
            model.catalog.scores(QUERY), ranking.item_ids // 2, fr.PlackettLuce(0.5)
        )
        np.testing.assert_allclose(ranking.log_propensities, right, atol=1e-5)
        assert each.recommend("ann", 4, policy=policy, score="dot").made_by == "pass"
        assert each.with_score("dot - age").table_temperature is None
        assert each.with_features(some_columns(300, seed=1)).table_temperature is None
        assert each.with_functions().table_temperature == 0.5
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    manifest["score"]["params"] = {}
    assert manifest["score"]["name"] == "dot - 0.1 * age"


def test_the_core_refuses_steps_that_point_nowhere() -> None:
    op = dict.fromkeys(_native.OPS, 0) | {name: i for i, name in enumerate(_native.OPS)}
    column = np.zeros(16, np.float32)

    def function(*step: int) -> _native.Function:
        steps = np.array([step], np.int32)
        none = np.zeros(0, np.float32)
        return _native.Function(16, lambda position, what: "", none, [column], [], steps)

    function(op["copy"], -1, 1 << 16, 0, 0)
    for bad in (
        (len(_native.OPS), -1, 0, 0, 0),
        (-1, -1, 0, 0, 0),
        (0, _native.REGISTERS, 0, 0, 0),
        (0, -2, 0, 0, 0),
        (0, -1, _native.REGISTERS, 0, 0),
        (0, -1, 2 << 16, 0, 0),
        (0, -1, (3 << 16) + 1, 0, 0),
        (0, -1, 4 << 16, 0, 0),
        (0, -1, 5 << 16, 0, 0),
        (0, -1, -1, 0, 0),
    ):
        with pytest.raises(ValueError, match="steps: no such"):
            function(*bad)
    other = function(op["copy"], -1, 1 << 16, 0, 0)
    with pytest.raises(ValueError, match="function: of other items"):
        SOME._packed.scores(SOME._query(QUERY), None, other)


def test_code_is_run_of_items_alone(isa: str) -> None:
    """Past the last one columns hold zeros, with which a loop of its own need not end."""
    asked: list[int] = []

    def run(_context: int, first: int, count: int, _scores: int) -> None:
        asked.extend(range(first, first + count))

    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    code = ctypes.CFUNCTYPE(None, pointer, integer, integer, pointer)(run)
    none, address = np.zeros(0, np.float32), ctypes.cast(code, pointer).value
    assert address is not None
    function = _native.Function(83, lambda position, what: "", none, [], [], code=address)
    SOME._packed.scores(SOME._query(QUERY), None, function)
    assert asked == list(range(83))


def test_the_core_refuses_a_bias_that_leaves_a_score_no_room() -> None:
    """However small dot products are: a function may make 1e38 of them. Who calls allows 1e37."""
    copy = np.array([[_native.OPS.index("copy"), -1, 1 << 16, 0, 0]], np.int32)
    none = np.zeros(0, np.float32)
    function = _native.Function(83, lambda position, what: "", none, [], [], copy)
    for of, bias, fits in (
        (None, 7.1e37, True),
        (function, 6.9e37, True),
        (function, 7.1e37, False),
    ):
        call = SOME._query(QUERY), np.full(83, bias, np.float32), of
        if fits:
            assert SOME._packed.scores(*call)[0] == np.float32(bias)
            continue
        with pytest.raises(ValueError, match="scores could pass the float32 range"):
            SOME._packed.scores(*call)
