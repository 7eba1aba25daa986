"""The served OpenAPI document against the server: every answer is one that the document describes.

Sent: 1,500 bodies that the document forbids, 300 that it allows, and 600 GETs of both kinds; of
each the first 50 in `make test`, and ten times as many in `make nightly`.
Answered: all, by what is documented; nothing that is forbidden is served, nothing ends in a 5xx.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
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
            path, method, mode, count, start, marks=() if count == 50 else pytest.mark.slow
        )
        for path, method, mode, counts, start in (
            ("/invocations", "POST", "negative", (750,), 2),
            ("/invocations", "POST", "negative", (50, 750), 3),
            ("/invocations", "POST", "positive", (50, 300), 4),
            ("/1/recommended-items/{user_id}", "GET", "negative", (50, 300), 5),
            ("/1/recommended-items/{user_id}", "GET", "positive", (50, 300), 6),
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
            elif mode == "positive" and isinstance(case.body, dict) and "user_id" in case.body:
                case.body["user_id"] = "ann"
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


@pytest.mark.slow
def test_a_client_that_is_generated_ranks(server: Process, tmp_path: Path) -> None:
    """By openapi-python-client, which leaves out what it does not understand."""
    document = tmp_path / "openapi.json"
    document.write_bytes(server.get("/openapi.json")[1])
    client = tmp_path / "ranking"
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    told = subprocess.run(
        [*command, "--path", str(document), "--output-path", str(client)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "will not be generated" not in told.stdout, told.stdout
    assert "omitted" not in told.stdout, told.stdout
    names = {path.stem for path in (client / "api" / "default").glob("*.py")} - {"__init__"}
    assert names == {
        *("rank", "recommended_items", "ping", "live", "version", "metrics"),
        "execution_parameters",
    }
    script = f"""
from ranking import Client
from ranking.api.default import rank, recommended_items, version
from ranking.models import QueryRequest, UserRequest
client = Client(base_url="http://127.0.0.1:{server.port}")
known = rank.sync(client=client, body=UserRequest(user_id="ann", k=3, exclude=[1000]))
dim = version.sync(client=client)["dim"]
vector = rank.sync(client=client, body=QueryRequest(query=[0.5] * dim, temperature=0.5))
nobody = rank.sync(client=client, body=UserRequest(user_id="nobody"))
items = recommended_items.sync("ann", client=client, k=2, exclude=["1000,1001"])
print(len(known.item_ids), 1000 in known.item_ids, vector.policy.params["temperature"],
      nobody.error.code, len(items.log_propensities))
"""
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert not told.stderr
    assert told.stdout.split() == ["3", "False", "0.5", "unknown_user", "2"]
