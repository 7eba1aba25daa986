"""What names of files say, and errors that name files."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from fastrank.files import file_format, in_directory, naming


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
        ("a.csv.gz", None),
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
    for name in ("b.csv", "a.csv", "c/a.CSV", ".d/a.csv", "e/f.csv", "f.csv", ".a.csv", "_x.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = in_directory(tmp_path, ["csv"], without=["e", "f.csv"])
    assert [str(file.relative_to(tmp_path)) for file in found] == ["a.csv", "b.csv", "c/a.CSV"]
    assert not caplog.records
    (tmp_path / "c" / "\x1b.zip").touch()
    in_directory(tmp_path, ["csv"])
    assert f"{tmp_path}: 'c/\\x1b.zip': not read" in caplog.text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("id"), "x: not a readable file: 'id'"),
        (zlib.error("no\nlines"), "x: not a readable file: no lines"),
        (RuntimeError(), "x: not a readable file: RuntimeError"),
        (MemoryError(), "x: not a readable file: what it says it holds does not fit in memory"),
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
