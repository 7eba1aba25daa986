"""Evaluation in parts on a real Ray, of which a node is killed midway."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("pyarrow")
pytest.importorskip("ray", reason="ray is not installed")
from alike import assert_equal

import fastrank as fr
from fastrank import ope, simulate
from fastrank.cli import engines
from fastrank.eventlog import LogReader, LogWriter

ray, cluster_utils = map(import_module, ("ray", "ray.cluster_utils"))
MEMORY = 80 << 20
# A node that does not answer is asked again three times, a second apart.
DEAD = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head, which runs nothing, and two nodes of one core."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    here = os.path.dirname(__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:  # of sockets' paths
        monkeypatch.setenv("RAY_TMPDIR", short)
        head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False}
        head |= {"object_store_memory": MEMORY, "_system_config": DEAD}
        found: Any = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        try:
            found.workers = [found.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in "ab"]
            ray.init(address=found.address, log_to_driver=False, logging_level="error")
            yield found
        finally:
            ray.shutdown()
            found.shutdown()


class Slow:
    """Sums of a part, a second late; it is written down which node begins with it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def __call__(self, part: LogReader) -> ope.Partial:
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"{time.time_ns()} {node}").touch()
        time.sleep(1.0)
        colder = ope.ByModel("colder", fr.PlackettLuce(0.8), fr.Model.open(self.model))
        return ope.partial(part, [colder], places=3)


def test_a_node_is_killed_midway(cluster: Any, tmp_path: Path) -> None:
    """Its part is summed again on the other one, and all is as of one reading."""
    clicks = simulate.PositionBased([1.0, 0.8, 0.6])
    world = simulate.World.synthetic(50, 30, clicks, dim=6, seed=1, typical_rate=0.1)
    model = world.model(noise=0.3, seed=2)
    model.save(tmp_path / "model")
    for part in range(4):
        with LogWriter(tmp_path / "log") as log:
            simulate.write_log(world, model, fr.PlackettLuce(1.0), 3, 300, log, seed=part)
    begun = tmp_path / "begun"
    begun.mkdir()
    done: list[ope.Partial] = []

    def kill(part: ope.Partial) -> None:
        """A node that has begun with a third part, once two are done."""
        done.append(part)
        if len(done) == 2:
            while len(names := sorted(each.name for each in begun.iterdir())) < 3:
                time.sleep(0.05)
            (node,) = (each for each in cluster.workers if each.node_id == names[-1].split()[1])
            cluster.remove_node(node, allow_graceful=False)

    whole = LogReader(tmp_path / "log")
    with engines.begun("ray", 2) as engine:
        parts = engine.map(Slow(begun, tmp_path / "model"), whole.parts(4), kill)
    assert len(list(begun.iterdir())) == 5  # one was begun again
    colder = ope.ByModel("colder", fr.PlackettLuce(0.8), model)
    assert_equal(ope.merged(parts).evaluation(), ope.evaluate(whole, [colder], places=3))
