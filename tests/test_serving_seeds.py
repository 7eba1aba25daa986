"""Seeds that replicas agree on, derived from a secret and the request; drawn without one."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import ask, call, make_model, serving, with_app
from support import DRAWS, N_DRAWS, assert_independent, assert_ordered_law

import fastrank as fr
from fastrank import reference
from fastrank.eventlog import LogReader
from fastrank.ope import audit
from fastrank.policies.spec import parse_stated, written
from fastrank_serving.app import App
from fastrank_serving.messages import parse
from fastrank_serving.secret import Secret
from fastrank_serving.seeds import derived_seed

KEY = b"00112233445566778899aabbccddeeff"
SECRET = Secret(KEY)
OTHER = Secret(KEY[::-1])
TYPE = "stochastic_gumbel_softmax_trick"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seeds") / "model"
    make_model(directory, policy=fr.PlackettLuce(0.5))
    return directory


def by_hand(*parts: bytes) -> int:
    """The recipe of docs/reference/seeds.md, in other words."""
    message = b"".join(struct.pack("<Q", len(part)) + part for part in (b"seed", *parts))
    return int(hmac.new(KEY, message, hashlib.sha256).hexdigest(), 16) % 2**53


def test_a_seed_is_what_the_recipe_says(model: Path) -> None:
    known = fr.Model.open(model)
    version = known.version.encode()
    no_more = b"[null,null,null,null,null,null]"
    vector = [0.5] * 8

    async def work(app: App) -> None:
        found = (await ask(app, user_id="u1", request_id="r", k=3)).json()
        policy = f"{TYPE}:temperature=0.5".encode()
        parts = [b"user", b"u1", b"r", version, policy, b"3", no_more]
        assert found["seed_source"] == "derived"
        assert found["seed"] == by_hand(*parts)
        again = known.recommend("u1", 3, policy=fr.PlackettLuce(0.5), seed=found["seed"])
        assert found["item_ids"] == again.item_ids.tolist()

        asked = {"query": vector, "request_id": "q", "inference_type": "uniform"}
        more: dict[str, Any] = {"exclude": [3, "4"], "score": "dot + w", "params": {"w": 1}}
        found = (await ask(app, **asked, **more)).json()
        rest = b'[[3,"4"],null,null,"dot + w",{"w":1.0},null]'
        query = struct.pack("<8f", *vector)
        assert found["seed"] == by_hand(b"query", query, b"q", version, b"uniform", b"10", rest)

        drawn = (await ask(app, user_id="u1")).json()  # under an id that the server drew
        parts[2:3], parts[5:6] = [drawn["request_id"].encode()], [b"10"]
        assert (drawn["seed_source"], drawn["seed"]) == ("derived", by_hand(*parts))

        own = (await ask(app, user_id="u1", seed=5)).json()
        assert (own["seed_source"], own["seed"]) == ("caller", 5)

    with_app(model, work, secret=SECRET)


def test_bits_of_a_seed_are_pinned() -> None:
    """Another value would be another ranking under every request id that was ever sent again."""
    request = parse(b'{"user_id": "ann", "k": 10}')
    seed = derived_seed(
        SECRET,
        request,
        np.zeros(0, np.float32),
        request_id="r-1",
        model_version="m",
        policy=fr.PlackettLuce(0.1),
    )
    no_more = b"[null,null,null,null,null,null]"
    policy = f"{TYPE}:temperature=0.1".encode()
    assert seed == by_hand(b"user", b"ann", b"r-1", b"m", policy, b"10", no_more)
    assert seed == 7110889437774504


def seed_by(
    body: dict[str, Any], *, model: str = "m", policy: fr.Policy | None = None, secret: Any = SECRET
) -> int:
    request = parse(json.dumps({"request_id": "r", "k": 5, **body}).encode())
    query = np.array(request.query or [], np.float32)
    named = policy or fr.PlackettLuce(0.5)
    assert request.request_id is not None
    return derived_seed(
        secret, request, query, request_id=request.request_id, model_version=model, policy=named
    )


def test_whatever_decides_a_list_is_in_its_seed() -> None:
    """One value of each, and every two of these differ."""
    user = {"user_id": "ann"}
    seeds = [
        seed_by(user),
        seed_by(user, secret=OTHER),
        seed_by(user, model="n"),
        seed_by(user, policy=fr.PlackettLuce(0.5, sampler="sequential")),
        seed_by(user, policy=fr.PlackettLuce(0.25)),
        seed_by(user, policy=fr.BestFirst(1, fr.PlackettLuce(0.5))),
        seed_by({"user_id": "bob"}),
        seed_by({"user_id": "annr", "request_id": "m"}),
        seed_by({"user_id": "an", "request_id": "nr"}),
        seed_by({"query": [1.0]}),
        seed_by({"query": [1.0, 0.0]}),
        seed_by({**user, "k": 6}),
        seed_by({**user, "request_id": "s"}),
        seed_by({**user, "exclude": [1]}),
        seed_by({**user, "exclude": [2]}),
        seed_by({**user, "allow": [1]}),
        seed_by({**user, "after": [1]}),
        seed_by({**user, "score": "dot + 1"}),
        seed_by({**user, "params": {"w": 1}}),
        seed_by({**user, "rules": "home"}),
        seed_by({**user, "rules": {"cap": {"seller": 2}}}),
    ]
    assert len({*seeds}) == len(seeds)
    assert max(seeds) < 2**53
    assert seed_by(user) == seeds[0]


def test_policies_are_written_as_they_are_read() -> None:
    policies = [fr.policy(name) for name in fr.INFERENCE_TYPES]
    policies += [fr.BestFirst(3, fr.PlackettLuce(0.1 + 0.2)), fr.EpsilonGreedy(1 / 3)]
    for policy in policies:
        assert parse_stated(written(policy)).completed() == policy
    assert len({written(policy) for policy in policies}) == len(policies)


class TestReplicas:
    ASKED = (
        b'{"user_id": "u1", "request_id": "a"}',
        b'{"user_id": "u2", "request_id": "b", "k": 3, "inference_type": "uniform"}',
        b'{"query": [1, 0, 0, 1, 0, 0, 1, 0], "request_id": "c", "exclude": [1, 2]}',
        b'{"gateway": {"user_id": "u3", "request_id": "d", "k": "4"}}',
    )

    def bodies(self, model: Path, **settings: Any) -> list[bytes]:
        async def work(app: App) -> list[bytes]:
            replies = [await call(app, "POST", "/invocations", body) for body in self.ASKED]
            assert [reply.status for reply in replies] == [200] * len(replies)
            return [reply.body for reply in replies]

        return with_app(model, work, **settings)

    def test_those_with_one_secret_give_one_answer(self, model: Path) -> None:
        first = self.bodies(model, secret=SECRET)
        assert self.bodies(model, secret=Secret(KEY), keep_answers=0, threads=1) == first
        other = self.bodies(model, secret=OTHER)
        assert all(a != b for a, b in zip(first, other, strict=True))
        assert all(a != b for a, b in zip(first, self.bodies(model), strict=True))

    def test_kept_answers_are_a_cache(self, model: Path, tmp_path: Path) -> None:
        """Of what replicas log of one request, the reader takes one row; nothing is wrong."""
        log = tmp_path / "log"

        async def work() -> None:
            settings: dict[str, Any] = {"log_directory": log, "secret": SECRET}
            async with serving(model, **settings) as one, serving(model, **settings) as two:
                for app in (one, two, one):
                    reply = await ask(app, user_id="u1", request_id="r")
                    assert reply.status == 200
            async with serving(model, **settings, keep_answers=0) as three:
                assert (await ask(three, user_id="u1", request_id="r")).body == reply.body

        asyncio.run(work())
        reader = LogReader(log)
        (batch,) = reader
        assert (len(batch), reader.report.equal_duplicates, reader.report.set_aside) == (1, 2, {})
        assert batch.values("seed_source") == ["derived"]
        assert not batch.caller_seed.any()

    def test_another_model_is_another_answer(self, model: Path, tmp_path: Path) -> None:
        other = tmp_path / "model"
        make_model(other, policy=fr.PlackettLuce(0.5), seed=1)

        async def seed(app: App) -> int:
            found: int = (await ask(app, user_id="u1", request_id="r")).json()["seed"]
            return found

        assert with_app(model, seed, secret=SECRET) != with_app(other, seed, secret=SECRET)


def test_an_audit_takes_derived_seeds_for_nobodys(model: Path, tmp_path: Path) -> None:
    async def work(app: App) -> None:
        for j in range(120):
            await ask(app, user_id=f"u{j % 20}", request_id=f"r{j}")

    with_app(model, work, secret=SECRET, log_directory=tmp_path / "log")
    found = audit(LogReader(tmp_path / "log"), [fr.Model.open(model)])
    checks = {check.name: check for check in found.checks}
    for name in ("propensities", "seeds draw", "mean weight"):
        assert (checks[name].outcome, checks[name].rows) == ("passed", 120), checks[name]


class TestLaw:
    """Rankings by derived seeds follow Plackett-Luce, and neighbours are independent.

    Two comparisons by the guards of support.py, at its `LIMIT` of 1e-9 each.
    """

    SCORES = np.array([1.0, 0.5, 0.0, -0.5], np.float32)

    def orders(self, request_id: Callable[[int], str], n: int = N_DRAWS) -> Any:
        policy = fr.PlackettLuce(0.8)
        ids = np.arange(len(self.SCORES))
        return np.array(
            [
                fr.rank_scores(
                    ids,
                    self.SCORES,
                    2,
                    policy=policy,
                    seed=seed_by({"user_id": "ann", "request_id": request_id(j)}, policy=policy),
                ).item_ids
                for j in range(max(200, int(n * DRAWS)))
            ]
        )

    def test_they_follow_it_over_request_ids(self) -> None:
        policy = fr.PlackettLuce(0.8)
        orders = self.orders(lambda j: f"request-{j}")
        assert_ordered_law(orders, self.SCORES, 2, policy)
        law = reference.ranking_law(self.SCORES, 2, policy)
        assert_independent(orders[:-1, 0], orders[1:, 0], law)

    def test_seeds_that_neighbours_share_are_rejected(self) -> None:
        law = reference.ranking_law(self.SCORES, 2, fr.PlackettLuce(0.8))
        orders = self.orders(lambda j: f"request-{j // 2}", n=2000)
        with pytest.raises(AssertionError):
            assert_independent(orders[:-1, 0], orders[1:, 0], law)
