"""Rank one part into one file of the log, written under a temporary name, synced, and renamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastrank.atomic import replacing, sync
from fastrank.batch.parts import Part
from fastrank.batch.users import RankUsers
from fastrank.eventlog.segments import parquet_options
from fastrank.files import naming

__all__ = ["Done", "done_of", "rank_part", "write_rows"]

_KEY = b"fastrank.batch"  # in a file's metadata
_AT_ONCE = 1024  # users who share each item that is read


@dataclass(frozen=True, slots=True)
class Done:
    """A part that is in the log, as described by its file and the manifest.

    Attributes
    ----------
    name : str
        Name of the file.
    input : str
        The file of users, under its name at that time.
    start, users : int
        The rows of that file.
    rows : int
        Number of rankings: one for each user who was not skipped.
    fallback : int
        How many of these are for users that the model does not know.
    empty : int
        How many have no place: no item was left to rank.
    """

    name: str
    input: str
    start: int
    users: int
    rows: int
    fallback: int
    empty: int


def rank_part(
    ranker: RankUsers, output: Path, part: Part, tell: Callable[[int], None] | None = None
) -> Done:
    """Rank the users of a part and write the rows; `tell` gets the number of users of each step.

    Raises
    ------
    ValueError
        If a user cannot be ranked for; the message names the file of users, and the user.
    OSError
        If the disk refuses; then no file has the part's name.
    """
    tables = []
    for at in range(0, len(part.users), _AT_ONCE):
        texts = part.users.slice(at, _AT_ONCE).to_pylist()
        try:
            tables.append(ranker.rank(texts))
        except ValueError as error:
            first = part.start + at
            raise ValueError(
                f"{part.file}: rows {first} to {first + len(texts) - 1}: {error}"
            ) from None
        if tell is not None:
            tell(len(texts))
    rows = pa.concat_tables(tables)
    done = Done(
        part.name,
        part.file,
        part.start,
        len(part.users),
        rows.num_rows,
        pc.sum(rows["is_fallback"]).as_py() or 0,
        int(np.count_nonzero(pc.list_value_length(rows["item_ids"]).to_numpy() == 0)),
    )
    write_rows(output / part.name, rows, asdict(done))
    return done


def write_rows(file: Path, rows: pa.Table, said: dict[str, Any]) -> None:
    """Write a table to a file that is complete or absent, with `said` in its metadata."""
    metadata = {**(rows.schema.metadata or {}), _KEY: json.dumps(said).encode()}
    rows = rows.replace_schema_metadata(metadata)
    with replacing(file) as temporary:
        pq.write_table(rows, temporary, **parquet_options(rows.schema))
        sync(temporary)


def done_of(file: Path) -> Done:
    """What a file of `rank_part` states about itself; ValueError if it is another file."""
    with naming(file, "file of a run's log"):
        metadata = pq.read_schema(file).metadata or {}
        if _KEY not in metadata:
            raise ValueError(f"{file}: not written by a batch run")
        return Done(**json.loads(metadata[_KEY]))
