"""A server's secret, and what is derived from it; servers with the same secret derive the same."""

from __future__ import annotations

import hmac
import os
import string
from dataclasses import dataclass
from os import PathLike
from typing import Self

__all__ = ["LEAST_BITS", "Secret", "is_secret"]

LEAST_BITS = 128
_NUMBER_BITS = 53  # as in drawn seeds
_MOST_BYTES = 4096
_FEW = 6  # different characters; a drawn secret has more
_DRAW = "`openssl rand -hex 32` draws one"
# Bits per character, by the alphabet of the text.
_WRITTEN = {
    4: frozenset(string.hexdigits.encode()),
    6: frozenset((string.ascii_letters + string.digits + "+/-_=").encode()),
}


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A key for values that nobody without it can predict, and that all who have it agree on.

    Parameters
    ----------
    key : bytes
        At least 128 bits if made by `read` or `of_text`.

    Examples
    --------
    >>> secret = Secret(bytes(range(32)))
    >>> secret
    Secret(fingerprint='b29e71d7')
    >>> secret.number("arm", "shelf", "ann") == secret.number("arm", "shel", "fann")
    False
    """

    key: bytes

    def __repr__(self) -> str:
        return f"Secret(fingerprint={self.fingerprint!r})"

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Self:
        """Read the secret from a file; white space around a text is ignored.

        Raises
        ------
        OSError, ValueError
            If the file cannot be read, or is not a secret; the message names the file, and nothing
            of its content.
        """
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        try:
            return cls._checked(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Read the secret from a variable's text; a ValueError repeats nothing of it."""
        return cls._checked(text.encode(errors="surrogateescape"))

    @classmethod
    def _checked(cls, content: bytes) -> Self:
        text = content.strip()
        key = text if all(0x20 <= byte < 0x7F for byte in text) else content
        if len(key) > _MOST_BYTES:
            raise ValueError(f"expected a secret of at most {_MOST_BYTES} bytes")
        if (bits := _bits(key)) < LEAST_BITS:
            raise ValueError(
                f"expected a secret of at least {LEAST_BITS} bits, got {bits}: {_DRAW}"
            )
        if len(set(key)) < _FEW:
            raise ValueError(
                f"expected a secret that was drawn; got few different characters: {_DRAW}"
            )
        return cls(key)

    def digest(self, label: str, *parts: str | bytes) -> bytes:
        """32 bytes: HMAC-SHA256 of a label and parts, each preceded by its length; O(length).

        Because of the lengths no two lists of parts give the same message, and values derived under
        one label reveal nothing about those of another.

        Parameters
        ----------
        label : str
            The purpose.
        *parts : str or bytes
            Text is encoded as UTF-8. A length is 8 bytes, lowest byte first.
        """
        encoded = [each.encode() if isinstance(each, str) else each for each in (label, *parts)]
        message = b"".join([len(each).to_bytes(8, "little") + each for each in encoded])
        return hmac.digest(self.key, message, "sha256")

    def number(self, label: str, *parts: str | bytes) -> int:
        """The low 53 bits of `digest`, read with the highest byte first."""
        return int.from_bytes(self.digest(label, *parts), "big") & ((1 << _NUMBER_BITS) - 1)

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that tell secrets apart."""
        return self.digest("fingerprint").hex()[:8]


def is_secret(text: str) -> bool:
    """Whether a text could be a secret, and is not a path in an existing directory.

    Examples
    --------
    >>> is_secret("00112233445566778899aabbccddeeff"), is_secret("/etc/a-file-that-is-not-there")
    (True, False)
    """
    directory = os.path.dirname(text)
    if directory and os.path.isdir(directory):
        return False
    try:
        Secret.of_text(text)
    except ValueError:
        return False
    return True


def _bits(key: bytes) -> int:
    """Upper limit of its bits, by the form of the text: 32 hexadecimal digits have 128."""
    used = set(key)
    return len(key) * next((bits for bits, digits in _WRITTEN.items() if used <= digits), 8)
