"""What clients may choose: fields, policies, and what comes through a gateway set apart."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from served import ask, call, make_model, with_app

import fastrank as fr
from fastrank.eventlog import LogReader
from fastrank.policies.spec import parse_stated
from fastrank_serving import app as server_app
from fastrank_serving import clients as module
from fastrank_serving.app import App
from fastrank_serving.clients import FIELDS, OF_GATEWAY, Clients

GUMBEL = "stochastic_gumbel_softmax_trick"
LINES = {"content-type": "application/jsonlines"}
# A value of each field, which a server that allows all of them takes together with user_id.
VALUES: dict[str, Any] = {
    "query": [0.0] * 8,
    "k": 3,
    "inference_type": "uniform",
    "temperature": 0.5,
    "epsilon": 0.5,
    "head": 1,
    "m": 5,
    "factor": 0.5,
    "exclude": [1],
    "allow": [1, 2, 3],
    "seed": 7,
    "request_id": "r",
    "score": "dot + 1",
    "params": {"w": 1.0},
    "rules": {"pin": {"1": 3}},
    "after": [5],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clients") / "model"
    make_model(directory, policy=fr.PlackettLuce(0.5))
    return directory


def in_gateways_form(**parameters: str) -> str:
    return json.dumps({"gateway": {"request_id": "g-1", "user_id": "u1", **parameters}})


def text_of(value: Any) -> str:
    """As URLs have it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def test_examples_run() -> None:
    assert doctest.testmod(module).failed == 0


def test_there_is_a_value_of_each_field() -> None:
    assert VALUES.keys() == set(FIELDS)
    assert {*FIELDS} - {*OF_GATEWAY} == {"request_id"}


def test_each_field_that_is_not_allowed_gets_a_403_that_names_it(model: Path) -> None:
    async def nothing(app: App) -> None:
        assert (await ask(app, user_id="u1")).status == 200
        assert (await ask(app, user_id="u1", exclude=None)).status == 200  # null is absent
        for name, value in VALUES.items():
            body = {name: value} if name == "query" else {"user_id": "u1", name: value}
            reply = await ask(app, **body)
            error = reply.error
            assert (reply.status, error["code"], error["field"]) == (403, "not_allowed", name)
            assert error["allowed"] == ["user_id"]
            words = f"{name}: clients of this server may set only user_id"
            assert error["message"].startswith(words)
            assert error["request_id"]
            if name in ("query", "request_id"):  # which a gateway has not, or sets itself
                continue
            query = urlencode({name: text_of(value)})
            reply = await call(app, "GET", "/1/recommended-items/u1", query=query)
            assert (reply.status, reply.error["field"]) == (403, name)
        # No gateway is said to be there: its form is a client's, and so is the id in it.
        reply = await call(app, "POST", "/invocations", in_gateways_form())
        assert (reply.status, reply.error["field"]) == (403, "request_id")
        assert 'inference_type="",status="403"} ' in app.service.metrics.page().decode()

    with_app(model, nothing, clients_may=())


@pytest.mark.parametrize("name", ["k", "query", "seed"])
def test_the_others_are_taken(model: Path, name: str) -> None:
    async def work(app: App) -> None:
        for other, value in VALUES.items():
            body = {other: value} if other == "query" else {"user_id": "u1", other: value}
            reply = await ask(app, **body)
            assert (reply.status == 403) == (other == name), (other, reply.body)

    with_app(model, work, clients_may=tuple(each for each in FIELDS if each != name))


def test_lines_of_a_batch_are_refused_by_themselves(model: Path, tmp_path: Path) -> None:
    async def work(app: App) -> None:
        body = b'{"user_id": "u1", "k": 2}\n{"user_id": "u1", "seed": 1}\n{"user_id": "u2"}\n'
        reply = await call(app, "POST", "/invocations", body, LINES)
        first, second, third = map(json.loads, reply.body.splitlines())
        assert (reply.status, first["k"], third["k"]) == (200, 2, 10)
        assert (second["error"]["code"], second["error"]["field"]) == ("not_allowed", "seed")

    with_app(model, work, clients_may=("k",), log_directory=tmp_path / "log")
    (batch,) = LogReader(tmp_path / "log")
    assert batch.values("user_id") == ["u1", "u2"]


class TestGateway:
    def test_it_is_set_apart(self, model: Path, tmp_path: Path) -> None:
        async def work(app: App) -> None:
            reply = await call(app, "POST", "/invocations", in_gateways_form(k="2"))
            row = reply.json()
            assert (row["k"], row["request_id"]) == (2, "g-1")
            assert row["request_id_source"] == "gateway"
            # It may be sent again: the gateway's id counts, though no client may choose one.
            again = await call(app, "POST", "/invocations", in_gateways_form(k="2"))
            assert again.body == reply.body
            reply = await call(app, "POST", "/invocations", in_gateways_form(exclude="1"))
            error = reply.error
            assert (reply.status, error["field"], error["request_id"]) == (403, "exclude", "g-1")
            assert error["allowed"] == ["user_id", "k"]
            assert (await ask(app, user_id="u1", exclude=[1])).status == 200
            assert (await ask(app, user_id="u1", k=2)).error["field"] == "k"
            assert (await ask(app, user_id="u1", request_id="a")).error["field"] == "request_id"

        settings: dict[str, Any] = {"clients_may": ("exclude",), "gateway_may": ("k",)}
        with_app(model, work, **settings, log_directory=tmp_path / "log")
        (batch,) = LogReader(tmp_path / "log")
        assert batch.values("request_id_source") == ["gateway", "server"]

    def test_who_may_all_may_not_choose_its_request_id(self, model: Path) -> None:
        async def work(app: App) -> None:
            for name in OF_GATEWAY:
                if name != "query":
                    text = in_gateways_form(**{name: text_of(VALUES[name])})
                    reply = await call(app, "POST", "/invocations", text)
                    assert reply.status != 403, reply.body
                    assert (await ask(app, user_id="u1", **{name: VALUES[name]})).status == 403

        with_app(model, work, clients_may=(), gateway_may=OF_GATEWAY)

    def test_without_one_its_form_is_a_clients(self, model: Path) -> None:
        async def work(app: App) -> None:
            row = (await call(app, "POST", "/invocations", in_gateways_form())).json()
            assert row["request_id_source"] == "body"

        with_app(model, work)


class TestNames:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "home.json").write_text('{"pin": {"1": 3}}')
        return {"rules": (f"home={tmp_path / 'home.json'}",)}

    @pytest.mark.parametrize(
        "said", [{"clients_may": ("rules:named", "score:named")}, {"only_named_rules": True}]
    )
    def test_of_rules(self, model: Path, settings: dict[str, Any], said: dict[str, Any]) -> None:
        async def work(app: App) -> None:
            assert (await ask(app, user_id="u1", rules="home")).json()["item_ids"][0] == 3
            reply = await ask(app, user_id="u1", rules={"pin": {"1": 4}})
            assert (reply.status, reply.error["field"]) == (403, "rules")
            assert reply.error["allowed"] == ["home"]
            reply = await ask(app, user_id="u1", rules="away")
            assert (reply.status, reply.error["code"]) == (422, "unknown_rules")
            assert (await call(app, "GET", "/version")).json()["only_named_rules"] is True

        with_app(model, work, **settings, **said)

    def test_of_scores(self, model: Path) -> None:
        async def work(app: App) -> None:
            for score in ("dot + 1", "2"):
                reply = await ask(app, user_id="u1", score=score)
                assert (reply.status, reply.error["field"]) == (403, "score")
            assert (await ask(app, user_id="u1", rules={"pin": {"1": 3}})).status == 200

        with_app(model, work, clients_may=("score:named", "rules"))


class TestPolicies:
    def test_those_that_are_named_with_any_parameters_and_others_with_theirs(
        self, model: Path
    ) -> None:
        async def work(app: App) -> None:
            async def status(**asked: Any) -> int:
                reply = await ask(app, user_id="u1", **asked)
                if reply.status == 403:
                    error = reply.error
                    assert error["code"] == "not_allowed"
                    assert error["field"] in asked
                    assert error["allowed"] == ["uniform", f"{GUMBEL}:temperature=2"]
                return reply.status

            assert await status() == 200
            assert await status(inference_type=GUMBEL) == 200  # the server's own
            assert await status(temperature=0.5) == 200  # as it is
            assert await status(inference_type="uniform") == 200
            assert await status(inference_type=GUMBEL, temperature=2) == 200
            assert await status(inference_type="plackett_luce", temperature=2) == 200
            assert await status(inference_type="plackett_luce", temperature=3) == 403
            assert await status(temperature=2) == 200
            assert await status(inference_type="deterministic") == 403
            assert await status(temperature=0.25) == 403
            assert await status(head=1) == 403
            assert await status(temperature=2, head=1) == 403
            assert await status(inference_type="magic") == 422

        stated = tuple(map(parse_stated, ("uniform", "plackett_luce:temperature=2")))
        with_app(model, work, allow_policies=stated)

    def test_none_but_the_servers_own(self, model: Path) -> None:
        async def work(app: App) -> None:
            assert (await ask(app, user_id="u1", inference_type=GUMBEL)).status == 200
            assert (await ask(app, user_id="u1", inference_type="uniform")).status == 403

        with_app(model, work, allow_policies=())


class TestWhatIsTold:
    def test_the_document_has_what_may_be_asked(self, model: Path) -> None:
        async def work(app: App) -> None:
            found = (await call(app, "GET", "/openapi.json")).json()
            schemas = found["components"]["schemas"]
            assert "QueryRequest" not in schemas
            properties = schemas["UserRequest"]["properties"]
            assert properties.keys() == {"user_id", "query", "k", "inference_type", "rules"}
            assert properties["query"] == {"type": "null"}
            types = [each.get("enum") for each in properties["inference_type"]["anyOf"]]
            assert [GUMBEL, "uniform", "plackett_luce"] in types
            assert "an object" not in properties["rules"]["description"]
            for path in ("/invocations", "/1/recommended-items/{user_id}"):
                (operation,) = found["paths"][path].values()
                assert "403" in operation["responses"]
            names = {each["name"] for each in operation["parameters"]}
            assert names == {"user_id", "k", "inference_type", "rules"}
            version = (await call(app, "GET", "/version")).json()
            assert version["clients_may"] == ["k", "inference_type", "rules:named"]
            assert version["gateway_may"] == ["k"]
            assert version["allow_policies"] == ["uniform"]
            about = (await call(app, "GET", "/explorer/about")).json()
            assert about["may"] == ["k", "inference_type", "rules"]
            assert [each["name"] for each in about["inference_types"]] == [GUMBEL, "uniform"]

        with_app(
            model,
            work,
            clients_may=("k", "inference_type", "rules:named"),
            gateway_may=("k",),
            allow_policies=(parse_stated("uniform"),),
        )

    def test_a_server_that_allows_all_says_so(self, model: Path) -> None:
        async def work(app: App) -> None:
            version = (await call(app, "GET", "/version")).json()
            assert version["clients_may"] == list(FIELDS)
            assert version["gateway_may"] is None
            assert version["allow_policies"] is None

        with_app(model, work)


def test_a_server_that_allows_nothing_is_rehearsed_as_any(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not allowed today may be tomorrow, and nothing is to be imported then."""
    seen: list[Clients] = []

    async def rehearse(app: App, *_: Any) -> None:
        seen.append(app.service.clients)

    monkeypatch.setattr(server_app, "rehearse", rehearse)

    async def work(app: App) -> None:
        assert (await ask(app, user_id="u1", k=1)).status == 403

    settings: dict[str, Any] = {"clients_may": (), "gateway_may": (), "only_named_rules": True}
    with_app(model, work, **settings)
    (clients,) = seen
    assert (clients.fields, clients.gateways, clients.policies) == (FIELDS, None, None)
