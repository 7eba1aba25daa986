"""The served OpenAPI document against the server: every answer is one that the document describes.

Sent: 10,000 bodies that the document forbids, 1,000 that it allows, and 2,000 GETs of both kinds;
of each the first 100 in `make test`.
Answered: all, by what is documented; nothing that is forbidden is served, nothing ends in a 5xx.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from served import Process
from servers import make_model
from support import DRAWS

# A body can be of the right form and wrong still: an epsilon for a policy that takes none.
CHECKS = (
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("openapi") / "model"
    make_model().save(directory)
    with Process(directory) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "method", "mode", "count", "start"),
    [
        pytest.param(
            path, method, mode, count, start, marks=() if count == 100 else pytest.mark.slow
        )
        for path, method, mode, counts, start in (
            *(("/invocations", "POST", "negative", (2_500,), start) for start in range(3)),
            ("/invocations", "POST", "negative", (100, 2_500), 3),
            ("/invocations", "POST", "positive", (100, 1_000), 4),
            ("/1/recommended-items/{user_id}", "GET", "negative", (100, 1_000), 5),
            ("/1/recommended-items/{user_id}", "GET", "positive", (100, 1_000), 6),
        )
        for count in counts
    ],
)
def test_answers_are_documented(
    server: Process, path: str, method: str, mode: str, count: int, start: int
) -> None:
    url = f"http://127.0.0.1:{server.port}"
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    cases = document[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    answered: Counter[int] = Counter()
    forbidden = mode == "negative" and method == "POST"

    with requests.Session() as session:

        @seed(start)
        @settings(
            max_examples=int(count * max(DRAWS, 1.0)),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def send(case: schemathesis.Case[Any]) -> None:
            if method == "GET" and mode == "positive":
                case.path_parameters = {"user_id": "ann"}  # somebody whom the model knows
            reply = case.call(session=session)
            answered[reply.status_code] += 1
            case.validate_response(reply, checks=list(CHECKS))
            if forbidden:
                assert 400 <= reply.status_code < 500, case.body

        send()
    assert sum(answered.values()) >= count
    if mode == "positive":
        assert answered[200] >= count / 20  # not only errors
    assert server.get("/ping")[0] == 200
