"""Other logs in this schema: what they say is kept, and what they lack is not made up."""

from __future__ import annotations

import base64
import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from logs import catalog, drain

import fastrank as fr
from fastrank import obd
from fastrank.eventlog import (
    LogBatch,
    LogReader,
    LogWriter,
    Stratum,
    from_data_capture,
    from_obd,
    schema,
)
from fastrank.eventlog.capture import DataCapture
from fastrank.eventlog.obdlog import items_of_obd
from fastrank.rules import AppliedRules

SOURCE = Path(__file__).resolve().parents[2] / "shared" / "data" / "obd"
needs_source = pytest.mark.skipif(
    not SOURCE.is_dir(), reason=f"the source files of the bundled data are not at {SOURCE}"
)


def one_batch(tables: Any, **options: Any) -> tuple[LogBatch, LogReader]:
    reader = LogReader.of_tables(tables, **options)
    (batch,) = reader
    return batch, reader


def published(path: Path, more: dict[str, list[Any]]) -> Path:
    """Three rows of the Open Bandit Dataset, with more columns, as .csv or .parquet."""
    columns: dict[str, Any] = {
        "timestamp": [f"2019-11-24 00:00:0{i}+00:00" for i in range(3)],
        "item_id": [3, 0, 33],
        "position": [1, 2, 3],
        "click": [1, 0, 0],
        "propensity_score": [0.25] * 3,
        **{f"user_feature_{j}": ["a", "b", "c"] for j in range(4)},
        **more,
    }
    path.parent.mkdir(exist_ok=True)
    table = pa.table(columns)
    if path.suffix == ".csv":
        pacsv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


class TestOpenBanditDataset:
    @pytest.mark.parametrize("campaign", ["all", "men"])
    @pytest.mark.parametrize("policy", ["random", "bts"])
    def test_bundled_logs(self, campaign: obd.Campaign, policy: obd.LoggingPolicy) -> None:
        log = obd.log(campaign, policy)
        batch, reader = one_batch(from_obd(campaign, policy), columns=["position"])
        assert reader.report.set_aside == {}
        assert batch.table.schema.equals(schema("int64"))
        np.testing.assert_array_equal(batch.item_ids[:, 0], log.item_id)
        np.testing.assert_array_equal(batch.columns["position"], log.position)
        np.testing.assert_array_equal(batch.rewards[:, 0], log.click)
        np.testing.assert_array_equal(batch.log_propensities[:, 0], np.log(log.propensity))
        assert batch.lengths.tolist() == [1] * 10_000
        assert batch.observed.all()
        assert set(batch.n_eligible.tolist()) == {len(obd.items(campaign).item_ids)}
        times = batch.table["ts"].to_numpy(zero_copy_only=False)
        np.testing.assert_array_equal(times, log.timestamp)
        ids = batch.table["request_id"].to_pylist()
        assert ids == [f"{campaign}-{policy}-{row}" for row in range(10_000)]
        # Users are the segments: one hash each.
        assert len(np.unique(batch.user_hash)) == len(np.unique(log.user))
        assert batch.user_ids[17] == "-".join(log.user_features[17])
        name = "uniform" if policy == "random" else "bts"
        assert reader.strata == [Stratum(name, (), None, None, False)]

    def test_obps_figures_come_out(self) -> None:
        """random -> bts on campaign all: 0.00455288, self-normalised 0.0047758, ESS 1639.5."""
        batch, _ = one_batch(from_obd("all", "random"), columns=["position"])
        law = obd.action_distribution("all")
        chosen = law[batch.item_ids[:, 0], batch.columns["position"].astype(int) - 1]
        weight = chosen / np.exp(batch.log_propensities[:, 0])
        rewards = batch.rewards[:, 0]
        assert np.mean(weight * rewards) == pytest.approx(0.00455288, abs=5e-9)
        assert np.sum(weight * rewards) / weight.sum() == pytest.approx(0.0047758330812, rel=1e-9)
        assert weight.sum() ** 2 / (weight**2).sum() == pytest.approx(1639.50187, abs=1e-5)

    @pytest.mark.sampled
    @needs_source
    @pytest.mark.parametrize("campaign", ["all", "men"])
    @pytest.mark.parametrize("policy", ["random", "bts"])
    @pytest.mark.parametrize("form", ["parquet", "csv"])
    def test_published_files_give_the_same(
        self, campaign: obd.Campaign, policy: obd.LoggingPolicy, form: str, tmp_path: Path
    ) -> None:
        path = SOURCE / f"{policy}_{campaign}.parquet"
        if form == "csv":  # as published: an index without a name, times with an offset
            source = pq.read_table(path)
            path = tmp_path / policy / campaign / f"{campaign}.csv"
            path.parent.mkdir(parents=True)
            with path.open("w", newline="") as lines:
                out = csv.writer(lines)
                out.writerow(["", *source.column_names])
                columns = [column.to_pylist() for column in source.columns]
                for row, values in enumerate(zip(*columns, strict=True)):
                    out.writerow([row, *values])
        bundled = pa.concat_tables(from_obd(campaign, policy))
        published = pa.concat_tables(from_obd(path))
        assert published.equals(bundled)

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="policy: state which log of the campaign"):
            from_obd("all")
        with pytest.raises(ValueError, match="policy: expected one of random, bts; got 'ts'"):
            from_obd("all", "ts")
        with pytest.raises(ValueError, match="women: neither a campaign"):
            from_obd("women", "bts")
        path = tmp_path / "clicks.csv"
        path.write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"policy: .*clicks.csv does not say"):
            from_obd(path)
        with pytest.raises(ValueError, match=r"clicks.csv: not a log of the dataset.*timestamp"):
            list(from_obd(path, "bts"))
        head = "timestamp,item_id,position,click,propensity_score," + ",".join(
            f"user_feature_{j}" for j in range(4)
        )
        path.write_text(f"{head}\n2019-11-24 00:00:00+00:00,x,1,0,0.5,a,b,c,d\n")
        with pytest.raises(ValueError, match=r"clicks.csv: .*item_id|clicks.csv: .*int64"):
            list(from_obd(path, "bts"))
        path.write_text(f"{head}\nyesterday,3,1,0,0.5,a,b,c,d\n")
        with pytest.raises(ValueError, match=r"clicks.csv: timestamp"):
            list(from_obd(path, "bts"))
        parquet = tmp_path / "random.parquet"
        parquet.write_bytes(b"PAR1")
        with pytest.raises(ValueError, match=r"random.parquet"):
            list(from_obd(parquet))

    def test_impossible_propensities_are_set_aside_not_mended(self, tmp_path: Path) -> None:
        head = "timestamp,item_id,position,click,propensity_score," + ",".join(
            f"user_feature_{j}" for j in range(4)
        )
        values = ("0.5", "0", "1.5", "-1", "", "nan")
        lines = [head, *(f"2019-11-24 00:00:00+00:00,3,1,0,{value},a,b,c,d" for value in values)]
        path = tmp_path / "bts_men.csv"
        path.write_text("\n".join(lines))
        batch, reader = one_batch(from_obd(path))
        assert len(batch) == 1
        assert batch.n_eligible.tolist() == [-1]  # the file does not say how many there were
        assert reader.report.set_aside == {
            "log-propensity not finite": 4,
            "positive log-propensity": 1,
        }

    @pytest.mark.parametrize("form", ["csv", "parquet"])
    def test_further_columns_are_carried(self, form: str, tmp_path: Path) -> None:
        path = published(
            tmp_path / f"random_men.{form}",
            {"a": [-0.5, None, -math.inf], "b": [0, -1, -2], "words": ["x", "y", "z"]},
        )
        batch, reader = one_batch(
            from_obd(path, columns=["b", "a", "propensity_score"]),
            columns=["a", "b", "propensity_score", "position"],
        )
        assert reader.report.set_aside == {}
        np.testing.assert_array_equal(batch.columns["a"], [[-0.5], [np.nan], [-np.inf]])
        np.testing.assert_array_equal(batch.columns["b"], [[0.0], [-1.0], [-2.0]])
        np.testing.assert_array_equal(batch.columns["propensity_score"], [[0.25], [0.25], [0.25]])
        assert batch.columns["position"].shape == (3,)
        without, _ = one_batch(from_obd(path))
        assert without.table.equals(batch.table)
        for name, message in (
            ("c", r"random_men.*: no column named c; found a, b, words"),
            (["c", "a", "d"], r"random_men.*: no column named c, d; found a, b, words"),
            ("words", r"random_men.*: .*(number a row, got string|double: invalid value 'x')"),
            ("timestamp", r"random_men.*: timestamp: expected a number a row, got string"),
            ("item_ids", "columns: item_ids is a column of the schema itself"),
            ("position", "columns: position is always read"),
        ):
            with pytest.raises(ValueError, match=message):
                list(from_obd(path, columns=[name] if isinstance(name, str) else name))
        with pytest.raises(ValueError, match="columns: the bundled logs have no column a"):
            from_obd("men", "bts", columns=["a"])

    @pytest.mark.parametrize("form", ["csv", "parquet"])
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("click", [0, 1, -1]),
            ("item_id", [1, 2, -1]),
            ("position", [1, 2, 0]),
            ("position", [1, 2, 7]),
        ],
    )
    def test_values_that_the_dataset_cannot_hold(
        self, form: str, name: str, values: list[int], tmp_path: Path
    ) -> None:
        path = published(tmp_path / f"random_men.{form}", {name: values})
        with pytest.raises(ValueError, match=rf"random_men.{form}: row 2: {name}: .*{values[2]}"):
            list(from_obd(path))

    @pytest.mark.parametrize("zone", ["Z", "+00:00", ""])
    def test_times_in_nanoseconds(self, zone: str, tmp_path: Path) -> None:
        """As pyarrow writes the times of a Parquet file to CSV."""
        times = [f"2019-11-26 12:30:39.65195{i}789{zone}" for i in range(3)]
        table = next(from_obd(published(tmp_path / "random_men.csv", {"timestamp": times})))
        micros = [time.microsecond for time in table["ts"].to_pylist()]
        assert micros == [651950, 651951, 651952]

    def test_how_many_items_a_campaign_has(self, tmp_path: Path) -> None:
        assert items_of_obd(published(tmp_path / "bts_men.csv", {})) == 34
        assert items_of_obd(published(tmp_path / "all" / "x.parquet", {})) == 80
        affinity: dict[str, list[Any]] = {f"user-item_affinity_{j}": [0] * 3 for j in range(46)}
        for form in ("csv", "parquet"):
            assert items_of_obd(published(tmp_path / f"women.{form}", affinity)) == 46
        with pytest.raises(
            ValueError, match=r"mine.csv: the number of items .* does not name all or"
        ):
            items_of_obd(published(tmp_path / "mine.csv", {}))
        with pytest.raises(ValueError, match="men: neither a campaign"):
            items_of_obd("men")

    def test_kept_in_a_log(self, tmp_path: Path) -> None:
        with LogWriter(tmp_path) as log:
            for table in from_obd("men", "bts"):
                log.append_table(table)
        reader = LogReader(tmp_path, columns=["position"])
        clicks = sum(float(batch.rewards.sum()) for batch in reader)
        assert clicks == 69
        assert reader.report.rows_read == 10_000
        assert reader.report.set_aside == {}


def response(ranking: fr.Ranking, request_id: str, **changes: Any) -> dict[str, Any]:
    """What the service answers: the log row without rewards; of an older one, without item_kind."""
    return {
        "request_id": request_id,
        "item_ids": ranking.item_ids.tolist(),
        "scores": ranking.scores.tolist(),
        "log_propensities": ranking.log_propensities.tolist(),
        "log_propensity": ranking.log_propensity,
        "log_norm": ranking.log_norm if len(ranking) else None,  # JSON has no infinity
        "propensity_kind": ranking.propensity_kind,
        "log_norm_error": ranking.log_norm_error,
        "k": 4,
        "policy": {"name": ranking.policy.inference_type, "params": ranking.policy.params},
        "seed": ranking.seed,
        "seed_source": "server",
        "rng_version": 1,
        "n_eligible": ranking.n_eligible,
        "model_version": "m",
        "catalog_version": ranking.catalog_version,
        "is_fallback": False,
    } | changes


def side(mode: str, body: Any, encoding: str = "JSON") -> dict[str, Any]:
    text = json.dumps(body)
    data = base64.b64encode(text.encode()).decode() if encoding == "BASE64" else text
    return {
        "observedContentType": "application/json",
        "mode": mode,
        "data": data,
        "encoding": encoding,
    }


def capture(
    request: Any, answer: Any, event: str | None, encoding: str = "JSON", **metadata: Any
) -> dict[str, Any]:
    sides = {}
    if request is not None:
        sides["endpointInput"] = side("INPUT", request, encoding)
    if answer is not None:
        sides["endpointOutput"] = side("OUTPUT", answer, encoding)
    times = {"inferenceTime": "2026-01-01T12:00:00Z"}
    ids = {} if event is None else {"eventId": event}
    return {"captureData": sides, "eventMetadata": ids | times | metadata, "eventVersion": "0"}


def write(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


QUERY = [1.0, -0.5, 0.25, 2.0]


class TestDataCapture:
    def ranking(self, seed: int = 1, text: bool = False, **filters: Any) -> fr.Ranking:
        policy = fr.PlackettLuce(0.5)
        return catalog(text=text).rank(QUERY, 4, policy=policy, seed=seed, **filters)

    @pytest.mark.parametrize("encoding", ["JSON", "BASE64"])
    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("text", [False, True])
    def test_input_and_output_make_the_row(
        self, encoding: str, apart: bool, text: bool, tmp_path: Path
    ) -> None:
        """Filters and query come from the input: propensities can be computed again from both."""
        items = catalog(text=text)
        exclude = items.item_ids[[3, 5]].tolist()
        allow = items.item_ids[:20].tolist()
        bigger = self.ranking(2**64 - 1, text, exclude=exclude, allow=allow)
        request = {"query": QUERY, "k": 4, "exclude": exclude, "allow": allow}
        answer = response(bigger, "r1")
        if apart:
            lines = [
                capture(None, answer, "e1", encoding),
                capture({"user_id": "u"}, None, "e2", encoding),
                capture(request, None, "e1", encoding),
                capture(None, response(self.ranking(2, text), "r2", user_id="u"), "e2", encoding),
            ]
        else:
            lines = [
                capture(request, answer, "e1", encoding),
                capture({"user_id": "u"}, response(self.ranking(2, text), "r2"), "e2", encoding),
            ]
        tables = from_data_capture(write(tmp_path / "a.jsonl", *lines))
        batch, reader = one_batch(tables)
        assert reader.report.set_aside == {}
        assert len(batch) == 2
        assert batch.table["request_id"].to_pylist() == ["r1", "r2"]
        assert batch.table["seed"].to_pylist() == [2**64 - 1, 2]
        assert batch.user_ids == [None, "u"]
        logged, excluded, allowed = batch.query(0), batch.exclude(0), batch.allow(0)
        assert logged is not None
        assert excluded is not None
        assert allowed is not None
        assert batch.exclude(1) is None
        again = items.log_propensities(
            logged, batch.item_ids[0], policy=bigger.policy, exclude=excluded, allow=allowed
        )
        np.testing.assert_allclose(again, batch.log_propensities[0], atol=1e-9)
        name = "stochastic_gumbel_softmax_trick"
        version = items.version
        assert reader.strata == [Stratum(name, (("temperature", 0.5),), "m", version, False)]

    def test_any_parameter_is_kept(self, tmp_path: Path) -> None:
        """Without one it would be another law when propensities are computed again."""
        policy = {"name": "nucleus", "params": {"p": 0.5, "temperature": 2.0, "m": 3}}
        answer = response(self.ranking(), "r1", policy=policy)
        batch, reader = one_batch(
            from_data_capture(write(tmp_path / "a.jsonl", capture({}, answer, "e1")))
        )
        assert batch.params(0) == {"m": 3.0, "p": 0.5, "temperature": 2.0}
        assert reader.strata[0].params == (("m", 3.0), ("p", 0.5), ("temperature", 2.0))

    def test_errors_are_no_rankings(self, tmp_path: Path) -> None:
        lines = [
            capture({"user_id": "x"}, {"error": {"code": 404, "message": "no such user"}}, "e1"),
            capture({"user_id": "u"}, response(self.ranking(), "r"), "e2"),
        ]
        tables = from_data_capture(write(tmp_path / "a.jsonl", *lines))
        batch, reader = one_batch(tables)
        assert len(batch) == 1
        assert tables.error_responses == 1
        assert reader.report.rows_read == 1
        assert reader.report.set_aside == {}

    def test_what_was_refused_is_no_row_whatever_it_was(self, tmp_path: Path) -> None:
        bad = capture({}, {"error": {"code": "malformed_json"}}, "e1")
        bad["captureData"]["endpointInput"]["data"] = "{not JSON"
        good = capture({"user_id": "u"}, response(self.ranking(), "r"), "e2")
        tables = from_data_capture(write(tmp_path / "a.jsonl", bad, good))
        _, reader = one_batch(tables)
        assert tables.error_responses == 1
        assert reader.report.set_aside == {}

    @pytest.mark.parametrize("stated", [False, True])
    @pytest.mark.parametrize("text", [False, True])
    def test_empty_rankings_may_come_first(
        self, stated: bool, text: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More of them than a table has rows, and a row that is wrong does not speak for others."""
        monkeypatch.setattr("fastrank.eventlog.capture._TABLE_ROWS", 3)
        kind = {"item_kind": "str" if text else "int64"} if stated else {}
        allow: list[Any] = ["sold out"] if text else ["7", 8]
        lines = [
            capture(
                {"user_id": "u", "allow": allow},
                response(self.ranking(i, text, allow=[]), f"r{i}", **kind),
                f"e{i}",
            )
            for i in range(7)
        ]
        wrong = {"item_ids": [1, 2, 3, 4] if text else ["a", "b", "c", "d"], "seed": -1}
        lines.append(capture({}, response(self.ranking(), "w", **wrong), "w"))
        lines += [
            capture({}, response(self.ranking(i, text), f"r{i}", **kind), f"e{i}")
            for i in range(7, 10)
        ]
        reader = LogReader.of_tables(from_data_capture(write(tmp_path / "a.jsonl", *lines)))
        rows = [row for batch in reader for row in batch.table.to_pylist()]
        assert [row["request_id"] for row in rows] == [f"r{i}" for i in range(10)]
        assert reader.kind == ("str" if text else "int64")
        assert rows[0]["allow"] == (allow if text else [7, 8])
        assert reader.report.set_aside == {"capture not understood": 1}
        ((_, line, detail),) = reader.report.places["capture not understood"]
        assert (line, detail) == (7, "seed: out of range, got -1")

    @pytest.mark.parametrize(
        ("allow", "kind"), [(["x"], "str"), (["7", 8], "int64"), ([], "int64")]
    )
    def test_filters_tell_where_all_rankings_are_empty(
        self, allow: list[Any], kind: str, tmp_path: Path
    ) -> None:
        lines = [
            capture({"allow": each}, response(self.ranking(i, allow=[]), f"r{i}"), f"e{i}")
            for i, each in enumerate(([], allow))
        ]
        batch, reader = one_batch(from_data_capture(write(tmp_path / "a.jsonl", *lines)))
        assert len(batch) == 2
        assert (reader.kind, reader.report.set_aside) == (kind, {})

    def test_a_batch_of_lines(self, tmp_path: Path) -> None:
        def lines(asked: str, answers: str, event: str) -> dict[str, Any]:
            def part(mode: str, data: str) -> dict[str, str]:
                kind = "Application/JSONLines; charset=utf-8"
                shown = base64.b64encode(data.encode()).decode()
                return {
                    "observedContentType": kind, "mode": mode, "data": shown, "encoding": "BASE64",
                }  # fmt: skip

            whole = {
                "endpointInput": part("INPUT", asked),
                "endpointOutput": part("OUTPUT", answers),
            }
            metadata = {
                "eventId": event,
                "inferenceId": "i",
                "inferenceTime": "2026-01-01T00:00:00Z",
            }
            return {"captureData": whole, "eventMetadata": metadata}

        good = json.dumps(response(self.ranking(), "r1"))
        error = '{"error": {"code": "malformed_json"}}'
        path = write(
            tmp_path / "a.jsonl",
            lines(
                '{"exclude": ["5"]}\n{\n{"exclude": ["x"]}\n', f"{good}\n{error}\n{good}\n", "e1"
            ),
            lines("{}\n{}", good, "e2"),
            lines("{}\n{}", '{"error": {"code": "too_many_lines"}}', "e3"),
        )
        tables = from_data_capture(path)
        batch, reader = one_batch(tables)
        assert batch.table["exclude"].to_pylist() == [[5]]
        assert tables.error_responses == 2
        assert [place[1:] for place in reader.report.places["capture not understood"]] == [
            (0, "line 2: exclude: row 0: the ids here are integers of 64 bits, written as in 0, 42"
             " or -7; got 'x'"),
            (1, "data: 2 lines were requested, and 1 answered"),
        ]  # fmt: skip

    def test_halves_without_the_other_are_named(self, tmp_path: Path) -> None:
        lines = [
            capture({"user_id": "u"}, None, "e1"),
            capture(None, response(self.ranking(), "r"), "e2"),
            capture({"user_id": "u"}, response(self.ranking(2), "s"), "e3"),
        ]
        path = write(tmp_path / "a.jsonl", *lines)
        tables = from_data_capture(path)
        batch, reader = one_batch(tables)
        assert len(batch) == 1
        assert reader.report.set_aside == {"no captured output": 1, "no captured input": 1}
        assert reader.report.places["no captured input"] == [(str(path), 1, "")]
        assert reader.report.malformed_share == pytest.approx(2 / 3)

    def test_the_inference_id_joins_where_there_is_no_event(self, tmp_path: Path) -> None:
        answer = response(self.ranking(), "")
        lines = [
            capture({"user_id": "u"}, None, None, inferenceId="i1"),
            capture(None, answer, None, inferenceId="i1"),
            # Callers may use an inference id twice; the event is the endpoint's own.
            capture({"user_id": "a"}, None, "e1", inferenceId="i2"),
            capture({"user_id": "b"}, None, "e2", inferenceId="i2"),
            capture(None, response(self.ranking(2), "r2"), "e2", inferenceId="i2"),
            capture(None, response(self.ranking(3), "r1"), "e1", inferenceId="i2"),
        ]
        batch, reader = one_batch(from_data_capture(write(tmp_path / "a.jsonl", *lines)))
        assert reader.report.set_aside == {}
        assert batch.table["request_id"].to_pylist() == ["i1", "r2", "r1"]
        assert batch.user_ids == ["u", "b", "a"]

    def test_gateway_parameters(self, tmp_path: Path) -> None:
        request = {
            "gateway": {"user_id": "O%27Brien", "exclude": "101%2C102", "allow": "", "k": "4"}
        }
        line = capture(request, response(self.ranking(exclude=[101, 102]), "r"), "e1")
        batch, _ = one_batch(from_data_capture(write(tmp_path / "a.jsonl", line)))
        excluded = batch.exclude(0)
        assert batch.user_ids == ["O'Brien"]
        assert excluded is not None
        assert excluded.tolist() == [101, 102]
        assert batch.allow(0) is None

    @pytest.mark.parametrize(
        ("message", "line"),
        [
            ("not JSON", "{"),
            ("not JSON: NaN is not JSON", '{"a": NaN}'),
            ("the line: expected an object, got 3", 3),
            ("captureData: expected an object", {}),
            ("neither endpointInput nor endpointOutput", {"captureData": {}}),
            ("neither eventId nor inferenceId", capture({}, None, None)),
            ("eventId: expected text, got 5", capture({}, {}, None, eventId=5)),
            ("item_ids: expected a list, got None", capture({}, {}, "e")),
            ("data: expected an object, got", capture({}, [1], "e")),
            ("the body: Expected `object`, got `array`", capture([1], {}, "e")),
            ("shape: not a field of a request", capture({"shape": 1}, {}, "e")),
            (
                "k: given more than once",
                {
                    "captureData": {
                        "endpointInput": {"data": '{"k": 1, "k": 2}'},
                        "endpointOutput": {"data": "{}"},
                    }
                },
            ),
            (
                "data: not base64",
                capture({}, {}, "e")
                | {
                    "captureData": {
                        "endpointInput": {"data": "?", "encoding": "BASE64"},
                        "endpointOutput": {"data": ""},
                    }
                },
            ),
            ("policy: expected an object", capture({}, {"item_ids": []}, "e")),
        ],
    )
    def test_lines_that_cannot_be_understood(self, message: str, line: Any, tmp_path: Path) -> None:
        good = capture({"user_id": "u"}, response(self.ranking(), "r"), "e1")
        path = write(tmp_path / "a.jsonl", good, line)
        batch, reader = one_batch(from_data_capture(path))
        assert len(batch) == 1
        assert reader.report.set_aside == {"capture not understood": 1}
        ((file, row, detail),) = reader.report.places["capture not understood"]
        assert (file, row) == (str(path), 1)
        assert message in detail

    @pytest.mark.parametrize(
        ("message", "changes"),
        [
            ("seed: out of range", {"seed": 2**64}),
            ("seed: expected an integer, got 1.5", {"seed": 1.5}),
            ("k: expected an integer", {"k": "10"}),
            ("is_fallback: expected true or false, got 0", {"is_fallback": 0}),
            ("item_ids: expected an integer, got 1.5", {"item_ids": [1.5, 2, 3, 4]}),
            ("item_ids: expected text", {"item_ids": ["a", 2, 3, 4]}),
            ("item_ids: those before are int64, got str", {"item_ids": ["a", "b", "c", "d"]}),
            ("item_ids: those before are int64, got str", {"item_ids": [], "item_kind": "str"}),
            ("item_ids: expected an integer, got 'a'", {"item_ids": ["a"], "item_kind": "int64"}),
            ("item_kind: expected one of int64, str; got 'uuid'", {"item_kind": "uuid"}),
            ("log_propensities: expected a list", {"log_propensities": "none"}),
            ("log_propensity: expected a number", {"log_propensity": "-1"}),
            ("nucleus: expected a number", {"policy": {"name": "p", "params": {"nucleus": "1"}}}),
            (
                "temperature: expected a number",
                {"policy": {"name": "p", "params": {"temperature": "1"}}},
            ),
            ("time: expected ISO 8601", {"ts": "noon"}),
            ("time: says no time zone", {"ts": "2026-01-01T12:00:00"}),
            ("model_version: expected text", {"model_version": 7}),
            ("filter_id: exclude: expected text, got 5", {"filter_id": {"exclude": 5}}),
            ("filter_id: allow: not text that UTF-8", {"filter_id": {"allow": "\ud800"}}),
        ],
    )
    def test_answers_of_wrong_types(
        self, message: str, changes: dict[str, Any], tmp_path: Path
    ) -> None:
        lines = [
            capture({}, response(self.ranking(), "r1"), "e1"),
            capture({}, response(self.ranking(2), "r2", **changes), "e2"),
        ]
        batch, reader = one_batch(from_data_capture(write(tmp_path / "a.jsonl", *lines)))
        assert len(batch) == 1
        ((_, _, detail),) = reader.report.places["capture not understood"]
        assert message in detail

    def test_any_depth_is_set_aside(self, tmp_path: Path) -> None:
        """Also one that a parser takes and what writes the error does not."""
        good = json.dumps(response(self.ranking(), "r"))
        limit = sys.getrecursionlimit()
        lines: list[dict[str, Any]] = []
        for depth in range(limit - 150, limit + 10):
            deep = '{"a":' * depth + "1" + "}" * depth
            sides = [(f'{{"exclude": {deep}}}', good), ("{}", f'{{"item_ids": {deep}}}')]
            for asked, answer in sides:
                lines.append(capture({}, {}, f"e{len(lines)}"))
                lines[-1]["captureData"] = {
                    "endpointInput": {"data": asked}, "endpointOutput": {"data": answer},
                }  # fmt: skip
        texts = [json.dumps(line) for line in lines]
        texts += [text.replace(json.dumps("{}"), deep[:-1] + ', "k": 1}') for text in texts[1::2]]
        tables = from_data_capture(write(tmp_path / "a.jsonl", *texts))
        assert list(tables) == []
        assert tables.read_report.set_aside == {"capture not understood": len(texts)}

    def test_wrong_filters_in_the_input(self, tmp_path: Path) -> None:
        """A filter that is not understood must not become no filter."""
        lines = [
            capture({"exclude": exclude}, response(self.ranking(i), f"r{i}"), f"e{i}")
            for i, exclude in enumerate(["101", [1.5], {"a": 1}, [None], [101], ["102"]])
        ]
        batch, reader = one_batch(from_data_capture(write(tmp_path / "a.jsonl", *lines)))
        assert batch.table["exclude"].to_pylist() == [[101], [102]]
        assert reader.report.set_aside == {"capture not understood": 4}

    def test_the_same_half_twice(self, tmp_path: Path) -> None:
        lines = [
            capture({"user_id": "u"}, None, "e1"),
            capture({"user_id": "v"}, None, "e1"),
            capture(None, response(self.ranking(), "r"), "e1"),
        ]
        batch, reader = one_batch(from_data_capture(write(tmp_path / "a.jsonl", *lines)))
        assert batch.user_ids == ["u"]
        assert reader.report.set_aside == {"capture not understood": 1}

    def test_rows_are_judged_like_any_other(self, tmp_path: Path) -> None:
        lines = [
            capture({}, response(self.ranking(), "r1", log_propensity=-1.0), "e1"),
            capture({}, response(self.ranking(2), "r2"), "e2"),
            capture({}, response(self.ranking(3), "r2"), "e3"),
        ]
        batch, reader = one_batch(from_data_capture(write(tmp_path / "a.jsonl", *lines)))
        assert len(batch) == 1
        assert reader.report.set_aside == {
            "sum of log-propensities": 1, "duplicate request id": 1,
        }  # fmt: skip

    def test_folders_as_sagemaker_lays_them_out(self, tmp_path: Path) -> None:
        for hour in range(3):
            lines = [
                capture({"user_id": "u"}, response(self.ranking(i), f"{hour}-{i}"), f"{hour}-{i}")
                for i in range(4)
            ]
            write(tmp_path / "2026/01/01" / f"{hour:02d}" / "x.jsonl", *lines, "")
        tables = from_data_capture(tmp_path)
        for _ in range(2):  # it can be read again
            assert sum(len(table) for table in tables) == 12
        assert sum(map(len, LogReader.of_tables(tables))) == 12
        with pytest.raises(ValueError, match="no such file"):
            DataCapture(tmp_path / "nowhere")
        with pytest.raises(ValueError, match="none given"):
            DataCapture([])

    def test_only_errors_is_an_empty_log(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", capture({}, {"error": {}}, "e"))
        reader = LogReader.of_tables(from_data_capture(path))
        assert list(reader) == []
        assert reader.report.rows_read == 0

    def test_kept_in_a_log(self, tmp_path: Path) -> None:
        request = {"query": QUERY, "exclude": [101]}
        line = capture(request, response(self.ranking(exclude=[101]), "r"), "e1")
        with LogWriter(tmp_path / "log") as log:
            for table in from_data_capture(write(tmp_path / "a.jsonl", line)):
                log.append_table(table)
        rows, reader = drain(tmp_path / "log")
        assert reader.report.set_aside == {}
        assert rows[0]["exclude"] == [101]
        assert rows[0]["query"] == QUERY
        assert math.isclose(sum(rows[0]["log_propensities"]), rows[0]["log_propensity"])

    def test_kept_with_its_rules(self, tmp_path: Path) -> None:
        rules = fr.Rules(pin={2: 105})
        answer = response(self.ranking(rules=rules), "r", rules={"id": rules.id, "params": {}})
        line = capture({"query": QUERY, "rules": {"pin": {"2": 105}}}, answer, "e1")
        source = from_data_capture(write(tmp_path / "a.jsonl", line))
        with LogWriter(tmp_path / "log") as log:
            for table in source:
                with pytest.raises(ValueError, match=r"rules: .* not those of the id 'other'"):
                    log.append_table(table, {"other": rules})
                log.append_table(table, source.rules)
        (batch,) = LogReader(tmp_path / "log")
        assert batch.rules(0) == AppliedRules(rules, {})
