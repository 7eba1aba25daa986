"""Files whose numbers are not what fastrank would have written, hashes and all: what is read from
them is never used as an index unchecked, and `verify=True` says which file it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from commands import run
from support import POLICIES

import fastrank as fr
from fastrank import _native, _probes, packing, store

Array = npt.NDArray[Any]
N = 1_000
QUERY = np.array([1.0, -0.5, 0.25], np.float32)
USERS = 200


def model_of(ids: Any = None, *, prior: bool = False, n: int = N) -> fr.Model:
    rng = np.random.default_rng(0)
    catalog = fr.Catalog(
        np.arange(n) if ids is None else ids,
        rng.standard_normal((n, 3)),
        bias=rng.standard_normal(n),
        prior=rng.standard_normal(n) if prior else None,
    )
    users = rng.standard_normal((USERS, 3))
    titles = [f"títle {i}" for i in range(n)]
    return fr.Model(catalog, np.arange(USERS), users, item_titles=titles)


def saved(
    model: fr.Model,
    directory: Path,
    changes: Mapping[str, Callable[[Array], Any]],
    stated: Mapping[str, float] | None = None,
) -> Path:
    """A directory with these arrays and statements changed, and every hash of what is there."""
    catalog = model.catalog
    arrays = {k: v.copy() for k, v in {**catalog._arrays, **model._arrays}.items()}
    for name, change in changes.items():
        change(arrays[name])
    digests = {name: store.array_digest(array) for name, array in arrays.items()}
    meta = {**catalog._meta, "model_version": model.version, **(stated or {})}
    store.write(directory, meta, arrays, digests)
    return directory


def put(*values: Any) -> Callable[[Array], None]:
    """Write pairs of index and value."""

    def change(array: Array) -> None:
        for index, value in zip(values[::2], values[1::2], strict=True):
            array[index] = value

    return change


def exchange(first: int, second: int) -> Callable[[Array], None]:
    def change(array: Array) -> None:
        array[[first, second]] = array[[second, first]]

    return change


# ---- Look-ups --------------------------------------------------------------------------------

MANY, FEW, ONE = np.arange(40), np.arange(3), np.array([6])

USES: dict[str, Callable[[fr.Model, Any], Any]] = {
    "exclude": lambda m, ids: m.catalog.rank(QUERY, 5, policy=fr.Uniform(), exclude=ids),
    "allow": lambda m, ids: m.catalog.rank(QUERY, 5, policy=fr.PlackettLuce(), allow=ids),
    "cached": lambda m, ids: m.catalog.rank(
        QUERY, 5, policy=fr.PlackettLuce(sampler="cached"), exclude=ids
    ),
    "batch": lambda m, ids: m.catalog.rank_batch([QUERY], policy=fr.Uniform(), exclude=[ids]),
    "log_propensities": lambda m, ids: m.catalog.log_propensities(QUERY, ids, policy=fr.Uniform()),
    "titles": lambda m, ids: m.titles(ids),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "change", [put(6, 10**12), put(6, -1), put(6, -(10**12)), put(6, N), exchange(6, 700)]
)
def test_an_order_that_sorts_nothing(
    tmp_path: Path, change: Callable[[Array], None], use: str
) -> None:
    """Ids without gaps: what is not where it belongs is no unknown id, but damage."""
    model = fr.Model.open(saved(model_of(), tmp_path / "m", {"item_order": change}))
    for ids in (MANY, ONE):
        with pytest.raises(ValueError, match=r"^damaged: item_order: "):
            USES[use](model, ids)
    for ids in (MANY + 100, ONE + 100, ONE + N, np.array([], np.int64)):
        USES[use](model, ids)  # others are found, or unknown, as ever


def test_a_damaged_model_evaluates_no_log(tmp_path: Path) -> None:
    """Nor does it with the rows left out that came by the damage."""
    eventlog, ope = pytest.importorskip("fastrank.eventlog"), pytest.importorskip("fastrank.ope")
    model, policy = model_of(), fr.PlackettLuce(0.5)
    with eventlog.LogWriter(tmp_path / "log") as log:
        for user in range(20):
            allow = np.arange(10) + 10 * (user % 2)
            log.append(
                model.recommend(user, 3, policy=policy, seed=user, allow=allow),
                k=3,
                user_id=str(user),
                model_version=model.version,
                allow=allow,
                rewards=[1.0, 0.0, 0.0],
            )
    damaged = fr.Model.open(saved(model, tmp_path / "m", {"item_order": put(15, 10**12)}))
    policies = [ope.ByModel("same", policy, damaged)]
    with pytest.raises(ValueError, match=r"^damaged: item_order: "):
        ope.evaluate(eventlog.LogReader(tmp_path / "log"), policies, logging=[damaged])


@pytest.mark.parametrize("value", [10**12, -1, -(10**12), N])
@pytest.mark.parametrize("kind", ["gaps", "text"])
def test_an_order_past_the_end_of_other_ids(tmp_path: Path, kind: str, value: int) -> None:
    """Searched by bisection, which starts in the middle."""
    ids = np.arange(N) * 3 if kind == "gaps" else np.array([f"{i:04}" for i in range(N)])
    model = model_of(ids)
    middle = len(ids) // 2
    opened = fr.Model.open(saved(model, tmp_path / "m", {"item_order": put(middle, value)}))
    for use in USES.values():
        with pytest.raises(ValueError, match=r"^damaged: item_order: "):
            use(opened, ids[middle : middle + 1])
        use(opened, ids[::2])  # many are looked up without the order


def test_ends_of_an_order(tmp_path: Path) -> None:
    for place, value in itertools.product((0, N - 1), (N, -1, -(10**12))):
        changed = saved(model_of(), tmp_path / "m", {"item_order": put(place, value)})
        with pytest.raises(ValueError, match=r"^damaged: item_order: "):
            USES["exclude"](fr.Model.open(changed), MANY)


@pytest.mark.parametrize("change", [put(5, 10**12), put(5, -1), exchange(5, 150)])
def test_an_order_of_users(tmp_path: Path, change: Callable[[Array], None]) -> None:
    model = fr.Model.open(saved(model_of(), tmp_path / "m", {"user_order": change}))
    calls: list[Callable[[], Any]] = [
        lambda: 5 in model,
        lambda: model.user_vector(5),
        lambda: model.find_users(range(50)),
        lambda: model.recommend(5, policy=fr.Uniform()),
    ]
    if model._index.order[5] != 150:  # bisection may pass by an entry that is only out of place
        calls.append(lambda: model.users_starting_with("5"))
    for call in calls:
        with pytest.raises(ValueError, match=r"^damaged: user_order: "):
            call()
    assert 70 in model
    assert model.users_starting_with("7", 3) == [7, 70, 71]
    assert "a" not in model


@pytest.mark.parametrize("change", [put(7, N), put(7, -1), put(7, 10**12), put(7, 0, 8, 0)])
def test_rows_that_are_none(tmp_path: Path, change: Callable[[Array], None]) -> None:
    """A catalog with a prior: its rows are compared in the scan, and looked at before other use."""
    model = fr.Model.open(saved(model_of(prior=True), tmp_path / "m", {"rows": change}))
    catalog = model.catalog
    for call in (
        lambda: catalog.item_ids,
        lambda: catalog.scores(QUERY),
        lambda: catalog.rank(QUERY, policy=fr.Uniform(), bias=np.zeros(N)),
        lambda: model.titles([1]),
    ):
        with pytest.raises(ValueError, match=r"^damaged: rows: not a permutation: "):
            call()
    for policy in POLICIES.values():
        assert len(set(catalog.rank(np.zeros(3), N, policy=policy, seed=1).item_ids)) == N


@pytest.mark.parametrize(
    "change", [put(7, -5), put(7, 10**12), put(8, 10**12), put(7, 60, 8, 50), put(8, -1)]
)
def test_titles_from_outside_their_text(tmp_path: Path, change: Callable[[Array], None]) -> None:
    model = fr.Model.open(saved(model_of(), tmp_path / "m", {"title_offsets": change}))
    with pytest.raises(ValueError, match=r"^damaged: title_offsets: row 7 is "):
        model.titles([7])
    assert model.titles([1, 20]) == ["títle 1", "títle 20"]


# ---- What the native core is given -----------------------------------------------------------


@pytest.mark.parametrize("wrong", [N, -1, -2, 10**12, -(2**63), 2**63 - 1])
def test_native_entries_refuse_positions_outside(wrong: int) -> None:
    catalog = model_of().catalog
    packed, bad = catalog._packed, np.array([3, wrong, 5])
    ints, floats = np.ones(1, np.int32), np.ones(1)
    seeds = np.ones(1, np.uint64)

    def batch(excluded: Any, allowed: Any) -> Any:
        return packed.rank_batch(
            *(QUERY[None], 5, ints, floats, floats, seeds, None, [excluded], [allowed], 1)
        )

    for call in (
        lambda: _native.make_filter(N, bad, None),
        lambda: _native.make_filter(N, None, bad),
        lambda: batch(bad, None),
        lambda: batch(None, bad),
    ):
        with pytest.raises(ValueError, match=rf"entry 1: expected a position .*, got {wrong}$"):
            call()
    if wrong != -1:  # there an unknown item
        with pytest.raises(ValueError, match=rf"^positions: entry 1: .*, got {wrong}$"):
            packed.log_propensities(QUERY, bad, 1, 1.0, 0.0, None, None, N)
    for first in (-16, -1, N + 16, 2**62):
        with pytest.raises(ValueError, match="shape does not fit"):
            _native.pack(np.ones((16, 3), np.float32), first, np.zeros((63, 3, 16), np.float32))


VALUES = (np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0)


@pytest.mark.parametrize("storage", packing.STORAGES)
@pytest.mark.parametrize("policy", POLICIES)
def test_floats_of_a_damaged_file_end_every_loop_and_index_nothing(
    isa: str, policy: str, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes of them means nothing, but it is made of different items of the catalog."""
    monkeypatch.setattr(packing, "CODED_FROM", 1)
    n, k = 700, 60
    rng = np.random.default_rng(0)
    made = fr.Catalog(np.arange(n), rng.standard_normal((n, 3)), storage=storage)
    previous = _probes.set_chunk_panels(8), _probes.set_few_items(1)
    try:
        for name, array in made._arrays.items():
            if name in ("item_ids", "item_order"):
                continue
            for share, value in itertools.product((0.02, 0.5, 1.0), VALUES):
                changed = array.copy()
                hit = rng.random(array.shape) < share
                changed[hit] = 255 * (value > 0) if name == "codes" else value
                arrays = {**made._arrays, name: changed}
                catalog = fr.Catalog.__new__(fr.Catalog)
                catalog._set(made._meta, arrays, made._digests, made._index, 1 << 20, 1e-3)
                kind = POLICIES[policy]
                for threads in (1, 2):
                    ranking = catalog.rank(QUERY, k, policy=kind, seed=1, threads=threads)
                    shown = ranking.item_ids
                    assert len(np.unique(shown)) == len(shown) <= k
                batch = catalog.rank_batch([QUERY] * 3, k, policy=kind, seeds=range(3))
                for row, count in zip(batch.item_ids, batch.counts, strict=True):
                    assert len(np.unique(row[:count])) == count <= k
                given = catalog.log_propensities(QUERY, shown, policy=kind)
                assert given.shape == shown.shape
    finally:
        _probes.set_chunk_panels(previous[0])
        _probes.set_few_items(previous[1])


# ---- verify ----------------------------------------------------------------------------------

DAMAGE: dict[str, tuple[str, Callable[[Array], None], str]] = {
    "order, past the end": ("item_order", put(6, 10**12), "entry 6 is 1000000000000"),
    "order, below": ("item_order", put(6, -1), "entry 6 is -1"),
    "order, exchanged": ("item_order", exchange(6, 700), "entry 6 has 700, the next has 7"),
    "order, repeated": ("item_order", put(6, 5), "entry 5 has 5, the next has 5"),
    "ids, repeated": ("item_ids", put(6, 5), "does not sort the ids"),
    "users' order": ("user_order", exchange(0, 1), "entry 0 has 1, the next has 0"),
    "users' ids": ("user_ids", put(3, 2), "does not sort the ids"),
    "rows": ("rows", put(7, 10**12), "entry 7 is 1000000000000"),
    "rows, repeated": ("rows", put(7, 0, 8, 0), "is missing"),
    "rows of panels": ("panel_rows", put(3, 999), "entry 3 is not the lowest"),
    "titles' start": ("title_offsets", put(0, -1), "entry 0 is -1"),
    "titles, descending": ("title_offsets", put(8, 3), "entry 8 is 3"),
    "titles, past the end": ("title_offsets", put(N, 10**12), f"entry {N} is 1000000000000"),
    "titles, in the middle": ("title_offsets", put(1, 2), "entry 1 is 2, within a character"),
    "titles, not text": ("title_text", put(900, 0xFF), "not UTF-8 text"),
    "panels": ("panels", put((2, 1, 5), np.nan), r"entry \[2, 1, 5\] is nan"),
    "panels, longer": ("panels", put((2, 1, 5), 1e9), "a norm is 1e\\+09"),
    "bias": ("bias", put(4, np.inf), r"entry \[4\] is inf"),
    "bias, larger": ("bias", put(4, 100.0), "a bias is 100"),
    "users' vectors": ("user_vectors", put((4, 2), -np.inf), r"entry \[4, 2\] is -inf"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_the_file(tmp_path: Path, damage: str) -> None:
    name, change, reason = DAMAGE[damage]
    directory = saved(model_of(prior="rows" in damage), tmp_path / "m", {name: change})
    file = name.replace("ids", "order")  # what is wrong shows there
    with pytest.raises(ValueError, match=rf"m: damaged: {file}-[0-9a-f]*\.npy: .*{reason}"):
        fr.Model.open(directory, verify=True)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("scales", put(3, np.nan), "entry .3. is nan"),
        ("scales", put(3, 0.0), "entry 3 is 0.0"),
        ("scales", put(3, 1e9), "a scale is 1e"),
        ("vectors", put((9, 1), np.inf), r"entry \[9, 1\] is inf"),
        ("columns", put((1, 1), 0.0), "entry 1 is 0.0"),
        ("codes", put((5, 0, 3, 1), 130), r"entry \[5, 0, 3, 1\] is 130; packing gives "),
        ("codes", put((-1, 0, 15, 0), 130), r"entry \[62, 0, 15, 0\] is 130; packing gives 128"),
        ("codes", lambda codes: codes[9].fill(128), r"entry \[9, 0, "),
        ("scales", put(3, 1e-3), r"entry \[3\] is 0.001; packing gives "),
        ("vectors", put((700, 3), 1.0), r"entry \[700, 3\] is 1; packing gives 0"),
    ],
)
def test_verify_looks_into_codes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[Array], None],
    reason: str,
) -> None:
    monkeypatch.setattr(packing, "CODED_FROM", 1)
    vectors = np.random.default_rng(0).standard_normal((N, 3))
    model = fr.Model(fr.Catalog(np.arange(N), vectors, storage="int8"), [1], [[1.0, 0.0, 0.0]])
    fr.Model.open(saved(model, tmp_path / "m", {}), verify=True)
    with pytest.raises(ValueError, match=rf"damaged: {name}-.*: .*{reason}"):
        fr.Model.open(saved(model, tmp_path / "m", {name: change}), verify=True)


@pytest.mark.parametrize("fact", packing.META["int8"])
def test_verify_holds_the_manifest_to_the_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fact: str
) -> None:
    """Of which it states bounds: with less than is true, propensities would be off unnoticed."""
    monkeypatch.setattr(packing, "CODED_FROM", 1)
    vectors = np.random.default_rng(0).standard_normal((N, 3))
    model = fr.Model(fr.Catalog(np.arange(N), vectors, storage="int8"), [1], [[1.0, 0.0, 0.0]])
    more = {fact: 1.01 * model.catalog._meta[fact]}
    less = {fact: 0.99 * model.catalog._meta[fact]}
    for stated in (more, less):
        directory = saved(model, tmp_path / "m", {}, stated)
        with pytest.raises(ValueError, match=rf"damaged: .*manifest states (a {fact} of|at most)"):
            fr.Model.open(directory, verify=True)


def test_verify_finds_nothing_in_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CODED_FROM", 1)
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 4096)
    rows = np.random.default_rng(0).standard_normal((N, 7)) * 10.0 ** np.arange(-3, 4)
    coded = fr.Catalog(np.arange(N), rows, storage="int8", prior=rows[:, 0])
    for model in (
        fr.Model(coded, [1], [np.ones(7)]),
        model_of(),
        model_of(prior=True),
        model_of([f"item {i}" for i in range(N)]),
        model_of([7], n=1),
        fr.Model(fr.Catalog([1], [[0.0]]), [1], [[0.0]], item_titles=[""]),
    ):
        model.save(tmp_path / "m")
        assert fr.Model.open(tmp_path / "m", verify=True).version == model.version


def test_the_command_says_which_file(tmp_path: Path) -> None:
    directory = saved(model_of(), tmp_path / "m", {"item_order": exchange(6, 700)})
    result = run("verify", directory, "--draws", "1000")
    assert result.exit_code == 1
    output = " ".join(result.stdout.split())
    assert "damaged: item_order-" in output
    assert "does not sort the ids: entry 6 has 700" in output


@pytest.mark.parametrize("name", ["panels", "user_vectors"])
def test_arrays_laid_out_otherwise_are_refused(name: str, tmp_path: Path) -> None:
    """In Fortran's order: the core reads them as they lie, and the store maps no other header."""
    directory = saved(model_of(), tmp_path / "m", {})
    (file,) = directory.glob(f"{name}-*.npy")
    text = file.read_bytes().replace(b"'fortran_order': False,", b"'fortran_order': True, ", 1)
    file.write_bytes(text)
    with pytest.raises(ValueError, match=rf"m: damaged: {name}-.*: it does not hold <f4 of shape"):
        fr.Model.open(directory)
