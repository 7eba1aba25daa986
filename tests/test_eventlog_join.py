"""Rewards find their rows, and nothing that does not is passed over in silence."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from logs import HOUR, NOON, catalog, drain, row, table

import fastrank as fr
from fastrank.eventlog import JoinSummary, LogReader, LogWriter, join
from fastrank.eventlog.account import told, told_of
from fastrank.eventlog.join import parse_time, parse_window
from fastrank.eventlog.schema import IdKind

START = datetime.fromtimestamp(NOON / 1e6, UTC)
LATER = START + timedelta(days=2)


def write_log(directory: Path, *rows: dict[str, Any], kind: IdKind = "int64") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    bare = [{**one, "rewards": None, "reward_kind": None} for one in rows]
    pq.write_table(table(bare, kind), directory / "a.parquet")
    return directory


def reward(
    request: str, item: Any, value: float = 1.0, hours: float = 1.0, **more: Any
) -> dict[str, Any]:
    when = START + timedelta(hours=hours)
    return {"request_id": request, "item_id": item, "reward": value, "ts": when, **more}


def write_rewards(path: Path, *rewards: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for one in rewards for name in one)) or [
        "request_id", "item_id", "reward", "ts",
    ]  # fmt: skip
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rewards)), path)
        return path
    texts = [
        {n: v.isoformat() if isinstance(v, datetime) else v for n, v in one.items()}
        for one in rewards
    ]
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            out = csv.DictWriter(file, names)
            out.writeheader()
            out.writerows(texts)
        else:
            file.writelines(json.dumps(text) + "\n" for text in texts)
    return path


def joined(
    directory: Path, rewards: list[dict[str, Any]], *rows: dict[str, Any], **options: Any
) -> tuple[dict[str, list[Any]], JoinSummary]:
    """Rewards by request id after a join with usual options, and what the join said."""
    kind: IdKind = "str" if isinstance(rows[0]["item_ids"][0], str) else "int64"
    log = write_log(directory / "log", *rows, kind=kind)
    path = write_rewards(directory / "rewards.jsonl", *rewards)
    usual: dict[str, Any] = {"window": "24h", "as_of": LATER, "kind": "positives"}
    summary = join(log, path, directory / "out", **(usual | options))
    found, reader = drain(directory / "out")
    assert reader.report.set_aside == {}
    return {one["request_id"]: one["rewards"] for one in found}, summary


class TestRewards:
    @pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
    @pytest.mark.parametrize("kind", ["int64", "str"])
    def test_every_form_and_kind(self, form: str, kind: IdKind, tmp_path: Path) -> None:
        rows = [row(i, kind) for i in range(5)]
        items = [one["item_ids"] for one in rows]
        rewards = [
            reward("r0", items[0][0]),
            reward("r1", items[1][2], 2.5),
            reward("r1", items[1][0], 0.25),
            reward("r4", items[4][1]),
        ]
        log = write_log(tmp_path / "log", *rows, kind=kind)
        path = write_rewards(tmp_path / f"rewards.{form}", *rewards)
        summary = join(log, path, tmp_path / "out", window="24h", as_of=LATER, kind="positives")
        found, reader = drain(tmp_path / "out")
        assert [one["rewards"] for one in found] == [
            [1, 0, 0], [0.25, 0, 2.5], [0, 0, 0], [0, 0, 0], [0, 1, 0],
        ]  # fmt: skip
        assert {one["reward_kind"] for one in found} == {"positives"}
        hour = START + timedelta(hours=1)
        assert [one["reward_ts"] for one in found] == [hour, hour, None, None, hour]
        assert summary == JoinSummary(
            rows_read=5, rows_written=5, rows_with_reward=3, rewards_read=4, rewards_used=4
        )
        # All else is as it was.
        source, _ = drain(log)
        for before, after in zip(source, found, strict=True):
            for name in ("rewards", "reward_kind", "reward_ts"):
                before.pop(name), after.pop(name)
            assert before == after
        assert reader.report.rows_lost == {}

    def test_ids_in_text_are_not_numbers_unless_the_log_says_so(self, tmp_path: Path) -> None:
        rows = [row(0, "str", item_ids=["007", "7", "é"])]
        log = write_log(tmp_path / "log", *rows, kind="str")
        path = write_rewards(tmp_path / "r.csv", reward("r0", "007"), reward("r0", "é", 3.0))
        join(log, path, tmp_path / "out", window="24h", as_of=LATER, kind="positives")
        assert drain(tmp_path / "out")[0][0]["rewards"] == [1, 0, 3]

    @pytest.mark.parametrize(("repeats", "expected"), [("max", 3.0), ("sum", 6.5), ("first", 2.0)])
    def test_repeats(self, repeats: str, expected: float, tmp_path: Path) -> None:
        rewards = [
            reward("r0", 100, 3.0, hours=3),
            reward("r0", 100, 2.0, hours=1),
            reward("r0", 100, 1.5, hours=2),
            reward("r0", 0, 7.0),
        ]
        found, summary = joined(tmp_path, rewards, row(0), repeats=repeats)
        assert found == {"r0": [7.0, expected, 0.0]}
        assert (summary.rewards_used, summary.rewards_repeated) == (4, 2)

    def test_first_of_one_moment_is_the_first_in_the_file(self, tmp_path: Path) -> None:
        rewards = [reward("r0", 100, value) for value in (5.0, 9.0, 1.0)]
        assert joined(tmp_path, rewards, row(0), repeats="first")[0] == {"r0": [0, 5, 0]}

    def test_complete_leaves_what_is_not_there_unobserved(self, tmp_path: Path) -> None:
        rewards = [reward("r0", 0, 0.0), reward("r0", 100, -2.0)]
        found, summary = joined(tmp_path, rewards, row(0), row(1), kind="complete")
        assert found == {"r0": [0.0, -2.0, None], "r1": [None, None, None]}
        assert summary.rows_with_reward == 1
        (batch,) = LogReader(tmp_path / "out")
        assert batch.observed.tolist() == [False, False]

    def test_places_beyond_displayed_were_not_shown(self, tmp_path: Path) -> None:
        rewards = [reward("r0", 0), reward("r0", 100)]
        found, summary = joined(tmp_path, rewards, row(0, displayed=1))
        assert found == {"r0": [1.0, None, None]}
        assert (summary.rewards_used, summary.rewards_unlogged) == (1, 0)
        assert (summary.rewards_not_displayed, summary.rewards_dropped) == (1, 1)
        (batch,) = LogReader(tmp_path / "out")
        assert batch.observed.all()

    def test_windows(self, tmp_path: Path) -> None:
        """Both ends are in; a microsecond beyond is out."""
        micro = 1 / HOUR
        rewards = [
            reward("r0", 100, 1.0, hours=0),
            reward("r0", 0, 1.0, hours=24),
            reward("r0", 7, 1.0, hours=24 + micro),
            reward("r0", 7, 1.0, hours=-micro),
        ]
        found, summary = joined(tmp_path, rewards, row(0))
        assert found == {"r0": [1.0, 1.0, 0.0]}
        assert (summary.rewards_used, summary.rewards_outside_window) == (2, 2)

    def test_open_rows_are_left_out_with_their_rewards(self, tmp_path: Path) -> None:
        rows = [row(i, ts=NOON + i * HOUR) for i in range(10)]
        rewards = [reward(f"r{i}", 100, hours=i + 0.5) for i in range(10)]
        moment = START + timedelta(hours=24 + 4)
        found, summary = joined(tmp_path, rewards, *rows, as_of=moment)
        assert list(found) == ["r0", "r1", "r2", "r3", "r4"]  # r4's window ends at that moment
        assert summary.rows_open == 5
        assert (summary.rewards_used, summary.rewards_of_open_rows) == (5, 5)
        (batch,) = reader = LogReader(tmp_path / "out")
        assert len(batch) == 5
        del batch
        assert reader.report.rows_lost == {}  # left out is not lost

    def test_pairs_that_are_not_in_the_log(self, tmp_path: Path) -> None:
        rewards = [
            reward("r0", 100),
            reward("nobody", 100),
            reward("nobody", 7),
            reward("r0", 55),
            reward("r1", 0),  # r0's item
        ]
        found, summary = joined(tmp_path, rewards, row(0), row(1))
        assert found == {"r0": [0, 1, 0], "r1": [0, 0, 0]}
        assert summary.rewards_unlogged == 4
        assert summary.rewards_unlogged_requests == 2

    @pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
    def test_positions(self, form: str, tmp_path: Path) -> None:
        rewards = [
            reward("r0", 100, position=2),
            reward("r0", 0, position=3),
            reward("r0", 7, position=None),
        ]
        log = write_log(tmp_path / "log", row(0))
        path = write_rewards(tmp_path / f"r.{form}", *rewards)
        summary = join(log, path, tmp_path / "out", window="1d", as_of=LATER, kind="positives")
        assert drain(tmp_path / "out")[0][0]["rewards"] == [0, 1, 1]
        assert (summary.rewards_used, summary.rewards_misplaced) == (2, 1)

    @pytest.mark.parametrize("skew", [timedelta(0), timedelta(minutes=30)])
    @pytest.mark.parametrize("other", [False, True])
    def test_batches_of_a_large_log_against_a_slow_twin(
        self, skew: timedelta, other: bool, tmp_path: Path
    ) -> None:
        """Each reward by a plain loop over dicts; 60 rankings, 900 rewards of every fate."""
        rng = np.random.default_rng(8)
        early: list[float] = []
        taken: list[float] = []
        rows = []
        for i in range(60):
            m = int(rng.integers(0, 6))
            changes = {
                "item_ids": rng.permutation(9)[:m].tolist(),
                "log_propensities": [-1.0] * m,
                "log_propensity": -float(m),
                "k": 6,
                "n_eligible": m,
                "scores": None,
                "displayed": None if rng.random() < 0.5 else int(rng.integers(0, m + 1)),
                "ts": NOON + int(rng.integers(0, 48)) * HOUR,
            }
            rows.append(row(i, **changes))
        rewards = [
            reward(
                f"r{rng.integers(0, 65)}", int(rng.integers(0, 9)),
                float(rng.integers(0, 4)), hours=float(rng.integers(-4, 120)) / 2,
                position=int(rng.integers(1, 6)) if rng.random() < 0.3 else None,
            )
            for _ in range(900)
        ]  # fmt: skip
        as_of = START + timedelta(hours=20)
        window = timedelta(hours=6)
        expected: dict[str, list[float | None]] = {}
        count = JoinSummary(rows_read=60, rewards_read=900)
        used: dict[tuple[str, int], float] = {}
        closed: dict[str, bool] = {}
        by_id = {one["request_id"]: one for one in rows}
        for name, one in by_id.items():
            served = datetime.fromtimestamp(one["ts"] / 1e6, UTC)
            closed[name] = served + window <= as_of
            if not closed[name]:
                count.rows_open += 1
                count.open_until = max(count.open_until or "", (served + window).isoformat())
        times = [datetime.fromtimestamp(one["ts"] / 1e6, UTC) for one in rows]
        for each in rewards:
            if each["request_id"] not in by_id:
                count.rewards_unlogged += 1
                count.rewards_unlogged_requests += 1
                in_span = min(times) - skew <= each["ts"] <= max(times) + window
                count.rewards_unlogged_in_span += in_span
                count.rewards_dropped += in_span and not other
                continue
            one = by_id[each["request_id"]]
            m = len(one["item_ids"]) if one["displayed"] is None else one["displayed"]
            if each["item_id"] not in one["item_ids"]:
                count.rewards_unlogged += 1
                count.rewards_dropped += 1
                continue
            place = one["item_ids"].index(each["item_id"])
            if each["position"] not in (None, place + 1):
                count.rewards_misplaced += 1
                count.rewards_dropped += 1
                continue
            if closed[each["request_id"]] and place >= m:  # or it may be displayed yet
                count.rewards_not_shown += m == 0
                count.rewards_not_displayed += m > 0
                count.rewards_dropped += 1
                continue
            delay = each["ts"] - datetime.fromtimestamp(one["ts"] / 1e6, UTC)
            if delay < -skew:
                count.rewards_outside_window += 1
                count.rewards_before += 1
                count.rewards_dropped += 1
                early.append(-delay.total_seconds())
            elif delay > window:
                count.rewards_outside_window += 1
                count.rewards_after += 1
            elif not closed[each["request_id"]]:
                count.rewards_of_open_rows += 1
            else:
                count.rewards_used += 1
                if delay < timedelta(0):
                    count.rewards_early += 1
                    taken.append(-delay.total_seconds())
                cell = each["request_id"], place
                count.rewards_repeated += cell in used
                used[cell] = used.get(cell, 0.0) + each["reward"]
        for name, one in by_id.items():
            if closed[name]:
                m = len(one["item_ids"]) if one["displayed"] is None else one["displayed"]
                expected[name] = [
                    used.get((name, place), 0.0) if place < m else None
                    for place in range(len(one["item_ids"]))
                ]
        count.before_seconds_median = float(np.median(early))
        count.before_seconds_most = max(early)
        if taken:
            count.early_seconds_median = float(np.median(taken))
            count.early_seconds_most = max(taken)
        assert bool(taken) == (skew > timedelta(0))
        count.rows_written = len(expected)
        count.rows_not_shown = sum(by_id[name]["displayed"] == 0 for name in expected)
        count.rows_with_reward = len({name for name, _ in used})
        assert count.rows_set_aside == 0
        fates = [
            number
            for name, number in count.to_dict().items()
            if isinstance(number, int) and name != "rewards_early" and "impressions" not in name
        ]
        assert sorted(fates)[1] > 0  # and every other fate occurs

        log = tmp_path / "log"
        for start in range(0, 60, 7):
            write_log(log / str(start), *rows[start : start + 7])
        path = write_rewards(tmp_path / "r.parquet", *rewards)
        summary = join(
            log, path, tmp_path / "out", window=window, as_of=as_of, kind="positives",
            repeats="sum", skew=skew, other_requests=other,
        )  # fmt: skip
        assert summary == count
        assert summary.rewards_unlogged_in_span < summary.rewards_unlogged_requests
        assert summary.rewards_read == (
            summary.rewards_used + summary.rewards_of_open_rows + summary.rewards_before
            + summary.rewards_after + summary.rewards_misplaced + summary.rewards_unlogged
            + summary.rewards_not_displayed + summary.rewards_not_shown
        )  # fmt: skip
        among = summary.rewards_dropped + summary.rewards_used + summary.rewards_of_open_rows
        assert 0.0 < summary.dropped_share == summary.rewards_dropped / among < 1.0
        assert LogReader(tmp_path / "out").report.rewards_dropped_share == 0.0  # not read yet
        assert drain(tmp_path / "out")[1].report.rewards_dropped_share == summary.dropped_share
        assert {one["request_id"]: one["rewards"] for one in drain(tmp_path / "out")[0]} == expected

    def test_rewards_are_float64(self, tmp_path: Path) -> None:
        """To the last unit of revenue, and the smallest there are."""
        for form, values in (("csv", [16_777_217, 1e-46, 5e-324]), ("parquet", [0.1, 1e39, 2.0])):
            rewards = [
                reward("r0", item, float(value))
                for item, value in zip(row(0)["item_ids"], values, strict=True)
            ]
            log = write_log(tmp_path / form / "log", row(0))
            path = write_rewards(tmp_path / form / f"r.{form}", *rewards)
            out = tmp_path / form / "out"
            join(log, path, out, window="24h", as_of=LATER, kind="positives")
            assert drain(out)[0][0]["rewards"] == values
            (batch,) = LogReader(out)
            assert batch.rewards.tolist() == [values]
        rewards = [reward("r0", 100, 20_000_001.0), *[reward("r0", 100, 1.0)] * 50]
        assert joined(tmp_path, rewards, row(0), repeats="sum")[0]["r0"] == [0, 20_000_051, 0]

    def test_whole_numbers_in_parquet_are_the_nearest(self, tmp_path: Path) -> None:
        rewards = [{**reward("r0", 100), "reward": 2**53 + 1}]
        log = write_log(tmp_path / "log", row(0))
        path = write_rewards(tmp_path / "r.parquet", *rewards)
        join(log, path, tmp_path / "out", window="24h", as_of=LATER, kind="positives")
        assert drain(tmp_path / "out")[0][0]["rewards"] == [0, float(2**53), 0]

    @pytest.mark.parametrize("kind", ["positives", "complete"])
    def test_sums_beyond_float64_are_refused(self, kind: str, tmp_path: Path) -> None:
        largest = 1.7e308
        rewards = [reward("r1", 100, largest), reward("r1", 100, largest)]
        if kind == "complete":  # infinity less infinity
            rewards += [reward("r1", 100, -largest)] * 4
        with pytest.raises(
            ValueError, match=r"a\.parquet: row 1: the sum of its rewards is outside"
        ):
            joined(tmp_path, rewards, row(0), row(1), repeats="sum", kind=kind)
        assert not (tmp_path / "out").exists()


class TestMissing:
    """What should have been there: counted by reason, and kept for evaluating the result."""

    def test_clocks_that_differ(self, tmp_path: Path) -> None:
        """Half a minute behind: as many as come before are counted, and `skew` takes them in."""
        rows = [row(i, ts=NOON) for i in range(10)]
        hours = [(i - 30) / 3600 for i in range(0, 50, 5)]  # -30 s to 15 s
        rewards = [reward(f"r{i}", 100, hours=h) for i, h in enumerate(hours)]
        found, summary = joined(tmp_path / "0", rewards, *rows)
        assert (summary.rewards_used, summary.rewards_before, summary.rewards_after) == (4, 6, 0)
        assert (summary.before_seconds_median, summary.before_seconds_most) == (17.5, 30.0)
        assert summary.rewards_dropped == 6
        assert summary.dropped_share == 0.6
        (said,) = told(summary.to_dict())
        assert said == ("6 of 10 rewards came before their ranking, 17.5 s in the median, up to"
                        " 30 s: if clocks differ, join with --skew 30s")  # fmt: skip
        found, summary = joined(tmp_path / "1", rewards, *rows, skew="29.9s")
        assert (summary.rewards_used, summary.rewards_before) == (9, 1)
        found, summary = joined(tmp_path / "2", rewards, *rows, skew=timedelta(seconds=30))
        assert found == {f"r{i}": [0, 1, 0] for i in range(10)}
        assert (summary.rewards_used, summary.rewards_before, summary.dropped_share) == (10, 0, 0)
        assert summary.rewards_early == 6
        assert (summary.early_seconds_median, summary.early_seconds_most) == (17.5, 30.0)
        assert told(summary.to_dict()) == []
        # They count as at the ranking's time.
        times = [one["reward_ts"] for one in drain(tmp_path / "2" / "out")[0]]
        assert times[:7] == [START] * 7
        assert times[8] == START + timedelta(seconds=10)
        account = json.loads((tmp_path / "2" / "out" / "join.json").read_text())
        assert (account["skew_seconds"], account["other_requests"]) == (30.0, False)

    def test_a_zone_taken_for_skew_is_said(self, tmp_path: Path) -> None:
        """Five hours behind: all count, but then the window begins five hours early for all."""
        rewards = [reward(f"r{i}", 100, hours=i / 60 - 5) for i in range(4)]
        rows = [row(i, ts=NOON) for i in range(4)]
        _, summary = joined(tmp_path, rewards, *rows, skew="5h")
        assert (summary.rewards_used, summary.rewards_early) == (4, 4)
        (said,) = told_of(json.loads((tmp_path / "out" / "join.json").read_text()))
        assert said == (
            "4 of 4 rewards came before their ranking, 4.97 h in the median, up to 5 h, and count"
            " by --skew: no clocks differ so; a time that says no zone is taken for UTC"
        )

    def test_early_rewards_of_open_rows_are_not_used(self, tmp_path: Path) -> None:
        rewards = [reward("r0", 100, hours=-0.001), reward("r1", 100, hours=-0.001)]
        rows = [row(0), row(1, ts=datetime(2026, 3, 1, tzinfo=UTC))]
        _, summary = joined(tmp_path, rewards, *rows, skew="1h", as_of="2026-02-01")
        assert (summary.rows_open, summary.rewards_used, summary.rewards_early) == (1, 1, 1)

    def test_both_ends_of_the_skew_are_in(self, tmp_path: Path) -> None:
        micro = 1 / HOUR
        rewards = [reward("r0", 0, hours=-1), reward("r0", 100, hours=-1 - micro)]
        found, summary = joined(tmp_path, rewards, row(0), skew="1h")
        assert found == {"r0": [1, 0, 0]}
        assert (summary.rewards_before, summary.before_seconds_most) == (1, 3600.000001)

    def test_the_first_by_its_own_time(self, tmp_path: Path) -> None:
        rewards = [reward("r0", 100, 2.0, -0.1), reward("r0", 100, 3.0, -0.2)]
        assert joined(tmp_path, rewards, row(0), skew="1h", repeats="first")[0]["r0"][1] == 3.0

    def test_what_is_no_flaw(self, tmp_path: Path) -> None:
        """A short window is a choice, and files may cover more time than the log."""
        rewards = [
            reward("r0", 100),
            *[reward("r0", 0, hours=25)] * 5,
            *[reward("elsewhere", 0, hours=h) for h in (-0.001, 24.001, 1000)],
        ]
        _, summary = joined(tmp_path, rewards, row(0))
        assert (summary.rewards_after, summary.rewards_unlogged_requests) == (5, 3)
        assert (summary.rewards_unlogged_in_span, summary.rewards_dropped) == (0, 0)
        assert told(summary.to_dict()) == [
            "3 of 9 rewards name requests that the log does not hold, at times that it does not"
            " cover",
            "5 of 9 rewards came after the window",
        ]

    def test_requests_that_were_not_logged(self, tmp_path: Path) -> None:
        """A flaw, unless the caller knows better."""
        rewards = [reward("r0", 100), reward("R0", 100, hours=0), reward("R0", 0, hours=24)]
        for other, dropped in ((False, 2), (True, 0)):
            _, summary = joined(tmp_path / str(other), rewards, row(0), other_requests=other)
            assert (summary.rewards_unlogged_in_span, summary.rewards_dropped) == (2, dropped)
            (said,) = told(summary.to_dict(), other_requests=other)
            assert said.startswith("2 of 3 rewards name requests that the log does not hold")
            assert ("--other-requests" in said) is not other

    def test_another_zone(self, tmp_path: Path) -> None:
        rewards = [reward("r0", 100, hours=-5), reward("r0", 0, hours=-4.5)]
        _, summary = joined(tmp_path / "west", rewards, row(0))
        assert told(summary.to_dict()) == [
            "2 of 2 rewards came before their ranking, 4.75 h in the median, up to 5 h: a time"
            " that says no zone is taken for UTC"
        ]
        _, summary = joined(tmp_path / "east", [reward("r0", 100, hours=2)], row(0), window="1h")
        assert told(summary.to_dict()) == [
            "1 of 1 rewards came after the window; a time that says no zone is taken for UTC"
        ]

    def test_rewards_of_open_rows_found_their_ranking(self, tmp_path: Path) -> None:
        """Or an early join would look worse than a later one."""
        rows = [row(i) for i in range(9)]
        rows[0]["ts"] = NOON - 20 * HOUR
        rewards = [reward(f"r{i}", 100, hours=-19 if i == 0 else 1) for i in range(9)]
        rewards.append(reward("r5", 55))
        _, summary = joined(tmp_path, rewards, *rows, as_of=START + timedelta(hours=5))
        assert (summary.rewards_used, summary.rewards_of_open_rows) == (1, 8)
        assert summary.dropped_share == 0.1
        assert summary.open_until == (START + timedelta(hours=24, microseconds=8)).isoformat()

    def test_the_last_open_window_of_all_batches(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        for i, hours in enumerate((30, 40, 10)):
            write_log(log / str(i), row(i, ts=NOON + hours * HOUR))
        path = write_rewards(tmp_path / "r.csv")
        summary = join(log, path, tmp_path / "out", window="20h", as_of=LATER, kind="positives")
        assert summary.rows_open == 2
        assert summary.open_until == (START + timedelta(hours=60)).isoformat()

    def test_several_joins_are_judged_as_one(self, tmp_path: Path) -> None:
        joined(tmp_path / "a", [reward("r0", 100, hours=-1)], row(0))
        joined(tmp_path / "b", [reward(f"r{i}", 100) for i in range(1, 10)], *map(row, range(10)))
        outs = [tmp_path / name / "out" for name in "ab"]
        assert drain(outs)[1].report.rewards_dropped_share == 0.1
        # Of an account as it was before early and late were told apart, nothing is judged.
        file = outs[0] / "join.json"
        account = json.loads(file.read_text())
        later = ("before", "after", "dropped", "in_span", "open_until")
        fresh = [name for name in account["summary"] if any(part in name for part in later)]
        for name in fresh:
            del account["summary"][name]
        file.write_text(json.dumps(account))
        report = drain(outs)[1].report
        assert report.rewards_dropped_share == 0.0
        assert told_of(report.joins[0]) == ["1 of 1 rewards came before their ranking or too late"]
        file.unlink()
        report = drain(outs)[1].report
        assert told_of(report.joins[0]) == [
            "what joining its rewards left out is not known: join.json is lost or damaged"
        ]

    def test_files_without_rewards(self, tmp_path: Path) -> None:
        joined(tmp_path, [], row(0))
        (account,) = drain(tmp_path / "out")[1].report.joins
        assert told_of(account) == ["there were no rewards in the files that were joined"]

    def test_a_moment_that_has_not_come(self, tmp_path: Path) -> None:
        """Nothing is read or written: rewards that nobody has yet would become 0."""
        soon = datetime.now(UTC) + timedelta(minutes=5)
        for as_of in (soon, soon.isoformat(), "2999-01-01"):
            with pytest.raises(ValueError, match=r"^as_of: .* is beyond the clock, which says 20"):
                join("no log", "no rewards", tmp_path / "out", window="1h", as_of=as_of,
                     kind="positives")  # fmt: skip
        assert list(tmp_path.iterdir()) == []
        found, _ = joined(tmp_path, [reward("r0", 100)], row(0), as_of=datetime.now(UTC))
        assert found == {"r0": [0, 1, 0]}

    def test_times_that_no_calendar_has(self, tmp_path: Path) -> None:
        """Of rankings: far from everything. Of rewards: refused."""
        rows = [row(0), row(1, ts=2**62), row(2, ts=-(2**62))]
        rewards = [reward(f"r{i}", 100) for i in range(3)]
        log = write_log(tmp_path / "log", *rows)
        path = write_rewards(tmp_path / "r.csv", *rewards)
        summary = join(log, path, tmp_path / "out", window="24h", as_of=LATER, kind="positives")
        assert [b.rewards.tolist() for b in LogReader(tmp_path / "out")] == [[[0, 1, 0], [0, 0, 0]]]
        assert (summary.rows_open, summary.open_until) == (1, None)
        assert (summary.rewards_before, summary.rewards_after) == (1, 1)  # r1's and r2's
        for unit, value in (("us", 2**62), ("us", -(2**62)), ("ms", 2**60)):
            times = pa.array([value], pa.timestamp(unit))
            spoiled = pa.table({"request_id": ["r0"], "item_id": [100], "reward": [1.0]})
            pq.write_table(spoiled.append_column("ts", times), tmp_path / "r.parquet")
            with pytest.raises(ValueError, match=r"r\.parquet: "):
                join(
                    tmp_path / "log", tmp_path / "r.parquet", tmp_path / "never",
                    window="24h", as_of=LATER, kind="positives",
                )  # fmt: skip


class TestDataSets:
    def test_filters_and_other_columns_come_along(self, tmp_path: Path) -> None:
        items = catalog()
        with LogWriter(tmp_path / "log", inline_ids=2) as log:
            for seed in range(6):
                exclude = [100 + seed, 1, 2]
                bias = np.full(30, seed % 2, np.float32)
                ranking = items.rank(
                    [1, 0, 0, 0], 3, policy=fr.Uniform(), seed=seed, exclude=exclude, bias=bias
                )
                # The last one's window is open: its filter is not needed.
                ts = NOON if seed < 5 else NOON + 1000 * HOUR
                log.append(ranking, k=3, request_id=f"r{seed}", exclude=exclude, bias=bias, ts=ts)
            extended = table([row(9, rewards=None, reward_kind=None)])
            log.append_table(extended.append_column("position", pa.array([3])))
        path = write_rewards(tmp_path / "r.csv", reward("r9", 100))
        summary = join(
            tmp_path / "log", path, tmp_path / "out", window="1h", as_of=LATER, kind="positives"
        )
        assert summary.rows_written == 6
        reader = LogReader(tmp_path / "out")
        batches = list(reader)
        assert reader.report.set_aside == {}
        for batch in batches:
            for i, name in enumerate(batch.table["request_id"].to_pylist()):
                excluded, bias_of = batch.exclude(i), batch.bias(i)
                if name == "r9":
                    assert excluded is None
                else:
                    assert excluded is not None
                    assert bias_of is not None
                    assert excluded.tolist() == [1, 2, 100 + int(name[1:])]
                    assert set(bias_of.tolist()) == {int(name[1:]) % 2}
        assert len(list((tmp_path / "out" / "filters").glob("*.parquet"))) == 5
        assert len(list((tmp_path / "out" / "filters").glob("*.npy"))) == 2
        positions = [
            pq.read_table(file)["position"].to_pylist()
            for file in (tmp_path / "out").glob("*.parquet")
            if "position" in pq.read_schema(file).names
        ]
        assert positions == [[3]]

    def test_what_the_join_left_out_is_not_forgotten(self, tmp_path: Path) -> None:
        """A log with 1 % malformed rows must not come out of a join as a clean one."""
        rows = [row(i) for i in range(100) if i not in (40, 41)]
        rows[7]["log_propensity"] = 3.0
        _, summary = joined(tmp_path, [reward("r0", 100)], *rows)
        assert (summary.rows_read, summary.rows_set_aside, summary.rows_written) == (98, 1, 97)
        reader = LogReader([tmp_path / "out"])
        assert sum(map(len, reader)) == 97
        report = reader.report
        assert report.malformed_share == pytest.approx(1 / 98)
        assert report.rows_lost == {}
        assert report.total_rows_lost == 2
        (account,) = report.joins
        assert account["kind"] == "positives"
        assert account["window_seconds"] == 86_400
        assert account["as_of"] == LATER.isoformat()
        assert account["summary"] == summary.to_dict()
        assert account["source"]["set_aside"] == {"sum of log-propensities": 1}
        json.dumps(report.to_dict())
        # Without its account, the log still reads, and says that it was joined.
        (tmp_path / "out" / "join.json").unlink()
        reader = LogReader(tmp_path / "out")
        assert sum(map(len, reader)) == 97
        assert list(reader.report.joins[0]) == ["id"]

    def test_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = write_log(tmp_path / "log", *(row(i) for i in range(10)))
        path = write_rewards(tmp_path / "r.csv", reward("r0", 100))
        options: dict[str, Any] = {"window": "1h", "as_of": LATER, "kind": "positives"}

        def fail(*_: object, **__: object) -> None:
            raise OSError("no space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(pq.ParquetWriter, "write_table", fail)
            with pytest.raises(OSError, match="no space left"):
                join(log, path, tmp_path / "out", **options)
        assert sorted(f.name for f in tmp_path.iterdir()) == ["log", "r.csv"]
        (tmp_path / "out").mkdir()  # an empty directory may be there
        join(log, path, tmp_path / "out", **options)
        assert sorted(f.name for f in tmp_path.iterdir()) == ["log", "out", "r.csv"]
        with pytest.raises(ValueError, match=r"output: .*out already exists"):
            join(log, path, tmp_path / "out", **options)
        with pytest.raises(ValueError, match=r"output: .*r.csv already exists"):
            join(log, path, path, **options)

    @pytest.mark.parametrize("name", [".gitkeep", ".DS_Store", "lost+found", ".git/HEAD"])
    def test_a_directory_without_data_is_free(self, tmp_path: Path, name: str) -> None:
        """What it holds stays, and is not read."""
        log = write_log(tmp_path / "log", *(row(i) for i in range(10)))
        path = write_rewards(tmp_path / "r.csv", reward("r0", 100))
        out = tmp_path / "out"
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("kept")
        join(log, path, out, window="1h", as_of=LATER, kind="positives")
        assert (out / name).read_text() == "kept"
        assert {f.name for f in out.iterdir()} == {
            name.split("/")[0], "join.json", "part-000000.parquet",
        }  # fmt: skip
        assert sum(map(len, LogReader(out))) == 10
        assert sorted(f.name for f in tmp_path.iterdir()) == ["log", "out", "r.csv"]

    def test_a_link_to_a_free_directory_stays_one(self, tmp_path: Path) -> None:
        log = write_log(tmp_path / "log", row(0))
        path = write_rewards(tmp_path / "r.csv", reward("r0", 100))
        (tmp_path / "disk" / "out").mkdir(parents=True)
        (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
        join(log, path, tmp_path / "out", window="1h", as_of=LATER, kind="positives")
        assert (tmp_path / "out").is_symlink()
        assert sum(map(len, LogReader(tmp_path / "disk" / "out"))) == 1

    def test_what_was_written_meanwhile_is_not_replaced(self, tmp_path: Path) -> None:
        log = write_log(tmp_path / "log", row(0))
        path = write_rewards(tmp_path / "r.csv", reward("r0", 100))
        out = tmp_path / "out"
        out.mkdir()

        def another(_: float) -> None:
            (out / "part-000000.parquet").write_text("another's")

        with pytest.raises(FileExistsError, match=r"out is taken"):
            join(log, path, out, window="1h", as_of=LATER, kind="positives", advance=another)
        assert {f.name: f.read_text() for f in out.iterdir()} == {
            "part-000000.parquet": "another's"
        }
        assert sorted(f.name for f in tmp_path.iterdir()) == ["log", "out", "r.csv"]

    def test_a_mount_point_is_refused_before_the_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It cannot be replaced."""
        (tmp_path / "out" / "lost+found").mkdir(parents=True)
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
        with pytest.raises(ValueError, match=r"output: .*out is a mount point"):
            join("no log", "no rewards", tmp_path / "out", window="1h", as_of=LATER,
                 kind="positives")  # fmt: skip

    def test_a_log_with_rewards_is_refused(self, tmp_path: Path) -> None:
        rewards = [reward("r0", 100)]
        joined(tmp_path, rewards, row(0), row(1))
        with pytest.raises(
            ValueError, match=r"out/part-000000.parquet: row 0: already has rewards"
        ):
            join(
                tmp_path / "out", tmp_path / "rewards.jsonl", tmp_path / "again",
                window="24h", as_of=LATER, kind="positives",
            )  # fmt: skip
        assert not (tmp_path / "again").exists()

    def test_nothing_closed_is_an_empty_log(self, tmp_path: Path) -> None:
        found, summary = joined(tmp_path, [reward("r0", 100)], row(0), as_of=START)
        assert found == {}
        assert (summary.rows_open, summary.rows_written) == (1, 0)

    def test_no_rewards(self, tmp_path: Path) -> None:
        log = write_log(tmp_path / "log", row(0))
        for form in ("csv", "jsonl"):
            path = write_rewards(tmp_path / f"r.{form}")
            summary = join(log, path, tmp_path / form, window="1h", as_of=LATER, kind="positives")
            assert summary.rewards_read == 0
            assert drain(tmp_path / form)[0][0]["rewards"] == [0, 0, 0]

    def test_an_empty_log(self, tmp_path: Path) -> None:
        log = write_log(tmp_path / "log")
        path = write_rewards(tmp_path / "r.csv", reward("r0", 100))
        summary = join(log, path, tmp_path / "out", window="1h", as_of=LATER, kind="positives")
        assert (summary.rows_read, summary.rewards_unlogged) == (0, 1)
        assert drain(tmp_path / "out")[0] == []

    def test_several_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        module = sys.modules["fastrank.eventlog.join"]  # the package's `join` is the function
        monkeypatch.setattr(module, "_FILE_ROWS", 20)
        monkeypatch.setattr(module, "_ROW_GROUP_ROWS", 10)
        log = tmp_path / "log"
        for part in range(10):
            write_log(log / str(part), *(row(10 * part + i) for i in range(10)))
        folder = tmp_path / "rewards"
        write_rewards(folder / "a.csv", reward("r5", 100))
        write_rewards(folder / "b" / "c.jsonl", reward("r77", 100))
        (folder / "notes.txt").write_text("not rewards")
        shares: list[float] = []
        summary = join(
            log, folder, tmp_path / "out", window="1h", as_of=LATER, kind="positives",
            advance=shares.append,
        )  # fmt: skip
        assert summary.rows_with_reward == 2
        assert len(list((tmp_path / "out").glob("*.parquet"))) == 5
        rows, reader = drain(tmp_path / "out")
        assert [one["request_id"] for one in rows] == [f"r{i}" for i in range(100)]
        assert len(reader.report.joins) == 1
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("message", "options"),
        [
            ("window: expected a length such as 30m, 24h or 7d, got 'day'", {"window": "day"}),
            ("window: expected a length", {"window": 24}),
            ("window: must be longer than 0", {"window": "0h"}),
            ("window: must be longer than 0", {"window": timedelta(hours=-1)}),
            ("window: too long", {"window": "999999999999d"}),
            ("skew: expected a length such as 30m, 24h or 7d, got 'much'", {"skew": "much"}),
            ("skew: must not be negative", {"skew": timedelta(seconds=-1)}),
            ("skew: must not be longer than the window, '24h'; got '1441m'", {"skew": "1441m"}),
            ("skew: expected a length", {"skew": "-30s"}),
            ("skew: expected a length", {"skew": float("nan")}),
            ("skew: expected a length", {"skew": 30}),
            ("skew: too long", {"skew": "999999999999d"}),
            ("as_of: expected a time such as", {"as_of": "tomorrow"}),
            ("as_of: expected a datetime", {"as_of": 5}),
            ("as_of: out of range in UTC, got 9999", {"as_of": "9999-12-31T23:00:00-02:00"}),
            ("kind: expected one of positives, complete; got 'clicks'", {"kind": "clicks"}),
            ("repeats: expected one of max, sum, first; got 'last'", {"repeats": "last"}),
        ],
    )
    def test_options(self, message: str, options: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            joined(tmp_path, [reward("r0", 100)], row(0), **options)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("message", "change"),
        [
            ("row 1: reward: must not be negative where rewards are positives", {"reward": -0.5}),
            ("row 1: reward: must be finite, got 'inf'", {"reward": "inf"}),
            ("row 1: reward: must be finite, got '1e309'", {"reward": "1e309"}),
            ("row 1: reward: expected a number, got 'yes'", {"reward": "yes"}),
            ("row 1: reward: is missing", {"reward": None}),
            ("row 1: item_id: expected an integer, got 'a'", {"item_id": "a"}),
            ("row 1: item_id: expected an integer, got '1.5'", {"item_id": "1.5"}),
            ("row 1: item_id: is missing", {"item_id": None}),
            ("row 1: request_id: is missing", {"request_id": None}),
            ("row 1: ts: is missing", {"ts": None}),
            ("row 1: ts: expected ISO 8601, got 'noon'", {"ts": "noon"}),
            ("row 1: position: places count from 1, got '0'", {"position": 0}),
            ("row 1: position: expected an integer, got 'top'", {"position": "top"}),
        ],
    )
    @pytest.mark.parametrize("form", ["csv", "jsonl"])
    def test_rewards_that_cannot_be(
        self, message: str, change: dict[str, Any], form: str, tmp_path: Path
    ) -> None:
        log = write_log(tmp_path / "log", row(0))
        bad = {**reward("r0", 100), **change}
        path = write_rewards(tmp_path / f"r.{form}", reward("r0", 0), bad)
        with pytest.raises(ValueError, match=f"r.{form}: {message}"):
            join(log, path, tmp_path / "out", window="1h", as_of=LATER, kind="positives")
        assert not (tmp_path / "out").exists()

    def test_parquet_of_wrong_types(self, tmp_path: Path) -> None:
        log = write_log(tmp_path / "log", row(0))
        good = pa.Table.from_pylist([reward("r0", 100)])
        for name, values, message in [
            ("item_id", pa.array(["100"]), "item_id: the log has int64 ids, got string"),
            ("item_id", pa.array([100.0]), "item_id: expected int64 ids, got double"),
            ("ts", pa.array([5]), "ts: expected timestamps or ISO 8601 text, got int64"),
            ("request_id", pa.array([5]), "request_id: expected text, got int64"),
            ("reward", pa.array([math.nan]), "row 0: reward: must be finite, got nan"),
        ]:
            spoiled = good.set_column(good.schema.get_field_index(name), name, values)
            pq.write_table(spoiled, tmp_path / "r.parquet")
            with pytest.raises(ValueError, match=f"r.parquet: {message}"):
                join(
                    log, tmp_path / "r.parquet", tmp_path / "out",
                    window="1h", as_of=LATER, kind="positives",
                )  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("r.csv", "a,ts\n1,2\n", "no column named request_id, item_id, reward; found a, ts"),
            ("r.csv", "request_id,item_id,reward,ts\nr0,1\n", "r.csv"),
            ("r.csv", "", "no column named request_id, item_id, reward, ts; found none"),
            ("r.csv", "request_id;item_id;reward;ts\n", "reward;ts; commas separate columns"),
            (
                "r.csv",
                "request_id, item_id\n",
                "no column named item_id, reward, ts; found .*, ' item_id'",
            ),
            ("r.json", '[{"request_id": "r"}]', "row 0: expected an object .*, got an array$"),
            ("r.json", '[\n{"request_id": "r"}\n]', "row 0: not JSON in one line"),
            ("r.jsonl", "{\n", "row 0: not JSON"),
            ("r.jsonl", "[1]\n", "row 0: expected an object"),
            ("r.jsonl", '{"request_id": ["r"]}\n', r"row 0: request_id: got \['r'\]"),
            ("r.parquet", "PAR1", "r.parquet"),
            ("r.txt", "", "expected .parquet, .pq, .csv, .jsonl, .ndjson, .json; got .txt"),
        ],
    )
    def test_files_that_are_none(
        self, name: str, content: str, message: str, tmp_path: Path
    ) -> None:
        log = write_log(tmp_path / "log", row(0))
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            join(
                log, tmp_path / name, tmp_path / "out",
                window="1h", as_of=LATER, kind="positives",
            )  # fmt: skip
        with pytest.raises(ValueError, match="no such file"):
            join(
                log, tmp_path / "nowhere.csv", tmp_path / "out",
                window="1h", as_of=LATER, kind="positives",
            )  # fmt: skip

    @pytest.mark.parametrize(
        "text",
        ["2026-01-01T13:00:00Z", "2026-01-01 13:00:00", "2026-01-01T18:30:00+05:30",
         "2026-01-01T13:00:00.000000+00:00", "2026-01-01T13:00Z"],
    )  # fmt: skip
    def test_times_are_read_as_they_mean(self, text: str, tmp_path: Path) -> None:
        log = write_log(tmp_path / "log", row(0))
        other = {**reward("r0", 0), "ts": "2026-01-01T13:00:00+00:00"}
        path = write_rewards(tmp_path / "r.csv", {**reward("r0", 100), "ts": text}, other)
        join(log, path, tmp_path / "out", window="1h", as_of=LATER, kind="positives")
        assert drain(tmp_path / "out")[0][0]["rewards"] == [1, 1, 0]


def test_rows_without_a_time_have_no_window(tmp_path: Path) -> None:
    """A table that named no time: every reward would be too late, and every ranking earn 0."""
    log = write_log(tmp_path / "log", row(1, request_id="a"), row(2, ts=0))
    rewards = write_rewards(tmp_path / "r.csv", reward("a", 1))
    with pytest.raises(ValueError, match=r"a\.parquet: row 1: ts: 1970-01-01, .* \(`time`\)"):
        join(log, rewards, tmp_path / "out", window="1h", as_of=LATER, kind="positives")
    assert not (tmp_path / "out").exists()


def test_lengths_and_moments() -> None:
    assert parse_window("90s") == timedelta(seconds=90)
    assert parse_window("1.5h") == timedelta(minutes=90)
    assert parse_window(" 2w ") == timedelta(days=14)
    assert parse_time("t", "2026-01-01T12:00:00+02:00") == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert parse_time("t", datetime(2026, 1, 1)) == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("name", ["r.PARQUET", "r.parq", "r.parquet.gzip", "r.CSV", "r.ndjson"])
def test_rewards_by_their_other_names(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = write_log(tmp_path / "log", row(0))
    usual = write_rewards(
        tmp_path / f"r{'.parquet' if 'parq' in name.lower() else Path(name).suffix.lower()}",
        reward("r0", 0),
    )
    (tmp_path / "rewards").mkdir()
    usual.rename(tmp_path / "rewards" / name)
    options: dict[str, Any] = {"window": "24h", "as_of": LATER, "kind": "positives"}
    assert join(log, tmp_path / "rewards", tmp_path / "out", **options).rewards_used == 1
    assert not caplog.records
    (tmp_path / "rewards" / "more.csv.gz").write_bytes(b"data")
    join(log, tmp_path / "rewards", tmp_path / "again", **options)
    assert f"{tmp_path / 'rewards'}: 'more.csv.gz': not read: by their names" in caplog.text


def test_rewards_that_are_damaged_are_named(tmp_path: Path) -> None:
    options: dict[str, Any] = {"window": "24h", "as_of": LATER, "kind": "positives"}
    log = write_log(tmp_path / "log", row(0))
    path = write_rewards(tmp_path / "r.parquet", *[reward("r0", i) for i in range(9)])
    content = path.read_bytes()
    said = []
    for at in range(4, len(content), max(1, len(content) // 30)):
        path.write_bytes(content[:at] + bytes(8) + content[at + 8 :])
        try:
            join(log, path, tmp_path / f"out-{at}", **options)
        except ValueError as error:
            said.append(str(error))
            assert not (tmp_path / f"out-{at}").exists()
    assert len(said) > 9
    assert all(text.startswith(f"{path}: ") and "\n" not in text for text in said)
    twice = pa.table(
        [["r0"], ["r0"], [0], [1.0], [START]],
        names=["request_id", "request_id", "item_id", "reward", "ts"],
    )
    pq.write_table(twice, path)
    with pytest.raises(ValueError, match=r"r\.parquet: 2 columns are called request_id"):
        join(log, path, tmp_path / "out", **options)
    (tmp_path / "r.jsonl").write_text('{"request_id": "\\ud800", "item_id": 1}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl: "):
        join(log, tmp_path / "r.jsonl", tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array([True]), "item_id: expected int64 ids, got bool"),
        (pa.array([1], pa.timestamp("us")), "item_id: expected int64 ids, got timestamp"),
        (pa.array([1.0]), "item_id: expected int64 ids, got double"),
        (pa.array(["1"]).dictionary_encode(), "item_id: the log has int64 ids, got string"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_item_ids_of_rewards_that_are_none_are_named(
    ids: Any, message: str, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log", row(0))
    columns = {"request_id": ["r0"], "item_id": ids, "reward": [1.0], "ts": [START]}
    pq.write_table(pa.table(columns), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=rf"r\.parquet: {message}"):
        join(
            log, tmp_path / "r.parquet", tmp_path / "out",
            window="24h", as_of=LATER, kind="positives",
        )  # fmt: skip


JOIN_UNTIL_KILLED = """
import sys, time
from fastrank.eventlog import join
def advance(share):
    print("writing", flush=True)
    time.sleep(600)
log, rewards, out, as_of = sys.argv[1:]
join(log, rewards, out, window="24h", as_of=as_of, kind="positives", advance=advance)
"""


def test_what_killed_joins_left_goes_first_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    options: dict[str, Any] = {"window": "24h", "as_of": LATER, "kind": "positives"}
    log = write_log(tmp_path / "log", row(0))
    rewards = write_rewards(tmp_path / "r.csv", reward("r0", 0))
    out = tmp_path / "out"
    given = [str(path) for path in (log, rewards, out)]
    command = [sys.executable, "-c", JOIN_UNTIL_KILLED, *given, LATER.isoformat()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == b"writing\n"
        (left,) = tmp_path.glob(".out.*.tmp")
        join(log, rewards, out, **options)
        assert left.exists()
        living.kill()
    (tmp_path / ".out.mine.tmp").mkdir()
    shutil.rmtree(out)
    seen: list[bool] = []
    join(log, rewards, out, advance=lambda _: seen.append(left.exists()), **options)
    assert not any(seen)
    assert {path.name for path in tmp_path.iterdir()} == {"log", "r.csv", "out", ".out.mine.tmp"}
