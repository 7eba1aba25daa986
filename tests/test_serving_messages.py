"""Bodies in, errors out: each names the field and the value."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastrank as fr
from fastrank.ids import MAX_LENGTH
from fastrank.policies import names_of
from fastrank.wire import GatewayRequest
from fastrank_serving import messages
from fastrank_serving.messages import (
    ProblemError,
    Request,
    parse,
    parse_parameters,
    traceparent_of,
)


def refused(body: bytes | str | dict[str, Any]) -> ProblemError:
    content = json.dumps(body) if isinstance(body, dict) else body
    with pytest.raises(ProblemError) as caught:
        parse(content.encode() if isinstance(content, str) else content)
    return caught.value


def test_a_request() -> None:
    found = parse(b'{"user_id": "ann", "k": "5", "seed": 3, "exclude": [1, "2"]}')
    assert found == Request(user_id="ann", k=5, seed=3, exclude=[1, "2"])
    assert parse(b'{"query": [1, "2.5"]}').query == [1.0, 2.5]


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({}, 400, "user_or_query", "user_id"),
        ({"user_id": "a", "query": [1.0]}, 400, "user_or_query", "user_id"),
        ({"user_id": 5}, 400, "invalid_type", "user_id"),
        ({"user_id": ""}, 422, "invalid_value", "user_id"),
        ({"user_id": "a" * (MAX_LENGTH + 1)}, 422, "invalid_value", "user_id"),
        ({"user_id": "a", "request_id": "a" * 257}, 422, "invalid_value", "request_id"),
        ({"user_id": "a", "k": "five"}, 400, "invalid_type", "k"),
        ({"user_id": "a", "k": True}, 400, "invalid_type", "k"),
        ({"user_id": "a", "k": 2.5}, 400, "invalid_type", "k"),
        ({"user_id": "a", "K": 5}, 400, "unknown_field", "K"),
        ({"user_id": "a", "seed": -1}, 422, "out_of_range", "seed"),
        ({"user_id": "a", "seed": 2**64}, 422, "out_of_range", "seed"),
        ({"user_id": "a", "exclude": 1}, 400, "invalid_type", "exclude"),
        ({"user_id": "a", "exclude": [1.5]}, 400, "invalid_type", "exclude"),
        ({"user_id": "a", "seed": "null"}, 400, "invalid_type", "seed"),
        ({"user_id": "a", "k": " NULL "}, 400, "invalid_type", "k"),
        ({"gateway": {"user_id": "a", "seed": "null"}}, 400, "invalid_type", "seed"),
        ({"query": "1,2"}, 400, "invalid_type", "query"),
        ({"query": [None]}, 400, "invalid_type", "query"),
        ('{"query": [1e39]}', 422, "invalid_value", "query"),
        ('{"query": [1e999]}', 400, "invalid_type", "query"),
        ('{"query": [NaN]}', 400, "malformed_json", None),
        ('{"user_id": "a", "k": 1, "k": 2}', 400, "duplicate_field", "k"),
        (r'{"user_id": "a", "k": 1, "\u006b": 2}', 400, "duplicate_field", "k"),
        ("[1]", 400, "invalid_type", None),
        ("null", 400, "invalid_type", None),
        ("", 400, "malformed_json", None),
        ("{", 400, "malformed_json", None),
        (b'{"user_id": "\xff"}', 400, "malformed_json", None),
        ("[" * 100_000, 400, "invalid_type", None),
        ('{"query": ' + "[" * 100_000, 400, "malformed_json", None),
        ('{"query": ' + "[" * 500 + "]" * 500 + "}", 400, "invalid_type", "query"),
        ({"gateway": {"user_id": "a"}, "k": 5}, 400, "unknown_field", "gateway"),
        (
            b'{"gateway": {"user_id": "a"}, "gateway": {"k": "5"}}',
            400,
            "duplicate_field",
            "gateway",
        ),
        (b'{"gateway": {}, "gateway": {"user_id": "a"}}', 400, "duplicate_field", "gateway"),
        ({"gateway": []}, 400, "invalid_type", "gateway"),
        ({"gateway": {"user_id": 5}}, 400, "invalid_type", "user_id"),
        ({"gateway": {"nobody": "x"}}, 400, "unknown_field", "nobody"),
    ],
)
def test_what_is_refused(body: Any, status: int, code: str, field: str | None) -> None:
    found = refused(body)
    assert (found.status, found.code, found.field) == (status, code, field)
    if field is not None:
        assert field in found.message


@pytest.mark.parametrize("start", ['{"exclude": ', '{"k": "5", "exclude": ', '{"query": ["1", '])
@pytest.mark.parametrize(("opened", "closed"), ["[]", ('{"a":', "}")])
def test_any_depth_is_refused(start: str, opened: str, closed: str) -> None:
    """Also one that a parser takes and what writes the error does not."""
    for depth in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit() + 10):
        body = start + opened * depth + "1" + closed * depth + "]" * ("[" in start) + "}"
        assert messages.error_body(refused(body), None)


@pytest.mark.parametrize("field", ["user_id", "request_id", "inference_type"])
def test_a_number_for_text_is_told_what_to_send(field: str) -> None:
    body = {"user_id": "ann"} | {field: 1}
    assert refused(body).message == f'{field}: expected text, got the number 1; send "1"'
    assert "send" not in refused({"user_id": "ann"} | {field: True}).message


def test_every_user_id_that_a_model_keeps_can_be_asked_for() -> None:
    longest = "x" * MAX_LENGTH
    assert parse(json.dumps({"user_id": longest}).encode()).user_id == longest
    assert parse_parameters({"user_id": longest}).user_id == longest


def test_a_value_may_repeat_a_field_name() -> None:
    assert parse(b'{"user_id": "user_id"}').user_id == "user_id"


def test_gateway_parameters() -> None:
    body = {"gateway": {"user_id": "O%27Brien%22%2C%22seed%22%3A%221", "k": "", "seed": "7"}}
    found = parse(json.dumps(body).encode())
    assert found == GatewayRequest(user_id='O\'Brien","seed":"1', seed=7)
    found = parse_parameters({"user_id": "a", "exclude": "1,2,,", "k": "3"})
    assert (found.exclude, found.k) == (["1", "2"], 3)
    found = parse_parameters({"user_id": " a", "allow": 'x, y,"a, ""b"""'})
    assert (found.user_id, found.allow) == (" a", ["x", " y", 'a, "b"'])


def problem_of(work: Callable[[], object]) -> ProblemError | None:
    try:
        work()
    except ProblemError as problem:
        return problem
    return None


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_have_an_answer(body: bytes) -> None:
    problem = problem_of(lambda: parse(body))
    if problem is not None:
        assert 400 <= problem.status < 500
        assert json.loads(messages.error_body(problem, "r"))["error"]["message"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Request.__struct_fields__, "gateway"]), _VALUES))
def test_any_object_has_an_answer(body: dict[str, Any]) -> None:
    problem = problem_of(
        lambda: messages.policy_of(parse(json.dumps(body).encode()), fr.PlackettLuce())
    )
    if problem is not None:
        error = json.loads(messages.error_body(problem, None))["error"]
        assert set(error) == {
            "code", "field", "value", "allowed", "message", "request_id", "retry_after_s",
        }  # fmt: skip


def policy(**request: Any) -> fr.Policy:
    return messages.policy_of(Request(user_id="a", **request), fr.PlackettLuce(0.5))


def test_policies() -> None:
    assert policy() == fr.PlackettLuce(0.5)
    assert policy(temperature=0.2) == fr.PlackettLuce(0.2)
    assert policy(inference_type="deterministic") == fr.Deterministic()
    assert policy(inference_type="uniform") == fr.Uniform()
    assert policy(inference_type="stochastic_epsilon_greedy", epsilon=0.3) == fr.EpsilonGreedy(0.3)
    assert policy(inference_type="stochastic_plackett_luce") == fr.PlackettLuce(
        0.5, sampler="sequential"
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"inference_type": "best"}, "inference_type"),
        ({"inference_type": "deterministic", "temperature": 1.0}, "temperature"),
        ({"epsilon": 0.1}, "epsilon"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"inference_type": "stochastic_epsilon_greedy", "epsilon": 1.5}, "epsilon"),
    ],
)
def test_policies_that_are_none(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(ProblemError) as caught:
        policy(**request_)
    assert (caught.value.status, caught.value.field) == (422, field)
    assert msgspec.json.decode(messages.error_body(caught.value, None))["error"]["field"] == field


def test_unknown_policies_are_told_the_names() -> None:
    with pytest.raises(ProblemError) as caught:
        policy(inference_type="best")
    assert caught.value.allowed == names_of(fr.INFERENCE_TYPES)


TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (TRACE, TRACE),
        (b" \t" + TRACE + b" ", TRACE),
        (TRACE[:-2] + b"ff", TRACE[:-2] + b"ff"),
        # A later version may say more.
        (b"01" + TRACE[2:], b"01" + TRACE[2:]),
        (b"cc" + TRACE[2:] + b"-what-comes", b"cc" + TRACE[2:]),
        (b"cc" + TRACE[2:] + b".what-comes", None),
        (TRACE + b"-what-comes", None),
        (TRACE + b"\n", None),
        (b"ff" + TRACE[2:], None),
        (TRACE.upper(), None),
        (TRACE[:-1], None),
        (TRACE + b"0", None),
        (b"00-" + b"0" * 32 + TRACE[35:], None),
        (TRACE[:36] + b"0" * 16 + TRACE[52:], None),
        (TRACE.replace(b"-", b"_"), None),
        (TRACE.replace(b"0af", b"0ag"), None),
        ("٠٠".encode() + TRACE[2:], None),
        (b"", None),
    ],
)
def test_a_trace_is_that_of_the_grammar(value: bytes, expected: bytes | None) -> None:
    found = traceparent_of([(b"host", b"x"), (b"traceparent", value)])
    assert found == (None if expected is None else expected.decode())


def by_the_grammar(value: str) -> str | None:
    """Field by field, as the recommendation (level 1, 3.2) has them, with what it forbids."""
    version, *rest = value.split("-")
    fields = [version, *rest[:3]]
    if [len(each) for each in fields] != [2, 32, 16, 2]:
        return None
    if any(character not in "0123456789abcdef" for each in fields for character in each):
        return None
    if version == "ff" or not int(fields[1], 16) or not int(fields[2], 16):
        return None
    if version == "00" and len(rest) > 3:
        return None
    return "-".join(fields)


def test_traces_of_all_fields() -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    fields = (
        ("00", "01", "7f", "fe", "ff", "0", "000", "0A", "zz", ""),
        (trace, "0" * 31 + "1", "0" * 32, trace.upper(), trace[1:], trace + "0", "g" + trace[1:]),
        (parent, "f" * 16, "0" * 16, parent.upper(), parent[1:], parent + "0", "-" + parent[1:]),
        ("00", "01", "ff", "0", "000", "0g", "FF", ""),
        ("", "-", "-00", "-any=thing", "x", " x", "\n"),
    )
    found = 0
    for *head, more in itertools.product(*fields):
        value = "-".join(head) + more
        expected = by_the_grammar(value)
        assert traceparent_of([(b"traceparent", value.encode())]) == expected, value
        found += expected is not None
    assert found > 100


def test_of_two_traces_there_is_none() -> None:
    assert traceparent_of([(b"traceparent", TRACE)] * 2) is None
    assert traceparent_of([]) is None
