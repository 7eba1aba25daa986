"""The columns of a run for a serving store: what each user is shown, and under which request."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq

from fastrank.atomic import leftovers
from fastrank.batch.manifest import read_manifest
from fastrank.batch.work import done_of, write_rows
from fastrank.eventlog.paths import path_that_reads
from fastrank.files import directly_in, is_data

__all__ = ["project"]

_COLUMNS = ["user_id", "request_id", "item_ids", "scores"]


def project(log: str | os.PathLike[str], output: str | os.PathLike[str]) -> int:
    """Write the columns of a run's log that a serving store needs, as Parquet files.

    Parameters
    ----------
    log : path
        A log that `run` wrote.
    output : path
        Directory, created if absent. Existing files of this run are kept; those of another run are
        refused.

    Returns
    -------
    int
        Number of rows in `output`, each with `user_id`, `request_id`, `item_ids`, `scores`. When a
        list is shown, log its `request_id`: `fastrank.eventlog.join` finds the ranking by it.

    Raises
    ------
    ValueError
        If the log was not written by `run`, or `output` has files that are not of this run; the
        message names the directory or the file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import fastrank as fr
    >>> from fastrank import batch
    >>> folder = Path(tempfile.mkdtemp())
    >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
    >>> fr.Model(catalog, ["ann"], [[1.0, 0.0]], policy=fr.Uniform()).save(folder / "model")
    >>> _ = (folder / "users.csv").write_text("user_id\\nann\\n")
    >>> asked = {"run": "2026-11-30", "model": folder / "model", "processes": 1}
    >>> _ = batch.run(folder / "users.csv", folder / "log", **asked)
    >>> batch.project(folder / "log", folder / "store")
    1
    """
    source, target = Path(log), Path(output)
    read_manifest(source)
    files = {file.name: file for file in directly_in(source, ".parquet")}
    if target.exists() and not target.is_dir():
        raise ValueError(f"output: {target} is a file")
    if path_that_reads(source, target, "ranked.parquet") is not None:
        raise ValueError(f"output: {target} is in the log, which would be read with it")
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted(os.listdir(target)):
        if is_data(name) and name not in files:
            raise ValueError(f"output: {target} holds {name}, which is not of the run in {source}")
    for leftover, _ in leftovers(target):
        leftover.unlink(missing_ok=True)
    rows = 0
    for name, file in files.items():
        said = done_of(file)
        rows += said.rows
        if not (target / name).exists():
            write_rows(target / name, pq.read_table(file, columns=_COLUMNS), {"of": name})
    return rows
