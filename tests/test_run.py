"""Seeds and request ids that follow from a run and the user."""

from __future__ import annotations

import enum
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logs import catalog

import fastrank as fr
from fastrank.eventlog import LogReader, LogWriter

KEY = bytes(range(32))
RUN = fr.Run("night", key=KEY)


class Who(str, enum.Enum):  # noqa: UP042  # an id whose str() is not its value; a StrEnum's is
    ANN = "ann"


def test_they_follow_from_run_and_user_alone() -> None:
    users = [f"u{i}" for i in range(1000)]
    seeds, ids = RUN.seeds(users), RUN.request_ids(users)
    assert seeds.dtype == np.uint64
    assert seeds.max() < 2**53
    assert seeds.max() > 2**52
    assert len({*seeds.tolist()}) == len({*ids}) == 1000
    assert all(uuid.UUID(each).version == 5 for each in ids)
    assert all(uuid.UUID(each).variant == uuid.RFC_4122 for each in ids)
    again = fr.Run("night", key=KEY)
    assert again.seeds(users[::-1]).tolist() == seeds.tolist()[::-1]
    assert again.request_ids(users[500:]) == ids[500:]
    for other in (fr.Run("day", key=KEY), fr.Run("night"), fr.Run("night", key=bytes(32))):
        assert not {*other.seeds(users).tolist()} & {*seeds.tolist()}
        assert not {*other.request_ids(users)} & {*ids}


def test_names_and_users_do_not_run_together() -> None:
    one, other = fr.Run("a", key=KEY), fr.Run("ab", key=KEY)
    assert one.request_ids(["bc"]) != other.request_ids(["c"])


def test_a_user_is_what_the_log_keeps() -> None:
    ids = RUN.request_ids(["7"])
    assert RUN.request_ids([7]) == RUN.request_ids(np.array([7])) == ids
    assert RUN.request_ids([Who.ANN]) == RUN.request_ids(["ann"])
    assert RUN.request_ids(np.array(["ann"])) == RUN.request_ids(["ann"])
    assert RUN.seeds([]).shape == (0,)


def test_the_key_is_not_shown() -> None:
    assert "key" not in repr(RUN)
    assert fr.Run("night").key != fr.Run("night").key


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (["a", None], "user_ids[1]: expected a non-empty str or an int, got None"),
        (["a", ""], "user_ids[1]: expected a non-empty str or an int, got ''"),
        ([True], "user_ids[0]: expected a non-empty str or an int, got True"),
        ([1.5], "user_ids[0]: expected a non-empty str or an int, got 1.5"),
        (["7", 7], "user_ids[1]: '7' repeats user_ids[0]"),
        ({"a"}, "user_ids: "),
        ("ann", "user_ids: "),
        ("a\ud800", "user_ids: "),
        (["a\ud800"], "user_ids[0]: not text that UTF-8 can hold: 'a\\ud800'"),
    ],
)
def test_what_is_no_user_is_named(users: Any, message: str) -> None:
    for call in (RUN.seeds, RUN.request_ids):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(users)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "name: expected a non-empty str, got ''"),
        ({"name": 7}, "name: expected a non-empty str, got 7"),
        ({"name": "a\ud800"}, "name: not text that UTF-8 can hold: 'a\\ud800'"),
        ({"name": "a", "key": b"short"}, "key: expected 32 bytes, got 5 bytes"),
        ({"name": "a", "key": "x" * 32}, "key: expected 32 bytes, got 'xxx"),
    ],
)
def test_what_is_no_run_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fr.Run(**arguments)


def ranked(users: list[str], run: fr.Run) -> fr.RankingBatch:
    queries = np.random.default_rng(0).standard_normal((len(users), 4))
    policy = fr.PlackettLuce(1.0)
    return catalog().rank_batch(queries, k=2, policy=policy, seeds=run.seeds(users))


def test_a_task_that_is_tried_again_writes_the_same_rows(tmp_path: Path) -> None:
    users = [f"u{i}" for i in range(50)]
    for _ in range(2):
        with LogWriter(tmp_path) as log:
            ids = log.append_batch(ranked(users, RUN), user_ids=users, run=RUN)
            assert ids == RUN.request_ids(users)
    reader = LogReader(tmp_path)
    rows = [row for batch in reader for row in batch.table.to_pylist()]
    assert sorted(row["user_id"] for row in rows) == sorted(users)
    assert {row["run"] for row in rows} == {"night"}
    assert reader.report.duplicates == 50
    assert reader.report.malformed_share == 0.0


def test_rankings_of_other_seeds_are_none_of_the_run(tmp_path: Path) -> None:
    name: Any = "night"  # of append_batch it wants a Run, of append its name
    number: Any = 7
    with LogWriter(tmp_path) as log:
        batch = ranked(["a", "b"], RUN)
        with pytest.raises(ValueError, match=r"run: ranking 0 was drawn by the seed"):
            log.append_batch(batch, user_ids=["b", "a"], run=RUN)
        with pytest.raises(
            ValueError, match="user_ids: required, since the request ids of a run follow from them"
        ):
            log.append_batch(batch, run=RUN)
        with pytest.raises(ValueError, match=r"run: expected a fastrank\.Run, got 'night'"):
            log.append_batch(batch, user_ids=["a", "b"], run=name)
        with pytest.raises(ValueError, match="run: expected a str, got 7"):
            log.append(batch[0], run=number)
        with pytest.raises(ValueError, match="user_ids: expected 2 entries, got 3"):
            log.append_batch(batch, user_ids=["a", "b", "c"], run=RUN)
    assert not list(tmp_path.glob("*.parquet"))


def test_request_ids_may_be_others(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        ids = log.append_batch(ranked(["a"], RUN), user_ids=["a"], run=RUN, request_ids=["mine"])
    assert ids == ["mine"]
