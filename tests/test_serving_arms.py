"""Arms of an experiment: the split, and what a server ranks by; further policies in the log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
from click.testing import CliRunner
from served import ask, call, make_model, with_app
from support import chi_square_p_value

import fastrank as fr
from fastrank import simulate
from fastrank.calibration import expected_overlaps
from fastrank.cli.evaluate import evaluate
from fastrank.eventlog import LogReader
from fastrank.eventlog.join import join
from fastrank_serving import engine
from fastrank_serving.app import App
from fastrank_serving.arms import Armed, InForce, Regime
from fastrank_serving.secret import Secret

USERS = [f"user {i}" for i in range(20_000)]
RULED_OUT = 1e-6  # a split that is right is refused once in a million


def split(shares: dict[str, float], experiment: str = "warmer", **more: Any) -> list[str]:
    """Each user's arm."""
    arms = tuple(Armed(name, fr.Uniform(), share) for name, share in shares.items())
    law = InForce("r1", experiment, arms, **more)
    return [law.arm_of(user).name for user in USERS]


def p_value(arms: list[str], shares: dict[str, float]) -> float:
    counts = Counter(arms)
    return chi_square_p_value([counts[name] for name in shares], [*shares.values()])


class TestSplit:
    """Users and keys are fixed, so that each of these comes out as it did when it was written."""

    @pytest.mark.parametrize(
        "shares",
        [
            {"a": 0.5, "b": 0.5},
            {"a": 0.9, "b": 0.1},
            {"a": 0.2, "b": 0.3, "c": 0.5},
            {"a": 0.01, "b": 0.01, "c": 0.01, "d": 0.97},
        ],
    )
    def test_arms_have_their_shares(self, shares: dict[str, float]) -> None:
        arms = split(shares)
        assert p_value(arms, shares) > RULED_OUT
        # Two points more or less are noticed.
        wrong = shares | {"a": shares["a"] + 0.02}
        wrong["b"] = shares["b"] - 0.02 if shares["b"] > 0.02 else 0.002
        wrong = {name: share / sum(wrong.values()) for name, share in wrong.items()}
        assert p_value(arms, wrong) < RULED_OUT

    def test_experiments_and_keys_split_apart(self) -> None:
        shares = {"a": 0.5, "b": 0.5}
        first = split(shares)
        for other in (split(shares, "colder"), split(shares, key=b"another")):
            together = Counter(zip(first, other, strict=True))
            assert chi_square_p_value([*together.values()], [0.25] * 4) > RULED_OUT

    def test_releases_and_replicas_agree(self) -> None:
        assert split({"a": 0.5, "b": 0.3, "c": 0.2})[:12] == list("abbacbccaabc")

    def test_it_goes_by_the_secrets_numbers(self) -> None:
        """One definition for all that is derived: servers that have a secret split by it."""
        shares, secret = {"a": 0.5, "b": 0.3, "c": 0.2}, Secret(b"0123456789abcdef0123")

        def times(user: str) -> dict[float, str]:
            numbers = {name: secret.number("arm", "warmer", name, user) for name in shares}
            return {-np.log((numbers[n] + 0.5) / 2**53) / shares[n]: n for n in shares}

        own = [times(user)[min(times(user))] for user in USERS[:300]]
        assert split(shares, key=secret.key)[:300] == own

    def test_another_secret_is_another_revision(self) -> None:
        """It divides users anew."""
        secrets = (None, Secret(b"0123456789abcdef0123"), Secret(b"0123456789abcdef0124"))
        found = [Regime.stated("warmer", ["a=uniform@1"], secret=each) for each in secrets]
        assert len({each.revision for each in found}) == 3
        assert [each.key for each in found[1:]] == [each.key for each in secrets[1:] if each]

    def test_parts_do_not_run_into_each_other(self) -> None:
        def arms(experiment: str, user: str) -> list[str]:
            pairs = [(Armed(f"{j}", fr.Uniform(), 0.5), Armed("other", fr.Uniform(), 0.5))
                     for j in range(64)]  # fmt: skip
            return [InForce("r", experiment, pair).arm_of(user).name for pair in pairs]

        assert arms("e1", "2") != arms("e", "12")

    def test_arms_without_a_share_have_nobody(self) -> None:
        assert set(split({"a": 0.0, "b": 1.0})) == {"b"}

    @pytest.mark.parametrize(
        ("before", "after", "moved"),
        [
            # Two arms: the change of the share.
            ({"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.1}, 0.4),
            # One takes from all others in proportion; so does a new one.
            ({"a": 0.3, "b": 0.3, "c": 0.4}, {"a": 0.65, "b": 0.15, "c": 0.2}, 0.35),
            ({"a": 0.5, "b": 0.5}, {"c": 0.2, "b": 0.4, "a": 0.4}, 0.2),
            # An arm that ends leaves its users to the others.
            ({"a": 0.2, "b": 0.4, "c": 0.4}, {"b": 0.5, "c": 0.5}, 0.2),
        ],
    )
    def test_no_split_moves_fewer(
        self, before: dict[str, float], after: dict[str, float], moved: float
    ) -> None:
        """`moved` is the distance of the two laws, which any split moves at the least."""
        pairs = [*zip(split(before), split(after), strict=True)]
        share = np.mean([one != other for one, other in pairs])
        # 5 standard errors.
        assert abs(share - moved) < 5 * np.sqrt(moved * (1 - moved) / len(USERS))

    def test_users_move_to_arms_alone_that_grew_more(self) -> None:
        before = {"a": 0.5, "b": 0.3, "c": 0.2}
        after = {"c": 0.25, "a": 0.3, "b": 0.45}
        growth = {name: after[name] / before[name] for name in before}
        pairs = {*zip(split(before), split(after), strict=True)}
        assert len(pairs) > 3
        assert all(one == other or growth[one] < growth[other] for one, other in pairs)


# ---- A server -----------------------------------------------------------------------------------

ARMS = ("control=deterministic@0.5", "explore=plackett_luce:temperature=0.5@0.5")
HALVES: dict[str, Any] = {"experiment": "warmer", "arms": ARMS}
POLICIES = {"control": "deterministic", "explore": "stochastic_gumbel_softmax_trick"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("arms") / "model"
    make_model(directory, users=40, user_temperatures=np.linspace(0.5, 2.0, 40))
    return directory


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for batch in LogReader(folder) for row in batch.table.to_pylist()]


def test_answers_rows_and_metrics_say_the_arm(model: Path, tmp_path: Path) -> None:
    async def work(app: App) -> tuple[list[Any], str]:
        found = [(await ask(app, user_id=f"u{j}", k=3)).json() for j in range(40)]
        found += [(await ask(app, user_id=f"u{j}", k=2)).json() for j in range(40)]
        return found, (await call(app, "GET", "/metrics")).body.decode()

    answers, metrics = with_app(model, work, **HALVES, log_directory=tmp_path)
    rows = {row["request_id"]: row for row in rows_of(tmp_path)}
    assert len(rows) == len(answers) == 80
    of_users: dict[str, set[str]] = {}
    for each in answers:
        row = rows[each["request_id"]]
        for said in ("experiment", "arm", "revision"):
            assert row[said] == each[said], said
        assert each["policy"]["name"] == row["policy_name"] == POLICIES[each["arm"]]
        of_users.setdefault(each["user_id"], set()).add(each["arm"])
        if each["arm"] == "explore":  # the law in force is the user's
            params = each["policy"]["params"]
            assert params["temperature"] == 0.5 * params["user_temperature"]
    assert {len(arms) for arms in of_users.values()} == {1}
    assert {each["experiment"] for each in answers} == {"warmer"}
    (revision,) = {each["revision"] for each in answers}
    counts = Counter(each["arm"] for each in answers)
    assert set(counts) == {"control", "explore"}
    for arm, count in counts.items():
        line = f'fastrank_arm_requests_total{{arm="{arm}",experiment="warmer"}} {count}.0'
        assert line in metrics, metrics
    assert (
        'fastrank_revision_info{deterministic_only="false",experiment="warmer",'
        f'revision="{revision}"}} 1.0' in metrics
    )


def test_what_is_in_force_can_be_looked_up(model: Path) -> None:
    async def work(app: App) -> list[Any]:
        paths = ("/version", "/openapi.json", "/explorer/about")
        return [(await call(app, "GET", path)).json() for path in paths]

    version, openapi, about = with_app(model, work, **HALVES, also=("flat=uniform",))
    assert version["experiment"] == "warmer"
    assert version["arms"]["explore"] == {
        "share": 0.5,
        "name": POLICIES["explore"],
        "params": {"temperature": 0.5},
    }
    assert version["also"] == {"flat": {"name": "uniform", "params": {}}}
    fields = openapi["components"]["schemas"]["UserRequest"]["properties"]
    assert "the policy of the user's arm" in fields["inference_type"]["description"]
    assert about["in_force"].startswith(f"revision {version['revision']}, experiment warmer: ")
    plain = with_app(model, work, policy=fr.Uniform())
    assert (plain[0]["arms"], plain[0]["revision"], plain[2]["in_force"]) == ({}, None, "")


def test_who_names_a_policy_is_of_no_arm(model: Path, tmp_path: Path) -> None:
    """The row says the revision alone."""
    asked: list[dict[str, Any]] = [
        {"inference_type": "uniform"},
        {"inference_type": "deterministic"},
        {"temperature": 0.5},
        {"epsilon": 0.1, "inference_type": "stochastic_epsilon_greedy"},
        {"head": 1},
    ]

    async def work(app: App) -> list[Any]:
        return [(await ask(app, user_id="u1", **each)).json() for each in asked]

    answers = with_app(model, work, **HALVES, log_directory=tmp_path)
    for answer, row in zip(answers, rows_of(tmp_path), strict=True):
        assert "arm" not in answer
        assert "experiment" not in answer
        assert (row["arm"], row["experiment"]) == (None, None)
        assert row["revision"] == answer["revision"] is not None


def test_what_no_user_is_known_of_goes_by_the_request(model: Path) -> None:
    """A query has a new arm each time; one request id has one."""

    async def work(app: App) -> tuple[list[str], list[str]]:
        query = [0.1] * 8
        drawn = [(await ask(app, query=query)).json()["arm"] for _ in range(60)]
        given = [(await ask(app, query=query, request_id="r", k=k)).json()["arm"] for k in (1,) * 5]
        return drawn, given

    drawn, given = with_app(model, work, **HALVES, keep_answers=0)
    assert set(drawn) == {"control", "explore"}  # or else once in 2**59
    assert len(set(given)) == 1


@pytest.mark.parametrize("way", ["lines", "gateway", "path"])
def test_every_way_to_ask_has_the_same_arm(model: Path, way: str) -> None:
    async def work(app: App) -> tuple[list[Any], list[Any]]:
        users = [f"u{j}" for j in range(12)] + ["nobody"]
        plain = [(await ask(app, user_id=user)).json() for user in users]
        if way == "lines":
            body = "\n".join(json.dumps({"user_id": user}) for user in users)
            headers = {"content-type": "application/jsonlines"}
            reply = await call(app, "POST", "/invocations", body, headers)
            return plain, [json.loads(line) for line in reply.body.splitlines()]
        if way == "gateway":
            found = [await ask(app, gateway={"user_id": user, "request_id": ""}) for user in users]
        else:
            found = [await call(app, "GET", f"/1/recommended-items/{user}") for user in users]
        return plain, [reply.json() for reply in found]

    plain, others = with_app(model, work, **HALVES, fallback=fr.Uniform())
    arms = [each["arm"] for each in plain]
    assert [each["arm"] for each in others] == arms
    assert {*arms} == {"control", "explore"}
    # A user who is not known has an arm, and its rows say that another policy stood in.
    assert others[-1]["is_fallback"]
    assert others[-1]["policy"]["name"] == "uniform"


def test_an_overlap_is_that_of_the_models_users(model: Path) -> None:
    async def work(app: App) -> float:
        loaded = app.service.loaded
        (arm,) = loaded.in_force.arms
        known = loaded.model
        assert known is not None
        temperatures = np.array(
            [arm.policy.scaled(known.temperature_at(row)).params["temperature"]
             for row in range(40)]
        )  # fmt: skip
        scores = np.array([known.catalog.scores(known.user_vectors[row]) for row in range(40)])
        return float(expected_overlaps(scores.astype(np.float64), temperatures, 5).mean())

    texts = ("all=plackett_luce:overlap=0.65@1",)
    assert abs(with_app(model, work, experiment="e", arms=texts, k=5) - 0.65) < 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arms": ("a=plackett_luce:overlap=0.045@1",)}, "arm a: overlap: got "),
        ({"arms": ARMS, "also": ("b=plackett_luce:overlap=0.02",)}, "also b: overlap: got 0.02"),
    ],
)
def test_what_the_model_cannot_rank_by_is_said_at_the_start(
    model: Path, settings: dict[str, Any], words: str
) -> None:
    async def work(app: App) -> None: ...

    with pytest.raises(ValueError, match=words):
        with_app(model, work, experiment="e", **settings)


def test_a_reload_that_an_arm_does_not_fit_keeps_the_old_model(tmp_path: Path) -> None:
    """A catalog alone has no users by whom an overlap could be kept."""
    make_model(tmp_path / "model")
    fr.Catalog([1, 2, 3], np.eye(3)).save(tmp_path / "bare")
    (tmp_path / "live").symlink_to(tmp_path / "model")

    async def work(app: App) -> None:
        before = (await ask(app, user_id="u1")).json()["model_version"]
        (tmp_path / "live").unlink()
        (tmp_path / "live").symlink_to(tmp_path / "bare")
        with pytest.raises(ValueError, match="arm all: overlap: the model has no users"):
            await app.service.reload()
        assert (await ask(app, user_id="u1")).json()["model_version"] == before

    arms = ("all=plackett_luce:overlap=0.7@1",)
    with_app(tmp_path / "live", work, experiment="e", arms=arms)


def test_requests_in_flight_keep_their_law(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for its ranking while something else is put into force."""

    async def work(app: App) -> None:
        service = app.service
        law, rank = service.loaded.in_force, service.engine.rank
        user = next(f"u{j}" for j in range(40) if law.arm_of(f"u{j}").name == "explore")

        async def later(job: Any) -> Any:
            nothing = replace(service.settings.regime, revision="r2", deterministic_only=True)
            service._serve(service.loaded.under(nothing))
            return await rank(job)

        monkeypatch.setattr(service.engine, "rank", later)
        first, second = [(await ask(app, user_id=user)).json() for _ in range(2)]
        assert (first["arm"], first["revision"]) == ("explore", law.revision)
        assert first["policy"]["name"] == POLICIES["explore"]
        assert (second.get("arm"), second["revision"]) == (None, "r2")
        assert second["policy"]["name"] == "deterministic"

    with_app(model, work, **HALVES)


def test_an_arm_at_a_temperature_that_nobody_says_is_warned_of(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(app: App) -> None: ...

    with caplog.at_level(logging.WARNING, "fastrank.serving"):
        with_app(model, work, experiment="e", arms=("a=plackett_luce@0.5", "b=uniform@0.5"))
    (record,) = caplog.records
    assert record.getMessage().startswith("arm a: temperature 1, which keeps ")


# ---- Further policies ---------------------------------------------------------------------------


def test_what_a_policy_cannot_judge_is_left_out(model: Path, tmp_path: Path) -> None:
    """Boosts have no meaning where nothing is a softmax; the ranking is served."""
    also = ("cold=plackett_luce:temperature=0.2", "best=deterministic")
    request: dict[str, Any] = {
        "user_id": "u1", "k": 2, "seed": 3, "exclude": [5], "score": "dot + w", "params": {"w": 1}
    }  # fmt: skip

    async def work(app: App) -> list[Any]:
        boosted = {"rules": {"boost": {"w > 0": 2.0}}}
        found = [await ask(app, **each) for each in (request, {**request, **boosted})]
        assert [each.status for each in found] == [200, 200], found
        return [each.json() for each in found]

    plain, boosted = with_app(
        model, work, also=also, policy=fr.PlackettLuce(9.0), log_directory=tmp_path
    )
    assert set(plain["evaluation_log_propensities"]) == {"cold", "best"}
    assert set(boosted["evaluation_log_propensities"]) == {"cold"}
    known = fr.Model.open(model)
    factor = known.user_temperature("u1")
    again = known.catalog.log_propensities(
        known.user_vector("u1"),
        plain["item_ids"],
        policy=fr.PlackettLuce(0.2).scaled(factor),
        exclude=[5],
        score="dot + w",
        params={"w": 1},
    )
    assert plain["evaluation_log_propensities"]["cold"] == again.tolist()
    assert None in plain["evaluation_log_propensities"]["best"]  # it is not the best ranking
    first = rows_of(tmp_path)[0]["evaluation_log_propensities"]
    assert -np.inf in dict(first)["best"]
    assert dict(first)["cold"] == again.tolist()


# ---- From the server to what an experiment says -------------------------------------------------

REQUESTS, PLACES = 3000, 3
SHOP: dict[str, Any] = {
    "experiment": "warmer",
    "arms": (
        "control=plackett_luce:temperature=1@0.5",
        "explore=plackett_luce:temperature=1.3@0.5",
    ),
    "also": ("cold=plackett_luce:temperature=0.9",),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A world whose users were served in two arms, and clicked; evaluated by command."""
    folder = tmp_path_factory.mktemp("shop")
    clicks = simulate.PositionBased([1.0, 0.7, 0.5])
    world = simulate.World.synthetic(400, 30, clicks, dim=6, seed=1, typical_rate=0.2)
    world.model(noise=0.3, seed=2).save(folder / "model")
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    rng = np.random.default_rng(3)
    users = rng.integers(0, len(world.user_ids), REQUESTS)
    seeds = iter(rng.integers(0, 2**53, REQUESTS).tolist())

    async def work(app: App) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastrank_serving.seeds.draw_seed", lambda: next(seeds))
            times = iter(range(REQUESTS))
            patch.setattr(
                "time.time_ns", lambda: (int(began.timestamp()) * 10**6 + next(times)) * 1000
            )
            return [
                (await ask(app, user_id=str(world.user_ids[user].item()), k=PLACES)).json()
                for user in users
            ]

    answers = with_app(folder / "model", work, **SHOP, log_directory=folder / "log")
    rows = world.item_rows(np.concatenate([each["item_ids"] for each in answers]))
    found = world.clicks(
        users, rows.reshape(REQUESTS, PLACES), np.full(REQUESTS, PLACES), seed=4, first_row=0
    )
    clicked = (began + timedelta(minutes=1)).isoformat()
    with (folder / "clicks.jsonl").open("w") as file:
        for answer, row in zip(answers, found, strict=True):
            for item, click in zip(answer["item_ids"], row, strict=True):
                if click:
                    reward = {"request_id": answer["request_id"], "item_id": item,
                              "reward": 1.0, "ts": clicked}  # fmt: skip
                    file.write(json.dumps(reward) + "\n")
    join(
        folder / "log",
        folder / "clicks.jsonl",
        folder / "joined",
        window=timedelta(minutes=30),
        as_of=datetime.now(UTC),
        kind="positives",
    )
    return {"folder": folder, "world": world, "answers": answers, "clicks": found}


def evaluated(shop: dict[str, Any], *words: str, model: bool = True) -> dict[str, Any]:
    folder = shop["folder"]
    of_model = ["--model", str(folder / "model"), "--no-audit"] if model else []
    result = CliRunner().invoke(evaluate, [str(folder / "joined"), *of_model, *words, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_an_experiment_is_evaluated_from_the_servers_log(shop: dict[str, Any]) -> None:
    """Error budget: 4.5 standard errors miss the truth of one log in 150,000; seeds are fixed."""
    revision = shop["answers"][0]["revision"]
    shares = f"{revision}:control=0.5,explore=0.5"
    found = evaluated(shop, "--experiment", "warmer", "--shares", shares)
    assert found["sample_ratio"]["p_value"] > 0.001
    by_arm = {each["arm"]: each for each in found["arms"]}
    earned: dict[str, list[float]] = {}
    for answer, row in zip(shop["answers"], shop["clicks"], strict=True):
        earned.setdefault(answer["arm"], []).append(float(row.sum()))
    for arm, values in earned.items():
        assert by_arm[arm]["rows_used"] == len(values)
        assert by_arm[arm]["earned"]["value"] == pytest.approx(np.mean(values))
        assert by_arm[arm]["why_not_known"] is None
    # Each arm's rows say what the other earned: propensities are those of the arms.
    assert len(found["crossed"]) == 2
    for each in found["crossed"]:
        assert each["z"] is not None, each["estimated"]
        assert abs(each["z"]) < 4.5
    assert not {"audit_failed", "arms_contradict", "sample_ratio"} & {*found["reasons"]}


def test_a_policy_by_its_rows_is_that_by_its_model(shop: dict[str, Any]) -> None:
    by_model = evaluated(shop, "--policy", "cold=plackett_luce:temperature=0.9")
    by_rows = evaluated(shop, "--also", "cold", model=False)
    named = evaluated(shop, "--also", "mine=cold", model=False)
    estimates = [each["policies"][0]["estimates"] for each in (by_model, by_rows, named)]
    assert estimates[0] == estimates[1] == estimates[2]
    assert named["policies"][0]["label"] == "mine"
    result = CliRunner().invoke(evaluate, [str(shop["folder"] / "joined"), "--also", "hot"])
    assert result.exit_code == 2
    assert "--also: no row has log-propensities of 'hot'; they have cold" in result.output


def test_rankings_of_one_pass_are_judged_together(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With filters, what users have seen, and rules that one policy does not fit."""
    known = fr.Model.open(model)
    seen = np.arange(0, 40, 2)
    live = model.with_name("seen")
    known.with_seen([f"u{j}" for j in seen], seen.tolist()).save(live)
    also = ("cold=plackett_luce:temperature=0.2", "best=deterministic")
    monkeypatch.setattr(engine, "INLINE_WORK", 0)
    passes: list[int] = []
    together = engine._judged_together

    def counted(jobs: Any, *rest: Any) -> Any:
        passes.append(len(jobs))
        return together(jobs, *rest)

    monkeypatch.setattr(engine, "_judged_together", counted)

    async def work(app: App) -> list[Any]:
        asked: list[dict[str, Any]] = [{"user_id": f"u{j}", "k": 3} for j in range(40)]
        for j in (3, 4, 5):
            asked[j] |= {"exclude": [9, 11]}
        asked[7] |= {"rules": {"boost": {"w > 0": 2.0}}, "params": {"w": 1}}
        replies = await asyncio.gather(*(ask(app, **each) for each in asked))
        assert {each.status for each in replies} == {200}
        return [each.json() for each in replies]

    answers = with_app(live, work, also=also, policy=fr.PlackettLuce(2.0), threads=1)
    assert max(passes) > 8
    boosted = answers.pop(7)
    assert set(boosted["evaluation_log_propensities"]) == {"cold"}
    for answer in answers:
        j = int(answer["user_id"][1:])
        again = known.catalog.log_propensities(
            known.user_vector(f"u{j}"),
            answer["item_ids"],
            policy=fr.PlackettLuce(0.2).scaled(known.user_temperature(f"u{j}")),
            exclude=[*([9, 11] if j in (3, 4, 5) else []), *([j] if j in seen else [])],
        )
        assert answer["evaluation_log_propensities"]["cold"] == again.tolist()


def test_servers_of_one_secret_agree(model: Path) -> None:
    async def work(app: App) -> list[str]:
        return [(await ask(app, user_id=f"u{j}", k=1)).json()["arm"] for j in range(40)]

    secret = Secret(b"0123456789abcdef0123")
    first, second = (with_app(model, work, **HALVES, secret=secret) for _ in range(2))
    assert first == second != with_app(model, work, **HALVES)
