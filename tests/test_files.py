"""What names of files say, and errors that name files."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastrank.files import (
    directly_in,
    file_format,
    files_at,
    holds_data,
    in_directory,
    naming,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.parq", "parquet"),
        ("a.c000.snappy.parquet", "parquet"),
        ("a.parquet.gzip", "parquet"),
        ("a.PARQUET.GZ", "parquet"),
        ("a.parquet.bak", None),
        ("a.csv.gz", "csv.gz"),
        ("a.JSONL.GZ", "jsonl.gz"),
        ("a.csv.zst", None),
        ("a.gz", None),
        ("a.Csv", "csv"),
        ("a.ndjson", "jsonl"),
        ("a.json", "json"),
        ("parquet", None),
        (".parquet", None),
        ("", None),
    ],
)
def test_the_format_is_that_of_the_name(name: str, expected: str | None) -> None:
    assert file_format(name) == expected
    assert file_format(Path("x.parquet") / name if name else "") == expected


def test_a_directory_is_listed_by_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.csv", "a.csv", "c/a.CSV", ".d/a.csv", "e/f.csv", "f.csv", ".a.csv", "_x.tsv",
                 "lost+found/a.csv"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = in_directory(tmp_path, ["csv"], without=["e", "f.csv"])
    assert [str(file.relative_to(tmp_path)) for file in found] == ["a.csv", "b.csv", "c/a.CSV"]
    assert not caplog.records
    (tmp_path / "c" / "\x1b.zip").touch()
    in_directory(tmp_path, ["csv"])
    assert f"{tmp_path}: 'c/\\x1b.zip': not read" in caplog.text


def test_links_that_lead_nowhere_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A day of a log may lie on a disk that is away."""
    (tmp_path / "a.csv").touch()
    (tmp_path / "day2").symlink_to(tmp_path / "away")
    (tmp_path / ".old").symlink_to(tmp_path / "away")
    assert in_directory(tmp_path, ["csv"]) == [tmp_path / "a.csv"]
    assert f"{tmp_path}: 'day2': not read: these links are broken" in caplog.text
    assert len(caplog.records) == 1


def test_a_directory_that_may_not_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds would be missing without a word; one that is gone by then holds nothing."""
    (tmp_path / "a.csv").touch()
    (tmp_path / "day2").mkdir()
    scan = os.scandir

    def refusing(error: OSError) -> Callable[[Any], Any]:
        def scandir(path: Any) -> Any:
            if Path(path).name == "day2":
                raise error
            return scan(path)

        return scandir

    monkeypatch.setattr(os, "scandir", refusing(PermissionError(13, "denied", "day2")))
    with pytest.raises(PermissionError, match="day2"):
        in_directory(tmp_path, ["csv"])
    monkeypatch.setattr(os, "scandir", refusing(FileNotFoundError(2, "gone", "day2")))
    assert in_directory(tmp_path, ["csv"]) == [tmp_path / "a.csv"]


def test_paths_stand_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "d/b.csv",
        "d/c/a.csv",
        "d/.h.csv",
        "e/a.csv",
        "e/x.txt",
        "odd[1]/a.csv",
        "t/t.txt",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for given, expected in {
        "d": ["d/b.csv", "d/c/a.csv"],
        "e/x.txt": ["e/x.txt"],
        "*/*.csv": ["d/b.csv", "e/a.csv", "odd[1]/a.csv"],
        "[de]": ["d/b.csv", "d/c/a.csv", "e/a.csv"],
        "odd[1]": ["odd[1]/a.csv"],
    }.items():
        assert files_at(given, ["csv"], "tables") == [Path(each) for each in expected]
    found = files_at(["e", Path("d"), "*/a.csv"], ["csv"], "tables", without=["c"])
    assert found == [Path(name) for name in ("e/a.csv", "d/b.csv", "odd[1]/a.csv")]
    assert files_at([], ["csv"], "tables") == []
    for given, why in {
        "nowhere": "nowhere: no such file or directory",
        "s3://b/log": "s3://b/log: expected a file, not a URL; copy it to a directory first",
        "d/c/*.txt": r"d/c/\*.txt: no tables there",
        "t": "t: no tables there",
    }.items():
        with pytest.raises(ValueError, match=f"^{why}$"):
            files_at(["d", given], ["csv"], "tables")


def test_what_a_directory_holds(tmp_path: Path) -> None:
    assert not holds_data(tmp_path)
    for name in (".gitkeep", "lost+found", "._a.csv"):
        (tmp_path / name).touch()
        assert not holds_data(tmp_path)
    (tmp_path / "b.csv").touch()
    (tmp_path / "a.csv").touch()
    assert holds_data(tmp_path)
    assert directly_in(tmp_path, ".csv") == [tmp_path / "a.csv", tmp_path / "b.csv"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("id"), "x: not a readable file: 'id'"),
        (zlib.error("no\nlines"), "x: not a readable file: no lines"),
        (RuntimeError(), "x: not a readable file: RuntimeError"),
        (MemoryError(), "x: not a readable file: the size that it states does not fit in memory"),
        (OSError("torn"), "x: not a readable file: torn"),
        (ValueError("x: row 3: wrong"), "x: row 3: wrong"),
        (ValueError("xy: row 3"), "x: not a readable file: xy: row 3"),
    ],
    ids=repr,
)
def test_whatever_is_raised_names_the_file(error: Exception, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught, naming("x", "file"):
        raise error
    assert str(caught.value) == words


@pytest.mark.parametrize("error", [ImportError("pyarrow"), FileNotFoundError(2, "gone", "x")])
def test_what_is_no_fault_of_the_file_stays(error: Exception) -> None:
    with pytest.raises(type(error)), naming("x", "file"):
        raise error
