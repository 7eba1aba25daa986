"""Run: seeds and request ids that follow from a run and the user, so that a repeat is the same."""

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
_SEED_BITS = 53  # as drawn seeds have: every tool's integers, and float64, hold them


@dataclass(frozen=True, slots=True)
class Run:
    """One ranking of many users, in parts that may be tried again.

    A task that is retried ranks its users twice. With seeds and request ids drawn anew the second
    rankings are others, under other ids, and no reader of the log can tell that half of them were
    never shown. Those of a run are hashes of its name and the user under a key: the second try
    gives the same rows, of which `LogReader` takes one.

    Parameters
    ----------
    name : str
        Which run: ``"2026-11-30"``, say. Another night is another name.
    key : bytes of length 32, optional
        Drawn from the operating system unless it is given. Keep it where the run's tasks find it.
        Somebody who can choose it after seeing rankings can choose rankings, whose propensities are
        then false; so it is drawn before, once.

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
            raise ValueError(f"name: expected a text that is not empty, got {shown(self.name)}")
        _encoded("name", self.name)
        if not isinstance(self.key, bytes) or len(self.key) != _KEY_BYTES:
            kind = f"{len(self.key)} bytes" if isinstance(self.key, bytes) else shown(self.key)
            raise ValueError(f"key: expected {_KEY_BYTES} bytes, got {kind}")

    def seeds(self, user_ids: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """A seed for each user, (b,), below 2**53; O(b), a microsecond each.

        Parameters
        ----------
        user_ids : sequence of str or int, length b
            Each once. A number is its digits, as in the log: 7 and "7" are one user.

        Raises
        ------
        ValueError
            Naming the entry, where it is no id, or the user came before.
        """
        shift = 8 * 7 - _SEED_BITS
        hashes = self._hashes(user_ids, b"seed", 7)
        return np.array([int.from_bytes(each, "little") >> shift for each in hashes], np.uint64)

    def request_ids(self, user_ids: Sequence[Any] | npt.NDArray[Any]) -> list[str]:
        """A request id for each user, length b: a UUID of version 5; otherwise as `seeds`."""
        made = []
        for each in self._hashes(user_ids, b"request", 16):
            text = each.hex()
            variant = "89ab"[int(text[16], 16) & 3]
            made.append(
                f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"
            )
        return made

    def _hashes(self, user_ids: Any, what: bytes, size: int) -> Iterator[bytes]:
        import hashlib  # `import fastrank` need not wait for it

        name = self.name.encode()
        start = hashlib.blake2b(key=self.key, digest_size=size, person=what)
        start.update(len(name).to_bytes(8, "little") + name)
        entries = as_column("user_ids", user_ids, "a sequence of users")
        seen: dict[str, int] = {}
        for i, value in enumerate(entries):
            user = _text(i, value)
            if seen.setdefault(user, i) != i:
                raise ValueError(
                    f"user_ids[{i}]: {user!r} is there twice, as user_ids[{seen[user]}]: both"
                    " would have the same seed and request id"
                )
            digest = start.copy()
            digest.update(_encoded(f"user_ids[{i}]", user))
            yield digest.digest()


def _text(i: int, value: object) -> str:
    """As a log keeps it."""
    found = plain_id(value)
    if isinstance(found, int) or (isinstance(found, str) and found):
        return str(found)
    raise ValueError(f"user_ids[{i}]: expected a str that is not empty, or an int, got {value!r}")


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: not text that UTF-8 can hold: {text!r}") from None
