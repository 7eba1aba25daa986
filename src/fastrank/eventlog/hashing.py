"""Fixed hashes of text, many at once; and whether a hash was seen before.

Users are put into groups, and requests recognised, by these hashes: they are the same on every
machine, in every process and for every way of cutting a log into batches. `text_hash` is the
definition, and `text_hashes` computes it for a column.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastrank.arraytypes import FloatArray, Mask

__all__ = ["SeenHashes", "text_hash", "text_hashes", "uniforms"]

Hashes: TypeAlias = npt.NDArray[np.uint64]

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
    length, then Stafford's finaliser. Not for use against an adversary. O(bytes).

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


class SeenHashes:
    """Which 16-byte hashes came before: 16 bytes each, in sorted runs.

    Runs of like size are merged, up to 8 million hashes, so that adding m hashes to N costs
    O(m log N) and merging needs 256 MB of scratch at most.

    Examples
    --------
    >>> seen = SeenHashes()
    >>> seen.add(text_hashes(pa.array(["a", "b", "a"]))).tolist()
    [False, False, True]
    >>> seen.add(text_hashes(pa.array(["c", "b"]))).tolist()
    [False, True]
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Hashes, Hashes]] = []  # each sorted by the first

    def __len__(self) -> int:
        return sum(len(first) for first, _ in self._runs)

    def add(self, hashes: Hashes) -> Mask:
        """Which rows of `hashes` (m, 2) repeat an earlier one, of this call or another; (m,)."""
        repeats = np.zeros(len(hashes), np.bool_)
        order = np.argsort(hashes[:, 0], kind="stable")
        first, second = hashes[order, 0], hashes[order, 1]
        same = np.flatnonzero(first[1:] == first[:-1])
        for at in same.tolist():  # almost always the same text; compare with all of that hash
            start = int(np.searchsorted(first, first[at + 1]))
            repeats[order[at + 1]] |= bool((second[start : at + 1] == second[at + 1]).any())
        for run_first, run_second in self._runs:
            place = np.searchsorted(run_first, first)
            inside = np.flatnonzero(place < len(run_first))
            hits = inside[run_first[place[inside]] == first[inside]]
            for at in hits.tolist():
                end = int(np.searchsorted(run_first, first[at], side="right"))
                repeats[order[at]] |= bool((run_second[place[at] : end] == second[at]).any())
        fresh = ~repeats[order]
        if fresh.any():
            self._runs.append((first[fresh], second[fresh]))
            self._merge()
        return repeats

    def _merge(self) -> None:
        while len(self._runs) > 1:
            (first_a, second_a), (first_b, second_b) = self._runs[-2:]
            if len(first_a) > 2 * len(first_b) or len(first_a) + len(first_b) > _MERGED_UP_TO:
                return
            first = np.concatenate([first_a, first_b])
            order = np.argsort(first, kind="stable")
            second = np.concatenate([second_a, second_b])[order]
            self._runs[-2:] = [(first[order], second)]
