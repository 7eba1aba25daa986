"""Files of users, divided into parts: the units of work, which are repeated if they are missing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastrank.arraytypes import Mask
from fastrank.batch.users import as_user_texts
from fastrank.eventlog.events import read_batches
from fastrank.eventlog.hashing import SeenHashes, text_hashes
from fastrank.files import Paths, files_at, naming
from fastrank.inputs import shown
from fastrank.run import Run

__all__ = ["Part", "Survey", "parts_of", "survey", "user_files"]

_FORMATS = ("parquet", "csv", "jsonl", "json")
_NAMED = 3  # most users named in an error


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive users of one file.

    Attributes
    ----------
    file : str
    start : int
        Row of the first one.
    users : pyarrow.StringArray
    name : str
        Name of the file with their rankings: a hash of the users under the run's key, so that
        another run, or another list of users, has other names.
    """

    file: str
    start: int
    users: pa.StringArray
    name: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Facts about all users, found before the first is ranked.

    Attributes
    ----------
    users : int
    unknown : int
        Users that the model does not know.
    strangers : tuple of str
        The first of the unknown users.
    parts : dict of str to int
        Number of users of each part, by its name.
    """

    users: int
    unknown: int
    strangers: tuple[str, ...]
    parts: dict[str, int]


def user_files(users: Paths) -> list[Path]:
    """The files of users under paths: Parquet, CSV or JSON Lines."""
    return files_at(users, _FORMATS, "files of users (.parquet, .csv, .jsonl)")


def parts_of(files: list[Path], column: str, run: Run, rows: int) -> Iterator[Part]:
    """Divide all users into parts of at most `rows` users; the same files give the same parts.

    Raises
    ------
    ValueError
        If a value is not a user id; the message names the file, the row and the value.
    """
    for file in files:
        start, waiting = 0, pa.array([], pa.string())
        for texts in _texts(file, column):
            waiting = pa.concat_arrays([waiting, texts])
            while len(waiting) >= rows:
                yield _part(file, start, waiting.slice(0, rows), run)
                start, waiting = start + rows, waiting.slice(rows)
        if len(waiting):
            yield _part(file, start, waiting, run)


def _texts(file: Path, column: str) -> Iterator[pa.StringArray]:
    """The user ids of a file, batch by batch."""
    start = 0
    with naming(file, "file of users"):
        for batch in read_batches(file, (column,), ()):
            yield as_user_texts(f"{file}: {column}", batch.column(0), start)
            start += batch.num_rows


def _part(file: Path, start: int, users: pa.StringArray, run: Run) -> Part:
    digest = hashlib.blake2b(key=run.key, digest_size=12, person=b"part")
    digest.update(len(users).to_bytes(8, "little"))
    digest.update(text_hashes(users).tobytes())
    return Part(str(file), start, users, f"ranked-{digest.hexdigest()}.parquet")


def survey(parts: Iterator[Part], find_unknown: Callable[[Sequence[str]], Mask]) -> Survey:
    """Look at all users once: find repeated users, and users that the model does not know.

    Parameters
    ----------
    parts : iterator of Part
    find_unknown : callable
        Which of some users (m,) the model does not know, (m,) bool.

    Raises
    ------
    ValueError
        If users are repeated: names the first one, where it is repeated, and how many more there
        are.

    Notes
    -----
    Takes 24 bytes per user, to find repeated ones; O(u log u).
    """
    seen = SeenHashes()
    found: dict[str, int] = {}
    strangers: list[str] = []
    users = unknown = repeated = 0
    first: tuple[str, str] | None = None
    for part in parts:
        hashes = text_hashes(part.users)
        again, _ = seen.add(hashes, hashes[:, 0])
        if again.any():
            repeated += int(again.sum())
            if first is None:
                row = int(np.flatnonzero(again)[0])
                first = part.users[row].as_py(), f"{part.file} row {part.start + row}"
        texts = part.users.to_pylist()
        nobody = np.flatnonzero(find_unknown(texts))
        unknown += len(nobody)
        strangers += [texts[row] for row in nobody[: _NAMED - len(strangers)].tolist()]
        users += len(part.users)
        found[part.name] = len(part.users)
    if first is not None:
        more = f", and {repeated - 1:,} more" if repeated > 1 else ""
        raise ValueError(
            f"users: {shown(first[0])} is there twice, again at {first[1]}{more}: a run ranks each"
            " user once"
        )
    return Survey(users, unknown, tuple(strangers), found)
