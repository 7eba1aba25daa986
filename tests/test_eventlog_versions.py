"""Logs of schema 1 and 2: each is read, and both in one; a law is not its sampler."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import HOUR, NOON, catalog, drain, report_of, row, segments, table

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogBatch, LogReader, LogWriter, Stratum, join, schema
from fastrank.eventlog.filters import save
from fastrank.eventlog.schema import UNREAD, IdKind
from fastrank.eventlog.segments import seal_abandoned
from fastrank.ope.queries import logging_policy
from fastrank.ope.report import Section, render
from fastrank.policies import Sampler

GOLDEN = Path(__file__).parent / "data" / "schema1"
QUERY = [0.5, -1.0, 0.25, 2.0]
SAMPLERS = get_args(Sampler)


def golden_model(kind: IdKind) -> fr.Model:
    """What wrote the golden logs."""
    rng = np.random.default_rng(11)
    vectors, users = rng.standard_normal((30, 4)), rng.standard_normal((3, 4))
    ids: Any = np.arange(100, 130) if kind == "int64" else [f"item {i}" for i in range(30)]
    factors = [0.5, 1.0, 3.0]
    return fr.Model(
        fr.Catalog(ids, vectors), ["ann", "bob", "cy"], users, user_temperatures=factors
    )


def old_columns(batch: LogBatch) -> list[dict[str, Any]]:
    names = schema("int64", 1).names
    rows = [
        dict(zip(names, values, strict=True))
        for values in zip(*map(batch.values, names), strict=True)
    ]
    found: list[dict[str, Any]] = json.loads(
        json.dumps(rows, default=lambda time: time.isoformat())
    )
    return found


class TestGolden:
    @pytest.mark.parametrize("kind", ["int64", "str"])
    def test_every_value_is_read_as_it_was(self, kind: IdKind) -> None:
        """Files that the code of schema 1 wrote: sealed, growing, with filters and a bias."""
        reader = LogReader(GOLDEN / kind)
        read = [one for batch in reader for one in old_columns(batch)]
        wanted = json.loads((GOLDEN / kind / "rows.json").read_bytes())
        assert [one.pop("schema_version") for one in read] == [2] * 16
        for one in wanted:
            one.pop("schema_version")
        assert read == wanted
        assert reader.report.set_aside == {}
        assert len(reader.report.files_read) == 2
        own = Stratum("", (("temperature", 0.5),), wanted[0]["model_version"],
                      wanted[0]["catalog_version"], False, "plackett_luce")  # fmt: skip
        assert reader.strata[0] == own
        laws = [each.law for each in reader.strata]
        assert laws == ["plackett_luce", "epsilon_greedy", "uniform", "deterministic",
                        "plackett_luce", "uniform"]  # fmt: skip

    @pytest.mark.parametrize("kind", ["int64", "str"])
    def test_propensities_are_computed_again(self, kind: IdKind) -> None:
        found = ope.audit(LogReader(GOLDEN / kind), [golden_model(kind)])
        checks = {check.name: check for check in found.checks}
        assert found.passed
        assert (found.rows, found.sampled) == (16, 14)  # two of truncated candidates
        assert checks["seeds draw"].outcome == "passed"
        # What draws otherwise since version 1, a cached and three uniform rows, is no forgery.
        assert (checks["seeds draw"].rows, checks["first place"].rows) == (10, 8)
        assert "4 were drawn by rng_version 1" in checks["seeds draw"].message

    @pytest.mark.parametrize("kind", ["int64", "str"])
    def test_a_writer_goes_on_in_the_directory(self, kind: IdKind, tmp_path: Path) -> None:
        """The next release in the same folder: one log of both, and the old segment is sealed."""
        folder = tmp_path / "log"
        shutil.copytree(GOLDEN / kind, folder)
        (folder / "rows.json").unlink()
        model = golden_model(kind)
        before = LogReader(folder)
        for _ in before:
            pass
        with LogWriter(folder) as log:
            assert log.kind == kind
            ranking = model.recommend("ann", 4, policy=fr.PlackettLuce(0.5), seed=9)
            log.append(ranking, user_id="ann", request_id="new")
        assert segments(folder, ".arrow") == []
        versions = {pq.read_schema(each).metadata[b"fastrank.schema_version"]
                    for each in segments(folder, ".parquet")}  # fmt: skip
        assert versions == {b"1", b"2"}
        rows, reader = drain(folder)
        assert len(rows) == 17
        assert reader.report.set_aside == {}
        assert reader.strata == before.strata  # the new row's is that of the old ones
        assert [one["request_id"] for one in rows if one["run"] is None][-1] == "new"


class TestMixed:
    def test_both_versions_in_one_data_set(self, tmp_path: Path) -> None:
        pq.write_table(table([row(0), row(1)], version=1), tmp_path / "a.parquet")
        pq.write_table(table([row(2), row(3)], version=2), tmp_path / "b.parquet")
        rows, reader = drain(tmp_path)
        assert [one["law_params"] for one in rows] == [[{"name": "temperature", "value": 0.5}]] * 4
        assert [one["sampler"] for one in rows] == ["gumbel"] * 4
        assert [one["law"] for one in rows] == ["plackett_luce"] * 4
        assert {one["schema_version"] for one in rows} == {2}
        assert len(reader.strata) == 1

    @pytest.mark.parametrize("version", [1, 2])
    def test_rewards_were_float32(self, version: int, tmp_path: Path) -> None:
        """In version 1, and in version 2 before they were float64: such files are read as ever."""
        old = table([row(0, rewards=[0.1, 16_777_217.0, None]), row(1)], version=version)
        at = old.schema.get_field_index("rewards")
        narrow = old.column(at).cast(pa.list_(pa.float32()))
        pq.write_table(old.set_column(at, "rewards", narrow), tmp_path / "a.parquet")
        pq.write_table(table([row(2, rewards=[0.1, 16_777_217.0, None])]), tmp_path / "b.parquet")
        rows, reader = drain(tmp_path)
        assert reader.report.files_set_aside == {}
        assert rows[0]["rewards"] == [float(np.float32(0.1)), 16_777_216.0, None]
        assert rows[2]["rewards"] == [0.1, 16_777_217.0, None]
        with LogWriter(tmp_path / "kept") as log:
            log.append_table(pq.read_table(tmp_path / "a.parquet"))
        assert drain(tmp_path / "kept")[0][0]["rewards"] == rows[0]["rewards"]

    @pytest.mark.parametrize("order", [(1, 2), (2, 1)])
    def test_one_table_of_both(self, order: tuple[int, int], tmp_path: Path) -> None:
        """As a tool makes it that takes columns by name: each row has one of two columns."""
        parts = [
            table([row(0, policy_params={"temperature": 2.0, "user_temperature": 4.0}),
                   row(1, policy_name="uniform", policy_params=None)], version=order[0]),
            table([row(2, policy_params={"temperature": 0.5, "epsilon": 0.25})], version=order[1]),
        ]  # fmt: skip
        whole = pa.concat_tables(
            [part.replace_schema_metadata(None) for part in parts], promote_options="permissive"
        )
        assert {"policy_params", "law_params"} <= set(whole.column_names)
        pq.write_table(whole, tmp_path / "a.parquet")
        for reader in (LogReader(tmp_path), LogReader.of_tables(whole)):
            (batch,) = reader
            assert [batch.params(i) for i in range(3)] == [
                {"temperature": 2.0}, {}, {"epsilon": 0.25, "temperature": 0.5},
            ]  # fmt: skip
            assert batch.values("user_temperature") == [4.0, None, None]
            assert batch.values("law") == ["plackett_luce", "uniform", "plackett_luce"]
            assert batch.values("sampler") == ["gumbel", None, "gumbel"]
            assert [each.params for each in reader.strata] == [
                (("temperature", 0.5),), (), (("epsilon", 0.25), ("temperature", 0.5)),
            ]  # fmt: skip
            old = batch.values("policy_params")
            assert old[0]["user_temperature"] == 4.0
            np.testing.assert_array_equal(
                batch.numbers("policy_params.temperature"), [2.0, np.nan, 0.5]
            )
            assert batch.numbers("policy_params.user_temperature")[0] == 4.0

    def test_a_parameter_of_another_name_is_no_parameter(self) -> None:
        """Read without it, logs of all temperatures would be of one law."""
        good = table([row(0)], version=1)
        at = good.schema.get_field_index("policy_params")

        def of(params: dict[str, Any]) -> pa.Table:
            return good.set_column(at, "policy_params", pa.array([params]))

        for fine in ({"temperature": 0.5}, {"temperature": 0.5, "note": None}):
            (batch,) = LogReader.of_tables(of(fine))
            assert batch.params(0) == {"temperature": 0.5}
        with pytest.raises(ValueError, match=r"policy_params: expected the fields temp.*; got 'T'"):
            list(LogReader.of_tables(of({"temperature": 0.5, "T": 0.5})))

    def test_join_writes_version_2_of_both(self, tmp_path: Path) -> None:
        bare: dict[str, Any] = {"rewards": None, "reward_kind": None}
        for version in (1, 2):
            rows = [row(10 * version + i, **bare) for i in range(2)]
            pq.write_table(table(rows, version=version), tmp_path / f"{version}.parquet")
        rewards = pa.table({"request_id": ["r10", "r21"], "item_id": [3, 100],
                            "reward": [1.0, 2.0], "ts": pa.array([NOON + HOUR] * 2)})  # fmt: skip
        rewards = rewards.set_column(3, "ts", rewards["ts"].cast(pa.timestamp("us", tz="UTC")))
        pq.write_table(rewards, tmp_path / "rewards.parquet")
        join([tmp_path / "1.parquet", tmp_path / "2.parquet"], tmp_path / "rewards.parquet",
             tmp_path / "out", window="2h", as_of="2026-02-01", kind="positives")  # fmt: skip
        (file,) = (tmp_path / "out").glob("*.parquet")
        assert pq.read_schema(file).names == schema("int64").names
        assert pq.read_schema(file).metadata[b"fastrank.schema_version"] == b"2"
        rows, reader = drain(tmp_path / "out")
        assert [sum(one["rewards"]) for one in rows] == [1.0, 0.0, 0.0, 2.0]
        assert len(reader.strata) == 1

    def test_own_columns_of_version_1_under_new_names(self, tmp_path: Path) -> None:
        """They were allowed: read by those who ask, else left alone, and never half kept."""
        bare: dict[str, Any] = {"rewards": None, "reward_kind": None}
        old = table([row(0, **bare), row(1, **bare)], version=1)
        own = {"score": pa.array([[1.0, 2.0, 3.0]] * 2), "law": pa.array([7, 8]),
               "n_scored": pa.array([0.5, 1.5]), "arm": pa.array(["a", "b"])}  # fmt: skip
        for name, values in own.items():
            old = old.append_column(name, values)
        pq.write_table(old, tmp_path / "a.parquet")
        for reader in (LogReader(tmp_path), LogReader.of_tables(old)):
            (batch,) = reader
            assert reader.report.files_set_aside == {}
            assert batch.values("law") == ["plackett_luce"] * 2
            assert batch.values("score") == batch.values("n_scored") == [None, None]
            assert batch.values("arm") == ["a", "b"]
        asked = ["score", "n_scored"]
        for reader in (LogReader(tmp_path, columns=asked), LogReader.of_tables(old, columns=asked)):
            (batch,) = reader
            assert batch.columns["score"].tolist() == [[1.0, 2.0, 3.0]] * 2
            assert batch.columns["n_scored"].tolist() == [0.5, 1.5]
        with pytest.raises(ValueError, match="schema itself"):
            LogReader(tmp_path, columns=["law"])
        with LogWriter(tmp_path / "log") as log, pytest.raises(ValueError, match="rename it"):
            log.append_table(old)
        (tmp_path / "rewards.csv").write_text("request_id,item_id,reward,ts\n")
        with pytest.raises(ValueError, match=r"a.parquet: score: .*rename it"):
            join(tmp_path / "a.parquet", tmp_path / "rewards.csv", tmp_path / "out",
                 window="2h", as_of="2026-02-01", kind="positives")  # fmt: skip

    def test_a_kept_table_of_version_1_is_version_2(self, tmp_path: Path) -> None:
        with LogWriter(tmp_path) as log:
            log.append_table(table([row(0), row(1)], version=1))
        (file,) = segments(tmp_path, ".parquet")
        assert pq.read_schema(file).equals(schema("int64"))
        rows, _ = drain(tmp_path)
        assert [one["schema_version"] for one in rows] == [2, 2]
        assert rows[0]["law_params"] == [{"name": "temperature", "value": 0.5}]

    def test_a_header_alone_is_nothing_in_either_version(self, tmp_path: Path) -> None:
        for version in (1, 2):
            file = tmp_path / f"w{version}-000000.arrow"
            file.write_bytes(schema("str", version).serialize().to_pybytes())
        assert seal_abandoned(tmp_path) == 2
        assert list(tmp_path.iterdir()) == []


RULES = fr.Rules(where="price < budget")
GIVEN: dict[str, Any] = {
    "request_id_source": "header", "inference_id": "i", "traceparent": "00-a-b-01",
    "run": "2026-11-30", "experiment": "e", "arm": "b", "revision": "3", "row_weight": 10.0,
    "features_version": "f", "score": {"name": "cosine", "hash": "h", "params": "{}"},
    "rules": {"id": RULES.id, "params": '{"budget": 50}'}, "after": [1, 2],
    "n_scored": 2500, "shown_at": NOON, "seen_id": "s",
    "evaluation_log_propensities": [("new", [-1.0, -2.0, -3.0])],
}  # fmt: skip


class TestColumns:
    def test_room_for_what_comes(self, tmp_path: Path) -> None:
        """What `append` leaves null is kept, and joined, if somebody else fills it."""
        assert set(GIVEN) == set(UNREAD)
        given = table([row(0, **GIVEN), row(1)])
        save(tmp_path, RULES.id, RULES)
        with LogWriter(tmp_path) as log:
            log.append_table(given)
        rows, reader = drain(tmp_path)
        assert reader.report.set_aside == {}
        wanted = given.to_pylist()
        assert [{name: one[name] for name in UNREAD} for one in rows] == [
            {name: one[name] for name in UNREAD} for one in wanted
        ]
        # Estimates would be others without the first, lists too short without the second, and
        # propensities others without the third.
        wanted_anyway = {"row_weight", "rules", "seen_id"}
        for name in wanted_anyway:
            with pytest.raises(ValueError, match=f"omit: expected any of .* got '{name}'"):
                LogReader(tmp_path, omit=[name])
        unread = set(UNREAD) - wanted_anyway
        (batch,) = LogReader(tmp_path, omit=sorted(unread))
        assert not unread & set(batch.table.schema.names)
        assert batch.row_weights is not None
        assert batch.row_weights.tolist() == [10.0, 1.0]
        assert batch.values("run") == [None, None]

    def test_types_of_other_tools(self, tmp_path: Path) -> None:
        """Polars has large texts and lists, no maps, and loses metadata; others reorder fields."""
        params = [[{"value": 0.5, "name": "temperature"}], []]
        text, pairs = pa.large_string(), [("key", pa.large_string())]
        given = GIVEN | {"rules": None}  # a table has no files beside it
        strange = table([row(0, **given), row(1, policy_name="uniform")])
        strange = strange.replace_schema_metadata(None)
        for name, values in (
            ("law_params",
             pa.array(params, pa.large_list(pa.struct([("value", pa.float64()), ("name", text)])))),
            ("evaluation_log_propensities",
             pa.array([[{"key": "new", "value": [-1.0, -2.0, -3.0]}], None],
                      pa.large_list(pa.struct([*pairs, ("value", pa.large_list(pa.float64()))])))),
            ("after", pa.array([[1, 2], None], pa.large_list(pa.int32()))),
        ):  # fmt: skip
            strange = strange.set_column(strange.schema.get_field_index(name), name, values)
        pq.write_table(strange, tmp_path / "a.parquet")
        for reader in (LogReader(tmp_path), LogReader.of_tables(strange.slice(0, 2))):
            (batch,) = reader
            assert reader.report.files_set_aside == {}
            assert [batch.params(i) for i in range(2)] == [{"temperature": 0.5}, {}]
            found = batch.values("evaluation_log_propensities")
            assert found == [[("new", [-1.0, -2.0, -3.0])], None]
            assert batch.values("after") == [[1, 2], None]

    def test_absent_columns_are_null(self, tmp_path: Path) -> None:
        whole = table([row(0)]).drop_columns([*UNREAD, "sampler", "item_kind", "law"])
        pq.write_table(whole.replace_schema_metadata(None), tmp_path / "a.parquet")
        rows, _ = drain(tmp_path)
        assert list(rows[0]) == schema("int64").names
        assert (rows[0]["law"], rows[0]["sampler"], rows[0]["item_kind"]) == (
            "plackett_luce", "gumbel", "int64",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("entries", "reason"),
        [
            ([("temperature", None)], "policy parameter temperature"),
            ([("temperature", 1.0), ("temperature", 1.0)], "policy parameter temperature"),
            ([("m", float("inf"))], "policy parameter m"),
            ([("depth", float("inf"))], "policy parameter"),
            ([(None, 1.0)], "policy parameter"),
            ([(f"p{i}", 1.0) for i in range(40)], "policy parameter"),
        ],
    )
    def test_parameters_that_cannot_be(self, entries: Any, reason: str) -> None:
        params = [{"name": name, "value": value} for name, value in entries]
        bad = row(0, law_params=params)
        del bad["policy_params"]
        report = report_of(bad, row(1))
        assert report.set_aside == {reason: 1}
        assert report.rows_read == 2

    def test_any_parameter_in_any_order(self) -> None:
        rows = []
        for i, names in enumerate((("m", "factor"), ("factor", "m"), ("factor",))):
            params = [{"name": name, "value": float(len(name))} for name in names]
            rows.append(row(i, law="flat_tail", policy_name="flat_tail", law_params=params))
            del rows[-1]["policy_params"]
        reader = LogReader.of_tables([table(rows)])
        (batch,) = reader
        assert batch.stratum.tolist() == [0, 0, 1]
        assert reader.strata[0].params == (("factor", 6.0), ("m", 1.0))
        assert (reader.strata[0].law, reader.strata[0].policy_name) == ("flat_tail", "flat_tail")
        np.testing.assert_array_equal(batch.numbers("law_params.m"), [1.0, 1.0, np.nan])


class TestLawAndSampler:
    def log(self, folder: Path, policies: list[fr.Policy], rows: int = 60) -> LogReader:
        items = catalog()
        with LogWriter(folder) as log:
            for i in range(rows):
                policy = policies[i % len(policies)]
                ranking = items.rank(QUERY, 4, policy=policy, seed=i)
                rewards = (np.arange(4) == i % 4).astype(np.float64)
                log.append(ranking, user_id=i, query=QUERY, rewards=rewards, reward_kind="complete")
        return LogReader(folder)

    def test_samplers_of_one_law_are_one_stratum(self, tmp_path: Path) -> None:
        policies: list[fr.Policy] = [fr.PlackettLuce(0.5, sampler=each) for each in SAMPLERS]
        reader = self.log(tmp_path, policies)
        rows = [one for batch in reader for one in batch.table.to_pylist()]
        assert [one["sampler"] for one in rows[:4]] == list(SAMPLERS)
        assert {one["law"] for one in rows} == {"plackett_luce"}
        assert [one["policy_name"] for one in rows[:4]] == [p.inference_type for p in policies]
        (stratum,) = reader.strata
        assert (stratum.law, stratum.params) == ("plackett_luce", (("temperature", 0.5),))
        assert stratum.policy_name == policies[0].inference_type
        items = catalog()
        found = ope.evaluate(reader, [ope.ByModel("x", fr.PlackettLuce(0.6), items)],
                             logging=[items])  # fmt: skip
        assert [each.rows for each in found.strata] == [60]
        audit = ope.audit(reader, [items])
        assert audit.passed
        page = render([Section("log", found, audit)])
        assert "plackett_luce, temperature 0.5" in page
        assert "stochastic_plackett_luce" not in page

    def test_another_head_is_another_stratum(self, tmp_path: Path) -> None:
        policies: list[fr.Policy] = [
            fr.BestFirst(head, fr.PlackettLuce(0.5, sampler=sampler))
            for head in (1, 2) for sampler in SAMPLERS
        ]  # fmt: skip
        reader = self.log(tmp_path, [*policies, fr.PlackettLuce(0.5)], rows=18)
        (batch,) = reader
        assert [each.params for each in reader.strata] == [
            (("head", 1.0), ("temperature", 0.5)),
            (("head", 2.0), ("temperature", 0.5)),
            (("temperature", 0.5),),
        ]
        assert {each.law for each in reader.strata} == {"plackett_luce"}
        assert batch.stratum.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2] * 2
        assert [logging_policy(batch, i) for i in range(9)] == [*policies, fr.PlackettLuce(0.5)]
        assert ope.audit(reader, [catalog()]).passed

    def test_laws_of_other_policies(self, tmp_path: Path) -> None:
        policies: list[fr.Policy] = [fr.EpsilonGreedy(0.5), fr.Uniform(), fr.Deterministic()]
        rows = [one for batch in self.log(tmp_path, policies, 3) for one in batch.table.to_pylist()]
        assert [(one["law"], one["sampler"], one["law_params"]) for one in rows] == [
            ("epsilon_greedy", None, [{"name": "epsilon", "value": 0.5}]),
            ("uniform", None, []),
            ("deterministic", None, []),
        ]

    def test_anybodys_policy(self, tmp_path: Path) -> None:
        """All of its parameters are in the row; what could not be read back is refused."""

        class Tempered(fr.Policy):
            inference_type = "tempered"
            sampler = "by_hand"

            def __init__(self, params: dict[str, Any]) -> None:
                self.given = params

            @property
            def params(self) -> dict[str, float]:
                return self.given

        drawn = catalog().rank(QUERY, 3, policy=fr.Uniform(), seed=1)
        with LogWriter(tmp_path) as log:
            log.append(replace(drawn, policy=Tempered({"m": np.float32(2.5), "factor": 3})))
            many = {f"p{i}": 1.0 for i in range(40)}
            for params in ({"m": np.nan}, {"m": "2"}, {"m": True}, {"\ud800": 1.0}, many):
                with pytest.raises(ValueError, match=r"ranking: .*policy"):
                    log.append(replace(drawn, policy=Tempered(params)))
        (logged,), reader = drain(tmp_path)
        assert (logged["law"], logged["sampler"]) == ("tempered", "by_hand")
        assert reader.strata[0].params == (("factor", 3.0), ("m", 2.5))

    def test_strata_are_told_apart_by_law(self) -> None:
        gumbel, cached, uniform = (
            Stratum(name, (), None, None, False)
            for name in ("stochastic_gumbel_softmax_trick", "stochastic_plackett_luce_cached",
                         "uniform")
        )  # fmt: skip
        assert gumbel == cached != uniform
        assert len({gumbel, cached, uniform}) == 2
        assert Stratum("bts", (), None, None, False).law == "bts"
