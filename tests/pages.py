"""Runs the code of a page as its reader would, from top to bottom, in the current directory.

    python tests/pages.py PAGE

Python goes on in one interpreter and shell in one bash, so that a name, a variable and a server in
the background are there for the next block. A block of `text` right after one is what that
printed, to spaces; `...` in it stands for anything. A block that is marked `serves` goes on in the
background once it listens on port 8080, until the next one; what has another mark is not run. The
first block that fails ends it, with exit code 1.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from markdown_it import MarkdownIt

__all__ = ["Block", "blocks", "repository_pages"]

_MARK = "-- the block is over:"
_PING = "http://localhost:8080/ping"


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, and what its fence says besides."""

    line: int
    language: str
    marks: tuple[str, ...]
    code: str
    follows: bool  # nothing stands between it and the block before


def blocks(text: str) -> Iterator[Block]:
    """Those of a page, without directives."""
    before = ""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type in ("fence", "code_block") and not token.info.startswith("{"):
            assert token.map is not None  # only inline tokens have none
            language, *marks = token.info.split() or [""]
            follows = before == "fence"
            yield Block(token.map[0] + 1, language, tuple(marks), token.content, follows)
        before = token.type


def repository_pages(root: Path) -> list[Path]:
    """What readers see: the README, and the pages of the site, where they are included from."""
    every = [
        *(root / name for name in ("README.md", "CONTRIBUTING.md")),
        *(root / name / "README.md" for name in ("serving", "bench", "loadtest")),
        *sorted((root / "docs").rglob("*.md")),
    ]
    return [page for page in every if page.exists()]


class Shell:
    """One bash for all of a page. A command that fails ends it."""

    def __init__(self, errors: IO[str]) -> None:
        self.errors = errors
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )
        self.tell(f"set -o pipefail; trap 'code=$?; echo; echo \"{_MARK} $code\"; exit' ERR")

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def run(self, code: str) -> str:
        """What it prints. Its commands read nothing of what bash is told."""
        assert self.process.stdout is not None
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(code)
            file.flush()
            self.tell(f". {file.name} < /dev/null; echo; echo '{_MARK} 0'")
            said: list[str] = []
            for line in self.process.stdout:
                if line.startswith(_MARK):
                    break
                said.append(line)
            else:
                line = f"{_MARK} closed"
        output = "".join(said)
        if line.split()[-1] != "0":
            self.errors.seek(0)
            raise RuntimeError(f"{code}{output}{self.errors.read()}{line}")
        return output

    def close(self) -> None:
        """End it, and what still runs in the background."""
        _end(self.process)


def _end(process: subprocess.Popen[str]) -> None:
    """With all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


class Page:
    """The state that its blocks share."""

    def __init__(self, name: str, errors: IO[str]) -> None:
        self.name = name
        self.names: dict[str, object] = {"__name__": "__main__"}
        self.shell = Shell(errors)
        self.server: subprocess.Popen[str] | None = None

    def run(self, block: Block) -> str:
        """What the block prints."""
        match block.language:
            case "python":
                return self.python(block)
            case "sh" if block.marks:
                return self.serve(block)
            case "sh":
                return self.shell.run(block.code)
            case "json":
                for value in _values(block.code):
                    json.loads(value)
                return ""
            case _:
                raise RuntimeError(f"nothing runs {block.language or 'a block without a language'}")

    def python(self, block: Block) -> str:
        name = f"<{self.name}, line {block.line}>"
        # As a notebook does: a function's source can be read.
        lines = block.code.splitlines(keepends=True)
        linecache.cache[name] = (len(block.code), None, lines, name)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(block.code, name, "exec"), self.names)
        return output.getvalue()

    def serve(self, block: Block) -> str:
        """Leave a server behind that listens."""
        self.close_server()
        self.server = subprocess.Popen(
            ["bash", "-ec", block.code], start_new_session=True, text=True, stdout=sys.stderr
        )
        while self.server.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(_PING):
                return ""
            time.sleep(0.05)
        raise RuntimeError(f"ended by itself, with {self.server.returncode}")

    def close_server(self) -> None:
        if self.server is not None:
            _end(self.server)

    def close(self) -> None:
        self.close_server()
        self.shell.close()


def _values(code: str) -> list[str]:
    """One value, or one a line."""
    try:
        json.loads(code)
    except ValueError:
        return code.splitlines()
    return [code]


def check(output: str, told: str) -> None:
    """That this was printed; a line that is `...` alone stands for any number of lines."""
    words = [re.escape(word).replace(r"\.\.\.", r".*?") for word in told.split()]
    if not re.fullmatch(r"\s+".join(words), output.strip(), re.DOTALL):
        raise RuntimeError(f"printed\n{output}\nand not\n{told}")


def main(path: Path) -> int:
    sys.path[0] = ""  # the directory that it runs in
    with (
        tempfile.TemporaryFile("w+") as errors,
        contextlib.closing(Page(path.name, errors)) as page,
    ):
        output = ""
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.marks not in ((), ("serves",)):
                output = ""
                continue
            try:
                if block.language == "text" and block.follows:
                    check(output, block.code)
                else:
                    output = page.run(block)
            except BaseException:
                print(f"{path}, line {block.line}:", file=sys.stderr)
                traceback.print_exc()
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
