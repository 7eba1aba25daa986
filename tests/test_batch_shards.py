"""RankUsers over the shards of a catalog: rows of the merged rankings, or none."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from support import N_DRAWS, assert_independent, assert_law
from test_batch_users import RUN, TS, same_columns, users

import fastrank as fr
from fastrank import batch, reference
from fastrank.batch import RankUsers, Shard
from fastrank.batch.manifest import MANIFEST
from fastrank.eventlog import LogReader, LogWriter, schema
from fastrank.eventlog.schema import IdKind

USERS = [f"u{i}" for i in range(60)]
N, CUTS = 40, ((0, 1), (1, 15), (15, 40))  # one shard of a single item
RNG = np.random.default_rng(1)
VECTORS = RNG.standard_normal((N, 4)).astype(np.float32)
QUERIES = RNG.standard_normal((60, 4)).astype(np.float32)
BIAS = RNG.standard_normal(N).astype(np.float32)
OWN = RNG.uniform(0.3, 3.0, 60)
SEEN = RNG.integers(0, 30, 200), RNG.integers(0, N, 200)


def model_of(a: int, b: int, kind: str = "int64", **changed: Any) -> fr.Model:
    """A shard of 40 items, of users who differ in their temperatures and in what they have seen."""
    ids: Any = np.arange(N) * 3 if kind == "int64" else np.array([f"item {i}" for i in range(N)])
    catalog = fr.Catalog(ids[a:b], VECTORS[a:b], bias=BIAS[a:b])
    catalog = catalog.with_features({"price": np.arange(a, b) % 3})
    own = {"user_temperatures": OWN, "policy": fr.PlackettLuce(0.5), **changed}
    model = fr.Model(catalog, USERS, QUERIES, **own)
    return model.with_seen([USERS[i] for i in SEEN[0]], ids[SEEN[1]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("shards")
    found: dict[str, list[Path]] = {}
    for kind in ("int64", "str"):
        for a, b in CUTS:
            found.setdefault(kind, []).append(folder / f"{kind}-{a}")
            model_of(a, b, kind).save(found[kind][-1])
    return found


@pytest.fixture(scope="module")
def shards(models: dict[str, list[Path]]) -> list[Shard]:
    return [Shard(path) for path in models["int64"]]


def ranker(shards: Sequence[Any], k: int = 6, **asked: Any) -> RankUsers:
    return RankUsers(None, RUN, k, ts=TS, shards=shards, **asked)


ASKED: dict[str, dict[str, Any]] = {
    "the models' own policy": {},
    "deterministic": {"policy": fr.Deterministic()},
    "uniform": {"policy": fr.Uniform()},
    "sequential": {"policy": fr.PlackettLuce(0.4, sampler="sequential")},
    "filters": {"exclude": [3, 6, 9], "allow": list(range(0, 90, 3))},
    "long filters": {"exclude": [*range(0, 60, 6), *range(1000, 1060)]},
    "a score": {"score": "2 * dot - a * price", "params": {"a": 0.5}},
    "rules": {"rules": fr.Rules(where="price < 2", boost={"price == 1": 2.0})},
    "fewer items than places": {"allow": [0, 3]},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
@pytest.mark.parametrize("kind", ["int64", "str"])
def test_rows_are_those_of_the_merged_rankings(
    kind: IdKind, asked: dict[str, Any], models: dict[str, list[Path]], tmp_path: Path
) -> None:
    if kind == "str":
        renamed = {"exclude", "allow"} & asked.keys()
        asked = asked | {name: [f"item {i // 3}" for i in asked[name]] for name in renamed}
    found = ranker([Shard(path) for path in models[kind]], **asked)(users(USERS))
    found.validate(full=True)
    assert found.schema.equals(schema(kind), check_metadata=True)
    each: dict[str, Any] = {
        name: [value] * 60 if name in ("exclude", "allow") else value
        for name, value in asked.items()
    }
    seeds = RUN.seeds(USERS)
    parts = [
        fr.Model.open(path).recommend_batch(
            USERS, 6, seeds=[fr.shard_seed(int(seed), i) for seed in seeds], **each
        )
        for i, path in enumerate(models[kind])
    ]
    merged = fr.merge_batch(parts, 6, seeds=seeds)
    with LogWriter(tmp_path) as log:
        log.append_batch(merged, user_ids=USERS, run=RUN, ts=TS, displayed=0, seed_source="derived")
    (file,) = tmp_path.glob("*.parquet")
    written = pq.read_table(file).cast(schema(kind))
    same_columns(found, written, ("writer_id", "writer_seq"))
    assert found["seen_id"][0].as_py() != found["catalog_version"][0].as_py()


def test_versions_are_hashes_of_the_shards_own(
    models: dict[str, list[Path]], shards: list[Shard]
) -> None:
    opened = [fr.Model.open(path) for path in models["int64"]]
    rows = ranker(shards)(users(USERS[:3]))
    for name, own in (
        ("catalog_version", [model.catalog.version for model in opened]),
        ("model_version", [model.version for model in opened]),
    ):
        assert set(rows[name].to_pylist()) == {hashlib.sha256("\n".join(own).encode()).hexdigest()}
    turned = ranker(shards[::-1])(users(USERS[:3]))
    assert turned["catalog_version"][0] != rows["catalog_version"][0]


def test_users_are_drawn_by_the_law_of_the_whole(tmp_path: Path) -> None:
    """Two comparisons, of a budget of 1e-9 each (tests/support.py)."""
    pytest.importorskip("scipy")
    scores, names = np.array([[0.3], [-1.2], [0.9], [0.0]]), [f"u{i}" for i in range(2 * N_DRAWS)]
    policy = fr.PlackettLuce(0.8)
    for a, b in ((0, 3), (3, 4)):
        catalog = fr.Catalog(np.arange(a, b), scores[a:b])
        fr.Model(catalog, names, np.ones((len(names), 1)), policy=policy).save(tmp_path / str(a))
    rows = ranker([Shard(tmp_path / "0"), Shard(tmp_path / "3")], 2)(users(names))
    orders = np.array(rows["item_ids"].to_pylist())
    whole = fr.Catalog(np.arange(4), scores)
    law = reference.ranking_law(whole.scores([1.0]), 2, policy)
    assert_law(orders, law)
    assert_independent(orders[:N_DRAWS, 0], orders[N_DRAWS:, 0], law)


def test_neither_order_nor_parts_nor_a_copy_show(shards: list[Shard]) -> None:
    rank = ranker(shards)
    whole = rank(users(USERS))
    assert len(pickle.dumps(rank)) < 1500
    order = np.random.default_rng(3).permutation(60)
    parts = [
        pickle.loads(pickle.dumps(rank))(users([USERS[i] for i in some]))
        for some in np.split(order, [1, 20])
    ]
    same_columns(pa.concat_tables(parts).combine_chunks(), whole.take(pa.array(order)))


def test_threads_change_nothing(models: dict[str, list[Path]], shards: list[Shard]) -> None:
    two = [Shard(path, threads=2) for path in models["int64"]]
    same_columns(ranker(two)(users(USERS)), ranker(shards)(users(USERS)))


def test_strangers(models: dict[str, list[Path]], shards: list[Shard]) -> None:
    names = ["u3", "nobody", "u4", "else"]
    with pytest.raises(ValueError, match=r"users: row 1: 'nobody' is not in the model"):
        ranker(shards)(users(names))
    known = ranker(shards)(users(["u3", "u4"]))
    same_columns(ranker(shards, unknown="skip")(users(names)), known)
    assert ranker(shards, unknown="skip")(users(["nobody"])).num_rows == 0
    rows = ranker(shards, unknown="fallback")(users(names))
    assert rows["is_fallback"].to_pylist() == [False, True, False, True]
    assert rows["query"].to_pylist() == [None, [0.0] * 4, None, [0.0] * 4]
    seed = int(RUN.seeds(["nobody"])[0])
    parts = [
        fr.Model.open(path).catalog.rank(
            np.zeros(4), 6, policy=fr.PlackettLuce(0.5), seed=fr.shard_seed(seed, i)
        )
        for i, path in enumerate(models["int64"])
    ]
    merged = fr.merge(parts, 6, seed=seed)
    assert rows["item_ids"][1].as_py() == merged.item_ids.tolist()
    assert rows["log_propensity"][1].as_py() == merged.log_propensity
    assert len(set(rows["model_version"].to_pylist())) == 1
    same_columns(rows.take([0, 2]), known)


def test_somebody_for_whom_a_shard_has_nothing(shards: list[Shard]) -> None:
    rows = ranker(shards, allow=[0])(users(USERS))
    first = {USERS[i] for i, item in zip(*SEEN, strict=True) if item == 0}
    counts = dict(
        zip(rows["user_id"].to_pylist(), map(len, rows["item_ids"].to_pylist()), strict=True)
    )
    assert counts == {name: int(name not in first) for name in USERS}
    assert 0 < len(first) < 60


# Runs


def files_of_users(folder: Path) -> Path:
    pq.write_table(pa.table({"user_id": USERS}), folder / "users.parquet")
    return folder / "users.parquet"


def test_a_run(models: dict[str, list[Path]], shards: list[Shard], tmp_path: Path) -> None:
    names, log = files_of_users(tmp_path), tmp_path / "log"
    asked: dict[str, Any] = {"run": "night", "k": 6, "part_rows": 25}
    done = batch.run(names, log, shards=shards, processes=1, **asked)
    assert (done.users, done.rows, done.parts) == (60, 60, 3)
    said = json.loads((log / MANIFEST).read_text())
    assert said["model"] is None
    assert [(each["path"], each["n_items"]) for each in said["shards"]] == [
        (str(path), b - a) for path, (a, b) in zip(models["int64"], CUTS, strict=True)
    ]
    rows = pq.read_table(log).sort_by("user_id")
    again = [Shard(path) for path in models["int64"]]
    rank = RankUsers(**batch.begin(log, run="night", k=6, shards=again))
    same_columns(rows.combine_chunks(), rank(users(sorted(USERS))))
    # Two processes, which open the shards themselves.
    other = tmp_path / "other"
    other.mkdir()
    (other / MANIFEST).write_text((log / MANIFEST).read_text())
    batch.run(names, other, shards=again, processes=2, **asked)
    same_columns(pq.read_table(other).sort_by("user_id").combine_chunks(), rows.combine_chunks())
    with pytest.raises(ValueError, match="log holds another run: its model_version is"):
        batch.run(names, log, shards=shards[::-1], processes=1, **asked)
    reader = LogReader(log)
    assert sum(map(len, reader)) == 60
    assert (reader.report.duplicates, reader.report.files_set_aside) == (0, {})


def test_an_audit_reads_its_log(shards: list[Shard], tmp_path: Path) -> None:
    """And judges what it can without the catalog, which no single model holds."""
    pytest.importorskip("scipy")
    from fastrank import ope

    rows = ranker(shards)(users(USERS))
    at = rows.schema.get_field_index("displayed")
    shown = pa.array([6] * 60, rows.schema.field(at).type)  # as once all was shown
    pq.write_table(rows.set_column(at, rows.schema.field(at), shown), tmp_path / "log.parquet")
    checks = ope.audit(LogReader(tmp_path), []).checks
    found = {check.name: (check.outcome, check.rows) for check in checks}
    assert found["first place"] == ("passed", 60)
    assert {outcome for outcome, _ in found.values()} <= {"passed", "not done", "failed"}
    assert [name for name, (outcome, _) in found.items() if outcome == "failed"] == ["model"]


class Silent(Shard):
    """Ranks so many times, and then no more."""

    def __init__(self, model: Path, times: int, answer: Callable[[], Any]) -> None:
        super().__init__(model)
        self.times, self.answer = times, answer

    def rank(self, *given: Any, **asked: Any) -> fr.RankingBatch:
        self.times -= 1
        if self.times < 0:
            answer: fr.RankingBatch = self.answer()
            return answer
        return super().rank(*given, **asked)


def _gone() -> None:
    raise TimeoutError("not within 5 s")


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (_gone, ConnectionError, r"shards\[1\] did not answer \(TimeoutError: not within 5 s\);"),
        (lambda: None, ValueError, r"shards\[1\]: expected 25 rankings, got None"),
    ],
)
def test_a_shard_that_does_not_answer(
    answer: Callable[[], Any],
    kind: type[Exception],
    said: str,
    shards: list[Shard],
    models: dict[str, list[Path]],
    tmp_path: Path,
) -> None:
    """The part has no file, and a rerun makes it."""
    names, log = files_of_users(tmp_path), tmp_path / "log"
    asked: dict[str, Any] = {"run": "night", "k": 6, "part_rows": 25, "processes": 1}
    # Before the first part one user is ranked, for the manifest.
    broken = [shards[0], Silent(models["int64"][1], 2, answer), shards[2]]
    with pytest.raises(kind, match=said) as error:
        batch.run(names, log, shards=broken, **asked)
    assert "\n" not in str(error.value)
    assert len(list(log.iterdir())) == 2  # the manifest and the first part
    done = batch.run(names, log, shards=shards, **asked)
    assert (done.rows, done.there) == (60, 1)
    reader = LogReader(log)
    assert (sum(map(len, reader)), reader.report.duplicates) == (60, 0)

    other = tmp_path / "other"
    broken[1] = Silent(models["int64"][1], 0, answer)
    with pytest.raises(kind, match=r"shards\[1\]"):
        batch.run(names, other, shards=broken, **asked)
    assert not other.exists()


def test_a_shard_whose_model_is_another_by_now(tmp_path: Path) -> None:
    for a, b in CUTS:
        model_of(a, b).save(tmp_path / str(a))
    shards = [Shard(tmp_path / str(a)) for a, _ in CUTS]
    rank = ranker(shards)
    rank(users(USERS[:2]))
    before = rank._about.version
    del shards[2].__dict__["_opened"]  # as an actor that Ray began anew
    model_of(15, 39).save(tmp_path / "15")
    with pytest.raises(ValueError, match=r"shards\[2\]: its model is version .* now; it was"):
        rank(users(USERS[:2]))
    with pytest.raises(ValueError, match=rf"shards: the whole is version .* begun with {before}"):
        ranker(shards, model_version=before)(users(USERS[:2]))


# Bad input


def other_shards(tmp_path: Path, **changed: Any) -> list[Shard]:
    """Two shards, of which the second is another one."""
    model_of(0, 15).save(tmp_path / "first")
    changed["make"](15, 40).save(tmp_path / "second")
    return [Shard(tmp_path / "first"), Shard(tmp_path / "second")]


def _dimension(a: int, b: int) -> fr.Model:
    catalog = fr.Catalog(np.arange(a, b) * 3, np.ones((b - a, 5)))
    return fr.Model(catalog, USERS, np.ones((60, 5)), policy=fr.PlackettLuce(0.5))


def _fewer_users(a: int, b: int) -> fr.Model:
    catalog = fr.Catalog(np.arange(a, b) * 3, np.ones((b - a, 4)))
    return fr.Model(catalog, USERS[:50], QUERIES[:50], policy=fr.PlackettLuce(0.5))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_dimension, "dimension: expected 4, as in shards\\[0\\], got 5"),
        (_fewer_users, "users: expected those of shards\\[0\\], with their vectors and"),
        (lambda a, b: model_of(a, b, user_temperatures=None), "users: expected those of"),
        (
            lambda a, b: model_of(a, b, "str"),
            "item ids: expected 'int64', as in shards\\[0\\], got",
        ),
        (
            lambda a, b: model_of(a, b, policy=fr.PlackettLuce(0.6)),
            r"policy: expected PlackettLuce\(temperature=0.5.*, as in shards\[0\], got .*0.6",
        ),
        (lambda a, b: model_of(a - 1, b), "item 42 is in shards\\[0\\], too; the shards of a"),
    ],
)
def test_shards_that_are_of_no_one_catalog(
    make: Callable[[int, int], fr.Model], said: str, tmp_path: Path
) -> None:
    shards = other_shards(tmp_path, make=make)
    with pytest.raises(ValueError, match=rf"^shards\[1\]: {said}") as error:
        ranker(shards)(users(USERS))
    assert "\n" not in str(error.value)
    log, names = tmp_path / "log", files_of_users(tmp_path)
    with pytest.raises(ValueError, match=rf"^shards\[1\]: {said}"):
        batch.run(names, log, run="night", shards=shards, processes=1)
    assert not log.exists()


def test_an_item_that_is_text_in_two_shards(tmp_path: Path) -> None:
    model_of(0, 15, "str").save(tmp_path / "a")
    model_of(14, 40, "str").save(tmp_path / "b")
    with pytest.raises(ValueError, match=r"^shards\[1\]: item 'item 14' is in shards\[0\], too"):
        ranker([Shard(tmp_path / "a"), Shard(tmp_path / "b")])(users(USERS))


def test_items_that_share_a_hash_are_two(
    models: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text is compared by hashes first; what counts is the text."""
    monkeypatch.setattr(
        "fastrank.batch.sharded.text_hashes", lambda texts: np.zeros((len(texts), 2), np.uint64)
    )
    assert ranker([Shard(path) for path in models["str"]])(users(USERS)).num_rows == 60


@pytest.mark.parametrize(
    "policy",
    [
        fr.EpsilonGreedy(0.1),
        fr.FlatTail(0.5, m=10, factor=0.2),
        fr.BestFirst(2, fr.PlackettLuce(0.5)),
    ],
)
def test_policies_that_cannot_be_merged(
    policy: fr.Policy, shards: list[Shard], tmp_path: Path
) -> None:
    said = "policy: expected Deterministic, PlackettLuce or Uniform, which can be merged, got"
    with pytest.raises(ValueError, match=said):
        ranker(shards, policy=policy)
    with pytest.raises(ValueError, match=f"fallback{said[6:]}"):
        ranker(shards, unknown="fallback", fallback=policy)
    for a, b in CUTS[1:]:
        model_of(a, b, policy=policy).save(tmp_path / str(a))
    with pytest.raises(ValueError, match=said):
        ranker([Shard(tmp_path / str(a)) for a, _ in CUTS[1:]])(users(USERS))


def test_shards_without_a_policy(tmp_path: Path) -> None:
    for a, b in CUTS[1:]:
        model_of(a, b, policy=None).save(tmp_path / str(a))
    shards = [Shard(tmp_path / str(a)) for a, _ in CUTS[1:]]
    with pytest.raises(ValueError, match="policy: the shards have none of their own: give one"):
        ranker(shards)(users(USERS))
    with pytest.raises(ValueError, match="policy: the shards have none of their own: give one"):
        batch.begin(tmp_path / "log", run="night", shards=shards)
    assert ranker(shards, policy=fr.Uniform())(users(USERS)).num_rows == 60


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "model"}, "model: expected a path, or shards instead; got both"),
        ({"shards": None}, "model: expected a path, or shards instead; got neither"),
        ({"shards": []}, r"shards: expected a sequence of Shards, got \[\]"),
        ({"shards": "model"}, "shards: expected a sequence of Shards, got 'model'"),
        (
            {"shards": ["model"]},
            r"shards\[0\]: expected a fastrank.batch.Shard, or an actor of one",
        ),
        ({"shards": [Shard]}, r"shards\[0\]: expected a fastrank.batch.Shard"),
        ({"score_functions": ["a:b"]}, "score_functions: each Shard takes its own"),
        ({"rules": fr.Rules(cap={"price": 1})}, "rules: expected where, boost and boost_score"),
        (
            {"rules": fr.Rules(where="price > 0", on_empty="relax")},
            "rules: expected where, boost and boost_score alone",
        ),
        ({"shard_timeout": 0}, "shard_timeout: expected seconds above 0, got 0"),
        ({"shard_timeout": np.nan}, "shard_timeout: expected seconds above 0, got nan"),
        ({"shard_timeout": "5"}, "shard_timeout: expected seconds above 0, got '5'"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], said: str, shards: list[Shard]) -> None:
    usual: dict[str, Any] = {"model": None, "run": RUN, "k": 6, "ts": TS, "shards": shards}
    with pytest.raises(ValueError, match=said) as error:
        RankUsers(**{**usual, **changed})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((3,), "model: expected a path, got 3"),
        (("model", 0), "threads: must be at least 1, got 0"),
        (("model", 1, "a:b"), "score_functions: expected several, got 'a:b'"),
    ],
)
def test_bad_shards(given: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Shard(*given)


def test_what_is_wrong_with_a_user_names_them(shards: list[Shard]) -> None:
    with pytest.raises(ValueError, match=r"^shards\[0\]: temperature: .* of user 'u\d+'"):
        ranker(shards, policy=fr.PlackettLuce(1e6))(users(USERS))
    rules = fr.Rules(where="price > 0")  # for which the only item of a shard does not stand
    with pytest.raises(ValueError, match=r"^user 'u7': shards\[0\]: rules: where: .* no item"):
        ranker(shards, rules=rules)(users(USERS[7:]))


def test_actors_are_asked_by_ray_or_one_process(shards: list[Shard], tmp_path: Path) -> None:
    class Actor(Shard):
        def __getattribute__(self, name: str) -> Any:
            if name == "rank":
                return type("Method", (), {"remote": None})()
            return super().__getattribute__(name)

    actors = [Actor(each.model) for each in shards]
    names, log = files_of_users(tmp_path), tmp_path / "log"
    for processes in (2, None):
        with pytest.raises(ValueError, match='shards: actors of Ray are asked with engine="ray"'):
            batch.run(names, log, run="night", shards=actors, processes=processes)
    assert not log.exists()
