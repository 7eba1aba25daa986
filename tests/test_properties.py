"""Properties of any call, over whatever shapes, ties, filters and temperatures Hypothesis finds.

derandomize: the same examples on every run, so a failure is never "flaky".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    Mask,
    Scored,
    assert_log_propensities,
    assert_well_formed,
    shuffled_ids,
)

import fastrank as fr
from fastrank import _native, _probes, reference
from fastrank.policies import Sampler

BUILDS = _probes.isa_names()


@dataclass(frozen=True)
class Call:
    """One call of rank, with everything that it depends on."""

    item: Scored
    k: int
    policy: fr.Policy
    seed: int
    exclude: list[int] | None
    allow: list[int] | None
    bias: npt.NDArray[np.float32] | None

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        return self.item.catalog.scores(self.item.query, bias=self.bias)

    @property
    def eligible(self) -> Mask:
        return self.item.eligible(self.exclude, self.allow)

    @property
    def filters(self) -> dict[str, Any]:
        return {
            "exclude": None if self.exclude is None else self.item.ids(self.exclude),
            "allow": None if self.allow is None else self.item.ids(self.allow),
            "bias": self.bias,
        }

    def rank(self) -> fr.Ranking:
        return self.item.catalog.rank(
            self.item.query, self.k, policy=self.policy, seed=self.seed, **self.filters
        )


def policies() -> st.SearchStrategy[fr.Policy]:
    temperatures = st.one_of(
        st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 1e6]), st.floats(1e-6, 1e6, allow_subnormal=False)
    )
    samplers = st.sampled_from(["gumbel", "sequential", "cached"])
    return st.one_of(
        st.just(fr.Deterministic()),
        st.just(fr.Uniform()),
        st.builds(fr.EpsilonGreedy, st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))),
        st.builds(fr.PlackettLuce, temperatures, samplers),
        st.builds(fr.PlackettLuce, temperatures, st.just("gumbel")),
    )


@st.composite
def catalogs(draw: st.DrawFn) -> Scored:
    """Random vectors of any scale with or without ties; or any finite scores at all."""
    n = draw(st.one_of(st.integers(1, 40), st.sampled_from([16, 32, 48, 49, 100, 300])))
    dim = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 30.0, 1e4, 1e12]))
    vectors = rng.standard_normal((n, dim))
    query = rng.standard_normal(dim)
    if draw(st.booleans()):  # ties: few distinct values, exact in float32
        vectors, query = vectors.round(), query.round()
    bias = None
    if draw(st.booleans()):
        bias = (rng.standard_normal(n) * scale).astype(np.float32)
    if draw(st.booleans()):
        vectors = np.sort(vectors, axis=0)
    catalog = fr.Catalog(shuffled_ids(n), (vectors * scale).astype(np.float32), bias=bias)
    return Scored(catalog, query.astype(np.float32))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    item = draw(catalogs())
    n = len(item.catalog)
    positions = st.lists(st.integers(0, n - 1), max_size=2 * n)
    bias = None
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        bias = (rng.standard_normal(n) * draw(st.sampled_from([1e-3, 1.0, 1e3]))).astype(np.float32)
    return Call(
        item=item,
        k=draw(st.one_of(st.integers(1, 12), st.sampled_from([n, n + 1, 10 * n]))),
        policy=draw(policies()),
        seed=draw(st.integers(0, 2**64 - 1)),
        exclude=draw(st.none() | positions),
        allow=draw(st.none() | positions),
        bias=bias,
    )


@given(call=calls(), isa=st.sampled_from(BUILDS), panels=st.sampled_from([0, 1, 2]))
def test_any_call(call: Call, isa: str, panels: int) -> None:
    """Filters respected, nobody twice, never padded, and the oracle's propensities."""
    previous, before = _native.set_isa(isa), _probes.set_chunk_panels(panels)
    try:
        ranking, scores = call.rank(), call.scores
        again = call.rank()
        given_back = call.item.catalog.log_propensities(
            call.item.query, ranking.item_ids, policy=call.policy, **call.filters
        )
    finally:
        _native.set_isa(previous)
        _probes.set_chunk_panels(before)
    positions = call.item.positions(ranking.item_ids)
    assert_well_formed(positions, len(scores), call.k, call.eligible)
    assert ranking.n_eligible == call.eligible.sum()
    assert ranking.scores.tobytes() == scores[positions].tobytes()
    assert_log_propensities(ranking.log_propensities, scores, positions, call.policy, call.eligible)
    assert_log_propensities(given_back, scores, positions, call.policy, call.eligible)
    assert again.item_ids.tolist() == ranking.item_ids.tolist()
    assert again.log_propensities.tobytes() == ranking.log_propensities.tobytes()
    if isinstance(call.policy, fr.PlackettLuce) and call.eligible.any():
        expected = reference.log_norm(scores, call.policy.temperature, call.eligible)
        assert ranking.log_norm == pytest.approx(expected, rel=1e-12, abs=1e-5)


@given(call=calls())
def test_deterministic_sorts(call: Call) -> None:
    """By (score descending, position ascending)."""
    ranking = call.item.catalog.rank(
        call.item.query, call.k, policy=fr.Deterministic(), **call.filters
    )
    scores, eligible = call.scores, call.eligible
    order = np.lexsort((np.arange(len(scores)), -scores))
    expected = order[eligible[order]][: call.k]
    assert call.item.positions(ranking.item_ids).tolist() == expected.tolist()


@given(call=calls(), data=st.data())
def test_any_given_ranking(call: Call, data: st.DataObject) -> None:
    """Repeated, ineligible and unknown items included."""
    n = len(call.item.catalog)
    order = data.draw(st.lists(st.integers(-2, n + 1), max_size=n + 5), label="order")
    ids = np.array([call.item.ids([i])[0] if 0 <= i < n else -1 - abs(i) for i in order], np.int64)
    logs = call.item.catalog.log_propensities(
        call.item.query, ids, policy=call.policy, **call.filters
    )
    assert_log_propensities(logs, call.scores, order, call.policy, call.eligible)


@given(call=calls(), seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_a_batch_is_its_rows(call: Call, seeds: list[int]) -> None:
    filters = call.filters
    batch = call.item.catalog.rank_batch(
        np.tile(call.item.query, (len(seeds), 1)),
        call.k,
        policy=call.policy,
        seeds=np.array(seeds, np.uint64),
        exclude=None if filters["exclude"] is None else [filters["exclude"]] * len(seeds),
        allow=None if filters["allow"] is None else [filters["allow"]] * len(seeds),
        bias=filters["bias"],
    )
    for seed, row in zip(seeds, batch, strict=True):
        single = call.item.catalog.rank(
            call.item.query, call.k, policy=call.policy, seed=seed, **filters
        )
        assert row.item_ids.tolist() == single.item_ids.tolist()
        assert row.log_propensities.tobytes() == single.log_propensities.tobytes()
        assert row.scores.tobytes() == single.scores.tobytes()
        assert row.log_norm == single.log_norm


@given(
    values=st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True), min_size=1, max_size=24
    ),
    temperature=st.floats(1e-6, 1e6),
    k=st.integers(1, 30),
    seed=st.integers(0, 2**64 - 1),
    sampler=st.sampled_from(["gumbel", "sequential", "cached"]),
    isa=st.sampled_from(BUILDS),
)
def test_any_scores(
    values: list[float], temperature: float, k: int, seed: int, sampler: Sampler, isa: str
) -> None:
    """Scores that Hypothesis picks itself, subnormal and huge ones side by side."""
    catalog = fr.Catalog(shuffled_ids(len(values)), np.array(values, np.float32)[:, None])
    item = Scored(catalog, np.ones(1, np.float32))
    policy = fr.PlackettLuce(temperature, sampler=sampler)
    previous = _native.set_isa(isa)
    try:
        ranking = catalog.rank(item.query, k, policy=policy, seed=seed)
        scores = item.scores
    finally:
        _native.set_isa(previous)
    positions = item.positions(ranking.item_ids)
    assert_well_formed(positions, len(values), k)
    assert_log_propensities(ranking.log_propensities, scores, positions, policy)
