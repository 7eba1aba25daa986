"""What is appended comes back; what a dying process, a full disk or a fork can lose is bounded."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from logs import NOON, catalog, drain, row, segments, table
from patience import PATIENCE

import fastrank as fr
from fastrank.atomic import sync
from fastrank.eventlog import LogReader, LogWriter, filter_id, schema
from fastrank.eventlog import segments as segments_module
from fastrank.eventlog import writer as writer_module
from fastrank.eventlog.schema import UNREAD
from fastrank.eventlog.segments import Segment
from fastrank.inputs import new_request_id
from fastrank.ranking import Ranking

POLICY = fr.PlackettLuce(0.5)
QUERY = [1.0, -0.5, 0.25, 2.0]


def says_nothing(ranking: Ranking) -> Ranking:
    """As one that was made by hand: of what it was asked for `append` knows what it is given."""
    return dataclasses.replace(ranking, k=None)


@pytest.fixture(scope="module")
def numbers() -> fr.Catalog:
    return catalog()


@pytest.fixture(scope="module")
def texts() -> fr.Catalog:
    return catalog(text=True)


@pytest.fixture
def ranking(numbers: fr.Catalog) -> Ranking:
    return numbers.rank(QUERY, 5, policy=POLICY, seed=3)


class TestRoundTrip:
    def test_every_field(self, numbers: fr.Catalog, tmp_path: Path) -> None:
        seed = 2**64 - 1
        bias = np.linspace(0, 1, 30, dtype=np.float32)
        long = list(range(500, 600))
        ranking = numbers.rank(QUERY, 3, policy=POLICY, seed=seed, exclude=[101, 102], bias=bias)
        with LogWriter(tmp_path) as log:
            request_id = log.append(
                ranking,
                k=3,
                request_id="é",
                request_id_source="header",
                traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                user_id="ü",
                query=QUERY,
                model_version="m1",
                exclude=[101, 102],
                allow=long,
                bias=bias,
                seed_source="caller",
                is_fallback=True,
                displayed=2,
                latency_us=12.5,
                candidate_set_id="s",
                n_candidates=4,
                retrieval={"name": "faiss", "params": {"b": 1, "a": 2}},
                user_temperature=2.0,
                rewards=[0.5, None, np.nan],
                reward_kind="complete",
                reward_ts=datetime(2026, 1, 1, 12, tzinfo=UTC),
                ts=NOON + 1,
            )
        assert request_id == "é"
        (logged,), reader = drain(tmp_path)
        when = datetime(2026, 1, 1, 12, tzinfo=UTC)
        assert logged == {
            **dict.fromkeys((*UNREAD, "n_probes", "tail_log_weight", "is_candidate")),
            "schema_version": 2,
            "request_id": "é",
            "request_id_source": "header",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ts": when + timedelta(microseconds=1),
            "writer_id": log.writer_id,
            "writer_seq": 0,
            "user_id": "ü",
            "policy_name": "stochastic_gumbel_softmax_trick",
            "law": "plackett_luce",
            "law_params": [{"name": "temperature", "value": 0.5}],
            "user_temperature": 2.0,
            "sampler": "gumbel",
            "rng_version": fr.RNG_VERSION,
            "seed": seed,
            "seed_source": "caller",
            "model_version": "m1",
            "catalog_version": numbers.version,
            "query": QUERY,
            "exclude": [101, 102],
            "allow": None,
            "filter_id": {"exclude": None, "allow": filter_id(long)},
            "bias_id": logged["bias_id"],
            "n_eligible": 28,
            "candidate_set_id": "s",
            "n_candidates": 4,
            "retrieval": {"name": "faiss", "version": None, "params": '{"a": 2, "b": 1}'},
            "is_fallback": True,
            "made_by": "pass",
            "n_scored": 28,
            "k": 3,
            "item_kind": "int64",
            "item_ids": ranking.item_ids.tolist(),
            "scores": ranking.scores.tolist(),
            "log_propensities": ranking.log_propensities.tolist(),
            "log_propensity": ranking.log_propensity,
            "log_norm": ranking.log_norm,
            "propensity_kind": "exact",
            "log_norm_error": 0.0,
            "displayed": 2,
            "latency_us": 12.5,
            "rewards": [0.5, None, None],
            "reward_kind": "complete",
            "reward_ts": when,
        }  # fmt: skip
        (batch,) = reader
        allowed, logged_bias = batch.allow(0), batch.bias(0)
        assert allowed is not None
        assert logged_bias is not None
        assert allowed.tolist() == long
        np.testing.assert_array_equal(logged_bias, bias)
        assert reader.strata[0].params == (("temperature", 0.25),)

    def test_files_have_the_schema_exactly(self, ranking: Ranking, tmp_path: Path) -> None:
        log = LogWriter(tmp_path)
        log.append(ranking, k=5)
        log.flush()
        (growing,) = segments(tmp_path, ".arrow")
        with growing.open("rb") as file:
            assert pa.ipc.open_stream(file).schema.equals(schema("int64"), check_metadata=True)
        assert sum(map(len, LogReader(tmp_path))) == 1  # while it grows
        log.close()
        (sealed,) = segments(tmp_path, ".parquet")
        assert pq.read_schema(sealed).equals(schema("int64"))
        assert pq.read_schema(sealed).metadata == schema("int64").metadata
        assert segments(tmp_path, ".arrow") == []

    @pytest.mark.parametrize(
        "policy",
        [
            fr.PlackettLuce(0.3),
            fr.PlackettLuce(2.0, sampler="cached"),
            fr.EpsilonGreedy(0.2),
            fr.Uniform(),
            fr.Deterministic(),
        ],
    )
    def test_logged_propensities_can_be_recomputed(
        self, policy: fr.Policy, texts: fr.Catalog, tmp_path: Path
    ) -> None:
        """From the row alone: nothing that the law depends on is missing."""
        rng = np.random.default_rng(1)
        with LogWriter(tmp_path, inline_ids=3) as log:
            for seed in range(40):
                query = rng.standard_normal(4)
                chosen = rng.permutation(30)[: rng.integers(0, 12)]
                exclude = [f"item {i}" for i in chosen] if seed % 3 else None
                allow = [f"item {i}" for i in range(20)] if seed % 2 else None
                bias = rng.standard_normal(30).astype(np.float32) if seed % 5 == 0 else None
                filters: dict[str, Any] = {"exclude": exclude, "allow": allow, "bias": bias}
                ranking = texts.rank(query, 6, policy=policy, seed=seed, **filters)
                log.append(ranking, k=6, query=query, **filters)
        reader = LogReader(tmp_path)
        rows = 0
        for batch in reader:
            for i in range(len(batch)):
                stratum = reader.strata[batch.stratum[i]]
                logged = batch.query(i)
                assert logged is not None
                m = batch.lengths[i]
                again = texts.log_propensities(
                    logged,
                    batch.item_ids[i, :m],
                    policy=fr.policy(stratum.policy_name, **dict(stratum.params)),
                    exclude=batch.exclude(i),
                    allow=batch.allow(i),
                    bias=batch.bias(i),
                )
                np.testing.assert_allclose(again, batch.log_propensities[i, :m], atol=1e-9)
                rows += 1
        assert rows == 40
        assert reader.report.set_aside == {}

    def test_batches(self, texts: fr.Catalog, tmp_path: Path) -> None:
        queries = np.random.default_rng(2).standard_normal((4, 4))
        exclude = [None, ["item 1"], [f"item {i}" for i in range(28)], []]
        batch = texts.rank_batch(queries, 5, policy=[POLICY, fr.Uniform()] * 2, exclude=exclude)
        with LogWriter(tmp_path) as log:
            ids = log.append_batch(
                batch, k=5, user_ids=np.arange(4), queries=queries, exclude=exclude, latency_us=3.0
            )
        rows, _ = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ids
        assert [r["user_id"] for r in rows] == ["0", "1", "2", "3"]
        assert [len(r["item_ids"]) for r in rows] == batch.counts.tolist() == [5, 5, 2, 5]
        assert [r["exclude"] for r in rows] == exclude
        assert [r["log_norm"] is None for r in rows] == [False, True] * 2
        with pytest.raises(ValueError, match="user_ids: expected 4 entries, got 1"):
            log.append_batch(batch, k=5, user_ids=["x"])

    def test_the_writer_keeps_what_was_appended(self, numbers: fr.Catalog, tmp_path: Path) -> None:
        """Not the caller's arrays, which may change before the flush."""
        ranking = says_nothing(numbers.rank(QUERY, 5, policy=POLICY, seed=1))
        items = ranking.item_ids.tolist()
        query, exclude = np.array(QUERY), np.arange(1000)
        bias = np.ones(30, np.float32)
        with LogWriter(tmp_path, flush_seconds=60) as log:
            log.append(ranking, k=5, query=query, exclude=exclude, bias=bias)
            for array in (query, exclude, bias, ranking.item_ids, ranking.log_propensities):
                array.flags.writeable = True
                array[:] = 7
        (batch,) = LogReader(tmp_path)
        assert batch.item_ids.tolist() == [items]
        logged_query, logged_exclude, logged_bias = batch.query(0), batch.exclude(0), batch.bias(0)
        assert logged_query is not None
        assert logged_exclude is not None
        assert logged_bias is not None
        assert logged_query.tolist() == QUERY
        assert logged_exclude.tolist() == list(range(1000))
        assert (logged_bias == 1.0).all()

    def test_filters_are_stored_once(self, ranking: Ranking, tmp_path: Path) -> None:
        with LogWriter(tmp_path, inline_ids=4) as log:
            for _ in range(20):
                log.append(ranking, k=5, exclude=[5, 4, 3, 2, 1])
                log.append(ranking, k=5, allow=[1, 2, 3, 4, 5, 5])  # the same set
                log.append(ranking, k=5, exclude=[1, 2, 3, 4])
        (file,) = (tmp_path / "filters").iterdir()
        assert file.name == f"{filter_id([1, 2, 3, 4, 5])}.parquet"
        with LogWriter(tmp_path, inline_ids=4) as log:  # and by the next writer, too
            log.append(ranking, k=5, exclude=[1, 2, 3, 4, 5])
        assert len(list((tmp_path / "filters").iterdir())) == 1
        rows, reader = drain(tmp_path)
        assert reader.report.set_aside == {}
        assert sum(r["filter_id"] is not None for r in rows) == 41

    def test_request_ids_are_version_4_uuids(self) -> None:
        import uuid

        ids = {new_request_id() for _ in range(2000)}
        assert len(ids) == 2000
        for text in ids:
            one = uuid.UUID(text)
            assert str(one) == text
            assert one.version == 4
            assert one.variant == uuid.RFC_4122

    def test_tables(self, ranking: Ranking, tmp_path: Path) -> None:
        given = table([row(i) for i in range(25)]).append_column(
            "position", pa.array(np.arange(25))
        )
        with LogWriter(tmp_path, flush_rows=10) as log:
            log.append(ranking, k=5, request_id="before")
            assert log.append_table(given) == 25
            assert log.rows_written == 26
            log.append(ranking, k=5, request_id="after")
            with pytest.raises(ValueError, match="table: no column named item_ids"):
                log.append_table(pa.table({"a": [1]}))
            with pytest.raises(ValueError, match="table: k: expected int64, got string"):
                log.append_table(pa.table({"item_ids": [[1]], "k": ["many"]}))
            with pytest.raises(ValueError, match="this log has int64 ids, got str"):
                log.append_table(table([row(0, "str")], "str"))
            with pytest.raises(ValueError, match="expected a pyarrow Table"):
                log.append_table([1])
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["before", *(f"r{i}" for i in range(25)), "after"]
        assert [r["writer_seq"] for r in rows] == list(range(27))
        assert reader.report.rows_lost == {}
        positions = [
            pq.read_table(path)["position"].to_pylist()
            for path in segments(tmp_path, ".parquet")
            if "position" in pq.read_schema(path).names
        ]
        assert positions == [list(range(25))]


BAD: list[tuple[str, dict[str, Any]]] = [
    ("k: must be at least 1", {"k": 0}),
    ("k: the ranking has 5 places, got k = 4", {"k": 4}),
    ("k: expected an integer", {"k": 5.0}),
    ("k: must fit int64, got 9", {"k": 2**63}),  # or the row would be lost when it is written
    ("n_candidates: must fit int64, got 1", {"n_candidates": 2**70}),
    ("request_id: expected a str, got 7", {"request_id": 7}),
    ("request_id: must not be empty", {"request_id": ""}),
    ("request_id: not text that UTF-8 can hold", {"request_id": "\ud800"}),
    ("user_id: expected a str", {"user_id": 1.5}),
    ("user_id: expected a str", {"user_id": True}),
    ("user_id: not text that UTF-8 can hold", {"user_id": "\udfff"}),
    ("query: index 1: must be finite", {"query": [1.0, math.nan]}),
    (r"query: expected shape \(d,\)", {"query": [[1.0]]}),
    ("query: expected real numbers", {"query": ["x"]}),
    ("model_version: expected a str", {"model_version": 3}),
    ("exclude: the item ids are int64, got 'a'", {"exclude": ["a"]}),
    ("allow: row 0: expected int64 or str ids", {"allow": [None, 1]}),
    ("exclude: expected an array of ids", {"exclude": 5}),
    (r"bias: expected shape \(n,\)", {"bias": [[1.0]]}),
    ("bias: index 0: must be finite", {"bias": [math.inf]}),
    ("seed_source: expected one of server, caller, derived; got 'me'", {"seed_source": "me"}),
    (
        "request_id_source: expected one of server, gateway, header, body; got 'me'",
        {"request_id": "r", "request_id_source": "me"},
    ),
    ("request_id_source: 'body' needs a request_id", {"request_id_source": "body"}),
    ("traceparent: expected a str, got 1", {"traceparent": 1}),
    ("is_fallback: expected a bool, got 1", {"is_fallback": 1}),
    ("displayed: the ranking has 5 places, got 6", {"displayed": 6}),
    ("displayed: must be at least 0", {"displayed": -1}),
    ("latency_us: must be finite", {"latency_us": math.inf}),
    ("latency_us: expected a real number", {"latency_us": "fast"}),
    ("candidate_set_id: expected a str", {"candidate_set_id": 1}),
    ("n_candidates: must be at least 0", {"n_candidates": -1}),
    ("retrieval: expected a mapping", {"retrieval": {"nprobe": 3}}),
    ("retrieval: params", {"retrieval": {"params": {1j: 2}}}),
    ("user_temperature: must be finite and above 0", {"user_temperature": 0.0}),
    ("rewards: expected 5, one for each item", {"rewards": [1.0]}),
    ("rewards: expected 5, one for each item", {"rewards": "hello"}),
    ("rewards: place 2: expected a number or None", {"rewards": [0, 0, "x", 0, 0]}),
    ("rewards: place 4: must be finite, got inf", {"rewards": [0, 0, 0, 0, math.inf]}),
    ("rewards: place 1: must be finite, got 1000", {"rewards": [0, 10**400, 0, 0, 0]}),
    ("rewards: place 1: must be finite, got an in", {"rewards": [0, 10**5000, 0, 0, 0]}),
    ("reward_kind: expected a str", {"reward_kind": 1}),
    ("ts: says no time zone", {"ts": datetime(2026, 1, 1)}),
    ("ts: expected a datetime", {"ts": "2026-01-01"}),
    ("ts: out of range", {"ts": 2**63}),
    ("reward_ts: expected a datetime", {"reward_ts": 1.5}),
]


class Sku(str, enum.Enum):  # noqa: UP042  # a StrEnum is its value as text, too
    ONE = "i1"


class Labelled:
    """As a pandas column that was sorted: what stands at [0] is not what comes first."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        array = np.empty(len(self.values), object)
        array[:] = self.values
        return array

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, label: int) -> Any:
        return self.values[::-1][label]


class TestIds:
    """One rule for ids, docs/reference/ids.md; `test_ids.py` has the table."""

    def test_heirs_of_str_and_int_give_their_value(self, texts: fr.Catalog, tmp_path: Path) -> None:
        ranking = texts.rank(QUERY, 2, policy=POLICY)
        with LogWriter(tmp_path) as log:
            returned = log.append(ranking, k=2, request_id=Sku.ONE, user_id=Sku.ONE, query=QUERY)
            number = log.append(ranking, k=2, user_id=signal.SIGINT, query=QUERY)
        assert type(returned) is str
        rows, _ = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["i1", number]
        assert [r["user_id"] for r in rows] == ["i1", "2"]

    @pytest.mark.parametrize("inline_ids", [64, 10_000])
    def test_a_long_id_in_a_filter_costs_what_it_holds(
        self, inline_ids: int, texts: fr.Catalog, tmp_path: Path
    ) -> None:
        """As an array of fixed width it took 800 MB, when it was logged and when it was read."""
        exclude = [*(f"no item {i}" for i in range(2_000)), "x" * 100_000]
        ranking = texts.rank(QUERY, 2, policy=POLICY, exclude=exclude, seed=3)
        for folder in (tmp_path / "first", tmp_path / "second"):  # the first loads what is needed
            tracemalloc.start()
            with LogWriter(folder, inline_ids=inline_ids) as log:
                log.append(ranking, k=2, query=QUERY, exclude=exclude)
            (batch,) = LogReader(folder)
            found = batch.exclude(0)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert found is not None
        assert sorted(found.tolist()) == sorted(exclude)
        assert peak < 16 << 20
        again = texts.log_propensities(QUERY, ranking.item_ids, policy=POLICY, exclude=found)
        np.testing.assert_allclose(again, ranking.log_propensities, atol=1e-5)

    @pytest.mark.parametrize("inline_ids", [0, 64])
    def test_what_the_caller_does_to_a_filter_later_does_not_matter(
        self, inline_ids: int, texts: fr.Catalog, tmp_path: Path
    ) -> None:
        filters: list[Any] = [["item 1", "item 2"], np.array(["item 1", "item 2"])]
        with LogWriter(tmp_path, inline_ids=inline_ids, flush_seconds=60.0) as log:
            for given in filters:
                ranking = texts.rank(QUERY, 2, policy=POLICY, exclude=given)
                log.append(ranking, k=2, query=QUERY, exclude=given)
                given[0] = "item 9"
        (batch,) = LogReader(tmp_path)
        for i in range(2):
            found = batch.exclude(i)
            assert found is not None
            assert found.tolist() == ["item 1", "item 2"]

    def test_columns_are_taken_in_their_order(self, numbers: fr.Catalog, tmp_path: Path) -> None:
        """And not by labels, which would log one user's ranking for another."""
        users: Any = Labelled("ann", "bob")
        filters: Any = Labelled([101], [102])
        batch = numbers.rank_batch([QUERY] * 2, 2, policy=POLICY, exclude=filters)
        rewards: Any = Labelled(0.0, 1.0)
        with LogWriter(tmp_path) as log:
            log.append_batch(
                batch, k=2, user_ids=users, exclude=filters, queries=[QUERY] * 2, rewards=rewards
            )
        rows, _ = drain(tmp_path)
        assert [r["user_id"] for r in rows] == ["ann", "bob"]
        assert [r["exclude"] for r in rows] == [[101], [102]]
        assert [r["rewards"] for r in rows] == [[0.0, 1.0]] * 2

    @pytest.mark.parametrize("users", [{"ann", "bob"}, {0: "ann", 1: "bob"}, iter(["ann", "bob"])])
    def test_users_without_an_order_are_refused(
        self, users: Any, numbers: fr.Catalog, tmp_path: Path
    ) -> None:
        batch = numbers.rank_batch([QUERY] * 2, 2, policy=POLICY)
        with LogWriter(tmp_path) as log:
            with pytest.raises(ValueError, match="user_ids: expected 2 entries"):
                log.append_batch(batch, k=2, user_ids=users, queries=[QUERY] * 2)
            with pytest.raises(ValueError, match="rewards: expected 2, one for each item"):
                log.append(batch[0], k=2, query=QUERY, rewards=users)


class TestArguments:
    @pytest.mark.parametrize("batch", [5, None, "ab", {"a": 1}])
    def test_what_is_no_batch_is_refused(self, batch: Any, tmp_path: Path) -> None:
        with LogWriter(tmp_path) as log, pytest.raises(ValueError, match="batch: expected a"):
            log.append_batch(batch, k=1)

    @pytest.mark.parametrize(("message", "changes"), BAD)
    def test_bad_ones_are_refused_and_leave_no_trace(
        self, message: str, changes: dict[str, Any], ranking: Ranking, tmp_path: Path
    ) -> None:
        with LogWriter(tmp_path) as log:
            with pytest.raises(ValueError, match=message):
                log.append(ranking, **{"k": 5} | changes)
            log.append(ranking, k=5)
        rows, reader = drain(tmp_path)
        assert [r["writer_seq"] for r in rows] == [0]
        assert reader.report.rows_lost == {}

    @pytest.mark.parametrize(
        "changes",
        [
            {"item_ids": np.array([1.0] * 5)},
            {"item_ids": np.array([1])},
            {"item_ids": [1, 2, 3, 4, 5]},
            {"scores": np.zeros(5)},
            {"log_propensities": np.zeros(5, np.float32)},
            {"log_propensities": np.zeros((5, 1))},
            {"propensity_kind": "rough"},
            {"item_ids": np.array(["a", "b", "c", "d", "\ud800"])},
        ],
    )
    def test_what_is_no_ranking(
        self, changes: dict[str, Any], ranking: Ranking, tmp_path: Path
    ) -> None:
        with (
            LogWriter(tmp_path) as log,
            pytest.raises(ValueError, match=r"^ranking: "),
        ):
            log.append(dataclasses.replace(ranking, **changes), k=5)
        with LogWriter(tmp_path) as log, pytest.raises(ValueError, match="expected a Ranking"):
            log.append({"item_ids": [1]}, k=5)  # type: ignore[arg-type]

    def test_times_in_all_forms(self, ranking: Ranking, tmp_path: Path) -> None:
        east = timezone(timedelta(hours=5, minutes=30))
        forms: list[Any] = [
            NOON,
            np.int64(NOON),
            datetime(2026, 1, 1, 12, tzinfo=UTC),
            datetime(2026, 1, 1, 17, 30, tzinfo=east),
            np.datetime64("2026-01-01T12:00:00"),
            np.datetime64("2026-01-01T12:00:00.000000999", "ns"),
        ]
        before = datetime.now(UTC)
        with LogWriter(tmp_path) as log:
            for form in forms:
                log.append(ranking, k=5, ts=form)
            log.append(ranking, k=5, ts=datetime(1969, 12, 31, 23, 59, 59, 5, tzinfo=UTC))
            log.append(ranking, k=5)
        times = [r["ts"] for r in drain(tmp_path)[0]]
        assert set(times[:-2]) == {datetime(2026, 1, 1, 12, tzinfo=UTC)}
        assert times[-2] == datetime(1969, 12, 31, 23, 59, 59, 5, tzinfo=UTC)
        assert before - timedelta(seconds=1) < times[-1] < datetime.now(UTC) + timedelta(seconds=1)

    @pytest.mark.parametrize(
        ("message", "options"),
        [
            ("kind: expected one of int64, str; got 'int'", {"kind": "int"}),
            ("flush_rows: must be at least 1", {"flush_rows": 0}),
            ("flush_seconds: must be finite and above 0", {"flush_seconds": 0.0}),
            ("segment_rows: must be at least 1", {"segment_rows": 0}),
            ("inline_ids: must be at least 0", {"inline_ids": -1}),
            ("max_buffered_rows: must be at least 1", {"max_buffered_rows": 0}),
        ],
    )
    def test_options(self, message: str, options: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            LogWriter(tmp_path, **options)

    def test_directories(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_text("")
        with pytest.raises(ValueError, match=r"directory: .*file is a file"):
            LogWriter(file)
        LogWriter(tmp_path / "a" / "b").close()
        assert list((tmp_path / "a" / "b").iterdir()) == []

    @pytest.mark.parametrize("sealed", [True, False])
    def test_one_kind_a_log(
        self, sealed: bool, numbers: fr.Catalog, texts: fr.Catalog, tmp_path: Path
    ) -> None:
        number, text = (c.rank(QUERY, 2, policy=POLICY) for c in (numbers, texts))
        first = LogWriter(tmp_path)
        first.append(number, k=2)
        with pytest.raises(ValueError, match="this log has int64 ids, got str"):
            first.append(text, k=2)
        first.flush()
        if sealed:
            first.close()
        with pytest.raises(ValueError, match=r"kind: the log in .* has int64 item ids, got 'str'"):
            LogWriter(tmp_path, kind="str")
        with LogWriter(tmp_path) as second:
            assert second.kind == "int64"
            with pytest.raises(ValueError, match="this log has int64 ids, got str"):
                second.append(text, k=2)
        first.close()

    def test_a_closed_writer_says_so(self, ranking: Ranking, tmp_path: Path) -> None:
        log = LogWriter(tmp_path)
        log.close()
        log.close()
        with pytest.raises(ValueError, match=r"the log writer of .* is closed"):
            log.append(ranking, k=5)
        assert log.flush()


class TestFlushing:
    def wait_for(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def test_by_rows(self, ranking: Ranking, tmp_path: Path) -> None:
        with LogWriter(tmp_path, flush_rows=10, flush_seconds=3600) as log:
            for _ in range(9):
                log.append(ranking, k=5)
            time.sleep(0.05)
            assert log.rows_written == 0
            log.append(ranking, k=5)
            self.wait_for(lambda: log.rows_written == 10)

    def test_by_time(self, ranking: Ranking, tmp_path: Path) -> None:
        with LogWriter(tmp_path, flush_rows=10_000, flush_seconds=0.05) as log:
            for rows in (1, 2, 3):
                log.append(ranking, k=5)
                self.wait_for(lambda rows=rows: log.rows_written == rows)
            assert len(drain(tmp_path)[0]) == 3

    def test_rotation_seals_and_the_sequence_goes_on(
        self, ranking: Ranking, tmp_path: Path
    ) -> None:
        with LogWriter(tmp_path, flush_rows=10, segment_rows=30) as log:
            for _ in range(100):
                log.append(ranking, k=5)
                if log._seq % 10 == 0:
                    log.flush()
        files = segments(tmp_path, ".parquet")
        assert [pq.read_metadata(file).num_rows for file in files] == [30, 30, 30, 10]
        assert segments(tmp_path, ".arrow") == []
        rows, reader = drain(tmp_path)
        assert [r["writer_seq"] for r in rows] == list(range(100))
        assert reader.report.rows_lost == {}

    def test_many_threads(self, numbers: fr.Catalog, tmp_path: Path) -> None:
        def work(name: int) -> None:
            for i in range(300):
                ranking = numbers.rank(QUERY, 5, policy=POLICY)
                log.append(ranking, k=5, request_id=f"{name}-{i}", exclude=[name] * (i % 90))

        with LogWriter(tmp_path, flush_rows=50, segment_rows=400, flush_seconds=0.01) as log:
            threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        rows, reader = drain(tmp_path)
        assert log.rows_written == 2400
        assert {r["request_id"] for r in rows} == {
            f"{name}-{i}" for name in range(8) for i in range(300)
        }
        assert reader.report.set_aside == {}
        assert reader.report.rows_lost == {}
        for name in range(8):  # each thread's rows are in its order
            own = [r for r in rows if r["request_id"].startswith(f"{name}-")]
            assert [r["writer_seq"] for r in own] == sorted(r["writer_seq"] for r in own)

    def test_several_writers_share_a_directory(self, ranking: Ranking, tmp_path: Path) -> None:
        logs = [LogWriter(tmp_path, flush_rows=7, segment_rows=20) for _ in range(4)]
        for i in range(200):
            logs[i % 4].append(ranking, k=5, request_id=f"r{i}")
        # A writer that starts now must leave the segments of the living alone.
        late = LogWriter(tmp_path)
        late.close()
        for log in logs:
            log.close()
        rows, reader = drain(tmp_path)
        assert len(rows) == 200
        assert len({r["writer_id"] for r in rows}) == 4
        assert reader.report.rows_lost == {}
        assert reader.report.duplicates == 0

    def test_a_row_that_cannot_be_converted_takes_no_other_along(
        self, ranking: Ranking, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken = dataclasses.replace(ranking, seed=-1)
        with LogWriter(tmp_path) as log:
            log.append(ranking, k=5, request_id="a")
            log.append(broken, k=5, request_id="b", exclude=list(range(900)))
            log.append(ranking, k=5, request_id="c", exclude=list(range(900)))
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["a", "c"]
        assert reader.report.rows_lost == {log.writer_id: 1}
        assert (log.rows_written, log.rows_dropped) == (2, 1)
        assert "request 'b': not logged" in caplog.text

    def test_biases_that_wait_are_bounded(
        self, ranking: Ranking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer_module, "_MAX_WAITING_BYTES", 4 * 30 * 10)
        ranking = says_nothing(ranking)
        with LogWriter(tmp_path, flush_seconds=60) as log:
            for i in range(15):
                log.append(ranking, k=5, bias=np.full(30, i, np.float32))
            assert log.rows_dropped == 5
            assert log.flush()
            log.append(ranking, k=5, bias=np.full(30, 99, np.float32))
        assert log.rows_dropped == 5
        assert len(list((tmp_path / "filters").iterdir())) == 11
        assert drain(tmp_path)[1].report.set_aside == {}


class TestFullDisk:
    """The file size limit of the kernel stands in for it: it, too, cuts a write short."""

    @pytest.fixture
    def disk(self) -> Any:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)

        def limit(size: int | None) -> None:
            soft = old[0] if size is None else size
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, old[1]))

        yield limit
        limit(None)

    def test_rows_wait_then_are_dropped_and_counted_then_go_on(
        self, ranking: Ranking, tmp_path: Path, disk: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        log = LogWriter(tmp_path, flush_rows=10, flush_seconds=3600, max_buffered_rows=50)
        for i in range(20):
            log.append(ranking, k=5, request_id=f"good {i}")
        assert log.flush()
        size = segments(tmp_path, ".arrow")[0].stat().st_size
        disk(size + 100)  # in the middle of a message
        for i in range(80):
            log.append(ranking, k=5, request_id=f"late {i}")
            if i % 10 == 9:
                assert not log.flush()
        assert segments(tmp_path, ".arrow")[0].stat().st_size == size  # nothing half written
        assert (log.rows_written, log.rows_dropped) == (20, 30)
        disk(None)
        assert log.flush()
        assert (log.rows_written, log.rows_dropped) == (70, 30)
        for i in range(10):
            log.append(ranking, k=5, request_id=f"again {i}")
        log.close()
        assert log.rows_dropped == 30
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == [
            *(f"good {i}" for i in range(20)),
            *(f"late {i}" for i in range(50)),
            *(f"again {i}" for i in range(10)),
        ]
        assert reader.report.rows_lost == {log.writer_id: 30}
        assert reader.report.files_cut == {}
        warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 2  # once when it began, once when it ended
        assert "the disk refuses" in warnings[0]
        assert "written again" in warnings[1]

    def test_from_the_very_start(self, ranking: Ranking, tmp_path: Path, disk: Any) -> None:
        disk(10)
        log = LogWriter(tmp_path)
        log.append(ranking, k=5)
        assert not log.flush()
        assert list(tmp_path.iterdir()) == []
        disk(None)
        log.close()
        assert len(drain(tmp_path)[0]) == 1

    def test_no_row_comes_before_its_filter(
        self, ranking: Ranking, tmp_path: Path, disk: Any
    ) -> None:
        log = LogWriter(tmp_path, flush_seconds=3600)
        log.append(ranking, k=5)
        assert log.flush()
        disk(200)  # less than any filter file
        log.append(ranking, k=5, exclude=list(range(5000)))
        assert not log.flush()
        assert len(drain(tmp_path)[0]) == 1
        assert list((tmp_path / "filters").iterdir()) == []
        disk(None)
        log.close()
        rows, reader = drain(tmp_path)
        assert len(rows) == 2
        assert reader.report.set_aside == {}

    def test_closing_on_a_full_disk_counts_what_is_lost(
        self, ranking: Ranking, tmp_path: Path, disk: Any
    ) -> None:
        log = LogWriter(tmp_path, flush_seconds=3600)
        log.append(ranking, k=5)
        log.flush()
        disk(1)
        for _ in range(7):
            log.append(ranking, k=5)
        log.close()
        assert (log.rows_written, log.rows_dropped) == (1, 7)
        disk(None)
        # Sealing failed, too: the segment stays as it was, and the next start seals it.
        assert len(segments(tmp_path, ".arrow")) == 1
        assert len(drain(tmp_path)[0]) == 1
        LogWriter(tmp_path).close()
        assert segments(tmp_path, ".arrow") == []
        assert len(drain(tmp_path)[0]) == 1

    def test_the_flusher_goes_on_by_itself(
        self, ranking: Ranking, tmp_path: Path, disk: Any
    ) -> None:
        log = LogWriter(tmp_path, flush_rows=5, flush_seconds=0.02)
        disk(1)
        for _ in range(10):
            log.append(ranking, k=5)
        time.sleep(0.2)
        assert log.rows_written == 0
        disk(None)
        TestFlushing().wait_for(lambda: log.rows_written == 10)
        log.close()

    def test_a_tail_that_cannot_be_taken_back_ends_the_segment(
        self, ranking: Ranking, tmp_path: Path, disk: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = LogWriter(tmp_path, flush_seconds=3600)
        log.append(ranking, k=5)
        assert log.flush()
        size = segments(tmp_path, ".arrow")[0].stat().st_size

        def refuse(*_: object) -> None:
            raise OSError("not even that")

        with monkeypatch.context() as patched:
            patched.setattr(os, "ftruncate", refuse)
            disk(size + 100)
            log.append(ranking, k=5)
            assert not log.flush()
            disk(None)
        log.append(ranking, k=5)
        log.close()
        rows, reader = drain(tmp_path)
        assert [r["writer_seq"] for r in rows] == [0, 1, 2]
        assert reader.report.rows_lost == {}

    def test_a_directory_that_went_away(self, ranking: Ranking, tmp_path: Path) -> None:
        log = LogWriter(tmp_path / "log", flush_seconds=3600, segment_rows=1)
        log.append(ranking, k=5)
        log.flush()
        for sealer in log._sealers:
            sealer.join()
        for file in (tmp_path / "log").iterdir():
            file.unlink()
        (tmp_path / "log").rmdir()
        log.append(ranking, k=5)
        log.close()
        assert log.rows_dropped == 0
        assert len(drain(tmp_path / "log")[0]) == 1


class TestRemoved:
    """Others remove, move or cut what grows: rows that are written are rows in a file."""

    def log(self, directory: Path, **options: Any) -> LogWriter:
        return LogWriter(directory, flush_seconds=3600, inline_ids=2, **options)

    def counted(self, log: LogWriter) -> tuple[int, int]:
        """Rows written and dropped, once the threads in the background have looked."""
        for sealer in log._sealers:
            sealer.join()
        return log.rows_written, log.rows_dropped

    def remove(self, directory: Path) -> None:
        shutil.rmtree(directory)

    def remove_segment(self, directory: Path) -> None:
        (file,) = segments(directory, ".arrow")
        file.unlink()

    def replace(self, directory: Path) -> None:
        shutil.rmtree(directory)
        directory.mkdir()

    def empty(self, directory: Path) -> None:
        (file,) = segments(directory, ".arrow")
        os.truncate(file, 0)

    @pytest.mark.parametrize("what", ["remove", "remove_segment", "replace", "empty"])
    @pytest.mark.parametrize("late", [0, 1])
    def test_what_was_in_it_is_counted_as_lost_and_no_more(
        self,
        ranking: Ranking,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        what: str,
        late: int,
    ) -> None:
        directory = tmp_path / "log"
        log = self.log(directory)
        for i in range(3):
            log.append(ranking, request_id=f"gone {i}")
        assert log.flush()
        assert self.counted(log) == (3, 0)
        getattr(self, what)(directory)
        for i in range(5 * late):
            log.append(ranking, request_id=f"late {i}")
        log.flush()
        if late:
            assert self.counted(log) == (5, 3)
        log.close()
        assert (log.rows_written, log.rows_dropped) == (5 * late, 3)
        if late:
            rows, _ = drain(directory)
            assert [r["request_id"] for r in rows] == [f"late {i}" for i in range(5)]
        (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "3 of its rows are lost" in said

    @pytest.mark.parametrize("again", [False, True])
    def test_what_is_moved_keeps_its_rows(
        self, ranking: Ranking, tmp_path: Path, caplog: pytest.LogCaptureFixture, again: bool
    ) -> None:
        log = self.log(tmp_path / "log")
        log.append(ranking, request_id="a")
        log.flush()
        (tmp_path / "log").rename(tmp_path / "old")
        if again:
            (tmp_path / "log").mkdir()
        log.append(ranking, request_id="b")
        log.flush()
        assert self.counted(log) == (2, 0)
        assert "was moved" in caplog.text
        LogWriter(tmp_path / "old").close()  # nobody holds it any more
        assert segments(tmp_path / "old", ".arrow") == []
        log.close()
        for name, expected in (("old", "a"), ("log", "b")):
            rows, _ = drain(tmp_path / name)
            assert [r["request_id"] for r in rows] == [expected]

    def test_a_link_that_leads_elsewhere_now(self, ranking: Ranking, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        (tmp_path / "log").symlink_to("one")
        log = self.log(tmp_path / "log")
        for name in ("two", "one", "two"):
            log.append(ranking)
            log.flush()
            (tmp_path / "log").unlink()
            (tmp_path / "log").symlink_to(name)
        log.close()
        assert (log.rows_written, log.rows_dropped) == (3, 0)
        assert [len(drain(tmp_path / name)[0]) for name in ("one", "two")] == [2, 1]

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_row_that_is_being_written_is_not_lost(
        self, ranking: Ranking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        log = self.log(tmp_path)
        log.append(ranking)
        log.flush()
        append = Segment._append
        removals = [1]

        def remove_once(segment: Segment, message: Any) -> None:
            if when == "after":
                append(segment, message)
            if removals:
                removals.pop()
                segment.path.unlink()
            if when == "before":
                append(segment, message)

        monkeypatch.setattr(Segment, "_append", remove_once)
        log.append(ranking, request_id="late")
        log.flush()
        assert self.counted(log) == (1, 1)
        log.close()
        assert [r["request_id"] for r in drain(tmp_path)[0]] == ["late"]

    @pytest.mark.parametrize("moment", ["waiting", "read", "sealed"])
    def test_a_segment_that_is_removed_while_it_is_sealed(
        self, ranking: Ranking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
    ) -> None:
        """Its rows are lost before its Parquet file is whole, and not after."""
        open_stream = segments_module.open_stream

        # Logs of other tests may be sealed meanwhile.
        def remove_before(file: BinaryIO) -> Any:
            if tmp_path in Path(file.name).parents:
                self.remove_segment(tmp_path)
            return open_stream(file)

        def remove_after(path: Path) -> None:
            if tmp_path in path.parents:
                self.remove_segment(tmp_path)
            sync(path)

        log = self.log(tmp_path)
        log.append(ranking)
        log.flush()
        if moment == "waiting":
            self.remove_segment(tmp_path)
        elif moment == "read":
            monkeypatch.setattr(segments_module, "open_stream", remove_before)
        else:
            monkeypatch.setattr("fastrank.eventlog.segments.sync", remove_after)
        log.close()
        kept = len(segments(tmp_path, ".parquet"))
        assert kept == (moment != "waiting")
        assert (log.rows_written, log.rows_dropped) == (kept, 1 - kept)

    def test_a_directory_that_is_removed_while_it_is_sealed(
        self, ranking: Ranking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def remove_before(*arguments: Any) -> Any:
            self.remove(tmp_path / "log")
            return sync(*arguments)

        monkeypatch.setattr("fastrank.eventlog.segments.sync", remove_before)
        log = self.log(tmp_path / "log")
        log.append(ranking)
        log.close()
        assert (log.rows_written, log.rows_dropped) == (0, 1)

    def test_a_sealed_file_is_its_owners(self, ranking: Ranking, tmp_path: Path) -> None:
        log = self.log(tmp_path, segment_rows=1)
        log.append(ranking)
        log.flush()
        assert self.counted(log) == (1, 0)
        (file,) = segments(tmp_path, ".parquet")
        file.unlink()
        log.append(ranking)
        log.close()
        assert (log.rows_written, log.rows_dropped) == (2, 0)

    def test_rows_wait_where_no_directory_can_be_made(
        self, ranking: Ranking, tmp_path: Path
    ) -> None:
        log = self.log(tmp_path / "log")
        log.append(ranking)
        log.flush()
        self.remove(tmp_path / "log")
        (tmp_path / "log").write_text("a file")
        for exclude in (None, [1, 2, 3]):
            log.append(ranking, exclude=None if exclude is None else list(range(500, 600)))
            assert not log.flush()
        assert self.counted(log) == (0, 1)
        (tmp_path / "log").unlink()
        assert log.flush()
        log.close()
        assert (log.rows_written, log.rows_dropped) == (2, 1)
        assert len(drain(tmp_path / "log")[0]) == 2

    def test_a_filter_that_was_removed_is_written_again(
        self, numbers: fr.Catalog, tmp_path: Path
    ) -> None:
        bias = np.linspace(0, 1, 30, dtype=np.float32)
        made = numbers.rank(
            QUERY, 5, policy=POLICY, exclude=[100, 101, 102], allow=numbers.item_ids, bias=bias
        )
        log = self.log(tmp_path / "log")
        for each in ("filters", "", "filters"):
            log.append(made)
            log.flush()
            self.remove(tmp_path / "log" / each)
            log.append(made, request_id=each or "all")
            log.append(made)
            log.flush()
            rows, reader = drain(tmp_path / "log")
            assert (each or "all") in [row["request_id"] for row in rows]
            assert reader.report.set_aside == {}
        log.close()
        assert drain(tmp_path / "log")[1].report.set_aside == {}

    def test_a_filter_is_held_once_however_many_parts_wait_for_it(
        self, ranking: Ranking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And for the last of them, too, which is written when the first one is gone again."""
        log = self.log(tmp_path / "log")
        monkeypatch.setattr(writer_module, "_MAX_WAITING_BYTES", 8 * 100)
        for i in range(3):
            log.append(ranking, request_id=str(i), exclude=list(range(500, 600)))
            log._convert()
        assert log.rows_dropped == 0
        log.append(ranking, exclude=list(range(600, 700)))
        assert log.rows_dropped == 1  # there is no room for another one
        append = Segment.append

        def remove_after(segment: Segment, *arguments: Any) -> bool:
            found = append(segment, *arguments)
            self.remove(tmp_path / "log" / "filters")
            return found

        with monkeypatch.context() as patched:
            patched.setattr(Segment, "append", remove_after)
            log.flush()
        assert not (tmp_path / "log" / "filters").exists()
        assert log._contents_bytes == 0
        log.append(ranking, exclude=list(range(600, 700)))
        log.append(ranking, exclude=list(range(600, 700)))
        log.close()
        assert (log.rows_written, log.rows_dropped) == (5, 1)

    @pytest.mark.parametrize("seed", range(5))
    def test_rows_written_are_rows_in_a_file(
        self, ranking: Ranking, tmp_path: Path, seed: int
    ) -> None:
        random_number = random.Random(seed)
        directory, moved = tmp_path / "log", 0
        log = self.log(directory, segment_rows=7)
        appended = 0
        for _ in range(40):
            for _ in range(random_number.randrange(4)):
                log.append(ranking)
                appended += 1
            log.flush()
            written, dropped = self.counted(log)
            assert written + dropped == appended
            what = random_number.choice(["", "", "one", "move", "cut"])
            growing = segments(directory, ".arrow") if directory.exists() else []
            if what == "move" and directory.exists():
                moved += 1
                directory.rename(tmp_path / f"moved {moved}")
            elif growing and what == "one":
                growing[0].unlink()
            elif growing and what == "cut":
                size = growing[0].stat().st_size
                os.truncate(growing[0], random_number.randrange(size))
                log.append(ranking)  # or it is moved before it was looked at
                appended += 1
                log.flush()
        log.append(ranking)
        log.close()
        assert log.rows_written + log.rows_dropped == appended + 1
        assert log.rows_dropped > 0
        assert moved
        folders = [directory, *(tmp_path / f"moved {i + 1}" for i in range(moved))]
        there = [len(drain(each)[0]) for each in folders if segments(each, "")]
        assert sum(there) == log.rows_written


# Other processes. Each prints what it did, a line at a time; the parent kills it.
PRELUDE = """
import dataclasses, os, sys, time, numpy as np, fastrank as fr
from fastrank.eventlog import LogWriter
rng = np.random.default_rng(int(sys.argv[2]))
catalog = fr.Catalog(np.arange(400), rng.standard_normal((400, 4)))
def rank(seed):
    return catalog.rank([1.0, 0.5, 0.2, 0.1], 5, policy=fr.PlackettLuce(0.5), seed=seed)
"""


def start(directory: Path, code: str, number: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(directory), str(number)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    """What it printed; it and its children are killed if they do not come to an end."""
    try:
        text, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return text.splitlines()


def complete_lines(process: subprocess.Popen[str]) -> list[str]:
    """What a killed process printed, without a line that was cut."""
    assert process.stdout is not None
    text = process.stdout.read()
    process.wait(timeout=PATIENCE)
    process.stdout.close()
    return text.split("\n")[:-1]


class TestKilled:
    # Filters, rotation and flushes all the time, so that a kill hits each of them; each flush is
    # told, as is what was appended before it.
    WORK = """
    log = LogWriter(sys.argv[1], flush_rows=20, flush_seconds=0.002, segment_rows=60, inline_ids=2)
    for i in range(10**6):
        exclude = rng.integers(0, 10**6, 40) if i % 5 == 0 else None
        bias = rng.standard_normal(400) if i % 50 == 0 else None
        made = dataclasses.replace(rank(i), k=None)  # it says nothing of its call
        log.append(made, k=5, request_id=f"{sys.argv[2]}-{i}", exclude=exclude, bias=bias)
        if i % 10 == 9:
            log.flush()
            os.write(1, f"{i + 1}\\n".encode())
    """

    @pytest.mark.parametrize("kills", [4, pytest.param(15, marks=pytest.mark.slow)])
    def test_at_any_moment(self, kills: int, tmp_path: Path) -> None:
        """Whatever was flushed is read, in full and once; the next start seals what is left."""
        rng = random.Random(7)
        flushed: dict[str, int] = {}
        for number in range(kills):
            process = start(tmp_path, self.WORK, number)
            assert process.stdout is not None
            process.stdout.readline()  # it writes by now
            time.sleep(rng.uniform(0.0, 0.12))
            process.send_signal(signal.SIGKILL)
            told = complete_lines(process)
            flushed[str(number)] = int(told[-1]) if told else 10
            if number % 5 == 0:
                self.check(tmp_path, flushed)
        LogWriter(tmp_path).close()
        assert segments(tmp_path, ".arrow") == []
        assert not list(tmp_path.glob(".*.tmp"))
        self.check(tmp_path, flushed)

    def check(self, directory: Path, flushed: dict[str, int]) -> None:
        rows, reader = drain(directory)
        report = reader.report
        assert report.set_aside == {}
        assert report.files_set_aside == {}
        assert report.rows_lost == {}  # what is missing is missing at the end alone
        seen: dict[str, list[int]] = {}
        for one in rows:
            number, i = one["request_id"].split("-")
            seen.setdefault(number, []).append(int(i))
        for number, count in flushed.items():
            assert sorted(seen[number]) == list(range(len(seen[number])))
            assert len(seen[number]) >= count
        for batch in reader:  # every filter is there and right
            for i in range(len(batch)):
                batch.exclude(i)
                batch.bias(i)

    @pytest.mark.slow
    def test_while_sealing(self, tmp_path: Path) -> None:
        """A segment is whole in one of its two files at each moment, and never counted twice."""
        with LogWriter(tmp_path / "source", flush_rows=1000) as log:
            log.append_table(table([row(i) for i in range(20_000)]))
        (sealed,) = segments(tmp_path / "source", ".parquet")
        whole = pq.read_table(sealed)
        code = """
        os.write(1, b"ready\\n")
        log = LogWriter(sys.argv[1])
        log.close()
        os.write(1, b"sealed\\n")
        """
        cut_short = 0
        for number in range(5):
            directory = tmp_path / f"log{number}"
            directory.mkdir()
            with pa.ipc.new_stream(directory / "w-000000.arrow", whole.schema) as stream:
                stream.write_table(whole, max_chunksize=1000)
            process = start(directory, code)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.03 * number)
            process.send_signal(signal.SIGKILL)
            cut_short += "sealed" not in complete_lines(process)
            assert sum(map(len, LogReader(directory))) == 20_000
            LogWriter(directory).close()
            assert [f.name for f in directory.iterdir()] == ["w-000000.parquet"]
            assert sum(map(len, LogReader(directory))) == 20_000
        assert cut_short > 0  # or the test would show nothing

    @pytest.mark.slow
    def test_what_is_lost_is_bounded_by_the_flush_interval(self, tmp_path: Path) -> None:
        code = """
        log = LogWriter(sys.argv[1], flush_rows=10**6, flush_seconds=0.05)
        i = 0
        while True:
            log.append(rank(i), k=5, ts=time.time_ns() // 1000)
            i += 1
            os.write(1, f"{time.time_ns() // 1000}\\n".encode())
            time.sleep(0.001)
        """
        process = start(tmp_path, code)
        assert process.stdout is not None
        first = process.stdout.readline()  # it writes by now
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
        told = [first, *complete_lines(process)]
        rows, _ = drain(tmp_path)
        last = rows[-1]["ts"].timestamp() * 1e6
        assert 0 < len(rows) <= len(told) + 1
        # 50 ms, and generous time for a busy machine to get the thread going.
        assert int(told[-1]) - last < 1_500_000

    @pytest.mark.sampled
    @pytest.mark.parametrize(
        ("ending", "code"), [("pass", 0), ("sys.exit(3)", 3), ("raise KeyError", 1)]
    )
    def test_leaving_without_close_flushes(self, ending: str, code: int, tmp_path: Path) -> None:
        work = f"""
        sys.stderr = open(os.devnull, "w")
        log = LogWriter(sys.argv[1], flush_rows=10**6, flush_seconds=3600, segment_rows=100)
        for i in range(100):
            log.append(rank(i), k=5)
        {ending}
        """
        process = start(tmp_path, work)
        finish(process)
        assert process.returncode == code
        assert len(drain(tmp_path)[0]) == 100
        LogWriter(tmp_path).close()
        assert len(segments(tmp_path, ".parquet")) == 1
        assert segments(tmp_path, ".arrow") == []

    def test_nothing_is_loaded_at_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """pyarrow loads pandas with its first array, which it cannot once the interpreter ends."""
        (tmp_path / "pandas.py").write_text(
            "import threading\n"
            "__version__ = '0.1'\n"
            "if not threading.main_thread().is_alive():\n"
            "    raise RuntimeError('too late')\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # pyarrow's, of a pandas that old
        work = """
        log = LogWriter(sys.argv[1], flush_rows=10**6, flush_seconds=3600)
        log.append(rank(0), k=5)
        """
        process = start(tmp_path / "log", work)
        finish(process)
        assert process.returncode == 0
        assert len(drain(tmp_path / "log")[0]) == 1

    def test_a_running_writers_segment_is_not_sealed_by_another(self, tmp_path: Path) -> None:
        code = """
        log = LogWriter(sys.argv[1])
        log.append(rank(1), k=5)
        log.flush()
        print("up", flush=True)
        sys.stdin.readline()
        """
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(tmp_path), "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        LogWriter(tmp_path).close()
        assert len(segments(tmp_path, ".arrow")) == 1
        assert segments(tmp_path, ".parquet") == []
        process.communicate("\n", timeout=PATIENCE)
        LogWriter(tmp_path).close()
        assert segments(tmp_path, ".arrow") == []
        assert len(drain(tmp_path)[0]) == 1

    def test_segments_without_a_whole_batch_and_files_that_are_none(self, tmp_path: Path) -> None:
        header = schema("str").serialize().to_pybytes()
        (tmp_path / "w-000000.arrow").write_bytes(b"")
        (tmp_path / "w-000001.arrow").write_bytes(header[:100])
        (tmp_path / "w-000002.arrow").write_bytes(header)
        foreign = {"w-000003.arrow": b"somebody's notes", "photo.arrow": b"x"}
        for name, content in foreign.items():
            (tmp_path / name).write_bytes(content)
        LogWriter(tmp_path).close()
        assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == foreign

    def test_hidden_files_are_no_part_of_a_log(
        self, ranking: Ranking, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Such as macOS leaves beside each file, and backups of another log."""
        pq.write_table(schema("str").empty_table(), tmp_path / ".old.parquet")
        (tmp_path / "._w-000000.arrow").write_bytes(b"resource fork")
        with LogWriter(tmp_path) as log:
            assert log.kind is None
            log.append(ranking)
        assert not caplog.records

    def test_old_leftovers_of_killed_writers_go(self, tmp_path: Path) -> None:
        folder = tmp_path / "filters"
        folder.mkdir()
        old, young = (f".w-00000{i}.parquet.{16 * '1'}.tmp" for i in "01")
        for place in (tmp_path, folder):
            for name in (old, young):
                (place / name).write_bytes(b"half")
            os.utime(place / old, (0, 0))
        LogWriter(tmp_path).close()
        assert [f.name for f in folder.iterdir()] == [young]
        assert [f.name for f in tmp_path.glob(".*")] == [young]  # may be sealed just now


def test_each_row_has_the_law_of_its_own_policy(numbers: fr.Catalog, tmp_path: Path) -> None:
    """What the columns say of a policy is kept while one is logged again and again."""
    policies = [fr.PlackettLuce(0.5), fr.EpsilonGreedy(0.25), fr.PlackettLuce(0.5), fr.Uniform()]
    order = [policies[i] for i in (0, 0, 1, 0, 2, 3, 3, 1)]
    with LogWriter(tmp_path) as log:
        for policy in order:
            log.append(numbers.rank(np.ones(numbers.dim), 3, policy=policy))
    rows = pq.read_table(tmp_path).to_pylist()
    assert [row["policy_name"] for row in rows] == [policy.inference_type for policy in order]
    found = [{each["name"]: each["value"] for each in row["law_params"]} for row in rows]
    assert found == [policy.params for policy in order]


def test_the_report_of_a_written_log_is_clean(ranking: Ranking, tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        log.append(ranking, k=5)
    report = drain(tmp_path)[1].report.to_dict()
    assert json.loads(json.dumps(report))["rows_set_aside"] == 0


class TestFork:
    def test_parent_and_child_write_their_own_rows(self, tmp_path: Path) -> None:
        code = """
        log = LogWriter(sys.argv[1], flush_rows=50, flush_seconds=3600)
        for i in range(75):  # some flushed, some not
            log.append(rank(i), k=5, request_id=f"before-{i}", exclude=range(100))
        child = os.fork()
        name = "parent" if child else "child"
        for i in range(30):
            log.append(rank(i), k=5, request_id=f"{name}-{i}", exclude=range(100))
        log.close()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        print(log.rows_written, log.rows_dropped)
        """
        process = start(tmp_path, code)
        assert finish(process) == ["105 0"]
        rows, reader = drain(tmp_path)
        names = [r["request_id"] for r in rows]
        assert sorted(names) == sorted(
            [f"before-{i}" for i in range(75)]
            + [f"{name}-{i}" for name in ("parent", "child") for i in range(30)]
        )
        assert len({r["writer_id"] for r in rows}) == 2
        assert reader.report.rows_lost == {}
        assert reader.report.set_aside == {}

    def test_a_child_does_not_keep_the_dead_parents_segment_locked(self, tmp_path: Path) -> None:
        code = """
        log = LogWriter(sys.argv[1])
        log.append(rank(0), k=5)
        log.flush()
        if os.fork() == 0:
            os.close(1)
            time.sleep(10)
            os._exit(0)
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), 9)
        """
        process = start(tmp_path, code)
        # The child lives on, and has the parent's output closed.
        finish(process)
        LogWriter(tmp_path).close()
        assert segments(tmp_path, ".arrow") == []
        assert len(drain(tmp_path)[0]) == 1

    @pytest.mark.slow
    def test_in_the_middle_of_everything(self, tmp_path: Path) -> None:
        """Locks that another thread held at the fork must not stop the child."""
        code = """
        import threading
        log = LogWriter(sys.argv[1], flush_rows=5, flush_seconds=0.001, segment_rows=20)
        stop = False
        def work(name):
            i = 0
            while not stop:
                log.append(rank(i), k=5, request_id=f"{name}-{i}")
                i += 1
        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for number in range(15):
            time.sleep(0.01)
            child = os.fork()
            if not child:
                for i in range(10):
                    log.append(rank(i), k=5, request_id=f"child{number}-{i}")
                log.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop = True
        for thread in threads:
            thread.join()
        log.close()
        print("done")
        """
        assert finish(start(tmp_path, code)) == ["done"]
        rows, reader = drain(tmp_path)
        children = [r["request_id"] for r in rows if r["request_id"].startswith("child")]
        assert sorted(children) == sorted(f"child{n}-{i}" for n in range(15) for i in range(10))
        assert reader.report.set_aside == {}
        assert reader.report.rows_lost == {}

    @pytest.mark.slow
    def test_a_fork_waits_for_the_flush_that_is_under_way(self, tmp_path: Path) -> None:
        """What the flush holds in Arrow and in imports, a child would never get."""
        code = """
        import threading
        from fastrank.eventlog import writer
        convert = writer.as_batch
        flushing, forked = threading.Event(), threading.Event()
        def slowly(*given):
            flushing.set()
            print("forked in the midst:", forked.wait(0.5))  # it is not to come
            return convert(*given)
        writer.as_batch = slowly
        log = LogWriter(sys.argv[1], flush_rows=1)
        log.append(rank(0), k=5, request_id="parent")
        assert flushing.wait(60)
        child = os.fork()
        if not child:
            writer.as_batch = convert
            log.append(rank(1), k=5, request_id="child")
            log.close()
            os._exit(0)
        forked.set()
        assert os.waitpid(child, 0)[1] == 0
        log.close()
        print(log.rows_written)
        """
        assert finish(start(tmp_path, code)) == ["forked in the midst: False", "1"]
        assert sorted(r["request_id"] for r in drain(tmp_path)[0]) == ["child", "parent"]

    def test_a_fork_waits_for_one_row_group_of_a_segment(self, tmp_path: Path) -> None:
        code = """
        import threading
        from fastrank.eventlog import segments
        segments._ROW_GROUP_ROWS = 10
        options, write = segments.parquet_options, segments._write_parquet
        sealing, happened = threading.Event(), []
        def slowly(columns):  # in the first row group
            sealing.set()
            while not segments.GATE._forks:
                time.sleep(0.001)
            return options(columns)
        def whole(*files):
            rows = write(*files)
            happened.append("sealed")
            return rows
        segments.parquet_options, segments._write_parquet = slowly, whole
        log = LogWriter(sys.argv[1], flush_rows=10, segment_rows=40)
        for i in range(40):
            log.append(rank(i), k=5, request_id=f"parent-{i}")
        assert sealing.wait(60)
        os.register_at_fork(after_in_parent=lambda: happened.append("forked"))
        child = os.fork()
        if not child:
            segments.parquet_options = options
            log.append(rank(0), k=5, request_id="child")
            log.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        log.close()
        print(*happened)
        """
        assert finish(start(tmp_path, code)) == ["forked sealed"]
        assert len(drain(tmp_path)[0]) == 41
        assert segments(tmp_path, ".arrow") == []
