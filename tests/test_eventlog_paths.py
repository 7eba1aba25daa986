"""What a log would read once more files are there, against the reader on those files."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
from fastrank.eventlog import LogReader
from fastrank.eventlog.paths import path_that_reads

NAME = "part-000000.parquet"

LOGS = [
    "logs", "logs/", "logs/./../logs", "{root}/logs", "linked", "logs/day=1",
    "logs/day=1/a.parquet", "logs/*", "logs/*/", "lo*", "logs/*.parquet", "logs/*/*.parquet",
    "logs/day=*", "logs/day=[12]", "logs/day=*/part-*.parquet", "logs/**", "logs/**/*.parquet",
    "**/*.parquet", "*/*/*", "**", "logs/**/d*/*.parquet", "logs/**/day=1/**", "{root}/logs/*/*",
    "{root}/*/day=?/*.parquet", "linked/*/*.parquet", "linked/**", "outside/*", "logs/.*",
    "logs/*/out/*", "logs/to_outside", "logs/to_outside/*", "logs/*/joined/*.parquet",
    "./logs/*/*.parquet", "[l]ogs", "logs/odd[1]", "logs/f*", "logs/f*/*", "logs/**/filters/*/*",
]  # fmt: skip
OUTPUTS = [
    "joined", "logs/joined", "logs/day=2", "logs/day=1/out", "logs/day=3/out", "logs/empty",
    "logs/a/b/c", "logs/.joined", "logs/.hidden/joined", "logs/filters", "logs/filters/joined",
    "logs/filters/a/b", "logs/lost+found/joined", "linked/joined", "outside/joined",
    "logs/to_outside/joined", "linked/to_outside/joined", "logs/../joined",
    "joined/../logs/x", "{root}/logs/joined", "{root}/logs-joined", "logsjoined", "to_empty",
    "shelf/joined", "shelf/deep/a/b", "shelf/.hidden/joined", "shelf/filters/x",
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("logs/day=1", "logs/day=2", "logs/empty", "logs/filters", "logs/.hidden",
                   "logs/odd[1]", "outside"):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
    for file in ("logs/a.parquet", "logs/day=1/a.parquet", "logs/odd[1]/a.parquet",
                 "outside/a.parquet", "logs/.hidden/a.parquet"):  # fmt: skip
        (tmp_path / file).touch()
    (tmp_path / "linked").symlink_to("logs")
    (tmp_path / "logs" / "to_outside").symlink_to(tmp_path / "outside")
    (tmp_path / "to_empty").symlink_to(tmp_path / "logs" / "empty")
    (tmp_path / "shelf" / "deep").mkdir(parents=True)
    (tmp_path / "logs" / "odd[1]" / "shelf").symlink_to(tmp_path / "shelf")
    (tmp_path / "shelf" / "back").symlink_to(tmp_path / "logs")
    (tmp_path / "logs" / "loop").symlink_to(tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(paths: list[str]) -> set[Path]:
    try:
        return {file.resolve() for file in LogReader(paths).files}
    except ValueError:  # no files there as yet
        return set()


@pytest.mark.sampled
@pytest.mark.parametrize("logs", LOGS)
def test_as_the_reader_finds(root: Path, logs: str) -> None:
    logs = logs.format(root=root)
    for output in OUTPUTS:
        directory = Path(output.format(root=root))
        found = path_that_reads(["outside/a.parquet", logs], directory, NAME)
        target = directory.resolve()
        made = [folder for folder in (target, *target.parents) if not folder.exists()]
        target.mkdir(parents=True, exist_ok=True)
        (target / NAME).touch()
        assert (found is not None) == (target / NAME in files([logs])), output
        assert found in (None, logs)
        (target / NAME).unlink()
        for folder in made:
            folder.rmdir()
