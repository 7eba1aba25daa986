"""Many rankings under many policies at once: to the bit what one call for each gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastrank as fr
from fastrank import packing

RNG = np.random.default_rng(0)
POLICIES: tuple[fr.Policy, ...] = (
    fr.PlackettLuce(0.3),
    fr.PlackettLuce(1e-6),
    fr.PlackettLuce(1e6, sampler="cached"),
    fr.EpsilonGreedy(0.2),
    fr.Deterministic(),
    fr.Uniform(),
    fr.BestFirst(2, fr.PlackettLuce(0.3)),
)


def catalog(kind: str) -> fr.Catalog:
    n = packing.CODED_FROM if kind == "int8" else 300
    vectors = RNG.standard_normal((n, 7)).astype(np.float32)
    vectors[10:20] = vectors[10]  # ties
    every: dict[str, dict[str, Any]] = {
        "plain": {},
        "int8": {"storage": "int8"},
        "bias": {"bias": RNG.standard_normal(n)},
        "prior": {"prior": RNG.standard_normal(n)},
        "text ids": {},
    }
    ids = [f"i{i}" for i in range(n)] if kind == "text ids" else np.arange(n) * 3
    return fr.Catalog(ids, vectors, **every[kind])


@pytest.mark.parametrize("kind", ["plain", "int8", "bias", "prior", "text ids"])
@pytest.mark.parametrize("bias", [None, "one", "each"])
def test_each_is_what_one_call_gives(kind: str, bias: str | None) -> None:
    items = catalog(kind)
    n, b = len(items), 8
    queries = RNG.standard_normal((b, 7))
    queries[3] = queries[2]  # a user again, with another ranking
    queries[5] = 0.0
    rankings = [items.item_ids[RNG.permutation(n)[: int(RNG.integers(0, 6))]] for _ in range(b)]
    rankings[1] = items.item_ids[[12, 10, 12]]  # a repeat
    exclude: list[Any] = [
        None,
        items.item_ids[:5],
        None,
        items.item_ids[[10]],
        None,
        [],
        None,
        None,
    ]
    allow: list[Any] = [None, None, items.item_ids[:40], None, None, None, [], None]
    values = {
        None: None,
        "one": RNG.standard_normal(n),
        "each": RNG.standard_normal((b, n)),
    }[bias]
    policies: list[Any] = [*POLICIES, [POLICIES[i % len(POLICIES)] for i in range(b)]]
    found = items.log_propensities_batch(
        queries, rankings, policies=policies, exclude=exclude, allow=allow, bias=values
    )
    assert found.shape == (len(policies), b, max(map(len, rankings)))
    for j, policy in enumerate(policies):
        for i, ranking in enumerate(rankings):
            expected = items.log_propensities(
                queries[i],
                ranking,
                policy=policy[i] if isinstance(policy, list) else policy,
                exclude=exclude[i],
                allow=allow[i],
                bias=values if values is None or values.ndim == 1 else values[i],
            )
            np.testing.assert_array_equal(found[j, i, : len(ranking)], expected)
            assert np.isnan(found[j, i, len(ranking) :]).all()


def test_lists_and_unknown_items() -> None:
    items = catalog("plain")
    found = items.log_propensities_batch(
        np.zeros((2, 7)), [[0, 1], [999, 3]], policies=[fr.Uniform()]
    )
    assert found[0, 0, 1] == -np.inf  # ids are multiples of 3
    assert found[0, 1].tolist() == [-np.inf, -np.log(300)]


def test_one_long_ranking_among_many_is_refused() -> None:
    """Its length is paid for by all: 16 times what they hold is, and 128 MiB a policy."""
    items, policies = catalog("plain"), [fr.Uniform()]
    rankings = [[0]] * 900 + [range(20_000)]
    with pytest.raises(ValueError, match=r"item_ids\[900\]: its 20,000 places make each of 901 "):
        items.log_propensities_batch(np.zeros((901, 7)), rankings, policies=policies)
    few = items.log_propensities_batch(np.zeros((101, 7)), rankings[800:], policies=policies)
    assert few.shape == (1, 101, 20_000)


def test_nothing_to_do() -> None:
    items = catalog("plain")
    assert items.log_propensities_batch(np.zeros((0, 7)), [], policies=POLICIES).shape == (7, 0, 0)
    assert items.log_propensities_batch(np.zeros((2, 7)), [[], []], policies=[]).shape == (0, 2, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": np.zeros(7)}, r"queries: expected shape \(b, 7\), got \(7,\)"),
        ({"queries": np.full((2, 7), np.nan)}, "queries: row 0, column 0: must be finite"),
        ({"item_ids": [[0]]}, "item_ids: expected one entry for each of 2 users, got 1"),
        ({"item_ids": [[0], ["a"]]}, r"item_ids\[1\]: the ids here are int64, got 'a'"),
        ({"policies": ["best"]}, r"policies\[0\]: expected one of fastrank's policies, got 'best'"),
        ({"policies": [[fr.Uniform()]]}, r"policies\[0\]: expected one entry for each of 2 users"),
        ({"exclude": [None]}, "exclude: expected one entry for each of 2 users, got 1"),
        ({"bias": np.zeros(3)}, r"bias: expected shape \(300,\), got \(3,\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "queries": np.zeros((2, 7)),
        "item_ids": [[0], [3]],
        "policies": [fr.Uniform()],
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        catalog("plain").log_propensities_batch(**given)
