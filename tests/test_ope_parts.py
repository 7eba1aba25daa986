"""Evaluation in parts is evaluation of the whole, however a log is cut and its parts are merged."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from alike import assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import catalog as catalog_of
from logs import of_batch, row, table

import fastrank as fr
from fastrank import ope, simulate
from fastrank.eventlog import LogReader, LogWriter, ReadReport
from fastrank.ope.requests import Requests, in_common

COLUMN = ope.FromColumn("new", "evaluated")


def rankings(n: int, k: int = 3, users: int = 40, seed: int = 0) -> pa.Table:
    """Of a logging and an evaluation policy that are of Dirichlet laws; some rows are short."""
    rng = np.random.default_rng(seed)
    logged, evaluated = (np.log(rng.uniform(0.2, 0.8, (n, k))) for _ in range(2))
    evaluated = 0.8 * logged + 0.2 * evaluated
    rewards = (rng.random((n, k)) < 0.3) * rng.uniform(0.5, 2.0, (n, k))
    lengths = rng.integers(1, k + 1, n)
    absent = np.arange(k) >= lengths[:, None]
    for each in (logged, evaluated, rewards):
        each[absent] = 0.0
    batch = ope.Batch.of(logged, evaluated, rewards, lengths=lengths)
    found = of_batch(batch)
    names = [f"u{user}" for user in rng.integers(0, users, n)]
    at = found.column_names.index("user_id")
    weights = rng.uniform(0.5, 2.0, n)
    found = found.set_column(at, "user_id", pa.array(names))
    at = found.column_names.index("row_weight")
    return found.set_column(at, "row_weight", pa.array(weights))


def reader(*tables: pa.Table) -> LogReader:
    return LogReader.of_tables(list(tables), columns=["evaluated"])


def partial(*tables: pa.Table, **options: Any) -> ope.Partial:
    return ope.partial(reader(*tables), [COLUMN], **({"places": 3} | options))


def taken(log: pa.Table, rows: Any) -> pa.Table:
    return log.take(pa.array(np.asarray(rows, np.int64)))


# The same as of the whole.


LOG = rankings(400)
WHOLE = ope.evaluate(reader(LOG), [COLUMN], places=3)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), chunk=st.sampled_from([1, 7, 100]), seed=st.integers(0, 2**32 - 1))
def test_any_parts_in_any_order_are_the_whole(n: int, chunk: int, seed: int) -> None:
    """Parts may be empty, or of one row, and merged as any tree; users are in many of them."""
    rng = np.random.default_rng(seed)
    of = np.repeat(rng.integers(0, n, 400), chunk)[:400]
    of[rng.integers(400)] = n  # of one row
    parts = [partial(taken(LOG, np.flatnonzero(of == j))) for j in rng.permutation(n + 1)]
    while len(parts) > 1:
        begin, end = sorted(rng.choice(len(parts) + 1, 2, replace=False).tolist())
        parts[begin:end] = [pickle.loads(pickle.dumps(ope.merged(parts[begin:end])))]
    assert_equal(parts[0].evaluation(), WHOLE)


def test_parts_stay_as_they_are() -> None:
    parts = [partial(taken(LOG, range(j, 400, 2))) for j in range(2)]
    before = [each.evaluation().to_dict() for each in parts]
    first, again = (ope.merged(parts).evaluation().to_dict() for _ in range(2))
    assert first == again
    assert [each.evaluation().to_dict() for each in parts] == before


def test_a_part_alone_and_parts_of_nothing() -> None:
    whole = partial(LOG)
    assert (whole.rows, whole.rows_used) == (400, 400)
    assert repr(whole) == "Partial(new; 400 of 400 rows used)"
    assert_equal(whole.evaluation(), WHOLE)
    nothing = LogReader.of_tables([LOG.slice(0, 0)], columns=["evaluated"])
    parts = [ope.partial(nothing, [COLUMN], places=3), whole]
    assert_equal(ope.merged(parts).evaluation(), WHOLE)
    empty = ope.evaluate(nothing, [COLUMN], places=3)
    assert_equal(ope.merged(parts[:1]).evaluation(), empty)


@pytest.mark.parametrize(
    "options",
    [
        {"cluster": False},
        {"estimators": ["ips", "clipped-ips"], "clip": 1.5, "reward_range": (0.0, 6.0)},
        {"places": 1},
        {"places": 2, "lead": "rips", "level": 0.8},
        {"thresholds": ope.Thresholds(malformed=0.5, clusters=2.0)},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    parts = [partial(taken(LOG, range(j, 400, 3)), **options) for j in range(3)]
    whole = ope.evaluate(reader(LOG), [COLUMN], **({"places": 3} | options))
    assert_equal(ope.merged(parts).evaluation(), whole)


def test_reasons_are_said_at_the_end() -> None:
    whole = ope.evaluate(reader(LOG), [COLUMN], places=3, reasons=["audit_failed"])
    parts = [partial(LOG.slice(0, 100)), partial(LOG.slice(100))]
    assert_equal(ope.merged(parts).evaluation(["audit_failed"]), whole)


# Places are settled before parts are read; the longest ranking is known after.


@pytest.mark.parametrize("estimators", [None, ["iips", "snrips", "rips"]], ids=["default", "iips"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_more_places_than_any_ranking_has(k: int, estimators: list[str] | None) -> None:
    log = rankings(300, k)
    columns = {"marginals_logged": "log_marginals", "marginals_evaluated": "new_marginals"}
    policy = COLUMN
    if estimators is not None:
        for name, source in zip(columns.values(), ("log_propensities", "evaluated"), strict=True):
            cells = log[source].combine_chunks()
            values = pa.array(np.exp(cells.values.to_numpy()))
            log = log.append_column(name, pa.ListArray.from_arrays(cells.offsets, values))
        policy = ope.FromColumn("new", "evaluated", columns)
    more = ["evaluated", *(columns.values() if estimators else ())]

    def of(rows: pa.Table) -> LogReader:
        return LogReader.of_tables([rows], columns=more)

    whole = ope.evaluate(of(log), [policy], places=5, estimators=estimators)
    assert whole.places == k
    parts = [
        ope.partial(of(part), [policy], places=5, estimators=estimators)
        for part in (log.slice(0, 120), log.slice(120))
    ]
    assert_equal(ope.merged(parts).evaluation(), whole)


def test_each_row_s_own_number_of_places() -> None:
    """Rows that asked for fewer than the longest say nothing against it; those asked of 5 do."""
    few = rankings(200, 2, seed=1)
    ids = pa.array([f"few {i}" for i in range(200)])
    few = few.set_column(few.column_names.index("request_id"), "request_id", ids)
    whole = ope.evaluate(reader(few, LOG), [COLUMN])
    assert "more_places" not in whole.policies[0].reasons
    parts = [partial(each, places=None, longest=3) for each in (few, LOG)]
    assert_equal(ope.merged(parts).evaluation(), whole)
    asked = ope.merged([partial(each) for each in (few, LOG)]).evaluation()
    assert_equal(asked, ope.evaluate(reader(few, LOG), [COLUMN], places=3))
    assert "more_places" in asked.policies[0].reasons


def test_places_must_be_said() -> None:
    with pytest.raises(ValueError, match="places, longest: expected one of them"):
        partial(LOG, places=None)
    with pytest.raises(ValueError, match=r"longest: expected at least 3, .*; got 2"):
        partial(LOG, places=None, longest=2)
    with pytest.raises(ValueError, match=r"longest: .*0"):
        partial(LOG, longest=0)


# What is known of the log as a whole alone.


def written(folder: Path, users: Sequence[int], writers: int = 3, **options: Any) -> Path:
    """Rankings of a small catalog, by several writers after one another."""
    catalog = catalog_of(20)
    rng = np.random.default_rng(3)
    for part in np.array_split(np.arange(len(users)), writers):
        with LogWriter(folder) as log:
            for i in part.tolist():
                query = np.random.default_rng(users[i]).standard_normal(4)
                ranking = catalog.rank(query, 2, policy=fr.PlackettLuce(1.0), seed=i)
                rewards = (rng.random(2) < 0.3).astype(float)
                log.append(ranking, k=2, user_id=f"u{users[i]}", query=query, rewards=rewards,
                           **options)  # fmt: skip
    return folder


COLDER = ope.ByModel("colder", fr.PlackettLuce(0.8), catalog_of(20))


def whole_and_parts(folder: Path, n: int = 3, **options: Any) -> tuple[ope.Evaluation, Any]:
    log = LogReader(folder)
    parts = [ope.partial(part, [COLDER], places=2, **options) for part in log.parts(n)]
    options.pop("requests", None)
    return ope.evaluate(log, [COLDER], places=2, **options), parts


def test_files_of_a_log(tmp_path: Path) -> None:
    whole, parts = whole_and_parts(written(tmp_path, [i % 60 for i in range(600)]))
    assert len(parts) == 3
    assert_equal(ope.merged(parts).evaluation(), whole)
    assert ope.merged(parts).evaluation().to_dict() == ope.merged(parts).evaluation().to_dict()
    assert whole.policies[0].status == "ok"


def test_one_part_has_rows_that_another_lacks(tmp_path: Path) -> None:
    """A writer's sequence over files of two parts: neither lacks what the other has."""
    rows = [row(i) for i in range(30) if i not in (7, 8)]
    for j in range(3):
        pq.write_table(table(rows[j::3]), tmp_path / f"{j}.parquet")
    own = ope.ByFunction("same", lambda batch: batch.log_propensities)
    log = LogReader(tmp_path)
    parts = [ope.partial(part, [own], places=3) for part in log.parts(3)]
    assert [sum(part.report.rows_lost.values()) for part in parts] != [0, 0, 0]
    both = ope.merged(parts)
    assert both.report.rows_lost == {"w": 2}
    assert_equal(both.evaluation(), ope.evaluate(log, [own], places=3))


def test_a_sequence_in_many_pieces_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrank.ope.parts._RANGES", 4)
    rows = [row(i) for i in range(60) if i % 10 != 5]
    own = ope.ByFunction("same", lambda batch: batch.log_propensities)
    parts = [
        ope.partial(LogReader.of_tables([table(rows[j::4])]), [own], places=3) for j in range(4)
    ]
    assert all(part.report.sequences["w"].ranges == [] for part in parts)
    assert ope.merged(parts).report.rows_lost == {"w": 6}
    tree = ope.merged([ope.merged(parts[2:]), ope.merged(parts[:2])])
    assert tree.report.rows_lost == {"w": 6}


@pytest.mark.parametrize(
    ("requests", "what"),
    [
        (None, "100 requests"),
        (20, "about [0-9]+ requests"),
        (0, "the numbers 0 to 99 of writer .*"),
    ],
)
def test_a_part_that_is_given_twice(tmp_path: Path, requests: int | None, what: str) -> None:
    """By its requests, or some of them; without them by its writer's sequence."""
    _, parts = whole_and_parts(written(tmp_path, [i % 60 for i in range(300)]), requests=requests)
    with pytest.raises(ope.SharedRowsError, match=f"partials: 0 and 3 have {what}") as error:
        ope.merged([*parts, parts[0]])
    assert error.value.pairs == [(0, 3)]
    with pytest.raises(ope.SharedRowsError, match="partials: 0 and 1 have"):
        ope.merged([ope.merged(parts[:2]), ope.merged(parts[1:])])


def test_one_request_in_two_parts() -> None:
    """Another ranking under its id, too, of another writer: as a reader of both would find it."""
    rows = [row(i) for i in range(20)]
    again = row(3, writer_id="v", seed=5)
    own = ope.ByFunction("same", lambda batch: batch.log_propensities)
    parts = [
        ope.partial(LogReader.of_tables([table(part)]), [own], places=3)
        for part in (rows[:10], rows[10:], [again])
    ]
    with pytest.raises(ope.SharedRowsError, match="0 and 2 have 1 requests in common"):
        ope.merged(parts)
    together = ope.partial(LogReader.of_tables([table([*rows[:10], again])]), [own], places=3)
    assert ope.merged([together, parts[1]]).report.set_aside == {"duplicate request id": 1}


def test_malformed_rows_that_come_twice_count_twice_as_of_the_whole() -> None:
    """What is set aside is no request: their sequence alone would call them the same."""
    bad = [row(i, log_propensity=-9.0) for i in range(3)]
    parts = [
        partial_of_rows([*bad, *(row(i) for i in range(10 * j, 10 * j + 10) if i > 2)])
        for j in range(2)
    ]
    found = ope.merged(parts)
    assert found.report.set_aside == {"sum of log-propensities": 6}


def partial_of_rows(rows: list[dict[str, Any]], **options: Any) -> ope.Partial:
    own = ope.ByFunction("same", lambda batch: batch.log_propensities)
    return ope.partial(LogReader.of_tables([table(rows)]), [own], **({"places": 3} | options))


def test_seeds_that_users_of_different_parts_share() -> None:
    """No part has a seed twice; all have the same."""
    rows = [row(i, seed=i % 20, user_id=f"u{i}") for i in range(60)]
    parts = [partial_of_rows(rows[j : j + 20]) for j in (0, 20, 40)]
    assert "repeated_seeds" not in parts[0].evaluation().policies[0].reasons
    found = ope.merged(parts).evaluation()
    assert "repeated_seeds" in found.policies[0].reasons


def test_strata_are_one_by_their_laws() -> None:
    cold, warm = (dict[str, Any](policy_params={"temperature": t}) for t in (0.5, 2.0))
    rows = [row(i, **(cold if i % 3 else warm)) for i in range(40)]
    own = [ope.ByFunction("same", lambda batch: batch.log_propensities)]
    whole = ope.evaluate(LogReader.of_tables([table(rows)]), own, places=3)
    parts = [partial_of_rows(rows[20:]), partial_of_rows(rows[:20])]
    assert_equal(ope.merged(parts).evaluation(), whole)
    assert len(whole.strata) == 2


def test_fallbacks_seeds_of_callers_and_rows_without_rewards() -> None:
    kinds: list[dict[str, Any]] = [
        *({}, {"is_fallback": True}, {"seed_source": "caller"}),
        *({"rewards": None}, {"user_id": None}, {"log_propensity": -7.0}, {"displayed": 0}),
    ]
    rows = [row(i, **kinds[i % len(kinds)]) for i in range(70)]
    own = [ope.ByFunction("same", lambda batch: batch.log_propensities)]
    whole = ope.evaluate(LogReader.of_tables([table(rows)]), own, places=3)
    parts = [partial_of_rows(rows[begin : begin + 10]) for begin in range(0, 70, 10)]
    assert_equal(ope.merged(parts).evaluation(), whole)
    assert len(whole.set_aside) == 4


# Files that are none of a log's.


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    written(tmp_path, [i % 60 for i in range(300)])
    (tmp_path / "9.parquet").write_bytes(b"PAR1 and then nothing")
    whole, parts = whole_and_parts(tmp_path, 4)
    broken = ope.partial(LogReader(tmp_path / "9.parquet"), [COLDER], places=2)
    assert (broken.rows, [*broken.report.files_set_aside]) == (0, [str(tmp_path / "9.parquet")])
    with pytest.raises(ValueError, match=r"no file of the log can be read: .*9\.parquet"):
        broken.evaluation()
    files = [ope.partial(LogReader(file), [COLDER], places=2) for file in LogReader(tmp_path).files]
    assert_equal(ope.merged(files).evaluation(), whole)
    assert_equal(ope.merged(parts).evaluation(), whole)
    assert "unreadable_files" in whole.policies[0].reasons


def test_item_ids_of_two_kinds() -> None:
    own = [ope.ByFunction("same", lambda batch: batch.log_propensities)]
    tables = table([row(0)]), table([row(1, "str")], "str")
    parts = [ope.partial(LogReader.of_tables([each]), own, places=3) for each in tables]
    with pytest.raises(ValueError, match="item ids are int64 in row 0 and str in row 1"):
        ope.merged(parts)


def test_a_join_counts_once() -> None:
    reports = [
        ReadReport(rows_read=5, joins=[{"id": "a", "source": {"rows_set_aside": 3}}]),
        ReadReport(rows_read=5, joins=[{"id": "a", "source": {"rows_set_aside": 3}}, {"id": "b"}]),
    ]
    found = ReadReport.merged(reports)
    assert [join["id"] for join in found.joins] == ["a", "b"]
    assert found.malformed_share == 3 / 13


# What must be alike.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"places": 2}, "places: expected 3, of 3 at most, as of row 0, got 2"),
        ({"cluster": False}, "cluster: expected True, as of row 0, got False"),
        ({"estimators": ["ips"]}, "estimators: expected avg"),
        ({"include_fallback": True}, "include_fallback: expected False"),
        ({"reference": "new"}, "reference: expected logging"),
        ({"level": 0.9}, "level: expected 0.95"),
        ({"thresholds": ope.Thresholds(malformed=0.5)}, "thresholds: expected"),
        ({"clip": 2.0}, "clip: expected 20.0"),
        ({"logging": [catalog_of(20)]}, "logging: expected none"),
    ],
    ids=str,
)
def test_options_that_differ(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"partials: row 1: {said}"):
        ope.merged([partial(LOG.slice(0, 9)), partial(LOG.slice(9), **options)])


@pytest.mark.parametrize(
    "other",
    [
        ope.FromColumn("other", "evaluated"),
        ope.FromColumn("new", "log_propensities_of_it"),
        ope.FromRows("new", "evaluated"),
        ope.ByFunction("new", lambda batch: batch.log_propensities),
        ope.FromColumn("new", "evaluated", {"q_direct": "q"}),
        ope.ByModel("new", fr.PlackettLuce(0.8), catalog_of(21)),
        ope.ByModel("new", fr.PlackettLuce(0.9), catalog_of(20)),
        ope.ByModel("new", fr.PlackettLuce(0.8), catalog_of(20), rules=fr.Rules()),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_policies_that_differ(other: ope.EvaluationPolicy) -> None:
    first = COLUMN if not isinstance(other, ope.ByModel) else ope.ByModel(
        "new", fr.PlackettLuce(0.8), catalog_of(20)
    )  # fmt: skip
    nothing = LogReader.of_tables([], columns=["evaluated"])
    with pytest.raises(ValueError, match=r"partials: row 1: policies: expected new: .*, got "):
        ope.merged([ope.partial(nothing, [each], places=1) for each in (first, other)])


def test_a_part_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(partial(LOG.slice(0, 9)))
    assert pickle.loads(content).rows == 9
    monkeypatch.setattr(fr, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"partial: made by fastrank .*, but this is 99\.0"):
        pickle.loads(content)


def test_what_is_no_partial() -> None:
    with pytest.raises(ValueError, match="partials: expected at least one"):
        ope.merged([])
    with pytest.raises(ValueError, match="partials: row 1: expected a Partial, got 3"):
        ope.merged([partial(LOG.slice(0, 9)), 3])  # type: ignore[list-item]  # wrong on purpose
    with pytest.raises(ValueError, match="policies: expected at least one"):
        ope.partial(reader(LOG), [], places=3)
    with pytest.raises(ValueError, match=r"requests: .*-1"):
        partial(LOG, requests=-1)


def test_an_experiment_is_evaluated_whole(tmp_path: Path) -> None:
    written(tmp_path, range(10), experiment="e", arm="a")
    log: Any = ope.ExperimentLog(LogReader(tmp_path))
    with pytest.raises(ValueError, match=r"got an ExperimentLog: evaluate_arms"):
        ope.partial(log, [COLDER], places=2)


def test_strata_without_end() -> None:
    """Each part has few, and all together too many."""
    laws = [dict[str, Any](policy_params={"temperature": 0.5 + i}) for i in range(3)]
    parts = [partial_of_rows([row(i, **law)]) for i, law in enumerate(laws)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrank.ope.sums.MOST_STRATA", 2)
        ope.merged(parts[:2])
        with pytest.raises(ValueError, match="strata: the log has more than 2 logging policies"):
            ope.merged(parts)


# Every kind of policy and estimator works in parts.


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, simulate.World, fr.Model]:
    """1,500 rankings of 3 by three writers."""
    clicks = simulate.PositionBased([1.0, 0.8, 0.6])
    world = simulate.World.synthetic(50, 30, clicks, dim=6, seed=1, typical_rate=0.1)
    model = world.model(noise=0.3, seed=2)
    folder = tmp_path_factory.mktemp("shop")
    for part in range(3):
        with LogWriter(folder) as log:
            simulate.write_log(world, model, fr.PlackettLuce(1.0), 3, 500, log, seed=part)
    return folder, world, model


def half(batch: Any) -> Any:
    return batch.log_propensities - 0.01


def constant(query: Any, items: Any) -> Any:
    return np.full(len(items), 0.1) + 0.01 * np.asarray(items)


CASES: Mapping[str, Callable[[simulate.World, fr.Model], tuple[list[Any], dict[str, Any]]]] = {
    "model": lambda world, model: (
        [
            ope.ByModel("colder", fr.PlackettLuce(0.8), model),
            ope.ByModel("greedy", fr.EpsilonGreedy(0.5), model),
        ],
        {"logging": [model], "reference": "greedy"},
    ),
    "another catalog": lambda world, model: (
        [ope.ByModel("new", fr.PlackettLuce(1.0), world.model(noise=0.6, seed=9))],
        {"logging": [model]},
    ),
    "deterministic": lambda world, model: (
        [ope.ByModel("best", fr.Deterministic(), model)],
        {"logging": [model], "places": 1},
    ),
    "function": lambda world, model: ([ope.ByFunction("half", half)], {}),
    "marginals": lambda world, model: (
        [ope.ByModel("colder", fr.PlackettLuce(0.9), model)],
        {"logging": [model], "estimators": ["iips", "pi"]},
    ),
    "reward model": lambda world, model: (
        [ope.ByModel("colder", fr.PlackettLuce(0.9), model)],
        {
            "logging": [model],
            "reward_model": constant,
            "estimators": ["dm", "dr-position"],
            "lead": "dr-position",
        },
    ),
}


@pytest.mark.sampled
@pytest.mark.parametrize("case", CASES)
def test_policies_and_estimators(shop: tuple[Path, simulate.World, fr.Model], case: str) -> None:
    folder, world, model = shop
    policies, options = CASES[case](world, model)
    options = {"places": 3} | options
    log = LogReader(folder)
    whole = ope.evaluate(log, policies, **options)
    parts = [ope.partial(part, policies, **options) for part in log.parts(3)]
    assert_equal(ope.merged(parts[::-1]).evaluation(), whole)
    assert whole.rows_used > 0


WARM = fr.PlackettLuce(1.0)
SHELVES = fr.Catalog(
    np.arange(20),
    np.linspace(-1.0, 1.0, 20)[:, None],
    features={"shelf": [f"s{i % 4}" for i in range(20)]},
)


def of_shelves(seed: int, **options: Any) -> fr.Ranking:
    return SHELVES.rank([1.0], 2, policy=WARM, seed=seed, **options)


def test_policies_that_rows_carry(tmp_path: Path) -> None:
    """Of all rows but some, which cannot be judged."""
    for part in range(3):
        with LogWriter(tmp_path) as log:
            for seed in range(100 * part, 100 * part + 100):
                each = of_shelves(seed)
                cold = SHELVES.log_propensities([1.0], each.item_ids, policy=fr.PlackettLuce(0.8))
                said = {"cold": cold} if seed % 7 else None
                log.append(each, user_id=f"u{seed}", query=[1.0], rewards=[1.0, 0.0],
                           evaluation_log_propensities=said)  # fmt: skip
    policies = [ope.FromRows("cold", "cold")]
    whole = ope.evaluate(LogReader(tmp_path), policies, places=2)
    parts = [ope.partial(each, policies, places=2) for each in LogReader(tmp_path).parts(3)]
    assert_equal(ope.merged(parts).evaluation(), whole)
    assert whole.rows_used == 300 - 43


@pytest.mark.parametrize("keep_candidates", [False, True])
def test_candidates_and_rules(tmp_path: Path, keep_candidates: bool) -> None:
    """Of one part candidates, of another rules; filters are files that all parts share."""
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"allow": np.arange(10, 20)}, {"candidate_set_id": "top", "n_candidates": 10}),
        ({"rules": fr.Rules(cap={"shelf": 1})}, {}),
        ({"exclude": [19]}, {}),
    ]
    for part, (ranked, logged) in enumerate(kinds):
        with LogWriter(tmp_path, inline_ids=5) as log:
            for seed in range(100 * part, 100 * part + 100):
                log.append(of_shelves(seed, **ranked), user_id=f"u{seed % 40}", query=[1.0],
                           rewards=[float(seed % 2), 0.0], **logged,
                           **{k: v for k, v in ranked.items() if k != "rules"})  # fmt: skip
    policies = [
        ope.ByModel("cold", fr.PlackettLuce(0.8), SHELVES),
        ope.ByModel("free", WARM, SHELVES, rules=fr.Rules()),
    ]
    options: dict[str, Any] = {"places": 2, "logging": [SHELVES], "reference": "cold"}
    options["keep_candidates"] = keep_candidates
    whole = ope.evaluate(LogReader(tmp_path), policies, **options)
    parts = [ope.partial(each, policies, **options) for each in LogReader(tmp_path).parts(3)]
    assert len(parts) == 3
    assert_equal(ope.merged(parts).evaluation(), whole)
    assert len({each.uncovered for each in whole.policies}) == 2


def test_a_model_that_refuses_all_rows_of_all_parts(tmp_path: Path) -> None:
    for folder, query in (("a", 3e38), ("b", 3e38), ("c", 1.0)):
        with LogWriter(tmp_path / folder) as log:
            for seed in range(20):
                log.append(of_shelves(seed), query=[query], rewards=[1.0, 0.0])
    colder = [ope.ByModel("colder", fr.PlackettLuce(0.8), SHELVES)]
    bad, worse, good = (ope.partial(LogReader(tmp_path / name), colder, places=2) for name in "abc")
    with pytest.raises(ValueError, match=r"^queries: row 0: "):
        ope.merged([bad, worse]).evaluation()
    found = ope.merged([bad, good]).evaluation()
    assert_equal(
        found, ope.evaluate(LogReader([tmp_path / name for name in "ac"]), colder, places=2)
    )
    assert found.set_aside == {"not_computable": 20}


# Requests that stand for all.


def test_a_share_of_requests_stands_for_all() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 30_000, np.uint64)
    first, second = Requests(1000), Requests(1000)
    for part in np.array_split(hashes[:20_000], 7):
        first.add(part)
    second.add(hashes[18_000:])
    assert not first.are_all
    assert 500 < len(first.hashes) <= 1000
    in_order = Requests(1000)
    in_order.add(hashes[:20_000][::-1])
    assert in_order.hashes.tolist() == first.hashes.tolist()  # whatever the order
    nobody = ReadReport(), ReadReport()
    (said,) = in_common([first, second], nobody).values()
    # 2,000 in common, of which one in 32 is kept: 62 with a standard deviation of 8.
    assert 1000 < int(said.split()[1].replace(",", "")) < 3000
    apart = Requests(1000)
    apart.add(hashes[20_000:])
    assert in_common([first, apart], nobody) == {}


def test_numbers_that_different_rows_have() -> None:
    """Of somebody's own making, from 0 in each file: no requests in common, so none of the rows."""
    parts = [
        partial_of_rows([row(i, request_id=f"{j} {i}") for i in range(400)], requests=100)
        for j in range(2)
    ]
    assert ope.merged(parts).rows == 800
    few = [partial_of_rows([row(i, request_id=f"{j} {i}") for i in range(9)], requests=1)
           for j in range(2)]  # fmt: skip
    with pytest.raises(ope.SharedRowsError, match="the numbers 0 to 8 of writer w"):
        ope.merged(few)


def test_size_is_bounded() -> None:
    """In bytes: of ten times as many rows as many."""
    sizes = [len(pickle.dumps(partial(rankings(n), requests=64))) for n in (2_000, 20_000)]
    assert sizes[1] < 1.01 * sizes[0]
