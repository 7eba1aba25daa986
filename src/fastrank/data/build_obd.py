"""Make obd.npz from the Open Bandit Dataset's small version, bit for bit the same every time.

    python -m fastrank.data.build_obd SOURCE_DIR [OUT.npz]

SOURCE_DIR holds {random,bts}_{all,men}.parquet, items_{all,men}.parquet and
bts_action_dist_{all,men}.npy: the csv files of the obp 0.5.7 source package, converted.
Nothing is lost on the way: the tests rebuild every column from the result.

The arrays, for campaign c in (all, men) and logging policy b in (random, bts):

    {c}_{b}_step         uint32 (m,)     microseconds since the row before; the first since EPOCH
    {c}_{b}_item         uint8 (m,)      the item shown
    {c}_{b}_position     uint8 (m,)      1 left, 2 centre, 3 right
    {c}_{b}_click        uint8 (m,)
    {c}_{b}_propensity   float64 (m,)    as recorded
    {c}_{b}_user         uint16 (m,)     row of {c}_users
    {c}_{b}_affinity     uint16 (3, z)   row, item, count of the affinities that are not 0
    {c}_users            uint8 (u, 4)    codes into user_feature_{j}
    {c}_item_feature_0   float64 (n,)
    {c}_item_feature_{j} str (n,)        j = 1, 2, 3: hashes
    {c}_bts_action_dist  float64 (n, 3)  P(item | position) under bts, context-free
    user_feature_{j}     str             j = 0..3: the hashes behind the codes, sorted
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fastrank.arraytypes import AnyArray

CAMPAIGNS = ("all", "men")
POLICIES = ("random", "bts")
N_USER_FEATURES = 4
EPOCH = np.datetime64("2019-11-24T00:00:00", "us")


def main(source: Path, out: Path) -> None:
    """Read the folder `source`, write the file `out`."""
    np.savez_compressed(out, allow_pickle=False, **arrays(source))


def arrays(source: Path) -> dict[str, AnyArray]:
    """All arrays of the file by name, in the order in which they are stored."""
    logs = {(c, b): pq.read_table(source / f"{b}_{c}.parquet") for c in CAMPAIGNS for b in POLICIES}
    out: dict[str, AnyArray] = {}
    vocabularies = []
    for j in range(N_USER_FEATURES):
        values = sorted({v for t in logs.values() for v in t[f"user_feature_{j}"].to_pylist()})
        out[f"user_feature_{j}"] = np.array(values)
        vocabularies.append({value: code for code, value in enumerate(values)})
    for c in CAMPAIGNS:
        items = pq.read_table(source / f"items_{c}.parquet").sort_by("item_id")
        n_items = items.num_rows
        if items["item_id"].to_pylist() != list(range(n_items)):
            raise ValueError(f"items_{c}.parquet: item ids are not 0..{n_items - 1}")
        out[f"{c}_item_feature_0"] = items["item_feature_0"].to_numpy()
        for j in (1, 2, 3):
            out[f"{c}_item_feature_{j}"] = np.array(items[f"item_feature_{j}"].to_pylist())
        out[f"{c}_bts_action_dist"] = np.load(source / f"bts_action_dist_{c}.npy")

        codes = {b: user_codes(logs[c, b], vocabularies) for b in POLICIES}
        users, user_of_row, counts = np.unique(
            np.concatenate(list(codes.values())), axis=0, return_inverse=True, return_counts=True
        )
        order = np.argsort(-counts, kind="stable")  # user 0 is the one with most impressions
        out[f"{c}_users"] = users[order]
        rank = np.empty(len(users), np.uint16)
        rank[order] = np.arange(len(users), dtype=np.uint16)
        split = np.split(rank[user_of_row.ravel()], [len(codes[POLICIES[0]])])
        for b, user in zip(POLICIES, split, strict=True):
            out |= {f"{c}_{b}_{k}": v for k, v in log_arrays(logs[c, b], user, n_items).items()}
    return out


def user_codes(table: pa.Table, vocabularies: list[dict[str, int]]) -> AnyArray:
    """The four user features of each row as codes; uint8, shape (m, 4)."""
    columns = [
        [vocabulary[v] for v in table[f"user_feature_{j}"].to_pylist()]
        for j, vocabulary in enumerate(vocabularies)
    ]
    return np.array(columns, dtype=np.uint8).T


def log_arrays(table: pa.Table, user: AnyArray, n_items: int) -> dict[str, AnyArray]:
    """One log's arrays by their short names."""
    micros = table["timestamp"].to_numpy().astype("datetime64[us]")
    affinity = np.stack([table[f"user-item_affinity_{i}"].to_numpy() for i in range(n_items)], 1)
    row, item = np.nonzero(affinity)
    return {
        "step": exact(np.diff(micros, prepend=EPOCH).astype(np.int64), np.uint32),
        "item": exact(table["item_id"].to_numpy(), np.uint8),
        "position": exact(table["position"].to_numpy(), np.uint8),
        "click": exact(table["click"].to_numpy(), np.uint8),
        "propensity": table["propensity_score"].to_numpy(),
        "user": user,
        "affinity": exact(np.stack([row, item, affinity[row, item]]), np.uint16),
    }


def exact(values: AnyArray, dtype: npt.DTypeLike) -> AnyArray:
    """`values` in a smaller dtype, refused unless each one survives."""
    small = values.astype(dtype)
    if not np.array_equal(small, values):
        raise ValueError(f"values do not fit {np.dtype(dtype)}")
    return small


if __name__ == "__main__":
    default = Path(__file__).with_name("obd.npz")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else default)
