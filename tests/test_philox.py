"""Philox4x32-10: the published known answers, and a second implementation in plain integers."""

from __future__ import annotations

import numpy as np
import pytest

from fastrank import _probes

# Random123, tests/kat_vectors, the rows "philox4x32 10": counter, key, output.
# The third row's inputs are the first hexadecimal digits of pi.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def philox4x32_10(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", section 4.3."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 1 << 32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return x0, x1, x2, x3


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_published_known_answers(counter: str, key: str, output: str) -> None:
    assert _probes.philox4x32_10(words(counter), words(key)) == words(output)
    assert philox4x32_10(words(counter), words(key)) == words(output)


def test_random_counters_and_keys() -> None:
    rng = np.random.default_rng(0)
    for row in rng.integers(0, 1 << 32, size=(500, 6), dtype=np.uint64).tolist():
        counter, key = tuple(row[:4]), tuple(row[4:])
        assert _probes.philox4x32_10(counter, key) == philox4x32_10(counter, key)


def test_every_word_of_counter_and_key_counts() -> None:
    zero = _probes.philox4x32_10((0, 0, 0, 0), (0, 0))
    for bit in range(6 * 32):
        row = [0] * 6
        row[bit // 32] = 1 << bit % 32
        assert _probes.philox4x32_10(tuple(row[:4]), tuple(row[4:])) != zero
