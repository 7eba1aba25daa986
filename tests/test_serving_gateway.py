"""The SAM template, checked offline, and the gateway that renders it: what clients send stays a
value, and errors come through as the container gave them."""

from __future__ import annotations

import copy
import http.client
import json
import os
import re
import string
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus

import pytest

pytest.importorskip("airspeed")
pytest.importorskip("yaml")
pytest.importorskip("starlette")
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from served import ask, call, with_app
from servers import USERS, Client, Container, make_model

from fastrank.wire import RulesBody
from fastrank_serving import gateway as module
from fastrank_serving.clients import as_fields
from fastrank_serving.gateway import TEMPLATE, Gateway, Integration, Parameters, Server
from fastrank_serving.messages import ProblemError, error_body, parse
from fastrank_serving.secret import Secret
from fastrank_serving.settings import OPTIONS

GUMBEL = "stochastic_gumbel_softmax_trick"
ID = "00000000-0000-4000-8000-000000000000"
PATH = "/1/recommended-items/"

# What may come as a value, and must not become anything else.
ATTEMPTS = [
    '5","seed":"1',
    '5", "seed": 1, "x": "',
    "5'",
    '"',
    "\\",
    '\\"',
    "\\u0022",
    "a\nb\r\n\tc",
    "\x00\x1f\x7f",
    "O'Brien",
    "Zoë 東京 \U0001f600",
    "$util.urlDecode('%22')",
    "$context.requestId",
    "${context}",
    "#set($context.responseOverride.status = 200)",
    "#end #if(true)",
    "$input.params('user_id')",
    "%22,%22seed%22:%221",
    "%2522",
    "%25",
    "100%",
    "%",
    "a+b c",
    "}}",
    "*~-_.!()",
    "//../..",
    " ",
]


@pytest.fixture(scope="module")
def integration() -> Integration:
    (found,) = module.integrations()
    return found


def body(integration: Integration, parameters: Parameters) -> dict[str, str]:
    """The gateway object of a rendered request, whose names are there once."""
    rendered, headers = integration.request(parameters, ID)
    assert headers == {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "X-Amzn-SageMaker-Inference-Id": ID,
    }

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), pairs
        return dict(pairs)

    whole = json.loads(rendered, object_pairs_hook=once)
    assert list(whole) == ["gateway"]
    found: dict[str, str] = whole["gateway"]
    return found


def parameters(user: str, query: dict[str, str] | None = None) -> Parameters:
    return {
        "path": {"user_id": quote(user, safe="")},
        "querystring": query or {},
        "header": {"k": "99", "seed": "1", "user_id": "mallory", "request_id": "x"},
    }


class TestRequest:
    @pytest.mark.parametrize("attempt", ATTEMPTS)
    def test_a_query_stays_a_value(self, integration: Integration, attempt: str) -> None:
        found = body(integration, parameters("ann", {"k": attempt, "exclude": attempt}))
        assert found.keys() == {"request_id", "user_id", "k", "exclude"}
        assert unquote_plus(found["k"]) == unquote_plus(found["exclude"]) == attempt

    @pytest.mark.parametrize("attempt", ATTEMPTS)
    def test_a_path_stays_a_value(self, integration: Integration, attempt: str) -> None:
        found = body(integration, parameters(attempt))
        assert found.keys() == {"request_id", "user_id"}
        assert unquote_plus(found["user_id"]) == attempt

    @pytest.mark.parametrize("user", USERS)
    def test_a_path_that_was_decoded_is_right_too(
        self, integration: Integration, user: str
    ) -> None:
        found = body(integration, {**parameters(""), "path": {"user_id": user}})
        assert unquote_plus(found["user_id"]) == user

    @pytest.mark.parametrize("attempt", ATTEMPTS)
    def test_a_decoded_path_adds_no_field(self, integration: Integration, attempt: str) -> None:
        found = body(integration, {**parameters(""), "path": {"user_id": attempt}})
        assert found.keys() == {"request_id", "user_id"}

    @pytest.mark.parametrize("attempt", ATTEMPTS)
    def test_a_name_adds_one_field_that_is_refused(
        self, integration: Integration, attempt: str
    ) -> None:
        asked = parameters("ann", {attempt: "1"})
        assert len(body(integration, asked)) == 3
        with pytest.raises(ProblemError) as caught:
            parse(integration.request(asked, ID)[0])
        assert caught.value.code == "unknown_field"

    @given(st.text(max_size=20), st.dictionaries(st.text(max_size=8), st.text(max_size=20)))
    def test_any_text_stays_a_value(
        self, integration: Integration, user: str, query: dict[str, str]
    ) -> None:
        query = {f"x{name}": value for name, value in query.items()}
        found = body(integration, parameters(user, query))
        assert unquote_plus(found.pop("user_id")) == user
        assert found.pop("request_id") == ID
        assert {unquote_plus(name): unquote_plus(text) for name, text in found.items()} == query

    def test_headers_are_not_parameters(self, integration: Integration) -> None:
        assert body(integration, parameters("ann")) == {"user_id": "ann", "request_id": ID}

    @pytest.mark.parametrize("name", ["user_id", "request_id"])
    def test_what_the_template_sets_cannot_be_set(
        self, integration: Integration, name: str
    ) -> None:
        rendered, _ = integration.request(parameters("ann", {name: "bob"}), ID)
        with pytest.raises(ProblemError) as caught:
            parse(rendered)
        assert (caught.value.code, caught.value.field) == ("duplicate_field", name)

    def test_is_read_as_it_was_meant(self, integration: Integration) -> None:
        rules = '{"cap": {"a \\"b\\"": 2}, "pin": {"3": "O\'Brien,%22"}}'
        query = {"k": "5", "seed": "", "inference_type": GUMBEL, "exclude": "1,2"}
        query |= {"rules": rules, "after": '7,"a,b"'}
        request = parse(integration.request(parameters("O'Brien", query), ID)[0])
        assert (request.user_id, request.k, request.seed) == ("O'Brien", 5, None)
        assert (request.inference_type, request.exclude) == (GUMBEL, ["1", "2"])
        assert request.request_id == ID
        assert isinstance(request.rules, RulesBody)
        assert request.rules.content == json.loads(rules)
        assert request.after == ["7", "a,b"]
        query["rules"] = "home-3"
        assert parse(integration.request(parameters("a", query), ID)[0]).rules == "home-3"


class TestResponse:
    def respond(self, integration: Integration, status: int, body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = integration.response(status, data, parameters("ann"), ID)
        assert ("Cache-Control", "no-store") in reply.headers
        return reply

    def test_success_passes_through(self, integration: Integration) -> None:
        reply = self.respond(integration, 200, b'{"request_id": "$x #end"}')
        assert (reply.status, reply.body) == (200, b'{"request_id": "$x #end"}')

    @pytest.mark.parametrize("status", [400, 403, 404, 413, 422, 429, 500, 503])
    def test_a_model_error_is_the_containers(self, integration: Integration, status: int) -> None:
        problem = ProblemError(status, "c", 'quotes " \\ $util #end\n東', value="'", retry_after=1)
        own = error_body(problem, ID)
        wrapped = {"OriginalStatusCode": status, "OriginalMessage": own.decode()}
        reply = self.respond(integration, 424, wrapped)
        assert (reply.status, reply.body) == (status, own)

    @pytest.mark.parametrize("message", ["", "upstream timed out", "<html>", None])
    def test_a_model_that_says_nothing_is_502(self, integration: Integration, message: Any) -> None:
        wrapped = {"OriginalStatusCode": 500, "OriginalMessage": message}
        reply = self.respond(integration, 424, wrapped)
        assert reply.status == 502
        error = json.loads(reply.body)["error"]
        assert (error["code"], error["request_id"]) == ("no_answer", ID)

    @pytest.mark.parametrize(
        ("status", "shown", "code", "retry"),
        [
            *((status, 503, "endpoint_unavailable", 1) for status in (429, 503, 530)),
            *((status, 502, "endpoint_failed", None) for status in (400, 403, 500)),
        ],
    )
    def test_errors_of_the_endpoint_are_ours(
        self, integration: Integration, status: int, shown: int, code: str, retry: int | None
    ) -> None:
        reply = self.respond(integration, status, b'{"Message": "arn:aws:iam::1 is not"}')
        error = json.loads(reply.body)["error"]
        assert reply.status == shown
        assert (error["code"], error["retry_after_s"]) == (code, retry)
        assert b"arn" not in reply.body


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a container: FASTRANK_URL's, as for the contract suite, or one of our own."""
    if "FASTRANK_URL" in os.environ:
        yield os.environ["FASTRANK_URL"]
        return
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    base = tmp_path_factory.mktemp("ml")
    make_model().save(base / "model")
    with Container(base, {"FASTRANK_GATEWAY_MAY": "all"}).wait() as container:
        yield container.url


# Another's container knows of no gateway.
SOURCE = "body" if "FASTRANK_URL" in os.environ else "gateway"


@pytest.fixture(scope="module", params=[False, True], ids=["path as it came", "path decoded"])
def front(container: str, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of the gateway in front of the container."""
    with Server(Gateway(container, decode_path=request.param)) as server:
        server.start()
        yield Client(server.url)
        server.shutdown()


class TestEndToEnd:
    @pytest.mark.parametrize("user", USERS)
    def test_answers_as_the_container(self, front: Client, container: str, user: str) -> None:
        target = f"{PATH}{quote(user, safe='')}?k=5&inference_type={GUMBEL}&seed=3&temperature="
        through, direct = (client.ask("GET", target) for client in (front, Client(container)))
        assert through.status == direct.status == 200
        assert through.headers["cache-control"] == "no-store"
        row, own = through.json(), direct.json()
        ids = [row.pop(name) for name in ("request_id", "inference_id")]
        assert ids == [through.headers["x-amzn-requestid"]] * 2
        own.pop("request_id")
        sources = [each.pop("request_id_source") for each in (row, own)]
        assert sources == [SOURCE, "server"]
        assert row == own
        assert row["user_id"] == user

    @pytest.mark.parametrize(
        ("target", "status", "code", "field"),
        [
            ("nobody", 404, "unknown_user", "user_id"),
            ("%22%7D%7D", 404, "unknown_user", "user_id"),
            ("ann?k=0", 422, "out_of_range", "k"),
            ("ann?inference_type=magic", 422, "unknown_inference_type", "inference_type"),
            ("ann?k=5%22,%22seed%22:%221", 400, "invalid_type", "k"),
            ("ann?seeds=1", 400, "unknown_field", "seeds"),
            ("ann?rules=nowhere", 422, "unknown_rules", "rules"),
            ("ann?rules=%7B%22cap%22:%7B%22a%22:0%7D%7D", 422, "invalid_value", "rules.cap.a"),
            ("ann?rules=%7B%22kap%22:1%7D", 400, "unknown_field", "rules.kap"),
            ("ann?after=1000,1000", 422, "invalid_value", "after"),
            ("ann?user_id=bob", 400, "duplicate_field", "user_id"),
        ],
    )
    def test_errors_are_the_containers(
        self, front: Client, container: str, target: str, status: int, code: str, field: str
    ) -> None:
        through = front.ask("GET", PATH + target)
        assert through.status == status
        error = through.error()
        assert (error["code"], error["field"]) == (code, field)
        direct = Client(container).ask("GET", PATH + target)
        assert direct.status == status
        own = direct.error()
        # Which of the two is refused as repeated is told in other words.
        for name in ("request_id", *(("message",) if code == "duplicate_field" else ())):
            error.pop(name)
            own.pop(name)
        assert error == own

    def test_headers_named_like_parameters(self, front: Client) -> None:
        row = front.ask("GET", f"{PATH}ann", headers={"k": "3", "seed": "1", "exclude": "1"}).json()
        assert row["k"] == 10
        assert row["seed_source"] == "server"

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", "/"), ("POST", f"{PATH}ann"), ("GET", f"{PATH}ann/more")]
    )
    def test_other_paths_are_not_there(self, front: Client, method: str, path: str) -> None:
        assert front.ask(method, path).status == 403

    def test_a_connection_is_kept(self, front: Client) -> None:
        with Client(f"http://{front.address[0]}:{front.address[1]}") as kept:
            for user, status in (("ann", 200), ("nobody", 404), ("ann", 200)):
                assert kept.ask("GET", PATH + user).status == status


def test_what_is_captured_is_the_log(container: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from fastrank.eventlog import from_data_capture

    file = tmp_path / "capture.jsonl"
    with Server(Gateway(container, capture=file)) as server:
        server.start()
        front = Client(server.url)
        answers = [
            front.ask("GET", f"{PATH}{quote(user, safe='')}?k=4&exclude=1000,1001").json()
            for user in USERS
        ]
        assert front.ask("GET", f"{PATH}nobody").status == 404
        server.shutdown()
    capture = from_data_capture(file)
    rows = [row for table in capture for row in table.to_pylist()]
    assert capture.error_responses == 1
    assert capture.read_report.rows_set_aside == 0
    for row, answer in zip(rows, answers, strict=True):
        for name in ("request_id", "user_id", "item_ids", "log_propensities", "seed"):
            assert row[name] == answer[name]
        assert row["request_id_source"] == answer["request_id_source"] == SOURCE
        assert row["exclude"] == [1000, 1001]
        assert row["ts"] is not None


class _Scripted(BaseHTTPRequestHandler):
    """A container that says what its server was told."""

    protocol_version = "HTTP/1.1"
    server: _Script

    def do_POST(self) -> None:
        self.server.got.append(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = self.server.says
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _Script(ThreadingHTTPServer):
    daemon_threads = True
    says: tuple[int, bytes] = (200, b"{}")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Scripted)
        self.got: list[bytes] = []


class TestBusyContainer:
    @pytest.fixture
    def script(self) -> Iterator[_Script]:
        with _Script() as script:
            threading.Thread(target=script.serve_forever, args=(0.02,), daemon=True).start()
            yield script
            script.shutdown()

    @pytest.fixture
    def front(self, script: _Script) -> Iterator[Client]:
        target = f"http://127.0.0.1:{script.server_address[1]}"
        with Server(Gateway(target, timeout=2.0)) as server:
            server.start()
            yield Client(server.url)
            server.shutdown()

    @pytest.mark.parametrize(
        ("status", "code"), [(429, "too_many_requests"), (503, "deadline_exceeded")]
    )
    def test_says_when_to_come_again(
        self, script: _Script, front: Client, status: int, code: str
    ) -> None:
        problem = ProblemError(status, code, "try again", retry_after=1)
        script.says = status, error_body(problem, ID)
        answer = front.ask("GET", f"{PATH}ann")
        assert answer.status == status
        assert answer.error()["code"] == code
        assert answer.error()["retry_after_s"] == 1

    @pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"\xff\xfe"])
    def test_that_breaks_is_502(self, script: _Script, front: Client, body: bytes) -> None:
        script.says = 500, body
        answer = front.ask("GET", f"{PATH}ann")
        assert answer.status == 502
        assert answer.error()["code"] == "no_answer"

    def test_that_is_gone_is_503(self, script: _Script, front: Client) -> None:
        script.shutdown()
        script.server_close()
        answer = front.ask("GET", f"{PATH}ann")
        assert answer.status == 503
        assert answer.error()["retry_after_s"] == 1

    def test_raw_bytes_of_a_request(self, script: _Script, front: Client) -> None:
        """What no client library would send."""
        for target in ('a"b', "a\\b?k=\\", "%ff?k=%zz", "a?k=1&k=2", "a?k;seed=1", "a?%00=%0a"):
            connection = http.client.HTTPConnection(*front.address, timeout=PATIENCE)
            connection.putrequest("GET", "/", skip_host=True)
            connection._buffer[0] = f"GET {PATH}{target} HTTP/1.1".encode()  # type: ignore[attr-defined]
            connection.putheader("Host", "x")
            connection.endheaders()
            assert connection.getresponse().status == 200, target
            connection.close()
            assert list(json.loads(script.got[-1])) == ["gateway"]
            assert re.fullmatch(rb"[\x20-\x7e]*", script.got[-1])
        assert len(script.got) == 6


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    pytest.importorskip("samtranslator")
    from cfnlint.decode.cfn_yaml import load

    found: dict[str, Any] = json.loads(json.dumps(load(str(TEMPLATE))))
    return found


@pytest.fixture(scope="module")
def usual(document: dict[str, Any]) -> dict[str, Any]:
    """Defaults of the template's parameters."""
    return {name: each.get("Default") for name, each in document["Parameters"].items()}


@pytest.fixture(scope="module")
def resources(document: dict[str, Any]) -> dict[str, Any]:
    """What CloudFormation gets to see."""
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator

    values = {"Image": "i", "ModelData": "s3://b/m.tar.gz", "ModelBucket": "b"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")  # it asks boto3, which asks nobody
        translated = Translator({}, Parser()).translate(copy.deepcopy(document), values)
    found: dict[str, Any] = translated["Resources"]
    return found


def said(value: Any, parameters: dict[str, Any]) -> Any:
    """What a value is under parameters; the one condition says that a bucket is watched."""
    if isinstance(value, dict) and "Fn::If" in value:
        condition, then, other = value["Fn::If"]
        assert condition == "Watches"
        return said(then if parameters["WatchBucket"] else other, parameters)
    if isinstance(value, dict) and value.keys() == {"Ref"}:
        return parameters.get(value["Ref"], value)
    return value["Fn::Sub"] if isinstance(value, dict) and "Fn::Sub" in value else value


# cfn-lint and what it wants are 155 MB, which `make test` does without.
@pytest.mark.slow
class TestTemplate:
    def test_cfn_lint_has_nothing_to_say(self) -> None:
        api = pytest.importorskip("cfnlint.api")
        config = pytest.importorskip("cfnlint.config").ManualArgs(regions=["us-east-1"])
        assert api.lint(TEMPLATE.read_text(), config=config) == []

    def only(self, resources: dict[str, Any], kind: str) -> Any:
        (found,) = (each["Properties"] for each in resources.values() if each["Type"] == kind)
        return found

    def test_every_answer_is_captured(self, resources: dict[str, Any]) -> None:
        capture = self.only(resources, "AWS::SageMaker::EndpointConfig")["DataCaptureConfig"]
        assert capture["EnableCapture"] is True
        assert capture["InitialSamplingPercentage"] == 100
        modes = {option["CaptureMode"] for option in capture["CaptureOptions"]}
        assert modes == {"Input", "Output"}
        assert capture["CaptureContentTypeHeader"] == {"JsonContentTypes": ["application/json"]}

    def test_its_settings_are_the_containers(
        self, resources: dict[str, Any], usual: dict[str, Any]
    ) -> None:
        container = self.only(resources, "AWS::SageMaker::Model")["PrimaryContainer"]
        known = {name: each for each in OPTIONS for name in each.variables}
        given = {name: said(value, usual) for name, value in container["Environment"].items()}
        assert given == {
            "FASTRANK_ALLOW_POLICIES": "",
            "FASTRANK_CLIENTS_MAY": "all",
            "FASTRANK_EMF": "1",
            "FASTRANK_GATEWAY_MAY": "k",
            "FASTRANK_K": known["FASTRANK_K"].default,
            "FASTRANK_POLICY": "",  # the model's own
            **{"FASTRANK_EXPERIMENT": "", "FASTRANK_ARM": ""},  # none
            "FASTRANK_SECRET": "{{resolve:secretsmanager:${Secret}}}",
            "FASTRANK_WATCH": "",  # nothing is
        }

    def test_a_bucket_is_watched_by_instances_that_may_read_it(
        self, document: dict[str, Any], resources: dict[str, Any], usual: dict[str, Any]
    ) -> None:
        model = self.only(resources, "AWS::SageMaker::Model")
        assert said(model["EnableNetworkIsolation"], usual) is True
        (condition,) = document["Conditions"].values()
        assert condition == {"Fn::Not": [{"Fn::Equals": [{"Ref": "WatchBucket"}, ""]}]}
        watching = usual | {"WatchBucket": "models"}
        assert said(model["EnableNetworkIsolation"], watching) is False
        url = said(model["PrimaryContainer"]["Environment"]["FASTRANK_WATCH"], watching)
        assert url == "s3://${WatchBucket}/${WatchPrefix}"
        roles = [r["Properties"] for r in resources.values() if r["Type"] == "AWS::IAM::Role"]
        (statements,) = (
            each["PolicyDocument"]["Statement"]
            for role in roles
            for each in role["Policies"]
            if each["PolicyName"] == "endpoint"
        )
        of_watch = [each for each in statements if "Fn::If" in each]
        assert [said(each, usual) for each in of_watch] == [{"Ref": "AWS::NoValue"}] * 2
        assert [said(each, watching)["Action"] for each in of_watch] == [
            "s3:GetObject",
            "s3:ListBucket",
        ]

    def test_its_secret_is_one_that_a_container_takes(self, resources: dict[str, Any]) -> None:
        drawn = self.only(resources, "AWS::SecretsManager::Secret")["GenerateSecretString"]
        assert drawn == {"PasswordLength": 43, "ExcludePunctuation": True}
        text = (string.ascii_letters + string.digits)[: drawn["PasswordLength"]]
        assert Secret.of_text(text).key == text.encode()

    def test_what_it_lets_through_falsifies_no_log(
        self, integration: Integration, usual: dict[str, Any], tmp_path: Path
    ) -> None:
        """Of the defaults: a user and k."""
        make_model().save(tmp_path / "model")
        may = {name: as_fields(usual[name].split(",")) for name in ("GatewayMay", "ClientsMay")}

        async def work(app: Any) -> None:
            asked = [
                ({"k": "3"}, 200),
                ({}, 200),
                ({"k": ""}, 200),
                ({"seed": "1"}, 403),
                ({"k": "3", "inference_type": "uniform"}, 403),
                ({"rules": "home"}, 403),
            ]
            for j, (query, status) in enumerate(asked):
                rendered, _ = integration.request(parameters("ann", query), f"{ID}-{j}")
                reply = await call(app, "POST", "/invocations", rendered)
                assert reply.status == status, (query, reply.body)
                if status == 200:
                    assert reply.json()["request_id_source"] == "gateway"
                else:
                    assert reply.error["field"] in query
            direct = {"user_id": "ann", "inference_type": "uniform", "seed": 1}
            assert (await ask(app, **direct)).status == 200

        settings = {"gateway_may": may["GatewayMay"], "clients_may": may["ClientsMay"]}
        with_app(tmp_path / "model", work, **settings)

    def test_instances_follow_the_requests_in_flight(
        self, resources: dict[str, Any], usual: dict[str, Any]
    ) -> None:
        target = self.only(resources, "AWS::ApplicationAutoScaling::ScalableTarget")
        variant = self.only(resources, "AWS::SageMaker::EndpointConfig")["ProductionVariants"][0]
        assert target["ResourceId"]["Fn::Sub"].endswith(f"/variant/{variant['VariantName']}")
        assert target["MinCapacity"] == variant["InitialInstanceCount"]
        least, most = (usual[target[name]["Ref"]] for name in ("MinCapacity", "MaxCapacity"))
        assert least < most
        assert (
            self.only(resources, "AWS::SageMaker::Endpoint")["RetainAllVariantProperties"] is True
        )
        scaling = self.only(resources, "AWS::ApplicationAutoScaling::ScalingPolicy")
        tracking = scaling["TargetTrackingScalingPolicyConfiguration"]
        name = tracking["PredefinedMetricSpecification"]["PredefinedMetricType"]
        assert name == "SageMakerVariantConcurrentRequestsPerModelHighResolution"
        (queue,) = (each.default for each in OPTIONS if each.field == "queue")
        # There are more instances before one refuses.
        assert usual[tracking["TargetValue"]["Ref"]] < queue

    def test_the_method_invokes_the_endpoint(self, resources: dict[str, Any]) -> None:
        api = self.only(resources, "AWS::ApiGateway::RestApi")
        method = api["Body"]["paths"]["/1/recommended-items/{user_id}"]["get"]
        settings = method["x-amazon-apigateway-integration"]
        assert settings["type"] == "aws"
        assert settings["httpMethod"] == "POST"
        assert ":runtime.sagemaker:path//endpoints/" in settings["uri"]["Fn::Sub"]
        assert settings["uri"]["Fn::Sub"].endswith("/invocations")
        assert settings["timeoutInMillis"] == 29_000

    def test_nothing_is_cached(self, resources: dict[str, Any]) -> None:
        stage = self.only(resources, "AWS::ApiGateway::Stage")
        assert stage["CacheClusterEnabled"] is False
        assert all(each["CachingEnabled"] is False for each in stage["MethodSettings"])

    def test_every_response_is_declared(self, resources: dict[str, Any]) -> None:
        api = self.only(resources, "AWS::ApiGateway::RestApi")
        method = api["Body"]["paths"]["/1/recommended-items/{user_id}"]["get"]
        responses = method["x-amazon-apigateway-integration"]["responses"].values()
        assert {each["statusCode"] for each in responses} == set(method["responses"])


class TestCommand:
    def test_a_bad_target_is_said_in_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert module.main(["--target", "ftp://x"]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_so_is_a_template_without_an_api(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "t.yaml").write_text("Resources: {}\n")
        assert module.main(["--template", str(tmp_path / "t.yaml")]) == 2
        assert "no AWS::Serverless::Api" in capsys.readouterr().err
