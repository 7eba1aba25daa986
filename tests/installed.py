"""What an installed fastrank must do, on whatever CPU, C library and Python: no test runner, no
compiler, no checkout but for this folder; NumPy alone. Where click is there, the command as well.

    python tests/installed.py
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import sysconfig
from importlib.util import find_spec

import goldens
import numpy as np

import fastrank as fr
from fastrank import _native, reference


def check_that_it_is_installed() -> None:
    assert importlib.metadata.version("fastrank-sampling") == fr.__version__
    purelib, platlib = sysconfig.get_path("purelib"), sysconfig.get_path("platlib")
    folder = os.path.dirname(os.path.dirname(os.path.abspath(fr.__file__)))
    assert folder in (purelib, platlib), f"it is imported from {folder}"


def check_rankings() -> None:
    """The pinned ones, and none of them with a propensity that is not the law's."""
    golden = json.loads(goldens.GOLDEN.read_text())
    assert golden["rng_version"] == fr.RNG_VERSION
    seen = {name: goldens.as_text(ranking) for name, ranking in goldens.rankings()}
    # All but those that take what only tests can set.
    pinned = {
        name: ranking
        for name, ranking in golden["rankings"].items()
        if not name.startswith("int8 bound")
    }
    assert seen.keys() == pinned.keys()
    goldens.compare(seen, pinned, to_the_bit=_native.isa() != "v2")


def check_propensities() -> None:
    """Those of all policies that have some, against the slow twin in float64."""
    catalog = fr.Catalog(np.arange(200), goldens.grid(200, 8, 21))
    query = goldens.grid(1, 8, 22)[0]
    scores = catalog.scores(query)
    for name, policy in goldens.POLICIES.items():
        if isinstance(policy, fr.FlatTail):
            continue
        for seed in range(20):
            ranking = catalog.rank(query, 5, policy=policy, seed=seed)
            expected = reference.log_propensities(scores, ranking.item_ids, policy)
            assert np.allclose(ranking.log_propensities, expected, rtol=0.0, atol=1e-5), name


def check_law() -> None:
    """First places under Plackett-Luce: of 1e9 choices of seeds a right sampler leaves these bounds
    for one (normal law, Bonferroni)."""
    catalog = fr.Catalog(np.arange(8), np.linspace(-1.0, 1.0, 8)[:, np.newaxis])
    n = 40_000
    batch = catalog.rank_batch(
        np.ones((n, 1)), 1, policy=fr.PlackettLuce(0.5), seeds=np.arange(n, dtype=np.uint64)
    )
    law = np.exp(catalog.scores(np.ones(1)).astype(np.float64) / 0.5)
    law /= law.sum()
    counts = np.bincount(batch.item_ids[:, 0], minlength=8)
    for count, mass in zip(counts.tolist(), law.tolist(), strict=True):
        assert abs(count - n * mass) < 6.5 * math.sqrt(n * mass * (1.0 - mass)), (counts, law)


def check_command() -> None:
    command = os.path.join(sysconfig.get_path("scripts"), "fastrank")
    for words in ([command], [sys.executable, "-m", "fastrank"]):
        said = subprocess.run(
            [*words, "--version"], capture_output=True, text=True, check=True, cwd=os.path.sep
        ).stdout
        assert said == f"fastrank, version {fr.__version__}\n", said


if __name__ == "__main__":
    check_that_it_is_installed()
    check_rankings()
    check_propensities()
    check_law()
    if find_spec("click") is not None and find_spec("rich") is not None:
        check_command()
    print(
        f"fastrank-sampling {fr.__version__}: fine on Python {platform.python_version()},"
        f" {platform.machine()}, instruction set {_native.isa()}, NumPy {np.__version__}"
    )
