"""Indexes of FAISS as finders of candidates: what they find, how they are kept, what is refused.

The laws of what is drawn from candidates are in `test_flat_tail.py`. Error budget: support.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from commands import refused, run
from support import N_DRAWS, assert_first_position_law

import fastrank as fr
from fastrank import reference, retrieval, store
from fastrank.eventlog import LogReader, LogWriter
from fastrank.ope import ByModel, evaluate
from fastrank.policies.spec import parse_policy
from fastrank.retrieval import FaissIndex, build_ivf, measure, propose
from fastrank.verify import verify

POLICY = fr.FlatTail(0.5, m=50, factor=0.2)
GOWALLA = Path(__file__).parents[2] / "shared/data/gowalla"

Vectors = npt.NDArray[np.float32]


def vectors_of(n: int, dim: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def flat(vectors: npt.ArrayLike) -> Any:
    rows = np.ascontiguousarray(vectors, np.float32)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index


def factory(vectors: Vectors, text: str) -> Any:
    index = faiss.index_factory(vectors.shape[1], text, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


# What is found


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("labels", ["rows", "item_ids"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_prior", [False, True])
def test_an_exact_index_finds_what_a_pass_finds(
    storage: str, labels: str, has_bias: bool, has_prior: bool
) -> None:
    n, dim = 20_000, 6  # enough for codes
    rng = np.random.default_rng(1)
    vectors, ids = vectors_of(n, dim), rng.permutation(n) * 3 + 7
    bias = rng.standard_normal(n).astype(np.float32) if has_bias else None
    plain = fr.Catalog(
        ids, vectors, bias=bias, storage=storage, prior=rng.random(n) if has_prior else None
    )
    rows = vectors if bias is None else np.column_stack([vectors, bias])
    index = flat(rows)
    if labels == "item_ids":
        index = faiss.IndexIDMap(faiss.IndexFlatIP(rows.shape[1]))
        index.add_with_ids(rows, ids)
    catalog = plain.with_index(FaissIndex(index, labels=labels))
    for seed, query in enumerate(vectors_of(10, dim, 2)):
        exclude = rng.choice(ids, 500)
        ranking = catalog.rank(query, 10, policy=POLICY, seed=seed, exclude=exclude)
        assert ranking.candidates is not None
        assert ranking.made_by == "index"
        in_tail = 10 - int(ranking.candidates.is_candidate.sum())
        assert ranking.n_scored == 50 + in_tail
        assert catalog.rank(query, 3, policy=POLICY, allow=ids[:70]).n_scored == 70
        assert not np.isin(ranking.item_ids, exclude).any()
        by_pass = plain.log_propensities(query, ranking.item_ids, policy=POLICY, exclude=exclude)
        np.testing.assert_allclose(ranking.log_propensities, by_pass, atol=2e-5)
        again = catalog.log_propensities(query, ranking.item_ids, policy=POLICY, exclude=exclude)
        np.testing.assert_allclose(ranking.log_propensities, again, atol=1e-12)
    batch = catalog.rank_batch(vectors_of(3, dim, 2), 10, policy=POLICY, seeds=range(3))
    for i, query in enumerate(vectors_of(3, dim, 2)):
        assert catalog.rank(query, 10, policy=POLICY, seed=i) == batch[i]


def test_what_an_index_cannot_know_is_found_by_a_pass() -> None:
    """A bias of the call; and few of a few that are allowed."""
    vectors = vectors_of(1000, 4)
    catalog = fr.Catalog(np.arange(1000), vectors).with_index(FaissIndex(flat(vectors)))
    query = vectors[0]
    for call in ({"bias": np.ones(1000)}, {"allow": list(range(100))}):
        ranking = catalog.rank(query, 5, policy=POLICY, seed=1, **call)
        assert ranking.candidates is not None
        assert (ranking.made_by, ranking.candidates.index_version) == ("pass", None)
    assert catalog.rank(query, 5, policy=fr.PlackettLuce(), seed=1).made_by == "pass"


def test_rows_of_a_batch_have_a_bias_or_none(tmp_path: Path) -> None:
    """A row of zeros is none: each row of a log is judged as it was drawn, beside any others."""
    vectors = vectors_of(400, 4)
    plain = fr.Catalog(np.arange(400), vectors)
    catalog = plain.with_index(build_ivf(plain, n_lists=20, n_probes=2))
    policy = fr.FlatTail(0.7, m=60, factor=0.5)
    bias = vectors_of(400, 1, 3)[:, 0]
    batch = catalog.rank_batch(
        vectors[:2], 5, policy=policy, seeds=[1, 2], bias=np.array([np.zeros(400), bias])
    )
    assert batch.made_by == ("index", "pass")
    assert batch[0] == catalog.rank(vectors[0], 5, policy=policy, seed=1)
    model = fr.Model(catalog, np.arange(50), vectors[:50])
    with LogWriter(tmp_path) as log:
        for seed in range(100):
            ranking = model.recommend(
                seed % 50, 3, policy=policy, seed=seed, bias=bias if seed % 2 else None
            )
            log.append(ranking, user_id=seed % 50, rewards=[1.0, 0.0, 0.0])
    found = evaluate(LogReader(tmp_path), [ByModel("same", policy, model)], estimators=["ips"])
    own = found.policies[0].estimates
    assert own["ips"].value == pytest.approx(own["avg"].value, rel=1e-6)
    assert own["ips"].value == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("text", ["SQ8", "IVF16,SQ8", "IVF16,PQ4x4", "PCA4,IVF16,Flat"])
def test_candidates_of_an_index_that_rounds_are_scored_again(text: str) -> None:
    vectors = vectors_of(4000, 8)
    index = FaissIndex(factory(vectors, text), n_probes=4 if "IVF" in text else None)
    for storage in ("float32", "int8"):
        catalog = fr.Catalog(np.arange(4000), vectors, storage=storage).with_index(index)
        query = vectors_of(1, 8, 3)[0]
        scores = catalog.scores(query)
        ranking = catalog.rank(query, 10, policy=POLICY, seed=2, exclude=[5, 6])
        assert ranking.scores.tolist() == scores[ranking.item_ids].tolist()
        again = catalog.log_propensities(query, ranking.item_ids, policy=POLICY, exclude=[5, 6])
        np.testing.assert_allclose(ranking.log_propensities, again, atol=1e-12)


@pytest.mark.parametrize("text", ["Flat", "IVF16,Flat", "HNSW16", "IDMap,Flat"])
def test_scores_of_others_are_taken_as_they_come(text: str) -> None:
    vectors = vectors_of(3000, 8)
    if text == "IDMap,Flat":
        index = faiss.IndexIDMap(faiss.IndexFlatIP(8))
        index.add_with_ids(vectors, np.arange(3000))
    else:
        index = factory(vectors, text)
    catalog = fr.Catalog(np.arange(3000), vectors).with_index(FaissIndex(index))
    for seed, query in enumerate(vectors_of(20, 8, 4)):
        ranking = catalog.rank(query, 10, policy=POLICY, seed=seed, exclude=[seed])
        scores = catalog.scores(query)[ranking.item_ids]
        np.testing.assert_allclose(ranking.scores, scores, rtol=1e-5, atol=1e-5)


def test_the_rest_of_a_partial_index_is_tail() -> None:
    vectors = vectors_of(1000, 4)
    catalog = fr.Catalog(np.arange(1000), vectors).with_index(FaissIndex(flat(vectors[:30])))
    ranking = catalog.rank(vectors[0], 20, policy=POLICY, seed=3)
    assert ranking.candidates is not None
    assert ranking.candidates.n_found == 30
    assert ((ranking.item_ids < 30) == ranking.candidates.is_candidate).all()


def test_where_nothing_is_found_all_are_alike() -> None:
    """One list is looked into, and a filter takes all that is in it."""
    vectors = np.vstack([np.full((50, 2), 1.0), np.full((50, 2), -1.0)]).astype(np.float32)
    vectors += vectors_of(100, 2) * np.float32(0.01)
    plain = fr.Catalog(np.arange(100), vectors)
    catalog = plain.with_index(build_ivf(plain, n_lists=2, n_probes=1))
    ranking = catalog.rank([1.0, 1.0], 3, policy=POLICY, seed=1, exclude=range(50))
    assert ranking.candidates is not None
    assert (ranking.candidates.n_found, ranking.candidates.tail_log_weight) == (0, 0.0)
    np.testing.assert_allclose(ranking.log_propensities, -np.log([50, 49, 48]), atol=1e-12)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_an_inverted_file_has_every_item_once(prior: bool, storage: str) -> None:
    n, dim = 70_001, 5  # more than are added at a time, and a panel that is not full
    vectors, bias = vectors_of(n, dim), vectors_of(n, 1, 9)[:, 0]
    rank_of = vectors[:, 0] if prior else None
    plain = fr.Catalog(np.arange(n), vectors, bias=bias, storage=storage, prior=rank_of)
    index = build_ivf(plain, n_lists=20, n_probes=20)
    lists = index.index.invlists
    held = [faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)) for i in range(20)]
    assert sorted(np.concatenate(held).tolist()) == list(range(n))
    catalog = plain.with_index(index)
    for seed, query in enumerate(vectors_of(5, dim, 2)):  # all lists: what a pass finds
        ranking = catalog.rank(query, 10, policy=POLICY, seed=seed)
        by_pass = plain.log_propensities(query, ranking.item_ids, policy=POLICY)
        np.testing.assert_allclose(ranking.log_propensities, by_pass, atol=2e-5)


@pytest.mark.sampled
@pytest.mark.law
@pytest.mark.skipif(not GOWALLA.is_dir(), reason="there is no ../shared/data/gowalla")
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_law_of_real_vectors(storage: str) -> None:
    """Deciles of mass, by the candidates that the index really found; some of them not the best."""
    vectors = np.load(GOWALLA / "item_factors.npy").astype(np.float32)
    query = np.load(GOWALLA / "user_factors.npy")[17].astype(np.float32)
    plain = fr.Catalog(np.arange(len(vectors)), vectors, storage=storage)
    catalog = plain.with_index(build_ivf(plain, n_lists=200, n_probes=2))
    policy = fr.FlatTail(0.05, m=300, factor=0.5)
    exclude = np.argsort(-catalog.scores(query))[:20]
    batch = catalog.rank_batch(
        np.tile(query, (N_DRAWS, 1)),
        2,
        policy=policy,
        seeds=range(N_DRAWS),
        exclude=[exclude] * N_DRAWS,
    )
    bits, n_eligible = catalog._eligible(exclude, None)
    found = catalog._find_candidates(query, 300, None, exclude, None, bits, n_eligible)
    by_pass = plain._find_candidates(query, 300, None, exclude, None, bits, n_eligible)
    assert 0 < np.isin(found.positions, by_pass.positions).sum() < 300
    left = np.ones(len(vectors), np.bool_)
    left[exclude] = False
    changed = reference.flat_tail_scores(catalog.scores(query), policy, found.positions, left)
    logs = changed / 0.05 - reference.log_norm(changed, 0.05, left)
    assert_first_position_law(batch.item_ids[:, 0], np.where(left, np.exp(logs), 0.0))
    positions = batch.item_ids[7]
    expected = reference.log_propensities(changed, positions, fr.PlackettLuce(0.05), left)
    np.testing.assert_allclose(batch.log_propensities[7], expected, atol=1e-4)


def test_threads_of_the_caller_change_nothing() -> None:
    vectors = vectors_of(5000, 8)
    plain = fr.Catalog(np.arange(5000), vectors)
    catalog = plain.with_index(build_ivf(plain, n_lists=30, n_probes=3))

    def one(seed: int) -> fr.Ranking:
        return catalog.rank(vectors[seed], 10, policy=POLICY, seed=seed, exclude=[seed])

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, range(400)))
    assert together == [one(seed) for seed in range(400)]


@pytest.mark.parametrize("length", [1e-30, 2e19, 1e30])
def test_vectors_of_any_length(length: float) -> None:
    """Squares of distances would leave the float32 range, and FAISS ends the process then."""
    vectors = vectors_of(500, 4) * np.float32(length)
    plain = fr.Catalog(np.arange(500), vectors)
    catalog = plain.with_index(build_ivf(plain, n_lists=5, n_probes=5))
    query, policy = vectors_of(1, 4, 2)[0], fr.FlatTail(min(1e6, max(1e-6, length)), m=50)
    ranking = catalog.rank(query, 5, policy=policy, seed=1)
    assert ranking.made_by == "index"
    by_pass = plain.log_propensities(query, ranking.item_ids, policy=policy)
    np.testing.assert_allclose(ranking.log_propensities, by_pass, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n", [1, 5, 16, 17, 65_541])
def test_an_inverted_file_of_few_items_with_biases(n: int) -> None:
    plain = fr.Catalog(np.arange(n), vectors_of(n, 3), bias=vectors_of(n, 1, 4)[:, 0])
    catalog = plain.with_index(build_ivf(plain, n_lists=1))
    ranking = catalog.rank(np.ones(3), 3, policy=POLICY, seed=1)
    by_pass = plain.log_propensities(np.ones(3), ranking.item_ids, policy=POLICY)
    np.testing.assert_allclose(ranking.log_propensities, by_pass, atol=1e-5)


# How it is kept


def indexed_model(n: int = 2000) -> fr.Model:
    vectors = vectors_of(n, 6)
    plain = fr.Catalog(np.arange(n), vectors)
    model = fr.Model(plain, ["ann", "bob"], vectors_of(2, 6, 5))
    return model.with_index(build_ivf(plain, n_lists=20, n_probes=3))


def test_it_is_saved_and_mapped_with_the_model(tmp_path: Path) -> None:
    model = indexed_model()
    model.save(tmp_path / "model")
    index = model.catalog.index
    assert index is not None
    for opened in (
        fr.Model.open(tmp_path / "model"),
        fr.Model.open(tmp_path / "model", verify=True),
    ):
        again = opened.catalog.index
        assert again is not None
        assert (again.version, again.n_probes) == (index.version, 3)
        for seed in range(5):
            ranking = opened.recommend("ann", 10, policy=POLICY, seed=seed, exclude=[seed])
            assert ranking == model.recommend("ann", 10, policy=POLICY, seed=seed, exclude=[seed])
            assert ranking.candidates is not None
            assert ranking.candidates.index_version == index.version
    opened.with_user_temperatures([2.0, 0.5]).save(tmp_path / "model")  # as plan --apply does
    kept = fr.Model.open(tmp_path / "model")
    assert kept.catalog.index is not None
    assert kept.recommend("bob", 3, policy=POLICY, seed=1).policy == POLICY.at_temperature(0.25)
    catalog = fr.Catalog.open(tmp_path / "model")
    assert catalog.rank(vectors_of(1, 6)[0], 3, policy=POLICY, seed=1).made_by == "index"
    catalog.with_index(None).save(tmp_path / "without")
    assert fr.Catalog.open(tmp_path / "without").index is None


def test_versions_do_not_know_it() -> None:
    model = indexed_model()
    plain = model.with_index(None)
    assert (model.version, model.catalog.version) == (plain.version, plain.catalog.version)


def test_it_is_mapped_and_not_copied(tmp_path: Path) -> None:
    n = 100_000
    plain = fr.Catalog(np.arange(n), vectors_of(n, 64))
    plain.with_index(build_ivf(plain, n_lists=4, n_probes=4)).save(tmp_path / "catalog")
    code = """
import re, sys
import numpy as np, faiss, fastrank as fr
def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
catalog = fr.Catalog.open(sys.argv[1])
before = own()
for seed in range(20):
    query = np.random.default_rng(seed).standard_normal(64)
    assert catalog.rank(query, 10, policy=fr.FlatTail(m=100), seed=seed).made_by == "index"
print(own() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "catalog")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 12  # MB; it has 27


def changed_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / store.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["manifest_sha256"]
    change(manifest)
    manifest["manifest_sha256"] = store.content_hash(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["index"].update(of="0"), "its index is of another catalog"),
        (lambda m: m["index"].update(labels="names"), "index is {.*'labels': 'names'"),
        (lambda m: m["index"].update(n_probes=0), "index is {.*'n_probes': 0"),
        (lambda m: m["index"].update(n_probes=True), "index is {.*'n_probes': True"),
        (lambda m: m["index"].update(version=1), "index is {.*'version': 1"),
        (lambda m: m.pop("index"), "KeyError"),
        (lambda m: m["index"].pop("of"), "KeyError"),
        (lambda m: m["arrays"].pop("faiss_index"), "KeyError"),
        (lambda m: m.update(index=7), "TypeError"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    indexed_model(200).save(tmp_path / "model")
    changed_manifest(tmp_path / "model", change)
    with pytest.raises(ValueError, match=f"not a catalog: .*{message}"):
        fr.Model.open(tmp_path / "model")


def test_a_changed_or_truncated_file_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    indexed_model(200).save(tmp_path / "model")
    (file,) = (tmp_path / "model").glob("faiss_index-*.npy")
    content = file.read_bytes()
    for place in (4096, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        model = fr.Model.open(tmp_path / "model")
        assert model.recommend("ann", 3, policy=fr.PlackettLuce(), seed=1).made_by == "pass"
        for _ in range(2):
            with pytest.raises(ValueError, match="index: damaged: it does not match its SHA-256"):
                model.recommend("ann", 3, policy=POLICY)
        with pytest.raises(ValueError, match=r"damaged: faiss_index-.*SHA-256"):
            fr.Model.open(tmp_path / "model", verify=True)
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"damaged: faiss_index-.* bytes"):
        fr.Model.open(tmp_path / "model")


def test_a_damaged_file_is_not_saved_as_a_sound_one(tmp_path: Path) -> None:
    indexed_model(200).save(tmp_path / "model")
    (file,) = (tmp_path / "model").glob("faiss_index-*.npy")
    content = bytearray(file.read_bytes())
    content[6000] ^= 1
    file.write_bytes(content)
    fr.Model.open(tmp_path / "model").save(tmp_path / "again")
    with pytest.raises(ValueError, match="index: damaged: it does not match its SHA-256"):
        fr.Model.open(tmp_path / "again").recommend("ann", 3, policy=POLICY)
    with pytest.raises(ValueError, match=r"damaged: faiss_index-.*SHA-256"):
        fr.Model.open(tmp_path / "again", verify=True)


def test_what_is_no_index_of_faiss_is_refused(tmp_path: Path) -> None:
    """Its hash is right, and FAISS cannot read it."""
    model = indexed_model(200)
    meta, arrays, digests = model.catalog._files()
    arrays["faiss_index"] = np.arange(100, dtype=np.uint8)
    digests["faiss_index"] = store.array_digest(arrays["faiss_index"])
    store.write(tmp_path / "catalog", meta, arrays, digests)
    catalog = fr.Catalog.open(tmp_path / "catalog")
    with pytest.raises(ValueError, match="index: FAISS cannot read it: "):
        catalog.rank(np.zeros(6), policy=POLICY)


def test_an_index_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    """Its hash and its manifest are right."""
    meta, arrays, digests = indexed_model(200).catalog._files()
    arrays["faiss_index"] = faiss.serialize_index(flat(vectors_of(200, 5)))
    digests["faiss_index"] = store.array_digest(arrays["faiss_index"])
    meta["index"]["n_probes"] = None
    store.write(tmp_path / "catalog", meta, arrays, digests)
    catalog = fr.Catalog.open(tmp_path / "catalog")
    with pytest.raises(ValueError, match="index: got 5 dimensions; expected 6"):
        catalog.rank(np.zeros(6), policy=POLICY)


# What is refused


def of_l2(vectors: Vectors) -> Any:
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return index


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: FaissIndex(of_l2(v)), "index: expected the metric METRIC_INNER_PRODUCT"),
        (lambda v: FaissIndex(v), "index: expected a FAISS index, got array"),
        (
            lambda v: FaissIndex(faiss.index_factory(4, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)),
            "index: not trained; call its method `train` first",
        ),
        (lambda v: FaissIndex(flat(v), labels="names"), "labels: expected rows or .*'names'"),
        (lambda v: FaissIndex(flat(v), labels="positions"), "labels: expected rows or item_ids"),
        (lambda v: FaissIndex(flat(v), n_probes=3), "n_probes: IndexFlat.* has no lists; got 3"),
        (lambda v: FaissIndex(factory(v, "IVF4,Flat"), n_probes=0), "n_probes: .* got 0"),
        (lambda v: FaissIndex(flat(v), version=""), "version: expected a text, got ''"),
        (lambda v: FaissIndex(flat(v[:, :3])), "index: has 3 dimensions, where vectors have 4"),
        (lambda v: FaissIndex(flat(np.vstack([v, v]))), "index: holds 200 items, the catalog has"),
        (lambda v: FaissIndex(faiss.IndexFlatIP(4)), "index: holds no items"),
        (lambda v: FaissIndex(flat(v[::-1])), "index: scores the item .*other vectors"),
        (lambda v: FaissIndex(flat(2 * v)), "index: scores the item .*other vectors"),
        (
            lambda v: FaissIndex(flat(v), labels="item_ids"),
            "index: found the id 0, which is not in the catalog",
        ),
        (lambda v: flat(v), "index: expected a FaissIndex, got <faiss"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    make: Callable[[Vectors], Any], message: str
) -> None:
    vectors = vectors_of(100, 4)
    vectors[0] *= 10.0  # what is found first for itself
    catalog = fr.Catalog(np.arange(100) + 1000, vectors)
    if message.startswith("index: found the id"):
        vectors[0] *= 10.0
    with pytest.raises(ValueError, match=message):
        catalog.with_index(make(vectors))


def test_a_bias_wants_one_more_dimension() -> None:
    vectors = vectors_of(100, 4)
    catalog = fr.Catalog(np.arange(100), vectors, bias=np.ones(100))
    message = "index: has 4 dimensions, where vectors have 4, and one for the bias"
    with pytest.raises(ValueError, match=message):
        catalog.with_index(FaissIndex(flat(vectors)))


def test_an_index_that_finds_an_item_twice_is_refused() -> None:
    vectors = vectors_of(100, 4)
    index = faiss.IndexIDMap(faiss.IndexFlatIP(4))
    index.add_with_ids(vectors[:50], np.zeros(50, np.int64))
    catalog = fr.Catalog(np.arange(100), np.tile(vectors[0], (100, 1)))
    index = faiss.IndexIDMap(faiss.IndexFlatIP(4))
    index.add_with_ids(np.tile(vectors[0], (50, 1)), np.zeros(50, np.int64))
    with pytest.raises(ValueError, match="index: candidate 1 was there before"):
        catalog.with_index(FaissIndex(index)).rank(vectors[0], policy=POLICY)


@pytest.mark.parametrize("row", [100, -5])
@pytest.mark.parametrize("prior", [None, np.arange(100)])
def test_rows_that_a_catalog_lacks_are_refused(row: int, prior: Any) -> None:
    vectors = vectors_of(100, 4)
    index = faiss.IndexIDMap(faiss.IndexFlatIP(4))
    index.add_with_ids(vectors[:1], np.array([row]))
    with pytest.raises(ValueError, match=f"index: found row {row} in a catalog of 100 items"):
        fr.Catalog(np.arange(100), vectors, prior=prior).with_index(FaissIndex(index))


def test_ids_below_zero_are_ids() -> None:
    vectors, ids = vectors_of(100, 4), np.arange(-150, -50)
    index = faiss.IndexIDMap(faiss.IndexFlatIP(4))
    index.add_with_ids(vectors, ids)
    plain = fr.Catalog(ids, vectors)
    catalog = plain.with_index(FaissIndex(index, labels="item_ids"))
    ranking = catalog.rank(vectors[3], 5, policy=POLICY, seed=1, exclude=[-150])
    assert ranking.candidates is not None
    assert ranking.candidates.n_found == 50
    by_pass = plain.log_propensities(vectors[3], ranking.item_ids, policy=POLICY, exclude=[-150])
    np.testing.assert_allclose(ranking.log_propensities, by_pass, atol=1e-5)


def test_scores_that_are_none_are_refused() -> None:
    vectors = vectors_of(100, 4)
    index = flat(vectors)
    catalog = fr.Catalog(np.arange(100), vectors).with_index(FaissIndex(index))
    # Whoever changes it meanwhile.
    faiss.rev_swig_ptr(index.get_xb(), 400)[4] = np.copysign(np.inf, vectors[1, 0])
    with pytest.raises(ValueError, match="index: got a score of inf for label 1"):
        catalog.rank(vectors[1], 3, policy=fr.FlatTail(m=100))


def test_an_index_that_cannot_filter_says_so() -> None:
    vectors = vectors_of(1000, 8)
    index = FaissIndex(factory(vectors, "IVF16,Flat,Refine(Flat)"))
    catalog = fr.Catalog(np.arange(1000), vectors).with_index(index)
    assert catalog.rank(vectors[0], 3, policy=POLICY, seed=1).made_by == "index"
    with pytest.raises(ValueError, match="cannot search it with items excluded: IndexRefine"):
        catalog.rank(vectors[0], 3, policy=POLICY, seed=1, exclude=[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: build_ivf(c, n_lists=0), "n_lists: .* got 0"),
        (
            lambda c: build_ivf(c, n_lists=101),
            "n_lists: got 101; expected at most 100, the number of items",
        ),
        (lambda c: build_ivf(c, n_probes=0), "n_probes: .* got 0"),
        (lambda c: build_ivf(c, seed=-1), "seed: .* got -1"),
        (
            lambda c: build_ivf(None),  # type: ignore[arg-type]  # it is refused
            "catalog: expected a Catalog, got None",
        ),
    ],
)
def test_what_cannot_be_built_is_named(make: Callable[[fr.Catalog], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(fr.Catalog(np.arange(100), vectors_of(100, 4)))


def test_without_faiss_all_else_works(tmp_path: Path) -> None:
    indexed_model(200).save(tmp_path / "model")
    code = """
import sys
import numpy as np
sys.modules["faiss"] = None
import fastrank as fr
model = fr.Model.open(sys.argv[1])
assert model.recommend("ann", 3, policy=fr.PlackettLuce(), seed=1).made_by == "pass"
plain = fr.Catalog([1, 2, 3], [[1.0], [2.0], [3.0]])
assert plain.rank([1.0], 2, policy=fr.FlatTail(m=1), seed=1).made_by == "pass"
try:
    model.recommend("ann", 3, policy=fr.FlatTail(), seed=1)
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "faiss"


# What m and factor do


def measured(n: int = 3000, temperature: float = 0.3, **call: Any) -> list[retrieval.Trade]:
    plain = fr.Catalog(np.arange(n), vectors_of(n, 8))
    model = fr.Model(plain, np.arange(40), vectors_of(40, 8, 6))
    return measure(model, fr.PlackettLuce(temperature), users=8, draws=60, **call)


def test_a_trade_says_what_it_costs() -> None:
    few, many, all_items = measured(m=[10, 300, 3000], factor=[0.1], k=5)
    assert (few.found, many.found, all_items.found) == (10, 300, 3000)
    assert (few.m, many.m, all_items.m) == (10, 300, 3000)
    assert few.ess < many.ess < all_items.ess
    assert few.mass < many.mass < 1.0
    assert few.from_tail > many.from_tail
    # All are candidates: it is Plackett-Luce.
    assert all_items.ess > 0.999
    assert all_items.least_ess > 0.999
    assert abs(all_items.mass - 1.0) < 1e-6
    assert all_items.from_tail == 0.0
    assert all_items.is_enough
    # A factor that makes the tail as heavy as it can be loses score.
    heavy, light = measured(m=[30], factor=[1.0, 0.001], k=5)
    assert heavy.lost > 0.1 > light.lost
    assert few.lost < 1.0


def test_the_effective_sample_size_is_that_of_the_weights() -> None:
    """Two items and one place: the weights are known, and so is their spread."""
    catalog = fr.Catalog([0, 1], [[1.0], [0.0]])
    model = fr.Model(catalog, ["ann"], [[1.0]])
    (trade,) = measure(model, fr.PlackettLuce(1.0), k=1, m=[1], factor=[0.5], users=1, draws=20_000)
    p = np.array([np.e, 1.0]) / (1.0 + np.e)
    q = np.array([2.0, 1.0]) / 3.0
    expected = 1.0 / float((p**2 / q).sum())
    assert abs(trade.ess - expected) < 0.01  # of a standard deviation of some 0.001
    assert abs(trade.mass - p[0]) < 1e-6
    assert abs(trade.from_tail - q[1]) < 0.025  # 7 standard deviations
    assert abs(trade.lost - (p[0] - q[0]) / (p[0] - 0.5)) < 0.15


def test_a_proposal_is_the_least_that_is_enough() -> None:
    def trade(m: int, ess: float, lost: float, of_a_pass: float = 0.1) -> retrieval.Trade:
        return retrieval.Trade(m, 0.1, m, ess, ess / 2, lost, 0.9, 1.0, 1e-4, of_a_pass)

    enough, more = trade(100, 0.6, 0.02), trade(1000, 0.9, 0.01)
    assert propose([more, trade(10, 0.3, 0.0), enough]) == (enough, [])
    little, costly = trade(10, 0.3, 0.04), trade(100, 0.4, 0.3, 2.0)
    chosen, warnings = propose([little, costly])
    assert chosen == little
    assert len(warnings) == 1
    assert "a log is worth 30% of its rows" in warnings[0]
    chosen, warnings = propose([costly])
    assert [each.split()[0] for each in warnings] == ["with", "30%", "a"]
    half = retrieval.Trade(1000, 0.1, 480, 0.9, 0.8, 0.0, 0.9, 1.0, 1e-4, 0.1)
    assert propose([half]) == (
        half,
        [
            "of 1,000 candidates the index finds 480: raise n_probes, so that searches read more"
            " lists"
        ],
    )
    with pytest.raises(ValueError, match="trades: expected some, got none"):
        propose([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"m": [0]}, "m: must lie in"),
        ({"m": []}, "m, factor: expected one or more of each, got none"),
        ({"factor": [2.0]}, "factor: must lie in"),
        ({"k": 0}, "k: .* got 0"),
        ({"draws": 1}, "draws: .* got 1"),
        ({"users": 0}, "users: .* got 0"),
    ],
)
def test_what_cannot_be_measured_is_named(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(n=50, **call) if "users" not in call and "draws" not in call else measure(
            indexed_model(200), fr.PlackettLuce(), **call
        )
    with pytest.raises(ValueError, match="policy: expected PlackettLuce, got Uniform"):
        measure(indexed_model(200), fr.Uniform())
    with pytest.raises(ValueError, match="model: expected a Model, got None"):
        measure(None, fr.PlackettLuce())  # type: ignore[arg-type]  # it is refused


# Verify


def test_verify_looks_at_the_index(tmp_path: Path) -> None:
    indexed_model(400).save(tmp_path / "model")
    verdict = verify(tmp_path / "model", draws=1000)
    assert verdict.passed, verdict.failures
    (found,) = (check for check in verdict.checks if check.name == "index")
    assert "it scores as the catalog does; of the best 10 it finds" in found.detail
    tested = {check.name for check in verdict.checks if isinstance(check.policy, fr.FlatTail)}
    assert tested >= {"rankings", "sum", "first place", "propensities", "same seed", "filters"}
    done = run("verify", tmp_path / "model", "--draws", "1000")
    assert "✓ index: it scores as the catalog does" in done.output


def test_verify_fails_where_the_index_is_of_other_vectors(tmp_path: Path) -> None:
    meta, arrays, digests = indexed_model(400).catalog._files()
    other = flat(np.roll(vectors_of(400, 6), 1, axis=0))
    arrays["faiss_index"] = faiss.serialize_index(other)
    digests["faiss_index"] = store.array_digest(arrays["faiss_index"])
    meta["index"]["n_probes"] = None
    store.write(tmp_path / "catalog", meta, arrays, digests)
    verdict = verify(tmp_path / "catalog", draws=1000)
    assert [check.name for check in verdict.failures] == ["index"]
    assert "it holds other vectors" in verdict.failures[0].detail


# The command


def vector_files(folder: Path) -> list[str]:
    np.save(folder / "items.npy", vectors_of(2000, 8))
    np.save(folder / "users.npy", vectors_of(30, 8, 1))
    files = ["--items", str(folder / "items.npy"), "--users", str(folder / "users.npy")]
    return ["build", *files, "-o", str(folder / "model")]


def test_build_makes_an_index_measures_it_and_proposes(tmp_path: Path) -> None:
    build = vector_files(tmp_path)
    done = run(*build, "--index", "ivf")
    assert done.exit_code == 0, done.output
    assert "Index: 51 lists, of which a search reads 16, version" in done.output
    (proposed,) = (line for line in done.output.splitlines() if line.startswith("Proposed: "))
    _, policy = parse_policy(proposed.removeprefix("Proposed: "))
    assert isinstance(policy, fr.FlatTail)
    model = fr.Model.open(tmp_path / "model", verify=True)
    assert model.recommend(3, 5, policy=policy, seed=1).made_by == "index"

    chosen = ["--index-lists", "10", "--index-probes", "4", "--index-policy"]
    temperature = "plackett_luce:temperature=0.25"
    done = run(*build, "--replace", "--index", "ivf", *chosen, temperature)
    assert "Index: 10 lists, of which a search reads 4" in done.output
    assert "temperature=0.25,m=" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--index-lists", "5"], "--index-lists: needs --index"),
        (["--index-probes", "5"], "--index-probes: needs --index"),
        (["--index-policy", "uniform"], "expected plackett_luce:temperature"),
        (["--tables-bytes", "5"], "--tables-bytes: needs --tables"),
        (["--index", "hnsw"], "'hnsw' is not 'ivf'"),
        (
            ["--index", "ivf", "--index-lists", "2001"],
            "got 2001; expected at most 2000",
        ),
        (
            ["--index", "ivf", "--index-policy", "plackett_luce:temperature=x2"],
            "--index-policy: .*expected a temperature, not one relative",
        ),
    ],
)
def test_build_refuses_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    assert re.search(message, refused(*vector_files(tmp_path), *options))
    assert not (tmp_path / "model").exists()
