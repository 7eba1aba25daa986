"""Golden rankings: what `fastrank.RNG_VERSION` promises, pinned bit for bit.

The AVX2 and AVX-512 builds must reproduce ids and log-propensities exactly, on any
machine and at any time. The baseline build follows the same law and may round differently:
where it ranks the same items its propensities are close, elsewhere only its law counts
(`test_laws.py`).

A change here breaks every logged seed. If that is meant, raise RNG_VERSION, then write the
new rankings with

    python tests/test_golden.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastrank as fr
from fastrank import _native, _probes, packing

GOLDEN = Path(__file__).with_name("golden.json")
POLICIES: dict[str, fr.Policy] = {
    "deterministic": fr.Deterministic(),
    "gumbel": fr.PlackettLuce(0.25, sampler="gumbel"),
    "sequential": fr.PlackettLuce(0.25, sampler="sequential"),
    "cached": fr.PlackettLuce(0.25, sampler="cached"),
    "epsilon_greedy": fr.EpsilonGreedy(0.4),
    "uniform": fr.Uniform(),
    "flat tail": fr.FlatTail(0.25, m=20, factor=0.3),
}
POLICIES |= {
    f"best first, {name}": fr.BestFirst(2, then=policy)
    for name, policy in POLICIES.items()
    if policy.takes_head
}
SHAPES = {"one panel": (10, 2), "panels": (100, 3), "chunks": (60_000, 4)}
SEEDS = [0, 1, 2**32, 2**53 - 1, 2**64 - 1]


def grid(rows: int, columns: int, salt: int) -> npt.NDArray[np.float32]:
    """Numbers in [-1, 1) from integer arithmetic: no generator that could change under us."""
    index = np.arange(rows * columns, dtype=np.uint64) + np.uint64(salt * 1_000_003)
    index ^= index >> np.uint64(7)
    mixed = (index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(44)
    mixed = (mixed * np.uint64(0xBF58476D) + np.uint64(salt)) % np.uint64(1 << 20)
    values: npt.NDArray[np.float64] = mixed.astype(np.float64) / 2**19 - 1.0
    return values.reshape(rows, columns).astype(np.float32)


def rankings() -> Iterator[tuple[str, fr.Ranking]]:
    """Every pinned call, by name."""
    for shape, (n, dim) in SHAPES.items():
        catalog = fr.Catalog(np.arange(n) * 2 + 1, grid(n, dim, 1), bias=grid(n, 1, 2)[:, 0])
        query = grid(1, dim, 3)[0]
        exclude = np.arange(n // 3) * 4 + 1
        for name, policy in POLICIES.items():
            for seed in SEEDS:
                plain = catalog.rank(query, k=5, policy=policy, seed=seed)
                yield f"{shape}, {name}, seed {seed}", plain
            filtered = catalog.rank(query, k=8, policy=policy, seed=11, exclude=exclude)
            yield f"{shape}, {name}, exclude", filtered
            biased = catalog.rank(query, k=3, policy=policy, seed=12, bias=grid(n, 1, 4)[:, 0])
            yield f"{shape}, {name}, bias", biased
    yield from int8_rankings()
    yield from int8_bounds()


def int8_rankings() -> Iterator[tuple[str, fr.Ranking]]:
    """Where codes are used: the scans, from 2048 items on. Estimated and exact normalisers."""
    n, dim = 20_000, 9
    for columns, name in ((None, "int8"), (40.0, "int8, coarse")):
        vectors = grid(n, dim, 5)
        if columns:
            vectors[:, 1:] *= columns
        catalog = fr.Catalog(np.arange(n) * 2 + 1, vectors, storage="int8")
        query = grid(1, dim, 6)[0]
        if columns:
            query[1:] /= 64 * columns
        for temperature in (1 / 64, 0.25, 4.0):
            policy = fr.PlackettLuce(temperature)
            for seed in SEEDS:
                plain = catalog.rank(query, k=5, policy=policy, seed=seed)
                yield f"{name}, T = {temperature}, seed {seed}", plain
            exclude = np.arange(n // 3) * 4 + 1
            filtered = catalog.rank(query, k=40, policy=policy, seed=11, exclude=exclude)
            yield f"{name}, T = {temperature}, exclude", filtered
            biased = catalog.rank(query, k=3, policy=policy, seed=12, bias=grid(n, 1, 4)[:, 0])
            yield f"{name}, T = {temperature}, bias", biased
        for other in (
            fr.Deterministic(),
            fr.EpsilonGreedy(0.4),
            fr.BestFirst(2, then=fr.PlackettLuce(0.25)),
            fr.BestFirst(2, then=fr.EpsilonGreedy(0.4)),
        ):
            yield f"{name}, {other!r}", catalog.rank(query, k=5, policy=other, seed=1)


def int8_bounds() -> Iterator[tuple[str, fr.Ranking]]:
    """Items whose estimated log-weights deviate by more than 1, in chunks of one size or another.

    A bound has room for mistakes, which then show nowhere: these are pinned. What is not pinned is
    whether they hold, which is for test_int8.py and test_error_law.py.
    """
    n = 6_000
    few, coded = _probes.set_few_items(1), packing.CODED_FROM
    packing.CODED_FROM = 0
    try:
        for chunk in (0, 8):
            before = _probes.set_chunk_panels(chunk)
            for size in (3.0, 30.0, 300.0):
                vectors = grid(n, 11, 7) * 2.0
                vectors[:, 1:5] = size * np.where(vectors[:, 1:5] < 0.0, -1.0, 1.0)
                vectors[::3] *= 0.05
                for tolerance in (0.05, 0.5):
                    catalog = fr.Catalog(
                        np.arange(n), vectors, storage="int8", log_norm_tolerance=tolerance
                    )
                    for i in range(6):
                        query = np.zeros(11, np.float32)
                        query[0] = 1.0
                        query[5:] = grid(1, 6, 8 + i)[0]
                        policy = fr.PlackettLuce(2.0 ** (i - 5))
                        name = f"int8 bound, chunk {chunk}, size {size}, tolerance {tolerance}, {i}"
                        yield name, catalog.rank(query, 3, policy=policy, seed=i)
            _probes.set_chunk_panels(before)
    finally:
        packing.CODED_FROM = coded
        _probes.set_few_items(few)


def as_text(ranking: fr.Ranking) -> dict[str, Any]:
    return {
        "item_ids": ranking.item_ids.tolist(),
        "log_propensities": [value.hex() for value in ranking.log_propensities.tolist()],
        **({"log_norm_error": error.hex()} if (error := ranking.log_norm_error) else {}),
    }


def test_golden_rankings(isa: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["rng_version"] == fr.RNG_VERSION
    seen = {name: as_text(ranking) for name, ranking in rankings()}
    assert seen.keys() == golden["rankings"].keys()
    if isa != "v2":
        assert seen == golden["rankings"]
        return
    same = [name for name in seen if seen[name]["item_ids"] == golden["rankings"][name]["item_ids"]]
    assert len(same) > 0.75 * len(seen)
    for name in same:
        ours = [float.fromhex(text) for text in seen[name]["log_propensities"]]
        pinned = [float.fromhex(text) for text in golden["rankings"][name]["log_propensities"]]
        errors = (seen[name], golden["rankings"][name])
        room = sum(float.fromhex(each.get("log_norm_error", "0x0p+0")) for each in errors)
        assert ours == pytest.approx(pinned, abs=5e-5 + room), name


if __name__ == "__main__":
    _native.set_isa("v3")
    table = {name: as_text(ranking) for name, ranking in rankings()}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    GOLDEN.write_text(f'{{"rng_version": {fr.RNG_VERSION}, "rankings": {{\n{rows}\n}}}}\n')
