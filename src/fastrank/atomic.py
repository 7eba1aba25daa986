"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing", "write_text"]


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name beside a file, to be written to; what is there then takes the file's place.

    If writing fails the file stays what it was. Who has it open keeps the old content.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "report.html"
    >>> with replacing(file) as temporary:
    ...     _ = temporary.write_text("<html>")
    >>> [each.name for each in file.parent.iterdir()]
    ['report.html']
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(file: Path, text: str) -> None:
    """UTF-8 text; what is no file to be replaced, such as ``/dev/stdout``, is written to."""
    target = file.resolve()
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
