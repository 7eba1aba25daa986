"""Log-propensities under further policies, as rows have them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa

import fastrank as fr
from fastrank import ope
from fastrank.eventlog import LogReader, LogWriter, from_data_capture

CATALOG = fr.Catalog([1, 2, 3, 4], [[1.0], [0.5], [0.2], [0.1]])
COLUMN = "evaluation_log_propensities"
WARM = fr.PlackettLuce(0.8)


def ranked(seed: int, k: int = 2) -> fr.Ranking:
    return CATALOG.rank([1.0], k, policy=fr.PlackettLuce(0.5), seed=seed)


def judged(ranking: fr.Ranking) -> dict[str, Any]:
    return {
        "warm": CATALOG.log_propensities([1.0], ranking.item_ids, policy=WARM),
        "best": CATALOG.log_propensities([1.0], ranking.item_ids, policy=fr.Deterministic()),
    }


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    rankings = [ranked(seed, k) for seed, k in ((1, 2), (2, 3), (3, 1), (4, 2))]
    with LogWriter(tmp_path) as log:
        for j, each in enumerate(rankings):
            said = None if j == 2 else judged(each)
            displayed = 1 if j == 1 else None
            log.append(each, query=[1.0], evaluation_log_propensities=said, displayed=displayed)
    (batch,) = LogReader(tmp_path)
    assert batch.evaluated_names == ["best", "warm"]
    expected = np.zeros((4, 3))
    for j, each in enumerate(rankings):
        shown = 1 if j == 1 else len(each.item_ids)
        expected[j, :shown] = np.nan if j == 2 else judged(each)["warm"][:shown]
    np.testing.assert_array_equal(batch.evaluated("warm"), expected)
    assert np.isneginf(batch.evaluated("best")).any()
    assert np.isnan(batch.evaluated("cold")[:, 0]).all()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([1.0], f"{COLUMN}: expected a mapping"),
        ({"": [-1.0, -1.0]}, f"{COLUMN}: a name must not be empty"),
        ({7: [-1.0, -1.0]}, f"{COLUMN}: expected a str, got 7"),
        ({"a": [-1.0]}, f"{COLUMN}: a: expected shape (2,), one for each item, got (1,)"),
        ({"a": [[-1.0, -1.0]]}, f"{COLUMN}: a: expected shape (2,)"),
        ({"a": [-1.0, np.nan]}, f"{COLUMN}: a: expected logarithms of probabilities, got nan"),
        ({"a": [0.5, 0.25]}, f"{COLUMN}: a: expected logarithms of probabilities, got 0.5"),
        ({"a": ["x", "y"]}, f"{COLUMN}: a: "),
    ],
)
def test_what_is_refused(tmp_path: Path, said: Any, words: str) -> None:
    with LogWriter(tmp_path) as log, pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        log.append(ranked(1), query=[1.0], evaluation_log_propensities=said)


def test_rows_without_them_or_of_another_length_are_not_judged(tmp_path: Path) -> None:
    """The others give what the model gives."""
    rankings = [ranked(seed) for seed in range(400)]
    with LogWriter(tmp_path) as log:
        for j, each in enumerate(rankings):
            log.append(
                each,
                query=[1.0],
                user_id=f"u{j}",
                evaluation_log_propensities=judged(each) if j % 2 else None,
                rewards=[float(each.item_ids[0] == 2), 0.0],
            )
    reader = LogReader(tmp_path)
    found = ope.evaluate(reader, [ope.FromRows("mine", "warm")])
    assert found.rows_used == 200
    assert found.set_aside == {"no_propensity": 200}
    with LogWriter(tmp_path / "half") as half:
        for j, each in enumerate(rankings):
            if j % 2:
                half.append(each, query=[1.0], user_id=f"u{j}",
                            rewards=[float(each.item_ids[0] == 2), 0.0])  # fmt: skip
    by_model = ope.evaluate(
        LogReader(tmp_path / "half"), [ope.ByModel("mine", WARM, CATALOG)], logging=[CATALOG]
    )
    one, other = (each.policies[0].estimates["snrips"].value for each in (found, by_model))
    assert one == pytest.approx(other, abs=1e-12)
    (table,) = (batch.table for batch in reader)
    at = table.schema.get_field_index(COLUMN)
    others = [[("warm", [-1.0])], [("warm", [-1.0] * 5)]] * 200
    wrong = pa.array(others, table.schema.field(at).type)
    cut = pa.Table.from_batches([table]).set_column(at, table.schema.field(at), wrong)
    assert ope.evaluate(LogReader.of_tables([cut]), [ope.FromRows("mine", "warm")]).set_aside == {
        "no_propensity": 400
    }


@pytest.mark.parametrize("said", [{"a": "x"}, {"a": [True]}, {"a": [[]]}, [], {"a": None}])
def test_a_capture_that_says_something_else_is_set_aside(tmp_path: Path, said: Any) -> None:
    body = {"item_ids": [3], "log_propensities": [-0.5], "log_propensity": -0.5, "k": 1,
            "request_id": "r1", "policy": {"name": "uniform", "params": {}}, "seed": 1,
            "seed_source": "server", "rng_version": 1, "propensity_kind": "exact",
            COLUMN: said}  # fmt: skip
    half = {"mode": "INPUT", "encoding": "JSON", "data": '{"user_id": "u"}'}
    line = {
        "captureData": {
            "endpointInput": half,
            "endpointOutput": {"mode": "OUTPUT", "encoding": "JSON", "data": json.dumps(body)},
        },
        "eventMetadata": {"eventId": "e1", "inferenceTime": "2026-01-01T00:00:00Z"},
    }
    file = tmp_path / "capture.jsonl"
    file.write_text(json.dumps(line))
    capture = from_data_capture(file)
    assert list(capture) == []
    assert capture.read_report.set_aside == {"capture not understood": 1}
