"""A server's secret: where it comes from, what is refused, what is derived from it."""

from __future__ import annotations

import doctest
import hashlib
import hmac
import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from environment import OWN
from served import make_model

from fastrank.cli.serve import serve_command
from fastrank_serving import secret as module
from fastrank_serving import server
from fastrank_serving.metrics import Metrics
from fastrank_serving.secret import Secret
from fastrank_serving.service import Service
from fastrank_serving.settings import Settings

TEXT = "0123456789abcdef0123456789abcdeF"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("secret") / "model"
    make_model(directory)
    return directory


def test_its_examples_run() -> None:
    assert doctest.testmod(module) == (0, 4)


def test_a_digest_is_hmac_of_parts_behind_their_lengths() -> None:
    message = b""
    for part in (b"label", "Zo\u00eb".encode(), b"", b"\0\xff"):
        message += len(part).to_bytes(8, "little") + part
    wanted = hmac.new(TEXT.encode(), message, hashlib.sha256)
    found = Secret(TEXT.encode())
    assert found.digest("label", "Zo\u00eb", "", b"\0\xff") == wanted.digest()
    number = found.number("label", "Zo\u00eb", "", b"\0\xff")
    assert number == int(wanted.hexdigest(), 16) % 2**53
    label = hmac.new(TEXT.encode(), (11).to_bytes(8, "little") + b"fingerprint", hashlib.sha256)
    assert found.fingerprint == label.hexdigest()[:8]


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (TEXT.encode(), None),
        (b"  " + TEXT.encode() + b"\r\n", TEXT.encode()),
        (b"q83vEjRWeJCrze8SNFZ4kA==\n", b"q83vEjRWeJCrze8SNFZ4kA=="),
        (bytes(range(16)), None),
        (b"\n" + bytes(range(200, 215)), None),  # no text: all of it counts
        (b"some words, 16 b", None),
        ((TEXT * 128).encode(), None),
    ],
)
def test_a_file_and_a_text_hold_the_same(tmp_path: Path, content: bytes, key: bytes | None) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert Secret.read(path).key == (key or content)
    assert Secret.of_text(content.decode(errors="surrogateescape")).key == (key or content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n", "got 0"),
        (TEXT[1:].encode(), "got 124"),
        (b"Passw0rd-Passw0rd-abc", "got 126"),
        (bytes(range(15)), "got 120"),
        (b"0" * 64, "few different characters"),
        (b"abcde" * 20, "few different characters"),
        ((TEXT * 129).encode(), "at most 4096 bytes"),
    ],
)
def test_what_is_none_is_refused_and_not_repeated(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        Secret.read(path)
    assert str(error.value).startswith(f"{path}: expected a secret ")
    with pytest.raises(ValueError, match=words) as error:
        Secret.of_text(content.decode())
    text = content.decode().strip()
    assert not text or text not in str(error.value)


def test_no_repr_shows_it() -> None:
    settings = Settings(Path("model"), secret=Secret(TEXT.encode()))
    assert TEXT not in repr(settings)
    assert Secret(TEXT.encode()).fingerprint in repr(settings)
    assert pickle.loads(pickle.dumps(settings)) == settings  # as workers get them


class TestStart:
    def start(self, model: Path, *arguments: str, **environ: str) -> Result:
        words = [str(model), "--port", "0", *arguments]
        return CliRunner(env=dict.fromkeys(OWN) | environ).invoke(serve_command(), words)

    def test_the_environment_holds_one(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        seen: list[Settings] = []
        monkeypatch.setattr(server, "run", lambda settings, _: seen.append(settings))
        assert self.start(model, FASTRANK_SECRET=TEXT).exit_code == 0
        assert seen.pop().secret == Secret(TEXT.encode())
        assert self.start(model, FASTRANK_SECRET="").exit_code == 0
        assert seen.pop().secret is None
        (tmp_path / "secret").write_text(TEXT)
        for result, words in (
            (self.start(model, FASTRANK_SECRET="Hunter2"), "FASTRANK_SECRET: expected a secret"),
            (
                self.start(model, "--secret-file", f"{tmp_path}/secret", FASTRANK_SECRET=TEXT),
                "FASTRANK_SECRET, --secret-file",
            ),
            (self.start(model, "--secret", TEXT), "No such option"),
            (self.start(model, "--secret-file", TEXT), "not the secret itself"),
            (self.start(model, FASTRANK_SECRET_FILE=TEXT), "not the secret itself"),
        ):
            said = f"{result.output}{result.exception}"
            assert result.exit_code != 0
            assert words in said
            assert "Hunter2" not in said
            assert TEXT not in said
        assert not seen

    def test_its_fingerprint_is_said(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(server, "_serve", lambda *_, **__: 0)
        monkeypatch.setattr(server, "end_by_signals", lambda: None)
        caplog.set_level("INFO")
        own = Secret(TEXT.encode())
        assert server.run(Settings(model, port=0, secret=own)) == 0
        assert f"fingerprint {own.fingerprint}" in caplog.text
        assert TEXT not in caplog.text
        page = Service(Settings(model, secret=own), Metrics()).metrics.page().decode()
        assert f'fastrank_secret_info{{fingerprint="{own.fingerprint}"}} 1.0' in page
        without = Service(Settings(model), Metrics()).metrics.page().decode()
        assert "fastrank_secret_info{" not in without
