"""The app without a network: SageMaker's contract, repeated requests, the log, reloads."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import ask, call, make_model, serving, with_app

import fastrank as fr
from fastrank.eventlog import LogReader, LogWriter
from fastrank.policies import short_name
from fastrank_serving.app import App, create_app
from fastrank_serving.service import _Answers
from fastrank_serving.settings import Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served") / "model"
    make_model(directory)
    return directory


def test_an_answer_is_a_log_row(model: Path) -> None:
    known = fr.Model.open(model)

    async def work(app: App) -> None:
        reply = await ask(app, user_id="u3", k=4, seed=7, request_id="r")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert reply.headers["cache-control"] == "no-store"
        found = reply.json()
        ranking = known.recommend("u3", 4, policy=fr.PlackettLuce(), seed=7)
        assert found == {
            "request_id": "r",
            "request_id_source": "body",
            "user_id": "u3",
            "item_kind": "int64",
            "item_ids": ranking.item_ids.tolist(),
            "scores": ranking.scores.tolist(),
            "log_propensities": ranking.log_propensities.tolist(),
            "log_propensity": ranking.log_propensity,
            "log_norm": ranking.log_norm,
            "propensity_kind": "exact",
            "log_norm_error": 0.0,
            "k": 4,
            "policy": {"name": "stochastic_gumbel_softmax_trick", "params": {"temperature": 1.0}},
            "seed": 7,
            "seed_source": "caller",
            "rng_version": fr.RNG_VERSION,
            "n_eligible": 200,
            "made_by": "pass",
            "n_scored": 200,
            "model_version": known.version,
            "catalog_version": known.catalog.version,
            "is_fallback": False,
        }

    with_app(model, work)


@pytest.mark.parametrize("inference_type", fr.INFERENCE_TYPES)
def test_every_inference_type(model: Path, inference_type: str) -> None:
    known = fr.Model.open(model)

    async def work(app: App) -> None:
        options = {"epsilon": 0.2} if "epsilon" in inference_type else {}
        reply = await ask(app, user_id="u1", inference_type=inference_type, **options)
        found = reply.json()
        assert found["policy"]["name"] == inference_type
        assert found["seed_source"] == "server"
        policy = fr.policy(inference_type, **found["policy"]["params"])
        again = known.recommend("u1", 10, policy=policy, seed=found["seed"])
        assert again.item_ids.tolist() == found["item_ids"]
        assert again.log_propensities.tolist() == found["log_propensities"]

    with_app(model, work)


def test_a_policy_by_its_short_name(model: Path) -> None:
    """In a body, in a URL and in a setting; what is answered and counted is the inference type."""

    async def work(app: App) -> None:
        names = {name: short_name(name) for name in fr.INFERENCE_TYPES}
        for name, short in names.items():
            asked = {"user_id": "u1", "k": 3, "seed": 5}
            found = (await ask(app, **asked, inference_type=short)).json()
            same = (await ask(app, **asked, inference_type=name)).json()
            query = f"k=3&seed=5&inference_type={short}"
            by_url = (await call(app, "GET", "/1/recommended-items/u1", query=query)).json()
            assert found["policy"]["name"] == name
            for each in (same, by_url):
                assert each == found | {"request_id": each.get("request_id")}
        refused = await ask(app, user_id="u1", inference_type="placket_luce")
        assert refused.status == 422
        assert refused.error["message"].endswith("(nearest: plackett_luce)")
        document = (await call(app, "GET", "/openapi.json")).json()
        field = document["components"]["schemas"]["UserRequest"]["properties"]["inference_type"]
        (enum,) = (each["enum"] for each in field["anyOf"] if "enum" in each)
        assert set(enum) == {*names, *names.values()}
        assert refused.error["allowed"] == enum
        assert "plackett_luce_sequential (stochastic_plackett_luce): " in field["description"]
        app.service.tick()
        metrics = (await call(app, "GET", "/metrics")).body.decode()
        counted = set(re.findall(r'fastrank_requests_total\{inference_type="(\w+)"', metrics))
        assert counted <= set(names)
        assert "stochastic_gumbel_softmax_trick" in counted

    with_app(model, work)


def test_filters_and_queries(model: Path) -> None:
    known = fr.Model.open(model)
    query = known.user_vector("u2")

    async def work(app: App) -> None:
        reply = await ask(
            app,
            query=query.tolist(),
            exclude=["5", 6],
            allow=list(range(12)),
            inference_type="uniform",
        )
        found = reply.json()
        assert found["n_eligible"] == 10
        assert set(found["item_ids"]) == set(range(12)) - {5, 6}
        assert found["user_id"] is None
        nothing = (await ask(app, user_id="u1", allow=[])).json()
        assert (nothing["item_ids"], nothing["n_eligible"]) == ([], 0)

    with_app(model, work)


def test_own_temperatures_are_in_the_answer(tmp_path: Path) -> None:
    make_model(tmp_path / "m", users=2, user_temperatures=[2.0, 0.5])

    async def work(app: App) -> None:
        found = (await ask(app, user_id="u0", temperature=0.1)).json()
        assert found["policy"]["params"] == {"temperature": 0.2, "user_temperature": 2.0}
        found = (await ask(app, user_id="u0", inference_type="deterministic")).json()
        assert found["policy"]["params"] == {}
        reply = await ask(app, user_id="u0", temperature=1e6)
        assert (reply.status, reply.error["field"]) == (422, "temperature")

    with_app(tmp_path / "m", work)


def test_tables_of_the_model_serve_known_users(tmp_path: Path) -> None:
    """By "auto" those at the tables' temperature, and nobody else; by "cached" one is made."""
    directory = tmp_path / "m"
    make_model(directory, n=2000, user_temperatures=np.linspace(0.5, 2.0, 20))
    fr.Model.open(directory).with_tables(fr.PlackettLuce(0.3)).save(directory)
    known = fr.Model.open(directory)
    auto = "stochastic_plackett_luce_auto"

    async def work(app: App) -> None:
        def same(found: dict[str, Any], sampler: Any) -> bool:
            policy = fr.PlackettLuce(found["policy"]["params"]["temperature"], sampler)
            vector = known.user_vector(found["user_id"])
            again = known.catalog.rank(vector, policy=policy, seed=found["seed"])
            return bool(again.item_ids.tolist() == found["item_ids"])

        for user, temperature, made_by in (("u3", 0.3, "table"), ("u4", 0.4, "pass")):
            reply = await ask(app, user_id=user, temperature=temperature, inference_type=auto)
            found = reply.json()
            assert (found["made_by"], found["policy"]["name"]) == (made_by, auto)
            assert found["policy"]["params"]["user_temperature"] == known.user_temperature(user)
            assert same(found, "cached" if made_by == "table" else "gumbel")
        query = known.user_vector("u3").tolist()
        by_query = await ask(app, query=query, temperature=0.3, inference_type=auto)
        assert by_query.json()["made_by"] == "pass"
        app.service.tick()
        page = (await call(app, "GET", "/metrics")).body.decode()
        assert 'fastrank_rankings_total{made_by="table"} 1.0' in page
        assert "fastrank_tables_made 0.0" in page
        cached = "stochastic_plackett_luce_cached"
        for _ in range(2):
            found = (await ask(app, user_id="u4", temperature=0.4, inference_type=cached)).json()
            assert found["made_by"] == "table"
            assert found["n_scored"] < 2000
            assert same(found, "cached")
        app.service.tick()
        page = (await call(app, "GET", "/metrics")).body.decode()
        assert "fastrank_tables_made 1.0" in page
        kept = float(page.partition("\nfastrank_table_bytes ")[2].partition("\n")[0])
        assert 0 < kept < 10_000

    with_app(directory, work)


@pytest.mark.parametrize(
    ("request_", "status", "code", "field"),
    [
        ({"user_id": "nobody"}, 404, "unknown_user", "user_id"),
        ({"user_id": "u1", "k": 0}, 422, "out_of_range", "k"),
        ({"user_id": "u1", "k": 1001}, 422, "out_of_range", "k"),
        ({"user_id": "u1", "exclude": ["x"]}, 422, "invalid_value", "exclude"),
        ({"user_id": "u1", "exclude": [2**63]}, 422, "invalid_value", "exclude"),
        ({"user_id": "u1", "allow": list(range(30))}, 422, "out_of_range", "allow"),
        ({"query": [1.0]}, 422, "invalid_value", "query"),
        ({"user_id": "u1", "inference_type": "x"}, 422, "unknown_inference_type", "inference_type"),
        ({"user_id": "u1", "nobody": 1}, 400, "unknown_field", "nobody"),
    ],
)
def test_errors(
    model: Path, request_: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    async def work(app: App) -> None:
        reply = await ask(app, **request_)
        assert (reply.status, reply.error["code"], reply.error["field"]) == (status, code, field)
        assert reply.headers["content-type"] == "application/json"

    with_app(model, work, max_ids=20)


def test_text_ids(tmp_path: Path) -> None:
    make_model(tmp_path / "m", text=True)

    async def work(app: App) -> None:
        found = (await ask(app, user_id="u1", exclude=["item 3"])).json()
        assert found["n_eligible"] == 199
        assert all(item.startswith("item ") for item in found["item_ids"])
        reply = await ask(app, user_id="u1", exclude=[3])
        assert (reply.status, reply.error["field"]) == (422, "exclude")

    with_app(tmp_path / "m", work)


def test_integer_users(tmp_path: Path) -> None:
    catalog = fr.Catalog([1, 2], [[1.0], [2.0]])
    fr.Model(catalog, [10, 11], [[1.0], [2.0]]).save(tmp_path / "m")

    async def work(app: App) -> None:
        assert (await ask(app, user_id="11")).status == 200
        for wrong in ("011", "x", "12", "1e1", "11 "):
            assert (await ask(app, user_id=wrong)).status == 404
        assert (await ask(app, user_id=11)).status == 400

    with_app(tmp_path / "m", work)


def test_a_catalog_alone_wants_queries(tmp_path: Path) -> None:
    fr.Catalog([1, 2], [[1.0], [2.0]]).save(tmp_path / "m")

    async def work(app: App) -> None:
        assert (await ask(app, query=[1.0])).status == 200
        assert (await ask(app, user_id="a")).status == 404

    with_app(tmp_path / "m", work)


@pytest.mark.parametrize(
    ("is_text", "asked", "words"),
    [
        (True, {"user_id": 1}, 'user_id: expected text, got the number 1; send "1"'),
        (False, {"user_id": 1}, 'user_id: expected text, got the number 1; send "1"'),
        (False, {"user_id": "ann"}, "know 'ann': its user ids are integers of 64 bits, written as"),
        (False, {"user_id": "01"}, "know '01': its user ids are integers of 64 bits, written as"),
        (False, {"user_id": "3"}, "user_id: the model does not know '3'"),
        (False, {"user_id": "1", "exclude": ["a"]}, "exclude: expected integers of 64 bits, "),
        (True, {"user_id": "ann", "exclude": [1]}, 'without NUL at its end, such as "1"; got 1'),
        (True, {"user_id": "ann", "after": [1]}, 'without NUL at its end, such as "1"; got 1'),
        (True, {"user_id": "ann", "exclude": ["1"]}, None),
        (False, {"user_id": "1", "exclude": ["10", 20]}, None),
    ],
)
def test_ids_of_another_kind_are_told_what_to_send(
    tmp_path: Path, is_text: bool, asked: dict[str, Any], words: str | None
) -> None:
    """User ids are text, whatever the model's are; item ids of integers may be either."""
    items: Any = ["x", "y", "z"] if is_text else [10, 20, 30]
    users: Any = ["ann", "bob"] if is_text else [1, 2]
    vectors = np.eye(3, 2)
    fr.Model(fr.Catalog(items, vectors), users, vectors[:2]).save(tmp_path / "m")

    async def work(app: App) -> None:
        reply = await ask(app, **asked)
        if words is None:
            assert reply.status == 200, reply.body
        else:
            assert words in reply.error["message"]

    with_app(tmp_path / "m", work)


def test_another_method_is_told_which_is_expected(model: Path) -> None:
    async def work(app: App) -> None:
        for method, path, words in (
            ("GET", "/invocations", "expected POST"),
            ("HEAD", "/1/recommended-items/u1", ""),
            ("POST", "/version", "takes another one"),
        ):
            reply = await call(app, method, path)
            assert reply.status == 405
            assert not words or words in reply.error["message"]

    with_app(model, work)


def test_unknown_users_may_have_a_fallback(model: Path) -> None:
    async def work(app: App) -> None:
        found = (await ask(app, user_id="nobody", k=2, inference_type="deterministic")).json()
        assert found["is_fallback"] is True
        assert found["policy"] == {"name": "uniform", "params": {}}
        assert found["log_propensities"] == pytest.approx([-np.log(200), -np.log(199)])
        assert (await ask(app, user_id="u1")).json()["is_fallback"] is False

    with_app(model, work, fallback=fr.Uniform())


def test_a_fallback_ranks_by_the_bias(tmp_path: Path) -> None:
    """Popularity, say: exactly the law of a user whose vector is 0."""
    bias = np.log([1.0, 2.0, 3.0, 4.0])
    catalog = fr.Catalog([10, 20, 30, 40], np.ones((4, 2)), bias)
    fr.Model(catalog, ["ann"], [[1.0, 1.0]]).save(tmp_path / "m")

    async def work(app: App) -> None:
        found = (await ask(app, user_id="nobody", k=4, seed=3)).json()
        assert found["is_fallback"] is True
        weights = {item: item / 10 for item in (10, 20, 30, 40)}
        left = sum(weights.values())
        for item, got in zip(found["item_ids"], found["log_propensities"], strict=True):
            assert got == pytest.approx(np.log(weights[item] / left), abs=1e-6)
            left -= weights[item]

    with_app(tmp_path / "m", work, fallback=fr.PlackettLuce())


# ---- SageMaker ------------------------------------------------------------------------------


def test_ping_is_readiness(model: Path) -> None:
    async def work() -> None:
        app = create_app(Settings(model=model, threads=1))
        assert (await call(app, "GET", "/ping")).status == 503
        assert (await call(app, "GET", "/livez")).status == 200
        reply = await ask(app, user_id="u1")
        assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (
            503, "not_ready", "1",
        )  # fmt: skip
        await app.service.start()
        reply = await call(app, "GET", "/ping")
        assert (reply.status, reply.body) == (200, b"")
        app.service.draining = True
        assert (await call(app, "GET", "/ping")).status == 503
        # What still comes is answered, on a connection that ends.
        reply = await ask(app, user_id="u1")
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await app.service.close()

    asyncio.run(work())


@pytest.mark.parametrize("damage", ["nothing there", "no file", "another law"])
def test_a_model_that_cannot_serve_is_never_ready(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "m"
    if damage == "nothing there":
        directory.mkdir()
    elif damage == "no file":
        make_model(directory)
        next(directory.glob("*user_vectors*")).unlink()
    else:
        make_model(directory)
        monkeypatch.setattr(fr.Catalog, "log_propensities", lambda *_, **__: np.full(10, -1.0))

    async def work() -> None:
        app = create_app(Settings(model=directory, threads=1))
        with pytest.raises((ValueError, OSError)):
            await app.service.start()
        assert (await call(app, "GET", "/ping")).status == 503
        await app.service.close()

    asyncio.run(work())


def test_headers_of_sagemaker(model: Path) -> None:
    async def work(app: App) -> None:
        async def post(**headers: str) -> Any:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await call(
                app, "POST", "/invocations", '{"user_id": "u1"}',
                {"content-type": "application/json", **named},
            )  # fmt: skip

        reply = await post(X_Amzn_SageMaker_Custom_Attributes="trace=1")
        assert reply.headers["x-amzn-sagemaker-custom-attributes"] == "trace=1"
        reply = await post(X_Amzn_SageMaker_Custom_Attributes="a" * 1025)
        assert "x-amzn-sagemaker-custom-attributes" not in reply.headers
        reply = await post(X_Amzn_SageMaker_Inference_Id="inference")
        assert reply.json()["inference_id"] == "inference"
        reply = await post(X_Amzn_SageMaker_Inference_Id="i" * 257)
        assert (reply.status, reply.error["code"]) == (422, "invalid_value")
        reply = await post(X_Nobody_Knows="this")
        assert reply.status == 200

    with_app(model, work)


def test_content_types(model: Path) -> None:
    async def work(app: App) -> None:
        for kind, status in (
            ("application/json; charset=utf-8", 200),
            ("Application/JSON", 200),
            ("text/csv", 415),
            ("application/x-npy", 415),
        ):
            reply = await call(
                app, "POST", "/invocations", '{"user_id": "u1"}', {"content-type": kind}
            )
            assert reply.status == status
        reply = await call(app, "POST", "/invocations", '{"user_id": "u1"}', {})
        assert reply.status == 200
        for coding, status in (("gzip", 415), ("br, gzip", 415), ("identity", 200)):
            headers = {"content-type": "application/json", "content-encoding": coding}
            reply = await call(app, "POST", "/invocations", '{"user_id": "u1"}', headers)
            assert reply.status == status
            assert status == 200 or reply.error["field"] == "content-encoding"

    with_app(model, work)


@pytest.mark.parametrize("parts", [1, 3])
def test_bodies_have_a_limit(model: Path, parts: int) -> None:
    async def work(app: App) -> None:
        body = json.dumps({"user_id": "u1", "exclude": list(range(100))})
        assert (await call(app, "POST", "/invocations", body, parts=parts)).status == 413
        length = {"content-type": "application/json", "content-length": "1000000"}
        assert (await call(app, "POST", "/invocations", "{}", length, parts=2)).status == 413
        assert (await call(app, "POST", "/invocations", '{"user_id": "u1"}', parts=5)).status == 200

    with_app(model, work, max_body=200)


def test_batch_transform(model: Path) -> None:
    async def work(app: App) -> None:
        lines = [
            json.dumps({"user_id": f"u{i % 25}", "k": 2, "request_id": f"r{i}"}) for i in range(300)
        ]
        lines[7] = "not JSON"
        lines[9] = ""
        reply = await call(
            app, "POST", "/invocations", "\n".join(lines) + "\n",
            {"content-type": "application/jsonlines"},
        )  # fmt: skip
        assert (reply.status, reply.headers["content-type"]) == (200, "application/jsonlines")
        found = [json.loads(line) for line in reply.body.decode().splitlines()]
        assert len(found) == 300
        for i, each in enumerate(found):
            if i in (7, 9):
                assert each["error"]["code"] == "malformed_json"
            elif i % 25 >= 20:
                assert each["error"]["code"] == "unknown_user"
            else:
                assert (each["request_id"], each["user_id"]) == (f"r{i}", f"u{i % 25}")
        reply = await call(app, "GET", "/execution-parameters")
        assert reply.json() == {
            "MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6,
        }  # fmt: skip

    with_app(model, work, queue=8)


# ---- Besides --------------------------------------------------------------------------------


def test_batches_have_limits_and_let_others_in(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = {"content-type": "application/jsonlines"}

    async def work(app: App) -> None:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        beside = asyncio.create_task(others())
        body = '{"user_id": "u1", "inference_type": "uniform", "k": 1}\n' * 10_000
        assert (await call(app, "POST", "/invocations", body, lines)).status == 200
        beside.cancel()
        assert turns > 10  # not once at the end
        reply = await call(app, "POST", "/invocations", "\n" * 100_001, lines)
        assert (reply.status, reply.error["code"]) == (413, "too_many_lines")
        monkeypatch.setattr("fastrank_serving.app._ANSWERS_BYTES", 10_000)
        reply = await call(app, "POST", "/invocations", body, lines)
        assert (reply.status, reply.error["code"]) == (413, "answers_too_large")

    with_app(model, work)


def test_recommended_items(model: Path) -> None:
    async def work(app: App) -> None:
        path = "/1/recommended-items/u1"
        reply = await call(app, "GET", path, query="k=3&inference_type=deterministic&seed=")
        posted = await ask(app, user_id="u1", k=3, inference_type="deterministic")
        assert reply.json()["item_ids"] == posted.json()["item_ids"]
        assert reply.headers["cache-control"] == "no-store"
        for query, code in (
            ("k=x", "invalid_type"),
            ("k=1&k=2", "duplicate_field"),
            ("user_id=u2", "duplicate_field"),
            ("nobody=1", "unknown_field"),
        ):
            reply = await call(app, "GET", path, query=query)
            assert (reply.status, reply.error["code"]) == (400, code)
        for user in ("no one", "u1\n", "\nu1", "u\n1", "u1/"):  # as it stands there, to the end
            reply = await call(app, "GET", f"/1/recommended-items/{user}")
            assert (reply.status, reply.error["value"]) == (404, user)

    with_app(model, work)


def test_nothing_else_is_there(model: Path) -> None:
    async def work(app: App) -> None:
        for method, path, status in (
            ("GET", "/nowhere", 404),
            ("GET", "/invocations", 405),
            ("POST", "/ping", 405),
            ("DELETE", "/version", 405),
            ("GET", "/../../etc/passwd", 404),
            ("POST", "/-/reload", 404),
            ("GET", "/livez/", 404),  # no redirect to where the Host header says
            ("HEAD", "/1/recommended-items/u1", 405),  # nobody would see the ranking
        ):
            reply = await call(app, method, path)
            assert (reply.status, set(reply.json())) == (status, {"error"})

    with_app(model, work)


def test_a_repeated_request_gets_the_first_answer(model: Path) -> None:
    async def work(app: App) -> None:
        first = (await ask(app, user_id="u1", request_id="a")).body
        assert (await ask(app, user_id="u1", request_id="a")).body == first
        assert (await ask(app, user_id="u1", request_id="b")).body != first
        by_header = {"content-type": "application/json", "x-amzn-sagemaker-inference-id": "a"}
        again = await call(app, "POST", "/invocations", '{"user_id": "u1"}', by_header)
        assert again.body != first  # a label, which many may share
        other = await ask(app, user_id="u2", request_id="a")
        assert (other.status, other.error["code"]) == (409, "request_id_taken")
        both = await asyncio.gather(*(ask(app, user_id="u1", request_id="c") for _ in range(5)))
        assert len({reply.body for reply in both}) == 1
        # A failure is not an answer.
        assert (await ask(app, user_id="nobody", request_id="d")).status == 404
        assert (await ask(app, user_id="u1", request_id="d")).status == 200
        for i in range(10):  # more than are kept
            await ask(app, user_id="u1", request_id=f"e{i}")
        assert (await ask(app, user_id="u1", request_id="a")).body != first

    with_app(model, work, keep_answers=5)


def test_an_answer_that_takes_long_does_not_keep_the_others() -> None:
    async def work() -> None:
        answers = _Answers(5)
        slow = answers.begin("slow", 1)
        for i in range(20):
            answers.begin(str(i), 1)
            answers.keep(str(i), b"body")
        assert answers.get("slow", 1) is slow
        assert [i for i in range(20) if answers.get(str(i), 1)] == [15, 16, 17, 18, 19]
        answers.keep("slow", b"slow")
        assert await slow == b"slow"
        assert answers.get("15", 1) is None

    asyncio.run(work())


_SAME = (
    *("item_ids", "log_propensities", "log_propensity", "seed", "seed_source", "k", "n_eligible"),
    *("model_version", "catalog_version", "is_fallback", "user_id"),
)


def test_every_answer_is_logged(model: Path, tmp_path: Path) -> None:
    async def work(app: App) -> list[Any]:
        asked: list[dict[str, Any]] = [
            {"user_id": "u1"},
            {"user_id": "u2", "exclude": [1, 2], "k": 3},
            {"query": [0.5] * 8, "seed": 5},
            {"user_id": "nobody"},
            {"user_id": "u3", "inference_type": "deterministic"},
        ]
        return [(await ask(app, **each)).json() for each in asked]

    found = with_app(model, work, log_directory=tmp_path / "log", fallback=fr.Uniform())
    reader = LogReader(tmp_path / "log")
    rows = {row["request_id"]: row for batch in reader for row in batch.table.to_pylist()}
    assert len(rows) == 5
    for answer in found:
        row = rows[answer["request_id"]]
        for name in _SAME:
            assert row[name] == answer[name], name
        assert row["policy_name"] == answer["policy"]["name"]
        assert row["latency_us"] > 0
    assert rows[found[0]["request_id"]]["query"] is None  # the model knows the user
    assert rows[found[2]["request_id"]]["query"] == [0.5] * 8
    assert rows[found[1]["request_id"]]["exclude"] == [1, 2]


def test_a_row_that_the_log_does_not_take_is_counted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps no other from being logged."""

    async def work(app: App) -> tuple[list[str], str]:
        log = app.service.log
        assert log is not None
        append = log.append

        def picky(*given: Any, **row: Any) -> str:
            if row["user_id"] == "u2":
                raise RuntimeError("not this one")
            return append(*given, **row)

        monkeypatch.setattr(log, "append", picky)
        ids = [(await ask(app, user_id=f"u{i}")).json()["request_id"] for i in (1, 2, 3)]
        app.service.tick()
        return [ids[0], ids[2]], (await call(app, "GET", "/metrics")).body.decode()

    kept, page = with_app(model, work, log_directory=tmp_path / "log")
    rows = [row for batch in LogReader(tmp_path / "log") for row in batch.table.to_pylist()]
    assert [row["request_id"] for row in rows] == kept
    assert "fastrank_log_rows_refused_total 1.0" in page


def test_who_asks_for_a_reload_meanwhile_shares_the_next_one(model: Path) -> None:
    async def work(app: App) -> None:
        before = await call(app, "GET", "/metrics")
        first = asyncio.create_task(app.service.reload())
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # it has begun, and may have looked at the directory
        assert len({*await asyncio.gather(first, *(app.service.reload() for _ in range(50)))}) == 1
        after = await call(app, "GET", "/metrics")
        name = 'fastrank_reloads_total{outcome="loaded"}'
        counts = [
            re.search(rf"^{re.escape(name)} (.*)$", each.body.decode(), re.M)
            for each in (before, after)
        ]
        assert [float(each[1]) for each in counts if each] == [1.0, 3.0]

    with_app(model, work)


@pytest.mark.parametrize("has_log", [True, False])
def test_a_model_of_the_other_kind_of_ids_is_not_loaded_beside_a_log(
    tmp_path: Path, has_log: bool
) -> None:
    """The log would take none of its rows."""
    directory = tmp_path / "m"
    make_model(directory)

    async def work() -> None:
        log = tmp_path / "log" if has_log else None
        async with serving(directory, log_directory=log) as app:
            assert (await ask(app, user_id="u1")).json()["item_kind"] == "int64"
            make_model(directory, text=True)
            reply = await call(app.administer, "POST", "/-/reload")
            assert reply.status == (409 if has_log else 200)
            if has_log:
                assert "--log" in reply.error["message"]
            kind = (await ask(app, user_id="u1")).json()["item_kind"]
            assert kind == ("int64" if has_log else "str")
        if log is not None:
            assert sum(len(batch.table) for batch in LogReader(log)) == 2

    asyncio.run(work())


def test_a_log_of_the_other_kind_of_ids_is_refused_at_the_start(tmp_path: Path) -> None:
    """It would take no row."""
    make_model(tmp_path / "m", text=True)
    with LogWriter(tmp_path / "log", kind="int64") as log:
        log.append(fr.Catalog([1, 2], [[1.0], [0.0]]).rank([1.0], 1, policy=fr.Uniform()))

    async def work() -> None:
        app = create_app(Settings(model=tmp_path / "m", log_directory=tmp_path / "log"))
        with pytest.raises(ValueError, match="the log has int64 item ids"):
            await app.service.start()
        await app.service.close()

    asyncio.run(work())


def test_a_log_that_cannot_begin_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def work() -> None:
        app = create_app(Settings(model=model, log_directory=tmp_path / "file" / "log"))
        with pytest.raises(OSError, match=r"^log: .*file/log"):
            await app.service.start()
        await app.service.close()

    asyncio.run(work())


def test_reloading(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    first = make_model(directory, seed=1)

    async def work() -> None:
        async with serving(directory) as app:
            assert (await call(app, "POST", "/-/reload")).status == 404
            assert (await call(app.administer, "GET", "/-/reload")).status == 405
            assert (await call(app.administer, "GET", "/ping")).status == 404
            before = (await ask(app, user_id="u1")).json()
            assert before["model_version"] == first.version
            second = make_model(directory, seed=2)
            assert (await ask(app, user_id="u1")).json()["model_version"] == first.version
            reply = await call(app.administer, "POST", "/-/reload")
            assert reply.json() == {"model_version": second.version}
            assert (await ask(app, user_id="u1")).json()["model_version"] == second.version
            damaged = directory / "damaged"
            for file in sorted(directory.glob("*.npy"), key=lambda each: each.stat().st_size)[:1]:
                damaged.write_bytes(file.read_bytes().replace(b"{'descr'", b"{\"descr'", 1))
                damaged.replace(file)  # its header is no Python any more
            assert (await call(app.administer, "POST", "/-/reload")).error["code"] == "not_reloaded"
            for file in directory.iterdir():  # the mapped files live on without their names
                file.unlink()
            reply = await call(app.administer, "POST", "/-/reload")
            assert (reply.status, reply.error["code"]) == (409, "not_reloaded")
            assert (await ask(app, user_id="u1")).json()["model_version"] == second.version
            assert (await call(app, "GET", "/ping")).status == 200

    asyncio.run(work())


def test_metrics(model: Path, tmp_path: Path) -> None:
    async def work(app: App) -> str:
        for _ in range(3):
            await ask(app, user_id="u1", inference_type="deterministic")
        await ask(app, user_id="nobody")
        await ask(app, user_id="u1", request_id="a")
        await ask(app, user_id="u1", request_id="a")
        assert app.service.log is not None
        app.service.tick()
        app.service.log.flush()
        return (await call(app, "GET", "/metrics")).body.decode()

    page = with_app(model, work, log_directory=tmp_path / "log")
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert lines['fastrank_requests_total{inference_type="deterministic",status="200"}'] == "3.0"
    assert lines['fastrank_requests_total{inference_type="",status="404"}'] == "1.0"
    assert lines["fastrank_repeated_requests_total"] == "1.0"
    assert lines['fastrank_request_seconds_count{part="total"}'] == "4.0"
    assert lines["fastrank_log_rows_written"] == "4.0"
    version = fr.Model.open(model).version
    assert lines[f'fastrank_model_info{{version="{version}"}}'] == "1.0"


def test_version_and_openapi(model: Path) -> None:
    async def work(app: App) -> None:
        found = (await call(app, "GET", "/version")).json()
        assert (found["n_items"], found["dim"], found["n_users"]) == (200, 8, 20)
        assert (found["table_temperature"], found["index"]) == (None, None)
        document = (await call(app, "GET", "/openapi.json")).json()
        told = {path for path, methods in document["paths"].items() if "get" in methods}
        assert told == {
            "/1/recommended-items/{user_id}", "/ping", "/livez", "/version", "/metrics",
            "/execution-parameters",
        }  # fmt: skip
        for path in told:
            reply = await call(app, "GET", path.format(user_id="u1"))
            assert reply.status == 200
            described = document["paths"][path]["get"]["responses"]["200"].get("content", {})
            assert not reply.body or reply.headers["content-type"].split(";")[0] in described
        assert document["paths"].keys() - told == {"/invocations"}
        assert set(document["components"]["schemas"]) >= {"Request", "Answer", "Error"}

    with_app(model, work)


def malformed(rng: np.random.Generator) -> bytes:
    """A body near a right one: values of other kinds, other names, bytes that are not JSON."""
    values: list[Any] = [
        None, True, False, -1, 0, 3, 2**63, 2**64, -(2**70), 1e308, -0.5, "", "5", "u1", "nobody",
        "\x00", "\ud7ff\U0001f600", "a" * 300, [], [1], ["1", 2], [[1]], [None], [0.5] * 8,
        [1e39] * 8, ["x"] * 40, {}, {"a": 1}, "deterministic", "uniform", "NaN", "../../etc/passwd",
    ]  # fmt: skip
    names = ["user_id", "query", "k", "inference_type", "temperature", "epsilon", "exclude",
             "allow", "seed", "request_id", "gateway", "", "K", "__proto__"]  # fmt: skip
    chosen = rng.choice(len(names), rng.integers(0, 5), replace=False)
    body = {names[j]: values[int(rng.integers(len(values)))] for j in chosen}
    if rng.random() < 0.5:
        body.setdefault("user_id", "u1")
    if rng.random() < 0.1:
        body = {"gateway": body}
    content = bytearray(json.dumps(body).encode())
    for _ in range(int(rng.choice([0, 0, 0, 1, 3]))):
        at = int(rng.integers(len(content)))
        change = rng.integers(3)
        if change == 0:
            content[at] = int(rng.integers(256))
        elif change == 1:
            del content[at:]
            content += b"{"
        else:
            content[at:at] = content[: int(rng.integers(len(content)))]
    return bytes(content)


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_bodies(model: Path, count: int) -> None:
    """Answered: all, none by a 5xx or a trace, and the server goes on."""
    rng = np.random.default_rng(0)
    kinds = ("application/json", "application/jsonlines")

    async def work(app: App) -> None:
        statuses: dict[int, int] = {}
        for number in range(count):
            headers = {"content-type": kinds[number % 10 == 0]}
            reply = await call(app, "POST", "/invocations", malformed(rng), headers)
            statuses[reply.status] = statuses.get(reply.status, 0) + 1
            for line in reply.body.splitlines():
                found = json.loads(line)
                assert "Traceback" not in line.decode()
                assert ("error" in found) != ("item_ids" in found)
                if "error" in found:
                    assert found["error"]["code"] != "internal", found
        assert sum(statuses.values()) == count
        assert set(statuses) <= {200, 400, 404, 409, 422}, statuses
        assert statuses[400] > count / 10
        assert (await ask(app, user_id="u1")).status == 200

    with_app(model, work)


def test_a_damaged_model_is_no_fault_of_the_request(tmp_path: Path) -> None:
    """Its order of items or users was changed on disk, while it was served."""
    for name, place, request in (
        ("item_order", 6, {"user_id": "u3", "exclude": [6]}),
        ("user_order", 150, {"user_id": "u3"}),
    ):
        make_model(tmp_path / name, users=300)
        (file,) = (tmp_path / name).glob(f"{name}-*.npy")
        order = np.lib.format.open_memmap(file, mode="r+")

        async def work(
            app: App, order: Any = order, place: int = place, request: dict[str, Any] = request
        ) -> None:
            order[place] = 10**12
            order.flush()
            reply = await ask(app, **request)
            assert (reply.status, reply.error["code"]) == (500, "internal")

        with_app(tmp_path / name, work)


def test_a_model_whose_requests_fail_does_not_serve(tmp_path: Path) -> None:
    make_model(tmp_path / "m", users=300)
    (file,) = (tmp_path / "m").glob("user_order-*.npy")
    order = np.lib.format.open_memmap(file, mode="r+")
    order[150] = 10**12
    order.flush()

    async def work(app: App) -> None:
        raise AssertionError("it serves")

    with pytest.raises(ValueError, match=r"self-test: POST /invocations .*: 500 "):
        with_app(tmp_path / "m", work)
