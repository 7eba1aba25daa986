"""Ids that come as text: one rule for every entrance, so that one id is written in one way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastrank as fr
from fastrank.ids import id_from_text, ids_from_text, integer, split_ids

INTEGERS, TEXT = np.array([42, 7]), np.array(["42", "b"])
# Each is 42 to Python's int, or to Arrow, or was.
OTHERS = [
    "4_2",
    "042",
    "0042",
    "+42",
    " 42",
    "42 ",
    "٤٢",
    "４２",
    "42.0",
    "4.2e1",
    "0x2a",
    "42\n",
    "",
]


@pytest.mark.parametrize("word", OTHERS)
def test_what_is_written_otherwise_is_no_integer(word: str) -> None:
    assert integer(word) is None
    assert id_from_text(word, INTEGERS) is None
    assert id_from_text(word, TEXT) == word  # and text is itself
    with pytest.raises(ValueError, match=r"exclude: row 1: the ids here are integers of 64 bits"):
        ids_from_text("exclude", ["7", word], INTEGERS)


@given(st.integers(-(2**70), 2**70))
def test_integers_are_what_str_writes(number: int) -> None:
    assert integer(str(number)) == number
    fits = -(2**63) <= number < 2**63
    assert id_from_text(str(number), INTEGERS) == (number if fits else None)


def test_ids_in_the_type_of_the_others() -> None:
    found = ids_from_text("allow", [3, "-4", str(2**63 - 1)], INTEGERS)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.int64
    assert found.tolist() == [3, -4, 2**63 - 1]
    assert ids_from_text("allow", [" a", ""], TEXT) == [" a", ""]
    with pytest.raises(ValueError, match=r"allow: row 1: the ids here are text.* got 5"):
        ids_from_text("allow", ["a", 5], TEXT)
    with pytest.raises(ValueError, match=f"allow: row 0: .* got {2**63}"):
        ids_from_text("allow", [2**63], INTEGERS)
    with pytest.raises(ValueError, match=r"allow: row 0: .*NUL.*'a.x00'"):
        ids_from_text("allow", ["a\0"], TEXT)


@given(st.lists(st.text(st.sampled_from('ab ,"\n'), max_size=6)))
def test_a_list_can_say_any_text(words: list[str]) -> None:
    line = ",".join('"' + word.replace('"', '""') + '"' for word in words)
    assert split_ids("exclude", line) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("17,23", ["17", "23"]),
        (" a, b ", [" a", " b "]),
        (",a,,b,", ["a", "b"]),
        ('a"b,c', ['a"b', "c"]),
        ('"a,b",c,""', ["a,b", "c", ""]),
        ("", []),
    ],
)
def test_lists(line: str, words: list[str]) -> None:
    assert split_ids("exclude", line) == words


@pytest.mark.parametrize("line", ['"a', 'a,"b"c', '"a" ,b', '"' * 99_999])
def test_a_quote_that_is_left_open_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="exclude: expected a comma or the end"):
        split_ids("exclude", line)


@pytest.mark.parametrize("word", OTHERS)
def test_users_of_a_log(word: str) -> None:
    catalog = fr.Catalog([1], [[1.0]])
    assert fr.Model(catalog, [42], [[1.0]]).find_users([word, "42"]).tolist() == [-1, 0]
    assert fr.Model(catalog, ["42"], [[1.0]]).find_users([word, "42"]).tolist() == [-1, 0]


@pytest.mark.parametrize("word", [word for word in OTHERS if word.strip() == word != ""])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_items_of_rewards(tmp_path: Path, word: str, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    from fastrank.eventlog.rewards import read_rewards

    row = {"request_id": "r", "item_id": word, "reward": "1", "ts": "2026-01-01T00:00:00Z"}
    path = tmp_path / f"clicks{suffix}"
    lines = [",".join(row), ",".join(row.values())] if suffix == ".csv" else [json.dumps(row)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="row 0: item_id: expected an integer, got"):
        read_rewards(path, "int64", allow_negative=False)


class TestServed:
    """Bodies and URLs."""

    @pytest.fixture(scope="class")
    @classmethod
    def messages(cls) -> Any:
        pytest.importorskip("starlette")
        return pytest.importorskip("fastrank_serving.messages")

    @pytest.mark.parametrize("word", [*OTHERS, "9007199254740993.0", "-0", "null"])
    @pytest.mark.parametrize("name", ["k", "seed"])
    def test_integers(self, messages: Any, name: str, word: str) -> None:
        with pytest.raises(messages.ProblemError) as caught:
            messages.parse(json.dumps({"user_id": "a", name: word}).encode())
        assert (caught.value.status, caught.value.field) == (400, name)
        if word:  # in a URL, nothing is an absent one
            with pytest.raises(messages.ProblemError) as caught:
                messages.parse_parameters({"user_id": "a", name: word})
            assert (caught.value.status, caught.value.field) == (400, name)

    @pytest.mark.parametrize("number", ["9007199254740993.0", "5.0", "5e0", "1e3"])
    @pytest.mark.parametrize("members", ['"seed": {}', '"k": {}', '"exclude": [{}]'])
    def test_floats_are_no_integers(self, messages: Any, members: str, number: str) -> None:
        """One beyond 2^53 was another: rounded before anyone saw it."""
        body = f'{{"user_id": "a", {members.format(number)}}}'
        with pytest.raises(messages.ProblemError) as caught:
            messages.parse(body.encode())
        assert caught.value.status == 400

    def test_what_is_right_is_taken_exactly(self, messages: Any) -> None:
        body = {"user_id": "a", "k": "5", "seed": str(2**64 - 1), "temperature": "2.5e-1"}
        found = messages.parse(json.dumps({**body, "query": None, "exclude": ["05", 5]}).encode())
        assert (found.k, found.seed, found.temperature) == (5, 2**64 - 1, 0.25)
        assert found.exclude == ["05", 5]
        found = messages.parse(b'{"user_id": "a", "seed": 9007199254740993, "temperature": 1}')
        assert (found.seed, found.temperature) == (2**53 + 1, 1.0)

    @pytest.mark.parametrize("word", ["1_0", "nan", "inf", " 1", "+1", ".5", "0x1", "１"])
    def test_numbers(self, messages: Any, word: str) -> None:
        for members in ({"temperature": word, "user_id": "a"}, {"query": [1.0, word]}):
            with pytest.raises(messages.ProblemError) as caught:
                messages.parse(json.dumps(members).encode())
            assert (caught.value.status, caught.value.code) == (400, "invalid_type")

    def test_a_list_with_an_open_quote_is_refused(self, messages: Any) -> None:
        with pytest.raises(messages.ProblemError) as caught:
            messages.parse_parameters({"user_id": "a", "exclude": 'a,"b'})
        assert (caught.value.status, caught.value.field) == (422, "exclude")

    @pytest.mark.parametrize("word", [word for word in OTHERS if word])
    def test_users_and_filters_of_a_service(self, messages: Any, word: str) -> None:
        from fastrank_serving.engine import Job
        from fastrank_serving.service import Loaded

        catalog = fr.Catalog([42, 7], [[1.0], [0.0]])
        model = fr.Model(catalog, [42], [[1.0]])
        loaded = Loaded(catalog, model, "v", np.zeros(1, np.float32))
        assert loaded.of_user("42") is not None
        assert loaded.of_user(word) is None
        query = np.zeros(1, np.float32)
        asked = Job(catalog, query, k=1, policy=fr.Uniform(), seed=1, exclude=[7, word])
        with pytest.raises(messages.ProblemError) as caught:
            asked.prepare()
        assert (caught.value.status, caught.value.value) == (422, word)
        asked.exclude = [7, "42"]
        asked.prepare()
        assert asked.exclude.tolist() == [7, 42]
