"""What the reader gives for right rows, and that no wrong one gets through or goes unnamed."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from logs import HOUR, NOON, drain, read, report_of, row, table

import fastrank as fr
from fastrank.eventlog import LogReader, Stratum, bias_id, filter_id, schema
from fastrank.eventlog.filters import save
from fastrank.eventlog.hashing import text_hash
from fastrank.eventlog.reader import JOIN_KEY
from fastrank.eventlog.schema import VERSION_KEY, IdKind

NAN, INF = math.nan, math.inf


class TestArrays:
    def test_fixed_length_rows(self) -> None:
        (batch,) = read(*(row(i) for i in range(5)))
        assert len(batch) == 5
        assert batch.lengths.tolist() == [3] * 5
        assert batch.item_ids.dtype == np.int64
        assert batch.item_ids.tolist() == [row(i)["item_ids"] for i in range(5)]
        np.testing.assert_array_equal(
            batch.log_propensities, [row(i)["log_propensities"] for i in range(5)]
        )
        assert batch.rewards.dtype == np.float64
        assert batch.rewards.tolist() == [[0.0, 1.0, 0.0]] * 5
        assert batch.observed.all()
        assert batch.k.tolist() == [3] * 5
        assert batch.n_eligible.tolist() == [50] * 5
        assert not batch.caller_seed.any()
        assert not batch.is_fallback.any()
        assert batch.user_ids == [f"u{i % 3}" for i in range(5)]
        assert batch.rows.tolist() == list(range(5))
        assert batch.table.schema.equals(schema("int64"))
        assert batch.table["seed"].to_pylist() == [2**64 - 1 - i for i in range(5)]

    def test_text_ids_and_ragged_lengths(self) -> None:
        short = row(
            1, "str", item_ids=["é"], scores=[1.0], log_propensities=[0.0], log_propensity=0.0,
            rewards=[2.0], n_eligible=1,
        )  # fmt: skip
        empty = row(
            2, "str", item_ids=[], scores=[], log_propensities=[], log_propensity=0.0,
            rewards=[], n_eligible=0,
        )  # fmt: skip
        (batch,) = read(row(0, "str"), short, empty, kind="str")
        assert batch.lengths.tolist() == [3, 1, 0]
        assert batch.item_ids.tolist() == [["i0", "i100", "i7"], ["é", "", ""], ["", "", ""]]
        assert batch.log_propensities[1:].tolist() == [[0.0] * 3] * 2
        assert batch.rewards[1:].tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        assert batch.observed.all()
        (numbers,) = read(row(0), row(1, **{**short, "item_ids": [9]}))
        assert numbers.item_ids.tolist() == [[0, 100, 7], [9, -1, -1]]

    def test_displayed_hides_places_but_not_their_propensity(self) -> None:
        (batch,) = read(row(0, displayed=2), row(1, displayed=0), row(2, displayed=3))
        assert batch.lengths.tolist() == [2, 0, 3]
        assert batch.item_ids[0].tolist() == row(0)["item_ids"]
        assert (batch.log_propensities[0] != 0).tolist() == [True, True, False]
        assert batch.rewards.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
        hidden = row(3, displayed=1, rewards=[1.0, None, None])
        (batch,) = read(hidden)
        assert batch.observed.tolist() == [True]

    def test_unobserved_is_nan_and_not_zero(self) -> None:
        rows = [row(0, rewards=None), row(1, rewards=[None, 1.0, 0.0]), row(2)]
        (batch,) = read(*rows)
        assert np.isnan(batch.rewards[0]).all()
        assert np.isnan(batch.rewards[1]).tolist() == [True, False, False]
        assert batch.observed.tolist() == [False, False, True]
        (batch,) = read(row(0, rewards=None))
        assert np.isnan(batch.rewards).all()
        assert not batch.observed.any()

    def test_what_is_unknown(self) -> None:
        unknown = row(
            0, n_eligible=None, rng_version=None, seed=None, seed_source=None, scores=None,
            log_norm=None, log_norm_error=None, is_fallback=None, policy_params=None,
            model_version=None, catalog_version=None,
        )  # fmt: skip
        reader = LogReader.of_tables([table([unknown])])
        (batch,) = reader
        assert batch.n_eligible.tolist() == [-1]
        assert not batch.caller_seed[0]
        assert not batch.is_fallback[0]
        assert reader.strata == [Stratum("stochastic_gumbel_softmax_trick", (), None, None, False)]

    def test_seed_source_and_fallback(self) -> None:
        (batch,) = read(row(0, seed_source="caller"), row(1, is_fallback=True))
        assert batch.caller_seed.tolist() == [True, False]
        assert batch.is_fallback.tolist() == [False, True]

    def test_hashes_hang_on_ids_alone(self) -> None:
        rows = [row(0), row(1, user_id=None), row(2, user_id=""), row(3)]
        (batch,) = read(*rows)
        assert batch.user_hash.tolist() == [
            text_hash("u0")[0], text_hash("r1")[0], text_hash("r2")[0], text_hash("u0")[0],
        ]  # fmt: skip
        assert [tuple(pair) for pair in batch.request_hash.tolist()] == [
            text_hash(f"r{i}") for i in range(4)
        ]
        alone = [one for r in rows for one in read(r)]
        np.testing.assert_array_equal(batch.uniform, [b.uniform[0] for b in alone])
        assert ((batch.uniform >= 0) & (batch.uniform < 1)).all()

    def test_queries(self) -> None:
        (batch,) = read(row(0), row(1, query=[0.5, 1.5]), row(2, query=[1.0, 2.0, 3.0]))
        assert batch.has_query.tolist() == [False, True, True]
        assert batch.queries is not None
        assert batch.queries.dtype == np.float32
        assert batch.queries.shape == (3, 3)
        assert np.isnan(batch.queries[0]).all()
        assert batch.query(0) is None
        one, two = batch.query(1), batch.query(2)
        assert one is not None
        assert two is not None
        assert one.tolist() == [0.5, 1.5]
        assert two.tolist() == [1.0, 2.0, 3.0]
        (batch,) = read(row(0))
        assert batch.queries is None

    def test_inline_filters(self) -> None:
        (batch,) = read(row(0), row(1, exclude=[5, 3]), row(2, allow=[], exclude=[1]))
        assert batch.exclude(0) is None
        assert batch.allow(0) is None
        excluded, allowed = batch.exclude(1), batch.allow(2)
        assert excluded is not None
        assert allowed is not None
        assert excluded.tolist() == [5, 3]
        assert allowed.tolist() == []
        assert allowed.dtype == np.int64
        (text,) = read(row(0, "str", allow=["a"]), kind="str")
        allowed = text.allow(0)
        assert allowed is not None
        assert allowed.tolist() == ["a"]

    def test_one_long_item_id_costs_what_it_holds(self) -> None:
        """At one width, 6,000 cells beside an id of 20,000 letters take 480 MB, or many batches."""
        rows = [row(i, "str") for i in range(2_000)]
        rows[7] = row(7, "str", item_ids=["x" * 20_000, "a\0", "a"])
        whole = table(rows, "str").combine_chunks()
        tracemalloc.start()
        (batch,) = LogReader.of_tables([whole])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20
        assert batch.item_ids.tolist() == [each["item_ids"] for each in rows]
        items = fr.Catalog(["a", "i100"], [[1.0], [2.0]])
        found = items.log_propensities([1.0], batch.item_ids[7], policy=fr.Uniform())
        assert np.isfinite(found).tolist() == [False, False, True]

    @pytest.mark.parametrize("batch_rows", [1, 3, 7, 100])
    def test_batches_do_not_change_what_is_read(self, batch_rows: int, tmp_path: Path) -> None:
        rows = [row(i, user_id=None if i % 4 == 0 else f"u{i}") for i in range(23)]
        rows[11]["log_propensity"] = 1.0
        rows[12]["request_id"] = "r3"
        pq.write_table(table(rows), tmp_path / "a.parquet", row_group_size=5)
        whole, _ = drain(tmp_path)
        parts, reader = drain(tmp_path, batch_rows=batch_rows)
        assert parts == whole
        assert reader.report.set_aside == {
            "sum of log-propensities": 1, "duplicate request id": 1,
        }  # fmt: skip
        assert len(reader.strata) == 1

    def test_one_very_long_ranking_does_not_widen_all_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fastrank.eventlog.checks._MAX_CELLS", 600)
        long = row(
            50, item_ids=list(range(200)), scores=None, log_propensities=[0.0] * 200,
            log_propensity=0.0, rewards=None, k=200, n_eligible=200,
        )  # fmt: skip
        batches = read(*(row(i) for i in range(50)), long, *(row(i) for i in range(51, 60)))
        assert sum(map(len, batches)) == 60
        assert max(batch.item_ids.size for batch in batches) <= 600

    def test_numbers_past_the_length_of_slices(self) -> None:
        """Arrow slices keep the buffers of the whole: offsets must be respected."""
        whole = table([row(i, rewards=None if i % 2 else [0.0, 1.0, 0.5]) for i in range(20)])
        (batch,) = LogReader.of_tables([whole.slice(7, 6)])
        assert batch.item_ids.tolist() == [row(i)["item_ids"] for i in range(7, 13)]
        assert np.isnan(batch.rewards[:, 0]).tolist() == [True, False] * 3

    def test_values_under_null_lists_are_nobodys(self) -> None:
        """Arrow allows anything under a null list: it must not move other rows' values."""
        rows = table([row(i) for i in range(3)])
        lists = pa.ListArray.from_arrays(
            pa.array([0, 3, 6, 9], pa.int32()),
            pa.array(np.arange(9), pa.float64()),
            mask=pa.array([False, True, False]),
        )
        index = rows.schema.get_field_index("rewards")
        rows = rows.set_column(index, rows.schema.field(index), lists)
        (batch,) = LogReader.of_tables([rows])
        assert batch.rewards[[0, 2]].tolist() == [[0, 1, 2], [6, 7, 8]]
        assert np.isnan(batch.rewards[1]).all()


# What is wrong with a row, and how the report calls it.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("unknown schema version", {"schema_version": 3}),
    ("unknown schema version", {"schema_version": None}),
    ("unknown rng version", {"rng_version": 99}),
    ("no request id", {"request_id": None}),
    ("no request id", {"request_id": ""}),
    ("no time", {"ts": None}),
    ("no policy name", {"policy_name": None}),
    ("policy parameter temperature", {"policy_params": {"temperature": NAN}}),
    ("policy parameter epsilon", {"policy_params": {"epsilon": INF}}),
    ("policy parameter user_temperature", {"policy_params": {"user_temperature": 0.0}}),
    ("unknown propensity kind", {"propensity_kind": "guessed"}),
    ("unknown propensity kind", {"propensity_kind": None}),
    ("log_norm_error", {"log_norm_error": -1.0}),
    ("log_norm_error", {"log_norm_error": NAN}),
    ("log_norm_error", {"propensity_kind": "bounded", "log_norm_error": None}),
    ("unknown seed source", {"seed_source": "dice"}),
    ("no item list", {"item_ids": None}),
    ("list lengths differ", {"log_propensities": None}),
    ("list lengths differ", {"log_propensities": [-1.0, -2.0]}),
    ("list lengths differ", {"rewards": [1.0]}),
    ("list lengths differ", {"rewards": []}),
    ("list lengths differ", {"scores": [1.0, 2.0, 3.0, 4.0]}),
    ("no k", {"k": 0}),
    ("more items than k", {"k": 2}),
    ("displayed", {"displayed": 4}),
    ("displayed", {"displayed": -1}),
    ("more items than eligible", {"n_eligible": 2}),
    ("fewer items than k", {"k": 4}),
    ("fewer items than k", {"k": 10, "n_eligible": 4}),
    ("no log_propensity", {"log_propensity": None}),
    ("null item id", {"item_ids": [1, None, 3]}),
    ("repeated item", {"item_ids": [1, 2, 1]}),
    ("repeated item", {"item_ids": [2, 1, 1]}),
    ("log-propensity not finite", {"log_propensities": [-1.0, -INF, -1.0], "log_propensity": -INF}),
    ("log-propensity not finite", {"log_propensities": [-1.0, NAN, -1.0], "log_propensity": NAN}),
    ("log-propensity not finite", {"log_propensities": [-1.0, None, -1.0], "log_propensity": -2.0}),
    ("log-propensity not finite", {"log_propensities": [INF, -INF, 0.0], "log_propensity": 0.0}),
    ("positive log-propensity", {"log_propensities": [-1.0, 1e-8, -1.0], "log_propensity": -2.0}),
    ("positive log-propensity", {"log_propensities": [0.5, 0.5, 0.5], "log_propensity": 1.5}),
    ("sum of log-propensities", {"log_propensity": row(0)["log_propensity"] + 2e-9}),
    ("sum of log-propensities", {"log_propensity": NAN}),
    ("sum of log-propensities", {"log_propensity": -INF}),
    ("reward not finite", {"rewards": [0.0, INF, 0.0]}),
    ("reward not finite", {"rewards": [0.0, NAN, 0.0]}),
    ("query not finite", {"query": [1.0, NAN]}),
    ("exclude: null id", {"exclude": [1, None]}),
    ("allow: null id", {"allow": [None]}),
    ("filter not at hand", {"filter_id": {"exclude": "0" * 32}}),
    ("filter not at hand", {"filter_id": {"allow": "../../etc/passwd"}}),
    ("filter not at hand", {"bias_id": "0" * 32}),
    ("duplicate request id", {"request_id": "r0"}),  # the last, and the only one that needs two
]


class TestWrongRows:
    @pytest.mark.parametrize(("reason", "changes"), WRONG)
    @pytest.mark.parametrize("place", [1, 4])
    def test_each_is_set_aside_and_named(
        self, reason: str, changes: dict[str, Any], place: int
    ) -> None:
        rows = [row(i) for i in range(6)]
        rows[place] = row(place, **changes)
        reader = LogReader.of_tables([table(rows)])
        (batch,) = reader
        report = reader.report
        assert report.set_aside == {reason: 1}
        assert report.rows_read == 6
        assert report.malformed_share == pytest.approx(1 / 6)
        ((file, at, _),) = report.places[reason]
        assert (file, at) == ("table 0", place)
        # The others are untouched, and in order.
        others = [r for i, r in enumerate(rows) if i != place]
        assert batch.item_ids.tolist() == [r["item_ids"] for r in others]
        assert batch.rows.tolist() == [i for i in range(6) if i != place]
        assert batch.table["request_id"].to_pylist() == [r["request_id"] for r in others]
        for name in ("lengths", "user_hash", "request_hash", "stratum", "k", "observed"):
            assert len(getattr(batch, name)) == 5
        assert json.loads(json.dumps(report.to_dict()))["set_aside"] == {reason: 1}

    @pytest.mark.parametrize("changes", [changes for _, changes in WRONG[:-1]])
    def test_each_alone_leaves_nothing(self, changes: dict[str, Any]) -> None:
        assert report_of(row(0, **changes)).rows_set_aside == 1
        assert read(row(0, **changes)) == []

    def test_all_at_once(self) -> None:
        rows = [row(0)]
        rows += [row(i + 1, **changes) for i, (_, changes) in enumerate(WRONG)]
        reader = LogReader.of_tables([table(rows)])
        (batch,) = reader
        assert len(batch) == 1
        expected: dict[str, int] = {}
        for reason, _ in WRONG:
            expected[reason] = expected.get(reason, 0) + 1
        assert reader.report.set_aside == expected

    @pytest.mark.parametrize(
        "changes",
        [
            {"log_propensities": [-1.0, 1e-10, -1.0], "log_propensity": -2.0},
            {"log_propensity": row(0)["log_propensity"] + 5e-10},
            {"item_ids": [-5, 2**63 - 1, 0]},
            {"k": 10, "n_eligible": None},
            {"k": 10, "n_eligible": -1},
            {"k": 10, "n_eligible": 3},
            {"k": None},
            {"k": None, "n_eligible": None},
            {"n_eligible": 3},
            {"query": []},
            {"propensity_kind": "bounded", "log_norm_error": 1e-3},
            {"rewards": [None, None, None]},
            {"rewards": [-1.0, 0.0, 3e38]},
            {"exclude": []},
        ],
    )
    def test_what_is_right_is_not(self, changes: dict[str, Any]) -> None:
        assert report_of(row(0, **changes)).set_aside == {}

    def test_nothing_is_clipped(self) -> None:
        (batch,) = read(row(0, log_propensities=[1e-10, -1.0, -1.0], log_propensity=-2.0))
        assert batch.log_propensities[0, 0] == 1e-10

    def test_sums_of_huge_log_propensities_may_round(self) -> None:
        """At T = 1e-6 a place has -2e7: one unit in the last place of the sum passes 1e-9."""
        values = [-2e7 / 3, -2e7 / 7, -2e7 / 11]
        total = math.fsum(values)
        near = row(0, log_propensities=values, log_propensity=math.nextafter(total, -INF))
        assert report_of(near).set_aside == {}
        far = row(0, log_propensities=values, log_propensity=total - 1e-6)
        assert report_of(far).set_aside == {"sum of log-propensities": 1}

    @pytest.mark.parametrize("width", [2, 3, 16, 17, 40])
    @pytest.mark.parametrize("kind", ["int64", "str"])
    def test_repeats_at_any_width(self, width: int, kind: IdKind) -> None:
        rng = np.random.default_rng(width)
        rows, repeated = [], []
        for i in range(200):
            length = int(rng.integers(0, width + 1))
            items = rng.permutation(1000)[:length].tolist()
            if length > 1 and i % 3 == 0:
                a, b = rng.choice(length, 2, replace=False)
                items[a] = items[b]
            repeated.append(len(set(items)) < length)
            items = [str(item) for item in items] if kind == "str" else items
            changes = {"item_ids": items, "log_propensities": [0.0] * length, "k": width}
            none = {"log_propensity": 0.0, "rewards": None, "scores": None, "n_eligible": None}
            rows.append(row(i, kind, **changes, **none))
        report = report_of(*rows, kind=kind)
        assert report.set_aside == {"repeated item": sum(repeated)}
        places = [at for _, at, _ in report.places["repeated item"]]
        assert places == np.flatnonzero(repeated)[:5].tolist()

    def test_duplicates_across_batches_and_files(self, tmp_path: Path) -> None:
        pq.write_table(table([row(i) for i in range(10)]), tmp_path / "a.parquet")
        others = [row(i, writer_id="v", rewards=[1.0] * 3) for i in range(5, 15)]
        pq.write_table(table(others), tmp_path / "b.parquet")
        rows, reader = drain(tmp_path, batch_rows=4)
        assert [r["request_id"] for r in rows] == [f"r{i}" for i in range(15)]
        assert reader.report.duplicates == 5
        assert reader.report.equal_duplicates == 0
        assert reader.report.places["duplicate request id"][0][:2] == (
            str(tmp_path / "b.parquet"), 0,
        )  # fmt: skip

    @pytest.mark.parametrize("kind", ["int64", "str"])
    @pytest.mark.parametrize("batch_rows", [1, 4, 1000])
    def test_a_row_that_comes_again_changes_nothing(self, kind: IdKind, batch_rows: int) -> None:
        """Whatever stands between, and by any writer; a row that says otherwise is malformed."""
        long = {"item_ids": list(range(100, 105)), "log_propensities": [-1.0] * 5, "k": 5}
        if kind == "str":
            long["item_ids"] = [f"i{i}" for i in range(5)]
        rows = [row(i, kind) for i in range(10)]
        rows[3] = row(3, kind, **long, log_propensity=-5.0, rewards=None, scores=None)
        again = [one | {"writer_seq": 50 + i, "writer_id": "v"} for i, one in enumerate(rows)]
        later = again[5] | {"ts": NOON + HOUR, "latency_us": 7.0, "made_by": "pass"}
        other = again[2] | {"rewards": [0.0, 0.0, 1.0]}
        given = [*rows[:6], *again[:3], *rows[6:], *again[3:], later, other, again[2]]
        reader = LogReader.of_tables([table(given, kind)], batch_rows=batch_rows)
        found = [one for batch in reader for one in batch.table["request_id"].to_pylist()]
        report = reader.report
        assert found == [f"r{i}" for i in range(10)]
        assert report.set_aside == {"duplicate request id": 1}
        assert report.places["duplicate request id"] == [("table 0", 21, "'r2'")]
        assert (report.rows_read, report.equal_duplicates, report.duplicates) == (23, 12, 13)
        assert report.malformed_share == pytest.approx(1 / 23)
        said = report.to_dict()
        assert (said["duplicates"], said["equal_duplicates"]) == (13, 12)

    @pytest.mark.parametrize(
        "changes",
        [
            {"user_id": "u2"},
            {"user_id": None},
            {"item_ids": [100, 0, 7]},
            {"log_propensities": [-1.0, -2.0, -3.0], "log_propensity": -6.0},
            {"rewards": [1.0, 0.0, 0.0]},
            {"rewards": None},
            {"rewards": [0.0, None, 0.0]},
            {"displayed": 2},
            {"k": 4, "n_eligible": 3},
            {"n_eligible": 40},
            {"seed": 5},
            {"seed_source": "caller"},
            {"policy_name": "uniform", "policy_params": None},
            {"policy_params": {"temperature": 0.6}},
            {"policy_params": {"temperature": 0.5, "user_temperature": 2.0}},
            {"model_version": "n"},
            {"catalog_version": None},
            {"is_fallback": True},
            {"row_weight": 2.0},
            {"query": [1.0, 2.0]},
            {"exclude": [4]},
            {"allow": [0, 100, 7]},
            {"candidate_set_id": "s"},
            {"log_norm": 6.0},
            {"log_norm_error": 0.5, "propensity_kind": "bounded"},
            {"tail_log_weight": 1.0},
        ],
    )
    def test_what_an_evaluation_takes_must_be_the_same(self, changes: dict[str, Any]) -> None:
        report = report_of(row(0), row(0, **changes))
        assert (report.set_aside, report.equal_duplicates) == ({"duplicate request id": 1}, 0)
        alike = report_of(row(0, **changes), row(0, **changes), row(1))
        assert (alike.set_aside, alike.equal_duplicates) == ({}, 1)

    def test_what_is_null_is_what_is_absent_or_said_otherwise(self) -> None:
        """The same in any batch: of one where nobody has the column, and where somebody has."""
        rows = [row(0), row(0), row(1, row_weight=2.0, query=[1.0], exclude=[1], tail_log_weight=1)]
        again = [row(0, row_weight=1.0), row(0, exclude=None)]
        for several in ([*rows, *again], [rows[0], *again, rows[2]]):
            for batch_rows in (1, 2, 100):
                report = report_of(*several, batch_rows=batch_rows)
                assert report.set_aside == {}
                assert report.equal_duplicates == len(several) - 2
        report = report_of(row(0, exclude=[1, 2]), row(0, exclude=[2, 1]))  # a set
        assert report.equal_duplicates == 1

    def test_columns_that_were_asked_for_must_be_the_same(self) -> None:
        whole = table([row(0), row(0), row(0)])
        whole = whole.append_column("lp1", pa.array([[-1.0] * 3, [-1.0] * 3, [-1.0, -1.0, -2.0]]))
        reader = LogReader.of_tables([whole], columns=["lp1"])
        assert [len(batch) for batch in reader] == [1]
        assert reader.report.equal_duplicates == 1
        assert reader.report.set_aside == {"duplicate request id": 1}
        reader = LogReader.of_tables([whole])
        assert [len(batch) for batch in reader] == [1]
        assert reader.report.equal_duplicates == 2

    @pytest.mark.parametrize("wide", [False, True])
    @pytest.mark.parametrize(
        "names", [["log_propensities"], ["log_propensity"], ["log_propensities", "log_propensity"]]
    )
    def test_float32_rounds_as_float32_does(self, names: list[str], wide: bool) -> None:
        """As DataFrames keep it: the list, the sum, or both; also once more in float64 columns."""
        rng = np.random.default_rng(8)
        rows = []
        for i in range(300):
            length = int(rng.integers(1, 40))
            lp = np.log(rng.random(length)) * 10.0 ** rng.integers(-3, 3)
            summed_as = np.float32 if "log_propensities" in names and i % 2 else np.float64
            rows.append(row(
                i, item_ids=list(range(length)), log_propensities=lp.tolist(), k=length,
                log_propensity=float(lp.astype(summed_as).sum()), rewards=None, scores=None,
            ))  # fmt: skip
        whole = table(rows)
        single = {"log_propensities": pa.list_(pa.float32()), "log_propensity": pa.float32()}
        for name in names:
            at = whole.schema.get_field_index(name)
            values = whole[name].cast(single[name])
            whole = whole.set_column(at, name, values.cast(whole[name].type) if wide else values)
        reader = LogReader.of_tables([whole])
        assert sum(map(len, reader)) == 300
        assert reader.report.set_aside == {}
        total = whole["log_propensity"]
        off = pa.array([value * (1 + 1e-4) for value in total.to_pylist()], total.type)
        at = whole.schema.get_field_index("log_propensity")
        reader = LogReader.of_tables([whole.set_column(at, "log_propensity", off)])
        assert sum(map(len, reader)) < 30  # sums near 0 apart
        assert reader.report.set_aside.keys() == {"sum of log-propensities"}

    def test_above_0_by_what_float32_rounds(self) -> None:
        up = float(np.float32(1e-7))
        rounded = row(0, log_propensities=[up, -1.0, -1.0], log_propensity=-2.0 + up)
        assert report_of(rounded).set_aside == {}
        for value in (1e-7, float(np.float32(1e-6))):  # no float32; more than it rounds
            wrong = row(0, log_propensities=[value, -1.0, -1.0], log_propensity=-2.0 + value)
            assert report_of(wrong).set_aside == {"positive log-propensity": 1}

    def test_a_wrong_row_does_not_hide_a_right_one_of_its_name(self) -> None:
        rows = [row(0, log_propensity=1.0), row(1, request_id="r0")]
        assert report_of(*rows).set_aside == {"sum of log-propensities": 1}


class TestTable:
    """All rows that can be believed, as one table."""

    def test_it_is_what_the_batches_have(self, tmp_path: Path) -> None:
        rows = [row(i) for i in range(5)] + [row(5, k=0)]  # the last one is set aside
        pq.write_table(table(rows[:2]), tmp_path / "a.parquet")
        pq.write_table(table(rows[2:]), tmp_path / "b.parquet")
        reader = LogReader(tmp_path, batch_rows=2)
        whole = reader.to_table()
        batches = [batch.table for batch in LogReader(tmp_path, batch_rows=2)]
        assert whole.equals(pa.Table.from_batches(batches))
        assert whole.schema.equals(schema("int64"), check_metadata=True)
        assert (whole.num_rows, reader.report.set_aside) == (5, {"no k": 1})
        assert reader.to_table().equals(whole)  # each reading starts anew
        again = LogReader.of_tables(whole)
        assert sum(len(batch) for batch in again) == 5
        assert again.report.set_aside == {}

    def test_chosen_columns_come_in_their_order(self, tmp_path: Path) -> None:
        extra = table([row(0), row(1)]).append_column("lp", pa.array([[-1.0] * 3, [-2.0] * 3]))
        pq.write_table(extra, tmp_path / "a.parquet")
        reader = LogReader(tmp_path, columns=["lp"], omit=["query"])
        chosen = reader.to_table(["lp", "user_id", "item_ids"])
        assert chosen.to_pydict() == {
            "lp": [[-1.0] * 3, [-2.0] * 3],
            "user_id": ["u0", "u1"],
            "item_ids": [row(i)["item_ids"] for i in range(2)],
        }
        assert reader.to_table().column_names[-1] == "lp"
        assert "query" not in reader.to_table().column_names
        with pytest.raises(ValueError, match=r"columns: expected some of .*; got 'nope', 'query'"):
            reader.to_table(["lp", "nope", "query"])
        with pytest.raises(ValueError, match=r"columns: expected some of .*; got item_ids"):
            reader.to_table("item_ids")
        with pytest.raises(ValueError, match="columns: lp is named twice"):
            reader.to_table(["lp", "lp"])

    def test_types_of_files_that_differ_are_joined_or_named(self, tmp_path: Path) -> None:
        for name, values in (("a", pa.array([1])), ("b", pa.array([1.5]))):
            one = table([row(ord(name))]).append_column("x", values)
            pq.write_table(one, tmp_path / f"{name}.parquet")
        assert LogReader(tmp_path, columns=["x"]).to_table(["x"])["x"].to_pylist() == [1.0, 1.5]
        lists = table([row(9)]).append_column("x", pa.array([[1.0] * 3]))
        pq.write_table(lists, tmp_path / "c.parquet")
        with pytest.raises(ValueError, match="columns: files have them in several types: "):
            LogReader(tmp_path, columns=["x"]).to_table(["x"])

    def test_a_log_without_rows_has_its_columns(self, tmp_path: Path) -> None:
        pq.write_table(table([], "str"), tmp_path / "a.parquet")
        whole = LogReader(tmp_path).to_table()
        assert whole.num_rows == 0
        assert whole.schema.equals(schema("str"))
        assert LogReader(tmp_path).to_table(["item_ids"]).column_names == ["item_ids"]

    def test_readers_batches_and_reports_are_one_line(self, tmp_path: Path) -> None:
        pq.write_table(table([row(i) for i in range(50)]), tmp_path / "a.parquet")
        reader = LogReader(tmp_path)
        assert repr(reader) == "LogReader(1 file)"
        (batch,) = reader
        assert repr(batch) == "LogBatch(50 rows of up to 3 places)"
        assert repr(reader.report) == (
            "ReadReport(50 rows read, 0 set aside; files: 1 read, 0 set aside)"
        )
        assert repr(reader) == f"LogReader(1 file; {reader.report!r})"
        assert repr(LogReader.of_tables([])) == "LogReader(tables)"


class TestStrata:
    def test_rows_are_grouped_by_law(self) -> None:
        rows = [
            row(0),
            row(1, policy_params={"temperature": 0.6}),
            row(2, model_version="n"),
            row(3, catalog_version=None),
            row(4, is_fallback=True),
            row(5, policy_name="uniform", policy_params=None),
            row(6),
            row(7, policy_params={"epsilon": 0.1, "temperature": 0.5}),
        ]
        reader = LogReader.of_tables([table(rows[:3]), table(rows[3:])])
        found = [int(i) for batch in reader for i in batch.stratum]
        assert found == [0, 1, 2, 3, 4, 5, 0, 6]
        name = "stochastic_gumbel_softmax_trick"
        assert reader.strata[0] == Stratum(name, (("temperature", 0.5),), "m", "c", False)
        assert reader.strata[5] == Stratum("uniform", (), "m", "c", False)
        assert reader.strata[6].params == (("epsilon", 0.1), ("temperature", 0.5))

    def test_user_temperatures_are_taken_out(self) -> None:
        rng = np.random.default_rng(4)
        rows = []
        for i in range(300):
            factor = float(rng.lognormal())
            base = (0.7, 1 / 3)[i % 2]
            params = {"temperature": base * factor, "user_temperature": factor}
            rows.append(row(i, policy_params=params))
        rows.append(row(300, policy_params={"temperature": 0.7}))
        reader = LogReader.of_tables([table(rows)])
        (batch,) = reader
        assert [s.params for s in reader.strata] == [
            (("temperature", 0.7),), (("temperature", 0.333333333333),),
        ]  # fmt: skip
        assert batch.stratum.tolist() == [i % 2 for i in range(300)] + [0]

    def test_reading_again_starts_anew(self) -> None:
        reader = LogReader.of_tables([table([row(0), row(1, k=1)])])
        for _ in range(2):
            assert sum(map(len, reader)) == 1
            assert reader.report.rows_read == 2
            assert len(reader.strata) == 1


class TestLostRows:
    def lost(self, *numbers: int, **options: Any) -> dict[str, int]:
        lost: dict[str, int] = report_of(
            *(row(i, writer_seq=i) for i in numbers), **options
        ).rows_lost
        return lost

    def test_gaps_are_counted(self) -> None:
        assert self.lost(0, 1, 2) == {}
        assert self.lost(0, 1, 5, 6, 9) == {"w": 5}
        assert self.lost(9, 0, 6, 5, 1) == {"w": 5}
        assert self.lost(0, 2, 1, 4, 3, batch_rows=1) == {}

    def test_rows_set_aside_are_not_lost(self) -> None:
        assert report_of(row(0), row(1, k=1), row(2)).rows_lost == {}

    def test_each_writer_has_its_own_sequence(self) -> None:
        rows = [row(i, writer_id=f"w{i % 2}", writer_seq=i // 2) for i in range(10)]
        assert report_of(*rows).rows_lost == {}
        del rows[4]
        assert report_of(*rows).rows_lost == {"w0": 1}

    def test_rows_without_a_writer_have_none(self) -> None:
        assert report_of(row(0, writer_id=None), row(5, writer_seq=None)).rows_lost == {}

    def test_the_first_segment_tells_where_a_sequence_begins(self, tmp_path: Path) -> None:
        pq.write_table(table([row(7), row(8)]), tmp_path / "w-000001.parquet")
        assert drain(tmp_path)[1].report.rows_lost == {}
        pq.write_table(table([row(2), row(3)]), tmp_path / "w-000000.parquet")
        assert drain(tmp_path)[1].report.rows_lost == {"w": 2 + 3}


class TestExtraColumns:
    def extended(self, rows: list[dict[str, Any]], **columns: Any) -> Any:
        whole = table(rows)
        for name, values in columns.items():
            whole = whole.append_column(name, values)
        return whole

    def test_lists_and_numbers(self) -> None:
        rows = [row(0), row(1, displayed=1), row(2)]
        whole = self.extended(
            rows,
            lp1=pa.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [-INF, None, NAN]]),
            q=pa.array([[1, 2, 3]] * 3, pa.large_list(pa.int32())),
            position=pa.array([3, None, 1], pa.int8()),
        )
        reader = LogReader.of_tables([whole], columns=["lp1", "q", "position"])
        (batch,) = reader
        assert batch.columns["lp1"][:2].tolist() == [[-1, -2, -3], [-4, 0, 0]]
        assert batch.columns["lp1"][2, 0] == -INF
        assert np.isnan(batch.columns["lp1"][2, 1:]).all()
        assert batch.columns["q"].tolist() == [[1, 2, 3], [1, 0, 0], [1, 2, 3]]
        assert batch.columns["position"][[0, 2]].tolist() == [3.0, 1.0]
        assert np.isnan(batch.columns["position"][1])
        assert batch.table.schema.equals(schema("int64"))

    def test_lists_of_another_length_set_the_row_aside(self) -> None:
        whole = self.extended([row(0), row(1)], lp1=pa.array([[-1.0] * 3, [-1.0] * 2]))
        reader = LogReader.of_tables([whole], columns=["lp1"])
        (batch,) = reader
        assert batch.columns["lp1"].tolist() == [[-1.0] * 3]
        assert reader.report.places["list lengths differ"] == [("table 0", 1, "lp1")]

    def test_what_is_asked_for_and_not_there_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(self.extended([row(0)], text=pa.array(["x"])), path)
        with pytest.raises(ValueError, match=r"a.parquet: no column named lp1; found text"):
            drain(path, columns=["lp1"])
        with pytest.raises(ValueError, match=r"a.parquet: text: expected numbers or lists of them"):
            drain(path, columns=["text"])
        with pytest.raises(ValueError, match="columns: scores is a column of the schema"):
            LogReader(path, columns=["scores"])
        with pytest.raises(ValueError, match="expected sequences of names"):
            LogReader(path, columns="lp1")

    def test_all_that_are_not_there_are_named(self, tmp_path: Path) -> None:
        pq.write_table(self.extended([row(0)], lp2=pa.array([1.0])), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"no column named lp1, lp3; found lp2"):
            drain(tmp_path, columns=["lp1", "lp2", "lp3"])

    def test_omitted_columns_are_not_read(self, tmp_path: Path) -> None:
        pq.write_table(table([row(0, query=[1.0])]), tmp_path / "a.parquet")
        reader = LogReader(tmp_path, omit=["query", "scores"])
        (batch,) = reader
        assert "query" not in batch.table.schema.names
        assert batch.queries is None
        assert batch.query(0) is None
        with pytest.raises(ValueError, match=r"omit: expected any of scores.*got 'item_ids'"):
            LogReader(tmp_path, omit=["item_ids"])

    def test_marked_rows_are_a_batch(self) -> None:
        rows = [row(i, query=[float(i)] if i % 2 else None) for i in range(6)]
        (batch,) = read(*rows)
        batch.values("request_id")  # kept, and not to be taken for that of some rows
        marked = np.array([False, True, True, False, False, True])
        part = batch.where(marked)
        assert len(part) == 3
        assert part.values("request_id") == ["r1", "r2", "r5"]
        assert part.rows.tolist() == [1, 2, 5]
        assert part.has_query.tolist() == [True, False, True]
        assert part.query(2) == np.float32(5.0)
        assert part.user_ids == ["u1", "u2", "u2"]
        np.testing.assert_array_equal(part.uniform, batch.uniform[marked])
        np.testing.assert_array_equal(part.log_propensities, batch.log_propensities[marked])
        assert part.table.equals(batch.table.filter(pa.array(marked)))
        assert len(batch.where(np.zeros(6, np.bool_))) == 0

    @pytest.mark.parametrize("form", ["parquet", "file", "stream"])
    @pytest.mark.parametrize(("k", "eligible", "places"), [(3, 50, 3), (9, 50, 3), (9, 2, 2)])
    def test_survey(self, tmp_path: Path, form: str, k: int, eligible: int, places: int) -> None:
        """A quick look says what a whole reading of the lists would say."""
        short: dict[str, Any] = {"item_ids": [1], "scores": [1.0], "log_propensities": [-1.0]}
        rows = [row(0, k=k, n_eligible=eligible), row(1, **short, n_eligible=None, k=1)]
        whole = table([rows[1], *rows])
        path = tmp_path / f"a.{'parquet' if form == 'parquet' else 'arrow'}"
        if form == "parquet":
            pq.write_table(whole, path, row_group_size=1)
        else:
            new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
            with new(path, whole.schema) as writer:
                writer.write_table(whole, max_chunksize=1)
        (tmp_path / "b.parquet").write_bytes(b"PAR1 is not enough")
        (tmp_path / "c.parquet").write_bytes(b"")
        pq.write_table(pa.table({"k": [1]}), tmp_path / "d.parquet")
        assert LogReader(tmp_path).survey() == (3, places)
        assert LogReader.of_tables([whole, whole]).survey() == (6, places)

    @pytest.mark.parametrize("form", ["parquet", "file", "stream", "table"])
    @pytest.mark.parametrize(
        "change",
        [
            {"n_eligible": None}, {"k": None}, {"k": None, "n_eligible": None},
            {"n_eligible": pa.array([-1, 50, None])}, {"k": pa.array(["3", "3", "3"])},
            {"k": pa.array([None, None, None], pa.int64())}, {"k": pa.array([3.0, None, 3.0])},
            {"n_eligible": pa.array([50, 50, 50]).dictionary_encode()},
        ],
    )  # fmt: skip
    def test_survey_of_what_does_not_say_its_places(
        self, tmp_path: Path, form: str, change: dict[str, Any]
    ) -> None:
        """Not to know is not none at all: the places below the first would not be evaluated."""
        whole = table([row(i) for i in range(3)])
        for name, values in change.items():
            at = whole.schema.get_field_index(name)
            whole = whole.remove_column(at)
            if values is not None:
                whole = whole.append_column(name, values)
        path = tmp_path / f"a.{'parquet' if form == 'parquet' else 'arrow'}"
        if form == "parquet":
            pq.write_table(whole, path)
        elif form != "table":
            new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
            with new(path, whole.schema) as writer:
                writer.write_table(whole)
        reader = LogReader.of_tables([whole]) if form == "table" else LogReader(path)
        assert reader.survey() == (3, 3)
        (batch,) = reader
        assert batch.item_ids.shape == (3, 3)
        assert batch.k.tolist() == [3, 3, 3]
        assert reader.report.set_aside == {}

    def test_survey_of_what_is_damaged_at_its_end(self, tmp_path: Path) -> None:
        """Rows before the damage are read, so they count; as of a killed writer's segment."""
        whole = table([row(i) for i in range(3000)])
        with pa.ipc.new_stream(tmp_path / "a.arrow", whole.schema) as writer:
            writer.write_table(whole, max_chunksize=1000)
        content = (tmp_path / "a.arrow").read_bytes()
        (tmp_path / "a.arrow").write_bytes(content[: len(content) - len(content) // 4])
        assert LogReader(tmp_path).survey() == (2000, 3)
        assert len(drain(tmp_path)[0]) == 2000
        (tmp_path / "a.arrow").unlink()
        path = tmp_path / "a.parquet"
        pq.write_table(whole, path, row_group_size=1000, compression=None)
        last = pq.read_metadata(path).row_group(2)
        content = path.read_bytes()
        for part in map(last.column, range(last.num_columns)):
            if part.path_in_schema.partition(".")[0] in ("k", "item_ids"):
                at = part.data_page_offset
                content = content[:at] + bytes(40) + content[at + 40 :]
        path.write_bytes(content)
        reader = LogReader(path, batch_rows=1000)
        assert reader.survey() == (3000, 3)
        assert sum(map(len, reader)) == 2000
        assert "damaged after 2000 rows" in reader.report.files_set_aside[str(path)]

    def test_tables_of_an_iterator_can_be_read_again(self) -> None:
        made = []

        def tables() -> Iterator[pa.Table]:
            for i in range(3):
                made.append(i)
                yield table([row(i)])

        reader = LogReader.of_tables(tables())
        assert made == []
        assert reader.survey() == (3, 3)
        for _ in range(2):
            assert [batch.values("request_id") for batch in reader] == [["r0"], ["r1"], ["r2"]]
        assert made == [0, 1, 2]
        assert reader.report.rows_read == 3

    def test_an_iterator_that_fails_fails_each_time(self) -> None:
        """After an error a generator says that it is at its end: the rest would be lost unsaid."""

        def tables() -> Iterator[pa.Table]:
            yield table([row(0)])
            raise OSError("the disk is gone")

        reader = LogReader.of_tables(tables())
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                list(reader)
            with pytest.raises(OSError, match="the disk is gone"):
                reader.survey()

    @pytest.mark.parametrize("zone", ["UTC", None, "Europe/Berlin"])
    @pytest.mark.parametrize("unit", ["ns", "us", "ms", "s"])
    def test_times_of_any_unit(self, tmp_path: Path, unit: str, zone: str | None) -> None:
        """Floored to microseconds, before 1970 too; a time without a zone is UTC's."""
        per_second = {"ns": 10**9, "us": 10**6, "ms": 10**3, "s": 1}[unit]
        counts = [NOON // 10**6 * per_second + (123 if unit == "ns" else 0), -1]
        whole = table([row(0), row(1)])
        values = pa.array(counts, pa.timestamp(unit, tz=zone))
        for name in ("ts", "reward_ts", "shown_at"):
            whole = whole.set_column(whole.schema.get_field_index(name), name, values)
        pq.write_table(whole, tmp_path / "a.parquet", version="2.6")
        for reader in (LogReader(tmp_path), LogReader.of_tables([whole])):
            (batch,) = reader
            for name in ("ts", "reward_ts", "shown_at"):
                found = batch.table[name].cast(pa.int64()).to_pylist()
                assert found == [NOON, -1 if unit in ("ns", "us") else -(10**6 // per_second)]


class TestFiles:
    def write(self, path: Path, *rows: dict[str, Any], kind: IdKind = "int64") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(list(rows), kind), path)
        return path

    def test_files_directories_and_globs(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a.parquet", row(0))
        self.write(tmp_path / "day" / "b.parquet", row(1))
        self.write(tmp_path / "filters" / "c.parquet", row(2))
        self.write(tmp_path / ".hidden.parquet", row(3))
        (tmp_path / "notes.txt").write_text("no log")

        def ids(paths: Any) -> list[str]:
            return [r["request_id"] for r in drain(paths)[0]]

        assert ids(tmp_path) == ids(str(tmp_path)) == ["r0", "r1"]
        assert ids(tmp_path / "a.parquet") == ["r0"]
        assert ids(str(tmp_path / "*.parquet")) == ["r0"]
        assert ids(str(tmp_path / "**" / "*.parquet")) == ["r0", "r1"]
        assert ids([tmp_path / "day", tmp_path / "a.parquet", tmp_path]) == ["r1", "r0"]

    def test_parquet_by_its_other_names_and_what_is_passed_over_is_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        names = ["a.PARQUET", "b.parq", "c.pq", "d.parquet.gzip", "e.c000.snappy.parquet"]
        for i, name in enumerate(names):
            self.write(tmp_path / name, row(i))
        assert [r["request_id"] for r in drain(tmp_path)[0]] == [f"r{i}" for i in range(5)]
        for name in ("_SUCCESS", "_metadata", ".f.parquet.crc", "join.json", "notes.txt"):
            (tmp_path / name).write_bytes(b"mark")
        assert len(drain(tmp_path)[0]) == 5
        assert not caplog.records
        for name in ("x.csv", "y.json.gz", "z.orc", "z.avro"):
            (tmp_path / name).write_bytes(b"data")
        assert len(drain(tmp_path)[0]) == 5
        assert f"{tmp_path}: 'x.csv', 'y.json.gz', 'z.avro' and 1 more: not read" in caplog.text

    @pytest.mark.parametrize("glob", ["*", "**", "*/", "**/*"])
    def test_a_glob_reads_what_its_directory_does(self, tmp_path: Path, glob: str) -> None:
        """And takes neither filters nor join's account for logs."""
        for name in ("log", "log/more", "log/filters", "log/lost+found"):
            (tmp_path / name).mkdir()
        self.write(tmp_path / "log" / "a.parquet", row(0))
        self.write(tmp_path / "log" / "more" / "b.parquet", row(1))
        pq.write_table(pa.table({"item_id": [1]}), tmp_path / "log" / "filters" / "f.parquet")
        (tmp_path / "log" / "join.json").write_text("{}")
        expected = LogReader(tmp_path / "log").files
        if glob == "*/":
            expected = expected[1:]
        assert sorted(LogReader(f"{tmp_path}/log/{glob}").files) == expected

    @pytest.mark.parametrize("paths", ["nowhere", "nowhere/*.parquet", []])
    def test_nothing_there_is_an_error(self, paths: Any, tmp_path: Path) -> None:
        given = [str(tmp_path / paths)] if paths else paths
        with pytest.raises(ValueError, match=r"no such file|no log files|none given"):
            LogReader(given)

    def test_foreign_files_are_named_and_set_aside(self, tmp_path: Path) -> None:
        self.write(tmp_path / "good.parquet", row(0), row(1))
        self.write(tmp_path / "text.parquet", row(0, "str"), kind="str")
        good = table([row(5)])
        (tmp_path / "empty.parquet").write_bytes(b"")
        (tmp_path / "begun.arrow").write_bytes(b"")  # a writer has just made it
        (tmp_path / "json.parquet").write_text('{"a": 1}')
        (tmp_path / "noise.arrow").write_bytes(np.random.default_rng(0).bytes(4000))
        pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
        newer = good.replace_schema_metadata({VERSION_KEY: b"3"})
        pq.write_table(newer, tmp_path / "newer.parquet")
        index = good.schema.get_field_index("log_propensities")
        wrong = good.set_column(index, "log_propensities", pa.array(["-1"]))
        pq.write_table(wrong, tmp_path / "wrong.parquet")
        whole = (tmp_path / "good.parquet").read_bytes()
        (tmp_path / "torn.parquet").write_bytes(whole[: len(whole) // 2])
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["r0", "r1"]
        aside = {Path(f).stem: why for f, why in reader.report.files_set_aside.items()}
        assert aside.keys() == {
            "text", "empty", "json", "noise", "other", "newer", "wrong", "torn",
        }  # fmt: skip
        assert "str, those of the other files int64" in aside["text"]
        assert aside["empty"] == "the file is empty"
        assert "no column named request_id, ts, policy_name, item_ids" in aside["other"]
        assert "schema version '3'" in aside["newer"]
        assert "log_propensities: expected list<item: double>" in aside["wrong"]
        assert all("\n" not in why for why in aside.values())
        assert reader.report.files_read == [str(tmp_path / "good.parquet")]

    def test_columns_that_may_be_null_may_be_absent(self, tmp_path: Path) -> None:
        wanted = [
            "request_id", "ts", "policy_name", "item_ids", "log_propensities", "log_propensity",
            "propensity_kind",
        ]  # fmt: skip
        whole = table([row(0), row(1)])
        pq.write_table(whole.select(wanted).replace_schema_metadata(None), tmp_path / "a.parquet")
        (batch,) = reader = LogReader(tmp_path)
        assert reader.survey() == (2, 3)
        assert batch.table.schema.equals(schema("int64"))
        assert batch.k.tolist() == [3, 3]
        assert not batch.observed.any()
        for name in wanted:
            (tmp_path / "a.parquet").unlink()
            pq.write_table(whole.drop_columns([name]), tmp_path / "a.parquet")
            with pytest.raises(ValueError, match=f"no column named {name}"):
                drain(tmp_path)

    def split(self, root: Path, values: dict[str, Any], by: list[str]) -> None:
        """A log as tools leave it that split a table by columns."""
        whole = table([row(i, **values) for i in range(4)])
        kinds = [(name, whole.schema.field(name).type) for name in by]
        parts = ds.partitioning(pa.schema(kinds), flavor="hive")
        ds.write_dataset(whole, root, format="parquet", partitioning=parts)

    @pytest.mark.parametrize(
        ("values", "by"),
        [
            ({}, ["policy_name"]),
            ({}, ["model_version", "seed_source"]),
            ({"user_id": "a/b =%20é"}, ["user_id"]),
            ({"model_version": None}, ["model_version", "policy_name"]),
            ({"is_fallback": True}, ["is_fallback"]),
            ({"k": 7, "n_eligible": 3}, ["k"]),
            ({"seed": 2**64 - 1}, ["seed"]),
            ({"row_weight": 0.1}, ["row_weight"]),
        ],
    )
    def test_what_directories_say_of_columns(
        self, tmp_path: Path, values: dict[str, Any], by: list[str]
    ) -> None:
        self.split(tmp_path / "log", values, by)
        (batch,) = LogReader.of_tables([table([row(i, **values) for i in range(4)])])
        deepest = next((tmp_path / "log").rglob("*.parquet")).parent
        below = sorted((tmp_path / "log").iterdir())[0].name
        for paths in (tmp_path / "log", f"{tmp_path}/*/{below[0]}*/**", deepest):
            rows, reader = drain(paths)
            assert rows == batch.table.to_pylist()
            assert reader.report.set_aside == {}
            assert reader.report.files_set_aside == {}
            assert reader.survey() == (4, 3)

    def test_directories_that_say_what_no_column_holds(self, tmp_path: Path) -> None:
        for name in ("k=many", "is_fallback=perhaps", "seed=-1", "item_ids=1", "ts=noon"):
            whole = table([row(0)]).drop_columns([name.partition("=")[0]])
            path = tmp_path / name / "a.parquet"
            path.parent.mkdir()
            pq.write_table(whole, path)
        self.write(tmp_path / "b.parquet", row(1))
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["r1"]
        aside = {Path(f).parent.name: why for f, why in reader.report.files_set_aside.items()}
        assert aside["k=many"] == "k: expected int64, got 'many' by its path"
        assert "is_fallback: expected bool, got 'perhaps'" in aside["is_fallback=perhaps"]
        assert "seed: expected uint64, got '-1'" in aside["seed=-1"]
        assert "item_ids" in aside["item_ids=1"]
        assert "ts: expected timestamp" in aside["ts=noon"]

    @pytest.mark.parametrize("form", ["parquet", "file", "stream"])
    def test_a_file_and_its_directory_that_disagree(self, tmp_path: Path, form: str) -> None:
        for value in ("m", "n", "__HIVE_DEFAULT_PARTITION__"):
            folder = tmp_path / f"model_version={value}"
            folder.mkdir()
            whole = table([row(i, request_id=f"{value}{i}") for i in range(3)])
            if form == "parquet":
                pq.write_table(whole, folder / "a.parquet", row_group_size=1)
                continue
            new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
            with new(folder / "a.arrow", whole.schema) as writer:
                writer.write_table(whole, max_chunksize=1)
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["m0", "m1", "m2"]
        why = {Path(f).parent.name: said for f, said in reader.report.files_set_aside.items()}
        assert why == {
            "model_version=n": "model_version: its path says 'n', a row 'm'",
            "model_version=__HIVE_DEFAULT_PARTITION__":
                "model_version: its path says None, a row 'm'",
        }  # fmt: skip
        # What is above the log is not said of its rows.
        rows, reader = drain(tmp_path / "model_version=n")
        assert [r["request_id"] for r in rows] == ["n0", "n1", "n2"]

    def test_other_directories_may_be_asked_for(self, tmp_path: Path) -> None:
        for i, name in enumerate(("hour=7", "hour=23", "hour=__HIVE_DEFAULT_PARTITION__")):
            self.write(tmp_path / "dt=2026-01-01" / name / "a.parquet", row(i))
        assert len(drain(tmp_path)[0]) == 3
        reader = LogReader(tmp_path, columns=["hour"])
        found = {batch.values("request_id")[0]: batch.columns["hour"][0] for batch in reader}
        assert found.keys() == {"r0", "r1", "r2"}
        assert (found["r0"], found["r1"]) == (7.0, 23.0)
        assert np.isnan(found["r2"])
        with pytest.raises(ValueError, match=r"dt: expected numbers.*got '2026-01-01' by its path"):
            drain(tmp_path, columns=["dt"])

    def test_filters_above_the_directories_that_split_a_log(self, tmp_path: Path) -> None:
        (tmp_path / "filters").mkdir()
        ids = pa.array([1, 2], pa.int64())
        name = filter_id([1, 2])
        pq.write_table(pa.table({"item_id": ids}), tmp_path / "filters" / f"{name}.parquet")
        named = row(0, filter_id={"exclude": name, "allow": None})
        self.write(tmp_path / "arm=a" / "hour=1" / "x.parquet", named)
        whole = table([row(1)])
        whole = whole.replace_schema_metadata({**whole.schema.metadata, JOIN_KEY: b"j"})
        pq.write_table(whole, tmp_path / "arm=a" / "hour=1" / "y.parquet")
        (tmp_path / "join.json").write_text(json.dumps({"id": "j", "mine": 7}))
        batch, _ = reader = LogReader(tmp_path)
        assert reader.report.set_aside == {}
        assert reader.report.files_set_aside == {}
        assert np.asarray(batch.exclude(0)).tolist() == [1, 2]

    def test_linked_directories_are_read_once(self, tmp_path: Path) -> None:
        log, elsewhere = tmp_path / "log", tmp_path / "elsewhere"
        self.write(log / "day1" / "a.parquet", row(0))
        self.write(elsewhere / "deep" / "b.parquet", row(1))
        self.write(log / "day1" / "c.pq", row(2))
        for name, target in [
            ("day2", elsewhere), ("latest", log / "day1"), ("again", elsewhere / "deep"),
            ("loop", log),
        ]:  # fmt: skip
            (log / name).symlink_to(target)
        (elsewhere / "back").symlink_to(log)
        (elsewhere / "self").symlink_to(elsewhere)
        (log / "broken").symlink_to(tmp_path / "nothing")
        rows, reader = drain(log)
        assert sorted(r["request_id"] for r in rows) == ["r0", "r1", "r2"]
        assert reader.report.duplicates == 0
        assert [path.relative_to(log) for path in reader.files] == [
            Path("again/b.parquet"), Path("day1/a.parquet"), Path("day1/c.pq"),
        ]  # fmt: skip
        linked = tmp_path / "linked"
        linked.symlink_to(log)
        assert len(drain(linked)[0]) == 3

    def test_nothing_readable_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(ValueError, match=r"no file of the log can be read: .*a.parquet"):
            drain(tmp_path)

    def test_whatever_is_damaged_is_named(self, tmp_path: Path) -> None:
        """Overwritten anywhere: rows, or a reason beside the file's name, and nothing else."""
        content = self.write(tmp_path / "good.parquet", row(0), row(1)).read_bytes()
        path = tmp_path / "bad.parquet"
        for at in range(4, len(content), max(1, len(content) // 60)):
            path.write_bytes(content[:at] + bytes(8) + content[at + 8 :])
            reader = LogReader([path, tmp_path / "good.parquet"])
            reader.survey()
            for batch in reader:
                assert len(batch.table) == len(batch)
            assert reader.report.files_set_aside.keys() <= {str(path)}

    def test_an_account_that_is_none_is_not_believed(self, tmp_path: Path) -> None:
        whole = table([row(0)])
        self.write(tmp_path / "a.parquet", row(0))
        pq.write_table(
            whole.replace_schema_metadata({**(whole.schema.metadata or {}), JOIN_KEY: b"j"}),
            tmp_path / "a.parquet",
        )
        said = ['"source": null', '"source": {"rows_lost": 5}', '"summary": []',
                '"source": {"rows_lost": {"w": -5}}', '"source": {"rows_set_aside": -1}',
                '"source": {"rows_set_aside": true}', '"source": {"rows_set_aside": 1e400}',
                f'"source": {{"rows_set_aside": 1{4000 * "0"}}}', f'"x": {5000 * "1"}',
                '"source": {"files_set_aside": {"f": 5}}', '"source": {"files_set_aside": ["f"]}',
                '"x": NaN', '"x": [{"y": -1e999}]', r'"x": "\ud800"', r'"\ud800": 1',
                f'"x": {400 * "["}{400 * "]"}',
                '"summary": {"rewards_dropped": -1}', '"summary": {"rewards_dropped": 1}',
                '"summary": {"rewards_dropped": "all"}', '"summary": {"rewards_used": 0.5}',
                '"summary": {"rewards_before": 1, "rewards_read": 0}',
                '"summary": {"rewards_after": null}',
                '"summary": {"before_seconds_most": "5"}',
                '"summary": {"before_seconds_median": -1}']  # fmt: skip
        for text in said:
            (tmp_path / "join.json").write_text(f'{{"id": "j", {text}}}')
            report = drain(tmp_path)[1].report
            assert report.joins == [{"id": "j"}], text
            assert list(report.unreadable_files) == [str(tmp_path / "join.json")], text
            assert report.malformed_share == report.rewards_dropped_share == 0.0
            assert report.total_rows_lost == 0
            json.dumps(report.to_dict(), allow_nan=False)
        (tmp_path / "join.json").write_text("[" * 100_000)
        assert list(drain(tmp_path)[1].report.files_set_aside) == [str(tmp_path / "join.json")]
        for text in ('{"id": "another"}', ""):  # another's, or none
            (tmp_path / "join.json").write_text(text)
            if not text:
                (tmp_path / "join.json").unlink()
            report = drain(tmp_path)[1].report
            assert (report.joins, report.files_set_aside) == ([{"id": "j"}], {})

    def test_an_empty_log_is_readable(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a.parquet")
        rows, reader = drain(tmp_path)
        assert rows == []
        assert reader.report.rows_read == 0
        assert reader.report.malformed_share == 0.0
        assert reader.report.files_read == [str(tmp_path / "a.parquet")]

    @pytest.mark.parametrize("has_header", [False, True])
    def test_the_file_of_an_idle_writer_has_no_rows(self, has_header: bool, tmp_path: Path) -> None:
        """It was made, and no row is in it yet: alone, beside another one, and as a part."""
        path = tmp_path / "log" / "w-000000.arrow"
        path.parent.mkdir()
        path.write_bytes(schema("int64").serialize().to_pybytes() if has_header else b"")
        for paths in (path, path.parent):
            rows, reader = drain(paths)
            assert (rows, reader.report.rows_read) == ([], 0)
            assert (reader.report.files_set_aside, reader.report.why_unread) == ({}, None)
        self.write(tmp_path / "log" / "a.parquet", row(0))
        rows, reader = drain(tmp_path / "log")
        assert [r["request_id"] for r in rows] == ["r0"]
        assert reader.report.files_set_aside == {}
        parts = LogReader(tmp_path / "log").parts(2)
        assert sorted(sum(map(len, part)) for part in parts) == [0, 1]

    def test_no_tables_are_an_empty_log(self) -> None:
        assert list(LogReader.of_tables([])) == []

    @pytest.mark.parametrize("tool", ["large", "dictionary", "reordered", "narrow"])
    def test_what_other_tools_make_of_types(self, tool: str, tmp_path: Path) -> None:
        """Polars and pandas lose metadata, and have types of their own for the same values."""
        rows = [row(i, query=[1.0, 2.0]) for i in range(3)]
        whole = table(rows).replace_schema_metadata(None)
        arrays = {name: whole[name].combine_chunks() for name in whole.column_names}
        if tool == "large":
            for name, values in arrays.items():
                if pa.types.is_string(values.type):
                    arrays[name] = values.cast(pa.large_string())
                elif pa.types.is_list(values.type):
                    arrays[name] = values.cast(pa.large_list(values.type.value_type))
        elif tool == "dictionary":
            for name in ("policy_name", "user_id", "model_version"):
                arrays[name] = arrays[name].dictionary_encode()
        elif tool == "reordered":
            arrays = dict(reversed(arrays.items()))
            params = pa.array([{"epsilon": None, "temperature": 0.5}] * 3)
            arrays["policy_params"] = params
        else:
            arrays["k"] = arrays["k"].cast(pa.int8())
            arrays["item_ids"] = arrays["item_ids"].cast(pa.list_(pa.int16()))
            arrays["ts"] = arrays["ts"].cast(pa.timestamp("ms", tz="UTC"), safe=False)
            arrays["displayed"] = pa.nulls(3)
        pq.write_table(pa.table(arrays), tmp_path / "a.parquet")
        read_back, reader = drain(tmp_path)
        assert reader.report.files_set_aside == {}
        plain, _ = drain(self.write(tmp_path / "plain" / "b.parquet", *rows))
        if tool == "narrow":
            for one in (*plain, *read_back):
                one.pop("ts")
        assert read_back == plain

    def test_arrow_file_format(self, tmp_path: Path) -> None:
        whole = table([row(i) for i in range(4)])
        with pa.ipc.new_file(tmp_path / "a.arrow", whole.schema) as file:
            file.write_table(whole)
        assert len(drain(tmp_path)[0]) == 4

    def test_the_sealed_one_of_two_is_read(self, tmp_path: Path) -> None:
        self.write(tmp_path / "w-000000.parquet", row(0), row(1))
        with pa.ipc.new_stream(tmp_path / "w-000000.arrow", schema("int64")) as stream:
            stream.write_table(table([row(0)]))
        for paths in (tmp_path, tmp_path / "w-000000.arrow", str(tmp_path / "*.arrow")):
            rows, reader = drain(paths)
            assert len(rows) == 2
            assert reader.report.duplicates == 0

    def test_a_segment_sealed_between_listing_and_reading(self, tmp_path: Path) -> None:
        stream_path = tmp_path / "w-000000.arrow"
        with pa.ipc.new_stream(stream_path, schema("int64")) as stream:
            stream.write_table(table([row(0)]))
        reader = LogReader(tmp_path)
        self.write(tmp_path / "w-000000.parquet", row(0))
        stream_path.unlink()
        assert sum(map(len, reader)) == 1

    def test_files_that_went_away(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            self.write(tmp_path / f"{name}.parquet", row(0))
        reader = LogReader(tmp_path)
        (tmp_path / "a.parquet").unlink()
        assert sum(map(len, reader)) == 1
        assert "No such file" in reader.report.files_set_aside[str(tmp_path / "a.parquet")]

    @pytest.mark.sampled
    @pytest.mark.parametrize("kind", ["int64", "str"])
    def test_every_prefix_of_a_stream_is_readable(self, kind: IdKind, tmp_path: Path) -> None:
        """A torn tail gives the whole batches before it, and is reported."""
        columns = schema(kind)
        parts = [table([row(3 * j + i, kind) for i in range(3)], kind) for j in range(3)]
        header = columns.serialize().to_pybytes()
        messages = [part.to_batches()[0].serialize().to_pybytes() for part in parts]
        whole = header + b"".join(messages)
        ends = [len(header) + sum(map(len, messages[:i])) for i in range(4)]
        path = tmp_path / "w-000000.arrow"
        cuts = {*range(len(header), len(whole), 97), *ends, *(end + 4 for end in ends[:3])}
        for cut in sorted(cuts):
            path.write_bytes(whole[:cut])
            rows, reader = drain(path)
            n_whole = sum(end <= cut for end in ends[1:])
            assert [r["request_id"] for r in rows] == [f"r{i}" for i in range(3 * n_whole)]
            assert bool(reader.report.files_cut) == (cut not in ends), cut
            assert reader.report.files_read == [str(path)]

    def test_a_damaged_sealed_file_is_set_aside(self, tmp_path: Path) -> None:
        """Only a growing file may end anywhere; of another, what follows is lost."""
        path = self.write(tmp_path / "a.parquet", *(row(i) for i in range(3)))
        self.write(tmp_path / "b.parquet", row(7))
        column = pq.read_metadata(path).row_group(0).column(0)
        data = bytearray(path.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + 8] = b"\xff" * 8
        path.write_bytes(data)
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["r7"]
        assert "damaged after 0 rows" in reader.report.files_set_aside[str(path)]
        assert reader.report.unreadable_files == reader.report.files_set_aside
        assert reader.report.files_cut == {}
        assert reader.report.files_read == [str(tmp_path / "b.parquet")]

    def test_a_growing_file_damaged_in_the_middle_is_not_torn(self, tmp_path: Path) -> None:
        columns = schema("int64")
        header = columns.serialize().to_pybytes()
        messages = [table([row(i)]).to_batches()[0].serialize().to_pybytes() for i in range(3)]
        spoiled = messages[1][:8] + b"\xff" * 32 + messages[1][40:]
        path = tmp_path / "w-000000.arrow"
        path.write_bytes(header + messages[0] + spoiled + messages[2])
        rows, reader = drain(path)
        assert [r["request_id"] for r in rows] == ["r0"]
        assert "damaged after 1 rows" in reader.report.files_set_aside[str(path)]
        assert reader.report.files_cut == {}

    @pytest.mark.parametrize("name", ["k", "ts", "seed"])
    @pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
    def test_wrong_content_is_set_aside(self, name: str, suffix: str, tmp_path: Path) -> None:
        self.write(tmp_path / "b.parquet", row(7))
        whole = table([row(i) for i in range(3)])
        index = whole.schema.get_field_index(name)
        wrong = whole.set_column(index, name, pa.array(["one", "two", "three"]))
        path = tmp_path / f"a{suffix}"
        if suffix == ".parquet":
            pq.write_table(wrong, path)
        else:
            with pa.ipc.new_stream(path, wrong.schema) as stream:
                stream.write_table(wrong)
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["r7"]
        assert reader.report.files_set_aside.keys() == {str(path)}
        assert reader.report.files_cut == {}

    def test_noise_never_ends_in_anything_but_a_value_error(self, tmp_path: Path) -> None:
        """Bytes changed at random, in both formats: rows are right, aside, or the file is."""
        rng = np.random.default_rng(6)
        good = self.write(tmp_path / "good.parquet", *(row(i) for i in range(40))).read_bytes()
        with pa.ipc.new_stream(tmp_path / "s.arrow", schema("int64")) as stream:
            stream.write_table(table([row(i) for i in range(40)]), max_chunksize=10)
        streamed = (tmp_path / "s.arrow").read_bytes()
        for whole, name in ((good, "x.parquet"), (streamed, "x.arrow")):
            path = tmp_path / "noise" / name
            path.parent.mkdir(exist_ok=True)
            for _ in range(150):
                data = bytearray(whole)
                for at in rng.integers(0, len(data), 3):
                    data[at] = rng.integers(0, 256)
                path.write_bytes(data)
                with contextlib.suppress(ValueError):
                    for batch in LogReader(path):
                        assert (batch.log_propensities <= 1e-9).all()
                        assert all(batch.exclude(i) is None for i in range(len(batch)))

    def test_texts_that_a_dictionary_does_not_have(self, tmp_path: Path) -> None:
        whole = table([row(i) for i in range(3)])
        codes = pa.array([0, 214, 0], pa.int32())
        spoiled = pa.DictionaryArray.from_arrays(codes, pa.array(["complete"]), safe=False)
        index = whole.schema.get_field_index("reward_kind")
        reader = LogReader.of_tables([whole.set_column(index, "reward_kind", spoiled)])
        with pytest.raises(ValueError, match="out of bounds"):
            list(reader)

    @pytest.mark.parametrize("name", ["user_id", "policy_name"])
    def test_text_that_is_not_utf8(self, name: str, tmp_path: Path) -> None:
        """Parquet promises UTF-8 and does not check it."""
        whole = table([row(i) for i in range(3)])
        bytes_of = pa.array([b"ok", b"\xff\xfe", b"x"], pa.binary()).buffers()
        spoiled = pa.StringArray.from_buffers(3, bytes_of[1], bytes_of[2])
        index = whole.schema.get_field_index(name)
        pq.write_table(whole.set_column(index, name, spoiled), tmp_path / "a.parquet")
        self.write(tmp_path / "b.parquet", row(7))
        rows, reader = drain(tmp_path)
        assert [r["request_id"] for r in rows] == ["r7"]
        assert "UTF" in reader.report.files_set_aside[str(tmp_path / "a.parquet")]


class TestFilters:
    def write(self, directory: Path, *rows: dict[str, Any]) -> None:
        directory.mkdir(exist_ok=True)
        pq.write_table(table(list(rows)), directory / "a.parquet")

    def test_lists_and_biases_by_hash(self, tmp_path: Path) -> None:
        long = np.arange(500, 0, -1)
        bias = np.linspace(-1, 1, 9, dtype=np.float32)
        names = filter_id(long), bias_id(bias)
        save(tmp_path, names[0], np.sort(long))
        save(tmp_path, names[1], bias)
        self.write(
            tmp_path,
            row(0, filter_id={"exclude": names[0]}),
            row(1, filter_id={"exclude": None, "allow": names[0]}, exclude=[7]),
            row(2, bias_id=names[1]),
        )
        reader = LogReader(tmp_path)
        (batch,) = reader
        assert reader.report.set_aside == {}
        results = [batch.exclude(0), batch.allow(1), batch.exclude(1), batch.bias(2)]
        expected = [np.arange(1, 501), np.arange(1, 501), np.array([7]), bias]
        for result, wanted in zip(results, expected, strict=True):
            assert result is not None
            np.testing.assert_array_equal(result, wanted)
        assert batch.allow(0) is None
        assert batch.bias(0) is None

    def test_missing_changed_and_broken_ones(self, tmp_path: Path) -> None:
        ids = np.arange(100)
        name = filter_id(ids)
        self.write(tmp_path, row(0, filter_id={"exclude": name}), row(1))

        def details() -> list[str]:
            rows, reader = drain(tmp_path)
            assert [r["request_id"] for r in rows] == ["r1"]
            assert reader.report.set_aside == {"filter not at hand": 1}
            return [detail for _, _, detail in reader.report.places["filter not at hand"]]

        assert details() == [f"filters/{name}.parquet is missing"]
        save(tmp_path, name, np.arange(99))
        assert details() == [f"filters/{name}.parquet does not match its hash"]
        file = tmp_path / "filters" / f"{name}.parquet"
        file.write_bytes(b"PAR1")
        assert "not readable" in details()[0]
        pq.write_table(pa.table({"a": [1]}), file)
        assert "not readable" in details()[0]
        file.unlink()
        save(tmp_path, name, ids)
        assert drain(tmp_path)[1].report.set_aside == {}

    def test_text_filters_and_kinds_differ(self) -> None:
        assert filter_id(["1", "2"]) != filter_id([1, 2])
        assert filter_id(["b", "a", "b"]) == filter_id(["a", "b"])
        assert filter_id(["a\nb"]) != filter_id(["a", "b"])
        assert filter_id([]) == filter_id(np.empty(0, np.int64))
        assert bias_id([1.0]) == bias_id(np.ones(1))


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "item_ids": st.none() | st.lists(st.none() | st.integers(0, 4), max_size=4),
                "log_propensities": st.none()
                | st.lists(st.none() | st.sampled_from([0.0, -1.0, 0.5, NAN, -INF]), max_size=4),
                "log_propensity": st.none() | st.sampled_from([0.0, -1.0, -2.0, -3.0, NAN]),
                "rewards": st.none() | st.lists(st.none() | st.sampled_from([0.0, 1.0, NAN])),
                "scores": st.none() | st.lists(st.none() | st.just(1.0), max_size=4),
                "displayed": st.none() | st.integers(-1, 5),
                "k": st.none() | st.integers(0, 4),
                "n_eligible": st.none() | st.integers(-1, 5),
                "request_id": st.none() | st.sampled_from(["", "a", "b"]),
                "query": st.none() | st.lists(st.none() | st.just(1.0), max_size=2),
                "exclude": st.none() | st.lists(st.none() | st.just(1), max_size=2),
            },
        ),
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_any_rows_at_all(changes: list[dict[str, Any]], batch_rows: int) -> None:
    """Whatever comes: no exception, every row is given or counted, and what is given is right."""
    rows = [row(i, **change) for i, change in enumerate(changes)]
    reader = LogReader.of_tables([table(rows)], batch_rows=batch_rows)
    given_rows = 0
    for batch in reader:
        given_rows += len(batch)
        for i, at in enumerate(batch.rows.tolist()):
            source = rows[at]
            m = len(source["item_ids"])
            shown = m if source.get("displayed") is None else source["displayed"]
            assert batch.lengths[i] == shown <= m <= (source["k"] or m)
            assert batch.item_ids[i, :m].tolist() == source["item_ids"]
            assert len(set(source["item_ids"])) == m
            lp = source["log_propensities"]
            assert batch.log_propensities[i, :shown].tolist() == lp[:shown]
            assert max(lp, default=0.0) <= 0.0
            assert abs(sum(lp) - source["log_propensity"]) < 1e-9
            wanted = [NAN] * m if source["rewards"] is None else source["rewards"]
            for place in range(shown):
                value = wanted[place]
                got = batch.rewards[i, place]
                assert np.isnan(got) if value is None or value != value else got == value
            assert not batch.rewards[i, shown:].any()
            assert not batch.log_propensities[i, shown:].any()
    assert given_rows + reader.report.rows_set_aside == len(rows) == reader.report.rows_read


@pytest.mark.slow
def test_memory_is_that_of_a_batch(tmp_path: Path) -> None:
    """Arrow's peak for a file six times as long is the same; it was 3.8 times with read-ahead."""
    n = 20_000
    one = table([row(0)])
    peaks = []
    for copies in (2, 12):
        whole = pa.concat_tables([one] * n).combine_chunks()
        path = tmp_path / f"{copies}.parquet"
        with pq.ParquetWriter(path, whole.schema) as writer:
            for part in range(copies):
                ids = pa.array([f"{part}-{i}" for i in range(n)])
                noise = np.random.default_rng(part).standard_normal(100 * n).astype(np.float32)
                query = pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * 100, noise)
                for name, values in (("request_id", ids), ("query", query)):
                    index = whole.schema.get_field_index(name)
                    whole = whole.set_column(index, whole.schema.field(index), values)
                writer.write_table(whole)
        code = (
            "import sys, pyarrow as pa; from fastrank.eventlog import LogReader\n"
            "rows = sum(map(len, LogReader(sys.argv[1], batch_rows=5000)))\n"
            "print(rows, pa.default_memory_pool().max_memory())"
        )
        arguments = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        rows, peak = map(int, done.stdout.split())
        assert rows == copies * n
        peaks.append(peak)
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_times_are_microseconds_in_utc() -> None:
    (batch,) = read(row(0))
    assert batch.table["ts"][0].as_py() == datetime.fromtimestamp(NOON / 1e6, UTC)


def test_all_columns_that_a_table_lacks_are_named_at_once() -> None:
    """As of a file; and what reads logs of other makings."""
    bare = table([row(0)]).select(["request_id", "item_ids", "log_propensities", "rewards"])
    lacking = "no column named ts, policy_name, log_propensity, propensity_kind .*from_table"
    with pytest.raises(ValueError, match=f"table 0: not an event log of fastrank: {lacking}"):
        list(LogReader.of_tables(bare))
