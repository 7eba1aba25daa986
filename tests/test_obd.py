"""The bundled Open Bandit Dataset against its source, and against figures that obp gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrank import obd
from fastrank.arraytypes import FloatArray

SOURCE = Path(__file__).resolve().parents[2] / "shared" / "data" / "obd"
needs_source = pytest.mark.skipif(
    not SOURCE.is_dir(), reason=f"the source files of the bundled data are not at {SOURCE}"
)
CAMPAIGNS: tuple[obd.Campaign, ...] = ("all", "men")
POLICIES: tuple[obd.LoggingPolicy, ...] = ("random", "bts")


def effective_sample_size(weights: FloatArray) -> float:
    return float(weights.sum() ** 2 / (weights**2).sum())


@needs_source
@pytest.mark.parametrize("campaign", CAMPAIGNS)
@pytest.mark.parametrize("policy", POLICIES)
def test_log_equals_its_source(campaign: obd.Campaign, policy: obd.LoggingPolicy) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = parquet.read_table(SOURCE / f"{policy}_{campaign}.parquet")
    log = obd.log(campaign, policy)
    for ours, theirs in [
        (log.item_id, "item_id"),
        (log.position, "position"),
        (log.click, "click"),
        (log.timestamp, "timestamp"),
        (log.propensity, "propensity_score"),  # bit for bit: array_equal, not allclose
    ]:
        np.testing.assert_array_equal(ours, source[theirs].to_numpy())
    for j in range(4):
        assert log.user_features[:, j].tolist() == source[f"user_feature_{j}"].to_pylist()
    for i in range(log.affinity.shape[1]):
        np.testing.assert_array_equal(
            log.affinity[:, i], source[f"user-item_affinity_{i}"].to_numpy()
        )
    n_columns = 5 + 4 + log.affinity.shape[1]
    assert source.num_columns == n_columns, "a column of the source is not in the bundle"


@needs_source
@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_items_equal_their_source(campaign: obd.Campaign) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = parquet.read_table(SOURCE / f"items_{campaign}.parquet")
    items = obd.items(campaign)
    np.testing.assert_array_equal(items.item_ids, source["item_id"].to_numpy())
    np.testing.assert_array_equal(items.number, source["item_feature_0"].to_numpy())
    for j in range(3):
        assert items.categories[:, j].tolist() == source[f"item_feature_{j + 1}"].to_pylist()
    np.testing.assert_array_equal(
        obd.action_distribution(campaign), np.load(SOURCE / f"bts_action_dist_{campaign}.npy")
    )


@pytest.mark.slow
@needs_source
def test_builder_makes_the_bundled_file_again(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from fastrank.data import build_obd

    twice = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in twice:
        build_obd.main(SOURCE, path)
    assert twice[0].read_bytes() == twice[1].read_bytes()
    bundled = Path(build_obd.__file__).with_name("obd.npz")
    # By array, since the bytes of the archive also depend on the version of zlib.
    with np.load(bundled, allow_pickle=False) as old, np.load(twice[0], allow_pickle=False) as new:
        assert old.files == new.files
        for name in old.files:
            assert old[name].dtype == new[name].dtype
            np.testing.assert_array_equal(old[name], new[name])


def test_bundle_is_small() -> None:
    assert Path(obd.__file__).with_name("data").joinpath("obd.npz").stat().st_size < 400_000


@pytest.mark.parametrize(
    ("campaign", "policy", "clicks"),
    [("all", "random", 38), ("all", "bts", 42), ("men", "random", 46), ("men", "bts", 69)],
)
def test_logs_are_whole(campaign: obd.Campaign, policy: obd.LoggingPolicy, clicks: int) -> None:
    log = obd.log(campaign, policy)
    n_items = {"all": 80, "men": 34}[campaign]
    assert len(log) == 10_000
    assert log.click.sum() == clicks
    assert set(log.position.tolist()) == {1, 2, 3}
    assert log.item_id.min() == 0
    assert log.item_id.max() == n_items - 1
    assert np.all(np.diff(log.timestamp.astype(np.int64)) >= 0)
    if policy == "random":
        np.testing.assert_array_equal(log.propensity, 1 / n_items)


def test_a_user_is_one_combination_of_features() -> None:
    for campaign in CAMPAIGNS:
        features_of: dict[int, tuple[str, ...]] = {}
        user_of: dict[tuple[str, ...], int] = {}
        for policy in POLICIES:
            log = obd.log(campaign, policy)
            rows = zip(log.user.tolist(), log.user_features.tolist(), strict=True)
            for user, features in rows:
                assert features_of.setdefault(user, tuple(features)) == tuple(features)
                assert user_of.setdefault(tuple(features), user) == user
        assert sorted(features_of) == list(range({"all": 280, "men": 265}[campaign]))


def test_random_log_weighted_to_bts_gives_obps_figures() -> None:
    log = obd.log("all", "random")
    weight = obd.action_distribution("all")[log.item_id, log.position - 1] / log.propensity
    assert np.mean(weight * log.click) == pytest.approx(0.00455288, abs=5e-9)
    assert np.mean(weight * log.click) / log.click.mean() == pytest.approx(1.1981263, abs=5e-8)
    assert np.sum(weight * log.click) / weight.sum() == pytest.approx(0.0047758330812, rel=1e-10)
    assert effective_sample_size(weight) == pytest.approx(1639.50187, abs=1e-5)
    assert weight.max() == pytest.approx(19.5984)


@pytest.mark.parametrize(
    ("campaign", "ips", "snips", "ess", "largest"),
    [
        ("all", 0.00235963952, 0.00233371389, 340.378, 277.78),
        ("men", 0.00300862633, 0.00318942316, 655.710, 178.25),
    ],
)
def test_bts_log_weighted_to_uniform_gives_obps_figures(
    campaign: obd.Campaign, ips: float, snips: float, ess: float, largest: float
) -> None:
    log = obd.log(campaign, "bts")
    weight = 1 / (log.propensity * len(obd.items(campaign).item_ids))
    assert np.mean(weight * log.click) == pytest.approx(ips, abs=1e-11)
    assert np.sum(weight * log.click) / weight.sum() == pytest.approx(snips, abs=1e-11)
    assert effective_sample_size(weight) == pytest.approx(ess, abs=5e-4)
    assert weight.max() == pytest.approx(largest, abs=5e-3)


@pytest.mark.parametrize(("campaign", "explained"), [("all", 0.8761), ("men", 0.9709)])
def test_vectors_explain_what_they_say(campaign: obd.Campaign, explained: float) -> None:
    mean, impressions = obd.affinity(campaign)
    factors = obd.vectors(campaign)
    assert factors.item_vectors.dtype == factors.user_vectors.dtype == np.float32
    assert factors.explained == pytest.approx(explained, abs=1e-4)
    fit = factors.user_vectors.astype(np.float64) @ factors.item_vectors.astype(np.float64).T
    left = np.sum(impressions[:, None] * (mean - fit) ** 2)
    total = np.sum(impressions[:, None] * mean**2)
    assert 1 - left / total == pytest.approx(factors.explained, abs=1e-6)
    cold = ~mean.any(axis=1)
    assert cold.sum() == 162
    assert not factors.user_vectors[cold].any()


def test_all_factors_give_the_affinity_back() -> None:
    mean, _ = obd.affinity("men")
    factors = obd.vectors("men", dim=34)
    assert factors.explained == pytest.approx(1.0)
    np.testing.assert_allclose(factors.user_vectors @ factors.item_vectors.T, mean, atol=1e-5)


def test_signs_are_set() -> None:
    right = obd.vectors("all").item_vectors
    largest = np.abs(right).argmax(axis=0)
    assert np.all(right[largest, np.arange(right.shape[1])] > 0)


def test_results_are_the_callers_own() -> None:
    obd.log("all", "bts").propensity[:] = 0
    obd.items("all").number[:] = 0
    obd.action_distribution("all")[:] = 0
    assert obd.log("all", "bts").propensity.all()
    assert obd.items("all").number.all()
    assert obd.action_distribution("all").any()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="campaign: expected one of all, men; got 'women'"):
        obd.log("women", "bts")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="policy: expected one of random, bts; got 'ts'"):
        obd.log("all", "ts")  # type: ignore[arg-type]
    for dim in (0, 81, True, 2.0):
        with pytest.raises(ValueError, match=r"dim: expected an integer in \[1, 80\]"):
            obd.vectors("all", dim=dim)  # type: ignore[arg-type]
