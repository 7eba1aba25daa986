"""What some estimators want of rows: computed once a law, and right for each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogReader, LogWriter
from fastrank.marginals import position_marginals
from fastrank.ope import arrays
from fastrank.ope.arrays import OptionalArrays

N, K, USERS, ROWS = 30, 3, 8, 160
LOGGING, EVALUATED = fr.PlackettLuce(1.0), fr.PlackettLuce(0.6)
POLICIES: list[fr.Policy] = [EVALUATED, fr.PlackettLuce(0.8)]


@pytest.fixture(scope="module")
def model() -> fr.Model:
    rng = np.random.default_rng(1)
    catalog = fr.Catalog(np.arange(100, 100 + N), rng.standard_normal((N, 4)))
    return fr.Model(catalog, [f"u{i}" for i in range(USERS)], rng.standard_normal((USERS, 4)))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, model: fr.Model) -> LogReader:
    """Of some users; a quarter of the rows with a filter, and some shorter than three places."""
    folder = tmp_path_factory.mktemp("log")
    with LogWriter(folder) as writer:
        for i in range(ROWS):
            user = f"u{i % USERS}"
            kind = i // USERS % 8
            ids = [100, 101, 105] if kind == 1 else [110, 111] if kind == 2 else None
            filters = {"exclude": ids} if kind == 1 else {"allow": ids} if kind == 2 else {}
            ranking = model.recommend(user, K, policy=LOGGING, seed=i, **filters)  # type: ignore[arg-type]
            writer.append(
                ranking,
                k=K,
                request_id=f"r{i}",
                user_id=user,
                model_version=model.version,
                displayed=1 if i % 10 == 9 else None,
                rewards=[1.0] * len(ranking),
                **filters,  # type: ignore[arg-type]
            )
    return LogReader(folder)


def optional(model: fr.Model) -> OptionalArrays:
    policies = [ope.ByModel(f"p{j}", policy, model) for j, policy in enumerate(POLICIES)]
    return OptionalArrays(["iips"], policies, [model], K, None)


def marginals(
    wanted: OptionalArrays, model: fr.Model, log: LogReader
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of the logging and the evaluation policy, for each policy: all rows."""
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in POLICIES]
    for batch in log:
        rows = np.arange(len(batch))
        nothing = np.zeros((len(batch), K))
        for j, policy in enumerate(POLICIES):
            by_model = ope.ByModel("p", policy, model)
            found[j].append(wanted.arrays(by_model, batch, rows, nothing, nothing))
    return [
        (
            np.concatenate([part["marginals_logged"] for part in parts]),
            np.concatenate([part["marginals_evaluated"] for part in parts]),
        )
        for parts in found
    ]


@pytest.fixture(scope="module")
def exact(model: fr.Model, log: LogReader) -> dict[fr.Policy, np.ndarray]:
    return {policy: row_by_row(model, log, policy) for policy in (LOGGING, *POLICIES)}


def row_by_row(model: fr.Model, log: LogReader, policy: fr.Policy) -> np.ndarray:
    result = []
    for batch in log:
        for i in range(len(batch)):
            eligible = np.full(N, batch.allow(i) is None)
            for ids, value in ((batch.allow(i), True), (batch.exclude(i), False)):
                if ids is not None:
                    eligible[ids - 100] = value
            items = batch.item_ids[i, : batch.lengths[i]] - 100
            scores = model.catalog.scores(model.user_vector(batch.user_ids[i]))
            law = position_marginals(scores, policy, K, items, eligible)
            row = np.zeros(K)
            row[: len(items)] = law[np.arange(len(items)), np.arange(len(items))]
            result.append(row)
    return np.array(result)


@pytest.mark.sampled
@pytest.mark.parametrize("batch_rows", [ROWS, 37])
@pytest.mark.parametrize("kept", [1 << 27, 3000, 0])
def test_shared_laws_are_those_of_each_row(
    monkeypatch: pytest.MonkeyPatch,
    model: fr.Model,
    log: LogReader,
    exact: dict[fr.Policy, np.ndarray],
    batch_rows: int,
    kept: int,
) -> None:
    monkeypatch.setattr(arrays, "_CACHE_BYTES", kept)
    wanted = optional(model)
    small = LogReader(log.files, batch_rows=batch_rows)
    found = marginals(wanted, model, small)
    for policy, (of_logging, of_policy) in zip(POLICIES, found, strict=True):
        np.testing.assert_allclose(of_logging, exact[LOGGING], rtol=1e-12)
        np.testing.assert_allclose(of_policy, exact[policy], rtol=1e-12)
    assert wanted._cache.weight <= kept


def test_a_law_is_computed_once_a_batch(model: fr.Model, log: LogReader) -> None:
    """For each user without filters, with either one; by three policies."""
    wanted = optional(model)
    marginals(wanted, model, log)
    assert wanted.laws == 3 * USERS * 3
    # What was asked for before is kept for the next batch.
    marginals(wanted, model, log)
    assert wanted.laws == 3 * USERS * 3


def test_laws_are_told_apart(model: fr.Model) -> None:
    from fastrank.ope.queries import Query

    vector = np.ones(4, np.float32)
    some, others = np.array([100, 101]), np.array([102])
    bias = np.zeros(N, np.float32)
    queries = [
        Query(vector, None, None, None),
        Query(vector * 2, None, None, None),
        Query(vector, some, None, None),
        Query(vector, None, some, None),
        Query(vector, some, others, None),
        Query(vector, others, some, None),
        Query(vector, some[:0], None, None),
        Query(vector, None, None, bias),
        Query(vector, None, None, bias + 1),
    ]
    keys = {
        arrays._Law(catalog, query, policy, 3).key
        for catalog in (model.catalog, fr.Catalog(np.arange(N), np.ones((N, 4))))
        for query in queries
        for policy in (LOGGING, EVALUATED, fr.Uniform())
    }
    assert len(keys) == 2 * 3 * len(queries)
    again = arrays._Law(model.catalog, Query(vector.copy(), None, None, None), fr.Uniform(), 3)
    assert again.key in keys


def slate_log(folder: Path, policy: fr.Policy) -> tuple[fr.Catalog, LogReader]:
    few = fr.Catalog(np.arange(5), np.linspace(-1.0, 1.0, 5)[:, None])
    with LogWriter(folder) as log:
        for i in range(60):
            query = np.array([1.0 + i % 3], np.float32)
            ranking = few.rank(query, 2, policy=policy, seed=i)
            log.append(
                ranking,
                k=2,
                request_id=f"r{i}",
                user_id=f"u{i}",
                query=query,
                displayed=1 if i % 2 else None,
                rewards=[1.0, 1.0],
            )
    return few, LogReader(folder)


@pytest.mark.parametrize("kept", [1 << 27, 3000])
def test_inverses_are_computed_once_for_all_policies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: int
) -> None:
    monkeypatch.setattr(arrays, "_CACHE_BYTES", kept)
    few, log = slate_log(tmp_path, LOGGING)
    policies = [ope.ByModel(f"p{j}", policy, few) for j, policy in enumerate(POLICIES)]
    wanted = OptionalArrays(["pi"], policies, [few], 2, None)
    (batch,) = log
    rows, nothing = np.arange(len(batch)), np.zeros((len(batch), 2))
    together = [wanted.arrays(p, batch, rows, nothing, nothing) for p in policies]
    # Three queries, slates of one and of two places; 3,000 bytes hold one of them.
    assert wanted.laws == 6
    assert wanted._cache.weight <= kept
    for policy, found in zip(policies, together, strict=True):
        alone = OptionalArrays(["pi"], [policy], [few], 2, None)
        other = alone.arrays(policy, batch, rows, nothing, nothing)
        assert np.array_equal(found["slate_weights"], other["slate_weights"])


def test_a_slate_that_cannot_be_weighted_is_named(tmp_path: Path) -> None:
    few, log = slate_log(tmp_path, fr.Deterministic())
    policy = ope.ByModel("p", fr.Uniform(), few)
    with pytest.raises(ValueError, match="pi of p: request r0: policy: shows items at places"):
        ope.evaluate(log, [policy], logging=[few], estimators=["pi"])
