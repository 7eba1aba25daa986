"""The pinned rankings: which calls they are of, and how they are held against golden.json.

It needs the package and NumPy alone, so that `installed.py` can ask it of any wheel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastrank as fr

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
    """Pinned calls, by name: all that need nothing but the package."""
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


def as_text(ranking: fr.Ranking) -> dict[str, Any]:
    return {
        "item_ids": ranking.item_ids.tolist(),
        "log_propensities": [value.hex() for value in ranking.log_propensities.tolist()],
        **({"log_norm_error": error.hex()} if (error := ranking.log_norm_error) else {}),
    }


def compare(seen: Mapping[str, Any], golden: Mapping[str, Any], *, to_the_bit: bool) -> None:
    """AssertionError if rankings, by name, are not those that are pinned.

    Where they need not be equal to the bit, what ranks the same items has about the same
    propensities, and most do.
    """
    if to_the_bit:
        assert seen == golden, [name for name in seen if seen[name] != golden[name]][:5]
        return
    same = [name for name in seen if seen[name]["item_ids"] == golden[name]["item_ids"]]
    assert len(same) > 0.75 * len(seen), f"{len(same)} of {len(seen)} rank the same items"
    for name in same:
        each, pinned = seen[name], golden[name]
        room = 5e-5 + sum(
            float.fromhex(one.get("log_norm_error", "0x0p+0")) for one in (each, pinned)
        )
        for ours, theirs in zip(each["log_propensities"], pinned["log_propensities"], strict=True):
            assert abs(float.fromhex(ours) - float.fromhex(theirs)) <= room, name
