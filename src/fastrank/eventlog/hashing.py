"""Fixed hashes of text and of numbers, many at once; and whether a hash was seen before.

Users are put into groups, and requests recognised, by these hashes: they are the same on every
machine, in every process and for every way of cutting a log into batches. `text_hash` is the
definition, and `text_hashes` computes it for a column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastrank.arraytypes import AnyArray, FloatArray, Hashes, IntArray, Mask

__all__ = [
    "SeenHashes",
    "mixed",
    "row_hashes",
    "text_hash",
    "text_hashes",
    "uniforms",
]

_MASK = 2**64 - 1
# Odd, from the literature on mixing (Steele, Lea and Flood 2014; Stafford's variant 13).
_START = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)
_STEP = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_LENGTH = 0xFF51AFD7ED558CCD
_LONGEST = 256  # bytes; longer text is hashed by its SHA-256
_MERGED_UP_TO = 1 << 23


def text_hash(text: str) -> tuple[int, int]:
    """Two 64-bit hashes of a text: what `text_hashes` computes, one text at a time.

    Examples
    --------
    >>> text_hash("a") != text_hash("b")
    True
    """
    return _hash_of_bytes(text.encode())


def _hash_of_bytes(data: bytes) -> tuple[int, int]:
    if len(data) > _LONGEST:
        data = hashlib.sha256(data).hexdigest().encode()
    lanes = []
    for start, step in zip(_START, _STEP, strict=True):
        h = (start + len(data) * _LENGTH) & _MASK
        for at in range(0, len(data), 8):
            h = ((h ^ int.from_bytes(data[at : at + 8], "little")) * step) & _MASK
            h ^= h >> 32
        lanes.append(_finished(h))
    return lanes[0], lanes[1]


def _finished(h: Any) -> Any:
    """Spread the bits: every input bit reaches every output bit. For an int or an array."""
    for shift, factor in ((30, _STEP[0]), (27, _STEP[1])):
        h = h ^ (h >> shift if isinstance(h, int) else h >> np.uint64(shift))
        h = (h * factor) & _MASK if isinstance(h, int) else h * np.uint64(factor)
    return h ^ (h >> 31 if isinstance(h, int) else h >> np.uint64(31))


def text_hashes(texts: pa.StringArray) -> Hashes:
    """Two 64-bit hashes of each text; a null hashes as the empty text.

    Parameters
    ----------
    texts : pyarrow.StringArray, length n

    Returns
    -------
    ndarray of uint64, shape (n, 2)

    Notes
    -----
    Eight bytes at a time: ``h = (h ^ word) * step; h ^= h >> 32``, from a start that holds the
    length, then Stafford's finaliser. Not safe against an adversary. O(bytes).

    Examples
    --------
    >>> hashes = text_hashes(pa.array(["a", "b"]))
    >>> tuple(hashes[0].tolist()) == text_hash("a")
    True
    """
    n = len(texts)
    out = np.empty((n, 2), np.uint64)
    if n == 0:
        return out
    texts = texts.fill_null("") if texts.null_count else texts
    _, offset_bytes, data_bytes = texts.buffers()
    offsets = np.frombuffer(offset_bytes, np.int32)[texts.offset : texts.offset + n + 1]
    data = np.frombuffer(data_bytes or b"", np.uint8)
    lengths = np.diff(offsets)
    if lengths[0] <= _LONGEST and (lengths == lengths[0]).all():
        cells = data[offsets[0] : offsets[-1]].reshape(n, int(lengths[0]))
        return _fixed_width(cells)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        if length > _LONGEST:
            starts = offsets[rows].tolist()
            out[rows] = [_hash_of_bytes(data[at : at + length].tobytes()) for at in starts]
        else:
            out[rows] = _fixed_width(data[offsets[rows][:, None] + np.arange(length)])
    return out


def _fixed_width(cells: npt.NDArray[np.uint8]) -> Hashes:
    """Hashes of n texts of one length in bytes; `cells` has shape (n, length)."""
    n, length = cells.shape
    n_words = -(-length // 8)
    padded = np.zeros((n, 8 * n_words), np.uint8)
    padded[:, :length] = cells
    words = padded.view("<u8")
    out = np.empty((n, 2), np.uint64)
    for lane in range(2):
        h = np.full(n, (_START[lane] + length * _LENGTH) & _MASK, np.uint64)
        for word in range(n_words):
            h ^= words[:, word]
            h *= np.uint64(_STEP[lane])
            h ^= h >> np.uint64(32)
        out[:, lane] = _finished(h)
    return out


def uniforms(hashes: Hashes) -> FloatArray:
    """A number in [0, 1) for each row of hashes (n, 2): the same row, the same number.

    Examples
    --------
    >>> bool((uniforms(text_hashes(pa.array(["a", "b", "c"]))) < 1.0).all())
    True
    """
    mixed: Hashes = _finished(hashes[:, 0] ^ (hashes[:, 1] * np.uint64(_LENGTH)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(words: Hashes) -> Hashes:
    """Each 64-bit word scrambled: every input bit reaches every output bit; of the same shape."""
    found: Hashes = _finished(words)
    return found


def row_hashes(n: int, columns: Sequence[AnyArray | None]) -> Hashes:
    """One 64-bit hash of what several columns of numbers hold in each row.

    Parameters
    ----------
    n : int
        Rows.
    columns : sequence of ndarray, shape (n,) or (n, w), or None
        Of 1, 4 or 8 bytes a number; each counts by its place in the sequence. A 0 counts as what is
        not there, and so does a column that is None: how wide a batch is padded does not matter,
        and lengths are to be a column of their own.

    Returns
    -------
    ndarray of uint64, shape (n,)

    Notes
    -----
    The sum of the numbers' bits, each by an odd weight of its column and place, modulo 2^64. Of
    floats the upper halves, in which alone most of them differ, are folded into the lower first.
    Not for use against an adversary. O(bytes).

    Examples
    --------
    >>> rewards = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> first, second = row_hashes(2, [rewards, np.array([2, 2])])
    >>> bool(first == second)
    False
    >>> wider = np.pad(rewards, [(0, 0), (0, 3)])
    >>> row_hashes(2, [wider, np.array([2, 2])]).tolist() == [first, second]
    True
    """
    total = np.zeros(n, np.uint64)
    for number, values in enumerate(columns):
        if values is None:
            continue
        table = np.ascontiguousarray(values if values.ndim == 2 else values[:, None])
        words = table.view(f"u{table.itemsize}").astype(np.uint64, copy=False)
        if table.dtype.kind == "f" and table.itemsize == 8:
            words = words ^ (words >> np.uint64(32))
        places = np.arange(words.shape[1], dtype=np.uint64) + np.uint64(number << 32 | 1)
        total += words @ (mixed(places) | np.uint64(1))
    return total


class SeenHashes:
    """Which 16-byte hashes came before, and with what: 24 bytes each, in sorted runs.

    Runs of like size are merged, up to 8 million hashes, so that adding m hashes to N costs
    O(m log N) and merging needs 384 MB of scratch at most.

    Examples
    --------
    >>> seen = SeenHashes()
    >>> before, otherwise = seen.add(text_hashes(pa.array(["a", "b", "a"])), np.array([7, 7, 8]))
    >>> before.tolist(), otherwise.tolist()
    ([False, False, True], [False, False, True])
    >>> before, otherwise = seen.add(text_hashes(pa.array(["c", "b"])), np.array([7, 7]))
    >>> before.tolist(), otherwise.tolist()
    ([False, True], [False, False])
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(first) for first, _, _ in self._runs)

    def add(self, hashes: Hashes, contents: Hashes) -> tuple[Mask, Mask]:
        """Which rows of `hashes` (m, 2) came before, in this call or another.

        And which of these with other `contents` (m,) than the first of its hash: both (m,).
        """
        order = np.argsort(hashes[:, 0])
        first = hashes[order, 0]
        begins = np.ones(len(order), np.bool_)
        if (first[1:] == first[:-1]).any():  # seldom: equal ones together, as they came
            order = np.lexsort((hashes[:, 1], hashes[:, 0]))
            pairs = hashes[order]
            begins[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        group = np.cumsum(begins) - 1
        leads = order[begins]
        each: _Run = hashes[leads, 0], hashes[leads, 1], contents[leads].astype(np.uint64)
        known, expected = np.zeros(len(each[0]), np.bool_), each[2].copy()
        for run in self._runs:
            found, place = _looked_up(run, each)
            known[found], expected[found] = True, run[2][place]
        before, otherwise = np.zeros((2, len(order)), np.bool_)
        before[order] = ~begins | known[group]
        otherwise[order] = contents[order] != expected[group]
        if not known.all():
            self._runs.append((each[0][~known], each[1][~known], each[2][~known]))
            self._merge()
        return before, otherwise

    def _merge(self) -> None:
        while len(self._runs) > 1:
            older, newer = self._runs[-2:]
            n_older, n_newer = len(older[0]), len(newer[0])
            if n_older > 2 * n_newer or n_older + n_newer > _MERGED_UP_TO:
                return
            first, second, content = map(np.concatenate, zip(older, newer, strict=True))
            order = np.argsort(first, kind="stable")  # of two runs it makes one in a pass
            self._runs[-2:] = [(first[order], second[order], content[order])]


# Sorted by the first hash; the second, and what came with it.
_Run: TypeAlias = tuple[Hashes, Hashes, Hashes]


def _looked_up(run: _Run, each: _Run) -> tuple[IntArray, IntArray]:
    """Which of some hashes a run has, and where."""
    place = np.searchsorted(run[0], each[0])
    found = np.flatnonzero(place < len(run[0]))
    found = found[run[0][place[found]] == each[0][found]]
    place = place[found]
    for at in np.flatnonzero(run[1][place] != each[1][found]).tolist():  # once in 2^64 pairs
        end = int(np.searchsorted(run[0], each[0][found[at]], side="right"))
        same = np.flatnonzero(run[1][place[at] : end] == each[1][found[at]])
        place[at] = place[at] + same[0] if len(same) else -1
    return found[place >= 0], place[place >= 0]
