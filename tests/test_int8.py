"""int8 storage: quantised vectors find the items that matter, float32 ones decide."""

from __future__ import annotations

import numpy as np
import pytest

import fastrank as fr


@pytest.mark.parametrize("policy", [fr.PlackettLuce(0.05), fr.PlackettLuce(1e-3), fr.Deterministic()])
@pytest.mark.parametrize("k", [10, 700])
def test_users_of_a_batch_whose_floats_are_needed_while_codes_are_shared(
    isa: str, k: int, policy: fr.Policy
) -> None:
    """A user leaves the codes of a tile: before k items are there, and where too few checks pay."""
    rng = np.random.default_rng(0)
    vectors = np.sort(rng.standard_normal((8_000, 12)), axis=0)
    catalog = fr.Catalog(np.arange(8_000), vectors, storage="int8")
    queries = rng.standard_normal((5, 12))
    batch = catalog.rank_batch(queries, k, policy=policy, seeds=range(5))
    for seed, (query, row) in enumerate(zip(queries, batch, strict=True)):
        alone = catalog.rank(query, k, policy=policy, seed=seed)
        assert row.item_ids.tolist() == alone.item_ids.tolist()
        assert row.scores.tobytes() == alone.scores.tobytes()
        assert row.log_propensities.tobytes() == alone.log_propensities.tobytes()
