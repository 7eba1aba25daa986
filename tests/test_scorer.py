"""Another source of scores is taken where a catalog is asked for rankings, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastrank as fr
from fastrank import _native, ope, plan, simulate, verify
from fastrank.arraytypes import Float32Array, FloatArray, IdArray
from fastrank.eventlog import LogReader, LogWriter
from fastrank.inputs import as_float32
from fastrank.scorer import Scorer

RNG = np.random.default_rng(0)
ITEMS, USERS = RNG.standard_normal((30, 4)), RNG.standard_normal((12, 4))
CATALOG = fr.Catalog(np.arange(30), ITEMS)
POLICY = fr.PlackettLuce(0.5)
WORLD = simulate.World.from_rates(
    1.0 / (1.0 + np.exp(-USERS @ ITEMS.T)), simulate.PositionBased([1.0, 0.5, 0.3])
)


class Computed(Scorer):
    """The scores of a catalog, as if a function had given them."""

    def __init__(self, catalog: fr.Catalog) -> None:
        self._catalog = catalog
        self._n_items, self._index = len(catalog), catalog._index
        self._packed = _native.GivenScores(len(catalog))
        self._version = f"computed from {catalog.version}"

    @property
    def dim(self) -> int:
        return self._catalog.dim

    @property
    def item_ids(self) -> IdArray:
        return self._index.ids

    @property
    def version(self) -> str:
        return self._version

    def scores(self, query: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Float32Array:
        if bias is not None:
            raise ValueError("bias: these scores take none")
        return self._catalog.scores(query)

    def rank(
        self, query: Any, k: int = 10, *, policy: Any, seed: Any = None, exclude: Any = None,
        allow: Any = None, bias: Any = None, threads: int = 1,
    ) -> fr.Ranking:  # fmt: skip
        scores = self.scores(query, bias)
        return self._rank(scores, k, policy, seed, exclude, allow, None, threads)

    def rank_batch(
        self, queries: Any, k: int = 10, *, policy: Any, seeds: Any = None, exclude: Any = None,
        allow: Any = None, bias: Any = None, threads: int = 1,
    ) -> fr.RankingBatch:  # fmt: skip
        rows = np.stack([self.scores(query, bias) for query in queries])
        return self._rank_batch(rows, k, policy, seeds, exclude, allow, None, threads)

    def log_propensities(
        self, query: Any, item_ids: Any, *, policy: Any, exclude: Any = None, allow: Any = None,
        bias: Any = None,
    ) -> FloatArray:  # fmt: skip
        scores = self.scores(query, bias)
        return self._judge(scores, "item_ids", item_ids, policy, exclude, allow, None)

    def log_propensities_batch(
        self, queries: Any, item_ids: Any, *, policies: Any, exclude: Any = None,
        allow: Any = None, bias: Any = None,
    ) -> FloatArray:  # fmt: skip
        assert bias is None
        rows = as_float32("queries", queries, np.shape(queries))
        return self._judge_batch(
            self._packed, self.scores, rows, item_ids, policies, exclude, allow, None
        )


SOURCE = Computed(CATALOG)


def log_of(ranker: Scorer, folder: Path) -> LogReader:
    with LogWriter(folder) as log:
        simulate.write_log(WORLD, ranker, POLICY, 3, 300, log, seed=1, queries=USERS)
    return LogReader(folder)


def test_a_log_of_it_is_that_of_a_catalog_of_its_scores(tmp_path: Path) -> None:
    target = fr.PlackettLuce(0.4)
    values = []
    for ranker, folder in ((CATALOG, tmp_path / "catalog"), (SOURCE, tmp_path / "source")):
        log = log_of(ranker, folder)
        checks = {check.name: check for check in ope.audit(log, [ranker]).checks}
        assert {check.outcome for check in checks.values()} == {"passed"}
        by_model = ope.ByModel("cooler", target, ranker)
        names = ["snips", "iips", "pi"]
        result = ope.evaluate(log, [by_model], logging=[ranker], estimators=names)
        values.append([each.value for each in result.policies[0].estimates.values()])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "ask",
    [
        lambda of: simulate.true_value(WORLD, of, POLICY, 3, queries=USERS).value,
        lambda of: simulate.q_columns(WORLD, of, POLICY, [0], np.array([[2, 0]]), queries=USERS)[1]
        .tolist(),
        lambda of: [
            point.to_dict() if hasattr(point, "to_dict") else repr(point)
            for point in plan.explore(of, USERS, k=3, draws=10, temperatures=[0.5]).points
        ],
        lambda of: of.log_propensities_batch(
            USERS, [[1, 2, 3]] * 12, policies=[POLICY, fr.BestFirst(1, POLICY)]
        ).tolist(),
    ],
)  # fmt: skip
def test_what_is_computed_by_it_is_the_same(ask: Callable[[Scorer], Any]) -> None:
    assert ask(SOURCE) == ask(CATALOG)


def test_where_only_a_catalog_will_do_it_is_refused_by_name() -> None:
    any_source: Any = SOURCE
    with pytest.raises(ValueError, match=r"catalog: expected a Catalog, got .*Computed"):
        fr.Model(any_source, ["ann"], USERS[:1])
    with pytest.raises(ValueError, match="policy: the sampler 'cached' keeps a table"):
        SOURCE.rank(USERS[0], policy=fr.PlackettLuce(sampler="cached"))
    with pytest.raises(ValueError, match="policy: the sampler 'cached' keeps a table"):
        verify.verify_catalog(any_source, [USERS[0].astype(np.float32)], draws=100)


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    log, none = log_of(CATALOG, tmp_path), SOURCE._packed
    calls: dict[str, Callable[[Any], Any]] = {
        r"models\[1\]": lambda of: ope.audit(log, [CATALOG, of]),
        r"logging\[0\]": lambda of: ope.evaluate(
            log, [ope.ByModel("x", POLICY, CATALOG)], logging=[of]
        ),
        "policies: x: model": lambda of: ope.evaluate(log, [ope.ByModel("x", POLICY, of)]),
        "ranker": lambda of: simulate.true_value(WORLD, of, POLICY, 3, queries=USERS),
        "model": lambda of: plan.explore(of, USERS, k=3),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=f"{name}: expected a Model, Catalog or Scorer, got .*Given"
        ):
            call(none)


def test_a_scorer_without_rules_says_so() -> None:
    """What its logging policy could show is then unknown, which `evaluate` reports of the row."""
    applied = fr.AppliedRules(fr.Rules(pin={1: 2}), {})
    with pytest.raises(ValueError, match=r"^rules: "):
        SOURCE._n_allowed([], applied, exclude=None, allow=None, after=None, k=3)
