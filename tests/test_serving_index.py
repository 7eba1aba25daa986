"""A server of a model that has an index: flat tails in answers, logs, limits and metrics."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import process
from served import ask, call, make_model, with_app

import fastrank as fr
from fastrank.eventlog import LogReader
from fastrank.retrieval import build_ivf
from fastrank_serving.app import App

FLAT_TAIL = {"inference_type": "stochastic_flat_tail", "m": 40, "factor": 0.2}


@pytest.fixture
def model(tmp_path: Path) -> fr.Model:
    plain = make_model(tmp_path / "model", n=500, user_temperatures=np.linspace(0.5, 2.0, 20))
    indexed = plain.with_index(build_ivf(plain.catalog, n_lists=10, n_probes=3))
    indexed.save(tmp_path / "model")
    return indexed


def test_an_answer_says_what_it_was_drawn_from(tmp_path: Path, model: fr.Model) -> None:
    index = model.catalog.index
    assert index is not None
    expected = model.recommend(
        "u3", 7, policy=fr.FlatTail(0.5, m=40, factor=0.2), seed=11, exclude=[1, 2]
    )

    async def work(app: App) -> dict[str, Any]:
        asked = {"user_id": "u3", "k": 7, "temperature": 0.5, "seed": 11, "exclude": [1, 2]}
        found = await ask(app, **FLAT_TAIL, **asked)
        assert found.status == 200
        others = await ask(app, user_id="u3", inference_type="uniform")
        assert not {"is_candidate", "retrieval", "n_probes"} & set(others.json())
        version = (await call(app, "GET", "/version")).json()
        assert version["index"] == {"version": index.version, "n_probes": 3}
        metrics = (await call(app, "GET", "/metrics")).body.decode()
        assert 'made_by="index"' in metrics
        row: dict[str, Any] = found.json()
        return row

    row = with_app(tmp_path / "model", work, log_directory=tmp_path / "log")
    said = expected.candidates
    assert said is not None
    assert row["item_ids"] == expected.item_ids.tolist()
    assert row["made_by"] == "index"
    assert row["retrieval"] == {"name": "faiss", "version": index.version}
    assert row["n_probes"] == 3
    assert row["n_candidates"] == said.n_found == 40
    assert row["is_candidate"] == said.is_candidate.tolist()
    assert row["tail_log_weight"] == said.tail_log_weight
    assert row["policy"]["params"]["m"] == 40
    (batch,) = LogReader(tmp_path / "log")
    by_name = dict(zip(batch.values("policy_name"), range(len(batch)), strict=True))
    at = by_name["stochastic_flat_tail"]
    assert batch.value("retrieval", at)["version"] == index.version
    assert batch.value("is_candidate", at) == said.is_candidate.tolist()
    assert batch.value("is_candidate", by_name["uniform"]) is None


@pytest.mark.parametrize(
    ("asked", "field", "allowed"),
    [
        ({"m": 100_001}, "m", "1 to 100000"),
        ({"m": 0}, "m", "1 to 100000"),
        ({"factor": 0}, "factor", "1e-09 to 1"),
        ({"factor": 1.5}, "factor", "1e-09 to 1"),
        ({"head": 2}, "head", ["temperature", "m", "factor"]),
    ],
)
def test_what_is_out_of_range_is_named(
    tmp_path: Path, model: fr.Model, asked: dict[str, Any], field: str, allowed: Any
) -> None:
    async def work(app: App) -> None:
        found = await ask(app, user_id="u1", **{**FLAT_TAIL, **asked})
        assert found.status == 422
        assert (found.error["field"], found.error["allowed"]) == (field, allowed)
        other = await ask(app, user_id="u1", inference_type="uniform", m=5)
        assert (other.status, other.error["field"]) == (422, "m")

    with_app(tmp_path / "model", work)


def test_waiting_flat_tails_are_ranked_each_by_itself(tmp_path: Path, model: fr.Model) -> None:
    import asyncio

    async def work(app: App) -> None:
        found = await asyncio.gather(
            *(
                ask(app, user_id=f"u{i % 20}", seed=i, temperature=1.0, **FLAT_TAIL)
                for i in range(60)
            )
        )
        for i, each in enumerate(found):
            expected = model.recommend(
                f"u{i % 20}", 10, policy=fr.FlatTail(1.0, m=40, factor=0.2), seed=i
            )
            assert each.json()["item_ids"] == expected.item_ids.tolist()

    with_app(tmp_path / "model", work, threads=2)


def test_a_damaged_index_does_not_serve(tmp_path: Path, model: fr.Model) -> None:
    (file,) = (tmp_path / "model").glob("faiss_index-*.npy")
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    done = process("serve", tmp_path / "model", "--port", 0)
    assert done.returncode != 0
    assert "index: damaged: it does not match its SHA-256" in done.stderr


def test_without_faiss_it_says_what_is_missing(tmp_path: Path, model: fr.Model) -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from fastrank_serving.service import Loaded\n"
        f"Loaded.open({str(tmp_path / 'model')!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "ValueError: the model has an index: faiss is not installed" in done.stderr
