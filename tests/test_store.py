"""Saving and opening: what comes back is what was saved, and damage is refused with its reason."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import resource
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import POLICIES

import fastrank as fr
from fastrank import store

QUERY = np.array([1.0, -0.5, 0.25, 2.0], np.float32)


def make(n: int = 200, *, words: bool = False, bias: bool = True, seed: int = 0) -> fr.Catalog:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    offsets = rng.standard_normal(n).astype(np.float32) if bias else None
    ids = [f"item {i}" for i in rng.permutation(n)] if words else rng.permutation(n) * 5
    return fr.Catalog(ids, vectors, bias=offsets)


def fingerprint(catalog: fr.Catalog) -> list[bytes]:
    """What every policy ranks, in bits."""
    some = catalog.item_ids[: len(catalog) // 3]
    rankings = [
        catalog.rank(QUERY, 10, policy=policy, seed=3, exclude=some) for policy in POLICIES.values()
    ]
    return [
        bytes(str(ranking.item_ids.tolist()), "utf-8")
        + ranking.scores.tobytes()
        + ranking.log_propensities.tobytes()
        for ranking in rankings
    ]


def manifest_of(directory: Path) -> dict[str, dict[str, dict[str, str]]]:
    manifest: dict[str, dict[str, dict[str, str]]] = json.loads(
        (directory / "manifest.json").read_text()
    )
    return manifest


def array_names() -> list[str]:
    """The arrays of the fullest catalog, as its manifest lists them."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        make(words=True).save(directory)
        return sorted(manifest_of(Path(directory))["arrays"])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make().save(tmp_path / "model")
    return tmp_path / "model"


def refused(directory: Path, *parts: str, verify: bool = False) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        fr.Catalog.open(directory, verify=verify)
    for part in (str(directory), *parts):
        assert part in str(caught.value), f"{part!r} is not in {caught.value!s}"


# There and back


@pytest.mark.parametrize("words", [False, True], ids=["int ids", "str ids"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("n", [1, 16, 200])
def test_round_trip(tmp_path: Path, n: int, *, words: bool, bias: bool) -> None:
    catalog = make(n, words=words, bias=bias)
    catalog.save(tmp_path / "model")
    for verify in (False, True):
        opened = fr.Catalog.open(tmp_path / "model", verify=verify)
        assert len(opened) == n
        assert opened.dim == 4
        assert opened.version == catalog.version
        assert opened.item_ids.dtype.kind == catalog.item_ids.dtype.kind
        assert opened.item_ids.tolist() == catalog.item_ids.tolist()
        assert opened.scores(QUERY).tobytes() == catalog.scores(QUERY).tobytes()
        assert fingerprint(opened) == fingerprint(catalog)


def test_paths_as_text_and_with_a_slash(tmp_path: Path) -> None:
    catalog = make()
    catalog.save(f"{tmp_path}/model/")
    assert fr.Catalog.open(f"{tmp_path}/model/").version == catalog.version


def test_saving_an_opened_catalog_saves_the_same(model: Path, tmp_path: Path) -> None:
    fr.Catalog.open(model).save(tmp_path / "copy")
    assert fr.Catalog.open(tmp_path / "copy", verify=True).version == make().version
    assert manifest_of(tmp_path / "copy") == manifest_of(model)


def test_saving_onto_itself(model: Path) -> None:
    """The arrays are mapped from the very files that are written."""
    before = manifest_of(model)
    fr.Catalog.open(model).save(model)
    assert manifest_of(model) == before
    assert fingerprint(fr.Catalog.open(model, verify=True)) == fingerprint(make())


def test_saving_over_another_model_replaces_it(model: Path) -> None:
    held = fr.Catalog.open(model)
    expected = fingerprint(held)
    other = make(50, words=True, seed=1)
    other.save(model)
    assert fr.Catalog.open(model, verify=True).version == other.version
    assert fingerprint(held) == expected  # the old arrays stay mapped for who holds them
    files = {entry["file"] for entry in manifest_of(model)["arrays"].values()}
    assert {path.name for path in model.iterdir()} == files | {"manifest.json"}


def test_the_manifest_lists_what_is_there(model: Path) -> None:
    manifest = manifest_of(model)
    assert "format_version" in manifest
    assert "manifest_sha256" in manifest
    for name, entry in manifest["arrays"].items():
        path = model / entry["file"]
        assert path.stat().st_size == int(entry["bytes"]), name
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        assert (
            str(array.dtype) == np.dtype(entry["dtype"]).name or array.dtype.str == entry["dtype"]
        )
        assert list(array.shape) == list(entry["shape"])


def test_an_opened_model_is_mapped_not_copied(model: Path) -> None:
    """Each array file is mapped into this process while the catalog lives."""
    opened = fr.Catalog.open(model)
    maps = Path("/proc/self/maps").read_text()
    for entry in manifest_of(model)["arrays"].values():
        assert str(model / entry["file"]) in maps
    assert len(opened) == 200


def test_a_mapped_model_outlives_its_directory(model: Path) -> None:
    opened = fr.Catalog.open(model)
    shutil.rmtree(model)
    assert fingerprint(opened) == fingerprint(make())


def test_a_read_only_model_opens(model: Path) -> None:
    for path in model.iterdir():
        path.chmod(0o444)
    model.chmod(0o555)
    try:
        assert fr.Catalog.open(model, verify=True).version == make().version
    finally:
        model.chmod(0o755)


# Damage


@pytest.mark.parametrize("name", array_names())
def test_verify_finds_a_flipped_byte_in_every_array(tmp_path: Path, name: str) -> None:
    catalog = make(words=True)
    catalog.save(tmp_path / "model")
    path = tmp_path / "model" / manifest_of(tmp_path / "model")["arrays"][name]["file"]
    content = bytearray(path.read_bytes())
    for at in (len(content) - 1, len(content) // 2 + 64):
        damaged = bytearray(content)
        damaged[min(at, len(content) - 1)] ^= 0x10
        path.write_bytes(damaged)
        refused(tmp_path / "model", path.name, verify=True)
    path.write_bytes(content)
    assert fr.Catalog.open(tmp_path / "model", verify=True).version == catalog.version


@pytest.mark.parametrize("name", array_names())
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: b"\0" * len(content),
        lambda content: content[:6] + b"\x09" + content[7:],
    ],
    ids=["cut by a byte", "cut in half", "empty", "grown", "zeros", "npy version"],
)
def test_damaged_arrays_are_refused(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    make(words=True).save(tmp_path / "model")
    path = tmp_path / "model" / manifest_of(tmp_path / "model")["arrays"][name]["file"]
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path / "model", path.name)


@pytest.mark.parametrize("name", array_names())
def test_missing_arrays_are_refused(tmp_path: Path, name: str) -> None:
    make(words=True).save(tmp_path / "model")
    path = tmp_path / "model" / manifest_of(tmp_path / "model")["arrays"][name]["file"]
    path.unlink()
    refused(tmp_path / "model", path.name)


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", ["panels-*", "manifest.json"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    model: Path, name: str, put: Callable[[Path], None]
) -> None:
    (path,) = model.glob(name)
    path.unlink()
    put(path)
    refused(model, path.name)


@pytest.mark.parametrize("name", array_names())
@pytest.mark.parametrize("change", ["dtype", "shape"])
def test_another_meaning_of_the_same_bytes_is_refused(
    tmp_path: Path, name: str, change: str
) -> None:
    make(words=True).save(tmp_path / "model")
    path = tmp_path / "model" / manifest_of(tmp_path / "model")["arrays"][name]["file"]
    array, content = np.load(path), path.read_bytes()
    dtype = f"|V{array.itemsize}" if change == "dtype" else array.dtype.str
    shape = (*array.shape, 1) if change == "shape" else array.shape
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    length = int.from_bytes(content[8:10], "little")
    text = str(header).encode().ljust(length - 1) + b"\n"
    path.write_bytes(content[:10] + text + content[10 + length :])
    refused(tmp_path / "model", path.name)


class _Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", array_names())
def test_pickles_are_refused_and_never_run(tmp_path: Path, name: str) -> None:
    make(words=True).save(tmp_path / "model")
    path = tmp_path / "model" / manifest_of(tmp_path / "model")["arrays"][name]["file"]
    size, sprung = path.stat().st_size, tmp_path / "sprung"
    np.save(path, np.array([_Trap(sprung)], object), allow_pickle=True)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * (size - len(content)))
    refused(tmp_path / "model", path.name)
    refused(tmp_path / "model", path.name, verify=True)
    path.write_bytes(pickle.dumps(_Trap(sprung)).ljust(size, b"\0"))
    refused(tmp_path / "model", path.name)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format_version": 1}', "\x00\xff", '{"arrays": {}}'],
    ids=repr,
)
def test_manifests_that_are_none_are_refused(model: Path, text: str) -> None:
    (model / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(model, "manifest")


def test_an_edited_manifest_is_refused(model: Path) -> None:
    text = (model / "manifest.json").read_text()
    digits = [i for i, letter in enumerate(text) if letter.isdigit()]
    for at in digits[:: max(1, len(digits) // 40)]:
        other = str((int(text[at]) + 1) % 10)
        (model / "manifest.json").write_text(text[:at] + other + text[at + 1 :])
        refused(model, "manifest")


def test_a_cut_manifest_is_refused(model: Path) -> None:
    text = (model / "manifest.json").read_text().rstrip()
    for length in (1, len(text) // 2, len(text) - 1):
        (model / "manifest.json").write_text(text[:length])
        refused(model, "manifest")


def test_another_format_version_is_refused_by_name(model: Path) -> None:
    """A file of a later release says so, instead of failing on its own hash."""
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["format_version"] = 99
    (model / "manifest.json").write_text(json.dumps(manifest))
    refused(model, "99")


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    refused(foreign, "manifest")
    np.save(foreign / "vectors.npy", np.ones(3))
    refused(foreign, "manifest")
    (foreign / "manifest.json").mkdir()
    refused(foreign, "manifest")


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file")


def test_files_outside_the_directory_are_not_opened(model: Path, tmp_path: Path) -> None:
    """A manifest that points elsewhere is damaged, whatever its hash says."""
    manifest = json.loads((model / "manifest.json").read_text())
    name, entry = next(iter(manifest["arrays"].items()))
    shutil.copy(model / entry["file"], tmp_path / entry["file"])
    manifest["arrays"][name]["file"] = f"../{entry['file']}"
    (model / "manifest.json").write_text(json.dumps(manifest))
    refused(model, "manifest")


# Failures midway


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond this many bytes in a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 100, 1_000, 3_000])
def test_a_save_that_fails_leaves_the_old_model(model: Path, size: int) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with largest_file(size), pytest.raises(OSError, match=r"."):
        make(300, seed=1).save(model)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert fr.Catalog.open(model, verify=True).version == make().version


@pytest.mark.parametrize("size", [0, 1, 100, 1_000, 3_000])
def test_a_first_save_that_fails_leaves_no_model(tmp_path: Path, size: int) -> None:
    with largest_file(size), pytest.raises(OSError, match=r"."):
        make(300).save(tmp_path / "new")
    refused(tmp_path / "new")
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("function", ["replace", "rename", "fsync"])
def test_a_save_whose_system_calls_fail_leaves_the_old_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """Each call in turn fails, the others work: an error leaves the old model, success the new."""
    genuine = getattr(os, function)
    for nth in range(12):
        calls = iter(range(1_000))

        def fail(*args: object, calls: Iterator[int] = calls, nth: int = nth) -> object:
            if next(calls) == nth:
                raise OSError("no space left on device")
            return genuine(*args)

        make().save(model)
        monkeypatch.setattr(os, function, fail)
        try:
            make(300, seed=nth + 1).save(model)
        except OSError:
            expected = make()
        else:
            expected = make(300, seed=nth + 1)
        finally:
            monkeypatch.setattr(os, function, genuine)
        assert fr.Catalog.open(model, verify=True).version == expected.version


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_killed_save_leaves_one_of_the_two_models(model: Path) -> None:
    """A process that saves two models in turn is killed, ten times, at whatever it was doing."""
    first, second = make(2_000), make(2_000, seed=1)
    first.save(model)
    for attempt in range(10):
        child = os.fork()
        if child == 0:
            while True:
                second.save(model)
                first.save(model)
        time.sleep(0.02 + 0.007 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        opened = fr.Catalog.open(model, verify=True)
        assert opened.version in (first.version, second.version)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises((ValueError, OSError), match="file"):
        make().save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_leftovers_of_a_killed_save_go_with_the_next(model: Path) -> None:
    leftover = model / f".panels-{'0' * 16}.npy.{'1' * 16}.tmp"
    leftover.write_bytes(b"half")
    fr.Catalog.open(model).save(model)
    assert not leftover.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_what_killed_saves_left_makes_room_for_the_next(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two saves are killed midway; the disk has room for two models, and no more."""
    genuine, calls = os.fsync, iter(range(1_000))

    def killed(descriptor: int) -> None:
        if next(calls) == 4:  # all arrays are there, and no manifest that names them
            os.kill(os.getpid(), signal.SIGKILL)
        genuine(descriptor)

    for seed in (1, 2):
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(os, "fsync", killed)
            make(seed=seed).save(model)
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    named = {entry["file"] for entry in manifest_of(model)["arrays"].values()}
    assert len(list(model.iterdir())) > len(named) + 1
    room = 2 * sum((model / name).stat().st_size for name in named) + 8192

    def full(descriptor: int) -> None:
        if sum(file.stat().st_size for file in model.iterdir()) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    make(seed=3).save(model)
    assert fr.Catalog.open(model, verify=True).version == make(seed=3).version
    named = {entry["file"] for entry in manifest_of(model)["arrays"].values()}
    assert {file.name for file in model.iterdir()} == named | {"manifest.json"}


def test_an_interrupt_right_after_the_commit_leaves_the_new_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        moved = genuine(self, target)
        if target.name == "manifest.json":
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(seed=1).save(model)
    assert fr.Catalog.open(model, verify=True).version == make(seed=1).version


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_where_directories_cannot_be_synced_saves_succeed(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    sync_fails_of_directories(monkeypatch, [error] * 9)
    make(seed=1).save(model)
    assert fr.Catalog.open(model, verify=True).version == make(seed=1).version
    assert not caplog.records


def test_a_disk_that_fails_is_an_error_before_the_commit_and_none_after(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path.name for path in model.iterdir()}
    sync_fails_of_directories(monkeypatch, [errno.EIO])
    with pytest.raises(OSError, match="failed"):
        make(seed=1).save(model)
    assert {path.name for path in model.iterdir()} == before
    assert fr.Catalog.open(model, verify=True).version == make().version
    sync_fails_of_directories(monkeypatch, [None, errno.EIO])
    make(seed=1).save(model)
    assert fr.Catalog.open(model, verify=True).version == make(seed=1).version
    assert f"{model}: written and in use, but the disk did not confirm it" in caplog.text


def sync_fails_of_directories(monkeypatch: pytest.MonkeyPatch, errors: list[int | None]) -> None:
    """Calls of fsync for directories fail in this order."""
    monkeypatch.undo()
    genuine, waiting = os.fsync, iter(errors)

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            error = next(waiting)
            if error is not None:
                raise OSError(error, "failed")
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_old_files_that_stay_are_no_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "unlink", fail)
    make(seed=1).save(model)
    monkeypatch.undo()
    assert fr.Catalog.open(model, verify=True).version == make(seed=1).version
    assert f"{model}: old files stay" in caplog.text
    make(seed=1).save(model)
    assert len(list(model.iterdir())) == len(manifest_of(model)["arrays"]) + 1


def test_a_first_save_that_was_killed_can_be_done_again(tmp_path: Path) -> None:
    make().save(tmp_path)
    (tmp_path / "manifest.json").unlink()  # what it would have written last
    make().save(tmp_path)
    assert fr.Catalog.open(tmp_path, verify=True).version == make().version


@pytest.mark.parametrize("text", ['{"my": 1}', "[]", "not JSON", ""])
def test_another_programs_manifest_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "data.npy").write_bytes(b"precious")
    with pytest.raises(ValueError, match="not fastrank's"):
        make().save(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == text
    assert (tmp_path / "data.npy").read_bytes() == b"precious"


def test_other_files_beside_a_model_stay(model: Path) -> None:
    (model / "notes.npy").write_bytes(b"precious")
    make(seed=1).save(model)
    assert (model / "notes.npy").read_bytes() == b"precious"


@pytest.mark.parametrize("name", [".gitkeep", ".DS_Store", "lost+found"])
def test_what_is_no_data_does_not_make_a_directory_foreign(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    make().save(tmp_path)
    assert fr.Catalog.open(tmp_path, verify=True).version == make().version
    assert (tmp_path / name).exists()


def test_a_lock_that_is_waited_for_is_said(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastrank.store._PATIENCE", 0.02)
    make(seed=1).save(model)
    assert not caplog.records
    descriptor = os.open(model, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(make(seed=2).save, model)
        while not caplog.records:
            assert not job.done()
            time.sleep(0.01)
        os.close(descriptor)
        job.result()
    assert f"{model}: waiting for another process" in caplog.text
    assert fr.Catalog.open(model, verify=True).version == make(seed=2).version


def test_a_model_that_went_and_came_back_is_not_damaged(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reader's look at the manifest and its look at the files another model comes, and
    before its next look the first one is back: content alone would not tell it from damage."""
    genuine, looks = store._read_arrays, iter(range(1_000))

    def replaced(*arguments: Any) -> Any:
        if next(looks) >= 5:
            return genuine(*arguments)
        make(seed=1).save(model)
        try:
            return genuine(*arguments)
        finally:
            make().save(model)

    monkeypatch.setattr(store, "_read_arrays", replaced)
    assert fr.Catalog.open(model, verify=True).version == make().version
    assert next(looks) == 6


def test_a_damaged_directory_is_looked_at_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels = next(model.glob("panels-*"))
    panels.unlink()
    genuine, looks = store._read_arrays, iter(range(1_000))

    def counted(*arguments: Any) -> Any:
        next(looks)
        return genuine(*arguments)

    monkeypatch.setattr(store, "_read_arrays", counted)
    refused(model, f"damaged: {panels.name} is missing")
    assert next(looks) == 1


def test_writers_of_one_directory_wait_for_each_other(model: Path) -> None:
    """Three threads save two models in turn while a reader opens: always one of the two, whole."""
    catalogs = [make(), make(seed=1)]
    versions = {catalog.version for catalog in catalogs}

    def save_often(catalog: fr.Catalog) -> None:
        for _ in range(15):
            catalog.save(model)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(save_often, catalogs[i % 2]) for i in range(3)]
        while not all(job.done() for job in jobs):
            assert fr.Catalog.open(model, verify=True).version in versions
        for job in jobs:
            job.result()
    assert fr.Catalog.open(model, verify=True).version in versions
