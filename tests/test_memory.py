"""Extra memory of a call: no n-sized scratch, and no private copy of a mapped catalog.

Each figure is taken in a fresh interpreter, because a peak can only be read where nothing
else has set it: Linux resets the peak resident size on a write of 5 to clear_refs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)

MEBIBYTE = 1 << 20

CALL = """
import json, sys, tracemalloc
import numpy as np
import fastrank as fr

policy = fr.policy(sys.argv[1])
n = 1_000_000
rng = np.random.default_rng(0)
catalog = fr.Catalog(
    np.arange(n), rng.standard_normal((n, 8)).astype(np.float32), storage=sys.argv[2]
)
query = rng.standard_normal(8).astype(np.float32)
small = fr.Catalog([1, 2], np.ones((2, 8), np.float32))

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def peak_of(call):
    open("/proc/self/clear_refs", "w").write("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before

call = lambda: catalog.rank(query, 10, policy=policy, seed=1)
for _ in range(2):
    small.rank(query, 1, policy=policy, seed=1)  # code and tables, but nothing of size n
np.sum(catalog.scores(query))  # every page of the vectors is resident from here on
first = peak_of(call)
tracemalloc.start()
call()
python = tracemalloc.get_traced_memory()[1]
print(json.dumps({"native": max(first, peak_of(call)), "python": python}))
"""

BATCH = """
import json, resource, sys
import numpy as np
import fastrank as fr

n, k = 300_000, int(sys.argv[2])
rng = np.random.default_rng(0)
catalog = fr.Catalog(
    np.arange(n), rng.standard_normal((n, 4)).astype(np.float32), storage=sys.argv[1]
)
queries, policy = rng.standard_normal((64, 4)) / 4, fr.PlackettLuce(1.0)

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def batch():
    return catalog.rank_batch(queries, k, policy=policy, seeds=range(64))

def limited(room, call):
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, resource.RLIM_INFINITY))
    try:
        return call()
    except MemoryError:
        return None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

np.sum(catalog.scores(queries[0]))
catalog.rank_batch(queries[:2], 2, policy=fr.Deterministic())
"""

ROOM = """
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
found = limited(64 << 20, batch)
print(json.dumps({"done": found is not None, "native": resident("VmHWM") - before}))
"""

SHORT = """
expected, results = batch(), []
for room in range(0, 16 << 20, 256 << 10):
    found = limited(room, batch)
    if found is not None:
        same = found.log_propensities.tobytes() == expected.log_propensities.tobytes()
        assert same and found.log_norm.tobytes() == expected.log_norm.tobytes()
    results.append(found is not None)
print(json.dumps({"first": results[0], "last": results[-1]}))
"""

CACHED = """
policy = fr.PlackettLuce(1.0, sampler="cached")
catalog.rank(queries[0], 1, policy=policy)
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
shown = catalog.rank(queries[0], k, policy=policy, seed=1)
print(json.dumps({"places": len(shown), "native": resident("VmHWM") - before}))
"""

OPEN = """
import json, sys
import fastrank as fr

def private():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024

before = private()
catalog = fr.Catalog.open(sys.argv[1])
opened = private()
catalog.rank([1.0] * catalog.dim, 10, policy=fr.Deterministic(), exclude=[5, 6])
print(json.dumps({"opened": opened - before, "ranked": private() - before}))
"""


def measured(code: str, *arguments: str) -> dict[str, Any]:
    # A fixed threshold: glibc would raise it after the first large free, and from then on
    # keep large blocks resident, where the peak would not show them.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=PATIENCE,
    )
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("inference_type", "storage"),
    [
        ("stochastic_gumbel_softmax_trick", "float32"),
        ("stochastic_gumbel_softmax_trick", "int8"),
        ("deterministic", "float32"),
        ("deterministic", "int8"),
        ("stochastic_epsilon_greedy", "float32"),
        ("uniform", "float32"),
    ],
)
def test_a_call_needs_at_most_a_mebibyte(inference_type: str, storage: str) -> None:
    peak = measured(CALL, inference_type, storage)
    assert peak["native"] <= MEBIBYTE
    assert peak["python"] <= MEBIBYTE


def test_a_scratch_of_n_floats_would_be_seen() -> None:
    """The sequential sampler keeps the scores of all items, 4 MB: the yardstick's own cost."""
    peak = measured(CALL, "stochastic_plackett_luce", "float32")
    assert peak["native"] > 2 * MEBIBYTE


REST = [("float32", 10), ("float32", 1_000), ("int8", 256)]


@pytest.mark.parametrize(
    ("storage", "k"),
    [
        *(("float32", 256), ("int8", 10), ("int8", 1_000)),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in REST),
    ],
)
def test_a_batch_of_64_reserves_little_and_needs_less(storage: str, k: int) -> None:
    """64 MB of address space. The rankings take up to 5 MB, what int8 storage notes 3 to 14."""
    peak = measured(BATCH + ROOM, storage, str(k))
    assert peak["done"]
    assert peak["native"] <= (8 if k < 1_000 else 24) * MEBIBYTE


@pytest.mark.slow
def test_a_batch_without_memory_is_refused_or_right() -> None:
    """Wherever a limit strikes. One thread: glibc aborts where it cannot set up another."""
    found = measured(BATCH + SHORT, "int8", "100")
    assert not found["first"]
    assert found["last"]


def test_the_cached_sampler_remembers_at_most_its_cells() -> None:
    """Its changes, of 19,000 panels and what is above them; the ranking takes 6 MB."""
    peak = measured(BATCH + CACHED, "float32", "300000")
    assert peak["places"] == 300_000
    assert peak["native"] <= 24 * MEBIBYTE


def test_opening_makes_no_private_copy(tmp_path: Path) -> None:
    """A catalog of 32 MB of vectors and 8 MB of ids opens in 4 MB of private memory."""
    import numpy as np

    import fastrank as fr

    n = 500_000
    vectors = np.random.default_rng(0).standard_normal((n, 16)).astype(np.float32)
    fr.Catalog(np.arange(n)[::-1], vectors).save(tmp_path / "model")
    grown = measured(OPEN, str(tmp_path / "model"))
    assert grown["opened"] <= 4 * MEBIBYTE
    assert grown["ranked"] <= 4 * MEBIBYTE
