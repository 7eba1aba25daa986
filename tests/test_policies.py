"""What a policy is to everything else: a law and a sampler, for policies of one's own, too."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastrank as fr
from fastrank import (
    ask,
    calibration,
    expectations,
    marginals,
    plan,
    reference,
    simulate,
    verify,
    wire,
)
from fastrank.cli.rank import rank as rank_command
from fastrank.ope.queries import logging_policy
from fastrank.policies import (
    INFERENCE_TYPES,
    NAMES,
    PARAMETERS,
    Law,
    completed,
    inference_type_of,
    law_name,
    names_of,
    parameters_of,
    sampler_name,
    short_name,
)
from fastrank.policies.spec import parse_policy, parse_stated, written

SCORES = np.array([1.0, 0.5, 0.0, -1.0])
CATALOG = fr.Catalog([0, 1, 2, 3], SCORES[:, None])
MODEL = fr.Model(CATALOG, ["a"], [[1.0]], user_temperatures=[2.0])
QUERIES = np.ones((1, 1), np.float32)


@dataclass(frozen=True)
class MixedSoftmax(fr.Policy):
    """A softmax, or with probability epsilon any item left: no `Law` says it."""

    temperature: float = 0.5
    epsilon: float = 0.1

    inference_type = "stochastic_mixed_softmax"

    @property
    def params(self) -> dict[str, float]:
        return {"temperature": self.temperature, "epsilon": self.epsilon}


@dataclass(frozen=True)
class Coin(fr.Policy):
    """The best item left or any, by a coin: a law that is known, and a sampler that draws it."""

    law = Law(explore=0.5)
    sampler = "epsilon_greedy"
    inference_type = "coin"

    @property
    def params(self) -> dict[str, float]:
        return {}


def world() -> simulate.World:
    return simulate.World.from_rates([[0.1, 0.2, 0.6, 0.3]], simulate.PositionBased([1.0, 0.5]))


# Everything that knows what a policy is, by what it gives.
USES: dict[str, Callable[[fr.Policy], Any]] = {
    "rank": lambda p: CATALOG.rank([1.0], 2, policy=p, seed=1).log_propensities,
    "rank_batch": lambda p: CATALOG.rank_batch([[1.0]], 2, policy=p, seeds=[1]).log_propensities,
    "rank_batch, one each": lambda p: (
        CATALOG.rank_batch([[1.0]] * 2, 2, policy=[fr.Uniform(), p], seeds=[1, 2]).log_propensities
    ),
    "log_propensities": lambda p: CATALOG.log_propensities([1.0], [3, 0], policy=p),
    "log_propensities_batch": lambda p: CATALOG.log_propensities_batch(
        [[1.0]], [[3, 0]], policies=[p]
    ),
    "recommend": lambda p: MODEL.recommend("a", 2, policy=p, seed=1).log_propensities,
    "reference.log_propensities": lambda p: reference.log_propensities(SCORES, [3, 0], p),
    "reference.rank": lambda p: reference.rank(SCORES, 2, p, np.random.default_rng(0)),
    "reference.ranking_law": lambda p: reference.ranking_law(SCORES, 2, p)[1],
    "position_marginals": lambda p: marginals.position_marginals(SCORES, p, 2),
    "marginals.ranking_law": lambda p: marginals.ranking_law(SCORES, 2, p)[1],
    "slate_inverse": lambda p: marginals.slate_inverse(SCORES, p, 2).places,
    "Audience": lambda p: expectations.Audience(CATALOG, QUERIES, k=2).law([p]).greedy,
    "plan": lambda p: len(plan.explore(CATALOG, QUERIES, k=2, targets={"it": p}).points),
    "true_value": lambda p: simulate.true_value(world(), CATALOG, p, 2, queries=QUERIES).value,
    "verify.label": lambda p: len(verify.label(p)),
}


@pytest.mark.parametrize("use", USES)
def test_a_policy_of_ones_own_is_refused_by_name_or_right(use: str) -> None:
    with pytest.raises(ValueError, match=r"(policy|policies|targets).*MixedSoftmax"):
        USES[use](MixedSoftmax())
    found, expected = USES[use](Coin()), USES[use](fr.EpsilonGreedy(0.5))
    if use != "verify.label":
        np.testing.assert_array_equal(found, expected)


@dataclass(frozen=True)
class Says(fr.Policy):
    """Any law by any sampler."""

    says: Law
    by: str
    inference_type = "says"

    @property
    def law(self) -> Law:
        return self.says

    @property
    def sampler(self) -> str:
        return self.by

    @property
    def params(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("sampler", ask._KINDS)
def test_a_sampler_that_does_not_draw_the_law_is_refused(sampler: str) -> None:
    """It would report propensities of another law than the slow twin's."""
    drawn = 0
    for explore in (0.0, 0.5, 1.0):
        for temperature in (0.7, np.inf):
            for head in (0, 1):
                policy = Says(Law(explore, temperature, head), sampler)
                try:
                    ranking = CATALOG.rank([1.0], 3, policy=policy, seed=1)
                except ValueError:
                    refused = f"policy: its sampler '{sampler}' does not draw by Law"
                    with pytest.raises(ValueError, match=refused):
                        CATALOG.log_propensities([1.0], [3, 0], policy=policy)
                    continue
                drawn += 1
                expected = reference.log_propensities(SCORES, ranking.item_ids, policy)
                np.testing.assert_allclose(ranking.log_propensities, expected, atol=1e-6)
    assert drawn >= 2


@pytest.mark.parametrize(
    "numbers",
    [(1.5,), (-0.5,), (np.nan,), (1.0, -1.0), (1.0, 0.0), (1.0, np.nan), (1.0, 1.0, -1),
     (1.0, 1.0, 1.5)],
)  # fmt: skip
def test_a_law_out_of_its_range_is_refused(numbers: tuple[Any, ...]) -> None:
    """A sampler would draw by another one, and log positive log-propensities or NaN."""
    with pytest.raises(ValueError, match=r"law: expected explore in \[0, 1\], .*; got Law\("):
        Law(*numbers)


@dataclass(frozen=True)
class Softmax(fr.Policy):
    """A law with a temperature, and nothing that says how to have another one."""

    tau: float = 0.5
    inference_type = "softmax"
    sampler = "gumbel"

    @property
    def law(self) -> Law:
        return Law(1.0, self.tau)

    @property
    def params(self) -> dict[str, float]:
        return {"tau": self.tau}


@dataclass(frozen=True)
class Named(Softmax):
    """Its temperature is the parameter of that name."""

    @property
    def params(self) -> dict[str, float]:
        return {"temperature": self.tau}


@dataclass(frozen=True)
class Unnamed(Softmax):
    """It can have another one, of which logs know nothing."""

    def at_temperature(self, temperature: float) -> Softmax:
        return Unnamed(temperature)


@pytest.mark.parametrize("policy", [Softmax(), Named(), Unnamed(), fr.BestFirst(1, Named())])
def test_a_factor_that_would_be_lost_is_refused(policy: fr.Policy) -> None:
    """A user's own would neither be drawn by nor logged."""
    for use in (
        lambda: MODEL.recommend("a", 2, policy=policy, seed=1),
        lambda: MODEL.user_policy("a", policy),
        lambda: plan.explore(MODEL, k=2, targets={"it": policy}),
    ):
        with pytest.raises(ValueError, match=r"policy: .*(Softmax|Named|Unnamed)\(.* has no "):
            use()
    assert len(CATALOG.rank([1.0], 2, policy=policy, seed=1)) == 2
    assert plan.explore(CATALOG, QUERIES, k=2, targets={"it": policy}).points


class Dial(fr.Policy):
    """Not frozen: it may say another law at the next call."""

    inference_type = "dial"
    sampler = "gumbel"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    @property
    def law(self) -> Law:
        return Law(1.0, self.temperature)

    @property
    def params(self) -> dict[str, float]:
        return {"temperature": self.temperature}


def test_a_policy_that_changes_is_asked_again() -> None:
    rows = pytest.importorskip("fastrank.eventlog.rows")
    policy = Dial(1.0)
    for temperature in (1.0, 0.1):
        policy.temperature = temperature
        expected = CATALOG.rank([1.0], 2, policy=fr.PlackettLuce(temperature), seed=1)
        assert CATALOG.rank([1.0], 2, policy=policy, seed=1).log_norm == expected.log_norm
        assert rows.law_of_row(policy)[2] == [("temperature", temperature)]


def test_temperatures_of_ones_own() -> None:
    assert MODEL.user_policy("a", MixedSoftmax()) == MixedSoftmax()
    assert MODEL.user_policy("a", fr.PlackettLuce(0.5)) == fr.PlackettLuce(1.0)
    below = fr.BestFirst(3, fr.PlackettLuce(0.5, sampler="cached"))
    assert MODEL.user_policy("a", below) == fr.BestFirst(3, fr.PlackettLuce(1.0, sampler="cached"))
    assert MODEL.user_policy("a", fr.BestFirst(3, fr.Uniform())) == fr.BestFirst(3, fr.Uniform())
    with pytest.raises(ValueError, match=r"temperature: 1e\+06 times the 2 of user 'a' must lie"):
        MODEL.user_policy("a", fr.BestFirst(3, fr.PlackettLuce(1e6)))


# Names


def every_policy() -> list[fr.Policy]:
    values = {"temperature": 0.5, "epsilon": 0.25}
    plain = [
        fr.policy(name, **{p: values[p] for p in row[2] if p in values})
        for name, row in INFERENCE_TYPES.items()
    ]
    return [
        *plain,
        *(fr.BestFirst(3, each) for each in plain if each.takes_head),
    ]


@pytest.mark.parametrize("policy", every_policy(), ids=repr)
def test_a_policy_is_what_its_name_and_parameters_say(policy: fr.Policy) -> None:
    assert fr.policy(policy.inference_type, **policy.params) == policy
    # As a log has them: all real numbers.
    assert (
        fr.policy(policy.inference_type, **{k: float(v) for k, v in policy.params.items()})
        == policy
    )
    assert set(policy.params) <= set(parameters_of(policy.inference_type)) <= set(PARAMETERS)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert pickle.loads(pickle.dumps(policy)).law == policy.law
    assert hash(fr.policy(policy.inference_type, **policy.params)) == hash(policy)
    assert eval(repr(policy), vars(fr)) == policy


@pytest.mark.parametrize("name", INFERENCE_TYPES)
def test_a_short_name_means_the_same_wherever_a_policy_is_named(name: str) -> None:
    short, usual = short_name(name), fr.FlatTail(2.0, m=3)
    assert inference_type_of(short) == inference_type_of(name) == name
    assert fr.policy(short) == fr.policy(name)
    assert completed(short, {}, usual) == completed(name, {}, usual)
    assert parse_policy(f"a={short}") == ("a", fr.policy(name))
    assert parse_stated(short) == parse_stated(name)
    assert written(fr.policy(short)).partition(":")[0] == name  # what is written is one of them
    for of in (parameters_of, law_name, sampler_name):
        assert of(short) == of(name)
    params = fr.policy(name).params
    logged: Any = SimpleNamespace(value=lambda *_: short, params=lambda _: params)
    assert logging_policy(logged, 0) == fr.policy(name)


def test_names_are_of_one_policy_each_and_the_textbooks_says_so() -> None:
    assert set(NAMES) == set(INFERENCE_TYPES)
    shorts = [row.short for row in NAMES.values()]
    assert len(set(shorts)) == len(shorts)
    assert all(inference_type_of(name) in INFERENCE_TYPES for name in names_of(INFERENCE_TYPES))
    assert fr.policy("plackett_luce") == fr.PlackettLuce(sampler="gumbel")
    slow = {name for name in NAMES if fr.policy(name).sampler == "sequential"}
    assert {name for name, row in NAMES.items() if "slow" in row.words} == slow
    assert all("use plackett_luce" in NAMES[name].words for name in slow)


@pytest.mark.parametrize("name", ["placket_luce", "stochastic_gumbel", "x" * 10**6, 3, None])
def test_what_is_no_name_is_refused_in_a_line(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^inference_type: expected one of .*; got ") as caught:
        fr.policy(name)
    assert len(str(caught.value)) < 500
    if name == "placket_luce":
        assert str(caught.value).endswith("got 'placket_luce' (nearest: plackett_luce)")


def test_a_name_where_a_policy_belongs_says_how_to_make_one() -> None:
    name: Any = "plackett_luce"
    kind: Any = fr.PlackettLuce
    with pytest.raises(ValueError, match=r"; fastrank\.policy\('plackett_luce'\) makes one"):
        CATALOG.rank([1.0], 1, policy=name)
    with pytest.raises(ValueError, match=r"; write PlackettLuce\(\.\.\.\)"):
        CATALOG.rank([1.0], 1, policy=kind)


def test_a_parameter_can_be_asked_for_everywhere() -> None:
    """The explorer's inputs: `tests/test_serving_explorer.py`; OpenAPI has them of the table."""
    options = {parameter.name for parameter in rank_command.params}
    for name, row in PARAMETERS.items():
        numbers = "_INTEGERS" if row.is_integer else "_FLOATS"
        assert name in getattr(wire, numbers), f"wire.{numbers} has no {name}"
        assert name in wire.Request.__struct_fields__, f"wire.Request has no field {name}"
        assert name in options, f"cli/rank.py has no option --{name}"
    for name in INFERENCE_TYPES:
        assert set(parameters_of(name)) <= set(PARAMETERS), f"{name}: its row in PARAMETERS"
        fr.policy(name)  # every parameter has a default


best_first: Any = fr.BestFirst  # handed what it does not take


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: best_first(0, fr.Uniform()), r"head: must lie in \[1, 1e\+06\], got 0"),
        (lambda: best_first(1.5, fr.Uniform()), "head: expected an integer, got 1.5"),
        (lambda: best_first(True, fr.Uniform()), "head: expected a real number, got True"),
        (lambda: best_first("3", fr.Uniform()), "head: expected a real number, got '3'"),
        (
            lambda: best_first(3, fr.Deterministic()),
            "then: expected PlackettLuce, .*Deterministic",
        ),
        (lambda: best_first(3, best_first(1, fr.Uniform())), "then: expected PlackettLuce, "),
        (lambda: best_first(3, "uniform"), "then: expected PlackettLuce, .*, got 'uniform'"),
        (lambda: best_first(3, MixedSoftmax()), "then: expected PlackettLuce, .*MixedSoftmax"),
        (lambda: fr.policy("uniform", head=-1), r"head: must lie in \[0, 1e\+06\], got -1"),
        (lambda: fr.policy("uniform", head=False), "head: expected a real number, got False"),
        (lambda: fr.policy("deterministic", head=3), "head: deterministic takes no parameters"),
        (lambda: fr.policy("uniform", epsilon=0.1), "epsilon: uniform takes head; got epsilon=0.1"),
    ],
)
def test_what_is_no_policy_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_no_head_is_a_head_of_none() -> None:
    for none in (0, 0.0, np.int64(0), np.float32(0.0)):
        assert fr.policy("uniform", head=none) == fr.Uniform()


@pytest.mark.parametrize("name", INFERENCE_TYPES)
def test_a_type_takes_a_head_or_refuses_it(name: str) -> None:
    plain = fr.policy(name)
    if plain.takes_head:
        assert "head" in parameters_of(name), name
        assert fr.policy(name, head=3) == fr.BestFirst(3, plain)
        return
    assert "head" not in parameters_of(name), name
    with pytest.raises(ValueError, match=f"head: {name} takes "):
        fr.policy(name, head=3)
    with pytest.raises(ValueError, match="then: expected PlackettLuce, "):
        fr.BestFirst(3, plain)


@pytest.mark.parametrize("name", INFERENCE_TYPES)
def test_what_takes_a_head_has_none_and_draws(name: str) -> None:
    law = fr.policy(name).law
    draws = law is not None and law.head == 0 and not law.is_certain
    assert fr.policy(name).takes_head == draws, (
        "a law with a head of its own, or that draws nothing, says takes_head = False"
    )


@pytest.mark.parametrize("name", INFERENCE_TYPES)
def test_the_temperature_of_a_law_is_the_parameter_of_that_name(name: str) -> None:
    """Users' own temperatures multiply it, and logs and strata find the factor by the name."""
    plain = fr.policy(name)
    has_one = "temperature" in plain.params
    if plain.law is not None:
        assert has_one == (plain.law.temperature < np.inf), name
    if has_one:
        assert plain.scaled(2.0) == plain.at_temperature(2.0 * plain.params["temperature"])
    assert (plain.scaled(2.0) != plain) == has_one, f"{name}: at_temperature"


# BestFirst


def test_a_head_and_what_is_drawn_without_it() -> None:
    """The ranking that `then` draws with the same seed where the head is excluded."""
    rng = np.random.default_rng(0)
    catalog = fr.Catalog(np.arange(300), rng.standard_normal((300, 4)))
    query, out = rng.standard_normal(4), np.arange(5)
    for policy in every_policy():
        if not isinstance(policy, fr.BestFirst):
            continue
        for k in (1, 3, 4, 12, 300):
            ranking = catalog.rank(query, k, policy=policy, seed=7, exclude=out)
            best = catalog.rank(query, min(3, k), policy=fr.Deterministic(), exclude=out)
            assert ranking.item_ids[:3].tolist() == best.item_ids.tolist()
            assert (ranking.log_propensities[:3] == 0.0).all()
            assert ranking.n_eligible == best.n_eligible == 295
            assert ranking.log_norm is None
            assert len(ranking) == min(k, 295)
            if k > 3:
                without = np.concatenate([out, best.item_ids])
                below = catalog.rank(query, k - 3, policy=policy.then, seed=7, exclude=without)
                assert ranking.item_ids[3:].tolist() == below.item_ids.tolist()
                assert ranking.log_propensities[3:].tobytes() == below.log_propensities.tobytes()
                assert ranking.scores[3:].tobytes() == below.scores.tobytes()


def test_heads_longer_than_what_is_there() -> None:
    policy = fr.BestFirst(10, fr.PlackettLuce())
    for k in (3, 10, 20):
        ranking = CATALOG.rank([1.0], k, policy=policy, seed=1)
        assert ranking.item_ids.tolist() == [0, 1, 2, 3][:k]
        batch = CATALOG.rank_batch([[1.0]] * 2, k, policy=policy, seeds=[1, 2], allow=[[2], None])
        assert batch.counts.tolist() == [1, min(k, 4)]
    given = CATALOG.log_propensities([1.0], [0, 2, 1], policy=fr.BestFirst(2, fr.Uniform()))
    np.testing.assert_array_equal(given, [0.0, -np.inf, -np.log(2.0)])


def test_overlap_of_a_head() -> None:
    """Of `fastrank plan`: the head is kept, and what is drawn below it is counted."""
    policy = fr.BestFirst(2, fr.PlackettLuce(0.7))
    audience = expectations.Audience(CATALOG, QUERIES, k=3)
    draws = audience.draw([policy], np.arange(4000, dtype=np.uint64)[None])
    overlap, _, entropy = audience.kept_and_lost(audience.law([policy]), draws)
    rankings, law = reference.ranking_law(SCORES, 3, policy)
    expected = float((law * np.isin(rankings, [0, 1, 2]).mean(axis=1)).sum())
    assert overlap.mean() == pytest.approx(expected, abs=1e-9)  # one place is drawn: exact
    assert entropy.tolist() == [0.0]
    assert calibration.drawn_overlap(SCORES, 1e-6, 3) == 1.0
