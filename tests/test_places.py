"""Folders and object stores: what is there, and that it arrives whole or not at all."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs")
from stores import BUCKET, s3_server

from fastrank import places
from fastrank.places import Place


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture(params=["folder", "file", "memory", "s3", "other"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place of each kind, in which nothing is yet."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return places.place(f"s3://{BUCKET}/{tmp_path.name}/")
    if request.param == "memory":
        return places.place(f"memory://{tmp_path}")
    if request.param == "other":  # where what is copied can be seen half copied
        monkeypatch.setattr(places, "_WHOLE", set())
        return places.place(f"memory://{tmp_path}")
    return places.place(f"file://{tmp_path}/far" if request.param == "file" else tmp_path / "far")


def test_what_is_put_there_is_there(place: Place, tmp_path: Path) -> None:
    file, back = tmp_path / "one", tmp_path / "back"
    for content in (b"first", b"second one"):
        file.write_bytes(content)
        place.put(file, "sub/one")
        assert place.read("sub/one") == content
        place.fetch("sub/one", back)
        assert back.read_bytes() == content
    file.write_bytes(b"")
    place.put(file, "empty")
    found = place.entries()
    assert {name: entry.size for name, entry in found.items()} == {"sub": None, "empty": 0}
    (inner,) = place.entries("sub").items()
    assert (inner[0], inner[1].size) == ("one", 10)
    file.write_bytes(b"second two")
    place.put(file, "sub/one")
    assert place.entries("sub")["one"].stamp != inner[1].stamp


def test_what_is_not_there_is_not_found(place: Place, tmp_path: Path) -> None:
    for asked in (
        place.entries,
        lambda: place.read("nothing"),
        lambda: place.fetch("nothing", tmp_path / "back"),
        lambda: place.put(tmp_path / "nothing", "one"),
    ):
        with pytest.raises(FileNotFoundError):
            asked()


def test_a_folder_keeps_the_old_content_where_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = places.place(tmp_path / "far")
    (tmp_path / "one").write_bytes(b"old")
    place.put(tmp_path / "one", "one")

    def half(_file: Path, target: Path) -> None:
        target.write_bytes(b"ne")
        raise OSError("the disk is full")

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(OSError, match="full"):
        place.put(tmp_path / "one", "one")
    assert {f.name: f.read_bytes() for f in (tmp_path / "far").iterdir()} == {"one": b"old"}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("s3://", "s3://: it names no place"),
        ("nowhere://a/b", "nowhere://a/b: expected a folder, or s3://BUCKET/PREFIX"),
    ],
)
def test_urls_that_name_no_place(where: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        places.place(where)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        places.check("s3://bucket/prefix")
    assert caught.value.name == "s3fs"
    places.check("models/")
    places.check("file:///models")
