"""From all users ranked to what another policy would have earned: lists that were never shown are
no evidence, and those that were are."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("scipy")
import pyarrow as pa
import pyarrow.parquet as pq

import fastrank as fr
from fastrank import batch, ope
from fastrank.batch.manifest import MANIFEST, read_manifest
from fastrank.eventlog import LogReader, join

N, ITEMS, K = 6000, 30, 2
LOGGING, OTHER = fr.PlackettLuce(1.0), fr.PlackettLuce(0.6)


def model_of() -> fr.Model:
    rng = np.random.default_rng(2)
    catalog = fr.Catalog(np.arange(ITEMS) + 100, rng.standard_normal((ITEMS, 4)) / 2)
    return fr.Model(
        catalog,
        [f"u{i}" for i in range(N)],
        rng.standard_normal((N, 4)),
        user_temperatures=rng.uniform(0.7, 1.4, N),
        policy=LOGGING,
    )


def chances(scores: np.ndarray) -> np.ndarray:
    """Of a click on an item with a score, where it is seen."""
    return 0.9 / (1.0 + np.exp(-4.0 * scores))


def worth(model: fr.Model, policy: fr.Policy, draws: int) -> float:
    """Clicks a list, by the scores of lists that are drawn: an error of a thousandth."""
    total = 0.0
    for draw in range(draws):
        seeds = np.arange(N, dtype=np.uint64) + np.uint64(draw * N)
        drawn = model.recommend_batch(model.user_ids, K, policy=policy, seeds=seeds)
        total += chances(drawn.scores).sum() / N
    return total / draws


@pytest.mark.slow
def test_a_nightly_run_says_what_another_policy_would_have_earned(tmp_path: Path) -> None:
    """An estimate within 6 of its standard errors: a right one is not with a chance of 2e-9."""
    model = model_of()
    model.save(tmp_path / "model")
    pq.write_table(pa.table({"user_id": model.user_ids}), tmp_path / "users.parquet")
    log, store, joined = tmp_path / "log", tmp_path / "store", tmp_path / "joined"
    asked: dict[str, Any] = {"run": "night", "model": tmp_path / "model", "k": K, "processes": 1}
    batch.begin(log, run="night", model=tmp_path / "model", k=K)
    content = read_manifest(log)
    night = datetime.now(UTC) - timedelta(days=1)  # so that windows are over by now
    content |= {"begun": night.isoformat(), "key": (b"3" * 32).hex()}  # always the same draws
    (log / MANIFEST).write_text(json.dumps(content))
    batch.run(tmp_path / "users.parquet", log, **asked)

    report = ope.audit(LogReader(log), [model])
    assert report.passed, report
    policies = [ope.ByModel("other", OTHER, model)]
    nothing = ope.evaluate(LogReader(log), policies, places=K)
    assert (nothing.rows, nothing.set_aside["not_shown"]) == (N, N)
    assert nothing.policies[0].estimates["snrips"].value is None

    # Half of the users come by, and are shown what the store has for them; one more list is cut.
    batch.project(log, store)
    kept = pq.read_table(store).sort_by("user_id").to_pydict()
    rng = np.random.default_rng(4)
    seen = (night + timedelta(hours=1)).isoformat()
    came = rng.random(N) < 0.5
    with (
        (tmp_path / "shown.csv").open("w", newline="") as shown_file,
        (tmp_path / "clicks.csv").open("w", newline="") as clicks_file,
    ):
        shown, clicks = csv.writer(shown_file), csv.writer(clicks_file)
        shown.writerow(["request_id", "displayed", "ts"])
        clicks.writerow(["request_id", "item_id", "reward", "ts"])
        for i in np.flatnonzero(came).tolist():
            shown.writerow([kept["request_id"][i], K, seen])
            scores = np.array(kept["scores"][i])
            for j in np.flatnonzero(rng.random(K) < chances(scores)).tolist():
                clicks.writerow([kept["request_id"][i], kept["item_ids"][i][j], 1, seen])
    summary = join(
        log,
        tmp_path / "clicks.csv",
        joined,
        shown=tmp_path / "shown.csv",
        window="1h",
        as_of=(night + timedelta(hours=4)).isoformat(),
        kind="positives",
    )
    assert (summary.rows_written, summary.rows_not_shown) == (N, N - came.sum())
    found = ope.evaluate(LogReader(joined), policies, places=K)
    assert found.set_aside["not_shown"] == N - came.sum()
    estimate = found.policies[0].estimates["snrips"]
    assert estimate.status == "ok", estimate
    assert estimate.value is not None
    assert estimate.standard_error is not None
    truth, logged = worth(model, OTHER, 10), worth(model, LOGGING, 10)
    assert abs(estimate.value - truth) < 6.0 * estimate.standard_error
    # Which the lists themselves would not have said.
    assert truth - logged > 6.0 * estimate.standard_error
