"""What SageMaker and clients may rely on, asked over HTTP.

FASTRANK_URL names a server of the model that `python tests/servers.py DIRECTORY` writes, such as
the built container's; without it a process is started as the container starts it.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest

pytest.importorskip("msgspec")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from patience import PATIENCE
from servers import DIM, N_ITEMS, USERS, Client, Container, make_model

import fastrank as fr
from fastrank.policies import completed, names_of

MAX_BODY = 6_291_456
FIELDS = {
    *("request_id", "request_id_source", "user_id", "item_kind", "item_ids", "scores"),
    *("log_propensities", "log_propensity"),
    *("log_norm", "propensity_kind", "log_norm_error", "k", "policy", "seed", "seed_source"),
    *("rng_version", "n_eligible", "made_by", "n_scored", "model_version"),
    *("catalog_version", "is_fallback"),
}
OF_CANDIDATES = {"n_candidates", "tail_log_weight", "is_candidate"}  # found by a pass
GUMBEL = "stochastic_gumbel_softmax_trick"
CUSTOM = "X-Amzn-SageMaker-Custom-Attributes"
INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"

URL = os.environ.get("FASTRANK_URL")
own_process = pytest.mark.skipif(URL is not None, reason="needs a process of its own")


@pytest.fixture(scope="module")
def model() -> fr.Model:
    return make_model()


@pytest.fixture(scope="module")
def client(model: fr.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    if URL is not None:
        yield Client(URL)
        return
    base = tmp_path_factory.mktemp("ml")
    model.save(base / "model")
    with Container(base).wait() as container:
        yield container.client


@pytest.fixture
def base(model: fr.Model, tmp_path: Path) -> Path:
    """An /opt/ml for a process of its own."""
    model.save(tmp_path / "model")
    return tmp_path


class TestPing:
    def test_ready_is_200_with_an_empty_body(self, client: Client) -> None:
        answer = client.ask("GET", "/ping")
        assert answer.status == 200
        assert answer.body == b""

    def test_not_by_post(self, client: Client) -> None:
        assert client.ask("POST", "/ping", b"").status == 405


class TestAnswer:
    @pytest.mark.parametrize("inference_type", fr.INFERENCE_TYPES)
    def test_is_the_ranking_of_the_seed(
        self, client: Client, model: fr.Model, inference_type: str
    ) -> None:
        answer = client.invoke(
            {"user_id": "ann", "k": 7, "inference_type": inference_type, "seed": 2**64 - 1}
        )
        assert answer.status == 200
        row = answer.json()
        policy = completed(inference_type, {}, model.policy)
        expected = model.recommend("ann", 7, policy=policy, seed=2**64 - 1)
        more = OF_CANDIDATES if expected.candidates else set()
        assert set(row) == FIELDS | more
        if expected.candidates:
            assert row["is_candidate"] == expected.candidates.is_candidate.tolist()
            assert row["n_candidates"] == expected.candidates.n_found
        assert row["item_ids"] == expected.item_ids.tolist()
        np.testing.assert_allclose(row["log_propensities"], expected.log_propensities, rtol=1e-6)
        np.testing.assert_allclose(row["scores"], expected.scores, rtol=1e-6)
        assert row["log_propensity"] == pytest.approx(expected.log_propensity, rel=1e-6)
        assert row["policy"]["name"] == inference_type
        assert row["propensity_kind"] == expected.propensity_kind
        assert row["k"] == 7
        assert row["seed"] == 2**64 - 1
        assert row["seed_source"] == "caller"
        assert row["n_eligible"] == N_ITEMS
        assert row["model_version"] == model.version
        assert row["catalog_version"] == model.catalog.version
        assert row["rng_version"] == fr.RNG_VERSION
        assert row["is_fallback"] is False

    @pytest.mark.parametrize("user", USERS)
    def test_users_are_text_of_any_kind(self, client: Client, user: str) -> None:
        posted = client.invoke({"user_id": user, "seed": 1}).json()
        got = client.ask("GET", f"/1/recommended-items/{quote(user, safe='')}?seed=1").json()
        assert posted["user_id"] == got["user_id"] == user
        assert posted["item_ids"] == got["item_ids"]

    def test_k_is_10_and_the_policy_the_servers(self, client: Client) -> None:
        row = client.invoke({"user_id": "ann"}).json()
        assert len(set(row["item_ids"])) == row["k"] == 10
        assert row["seed_source"] == "server"
        version = client.ask("GET", "/version").json()
        assert row["policy"] == version["policy"]

    def test_for_a_query(self, client: Client, model: fr.Model) -> None:
        query = model.user_vector("ann").tolist()
        by_query = client.invoke({"query": query, "seed": 4}).json()
        by_user = client.invoke({"user_id": "ann", "seed": 4}).json()
        assert by_query["user_id"] is None
        assert by_query["item_ids"] == by_user["item_ids"]

    def test_numbers_may_be_text(self, client: Client) -> None:
        asked = {"user_id": "ann", "inference_type": GUMBEL}
        text = client.invoke({**asked, "k": "5", "temperature": "0.5", "seed": "3"}).json()
        number = client.invoke({**asked, "k": 5, "temperature": 0.5, "seed": 3}).json()
        assert text["item_ids"] == number["item_ids"]
        assert text["k"] == 5
        assert text["policy"]["params"] == {"temperature": 0.5}

    def test_exclude_and_allow(self, client: Client) -> None:
        top = client.invoke({"user_id": "ann", "inference_type": "deterministic"}).json()
        asked = {"user_id": "ann", "inference_type": "deterministic"}
        left = client.invoke({**asked, "exclude": top["item_ids"]}).json()
        assert not set(left["item_ids"]) & set(top["item_ids"])
        assert left["n_eligible"] == N_ITEMS - 10
        only = client.invoke({**asked, "allow": top["item_ids"]}).json()
        assert only["item_ids"] == top["item_ids"]
        assert only["n_eligible"] == 10

    def test_rules_and_pages(self, client: Client, model: fr.Model) -> None:
        rules, after = {"pin": {"2": 1005}}, [1007, 1001]
        asked = {"user_id": "ann", "k": 4, "seed": 8, "after": after, "rules": rules}
        row = client.invoke(asked).json()
        expected = model.recommend("ann", 4, seed=8, rules=fr.Rules(pin={2: 1005}), after=after)
        assert row["item_ids"] == expected.item_ids.tolist()
        assert row["item_ids"][1] == 1005
        np.testing.assert_allclose(row["log_propensities"], expected.log_propensities, rtol=1e-6)
        assert row["rules"] == {"id": fr.Rules(pin={2: 1005}).id, "params": {}}
        query = urlencode({"k": 4, "seed": 8, "after": "1007,1001", "rules": json.dumps(rules)})
        got = client.ask("GET", f"/1/recommended-items/ann?{query}").json()
        assert got["item_ids"] == row["item_ids"]
        assert got["rules"] == row["rules"]

    def test_fewer_items_than_k(self, client: Client) -> None:
        row = client.invoke({"user_id": "ann", "allow": [1000, 1001]}).json()
        assert row["k"] == 10
        assert sorted(row["item_ids"]) == [1000, 1001]
        assert len(row["log_propensities"]) == 2

    def test_of_nothing_is_empty(self, client: Client) -> None:
        row = client.invoke({"user_id": "ann", "allow": [5]}).json()
        assert row["item_ids"] == row["log_propensities"] == []
        assert row["n_eligible"] == row["log_propensity"] == 0

    def test_is_stored_nowhere_on_the_way(self, client: Client) -> None:
        answer = client.invoke({"user_id": "ann"})
        assert answer.headers["cache-control"] == "no-store"


class TestRequestId:
    def test_of_the_body_before_that_of_the_header(self, client: Client) -> None:
        mine, header = str(uuid.uuid4()), str(uuid.uuid4())
        answer = client.invoke({"user_id": "ann", "request_id": mine}, {INFERENCE_ID: header})
        assert answer.json()["request_id"] == mine
        assert answer.json()["request_id_source"] == "body"

    def test_an_inference_id_is_a_label(self, client: Client) -> None:
        """Requests of a session may share it, and are ranked each for itself."""
        mine = str(uuid.uuid4())
        first, second, other = (
            client.invoke({"user_id": "ann", "k": k}, {INFERENCE_ID: mine}).json()
            for k in (3, 3, 4)
        )
        assert {each["inference_id"] for each in (first, second, other)} == {mine}
        assert len({each["request_id"] for each in (first, second, other)}) == 3
        assert first["request_id_source"] == "server"
        assert first["seed"] != second["seed"]

    def test_a_uuid_otherwise(self, client: Client) -> None:
        first, second = (client.invoke({"user_id": "ann"}).json() for _ in range(2))
        assert uuid.UUID(first["request_id"]) != uuid.UUID(second["request_id"])
        assert first["request_id_source"] == second["request_id_source"] == "server"

    def test_sent_again_gets_the_first_answer(self, client: Client) -> None:
        asked = {"user_id": "ann", "request_id": str(uuid.uuid4())}
        assert client.invoke(asked).body == client.invoke(asked).body

    def test_stands_in_errors(self, client: Client) -> None:
        mine = str(uuid.uuid4())
        for asked in ({"user_id": "nobody"}, {"user_id": "ann", "k": 0}):
            answer = client.invoke({**asked, "request_id": mine}, {INFERENCE_ID: "a label"})
            assert answer.error()["request_id"] == mine


class TestHeaders:
    @pytest.mark.parametrize("status", [200, 404, 415])
    def test_custom_attributes_come_back(self, client: Client, status: int) -> None:
        asked = {"user_id": "ann" if status != 404 else "nobody"}
        kind = {"Content-Type": "text/csv"} if status == 415 else {}
        attributes = "trace=1; c='<x> \"y\"'" + "~" * 1000
        answer = client.invoke(asked, {CUSTOM: attributes, **kind})
        assert answer.status == status
        assert answer.headers[CUSTOM.lower()] == attributes

    @pytest.mark.parametrize("attributes", ["x" * 1025, "tab\there", "h\xe9"])
    def test_attributes_outside_of_the_contract_do_not(
        self, client: Client, attributes: str
    ) -> None:
        answer = client.invoke({"user_id": "ann"}, {CUSTOM: attributes})
        assert answer.status == 200
        assert CUSTOM.lower() not in answer.headers

    def test_unknown_ones_are_ignored(self, client: Client) -> None:
        strange = {"seed": "7", "k": "3", "user_id": "bob", "X-Amzn-SageMaker-New": "1"}
        row = client.invoke({"user_id": "ann"}, strange).json()
        assert row["user_id"] == "ann"
        assert row["k"] == 10
        assert row["seed_source"] == "server"

    @pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", ""])
    def test_json_by_any_of_its_names(self, client: Client, kind: str) -> None:
        answer = client.invoke({"user_id": "ann"}, {"Content-Type": kind})
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"

    def test_no_content_type_is_json(self, client: Client) -> None:
        assert client.ask("POST", "/invocations", b'{"user_id": "ann"}').status == 200

    def test_other_content_types_are_refused(self, client: Client) -> None:
        answer = client.invoke(b"1,2,3", {"Content-Type": "text/csv"})
        assert answer.status == 415
        assert answer.error()["field"] == "content-type"

    def test_a_connection_is_kept(self, client: Client) -> None:
        with Client(f"http://{client.address[0]}:{client.address[1]}") as kept:
            for asked in ("ann", "nobody", "ann"):
                answer = kept.invoke({"user_id": asked})
                assert answer.headers.get("connection", "").lower() != "close"


ANN: dict[str, Any] = {"user_id": "ann"}
REFUSED: list[tuple[Any, int, str, str | None]] = [
    (b"", 400, "malformed_json", None),
    (b"{", 400, "malformed_json", None),
    (b'{"user_id": "\xff"}', 400, "malformed_json", None),
    (b"[]", 400, "invalid_type", None),
    (b"null", 400, "invalid_type", None),
    (b'{"user_id": "ann", "query": ' + b"[" * 100_000, 400, "malformed_json", None),
    (b'{"user_id": "ann", "temperature": NaN}', 400, "malformed_json", None),
    (b'{"user_id": "ann", "k": 1, "k": 2}', 400, "duplicate_field", "k"),
    (b'{"user_id": "ann", "k": 1, "\\u006b": 2}', 400, "duplicate_field", "k"),
    ({**ANN, "users": 1}, 400, "unknown_field", "users"),
    ({}, 400, "user_or_query", "user_id"),
    ({**ANN, "query": [0.0] * DIM}, 400, "user_or_query", "user_id"),
    ({"user_id": 42}, 400, "invalid_type", "user_id"),
    ({**ANN, "k": "five"}, 400, "invalid_type", "k"),
    ({**ANN, "k": 1.5}, 400, "invalid_type", "k"),
    ({**ANN, "exclude": "1000"}, 400, "invalid_type", "exclude"),
    ({"user_id": "nobody"}, 404, "unknown_user", "user_id"),
    ({"user_id": ""}, 422, "invalid_value", "user_id"),
    ({"user_id": "x" * 1_025}, 422, "invalid_value", "user_id"),
    ({**ANN, "k": 0}, 422, "out_of_range", "k"),
    ({**ANN, "k": 1001}, 422, "out_of_range", "k"),
    ({**ANN, "inference_type": "magic"}, 422, "unknown_inference_type", "inference_type"),
    ({**ANN, "temperature": -1}, 422, "out_of_range", "temperature"),
    ({**ANN, "inference_type": "uniform", "epsilon": 0.1}, 422, "invalid_value", "epsilon"),
    ({**ANN, "seed": -1}, 422, "out_of_range", "seed"),
    ({**ANN, "seed": 2**64}, 422, "out_of_range", "seed"),
    ({**ANN, "exclude": ["x"]}, 422, "invalid_value", "exclude"),
    ({**ANN, "allow": [1.5]}, 400, "invalid_type", "allow"),
    ({"query": [0.0]}, 422, "invalid_value", "query"),
    ({"query": [1e39] * DIM}, 422, "invalid_value", "query"),
]


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "status", "code", "field"), REFUSED, ids=[str(row[0])[:40] for row in REFUSED]
    )
    def test_names_the_field(
        self, client: Client, body: Any, status: int, code: str, field: str | None
    ) -> None:
        answer = client.invoke(body)
        assert answer.status == status, answer
        error = answer.error()
        assert (error["code"], error["field"]) == (code, field)
        assert answer.headers["cache-control"] == "no-store"

    def test_a_thousand_unknown_users(self, client: Client) -> None:
        with client:
            for number in range(1000):
                answer = client.invoke({"user_id": f"nobody {number}"})
                assert (answer.status, answer.error()["code"]) == (404, "unknown_user")
            assert client.invoke(ANN).status == 200

    def test_an_unknown_policy_gets_the_names(self, client: Client) -> None:
        error = client.invoke({**ANN, "inference_type": "magic"}).error()
        assert error["allowed"] == names_of(fr.INFERENCE_TYPES)
        assert error["value"] == "magic"
        assert "plackett_luce" in error["message"]

    def test_long_values_are_not_repeated(self, client: Client) -> None:
        answer = client.invoke({**ANN, "inference_type": "m" * 5000})
        assert answer.status == 422
        assert len(answer.body) < 2000

    @pytest.mark.parametrize("path", ["/", "/nothing", "/invocations/", "/../etc/passwd"])
    def test_elsewhere_is_404(self, client: Client, path: str) -> None:
        answer = client.ask("POST", path, b"{}")
        assert answer.status in (404, 405)
        answer.error()

    def test_another_method_is_405(self, client: Client) -> None:
        answer = client.ask("GET", "/invocations")
        assert answer.status == 405
        assert answer.error()["code"] == "method_not_allowed"


class TestBody:
    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize("size", [MAX_BODY, MAX_BODY + 1])
    def test_limit(self, client: Client, size: int, *, chunked: bool) -> None:
        body = b'{"user_id": "ann"}'.ljust(size)
        data = iter([body[: size // 2], body[size // 2 :]]) if chunked else body
        try:
            answer = client.ask("POST", "/invocations", data)
        except (BrokenPipeError, ConnectionResetError):
            assert size > MAX_BODY  # it was refused before it was read
            return
        assert answer.status == (200 if size <= MAX_BODY else 413)
        if size > MAX_BODY:
            assert answer.error()["code"] == "body_too_large"

    def test_the_next_request_is_answered(self, client: Client) -> None:
        assert client.invoke(ANN).status == 200


class TestBatch:
    @staticmethod
    def lines(client: Client, body: bytes, kind: str = "application/jsonlines") -> list[Any]:
        answer = client.invoke(body, {"Content-Type": kind})
        assert answer.status == 200
        assert answer.headers["content-type"] == kind
        assert answer.body == b"" or answer.body.endswith(b"\n")
        return [json.loads(line) for line in answer.body.splitlines()]

    @pytest.mark.parametrize("end", [b"", b"\n"])
    def test_a_line_for_each_in_order(self, client: Client, end: bytes) -> None:
        asked = [{"user_id": USERS[j % len(USERS)], "k": 1 + j % 9} for j in range(100)]
        rows = self.lines(client, b"\n".join(json.dumps(row).encode() for row in asked) + end)
        assert [(row["user_id"], row["k"]) for row in rows] == [
            (row["user_id"], row["k"]) for row in asked
        ]

    def test_a_bad_line_is_an_error_line(self, client: Client) -> None:
        rows = self.lines(client, b'{"user_id": "ann"}\nx\n\n{"user_id": "who"}\n{"user_id":"ann"}')
        assert [row.get("error", {}).get("code") for row in rows] == [
            *(None, "malformed_json", "malformed_json", "unknown_user", None),
        ]

    def test_windows_ends_and_other_names(self, client: Client) -> None:
        body = b'{"user_id": "ann"}\r\n{"user_id": "ann"}\r\n'
        assert len(self.lines(client, body, "application/x-ndjson")) == 2

    def test_nothing_gives_nothing(self, client: Client) -> None:
        assert self.lines(client, b"") == []

    def test_execution_parameters(self, client: Client) -> None:
        found = client.ask("GET", "/execution-parameters").json()
        assert found["BatchStrategy"] == "MULTI_RECORD"
        assert found["MaxPayloadInMB"] == 6
        assert found["MaxConcurrentTransforms"] >= 1


class TestRecommendedItems:
    def test_answers_as_invocations(self, client: Client) -> None:
        target = f"/1/recommended-items/ann?k=5&inference_type={GUMBEL}&temperature=0.5&seed=9"
        got = client.ask("GET", target).json()
        asked = {"k": 5, "inference_type": GUMBEL, "temperature": 0.5, "seed": 9}
        posted = client.invoke({**ANN, **asked}).json()
        assert {**got, "request_id": ""} == {**posted, "request_id": ""}

    def test_empty_is_absent_and_lists_have_commas(self, client: Client) -> None:
        target = "/1/recommended-items/ann?k=&seed=&inference_type=&allow=1000,1001&exclude=1001"
        row = client.ask("GET", target).json()
        assert row["k"] == 10
        assert row["item_ids"] == [1000]

    @pytest.mark.parametrize(
        ("query", "status", "code"),
        [
            ("k=0", 422, "out_of_range"),
            ("k=x", 400, "invalid_type"),
            ("kk=1", 400, "unknown_field"),
            ("user_id=bob", 400, "duplicate_field"),
        ],
    )
    def test_errors(self, client: Client, query: str, status: int, code: str) -> None:
        answer = client.ask("GET", f"/1/recommended-items/ann?{query}")
        assert answer.status == status
        assert answer.error()["code"] == code


class TestGatewayBody:
    def test_is_decoded(self, client: Client) -> None:
        gateway = {"user_id": "O%27Brien", "k": "5", "seed": "", "request_id": str(uuid.uuid4())}
        row = client.invoke({"gateway": gateway}).json()
        assert row["user_id"] == "O'Brien"
        assert row["k"] == 5
        assert row["seed_source"] == "server"
        assert row["request_id"] == gateway["request_id"]

    @pytest.mark.parametrize(
        ("gateway", "code"),
        [([], "invalid_type"), ({"user_id": 1}, "invalid_type"), ({"x": ""}, "unknown_field")],
    )
    def test_errors(self, client: Client, gateway: Any, code: str) -> None:
        assert client.invoke({"gateway": gateway}).error()["code"] == code

    def test_beside_other_fields_it_is_unknown(self, client: Client) -> None:
        answer = client.invoke({"gateway": {"user_id": "ann"}, "k": 5})
        assert answer.error()["code"] == "unknown_field"


class TestElsewhere:
    @pytest.mark.parametrize("path", ["/livez", "/metrics", "/version", "/openapi.json"])
    def test_is_answered(self, client: Client, path: str) -> None:
        assert client.ask("GET", path).status == 200

    def test_reload_is_off(self, client: Client) -> None:
        assert client.ask("POST", "/-/reload").status == 404


def test_each_of_many_at_once_gets_its_own(client: Client) -> None:
    def ask(j: int) -> tuple[dict[str, Any], dict[str, Any]]:
        asked = {"user_id": USERS[j % 9], "k": 1 + j % 10, "request_id": str(uuid.uuid4())}
        return asked, client.invoke(asked).json()

    with ThreadPoolExecutor(16) as pool:
        for asked, row in pool.map(ask, range(200)):
            assert {name: row[name] for name in asked} == asked
            assert len(row["item_ids"]) == asked["k"]
            assert math.isfinite(row["log_propensity"])


@own_process
class TestLife:
    def test_without_a_model_it_ends_and_was_never_ready(self, tmp_path: Path) -> None:
        with Container(tmp_path) as container:
            with pytest.raises(AssertionError, match="not ready"):
                container.wait()
            assert container.process.wait(PATIENCE) != 0
            assert 200 not in container.pings
            assert "Traceback" not in container.stderr

    def test_a_damaged_model_is_not_served(self, base: Path) -> None:
        # The self-test reads what the manifest cannot vouch for.
        largest = max((base / "model").iterdir(), key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
        with Container(base) as container:
            with pytest.raises(AssertionError, match="not ready"):
                container.wait()
            assert container.process.wait(PATIENCE) != 0
            assert 200 not in container.pings

    @pytest.mark.parametrize("workers", [1, 2])
    def test_sigterm_ends_it_well(self, base: Path, workers: int) -> None:
        environ = {"SAGEMAKER_MODEL_SERVER_WORKERS": str(workers)}
        with Container(base, environ).wait() as container:
            container.wait_for(" serving model ", workers)
            assert container.client.invoke(ANN).status == 200
            assert container.stop() == 0, container.stderr
            assert container.client.ping() == 0

    @pytest.mark.parametrize("workers", [1, 2])
    def test_sigterm_while_it_starts_ends_it_well(self, base: Path, workers: int) -> None:
        environ = {"SAGEMAKER_MODEL_SERVER_WORKERS": str(workers)}
        with Container(base, environ) as container:
            container.wait_for(" listening on ", 1)
            assert container.stop(seconds=3.0) == 0, container.stderr

    @pytest.mark.sampled
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("SAGEMAKER_BIND_TO_PORT", "http"),
            ("SAGEMAKER_MODEL_SERVER_WORKERS", "0"),
            ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "soon"),
        ],
    )
    def test_a_bad_setting_is_named(self, base: Path, name: str, value: str) -> None:
        with Container(base, {name: value}) as container:
            assert container.process.wait(PATIENCE) == 2
            assert container.stderr.count("\n") == 1, container.stderr
            assert value in container.stderr
