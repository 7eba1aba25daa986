"""Ranked is not shown: impressions find their rankings, and what was not shown earns nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from logs import HOUR, NOON, catalog, drain, row, table
from test_eventlog_join import LATER, START, reward, write_log, write_rewards
from test_ope_behaviour import CLICKS, W0, W1, K, clicks_on, conditionals, marginals

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import JoinSummary, LogReader, LogWriter, join
from fastrank.eventlog.account import told, told_of

USUAL: dict[str, Any] = {"window": "24h", "as_of": LATER, "kind": "positives"}


def impression(request: str, displayed: Any = 3, hours: float = 1.0) -> dict[str, Any]:
    when = START + timedelta(hours=hours)
    return {"request_id": request, "displayed": displayed, "ts": when}


def joined(
    directory: Path,
    impressions: list[dict[str, Any]],
    rewards: list[dict[str, Any]],
    *rows: dict[str, Any],
    **options: Any,
) -> tuple[dict[str, dict[str, Any]], JoinSummary]:
    """Rows by request id after a join with impressions, and what it said."""
    log = write_log(directory / "log", *rows)
    path = write_rewards(directory / "rewards.jsonl", *rewards)
    shown = write_rewards(directory / "shown.jsonl", *impressions)
    summary = join(log, path, directory / "out", shown=shown, **(USUAL | options))
    found, reader = drain(directory / "out")
    assert reader.report.set_aside == {}
    return {one["request_id"]: one for one in found}, summary


def said(found: dict[str, dict[str, Any]], name: str) -> dict[str, tuple[Any, ...]]:
    return {
        request: (one["displayed"], one["shown_at"], one["rewards"])
        for request, one in found.items()
        if request == name
    }


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_every_form(form: str, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", row(0), row(1), row(2, displayed=1))
    rewards = write_rewards(tmp_path / f"r.{form}", reward("r0", 100), reward("r0", 7))
    shown = [impression("r0", 2, 0.5), impression("r2", 3)]
    path = write_rewards(tmp_path / f"s.{form}", *shown)
    summary = join(log, rewards, tmp_path / "out", shown=path, **USUAL)
    found, _ = drain(tmp_path / "out")
    assert [one["displayed"] for one in found] == [2, 0, 3]
    times = [START + timedelta(minutes=30), None, START + timedelta(hours=1)]
    assert [one["shown_at"] for one in found] == times
    assert [one["rewards"] for one in found] == [[0, 1, None], [None] * 3, [0, 0, 0]]
    assert summary == JoinSummary(
        rows_read=3, rows_written=3, rows_with_reward=1, rows_not_shown=1, rewards_read=2,
        rewards_used=1, rewards_not_displayed=1, rewards_dropped=1, impressions_read=2,
        impressions_used=2,
    )  # fmt: skip
    assert json.loads((tmp_path / "out" / "join.json").read_text())["shown"] is True
    (batch,) = LogReader(tmp_path / "out")
    assert batch.never_shown.tolist() == [False, True, False]
    assert batch.lengths.tolist() == [2, 0, 3]
    assert batch.observed.all()


def test_windows_begin_when_it_was_shown(tmp_path: Path) -> None:
    """A nightly ranking, seen two days later: the click of the third day is its own."""
    late = [impression("r0", 3, 48), impression("r1", 3, 1)]
    rewards = [
        *[reward("r0", 100, hours=h) for h in (0, 47.9, 48, 71, 72, 72.1)],
        *[reward("r1", 100, hours=h) for h in (0.9, 1, 25, 25.1)],
    ]
    found, summary = joined(
        tmp_path, late, rewards, row(0, ts=NOON, displayed=0), row(1, ts=NOON), repeats="sum",
        as_of=START + timedelta(hours=72),
    )  # fmt: skip
    assert found["r0"]["rewards"] == [0, 3, 0]
    assert found["r1"]["rewards"] == [0, 2, 0]
    assert (summary.rewards_before, summary.rewards_after) == (3, 2)
    assert found["r0"]["shown_at"] == START + timedelta(hours=48)
    assert found["r0"]["reward_ts"] == START + timedelta(hours=72)
    # A microsecond earlier that window is open, though the ranking is old.
    found, summary = joined(
        tmp_path / "early", late, rewards, row(0, ts=NOON, displayed=0), row(1, ts=NOON),
        as_of=START + timedelta(hours=72) - timedelta(microseconds=1),
    )  # fmt: skip
    assert set(found) == {"r1"}
    assert (summary.rows_open, summary.impressions_of_open_rows) == (1, 1)
    assert summary.open_until == (START + timedelta(hours=72)).isoformat()
    assert summary.rewards_of_open_rows == 3


def test_a_log_that_says_when_it_was_shown(tmp_path: Path) -> None:
    """Without impressions its own columns count; with them, theirs."""
    rows = [row(0, displayed=2, shown_at=NOON + 30 * HOUR), row(1, displayed=0)]
    rewards = [reward("r0", 100, hours=50), reward("r0", 0, hours=1), reward("r1", 100)]
    log = write_log(tmp_path / "log", *rows)
    path = write_rewards(tmp_path / "r.csv", *rewards)
    summary = join(log, path, tmp_path / "out", **USUAL | {"as_of": START + timedelta(days=9)})
    found, _ = drain(tmp_path / "out")
    assert [one["rewards"] for one in found] == [[0, 1, None], [None] * 3]
    assert (summary.rewards_before, summary.rewards_not_shown, summary.rows_not_shown) == (1, 1, 1)
    more, _ = joined(tmp_path / "with", [impression("r1", 1)], rewards, *rows)
    assert said(more, "r0") == {"r0": (0, None, [None] * 3)}
    assert said(more, "r1") == {"r1": (1, START + timedelta(hours=1), [0, None, None])}


def test_several_impressions_are_the_first_time_and_the_most_places(tmp_path: Path) -> None:
    """Of those within the window: later ones were seen when rewards do not count any more."""
    shown = [
        impression("r0", 1, 2), impression("r0", 2, 20), impression("r0", 1, 1),
        impression("r0", 3, 25.5), impression("r1", 3, 3), impression("r1", 3, 3),
    ]  # fmt: skip
    found, summary = joined(tmp_path, shown, [], row(0), row(1))
    assert said(found, "r0") == {"r0": (2, START + timedelta(hours=1), [0, 0, None])}
    assert said(found, "r1") == {"r1": (3, START + timedelta(hours=3), [0, 0, 0])}
    assert (summary.impressions_used, summary.impressions_repeated) == (5, 3)
    assert summary.impressions_after == 1


def test_what_says_more_or_nothing(tmp_path: Path) -> None:
    """More places than there are: all. None: not shown. An empty ranking was shown as it is."""
    empty: dict[str, Any] = {
        "item_ids": [], "log_propensities": [], "log_propensity": 0.0, "scores": [],
        "n_eligible": 0, "displayed": 0,
    }  # fmt: skip
    rows = [row(0), row(1), row(2), row(3, **empty), row(4, **empty)]
    shown = [
        impression("r0", 2**62), impression("r1", 0), impression("r2", 0, 0.5),
        impression("r2", 1, 3), impression("r3", 0),
    ]  # fmt: skip
    found, summary = joined(tmp_path, shown, [reward("r1", 100)], *rows)
    assert [one["displayed"] for one in found.values()] == [3, 0, 1, None, 0]
    assert found["r2"]["shown_at"] == START + timedelta(hours=3)
    assert found["r3"]["shown_at"] == START + timedelta(hours=1)
    assert (summary.impressions_beyond, summary.impressions_empty) == (1, 2)
    assert (summary.rows_not_shown, summary.rewards_not_shown) == (2, 1)
    assert summary.dropped_share == 1.0
    lines = told(summary.to_dict())
    assert "1 of 1 rewards are of rankings that were never shown: are impressions missing?" in lines
    assert "2 of 5 impressions say that no place was displayed, and count for none" in lines
    (batch,) = LogReader(tmp_path / "out")
    assert batch.never_shown.tolist() == [False, True, False, False, True]


def test_clocks_that_differ(tmp_path: Path) -> None:
    """As rewards: dropped and said, or taken in by `skew` as at the ranking's time."""
    shown = [impression(f"r{i}", 3, -i / 3600) for i in range(4)]
    rows = [row(i, ts=NOON) for i in range(4)]
    rewards = [reward(f"r{i}", 100, hours=0) for i in range(4)]
    found, summary = joined(tmp_path / "0", shown, rewards, *rows)
    assert [one["displayed"] for one in found.values()] == [3, 0, 0, 0]
    assert (summary.impressions_before, summary.impressions_dropped) == (3, 3)
    assert (summary.rewards_used, summary.rewards_not_shown) == (1, 3)
    (line,) = [each for each in told(summary.to_dict()) if "impressions came" in each]
    assert line == (
        "3 of 4 impressions came before their ranking, which is not shown by them: if clocks"
        " differ, join with --skew"
    )
    assert drain(tmp_path / "0" / "out")[1].report.impressions_dropped_share == 0.75
    found, summary = joined(tmp_path / "1", shown, rewards, *rows, skew="2s")
    assert [one["displayed"] for one in found.values()] == [3, 3, 3, 0]
    assert found["r2"]["shown_at"] == START
    assert (summary.impressions_early, summary.impressions_before) == (2, 1)
    assert summary.rewards_used == 3


def test_requests_that_were_not_logged(tmp_path: Path) -> None:
    shown = [impression("r0"), impression("R0"), impression("R0", hours=-1000)]
    for other, dropped in ((False, 1), (True, 0)):
        _, summary = joined(tmp_path / str(other), shown, [], row(0), other_requests=other)
        assert (summary.impressions_unlogged, summary.impressions_unlogged_in_span) == (2, 1)
        assert summary.impressions_dropped == dropped
        lines = told_of(json.loads((tmp_path / str(other) / "out" / "join.json").read_text()))
        assert any("--other-requests" in line for line in lines) is not other


def test_batches_of_a_large_log_against_a_slow_twin(tmp_path: Path) -> None:
    """Each impression and reward by a plain loop; 60 rankings, everything that may become of them.

    Rewards are there only to be held against what was shown: which rankings count is the same
    without them.
    """
    rng = np.random.default_rng(3)
    window, skew, as_of = timedelta(hours=6), timedelta(minutes=30), START + timedelta(hours=30)
    rows = []
    for i in range(60):
        m = int(rng.integers(0, 5))
        changes = {
            "item_ids": rng.permutation(9)[:m].tolist(), "log_propensities": [-1.0] * m,
            "log_propensity": -float(m), "k": 6, "n_eligible": m, "scores": None,
            "displayed": 0 if i % 2 else None, "ts": NOON + int(rng.integers(0, 24)) * HOUR,
        }  # fmt: skip
        rows.append(row(i, **changes))
    shown = [
        impression(f"r{rng.integers(0, 65)}", int(rng.integers(0, 7)), rng.integers(-4, 80) / 2)
        for _ in range(120)
    ]
    rewards = [
        reward(f"r{rng.integers(0, 65)}", int(rng.integers(0, 9)), hours=rng.integers(-4, 80) / 2)
        for _ in range(900)
    ]
    count = JoinSummary(rows_read=60, rewards_read=900, impressions_read=120)
    by_id = {one["request_id"]: one for one in rows}
    served = {name: datetime.fromtimestamp(one["ts"] / 1e6, UTC) for name, one in by_id.items()}
    at, places = dict(served), dict.fromkeys(by_id, 0)
    mine: dict[str, list[dict[str, Any]]] = {name: [] for name in by_id}
    for each in shown:
        if each["request_id"] not in by_id:
            count.impressions_unlogged += 1
        elif not each["displayed"] and by_id[each["request_id"]]["item_ids"]:
            count.impressions_empty += 1
        elif each["ts"] < served[each["request_id"]] - skew:
            count.impressions_before += 1
        else:
            mine[each["request_id"]].append(each)
    for name, own in mine.items():
        if own:
            at[name] = max(served[name], min(each["ts"] for each in own))
    open_ = {name: moment + window > as_of for name, moment in at.items()}
    for name, own in mine.items():
        inside = [each for each in own if each["ts"] <= at[name] + window]
        count.impressions_after += len(own) - len(inside)
        if open_[name]:
            count.impressions_of_open_rows += len(inside)
        else:
            m = len(by_id[name]["item_ids"])
            count.impressions_used += len(inside)
            count.impressions_repeated += max(len(inside) - 1, 0)
            count.impressions_beyond += sum(each["displayed"] > m for each in inside)
            count.impressions_early += sum(each["ts"] < served[name] for each in inside)
            places[name] = min(m, max((each["displayed"] for each in inside), default=0))
    span = min(served.values()) - skew, max(at.values()) + window
    count.impressions_unlogged_in_span = sum(
        each["request_id"] not in by_id and span[0] <= each["ts"] <= span[1] for each in shown
    )
    count.impressions_dropped = count.impressions_before + count.impressions_unlogged_in_span
    earned: dict[str, set[int]] = {name: set() for name in by_id}
    for each in rewards:
        name = each["request_id"]
        if name not in by_id or each["item_id"] not in by_id[name]["item_ids"]:
            continue
        place = by_id[name]["item_ids"].index(each["item_id"])
        if not mine[name] and not open_[name]:
            count.rewards_not_shown += 1
        elif not open_[name] and place >= places[name]:
            count.rewards_not_displayed += 1
        elif not open_[name] and -skew <= each["ts"] - at[name] <= window:
            earned[name].add(place)
    expected = {
        name: (
            (places[name] if one["item_ids"] or not mine[name] else None),
            at[name] if mine[name] else None,
            [
                float(place in earned[name]) if place < places[name] else None
                for place in range(len(one["item_ids"]))
            ],
        )
        for name, one in by_id.items()
        if not open_[name]
    }
    log = tmp_path / "log"
    for start in range(0, 60, 7):
        write_log(log / str(start), *rows[start : start + 7])
    path = write_rewards(tmp_path / "r.parquet", *rewards)
    seen = write_rewards(tmp_path / "s.parquet", *shown)
    options: dict[str, Any] = {
        "window": window, "as_of": as_of, "kind": "positives", "skew": skew, "shown": seen,
    }  # fmt: skip
    summary = join(log, path, tmp_path / "out", **options).to_dict()
    result = {one["request_id"]: one for one in drain(tmp_path / "out")[0]}
    columns = ("displayed", "shown_at", "rewards")
    assert {name: tuple(one[c] for c in columns) for name, one in result.items()} == expected
    told_apart = [name for name in summary if "impressions" in name] + [
        "rewards_not_shown", "rewards_not_displayed",
    ]  # fmt: skip
    for name in told_apart:
        assert summary[name] == getattr(count, name) > 0, name
    assert summary["rows_not_shown"] == sum(one[1] is None for one in expected.values()) > 0
    fates = ("used", "of_open_rows", "before", "after", "empty", "unlogged")
    assert sum(summary[f"impressions_{fate}"] for fate in fates) == 120

    none = write_rewards(tmp_path / "none.csv")
    join(log, none, tmp_path / "bare", **options)
    bare = {one["request_id"]: one for one in drain(tmp_path / "bare")[0]}
    assert {name: one["displayed"] for name, one in bare.items()} == {
        name: one["displayed"] for name, one in result.items()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"displayed": -1}, r"row 1: displayed: must not be negative, got '?-1'?"),
        ({"displayed": 1.5}, r"row 1: displayed: expected an integer, got '?1\.5'?"),
        ({"displayed": "two"}, "row 1: displayed: expected an integer, got 'two'"),
        ({"displayed": float("nan")}, "row 1: displayed: expected an integer, got '?NaN|nan'?"),
        ({"displayed": None}, "row 1: displayed: is missing, got None"),
        ({"displayed": 2**70}, "row 1: displayed: expected an integer"),
        ({"request_id": None}, "row 1: request_id: is missing, got None"),
        ({"ts": None}, "row 1: ts: is missing, got None"),
        ({"ts": "yesterday"}, "row 1: ts: expected ISO 8601, got 'yesterday'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", row(0))
    rewards = write_rewards(tmp_path / "r.csv")
    shown = [impression("r0"), impression("r0") | changes]
    for form in ("csv", "jsonl"):
        path = write_rewards(tmp_path / f"s.{form}", *shown)
        with pytest.raises(ValueError, match=rf"s\.{form}: {message}"):
            join(log, rewards, tmp_path / "out", shown=path, **USUAL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("displayed", "message"),
    [
        (pa.array([2.0, 2.5]), "row 1: displayed: expected an integer, got 2.5"),
        (pa.array([2.0, float("nan")]), "row 1: displayed: expected an integer, got nan"),
        (pa.array([True, False]), "displayed: expected an integer, got bool"),
        (pa.array([1, 2], pa.timestamp("us")), "displayed: expected an integer, got timestamp"),
        (pa.array([[1], [2]]), "displayed: expected an integer, got list"),
        (pa.array([1, -1], pa.int8()), "row 1: displayed: must not be negative, got -1"),
        (None, "no column named displayed; found request_id, ts"),
    ],
)
def test_types_of_parquet(displayed: pa.Array | None, message: str, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", row(0))
    rewards = write_rewards(tmp_path / "r.csv")
    columns = {"request_id": pa.array(["r0", "r0"]), "ts": pa.array([START, START])}
    if displayed is not None:
        columns["displayed"] = displayed
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match=rf"s\.parquet: .*{message}"):
        join(log, rewards, tmp_path / "out", shown=tmp_path / "s.parquet", **USUAL)


def test_whole_numbers_may_be_floats(tmp_path: Path) -> None:
    """As pandas has counts that miss some."""
    columns = {"request_id": ["r0"], "ts": [START], "displayed": [2.0]}
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    log = write_log(tmp_path / "log", row(0))
    rewards = write_rewards(tmp_path / "r.csv")
    join(log, rewards, tmp_path / "out", shown=tmp_path / "s.parquet", **USUAL)
    assert drain(tmp_path / "out")[0][0]["displayed"] == 2


def test_an_audit_judges_what_nobody_saw(tmp_path: Path) -> None:
    """It was drawn all the same: a propensity that is not true is found beyond the places shown."""
    items = catalog()
    with LogWriter(tmp_path / "log") as log:
        for seed in range(40):
            drawn = items.rank([1, 0, 0, 0], 3, policy=fr.PlackettLuce(1.0), seed=seed)
            log.append(drawn, query=[1, 0, 0, 0], displayed=seed % 2)
    checks = {each.name: each for each in ope.audit(LogReader(tmp_path / "log"), [items]).checks}
    assert checks["propensities"].outcome == "passed"
    (file,) = (tmp_path / "log").glob("*.parquet")
    whole = pq.read_table(file)
    logged = np.array(whole.column("log_propensities").to_pylist())
    logged[:, 2] -= 0.5
    spoiled = whole.set_column(
        whole.schema.get_field_index("log_propensities"), "log_propensities",
        pa.array(logged.tolist()),
    )  # fmt: skip
    spoiled = spoiled.set_column(
        whole.schema.get_field_index("log_propensity"), "log_propensity",
        pa.array(logged.sum(axis=1)),
    )  # fmt: skip
    pq.write_table(spoiled, file)
    checks = {each.name: each for each in ope.audit(LogReader(file), [items]).checks}
    assert checks["propensities"].outcome == "failed"


# A small world, enumerated: each row is a ranking and what may come of it, with its probability.

WRONG = ("avg", "replay", "dm", "clipped-ips")  # and say so themselves
SHARES = {0: 0.4, 1: 0.3, 2: 0.1, 3: 0.2}  # of the places displayed, whatever is there


def slate_weights(ranking: tuple[int, ...]) -> float:
    """q_1' Gamma_0^+ 1_s, of the whole ranking."""
    slates = list(permutations(range(4), K))
    shown = np.zeros((len(slates), K, 4))
    for j, slate in enumerate(slates):
        shown[j, np.arange(K), slate] = 1.0
    flat = shown.reshape(len(slates), -1)
    p, q = (np.exp([sum(conditionals(np.array(w), s)) for s in slates]) for w in (W0, W1))
    gamma = flat.T @ (p[:, None] * flat)
    return float((q @ flat) @ np.linalg.pinv(gamma) @ flat[slates.index(ranking)])


def world(directory: Path, chance_of: Any) -> tuple[float, float, dict[str, Any]]:
    """A log of the world, its clicks and impressions; the value of what is served, and of what
    is shown, under the policy that is asked about; and arguments of `join`.

    `chance_of(ranking, depth)` is the probability of so many places, 0 for none.
    """
    rows: list[dict[str, Any]] = []
    extra: dict[str, list[Any]] = {}
    clicks, shown = [], []
    of_items = [marginals(np.array(w)) for w in (W0, W1)]
    served = seen = 0.0
    q, w1 = np.sqrt(CLICKS), np.array(W1)
    for ranking in permutations(range(4), K):
        logged, asked = conditionals(W0, ranking), conditionals(w1, ranking)
        expected, left = [], w1.copy()
        for item in ranking:
            expected.append(float(left @ q / left.sum()))
            left[item] = 0.0
        own = {
            "evaluated": asked,
            "m0": of_items[0][list(ranking), np.arange(K)].tolist(),
            "m1": of_items[1][list(ranking), np.arange(K)].tolist(),
            "q0": q[list(ranking)].tolist(),
            "q1": expected,
            "slate": slate_weights(ranking),
            "direct": 1.0,
        }
        for depth in range(K + 1):
            for chance, clicked in clicks_on(ranking, depth):
                p = chance_of(ranking, depth) * chance
                name = f"r{len(rows)}"
                rows.append(
                    row(
                        len(rows), item_ids=list(ranking), log_propensities=logged, scores=None,
                        log_propensity=sum(logged), user_id=f"u{len(rows)}", displayed=0,
                        row_weight=np.exp(sum(logged)) * p,
                    )
                )  # fmt: skip
                for column, value in own.items():
                    extra.setdefault(column, []).append(value)
                clicks += [
                    reward(name, item, hours=2)
                    for item, click in zip(ranking, clicked, strict=False)
                    if click
                ]
                if depth:
                    shown.append(impression(name, depth))
                served += np.exp(sum(asked)) * p * sum(clicked)
                seen += np.exp(sum(asked)) * p * (depth > 0)
    whole = table([{**one, "rewards": None, "reward_kind": None} for one in rows])
    for column, values in extra.items():
        whole = whole.append_column(column, pa.array(values))
    directory.mkdir()
    pq.write_table(whole, directory / "log.parquet")
    write_rewards(directory / "clicks.csv", *clicks)
    write_rewards(directory / "shown.csv", *shown)
    options = {"window": "24h", "as_of": LATER, "kind": "positives"}
    return served, served / seen, options


def evaluated(joined: Path) -> ope.Evaluation:
    arrays = {
        "marginals_logged": "m0", "marginals_evaluated": "m1", "q_logged": "q0",
        "q_expected": "q1", "cascade_q_logged": "q0", "cascade_q_expected": "q1",
        "slate_weights": "slate", "q_direct": "direct",
    }  # fmt: skip
    # Few rows stand for many: how uneven these few are says nothing.
    limits = ope.Thresholds(max_weight_share=1.0, heaviest_share=1.0, behaviour_error=np.inf)
    return ope.evaluate(
        LogReader(joined, columns=["evaluated", "m0", "m1", "q0", "q1", "slate", "direct"]),
        [ope.FromColumn("new", "evaluated", arrays)],
        estimators=list(ope.ESTIMATORS),
        thresholds=limits,
        clip=1.5,
    )


def replayed(joined: Path, name: str) -> ope.Estimate:
    """Replay draws once a row; here each row is there as it matches, and as it does not."""
    parts = []
    for batch in LogReader(joined, columns=["evaluated"]):
        used = batch.where(~batch.never_shown)
        asked, own = used.columns["evaluated"], used.row_weights
        assert own is not None
        matches = np.exp(asked.sum(axis=1))
        for uniform, chance in ((0.0, matches), (1.0 - 1e-9, 1.0 - matches)):
            there = chance > 1e-12
            parts.append(
                ope.Batch.of(
                    used.log_propensities[there], asked[there], used.rewards[there],
                    lengths=used.lengths[there], uniform=np.full(there.sum(), uniform),
                    row_weights=(own * chance)[there],
                )
            )  # fmt: skip
    estimator = ope.ESTIMATORS[name](K)
    for part in parts:
        estimator.update(part)
    return ope.estimate(estimator, bootstrap=False)


def test_whoever_says_ok_is_right_of_lists_that_are_cut_at_random(tmp_path: Path) -> None:
    """By impressions that come in a file; two fifths of what is served is never shown."""
    served, truth, options = world(tmp_path / "w", lambda ranking, depth: SHARES[depth])
    log, shown = tmp_path / "w" / "log.parquet", tmp_path / "w" / "shown.csv"
    summary = join(log, tmp_path / "w" / "clicks.csv", tmp_path / "out", shown=shown, **options)
    assert summary.rewards_dropped == summary.impressions_dropped == 0
    found = evaluated(tmp_path / "out")
    assert summary.rows_not_shown == 24
    assert found.set_aside == {"not_shown": 24}
    estimates = found.policies[0].estimates
    for name in ope.ESTIMATORS:
        off = abs((estimates[name].value or 0.0) - truth)
        if name in WRONG:  # and all of them say so
            assert off > 0.001, name
            assert estimates[name].status != "ok", name
        elif name != "replay-weighted":
            assert off < 1e-12, name
            assert estimates[name].status == "ok", (name, estimates[name].reasons)
    assert replayed(tmp_path / "out", "replay-weighted").value == pytest.approx(truth, abs=1e-9)
    replay = replayed(tmp_path / "out", "replay")
    assert replay.value is not None
    assert abs(replay.value - truth) > 0.01  # short lists match more often
    assert "match_not_constant" in replay.reasons
    assert served == pytest.approx(0.6 * truth)


def test_whether_it_is_shown_may_depend_on_what_was_ranked(tmp_path: Path) -> None:
    """Who is told of the first item opens what pleases: leaving out is a selection then.

    Counted whole, each ranking that was served has its value, whatever decides what is shown.
    """
    opened = np.array([0.9, 0.2, 0.6, 0.3])

    def chance_of(ranking: tuple[int, ...], depth: int) -> float:
        chance = float(opened[ranking[0]])
        return {0: 1.0 - chance, K: chance}.get(depth, 0.0)

    served, truth, options = world(tmp_path / "w", chance_of)
    log, shown = tmp_path / "w" / "log.parquet", tmp_path / "w" / "shown.csv"
    clicks = tmp_path / "w" / "clicks.csv"
    join(log, clicks, tmp_path / "out", shown=shown, **options)
    estimates = evaluated(tmp_path / "out").policies[0].estimates
    for name in ("ips", "rips", "iips", "dr-position", "cascade-dr"):
        for value in (served, truth):
            assert abs((estimates[name].value or 0.0) - value) > 0.01, name
    # What is shown to the users of either policy differs, and their weights say so.
    assert estimates["snips"].value == pytest.approx(truth, abs=1e-12)
    diagnostics = estimates["snips"].diagnostics
    assert diagnostics is not None
    assert abs(diagnostics.mean_weight - 1.0) > 0.05

    whole = pq.read_table(log)
    at = whole.schema.get_field_index("displayed")
    whole = whole.set_column(at, "displayed", pa.nulls(len(whole), pa.int64()))
    (tmp_path / "whole").mkdir()
    pq.write_table(whole, tmp_path / "whole" / "log.parquet")
    join(tmp_path / "whole", clicks, tmp_path / "all", **options)
    estimates = evaluated(tmp_path / "all").policies[0].estimates
    for name in ("ips", "snips", "rips", "snrips", "dr-position", "cascade-dr"):
        assert estimates[name].value == pytest.approx(served, abs=1e-12), name
