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

import numpy as np
from goldens import GOLDEN, as_text, compare, grid, rankings

import fastrank as fr
from fastrank import _native, _probes, packing


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


def all_rankings() -> Iterator[tuple[str, fr.Ranking]]:
    yield from rankings()
    yield from int8_bounds()


def test_golden_rankings(isa: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["rng_version"] == fr.RNG_VERSION
    seen = {name: as_text(ranking) for name, ranking in all_rankings()}
    assert seen.keys() == golden["rankings"].keys()
    compare(seen, golden["rankings"], to_the_bit=isa != "v2")


if __name__ == "__main__":
    _native.set_isa("v3")
    table = {name: as_text(ranking) for name, ranking in all_rankings()}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    GOLDEN.write_text(f'{{"rng_version": {fr.RNG_VERSION}, "rankings": {{\n{rows}\n}}}}\n')
