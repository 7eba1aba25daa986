"""Tables that are made ahead: saved, mapped, used where they were promised, and nowhere else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from commands import refused, run

import fastrank as fr
from fastrank import _native, _probes, ope
from fastrank.eventlog import LogReader, LogWriter
from fastrank.verify import Verdict, verify

N, USERS = 3000, 12
AUTO, CACHED = (fr.PlackettLuce(0.5, sampler=sampler) for sampler in ("auto", "cached"))
RNG = np.random.default_rng(0)
ITEMS = RNG.standard_normal((N, 8)).astype(np.float32)
VECTORS = RNG.standard_normal((USERS, 8)).astype(np.float32)


def model_of(**options: Any) -> fr.Model:
    catalog = fr.Catalog(np.arange(N), ITEMS, storage=options.pop("storage", "float32"))
    return fr.Model(catalog, [f"u{i}" for i in range(USERS)], VECTORS, **options)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_table_made_ahead_draws_what_one_made_for_the_request_draws(
    storage: str, tmp_path: Path
) -> None:
    temperatures = np.linspace(0.3, 3.0, USERS)
    plain = model_of(storage=storage, user_temperatures=temperatures)
    ready = plain.with_tables(CACHED, threads=2)
    ready.save(tmp_path / "model")
    opened = fr.Model.open(tmp_path / "model", verify=True)
    assert plain.version == ready.version == opened.version
    assert (plain.table_temperature, opened.table_temperature) == (None, 0.5)
    for user in ("u0", "u7"):
        ranking = plain.recommend(user, policy=CACHED, seed=3)
        assert ranking.made_by == "table"
        for model in (ready, opened):
            assert model.recommend(user, policy=CACHED, seed=3) == ranking
            assert model.catalog.tables_made == 0 or model is ready
            auto = model.recommend(user, policy=AUTO, seed=3)
            assert auto.item_ids.tolist() == ranking.item_ids.tolist()
            assert auto.log_propensities.tobytes() == ranking.log_propensities.tobytes()
            factor = temperatures[int(user[1:])]
            assert auto.policy == fr.PlackettLuce(0.5 * factor, sampler="auto")
            assert (auto.made_by, auto.user_temperature) == ("table", factor)
    assert opened.catalog.tables_made == 0


def test_auto_is_decided_by_the_models_files_and_the_request() -> None:
    """Not by what the catalog happens to keep, so replicas agree."""
    model = model_of().with_tables(AUTO, ["u3", "u1"])
    for policy in (AUTO, CACHED):  # the second makes the tables that it lacks
        for user, other in (("u1", None), ("u2", None), ("u1", 0.6)):
            asked = policy if other is None else policy.at_temperature(other)
            ranking = model.recommend(user, policy=asked, seed=5)
            has_table = policy is CACHED or (user, other) == ("u1", None)
            assert ranking.made_by == ("table" if has_table else "pass")
            same_as = "cached" if has_table else "gumbel"
            same = model.recommend(user, policy=asked.with_sampler(same_as), seed=5)
            assert ranking.item_ids.tolist() == same.item_ids.tolist()
    head = model.recommend("u1", policy=fr.BestFirst(2, AUTO), seed=5)
    assert (head.made_by, head.policy) == ("table", fr.BestFirst(2, AUTO))
    assert model.recommend("u2", policy=AUTO, seed=5).made_by == "pass"  # though it is kept now
    by_vector = model.catalog.rank(VECTORS[1], policy=AUTO, seed=5)
    assert by_vector.made_by == "pass"


def test_other_temperatures_of_users_leave_no_tables() -> None:
    model = model_of().with_tables(AUTO)
    assert model.with_user_temperatures(np.ones(USERS)).table_temperature is None


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        ("policy: expected PlackettLuce", {"policy": fr.EpsilonGreedy(0.1)}),
        ("policy: expected PlackettLuce", {"policy": fr.Uniform()}),
        ("policy: expected one of fastrank's policies", {"policy": "auto"}),
        ("user_ids: 'nobody' is not in the model", {"user_ids": ["u1", "nobody"]}),
        ("threads: ", {"threads": 0}),
        ("max_bytes: tables of 12 users take .* room for 3", {"max_bytes": 3000}),
        ("max_bytes: ", {"max_bytes": -1}),
    ],
)
def test_what_cannot_be_made_is_named(problem: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=problem):
        model_of().with_tables(**{"policy": AUTO, **options})


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    model_of().with_tables(AUTO, advance=lambda done, total: told.append((done, total)))
    assert told == [(USERS, USERS)]


# Damaged files


def changed(folder: Path, **values: Any) -> None:
    """Other values in the manifest, and its hash anew."""
    from fastrank import store

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= values
    del manifest["manifest_sha256"]
    manifest["manifest_sha256"] = store.content_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replaced(folder: Path, name: str, array: Any) -> None:
    """Another array under the name in the manifest: who can write files can write hashes, too."""
    from fastrank import store

    manifest = json.loads((folder / "manifest.json").read_text())
    names = [each for each in manifest["arrays"] if each != name or array is not None]
    arrays = {
        each: array if each == name else np.load(folder / manifest["arrays"][each]["file"])
        for each in names
    }
    left = ("arrays", "format", "format_version", "manifest_sha256")
    meta = {key: value for key, value in manifest.items() if key not in left}
    digests = {each: store.array_digest(value) for each, value in arrays.items()}
    store.write(folder, meta, arrays, digests)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("table_depths", None),
        ("table_tops", None),
        ("table_depths", np.zeros((2, 7), np.uint32)),
        ("table_depths", np.zeros((2, _native.table_size(N)), np.int32)),
        ("table_tops", np.zeros((3, 2))),
        ("table_users", np.array([3, 1])),
        ("table_users", np.array([-1, 1])),
        ("table_users", np.array([1, USERS])),
        ("table_users", np.array([1.0, 2.0])),
        ("table_users", np.array(1)),
    ],
)
def test_tables_that_are_not_of_this_model_are_refused(
    name: str, array: Any, tmp_path: Path
) -> None:
    model_of().with_tables(AUTO, ["u3", "u1"]).save(tmp_path)
    replaced(tmp_path, name, array)
    with pytest.raises(ValueError, match="not a model: table_"):
        fr.Model.open(tmp_path)


def test_tables_of_another_catalog_are_refused(tmp_path: Path) -> None:
    """Files that were put together by hand: what they belong to stands in the manifest."""
    model_of().with_tables(AUTO).save(tmp_path)
    other = np.ascontiguousarray(ITEMS[::-1])
    catalog = fr.Catalog(np.arange(N), other)
    replaced(tmp_path, "panels", catalog._arrays["panels"])
    with pytest.raises(ValueError, match="not a model: table_of: made for other items, users or"):
        fr.Model.open(tmp_path)


def test_numbers_that_no_table_has_do_no_harm(isa: str, tmp_path: Path) -> None:
    """Rankings mean nothing then, and are of different items."""
    model = model_of()
    packed, query = model.catalog._packed, VECTORS[0]
    size = _native.table_size(N)
    rng = np.random.default_rng(3)
    bits, left = _native.make_filter(N, None, np.arange(0, N, 61))
    for top in (0.0, 1e300, -1e300, np.inf, -np.inf, np.nan):
        for depths in (
            rng.integers(0, 2**32, size, dtype=np.uint64).astype(np.uint32),
            np.zeros(size, np.uint32),
            np.full(size, 0xFFFFFFFF, np.uint32),
            np.full(size, 0xE0000000, np.uint32),
        ):
            for eligible, count in ((None, N), (bits, left)):
                for largest in (0.0, top):
                    found = packed.rank(
                        *(query, 50, _native.TABLE, 0.5, 0.0, 1, None, eligible, count, 1),
                        (depths, top, largest),
                    )
                    positions = found[0]
                    assert len(set(positions.tolist())) == len(positions) <= 50
                    assert ((positions >= 0) & (positions < N)).all()
                    if eligible is not None and not found[6]:
                        assert (positions % 61 != 0).all()
    model.with_tables(AUTO).save(tmp_path)
    replaced(tmp_path, "table_tops", np.full((USERS, 2), np.nan))
    with pytest.raises(ValueError, match="not a model: table_tops: expected finite numbers"):
        fr.Model.open(tmp_path)


def test_another_temperature_in_the_manifest_is_refused(tmp_path: Path) -> None:
    """Its tables would be drawn from for requests whose law is another one."""
    model_of().with_tables(AUTO).save(tmp_path)
    for temperature in (0.25, 1e300, 1, True, "0.5", None, float("nan")):
        changed(tmp_path, table_temperature=temperature)
        with pytest.raises(ValueError, match="not a model: table_"):
            fr.Model.open(tmp_path)


@pytest.mark.skipif(
    not {"v2", "v3"} <= set(_probes.isa_names()), reason="this CPU does not run both builds"
)
def test_tables_of_a_cpu_that_rounds_otherwise_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At T = 1e-3 their masses were off by 0.003 of what the other's scores make."""
    before = _native.set_isa("v3")
    try:
        model_of().with_tables(AUTO).save(tmp_path)
        assert fr.Model.open(tmp_path).table_temperature == 0.5
        _native.set_isa("v2")
        opened = fr.Model.open(tmp_path)
        assert opened.table_temperature is None
        assert "rounds otherwise" in caplog.text
        assert opened.recommend("u1", policy=AUTO).made_by == "pass"
    finally:
        _native.set_isa(before)


def test_verify_makes_tables_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else it looks at is test_verify.py's."""
    monkeypatch.setattr(
        sys.modules[verify.__module__], "verify_catalog", lambda *_, **__: Verdict(())
    )
    right = model_of(user_temperatures=np.linspace(0.5, 2.0, USERS)).with_tables(AUTO, ["u3", "u1"])
    right.save(tmp_path / "right")
    tables = right._tables
    assert tables is not None
    right._tables = tables._replace(depths=np.ascontiguousarray(tables.depths[:, ::-1]))
    right.save(tmp_path / "wrong")
    for name, passed in (("right", True), ("wrong", False)):
        found = verify(tmp_path / name, draws=1000)
        [check] = [check for check in found.checks if check.name == "tables"]
        assert check.passed is passed, check.detail
        assert "of 2 users" in check.detail


def test_a_policy_that_is_none_is_refused_as_without_tables() -> None:
    wrong: Any
    for wrong in ("x", 3):
        for model in (model_of(), model_of().with_tables(AUTO)):
            with pytest.raises(ValueError, match="policy: expected one of fastrank's policies"):
                model.recommend("u1", policy=wrong)
        assert not model.keep_table("u1", wrong)


def test_ready_tables_need_no_room_in_the_cache(tmp_path: Path) -> None:
    model_of().with_tables(AUTO).save(tmp_path)
    opened = fr.Model.open(tmp_path, cache_bytes=0)
    for _ in range(2):
        assert opened.recommend("u1", policy=CACHED).made_by == "table"
    assert opened.catalog.tables_made == 0


# Around it


def test_a_log_says_how_a_row_was_made_and_audit_draws_it_again(tmp_path: Path) -> None:
    model = model_of().with_tables(AUTO, ["u0", "u1"])
    with LogWriter(tmp_path) as log:
        for i in range(40):
            user = f"u{i % 4}"
            log.append(model.recommend(user, 5, policy=AUTO, seed=i), user_id=user)
    (batch,) = LogReader(tmp_path)
    rows = batch.table.to_pylist()
    assert {row["policy_name"] for row in rows} == {"stochastic_plackett_luce_auto"}
    assert {row["sampler"] for row in rows} == {"auto"}
    assert [row["made_by"] for row in rows] == ["table", "table", "pass", "pass"] * 10
    assert {row["n_scored"] for row in rows[2::4]} == {N}
    found = {check.name: check for check in ope.audit(LogReader(tmp_path), [model_of()]).checks}
    assert (found["seeds draw"].outcome, found["seeds draw"].rows) == ("passed", 40)
    assert found["propensities"].outcome == "passed"


def test_a_row_that_does_not_say_how_it_was_made_is_not_called_forged(tmp_path: Path) -> None:
    model = model_of().with_tables(AUTO)
    with LogWriter(tmp_path / "own") as log:
        for i in range(20):
            log.append(model.recommend("u1", 5, policy=AUTO, seed=i), user_id="u1")
    (batch,) = LogReader(tmp_path / "own")
    at = batch.table.schema.get_field_index("made_by")
    silent = batch.table.set_column(at, batch.table.schema.field(at), pa.nulls(20, pa.string()))
    found = ope.audit(LogReader.of_tables(silent), [model])
    assert {check.name: check.outcome for check in found.checks}["seeds draw"] == "not done"


def test_build_makes_tables(tmp_path: Path) -> None:
    np.savez(tmp_path / "items.npz", ids=np.arange(N), vectors=ITEMS)
    np.savez(tmp_path / "users.npz", ids=[f"u{i}" for i in range(USERS)], vectors=VECTORS)

    files = ["--items", str(tmp_path / "items.npz"), "--users", str(tmp_path / "users.npz")]
    build = ["build", *files, "-o", str(tmp_path / "model"), "--replace"]
    done = run(*build, "--tables", "plackett_luce:temperature=0.5")
    assert "Tables of all users at temperature 0.5." in done.stdout
    model = fr.Model.open(tmp_path / "model")
    own = model.recommend("u2", policy=AUTO, seed=4)
    assert own.made_by == "table"
    rank = ["rank", tmp_path / "model", "--user", "u2", "--inference-type", AUTO.inference_type]
    record = json.loads(run(*rank, "--seed", 4, "--json").stdout)  # at the tables' temperature
    assert record["item_ids"] == own.item_ids.tolist()
    assert (record["made_by"], record["n_scored"]) == ("table", own.n_scored)
    assert record["policy"]["inference_type"] == AUTO.inference_type
    said = run(*rank).stdout
    assert "temperature 0.5 (the model's own)" in said
    assert "made by          table, " in said
    for options, problem in (
        (["--tables", "uniform"], "--tables: expected PlackettLuce"),
        (["--tables", "plackett_luce:temperature=x2"], "--tables: "),
        (["--tables", "what"], "--tables: expected"),
        (["--tables", "plackett_luce", "--tables-bytes", "99"], "--tables-bytes: tables of 12"),
    ):
        assert problem in refused(*build, *options)
    assert sys.modules["fastrank.tables"].nbytes(1_000_000, 10_000) <= 170_000_000
