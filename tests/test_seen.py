"""What each user has seen: kept with the model, left out of their rankings, named in the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrank as fr
from fastrank.seen import Seen

N, USERS = 60, ["ann", "bob", "cat", "dan"]
PAIRS = {"ann": [3, 5, 40], "bob": list(range(N)), "dan": [59]}
FEATURES = {"seller": [f"s{i % 5}" for i in range(N)]}


def make(seen: bool = True, **options: Any) -> fr.Model:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((N, 4))
    catalog = fr.Catalog(np.arange(N) * 10, vectors, features=FEATURES, **options)
    factors = [1.0, 2.0, 0.5, 1.5]
    people = rng.standard_normal((len(USERS), 4))
    model = fr.Model(catalog, USERS, people, user_temperatures=factors)
    return with_pairs(model) if seen else model


def with_pairs(model: fr.Model) -> fr.Model:
    users = [user for user, items in PAIRS.items() for _ in items]
    return model.with_seen(users, [10 * item for items in PAIRS.values() for item in items])


def ids(user: str) -> list[int]:
    return [10 * item for item in PAIRS.get(user, [])]


POLICIES = [
    fr.Deterministic(), fr.PlackettLuce(0.7), fr.PlackettLuce(0.7, sampler="sequential"),
    fr.PlackettLuce(0.7, sampler="cached"), fr.EpsilonGreedy(0.3), fr.Uniform(),
    fr.BestFirst(2, then=fr.PlackettLuce(0.7)), fr.FlatTail(0.7, m=5),
]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"prior": np.arange(N)}, {"storage": "int8"}], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_it_is_left_out_as_exclude_leaves_it_out(policy: fr.Policy, options: Any) -> None:
    """To the bit: before sampling, so inside the propensities; and beside `exclude`."""
    model, bare = make(**options), make(seen=False, **options)
    for user in USERS:
        for more in (None, [20, 30, 50]):
            drawn = model.recommend(user, 8, policy=policy, seed=7, exclude=more)
            other = bare.recommend(
                user, 8, policy=policy, seed=7, exclude=[*ids(user), *(more or [])]
            )
            assert drawn == other
            assert drawn.n_eligible == N - len({*ids(user), *(more or [])})
            assert not {*drawn.item_ids.tolist()} & {*ids(user), *(more or [])}
            kept = None if drawn.exclude is None else list(drawn.exclude)
            assert kept == more
            assert drawn.seen_id == (model.seen_id if user in PAIRS else None)
    again = model.catalog.log_propensities(
        model.user_vector("ann"), model.recommend("ann", 8, policy=policy, seed=7).item_ids,
        policy=model.user_policy("ann", policy), exclude=ids("ann"),
    )  # fmt: skip
    logged = model.recommend("ann", 8, policy=policy, seed=7).log_propensities
    assert again == pytest.approx(logged, abs=1e-5)


@pytest.mark.parametrize(
    "rules", [fr.Rules(where="seller != 's1'"), fr.Rules(cap={"seller": 1})], ids=str
)
def test_under_rules_and_on_next_pages(rules: fr.Rules) -> None:
    model, bare = make(), make(seen=False)
    options: dict[str, Any] = {"policy": fr.PlackettLuce(0.7), "rules": rules}
    page = model.recommend("ann", 3, seed=1, **options)
    assert page == bare.recommend("ann", 3, seed=1, exclude=ids("ann"), **options)
    next_ = model.recommend("ann", 3, seed=2, after=page, **options)
    assert next_ == bare.recommend("ann", 3, seed=2, after=page, exclude=ids("ann"), **options)
    assert next_.seen_id == model.seen_id


def test_who_has_seen_everything_gets_an_empty_list() -> None:
    model = make()
    for policy in POLICIES:
        found = model.recommend("bob", 5, policy=policy)
        assert (len(found), found.n_eligible, found.log_propensity) == (0, 0, 0.0)


def test_tables_that_were_made_ahead() -> None:
    """They are of the user's scores, and know of no filter; rankings from them do."""
    policy = fr.PlackettLuce(0.7, sampler="auto")
    model, bare = (each.with_tables(policy) for each in (make(), make(seen=False)))
    drawn = model.recommend("ann", 8, policy=policy, seed=3)
    assert drawn.made_by == "table"
    assert drawn == bare.recommend("ann", 8, policy=policy, seed=3, exclude=ids("ann"))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_batches_are_rankings_of_their_users(policy: fr.Policy) -> None:
    """Nobody's list is in another's row."""
    model = make()
    users = ["dan", "cat", "ann", "bob", "ann"]
    exclude = [None, [10], [20], None, None]
    batch = model.recommend_batch(users, 8, policy=policy, seeds=range(5), exclude=exclude)
    for i, user in enumerate(users):
        one = model.recommend(user, 8, policy=policy, seed=i, exclude=exclude[i])
        assert batch[i] == one
        for name in ("seen_id", "model_version", "user_temperature", "policy", "made_by"):
            assert getattr(batch[i], name) == getattr(one, name), name


def test_batches_name_what_is_wrong() -> None:
    model = make()
    with pytest.raises(ValueError, match="user_ids: row 1: 'eve' is not in the model"):
        model.recommend_batch(["ann", "eve"], policy=fr.Uniform())
    with pytest.raises(ValueError, match="policy: this model has none of its own"):
        model.recommend_batch(["ann"])
    with pytest.raises(ValueError, match="seeds: expected one entry for each of 2 users"):
        model.recommend_batch(["ann", "bob"], policy=fr.Uniform(), seeds=[1])
    policy = fr.PlackettLuce(0.7, sampler="auto")
    batch = model.with_tables(policy).recommend_batch(["ann"], policy=policy, seeds=[3])
    assert batch.made_by == ("table",)
    assert batch.policies[0].sampler == "auto"


def test_pairs_in_any_order_and_more_than_once() -> None:
    model = make(seen=False)
    users, items = ["dan", "ann", "eve", "ann", "ann", "dan"], [590, 50, 10, 30, 50, 7]
    found = model.with_seen(users, items)
    assert [sorted(found.seen_item_ids(user).tolist()) for user in USERS] == [
        [30, 50],
        [],
        [],
        [590],
    ]
    assert found.seen_pairs == 3
    assert found.seen_id == model.with_seen(users[::-1], items[::-1]).seen_id
    others = [model.with_seen(["ann"], [30]), model.with_seen(["bob", "bob"], [30, 50])]
    assert len({found.seen_id, *(each.seen_id for each in others)}) == 3
    assert len({found.version, model.version, *(each.version for each in others)}) == 4
    assert found.with_seen(None).version == model.version
    assert model.seen_id is None
    assert model.seen("ann") is found.seen("bob") is None
    # What else a model may have comes along, and versions do not depend on the order.
    assert found.with_policy(fr.Uniform()).seen_id == found.seen_id
    assert found.with_user_temperatures(None).seen_id == found.seen_id


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        (["ann"], [1, 2], "item_ids: expected 1, one for each user, got 2"),
        ([1], [10], "user_ids: the ids here are str, got 1"),
        (["ann"], ["10"], "item_ids: the ids here are int64, got '10'"),
        (["ann"], None, "user_ids, item_ids: give both, or neither"),
        ({"ann"}, [1], "user_ids: "),
    ],
)
def test_pairs_that_are_none(users: Any, items: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(seen=False).with_seen(users, items)


def test_lists_are_of_their_own_catalog() -> None:
    model = make()
    seen = model.seen("ann")
    assert seen is not None
    other = fr.Catalog(np.arange(N), np.ones((N, 4)))
    with pytest.raises(ValueError, match="seen: is of another catalog's items"):
        other.rank([0, 0, 0, 1], policy=fr.Uniform(), seen=seen)
    with pytest.raises(ValueError, match=r"seen\[1\]: is of another catalog's items"):
        other.rank_batch(np.ones((2, 4)), policy=fr.Uniform(), seen=[None, seen])
    others: list[Any] = [[3], "ann"]
    for wrong in others:
        with pytest.raises(ValueError, match=r"seen: expected what Model\.seen returns"):
            model.catalog.rank([0, 0, 0, 1], policy=fr.Uniform(), seen=wrong)


def test_it_is_kept_with_the_model(tmp_path: Path) -> None:
    """4 bytes a pair, mapped; a list is a view."""
    model = make()
    model.save(tmp_path / "m")
    opened = fr.Model.open(tmp_path / "m", verify=True)
    assert (opened.version, opened.seen_id) == (model.version, model.seen_id)
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())["arrays"]
    assert manifest["seen_items"]["bytes"] == 4096 + 4 * (3 + N + 1)
    seen = opened.seen("ann")
    assert seen is not None
    assert seen.items.dtype == np.uint32
    assert np.shares_memory(seen.items, opened._arrays["seen_items"])
    for user in USERS:
        drawn = opened.recommend(user, 8, policy=fr.PlackettLuce(0.7), seed=1)
        assert drawn == model.recommend(user, 8, policy=fr.PlackettLuce(0.7), seed=1)
    none = make(seen=False).with_seen([], [])
    none.save(tmp_path / "none")
    opened = fr.Model.open(tmp_path / "none", verify=True)
    assert (opened.seen_pairs, opened.seen("ann")) == (0, None)
    assert opened.seen_id is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seen_items": None}, "not a model: seen_items is missing or does not fit"),
        ({"seen_offsets": np.array([0, 3], np.int64)}, "not a model: seen_offsets is missing"),
        ({"seen_items": np.array([1, 2, 3], np.int64)}, "not a model: seen_items is missing"),
    ],
)
def test_what_is_no_list_does_not_open(changes: Any, message: str, tmp_path: Path) -> None:
    save_otherwise(tmp_path / "m", changes)
    with pytest.raises(ValueError, match=message):
        fr.Model.open(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "message", "user"),
    [
        ({"seen_items": np.full(64, N, np.uint32)}, "entry 0 is 60, not one of 60 items", "ann"),
        ({"seen_items": np.zeros(64, np.uint32)}, "entry 1 does not ascend within its list", None),
        ({"seen_offsets": np.array([0, 65, 9, 2, 1])}, "does not ascend from 0 to 64", "ann"),
        ({"seen_offsets": np.array([5, 1, 9, 20, 64])}, "does not ascend from 0 to 64", "ann"),
    ],
)
def test_damage_is_named(changes: Any, message: str, user: str | None, tmp_path: Path) -> None:
    """By `verify`, and by the ranking that meets it; nothing is read that is not there."""
    save_otherwise(tmp_path / "m", changes)
    with pytest.raises(ValueError, match=rf"damaged: seen_\w+-[0-9a-f]+\.npy: {message}"):
        fr.Model.open(tmp_path / "m", verify=True)
    if user is not None:
        with pytest.raises(ValueError, match="damaged: seen_"):
            fr.Model.open(tmp_path / "m").recommend(user, policy=fr.Uniform())


def save_otherwise(directory: Path, changes: dict[str, Any]) -> None:
    """A model whose lists were written by somebody else, with hashes that fit."""
    from fastrank import store

    model = make()
    for name, array in changes.items():
        if array is None:
            del model._arrays[name], model._digests[name]
        else:
            model._arrays[name] = array
            model._digests[name] = store.array_digest(array)
    model.save(directory)


def test_a_list_costs_its_length() -> None:
    """Nothing of a request is as long as all lists: what is copied is the user's own."""
    model = make()
    seen = model.seen("ann")
    assert isinstance(seen, Seen)
    assert len(seen.items) == 3
    assert np.shares_memory(seen.items, model._arrays["seen_items"])


class TestCommands:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        pytest.importorskip("click")
        pytest.importorskip("rich")
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        rng = np.random.default_rng(1)
        for name, n in (("items", N), ("users", 4)):
            np.savez(
                tmp_path / f"{name}.npz",
                ids=np.arange(N) * 10 if name == "items" else np.array(USERS),
                vectors=rng.standard_normal((n, 4)),
            )
        users = ["ann", "ann", "ann", "dan", "eve", "eve"]
        items = [30, 50, 30, 590, 10, 7]
        pq.write_table(pa.table({"user": users, "item": items, "n": items}), tmp_path / "s.parquet")
        pq.write_table(
            pa.table({"u": pa.array(users).dictionary_encode(), "i": pa.array(items, pa.int32())}),
            tmp_path / "other.parquet",
        )
        return tmp_path

    def build(self, files: Path, *options: object, name: str = "m") -> Any:
        from commands import run

        given = ("--items", files / "items.npz", "--users", files / "users.npz", "-o", files / name)
        return run("build", *given, *options)

    def test_build_keeps_what_it_knows_and_says_the_rest(self, files: Path) -> None:
        result = self.build(files, "--seen", files / "s.parquet")
        assert result.exit_code == 0, result.output
        model = fr.Model.open(files / "m", verify=True)
        assert model.seen_id is not None
        assert f"Seen: 3 pairs of a user and an item, {model.seen_id[:12]}" in result.stdout
        assert result.stderr.splitlines()[0] == (
            "fastrank build: --seen: 2 of 6 pairs name users that the model does not have"
        )
        assert sorted(model.seen_item_ids("ann").tolist()) == [30, 50]
        assert model.policy is not None  # chosen as without
        bare = self.build(files, name="bare")
        assert bare.exit_code == 0
        assert fr.Model.open(files / "bare").policy == model.policy
        named = ("--seen-user-column", "u", "--seen-item-column", "i")
        result = self.build(files, "--seen", files / "other.parquet", *named, name="other")
        assert result.exit_code == 0, result.output
        assert fr.Model.open(files / "other").version == model.version

    def test_rank_leaves_it_out(self, files: Path) -> None:
        from commands import run

        self.build(files, "--seen", files / "s.parquet")
        model = fr.Model.open(files / "m")
        whole = ("-k", 99, "--inference-type", "uniform")
        result = run("rank", files / "m", "--user", "ann", *whole, "--exclude", "10", "--json")
        record = json.loads(result.stdout)
        assert {*record["item_ids"]} == {10 * i for i in range(N)} - {10, 30, 50}
        assert (record["seen_id"], record["n_eligible"]) == (model.seen_id, N - 3)
        result = run("rank", files / "m", "--user", "bob", *whole, "--json")
        assert json.loads(result.stdout)["seen_id"] is None
        said = " ".join(run("rank", files / "m", "--user", "ann").stdout.split())
        assert "eligible items 58, without what the user has seen" in said

    def test_rank_for_who_has_seen_everything(self, files: Path) -> None:
        from commands import refused, run

        make().save(files / "all")
        options = ("--inference-type", "uniform")
        assert "--user: bob has seen every item that could be ranked" in refused(
            "rank", files / "all", "--user", "bob", *options
        )
        only = (*options, "--allow")
        assert "ann has seen every item" in refused(
            "rank", files / "all", "--user", "ann", *only, "30,50"
        )
        assert run("rank", files / "all", "--user", "ann", *only, "20,30").exit_code == 0

    @pytest.mark.parametrize(
        ("columns", "options", "message"),
        [
            ({"user": ["ann"], "thing": [1]}, (), "s.parquet: no column named item; found user"),
            ({"user": [1], "item": [1]}, (), "s.parquet: user: the ids here are str, got 1"),
            ({"user": ["ann"], "item": ["1"]}, (), "item: the ids here are int64, got '1'"),
            ({"user": ["ann", None], "item": [1, 2]}, (), "s.parquet: user: row 1 is null"),
            ({"user": ["ann"], "item": [1.5]}, (), "item: expected integers or text, got double"),
            ({"user": ["eve"], "item": [10]}, (), "none of 1 pairs names both a user and an item"),
            ({"user": ["ann"], "item": [11]}, (), "none of 1 pairs names both a user and an item"),
            ({"u": ["ann"], "item": [10]}, ("--seen-user-column", "x"), "no column named x"),
        ],
    )
    def test_what_is_no_file_of_pairs(
        self, files: Path, columns: Any, options: Any, message: str
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), files / "s.parquet")
        result = self.build(files, "--seen", files / "s.parquet", *options)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert not (files / "m").exists()

    def test_other_formats_and_options_without_the_file(self, files: Path) -> None:
        result = self.build(files, "--seen", files / "items.npz")
        assert "items.npz: expected .parquet, got .npz" in result.stderr
        for option in ("--seen-user-column", "--seen-item-column"):
            result = self.build(files, option, "x")
            assert f"{option}: needs --seen" in result.stderr


class TestLogs:
    @pytest.fixture(autouse=True)
    def _needs_pyarrow(self) -> None:
        pytest.importorskip("pyarrow")

    def write(self, directory: Path, model: fr.Model, rows: int = 240) -> Any:
        from fastrank.eventlog import LogReader, LogWriter

        rng = np.random.default_rng(0)
        with LogWriter(directory) as log:
            for i in range(rows):
                user = USERS[i % 4] if i % 4 != 1 else "ann"  # bob is shown nothing
                drawn = model.recommend(user, 3, policy=fr.PlackettLuce(0.7), seed=i)
                log.append(drawn, user_id=user, rewards=(rng.random(3) < 0.3).astype(float))
        return LogReader(directory)

    def test_a_row_names_the_lists_and_the_user(self, tmp_path: Path) -> None:
        """No file, and no list in the row, however many users there are."""
        model = make()
        log = self.write(tmp_path / "log", model)
        (batch,) = log
        found = dict(zip(batch.user_ids, batch.values("seen_id"), strict=True))
        assert found == {"ann": model.seen_id, "cat": None, "dan": model.seen_id}
        assert batch.values("exclude") == [None] * 240
        assert not (tmp_path / "log" / "filters").exists()

    def test_who_it_was_must_be_said(self, tmp_path: Path) -> None:
        from fastrank.eventlog import LogWriter

        model = make()
        with LogWriter(tmp_path) as log:
            drawn = model.recommend("ann", 3, policy=fr.Uniform())
            with pytest.raises(
                ValueError, match="user_id: required, since the ranking left out what its"
            ):
                log.append(drawn)
            log.append(model.recommend("cat", 3, policy=fr.Uniform()))
            batch = model.recommend_batch(USERS, 3, policy=fr.PlackettLuce(1.0))
            log.append_batch(batch, user_ids=USERS)
        from logs import drain

        rows = drain(tmp_path)[0][1:]
        assert [one["seen_id"] for one in rows] == [
            model.seen_id,
            model.seen_id,
            None,
            model.seen_id,
        ]
        assert [one["user_temperature"] for one in rows] == [1.0, 2.0, 0.5, 1.5]
        assert {one["model_version"] for one in rows} == {model.version}

    def test_an_audit_takes_it_into_account(self, tmp_path: Path) -> None:
        from fastrank import ope

        model = make()
        log = self.write(tmp_path / "log", model)
        checks = {each.name: each for each in ope.audit(log, [model]).checks}
        assert {checks[name].outcome for name in ("propensities", "seeds draw")} == {"passed"}
        # Without the lists nothing can be said of those rows; with others' it would be another law.
        alone = ope.audit(log, [make(seen=False)])
        checks = {each.name: each for each in alone.checks}
        assert "180 not judged: seen not at hand" in checks["propensities"].message
        other = make(seen=False).with_seen(["ann"], [0])
        assert "180 not judged" in next(
            each.message for each in ope.audit(log, [other]).checks if each.name == "propensities"
        )

    def test_an_evaluation_ranks_under_what_was_seen_then(self, tmp_path: Path) -> None:
        """Also of a model that keeps more by now: that holds what the log itself showed."""
        from fastrank import ope

        model, policy = make(), fr.PlackettLuce(0.7)
        log = self.write(tmp_path / "log", model)
        later = model.with_seen(
            [user for user in USERS for _ in range(N)], [10 * i for _ in USERS for i in range(N)]
        )
        asked = [ope.ByModel("same", policy, model), ope.ByModel("later", policy, later)]
        found = ope.evaluate(log, asked, logging=[model], estimators=["ips", "snips"])
        assert found.rows_used == 240
        for each in found.policies:
            diagnostics = each.estimates["ips"].diagnostics
            assert diagnostics is not None
            assert diagnostics.mean_weight == pytest.approx(1.0, abs=1e-6), each.label
            assert diagnostics.ess == pytest.approx(240.0, rel=1e-6)
        # Without the model that keeps the lists, its rows are left out and counted.
        bare = make(seen=False)
        found = ope.evaluate(log, [ope.ByModel("bare", policy, bare)], logging=[bare])
        assert found.set_aside == {"seen_not_at_hand": 180}
        assert "set_aside" in found.policies[0].reasons

    def test_marginals_and_reward_models_know_of_it(self, tmp_path: Path) -> None:
        from fastrank import ope

        model = make()
        log = self.write(tmp_path / "log", model)
        (found,) = ope.evaluate(
            log,
            [ope.ByModel("same", fr.PlackettLuce(0.7), model.with_seen(["cat"], [0]))],
            logging=[model],
            estimators=["iips", "dm"],
            reward_model=lambda query, items: np.where(np.isin(items, [30, 50, 400]), 1e6, 1.0),
        ).policies
        diagnostics = found.estimates["iips"].diagnostics
        assert diagnostics is not None
        assert diagnostics.mean_weight == pytest.approx(1.0, abs=1e-6)
        log_of_ann = ope.evaluate(
            log,
            [ope.ByModel("same", fr.PlackettLuce(1e-3), model)],
            logging=[model],
            estimators=["dm"],
            reward_model=lambda query, items: np.where(np.isin(items, ids("ann")), 1e6, 1.0),
        )
        value = log_of_ann.policies[0].estimates["dm"].value
        assert value is not None
        best = {user: set(model.recommend(user, 3, policy=fr.Deterministic()).item_ids.tolist())
                for user in ("cat", "dan")}  # fmt: skip
        expected = 3.0 + sum(0.25 * 1e6 * len(each & {*ids("ann")}) for each in best.values())
        assert value == pytest.approx(expected, rel=1e-3)

    def test_joins_keep_it_and_version_1_has_none(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from logs import drain, row, table
        from test_eventlog_join import LATER, write_rewards

        from fastrank.eventlog import LogReader, join

        rows = [row(0, seen_id="s", user_id="ann", rewards=None, reward_kind=None), row(1)]
        rows[1] |= {"rewards": None, "reward_kind": None}
        (tmp_path / "log").mkdir()
        pq.write_table(table(rows), tmp_path / "log" / "a.parquet")
        clicks = write_rewards(tmp_path / "r.csv")
        join(tmp_path / "log", clicks, tmp_path / "out", window="1h", as_of=LATER, kind="positives")
        assert [one["seen_id"] for one in drain(tmp_path / "out")[0]] == ["s", None]
        own = table([row(0)], version=1).append_column("seen_id", pa.array([7.0]))
        (batch,) = LogReader.of_tables(own)  # a column of somebody's own
        assert batch.values("seen_id") == [None]

    def test_rows_that_differ_in_it_are_not_the_same(self) -> None:
        from logs import report_of, row

        rows = [row(0), row(0, seen_id="s"), row(0)]
        report = report_of(*rows)
        assert (report.equal_duplicates, report.set_aside) == (1, {"duplicate request id": 1})
