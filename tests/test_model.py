"""A Model ranks for users by id, with the rankings of its catalog."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import POLICIES

import fastrank as fr
from fastrank import packing, store

N_ITEMS, N_USERS, DIM = 120, 30, 5


def make(*, words: bool = False) -> fr.Model:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((N_ITEMS, DIM)).astype(np.float32)
    items = [f"item {i}" for i in range(N_ITEMS)] if words else np.arange(N_ITEMS) + 500
    users = [f"user {i}" for i in range(N_USERS)] if words else rng.permutation(N_USERS) + 9_000
    return fr.Model(fr.Catalog(items, vectors), users, user_vectors())


def user_vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).standard_normal((N_USERS, DIM)).astype(np.float32)


def user_ids(model: fr.Model) -> list[Any]:
    ids: list[Any] = np.asarray(model.user_ids).tolist()
    return ids


@pytest.mark.parametrize("words", [False, True], ids=["int ids", "str ids"])
@pytest.mark.parametrize("policy", POLICIES)
def test_recommend_ranks_with_the_users_vector(policy: str, *, words: bool) -> None:
    model = make(words=words)
    for row, user in enumerate(user_ids(model)):
        ranking = model.recommend(user, k=4, policy=POLICIES[policy], seed=row)
        expected = model.catalog.rank(user_vectors()[row], 4, policy=POLICIES[policy], seed=row)
        assert ranking.item_ids.tolist() == expected.item_ids.tolist()
        assert ranking.log_propensities.tobytes() == expected.log_propensities.tobytes()
        assert ranking.seed == row


def test_recommend_passes_filters_and_bias_on() -> None:
    model = make()
    bias = np.linspace(-1, 1, N_ITEMS).astype(np.float32)
    user = user_ids(model)[3]
    ranking = model.recommend(
        user, k=4, policy=fr.Uniform(), seed=1, allow=[500, 501, 502], exclude=[501], bias=bias
    )
    assert sorted(ranking.item_ids.tolist()) == [500, 502]
    assert (
        ranking.scores.tobytes()
        != model.recommend(
            user, k=4, policy=fr.Uniform(), seed=1, allow=[500, 501, 502], exclude=[501]
        ).scores.tobytes()
    )


def test_numpy_ids_name_users_too() -> None:
    model = make()
    user = user_ids(model)[2]
    a = model.recommend(np.int32(user), k=3, policy=fr.Uniform(), seed=0)
    b = model.recommend(user, k=3, policy=fr.Uniform(), seed=0)
    assert a.item_ids.tolist() == b.item_ids.tolist()
    words = make(words=True)
    c = words.recommend(np.str_("user 2"), k=3, policy=fr.Uniform(), seed=0)
    assert len(c) == 3


@pytest.mark.parametrize("words", [False, True], ids=["int ids", "str ids"])
@pytest.mark.parametrize("user", [-1, 2**62, 2**70, "user 99", "user 1 ", "", None, 1.5, True])
def test_unknown_users_are_named(user: Any, *, words: bool) -> None:
    model = make(words=words)
    with pytest.raises((KeyError, ValueError), match="user") as caught:
        model.recommend(user, k=3, policy=fr.Uniform())
    assert repr(user) in str(caught.value) or str(user) in str(caught.value)


BAD_MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "duplicate user": ({"user_ids": [1, 2, 1]}, ("user_ids", "1", "2")),
    "fewer users": ({"user_ids": [1, 2]}, ("user_ids", "2", "3")),
    "user nan": ({"user_vectors": [[1.0], [np.nan], [0.0]]}, ("user_vectors", "1", "nan")),
    "user bool": ({"user_vectors": np.ones((3, 1), bool)}, ("user_vectors", "bool")),
    "other dim": ({"user_vectors": np.ones((3, 2))}, ("user_vectors", "2", "1")),
    "float ids": ({"user_ids": [1.0, 2.0, 3.0]}, ("user_ids", "1.0")),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models_are_refused(case: str) -> None:
    arguments, parts = BAD_MODELS[case]
    catalog = fr.Catalog([1, 2], [[1.0], [2.0]])
    good: dict[str, Any] = {"user_ids": [1, 2, 3], "user_vectors": np.ones((3, 1))}
    with pytest.raises(ValueError, match=r".") as caught:
        fr.Model(catalog, **{**good, **arguments})
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("words", [False, True], ids=["int ids", "str ids"])
def test_round_trip(tmp_path: Path, *, words: bool) -> None:
    model = make(words=words)
    model.save(tmp_path / "model")
    opened = fr.Model.open(tmp_path / "model", verify=True)
    assert opened.catalog.version == model.catalog.version
    assert user_ids(opened) == user_ids(model)
    for user in user_ids(model)[:5]:
        for policy in POLICIES.values():
            a = model.recommend(user, k=6, policy=policy, seed=1)
            b = opened.recommend(user, k=6, policy=policy, seed=1)
            assert a.item_ids.tolist() == b.item_ids.tolist()
            assert a.log_propensities.tobytes() == b.log_propensities.tobytes()


def test_damage_anywhere_below_the_directory_is_found(tmp_path: Path) -> None:
    make(words=True).save(tmp_path / "model")
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[len(content) * 2 // 3] ^= 0x04
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"."):
            fr.Model.open(tmp_path / "model", verify=True)
        path.write_bytes(content[:-2])
        with pytest.raises(ValueError, match=r"."):
            fr.Model.open(tmp_path / "model")
        path.write_bytes(content)
    fr.Model.open(tmp_path / "model", verify=True)


def test_a_catalog_is_no_model(tmp_path: Path) -> None:
    make().catalog.save(tmp_path / "catalog")
    with pytest.raises(ValueError, match="catalog"):
        fr.Model.open(tmp_path / "catalog")


def test_seeds_of_recommendations_fit_json() -> None:
    model = make()
    ranking = model.recommend(user_ids(model)[0], k=2, policy=fr.Uniform())
    assert json.loads(json.dumps(ranking.seed)) == ranking.seed < 2**53


class TestUserTemperatures:
    def test_recommend_multiplies(self) -> None:
        own = np.linspace(0.2, 3.0, N_USERS)
        model = make().with_user_temperatures(own)
        for row, user in enumerate(user_ids(model)[:5]):
            assert model.user_temperature(user) == own[row]
            for sampler in ("gumbel", "sequential", "cached"):
                policy = fr.policy(fr.PlackettLuce(sampler=sampler).inference_type, temperature=0.5)
                ranking = model.recommend(user, k=4, policy=policy, seed=row)
                product = fr.PlackettLuce(0.5 * own[row], sampler=sampler)
                assert ranking.policy == product == model.user_policy(user, policy)
                expected = model.catalog.rank(user_vectors()[row], 4, policy=product, seed=row)
                assert ranking.item_ids.tolist() == expected.item_ids.tolist()
                assert ranking.log_propensities.tobytes() == expected.log_propensities.tobytes()

    @pytest.mark.parametrize("policy", ["deterministic", "epsilon_greedy", "uniform"])
    def test_other_policies_stay_as_they_are(self, policy: str) -> None:
        model = make().with_user_temperatures(np.full(N_USERS, 3.0))
        user = user_ids(model)[0]
        assert model.user_policy(user, POLICIES[policy]) is POLICIES[policy]
        ranking = model.recommend(user, k=4, policy=POLICIES[policy], seed=0)
        plain = make().recommend(user, k=4, policy=POLICIES[policy], seed=0)
        assert ranking.item_ids.tolist() == plain.item_ids.tolist()

    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("storage", ["float32", "int8"])
    def test_batches_multiply_for_each_user(
        self, policy: str, storage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Row i is, to the bit and in every field, what `recommend` gives for its user and seed:
        more users than one pass takes, in any order, again and again, on two threads."""
        monkeypatch.setattr(packing, "CODED_FROM", 0)
        made = make()
        catalog = fr.Catalog(made.catalog.item_ids, made.catalog.vectors, storage=storage)
        own = np.random.default_rng(2).uniform(0.2, 3.0, N_USERS)
        model = fr.Model(catalog, made.user_ids, user_vectors(), user_temperatures=own)
        users = np.random.default_rng(3).choice(made.user_ids, 150)
        asked: dict[str, Any] = {"policy": POLICIES[policy], "threads": 2}
        batch = model.recommend_batch(users, 6, seeds=range(150), **asked)
        assert len(batch) == 150
        for i, (user, drawn) in enumerate(zip(users.tolist(), batch, strict=True)):
            one = model.recommend(user, 6, seed=i, **asked)
            assert drawn == one
            assert drawn.to_dict() == one.to_dict()
            assert drawn.policy == model.user_policy(user, POLICIES[policy])
        if "temperature" in POLICIES[policy].params:
            assert {each.user_temperature for each in batch} == {
                model.user_temperature(user) for user in users.tolist()
            }
            given = batch[0].item_ids
            judged = (
                model.catalog.log_propensities(
                    model.user_vector(users[0]), given, policy=batch.policies[0]
                )
                if policy != "flat_tail"
                else batch[0].log_propensities
            )
            assert judged == pytest.approx(batch[0].log_propensities, abs=2e-3)

    def test_without_them_the_factor_is_one(self) -> None:
        model = make()
        user = user_ids(model)[0]
        assert not model.has_user_temperatures
        assert model.user_temperature(user) == 1.0
        assert model.user_policy(user, fr.PlackettLuce(0.5)) == fr.PlackettLuce(0.5)

    def test_a_new_model_shares_arrays_and_has_a_version_of_its_own(self) -> None:
        model = make()
        own = np.linspace(0.5, 2.0, N_USERS)
        changed = model.with_user_temperatures(own)
        assert changed.catalog is model.catalog
        assert changed._arrays["user_vectors"] is model._arrays["user_vectors"]
        assert changed.version != model.version
        assert not model.has_user_temperatures
        assert changed.with_user_temperatures(None).version == model.version
        assert changed.with_user_temperatures(own.copy()).version == changed.version
        assert changed.with_user_temperatures(own * 2).version != changed.version
        given = fr.Model(model.catalog, model.user_ids, user_vectors(), user_temperatures=own)
        assert given.version == changed.version
        own[0] = 99.0  # the model has a copy
        assert changed.user_temperature(user_ids(model)[0]) == 0.5

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
    def test_round_trip(self, tmp_path: Path, dtype: Any) -> None:
        own = np.arange(1, N_USERS + 1).astype(dtype)
        model = make(words=True)
        model.save(tmp_path / "m")
        model.with_user_temperatures(own).save(tmp_path / "m")  # replaces it
        opened = fr.Model.open(tmp_path / "m", verify=True)
        assert opened.version == model.with_user_temperatures(own).version
        assert [opened.user_temperature(user) for user in user_ids(opened)] == own.tolist()
        fr.Model.open(tmp_path / "m").with_user_temperatures(None).save(tmp_path / "m")
        again = fr.Model.open(tmp_path / "m", verify=True)
        assert again.version == model.version
        assert not list((tmp_path / "m").glob("user_temperatures*"))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([1.0] * (N_USERS - 1), rf"user_temperatures: expected shape \({N_USERS},\)"),
            ([1.0] * 3 + [0.0] * (N_USERS - 3), "user_temperatures: row 3: must be above 0, got 0"),
            ([-1.0] * N_USERS, "user_temperatures: row 0: must be above 0, got -1"),
            ([1.0] * 5 + [np.nan] * (N_USERS - 5), "user_temperatures: row 5: must be finite"),
            ([np.inf] * N_USERS, "user_temperatures: row 0: must be finite"),
            ([True] * N_USERS, "user_temperatures: expected real numbers"),
            (["1"] * N_USERS, "user_temperatures: expected real numbers"),
        ],
    )
    def test_bad_ones_are_refused(self, values: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make().with_user_temperatures(values)
        model = make()
        with pytest.raises(ValueError, match=message):
            fr.Model(model.catalog, model.user_ids, user_vectors(), user_temperatures=values)

    def test_products_outside_the_range_are_refused(self) -> None:
        model = make(words=True).with_user_temperatures(np.full(N_USERS, 1e-3))
        with pytest.raises(
            ValueError, match=r"temperature: 1e-05 times the 0.001 of user 'user 2'"
        ):
            model.recommend("user 2", k=2, policy=fr.PlackettLuce(1e-5))
        with pytest.raises(ValueError, match="'nobody' is not in the model"):
            model.user_temperature("nobody")
        with pytest.raises(ValueError, match="'nobody' is not in the model"):
            make(words=True).user_policy("nobody", fr.Uniform())

    def test_saved_ones_are_checked(self, tmp_path: Path) -> None:
        model = make()
        for values, message in [
            (np.full(N_USERS, -1.0), "user_temperatures: row 0: must be above 0"),
            (np.full(N_USERS, np.nan), "user_temperatures: row 0: must be above 0"),
            (np.ones(N_USERS, np.float32), "user_temperatures is missing or does not fit"),
            (np.ones(N_USERS - 1), "user_temperatures is missing or does not fit"),
        ]:
            broken = model.with_user_temperatures(np.ones(N_USERS))
            broken._arrays["user_temperatures"] = values
            broken._digests["user_temperatures"] = store.array_digest(values)
            broken.save(tmp_path / "m")
            with pytest.raises(ValueError, match=message):
                fr.Model.open(tmp_path / "m")
