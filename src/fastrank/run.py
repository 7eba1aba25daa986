"""Run: seeds and request ids derived from the run's name and the user, so retries repeat them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank.ids import plain_id
from fastrank.inputs import as_column, shown

__all__ = ["Run"]

_KEY_BYTES = 32
_SEED_BITS = 53  # as seeds drawn elsewhere: float64, and thus JSON everywhere, holds them exactly


@dataclass(frozen=True, slots=True)
class Run:
    """A job that ranks for many users, in tasks that may be retried.

    A retried task ranks for its users twice. If it drew seeds and request ids anew, the second
    rankings would differ and have other ids, and no reader of the log could tell that half of the
    rankings were never shown. The seeds and ids of a run are instead keyed hashes of its name and
    the user: a retry writes the same rows, and `LogReader` reads one of each.

    Parameters
    ----------
    name : str
        Name of the run, such as ``"2026-11-30"``. Each run needs a name of its own.
    key : bytes of length 32, optional
        By default drawn from the operating system. Store it where the run's tasks find it. Draw it
        once, before any ranking: whoever chooses a key after seeing rankings chooses among
        rankings, and their propensities are then wrong.

    Examples
    --------
    >>> import fastrank as fr
    >>> run = fr.Run("2026-11-30", key=bytes(32))
    >>> run.seeds(["ann", "bob"]).tolist() == run.seeds(["bob", "ann"]).tolist()[::-1]
    True
    >>> run.request_ids(["ann"])
    ['09fe4ecd-5ffe-5b95-b448-0bfd480a3d2b']
    """

    name: str
    key: bytes = field(default_factory=lambda: os.urandom(_KEY_BYTES), repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name: expected a non-empty str, got {shown(self.name)}")
        _encoded("name", self.name)
        if not isinstance(self.key, bytes) or len(self.key) != _KEY_BYTES:
            kind = f"{len(self.key)} bytes" if isinstance(self.key, bytes) else shown(self.key)
            raise ValueError(f"key: expected {_KEY_BYTES} bytes, got {kind}")

    def seeds(self, user_ids: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """Return a seed below 2**53 for each user, (b,); O(b), about a microsecond each.

        Parameters
        ----------
        user_ids : sequence of str or int, length b
            Unique. An int counts as its decimal text, as in the log: 7 and "7" are the same user.

        Raises
        ------
        ValueError
            If an entry is not an id, or repeats a user; the message names the entry.
        """
        shift = 8 * 7 - _SEED_BITS
        hashes = self._hashes(user_ids, b"seed", 7)
        return np.array([int.from_bytes(each, "little") >> shift for each in hashes], np.uint64)

    def request_ids(self, user_ids: Sequence[Any] | npt.NDArray[Any]) -> list[str]:
        """Return a request id for each user, length b: UUIDs of version 5; otherwise as `seeds`."""
        made = []
        for each in self._hashes(user_ids, b"request", 16):
            text = each.hex()
            variant = "89ab"[int(text[16], 16) & 3]
            made.append(
                f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"
            )
        return made

    def _hashes(self, user_ids: Any, what: bytes, size: int) -> Iterator[bytes]:
        import hashlib  # late, since it slows `import fastrank`

        name = self.name.encode()
        start = hashlib.blake2b(key=self.key, digest_size=size, person=what)
        start.update(len(name).to_bytes(8, "little") + name)
        entries = as_column("user_ids", user_ids, "a sequence of users")
        seen: dict[str, int] = {}
        for i, value in enumerate(entries):
            user = _text(i, value)
            if seen.setdefault(user, i) != i:
                raise ValueError(
                    f"user_ids[{i}]: {user!r} repeats user_ids[{seen[user]}]: both would have the"
                    " same seed and request id"
                )
            digest = start.copy()
            digest.update(_encoded(f"user_ids[{i}]", user))
            yield digest.digest()


def _text(i: int, value: object) -> str:
    """A user id as the text that a log stores."""
    found = plain_id(value)
    if isinstance(found, int) or (isinstance(found, str) and found):
        return str(found)
    raise ValueError(f"user_ids[{i}]: expected a non-empty str or an int, got {value!r}")


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: not text that UTF-8 can hold: {text!r}") from None
